"""Clone in: from the user's repository to the private copy that the agent works in."""

"""The way of a session."""

"""The agents: how each is found, what it is given and what stays outside."""

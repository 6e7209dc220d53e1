"""How long clsecure takes, as ratios to floors of the same machine in the same run."""

"""What is left of a session: its signed record, the keys, and the index from commits to records."""

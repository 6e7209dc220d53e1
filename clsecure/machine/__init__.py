"""What this machine has and lacks for each mode: real, bounded probes, and the command that mends each."""

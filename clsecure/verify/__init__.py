"""Does the isolation hold? The host's view decides."""

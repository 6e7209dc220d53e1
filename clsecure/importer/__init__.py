"""The way home: a hostile stream becomes one branch, or nothing at all."""

"""Run an AI coding agent in isolation and bring its work home as one git branch."""

__version__ = "0.1.0"

"""Worker images: what is in them, where they lie, and how they come into an engine."""

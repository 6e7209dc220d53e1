"""Container mode: the engines' APIs, and what a container is promised to be."""

"""What runs as root, in parts: the standard library and these modules only.

They are installed root-owned below the helper's own directory, the only place that it finds them in. Imports
go one way: ``kernel`` and ``messages`` know nobody, ``sandbox`` knows nearly all.
"""

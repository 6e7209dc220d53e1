"""What ``export.py`` consists of: the standard library and these modules only.

Imports go one way: ``files`` and ``request`` know nobody, ``run`` knows nearly all.
"""

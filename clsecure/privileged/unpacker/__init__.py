"""What ``unpack.py`` consists of: the standard library and these modules only.

Imports go one way: ``records`` knows nobody, ``run`` knows nearly all.
"""

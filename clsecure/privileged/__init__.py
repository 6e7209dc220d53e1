"""The pieces that are installed root-owned, and the client that speaks to them.

All are of the standard library: what runs inside as single files, the helper with its modules in ``root``.
"""

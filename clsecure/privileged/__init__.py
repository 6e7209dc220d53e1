"""The pieces that are installed root-owned, and the client that speaks to them.

All are of the standard library. The larger programs have modules: the helper ``root``, ``export.py``
``exporter``, ``unpack.py`` ``unpacker``; what else runs inside is single files.
"""

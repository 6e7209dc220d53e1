"""The pieces that are installed root-owned, and the client that speaks to them.

All are of the standard library. Three programs have modules: the helper has ``root``, ``export.py`` has
``exporter`` and ``unpack.py`` has ``unpacker``. What else runs inside is single files.
"""

"""The pieces that are installed root-owned, and the client that speaks to them.

``helper.py``, ``launcher.py``, ``unpack.py`` and ``export.py`` are single files of the standard library.
"""

"""Readers of single values, for every layer alike: text in, a checked value out, ``ValueError`` otherwise.

Standard library only: the parser of the command line uses them before anything heavy is imported. The
messages never repeat the text that was refused: in a file it may be a secret in the wrong place.
"""

"""From the words of a command line to an :class:`~clsecure.cli.options.Invocation`."""

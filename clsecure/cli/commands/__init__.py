"""One module per command: ``execute(invocation, ui) -> int``. Imported by name, when used."""

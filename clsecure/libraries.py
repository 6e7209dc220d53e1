"""Libraries that take long to import: begun beside other work, and waited for before they are used.

Two threads that import libraries which import each other can meet half of a module: who needs one of them
while another may still be on its way waits for it first.
"""

from __future__ import annotations

import contextlib
import importlib
import threading

_importing: list[threading.Thread] = []
_one_at_a_time = threading.Lock()


def begin(name: str) -> None:
    """Import a library in the background."""
    # The whole program may end before it is done; nobody waits for it then.
    thread = threading.Thread(target=_import, args=(name,), daemon=True)
    _importing.append(thread)
    thread.start()


def ready() -> None:
    """Wait for what was begun."""
    while _importing:
        _importing.pop().join()


def _import(name: str) -> None:
    # Who needs what is not there says so, with words.
    with _one_at_a_time, contextlib.suppress(ImportError):
        importlib.import_module(name)

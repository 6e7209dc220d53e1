"""The gateway's process. Started by ``clsecure.egress.client`` as a file, with the session's socket as stdin.

As a file and with ``python -I``: neither the current directory nor a PYTHONPATH says which code holds the
key.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def _add_own_package() -> None:
    """Let ``clsecure`` be found where this file is, a checkout too, behind the standard library."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        packages = ("site-packages", "dist-packages")
        at = next((n for n, entry in enumerate(sys.path) if entry.endswith(packages)), len(sys.path))
        sys.path.insert(at, root)


def main() -> int:
    """Confine, take the configuration, serve."""
    parent = os.getppid()
    _add_own_package()
    import asyncio
    import socket

    from clsecure.egress import wire
    from clsecure.egress.confine import confine, die_with
    from clsecure.egress.gateway import run
    from clsecure.errors import EgressError

    control = socket.socket(fileno=os.dup(0))
    try:
        confine()
        message = wire.receive_config(control)
        if message is None:
            return 0
        if message["die_with_parent"]:
            die_with(parent)
        config = wire.decode_config(message)
        token = message["token"]
        del message
        asyncio.run(run(control, config, token=token))
    except EgressError as error:
        with contextlib.suppress(OSError):
            control.send(wire.encode_error(error))
        return 1
    return 0


if __name__ == "__main__":
    # Without waiting for threads, of which one may ask a name server that never answers.
    os._exit(main())

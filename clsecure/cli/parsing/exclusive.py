"""What of a command line excludes each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clsecure.errors import UsageError

_EXCLUSIVE = (
    ("--no-network", "--allow-network"),
    *(
        (policy, more)
        for policy in ("--no-network", "--allow-network")
        for more in ("--allow-domain", "--allow-preset")
    ),
    ("--no-network", "--allow-private"),
    ("--no-docker", "--allow-docker"),
    ("--no-docker", "--docker-image"),
    ("--resume", "--fresh"),
    ("--all", "SESSION"),
    *(
        (flag, "SESSION")
        for flag in (
            "--mode",
            "--engine",
            "--image",
            "--runtime",
            "--mount",
            "--limit",
            "--no-network",
            "--allow-network",
            "--allow-private",
            "--list-checks",
        )
    ),
)


def check_exclusive(found: Mapping[str, Any]) -> None:
    """Refuse two words that can't both be said.

    :raises UsageError: they are.
    """
    for one, other in _EXCLUSIVE:
        if found.get(one) and found.get(other):
            raise UsageError(f"{one} and {other} exclude each other", resolution="leave one of them out")

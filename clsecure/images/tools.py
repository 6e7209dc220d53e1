"""The programs that building an image takes, looked for before anything is fetched."""

from __future__ import annotations

from clsecure.errors import BackendUnavailableError
from clsecure.images.npm import find_npm
from clsecure.machine.probe import GIVE_RANGES, build_lacking, install_command


def require_tools(*, npm: bool) -> None:
    """Refuse to build where a program is missing.

    :param npm: something comes from npm.
    :raises BackendUnavailableError: it names all that is missing, and what installs it.
    """
    programs, ranges = build_lacking()
    if npm and find_npm() is None:
        programs = (*programs, "npm")
    if programs:
        raise BackendUnavailableError(
            f"an image can't be built here: this machine lacks {', '.join(programs)}",
            resolution=f"{install_command(*programs)}; or bring one that was built elsewhere: "
            "clsecure images load FILE",
        )
    if not ranges:
        raise BackendUnavailableError(
            "an image can't be built here: you have no range of uids in /etc/subuid and /etc/subgid",
            resolution=f"{GIVE_RANGES} (numbers that nobody else has); or bring one that was built "
            "elsewhere: clsecure images load FILE",
        )

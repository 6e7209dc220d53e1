"""What a setup is made from: the user's script and, if they want it, a token. Read before all else."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clsecure import logs
from clsecure.errors import UsageError

TOKEN = "GH_TOKEN"  # noqa: S105  # the name of a variable
_MAX_SCRIPT = 1 << 20
_VALUE = re.compile(r"[\x21-\x7e]{1,1024}")
_SKIP = "correct setup_script in your settings, or leave it out this time: --skip-setup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The user's setup script, as it was read once.

    :param token: the user's GitHub token, None where the script does not get it.
    """

    name: str
    data: bytes = field(repr=False)
    token: str | None = field(repr=False, default=None)

    @property
    def misses_token(self) -> bool:
        """It names the token, and does not get it."""
        return self.token is None and (b"GH_TOKEN" in self.data or b"GITHUB_TOKEN" in self.data)


def read_script(path: Path, *, token: str | None) -> Script:
    """Read the user's script; a link of theirs is followed, since managers of dotfiles make them.

    :raises UsageError: it is missing, too large, or others could have written it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            why = _unusable(os.fstat(fd))
            data = b"" if why else _read(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(
            f"the setup script {path} can't be read", details=error.strerror, resolution=_SKIP
        ) from error
    if not why and len(data) > _MAX_SCRIPT:
        why = "it is larger than 1 MiB"
    if not why and not data.strip():
        why = "it is empty"
    if why:
        raise UsageError(f"the setup script {path} can't be used: {why}", resolution=_SKIP)
    return Script(name=re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[:100] or "setup", data=data, token=token)


def _read(fd: int) -> bytes:
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(_MAX_SCRIPT + 1)


def _unusable(info: os.stat_result) -> str:
    if not stat.S_ISREG(info.st_mode):
        return "it is not a regular file"
    if info.st_uid not in (0, os.getuid()):
        return "it belongs to somebody else"
    if info.st_mode & stat.S_IWOTH:
        return "everybody can write it"
    return ""


def github_token(environ: Mapping[str, str], home: Path, repository: Path) -> str:
    """Return the user's GitHub token: from the environment, or from their ``gh``.

    :param repository: no program in it is asked.
    :raises UsageError: there is none.
    """
    found = next((environ[name] for name in (TOKEN, "GITHUB_TOKEN") if environ.get(name)), None)
    if found is None:
        from clsecure.egress.presets.ask import ask, find_tools
        from clsecure.egress.presets.values import Person

        person = Person(environ=environ, home=home, repository=repository, system=Path("/"))
        names = "GH_CONFIG_DIR|DBUS_SESSION_BUS_ADDRESS"
        answers = (
            ask(program, "auth", "token", person=person, variables=names)
            for program in find_tools("gh", person)
        )
        found = next((answer.strip() for answer in answers if answer), None)
    if found is None or not _VALUE.fullmatch(found):
        raise UsageError(
            "there is no GitHub token for the setup script (github_token = yes)",
            details="Neither GH_TOKEN nor GITHUB_TOKEN is set, and `gh auth token` gave none.",
            resolution="log in with `gh auth login`, or set github_token = no",
        )
    logs.register_secret(found)
    return found

"""The permission to start the helper, as sudo's drop-in: one program, no arguments.

There are two sudo. Not every setting that the helper asks for is known to both, nor to each version of
``sudo-rs``, which Ubuntu has had for its sudo since 25.10. What one does not know, its visudo refuses: so a
text is made of what this machine's takes. ``clsecure setup`` asks here; a package is built with
:data:`COMMON_SETTINGS` in the file that it ships, and its ``configure`` tries the others one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from clsecure import process
from clsecure.errors import BackendUnavailableError, ToolError
from clsecure.process import Command

COMMON_SETTINGS = ("env_reset", "!env_keep", "!env_check", "!use_pty")
"""Known to every sudo. The environment is emptied of what the machine's sudoers lets through."""
OTHER_SETTINGS = ("!setenv", "!noexec", "!requiretty", "!log_input", "!log_output", "closefrom=3")
"""log_input would put a pipe in the place of the helper's standard input, a socket; noexec would keep it from
running useradd."""
_ALL = COMMON_SETTINGS + OTHER_SETTINGS
_TIMEOUT = 30.0


def setting_line(helper: Path, settings: Sequence[str]) -> str:
    """Return the line of settings that count for the helper alone."""
    return f"Defaults!{helper} {', '.join(settings)}\n"


def sudoers_text(
    who: Sequence[str],
    helper: Path,
    *,
    maker: str,
    settings: Sequence[str] = COMMON_SETTINGS + OTHER_SETTINGS,
) -> str:
    """Return the drop-in.

    :param who: names and ``%groups`` as sudoers has them.
    :param maker: the comment at its top.
    """
    rules = (f'{name} ALL=(root) NOPASSWD: {helper} ""\n' for name in who)
    return "".join((f"# {maker}\n", setting_line(helper, settings), *rules))


def known_settings(helper: Path) -> tuple[str, ...]:
    """Return the settings that this machine's sudo knows; all of them where nobody can be asked.

    :raises ToolError: visudo did not end in time.
    """
    try:
        if _is_accepted(setting_line(helper, _ALL)):
            return _ALL
        known = tuple(each for each in _ALL if _is_accepted(setting_line(helper, (each,))))
    except BackendUnavailableError:
        return _ALL
    return known or _ALL


def check_sudoers(data: bytes) -> None:
    """Refuse what sudo could not read: an invalid file stops sudo for everybody.

    :raises BackendUnavailableError: sudo is missing.
    :raises ToolError: visudo refused.
    """
    _asked(data).check()


def _is_accepted(text: str) -> bool:
    return _asked(text.encode()).returncode == 0


def _asked(data: bytes) -> process.CommandResult:
    with tempfile.NamedTemporaryFile(prefix="clsecure-sudoers-") as file:
        file.write(data)
        file.flush()
        try:
            return process.run(Command(argv=("visudo", "-cqf", file.name), timeout=_TIMEOUT))
        except ToolError as error:
            if "not installed" in error.brief:
                raise BackendUnavailableError(
                    "sudo is not installed", resolution="Install the package sudo first."
                ) from error
            raise

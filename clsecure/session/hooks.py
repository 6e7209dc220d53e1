"""Session hooks: programs of the user's, in the user's own directory, around a session. docs/hooks.md."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clsecure import logs
from clsecure.errors import ToolError, UsageError
from clsecure.session import programs
from clsecure.session.ui import Ui

log = logs.get("hooks")

SECONDS = 60.0
"""What one hook may take."""


class Hook(StrEnum):
    """When it runs, and the name of its file."""

    PRE_SESSION = "pre-session"
    POST_SESSION = "post-session"
    POST_IMPORT = "post-import"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHooks:
    """Those of one user.

    :param directory: where they are, or would be; None where there is no home.
    :param environ: the user's environment, which they get as it is.
    """

    directory: Path | None
    environ: Mapping[str, str]
    home: Path
    ui: Ui

    def before(self, document: object) -> None:
        """Run ``pre-session``, which may refuse the session.

        :raises UsageError: it did, or it can't be run.
        """
        path = self._find(Hook.PRE_SESSION)
        if path is None:
            return
        ended = self._run(path, Hook.PRE_SESSION, document)
        if ended.failure is not None:
            raise UsageError(
                f"the pre-session hook {ended.failure}: nothing was started",
                details="\n".join(ended.lines) or None,
                resolution=f"see what it wants, or take it away: {path}",
            )
        self._say(Hook.PRE_SESSION, ended)

    def after(self, hook: Hook, document: object) -> None:
        """Run one of the others: whatever happens to it is a warning, never a failure of the session."""
        try:
            path = self._find(hook)
            if path is None:
                return
            ended = self._run(path, hook, document)
        except (UsageError, ToolError) as error:
            self.ui.warn(f"{error.brief}: {error.details}")
            return
        except OSError as error:
            self.ui.warn(f"the {hook} hook could not be run: {error}")
            return
        except KeyboardInterrupt:
            self.ui.warn(f"the {hook} hook was ended")
            return
        self._say(hook, ended)
        if ended.failure is not None:
            self.ui.warn(f"the {hook} hook {ended.failure}")

    def _find(self, hook: Hook) -> Path | None:
        """Return the hook when there is one.

        :raises UsageError: somebody else could have put it there, or it can't be run.
        """
        if self.directory is None or not os.path.lexists(self.directory / hook):
            return None
        found = self.directory.stat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022:
            raise UsageError(
                f"the {hook} hook can't be run",
                details=f"others could change what is in {self.directory}",
                resolution=f"chmod go-w {self.directory}",
            )
        path = self.directory / hook
        programs.check(path, f"{hook} hook")
        return path

    def _run(self, path: Path, hook: Hook, document: object) -> programs.Ended:
        with self.ui.phase(f"running the {hook} hook"):
            ended = programs.run(
                (str(path),), document, environ=self.environ, home=self.home, seconds=SECONDS
            )
        log.info("hook_ended", hook=hook.value, status=ended.status)
        return ended

    def _say(self, hook: Hook, ended: programs.Ended) -> None:
        for line in ended.lines:
            self.ui.note(f"{hook}: {line}")

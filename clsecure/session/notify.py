"""Calling the user when a session that took long ends, or waits for an answer. Never fatal, never long."""

from __future__ import annotations

import contextlib
import html
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from clsecure.errors import ClsecureError
from clsecure.machine.probe import find_program, install_command
from clsecure.process import SYSTEM_PATH
from clsecure.session import programs
from clsecure.session.ui import Ui
from clsecure.terminal import escape

SECONDS = 10.0
"""What a program that calls the user may take. It runs beside the question; the end waits no longer."""

_MAX_TEXT = 200
# What a desktop notification needs, and a program of the user's besides.
_ENVIRONMENT = (
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
)


@dataclass(slots=True, kw_only=True)
class Notifier:
    """Calls the user once per session.

    :param how: of ``desktop``, ``bell``, ``osc9``.
    :param command: a program of the user's, called as well.
    :param after: a session that took less calls nobody: who started it is still there.
    """

    how: tuple[str, ...]
    command: Path | None
    after: timedelta
    ui: Ui
    environ: Mapping[str, str]
    home: Path
    begun: float = field(default_factory=time.monotonic)
    _called: bool = False
    _threads: list[threading.Thread] = field(default_factory=list)

    def check(self) -> None:
        """Say before the start what will not work.

        :raises UsageError: the user's program can't be run.
        """
        if self.command is not None:
            programs.check(self.command, "program of notify_command")
        if "desktop" in self.how and find_program("notify-send") is None:
            self.ui.warn(f"notify = desktop: there is no notify-send here ({install_command('notify-send')})")

    def call(self, text: str, document: object) -> None:
        """Call the user, unless that was done already or the session is young. Returns at once.

        :param text: one sentence; may hold hostile names.
        :param document: what the user's program reads.
        """
        young = time.monotonic() - self.begun < self.after.total_seconds()
        if self._called or young or not (self.how or self.command):
            return
        self._called = True
        shown = escape(text)[:_MAX_TEXT]
        if "bell" in self.how or "osc9" in self.how:
            self.ui.ring(f"clsecure: {shown}", bell="bell" in self.how, message="osc9" in self.how)
        sender = find_program("notify-send") if "desktop" in self.how else None
        if sender is not None:
            # The body is markup; the two words after -- are never taken for options.
            argv = (str(sender), "--app-name=clsecure", "--", "clsecure", html.escape(shown))
            self._beside(lambda: self._run(argv, {}))
        if self.command is not None:
            program = (str(self.command),)
            self._beside(lambda: self._run(program, document))

    def finish(self) -> None:
        """Wait for what was started; each of them is ended when its time is over. Ctrl-C waits no longer."""
        with contextlib.suppress(KeyboardInterrupt):
            for thread in self._threads:
                thread.join()
        self._threads.clear()

    def _beside(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self, argv: tuple[str, ...], document: object) -> None:
        environ = {name: self.environ[name] for name in _ENVIRONMENT if name in self.environ}
        failure: str | None
        try:
            ended = programs.run(
                argv, document, environ={"PATH": SYSTEM_PATH, **environ}, home=self.home, seconds=SECONDS
            )
            failure = ended.failure
        except (ClsecureError, OSError) as error:
            failure = f"could not be run ({error})"
        if failure is not None:
            with contextlib.suppress(OSError):
                self.ui.warn(f"notify: {argv[0]} {failure}")

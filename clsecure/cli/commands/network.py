"""``clsecure network ACTION``: what a session may reach, and what it asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clsecure.cli.options import Invocation, NetworkAction, NetworkOptions
from clsecure.errors import UsageError

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Do one of the actions; each is a module of its own, imported when it is wanted."""
    options = invocation.options
    assert isinstance(options, NetworkOptions)  # noqa: S101  # the dispatcher's word
    match options.action:
        case NetworkAction.CHECK:
            from clsecure.cli.commands import network_check

            return network_check.execute(invocation, ui)
        case (NetworkAction.WATCH | NetworkAction.ALLOW | NetworkAction.LEARN) as action:
            raise UsageError(
                f"'clsecure network {action}' is not there yet",
                resolution="see 'clsecure --help' for what is",
            )

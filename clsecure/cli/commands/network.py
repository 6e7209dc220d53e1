"""``clsecure network ACTION``: what a session may reach, and what it asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clsecure.cli.actions import NetworkAction
from clsecure.cli.options import Invocation, NetworkOptions
from clsecure.errors import UsageError
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.store import SessionDirectory, SessionRecord
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Do one of the actions; each is a module of its own, imported when it is wanted."""
    options = invocation.options
    assert isinstance(options, NetworkOptions)  # noqa: S101  # the dispatcher's word
    as_json = invocation.output is OutputFormat.JSON
    match options.action:
        case NetworkAction.CHECK:
            from clsecure.cli.commands import network_check

            return network_check.execute(invocation, ui)
        case NetworkAction.WATCH:
            from clsecure.cli.commands import network_watch

            return network_watch.execute(*_session(invocation, *options.arguments), ui, as_json=as_json)
        case NetworkAction.ALLOW:
            from clsecure.cli.commands import network_allow

            # One word alone is the host, and the session is the project's own.
            *names, host = options.arguments[:2]
            hosts = options.arguments[1:] or (host,)
            return network_allow.execute(*_session(invocation, *names), hosts, ui, as_json=as_json)
        case NetworkAction.LEARN:
            from clsecure.cli.commands import network_learn

            return network_learn.execute(*_session(invocation, *options.arguments), ui, as_json=as_json)


def _session(invocation: Invocation, name: str | None = None) -> tuple[SessionDirectory, SessionRecord]:
    """Return the session of that name; without one, the one that ``clsecure`` would start here.

    :raises SessionNotFoundError: there is none.
    """
    from clsecure.cli.commands.diff import project_here
    from clsecure.session.store import DEFAULT_SESSION, Store

    project = project_here()
    if name is None:
        said = invocation.layers.strongest("session")
        name = said.text if said is not None else DEFAULT_SESSION
        if project is None:
            raise UsageError(
                "this is no project of yours, so the session must be named", resolution="clsecure list"
            )
        return Store().own(project, name)
    return Store().find(name, project=project)

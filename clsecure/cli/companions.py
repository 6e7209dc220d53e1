"""What goes along with a session on the user's side: session hooks and notifications."""

from __future__ import annotations

import os
from pathlib import Path

from clsecure.cli.render import error_document, plain
from clsecure.errors import ClsecureError
from clsecure.model import ImportResult
from clsecure.session.hooks import Hook, SessionHooks
from clsecure.session.notify import Notifier
from clsecure.session.plan import SessionPlan
from clsecure.session.result import SessionResult
from clsecure.session.ui import Ui
from clsecure.session.words import number
from clsecure.settings.sources import settings_directory


def session_hooks(ui: Ui) -> SessionHooks:
    """Return those of this process's user."""
    home = Path.home()
    directory = settings_directory(os.environ, home)
    return SessionHooks(
        directory=directory and directory / "hooks", environ=dict(os.environ), home=home, ui=ui
    )


def imported(hooks: SessionHooks, *, session_id: str, project: str, session: str, what: ImportResult) -> None:
    """Run ``post-import``."""
    document = {"session_id": session_id, "project": project, "session": session, "import": what}
    hooks.after(Hook.POST_IMPORT, plain(document))


class Companions:
    """Those of one session."""

    def __init__(self, plan: SessionPlan, ui: Ui) -> None:
        self._hooks = session_hooks(ui)
        self._notifier = Notifier(
            how=plan.notify,
            command=plan.notify_command,
            after=plan.notify_after,
            ui=ui,
            environ=os.environ,
            home=Path.home(),
        )
        self._plan = plan
        self._known = {
            "session_id": plan.session_id,
            "project": str(plan.project),
            "session": plan.session,
        }
        self._name = (
            plan.project_name if plan.session == "default" else f"{plan.project_name}, {plan.session}"
        )

    def begin(self) -> None:
        """Say what will not work, and run ``pre-session``.

        :raises UsageError: the session is refused.
        """
        plan = self._plan
        self._notifier.check()
        self._hooks.before(
            plain(
                {
                    **self._known,
                    "mode": plan.mode,
                    "network": plan.network,
                    "agent": plan.agent,
                    "command": plan.command,
                    "shell": plan.shell,
                    "branch": plan.branch_name,
                    "mounts": [str(mount.source) for mount in plan.mounts],
                }
            )
        )

    def asking(self) -> None:
        """Fetch the user: a question is about to be put."""
        self._notifier.call(f"{self._name}: waits for your answer", plain({**self._known, "waiting": True}))

    def ended(self, result: SessionResult) -> None:
        """Tell everybody how it went."""
        work = "nothing to import"
        if result.import_ is not None:
            work = f"imported as {result.import_.branch}, {number(result.import_.commits, 'commit')}"
        elif result.kept:
            work = "kept"
        document = plain(result)
        self._notifier.call(f"{self._name}: ended with status {result.exit_code}, {work}", document)
        if result.import_ is not None:
            imported(self._hooks, **self._known, what=result.import_)
        self._hooks.after(Hook.POST_SESSION, document)
        self._notifier.finish()

    def failed(self, error: ClsecureError) -> None:
        """Tell everybody that it did not go well."""
        document = plain({**self._known, **error_document(error)})
        self._notifier.call(f"{self._name}: {error.brief}", document)
        self._hooks.after(Hook.POST_SESSION, document)
        self._notifier.finish()

"""``clsecure setup``: install the root-owned pieces, or take them away; always shown first.

Also runs as root, so it imports nothing but the standard library and this package's small modules.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import sys
from typing import TYPE_CHECKING, assert_never

from clsecure import installer, process
from clsecure.cli import render
from clsecure.cli.options import Invocation, SetupOptions
from clsecure.errors import BackendUnavailableError, StateError, UsageError
from clsecure.installation import GROUP, digest, how_to_allow, inspect, is_packaged
from clsecure.installer import RemovalPlan, SetupPlan
from clsecure.process import SYSTEM_PATH, Command
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Show the plan, ask, and do it: as root at once, as a plain user through sudo."""
    options = invocation.options
    assert isinstance(options, SetupOptions)  # noqa: S101  # the parser pairs verb and options
    if is_packaged() and not options.remove:
        status = _came_as_a_package(_user(options), ui)
        if invocation.output is OutputFormat.JSON:
            render.write_json({"files": [], "sudoers": "", "users": [_user(options)], "makes_group": False})
        return status
    plan = installer.plan_removal() if options.remove else installer.plan_setup([_user(options)])
    as_json = invocation.output is OutputFormat.JSON
    if not as_json:
        _show(plan)
    status = _carry_out(plan, options, ui)
    if as_json and status == 0:
        render.write_json(_document(plan))
    return status


def _came_as_a_package(user: str, ui: Ui) -> int:
    """Say what is left to do: the pieces are there, and membership of the group is the permission."""
    with contextlib.suppress(KeyError):
        if user in grp.getgrnam(GROUP).gr_mem:
            ui.note(f"This clsecure came as a package, and {user} may use it: there is nothing to set up.")
            return 0
    raise UsageError(
        "this clsecure came as a package: there is nothing to install",
        details=f"Members of the group {GROUP} may use it, and {user} is not one of them.",
        resolution=how_to_allow(user),
    )


def _carry_out(plan: SetupPlan | RemovalPlan, options: SetupOptions, ui: Ui) -> int:
    if options.dry_run:
        return 0
    if os.geteuid() != 0:
        return _through_sudo(options, ui)
    if isinstance(plan, RemovalPlan) and plan.accounts and not options.yes:
        raise StateError(
            f"{len(plan.accounts)} worker accounts are left",
            details="\n".join(plan.accounts),
            resolution="Remove them first, as their owners: clsecure cleanup --all   (or add --yes)",
        )
    changes_nothing = isinstance(plan, SetupPlan) and plan.changes_nothing
    if not options.yes and not changes_nothing and not _agreed(ui):
        return 0
    match plan:
        case SetupPlan():
            installer.apply_setup(plan)
            _confirm_installed(plan, ui)
            ui.note("Done. Undo it with: clsecure setup --remove")
        case RemovalPlan():
            installer.apply_removal(plan)
            ui.note("Done.")
        case _:
            assert_never(plan)
    return 0


def sudo_command(options: SetupOptions) -> tuple[str, ...]:
    """Return what a plain user runs: this very clsecure, isolated from the directory and environment."""
    # -B: root's byte code would be files in the user's directories that the user can't remove.
    argv = ["sudo", "--", sys.executable, "-I", "-B", "-m", "clsecure", "setup", "--yes"]
    if options.remove:
        return (*argv, "--remove")
    return (*argv, f"--user={_user(options)}")


def _user(options: SetupOptions) -> str:
    """Return who is to use clsecure: named, or who called sudo, or who runs this."""
    if options.user:
        return options.user
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    uid = os.environ.get("SUDO_UID", "")
    if uid.isdigit() and int(uid) != 0:
        return pwd.getpwuid(int(uid)).pw_name
    raise UsageError(
        "whose account shall use clsecure?",
        details="Setup was started as root, not through sudo.",
        resolution="clsecure setup --user NAME",
    )


def _show(plan: SetupPlan | RemovalPlan) -> None:
    match plan:
        case SetupPlan():
            lines = installer.describe_setup(plan)
        case RemovalPlan():
            lines = installer.describe_removal(plan)
        case _:
            assert_never(plan)
    sys.stdout.write("".join(f"{escape(line)}\n" for line in lines))
    sys.stdout.flush()


def _document(plan: SetupPlan | RemovalPlan) -> dict[str, object]:
    match plan:
        case SetupPlan():
            return {
                "files": [
                    {
                        "source": file.source,
                        "target": str(file.target),
                        "mode": f"{file.mode:04o}",
                        "sha256": digest(file.data),
                        "unchanged": file.unchanged,
                    }
                    for file in plan.files
                ],
                "sudoers": plan.files[-1].data.decode(),
                "users": list(plan.users),
                "makes_group": plan.makes_group,
            }
        case RemovalPlan():
            return {
                "paths": [str(path) for path in plan.paths],
                "removes_group": plan.removes_group,
                "accounts": list(plan.accounts),
            }
        case _:
            assert_never(plan)


def _agreed(ui: Ui) -> bool:
    if not ui.interactive:
        raise UsageError(
            "nothing was done: there is no terminal to ask on", resolution="Look at the plan, then add --yes."
        )
    return ui.confirm("Do this now?")


def _through_sudo(options: SetupOptions, ui: Ui) -> int:
    command = sudo_command(options)
    shown = shlex.join(command)
    if not options.yes and (not ui.interactive or not ui.confirm(f"This needs root. Run it now?  {shown}")):
        raise BackendUnavailableError("nothing was done: setup needs root", resolution=shown)
    # The plan was shown already, by the same code: only what it says besides is wanted.
    return process.spawn(
        Command(argv=command, env={"PATH": SYSTEM_PATH, **_language()}), stdin=0, stderr=2
    ).wait()


def _language() -> dict[str, str]:
    return {key: os.environ[key] for key in ("LANG", "LC_ALL", "TERM") if key in os.environ}


def _confirm_installed(plan: SetupPlan, ui: Ui) -> None:
    """Look again at what is there now, and ask sudo whether it reads our file at all."""
    installation = inspect(plan.layout.directory)
    if installation is None or not installation.matches:
        raise StateError(f"{plan.layout.directory} is not as it was written", resolution="Run setup again.")
    for user in plan.users:
        asked = process.run(
            Command(argv=("sudo", "-n", "-l", "-U", user, str(installation.helper)), timeout=30)
        )
        if asked.returncode != 0:
            ui.warn(
                f"sudo does not let {user} run the helper: does /etc/sudoers include /etc/sudoers.d? "
                "(@includedir /etc/sudoers.d)"
            )

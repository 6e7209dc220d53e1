"""What ``clsecure setup`` does as root: copy the pieces, allow the helper, and take both away again.

Imports the standard library only (besides this package's own small modules), because it runs under
``sudo /usr/bin/python3 -I -S``. Every source is read exactly once; what was shown is what gets written.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clsecure import process
from clsecure.errors import StateError, UsageError
from clsecure.installation import (
    DIRECTORIES,
    GROUP,
    PACKAGE_DIRECTORY,
    PIECES,
    SETUP_DIRECTORY,
    STATE_DIRECTORY,
    SUDOERS_FILE,
    digest,
    read_piece,
    source_directory,
    strangers,
)
from clsecure.process import Command
from clsecure.sudoers import check_sudoers, known_settings, sudoers_text

_STATE_DIRECTORIES = ("agents", "engines", "images", "locks", "removal", "view")
"""``removal`` is a package's, which was removed."""
_SUDOERS_MODE = 0o440
_MAKER = "Made by `clsecure setup`, taken away by `clsecure setup --remove`."
# Lower case only: sudoers takes a name of capitals for an alias. Anything else is named by its uid.
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_USER_LINE = re.compile(r"^(?P<who>[a-z_][a-z0-9_-]{0,31}|#[0-9]+) ALL=\(root\) NOPASSWD: ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where setup puts things. People get the default; tests get a place of their own.

    :param trusted_root: the check of parent directories ends here.
    :param group: made when missing; None for no group.
    :param others: helpers that are not setup's, which use the same state and group.
    """

    directory: Path = SETUP_DIRECTORY
    sudoers: Path = SUDOERS_FILE
    state: Path = STATE_DIRECTORY
    trusted_root: Path = Path("/")
    group: str | None = GROUP
    others: tuple[Path, ...] = (PACKAGE_DIRECTORY / "helper",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """One file as it will be: these bytes, whatever happens to the source meanwhile."""

    source: str
    target: Path
    mode: int
    data: bytes
    unchanged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupPlan:
    """All that setup would write.

    :param directories: outermost first; made, or given their permissions.
    :param leftovers: what a former version left among the helper's modules; taken away.
    """

    layout: Layout
    files: tuple[PlannedFile, ...]
    directories: tuple[Path, ...]
    leftovers: tuple[Path, ...]
    users: tuple[str, ...]
    makes_group: bool

    @property
    def changes_nothing(self) -> bool:
        """True when the machine is already as planned."""
        directories_are_right = all(_is_right_directory(path) for path in self.directories)
        files_are_right = all(file.unchanged for file in self.files) and not self.leftovers
        return not self.makes_group and directories_are_right and files_are_right


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalPlan:
    """All that ``setup --remove`` would take away.

    :param accounts: names of the worker accounts that the helper still has in its registry.
    """

    layout: Layout
    paths: tuple[Path, ...]
    removes_group: bool
    accounts: tuple[str, ...]


def plan_setup(users: Sequence[str], layout: Layout | None = None) -> SetupPlan:
    """Read the sources and say what would be written. Changes nothing, needs no privilege.

    :param users: who may use the helper besides the members of the group; those who are allowed already
        stay allowed.
    :raises UsageError: no such user, or root.
    :raises StateError: a source can't be read.
    """
    layout = layout or Layout()
    files = []
    for piece in PIECES:
        source = source_directory() / piece.source
        try:
            data = read_piece(source)
        except OSError as error:
            raise StateError(
                "a piece of clsecure is missing",
                details=str(error),
                resolution="Install clsecure again, or run git checkout in its checkout.",
            ) from error
        files.append(_planned(str(source), layout.directory / piece.target, piece.mode, data))
    names = sorted({*_allowed_users(layout), *(_sudoers_name(user) for user in users)})
    text = sudoers_for(names, layout)
    files.append(_planned("(generated)", layout.sudoers, _SUDOERS_MODE, text.encode()))
    return SetupPlan(
        layout=layout,
        files=tuple(files),
        directories=(layout.directory, *(layout.directory / name for name in DIRECTORIES)),
        leftovers=tuple(strangers(layout.directory)),
        users=tuple(names),
        makes_group=layout.group is not None and not _group_exists(layout.group),
    )


def sudoers_for(names: Sequence[str], layout: Layout) -> str:
    """Return the drop-in for the group and the given users, of what this machine's sudo knows."""
    helper = layout.directory / "helper"
    who = [*((f"%{layout.group}",) if layout.group else ()), *names]
    return sudoers_text(who, helper, maker=_MAKER, settings=known_settings(helper))


def apply_setup(plan: SetupPlan) -> None:
    """Write what was planned, as root. Safe to repeat; the permission comes last.

    :raises BackendUnavailableError: sudo is missing.
    :raises StateError: a directory on the way could be changed by somebody else than root.
    :raises ToolError: visudo or groupadd refused.
    """
    layout = plan.layout
    sudoers = plan.files[-1]
    for parent in (layout.directory.parent, layout.sudoers.parent):
        require_trusted(parent, layout.trusted_root)
    check_sudoers(sudoers.data)
    if plan.makes_group and layout.group is not None:
        process.run(Command(argv=("groupadd", "--system", "--", layout.group))).check()
    for path in plan.leftovers:
        require_trusted(path.parent, layout.trusted_root)
        _take_away(path)
    for directory in plan.directories:
        directory.mkdir(mode=0o755, exist_ok=True)
        require_trusted(directory, layout.trusted_root)
        directory.chmod(0o755)
    for file in plan.files:
        if not (file.unchanged and os.path.lexists(file.target)):  # it was behind a link, perhaps
            _write(file)


def plan_removal(layout: Layout | None = None) -> RemovalPlan:
    """Say what would be taken away: what a package on this machine needs as well is not among it."""
    layout = layout or Layout()
    shared = any(os.path.lexists(helper) for helper in layout.others)
    accounts = () if shared else registered_accounts(layout)
    directories = (layout.directory, *(layout.directory / name for name in DIRECTORIES))
    candidates = [layout.sudoers, *strangers(layout.directory)]
    candidates += (layout.directory / piece.target for piece in PIECES)
    candidates += reversed(directories)
    if not accounts and not shared:
        # The counter in the registry stays: it is what keeps a uid from ever being given out twice.
        candidates += [layout.state / name for name in _STATE_DIRECTORIES]
    return RemovalPlan(
        layout=layout,
        paths=tuple(path for path in candidates if os.path.lexists(path)),
        removes_group=not shared and layout.group is not None and _group_is_empty(layout.group),
        accounts=accounts,
    )


def apply_removal(plan: RemovalPlan) -> None:
    """Take it away, the permission first. What somebody else put beside our files stays, and is said.

    :raises StateError: a path is not under root's control alone, or the directory holds foreign files.
    """
    layout = plan.layout
    for path in plan.paths:
        if not os.path.lexists(path):
            continue  # it was behind a link that is gone
        require_trusted(path.parent, layout.trusted_root)
        if path == layout.directory:
            try:
                path.rmdir()
            except OSError as error:
                raise StateError(
                    f"{path} holds files that clsecure did not put there", details=str(error)
                ) from error
        else:
            _take_away(path)
    if plan.removes_group and layout.group is not None:
        process.run(Command(argv=("groupdel", "--", layout.group))).check()


def _take_away(path: Path) -> None:
    # The directory around it is root's alone, and rmtree works with descriptors and follows no link.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def registered_accounts(layout: Layout) -> tuple[str, ...]:
    """Return the names in the helper's registry: one directory entry each, readable by root only.

    :raises StateError: it is there and can't be read.
    """
    registry = layout.state / "registry"
    try:
        entries = sorted(registry.iterdir())
    except FileNotFoundError:
        return ()
    except PermissionError:
        # A plain user only plans; root looks again before anything is taken away.
        return ()
    except OSError as error:
        raise StateError("the helper's registry can't be read", details=str(error)) from error
    return tuple(entry.name for entry in entries if not entry.name.startswith("."))


def require_trusted(path: Path, trusted_root: Path = Path("/")) -> None:
    """Refuse a directory that somebody else than root could change or exchange, at any level.

    :raises StateError: it names the first such directory and the command that mends it.
    """
    for form in dict.fromkeys((path, Path(os.path.realpath(path)))):
        directory = form
        while True:
            found = os.lstat(directory)
            if stat.S_ISLNK(found.st_mode):
                safe = found.st_uid == 0
            else:
                safe = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022
            if not safe:
                raise StateError(
                    f"{directory} is not under root's control alone",
                    details=f"Owner {found.st_uid}, mode {stat.filemode(found.st_mode)}: whoever can write "
                    "there could exchange the program that sudo runs as root.",
                    resolution=f"sudo chown root {directory} && sudo chmod go-w {directory}",
                )
            if directory in (trusted_root, directory.parent):
                break
            directory = directory.parent


def _is_right_directory(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and stat.S_IMODE(found.st_mode) == 0o755


def _planned(source: str, target: Path, mode: int, data: bytes) -> PlannedFile:
    try:
        found = os.lstat(target)
        unchanged = read_piece(target) == data and stat.S_IMODE(found.st_mode) == mode and found.st_uid == 0
    except OSError:
        unchanged = False
    return PlannedFile(source=source, target=target, mode=mode, data=data, unchanged=unchanged)


def _allowed_users(layout: Layout) -> set[str]:
    """Return who the present drop-in allows, those who exist still."""
    try:
        text = read_piece(layout.sudoers).decode("utf-8", "replace")
    except OSError:
        return set()
    return {match["who"] for match in _USER_LINE.finditer(text) if _exists(match["who"])}


def _exists(name: str) -> bool:
    try:
        if name.startswith("#"):
            pwd.getpwuid(int(name[1:]))
        else:
            pwd.getpwnam(name)
    except (KeyError, OverflowError):
        return False
    return True


def _sudoers_name(user: str) -> str:
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError) as error:
        raise UsageError("there is no such user", details=user) from error
    if entry.pw_uid == 0:
        raise UsageError(
            "clsecure is set up for a person's account, not for root",
            resolution="Name the account: clsecure setup --user NAME",
        )
    return user if _PLAIN_NAME.fullmatch(user) else f"#{entry.pw_uid}"


def _write(file: PlannedFile) -> None:
    # A dot in the name: sudo skips such files, so a half-written permission never counts.
    descriptor, name = tempfile.mkstemp(prefix=".clsecure.", dir=file.target.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(file.data)
            out.flush()
            os.fchmod(descriptor, file.mode)
            os.fchown(descriptor, 0, 0)
            os.fsync(descriptor)
        Path(name).rename(file.target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    parent = os.open(file.target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _group_is_empty(name: str) -> bool:
    try:
        return not grp.getgrnam(name).gr_mem
    except KeyError:
        return False


def describe_setup(plan: SetupPlan) -> list[str]:
    """Return the plan for people, one line each."""
    lines = [f"Files, root-owned, in {plan.layout.directory} and {plan.layout.sudoers.parent}:"]
    for file in plan.files:
        state = "as it is" if file.unchanged else "write"
        lines += [
            f"  {state:8} {file.target}  mode {file.mode:04o}",
            f"           from {file.source}",
            f"           sha256 {digest(file.data)}",
        ]
    lines += [f"  remove   {path}  of a former version" for path in plan.leftovers]
    if plan.makes_group:
        lines.append(f"Group: {plan.layout.group} (its members may use the helper)")
    lines.append(f"Contents of {plan.layout.sudoers}:")
    lines += [f"  {line}" for line in plan.files[-1].data.decode().splitlines()]
    return lines


def describe_removal(plan: RemovalPlan) -> list[str]:
    """Return the plan for people, one line each."""
    if not plan.paths and not plan.removes_group:
        return ["Nothing of clsecure setup is on this machine."]
    lines = ["Take away:", *(f"  {path}" for path in plan.paths)]
    if plan.removes_group:
        lines.append(f"  group {plan.layout.group}")
    lines.append("Worker accounts are not among it: clsecure cleanup --all removes them, before this.")
    return lines

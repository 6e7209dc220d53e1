"""What clsecure remembers of sessions, in the user's own state directory.

One directory per project and session name::

    sessions/<project>-<hash>/
        lock            held (flock) by the process that works on the session
        session.json    the last known state, replaced whole
        start.json      what was cloned in
        run.json        what the record of the run that goes on, or was killed, is made from
        setup.log       what the setup script and package managers said
        setup-egress.jsonl  their requests, where they had a network of their own
        cleanup.log     what the cleanup hook said at the last end
        base/           the tool's own copy of it, one bare repository per unit
        export/         the quarantine of an import that is going on
        events.jsonl    the log, one line per event
        egress.jsonl    one line per request to the gateway
        egress.sock     where the running gateway takes the user's orders

The worker can't reach any of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from clsecure.errors import SessionBusyError, SessionNotFoundError, StateError
from clsecure.verify.userstate import UserState

DEFAULT_SESSION = "default"
_RECORD_LIMIT = 1 << 20
_MOST_FAILED = 100


class SessionStatus(StrEnum):
    """Where a session stands.

    ``PREPARING``: nothing of the agent exists yet. ``RUNNING``: it may have worked; without a holder of
    the lock it was interrupted, and the work waits. ``KEPT``: ended, the work waits. ``DONE``: nothing waits.
    """

    PREPARING = "preparing"
    RUNNING = "running"
    KEPT = "kept"
    IMPORTED = "imported"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """The last known state of a session.

    :param created: start of the workspace, seconds since the epoch.
    :param unimported: the workspace holds work that is in no branch of the user's; None when unknown.
    :param size: bytes of the worker's home at the last end; None when unknown.
    :param workspace: directory inside, None before there is one.
    :param installed: dependencies were installed for it.
    :param venv: among them, in a virtual environment.
    :param cleanup_hook: the repository had a cleanup hook when the workspace was made.
    :param cleanup_hook_timeout: seconds.
    :param docker_access: what of an engine the last run's agent could use: ``none``, ``own`` or ``host``.
    :param engine: what ran its container, in container mode, and with which OCI runtime if one was chosen.
    :param image: name of the image; ``image_id`` is the image.
    :param skip_docker_autodetect: compose files don't stand in for a cleanup hook.
    :param verified: every check of the isolation was made to the end of the last run, and none failed.
    :param failed_checks: what failed since the workspace was made, in any run, a line each: what was expected
        and what was observed; may need escaping. The work comes home only where the user insists.
    :param user_state: the user's home and repository before the last run; None when that was not noted.
    """

    session_id: str
    project: str
    session: str
    mode: str
    network: str
    agent: str
    worker_user: str
    status: SessionStatus
    created: float
    updated: float
    base_commit: str | None = None
    base_tree: str | None = None
    workspace: str | None = None
    exit_code: int | None = None
    unimported: bool | None = None
    size: int | None = None
    branch: str | None = None
    installed: bool = False
    venv: bool = False
    cleanup_hook: bool = False
    cleanup_hook_timeout: int = 30
    docker_access: str = "none"
    engine: str | None = None
    runtime: str | None = None
    image: str | None = None
    image_id: str | None = None
    skip_docker_autodetect: bool = False
    verified: bool = False
    failed_checks: tuple[str, ...] = ()
    user_state: UserState | None = None

    @property
    def resumable(self) -> bool:
        """A workspace is there that the agent may have worked in."""
        return self.workspace is not None and self.status in (
            SessionStatus.RUNNING,
            SessionStatus.KEPT,
            SessionStatus.IMPORTED,
        )

    @property
    def holds_work(self) -> bool:
        """Work would be lost with the workspace, or might be."""
        return self.status in (SessionStatus.RUNNING, SessionStatus.KEPT) and self.unimported is not False


def state_directory() -> Path:
    """Return the user's state directory for clsecure (XDG base directory specification)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "clsecure"


def session_key(project: str, session: str) -> str:
    """Return the directory name of a session: readable, and one per full path and exact name."""
    slug = re.sub(r"[^a-z0-9]+", "-", Path(project).name.lower()).strip("-")[:24] or "project"
    digest = hashlib.sha256(f"{project}\0{session}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{slug}-{digest[:12]}"


class Store:
    """All sessions of this user."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or state_directory()

    def session(self, project: str, session: str) -> SessionDirectory:
        """Return the place of one session; it need not exist yet."""
        return SessionDirectory(self.root / "sessions" / session_key(project, session))

    def all(self) -> Iterator[SessionDirectory]:
        """Go through the sessions that were ever begun."""
        with suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self.root / "sessions"), key=lambda e: e.name):
                if entry.is_dir(follow_symlinks=False):
                    yield SessionDirectory(Path(entry.path))

    def own(self, project: str, session: str) -> tuple[SessionDirectory, SessionRecord]:
        """Return the session of a project by its name there.

        :raises SessionNotFoundError: there is none.
        """
        place = self.session(project, session)
        record = place.read()
        if record is None:
            raise SessionNotFoundError(
                f"this project has no session {session!r}", resolution="See all of them with: clsecure list"
            )
        return place, record

    def find(self, name: str, *, project: str | None = None) -> tuple[SessionDirectory, SessionRecord]:
        """Find a session by what people call it: directory name, worker, id, or its name in this project.

        :raises SessionNotFoundError: none, or more than one.
        """
        found = []
        for place in self.all():
            record = place.read()
            if record is None:
                continue
            if name in (place.path.name, record.worker_user, record.session_id):
                return place, record
            if record.session == name or Path(record.project).name == name:
                found.append((place, record))
        here = [f for f in found if f[1].project == project and f[1].session == name]
        if len(here) == 1 or len(found) == 1:
            return (here or found)[0]
        names = ", ".join(place.path.name for place, _ in found)
        raise SessionNotFoundError(
            f"there is no session {name!r}" if not found else f"{name!r} could be any of: {names}",
            resolution="See all of them with: clsecure list",
        )


class SessionDirectory:
    """The place of one session."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def start_file(self) -> Path:
        """What was cloned in."""
        return self.path / "start.json"

    @property
    def base(self) -> Path:
        """The tool-owned repositories of what was cloned in."""
        return self.path / "base"

    @property
    def export(self) -> Path:
        """The quarantine."""
        return self.path / "export"

    @property
    def events(self) -> Path:
        """The log of events."""
        return self.path / "events.jsonl"

    @property
    def run_file(self) -> Path:
        """What the record of a run that did not come to its end is made from."""
        return self.path / "run.json"

    @property
    def egress_log(self) -> Path:
        """The log of requests to the gateway."""
        return self.path / "egress.jsonl"

    @property
    def egress_control(self) -> Path:
        """The socket of the running gateway."""
        return self.path / "egress.sock"

    def make(self) -> None:
        """Make the directory, for the user alone."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = self.path.lstat()
        except OSError as error:
            raise StateError(f"{self.path} can't be made", details=str(error)) from error
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise StateError(f"{self.path} is not a directory of yours")
        self.path.chmod(0o700)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the session; one process at a time.

        :raises SessionBusyError: somebody else holds it.
        """
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SessionBusyError(
                    "this session is running already",
                    resolution="Start another environment of the same project with: clsecure --session NAME",
                ) from error
            # Whoever removed the session's directory held the lock of it; this one is nobody's any more.
            if os.fstat(fd).st_nlink == 0:
                raise SessionBusyError("this session is just being removed", resolution="Try again")
            yield
        finally:
            os.close(fd)

    def busy(self) -> bool:
        """Tell whether a process works on the session now."""
        if not self.path.is_dir():
            return False
        try:
            with self.locked():
                return False
        except SessionBusyError:
            return True

    def read(self) -> SessionRecord | None:
        """Return the last known state, None when there is none or it can't be read."""
        try:
            fd = os.open(
                self.path / "session.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
            with os.fdopen(fd, "rb") as file:
                loaded = json.loads(file.read(_RECORD_LIMIT))
            known = {f.name for f in fields(SessionRecord)}
            values = {k: v for k, v in loaded.items() if k in known}
            failed = tuple(str(line) for line in values.get("failed_checks", ()))
            with suppress(ValueError):
                values["user_state"] = UserState.parse(values.pop("user_state", None))
            record = SessionRecord(
                **{**values, "status": SessionStatus(loaded["status"]), "failed_checks": failed}
            )
            # A workspace lies in the home of its worker, and nowhere else.
            inside = record.workspace is None or Path(record.workspace).parent.name == record.worker_user
            return record if inside else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write(self, record: SessionRecord, **changes: object) -> SessionRecord:
        """Replace the state, whole or not at all; return it."""
        record = replace(record, **changes) if changes else record  # type: ignore[arg-type]
        if len(record.failed_checks) > _MOST_FAILED:
            record = replace(record, failed_checks=(*record.failed_checks[: _MOST_FAILED - 1], "and more"))
        temporary = self.path / "session.json.new"
        try:
            fd = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(fd)
            temporary.rename(self.path / "session.json")
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StateError("the session's state can't be written", details=str(error)) from error
        return record

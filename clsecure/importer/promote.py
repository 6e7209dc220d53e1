"""From quarantine into the user's repository: objects first, unseen; then one reference, from one id.

No git process writes objects there. The pack is made complete in quarantine and copied in under a temporary
name that git's own gc removes, so whatever ends this process leaves nothing but that. The only writer is
``git update-ref``, which creates and never changes; a lock that it may leave behind is cleared by
:func:`recover`, which knows from the journal which one was ours.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clsecure.errors import ImportRejectedError, RepositoryError, ToolError, UsageError
from clsecure.git import Git
from clsecure.importer.bounded import Bounds, Child, output
from clsecure.importer.values import Admitted, AdmittedUnit
from clsecure.terminal import escape

JOURNAL = "promote.json"
_TEMPORARY = "tmp_clsecure_"  # git prune removes what begins with "tmp_"
_REFLOG = "clsecure: import"
_BLOCK = 1 << 20
_LOCK_PATIENCE_S = 2.0
_MAX_ALTERNATIVES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where one unit goes."""

    unit: AdmittedUnit
    git: Git
    common: Path
    branch: str

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """The branch that was made.

    :param tips: path of each changed unit → the commit that the branch names there.
    """

    branch: str
    tips: dict[bytes, str]


def promote_units(admitted: Admitted, branch: str, *, numbered: bool) -> Promoted:
    """Create the branch in every changed unit, inner ones first and the top last.

    :param numbered: the name is a default: take the next free one instead of refusing.
    :raises UsageError: the name is no branch name, or taken.
    :raises RepositoryError: the repository has lost what the session started from.
    :raises ToolError: the disk is full, or git failed; no branch is left behind then.
    """
    # The top is always among them: its branch is what tells that the import succeeded.
    changed = [unit for unit in admitted.units if unit.changed or unit is admitted.top]
    before = recover(admitted.directory)
    if before is not None and (numbered or before == branch):
        tips = _made_before(_read_journal(admitted.directory / JOURNAL), changed)
        if tips is not None:
            return Promoted(branch=before, tips=tips)
    repositories = [(unit, *_repository(unit)) for unit in changed]
    branch = _free_name([git for _, git, _ in repositories], branch, numbered=numbered)
    targets = [
        _Target(unit=unit, git=git, common=common, branch=branch) for unit, git, common in repositories
    ]
    try:
        for target in targets:
            # An import that was killed while it copied has no journal yet.
            _remove_stale_files(target.common / "objects" / "pack")
            _bring_objects(target, admitted)
            _bring_lfs(target, admitted)
            _still_complete(target)
    except OSError as error:
        raise ToolError(
            "the agent's work could not be written into the repository",
            details=f"{error.strerror}: {escape(str(error.filename or ''))}",
            resolution="Make room, then import again; the work is kept",
        ) from error
    _create_all(targets, admitted.directory)
    return Promoted(branch=branch, tips={unit.start.path: unit.final for unit in changed})


def check_branch_name(branch: str) -> None:
    """Refuse what is no name of a branch, or could be taken for an option.

    :raises UsageError: with the rule that it breaks.
    """
    if not branch or len(branch) > 200 or branch.startswith("-") or branch in ("HEAD", "@") or "@{" in branch:
        raise UsageError(f"{escape(branch)[:100]!s} can't be the name of a branch")
    plain = Git(git_dir=Path("/"))
    if escape(branch) != branch or plain.run("check-ref-format", f"refs/heads/{branch}").returncode != 0:
        raise UsageError(
            f"{escape(branch)[:100]} can't be the name of a branch",
            resolution="See git help check-ref-format for what a name may hold",
        )


def recover(directory: Path) -> str | None:
    """Clear up after an import that was killed, by the journal in its directory.

    The branch of the top repository is the last step of an import. Once it is there the import had succeeded,
    and everything stays; without it the branches of submodules are taken back, if they still name what they
    were made for. Locks of references are removed when they are ours: named in the journal, and not released
    by any living git within two seconds. Harmless at any time, also where there is no journal.

    :returns: the name of the branch when the killed import had succeeded, and nothing has to be done again.
    """
    file = directory / JOURNAL
    steps = _read_journal(file)
    if not steps:
        return None
    for step in steps:
        with suppress(OSError):
            _remove_stale_lock(step.common / f"{step.ref}.lock")
        with suppress(OSError):
            _remove_stale_files(step.common / "objects" / "pack")
    if steps[-1].made:
        return steps[-1].ref.removeprefix("refs/heads/")
    for step in steps:
        if step.made:
            _users(step.git_dir).run("update-ref", "-d", step.ref, step.tip)
        with suppress(OSError):
            _remove_empty_directories(step.common, step.ref)
    file.unlink(missing_ok=True)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One branch that an import makes; the last one is the top repository's."""

    git_dir: Path
    common: Path
    ref: str
    tip: str

    @property
    def made(self) -> bool:
        """Whether the branch is there and names what it was made for."""
        return self.git_dir.is_dir() and _value(self.git_dir, self.ref) == self.tip


def _read_journal(file: Path) -> list[_Step]:
    try:
        steps = json.loads(file.read_bytes())["steps"]
    except (FileNotFoundError, ValueError):  # it is written atomically: what is damaged is not ours
        return []
    return [
        _Step(git_dir=Path(s["git_dir"]), common=Path(s["common"]), ref=s["ref"], tip=s["tip"]) for s in steps
    ]


def _value(git_dir: Path, ref: str) -> str | None:
    found = _users(git_dir).run("rev-parse", "--verify", "--quiet", ref)
    return found.stdout.decode("ascii").strip() if found.returncode == 0 else None


def _users(git_dir: Path) -> Git:
    """The user's repository: their configuration applies, their hooks don't run."""
    return Git(git_dir=git_dir, user_config=True)


def _repository(unit: AdmittedUnit) -> tuple[Git, Path]:
    git = _users(unit.start.source_git_dir)
    if not unit.start.source_git_dir.is_dir():
        raise RepositoryError(
            f"the repository {escape(str(unit.start.source))} is not there any more",
            resolution="Put it back, then import again; the work is kept",
        )
    common = Path(git.text("rev-parse", "--git-common-dir"))
    return git, common if common.is_absolute() else unit.start.source_git_dir / common


def _free_name(repositories: list[Git], branch: str, *, numbered: bool) -> str:
    check_branch_name(branch)
    obstacle = _obstacle(repositories, branch)
    if obstacle is None:
        return branch
    if not numbered:
        raise UsageError(
            f"the branch {branch} can't be made: {escape(obstacle)} is there already",
            resolution="Choose another name with --branch",
        )
    # Where a branch "claude" is in the way of "claude/x", no number helps, but another separator does.
    for stem in (branch, branch.replace("/", "-")):
        for number in range(1, _MAX_ALTERNATIVES):
            name = stem if number == 1 else f"{stem}-{number}"
            if _obstacle(repositories, name) is None:
                return name
            if _blocked_above(repositories, stem):
                break
    raise UsageError(f"no free name like {branch} was found", resolution="Choose a name with --branch")


def _obstacle(repositories: list[Git], branch: str) -> str | None:
    for git in repositories:
        below = git.text("for-each-ref", "--count=1", "--format=%(refname:short)", f"refs/heads/{branch}")
        if below:
            return below
    return _blocked_above(repositories, branch)


def _blocked_above(repositories: list[Git], branch: str) -> str | None:
    parts = branch.split("/")
    for git in repositories:
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            if git.run("show-ref", "--verify", "--quiet", f"refs/heads/{above}").returncode == 0:
                return above
    return None


def _bring_objects(target: _Target, admitted: Admitted) -> None:
    """Put what the branch needs, and nothing else that arrived, into the user's object store."""
    unit = target.unit
    without = [unit.start.head]
    if not target.git.has(f"{unit.start.head}^{{commit}}"):
        if (unit.start.base / "shallow").exists():
            raise RepositoryError(
                "the commit that the session started from is not in the repository any more",
                details=unit.start.head,
                resolution="Fetch it again, then import; the work is kept",
            )
        without = []
    bounds = Bounds.within(admitted.limits.judge_s)
    place = admitted.directory / "outgoing"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    with tempfile.TemporaryFile() as wanted:
        wanted.write("\n".join([unit.final, *(f"^{name}" for name in without), ""]).encode("ascii"))
        wanted.seek(0)
        name = output(
            unit.git, "pack-objects", "--revs", "--quiet", "--delta-base-offset", "--non-empty",
            str(place / "pack"),
            bounds=bounds, stdin=wanted,
        ).decode("ascii").strip()  # fmt: skip
    if not name:
        return
    store = target.common / "objects" / "pack"
    store.mkdir(exist_ok=True)
    for suffix in ("pack", "idx"):  # git believes in a pack once it sees the index
        copy_in(place / f"pack-{name}.{suffix}", store / f"pack-{name}.{suffix}")
    shutil.rmtree(place, ignore_errors=True)


def _bring_lfs(target: _Target, admitted: Admitted) -> None:
    """Put the LFS objects into the user's local store; their sha256 was checked when they arrived."""
    if not target.unit.lfs:
        return
    setting = target.git.run("config", "--type=path", "--get", "lfs.storage").stdout.decode().strip()
    store = (target.common / setting if setting else target.common / "lfs") / "objects"
    for oid in target.unit.lfs:
        place = store / oid[:2] / oid[2:4] / oid
        place.parent.mkdir(parents=True, exist_ok=True)
        copy_in(admitted.directory / "lfs" / oid, place)


def copy_in(source: Path, target: Path) -> None:
    """Copy by a temporary file and a link: never half, never over something that is there."""
    if target.exists():
        return
    descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
    temporary = Path(name)
    try:
        with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)  # alive: recover() leaves it alone
            shutil.copyfileobj(reader, writer, _BLOCK)
            writer.flush()
            # Whoever may look into the directory may read the objects, as core.sharedRepository wants it.
            os.fchmod(writer.fileno(), 0o400 | (target.parent.stat().st_mode & 0o044))
            os.fsync(writer.fileno())
            with suppress(FileExistsError):
                os.link(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _still_complete(target: _Target) -> None:
    """What the branch reaches is in the user's repository, which may have changed since the session began."""
    bounds = Bounds.within(600)
    with Child(
        target.git, "rev-list", "--objects", "--quiet", target.unit.final, "--not", "--all", "--",
        bounds=bounds,
    ) as child:  # fmt: skip
        try:
            for _ in child.chunks(_BLOCK):
                pass
        except ImportRejectedError as error:
            raise RepositoryError(
                "the repository lacks objects that the agent's work builds on",
                details=error.details,
                resolution="Run git fsck in it; the work is kept",
            ) from error


def _create_all(targets: list[_Target], directory: Path) -> None:
    inner_first = list(reversed(targets))
    with _journal(inner_first, directory):
        made: list[_Target] = []
        try:
            for target in inner_first:
                _create(target)
                made.append(target)
        except BaseException:
            for target in reversed(made):
                target.git.run("update-ref", "-d", target.ref, target.unit.final)
            raise


def _create(target: _Target) -> None:
    done = target.git.run(
        "-c", "core.logAllRefUpdates=false", "update-ref", "-m", _REFLOG, "--stdin", "-z",
        input=f"create {target.ref}\0{target.unit.final}\0".encode(),
    )  # fmt: skip
    if done.returncode != 0:
        words = escape(done.stderr[-2000:], keep_newlines=True).strip()
        raise ToolError(
            f"git could not create the branch {target.branch}",
            details=words,
            resolution="The work is kept; import again, with another --branch if that name is in use",
        )


def _made_before(steps: list[_Step], changed: list[AdmittedUnit]) -> dict[bytes, str] | None:
    """What a killed import made, when it made all of this very work: it need not be made twice.

    The commit for uncommitted work has another date, and so another id, each time that it is exported.
    """
    inner_first = list(reversed(changed))
    if [step.git_dir for step in steps] != [unit.start.source_git_dir for unit in inner_first]:
        return None
    for step, unit in zip(steps, inner_first, strict=True):
        wanted = unit.git.run("show", "--no-patch", "--format=%T %P", unit.final, "--")
        made = _users(step.git_dir).run("show", "--no-patch", "--format=%T %P", step.tip, "--")
        if not step.made or wanted.returncode != 0 or wanted.stdout != made.stdout:
            return None
    return {unit.start.path: step.tip for step, unit in zip(steps, inner_first, strict=True)}


@contextmanager
def _journal(targets: list[_Target], directory: Path) -> Iterator[None]:
    """Say what is going to be made, on the disk before it is made; forgotten where it is undone.

    Once it is made the word stays for as long as the directory does: whoever is killed before the import is
    written down finds the branch again instead of making a second one.
    """
    steps = [
        {
            "git_dir": str(t.unit.start.source_git_dir),
            "common": str(t.common),
            "ref": t.ref,
            "tip": t.unit.final,
        }
        for t in targets
    ]
    descriptor, name = tempfile.mkstemp(prefix=JOURNAL, dir=directory)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"steps": steps}, file)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(directory / JOURNAL)
    yield


def _remove_stale_lock(lock: Path) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while lock.exists():
        # An orphaned update-ref ends within milliseconds; what stays that long belongs to nobody.
        if time.monotonic() > deadline:
            info = lock.lstat()
            content = lock.read_bytes()[:100] if stat.S_ISREG(info.st_mode) else b"?"
            if re.fullmatch(rb"(?:[0-9a-f]{40,64}\n?)?", content):
                lock.unlink(missing_ok=True)
            return
        time.sleep(0.05)


def _remove_stale_files(directory: Path) -> None:
    for path in directory.glob(f"{_TEMPORARY}*"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def _remove_empty_directories(common: Path, ref: str) -> None:
    """Take away what git made for ``refs/heads/claude/`` when no branch came to be there."""
    place = (common / ref).parent
    while place != common / "refs" / "heads" and place.is_relative_to(common / "refs" / "heads"):
        place.rmdir()
        place = place.parent

"""A user's repository, what clone-in would have made of it, and an agent's workspace, all made by hand."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.importer import api
from clsecure.importer.frames import ExportLimits
from clsecure.importer.values import Admitted, Review
from clsecure.model import ImportResult, StartState, StartUnit
from tests.support.pieces import installed

EXPORT = installed() / "export.py"
AGENT = ("Agent", "agent@example.org")
ENV = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": AGENT[0], "GIT_AUTHOR_EMAIL": AGENT[1],
    "GIT_COMMITTER_NAME": AGENT[0], "GIT_COMMITTER_EMAIL": AGENT[1],
}  # fmt: skip


def git(where: Path, *args: str | bytes, data: bytes | None = None, env: dict[str, str] | None = None) -> str:
    """Run git for the test; its output, stripped."""
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *args],
        cwd=where, env={**ENV, **(env or {})}, input=data, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (args, done.stderr)
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def make_repo(path: Path, files: dict[str, bytes] | None = None) -> Path:
    """Make a repository with one commit."""
    path.mkdir(parents=True)
    git(path, "init", "-q")
    for name, content in (
        files or {"a.txt": b"one\n", "dir/b.txt": b"two\n", "run.sh": b"#!/bin/sh\n"}
    ).items():
        write(path / name, content)
    if (path / "run.sh").exists():
        (path / "run.sh").chmod(0o755)
    git(path, "add", "-A")
    git(path, "commit", "-qm", "start")
    return path


def write(path: Path, content: bytes) -> None:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def start_unit(
    repo: Path, base: Path, path: bytes = b"", name: str = "", depth: int | None = None
) -> StartUnit:
    """Make the base repository of a work tree, as clone-in does."""
    head = git(repo, "rev-parse", "HEAD")
    kind = git(repo, "rev-parse", "--show-object-format")
    git(repo.parent, "init", "-q", "--bare", "--template=", f"--object-format={kind}", str(base))
    more = [f"--depth={depth}"] if depth else []
    git(base, "fetch", "-q", *more, f"file://{repo}", "HEAD")
    (base / "FETCH_HEAD").unlink()
    environment = {
        "GIT_DIR": str(base),
        "GIT_WORK_TREE": str(repo),
        "GIT_INDEX_FILE": str(base / "index-tmp"),
    }
    git(repo, "read-tree", head, env=environment)
    git(repo, "-c", "core.bare=false", "add", "-A", env=environment)
    tree = git(repo, "write-tree", env=environment)
    (base / "index-tmp").unlink()
    git_dir = repo / git(repo, "rev-parse", "--git-dir")
    return StartUnit(
        path=path, name=name, source=repo, source_git_dir=git_dir, base=base, head=head,
        branch=git(repo, "branch", "--show-current") or None, base_tree=tree, index_tree=tree,
    )  # fmt: skip


def materialise(unit: StartUnit, workspace: Path) -> None:
    """Make the agent's repository of a unit: HEAD on a branch, the files as in the user's work tree."""
    workspace.mkdir(parents=True, exist_ok=True)
    kind = git(unit.base, "rev-parse", "--show-object-format")
    git(workspace, "init", "-q", "--template=", f"--object-format={kind}")
    git(workspace, "fetch", "-q", *(["--update-shallow"]), f"file://{unit.base}", unit.head)
    (workspace / ".git" / "FETCH_HEAD").unlink()
    git(workspace, "update-ref", "refs/heads/" + (unit.branch or "main"), unit.head)
    git(workspace, "symbolic-ref", "HEAD", "refs/heads/" + (unit.branch or "main"))
    pack = git(unit.base, "rev-list", "--objects", unit.base_tree)
    listed = "\n".join(line.split(" ")[0] for line in pack.splitlines()).encode() + b"\n"
    temporary = unit.base / "tmp-objects"
    with temporary.open("wb") as file:
        packing = ["git", "pack-objects", "--stdout", "-q"]
        subprocess.run(packing, cwd=unit.base, env=ENV, input=listed, stdout=file, check=True)
    git(workspace, "unpack-objects", "-q", data=temporary.read_bytes())
    temporary.unlink()
    git(workspace, "read-tree", unit.base_tree)
    git(workspace, "checkout-index", "-a", "-f")
    git(workspace, "reset", "-q")


@dataclass(slots=True)
class Session:
    """One session: make the user's repository, let ``workspace`` be changed, bring it home."""

    root: Path
    repo: Path
    start: StartState
    workspace: Path
    started: float = field(default_factory=time.time)

    @classmethod
    def of(
        cls, root: Path, repo: Path, *, depth: int | None = None, submodules: tuple[str, ...] = ()
    ) -> Session:
        """Clone in."""
        units = (
            [start_unit(repo, root / "base" / "top.git", depth=depth)] if not (root / "base").mkdir() else []
        )
        for number, path in enumerate(submodules):
            units.append(start_unit(repo / path, root / "base" / f"{number}.git", os.fsencode(path), path))
        workspace = root / "workspace"
        for unit in units:
            materialise(unit, workspace / os.fsdecode(unit.path) if unit.path else workspace)
        return cls(root=root, repo=repo, start=StartState(units=tuple(units)), workspace=workspace)

    def export(self, *, timeout: float = 60, env: dict[str, str] | None = None) -> tuple[int, bytes, bytes]:
        """Run export.py as it runs in the sandbox; status, stream, stderr."""
        temp = self.root / "export-tmp"
        temp.mkdir(exist_ok=True)
        request = api.export_request(
            self.start, self.workspace, message="Uncommitted work",
            author_name=AGENT[0], author_email=AGENT[1],
            temp=temp,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(EXPORT)],
            env=env or {"PATH": "/usr/bin:/bin"}, cwd="/", input=request, capture_output=True,
            timeout=timeout,
            check=False,
        )  # fmt: skip
        assert list(temp.iterdir()) == []
        return done.returncode, done.stdout, done.stderr

    def admit(self, stream: bytes | None = None, limits: ExportLimits | None = None) -> Admitted:
        """Bring the stream into quarantine."""
        if stream is None:
            status, stream, stderr = self.export()
            assert status == 0, stderr
        return api.admit(
            io.BytesIO(stream), self.start, self.root / "quarantine", limits=limits or ExportLimits()
        )

    def review(self, admitted: Admitted) -> Review:
        """Look at it."""
        return api.review(admitted, author_name=AGENT[0], author_email=AGENT[1], started=self.started)

    def bring_home(self, branch: str = "claude/work", stream: bytes | None = None) -> ImportResult | None:
        """All of it."""
        admitted = self.admit(stream)
        return api.promote(admitted, self.review(admitted), branch)


def work_tree_files(top: Path) -> dict[bytes, tuple[int, bytes]]:
    """path → (mode as git has it, content) of the files of a work tree, found without git."""
    found = {}
    for place, directories, files in os.walk(top):
        if ".git" in directories:
            directories.remove(".git")
        for path in (Path(place) / name for name in [*files, *directories]):
            relative = os.fsencode(path.relative_to(top))
            if path.is_symlink():
                found[relative] = (0o120000, os.fsencode(path.readlink()))
            elif not path.is_dir():
                mode = 0o100755 if path.stat().st_mode & 0o100 else 0o100644
                found[relative] = (mode, path.read_bytes())
    return found


def tree_files(repo: Path, tree: str) -> dict[bytes, tuple[int, bytes]]:
    """The same of a tree in a repository."""
    listing = subprocess.run(
        ["git", "ls-tree", "-r", "-z", tree], cwd=repo, env=ENV, capture_output=True, check=True
    )
    found = {}
    for item in listing.stdout.split(b"\0")[:-1]:
        meta, path = item.split(b"\t", 1)
        mode, kind, name = meta.decode().split(" ")
        if kind == "blob":
            blob = subprocess.run(
                ["git", "cat-file", "blob", name], cwd=repo, env=ENV, capture_output=True, check=True
            )
            found[path] = (int(mode, 8), blob.stdout)
    return found

"""A plain Unix account for tests, as a user of clsecure would have it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import sweep

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a finished program left. ``returncode`` is negative for a signal, as in subprocess."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "backslashreplace")

    @property
    def errors(self) -> str:
        """Standard error as text."""
        return self.stderr.decode("utf-8", "backslashreplace")

    def json(self) -> Any:  # a document of any shape
        """Return the one JSON document on standard output."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise AssertionError(f"no JSON document: {self}") from error

    def check(self) -> Outcome:
        """Return itself, or fail the test with all that was said."""
        assert self.returncode == 0, (
            f"{self.argv} ended with {self.returncode}\n--- stdout\n{self.text}\n--- stderr\n{self.errors}"
        )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """An account with a home (0755, like most) and a git identity; belongs to the group clsecure."""

    name: str
    uid: int
    gid: int
    home: Path
    groups: tuple[int, ...]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a fresh login, without anything of the test run's own."""
        return {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": "/bin/sh",
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            # Where the mirror has no locked package any more, the tests lock their images afresh.
            **{key: os.environ[key] for key in ("CLSECURE_IMAGES",) if key in os.environ},
            **(extra or {}),
        }

    def spawn(
        self,
        argv: list[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,  # what Popen takes
    ) -> subprocess.Popen[bytes]:
        """Start a program as the person, in a session of its own (no controlling terminal)."""
        return subprocess.Popen(
            argv,
            cwd=cwd or self.home,
            env=self.environment(env),
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            umask=0o022,
            start_new_session=True,
            **options,
        )

    def run(
        self,
        argv: list[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,  # noqa: A002  # subprocess's own name for it
        timeout: float = 120,
    ) -> Outcome:
        """Run a program to its end; after ``timeout`` seconds its session is killed and the test fails."""
        process = self.spawn(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # What left the session may hold the pipes open for ever: don't wait for their end.
            stdout, stderr = b"", b""
            with contextlib.suppress(subprocess.TimeoutExpired):
                stdout, stderr = process.communicate(timeout=5)
            raise AssertionError(
                f"{argv} did not end within {timeout} s\n--- stdout\n{stdout!r}\n--- stderr\n{stderr!r}"
            ) from None
        return Outcome(argv=tuple(argv), returncode=process.returncode, stdout=stdout, stderr=stderr)

    def clsecure_argv(self, *args: str) -> list[str]:
        """Return the argument vector of this checkout's clsecure, as ``./dev clsecure`` starts it."""
        return [*clsecure_command(), *args]

    def clsecure(
        self,
        *args: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,  # noqa: A002
        timeout: float = 120,
    ) -> Outcome:
        """Run this checkout's clsecure as the person."""
        return self.run(self.clsecure_argv(*args), cwd=cwd, env=env, input=input, timeout=timeout)

    def git(self, repository: Path, *args: str) -> str:
        """Run git in a repository of the person's; return its output without the last line end."""
        return self.run(["git", *args], cwd=repository).check().text.rstrip("\n")

    def repository(self, name: str = "sample") -> Path:
        """Make a sample repository in the person's home: one commit on main, three files."""
        path = self.home / name
        self.run(["mkdir", "-p", str(path / "src")]).check()
        self.write(path / "README.md", b"# Sample\n")
        self.write(path / "src" / "main.py", b'print("hello")\n')
        self.write(path / "src" / "run.sh", b"#!/bin/sh\nexec python3 src/main.py\n", mode=0o755)
        self.git(path, "init", "--quiet")
        self.git(path, "add", ".")
        self.git(path, "commit", "--quiet", "-m", "A beginning")
        return path

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file as the person (never as root through a link that a test planted)."""
        script = 'import sys, os; f = open(sys.argv[1], "wb"); f.write(sys.stdin.buffer.read()); os.chmod(sys.argv[1], int(sys.argv[2]))'  # noqa: E501
        self.run(["/usr/bin/python3", "-I", "-c", script, str(path), str(mode)], input=data).check()

    def worker_accounts(self) -> list[dict[str, object]]:
        """Return the helper's registry entries that belong to the person (read as root)."""
        return sweep.registry_entries(self.uid)


def clsecure_command() -> list[str]:
    """Return how this checkout's clsecure is started: isolated, found through the environment's .pth file."""
    return [sys.executable, "-I", "-m", "clsecure"]


def make_person(name: str, groups: tuple[int, ...]) -> Person:
    """Make the account. A leftover of the same name (a killed run) is removed first."""
    sweep.remove_person(name)
    subprocess.run(
        ["useradd", "--create-home", "--shell", "/bin/sh", "--", name],
        check=True,
        timeout=60,
        capture_output=True,
    )
    entry = pwd.getpwnam(name)
    # Of an account that had the same number, and was not removed by these tests.
    shutil.rmtree(sweep.IMAGES / str(entry.pw_uid), ignore_errors=True)
    home = Path(entry.pw_dir)
    home.chmod(0o755)
    person = Person(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=home, groups=groups)
    config = b"[user]\n\tname = Test Person\n\temail = person@localhost\n[init]\n\tdefaultBranch = main\n"
    person.write(home / ".gitconfig", config)
    return person

"""The only caller of git, always as the user, never on a repository that the agent could write to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from clsecure import process
from clsecure.errors import ToolError
from clsecure.process import Command, CommandResult

_CONFIG = (
    # No hook, monitor, pager, editor, helper or background job of anybody's runs on our behalf.
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.quotePath=true",
    "maintenance.auto=false",
    "gc.auto=0",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
    "advice.detachedHead=false",
    "color.ui=false",
    "log.showSignature=false",
    "core.attributesFile=/dev/null",
    "credential.helper=",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Git:
    """git on one repository, named outright: no discovery, no inherited GIT_* variable.

    :param git_dir: the repository.
    :param work_tree: its work tree, for the commands that read one.
    :param user_config: read the user's own configuration too (their repository, their excludes). Off for
        repositories of the tool's own.
    :param extra_env: GIT_INDEX_FILE, GIT_OBJECT_DIRECTORY and the like.
    """

    git_dir: Path
    work_tree: Path | None = None
    user_config: bool = False
    extra_env: Mapping[str, str] = field(default_factory=dict)

    def command(self, *args: str | bytes, input: bytes | None = None, timeout: float = 600.0) -> Command:  # noqa: A002
        """Return the command without running it."""
        argv: list[str | bytes] = ["git", "--no-pager", "--no-replace-objects", f"--git-dir={self.git_dir}"]
        if self.work_tree is not None:
            argv.append(f"--work-tree={self.work_tree}")
        for setting in _CONFIG:
            if self.user_config and setting.startswith("core.attributesFile="):
                continue
            argv += ["-c", setting]
        argv += args
        return Command(
            argv=tuple(argv),
            env=self.environment(),
            cwd=self.work_tree or self.git_dir,
            input=input,
            timeout=timeout,
        )

    def environment(self) -> dict[str, str]:
        """Return the whole environment of a git child."""
        env = {
            "PATH": process.SYSTEM_PATH,
            "LC_ALL": "C.UTF-8",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS": "/bin/false",
            "GIT_EDITOR": "/bin/false",
            "GIT_AUTHOR_NAME": "clsecure",
            "GIT_AUTHOR_EMAIL": "clsecure@localhost",
            "GIT_COMMITTER_NAME": "clsecure",
            "GIT_COMMITTER_EMAIL": "clsecure@localhost",
            "GIT_CONFIG_NOSYSTEM": "0" if self.user_config else "1",
        }
        if self.user_config:
            for key in ("HOME", "XDG_CONFIG_HOME"):
                if key in os.environ:
                    env[key] = os.environ[key]
        else:
            env["HOME"] = "/nonexistent"
            env["GIT_CONFIG_GLOBAL"] = "/dev/null"
        env.update(self.extra_env)
        return env

    def run(self, *args: str | bytes, input: bytes | None = None, timeout: float = 600.0) -> CommandResult:  # noqa: A002
        """Run and return whatever came of it."""
        return process.run(self.command(*args, input=input, timeout=timeout))

    def out(self, *args: str | bytes, input: bytes | None = None, timeout: float = 600.0) -> bytes:  # noqa: A002
        """Run, raise :class:`ToolError` on failure, return stdout."""
        return self.run(*args, input=input, timeout=timeout).check().stdout

    def text(self, *args: str | bytes, input: bytes | None = None, timeout: float = 600.0) -> str:  # noqa: A002
        """Like :meth:`out`, decoded and without the last line end."""
        return self.out(*args, input=input, timeout=timeout).decode("utf-8", "surrogateescape").rstrip("\n")

    def spawn(
        self,
        *args: str | bytes,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> process.Process[bytes]:
        """Start git with the given descriptors, for streams."""
        return process.spawn(self.command(*args), stdin=stdin, stdout=stdout, stderr=stderr)

    def has(self, object_name: str) -> bool:
        """Tell whether an object exists."""
        return self.run("cat-file", "-e", object_name).returncode == 0


def init_bare(path: Path, *, object_format: str = "sha1", alternates: Path | None = None) -> Git:
    """Make an empty bare repository of the tool's own, without templates.

    :param alternates: an objects directory to read from besides.
    """
    git = Git(git_dir=path)
    result = process.run(
        Command(
            argv=(
                "git", "-c", "init.defaultBranch=main", "init", "--quiet", "--bare", "--template=",
                f"--object-format={object_format}", "--", str(path),
            ),
            env=git.environment(),
        )
    )  # fmt: skip
    if result.returncode != 0:
        raise ToolError("git could not make a repository", details=result.stderr.decode("utf-8", "replace"))
    if alternates is not None:
        (path / "objects" / "info").mkdir(exist_ok=True)
        (path / "objects" / "info" / "alternates").write_bytes(os.fsencode(alternates) + b"\n")
    return git


def discover(cwd: Path, *args: str) -> CommandResult:
    """Run ``git rev-parse`` where the user stands: the one place where git itself looks for the repository.

    With a repository named outright git would skip its check of who owns it.
    """
    named = Git(git_dir=cwd, user_config=True, extra_env={"GIT_ALLOW_PROTOCOL": "none"})
    # A directory that only looks like a git directory may have come with a clone, configuration and all.
    settings = ("-c", "core.fsmonitor=false", "-c", "safe.bareRepository=explicit")
    argv = ["git", "--no-pager", *settings, "rev-parse", *args]
    return process.run(Command(argv=tuple(argv), env=named.environment(), cwd=cwd))

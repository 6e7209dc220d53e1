"""One git repository inside, and the only ways in which git is used here."""

from __future__ import annotations

import os
import subprocess

from clsecure.privileged.unpacker.records import UnpackError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GIT = (
    "git", "--no-pager", "-c", "core.hooksPath=/dev/null", "-c", "core.fsync=none", "-c", "gc.auto=0",
    "-c", "core.fsmonitor=false", "-c", "checkout.workers=0", "-c", "advice.detachedHead=false",
    "-c", "core.safecrlf=false", "-c", "protocol.allow=never", "-c", "core.quotePath=true",
)  # fmt: skip


class Repository:
    """A work tree with its repository in ``.git``."""

    def __init__(self, top: bytes) -> None:
        self.top = top

    def git(self, *args: str, data: bytes | None = None, within: bool = True) -> bytes:
        """Run git on this unit, with nobody's configuration but the repository's own."""
        env = {
            "PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/nonexistent"),
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
            "GIT_LITERAL_PATHSPECS": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_COMMITTER_NAME": "clsecure", "GIT_COMMITTER_EMAIL": "clsecure@localhost",
        }  # fmt: skip
        if within:
            env["GIT_DIR"] = os.fsdecode(os.path.join(self.top, b".git"))
            env["GIT_WORK_TREE"] = os.fsdecode(self.top)
        done = subprocess.run(
            [*GIT, *args], cwd=self.top, env=env, input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            words = done.stderr.decode("utf-8", "backslashreplace").strip()
            raise UnpackError(f"git {args[0]} failed: {words[-1000:]}")
        return done.stdout

    def configure(self, settings: Sequence[tuple[str, str | None, str, str | None]]) -> None:
        """Append (section, subsection, key, value) to the configuration; None is not written."""
        lines = []
        for section, subsection, key, value in settings:
            if value is None or any("\0" in text or "\n" in text for text in (subsection or "", value)):
                continue
            name = section if subsection is None else f"{section} {quoted(subsection)}"
            lines.append(f"[{name}]\n\t{key} = {quoted(value)}\n")
        with open(os.path.join(self.top, b".git", b"config"), "ab") as file:
            file.write("".join(lines).encode("utf-8", "surrogateescape"))

    def filters(self, paths: bytes, *flags: str) -> Iterable[tuple[bytes, bytes]]:
        """Return (path, filter) as the attributes say, for paths as git's -z input."""
        fields = self.git("check-attr", *flags, "-z", "--stdin", "filter", data=paths).split(b"\0")
        return zip(fields[0::3], fields[2::3], strict=False)


def quoted(text: str) -> str:
    """Return a value as git's configuration quotes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

"""What a table of mounts says: which lines show what others show already, and which nobody comes to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PSEUDO = frozenset({"tmpfs", "proc", "sysfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "mqueue", "nsfs"})
MEMORY = frozenset({"tmpfs", "devtmpfs", "mqueue"})
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
DEVICES = frozenset({"/null", "/zero", "/full", "/random", "/urandom", "/tty"})
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountLine:
    """One line of mountinfo. Source: proc_pid_mountinfo(5).

    :param number, parent: this mount and the one that it is mounted on.
    :param device: number of the file system.
    :param root: what of it is mounted.
    :param options: of this mount.
    :param file_system: the options of the file system.
    """

    number: int
    parent: int
    device: str
    root: str
    target: str
    kind: str
    read_only: bool
    options: frozenset[str] = frozenset()
    file_system: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: str) -> MountLine:
        """Parse one line."""
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        options = frozenset(fields[5].split(","))
        return cls(
            number=int(fields[0]),
            parent=int(fields[1]),
            device=fields[2],
            root=_unescaped(fields[3]),
            target=_unescaped(fields[4]),
            kind=kind[0],
            read_only="ro" in options,
            options=options,
            file_system=tuple(kind[2].split(",")) if len(kind) > 2 else (),
        )


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def below(path: str, roots: Iterable[str]) -> bool:
    """Tell whether a path is one of these, or below one; all as the kernel writes them."""
    return any(path == root or path.startswith(f"{root.rstrip('/')}/") for root in roots)


def machine_table() -> tuple[MountLine, ...]:
    """Return what is mounted outside."""
    data = Path("/proc/self/mountinfo").read_bytes()
    # Of all that ends a line elsewhere, the kernel escapes this one alone.
    return tuple(map(MountLine.parse, data.decode("utf-8", "surrogateescape").split("\n")[:-1]))


def machine_devices() -> frozenset[str]:
    """Return the device numbers of the file systems that are mounted outside."""
    return frozenset(line.device for line in machine_table())


def is_device(line: MountLine) -> bool:
    """Tell whether a mount is one of the plain devices, which engines take from the machine's /dev."""
    return line.kind in MEMORY and line.root in DEVICES and below(line.target, ("/dev", "/proc", "/sys"))


def joined(directory: str, inner: str) -> str:
    """Return a path below a directory; an empty one is the directory itself."""
    return f"{directory.rstrip('/')}{inner}" or "/"


def inner(path: str, directory: str) -> str:
    """Return what a path has below a directory that it is in, with the slash; "" for the directory."""
    return path[len(directory.rstrip("/")) :] if path != directory else ""


@dataclass(frozen=True, slots=True)
class Table:
    """The mounts that a process sees."""

    lines: tuple[MountLine, ...]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Table:
        """Parse the lines of mountinfo."""
        return cls(tuple(map(MountLine.parse, lines)))

    def shows_the_same(self, line: MountLine) -> bool:
        """Tell whether a mount shows what was in its place already: one that only changes what is allowed."""
        return any(
            parent.device == line.device
            and below(line.target, [parent.target])
            and joined(parent.root, inner(line.target, parent.target)) == line.root
            for parent in self.lines
            if parent.number == line.parent and parent is not line
        )

    def visible(self) -> frozenset[MountLine]:
        """Return those that a path leads to; all others lie below another one."""
        numbers = {line.number for line in self.lines}
        children: dict[int, list[MountLine]] = {}
        for line in self.lines:
            children.setdefault(line.parent, []).append(line)
        waiting = [line for line in self.lines if line.parent not in numbers]
        seen: set[MountLine] = set()
        while waiting:
            for top in _tops(waiting.pop(), children):
                if top in seen:
                    continue
                seen.add(top)
                on_it = children.get(top.number, [])
                waiting += [
                    line
                    for line in on_it
                    if not any(o.target != line.target and below(line.target, [o.target]) for o in on_it)
                ]
        return frozenset(seen)


def _tops(line: MountLine, children: dict[int, list[MountLine]]) -> Iterator[MountLine]:
    """Yield what is seen in a mount's place: itself, or what was put over it."""
    waiting, seen = [line], set()
    while waiting:
        line = waiting.pop()
        if line in seen:
            continue
        seen.add(line)
        over = [child for child in children.get(line.number, []) if child.target == line.target]
        waiting += over
        if not over:
            yield line

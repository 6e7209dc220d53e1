"""Tables of mounts, written down shortly."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from clsecure.verify.mountinfo import MountLine


def table(*lines: str) -> tuple[str, ...]:
    """Return mountinfo of lines that say device, what of it, where, options, kind and options of the kind.

    Each is mounted on the last one before it that its place is in; ``+`` before the options: on the root.
    """
    found: list[tuple[int, str]] = []
    written = []
    for number, line in enumerate(lines, start=100):
        device, root, target, options, kind, *more = line.split(" ")
        around = [other for other, place in found if PurePosixPath(target).is_relative_to(place)]
        parent = (around[0] if options.startswith("+") else around[-1]) if around else 1
        found.append((number, target))
        of_kind = more[0] if more else "rw"
        options = options.removeprefix("+")
        written.append(
            f"{number} {parent} {device} {root} {target} {options},relatime - {kind} {kind} {of_kind}"
        )
    return tuple(written)


def machines(kind: str) -> str:
    """Return the device number of a file system of this machine's."""
    lines = map(MountLine.parse, Path("/proc/self/mountinfo").read_text().splitlines())
    return next(line.device for line in lines if line.kind == kind)

"""The checks on what a sandbox of the helper's own making sees of files: its root and its mounts.

What lies in the places of the plan is told by device and inode, as the host sees both ends. What lies
elsewhere is told by the table of mounts: each line is the plan's, or shows nothing of the machine's.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from clsecure.backends.api import FileIdentity, ProcessFacts
from clsecure.backends.container.spec import BIN, DOCKER_SOCKET
from clsecure.installation import STATE_DIRECTORY
from clsecure.model import DockerAccess, IsolationMode, SandboxSpec, Vantage
from clsecure.verify.checks import LOCAL, Area, Check, Observation
from clsecure.verify.mountinfo import (
    DEVICES,
    MEMORY,
    PSEUDO,
    SYSTEM,
    MountLine,
    Table,
    below,
    inner,
    is_device,
    joined,
    machine_devices,
    machine_table,
)

_OURS = "/opt/clsecure/etc"
_LAYERS = f"lowerdir={STATE_DIRECTORY}/view{_OURS}:/etc"
_FIREJAIL = "/run/firejail"
_BLINDS = frozenset({f"{_FIREJAIL}/firejail.ro.dir", f"{_FIREJAIL}/firejail.ro.file"})
"""Empty, and closed to everybody: firejail mounts them over what nobody is to see."""
_NAMES = frozenset({"/etc/hostname", "/etc/hosts"})
"""Made anew by firejail from 0.9.74 on: the host's name is none of the agent's business."""
_FIREJAILS_LIBRARIES = re.compile(r"/usr/(local/)?lib(32|64|x32)?/([^/]+/)?firejail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A file or directory of the machine's that the plan has in a place.

    :param source: where it is outside, when what is mounted below it there belongs to it.
    :param closed: no device counts in there, and no set-uid program.
    """

    read_only: bool
    source: str | None = None
    closed: bool = True


def given_places(facts: ProcessFacts, spec: SandboxSpec) -> dict[str, Bound]:
    """Return what the plan of a session has from the machine, in every mode, by place."""
    # docker takes what is mounted as it is outside: nothing set-uid raises anybody in there.
    closed = spec.mode in LOCAL
    found = {str(spec.account.home): Bound(read_only=False, closed=closed)}
    for mount in spec.mounts:
        given = facts.asked.given.get(str(mount.target))
        source = str(mount.source) if given is None else given.path
        found[str(mount.target)] = Bound(read_only=mount.read_only, source=source, closed=closed)
    if spec.docker is not DockerAccess.NONE:
        is_user = spec.mode is IsolationMode.USER
        found[str(DOCKER_SOCKET)] = Bound(read_only=spec.mode in LOCAL, closed=is_user)
    return found


def other_places(facts: ProcessFacts, targets: Iterable[str]) -> Iterator[str]:
    """Say in which places there is not what belongs there."""
    for target in targets:
        place, given = facts.places.get(target), facts.asked.given.get(target)
        if place is None or place.outside is None:
            yield f"{target} was not looked at"
        elif place.inside is None:
            yield f"{target} is not there"
        elif stat.S_ISLNK(place.outside.mode) and stat.S_ISLNK(place.inside.mode):
            # Made anew: where it leads is in the plan, too, or nothing is there.
            continue
        elif _which(place.inside) != _which(place.outside):
            yield f"{target} is another"
        elif given is not None and _which(place.inside) != _which(given.identity):
            yield f"{target} is not what was given"


def _which(identity: FileIdentity) -> tuple[int, int, int]:
    return identity.device, identity.inode, stat.S_IFMT(identity.mode)


class Places:
    """Which mounts are those of a plan.

    :param bound: all that it has from the machine, by place.
    """

    def __init__(self, facts: ProcessFacts, bound: Mapping[str, Bound]) -> None:
        self.bound = bound
        self.table = Table.parse(facts.mountinfo)
        self.machines = machine_devices()
        outside = (*machine_table(), *map(MountLine.parse, facts.asked.mountinfo))
        self._outside = {(line.target, line.device, line.root) for line in outside}

    def at(self, path: str) -> tuple[str, Bound] | None:
        """Return the place that a path is in, or below."""
        return next(((at, each) for at, each in self.bound.items() if below(path, [at])), None)

    def foreign(self, is_made: Callable[[MountLine], bool]) -> Iterator[str]:
        """Say what is mounted that is not of the plan.

        :param is_made: tells of a mount that it is the sandbox's own, with nothing of the machine's.
        """
        taken: set[str] = set()
        for line in self.table.lines:
            if self.table.shows_the_same(line):
                continue
            if line.target in self.bound:
                if line.target in taken:
                    yield f"{line.target} is mounted twice"
                taken.add(line.target)
            elif not self._comes_along(line) and not is_made(line):
                yield f"{line.target} is {line.kind} {line.root}"

    def _comes_along(self, line: MountLine) -> bool:
        """Tell whether a mount is there outside, at the same place below what the plan has."""
        place = self.at(line.target)
        if place is None or place[1].source is None:
            return False
        return self.is_outside(line, joined(place[1].source, inner(line.target, place[0])))

    def is_outside(self, line: MountLine, path: str) -> bool:
        """Tell whether the same is mounted at a path outside."""
        return (path, line.device, line.root) in self._outside

    def open(self, *, all_closed: bool) -> Iterator[str]:
        """Say what allows more than the plan.

        :param all_closed: nothing of the machine's has set-uid programs that count.
        """
        for line in self.table.visible():
            place = self.at(line.target)
            if place is None and line.kind in PSEUDO:
                continue
            bound = place[1] if place else Bound(read_only=True, closed=all_closed)
            if bound.read_only and not line.read_only:
                yield f"{line.target} is writable"
            if bound.closed:
                yield from (f"{line.target} is not {o}" for o in ("nosuid", "nodev") if o not in line.options)


def _mounts(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """Every mount is one of the plan's, shows what it should and allows no more; none is missing."""
    is_user = spec.mode is IsolationMode.USER
    given = given_places(facts, spec)
    system = {
        target: Bound(read_only=True, source=target, closed=is_user)
        for target in SYSTEM
        if (place := facts.places.get(target)) and place.outside and stat.S_ISDIR(place.outside.mode)
    }
    devices = {f"/dev{name}": Bound(read_only=False, closed=False) for name in DEVICES} if is_user else {}
    program = {} if spec.program is None else {str(BIN / spec.program.name): Bound(read_only=True)}
    places = Places(facts, {**given, **system, **devices, **program})
    own = _Own(places, is_user=is_user)
    wrong = [
        *other_places(facts, {"/usr", *given, *devices, *facts.places}),
        *places.foreign(own.is_made),
        *places.open(all_closed=is_user),
    ]
    return Observation.equal("as planned", "; ".join(sorted(set(wrong))) or "as planned")


class _Own:
    """Tells what the helper, and firejail, make of a sandbox's own."""

    def __init__(self, places: Places, *, is_user: bool) -> None:
        self.places, self.is_user = places, is_user
        lines = places.table.lines
        self.root = {each.device for each in lines if each.target == "/" and self._is_own(each)}
        self.visible = places.table.visible()

    def _is_own(self, line: MountLine) -> bool:
        """Tell whether a file system is mounted nowhere outside."""
        return line.device not in self.places.machines

    def is_made(self, line: MountLine) -> bool:
        """Tell whether a mount has nothing of the machine's."""
        if is_device(line):
            return True
        if line.device in self.root and line.root == f"{_OURS}/resolv.conf":
            return line.read_only
        made = {
            "/": "tmpfs", "/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts", "/etc": "overlay",
        }.get(line.target)  # fmt: skip
        # Of each network there is one /sys; whose network it is, is another check's to say.
        is_own = self._is_own(line) or made == "sysfs"
        if made == line.kind and line.root == "/" and is_own:
            return made != "overlay" or _LAYERS in line.file_system
        return not self.is_user and self._is_firejails(line)

    def _is_firejails(self, line: MountLine) -> bool:
        hidden = line not in self.visible
        if hidden and below(line.target, ("/proc", "/sys")) and self.places.is_outside(line, line.target):
            # The machine's, until it has mounted its own over them.
            return True
        if line.kind in MEMORY and line.root in DEVICES:
            return line.target == f"{_FIREJAIL}/mnt/dev{line.root}"
        if line.device in self.root:
            if line.root in _BLINDS:
                return line.read_only
            # The /dev from before, until it has made its own of it.
            return hidden and line.target == f"{_FIREJAIL}/mnt{line.root}" and below(line.root, ["/dev"])
        if line.kind == "devpts":
            return hidden and self._is_own(line) and line.target == f"{_FIREJAIL}/mnt/dev/pts"
        if line.kind == "tmpfs" and line.target in _NAMES:
            return self._is_own(line) and line.root == line.target.removeprefix("/etc")
        if line.kind == "tmpfs":
            return self._is_own(line) and (line.target == "/dev" or below(line.target, ("/run", "/var")))
        return line.target == f"{_FIREJAIL}/lib" and line.read_only and self._is_library(line)

    def _is_library(self, line: MountLine) -> bool:
        """Tell whether a directory of firejail's own programs is mounted."""
        return any(
            _FIREJAILS_LIBRARIES.fullmatch(joined(each.target, inner(line.root, each.root)))
            for each in self.places.table.lines
            if each.device == line.device and below(line.root, [each.root]) and below(each.target, ["/usr"])
        )


def _root(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    roots = [line for line in map(MountLine.parse, facts.mountinfo) if line.target == "/"]
    observed = "; ".join(f"{line.kind} {'ro' if line.read_only else 'rw'}" for line in roots)
    return Observation.equal("tmpfs ro", observed)


MOUNT_CHECKS: tuple[Check[ProcessFacts], ...] = (
    Check(
        check_id="root",
        property="the root is the helper's own, read-only",
        modes=LOCAL,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1",),
        observe=_root,
    ),
    Check(
        check_id="mounts",
        property="the mounts are those of the plan, and show what it says",
        modes=LOCAL,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "A11"),
        residuals=("R4", "R13", "R29", "R47"),
        observe=_mounts,
    ),
)

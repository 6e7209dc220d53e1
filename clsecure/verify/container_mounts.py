"""The checks on what a container sees of files: its root and its mounts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from clsecure.backends.api import ProcessFacts
from clsecure.backends.container.spec import BIN, RUN
from clsecure.installation import PACKAGE_DIRECTORY, SETUP_DIRECTORY
from clsecure.model import SandboxSpec, Vantage
from clsecure.verify.checks import CONTAINER, Area, Check, Observation
from clsecure.verify.mountinfo import PSEUDO, MountLine, below, is_device, machine_table
from clsecure.verify.mounts import Bound, Places, given_places, other_places

_PIECES = (str(PACKAGE_DIRECTORY), str(SETUP_DIRECTORY))
_SOCKET = str(RUN / "control")
_USERS = ("/etc/passwd", "/etc/group")
_ENGINE_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv")
_MEMORY = ("/tmp", "/var/tmp", "/run")  # noqa: S108  # paths of the inside
_KERNEL = ("/proc", "/sys", "/dev")
_GROUPS = frozenset({"cgroup", "cgroup2"})


def _container_root(facts: ProcessFacts, _spec: SandboxSpec) -> Observation:
    roots = [line for line in map(MountLine.parse, facts.mountinfo) if line.target == "/"]
    observed = "; ".join(f"{line.kind} {'ro' if line.read_only else 'rw'}" for line in roots)
    return Observation.equal("overlay ro", observed)


def _container_mounts(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    """Every mount is the image, one of the plan's, or one that engines make; none is missing or writable."""
    pieces = _pieces(facts)
    given = {
        **given_places(facts, spec),
        **dict.fromkeys(_USERS, Bound(read_only=True, closed=False)),
        # Whatever is mounted in it outside is there, too, as it is in all of /usr in other modes.
        pieces: Bound(read_only=True, closed=False, source=pieces),
        _SOCKET: Bound(read_only=False, closed=False),
    }
    program = {}
    if spec.program is not None:
        program = {str(BIN / spec.program.name): Bound(read_only=True, closed=False)}
    places = Places(facts, {**given, **program})
    engine = _Engine(places, facts)
    wrong = [
        *other_places(facts, {*given, *facts.places}),
        *places.foreign(engine.has_made),
        *places.open(all_closed=False),
    ]
    seen = {line.target for line in places.table.lines}
    wrong += [f"{target} is not mounted" for target in ("/", *_KERNEL, *_MEMORY) if target not in seen]
    return Observation.equal("as planned", "; ".join(sorted(set(wrong))) or "as planned")


def _pieces(facts: ProcessFacts) -> str:
    """Return where the launcher is: a package's, or what was set up."""
    return next((place for place in _PIECES if place in facts.places), _PIECES[0])


class _Engine:
    """Tells what an engine makes of a container's own."""

    def __init__(self, places: Places, facts: ProcessFacts) -> None:
        self.places = places
        inspected: Mapping[str, object] = facts.container.inspected if facts.container else {}
        self.name = str(inspected.get("Id") or "")
        driver = inspected.get("GraphDriver")
        data = driver.get("Data") if isinstance(driver, Mapping) else None
        self.root = str(data.get("MergedDir") or "") if isinstance(data, Mapping) else ""

    def has_made(self, line: MountLine) -> bool:
        """Tell whether a mount has nothing of the machine's."""
        if is_device(line):
            return True
        if line.kind in _GROUPS:
            # The sandbox's own, and of them there is only one.
            return below(line.target, ("/sys/fs/cgroup",)) and line.read_only
        if line.target in _ENGINE_FILES:
            return line.read_only and self._is_of_container(line)
        if line.root != "/":
            return False
        if line.target == "/" and self._has_mounted(line):
            return line.kind not in PSEUDO  # what it is, is another check's to say
        if line.device in self.places.machines:
            return False
        return any(line.kind in kinds and below(line.target, [place]) for place, kinds in _made())

    def _has_mounted(self, line: MountLine) -> bool:
        """Tell whether a root is mounted nowhere outside but where docker's daemon keeps this container's."""
        outside = {each.target for each in machine_table() if each.device == line.device}
        return all(
            target == self.root or (self.name and target.endswith(f"/{self.name}")) for target in outside
        )

    def _is_of_container(self, line: MountLine) -> bool:
        """Tell whether a file is the one that the engine keeps for this container."""
        name = PurePosixPath(line.target).name
        kept = (f"/{self.name}/{name}", f"/{self.name}/userdata/{name}")
        return bool(self.name) and line.root.endswith(kept)


def _made() -> Iterator[tuple[str, frozenset[str]]]:
    """Yield what engines mount in which places."""
    yield from ((place, frozenset({"tmpfs"})) for place in _MEMORY)
    yield "/dev", frozenset({"tmpfs", "devpts", "mqueue"})
    yield "/proc", frozenset({"proc", "tmpfs"})
    yield "/sys", frozenset({"sysfs", "tmpfs"})


CONTAINER_MOUNT_CHECKS: tuple[Check[ProcessFacts], ...] = (
    Check(
        check_id="container-root",
        property="the root is the image, read-only",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "C8"),
        residuals=("R37",),
        observe=_container_root,
    ),
    Check(
        check_id="container-mounts",
        property="the mounts are those of the plan, and show what it says",
        modes=CONTAINER,
        vantage=Vantage.HOST,
        area=Area.FILES,
        threats=("A1", "A11", "C8"),
        residuals=("R13", "R29", "R35", "R36", "R47"),
        observe=_container_mounts,
    ),
)

"""The check on who the numbers of a sandbox's user namespace are to the machine."""

from __future__ import annotations

from collections.abc import Iterable

from clsecure.backends.api import MapFacts, ProcessFacts
from clsecure.model import Engine, IsolationMode, SandboxSpec, Vantage
from clsecure.verify.checks import EVERY_MODE, Area, Check, Observation

_TTY, _OVERFLOW = 5, 65534
"""The group of terminals in every view and image, and who files of an image belong to."""

Lines = frozenset[tuple[int, ...]]


def _maps(facts: ProcessFacts, spec: SandboxSpec) -> Observation:
    if facts.maps is None:
        return Observation.equal("the planned ones", "they were not looked at")
    seen = frozenset(facts.maps.uids), frozenset(facts.maps.gids)
    uids, gids = _planned(facts.maps, spec)
    if spec.mode is IsolationMode.NAMESPACE:
        # There are firejails that leave the group of terminals what it is.
        seen = seen[0], seen[1] - {(_TTY, _TTY, 1)}
    return Observation.equal(_words(uids, gids), _words(*seen))


def _planned(maps: MapFacts, spec: SandboxSpec) -> tuple[Lines, Lines]:
    """Return what is mapped, and nobody else: who is not has no file and no process in there."""
    account = spec.account
    if spec.mode is IsolationMode.NAMESPACE:
        return frozenset({(account.uid, account.uid, 1)}), frozenset({(account.gid, account.gid, 1)})
    if spec.container is None or spec.container.engine is not Engine.PODMAN:
        # In the machine's own.
        return frozenset(maps.host_uids), frozenset(maps.host_gids)
    # Neither number is somebody's: the helper gives them to nobody else.
    image = frozenset({(_OVERFLOW, maps.images, 1)} if maps.images else ())
    terminals = frozenset({(_TTY, maps.tty, 1)} if maps.tty else ())
    return image | {(0, account.uid, 1)}, image | terminals | {(0, account.gid, 1)}


def _words(uids: Iterable[tuple[int, ...]], gids: Iterable[tuple[int, ...]]) -> str:
    lines = (", ".join(" ".join(map(str, line)) for line in sorted(each)) for each in (uids, gids))
    return " / ".join(each or "none" for each in lines)


MAP_CHECKS: tuple[Check[ProcessFacts], ...] = (
    Check(
        check_id="id-maps",
        property="the user namespace maps the worker, and nobody of the machine's",
        modes=EVERY_MODE,
        vantage=Vantage.HOST,
        area=Area.PRIVILEGES,
        threats=("C2", "C13"),
        residuals=("R1",),
        observe=_maps,
    ),
)

"""Interleaved runs: one of each case, then one of each again, so that a busy minute falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Phases = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure.

    :param run: does it; returns the seconds of its phases where it has such, ``total`` among them where the
        time of the whole call is not what counts.
    :param after: puts things back, not measured.
    :param floor: the name of the case that it is compared with.
    :param size: bytes that it moves, 0 where that is not what counts.
    """

    name: str
    run: Callable[[], Phases | None]
    after: Callable[[], object] = lambda: None
    floor: str | None = None
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The times of all runs of a case, in seconds."""

    case: Case
    times: list[float] = field(default_factory=list)
    phases: list[Phases] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The time that counts."""
        return statistics.median(self.times)

    @property
    def gbit_s(self) -> float:
        """What it moves in a second; 0 where it is not about that."""
        return self.case.size * 8 / self.median / 1e9

    def above(self, floor: Result) -> float:
        """Return how much longer than its floor it takes: the median of each turn's difference."""
        return statistics.median(a - b for a, b in zip(self.times, floor.times, strict=True))

    @property
    def best(self) -> float:
        """The least disturbed run."""
        return min(self.times)

    def median_phases(self) -> dict[str, float]:
        """Return the median of each phase."""
        names = dict.fromkeys(name for each in self.phases for name in each)
        return {
            name: round(statistics.median(each.get(name, 0.0) for each in self.phases), 6) for name in names
        }


def measure(cases: Sequence[Case], *, runs: int, tell: Callable[[str], None]) -> dict[str, Result]:
    """Run every case ``runs`` times, in turns."""
    results = {case.name: Result(case=case) for case in cases}
    for turn in range(runs):
        for case in cases:
            tell(f"{turn + 1}/{runs} {case.name}")
            start = time.perf_counter()
            phases = dict(case.run() or {})
            took = phases.pop("total", time.perf_counter() - start)
            results[case.name].times.append(took)
            if phases:
                results[case.name].phases.append(phases)
            case.after()
    return results

"""The results, for people and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import cases, containers, network
from benchmarks.measuring import Result

_CHECKS = (("verify_start", "at the start", 0.15), ("verify_end", "at the end", 1.0))
_FIREJAIL = 0.1
"""Seconds that firejail's own start takes where the goals were set: their ratios hold elsewhere, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What was wanted, and what was measured.

    :param at_least: more is better.
    """

    name: str
    limit: float
    measured: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """It is."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def goals(results: Mapping[str, Result]) -> list[Goal]:
    """Compare with the goals of the project, those that were measured."""
    found = []

    def seconds(name: str, case: str, limit: float) -> None:
        if case in results:
            above = results[case].median - results[cases.PYTHON].median * (case in cases.QUICK)
            # The checks have goals of their own.
            phases = results[case].median_phases()
            above -= sum(phases.get(phase, 0.0) for phase, _, _ in _CHECKS)
            found.append(Goal(name=name, limit=limit, measured=above, unit="s"))

    seconds("clsecure --help, above python", "--help", 0.15)
    seconds("clsecure list, above python", "list", 0.4)
    for mode in cases.MODES:
        for finish in ("keep", "import"):
            name = cases.existing(mode, finish)
            seconds(name, name, 0.8)
        seconds(cases.new(mode), cases.new(mode), 1.2)
        if cases.many(mode) in results:
            start, floor = until_agent(results[cases.many(mode)]), results[cases.CLONE].median
            name = f"start, {mode}, many files, to clone and checkout"
            found.append(Goal(name=name, limit=2.0, measured=start / floor, unit="x"))
    return [
        *found,
        *_goals_of_the_checks(results),
        *_goals_of_containers(results),
        *_goals_of_the_gateway(results),
    ]


def _goals_of_the_checks(results: Mapping[str, Result]) -> Iterator[Goal]:
    name = cases.existing("namespace", "keep")
    if name not in results:
        return
    phases, floor = results[name].median_phases(), results[cases.FIREJAIL].median
    for phase, when, limit in _CHECKS:
        yield Goal(name=f"checks {when}, namespace", limit=limit, measured=phases[phase], unit="s")
        ratio = phases[phase] / floor
        yield Goal(name=f"checks {when}, to firejail", limit=limit / _FIREJAIL, measured=ratio, unit="x")


def _goals_of_containers(results: Mapping[str, Result]) -> Iterator[Goal]:
    for engine, floor in containers.FLOORS.items():
        name = containers.session(engine, "keep")
        if name in results:
            start = results[name].median_phases()["start"] / results[floor].median
            yield Goal(name=f"container's start, to {floor}", limit=1.5, measured=start, unit="x")


def _goals_of_the_gateway(results: Mapping[str, Result]) -> Iterator[Goal]:
    for name in (*network.FIRSTS, network.EVENT):
        if name in results:
            added = results[name + network.THROUGH].above(results[name]) * 1000
            yield Goal(name=f"{name}: added by the gateway", limit=2.0, measured=added, unit="ms")
    for name in network.TUNNELS:
        if name in results:
            speed = results[name + network.THROUGH].gbit_s
            yield Goal(name=name, limit=1.0, measured=speed, unit="Gbit/s", at_least=True)


def until_agent(result: Result) -> float:
    """Return the time from the command to the agent's start."""
    phases = result.median_phases()
    return sum(seconds for phase, seconds in phases.items() if phase not in cases.AFTER_AGENT)


def document(
    results: Mapping[str, Result], compared: Sequence[Goal], *, runs: int, files: int
) -> dict[str, Any]:
    """Return everything, for a file."""
    return {
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "runs": runs,
        "files": files,
        "results": [
            {
                "name": name,
                "median_s": round(result.median, 5),
                "best_s": round(result.best, 5),
                "times_s": [round(each, 5) for each in result.times],
                "floor": result.case.floor,
                "ratios": _ratios(result, results),
                "phases_s": result.median_phases(),
                **({"gbit_s": round(result.gbit_s, 2)} if result.case.size else {}),
            }
            for name, result in results.items()
        ],
        "goals": [{**asdict(goal), "met": goal.met} for goal in compared],
    }


def table(results: Mapping[str, Result], compared: Sequence[Goal]) -> str:
    """Return the text for a terminal."""
    lines = [f"{'median':>9} {'best':>9}  {'':48} {'to its floor':>12} {'to firejail':>12}"]
    for name, result in results.items():
        ratios = _ratios(result, results)
        own = f"{ratios[result.case.floor]:.2f}" if result.case.floor in ratios else ""
        firejail = f"{ratios[cases.FIREJAIL]:.1f}" if name.startswith("session") else ""
        lines.append(
            f"{_milliseconds(result.median)} {_milliseconds(result.best)}  {name:48} {own:>12} {firejail:>12}"
        )
        phases = [f"{phase} {_milliseconds(took).strip()}" for phase, took in result.median_phases().items()]
        if result.case.size:
            phases.append(f"{result.gbit_s:.1f} Gbit/s")
        if phases:
            lines.append(f"{'':21}   {', '.join(phases)}")
    # The goals are for a machine that does nothing else; the ratios hold on a busy one as well.
    lines += ["", f"load of {os.cpu_count()} processors: {os.getloadavg()[0]:.1f}"]
    lines += ["", f"{'goal':>9} {'measured':>10}"]
    lines += [
        f"{goal.limit:7.2f} {goal.measured:10.2f} {goal.unit:6}  {goal.name}{'' if goal.met else '  MISSED'}"
        for goal in compared
    ]
    return "\n".join(lines) + "\n"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:6.{0 if seconds > 0.1 else 2}f} ms"


def _ratios(result: Result, results: Mapping[str, Result]) -> dict[str, float]:
    floors = dict.fromkeys((cases.PYTHON, cases.SUDO, cases.FIREJAIL, cases.CLONE_SMALL, result.case.floor))
    return {
        name: round(result.median / results[name].median, 3)
        for name in floors
        if name in results and name != result.case.name
    }

"""How checks say what they saw."""

from __future__ import annotations

from collections.abc import Iterable

from clsecure.verify.checks import Observation
from clsecure.verify.tried import Errors


def errors(results: Errors) -> str:
    """Group what came of several attempts by their error: "EPERM (bpf, mount)"."""
    groups: dict[str, list[str]] = {}
    for name, error in results.items():
        groups.setdefault(error or "works", []).append(name)
    return ", ".join(f"{error} ({', '.join(names)})" for error, names in groups.items()) or "nothing"


def names(found: Iterable[str]) -> str:
    """List names in order, or say that there is none."""
    return ", ".join(sorted(found)) or "none"


def limit(value: int | None) -> str:
    """Say a limit of a process."""
    return "none" if value is None else str(value)


def untried(expected: str, why: str) -> Observation:
    """Say that a check shows nothing here: it is skipped."""
    return Observation(expected=expected, observed=f"could not be tried: {why}", holds=None)

"""How checks say what they saw."""

from __future__ import annotations

from collections.abc import Iterable

from clsecure.verify.checks import Observation
from clsecure.verify.tried import Errors

NOT_TOLD = "not told"
"""In the place of an error where a probe was told to try something, and does not say what came of it."""


def told(results: Errors, labels: Iterable[str]) -> dict[str, str | None]:
    """Return what came of these, whether or not the probe says so."""
    return {label: results.get(label, NOT_TOLD) for label in labels}


def all_refused(results: Errors) -> bool:
    """Tell whether each was tried and none worked; of nothing that is not so."""
    return bool(results) and not {None, NOT_TOLD} & set(results.values())


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

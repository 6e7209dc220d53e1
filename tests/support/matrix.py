"""The isolation matrix: what each hostile test and each check came to in each mode, as one document.

:mod:`.matrix_plugin` collects the results of a run of the tests; here they are put together and written. The
same results give the same document, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clsecure.verify.checks import Check

MODES = ("user", "namespace", "container")
_ID = r"[A-I][0-9]+"
_RANGE = re.compile(rf"({_ID})(?:\u2013({_ID}))?")
_NAME = re.compile(r"test_((?:[a-i][0-9]+_)+)")
_WORST = ("failed", "passed", "skipped")
"""Of two results of one test the earlier one here counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A test, and how it ended.

    :param test: its id in pytest, without the group.
    :param threats: ids of docs/threat-model.md.
    :param mode: None for one that is of no mode.
    :param outcome: ``passed``, ``failed`` or ``skipped``.
    :param why: it was skipped.
    """

    test: str
    threats: tuple[str, ...]
    mode: str | None
    outcome: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a check came to in a sandbox that nobody broke.

    :param status: ``pass``, ``fail`` or ``skip``.
    """

    check_id: str
    mode: str
    status: str
    phase: str
    observed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A sabotage of a check in a mode, and whether exactly it failed."""

    check_id: str
    mode: str
    how: str
    noticed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What one run came to, or several together.

    :param versions: of what took part, by name.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()
    looked: tuple[Looked, ...] = ()
    broken: tuple[Broken, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return it for JSON, in one order."""
        return {
            "versions": dict(sorted(self.versions.items())),
            "tried": [asdict(each) for each in sorted(self.tried, key=repr)],
            "looked": [asdict(each) for each in sorted(self.looked, key=repr)],
            "broken": [asdict(each) for each in sorted(self.broken, key=repr)],
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Results:
        """Return it from JSON."""
        return cls(
            versions=document["versions"],
            tried=tuple(Tried(**{**t, "threats": tuple(t["threats"])}) for t in document["tried"]),
            looked=tuple(Looked(**each) for each in document["looked"]),
            broken=tuple(Broken(**each) for each in document["broken"]),
        )


def merged(parts: Iterable[Results]) -> Results:
    """Put the results of several runs together: of one test the worst counts, and a skip the least.

    Versions that differ are all named.
    """
    versions: dict[str, set[str]] = {}
    tried: dict[tuple[str, str | None], Tried] = {}
    looked: dict[tuple[str, str, str], Looked] = {}
    broken: dict[tuple[str, str, str], Broken] = {}
    for part in parts:
        for name, version in part.versions.items():
            versions.setdefault(name, set()).add(version)
        for test in part.tried:
            known = tried.setdefault((test.test, test.mode), test)
            tried[test.test, test.mode] = min(known, test, key=lambda t: (_WORST.index(t.outcome), t.why))
        for look in part.looked:
            seen = looked.setdefault((look.check_id, look.mode, look.phase), look)
            looked[look.check_id, look.mode, look.phase] = min(seen, look, key=_rank)
        for each in part.broken:
            same = broken.setdefault((each.check_id, each.mode, each.how), each)
            broken[each.check_id, each.mode, each.how] = min(same, each, key=lambda b: b.noticed)
    return Results(
        versions={name: "; ".join(sorted(found)) for name, found in versions.items()},
        tried=tuple(tried.values()),
        looked=tuple(looked.values()),
        broken=tuple(broken.values()),
    )


def _rank(look: Looked) -> tuple[int, str]:
    return ("fail", "pass", "skip").index(look.status), look.observed


def threats_of(test: str) -> tuple[str, ...]:
    """Return the ids that a test's name begins with."""
    found = _NAME.match(test)
    return tuple(word.upper() for word in found[1].split("_") if word) if found else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Threat:
    """A row of the threat model; a threat may be in several."""

    threat: str
    attacks: tuple[str, ...]
    residuals: tuple[str, ...]


def threats(model: str) -> dict[str, Threat]:
    """Return every threat of docs/threat-model.md, in its order."""
    section = model.partition("\n## The threats\n")[2].partition("\n## ")[0]
    found: dict[str, Threat] = {}
    for row in re.findall(rf"^\| ({_ID}.*) \|$", section, re.MULTILINE):
        ids, attack, held = (cell.strip() for cell in row.split(" | "))
        residuals = re.findall(r"\bR[0-9]+\b", held)
        for first, last in _RANGE.findall(ids):
            for number in range(int(first[1:]), int((last or first)[1:]) + 1):
                name = f"{first[0]}{number}"
                before = found.get(name, Threat(threat=name, attacks=(), residuals=()))
                found[name] = Threat(
                    threat=name,
                    attacks=(*before.attacks, attack),
                    residuals=tuple(sorted({*before.residuals, *residuals}, key=_number)),
                )
    return dict(sorted(found.items(), key=lambda item: (item[0][0], _number(item[0]))))


def _number(name: str) -> int:
    return int(name[1:])


_BEGINNING = """# Isolation matrix

What holds in which mode, as the tests found it: every attack of the [threat model](threat-model.md) that is \
carried out for real, and every check of `clsecure verify`. This file is generated, nothing in it was \
written by hand ([how](../CONTRIBUTING.md#the-isolation-matrix)).
"""
_LEGEND = """
- **holds**: every test of it passed, so many.
- **residual**: nothing is tried; what is not held is in the threat model under that number.
- **not tried here**: its tests were skipped on this machine (the reasons are below), or left out of this run.
- **not applicable**: no test of it is one of this mode.

The last columns: tests that are of no mode but of the tool itself, and what the threat model leaves open.
"""


def rendered(results: Results, *, model: str, checks: Iterable[Check[Any]]) -> str:
    """Return the document.

    :param model: the text of docs/threat-model.md.
    :param checks: all that there are, in their order.
    """
    parts = [_BEGINNING, "\n## Made with\n\n", *_versions(results)]
    parts += ["\n## Attacks\n", _LEGEND, "\n", *_attacks(results, threats(model).values())]
    parts += ["\n## Checks\n", *_checks(results, tuple(checks))]
    return "".join(parts)


def _versions(results: Results) -> Iterable[str]:
    yield "| | |\n|---|---|\n"
    for name, version in sorted(results.versions.items()):
        yield f"| {name} | {_cell(version)} |\n"


def _attacks(results: Results, known: Iterable[Threat]) -> Iterable[str]:
    yield f"| | the attack | {' | '.join(MODES)} | of no mode | left open |\n|{'---|' * (len(MODES) + 4)}\n"
    skipped: dict[str, set[str]] = {}
    for threat in known:
        tests = [test for test in results.tried if threat.threat in test.threats]
        cells = [_stands(threat, tests, mode) for mode in MODES]
        own = [test for test in tests if test.mode is None]
        cells.append(_outcome(own) if own else "")
        attack = "; ".join(threat.attacks)
        yield f"| {threat.threat} | {_cell(attack)} | {' | '.join(cells)} | {' '.join(threat.residuals)} |\n"
        for test in tests:
            if test.outcome == "skipped":
                skipped.setdefault(test.why, set()).add(f"{threat.threat} ({test.mode or 'of no mode'})")
    if skipped:
        yield "\nSkipped:\n"
        for why, which in sorted(skipped.items()):
            yield f"- {_cell(why)}: {', '.join(sorted(which))}\n"


def _stands(threat: Threat, tests: list[Tried], mode: str) -> str:
    """Return how a threat stands in a mode."""
    if of_mode := [test for test in tests if test.mode == mode]:
        return _outcome(of_mode)
    if not tests:
        return f"residual {' '.join(threat.residuals)}" if threat.residuals else "not tried here"
    return "not applicable"


def _outcome(tests: list[Tried]) -> str:
    """Return what tests came to together."""
    failed = [test for test in tests if test.outcome == "failed"]
    passed = [test for test in tests if test.outcome == "passed"]
    if failed:
        return f"**FAILS** ({len(failed)} of {len(failed) + len(passed)})"
    return f"holds ({len(passed)})" if passed else "not tried here"


def _checks(results: Results, checks: tuple[Check[Any], ...]) -> Iterable[str]:
    yield (
        "\nEach in a sandbox as it should be; the last column says in which modes the tests broke it on "
        "purpose, and that it was noticed by exactly this check. **Not tried here**: no session of the tests "
        "in that mode came to it.\n\n"
    )
    yield f"| check | property | {' | '.join(MODES)} | threats | residuals | sabotage noticed |\n"
    yield f"|{'---|' * (len(MODES) + 5)}\n"
    skipped: dict[str, set[str]] = {}
    for check in checks:
        cells = []
        for mode in MODES:
            seen = [e for e in results.looked if (e.check_id, e.mode) == (check.check_id, mode)]
            cells.append(_status(check, seen, mode))
            for each in seen:
                if each.status == "skip":
                    skipped.setdefault(each.observed, set()).add(f"{check.check_id} ({mode})")
        broken = [each for each in results.broken if each.check_id == check.check_id]
        words = [check.check_id, _cell(check.property), *cells, " ".join(check.threats)]
        yield f"| {' | '.join(words)} | {' '.join(check.residuals)} | {_noticed(broken)} |\n"
    if skipped:
        yield "\nSkipped:\n"
        for why, which in sorted(skipped.items()):
            yield f"- {_cell(why)}: {', '.join(sorted(which))}\n"


def _status(check: Check[Any], seen: list[Looked], mode: str) -> str:
    if mode not in check.modes:
        return "not applicable"
    statuses = {each.status for each in seen}
    if "fail" in statuses:
        return "**FAILS**"
    if "pass" in statuses:
        return "holds"
    return "skipped" if statuses else "not tried here"


def _noticed(broken: list[Broken]) -> str:
    words = []
    for mode in MODES:
        of_mode = [each.noticed for each in broken if each.mode == mode]
        if not all(of_mode):
            words.append(f"**NOT in {mode}**")
        elif of_mode:
            words.append(mode)
    return ", ".join(words) or "not tried here"


def as_looked(checks: Iterable[Mapping[str, Any]], mode: str) -> list[dict[str, Any]]:
    """Return checks of a session's JSON result as a test's property ``checks`` has them."""
    names = ("check_id", "status", "phase", "observed")
    return [{**{name: each[name] for name in names}, "mode": mode} for each in checks]


def _cell(text: str) -> str:
    """Return text for a cell of a table, one line."""
    return " ".join(text.split()).replace("|", "\\|")

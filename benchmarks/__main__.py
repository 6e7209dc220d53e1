"""``./dev invoke bench`` (as root): measure, print a table, write JSON.

It makes a plain account of its own, installs the root-owned pieces of this checkout as the tests do, and
takes all of it away again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import cases, containers, network, report
from benchmarks.measuring import Result, measure
from benchmarks.repositories import generated
from tests.support.shared_setup import person_with_clsecure

GROUPS = ("quick", "sessions", "large", "containers", "gateway")
_GATEWAY_RUNS = 100


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; the exit status says nothing about the times."""
    options = _options(argv)
    if os.geteuid() != 0:
        sys.stderr.write("the benchmark needs root: it makes an account and worker accounts\n")
        return 125
    results = _measure(options)
    goals = report.goals(results)
    sys.stdout.write(report.table(results, goals))
    if options.json is not None:
        document = report.document(results, goals, runs=options.runs, files=options.files)
        options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each case; their median counts")
    parser.add_argument("--files", type=int, default=40_000, help="in the repository with many files")
    parser.add_argument("--only", choices=GROUPS, action="append", help="instead of everything")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"), help="where to write the result")
    return parser.parse_args(argv)


def _measure(options: argparse.Namespace) -> Mapping[str, Result]:
    wanted = options.only or GROUPS
    with ExitStack() as stack:
        person = stack.enter_context(person_with_clsecure(f"csb{os.getpid():06d}"))
        small = person.repository("small")
        measured = cases.floors(person, small)
        if "quick" in wanted:
            measured += cases.commands(person)
        if "sessions" in wanted:
            measured += cases.sessions(person, small)
        if "large" in wanted:
            _tell(f"making a repository of {options.files} files")
            measured += cases.large(person, generated(person, "large", options.files))
        if "containers" in wanted:
            _tell("building the image, and loading it into the engines")
            measured += stack.enter_context(containers.cases(person, small))
        results = measure(measured, runs=options.runs, tell=_tell)
        if "gateway" in wanted:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            quick, bulk = stack.enter_context(network.running(directory))
            _tell(f"asking through the gateway, {_GATEWAY_RUNS} times")
            results |= measure(quick, runs=_GATEWAY_RUNS, tell=lambda _: None)
            results |= measure(bulk, runs=options.runs, tell=_tell)
    return results


def _tell(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

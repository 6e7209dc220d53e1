"""What becomes of a session whose isolation did not hold, as a plain person sees it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.support import schema, sweep
from tests.support.person import Person
from tests.support.sabotage import REMAINS, Patch, Scene, replaced
from tests.support.terminals import answer, at_terminal, ended

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
_numbers = itertools.count()
FAILED = "capabilities: expected none; observed CapEff=0000000000000080"


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"verified{next(_numbers)}")


def session(person: Person, repo: Path, *args: str) -> Any:
    argv = ("--agent", "demo", "--no-network", "--output", "json", *args)
    done = person.clsecure(*argv, "--", "sh", "-c", "echo new >new.txt", cwd=repo).check()
    document = done.json()
    schema.check(document, schema.load("result"))
    return document


def record(person: Person, repo: Path) -> Path:
    """Return the file with the state of the only session of a repository."""
    found = person.home.glob(".local/state/clsecure/sessions/*/session.json")
    (one,) = [file for file in found if json.loads(file.read_text())["project"] == str(repo)]
    return one


@pytest.fixture
def broken(person: Person, repo: Path) -> str:
    """A kept session of which a check failed; its name."""
    session(person, repo, "--on-finish", "keep")
    file = record(person, repo)
    file.write_text(json.dumps({**json.loads(file.read_text()), "failed_checks": [FAILED]}))
    return file.parent.name


def branches(person: Person, repo: Path) -> list[str]:
    listed = person.git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines()
    return [name for name in listed if name != "main"]


def test_a_session_says_how_every_check_stood(person: Person, repo: Path) -> None:
    verification = session(person, repo, "--on-finish", "import")["verification"]
    assert verification["status"] == "passed"
    assert {check["check_id"] for check in verification["checks"]} >= {
        "account",
        "seccomp",
        "mounts",
        "canary-home",
        "processes-left",
    }
    assert json.loads(record(person, repo).read_text())["verified"] is True


def test_work_of_a_broken_isolation_is_not_imported(person: Person, repo: Path, broken: str) -> None:
    done = person.clsecure("import", broken, "--output", "json", cwd=repo)
    assert done.returncode == 123
    error = done.json()["error"]
    assert FAILED in error["details"]
    assert "--import-anyway" in error["resolution"]
    assert branches(person, repo) == []
    # What it is can be looked at all the same.
    assert b"new.txt" in person.clsecure("diff", broken, cwd=repo).check().stdout


def test_a_session_in_which_a_check_fails_brings_nothing_home(person: Person, repo: Path) -> None:
    script = "echo new >new.txt; cp /bin/true ~/raised; chmod 4755 ~/raised"
    argv = ("--agent", "demo", "--no-network", "--output", "json", "--on-finish", "import")
    done = person.clsecure(*argv, "--", "sh", "-c", script, cwd=repo)
    document = done.json()
    schema.check(document, schema.load("result"))
    assert done.returncode == document["exit_code"] == 123
    failed = {c["check_id"] for c in document["verification"]["checks"] if c["status"] == "fail"}
    assert failed == {"special-files"}
    assert (document["import"], document["kept"]) == (None, True)
    assert branches(person, repo) == []
    said = person.clsecure("record", "show", document["session_id"], "--output", "json", cwd=repo).json()
    assert said["statement"]["predicate"]["decisions"][-1]["action"] == "refuse"
    assert said["statement"]["predicate"]["verification"]["failed_before"] == []
    assert person.clsecure("import", record(person, repo).parent.name, cwd=repo).returncode == 123
    assert branches(person, repo) == []


def test_what_fails_when_a_session_is_looked_at_later_counts_as_well(person: Person, repo: Path) -> None:
    document = session(person, repo, "--on-finish", "keep")
    file = record(person, repo)
    name = file.parent.name
    before = file.read_bytes()
    person.clsecure("verify", name, cwd=repo).check()
    assert file.read_bytes() == before
    # What the user does after the session is nobody else's.
    hook = repo / ".git/hooks/post-checkout"
    person.write(hook, b"#!/bin/sh\n")
    hook.chmod(0o755)
    person.clsecure("verify", name, cwd=repo).check()

    planted = Path(f"~{document['worker_user']}").expanduser() / "raised"
    planted.write_bytes(b"#!/bin/sh\n")
    planted.chmod(0o4755)
    done = person.clsecure("verify", name, "--output", "json", cwd=repo)
    assert (done.returncode, done.json()["status"]) == (123, "failed")
    planted.unlink()
    done = person.clsecure("verify", name, "--output", "json", cwd=repo)
    assert (done.returncode, done.json()["status"]) == (0, "passed")
    assert "failed already: special-files" in done.errors
    for _ in range(2):
        assert person.clsecure("import", name, cwd=repo).returncode == 123
    assert branches(person, repo) == []
    said = person.clsecure("record", "show", document["session_id"], "--output", "json", cwd=repo).json()
    schema.check(said["statement"], schema.load("record"))
    checks = said["statement"]["predicate"]["verification"]
    assert checks["failed"] == 0
    assert [line.split(":")[0] for line in checks["failed_before"]] == ["special-files"]
    assert len(said["statement"]["predicate"]["decisions"]) == 1


def test_results_that_can_not_be_written_are_an_error_before_anything_is_checked(
    person: Person, repo: Path
) -> None:
    done = person.clsecure("verify", "--junit", str(repo / "no/such/file"), cwd=repo)
    assert done.returncode == 125
    assert "can't be written" in done.errors
    assert done.stdout == b""


def test_nobody_insists_on_it_without_a_terminal(person: Person, repo: Path, broken: str) -> None:
    done = person.clsecure("import", broken, "--import-anyway", cwd=repo)
    assert done.returncode == 125
    assert b"terminal" in done.stderr
    assert branches(person, repo) == []


def test_whoever_types_the_sessions_tag_gets_the_work_and_that_is_written_down(
    person: Person, repo: Path, broken: str
) -> None:
    tag = json.loads(record(person, repo).read_text())["session_id"][-6:]
    argv = person.clsecure_argv("import", broken, "--import-anyway")
    with at_terminal(person, argv, cwd=repo) as child:
        answer(child, "not known", "yes", then=pexpect.EOF)
        assert ended(child) == 125
    assert branches(person, repo) == []
    with at_terminal(person, argv, cwd=repo) as child:
        child.expect("CapEff=0000000000000080")
        answer(child, "not known", tag, then=pexpect.EOF)
        assert ended(child) == 0
    assert len(branches(person, repo)) == 1
    log = (record(person, repo).parent / "events.jsonl").read_text()
    events = [json.loads(line) for line in log.splitlines()]
    assert [event["failed"] for event in events if event["event"] == "import_anyway"] == [[FAILED]]
    run = json.loads(record(person, repo).read_text())["session_id"]
    said = person.clsecure("record", "show", run, "--output", "json", cwd=repo).json()["statement"][
        "predicate"
    ]
    assert (said["verification"]["failed"], said["verification"]["failed_before"]) == (0, [FAILED])
    assert said["verification"]["import_anyway"] is True


def test_going_on_with_such_a_session_does_not_make_it_good(person: Person, repo: Path, broken: str) -> None:
    argv = ("--agent", "demo", "--no-network", "--output", "json", "--resume", "--on-finish", "import")
    done = person.clsecure(*argv, "--", "true", cwd=repo)
    document = done.json()
    schema.check(document, schema.load("result"))
    assert done.returncode == document["exit_code"] == 123
    assert document["verification"]["status"] == "failed"
    assert document["verification"]["failed_before"] == [FAILED]
    assert document["import"] is None
    assert document["kept"] is True
    assert any(FAILED in warning for warning in document["warnings"])
    assert person.clsecure("import", broken, cwd=repo).returncode == 123


def test_what_could_not_be_looked_at_after_the_end_is_a_warning(
    person: Person, repo: Path, tmp_path: Path
) -> None:
    """Of a session, and of an import that makes up for the end of one that was cut short."""
    blind = replaced(
        Patch(file=REMAINS, old="OUTSIDE_SECONDS = 60.0, 0.25", new="OUTSIDE_SECONDS = 60.0, -1.0")
    )
    said = "not checked after the end: files-outside (none found, but there was more than could be looked at)"
    with blind(Scene(person=person, mode="user", place=tmp_path)) as victim:
        document = session(victim, repo, "--on-finish", "keep")
        assert document["verification"]["status"] == "passed"
        assert said in document["warnings"]
        file = record(person, repo)
        assert json.loads(file.read_text())["verified"] is True
        file.write_text(json.dumps({**json.loads(file.read_text()), "verified": False}))
        late = victim.clsecure("import", file.parent.name, "--output", "json", cwd=repo).check()
        assert said in late.json()["warnings"]
        assert said in late.errors

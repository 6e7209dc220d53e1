"""Session hooks, the examples that ship, and notifications, in real sessions of a plain account."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import schema, sweep
from tests.support.person import CHECKOUT, Person
from tests.support.terminals import Seat

pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.xdist_group("session_hooks")]

_numbers = itertools.count()
_CHANGE = (
    "--",
    "sh",
    "-c",
    "echo more >>README.md; mkdir -p .github/workflows; echo x >.github/workflows/x.yml",
)


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repository(person: Person) -> Path:
    return person.repository(f"hooked{next(_numbers)}")


@pytest.fixture
def hooks(person: Person) -> Iterator[Path]:
    path = person.home / ".config" / "clsecure" / "hooks"
    person.run(["mkdir", "-p", str(path)]).check()
    yield path
    person.run(["rm", "-r", str(path)]).check()


def recording(person: Person, hooks: Path, name: str, more: str = "") -> Path:
    out = person.home / f"{name}-{next(_numbers)}.json"
    person.write(hooks / name, f"#!/bin/sh\ncat >{out}\n{more}\n".encode(), mode=0o755)
    return out


def session(person: Person, repository: Path, *args: str, **options):
    return person.clsecure("--agent", "demo", "--no-network", *args, cwd=repository, **options)


def test_each_hook_reads_what_happened(person, repository, hooks) -> None:
    before, after = recording(person, hooks, "pre-session"), recording(person, hooks, "post-session")
    imported = recording(person, hooks, "post-import", f"cd {repository} && git branch --list 'claude/*'")
    done = session(person, repository, "--output", "json", "--on-finish", "import", *_CHANGE).check()
    result = done.json()
    begun = json.loads(before.read_text())
    assert begun["session_id"] == result["session_id"]
    assert (begun["project"], begun["mode"], begun["network"]) == (str(repository), "namespace", "none")
    assert json.loads(after.read_text()) == result
    schema.check(json.loads(after.read_text()), schema.load("result"))
    told = json.loads(imported.read_text())
    assert told["import"] == result["import"]
    assert f"post-import:   {result['import']['branch']}" in done.errors, "the branch was there by then"


def test_a_kept_session_that_is_imported_later_has_its_hook_too(person, repository, hooks) -> None:
    imported = recording(person, hooks, "post-import")
    session(person, repository, "--on-finish", "keep", *_CHANGE).check()
    assert not imported.exists()
    done = person.clsecure("import", "default", "--output", "json", cwd=repository).check()
    told = json.loads(imported.read_text())
    assert told["import"] == done.json()["import"]
    assert (told["project"], told["session"]) == (str(repository), "default")


def test_a_session_that_is_refused_leaves_nothing(person, repository, hooks) -> None:
    person.write(hooks / "pre-session", b"#!/bin/sh\necho no agents today\nexit 1\n", mode=0o755)
    after = recording(person, hooks, "post-session")
    accounts = person.worker_accounts()
    done = session(person, repository, *_CHANGE)
    assert done.returncode == 125
    assert "no agents today" in done.errors
    assert person.worker_accounts() == accounts
    assert not after.exists()


def test_a_session_that_fails_is_told_as_such(person, repository, hooks) -> None:
    after = recording(person, hooks, "post-session")
    done = session(person, repository, "--", "/nowhere/program")
    assert done.returncode == 125
    told = json.loads(after.read_text())
    assert told["project"] == str(repository)
    assert "could not be started" in told["error"]["brief"]


def test_a_hook_that_fails_afterwards_changes_no_result(person, repository, hooks) -> None:
    for name in ("post-session", "post-import"):
        person.write(hooks / name, b"#!/bin/sh\nprintf 'a\\033]52;c;x\\007b'\nexit 9\n", mode=0o755)
    done = session(person, repository, "--output", "json", "--on-finish", "import", *_CHANGE)
    assert done.returncode == 0
    assert done.json()["import"]
    assert done.errors.count("failed with status 9") == 2
    assert "a\\x1b]52" in done.errors
    assert "\x1b" not in done.errors


# ------------------------------------------------------------ the examples


def install(person: Person, hooks: Path, example: str, name: str) -> None:
    person.write(hooks / name, (CHECKOUT / "hooks" / "session" / example).read_bytes(), mode=0o755)


def put_first(person: Person, name: str, script: str) -> dict[str, str]:
    """Put a program of the person's before all others on the PATH."""
    directory = person.home / f"bin{next(_numbers)}"
    person.run(["mkdir", str(directory)]).check()
    person.write(directory / name, f"#!/bin/sh\n{script}\n".encode(), mode=0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


def test_the_log_has_a_line_per_session(person, repository, hooks) -> None:
    install(person, hooks, "log-sessions", "post-session")
    session(person, repository, "--on-finish", "discard", "--", "sh", "-c", "exit 3")
    session(person, repository, "--on-finish", "import", "--fresh", *_CHANGE).check()
    lines = (person.home / ".local/state/clsecure/sessions.log").read_text().splitlines()
    mine = [line for line in lines if f" {repository} (default)" in line]
    assert mine[0].endswith("status 3, no branch")
    assert "status 0, claude/" in mine[1]


def test_findings_come_to_the_desktop(person, repository, hooks) -> None:
    install(person, hooks, "notify-findings", "post-import")
    shown = person.home / f"shown{next(_numbers)}"
    env = put_first(person, "notify-send", f'printf "%s\\n" "$@" >{shown}')
    script = (
        'mkdir -p .vscode; echo \'{"tasks": [{"runOptions": {"runOn": "folderOpen"}}]}\' >.vscode/tasks.json'
    )
    done = session(
        person, repository, "--on-finish", "import", "--output", "json", "--", "sh", "-c", script, env=env
    )
    grave = [f for f in done.check().json()["import"]["findings"] if f["severity"] == "high"]
    assert grave, "nothing grave was found: the example has nothing to show"
    assert "1 to look at" in shown.read_text() or f"{len(grave)} to look at" in shown.read_text()


def test_a_pull_request_is_opened_only_when_asked(person, repository, hooks) -> None:
    install(person, hooks, "open-pull-request", "post-import")
    remote = person.home / f"remote{next(_numbers)}.git"
    person.run(["git", "init", "--quiet", "--bare", str(remote)]).check()
    person.git(repository, "remote", "add", "origin", str(remote))
    asked = person.home / f"asked{next(_numbers)}"
    env = put_first(person, "gh", f'echo "$@" >>{asked}')
    change = ("--on-finish", "import", "--output", "json", "--fresh", "--", "sh", "-c")
    session(person, repository, *change, "echo one >>README.md", env=env).check()
    assert not asked.exists()
    assert person.git(remote, "branch") == ""
    done = session(person, repository, *change, "echo two >>README.md", env={**env, "OPEN_PR": "1"}).check()
    branch = done.json()["import"]["branch"]
    assert branch in person.git(remote, "branch")
    assert asked.read_text().startswith(f"pr create --draft --head={branch}")


def test_a_hook_may_forbid_what_a_session_reaches(person, repository, hooks) -> None:
    install(person, hooks, "working-hours", "pre-session")
    session(person, repository, "--on-finish", "discard", *_CHANGE).check()
    # At another hour than this machine's.
    clock = "import sys, time; time.localtime = lambda: time.struct_time((2026, 1, 1, 23, 0, 0, 0, 0, 0))"
    script = [f"{clock}; exec(open(sys.argv[1]).read())", str(hooks / "pre-session")]
    night = person.run(["python3", "-I", "-c", *script], input=b'{"network": "full"}')
    assert night.returncode == 1
    assert "no full network at night" in night.text


# ------------------------------------------------------------ notifications


def settings(person: Person, text: str) -> Path:
    path = person.home / ".config" / "clsecure" / "config"
    person.run(["mkdir", "-p", str(path.parent)]).check()
    person.write(path, text.encode())
    return path


def test_the_question_at_the_end_rings_and_calls_a_program_once(person, repository) -> None:
    out, program = person.home / f"called{next(_numbers)}", person.home / f"call{next(_numbers)}"
    person.write(program, f"#!/bin/sh\ncat >>{out}; env >{out}.env\n".encode(), mode=0o755)
    written = settings(person, f"notify = bell, osc9\nnotify_command = {program}\nnotify_after = 0\n")
    argv = person.clsecure_argv("--agent", "demo", "--no-network", *_CHANGE)
    try:
        with Seat(person, argv, cwd=repository, env={"A_SECRET": "x"}) as at:
            at.expect(rf"\x1b\]9;clsecure: {repository.name}: waits for your answer\x1b\\\x07")
            at.answer(r"Your choice \[k\] ", "k")
            assert at.end() == 0
    finally:
        written.unlink()
    assert at.seen.count(b"\x1b]9;") == 1
    assert json.loads(out.read_text())["waiting"] is True
    assert "A_SECRET" not in Path(f"{out}.env").read_text()


def test_the_end_of_a_long_session_is_told_with_its_result(person, repository) -> None:
    out, program = person.home / f"called{next(_numbers)}", person.home / f"call{next(_numbers)}"
    person.write(program, f"#!/bin/sh\ncat >>{out}\n".encode(), mode=0o755)
    written = settings(person, f"notify_command = {program}\nnotify_after = 0\n")
    try:
        done = session(person, repository, "--output", "json", "--on-finish", "import", *_CHANGE).check()
        assert json.loads(out.read_text()) == done.json()
        out.unlink()
        settings(person, f"notify_command = {program}\nnotify_after = 1h\n")
        session(person, repository, "--on-finish", "discard", "--fresh", *_CHANGE).check()
        assert not out.exists(), "a short session calls nobody"
        program.chmod(0o777)
        refused = session(person, repository, *_CHANGE)
    finally:
        written.unlink()
    assert refused.returncode == 125
    assert "notify_command can't be run" in refused.errors

"""``.clsecure/on-cleanup`` at a session's end and before its workspace goes, in real sessions."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sweep
from tests.support.person import Outcome, Person
from tests.support.registries import Registries

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

_numbers = itertools.count()
both_modes = pytest.mark.parametrize("mode", ["user", "namespace"])
OFFLINE = ("--agent", "demo", "--no-network")
# What a hook knows, one line per run; the workspace's own file comes home, the home's says what happened.
TELL = """#!/bin/sh
set -eu
[ "$PWD" = "$CLSECURE_PROJECT_DIR" ] && [ "$HOME" = "$CLSECURE_WORKER_HOME" ]
[ "$(id -un)" = "$CLSECURE_WORKER_USER" ]
echo "$CLSECURE_CLEANUP_LEVEL of $CLSECURE_SESSION" >>"$CLSECURE_PROJECT_DIR/cleaned.txt"
echo "hook says $CLSECURE_CLEANUP_LEVEL"
"""


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"cleanup{next(_numbers)}")


def hook(person: Person, repo: Path, text: str, *, mode: int = 0o755) -> None:
    """Commit a hook."""
    person.run(["mkdir", "-p", str(repo / ".clsecure")]).check()
    person.write(repo / ".clsecure/on-cleanup", text.encode(), mode=mode)
    person.git(repo, "add", ".")
    person.git(repo, "commit", "--quiet", "-m", "A hook")


def session(person: Person, repo: Path, script: str, *args: str, **options: Any) -> tuple[Any, Outcome]:
    done = person.clsecure(
        *OFFLINE, "--output", "json", *args, "--", "sh", "-ec", script, cwd=repo, **options
    ).check()
    return done.json(), done


def log_of(person: Person) -> str:
    """Return what all hooks of kept sessions said."""
    logs = (person.home / ".local/state/clsecure/sessions").glob("*/cleanup.log")
    return "".join(path.read_text() for path in logs)


@both_modes
def test_a_hook_runs_at_the_end_and_what_it_writes_comes_home(person: Person, repo: Path, mode: str) -> None:
    hook(person, repo, TELL)
    options = ("--mode", mode, "--session", "tidy", "--on-finish", "import")
    document, _ = session(person, repo, "echo work >work.txt", *options)
    branch = document["import"]["branch"]
    assert person.git(repo, "show", f"{branch}:cleaned.txt") == "stop of tidy"
    assert person.git(repo, "show", f"{branch}:work.txt") == "work"
    assert document["warnings"] == []
    assert document["exit_code"] == 0
    assert "hook says stop" in log_of(person)


@both_modes
def test_a_hook_runs_before_a_workspace_is_removed_discarded_or_replaced(
    person: Person, repo: Path, mode: str
) -> None:
    """A failing one shows by its words that it ran; what was to be removed is gone all the same."""
    hook(person, repo, "#!/bin/sh\n[ $CLSECURE_CLEANUP_LEVEL = stop ] || { echo purging; exit 9; }\n")
    said = "failed with status 9: purging"
    _, done = session(person, repo, "true", "--mode", mode, "--on-finish", "discard")
    assert said in done.errors
    document, done = session(person, repo, "true", "--mode", mode, "--on-finish", "keep")
    assert said not in done.errors
    document, done = session(person, repo, "true", "--mode", mode, "--on-finish", "keep", "--fresh")
    assert said in done.errors
    worker = document["worker_user"]
    removed = person.clsecure("cleanup", "--yes", worker).check()
    assert said in removed.errors
    assert worker not in [entry["name"] for entry in person.worker_accounts()]


def test_a_discarded_workspace_that_is_removed_later_has_nothing_left_to_clean(
    person: Person, repo: Path
) -> None:
    hook(person, repo, "#!/bin/sh\nexit 9\n")
    document, _ = session(person, repo, "true", "--on-finish", "discard")
    removed = person.clsecure("cleanup", "--yes", document["worker_user"]).check()
    assert "warning" not in removed.errors


@both_modes
def test_a_session_that_was_killed_is_cleaned_up_at_its_removal(
    person: Person, repo: Path, mode: str
) -> None:
    hook(person, repo, "#!/bin/sh\necho level $CLSECURE_CLEANUP_LEVEL; exit 9\n")
    argv = person.clsecure_argv(*OFFLINE, "--mode", mode, "--", "sh", "-c", "echo up; exec sleep 600")
    process = person.spawn(argv, cwd=repo, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
    (entry,) = [e for e in person.worker_accounts() if e["project"] == str(repo)]
    deadline = time.monotonic() + 30
    while True:  # until the helper has ended what is left
        removed = person.clsecure("cleanup", "--yes", str(entry["name"]))
        if removed.returncode == 0 or time.monotonic() > deadline:
            break
    assert "failed with status 9: level purge" in removed.check().errors


def test_the_hook_has_the_sessions_network_at_the_end_and_none_at_removal(person: Person, repo: Path) -> None:
    with Registries() as server:
        url = f"http://host.clsecure.internal:{server.port}/simple/clsecure-sample/"
        curl = f"curl --silent --max-time 20 --output /dev/null --write-out '%{{http_code}}\\n' {url}"
        hook(person, repo, f"#!/bin/sh\n{curl}\nenv | grep -ciE 'anthropic|_token'\nexit 1\n")
        options = ("--allow-domain", f"localhost:{server.port}", "--on-finish", "keep")
        done = person.clsecure(
            "--agent", "demo", *options, "--", "true", cwd=repo, env={"ANTHROPIC_API_KEY": "sk-key"}
        ).check()
        assert "failed with status 1: 200 | 0" in done.errors
        asked = len(server.log)
        (entry,) = [e for e in person.worker_accounts() if e["project"] == str(repo)]
        removed = person.clsecure("cleanup", "--yes", str(entry["name"])).check()
        assert "failed with status 1: 000 | 0" in removed.errors
        assert len(server.log) == asked


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("ln -sf /bin/true .clsecure/on-cleanup", "link"),
        ("mv .clsecure other; ln -s other .clsecure", "link"),
        ("chmod -x .clsecure/on-cleanup", "not executable"),
        ("rm .clsecure/on-cleanup; mkdir .clsecure/on-cleanup", "not a regular file"),
        ("rm .clsecure/on-cleanup; mkfifo .clsecure/on-cleanup", "not a regular file"),
        ("rm -r .clsecure; echo >.clsecure", "link"),
    ],
)
def test_what_is_no_program_inside_the_project_is_not_run(
    person: Person, repo: Path, plant: str, words: str
) -> None:
    hook(person, repo, "#!/bin/sh\nexit 9\n")
    document, _ = session(person, repo, plant, "--on-finish", "keep")
    (warning,) = [w for w in document["warnings"] if "on-cleanup" in w and "stays behind" not in w]
    assert "was not run" in warning
    assert words in warning


def test_a_hook_that_the_agent_took_away_is_not_missed(person: Person, repo: Path) -> None:
    hook(person, repo, "#!/bin/sh\nexit 9\n")
    document, _ = session(person, repo, "rm .clsecure/on-cleanup", "--on-finish", "keep")
    assert document["warnings"] == []


def test_a_hook_that_the_agent_adds_counts_from_the_next_workspace_on(person: Person, repo: Path) -> None:
    add = (
        "mkdir .clsecure; printf '#!/bin/sh\\nexit 9\\n' >.clsecure/on-cleanup; chmod +x .clsecure/on-cleanup"
    )
    document, _ = session(person, repo, add, "--on-finish", "import")
    assert document["warnings"] == []
    assert "cleanup" not in document["phases"]
    person.git(repo, "merge", "--quiet", document["import"]["branch"])
    document, _ = session(person, repo, "true", "--on-finish", "discard", "--fresh")
    assert any("failed with status 9" in warning for warning in document["warnings"])


def test_a_hook_without_a_first_line_is_the_shells(person: Person, repo: Path) -> None:
    hook(person, repo, "echo by the shell; exit 4\n")
    document, _ = session(person, repo, "true", "--on-finish", "keep")
    assert any("failed with status 4: by the shell" in warning for warning in document["warnings"])


def test_an_agent_that_failed_is_cleaned_up_after_and_its_status_stays(person: Person, repo: Path) -> None:
    hook(person, repo, "#!/bin/sh\necho cleaned; exit 9\n")
    done = person.clsecure(*OFFLINE, "--on-finish", "keep", "--", "sh", "-c", "exit 42", cwd=repo)
    assert done.returncode == 42
    assert "failed with status 9: cleaned" in done.errors

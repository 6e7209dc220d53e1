"""Programs of the user's around a session: what is run, what it gets, and what it can't do to a session."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from clsecure.errors import UsageError
from clsecure.session import programs
from clsecure.session.hooks import Hook, SessionHooks
from clsecure.session.ui import SilentUi
from tests.support.leftovers import wait_until

DOCUMENT = {"session_id": "20260101-000000-abcdef", "project": "/home/u/p\x1b]52;c;cm0K\x07"}


class Listening(SilentUi):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def ui() -> Listening:
    return Listening()


@pytest.fixture
def hooks(tmp_path: Path, ui: Listening) -> SessionHooks:
    directory = tmp_path / "hooks"
    directory.mkdir(mode=0o755)
    (tmp_path / "home").mkdir()
    environ = {"PATH": os.environ["PATH"], "MINE": "from the user"}
    return SessionHooks(directory=directory, environ=environ, home=tmp_path / "home", ui=ui)


def put(hooks: SessionHooks, hook: Hook, script: str, *, mode: int = 0o755) -> Path:
    assert hooks.directory is not None
    path = hooks.directory / hook
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def test_a_hook_gets_the_document_the_environment_and_the_home(hooks, ui, tmp_path) -> None:
    out = tmp_path / "out"
    put(hooks, Hook.POST_SESSION, f'cat >{out}; echo "$MINE $PWD"')
    hooks.after(Hook.POST_SESSION, DOCUMENT)
    assert json.loads(out.read_text()) == DOCUMENT
    assert "\x1b" not in out.read_text(), "the document is ASCII, escapes are escaped"
    assert ui.notes == [f"post-session: from the user {hooks.home}"]
    assert ui.warnings == []


def test_where_there_is_no_hook_nothing_happens(hooks, ui) -> None:
    hooks.before(DOCUMENT)
    for hook in Hook:
        hooks.after(hook, DOCUMENT)
    assert ui.notes + ui.warnings == []


def test_a_pre_session_hook_refuses_with_its_own_words(hooks) -> None:
    put(hooks, Hook.PRE_SESSION, "echo not on a Friday >&2; exit 3")
    with pytest.raises(UsageError, match="failed with status 3") as refused:
        hooks.before(DOCUMENT)
    assert refused.value.details == "not on a Friday"


@pytest.mark.parametrize("hook", [Hook.POST_SESSION, Hook.POST_IMPORT])
def test_another_hook_that_fails_is_a_warning(hooks, ui, hook) -> None:
    put(hooks, hook, "exit 4")
    hooks.after(hook, DOCUMENT)
    assert ui.warnings == [f"the {hook} hook failed with status 4"]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o644])
def test_what_others_could_have_written_or_cant_be_run_is_not_run(hooks, ui, tmp_path, mode) -> None:
    out = tmp_path / "ran"
    for hook in Hook:
        put(hooks, hook, f"touch {out}", mode=mode)
    with pytest.raises(UsageError, match="can't be run"):
        hooks.before(DOCUMENT)
    hooks.after(Hook.POST_SESSION, DOCUMENT)
    assert len(ui.warnings) == 1
    assert not out.exists()


def test_a_directory_that_others_may_write_runs_nothing(hooks, ui, tmp_path) -> None:
    out = tmp_path / "ran"
    put(hooks, Hook.POST_SESSION, f"touch {out}")
    hooks.directory.chmod(0o777)
    hooks.after(Hook.POST_SESSION, DOCUMENT)
    assert "others could change" in ui.warnings[0]
    assert not out.exists()


@pytest.mark.parametrize("kind", ["directory", "fifo", "nowhere"])
def test_what_is_no_file_is_not_run(hooks, kind) -> None:
    path = hooks.directory / Hook.PRE_SESSION
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            path.symlink_to("/nowhere")
    with pytest.raises(UsageError, match="can't be run"):
        hooks.before(DOCUMENT)


def test_a_link_of_the_users_is_followed(hooks, ui, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("#!/bin/sh\necho linked\n")
    elsewhere.chmod(0o755)
    (hooks.directory / Hook.POST_IMPORT).symlink_to(elsewhere)
    hooks.after(Hook.POST_IMPORT, DOCUMENT)
    assert ui.notes == ["post-import: linked"]


def run(tmp_path: Path, script: str, seconds: float = 30.0) -> programs.Ended:
    return programs.run(("/bin/sh", "-c", script), DOCUMENT, environ={"PATH": os.environ["PATH"]},
                        home=tmp_path, seconds=seconds)  # fmt: skip


def state_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_a_program_that_hangs_is_ended_with_all_of_its_group(tmp_path) -> None:
    begun = time.monotonic()
    ended = run(tmp_path, "trap '' TERM; sleep 600 & echo $! >child; wait; sleep 600", seconds=2.0)
    assert ended.status is None
    assert time.monotonic() - begun < 60
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: state_of(child) in (None, "Z"), "what it had started is dead")


def test_what_a_program_leaves_running_delays_nothing(tmp_path) -> None:
    begun = time.monotonic()
    ended = run(tmp_path, "sleep 600 & echo $! >child; echo said")
    assert (ended.status, ended.lines) == (0, ("said",))
    assert time.monotonic() - begun < 60
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_what_a_program_says_is_bounded(tmp_path) -> None:
    ended = run(tmp_path, "yes | head -c 10000000; head -c 100000 /dev/zero | tr '\\0' x")
    assert ended.status == 0
    assert sum(len(line) + 1 for line in ended.lines) <= 64 * 1024 + 1
    assert max(map(len, ended.lines)) <= 2000


def test_a_large_document_that_nobody_reads_makes_nobody_wait(tmp_path) -> None:
    ended = programs.run(("/bin/true",), {"x": "y" * 5_000_000}, environ={}, home=tmp_path, seconds=30)
    assert ended.status == 0

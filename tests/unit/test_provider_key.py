"""A provider's key from a variable, a file or a command, each as if somebody hostile had a hand in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from clsecure import logs
from clsecure.egress import keys
from clsecure.egress.keys import provider_key
from clsecure.errors import EgressError
from clsecure.session.ui import SilentUi
from clsecure.settings.structured import KeySource, ProviderTable
from clsecure.settings.values.services import Secret
from tests.support.leftovers import started
from tests.support.person import CHECKOUT

KEY = "sk-CANARY-of-the-provider"


class Ui(SilentUi):
    """Notes what is shown."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def phase(self, text: str) -> Iterator[None]:
        self.said.append(text)
        yield


def fetched(
    home: Path,
    environ: dict[str, str] | None = None,
    *,
    ui: Ui | None = None,
    seconds: float = 20.0,
    **source: Any,
) -> str:
    served = ProviderTable(name="mine", base_url="https://a.example", key=KeySource(**source))
    exclude = (home / "repository",)
    return provider_key(
        served, environ=environ or {}, home=home, exclude=exclude, ui=ui or Ui(), seconds=seconds
    )


def refused(home: Path, environ: dict[str, str] | None = None, **source: Any) -> str:
    with pytest.raises(EgressError) as caught:
        fetched(home, environ, **source)
    error = caught.value
    said = f"{error.brief} | {error.details} | {error.resolution}"
    assert KEY not in said
    return said


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# ------------------------------------------------------------ variables


def test_a_variable_holds_it(tmp_path: Path) -> None:
    assert fetched(tmp_path, {"MINE": f" {KEY}\n"}, variable="MINE") == KEY


def test_a_key_is_never_logged(tmp_path: Path) -> None:
    fetched(tmp_path, {"MINE": f"{KEY}-logged"}, variable="MINE")
    assert f"{KEY}-logged" not in str(logs.redact(f"said {KEY}-logged"))


@pytest.mark.parametrize("environ", [{}, {"MINE": ""}, {"MINE": "  "}])
def test_an_unset_variable_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    assert "MINE is not set | None | export MINE=" in refused(tmp_path, environ, variable="MINE")


@pytest.mark.parametrize("value", [f"{KEY}\r\nx: y", f"{KEY} b", f"{KEY}\x1b[2J", "\N{SNOWMAN}", "a" * 16385])
def test_what_is_no_key_is_refused_unseen(tmp_path: Path, value: str) -> None:
    assert "the variable MINE holds no key" in refused(tmp_path, {"MINE": value}, variable="MINE")


def test_a_key_of_the_settings_stands_behind_the_variable(tmp_path: Path) -> None:
    literal = Secret(value="sk-of-the-settings")
    assert fetched(tmp_path, {}, variable="KIMI_API_KEY", literal=literal) == "sk-of-the-settings"
    assert fetched(tmp_path, {"KIMI_API_KEY": KEY}, variable="KIMI_API_KEY", literal=literal) == KEY


# ------------------------------------------------------------ files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\nand more\n")
    path.chmod(0o600)
    return path


def test_a_file_holds_it_on_its_first_line(file: Path) -> None:
    assert fetched(file.parent, file="~/key") == KEY
    file.chmod(0o400)
    assert fetched(file.parent, file=str(file)) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660, 0o610])
def test_a_file_that_others_have_rights_to_is_refused_with_the_command_that_helps(
    file: Path, mode: int
) -> None:
    file.chmod(mode)
    assert f"chmod 600 {file}" in refused(file.parent, file=str(file))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"from {tmp_path}/none: No such file" in refused(tmp_path, file="~/none")


def test_a_link_is_not_followed(file: Path) -> None:
    (file.parent / "link").symlink_to(file)
    assert "it is a link" in refused(file.parent, file="~/link")


def test_a_file_in_the_repository_is_refused_since_it_would_go_inside(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/key").write_text(KEY)
    (tmp_path / "repository/key").chmod(0o600)
    (tmp_path / "linked").symlink_to(tmp_path / "repository")
    for place in ("~/repository/key", "~/linked/key"):
        assert "it lies in the repository" in refused(tmp_path, file=place)


def test_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "no regular file" in refused(tmp_path, file="~/fifo")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev", "/proc/self/environ/x"])
def test_what_is_no_file_is_refused(tmp_path: Path, place: str) -> None:
    assert "can't be read from" in refused(tmp_path, file=place)


def test_a_large_file_is_not_read(file: Path) -> None:
    os.truncate(file, 100 << 20)
    began = time.monotonic()
    assert "larger than 16 KiB" in refused(file.parent, file=str(file))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("content", [b"", b"\n" + KEY.encode(), b"a b", b"\xff\xfe", b"a\0b", b"\x1b]0;x"])
def test_a_file_without_a_key_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "holds no key" in refused(file.parent, file=str(file))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_somebody_elses_file_is_refused(file: Path) -> None:
    os.chown(file, 65534, 65534)
    assert "belongs to somebody else" in refused(file.parent, file=str(file))


# ------------------------------------------------------------ commands


def test_a_command_prints_it_on_its_first_line(tmp_path: Path) -> None:
    ui = Ui()
    program(tmp_path / "bin/pass", f'[ "$1 $2" = "show llm" ] && echo {KEY} && echo user: ada')
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    assert fetched(tmp_path, environ, ui=ui, command=("pass", "show", "llm")) == KEY
    assert ui.said == ["asking pass for the key of mine"]


def test_a_command_starts_in_the_home_with_the_users_environment(tmp_path: Path) -> None:
    program(tmp_path / "bin/where", f'[ "$PWD" = "$(pwd)" ] && [ "$PWD" = {tmp_path} ] && echo "$MORE"')
    environ = {"PATH": "/usr/bin:/bin", "MORE": KEY}
    assert fetched(tmp_path, environ, command=("~/bin/where",)) == KEY


def test_a_command_is_no_shell(tmp_path: Path) -> None:
    assert fetched(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("echo", "a;$(id)`id`")) == "a;$(id)`id`"


@pytest.mark.parametrize("entry", ["bin", ".", "", "./bin", "repository/bin"])
def test_programs_of_relative_directories_do_not_count(
    tmp_path: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("bin/pass", "pass", "repository/bin/pass"):
        program(tmp_path / place, "echo evil")
    monkeypatch.chdir(tmp_path)
    assert "pass, which has the key of the provider mine, is not installed" in refused(
        tmp_path, {"PATH": f"{entry}:/nonexistent"}, command=("pass",)
    )


def test_programs_of_the_repository_do_not_count(tmp_path: Path) -> None:
    evil = program(tmp_path / "repository/bin/pass", "echo evil")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/pass").symlink_to(evil)
    (tmp_path / "bin").symlink_to(tmp_path / "repository/bin")
    for path in (f"{tmp_path}/repository/bin", f"{tmp_path}/linked", f"{tmp_path}/bin"):
        assert "is not installed" in refused(tmp_path, {"PATH": path}, command=("pass",))
    assert "is not installed" in refused(tmp_path, {}, command=(str(evil),))
    program(tmp_path / "good/pass", f"echo {KEY}")
    environ = {"PATH": f"{tmp_path}/repository/bin:{tmp_path}/good"}
    assert fetched(tmp_path, environ, command=("pass",)) == KEY


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    program(tmp_path / "key", f"echo {KEY}; echo 'gpg: no secret key' >&2; exit 3")
    said = refused(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",))
    assert (
        f"{tmp_path}/key did not give the key of the provider mine: status 3 | gpg: no secret key |" in said
    )


def test_a_command_that_fails_shows_no_key_that_it_traced(tmp_path: Path) -> None:
    program(tmp_path / "key", f"set -x; echo {KEY}; exit 3")
    assert "echo ***" in refused(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",))


@pytest.mark.parametrize("script", ["kill -9 $$", "exec /nonexistent", ":", "printf '\\n%s' key"])
def test_a_command_that_prints_no_key_is_refused(tmp_path: Path, script: str) -> None:
    program(tmp_path / "key", script)
    refused(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",))


def test_what_can_not_be_executed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\x7fELF nothing")
    (tmp_path / "key").chmod(0o755)
    assert "it can't be started" in refused(tmp_path, command=("~/key",))


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    program(tmp_path / "key", f"sleep 300 & echo $! >{tmp_path}/pid; wait")
    began = time.monotonic()
    said = refused(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",), seconds=1.0)
    assert "it did not end within 1 s" in said
    assert time.monotonic() - began < 60
    child = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while started(child) and time.monotonic() < end:
        os.sched_yield()
    assert not started(child)


def test_a_command_that_leaves_something_running_is_not_waited_for(tmp_path: Path) -> None:
    """As gpg-agent is left, with the pipes still open."""
    program(tmp_path / "key", f"sleep 300 & echo {KEY}")
    began = time.monotonic()
    assert fetched(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",)) == KEY
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("where", ["", ">&2"])
def test_a_command_that_prints_without_end_is_ended(tmp_path: Path, where: str) -> None:
    program(tmp_path / "key", f"head -c 1073741824 /dev/zero {where}")
    began = time.monotonic()
    said = refused(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",))
    assert "it said more than 16 KiB" in said
    assert time.monotonic() - began < 60


ASK = """
import os, sys
from pathlib import Path
from clsecure.egress.keys import provider_key
from clsecure.errors import EgressError
from clsecure.settings.structured import KeySource, ProviderTable
from tests.unit.test_provider_key import Ui
served = ProviderTable(name="mine", base_url="https://a", key=KeySource(command=("~/key",)))
home, seconds = Path(sys.argv[1]), float(sys.argv[2])
try:
    key = provider_key(served, environ=dict(os.environ), home=home, exclude=(), ui=Ui(), seconds=seconds)
    print("reversed:", key[::-1])
except EgressError as error:
    print("refused:", error.brief)
"""


def at_a_terminal(home: Path, seconds: float = 20.0) -> pexpect.spawn:
    argv = ["-P", "-c", f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}){ASK}", str(home), str(seconds)]
    return pexpect.spawn(sys.executable, argv, timeout=30, encoding="utf-8")


def test_on_a_terminal_a_command_may_ask(tmp_path: Path) -> None:
    program(tmp_path / "key", f'printf "PIN, please: " >&2; read -r pin; [ "$pin" = 1234 ] && echo {KEY}')
    with at_a_terminal(tmp_path) as child:
        child.expect("PIN, please: ")
        child.sendline("1234")
        child.expect(f"reversed: {KEY[::-1]}")
        assert KEY not in child.before


def test_on_a_terminal_a_command_has_no_more_time(tmp_path: Path) -> None:
    program(tmp_path / "key", "exec sleep 300")
    with at_a_terminal(tmp_path, 1.0) as child:
        child.expect("refused: .*did not end within 1 s")


def test_escapes_in_a_key_are_no_key(tmp_path: Path) -> None:
    program(tmp_path / "key", r"printf '\033[2Jsk-a\n'")
    assert "holds no key" in refused(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",))


def test_a_commands_input_is_empty_where_there_is_no_terminal(tmp_path: Path) -> None:
    assert shutil.which("cat")
    assert not keys._is_terminal(999)
    program(tmp_path / "key", f'[ -z "$(cat)" ] && echo {KEY}')
    assert fetched(tmp_path, {"PATH": "/usr/bin:/bin"}, command=("~/key",)) == KEY

"""The receiver inside: files for the home, damaged streams, a full disk; and the state on the host."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import resource
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from clsecure.errors import StateError, ToolError
from clsecure.model import HomeFile
from clsecure.workspace import clone, state_file, stream
from clsecure.workspace.repository import discover
from tests.support.clone_in import UNPACK, bring_in, unpack

pytestmark = pytest.mark.usefixtures("home")


def home_stream(*files: HomeFile) -> bytes:
    out = io.BytesIO()
    stream.stream_in(None, None, out, home_files=files)
    return out.getvalue()


def home_file(path: str, data: bytes = b"new\n", *, mode: int = 0o600, keep: bool = False) -> HomeFile:
    return HomeFile(path=PurePosixPath(path), mode=mode, data=data, keep=keep)


def whole_stream(top: Path, room: Path) -> bytes:
    repository = discover(top)
    out = io.BytesIO()
    stream.stream_in(clone.prepare(repository, room, full=False), repository, out)
    return out.getvalue()


def test_files_for_the_home_are_written_before_the_repository(top: Path, tmp_path: Path) -> None:
    files = [home_file(".claude/settings.json", b"{}\n"), home_file("bin/tool", b"#!", mode=0o755)]
    session = bring_in(top, tmp_path / "room", home_files=files)
    assert (session.home / ".claude/settings.json").read_bytes() == b"{}\n"
    assert (session.home / ".claude/settings.json").stat().st_mode & 0o777 == 0o600
    assert (session.home / ".claude").stat().st_mode & 0o777 == 0o700
    assert (session.home / "bin/tool").stat().st_mode & 0o777 == 0o755


def test_a_resumed_session_gets_files_only_and_its_work_stays(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "precious").write_text("work\n")
    (tmp_path / ".claude.json").write_text("old\n")
    (tmp_path / "kept").write_text("old\n")
    data = home_stream(home_file(".claude.json"), home_file("kept", keep=True), home_file("fresh", keep=True))
    done = unpack(data, tmp_path / "work", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / ".claude.json").read_text() == "new\n"
    assert (tmp_path / "kept").read_text() == "old\n"
    assert (tmp_path / "fresh").read_text() == "new\n"
    assert (tmp_path / "work" / "precious").read_text() == "work\n"


def test_a_poisoned_home_is_not_followed(tmp_path: Path) -> None:
    """H1, E3: the agent of the former session left links where files go."""
    place, outside = tmp_path / "home", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    (outside / "victim").write_text("untouched\n")
    (place / "file").symlink_to(outside / "victim")
    os.mkfifo(place / "fifo")
    os.link(outside / "victim", place / "hard")
    done = unpack(home_stream(*(home_file(n) for n in ("file", "fifo", "hard"))), place / "work", place)
    assert done.returncode == 0
    assert [(place / n).read_text() for n in ("file", "fifo", "hard")] == ["new\n"] * 3
    assert not (place / "file").is_symlink()
    (place / "directory").symlink_to(outside)
    done = unpack(home_stream(home_file("directory/victim")), place / "work", place)
    assert done.returncode == 1
    assert done.stderr.startswith(b"unpack: directory/victim in the home can't be written")
    assert (outside / "victim").read_text() == "untouched\n"
    assert [path.name for path in outside.iterdir()] == ["victim"]
    done = unpack(home_stream(home_file("file/x", keep=True)), place / "work", place)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "."])
def test_paths_that_leave_the_home_are_refused(tmp_path: Path, path: str) -> None:
    data = home_stream(home_file("x"))
    line, _, rest = data.partition(b"\n")
    record = json.loads(line)
    record["path"] = base64.b64encode(path.encode()).decode()
    done = unpack(json.dumps(record).encode() + b"\n" + rest, tmp_path / "work", tmp_path)
    assert done.returncode == 1
    assert b"not a path" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_occupied_workspace_is_left_alone(top: Path, tmp_path: Path) -> None:
    data = whole_stream(top, tmp_path / "start")
    place = tmp_path / "work"
    place.mkdir()
    (place / "precious").write_text("work\n")
    done = unpack(data, place, tmp_path)
    assert done.returncode == 3
    assert done.stderr == b"unpack: the workspace is not empty\n"
    assert [path.name for path in place.iterdir()] == ["precious"]


def test_a_symlink_is_no_workspace(top: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work").symlink_to(tmp_path / "elsewhere")
    done = unpack(whole_stream(top, tmp_path / "start"), tmp_path / "work", tmp_path)
    assert done.returncode == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_stream_cut_anywhere_leaves_nothing(top: Path, tmp_path: Path) -> None:
    (top / "new").write_text("new\n" * 100)
    data = whole_stream(top, tmp_path / "start")
    cuts = range(0, len(data) - 1, max(1, len(data) // 25))
    for cut in (*cuts, len(data) - 1):
        done = unpack(data[:cut], tmp_path / "work", tmp_path)
        assert done.returncode == 1, cut
        assert done.stderr.startswith(b"unpack: ")
        assert done.stderr.count(b"\n") == 1
        assert not (tmp_path / "work").exists() or list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"type": "end"}\n',
        b'{"type": "end", "size": -1}\n',
        b'{"type": "unit", "size": 0}\n',
        b'{"type": "file", "size": 0, "path": ""}\n',
        b'{"type": ["x"], "size": 0}\n',
        b"x" * 70000,
        b"",
    ],
)
def test_damaged_streams_end_in_one_line(tmp_path: Path, data: bytes) -> None:
    done = unpack(data, tmp_path / "work", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


def test_a_full_disk_ends_in_one_line(top: Path, tmp_path: Path) -> None:
    (top / "big").write_bytes(os.urandom(400_000))
    data = whole_stream(top, tmp_path / "start")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", UNPACK, tmp_path / "work"],
        input=data,
        env={"HOME": str(tmp_path)},
        capture_output=True,
        check=False,
        preexec_fn=small_files,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"unpack: ")
    assert done.stderr.count(b"\n") == 1
    assert list((tmp_path / "work").iterdir()) == []


def test_no_room_on_the_host_is_one_error_and_nothing_is_left(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "big").write_bytes(os.urandom(400_000))
    repository = discover(top)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ToolError):
            clone.prepare(repository, tmp_path / "start", full=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "start").iterdir()) == []


def test_a_directory_in_use_is_not_prepared_again(top: Path, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "x").write_text("x")
    with pytest.raises(ToolError, match="not empty"):
        clone.prepare(discover(top), tmp_path / "start", full=False)
    assert (tmp_path / "start" / "x").exists()


def test_forgotten_files_are_gone_and_the_start_state_is_not(top: Path, tmp_path: Path) -> None:
    (top / "new").write_text("new\n")
    repository = discover(top)
    state = clone.prepare(repository, tmp_path / "start", full=False)
    clone.forget_files(state)
    assert not state.top.base.with_name("files").exists()
    with pytest.raises(StateError, match="gone"):
        stream.stream_in(state, repository, io.BytesIO())


def test_progress_is_told(top: Path, tmp_path: Path) -> None:
    told: list[str] = []
    clone.prepare(discover(top), tmp_path / "start", full=False, progress=told.append)
    assert told == ["copying the history of p", "copying the changes of p"]


def test_the_state_survives_the_disk(top: Path, tmp_path: Path) -> None:
    state = clone.prepare(discover(top), tmp_path / "start", full=False)
    odd = dataclasses.replace(state.top, path=b"a\xff\n/b", name="n\udcff", branch=None)
    state = dataclasses.replace(state, units=(state.top, odd), warnings=("odd \\xff",))
    state_file.save(state, tmp_path / "state.json")
    assert state_file.load(tmp_path / "state.json") == state
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".state")] == []


def test_a_damaged_state_is_an_error(top: Path, tmp_path: Path) -> None:
    """H6, H11."""
    file = tmp_path / "state.json"
    state_file.save(clone.prepare(discover(top), tmp_path / "start", full=False), file)
    good = json.loads(file.read_text())
    damaged = [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"version": 1, "units": [], "warnings": []}',
        b"x" * (5 << 20),
        json.dumps({**good, "version": 2}).encode(),
    ]
    for key, value in (
        ("head", "HEAD"),
        ("head", "-x" * 20),
        ("base", "Li4="),
        ("path", "Li4v"),
        ("source", 7),
        ("base_tree", None),
    ):
        damaged.append(json.dumps({**good, "units": [{**good["units"][0], key: value}]}).encode())
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(StateError):
            state_file.load(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(StateError):
        state_file.load(file)
    file.unlink()
    with pytest.raises(StateError):
        state_file.load(file)
    file.symlink_to(tmp_path / "start")
    with pytest.raises(StateError):
        state_file.load(file)

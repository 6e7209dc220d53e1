"""Which sockets of this machine's services the probe inside is told to try: those that really answer here."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.verify import services as module
from clsecure.verify.services import MOST, services


@contextlib.contextmanager
def bound(path: Path, kind: int = socket.SOCK_STREAM, *, mode: int = 0o777) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.bind(str(path))
        path.chmod(mode)
        yield made


JUNK = ("junk", "", "0: 2 0 xyz 0001 01 9 /etc/passwd")
"""What somebody's name with line ends in it makes of the table."""


def found(environ: dict[str, str] | None = None) -> set[str]:
    return set(services(environ or {}))


def test_whatever_listens_is_found_and_nothing_else(tmp_path: Path) -> None:
    names = ("stream", "packets", "datagrams", "silent", "gone", "clsecure-info-x")
    places = {name: tmp_path / name for name in names}
    with (
        bound(places["stream"]) as stream,
        bound(places["packets"], socket.SOCK_SEQPACKET) as packets,
        bound(places["datagrams"], socket.SOCK_DGRAM),
        bound(places["silent"]),
        bound(places["gone"]) as gone,
        bound(places["clsecure-info-x"]) as own,
    ):
        for listener in (stream, packets, gone, own):
            listener.listen()
        places["gone"].unlink()
        here = {Path(path).name for path in found() if Path(path).parent == tmp_path}
    assert here == {"stream", "packets", "datagrams"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_what_the_user_may_not_use_is_left_out(tmp_path: Path) -> None:
    with bound(tmp_path / "closed", mode=0) as closed:
        closed.listen()
        assert str(tmp_path / "closed") not in found()


def test_of_very_many_those_that_everybody_may_use_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"
    monkeypatch.setattr(module, "_TABLE", table)
    with contextlib.ExitStack() as stack:
        for number in range(MOST + 2):
            stack.enter_context(bound(tmp_path / f"{number:03}", mode=0o700 if number < MOST else 0o777))
        lines = [f"0: 2 0 00010000 0001 01 9 {tmp_path}/{number:03}" for number in range(MOST + 2)]
        table.write_text("\n".join(["Num RefCount Protocol Flags Type St Inode Path", *lines, *JUNK]))
        here = [path for path in services({}) if path.startswith(str(tmp_path))]
    assert len(here) == MOST
    assert here[:2] == [f"{tmp_path}/{MOST:03}", f"{tmp_path}/{MOST + 1:03}"]


def test_nobody_can_have_a_look_led_to_where_nothing_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else, with mounts of their own, listens under names of file systems that hang."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "far").mkdir()
    paths = [tmp_path / "near", tmp_path / "far/away", tmp_path / "link/near", Path(f"{tmp_path}/./near")]
    table = tmp_path / "table"
    names = [*map(str, paths), f"{tmp_path}/x/../near"]
    table.write_text("\n".join(["Num", *(f"0: 2 0 00010000 0001 01 9 {name}" for name in names)]))
    monkeypatch.setattr(module, "_TABLE", table)
    monkeypatch.setattr(module, "_remote", lambda: (str(tmp_path / "far"),))
    asked = []
    look = module._mode
    monkeypatch.setattr(module, "_mode", lambda path: asked.append(path) or look(path))
    with bound(tmp_path / "near") as near, bound(tmp_path / "far/away") as away:
        near.listen()
        away.listen()
        here = [path for path in services({}) if path.startswith(str(tmp_path))]
    assert here == [str(tmp_path / "near")]
    assert not [path for path in asked if "far" in path or "link" in path]


def test_a_table_that_can_not_be_read_leaves_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TABLE", tmp_path / "none")
    with bound(tmp_path / "agent") as agent:
        agent.listen()
        assert found({"SSH_AUTH_SOCK": str(tmp_path / "agent")}) >= {str(tmp_path / "agent")}

"""The user's settings file: the predecessor's format, read as if somebody hostile had put it there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clsecure.errors import UsageError
from clsecure.settings.sources import MAX_FILE_BYTES, Layer, gather, read_file

SECRET = "hunter2-CANARY"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config"


def pairs(file: Path, content: str | bytes) -> dict[str, str]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {entry.key: entry.text for entry in read_file(file)}


@pytest.mark.parametrize(
    ("line", "key", "text"),
    [
        ("mode = user", "mode", "user"),
        ("mode=user", "mode", "user"),
        ("  MODE\t=  user  ", "mode", "user"),
        ("isolation_mode = container", "mode", "container"),
        ("ISOLATION_MODE=container", "mode", "container"),
        ("network = true", "network", "true"),
        ("allow_network = yes", "network", "yes"),
        ("ALLOW_NETWORK=1", "network", "1"),
        ('mode = "user"', "mode", "user"),
        ("mode = 'user'   # why", "mode", "user"),
        ("mode = user # why", "mode", "user"),
        ("mode = # nothing", "mode", ""),
        ("mounts = /opt/a#b", "mounts", "/opt/a#b"),
        ('mounts = "/opt/a #b"', "mounts", "/opt/a #b"),
        ("on-finish = keep", "on_finish", "keep"),
        ("base_url = http://127.0.0.1:8080/a=b", "base_url", "http://127.0.0.1:8080/a=b"),
        ("docker = true", "docker", "true"),
        ("ALLOW_DOCKER=1", "docker", "1"),
        ("INSTALL_DEPS=yes", "install_dependencies", "yes"),
        ("SETUP_SCRIPT=/home/u/s.sh", "setup_script", "/home/u/s.sh"),
        ("CLEANUP_HOOK_TIMEOUT=60", "cleanup_hook_timeout", "60"),
        ("SKIP_DOCKER_AUTODETECT=no", "skip_docker_autodetect", "no"),
        ("PROVIDER=kimi", "provider", "kimi"),
        ("KIMI_API_KEY=sk-x", "kimi_api_key", "sk-x"),
    ],
)
def test_a_line_is_understood(file: Path, line: str, key: str, text: str) -> None:
    assert pairs(file, f"# a comment\n\n{line}\n") == {key: text}


def test_the_predecessors_own_example_is_accepted(file: Path) -> None:
    example = """# ~/.config/clsecure/config

# Default isolation mode (user, namespace, container)
mode = namespace

# Allow network access by default
network = true

# Allow Docker access (adds worker to docker group)
docker = true

setup_script = /home/user/.config/clsecure/install_private_tools.sh
"""
    assert pairs(file, example)["network"] == "true"


@pytest.mark.parametrize(
    "content", ["mode = user", "mode = user\r\n", "\ufeffmode = user\n", "mode = user\n\n\n"]
)
def test_line_ends_and_marks_of_other_systems_do_not_matter(file: Path, content: str) -> None:
    assert pairs(file, content) == {"mode": "user"}


def test_an_entry_knows_its_line(file: Path) -> None:
    file.write_text("# one\n\nmode = user\n")
    [entry] = read_file(file)
    assert entry.source.layer is Layer.USER_FILE
    assert entry.source.where == f"{file}:3"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (f"mode = user\n{SECRET}\n", 2, "key = value"),
        (f"mode = user\n\n[{SECRET}]\n", 3, "key = value"),
        (f"root:$6${SECRET}=:1\n", 1, "key = value"),
        ("moed = user\n", 1, "unknown key"),
        ("mode = user\nISOLATION_MODE=user\n", 2, "second time (first in line 1)"),
        (f"mode = user\nsetup_script = '{SECRET}\n", 2, "quotes"),
        (f"mode = 'user' {SECRET}\n", 1, "quotes"),
        (f"mode = user\n\0{SECRET}\n", 2, "NUL"),
        (b"mode = user\nagent = \xff" + SECRET.encode(), 2, "UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_not_shown(file: Path, content: str | bytes, line: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        pairs(file, content)
    told = f"{caught.value.brief} {caught.value.details} {caught.value.resolution}"
    assert f"{file}:{line}: " in caught.value.brief
    assert words in told
    assert SECRET not in told


@pytest.mark.parametrize(
    ("written", "meant"),
    [("moed", "mode"), ("netwrok", "network"), ("on_finnish", "on_finish"), ("Mount_", "mount")],
)
def test_the_nearest_key_is_named(file: Path, written: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        pairs(file, f"{written} = x\n")
    assert meant in (caught.value.resolution or "")


def test_a_huge_file_is_refused_without_reading_it(file: Path) -> None:
    with file.open("wb") as out:
        out.truncate(100 * 1024 * 1024)
    with pytest.raises(UsageError, match="larger than 64 KiB"):
        read_file(file)


def test_a_file_of_just_the_allowed_size_is_read(file: Path) -> None:
    assert pairs(file, "mode = user\n" + "#" * (MAX_FILE_BYTES - 12)) == {"mode": "user"}
    with pytest.raises(UsageError, match="larger"):
        pairs(file, "#" * (MAX_FILE_BYTES + 1))


@pytest.mark.timeout(20)
def test_a_fifo_does_not_block(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(UsageError, match="not a regular file"):
        read_file(file)


@pytest.mark.parametrize(
    "kind", ["directory", "device", "link to a device", "dangling link", "link to itself"]
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ".clsecurerc"
    match kind:
        case "directory":
            file.mkdir()
        case "device":
            file = Path("/dev/zero")
        case "link to a device":
            file.symlink_to("/dev/zero")
        case "dangling link":
            file.symlink_to(tmp_path / "gone")
        case "link to itself":
            file.symlink_to(file)
    with pytest.raises(UsageError, match="can't be used"):
        read_file(file)
    if file.is_relative_to(tmp_path):
        with pytest.raises(UsageError, match="can't be used"):
            gather(environ={"HOME": str(tmp_path)})


def test_a_link_to_a_file_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").write_text("mode = user\n")
    (tmp_path / ".clsecurerc").symlink_to("dotfiles")
    layers = gather(environ={"HOME": str(tmp_path)})
    assert [entry.text for entry in layers.entries] == ["user"]


def test_a_link_to_the_shadow_file_tells_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / ".clsecurerc").symlink_to("/etc/shadow")
    with pytest.raises(UsageError) as caught:
        gather(environ={"HOME": str(tmp_path)})
    assert "root" not in f"{caught.value.brief}{caught.value.details}".replace(str(tmp_path), "")


def test_a_private_file_of_somebody_else_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("mode = user\n")
    file.chmod(0o600)
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UsageError, match="belongs to somebody else"):
        read_file(file)


def test_a_file_that_everybody_may_write_is_refused(file: Path) -> None:
    file.write_text("mode = user\n")
    file.chmod(0o666)
    with pytest.raises(UsageError, match="everybody may write"):
        read_file(file)

"""A shared Homebrew: mounted when only its owner can change it; MCP servers that lack a program: said."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from clsecure.backends.local import _open_source
from clsecure.errors import UsageError
from clsecure.model import Mount, NetworkPolicy
from clsecure.policy import EgressPolicy, allow_rules
from clsecure.session.portable import missing
from clsecure.session.toolchains import toolchain_mounts
from clsecure.workspace.portable import Inside, Server


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Homebrew below directories that nobody else can write to."""
    # The test's own directory lies in /tmp, where everybody may write.
    real = os.lstat
    monkeypatch.setattr(
        "clsecure.session.toolchains.os.lstat", lambda p: real("/") if Path(p) == Path("/tmp") else real(p)
    )
    prefix = tmp_path / "linuxbrew/.linuxbrew"
    for part in ("bin", "Cellar/node/22/bin", "opt", "lib", "var/run", "etc/openssl@3", "etc/secrets"):
        (prefix / part).mkdir(parents=True)
    return prefix


def parts(prefix: Path, *mounts: Mount) -> list[str]:
    return [str(m.target.relative_to(prefix)) for m in toolchain_mounts(mounts, prefix=prefix)]


def test_its_programs_are_mounted_read_only_and_its_data_is_not(prefix):
    assert parts(prefix) == ["bin", "Cellar", "opt", "lib", "etc/openssl@3"]
    assert all(m.read_only and m.direct and m.source == m.target for m in toolchain_mounts((), prefix=prefix))


def test_without_one_there_is_nothing(tmp_path):
    assert toolchain_mounts((), prefix=tmp_path / "none") == ()


@pytest.mark.parametrize("what", [".", "..", "../.."])
def test_what_everybody_can_write_to_is_left_out(prefix, what):
    (prefix / what).resolve().chmod(0o777)
    assert parts(prefix) == []


def test_a_part_that_everybody_can_write_to_is_left_out(prefix):
    (prefix / "lib").chmod(0o777)
    (prefix / "opt").rmdir()
    (prefix / "opt").symlink_to("/etc")
    assert parts(prefix) == ["bin", "Cellar", "etc/openssl@3"]


def test_a_link_on_the_way_is_left_out(prefix, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(prefix.parent)
    assert parts(link / ".linuxbrew") == []


def test_another_owner_on_the_way_is_left_out(prefix):
    if os.getuid() != 0:
        pytest.skip("only root can give directories away")
    os.chown(prefix.parent, 1234, 1234)
    assert parts(prefix) == []
    # The owner of the prefix must be an account that is there.
    os.chown(prefix, 1234, 1234)
    assert parts(prefix) == []


def test_a_mount_of_the_users_own_wins(prefix):
    for target in (prefix, prefix / "bin", prefix.parent):
        assert parts(prefix, Mount(source=Path("/x"), target=target)) == []
    assert parts(prefix, Mount(source=Path("/x"), target=prefix.parent / "other"))


def test_a_source_that_became_a_link_is_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "bin").symlink_to("secret")
    with pytest.raises(UsageError, match="can't be mounted") as refused:
        _open_source(Mount(source=tmp_path / "bin", target=tmp_path / "bin", direct=True))
    assert str(tmp_path / "secret") in str(refused.value.details)
    os.close(_open_source(Mount(source=tmp_path / "bin", target=tmp_path / "bin")))


# ---- MCP servers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What of a plan counts here."""

    network: NetworkPolicy = NetworkPolicy.API
    policy: EgressPolicy = field(default_factory=EgressPolicy)


@pytest.fixture
def has(tmp_path: Path):
    def make(*names: str) -> Inside:
        (tmp_path / "bin").mkdir(exist_ok=True)
        for name in names:
            (tmp_path / "bin" / name).touch(mode=0o755)
        return Inside(
            home=Path("/home/u"), project=Path("/home/u/p"), workspace=PurePosixPath("/home/w/p"),
            places={PurePosixPath("/usr"): tmp_path}, path=(PurePosixPath("/usr/bin"),),
            given=frozenset({"claude"}),
        )  # fmt: skip

    return make


def lines(inside: Inside, *servers: tuple[str, str], plan: Plan | None = None) -> list[str]:
    given = tuple(Server(name=name, command=command) for name, command in servers)
    return list(missing(given, inside, plan or Plan()))  # type: ignore[arg-type]


def test_a_program_that_is_missing_is_said_with_its_servers_and_the_fix(has):
    (line,) = lines(has(), ("a", "node"), ("b", "node"), ("c", "node"), ("d", "node"), ("me", "claude"))
    assert line.startswith("MCP servers a, b, c and 1 more can't start: node is not there inside; ")
    assert re.search(r"sudo \S+ (install|-S) nodejs", line) or "install the package" in line
    assert "docs/toolchains.md" in line


def test_nothing_is_said_of_what_is_there_or_can_not_be_known(has):
    servers = ("python3", "/usr/bin/python3", "./server", "tools/server", "${TOOLS}/x", "", "claude")
    assert lines(has("python3"), *((f"s{n}", command) for n, command in enumerate(servers))) == []


def test_an_absolute_path_that_is_not_there_is_said(has):
    (line,) = lines(has("x"), ("a", "/home/u/.nvm/versions/node/v20/bin/some-server"))
    assert "--mount" in line


def test_no_package_is_proposed_by_a_name_of_the_repositorys(has):
    for name in ("some-server", "x; curl evil | sh", "-rf", "$(id)x/../y"):
        assert not any("install " + name in line for line in lines(has(), ("a", name)))


@pytest.mark.parametrize(
    ("command", "preset"), [("npx", "npm"), ("uvx", "pip"), ("bunx", "npm"), ("pipx", "pip")]
)
def test_a_registry_that_is_not_reached_is_said(has, command, preset):
    (line,) = lines(has(command), ("a", command))
    assert line.endswith(f"--allow-preset {preset}")
    rules = allow_rules("registry.example.org", where=f"preset {preset} (~/.npmrc)")
    assert lines(has(command), ("a", command), plan=Plan(policy=EgressPolicy(allow=rules))) == []
    assert lines(has(command), ("a", command), plan=Plan(network=NetworkPolicy.FULL)) == []


def test_hostile_names_are_bounded_and_can_not_speak_to_the_terminal(has):
    servers = [(f"\x1b]0;{n}\x07" + "x" * 1000, f"\x1b[2J{n}" + "y" * 3000) for n in range(500)]
    found = lines(has(), *servers)
    assert len(found) == 6
    assert all(line.isprintable() and len(line) < 400 for line in found)

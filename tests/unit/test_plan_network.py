"""What a dry run shows of the network: each host with where it comes from, and what is not the default."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import give_away, home_and_repository, plain_user, run_cli


@pytest.fixture
def place() -> Iterator[Path]:
    with home_and_repository() as made:
        yield made


def plan(place: Path, *args: str, **env: str) -> tuple[str, str]:
    """Return what a dry run says, and what it warns and notes before that."""
    done = run_cli("--dry-run", *args, env={"HOME": str(place / "home"), **env}, cwd=place / "repo")
    text = done.stderr.decode()
    assert done.returncode == 0, text
    before, _, shown = text.partition("runs  ")
    return shown, before


def refused(place: Path, *args: str, **env: str) -> str:
    done = run_cli("--dry-run", *args, env={"HOME": str(place / "home"), **env}, cwd=place / "repo")
    assert done.returncode == 125
    return done.stderr.decode()


def document(place: Path, *args: str) -> dict[str, object]:
    words = ["--dry-run", "--output", "json", *args]
    done = run_cli(*words, env={"HOME": str(place / "home")}, cwd=place / "repo")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_by_default_nothing_is_said_beyond_the_api(place: Path) -> None:
    shown, before = plan(place)
    assert "network    the model's API and nothing else\n" in shown
    assert before == ""
    for word in ("allowed ", "denied ", "budget ", "key  ", "provider ", "private "):
        assert word not in shown
    found = document(place)
    assert found["policy"] == {"kind": "api", "allow": [], "deny": [], "only": None, "only_where": ""}
    assert (found["credentials"], found["provider_tools"], found["allow_private"]) == ("inject", False, False)


def test_every_host_is_shown_with_where_it_comes_from(place: Path) -> None:
    file = place / "home/.config/clsecure/config.toml"
    file.write_text("[egress]\nallow = [\n'a.example.org',\n]\ndeny = ['*.bad.example.org']\n")
    shown, _ = plan(
        place, "--allow-domain", "b.example.org:80,localhost:4873", CLSECURE_ALLOW_DOMAINS="*.c.example.org"
    )
    for line in (
        "network    the model's API and the allowed hosts (--allow-domain)",
        "allowed    b.example.org:80 (--allow-domain)",
        "allowed    host.clsecure.internal:4873, this machine's own localhost (--allow-domain)",
        "allowed    *.c.example.org:443 (CLSECURE_ALLOW_DOMAINS)",
        f"allowed    a.example.org:443 ({file}:3)",
        f"denied     *.bad.example.org ({file}:5)",
    ):
        assert f"{line}\n" in shown
    assert "allowed    localhost" not in shown
    policy = document(place, "--allow-domain", "localhost:4873")["policy"]
    assert isinstance(policy, dict)
    assert [(rule["pattern"]["host"], rule["where"], rule["connect"]) for rule in policy["allow"]] == [
        ("localhost", "--allow-domain", None),
        ("host.clsecure.internal", "--allow-domain", "localhost"),
        ("a.example.org", f"{file}:3", None),
    ]


def test_what_differs_from_the_default_is_shown(place: Path) -> None:
    shown, _ = plan(place, "--budget", "bytes=1K,requests=5", "--credentials", "copy", "--provider-tools")
    for line in (
        "budget     requests=5,bytes=1024\n",
        "key        copied: ",
        "provider   may fetch, search and run code for the agent\n",
    ):
        assert line in shown
    shown, _ = plan(place, "--allow-network", "--allow-private", "--credentials", "none")
    assert "network    the internet (--allow-network)\n" in shown
    assert "private    addresses of private networks are reached, this machine's own are not\n" in shown
    assert "key        none: " in shown
    found = document(place, "--allow-network", "--allow-private", "--budget", "tokens=1M")
    assert (found["allow_private"], found["budget"]) == (
        True,
        {"requests": None, "bytes": None, "tokens": 1_000_000},
    )


def test_a_preset_is_shown_as_what_it_resolved_to(place: Path) -> None:
    remote = ["git", "-C", str(place / "repo"), "remote", "add", "origin", "https://git.example.org/x.git"]
    env = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    subprocess.run(remote, check=True, env=env, **plain_user())  # type: ignore[call-overload]
    shown, _ = plan(place, "--allow-preset", "git-remote")
    [line] = [line for line in shown.splitlines() if line.startswith("allowed ")]
    assert line.startswith("allowed    git.example.org:443 (")
    assert "git-remote" in line


def test_a_host_that_is_allowed_and_denied_is_named(place: Path) -> None:
    file = place / "repo/.clsecure/config"
    file.write_text("deny_domains = a.example.org\n")
    shown, before = plan(place, "--allow-domain", "a.example.org")
    assert f"a.example.org:443 (--allow-domain) stays denied, because of a.example.org ({file}:1)" in before
    assert f"denied     a.example.org ({file}:1)\n" in shown


def test_what_the_repository_narrows_is_said_and_shown(place: Path) -> None:
    file = place / "repo/.clsecure/config"
    file.write_text("network = none\nmounts = /etc\n")
    shown, before = plan(place)
    assert f"network    none ({file}:1)\n" in shown
    assert f"the network is none and not api, because of the repository ({file}:1)" in before
    assert f"warning: {file}:2: mounts is not taken from a repository" in before
    assert "mount   " not in shown
    shown, _ = plan(place, "--allow-domain", "a.example.org")
    assert "network    the model's API and the allowed hosts (--allow-domain)\n" in shown


def test_container_mode_of_the_repository_counts_as_the_stronger_one(place: Path) -> None:
    file = place / "repo/.clsecure/config"
    file.write_text("mode = container\n")
    assert f"mode       container ({file}:1)\n" in plan(place)[0]
    assert "mode       user (--mode)" in plan(place, "--mode", "user")[0]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--no-network", "--allow-domain", "a.org"], "exclude each other"),
        (["--allow-network", "--allow-preset", "npm"], "exclude each other"),
        (["--allow-network", "--deny-domain", "a.org"], "can't be enforced with the full network"),
        (["--allow-private"], "goes with the full network only"),
        (["--no-network", "--budget", "tokens=1"], "nothing to count"),
        (["--deny-domain", "api.anthropic.com"], "the model's API itself"),
        (["--allow-domain", ",".join(f"h{n}.example.org" for n in range(1001))], "a session can have 1000"),
    ],
)
def test_what_can_not_be_is_refused(place: Path, args: list[str], told: str) -> None:
    assert told in refused(place, *args)


def test_a_hostile_file_of_the_repository_is_shown_escaped(place: Path) -> None:
    (place / "repo/.clsecure/config.toml").write_bytes(b'"k\\u001b]0;x\\u0007\\u202e" = 1\n')
    _, before = plan(place)
    assert "\\x1b]0;x\\x07\\u202e" in before
    assert "\x1b" not in before
    give_away(place)


def test_an_allow_list_of_nothing_is_refused(place: Path) -> None:
    (place / "home/.config/clsecure/config").write_text("network = allowlist\n")
    text = refused(place)
    assert "nothing is allowed" in text
    assert "--allow-domain" in text

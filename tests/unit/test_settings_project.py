"""The repository's own settings: they narrow or do nothing, and nothing on the way to them is followed."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from clsecure.cli.parsing.flags import OPTIONS
from clsecure.errors import UsageError
from clsecure.model import IsolationMode, NetworkPolicy, ResourceLimits
from clsecure.settings.keys import FLAGS, KEYS
from clsecure.settings.model import Settings, load
from clsecure.settings.project import NARROWING, with_project
from clsecure.settings.sources import MAX_FILE_BYTES, Entry, Layer, Source, gather

SECRET = "hunter2-CANARY"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    place = tmp_path / "repo"
    (place / ".clsecure").mkdir(parents=True)
    return place


def settings(top: Path, content: str | bytes | None = None, name: str = "config", **environ: str) -> Settings:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (top / ".clsecure" / name).write_bytes(data)
    return load(with_project(gather(environ={"HOME": "/nonexistent", **environ}), top))


def test_without_a_file_nothing_changes(top: Path) -> None:
    before = gather(environ={"HOME": "/nonexistent"})
    assert with_project(before, top) == before
    (top / ".clsecure").rmdir()
    assert with_project(before, top) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config", "\nnetwork = none\nmode = container\ndeny_domains = a.org, *.b.org:80\n"),
        (
            "config.toml",
            "\nnetwork = 'none'\nmode = 'container'\n[egress]\ndeny = ['a.org',\n'*.b.org:80']\n",
        ),
    ],
)
def test_what_narrows_counts_and_says_where_it_stands(top: Path, name: str, content: str) -> None:
    found = settings(top, content, name)
    path = top / ".clsecure" / name
    assert (found.network, found.mode) == (NetworkPolicy.NONE, IsolationMode.CONTAINER)
    assert found.provenance("network").layer is Layer.PROJECT
    assert found.provenance("network").where == f"{path}:2"
    assert found.provenance("mode").where == f"{path}:3"
    assert [str(rule.pattern) for rule in found.deny_domains] == ["a.org", "*.b.org:80"]
    first = 4 if name == "config" else 5
    assert found.deny_domains[0].where == f"{path}:{first}"
    assert found.warnings == ()
    assert len(found.notes) == 2


def test_both_files_count(top: Path) -> None:
    settings(top, "network = none\n")
    found = settings(top, "mode = 'container'\n", "config.toml")
    assert (found.network, found.mode) == (NetworkPolicy.NONE, IsolationMode.CONTAINER)
    with pytest.raises(UsageError) as caught:
        settings(top, "network = 'none'\n", "config.toml")
    assert f"first in {top}/.clsecure/config:1" in caught.value.brief


WIDENING = [
    ("allow_domains", "a.org"), ("presets", "npm"), ("allow_private", "true"), ("session", "x"),
    ("agent", "demo"), ("on_finish", "discard"), ("full_clone", "true"), ("mounts", "/etc"),
    ("base_url", "http://evil.example"), ("output", "json"), ("verbose", "true"), ("toolchains", "true"),
    ("provider", "kimi"), ("kimi_api_key", "sk-1"), ("install_dependencies", "true"),
    ("setup_script", "/tmp/x"), ("setup_network", "full"), ("github_token", "true"), ("notify", "bell"),
    ("notify_command", "/tmp/x"), ("notify_after", "5"), ("engine", "docker"), ("runtime", "/tmp/x"),
    ("image", "theirs"), ("docker_images", "evil:1"), ("image_mirror", "https://x.example/debian"),
    ("image_registry", "https://x.example/them"),
    ("record_ssh_key", "/tmp/x"), ("record_notes", "true"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text"), WIDENING)
@pytest.mark.parametrize("toml", [False, True])
def test_everything_else_does_nothing_and_is_named(top: Path, key: str, text: str, toml: bool) -> None:
    content = f"\n{key} = '{text}'\n" if toml else f"\n{key} = {text}\n"
    name = "config.toml" if toml else "config"
    found = settings(top, content, name)
    assert found.model_dump() == Settings().model_dump()
    [warning] = found.warnings
    assert warning.startswith(f"{top}/.clsecure/{name}:2: {key} ")
    assert FLAGS.get(key, "your own settings file") in warning
    assert not text.startswith("sk-") or text not in warning


def test_every_key_narrows_or_is_named() -> None:
    assert {key for key, _ in WIDENING} | NARROWING == set(KEYS)
    flags = [(option.key, option.name) for option in OPTIONS if option.key]
    assert set(FLAGS.items()) <= set(flags)
    assert {key for key, _ in flags} == set(FLAGS)


NARROWED = [
    ("credentials", "copy", "none", "none"), ("credentials", "none", "copy", "none"),
    ("provider_tools", "true", "false", "false"), ("provider_tools", "false", "true", "false"),
    ("docker", "true", "none", "none"), ("docker", "none", "own", "none"), ("docker", "own", "host", "own"),
    ("docker", "false", "host", "none"),
    ("time_limit", "2h", "1h", "1h"), ("time_limit", "1h", "2h", "1h"), ("time_limit", "none", "1h", "1h"),
    ("limits", "memory=4G", "memory=2G,pids=100", "memory=2G,pids=100"),
    ("limits", "memory=2G", "memory=4G", "memory=2G"),
    ("limits", "memory=2G", "memory=none", "memory=2G"),
    ("budget", "tokens=5", "tokens=3", "tokens=3"), ("budget", "tokens=3", "tokens=5", "tokens=3"),
    ("cleanup_hook_timeout", "60", "30", "30"), ("cleanup_hook_timeout", "30", "60", "30"),
    ("skip_docker_autodetect", "false", "true", "true"), ("skip_docker_autodetect", "true", "false", "true"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "own", "project", "effective"), NARROWED)
def test_the_stricter_of_user_and_repository_counts(
    top: Path, tmp_path: Path, key: str, own: str, project: str, effective: str
) -> None:
    (tmp_path / ".clsecurerc").write_text(f"{key} = {own}\n")
    (top / ".clsecure/config").write_text(f"\n{key} = {project}\n")
    found = load(with_project(gather(environ={"HOME": str(tmp_path)}), top))
    expected = load(gather(environ={"HOME": "/nonexistent", f"CLSECURE_{key.upper()}": effective}))
    assert getattr(found, key) == getattr(expected, key)
    if effective not in (own, project):
        return
    layer = Layer.PROJECT if effective == project else Layer.USER_FILE
    assert found.provenance(key).layer is layer
    assert bool(found.notes) == (layer is Layer.PROJECT)
    assert [f"{top}/.clsecure/config:2" in warning for warning in found.warnings] == (
        [] if layer is Layer.PROJECT or own == project else [True]
    )


def test_every_narrowing_key_is_tried() -> None:
    assert {key for key, *_ in NARROWED} | {"mode", "network", "deny_domains"} == NARROWING


def test_a_flag_stands_against_what_the_repository_narrows_and_no_further(top: Path) -> None:
    (top / ".clsecure/config").write_text("time_limit = 1m\nlimits = memory=1G,pids=100\n")
    flags = [
        Entry(key=key, text=text, source=Source(layer=Layer.FLAG, where=f"--{key}"))
        for key, text in (("time_limit", "1h"), ("limits", "memory=2G"))
    ]
    found = load(with_project(gather(flags, environ={"HOME": "/nonexistent"}), top))
    assert found.time_limit == timedelta(hours=1)
    assert found.limits == ResourceLimits(memory=2 << 30, pids=100)


def test_the_predecessors_example_of_a_project_file_counts(top: Path) -> None:
    found = settings(
        top,
        "# Require container isolation for this project\nmode = container\n\n"
        "# Longer timeout for cleanup hooks\ncleanup_hook_timeout = 60\n",
    )
    assert (found.mode, found.cleanup_hook_timeout, found.warnings) == (IsolationMode.CONTAINER, 60, ())


def test_a_misplaced_file_is_pointed_out_and_not_read(top: Path) -> None:
    (top / ".clsecure.conf").write_text(f"network = {SECRET}\n")
    [warning] = settings(top).warnings
    assert f"{top}/.clsecure/config" in warning
    assert SECRET not in warning


@pytest.mark.parametrize("key", ["hooks", "deny_domain_", "egress"])
def test_what_is_no_key_of_ours_is_named(top: Path, key: str) -> None:
    found = settings(top, f"{key} = {SECRET}\n")
    [warning] = found.warnings
    assert warning.startswith(f"{top}/.clsecure/config:1: {key} ")
    assert SECRET not in warning


def test_a_hostile_name_is_cut_and_many_are_counted(top: Path) -> None:
    lines = [f'"k{n}\\u001b]0;{"x" * 500}" = 1' for n in range(50)]
    warnings = settings(top, "\n".join(lines), "config.toml").warnings
    assert len(warnings) == 11
    assert max(map(len, warnings)) < 300
    assert warnings[-1] == f"{top}/.clsecure: 40 more such keys"


@pytest.mark.parametrize(("word", "flag"), [("user", "--mode"), ("namespace", None)])
def test_a_weaker_mode_does_nothing(top: Path, word: str, flag: str | None) -> None:
    found = settings(top, f"mode = {word}\n")
    assert found.mode is IsolationMode.NAMESPACE
    assert [flag in warning for warning in found.warnings if flag] == ([True] if flag else [])


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("full", "--allow-network"),
        ("true", "--allow-network"),
        ("allowlist", "--allow-domain"),
        ("api", None),
    ],
)
def test_a_wider_network_does_nothing(top: Path, word: str, flag: str | None) -> None:
    found = settings(top, f"network = {word}\n")
    assert found.network is NetworkPolicy.API
    assert [flag in warning for warning in found.warnings if flag] == ([True] if flag else [])
    assert settings(top, f"network = {word}\n", CLSECURE_NETWORK="none").network is NetworkPolicy.NONE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"network = {SECRET}", ":1: network must be"),
        (f"\nmode = {SECRET}", ":2: mode must be"),
        ("deny_domains = *", ":1: deny_domains must be"),
        (f"deny_domains = {SECRET}/", ":1: deny_domains must be"),
        ("deny_domains =", ":1: deny_domains must not be empty"),
        (f"[{SECRET}]", ":1: not a line"),
        (f"network = none\n\0{SECRET}", ":2: a NUL byte"),
        ("network = none\nNETWORK = none", ":2: network is set a second time"),
        (b"network = \xff", ":1: not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than 64 KiB"),
    ],
)
def test_what_may_have_been_meant_to_narrow_is_an_error(top: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(top, content)
    told = f"{caught.value.brief} {caught.value.details} {caught.value.resolution}"
    assert words in told
    assert SECRET not in told


@pytest.mark.parametrize("name", ["config", "config.toml"])
@pytest.mark.parametrize(
    "kind", ["link", "dangling", "fifo", "directory", "device", "place is a link", "place is a file"]
)
@pytest.mark.timeout(20)
def test_nothing_is_followed(top: Path, tmp_path: Path, kind: str, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / name).write_text(f"network = {SECRET}\n")
    file = top / ".clsecure" / name
    match kind:
        case "link":
            file.symlink_to(outside / name)
        case "dangling":
            file.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
        case "place is a link":
            file.parent.rmdir()
            file.parent.symlink_to(outside)
        case "place is a file":
            file.parent.rmdir()
            file.parent.write_text(f"network = {SECRET}\n")
    with pytest.raises(UsageError, match="can't be used") as caught:
        settings(top)
    assert SECRET not in f"{caught.value.brief} {caught.value.details}"


def test_a_denial_of_the_repository_can_not_be_taken_back(top: Path) -> None:
    found = settings(top, "deny_domains = a.org\n", CLSECURE_ALLOW_DOMAINS="a.org,b.org")
    assert [rule.pattern.host for rule in found.allow_domains] == ["a.org", "b.org"]
    assert [rule.pattern.host for rule in found.deny_domains] == ["a.org"]

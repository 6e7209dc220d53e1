"""The user's config.toml: the same keys as tables, read as if somebody hostile had put it there."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsecure.errors import UsageError
from clsecure.model import (
    Credentials,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    OnFinish,
    ResourceLimits,
)
from clsecure.policy import Budget
from clsecure.settings.keys import KEYS
from clsecure.settings.model import load
from clsecure.settings.sources import MAX_FILE_BYTES, Layer, gather
from clsecure.settings.tables import TABLES, parse
from clsecure.settings.values.isolation import AutoMode
from clsecure.settings.values.reach import SetupNetwork
from clsecure.settings.values.services import Secret

SECRET = "hunter2-CANARY"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / ".config/clsecure/config.toml"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)  # one that holds a key is warned of where others can read it
    return path


def read(file: Path, content: str | bytes, **environ: str) -> object:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(gather(environ={"HOME": str(file.parents[2]), **environ}))


def refused(file: Path, content: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read(file, content)
    error = caught.value
    return f"{error.brief} | {error.details} | {error.resolution}"


VALUES = [
    ("mode = 'user'", "mode", IsolationMode.USER),
    ("isolation-mode = 'user'", "mode", IsolationMode.USER),
    ("mode = 'auto'", "mode", AutoMode()),
    ("engine = 'docker'", "engine", Engine.DOCKER),
    ("runtime = 'runsc'", "runtime", "runsc"),
    ("image = 'worker-minimal'", "image", "worker-minimal"),
    ("docker = true", "docker", DockerAccess.OWN),
    ("docker = 'own'", "docker", DockerAccess.OWN),
    ("docker = false", "docker", DockerAccess.NONE),
    ("docker_images = ['postgres:16', 'ghcr.io/a/b@sha256:" + "0" * 64 + "']", "docker_images",
     ("postgres:16", "ghcr.io/a/b@sha256:" + "0" * 64)),
    ("docker_images = 'a,b'", "docker_images", ("a", "b")),
    ("network = true", "network", NetworkPolicy.FULL),
    ("network = false", "network", NetworkPolicy.API),
    ("network = 'none'", "network", NetworkPolicy.NONE),
    ("allow_network = 'yes'", "network", NetworkPolicy.FULL),
    ("presets = ['npm', 'pip']", "presets", ("npm", "pip")),
    ("presets = 'npm,pip'", "presets", ("npm", "pip")),
    ("[egress]\npresets = ['npm']", "presets", ("npm",)),
    ("credentials = 'copy'", "credentials", Credentials.COPY),
    ("provider_tools = true", "provider_tools", True),
    ("[egress]\nprovider_tools = true", "provider_tools", True),
    ("network = true\n[egress]\nallow_private = true", "allow_private", True),
    ("budget = 'tokens=5'", "budget", Budget(tokens=5)),
    ("[egress.budget]\ntokens = 5\nbytes = '2G'\nrequests = '1K'", "budget",
     Budget(tokens=5, bytes=2 << 30, requests=1000)),
    ("egress = { budget = { tokens = 5 } }", "budget", Budget(tokens=5)),
    ("egress.budget.tokens = 5", "budget", Budget(tokens=5)),
    ("session = 'auth'", "session", "auth"),
    ("agent = 'demo'", "agent", "demo"),
    ("on_finish = 'keep'", "on_finish", OnFinish.KEEP),
    ("full_clone = true", "full_clone", True),
    ("mounts = ['/opt/a,b:/x:rw']", "mounts",
     (Mount(source=Path("/opt/a,b"), target=Path("/x"), read_only=False),)),
    ("mounts = '/a, /b'", "mounts",
     (Mount(source=Path("/a"), target=Path("/a")), Mount(source=Path("/b"), target=Path("/b")))),
    ("toolchains = false", "toolchains", False),
    ("limits = 'memory=1G'", "limits", ResourceLimits(memory=1 << 30)),
    ("[limits]\nmemory = '1G'\ncpus = 1.5\npids = 100\ndisk = '2G'\nopen_files = 1000", "limits",
     ResourceLimits(memory=1 << 30, cpus=1.5, pids=100, disk=2 << 30, open_files=1000)),
    ("limits.cpus = 2", "limits", ResourceLimits(cpus=2)),
    ("[limits]\ntime = '2h'", "time_limit", timedelta(hours=2)),
    ("provider = 'kimi'", "provider", "kimi"),
    ("kimi_api_key = 'sk-1'", "kimi_api_key", Secret(value="sk-1")),
    ("install_deps = true", "install_dependencies", True),
    ("[setup]\ninstall_dependencies = true", "install_dependencies", True),
    ("setup_script = '/opt/setup.sh'", "setup_script", Path("/opt/setup.sh")),
    ("[setup]\nscript = '/opt/setup.sh'", "setup_script", Path("/opt/setup.sh")),
    ("[setup]\nnetwork = 'full'", "setup_network", SetupNetwork(kind=NetworkPolicy.FULL)),
    ("setup_network = 'none'", "setup_network", SetupNetwork(kind=NetworkPolicy.NONE)),
    ("[setup]\ngithub_token = true", "github_token", True),
    ("cleanup_hook_timeout = 60", "cleanup_hook_timeout", 60),
    ("skip_docker_autodetect = true", "skip_docker_autodetect", True),
    ("notify = ['bell', 'osc9']", "notify", ("bell", "osc9")),
    ("image_mirror = 'http://m.example/debian'", "image_mirror", "http://m.example/debian"),
    ("image_registry = 'https://r.example/x'", "image_registry", "https://r.example/x"),
    ("record_ssh_key = '/k.pub'", "record_ssh_key", Path("/k.pub")),
    ("record_notes = true", "record_notes", True),
    ("notify_command = '/opt/notify'", "notify_command", Path("/opt/notify")),
    ("notify_after = 90", "notify_after", timedelta(seconds=90)),
    ("time_limit = 90", "time_limit", timedelta(seconds=90)),
    ("time_limit = '2h'", "time_limit", timedelta(hours=2)),
    ("base_url = 'http://127.0.0.1:80'", "base_url", "http://127.0.0.1:80"),
    ("output = 'json'", "output", "json"),
    ("verbose = true", "verbose", True),
]  # fmt: skip


@pytest.mark.parametrize(("content", "key", "value"), VALUES)
def test_a_value_is_understood(file: Path, content: str, key: str, value: object) -> None:
    settings = read(file, content)
    assert getattr(settings, key) == value
    assert settings.provenance(key).layer is Layer.USER_FILE
    assert settings.warnings == ()


def test_every_key_can_be_written_there() -> None:
    assert {key for _, key, _ in VALUES} | {"allow_domains", "deny_domains"} == set(KEYS)
    assert {key for table in TABLES.values() for key in table.values()} <= set(KEYS)


def test_hosts_know_their_lines(file: Path) -> None:
    content = """# mine
[egress]
allow = [
    "a.example.org",   # why
    'b.example.org:80',
    "*.c.example.org", "d.example.org",
]
deny = ["a.example.org"]
[egress.budget]
# of tokens
tokens = 5
bytes = 6
"""
    settings = read(file, content)
    assert [(str(rule.pattern), rule.where) for rule in settings.allow_domains] == [
        ("a.example.org:443", f"{file}:4"),
        ("b.example.org:80", f"{file}:5"),
        ("*.c.example.org:443", f"{file}:6"),
        ("d.example.org:443", f"{file}:6"),
    ]
    assert [rule.where for rule in settings.deny_domains] == [f"{file}:8"]
    assert settings.provenance("budget").where == f"{file}:11, {file}:12"
    assert settings.network is NetworkPolicy.ALLOWLIST


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("\n\negress.allow = ['a.org']", 3),
        ("\negress = { allow = ['a.org'] }", 2),
        ("[egress]\n\n  allow=['a.org']", 3),
        ("[egress]\n\n'allow' = [\n\n'a.org']", 5),
        ("['egress'] # [x]\nallow = ['a.org']", 2),
        ("agent = '''\nx\n'''\n[egress]\nallow = ['a.org']", 5),
    ],
)
def test_the_line_of_a_key_is_found_however_it_is_written(file: Path, content: str, line: int) -> None:
    file.write_text(content)
    entries = gather(environ={"HOME": str(file.parents[2])}).entries
    [where] = [entry.source.where for entry in entries if entry.key == "allow_domains"]
    assert where == f"{file}:{line}"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("moed = 'user'", 1, "did you mean mode?"),
        ("\n[egres]\nallow = []", 2, "did you mean egress?"),
        ("[egress]\nalow = []", 2, "did you mean allow?"),
        ("[egress]\nhosts = []", 2, "valid keys: allow, deny"),
        ("[egress.budget]\ntoken = 5", 1, "no other key than requests, bytes, tokens"),
        ("[budget]\ntokens = 5", 1, "must be a string"),
        ("\negress = 5", 2, "must be a table"),
        ("[egress]\nallow = 'a.org'\nallow = 'b.org'", 3, "second time"),
        ("mode = 'user'\nisolation_mode = 'user'", 2, "second time (first in line 1)"),
        ("allow_domains = ['a.org']\n[egress]\nallow = ['b.org']", 3, "second time (first in line 1)"),
        ("budget = 'tokens=5'\n[egress.budget]\ntokens = 5", 2, "second time"),
        (f"mode = '{SECRET}'", 1, "must be user"),
        ("mode = 5", 1, "must be a string"),
        ("mode = ['user']", 1, "must be a string"),
        ("mode = 2026-01-01", 1, "must be a string"),
        ("full_clone = 'true'", 1, "must be true or false"),
        ("full_clone = 1", 1, "must be true or false"),
        ("provider_tools = 'no'", 1, "must be true or false"),
        ("network = 1", 1, "must be a string"),
        ("time_limit = true", 1, "must be a string"),
        ("time_limit = 1.5", 1, "must be a string"),
        ("time_limit = -5", 1, "must be a duration"),
        (f"time_limit = 0x{'f' * 5000}", 1, "smaller"),
        (f"time_limit = {'9' * 5000}", 1, "TOML"),
        ("[egress]\nallow = [5]", 2, "array of strings"),
        ("[egress]\nallow = 5", 2, "array of strings"),
        ("[egress]\nallow = [['a.org']]", 2, "array of strings"),
        ("[egress]\nallow = ['*']", 2, "must be HOST"),
        (f"[egress]\nallow = [\n'a.org',\n'{SECRET}/']", 4, "must be HOST"),
        ("[egress]\nallow = ['a.org,b.org']", 2, "one in each string"),
        ("[egress]\nallow = ['']", 2, "must not be empty"),
        ("[egress.budget]\ntokens = 0", 2, "more than nothing"),
        ("[egress.budget]\ntokens = 1.5", 1, "a number for tokens"),
        ("[egress.budget]\ntokens = true", 1, "a number for tokens"),
        (f"mode = 'user'\n{SECRET}\n", 2, "TOML"),
        (f"mode = '{SECRET}\n", 2, "TOML"),
        ("a = " + "[" * 5000, 1, "TOML"),
        (f"mode = 'user'\n\0{SECRET}", 2, "NUL"),
        (b"mode = 'user'\nagent = '\xff'", 2, "UTF-8"),
        ("\n" + ".".join("a" * 200) + " = 1", 2, "too many parts"),
        ("[" + ".".join(["'a.b'", '"c"'] * 100) + "]", 1, "too many parts"),
        pytest.param(".".join(['"\\""'] * 12_000) + " = 1", 1, "too many parts", id="escaped quotes"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_not_shown(
    file: Path, content: str | bytes, line: int, words: str
) -> None:
    told = refused(file, content)
    assert f"{file}:{line}: " in told
    assert words in told
    assert SECRET not in told


@pytest.mark.parametrize("order", [0, 1])
def test_a_key_in_both_files_is_an_error_that_names_both_places(file: Path, order: int) -> None:
    pairs = [("allow_domains = a.org", "[egress]\nallow = ['b.org']"), ("mode = user", "\nmode = 'user'")]
    flat, toml = pairs[order]
    (file.parent / "config").write_text(f"# mine\n{flat}\n")
    told = refused(file, toml)
    assert f"{file}:2: " in told
    assert f"first in {file.parent}/config:2" in told


def test_both_files_are_one_layer(file: Path) -> None:
    (file.parent / "config").write_text("mode = user\nmounts = /opt/a\n")
    settings = read(file, "agent = 'demo'", CLSECURE_SESSION="x")
    assert (settings.mode, settings.agent, settings.session) == (IsolationMode.USER, "demo", "x")


def test_it_stands_beside_clsecurerc_and_where_xdg_says(tmp_path: Path, file: Path) -> None:
    (tmp_path / ".clsecurerc").write_text("mode = user\n")
    assert read(file, "agent = 'demo'").mode is IsolationMode.USER
    xdg = tmp_path / "xdg/clsecure/config.toml"
    xdg.parent.mkdir(parents=True)
    xdg.write_text("agent = 'other'")
    settings = read(file, "agent = 'demo'", XDG_CONFIG_HOME=str(tmp_path / "xdg"))
    assert settings.agent == "other"


def test_it_is_read_with_the_same_care_as_the_flat_file(file: Path) -> None:
    file.write_text("mode = 'user'\n" + "#" * MAX_FILE_BYTES)
    assert "larger than 64 KiB" in refused(file, file.read_bytes())
    file.write_text("mode = 'user'\n")
    file.chmod(0o666)
    assert "everybody may write" in refused(file, "mode = 'user'\n")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UsageError, match="not a regular file"):
        gather(environ={"HOME": str(file.parents[2])})
    file.unlink()
    file.symlink_to("/etc/shadow")
    with pytest.raises(UsageError) as caught:
        load(gather(environ={"HOME": str(file.parents[2])}))
    assert "root" not in f"{caught.value.brief}{caught.value.details}".replace(str(file), "")


@given(
    st.one_of(st.binary(max_size=300), st.text(st.sampled_from("ab.=[]{}\"'\n#,1 -egrsalow"), max_size=200))
)
def test_anything_is_read_or_is_one_error(content: bytes | str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path = Path("/x/config.toml")
    try:
        found = parse(data, path)
    except UsageError as error:
        assert error.brief.startswith(f"{path}:")  # noqa: PT017
        return
    for assignment in found:
        assert 1 <= assignment.line <= data.count(b"\n") + 1


@pytest.mark.parametrize(
    "line",
    [
        ".".join("a" * 127) + " = 1",
        "[" + ".".join("a" * 127) + "]",
        "x = [" + "'a'," * 50,
        "'" + "a" * 100 + "' = " + "[" * 60 + "]" * 60,
        "a" + " " * 300 + "b",
        ".".join(['"a b"'] * 120) + " =",
        'a = "' + '\\"' * 30_000,
    ],
    ids=["dotted", "table", "array", "nested", "spaces", "quoted", "escapes"],
)
@pytest.mark.timeout(30)
def test_no_file_of_this_size_takes_long(line: str) -> None:
    content = "\n".join(
        f"{line}".replace("a", f"a{n}") for n in range(max(1, MAX_FILE_BYTES // (len(line) * 2)))
    )
    started = time.process_time()
    with contextlib.suppress(UsageError):
        parse(content.encode()[:MAX_FILE_BYTES], Path("/x/config.toml"))
    assert time.process_time() - started < 3

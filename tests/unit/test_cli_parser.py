"""Both spellings of every command line, and one clear error for all others."""

from __future__ import annotations

from pathlib import Path

import pytest

from clsecure.cli.actions import ImagesAction, NetworkAction, RecordAction
from clsecure.cli.options import (
    AgentOptions,
    CleanupOptions,
    ConfigOptions,
    DiffOptions,
    DoctorOptions,
    ImagesOptions,
    ImportOptions,
    InfoOptions,
    ListOptions,
    NetworkOptions,
    Options,
    RecordOptions,
    ReportOptions,
    RunOptions,
    SetupOptions,
    TextOptions,
)
from clsecure.cli.parsing.flags import OPTIONS
from clsecure.cli.parsing.grammar import build_parser
from clsecure.cli.parsing.parse import parse, wants_json
from clsecure.cli.verbs import COMMANDS, Verb
from clsecure.errors import UsageError


def _network(action: NetworkAction, *arguments: str) -> NetworkOptions:
    return NetworkOptions(action=action, arguments=arguments)


@pytest.mark.parametrize(
    ("line", "verb", "options"),
    [
        ("", Verb.RUN, RunOptions()),
        ("run", Verb.RUN, RunOptions()),
        ("-- make test", Verb.RUN, RunOptions(argv=("make", "test"))),
        ("run -- -x --mode y", Verb.RUN, RunOptions(argv=("-x", "--mode", "y"))),
        ("-- a -- b", Verb.RUN, RunOptions(argv=("a", "--", "b"))),
        ("--shell", Verb.RUN, RunOptions(shell=True)),
        ("--resume", Verb.RUN, RunOptions(resume=True)),
        ("--fresh", Verb.RUN, RunOptions(resume=False)),
        ("--dry-run", Verb.RUN, RunOptions(dry_run=True)),
        ("--branch a/b --message=-x", Verb.RUN, RunOptions(branch="a/b", message="-x")),
        ("--no-docker --skip-setup", Verb.RUN, RunOptions(skip_setup=True)),
        ("--allow-docker -- ls", Verb.RUN, RunOptions(argv=("ls",))),
        ("--allow-docker=host --yes", Verb.RUN, RunOptions(yes=True)),
        ("--allow-docker run", Verb.RUN, RunOptions()),
        ("config", Verb.CONFIG, ConfigOptions()),
        ("--config", Verb.CONFIG, ConfigOptions()),
        ("--config --mode user", Verb.CONFIG, ConfigOptions()),
        ("list", Verb.LIST, ListOptions()),
        ("--list", Verb.LIST, ListOptions()),
        ("-l", Verb.LIST, ListOptions()),
        ("-vl", Verb.LIST, ListOptions()),
        ("-v list", Verb.LIST, ListOptions()),
        ("--output json list", Verb.LIST, ListOptions()),
        ("cleanup", Verb.CLEANUP, CleanupOptions()),
        ("--cleanup", Verb.CLEANUP, CleanupOptions()),
        ("cleanup a --yes b", Verb.CLEANUP, CleanupOptions(sessions=("a", "b"), yes=True)),
        ("--cleanup a", Verb.CLEANUP, CleanupOptions(sessions=("a",))),
        ("cleanup --all", Verb.CLEANUP, CleanupOptions(everything=True)),
        ("--cleanup-all", Verb.CLEANUP, CleanupOptions(everything=True)),
        ("--yes --cleanup-all", Verb.CLEANUP, CleanupOptions(everything=True, yes=True)),
        ("import s --branch b", Verb.IMPORT, ImportOptions(session="s", branch="b")),
        ("diff 20260101-000000-abc", Verb.DIFF, DiffOptions(session="20260101-000000-abc")),
        ("info", Verb.INFO, InfoOptions()),
        ("--info --mode user --limit memory=4G", Verb.INFO, InfoOptions()),
        ("doctor", Verb.DOCTOR, DoctorOptions()),
        ("setup --remove --yes", Verb.SETUP, SetupOptions(remove=True, yes=True)),
        ("setup --dry-run --user bob", Verb.SETUP, SetupOptions(dry_run=True, user="bob")),
        ("agent install claude", Verb.AGENT, AgentOptions(action="install", name="claude")),
        ("images list", Verb.IMAGES, ImagesOptions(action=ImagesAction.LIST, arguments=())),
        ("images build", Verb.IMAGES, ImagesOptions(action=ImagesAction.BUILD, arguments=())),
        (
            "images build worker worker-minimal --verbose",
            Verb.IMAGES,
            ImagesOptions(action=ImagesAction.BUILD, arguments=("worker", "worker-minimal")),
        ),
        (
            "images save worker ./file",
            Verb.IMAGES,
            ImagesOptions(action=ImagesAction.SAVE, arguments=("worker", "./file")),
        ),
        ("record show s", Verb.RECORD, RecordOptions(action=RecordAction.SHOW, session="s")),
        (
            "record verify --key k s",
            Verb.RECORD,
            RecordOptions(action=RecordAction.VERIFY, session="s", key=Path("k")),
        ),
        (
            "record verify --commit HEAD~1",
            Verb.RECORD,
            RecordOptions(action=RecordAction.VERIFY, session=None, commit="HEAD~1"),
        ),
        ("report s", Verb.REPORT, ReportOptions(session="s")),
        ("report --html=-x s", Verb.REPORT, ReportOptions(session="s", html=Path("-x"))),
        ("network check a.org", Verb.NETWORK, _network(NetworkAction.CHECK, "a.org")),
        (
            "network check --no-network https://a.org/x",
            Verb.NETWORK,
            _network(NetworkAction.CHECK, "https://a.org/x"),
        ),
        ("-v network check list", Verb.NETWORK, _network(NetworkAction.CHECK, "list")),
        ("network watch", Verb.NETWORK, _network(NetworkAction.WATCH)),
        ("network watch spike", Verb.NETWORK, _network(NetworkAction.WATCH, "spike")),
        ("network allow *.a.org:80", Verb.NETWORK, _network(NetworkAction.ALLOW, "*.a.org:80")),
        (
            "network allow spike a.org b.org",
            Verb.NETWORK,
            _network(NetworkAction.ALLOW, "spike", "a.org", "b.org"),
        ),
        ("network learn --output json spike", Verb.NETWORK, _network(NetworkAction.LEARN, "spike")),
    ],
)
def test_a_command_line_is_understood(line: str, verb: Verb, options: Options) -> None:
    invocation = parse(line.split())
    assert (invocation.verb, invocation.options) == (verb, options)


@pytest.mark.parametrize(
    ("line", "entries"),
    [
        ("--mode user", [("mode", "user", "--mode")]),
        ("--mode=user", [("mode", "user", "--mode")]),
        ("-s x", [("session", "x", "--session")]),
        ("-sx", [("session", "x", "--session")]),
        ("--session list", [("session", "list", "--session")]),
        ("--allow-docker", [("docker", "own", "--allow-docker")]),
        ("--allow-docker=host", [("docker", "host", "--allow-docker")]),
        ("--no-docker", [("docker", "none", "--no-docker")]),
        ("config --allow-docker", [("docker", "own", "--allow-docker")]),
        (
            "--allow-docker --docker-image a:1 --docker-image=b",
            [
                ("docker", "own", "--allow-docker"),
                ("docker_images", "a:1", "--docker-image"),
                ("docker_images", "b", "--docker-image"),
            ],
        ),
        (
            "--mode auto --engine docker --image worker-minimal --runtime /opt/runsc",
            [
                ("mode", "auto", "--mode"),
                ("engine", "docker", "--engine"),
                ("image", "worker-minimal", "--image"),
                ("runtime", "/opt/runsc", "--runtime"),
            ],
        ),
        ("--no-network", [("network", "none", "--no-network")]),
        ("--allow-network", [("network", "full", "--allow-network")]),
        ("--mount /a --mount b:/c:rw", [("mounts", "/a", "--mount"), ("mounts", "b:/c:rw", "--mount")]),
        (
            "--allow-domain a.org --allow-domain=b.org,c.org:80",
            [
                ("allow_domains", "a.org", "--allow-domain"),
                ("allow_domains", "b.org,c.org:80", "--allow-domain"),
            ],
        ),
        ("--deny-domain *.a.org", [("deny_domains", "*.a.org", "--deny-domain")]),
        (
            "--allow-preset npm --allow-preset pip,go",
            [("presets", "npm", "--allow-preset"), ("presets", "pip,go", "--allow-preset")],
        ),
        (
            "--credentials copy --provider-tools",
            [("provider_tools", "true", "--provider-tools"), ("credentials", "copy", "--credentials")],
        ),
        (
            "--allow-network --allow-private",
            [("network", "full", "--allow-network"), ("allow_private", "true", "--allow-private")],
        ),
        ("--budget tokens=1M,bytes=2G", [("budget", "tokens=1M,bytes=2G", "--budget")]),
        ("network check a.org --no-network", [("network", "none", "--no-network")]),
        ("network check --allow-domain b.org a.org", [("allow_domains", "b.org", "--allow-domain")]),
        ("--full-clone", [("full_clone", "true", "--full-clone")]),
        ("--on-finish keep", [("on_finish", "keep", "--on-finish")]),
        (
            "--time-limit 30m --agent demo",
            [("agent", "demo", "--agent"), ("time_limit", "30m", "--time-limit")],
        ),
        ("-v --output json", [("output", "json", "--output"), ("verbose", "true", "--verbose")]),
        ("list --output=json", [("output", "json", "--output")]),
    ],
)
def test_what_is_a_setting_becomes_the_strongest_layer(line: str, entries: list[tuple[str, ...]]) -> None:
    found = [(entry.key, entry.text, entry.source.where) for entry in parse(line.split()).flags]
    assert found == entries


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--mod", "user"], "--mode"),
        (["--no-netwrok"], "--no-network"),
        (["--lst"], "--list"),
        (["--claenup"], "--cleanup"),
        (["lst"], "clsecure list"),
        (["make", "test"], "clsecure -- make"),
        (["run", "make"], "clsecure -- make"),
        (["-x"], "unknown option '-x'"),
        (["--mode"], "--mode needs a value"),
        (["--mode", "--session"], "--mode needs a value"),
        (["--mode", "docker"], "--mode must be user, namespace, container or auto"),
        (["--mode", ""], "--mode must be"),
        (["--shell=yes"], "takes no value"),
        (["--session", "../x"], "--session must be"),
        (["--session", "-f"], "--session must be"),
        (["-s", "a" * 4096], "--session must be"),
        (["--session="], "--session must be"),
        (["--agent", "Claude Code"], "--agent must be"),
        (["--mount", "/a:/b:/c"], "--mount must be"),
        (["--mount", ""], "--mount must be"),
        (["--time-limit", "soon"], "--time-limit must be"),
        (["--on-finish", "push"], "--on-finish must be"),
        (["--branch", "a..b"], "--branch is not"),
        (["--branch", "-x"], "--branch is not"),
        (["--message", " "], "--message must be"),
        (["--output", "xml"], "--output must be"),
        (["--no-network", "--allow-network"], "exclude each other"),
        (["--no-network", "--allow-domain", "a.org"], "--no-network and --allow-domain exclude each other"),
        (["--no-network", "--allow-preset", "npm"], "exclude each other"),
        (["--no-network", "--allow-private"], "exclude each other"),
        (["--allow-network", "--allow-domain", "a.org"], "exclude each other"),
        (["--allow-network", "--allow-preset", "npm"], "exclude each other"),
        (["network", "check", "a.org", "--allow-network", "--allow-domain", "a.org"], "exclude each other"),
        (["--allow-domain", "*"], "--allow-domain must be"),
        (["--allow-domain", "*.com"], "--allow-domain must name at least a domain"),
        (["--allow-domain", ""], "--allow-domain must not be empty"),
        (["--allow-domain", "a.org,"], "--allow-domain must not be empty"),
        (["--allow-domain", "https://a.org"], "--allow-domain must"),
        (["--allow-domain"], "--allow-domain needs a value"),
        (["--deny-domain", "a.org:99999"], "--deny-domain must have a port"),
        (["--allow-preset", "nmp"], "--allow-preset must be one or more of npm"),
        (["--credentials", "steal"], "--credentials must be inject, copy or none"),
        (["--budget", "tokens"], "--budget must be such as"),
        (["--allow-domian", "a.org"], "--allow-domain"),
        (["images"], "missing: ACTION"),
        (["images", "bild"], "not an action of 'clsecure images'"),
        (["images", "list", "worker"], "'clsecure images list' takes nothing more"),
        (["images", "load"], "takes NAME|FILE"),
        (["images", "save", "worker"], "takes NAME FILE"),
        (["images", "prune", "--yes"], "--yes does not go with 'clsecure images'"),
        (["record"], "missing: ACTION"),
        (["record", "sign", "s"], "not an action of 'clsecure record'"),
        (["record", "show"], "takes SESSION"),
        (["record", "verify"], "one session is wanted, or --commit REV"),
        (["record", "verify", "s", "--commit", "HEAD"], "one session is wanted, or --commit REV"),
        (["record", "verify", "s", "t"], "takes SESSION|--commit REV"),
        (["record", "show", "s", "--key", "k"], "--key does not go with 'clsecure record show'"),
        (["record", "show", "../x"], "not a name of a session"),
        (["record", "verify", "--commit=-x"], "--commit must be a commit"),
        (["report"], "missing: SESSION"),
        (["report", "s", "--key", "k"], "--key does not go with 'clsecure report'"),
        (["network"], "missing: ACTION"),
        (["network", "chek", "a.org"], "not an action of 'clsecure network'"),
        (["network", "check"], "takes URL|HOST[:PORT]"),
        (["network", "check", "a.org", "b.org"], "takes URL|HOST[:PORT]"),
        (["network", "watch", "a", "b"], "takes [SESSION]"),
        (["network", "watch", "../x"], "not a name of a session"),
        (["network", "allow"], "takes [SESSION] HOST[:PORT]"),
        (["network", "watch", "--no-network"], "--no-network does not go with 'clsecure network watch'"),
        (["network", "learn", "--allow-domain", "a.org"], "does not go with 'clsecure network learn'"),
        (["network", "check", "a.org", "--mode", "user"], "--mode does not go with 'clsecure network'"),
        (["list", "--allow-domain", "a.org"], "--allow-domain does not go with 'clsecure list'"),
        (["--resume", "--fresh"], "exclude each other"),
        (["--shell", "--", "ls"], "exclude each other"),
        (["cleanup", "--all", "x"], "exclude each other"),
        (["--"], "no command after --"),
        (["--", ""], "no command after --"),
        (["list", "--", "ls"], "does not go with 'clsecure list'"),
        (["list", "--mode", "user"], "--mode does not go with 'clsecure list'"),
        (["list", "x"], "too much"),
        (["list", "--cleanup"], "only one command"),
        (["--list", "--cleanup"], "only one command"),
        (["import"], "missing: SESSION"),
        (["import", "a", "b"], "too much"),
        (["import", "../x"], "not a name of a session"),
        (["diff", "a\x1bb"], "not a name of a session"),
        (["cleanup", "ok", "a/b"], "not a name of a session"),
        (["agent", "remove", "claude"], "agent install claude"),
        (["agent", "install", "../x"], "name of an agent"),
        (["setup", "--user", "a,b"], "--user must be"),
        (["--allow-docker", "host"], "'host' is not a command"),
        (["--allow-docker", "list"], "--allow-docker does not go with 'clsecure list'"),
        (["--allow-docker=everything"], "--allow-docker must be none, own or host"),
        (["--allow-docker="], "--allow-docker must be none, own or host"),
        (["--allow-docker", "--no-docker"], "exclude each other"),
        (["--docker-image", "a", "--no-docker"], "exclude each other"),
        (["--docker-image", "A b"], "--docker-image must be references"),
        (["--docker-image"], "--docker-image needs a value"),
        (["--yes"], "--yes goes with --allow-docker=host alone"),
        (["--allow-docker", "--yes"], "--yes goes with --allow-docker=host alone"),
        (["--engine", "lxc"], "--engine must be podman or docker"),
        (["--runtime", "../x"], "--runtime must be"),
        (["--image", "A"], "--image must be"),
        (["--provider", "../x"], "--provider must be"),
        (["--limit", "memory=1"], "--limit must have at least"),
        (["config", "x"], "too much for 'clsecure config'"),
        (["--config", "--dry-run"], "does not go with 'clsecure config'"),
    ],
)
def test_anything_else_is_one_clear_error(words: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    error = caught.value
    assert told in f"{error.brief} | {error.details} | {error.resolution}"
    assert error.exit_code == 125


@pytest.mark.parametrize("line", ["--help", "-h", "run --help", "--mode user -h", "--session x --help"])
def test_help_is_a_text(line: str) -> None:
    options = parse(line.split()).options
    assert isinstance(options, TextOptions)
    assert options.text.startswith("usage: clsecure [OPTIONS] [-- COMMAND")


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_is_readable_at_80_columns_and_names_every_flag(verb: Verb) -> None:
    options = parse([verb, "--help"]).options
    assert isinstance(options, TextOptions)
    assert max(len(line) for line in options.text.splitlines()) <= 80
    for option in OPTIONS:
        if verb in option.verbs and option.group:
            assert option.name in options.text


def test_help_of_run_names_every_command() -> None:
    text = build_parser().format_help()
    assert all(f"  {verb.value} " in text for verb in COMMANDS)


def test_version_is_a_text() -> None:
    options = parse(["--version"]).options
    assert isinstance(options, TextOptions)
    assert options.text.startswith("clsecure 0.")


@pytest.mark.parametrize(
    ("line", "environ", "expected"),
    [
        ("--output json --bogus", {}, True),
        ("--bogus --output=json", {}, True),
        ("--bogus", {"CLSECURE_OUTPUT": "json"}, True),
        ("--bogus --output human", {"CLSECURE_OUTPUT": "json"}, False),
        ("--bogus -- --output json", {}, False),
        ("--bogus", {}, False),
    ],
)
def test_an_unreadable_command_line_still_says_how_to_answer(
    line: str, environ: dict[str, str], expected: bool
) -> None:
    assert wants_json(line.split(), environ) is expected

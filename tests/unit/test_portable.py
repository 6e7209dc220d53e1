"""Agent files made portable: what is rewritten in the copy, and that nothing of it comes home."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path, PurePosixPath

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from clsecure.privileged.portable import place_of, replaced, strings, taken_back
from clsecure.workspace.portable import (
    Inside,
    absolute_hook,
    hook_rewrites,
    look,
    mcp_rewrites,
    portable_program,
)
from tests.support import imports
from tests.support.clone_in import (
    Session,
    assert_unchanged_is_identical,
    bring_in,
    commit,
    digest,
    git,
    inside,
    make,
    status_inside,
)

NVM = "/home/u/.nvm/versions/node/v20.11.0/bin/npx"
PYENV = "/home/u/.pyenv/shims/python3"
SERVERS = f"""{{
  "mcpServers": {{
    "one":  {{ "command": "{NVM}", "args": ["-y", "some-server"] }},
    "two":  {{ "args": ["tools/server.py"], "command": "{PYENV}" }},
    "last": {{"command":"plain","args":["npx"]}}
  }}
}}
"""
HOOKS = """{"hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [
  {"type": "command", "command": "./scripts/check.sh --fast"},
  {"type": "command", "command": "echo ./not-this"}]}]}}"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A directory with the programs of a machine."""
    directory = tmp_path / "system/bin"
    directory.mkdir(parents=True)
    for name in ("npx", "node", "python3"):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture
def given(system: Path):
    """What the session has, by its workspace."""

    def make_inside(workspace: Path = Path("/home/w/work")) -> Inside:
        return Inside(
            home=Path("/home/u"),
            project=Path("/home/u/project"),
            workspace=PurePosixPath(workspace),
            places={PurePosixPath("/usr"): system.parent, PurePosixPath("/opt/mine"): system.parent},
            path=(PurePosixPath("/opt/mine/bin"), PurePosixPath("/usr/bin")),
        )

    return make_inside


@pytest.mark.parametrize(
    ("command", "portable"),
    [
        (NVM, "npx"),
        (PYENV, "python3"),
        ("/home/u/.volta/bin/npx", "npx"),
        ("/home/u/.asdf/shims/node", "node"),
        ("/home/u/.local/share/mise/installs/node/22/bin/npx", "npx"),
        ("/Users/somebody/.nvm/versions/node/v18.0.0/bin/node", "node"),
        ("/Users/somebody/.local/bin/uvx", "uvx"),
        ("/home/u/bin/node", "node"),
        ("/opt/homebrew/bin/npx", "npx"),
        ("/usr/local/Cellar/node/22.1.0/bin/node", "node"),
        ("/usr/local/bin/npx", "npx"),
        ("/home/linuxbrew/.linuxbrew/bin/npx", "npx"),
        ("${HOME}/.nvm/versions/node/v20/bin/npx", "npx"),
        ("~/.local/bin/npx", "npx"),
        ("/home/u/.pyenv/versions/3.12.1/bin/python3.12", "python3.12"),
        # The shim is called python; the system has python3 only.
        ("/home/u/.pyenv/shims/python", "python3"),
        ("npx", None),
        ("/usr/bin/npx", None),
        ("/opt/mine/bin/npx", None),  # a mount: it is there
        ("/home/u/.nvm/versions/node/v20/bin/some-server", None),
        ("/home/u/project/.venv/bin/python3", None),
        ("/home/u/other/.venv/bin/python3", None),
        ("/srv/tools/npx", None),
        ("/home/u/.nvm/../../../etc/npx", None),
        ("./.nvm/npx", None),
        ("", None),
    ],
)
def test_a_command_in_somebodys_own_tools_becomes_the_program_alone(given, command, portable):
    assert portable_program(command, given()) == portable


@pytest.mark.parametrize(
    "command", ["/usr/" + "a/" * 500_000 + "npx", "/home/u/" + "a/" * 500_000 + "npx"], ids=["there", "home"]
)
def test_a_command_of_endless_parts_costs_nothing(given, command):
    """A megabyte of them took all of the memory."""
    place = given()
    before, limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limit))
    try:
        data = json.dumps({"mcpServers": {"one": {"command": command}}}).encode()
        assert mcp_rewrites(data, place) == ()
        assert not place.exists(PurePosixPath(command))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, limit))


@pytest.mark.parametrize(
    ("command", "workspace", "absolute"),
    [
        ("./a.sh", "/w", "/w/a.sh"),
        ("./a.sh --x && ./b.sh", "/w", "/w/a.sh --x && ./b.sh"),
        ("  X=1 Y=a.b ./a.sh", "/w", "  X=1 Y=a.b /w/a.sh"),
        ("bash ./a.sh", "/w", "bash /w/a.sh"),
        ("python3 ./a.py ./b", "/w", "python3 /w/a.py ./b"),
        ('"./a b.sh" -x', "/w", '"/w/a b.sh" -x'),
        ("./a.sh", "/w o/r'k", "'/w o/r'\"'\"'k'/a.sh"),
        ("./a\nb", "/w", "/w/a\nb"),
        ('"./a b.sh"', "/w o", None),
        ("cd sub && ./a.sh", "/w", None),
        ("a.sh", "/w", None),
        ("../a.sh", "/w", None),
        (".//a.sh", "/w", "/w//a.sh"),
        ("'$HOME'/./a", "/w", None),
        ("", "/w", None),
    ],
)
def test_a_hook_of_the_work_tree_becomes_absolute(command, workspace, absolute):
    assert absolute_hook(command, PurePosixPath(workspace)) == absolute


FORMS = {
    "as written": lambda text: text.encode(),
    "one line": lambda text: json.dumps(json.loads(text)).encode(),
    "tabs, no newline at the end": lambda text: json.dumps(json.loads(text), indent="\t").encode(),
    "CR LF": lambda text: text.replace("\n", "\r\n").encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "escaped slashes": lambda text: text.replace("/", "\\/").encode(),
    "other letters": lambda text: text.replace("some-server", "süß \U0001f36c \\u00fc").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_only_the_strings_that_are_rewritten_change(given, form):
    data = FORMS[form](SERVERS)
    rewrites = mcp_rewrites(data, given())
    rules = [each.rule for each in rewrites]
    after = replaced(data, rules)
    assert [json.loads(each.inside) for each in rewrites] == ["npx", "python3"]
    for each in rewrites:
        data = data.replace(each.outside.encode(), each.inside.encode())
    assert after == data
    assert replaced(after, rules, back=True) == FORMS[form](SERVERS)


def test_arguments_that_are_such_a_path_in_whole_are_rewritten_too(given):
    data = json.dumps({"mcpServers": {"a": {"command": "env", "args": ["-S", NVM, f"x={NVM}"]}}}).encode()
    rules = [each.rule for each in mcp_rewrites(data, given())]
    assert json.loads(replaced(data, rules))["mcpServers"]["a"]["args"] == ["-S", "npx", f"x={NVM}"]


@pytest.mark.parametrize(
    "data",
    [
        f'{{"mcpServers": {{"a": {{"command": "{NVM}", "command": "{NVM}"}}}}}}',
        f'{{"mcpServers": {{"a": {{"command": "{NVM}"}}}}, "mcpServers": {{}}}}',
        f'{{"mcpServers": {{"a": {{"command": "{NVM}"}}}}}} // comment',
        f'{{"mcpServers": [{{"command": "{NVM}"}}]}}',
        f'{{"mcpServers": {{"a": {{"command": ["{NVM}"]}}}}}}',
        f'{{"mcpServers": {{"a": {{"args": ["{NVM}", "npx"]}}}}}}',
        f'{{"other": {{"a": {{"command": "{NVM}"}}}}}}',
        f'["mcpServers", {{"a": {{"command": "{NVM}"}}}}]',
        "[" * 100_000,
        '{"mcpServers": ' + '{"a":' * 5000,
        '{"mcpServers": {"a": {"command": "' + "\\" * 100_001,
        "/*" * 100_000,
        "null", "", "{", '"', "\0", "{}}}}", "]",
    ],
)  # fmt: skip
def test_what_is_not_plain_stays_as_it_is(given, data):
    assert mcp_rewrites(data.encode(), given()) == ()
    assert mcp_rewrites(data.encode("utf-16"), given()) == ()


def test_a_file_with_more_than_fits_is_left_alone(given):
    servers = {f"server {n}": {"command": NVM} for n in range(2000)}
    assert mcp_rewrites(json.dumps({"mcpServers": servers}).encode(), given()) == ()


def test_a_hook_is_found_again_wherever_the_agent_moved_it():
    rules = [each.rule for each in hook_rewrites(HOOKS.encode(), PurePosixPath("/w"))]
    there = json.loads(replaced(HOOKS.encode(), rules))
    moved = {
        "hooks": {"Stop": [{"hooks": []}, {"hooks": [{"command": "new"}]}, *there["hooks"]["PreToolUse"]]}
    }
    back = json.loads(taken_back(json.dumps(moved).encode(), rules, b""))
    assert back["hooks"]["Stop"][2]["hooks"][0]["command"] == "./scripts/check.sh --fast"
    assert back["hooks"]["Stop"][2]["hooks"][1]["command"] == "echo ./not-this"


_KEYS = st.sampled_from(["mcpServers", "command", "args", "hooks", "a", 'ü"', ""])
_VALUES = st.sampled_from([NVM, PYENV, "npx", "./x", "", "mcpServers", '"\\\n', "\U0001f36c\ud800"])
_JSON = st.recursive(
    _VALUES | st.none() | st.integers() | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=30,
)
_SERVER = st.fixed_dictionaries({"command": _VALUES, "args": st.lists(_VALUES, max_size=4)})
_FILES = st.fixed_dictionaries(
    {"mcpServers": st.dictionaries(_KEYS, _SERVER | _JSON, max_size=4), "hooks": _JSON, "more": _JSON}
)


def walked(value: object, path: tuple[str | None, ...] = ()) -> list[tuple[object, str]]:
    """The strings in a place, found in the document and not in its text."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in walked(item, (*path, key))]
    if isinstance(value, list):
        return [found for item in value for found in walked(item, (*path, None))]
    place = place_of(path) if isinstance(value, str) else None
    return [] if place is None else [(place, str(value))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@hypothesis.given(document=_JSON | _FILES, indent=st.sampled_from([None, 0, 3, "\t"]), ascii_=st.booleans())
def test_every_string_is_found_where_it_stands_and_put_back(given, document, indent, ascii_):
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_ or "\\ud" in json.dumps(document))
    data = text.encode()
    assert [(found.place, found.value) for found in strings(data)] == walked(document)
    rules = [each.rule for each in mcp_rewrites(data, given())]
    inside = replaced(data, rules)
    assert (inside == data) == (not rules)
    assert replaced(inside, rules, back=True) == data


# ---- the way in and home ------------------------------------------------------------------------------


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    top = make(home / "project")
    (top / ".claude").mkdir()
    (top / ".mcp.json").write_text(SERVERS)
    (top / ".claude/settings.json").write_text(HOOKS)
    commit(top, "agent files")
    return top


@pytest.fixture
def start(tmp_path: Path, top: Path, given):
    """Clone in; ``top`` may be changed before."""

    def begin() -> Session:
        before = digest(top)
        session = bring_in(top, tmp_path / "room", programs=given)
        assert digest(top) == before
        return session

    return begin


def branch_of(session: Session, tmp_path: Path, top: Path) -> str | None:
    """Bring the work home; the branch, None for no work."""
    home = imports.Session(root=tmp_path, repo=top, start=session.state, workspace=session.workspace)
    result = home.bring_home()
    return result.branch if result else None


def edited(session: Session, name: str, old: str, new: str) -> None:
    """The agent changes a file."""
    file = session.workspace / name
    data = file.read_bytes().decode()
    assert old in data
    file.write_bytes(data.replace(old, new).encode())


def shown(top: Path, what: str) -> bytes:
    return git(top, "cat-file", "blob", what)


def test_the_copy_names_what_is_there_and_its_git_sees_no_change(start, top):
    session = start()
    servers = json.loads((session.workspace / ".mcp.json").read_bytes())["mcpServers"]
    assert (servers["one"]["command"], servers["two"]["command"]) == ("npx", "python3")
    assert (
        f'"{session.workspace}/scripts/check.sh --fast"'
        in (session.workspace / ".claude/settings.json").read_text()
    )
    assert status_inside(session) == set()
    assert inside(session, "diff-files") == b""
    assert_unchanged_is_identical(session)
    inside(session, "commit", "-qam", "nothing", status=1)
    assert (top / ".mcp.json").read_text() == SERVERS


def test_a_session_that_changed_nothing_imports_nothing(start, top, tmp_path):
    assert branch_of(start(), tmp_path, top) is None


def test_changes_of_the_user_are_in_it_and_stay_the_users(start, top, tmp_path):
    (top / ".mcp.json").write_text(SERVERS.replace("some-server", "another"))
    (top / ".claude/settings.local.json").write_text(HOOKS)
    session = start()
    assert b'"npx", "args": ["-y", "another"]' in (session.workspace / ".mcp.json").read_bytes()
    assert str(session.workspace) in (session.workspace / ".claude/settings.local.json").read_text()
    assert status_inside(session) == {b" M .mcp.json", b"?? .claude/settings.local.json"}
    assert b"npx" not in inside(session, "diff", "-U0").replace(NVM.encode(), b"")
    assert_unchanged_is_identical(session)
    assert branch_of(session, tmp_path, top) is None


def test_a_file_that_the_user_added_with_intent_only(start, top):
    (top / ".claude/settings.local.json").write_text(HOOKS)
    git(top, "add", "-N", ".claude/settings.local.json")
    session = start()
    assert status_inside(session) == {b" A .claude/settings.local.json"}
    assert_unchanged_is_identical(session)


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "uncommitted"])
def test_exactly_the_agents_change_comes_home(start, top, tmp_path, committed):
    session = start()
    edited(session, ".mcp.json", '"plain"', '"npx"')
    edited(session, ".mcp.json", '"-y"', '"--yes"')
    edited(session, ".claude/settings.json", "echo ./not-this", "echo this")
    if committed:
        inside(session, "add", "-A")
        inside(session, "commit", "-qm", "work")
        assert status_inside(session) == set()
    branch = branch_of(session, tmp_path, top)
    expected = SERVERS.replace('"plain"', '"npx"').replace('"-y"', '"--yes"')
    assert shown(top, f"{branch}:.mcp.json").decode() == expected
    assert shown(top, f"{branch}:.claude/settings.json").decode() == HOOKS.replace(
        "echo ./not-this", "echo this"
    )
    assert git(top, "diff", "--numstat", f"main..{branch}").split()[2::3] == [
        b".claude/settings.json", b".mcp.json",
    ]  # fmt: skip


def test_a_file_that_the_agent_wrote_anew_in_another_form(start, top, tmp_path):
    session = start()
    file = session.workspace / ".mcp.json"
    servers = json.loads(file.read_bytes())
    servers["mcpServers"]["new"] = {"command": "npx", "args": ["new"]}
    file.write_text(json.dumps(servers, indent=8))
    branch = branch_of(session, tmp_path, top)
    home = json.loads(shown(top, f"{branch}:.mcp.json"))["mcpServers"]
    assert [home[name]["command"] for name in ("one", "two", "last", "new")] == [NVM, PYENV, "plain", "npx"]


def test_the_very_string_changed_by_the_agent(start, top, tmp_path):
    session = start()
    edited(session, ".mcp.json", '"npx", "args"', '"bunx", "args"')
    branch = branch_of(session, tmp_path, top)
    assert shown(top, f"{branch}:.mcp.json").decode() == SERVERS.replace(NVM, "bunx")


def test_a_file_that_the_agent_removed_or_moved(start, top, tmp_path):
    session = start()
    (session.workspace / ".claude/settings.json").unlink()
    inside(session, "mv", ".mcp.json", "servers.json")
    branch = branch_of(session, tmp_path, top)
    names = git(top, "diff", "--no-renames", "--name-status", f"main..{branch}").split()
    assert names == [b"D", b".claude/settings.json", b"D", b".mcp.json", b"A", b"servers.json"]


def test_a_file_that_is_no_json_any_more(start, top, tmp_path):
    session = start()
    (session.workspace / ".mcp.json").write_bytes(b'{"mcpServers": \xff')
    branch = branch_of(session, tmp_path, top)
    assert shown(top, f"{branch}:.mcp.json") == b'{"mcpServers": \xff'


def test_checking_out_and_stashing_keep_it_portable(start, top):
    session = start()
    rewritten = (session.workspace / ".mcp.json").read_bytes()
    edited(session, ".mcp.json", '"plain"', '"other"')
    inside(session, "-c", "user.name=a", "-c", "user.email=a@b", "stash", "-q")
    assert (session.workspace / ".mcp.json").read_bytes() == rewritten
    inside(session, "stash", "pop", "-q")
    assert (session.workspace / ".mcp.json").read_bytes() == rewritten.replace(b'"plain"', b'"other"')
    inside(session, "checkout", "-q", "--", ".mcp.json")
    assert (session.workspace / ".mcp.json").read_bytes() == rewritten
    inside(session, "worktree", "add", "-q", "../beside")
    assert (session.workspace.parent / "beside/.mcp.json").read_bytes() == rewritten
    assert status_inside(session) == set()


def test_a_commit_that_says_by_itself_what_we_write_is_left_alone(tmp_path, top, start):
    (top / ".mcp.json").write_text(SERVERS.replace(NVM, "npx"))
    commit(top, "portable by itself")
    (top / ".mcp.json").write_text(SERVERS)
    commit(top, "and not again")
    session = start()
    inside(session, "checkout", "-q", "HEAD^")
    assert status_inside(session) == set()
    (session.workspace / "new").write_text("new")
    branch = branch_of(session, tmp_path, top)
    assert shown(top, f"{branch}:.mcp.json").decode() == SERVERS.replace(NVM, "npx")


@pytest.mark.parametrize(
    "attributes",
    [
        "*.json text eol=crlf",
        "*.json text",
        "* text=auto",
        "*.json -text",
        "*.json ident",
        ".mcp.json -filter",
    ],
)
def test_line_ends_and_keywords_stay_what_the_repository_says(start, top, tmp_path, attributes):
    (top / ".gitattributes").write_text(attributes + "\n")
    (top / ".mcp.json").write_text(SERVERS.replace("some-server", "$Id$"))
    commit(top, "attributes")
    session = start()
    assert b'"npx", "args"' in (session.workspace / ".mcp.json").read_bytes()
    assert status_inside(session) == set()
    assert_unchanged_is_identical(session)
    edited(session, ".mcp.json", '"plain"', '"other"')
    branch = branch_of(session, tmp_path, top)
    assert git(top, "diff", "--numstat", f"main..{branch}") == b"1\t1\t.mcp.json\n"


@pytest.mark.parametrize("attributes", ["* text=auto", "* -text", ""])
def test_carriage_returns_that_are_committed_stay(start, top, tmp_path, attributes):
    (top / ".mcp.json").write_bytes(SERVERS.replace("\n", "\r\n").encode())
    commit(top, "carriage returns")
    (top / ".gitattributes").write_text(attributes + "\n")
    commit(top, "attributes")
    session = start()
    assert_unchanged_is_identical(session)
    edited(session, ".mcp.json", '"plain"', '"other"')
    branch = branch_of(session, tmp_path, top)
    assert git(top, "diff", "--numstat", f"main..{branch}") == b"1\t1\t.mcp.json\n"


def test_a_user_with_autocrlf(start, top):
    git(top, "config", "core.autocrlf", "true")
    (top / ".mcp.json").write_bytes(SERVERS.replace("\n", "\r\n").encode())
    session = start()
    assert b'"npx"' in (session.workspace / ".mcp.json").read_bytes()
    assert_unchanged_is_identical(session)


def test_a_filter_of_the_repositorys_own_stays(start, top):
    (top / ".gitattributes").write_text(".mcp.json filter=secret\n")
    commit(top, "attributes")
    session = start()
    assert (session.workspace / ".mcp.json").read_text() == SERVERS
    assert session.workspace.joinpath(".git/info/attributes").read_text().count("\n") == 1
    assert_unchanged_is_identical(session)


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo", "large", "claude is a symlink"])
def test_what_is_no_plain_file_is_no_business_of_ours(start, top, kind):
    file = top / ".mcp.json"
    file.unlink()
    if kind == "symlink":
        (top / "servers.json").write_text(SERVERS)
        file.symlink_to("servers.json")
    elif kind == "directory":
        file.mkdir()
        (file / "x").write_text(SERVERS)
    elif kind == "fifo":
        commit(top, "gone")
        os.mkfifo(file)
    elif kind == "large":
        file.write_text(json.dumps({"mcpServers": {"a": {"command": NVM}}, "x": "x" * (10 << 20)}))
    else:
        (top / ".claude").rename(top / "claude")
        (top / ".claude").symlink_to("claude")
    if kind != "fifo":
        commit(top, "odd")
    session = start()
    assert ".mcp.json" not in session.state.portable
    assert_unchanged_is_identical(session)


def test_servers_are_found_as_they_are_configured_inside(top, given, tmp_path):
    session = bring_in(top, tmp_path / "other")
    assert session.state.portable == {}
    assert not (session.workspace / ".git/info/attributes").exists()
    found = look(session.state, given())
    assert [(s.name, s.command) for s in found.servers] == [
        ("one", "npx"),
        ("two", "python3"),
        ("last", "plain"),
    ]


def test_submodules_are_left_as_they_are(start, top, tmp_path):
    other = make(tmp_path / "user/other")
    (other / ".mcp.json").write_text(SERVERS)
    (other / "settings.json").write_text(HOOKS)
    commit(other, "agent files")
    git(top, "rm", "-rq", ".claude")
    for path in ("sub", ".claude"):
        git(top, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), path)
    commit(top, "submodules")
    session = start()
    assert list(session.state.portable) == [".mcp.json"]
    assert (session.workspace / "sub/.mcp.json").read_text() == SERVERS
    assert (session.workspace / ".claude/settings.json").read_text() == HOOKS
    assert status_inside(session) == set()
    assert_unchanged_is_identical(session)


# ---- hostile agents -----------------------------------------------------------------------------------


def test_a_copys_git_that_knows_nothing_of_it_any_more(start, top, tmp_path):
    session = start()
    (session.workspace / ".git/info/attributes").unlink()
    (session.workspace / ".git/config").write_text("[core]\n\trepositoryformatversion = 0\n")
    (session.workspace / ".git/clsecure-portable.json").write_text("{")
    for name in (".mcp.json", ".claude/settings.json"):
        # Else its index says that they are as they were, and git doesn't look into them.
        os.utime(session.workspace / name, (0, 0))
    assert status_inside(session) == {b" M .mcp.json", b" M .claude/settings.json"}
    # What is not committed is taken back by rules that the agent never held.
    assert branch_of(session, tmp_path, top) is None


def test_a_copy_without_git(start, top, tmp_path):
    session = start()
    shutil.rmtree(session.workspace / ".git")
    assert branch_of(session, tmp_path, top) is None
    edited(session, ".mcp.json", '"plain"', '"other"')
    shutil.rmtree(tmp_path / "quarantine")
    branch = branch_of(session, tmp_path, top)
    assert shown(top, f"{branch}:.mcp.json").decode() == SERVERS.replace('"plain"', '"other"')


def test_rules_that_the_agent_broke_leave_its_git_working(start):
    session = start()
    for rules in ("{", "[]", '{".mcp.json": [{}]}', '{".mcp.json": 1}'):
        (session.workspace / ".git/clsecure-portable.json").write_text(rules)
        (session.workspace / ".mcp.json").touch()
        seen = inside(session, "diff", "-U0").decode()
        assert NVM in seen
        assert '+    "one":  { "command": "npx"' in seen


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "outside"])
def test_something_else_in_the_place_of_the_file(start, top, tmp_path, kind):
    session = start()
    file = session.workspace / ".mcp.json"
    file.unlink()
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"mcpServers": {"one": {"command": "npx"}}}))
    match kind:
        case "link":
            file.symlink_to(secret)
        case "fifo":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
            (file / "x").write_text("x")
        case "outside":
            (session.workspace / ".claude/settings.json").unlink()
            (session.workspace / ".claude").rmdir()
            (session.workspace / ".claude").symlink_to(tmp_path)
            (tmp_path / "settings.json").write_text(HOOKS)
    branch = branch_of(session, tmp_path, top)
    if kind == "fifo":
        assert branch is not None
        return
    listed = git(top, "ls-tree", "-r", f"{branch}").decode()
    assert ("120000" in listed) == (kind in ("link", "outside"))
    assert b"npx" not in git(top, "cat-file", "--batch", data=f"{branch}:.mcp.json\n".encode())

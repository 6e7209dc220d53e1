"""The real Claude Code in real sessions, against a scripted Messages API that only the gateway reaches."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.support import schema, sweep
from tests.support.messages_api import MessagesApi, bash, text
from tests.support.person import SYSTEM_PATH, Person
from tests.support.repostate import assert_only_new_branch, snapshot
from tests.support.terminals import answer, at_terminal, ended
from tests.unit.test_agent_real_claude import DIALOGS, READY, squeezed

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

KEY = "sk-ant-CANARY-of-the-person"
_numbers = itertools.count()
CONTAINERS = [
    pytest.param(f"container/{engine}", marks=pytest.mark.xdist_group("containers"))
    for engine in ("podman", "docker")
]
"""With others that want the image in both engines."""

MANIFEST = """
find . -name .git -prune -o \\( -type f -o -type l \\) -printf '%P\\0' | sort -z |
while IFS= read -r -d '' file; do
    if [ -L "$file" ]; then mode=120000 id=$(readlink -n "$file" | git hash-object --stdin)
    elif [ -x "$file" ]; then mode=100755 id=$(git hash-object --no-filters "$file")
    else mode=100644 id=$(git hash-object --no-filters "$file"); fi
    printf '%s %s %s\\n' "$mode" "$id" "$file"
done >~/manifest
"""
"""The agent's tree as the agent sees it, without git's index: mode, id, path."""

LOOK = """
{ env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; } >~/seen
printf '%s%s' CANARY -of-the-person >~/control
grep -rIl '[C]ANARY-of-the-person' / --exclude-dir={proc,sys,usr} 2>/dev/null >~/found || :
"""


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture(scope="module")
def path(person: Person, claude_binary: Path) -> str:
    """The person's PATH with claude on it, as the native installer leaves it: a link in ~/.local/bin."""
    directory = person.home / ".local/bin"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    return f"{directory}:{SYSTEM_PATH}"


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"claude{next(_numbers)}")


def surroundings(api: MessagesApi, path: str) -> dict[str, str]:
    """Return what the person has in the environment."""
    return {"PATH": path, "ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": KEY}


def home_of(document: dict[str, str]) -> Path:
    """Return the worker's home; root looks into it."""
    return Path("/home", document["worker_user"])


def tokens(api: MessagesApi) -> set[str]:
    """Return the keys that arrived at the provider."""
    return {request.headers.get("x-api-key", "") for request in api.messages()}


@pytest.fixture
def backend(request: pytest.FixtureRequest, mode: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The options of a mode, and what it takes of the environment. No claude of the host's for containers."""
    if "/" not in mode:
        return ("--mode", mode), {"PATH": request.getfixturevalue("path")}
    kind, _, engine = mode.partition("/")
    if engine == "docker":
        env = {"DOCKER_HOST": request.getfixturevalue("docker_host")}
    else:
        request.getfixturevalue("podman_image")
        env = {}
    return ("--mode", kind, "--engine", engine), {"PATH": SYSTEM_PATH, **env}


@pytest.mark.parametrize("mode", ["user", "namespace", *CONTAINERS])
def test_its_work_comes_home_and_the_key_never_goes_in(person, repo, backend, mode):
    options, env = backend
    assert "/" not in mode or shutil.which("claude", path=env["PATH"]) is None
    work = """
        echo 'print("changed")' >src/main.py && git rm -q src/run.sh && git commit -qam 'One less'
        mkdir new && echo made >new/file && chmod +x new/file && ln -s file new/link && rm README.md
    """
    turns = [
        [text("I start."), bash(work)],
        [bash(LOOK)],
        [bash(MANIFEST), text("and look")],
        [text("All is done.")],
    ]
    before = snapshot(repo)
    with MessagesApi(turns) as api:
        done = person.clsecure(
            *options, "--on-finish", "import", "--output", "json",
            "--", "claude", "--dangerously-skip-permissions", "-p", "do it",
            cwd=repo, env=surroundings(api, env.pop("PATH")) | env,
        ).check()  # fmt: skip
        assert tokens(api) == {KEY}
        assert all(request.body["stream"] is True for request in api.messages())
    document = done.json()
    schema.check(document, schema.load("result"))
    assert (document["network"], document["agent"], document["mode"]) == ("api", "claude", options[1])
    assert b"All is done." in done.stderr
    branch = document["import"]["branch"]
    assert_only_new_branch(before, snapshot(repo), branch)
    assert document["import"]["commits"] == 1
    assert document["import"]["uncommitted_commit"] is not None

    home = home_of(document)
    listed = person.git(repo, "ls-tree", "-r", "--format=%(objectmode) %(objectname) %(path)", branch)
    assert sorted(listed.splitlines()) == sorted((home / "manifest").read_text().splitlines())
    assert set(person.git(repo, "ls-tree", "-r", "--name-only", branch).split()) == {
        "src/main.py", "new/file", "new/link",
    }  # fmt: skip

    assert (home / "found").read_text() == f"{home}/control\n"
    assert "ANTHROPIC_AUTH_TOKEN=" in (home / "seen").read_text()
    assert_without_key(home)


def assert_without_key(home: Path) -> None:
    """Fail when any file of the worker's, among them what the agent saw of /proc, holds the key."""
    files = [each for each in home.rglob("*") if each.is_file() and not each.is_symlink()]
    assert files
    assert [each for each in files if KEY.encode() in each.read_bytes()] == []


def test_a_resumed_conversation_goes_on_with_a_new_token(person, repo, path):
    turns = [[bash("echo one >one; env | grep TOKEN >~/token1")], [text("First part.")],
             [bash("echo two >two; env | grep TOKEN >~/token2")], [text("Second part.")]]  # fmt: skip
    with MessagesApi(turns) as api, talking(person, repo, api, path) as child:
        converse(child, "begin the task", "First part")
        leave(child)
        answer(child, "Your choice", "k", then=pexpect.EOF)
        assert ended(child) == 0
        with talking(person, repo, api, path, "--resume", "--on-finish", "import") as second:
            converse(second, "and now the rest", "Second part")
            leave(second)
            second.expect("imported as")
            assert ended(second) == 0
        # One conversation: the second session's request holds the words of the first.
        said = json.dumps(api.messages()[-1].body["messages"])
        assert "begin the task" in said
        assert "and now the rest" in said
        assert tokens(api) == {KEY}
    branches = person.git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads/claude").split()
    assert person.git(repo, "diff", "--name-only", f"main..{branches[0]}").split() == ["one", "two"]
    (account,) = [each for each in person.worker_accounts() if each["project"] == str(repo)]
    used = [Path(str(account["home"]), f"token{number}").read_text() for number in (1, 2)]
    assert used[0] != used[1]
    assert_without_key(Path(str(account["home"])))


@pytest.mark.parametrize("mode", ["user", "namespace", CONTAINERS[0]])
def test_talking_to_it_on_a_terminal_until_the_import(person, repo, backend, mode):
    options, env = backend
    turns = [[bash("echo made >made; git add made; git commit -qm 'By the agent'")], [text("It is made.")]]
    with MessagesApi(turns) as api, talking(person, repo, api, env["PATH"], *options) as child:
        seen = converse(child, "make it", "It is made")
        assert [dialog for dialog in DIALOGS if squeezed(dialog.encode()) in seen] == []
        leave(child)
        child.expect("1 commit, 1 changed file")
        answer(child, "Your choice", "i", then="Branch")
        answer(child, "claude/", "talked", then="imported as talked")
        assert ended(child) == 0
        assert tokens(api) == {KEY}
    assert person.git(repo, "show", "talked:made") == "made"
    assert person.git(repo, "log", "--format=%s", "main..talked") == "By the agent"


def test_a_prompt_from_a_pipe(person, repo, path):
    with MessagesApi([[bash("cat README.md")], [text("I read it.")]]) as api:
        agent = ("--", "claude", "--dangerously-skip-permissions", "-p")
        line = (
            f"echo 'read the readme' | {shlex.join(person.clsecure_argv('--on-finish', 'discard', *agent))}"
        )
        done = person.run(["sh", "-c", line], cwd=repo, env=surroundings(api, path)).check()
        assert done.text == "I read it.\n"
        assert "read the readme" in json.dumps(api.messages()[0].body["messages"])


@contextlib.contextmanager
def talking(person, repo, api, path, *options):
    """Start clsecure as a person does, without naming an agent."""
    argv = person.clsecure_argv(*options)
    with at_terminal(person, argv, cwd=repo, env=surroundings(api, path), size=(45, 120)) as child:
        yield child


def converse(child, prompt: str, answer: str) -> str:
    """Wait until the agent is ready, say something, wait for the answer; return all that was shown."""
    child.expect(spread(READY))
    seen = child.before + child.after
    child.send(prompt)
    child.expect(spread(prompt))
    child.send("\r")
    child.expect(spread(answer))
    return squeezed(seen + child.before + child.after)


def leave(child) -> None:
    """End the agent as people do."""
    child.send("/exit")
    child.expect(spread("/exit"))
    child.send("\r")


def spread(words: str) -> bytes:
    """Return a pattern of words between which the agent's drawing may move the cursor."""
    between = rb"(?:\s|\x1b\[[0-9;?<>=]*[A-Za-z])*"
    return between.join(re.escape(each).encode() for each in words.split())

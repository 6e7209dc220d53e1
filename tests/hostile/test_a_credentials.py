"""A3 and A4 with the real Claude Code: it finishes a task while its key is nowhere in the sandbox.

In the middle of a task the provider holds its answer back, and root looks at everything that the worker has:
environments, memory, the whole view. Afterwards come its home, all logs and all that was said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import memory, schema, sweep
from tests.support.hostile import LiveAgent, Target, canary, files_containing, sampling
from tests.support.leftovers import all_pids, descendants, namespaces_of, started, wait_until
from tests.support.messages_api import MessagesApi, Pause, RecordedRequest, bash, text, tool_use
from tests.support.person import SYSTEM_PATH, Person

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240)]

_numbers = itertools.count()
CLAUDE = ["claude", "--dangerously-skip-permissions", "-p", "do it"]
LOOK = r"""
{ env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n'; } >~/seen
echo more >made
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of credential: where the user has it, how the agent has the token, how the provider gets it.

    :param variable: of the user's environment; None for the subscription's file.
    :param inside: the variable that holds the session's token.
    :param command: a command of the user's prints it, for a provider of the user's own.
    """

    prefix: str
    variable: str | None
    inside: str
    command: bool = False

    def arrived(self, request: RecordedRequest, key: str) -> bool:
        """Tell whether the provider got the key with the headers of its kind, and no other credential."""
        presented = (request.headers.get("x-api-key"), request.headers.get("authorization"))
        if self.inside == "ANTHROPIC_AUTH_TOKEN":
            return presented == (key, None)
        return presented == (None, f"Bearer {key}") and "oauth-" in request.headers["anthropic-beta"]


API_KEY = Kind(prefix="sk-ant-api03-", variable="ANTHROPIC_API_KEY", inside="ANTHROPIC_AUTH_TOKEN")
OAUTH = Kind(prefix="sk-ant-oat01-", variable="CLAUDE_CODE_OAUTH_TOKEN", inside="CLAUDE_CODE_OAUTH_TOKEN")
COMMAND = Kind(prefix="sk-llm-test-1", variable=None, inside="ANTHROPIC_AUTH_TOKEN", command=True)
SUBSCRIPTION = Kind(prefix="sk-ant-oat01-", variable=None, inside="CLAUDE_CODE_OAUTH_TOKEN")


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture(scope="module")
def path(person: Person, claude_binary: Path) -> str:
    """The person's PATH with claude on it."""
    directory = person.home / ".local/bin"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    return f"{directory}:{SYSTEM_PATH}"


@pytest.fixture
def subscribed(person: Person) -> Iterator[Path]:
    """The place of Claude Code's own credentials."""
    directory = person.home / ".claude"
    person.run(["mkdir", "-p", str(directory)]).check()
    yield directory / ".credentials.json"
    shutil.rmtree(directory)


def store(person: Person, file: Path, token: str, *, expires_in: float = 3600.0) -> None:
    """Write credentials as Claude Code does: a new file by rename."""
    oauth = {
        "accessToken": token,
        "refreshToken": f"sk-ant-ort01-{token[-24:]}",
        "expiresAt": int((time.time() + expires_in) * 1000),
        "scopes": ["user:inference"],
    }
    new = file.with_name(".credentials.new")
    person.write(new, json.dumps({"claudeAiOauth": oauth}).encode(), mode=0o600)
    new.rename(file)


@pytest.fixture
def own_provider(person: Person) -> Iterator[Callable[[str, str], None]]:
    """Describe a provider whose key a command prints, slowly enough to be looked at."""
    settings, store = person.home / ".config/clsecure", person.home / ".password-store"

    def describe(url: str, key: str) -> None:
        person.run(["mkdir", "-p", str(settings), str(store)]).check()
        person.write(store / "mine", f"{key}\nuser: ada\n".encode(), mode=0o600)
        script = f"#!/bin/sh\nread key <{store}/mine\nsleep 0.3\necho $key\n"
        person.write(store / "show", script.encode(), mode=0o755)
        table = f"[providers.mine]\nbase_url = '{url}'\nkey_command = '~/.password-store/show llm/mine'\n"
        person.write(settings / "config.toml", table.encode())

    yield describe
    shutil.rmtree(settings, ignore_errors=True)
    shutil.rmtree(store, ignore_errors=True)


# Each mode with a key and with an OAuth token; a session takes seconds.
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        pytest.param(mode, kind, id=f"{mode}-{name}", marks=pytest.mark.xdist_group(f"hostile-{mode}"))
        for mode, kind, name in (
            ("user", API_KEY, "api-key"),
            ("user", SUBSCRIPTION, "subscription"),
            ("user", COMMAND, "command"),
            ("namespace", COMMAND, "command"),
            ("namespace", API_KEY, "api-key"),
            ("namespace", OAUTH, "oauth"),
            ("container", API_KEY, "api-key"),
        )
    ],
)
def test_a3_a4_a_task_is_done_and_the_key_is_nowhere_inside(
    request, person, path, subscribed, own_provider, mode, kind
):
    """An API key, an OAuth token, a command's, and the subscription's file, whose token is renewed."""
    if mode == "container":
        request.getfixturevalue("podman_image")
    keys = [kind.prefix + canary()]
    environ = {"PATH": path}
    if kind.command:
        # What is Anthropic's must not go to anybody else.
        environ |= {
            "ANTHROPIC_API_KEY": "sk-ant-api03-other",
            "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-other",
        }
    elif kind.variable is None:
        store(person, subscribed, keys[0])
        keys.append(kind.prefix + canary())
    else:
        environ[kind.variable] = keys[0]
    target = Target(
        person=person, mode=mode, repository=person.repository(f"credentials{next(_numbers)}"),
        options=("--agent", "claude", "--verbose", *(("--provider", "mine") if kind.command else ())),
    )  # fmt: skip
    pause = Pause()
    turns = [[text("I start."), bash(LOOK)], [bash("cat README.md")]]
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(MessagesApi(turns, pauses={1: pause}))
        stack.callback(pause.end)
        if kind.command:
            own_provider(api.url, keys[0])
        sampled = stack.enter_context(sampling(*(key[13:] for key in keys)))
        agent = stack.enter_context(
            target.live(CLAUDE, finish="import", env={**environ, "ANTHROPIC_BASE_URL": api.url})
        )
        wait_until(lambda: pause.asked.is_set() or agent.process.poll() is not None, "the agent asks")
        assert pause.asked.is_set(), agent.finish()
        token = look_inside(agent, kind, keys[0])
        readme = f"{target.account()['home']}/{target.repository.name}/README.md"
        api.turns += [
            [tool_use("Read", file_path=readme)],
            [tool_use("Edit", file_path=readme, old_string="# Sample", new_string="# Edited")],
            [text("All is done.")],
        ]
        if len(keys) > 1:
            store(person, subscribed, keys[1])
        pause.end()
        outcome = agent.finish().check()
    assert sampled == []

    # The task is done, and the provider was given the key as its kind demands, each time.
    document = outcome.json()
    schema.check(document, schema.load("result"))
    branch = document["import"]["branch"]
    assert b"All is done." in outcome.stderr
    assert person.git(target.repository, "show", f"{branch}:README.md") == "# Edited"
    assert person.git(target.repository, "show", f"{branch}:made") == "more"
    requests = api.messages()
    assert len(requests) == 5
    # The second request was under way when the token was renewed.
    expected = [keys[0]] * 2 + [keys[-1]] * 3
    assert [kind.arrived(request, key) for request, key in zip(requests, expected, strict=True)] == [True] * 5

    home = Path(str(target.account()["home"]))
    assert files_containing(home, token), "the agent did not see its own environment"
    doctor = person.clsecure("doctor", "--verbose", cwd=target.repository, env=environ)
    assert doctor.errors + doctor.text
    state = person.home / ".local/state/clsecure"
    assert files_containing(state, '"event": "checked"'), "there is no log to be searched"
    assert files_containing(state, '"path": "/v1/messages'), "there is no log of the network to be searched"
    places = (state, person.home / ".cache", person.home / ".config", Path("/var/log"), target.repository)
    # The session's token may be where the agent put it, and nowhere else.
    for secret, where in ((token, places), *((key[13:], (home, *places)) for key in keys)):
        assert [file for place in where for file in files_containing(place, secret)] == []
        for said in (outcome, doctor):
            assert secret not in said.text + said.errors
    for said in (outcome, doctor):
        assert kind.prefix not in said.text + said.errors


def neighbours(agent: LiveAgent) -> list[int]:
    """Return what runs in the sandbox's own process namespace, whoever it belongs to."""
    ours = namespaces_of(os.getpid())
    spaces = {name for name in namespaces_of(*agent.processes()) - ours if name.startswith("pid:")}
    assert spaces
    return [pid for pid in all_pids() if namespaces_of(pid) & spaces]


def look_inside(agent: LiveAgent, kind: Kind, key: str) -> str:
    """Search all that the worker has at this moment for the key; return the session's token."""
    workers = sorted({*agent.processes(), *neighbours(agent)})
    environments = {}
    for pid in workers:
        # A short program of the agent's may have ended meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            environments[pid] = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    mark = f"{kind.inside}=".encode()
    tokens = {
        (pid, line.removeprefix(mark).decode())
        for pid, lines in environments.items()
        for line in lines
        if line.startswith(mark)
    }
    assert tokens, "no process has the session's token in its environment"
    (token,) = {value for _, value in tokens}
    assert all(key[13:].encode() not in line for lines in environments.values() for line in lines)

    with_token = memory.holders(workers, token)
    there = {pid for pid, _ in tokens if started(pid)}
    assert there
    assert there <= with_token, "the search does not find what is there"
    assert memory.holders(descendants(agent.process.pid), key[13:]) - set(workers), "the gateway has no key"
    assert memory.holders(workers, key[13:]) == set()

    root = Path(f"/proc/{min(there)}/root")
    tops = [
        str(top) for top in root.iterdir() if top.name not in ("proc", "sys", "usr") and not top.is_symlink()
    ]
    found = subprocess.run(
        ["/usr/bin/grep", "-rlsaF", "-D", "skip", "-f", "-", "--", *tops],
        input=f"{key[13:]}\n{token}\n",
        # As bytes: by far the quickest way through the agent's program.
        env={"LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    # Found by its own token: what the agent wrote of its environment.
    assert f"{root}{agent.target.account()['home']}/seen" in found
    assert [file for file in found if key[13:].encode() in Path(file).read_bytes()] == []
    return token


def test_a3_an_expired_subscription_is_refused_and_says_what_to_do(person, target, subscribed):
    """Never renewed from here: that would end the session of the user's own Claude Code."""
    token = OAUTH.prefix + canary()
    store(person, subscribed, token, expires_in=-1.0)
    with MessagesApi([]) as api:
        with_network = dataclasses.replace(target, options=("--agent", "claude"))
        outcome = with_network.refused(env={"ANTHROPIC_BASE_URL": api.url})
        assert api.requests == []
    assert "has expired" in outcome.text
    assert "claude setup-token" in outcome.text
    assert token[:14] not in outcome.errors + outcome.text

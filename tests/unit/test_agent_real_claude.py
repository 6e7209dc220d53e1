"""The real Claude Code in a real terminal: no first-start dialog, and a new token at each start."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pexpect
import pytest

from clsecure.agents.claude_home import collect
from clsecure.agents.request import HomeRequest
from clsecure.agents.spec import AGENTS, GatewayAccess, environment
from tests.support.messages_api import MessagesApi, text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CLAUDE = AGENTS["claude"]
READY = "bypass permissions on"
DIALOGS = (
    "Do you trust",
    "trust this folder",
    "you created or one you trust",
    "Detected a custom API key",
    "Yes, I accept",
    "No, exit",
    "Select login method",
    "Choose the text style",
    "Allow external",
    "New MCP server",
    "Enter to confirm",
    "Press Enter",
    "Not logged in",
)


def squeezed(raw: bytes) -> str:
    """Return what a person reads, without sequences and blanks."""
    words = raw.decode("utf-8", "replace")
    words = re.sub(
        r"\x1b(\[[0-9;?<>=]*[A-Za-z~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[A-Za-z0-9=>])", "", words
    )
    return re.sub(r"\s+", "", words)


class Worker:
    """A home and a work tree of an account that is not root, which Claude Code would refuse."""

    def __init__(self, directory: Path) -> None:
        account = pwd.getpwnam("nobody")
        self.home = directory
        self.workspace = directory / "workspace"
        self.drop: Callable[[], None] | None = None
        if os.geteuid() == 0:

            def drop() -> None:
                os.setgroups([])
                os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
                os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)

            self.drop = drop
        self.workspace.mkdir()

    def furnish(self, user_home: Path, *, version: str | None) -> None:
        """Write the home files as the session does, keeping what is to be kept."""
        request = HomeRequest(
            user_home=user_home,
            worker_home=PurePosixPath(self.home),
            workspace=PurePosixPath(self.workspace),
            version=version,
        )
        for file in collect(request).files:
            target = self.home / file.path
            if file.keep and target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)
            target.chmod(file.mode)
        if self.drop is not None:
            account = pwd.getpwnam("nobody")
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    def start(
        self, binary: Path, argv: tuple[str, ...], api: MessagesApi, *, token: str, credential: str
    ) -> pexpect.spawn[bytes]:
        """Start the agent on a terminal of its own, as the session's launcher does."""
        env = environment(
            CLAUDE,
            {"TERM": "xterm-256color"},
            user="nobody",
            home=PurePosixPath(self.home),
            session="test",
            terminal=True,
            gateway=GatewayAccess(port=api.port, token=token, credential_variable=credential),
        )
        # So that nothing is left in the machine's own.
        env |= {
            "TMPDIR": str(self.home),
            "CLAUDE_CODE_TMPDIR": str(self.home),
            "CLAUDE_TMPDIR": str(self.home),
        }
        line = [str(binary) if part == CLAUDE.argv_unattended[0] else part for part in argv]
        return pexpect.spawn(
            line[0],
            line[1:],
            env=env,
            cwd=str(self.workspace),
            dimensions=(45, 120),
            timeout=120,
            preexec_fn=self.drop,
        )


@pytest.fixture
def worker() -> Iterator[Worker]:
    # Not below tmp_path: an account that is not root could not reach it there.
    directory = Path(tempfile.mkdtemp(prefix="clsecure-test-home-"))
    directory.chmod(0o755)
    try:
        yield Worker(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def reachable_claude(claude_binary: Path) -> Iterator[Path]:
    """The program where any account can execute it."""
    directory = Path(tempfile.mkdtemp(prefix="clsecure-test-bin-"))
    directory.chmod(0o755)
    try:
        target = directory / "claude"
        shutil.copyfile(claude_binary, target)
        target.chmod(0o755)
        yield target
    finally:
        shutil.rmtree(directory)


class Screen:
    """All that was written to the terminal so far, without blanks: the agent moves the cursor over them."""

    def __init__(self, child: pexpect.spawn[bytes]) -> None:
        self.child = child
        self.raw = b""
        self._mark = 0

    def text(self) -> str:
        return squeezed(self.raw)

    def wait_for(self, words: str) -> None:
        """Read until the words appear after what was waited for before."""
        deadline = time.monotonic() + 120
        while True:
            text = self.text()
            found = text.find(squeezed(words.encode()), self._mark)
            if found >= 0:
                self._mark = found + 1
                return
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"{words!r} did not appear; the screen was: {text[-3000:]}")

    def wait_for_end(self) -> None:
        while self._read():
            pass

    def _read(self) -> bool:
        try:
            self.raw += self.child.read_nonblocking(65536, timeout=120)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        return True


def asked_elsewhere(api: MessagesApi) -> list[str]:
    """Return what the agent asked of other hosts, through the proxy that its environment names."""
    return [
        f"{request.method} {request.target}"
        for request in api.requests
        if request.method == "CONNECT" or not request.target.startswith("/")
    ]


def converse(child: pexpect.spawn[bytes], words: str, reply: str) -> str:
    """Say something once the prompt is there, wait for the reply, leave; return all that was shown."""
    screen = Screen(child)
    try:
        screen.wait_for(READY)
        child.send(words)
        screen.wait_for(words)
        child.send("\r")
        screen.wait_for(reply)
        child.send("/exit")
        screen.wait_for("/exit")
        child.send("\r")
        screen.wait_for_end()
    finally:
        child.close(force=True)
    return screen.text()


@pytest.mark.parametrize("credential", ["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"])
def test_no_dialog_appears_and_a_resumed_conversation_takes_the_new_token(
    worker: Worker, reachable_claude: Path, tmp_path: Path, credential: str
) -> None:
    user_home = tmp_path / "user"
    (user_home / ".claude").mkdir(parents=True)
    (user_home / ".claude/settings.json").write_text(json.dumps({"theme": "light", "verbose": False}))
    # Each of these would ask a question of its own.
    (worker.workspace / "CLAUDE.md").write_text("See @~/elsewhere.md\n")
    (worker.home / "elsewhere.md").write_text("Nothing.\n")
    (worker.workspace / ".mcp.json").write_text(json.dumps({"mcpServers": {"x": {"command": "/bin/true"}}}))
    (worker.workspace / ".claude").mkdir()
    (worker.workspace / ".claude/settings.json").write_text(json.dumps({"env": {"HARMLESS": "1"}}))

    with MessagesApi([[text("FIRSTREPLY")], [text("SECONDREPLY")], [text("THIRDREPLY")]]) as api:
        tokens = [f"session-token-{number}-{'x' * 24}" for number in range(3)]

        worker.furnish(user_home, version=None)
        child = worker.start(
            reachable_claude, CLAUDE.argv_resume, api, token=tokens[0], credential=credential
        )
        # Nothing to resume yet: it starts a conversation instead of ending with an error.
        first = converse(child, "hello-one", "FIRSTREPLY")

        worker.furnish(user_home, version=None)
        child = worker.start(
            reachable_claude, CLAUDE.argv_resume, api, token=tokens[1], credential=credential
        )
        second = converse(child, "hello-two", "SECONDREPLY")

        worker.furnish(user_home, version=None)
        child = worker.start(
            reachable_claude, CLAUDE.argv_unattended, api, token=tokens[2], credential=credential
        )
        third = converse(child, "hello-three", "THIRDREPLY")

        requests = api.messages()
        # It would be refused, and stand in every session's list of what was blocked.
        assert asked_elsewhere(api) == []

    for shown in (first, second, third):
        assert not [dialog for dialog in DIALOGS if squeezed(dialog.encode()) in shown]
    assert "FIRSTREPLY" in second
    assert "SECONDREPLY" not in third
    sent = [request.headers.get("authorization") for request in requests]
    assert [f"Bearer {token}" in sent for token in tokens] == [True, True, True]
    assert not any("x-api-key" in request.headers for request in requests)
    with_beta = ["oauth-2025-04-20" in request.headers.get("anthropic-beta", "") for request in requests]
    assert all(with_beta) if credential == "CLAUDE_CODE_OAUTH_TOKEN" else not any(with_beta)

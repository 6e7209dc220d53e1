"""The real Claude Code through the real gateway to the scripted API, holding the session's token only."""

from __future__ import annotations

import json
import socket

import pytest

from clsecure import process
from clsecure.egress.client import start_gateway
from clsecure.egress.provider import find_credential, find_provider
from clsecure.egress.wire import GatewayConfig
from clsecure.process import Command
from tests.support.messages_api import MessagesApi, bash, text, tool_use

KEY = "sk-CANARY-of-the-real-provider"


@pytest.mark.parametrize(
    ("variable", "header"),
    [("ANTHROPIC_API_KEY", "x-api-key"), ("CLAUDE_CODE_OAUTH_TOKEN", "authorization")],
)
def test_a_task_is_done_with_the_token_in_the_place_of_the_key(claude_binary, tmp_path, variable, header):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    turns = [
        [text("I start."), bash("env > environment; echo done > made")],
        # Claude Code asks for a server tool to do this; the gateway refuses, the task goes on.
        [tool_use("WebSearch", query="anything at all")],
        [text("All is done.")],
    ]
    with MessagesApi(turns) as api:
        user = {"ANTHROPIC_BASE_URL": api.url, variable: KEY}
        credential = find_credential(user, home)
        assert credential is not None
        log = tmp_path / "network.jsonl"
        config = GatewayConfig(provider=find_provider(user), credential=credential, log=log)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with start_gateway(config) as gateway:
            gateway.serve(listener)
            result = process.run(
                Command(
                    argv=(str(claude_binary), "--dangerously-skip-permissions", "-p", "do it"),
                    env={
                        "PATH": process.SYSTEM_PATH,
                        "HOME": str(home),
                        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
                        credential.variable: gateway.token,
                        # As root it takes the flag only when told that it is in a sandbox.
                        "IS_SANDBOX": "1",
                    },
                    cwd=work,
                    timeout=120,
                )
            )
            token, totals = gateway.token, gateway.close()
    assert (result.returncode, result.stdout) == (0, b"All is done.\n"), result.stderr
    assert (work / "made").read_text() == "done\n"
    assert KEY not in (work / "environment").read_text()
    requests = api.messages()
    assert len(requests) == 3
    for request in requests:
        assert request.headers[header].endswith(KEY)
        assert request.body["stream"] is True
        assert token not in str(request.headers)
    assert ("oauth-" in requests[0].headers["anthropic-beta"]) is (header == "authorization")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {event["rule"] for event in events if event["decision"] == "deny"} == {"provider-tools"}
    assert totals.denied == 1
    # As the scripted API says: 10 in and 10 out for each of the three, and what side requests cost.
    assert (totals.tokens or 0) >= 60
    assert totals.tokens == sum(event["tokens"] or 0 for event in events)
    assert KEY not in log.read_text()
    assert token not in log.read_text()

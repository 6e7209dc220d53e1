"""Allow-lists in real sessions: what is reached, what is blocked and named, and the commands beside them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shlex
import signal
import ssl
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import schema, sweep
from tests.support.hostile import DEADLINE, Target, files_containing
from tests.support.leftovers import wait_until
from tests.support.messages_api import MessagesApi, bash, text
from tests.support.person import SYSTEM_PATH, Person

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

X = "\N{MULTIPLICATION SIGN}"
ALIAS = "host.clsecure.internal"
KEY = "sk-ant-CANARY-of-the-network"
# curl's status, and what the server said; a proxy's refusal of a tunnel has a code of its own.
CURL = "curl -sS -k -m 20 -w ' %{http_code} %{http_connect}\\n'"


class Site:
    """A web server on this machine's loopback: the stand-in of a mirror, a registry, anything."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(200)
                self.send_header("content-length", "9")
                self.end_headers()
                self.wfile.write(b"the-site\n")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Site:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pem = tmp_path_factory.mktemp("tls") / "site.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", pem, "-out", pem.with_suffix(".crt"), "-days", "2", "-subj", f"/CN={ALIAS}"],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(pem.read_bytes() + pem.with_suffix(".crt").read_bytes())
    return pem


@pytest.fixture(scope="module", params=["user", "namespace"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def target(person: Person, mode: str) -> Iterator[Target]:
    yield Target(
        person=person, mode=mode, repository=person.repository(f"network-{mode}"), options=("--agent", "demo")
    )
    sweep.remove_workers(person.uid)


@pytest.fixture(scope="module")
def lone(person: Person) -> Iterator[Target]:
    """The default mode alone, for what does not depend on it."""
    yield Target(
        person=person,
        mode="namespace",
        repository=person.repository("network-lone"),
        options=("--agent", "demo"),
    )
    sweep.remove_workers(person.uid)


def allowing(*ports: int) -> tuple[str, ...]:
    return tuple(word for port in ports for word in ("--allow-domain", f"localhost:{port}"))


def network(target: Target, *words: str) -> Any:
    """Run ``clsecure network`` where the session's project is."""
    return target.person.clsecure("network", *words, cwd=target.repository)


def state_of(target: Target) -> Path:
    """Return the directory of the target's session."""
    found = [
        path.parent
        for path in (target.person.home / ".local/state/clsecure/sessions").glob("*/session.json")
        if json.loads(path.read_text())["project"] == str(target.repository)
    ]
    assert len(found) == 1, found
    return found[0]


# ------------------------------------------------------------ what is reached


def test_an_allowed_host_is_reached_and_everything_else_is_blocked_and_named(
    target: Target, certificate: Path
) -> None:
    with Site() as plain, Site(certificate) as secure, Site() as other:
        script = f"""
            {CURL} http://{ALIAS}:{plain.port}/plain
            {CURL} https://{ALIAS}:{secure.port}/secure
            for _ in 1 2 3; do {CURL} https://files.example.org/; done
            {CURL} http://{ALIAS}:{other.port}/other
            {CURL} --noproxy '*' http://127.0.0.1:{plain.port}/around
        """
        attack = target.attack(script, *allowing(plain.port, secure.port))
        assert [path for path, _ in plain.seen] == ["/plain"]
        assert [path for path, _ in secure.seen] == ["/secure"]
        assert other.seen == []
        # What the agent shows to the gateway is not for others.
        assert not [name for _, headers in plain.seen + secure.seen for name in headers if "proxy" in name]
    said = attack.said.splitlines()
    assert said.count("the-site") == 2
    assert said.count(" 000 403") == 3
    assert re.search(rf"clsecure network allow [^ ]+ {ALIAS}:{other.port}\b", attack.said)
    assert "allow SESSION" not in attack.said  # but the session's name
    errors = attack.outcome.errors
    assert "blocked: files.example.org:443 \u00d73 — allow with --allow-domain files.example.org\n" in errors
    assert (
        f"blocked: {ALIAS}:{other.port} {X}1 — allow with --allow-domain localhost:{other.port}\n" in errors
    )
    assert re.search(r"network: 6 requests, 4 denied, .* in, .* out\n", errors)
    assert f"allowed: localhost:{plain.port} (--allow-domain, inside as {ALIAS}:{plain.port})" in errors

    document = attack.result
    schema.check(document, schema.load("result"))
    assert document["network"] == "allowlist"
    egress = document["egress"]
    assert (egress["policy"], egress["requests"], egress["denied"]) == ("allowlist", 6, 4)
    assert egress["complete"] is True
    hosts = {(host["host"], host["port"]): host for host in egress["hosts"]}
    assert set(hosts) == {
        (ALIAS, plain.port),
        (ALIAS, secure.port),
        (ALIAS, other.port),
        ("files.example.org", 443),
    }
    assert hosts["files.example.org", 443]["denied"] == 3
    assert hosts[ALIAS, plain.port]["bytes_in"] == len("the-site\n")


def test_the_agent_can_read_the_rules_that_hold_for_it(lone: Target) -> None:
    attack = lone.attack("curl -sS --noproxy '*' \"$CLSECURE_POLICY_URL\"", *allowing(4873))
    assert {rule["host"] for rule in attack.evidence["allow"]} == {"localhost:4873", f"{ALIAS}:4873"}
    assert attack.result["egress"]["requests"] == 0


def test_without_a_network_there_is_neither_a_proxy_nor_a_gateway(target: Target) -> None:
    attack = target.attack("env | grep -i -e proxy -e policy; true", "--no-network")
    assert attack.said.strip() == ""
    assert attack.result["egress"] is None
    assert "network:" not in attack.outcome.errors.replace("network: no network", "")


def test_an_agent_that_needs_no_api_has_no_gateway(lone: Target) -> None:
    attack = lone.attack("env | grep -i -e proxy -e policy; true")
    assert attack.said.strip() == ""
    assert attack.result["egress"] is None


# ------------------------------------------------------------ while it runs


@contextlib.contextmanager
def watching(target: Target) -> Iterator[subprocess.Popen[bytes]]:
    process = target.person.spawn(
        target.person.clsecure_argv("network", "watch"),
        cwd=target.repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_host_is_opened_in_a_running_session_watched_and_learnt_from(target: Target) -> None:
    with Site() as site:
        url, here = f"http://{ALIAS}:{site.port}/x", f"localhost:{site.port}"
        script = f"""
            {CURL} {url}; echo tried; read _
            {CURL} {url}; echo again; read _
        """
        with target.live(script, *allowing(1)) as agent:
            agent.wait_for("tried")
            assert site.seen == []
            with watching(target) as watch:
                assert watch.stderr is not None
                # It looks on from here; later, it could find the session ended.
                assert watch.stderr.readline().startswith(b"network allowlist; allowed hosts: ")
                allowed = (
                    network(target, "allow", f"localhost:{site.port}", "--output", "json").check().json()
                )
                assert allowed["added"] == [f"localhost:{site.port}"]
                assert f"{ALIAS}:{site.port}" in allowed["allowed"]
                agent.say("")
                agent.wait_for("again")
                now = network(target, "watch", "--output", "json").check().json()
                schema.check(now, schema.load("network-watch"))
                assert now["running"] is True
                assert [request["decision"] for request in now["requests"]] == ["deny", "allow"]
                outcome = agent.finish()
                lines, errors = watch.communicate(timeout=DEADLINE)
            assert watch.returncode == 0, errors
        assert [path for path, _ in site.seen] == ["/x"]
    assert f"blocked: {ALIAS}:{site.port} {X}1" in outcome.errors
    shown = [line.split(maxsplit=1)[1] for line in lines.decode().splitlines()]
    assert shown[0] == f"deny  GET {ALIAS}:{site.port}/x 403 0 B in, 0 B out (nothing allows it)"
    assert shown[1] == f"----- the user allowed localhost:{site.port}"
    assert shown[2].startswith(f"allow GET {ALIAS}:{site.port}/x 200 9 B in")

    # The same when it is over.
    assert network(target, "watch").check().stdout == lines
    learned = network(target, "learn").check()
    assert tomllib.loads(learned.text) == {"egress": {"allow": [here]}}
    assert "  # 1 request\n" in learned.text
    document = network(target, "learn", state_of(target).name, "--output", "json").check().json()
    schema.check(document, schema.load("network-learn"))
    assert [each["pattern"] for each in document["allow"]] == [here]
    events = [json.loads(line) for line in (state_of(target) / "events.jsonl").read_text().splitlines()]
    assert [each["host"] for each in events if each["event"] == "network_allowed"] == [here]


def test_a_host_is_opened_in_a_session_that_was_to_reach_the_api_alone_and_found_no_key(lone: Target) -> None:
    with Site() as site:
        script = f"echo up; read _; {CURL} http://{ALIAS}:{site.port}/x"
        with lone.live(script, "--agent", "claude") as agent:
            agent.wait_for("up")
            network(lone, "allow", f"localhost:{site.port}").check()
            agent.say("")
            outcome = agent.finish()
        assert [path for path, _ in site.seen] == ["/x"]
    assert outcome.json()["network"] == "api"
    assert "no key for the model's API was found" in outcome.errors
    with lone.live("echo up; read _") as agent:
        agent.wait_for("up")
        assert "has no gateway" in network(lone, "allow", "x.example.org").errors


def test_what_was_allowed_for_one_run_does_not_hold_for_the_next(lone: Target) -> None:
    with Site() as site:
        script = f"echo up; read _; {CURL} http://{ALIAS}:{site.port}/x"
        with lone.live(script, *allowing(1)) as agent:
            agent.wait_for("up")
            network(lone, "allow", f"localhost:{site.port}").check()
            agent.say("")
            agent.finish()
        assert len(site.seen) == 1
        attack = lone.attack(f"{CURL} http://{ALIAS}:{site.port}/x", *allowing(1))
        assert len(site.seen) == 1
    assert attack.result["egress"]["denied"] == 1
    # The file has both runs; what is shown is the last one.
    now = network(lone, "watch", "--output", "json").check().json()
    assert [request["decision"] for request in now["requests"]] == ["deny"]


def test_what_can_not_be_allowed_is_refused_with_the_reason(lone: Target) -> None:
    with lone.live("echo up; read _", *allowing(1), "--deny-domain", "bad.example.org") as agent:
        agent.wait_for("up")
        for word in ("*.org", "a b", "$(id)", "*", "10.0.0.300"):
            assert network(lone, "allow", word).returncode == 125, word
        denied = network(lone, "allow", "default", "bad.example.org")
        assert denied.returncode == 125
        assert "--deny-domain" in denied.errors
    ended = network(lone, "allow", "x.example.org")
    assert ended.returncode == 125
    assert "is not running" in ended.errors
    with lone.live("echo up; read _", "--no-network") as agent:
        agent.wait_for("up")
        assert "its network is none" in network(lone, "allow", "x.example.org").errors


def test_watching_ends_with_ctrl_c_and_the_session_goes_on(lone: Target) -> None:
    with lone.live("echo up; read _; echo still-here", *allowing(1)) as agent:
        agent.wait_for("up")
        with watching(lone) as watch:
            wait_until(lambda: has_open(watch.pid, "egress.jsonl"), "the watcher reads the log")
            watch.send_signal(signal.SIGINT)
            out, errors = watch.communicate(timeout=DEADLINE)
        assert (watch.returncode, out) == (130, b"")
        assert errors.startswith(b"network allowlist; allowed hosts: localhost:1")
        agent.say("")
        agent.wait_for("still-here")


def has_open(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return any(fd.readlink().name == name for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


# ------------------------------------------------------------ budget, and the end of the gateway


def test_a_budget_that_is_used_up_ends_what_goes_out_and_is_said(target: Target) -> None:
    with Site() as site:
        script = f"for n in 1 2 3 4; do {CURL} http://{ALIAS}:{site.port}/$n; done"
        attack = target.attack(script, *allowing(site.port), "--budget", "requests=3")
        assert [path for path, _ in site.seen] == ["/1", "/2", "/3"]
    assert "budget: 3 requests; then the network stops" in attack.outcome.errors
    egress = attack.result["egress"]
    assert (egress["requests"], egress["denied"]) == (4, 1)
    assert any("requests" in warning for warning in egress["warnings"])
    assert set(egress["warnings"]) <= set(attack.result["warnings"])
    assert f"refused by the gateway: budget {X}1" in attack.outcome.errors


def gateways_of(person: Person) -> list[int]:
    found = []
    for pid in sweep.processes_of(person.uid):
        with contextlib.suppress(OSError):
            if b"/egress/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_killed_gateway_closes_the_network_and_the_session_says_so(target: Target) -> None:
    with Site() as site:
        curl = f"{CURL} http://{ALIAS}:{site.port}"
        script = f"{curl}/before; echo up; read _; {curl}/after; echo after=$?; exit 7"
        with target.live(script, *allowing(site.port)) as agent:
            agent.wait_for("up")
            (gateway,) = gateways_of(target.person)
            os.kill(gateway, signal.SIGKILL)
            wait_until(lambda: not gateways_of(target.person), "the gateway is gone")
            agent.say("")
            outcome = agent.finish()
        assert [path for path, _ in site.seen] == ["/before"]
    # curl's own status of a proxy that is not there.
    assert re.search(r"after=(5|7|52|56)\n", outcome.errors), outcome.errors
    assert outcome.returncode == 7
    document = outcome.json()
    schema.check(document, schema.load("result"))
    assert document["exit_code"] == 7
    assert any("the gateway ended" in warning for warning in document["warnings"])
    egress = document["egress"]
    assert (egress["complete"], egress["requests"], egress["bytes_in"]) == (False, 1, 9)
    # The socket that took the user's orders does not stay.
    assert not (state_of(target) / "egress.sock").exists()


# ------------------------------------------------------------ the credential


def test_a_copied_key_is_in_the_environment_and_nowhere_else(target: Target) -> None:
    script = "env | grep -e ANTHROPIC -e AWS; true"
    env = {"ANTHROPIC_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": "other"}
    attack = target.attack(script, "--agent", "claude", "--credentials", "copy", env=env)
    assert attack.said.strip() == f"ANTHROPIC_API_KEY={KEY}"
    assert any("the key itself is inside the sandbox" in each for each in attack.result["warnings"])
    assert "the key itself is inside the sandbox" in attack.outcome.errors.partition("runs isolated")[0]
    assert files_containing(target.person.home, KEY) == []


def test_none_means_that_nobody_has_a_credential(lone: Target) -> None:
    attack = lone.attack(
        f"env | grep -e ANTHROPIC; {CURL} https://api.anthropic.com/",
        "--agent", "claude", "--credentials", "none", env={"ANTHROPIC_API_KEY": KEY},
    )  # fmt: skip
    assert "ANTHROPIC" not in attack.said
    assert KEY not in attack.outcome.errors
    assert "no network (credentials = none)" in attack.outcome.errors
    assert attack.result["egress"]["denied"] == 1


# ------------------------------------------------------------ the real agent


@pytest.fixture(scope="module")
def path(person: Person, claude_binary: Path) -> str:
    directory = person.home / ".local/bin"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    return f"{directory}:{SYSTEM_PATH}"


def claude(person: Person, repo: Path, api: MessagesApi, path: str, *options: str) -> Any:
    """Let the real Claude Code do its task; return the session's document and what was said."""
    done = person.clsecure(
        *options, "--on-finish", "discard", "--output", "json",
        "--", "claude", "--dangerously-skip-permissions", "-p", "do it",
        cwd=repo, env={"PATH": path, "ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": KEY},
    ).check()  # fmt: skip
    assert b"All is done." in done.stderr
    schema.check(done.json(), schema.load("result"))
    return done


def test_claude_code_works_with_an_allow_list_and_asks_for_nothing_by_itself(lone: Target, path: str) -> None:
    with Site() as site:
        look = f"curl -sS http://{ALIAS}:{site.port}/by-its-tool"
        with MessagesApi([[bash(look)], [text("All is done.")]]) as api:
            done = claude(lone.person, lone.repository, api, path, *allowing(site.port))
            assert "the-site" in json.dumps(api.messages()[-1].body["messages"])
            assert {request.headers["x-api-key"] for request in api.messages()} == {KEY}
        assert [path for path, _ in site.seen] == ["/by-its-tool"]
    egress = done.json()["egress"]
    assert {(host["host"], host["port"]) for host in egress["hosts"]} == {
        ("127.0.0.1", api.port),
        (ALIAS, site.port),
    }
    assert egress["denied"] == 0
    assert egress["tokens"] > 0
    assert "blocked:" not in done.errors


def test_claude_code_works_with_a_copied_key_through_the_gateway_as_a_proxy(lone: Target, path: str) -> None:
    with MessagesApi([[bash("env | grep -c ANTHROPIC_API_KEY")], [text("All is done.")]]) as api:
        done = claude(lone.person, lone.repository, api, path, "--credentials", "copy")
        assert {request.headers["x-api-key"] for request in api.messages()} == {KEY}
    egress = done.json()["egress"]
    assert {(host["host"], host["port"]) for host in egress["hosts"]} == {(ALIAS, api.port)}
    assert egress["denied"] == 0
    argv = shlex.join(done.argv)
    assert KEY not in argv + done.errors + done.text
    assert files_containing(lone.person.home, KEY) == []

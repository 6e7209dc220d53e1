"""What a gateway's process can't do once it serves, and that its work goes on all the same."""

from __future__ import annotations

import errno
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clsecure import process
from clsecure.egress.confine import residuals
from clsecure.egress.provider import Credential, CredentialKind
from clsecure.privileged.launcher import landlock_abi
from clsecure.process import Command, run
from tests.support.gateways import allowing, running_gateway
from tests.support.messages_api import MessagesApi, text
from tests.support.tls import make_certificate

ROOT = Path(__file__).parents[2]

ATTEMPTS = """
import json, os, signal, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
home, abstract, how = Path(sys.argv[2]), "\\0" + sys.argv[3], sys.argv[4]

import asyncio, ssl
from clsecure.egress import confine
from clsecure.egress.provider import Credential, CredentialKind
from clsecure.egress.wire import GatewayConfig

credential = Credential(kind=CredentialKind.BEARER, file=home / "claude" / ".credentials.json")
turn, start = os.pipe()
somebody_else = os.fork()
if somebody_else == 0:
    # As Claude Code does when it renews its token.
    os.read(turn, 1)
    os.rename(home / "claude" / "new", credential.file)
    os._exit(0)
confine.confine()
log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
if how == "without Landlock":
    confine.launcher.landlock_abi = lambda: 0
if how != "open":
    assert confine.seal(GatewayConfig(provider=None, credential=credential)) == confine.residuals(
        confine.launcher.landlock_abi()
    )

def spawn(program):
    pid = os.posix_spawn(program, [program], {})
    os.waitpid(pid, 0)

def listen():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))

def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(abstract)

def connect_by_path():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(home / "bus"))

def resolve():
    async def look_up():
        return await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    assert asyncio.run(look_up())

def renew():
    os.write(start, b"x")
    os.waitpid(somebody_else, 0)
    assert credential.current() == "oat-second"

attempts = {
    "read a file": lambda: (home / "secret").read_text(),
    "read beside the package": lambda: Path(sys.argv[1], "pyproject.toml").read_text(),
    "list": lambda: list(home.iterdir()),
    "list the credential's directory": lambda: list((home / "claude").iterdir()),
    "write": lambda: (home / "secret").open("r+").close(),
    "make": lambda: (home / "new").write_text("x"),
    "truncate": lambda: os.truncate(home / "secret", 0),
    "write the credential": lambda: credential.file.open("r+").close(),
    "rename": lambda: os.rename(home / "secret", home / "secret2"),
    "link": lambda: os.link(home / "other", home / "another"),
    "remove": lambda: os.unlink(home / "other"),
    "make a directory": lambda: (home / "directory").mkdir(),
    "open to others": lambda: os.chmod(home / "other2", 0o666),
    "open to others by a descriptor": lambda: os.fchmod(log, 0o666),
    "give away": lambda: os.chown(home / "other2", os.getuid(), os.getgid()),
    "change a time": lambda: os.utime(home / "other2", (0, 0)),
    "execute": lambda: spawn("/bin/true"),
    "look at another process": lambda: Path(f"/proc/{os.getppid()}/status").read_text(),
    "listen": listen,
    "reach an abstract socket": connect,
    "reach a local socket": connect_by_path,
    "signal": lambda: os.kill(os.getppid(), 0),
    "write to the log": lambda: os.write(log, b"x"),
    "resolve a name": resolve,
    "read the resolver's settings": lambda: Path("/etc/resolv.conf").read_text(),
    "take an international name": lambda: "b\\u00fccher.example".encode("idna"),
    "load a library": lambda: __import__("_elementtree"),
    "import": lambda: (__import__("xml.dom.minidom"), __import__("clsecure.egress.journal")),
    "load certificate authorities": lambda: ssl.create_default_context(),
    "read a renewed credential": renew,
}
results = {}
for name, attempt in attempts.items():
    try:
        attempt()
        results[name] = None
    except OSError as error:
        results[name] = error.errno
print(json.dumps(results))
"""

WORK = {
    "write to the log", "resolve a name", "read the resolver's settings", "take an international name",
    "load a library", "import", "load certificate authorities", "read a renewed credential",
}  # fmt: skip
BY_FILTER = {"open to others", "open to others by a descriptor", "give away", "change a time"}
"""What Landlock knows nothing of."""

NEWER = {"truncate": 3, "listen": 4, "reach an abstract socket": 6, "signal": 6}
"""What only later versions of Landlock forbid."""


@pytest.fixture
def home(tmp_path):
    for name in ("secret", "other", "other2"):
        (tmp_path / name).write_text("CANARY")
    (tmp_path / "claude").mkdir()
    for name, token in ((".credentials.json", "oat-first"), ("new", "oat-second")):
        (tmp_path / "claude" / name).write_text(json.dumps({"claudeAiOauth": {"accessToken": token}}))
    return tmp_path


def attempted(home: Path, how: str) -> dict[str, int | None]:
    """Return what became of each attempt: an error number, or None where it succeeded."""
    name = f"\0clsecure-test-{home}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as bus:
        listener.bind(name)
        bus.bind(str(home / "bus"))
        for each in (listener, bus):
            each.listen()
        done = run(
            Command(argv=(sys.executable, "-I", "-c", ATTEMPTS, str(ROOT), str(home), name[1:], how))
        ).check()
    results: dict[str, int | None] = json.loads(done.stdout)
    return results


def test_without_confinement_everything_here_is_possible(home):
    results = attempted(home, "open")
    assert {name for name, error in results.items() if error is not None} == set()


@pytest.mark.skipif(landlock_abi() == 0, reason="this kernel has no Landlock")
def test_a_confined_gateway_does_its_work_and_nothing_else(home):
    results = attempted(home, "sealed")
    forbidden = results.keys() - WORK - {name for name, since in NEWER.items() if landlock_abi() < since}
    assert {
        name for name in forbidden if results[name] not in {errno.EACCES, errno.EPERM, errno.EXDEV}
    } == set()
    assert {name: results[name] for name in WORK} == dict.fromkeys(WORK)
    assert (home / "secret").read_text() == "CANARY"
    assert (home / "other2").stat().st_mtime > 0


def test_without_landlock_no_program_and_no_local_socket_is_left(home):
    results = attempted(home, "without Landlock")
    failed = {name for name, error in results.items() if error is not None}
    assert failed == {"execute", "reach an abstract socket", "reach a local socket", *BY_FILTER}


def test_a_confined_gateway_serves_a_provider_by_its_name(tmp_path):
    with MessagesApi([[text("Hello.")]]) as api:
        url = f"http://localhost:{api.port}"
        credential = Credential(kind=CredentialKind.API_KEY, value="k" * 20)
        with running_gateway(url, tmp_path, credential=credential) as gateway:
            assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200
            assert gateway.gateway.residuals == residuals(landlock_abi())


def test_authorities_that_a_directory_links_to_are_read_when_a_certificate_is_checked(tmp_path, monkeypatch):
    pem = make_certificate(tmp_path, "127.0.0.1")
    (tmp_path / "authorities").mkdir()
    digest = run(Command(argv=("openssl", "x509", "-hash", "-noout", "-in", str(pem)))).check().stdout
    (tmp_path / "authorities" / f"{digest.decode().strip()}.0").symlink_to(pem)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "authorities"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with (
        MessagesApi([[text("Hello.")]], certificate=pem) as api,
        running_gateway(api.url, tmp_path) as gateway,
    ):
        assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200


def test_what_is_left_open_is_said():
    (none,), (old,) = residuals(0), residuals(3)
    assert "no Landlock" in none
    assert "open ports" in old
    assert "signal" in residuals(5)[0]
    assert residuals(6) == ()
    (local,), (unknown,) = residuals(6, multicast=True), residuals(6, filtered=False)
    assert ".local" in local
    assert "architecture" in unknown
    assert all(said.startswith("not enforced") for said in (none, old, local, unknown))


def test_names_that_are_asked_through_a_local_socket_keep_it_and_that_is_said(tmp_path):
    with running_gateway(None, tmp_path, policy=allowing("printer.local")) as gateway:
        assert gateway.gateway.residuals == residuals(landlock_abi(), multicast=True)


def test_an_old_kernels_gateway_serves_and_says_what_is_not_enforced(tmp_path, monkeypatch):
    """The kernel's answer is replaced in the gateway's own process; all else is real."""
    gateway_main = ROOT / "clsecure" / "egress" / "__main__.py"
    without = tmp_path / "without_landlock.py"
    without.write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from clsecure.privileged import launcher\nlauncher.landlock_abi = lambda: 0\n"
        f"sys.exit(runpy.run_path({str(gateway_main)!r})['main']())\n"
    )
    real = process.spawn

    def spawn(command: Command, **options):
        return real(replace(command, argv=(*command.argv[:-1], str(without))), **options)

    monkeypatch.setattr(process, "spawn", spawn)
    with MessagesApi([[text("Hello.")]]) as api, running_gateway(api.url, tmp_path) as gateway:
        assert gateway.ask(gateway.head("GET", "/v1/models")).status == 200
        assert gateway.gateway.residuals == residuals(0)
        assert gateway.gateway.close().warnings == residuals(0)

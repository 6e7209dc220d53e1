"""``--allow-network``: the internet, and none of this machine's or its neighbours' addresses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.hostile import Target
from tests.support.person import Person

pytestmark = pytest.mark.root

HOST_PUBLIC, INTERNET, HOST_PRIVATE = "198.51.100.1", "198.51.100.2", "10.99.99.1"
PROBE = """
import json, socket, sys
port, found = int(sys.argv[1]), {}
for host in sys.argv[2:]:
    try:
        with socket.create_connection((host, port), timeout=20) as connection:
            found[host] = connection.recv(100).decode()
    except OSError as error:
        found[host] = type(error).__name__
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Outside:
    """Listeners on one port: in a network of its own (the internet's stand-in) and on all of the host."""

    port: int


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def serve(listener: socket.socket, word: bytes) -> None:
    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(word)

    threading.Thread(target=answer, daemon=True).start()


def listen_in(namespace: str, port: int) -> socket.socket:
    """Return a listener of another network namespace: a thread enters it, the socket stays there."""
    made: list[socket.socket] = []

    def enter() -> None:
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
        os.close(fd)
        made.append(socket.create_server(("0.0.0.0", port)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    name, ours, theirs = f"clst{os.getpid()}", f"cl{os.getpid() % 100000}a", f"cl{os.getpid() % 100000}b"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        for address in (f"{HOST_PUBLIC}/24", f"{HOST_PRIVATE}/32"):
            run("ip", "address", "add", address, "dev", ours)
        run("ip", "link", "set", ours, "up")
        run("ip", "-n", name, "address", "add", f"{INTERNET}/24", "dev", theirs)
        run("ip", "-n", name, "link", "set", theirs, "up")
        with socket.create_server(("0.0.0.0", 0)) as host:
            port = host.getsockname()[1]
            with listen_in(name, port) as internet:
                serve(host, b"host")
                serve(internet, b"internet")
                yield Outside(port=port)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", ours], capture_output=True)


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_full_network_reaches_the_internet_and_nothing_of_this_machine(
    person: Person, mode: str, outside: Outside
) -> None:
    target = Target(
        person=person,
        mode=mode,
        repository=person.repository(f"full-{mode}"),
        options=("--agent", "demo", "--allow-network"),
    )
    inner_host = socket.gethostbyname(socket.gethostname())
    closed = (HOST_PUBLIC, HOST_PRIVATE, "127.0.0.1", "169.254.169.254", inner_host)
    for address in (HOST_PUBLIC, HOST_PRIVATE, "127.0.0.1"):
        with socket.create_connection((address, outside.port), timeout=5) as control:
            assert control.recv(100) == b"host"
    attack = target.python(PROBE, str(outside.port), INTERNET, *closed)
    found = attack.evidence
    assert found.pop(INTERNET) == "internet"
    assert "host" not in found.values(), found
    assert not {"internet"} & set(found.values()), found


def test_nothing_of_the_network_is_left_after_the_session(person: Person, outside: Outside) -> None:
    target = Target(
        person=person,
        mode="namespace",
        repository=person.repository("full-left"),
        options=("--agent", "demo", "--allow-network"),
    )
    with target.live("echo up; read _") as agent:
        agent.wait_for("up")
        handles = [os.pidfd_open(pid) for pid in of_person(person, "pas")]
        assert handles
        agent.process.kill()
        agent.process.wait()
        for handle in handles:
            ended = select.select([handle], [], [], 30)[0]
            os.close(handle)
            assert ended, "pasta outlives the session"


def of_person(person: Person, program: str) -> list[int]:
    """Return the person's processes whose name begins so; pasta calls itself passt.avx2 here."""
    found = []
    for pid in sweep.processes_of(person.uid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith(program):
                found.append(pid)
    return found

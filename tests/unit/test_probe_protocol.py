"""Orders and replies: the real probe at the other end, and peers that lie, flood, hang or are gone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from clsecure.errors import VerificationError
from clsecure.verify.bait import METADATA, PRIVATE, put_out
from clsecure.verify.probe import REPLY_LIMIT, Probe
from clsecure.verify.services import BAIT
from tests.support.person import CHECKOUT

PROGRAM = CHECKOUT / "clsecure" / "privileged" / "inside.py"
REAL = ("/usr/bin/python3", "-I", "-S", str(PROGRAM))


@contextlib.contextmanager
def peer(*argv: str) -> Iterator[Probe]:
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield Probe(child.stdin.fileno(), child.stdout.fileno())
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        child.kill()
        child.wait(timeout=60)


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the services of this machine alone, and listeners of other tests: nothing confines the probe."""
    monkeypatch.setattr("clsecure.verify.bait.services", lambda _environ: {})


@pytest.fixture
def real() -> Iterator[Probe]:
    with peer(*REAL) as probe:
        yield probe


def test_the_whole_battery_is_tried_and_told(real, tmp_path) -> None:
    with put_out(tmp_path, tmp_path) as bait:
        first = real.battery(bait.order())
        heard = bait.ears.heard()
        assert {"127.0.0.1", "an abstract socket", "a socket in /tmp"} <= heard
        again = real.battery(bait.order())
    assert first.files["state"] is first.own is first.connected["127.0.0.1"] is None
    assert first.marker
    assert again.home == first.home
    assert list(tmp_path.iterdir()) == [], "what it made it has taken away"


def test_outside_services_are_only_looked_at(real, tmp_path) -> None:
    """A connection could start one: systemd does."""
    import socket

    # By a name that other probes, of tests beside this one, leave out when they look for services.
    path = str(tmp_path / f"{BAIT}agent")
    with socket.socket(socket.AF_UNIX) as service, put_out(tmp_path, tmp_path) as all_of_it:
        service.bind(path)
        service.listen()
        service.settimeout(0)
        bait = replace(all_of_it, services={"agent": path, "file": "/etc/passwd"})
        report = real.battery(bait.order(outside=True))
        assert (report.connected["agent"], report.connected["file"]) == (None, "ENOTSOCK")
        with pytest.raises(BlockingIOError):
            service.accept()
        assert real.battery(bait.order()).connected["agent"] is None
        service.accept()[0].close()


@pytest.mark.skipif(os.geteuid() != 0, reason="the port is root's")
def test_packets_are_sent_where_a_filter_is_to_refuse_them_and_nowhere_else(real, tmp_path) -> None:
    import socket

    with put_out(tmp_path, tmp_path) as bait, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        assert real.battery(bait.order()).sent == {}
        assert set(bait.order(full=True, private=True)["packets"]) == {*METADATA, *PRIVATE}
        ear.bind(("127.0.0.1", 9))
        ear.settimeout(60)
        order = {**bait.order(), "packets": {"ear": ("inet", "127.0.0.1"), "none": ("inet6", "nowhere")}}
        assert real.battery(order).sent["ear"] is None
        assert ear.recv(10) == b""


def test_a_busy_machine_is_told_within_bounds(real, tmp_path) -> None:
    import socket

    with contextlib.ExitStack() as stack:
        bait = stack.enter_context(put_out(tmp_path, tmp_path))
        for _ in range(600):
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        assert 200 < len(real.battery(bait.order()).listening) < 600


def test_connections_that_hang_cost_the_patience_once(real, tmp_path) -> None:
    """A listener whose queue is full answers nobody."""
    import socket

    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        # One is in the queue: on a busy machine that takes its time, and until then it has room.
        assert select.select([full], [], [], 60)[0]
        bait = stack.enter_context(put_out(tmp_path, tmp_path))
        order = bait.order(patience=2.0)
        hanging = {f"hangs {n}": ("inet", full.getsockname()) for n in range(8)}
        begun = time.monotonic()
        report = real.battery({**order, "sockets": hanging, "datagrams": {}})
        assert time.monotonic() - begun < 5 * 2.0
        assert set(report.connected.values()) == {"ETIMEDOUT"}


def test_a_command_is_run_with_its_status_and_both_outputs(real) -> None:
    done = real.run("echo said; echo told >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, b"said\n", b"told\n")
    assert real.run(["/bin/sh", "-c", "kill -9 $$"]).status == 137
    assert real.run(["no-such-program"]).status in (126, 127)
    assert real.run("head -c 300 /dev/zero | wc -c").stdout.strip() == b"300"
    assert real.run("cat").stdout == b"", "its input is empty"


def test_a_command_that_is_late_ends_and_so_does_all_that_it_started(real) -> None:
    begun = time.monotonic()
    # In the time of a shell that starts on a busy machine.
    late = real.run("echo begun; exec >&- 2>&-; sleep 987", seconds=2.0)
    assert (late.status, late.stdout) == (None, b"begun\n")
    left = real.run("setsid sleep 987 & (setsid setsid sleep 987 >&- 2>&- &); echo done")
    assert (left.status, left.stdout) == (0, b"done\n")
    assert time.monotonic() - begun < 60
    assert real.run("pgrep -fx 'sleep 987'").stdout == b""


def test_the_output_of_a_command_is_bounded(real) -> None:
    done = real.run("yes | head -c 3000000; yes no | head -c 3000000 >&2")
    assert done.status == 0
    assert len(done.stdout) == len(done.stderr) < REPLY_LIMIT / 4


def test_a_command_can_not_reply_in_the_place_of_the_probe() -> None:
    """It has the same uid; as root, who is above that, the test could not tell."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    with peer(*user, *REAL[:3], "-c", PROGRAM.read_text()) as probe:
        done = probe.run("echo '{\"number\": 1}' > /proc/$PPID/fd/1")
    assert done.status != 0
    assert b"denied" in done.stderr


def test_what_is_no_order_is_an_error_and_the_next_one_is_served(real) -> None:
    for order in ({"do": "nothing"}, {"do": "try"}, {"do": "run"}, {"do": "run", "argv": []}, {}):
        with pytest.raises(VerificationError, match="could not do"):
            real.ask(order, seconds=60)
    assert real.run("echo well").stdout == b"well\n"


def says(text: str, *, then: str = "import time; time.sleep(60)") -> tuple[str, ...]:
    program = f"import sys; sys.stdin.readline(); sys.stdout.write({text}); sys.stdout.flush(); {then}"
    return (sys.executable, "-I", "-c", program)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("'no json\\n'", "makes sense"),
        ("'[' * 100000 + '\\n'", "makes sense"),
        ("'\\n'", "makes sense"),
        ("'[]\\n'", "makes sense"),
        ("'{\"number\": 7}\\n'", "makes sense"),
        ('\'{"number": 1, "error": "\\x1b[2J"}\\n\'', "makes sense"),
        ('\'{"number": 1, "error": "no"}\\n\'', "could not do"),
        ("'{\"number\": 1}\\n'", "makes sense"),
        ('\'{"number": 1, "status": "0", "late": false, "stdout": "", "stderr": ""}\\n\'', "makes sense"),
        ('\'{"number": 1, "status": null, "late": false, "stdout": "", "stderr": ""}\\n\'', "makes sense"),
        ('\'{"number": 1, "status": 0, "late": false, "stdout": "?", "stderr": ""}\\n\'', "makes sense"),
        ("'9' * 5000 + '\\n'", "makes sense"),
        ("'x' * 3000000", "more than it was asked"),
    ],
)
def test_a_peer_that_lies_or_floods_is_refused(text, match) -> None:
    with peer(*says(text)) as probe, pytest.raises(VerificationError, match=match):
        probe.run("true", seconds=60)


@pytest.mark.parametrize("argv", [("/bin/true",), says("'{\"number\": 1'", then="pass")])
def test_a_peer_that_is_gone_is_said_to_be(argv) -> None:
    with peer(*argv) as probe, pytest.raises(VerificationError, match="gone"):
        probe.ask({"do": "run"}, seconds=60)


@pytest.mark.parametrize("argv", [("/bin/sleep", "60"), says("'{\"number\"'")])
def test_a_peer_that_hangs_is_waited_for_no_longer_than_said(argv) -> None:
    begun = time.monotonic()
    with peer(*argv) as probe, pytest.raises(VerificationError, match="in time"):
        probe.ask({"do": "run"}, seconds=0.3)
    assert time.monotonic() - begun < 30


def test_a_peer_that_reads_nothing_makes_nobody_wait() -> None:
    with peer("/bin/sleep", "60") as probe, pytest.raises(VerificationError, match="in time"):
        probe.ask({"do": "run", "argv": ["x" * 500000]}, seconds=0.3)


def test_the_reply_to_an_earlier_order_is_not_taken_for_that_of_a_later_one() -> None:
    late = "sys.stdin.readline(); sys.stdout.write(json.dumps({'number': 1}) + '\\n')"
    program = f"import json, sys; sys.stdin.readline(); {late}; sys.stdout.flush(); sys.stdin.readline()"
    with peer(sys.executable, "-I", "-c", program) as probe:
        with pytest.raises(VerificationError, match="in time"):
            probe.ask({"do": "run"}, seconds=0.2)
        with pytest.raises(VerificationError) as raised:
            probe.ask({"do": "run"}, seconds=60)
    assert raised.value.details == "the reply belongs to no order"


def test_the_probe_needs_nothing_but_its_own_file() -> None:
    order = json.dumps({"do": "run", "argv": ["/bin/echo", "x"]}).encode() + b"\n"
    done = subprocess.run(REAL, input=order, capture_output=True, env={}, timeout=20, check=True)
    assert json.loads(done.stdout)["status"] == 0

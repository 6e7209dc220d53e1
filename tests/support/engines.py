"""Container engines of the tests' own: storage, sockets and processes of nobody else, gone at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.built_images import RUN
from tests.support.person import SYSTEM_PATH

_START = 60.0
_PREFIX = "clsecure-engine-"

CONTAINERS_CONF = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"

[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""
"""What podman needs on machines with control groups of version 1, and does no harm on others."""


def need(*programs: str) -> None:
    """Skip the test, by name, where a program is missing or root is not to be had."""
    missing = [program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None]
    if os.geteuid() != 0:
        pytest.skip("left out: needs root (it starts engines)")
    if missing:
        pytest.skip(f"left out: not installed: {', '.join(missing)}")


@contextlib.contextmanager
def docker_engine() -> Iterator[str]:
    """Start dockerd with directories and a socket of its own, without networks; yield its address."""
    need("dockerd", "containerd")
    with _directory() as place:
        address = place / "docker.sock"
        command = [
            "dockerd", "--host", f"unix://{address}", "--data-root", str(place / "data"),
            "--exec-root", str(place / "exec"), "--pidfile", str(place / "pid"), "--config-file",
            str(place / "none.json"), "--bridge", "none", "--iptables=false", "--ip6tables=false",
            "--ip-masq=false", "--group", "0",
        ]  # fmt: skip
        (place / "none.json").write_text("{}")
        with _running(command, place, {}), contextlib.closing(_answered(address, "/_ping", place)):
            yield f"unix://{address}"


@contextlib.contextmanager
def podman_service() -> Iterator[str]:
    """Start a podman service of root's with storage of its own; yield its address."""
    need("podman")
    with _directory() as place:
        (place / "containers.conf").write_text(CONTAINERS_CONF)
        (place / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/root"\nrunroot = "{place}/run"\n'
        )
        address = place / "podman.sock"
        env = {
            "CONTAINERS_CONF": str(place / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        }
        command = ["podman", "system", "service", "--time=0", f"unix://{address}"]
        with _running(command, place, env), contextlib.closing(_answered(address, "/_ping", place)):
            yield f"unix://{address}"


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    # Short: a socket's path has 108 bytes at most. On a disk: overlay has no upper directory on overlay.
    place = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{RUN}-", dir="/var/tmp"))
    try:
        yield place
    finally:
        _unmount_below(place)
        shutil.rmtree(place)


@contextlib.contextmanager
def _running(command: list[str], place: Path, env: Mapping[str, str]) -> Iterator[None]:
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            # A test process that is killed takes its engine along.
            ["setpriv", "--pdeathsig", "TERM", *command],
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "HOME": str(place), **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
        # dockerd's containerd goes with it; what is left of the session was cut off from its parent.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def sweep(run: str) -> None:
    """Remove what the engines of a killed run left; they have ended with it."""
    for place in Path("/var/tmp").glob(f"{_PREFIX}{run}-*"):
        _unmount_below(place)
        shutil.rmtree(place, ignore_errors=True)


def _answered(address: Path, path: str, place: Path) -> socket.socket:
    """Wait until the engine answers, and return the connection."""
    until = time.monotonic() + _START
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_START)
        try:
            connection.connect(str(address))
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: engine\r\n\r\n".encode())
            if b" 200 " in connection.recv(64):
                return connection
        except OSError:
            pass
        connection.close()
        if time.monotonic() > until:
            raise AssertionError(f"no engine at {address}:\n{(place / 'log').read_text()[-4000:]}")
        time.sleep(0.05)


def _unmount_below(place: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([each for each in mounts if each.startswith(f"{place}/")]):
        subprocess.run(["umount", "--lazy", mount], check=True, timeout=60)

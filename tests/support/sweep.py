"""Take away a test's person and everything that clsecure made for it: accounts, processes, homes.

Workers go the way that users remove them, through the helper and its registry; only accounts that belong to
the person are ever touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HELPERS = (Path("/usr/local/lib/clsecure/helper"), Path("/usr/lib/clsecure/helper"))
REGISTRY = Path("/var/lib/clsecure/registry")
AGENTS = Path("/var/lib/clsecure/agents")
IMAGES = Path("/var/lib/clsecure/images")
DEADLINE = 30.0


class SweepError(Exception):
    """Something of a person could not be removed."""


def processes_of(uid: int) -> list[int]:
    """Return the processes that run under a uid, real or effective."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            lines = (entry / "status").read_text().splitlines()
            uids = next(line for line in lines if line.startswith("Uid:")).split()[1:3]
            state = next(line for line in lines if line.startswith("State:"))
            if str(uid) in uids and "Z" not in state:
                found.append(int(entry.name))
    return found


def innermost(pids: list[int]) -> list[int]:
    """Return those of some processes that are in the innermost PID namespace: a session's agent and its own.

    Whatever else runs as the worker waits around it: firejail's parent, a container's engine.
    """
    depths = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            depths[pid] = len(next(line for line in lines if line.startswith("NSpid:")).split()) - 1
    return [pid for pid, depth in depths.items() if depth == max(depths.values())]


def kill_processes(uid: int) -> None:
    """Kill until nothing of a uid runs any more."""
    end = time.monotonic() + DEADLINE
    while (found := processes_of(uid)) and time.monotonic() < end:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    if found:
        raise SweepError(f"processes of uid {uid} don't end: {found}")


def registry_entries(owner: int) -> list[dict[str, object]]:
    """Return what the helper's registry holds of one owner."""
    entries = []
    for file in sorted(REGISTRY.iterdir()) if REGISTRY.exists() else ():
        if not file.name.startswith("."):
            # Another test process may remove an account of its own meanwhile.
            with contextlib.suppress(FileNotFoundError):
                entry = json.loads(file.read_text())
                if entry["owner"] == owner:
                    entries.append(entry)
    return entries


def ask_helper(helper: Path, owner: int, *messages: dict[str, object]) -> list[dict[str, object]]:
    """Talk to the helper as sudo would start it for the owner."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = subprocess.Popen([helper], stdin=theirs, env={"SUDO_UID": str(owner)}, cwd="/")
        theirs.close()
        ours.settimeout(60)
        answers = []
        try:
            for message in messages:
                ours.send(json.dumps(message).encode())
                answers.append(json.loads(ours.recv(1 << 20) or b'{"error": "the helper went away"}'))
        finally:
            ours.close()
            process.wait(60)
    return answers


def remove_workers(owner: int) -> None:
    """Remove every worker account of a person; one that is still running ends with its session."""
    helper = next((each for each in HELPERS if each.exists()), None)
    end = time.monotonic() + DEADLINE
    while entries := registry_entries(owner):
        if helper is None:
            raise SweepError(f"no helper is installed, and these are left: {[e['name'] for e in entries]}")
        answers: list[dict[str, object]] = []
        for entry in entries:
            lease = {"verb": "lease", "project": entry["project"], "session": entry["session"]}
            answers = ask_helper(helper, owner, lease, {"verb": "remove"})
        if time.monotonic() > end:
            raise SweepError(f"worker accounts are left: {entries} {answers}")
        time.sleep(0.05)


def remove_person(name: str) -> None:
    """Remove a test's person for good. Nothing happens when there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return
    kill_processes(entry.pw_uid)
    remove_workers(entry.pw_uid)
    done = subprocess.run(["userdel", "--", name], capture_output=True, text=True, timeout=60)
    # 6: there is no such user any more, a test process that was ending did the same.
    if done.returncode not in (0, 6):
        raise SweepError(f"userdel {name}: {done.stderr}")
    shutil.rmtree(entry.pw_dir, ignore_errors=True)
    Path("/var/mail", name).unlink(missing_ok=True)
    for kept in (AGENTS, IMAGES):
        shutil.rmtree(kept / str(entry.pw_uid), ignore_errors=True)


def main(run: str) -> int:
    """Remove all persons of one test run."""
    if len(run) < 6:
        return 1
    status = 0
    for entry in pwd.getpwall():
        if entry.pw_name.startswith(f"{run}-"):
            try:
                remove_person(entry.pw_name)
            except SweepError as error:
                status = 1
                sys.stderr.write(f"{error}\n")
    return status

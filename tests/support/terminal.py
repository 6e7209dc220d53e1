"""A person at a terminal: programs on a pty of their own, read and answered by the test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pexpect

from tests.support.person import Person

DEADLINE = 60
PATIENCE = 3


@contextlib.contextmanager
def at_terminal(
    person: Person,
    argv: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    size: tuple[int, int] = (45, 160),
) -> Iterator[pexpect.spawn[bytes]]:
    """Start a program on a terminal as the person; whatever is left of it afterwards is killed."""

    def become() -> None:
        os.setgroups(person.groups)
        os.setresgid(person.gid, person.gid, person.gid)
        os.setresuid(person.uid, person.uid, person.uid)

    child = pexpect.spawn(
        argv[0],
        argv[1:],
        cwd=str(cwd),
        env=person.environment(env),
        dimensions=size,
        timeout=DEADLINE,
        preexec_fn=become,
        maxread=65536,
    )
    child.delaybeforesend = None
    try:
        yield child
    finally:
        child.close(force=True)


def answer(child: pexpect.spawn[bytes], question: str, words: str, *, then: object) -> None:
    """Wait for a question, answer it, and wait for what comes then.

    What is typed before the tool reads is thrown away, so whoever answers faster than a person says it again.
    """
    child.expect(question)
    for _ in range(DEADLINE // PATIENCE):
        child.sendline(words)
        if child.expect([then, pexpect.TIMEOUT], timeout=PATIENCE) == 0:
            return
    raise AssertionError(f"{question!r} was never answered: {child.before!r}")


def ended(child: pexpect.spawn[bytes]) -> int:
    """Wait for the end and return the exit status, 128+N for signal N."""
    if not child.flag_eof:
        child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus if child.exitstatus is not None else 128 + (child.signalstatus or 0)

"""Container mode with gVisor: a kernel of its own for the agent, and everything else as with the others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.built_images import given_to
from tests.support.gvisor import runsc
from tests.support.hostile import Target
from tests.support.matrix import as_looked
from tests.support.messages_api import MessagesApi, bash, text
from tests.support.person import Person
from tests.support.terminals import at_terminal

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("gvisor")]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def runtime(person: Person) -> Iterator[str]:
    with given_to(person, "worker-minimal"), runsc() as path:
        yield path


@pytest.fixture
def target(person: Person, runtime: str) -> Target:
    """A repository whose sessions run under gVisor."""
    options = ("--agent", "demo", "--no-network", "--image", "worker-minimal", "--runtime", runtime)
    repository = person.repository(f"gvisor{next(_numbers)}")
    return Target(person=person, mode="container", repository=repository, options=options)


def test_the_kernel_is_another_one_and_the_work_comes_home(
    target: Target, record_property: Callable[[str, object], None]
) -> None:
    script = "cat /proc/sys/kernel/osrelease; echo new >new; chmod +x new; rm README.md"
    done = target.attack(script, finish="import")
    assert done.said.split()[0] != os.uname().release
    assert done.result["container"]["runtime"].endswith("/runsc")
    own = [check for check in done.result["verification"]["checks"] if check["check_id"] == "own-kernel"]
    record_property("checks", as_looked(own, "container"))
    assert {check["status"] for check in own} == {"pass"}
    branch = done.result["import"]["branch"]
    changed = target.person.git(target.repository, "diff", "--name-status", f"main..{branch}")
    assert sorted(changed.split()) == sorted(["D", "README.md", "A", "new"])


def test_streams_and_the_exit_status_are_the_commands(target: Target) -> None:
    person, repository = target.person, target.repository
    head = ("--mode", "container", *target.options, "--on-finish", "discard", "--")
    data = os.urandom(3_000_000)
    script = "cat; echo to stderr >&2; exit 7"
    done = person.clsecure(*head, "sh", "-c", script, cwd=repository, input=data)
    assert (done.returncode, done.stdout) == (7, data)
    assert b"to stderr" in done.stderr
    assert person.clsecure(*head, "sh", "-c", "kill -9 $$", cwd=repository).returncode == 137


def test_a_terminal_has_the_size_of_the_persons_and_takes_keys(target: Target) -> None:
    argv = target.person.clsecure_argv(
        "--mode", "container", *target.options, "--on-finish", "discard", "--shell"
    )
    with at_terminal(target.person, argv, cwd=target.repository, size=(41, 123)) as child:
        child.expect("[#$] ")
        child.sendline("stty size; tty")
        child.expect("41 123")
        child.expect("/dev/pts/")
        child.setwinsize(33, 99)
        child.sendline("sleep 0.2; stty size")
        child.expect("33 99")
        child.sendline("echo be''ginning; cat")
        child.expect("beginning")
        child.sendline("typed")
        child.expect("typed\r\ntyped")
        child.sendcontrol("c")
        child.expect("[#$] ")
        child.sendline("echo ended by: $?; exit 3")
        child.expect("ended by: 130")
        child.wait()
        assert child.exitstatus == 3


def test_the_agent_reaches_its_provider_and_nothing_else(target: Target, person: Person) -> None:
    probe = """
import json, os, socket, urllib.request
base = os.environ["ANTHROPIC_BASE_URL"]
said = [{"role": "user", "content": "x"}]
tools = [{"name": "Bash", "description": "d", "input_schema": {"type": "object"}}]
body = json.dumps({"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": said, "tools": tools})
headers = {"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"],
           "content-type": "application/json", "anthropic-version": "2023-06-01"}
request = urllib.request.Request(base + "/v1/messages", body.encode(), headers)
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).status)
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
    print("out")
except OSError as error:
    print(type(error).__name__)
"""
    with MessagesApi([[text("hello")], [bash("true")]]) as api:
        options = tuple(each for each in target.options if each not in ("--no-network", "--agent", "demo"))
        done = person.clsecure(
            *("--mode", "container", *options, "--on-finish", "discard"),
            *("--", "python3", "-c", probe),
            cwd=target.repository,
            env={"ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": "sk-ant-test"},
        ).check()
        assert len(api.messages()) == 1
    answered, refused = done.text.split()
    assert answered == "200"
    assert refused != "out"


def test_a_runtime_that_is_not_gvisor_is_not_taken_for_it(target: Target, runtime: str) -> None:
    impostor = Path(runtime).parent / "impostor" / "runsc"
    impostor.parent.mkdir()
    # It drops what crun does not know, and runs the container on this machine's own kernel.
    impostor.write_text(
        "#!/bin/sh\nfor word; do shift; case $word in --root=*|--network=*|--host-uds=*|--ignore-cgroups) ;; "
        '*) set -- "$@" "$word" ;; esac; done\nexec /usr/bin/crun --cgroup-manager=disabled "$@"\n'
    )
    impostor.chmod(0o755)
    options = [str(impostor) if each == runtime else each for each in target.options]
    tricked = Target(
        person=target.person, mode="container", repository=target.repository, options=tuple(options)
    )
    refused = tricked.refused()
    assert refused.returncode == 123
    assert "own-kernel" in refused.text

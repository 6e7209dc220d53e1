"""Setup and doctor on the real system: real sudo, a real plain account, the real directories.

The person fixture is the test of installing and of taking everything away again: it fails when something
of it is left.
"""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from clsecure.installation import SETUP_DIRECTORY, SUDOERS_FILE, inspect
from tests.support import sweep
from tests.support.person import clsecure_command

# Setup reads and writes one file: the tests that call it directly run one after the other.
pytestmark = [pytest.mark.root, pytest.mark.xdist_group("setup")]


def as_root(*args, cwd="/", **env):
    return subprocess.run(
        [*clsecure_command(), *args],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_installed_pieces_are_those_of_this_checkout(person):
    found = inspect(SETUP_DIRECTORY)
    assert found is not None
    assert found.stale == ()
    assert SUDOERS_FILE.stat().st_mode & 0o777 == 0o440


def test_doctor_says_that_the_modes_work(person):
    document = person.clsecure("doctor", "--output", "json").json()
    assert document["modes"]["user"] == {"works": True, "default": False, "lacks": []}
    assert document["modes"]["namespace"]["works"], document["modes"]
    assert {each["name"]: each["status"] for each in document["probes"]}["helper without password"] == "ok"


def test_doctor_for_people_ends_with_the_modes(person):
    done = person.clsecure("doctor").check()
    assert "--mode namespace (default)  works" in done.text


def test_the_helper_takes_no_arguments(person):
    refused = person.run(["sudo", "-n", "--", f"{SETUP_DIRECTORY}/helper", "x"])
    assert refused.returncode == 1
    assert refused.errors.startswith("sudo:")


def test_the_permission_is_for_nothing_else(person):
    helper = f"{SETUP_DIRECTORY}/helper"
    for argv in (["/usr/bin/id"], ["/usr/bin/python3", helper], [f"{SETUP_DIRECTORY}/launcher.py"]):
        refused = person.run(["sudo", "-n", "--", *argv])
        assert refused.returncode == 1, argv
        assert "password is required" in refused.errors


def test_the_environment_does_not_reach_root(person):
    refused = person.run(["sudo", "-n", "LD_PRELOAD=/x", f"{SETUP_DIRECTORY}/helper"])
    assert refused.returncode == 1
    assert "not allowed" in refused.errors


def test_descriptors_reach_the_helper_through_the_socket(person):
    """A pty as controlling terminal or none, sudo hands the SOCK_SEQPACKET socket through unchanged."""
    script = (
        "import json, socket, subprocess, sys;"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "child = subprocess.Popen(['sudo', '-n', '--', sys.argv[1]], stdin=theirs);"
        "theirs.close(); ours.settimeout(20);"
        "ours.send(json.dumps({'verb': 'hello'}).encode()); print(ours.recv(65536).decode()); ours.close();"
        "sys.exit(child.wait())"
    )
    argv = ["/usr/bin/python3", "-I", "-c", script, f"{SETUP_DIRECTORY}/helper"]
    plain = json.loads(person.run(argv).check().text)
    assert plain["directory"] == str(SETUP_DIRECTORY)
    terminal = person.run(["script", "-qec", shlex.join(argv), "/dev/null"])
    assert json.loads(terminal.check().text) == plain


def test_a_plain_user_is_shown_the_plan_and_the_command(person):
    done = person.clsecure("setup")
    assert done.returncode == 125
    assert f"{SETUP_DIRECTORY}/helper" in done.text
    assert "NOPASSWD" in done.text
    assert "setup needs root" in done.errors
    assert f"--user={person.name}" in done.errors


def test_a_dry_run_shows_the_plan_and_is_content(person):
    document = person.clsecure("setup", "--dry-run", "--output", "json").check().json()
    assert [file["unchanged"] for file in document["files"][:-1]] == [True] * (len(document["files"]) - 1)
    assert all(len(file["sha256"]) == 64 for file in document["files"])


def test_root_must_say_whose_account_it_is_for(person):
    done = as_root("setup", "--yes")
    assert done.returncode == 125
    assert "clsecure setup --user NAME" in done.stderr
    assert as_root("setup", "--dry-run", SUDO_UID=str(person.uid)).returncode == 0
    assert as_root("setup", "--yes", "--user", "root").returncode == 125


def test_root_without_a_terminal_and_without_yes_changes_nothing(person):
    done = as_root("setup", "--user", "daemon")
    assert done.returncode == 125
    assert "--yes" in done.stderr
    # Other processes of the tests add and remove people of their own meanwhile.
    assert b"daemon" not in SUDOERS_FILE.read_bytes()


def test_nothing_of_the_current_directory_runs_as_root(person, tmp_path):
    marker = tmp_path / "marker"
    for name in ("json", "argparse", "sitecustomize", "usercustomize", "clsecure", "hashlib", "tempfile"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write('{name}\\n')\n")
    for name in ("visudo", "groupadd", "sudo"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >>{marker}\n")
        (tmp_path / name).chmod(0o755)
    hostile = {"PYTHONPATH": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin"}
    done = as_root("setup", "--yes", "--user", person.name, cwd=tmp_path, **hostile)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_removal_is_refused_while_there_are_workers(person):
    lease = {
        "verb": "lease",
        "project": str(person.home / "no-project"),
        "session": "default",
        "create": True,
    }
    helper = SETUP_DIRECTORY / "helper"
    sweep.ask_helper(helper, person.uid, lease)
    try:
        name = str(person.worker_accounts()[0]["name"])
        done = as_root("setup", "--remove")
        assert done.returncode == 125
        assert name in done.stdout + done.stderr
        assert "clsecure cleanup --all" in done.stderr
        assert SUDOERS_FILE.exists()
    finally:
        sweep.remove_workers(person.uid)
    assert person.worker_accounts() == []

"""What ``apt purge clsecure`` takes away and what it leaves, also where things are not as they should be."""

from __future__ import annotations

import json
import re

import pytest

from clsecure.installation import PACKAGE_DIRECTORY
from tests.support.clean_machine import PERSON, PERSON_UID, WORKER_UIDS
from tests.support.sweep import processes_of

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("packages")]


@pytest.fixture(scope="module")
def fresh(after_apt):
    """What a machine is after ``apt install clsecure`` and nothing else."""
    return after_apt


_SESSION = "cd ~/sample && clsecure --agent demo --on-finish {finish} --mode {mode} </dev/null"


def failed_purge(machine, *options):
    done = machine.sh(f"apt-get -q purge -y {' '.join(options)} clsecure")
    assert done.returncode == 100
    assert "ok config-files" in machine.sh("dpkg --status clsecure").check().text, "dpkg forgot it"
    return done.text + done.errors


def purge(machine):
    machine.sh("apt-get -q purge -y clsecure").check()
    left = machine.names()
    assert not [name for name in left if name.startswith(("/home/claude-worker", "/var/lib/clsecure"))]
    assert "claude-worker" not in machine.sh("cat /etc/passwd").check().text
    assert machine.sh("getent group clsecure").returncode != 0


@pytest.mark.parametrize("how", ["at once", "after a removal"])
def test_a_purge_leaves_nothing_of_it_and_all_of_the_persons(installed, how):
    installed.sh("useradd --create-home claude-worker-mine").check()  # by somebody else: in no registry
    before = installed.names()
    accounts = installed.sh("cat /etc/passwd /etc/shadow /etc/group /etc/gshadow").check().text
    installed.person(_SESSION.format(mode="namespace", finish="keep")).check()
    if how == "after a removal":
        installed.sh("apt-get -q remove -y clsecure").check()
    done = installed.sh("apt-get -q purge -y clsecure").check()
    assert done.errors == ""
    left = installed.names()
    mine = {name for name in left - before if name.startswith(f"/home/{PERSON}/")}
    assert mine, "the person's own records of the session"
    logs = {
        "/var/log/apt/eipp.log.xz",
        "/var/log/apt/term.log",
        "/var/log/apt/history.log",
        "/var/log/dpkg.log",
    }
    assert {name for name in left - before - mine if "clsecure" in name or "claude-worker" in name} == set()
    assert left - before - mine <= logs | {
        f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow")
    }
    # The machine's own configuration, which no package made, is the administrator's.
    assert {name for name in left if "clsecure" in name and not name.startswith(f"/home/{PERSON}/")} <= {
        "/etc/clsecure",
        "/etc/clsecure/helper.json",
        "/etc/apt/sources.list.d/clsecure.sources",
        "/etc/apt/keyrings/clsecure-archive-keyring.gpg",
        *(name for name in left if name.startswith(("/var/lib/apt/lists/", "/srv/repository/"))),
    }
    after = installed.sh("cat /etc/passwd /etc/shadow /etc/group /etc/gshadow").check().text
    assert set(accounts.splitlines()) - set(after.splitlines()) == {
        line for line in accounts.splitlines() if line.startswith("clsecure:")
    }
    assert set(re.findall(r"^claude-worker-[^:]*", after, re.MULTILINE)) == {"claude-worker-mine"}


def test_what_a_purge_could_not_remove_is_said_and_goes_the_next_time(installed):
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    script = """
        cd /home/claude-worker-* && mkdir held && mount -t tmpfs held held && cd /
        ! apt-get -q purge -y clsecure
        umount /home/claude-worker-*/held
        ls /var/lib/clsecure/registry && getent group clsecure
        apt-get -q purge -y clsecure
    """
    done = installed.sh(script).check()
    assert re.search(r"clsecure: could not be removed: claude-worker-sample-\w+: ", done.text + done.errors)
    assert not [
        name for name in installed.names() if name.startswith(("/home/claude-worker", "/var/lib/clsecure"))
    ]
    assert installed.sh("getent group clsecure").returncode != 0


def test_a_purge_ends_a_session_that_runs(installed):
    script = f"""
        runuser --login {PERSON} -c 'cd sample && clsecure -- sh -c "echo runs; exec sleep 500"' >/tmp/said &
        timeout 30 sh -c 'until grep -q runs /tmp/said; do sleep 0.05; done'
        useradd --gid clsecure bob
        stat -c %u /home/claude-worker-*
        apt-get -q purge -y clsecure >/tmp/purged
        wait $! || :
        getent group clsecure >/dev/null  # an administrator made it somebody's
    """
    done = installed.run("sh", "-euc", script).check()
    assert processes_of(int(done.text)) == []
    assert "the group clsecure stays" in done.errors + installed.run("cat", "/tmp/purged").text
    left = installed.names()
    assert not [name for name in left if "claude-worker" in name or name.startswith("/var/lib/clsecure")]
    assert "claude-worker" not in installed.sh("cat /etc/passwd").check().text


def test_a_purge_that_finds_no_python_any_more_fails_and_can_be_tried_again(installed):
    """What the package brought along goes before it is purged."""
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    installed.sh("apt-mark manual sudo git firejail").check()
    said = failed_purge(installed, "--autoremove")
    assert installed.run("test", "-e", "/usr/bin/python3").returncode == 1
    (command,) = re.findall(r"needs python3: apt install (\S+); apt purge clsecure", said)
    installed.sh(f"apt-get -q install -y --no-install-recommends {command}").check()
    purge(installed)


def test_a_purge_in_the_middle_of_an_upgrade_leaves_nothing(installed, debs):
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    deb = f"/srv/repository/deb/pool/main/c/clsecure/{debs.built.name}"
    installed.sh(f"dpkg --unpack {deb} && dpkg --purge clsecure").check()
    purge(installed)


def test_a_damaged_package_can_be_mended_and_its_purge_says_when_it_must_be(installed):
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    damage = f"rm -rf {PACKAGE_DIRECTORY}"
    installed.sh(f"{damage} && apt-get -q install --reinstall -y clsecure").check()
    installed.person("clsecure list").check()
    installed.sh(damage).check()
    assert "needs the package: apt install clsecure; apt purge clsecure" in failed_purge(installed)
    installed.sh("apt-get -q install -y --no-install-recommends clsecure").check()
    purge(installed)


def test_a_full_disk_keeps_nobody_from_removing_the_package(installed):
    done = installed.sh("""
        mkdir -p /var/lib/clsecure && mount -t tmpfs -o size=64k,mode=711 full /var/lib/clsecure
        mkdir -m 700 /var/lib/clsecure/registry
        head -c 1M /dev/zero >/var/lib/clsecure/fill || :
        apt-get -q remove -y clsecure
        test ! -e /var/lib/clsecure/removal
    """).check()
    assert "what removes them could not be kept: the disk is full" in done.text + done.errors


def test_a_purge_ends_a_session_that_waits_for_an_answer(installed):
    script = f"""
        mkfifo /srv/keys && exec 3<>/srv/keys
        runuser --login {PERSON} -c '
            exec script -fqec "cd sample && clsecure --agent demo --mode user" /tmp/seen
        ' <&3 >/dev/null 2>&1 &
        timeout 60 sh -c 'until grep -q "Your choice" /tmp/seen; do sleep 0.05; done'
        apt-get -q purge -y clsecure
        kill $! || :
    """
    installed.run("sh", "-euc", script).check()
    purge(installed)


def test_a_purge_takes_no_account_and_ends_no_process_that_an_entry_wrongly_names(installed):
    """An entry that was edited, and a name and a uid that somebody else has by now."""
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    registry = "/var/lib/clsecure/registry"
    name = installed.sh(f"ls {registry} | grep claude").check().text.strip()
    entry = json.loads(installed.run("cat", f"{registry}/{name}").check().text)
    uid = PERSON_UID
    for wrong in (
        {**entry, "name": PERSON, "uid": uid, "home": f"/home/{PERSON}"},
        {**entry, "home": f"/home/{PERSON}"},
        {**entry, "uid": uid},
        {**entry, "range": 0},
        None,
    ):
        installed.write(f"{registry}/{name}", json.dumps(wrong).encode() if wrong else b"{")
        done = installed.sh(f"""
            setpriv --reuid {uid} --clear-groups sleep 300 >/dev/null 2>&1 & process=$!
            dpkg --purge clsecure && exit 1
            kill $process
        """).check()
        assert f"could not be removed: {name}: " in done.text + done.errors
    installed.write(f"{registry}/{name}", json.dumps(entry).encode())
    installed.sh(f"userdel {name} && useradd --uid {uid + 1} --no-create-home {name}").check()
    assert f"the account {name} is not the one that was made here" in failed_purge(installed)
    assert f"{PERSON}:x:{uid}:" in installed.sh(f"ls /home/{PERSON}/sample && cat /etc/passwd").check().text
    installed.sh(f"userdel {name}").check()
    purge(installed)


def test_a_purge_ends_what_still_runs_on_somebodys_images(installed):
    uid = WORKER_UIDS[-1]
    entry = {"name": f"images-{PERSON_UID}", "uid": uid, "owner": PERSON_UID, "home": "/nowhere"}
    installed.write(f"/var/lib/clsecure/images/{PERSON_UID}/account.json", json.dumps(entry).encode())
    installed.sh(f"""
        mkdir -m 700 /var/lib/clsecure/registry
        setpriv --reuid {uid} --clear-groups sleep 300 >/dev/null 2>&1 & process=$!
        apt-get -q purge -y clsecure
        ! kill -0 $process 2>/dev/null || {{ wait $process && exit 1; }} || [ $? = 137 ]
    """).check()
    assert processes_of(uid) == []
    purge(installed)

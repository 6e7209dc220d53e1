"""``apt install clsecure`` on a clean Debian 12, and all that comes after it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shutil
import stat
import subprocess
import tarfile

import pytest

from builder.project import PYTHONS
from builder.repository import build_repository, new_key
from builder.wheels import locked_for
from clsecure import __version__
from clsecure.installation import PACKAGE_DIRECTORY, PIECES
from tests.support.clean_machine import PERSON, add_person, end_all, make_debian
from tests.support.packages import FORMER, PREVIOUS, add_source
from tests.support.person import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("packages")]


@pytest.fixture
def clean(new_machine, debian, debs):
    """A clean machine that knows the repository, and nothing else of clsecure."""
    machine = new_machine(debian, debs.repository)
    add_source(machine)
    return machine


@pytest.fixture(scope="module")
def fresh(after_apt):
    """What a machine is after ``apt install clsecure`` and nothing else."""
    return after_apt


_SESSION = "cd ~/sample && clsecure --agent demo --on-finish {finish} --mode {mode} </dev/null"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_files_are_roots_and_nobody_else_can_change_them(debs):
    raw = subprocess.run(["dpkg-deb", "--fsys-tarfile", debs.built], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        listed = archive.getmembers()
    for each in listed:
        assert (each.uid, each.gid) == (0, 0), each.name
        assert each.issym() or not each.mode & 0o022, each.name
        assert not each.mode & (stat.S_ISUID | stat.S_ISGID), each.name
        assert each.mtime == debs.release.epoch
    modes = {each.name.removeprefix("."): each.mode for each in listed}
    assert modes["/etc/sudoers.d/clsecure-package"] == 0o440
    assert modes[f"{PACKAGE_DIRECTORY}/helper"] == 0o755
    assert not [name for name in modes if name.endswith(".pyc")]


def test_the_machine_has_the_pieces_the_command_and_the_group(installed):
    listed = installed.sh(f"cd {PACKAGE_DIRECTORY} && sha256sum {' '.join(p.target for p in PIECES)}").check()
    found = dict(reversed(line.split("  ", 1)) for line in listed.text.splitlines())
    assert found == {p.target: sha256(CHECKOUT / "clsecure" / p.source) for p in PIECES}
    assert installed.person("clsecure --version").check().text == f"clsecure {__version__}\n"
    installed.sh("visudo -cq && getent group clsecure").check()
    document = json.loads(installed.person("clsecure doctor --output json").text)
    probes = {each["name"]: each for each in document["probes"]}
    assert probes["root helper"]["observed"] == str(PACKAGE_DIRECTORY)
    assert probes["helper without password"]["status"] == "ok"
    assert document["modes"]["user"]["works"]
    assert document["modes"]["namespace"]["works"]


def test_shells_and_people_find_what_is_for_them(installed, debs):
    shared = {
        "bash-completion/completions/clsecure": "clsecure/completions/clsecure.bash",
        "zsh/vendor-completions/_clsecure": "clsecure/completions/_clsecure",
        "fish/vendor_completions.d/clsecure.fish": "clsecure/completions/clsecure.fish",
        "doc/clsecure/docs/usage.md": "docs/usage.md",
        "doc/clsecure/LICENSE": "LICENSE",
        "doc/clsecure/examples/hooks/session/working-hours": "hooks/session/working-hours",
        "doc/clsecure/examples/config.toml": "packaging/common/config.toml",
    }
    for there, here in shared.items():
        found = installed.run("cat", f"/usr/share/{there}").check()
        assert found.stdout == (CHECKOUT / here).read_bytes(), there
    manual = installed.sh("zcat /usr/share/man/man1/clsecure.1.gz").check().stdout
    assert manual == (CHECKOUT / "docs/clsecure.1").read_bytes()
    copyright_file = installed.run("cat", "/usr/share/doc/clsecure/copyright").check().text
    sbom = json.loads(installed.run("cat", "/usr/share/clsecure/sbom.cdx.json").check().text)
    locked = {each.name for python in PYTHONS for each in locked_for(python, debs.release.architecture)}
    assert {each["name"] for each in sbom["components"]} == locked
    assert [each["name"] for each in sbom["components"] if not each.get("licenses")] == []
    for name in locked:
        assert re.search(
            rf"^Files: .*/{name.replace('-', '[-_.]')}-[^/]*dist-info/",
            copyright_file,
            re.MULTILINE | re.IGNORECASE,
        ), name


def test_the_permission_is_for_the_helper_alone(installed):
    for argv in (f"{PACKAGE_DIRECTORY}/helper x", f"{PACKAGE_DIRECTORY}/maintainer/purge", "/usr/bin/id"):
        refused = installed.person(f"sudo -n -- {argv}")
        assert refused.returncode == 1
        assert refused.errors.startswith("sudo:"), argv
    installed.sh(f"gpasswd --delete {PERSON} clsecure").check()
    assert installed.person(f"sudo -n -- {PACKAGE_DIRECTORY}/helper").errors.startswith("sudo:")


def test_help_costs_little_more_than_python(installed):
    script = """
import subprocess, sys, time
def fastest(*argv):
    times = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)
print(fastest("/usr/bin/clsecure", "--help") - fastest("/usr/bin/python3", "-I", "-c", "pass"))
"""
    done = installed.run("runuser", "-u", PERSON, "--", "python3", "-I", "-c", script).check()
    assert float(done.text) < 0.150


@pytest.mark.parametrize("mode", ["namespace", "user"])
def test_the_work_of_a_session_comes_home(installed, mode):
    done = installed.person(_SESSION.format(mode=mode, finish="import"))
    assert done.returncode == 0, done.errors
    assert f"mode {mode}" in done.errors
    branches = installed.person("cd ~/sample && git branch --format='%(refname:short)'").check()
    (branch,) = (each for each in branches.text.split() if each.startswith("claude/"))
    shown = installed.person(f"cd ~/sample && git show {branch}:demo/notes.txt && git status --porcelain")
    assert shown.check().text


def test_an_upgrade_keeps_the_work_of_the_version_before(installed):
    installed.sh(f"apt-get -q install -y --allow-downgrades clsecure={PREVIOUS}").check()
    assert installed.person("clsecure --version").check().text == f"clsecure {PREVIOUS}\n"
    installed.person(_SESSION.format(mode="namespace", finish="keep")).check()
    installed.sh("apt-get -q upgrade -y").check()
    assert installed.person("clsecure --version").check().text == f"clsecure {__version__}\n"
    (kept,) = json.loads(installed.person("clsecure list --output json").check().text)["sessions"]
    assert kept["status"] == "kept"
    installed.person(f"cd ~/sample && clsecure import {kept['session_id']} </dev/null").check()
    branches = installed.person("cd ~/sample && git branch --list 'claude/*'").check()
    assert len(branches.text.splitlines()) == 1
    assert not [name for name in installed.names() if FORMER in name]


def test_an_upgrade_says_that_a_session_runs_whose_work_is_not_lost(installed):
    installed.sh(
        f"apt-get -q install -y --allow-downgrades clsecure={PREVIOUS} && mkfifo -m 666 /srv/go"
    ).check()
    script = f"""
        runuser --login {PERSON} -c '
            cd sample && clsecure --on-finish keep -- sh -c "echo runs; read x; echo done >made"
        ' </srv/go >/tmp/said 2>/tmp/errors &
        exec 3>/srv/go
        timeout 30 sh -c 'until grep -q runs /tmp/said; do sleep 0.05; done'
        apt-get -q upgrade -y
        echo >&3
        wait $! || :
    """
    done = installed.run("sh", "-euc", script).check()
    assert "sessions that are running, and may fail at their end: 1;" in done.text + done.errors
    (kept,) = json.loads(installed.person("clsecure list --output json").check().text)["sessions"]
    installed.person(f"cd ~/sample && clsecure import {kept['session_id']} </dev/null").check()
    made = installed.person(
        "cd ~/sample && git show $(git branch --list 'claude/*' --format='%(refname)'):made"
    )
    assert made.check().text == "done\n"


def test_h9_nothing_of_the_current_directory_or_of_pythonpath_runs(installed):
    modules = "sitecustomize usercustomize clsecure argparse json site pydantic"
    done = installed.person(f"""
        mkdir hostile && cd hostile
        for name in {modules}; do echo 'open("/tmp/mark", "w")' >$name.py; done
        for name in python3 readlink git; do printf '#!/bin/sh\\n: >/tmp/mark\\n' >$name; chmod +x $name; done
        PYTHONPATH=$PWD python3 -c pass && rm /tmp/mark
        PYTHONPATH=$PWD PYTHONUSERBASE=$PWD PATH=.:$PATH clsecure doctor
        PYTHONPATH=$PWD PYTHONUSERBASE=$PWD PATH=.:$PATH clsecure list
        test ! -e /tmp/mark
    """)
    assert done.returncode == 0, done.errors


def test_a_removal_keeps_the_work_and_a_new_installation_has_it_again(installed):
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    done = installed.sh("apt-get -q remove -y clsecure").check()
    assert "worker accounts: 1;" in done.text
    assert "apt purge clsecure" in done.text
    assert not [name for name in installed.names() if name.startswith("/usr/lib/clsecure")]
    installed.sh("getent group clsecure && ls -d /home/claude-worker-*").check()
    installed.sh("apt-get -q install -y --no-install-recommends clsecure").check()
    assert installed.run("test", "-e", "/var/lib/clsecure/removal").returncode == 1
    (kept,) = json.loads(installed.person("clsecure list --output json").check().text)["sessions"]
    installed.person(f"cd ~/sample && clsecure import {kept['session_id']} </dev/null").check()


def test_a_permission_that_sudo_refuses_is_named_with_the_reason(installed):
    rule = "/etc/sudoers.d/clsecure-package"
    refused = installed.sh(f"echo 'this is not sudoers' >>{rule}; dpkg-reconfigure clsecure")
    assert refused.returncode != 0
    assert f"sudo refuses {rule}" in refused.text + refused.errors
    assert "syntax error" in refused.text + refused.errors
    installed.sh(f"sed -i '$d' {rule} && dpkg --configure --pending && visudo -cq").check()


# A clsecure that is not the package's, as from a checkout: its own copy of the modules.
_OTHER = """
cp -r /usr/lib/clsecure/python /opt/other
other() {
    /usr/lib/clsecure/bin/python3 -I -c 'import sys; sys.path.insert(0, "/opt/other")
from clsecure.__main__ import main
sys.exit(main())' "$@"
}
"""


def test_setup_has_nothing_to_do_and_says_how_somebody_is_let_in(installed):
    assert "nothing to set up" in installed.person("clsecure setup").check().errors
    refused = installed.sh("useradd bob && clsecure setup --user bob")
    assert refused.returncode == 125
    assert "sudo usermod --append --groups clsecure bob" in refused.errors
    assert installed.run("test", "-e", "/usr/local/lib/clsecure").returncode == 1


def test_what_setup_put_beside_the_package_goes_alone(installed):
    installed.sh(f"{_OTHER} other setup --user {PERSON} --yes").check()
    installed.sh("visudo -cq && ls /etc/sudoers.d/clsecure /usr/local/lib/clsecure/helper").check()
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    installed.sh("clsecure setup --remove --yes").check()
    assert installed.sh("ls /etc/sudoers.d/clsecure").returncode != 0
    assert not [name for name in installed.names() if name.startswith("/usr/local/lib/clsecure")]
    (kept,) = json.loads(installed.person("clsecure list --output json").check().text)["sessions"]
    installed.person(f"cd ~/sample && clsecure import {kept['session_id']} </dev/null").check()


def test_a_purge_leaves_what_setup_still_uses(installed):
    installed.sh(f"{_OTHER} other setup --user {PERSON} --yes").check()
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    done = installed.sh("apt-get -q purge -y clsecure").check()
    assert "/usr/local/lib/clsecure/helper still uses the worker accounts" in done.text + done.errors
    installed.sh(
        "visudo -cq && getent group clsecure && ls -d /home/claude-worker-* /var/lib/clsecure"
    ).check()
    assert installed.run("test", "-e", "/var/lib/clsecure/removal").returncode == 1


def test_a_repository_with_another_signature_or_none_is_refused(clean, debs, package_place):
    broken = package_place / "broken"
    shutil.copytree(debs.repository, broken)
    machine = dataclasses.replace(clean, repository=broken)
    update = "apt-get -q update -o Dir::Etc::SourceList=/dev/null"
    machine.sh(update).check()
    release = broken / "deb/dists/stable/InRelease"
    signed = release.read_bytes()
    listed = broken / "deb/dists/stable/main" / f"binary-{debs.release.architecture.debian}" / "Packages"

    release.write_bytes(signed.replace(b"Label: clsecure", b"Label: xlsecure"))
    refused = machine.sh(f"{update} --error-on=any")
    assert refused.returncode == 100
    assert "BADSIG" in refused.text + refused.errors

    release.unlink()
    (release.with_name("Release.gpg")).unlink()
    refused = machine.sh(f"rm -rf /var/lib/apt/lists/* && {update}")
    assert refused.returncode == 100
    assert "is not signed" in refused.text + refused.errors

    release.write_bytes(signed)
    for path in [listed, *listed.parent.rglob("by-hash/*/*"), listed.with_suffix(".gz")]:
        path.write_bytes(b"Package: clsecure\n")
    refused = machine.sh(f"rm -rf /var/lib/apt/lists/* && {update}")
    assert refused.returncode == 100
    shutil.rmtree(broken)


def test_a_repository_that_somebody_elses_key_signed_is_refused(clean, debs, package_place):
    foreign = package_place / "foreign"
    build_repository([debs.previous], new_key(package_place / "other-key"), foreign, epoch=debs.release.epoch)
    machine = dataclasses.replace(clean, repository=foreign)
    refused = machine.sh("apt-get -q update -o Dir::Etc::SourceList=/dev/null --error-on=any")
    assert refused.returncode == 100
    assert "NO_PUBKEY" in refused.text + refused.errors
    shutil.rmtree(foreign)


def test_a_package_other_than_the_signed_one_is_refused(clean, debs, package_place):
    broken = package_place / "exchanged"
    shutil.copytree(debs.repository, broken)
    machine = dataclasses.replace(clean, repository=broken)
    machine.sh("apt-get -q update").check()
    shutil.copyfile(debs.previous, broken / "deb/pool/main/c/clsecure" / debs.built.name)
    refused = machine.sh("apt-get -q install -y --no-install-recommends clsecure")
    assert refused.returncode == 100
    assert "unexpected size" in refused.errors or "Hash Sum mismatch" in refused.errors
    shutil.rmtree(broken)


def test_all_that_is_recommended_can_be_installed(clean):
    clean.sh("apt-get -q update").check()
    done = clean.sh("apt-get -q install -y --simulate clsecure").check()
    for name in ("git", "sudo", "python3", "firejail", "nftables", "podman", "uidmap", "passt"):
        assert f"Inst {name} " in done.text, name


def with_sudo_rs(machine):
    """Have sudo-rs for sudo, as Ubuntu has it, and use both the package and what setup installs with it."""
    machine.sh("""
        apt-get -q install -y --no-install-recommends sudo-rs
        for name in bin/sudo sbin/visudo; do
            dpkg-divert --local --rename /usr/$name && ln -s /usr/lib/cargo/bin/${name#*/} /usr/$name
        done
        dpkg-reconfigure clsecure
    """).check()
    settings = machine.sh("visudo -c && cat /etc/sudoers.d/clsecure-package*").check().text
    assert "env_reset" in settings
    assert "closefrom" not in settings
    machine.person(_SESSION.format(mode="user", finish="import")).check()
    machine.sh(f"{_OTHER} other setup --user {PERSON} --yes && visudo -c").check()
    machine.sh("gpasswd --delete alice clsecure && rm /etc/sudoers.d/clsecure-package").check()
    machine.person("sudo -n -l /usr/local/lib/clsecure/helper && ! sudo -n true").check()
    machine.sh(f"{_OTHER} other setup --remove --yes").check()


def test_the_same_package_serves_debian_13_and_its_python(new_machine, debs, package_place):
    machine = new_machine(make_debian(package_place / "debian-13", "trixie"), debs.repository)
    add_source(machine)
    machine.sh("apt-get -q update && apt-get -q install -y --no-install-recommends clsecure firejail").check()
    add_person(machine)
    for mode in ("namespace", "user"):
        machine.person(_SESSION.format(mode=mode, finish="import")).check()
    assert len(machine.person("cd ~/sample && git branch --list 'claude/*'").text.splitlines()) == 2
    with_sudo_rs(machine)
    assert machine.sh("apt-get -q purge -y clsecure").check().errors == ""
    end_all()


def test_another_python_has_its_byte_code_at_once(installed):
    cached = f"{PACKAGE_DIRECTORY}/python/clsecure/__pycache__/__main__.cpython-311.pyc"
    installed.sh(
        f"rm {cached} && umask 077 && dpkg-trigger --by-package=python3-minimal /usr/bin/python3"
    ).check()
    installed.sh("umask 077 && dpkg --configure --pending").check()
    installed.run("test", "-e", cached).check()
    closed = installed.sh(f"find {PACKAGE_DIRECTORY} ! -type l ! -perm -004").check()
    assert closed.text == ""

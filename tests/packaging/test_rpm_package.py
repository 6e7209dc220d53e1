"""The rpm: its own dependency check, ``dnf install`` from the signed repository, and all that comes after it.

No distribution with rpm can be had here. So rpm and dnf of Debian install it into a Debian, where a package
without files stands in for what Fedora's packages would be; what they are to bring comes from Debian.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil

import pytest

from clsecure import __version__
from clsecure.installation import PACKAGE_DIRECTORY, PIECES
from tests.support.clean_machine import PERSON
from tests.support.packages import FORMER, PREVIOUS, add_dnf_source, needs, stand_in
from tests.support.person import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("packages")]

_SESSION = "cd ~/sample && clsecure --agent demo --on-finish {finish} --mode {mode} </dev/null"
_PYTHON = "3.11.2"


def install_stand_in(machine, package):
    script = "cat >/root/stand-in.rpm && rpm -i /root/stand-in.rpm"
    machine.run("sh", "-euc", script, input=package.read_bytes()).check()


@pytest.fixture(scope="module")
def bare(new_machine, debian, rpms):
    """A machine that has rpm, dnf, and the programs that clsecure needs, but no package of it."""
    machine = new_machine(debian, rpms.repository)
    programs = "dnf rpm git sudo firejail"
    machine.sh(f"apt-get -q update && apt-get -q install -y --no-install-recommends {programs}").check()
    add_dnf_source(machine)
    return machine.as_layers, rpms.repository


@pytest.fixture(scope="module")
def fresh(new_machine, bare, rpms, package_place):
    """What a machine is after ``dnf install clsecure`` and nothing else."""
    machine = new_machine(*bare)
    package = stand_in(needs(rpms.built), _PYTHON, package_place / "stand-in")
    install_stand_in(machine, package)
    machine.sh("dnf --quiet --assumeyes install clsecure").check()
    return machine.as_layers, rpms.repository


def test_what_the_distribution_must_have_is_named(new_machine, bare, rpms):
    """Rpm itself refuses, and names each thing that is not there."""
    machine = new_machine(*bare)
    refused = machine.sh(f"rpm -i --test /srv/repository/rpm/{rpms.built.name}")
    assert refused.returncode != 0
    missing = set(re.findall(r"^\t(.*) is needed by clsecure-", refused.errors, re.MULTILINE))
    assert missing == needs(rpms.built)
    named = {re.split(r"[ (]", each)[0] for each in missing if not each.startswith(("/", "("))}
    system = {each for each in named if each.startswith(("ld-linux", "lib", "rtld"))}
    assert named - system == {"git-core", "sudo", "shadow-utils"}
    assert "(python3 >= 3.11 with python3 < 3.15)" in missing


def test_a_python_that_it_has_no_modules_for_is_refused(new_machine, bare, rpms, package_place):
    machine = new_machine(*bare)
    package = stand_in(needs(rpms.built), "3.15.0", package_place / "stand-in-later")
    install_stand_in(machine, package)
    refused = machine.sh("dnf --quiet --assumeyes install clsecure")
    assert refused.returncode != 0
    assert "nothing provides (python3 >= 3.11 with python3 < 3.15)" in refused.errors


def test_files_modes_and_scripts_are_as_they_should_be(installed):
    assert installed.sh("rpm --verify --nodeps clsecure").check().text == ""
    form = r"[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]"
    listed = installed.sh(f"rpm -q --queryformat '{form}' clsecure")
    rows = [line.split(" ", 3) for line in listed.check().text.splitlines()]
    assert {(user, group) for _, user, group, _ in rows} == {("root", "root")}
    assert not [row for row in rows if row[0][0] != "l" and "w" in row[0][5] + row[0][8]]
    modes = {name: perms for perms, _, _, name in rows}
    assert modes["/etc/sudoers.d/clsecure-package"] == "-r--r-----"
    assert modes[f"{PACKAGE_DIRECTORY}/helper"] == "-rwxr-xr-x"
    sums = installed.sh(f"cd {PACKAGE_DIRECTORY} && sha256sum {' '.join(p.target for p in PIECES)}").check()
    found = dict(reversed(line.split("  ", 1)) for line in sums.text.splitlines())
    expected = {p.target: (CHECKOUT / "clsecure" / p.source).read_bytes() for p in PIECES}
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()}
    installed.sh("visudo -cq && getent group clsecure").check()
    installed.run("test", "-e", f"{PACKAGE_DIRECTORY}/python/clsecure/__pycache__").check()


@pytest.mark.parametrize("mode", ["namespace", "user"])
def test_the_work_of_a_session_comes_home(installed, mode):
    done = installed.person(_SESSION.format(mode=mode, finish="import"))
    assert done.returncode == 0, done.errors
    assert len(installed.person("cd ~/sample && git branch --list 'claude/*'").text.splitlines()) == 1


def test_an_upgrade_keeps_the_work_of_the_version_before(installed):
    installed.sh(f"dnf --quiet --assumeyes downgrade clsecure-{PREVIOUS}").check()
    assert installed.person("clsecure --version").check().text == f"clsecure {PREVIOUS}\n"
    installed.person(_SESSION.format(mode="namespace", finish="keep")).check()
    installed.sh("dnf --quiet --assumeyes upgrade").check()
    assert installed.person("clsecure --version").check().text == f"clsecure {__version__}\n"
    (kept,) = json.loads(installed.person("clsecure list --output json").check().text)["sessions"]
    installed.person(f"cd ~/sample && clsecure import {kept['session_id']} </dev/null").check()
    assert len(installed.person("cd ~/sample && git branch --list 'claude/*'").text.splitlines()) == 1
    assert not [name for name in installed.names() if FORMER in name]
    installed.run("test", "-e", f"{PACKAGE_DIRECTORY}/python/clsecure/__pycache__").check()


def test_a_removal_keeps_the_work_and_says_how_all_of_it_goes(installed):
    before = installed.sh("cat /etc/passwd").check().text
    installed.person(_SESSION.format(mode="user", finish="keep")).check()
    done = installed.sh("dnf --assumeyes remove clsecure").check()
    assert "worker accounts: 1;" in done.text + done.errors
    assert "sudo /var/lib/clsecure/removal/maintainer/purge" in done.text + done.errors
    installed.sh("getent group clsecure && ls -d /home/claude-worker-*").check()
    installed.sh("/var/lib/clsecure/removal/maintainer/purge").check()
    assert installed.sh("cat /etc/passwd").check().text == before
    assert installed.sh("getent group clsecure").returncode != 0
    left = {name for name in installed.names() if "clsecure" in name or "claude-worker" in name}
    ours = ("/usr/lib/clsecure", "/usr/bin/clsecure", "/usr/share/", "/var/lib/clsecure", "/run/clsecure")
    assert not [name for name in left if name.startswith(ours)]
    assert not [name for name in left if "claude-worker" in name and not name.startswith(f"/home/{PERSON}/")]
    assert "/etc/sudoers.d/clsecure-package" not in left


def test_a_package_or_an_index_that_is_not_the_signed_one_is_refused(new_machine, bare, rpms, package_place):
    broken = package_place / "broken-rpm"
    shutil.copytree(rpms.repository, broken)
    machine = dataclasses.replace(new_machine(*bare), repository=broken)
    index = broken / "rpm/repodata/repomd.xml"
    signed = index.read_bytes()
    index.write_bytes(signed.replace(b"<revision>", b"<revision>1"))
    refused = machine.sh("dnf --assumeyes repoquery clsecure")
    assert refused.text == ""
    assert "Bad GPG signature" in refused.errors
    index.write_bytes(signed)
    assert f":{__version__}-1." in machine.sh("dnf --assumeyes repoquery clsecure").check().text

    package = broken / "rpm" / rpms.built.name
    check = f"rpm --checksig /srv/repository/rpm/{package.name}"
    assert machine.sh(check).returncode != 0, "without the key"
    machine.sh(f"rpm --import /srv/repository/clsecure-archive-keyring.asc && {check}").check()
    data = bytearray(package.read_bytes())
    data[len(data) // 2] ^= 1
    package.write_bytes(data)
    assert machine.sh(check).returncode != 0
    shutil.rmtree(broken)

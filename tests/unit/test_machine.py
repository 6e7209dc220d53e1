"""Doctor's probes look at the real machine; what can't be confirmed keeps a mode from working."""

from __future__ import annotations

from pathlib import Path

import pytest

from clsecure.cli.commands import doctor
from clsecure.machine import examine, kernel, limits, probe, programs
from clsecure.machine.probe import CONTAINER, EVERY, NAMESPACE, Probe, ProbeStatus
from clsecure.model import IsolationMode


def missing(name, needed_by):
    return Probe(name=name, status=ProbeStatus.MISSING, observed="", needed_by=needed_by, fix="do it")


def test_this_machine_can_be_examined():
    probes = examine.examine()
    names = [each.name for each in probes]
    assert len(set(names)) == len(names)
    assert {"kernel", "git", "sudo", "root helper", "firejail", "landlock", "cgroups", "limits"} <= set(names)
    assert {"container engine", "podman", "crun", "runc", "docker", "own engine"} <= set(names)
    assert not [each for each in probes if "could not be looked at" in each.observed]


def test_every_lack_names_what_helps():
    assert all(each.fix for each in examine.examine() if each.status is ProbeStatus.MISSING)


def test_a_lack_counts_only_for_the_modes_that_need_it():
    probes = (missing("firejail", NAMESPACE),)
    assert examine.mode_works(IsolationMode.USER, probes)
    assert not examine.mode_works(IsolationMode.NAMESPACE, probes)
    assert not examine.mode_works(IsolationMode.USER, (missing("git", EVERY),))
    assert not examine.mode_works(IsolationMode.CONTAINER, (missing("container engine", CONTAINER),))
    assert examine.mode_works(IsolationMode.NAMESPACE, (missing("container engine", CONTAINER),))


def test_a_probe_that_fails_denies(monkeypatch):
    def probe_broken():
        raise OSError("boom")

    monkeypatch.setattr(examine, "_PROBES", (probe_broken,))
    probes = examine.examine()
    assert probes[0].observed == "could not be looked at: boom"
    assert not examine.mode_works(IsolationMode.USER, probes)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("git version 2.39.5", (2, 39, 5)),
        ("git version 2.39.5 (Apple Git-154)", (2, 39, 5)),
        ("firejail version 0.9.72\n\nCompile time support: 1.2", (0, 9, 72)),
        ("Sudo version 1.9.13p3", (1, 9, 13)),
        ("3.13.0rc1", (3, 13, 0)),
        ("no number", ()),
        ("", ()),
    ],
)
def test_versions_are_read_from_a_programs_own_words(text, version):
    assert probe.parse_version(text) == version


def test_an_unreadable_version_is_not_enough():
    assert probe.versioned("git", "?", (2, 34), EVERY, "fix").status is ProbeStatus.MISSING
    assert probe.versioned("git", "2.4.1", (2, 34), EVERY, "fix").status is ProbeStatus.MISSING
    assert probe.versioned("git", "2.34", (2, 34), EVERY, "fix").status is ProbeStatus.OK


def test_landlock_agrees_with_the_kernels_list_of_modules():
    modules = Path("/sys/kernel/security/lsm")
    if not modules.exists():
        pytest.skip("securityfs is not mounted, the kernel does not list its modules")
    assert (kernel.landlock_abi() > 0) == ("landlock" in modules.read_text().split(","))


def test_a_firejail_that_isolates_nothing_is_found_out(tmp_path, monkeypatch):
    stub = tmp_path / "firejail"
    stub.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    stub.chmod(0o755)
    monkeypatch.setattr(programs, "SYSTEM_PATH", f"{tmp_path}:/usr/bin:/bin")
    found = programs.probe_firejail_isolates()
    assert found.status is ProbeStatus.MISSING
    assert "without its own namespaces" in found.observed


@pytest.mark.parametrize(
    ("setting", "value", "opens"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("user/max_user_namespaces", "0", "10000"),
    ],
)
def test_what_keeps_plain_users_from_user_namespaces_is_named(monkeypatch, setting, value, opens):
    """No machine has all of these settings of distributions: they are read from a table."""
    found = {f"/proc/sys/{setting}": value}
    monkeypatch.setattr(probe, "read_small", found.get)
    assert probe.user_namespaces_closed() == (setting.replace("/", "."), opens)
    found.clear()
    assert probe.user_namespaces_closed() is None


@pytest.mark.parametrize(
    ("connector", "setting", "status"),
    [
        ("pasta", None, ProbeStatus.OK),
        ("slirp4netns", None, ProbeStatus.OK),
        ("pasta", "kernel.apparmor_restrict_unprivileged_userns", ProbeStatus.OK),
        ("slirp4netns", "kernel.apparmor_restrict_unprivileged_userns", ProbeStatus.WARNING),
        ("pasta", "user.max_user_namespaces", ProbeStatus.WARNING),
    ],
)
def test_what_connects_a_full_network_is_told_and_what_keeps_it(
    monkeypatch, tmp_path, connector, setting, status
):
    (tmp_path / connector).touch(mode=0o755)
    monkeypatch.setattr(probe, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setattr(programs, "user_namespaces_closed", lambda: setting and (setting, "0"))
    monkeypatch.setattr(programs, "TUN", Path("/dev/null"))
    found = programs.probe_connector()
    assert found.status is status
    assert f"by {connector}" in found.observed
    assert setting is None or status is ProbeStatus.OK or setting in found.observed


@pytest.mark.parametrize(
    ("manager", "tool", "command"),
    [
        ("apt-get", "firejail", "sudo apt install firejail"),
        ("dnf", "git-lfs", "sudo dnf install git-lfs"),
        ("pacman", "gh", "sudo pacman -S github-cli"),
    ],
)
def test_the_fix_is_in_the_words_of_this_system(monkeypatch, tmp_path, manager, tool, command):
    (tmp_path / manager).write_text("#!/bin/sh\n")
    (tmp_path / manager).chmod(0o755)
    monkeypatch.setattr(probe, "SYSTEM_PATH", str(tmp_path))
    assert probe.install_command(tool) == command


def test_the_table_tells_what_helps_and_which_modes_work():
    probes = (
        Probe(name="git", status=ProbeStatus.OK, observed="2.39.5", needed_by=EVERY),
        missing("firejail", NAMESPACE),
    )
    text = "\n".join(doctor.table(probes))
    assert "LACKS  firejail" in text
    assert "→ do it" in text
    assert "--mode user                 works" in text
    assert "--mode namespace (default)  does not work: firejail" in text
    assert "--mode container            works" in text
    assert doctor.document(probes)["modes"]["namespace"] == {
        "works": False,
        "default": True,
        "lacks": ["firejail"],
    }


@pytest.mark.parametrize(
    ("unified", "version_1", "systemd", "found"),
    [
        ("cpu memory pids", (), True, {"memory": "systemd", "pids": "systemd", "cpus": "systemd"}),
        ("cpu memory pids", (), False, {"memory": "cgroup", "pids": "cgroup", "cpus": "cgroup"}),
        ("", ("memory",), False, {"memory": "cgroup", "pids": "rlimit", "cpus": None}),
        ("", (), False, {"memory": None, "pids": "rlimit", "cpus": None}),
    ],
)
def test_doctor_says_which_limits_hold(monkeypatch, unified, version_1, systemd, found) -> None:
    there = {f"/sys/fs/cgroup/{name}/cgroup.procs" for name in version_1}
    monkeypatch.setattr(limits, "read_small", lambda path: unified if path.endswith("controllers") else None)
    monkeypatch.setattr(limits.Path, "exists", lambda self: str(self) in there)
    monkeypatch.setattr(limits.Path, "is_dir", lambda self: systemd and str(self) == "/run/systemd/system")
    assert limits.enforceable() == {**found, "open_files": "rlimit", "disk": "measured"}
    probe = limits.probe_limits()
    assert (probe.status is ProbeStatus.OK) == (None not in found.values())


def test_a_device_that_plain_users_can_not_open_is_told(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(programs, "find_connector", lambda: "pasta")
    monkeypatch.setattr(programs, "user_namespaces_closed", lambda: None)
    monkeypatch.setattr(programs, "TUN", tmp_path / "tun")
    found = programs.probe_connector()
    assert found.status is ProbeStatus.WARNING
    assert "can't open" in found.observed

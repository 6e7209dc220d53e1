"""C7: engines and runtimes are held against known holes; and what containers need of the machine is told."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import pwd
import re
import socketserver
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clsecure.cli.commands import doctor
from clsecure.cli.worker_image import StoredImage
from clsecure.errors import BackendUnavailableError
from clsecure.images.tools import require_tools
from clsecure.machine import advisories, containers, docker, engines
from clsecure.machine.advisories import ADVISORIES, concerns, open_advisories, parse
from clsecure.machine.probe import BUILD_PROGRAMS, PLAIN_BUILD_PROGRAMS, Probe, ProbeStatus, install_command
from clsecure.model import Engine

# ------------------------------------------------------------ the table


@pytest.mark.parametrize("program", ADVISORIES)
def test_the_table_makes_sense(program: str) -> None:
    for each in ADVISORIES[program]:
        assert re.fullmatch(r"CVE-20[0-9]{2}-[0-9]{4,}", each.cve)
        fixed = [parse(version) for version in each.fixed]
        assert all(fixed)
        assert fixed == sorted(fixed)
        assert each.since is None or parse(each.since) < fixed[0]


@pytest.mark.parametrize(
    ("program", "answer", "holes"),
    [
        ("runc", "runc version 1.0.0-rc6", "CVE-2019-5736"),
        ("runc", "runc version 1.1.11", "CVE-2024-21626"),
        ("runc", "runc version 1.2.7", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"),
        ("runc", "runc version 1.4.0-rc.2", "CVE-2025-31133"),
        ("crun", "crun version 1.8.1\ncommit: 5", "CVE-2025-24965 CVE-2026-47766"),
        ("crun", "crun version 1.19", "CVE-2025-24965 CVE-2026-30892"),
        ("podman", "podman version 4.3.1", "CVE-2024-1753 CVE-2024-9341 CVE-2024-9407"),
        ("podman", "podman version 5.0.0", "CVE-2024-1753"),
        ("docker", "20.10.24+dfsg1", "CVE-2024-41110 CVE-2026-34040"),
        ("docker", "27.1.0", "CVE-2024-41110"),
        ("runc", "what?", "CVE-2019-5736 CVE-2024-21626 CVE-2025-52881"),
    ],
)
def test_an_old_version_has_its_holes(program: str, answer: str, holes: str) -> None:
    assert set(holes.split()) <= {each.cve for each in open_advisories(program, answer)}


@pytest.mark.parametrize(
    ("program", "answer", "closed"),
    [
        ("runc", "runc version 1.0.0-rc92", "CVE-2024-21626"),
        ("runc", "runc version 1.1.12", "CVE-2024-21626 CVE-2019-5736"),
        ("runc", "runc version 1.2.8", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881"),
        ("runc", "runc version 1.3.3", "CVE-2025-31133"),
        ("runc", "runc version 1.4.0-rc.3", "CVE-2025-31133"),
        ("runc", "runc version 1.5.1", "CVE-2025-31133 CVE-2026-41579"),
        ("crun", "crun version 1.18.2", "CVE-2026-30892 CVE-2022-27650"),
        ("crun", "crun version 1.28", "CVE-2025-24965 CVE-2026-30892 CVE-2026-47766"),
        ("podman", "podman version 4.9.4", "CVE-2024-1753"),
        ("docker", "26.1.5", "CVE-2024-41110"),
        ("docker", "28.2.2", "CVE-2024-41110"),
    ],
)
def test_a_fixed_version_does_not(program: str, answer: str, closed: str) -> None:
    assert not set(closed.split()) & {each.cve for each in open_advisories(program, answer)}


def test_a_branch_that_never_got_the_fix_is_open() -> None:
    [advisory] = [each for each in ADVISORIES["docker"] if each.cve == "CVE-2024-41110"]
    assert concerns(advisory, parse("24.0.9"))
    assert not concerns(advisory, parse("25.0.6"))


# ------------------------------------------------------------ what distributions fix


@pytest.fixture
def documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "doc"
    monkeypatch.setattr(advisories, "_DOCUMENTATION", place)
    monkeypatch.setattr(advisories, "find_program", lambda _name: None)
    return place


def changelog(place: Path, package: str, data: bytes, name: str = "changelog.Debian.gz") -> None:
    (place / package).mkdir(parents=True)
    (place / package / name).write_bytes(data)


def cves(program: str, answer: str, path: str = "/usr/bin/x") -> set[str]:
    return {each.cve for each in open_advisories(program, answer, path=Path(path))}


def test_what_debian_fixed_in_its_package_is_fixed(documentation: Path) -> None:
    text = b"runc (1.1.5+ds1-1+deb12u1) bookworm-security; urgency=high\n\n  * CVE-2024-21626: breakouts\n"
    changelog(documentation, "runc", gzip.compress(text))
    assert "CVE-2024-21626" not in cves("runc", "runc version 1.1.5+ds1")
    assert "CVE-2025-52881" in cves("runc", "runc version 1.1.5+ds1")
    # A program that somebody put beside it is not the package's.
    assert "CVE-2024-21626" in cves("runc", "runc version 1.1.5", "/usr/local/sbin/runc")


def test_a_package_may_be_called_otherwise(documentation: Path) -> None:
    changelog(documentation, "docker.io", gzip.compress(b"* Fix CVE-2024-41110\n"))
    assert cves("docker", "20.10.24+dfsg1") == {"CVE-2026-34040"}


@pytest.mark.parametrize(
    "data",
    [b"", b"CVE-2024-21626", gzip.compress(b"CVE-2024-21626" * 9)[:20]],
    ids=["empty", "no-gzip", "cut-off"],
)
def test_a_changelog_that_can_not_be_read_fixes_nothing(documentation: Path, data: bytes) -> None:
    changelog(documentation, "runc", data)
    assert "CVE-2024-21626" in cves("runc", "runc version 1.1.5")


def test_a_huge_changelog_is_read_up_to_a_bound(documentation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisories, "_MAX_CHANGELOG", 1 << 16)
    changelog(documentation, "runc", gzip.compress(b" " * (1 << 20) + b"CVE-2024-21626"))
    assert "CVE-2024-21626" in cves("runc", "runc version 1.1.5")


def test_what_an_rpm_says_that_it_fixed_is_fixed(
    documentation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rpm = tmp_path / "rpm"
    rpm.write_text('#!/bin/sh\n[ "$*" = "-q --changelog -- runc" ] && echo "- fix CVE-2024-21626"\n')
    rpm.chmod(0o755)
    monkeypatch.setattr(advisories, "find_program", lambda name: rpm if name == "rpm" else None)
    assert "CVE-2024-21626" not in cves("runc", "runc version 1.1.5")
    assert "CVE-2025-24965" in cves("crun", "crun version 1.8.1")


# ------------------------------------------------------------ the probes


@pytest.fixture
def tools(tmp_path: Path, documentation: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose programs are those of an empty directory, without docker."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setattr(containers, "_PATH", str(place))
    monkeypatch.setattr(containers, "DOCKER_SOCKET", tmp_path / "docker.sock")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return place


def install(place: Path, **versions: str) -> None:
    for name, answer in versions.items():
        (place / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (place / name).chmod(0o755)


CURRENT = {"podman": "podman version 5.7.0", "conmon": "conmon version 2.1.13", "crun": "crun version 1.28"}


def found() -> dict[str, Probe]:
    return {each.name: each for each in engines.probes()}


def test_a_machine_with_everything_has_nothing_to_mend(tools: Path) -> None:
    install(tools, **CURRENT)
    seen = found()
    for name in ("container engine", "podman", "crun", "conmon"):
        assert seen[name].status is ProbeStatus.OK, seen[name]
    assert seen["podman"].observed == "5.7.0"


def test_a_machine_without_an_engine_lacks_container_mode_and_is_told_the_command(tools: Path) -> None:
    engine = found()["container engine"]
    assert engine.status is ProbeStatus.MISSING
    assert "podman lacks podman, conmon, crun" in engine.observed
    assert "podman" in (engine.fix or "")


def test_a_podman_that_is_too_old_is_no_engine(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_is_roots", lambda path: path.stat().st_mode & 0o022 == 0)
    install(tools, **{**CURRENT, "podman": "podman version 3.4.4"})
    engine = found()["container engine"]
    assert engine.status is ProbeStatus.MISSING
    assert "a podman from 4.3 on" in engine.observed
    # One that others could change is not even asked: the root helper refuses it.
    (program,) = tools.rglob("podman")
    program.chmod(0o775)
    assert not list(containers.unusable(Engine.PODMAN))


def test_the_fix_names_the_very_programs_that_podman_lacks(tools: Path) -> None:
    install(tools, **{name: said for name, said in CURRENT.items() if name not in ("crun", "conmon")})
    fix = found()["container engine"].fix or ""
    assert fix.endswith(("conmon crun", "conmon, crun"))
    with pytest.raises(BackendUnavailableError, match="lacks conmon, crun") as raised:
        containers.require_engine(Engine.PODMAN)
    assert "conmon" in (raised.value.resolution or "")


def test_the_fix_of_the_own_engine_names_all_that_it_lacks(tools: Path) -> None:
    install(tools, podman=CURRENT["podman"], crun=CURRENT["crun"])
    fix = found()["own engine"].fix or ""
    assert "netavark" in fix
    assert "aardvark-dns" in fix
    with pytest.raises(BackendUnavailableError) as raised:
        containers.require_own_engine()
    assert "aardvark-dns" in (raised.value.resolution or "")


def test_a_docker_client_without_compose_is_named_with_the_packages_that_have_it(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_program", lambda name: Path("/bin") / name)
    monkeypatch.setattr(engines, "_PLUGINS", (tools / "docker-compose",))
    assert "docker-compose" in (engines.probe_docker_client().fix or "")
    (tools / "docker-compose").touch()
    assert engines.probe_docker_client().status is ProbeStatus.OK


def test_a_kernel_without_overlay_in_user_namespaces_is_told(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tools, **CURRENT)
    monkeypatch.setattr(containers, "MINIMUM_KERNEL", (99, 0))
    assert "overlay in user namespaces" in found()["container engine"].observed


def test_a_program_with_a_hole_is_a_warning_that_says_what_is_not_known(tools: Path) -> None:
    install(tools, **{**CURRENT, "crun": "crun version 1.8.1", "runc": "runc version 1.2.7"})
    seen = found()
    assert seen["container engine"].status is ProbeStatus.OK  # it works; the user decides
    for name, cve in (("crun", "CVE-2025-24965"), ("runc", "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881")):
        assert seen[name].status is ProbeStatus.WARNING
        assert cve in seen[name].observed
        assert "the distribution may have fixed them" in seen[name].observed


def test_a_program_that_does_not_answer_fails_no_mode(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SECONDS", 0.2)
    install(tools, **CURRENT)
    (tools / "runsc").write_text("#!/bin/sh\nexec sleep 30\n")
    (tools / "runsc").chmod(0o755)
    probe = found()["runsc"]
    assert probe.status is ProbeStatus.WARNING
    assert "did not end within" in probe.observed
    assert probe.needed_by == ()


def test_restricted_user_namespaces_are_named_and_do_not_hinder(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = ("kernel.apparmor_restrict_unprivileged_userns", "0")
    monkeypatch.setattr(engines, "user_namespaces_closed", lambda: closed)
    probe = engines.probe_user_namespaces()
    assert probe.status is ProbeStatus.OK
    assert closed[0] in probe.observed
    monkeypatch.setattr("clsecure.machine.probe.read_small", lambda _path: "0")
    assert engines.probe_user_namespaces().status is ProbeStatus.MISSING


def test_subordinate_uids_are_shown_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(
        "clsecure.machine.probe.read_small", lambda _path: f"{name}:100000:65536\nother:1:1\nbroken\n"
    )
    assert engines.probe_subordinate_uids().observed.startswith("65536 from 100000 on; only building")


def test_what_building_an_image_lacks_is_told_with_what_installs_it(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clsecure.machine.probe.SYSTEM_PATH", str(tools))
    monkeypatch.setattr("clsecure.machine.probe.os.geteuid", lambda: 65534)
    probe = engines.probe_image_building()
    assert probe.status is ProbeStatus.INFO
    for name in ("mmdebstrap", "newuidmap", "/etc/subuid"):
        assert name in probe.observed
    with pytest.raises(BackendUnavailableError, match="lacks mmdebstrap, apt-get, dpkg-deb, newuidmap"):
        require_tools(npm=False)
    install(tools, **dict.fromkeys((*BUILD_PROGRAMS, *PLAIN_BUILD_PROGRAMS), ""))
    assert "usermod --add-subuids" in (engines.probe_image_building().fix or "")
    with pytest.raises(BackendUnavailableError, match="no range of uids"):
        require_tools(npm=False)
    monkeypatch.setattr("clsecure.machine.probe.os.geteuid", lambda: 0)
    assert engines.probe_image_building().status is ProbeStatus.OK
    require_tools(npm=False)


def test_packages_have_the_names_of_the_machines_own_package_manager(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clsecure.machine.probe.SYSTEM_PATH", str(tools))
    install(tools, dnf="")
    said = "sudo dnf install shadow-utils mmdebstrap"
    assert install_command("newuidmap", "newgidmap", "mmdebstrap") == said


@pytest.mark.parametrize(
    ("image", "status", "fix"),
    [
        (None, ProbeStatus.INFO, "clsecure images build worker"),
        (StoredImage(age=timedelta(days=2)), ProbeStatus.OK, None),
        # Its lock is what is old: building it again gives the same image.
        (
            StoredImage(age=timedelta(days=100)),
            ProbeStatus.WARNING,
            "update clsecure, then build; in a checkout: ./dev invoke lock-images",
        ),
    ],
)
def test_an_image_that_is_old_or_missing_is_named_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, image: StoredImage | None, status: ProbeStatus, fix: str | None
) -> None:
    monkeypatch.setattr(doctor, "stored_image", lambda _name, _engine: image)
    probe = doctor.probe_worker_image()
    assert (probe.status, probe.fix) == (status, fix)


# ------------------------------------------------------------ docker

VERSION = {
    "Version": "29.4.0",
    "Components": [{"Name": "Engine", "Version": "29.4.0"}, {"Name": "runc", "Version": "1.3.6"}],
}
INFO: dict[str, Any] = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"]}


@contextlib.contextmanager
def listening(path: Path, answers: dict[str, bytes]) -> Iterator[None]:
    """Serve the answers at a socket, as docker's API is."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = answers.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body or b"")

        def address_string(self) -> str:
            return "socket"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def api(version: object = VERSION, info: object = INFO) -> dict[str, bytes]:
    return {"/version": json.dumps(version).encode(), "/info": json.dumps(info).encode()}


def test_docker_is_asked_over_its_socket(tools: Path, tmp_path: Path) -> None:
    with listening(tmp_path / "docker.sock", api()):
        seen = found()
    assert seen["docker"].status is ProbeStatus.OK
    assert seen["docker"].observed == "29.4.0; its runc is 1.3.6"
    engine = seen["container engine"]
    assert engine.status is ProbeStatus.WARNING
    assert engine.observed.startswith("docker alone (--engine docker)")


@pytest.mark.parametrize("option", ["name=rootless", "name=userns"])
def test_a_docker_with_other_uids_is_no_engine_and_podman_is_named(
    tools: Path, tmp_path: Path, option: str
) -> None:
    with listening(tmp_path / "docker.sock", api(info={"SecurityOptions": [option]})):
        seen = found()
    assert seen["docker"].status is ProbeStatus.WARNING
    assert "podman" in (seen["docker"].fix or "")
    assert seen["container engine"].status is ProbeStatus.MISSING


def test_the_runc_of_docker_is_judged_too(tools: Path, tmp_path: Path) -> None:
    old = {**VERSION, "Components": [{"Name": "runc", "Version": "1.1.11"}]}
    with listening(tmp_path / "docker.sock", api(old)):
        probe = found()["docker"]
    assert probe.status is ProbeStatus.WARNING
    assert "CVE-2024-21626" in probe.observed


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"/version": b"[]", "/info": b"{}"},
        {"/version": b"{", "/info": b"{}"},
        {"/version": b" " * ((1 << 20) + 1), "/info": b"{}"},
    ],
)
def test_what_is_no_docker_is_none(tools: Path, tmp_path: Path, answers: dict[str, bytes]) -> None:
    with listening(tmp_path / "docker.sock", answers):
        seen = found()
    assert seen["docker"].status is ProbeStatus.WARNING
    assert "does not answer" in seen["docker"].observed
    assert seen["container engine"].status is ProbeStatus.MISSING


def test_odd_answers_of_docker_are_taken_for_text(tmp_path: Path) -> None:
    odd = api({"Version": ["x" * 999], "Components": "none"}, {"SecurityOptions": 5})
    with listening(tmp_path / "docker.sock", odd):
        facts = docker.ask(tmp_path / "docker.sock")
    assert len(facts.version) <= 64
    assert (facts.components, facts.other_uids) == ({}, False)


def test_a_docker_that_says_nothing_holds_nobody_up(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "_TIMEOUT", 0.2)
    with engines.docker.socket.socket(engines.docker.socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "docker.sock"))
        listener.listen()
        assert "does not answer" in found()["docker"].observed


def test_docker_is_looked_for_where_the_user_has_it(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/other.sock")
    with listening(tmp_path / "other.sock", api()):
        assert found()["docker"].status is ProbeStatus.OK
    monkeypatch.setenv("DOCKER_HOST", "ssh://elsewhere")
    seen = found()
    assert "another machine" in seen["docker"].observed
    assert seen["container engine"].status is ProbeStatus.MISSING


def test_a_docker_that_this_user_may_not_use_is_no_engine(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers.os, "access", lambda *_: False)
    with listening(tmp_path / "docker.sock", api()):
        seen = found()
    assert "you may not use it" in seen["docker"].observed
    assert seen["container engine"].status is ProbeStatus.MISSING

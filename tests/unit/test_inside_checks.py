"""The checks from inside: what breaks each, and that nothing holds which could not be had outside either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clsecure.errors import VerificationError
from clsecure.model import (
    CheckStatus,
    ContainerSpec,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    Phase,
    SandboxSpec,
    Vantage,
    WorkerImage,
)
from clsecure.verify.bait import METADATA, PRIVATE
from clsecure.verify.changes import differences
from clsecure.verify.ears import ABSTRACT, LOOPBACK, NAMED
from clsecure.verify.inside import INSIDE_CHECKS, check_inside, unanswered
from clsecure.verify.tried import Limit, Report, Tried
from tests.support.tried import ACCOUNT, INSIDE, OUTSIDE, OWN, SERVICE, SOCKETS, tried

FULL = replace(tried().spec, network=NetworkPolicy.FULL, listener=False)


def with_status(subject: Tried, status: CheckStatus) -> list[str]:
    return [r.check_id for r in check_inside(subject, subject.spec, Phase.START) if r.status is status]


def failed(subject: Tried) -> list[str]:
    return with_status(subject, CheckStatus.FAIL)


def skipped(subject: Tried) -> list[str]:
    return with_status(subject, CheckStatus.SKIP)


def test_ids_are_unique_and_every_check_names_a_threat() -> None:
    ids = [check.check_id for check in INSIDE_CHECKS]
    assert len(set(ids)) == len(ids)
    assert all(check.threats and check.vantage is Vantage.INSIDE for check in INSIDE_CHECKS)


def test_what_holds_passes() -> None:
    subject = tried()
    assert failed(subject) == []
    assert skipped(subject) == ["limit-files"]
    ids = {check.check_id for check in INSIDE_CHECKS}
    assert {*with_status(subject, CheckStatus.PASS), *skipped(subject), "no-port"} == ids


BREAKS: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("canary-home", {"files": {**INSIDE["files"], "home": None}}, {}),
    ("canary-state", {"files": {**INSIDE["files"], "state": None}}, {}),
    ("canary-temporary", {"files": {**INSIDE["files"], "temporary": None}}, {}),
    ("root-files", {"files": {**INSIDE["files"], "root's home": None}}, {}),
    ("other-homes", {"home": ["claude-worker-x", "u"]}, {}),
    ("system-read-only", {"written": {"/": "EROFS", "/usr": None, "/etc": "EROFS"}}, {}),
    ("inherited-descriptors", {"descriptors": ["7 -> /etc/shadow"]}, {}),
    ("loopback", {}, {"heard_inside": frozenset({LOOPBACK[1]})}),
    *(("own-address", {}, {"heard_inside": frozenset({label})}) for label in OWN),
    ("local-sockets", {}, {"heard_inside": frozenset({ABSTRACT})}),
    ("service-sockets", {"connected": {**INSIDE["connected"], SERVICE: None}}, {}),
    # It takes datagrams; it has callers enough: both were come to.
    ("service-sockets", {"connected": {**INSIDE["connected"], SERVICE: "EPROTOTYPE"}}, {}),
    ("service-sockets", {"connected": {**INSIDE["connected"], SERVICE: "EAGAIN"}}, {}),
    ("no-route", {"routes": {**INSIDE["routes"], "IPv4": None}}, {}),
    ("no-route", {"interfaces": ["lo", "eth0"]}, {}),
    ("ipv6", {"addresses6": ["fd000000000000000000000000000002"]}, {}),
    ("ipv6", {"routes": {**INSIDE["routes"], "IPv6": None}}, {}),
    ("metadata", {"routes": {**INSIDE["routes"], METADATA[0]: None}}, {}),
    ("metadata", {"routes": {**INSIDE["routes"], PRIVATE[0]: None}}, {}),
    ("resolvers", {"resolvers": ["192.0.2.53"]}, {}),
    ("gateway-port", {"listening": [22, 4242]}, {}),
    ("host-processes", {"marker": True}, {}),
    ("root-unreachable", {"root_uid": None}, {}),
    ("root-unreachable", {"raised": ["/usr/bin/su", 0]}, {}),
    ("root-unreachable", {"status": {**INSIDE["status"], "NoNewPrivs": "0"}}, {}),
    ("landlock-refuses", {"reopened": {"read": None, "written": "EACCES"}}, {}),
    ("landlock-refuses", {"reopened": {"read": "EACCES", "written": None}}, {}),
    ("landlock-refuses", {"signalled": {"first process": None}}, {}),
    # None is applied, or an older version, and that is said: where it can be had, that is no excuse.
    ("landlock-refuses", {}, {"landlock": 0}),
    ("landlock-refuses", {}, {"landlock": 5}),
    ("system-calls", {"calls": {**INSIDE["calls"], "mount": "ENOSYS"}}, {}),
    ("system-calls", {"calls": {**INSIDE["calls"], "fsopen": "EPERM"}}, {}),
    ("system-calls", {"calls": {**INSIDE["calls"], "pair of AF_TIPC": "ENOSYS"}}, {}),
    ("system-calls", {"calls": {n: e for n, e in INSIDE["calls"].items() if n != "AF_VSOCK"}}, {}),
    ("user-namespaces", {"user_namespace": None}, {}),
    ("user-namespaces", {"calls": {**INSIDE["calls"], "clone NEWUSER": "ENOSYS"}}, {}),
    ("keyring", {"calls": {**INSIDE["calls"], "keyctl": "ENOSYS"}}, {}),
    ("escape-probes", {"escapes": {"/proc/sys/kernel/core_pattern": None}}, {}),
    ("escape-probes", {"foreign": ["12"]}, {}),
    ("devices", {"devices": ["null", "sda"]}, {}),
    ("terminal-injection", {"calls": {**INSIDE["calls"], "TIOCSTI": "ENOSYS"}}, {}),
    ("limit-processes", {"limits": {**INSIDE["limits"], "NPROC": None}}, {}),
    ("core-dumps", {"limits": {**INSIDE["limits"], "CORE": None}}, {}),
]


@pytest.mark.parametrize(("check", "changes", "options"), BREAKS)
def test_what_the_probe_could_do_fails_exactly_its_check(check, changes, options) -> None:
    assert failed(tried(changes, **options)) == [check]


def test_every_check_is_broken_above_or_below() -> None:
    elsewhere = {"no-port", "limit-files", "inside-answers"}
    assert {check for check, _, _ in BREAKS} | elsewhere == {check.check_id for check in INSIDE_CHECKS}


def test_without_a_gateway_no_port_is_open() -> None:
    spec = replace(tried().spec, listener=False, network=NetworkPolicy.NONE)
    assert failed(tried({"listening": []}, spec=spec, port=None)) == []
    assert failed(tried({"listening": [80]}, spec=spec, port=None)) == ["no-port"]


def test_a_limit_of_open_files_that_is_not_there_fails() -> None:
    limits = {**tried().limits, "open_files": Limit(most=512, value="512", by="rlimit")}
    assert failed(tried(limits=limits)) == ["limit-files"]
    held = {**limits, "open_files": Limit(most=1024, value="1024", by="rlimit")}
    assert skipped(tried(limits=held)) == failed(tried(limits=held)) == []


def test_a_probe_that_gives_no_report_is_a_failed_check() -> None:
    result = unanswered(VerificationError("nothing came", details="words"), Phase.END)
    assert (result.check_id, result.status, result.phase) == ("inside-answers", CheckStatus.FAIL, Phase.END)
    assert "words" in result.observed


@pytest.mark.parametrize(
    ("check", "outside", "options"),
    [
        ("canary-home", {"files": {**OUTSIDE["files"], "home": "EACCES"}}, {}),
        ("root-files", {"files": {**OUTSIDE["files"], "state": "EACCES"}}, {}),
        ("other-homes", {"home": []}, {}),
        # The worker's own home lies there outside as well.
        ("other-homes", {"home": ["claude-worker-x"]}, {}),
        ("system-read-only", {"own": "EROFS"}, {}),
        ("loopback", {}, {"heard_outside": frozenset(SOCKETS) - {*LOOPBACK}}),
        ("own-address", {}, {"heard_outside": frozenset(SOCKETS) - {*OWN}}),
        ("local-sockets", {}, {"heard_outside": frozenset((*LOOPBACK, *OWN))}),
        ("service-sockets", {"connected": {SERVICE: "EACCES"}}, {}),
        ("own-address", {}, {"addresses": ()}),
        ("no-route", {"routes": {"IPv4": "ENETUNREACH"}, "interfaces": ["lo"]}, {}),
        ("no-route", {"routes": {**OUTSIDE["routes"], "IPv4": "ENETUNREACH"}}, {}),
        ("no-route", {"routes": {}}, {}),
        ("no-route", {"interfaces": ["lo"]}, {}),
        ("ipv6", {"addresses6": []}, {}),
        ("ipv6", {"addresses6": ["0" * 31 + "1"]}, {}),
        ("ipv6", {"routes": {**OUTSIDE["routes"], "IPv6": "ENETUNREACH"}}, {}),
        ("ipv6", {"routes": {}}, {}),
        ("metadata", {"routes": {}}, {}),
        ("metadata", {"routes": dict.fromkeys((*METADATA, *PRIVATE), "ENETUNREACH")}, {}),
        ("resolvers", {"resolvers": []}, {}),
        ("gateway-port", {"listening": []}, {}),
        ("host-processes", {"marker": False}, {}),
        ("system-calls", {"calls": INSIDE["calls"]}, {}),
        ("system-calls", {"calls": {}}, {}),
        ("canary-state", {"files": {}}, {}),
        ("root-files", {"files": {}}, {}),
        ("user-namespaces", {"user_namespace": "EPERM", "calls": INSIDE["calls"]}, {}),
        ("keyring", {"calls": INSIDE["calls"]}, {}),
        ("landlock-refuses", {"reopened": {"read": None, "written": "EACCES"}}, {}),
        ("landlock-refuses", {"reopened": {}}, {}),
        ("escape-probes", {"escapes": dict.fromkeys(OUTSIDE["escapes"], "ENOENT")}, {}),
        ("devices", {"devices": ["null"]}, {}),
        ("inherited-descriptors", {"descriptors": []}, {}),
        ("terminal-injection", {"calls": INSIDE["calls"]}, {}),
    ],
)
def test_what_can_not_be_had_outside_either_is_a_skip(check, outside, options) -> None:
    subject = tried(outside=outside, **options)
    assert check in skipped(subject)
    result = next(r for r in check_inside(subject, subject.spec, Phase.START) if r.check_id == check)
    assert "could not be tried" in result.observed


def without(part: str, *labels: str) -> dict[str, object]:
    return {part: {label: error for label, error in INSIDE[part].items() if label not in labels}}


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("canary-home", without("files", "home")),
        ("canary-state", without("files", "state")),
        ("canary-temporary", without("files", "temporary")),
        ("root-files", without("files", "passwords")),
        ("other-homes", {"home": []}),
        ("system-read-only", {"written": {}}),
        ("system-read-only", without("written", "/usr")),
        ("loopback", without("connected", LOOPBACK[0])),
        ("own-address", without("connected", OWN[-1])),
        ("local-sockets", without("connected", NAMED)),
        ("service-sockets", without("connected", SERVICE)),
        ("no-route", without("routes", "IPv4")),
        ("ipv6", without("routes", "IPv6")),
        ("metadata", without("routes", METADATA[0])),
        ("metadata", without("routes", PRIVATE[0])),
        ("system-calls", without("calls", "bpf")),
        ("keyring", without("calls", "keyctl")),
        ("terminal-injection", without("calls", "TIOCSTI")),
        ("escape-probes", without("escapes", "/proc/sys/kernel/core_pattern")),
        ("core-dumps", without("limits", "CORE")),
    ],
)
def test_what_the_probe_does_not_tell_is_not_taken_for_refused(check, changes) -> None:
    assert failed(tried(changes)) == [check]


@pytest.mark.parametrize(
    ("check", "inside", "outside"),
    [
        ("root-files", {"files": {**INSIDE["files"], "passwords": None}}, {"files": {}}),
        ("other-homes", {"home": ["claude-worker-x", "u"]}, {"home": []}),
        ("system-read-only", {"written": {**INSIDE["written"], "/": None}}, {"own": "EROFS"}),
        ("ipv6", {"addresses6": ["fd"]}, {"addresses6": []}),
        ("metadata", {"routes": {**INSIDE["routes"], PRIVATE[1]: None}}, {"routes": {}}),
        ("gateway-port", {"listening": [22, 4242]}, {"listening": []}),
    ],
)
def test_what_is_had_inside_fails_whatever_can_be_had_outside(check, inside, outside) -> None:
    assert failed(tried(inside, outside=outside)) == [check]


def test_what_has_no_control_outside_is_no_part_of_the_evidence() -> None:
    outside = {"routes": {**dict.fromkeys(OUTSIDE["routes"]), METADATA[1]: "ENETUNREACH"}}
    subject = tried(outside=outside)
    (found,) = [r for r in check_inside(subject, subject.spec, Phase.START) if r.check_id == "metadata"]
    assert found.status is CheckStatus.PASS
    assert METADATA[0] in found.observed
    assert METADATA[1] not in found.observed
    assert "nothing is sent" in found.observed


@pytest.mark.parametrize(
    ("inside", "options"),
    [
        ({"landlock": 0}, {"landlock": 0}),
        # No /proc, or a container whose AppArmor refuses as well: it need not be Landlock.
        ({"reopened": dict.fromkeys(("read", "written"), "ENOENT")}, {}),
        ({"confined": "docker-default (enforce)"}, {}),
        ({"confined": "system_u:system_r:container_t:s0:c1,c2"}, {}),
    ],
)
def test_what_something_else_than_landlock_may_refuse_shows_nothing(inside, options) -> None:
    subject = tried(inside, **options)
    assert "landlock-refuses" in skipped(subject)
    assert failed(subject) == []
    still = {**inside, "landlock": 7, "reopened": {"read": "EACCES", "written": None}}
    assert failed(tried(still)) == ["landlock-refuses"]


@pytest.mark.parametrize(
    "label", ["", "unconfined", "crun (unconfined)", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023"]
)
def test_what_no_other_module_confines_is_held_by_landlock(label) -> None:
    assert "landlock-refuses" in with_status(tried({"confined": label}), CheckStatus.PASS)


def test_signals_are_landlocks_business_where_its_version_and_the_mode_make_them_so() -> None:
    signalled = {"signalled": {"first process": None}}
    container = SandboxSpec(mode=IsolationMode.CONTAINER, account=ACCOUNT, listener=True)
    assert failed(tried({**signalled, "landlock": 5}, landlock=5)) == []
    assert failed(tried(signalled, spec=container)) == []
    assert failed(tried({"signalled": {}})) == []


def test_a_file_below_what_the_user_mounted_writable_is_landlocks_to_allow() -> None:
    opened = {"reopened": dict.fromkeys(("read", "written"))}
    mount = Mount(source=Path("/var/x"), target=Path("/x"), read_only=False)
    assert "landlock-refuses" in skipped(tried(opened, spec=replace(tried().spec, mounts=(mount,))))
    shown = replace(mount, read_only=True)
    assert failed(tried(opened, spec=replace(tried().spec, mounts=(shown,)))) == ["landlock-refuses"]


@pytest.mark.parametrize("label", SOCKETS)
def test_the_hosts_ear_decides_whatever_the_probe_says(label) -> None:
    assert len(failed(tried(heard_inside=frozenset({label})))) == 1
    # A connection that the host never heard went to somebody else: to the session's own loopback.
    assert failed(tried({"connected": {**INSIDE["connected"], label: None}})) == []


def test_the_root_of_a_container_is_the_worker_unless_it_has_a_capability() -> None:
    spec = SandboxSpec(mode=IsolationMode.CONTAINER, account=ACCOUNT, listener=True)
    status = {"NoNewPrivs": "1", "Uid": "0 0 0 0", "CapEff": "0" * 16, "CapBnd": "0" * 16}
    own = {"root_uid": None, "raised": ["/usr/bin/su", 0]}
    assert failed(tried({**own, "status": status}, spec=spec)) == []
    for worse in ({"CapBnd": "0" * 15 + "1"}, {"CapEff": "0" * 15 + "1"}, {"NoNewPrivs": "0"}):
        assert failed(tried({**own, "status": {**status, **worse}}, spec=spec)) == ["root-unreachable"]
    # docker's have the worker's own number: there becoming root is what it is anywhere else.
    status["Uid"] = "1 1 1 1"
    assert failed(tried({**own, "status": status}, spec=spec)) == ["root-unreachable"]


def test_gvisor_is_judged_by_what_its_kernel_says() -> None:
    image = WorkerImage(name="worker", image_id="sha256:0")
    container = ContainerSpec(engine=Engine.PODMAN, image=image, runtime="runsc")
    spec = SandboxSpec(mode=IsolationMode.CONTAINER, account=ACCOUNT, container=container, listener=True)
    report = {"status": {"Uid": "0 0 0 0"}, "raised": ["/usr/bin/su", 0], "root_uid": None}
    assert failed(tried(report, spec=spec)) == []
    own = {**report, "devices": ["null", "fuse"], "escapes": {**INSIDE["escapes"], "mknod": None}}
    assert failed(tried(own, spec=spec)) == []
    assert "escape-probes" in skipped(tried(own, spec=spec))
    assert failed(tried({**own, "devices": ["sda"]}, spec=spec)) == ["devices"]
    assert failed(tried({**own, "foreign": ["1"]}, spec=spec)) == ["escape-probes"]
    # As whom a set-uid program ran there was not seen.
    assert "root-unreachable" in skipped(tried({**own, "raised": ["/usr/bin/su", None]}, spec=spec))
    assert failed(tried(own)) == ["root-unreachable", "escape-probes", "devices"]


def test_what_the_user_mounted_is_no_failure() -> None:
    mount = Mount(source=Path("/home/u"), target=Path("/home/u"))
    socket = Mount(source=Path(SERVICE), target=Path(SERVICE))
    spec = replace(tried().spec, mounts=(mount, socket))
    seen = {
        "files": {**INSIDE["files"], "home": None, "state": None},
        "home": ["claude-worker-x", "u"],
        "connected": {**INSIDE["connected"], SERVICE: None},
    }
    subject = tried(seen, spec=spec)
    assert failed(subject) == []
    # What there was to be tried is what was mounted.
    assert {"canary-home", "canary-state", "service-sockets"} <= set(skipped(subject))
    another = {**seen, "connected": {**seen["connected"], "/run/other": None}}
    services = {SERVICE: SERVICE, "/run/other": "/run/other"}
    assert failed(tried(another, spec=spec, services=services)) == ["service-sockets"]


def test_with_a_full_network_the_packet_filter_has_to_answer() -> None:
    open_ = {"routes": dict.fromkeys(INSIDE["routes"]), "interfaces": ["lo", "eth0"], "listening": []}
    refused = {**INSIDE["sent"], METADATA[0]: "EHOSTUNREACH", METADATA[1]: "ENETUNREACH"}
    subject = tried({**open_, "sent": refused}, spec=FULL, port=None)
    assert failed(subject) == []
    assert "metadata" in with_status(subject, CheckStatus.PASS)
    for place in (METADATA[0], PRIVATE[1]):
        for answer in (None, "ECONNREFUSED", "ETIMEDOUT"):
            report = {**open_, "sent": {**refused, place: answer}}
            assert failed(tried(report, spec=FULL, port=None)) == ["metadata"]
    nowhere = {"routes": dict.fromkeys(OUTSIDE["routes"], "ENETUNREACH")}
    offline = tried({**open_, "sent": refused}, spec=FULL, port=None, outside=nowhere)
    assert "metadata" in skipped(offline)
    private = {**open_, "sent": {**refused, PRIVATE[1]: None}}
    assert failed(tried(private, spec=replace(FULL, allow_private=True), port=None)) == []


@pytest.mark.parametrize(
    "part",
    [
        {"files": ["home"]},
        {"files": {"home": 1}},
        {"home": "u"},
        {"home": ["x"] * 600},
        {"home": ["x" * 5000]},
        {"marker": 1},
        {"processes": True},
        {"processes": None},
        {"raised": ["/usr/bin/su"]},
        {"limits": {"CORE": "0"}},
        {"listening": ["22"]},
    ],
)
def test_a_report_of_another_shape_is_none(part) -> None:
    with pytest.raises(VerificationError):
        Report.parse({**INSIDE, **part})
    with pytest.raises(VerificationError):
        Report.parse({key: value for key, value in INSIDE.items() if key not in part})


def report(**changes: object) -> Report:
    return Report.parse({**INSIDE, **changes})


def test_a_fresh_sandbox_that_shows_the_same_is_unchanged() -> None:
    """Port numbers, numbers of processes, and bait that only one of the two had are no difference."""
    again = report(listening=[5151], processes=9, files={**INSIDE["files"], "/dev/shm": "ENOENT"})
    result = differences(tried(), again, port=5151)
    assert (result.check_id, result.status, result.phase) == ("inside-unchanged", CheckStatus.PASS, Phase.END)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {**INSIDE["files"], "passwords": None}},
        {"root": ["etc", "srv"]},
        {"written": {**INSIDE["written"], "/etc": None}},
        {"connected": {**INSIDE["connected"], SERVICE: None}},
        {"routes": {**INSIDE["routes"], "IPv4": None}},
        {"interfaces": ["lo", "tun0"]},
        {"listening": [22, 5151]},
        {"status": {**INSIDE["status"], "CapBnd": "1"}},
        {"calls": {**INSIDE["calls"], "bpf": "ENOSYS"}},
        {"reopened": {"read": "EACCES", "written": None}},
        {"landlock": 0},
        {"escapes": {**INSIDE["escapes"], "/dev/mem": None}},
        {"devices": ["null", "pts", "sda"]},
        {"limits": {**INSIDE["limits"], "CORE": None}},
        {"descriptors": ["5 -> /x"]},
        {"user_namespace": None},
    ],
)
def test_what_differs_from_the_start_is_a_finding_that_names_it(change) -> None:
    listening = {"listening": [5151]} if "listening" not in change else {}
    result = differences(tried(), report(**{**change, **listening}), port=5151)
    assert result.status is CheckStatus.FAIL
    assert next(iter(change)) in result.observed


@pytest.mark.parametrize(
    ("then", "now"),
    [
        # A module was loaded meanwhile: the kernel makes its device in every namespace.
        ({}, {"interfaces": ["lo", "tunl0", "sit0"]}),
        # With a full network: another Wi-Fi, and what is refused is refused otherwise.
        (
            {"interfaces": ["lo", "tap0"], "connected": {**INSIDE["connected"], SERVICE: "ECONNREFUSED"}},
            {"interfaces": ["lo", "tap0"], "connected": {**INSIDE["connected"], SERVICE: "EHOSTUNREACH"}},
        ),
        ({}, {"limits": {**INSIDE["limits"], "NPROC": 77}}),
    ],
    ids=["fallback devices", "another network", "limit of processes"],
)
def test_what_the_machine_changes_by_itself_is_no_difference(then, now) -> None:
    result = differences(tried(then), report(listening=[5151], **now), port=5151)
    assert result.status is CheckStatus.PASS, result.observed


def test_devices_that_the_kernel_makes_everywhere_are_no_way_out() -> None:
    subject = tried({"interfaces": ["lo", "tunl0", "ip6tnl0"]})
    (found,) = [r for r in check_inside(subject, subject.spec, Phase.START) if r.check_id == "no-route"]
    assert found.status is CheckStatus.PASS

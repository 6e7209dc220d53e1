"""What the root helper does on machines that are not this one: systemd's scopes, settings of the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clsecure.privileged import helper

NAME = "claude-worker-sample-0a1b2c"


def test_on_systemd_a_transient_scope_with_delegation_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape is that of StartTransientUnit(s name, s mode, a(sv) properties, a(sa(sv)) aux)."""
    asked: list[tuple[str, ...]] = []
    real = os.path.isdir
    # There is no systemd on the machine that tests this; what would be run is looked at instead.
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or real(path))
    monkeypatch.setattr(helper, "tool", lambda *words, **_: asked.append(words))
    helper.cgroup_enter({"name": NAME, "uid": 1}, 4711)
    (words,) = (list(each) for each in asked)
    assert words[:3] == ["/usr/bin/busctl", "--quiet", "call"]
    call = words[words.index("StartTransientUnit") :]
    assert call[1] == "ssa(sv)a(sa(sv))"
    assert call[2].endswith(".scope")
    assert NAME in call[2]
    assert call[3] == "fail"
    count, rest = int(call[4]), call[5:]
    properties = {}
    for _ in range(count):
        name, kind, *rest = rest
        if kind == "au":
            number, *rest = rest
            properties[name] = rest[: int(number)]
            rest = rest[int(number) :]
        else:
            properties[name], *rest = rest
    assert properties["PIDs"] == ["4711"]
    assert properties["Delegate"] == "true"
    assert rest == ["0"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"home_base": "/tmp/homes"}, "home_base"),
        ({"home_base": "/var/homes"}, "home_base"),
        ({"home_base": "homes"}, "home_base"),
        ({"home_base": ""}, "home_base"),
        ({"home_base": "/home/../etc"}, "home_base"),
        ({"home_base": 7}, "home_base"),
        ({"uid_first": "many"}, "uid_first"),
        ({"shell": "/bin/sh"}, "shell"),
    ],
)
def test_a_setting_of_the_machine_that_can_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], complaint: str
) -> None:
    file = tmp_path / "helper.json"
    file.write_text(json.dumps(settings))
    monkeypatch.setattr(helper, "CONFIG", str(file))
    with pytest.raises(helper.Refused, match=complaint):
        helper.configuration()


@pytest.mark.root
def test_settings_of_the_machine_count_only_from_a_file_of_roots_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "helper.json"
    file.write_text(json.dumps({"uid_first": 1_950_000_000}))
    monkeypatch.setattr(helper, "CONFIG", str(file))
    assert helper.configuration()["uid_first"] == 1_950_000_000
    os.chown(file, 65534, 65534)
    with pytest.raises(helper.Refused, match="root's own"):
        helper.configuration()

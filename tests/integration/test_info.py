"""``clsecure info`` for a plain account: in a repository and outside, in both modes."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.support import schema

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

both_modes = pytest.mark.parametrize("mode", ["user", "namespace"])


@both_modes
def test_a_sandbox_is_tried_and_nothing_of_it_is_left(person, mode) -> None:
    accounts = person.worker_accounts()
    begun = time.monotonic()
    done = person.clsecure("info", "--mode", mode, "--output", "json", cwd=person.home).check()
    assert time.monotonic() - begun < 20
    document = done.json()
    schema.check(document, schema.load("info"))
    assert (document["mode"], document["network"], document["holds"]) == (mode, "api", True)
    held = {row["property"] for row in document["rows"] if row["status"] == "held"}
    assert {"your home is out of reach", "no packet leaves by itself", "root is not to be had"} <= held
    outside = next(r for r in document["rows"] if r["property"] == "your home is out of reach")["evidence"]
    assert "outside it can be read" in outside, "what is out of reach is really there"
    assert person.worker_accounts() == accounts


def test_people_read_a_table_with_the_residuals_below(person) -> None:
    repository = person.repository("info-table")
    text = person.clsecure("--info", "--no-network", cwd=repository).check().text
    assert text.startswith("mode namespace, network none: a sandbox was built")
    assert "there is no port to connect to" in text
    numbers = set(re.findall(r"\b(R[0-9]+)\b", text))
    assert {"R1", "R10", "R29"} <= numbers


def test_what_the_user_mounted_is_said_to_be_open(person) -> None:
    config = person.home / ".config" / "clsecure" / "config"
    person.run(["mkdir", "-p", str(config.parent)]).check()
    person.run(["mkdir", "-p", str(person.home / "shown")]).check()
    person.write(config, f"mounts = {person.home}/shown\n".encode())
    try:
        document = person.clsecure("info", "--output", "json").check().json()
    finally:
        config.unlink()
    row = next(row for row in document["rows"] if row["property"] == "your home is out of reach")
    assert row["status"] == "not enforced here"
    assert f"you have mounted {person.home}/shown" in row["evidence"]
    assert "R13" in row["residuals"]
    assert document["holds"]


def test_two_at_once_are_told_apart(person) -> None:
    import subprocess

    both = [person.spawn(person.clsecure_argv("info", "--output", "json"), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE) for _ in range(2)]  # fmt: skip
    ends = [(child.communicate(timeout=60)[0], child.returncode) for child in both]
    assert 0 in {status for _, status in ends}
    for out, status in ends:
        assert status == 0 or "another 'clsecure info'" in json.loads(out)["error"]["brief"]

"""Every session ends with a record that can be verified, by a plain person and with other programs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import schema, sweep
from tests.support.person import Person
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

_numbers = itertools.count()
SECRET = "sk-hunter2-CANARY"
WORK = "echo one >one.txt; git add one.txt; git commit -qm 'Add one'; echo two >>README.md"


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"recorded{next(_numbers)}")


def session(person: Person, repo: Path, script: str, *args: str, **options: Any) -> Any:
    argv = ("--agent", "demo", "--output", "json", *args, "--", "sh", "-ec", script)
    document = person.clsecure(*argv, cwd=repo, **options).check().json()
    schema.check(document, schema.load("result"))
    return document


def statement(path: str) -> Any:
    """Read a record as any other program would: by the formats alone."""
    envelope = json.loads(Path(path).read_bytes())
    said = json.loads(base64.b64decode(envelope["payload"], validate=True))
    schema.check(said, schema.load("record"))
    return said


def verify(person: Person, repo: Path, *args: str, expected: int = 0) -> dict[str, str]:
    """Verify a record; return how each thing stands."""
    done = person.clsecure("record", "verify", *args, "--output", "json", cwd=repo)
    assert done.returncode == expected, done
    document = done.json()
    schema.check(document, schema.load("record-verify"))
    assert document["holds"] is (expected == 0)
    return {proof["what"]: proof["standing"] for proof in document["proofs"]}


def state(person: Person) -> Path:
    return person.home / ".local" / "state" / "clsecure"


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_i6_a_session_leaves_a_record_of_what_it_ran_and_brought(person, repo, mode):
    before = snapshot(repo)
    document = session(person, repo, f"{WORK}; : {SECRET}", "--mode", mode, "--on-finish", "import")
    assert_only_new_branch(before, snapshot(repo), document["import"]["branch"])
    record, path = document["record"], Path(document["record"]["path"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    facts = path.stat()
    assert (facts.st_uid, stat.S_IMODE(facts.st_mode)) == (person.uid, 0o600)
    assert path.stem == document["session_id"]
    assert SECRET.encode() not in base64.b64decode(json.loads(path.read_bytes())["payload"])

    said = statement(record["path"])
    [subject] = said["subject"]
    tip = person.git(repo, "rev-parse", document["import"]["branch"])
    assert subject["digest"] == {
        "gitCommit": tip,
        "gitTree": person.git(repo, "rev-parse", f"{tip}^{{tree}}"),
    }
    assert subject["annotations"]["base_commit"] == person.git(repo, "rev-parse", "main")
    assert subject["annotations"]["commits"] == [person.git(repo, "rev-parse", f"{tip}^")]
    predicate = said["predicate"]
    assert (predicate["complete"], predicate["exit_code"]) == (True, 0)
    assert predicate["plan"]["command"]["program"] == "sh"
    assert [d["action"] for d in predicate["decisions"]] == ["import"]
    assert {f["path"]: f["status"] for f in predicate["work"]["units"][0]["files"]} == {
        "README.md": "M", "one.txt": "A",
    }  # fmt: skip
    assert predicate["host"]["kernel"] == f"Linux {os.uname().release}"
    assert bool(predicate["host"]["programs"].get("firejail")) is (mode == "namespace")
    events = (state(person) / "sessions" / predicate["session"]["place"] / "events.jsonl").read_bytes()
    bound = events.splitlines()[predicate["event_log"]["lines"] - 1]
    assert hashlib.sha256(bound).hexdigest() == predicate["event_log"]["sha256"]
    assert predicate["verification"]["failed"] == 0
    assert {c["status"] for c in predicate["verification"]["checks"]} >= {"pass"}
    assert all(c["property"] for c in predicate["verification"]["checks"])
    assert {"agent_started", "agent_ended", "branch_made"} <= {e["event"] for e in predicate["timeline"]}

    holds = {"form": "holds", "signature": "holds", "repository": "holds", "event_log": "holds"}
    assert verify(person, repo, document["session_id"]) == holds
    for revision in (document["import"]["branch"], tip, f"{tip}^"):
        assert verify(person, repo, "--commit", revision) == {**holds, "commit": "holds"}
    unknown = person.clsecure("record", "verify", "--commit", "main", cwd=repo)
    assert unknown.returncode == 125
    assert "no record names the commit" in unknown.errors


@pytest.mark.parametrize("mode", ["user", "namespace"])
def test_i6_the_record_has_the_hash_of_the_program_and_nothing_inside_can_change_it(
    person, repo, mode, claude_binary
):
    directory = person.home / ".local/bin"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    script = (
        'program=$(readlink -f "$(command -v claude)"); sha256sum "$program" >hash; '
        'if echo x 2>/dev/null >>"$program" || rm -f "$program" 2>/dev/null || [ -w "$program" ]; '
        "then echo changed >>hash; fi"
    )
    options = ("--mode", mode, "--no-network", "--output", "json", "--on-finish", "import")
    env = {"PATH": f"{directory}:/usr/bin:/bin"}
    document = person.clsecure(*options, "--", "sh", "-c", script, cwd=repo, env=env).check().json()
    [line] = person.git(repo, "show", f"{document['import']['tip']}:hash").splitlines()
    program = statement(document["record"]["path"])["predicate"]["sandbox"]["program"]
    assert program["name"] == "claude"
    assert program["sha256"] == line.split()[0] == hashlib.sha256(claude_binary.read_bytes()).hexdigest()


def test_a_record_outlives_its_session_and_tells_when_the_branch_is_gone(person, repo):
    document = session(person, repo, WORK, "--on-finish", "import")
    name = statement(document["record"]["path"])["predicate"]["session"]["place"]
    person.clsecure("cleanup", name, "--yes", cwd=repo).check()
    assert verify(person, repo, repo.name)["event_log"] == "absent"
    shown = person.clsecure("record", "show", repo.name, cwd=repo).check().text
    assert "No check failed." in shown
    told = person.clsecure("record", "show", repo.name, "--output", "json", cwd=repo).check().json()
    assert told["statement"] == statement(document["record"]["path"])
    (state(person) / "records" / "index.sqlite").unlink()
    assert verify(person, repo, "--commit", document["import"]["branch"])["commit"] == "holds"
    person.git(repo, "branch", "-qD", document["import"]["branch"])
    person.git(repo, "reflog", "expire", "--expire=now", "--all")
    person.git(repo, "gc", "-q", "--prune=now")
    assert verify(person, repo, document["session_id"], expected=123)["repository"] == "broken"


def test_h11_what_was_tampered_with_is_refused(person, repo):
    document = session(person, repo, WORK, "--on-finish", "import")
    path = Path(document["record"]["path"])
    whole = path.read_bytes()
    payload = json.loads(whole)
    said = json.loads(base64.b64decode(payload["payload"]))
    said["predicate"]["exit_code"] = 7
    payload["payload"] = base64.b64encode(
        json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    ).decode()
    for changed in (
        json.dumps(payload, sort_keys=True, separators=(",", ":")).encode() + b"\n",
        whole.replace(b'"keyid"', b'"keyID"'),
        whole[:-1],
        b" " + whole,
        b"",
    ):
        person.write(path, changed, mode=0o600)
        assert "broken" in verify(person, repo, document["session_id"], expected=123).values()
    person.write(path, whole, mode=0o600)
    events = next((state(person) / "sessions").glob(f"{repo.name}-*/events.jsonl"))
    lines = events.read_bytes().splitlines(keepends=True)
    person.write(events, b"".join([*lines[:3], *lines[4:]]), mode=0o600)
    assert verify(person, repo, document["session_id"], expected=123)["event_log"] == "broken"
    told = person.clsecure("record", "verify", document["session_id"], cwd=repo)
    assert "line 4 of" in told.text
    assert "does not hold: event log" in told.errors


def test_work_that_is_kept_and_imported_later_is_in_one_record(person, repo):
    document = session(person, repo, WORK, "--on-finish", "keep")
    said = statement(document["record"]["path"])
    assert said["subject"][0]["digest"] == {
        "sha256": hashlib.sha256(document["session_id"].encode()).hexdigest()
    }
    assert verify(person, repo, document["session_id"])["repository"] == "absent"
    place = said["predicate"]["session"]["place"]
    later = person.clsecure("import", place, "--output", "json", cwd=repo).check().json()
    said = statement(later["record"]["path"])
    assert later["record"]["path"] == document["record"]["path"]
    assert [d["action"] for d in said["predicate"]["decisions"]] == ["keep", "import"]
    assert said["subject"][0]["digest"]["gitCommit"] == later["import"]["tip"]
    assert said["predicate"]["complete"] is True
    assert verify(person, repo, "--commit", later["import"]["branch"])["commit"] == "holds"


def test_a_run_that_was_killed_has_its_record_when_its_work_comes_home(person, repo):
    argv = (
        "--agent",
        "demo",
        "--mode",
        "user",
        "--mount",
        f"{repo.parent}/{repo.name}.shared:/mnt/shared:rw",
    )
    shared = repo.parent / f"{repo.name}.shared"
    person.run(["mkdir", "-m", "0777", str(shared)]).check()
    started = person.spawn(
        person.clsecure_argv(*argv, "--", "sh", "-c", f"{WORK}; touch /mnt/shared/begun; sleep 100"), cwd=repo
    )
    deadline = time.monotonic() + 60
    while not (shared / "begun").exists():
        assert time.monotonic() < deadline, "the agent did not begin"
        assert started.poll() is None
        time.sleep(0.05)
    [place] = (state(person) / "sessions").glob(f"{repo.name}-*")
    while "host" not in json.loads((place / "run.json").read_text()):
        assert time.monotonic() < deadline, "what it runs on is not written down"
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(timeout=30)
    session_id = json.loads((place / "session.json").read_text())["session_id"]
    assert not (state(person) / "records" / f"{session_id}.json").exists()
    deadline = time.monotonic() + 60
    while (done := person.clsecure("import", place.name, "--output", "json", cwd=repo)).returncode != 0:
        assert time.monotonic() < deadline, done  # the helper is still ending what the killed one left
        time.sleep(0.5)
    said = statement(done.json()["record"]["path"])["predicate"]
    assert (said["session"]["id"], said["complete"], said["exit_code"]) == (session_id, False, None)
    assert said["plan"]["command"]["program"] == "sh"
    assert said["sandbox"]["mode"] == "user"
    assert said["host"]["kernel"]
    # What was found before the agent began is known as well as what was made up for.
    checks = {
        (check["check_id"], check["phase"]): check["status"] for check in said["verification"]["checks"]
    }
    assert (checks["seccomp", "start"], checks["seccomp", "end"]) == ("pass", "pass")
    assert checks["inside-unchanged", "end"] == "skip"
    assert verify(person, repo, session_id)["event_log"] == "holds"


def test_the_users_ssh_key_signs_as_well_and_a_note_names_the_record(person, repo):
    key = person.home / "record_key"
    person.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]).check()
    config = person.home / ".config" / "clsecure"
    person.run(["mkdir", "-p", str(config)]).check()
    person.write(config / "config.toml", b'record_ssh_key = "~/record_key"\nrecord_notes = true\n')
    try:
        before = snapshot(repo)
        document = session(person, repo, WORK, "--on-finish", "import")
        assert len(document["record"]["keyids"]) == 2
        after = snapshot(repo)
        note = after["refs"].pop("refs/notes/clsecure")
        assert_only_new_branch(before, after, document["import"]["branch"])
        shown = person.git(repo, "notes", "--ref=clsecure", "show", document["import"]["branch"])
        assert shown.splitlines() == [
            f"clsecure-session: {document['session_id']}",
            f"clsecure-record: sha256:{document['record']['sha256']}",
        ]
        assert person.git(repo, "rev-list", "--count", note) == "1"
        assert verify(person, repo, document["session_id"])["ssh_signature"] == "holds"
        assert verify(person, repo, document["session_id"], "--key", f"{key}.pub")["ssh_signature"] == "holds"
        other = person.home / "other_key"
        person.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)]).check()
        found = verify(person, repo, document["session_id"], "--key", f"{other}.pub", expected=123)
        assert found["ssh_signature"] == "broken"
        person.run(["rm", f"{key}", f"{key}.pub"]).check()
        document = session(person, repo, WORK, "--on-finish", "import", "--fresh")
        assert len(document["record"]["keyids"]) == 1
        assert any("your SSH key did not sign" in warning for warning in document["warnings"])
        assert verify(person, repo, document["session_id"])["signature"] == "holds"
    finally:
        person.run(["rm", "-f", str(config / "config.toml")]).check()


def test_openssl_verifies_a_record_as_the_documentation_says(person, repo):
    document = session(person, repo, WORK, "--on-finish", "import")
    manual = (Path(__file__).parents[2] / "docs" / "record.md").read_text()
    script = manual.partition("```\npython3 -c")[2].partition("```")[0]
    place = repo.parent / f"{repo.name}.by-hand"
    person.run(["mkdir", str(place)]).check()
    for name, source in (
        ("record.json", Path(document["record"]["path"])),
        ("record.pub", state(person) / "keys" / "record.pub"),
    ):
        person.write(place / name, source.read_bytes())
    done = person.run(["sh", "-ec", f"python3 -c{script}"], cwd=place)
    assert "Signature Verified Successfully" in done.check().text


def test_a_full_report_of_a_real_session_is_written_once_and_for_its_user_alone(person, repo):
    hostile = (
        "printf x >'<script>alert(1)<'; printf x >\"$(printf '\\033[2J\\342\\200\\256')\"; git add .; "
        "git -c user.name='<img src=x onerror=alert(1)>' commit -qm '</title><svg onload=alert(1)>'; "
    )
    document = session(person, repo, hostile + WORK, "--on-finish", "import")
    page = repo.parent / f"{repo.name}.html"
    for _ in range(2):  # an earlier report is replaced
        person.clsecure("report", document["session_id"], "--html", str(page), cwd=repo).check()
    assert (page.stat().st_uid, stat.S_IMODE(page.stat().st_mode)) == (person.uid, 0o600)
    text = page.read_text()
    assert "one.txt" in text
    assert {"&lt;script&gt;alert(1)&lt;", "&lt;svg onload=alert(1)&gt;", "\\x1b[2J\\u202e"} == {
        words
        for words in ("&lt;script&gt;alert(1)&lt;", "&lt;svg onload=alert(1)&gt;", "\\x1b[2J\\u202e")
        if words in text
    }
    assert not any(tag in text for tag in ("<script", "<svg", "<img"))
    assert not set(text) & set("\x1b\u202e")
    person.write(repo / "precious", b"precious")
    refused = person.clsecure("report", document["session_id"], "--html", str(repo / "precious"), cwd=repo)
    assert refused.returncode == 125
    assert (repo / "precious").read_bytes() == b"precious"
    told = person.clsecure("report", document["session_id"], cwd=repo).check().text
    assert "one.txt" in told
    schema.check(
        person.clsecure("report", document["session_id"], "--output", "json", cwd=repo).check().json(),
        schema.load("report"),
    )

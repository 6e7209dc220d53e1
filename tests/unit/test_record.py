"""A record: one spelling, one signature, one session. What is changed is refused, what is lost made anew."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from clsecure.audit import envelope, ssh
from clsecure.audit.envelope import Sealed
from clsecure.audit.keys import KeyPair, public_pem, read_key
from clsecure.audit.records import Records
from clsecure.errors import ClsecureError, SessionNotFoundError, StateError, ToolError, UsageError
from clsecure.session.proof import Standing, Verdict, examine
from tests.support.cli import ROOT
from tests.support.imports import git, make_repo
from tests.support.records import COMMIT, SESSION_ID, sample

OTHER_ID = "20260102-000000-0123456789ab"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    return place


def keep(
    state: Path,
    text: str = "words",
    session_id: str = SESSION_ID,
    ssh_key: str | None = None,
    **about: str,
) -> Sealed:
    said = sample(text, **about)
    said["predicate"]["session"]["id"] = session_id
    said["predicate"]["ssh_key"] = ssh_key
    sealed = envelope.seal(said, KeyPair(state).signer())
    Records(state).write(session_id, sealed)
    return sealed


def look(state: Path, **options: object) -> Verdict:
    return examine(Records(state), SESSION_ID, state=state, **options)  # type: ignore[arg-type]


def standing(state: Path, **options: object) -> dict[str, Standing]:
    return {proof.what: proof.standing for proof in look(state, **options).proofs}


# ---------------------------------------------------------------- the signature


def test_an_independent_implementation_verifies_it(state: Path) -> None:
    keep(state)
    outer = json.loads((state / "records" / f"{SESSION_ID}.json").read_bytes())
    payload = base64.b64decode(outer["payload"], validate=True)
    kind = outer["payloadType"].encode()
    pae = (
        b"DSSEv1 "
        + str(len(kind)).encode()
        + b" "
        + kind
        + b" "
        + str(len(payload)).encode()
        + b" "
        + payload
    )
    [signature] = outer["signatures"]
    key = load_pem_public_key((state / "keys" / "record.pub").read_bytes())
    key.verify(base64.b64decode(signature["sig"]), pae)  # type: ignore[union-attr,call-arg,arg-type]
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(signature["sig"]), pae + b" ")  # type: ignore[union-attr,call-arg,arg-type]
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", str(state / "keys" / "record.pub"), "-outform", "DER"],
        capture_output=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    assert signature["keyid"] == hashlib.sha256(der).hexdigest()
    assert json.loads(payload)["_type"] == "https://in-toto.io/Statement/v1"


def test_h11_a_change_of_any_byte_is_refused(state: Path) -> None:
    keep(state)
    path = state / "records" / f"{SESSION_ID}.json"
    whole = path.read_bytes()
    key, accepted = KeyPair(state).key(), []
    for at in range(len(whole)):
        for bit in (1, 32):  # 32 is the case of a letter, which hexadecimal and others overlook
            changed = bytearray(whole)
            changed[at] ^= bit
            try:
                envelope.verify(envelope.from_bytes(bytes(changed)), key)
                accepted.append((at, bit))
            except ClsecureError:
                pass
    assert accepted == []
    envelope.verify(envelope.from_bytes(whole), key)


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"\n",
        lambda whole: b" " + whole,
        lambda whole: whole.replace(b'"payload":', b'"x":1,"payload":'),
        lambda whole: whole.replace(b'"signatures":[', b'"signatures":[],"signatures":['),
        lambda whole: whole.replace(b'"payload":"', b'"payload":"\\n'),
        lambda _: b"",
        lambda _: b"[" * 100_000,
        lambda _: b"\xff",
        lambda _: b"null\n",
        lambda _: b'{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[]}\n',
    ],
)
def test_h11_another_spelling_is_refused(state: Path, change: Callable[[bytes], bytes]) -> None:
    keep(state)
    path = state / "records" / f"{SESSION_ID}.json"
    path.write_bytes(change(path.read_bytes()))
    assert standing(state) == {"form": Standing.BROKEN}


def test_a_record_of_another_session_is_refused_in_its_place(state: Path) -> None:
    keep(state)
    keep(state, session_id=OTHER_ID)
    place = state / "records"
    shutil.copy(place / f"{OTHER_ID}.json", place / f"{SESSION_ID}.json")
    verdict = look(state)
    assert not verdict.holds
    assert "another session" in verdict.proofs[0].words


def test_another_key_is_refused_and_the_right_one_can_be_named(state: Path, tmp_path: Path) -> None:
    keep(state)
    public = tmp_path / "theirs.pub"
    public.write_bytes((state / "keys" / "record.pub").read_bytes())
    shutil.rmtree(state / "keys")
    assert standing(state)["signature"] is Standing.BROKEN
    KeyPair(state).signer()
    assert standing(state)["signature"] is Standing.BROKEN
    assert standing(state, key=public)["signature"] is Standing.HOLDS
    # Without a signature that holds nothing else of it is looked into.
    assert set(standing(state)) == {"form", "signature"}


def test_a_signature_that_was_added_is_refused(state: Path, tmp_path: Path) -> None:
    sealed = keep(state)
    elsewhere = KeyPair(tmp_path / "elsewhere").signer()
    sealed.envelope.sign(elsewhere)
    Records(state).write(SESSION_ID, sealed)
    assert not look(state).holds


@pytest.mark.parametrize("lacking", ["session", "event_log", "subject"])
def test_a_signed_statement_that_is_no_record_is_refused(state: Path, lacking: str) -> None:
    said = sample()
    if lacking == "subject":
        said["subject"] = [{"digest": 5}]
    elif lacking == "session":
        said["predicate"]["session"] = {"id": SESSION_ID}
    else:
        del said["predicate"][lacking]
    sealed = envelope.seal(said, KeyPair(state).signer())
    (state / "records").mkdir(mode=0o700)
    Records(state).path(SESSION_ID).write_bytes(envelope.to_bytes(sealed.envelope))
    assert not look(state).holds


# ---------------------------------------------------------------- the key


def test_the_key_is_made_once_and_private(state: Path) -> None:
    first = KeyPair(state).signer().public_key.keyid
    assert KeyPair(state).signer().public_key.keyid == first == KeyPair(state).key().keyid
    assert (state / "keys" / "record.key").stat().st_mode & 0o777 == 0o600
    assert (state / "keys").stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in (state / "keys").iterdir()) == ["record.key", "record.pub"]


def test_of_two_first_sessions_one_key_wins(state: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from clsecure.audit.keys import KeyPair
print(KeyPair(Path({str(state)!r})).signer().public_key.keyid)
"""
    argv = [sys.executable, "-I", "-c", code]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({child.communicate(timeout=60)[0] for child in children}) == 1


@pytest.mark.parametrize(
    "kind", ["readable", "link", "junk", "another kind", "directory", "fifo", "linked place"]
)
def test_h11_a_key_that_is_not_ours_alone_signs_nothing(state: Path, tmp_path: Path, kind: str) -> None:
    KeyPair(state).signer()
    private = state / "keys" / "record.key"
    elsewhere = tmp_path / "elsewhere"
    match kind:
        case "readable":
            private.chmod(0o644)
        case "link":
            private.rename(elsewhere)
            private.symlink_to(elsewhere)
        case "junk":
            private.write_bytes(b"junk")
        case "another kind":
            other = generate_private_key(SECP256R1())
            private.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        case "directory":
            private.unlink()
            private.mkdir()
        case "fifo":
            private.unlink()
            os.mkfifo(private, 0o600)
        case "linked place":
            (state / "keys").rename(elsewhere)
            (state / "keys").symlink_to(elsewhere)
    with pytest.raises(StateError):
        KeyPair(state).signer()


def test_a_key_of_another_kind_is_refused() -> None:
    other = generate_private_key(SECP256R1()).public_key()
    pem = public_pem(other)  # type: ignore[arg-type]
    for data in (pem, b"", b"junk", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(UsageError):
            read_key(data, "x")


# ---------------------------------------------------------------- the index


@pytest.mark.parametrize(
    "harm",
    ["missing", "empty", "junk", "truncated", "other tables", "directory", "link", "lying", "read-only"],
)
def test_the_index_is_made_anew_from_the_records(state: Path, tmp_path: Path, harm: str) -> None:
    keep(state)
    keep(state, session_id=OTHER_ID, commit="99" * 20)
    index = state / "records" / "index.sqlite"
    match harm:
        case "missing":
            index.unlink()
        case "empty":
            index.write_bytes(b"")
        case "junk":
            index.write_bytes(b"junk" * 4000)
        case "truncated":
            index.write_bytes(index.read_bytes()[:5000])
        case "other tables":
            index.unlink()
            with sqlite3.connect(index) as table:
                table.execute("CREATE TABLE commits (word)")
            table.close()
        case "directory":
            index.unlink()
            index.mkdir()
        case "link":
            index.rename(tmp_path / "elsewhere")
            index.symlink_to(tmp_path / "elsewhere")
        case "lying":
            with sqlite3.connect(index) as table:
                table.execute("UPDATE OR REPLACE commits SET session_id = ?", (OTHER_ID,))
                table.execute("UPDATE OR REPLACE names SET session_id = ?", (OTHER_ID,))
            table.close()
        case "read-only":
            index.chmod(0o400)
    records = Records(state)
    if harm in ("directory", "link"):
        # What is no file of ours is not touched; the records are looked through instead.
        assert records.of_commit(COMMIT) == SESSION_ID
        return
    assert records.of_commit(COMMIT) == SESSION_ID
    assert records.of_commit("99" * 20) == OTHER_ID
    assert records.of_name("p-0123456789ab") == OTHER_ID
    if harm != "read-only":
        assert index.stat().st_mode & 0o777 == 0o600


def test_a_commit_that_no_record_names_is_an_error_that_says_so(state: Path) -> None:
    with pytest.raises(SessionNotFoundError, match="no record names the commit 1111"):
        Records(state).of_commit("1" * 40)
    keep(state)
    with pytest.raises(SessionNotFoundError, match="no record names"):
        Records(state).of_commit("1" * 40)
    with pytest.raises(SessionNotFoundError, match="no record of a session 'x'"):
        Records(state).of_name("x")


def test_a_damaged_record_hides_no_other(state: Path) -> None:
    keep(state)
    (state / "records" / f"{OTHER_ID}.json").write_bytes(b"{}")
    (state / "records" / "index.sqlite").unlink()
    assert Records(state).of_commit(COMMIT) == SESSION_ID


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "x", SESSION_ID + "/", SESSION_ID.upper(), "-f"])
def test_h8_only_an_id_names_a_record(state: Path, name: str) -> None:
    with pytest.raises(SessionNotFoundError):
        Records(state).read(name)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "huge"])
def test_h11_a_record_that_is_no_file_of_ours_is_refused(state: Path, tmp_path: Path, kind: str) -> None:
    keep(state)
    path = state / "records" / f"{SESSION_ID}.json"
    match kind:
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "directory":
            path.unlink()
            path.mkdir()
        case "huge":
            os.truncate(path, 1 << 30)
    assert standing(state) == {"form": Standing.BROKEN}


def test_a_record_is_replaced_whole_and_never_through_a_link(state: Path, tmp_path: Path) -> None:
    keep(state)
    path = state / "records" / f"{SESSION_ID}.json"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    keep(state)
    assert not path.is_symlink()
    assert not (tmp_path / "elsewhere").exists()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


# ---------------------------------------------------------------- what it is about


def test_the_commit_must_be_in_the_repository_with_the_recorded_tree(state: Path, tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    commit, tree = git(repo, "rev-parse", "HEAD"), git(repo, "rev-parse", "HEAD^{tree}")
    keep(state, commit=commit, tree=tree, project=str(repo))
    assert standing(state, commit=commit) | {"event_log": Standing.HOLDS} == dict.fromkeys(
        ("form", "signature", "commit", "repository", "event_log"), Standing.HOLDS
    )
    assert standing(state, commit="1" * 40)["commit"] is Standing.BROKEN
    # A replacement that lies about the tree is not believed.
    other = git(repo, "commit-tree", "-m", "x", git(repo, "mktree", data=b""))
    git(repo, "replace", commit, other)
    assert standing(state)["repository"] is Standing.HOLDS
    keep(state, commit=commit, tree="1" * 40, project=str(repo))
    assert "not 1111" in next(p.words for p in look(state).proofs if p.what == "repository")
    keep(state, commit="2" * 40, tree=tree, project=str(repo))
    assert standing(state)["repository"] is Standing.BROKEN
    shutil.rmtree(repo)
    assert standing(state)["repository"] is Standing.BROKEN


def test_the_log_of_events_must_be_the_recorded_one(state: Path) -> None:
    from clsecure.chain import ChainWriter
    from clsecure.session.keeping import look_at_events

    place = state / "sessions" / "p-0123456789ab"
    place.mkdir(parents=True)
    events = place / "events.jsonl"
    writer = ChainWriter(os.open(events, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    for number in range(4):
        writer(b'{"event": "e", "number": %d}\n' % number)
    writer.close()
    report = look_at_events(events)
    assert report is not None
    said = sample()
    said["predicate"]["event_log"] |= {"lines": report.head.lines, "sha256": report.head.sha256}
    Records(state).write(SESSION_ID, envelope.seal(said, KeyPair(state).signer()))
    assert standing(state)["event_log"] is Standing.HOLDS
    whole = events.read_bytes()
    events.write_bytes(whole.replace(b'"number": 2', b'"number": 7'))
    assert "line 4" in next(p.words for p in look(state).proofs if p.what == "event_log")
    events.write_bytes(whole[: whole.rindex(b"{")])
    assert standing(state)["event_log"] is Standing.BROKEN
    events.unlink()
    events.symlink_to("/dev/zero")
    assert standing(state)["event_log"] is Standing.BROKEN
    events.unlink()
    assert standing(state)["event_log"] is Standing.ABSENT


# ---------------------------------------------------------------- the user's SSH key


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    for name, phrase in (("plain", ""), ("locked", "a phrase"), ("other", "")):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(tmp_path / name)]
        subprocess.run(argv, check=True, timeout=30)
    return tmp_path


@pytest.fixture
def agent(keys: Path) -> Iterator[dict[str, str]]:
    """An agent that holds the key with a phrase; its file is gone."""
    socket = keys / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert agent.poll() is None
            os.sched_yield()
        ask = keys / "ask"
        ask.write_text("#!/bin/sh\necho a phrase\n")
        ask.chmod(0o755)
        env = {"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": str(socket), "SSH_ASKPASS": str(ask),
               "SSH_ASKPASS_REQUIRE": "force"}  # fmt: skip
        subprocess.run(["ssh-add", "-q", str(keys / "locked")], env=env, check=True, timeout=30)
        (keys / "locked").unlink()
        yield {"SSH_AUTH_SOCK": str(socket), "OTHER": "x"}
    finally:
        agent.terminate()
        agent.wait(timeout=30)


def test_a_key_in_a_file_or_with_the_agent_signs(keys: Path, agent: dict[str, str]) -> None:
    for key, environ in ((keys / "plain", {}), (keys / "locked.pub", agent)):
        keyid, signature = ssh.sign(b"data", key, environ)
        public = (keys / f"{key.stem}.pub").read_bytes()
        assert keyid == ssh.verify(b"data", signature, public) == ssh.fingerprint(b"data", signature)
        for data, key_of in ((b"other", public), (b"data", (keys / "other.pub").read_bytes())):
            with pytest.raises(ClsecureError):
                ssh.verify(data, signature, key_of)


def test_a_signature_for_another_purpose_is_none(keys: Path) -> None:
    argv = ["ssh-keygen", "-Y", "sign", "-q", "-n", "git", "-f", str(keys / "plain")]
    signature = subprocess.run(argv, input=b"data", capture_output=True, check=True, timeout=30).stdout
    with pytest.raises(ClsecureError):
        ssh.fingerprint(b"data", signature)


def test_nobody_is_asked_for_a_phrase(keys: Path) -> None:
    for key in (keys / "locked", keys / "missing"):
        with pytest.raises(ToolError):
            ssh.sign(b"data", key, {})


def test_a_key_is_named_before_it_signs(keys: Path) -> None:
    for key in (keys / "plain", keys / "plain.pub", keys / "locked"):
        public = key.parent / f"{key.stem}.pub"
        argv = ["ssh-keygen", "-l", "-f", str(public)]
        listed = subprocess.run(argv, capture_output=True, check=True, timeout=30).stdout.decode()
        assert ssh.key_of(key) == listed.split()[1]
    with pytest.raises(ToolError):
        ssh.key_of(keys / "missing")


def test_h11_a_change_of_the_ssh_signature_is_refused(state: Path, keys: Path) -> None:
    sealed = keep(state, ssh_key=ssh.key_of(keys / "plain"))
    keyid, signature = ssh.sign(sealed.envelope.pae(), keys / "plain", {})
    envelope.add_signature(sealed, keyid, signature)
    Records(state).write(SESSION_ID, sealed)
    assert standing(state)["ssh_signature"] is Standing.HOLDS
    assert standing(state, key=keys / "plain.pub")["ssh_signature"] is Standing.HOLDS
    assert standing(state, key=keys / "other.pub")["ssh_signature"] is Standing.BROKEN
    lines = signature.splitlines(keepends=True)
    for at in range(1, len(lines) - 1):
        changed = b"".join([*lines[:at], lines[at].swapcase(), *lines[at + 1 :]])
        envelope.add_signature(sealed, keyid, changed)
        Records(state).write(SESSION_ID, sealed)
        assert standing(state)["ssh_signature"] is Standing.BROKEN, at
    breaks = [at for at, byte in enumerate(signature) if byte == ord("\n")]
    others = [signature[:at] + other + signature[at + 1 :] for at in breaks for other in (b" ", b"\x0b", b"")]
    reserved = base64.b64decode(b"".join(lines[1:-1]))
    empty = reserved.index(struct.pack(">I", 15) + b"clsecure-record") + 4 + 15
    filled = reserved[:empty] + struct.pack(">I", 1) + b"x" + reserved[empty + 4 :]
    others += [signature + b"more", signature + b"\n", b"\n" + signature, signature[:-1]]
    others += [lines[0] + base64.b64encode(filled) + b"\n" + lines[-1], b"", lines[0], lines[0] + lines[-1]]
    for changed in others:
        envelope.add_signature(sealed, keyid, changed)
        Records(state).write(SESSION_ID, sealed)
        assert standing(state)["ssh_signature"] is Standing.BROKEN, changed
    del sealed.envelope.signatures[keyid]
    envelope.add_signature(sealed, "SHA256:" + "A" * 43, signature)
    Records(state).write(SESSION_ID, sealed)
    assert standing(state)["ssh_signature"] is Standing.BROKEN
    del sealed.envelope.signatures["SHA256:" + "A" * 43]
    Records(state).write(SESSION_ID, sealed)
    assert standing(state)["ssh_signature"] is Standing.BROKEN
    assert standing(state, key=keys / "plain.pub")["ssh_signature"] is Standing.BROKEN


def test_h11_the_signature_of_another_ssh_key_is_none_of_the_record(state: Path, keys: Path) -> None:
    for named in (None, ssh.key_of(keys / "plain")):
        sealed = keep(state, ssh_key=named)
        envelope.add_signature(sealed, *ssh.sign(sealed.envelope.pae(), keys / "other", {}))
        Records(state).write(SESSION_ID, sealed)
        assert standing(state)["signature"] is Standing.BROKEN

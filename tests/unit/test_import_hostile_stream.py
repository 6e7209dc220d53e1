"""A stream that was made by an enemy: refused, in bounded time, and the user's repository is as it was."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import struct
import time
import zlib

import pytest

from clsecure.errors import ImportRejectedError
from clsecure.importer.frames import ExportLimits, RecordReader
from tests.support.imports import Session, git, make_repo, tree_files, write
from tests.support.repostate import assert_only_new_branch, snapshot

ZERO = "0" * 40
KINDS = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}


@pytest.fixture
def session(tmp_path):
    return Session.of(tmp_path, make_repo(tmp_path / "repo"))


def object_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).hexdigest()


def make_pack(objects: list[tuple[str, bytes]]) -> bytes:
    """A pack as git would write it, of objects that git would never write."""
    body = b"PACK" + struct.pack(">II", 2, len(objects))
    for kind, data in objects:
        size, first = len(data) >> 4, (KINDS[kind] << 4) | (len(data) & 15)
        while size:
            body += bytes([first | 0x80])
            first, size = size & 0x7F, size >> 7
        body += bytes([first]) + zlib.compress(data, 1)
    return body + hashlib.sha1(body).digest()


def tree_of(*entries: tuple[bytes, bytes, str]) -> bytes:
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(name_id) for mode, name, name_id in entries)


def commit_of(tree: str, parent: str, message: bytes = b"x\n") -> bytes:
    who = b"A <a@example.org> 1700000000 +0000"
    return b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\n%s" % (
        tree.encode(), parent.encode(), who, who, message,
    )  # fmt: skip


def record(kind: str, payload: bytes = b"", **fields: object) -> bytes:
    return json.dumps({"type": kind, "size": len(payload), **fields}).encode() + b"\n" + payload


def unit(tip: str, **more: object) -> bytes:
    fields = {
        "path": "", "tip": tip, "uncommitted": None, "tree": None, "rewritten": False, "unborn": False,
        "absent": False, "other_refs": [], "refused": [], "refused_more": 0, "untracked": 0, "deleted": 0,
        "ignored": 0,
    }  # fmt: skip
    return record("unit", **{**fields, **more})


END = record("end", units=1)


def stream_of(session: Session, objects: list[tuple[str, bytes]], root: bytes, **more: object) -> bytes:
    """A whole stream: the objects, and a commit on the start whose tree is ``root``."""
    commit = commit_of(object_id("tree", root), session.start.top.head)
    pack = make_pack([*objects, ("tree", root), ("commit", commit)])
    return unit(object_id("commit", commit), **more) + record("pack", pack) + END


def refused(session: Session, stream: bytes, limits: ExportLimits | None = None) -> ImportRejectedError:
    before = snapshot(session.repo)
    with pytest.raises(ImportRejectedError) as caught:
        session.admit(stream, limits)
    assert_only_new_branch(before, snapshot(session.repo), None)
    git(session.repo, "fsck", "--strict")
    return caught.value


BLOB = ("blob", b"x")
BLOB_ID = object_id("blob", b"x")


def test_the_packs_of_these_tests_are_otherwise_acceptable(session):
    stream = stream_of(session, [BLOB], tree_of((b"100644", b"fine", BLOB_ID)))
    result = session.bring_home(stream=stream)
    assert result is not None
    assert tree_files(session.repo, result.tip) == {b"fine": (0o100644, b"x")}


@pytest.mark.parametrize(
    "name",
    [b".git", b".GIT", b"..", b".", b"git~1", b".git ", b".git.", b".g\xe2\x80\x8cit",
    b".git::$INDEX_ALLOCATION",
     b"a\\.git", b"x\\.git\\config"],
)  # fmt: skip
def test_names_that_stand_for_git_are_refused(session, name):
    inner = tree_of((b"100644", b"config", BLOB_ID))
    root = tree_of((b"40000", name, object_id("tree", inner)))
    refused(session, stream_of(session, [BLOB, ("tree", inner)], root))


@pytest.mark.parametrize(
    "mode", [b"100664", b"100777", b"0100644", b"060000", b"020000", b"10644", b"140000"]
)
def test_modes_beyond_those_of_git_are_refused(session, mode):
    refused(session, stream_of(session, [BLOB], tree_of((mode, b"name", BLOB_ID))))


def test_the_same_name_twice_and_a_slash_are_refused(session):
    twice = tree_of((b"100644", b"a", BLOB_ID), (b"100644", b"a", BLOB_ID))
    refused(session, stream_of(session, [BLOB], twice))
    refused(session, stream_of(session, [BLOB], tree_of((b"100644", b"a/b", BLOB_ID))))


def test_an_object_that_the_session_was_never_given_cannot_be_named(session):
    # In the user's stash: the id is known to the agent, say, from a log; the content must stay the user's.
    write(session.repo / "secret", b"CANARY")
    secret = git(session.repo, "hash-object", "-w", "secret")
    (session.repo / "secret").unlink()
    refused(session, stream_of(session, [], tree_of((b"100644", b"gift", secret))))
    refused(session, unit(git(session.repo, "commit-tree", "-m", "x", "HEAD^{tree}")) + END)


def test_a_commit_that_is_none_and_a_missing_one_are_refused(session):
    tree = git(session.repo, "rev-parse", "HEAD^{tree}")
    refused(session, unit(tree) + END)
    refused(session, unit("12" * 20) + END)
    refused(session, unit(session.start.top.head, uncommitted="34" * 20) + END)
    refused(session, unit("12" * 32) + END)


def test_the_uncommitted_commit_has_to_follow_head(session):
    root = tree_of((b"100644", b"fine", BLOB_ID))
    first = commit_of(object_id("tree", root), session.start.top.head)
    second = commit_of(object_id("tree", root), session.start.top.head, b"other\n")
    pack = make_pack([BLOB, ("tree", root), ("commit", first), ("commit", second)])
    stream = unit(object_id("commit", first), uncommitted=object_id("commit", second))
    refused(session, stream + record("pack", pack) + END)


def modules(content: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    return [("blob", content)], tree_of((b"100644", b".gitmodules", object_id("blob", content)))


@pytest.mark.parametrize(
    "content",
    [
        b'[submodule "a"]\n\tpath = a\n\turl = ext::sh -c touch% /tmp/x\n',
        b'[submodule "a"]\n\tpath = a\n\turl = https://example.org/a\n\tupdate = !touch x\n',
        b'[submodule "a"]\n\tpath = ../a\n\turl = https://example.org/a\n',
        b'[submodule "a"]\n\tpath = "a\\r"\n\turl = https://example.org/a\n'.replace(b"\\r", b"\r"),
        b'[submodule "../../hooks"]\n\tpath = a\n\turl = https://example.org/a\n',
        b'[submodule "a"]\n\tpath = a\n\turl = -u./payload\n',
        b'[submodule "a"]\n\tpath = -a\n\turl = https://example.org/a\n',
    ],
)
def test_submodules_that_run_or_lead_elsewhere_are_refused(session, content):
    refused(session, stream_of(session, *modules(content)))


def test_an_ordinary_gitmodules_is_not_refused(session):
    content = b'[submodule "a"]\n\tpath = a\n\turl = ../a.git\n\tupdate = rebase\n\tbranch = main\n'
    assert session.admit(stream_of(session, *modules(content))).changed


def test_an_unknown_submodule_is_named_as_not_brought(session):
    root = tree_of((b"160000", b"sub\x1b", "12" * 20))
    admitted = session.admit(stream_of(session, [], root))
    assert admitted.refused == ("sub\\x1b: a submodule that was not cloned in",)
    assert "submodule" in {finding.kind for finding in session.review(admitted).findings}


def test_nested_tree_bombs_end_at_once(session):
    objects, below, mode = [BLOB], BLOB_ID, b"100644"
    for _ in range(30):
        tree = tree_of(*((mode, b"%02d" % i, below) for i in range(10)))
        objects.append(("tree", tree))
        below, mode = object_id("tree", tree), b"40000"
    began = time.monotonic()
    error = refused(session, stream_of(session, objects, tree_of((b"40000", b"bomb", below))))
    assert "more than" in error.brief
    assert time.monotonic() - began < 20


def test_a_bomb_in_a_commit_between_is_found_as_well(session):
    objects, below, mode = [BLOB], BLOB_ID, b"100644"
    for _ in range(30):
        tree = tree_of(*((mode, b"%02d" % i, below) for i in range(10)))
        objects.append(("tree", tree))
        below, mode = object_id("tree", tree), b"40000"
    middle = commit_of(below, session.start.top.head)
    root = tree_of((b"100644", b"fine", BLOB_ID))
    last = commit_of(object_id("tree", root), object_id("commit", middle))
    pack = make_pack([*objects, ("commit", middle), ("tree", root), ("commit", last)])
    refused(session, unit(object_id("commit", last)) + record("pack", pack) + END)


def test_paths_that_no_checkout_can_write_are_refused(session):
    objects, below, mode = [BLOB], BLOB_ID, b"100644"
    for _ in range(30):
        tree = tree_of((mode, b"n" * 200, below))
        objects.append(("tree", tree))
        below, mode = object_id("tree", tree), b"40000"
    refused(session, stream_of(session, objects, tree_of((b"40000", b"deep", below))))


def test_a_message_of_a_hundred_megabytes_is_refused(session):
    root = tree_of((b"100644", b"fine", BLOB_ID))
    commit = commit_of(object_id("tree", root), session.start.top.head, b"m" * (100 << 20))
    pack = make_pack([BLOB, ("tree", root), ("commit", commit)])
    error = refused(session, unit(object_id("commit", commit)) + record("pack", pack) + END)
    assert error.brief == "a commit of the agent's work is too large"


def test_gibibytes_of_zeros_are_refused_in_bounded_memory(session):
    zeros = b"\0" * (64 << 20)
    small = ExportLimits(max_blob_bytes=32 << 20, memory=512 << 20)
    root = tree_of((b"100644", b"zeros", object_id("blob", zeros)))
    error = refused(session, stream_of(session, [("blob", zeros)], root), small)
    assert error.brief == "a blob of the agent's work is too large"


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\n",
        b"[]\n",
        b"null\n",
        b"{" * 60000 + b"\n",
        b"[" * 60000 + b"\n",
        b"x" * 70000,
        b'{"type":"end","size":0,"units":' + b"9" * 5000 + b"}\n",
        b'{"type":"end","size":0,"units":0}\n',
        b'{"type":"end","size":0,"units":0,"units":1}\n',
        b'{"type":"end","size":NaN,"units":0}\n',
        b'{"type":"end","size":-1,"units":0}\n',
        b'{"type":"end","size":true,"units":0}\n',
        b'{"type":"end","size":1e3,"units":0}\n',
        b'{"type":"pack","size":3}\nabc',
        b'{"type":"lfs","size":0,"oid":"../../x"}\n',
        b'{"type":"tar","size":0}\n',
        '{"type":"\u00e9nd","size":0,"units":0}\n'.encode(),
        unit("12" * 20),
        unit("HEAD") + END,
        unit("--upload-pack=x") + END,
        unit("12" * 20, path="Li4=") + END,
        unit("12" * 20, path="!") + END,
        unit("12" * 20, refused=[{"path": "", "why": 3}]) + END,
        unit("12" * 20, refused={}) + END,
        unit("12" * 20, other_refs=[{"name": "YQ==", "id": "12"}]) + END,
        unit("12" * 20, untracked="many") + END,
        unit("12" * 20) + unit("12" * 20) + record("end", units=2),
        unit("12" * 20) + record("end", units=7),
        unit("12" * 20) + b'{"type":"pack","size":99999999999999}\n',
        unit("12" * 20) + record("pack", b"PACK") + END,
        unit("12" * 20) + record("pack", b"PACK\0\0\0\2\xff\xff\xff\xff" + b"\0" * 20) + END,
        unit("12" * 20) + record("pack", make_pack([])) + record("pack", make_pack([])) + END,
        unit("12" * 20) + record("lfs", b"other", oid="12" * 32) + END,
    ],
)  # fmt: skip
def test_streams_that_are_not_as_documented_are_refused(session, stream):
    refused(session, stream)


@pytest.mark.parametrize("claim", [-1, True, "1", 1 << 50, 1e3, []])
def test_a_size_of_the_home_that_is_no_count_is_refused(claim):
    reader = RecordReader(io.BytesIO(record("end", units=0, home_size=claim)), ExportLimits())
    with pytest.raises(ImportRejectedError):
        list(reader.records())


@pytest.mark.parametrize("claim", [None, 0, 4096])
def test_the_size_of_the_home_comes_with_the_end(claim):
    reader = RecordReader(io.BytesIO(record("end", units=0, home_size=claim)), ExportLimits())
    assert list(reader.records()) == []
    assert reader.home_size == claim


def test_a_stream_without_end_is_cut_off_by_the_clock(session):
    reader, writer = os.pipe()
    try:
        os.write(writer, unit(session.start.top.head))
        from clsecure.importer import api

        began = time.monotonic()
        with os.fdopen(reader, "rb") as stream, pytest.raises(ImportRejectedError) as caught:
            api.admit(stream, session.start, session.root / "quarantine", limits=ExportLimits(deadline_s=0.3))
        assert "did not end" in (caught.value.details or "")
        assert time.monotonic() - began < 10
    finally:
        os.close(writer)


def test_more_records_than_allowed_are_refused(session):
    lfs = record("lfs", b"", oid=hashlib.sha256(b"").hexdigest())
    stream = unit(session.start.top.head) + lfs * 50 + END
    refused(session, stream, ExportLimits(max_records=20))


def test_what_the_exporter_says_is_printed_escaped(session):
    stream = record("error", message="bad\x1b]0;x\x07\u202e")
    error = refused(session, stream)
    assert error.details == "bad\\x1b]0;x\\x07\\u202e"
    path = base64.b64encode(b"x\x1b\n").decode()
    tree = session.start.top.base_tree
    claims = unit(
        session.start.top.head, tree=tree, refused=[{"path": path, "why": "\x9b"}], refused_more=3,
        other_refs=[{"name": path, "id": ZERO}],
    )  # fmt: skip
    admitted = session.admit(claims + END)
    assert admitted.refused == ("x\\x1b\\n: \\x9b", "3 more")
    assert admitted.top.other_refs == ("x\\x1b\\n",)


def test_an_lfs_object_that_nothing_names_does_not_reach_the_user(session):
    root = tree_of((b"100644", b"fine", BLOB_ID))
    stream = stream_of(session, [BLOB], root).removesuffix(END)
    filler = b"filler" * 1000
    stream += record("lfs", filler, oid=hashlib.sha256(filler).hexdigest()) + END
    assert session.bring_home(stream=stream) is not None
    assert not (session.repo / ".git" / "lfs").exists()


def test_objects_that_the_branch_does_not_need_do_not_reach_the_user(session):
    stray = ("blob", b"stowaway")
    result = session.bring_home(
        stream=stream_of(session, [BLOB, stray], tree_of((b"100644", b"fine", BLOB_ID)))
    )
    assert result is not None
    there = git(session.repo, "cat-file", "--batch-check", data=object_id(*stray).encode() + b"\n")
    assert there.endswith("missing")


def test_the_users_own_old_defects_are_no_reason_to_refuse(tmp_path):
    repo = make_repo(tmp_path / "repo")
    blob = git(repo, "hash-object", "-w", "a.txt")
    old = tree_of((b"100664", b"a.txt", blob))
    bad = git(repo, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", data=old)
    first = git(repo, "commit-tree", "-m", "old defect", bad)
    second = git(repo, "commit-tree", "-m", "now", "-p", first, "HEAD^{tree}")
    git(repo, "update-ref", "HEAD", second)
    session = Session.of(tmp_path, repo)
    # The agent goes back to the tree with the defect: it comes along in the pack.
    revert = commit_of(bad, second)
    pack = make_pack([("tree", old), ("commit", revert)])
    stream = unit(object_id("commit", revert)) + record("pack", pack) + END
    result = session.bring_home(stream=stream)
    assert result is not None
    assert git(repo, "rev-parse", "claude/work^{tree}") == bad

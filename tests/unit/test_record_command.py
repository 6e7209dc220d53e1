"""``clsecure record`` and ``clsecure report`` as processes: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsecure.audit import envelope
from clsecure.audit.keys import KeyPair
from clsecure.audit.records import Records
from tests.support import schema
from tests.support.cli import ROOT, give_away, home_and_repository, plain_user, run_cli
from tests.support.records import SESSION_ID, sample

UNKNOWN = "20200101-000000-0123456789ab"


def git(repo: Path, *words: str) -> str:
    env = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    argv = ["git", "-C", str(repo), *words]
    done = subprocess.run(argv, env=env, capture_output=True, check=True, **plain_user())  # type: ignore[call-overload]
    return str(done.stdout.decode().strip())


class Home:
    """A person with one record, of the one commit of their repository."""

    def __init__(self, place: Path) -> None:
        self.home, self.repo = place / "home", place / "repo"
        self.state = self.home / ".local" / "state" / "clsecure"
        self.state.mkdir(parents=True, mode=0o700)
        self.commit = git(self.repo, "rev-parse", "HEAD")
        said = sample(
            "\x1b[2J\u202e<script>", commit=self.commit, tree=git(self.repo, "rev-parse", "HEAD^{tree}"),
            project=str(self.repo),
        )  # fmt: skip
        sealed = envelope.seal(said, KeyPair(self.state).signer())
        self.path = Records(self.state).write(SESSION_ID, sealed)
        give_away(self.home, *self.home.rglob("*"))

    def run(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        done = run_cli(*args, env={"HOME": str(self.home)}, cwd=self.repo)
        assert b"Traceback" not in done.stderr
        assert b"internal error" not in done.stdout + done.stderr
        assert not set(done.stdout + done.stderr) & {0x1B, 0x9B, 0x07}
        return done

    def document(self, *args: str, expected: int = 0) -> Any:
        done = self.run(*args, "--output", "json")
        assert done.returncode == expected, done
        return json.loads(done.stdout)


@pytest.fixture
def home() -> Iterator[Home]:
    with home_and_repository() as place:
        yield Home(place)


@pytest.mark.parametrize("how", [[SESSION_ID], ["repo"], ["p-0123456789ab"], ["--commit", "HEAD"]])
def test_a_record_that_holds_is_zero(home: Home, how: list[str]) -> None:
    document = home.document("record", "verify", *how)
    schema.check(document, schema.load("record-verify"))
    assert (document["session_id"], document["holds"]) == (SESSION_ID, True)
    done = home.run("record", "verify", *how)
    assert (done.returncode, b"holds" in done.stdout) == (0, True)


def test_one_that_does_not_is_123_and_says_what_is_wrong(home: Home) -> None:
    whole = home.path.read_bytes()
    home.path.write_bytes(whole.replace(b"e", b"f", 1))
    document = home.document("record", "verify", SESSION_ID, expected=123)
    schema.check(document, schema.load("record-verify"))
    assert document["holds"] is False
    done = home.run("record", "verify", SESSION_ID)
    assert done.returncode == 123
    assert b"does not hold" in done.stderr
    for command in (["record", "show", SESSION_ID], ["report", SESSION_ID]):
        assert home.run(*command).returncode == 123
    home.path.write_bytes(whole)
    shutil.rmtree(home.state / "keys")
    done = home.run("report", SESSION_ID)
    assert (done.returncode, b"This record does not hold." in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["record", "show", UNKNOWN], "there is no record of session"),
        (["record", "verify", "nobody"], "there is no record of a session 'nobody'"),
        (["record", "verify", "--commit", "nothing"], "there is no commit 'nothing' here"),
        (["record", "verify", SESSION_ID, "--key", "/nonexistent"], "/nonexistent can't be read"),
        (["record", "verify", SESSION_ID, "--key", "/dev/null"], "holds no public key"),
        (["report", UNKNOWN], "there is no record"),
        (["report", SESSION_ID, "--html", "."], "is there already"),
        (["report", SESSION_ID, "--html", "missing/page"], "can't be written"),
    ],
)
def test_what_can_not_be_answered_is_an_error_of_one_line(home: Home, args: list[str], words: str) -> None:
    done = home.run(*args)
    assert (done.returncode, done.stdout) == (125, b"")
    assert words in done.stderr.decode()
    schema.check(home.document(*args, expected=125), schema.load("error"))


def test_a_commit_that_no_record_names_is_an_error(home: Home) -> None:
    git(home.repo, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "y")
    done = home.run("record", "verify", "--commit", "HEAD")
    assert done.returncode == 125
    assert b"no record names the commit" in done.stderr
    assert home.run("record", "verify", "--commit", "HEAD~1").returncode == 0


def test_a_record_and_its_report_are_shown_escaped(home: Home) -> None:
    for command in (["record", "show", SESSION_ID], ["report", SESSION_ID]):
        done = home.run(*command)
        assert done.returncode == 0
        assert "\\x1b[2J\\u202e<script>" in done.stdout.decode()
    document = home.document("record", "show", SESSION_ID)
    schema.check(document["statement"], schema.load("record"))
    assert [proof["standing"] for proof in document["signatures"]] == ["holds"]
    schema.check(home.document("report", SESSION_ID), schema.load("report"))


def test_a_page_is_written_where_it_was_asked_for(home: Home) -> None:
    document = home.document("report", SESSION_ID, "--html", "page.html")
    assert document["html"] == "page.html"
    page = home.repo / "page.html"
    assert page.stat().st_mode & 0o777 == 0o600
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


def test_a_session_begins_without_what_only_its_end_needs() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import clsecure.session.runner; "
        "heavy = {'cryptography', 'securesystemslib', 'jinja2', 'sqlite3'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(["/usr/bin/env", "-i", sys.executable, "-I", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr

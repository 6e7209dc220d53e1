"""What a user gets: every way into a session, through it and home again, as a plain person runs it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.support import schema, sweep
from tests.support.hostile import Target
from tests.support.person import Outcome, Person
from tests.support.repostate import assert_only_new_branch, snapshot
from tests.support.terminals import answer, at_terminal, ended

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

_numbers = itertools.count()
both_modes = pytest.mark.parametrize("mode", ["user", "namespace"])


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"flow{next(_numbers)}")


def run(person: Person, repo: Path, *args: str, **options: Any) -> Outcome:
    """Run clsecure without a key and without an agent on the PATH: commands only."""
    return person.clsecure("--agent", "demo", *args, cwd=repo, **options)


def session(person: Person, repo: Path, script: str, *args: str, **options: Any) -> Any:
    """Run a shell script as the agent; return the JSON document of the session."""
    done = run(person, repo, "--output", "json", *args, "--", "sh", "-ec", script, **options).check()
    document = done.json()
    schema.check(document, schema.load("result"))
    return document


def rows(person: Person, repo: Path) -> list[dict[str, Any]]:
    """Return what list says of one project."""
    document = person.clsecure("list", "--output", "json").json()
    schema.check(document, schema.load("list"))
    return [row for row in document["sessions"] if row["project"] == str(repo)]


def branches(person: Person, repo: Path) -> list[str]:
    """Return the branches besides the person's own."""
    listed = person.git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines()
    return [name for name in listed if name != "main"]


# ---------------------------------------------------------------- the whole way


@both_modes
def test_the_demo_agents_work_comes_home_and_nothing_else_changes(person, repo, mode):
    person.write(repo / "README.md", b"# Sample, changed by the person\n")
    person.write(repo / "new.txt", b"untracked\n")
    before = snapshot(repo)
    done = run(person, repo, "--mode", mode, "--on-finish", "import", "--output", "json").check()
    document = done.json()
    schema.check(document, schema.load("result"))
    assert b"demo agent: Done." in done.stderr
    assert b"demo agent" not in done.stdout
    branch = document["import"]["branch"]
    assert branch.startswith(f"claude/{repo.name}-2")
    assert_only_new_branch(before, snapshot(repo), branch)
    assert document["import"]["tip"] == person.git(repo, "rev-parse", branch)
    assert (document["exit_code"], document["mode"], document["kept"]) == (0, mode, False)
    assert document["base_commit"] == person.git(repo, "rev-parse", "HEAD")
    assert document["import"]["commits"] == 1
    assert document["import"]["uncommitted_commit"] == document["import"]["tip"]
    assert set(document["phases"]) >= {"provision", "clone_in", "start", "run", "export", "import"}
    changed = person.git(repo, "diff", "--name-only", "main", branch).split()
    assert changed == ["README.md", "demo/hello.sh", "demo/notes.txt", "new.txt"]
    # Against what was cloned in, with the person's own changes.
    assert document["import"]["files_changed"] == 3
    assert "changed by the person" in person.git(repo, "show", f"{branch}:README.md")
    assert person.git(repo, "show", f"{branch}:new.txt") == "untracked"
    (row,) = rows(person, repo)
    assert (row["status"], row["mode"], row["unimported"]) == ("imported", mode, False)
    assert row["worker_user"] == document["worker_user"]
    home = Path("/home", document["worker_user"])
    taken = {i.st_ino: i.st_blocks * 512 for i in (p.lstat() for p in home.rglob("*"))}
    assert row["size"] == sum(taken.values())


@both_modes
@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
def test_the_exit_status_is_the_agents(person, repo, mode, script, status):
    done = run(person, repo, "--mode", mode, "--on-finish", "discard", "--", "sh", "-c", script)
    assert done.returncode == status, done


def test_standard_input_and_output_pass_through_byte_for_byte(person, repo):
    data = os.urandom(1 << 20)
    done = run(person, repo, "--on-finish", "discard", "--", "sh", "-c", "cat; echo words >&2", input=data)
    assert done.check().stdout == data
    assert b"words\n" in done.stderr
    assert b"runs isolated" in done.stderr


def test_a_reader_that_goes_away_ends_the_agent(person, repo):
    line = shlex.join(person.clsecure_argv("--agent", "demo", "--", "yes"))
    done = person.run(["bash", "-c", f"{line} | head -n 1; exit ${{PIPESTATUS[0]}}"], cwd=repo)
    assert (done.stdout, done.returncode) == (b"y\n", 141)


def test_the_time_limit_ends_the_agent_and_keeps_its_work(person, repo):
    script = "echo made >made; trap '' TERM; while :; do sleep 1; done"
    done = run(person, repo, "--time-limit", "3s", "--output", "json", "--", "sh", "-c", script)
    document = done.json()
    schema.check(document, schema.load("result"))
    assert (done.returncode, document["exit_code"], document["kept"]) == (124, 124, True)
    assert any("time limit" in warning for warning in document["warnings"])
    person.clsecure("import", "default", "--branch", "rescued", cwd=repo).check()
    assert person.git(repo, "show", "rescued:made") == "made"


def test_a_shell_instead_of_the_agent(person, repo):
    done = run(person, repo, "--shell", "--on-finish", "discard", input=b'echo "$0 $CLSECURE"; exit 3\n')
    assert (done.text, done.returncode) == ("/bin/bash 1\n", 3)


def test_no_network_is_none_even_with_a_key(person, repo):
    script = "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '; env | grep ANTHROPIC || :"
    env = {"ANTHROPIC_API_KEY": "sk-canary", "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
    done = person.clsecure("--no-network", "--", "sh", "-c", script, cwd=repo, env=env).check()
    assert done.text == "lo\n"
    assert "network: no network\n" in done.errors


def test_a_command_without_a_key_is_told_that_it_has_no_network(person, repo):
    done = person.clsecure("--on-finish", "discard", "--", "true", cwd=repo).check()
    assert "no key for the model's API was found" in done.errors
    assert "network: no network (there is no key for the model's API)" in done.errors


# ---------------------------------------------------------------- list and cleanup


def test_list_in_all_its_spellings_and_cleanup_by_name(person, repo):
    session(person, repo, "echo work >work", "-s", "waits")
    session(person, repo, ":", "--session", "idle", "--on-finish", "discard")
    for spelling in (["list"], ["--list"], ["-l"]):
        shown = person.clsecure(*spelling).check().text.splitlines()
        assert shown[0].split()[:3] == ["SESSION", "ID", "PROJECT"]
        (line,) = [each.split() for each in shown if f"{repo} " in each and " waits " in each]
        assert {"namespace", "kept", "yes", "KiB"} <= set(line)
    by_name = {row["session"]: row for row in rows(person, repo)}
    assert by_name["waits"]["unimported"] is True
    assert (by_name["idle"]["status"], by_name["idle"]["size"]) == ("done", 0)
    waiting = by_name["waits"]["session_id"]

    refused = person.clsecure("cleanup", waiting, "--output", "json")
    assert refused.returncode == 125
    assert refused.json()["error"]["resolution"] is not None
    assert len(rows(person, repo)) == 2
    removed = person.clsecure("cleanup", by_name["idle"]["session_id"], "--output", "json").check().json()
    assert removed == {"removed": [by_name["idle"]["session_id"]], "skipped": []}
    person.clsecure("--cleanup", waiting, "--yes").check()
    assert rows(person, repo) == []
    names = {account["name"] for account in person.worker_accounts()}
    assert names.isdisjoint(row["worker_user"] for row in by_name.values())
    assert not any(Path("/home", row["worker_user"]).exists() for row in by_name.values())


@pytest.mark.parametrize("spelling", [["cleanup", "--all"], ["--cleanup-all"]])
def test_cleanup_of_all_wants_the_words_and_a_second_yes_for_work(person, repo, spelling):
    sweep.remove_workers(person.uid)
    session(person, repo, "echo work >work", "-s", "waits")
    session(person, repo, ":", "-s", "idle", "--on-finish", "discard")
    assert person.clsecure(*spelling).returncode == 125
    with at_terminal(person, person.clsecure_argv(*spelling), cwd=repo) as child:
        answer(child, "DELETE ALL", "yes", then=pexpect.EOF)
        assert ended(child) == 125
    assert len(rows(person, repo)) == 2
    with at_terminal(person, person.clsecure_argv(*spelling), cwd=repo) as child:
        answer(child, "DELETE ALL", "DELETE ALL", then="holds work that is in no")
        answer(child, "branch", "", then=pexpect.EOF)
        assert ended(child) == 0
    assert [row["session"] for row in rows(person, repo)] == ["waits"]
    person.clsecure(*spelling, "--yes").check()
    assert rows(person, repo) == []
    assert person.worker_accounts() == []


def test_cleanup_lets_pick_on_a_terminal(person, repo):
    session(person, repo, ":", "-s", "one")
    session(person, repo, ":", "-s", "two")
    with at_terminal(person, person.clsecure_argv("cleanup"), cwd=repo) as child:
        child.expect(r"(\d+)  (\S+)  \S*" + repo.name)
        number = child.match[1].decode()
        answer(child, "Which sessions", number, then=pexpect.EOF)
        assert ended(child) == 0
    assert len(rows(person, repo)) == 1


def test_a_running_session_is_never_removed_nor_started_twice(person, repo):
    target = Target(person=person, mode="namespace", repository=repo)
    with target.live("echo ready; read _ || :") as agent:
        agent.wait_for("ready")
        (row,) = rows(person, repo)
        assert row["status"] == "running"
        again = run(person, repo, "--", "true")
        assert again.returncode == 125
        assert "--session NAME" in again.errors
        left = person.clsecure("cleanup", "--all", "--yes", "--output", "json").check().json()
        assert row["session_id"] in left["skipped"]
        for verb in ("import", "diff"):
            assert person.clsecure(verb, row["session_id"], cwd=repo).returncode == 125
        # Another environment of the same project goes its own way meanwhile.
        other = session(person, repo, ":", "--session", "other")
        assert other["worker_user"] != row["worker_user"]
    assert agent.process.returncode == 0


# ---------------------------------------------------------------- the end of a session


def test_each_answer_to_on_finish(person, repo):
    made = {}
    for what in ("import", "keep", "discard", "ask"):
        made[what] = session(person, repo, f"echo {what} >file", "--session", what, "--on-finish", what)
    assert [bool(made[a]["import"]) for a in made] == [True, False, False, False]
    assert [made[a]["kept"] for a in made] == [False, True, False, True]
    by_name = {row["session"]: (row["status"], row["unimported"]) for row in rows(person, repo)}
    assert by_name["keep"] == by_name["ask"] == ("kept", True)
    assert by_name["discard"] == ("done", False)
    assert branches(person, repo) == [made["import"]["import"]["branch"]]
    assert "-import-" in made["import"]["import"]["branch"]


def test_branch_and_message_are_the_persons(person, repo):
    options = ("--on-finish", "import", "--branch", "feature/mine", "--message", "What I wanted\n\nWhy")
    document = session(person, repo, "echo x >x", *options)
    assert document["import"]["branch"] == "feature/mine"
    assert person.git(repo, "log", "-1", "--format=%B", "feature/mine").strip() == "What I wanted\n\nWhy"
    assert person.git(repo, "log", "-1", "--format=%an <%ae>", "feature/mine") == (
        "Test Person <person@localhost>"
    )


def test_a_branch_that_is_taken_keeps_the_work(person, repo):
    person.git(repo, "branch", "taken")
    done = run(person, repo, "--on-finish", "import", "--branch", "taken", "--", "sh", "-c", "echo x >x")
    assert done.returncode == 125
    assert "clsecure import" in done.errors
    (row,) = rows(person, repo)
    assert (row["status"], row["unimported"]) in {("kept", True), ("kept", None)}
    assert person.git(repo, "rev-parse", "taken") == person.git(repo, "rev-parse", "main")
    person.clsecure("import", "default", "--branch", "free", cwd=repo).check()
    assert person.git(repo, "show", "free:x") == "x"


def test_kept_work_is_shown_and_brought_home_later(person, repo):
    kept = session(person, repo, "echo more >>README.md; git rm -q src/run.sh; git commit -qm gone")
    before = snapshot(repo)
    diff = person.clsecure("diff", "default", cwd=repo).check().text
    assert "+more" in diff
    assert "deleted file mode 100755" in diff
    as_json = person.clsecure("diff", kept["worker_user"], "--output", "json").check().json()
    assert "+more" in as_json["diff"]
    assert_only_new_branch(before, snapshot(repo), None)
    options = ("--branch", "later", "--message", "The rest", "--output", "json")
    document = person.clsecure("import", "default", *options, cwd=repo).check().json()
    assert document["import"]["branch"] == "later"
    assert_only_new_branch(before, snapshot(repo), "later")
    assert person.git(repo, "log", "--format=%s", "main..later") == "The rest\ngone"
    (row,) = rows(person, repo)
    assert (row["status"], row["unimported"]) == ("imported", False)


def test_the_questions_at_the_end_are_answered_on_a_terminal(person, repo):
    argv = person.clsecure_argv("--agent", "demo", "--", "sh", "-c", "echo mine >file")
    with at_terminal(person, argv, cwd=repo) as child:
        child.expect(r"A file")
        answer(child, "Your choice", "s", then=r"\+mine")
        answer(child, "Your choice", "d", then="Discard 0 commits, 1 changed file")
        answer(child, "for good", "", then="Your")
        answer(child, "choice", "i", then="Branch")
        answer(child, "claude/", "mine/it", then="Message")
        answer(child, "Uncommitted work", "From the terminal", then="imported as mine/it")
        assert ended(child) == 0
    assert person.git(repo, "log", "-1", "--format=%s", "mine/it") == "From the terminal"
    assert person.git(repo, "show", "mine/it:file") == "mine"


def test_questions_are_asked_while_the_output_goes_into_a_pipe(person, repo):
    """The agent does not swallow what is typed after its end, also when it had the terminal as input."""
    line = shlex.join(person.clsecure_argv("--agent", "demo", "--", "sh", "-c", "echo mine >file; echo out"))
    with at_terminal(person, ["bash", "-c", f"{line} | cat >output"], cwd=repo) as child:
        answer(child, "Your choice", "i", then="Branch")
        answer(child, "claude/", "piped", then="Message")
        answer(child, "Uncommitted work", "", then="imported as piped")
        assert ended(child) == 0
    assert (repo / "output").read_text() == "out\n"


# ---------------------------------------------------------------- starting again


def test_resume_and_fresh(person, repo):
    session(person, repo, "echo first >first")
    unasked = run(person, repo, "--", "true")
    assert unasked.returncode == 125
    assert "--resume" in unasked.errors
    assert "--fresh" in unasked.errors
    lossy = run(person, repo, "--fresh", "--", "true")
    assert lossy.returncode == 125
    assert "clsecure import" in lossy.errors
    resumed = session(person, repo, "cat first; echo second >second", "--resume", "--on-finish", "import")
    branch = resumed["import"]["branch"]
    assert person.git(repo, "diff", "--name-only", f"main..{branch}").split() == ["first", "second"]
    again = session(person, repo, "test -e second; echo third >third", "--resume", "--on-finish", "import")
    assert again["base_commit"] == resumed["base_commit"]
    fresh = session(person, repo, "test ! -e first; echo 4 >fourth", "--fresh", "--on-finish", "import")
    branch = fresh["import"]["branch"]
    assert person.git(repo, "diff", "--name-only", f"main..{branch}") == "fourth"
    # What was imported is at home: nothing is asked and a new start is a new copy.
    session(person, repo, "test ! -e fourth")


def test_resume_is_asked_on_a_terminal(person, repo):
    session(person, repo, "echo first >first")
    argv = person.clsecure_argv("--agent", "demo", "--on-finish", "keep", "--", "ls")
    with at_terminal(person, argv, cwd=repo) as child:
        child.expect("is kept")
        answer(child, r"\(f\)resh", "r", then="first")
        assert ended(child) == 0
    with at_terminal(person, argv, cwd=repo) as child:
        answer(child, r"\(f\)resh", "f", then="Delete it and")
        answer(child, "start fresh", "y", then="README.md")
        assert ended(child) == 0
        assert b"first" not in child.before


def test_resume_needs_something_to_go_on_with(person, repo):
    refused = run(person, repo, "--resume", "--", "true")
    assert refused.returncode == 125
    assert "no kept session" in refused.errors
    assert rows(person, repo) == []


# ---------------------------------------------------------------- what is copied, what is mounted


def test_fifty_commits_or_all_of_them(person, repo):
    script = 'for i in $(seq 60); do git commit -q --allow-empty -m "$i"; done'
    person.run(["sh", "-ec", script], cwd=repo).check()
    count = ["--", "git", "rev-list", "--count", "HEAD"]
    assert run(person, repo, "--on-finish", "discard", *count).check().text == "50\n"
    assert run(person, repo, "--on-finish", "discard", "--full-clone", *count).check().text == "61\n"


@both_modes
def test_mounts_are_read_only_unless_said_otherwise(person, repo, mode):
    tool, cache = person.home / f"tool-{mode}", person.home / f"cache-{mode}"
    person.run(["mkdir", "-p", str(tool / "bin"), str(cache)]).check()
    person.write(tool / "bin" / "mytool", b"#!/bin/sh\necho my tool\n", mode=0o755)
    person.run(["chmod", "777", str(tool), str(cache)]).check()
    script = "mytool; touch /opt/tool/no 2>/dev/null && echo written; echo yes >/opt/cache/yes"
    options = ["--mount", f"{tool}:/opt/tool", "--mount", f"{cache}:/opt/cache:rw", "--mode", mode]
    done = run(person, repo, *options, "--on-finish", "discard", "--", "sh", "-c", script).check()
    assert done.text == "my tool\n"
    assert f"mounted: {tool} at /opt/tool\n" in done.errors
    assert f"mounted: {cache} at /opt/cache, writable\n" in done.errors
    assert (cache / "yes").read_text() == "yes\n"
    assert not (tool / "no").exists()


def test_a_dry_run_shows_the_plan_and_does_nothing(person, repo):
    shown = run(
        person, repo, "--dry-run", "--mode", "user", "--time-limit", "2h", "--", "make", "all"
    ).check()
    assert "make all" in shown.errors
    plan = run(person, repo, "--dry-run", "--session", "x", "--output", "json").check().json()
    assert (plan["session"], plan["mode"], plan["network"]) == ("x", "namespace", "api")
    assert rows(person, repo) == []


def test_ignored_files_stay_out_on_both_ways(person, repo):
    person.write(repo / ".gitignore", b".env\n*.log\n")
    person.write(repo / ".env", b"SECRET=canary\n")
    document = session(person, repo, "test ! -e .env; echo l >a.log; echo k >kept", "--on-finish", "import")
    files = person.git(repo, "ls-tree", "-r", "--name-only", document["import"]["branch"]).split()
    assert "kept" in files
    assert {".env", "a.log"}.isdisjoint(files)
    assert (repo / ".env").read_bytes() == b"SECRET=canary\n"


def test_the_persons_hooks_fire_inside_for_the_agents_commits(person, repo):
    marker = person.home / f"marker-{repo.name}"
    hook = f"#!/bin/sh\necho 'Checked-by: hook' >>\"$1\"\ntouch {marker} $HOME/fired || :\n".encode()
    person.write(repo / ".git" / "hooks" / "commit-msg", hook, mode=0o755)
    script = "git commit -q --allow-empty -m work; test -e ~/fired"
    document = session(person, repo, script, "--on-finish", "import")
    body = person.git(repo, "log", "-1", "--format=%B", document["import"]["branch"])
    assert "Checked-by: hook" in body
    assert not marker.exists()

    everywhere = person.home / "hooks"
    person.run(["mkdir", "-p", str(everywhere)]).check()
    person.write(everywhere / "commit-msg", b"#!/bin/sh\necho 'Checked-by: all' >>\"$1\"\n", mode=0o755)
    with configured(person, "core.hooksPath", str(everywhere)):
        script = "git commit -q --allow-empty -m work"
        document = session(person, repo, script, "--on-finish", "import", "--fresh")
    body = person.git(repo, "log", "-1", "--format=%B", document["import"]["branch"])
    assert "Checked-by: all" in body


@contextlib.contextmanager
def configured(person: Person, key: str, value: str) -> Iterator[None]:
    """Have one more setting in the person's own git configuration."""
    person.run(["git", "config", "--global", key, value]).check()
    try:
        yield
    finally:
        person.run(["git", "config", "--global", "--unset", key]).check()


# ---------------------------------------------------------------- forms of repositories


@pytest.mark.parametrize("form", ["subdirectory", "worktree", "detached"])
def test_it_works_from(person, repo, form):
    here = repo
    match form:
        case "subdirectory":
            here = repo / "src"
        case "worktree":
            here = repo.with_name(f"{repo.name}-linked")
            person.git(repo, "worktree", "add", "-q", "-b", "other", str(here))
        case "detached":
            person.git(repo, "checkout", "-q", "--detach")
    before = snapshot(repo)
    document = session(
        person, here, "git mv README.md READ.md; git commit -qm moved", "--on-finish", "import"
    )
    assert document["project"] == str(here if form == "worktree" else repo)
    branch = document["import"]["branch"]
    assert_only_new_branch(before, snapshot(repo), branch)
    assert person.git(repo, "diff", "--name-status", "main", branch) == "R100\tREADME.md\tREAD.md"


def test_submodules_and_lfs_come_home(person, repo):
    library = person.repository(f"{repo.name}-library")
    person.run(["git", "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "library"],
               cwd=repo).check()  # fmt: skip
    for arguments in (("lfs", "install", "--local"), ("lfs", "track", "*.bin")):
        person.git(repo, *arguments)
    person.write(repo / "old.bin", b"old content\0" * 1000)
    person.git(repo, "add", ".")
    person.git(repo, "commit", "-q", "-m", "A submodule and a large file")
    before, inner_before = snapshot(repo), snapshot(repo / "library")
    script = """
        grep -q 'old content' old.bin
        echo changed >>library/README.md
        git -C library commit -qam 'Inside the submodule'
        git add library && git commit -qm 'Uses it'
        echo not committed >library/more.txt
        head -c 100000 /dev/zero | tr '\\0' n >new.bin
    """
    document = session(person, repo, script, "--on-finish", "import")
    result, branch = document["import"], document["import"]["branch"]
    assert result["refused"] == []
    assert [(unit["path"], unit["branch"], unit["commits"]) for unit in result["submodules"]] == [
        ("library", branch, 1)
    ]
    assert_only_new_branch(before, snapshot(repo), branch)
    assert_only_new_branch(inner_before, snapshot(repo / "library"), branch)
    tip = person.git(repo / "library", "rev-parse", branch)
    assert person.git(repo, "rev-parse", f"{branch}:library") == tip == result["submodules"][0]["tip"]
    assert person.git(repo / "library", "show", f"{branch}:more.txt") == "not committed"
    assert person.git(repo, "show", f"{branch}:new.bin").startswith("version https://git-lfs")
    person.git(repo, "checkout", "-q", branch)
    person.git(repo, "submodule", "update", "-q")
    assert (repo / "new.bin").read_bytes() == b"n" * 100000
    assert (repo / "library" / "README.md").read_text().endswith("changed\n")
    person.git(repo, "lfs", "fsck")


def test_the_record_of_a_session_is_the_persons_alone(person, repo):
    session(person, repo, ":")
    (row,) = rows(person, repo)
    place = person.home / ".local/state/clsecure/sessions" / row["session_id"]
    for path in (place, *(p for p in place.rglob("*") if p.is_file() and "base" not in p.parts)):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    assert {"agent_started", "agent_ended", "session_finished"} <= {event["event"] for event in events}

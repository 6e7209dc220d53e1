"""Bad input and missing pieces: one clear error, status 125, and nothing of a session is left behind."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import schema, sweep
from tests.support.person import Outcome, Person

# One process for all of them: what is left in /home is looked at by name.
pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.xdist_group("refusals")]

_numbers = itertools.count()


@pytest.fixture
def repo(person: Person) -> Path:
    return person.repository(f"refused{next(_numbers)}")


@pytest.fixture(scope="module", autouse=True)
def no_workers_left(person: Person) -> Iterator[None]:
    """Give the machine its accounts back after the module."""
    yield
    sweep.remove_workers(person.uid)


@pytest.fixture(autouse=True)
def nothing_left_behind(person: Person) -> Iterator[None]:
    """Fail when a refusal made an account, a home or a session."""
    before = remains(person)
    yield
    assert remains(person) == before


def remains(person: Person) -> tuple[set[str], set[str], set[str]]:
    """Return accounts, state and homes."""
    accounts = {str(entry["name"]) for entry in person.worker_accounts()}
    places = person.home / ".local/state/clsecure/sessions"
    # Other people of this machine have sessions, too; what the registry still holds is nobody's leftover.
    known = {path.name for path in sweep.REGISTRY.iterdir()} if sweep.REGISTRY.exists() else set()
    homes = {path.name for path in Path("/home").glob("claude-worker-refused*")} - known
    return accounts, {p.name for p in places.iterdir()} if places.exists() else set(), homes


def assert_refused(done: Outcome, *words: str) -> None:
    """Fail unless it is one error, for people, with these words."""
    assert done.returncode == 125, done
    assert done.stdout == b""
    briefs = [line for line in done.errors.splitlines() if line.startswith("clsecure: ")]
    assert len(briefs) == 1, done.errors
    assert "Traceback" not in done.errors
    assert "internal error" not in done.errors
    for word in words:
        assert word in done.errors


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--no-such-flag"], "unknown option"),
        (["--mode", "container", "--image", "none-such", "--", "true"], "none-such"),
        (["--mode", "none"], "mode"),
        (["--session", "../x"], "--session"),
        (["--session=-f"], "--session"),
        (["--session", "x" * 4096], "--session"),
        (["--session", "a\nb"], "--session"),
        (["--branch", "a..b"], "--branch"),
        (["--time-limit", "never"], "--time-limit"),
        (["--on-finish", "push"], "--on-finish"),
        (["--mount", "/no/such/place", "--", "true"], "/no/such/place"),
        (["--mount", "/etc:/etc", "--", "true"], "/etc"),
        (["--agent", "nobody"], "nobody"),
        (["--resume", "--fresh"], "exclude each other"),
        (["--resume", "--", "true"], "no kept session"),
        (["import", "nothing"], "no session"),
        (["diff", "nothing"], "no session"),
        (["cleanup", "nothing"], "no session"),
        (["--", "no-such-program"], "no-such-program"),
        (["--mode", "user", "--", "/etc/passwd"], "Permission denied"),
    ],
)
def test_what_can_not_be_done_is_refused(person, repo, args, words):
    assert_refused(person.clsecure(*args, cwd=repo), words)


def test_a_missing_agent_is_named(person, repo):
    home = person.home / "no-agent-here"
    home.mkdir()
    os.chown(home, person.uid, person.gid)
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    assert_refused(person.clsecure(cwd=repo, env=env), "Claude Code is not installed", "agent install claude")


def test_an_error_is_one_document_as_well(person, repo):
    done = person.clsecure("--output", "json", "--", "no-such-program", cwd=repo)
    schema.check(done.json(), schema.load("error"))
    assert (done.returncode, done.json()["error"]["exit_code"]) == (125, 125)


def test_a_command_that_is_not_there_leaves_a_kept_session_as_it_was(person, repo):
    kept = ("--agent", "demo", "--session", "kept")
    person.clsecure(*kept, "--", "sh", "-c", "echo x >x", cwd=repo).check()
    listed = person.clsecure("list", "--output", "json").json()["sessions"]
    assert_refused(person.clsecure(*kept, "--resume", "--", "no-such-program", cwd=repo), "no-such-program")
    again = person.clsecure("list", "--output", "json").json()["sessions"]
    assert [{**row, "age_s": 0} for row in again] == [{**row, "age_s": 0} for row in listed]
    person.clsecure("import", "kept", "--branch", "home", cwd=repo).check()
    assert person.git(repo, "show", "home:x") == "x"
    person.clsecure("cleanup", "kept").check()


def test_the_agent_without_a_key_is_refused(person, repo, claude_binary):
    directory = person.home / "with-claude"
    person.run(["mkdir", "-p", str(directory)]).check()
    person.run(["ln", "-sf", str(claude_binary), str(directory / "claude")]).check()
    done = person.clsecure(cwd=repo, env={"PATH": f"{directory}:/usr/bin:/bin"})
    assert_refused(done, "no key", "ANTHROPIC_API_KEY")


def test_root_is_refused(person, repo):
    done = subprocess.run(
        person.clsecure_argv("--", "true"),
        cwd=repo,
        env={"PATH": "/usr/bin:/bin", "HOME": "/root"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 125
    assert b"does not run as root" in done.stderr


# ---------------------------------------------------------------- repositories


def test_no_repository(person):
    assert_refused(person.clsecure("--", "true", cwd=person.home), "git")


def test_a_bare_repository(person, repo):
    bare = repo.with_suffix(".git")
    person.run(["git", "clone", "-q", "--bare", str(repo), str(bare)]).check()
    assert_refused(person.clsecure("--", "true", cwd=bare), "bare")


def test_a_repository_without_a_commit(person, repo):
    person.git(repo, "checkout", "-q", "--orphan", "new")
    assert_refused(person.clsecure("--", "true", cwd=repo), "commit")


def test_a_partial_clone_with_missing_objects_is_refused_without_fetching(person, repo):
    person.git(repo, "config", "uploadpack.allowFilter", "true")
    partial = repo.with_name(f"{repo.name}-partial")
    url = f"file://{repo}"
    person.run(["git", "clone", "-q", "--filter=blob:none", "--no-checkout", url, str(partial)]).check()
    person.git(partial, "reset", "-q")
    objects = person.git(partial, "count-objects", "-v")
    assert_refused(person.clsecure("--agent", "demo", "--", "true", cwd=partial), "missing")
    assert person.git(partial, "count-objects", "-v") == objects


# ---------------------------------------------------------------- the machine


def run_after(person: Person, repo: Path, preparation: str, *args: str) -> Outcome:
    """Change the machine by a root's script in a mount namespace of its own, and run clsecure there."""
    drop = ["setpriv", f"--reuid={person.uid}", f"--regid={person.gid}"]
    groups = ",".join(str(group) for group in person.groups)
    argv = [*drop, f"--groups={groups}", "--", *person.clsecure_argv(*args)]
    script = f"set -e\n{preparation}\nexec {shlex.join(argv)}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=repo,
        env=person.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    return Outcome(argv=tuple(argv), returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def without(program: str) -> str:
    """Return a script that takes a program away from /usr/bin."""
    return (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work && "
        "mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=/mnt/upper,workdir=/mnt/work /usr/bin && "
        f"rm /usr/bin/{program} && hash -r"
    )


@pytest.mark.parametrize("program", ["git", "sudo", "firejail"])
def test_a_missing_program_is_named(person, repo, program):
    done = run_after(person, repo, without(program), "--agent", "demo", "--", "true")
    assert_refused(done, program)
    assert "clsecure doctor" in done.errors or "install" in done.errors


PIECES = "/usr/local/lib/clsecure"


@pytest.mark.parametrize(
    ("preparation", "words"),
    [
        (f"mount -t tmpfs tmpfs {PIECES}", "clsecure setup"),
        (f"echo '#' >/tmp/$$ && mount --bind /tmp/$$ {PIECES}/launcher.py && rm /tmp/$$", "clsecure setup"),
        (f"chmod 755 /mnt && mount -t tmpfs tmpfs /mnt && cp -a {PIECES}/. /mnt && chmod 666 /mnt/helper && "
         f"mount --bind /mnt {PIECES}", "clsecure setup"),
        ("mount -t tmpfs tmpfs /etc/sudoers.d", "password"),
    ],
    ids=["no helper", "another version", "a helper that others can change", "no sudoers rule"],
)  # fmt: skip
def test_the_installation_is_judged_before_anything_starts(person, repo, preparation, words):
    assert_refused(run_after(person, repo, preparation, "--agent", "demo", "--", "true"), words)


def test_no_disk_space(person, repo):
    person.write(repo / "large", os.urandom(2 << 20))
    state = person.home / ".local/state/clsecure/sessions"
    person.run(["mkdir", "-p", str(state)]).check()
    small = f"mount -t tmpfs -o size=512k,uid={person.uid},mode=700 tmpfs {state}"
    assert_refused(run_after(person, repo, small, "--agent", "demo", "--", "true"), "space")

"""H: the tool's own privileged code, and what it trusts around it. H10 is in test_h_helper.py."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pwd
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sweep
from tests.support.hostile import Target, canary
from tests.support.leftovers import all_pids
from tests.support.person import CHECKOUT, SYSTEM_PATH
from tests.support.raw_helper import RawHelper
from tests.support.repostate import assert_only_new_branch, snapshot

pytestmark = pytest.mark.root
_QUIET = ("--no-network", "--agent", "demo")
_DEADLINE = 30.0


def kernel_view(top: Path) -> dict[str, tuple[int, ...]]:
    """Return what the kernel has of each file below a directory, times of change included."""
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        info = path.lstat()
        found[str(path)] = (info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_ctime_ns)
    return found


@pytest.fixture
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of root's with files of all modes, that links of the worker's lead to."""
    top = tmp_path_factory.mktemp("trap") / "roots"
    (top / "inner").mkdir(parents=True)
    for name, mode in (("file", 0o644), ("closed", 0o600), ("program", 0o755), ("inner/deep", 0o400)):
        (top / name).write_text("root's own\n")
        (top / name).chmod(mode)
    return top


def test_h1_links_that_the_worker_left_are_not_written_through_on_resume(person, mode, trap):
    """Everything in the worker's home that a resume writes is a link to root's files."""
    target = Target(person=person, mode=mode, repository=person.repository(f"h1-{mode}"))
    to = shlex.quote(str(trap))
    script = f"""
    cd "$HOME"
    for name in .claude .claude.json .config .gitconfig .local .cache .bashrc .profile .clsecure .ssh .npm; do
        rm -rf "$name"; ln -s {to}/file "$name"
    done
    rm -rf .claude .config; ln -s {to} .claude; ln -s {to}/inner .config
    rm -rf "$OLDPWD/.git/hooks"; ln -s {to} "$OLDPWD/.git/hooks"; ln -s {to}/closed "$OLDPWD/out"
    """
    target.attack(script, finish="keep")
    before = kernel_view(trap)
    for how in ("--resume", "--resume", "--fresh"):
        finish = ("--on-finish", "discard" if how == "--fresh" else "keep")
        done = person.clsecure("--mode", mode, *_QUIET, *finish, how, "--", "true", cwd=target.repository)
        # Refused or done, but never through the link.
        assert done.returncode in (0, 125), done
    assert kernel_view(trap) == before


def test_h2_no_permission_changes_along_the_workers_paths(person, mode, trap):
    """Links, closed directories and more names than an argument list holds wait for root's chmod."""
    target = Target(person=person, mode=mode, repository=person.repository(f"h2-{mode}"))
    script = f"""
    cd "$HOME"
    for name in $(seq 50); do ln -s {shlex.quote(str(trap))} "link$name"; done
    mkdir -p closed/deep; ln -s {shlex.quote(str(trap))} closed/deep/link; ln -s ../.. closed/deep/up
    ln -s {shlex.quote(str(trap))}/file closed/file; chmod 000 closed/deep closed
    ln /etc/passwd hard 2>/dev/null
    mkdir -- '-R' '--reference=x' 'a b' "$(printf 'n\\nl')"
    /usr/bin/python3 -c 'import os
for n in range(10_000): os.close(os.open(f"{{n:0>200}}", os.O_CREAT))'
    """
    before = kernel_view(trap)
    system = {path: path.stat().st_mode for path in (Path("/etc/passwd"), Path("/etc"), Path("/home"))}
    target.attack(script, finish="discard")
    home = Path(str(target.account()["home"]))
    assert list(home.iterdir()) == []
    target.attack(script, finish="keep")
    name = target.account()["name"]
    person.clsecure("cleanup", str(name), "--yes", cwd=target.repository).check()
    assert not home.exists()
    with pytest.raises(KeyError):
        pwd.getpwnam(str(name))
    assert kernel_view(trap) == before
    assert {path: path.stat().st_mode for path in system} == system


def locks_held() -> list[Path]:
    """Return the files that processes of this machine hold a flock on."""
    found = []
    # Any process, and any descriptor of it, may be gone by the time that it is looked at.
    for pid in all_pids():
        with contextlib.suppress(OSError):
            for info in Path(f"/proc/{pid}/fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    if "FLOCK" in info.read_text():
                        found.append(Path(f"/proc/{pid}/fd/{info.name}").readlink())
    return found


def test_h3_locks_lie_where_nobody_else_can_hold_them(target):
    """Another user wants to hold or remove the tool's locks first."""
    with target.live("echo ready; read -r _") as agent:
        agent.wait_for("ready")
        name = target.account()["name"]
        held = [p for p in locks_held() if p.name == name or str(target.person.home) in str(p)]
        assert len(held) >= 2, "no locks to attack"
        for path in held:
            for place in (path, *path.parents):
                info = place.stat()
                assert info.st_uid in (0, target.person.uid), place
                assert not info.st_mode & 0o022, place
            taken = subprocess.run(
                ["flock", "-n", str(path), "true"], user=65534, group=65534, extra_groups=[]
            )
            assert taken.returncode != 0
            assert not os.access(path, os.W_OK, effective_ids=False) or os.geteuid() == 0


@pytest.mark.parametrize("where", ["../../outside", "/absolute", ".git/modules/x", "a/../../outside", "-u"])
def test_h5_submodules_of_the_repository_lead_nowhere_else(person, where):
    """.gitmodules names paths, names and addresses that leave the repository or run a command."""
    top = person.repository(f"h5-{hashlib.sha256(where.encode()).hexdigest()[:6]}")
    marker = person.home / f"h5-{top.name}-marker"
    modules = (
        f'[submodule "../../{where}"]\n\tpath = {where}\n\turl = ext::sh -c "touch {marker}"\n'
        f'\tupdate = !touch {marker}\n[submodule "s"]\n\tpath = sub\n\turl = ../{where}\n'
    )
    person.write(top / ".gitmodules", modules.encode())
    head = person.git(top, "rev-parse", "HEAD")
    person.git(top, "add", ".gitmodules")
    person.git(top, "update-index", "--add", "--cacheinfo", f"160000,{head},sub")
    person.git(top, "-c", "protocol.ext.allow=always", "commit", "-qm", "Modules")
    around = {p.name for p in person.home.iterdir()} | {".local"}
    before = snapshot(top)
    done = person.clsecure(*_QUIET, "--on-finish", "import", "--branch", "out", "--", "sh", "-c",
                           "echo work > work.txt", cwd=top)  # fmt: skip
    assert done.returncode in (0, 125), done
    assert {p.name for p in person.home.iterdir()} | {".local"} == around
    assert not marker.exists()
    if done.returncode == 0:
        assert_only_new_branch(before, snapshot(top), "out")


@pytest.mark.parametrize("name", ["config", "config.toml"])
@pytest.mark.parametrize("kind", ["fifo", "huge", "link to a secret", "device", "nul", "directory"])
def test_h6_a_hostile_settings_file_is_bounded_and_never_echoed(person, kind, name):
    """The settings file is a FIFO, 100 MB, a link to a secret, a device, has NUL bytes, is a directory."""
    top = person.home / "h6"
    secret = canary()
    place = person.home / ".config" / "clsecure"
    script = {
        "fifo": f"mkfifo {name}",
        "huge": f"yes 'mode = {secret}' | head -c 100000000 > {name}",
        "link to a secret": f"echo '{secret}' > ../secret; chmod 600 ../secret; ln -s ../secret {name}",
        "device": f"ln -s /dev/zero {name}",
        "nul": f"printf 'mode = user\\0{secret}\\n' > {name}",
        "directory": f"mkdir {name}",
    }[kind]
    person.run(["mkdir", "-p", str(top), str(place)]).check()
    person.run(["/bin/sh", "-c", script], cwd=place).check()
    try:
        for command in (("list",), ("--dry-run",), ("config",), ("--config", "--output", "json")):
            done = person.clsecure(*command, cwd=top, timeout=_DEADLINE)
            assert done.returncode == 125, done
            assert "clsecure:" in done.errors or done.json()["error"]["exit_code"] == 125
            if kind in ("link to a secret", "nul"):
                assert secret not in done.text + done.errors
            assert len(done.errors) < 4000
    finally:
        person.run(["rm", "-rf", str(place)]).check()


@pytest.mark.parametrize(
    "name", ["a b", "$(touch pwned)", "-rf", "é", "x" * 120, "'\"`;&|", "%s%n", "claude-worker-x", "..."]
)
def test_h7_hostile_directory_names_are_names(person, name):
    """The project's directory is called like an option, a command, a format."""
    (person.home / "h7").mkdir(exist_ok=True)
    os.chown(person.home / "h7", person.uid, person.gid)
    top = person.repository(f"h7/{name}")
    done = person.clsecure(*_QUIET, "--mode", "user", "--on-finish", "discard", "--output", "json", "--",
                           "sh", "-c", "pwd; git log --oneline; ls", cwd=top)  # fmt: skip
    assert done.returncode == 0, done
    assert "README.md" in done.errors
    assert "A beginning" in done.errors
    assert done.json()["project"] == str(top)
    assert re.fullmatch(r"claude-worker-[a-z0-9-]{1,18}", done.json()["worker_user"])
    assert not list(person.home.rglob("pwned"))
    person.clsecure("cleanup", done.json()["worker_user"], "--yes", cwd=person.home).check()


def test_h7_projects_whose_names_collide_have_workers_of_their_own(person):
    """Two projects are chosen so that the worker's name, with its cut hash, would be the same."""

    def short(path: str) -> str:
        seed = "\0".join((str(person.uid), path, "default", "0")).encode()
        return hashlib.sha256(seed).hexdigest()[:6]

    seen: dict[str, str] = {}
    for number in itertools.count():
        path = f"/h7/{number}/project"
        other = seen.setdefault(short(path), path)
        if other != path:
            break
    accounts = []
    with RawHelper(person) as first, RawHelper(person) as second:
        for helper, project in ((first, other), (second, path)):
            answer = helper.ask({"verb": "lease", "project": project, "session": "default", "create": True})
            accounts.append(answer["account"])
        assert accounts[0]["name"].endswith(short(path)), "the names do not collide: this attacks nothing"
        assert accounts[0]["name"] != accounts[1]["name"]
        assert accounts[0]["uid"] != accounts[1]["uid"]
        for helper in (first, second):
            assert helper.ask({"verb": "remove"}) == {"done": True}


@pytest.mark.parametrize("name", ["../x", "-f", "a/b", "", ".", "x" * 4096, "a\nb", "a b", "$(id)"])
def test_h8_hostile_session_names_are_refused(person, name):
    """The session is called like a path, an option, a command, and 4 KiB long."""
    top = person.home / "h8"
    top.mkdir(exist_ok=True)
    before = sorted(p.name for p in person.home.rglob("*"))
    done = person.clsecure(*_QUIET, f"--session={name}", "--", "true", cwd=top)
    assert done.returncode == 125, done
    with RawHelper(person) as helper:
        answer = helper.ask({"verb": "lease", "project": "/h8", "session": name, "create": True})
    assert set(answer) == {"error"}
    assert sorted(p.name for p in person.home.rglob("*")) == before


def test_h8_names_that_differ_in_case_are_different_sessions(person):
    """auth is started where Auth is kept."""
    top = person.repository("h8-case")
    script = 'test ! -e seen || echo "not mine"; touch seen'
    workers = set()
    for name in ("Auth", "auth"):
        options = ("--mode", "user", "--session", name, "--on-finish", "keep", "--output", "json")
        done = person.clsecure(*_QUIET, *options, "--", "sh", "-c", script, cwd=top)
        assert done.returncode == 0, done
        assert "not mine" not in done.errors
        workers.add(done.json()["worker_user"])
    assert len(workers) == 2


def test_h9_programs_and_modules_of_the_current_directory_are_never_run(person):
    """The repository holds git, sudo, json.py, sitecustomize.py; PATH and PYTHONPATH lead there."""
    top = person.repository("h9")
    marker = person.home / "h9-marker"
    program = f'#!/bin/sh\necho "$0" >> {marker}\nexit 1\n'.encode()
    module = f'open({str(marker)!r}, "a").write(__file__)\n'.encode()
    for place in (top, top / "bin"):
        person.run(["mkdir", "-p", str(place)]).check()
        for name in ("git", "sudo", "python3", "claude", "sh", "env", "firejail", "stty", "id", "less"):
            person.write(place / name, program, mode=0o755)
        for name in (
            "json",
            "sitecustomize",
            "usercustomize",
            "subprocess",
            "structlog",
            "pydantic",
            "clsecure",
        ):
            person.write(place / f"{name}.py", module)
    env = {"PATH": f":.:bin:./bin:{SYSTEM_PATH}", "PYTHONPATH": ".:bin", "PYTHONSTARTUP": "json.py",
           "GIT_EXEC_PATH": "bin", "PAGER": "./less"}  # fmt: skip
    assert person.run(["sh", "-c", "git"], cwd=top, env={"PATH": "bin"}).returncode != 0
    assert marker.read_text(), "nothing to attack with"
    marker.unlink()
    commands = (
        ("--version",), ("--help",), ("doctor",), ("list",), ("--dry-run", *_QUIET),
        (*_QUIET, "--on-finish", "keep", "--", "/bin/sh", "-c", "echo x > new"),
        ("diff", "default"), ("import", "default"), ("cleanup", "--all", "--yes"),
    )  # fmt: skip
    for start in (person.clsecure_argv(), [str(CHECKOUT / "dev"), "clsecure"]):
        for command in commands if start[0] != str(CHECKOUT / "dev") else (("list",), ("--dry-run", *_QUIET)):
            done = person.run([*start, *command], cwd=top, env=env)
            assert not marker.exists(), (command, marker.read_text(), done)
            assert done.returncode == 0, done


@pytest.mark.parametrize("kind", ["garbage", "fifo", "link", "huge", "elsewhere", "types"])
def test_h11_a_state_that_was_tampered_with_is_refused(person, kind):
    """session.json is garbage, a FIFO, a link, 100 MB, names another workspace, has wrong types."""
    top = person.repository(f"h11-{kind}")
    options = ("--mode", "user", *_QUIET, "--on-finish", "keep")
    person.clsecure(*options, "--", "sh", "-c", "echo x > new", cwd=top).check()
    (place,) = (person.home / ".local/state/clsecure/sessions").glob(f"h11-{kind}-*")
    secret = canary()
    script = {
        "garbage": "echo '{{{' > session.json",
        "fifo": "rm session.json; mkfifo session.json",
        "link": f"echo {secret} > ../../secret; rm session.json; ln -s ../../secret session.json",
        "huge": "yes '[' | head -c 100000000 > session.json",
        "elsewhere": 'sed -i \'s|"workspace": "[^"]*"|"workspace": "/etc"|\' session.json',
        "types": 'sed -i \'s|"workspace": "[^"]*"|"workspace": [1]|\' session.json',
    }[kind]
    person.run(["/bin/sh", "-c", script], cwd=place).check()
    before = snapshot(top)
    for command in (
        ("list",),
        ("diff", place.name),
        ("import", place.name),
        (*options, "--resume", "--", "true"),
    ):
        done = person.clsecure(*command, cwd=top, timeout=_DEADLINE)
        assert secret not in done.text + done.errors
        assert "internal error" not in done.errors, done
        assert done.returncode == (0 if command[0] == "list" else 125), done
    assert snapshot(top) == before
    # It can still be taken away.
    name = next(str(e["name"]) for e in person.worker_accounts() if e["project"] == str(top))
    person.clsecure("cleanup", name, "--yes", cwd=top).check()
    assert not [e for e in person.worker_accounts() if e["project"] == str(top)]


def test_h13_nothing_of_roots_is_replaced_by_an_output(person, mode):
    """The names that an export could write to are links to devices and to root's files."""
    target = Target(person=person, mode=mode, repository=person.repository(f"h13-{mode}"))
    before = {name: Path(name).stat() for name in ("/dev/null", "/dev/zero", "/dev/tty")}
    script = """
    for name in bundle pack export out index; do
        for place in "/tmp/$name" "$HOME/$name" ".git/$name.lock"; do ln -s /dev/null "$place"; done
    done
    rm -rf .git/objects/pack; ln -s /dev .git/objects/pack
    echo work > work.txt
    """
    target.attack(script, "--branch", "h13", finish="import")
    for name, info in before.items():
        now = Path(name).stat()
        assert stat.S_ISCHR(now.st_mode)
        assert (now.st_ino, now.st_rdev, now.st_mode) == (info.st_ino, info.st_rdev, info.st_mode)


@pytest.fixture
def bob() -> Iterator[str]:
    """A person whose account only looks like a worker's."""
    name = f"claude-worker-bob{os.getpid() % 10**5:05d}"
    subprocess.run(["useradd", "--create-home", "--", name], check=True, timeout=60)
    try:
        yield name
    finally:
        subprocess.run(["userdel", "--remove", "--", name], capture_output=True, timeout=60)


def test_h14_a_persons_account_that_looks_like_a_worker_is_left_alone(person, bob):
    """Everything is cleaned up while a person is called claude-worker-bob."""
    home = Path(pwd.getpwnam(bob).pw_dir)
    (home / "work.txt").write_text("mine\n")
    top = person.repository("h14")
    person.clsecure(*_QUIET, "--mode", "user", "--on-finish", "keep", "--", "true", cwd=top).check()
    before, entry = kernel_view(home), pwd.getpwnam(bob)
    listed = person.clsecure("list", "--output", "json", cwd=top).check()
    assert bob not in listed.text
    assert person.clsecure("cleanup", bob, "--yes", cwd=top).returncode == 125
    person.clsecure("cleanup", "--all", "--yes", cwd=top).check()
    assert not [e for e in sweep.registry_entries(person.uid) if e["project"] == str(top)]
    assert kernel_view(home) == before
    assert pwd.getpwnam(bob) == entry


def test_h15_git_is_never_run_by_root(person, mode):
    """Every git of the machine notes who runs it: start, work, resume, import, discard and removal."""
    top = person.repository(f"h15-{mode}")
    place = person.home / f"h15-{mode}-log"
    place.mkdir()
    log, wrapper = place / "log", place / "git"
    log.touch()
    log.chmod(0o666)
    wrapper.write_text(f'#!/bin/sh\nid -u >> {log} 2>/dev/null\nexec /usr/lib/git-core/git "$@"\n')
    wrapper.chmod(0o755)
    # A mount namespace of its own: nobody else on this machine meets this git.
    frame = f'mount --bind {wrapper} /usr/bin/git && exec "$@"'
    become = ["setpriv", f"--reuid={person.uid}", f"--regid={person.gid}",
              f"--groups={','.join(map(str, person.groups))}", "--"]  # fmt: skip

    def run(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", frame, "sh", *argv],
            cwd=top, env=person.environment(), capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip

    run("git", "--version")
    assert log.read_text().split() == ["0"], "the wrapper sees nothing"
    log.write_text("")
    start = (*person.clsecure_argv("--mode", mode, *_QUIET, "--on-finish"),)
    for command in (
        (*start, "keep", "--", "sh", "-c", "echo x > new"),
        (*start, "import", "--resume", "--", "sh", "-c", "echo y > newer"),
        (*start, "discard", "--fresh", "--", "true"),
        (*person.clsecure_argv("cleanup", "--all", "--yes"),),
    ):
        done = run(*become, *command)
        assert done.returncode == 0, done
    ran = log.read_text().split()
    assert str(person.uid) in ran, "the tool's own git was not seen"
    assert "0" not in ran

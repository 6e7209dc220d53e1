"""E2 to E6: what a session leaves on the machine when it ends, and when its worker is removed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sweep
from tests.support.hostile import Target
from tests.support.leftovers import wait_until

pytestmark = pytest.mark.root

_SPOOLS = ("/var/spool/cron/crontabs", "/var/spool/cron", "/var/spool/at", "/var/spool/cron/atjobs")


@pytest.fixture
def mine(target: Target) -> Iterator[Target]:
    """A session of the test's own; its worker goes at the end."""
    made = dataclasses.replace(target, session="leftovers")
    yield made
    target.person.clsecure("cleanup", "leftovers", "--yes")


def cleanup(target: Target) -> Any:
    return target.person.clsecure("cleanup", target.session, "--yes", "--output", "json")


def assert_removed(account: dict[str, Any]) -> None:
    """Fail when the machine still knows anything of a worker."""
    name, uid = str(account["name"]), int(account["uid"])
    for file in ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/subuid", "/etc/subgid"):
        assert not Path(file).exists() or name not in Path(file).read_text(), file
    assert not os.path.lexists(account["home"])
    for spool in ("/var/mail", "/var/spool/mail", *_SPOOLS, "/var/lib/systemd/linger", "/run/user"):
        assert not os.path.lexists(f"{spool}/{name}")
        assert not os.path.lexists(f"{spool}/{uid}")
    assert not sweep.processes_of(uid)


def owned(uid: int, since: Path) -> list[str]:
    """Files of a uid on the machine's own file system, in the places where anybody but root may write.

    Those that are younger than a file: what an earlier run left in its own directories is not this one's.
    """
    places = ("/tmp", "/var", "/home", "/run", "/dev/shm", "/srv", "/opt")
    wanted = ["-uid", str(uid), "-cnewer", str(since)]
    found = subprocess.run(
        ["find", *places, "-path", "/var/lib/docker", "-prune", "-o", *wanted, "-print"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.stdout.split()


def test_e2_nothing_is_scheduled(mine):
    """crontab, at, batch, a unit of the user's systemd and lingering: asked for, never there."""
    mine.attack(
        """
        echo '* * * * * touch /tmp/marker' | timeout 5 crontab - 2>&1
        echo 'touch /tmp/marker' | timeout 5 at now 2>&1; echo true | timeout 5 batch 2>&1
        timeout 5 systemd-run --user --on-active=1 true 2>&1; timeout 5 loginctl enable-linger 2>&1
        mkdir -p ~/.config/systemd/user/default.target.wants ~/.config/autostart
        for d in /var/spool/cron/crontabs /var/spool/at /var/lib/systemd/linger /etc/cron.d; do
            mkdir -p $d 2>/dev/null; touch $d/$(id -un) 2>/dev/null && echo "planted in $d"
        done
        """,
        finish="keep",
    )
    account = mine.account()
    for spool in (*_SPOOLS, "/var/lib/systemd/linger", "/etc/cron.d"):
        assert not os.path.lexists(f"{spool}/{account['name']}"), spool
        assert not [entry for entry in _listed(spool) if entry.owner_uid == account["uid"]], spool
    assert not sweep.processes_of(account["uid"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: Path
    owner_uid: int


def _listed(directory: str) -> list[_Entry]:
    found = []
    for path in Path(directory).iterdir() if Path(directory).is_dir() else ():
        # Others make and remove jobs of theirs, other tests among them.
        with contextlib.suppress(FileNotFoundError):
            found.append(_Entry(path=path, owner_uid=path.lstat().st_uid))
    return found


def test_e3_a_poisoned_home_stays_inside(mine):
    """Start files of shells, git, Python and Claude in the worker's home, obeyed by whoever goes by there."""
    marker = mine.person.home / f"obeyed-{mine.mode}"
    mine.person.run(["touch", str(marker)]).check()
    marker.unlink()
    script = f"""
    trap="touch {marker}; echo obeyed >>~/inside"
    for f in .bashrc .profile .bash_profile .bash_logout .zshrc .zshenv .xprofile; do echo "$trap" >~/$f; done
    printf '#!/bin/sh\\n%s\\n' "$trap" >~/trap && chmod +x ~/trap
    git config --global core.fsmonitor ~/trap; git config --global core.hooksPath ~/hooks
    git config --global core.pager ~/trap; git config --global diff.external ~/trap
    mkdir -p ~/hooks ~/.claude ~/.config/firejail ~/.local/lib/python3.11/site-packages ~/bin
    for h in post-checkout reference-transaction pre-commit post-index-change; do cp ~/trap ~/hooks/$h; done
    for p in git python3 sudo firejail sh rm chmod; do cp ~/trap ~/bin/$p; done
    echo "import os; os.system('$HOME/trap')" | tee ~/.local/lib/python3.11/site-packages/usercustomize.py \\
        >~/.local/lib/python3.11/site-packages/sitecustomize.py
    echo '{{"hooks": {{"SessionStart": [{{"hooks": [{{"type": "command", "command": "~/trap"}}]}}]}}}}' \\
        >~/.claude/settings.json
    echo 'noblacklist /' >~/.config/firejail/globals.local
    echo work >work.txt
    """
    mine.attack(script, finish="keep")
    # It is no paper tiger: a shell of the agent's own obeys it, inside.
    resumed = mine.attack("bash -lc true; cat ~/inside", "--resume", finish="keep")
    assert "obeyed" in resumed.said
    mine.person.clsecure("diff", mine.session, cwd=mine.repository).check()
    mine.person.clsecure("import", mine.session, cwd=mine.repository).check()
    fresh = mine.attack("ls -A ~; test ! -e ~/trap && echo clean", "--fresh")
    assert "clean" in fresh.said
    assert ".bashrc" not in fresh.said.split()
    cleanup(mine).check()
    assert not marker.exists()


def test_e4_removal_while_busy(mine):
    """The worker is to be removed while its agent runs; then while a stray process of it does."""
    with mine.live("echo ready; read _", finish="keep") as live:
        live.wait_for("ready")
        account = mine.account()
        busy = cleanup(mine)
        assert busy.returncode == 125
        assert mine.account() == account
        assert live.processes()
    uid = account["uid"]
    stray = subprocess.Popen(["sleep", "10000"], user=uid, group=uid, extra_groups=[], cwd=account["home"])
    try:
        cleanup(mine).check()
        assert stray.wait(60) == -9
    finally:
        stray.kill()
        stray.wait()
    assert_removed(account)


def test_e5_no_orphan_files_and_no_uid_twice(mine, tmp_path):
    """The agent writes wherever it may, all over the machine; then its worker is removed and made again."""
    start = tmp_path / "start"
    start.touch()
    said = mine.attack(
        """
        for d in /tmp /var/tmp /dev/shm /run/lock /run/user/$(id -u) /run /var /opt /srv /home /dev /mnt; do
            echo mine >"$d/e5-$(id -u)" 2>/dev/null && echo "wrote in $d"
        done; true
        """,
        finish="keep",
    ).said
    assert "wrote in /tmp" in said, "nothing was attacked"
    account = mine.account()
    assert [path for path in owned(account["uid"], start) if not path.startswith(account["home"])] == []
    cleanup(mine).check()
    assert_removed(account)
    assert owned(account["uid"], start) == []
    mine.attack("true", finish="keep")
    again = mine.account()
    assert again["uid"] > account["uid"]
    with pytest.raises(KeyError):
        pwd.getpwuid(account["uid"])


def test_e6_an_undeletable_home(mine):
    """Directories of mode 000, a tree 5000 deep, names that look like options or end a line, links out."""
    said = mine.attack(
        """
        mkdir -p ~/locked/inner && echo x >~/locked/inner/file && chmod 000 ~/locked/inner ~/locked
        python3 -I -c '
import os
os.chdir(os.environ["HOME"])
for depth in range(5000):
    os.mkdir("d" * 20)
    os.chdir("d" * 20)
os.chmod(".", 0)
print("deep")'
        mkdir -- "$HOME/-rf" "$HOME/$(printf 'a\\nb')"; ln -s / ~/root; ln -s /etc/passwd ~/passwd
        mkdir ~/sticky && touch ~/sticky/file && chmod 1555 ~/sticky; chattr +i ~/sticky/file 2>/dev/null
        mkfifo ~/fifo; chmod 0500 ~; true
        """,
        finish="keep",
    ).said
    assert "deep" in said
    account = mine.account()
    passwd = Path("/etc/passwd").stat().st_mode
    cleanup(mine).check()
    assert_removed(account)
    assert Path("/etc/passwd").stat().st_mode == passwd


# ---------------------------------------------------------------- H


def test_h4_a_recycled_pid_is_not_killed(mine):
    """A process of the person's stands where a state file could say that the worker's was."""
    bystander = mine.person.spawn(["sleep", "10000"])
    try:
        mine.attack(
            f"for f in ~/pid /tmp/clsecure.pid; do echo {bystander.pid} >$f; done; kill {bystander.pid}; :",
            finish="keep",
        )
        cleanup(mine).check()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_h12_parallel_starts_have_one_winner(mine):
    """Twenty starts of the same session at once: one runs, the others are told so, and nothing is left."""
    starts = [
        mine.person.spawn(
            mine.argv(["/bin/sh", "-c", "echo won; read _"], finish="keep"),
            cwd=mine.repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(20)
    ]
    try:
        wait_until(lambda: sum(each.poll() is not None for each in starts) == 19, "19 losers", 300)
        (winner,) = [each for each in starts if each.poll() is None]
        losers = [each for each in starts if each is not winner]
        for loser in losers:
            output, _ = loser.communicate(timeout=60)
            assert loser.returncode == 125
            assert b"running already" in output, output
        output, words = winner.communicate(b"\n", timeout=60)
        assert winner.returncode == 0, output
        assert words.count(b"won\n") == 1
    finally:
        for each in starts:
            if each.poll() is None:
                each.kill()
                each.communicate()
    assert len([e for e in mine.person.worker_accounts() if e["session"] == mine.session]) == 1
    assert not sweep.processes_of(mine.account()["uid"])

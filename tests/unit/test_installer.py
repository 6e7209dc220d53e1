"""Setup writes what it showed, only where root alone can write, and takes it away again."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from pathlib import Path

import pytest

from clsecure import installation, installer, process, sudoers
from clsecure.errors import BackendUnavailableError, StateError, UsageError
from clsecure.installation import DIRECTORIES, PIECES, inspect
from clsecure.installer import Layout
from clsecure.process import CommandResult
from clsecure.sudoers import COMMON_SETTINGS, OTHER_SETTINGS

USER = "daemon"  # on every system, and not root


@pytest.fixture
def layout(tmp_path):
    """A place of its own: the checks are those of the real one, and end at the test's directory."""
    tmp_path.chmod(0o755)
    for name in ("lib", "sudoers.d", "state"):
        (tmp_path / name).mkdir(mode=0o755)
    return Layout(
        directory=tmp_path / "lib" / "clsecure",
        sudoers=tmp_path / "sudoers.d" / "clsecure",
        state=tmp_path / "state" / "clsecure",
        trusted_root=tmp_path,
        group=None,
        others=(tmp_path / "package" / "helper",),
    )


needs_root = pytest.mark.root


def test_the_plan_names_every_piece_and_changes_nothing(layout):
    plan = installer.plan_setup([USER], layout)
    assert [file.target for file in plan.files] == [
        *(layout.directory / piece.target for piece in PIECES),
        layout.sudoers,
    ]
    text = "\n".join(installer.describe_setup(plan))
    for file in plan.files:
        assert str(file.target) in text
        assert installation.digest(file.data) in text
    assert f'{USER} ALL=(root) NOPASSWD: {layout.directory}/helper ""' in text
    assert not layout.directory.exists()


def test_the_permission_is_for_one_program_without_arguments():
    text = installer.sudoers_for(["alice", "#1234"], Layout())
    rules = [line for line in text.splitlines() if "NOPASSWD" in line]
    assert rules == [
        f'{who} ALL=(root) NOPASSWD: /usr/local/lib/clsecure/helper ""'
        for who in ("%clsecure", "alice", "#1234")
    ]


@pytest.mark.skipif(not os.access("/usr/sbin/visudo", os.X_OK), reason="visudo is not installed")
def test_sudo_accepts_the_text(tmp_path):
    file = tmp_path / "sudoers"
    file.write_text(installer.sudoers_for(["alice", "#1234"], Layout()))
    file.chmod(0o440)
    subprocess.run(["/usr/sbin/visudo", "-cqf", str(file)], check=True, timeout=30)


def test_what_this_sudo_does_not_know_is_left_out_and_all_else_stays(monkeypatch):
    """As with sudo-rs: a text with an unknown setting is refused as a whole."""
    unknown = {"!requiretty", "closefrom=3"}
    asked = []

    def visudo(command):
        text = Path(command.argv[-1]).read_text()
        asked.append(text)
        refused = any(each in text for each in unknown)
        return CommandResult(command=command, returncode=int(refused), stdout=b"", stderr=b"")

    monkeypatch.setattr(process, "run", visudo)
    text = installer.sudoers_for(["alice"], Layout())
    (line,) = (line for line in text.splitlines() if line.startswith("Defaults!"))
    settings = line.partition(" ")[2].split(", ")
    assert set(settings) == {*COMMON_SETTINGS, *OTHER_SETTINGS} - unknown
    assert line.startswith("Defaults!/usr/local/lib/clsecure/helper env_reset, ")
    assert all(text.startswith("Defaults!/usr/local/lib/clsecure/helper ") for text in asked)


def test_without_sudo_the_plan_is_shown_all_the_same(monkeypatch, layout):
    monkeypatch.setattr(sudoers, "_asked", lambda _: (_ for _ in ()).throw(BackendUnavailableError("none")))
    assert "closefrom=3" in installer.plan_setup([USER], layout).files[-1].data.decode()


@pytest.mark.parametrize("user", ["root", "no-such-user", "x\0y", "ALL", "%sudo", "a b", "../x"])
def test_unusable_users_are_refused(layout, user):
    with pytest.raises(UsageError):
        installer.plan_setup([user], layout)


def test_a_name_that_sudoers_could_misread_is_named_by_its_number(layout, monkeypatch):
    entry = pwd.struct_passwd(("ADMIN", "x", 4242, 4242, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: entry)
    assert installer.plan_setup(["ADMIN"], layout).users == ("#4242",)


@needs_root
def test_setup_and_removal_leave_nothing(layout):
    plan = installer.plan_setup([USER], layout)
    installer.apply_setup(plan)
    found = inspect(layout.directory)
    assert found is not None
    assert found.matches
    assert stat.S_IMODE(layout.sudoers.stat().st_mode) == 0o440
    assert installer.plan_setup([USER], layout).changes_nothing

    installer.apply_removal(installer.plan_removal(layout))
    assert not layout.directory.exists()
    assert not layout.sudoers.exists()
    installer.apply_removal(installer.plan_removal(layout))


@needs_root
def test_a_second_user_does_not_lock_out_the_first(layout):
    installer.apply_setup(installer.plan_setup([USER], layout))
    installer.apply_setup(installer.plan_setup(["bin"], layout))
    assert installer.plan_setup([USER], layout).users == ("bin", USER)
    assert installer.plan_setup([USER], layout).changes_nothing


@needs_root
def test_a_user_who_is_gone_is_not_allowed_again(layout):
    layout.sudoers.write_text(f'no-such-user ALL=(root) NOPASSWD: {layout.directory}/helper ""\n')
    assert installer.plan_setup([USER], layout).users == (USER,)


def write_sources(sources, text):
    for piece in PIECES:
        (sources / piece.source).parent.mkdir(parents=True, exist_ok=True)
        (sources / piece.source).write_text(text)


@needs_root
def test_what_was_shown_is_written_even_if_the_source_changes_meanwhile(layout, tmp_path, monkeypatch):
    sources = tmp_path / "sources"
    write_sources(sources, "shown")
    monkeypatch.setattr(installer, "source_directory", lambda: sources)
    plan = installer.plan_setup([USER], layout)
    write_sources(sources, "exchanged")
    installer.apply_setup(plan)
    assert {(layout.directory / piece.target).read_text() for piece in PIECES} == {"shown"}


@pytest.mark.parametrize("trick", ["link", "fifo", "missing", "huge"])
def test_a_source_that_is_no_plain_file_is_refused(layout, tmp_path, monkeypatch, trick):
    sources = tmp_path / "sources"
    write_sources(sources, "fine")
    odd = sources / "privileged" / "helper.py"
    odd.unlink()
    if trick == "link":
        odd.symlink_to("/etc/shadow")
    elif trick == "fifo":
        os.mkfifo(odd)
    elif trick == "huge":
        with odd.open("wb") as file:
            file.truncate(1 << 40)
    monkeypatch.setattr(installer, "source_directory", lambda: sources)
    with pytest.raises(StateError, match="missing"):
        installer.plan_setup([USER], layout)


@needs_root
@pytest.mark.parametrize("spoil", ["writable", "foreign", "link"])
def test_a_target_that_others_could_exchange_is_refused(layout, tmp_path, spoil):
    plan = installer.plan_setup([USER], layout)
    parent = layout.directory.parent
    if spoil == "writable":
        parent.chmod(0o775)
    elif spoil == "foreign":
        os.chown(parent, 65534, 65534)
    else:
        parent.rmdir()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        os.chown(elsewhere, 65534, 65534)
        parent.symlink_to(elsewhere)
    with pytest.raises(StateError, match="not under root's control alone") as caught:
        installer.apply_setup(plan)
    assert str(caught.value.resolution).startswith("sudo chown root ")
    assert not layout.sudoers.exists()


@needs_root
def test_a_world_writable_directory_far_above_is_refused(tmp_path):
    # /tmp itself, or whatever the test directory is under: nobody's helper may live there.
    layout = Layout(
        directory=tmp_path / "clsecure", sudoers=tmp_path / "s", state=tmp_path / "state", group=None
    )
    with pytest.raises(StateError, match="not under root's control alone"):
        installer.apply_setup(installer.plan_setup([USER], layout))


@needs_root
def test_a_text_that_sudo_refuses_never_gets_into_place(layout, monkeypatch):
    monkeypatch.setattr(installer, "sudoers_for", lambda *_: "this is no sudoers file\n")
    plan = installer.plan_setup([USER], layout)
    with pytest.raises(Exception, match="visudo"):
        installer.apply_setup(plan)
    assert list(layout.sudoers.parent.iterdir()) == []
    assert not layout.directory.exists()


@needs_root
def test_removal_keeps_the_state_of_workers_and_the_counter_of_uids(layout):
    installer.apply_setup(installer.plan_setup([USER], layout))
    for name in ("registry", "locks", "agents", "removal"):
        (layout.state / name).mkdir(parents=True)
    (layout.state / "registry" / ".next-uid").write_text("1900000007")
    account = layout.state / "registry" / "claude-worker-x-000000"
    account.write_text("{}")
    plan = installer.plan_removal(layout)
    assert plan.accounts == ("claude-worker-x-000000",)
    installer.apply_removal(plan)
    assert (layout.state / "agents").exists()

    account.unlink()
    installer.apply_removal(installer.plan_removal(layout))
    assert not (layout.state / "agents").exists()
    assert not (layout.state / "removal").exists(), "of a package that was removed"
    assert (layout.state / "registry" / ".next-uid").exists()


def test_the_removal_leaves_what_a_package_on_the_machine_needs(layout):
    (layout.state / "agents").mkdir(parents=True)
    assert layout.state / "agents" in installer.plan_removal(layout).paths
    (helper,) = layout.others
    helper.parent.mkdir()
    helper.touch()
    plan = installer.plan_removal(layout)
    assert plan.paths == ()
    assert plan.accounts == ()
    assert not plan.removes_group


@needs_root
def test_directories_are_made_and_mended(layout):
    installer.apply_setup(installer.plan_setup([USER], layout))
    places = [layout.directory, *(layout.directory / name for name in DIRECTORIES)]
    assert {stat.S_IMODE(place.stat().st_mode) for place in places} == {0o755}
    places[-1].chmod(0o700)
    plan = installer.plan_setup([USER], layout)
    assert not plan.changes_nothing
    installer.apply_setup(plan)
    assert stat.S_IMODE(places[-1].stat().st_mode) == 0o755


@needs_root
@pytest.mark.parametrize("place", DIRECTORIES)
def test_a_directory_that_others_could_write_is_refused(layout, place):
    installer.apply_setup(installer.plan_setup([USER], layout))
    os.chown(layout.directory / place, 65534, 65534)
    with pytest.raises(StateError, match="not under root's control alone"):
        installer.apply_setup(installer.plan_setup([USER], layout))


@needs_root
def test_what_a_former_version_left_among_roots_modules_is_taken_away(layout, tmp_path):
    installer.apply_setup(installer.plan_setup([USER], layout))
    root = layout.directory / "clsecure" / "privileged" / "root"
    (root / "former.py").write_text("old")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "kernel.cpython-311.pyc").write_text("old")
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (root / "link.py").symlink_to(precious)
    plan = installer.plan_setup([USER], layout)
    assert not plan.changes_nothing
    assert str(root / "former.py") in "\n".join(installer.describe_setup(plan))
    installer.apply_setup(plan)
    found = inspect(layout.directory)
    assert found is not None
    assert found.matches
    assert precious.read_text() == "mine"

    (root / "former.py").write_text("old")
    installer.apply_removal(installer.plan_removal(layout))
    assert not layout.directory.exists()


@needs_root
def test_a_link_in_the_place_of_a_directory_is_replaced_and_what_is_behind_it_stays(layout, tmp_path):
    installer.apply_setup(installer.plan_setup([USER], layout))
    elsewhere = tmp_path / "elsewhere"
    (layout.directory / "clsecure").rename(elsewhere)
    (layout.directory / "clsecure").symlink_to(elsewhere)
    installer.apply_setup(installer.plan_setup([USER], layout))
    found = inspect(layout.directory)
    assert found is not None
    assert found.matches
    assert (elsewhere / "privileged" / "root" / "kernel.py").exists()


@needs_root
def test_removal_leaves_what_somebody_else_put_there(layout):
    installer.apply_setup(installer.plan_setup([USER], layout))
    (layout.directory / "mine").write_text("precious")
    with pytest.raises(StateError, match="did not put there"):
        installer.apply_removal(installer.plan_removal(layout))
    assert (layout.directory / "mine").read_text() == "precious"
    assert not layout.sudoers.exists()

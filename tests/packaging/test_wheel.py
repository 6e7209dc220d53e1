"""The wheel in a virtual environment of a plain person, as pipx and uv make it."""

from __future__ import annotations

import shutil

import pytest

from builder import wheels
from builder.project import PYTHONS
from builder.release import build_wheel
from clsecure import __version__
from tests.support.clean_machine import PERSON, add_person
from tests.support.packages import release

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("packages")]

_SESSION = "cd ~/sample && clsecure --agent demo --on-finish import </dev/null"


@pytest.fixture
def machine(new_machine, debian, package_place):
    """A clean machine where the person has the wheel and what the lock names, and root did nothing yet."""
    place, work = package_place / "wheels", package_place / "wheel-work"
    work.mkdir()
    build_wheel(release(), place, work, lambda _: None)
    for wheel in wheels.fetch(release().architecture, lambda _: None)[PYTHONS[0]]:
        shutil.copy(wheel.path, place)
    machine = new_machine(debian, place)
    programs = "python3-venv git sudo firejail"
    machine.sh(f"apt-get -q update && apt-get -q install -y --no-install-recommends {programs}").check()
    machine.sh("groupadd --system clsecure").check()  # for the person; setup makes it otherwise
    add_person(machine)
    machine.sh(f"gpasswd --delete {PERSON} clsecure && groupdel clsecure").check()
    machine.person("""
        python3 -m venv ~/.local/share/venvs/clsecure
        ~/.local/share/venvs/clsecure/bin/pip --quiet install --no-index --find-links /srv/repository clsecure
        mkdir -p ~/.local/bin && ln -s ../share/venvs/clsecure/bin/clsecure ~/.local/bin/
        printf 'PATH=~/.local/bin:$PATH\\n' >>~/.profile
    """).check()
    return machine


def test_the_wheel_asks_for_setup_and_then_works(machine):
    assert machine.person("clsecure --version").check().text == f"clsecure {__version__}\n"
    refused = machine.person(_SESSION)
    assert refused.returncode == 125
    assert "Install it with: clsecure setup" in refused.errors
    plan = machine.person("clsecure setup --dry-run").check().text
    assert "/usr/local/lib/clsecure/helper" in plan
    assert "/etc/sudoers.d/clsecure" in plan
    # Setup calls sudo itself, which asks for a password; here, an administrator without one.
    machine.write("/etc/sudoers.d/admin", f"{PERSON} ALL=(ALL) NOPASSWD: ALL\n".encode())
    machine.person("clsecure setup --yes").check()
    machine.sh("rm /etc/sudoers.d/admin").check()
    machine.person(_SESSION).check()
    assert machine.person("cd ~/sample && git branch --list 'claude/*'").text
    machine.person("clsecure cleanup --all --yes").check()
    machine.sh(f"/home/{PERSON}/.local/bin/clsecure setup --remove --yes").check()
    assert not [
        name for name in machine.names() if name.startswith(("/usr/local/lib/clsecure", "/etc/sudoers.d/cl"))
    ]

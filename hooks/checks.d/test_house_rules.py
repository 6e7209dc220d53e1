"""Rules of a house, checked inside every sandbox. Copy it to ~/.config/clsecure/checks.d/ and change it."""

import pytest

SECRET_PLACES = ("/srv", "/mnt", "/media")
"""Where this house mounts what is nobody else's."""
NETWORKS = ("/etc/resolv.conf", "/etc/hosts")
INTERNAL = "corp.example.com"


@pytest.mark.parametrize("place", SECRET_PLACES)
def test_what_the_house_mounts_is_not_inside(host, place):
    found = host.file(place)
    assert not found.exists or found.listdir() == []


@pytest.mark.parametrize("path", NETWORKS)
def test_no_name_of_the_house_is_told(host, path):
    found = host.file(path)
    assert not found.exists or INTERNAL not in found.content_string


def test_the_agent_is_at_home_and_can_not_become_root(host, session):
    assert host.user().home == session.home
    assert host.run("sudo -n true").rc != 0


def test_git_signs_nothing_inside(host):
    if not host.exists("git"):
        pytest.skip("there is no git inside")
    assert host.run("git config --get user.signingkey").stdout == ""

"""What a setup may reach, from the settings of every layer: never past what a repository or denial shuts."""

from __future__ import annotations

from pathlib import Path

import pytest

from clsecure.cli.reach import Reach
from clsecure.cli.setup_reach import SetupReach, setup_reach
from clsecure.errors import UsageError
from clsecure.model import NetworkPolicy
from clsecure.policy import EgressPolicy, parse_pattern
from clsecure.session.ui import SilentUi
from clsecure.settings.model import load
from clsecure.settings.project import with_project
from clsecure.settings.sources import gather

SESSION = Reach(policy=EgressPolicy())


def reach_of(
    tmp_path: Path, user: str, *, project: str = "", session: Reach = SESSION, **environ: str
) -> SetupReach:
    """Return what settings in TOML of the user, the repository's and variables come to."""
    top = tmp_path / "repository"
    for place, text in ((tmp_path / ".config/clsecure", user), (top / ".clsecure", project)):
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.toml").write_text(text)
    settings = load(with_project(gather(environ={"HOME": str(tmp_path), **environ}), top))
    return setup_reach(settings, session, environ={}, home=tmp_path, repository=top, ui=SilentUi())


def hosts(reach: SetupReach) -> list[str]:
    assert reach.policy is not None
    assert reach.policy.kind is NetworkPolicy.ALLOWLIST
    return [str(rule.pattern) for rule in reach.policy.allow]


def test_nothing_said_is_the_sessions_own_network(tmp_path: Path) -> None:
    assert reach_of(tmp_path, "") == SetupReach()
    assert reach_of(tmp_path, '[setup]\nnetwork = "session"\n') == SetupReach()


def test_every_host_of_an_array_counts_and_each_layer_replaces_the_weaker(tmp_path: Path) -> None:
    text = '[setup]\nnetwork = ["a.example.org", "b.example.org:8443"]\n'
    assert hosts(reach_of(tmp_path, text)) == ["a.example.org:443", "b.example.org:8443"]
    narrower = reach_of(tmp_path, text, CLSECURE_SETUP_NETWORK="c.example.org")
    assert hosts(narrower) == ["c.example.org:443"]


@pytest.mark.parametrize("kind", ["none", "full"])
def test_a_kind_is_taken_as_it_is(tmp_path: Path, kind: str) -> None:
    reach = reach_of(tmp_path, f'[setup]\nnetwork = "{kind}"\n')
    assert reach.policy == EgressPolicy(kind=NetworkPolicy(kind))


def test_api_is_the_sessions_where_that_is_api_and_nothing_at_all_otherwise(tmp_path: Path) -> None:
    assert reach_of(tmp_path, '[setup]\nnetwork = "api"\n').policy is None
    alone = reach_of(tmp_path, '[egress]\nallow = ["a.example.org"]\n[setup]\nnetwork = "api"\n')
    assert alone.policy == EgressPolicy(kind=NetworkPolicy.API)


@pytest.mark.parametrize("wanted", ['"full"', '"api"', '["a.example.org"]'])
def test_what_the_repository_narrowed_stays_narrow(tmp_path: Path, wanted: str) -> None:
    reach = reach_of(tmp_path, f"[setup]\nnetwork = {wanted}\n", project='network = "none"\n')
    assert reach.policy is None
    (warning,) = reach.warnings
    assert "does not count, because the network is none" in warning


def test_what_the_user_narrowed_for_the_agent_alone_does_not_bind_the_setup(tmp_path: Path) -> None:
    reach = reach_of(tmp_path, 'network = "none"\n[setup]\nnetwork = ["a.example.org"]\n')
    assert hosts(reach) == ["a.example.org:443"]
    assert reach.warnings == ()


@pytest.mark.parametrize("where", ["user", "project"])
def test_denied_hosts_of_every_layer_stay_denied(tmp_path: Path, where: str) -> None:
    denied = '[egress]\ndeny = ["*.example.org"]\n'
    user = '[setup]\nnetwork = ["a.example.org", "other.example.com"]\n'
    said = {"user": denied + user} if where == "user" else {"user": user, "project": denied}
    reach = reach_of(tmp_path, **said)
    assert reach.policy is not None
    assert [str(rule.pattern) for rule in reach.policy.deny] == ["*.example.org"]
    assert any("a.example.org" in w and "stays denied" in w for w in reach.warnings)


def test_a_ceiling_of_the_machines_holds_for_the_setup(tmp_path: Path) -> None:
    only = (parse_pattern("a.example.org:443"),)
    session = Reach(policy=EgressPolicy(only=only, only_where="/etc/clsecure/config.toml"))
    reach = reach_of(tmp_path, '[setup]\nnetwork = ["b.example.org"]\n', session=session)
    assert reach.policy is not None
    assert reach.policy.only == only
    assert reach.policy.only_where == "/etc/clsecure/config.toml"


def test_denials_and_a_full_network_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be enforced"):
        reach_of(tmp_path, '[egress]\ndeny = ["x.example.org"]\n[setup]\nnetwork = "full"\n')

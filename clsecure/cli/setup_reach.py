"""What the setup script and the package managers may reach, where that is not the session's own network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli.reach import Reach, in_vain, presets_of
from clsecure.errors import UsageError
from clsecure.model import NetworkPolicy
from clsecure.policy import MAX_RULES, EgressPolicy
from clsecure.settings.network import stricter
from clsecure.settings.sources import Layer

if TYPE_CHECKING:
    from clsecure.session.ui import Ui
    from clsecure.settings.model import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupReach:
    """The policy of a setup; None for the session's own."""

    policy: EgressPolicy | None = None
    tool_env: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def setup_reach(
    settings: Settings,
    session: Reach,
    *,
    environ: Mapping[str, str],
    home: Path,
    repository: Path,
    ui: Ui,
) -> SetupReach:
    """Return what the setup of a session may reach. Denied hosts stay denied.

    What the repository narrowed for the session is narrow for the setup, too.

    :param session: what the session itself may reach.
    :raises UsageError: denied hosts and the full network, or more hosts than there can be.
    :raises EgressError: a preset that finds nothing.
    """
    wanted = settings.setup_network
    if wanted.kind is None:
        return SetupReach()
    source = settings.provenance("network")
    if source.layer is Layer.PROJECT and stricter(settings.network, wanted.kind):
        where = settings.provenance("setup_network")
        why = f"because the network is {settings.network} ({source})"
        return SetupReach(warnings=(f"setup_network ({where}) does not count, {why}",))
    if wanted.kind is NetworkPolicy.API and settings.network is NetworkPolicy.API:
        return SetupReach()
    deny = settings.deny_domains
    if wanted.kind is NetworkPolicy.FULL and deny:
        raise UsageError(
            f"deny_domains ({settings.provenance('deny_domains')}) can't be enforced "
            "with setup_network = full",
            details="Only what goes through the gateway can be denied by name.",
            resolution="name the hosts that the setup needs: setup_network = HOST[:PORT], PRESET, …",
        )
    presets = presets_of(wanted.presets, environ=environ, home=home, repository=repository, ui=ui)
    allow = (*wanted.allow, *(rule for preset in presets for rule in preset.rules))
    if len(allow) > MAX_RULES:
        raise UsageError(f"{len(allow)} hosts are in setup_network, and there can be {MAX_RULES}")
    # The machine's ceiling is the same for both.
    policy = replace(session.policy, kind=wanted.kind, allow=allow, deny=deny)
    return SetupReach(
        policy=policy,
        tool_env={name: value for preset in presets for name, value in preset.env.items()},
        warnings=in_vain(policy),
        notes=tuple(
            note
            for preset in presets
            for note in (f"preset {preset.name}: {said}" for said in preset.notes)
            if note not in session.notes
        ),
    )

"""What a session may reach: the settings' hosts and those that the user's own tools name, as one policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.egress.provider import Provider, find_provider
from clsecure.errors import UsageError
from clsecure.model import Credentials, NetworkPolicy
from clsecure.policy import (
    MAX_RULES,
    EgressPolicy,
    HostPattern,
    NetworkRule,
    covered,
    denial_of,
    host_and_port,
    parse_pattern,
)
from clsecure.settings.values.amounts import human_budget

if TYPE_CHECKING:
    from clsecure.egress.presets import Preset
    from clsecure.session.plan import SessionPlan
    from clsecure.session.ui import Ui
    from clsecure.settings.enforce import Ceilings
    from clsecure.settings.layers import NetworkSettings
    from clsecure.settings.model import Settings
    from clsecure.settings.structured import ProviderTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The policy of one session, and what goes with it.

    :param tool_env: variables that make the tools inside use the presets' hosts.
    :param warnings: what was allowed in vain.
    :param notes: what the presets have to say.
    """

    policy: EgressPolicy
    tool_env: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def reach(
    settings: Settings | NetworkSettings,
    *,
    environ: Mapping[str, str],
    home: Path,
    repository: Path | None,
    ui: Ui,
) -> Reach:
    """Return what a session with these settings may reach. Presets ask the user's own tools.

    :param repository: the top of the work tree; None outside any.
    :raises UsageError: more hosts than a session can have, or a denial of the model's API itself.
    :raises EgressError: a preset that finds nothing, or a provider's address that can't be used.
    """
    presets = presets_of(settings.presets, environ=environ, home=home, repository=repository, ui=ui)
    allow = (*settings.allow_domains, *(rule for preset in presets for rule in preset.rules))
    through_gateway = settings.network in {NetworkPolicy.API, NetworkPolicy.ALLOWLIST}
    if settings.network is not NetworkPolicy.NONE and settings.credentials is not Credentials.NONE:
        # With the full network, too, the gateway or the agent itself takes the key to that address.
        if settings.served is None:
            _refuse_other_provider(settings.ceilings, environ, settings.credentials)
        provider = find_provider(environ, base_url=settings.base_url, served=settings.served)
        if through_gateway:
            _refuse_denied_provider(provider, settings.deny_domains)
    for what, rules in (("allowed", allow), ("denied", settings.deny_domains)):
        if len(rules) > MAX_RULES:
            raise UsageError(
                f"{len(rules)} hosts are {what}, and a session can have {MAX_RULES}",
                resolution="name fewer, or whole domains: *.SUB.DOMAIN",
            )
    policy = EgressPolicy(
        kind=settings.network,
        allow=allow,
        deny=settings.deny_domains,
        only=_ceiling(settings.ceilings),
        only_where=_ceiling_place(settings.ceilings),
    )
    return Reach(
        policy=policy,
        tool_env={name: value for preset in presets for name, value in preset.env.items()},
        warnings=in_vain(policy),
        notes=tuple(f"preset {preset.name}: {note}" for preset in presets for note in preset.notes),
    )


def _ceiling(ceilings: Ceilings) -> tuple[HostPattern, ...] | None:
    """Return what may be allowed at most, also later in the running session."""
    if ceilings.network in (NetworkPolicy.NONE, NetworkPolicy.API):
        return ()
    return ceilings.hosts


def _ceiling_place(ceilings: Ceilings) -> str:
    sources = ceilings.sources
    return next((str(sources[key]) for key in ("allow_domains", "network") if key in sources), "")


def described(plan: SessionPlan) -> list[str]:
    """Return what a plan says of the network beyond its kind, a line for each thing; may need escaping."""
    policy, budget = plan.policy, human_budget(plan.budget)
    lines = [f"allowed    {_allowed(rule)}" for rule in policy.allow if not _has_alias(rule, policy.allow)]
    lines += [f"denied     {rule.pattern} ({rule.where})" for rule in policy.deny]
    lines += [f"budget     {budget}"] if budget else []
    if plan.served is not None:
        lines += provider_lines(plan.served)
    if plan.credentials is not Credentials.INJECT:
        words = {
            Credentials.COPY: "copied: the agent holds it itself, and reaches the provider's host with it",
            Credentials.NONE: "none: the session does not reach the model's API with it",
        }
        lines.append(f"key        {words[plan.credentials]}")
    if plan.provider_tools:
        lines.append("provider   may fetch, search and run code for the agent")
    if plan.allow_private:
        lines.append("private    addresses of private networks are reached, this machine's own are not")
    return lines


def provider_lines(served: ProviderTable) -> list[str]:
    """Return who serves the model; may need escaping."""
    place = f" ({served.source})" if served.source else ""
    models = ", ".join(f"{role} {name}" for role, name in served.models.items())
    return [
        f"provider   {served.name} at {served.base_url}, the key from {served.key}{place}",
        *([f"models     {models}"] if models else []),
    ]


def _allowed(rule: NetworkRule) -> str:
    leads = f", this machine's own {rule.connect}" if rule.connect else ""
    return f"{rule.pattern}{leads} ({rule.where})"


def _has_alias(rule: NetworkRule, rules: Sequence[NetworkRule]) -> bool:
    """Tell whether another rule shows the same thing by the name that it has inside."""
    return rule.connect is None and any(
        other.connect == rule.pattern.host
        and (other.pattern.port, other.where) == (rule.pattern.port, rule.where)
        for other in rules
    )


def presets_of(
    names: tuple[str, ...], *, environ: Mapping[str, str], home: Path, repository: Path | None, ui: Ui
) -> tuple[Preset, ...]:
    """Return the presets of these names; nothing is asked where there is none."""
    if not names:
        return ()
    from clsecure.egress.presets import resolve

    with ui.phase(f"asking your own tools for their hosts: {', '.join(names)}"):
        return resolve(names, environ=environ, home=home, repository_top=repository)


def _refuse_other_provider(ceilings: Ceilings, environ: Mapping[str, str], credentials: Credentials) -> None:
    """A variable can make a provider's name mean somebody else, which a ceiling of names must not allow."""
    if ceilings.providers is None:
        return
    from clsecure.agents.environment import CLAUDE_CLOUDS

    # An agent that holds its key itself would take these with it, and ask a cloud.
    names = ("ANTHROPIC_BASE_URL", *(CLAUDE_CLOUDS if credentials is Credentials.COPY else ()))
    for name in names:
        if environ.get(name):
            raise UsageError(
                f"{name} asks for more than this machine allows",
                details=f"The ceiling is set by {ceilings.sources['providers']}.",
                resolution="unset it, or ask an administrator",
            )


def _refuse_denied_provider(provider: Provider, deny: tuple[NetworkRule, ...]) -> None:
    pattern = parse_pattern(host_and_port(provider.host, provider.port))
    rule = denial_of(EgressPolicy(deny=deny), pattern)
    if rule is not None:
        raise UsageError(
            f"the model's API itself ({pattern}) is denied by {rule.pattern} ({rule.where})",
            resolution="take that out, or say --no-network, or --credentials none",
        )


def in_vain(policy: EgressPolicy) -> tuple[str, ...]:
    """Say which permissions a denial takes back."""
    lines = []
    for rule in policy.allow:
        denial = denial_of(policy, rule.pattern)
        if denial is not None and not _has_alias(rule, policy.allow):
            lines.append(
                f"{rule.pattern} ({rule.where}) stays denied, because of {denial.pattern} ({denial.where})"
            )
        elif policy.only is not None and not covered(rule.pattern, policy.only):
            lines.append(
                f"{rule.pattern} ({rule.where}) is beyond what this machine allows ({policy.only_where})"
            )
    return tuple(lines)

"""What the layers' words on the network come to together. Pure.

Absence denies, and nothing is opened by a weaker layer that a stronger one has shut:

- Allowed hosts and presets make the policy an allow-list where none was named, or ``api``.
- ``none`` wins over hosts of its own and weaker layers, ``api`` over those of weaker ones; ``full`` wins over
  hosts of weaker layers and contradicts those of its own.
- Hosts of a stronger layer win over a policy of a weaker one.
- The repository narrows what came of it; only a flag stands against that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clsecure.errors import UsageError
from clsecure.model import Credentials, NetworkPolicy
from clsecure.policy import Budget
from clsecure.settings.sources import DEFAULT, Layer, Source

CREDENTIALS = (Credentials.NONE, Credentials.INJECT, Credentials.COPY)
"""What may become of a credential, strictest first."""

_STRICTNESS = (NetworkPolicy.NONE, NetworkPolicy.API, NetworkPolicy.ALLOWLIST, NetworkPolicy.FULL)
WIDER = "is wider than what you have, and a repository may only narrow; you can say"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One value of one layer."""

    key: str
    value: Any
    source: Source

    @property
    def rank(self) -> int:
        """0 for the strongest layer."""
        return self.source.layer.rank

    def __str__(self) -> str:
        """Return it for people."""
        return str(self.source) if self.source.layer is Layer.FLAG else f"{self.key} ({self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The policy that came of it.

    :param source: what decided.
    :param hosts: the allowed hosts and presets that count.
    :param warnings: what does not count, and why.
    :param notes: what the repository narrowed.
    """

    kind: NetworkPolicy
    source: Source
    hosts: tuple[Said, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def combine(kinds: Sequence[Said], hosts: Sequence[Said], denied: Sequence[Said]) -> Combined:
    """Return what the session may reach.

    :param kinds: what the layers say of ``network``, strongest first, the repository's among them.
    :param hosts: what they say of ``allow_domains`` and ``presets``, strongest first.
    :param denied: what they say of ``deny_domains``.
    :raises UsageError: two things that exclude each other; an allow-list of nothing; a denial that the full
        network can't enforce.
    """
    own = [said for said in kinds if said.source.layer is not Layer.PROJECT]
    combined = _of_the_user(next(iter(own), None), tuple(hosts))
    for said in kinds:
        if said.source.layer is Layer.PROJECT:
            combined = _narrowed(combined, said)
    if combined.kind is NetworkPolicy.FULL and denied:
        raise UsageError(
            f"{denied[0]} can't be enforced with the full network ({combined.source})",
            details="Only what goes through the gateway can be denied by name.",
            resolution="allow the hosts that are needed instead: --allow-domain HOST[:PORT]",
        )
    return combined


def stricter(one: NetworkPolicy, other: NetworkPolicy) -> bool:
    """Tell whether one policy allows less than the other."""
    return _STRICTNESS.index(one) < _STRICTNESS.index(other)


def _of_the_user(said: Said | None, hosts: tuple[Said, ...]) -> Combined:
    kind: NetworkPolicy = NetworkPolicy.API if said is None else said.value
    source = DEFAULT if said is None else said.source
    above = tuple(host for host in hosts if host.rank < source.layer.rank)
    beside = tuple(host for host in hosts if host.rank == source.layer.rank)
    match kind:
        case NetworkPolicy.NONE:
            counting = above
            if beside and source.layer is Layer.FLAG:
                raise _excluded(said, beside[0])
        case NetworkPolicy.API:
            counting = above + beside
        case NetworkPolicy.ALLOWLIST:
            counting = hosts
            if not hosts:
                raise UsageError(
                    f"{said} is allowlist, and nothing is allowed",
                    resolution="say what is: --allow-domain HOST[:PORT] or --allow-preset NAME, "
                    "allow_domains or presets in your settings file",
                )
        case NetworkPolicy.FULL:
            if beside:
                raise _excluded(said, beside[0])
            counting = hosts if above else ()
    if not counting:
        return Combined(kind=kind, source=source, warnings=_uncounted(hosts, source, kind))
    counted = frozenset(counting)
    warnings = _uncounted([host for host in hosts if host not in counted], source, kind)
    if above and kind in {NetworkPolicy.FULL, NetworkPolicy.NONE}:
        warnings = (f"{said} is {kind} and does not count, because of {above[0]}", *warnings)
    named = kind is NetworkPolicy.ALLOWLIST and not above
    decides = source if named else counting[0].source
    return Combined(kind=NetworkPolicy.ALLOWLIST, source=decides, hosts=counting, warnings=warnings)


def _narrowed(combined: Combined, said: Said) -> Combined:
    """Return the policy as the repository narrows it."""
    kind: NetworkPolicy = said.value
    if not stricter(kind, combined.kind):
        if kind is combined.kind or combined.source.layer is Layer.FLAG:
            return combined
        flag = "--allow-network" if kind is NetworkPolicy.FULL else "--allow-domain HOST[:PORT]"
        return replace(combined, warnings=(*combined.warnings, f"{said} {WIDER} {flag}"))
    if combined.source.layer is Layer.FLAG:
        # What the user says for this one session stands; what they said for all sessions is narrowed.
        flags = tuple(host for host in combined.hosts if host.source.layer is Layer.FLAG)
        left = tuple(host for host in combined.hosts if host.source.layer is not Layer.FLAG)
        warnings = (*combined.warnings, *_uncounted(left, said.source, kind))
        note = f"{combined.source} stands against the repository ({said.source}), which says {kind}"
        return replace(combined, hosts=flags, warnings=warnings, notes=(*combined.notes, note))
    if kind is NetworkPolicy.ALLOWLIST:
        # Narrower than full, and none of the user's hosts counted there.
        kind = NetworkPolicy.API
    warnings = (*combined.warnings, *_uncounted(combined.hosts, said.source, kind))
    note = f"the network is {kind} and not {combined.kind}, because of the repository ({said.source})"
    return Combined(kind=kind, source=said.source, warnings=warnings, notes=(*combined.notes, note))


def _uncounted(hosts: Sequence[Said], source: Source, kind: NetworkPolicy) -> tuple[str, ...]:
    why = f"does not count, because the network is {kind} ({source})"
    places: dict[str, dict[str, None]] = {}
    for host in hosts:
        places.setdefault(host.key, {})[str(host.source)] = None
    return tuple(f"{key} ({', '.join(where)}) {why}" for key, where in places.items())


def _excluded(one: object, other: object) -> UsageError:
    return UsageError(f"{one} and {other} exclude each other", resolution="leave one of them out")


def check(
    network: Combined, *, allow_private: Said | None, credentials: Credentials, budget: Budget, bounds: Source
) -> tuple[str, ...]:
    """Refuse what this policy could not hold; return warnings.

    :param allow_private: who allows it, None when nobody does.
    :param bounds: where the budget was said.
    :raises UsageError: it names what can't be enforced.
    """
    _check_budget(network, credentials, budget, bounds)
    if allow_private is None or network.kind is NetworkPolicy.FULL:
        return ()
    if allow_private.rank > network.source.layer.rank:
        return _uncounted([allow_private], network.source, network.kind)
    raise UsageError(
        f"{allow_private} goes with the full network only, and it is {network.kind} ({network.source})",
        resolution="--allow-network, or allow the private hosts by name: --allow-domain HOST[:PORT]",
    )


def _check_budget(network: Combined, credentials: Credentials, budget: Budget, bounds: Source) -> None:
    if budget == Budget():
        return
    where = bounds if bounds.layer is Layer.FLAG else f"budget ({bounds})"
    if network.kind is NetworkPolicy.NONE:
        # A bound for all sessions holds in one that uses nothing.
        by_repository = Layer.PROJECT in (network.source.layer, bounds.layer)
        if bounds.layer.rank <= network.source.layer.rank and not by_repository:
            raise UsageError(
                f"{where} has nothing to count, since there is no network ({network.source})",
                resolution="leave one of them out",
            )
        return
    if budget.tokens is not None and credentials is not Credentials.INJECT:
        raise UsageError(
            f"{where}: tokens can't be counted with credentials = {credentials}",
            details="The gateway counts what goes through it with the user's own key.",
            resolution="leave the tokens out, or say --credentials inject",
        )
    if network.kind is NetworkPolicy.FULL and (budget.requests, budget.bytes) != (None, None):
        raise UsageError(
            f"{where}: requests and bytes can't be limited with the full network ({network.source})",
            details="What the agent sends by itself does not go through the gateway. Tokens can be limited.",
            resolution="leave them out, or allow the hosts that are needed: --allow-domain HOST[:PORT]",
        )

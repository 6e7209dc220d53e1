"""What a session may reach right now, for the agent inside and the user outside to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from clsecure.egress.shared import Shared
from clsecure.policy import NetworkRule

_HELP = (
    "Everything else is refused. The user can allow a host while the session runs, outside of it: "
    "clsecure network allow {session} HOST[:PORT]"
)


def agents_document(shared: Shared, *, port: int) -> dict[str, object]:
    """Return the policy as it is now, without the names of the user's own files.

    :param port: where the gateway is reached inside.
    """
    document = policy_document(shared, where=_without_paths)
    base = f"http://127.0.0.1:{port}" if shared.api is not None else None
    return {
        **document,
        "api": {"base": base, "allowed": shared.api is not None},
        "help": _HELP.format(session=shared.session),
    }


def policy_document(shared: Shared, *, where: Callable[[str], str] = str) -> dict[str, object]:
    """Return the policy as it is now, and what is used of the budget."""
    policy = shared.live.policy

    def listed(rules: Iterable[NetworkRule]) -> list[dict[str, str]]:
        return [{"host": str(rule.pattern), "where": where(rule.where)} for rule in rules]

    return {
        "policy": policy.kind,
        "allow": listed(policy.allow),
        "deny": listed(policy.deny),
        "budget": shared.meter.state(),
    }


def _without_paths(where: str) -> str:
    words = where.partition(" (")[0]
    return "settings" if "/" in words else words

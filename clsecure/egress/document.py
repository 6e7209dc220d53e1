"""What a session may reach right now, for the agent inside and the user outside to read."""

from __future__ import annotations

from collections.abc import Iterable

from clsecure.egress.shared import Shared
from clsecure.policy import NetworkRule

HELP = (
    "Everything else is refused. The user can allow a host while the session runs, outside of it: "
    "clsecure network allow SESSION HOST[:PORT]"
)


def policy_document(shared: Shared, *, port: int | None = None) -> dict[str, object]:
    """Return the policy as it is now.

    :param port: where the gateway is reached inside, None when that is not known.
    """
    policy = shared.live.policy
    base = None if port is None or shared.api is None else f"http://127.0.0.1:{port}"
    return {
        "policy": policy.kind,
        "allow": _rules(policy.allow),
        "deny": _rules(policy.deny),
        "api": {"base": base, "allowed": shared.api is not None},
        "budget": shared.meter.state(),
        "help": HELP,
    }


def _rules(rules: Iterable[NetworkRule]) -> list[dict[str, str]]:
    return [{"host": str(rule.pattern), "where": rule.where} for rule in rules]

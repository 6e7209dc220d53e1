"""The rules of a running session: what it started with, and what the user allowed since then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clsecure.egress.provider import Provider
from clsecure.errors import EgressError
from clsecure.policy import (
    MAX_RULES,
    Decision,
    EgressPolicy,
    NetworkRule,
    covered,
    decide,
    denial_of,
    denied_addresses,
)


def tunnel_warning(provider: Provider, policy: EgressPolicy) -> str | None:
    """Return what to tell the user where the model's API is reached past the inspection, too."""
    if not decide(policy, provider.host, provider.port).allowed:
        return None
    return (
        f"{provider.authority} is among the allowed hosts: what goes there by a tunnel is not inspected, "
        "and may carry another key than yours"
    )


class LivePolicy:
    """Asked at each request, so that what is allowed in between holds from the next one on."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    @property
    def policy(self) -> EgressPolicy:
        """The rules as they are now."""
        return self._policy

    def decide(self, host: str, port: int) -> Decision:
        """Return what the rules say about a target in canonical form."""
        return decide(self._policy, host, port)

    def denied_addresses(self, port: int) -> frozenset[str]:
        """Return the addresses that no name must lead to."""
        return denied_addresses(self._policy, port)

    def allow(self, rules: Iterable[NetworkRule]) -> tuple[NetworkRule, ...]:
        """Add rules; return those that were not there yet.

        :raises EgressError: a denial covers one of them (it would win), or there are too many.
        """
        policy, wanted = self._policy, tuple(rules)
        for rule in wanted:
            denial = denial_of(policy, rule.pattern)
            if denial is not None:
                raise EgressError(
                    f"{rule.pattern} can't be allowed: {denial.pattern} is denied by {denial.where}",
                    resolution="A denial always wins; take it out and start a new session",
                )
            if policy.only is not None and not covered(rule.pattern, policy.only):
                raise EgressError(
                    f"{rule.pattern} can't be allowed: it is beyond what this machine allows",
                    details=f"The ceiling is set by {policy.only_where}.",
                    resolution="ask an administrator",
                )
        known = {rule.pattern for rule in policy.allow}
        new = tuple(rule for rule in wanted if rule.pattern not in known)
        if len(policy.allow) + len(new) > MAX_RULES:
            raise EgressError(f"a session can't have more than {MAX_RULES} allowed hosts")
        self._policy = replace(policy, allow=policy.allow + new)
        return new

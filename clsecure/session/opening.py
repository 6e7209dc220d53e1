"""What a session says at the start of what holds the agent, and of what it reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from clsecure.egress.wire import GatewayConfig
from clsecure.machine.containers import own_engine_misreports
from clsecure.machine.probe import find_program, install_command
from clsecure.model import Credentials, DockerAccess, IsolationMode, NetworkPolicy
from clsecure.policy import HOST_ALIAS, Budget, NetworkRule
from clsecure.session.learn import as_allowed
from clsecure.session.plan import SessionPlan
from clsecure.session.words import human_size, number
from clsecure.terminal import escape

_SHOWN_RULES = 12
_NETWORKS = {
    NetworkPolicy.NONE: "no network",
    NetworkPolicy.API: "the model's API and nothing else",
    NetworkPolicy.ALLOWLIST: "the model's API and the allowed hosts",
    NetworkPolicy.FULL: "the internet, without this machine's and private addresses",
}
_PRIVATE = "the internet and private networks, without this machine's own addresses"


def opening_lines(plan: SessionPlan, gateway: GatewayConfig | None, *, uses_api: bool) -> Iterator[str]:
    """Say what the session reaches, and what the user should know of it.

    :param uses_api: the agent has use for the provider's API.
    """
    yield f"mode {plan.mode}{_engine(plan)}, network: {_headline(plan, gateway, uses_api=uses_api)}"
    if plan.served is not None and uses_api and plan.network is not NetworkPolicy.NONE:
        yield f"the model is served by {plan.served.name}, {escape(plan.served.base_url)}"
    if gateway is None:
        return
    yield from _rules("allowed", gateway.policy.allow)
    yield from _rules("denied", gateway.policy.deny)
    budget = _budget(plan.budget)
    if budget:
        yield f"budget: {budget}; then the network stops"
    if plan.provider_tools and gateway.provider is not None:
        yield "the model's provider may fetch, search and run code for the agent (provider_tools)"
    if gateway.proxies.http or gateway.proxies.https:
        yield (
            "residual: this machine's own proxy is used on the way out: it, not the gateway, resolves names, "
            "so private addresses behind an allowed name are not refused"
        )


def docker_lines(plan: SessionPlan) -> Iterator[str]:
    """Say what of a container engine the agent can use, and what that opens."""
    match plan.docker:
        case DockerAccess.NONE:
            return
        case DockerAccess.OWN:
            images = f", with {', '.join(map(escape, plan.docker_images))}" if plan.docker_images else ""
            yield f"docker: an engine of this session's own{images}; all of it is gone at the end"
            if plan.mode is not IsolationMode.CONTAINER and find_program("docker") is None:
                yield (
                    "docker: no client is inside, the agent has podman --remote only: "
                    f"{install_command('docker')} brings docker"
                )
            if (version := own_engine_misreports()) is not None:
                yield (
                    f"docker: with podman {version} docker run --rm says that all went well, whatever did; "
                    "without --rm, and with compose, the status is right"
                )
            yield (
                "residual R33: that engine makes user namespaces, mounts and network devices of its own, "
                "so more of the kernel is within the agent's reach (not as root of this machine)"
            )
        case DockerAccess.HOST:
            yield "docker: THE ENGINE OF THIS MACHINE (--allow-docker=host)"
            yield (
                "residual R34: that is AS GOOD AS ROOT: whatever is said above and below, the agent can read "
                "and change every file of this machine and reach every network that it has"
            )
        case _:
            assert_never(plan.docker)


def _engine(plan: SessionPlan) -> str:
    if plan.mode is not IsolationMode.CONTAINER:
        return ""
    runtime = f", {escape(plan.runtime)}" if plan.runtime else ""
    return f" ({plan.engine}, image {plan.image}{runtime})"


def _headline(plan: SessionPlan, gateway: GatewayConfig | None, *, uses_api: bool) -> str:
    if plan.network in (NetworkPolicy.NONE, NetworkPolicy.FULL):
        private = plan.network is NetworkPolicy.FULL and plan.allow_private
        return (
            "the internet and private networks, without this machine" if private else _NETWORKS[plan.network]
        )
    api = _api(plan, gateway, uses_api=uses_api)
    if plan.network is NetworkPolicy.API:
        return _NETWORKS[plan.network] if api is None else api
    return _NETWORKS[plan.network] if api is None else f"the allowed hosts; {api}"


def _api(plan: SessionPlan, gateway: GatewayConfig | None, *, uses_api: bool) -> str | None:
    """Say what is to know of the provider's API; None when it is reached as usual."""
    allowlist = plan.network is NetworkPolicy.ALLOWLIST
    if gateway is not None and gateway.credential is not None:
        return None
    if not uses_api:
        return "this agent needs no API" if allowlist else "no network (this agent needs none)"
    match plan.credentials:
        case Credentials.COPY:
            return "the agent holds the key and asks the model's API itself"
        case Credentials.NONE:
            why = "credentials = none"
        case Credentials.INJECT:
            why = "there is no key for the model's API"
    return f"no model's API ({why})" if allowlist else f"no network ({why})"


def _rules(what: str, rules: Sequence[NetworkRule]) -> Iterator[str]:
    # This machine's loopback makes two rules: under its own name, and under the one that works inside.
    inside = {(rule.connect, rule.pattern.port) for rule in rules if rule.connect is not None}
    shown = [rule for rule in rules if rule.connect is None]
    for rule in shown[:_SHOWN_RULES]:
        pattern = rule.pattern
        alias = f", inside as {HOST_ALIAS}:{pattern.port}" if (pattern.host, pattern.port) in inside else ""
        shown_as = as_allowed(pattern) if what == "allowed" else str(pattern)
        yield f"{what}: {escape(shown_as)} ({escape(rule.where)}{alias})"
    if len(shown) > _SHOWN_RULES:
        yield f"{what}: and {len(shown) - _SHOWN_RULES} more (all of them: clsecure --dry-run)"


def _budget(budget: Budget) -> str:
    parts = [
        None if budget.requests is None else number(budget.requests, "request"),
        None if budget.bytes is None else human_size(budget.bytes),
        None if budget.tokens is None else number(budget.tokens, "token"),
    ]
    return ", ".join(part for part in parts if part)

"""How a setup goes out: through the session's own network, or through one that ends with the setup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from clsecure.egress.client import Gateway, start_gateway
from clsecure.egress.proxies import host_proxies
from clsecure.egress.wire import GatewayConfig
from clsecure.model import DockerAccess, NetworkPolicy, SandboxSpec
from clsecure.policy import EgressPolicy
from clsecure.session.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNetwork:
    """What of the session's own network there is to be used.

    :param namespace: descriptor of the network namespace of a full network.
    """

    gateway: Gateway | None
    namespace: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How programs of the setup go out.

    :param gateway: serves the listening socket that the spec asks for; None where there is none.
    :param tool_env: variables that tell the tools inside where the user's registries are.
    """

    spec: SandboxSpec
    gateway: Gateway | None
    tool_env: Mapping[str, str]


@contextmanager
def way_out(context: Context, spec: SandboxSpec, session: SessionNetwork) -> Iterator[Way]:
    """Give the way out that the plan has for the setup; one of its own ends with it.

    :raises BackendUnavailableError: there is no way to a full network here.
    """
    plan, policy = context.plan, context.plan.setup_policy
    if policy is None:
        # With a full network programs go out by themselves; a gateway is for the API alone then.
        gateway = None if plan.network is NetworkPolicy.FULL else session.gateway
        spec = replace(
            spec,
            listener=gateway is not None,
            gateway_token=gateway.token if gateway is not None else None,
            network=plan.network,
            network_namespace=session.namespace,
            allow_private=plan.allow_private,
        )
        yield Way(spec=spec, gateway=gateway, tool_env=plan.tool_env)
        return
    spec = replace(
        spec,
        listener=False,
        gateway_token=None,
        network=policy.kind,
        network_namespace=None,
        allow_private=False,
    )
    match policy.kind:
        case NetworkPolicy.NONE:
            yield Way(spec=spec, gateway=None, tool_env={})
        case NetworkPolicy.FULL:
            from clsecure.egress.full import FullNetwork

            with FullNetwork() as network:
                if spec.docker is DockerAccess.OWN:
                    # What its containers send would go past what holds the full network.
                    spec = replace(spec, docker=DockerAccess.NONE, workspace=None)
                yield Way(spec=replace(spec, network_namespace=network.namespace), gateway=None, tool_env={})
        case NetworkPolicy.API | NetworkPolicy.ALLOWLIST:
            with start_gateway(_gateway_config(context, policy)) as gateway:
                spec = replace(spec, listener=True, gateway_token=gateway.token)
                yield Way(spec=spec, gateway=gateway, tool_env=plan.setup_tool_env)
                totals = gateway.close()
            if totals.denied:
                context.warn(
                    f"setup: {totals.denied} of {totals.requests} requests were refused "
                    f"(setup_network; see {egress_log(context)})"
                )


def egress_log(context: Context) -> Path:
    """Return the file with the requests to a gateway of the setup's own."""
    return context.place.path / "setup-egress.jsonl"


def _gateway_config(context: Context, policy: EgressPolicy) -> GatewayConfig:
    """Return what a gateway of the setup's own is started with: never the model's key."""
    return GatewayConfig(
        provider=None,
        credential=None,
        policy=policy,
        budget=replace(context.plan.budget, tokens=None),
        proxies=host_proxies(context.around.environ),
        log=egress_log(context),
        session=context.place.path.name,
    )

"""The network of a session: what its gateway is started with, and who holds which credential."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clsecure import logs
from clsecure.agents.environment import cloud_credentials
from clsecure.egress.live import tunnel_warning
from clsecure.egress.provider import (
    Credential,
    Provider,
    find_credential,
    find_provider,
    table_credential,
)
from clsecure.egress.proxies import host_proxies
from clsecure.egress.wire import GatewayConfig
from clsecure.errors import EgressError, UsageError
from clsecure.model import Credentials, NetworkPolicy
from clsecure.policy import HOST_ALIAS, LOOPBACK_NAMES, Budget, EgressPolicy, allow_rules, host_and_port
from clsecure.session.context import Context

COPY_WARNING = (
    "the key itself is inside the sandbox (credentials = copy): whatever runs there can read it, "
    "and send it wherever the session's network leads"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """What a session needs for its network.

    :param gateway: what the gateway is started with; None where there is no use for one.
    :param given: variables with credentials that the agent itself holds.
    :param models: variables that name the provider's models; None leaves those of the user's environment.
    """

    gateway: GatewayConfig | None = None
    given: Mapping[str, str] = field(repr=False, default_factory=dict)
    models: Mapping[str, str] | None = None

    @property
    def variable(self) -> str | None:
        """Under which variable the credential is known outside that the gateway puts in."""
        if self.gateway is None or self.gateway.credential is None:
            return None
        return self.gateway.credential.variable

    @property
    def api_host(self) -> str | None:
        """The host of the API that the gateway asks with the user's credential."""
        provider = self.gateway and self.gateway.provider
        return provider.host if provider else None


def arrange(context: Context) -> Arrangement:
    """Decide about the session's network; warn of what the user should know at the start.

    :raises EgressError: there is no credential where the agent needs one, or something can't be used.
    :raises UsageError: there is a budget, and a network without a gateway that could count.
    """
    plan = context.plan
    arrangement = replace(_arrange(context), models=_models(context))
    if arrangement.gateway is None and plan.network is NetworkPolicy.FULL and plan.budget != Budget():
        raise UsageError(
            "the budget can't be kept: this session has no gateway that could count",
            details="Nothing of it goes through clsecure: it has the full network and no key of yours.",
            resolution="--budget none",
        )
    return arrangement


def _arrange(context: Context) -> Arrangement:
    plan = context.plan
    if plan.network is NetworkPolicy.NONE:
        return Arrangement()
    if context.agent.base_url_env is None:
        return Arrangement(
            gateway=_gateway(context, plan.policy) if plan.network is NetworkPolicy.ALLOWLIST else None
        )
    match plan.credentials:
        case Credentials.INJECT:
            credential = _credential(context)
            # With a full network there is another way out: the gateway is for the API alone then.
            if credential is None and plan.network is NetworkPolicy.FULL:
                return Arrangement()
            gateway = _gateway(context, plan.policy, credential)
            _warn_of_tunnel(context, gateway)
            return Arrangement(gateway=gateway)
        case Credentials.COPY:
            given, secrets, policy = _copied(context)
        case Credentials.NONE:
            given, secrets, policy = {}, (), plan.policy
    full = plan.network is NetworkPolicy.FULL
    return Arrangement(gateway=None if full else _gateway(context, policy, hidden=secrets), given=given)


def _models(context: Context) -> dict[str, str] | None:
    """Return what makes the agent ask another provider than Anthropic for its models."""
    served, agent = context.plan.served, context.agent
    if served is None:
        return None
    names = {agent.model_env[role]: name for role, name in served.models.items() if role in agent.model_env}
    if served.timeout_ms is not None and agent.timeout_env is not None:
        names[agent.timeout_env] = str(served.timeout_ms)
    return names


def _gateway(
    context: Context,
    policy: EgressPolicy,
    credential: Credential | None = None,
    *,
    hidden: tuple[str, ...] = (),
) -> GatewayConfig:
    plan = context.plan
    return GatewayConfig(
        provider=_provider(context) if credential is not None else None,
        credential=credential,
        policy=policy,
        budget=plan.budget,
        proxies=host_proxies(context.around.environ),
        log=context.place.egress_log,
        control=context.place.egress_control,
        session=context.place.path.name,
        hidden=hidden,
    )


def _warn_of_tunnel(context: Context, gateway: GatewayConfig) -> None:
    """Say so where the model's API is reached past the inspection, too; a rule may mean more than it says."""
    warning = gateway.provider and tunnel_warning(gateway.provider, gateway.policy)
    if warning:
        context.warn(warning)


def _provider(context: Context) -> Provider:
    plan = context.plan
    provider = find_provider(context.around.environ, base_url=plan.base_url, served=plan.served)
    return replace(provider, provider_tools=plan.provider_tools)


def _credential(context: Context) -> Credential | None:
    """Return the user's credential; None where there is none and the session can do without."""
    environ, agent, served = context.around.environ, context.agent, context.plan.served
    if served is None:
        credential = find_credential(environ, context.around.home)
    else:
        # Nothing of the environment's that is Anthropic's or a cloud's: a key goes to its own provider alone.
        from clsecure.egress.keys import provider_key

        exclude = (context.repository.top,)
        key = provider_key(served, environ=environ, home=context.around.home, exclude=exclude, ui=context.ui)
        credential = table_credential(served, key)
    if credential is None and context.runs_agent:
        cloud = next((name for name in agent.clouds if environ.get(name)), None)
        raise EgressError(
            f"there is no key for {agent.title}",
            details=cloud and f"{cloud} is set: requests to that provider are signed by the agent itself.",
            resolution="Let the agent hold its credentials: --credentials copy"
            if cloud
            else "Set ANTHROPIC_API_KEY, log in with `claude`, or run `claude setup-token` and "
            "set CLAUDE_CODE_OAUTH_TOKEN",
        )
    if credential is None:
        context.warn("no key for the model's API was found: the session does not reach it")
    elif credential.variable not in agent.token_env:
        raise EgressError(
            f"{agent.title} has no use for a credential from {credential.variable}",
            resolution="Set ANTHROPIC_API_KEY, or choose another provider: --provider NAME",
        )
    elif credential.value:
        logs.register_secret(credential.value)
    return credential


def _copied(context: Context) -> tuple[dict[str, str], tuple[str, ...], EgressPolicy]:
    """Return the variables that open the API for whoever has them, what of them nothing may log, the policy.

    A cloud's hosts are not known here: the user allows them.
    """
    plan, agent = context.plan, context.agent
    cloud = None if plan.served else cloud_credentials(context.around.environ, agent.clouds)
    if cloud is not None:
        for secret in cloud.secrets:
            logs.register_secret(secret)
        context.warn(COPY_WARNING)
        return dict(cloud.env), cloud.secrets, plan.policy
    credential = _credential(context)
    if credential is None:
        return {}, (), plan.policy
    value = credential.current()
    logs.register_secret(value)
    context.warn(COPY_WARNING)
    provider = _provider(context)
    # The gateway puts a key in where it is public only over TLS; here it can't hold anybody to that.
    if not provider.tls and provider.host not in LOOPBACK_NAMES:
        context.warn(f"the key goes to {provider.host} in the clear: the API's address is plain http")
    rules = allow_rules(host_and_port(provider.host, provider.port), where="credentials = copy")
    given = {agent.copied_env or credential.variable: value}
    named = provider.user_named or plan.served is not None or agent.copied_env is not None
    if named and agent.base_url_env is not None:
        # What is this machine's loopback outside has another name inside.
        alias = provider.host in LOOPBACK_NAMES and plan.network is not NetworkPolicy.FULL
        authority = f"{HOST_ALIAS}:{provider.port}" if alias else provider.authority
        scheme = "https" if provider.tls else "http"
        given[agent.base_url_env] = f"{scheme}://{authority}{provider.prefix}"
    return given, (value,), replace(plan.policy, allow=(*plan.policy.allow, *rules))

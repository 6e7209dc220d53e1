"""What all connections of a gateway have in common."""

from __future__ import annotations

from dataclasses import dataclass

from clsecure.egress.addresses import Resolver, Target
from clsecure.egress.budget import Meter
from clsecure.egress.dialer import Dialer, Line, tls_context
from clsecure.egress.events import EventLog
from clsecure.egress.live import LivePolicy
from clsecure.egress.provider import Credential, Provider
from clsecure.egress.tunnel import Buffers
from clsecure.egress.upstream import Connect
from clsecure.egress.wire import GatewayConfig, Limits


@dataclass(slots=True, kw_only=True)
class Share:
    """Something that is bounded for all clients together: bytes of request bodies in memory, tunnels."""

    left: int

    def take(self, size: int) -> bool:
        """Reserve, unless that is too much."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """Release."""
        self.left += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The model provider's API, what opens it, and the way there."""

    provider: Provider
    credential: Credential
    connect: Connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all connections of a gateway have in common.

    :param session: how the user calls it.
    :param api: None when the session has no credential, so that every API request is refused.
    :param live: what else may be reached, through the gateway as a proxy.
    :param meter: asked before anything is passed on.
    :param buffered: bytes of request bodies in memory.
    """

    token: str
    session: str
    api: Api | None
    live: LivePolicy
    meter: Meter
    dialer: Dialer
    limits: Limits
    log: EventLog
    buffered: Share
    tunnels: Share
    buffers: Buffers


def make_shared(
    config: GatewayConfig, *, token: str, log: EventLog, resolve: Resolver | None = None
) -> Shared:
    """Return what a gateway with this configuration works with.

    :raises EgressError: certificate authorities or the machine's own proxy can't be used.
    """
    limits = config.limits
    dialer = Dialer(limits, proxies=config.proxies, resolve=resolve)
    api = None
    if config.provider is not None and config.credential is not None:
        # Its own, so that no other name can keep it waiting.
        own = Dialer(limits, proxies=config.proxies, resolve=resolve)
        connect = _way_to(config.provider, own)
        api = Api(provider=config.provider, credential=config.credential, connect=connect)
    return Shared(
        token=token,
        session=config.session,
        api=api,
        live=LivePolicy(config.policy),
        meter=Meter(config.budget, log),
        dialer=dialer,
        limits=limits,
        log=log,
        buffered=Share(left=limits.buffered),
        tunnels=Share(left=limits.tunnels),
        buffers=Buffers(),
    )


def _way_to(provider: Provider, dialer: Dialer) -> Connect:
    target = Target(
        host=provider.host,
        port=provider.port,
        may_be_private=provider.user_named,
        must_be_private=not provider.tls,
    )
    tls = tls_context(provider.ca_file) if provider.tls else None

    async def connect() -> Line:
        return await dialer.connect(target, tls=tls)

    return connect

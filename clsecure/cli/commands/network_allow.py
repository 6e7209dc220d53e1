"""``clsecure network allow [SESSION] HOST[:PORT]…``: let a running session reach a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clsecure import logs
from clsecure.cli import render
from clsecure.egress.control import Allowed, allow_live
from clsecure.errors import EgressError, UsageError
from clsecure.model import NetworkPolicy
from clsecure.policy import allow_rules
from clsecure.session.learn import as_allowed
from clsecure.session.store import SessionDirectory, SessionRecord
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui

log = logs.get("network")

_SHOWN_RULES = 40


def execute(
    place: SessionDirectory, record: SessionRecord, hosts: tuple[str, ...], ui: Ui, *, as_json: bool
) -> int:
    """Tell the session's gateway, and write down that it was told."""
    patterns = tuple(_pattern(host) for host in hosts)
    name = place.path.name
    if not place.busy():
        raise UsageError(
            f"session {name} is not running",
            resolution=f"Allow it from the start: clsecure --allow-domain {patterns[0]}",
        )
    if record.network in (NetworkPolicy.NONE, NetworkPolicy.FULL):
        raise UsageError(
            f"session {name} has no list of allowed hosts: its network is {record.network}",
            resolution=f"Start one that has: clsecure --allow-domain {patterns[0]}",
        )
    if not place.egress_control.exists():
        raise UsageError(
            f"session {name} has no gateway that could be told",
            details="It is still starting, or its agent needs no API and nothing was allowed at its start.",
            resolution=f"Start one that has: clsecure --allow-domain {patterns[0]}",
        )
    logs.record(place.events)
    now = Allowed()
    for pattern in patterns:
        try:
            now = allow_live(place.egress_control, pattern)
        except EgressError as error:
            log.warning("network_allow_failed", host=pattern, why=error.brief)
            raise
        log.info("network_allowed", host=pattern)
    if now.warning:
        ui.warn(now.warning)
    if as_json:
        document = {"session_id": record.session_id, "added": patterns, "allowed": now.rules}
        render.write_json(document)
        return 0
    ui.note(f"session {name} may reach from now on: {', '.join(patterns)}")
    allowed = now.rules
    more = f" and {len(allowed) - _SHOWN_RULES} more" if len(allowed) > _SHOWN_RULES else ""
    ui.note(f"all that is allowed now: {', '.join(escape(each) for each in allowed[:_SHOWN_RULES])}{more}")
    ui.note(
        f"for this session only; to keep it, put into your settings: allow_domains = {', '.join(patterns)}"
    )
    return 0


def _pattern(host: str) -> str:
    """Return a host as settings write it.

    :raises UsageError: it is none.
    """
    try:
        return as_allowed(allow_rules(host, where="")[0].pattern)
    except ValueError as error:
        raise UsageError(
            f"a host {error}", details=f"it was {host[:200]!r}", resolution="see: clsecure network --help"
        ) from None

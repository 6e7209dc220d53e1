"""What a session says of its network at the end: what was asked for, what was blocked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clsecure import logs
from clsecure.egress.journal import Denials, Journal, denials
from clsecure.egress.wire import EgressTotals
from clsecure.errors import EgressError
from clsecure.session.context import Context
from clsecure.session.learn import API_HINT, API_HOST, suggestion
from clsecure.session.result import EgressResult
from clsecure.session.words import human_size, number
from clsecure.terminal import escape

log = logs.get("session")

_SHOWN_HOSTS = 10
_SHOWN_NAME = 80
_TIMES = "\N{MULTIPLICATION SIGN}"


def report(context: Context, totals: EgressTotals, *, api_host: str | None = None) -> EgressResult:
    """Say what went through the session's gateway, which has ended; return it for the result.

    :param api_host: of the API behind the gateway: a tunnel past the gateway's eyes is not proposed.
    """
    place = context.place
    if not totals.complete:
        context.warn("the gateway ended during the session: the agent had no network from then on")
    for warning in totals.warnings:
        # What the gateway lacks on this machine was said at the start.
        if warning not in context.warnings:
            context.warn(warning)
    refused = refused_in(place.egress_log) if totals.denied else Denials()
    for line in closing_lines(totals, refused, name=place.path.name, api_host=api_host):
        context.ui.note(line)
    log.info("network_ended", requests=totals.requests, denied=totals.denied, complete=totals.complete)
    return EgressResult(
        policy=context.plan.network.value,
        requests=totals.requests,
        denied=totals.denied,
        bytes_in=totals.bytes_in,
        bytes_out=totals.bytes_out,
        tokens=totals.tokens,
        hosts=tuple(replace(host, host=escape(host.host)) for host in totals.hosts),
        warnings=totals.warnings,
        complete=totals.complete,
    )


def refused_in(log: Path) -> Denials:
    """Return what was refused in the last run; nothing where the log can't be read."""
    try:
        with Journal(log) as journal:
            return denials(journal.requests())
    except EgressError:
        return Denials()


def closing_lines(
    totals: EgressTotals, refused: Denials, *, name: str, api_host: str | None = None
) -> Iterator[str]:
    """Say what was asked for; nothing where nothing was.

    :param name: of the session, for the commands that tell more.
    """
    yield from _blocked(refused.hosts, name, {API_HOST, api_host})
    if refused.rules:
        yield f"refused by the gateway: {', '.join(_by_rule(refused.rules))}"
    if totals.requests:
        tokens = "" if totals.tokens is None else f", {number(totals.tokens, 'token')}"
        yield (
            f"network: {number(totals.requests, 'request')}, {totals.denied:,} denied, "
            f"{human_size(totals.bytes_in)} in, {human_size(totals.bytes_out)} out{tokens}"
            f"{'' if totals.complete else ' (what the log has of it)'}"
        )


def _blocked(hosts: Counter[tuple[str, int]], name: str, apis: set[str | None]) -> Iterator[str]:
    ordered = sorted(hosts.items(), key=lambda item: (-item[1], item[0]))
    for (host, port), count in ordered[:_SHOWN_HOSTS]:
        allowed_by = suggestion(host, port)
        hint = f" — allow with --allow-domain {allowed_by}" if allowed_by else ""
        if host in apis:
            hint = f" ({API_HINT})"
        yield f"blocked: {shown_host(host)}:{port} {_TIMES}{count}{hint}"
    if len(ordered) > _SHOWN_HOSTS:
        yield f"…and {len(ordered) - _SHOWN_HOSTS} more: clsecure network learn {name}"


def _by_rule(rules: Counter[str]) -> Iterator[str]:
    for rule, count in sorted(rules.items(), key=lambda item: (-item[1], item[0])):
        hint = " (--provider-tools allows it)" if rule in ("provider-tools", "url-source") else ""
        yield f"{escape(rule)} {_TIMES}{count}{hint}"


def shown_host(host: str) -> str:
    """Return a name that an agent made up, fit for a line of ours."""
    text = escape(host)
    return text if len(text) <= _SHOWN_NAME else f"{text[:_SHOWN_NAME]}…"

"""What a session came to, as the JSON result says it (docs/result.schema.json). Keys are stable."""

from __future__ import annotations

from dataclasses import dataclass, field

from clsecure.egress.wire import HostTotals
from clsecure.model import ImportResult
from clsecure.session.limits import LimitResult


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressResult:
    """What went through the session's gateway.

    :param hosts: the targets, most requests first; names are escaped for printing.
    :param complete: False when the gateway died: what its log says, then.
    """

    policy: str
    requests: int
    denied: int
    bytes_in: int
    bytes_out: int
    tokens: int | None
    hosts: tuple[HostTotals, ...] = ()
    warnings: tuple[str, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """The one JSON document of a session.

    :param duration_s: seconds from the start to the end of everything.
    :param phases: name to seconds.
    :param import_: ``import`` in the document.
    :param egress: None when there was no gateway.
    :param limits: name to what held.
    :param kept: the session waits: its work, or a part of it, was not imported.
    """

    session_id: str
    project: str
    session: str
    mode: str
    network: str
    worker_user: str
    agent: str
    exit_code: int
    base_commit: str | None
    base_tree: str | None
    duration_s: float
    phases: dict[str, float] = field(default_factory=dict)
    egress: EgressResult | None = None
    limits: dict[str, LimitResult] = field(default_factory=dict)
    import_: ImportResult | None = None
    kept: bool = False
    warnings: tuple[str, ...] = ()

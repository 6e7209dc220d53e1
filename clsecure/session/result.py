"""What a session came to, as the JSON result says it (docs/result.schema.json). Keys are stable."""

from __future__ import annotations

from dataclasses import dataclass, field

from clsecure.model import ImportResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """The one JSON document of a session.

    :param duration_s: seconds from the start to the end of everything.
    :param phases: name to seconds.
    :param import_: ``import`` in the document.
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
    import_: ImportResult | None = None
    kept: bool = False
    warnings: tuple[str, ...] = ()

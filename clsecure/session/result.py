"""What a session came to, as the JSON result says it (docs/result.schema.json). Keys are stable."""

from __future__ import annotations

from dataclasses import dataclass, field

from clsecure.egress.wire import HostTotals
from clsecure.model import CheckResult, ContainerSpec, ImportResult, Verification
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
class SetupStep:
    """One thing that was done in a fresh workspace before the agent.

    :param name: ``script`` for the user's, or the package manager's.
    :param status: ``ok``, ``failed``, ``timeout``, or ``missing``: the package manager is not there inside.
    :param exit_code: None where there is none.
    :param log: the file with all of its output.
    """

    name: str
    status: str
    exit_code: int | None
    duration_s: float
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerResult:
    """What a session in container mode ran in.

    :param image: the image's name; ``image_id`` is what ran, ``sha256:`` and the digest of its configuration.
    :param runtime: the OCI runtime that was asked for, None for the engine's own.
    """

    engine: str
    image: str
    image_id: str
    runtime: str | None = None

    @classmethod
    def of(cls, container: ContainerSpec) -> ContainerResult:
        """Return what there is to say of a container."""
        image = container.image
        return cls(
            engine=container.engine.value,
            image=image.name,
            image_id=image.image_id,
            runtime=container.runtime,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResult:
    """Whether the isolation held.

    :param status: ``passed``, or ``failed`` where a check did: then nothing is imported.
    :param checks: in the order in which they looked. Of those that look again and again while the agent runs
        the first word is here, or the first failure.
    :param failed_before: what failed in earlier runs of the same workspace, a line each: it still counts.
    """

    status: str
    checks: tuple[CheckResult, ...] = ()
    failed_before: tuple[str, ...] = ()

    @classmethod
    def of(cls, verification: Verification, failed_before: tuple[str, ...] = ()) -> VerificationResult:
        """Return what there is to say."""
        broken = verification.failed or failed_before
        return cls(
            status="failed" if broken else "passed", checks=verification.checks, failed_before=failed_before
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordResult:
    """The signed record of a session.

    :param sha256: of the file.
    :param keyids: who signed it, clsecure's own key first.
    """

    path: str
    sha256: str
    keyids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """The one JSON document of a session.

    :param duration_s: seconds from the start to the end of everything.
    :param phases: name to seconds.
    :param import_: ``import`` in the document.
    :param setup: what was done in a fresh workspace; empty otherwise.
    :param egress: None when there was no gateway.
    :param limits: name to what held.
    :param docker: what of a container engine the agent could use: ``none``, ``own`` or ``host``.
    :param container: None in other modes.
    :param exit_code: the agent's, 124 when its time was over, 123 when a check of the isolation failed.
    :param kept: the session waits: its work, or a part of it, was not imported.
    :param record: None when it could not be written; a warning says why then.
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
    setup: tuple[SetupStep, ...] = ()
    egress: EgressResult | None = None
    limits: dict[str, LimitResult] = field(default_factory=dict)
    docker: str = "none"
    container: ContainerResult | None = None
    verification: VerificationResult | None = None
    import_: ImportResult | None = None
    kept: bool = False
    record: RecordResult | None = None
    warnings: tuple[str, ...] = ()

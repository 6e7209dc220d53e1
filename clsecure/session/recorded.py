"""What a record says, piece by piece: values of a session as JSON (docs/record.schema.json). Pure.

Everything is bounded, and nothing in it is a secret: of a command that the user gave, only the program's name
is said and a hash of all its words, since people put keys into them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from clsecure import logs
from clsecure.model import CheckStatus
from clsecure.terminal import escape
from clsecure.verify.checks import described_one

if TYPE_CHECKING:
    from clsecure.importer.values import Review
    from clsecure.model import ImportResult, SandboxSpec, Verification
    from clsecure.session.plan import SessionPlan
    from clsecure.session.store import SessionRecord

MAX_FILES = 500
MAX_COMMITS = 500
MAX_ITEMS = 500
MAX_EVENTS = 1000
MAX_CHECKS = 1000
MAX_TEXT = 2000
_USER_INFORMATION = re.compile(r"(?<=://)[^/@]*@")

Json = dict[str, object]


def plan_of(plan: SessionPlan) -> Json:
    """Return what the session was to be."""
    return {
        "mode": plan.mode.value,
        "engine": plan.engine.value if plan.mode.value == "container" else None,
        "runtime": plan.runtime,
        "image": plan.image if plan.mode.value == "container" else None,
        "docker": plan.docker.value,
        "docker_images": list(plan.docker_images),
        "network": plan.network.value,
        "allow": [str(rule.pattern) for rule in plan.policy.allow[:MAX_ITEMS]],
        "deny": [str(rule.pattern) for rule in plan.policy.deny[:MAX_ITEMS]],
        "allow_private": plan.allow_private,
        "provider": plan.provider,
        "provider_tools": plan.provider_tools,
        "base_url": plan.base_url,
        "credential_handling": plan.credentials.value,
        "budget": asdict(plan.budget),
        "agent": plan.agent,
        "command": _command(plan),
        "mounts": [
            {"source": str(m.source), "target": str(m.target), "read_only": m.read_only}
            for m in plan.mounts[:MAX_ITEMS]
        ],
        "limits": asdict(plan.limits),
        "time_limit_s": None if plan.time_limit is None else plan.time_limit.total_seconds(),
        "setup_script": None if plan.setup_script is None else str(plan.setup_script),
        "install_dependencies": plan.install_dependencies,
        "full_clone": plan.full_clone,
        "on_finish": plan.on_finish.value,
    }


def _command(plan: SessionPlan) -> Json | None:
    """Say what ran in the agent's place: never its words, in which there may be secrets."""
    if plan.shell:
        return {"program": "shell", "arguments": 0, "sha256": None}
    if plan.command is None:
        return None
    words = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in plan.command)
    return {
        "program": PurePath(plan.command[0]).name,
        "arguments": len(plan.command) - 1,
        "sha256": hashlib.sha256(words).hexdigest(),
    }


def sandbox_of(spec: SandboxSpec) -> Json:
    """Return what it was made from: the digests of agent and image, and what bounds it."""
    container = spec.container
    return {
        "mode": spec.mode.value,
        "worker_user": spec.account.name,
        "worker_uid": spec.account.uid,
        "network": spec.network.value,
        "program": None if spec.program is None else asdict(spec.program),
        "image": None
        if container is None
        else {
            "name": container.image.name,
            "id": container.image.image_id,
            "agents": dict(container.image.agents),
            "programs": dict(container.image.programs),
        },
        "engine": None if container is None else container.engine.value,
        "runtime": None if container is None else container.runtime,
        "limits": asdict(spec.limits),
    }


def work_of(seen: Review) -> Json:
    """Return what the agent did: its commits and files, by escaped name, bounded."""
    files, commits = MAX_FILES, MAX_COMMITS
    units = []
    for unit in seen.units[:MAX_ITEMS]:
        units.append(
            {
                "path": unit.path,
                "commit_count": unit.commit_count,
                "commits": [asdict(commit) for commit in unit.commits[:commits]],
                "uncommitted": unit.uncommitted,
                "rewritten": unit.rewritten,
                "files_changed": unit.files_changed,
                "added": unit.added,
                "deleted": unit.deleted,
                "insertions": unit.insertions,
                "deletions": unit.deletions,
                "files": [{"path": change.path, "status": change.status} for change in unit.changes[:files]],
                "other_refs": list(unit.other_refs[:MAX_ITEMS]),
            }
        )
        files -= len(unit.changes[:files])
        commits -= len(unit.commits[:commits])
    return {"units": units, "refused": list(seen.refused[:MAX_ITEMS])}


def findings_of(seen: Review) -> list[Json]:
    """Return what to look at, the worst first."""
    order = {"high": 0, "warning": 1, "info": 2}
    worst = sorted(seen.findings, key=lambda finding: order[finding.severity.value])
    return [asdict(finding) for finding in worst[:MAX_ITEMS]]


def verification_of(verification: Verification, failed_before: tuple[str, ...] = ()) -> Json:
    """Return how the isolation stood, in the words of the table of checks.

    :param failed_before: what failed in earlier runs of the workspace, a line each.
    """
    from clsecure.verify.table import ALL_CHECKS

    known = {check.check_id: check for check in ALL_CHECKS}
    # Where there are too many, the failures are not what is left out.
    checks = sorted(verification.checks, key=lambda check: check not in verification.failed)[:MAX_CHECKS]
    return {
        "checks": [
            {
                **asdict(check),
                "property": known[check.check_id].property if check.check_id in known else "",
                "residuals": list(known[check.check_id].residuals) if check.check_id in known else [],
            }
            for check in (verification.checks if len(checks) == len(verification.checks) else checks)
        ],
        "failed": len(verification.failed),
        "failed_before": list(failed_before[:MAX_ITEMS]),
        "import_anyway": verification.import_anyway,
    }


def failed_besides(lines: Iterable[str], checks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what failed of a session besides the checks that a record holds: in another run, or later.

    :param lines: all that failed, as :func:`.checks.all_failed` returns it.
    :param checks: of the record, as :func:`verification_of` returns them.
    """
    failed = [check for check in checks if check["status"] == CheckStatus.FAIL]
    own = {described_one(check["check_id"], check["expected"], check["observed"]) for check in failed}
    return [line for line in lines if line not in own and escape(line) not in own][:MAX_ITEMS]


def subject_of(
    session_id: str, base: SessionRecord, imported: ImportResult | None, seen: Review | None
) -> list[Json]:
    """Return what the record is about: each branch that was made, else the session itself."""
    if imported is None:
        digest = hashlib.sha256(session_id.encode("ascii")).hexdigest()
        return [{"name": session_id, "digest": {"sha256": digest}}]
    listed = {
        unit.path: [commit.id for commit in unit.commits[:MAX_COMMITS]]
        for unit in (seen.units if seen else ())
    }
    top = _branch(
        imported.branch,
        "",
        (imported.tip, imported.tree),
        (base.base_commit or "", base.base_tree or ""),
        listed.get("", []),
    )
    return [
        top,
        *(
            _branch(
                unit.branch,
                unit.path,
                (unit.tip, unit.tree),
                (unit.base_commit, unit.base_tree),
                listed.get(unit.path, []),
            )
            for unit in imported.submodules
        ),
    ]


def _branch(branch: str, path: str, tip: tuple[str, str], base: tuple[str, str], commits: list[str]) -> Json:
    return {
        "name": f"{path}:{branch}" if path else branch,
        "digest": {"gitCommit": tip[0], "gitTree": tip[1]},
        "annotations": {
            "branch": branch,
            "path": path,
            "base_commit": base[0],
            "base_tree": base[1],
            "commits": commits,
        },
    }


def timeline() -> list[Json]:
    """Return what this process logged, without the fields."""
    return [
        {"at": stamp(at), "level": level, "room": room, "event": event}
        for at, level, room, event in logs.seen()
        if level != "debug"
    ]


def stamp(at: float) -> str:
    """Return a moment as the event log writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def said(value: object) -> object:
    """Return a piece as JSON: enumerations as words, texts bounded, escaped and without secrets."""
    return _bounded(logs.redact(_plain(value)))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key).removesuffix("_"): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value


def _bounded(value: object) -> object:
    if isinstance(value, str):
        text = _USER_INFORMATION.sub("***@", escape(value[: 2 * MAX_TEXT]))
        return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    if isinstance(value, dict):
        return {escape(str(key))[:MAX_TEXT]: _bounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_bounded(item) for item in value]
    return value

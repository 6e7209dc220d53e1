"""A record with every part that a record can have, made by hand."""

from __future__ import annotations

from typing import Any

from clsecure.audit import envelope

SESSION_ID = "20260101-000000-0123456789ab"
COMMIT, TREE, BASE = "a1" * 20, "b2" * 20, "c3" * 20
AT = "2026-01-01T00:00:00.000+00:00"


def sample(
    text: str = "words", *, commit: str = COMMIT, tree: str = TREE, project: str = "/p"
) -> dict[str, Any]:
    """Return a statement; every text that could be somebody else's is ``text``."""
    limits = {"memory": 1 << 30, "cpus": None, "pids": 100, "disk": None, "open_files": None}
    check = {
        "check_id": "uids",
        "vantage": "host",
        "phase": "start",
        "expected": text,
        "observed": text,
        "property": text,
        "residuals": ["R1"],
    }
    counts = {"requests": 3, "denied": 1, "bytes_in": 5000, "bytes_out": 10}
    unit = {
        "path": text, "commit_count": 9, "uncommitted": True, "rewritten": True, "files_changed": 7,
        "added": 1, "deleted": 0, "insertions": 3, "deletions": None, "other_refs": [text],
        "commits": [{"id": commit, "subject": text, "author": text, "committer": text,
                     "author_time": 0, "commit_time": -1}],
        "files": [{"path": text, "status": "A"}, {"path": f"dir/{text}", "status": "M"}],
    }  # fmt: skip
    predicate = {
        "session": {"id": SESSION_ID, "name": text, "project": project, "place": "p-0123456789ab",
                    "mode": "namespace", "network": "full", "agent": text, "worker_user": text,
                    "workspace_made": AT, "base_commit": BASE, "base_tree": BASE, "resumed": False},
        "complete": True,
        "exit_code": 0,
        "decisions": [{"at": AT, "action": "import", "kept": False, "branch": text, "tip": commit}],
        "timeline": [{"at": AT, "level": "warning", "room": text, "event": text}],
        "event_log": {"lines": 3, "sha256": "d4" * 32, "broken": None, "torn": []},
        "plan": {"mode": "namespace", "engine": None, "runtime": text, "image": None, "docker": "host",
                 "docker_images": [text], "network": "full", "allow": [text], "deny": [text],
                 "allow_private": False, "provider": text, "provider_tools": False, "base_url": text,
                 "credential_handling": "inject", "budget": {"requests": 1, "bytes": None, "tokens": None},
                 "agent": text, "command": {"program": text, "arguments": 2, "sha256": "e5" * 32},
                 "mounts": [{"source": text, "target": text, "read_only": False}], "limits": limits,
                 "time_limit_s": 3.5, "setup_script": text, "install_dependencies": True, "full_clone": False,
                 "on_finish": "import"},
        "sandbox": {"mode": "namespace", "worker_user": text, "worker_uid": 1001, "network": "full",
                    "program": {"name": text, "sha256": "f6" * 32, "version": text},
                    "image": {"name": text, "id": text, "agents": {"claude": text},
                              "programs": {"claude": text}},
                    "engine": text, "runtime": None, "limits": limits},
        "host": {"kernel": text, "machine": text, "distribution": text, "clsecure": text, "python": text,
                 "programs": {"git": text, "firejail": None}},
        "setup": [{"name": text, "status": text, "exit_code": 1, "duration_s": 0.5, "log": text}],
        "limits": {"memory": {"value": 5.0, "enforced_by": text}, "pids": {"value": 5, "enforced_by": None}},
        "network": {"policy": "full", "tokens": None, "complete": False, "warnings": [text],
                    "hosts": [{"host": text, "port": 443, **counts}], **counts},
        "verification": {"failed": 1, "failed_before": [text], "import_anyway": True,
                         "checks": [{**check, "status": status} for status in ("pass", "fail", "skip")]},
        "work": {"units": [unit], "refused": [text]},
        "findings": [{"kind": text, "path": text, "severity": severity, "message": text}
                     for severity in ("high", "warning", "info")],
        "timings": {"duration_s": 3.2, "phases": {text: 1.5}},
        "warnings": [text],
    }  # fmt: skip
    subject = {
        "name": text,
        "digest": {"gitCommit": commit, "gitTree": tree},
        "annotations": {
            "branch": text,
            "path": "",
            "base_commit": BASE,
            "base_tree": BASE,
            "commits": [commit],
        },
    }
    return envelope.statement([subject], predicate)

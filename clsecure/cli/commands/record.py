"""``clsecure record``: show the signed record of a session, or verify it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.actions import RecordAction
from clsecure.cli.commands.diff import project_here
from clsecure.cli.options import Invocation, RecordOptions
from clsecure.errors import EXIT_VERIFICATION, SessionNotFoundError, UsageError
from clsecure.session.store import Store
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.audit.records import Records
    from clsecure.session.proof import Verdict
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Show or verify; 123 where the record does not hold."""
    from clsecure.audit.records import Records

    options = invocation.options
    assert isinstance(options, RecordOptions)  # noqa: S101  # the dispatcher's word
    records, as_json = Records(Store().root), invocation.output is OutputFormat.JSON
    if options.action is RecordAction.SHOW:
        assert options.session is not None  # noqa: S101  # the parser's word
        _show(records, find(records, options.session), ui, as_json=as_json)
        return 0
    return _verify(records, options, ui, as_json=as_json)


def find(records: Records, name: str) -> str:
    """Return the id of the session whose record is meant: the last run of a session that is there, or
    the newest record of one that is gone.

    :raises SessionNotFoundError: there is none, or the name could be several sessions.
    """
    from clsecure.audit.records import is_id

    if is_id(name):
        return name
    try:
        return Store().find(name, project=project_here())[1].session_id
    except SessionNotFoundError as error:
        if "could be" in error.brief:
            raise
        return records.of_name(name)


def _show(records: Records, session_id: str, ui: Ui, *, as_json: bool) -> None:
    from clsecure.cli.report import lines, sections
    from clsecure.session.proof import signatures

    sealed = records.read(session_id)
    proofs = signatures(sealed, Store().root)
    path = records.path(session_id)
    if as_json:
        render.write_json(
            {
                "session_id": session_id,
                "path": path,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "signatures": proofs,
                "statement": sealed.statement,
            }
        )
        return
    render.write("".join(f"{line}\n" for line in lines(sections(sealed.statement, proofs))))
    ui.note(f"the record is {path}")


def _verify(records: Records, options: RecordOptions, ui: Ui, *, as_json: bool) -> int:
    from clsecure.session.proof import Standing, examine

    commit = project = None
    if options.commit is not None:
        project, commit = _commit(options.commit)
        session_id = records.of_commit(commit)
    else:
        assert options.session is not None  # noqa: S101  # the parser's word
        session_id = find(records, options.session)
    verdict = examine(
        records, session_id, state=Store().root, key=options.key, project=project, commit=commit
    )
    if as_json:
        render.write_json(document(verdict))
    else:
        rows = [(proof.what.replace("_", " "), proof.standing.value, proof.words) for proof in verdict.proofs]
        render.write_table(("WHAT", "STANDS", "SEEN"), rows)
        if verdict.holds:
            ui.note(f"the record of session {session_id} holds")
        else:
            broken = [p.what.replace("_", " ") for p in verdict.proofs if p.standing is Standing.BROKEN]
            ui.warn(f"the record of session {session_id} does not hold: {', '.join(dict.fromkeys(broken))}")
    return 0 if verdict.holds else EXIT_VERIFICATION


def document(verdict: Verdict) -> dict[str, object]:
    """Return what was looked at as one document (``docs/record-verify.schema.json``)."""
    return {
        "session_id": verdict.session_id,
        "path": verdict.path,
        "holds": verdict.holds,
        "proofs": verdict.proofs,
    }


def _commit(revision: str) -> tuple[Path, str]:
    """Resolve a revision in the repository where the user stands."""
    from clsecure.git import Git
    from clsecure.workspace.repository import discover

    repository = discover(Path.cwd())
    git = Git(git_dir=repository.git_dir, user_config=True)
    found = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode != 0:
        raise UsageError(f"there is no commit {revision!r} here", resolution="git log --all --oneline")
    return repository.top, found.stdout.decode("ascii").strip()

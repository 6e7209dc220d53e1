"""Every worker and session of this user: the helper's registry joined with the state directory."""

from __future__ import annotations

from dataclasses import dataclass

from clsecure.privileged.client import RegisteredAccount
from clsecure.session.store import SessionDirectory, SessionRecord, SessionStatus, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One session. ``account`` or ``record`` may be missing: a start that was cut short leaves only one.

    :param running: a process works on it now.
    """

    account: RegisteredAccount | None
    place: SessionDirectory
    record: SessionRecord | None
    running: bool

    @property
    def name(self) -> str:
        """What the user calls it in a command."""
        return self.place.path.name

    @property
    def status(self) -> str:
        """For people and JSON."""
        if self.running:
            return "running"
        if self.record is None:
            return "empty"
        if self.record.status is SessionStatus.RUNNING:
            return "interrupted"
        return self.record.status.value

    @property
    def project(self) -> str:
        """Full path of the project."""
        if self.record is not None:
            return self.record.project
        return self.account.project if self.account else ""

    @property
    def session(self) -> str:
        """The session's name."""
        if self.record is not None:
            return self.record.session
        return self.account.session if self.account else ""

    @property
    def holds_work(self) -> bool:
        """Removing it would lose work, or might."""
        return self.record is not None and self.account is not None and self.record.holds_work


def inventory(store: Store, accounts: tuple[RegisteredAccount, ...]) -> tuple[Item, ...]:
    """Join both; sorted by project and session."""
    by_key = {(a.project, a.session): a for a in accounts}
    items = []
    for place in store.all():
        record = place.read()
        if record is None:
            continue
        account = by_key.pop((record.project, record.session), None)
        busy = account.busy if account else place.busy()
        items.append(Item(account=account, place=place, record=record, running=busy))
    for (project, session), account in by_key.items():
        place = store.session(project, session)
        items.append(Item(account=account, place=place, record=None, running=account.busy))
    return tuple(sorted(items, key=lambda item: (item.project, item.session)))

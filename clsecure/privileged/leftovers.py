"""What the helper found left of a session on the machine, as values. Parsed strictly; names are hostile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from clsecure.errors import HelperError

_NAMES = 64
_NAME_LIMIT = 500

_Kind = TypeVar("_Kind", bool, int, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of one kind.

    :param count: how many.
    :param names: the first of them; hostile text.
    :param complete: all of it was looked at; else there may be more than was found.
    """

    count: int = 0
    names: tuple[str, ...] = ()
    complete: bool = True

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Found:
        """Take in what the helper says of one kind."""
        names = said["names"]
        if not isinstance(names, list):
            raise TypeError("names")
        return cls(
            count=max(_typed(said["count"], int), len(names)),
            names=tuple(_typed(name, str)[:_NAME_LIMIT] for name in names[:_NAMES]),
            complete=_typed(said["complete"], bool),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeState:
    """How the worker's home stands.

    :param directory: it is one, not a link to one.
    :param mode: permission bits.
    :param fixed: nobody but root can put another one into its place.
    """

    directory: bool
    uid: int
    gid: int
    mode: int
    fixed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """How the worker's account stands in the machine's own files.

    :param ours: it has the numbers and the home that were made for it.
    :param locked: no password opens it.
    :param expired: nor a key: it is over, and PAM lets nobody in.
    """

    ours: bool
    locked: bool
    expired: bool
    shell: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What is there of a session whose sandbox has ended.

    :param processes: of the worker's uids: pid and name.
    :param mounts: mount points of the machine's that are in the session's places, or show its home.
    :param memory: System V objects, and files in shared memory and message queues.
    :param runtime: the session's directory below /run.
    :param storage: what an engine of its own stored.
    :param control_groups: directories.
    :param scheduled: jobs, lingering, a running manager of user units.
    :param rules: tables of a full network in the machine's own network; looked for only when asked.
    :param groups: groups that the account is in besides its own.
    :param sharers: accounts and groups that have the account's number, or are in its group.
    :param outside: files of its uids in places where everybody may write.
    :param special: in its home, what no home needs: set-id programs, devices, file capabilities, files of
        others.
    :param images: of the user's image store, what is not as it was made.
    """

    processes: Found
    mounts: Found
    memory: Found
    runtime: Found
    storage: Found
    control_groups: Found
    scheduled: Found
    rules: Found
    groups: Found
    sharers: Found
    outside: Found
    special: Found
    images: Found
    account: AccountState
    home: HomeState

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> Leftovers:
        """Take in the helper's whole answer.

        :raises HelperError: it is not of this form.
        """
        kinds = (name for name in cls.__slots__ if name not in ("account", "home"))
        try:
            account, home = said["account"], said["home"]
            return cls(
                **{name: Found.parse(said["found"][name]) for name in kinds},
                account=AccountState(
                    ours=_typed(account["ours"], bool),
                    locked=_typed(account["locked"], bool),
                    expired=_typed(account["expired"], bool),
                    shell=_typed(account["shell"], str)[:_NAME_LIMIT],
                ),
                home=HomeState(
                    directory=_typed(home["directory"], bool),
                    uid=_typed(home["uid"], int),
                    gid=_typed(home["gid"], int),
                    mode=_typed(home["mode"], int),
                    fixed=_typed(home["fixed"], bool),
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise HelperError("the helper's answer is malformed", details=str(error)) from error


def _typed(value: object, kind: type[_Kind]) -> _Kind:
    """Return a value of exactly that type: a truth value is no number."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.100} is not of type {kind.__name__}")
    return value

"""What commands do that are told so by their first word."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionWords:
    """What one action of a command takes.

    :param usage: its arguments, for people.
    :param most: None for any number.
    :param session: the first argument names a session.
    """

    usage: str
    help: str
    least: int = 1
    most: int | None = 1
    session: bool = True


class NetworkAction(StrEnum):
    """What ``clsecure network`` can do."""

    CHECK = "check"
    WATCH = "watch"
    ALLOW = "allow"
    LEARN = "learn"


class ImagesAction(StrEnum):
    """What ``clsecure images`` can do."""

    LIST = "list"
    BUILD = "build"
    LOAD = "load"
    SAVE = "save"
    PRUNE = "prune"


class RecordAction(StrEnum):
    """What ``clsecure record`` can do."""

    SHOW = "show"
    VERIFY = "verify"


NETWORK_ACTIONS = {
    NetworkAction.CHECK: ActionWords(
        usage="URL|HOST[:PORT]", help="would a session reach it here, and which rule says so", session=False
    ),
    NetworkAction.WATCH: ActionWords(
        usage="[SESSION]", help="show the requests of a running session as they come", least=0
    ),
    NetworkAction.ALLOW: ActionWords(
        usage="[SESSION] HOST[:PORT]…", help="let a running session reach a host", most=None
    ),
    NetworkAction.LEARN: ActionWords(
        usage="[SESSION]", help="turn what was denied to a session into a list to review", least=0
    ),
}

IMAGES_ACTIONS = {
    ImagesAction.LIST: ActionWords(usage="", help="show the images, and where they are", least=0, most=0),
    ImagesAction.BUILD: ActionWords(
        usage="[NAME…]", help="build images from their locks and load them", least=0, most=None
    ),
    ImagesAction.LOAD: ActionWords(usage="NAME|FILE", help="load a built image, or a saved one"),
    ImagesAction.SAVE: ActionWords(usage="NAME FILE", help="write an image into a file", least=2, most=2),
    ImagesAction.PRUNE: ActionWords(
        usage="", help="remove images that no lock names any more", least=0, most=0
    ),
}

RECORD_ACTIONS = {
    RecordAction.SHOW: ActionWords(usage="SESSION", help="print what the record says"),
    RecordAction.VERIFY: ActionWords(
        usage="SESSION|--commit REV",
        help="does its signature hold, and is it about what is in the repository",
        least=0,
    ),
}

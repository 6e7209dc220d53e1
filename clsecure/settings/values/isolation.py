"""What a session is isolated by: its mode, its engine and image, and the engine that it is given."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from clsecure.model import DockerAccess, Engine, IsolationMode
from clsecure.settings.values.paths import clean
from clsecure.settings.values.words import choice, items, switch

AUTO = "auto"

DEFAULT_IMAGE = "worker"
"""The worker image where nobody says another."""

_RUNTIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_REFERENCE = 512
# Source: github.com/distribution/reference; no IPv6 address as a host.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoMode:
    """The strongest mode that works on the machine where a session starts.

    :param at_least: no weaker one than this.
    """

    at_least: IsolationMode = field(default=IsolationMode.USER, compare=False)

    def __str__(self) -> str:
        """Return it as it is written."""
        return AUTO


def mode(text: str) -> IsolationMode | AutoMode:
    """Read an isolation mode, or ``auto``."""
    if text.strip().lower() == AUTO:
        return AutoMode()
    try:
        return isolation_mode(text)
    except ValueError:
        raise ValueError("must be user, namespace, container or auto") from None


def isolation_mode(text: str) -> IsolationMode:
    """Read a mode by its own name."""
    return choice(IsolationMode, text)


def engine(text: str) -> Engine:
    """Read what runs containers."""
    return choice(Engine, text)


def runtime(text: str) -> str | None:
    """Read an OCI runtime, a name or an absolute path; ``none`` leaves it to the engine."""
    word = text.strip()
    if word.lower() == "none":
        return None
    if _RUNTIME.fullmatch(word):
        return word
    if not word.startswith("/") or not word.isprintable() or len(clean(word).parts) < 2:
        raise ValueError("must be the name of an OCI runtime, or the absolute path of one")
    return os.fspath(clean(word))


def image(text: str) -> str:
    """Read the name of a worker image."""
    if not _IMAGE.fullmatch(text.strip()):
        raise ValueError(
            "must be the name of a worker image: 1 to 64 lower-case letters, digits, '.', '_' or '-'"
        )
    return text.strip()


def docker(text: str) -> DockerAccess:
    """Read what of a container engine the agent can use; the predecessor's true is the session's own."""
    return switch(DockerAccess, text, on=DockerAccess.OWN, off=DockerAccess.NONE)


def docker_images(text: str) -> tuple[str, ...]:
    """Read references of images, ``[HOST[:PORT]/]NAME[:TAG][@sha256:…]``, commas between several."""
    names = tuple(dict.fromkeys(items(text)))
    if not all(len(name) <= _MAX_REFERENCE and _REFERENCE.fullmatch(name) for name in names):
        raise ValueError("must be references of images such as postgres:16 or ghcr.io/org/name:1.2")
    return names

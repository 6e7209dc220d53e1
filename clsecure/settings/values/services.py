"""Services that are called for a session: their address, and the user's key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from clsecure.model import Credentials
from clsecure.settings.values.words import choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A value that nothing shows."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        """Return what is shown in its place."""
        return "********"


def credentials(text: str) -> Credentials:
    """Read what becomes of the user's credential."""
    return choice(Credentials, text)


def secret(text: str) -> Secret:
    """Read a key. What is refused is never shown."""
    if not re.fullmatch(r"[\x21-\x7e]{1,16384}", text.strip()):
        raise ValueError("must be one word of printable ASCII characters")
    return Secret(value=text.strip())


def base_url(text: str) -> str:
    """Read the address of a provider's API, without a closing slash."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise ValueError("is not an address") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError("must be an address such as https://host[:port][/path]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password: keys come from the environment")
    if parts.query or parts.fragment or not re.fullmatch(r"[\x21-\x7e]+", text.strip()):
        raise ValueError("must have neither query, fragment, spaces nor non-ASCII characters")
    return text.strip().rstrip("/")


def image_registry(text: str) -> str:
    """Read the address of a registry, with the path below which images lie; without a closing slash."""
    address = base_url(text)
    if not re.fullmatch(r"(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", urlsplit(address).path):
        raise ValueError("must be https://host[:port][/path], the path in the small letters of a repository")
    return address


def image_mirror(text: str) -> str:
    """Read the address of a mirror of Debian, without a closing slash."""
    return base_url(text)

"""Where Debian's packages come from: the mirror that the user named, or that apt of this machine uses."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from urllib.parse import urlsplit

from clsecure import process
from clsecure.errors import ToolError
from clsecure.process import Command

DEFAULT = "https://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A mirror of Debian.

    :param security: where its security updates lie; None where nobody knows.
    """

    main: str
    security: str | None

    def sources(self, suite: str) -> str:
        """Return apt's list of sources."""
        rows = [(self.main, suite), (self.main, f"{suite}-updates")]
        if self.security is not None:
            rows.append((self.security, f"{suite}-security"))
        return "".join(f"deb [signed-by={KEYRING}] {url} {name} main\n" for url, name in rows)


def choose_mirror(named: str | None) -> Mirror:
    """Return the mirror to use.

    :param named: by the user, such as one day of snapshot.debian.org; None for the machine's own.
    """
    if named is not None:
        return Mirror(main=named, security=_security_of(named))
    found = _apt_sources()
    main = next((url for url in found if _last(url) == "debian"), None)
    if main is None:
        return Mirror(main=DEFAULT, security=_security_of(DEFAULT))
    security = next((url for url in found if _last(url) == "debian-security"), None)
    if security is None and urlsplit(main).hostname == urlsplit(DEFAULT).hostname:
        security = _security_of(main)  # there it is, whether this machine asks for it or not
    return Mirror(main=main, security=security)


def _security_of(main: str) -> str | None:
    """``…/archive/debian/20260101T000000Z`` has its security updates in ``…/archive/debian-security/…``."""
    head, slash, tail = main.rpartition("/debian")
    if not slash or (tail and not tail.startswith("/")):
        return None
    return f"{head}/debian-security{tail}"


def _apt_sources() -> tuple[str, ...]:
    """Return the addresses in apt's sources, in whichever of its formats they are written."""
    try:
        asked = process.run(
            Command(argv=("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"))
        )
    except ToolError:
        return ()
    return tuple(dict.fromkeys(url.rstrip("/") for url in asked.stdout.decode("utf-8", "replace").split()))


def _last(url: str) -> str:
    return posixpath.basename(urlsplit(url).path.rstrip("/"))

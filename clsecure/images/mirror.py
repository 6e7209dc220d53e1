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

_SEPARATOR = "\t"
_RELEASES = {
    *("oldstable", "stable", "testing", "unstable", "sid"),
    *("bullseye", "bookworm", "trixie", "forky", "duke"),
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    """One source that apt of this machine knows.

    :param origin: what the repository itself says it is; apt's own word for it where nobody knows.
    """

    url: str
    origin: str
    release: str
    component: str

    @property
    def is_debians(self) -> bool:
        """Whether it is Debian's own: others have repositories with such an address, too."""
        if self.origin and not self.origin.startswith("$("):
            return self.origin == "Debian"
        return self.component == "main" and self.release.partition("-")[0] in _RELEASES


def choose_mirror(named: str | None) -> Mirror:
    """Return the mirror to use.

    :param named: by the user, such as one day of snapshot.debian.org; None for the machine's own.
    """
    if named is not None:
        return Mirror(main=named, security=_security_of(named))
    found = [each for each in _apt_sources() if each.is_debians]
    main = next((each.url for each in found if _last(each.url) == "debian"), None)
    if main is None:
        return Mirror(main=DEFAULT, security=_security_of(DEFAULT))
    security = next((each.url for each in found if _last(each.url) == "debian-security"), None)
    if security is None and urlsplit(main).hostname == urlsplit(DEFAULT).hostname:
        security = _security_of(main)  # there it is, whether this machine asks for it or not
    return Mirror(main=main, security=security)


def _security_of(main: str) -> str | None:
    """``…/archive/debian/20260101T000000Z`` has its security updates in ``…/archive/debian-security/…``."""
    head, slash, tail = main.rpartition("/debian")
    if not slash or (tail and not tail.startswith("/")):
        return None
    return f"{head}/debian-security{tail}"


def _apt_sources() -> tuple[AptSource, ...]:
    """Return apt's sources, in whichever of its formats they are written."""
    form = _SEPARATOR.join(("$(REPO_URI)", "$(ORIGIN)", "$(RELEASE)", "$(COMPONENT)"))
    try:
        asked = process.run(
            Command(argv=("apt-get", "indextargets", "--format", form, "Created-By: Packages"))
        )
    except ToolError:
        return ()
    rows = [line.split(_SEPARATOR) for line in asked.stdout.decode("utf-8", "replace").splitlines()]
    return tuple(
        AptSource(url=row[0].rstrip("/"), origin=row[1], release=row[2], component=row[3])
        for row in rows
        if len(row) == 4
    )


def _last(url: str) -> str:
    return posixpath.basename(urlsplit(url).path.rstrip("/"))

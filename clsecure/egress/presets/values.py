"""What presets are resolved from, and to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.egress.presets.files import is_inside
from clsecure.egress.presets.urls import BY_HAND, ToolUrl
from clsecure.errors import EgressError
from clsecure.policy import HOST_ALIAS, NetworkRule, allow_rules

_MAX_WHERE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whose configuration is read.

    :param environ: the user's environment.
    :param home: the user's home.
    :param repository: the user's repository: its remotes count for ``git-remote``, and no program and no file
        that the environment names counts inside it.
    :param system: where the machine's configuration is found; ``/`` but in tests.
    """

    environ: Mapping[str, str] = field(repr=False)
    home: Path
    repository: Path | None
    system: Path = Path("/")

    @property
    def config_home(self) -> Path:
        """The user's directory of configuration files; a relative one is none, as its specification says."""
        relative = not self.environ.get("XDG_CONFIG_HOME", "").startswith("/")
        named = None if relative else named_path("xdg_config_home", self)
        return named or self.home / ".config"


def named_path(variable: str, person: Person) -> Path | None:
    """Return the file or directory that a variable of the user's environment names, None for none.

    :param variable: its name in lower case; how it is written does not matter.
    :raises EgressError: the path is relative or inside the repository, whose word does not count here.
    """
    for name, value in person.environ.items():
        if name.lower() != variable or not value:
            continue
        if not value.startswith("/") or is_inside(Path(value), person.repository):
            raise EgressError(
                f"{name} must name an absolute path outside of the repository", resolution=BY_HAND
            )
        return Path(value)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One preset, resolved.

    :param rules: exact hosts and ports; ``where`` says which configuration named each.
    :param env: variables that make the tools inside use the same hosts, without secrets.
    :param notes: what the user should know, one sentence each.
    """

    name: str
    rules: tuple[NetworkRule, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Collection:
    """A preset in the making."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.env: dict[str, str] = {}
        self._rules: dict[tuple[str, int | None], NetworkRule] = {}
        self._notes: dict[str, None] = {}

    def add(self, url: ToolUrl, where: str) -> None:
        """Allow a URL's host and port; who named it first is remembered."""
        short = where if len(where) <= _MAX_WHERE else f"{where[:_MAX_WHERE]}…"
        for rule in allow_rules(url.target, where=f"preset {self.name} ({short})"):
            self._rules.setdefault((rule.pattern.host, rule.pattern.port), rule)
        if url.credentials:
            self.note_credentials(url)
        if url.query:
            self.note(f"the query of the URL for {url.target} stays outside")
        if url.loopback:
            self.note(f"{url.target} is called {HOST_ALIAS}:{url.pattern.port} inside")
            if url.scheme == "https":
                self.note(f"the certificate of {url.target} must be valid for {HOST_ALIAS}, too")

    def certificates(self, path: str, *, variable: str, where: str) -> None:
        """Name the user's file of certificates to a tool inside, which sees /etc and /usr as they are."""
        if path.startswith(("/etc/", "/usr/")) and path.isprintable():
            self.env[variable] = path
        else:
            self.note(f"the certificates that {where} names are not known inside; mount them with --mount")

    def note(self, text: str) -> None:
        """Say something to the user, once."""
        self._notes[text] = None

    def note_credentials(self, url: ToolUrl) -> None:
        """Say that what opens a registry does not go in."""
        self.note(f"the credentials for {url.target} stay outside; it must serve without them")

    def finish(self, *, looked_at: Sequence[str]) -> Preset:
        """Return the preset.

        :param looked_at: for the error: where hosts could have been found.
        :raises EgressError: no host was found.
        """
        if not self._rules:
            raise EgressError(
                f"The preset {self.name} found no host",
                details=f"Looked at: {', '.join(looked_at)}",
                resolution="Name the hosts with --allow-domain HOST[:PORT]",
            )
        return Preset(
            name=self.name,
            rules=tuple(self._rules.values()),
            env=self.env,
            notes=tuple(self._notes),
        )

"""From names to presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clsecure.egress.presets.values import Person, Preset
from clsecure.errors import EgressError, UsageError

NAMES = ("npm", "pip", "apt", "cargo", "go", "git-remote", "docker")

_FINDERS: Mapping[str, Callable[[Person], Preset]] = {}


def resolve(
    names: Sequence[str], *, environ: Mapping[str, str], home: Path, repository_top: Path | None
) -> tuple[Preset, ...]:
    """Return the presets of these names, each once, in the order of :data:`NAMES`.

    :param environ: the user's environment.
    :param home: the user's home.
    :param repository_top: the user's repository: its remotes count for ``git-remote``, and no program inside
        it is run.
    :raises UsageError: a name is none of :data:`NAMES`.
    :raises EgressError: a preset found no host, or a configuration that can't be read.
    """
    person = Person(environ=environ, home=home, repository=repository_top)
    for name in names:
        if name not in NAMES:
            raise UsageError(f"there is no preset {name!r}", resolution=f"Use one of: {', '.join(NAMES)}")
    return tuple(_find(name, person) for name in NAMES if name in names)


def _find(name: str, person: Person) -> Preset:
    finder = _FINDERS.get(name)
    if finder is None:
        raise EgressError(
            f"the preset {name} is not finished", resolution="Name its hosts with --allow-domain HOST[:PORT]"
        )
    return finder(person)

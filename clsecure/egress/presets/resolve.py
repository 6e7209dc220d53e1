"""From names to presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clsecure.egress.presets import apt, cargo, docker, git_remote, go, npm, pip
from clsecure.egress.presets.values import Person, Preset
from clsecure.errors import UsageError

_FINDERS: Mapping[str, Callable[[Person], Preset]] = {
    "npm": npm.find,
    "pip": pip.find,
    "apt": apt.find,
    "cargo": cargo.find,
    "go": go.find,
    "git-remote": git_remote.find,
    "docker": docker.find,
}

NAMES = tuple(_FINDERS)


def resolve(
    names: Sequence[str],
    *,
    environ: Mapping[str, str],
    home: Path,
    repository_top: Path | None,
    system: Path = Path("/"),
) -> tuple[Preset, ...]:
    """Return the presets of these names, each once, in the order of :data:`NAMES`.

    :param environ: the user's environment.
    :param home: the user's home.
    :param repository_top: the user's repository: its remotes count for ``git-remote``, and no program and no
        file that the environment names counts inside it.
    :param system: where the machine's configuration is found.
    :raises UsageError: a name is none of :data:`NAMES`.
    :raises EgressError: a preset found no host, or a configuration that can't be read.
    """
    for name in names:
        if name not in _FINDERS:
            raise UsageError(f"There is no preset {name!r}", resolution=f"Use one of: {', '.join(NAMES)}")
    wanted = [find for name, find in _FINDERS.items() if name in names]
    person = Person(environ=environ, home=home, repository=repository_top, system=system)
    if not wanted:
        return ()
    # Tools answer slowly, and each knows nothing of the others.
    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        return tuple(pool.map(lambda find: find(person), wanted))

"""A person for whom some files of the machine are others.

Each program of theirs starts in a mount namespace of its own, where these lie over the machine's. The machine
itself stays as it is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tests.support.person import Person

_START = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 126; shift 2; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlaidPerson(Person):
    """``over``: file of the machine to the one that is seen in its place."""

    over: Mapping[str, Path]

    def spawn(
        self,
        argv: list[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,  # what Popen takes
    ) -> subprocess.Popen[bytes]:
        """Start a program as the person; its process id is the one that is returned."""
        layers = [word for there, ours in self.over.items() for word in (str(ours), there)]
        groups = ",".join(map(str, self.groups)) or str(self.gid)
        who = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", f"--groups={groups}", "--", *argv]
        return subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", _START, "sh", *layers, "--", *who],
            cwd=cwd or self.home,
            env=self.environment(env),
            umask=0o022,
            start_new_session=True,
            **options,
        )


def overlaid(person: Person, over: Mapping[str, Path]) -> OverlaidPerson:
    """Return the same person on such a machine."""
    return OverlaidPerson(**{each.name: getattr(person, each.name) for each in fields(Person)}, over=over)

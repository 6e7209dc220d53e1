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

_START = """while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 126; shift 2; done; shift
{{ {first}
}} || exit 126; exec "$@\""""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlaidPerson(Person):
    """``over``: file of the machine to the one that is seen in its place.

    :param first: shell commands of root's, in the same namespaces, when that lies there.
    :param own_network: the namespaces are a network's as well, with nothing in it.
    """

    over: Mapping[str, Path]
    first: str = ""
    own_network: bool = False

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
        spaces = ["--mount", "--propagation=private", *(["--net"] if self.own_network else [])]
        script = _START.format(first=self.first or ":")
        return subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", script, "sh", *layers, "--", *who],
            cwd=cwd or self.home,
            env=self.environment(env),
            umask=0o022,
            start_new_session=True,
            **options,
        )


def overlaid(
    person: Person, over: Mapping[str, Path], *, first: str = "", own_network: bool = False
) -> OverlaidPerson:
    """Return the same person on such a machine."""
    same = {each.name: getattr(person, each.name) for each in fields(Person)}
    return OverlaidPerson(**same, over=over, first=first, own_network=own_network)

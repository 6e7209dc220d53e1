"""Named sets of hosts that the user's own tools are configured for: npm's registry, pip's index, and so on.

No registry's host is written here. What counts is the user's configuration of the tool, and where that says
nothing, what the tool itself answers. The repository's word does not count, but for its git remotes, which
are the user's.
"""

from __future__ import annotations

from clsecure.egress.presets.resolve import NAMES, resolve
from clsecure.egress.presets.values import Preset

__all__ = ["NAMES", "Preset", "resolve"]

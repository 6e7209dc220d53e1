"""What each command takes besides flags."""

from __future__ import annotations

from collections.abc import Mapping

from clsecure.cli.actions import IMAGES_ACTIONS, NETWORK_ACTIONS, RECORD_ACTIONS
from clsecure.cli.verbs import SHELLS, Verb

POSITIONALS: Mapping[Verb, tuple[tuple[str, str | None, str], ...]] = {
    Verb.CLEANUP: (("SESSION", "*", "as 'clsecure list' shows it"),),
    Verb.IMPORT: (("SESSION", None, "as 'clsecure list' shows it"),),
    Verb.VERIFY: (("SESSION", "?", "as 'clsecure list' shows it; none: a sandbox as one started here has"),),
    Verb.COMPLETION: (("SHELL", None, ", ".join(SHELLS)),),
    Verb.DIFF: (("SESSION", None, "as 'clsecure list' shows it"),),
    Verb.AGENT: (("ACTION", None, "install"), ("NAME", None, "claude")),
    Verb.NETWORK: (
        ("ACTION", None, ", ".join(NETWORK_ACTIONS)),
        ("ARGUMENT", "*", "a URL or host to check, else a session, as 'clsecure list' shows it"),
    ),
    Verb.IMAGES: (
        ("ACTION", None, ", ".join(IMAGES_ACTIONS)),
        ("IMAGE", "*", "as 'clsecure images list' shows it, or a file"),
    ),
    Verb.RECORD: (
        ("ACTION", None, ", ".join(RECORD_ACTIONS)),
        ("SESSION", "*", "as 'clsecure list' shows it, or the id of a run"),
    ),
    Verb.REPORT: (("SESSION", None, "as 'clsecure list' shows it, or the id of a run"),),
}

"""The commands: what the command line can do, and what each is called."""

from __future__ import annotations

from enum import StrEnum


class Verb(StrEnum):
    """What the command line can do."""

    RUN = "run"
    LIST = "list"
    CLEANUP = "cleanup"
    IMPORT = "import"
    DIFF = "diff"
    INFO = "info"
    VERIFY = "verify"
    DOCTOR = "doctor"
    SETUP = "setup"
    AGENT = "agent"
    NETWORK = "network"
    IMAGES = "images"
    RECORD = "record"
    REPORT = "report"
    CONFIG = "config"
    COMPLETION = "completion"
    HELP = "help"
    VERSION = "version"


VERB_FLAGS = {
    "--list": Verb.LIST,
    "-l": Verb.LIST,
    "--cleanup": Verb.CLEANUP,
    "--cleanup-all": Verb.CLEANUP,
    "--config": Verb.CONFIG,
    "--info": Verb.INFO,
}
"""The predecessor's spellings of commands."""

COMMANDS = {
    Verb.RUN: "run the agent here (what happens when no command is named)",
    Verb.LIST: "show your workers and sessions  [-l, --list]",
    Verb.CLEANUP: "pick sessions and remove them  [--cleanup, --cleanup-all]",
    Verb.IMPORT: "bring the work of a kept session home as a branch",
    Verb.DIFF: "show the work of a kept session",
    Verb.INFO: "try what the mode really protects on this machine  [--info]",
    Verb.VERIFY: "run the checks of the isolation, of a session or of a mode",
    Verb.DOCTOR: "say what this machine has and lacks for each mode",
    Verb.SETUP: "install the root-owned pieces (reversible)",
    Verb.AGENT: "'agent install claude' fetches Claude Code from npm",
    Verb.CONFIG: "show every setting and where it comes from  [--config]",
    Verb.COMPLETION: "print the completion of a shell: bash, zsh, fish",
    Verb.NETWORK: "check what a session may reach; watch, allow, learn",
    Verb.IMAGES: "list, build, load, save and prune the images of containers",
    Verb.RECORD: "show or verify the signed record of a session",
    Verb.REPORT: "show what a session was, or write it as a page",
}

SHELLS = ("bash", "zsh", "fish")
SOURCES = ("sessions", "names")
"""What the shells' completions ask for."""

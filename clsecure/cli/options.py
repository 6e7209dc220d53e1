"""What a parsed command line becomes: the options of each command, and the invocation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clsecure.cli.actions import ImagesAction, NetworkAction, RecordAction
from clsecure.cli.verbs import Verb
from clsecure.settings.sources import Entry, Layers
from clsecure.settings.values.output import OutputFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One session. What outlives it (mode, network, …) is in the settings.

    :param argv: the command to run instead of the agent.
    :param resume: True for ``--resume``, False for ``--fresh``, None to ask.
    :param branch: the name of the branch that comes home, already judged by git's rules.
    :param message: for the commit of uncommitted work.
    :param yes: the machine's docker is given without a question.
    """

    argv: tuple[str, ...] | None = None
    shell: bool = False
    resume: bool | None = None
    branch: str | None = None
    message: str | None = None
    dry_run: bool = False
    skip_setup: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """Nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupOptions:
    """Which sessions go. None named and not ``everything``: pick on the terminal."""

    sessions: tuple[str, ...] = ()
    everything: bool = False
    yes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Bring a kept session's work home.

    :param anyway: although a check of its isolation failed.
    """

    session: str
    branch: str | None = None
    message: str | None = None
    anyway: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffOptions:
    """Show a kept session's work."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """Nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoOptions:
    """Nothing to say: mode and network are settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Run the checks of the isolation.

    :param session: a kept session; None for a sandbox as one started here would have.
    :param list_checks: only say what is checked.
    :param junit: a file for the results as JUnit XML.
    """

    session: str | None = None
    list_checks: bool = False
    junit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupOptions:
    """Install or remove the root-owned pieces."""

    remove: bool = False
    yes: bool = False
    dry_run: bool = False
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """``agent install NAME``."""

    action: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """``network ACTION ARGUMENT…``.

    :param arguments: checked in number alone: a URL or host of ``check``; else the session, if one is named,
        and for ``allow`` the hosts after it. One word of ``allow`` is a host.
    """

    action: NetworkAction
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesOptions:
    """``images ACTION ARGUMENT…``.

    :param arguments: checked in number alone: names of images, a name or file of ``load``, a name and a file
        of ``save``.
    """

    action: ImagesAction
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """``record ACTION [SESSION]``.

    :param session: None exactly where ``commit`` says which.
    :param commit: a revision of the repository where the user stands.
    :param key: a file with the public key that must have signed; None for clsecure's own.
    """

    action: RecordAction
    session: str | None
    commit: str | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """``report SESSION``.

    :param html: the page to write; None for the terminal.
    """

    session: str
    html: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOptions:
    """Nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """``completion WHAT``: a shell, or one of the sources of the names that the shells offer."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """A text to print: the help or the version."""

    text: str


Options = (
    RunOptions
    | ListOptions
    | CleanupOptions
    | ImportOptions
    | DiffOptions
    | DoctorOptions
    | InfoOptions
    | VerifyOptions
    | SetupOptions
    | AgentOptions
    | NetworkOptions
    | ImagesOptions
    | RecordOptions
    | ReportOptions
    | ConfigOptions
    | CompletionOptions
    | TextOptions
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One command line, checked.

    :param flags: the flags that are settings, strongest layer of :attr:`layers`.
    :param layers: all layers that this command reads; ``settings.model.load`` makes the settings of them.
    :param output: the effective format, whichever layer decided.
    :param verbose: the effective verbosity, whichever layer decided.
    """

    verb: Verb
    options: Options
    flags: tuple[Entry, ...] = ()
    layers: Layers = field(default_factory=Layers)
    output: OutputFormat = OutputFormat.HUMAN
    verbose: bool = False

"""Every flag as one row of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clsecure.cli.verbs import COMMANDS, Verb
from clsecure.settings.values import (
    amounts,
    durations,
    isolation,
    names,
    output,
    paths,
    reach,
    services,
    work,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One flag.

    :param group: its heading in the help.
    :param metavar: what its value is called; None makes it a switch.
    :param optional: its value where it is said without one; another one needs ``=`` before it.
    :param check: reads the value; a ``ValueError`` refuses it.
    :param key: the setting that it sets; a switch sets it to ``text``.
    """

    flags: tuple[str, ...]
    verbs: tuple[Verb, ...]
    group: str
    help: str = ""
    metavar: str | None = None
    optional: str | None = None
    check: Callable[[str], object] | None = None
    key: str | None = None
    text: str = "true"
    repeat: bool = False

    @property
    def name(self) -> str:
        """The long spelling, by which values are found after parsing."""
        return next(flag for flag in self.flags if flag.startswith("--"))


_EVERY = tuple(COMMANDS)
_RUN = (Verb.RUN,)
_PLAN = (Verb.RUN, Verb.CONFIG)
"""What is a setting can be said to ``config`` as well, which shows what would come of it."""
_NETWORK = (*_PLAN, Verb.NETWORK)
"""What decides over the network is said to ``network check`` as well."""
_BOX = (*_PLAN, Verb.INFO, Verb.VERIFY)
_OPEN = (*_NETWORK, Verb.INFO, Verb.VERIFY)
"""What a sandbox is made of can be said to ``info`` and ``verify``, which try one."""
_SESSION, _SANDBOX, _REACH, _END = "session", "isolation", "network", "at the end"
GENERAL = "general"
_ANYWHERE = Path("/")


def _mount(text: str) -> object:
    # Relative sources and ~ are settled later, from the directory of the call; any will do to check the form.
    return paths.mount(text, relative_to=_ANYWHERE, home=_ANYWHERE)


def _allowed(text: str) -> object:
    return reach.allow_domains(text, where="")


def _denied(text: str) -> object:
    return reach.deny_domains(text, where="")


def _user(text: str) -> str:
    if not text or text.startswith("-") or any(c in text for c in "/:,\0\n ") or len(text) > 32:
        raise ValueError("must be the name of a user")
    return text


def _revision(text: str) -> str:
    if not text or text.startswith("-") or not text.isprintable() or len(text) > 250:
        raise ValueError("must be a commit, branch or tag")
    return text


def _file(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("must be a file")
    return text


OPTIONS = (
    Option(flags=("--session", "-s"), verbs=_PLAN, group=_SESSION, metavar="NAME", check=names.session,
           key="session", help="one of several environments of this project"),
    Option(flags=("--agent",), verbs=_PLAN, group=_SESSION, metavar="NAME", check=names.agent,
           key="agent", help="the agent to run: claude, demo, or one of your settings"),
    Option(flags=("--shell",), verbs=_RUN, group=_SESSION, help="a shell instead of the agent"),
    Option(flags=("--resume",), verbs=_RUN, group=_SESSION, help="go on with the kept session"),
    Option(flags=("--fresh",), verbs=_RUN, group=_SESSION, help="start anew; the kept session is removed"),
    Option(flags=("--provider",), verbs=_NETWORK, group=_SESSION, metavar="NAME", check=names.provider,
           key="provider", help="who serves the model: anthropic (default), kimi, or one of your settings"),
    Option(flags=("--install-deps",), verbs=_PLAN, group=_SESSION, key="install_dependencies",
           help="install what the repository's lock files name, inside"),
    Option(flags=("--skip-setup",), verbs=_RUN, group=_SESSION,
           help="run neither your setup script nor the installation"),
    Option(flags=("--full-clone",), verbs=_PLAN, group=_SESSION, key="full_clone",
           help="the whole history instead of 50 commits"),
    Option(flags=("--dry-run",), verbs=_RUN, group=_SESSION, help="print the plan and do nothing"),
    Option(flags=("--mode",), verbs=_BOX, group=_SANDBOX, metavar="MODE",
           check=isolation.mode, key="mode",
           help="namespace (default), user, container, or auto: the strongest that works"),
    Option(flags=("--engine",), verbs=_BOX, group=_SANDBOX, metavar="NAME", check=isolation.engine,
           key="engine", help="of container mode: podman (default) or docker"),
    Option(flags=("--image",), verbs=_BOX, group=_SANDBOX, metavar="NAME", check=isolation.image,
           key="image", help="of container mode: worker (default), worker-minimal, …"),
    Option(flags=("--runtime",), verbs=_BOX, group=_SANDBOX, metavar="NAME|PATH", check=isolation.runtime,
           key="runtime", help="of container mode: the OCI runtime, such as runsc"),
    Option(flags=("--allow-docker",), verbs=_PLAN, group=_SANDBOX, metavar="=host", optional="own",
           check=isolation.docker, key="docker",
           help="a container engine of the session's own; =host: this machine's, as good as root"),
    Option(flags=("--docker-image",), verbs=_PLAN, group=_SANDBOX, metavar="REFERENCE",
           check=isolation.docker_images, key="docker_images", repeat=True,
           help="copy an image of yours into the session's engine; can be repeated"),
    Option(flags=("--no-docker",), verbs=_PLAN, group=_SANDBOX, key="docker", text="none",
           help="no container engine (default)"),
    Option(flags=("--mount",), verbs=_BOX, group=_SANDBOX, metavar="SRC[:DST][:rw]", check=_mount,
           key="mounts", repeat=True,
           help="show a directory or file inside, read-only unless :rw; can be repeated"),
    Option(flags=("--limit",), verbs=_BOX, group=_SANDBOX, metavar="WHAT=N,…", check=amounts.limits,
           key="limits", repeat=True,
           help="most that it may take: memory=4G, cpus=2, pids=512, disk=20G, open_files=4096"),
    Option(flags=("--time-limit",), verbs=_PLAN, group=_SANDBOX, metavar="DURATION",
           check=durations.time_limit, key="time_limit",
           help="end the agent after this time: 90, 90s, 30m, 2h"),
    Option(flags=("--no-network",), verbs=_OPEN, group=_REACH, key="network", text="none",
           help="no network at all, not even the model's API"),
    Option(flags=("--allow-network",), verbs=_OPEN, group=_REACH, key="network", text="full",
           help="the internet, no private addresses (default: the model's API alone)"),
    Option(flags=("--allow-domain",), verbs=_NETWORK, group=_REACH, metavar="HOST[:PORT]",
           check=_allowed, key="allow_domains", repeat=True,
           help="a host besides the model's API, or *.SUB.DOMAIN; port 443 unless said; can be repeated"),
    Option(flags=("--deny-domain",), verbs=_NETWORK, group=_REACH, metavar="HOST[:PORT]", check=_denied,
           key="deny_domains", repeat=True, help="never this host, whatever allows it; can be repeated"),
    Option(flags=("--allow-preset",), verbs=_NETWORK, group=_REACH, metavar="NAME", check=reach.presets,
           key="presets", repeat=True,
           help=f"the hosts that your own tools name: {', '.join(reach.PRESETS)}; can be repeated"),
    Option(flags=("--allow-private",), verbs=_OPEN, group=_REACH, key="allow_private",
           help="with --allow-network: private networks, too"),
    Option(flags=("--provider-tools",), verbs=_NETWORK, group=_REACH, key="provider_tools",
           help="let the model's provider fetch, search and run code for the agent"),
    Option(flags=("--credentials",), verbs=_NETWORK, group=_REACH, metavar="HOW", check=services.credentials,
           key="credentials", help="inject (default: the agent never holds your key), copy or none"),
    Option(flags=("--budget",), verbs=_NETWORK, group=_REACH, metavar="WHAT=N,…", check=amounts.budget,
           key="budget", help="stop the network after requests=N, bytes=N, tokens=N"),
    Option(flags=("--on-finish",), verbs=_PLAN, group=_END, metavar="WHAT", check=work.on_finish,
           key="on_finish", help="ask (default), import, keep or discard; without a terminal ask means keep"),
    Option(flags=("--branch",), verbs=(Verb.RUN, Verb.IMPORT), group=_END, metavar="NAME",
           check=work.branch, help="the branch that comes home (default: claude/…)"),
    Option(flags=("--message",), verbs=(Verb.RUN, Verb.IMPORT), group=_END, metavar="TEXT",
           check=work.message, help="for the commit of uncommitted work"),
    Option(flags=("--commit",), verbs=(Verb.RECORD,), group=_SESSION, metavar="REV", check=_revision,
           help="of 'verify': the record of this imported commit"),
    Option(flags=("--key",), verbs=(Verb.RECORD,), group=_SESSION, metavar="FILE", check=_file,
           help="of 'verify': the public key, PEM or SSH, that must have signed (default: yours)"),
    Option(flags=("--html",), verbs=(Verb.REPORT,), group=_SESSION, metavar="FILE", check=_file,
           help="write one page for a browser, that needs nothing else"),
    Option(flags=("--import-anyway",), verbs=(Verb.IMPORT,), group=_END,
           help="although a check of the isolation failed; asks for the session's tag"),
    Option(flags=("--all",), verbs=(Verb.CLEANUP,), group=_SESSION, help="every session that is not running"),
    Option(flags=("--list-checks",), verbs=(Verb.VERIFY,), group=_SESSION, help="only say what is checked"),
    Option(flags=("--junit",), verbs=(Verb.VERIFY,), group=_SESSION, metavar="FILE",
           help="write the results as JUnit XML, too"),
    Option(flags=("--remove",), verbs=(Verb.SETUP,), group=_SESSION, help="take away what setup installed"),
    Option(flags=("--user",), verbs=(Verb.SETUP,), group=_SESSION, metavar="NAME", check=_user,
           help="who may use clsecure (default: who called sudo)"),
    Option(flags=("--dry-run",), verbs=(Verb.SETUP,), group=_SESSION, help="show the plan and do nothing"),
    Option(flags=("--yes",), verbs=(Verb.CLEANUP, Verb.SETUP), group=_SESSION, help="ask nothing"),
    Option(flags=("--yes",), verbs=_RUN, group=_SANDBOX, help="with --allow-docker=host: don't ask"),
    Option(flags=("--output",), verbs=_EVERY, group=GENERAL, metavar="FORMAT", check=output.output,
           key="output", help="human (default) or json: one document on standard output"),
    Option(flags=("--verbose", "-v"), verbs=_EVERY, group=GENERAL, key="verbose", help="show what happens"),
)  # fmt: skip

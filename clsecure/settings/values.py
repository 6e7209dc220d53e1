"""Readers of single values, for every layer alike: text in, a checked value out, ``ValueError`` otherwise.

Standard library only: the parser of the command line uses them before anything heavy is imported. The
messages never repeat the text that was refused: in a file it may be a secret in the wrong place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

from clsecure.model import (
    Credentials,
    DockerAccess,
    Engine,
    IsolationMode,
    Mount,
    NetworkPolicy,
    OnFinish,
    ResourceLimits,
)
from clsecure.policy import Budget, NetworkRule, allow_rules, deny_rule

PRESETS = ("npm", "pip", "apt", "cargo", "go", "git-remote", "docker")
"""Named sets of hosts that are read from the user's own tools."""

BUDGET_PARTS = tuple(part.name for part in fields(Budget))
LIMIT_PARTS = tuple(part.name for part in fields(ResourceLimits))
NOTIFICATIONS = ("desktop", "bell", "osc9")
"""Ways to call the user: a desktop notification, the terminal's bell, the terminal's own notification."""

DEFAULT_IMAGE = "worker"
"""The worker image where nobody says another."""

MIN_HOOK_SECONDS, MAX_HOOK_SECONDS = 5, 300

MAX_TIME_LIMIT = timedelta(days=30)
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_AGENT = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?")
_TRUE = frozenset({"true", "yes", "1", "on"})
_FALSE = frozenset({"false", "no", "0", "off"})
_BRANCH_REFUSED = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_MAX_BRANCH = 200
_MAX_MESSAGE = 64 * 1024
_MAX_PATH = 4096
_AMOUNT = re.compile(r"([0-9]{1,15})([kmgt]?)")
_MAX_AMOUNT = 1 << 60
_RUNTIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_REFERENCE = 512
# Source: github.com/distribution/reference; no IPv6 address as a host.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)


class OutputFormat(StrEnum):
    """How results are written to standard output."""

    HUMAN = "human"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A value that nothing shows."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        """Return what is shown in its place."""
        return "********"


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoMode:
    """The strongest mode that works on the machine where a session starts.

    :param at_least: no weaker one than this.
    """

    at_least: IsolationMode = field(default=IsolationMode.USER, compare=False)

    def __str__(self) -> str:
        """Return it as it is written."""
        return AUTO


AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupNetwork:
    """What the setup script and the installation of dependencies may reach.

    :param kind: None for the session's own policy.
    :param allow: with ``ALLOWLIST``, these hosts.
    :param presets: with ``ALLOWLIST``, the hosts of these presets.
    """

    kind: NetworkPolicy | None = None
    allow: tuple[NetworkRule, ...] = ()
    presets: tuple[str, ...] = ()


_Member = TypeVar("_Member", bound=StrEnum)


def boolean(text: str) -> bool:
    """Read the predecessor's spellings of a truth value."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("must be true or false (yes, no, 1 and 0 are understood)")


def _choice(kind: type[_Member], text: str) -> _Member:
    try:
        return kind(text.strip().lower())
    except ValueError:
        names = [member.value for member in kind]
        raise ValueError(f"must be {', '.join(names[:-1])} or {names[-1]}") from None


def _switch(kind: type[_Member], text: str, *, on: _Member, off: _Member) -> _Member:
    """Read a member of a set that the predecessor knew as true and false."""
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return on if word in _TRUE else off
    try:
        return _choice(kind, word)
    except ValueError as error:
        raise ValueError(f"{error} (true is {on.value}, false is {off.value})") from None


def mode(text: str) -> IsolationMode | AutoMode:
    """Read an isolation mode, or ``auto``."""
    if text.strip().lower() == AUTO:
        return AutoMode()
    try:
        return isolation_mode(text)
    except ValueError:
        raise ValueError("must be user, namespace, container or auto") from None


def isolation_mode(text: str) -> IsolationMode:
    """Read a mode by its own name."""
    return _choice(IsolationMode, text)


def engine(text: str) -> Engine:
    """Read what runs containers."""
    return _choice(Engine, text)


def runtime(text: str) -> str | None:
    """Read an OCI runtime, a name or an absolute path; ``none`` leaves it to the engine."""
    word = text.strip()
    if word.lower() == "none":
        return None
    if _RUNTIME.fullmatch(word):
        return word
    if not word.startswith("/") or not word.isprintable() or len(_clean(word).parts) < 2:
        raise ValueError("must be the name of an OCI runtime, or the absolute path of one")
    return os.fspath(_clean(word))


def image(text: str) -> str:
    """Read the name of a worker image."""
    if not _IMAGE.fullmatch(text.strip()):
        raise ValueError(
            "must be the name of a worker image: 1 to 64 lower-case letters, digits, '.', '_' or '-'"
        )
    return text.strip()


def docker(text: str) -> DockerAccess:
    """Read what of a container engine the agent can use; the predecessor's true is the session's own."""
    return _switch(DockerAccess, text, on=DockerAccess.OWN, off=DockerAccess.NONE)


def docker_images(text: str) -> tuple[str, ...]:
    """Read references of images, ``[HOST[:PORT]/]NAME[:TAG][@sha256:…]``, commas between several."""
    names = tuple(dict.fromkeys(items(text)))
    if not all(len(name) <= _MAX_REFERENCE and _REFERENCE.fullmatch(name) for name in names):
        raise ValueError("must be references of images such as postgres:16 or ghcr.io/org/name:1.2")
    return names


def on_finish(text: str) -> OnFinish:
    """Read what happens with the work at the end."""
    return _choice(OnFinish, text)


def output(text: str) -> OutputFormat:
    """Read an output format."""
    return _choice(OutputFormat, text)


def network(text: str) -> NetworkPolicy:
    """Read a network policy; the predecessor's true is the full network, its false our default."""
    return _switch(NetworkPolicy, text, on=NetworkPolicy.FULL, off=NetworkPolicy.API)


def credentials(text: str) -> Credentials:
    """Read what becomes of the user's credential."""
    return _choice(Credentials, text)


def items(text: str) -> tuple[str, ...]:
    """Part a list at its commas. An empty item is an error: something may be missing there."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise ValueError("must not be empty, nor have an empty item between commas")
    return parts


def allow_domains(text: str, *, where: str) -> tuple[NetworkRule, ...]:
    """Read hosts that are allowed: ``HOST[:PORT]`` or ``*.SUB.DOMAIN[:PORT]``, commas between several."""
    return tuple(rule for item in items(text) for rule in allow_rules(item, where=where))


def deny_domains(text: str, *, where: str) -> tuple[NetworkRule, ...]:
    """Read hosts that are denied, in the same form; without a port all ports of the host."""
    return tuple(deny_rule(item, where=where) for item in items(text))


def presets(text: str) -> tuple[str, ...]:
    """Read names of presets, commas between several."""
    names = tuple(dict.fromkeys(item.lower() for item in items(text)))
    if not set(names) <= set(PRESETS):
        raise ValueError(f"must be one or more of {', '.join(PRESETS)}")
    return names


def budget(text: str) -> Mapping[str, int | None]:
    """Read ``requests=500,bytes=2G,tokens=1M``, each part at most once; ``none`` is no bound.

    A part that is not named stays what a weaker layer says of it.
    """
    if text.strip().lower() == "none":
        return dict.fromkeys(BUDGET_PARTS)
    parts: dict[str, int | None] = {}
    for item in items(text):
        name, equals, amount = (word.strip().lower() for word in item.partition("="))
        if not equals or name not in BUDGET_PARTS or name in parts:
            raise ValueError("must be such as requests=500,bytes=2G,tokens=1M, each at most once")
        parts[name] = budget_part(name, amount)
    return parts


def budget_part(name: str, text: str) -> int | None:
    """Read one bound: K, M, G and T count by 1024 for bytes, by 1000 for all else; ``none`` is no bound."""
    word = text.strip().lower()
    if word == "none":
        return None
    match = _AMOUNT.fullmatch(word)
    if match is None:
        raise ValueError(f"must have a whole number for {name}, with K, M, G or T after it, or none")
    amount = int(match[1]) * int((1024 if name == "bytes" else 1000) ** " kmgt".index(match[2] or " "))
    if not 0 < amount <= _MAX_AMOUNT:
        raise ValueError(f"must leave more than nothing for {name}: --no-network is no request at all")
    return amount


def limits(text: str) -> Mapping[str, int | float]:
    """Read ``memory=4G,cpus=2,pids=512,disk=20G,open_files=4096``, each at most once; ``none`` is no limit.

    A part that is not named stays what a weaker layer says of it.
    """
    if text.strip().lower() == "none":
        return dict.fromkeys(LIMIT_PARTS, 0)
    parts: dict[str, int | float] = {}
    for item in items(text):
        name, equals, amount = (word.strip().lower() for word in item.partition("="))
        name = name.replace("-", "_")
        if not equals or name not in LIMIT_PARTS or name in parts:
            raise ValueError(
                "must be such as memory=4G,cpus=2,pids=512,disk=20G,open_files=4096, each at most once"
            )
        parts[name] = limit_part(name, amount)
    return parts


_LEAST = {"memory": 64 << 20, "pids": 16, "disk": 1 << 20, "open_files": 64}
_CPUS = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,3})?")


def limit_part(name: str, text: str) -> int | float:
    """Read one limit: K, M, G and T count by 1024 for memory and disk, by 1000 else; 0 for ``none``."""
    word = text.strip().lower()
    if word == "none":
        return 0
    if name == "cpus":
        if not _CPUS.fullmatch(word) or not 0.01 <= float(word) <= 10_000:
            raise ValueError("must have a number of processors for cpus, such as 2 or 0.5, or none")
        return float(word)
    match = _AMOUNT.fullmatch(word)
    if match is None:
        raise ValueError(f"must have a whole number for {name}, with K, M, G or T after it, or none")
    power = " kmgt".index(match[2] or " ")
    amount = int(match[1]) * int((1024 if name in {"memory", "disk"} else 1000) ** power)
    if not _LEAST[name] <= amount <= _MAX_AMOUNT:
        raise ValueError(f"must have at least {_LEAST[name]} for {name}, or nothing could run")
    return amount


def cleanup_hook_timeout(text: str) -> int:
    """Read how many seconds a cleanup hook may take."""
    word = text.strip().lower().removesuffix("s")
    if not re.fullmatch(r"[0-9]{1,4}", word) or not MIN_HOOK_SECONDS <= int(word) <= MAX_HOOK_SECONDS:
        raise ValueError(f"must be a number of seconds from {MIN_HOOK_SECONDS} to {MAX_HOOK_SECONDS}")
    return int(word)


def provider(text: str) -> str:
    """Read the name of a provider; which ones there are is known where the tables are."""
    if not _AGENT.fullmatch(text.strip().lower()):
        raise ValueError("must be 1 to 32 lower-case letters, digits or dashes, a letter first")
    return text.strip().lower()


def secret(text: str) -> Secret:
    """Read a key. What is refused is never shown."""
    if not re.fullmatch(r"[\x21-\x7e]{1,16384}", text.strip()):
        raise ValueError("must be one word of printable ASCII characters")
    return Secret(value=text.strip())


def own_path(text: str, *, home: Path | None = None) -> Path:
    """Read a file of the user's: absolute, or in the home with ``~/`` before it."""
    return _source(text.strip(), relative_to=None, home=home)


def setup_network(text: str, *, where: str) -> SetupNetwork:
    """Read ``session``, ``none``, ``api``, ``full``, or hosts and presets with commas between them."""
    word = text.strip().lower()
    if word == "session":
        return SetupNetwork()
    if word in {"none", "api", "full"}:
        return SetupNetwork(kind=NetworkPolicy(word))
    names = items(text)
    return SetupNetwork(
        kind=NetworkPolicy.ALLOWLIST,
        allow=tuple(
            rule for name in names if name.lower() not in PRESETS for rule in allow_rules(name, where=where)
        ),
        presets=tuple(name.lower() for name in names if name.lower() in PRESETS),
    )


def notify(text: str) -> tuple[str, ...]:
    """Read how the user is called: ``desktop``, ``bell``, ``osc9``, commas between several, or ``none``."""
    if text.strip().lower() == "none":
        return ()
    names = tuple(dict.fromkeys(item.lower() for item in items(text)))
    if not set(names) <= set(NOTIFICATIONS):
        raise ValueError(f"must be none, or one or more of {', '.join(NOTIFICATIONS)}")
    return names


def notify_after(text: str) -> timedelta:
    """Read how long a session must have taken before its end is worth a call."""
    limit = time_limit(text) if text.strip() != "0" else timedelta(0)
    if limit is None:
        raise ValueError("must be a duration such as 30s, 5m or 0")
    return limit


def session(text: str) -> str:
    """Read the name of a session."""
    if not _SESSION.fullmatch(text):
        raise ValueError(
            "must be 1 to 32 letters, digits, dots, dashes or underscores, a letter or digit first"
        )
    return text


def agent(text: str) -> str:
    """Read the name of an agent."""
    if not _AGENT.fullmatch(text):
        raise ValueError("must be 1 to 32 lower-case letters, digits or dashes, a letter first")
    return text


def time_limit(text: str) -> timedelta | None:
    """Read ``90``, ``90s``, ``30m``, ``2h`` or ``1h30m``; ``none`` is no limit."""
    word = text.strip().lower()
    if word in {"none", "off"}:
        return None
    match = _DURATION.fullmatch(f"{word}s" if word.isdecimal() else word)
    if not word or match is None:
        raise ValueError("must be a duration such as 90, 90s, 30m, 2h or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    limit = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if not timedelta(0) < limit <= MAX_TIME_LIMIT:
        raise ValueError("must be longer than nothing and at most 30 days")
    return limit


def branch(text: str) -> str:
    """Read the name of a branch by git's own rules, so that a bad one is refused before the session."""
    if not 0 < len(text) <= _MAX_BRANCH:
        raise ValueError(f"must have 1 to {_MAX_BRANCH} characters")
    parts = text.split("/")
    bad = (
        _BRANCH_REFUSED.search(text)
        or text in {"@", "HEAD"}
        or text.startswith(("-", "refs/"))
        or text.endswith(".")
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
        or not _is_unicode(text)
    )
    if bad:
        raise ValueError("is not a name that git accepts for a branch")
    return text


def message(text: str) -> str:
    """Read a commit message."""
    if not text.strip() or len(text) > _MAX_MESSAGE or "\0" in text or not _is_unicode(text):
        raise ValueError("must be text and not empty")
    return text


def base_url(text: str) -> str:
    """Read the address of a provider's API, without a closing slash."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise ValueError("is not an address") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError("must be an address such as https://host[:port][/path]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password: keys come from the environment")
    if parts.query or parts.fragment or not re.fullmatch(r"[\x21-\x7e]+", text.strip()):
        raise ValueError("must have neither query, fragment, spaces nor non-ASCII characters")
    return text.strip().rstrip("/")


def image_mirror(text: str) -> str:
    """Read the address of a mirror of Debian, without a closing slash."""
    return base_url(text)


def mount(text: str, *, relative_to: Path | None = None, home: Path | None = None) -> Mount:
    """Read ``SRC[:DST][:ro|:rw]``. Nothing is looked up: whether the source exists is the plan's question.

    :param relative_to: where a relative source starts (the command line's directory); None refuses one.
    :param home: what ``~/`` stands for; None refuses it.
    """
    parts = text.split(":")
    read_only = True
    if len(parts) > 1 and parts[-1] in {"ro", "rw"}:
        read_only = parts.pop() == "ro"
    if len(parts) not in {1, 2} or not all(parts):
        raise ValueError("must be SOURCE[:TARGET][:ro|:rw]")
    source = _source(parts[0], relative_to=relative_to, home=home)
    target = _clean(parts[1] if len(parts) > 1 else os.fspath(source))
    if target == PurePosixPath("/"):
        raise ValueError("must not have the whole file system as its target")
    return Mount(source=source, target=Path(target), read_only=read_only)


def mounts(text: str, *, relative_to: Path | None = None, home: Path | None = None) -> tuple[Mount, ...]:
    """Read several mounts with commas between them."""
    return tuple(
        mount(part.strip(), relative_to=relative_to, home=home) for part in text.split(",") if part.strip()
    )


def _source(text: str, *, relative_to: Path | None, home: Path | None) -> Path:
    if home is not None and (text == "~" or text.startswith("~/")):
        text = f"{home}/{text[2:]}"
    if not text.startswith("/"):
        if relative_to is None or text.startswith("~"):
            raise ValueError("must name an absolute source")
        # By text alone: links are the business of who opens the source, once, without following the last.
        text = os.path.normpath(os.path.join(relative_to, text))  # noqa: PTH118
    return Path(_clean(text))


def _clean(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if "\0" in text or not path.is_absolute() or ".." in path.parts or len(os.fsencode(text)) > _MAX_PATH:
        raise ValueError("must name absolute paths without '..'")
    return PurePosixPath("/", *path.parts[1:])


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def human_limits(limits: ResourceLimits) -> str:
    """Return limits as they would be written, empty without any."""
    found = {name: getattr(limits, name) for name in LIMIT_PARTS}
    return ",".join(f"{name}={human_limit(name, most)}" for name, most in found.items() if most)


def human_limit(name: str, most: float) -> str:
    """Return one limit as it would be written."""
    if name in {"memory", "disk"}:
        for power, unit in ((30, "G"), (20, "M"), (10, "K")):
            if most >= 1 << power and (int(most) % (1 << power) == 0 or most >= 10 << power):
                return f"{int(most) >> power}{unit}"
    return f"{most:g}" if name == "cpus" else str(most)


def human_budget(bounds: Budget) -> str:
    """Return a budget as it would be written, empty without bounds."""
    return ",".join(f"{name}={most}" for name in BUDGET_PARTS if (most := getattr(bounds, name)) is not None)


READERS: Mapping[str, Callable[[str], object]] = {
    "mode": mode,
    "engine": engine,
    "runtime": runtime,
    "image": image,
    "docker": docker,
    "docker_images": docker_images,
    "network": network,
    "session": session,
    "agent": agent,
    "on_finish": on_finish,
    "full_clone": boolean,
    "time_limit": time_limit,
    "base_url": base_url,
    "presets": presets,
    "credentials": credentials,
    "provider_tools": boolean,
    "allow_private": boolean,
    "budget": budget,
    "toolchains": boolean,
    "limits": limits,
    "provider": provider,
    "kimi_api_key": secret,
    "install_dependencies": boolean,
    "github_token": boolean,
    "cleanup_hook_timeout": cleanup_hook_timeout,
    "skip_docker_autodetect": boolean,
    "notify": notify,
    "notify_after": notify_after,
    "image_mirror": image_mirror,
    "record_notes": boolean,
    "output": output,
    "verbose": boolean,
}
"""The reader of each key whose value needs to know neither where it stands nor whose home it is."""

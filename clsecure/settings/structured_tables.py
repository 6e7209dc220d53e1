"""Reading ``[providers.NAME]`` and ``[agents.NAME]``. Imported only where there are such tables.

What is wrong in one is said with its line and never repeated: it may be a secret.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TypeVar

from clsecure.settings import keys
from clsecure.settings.structured import (
    AGENTS,
    ANTHROPIC,
    KIMI,
    ROLES,
    AgentTable,
    Auth,
    KeySource,
    ProviderTable,
)
from clsecure.settings.values import services
from clsecure.settings.values.names import agent

_Value = TypeVar("_Value")
_MAX_ARGUMENTS = 256
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MODEL = re.compile(r"[\x21-\x7e]{1,200}")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:KEY|KEYS|TOKEN|PASS|PASSWD|PASSPHRASE|PAT|CREDENTIALS?|AUTH|COOKIE|HEADERS)(?:_|$)"
    r"|SECRET|PASSWORD|APIKEY",
    re.IGNORECASE,
)
_OURS = re.compile(r"(?:LD_|CLSECURE|XDG_).*|.*_PROXY|PATH|HOME|USER|LOGNAME|SHELL|TMPDIR", re.IGNORECASE)
_THREE_WAYS = (
    "must not hold the key itself: name where it is, as key_env (a variable), key_file (a file with mode "
    '0600) or key_command (such as ["pass", "show", "llm/NAME"])'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One table as a file has it, or why it is none.

    :param at: keys that lead to what is wrong, for its line.
    """

    value: ProviderTable | AgentTable | None = None
    wrong: str | None = None
    at: tuple[str, ...] = ()


class _Wrong(ValueError):  # noqa: N818  # a ValueError that knows its key
    def __init__(self, why: str, *at: str) -> None:
        super().__init__(why)
        self.at = at


def read(kind: str, name: str, content: object) -> Found:
    """Read one table.

    :param kind: ``providers`` or ``agents``.
    """
    try:
        return Found(value=_READERS[kind](name, content))
    except _Wrong as wrong:
        return Found(wrong=str(wrong), at=wrong.at)


class _Table:
    """A table whose keys are taken one by one; what is left in the end is unknown."""

    def __init__(self, name: str, content: object, *, kind: str, reserved: Sequence[str], why: str) -> None:
        if name in reserved:
            raise _Wrong(why)
        try:
            fits = agent(name) == name
        except ValueError:
            fits = False
        if not fits:
            raise _Wrong("must have a name of 1 to 32 lower-case letters, digits or dashes, a letter first")
        if not isinstance(content, dict):
            raise _Wrong(f"must be a table: [{kind}.{name}]")
        self._left: dict[str, object] = {}
        self._written: dict[str, str] = {}
        for written, value in content.items():
            key = keys.normal(written)
            if key in self._written:
                raise _Wrong(f"has {key} a second time", written)
            self._left[key], self._written[key] = value, written

    def take(self, key: str, reader: Callable[[object], _Value]) -> _Value | None:
        """Return the value of a key, read; None where it is not there."""
        if key not in self._left:
            return None
        try:
            return reader(self._left.pop(key))
        except _Wrong as wrong:
            raise _Wrong(f"{key} {wrong}", self._written[key], *wrong.at) from None
        except ValueError as error:
            raise _Wrong(f"{key} {error}", self._written[key]) from None

    def end(self, known: Sequence[str]) -> None:
        """Refuse what nobody took."""
        for key in self._left:
            raise _Wrong(
                f"has an unknown key {self._written[key][:64]!r}; {keys.nearest(key, known)}",
                self._written[key],
            )


PROVIDER_KEYS = (
    "base_url", "key_env", "key_file", "key_command", "auth", "model", "models", "timeout_ms",
)  # fmt: skip
_LITERALS = ("key", "api_key", "apikey", "auth_token", "token", "secret", "password")


def _provider(name: str, content: object) -> ProviderTable:
    table = _Table(
        name,
        content,
        kind="providers",
        reserved=(ANTHROPIC, KIMI),
        why=f"is built in: take another name, such as [providers.my-{name}]; Anthropic's address is the key "
        "base_url, and kimi's key is KIMI_API_KEY or kimi_api_key",
    )
    for key in _LITERALS:
        table.take(key, _refuse_literal)
    found = [
        source
        for source in (
            table.take("key_env", lambda value: KeySource(variable=_variable(value))),
            table.take("key_file", lambda value: KeySource(file=_path(value))),
            table.take("key_command", lambda value: KeySource(command=_key_command(value))),
        )
        if source is not None
    ]
    base_url = table.take("base_url", lambda value: services.base_url(_text(value)))
    auth = table.take("auth", _auth) or Auth.API_KEY
    models = table.take("models", _models) or {}
    model = table.take("model", _model)
    timeout_ms = table.take("timeout_ms", _milliseconds)
    table.end(PROVIDER_KEYS)
    if base_url is None:
        raise _Wrong("needs a base_url, the address of its API")
    if len(found) != 1:
        raise _Wrong("needs exactly one of key_env, key_file and key_command")
    if model is not None and "default" in models:
        raise _Wrong("names its model twice: model is models.default", "model")
    return ProviderTable(
        name=name,
        base_url=base_url,
        key=found[0],
        auth=auth,
        models=MappingProxyType({**({"default": model} if model else {}), **models}),
        timeout_ms=timeout_ms,
    )


AGENT_KEYS = ("command", "resume", "env", "base_url_env", "token_env")


def _agent(name: str, content: object) -> AgentTable:
    table = _Table(
        name,
        content,
        kind="agents",
        reserved=AGENTS,
        why="is built in: take another name for an agent of your own",
    )
    command = table.take("command", _inside)
    resume = table.take("resume", _inside)
    env = table.take("env", _names) or frozenset()
    base_url_env = table.take("base_url_env", _variable)
    token_env = table.take("token_env", _variable)
    table.end(AGENT_KEYS)
    if command is None:
        raise _Wrong('needs a command, such as ["aider", "--yes-always"]')
    if (base_url_env is None) is not (token_env is None):
        raise _Wrong("needs both of base_url_env and token_env, or neither")
    return AgentTable(
        name=name,
        command=command,
        resume=resume or command,
        env=env,
        base_url_env=base_url_env,
        token_env=token_env,
    )


_READERS: Mapping[str, Callable[[str, object], ProviderTable | AgentTable]] = {
    "providers": _provider,
    "agents": _agent,
}
KINDS = tuple(_READERS)
"""The tables of tables."""


def tables(kind: str, content: object) -> Iterator[tuple[str | None, Found]]:
    """Return what stands under ``[providers]`` or ``[agents]``: names, and what each is."""
    if not isinstance(content, dict):
        yield None, Found(wrong=f"must be tables: [{kind}.NAME]")
        return
    for name, value in content.items():
        yield name, read(kind, name, value)


def _refuse_literal(value: object) -> None:
    del value
    raise ValueError(_THREE_WAYS)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("must be a string in quotes, and not empty")
    return value.strip()


def _variable(value: object) -> str:
    text = _text(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be the name of a variable, such as MY_API_KEY")
    return text


def _path(value: object) -> str:
    text = _text(value)
    if not text.startswith(("/", "~/")) or ".." in PurePosixPath(text).parts:
        raise ValueError("must be an absolute path, or one that begins with ~/, without '..'")
    return text


def _arguments(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_ARGUMENTS:
        raise ValueError('must be an array of strings, such as ["program", "argument"]')
    if any(not isinstance(item, str) or "\0" in item for item in value) or not value[0].strip():
        raise ValueError('must be an array of strings, such as ["program", "argument"]')
    return tuple(value)


def _key_command(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError:
            raise ValueError("must be a command whose quotes close, or an array of strings") from None
    argv = _arguments(value)
    if "/" in argv[0] and not argv[0].startswith(("/", "~/")):
        raise ValueError("must name its program without a directory, or by an absolute path")
    return argv


def _inside(value: object) -> tuple[str, ...]:
    argv = _arguments(value)
    if "/" in argv[0] and not argv[0].startswith("/"):
        raise ValueError("must name its program without a directory, or by the absolute path inside")
    return argv


def _names(value: object) -> frozenset[str]:
    if not isinstance(value, list):
        raise ValueError('must be an array of names, such as ["AIDER_MODEL"]')
    found = frozenset(_variable(item) for item in value)
    if any(_SECRET_NAME.search(name) for name in found):
        raise ValueError(
            "must not name secrets: a key goes by a table [providers.NAME], and its place inside is token_env"
        )
    if any(_OURS.fullmatch(name) for name in found):
        raise ValueError("must not name what every session sets by itself")
    return found


def _auth(value: object) -> Auth:
    try:
        return Auth(_text(value).lower().replace("_", "-"))
    except ValueError:
        raise ValueError("must be api-key or bearer") from None


def _model(value: object) -> str:
    text = _text(value)
    if not _MODEL.fullmatch(text):
        raise ValueError("must be the name of a model: at most 200 characters without spaces")
    return text


def _models(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a table of names, by {', '.join(ROLES)}")
    found: dict[str, str] = {}
    for written, name in value.items():
        role = keys.normal(written)
        if role not in ROLES or role in found:
            raise _Wrong(f"must have no other key than {', '.join(ROLES)}, each once", written)
        try:
            found[role] = _model(name)
        except ValueError as error:
            raise _Wrong(str(error), written) from None
    return found


def _milliseconds(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1000 <= value <= 24 * 3_600_000:
        raise ValueError("must be a whole number of milliseconds from 1000 to 86400000")
    return value

"""``config.toml``: the flat keys, and the network as tables. Imported only where there is such a file.

tomllib says nothing about lines; the line of a key is looked for afterwards, and is the right one wherever
the file is written in the usual way.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clsecure.settings import keys
from clsecure.settings.files import Assignment, Text, decode, line_error
from clsecure.settings.values.amounts import BUDGET_PARTS, LIMIT_PARTS

EGRESS = {
    "allow": "allow_domains",
    "deny": "deny_domains",
    "presets": "presets",
    "provider_tools": "provider_tools",
    "allow_private": "allow_private",
    "budget": "budget",
}
"""The keys of the table ``[egress]``, and which of the model each is."""

LIMITS = {**dict.fromkeys(LIMIT_PARTS, "limits"), "time": "time_limit"}
"""The keys of the table ``[limits]``."""

SETUP = {
    "script": "setup_script",
    "network": "setup_network",
    "github_token": "github_token",
    "install_dependencies": "install_dependencies",
}
"""The keys of the table ``[setup]``."""

TABLES: Mapping[str, Mapping[str, str]] = {"egress": EGRESS, "limits": LIMITS, "setup": SETUP}
"""The tables whose keys are keys of the model."""

ENFORCE = {
    "mode": "mode", "engine": "engine", "images": "images", "docker": "docker",
    "network": "network", "allow": "allow_domains", "deny": "deny_domains",
    "presets": "presets", "credentials": "credentials", "provider_tools": "provider_tools",
    "allow_private": "allow_private", "providers": "providers", "mounts": "mounts",
    "github_token": "github_token", "time_limit": "time_limit", "limits": "limits", "budget": "budget",
}  # fmt: skip
"""The keys of the table ``[enforce]``, and which of the model each bounds."""

_BOOLEANS = frozenset(
    {
        "full_clone", "verbose", "provider_tools", "allow_private", "toolchains", "install_dependencies",
        "github_token", "skip_docker_autodetect", "record_notes",
    }
)  # fmt: skip
_OF_NAMES = frozenset({"providers", "images"})
"""Keys of ``[enforce]`` alone, each with a list of what a key of the model may be."""
_LISTS = _OF_NAMES | {
    "mounts", "allow_domains", "deny_domains", "presets", "setup_network", "notify", "docker_images",
}  # fmt: skip
_NUMBERS = frozenset({"time_limit", "cleanup_hook_timeout", "notify_after"})
_PARTS = {"budget": BUDGET_PARTS, "limits": LIMIT_PARTS}
_MAX_INTEGER = 1 << 63
_MAX_AHEAD = 50
# tomllib's time grows with the square of a dotted key's parts; a host name in quotes has 127 at most.
_DOTTED = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]++|"(?:[^"\\\n]++|\\.){0,64}+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){128}""", re.ASCII
)
_POSITION = re.compile(r"at line ([0-9]+)")

_Name = tuple[str, ...]


def parse(data: bytes, path: Path) -> list[Assignment]:
    """Return what a TOML file says, in its order.

    :raises UsageError: it is none.
    """
    text = decode(data, path)
    deep = _DOTTED.search(text)
    if deep is not None:
        raise line_error(path, text.count("\n", 0, deep.start()) + 1, "a key of too many parts")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Without the message: it quotes what stands there.
        found = _POSITION.search(str(error)) if isinstance(error, tomllib.TOMLDecodeError) else None
        line = int(found[1]) if found else text.count("\n") + 1
        raise line_error(path, line, "not valid TOML up to here, or a key for the second time") from None
    lines = _Lines(text)
    return [assignment for name, value in document.items() for assignment in _top(name, value, lines)]


def _top(name: str, value: object, lines: _Lines) -> Iterator[Assignment]:
    table = keys.normal(name)
    if table == "enforce":
        yield from _ceilings(name, value, lines)
    elif table in keys.STRUCTURED:
        yield from _structured(name, table, value, lines)
    elif table not in TABLES or (table in _PARTS and isinstance(value, str)):
        yield _assignment((name,), keys.canonical(name), value, lines)
    elif not isinstance(value, dict):
        wrong = f"must be a table: [{table}]"
        yield Assignment(written=name, key=table, line=lines.of((name,)), wrong=wrong)
    else:
        parts = {}
        for inner, item in value.items():
            key = TABLES[table].get(keys.normal(inner))
            if key == table:  # the table's own key has parts, and they are one value
                parts[keys.normal(inner)] = item
            else:
                yield _assignment((name, inner), key, item, lines)
        if parts:
            yield _assignment((name,), table, parts, lines)


def _ceilings(name: str, value: object, lines: _Lines) -> Iterator[Assignment]:
    if not isinstance(value, dict):
        wrong = "must be a table: [enforce]"
        yield Assignment(written=name, key="enforce", line=lines.of((name,)), wrong=wrong, ceiling=True)
        return
    for inner, item in value.items():
        path, key = (name, inner), ENFORCE.get(keys.normal(inner))
        if item == [] and key in _LISTS:  # nothing at all is a ceiling, too; elsewhere it says nothing
            line = lines.of(path)
            texts = (Text(text="", line=line),)
            yield Assignment(
                written=".".join(path), key=key, line=line, texts=texts, items=True, ceiling=True
            )
        else:
            yield replace(_assignment(path, key, item, lines), ceiling=True)


def _structured(name: str, kind: str, value: object, lines: _Lines) -> Iterator[Assignment]:
    from clsecure.settings import structured_tables

    for inner, found in structured_tables.tables(kind, value):
        path = (name,) if inner is None else (name, inner)
        written, line = f"{kind}.{inner[:64]}" if inner is not None else kind, lines.of((*path, *found.at))
        texts = () if found.value is None else (Text(text=found.value.name, line=line),)
        yield Assignment(
            written=written, key=kind, line=line, texts=texts, wrong=found.wrong, table=found.value
        )


def _assignment(path: _Name, key: str | None, value: object, lines: _Lines) -> Assignment:
    written, line = ".".join(path), lines.of(path)
    try:
        if key is None:
            texts: Sequence[Text] = (Text(text="", line=line),)
        elif key in _PARTS and isinstance(value, dict) and (path[1:] or key in TABLES):
            texts = _parts_of(key, path, value, lines)
        elif key in _LISTS and isinstance(value, list):
            texts = _items(value, line, lines)
            if key not in keys.TOGETHER | _OF_NAMES:  # one value of the strongest layer
                texts = (Text(text=",".join(text.text for text in texts), line=line),)
        else:
            texts = (Text(text=_scalar(key, value), line=line),)
    except ValueError as error:
        return Assignment(written=written, key=key, line=line, wrong=str(error))
    return Assignment(
        written=written,
        key=key,
        line=line,
        texts=tuple(texts),
        items=isinstance(value, list) and key in keys.TOGETHER,
    )


def _scalar(key: str, value: object) -> str:
    """Return a value as the flat file would have it."""
    if key in _BOOLEANS:
        if isinstance(value, bool):
            return str(value).lower()
        raise ValueError("must be true or false, without quotes")
    if isinstance(value, bool) and key in {"network", "docker"}:
        return str(value).lower()
    if isinstance(value, int) and not isinstance(value, bool) and key in _NUMBERS:
        return _integer(value)
    if isinstance(value, str):
        return value
    raise ValueError("must be an array of strings" if key in _LISTS else "must be a string in quotes")


def _items(value: list[object], line: int, lines: _Lines) -> list[Text]:
    texts = []
    for item in value:
        if not isinstance(item, str):
            raise ValueError("must be an array of strings")
        line = lines.at_or_after(line, item)
        texts.append(Text(text=item, line=line))
    return texts


def _parts_of(key: str, path: _Name, value: Mapping[str, object], lines: _Lines) -> list[Text]:
    texts = []
    for name, amount in value.items():
        if name not in _PARTS[key]:
            raise ValueError(f"must have no other key than {', '.join(_PARTS[key])}")
        if isinstance(amount, int) and not isinstance(amount, bool):
            word = _integer(amount)
        elif isinstance(amount, float) and name == "cpus":
            word = f"{amount:g}"
        elif isinstance(amount, str):
            word = amount
        else:
            raise ValueError(f'must have a number for {name}, or a string such as "2G"')
        texts.append(Text(text=f"{name}={word}", line=lines.of((*path, name))))
    return texts


def _integer(value: int) -> str:
    if abs(value) >= _MAX_INTEGER:
        raise ValueError("must be a smaller number")
    return str(value)


class _Lines:
    """Where the keys of a file stand, found by looking for them."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._found: dict[_Name, int] = {}
        table: _Name = ()
        for number, line in enumerate(self._lines, start=1):
            stripped = line.strip()
            if stripped.startswith("["):
                table = _parts(stripped.lstrip("[").partition("]")[0])
                self._found.setdefault(table, number)
            elif "=" in stripped and not stripped.startswith("#"):
                parts = (*table, *_parts(stripped.partition("=")[0]))
                for length in range(len(table) + 1, len(parts) + 1):
                    self._found.setdefault(parts[:length], number)

    def of(self, path: _Name) -> int:
        """Return the line of a key, or of the table or value that it is in."""
        found = (self._found.get(path[:length]) for length in range(len(path), 0, -1))
        return next((line for line in found if line is not None), 1)

    def at_or_after(self, line: int, text: str) -> int:
        """Return the line of an array's item, or the one to begin at when it is not soon after it."""
        quoted = (f'"{text}"', f"'{text}'")
        ahead = itertools.islice(self._lines, line - 1, line - 1 + _MAX_AHEAD)
        for number, content in enumerate(ahead, start=line):
            if any(word in content for word in quoted):
                return number
        return line


def _parts(written: str) -> _Name:
    return tuple(part.strip().strip("\"'") for part in written[:1000].split("."))

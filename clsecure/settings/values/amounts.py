"""Amounts that a session may use: budget and limits, and how people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields

from clsecure.model import ResourceLimits
from clsecure.policy import Budget
from clsecure.settings.values.words import items

BUDGET_PARTS = tuple(part.name for part in fields(Budget))
LIMIT_PARTS = tuple(part.name for part in fields(ResourceLimits))

_AMOUNT = re.compile(r"([0-9]{1,15})([kmgt]?)")
_MAX_AMOUNT = 1 << 60
_LEAST = {"memory": 64 << 20, "pids": 16, "disk": 1 << 20, "open_files": 64}
_CPUS = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,3})?")


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

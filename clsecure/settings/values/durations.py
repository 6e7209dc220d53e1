"""How long something may take."""

from __future__ import annotations

import re
from datetime import timedelta

MIN_HOOK_SECONDS, MAX_HOOK_SECONDS = 5, 300
MAX_TIME_LIMIT = timedelta(days=30)

_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?")


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


def cleanup_hook_timeout(text: str) -> int:
    """Read how many seconds a cleanup hook may take."""
    word = text.strip().lower().removesuffix("s")
    if not re.fullmatch(r"[0-9]{1,4}", word) or not MIN_HOOK_SECONDS <= int(word) <= MAX_HOOK_SECONDS:
        raise ValueError(f"must be a number of seconds from {MIN_HOOK_SECONDS} to {MAX_HOOK_SECONDS}")
    return int(word)


def notify_after(text: str) -> timedelta:
    """Read how long a session must have taken before its end is worth a call."""
    limit = time_limit(text) if text.strip() != "0" else timedelta(0)
    if limit is None:
        raise ValueError("must be a duration such as 30s, 5m or 0")
    return limit

"""Durations as people write them: "250ms", "10s", "15m", "2h", "90d"."""

from __future__ import annotations

import re
from datetime import timedelta

PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)\s*$"
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def duration(text: str) -> timedelta:
    """Raises ValueError with what is allowed."""
    match = re.match(PATTERN, text)
    if match is None:
        raise ValueError(f'"{text}" is not a duration; write a number and ms, s, m, h or d, such as "10s"')
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


def shown(span: timedelta) -> str:
    """In the largest unit that keeps it readable: 45 s, 12 min, 3.5 h, 9 d."""
    seconds = span.total_seconds()
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (float("inf"), 86400, "d")):
        if abs(seconds) < limit:
            return f"{round(seconds / unit, 1):g} {name}"
    return ""

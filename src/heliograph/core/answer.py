"""What is answered over HTTP: JSON, or a problem in the form of RFC 9457."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

JSON = "application/json"
PROBLEM = "application/problem+json"

OPEN = frozenset({"/healthz", "/readyz"})
"""Paths that are answered without a token: they tell nothing else."""

# The phrases of RFC 9110, as a problem of the type about:blank has them.
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside those that every answer has."""


def found(value: Any) -> Answer:
    return Answer(200, encoded(value))


def problem(
    status: int,
    detail: str,
    hint: str = "",
    *,
    instance: str = "",
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Answer:
    """What happened, where (`instance`: the path), and in `hint` what to do next; with `more` fields."""
    what = {"type": "about:blank", "title": TITLES[status], "status": status, "detail": detail, "instance": instance}
    return Answer(status, encoded({**what, "hint": hint, **(more or {})}), PROBLEM, headers or {})


def encoded(value: Any) -> bytes:
    """As `--json` prints it, on a line of its own. JSON knows no infinity and no NaN: such a number is null."""
    try:
        text = json.dumps(value, default=plain, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), default=plain, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, as from a damaged text of a device, has no UTF-8 form.
    return f"{text}\n".encode("utf-8", "replace")


def plain(one: Any) -> Any:
    """Moments and days as text: UTC with Z, 2026-03-14."""
    if isinstance(one, datetime):
        return one.isoformat().replace("+00:00", "Z")
    if isinstance(one, date):
        return one.isoformat()
    raise TypeError(f"{type(one).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value

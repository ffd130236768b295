"""What a request said about one day, found again in its stored bytes: an auditor compares that with the figure.

It is looked for by what every platform has to be told, the device and the day (or the instant it ends), rather than
by dialect: bodies outlive the settings they were made with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from heliograph.core import figures

# What begins and ends objects. Texts are passed over whole, whatever braces they hold.
_BRACES = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]')
_AROUND = 56
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Said:
    """One record of a body."""

    excerpt: str
    """As it stood there, with a little of what is around it."""
    numbers: tuple[tuple[str, str], ...]
    """Its figures, key and text."""
    by_end: bool
    """The record names the instant at which the day ends, not the day: it may speak of the days before as well."""


def said(body: bytes, remote_id: str, day: date, ends: Collection[datetime], *, addressed: bool = False) -> Said | None:
    """The record of a device and day; `ends` are the instants at which the days that went with it end.

    `addressed`: the request's path names the device, so that the body need not.
    """
    try:
        text = body.decode()
        root = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except ValueError:
        return None
    places = list(_places(text))
    records = list(_innermost(root, addressed, remote_id))
    if len(places) != len(records):
        return None
    for (start, end), (record, ours) in zip(places, records, strict=True):
        by_end = any(_instant(value, ends) for value in record.values())
        if ours and (by_end or day.isoformat() in record.values()):
            first, last = max(0, start - _AROUND), min(len(text), end + _AROUND // 2)
            excerpt = ("…" if first else "") + text[first:last] + ("…" if last < len(text) else "")
            numbers = tuple((key, str(value)) for key, value in record.items() if _number(value) is not None)
            return Said(excerpt, numbers, by_end)
    return None


def _places(text: str) -> Iterator[tuple[int, int]]:
    """Where objects without another one in them begin and end, in the order of the text."""
    opened: int | None = None
    for token in _BRACES.finditer(text):
        if token[0] == "{":
            opened = token.start()
        elif token[0] == "}":
            if opened is not None:
                yield opened, token.end()
            opened = None


def in_wh(key: str, text: str) -> int | None:
    """A figure of a body in Wh: keys say when they are in kWh."""
    number = _number(text)
    if number is None:
        return None
    return figures.wh(number) if "kwh" in key.lower() else figures.whole(number)


def _innermost(node: Any, ours: bool, remote_id: str) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Objects without another one in them, in the order of the text, and whether they stand under the device's name."""
    if isinstance(node, list):
        for item in node:
            yield from _innermost(item, ours, remote_id)
    elif isinstance(node, dict):
        ours = ours or remote_id in node.values()
        if any(_holds_object(value) for value in node.values()):
            for value in node.values():
                yield from _innermost(value, ours, remote_id)
        else:
            yield node, ours


def _holds_object(node: Any) -> bool:
    return isinstance(node, dict) or (isinstance(node, list) and any(_holds_object(item) for item in node))


def _instant(value: object, ends: Collection[datetime]) -> bool:
    """Whole seconds are sent; History that ends with the registration ends a second before it (drec.md 6.8, H6)."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) and "T" in value else None
    except ValueError:
        return False
    return at is not None and at.tzinfo is not None and any(timedelta(0) <= end - at <= _SECOND for end in ends)


def _number(value: object) -> Decimal | None:
    if isinstance(value, Decimal):
        return value
    try:
        return Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        return None

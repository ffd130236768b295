"""What both stand-in platforms share: an answer, the log of broken rules, strict JSON. No sockets here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeGuard
from urllib.parse import parse_qsl

Platform = Literal["redex", "drec"]
Delivery = Literal["send", "drop", "truncate", "hang"]

KEPT_VIOLATIONS = 10_000
EXCERPT = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back. `delivery` says how much of it does; `delay` is in seconds of the sandbox's clock."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delivery: Delivery = "send"
    delay: float = 0.0


@dataclass(slots=True)
class Exchange:
    """One request from the moment its head was read until its answer has left."""

    method: str
    path: str
    query: str
    kind: str
    platform: Platform | None
    fault: str | None = None
    device: str = ""
    """The D-REC device a read is sent for: one request may be in flight for each."""
    alive: Callable[[], bool] = lambda: True
    afterwards: Callable[[], None] | None = None

    @property
    def unread(self) -> bool:
        return self.fault in ("drop-before", "away")


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a client broke. `request` is shortened and never holds a header, a token or a password."""

    at: datetime
    platform: str
    rule: str
    text: str
    request: str

    def as_json(self) -> dict[str, str]:
        return {
            "at": iso(self.at),
            "platform": self.platform,
            "rule": self.rule,
            "text": self.text,
            "request": self.request,
        }


class Violations:
    """Keeps the first KEPT_VIOLATIONS; `count` goes on, so that a client gone wild cannot fill the memory."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.kept: list[Violation] = []
        self.count = 0

    def add(self, platform: str, rule: str, text: str, request: str) -> None:
        self.count += 1
        if len(self.kept) < KEPT_VIOLATIONS:
            self.kept.append(Violation(self._now(), platform, rule, text, request[:EXCERPT]))


class Bare(str):
    """A JSON number in the digits it was written with: 1e3, 0.10 and 0.1 stay apart."""

    __slots__ = ()


class BadJson(ValueError):
    """Not JSON, or JSON that two readers could understand in two ways."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadJson("one member stands twice")
    return members


def _constant(text: str) -> Any:
    raise BadJson(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=Bare, parse_float=Bare, parse_constant=_constant)


def read_json(body: bytes) -> Any:
    """The document, with every number as Bare; raises BadJson."""
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise BadJson("not UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise BadJson(str(exc)) from exc
    except RecursionError as exc:
        raise BadJson("nested too deeply") from exc


def is_text(value: object) -> TypeGuard[str]:
    """A quoted text, not a number."""
    return isinstance(value, str) and not isinstance(value, Bare)


def json_answer(status: int, document: object, *headers: tuple[str, str]) -> Answer:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, (("Content-Type", "application/json; charset=utf-8"), *headers), body)


def query_members(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)


def header(headers: Mapping[str, str], name: str) -> str:
    """A header's text whatever the case of its name; "" where it is absent."""
    wanted = name.lower()
    return next((value for key, value in headers.items() if key.lower() == wanted), "")


def bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = header(headers, "Authorization").partition(" ")
    return token.strip() if scheme == "Bearer" else ""


def iso(at: datetime) -> str:
    """UTC with milliseconds and Z, as both platforms print moments."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shorten(document: object) -> str:
    """A piece of a request for the log of violations. Callers hand over members that hold no secret."""
    return json.dumps(document, ensure_ascii=False, default=str)[:EXCERPT]

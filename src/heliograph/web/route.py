"""What can be asked: a route with its parameters, and a question that fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from urllib.parse import quote, urlencode

from heliograph.app import App
from heliograph.core.health import Health
from heliograph.work.health import Live

LARGEST = (1 << 63) - 1
"""Row numbers are SQLite's."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""Of a meter, an uplink."""


@dataclass(frozen=True, slots=True)
class Site:
    """The running gateway, as far as the REST asks it."""

    app: App
    live: Live
    health: Callable[[], Health]
    alive: Callable[[], bool]
    """Every bus job came round lately."""
    stores: Callable[[], bool]
    """What is read is stored."""


class Wrong(Exception):
    """A request that cannot be answered as it stands."""

    def __init__(self, status: int, detail: str, hint: str, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.hint, self.more = status, detail, hint, more


Kind = Literal["count", "number", "day", "moment", "name", "place"]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    kind: Kind
    text: str
    default: int | None = None
    most: int = LARGEST
    required: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose parameters have been checked."""

    path: str
    given: Mapping[str, str]
    """The query as it was written."""
    values: Mapping[str, Any]
    now: datetime
    today: date

    def next(self, key: str, value: object) -> str:
        return f"{self.path}?{urlencode({**self.given, key: str(value)}, quote_via=quote)}"


@dataclass(frozen=True, slots=True)
class Route:
    path: str
    text: str
    schema: str
    answer: Callable[[Site, Question], Any]
    parameters: tuple[Parameter, ...] = ()
    may_miss: bool = False
    """404 when what is named is not there."""

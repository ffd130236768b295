"""What may happen to a closed day on its way to a platform: states, verdicts, waits. Data and arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

State = Literal["due", "unclear", "accepted", "confirmed", "rejected", "held"]

# What may follow what. A claim makes a row unclear before the first byte leaves, so that a power cut
# looks like a time-out; only evidence moves it on.
FOLLOWS: dict[State, frozenset[State]] = {
    "due": frozenset({"unclear", "held"}),
    "unclear": frozenset({"due", "accepted", "confirmed", "rejected", "held"}),
    "accepted": frozenset({"confirmed", "due", "rejected", "held"}),
    "rejected": frozenset({"due", "held"}),
    "held": frozenset({"due"}),
    "confirmed": frozenset(),
}

FLOOR = timedelta(seconds=60)
CAP = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class DayRow:
    """One closed day of one meter as an uplink sees it. Energies in Wh; `start` and `end` are UTC."""

    id: int
    meter: str
    remote_id: str
    day: date
    start: datetime
    end: datetime
    period_wh: int
    total_wh: int
    attempt: int = 0
    last_rule: str = ""
    """Rule of the latest verdict, such as L4, by which a platform told us how to send it next time."""
    process_id: str | None = None
    claimed_at: datetime | None = None
    claim: int | None = None
    """The request it went with last; rows of one claim shared one request."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One request with the rows it carries. It is on disk before it is sent and never changes afterwards."""

    path: str
    body: bytes
    rows: tuple[DayRow, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means for a row. `wait` is a least delay before anything is tried again."""

    state: State
    rule: str
    text: str = ""
    """The platform's words, shortened and without secrets."""
    remedy: str = ""
    wait: timedelta | None = None
    process_id: str | None = None
    pause_all: bool = False
    """True: nothing more may be sent to this platform before `wait` has passed (rate limit, token, captive portal)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a platform says it holds for one day; None where it does not tell that figure."""

    period_wh: int | None
    total_wh: int | None


@dataclass(frozen=True, slots=True)
class Missing:
    """The platform answered, in its own form, that it holds nothing for the day."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No trustworthy answer was had; nothing may be concluded. `verdict` tells why."""

    verdict: Verdict


ReadBack = Stored | Missing | Unknown


def next_try(attempt: int, now: datetime, wait: timedelta | None, jitter: float) -> datetime:
    """Back-off with full jitter above the floor: 60 s at least, 15 min at most, never before `wait`.

    `jitter` is a random number from 0 to 1; `attempt` counts from 1.
    """
    ceiling = min(CAP, FLOOR * (2 ** min(attempt, 10)))
    delay = FLOOR + (ceiling - FLOOR) * jitter
    return now + max(delay, wait or timedelta(0))


def room(sent: Sequence[datetime], now: datetime, per_minute: int) -> int:
    """Requests that may still leave within any 60 s, given when earlier ones left."""
    return per_minute - sum(1 for at in sent if now - at < timedelta(seconds=60))

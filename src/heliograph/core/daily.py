"""Days and their borders. The only place where local time becomes UTC.

A *border* is the counter's value at a local midnight (or at commissioning). The closing border of a day and the
opening border of the next are the same one, so neighbouring days always add up to what the counter moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from heliograph.core.daylight import LONGEST, Position, light

Method = Literal["start", "read", "still", "split", "daylight", "carry", "platform"]
OnGap = Literal["hold", "split", "carry"]

# What each method means, in the words `explain` prints.
METHODS: dict[Method, str] = {
    "start": "first reading of this meter",
    "read": "last reading at or before midnight",
    "still": "no reading near midnight, but the counter had not moved when it was read again",
    "split": "no reading near midnight: the energy of the gap was split in proportion to time (estimated split)",
    "daylight": (
        "no reading near midnight: the energy of the gap was split along the light of a clear sky at the site "
        "(estimated split)"
    ),
    "carry": "no reading near midnight: the energy of the gap was carried to the later day (estimated split)",
    "platform": "the readings were lost with a damaged store: derived from what a platform holds of this day",
}
# "platform" is none of these: it is the border the day was closed and delivered with, and split as it was split then.
ESTIMATED: frozenset[Method] = frozenset({"split", "daylight", "carry"})


@dataclass(frozen=True, slots=True)
class Index:
    """A counter's value (Wh) at a moment, and the stored reading it comes from."""

    at: datetime
    wh: int
    reading: int


@dataclass(frozen=True, slots=True)
class Border:
    """The counter (Wh) and the running total (Wh) at a day's border."""

    at: datetime
    index_wh: int
    total_wh: int
    method: Method
    before: int
    """Id of the stored reading before (or at) the border."""
    after: int | None
    """Id of the stored reading after it, where the border rests on both."""
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """The border cannot be known before the meter is read again."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap over the border that moved energy and is too long to be split without asking."""

    before: Index
    after: Index

    @property
    def reason(self) -> str:
        hours = (self.after.at - self.before.at).total_seconds() / 3600
        moved = (self.after.wh - self.before.wh) / 1000
        return (
            f"no reading for {hours:.1f} h over midnight ({self.before.at:%Y-%m-%d %H:%M} to "
            f"{self.after.at:%Y-%m-%d %H:%M} UTC) while the counter moved {moved:.3f} kWh"
        )


@dataclass(frozen=True, slots=True)
class Day:
    """A closed day. Its bytes never change; `total_wh` is the running total at its end, baseline included."""

    meter: str
    day: date
    opening: Border
    closing: Border

    @property
    def period_wh(self) -> int:
        return self.closing.total_wh - self.opening.total_wh

    @property
    def total_wh(self) -> int:
        return self.closing.total_wh

    @property
    def estimated(self) -> bool:
        return bool({self.opening.method, self.closing.method} & ESTIMATED)


@dataclass(frozen=True, slots=True)
class Held:
    """A day that has no figure yet, or none at all; its energy stays in the running total."""

    meter: str
    day: date
    kind: Literal["held", "missing"]
    reason: str


def start_of(day: date, zone: ZoneInfo) -> datetime:
    """The first UTC instant of a local day.

    Where midnight does not exist (clocks jump over it) this is the jump; where it happens twice, the first one.
    """
    return datetime.combine(day, time(), zone).astimezone(UTC)


def end_of(day: date, zone: ZoneInfo) -> datetime:
    return start_of(day + timedelta(days=1), zone)


def day_of(at: datetime, zone: ZoneInfo) -> date:
    """The local day an instant belongs to. An instant at midnight belongs to the day that begins."""
    day = at.astimezone(zone).date()
    # Where clocks go back over midnight the wall date repeats; the borders decide.
    while at < start_of(day, zone):
        day -= timedelta(days=1)
    while at >= end_of(day, zone):
        day += timedelta(days=1)
    return day


def days_between(first: datetime, last: datetime, zone: ZoneInfo) -> Iterator[date]:
    """Local days from the one that holds `first` up to, not including, the one that begins at or holds `last`.

    Days a zone leaves out (Samoa had no 30 December 2011) have no length and are not named.
    """
    day = day_of(first, zone)
    while end_of(day, zone) <= last:
        if start_of(day, zone) < end_of(day, zone):
            yield day
        day += timedelta(days=1)


def base(before: Index, opening: Border) -> Index:
    """Where a gap begins: the last reading, or an opening border that is known better than by readings."""
    if opening.method == "platform" and before.at < opening.at:
        return Index(opening.at, opening.index_wh, before.reading)
    return before


def border(
    at: datetime,
    before: Index,
    after: Index | None,
    previous: Border,
    *,
    cadence: timedelta,
    max_estimated: timedelta,
    on_gap: OnGap = "hold",
    position: Position | None = None,
) -> Border | Wait | Gap:
    """The border at `at` from the last good reading at or before it and the first one after it.

    `cadence` is the longest distance between two readings that counts as continuous. The running total moves by
    what the counter moved since `previous`. Where the `position` is known a gap is split along daylight, and in
    proportion to time where no light fell into it: in a polar night, or between two readings of one night.
    """

    def found(index_wh: int, method: Method, later: Index | None) -> Border:
        total = previous.total_wh + index_wh - previous.index_wh
        return Border(at, index_wh, total, method, before.reading, later.reading if later else None)

    if at - before.at <= cadence:
        return found(before.wh, "read", None)
    if after is None:
        return Wait()
    moved, gap = after.wh - before.wh, after.at - before.at
    if moved == 0:
        return found(before.wh, "still", after)
    if gap <= max_estimated or on_gap == "split":
        # Floored, so that the earlier day never claims a watt-hour it may not have had.
        if position is not None and gap <= LONGEST and (whole := light(position, before.at, after.at)):
            return found(before.wh + moved * light(position, before.at, at) // whole, "daylight", after)
        return found(before.wh + in_proportion(moved, at - before.at, gap), "split", after)
    if on_gap == "carry":
        return found(before.wh, "carry", after)
    return Gap(before, after)


def in_proportion(moved: int, part: timedelta, gap: timedelta) -> int:
    """The part of `moved` Wh that falls into a part of a gap, floored."""
    microsecond = timedelta(microseconds=1)  # a timedelta times some GWh is more than a timedelta can hold
    return moved * (part // microsecond) // (gap // microsecond)


def estimated_wh(day: Day, index_of: Mapping[int, int]) -> int:
    """How many Wh of a day's period lie in gaps over its borders, so that only the split gave them to this day.

    `index_of` holds the continuous counter (Wh) at the stored readings that the day's borders rest on.
    """
    opening, closing = day.opening, day.closing
    first, last = opening.index_wh, closing.index_wh
    if opening.method in ESTIMATED and opening.after is not None:
        first = index_of[opening.after]
    if closing.method in ESTIMATED:
        last = index_of[closing.before]
    return day.period_wh - max(0, last - first)

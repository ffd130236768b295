"""Counts what the polls of a bus came to, and says why there was nothing where there was nothing.

Counts live in memory and reach the card in the commit of a round every few minutes; a power cut loses no more of them
than that. What is lost shows as polls that nobody made, never as good ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from heliograph.core import daily, daylight
from heliograph.core.coverage import CAUSES, Cause, Coverage, Outcome, Silence, cause_of, counted, with_gap
from heliograph.core.daylight import Position
from heliograph.core.errors import BusError, BusRefused, BusTimeout, BusUnreachable, StoreFault, WrongDevice
from heliograph.core.readings import Moment, Reading
from heliograph.core.site import Meter
from heliograph.store import Store

WRITE_EVERY = 300.0
"""Seconds between two writes of the counts: one more page on the card each time, 288 a day."""
MOST_RUNS = 5000
"""Of a meter, while they cannot be counted; the oldest go first."""
MOST_DAYS = 400
"""A silence of years is written to so many of its days."""


@dataclass
class _Run:
    """Polls in a row that came to the same, on a clock that was not trusted or while the store had a fault.

    They are dated and counted when both are well.
    """

    outcome: Outcome
    first: float
    last: float
    number: int = 1


@dataclass
class _Meter:
    """What is remembered of one meter between rounds."""

    meter: Meter
    days: dict[date, Coverage] = field(default_factory=dict)
    dirty: set[date] = field(default_factory=set)
    undated: list[_Run] = field(default_factory=list)
    good: Moment | None = None
    """The last good reading; before the first one of this run, that of an earlier run."""
    ours: bool = False
    """It was read in this run."""
    before: tuple[datetime, Outcome] | None = None
    """The latest poll of an earlier run that brought nothing."""
    failures: Counter[Outcome] = field(default_factory=Counter)
    """Since then."""
    failing: datetime | None = None
    stored: datetime | None = None
    """The last good reading that reached the card; kept where it is while the store takes nothing."""
    unstored: bool = False
    begun: bool = False


class Tally:
    """The polls of one bus."""

    def __init__(self, meters: Sequence[Meter], position: Position | None = None) -> None:
        self._meters = {meter.id: _Meter(meter) for meter in meters}
        self._position = position
        self._written: float | None = None

    def note(self, meter: str, outcome: Outcome, moment: Moment, store: Store, zone: ZoneInfo) -> None:
        """One poll of a meter."""
        one = self._meters[meter]
        _later(one, outcome, moment.since_boot)
        if not moment.trusted or store.fault is not None:
            return
        booted = moment.at - timedelta(seconds=moment.since_boot)
        with suppress(StoreFault):  # what is left is counted when the store is back
            while one.undated:
                run = one.undated[0]
                first, last = (
                    replace(moment, at=booted + timedelta(seconds=since), since_boot=since)
                    for since in (run.first, run.last)
                )
                self._count(one, run.outcome, first, last, run.number, store, zone)
                del one.undated[0]

    def _count(
        self, one: _Meter, outcome: Outcome, first: Moment, last: Moment, number: int, store: Store, zone: ZoneInfo
    ) -> None:
        if not one.begun:
            one.good = next((r.moment for r in store.readings.back(one.meter.id) if r.good and r.moment.trusted), None)
            one.before, one.begun = store.days.last_failure(one.meter.id), True
        for day, start, end, share in _by_day(first.at, last.at, number, zone):
            self._change(one, day, store, partial(counted, outcome=outcome, first=start, last=end, number=share))
        if outcome != "good":
            one.failures[outcome] += number
            one.failing = one.failing or first.at
            return
        if one.good is not None and first.at - one.good.at > one.meter.cadence:
            for gap in self._silences(one, one.good, first, store):
                self._spread(one, gap, store, zone)
        one.good, one.ours, one.failing = last, True, None
        one.failures.clear()

    def _silences(self, one: _Meter, good: Moment, now: Moment, store: Store) -> Iterator[Silence]:
        """The stretches between two good readings, each with its own cause: a dead bus, then a restart."""
        night = one.meter.map.night

        def why(failures: Counter[Outcome], start: datetime, end: datetime) -> Cause:
            return cause_of(failures, night, self._dark(start, end))

        if one.ours:
            yield Silence(good.at, now.at, why(one.failures, good.at, now.at))
            return
        until, failure = good.at, Counter[Outcome]()
        if one.before is not None and one.before[0] > good.at:
            until, failure = min(one.before[0], now.at), Counter([one.before[1]])
        again = min(max(one.failing or now.at, until), now.at)
        away: Cause = "power" if good.boot_id != now.boot_id else "stopped"
        if away == "power" and _never_dated(one.meter.id, now.boot_id, store):
            away = "clock"
        pieces = [
            Silence(good.at, until, why(failure, good.at, until)),
            Silence(until, again, away),
            Silence(again, now.at, why(one.failures, again, now.at)),
        ]
        longer = [piece for piece in pieces if piece.length > one.meter.cadence]
        yield from longer or [Silence(good.at, now.at, away)]

    def _dark(self, start: datetime, end: datetime) -> bool:
        """Whether the sun was down for most of it, where the position is known."""
        if self._position is None or end - start > timedelta(days=2):
            return False
        return daylight.dark(self._position, start, end) * 2 > end - start

    def _spread(self, one: _Meter, gap: Silence, store: Store, zone: ZoneInfo) -> None:
        """A silence over midnights belongs to each of its days, for as long as it lasted there."""
        start = gap.start
        for _ in range(MOST_DAYS):
            day = daily.day_of(start, zone)
            end = min(gap.end, daily.end_of(day, zone))
            self._change(one, day, store, partial(with_gap, gap=Silence(start, end, gap.cause)))
            start = end
            if start >= gap.end:
                return

    def _change(self, one: _Meter, day: date, store: Store, changed: Callable[[Coverage], Coverage]) -> None:
        if day not in one.days:
            one.days[day] = store.days.coverage(one.meter.id, day) or Coverage(one.meter.id, day, one.meter.every)
        one.days[day] = changed(one.days[day])
        one.dirty.add(day)

    def due(self, since_boot: float, *, committing: bool) -> list[Coverage]:
        """Counts to be written now: with a commit that happens anyway every few minutes, without one a little later."""
        waited = WRITE_EVERY if committing else 2 * WRITE_EVERY
        if self._written is not None and since_boot - self._written < waited:
            return []
        return [one.days[day] for one in self._meters.values() for day in sorted(one.dirty)]

    def written(self, rows: Sequence[Coverage], since_boot: float) -> None:
        """They are on the card; only the newest day of a meter is kept in mind."""
        if not rows:
            return
        self._written = since_boot
        for one in self._meters.values():
            one.dirty.clear()
            for day in sorted(one.days)[:-1]:
                del one.days[day]

    def stored(self, readings: Sequence[Reading], store: Store, zone: ZoneInfo) -> None:
        """The store has taken these readings, perhaps after it could not for a while."""
        for reading in readings:
            one = self._meters[reading.meter]
            if not (reading.good and reading.moment.trusted):
                continue
            if one.unstored and one.stored and reading.moment.at - one.stored > one.meter.cadence:
                self._spread(one, Silence(one.stored, reading.moment.at, "storage"), store, zone)
            one.stored = reading.moment.at

    def caught_up(self) -> None:
        """Nothing waits for the store any more."""
        for one in self._meters.values():
            one.unstored = False

    def lost(self, readings: Sequence[Reading], store: Store, zone: ZoneInfo) -> None:
        """Samples that had to make room for others before the store could take them."""
        for reading in readings:
            one = self._meters[reading.meter]
            one.unstored = True
            if reading.moment.trusted:
                at, day = reading.moment.at, daily.day_of(reading.moment.at, zone)
                with suppress(StoreFault):
                    self._change(one, day, store, partial(counted, outcome="unstored", first=at, last=at))


def _later(one: _Meter, outcome: Outcome, since_boot: float) -> None:
    run = one.undated[-1] if one.undated else None
    if run and run.outcome == outcome and since_boot - run.last <= one.meter.cadence.total_seconds():
        run.last, run.number = since_boot, run.number + 1
    else:
        one.undated.append(_Run(outcome, since_boot, since_boot))
        del one.undated[:-MOST_RUNS]


def failed_as(error: BusError) -> Outcome:
    match error:
        case BusUnreachable():
            return "unreachable"
        case BusTimeout():
            return "timeout"
        case BusRefused():
            return "refused"
        case WrongDevice():
            return "stranger"
        case _:
            return "garbled"


def read_as(reading: Reading) -> Outcome:
    if reading.good:
        return "good"
    return "absent" if reading.index_wh is None else "doubtful"


def _by_day(
    first: datetime, last: datetime, number: int, zone: ZoneInfo
) -> Iterator[tuple[date, datetime, datetime, int]]:
    """Polls at even distances from `first` to `last`, by the local days they fall into."""
    step = (last - first) / (number - 1) if number > 1 else timedelta(0)
    done = 0
    while done < number:
        start = first + done * step
        day = daily.day_of(start, zone)
        here = number - done
        if step and last >= (end := daily.end_of(day, zone)):
            here = min(here, max(1, -((start - end) // step)))  # those before the day's end
        yield day, start, start + (here - 1) * step, here
        done += here


def _never_dated(meter: str, boot_id: str, store: Store) -> bool:
    """Whether the newest stored readings are of an earlier boot whose clock was never trusted."""
    for reading in store.readings.back(meter):
        if not reading.moment.trusted and reading.moment.boot_id != boot_id:
            return True
        if reading.good and reading.moment.trusted:
            return False
    return False


def covered(meter: str, day: date, store: Store, zone: ZoneInfo, now: datetime) -> dict[str, Any] | None:
    """How well a meter was read on a day, as people and scripts see it; None where nothing was counted.

    Of the day of commissioning what lies behind the first reading is expected, of today what is over.
    """
    found = store.days.coverage(meter, day)
    if found is None:
        return None
    start, end = daily.start_of(day, zone), min(daily.end_of(day, zone), now)
    begun = store.days.first_border(meter)
    if begun is not None and begun.at > start:
        start = min(begun.at, end)
    expected = found.expected(start, end)
    bad = {name: number for name, number in found.counts.items() if name not in ("good", "unstored") and number}
    asked = found.good + sum(bad.values())
    return {
        "expected": expected,
        "good": found.good,
        "bad": bad,
        "not_asked": max(0, expected - asked),
        "unstored": found.counts.get("unstored", 0),
        "first": found.first,
        "last": found.last,
        "longest_gap_s": round(found.gaps[0].length.total_seconds()) if found.gaps else None,
        "gaps": [
            {"from": gap.start, "to": gap.end, "cause": gap.cause, "why": CAUSES[gap.cause]} for gap in found.gaps
        ],
    }

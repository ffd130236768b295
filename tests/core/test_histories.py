"""Random lives of a counter against an exact oracle.

HELIOGRAPH_HISTORIES=1000000 pytest tests/core/test_histories.py runs ten times as many by hand;
HELIOGRAPH_SEED repeats a run. tests/work/test_field_cases.py takes the field cases through store and closing.
"""

from __future__ import annotations

import os
import random
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from zoneinfo import ZoneInfo

import pytest

from heliograph.core import daily
from heliograph.core.daily import Border, Gap, Index
from heliograph.core.decode import shortest_float32
from heliograph.core.ledger import LONGEST_ROLLOVER, Seam, Step, offset, rolled_over, settled
from heliograph.core.plausible import NEVER, doubts, step_wh
from heliograph.core.registers import Register

HISTORIES = int(os.environ.get("HELIOGRAPH_HISTORIES", "100000"))
ZONE = ZoneInfo("Asia/Singapore")
START = datetime(2026, 3, 13, 16, tzinfo=UTC)
EXPORT = Register(quantity="energy_export", type="float32", address=0x4A, unit="kWh", monotonic=True)
RATED_KW = 50.0
CADENCE = timedelta(minutes=45)
LONG_AGO = timedelta(days=3650).total_seconds()
FIGURES = re.compile(r"\d+")
MAX_ESTIMATED = timedelta(hours=2)


def shown_wh(true_wh: int) -> int:
    """What a float32 counter in kWh shows for so many true Wh, floored to Wh as we keep it."""
    single = struct.unpack(">f", struct.pack(">f", true_wh / 1000))[0]
    return int((shortest_float32(single) * 1000).to_integral_value(ROUND_FLOOR))


@dataclass
class Life:
    """A meter and its line: what truly happened, and what was read of it."""

    chance: random.Random
    at: datetime = START
    true_wh: int = 0
    """Of the device's own counter; a swap or reset begins anew."""
    steps: list[Step] = field(default_factory=list)
    untimed: set[int] = field(default_factory=set)
    """Readings of a boot whose clock was never trusted: evidence, but on no day."""
    seams: list[Seam] = field(default_factory=list)
    moved: int = 0
    """Display of earlier counters, over their whole lives, in Wh."""
    born: int = 0
    """Display at which the present counter's life begins."""
    strange: int = 0
    """Readings that must not be believed."""
    absent: int = 0
    """Zeros, which are no readings."""
    codes: set[str] = field(default_factory=set)
    """What was said about readings that were not believed, without its figures."""
    seen: Counter[str] = field(default_factory=Counter)
    """How often each event happened."""
    steps_wh: set[int] = field(default_factory=set)
    """By how much the float32 counter can move at a time."""
    silenced: int | None = None
    """What it had lived when its counter began to tell another story for good."""
    undated: bool = False
    """Since the base nobody knows how long it is: the counter may have risen by anything."""

    def begin(self, wh: int) -> None:
        self.true_wh = wh
        self.born = shown_wh(wh)
        self.steps.append(Step(self.at, self.born, True, 1))

    @property
    def last(self) -> Step:
        """The base: what the next reading is held against."""
        return next(step for step in reversed(self.steps) if step.believed)

    @property
    def lived(self) -> int:
        """What the displays moved since the first reading, as far as anybody can tell."""
        if self.silenced is not None:
            return self.silenced
        return self.moved + shown_wh(self.true_wh) - self.born

    def pass_time(self, minutes: float) -> None:
        self.at += timedelta(minutes=minutes)
        if 6 <= self.at.astimezone(ZONE).hour < 19:
            self.true_wh += int(self.chance.random() * RATED_KW * 1000 * minutes / 60)

    def see(self, shown: int | None = None, *, strange: bool = False) -> bool:
        """One reading, judged as the gateway judges it: against the last one that was believed."""
        value = shown_wh(self.true_wh) if shown is None else shown
        base = self.last
        elapsed = LONG_AGO if self.undated else (self.at - base.at).total_seconds()
        step = step_wh(EXPORT, value)
        self.steps_wh.add(step)
        found = doubts(
            {"energy_export": base.wh},
            {"energy_export": value},
            elapsed,
            RATED_KW,
            {"energy_export": step},
            production="energy_export",
        )
        if value == 0 < base.wh:
            self.absent += 1
            self.codes.add("absent")
            return False
        reasons = [str(doubt) for doubt in found if doubt.settled_by == NEVER]
        self.steps.append(Step(self.at, value, not reasons, len(self.steps) + 1))
        self.codes |= {FIGURES.sub("#", reason) for reason in reasons}
        self.strange += strange
        assert reasons or not strange, f"{value} Wh after {base.wh} Wh was believed"
        self.undated = self.undated and bool(reasons)
        return not reasons

    def settle(self, seam: Seam, found: Sequence[int]) -> None:
        self.seams.append(seam)
        self.steps = [Step(s.at, s.wh, s.believed or s.reading in found, s.reading) for s in self.steps]


def gap(life: Life) -> None:
    life.pass_time(life.chance.choice((90, 200, 700, 1500, 3000)))
    life.see()


def zero_bounce(life: Life) -> None:
    life.pass_time(10)
    life.see(0)
    life.pass_time(10)
    life.see()


def small_fall(life: Life) -> None:
    life.pass_time(10)
    base = life.last.wh
    if base > 300:
        life.see(base - life.chance.randrange(1, 200), strange=True)
    life.pass_time(10)
    life.see()


def spike(life: Life) -> None:
    life.pass_time(10)
    if not life.undated:
        life.see(shown_wh(life.true_wh) + 10_000_000 + life.chance.randrange(10**9), strange=True)
    life.pass_time(10)
    life.see()


def duplicate(life: Life) -> None:
    life.see()
    life.see()


def another_counter(life: Life) -> None:
    """A swap or reset: doubted readings, until a person records what the old display and the new one showed."""
    old = shown_wh(life.true_wh)
    life.pass_time(5)
    new_true = life.chance.randrange(0, max(1, min(life.true_wh // 2, 50_000)))
    kind = life.chance.choice(("swap", "reset"))
    seam = Seam("roof", life.at, "swap" if kind == "swap" else "reset", old, shown_wh(new_true))
    if old - seam.new_wh < 30_000:
        return
    life.moved += old - life.born
    life.true_wh, life.born = new_true, seam.new_wh
    for _ in range(life.chance.randrange(1, 4)):
        life.pass_time(10)
        life.see()
    since = max(n for n, step in enumerate(life.steps) if step.believed and step.at < seam.at)
    found = settled(life.steps[since:], seam, RATED_KW, step_wh(EXPORT, old))
    assert not isinstance(found, str), found
    life.settle(seam, found)
    if not any(step.reading in found for step in life.steps):
        life.steps.append(Step(seam.at, seam.new_wh, True, len(life.steps) + 1))


def rollover(life: Life) -> None:
    """A counter near the end that its map knows: it begins again at zero, and nobody has to say so."""
    last, end = life.last, max(life.true_wh, life.last.wh) + life.chance.randrange(1, 5_000)
    for _ in range(life.chance.randrange(1, 4)):
        life.pass_time(life.chance.choice((5, 20, 60)))
    over = life.true_wh - end
    known = not life.undated and last.reading not in life.untimed and life.at - last.at <= LONGEST_ROLLOVER
    if over <= 0 or not known or max(over, end - last.wh) > end // 20:
        life.see()
        return
    life.moved += end - life.born
    life.true_wh, life.born = life.true_wh - end, 0
    assert not life.see()
    new = life.steps[-1]
    seam = rolled_over("roof", last, new, end, RATED_KW, step_wh(EXPORT, end))
    assert seam is not None, (last, new, end)
    found = settled([last, new], seam, RATED_KW, step_wh(EXPORT, end))
    assert found == (new.reading,), found
    life.settle(seam, found)


def unknown_rollover(life: Life) -> None:
    """The same where no map knows the end: a lasting fall, and nothing is booked from then on."""
    base = life.last.wh
    if base < 1_000_000:
        return
    life.true_wh, life.silenced = life.chance.randrange(1, 100_000), life.lived
    for _ in range(life.chance.randrange(2, 6)):
        life.pass_time(life.chance.choice((10, 60, 400)))
        if shown_wh(life.true_wh) < base:
            life.see(strange=True)


def clock_step(life: Life) -> None:
    """The box restarts with a wrong clock, which somebody sets by hours. It is trusted later on, or never in that boot.

    With trust the moments of its readings are derived backwards, by the boot-time clock; without it they are on no day.
    """
    life.pass_time(life.chance.choice((1, 20, 300)))
    life.undated = True  # another boot: how long it was off is not known before the clock is trusted
    believed: list[int] = []
    for _ in range(life.chance.randrange(1, 5)):
        life.pass_time(life.chance.choice((10, 60, 200)))
        if life.see():
            believed.append(life.steps[-1].reading)
        life.undated = False  # within the boot the boot-time clock tells
    if life.chance.random() < 0.5:
        life.untimed |= set(believed)
        life.pass_time(life.chance.choice((1, 20, 300)))
        life.undated = True
    life.see()


EVENTS: tuple[Callable[[Life], None], ...] = (
    gap,
    zero_bounce,
    small_fall,
    spike,
    duplicate,
    another_counter,
    rollover,
    clock_step,
)


def close(life: Life) -> tuple[list[int], Border, int]:
    """Periods of the closed days, the last border, and how many days are held."""
    indices = [
        Index(step.at, step.wh + offset(life.seams, step.at), step.reading)
        for step in life.steps
        if step.believed and step.reading not in life.untimed
    ]
    previous = Border(indices[0].at, indices[0].wh, 0, "start", 1, None)
    periods: list[int] = []
    held = 0
    for day in daily.days_between(START, life.at, ZONE):
        end = daily.end_of(day, ZONE)
        before = [index for index in indices if index.at <= end][-1]
        after = next((index for index in indices if index.at > end), None)
        found = daily.border(end, before, after, previous, cadence=CADENCE, max_estimated=MAX_ESTIMATED)
        if isinstance(found, Gap):
            assert found.reason.startswith("no reading for")
            held += 1
        elif isinstance(found, Border):
            periods.append(found.total_wh - previous.total_wh)
            previous = found
    return periods, previous, held


def live(chance: random.Random) -> Life:
    life = Life(chance)
    life.begin(int(10 ** chance.uniform(4, 7)) * 1000 + chance.randrange(1000))
    for _ in range(chance.randrange(3, 8)):
        for _ in range(chance.randrange(1, 5)):
            life.pass_time(chance.choice((10, 30, 40, 100, 240)))
            life.see()
        if chance.random() < 0.5:  # most of what can go wrong with a day goes wrong at its border
            midnight = daily.end_of(daily.day_of(life.at, ZONE), ZONE)
            life.pass_time(max(5.0, (midnight - life.at) / timedelta(minutes=1) - chance.choice((5, 15, 25))))
            life.see()
        event = chance.choice(EVENTS)
        event(life)
        life.seen[event.__name__] += 1
    if chance.random() < 0.1:
        unknown_rollover(life)
    return life


def test_no_history_of_a_counter_books_a_wrong_watt_hour() -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {HISTORIES} histories")
    chance = random.Random(seed)
    days = held = strange = absent = exact = 0
    codes: set[str] = set()
    seams: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    steps_wh: set[int] = set()
    for number in range(HISTORIES):
        life = live(chance)
        periods, last, waiting = close(life)
        where = f"seed {seed}, history {number}"
        assert all(period >= 0 for period in periods), where
        # What was closed is what the continuous counter moved, and never more than the displays did by now.
        assert sum(periods) == last.total_wh <= life.lived, where
        total = life.last.wh + offset(life.seams, life.last.at) - life.steps[0].wh
        assert last.total_wh <= total <= life.lived, where
        if life.last == life.steps[-1] and life.last.at == life.at:
            exact += 1
            assert total == life.lived, where
        # What was strange, and nothing else, is kept as evidence; a seam has settled the rest.
        assert sum(1 for step in life.steps if not step.believed) == life.strange, where
        days, held, strange = days + len(periods), held + waiting, strange + life.strange
        absent, codes, steps_wh = absent + life.absent, codes | life.codes, steps_wh | life.steps_wh
        seen += life.seen
        seams.update(seam.kind for seam in life.seams)
    print(f"{days} days closed, {held} held, {strange} readings kept as evidence, {absent} zeros; {dict(seams)}")
    print(f"{exact} totals equal to the Wh; float32 steps of {sorted(steps_wh)} Wh; told: {sorted(codes)}")
    assert days > HISTORIES / 4 and held > 0 and strange > 0 and absent > 0 and exact > HISTORIES / 2
    assert codes == {"absent", "energy_export fell from # to # Wh", "energy_export moved by # Wh where # are possible"}
    # The float32 counter had every step between 10^4 and 10^7 kWh, and everything that can happen did.
    assert {1, 2, 4, 8, 16, 32, 63, 125, 250, 500, 1000} <= steps_wh
    assert min(seen[event.__name__] for event in EVENTS) > HISTORIES / 20
    assert min(seams[kind] for kind in ("swap", "reset", "rollover")) > HISTORIES / 100


def test_a_ledger_that_believes_everything_would_be_seen() -> None:
    """The negative control: the same lives, with every reading believed, end with days that cannot be."""
    chance = random.Random(1)
    wrong = 0
    for _ in range(300):
        life = live(chance)
        life.steps = [Step(step.at, step.wh, True, step.reading) for step in life.steps]
        life.untimed.clear()
        periods, last, _ = close(life)
        wrong += any(period < 0 for period in periods) or last.total_wh > life.lived
    assert wrong > 3


def judged(values: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (hours, kWh) are believed, in order."""
    life = Life(random.Random(0))
    first = values[0]
    life.at = START + timedelta(hours=first[0])
    life.steps.append(Step(life.at, int(Decimal(str(first[1])) * 1000), True, 1))
    believed = [True]
    for hours, kwh in values[1:]:
        life.at = START + timedelta(hours=hours)
        before = len(life.steps)
        life.see(int(Decimal(str(kwh)) * 1000))
        believed.append(len(life.steps) > before and life.steps[-1].believed)
    return believed


@pytest.mark.parametrize(
    ("values", "believed"),
    [
        # Field reports of other gateways: late RTU answers, dormant inverters, replaced boards.
        ([(10, 180.2), (10.1, 5000), (10.2, 180.4)], [True, False, True]),
        ([(10, 215.7), (10.1, 215.6), (10.2, 215.7)], [True, False, True]),
        ([(18, 12_448), (23, 0), (30, 12_448)], [True, False, True]),
        ([(19, 12_448), *((hour, 0) for hour in range(20, 30)), (30.5, 12_448.2)], [True, *[False] * 10, True]),
        ([(10, 407.8), (11, 6.8), (12, 7.1), (36, 21.0)], [True, False, False, False]),
        ([(10, 131_100.015625), (11, 131_100.03125), (12, 131_100.046875)], [True, True, True]),
    ],
)
def test_field_cases_book_nothing_wrong(values: Sequence[tuple[float, float]], believed: list[bool]) -> None:
    assert judged(values) == believed


@pytest.mark.parametrize("step", [1, 10, 100, 1000])
def test_25_years_of_coarse_counters_lose_less_than_one_step(step: int) -> None:
    """A device that shows whole steps of Wh: days add up exactly to what it showed, and never overtake the truth."""
    chance = random.Random(step)
    true = published = 0
    previous = Border(START, 0, 0, "start", 0, None)
    for number in range(25 * 365):
        true += chance.randrange(0, 400_000)
        at = START + timedelta(days=number + 1)
        found = daily.border(
            at, Index(at, true - true % step, number + 1), None, previous, cadence=CADENCE, max_estimated=MAX_ESTIMATED
        )
        assert isinstance(found, Border)
        published += found.total_wh - previous.total_wh
        previous = found
        assert 0 <= true - published < step
    assert published == previous.total_wh

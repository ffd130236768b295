"""Where the sun stood, and how a gap over midnight is split along it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from heliograph.core import daily, daylight
from heliograph.core.daily import Border, Day, Index, Method
from heliograph.core.daylight import Position

SINGAPORE = Position(1.35, 103.82)
BERLIN = Position(52.52, 13.4)
TROMSO = Position(69.65, 18.96)
ZONE = ZoneInfo("Asia/Singapore")
START = Border(datetime(2026, 3, 13, 16, tzinfo=UTC), 0, 0, "start", 1, None)
MIDNIGHT = datetime(2026, 3, 14, 16, tzinfo=UTC)


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


def split(position: Position | None, before: float, after: float, moved: int, at: datetime = MIDNIGHT) -> Border:
    """The border at a midnight, with readings so many hours before and after it."""
    found = daily.border(
        at,
        Index(at - hours(before), 0, 1),
        Index(at + hours(after), moved, 2),
        START,
        cadence=timedelta(minutes=3),
        max_estimated=timedelta(0),
        on_gap="split",
        position=position,
    )
    assert isinstance(found, Border)
    return found


def test_parts_of_the_light_add_up_to_the_whole() -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(60):
        position = Position(chance.uniform(-90, 90), chance.uniform(-180, 180))
        a = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=chance.randrange(365 * 86_400_000_000))
        b = a + timedelta(microseconds=chance.randrange(1, 3 * 86_400_000_000))
        c = b + timedelta(microseconds=chance.randrange(1, 86_400_000_000))
        parts = daylight.light(position, a, b), daylight.light(position, b, c)
        assert min(parts) >= 0 and sum(parts) == daylight.light(position, a, c), (seed, position, a, b, c)


def test_a_clear_day_in_singapore_brings_what_textbooks_say() -> None:
    day = daylight.light(SINGAPORE, datetime(2026, 3, 20, 16, tzinfo=UTC), datetime(2026, 3, 21, 16, tzinfo=UTC))
    assert 6.5 < day / 1e6 / 1e6 / 3600 < 8.0  # kWh per square metre
    noon = daylight.light(SINGAPORE, datetime(2026, 3, 21, 5, tzinfo=UTC), datetime(2026, 3, 21, 5, 5, tzinfo=UTC))
    assert 1_000_000 < noon // 300_000_000 < 1_050_000  # mW per square metre


def test_the_night_is_dark_to_the_cell() -> None:
    dark = daylight.dark(SINGAPORE, MIDNIGHT - hours(12), MIDNIGHT + hours(12))
    assert abs(dark - hours(12)) < timedelta(minutes=15)
    assert daylight.dark(TROMSO, datetime(2026, 12, 20, tzinfo=UTC), datetime(2026, 12, 22, tzinfo=UTC)) == hours(48)


@pytest.mark.parametrize(
    ("position", "before", "after", "method", "least", "most"),
    [
        # An evening and a bit of the night: all of it was counted before midnight; by time a fifth less.
        (SINGAPORE, 8, 2, "daylight", 1_000_000, 1_000_000),
        # From noon to noon the other way round about half.
        (SINGAPORE, 11, 13, "daylight", 450_000, 550_000),
        # Two hours of evening light (17:00 to sunset at 19:15) against an hour of the morning.
        (SINGAPORE, 7, 8, "daylight", 880_000, 950_000),
        # Both ends in one night: no light tells anything.
        (SINGAPORE, 2, 2, "split", 500_000, 500_000),
        (None, 8, 2, "split", 800_000, 800_000),
    ],
)
def test_a_gap_is_split_along_the_light(
    position: Position | None, before: float, after: float, method: Method, least: int, most: int
) -> None:
    found = split(position, before, after, 1_000_000)
    assert found.method == method and least <= found.index_wh <= most


def test_in_a_polar_night_time_is_all_there_is() -> None:
    at = datetime(2026, 12, 20, 23, tzinfo=UTC)
    assert (split(TROMSO, 12, 12, 1001, at).method, split(TROMSO, 12, 12, 1001, at).index_wh) == ("split", 500)


def test_under_a_midnight_sun_the_curve_has_no_night() -> None:
    at = datetime(2026, 6, 20, 22, 46, tzinfo=UTC)  # when it stands lowest
    found = split(TROMSO, 1, 1, 1_000_000, at)
    assert found.method == "daylight" and 450_000 < found.index_wh < 550_000


def test_split_days_add_up_and_never_claim_early() -> None:
    """Random gaps over one and more midnights: exact sums, no negative day, no Wh before its share of the light."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    along = 0
    for _ in range(100):
        position = Position(chance.uniform(-70, 70), chance.uniform(-180, 180))
        first = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=chance.randrange(365 * 86_400))
        last = first + timedelta(seconds=chance.randrange(3600, 5 * 86_400))
        moved = chance.choice((1, 7, 1000, 10**6, 10**9)) + chance.randrange(1000)
        before, after = Index(first, 5_000, 1), Index(last, 5_000 + moved, 2)
        previous = Border(first, 5_000, 0, "start", 1, None)
        total = 0
        for day in daily.days_between(first, last, ZONE):
            end = daily.end_of(day, ZONE)
            found = daily.border(
                end,
                before,
                after,
                previous,
                cadence=timedelta(0),
                max_estimated=timedelta(0),
                on_gap="split",
                position=position,
            )
            assert isinstance(found, Border)
            share = Day("roof", day, previous, found).period_wh
            assert share >= 0, seed
            total, previous = total + share, found
            whole = daylight.light(position, first, last)
            if found.method == "daylight":
                along += 1
                part = daylight.light(position, first, end)
                assert total * whole <= moved * part < (total + 1) * whole, seed
        assert total + (after.wh - previous.index_wh) == moved, seed
    assert along > 60


def a_day(opening: Border, closing: Border) -> Day:
    return Day("roof", date(2026, 3, 14), opening, closing)


def border(index: int, method: Method, before: int, after: int | None = None) -> Border:
    return Border(MIDNIGHT, index, index, method, before, after)


@pytest.mark.parametrize(
    ("opening", "closing", "estimated"),
    [
        (border(1000, "read", 1), border(9000, "read", 2), 0),
        (border(1000, "read", 1), border(9000, "still", 2, 3), 0),
        # Reading 4 showed 8,500, reading 5 showed 10,000: 500 of what this day has come from the split.
        (border(1000, "read", 1), border(9000, "split", 4, 5), 500),
        (border(1000, "read", 1), border(9000, "daylight", 4, 5), 500),
        # Reading 6 showed 1,700 after a gap in which this day began.
        (border(1000, "split", 1, 6), border(9000, "read", 2), 700),
        (border(1000, "split", 1, 6), border(9000, "daylight", 4, 5), 1200),
        # The day lies in one gap as a whole.
        (border(1000, "split", 1, 5), border(9000, "split", 1, 5), 8000),
        # Carried to the later day: this one has only what was read, the later one all of the gap.
        (border(1000, "read", 1), border(8500, "carry", 4, 5), 0),
        (border(8500, "carry", 4, 5), border(12000, "read", 9), 1500),
    ],
)
def test_the_estimated_share_is_what_only_the_split_gave(opening: Border, closing: Border, estimated: int) -> None:
    index_of = {1: 900, 4: 8500, 5: 10_000, 6: 1700}
    assert daily.estimated_wh(a_day(opening, closing), index_of) == estimated


def test_the_sun_is_imported_only_when_a_gap_needs_it() -> None:
    program = (
        "import sys, heliograph.daemon, heliograph.work.poll, heliograph.store\n"
        "assert 'astral' not in sys.modules\n"
        "from heliograph.core import daylight\n"
        "from datetime import datetime, UTC\n"
        "a, b = datetime(2026, 3, 14, tzinfo=UTC), datetime(2026, 3, 15, tzinfo=UTC)\n"
        "daylight.light(daylight.Position(1, 103), a, b)\n"
        "assert 'astral' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

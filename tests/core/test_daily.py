from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.core import daily
from heliograph.core.daily import Border, Day, Gap, Index, Wait

SINGAPORE = ZoneInfo("Asia/Singapore")
MIDNIGHT = datetime(2026, 3, 14, 16, tzinfo=UTC)  # of 15 March in Singapore
START = Border(MIDNIGHT - timedelta(days=1), 10_000, 500, "read", 1, None, 1)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Asia/Singapore", date(2026, 3, 14), 24),
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("Australia/Lord_Howe", date(2026, 10, 4), 23.5),
        ("America/Sao_Paulo", date(2018, 11, 4), 23),  # midnight did not exist: clocks jumped from 00:00 to 01:00
        ("Asia/Beirut", date(2026, 3, 29), 23),  # likewise
        ("America/Havana", date(2026, 11, 1), 25),  # 00:00 to 01:00 happened twice
        ("Pacific/Apia", date(2011, 12, 30), 0),  # the day Samoa left out
        ("Europe/Berlin", date(2028, 2, 29), 24),
    ],
)
def test_a_local_day_is_as_long_as_its_zone_says(zone: str, day: date, hours: float) -> None:
    length = daily.end_of(day, ZoneInfo(zone)) - daily.start_of(day, ZoneInfo(zone))
    assert length == timedelta(hours=hours)


def test_a_day_without_midnight_begins_when_the_clocks_jump() -> None:
    assert daily.start_of(date(2018, 11, 4), ZoneInfo("America/Sao_Paulo")) == datetime(2018, 11, 4, 3, tzinfo=UTC)


@given(
    st.integers(631_152_000, 2_145_916_800),
    st.sampled_from(["Asia/Singapore", "Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Pacific/Apia"]),
)
def test_every_instant_lies_in_exactly_one_day(second: int, zone: str) -> None:
    at, tz = datetime.fromtimestamp(second, UTC), ZoneInfo(zone)
    day = daily.day_of(at, tz)
    assert daily.start_of(day, tz) <= at < daily.end_of(day, tz)


def test_midnight_belongs_to_the_day_that_begins() -> None:
    assert daily.day_of(MIDNIGHT, SINGAPORE) == date(2026, 3, 15)
    assert daily.day_of(MIDNIGHT - timedelta(microseconds=1), SINGAPORE) == date(2026, 3, 14)


def test_days_between_names_only_days_that_are_over_and_that_exist() -> None:
    apia = ZoneInfo("Pacific/Apia")
    start = daily.start_of(date(2011, 12, 28), apia)
    end = daily.start_of(date(2012, 1, 1), apia) + HOUR
    assert list(daily.days_between(start, end, apia)) == [date(2011, 12, 28), date(2011, 12, 29), date(2011, 12, 31)]


def border(before: Index, after: Index | None, on_gap: daily.OnGap = "hold") -> Border | Wait | Gap:
    return daily.border(MIDNIGHT, before, after, START, cadence=3 * MINUTE, max_estimated=2 * HOUR, on_gap=on_gap)


@pytest.mark.parametrize(
    ("before_ago", "before_wh", "after_in", "after_wh", "index", "method"),
    [
        (timedelta(0), 12_000, None, 0, 12_000, "read"),
        (MINUTE, 12_000, None, 0, 12_000, "read"),
        (MINUTE, 12_000, MINUTE, 12_900, 12_000, "read"),
        (3 * MINUTE, 12_000, None, 0, 12_000, "read"),
        (HOUR, 12_000, HOUR, 12_000, 12_000, "still"),
        (30 * HOUR, 12_000, 30 * HOUR, 12_000, 12_000, "still"),
        (HOUR, 12_000, HOUR, 12_500, 12_250, "split"),
        (HOUR, 12_000, HOUR, 12_001, 12_000, "split"),  # a single Wh goes to the later day
        (90 * MINUTE, 12_000, 30 * MINUTE, 12_400, 12_300, "split"),
    ],
)
def test_the_index_at_midnight(
    before_ago: timedelta, before_wh: int, after_in: timedelta | None, after_wh: int, index: int, method: str
) -> None:
    after = Index(MIDNIGHT + after_in, after_wh, 3) if after_in is not None else None
    found = border(Index(MIDNIGHT - before_ago, before_wh, 2), after)
    assert isinstance(found, Border)
    assert (found.index_wh, found.method, found.total_wh) == (index, method, 500 + index - 10_000)


def test_without_a_reading_after_a_gap_nothing_is_decided() -> None:
    assert border(Index(MIDNIGHT - HOUR, 12_000, 2), None) == Wait()


def test_a_long_gap_that_moved_energy_is_held_and_says_why() -> None:
    found = border(Index(MIDNIGHT - HOUR, 12_000, 2), Index(MIDNIGHT + 2 * HOUR, 13_500, 3))
    assert isinstance(found, Gap)
    assert "3.0 h" in found.reason and "1.500 kWh" in found.reason


def test_the_site_may_carry_a_long_gap_to_the_later_day() -> None:
    found = border(Index(MIDNIGHT - 30 * HOUR, 12_000, 2), Index(MIDNIGHT + 2 * HOUR, 13_500, 3), "carry")
    assert isinstance(found, Border) and found.index_wh == 12_000


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(0, 50_000)), min_size=2, max_size=60), st.booleans())
def test_days_add_up_to_what_the_counter_moved(steps: list[tuple[int, int]], carry: bool) -> None:
    """Whatever the gaps: the periods of neighbouring days sum to the counter's movement between the outer borders."""
    at, wh = MIDNIGHT - timedelta(days=1), 10_000
    indices = [Index(at, wh, 1)]
    for number, (minutes, moved) in enumerate(steps, 2):
        at, wh = at + minutes * MINUTE, wh + moved
        indices.append(Index(at, wh, number))
    previous, days = START, []
    for day in daily.days_between(START.at, indices[-1].at, SINGAPORE):
        end = daily.end_of(day, SINGAPORE)
        before = max((i for i in indices if i.at <= end), key=lambda i: i.at)
        after = min((i for i in indices if i.at > end), key=lambda i: i.at, default=None)
        found = daily.border(
            end, before, after, previous, cadence=MINUTE, max_estimated=HOUR, on_gap="carry" if carry else "split"
        )
        if not isinstance(found, Border):
            break
        days.append(Day("roof", day, previous, found))
        previous = found
    assert all(day.period_wh >= 0 for day in days)
    assert (
        sum(day.period_wh for day in days) == previous.index_wh - START.index_wh == previous.total_wh - START.total_wh
    )
    assert previous.index_wh <= wh


def test_a_gap_in_which_gigawatt_hours_moved_is_split_too() -> None:
    assert daily.in_proportion(10**16, timedelta(hours=20), timedelta(hours=41)) == 10**16 * 20 // 41

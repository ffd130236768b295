"""The simulated sky: dark at night, never above the rated power, and integrated exactly."""

from __future__ import annotations

from array import array
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.rehearsal.sun import EPOCH, MINUTES, WORK_PER_WH, Curve, Sky, wobble

ORIGIN = datetime(2026, 3, 1, 17, 42, 11, 250_000, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(0), timedelta(days=11)).map(lambda after: ORIGIN + after)


def curve(sky: Sky) -> Curve:
    return Curve(lambda day: array("q", [round(light * 50e6) for light in sky.light(day)]), ORIGIN)


def day_number(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH).days


@pytest.mark.parametrize("zone", ["Asia/Singapore", "America/Los_Angeles", "Pacific/Kiritimati", "Asia/Kolkata", "UTC"])
def test_light_is_there_around_local_noon_and_only_between_local_sunrise_and_sunset(zone: str) -> None:
    where = ZoneInfo(zone)
    sky = Sky(where, seed=3)
    for number in range(day_number("2026-03-20"), day_number("2026-03-23")):
        for minute, light in enumerate(sky.light(number)):
            local = (EPOCH + timedelta(days=number, minutes=minute)).astimezone(where)
            hour = local.hour + local.minute / 60 - (local.dst() or timedelta()) / timedelta(hours=1)
            if 10 <= hour <= 14:
                assert light > 0, local
            if hour < 5.8 or hour > 18.2:
                assert light == 0, local
            assert 0 <= light <= 1


def test_a_longitude_moves_noon_and_a_latitude_the_length_of_the_day() -> None:
    midsummer = day_number("2026-06-21")
    daylight = {
        latitude: sum(light > 0 for light in Sky(UTC, latitude=latitude).light(midsummer))
        for latitude in (-78.0, -35.0, 0.0, 51.0, 78.0)
    }
    assert daylight[-78] == 0
    assert daylight[-78] < daylight[-35] < daylight[0] < daylight[51] < daylight[78] == MINUTES
    assert Sky(UTC, longitude=103.8).noon(midsummer) == 720 - 103.8 * 4


def test_one_seed_has_one_sky_and_another_seed_another() -> None:
    number = day_number("2026-03-20")
    assert Sky(UTC, seed=5).light(number) == Sky(UTC, seed=5).light(number)
    assert Sky(UTC, seed=5).light(number) != Sky(UTC, seed=6).light(number)


@given(st.integers(0, 50), st.floats(-1e6, 1e6))
def test_a_wandering_stays_within_its_bounds_and_does_not_jump(channel: int, at: float) -> None:
    here, next_door = wobble(1, channel, at), wobble(1, channel, at + 0.001)
    assert -1 <= here <= 1
    assert abs(here - next_door) < 0.01


@settings(deadline=None, max_examples=60)
@given(MOMENTS, MOMENTS)
def test_work_is_the_area_under_the_power(one: datetime, other: datetime) -> None:
    start, end = sorted((one, other))
    power = curve(Sky(ZoneInfo("Asia/Singapore"), seed=9))
    # Straight lines between minutes: a trapezoid between all minutes, and the two ends, is the area itself.
    borders = [start]
    at = start.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while at < end:
        borders.append(at)
        at += timedelta(minutes=1)
    borders.append(end)
    watts = [power.milliwatts(at) / 1000 for at in borders]
    area = sum(
        (watts[i] + watts[i + 1]) / 2 * (borders[i + 1] - borders[i]).total_seconds() / 3600
        for i in range(len(borders) - 1)
    )
    assert (power.work(end) - power.work(start)) / WORK_PER_WH == pytest.approx(area, abs=0.001)


@settings(deadline=None, max_examples=30)
@given(st.lists(MOMENTS, min_size=2, max_size=8))
def test_work_does_not_depend_on_what_was_asked_before(moments: list[datetime]) -> None:
    sky = Sky(ZoneInfo("Europe/Berlin"), seed=2)
    asked_in_this_order = curve(sky)
    told = [asked_in_this_order.work(at) for at in moments]
    assert told == [curve(sky).work(at) for at in moments]
    in_time = [work for _, work in sorted(zip(moments, told, strict=True))]
    assert in_time == sorted(in_time)


def test_nothing_flowed_before_the_origin() -> None:
    assert curve(Sky(UTC)).work(ORIGIN - timedelta(days=3)) == 0


def test_a_year_later_is_told_without_having_been_asked_between() -> None:
    power = curve(Sky(UTC, seed=4))
    work = power.work(ORIGIN + timedelta(days=400))
    assert 400 * 100_000 < work / WORK_PER_WH < 400 * 450_000  # 50 kW for 2 to 9 full hours a day

from __future__ import annotations

from datetime import date, timedelta
from zoneinfo import ZoneInfo, available_timezones

from heliograph.core import daily

FIRST, LAST = date(2024, 1, 1), date(2038, 1, 1)
INSTANT = timedelta(microseconds=1)


def test_in_every_zone_the_days_of_2024_to_2037_fill_the_time_without_gap_or_overlap() -> None:
    """Every local day begins at the first instant of its date, and the lengths sum to the time that passed."""
    changes = 0
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        start = daily.start_of(FIRST, zone)
        passed, day = timedelta(0), FIRST
        while day < LAST:
            end = daily.end_of(day, zone)
            length = end - start
            passed += length
            if length != timedelta(days=1):
                changes += 1
                assert timedelta(0) <= length <= timedelta(hours=49), (name, day)
                assert daily.day_of(start, zone) == day or length == timedelta(0), (name, day)
                assert daily.day_of(end - INSTANT, zone) == day or length == timedelta(0), (name, day)
                assert (end - INSTANT).astimezone(zone).date() <= day, (name, day)
            start, day = end, day + timedelta(days=1)
        assert passed == daily.start_of(LAST, zone) - daily.start_of(FIRST, zone), name
    print(f"{changes} days of other than 24 hours")
    assert changes > 1000

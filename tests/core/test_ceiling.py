"""The energy ceiling, against figures of the platform sheet (7.1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from heliograph.core.ceiling import Plant, ceiling_wh

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def years(number: float) -> datetime:
    return NOW - timedelta(days=365.25 * number)


@pytest.mark.parametrize(
    ("plant", "hours", "wh"),
    [
        (Plant(1), 24, 6575),
        (Plant(10), 1, 2739),
        (Plant(1, 1500), 24, 4931),
        (Plant(1, commissioned=years(1)), 24, 6575),
        (Plant(1, commissioned=years(-1)), 24, 6575),  # not yet commissioned counts as one year
        (Plant(1, commissioned=years(10)), 24, 6285),
    ],
)
def test_the_ceiling_is_the_servers(plant: Plant, hours: int, wh: int) -> None:
    assert int(ceiling_wh(plant, NOW, NOW + timedelta(hours=hours), NOW, reserve=0)) == wh


@pytest.mark.parametrize(("yield_kwh", "share", "wh"), [(1500, 0.205, 4930), (2000, 0.274, 6580)])
def test_the_share_of_the_nameplate_is_that_of_the_sheet(yield_kwh: float, share: float, wh: int) -> None:
    hour = ceiling_wh(Plant(1, yield_kwh), NOW, NOW + timedelta(hours=1), NOW, reserve=0)
    assert hour / 1000 == pytest.approx(share, abs=0.0006)
    assert hour * 24 == pytest.approx(wh, abs=6)


def test_the_reserve_stays_below_the_ceiling() -> None:
    day = NOW + timedelta(days=1)
    assert ceiling_wh(Plant(1), NOW, day, NOW) == pytest.approx(0.98 * ceiling_wh(Plant(1), NOW, day, NOW, reserve=0))

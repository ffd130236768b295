from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from heliograph.core.ledger import Seam, Step, offset, rolled_over, settled
from heliograph.core.plausible import rollover_wh
from heliograph.core.registers import Register

NOON = datetime(2026, 3, 14, 4, tzinfo=UTC)


def test_the_continuous_counter_stands_still_at_a_seam() -> None:
    seams = [
        Seam("roof", NOON, "swap", 12_448_000, 0),
        Seam("roof", NOON + timedelta(days=1), "reset", 5_000, 100),
    ]
    second = timedelta(seconds=1)
    assert 12_448_000 + offset(seams, NOON - second) == 12_448_000
    assert 0 + offset(seams, NOON) == 12_448_000
    assert 5_000 + offset(seams, NOON + timedelta(days=1) - second) == 12_453_000
    assert 100 + offset(seams, NOON + timedelta(days=1)) == 12_453_000


RANGE = 1_000_000_000
"""Wh in a counter of 999,999.999 kWh."""


@pytest.mark.parametrize(
    ("last_wh", "hours", "new_wh", "found"),
    [
        (RANGE - 20_000, 1, 10_000, True),
        (RANGE - 1, 0.01, 0, True),
        (RANGE - 20_000, 1, 40_003, True),
        (RANGE - 20_000, 1, 40_004, False),  # more than 50 kW bring in an hour, with a fifth and two steps on top
        (RANGE - 20_000, 25, 10_000, False),  # after more than a day a reset looks the same
        (700_000_000, 23, 10_000, False),  # not near its end
        (12_448_000, 1, 0, False),  # an ordinary reset
        (RANGE - 20_000, 1, RANGE - 20_100, False),  # a small fall near the end is none
        (RANGE + 5, 1, 100, False),  # it went beyond what the map says: then the map is wrong
    ],
)
def test_only_a_counter_that_can_have_come_over_its_end_has_rolled_over(
    last_wh: int, hours: float, new_wh: int, found: bool
) -> None:
    last = Step(NOON, last_wh, True, 1)
    new = Step(NOON + timedelta(hours=hours), new_wh, False, 2)
    seam = rolled_over("roof", last, new, RANGE, 50.0, 1)
    assert (seam is not None) == found
    if seam is not None:
        assert (seam.kind, seam.old_wh, seam.new_wh) == ("rollover", RANGE, 0)
        assert "known to the map" in seam.note and NOON < seam.at <= new.at
        assert settled([last, new], seam, 50.0, 1) == (2,)


@pytest.mark.parametrize(
    ("register", "range_wh"),
    [
        (Register(quantity="e", type="u32", unit="kWh", scale=Decimal("0.1"), rollover=Decimal("999.9")), 1_000_000),
        (Register(quantity="e", type="u32", unit="Wh", rollover=Decimal(4294967295)), 4_294_967_296),
        (Register(quantity="e", type="u32", unit="kWh", step=Decimal(10), rollover=Decimal(99990)), 100_000_000),
        (Register(quantity="e", type="float32", unit="kWh", rollover=Decimal("999999.99")), 999_999_990),
        (Register(quantity="e", type="u32", unit="kWh"), None),
        (Register(quantity="e", type="u32", unit="kWh", rollover=Decimal(999), times=("ct_ratio",)), None),
        (Register(quantity="e", type="acc32", unit="Wh", rollover=Decimal(4294967295), scale_register=9), None),
    ],
)
def test_the_map_says_where_a_counter_ends(register: Register, range_wh: int | None) -> None:
    assert rollover_wh(register) == range_wh

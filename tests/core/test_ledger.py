from __future__ import annotations

from datetime import UTC, datetime, timedelta

from heliograph.core.ledger import Seam, offset

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

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from heliograph.core.site import spread_offset

SPREAD = timedelta(hours=2)
FLEET = [f"sg-{number:04}" for number in range(10_000)]


def test_a_fleet_pushes_evenly_over_the_two_hours() -> None:
    """Also one whose names are nearly the same: in no five minutes more than a fifth above the mean."""
    bins = Counter(spread_offset(site, "redex", SPREAD) // timedelta(minutes=5) for site in FLEET)
    assert sorted(bins) == list(range(24))
    assert max(bins.values()) < 1.2 * len(FLEET) / 24
    assert min(bins.values()) > 0.8 * len(FLEET) / 24


def test_an_offset_is_the_same_for_ever() -> None:
    assert spread_offset("sg-0042", "redex", SPREAD) == timedelta(seconds=90, microseconds=299343)
    assert spread_offset("sg-0042", "drec", SPREAD) == timedelta(seconds=3498, microseconds=348840)


def test_two_platforms_of_a_site_have_offsets_of_their_own() -> None:
    apart = [spread_offset(site, "redex", SPREAD) - spread_offset(site, "drec", SPREAD) for site in FLEET]
    near = sum(abs(one) < timedelta(minutes=1) for one in apart)
    assert near < 2 * len(FLEET) / 60  # chance: two minutes of a hundred and twenty


def test_without_a_spread_there_is_no_offset() -> None:
    assert spread_offset("sg-0042", "redex", timedelta(0)) == timedelta(0)

"""D-REC: pairs of days and JSON, days that travel together, History, and what can never be sent."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from heliograph.core.delivery import DayRow
from tests.uplink.drec_platform import (
    packed,
    row,
    uplink,
)

# Days and JSON


def test_a_read_is_one_whole_number_of_wh_at_the_end_of_the_day() -> None:
    parcel = uplink().pack([row()])
    assert parcel is not None
    assert parcel.path == "/meter-reads/new/SG-roof"
    assert parcel.body == (
        b'{"type":"Delta","unit":"Wh","reads":[{"endtimestamp":"2026-05-01T16:00:00Z","value":41250}]}'
    )


def test_an_organization_is_a_number_and_a_name_is_quoted() -> None:
    parcel = uplink(organization=7).pack([replace(row(), remote_id="Dach 1/Süd")])
    assert parcel is not None
    assert parcel.path == "/meter-reads/new/Dach%201%2FS%C3%BCd"
    assert json.loads(parcel.body)["organizationId"] == 7


def test_a_fraction_of_a_second_is_not_sent() -> None:
    end = datetime(2026, 5, 1, 16, 0, 0, 999_999, tzinfo=UTC)
    assert packed([row(end=end)]) == ([1], {"endtimestamp": "2026-05-01T16:00:00Z", "value": 41250})


@pytest.mark.parametrize(
    ("given", "taken", "value", "end"),
    [
        ([row(1, 0, 5), row(2, 1, 6)], [1], 5, "2026-05-01T16:00:00Z"),
        ([row(1, 0, 0), row(2, 1, 6)], [1, 2], 6, "2026-05-02T16:00:00Z"),
        ([row(1, 0, 0), row(2, 1, 0), row(3, 2, 7), row(4, 3, 8)], [1, 2, 3], 7, "2026-05-03T16:00:00Z"),
        ([row(1, 0, 5, last_rule="L4"), row(2, 1, 6)], [1, 2], 11, "2026-05-02T16:00:00Z"),
        ([row(1, 0, 5, last_rule="S6"), row(2, 1, 6)], [1, 2], 11, "2026-05-02T16:00:00Z"),
        ([row(1, 0, 5, last_rule="E-5010"), row(2, 1, 6)], [1, 2], 11, "2026-05-02T16:00:00Z"),
        (
            [row(1, 0, 5, last_rule="L4"), row(2, 1, 6, last_rule="L4"), row(3, 2, 7)],
            [1, 2, 3],
            18,
            "2026-05-03T16:00:00Z",
        ),
        ([row(1, 0, 5, last_rule="L4"), row(2, 1, 0), row(3, 2, 7)], [1, 2, 3], 12, "2026-05-03T16:00:00Z"),
        ([row(1, 0, 5, last_rule="T1"), row(2, 1, 6)], [1], 5, "2026-05-01T16:00:00Z"),
        ([row(1, 0, 0), row(2, 0, 5, "barn")], [2], 5, "2026-05-01T16:00:00Z"),
        ([row(1, 0, 5, last_rule="L4"), row(2, 0, 5, "barn")], [2], 5, "2026-05-01T16:00:00Z"),
    ],
)
def test_what_cannot_be_sent_alone_rides_along_with_the_next_day(
    given: list[DayRow], taken: list[int], value: int, end: str
) -> None:
    assert packed(given) == (taken, {"endtimestamp": end, "value": value})


@pytest.mark.parametrize("given", [[], [row(1, 0, 0)], [row(1, 0, 0), row(2, 1, 0)], [row(1, 0, 5, last_rule="L4")]])
def test_what_has_nobody_to_ride_with_waits(given: list[DayRow]) -> None:
    assert packed(given) is None


def test_aggregate_sends_the_running_total_from_its_own_zero() -> None:
    given = [row(1, 0, 0, total=900_000), row(2, 1, 500, total=900_500), row(3, 2, 700, total=901_200)]
    zero = {"roof": 900_000}
    assert packed(given, "Aggregate", zero_wh=zero) == ([1, 2], {"endtimestamp": "2026-05-02T16:00:00Z", "value": 500})
    assert packed(given[2:], "Aggregate", zero_wh=zero) == (
        [3],
        {"endtimestamp": "2026-05-03T16:00:00Z", "value": 1200},
    )
    assert packed(given[1:], "Aggregate") == ([2], {"endtimestamp": "2026-05-02T16:00:00Z", "value": 900_500})


def test_a_day_of_the_same_total_rides_along() -> None:
    given = [row(1, 0, 0, total=5), row(2, 1, 3, total=8)]
    assert packed(given, "Aggregate") == ([1, 2], {"endtimestamp": "2026-05-02T16:00:00Z", "value": 8})

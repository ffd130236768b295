"""D-REC: pairs of days and JSON, days that travel together, History, and what can never be sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from heliograph.core.ceiling import Plant
from heliograph.core.delivery import DayRow
from heliograph.uplink.drec_devices import Device
from heliograph.uplink.drec_packing import ReadType, history_groups, known_before, next_read, parcel
from tests.uplink.drec_platform import NOW, packed, row, uplink

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


# What the platform knows of the device


AT = datetime(2026, 4, 30, 16, tzinfo=UTC)
SMALL = Device("SG-roof", 101, Plant(1), AT - timedelta(days=400), AT - timedelta(days=800), "Delta")
"""It takes 6.4 kWh a day with our reserve."""


def moment(day: float) -> datetime:
    return AT + timedelta(days=day)


@pytest.mark.parametrize(
    ("periods", "taken"),
    [
        ([6000, 6000], [1]),
        ([6500, 1], [1, 2]),  # above the ceiling less its reserve
        ([6500, 6500, 100], [1, 2, 3]),
        ([0, 12_000, 1], [1, 2]),  # the time of a day without production counts
        ([9000] * 14, None),
        ([9000] * 14 + [1], [*range(1, 16)]),  # then the server's own word is heard
        ([9000, 9000], None),
    ],
)
def test_days_above_the_ceiling_are_merged_before_they_are_sent(periods: list[int], taken: list[int] | None) -> None:
    given = [row(n + 1, n, period) for n, period in enumerate(periods)]
    found = next_read(given, SMALL, "Delta", 0, NOW)
    assert (None if found is None else [one.id for one in found]) == taken


def test_without_a_capacity_nothing_is_merged() -> None:
    for device in (None, replace(SMALL, plant=None), replace(SMALL, first=True, read_type=None, created=AT)):
        assert next_read([row(1, 0, 90_000)], device, "Delta", 0, NOW) == [row(1, 0, 90_000)]


def test_the_first_value_of_a_counter_is_measured_from_the_registration() -> None:
    fresh = replace(SMALL, first=True, read_type=None, created=moment(-2))
    given = [row(1, 0, 12_000, total=12_000)]
    assert next_read(given, fresh, "Aggregate", 0, NOW) == given
    assert next_read(given, replace(fresh, created=moment(0)), "Aggregate", 0, NOW) is None


def early(
    given: Sequence[DayRow], device: Device, kind: ReadType = "Delta", zero: int = 0
) -> dict[int, tuple[str, str]]:
    found = known_before(given, device, kind, zero, NOW)
    assert all(verdict.remedy and verdict.text for verdict in found.values())
    assert all(verdict.wait for verdict in found.values() if verdict.state == "due")
    return {id: (verdict.state, verdict.rule) for id, verdict in found.items()}


E1, E2 = ("rejected", "aside/E1"), ("rejected", "aside/E2")


@pytest.mark.parametrize(
    ("created", "found"),
    [
        (-1.0, {}),
        (0.0, {}),
        (0.5, {1: E1}),  # the day straddles it
        (1.0, {1: E1}),  # equal is refused, too
        (1.5, {1: E1, 2: E1}),
        (9.0, {1: E1, 2: E1, 3: E1}),
    ],
)
def test_days_before_the_registration_are_set_aside(created: float, found: dict[int, tuple[str, str]]) -> None:
    given = [row(1, 0, 5), row(2, 1, 5), row(3, 2, 0)]
    assert early(given, replace(SMALL, created=moment(created), commissioned=None)) == found


def test_days_before_the_commissioning_are_set_aside() -> None:
    given = [row(1, 0, 5), row(2, 1, 5), row(3, 2, 5)]
    assert early(given, replace(SMALL, commissioned=moment(1.5))) == {1: E2, 2: E2}


def test_what_the_platform_does_not_tell_sets_nothing_aside() -> None:
    assert early([row()], Device("SG-roof")) == {}


@pytest.mark.parametrize(
    ("theirs", "ours", "locked"),
    [("Delta", "Delta", False), ("delta", "Delta", False), ("Aggregate", "Delta", True), ("Delta", "Aggregate", True),
     (None, "Delta", False)],
)  # fmt: skip
def test_the_other_type_holds_the_first_day(theirs: str | None, ours: ReadType, locked: bool) -> None:
    given = [row(1, 0, 5, total=5), row(2, 1, 5, total=10)]
    assert early(given, replace(SMALL, read_type=theirs), ours) == ({1: ("due", "L1")} if locked else {})


@pytest.mark.parametrize(("total", "zero", "told"), [(5, 0, {}), (6, 0, {1: ("due", "A3")}), (906, 901, {})])
def test_a_counter_that_was_not_at_zero_at_the_first_read_is_not_sent(
    total: int, zero: int, told: dict[int, tuple[str, str]]
) -> None:
    given = [row(1, 0, 5, total=total)]
    assert early(given, replace(SMALL, first=True, read_type=None), "Aggregate", zero) == told
    assert early(given, SMALL, "Delta", zero) == {}


# History


def old(id: int, day: int, period: int, rule: str = "history") -> DayRow:
    return row(id, day, period, last_rule=rule)


NEW = replace(SMALL, created=moment(10), commissioned=moment(-400), first=True, read_type=None)


def groups(given: Sequence[DayRow], device: Device | None = NEW) -> list[tuple[list[int], str]]:
    found = history_groups(given, device, NOW)
    return [([one.id for one in group], verdict.rule if verdict else "") for group, verdict in found]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], []),
        ([old(1, 0, 5), old(2, 1, 6)], [([1], ""), ([2], "")]),
        ([old(1, 0, 0), old(2, 1, 6), old(3, 2, 0)], [([1], "aside/H4"), ([2], ""), ([3], "aside/H4")]),
        ([old(1, 0, 8000), old(2, 1, 100), old(3, 2, 5)], [([1, 2], ""), ([3], "")]),
        ([old(1, 0, 8000), old(2, 1, 0)], [([1, 2], "")]),
        ([old(1, 0, 100), old(2, 1, 8000)], [([1, 2], "")]),  # the last one finds its time before it
        ([old(1, 0, 0), old(2, 1, 8000)], [([1, 2], "")]),
        ([old(1, 0, 100), old(2, 1, 0), old(3, 2, 8000)], [([1], ""), ([2, 3], "")]),
        ([old(1, 0, 100), old(2, 2, 8000)], [([1], ""), ([2], "aside/H8")]),  # no neighbour
        ([old(1, 0, 8000)], [([1], "aside/H8")]),
        ([old(1, 0, 5, "history/H8"), old(2, 1, 6)], [([1, 2], "")]),  # the server's word for too much
        ([old(1, 0, 5, "history/T1"), old(2, 1, 6, "history/absent")], [([1], ""), ([2], "")]),
    ],
)
def test_history_goes_by_days_and_merges_neighbours_where_one_is_too_much(
    given: list[DayRow], found: list[tuple[list[int], str]]
) -> None:
    assert groups(given) == found


def test_without_a_capacity_every_day_of_history_goes_alone() -> None:
    assert groups([old(1, 0, 90_000), old(2, 1, 5)], None) == [([1], ""), ([2], "")]


def test_a_history_read_begins_a_second_after_the_one_before_and_ends_before_the_registration() -> None:
    def body(rows: Sequence[DayRow], device: Device | None) -> Any:
        return json.loads(parcel(rows, device, "History", 0, None).body)

    first, last = old(1, 8, 5), old(2, 9, 6)
    assert body([first], NEW) == {
        "type": "History",
        "unit": "Wh",
        "reads": [{"starttimestamp": "2026-05-08T16:00:01Z", "endtimestamp": "2026-05-09T16:00:00Z", "value": 5}],
    }
    assert body([first, last], NEW)["reads"] == [
        {"starttimestamp": "2026-05-08T16:00:01Z", "endtimestamp": "2026-05-10T15:59:59Z", "value": 11}
    ]


H3, H5, H6 = (("rejected", f"aside/{rule}") for rule in ("H3", "H5", "H6"))


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (NEW, {}),
        (replace(NEW, created=moment(1)), {}),  # ends a second before it
        (replace(NEW, created=moment(0.5)), {1: E1}),
        (replace(NEW, created=moment(0)), {1: H3}),
        (replace(NEW, created=moment(-5)), {1: H3}),
        (replace(NEW, commissioned=moment(0)), {}),
        (replace(NEW, commissioned=moment(0) + timedelta(seconds=1)), {1: H5}),
        (replace(NEW, commissioned=moment(0.5)), {1: H5}),
        (replace(NEW, created=moment(365 * 3 + 0.9)), {}),
        (replace(NEW, created=moment(365 * 3 + 3)), {1: H6}),
        (replace(NEW, read_type="Aggregate", first=False), {}),  # it neither sets nor checks the type
    ],
)
def test_history_that_the_platform_would_refuse_is_set_aside(device: Device, found: dict[int, tuple[str, str]]) -> None:
    assert early([old(1, 0, 5)], device) == found


def test_history_is_no_part_of_the_order() -> None:
    drec = uplink()
    given = [old(1, 0, 5, "history/H8"), row(2, 3, 7), row(3, 4, 8)]
    parcel = drec.pack(given)
    assert parcel is not None and [one.id for one in parcel.rows] == [2]
    parcel = drec.pack([old(1, 0, 5), row(2, 3, 0)])
    assert parcel is not None and json.loads(parcel.body)["type"] == "History"

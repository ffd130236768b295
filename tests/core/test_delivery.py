from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import pytest

from heliograph.core import delivery
from heliograph.core.delivery import DayRow, Missing, Stored, Unknown, Verdict

NOW = datetime(2026, 3, 15, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROW = DayRow(
    1, "roof", "STR1", date(2026, 3, 14), NOW - 25 * HOUR, NOW - HOUR, 41_237, 90_000, "unclear", claimed_at=NOW
)


@pytest.mark.parametrize(
    ("found", "after", "state"),
    [
        (Stored(41_237, 90_000), timedelta(0), "confirmed"),
        (Stored(None, 90_000), timedelta(0), "confirmed"),
        (Stored(41_237, None), timedelta(0), "confirmed"),
        (Stored(41_236, 90_000), timedelta(0), "held"),
        (Stored(None, 90_001), timedelta(0), "held"),
        (Stored(None, None), timedelta(0), None),  # it tells no figure: nothing to compare
        (Missing(), timedelta(minutes=59), None),  # it may still be storing
        (Missing(), HOUR, "due"),
    ],
)
def test_only_a_matching_figure_confirms(found: Stored | Missing, after: timedelta, state: str | None) -> None:
    verdict = delivery.judge(ROW, found, NOW + after, HOUR)
    assert (verdict.state if verdict else None) == state


def test_an_unknown_answer_keeps_its_verdict() -> None:
    verdict = Verdict("unclear", "T1", "no answer")
    assert delivery.judge(ROW, Unknown(verdict), NOW, HOUR) is verdict


@pytest.mark.parametrize("attempt", range(1, 12))
@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_back_off_stays_between_floor_and_cap(attempt: int, jitter: float) -> None:
    delay = delivery.next_try(attempt, NOW, None, jitter) - NOW
    assert delivery.FLOOR <= delay <= delivery.CAP


def test_a_platforms_wish_to_wait_is_respected_beyond_the_cap() -> None:
    assert delivery.next_try(1, NOW, timedelta(hours=3), 0.5) == NOW + timedelta(hours=3)


def test_looks_double_from_a_minute_to_a_quarter_of_an_hour() -> None:
    ages = [0, 60, 120, 240, 480, 960, 5000]
    waits = [
        (delivery.next_look(NOW, NOW + timedelta(seconds=age)) - NOW - timedelta(seconds=age)).total_seconds()
        for age in ages
    ]
    assert waits == [60, 60, 120, 240, 480, 900, 900]


def test_no_minute_holds_more_requests_than_allowed() -> None:
    ended = [100.0 + 5 * number for number in range(9)]
    until = [math.inf, *(end + delivery.MINUTE for end in ended)]  # one is still under way
    assert delivery.room(until, 145.0, 10) == 0
    assert delivery.room(until, 100.0 + delivery.MINUTE, 10) == 1
    assert delivery.room(until, 1000.0, 10) == 9
    assert delivery.room(until, 1000.0, 1) == 0 == delivery.room([math.inf] * 3, 0.0, 2)


def test_nothing_leads_from_due_to_delivered_without_a_claim() -> None:
    assert delivery.FOLLOWS["due"] == {"unclear", "held", "rejected"}
    assert delivery.FOLLOWS["confirmed"] == frozenset()


@pytest.mark.parametrize(
    ("rule", "state", "given", "marked"),
    [
        ("history", "unclear", "T1", "history/T1"),
        ("history/T1", "due", "absent", "history/absent"),
        ("history/absent", "accepted", "S201", "history/S201"),
        ("history/S201", "confirmed", "read-back", "history/read-back"),  # it is looked for among History ever after
        ("history/S201", "held", "differs", "history/differs"),
        ("history", "rejected", "H7", "aside/H7"),
        ("history", "rejected", "aside/H5", "aside/H5"),
        ("T1", "rejected", "T8", "T8"),
        ("", "due", "L4", "L4"),
        ("historic", "due", "L4", "L4"),
    ],
)
def test_the_mark_of_history_stays_and_refused_history_stops_nobody(
    rule: str, state: delivery.State, given: str, marked: str
) -> None:
    row = delivery.DayRow(1, "m", "r", date(2026, 3, 14), NOW, NOW, 1, 1, last_rule=rule)
    assert delivery.marked(row, delivery.Verdict(state, given)).rule == marked

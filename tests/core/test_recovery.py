"""Tables of what platforms say about lost days, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import pytest

from heliograph.core.delivery import DayRow, Missing, ReadBack, State, Stored, Unknown, Verdict
from heliograph.core.recovery import Contradiction, Told, Totals, settle, solve

START = datetime(2026, 3, 13, 16, tzinfo=UTC)
FIRST = date(2026, 3, 14)
OPENING = 10_000
NONE = Missing()


def row(number: int, period: int | None, total: int = 0, state: State = "unclear") -> DayRow:
    """The n-th day; without a figure it is lost."""
    start = START + timedelta(days=number)
    id = number + 1 if period is not None else -number - 1
    return DayRow(
        id, "roof", "R", FIRST + timedelta(days=number), start, start + timedelta(days=1), period or 0, total, state
    )


def told(name: str, *found: ReadBack, known: Mapping[int, int] | None = None, ordered: bool = False) -> Told:
    """What is said about days 0, 1, ...; `known` gives the period of days that have a figure here."""
    total, rows = OPENING - sum((known or {}).values()), []
    for number in range(len(found)):
        period = (known or {}).get(number)
        total += period or 0
        rows.append(row(number, period, total))
    return Told(name, ordered, tuple(rows), {FIRST + timedelta(days=n): one for n, one in enumerate(found)})


def redex(*found: ReadBack, known: Mapping[int, int] | None = None) -> Told:
    return told("redex", *found, known=known)


def drec(*found: ReadBack, known: Mapping[int, int] | None = None) -> Told:
    return told("drec", *found, known=known, ordered=True)


def both(period: int, total: int) -> Stored:
    return Stored(period, total)


def delta(period: int) -> Stored:
    return Stored(period, None)


HELD = Unknown(Verdict("held", "B-twice", "two different rows"))


@pytest.mark.parametrize(
    ("said", "totals"),
    [
        pytest.param([redex(both(500, 10_500), both(7, 10_507))], {1: 10_500, 2: 10_507}, id="day by day"),
        pytest.param(
            [redex(NONE, both(7, 10_507))], {1: 10_500, 2: 10_507}, id="the day before follows from the total"
        ),
        pytest.param([redex(both(500, 10_500), NONE)], {1: 10_500}, id="the rest is left open"),
        pytest.param([redex(NONE, NONE)], {}, id="nothing is there"),
        pytest.param([drec(delta(500), delta(7))], {1: 10_500, 2: 10_507}, id="sums chain"),
        pytest.param([drec(NONE, delta(507))], {2: 10_507}, id="a sum of two is not split"),
        pytest.param(
            [drec(NONE, delta(507)), redex(both(500, 10_500), NONE)], {1: 10_500, 2: 10_507}, id="together they know it"
        ),
        pytest.param([drec(NONE, delta(507)), redex(NONE, NONE)], {2: 10_507}, id="silence of one says nothing"),
    ],
)
def test_totals_follow_from_what_platforms_hold(said: list[Told], totals: dict[int, int]) -> None:
    found = solve(START, OPENING, said)
    assert isinstance(found, Totals)
    assert found.at == {START: OPENING} | {START + timedelta(days=n): wh for n, wh in totals.items()}


def test_a_sum_that_begins_with_a_known_day_leaves_the_rest_to_the_lost_one() -> None:
    """The first day is closed here and was sent together with a lost one."""
    found = solve(START + timedelta(days=1), OPENING, [drec(NONE, delta(1007), known={0: 1000})])
    assert isinstance(found, Totals) and found.at[START + timedelta(days=2)] == OPENING + 7


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([redex(both(500, 10_500)), drec(delta(501))], "does not fit"),
        ([redex(both(500, 10_501), both(6, 10_507))], "does not fit"),
        ([redex(both(500, 10_500), both(7, 10_400))], "does not fit"),
        ([redex(Stored(None, 9_000))], "would fall"),
        ([redex(NONE, delta(7))], "nobody knows"),
        ([redex(HELD)], "two different rows"),
        ([drec(delta(900), known={0: 1000})], "does not fit"),
    ],
)
def test_what_does_not_fit_decides_nothing(said: list[Told], reason: str) -> None:
    known = any(one.rows[0].id > 0 for one in said)
    found = solve(START + timedelta(days=1) if known else START, OPENING, said)
    assert isinstance(found, Contradiction) and reason in found.reason


@pytest.mark.parametrize(
    ("said", "states"),
    [
        pytest.param(redex(both(5, 9_998), NONE, known={0: 5, 1: 2}), ["confirmed", "due"], id="there or not there"),
        pytest.param(redex(both(6, 9_998), both(2, 10_000), known={0: 5, 1: 2}), ["held", "confirmed"], id="another"),
        pytest.param(redex(HELD, known={0: 5}), ["held"], id="odd"),
        pytest.param(drec(NONE, delta(7), NONE, known={0: 5, 1: 2, 2: 3}), ["confirmed"] * 2 + ["due"], id="as one"),
        pytest.param(drec(NONE, delta(2), known={0: 5, 1: 2}), ["held", "held"], id="it never came, and was overtaken"),
        pytest.param(drec(NONE, NONE, delta(9), known={0: 5}), [], id="inside a sum whose other days are held here"),
        pytest.param(drec(NONE, NONE, NONE, known={0: 5}), ["due"], id="before held days of which nothing was sent"),
        pytest.param(drec(delta(5), NONE, delta(9), known={0: 5}), ["confirmed"], id="before a sum"),
        pytest.param(redex(Stored(None, None), known={0: 5}), ["unclear"], id="it does not say"),
    ],
)
def test_rows_of_a_restored_store_are_settled_by_evidence_only(said: Told, states: list[str]) -> None:
    rows = tuple(row for row in said.rows if row.id > 0)
    found = settle(Told(said.uplink, said.ordered, rows, said.found))
    assert [found[row.id].state for row in rows if row.id in found] == states


def test_rows_that_were_not_doubted_are_left_alone() -> None:
    one = row(0, 5, 10_000, "rejected")
    assert settle(Told("redex", False, (one,), {FIRST: Stored(5, 10_000)})) == {}

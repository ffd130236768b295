"""Every way from one state to another, tried through the real store: what is allowed works, all else is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from heliograph.core import delivery
from heliograph.core.delivery import By, DayRow, Decision, Edge, Parcel, State, Verdict
from heliograph.core.errors import StoreError
from heliograph.store import Store
from tests.fakes import START, FakeClock
from tests.work.test_deliver import make_store

NOW = START + timedelta(days=400)
STATES: tuple[State, ...] = get_args(State)
# Said once more, by hand: the table in core/delivery.py has to say the same.
ALLOWED: set[tuple[State, State, By]] = {
    ("due", "unclear", "claim"),
    ("due", "held", "platform"),
    ("due", "rejected", "platform"),
    ("due", "rejected", "person"),
    ("unclear", "due", "platform"),
    ("unclear", "accepted", "platform"),
    ("unclear", "confirmed", "platform"),
    ("unclear", "rejected", "platform"),
    ("unclear", "held", "platform"),
    ("accepted", "due", "platform"),
    ("accepted", "unclear", "platform"),
    ("accepted", "confirmed", "platform"),
    ("accepted", "rejected", "platform"),
    ("accepted", "held", "platform"),
    ("rejected", "due", "person"),
    ("rejected", "unclear", "person"),
    ("held", "due", "person"),
    ("held", "unclear", "person"),
    ("held", "rejected", "person"),
}
# How a fresh row is brought to a state, by answers.
WAYS: dict[State, tuple[State, ...]] = {
    "due": (),
    "unclear": ("unclear",),
    "accepted": ("unclear", "accepted"),
    "confirmed": ("unclear", "confirmed"),
    "rejected": ("unclear", "rejected"),
    "held": ("unclear", "held"),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = make_store(tmp_path, FakeClock(), meters=1, days=len(STATES) ** 2 * 3)
    yield opened
    opened.close()


def test_each_allowed_way_works_and_each_other_is_refused(store: Store) -> None:
    assert list(tried(store)) == []


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_way_more_or_less_would_be_seen(store: Store, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The control: one entry of the table is changed, and exactly that way is complained about."""
    if change == "added":
        monkeypatch.setitem(delivery.FOLLOWS, "unclear", delivery.FOLLOWS["unclear"] | {"due"})
        monkeypatch.setitem(delivery.WHY, ("unclear", "due"), Edge(("person",), "a blind resend"))
        # The platform's way is gone with it, and a person has one more.
        assert list(tried(store)) == ["unclear to due by platform is refused", "unclear to due by person works"]
    else:
        monkeypatch.setitem(delivery.FOLLOWS, "accepted", delivery.FOLLOWS["accepted"] - {"confirmed"})
        assert list(tried(store)) == ["accepted to confirmed by platform is refused"]


def tried(store: Store) -> Iterator[str]:
    """What is not as ALLOWED says. Each try has a row of its own; a refused one leaves its row as it was."""
    fresh = iter(store.outbox.rows("platform", "m0", date.min, date.max))
    for state, to, by in product(STATES, STATES, get_args(By)):
        if state == to:
            continue
        row = next(fresh)
        for step in WAYS[state]:
            move(store, row, step, "claim" if step == "unclear" else "platform")
        before = look(store, row)
        assert before.state == state
        entries = store.chain.head().seq
        try:
            move(store, before, to, by)
            works = True
        except StoreError as error:
            works = False
            assert str(row.day) in error.message and error.hint
            assert look(store, row) == before and store.chain.head().seq == entries
        if works:
            assert look(store, row).state == to
        if works != ((state, to, by) in ALLOWED):
            yield f"{state} to {to} by {by} {'works' if works else 'is refused'}"


def look(store: Store, row: DayRow) -> DayRow:
    (found,) = store.outbox.rows("platform", row.meter, row.day, row.day)
    return found


def move(store: Store, row: DayRow, to: State, by: By) -> None:
    if by == "claim":
        if to != "unclear":
            raise StoreError(f"{row.day}: a claim makes a row unclear and nothing else", hint="Report this.")
        store.outbox.claim("platform", Parcel("/x", b"{}", (row,)), NOW, NOW)
    elif by == "platform":
        store.outbox.settle([(row.id, Verdict(to, "rule"), NOW)], NOW)
    else:
        store.outbox.decide("retry", "platform", [(row, Decision(to, "rule", ""))], "", NOW)


@pytest.mark.parametrize("state", STATES)
def test_an_answer_may_be_the_same_again(store: Store, state: State) -> None:
    row = store.outbox.rows("platform", "m0", date.min, date.max)[0]
    for step in WAYS[state]:
        move(store, row, step, "claim" if step == "unclear" else "platform")
    move(store, row, state, "platform")
    assert look(store, row).state == state

"""What is recorded of every exchange, and that it stays small."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.delivery import DayRow, Parcel, Verdict
from heliograph.store import Store
from heliograph.store.attempts import named_rows, rows_named
from tests.fakes import START, FakeClock
from tests.work.test_deliver import make_store

NOW = START + timedelta(days=400)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = make_store(tmp_path, FakeClock(), meters=2, days=20)
    yield opened
    opened.close()


def rows_of(store: Store) -> list[DayRow]:
    return [row for meter in ("m0", "m1") for row in store.outbox.rows("platform", meter, date.min, date.max)]


def count(store: Store) -> int:
    return int((store._connection.one("SELECT count(*) AS n FROM attempt") or {})["n"])


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([7], "7"),
        ([8, 7], "7,8"),
        (range(7, 3007), "7-3006"),
        (range(7, 14, 2), "7-13/2"),
        ([1, 2, 3, 10, 20, 30, 99], "1-3,10-30/10,99"),
        ([5, 7, 8, 9], "5,7-9"),
    ],
)
def test_rows_are_named_in_a_few_characters(rows: list[int], text: str) -> None:
    assert named_rows(rows) == text


@given(st.sets(st.integers(1, 60), min_size=1))
def test_every_set_of_rows_is_found_again(rows: set[int]) -> None:
    assert sorted(rows_named(named_rows(rows))) == sorted(rows)


def test_a_batch_is_one_record_for_all_its_rows(store: Store) -> None:
    rows = rows_of(store)
    claim = store.outbox.claim("platform", Parcel("/x", b"{}", tuple(rows)), NOW, NOW)
    taken = Verdict("accepted", "R201", "taken", "nothing", process_id="7")
    store.outbox.settle([(row.id, taken, NOW) for row in rows], NOW, asked="send")
    assert count(store) == 1
    told = store.outbox.attempts.of(row.id for row in rows)
    assert set(told) == {row.id for row in rows}
    (one,) = told[rows[-1].id]
    assert one == {
        "asked": "send",
        "at": NOW,
        "last": NOW,
        "times": 1,
        "state": "accepted",
        "rule": "R201",
        "answer": "taken",
        "remedy": "nothing",
        "claim": claim,
        "claimed_at": NOW,
    }


def test_the_same_answer_again_only_raises_a_count_and_its_last_moment(store: Store) -> None:
    (row, *_) = rows_of(store)
    store.outbox.claim("platform", Parcel("/x", b"{}", (row,)), NOW, NOW)
    for minute in range(1000):
        at = NOW + timedelta(minutes=minute)
        store.outbox.settle([(row.id, Verdict("unclear", "T1", f"no answer {minute}"), at)], at, asked="send")
        waits = Verdict("unclear", "waiting", "not yet at the platform")
        store.outbox.settle([(row.id, waits, at)], at, asked="read-back")
    assert count(store) == 2
    sent, waited = store.outbox.attempts.of([row.id])[row.id]
    assert (sent["times"], sent["at"], sent["last"], sent["answer"]) == (1000, NOW, at, "no answer 999")
    assert (waited["asked"], waited["times"]) == ("read-back", 1000)


def test_an_answer_that_settles_something_is_never_lost_in_an_earlier_one(store: Store) -> None:
    (row, *_) = rows_of(store)
    for state in ("rejected", "held", "rejected"):
        settled = Verdict(state, state)
        (now,) = store.outbox.rows("platform", "m0", row.day, row.day)
        if now.state in ("rejected", "held"):
            store._connection.execute("UPDATE outbox SET state = 'unclear' WHERE id = ?", [row.id])
        else:
            store.outbox.claim("platform", Parcel("/x", b"{}", (row,)), NOW, NOW)
        store.outbox.settle([(row.id, settled, NOW)], NOW)
    assert [one["state"] for one in store.outbox.attempts.of([row.id])[row.id]] == ["rejected", "held", "rejected"]


def test_a_request_without_a_recorded_answer_is_seen_by_the_read_back_after_it(store: Store) -> None:
    (row, *_) = rows_of(store)
    claim = store.outbox.claim("platform", Parcel("/x", b"{}", (row,)), NOW, NOW)
    later = NOW + timedelta(hours=1)
    store.outbox.settle([(row.id, Verdict("confirmed", "read-back"), later)], later, asked="read-back")
    sent, found = store.outbox.attempts.of([row.id])[row.id]
    assert (sent["asked"], sent["at"], sent["claim"], sent["answer"]) == (
        "send",
        NOW,
        claim,
        "no answer was written down",
    )
    assert (found["asked"], found["state"]) == ("read-back", "confirmed")


def test_a_record_and_what_it_tells_of_are_written_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = rows_of(store)
    store.outbox.claim("platform", Parcel("/x", b"{}", (row,)), NOW, NOW)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.outbox.attempts, "record", power_cut)
    with pytest.raises(KeyboardInterrupt):
        store.outbox.settle([(row.id, Verdict("confirmed", "read-back"), NOW)], NOW)
    assert count(store) == 0
    assert [one.state for one in store.outbox.rows("platform", "m0", row.day, row.day)] == ["unclear"]


def test_thousands_of_days_take_a_few_bytes_each_answer(tmp_path: Path) -> None:
    """All that is written about a batch is one row, whatever the number of its days."""
    store = make_store(tmp_path / "large", FakeClock(), meters=1, days=300)
    rows = rows_of(store)
    store.outbox.claim("platform", Parcel("/x", b"{}", tuple(rows)), NOW, NOW)
    store.outbox.settle([(row.id, Verdict("accepted", "R201", "x" * 300), NOW) for row in rows], NOW)
    size = store._connection.one("SELECT sum(length(rows) + length(answer) + length(remedy)) AS n FROM attempt")
    assert size is not None and size["n"] < 330
    store.close()

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from heliograph.core.daily import Border, Day, Held
from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.errors import ConfigError, StoreError
from heliograph.core.readings import Moment, Reading, Source
from heliograph.core.site import Report
from heliograph.store import Store
from heliograph.store.connection import FILE, Connection

START = datetime(2026, 3, 13, 16, tzinfo=UTC)
REPORT = Report("redex", "STR1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.writer(tmp_path)
    opened.readings.begin("site", "Asia/Singapore", "boot-1", START)
    opened.readings.know_map("d1", "eastron-sdm630", "text")
    for meter in ("roof", "barn"):
        opened.readings.know_meter(meter, "energy_export")
    yield opened
    opened.close()


def reading(minutes: float, wh: int | None, *, meter: str = "roof", doubt: str = "", trusted: bool = True) -> Reading:
    at = START + timedelta(minutes=minutes)
    moment = Moment(at, "boot-1", minutes * 60, trusted)
    source = Source(1, "input", 0x34, 2, "d1")
    return Reading(meter, moment, wh, {"active_power": 5.5}, (0x1234, 0xFFFF), source, doubt)


def closed(store: Store, number: int, *, meter: str = "roof") -> Day:
    """Closes the n-th day of a meter with 1 kWh."""
    if store.days.last_border(meter) is None:
        store.readings.add([reading(0, 0, meter=meter)])
        first = store.readings.last(meter)
        assert first is not None and first.id is not None
        store.days.commission(meter, Border(START, 0, 0, "start", first.id, None), START)
    opening = store.days.last_border(meter)
    assert opening is not None
    closing = Border(
        START + timedelta(days=number + 1),
        opening.index_wh + 1000,
        opening.total_wh + 1000,
        "read",
        opening.before,
        None,
    )
    day = Day(meter, date(2026, 3, 14) + timedelta(days=number), opening, closing)
    store.days.close(day, START + timedelta(days=number + 1, minutes=15), [REPORT])
    return day


def test_a_reading_comes_back_with_its_words_and_its_source(store: Store) -> None:
    store.readings.add([reading(0, 41_230_700)])
    found = store.readings.last("roof")
    assert found is not None
    assert (found.index_wh, found.words, found.values) == (41_230_700, (0x1234, 0xFFFF), {"active_power": 5.5})
    assert found.source == Source(1, "input", 0x34, 2, "d1")
    assert found.moment == reading(0, 0).moment


def test_the_readings_around_a_midnight_are_the_nearest_good_ones(store: Store) -> None:
    store.readings.add([reading(0, 100), reading(0, 7, meter="barn")])
    store.readings.add([reading(1, 0, doubt="fell"), reading(2, 50, trusted=False)])
    store.readings.add([reading(9, 110), reading(10, None)])
    before, after, doubt = store.readings.around("roof", START + timedelta(minutes=5))
    assert before is not None and after is not None
    assert (before.wh, after.wh, doubt) == (100, 110, "fell")


def test_a_doubtful_reading_is_kept_but_is_no_base(store: Store) -> None:
    store.readings.add([reading(0, 100), reading(1, 5, doubt="fell")])
    good, last = store.readings.last_good("roof"), store.readings.last("roof")
    assert good is not None and last is not None
    assert (good.index_wh, last.index_wh, last.doubt) == (100, 5, "fell")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE day SET period_wh = 2000",
        "DELETE FROM day",
        "UPDATE border SET index_wh = 0",
        "DELETE FROM border",
        "INSERT OR REPLACE INTO day SELECT * FROM day",
    ],
)
def test_a_closed_day_cannot_be_changed_by_anybody_who_opens_the_file(
    store: Store, tmp_path: Path, statement: str
) -> None:
    closed(store, 0)
    store.close()
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute("PRAGMA recursive_triggers=on")
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        raw.execute(statement)
    raw.close()


def test_a_day_is_stored_with_its_outbox_row_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(store, 0)
    before = (len(store.days.all()), len(store.outbox.backlog()))

    def break_down(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store.outbox, "queue", break_down)
    with pytest.raises(StoreError, match="disk I/O error"):
        closed(store, 1)
    assert (len(store.days.all()), len(store.outbox.backlog())) == before
    last = store.days.last_border("roof")
    assert last is not None and last.at == START + timedelta(days=1)


def test_rows_of_a_device_leave_in_the_order_of_their_days(store: Store) -> None:
    for number in range(3):
        closed(store, number)
    now = START + timedelta(days=9)
    rows = store.outbox.candidates("redex", now, ordered=False, limit=10)
    assert [row.day.day for row in rows] == [14, 15, 16]
    store.outbox.claim("redex", Parcel("/x", b"{}", tuple(rows[:1])), now, now)
    # The first is unclear: nothing of this device may overtake it.
    assert store.outbox.candidates("redex", now, ordered=False, limit=10) == []
    store.outbox.settle([(rows[0].id, Verdict("rejected", "R422"), now)], now)
    assert [row.day.day for row in store.outbox.candidates("redex", now, ordered=False, limit=10)] == [15, 16]
    assert store.outbox.candidates("redex", now, ordered=True, limit=10) == []


def test_a_row_cannot_be_claimed_twice(store: Store) -> None:
    closed(store, 0)
    now = START + timedelta(days=2)
    rows = tuple(store.outbox.candidates("redex", now, ordered=False, limit=10))
    store.outbox.claim("redex", Parcel("/x", b"{}", rows), now, now)
    with pytest.raises(StoreError, match="not due any more"):
        store.outbox.claim("redex", Parcel("/x", b"{}", rows), now, now)


def test_a_confirmed_row_never_becomes_anything_else(store: Store) -> None:
    closed(store, 0)
    now = START + timedelta(days=2)
    rows = tuple(store.outbox.candidates("redex", now, ordered=False, limit=10))
    store.outbox.claim("redex", Parcel("/x", b"{}", rows), now, now)
    store.outbox.settle([(rows[0].id, Verdict("confirmed", "ok"), now)], now)
    with pytest.raises(StoreError, match="confirmed, which no answer turns into due"):
        store.outbox.settle([(rows[0].id, Verdict("due", "oops"), now)], now)


def test_a_held_day_stops_a_platform_that_insists_on_order(store: Store) -> None:
    closed(store, 0)
    opening = store.days.last_border("roof")
    assert opening is not None
    gap = Border(START + timedelta(days=2), 5000, 5000, "read", opening.before, None)
    store.days.hold([Held("roof", date(2026, 3, 15), "held", "gap")], gap, START)
    closed(store, 2)
    now = START + timedelta(days=9)
    assert [row.day.day for row in store.outbox.candidates("redex", now, ordered=True, limit=9)] == [14]
    assert [row.day.day for row in store.outbox.candidates("redex", now, ordered=False, limit=9)] == [14, 16]


def test_days_closed_before_an_uplink_was_added_are_queued_when_it_is(store: Store) -> None:
    for number in range(3):
        closed(store, number)
    assert store.outbox.queue("roof", Report("drec", "D1"), START) == 3
    assert store.outbox.queue("roof", Report("drec", "D1"), START) == 0
    assert store.outbox.counts() == {"redex": {"due": 3}, "drec": {"due": 3}}


def test_how_days_stand_is_counted_and_looked_up_without_reading_years_of_delivered_ones(store: Store) -> None:
    assert store.outbox.counts() == {} and store.outbox.states(date(2026, 3, 1)) == {}
    for number in range(8):
        for meter in ("roof", "barn"):
            closed(store, number, meter=meter)
    for meter in ("roof", "barn"):
        store.outbox.queue(meter, Report("drec", meter), START)
    for number, state in enumerate(("due", "unclear", "accepted", "rejected", "held", "confirmed")):
        # In any mixture, also what no run of the gateway comes to.
        store.outbox._db.execute("UPDATE outbox SET state = ? WHERE id % 7 = ?", [state, number])
    store.outbox._db.execute("UPDATE outbox SET state = 'confirmed' WHERE id % 7 = 6")
    plain: dict[str, dict[str, int]] = {}
    asked: dict[tuple[str, date], dict[str, str]] = {}
    for row in store.outbox._db.all("SELECT outbox.*, name FROM outbox JOIN meter ON meter.id = meter"):
        plain.setdefault(row["uplink"], {}).setdefault(row["state"], 0)
        plain[row["uplink"]][row["state"]] += 1
        if row["date"] >= "2026-03-17":
            asked.setdefault((row["name"], date.fromisoformat(row["date"])), {})[row["uplink"]] = row["state"]
    assert store.outbox.counts() == plain
    assert store.outbox.states(date(2026, 3, 17)) == asked and len(asked) == 10

    statements = Statements(store.outbox._db)
    store.outbox._db = statements  # type: ignore[assignment]  # as far as it is used here
    store.outbox.states(date(2026, 3, 17))
    store.outbox.counts()
    plans = [
        step["detail"]
        for sql, given in tuple(statements.asked)
        for step in statements.all(f"EXPLAIN QUERY PLAN {sql}", given)
    ]
    # Through an index alone, or one that holds no delivered rows, or row by row.
    cheap = ("COVERING INDEX", "INDEX outbox_open", "INDEX outbox_under_way", "(uplink=? AND day=?)")
    steps = [step for step in plans if " outbox" in step]
    assert len(steps) > 5 and [step for step in steps if not any(way in step for way in cheap)] == []


class Statements:
    def __init__(self, db: Connection) -> None:
        self._db = db
        self.asked: list[tuple[str, Sequence[object]]] = []

    def all(self, sql: str, given: Sequence[object] = ()) -> list[dict[str, Any]]:
        self.asked.append((sql, given))
        return self._db.all(sql, given)


def test_another_zone_is_refused_under_closed_days(store: Store) -> None:
    with pytest.raises(ConfigError, match="timezone"):
        store.readings.begin("site", "Europe/Berlin", "boot-2", START)


def test_a_meter_keeps_the_counter_that_is_booked_until_it_is_told_of_another(store: Store) -> None:
    store.readings.know_meter("roof", "energy_import")
    assert store.readings.meaning("roof") == ("energy_export", None)
    store.readings.remember_meaning("roof", "energy_import", {"quantity": "energy_import"})
    assert store.readings.meaning("roof") == ("energy_import", {"quantity": "energy_import"})


def test_thinning_keeps_an_hourly_sample_every_doubt_and_the_readings_of_borders(store: Store) -> None:
    for minute in range(180):
        doubt = "fell" if minute == 95 else ""
        store.readings.add([reading(minute, 1000 + minute, doubt=doubt), reading(minute, 5, meter="barn")])
    bordering = next(r for r in store.readings.back("roof") if r.moment.at == START + timedelta(minutes=70))
    assert bordering.id is not None
    store.days.commission("roof", Border(START, 1000, 0, "start", bordering.id, None), START)
    gone = store.readings.thin(START + timedelta(minutes=150), hourly=True)
    left = [round((r.moment.at - START).total_seconds() / 60) for r in store.readings.back("roof")]
    assert gone > 250
    assert {0, 60, 70, 95, 120, 150, 179} <= set(left)
    assert [minute for minute in left if minute < 149] == [120, 95, 70, 60, 0]
    assert store.readings.thin(START + timedelta(minutes=150), hourly=True) == 0


@pytest.mark.parametrize("closed", [True, False])
def test_samples_go_in_the_end_but_not_those_that_no_border_has_counted_yet(store: Store, closed: bool) -> None:
    for minute in range(180):
        store.readings.add([reading(minute, 1000 + minute)])
    at = {round((r.moment.at - START) / timedelta(minutes=1)): r.id for r in store.readings.back("roof")}
    store.days.commission("roof", Border(START, 1000, 0, "start", at[0] or 0, None), START)
    if closed:
        end = START + timedelta(minutes=160)
        day = Day("roof", date(2026, 3, 14), store.days.last_border("roof") or pytest.fail("no border"),
                  Border(end, 1159, 159, "read", at[159] or 0, None))  # fmt: skip
        store.days.close(day, end, [])
    store.readings.thin(START + timedelta(minutes=150), hourly=False)
    left = {round((r.moment.at - START) / timedelta(minutes=1)) for r in store.readings.back("roof")}
    assert left == ({0, *range(149, 180)} if closed else set(range(180)))


def test_a_reader_sees_what_the_writer_stored_and_cannot_write(store: Store, tmp_path: Path) -> None:
    store.readings.add([reading(0, 100)])
    reader = Store.reader(tmp_path)
    found = reader.readings.last("roof")
    assert found is not None and found.index_wh == 100
    with pytest.raises(StoreError, match="readonly"):
        reader.journal.learn("x", 1)
    reader.close()


def test_without_a_store_the_reader_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Store.reader(tmp_path)
    assert "heliograph run" in caught.value.hint
    assert not (tmp_path / FILE).exists()


def test_every_table_is_strict_and_commits_are_flushed(store: Store, tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / FILE)
    loose = [
        name
        for (name, sql) in raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        if not name.startswith(("sqlite_", "_sqlite")) and not sql.rstrip().endswith("STRICT")
    ]
    raw.close()
    assert loose == []
    assert store._connection.one("PRAGMA synchronous") == {"synchronous": 2}
    assert store._connection.one("PRAGMA journal_mode") == {"journal_mode": "wal"}


def test_readings_after_a_failed_commit_are_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned inside a transaction that was rolled back must not be believed afterwards."""
    with monkeypatch.context() as broken:
        broken.setattr(Reading, "good", property(lambda _: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            store.readings.add([reading(0, 100)])
    store.readings.add([reading(1, 110)])
    assert [one.index_wh for one in store.readings.back("roof")] == [110]

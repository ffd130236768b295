"""Files damaged in many random ways: whatever is left, the start ends with figures that are right, or says what it did.

HELIOGRAPH_DAMAGES=5000 pytest tests/store/test_damaged.py runs as many as one likes.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.errors import StoreError
from heliograph.store import Store, copies, opening
from heliograph.store.connection import FILE
from heliograph.store.copies import copy_ledger, copy_whole
from heliograph.store.opening import Loss, compared, mark, open_checked, unmark
from heliograph.store.outbox import CLAIMED, RECOVERY, newest_claim
from tests.store.test_store import START, closed, reading

DAMAGES = int(os.environ.get("HELIOGRAPH_DAMAGES", "150"))
NOW = datetime(2026, 4, 20, 1, 2, 3, tzinfo=UTC)
Damage = Callable[[Path, random.Random], None]


def opened(folder: Path, now: datetime) -> tuple[Store, Loss | None]:
    """As at a start of the gateway: checked, and compared with what has left."""
    store, loss, known = open_checked(folder, now)
    return store, compared(store, folder, now, loss, known)


def fill(folder: Path, days: int) -> Store:
    store = Store.writer(folder)
    store.readings.begin("site", "Asia/Singapore", "boot-1", START)
    store.readings.know_map("d1", "eastron-sdm630", "text" * 300)
    for meter in ("roof", "barn"):
        store.readings.know_meter(meter, "energy_export")
    for number in range(days):
        for meter in ("roof", "barn"):
            closed(store, number, meter=meter)
            store.readings.add(
                [reading(number * 1440 + minute, number * 1000, meter=meter) for minute in range(0, 900, 30)]
            )
        send(store, START + timedelta(days=number + 1, hours=1))
    return store


def send(store: Store, now: datetime, state: str = "confirmed") -> None:
    rows = store.outbox.candidates("redex", now, ordered=False, limit=10)
    store.outbox.claim("redex", Parcel("/x", b"{}", tuple(rows)), now, now)
    if state != "unclear":
        store.outbox.settle([(row.id, Verdict("confirmed", "ok"), now) for row in rows], now)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a killed gateway leaves: a store with its journal, a mark that it was in use, and a copy of yesterday."""
    live, left = tmp_path_factory.mktemp("live"), tmp_path_factory.mktemp("left") / "data"
    store = fill(live, 12)
    copy_ledger(live, NOW - timedelta(days=1))
    store._connection.all("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(12, 15):
        closed(store, number)
        send(store, START + timedelta(days=number + 1, hours=1))
    mark(live, "open")
    shutil.copytree(live, left)
    store.close()
    return left


def flipped(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 3, 30])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncated(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    os.truncate(path, chance.choice([chance.randrange(size), chance.randrange(size) // 4096 * 4096]))


def zeroed(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        for _ in range(chance.choice([1, 1, 4])):
            file.seek(chance.randrange(max(1, path.stat().st_size // 4096)) * 4096)
            file.write(bytes(4096))


def garbage(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = chance.choice([0, chance.randrange(len(data))])
    data[at : at + 4096] = chance.randbytes(len(data[at : at + 4096]))
    path.write_bytes(data)


def emptied(path: Path, chance: random.Random) -> None:
    del chance
    os.truncate(path, 0)


def gone(path: Path, chance: random.Random) -> None:
    del chance
    path.unlink()


DAMAGE: dict[str, Damage] = {
    "flipped": flipped,
    "truncated": truncated,
    "zeroed": zeroed,
    "garbage": garbage,
    "emptied": emptied,
    "gone": gone,
}


def figures(store: Store) -> dict[tuple[str, str], tuple[int, int]]:
    return {(day.meter, str(day.day)): (day.period_wh, day.total_wh) for day in store.days.all()}


def test_a_damaged_file_is_noticed_or_harmless(crashed: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {DAMAGES} damages")
    chance = random.Random(seed)
    truth_store, _ = opened(shutil.copytree(crashed, tmp_path / "whole"), NOW)
    truth = figures(truth_store)
    truth_store.close()
    assert len(truth) == 12 * 2 + 3
    count: Counter[str] = Counter()
    for number in range(DAMAGES):
        folder = shutil.copytree(crashed, tmp_path / "data")
        kind, file = chance.choice(sorted(DAMAGE)), chance.choice([FILE, FILE, FILE + "-wal"])
        DAMAGE[kind](folder / file, chance)
        where = f"number {number}: {kind} {file}"
        bytes_left = {path.name: path.read_bytes() for path in folder.glob(FILE + "*")}
        store, loss = opened(folder, NOW)
        found = figures(store)
        assert found.items() <= truth.items(), where
        sent = {row["date"] for row in store._connection.all("SELECT date FROM outbox WHERE state = 'due'")}
        if loss is None:
            assert not sent and len(found) == len(truth), where  # nothing that had left is forgotten
        else:
            count["noticed"] += 1
            assert sent == set() and store.journal.learned(RECOVERY)["cause"], where
            if loss.quarantine and not loss.cause.startswith(opening.BEHIND):  # that one was opened before it was moved
                for name, data in bytes_left.items():
                    assert name.endswith("-shm") or (folder / loss.quarantine / name).read_bytes() == data, where
            assert not loss.empty and loss.copy in ("", "heliograph-20260419T010203Z-ledger.db")
        assert store.outbox.newest_claim() == newest_claim(folder) == 15
        closed(store, len([one for one in found if one[0] == "roof"]))  # it can be used
        list(store.readings.back("roof"))
        assert store._connection.all("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        store.close()
        unmark(folder)
        shutil.rmtree(folder)
        count[f"{kind} {file}"] += 1
    print(dict(count))
    assert count["noticed"] > DAMAGES // 3


def test_a_sound_store_is_left_as_it_is_after_a_kill(crashed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(crashed, tmp_path / "data")
    store, loss = opened(folder, NOW)
    assert loss is None and len(store.days.all()) == 27
    store.close()
    assert not (folder / "quarantine").exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    store = fill(tmp_path, 3)
    store.close()
    yield tmp_path


def test_an_older_store_put_in_place_by_hand_is_recognised_by_the_newest_claim(site: Path) -> None:
    made = copy_whole(site, site / "mine.db")
    store, loss = opened(site, NOW)
    assert loss is None
    closed(store, 3)
    send(store, NOW)
    store.close()
    unmark(site)
    made.path.rename(site / FILE)
    store, loss = opened(site, NOW)
    assert loss is not None and "does not know of" in loss.cause and store.outbox.newest_claim() == 4
    store.close()
    unmark(site)
    store, loss = opened(site, NOW)
    assert loss is None
    store.close()


def test_a_note_of_the_newest_claim_that_cannot_be_read_is_taken_as_a_loss(site: Path) -> None:
    (site / CLAIMED).write_bytes(b"\xff\xfe")
    store, loss = opened(site, NOW)
    assert loss is not None and newest_claim(site) == 3
    store.close()


def test_a_damaged_copy_is_passed_over(site: Path) -> None:
    copy_ledger(site, NOW)
    newest = copy_ledger(site, NOW + timedelta(days=1)).path
    with newest.open("r+b") as file:
        file.seek(5000)
        file.write(bytes(20_000))
    with (site / FILE).open("r+b") as file:
        file.write(bytes(4096))
    store, loss = opened(site, NOW)  # after a clean end only the opening itself notices
    assert loss is not None and loss.copy == "heliograph-20260420T010203Z-ledger.db"
    assert "is damaged" in loss.cause or "cannot be read" in loss.cause
    assert len(store.days.all()) == 6
    store.close()


def test_every_row_without_a_final_answer_becomes_unclear_and_has_no_claim(site: Path) -> None:
    store, _ = opened(site, NOW)
    closed(store, 3)
    send(store, NOW, "unclear")
    closed(store, 4)
    copy_ledger(site, NOW)
    closed(store, 5)
    store.close()
    (site / FILE).unlink()
    store, loss = opened(site, NOW)
    assert loss is not None and loss.cause == "there is no store any more"
    rows = store._connection.all("SELECT date, state, claim FROM outbox WHERE state <> 'confirmed' ORDER BY date")
    assert [(row["date"], row["state"], row["claim"]) for row in rows] == [
        ("2026-03-17", "unclear", None),
        ("2026-03-18", "unclear", None),
    ]
    assert store.outbox.waiting("redex", "unclear", NOW + timedelta(days=9)) == []
    assert store.outbox.candidates("redex", NOW + timedelta(days=9), ordered=False, limit=9) == []
    closed(store, 5)  # a day from before the restore, closed after it
    assert store._connection.one("SELECT state FROM outbox WHERE date = '2026-03-19'") == {"state": "unclear"}
    store.close()


def test_a_number_that_was_never_written_down_is_no_loss(site: Path) -> None:
    """The power went, or the process, between the making of the file and its first number."""
    (site / CLAIMED).write_bytes(b"")
    store, loss = opened(site, NOW)
    store.close()
    assert loss is None and newest_claim(site) == store_claims(site)
    (site / CLAIMED).write_bytes(b"12x")  # whereas one that cannot be read may have been any
    store, loss = opened(site, NOW)
    store.close()
    assert loss is not None


def store_claims(site: Path) -> int:
    with closing(sqlite3.connect(site / FILE)) as raw:
        return int(raw.execute("SELECT coalesce(max(id), 0) FROM claim").fetchone()[0])


def test_what_is_not_the_files_fault_moves_no_file(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is busy or full must not cost the store its place."""
    mark(site, "open")

    def busy(*_: object, **__: object) -> str:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    monkeypatch.setattr(opening, "fault", busy)
    store, loss = opened(site, NOW)  # whether the card takes anything, it says itself
    store.close()
    assert loss is None and not (site / "quarantine").exists() and (site / FILE).exists()


def test_a_ledger_copy_keeps_what_figures_rest_on_and_leaves_the_samples_out(site: Path) -> None:
    with closing(sqlite3.connect(site / FILE)) as raw:
        everything = raw.execute("SELECT count(*) FROM reading").fetchone()[0]
    store, _ = opened(site, NOW)
    store.readings.begin("site", "Asia/Singapore", "boot-1", NOW)
    store.readings.add([reading(9000, 3500), reading(9001, 7, doubt="fell"), reading(9002, 8, doubt="fell")])
    made = copy_ledger(site, NOW)
    (site / "other").mkdir()
    shutil.copy(made.path, site / "other" / FILE)
    copy = Store.writer(site / "other")
    assert copy.days.all() == store.days.all() and copy.outbox.shown() == store.outbox.shown()
    chain = list(copy.readings.back("roof"))
    assert [one.index_wh for one in chain][:2] == [8, 3500] and len(chain) < everything / 10
    assert copy.readings.last_good("roof") == store.readings.last_good("roof")
    for one in store.days.all():
        assert copy.readings.reading(one.closing.before) == store.readings.reading(one.closing.before)
    with pytest.raises(StoreError, match="never changes"), copy._connection.writing():
        copy._connection.execute("UPDATE day SET period_wh = 7")
    copy.close()
    store.close()


def test_the_newest_two_copies_stay_and_their_interval_grows_with_their_size(site: Path) -> None:
    assert copies.due(site, NOW)
    kept = copy_whole(site, site / "copies" / "heliograph-20260101T000000Z.db").path
    for day in range(4):
        copy_ledger(site, NOW + timedelta(days=day))
    assert [path.name[11:19] for path in sorted((site / "copies").glob("*-ledger.db"))] == ["20260422", "20260423"]
    assert kept.exists()  # made by a person, taken away by a person
    assert not copies.due(site, NOW + timedelta(days=3, hours=23))
    assert copies.due(site, NOW + timedelta(days=4))
    assert copies.due(site, NOW)  # the clock was set back: nobody knows how old the copy is
    assert copies.every(1_000) == timedelta(days=1)
    for size in (1_000, 5_000_000, 7_000_000, 40_000_000, 400_000_000):
        assert size * copies.WRITTEN / (copies.every(size) / timedelta(days=1)) <= copies.BYTES_A_DAY

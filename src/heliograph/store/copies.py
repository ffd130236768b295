"""Verified copies of the store: how they are made, and how a store is found to be whole.

Copies made by the gateway itself hold the ledger: everything but the samples no border rests on. They are a small part
of the store, and a restored one is completed from the meters and the platforms (work/recover.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from heliograph.core.errors import StoreError, UsageError
from heliograph.store.connection import FILE
from heliograph.store.readings import GAP
from heliograph.store.schema import migrations

COPIES = "copies"
PARTIAL = ".partial"
LEDGER = "-ledger.db"
# Copies the gateway makes by itself: at most this much on the average, and so many are kept.
BYTES_A_DAY = 5_000_000
# What a card takes for each byte of such a copy; measured: 1.0 for 3 MB (ten meters, a year), 1.55 for 32 MB (ten).
WRITTEN = 1.6
KEPT = 2
# Events beyond the newest that a ledger copy keeps, for they explain figures.
EVIDENCE = ("recovered", "restored", "released", "swap", "reset", "rollover", "change", "correction")
EVENTS = 2000
NO_STORE = "there is no store in it"

# The same fact stands in several places; a byte that turned over in one of them shows here. Each query finds rows that
# cannot be. (What rests in one place only, such as the text of an event, is beyond them.)
CONTRADICTIONS: dict[str, str] = {
    "a day is not the difference of its borders": (
        "SELECT day.day FROM day JOIN border o ON o.id = day.opening JOIN border c ON c.id = day.closing"
        " WHERE day.period_wh <> c.total_wh - o.total_wh OR day.total_wh <> c.total_wh"
        " OR day.meter <> o.meter OR day.meter <> c.meter OR o.at >= c.at"
    ),
    "a running total moved otherwise than its counter": (
        "SELECT min(id) FROM border GROUP BY meter HAVING max(total_wh - index_wh) <> min(total_wh - index_wh)"
    ),
    "a running total fell": (
        "SELECT id FROM (SELECT id, total_wh, lag(total_wh) OVER (PARTITION BY meter ORDER BY at) AS before"
        " FROM border) WHERE total_wh < before"
    ),
    "a request is not the one of its day": (
        "SELECT outbox.id FROM outbox LEFT JOIN day ON day.id = outbox.day"
        " WHERE day.id IS NULL OR outbox.meter <> day.meter OR outbox.date <> day.day"
    ),
    "a reading leads nowhere": (
        "SELECT reading.id FROM reading LEFT JOIN meter ON meter.id = reading.meter"
        " LEFT JOIN boot ON boot.id = reading.boot LEFT JOIN layout ON layout.id = reading.layout"
        " WHERE meter.id IS NULL OR boot.id IS NULL OR layout.id IS NULL OR reading.prev >= reading.id"
        " OR NOT json_valid(reading.vals)"
    ),
    "a list is garbled": (
        "SELECT names FROM layout WHERE NOT json_valid(names) UNION ALL"
        " SELECT subject FROM learned WHERE NOT json_valid(value)"
    ),
    "a newest reading is missing": (
        "SELECT meter.id FROM meter LEFT JOIN reading ON reading.id = meter.last"
        " WHERE meter.last NOT NULL AND (reading.id IS NULL OR reading.meter <> meter.id)"
    ),
}
# Of tables that an older store does not have before it is opened.
SINCE_V5: dict[str, str] = {
    "an attempt is about nothing": (
        "SELECT attempt.id FROM attempt LEFT JOIN outbox ON outbox.id = attempt.first"
        " WHERE outbox.id IS NULL OR outbox.uplink <> attempt.uplink OR attempt.last < attempt.at OR times < 1"
        " OR attempt.rows NOT GLOB '[0-9]*' OR attempt.rows GLOB '*[^-0-9,/]*'"
    ),
}


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that was opened and found whole."""

    path: Path
    size: int
    sha256: str
    last_day: date | None
    """Newest closed day in it."""
    claims: int = 0
    """Number of the newest request in it."""

    def as_json(self) -> dict[str, Any]:
        last = str(self.last_day) if self.last_day else None
        return {"path": str(self.path), "bytes": self.size, "sha256": self.sha256, "last_day": last}


def fault(database: sqlite3.Connection) -> str:
    """What is wrong with a store, or ''. Raises sqlite3.Error where the file cannot even be read.

    integrity_check takes four times as long as quick_check (3.5 s for five million rows, ten times that on a small
    computer), but a key that turned over in an index is seen by it alone.
    """
    said = [str(row[0]) for row in database.execute("PRAGMA integrity_check(5)")]
    if said != ["ok"]:
        return said[0]
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'reading'").fetchone() is None:
        return NO_STORE
    applied = {name for (name,) in database.execute("SELECT name FROM _sqlite_migrations")}
    if unknown := sorted(applied - {migration.name for migration in migrations._migrations}):
        return f"a newer Heliograph wrote it (schema {unknown[-1]})"
    if len(applied) == len(migrations._migrations) and (gone := _columns() - _columns(database)):
        return f"table {min(gone)[0]} is not what it should be"
    # Every text is looked at once: one that is no UTF-8 any more cannot be read when it is needed.
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = "DISTINCT function, doubt" if name == "reading" else "*"
        for _ in database.execute(f"SELECT {columns} FROM {name}"):
            pass
    for what, query in {**CONTRADICTIONS, **(SINCE_V5 if "v5" in applied else {})}.items():
        if (row := database.execute(query + " LIMIT 1").fetchone()) is not None:
            return f"{what} ({row[0]})"
    if (row := database.execute("PRAGMA foreign_key_check").fetchone()) is not None:
        return f"{row[0]} {row[1]} names a row of {row[2]} that is not there"
    return ""


def _columns(database: sqlite3.Connection | None = None) -> set[tuple[str, str, str]]:
    """Table, name and type of every column: of a store, or as they must be."""
    if database is None:
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
            migrations.apply(Database(fresh))
            return _columns(fresh)
    query = "SELECT m.name, c.name, c.type FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
    return {(table, name, type) for table, name, type in database.execute(query) if not table.startswith("sqlite_")}


def verified(path: Path) -> Copy:
    """Opens a copy and checks all of it; StoreError where it is not whole."""
    hint = "Copy again; if it stays so, look at the card (system log) and copy to another one."
    if not path.is_file():
        raise StoreError(f"there is no copy at {path}", hint="Copies are made by: heliograph backup")
    try:
        # Immutable: nothing is written beside it, and a copy has no journal of its own.
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            wrong = fault(database)
            newest = "SELECT (SELECT max(day) FROM day), (SELECT max(id) FROM claim)"
            last, claims = database.execute(newest).fetchone() if not wrong else (None, None)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the copy {path} cannot be read: {error}", hint=hint) from error
    if wrong:
        raise StoreError(f"the copy {path} is damaged: {wrong}", hint=hint)
    return Copy(path, path.stat().st_size, digest, date.fromisoformat(last) if last else None, claims or 0)


def target_of(data_dir: Path, wish: Path | None, now: datetime) -> Path:
    """Where a copy goes: the path wished for, or a dated file in it if it is a directory, or one beside the store."""
    name = f"heliograph-{now:%Y%m%dT%H%M%SZ}.db"
    if wish is None:
        return data_dir / COPIES / name
    return wish / name if wish.is_dir() else wish


def copy_whole(data_dir: Path, target: Path) -> Copy:
    """The whole store as it is now, beside a running writer or without one, checked before it gets its name."""

    def write(partial: Path) -> None:
        # A connection of its own, read-only: the writer goes on meanwhile.
        with contextlib.closing(sqlite3.connect(read_only(data_dir / FILE), uri=True, timeout=10)) as source:
            source.execute("VACUUM INTO ?", [str(partial)])

    return _placed(data_dir, target, write)


def copy_ledger(data_dir: Path, now: datetime) -> Copy:
    """The ledger as it is now; of the copies made in this way the newest two stay."""

    def write(partial: Path) -> None:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None, timeout=10)) as copy:
            # It has no name yet: if the power fails it is thrown away, so nothing is written twice.
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8000"):
                copy.execute(f"PRAGMA {pragma}")
            copy.execute("ATTACH ? AS live", [read_only(data_dir / FILE)])
            copy.execute("BEGIN")
            _write_ledger(copy)
            copy.execute("COMMIT")

    while (target := data_dir / COPIES / f"heliograph-{now:%Y%m%dT%H%M%SZ}{LEDGER}").exists():
        now += timedelta(seconds=1)  # two decisions in one second
    made = _placed(data_dir, target, write)
    for old in sorted((data_dir / COPIES).glob("heliograph-*" + LEDGER))[:-KEPT]:
        old.unlink(missing_ok=True)
    return made


def _write_ledger(copy: sqlite3.Connection) -> None:
    """Every table as it is, but few readings and not all events; triggers and indexes when the rows are there."""
    made = copy.execute(
        "SELECT type, name, sql FROM live.sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        " ORDER BY type <> 'table', rowid"
    ).fetchall()
    for _, name, sql in [row for row in made if row[0] == "table"]:
        copy.execute(sql)
        columns = [row[1] for row in copy.execute(f"PRAGMA live.table_info({name})")]
        taken, which = ", ".join(columns), ""
        if name == "reading":
            # The chain of a meter's readings goes on over those that are left out.
            taken = taken.replace("prev", "lag(id) OVER (PARTITION BY meter ORDER BY id)", 1)
            which = f"WHERE id IN ({_kept_readings(copy)}) ORDER BY id"
        elif name == "event":
            kinds = ", ".join(f"'{kind}'" for kind in EVIDENCE)
            which = f"WHERE kind IN ({kinds}) OR id > (SELECT coalesce(max(id), 0) FROM live.event) - {EVENTS}"
        copy.execute(f"INSERT INTO main.{name} ({', '.join(columns)}) SELECT {taken} FROM live.{name} {which}")
    for _, _, sql in [row for row in made if row[0] != "table"]:
        copy.execute(sql)


def _kept_readings(copy: sqlite3.Connection) -> str:
    """What borders rest on, each meter's newest reading and its newest believed one."""
    kept = (
        "SELECT before FROM live.border UNION SELECT after FROM live.border WHERE after NOT NULL"
        " UNION SELECT last FROM live.meter WHERE last NOT NULL"
        " UNION SELECT id FROM (WITH RECURSIVE back (id, prev, good) AS ("
        "SELECT id, prev, {good} FROM live.reading WHERE id IN (SELECT last FROM live.meter)"
        " UNION ALL SELECT r.id, r.prev, {good} FROM back JOIN live.reading r ON r.id = back.prev WHERE NOT back.good)"
        " SELECT id FROM back WHERE good)"
    )
    good = "index_wh NOT NULL AND trusted > 0 AND (doubt = '' OR seam NOT NULL)"
    kept = kept.format(good=good)
    # Held days wait for a person: both ends of every gap from the oldest of them on.
    kept += (
        " UNION SELECT id FROM (SELECT id, at, lag(at) OVER w AS earlier, lead(at) OVER w AS later FROM live.reading r"
        " JOIN (SELECT meter AS m, min(unixepoch(day)) AS since FROM live.held WHERE kind = 'held' AND released IS NULL"
        " GROUP BY meter) ON m = r.meter AND r.at >= (since - 172800) * 1000000 WINDOW w AS (PARTITION BY meter"
        f" ORDER BY id)) WHERE at - earlier > {GAP} OR later - at > {GAP}"
    )
    fresh = "SELECT id FROM live.meter WHERE id NOT IN (SELECT meter FROM live.border)"
    if copy.execute(fresh + " LIMIT 1").fetchone() is not None:
        # A meter that is not commissioned yet begins at its first believed reading.
        kept += f" UNION SELECT min(id) FROM live.reading WHERE meter IN ({fresh}) AND {good} GROUP BY meter"
    return kept


def due(data_dir: Path, now: datetime) -> bool:
    """Whether the next copy of the ledger is due: daily, and less often once it is larger than a day's share."""
    made = sorted((data_dir / COPIES).glob("heliograph-*" + LEDGER))
    if not made:
        return True
    try:
        at = datetime.strptime(made[-1].name.split("-")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return True
    return not at <= now < at + every(made[-1].stat().st_size)


def every(size: int) -> timedelta:
    """How often a ledger of so many bytes is copied."""
    return max(timedelta(days=1), timedelta(days=1) * (size * WRITTEN / BYTES_A_DAY))


def _placed(data_dir: Path, target: Path, write: Callable[[Path], None]) -> Copy:
    """What is written gets its name when it has been verified and is on the card."""
    hint = "The service may write only below data_dir: leave PATH out, and copy the file on from there."
    partial = target.with_name(target.name + PARTIAL)
    try:
        if target.parent == data_dir / COPIES:
            target.parent.mkdir(mode=0o700, exist_ok=True)
        if target.exists():
            raise UsageError(f"{target} exists already", hint="Name another file, or a directory.")
        partial.unlink(missing_ok=True)
        try:
            write(partial)
            partial.chmod(0o600)
            found = verified(partial)
            flush(partial)
            partial.rename(target)
            flush(target.parent)
        finally:
            partial.unlink(missing_ok=True)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"no copy could be made at {target}: {error}", hint=hint) from error
    return replace(found, path=target)


def read_only(path: Path) -> str:
    return f"file:{path}?mode=ro"


def sweep(data_dir: Path) -> None:
    """Removes what was left of copies by a power cut; the caller holds the lock of `data_dir`, so none is under way."""
    for left in (data_dir / COPIES).glob(f"*{PARTIAL}*"):
        with contextlib.suppress(OSError):
            left.unlink()


def flush(path: Path) -> None:
    """A file's content, or a directory's names, on the card."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

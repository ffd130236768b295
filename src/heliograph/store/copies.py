"""Verified copies of the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from heliograph.core.errors import StoreError, UsageError
from heliograph.store.connection import FILE
from heliograph.store.schema import migrations

COPIES = "copies"
PARTIAL = ".partial"

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
    "a newest reading is missing": (
        "SELECT meter.id FROM meter LEFT JOIN reading ON reading.id = meter.last"
        " WHERE meter.last NOT NULL AND (reading.id IS NULL OR reading.meter <> meter.id)"
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

    def as_json(self) -> dict[str, Any]:
        last = str(self.last_day) if self.last_day else None
        return {"path": str(self.path), "bytes": self.size, "sha256": self.sha256, "last_day": last}


def fault(database: sqlite3.Connection, *, thorough: bool) -> str:
    """What is wrong with a store, or ''. `thorough` compares indexes with their tables too (four times as long).

    Raises sqlite3.Error where the file cannot even be read.
    """
    check = "integrity_check" if thorough else "quick_check"
    said = [str(row[0]) for row in database.execute(f"PRAGMA {check}(5)")]
    if said != ["ok"]:
        return said[0]
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'reading'").fetchone() is None:
        return "there is no store in it"
    applied = {name for (name,) in database.execute("SELECT name FROM _sqlite_migrations")}
    if unknown := sorted(applied - {migration.name for migration in migrations._migrations}):
        return f"a newer Heliograph wrote it (schema {unknown[-1]})"
    for what, query in CONTRADICTIONS.items():
        if (row := database.execute(query + " LIMIT 1").fetchone()) is not None:
            return f"{what} ({row[0]})"
    if (row := database.execute("PRAGMA foreign_key_check").fetchone()) is not None:
        return f"{row[0]} {row[1]} names a row of {row[2]} that is not there"
    return ""


def verified(path: Path) -> Copy:
    """Opens a copy and checks all of it; StoreError where it is not whole."""
    hint = "Copy again; if it stays so, look at the card (system log) and copy to another one."
    if not path.is_file():
        raise StoreError(f"there is no copy at {path}", hint="Copies are made by: heliograph backup")
    try:
        # Immutable: nothing is written beside it, and a copy has no journal of its own.
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            wrong = fault(database, thorough=True)
            last = database.execute("SELECT max(day) FROM day").fetchone()[0] if not wrong else None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the copy {path} cannot be read: {error}", hint=hint) from error
    if wrong:
        raise StoreError(f"the copy {path} is damaged: {wrong}", hint=hint)
    return Copy(path, path.stat().st_size, digest, date.fromisoformat(last) if last else None)


def target_of(data_dir: Path, wish: Path | None, now: datetime) -> Path:
    """Where a copy goes: the path wished for, or a dated file in it if it is a directory, or one beside the store."""
    name = f"heliograph-{now:%Y%m%dT%H%M%SZ}.db"
    if wish is None:
        return data_dir / COPIES / name
    return wish / name if wish.is_dir() else wish


def copy_whole(data_dir: Path, target: Path) -> Copy:
    """The whole store as it is now, beside a running writer or without one, checked before it gets its name."""
    hint = "The service may write only below data_dir: leave PATH out, and copy the file on from there."
    try:
        if target.parent == data_dir / COPIES:
            target.parent.mkdir(mode=0o700, exist_ok=True)
        if target.exists():
            raise UsageError(f"{target} exists already", hint="Name another file, or a directory.")
        with in_place(target) as partial:
            # A connection of its own, read-only: the writer goes on meanwhile.
            source = sqlite3.connect(f"file:{data_dir / FILE}?mode=ro", uri=True, timeout=10)
            with contextlib.closing(source):
                source.execute("VACUUM INTO ?", [str(partial)])
        return verified(target)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"no copy could be made at {target}: {error}", hint=hint) from error


def sweep(data_dir: Path) -> None:
    """Removes what was left of copies by a power cut; the caller holds the lock of `data_dir`, so none is under way."""
    for left in (data_dir / COPIES).glob(f"*{PARTIAL}*"):
        with contextlib.suppress(OSError):
            left.unlink()


@contextlib.contextmanager
def in_place(target: Path) -> Iterator[Path]:
    """A temporary name beside the target; what is written there is verified and on the card before it is renamed."""
    partial = target.with_name(target.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.chmod(0o600)
        verified(partial)
        flush(partial)
        partial.rename(target)
        flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """A file's content, or a directory's names, on the card."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

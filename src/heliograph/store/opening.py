"""What is done at a start that follows an unclean end: looked at, put aside if damaged, replaced by the newest copy."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from heliograph.core.errors import StoreError
from heliograph.store import Store
from heliograph.store.chain import Chain
from heliograph.store.connection import FILE, Connection, micros
from heliograph.store.copies import COPIES, NO_STORE, PARTIAL, Copy, fault, flush, read_only, verified
from heliograph.store.outbox import RECOVERY, newest_claim, note_claim

QUARANTINE = "quarantine"
# There while a store is open: who finds it at the start knows that the last run did not end by itself.
RUNNING = "running"
BEHIND = "requests have left that this store does not know of; its journal was lost, or an older one was put in place"


@dataclass(frozen=True, slots=True)
class Loss:
    """The store may not know all that was sent from here."""

    cause: str
    copy: str = ""
    """The copy that took the place of the damaged file; '': none was there, or none was needed."""
    quarantine: str = ""
    """Where the damaged file is now."""
    empty: bool = False
    """It was begun anew."""

    def __str__(self) -> str:
        cause = " ".join(self.cause.split())
        if self.copy:
            text = f"The store was damaged and {self.copy} took its place; what was stored since that copy is lost. "
            text += "Swaps and releases recorded since must be recorded again"
        elif self.empty:
            text = "The store was damaged or gone and no copy was there, so it was begun anew"
        else:
            text = "The store may not know all that was sent"
        where = f"; the damaged file is in {self.quarantine}" if self.quarantine else ""
        return f"{text}{where} ({cause[:200]})"


def loss(record: Mapping[str, Any]) -> Loss:
    """As it was noted in the store."""
    return Loss(record["cause"], record["copy"], record["quarantine"], record["empty"])


def quarantined(data_dir: Path) -> list[Path]:
    """Damaged stores that were moved away, oldest first. They stay until a person takes them."""
    return sorted(path for path in (data_dir / QUARANTINE).glob("*") if path.is_dir())


# What SQLite says of a file that is damaged; everything else (no right, no space, busy) is not the file's fault.
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
UNREADABLE = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}


def is_damage(error: BaseException | None) -> bool:
    """Whether it says that the file is damaged or a part of it cannot be read."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Text that is no UTF-8, or what Python's own layer cannot make sense of.
        return isinstance(error, UnicodeDecodeError) or (isinstance(error, sqlite3.Error) and "UTF-8" in str(error))
    return code & 0xFF in DAMAGED or code in UNREADABLE


def open_checked(data_dir: Path, now: datetime) -> tuple[Store, Loss | None, int | None]:
    """The store for its one writer, and what `compared` has to know. After an unclean end all of it is looked at first;
    what is damaged goes into quarantine, and the newest copy that verifies takes its place.
    """
    known = newest_claim(data_dir)
    cause = _damage(data_dir)
    if not cause and not _something(data_dir / FILE) and (known != 0 or any(_copies(data_dir))):
        cause = "there is no store any more"
    loss = replace_damaged(data_dir, now, cause) if cause else None
    with contextlib.suppress(StoreError):  # a card that takes nothing: the store says so itself
        mark(data_dir, "opening")
    try:
        store = Store.writer(data_dir)
    except StoreError as error:
        if not is_damage(error.__cause__):
            raise
        loss = replace_damaged(data_dir, now, error.message)
        store = Store.writer(data_dir)
    if store.fault is None and loss is None and (known is None or known > store.outbox.newest_claim()):
        newest = _newest(data_dir)[0]
        if newest is not None and newest.claims > store.outbox.newest_claim():
            store.close()
            loss = replace_damaged(data_dir, now, BEHIND)
            store = Store.writer(data_dir)
    return store, loss, known


def compared(store: Store, data_dir: Path, now: datetime, loss: Loss | None, known: int | None) -> Loss | None:
    """Whether requests have left that this store does not know of; what was lost is noted in it."""
    known = newest_claim(data_dir) if known is None else known  # the card may be back
    if loss is None and (known is None or known > store.outbox.newest_claim()):
        loss = Loss(BEHIND)
    if loss is not None and not loss.copy:
        note_loss(store._connection, loss, now, known)
    note_claim(data_dir, store.outbox.newest_claim())
    return loss


def note_loss(connection: Connection, loss: Loss, now: datetime, known: int | None) -> None:
    """Nothing that may have left since may leave again: every row without a final answer becomes unclear.

    The rows lose their claims, so that the usual reading back passes them by; work/recover.py settles them.
    """
    with connection.writing():
        connection.execute(
            # Whoever asked for History is found among the History reads only, so that mark stays.
            "UPDATE outbox SET state = 'unclear', claim = NULL, process_id = NULL, rule = CASE WHEN rule = 'history'"
            " OR rule LIKE 'history/%' THEN 'history/restored' ELSE 'restored' END, answer = ?, changed = ?"
            " WHERE state IN ('due', 'unclear', 'accepted')",
            ("it may have been sent after this copy was made; the platform is asked", micros(now)),
        )
        if known:
            # Requests up to this number have left, and are not in this store.
            connection.execute(
                "INSERT OR IGNORE INTO claim (id, uplink, at, path, body, rows) VALUES (?, '', ?, 'restored', ?, 0)",
                (known, micros(now), zlib.compress(b"")),
            )
        record = {**asdict(loss), "found": micros(now), "at": None, "done": []}
        connection.execute("INSERT OR REPLACE INTO learned VALUES (?, ?)", (RECOVERY, json.dumps(record)))
        connection.execute(
            "INSERT INTO event (at, kind, subject, text) VALUES (?, 'restored', 'store', ?)",
            (micros(now), str(loss)[:500]),
        )
        Chain(connection).append("restored", now, {**asdict(loss), "known_request": known})


def _something(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _copies(data_dir: Path) -> list[Path]:
    """Newest first, by their names."""
    return sorted((data_dir / COPIES).glob("heliograph-*.db"), reverse=True)


def _newest(data_dir: Path) -> tuple[Copy | None, list[str]]:
    """The newest copy that verifies, and what is wrong with those before it."""
    complaints: list[str] = []
    for path in _copies(data_dir):
        try:
            return verified(path), complaints
        except StoreError as error:
            complaints.append(error.message)
    return None, complaints


def _damage(data_dir: Path) -> str:
    path, marker = data_dir / FILE, data_dir / RUNNING
    if not marker.exists():
        return ""
    try:
        opened = marker.read_text(encoding="ascii").strip() == "open"
        if not _something(path):
            return "the store is empty" if opened else ""
        with path.open("rb") as file:
            versions = file.read(20)[18:]
        if versions not in (b"\1\1", b"\2\2"):  # SQLite would open it read-only, or without its journal
            return "the header of the store is damaged"
        with contextlib.closing(sqlite3.connect(read_only(path), uri=True, timeout=10)) as database:
            wrong = fault(database)
        return wrong if opened or wrong != NO_STORE else ""
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # A plain "error" is a statement that the schema does not allow: the schema is not ours any more.
        if is_damage(error) or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            return f"the store cannot be read: {error}"
        return ""  # the card, not the file: the store begins with that fault, and is looked through when it is over
    except OSError as error:
        return f"the store cannot be read: {error.strerror}"


def replace_damaged(data_dir: Path, now: datetime, cause: str) -> Loss:
    """Moves the store away, never deletes it, and puts the newest copy that verifies in its place."""
    quarantine = _into_quarantine(data_dir, now)
    copy, complaints = _newest(data_dir)
    cause = "; ".join((cause, *complaints))
    if copy is not None:
        loss = Loss(cause, copy.path.name, quarantine)
        fresh = data_dir / (FILE + PARTIAL)
        try:
            for name in (fresh, *(fresh.with_name(fresh.name + end) for end in ("-wal", "-shm"))):
                name.unlink(missing_ok=True)
            shutil.copyfile(copy.path, fresh)
            fresh.chmod(0o600)
            connection = Connection.open(fresh, write=True)
            try:
                # Before it has its name: whatever happens from here on, nothing in it is sent blindly.
                note_loss(connection, loss, now, newest_claim(data_dir))
            finally:
                connection.close()
            flush(fresh)
            fresh.rename(data_dir / FILE)
            flush(data_dir)
        except OSError as error:
            hint = "Free some space on the card, or mount it writable; the copies are untouched."
            raise StoreError(f"{copy.path.name} could not be put in place: {error.strerror}", hint=hint) from error
        return loss
    return Loss(cause, quarantine=quarantine, empty=True)


def _into_quarantine(data_dir: Path, now: datetime) -> str:
    files = [path for path in (data_dir / (FILE + end) for end in ("", "-wal", "-shm")) if path.exists()]
    if not files:
        return ""
    try:
        for number in range(1000):
            place = data_dir / QUARANTINE / (f"{now:%Y%m%dT%H%M%SZ}" + (f"-{number}" if number else ""))
            if not place.exists():
                break
        place.mkdir(mode=0o700, parents=True)
        for path in files:
            path.rename(place / path.name)
        flush(place)
        flush(data_dir)
    except OSError as error:
        raise StoreError(
            f"the damaged store could not be moved to {data_dir / QUARANTINE}: {error.strerror}",
            hint="Mount the card writable, or replace it.",
        ) from error
    return str(place.relative_to(data_dir))


def mark(data_dir: Path, text: str) -> None:
    """Says on the card that a store is being opened, or is open."""
    path = data_dir / RUNNING
    try:
        path.write_text(text + "\n", encoding="ascii")
        flush(path)
        flush(data_dir)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}", hint="Look at the card.") from error


def unmark(data_dir: Path) -> None:
    with contextlib.suppress(OSError):  # where it stays, the next start looks closely
        (data_dir / RUNNING).unlink(missing_ok=True)
        flush(data_dir)

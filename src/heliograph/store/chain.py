"""The hash chain and its checkpoints. An entry is written in the transaction of what it proves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any

from heliograph.core import chain
from heliograph.core.chain import Checkpoint, Entry, Head, told
from heliograph.core.entries import Kind
from heliograph.store.connection import Connection, micros, moment

# What `append` adds to the content it is given.
OWN = ("at", "kind", "seq")


class Chain:
    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def head(self) -> Head:
        row = self._db.one("SELECT seq, hash FROM chain ORDER BY seq DESC LIMIT 1")
        return Head(row["seq"], row["hash"]) if row else Head()

    def append(self, kind: Kind, at: datetime, content: Mapping[str, Any]) -> Head:
        """Adds an entry; inside the transaction that stores what it speaks of."""
        with self._db.writing():
            last = self.head()
            seq = last.seq + 1
            body = chain.canonical({**content, "kind": kind, "at": told(at), "seq": seq})
            head = Head(seq, chain.link(last.hash, chain.digest(body)))
            self._db.execute(
                "INSERT INTO chain (seq, kind, body, hash) VALUES (?, ?, ?, ?)", (seq, kind, body.decode(), head.hash)
            )
        return head

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        rows = self._db.rows(
            "SELECT seq, body, hash FROM chain WHERE seq >= ? AND (? IS NULL OR seq <= ?) ORDER BY seq",
            [first, last, last],
        )
        for row in rows:
            yield Entry(row["seq"], row["body"].encode(), row["hash"])

    def configured(self, before: int | None = None) -> Entry | None:
        """The configuration in force at an entry (or now)."""
        row = self._db.one(
            "SELECT seq, body, hash FROM chain WHERE kind = 'config' AND (? IS NULL OR seq <= ?)"
            " ORDER BY seq DESC LIMIT 1",
            [before, before],
        )
        return Entry(row["seq"], row["body"].encode(), row["hash"]) if row else None

    def configurations(self) -> list[Entry]:
        """All of them, oldest first."""
        rows = self._db.all("SELECT seq, body, hash FROM chain WHERE kind = 'config' ORDER BY seq")
        return [Entry(row["seq"], row["body"].encode(), row["hash"]) for row in rows]

    def in_force(self) -> list[tuple[datetime, dict[str, Any]]]:
        """What each configuration says, oldest first, and since when. It looks through all entries: who asks can wait.

        A box without a clock of its own may have started days before it went to sleep: no entry is older than those
        before it, whatever it says.
        """
        rows = self._db.all(
            "SELECT body, since FROM"
            " (SELECT seq, kind, body, max(body ->> 'at') OVER (ORDER BY seq) AS since FROM chain)"
            " WHERE kind = 'config' ORDER BY seq"
        )
        return [(datetime.fromisoformat(row["since"]), json.loads(row["body"])) for row in rows]

    def configure(self, content: Mapping[str, Any], at: datetime) -> None:
        """An entry where the configuration, a map or the software is another one than before."""
        last = self.configured()
        known = {key: value for key, value in last.content.items() if key not in OWN} if last else None
        if known != json.loads(chain.canonical(content)):
            self.append("config", at, content)

    def of_day(self, meter: str, day: date) -> Entry | None:
        """The entry that closed a day. It looks through them all: who asks can wait."""
        row = self._db.one(
            "SELECT seq, body, hash FROM chain WHERE kind = 'day' AND body ->> 'meter' = ? AND body ->> 'day' = ?",
            [meter, day.isoformat()],
        )
        return Entry(row["seq"], row["body"].encode(), row["hash"]) if row else None

    def seal(self, signed: Checkpoint) -> None:
        """Keeps a signed checkpoint for ever."""
        with self._db.writing():
            self._db.execute(
                "INSERT INTO checkpoint (seq, hash, at, site, key, signature) VALUES (?, ?, ?, ?, ?, ?)",
                (signed.seq, signed.hash, micros(signed.at), signed.site, signed.key, signed.signature),
            )

    def checkpoints(self, first: int = 1, last: int | None = None) -> list[Checkpoint]:
        rows = self._db.all(
            "SELECT * FROM checkpoint WHERE seq >= ? AND (? IS NULL OR seq <= ?) ORDER BY seq", [first, last, last]
        )
        return [self._checkpoint(row) for row in rows]

    def last_checkpoint(self) -> Checkpoint | None:
        row = self._db.one("SELECT * FROM checkpoint ORDER BY seq DESC LIMIT 1")
        return self._checkpoint(row) if row else None

    def next_checkpoint(self, seq: int) -> Checkpoint | None:
        """The first one that covers an entry."""
        row = self._db.one("SELECT * FROM checkpoint WHERE seq >= ? ORDER BY seq LIMIT 1", [seq])
        return self._checkpoint(row) if row else None

    @staticmethod
    def _checkpoint(row: Mapping[str, Any]) -> Checkpoint:
        return Checkpoint(row["seq"], row["hash"], moment(row["at"]), row["site"], row["key"], row["signature"])

"""What a store acknowledged, told line by line as it happens, and whether a file still holds it after a power cut.

A line is told after the store's method returned: whoever hears it may rely on it. Nothing here asks the store.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from heliograph.core import chain
from heliograph.core.coverage import Coverage
from heliograph.core.daily import Day
from heliograph.core.delivery import FOLLOWS, DayRow, Parcel, State, Verdict
from heliograph.core.readings import Reading
from heliograph.core.site import Report
from heliograph.store import Store
from heliograph.store.attempts import Asked
from heliograph.store.connection import micros


def tell_all(store: Store, tell: Callable[[Sequence[str]], object], *, early: bool = False) -> None:
    """From here on every reading, closed day, claim and verdict is told once it is stored.

    With `early` it is told before, as by a store that acknowledges before the commit: a check that does not find this
    out finds nothing.
    """

    @contextmanager
    def around(lines: Sequence[str]) -> Iterator[None]:
        if early and lines:
            tell(lines)
        yield
        if lines and not early:
            tell(lines)

    add, close, claim, settle = store.readings.add, store.days.close, store.outbox.claim, store.outbox.settle

    def add_and_tell(readings: Sequence[Reading], covered: Sequence[Coverage] = ()) -> None:
        with around([f"reading {one.meter} {micros(one.moment.at)} {one.index_wh}" for one in readings]):
            add(readings, covered)

    def close_and_tell(day: Day, now: datetime, reports: Sequence[Report], said: str = "") -> None:
        with around([f"day {day.meter} {day.day} {day.period_wh} {day.total_wh}"]):
            close(day, now, reports, said)

    def claim_and_tell(uplink: str, parcel: Parcel, now: datetime, look: datetime) -> int:
        made = claim(uplink, parcel, now, look)
        tell([f"claim {made} {len(parcel.rows)}", *(f"row {row.id} unclear" for row in parcel.rows)])
        return made

    def settle_and_tell(
        verdicts: Iterable[tuple[int, Verdict, datetime]],
        now: datetime,
        *,
        asked: Asked = "send",
        seen: Mapping[int, DayRow] | None = None,
    ) -> None:
        settled = list(verdicts)
        with around([f"row {id} {verdict.state}" for id, verdict, _ in settled]):
            settle(settled, now, asked=asked, seen=seen)

    store.readings.add = add_and_tell  # type: ignore[method-assign]  # this store only, not the class
    store.days.close = close_and_tell  # type: ignore[method-assign]  # this store only
    store.outbox.claim = claim_and_tell  # type: ignore[method-assign]  # this store only
    store.outbox.settle = settle_and_tell  # type: ignore[method-assign]  # this store only


def lost(raw: sqlite3.Connection, told: Sequence[str], *, after: int = 0) -> list[str]:
    """The lines that a file does not hold; of its readings only those with ids above `after` are looked at.

    A row of the outbox may be further on than was told, for the commit may come before the cut and the word after it.
    """
    readings = {
        f"reading {name} {at} {wh}"
        for name, at, wh in raw.execute(
            "SELECT name, at, index_wh FROM reading JOIN meter ON meter.id = reading.meter WHERE reading.id > ?",
            [after],
        )
    }
    proved = _proved(raw) if any(line.startswith("day ") for line in told) else set()
    days = {
        f"day {name} {day} {period} {total}"
        for name, day, period, total in raw.execute(
            "SELECT name, day, period_wh, total_wh FROM day JOIN meter ON meter.id = day.meter"
        )
        if (name, day) in proved
    }
    claims = {f"claim {id} {rows}" for id, rows in raw.execute("SELECT id, rows FROM claim")}
    known = readings | days | claims
    states: dict[str, State] = {}
    missing = []
    for line in told:
        kind, *rest = line.split(" ")
        if kind == "row":
            states[rest[0]] = rest[1]  # type: ignore[assignment]  # one of the states
        elif line not in known:
            missing.append(line)
    now: Mapping[str, Any] = {str(id): state for id, state in raw.execute("SELECT id, state FROM outbox")}
    return missing + [f"row {id} {state}" for id, state in states.items() if now.get(id) not in _from(state)]


def _from(state: State) -> set[State]:
    """A state and all that may come after it."""
    found, open_ = set[State](), [state]
    while open_:
        one = open_.pop()
        if one not in found:
            found.add(one)
            open_ += FOLLOWS[one]
    return found


def flaws(raw: sqlite3.Connection) -> list[str]:
    """What is wrong with a file by itself: pages, links, falls, days that do not add up, a chain that is torn."""
    found = [str(row) for (row,) in raw.execute("PRAGMA integrity_check") if row != "ok"]
    found += [f"foreign key {row}" for row in raw.execute("PRAGMA foreign_key_check")]
    for text, statement in {
        "a reading whose forerunner is gone": "SELECT a.id FROM reading a LEFT JOIN reading b ON b.id = a.prev"
        " WHERE a.prev NOT NULL AND b.id IS NULL",
        "a reading that nothing links to": "SELECT a.id FROM reading a LEFT JOIN reading b ON b.prev = a.id"
        " WHERE b.id IS NULL AND a.id NOT IN (SELECT last FROM meter WHERE last NOT NULL)",
        "a good reading below the one before": "SELECT a.id FROM reading a JOIN reading b ON b.id = a.prev"
        " WHERE a.doubt = '' AND b.doubt = '' AND a.index_wh < b.index_wh",
        "a day that is not what its borders say": "SELECT day.id FROM day JOIN border o ON o.id = day.opening"
        " JOIN border c ON c.id = day.closing WHERE day.period_wh <> c.total_wh - o.total_wh"
        " OR day.total_wh <> c.total_wh OR o.meter <> day.meter OR c.meter <> day.meter",
        "a day that begins before its forerunner ends": "SELECT id FROM (SELECT day.id, o.at, lag(c.at) OVER"
        " (PARTITION BY day.meter ORDER BY day.day) AS before FROM day JOIN border o ON o.id = day.opening"
        " JOIN border c ON c.id = day.closing) WHERE at < before",
        "a closed day without its outbox rows": "SELECT day.id FROM day WHERE (SELECT count(*) FROM outbox"
        " WHERE outbox.day = day.id) <> (SELECT count(DISTINCT uplink) FROM outbox WHERE outbox.meter = day.meter)",
    }.items():
        found += [f"{text}: {id}" for (id,) in raw.execute(statement)]
    return found + (_broken_chain(raw) if raw.execute("PRAGMA table_info(chain)").fetchone() else [])


def _broken_chain(raw: sqlite3.Connection) -> list[str]:
    head = chain.Head()
    for seq, body, hash in raw.execute("SELECT seq, body, hash FROM chain ORDER BY seq"):
        head = chain.Head(head.seq + 1, chain.link(head.hash, chain.digest(body.encode())))
        if (seq, hash) != (head.seq, head.hash):
            return [f"entry {seq} does not follow from the one before"]
    days = set(raw.execute("SELECT name, day FROM day JOIN meter ON meter.id = day.meter"))
    return [f"an entry without its day: {one}" for one in sorted(_proved(raw) - days)]


def _proved(raw: sqlite3.Connection) -> set[tuple[str, str]]:
    """Days that have an entry in the chain."""
    return set(raw.execute("SELECT body ->> 'meter', body ->> 'day' FROM chain WHERE kind = 'day'"))

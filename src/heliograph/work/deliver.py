"""Takes closed days to a platform: claims, sends, settles; follows up, reads back, waits. One uplink at a time.

Batching, order, retry, pace and counting live here, once; an uplink only speaks its dialect.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import TypeVar

import structlog

from heliograph.core import delivery
from heliograph.core.delivery import DayRow, Verdict
from heliograph.ports import Clock, Uplink
from heliograph.store import Store

log = structlog.get_logger()
Given = TypeVar("Given")
Told = TypeVar("Told")

# More rows than any platform takes at once; what a request leaves over is fetched again for the next.
ROWS = 3000
# A request may wait this long for days that are held back while earlier ones of their devices are being processed.
GATHER = timedelta(minutes=15)
# A process that is not finished by then is treated as unclear and read back.
PROCESS_PATIENCE = timedelta(hours=24)


@dataclass
class Pace:
    """What one platform may still be asked: our own limit a minute, and pauses it or its answers asked for."""

    per_minute: int
    sent: deque[datetime] = field(default_factory=lambda: deque(maxlen=600))
    paused_until: datetime | None = None
    reason: str = ""

    def open(self, now: datetime) -> bool:
        paused = self.paused_until is not None and now < self.paused_until
        return not paused and delivery.room(self.sent, now, self.per_minute) > 0

    def count(self, now: datetime, requests: int) -> None:
        self.sent.extend([now] * requests)

    def pause(self, until: datetime, reason: str) -> None:
        self.paused_until = max(until, self.paused_until or until)
        self.reason = reason


def deliver(uplink: Uplink, store: Store, clock: Clock, pace: Pace, jitter: Callable[[], float]) -> None:
    """One round: what became of earlier requests first, then as many new ones as the pace allows."""
    if not clock.trusted():
        return
    follow(uplink, store, clock, pace, jitter)
    read_back(uplink, store, clock, pace, jitter)
    while pace.open(clock.now()):
        rows = store.outbox.candidates(uplink.name, clock.now(), ordered=uplink.ordered, limit=ROWS)
        if rows and (early := _counted(uplink, pace, clock, uplink.prepare, rows)):
            _settle(uplink, store, clock, pace, jitter, [row for row in rows if row.id in early], early)
            continue
        parcel = uplink.pack(rows) if rows else None
        if parcel is None:
            return
        now = clock.now()
        # What is left of a backlog is sent together, not in as many requests as there are devices that were waited for.
        if len(parcel.rows) == len(rows) and not uplink.ordered:
            if store.outbox.held_back(uplink.name, now, since=now - GATHER):
                return
        # From here on the rows are unclear, so a power cut looks like a time-out.
        store.outbox.claim(uplink.name, parcel, now, delivery.next_look(now, now))
        verdicts = _counted(uplink, pace, clock, uplink.send, parcel)
        sent = [replace(row, claimed_at=now, attempt=row.attempt + 1) for row in parcel.rows]
        _settle(uplink, store, clock, pace, jitter, sent, verdicts)


def follow(uplink: Uplink, store: Store, clock: Clock, pace: Pace, jitter: Callable[[], float]) -> None:
    """Asks what became of accepted requests that have a process id."""
    rows = [row for row in store.outbox.waiting(uplink.name, "accepted", clock.now()) if row.process_id]
    rows.sort(key=lambda row: (row.process_id or "", row.meter, row.day))
    for _, group in groupby(rows, key=lambda row: row.process_id):
        if not pace.open(clock.now()):
            return
        same = list(group)
        verdicts = dict(_counted(uplink, pace, clock, uplink.follow, same))
        now = clock.now()
        for row in same:
            if row.id not in verdicts:
                verdicts[row.id] = Verdict("accepted", "processing", f"process {row.process_id} is not finished")
                if row.claimed_at is not None and now - row.claimed_at > PROCESS_PATIENCE:
                    text = f"process {row.process_id} was not finished after 24 h; the day is read back"
                    verdicts[row.id] = Verdict("unclear", "unconfirmed", text)
        _settle(uplink, store, clock, pace, jitter, same, verdicts)


def read_back(uplink: Uplink, store: Store, clock: Clock, pace: Pace, jitter: Callable[[], float]) -> None:
    """Asks the platform what it holds for rows whose request may or may not have arrived."""
    now = clock.now()
    rows = store.outbox.waiting(uplink.name, "unclear", now)
    rows += [row for row in store.outbox.waiting(uplink.name, "accepted", now) if not row.process_id]
    rows.sort(key=lambda row: (row.meter, row.day))
    for _, group in groupby(rows, key=lambda row: row.meter):
        if not pace.open(clock.now()):
            return
        same = list(group)
        found = _counted(uplink, pace, clock, uplink.ask, same)
        now, verdicts = clock.now(), {}
        for row in same:
            verdict = delivery.judge(row, found[row.id], now, uplink.absent_after) if row.id in found else None
            verdicts[row.id] = verdict or Verdict(row.state, row.last_rule or "waiting", "not yet at the platform")
        _settle(uplink, store, clock, pace, jitter, same, verdicts)


def _settle(
    uplink: Uplink,
    store: Store,
    clock: Clock,
    pace: Pace,
    jitter: Callable[[], float],
    rows: Sequence[DayRow],
    verdicts: Mapping[int, Verdict],
) -> None:
    """Writes down what the answers meant and when to look or try again.

    One draw of chance for all rows of a request: what was sent together comes due together.
    """
    now, chance = clock.now(), jitter()
    settled = []
    for row in rows:
        verdict = delivery.marked(row, verdicts[row.id])
        match verdict.state:
            case "due":
                due = delivery.next_try(row.attempt, now, verdict.wait, chance)
            case "unclear" | "accepted":
                due = max(delivery.next_look(row.claimed_at or now, now), now + (verdict.wait or timedelta(0)))
            case _:
                due = now
        settled.append((row.id, verdict, due))
        if verdict.pause_all:
            pace.pause(delivery.next_try(row.attempt, now, verdict.wait, chance), verdict.text or verdict.rule)
    store.outbox.settle(settled, now)
    for (state, rule, text, remedy), count in Counter(
        (verdict.state, verdict.rule, verdict.text, verdict.remedy)
        for row in rows
        if (verdict := delivery.marked(row, verdicts[row.id])).state != row.state or verdict.rule != row.last_rule
    ).items():
        tell = log.info if state in ("accepted", "confirmed") else log.warning
        tell("delivery", uplink=uplink.name, state=state, rule=rule, days=count, answer=text, hint=remedy)


def _counted(uplink: Uplink, pace: Pace, clock: Clock, exchange: Callable[[Given], Told], given: Given) -> Told:
    """Runs an exchange and counts every request it took against the pace, logins and pages included."""
    before = uplink.requests
    try:
        return exchange(given)
    finally:
        pace.count(clock.now(), uplink.requests - before)

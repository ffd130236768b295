"""Takes closed days to a platform: claims, sends, settles; follows up, reads back, waits. One uplink at a time.

Batching, order, retry, pauses and counting live here, once; an uplink only speaks its dialect.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import groupby

import structlog

from heliograph.core import delivery
from heliograph.core.delivery import DayRow, ReadBack, Unknown, Verdict
from heliograph.ports import Clock, Uplink
from heliograph.store import Store
from heliograph.store.attempts import Asked

log = structlog.get_logger()

# More rows than any platform takes at once; what a request leaves over is fetched again for the next.
ROWS = 3000
# A request may wait this long for days that are held back while earlier ones of their devices are being processed, and
# a look at days of a long backlog for the next of them.
GATHER = timedelta(minutes=15)
# A process that is not finished by then is treated as unclear and read back.
PROCESS_PATIENCE = timedelta(hours=24)


@dataclass
class Pace:
    """Pauses that one platform or its answers asked for, in a clock that is never set. How many requests may leave is
    the uplink's own matter: its gate counts them, where they leave.
    """

    clock: Clock
    ends: float = -math.inf
    """Of the pause, since boot."""
    why: Verdict | None = None
    away: int = 0
    """Failures in a row, of the platform or of the way to it."""
    busy: int = 0
    """How often in a row it said that it is asked too often."""
    crowded: bool = True
    """Many others may wait as well: power came back to a whole region, or the platform to all of them."""
    trouble: float | None = None
    """The latest failure, or before there was one the first answer, in seconds since boot."""
    silent: dict[str, datetime] = field(default_factory=dict)
    """Meters whose latest request got no answer of any use, and since when; others go first."""
    news: int = 0
    """Requests without such an answer since the last one that had one, known troubles left out."""
    asks_from: float = -math.inf
    """Since boot, from when on questions are asked again; their failures alone keep nothing from being sent."""
    puzzled: int = 0
    """Questions in a row that got no such answer, those about silent meters left out."""
    waits: set[tuple[str, date]] = field(default_factory=set)
    """Devices and days that wait for somebody to decide; each is said once."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """What answers made of days, by the state they led to: one for each send of a day, and for each change after it."""

    @property
    def paused_until(self) -> datetime | None:
        """In wall time; None while there is no pause."""
        left = self.ends - self.clock.since_boot()
        return self.clock.now() + timedelta(seconds=left) if left > 0 else None

    def open(self) -> bool:
        return self.clock.since_boot() >= self.ends

    def pause(self, until: datetime, why: Verdict) -> None:
        self.ends = max(self.clock.since_boot() + (until - self.clock.now()).total_seconds(), self.ends)
        self.why = why

    def heed(self, answers: Iterable[ReadBack], chance: float = 0.5) -> None:
        """The pause that answers ask for where no row is settled by them."""
        for answer in answers:
            if isinstance(answer, Unknown) and answer.verdict.pause_all:
                return self.refused(self.clock.now(), answer.verdict, chance)
        return None

    def refused(self, now: datetime, verdict: Verdict, chance: float) -> None:
        """The platform as a whole cannot be used now."""
        self.busy += verdict.busy
        self.away += not verdict.busy
        self.crowded = self.crowded or self.away > 0
        self.trouble = self.clock.since_boot()
        busy = self.busy if verdict.busy else 0
        wait = delivery.leave_alone(self.away, busy, verdict.wait, chance, crowded=self.crowded)
        self.pause(now + wait, verdict)

    def heard(self, meters: set[str]) -> None:
        """The platform told something about these meters, so it is there. A crowd is believed in for a while longer."""
        self.away = self.busy = self.news = 0
        now = self.clock.since_boot()
        self.trouble = now if self.trouble is None else self.trouble
        self.crowded = self.crowded and now - self.trouble < delivery.CAP.total_seconds()
        for meter in meters:
            self.silent.pop(meter, None)

    def unheard(self, meters: set[str], now: datetime, verdict: Verdict, chance: float, *, question: bool) -> None:
        """No answer, or none that tells. One device may be to blame; when it is the second one, it is the platform.

        Where it was a question, it may be the part of the platform that answers questions, so only these pause.
        """
        new = not meters <= self.silent.keys()
        self.news += new
        self.puzzled += question and new
        if len(meters) == 1:
            self.silent[next(iter(meters))] = now
        if self.away or (self.news > 1 and not question):
            self.refused(now, verdict, chance)
        if question and (self.away or self.puzzled > 1):
            # Behind a pause for all: then it is a send's turn to find out whether the platform is back.
            wait = delivery.leave_alone(self.puzzled, 0, verdict.wait, chance, crowded=self.crowded)
            self.asks_from = max(self.ends, self.clock.since_boot()) + wait.total_seconds()

    def last(self, meter: str) -> datetime:
        """Sorts meters: those in trouble come after the others, and the one that was tried last at the end."""
        return self.silent.get(meter, datetime.min.replace(tzinfo=UTC))


def free(uplink: Uplink, pace: Pace) -> bool:
    """Whether an exchange may begin now. One that takes several requests waits for its turns on the way."""
    return pace.open() and uplink.room() > 0


def deliver(uplink: Uplink, store: Store, clock: Clock, pace: Pace, jitter: Callable[[], float]) -> None:
    """One round: what became of earlier requests first, then as many new ones as may leave."""
    if not clock.trusted():
        return
    if not pace.open() and pace.why is not None and pace.why.token and uplink.token_changed():
        log.info("token_changed", uplink=uplink.name)
        pace.ends = -math.inf
    follow(uplink, store, clock, pace, jitter)
    read_back(uplink, store, clock, pace, jitter)
    tell_blocked(uplink, store, pace)
    while free(uplink, pace):
        rows = store.outbox.candidates(uplink.name, clock.now(), ordered=uplink.ordered, limit=ROWS)
        rows.sort(key=lambda row: (pace.last(row.meter), row.meter, row.day))
        if early := uplink.prepare(rows):
            _settle(uplink, store, clock, pace, jitter, [row for row in rows if row.id in early], early, "device")
            continue
        begun = False
        while free(uplink, pace) and (parcel := uplink.pack(rows) if rows else None) is not None:
            begun, now = True, clock.now()
            # What is left of a backlog is sent together, not in as many requests as there are devices that wait.
            whole = len(parcel.rows) == len(rows) and not uplink.ordered
            if whole and store.outbox.held_back(uplink.name, now, since=now - GATHER):
                return
            # From here on the rows are unclear, so a power cut looks like a time-out.
            store.outbox.claim(uplink.name, parcel, now, delivery.next_look(now, now))
            verdicts = uplink.send(parcel)
            sent = [replace(row, claimed_at=now, attempt=row.attempt + 1) for row in parcel.rows]
            answered = any(verdict.state != "unclear" for verdict in verdicts.values())
            rows = _left(rows, sent, verdicts, ordered=uplink.ordered)
            more = any(row.meter == sent[0].meter for row in rows)
            if not _settle(uplink, store, clock, pace, jitter, sent, verdicts, "send", answered=answered, more=more):
                return
        if not begun:
            return


def _left(
    rows: Sequence[DayRow], sent: Sequence[DayRow], verdicts: Mapping[int, Verdict], *, ordered: bool
) -> list[DayRow]:
    """What may leave after a request: where order is the rule, later days of its device once it was taken."""
    gone = {row.id for row in sent}
    taken = all(verdict.state in ("accepted", "confirmed") for verdict in verdicts.values())
    meters = set() if ordered and taken else {row.meter for row in sent}
    return [row for row in rows if row.id not in gone and row.meter not in meters]


def tell_blocked(uplink: Uplink, store: Store, pace: Pace) -> None:
    """Where order is the rule, one refused day stops its device: said once, loudly, with what to do."""
    waits = store.outbox.blocked(uplink.name) if uplink.ordered else []
    for one in waits:
        if (one.meter, one.day) not in pace.waits:
            about = {"uplink": one.uplink, "meter": one.meter, "day": str(one.day), "later": one.later}
            log.error("device_waits", **about, why=one.why, hint=one.todo)
    pace.waits = {(one.meter, one.day) for one in waits}


def follow(uplink: Uplink, store: Store, clock: Clock, pace: Pace, jitter: Callable[[], float]) -> None:
    """Asks what became of accepted requests that have a process id."""
    rows = [row for row in store.outbox.waiting(uplink.name, "accepted", clock.now()) if row.process_id]
    rows.sort(key=lambda row: (row.process_id or "", row.meter, row.day))
    for _, group in groupby(rows, key=lambda row: row.process_id):
        if not free(uplink, pace) or clock.since_boot() < pace.asks_from:
            return
        same = list(group)
        verdicts = dict(uplink.follow(same))
        now = clock.now()
        answered = not verdicts or any(verdict.state != "accepted" for verdict in verdicts.values())
        for row in same:
            if row.id not in verdicts:
                verdicts[row.id] = Verdict("accepted", "processing", f"process {row.process_id} is not finished")
            late = row.claimed_at is not None and now - row.claimed_at > PROCESS_PATIENCE
            if late and verdicts[row.id].state == "accepted":
                text = f"process {row.process_id} was not finished after 24 h; the day is read back"
                verdicts[row.id] = replace(verdicts[row.id], state="unclear", rule="unconfirmed", text=text)
        if not _settle(uplink, store, clock, pace, jitter, same, verdicts, "follow", answered=answered):
            return


def read_back(uplink: Uplink, store: Store, clock: Clock, pace: Pace, jitter: Callable[[], float]) -> None:
    """Asks the platform what it holds for rows whose request may or may not have arrived."""
    now = clock.now()
    rows = store.outbox.waiting(uplink.name, "unclear", now)
    rows += [row for row in store.outbox.waiting(uplink.name, "accepted", now) if not row.process_id]
    rows.sort(key=lambda row: (pace.last(row.meter), row.meter, row.day))
    for _, group in groupby(rows, key=lambda row: row.meter):
        if not free(uplink, pace) or clock.since_boot() < pace.asks_from:
            return
        same = list(group)
        found = uplink.ask(same)
        now, verdicts = clock.now(), {}
        for row in same:
            verdict = delivery.judge(row, found[row.id], now, uplink.absent_after) if row.id in found else None
            absent = delivery.until_absent(row, now, uplink.absent_after) if row.id in found else None
            waits = Verdict(row.state, row.last_rule or "waiting", "not yet at the platform", wait=absent)
            verdicts[row.id] = verdict or waits
        answered = not all(isinstance(one, Unknown) and one.verdict.state != "held" for one in found.values())
        if not _settle(uplink, store, clock, pace, jitter, same, verdicts, "read-back", answered=answered):
            return


def _settle(
    uplink: Uplink,
    store: Store,
    clock: Clock,
    pace: Pace,
    jitter: Callable[[], float],
    rows: Sequence[DayRow],
    verdicts: Mapping[int, Verdict],
    asked: Asked,
    *,
    answered: bool | None = None,
    more: bool = False,
) -> bool:
    """Writes down what the answers meant and when to look or try again; whether the round may go on.

    `answered`: whether the platform told anything about these rows; None where it was not asked. `more`: more days of
    the device leave at once, so that one look at all of them will do.

    One draw of chance for all rows of a request: what was sent together comes due together.
    """
    now, chance = clock.now(), jitter()
    meters = {row.meter for row in rows}
    known = meters <= pace.silent.keys()
    of_all = next((verdict for verdict in verdicts.values() if verdict.pause_all), None)
    if of_all is not None:
        pace.refused(now, of_all, chance)
    elif answered:
        pace.heard(meters)
        pace.puzzled *= asked == "send"
    elif answered is False:
        pace.unheard(meters, now, next(iter(verdicts.values())), chance, question=asked != "send")
    settled = []
    for row in rows:
        verdict = delivery.marked(row, verdicts[row.id])
        match verdict.state:
            case "due" if verdict.at_once or verdict.token:
                due = now  # a pause for the token holds all back, and ends as soon as there is another one
            case "accepted" if more and verdict.process_id is None:
                due = now + GATHER
            case "due" | "unclear" | "accepted" if verdict.pause_all:
                due = pace.paused_until or now  # nothing was said about this row: its turn is when the pause ends
            case "due":
                due = delivery.next_try(row.attempt, now, verdict.wait, chance)
            case "unclear" | "accepted":
                due = max(delivery.next_look(row.claimed_at or now, now), now + (verdict.wait or timedelta(0)))
            case _:
                due = now
        settled.append((row.id, verdict, due))
    # Only rows that were not sent can be moved by a person meanwhile.
    store.outbox.settle(settled, now, asked=asked, seen={row.id: row for row in rows} if asked == "device" else None)
    before = {row.id: row.state for row in rows}
    pace.verdicts.update(one.state for id, one, _ in settled if asked == "send" or one.state != before[id])
    for (state, rule, text, remedy), count in Counter(
        (verdict.state, verdict.rule, verdict.text, verdict.remedy)
        for row in rows
        if (verdict := delivery.marked(row, verdicts[row.id])).state != row.state or verdict.rule != row.last_rule
    ).items():
        tell = log.info if state in ("accepted", "confirmed") else log.warning
        tell("delivery", uplink=uplink.name, state=state, rule=rule, days=count, answer=text, hint=remedy)
    # A meter that is silent again may have cost us a time-out, and those after it are in the same case.
    return answered is not False or not known

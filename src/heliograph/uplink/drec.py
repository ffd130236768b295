"""D-REC platform: one read per call. What is known stands in the platform sheet; its sections are cited as (§6.6).

The server knows no idempotency key. What protects a day is its end, which is fixed before the first attempt: a second
Delta that ends at the same instant is refused (L3), and we then look whether it is ours.

`drec_rules.py` is the table of refusals, `drec_packing.py` makes reads of days, `drec_reads.py` reads them back,
`drec_devices.py` knows what the platform knows of the devices.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import groupby
from types import MappingProxyType

from heliograph.core.ceiling import LOOKED_AT, TOO_MANY
from heliograph.core.delivery import (
    FLOOR,
    WITH_NEXT,
    DayRow,
    Missing,
    Note,
    Parcel,
    ReadBack,
    Registered,
    Roll,
    State,
    Stored,
    Unknown,
    Verdict,
    as_history,
    bare_rule,
)
from heliograph.uplink import drec_packing as packing
from heliograph.uplink import drec_reads as reading
from heliograph.uplink.drec_devices import Devices
from heliograph.uplink.drec_packing import LATER, ReadType, text
from heliograph.uplink.drec_reads import Reads
from heliograph.uplink.drec_rules import ASIDE, CEILING, LOOK, NOT_FOUND, REGISTER, Rule, classify, transport
from heliograph.uplink.http import Answer, Exchange, Http, portal
from heliograph.uplink.tokens import TOKEN_WAIT, Authorized, TokenSource, too_long

A_DAY = timedelta(hours=24)
# So many rows at once may not be all there are.
CUT = 1000
# Reads asked for in one go.
ASKED = 60
# Answers that say: the platform knows something else of this device than we believe.
DOUBTS = frozenset({"E1", "E2", "E-5007", "E-5008", "E-5005", "L1", "L4", "A2", "D5", "H3", "H5", "H6", "H8"})

# The server fails by itself (§13, step 8): tried on, and told after a day; T11 is put aside then.
FAILURES = frozenset({"T11", "U5xx", "E-5201", "E-5202", "E-5203", "E-5204"})
# Tries after which failures of a day are no accidents; a day of trying has some eighty.
OFTEN = 12
# The platform said yes.
TAKEN = frozenset({"S200", "S201"})


class Drec:
    """Reads of one device at a time, strictly oldest first, each confirmed by reading it back."""

    ordered = True

    def __init__(
        self,
        name: str,
        http: Http,
        read_type: ReadType,
        tokens: TokenSource,
        now: Callable[[], datetime],
        *,
        organization: int | None = None,
        zero_wh: Mapping[str, int] = MappingProxyType({}),
        address: str = "",
        absent_after: timedelta = timedelta(minutes=5),
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`zero_wh` by meter: the running total at which Aggregate starts; `address`: e-mail of the login, if known."""
        self.name = name
        self.absent_after = absent_after
        self.tokens = tokens
        self._http = http
        self._type = read_type
        self._api = Authorized(http, tokens, now, refused=self._renewable, hasty=self._hasty, sleep=sleep)
        self._now, self._jitter = now, jitter
        self._organization = organization
        self._zero = zero_wh
        self._address = address
        self._devices = Devices(self._exchange, organization)
        self._failing: dict[int, tuple[DayRow, datetime, int]] = {}
        """Days at which the server fails by itself, since when, and how often."""
        self._taken_at: datetime | None = None
        """When it took a read last, of whichever device."""
        self._names: dict[str, str] = {}
        self._days: dict[str, dict[date, DayRow]] = {}
        self._waiting: dict[str, str] = {}
        """Meters of which nothing is sent for a reason that a person has to cure, in words."""

    # Packing

    def prepare(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """Reads what the platform knows of the devices when it is time, and takes out what cannot be sent by that."""
        if not rows:
            return {}
        now, found = self._now(), dict[int, Verdict]()
        if (verdict := self._devices.refresh(now)) is not None:
            # Its rule stays, for it may say how the row is to be sent.
            return {row.id: replace(verdict, rule=row.last_rule or verdict.rule) for row in rows[:1]}
        for meter, group in groupby(rows, key=lambda row: row.meter):
            device_rows = list(group)
            self._names[meter] = device_rows[0].remote_id
            if (device := self._devices.get(device_rows[0].remote_id)) is None:
                continue
            zero = self._zero.get(meter, 0)
            early = packing.known_before(device_rows, device, self._type, zero, now)
            if len(rows) >= CUT:  # a day that is too much may have neighbours that were left out
                early = {id: verdict for id, verdict in early.items() if verdict.rule != "aside/H8"}
            found |= early
            left = [row for row in device_rows if row.id not in early and not as_history(row)]
            self._days[meter] = {**self._days.get(meter, {}), **{row.day: row for row in left[:LOOKED_AT]}}
            for day in sorted(self._days[meter])[:-LOOKED_AT]:
                del self._days[meter][day]
            locked = next((verdict for verdict in early.values() if verdict.state == "due"), None)
            stuck = left and packing.span(left) > packing.MERGE_DAYS and sum(row.period_wh for row in left) > 0
            self._waiting.pop(meter, None)
            if locked is not None:
                self._waiting[meter] = f"{locked.text}. {locked.remedy}"
            elif stuck and packing.next_read(left, device, self._type, zero, now) is None:
                words = f"{packing.span(left)} days wait, for even together they are above what the platform takes"
                self._waiting[meter] = f"{words} for {device.remote_id}. {CEILING}"
        return found

    def pack(self, rows: Sequence[DayRow]) -> Parcel | None:
        """The oldest days of the first device that has a read to send; History, if asked for, after the others."""
        now = self._now()
        for meter, group in groupby(rows, key=lambda row: row.meter):
            device_rows = list(group)
            device, zero = self._devices.get(device_rows[0].remote_id), self._zero.get(meter, 0)
            ongoing = [row for row in device_rows if not as_history(row)]
            if taken := packing.next_read(ongoing, device, self._type, zero, now):
                return packing.parcel(taken, device, self._type, zero, self._organization)
            before = [row for row in device_rows if as_history(row)]
            for taken, refusal in packing.history_groups(before, device, now):
                if refusal is None:
                    return packing.parcel(taken, device, "History", zero, self._organization)
        return None

    def notes(self) -> tuple[Note, ...]:
        found = [Note(words, alarm=True)] if (words := too_long(self._address)) else []
        if self._devices.trouble:
            found.append(Note(self._devices.trouble, alarm=False))
        unknown = set(self._devices.unknown(self._names.values()))
        for meter, name in sorted(self._names.items()):
            device = self._devices.get(name)
            if name in unknown:
                found.append(Note(f"{meter}: the platform lists no device {name}. {REGISTER}", alarm=True))
            if device is not None and device.first and self._type == "Delta":
                words = f"{meter}: the platform has no read of {name} yet. The first one is the baseline: it carries"
                words += " what was metered since the registration, and older servers count it in no certificate."
                found.append(Note(words, alarm=False))
            days, now = self._days.get(meter, {}), self._now()
            above = sum(packing.above_ceiling(row, device, now) for row in days.values())
            if above >= TOO_MANY:
                words = f"{meter}: {above} of the last {len(days)} days are above what the platform takes"
                found.append(Note(f"{words} for {name} in a day; they are sent together with others. {CEILING}", True))
            for row, since, _ in self._failing.values():
                if row.meter == meter and now - since >= A_DAY:
                    words = f"{meter}: the platform has failed at {row.day} since {since:%Y-%m-%d %H:%M} UTC"
                    found.append(Note(f"{words}. It is tried on; ask the platform.", alarm=True))
            if meter in self._waiting:
                found.append(Note(f"{meter}: {self._waiting[meter]}", alarm=True))
        return tuple(found)

    # Sending

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        rows = parcel.rows
        kind = self._kind(rows[-1])
        found = self._exchange("POST", parcel.path, body=parcel.body)
        if not isinstance(found, Answer):
            verdict = transport(found)
        elif found.status < 400 or portal(found) is not None:
            verdict = self._taken(found)
        else:
            rule = classify(found, kind)
            if rule.id in DOUBTS:
                self._devices.doubt(self._now())
            if rule.action == "DONE?":
                return self._done(rule, found, rows)
            verdict = self._refusal(rule, found, rows)
        if verdict.rule not in FAILURES or verdict.state != "unclear":
            self._failing.pop(rows[-1].id, None)
        if verdict.state == "accepted":
            self._taken_at = self._now()
        if verdict.state == "accepted" and kind != "History":
            self._devices.began(rows[-1].remote_id, kind, self._now())
            if kind == "Aggregate" and self._starts(rows):
                verdict = self._baseline(verdict, rows)
        return {row.id: verdict for row in rows}

    def _kind(self, row: DayRow) -> str:
        return "History" if as_history(row) else self._type

    def _value(self, rows: Sequence[DayRow]) -> int:
        return packing.value_wh(rows, self._kind(rows[-1]), self._zero.get(rows[-1].meter, 0))

    def _taken(self, answer: Answer) -> Verdict:
        """A stored read is answered with 201 and nothing. An empty 200 may be anybody's, a page certainly is."""
        if (answer.status == 201 and answer.empty) or (answer.success and answer.complete and answer.json == {}):
            return Verdict("accepted", f"S{answer.status}")
        return portal(answer) or Verdict("unclear", "shape", answer.words(), LOOK)

    def _starts(self, rows: Sequence[DayRow]) -> bool:
        """Whether the counter stood at its zero where these days begin: then their value is its first."""
        return rows[0].total_wh - rows[0].period_wh <= self._zero.get(rows[0].meter, 0)

    def _baseline(self, taken: Verdict, rows: Sequence[DayRow]) -> Verdict:
        """A counter's first value is read back at once: older servers keep it as the point to count from and show it
        nowhere (7.3), and once a second value is there nobody can tell whether it was stored."""
        reads = self._reads(rows[-1], rows[-1])
        found = {} if isinstance(reads, Verdict) else self._told(rows, reads)
        if found and all(reading.same(row, found[row.id]) for row in rows):
            return Verdict("confirmed", "baseline", "the platform counts from here")
        words = "the counter's first value is read back before another one is sent"
        return replace(taken, state="unclear", text=words, remedy=LOOK)

    def _refusal(self, rule: Rule, answer: Answer, rows: Sequence[DayRow]) -> Verdict:
        words, now, last = answer.words(), self._now(), bare_rule(rows[-1].last_rule)
        history = as_history(rows[-1])

        def verdict(state: State, wait: timedelta | None = None, *, pause_all: bool = False, id: str = "") -> Verdict:
            token = rule.action == "AUTH"
            return Verdict(state, id or rule.id, words, rule.remedy, wait, pause_all=pause_all, token=token)

        if rule.id in ASIDE and not history:
            return verdict("rejected", id=ASIDE[rule.id])
        match rule.action:
            case "RETRY" if answer.status == 429:
                asked = answer.retry_after(now)
                wait = FLOOR if asked is None else asked + timedelta(seconds=1 + 9 * self._jitter())
                return replace(verdict("due", wait, pause_all=True), busy=True)
            case "RETRY":  # the server's clock is behind; a moment is never shifted to please it
                there = answer.date()
                behind = rows[-1].end - there if there is not None else timedelta(0)
                return verdict("due", behind + timedelta(seconds=5) if behind > timedelta(0) else timedelta(minutes=10))
            case "RETRY-RB":
                if rule.id in FAILURES and self._fails_alone(rows[-1]) and rule.id == "T11":
                    return replace(verdict("rejected"), remedy="The platform fails on this day since 24 h; ask it.")
                return verdict("unclear", answer.retry_after(now))
            case "AUTH":  # it was renewed and repeated once already
                return verdict("due", LATER if rule.id == "T4" else TOKEN_WAIT, pause_all=True)
            case "MERGE" if packing.span(rows) > packing.MERGE_DAYS and not history:
                return replace(verdict("held"), remedy=rule.remedy or CEILING)
            case "MERGE":
                return replace(verdict("due"), remedy=f"{WITH_NEXT} {rule.remedy}".strip())
            case "HOLD" if rule.account:
                return verdict("due", LATER, pause_all=True)
            case "HOLD" if rule.id == "D5":
                return verdict("due", LATER)
            case "HOLD":
                named = re.search(r"read for (Delta|Aggregate) type", words, re.IGNORECASE)
                remedy = rule.remedy
                if rule.id == "L1" and named:
                    remedy = f"{packing.TYPE.format(named[1].capitalize())} Then: {packing.RESUME}."
                return replace(verdict("held"), remedy=remedy)
            case "THRICE":  # at once, after twelve hours and after a day
                before = re.fullmatch(r"U409/(\d)", last)
                count = int(before[1]) + 1 if before else 1
                return verdict("rejected") if count >= 3 else verdict("due", A_DAY / 2, id=f"U409/{count}")
            case "FIX" if last != f"{rule.id}/again":  # the body is made anew and sent once more
                return verdict("due", FLOOR, id=f"{rule.id}/again")
            case _:  # FIX that came back; QUAR
                return verdict("rejected")

    def _fails_alone(self, row: DayRow) -> bool:
        """Whether the server has failed at this day often and for 24 h, while it took others: then it is the day."""
        while len(self._failing) > 1000:
            del self._failing[next(iter(self._failing))]
        now = self._now()
        _, since, times = self._failing.get(row.id, (row, now, 0))
        self._failing[row.id] = (row, since, times + 1)
        return times >= OFTEN and now - since >= A_DAY and self._taken_at is not None and self._taken_at > since

    def _done(self, rule: Rule, answer: Answer, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """The platform says that it has a read there already: ours, or another one? It is looked up at once, unless
        that would take a request from devices that still wait for theirs in this minute."""
        words = answer.words()
        if self.room() < 0.5:
            return {row.id: Verdict("unclear", rule.id, words, LOOK) for row in rows}
        reads = self._reads(rows[-1], rows[-1])
        if isinstance(reads, Verdict):
            told = f"{words}; looking it up failed: {reads.text}"
            verdict = replace(reads, state="unclear", rule=rule.id, text=told, remedy=LOOK)
            return {row.id: verdict for row in rows}
        found = self._told(rows, reads)
        if all(isinstance(entry, Missing) for entry in found.values()):
            verdict = self._vanished(rule, words, rows)
        elif all(reading.same(row, found[row.id]) for row in rows):
            verdict = Verdict("confirmed", rule.id, f"{words}; it is ours")
        elif not reads.whole:
            verdict = Verdict("unclear", rule.id, words, LOOK)
        else:
            theirs = reading.shown(reads.at(rows[-1]) or frozenset())
            told = f"{words}; the platform holds {theirs} Wh up to {text(rows[-1].end)}, {self._value(rows)} Wh here"
            verdict = Verdict("rejected", rule.id, told, "A stored read is never overwritten; ask the platform.")
        return {row.id: verdict for row in rows}

    @staticmethod
    def _vanished(rule: Rule, words: str, rows: Sequence[DayRow]) -> Verdict:
        remedy = "Compare with the platform's list of reads."
        if rule.id == "A1" and not rows[-1].last_rule:
            remedy = "A replaced or reset counter needs a new base: register a new device, or set read_type to Delta."
            return Verdict("held", "A1", words, remedy)
        id = "A5" if rule.id == "A1" else rule.id
        told = NOT_FOUND.get(id, "the platform says it has this read, but does not show it")
        return Verdict("rejected", id, f"{words}; {told}", remedy)

    # Following up and reading back

    def follow(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """There are no processes here; days are confirmed by reading them back."""
        del rows
        return {}

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        """Reads are found by their end, which is the end of the last day of the request they came with.

        Requests beyond the first sixty are left out; they are asked about next time.
        """
        found: dict[int, ReadBack] = {}
        # Two questions: between a day long ago and one of today there may be more reads than can be paged through.
        # And of one device each: days that were closed before report_as was changed stand under the earlier name.
        for history, name in sorted({(as_history(row), row.remote_id) for row in rows}):
            found |= self._ask([row for row in rows if (as_history(row), row.remote_id) == (history, name)])
        return found

    def _ask(self, rows: Sequence[DayRow]) -> dict[int, ReadBack]:
        groups: dict[int, list[DayRow]] = {}
        for row in rows:
            groups.setdefault(-row.id if row.claim is None else row.claim, []).append(row)
        asked = sorted(groups.values(), key=lambda group: group[-1].end)[:ASKED]
        if not asked:
            return {}
        reads = self._reads(asked[0][-1], asked[-1][-1])
        found: dict[int, ReadBack] = {}
        for group in asked:
            if isinstance(reads, Verdict):
                held = reads.state == "held"
                found |= {row.id: Unknown(reads if held else replace(reads, state=reading.still(row))) for row in group}
            else:
                found |= self._told(group, reads)
        return found

    def _reads(self, first: DayRow, last: DayRow) -> Reads | Verdict:
        def refused(answer: Answer) -> Verdict:
            return reading.refusal(answer, self._type, self._now())

        return reading.fetch(self._exchange, first, last, self._organization, refused)

    def _told(self, rows: Sequence[DayRow], reads: Reads) -> dict[int, ReadBack]:
        """What the platform holds of these days. A counter's first value may be held without being shown (7.3)."""
        kind, last = self._kind(rows[-1]), rows[-1]
        found = reading.told(rows, reads, kind, self._value(rows))
        missing = all(isinstance(entry, Missing) for entry in found.values())
        if kind == "Aggregate" and missing and last.period_wh >= 0:  # below: a lost day, of which nothing is known
            if self._starts(rows) and last.state == "confirmed":
                verdict = Verdict("confirmed", "baseline", "the platform counted from here; it shows that no more")
                found = {row.id: Unknown(verdict) for row in rows}
            elif self._starts(rows) and reading.only_a_baseline(self._exchange, self._number(last.remote_id)):
                found = {row.id: Stored(None, row.total_wh) for row in rows}
            elif (last.state == "accepted" or last.last_rule in TAKEN) and self._late(last):
                words = f"the platform took {self._value(rows)} Wh up to {text(last.end)} and holds no read of it"
                remedy = "Ask the platform. Aggregate can lose energy in this way, Delta cannot."
                found = {row.id: Unknown(Verdict("held", "A6", words, remedy)) for row in rows}
        if kind != "History" and any(isinstance(entry, Stored) for entry in found.values()):
            self._devices.began(last.remote_id, kind, self._now())
        return found

    def _late(self, row: DayRow) -> bool:
        return row.claimed_at is not None and self._now() - row.claimed_at >= self.absent_after

    def _number(self, remote_id: str) -> str:
        """API users ask for the newest read by the server's number, others by the name (§9)."""
        device = self._devices.get(remote_id)
        if self._organization is not None and device is not None and device.number is not None:
            return str(device.number)
        return remote_id

    def look_up(self, remote_ids: Sequence[str]) -> Roll:
        """By the platform's own list of the account's devices."""
        self._devices.doubt(self._now())
        verdict = self._devices.refresh(self._now()) or self._devices.failed
        if verdict is not None:
            return Roll(trouble=verdict)
        found = []
        for remote_id in remote_ids:
            device = self._devices.get(remote_id)
            if device is not None:
                kw = device.plant.capacity_kw if device.plant is not None else None
                fixed = device.read_type not in (None, self._type)
                words = f"Its reads are fixed to {device.read_type}: set read_type so." if fixed else ""
                found.append(Registered(remote_id, True, kw, words, barred=fixed))
            elif self._devices.complete:
                found.append(Registered(remote_id, False, text=f"The platform lists no device {remote_id}. {REGISTER}"))
            else:
                found.append(Registered(remote_id, text=self._devices.trouble))
        return Roll(tuple(found))

    def _exchange(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Exchange:
        return self._api.exchange(method, path, query=query, body=body)

    def _renewable(self, answer: Answer) -> bool:
        """A 401 that a new login may help, an unknown one included: it costs one request."""
        if answer.success:
            return False
        rule = classify(answer, self._type)
        return rule.action == "AUTH" or (answer.status == 401 and rule.action != "HOLD")

    def _hasty(self, answer: Answer) -> bool:
        return answer.status == 401 and classify(answer, self._type).id == "T4"

    def room(self) -> float:
        return self._http.room()

    def date(self) -> datetime | None:
        return self._http.date()

    def token_until(self) -> datetime | None:
        return self.tokens.expiry() if self.tokens.by_hand else None

    def token_changed(self) -> bool:
        return self.tokens.changed()

    def close(self) -> None:
        self._http.close()

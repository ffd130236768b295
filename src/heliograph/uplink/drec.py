"""D-REC platform: one read per call. What is known stands in the platform sheet; its sections are cited as (§6.6).

The server knows no idempotency key. What protects a day is its end, which is fixed before the first attempt: a second
Delta that ends at the same instant is refused (L3), and we then look whether it is ours.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

from heliograph.core import figures
from heliograph.core.delivery import FLOOR, DayRow, Missing, Parcel, ReadBack, State, Stored, Unknown, Verdict
from heliograph.uplink.http import Answer, Exchange, Http, NotSent, fault, portal
from heliograph.uplink.tokens import Authorized, TokenSource

ReadType = Literal["Delta", "Aggregate"]
Action = Literal["RETRY", "RETRY-RB", "AUTH", "FIX", "MERGE", "DONE?", "QUAR", "HOLD", "THRICE"]
"""The client actions of §6; THRICE is step 8 of §13 for a refusal nobody knows: three attempts over a day."""

LATER = timedelta(hours=1)
A_DAY = timedelta(hours=24)
# §6.6 L4: a ceiling that is still too low after three days is a matter of capacity, yield or scaling.
MERGE_DAYS = 3
# Reads asked for in one go; a page holds 5 or 15 of them.
ASKED = 60
PAGES = 30

FIX = "Our request was called malformed; report this with the text. The day keeps its value."
ACCOUNT = "Nothing is sent until the account is in order; it is tried again every hour by itself."
LOOK = "The days are read back before anything is sent again."
CEILING = (
    "The server's energy ceiling is too low: check capacity and yieldValue of the device, and the meter's scaling."
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of §6: how to recognise an answer, and what to do about it."""

    id: str
    action: Action
    status: tuple[int, ...] = ()
    """Empty: any."""
    contains: tuple[str, ...] = ()
    """One of these in the normalised message; empty: whatever it says."""
    pattern: str = ""
    """Instead of `contains`: the whole message."""
    types: tuple[str, ...] = ()
    """Read types it belongs to; empty: all."""
    member: str = ""
    """The body must have this key."""
    array: bool = False
    """`message` must be a list."""
    account: bool = False
    """HOLD: it is not about the device but about the account, so nothing more leaves at all."""
    remedy: str = ""


MAX_ENERGY = r"failed, maxenergy: [0-9.e+-]+"

# In this order, the first that fits (§13 and x-message-rules). Texts are lower case, blanks collapsed, no apostrophes.
RULES: tuple[Rule, ...] = (
    Rule("T1", "RETRY-RB", (502, 503, 504), remedy=LOOK),
    Rule("T2", "RETRY", (429,), remedy="The platform asks for a pause; it is tried again by itself."),
    Rule(
        "T4",
        "AUTH",
        (401,),
        ("token revoked",),
        remedy="The platform does not keep this login: an e-mail address longer than 45 characters, or another login.",
    ),
    Rule(
        "T5",
        "HOLD",
        (401, 403),
        ("please verify", "please accept", "pending approval", "suspended"),
        account=True,
        remedy=f"Log in at the platform and do what it asks. {ACCOUNT}",
    ),
    Rule("D4", "HOLD", (401,), member="success", account=True, remedy=f"The organisation is no developer's. {ACCOUNT}"),
    Rule("T3", "AUTH", (401,), ("unauthorized",), remedy="Check the token, or user name and password."),
    Rule(
        "T6", "HOLD", (403,), ("forbidden resource",), account=True, remedy=f"Ask for READS Read and Write. {ACCOUNT}"
    ),
    Rule("T7", "HOLD", (412,), ("only active users",), account=True, remedy=f"The user is not active. {ACCOUNT}"),
    Rule("T2", "FIX", (413,), ("request entity too large",), remedy=FIX),
    Rule("D1", "HOLD", (404,), ("no organization found with id",), account=True, remedy="Check organization_id."),
    Rule(
        "D2",
        "HOLD",
        (409,),
        ("organization in measurement is not same as",),
        account=True,
        remedy="Check organization_id.",
    ),
    Rule(
        "D3",
        "HOLD",
        (409,),
        ("in measurement is not part of your organization",),
        account=True,
        remedy="Check organization_id.",
    ),
    Rule(
        "D5",
        "HOLD",
        (409,),
        ("invalid device id",),
        remedy="Register the device at the platform, or correct report_as; it is tried again every hour.",
    ),
    Rule(
        "D6",
        "HOLD",
        (409,),
        ("device doesnt belong",),
        remedy="The device is another organisation's: correct report_as.",
    ),
    Rule("S2", "FIX", (409,), ("can not allow multiple reads",), remedy=FIX),
    Rule("H4", "MERGE", (409,), ("meter read value should be greater",), types=("History",)),
    Rule("S6", "MERGE", (409,), ("meter read value should be greater",)),
    Rule("Z1", "FIX", (400, 409), ("invalid time zone", "invalid timezone"), remedy=FIX),
    Rule("Z2", "FIX", (409,), ("invalid date sent",), remedy=FIX),
    Rule(
        "E1",
        "FIX",
        (409,),
        ("is less than or equal to device onboarding date",),
        remedy="The day ends before the device was registered; the platform may take it as History.",
    ),
    Rule(
        "E2",
        "QUAR",
        (409,),
        ("should be greater than to device commissioningdate date",),
        types=("Delta", "Aggregate"),
        remedy="Energy before commissioning is not eligible; check the commissioning date at the platform.",
    ),
    Rule("E3", "RETRY", (409,), ("is greater than current date",), remedy="Check the clocks, ours and the platform's."),
    Rule("E4", "FIX", (409,), ("invalid end date, valid format", "one ore more end date values"), remedy=FIX),
    Rule(
        "L1",
        "HOLD",
        (404,),
        ("in this device you can add read for",),
        remedy="Set read_type to the type the platform names, or register a new device.",
    ),
    Rule("L2", "DONE?", (409,), ("is less than last sent meter read date",), types=("Delta",)),
    Rule(
        "A1",
        "DONE?",
        (409,),
        ("is less than last sent mter read date/value", "is less than last sent meter read date/value"),
        types=("Aggregate",),
    ),
    Rule("A4", "DONE?", (409,), pattern=r"failed, maxenergy: 0(\.0+)?", types=("Aggregate",)),
    Rule("L3", "DONE?", (409,), pattern=r"failed, maxenergy: 0(\.0+)?"),
    Rule("A2", "MERGE", (409,), pattern=MAX_ENERGY, types=("Aggregate",), remedy=CEILING),
    Rule("L4", "MERGE", (409,), pattern=MAX_ENERGY, remedy=CEILING),
    Rule(
        "H1", "FIX", (409,), ("invalid start date and/or end date", "one ore more start date and end date"), remedy=FIX
    ),
    Rule("H2", "FIX", (409,), ("starttimestamp should be prior to endtimestamp",), remedy=FIX),
    Rule("H3", "FIX", (409,), ("for history reading start timestamp and end timestamp should be prior",), remedy=FIX),
    Rule(
        "H5",
        "QUAR",
        (409,),
        (
            "starttimestamp should be greater than to device commissioning",
            "endtimestamp should be greater than to device commissioning",
            "one or more measurements starttimestamp should be greater",
            "one or more measurements endtimestamp should be greater",
        ),
        types=("History",),
        remedy="Energy before commissioning is not eligible; check the commissioning date at the platform.",
    ),
    Rule("H6", "QUAR", (409,), ("should be within 3 year",), remedy="Too long before the device was registered."),
    Rule("H7", "DONE?", (409,), ("already one or more historical entries",)),
    Rule("H8", "MERGE", (409,), ("failed,read value is greater than from maxenergy",), remedy=CEILING),
    Rule("T11", "RETRY-RB", (500,), ("internal server error",), remedy=LOOK),
)

# Codes of the newest documents (§12), a hint where no text fitted: two of their pages give one code two meanings.
CODES: dict[str, Rule] = {
    rule.id: rule
    for rule in (
        *(Rule(f"E-{n}", "AUTH", remedy="Check the token, or user name and password.") for n in (1001, 1002)),
        *(Rule(f"E-{n}", "HOLD", account=True, remedy=ACCOUNT) for n in range(1003, 1007)),
        *(Rule(f"E-{n}", "FIX", remedy=FIX) for n in (5001, 5002, 5003, 5006, 5012, 5013, 5015)),
        Rule("E-5004", "DONE?"),
        *(Rule(f"E-{n}", "HOLD", remedy="Correct report_as or organization_id.") for n in (5005, 5016)),
        Rule("E-5007", "FIX", remedy="The day ends before the device was registered."),
        Rule("E-5008", "QUAR", remedy="Energy before commissioning is not eligible; check the date at the platform."),
        *(Rule(f"E-{n}", "RETRY", remedy="Check the clocks, ours and the platform's.") for n in (5009, 5011)),
        Rule("E-5010", "MERGE"),
        *(Rule(f"E-{n}", "RETRY-RB", remedy=LOOK) for n in range(5201, 5205)),
    )
}

# What is left once no text and no code fitted, by status (§13, steps 3 to 8).
REST: dict[int, Rule] = {
    403: replace(next(rule for rule in RULES if rule.id == "T6"), remedy=f"The account may not do this. {ACCOUNT}"),
    404: Rule("U404", "HOLD", account=True, remedy="Check base_url: it ends in /api. It is tried again every hour."),
    412: next(rule for rule in RULES if rule.id == "T7"),
    413: next(rule for rule in RULES if rule.id == "T2" and rule.action == "FIX"),
}
T3 = next(rule for rule in RULES if rule.id == "T3")
T8 = Rule("T8", "FIX", remedy=FIX)
T9 = Rule("T9", "FIX", remedy=FIX)
T10 = Rule("T10", "RETRY-RB", remedy=f"The platform's database is in trouble. {LOOK}")
UNKNOWN = Rule("U409", "THRICE", remedy="The platform refuses this for a reason we do not know; ask it with this text.")
FAULTY = Rule("U5xx", "RETRY-RB", remedy=LOOK)
SHAPE = Rule("shape", "RETRY-RB", remedy=LOOK)

MERGING = frozenset(rule.id for rule in (*RULES, *CODES.values()) if rule.action == "MERGE")

# Why a read that the platform says it has cannot be found there.
NOT_FOUND = {
    "L2": "a later read was accepted before this one, so it can no longer be sent",
    "A5": "the platform counts this value as sent, but holds no read of it; later reads do not include it either",
}


def classify(answer: Answer, read_type: str) -> Rule:
    """The rule of an answer that is not a success: by text, then by code, then by status and shape."""
    found = answer.json if isinstance(answer.json, dict) else {}
    message = _normal(found.get("message"))
    for rule in RULES:
        if (
            (not rule.status or answer.status in rule.status)
            and (not rule.types or read_type in rule.types)
            and (not rule.contains or any(text in message for text in rule.contains))
            and (not rule.pattern or re.fullmatch(rule.pattern, message))
            and (not rule.member or rule.member in found)
        ):
            return rule
    code = found.get("error")
    if isinstance(code, str) and re.fullmatch(r"E-\d{4}", code):
        return CODES.get(code, FAULTY if answer.status >= 500 else UNKNOWN)
    if answer.status in REST:
        return REST[answer.status]
    if answer.status == 400 and isinstance(found.get("message"), list):
        return T9
    if answer.status == 400 and "error" in found:
        return T8
    if found and set(found) <= {"statusCode", "message"}:
        return T10  # the database's own refusal, leaked with its own status
    if answer.status == 401:
        return T3
    if answer.status >= 500:
        return FAULTY
    return UNKNOWN if found else SHAPE


def _normal(message: object) -> str:
    """Lower case, collapsed blanks, no apostrophes: the texts drift between the generations of the server (§0.1)."""
    parts = message if isinstance(message, list) else [message]
    text = "; ".join(part for part in parts if isinstance(part, str))
    return " ".join(text.lower().replace("'", "").replace("’", "").split())


@dataclass(frozen=True, slots=True)
class Plant:
    """What the platform computes the energy ceiling of a device from (§7.1)."""

    capacity_kw: float
    yield_kwh: float = 2000.0
    """Per kW and year; the server's default."""
    commissioned: date | None = None


def ceiling_wh(plant: Plant, start: datetime, end: datetime, reserve: float = 0.02) -> float:
    """What a Delta over this time must stay below. The age counts to the server's now; the reserve covers that."""
    hours = (end - start) / timedelta(hours=1)
    age = 1.0 if plant.commissioned is None else (end.date() - plant.commissioned).days / 365.25
    aged = 0.995 ** ((age if age > 0 else 1.0) - 1)
    return float(plant.capacity_kw * 1000 * hours * plant.yield_kwh / 8760 * aged * 1.2 * (1 - reserve))


@dataclass(frozen=True, slots=True)
class Reads:
    """What the platform holds of one device, by end of the read; None where a figure is not in whole Wh."""

    at: Mapping[datetime, frozenset[int | None]]
    whole: bool
    """Whether every page was had, so that what is not there is missing."""


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
        plants: Mapping[str, Plant] = MappingProxyType({}),
        absent_after: timedelta = timedelta(minutes=5),
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`zero_wh` and `plants` by meter: the running total at which Aggregate starts, and what bounds its energy."""
        self.name = name
        self.requests = 0
        self.absent_after = absent_after
        self.tokens = tokens
        self._http = http
        self._type = read_type
        self._api = Authorized(http, tokens, now, refused=self._renewable, hasty=self._hasty, sleep=sleep)
        self._now, self._jitter = now, jitter
        self._organization = organization
        self._zero, self._plants = zero_wh, plants
        self._failing: dict[int, datetime] = {}

    # Packing

    def pack(self, rows: Sequence[DayRow]) -> Parcel | None:
        """The oldest day of the first device that has one to send, with the days that must travel with it.

        A read of 0 Wh is refused, and a day above the energy ceiling too; both ride along with the next day. They lose
        nothing: a Delta covers everything since the last read.
        """
        for _, device in groupby(rows, key=lambda row: row.meter):
            taken: list[DayRow] = []
            for row in device:
                taken.append(row)
                if self._ready(taken):
                    return self._parcel(taken)
        return None

    def _ready(self, rows: Sequence[DayRow]) -> bool:
        last = rows[-1]
        if last.period_wh <= 0 or self._value(rows) <= 0 or last.last_rule in MERGING:
            return False
        plant = self._plants.get(last.meter)
        if plant is None or _span(rows) > MERGE_DAYS:
            return True  # beyond that only the server's own word helps
        return sum(row.period_wh for row in rows) < ceiling_wh(plant, rows[0].start, last.end)

    def _value(self, rows: Sequence[DayRow]) -> int:
        if self._type == "Aggregate":
            return rows[-1].total_wh - self._zero.get(rows[-1].meter, 0)
        return sum(row.period_wh for row in rows)

    def _parcel(self, rows: Sequence[DayRow]) -> Parcel:
        read = {"endtimestamp": _text(_second(rows[-1].end)), "value": self._value(rows)}
        body: dict[str, Any] = {"type": self._type, "unit": "Wh", "reads": [read]}
        if self._organization is not None:
            body["organizationId"] = self._organization
        return Parcel(_path(rows[-1].remote_id), json.dumps(body, separators=(",", ":")).encode(), tuple(rows))

    # Sending

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        found = self._exchange("POST", parcel.path, body=parcel.body)
        if not isinstance(found, Answer):
            verdict = _transport(found)
        elif found.status < 400 or portal(found) is not None:
            verdict = self._taken(found)
        else:
            rule = classify(found, self._type)
            if rule.action == "DONE?":
                return self._done(rule, found, parcel.rows)
            verdict = self._refusal(rule, found, parcel.rows)
        if (verdict.rule, verdict.state) != ("T11", "unclear"):
            self._failing.pop(parcel.rows[-1].id, None)
        return {row.id: verdict for row in parcel.rows}

    def _taken(self, answer: Answer) -> Verdict:
        """A stored read is answered with 201 and nothing. An empty 200 may be anybody's, a page certainly is."""
        if (answer.status == 201 and answer.empty) or (answer.success and answer.complete and answer.json == {}):
            return Verdict("accepted", f"S{answer.status}")
        return portal(answer) or Verdict("unclear", "shape", answer.words(), LOOK)

    def _refusal(self, rule: Rule, answer: Answer, rows: Sequence[DayRow]) -> Verdict:
        words, now = answer.words(), self._now()

        def verdict(state: State, wait: timedelta | None = None, *, pause_all: bool = False, id: str = "") -> Verdict:
            return Verdict(state, id or rule.id, words, rule.remedy, wait, pause_all=pause_all)

        match rule.action:
            case "RETRY" if answer.status == 429:
                asked = answer.retry_after(now)
                wait = FLOOR if asked is None else asked + timedelta(seconds=1 + 9 * self._jitter())
                return verdict("due", wait, pause_all=True)
            case "RETRY":  # the server's clock is behind; a moment is never shifted to please it
                there = answer.date()
                behind = rows[-1].end - there if there is not None else timedelta(0)
                return verdict("due", behind + timedelta(seconds=5) if behind > timedelta(0) else timedelta(minutes=10))
            case "RETRY-RB" if rule.id == "T11" and now - self._since(rows[-1].id, now) >= A_DAY:
                return replace(
                    verdict("rejected"), remedy="The platform fails on this day since 24 h; ask it, then release."
                )
            case "RETRY-RB":
                return verdict("unclear", answer.retry_after(now))
            case "AUTH":  # it was renewed and repeated once already
                return verdict("due", LATER if rule.id == "T4" else timedelta(minutes=5), pause_all=True)
            case "MERGE" if _span(rows) > MERGE_DAYS:
                return replace(verdict("held"), remedy=rule.remedy or CEILING)
            case "MERGE":
                return replace(verdict("due"), remedy=f"Sent together with the next day. {rule.remedy}".strip())
            case "HOLD" if rule.account:
                return verdict("due", LATER, pause_all=True)
            case "HOLD" if rule.id == "D5":
                return verdict("due", LATER)
            case "HOLD":
                return verdict("held")
            case "THRICE":
                before = re.fullmatch(r"U409/(\d)", rows[-1].last_rule)
                count = int(before[1]) + 1 if before else 1
                return verdict("rejected") if count >= 3 else verdict("due", A_DAY / 3, id=f"U409/{count}")
            case _:  # FIX: the body is made once and checked, a repeat would be the same; QUAR
                return verdict("rejected")

    def _since(self, row: int, now: datetime) -> datetime:
        while len(self._failing) > 1000:
            del self._failing[next(iter(self._failing))]
        return self._failing.setdefault(row, now)

    def _done(self, rule: Rule, answer: Answer, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """The platform says that it has a read there already: ours, or another one? It is looked up at once."""
        reads = self._reads(rows[-1], rows[-1])
        words = answer.words()
        if isinstance(reads, Verdict):
            text = f"{words}; looking it up failed: {reads.text}"
            verdict = Verdict("unclear", rule.id, text, LOOK, reads.wait, pause_all=reads.pause_all)
            return {row.id: verdict for row in rows}
        told = self._told(rows, reads)
        if all(isinstance(entry, Missing) for entry in told.values()):
            verdict = self._vanished(rule, words, rows)
        elif all(_same(row, told[row.id]) for row in rows):
            verdict = Verdict("confirmed", rule.id, f"{words}; it is ours")
        elif not reads.whole:
            verdict = Verdict("unclear", rule.id, words, LOOK)
        else:
            theirs = ", ".join(str(wh) for wh in sorted(wh or 0 for wh in reads.at.get(_second(rows[-1].end), ())))
            text = f"{words}; the platform holds {theirs} Wh up to {_text(rows[-1].end)}, {self._value(rows)} Wh here"
            verdict = Verdict("rejected", rule.id, text, "A stored read is never overwritten; ask the platform.")
        return {row.id: verdict for row in rows}

    @staticmethod
    def _vanished(rule: Rule, words: str, rows: Sequence[DayRow]) -> Verdict:
        remedy = "Compare with the platform's list of reads, then release the day or leave it."
        if rule.id == "A1" and not rows[-1].last_rule:
            remedy = "A replaced or reset counter needs a new base: register a new device, or set read_type to Delta."
            return Verdict("held", "A1", words, remedy)
        id = "A5" if rule.id == "A1" else rule.id
        text = NOT_FOUND.get(id, "the platform says it has this read, but does not show it")
        return Verdict("rejected", id, f"{words}; {text}", remedy)

    # Following up and reading back

    def follow(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """There are no processes here; days are confirmed by reading them back."""
        del rows
        return {}

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        """Reads are found by their end, which is the end of the last day of the request they came with.

        Days that travelled together are one read: where its value is the sum of them all, each is held as merged, with
        its own period. Requests beyond the first sixty are left out; they are asked about next time.
        """
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
                found |= {row.id: Unknown(replace(reads, state=_still(row))) for row in group}
            else:
                found |= self._told(group, reads)
        return found

    def _reads(self, first: DayRow, last: DayRow) -> Reads | Verdict:
        """Everything held between these two ends, both included, or why that is not known."""
        start, end = _second(first.end), _second(last.end) + timedelta(milliseconds=1)
        query = {"readType": "meterReads", "start": _text(start), "end": _text(end)}
        if self._organization is not None:
            query["organizationId"] = str(self._organization)
        at: dict[datetime, frozenset[int | None]] = {}
        before: object = None
        for page in range(1, PAGES + 1):
            answer = self._exchange("GET", _path(last.remote_id), query={**query, "pagenumber": str(page)})
            if not isinstance(answer, Answer):
                return _transport(answer)
            if _none_yet(answer):
                return Reads(at, whole=True)
            found = answer.json if answer.status == 200 and isinstance(answer.json, dict) else {}
            ongoing, history = found.get("ongoing"), found.get("historyread")
            if not isinstance(ongoing, list) or not isinstance(history, list):
                return self._no_reads(answer)
            if ongoing == before:
                return Reads(at, whole=True)
            before = ongoing
            for entry in ongoing:
                at_end = _moment(entry.get("enddate")) if isinstance(entry, dict) else None
                if at_end is None:
                    return Verdict("unclear", "shape", "a read without a readable enddate", LOOK)
                at[at_end] = at.get(at_end, frozenset()) | {figures.whole(entry.get("value"))}
            pages = found.get("numberOfPages")
            if not (ongoing or history) or (isinstance(pages, int) and page >= pages):
                return Reads(at, whole=True)
        return Reads(at, whole=False)

    def _no_reads(self, answer: Answer) -> Verdict:
        if (verdict := portal(answer)) is not None:
            return verdict
        if answer.success:
            return Verdict("unclear", "shape", answer.words(), LOOK)
        rule = classify(answer, self._type)
        pause = rule.account or rule.action == "AUTH" or answer.status == 429
        wait = answer.retry_after(self._now()) or (LATER if rule.account else FLOOR)
        return Verdict("unclear", rule.id, answer.words(), rule.remedy, wait, pause_all=pause)

    def _told(self, rows: Sequence[DayRow], reads: Reads) -> dict[int, ReadBack]:
        """What the read at the end of these days, which travelled together, says about each of them."""
        last, period = rows[-1], sum(row.period_wh for row in rows)
        values = reads.at.get(_second(last.end))
        if values is None:
            verdict = Verdict("unclear", "shape", "not all pages of reads could be had", LOOK)
            return {row.id: Missing() if reads.whole else Unknown(replace(verdict, state=_still(row))) for row in rows}
        if len(values) == 1:
            (theirs,) = values
            # Which of the two the platform shows for an Aggregate is not documented, so both are taken.
            if self._type == "Aggregate" and theirs == self._value(rows):
                return {row.id: Stored(None, row.total_wh) for row in rows}
            if theirs == period:
                return {row.id: Stored(row.period_wh, None) for row in rows}
            if theirs is not None and len(rows) == 1 and self._type == "Delta":
                return {last.id: Stored(theirs, None)}
        shown = ", ".join("no whole number" if wh is None else str(wh) for wh in values)
        text = (
            f"the platform holds {shown} Wh up to {_text(last.end)}, {self._value(rows)} Wh here for {len(rows)} days"
        )
        remedy = "A stored read is never overwritten; compare, and ask the platform to correct it."
        return {row.id: Unknown(Verdict("held", "differs", text, remedy)) for row in rows}

    def _exchange(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Exchange:
        try:
            return self._api.exchange(method, path, query=query, body=body)
        finally:
            self.requests = self._http.requests

    def _renewable(self, answer: Answer) -> bool:
        """A 401 that a new login may help, an unknown one included: it costs one request."""
        if answer.success:
            return False
        rule = classify(answer, self._type)
        return rule.action == "AUTH" or (answer.status == 401 and rule.action != "HOLD")

    def _hasty(self, answer: Answer) -> bool:
        return answer.status == 401 and classify(answer, self._type).id == "T4"

    def date(self) -> datetime | None:
        found = self._http.date()
        self.requests = self._http.requests
        return found

    def token_until(self) -> datetime | None:
        return self.tokens.expiry() if self.tokens.by_hand else None

    def close(self) -> None:
        self._http.close()


def _path(remote_id: str) -> str:
    return f"/meter-reads/new/{quote(remote_id, safe='')}"


def _second(moment: datetime) -> datetime:
    """Whole seconds: certificates begin one second after the read before (§7.5)."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _text(moment: datetime) -> str:
    """The only form of a time that no server setting can misread (§5.1)."""
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S") + (f".{utc.microsecond // 1000:03d}Z" if utc.microsecond >= 1000 else "Z")


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return _second(found) if found is not None and found.tzinfo is not None else None


def _span(rows: Sequence[DayRow]) -> int:
    return (rows[-1].day - rows[0].day).days + 1


def _transport(found: Exchange) -> Verdict:
    assert not isinstance(found, Answer)
    verdict = fault(found)
    if isinstance(found, NotSent) and found.rule != "connect":
        return verdict  # the token or the configuration, not the line
    return replace(verdict, rule="T1")


def _none_yet(answer: Answer) -> bool:
    """The platform's own form of saying that there are no reads (§9, E-5014)."""
    found = answer.json if isinstance(answer.json, dict) else {}
    message = _normal(found.get("message"))
    said = message in ("read not found", "no reads found") or found.get("error") == "E-5014"
    return said and answer.status in (400, 404, 409)


def _still(row: DayRow) -> State:
    """The state of a row about which nothing more could be learnt."""
    return "accepted" if row.state == "accepted" else "unclear"


def _same(row: DayRow, found: ReadBack) -> bool:
    if not isinstance(found, Stored):
        return False
    told = [(row.period_wh, found.period_wh), (row.total_wh, found.total_wh)]
    return all(theirs in (None, ours) for ours, theirs in told) and any(theirs is not None for _, theirs in told)

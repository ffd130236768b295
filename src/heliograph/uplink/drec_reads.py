"""What D-REC holds of a device, read back (the sheet's section 9), and what that says about days that were sent.

Reads are found by their end. Days that travelled together are one read: where its value is the sum of them all, each is
held as merged, with its own period.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from heliograph.core import figures
from heliograph.core.delivery import FLOOR, DayRow, Missing, ReadBack, State, Stored, Unknown, Verdict, as_history
from heliograph.uplink.drec_packing import LATER, SECOND, path, second, text
from heliograph.uplink.drec_rules import LOOK, classify, normal, transport
from heliograph.uplink.http import Answer, Exchange, portal

# A page holds 5 or 15 reads.
PAGES = 30

# Asked about a device, the platform says that it knows none, or another one's. Its days may be there all the same, and
# under a name that is not known any more: only a person can move them, and to try one again reads it back first.
UNKNOWN_DEVICE = frozenset({"D5", "D6", "E-5005", "E-5016"})
REGISTER = (
    "Register the device at the platform under this name, or have it put right there (organization_id); a corrected"
    " report_as counts for later days only. The day is read back before it is sent again."
)

Held = Mapping[datetime, frozenset[int | None]]


@dataclass(frozen=True, slots=True)
class Reads:
    """What the platform holds of one device, by end of the read; None where a figure is not in whole Wh."""

    ongoing: Held = field(default_factory=dict)
    history: Held = field(default_factory=dict)
    whole: bool = True
    """Whether every page was had, so that what is not there is missing."""

    def at(self, row: DayRow) -> frozenset[int | None] | None:
        """The reads that end with this day. History may have ended a second earlier, when that was the onboarding."""
        end = second(row.end)
        if not as_history(row):
            return self.ongoing.get(end)
        return self.history.get(end) or self.history.get(end - SECOND)


def fetch(
    exchange: Callable[..., Exchange],
    first: DayRow,
    last: DayRow,
    organization: int | None,
    refused: Callable[[Answer], Verdict],
) -> Reads | Verdict:
    """Everything held between the ends of these two days, both included, or why that is not known."""
    start = second(first.end) - (SECOND if as_history(first) else timedelta(0))
    end = second(last.end) + timedelta(milliseconds=1)  # start and end may not be equal
    query = {"readType": "meterReads", "start": text(start), "end": text(end)}
    if organization is not None:
        query["organizationId"] = str(organization)
    ongoing: dict[datetime, frozenset[int | None]] = {}
    history: dict[datetime, frozenset[int | None]] = {}
    before: object = None
    for page in range(1, PAGES + 1):
        answer = exchange("GET", path(last.remote_id), query={**query, "pagenumber": str(page)})
        if not isinstance(answer, Answer):
            return transport(answer)
        if _none_yet(answer):
            return Reads(ongoing, history)
        found = answer.json if answer.status == 200 and isinstance(answer.json, dict) else {}
        lists = found.get("ongoing"), found.get("historyread")
        if not all(isinstance(entries, list) for entries in lists):
            return refused(answer)
        if lists == before:
            return Reads(ongoing, history)
        before = lists
        for entries, held in zip(lists, (ongoing, history), strict=True):
            for entry in entries or ():
                at = _moment(entry.get("enddate")) if isinstance(entry, dict) else None
                if at is None:
                    return Verdict("unclear", "shape", "a read without a readable enddate", LOOK)
                held[at] = held.get(at, frozenset()) | {figures.whole(entry.get("value"))}
        pages = found.get("numberOfPages")
        if not any(lists) or (isinstance(pages, int) and page >= pages):
            return Reads(ongoing, history)
    return Reads(ongoing, history, whole=False)


def refusal(answer: Answer, read_type: str, now: datetime) -> Verdict:
    """Why a question was not answered."""
    if (verdict := portal(answer)) is not None:
        return verdict
    if answer.success:
        return Verdict("unclear", "shape", answer.words(), LOOK)
    rule = classify(answer, read_type)
    if rule.id in UNKNOWN_DEVICE:
        # Not the rule of the refusal itself: that one says of a day that was sent that it is not there.
        return Verdict("held", f"B-{rule.id}", answer.words(), REGISTER)
    pause = rule.account or rule.action == "AUTH" or answer.status == 429
    wait = answer.retry_after(now) or (LATER if rule.account else FLOOR)
    told = Verdict("unclear", rule.id, answer.words(), rule.remedy, wait, pause_all=pause, busy=answer.status == 429)
    return replace(told, token=rule.action == "AUTH")


def only_a_baseline(exchange: Callable[..., Exchange], name: str) -> bool:
    """Whether the device has a read type and no read: its first Aggregate was taken as the point to count from (7.3).

    Two answers differ by one letter: `Read Not found` says that, `Read not found` that there is nothing at all.
    """
    answer = exchange("GET", f"/meter-reads/latestread/{quote(name, safe='')}")
    found = answer.json if isinstance(answer, Answer) and answer.status == 400 else None
    return isinstance(found, dict) and found.get("message") == "Read Not found"


def told(rows: Sequence[DayRow], reads: Reads, read_type: str, value_wh: int) -> dict[int, ReadBack]:
    """What the read at the end of these days, which travelled together with this value, says about each of them."""
    last, period, values = rows[-1], sum(row.period_wh for row in rows), reads.at(rows[-1])
    if values is None:
        verdict = Verdict("unclear", "shape", "not all pages of reads could be had", LOOK)
        return {row.id: Missing() if reads.whole else Unknown(replace(verdict, state=still(row))) for row in rows}
    if len(values) == 1:
        (theirs,) = values
        # Which of the two the platform shows for an Aggregate is not documented, so both are taken.
        if read_type == "Aggregate" and theirs == value_wh:
            return {row.id: Stored(None, row.total_wh) for row in rows}
        if theirs == period:
            return {row.id: Stored(row.period_wh, None) for row in rows}
        if theirs is not None and len(rows) == 1 and read_type != "Aggregate":
            return {last.id: Stored(theirs, None)}
    words = f"the platform holds {shown(values)} Wh up to {text(last.end)}, {value_wh} Wh here for {len(rows)} days"
    remedy = "A stored read is never overwritten; compare, and ask the platform to correct it."
    return {row.id: Unknown(Verdict("held", "differs", words, remedy)) for row in rows}


def shown(values: frozenset[int | None]) -> str:
    return ", ".join(sorted("no whole number" if wh is None else str(wh) for wh in values))


def still(row: DayRow) -> State:
    """The state of a row about which nothing more could be learnt."""
    return "accepted" if row.state == "accepted" else "unclear"


def same(row: DayRow, found: ReadBack) -> bool:
    if not isinstance(found, Stored):
        return False
    both = [(row.period_wh, found.period_wh), (row.total_wh, found.total_wh)]
    return all(theirs in (None, ours) for ours, theirs in both) and any(theirs is not None for _, theirs in both)


def _moment(written: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(written) if isinstance(written, str) else None
    except ValueError:
        return None
    return second(found) if found is not None and found.tzinfo is not None else None


def _none_yet(answer: Answer) -> bool:
    """The platform's own form of saying that there are no reads (section 9, E-5014)."""
    found = answer.json if isinstance(answer.json, dict) else {}
    message = normal(found.get("message"))
    said = message in ("read not found", "no reads found") or found.get("error") == "E-5014"
    return said and answer.status in (400, 404, 409)

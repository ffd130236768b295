"""What the text and the page of `explain` say in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from heliograph.core.figures import kwh


def utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def serial(found: Mapping[str, Any]) -> str:
    start, end = found["serial_at_start"], found["serial"]
    if start == end:
        return str(end or "not known")
    return f"{start or 'not known'}, and {end} at the end of the day"


READ = (
    ("last read before it", "read_before"),
    ("first read on it", "first_within"),
    ("last read on it", "last_within"),
    ("first read after it", "read_after"),
)
"""Of a day without a figure: which readings are shown."""


def bounds(found: Mapping[str, Any]) -> str:
    """What a day without a figure may have been."""
    least, most = found["bounds"]["at_least_wh"], found["bounds"]["at_most_wh"]
    if most is None:
        return f"so far {kwh(least)} kWh were counted between readings of this day"
    return f"by these readings the day was at least {kwh(least)} kWh and at most {kwh(most)} kWh"


def coverage(told: Mapping[str, Any] | None) -> Iterator[str]:
    """How well the meter was read on the day."""
    if told is None:
        yield "polls were not counted on this day"
        return
    bad = "".join(f", {number} {name}" for name, number in told["bad"].items())
    away = f", {told['not_asked']} not asked" if told["not_asked"] else ""
    lost = f", {told['unstored']} not stored" if told["unstored"] else ""
    yield f"polls: {told['expected']} expected, {told['good']} good{bad}{away}{lost}"
    for gap in told["gaps"]:
        yield f"nothing from {gap['from']:%H:%M:%S} to {gap['to']:%H:%M:%S} UTC: {gap['why']}"


def proof(told: Mapping[str, Any] | None) -> str:
    """Where the day stands in the hash chain."""
    if told is None:
        return "This day has no entry in the hash chain."
    entry = f"Entry {told['entry']} of the hash chain, {told['hash']}"
    if told["carried"]:
        entry += ", made later for what an older version had closed"
    if told["signed_at"] is None:
        return f"{entry}; not signed yet."
    return f"{entry}; signed with entry {told['checkpoint']} at {utc(told['signed_at'])} by {told['fingerprint']}."


@dataclass(frozen=True, slots=True)
class Run:
    """Samples in a row that were doubted for the same reason."""

    when: str
    counter: str
    words: str
    why: str
    settled_by: str

    @property
    def word(self) -> str:
        return "settled" if self.settled_by else "excluded"


def runs(excluded: Sequence[Mapping[str, Any]]) -> Iterator[Run]:
    """A doubt that lasts is told once, with its first and last reading."""
    for (why, settled_by), group in groupby(excluded, key=lambda one: (one["why"], one["settled_by"])):
        first, *rest = list(group)
        ends = [first, *rest[-1:]]
        counters = ["-" if one["index_wh"] is None else kwh(one["index_wh"]) for one in ends]
        when = " to ".join(f"{one['at']:%H:%M:%S}" for one in ends)
        times = f" ({len(rest) + 1} readings)" if rest else ""
        words = " to ".join(" ".join(one["words"]) or "none" for one in ends)
        yield Run(when + times, " to ".join(counters), words, why, settled_by)


def answer(one: Mapping[str, Any]) -> str:
    """What the platform said and what that means, in one line."""
    process = f"process {one['process_id']}" if one["process_id"] else ""
    rule = f"{one['rule']}: {one['answer']}" if one["answer"] else one["rule"]
    return "; ".join(part for part in (rule, process, STATES[one["state"]]) if part)


def tried(one: Mapping[str, Any]) -> str:
    """One record of what was tried, in one line."""
    when = utc(one["at"]) + (f" to {utc(one['last'])}, {one['times']} times" if one["times"] > 1 else "")
    request = f" (request {one['claim']})" if one["claim"] is not None and one["asked"] != "person" else ""
    words = f": {one['answer']}" if one["answer"] else ""
    return f"{when}: {ASKED[one['asked']]}{request}, {one['rule'] or 'no rule'}{words}; {one['state']} from there on"


ASKED = {
    "send": "sent",
    "follow": "asked what became of it",
    "read-back": "read back",
    "device": "looked at what the platform knows of the device",
    "person": "a person decided",
}
STATES = {
    "due": "it waits for its turn",
    "unclear": "it may or may not have arrived, and is asked about before anything is sent again",
    "accepted": "the platform took it, and has not shown it yet",
    "confirmed": "confirmed, for it was read back the same or its process ended well",
    "rejected": "the platform refused it in words that no repetition cures",
    "held": "the platform holds another value, or the account needs a person",
}

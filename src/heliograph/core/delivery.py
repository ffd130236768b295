"""What may happen to a closed day on its way to a platform: states, verdicts, waits. Data and arithmetic only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Literal

State = Literal["due", "unclear", "accepted", "confirmed", "rejected", "held"]
By = Literal["claim", "platform", "person"]
"""Who moves a row: the claim before a request, what a platform answered, or somebody who decided."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One way from a state to the next, and why it is taken."""

    by: tuple[By, ...]
    why: str


# What may follow what; the store moves no row in any other way, and the diagram in src/heliograph/README.md is made
# from this. A claim makes a row unclear before the first byte leaves, so that a power cut looks like a time-out; only
# evidence moves it on. No wish of a person moves what may have arrived.
FOLLOWS: dict[State, frozenset[State]] = {
    "due": frozenset({"unclear", "held", "rejected"}),
    "unclear": frozenset({"due", "accepted", "confirmed", "rejected", "held"}),
    "accepted": frozenset({"confirmed", "unclear", "due", "rejected", "held"}),
    "rejected": frozenset({"due", "unclear"}),
    "held": frozenset({"due", "unclear", "rejected"}),
    "confirmed": frozenset(),
}
WHY: dict[tuple[State, State], Edge] = {
    ("due", "unclear"): Edge(("claim",), "claimed, so it may have left"),
    ("due", "held"): Edge(("platform",), "somebody has to act first, by what is known of the device"),
    ("due", "rejected"): Edge(("platform", "person"), "set aside by what is known of the device, or by a person"),
    ("unclear", "accepted"): Edge(("platform",), "the platform said yes"),
    ("unclear", "confirmed"): Edge(("platform",), "read back the same"),
    ("unclear", "due"): Edge(("platform",), "not there, or refused for now"),
    ("unclear", "rejected"): Edge(("platform",), "refused in words no retry cures"),
    ("unclear", "held"): Edge(("platform",), "another value is there, or somebody has to act first"),
    ("accepted", "confirmed"): Edge(("platform",), "read back the same, or its process ended well"),
    ("accepted", "unclear"): Edge(("platform",), "its process failed, or did not end in 24 h"),
    ("accepted", "due"): Edge(("platform",), "read back, and not there"),
    ("accepted", "rejected"): Edge(("platform",), "refused after all, in words no retry cures"),
    ("accepted", "held"): Edge(("platform",), "another value is there"),
    ("rejected", "due"): Edge(("person",), "retry of what is known not to be there"),
    ("rejected", "unclear"): Edge(("person",), "retry, read back first"),
    ("held", "due"): Edge(("person",), "retry of what is known not to be there"),
    ("held", "unclear"): Edge(("person",), "retry, read back first"),
    ("held", "rejected"): Edge(("person",), "set aside"),
}
# How a row begins.
BEGINS: dict[State, str] = {
    "due": "the day is closed",
    "unclear": "closed again after the store was lost, so it may have been sent",
}
MEANS: dict[State, str] = {
    "due": "closed, waits for its turn",
    "unclear": "it may or may not have arrived; read back, never sent again blindly",
    "accepted": "the platform said yes, and has not shown it yet",
    "confirmed": "read back the same, or its process ended well",
    "rejected": "refused in words no retry cures, or set aside (rule `aside/...`): then it stops no later day",
    "held": "the platform holds another value, or somebody has to act first",
}


def follows(state: State, to: State, by: By) -> bool:
    return to in FOLLOWS[state] and by in WHY[state, to].by


def is_aside(state: State, rule: str) -> bool:
    return state == "rejected" and rule.startswith(ASIDE)


def diagram() -> str:
    """The table above as a Mermaid state diagram, which is readable as it stands."""
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {state}: {why}" for state, why in BEGINS.items()]
    for state in FOLLOWS:
        for to in (to for to in FOLLOWS if to in FOLLOWS[state]):
            who = " (a person)" if WHY[state, to].by == ("person",) else ""
            lines.append(f"    {state} --> {to}: {WHY[state, to].why}{who}")
    lines += [f"    {state} --> [*]" for state, after in FOLLOWS.items() if not after]
    return "\n".join(lines) + "\n"


FLOOR = timedelta(seconds=60)
CAP = timedelta(minutes=15)

# Seconds a platform is left alone, least and most, after its first, second, ... failure in a row; the last row goes on.
# It was not reached: full jitter above the floor, doubling. A draw up to the cap spreads a fleet over it for good; from
# then on a nearly constant distance keeps it spread, and costs half the requests of drawing between floor and cap.
AWAY = ((60, 120), (60, 240), (60, 480), (60, 900), (810, 900))
# It is there, and asked too often. How long a queue lasts that nobody sees? A quarter of the cap for as long as it may
# be over any moment, for whoever is refused early would otherwise come back after everybody else is through; then the
# cap. tests/work/test_herd.py has the figures.
BUSY = ((60, 120), (60, 240), *((210, 300),) * 6, (450, 540), (810, 900))
# Where many others wait, after an outage or a power cut, the steps that are good for one gateway are left out.
CROWDED = 2
# A gateway begins to send within this after its start, for power comes back to a whole region in one second.
BEGIN_WITHIN = timedelta(minutes=14)

# Seconds after its end in which a request counts: the platform's minute (redex.md section 8), and two more for a clock
# that runs faster than theirs, by 3 % at most; crystals are a hundred times better.
MINUTE = 62.0
# What got no answer may still be carried to the platform, when we have long given up on it.
ASTRAY = MINUTE + 60.0


@dataclass(frozen=True, slots=True)
class DayRow:
    """One closed day of one meter as an uplink sees it. Energies in Wh; `start` and `end` are UTC."""

    id: int
    meter: str
    remote_id: str
    day: date
    start: datetime
    end: datetime
    period_wh: int
    total_wh: int
    state: State = "due"
    attempt: int = 0
    last_rule: str = ""
    """Rule of the latest verdict, such as L4, by which a platform told us how to send it next time."""
    process_id: str | None = None
    claimed_at: datetime | None = None
    claim: int | None = None
    """The request it went with last; rows of one claim shared one request."""

    @property
    def doubted(self) -> bool:
        """It came out of a restored copy: it may have been sent by a request that this store never knew."""
        return self.state == "unclear" and self.claim is None


@dataclass(frozen=True, slots=True)
class Parcel:
    """One request with the rows it carries. It is on disk before it is sent and never changes afterwards."""

    path: str
    body: bytes
    rows: tuple[DayRow, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means for a row. `wait` is a least delay before anything is tried again."""

    state: State
    rule: str
    text: str = ""
    """The platform's words, shortened and without secrets."""
    remedy: str = ""
    wait: timedelta | None = None
    process_id: str | None = None
    pause_all: bool = False
    """True: nothing more may be sent to this platform before `wait` has passed (rate limit, token, captive portal)."""
    busy: bool = False
    """The platform itself said that it is asked too often, perhaps by many others."""
    at_once: bool = False
    """Due, and nothing is to be waited for: the next request is another one."""
    token: bool = False
    """A pause for want of a good token: it ends as soon as somebody has put another one in its place."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a person should know about a platform or a device there, in words; `alarm`: something is to be done."""

    text: str
    alarm: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """What a platform says of one device when it is only asked. None: it does not tell."""

    remote_id: str
    known: bool | None = None
    capacity_kw: float | None = None
    text: str = ""
    """What else a person should know about it there; with what to do, where it is unknown or barred."""
    barred: bool = False
    """It is known, and nothing is taken for it."""


@dataclass(frozen=True, slots=True)
class Roll:
    """The devices of a platform that were asked about, or why it could not be asked."""

    devices: tuple[Registered, ...] = ()
    trouble: Verdict | None = None


# Rules that a person or this gateway gave a row, rather than a platform. A row that is set aside is rejected and stops
# nobody.
HISTORY = "history"
ASIDE = "aside/"
BY_PERSON = "aside/person"
# Set aside, and nothing is left to be done: somebody decided, or there is no energy in it (drec.md section 6.8, H4).
SETTLED = (BY_PERSON, "aside/H4")
RETRY = "retry"
# Remedy of a refusal that the next day cures: such a day waits for it, and nobody has to do anything.
WITH_NEXT = "Sent together with the next day."


def as_history(row: DayRow) -> bool:
    """A person asked that this day goes to the platform as one before the device was registered there."""
    return row.last_rule.partition("/")[0] == HISTORY


def bare_rule(rule: str) -> str:
    """The platform's rule without the mark that a row carries."""
    return rule.removeprefix(HISTORY).removeprefix("/")


def marked(row: DayRow, verdict: Verdict) -> Verdict:
    """The mark that History was asked for stays for as long as the row is on its way. Refused, it stops nobody:
    such days are no part of the order in which the others go."""
    if not as_history(row) or verdict.rule.startswith((ASIDE, HISTORY)):
        return verdict
    if verdict.state == "rejected":
        return replace(verdict, rule=ASIDE + verdict.rule)
    return replace(verdict, rule=f"{HISTORY}/{verdict.rule}")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a platform says it holds for one day; None where it does not tell that figure."""

    period_wh: int | None
    total_wh: int | None


@dataclass(frozen=True, slots=True)
class Missing:
    """The platform answered, in its own form, that it holds nothing for the day."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No trustworthy answer was had; nothing may be concluded. `verdict` tells why."""

    verdict: Verdict


ReadBack = Stored | Missing | Unknown


def leave_alone(away: int, busy: int, wait: timedelta | None, jitter: float, *, crowded: bool) -> timedelta:
    """How long a platform gets no request after so many failures in a row; `busy`: how many of them said so.

    Its own `wait` is respected. Where that is the longer one, many may have been told the same moment, so chance comes
    on top of it.
    """
    steps, step = (BUSY, busy + CROWDED * crowded) if busy else (AWAY, away)
    least, most = steps[min(step, len(steps)) - 1]
    if wait is None or wait.total_seconds() <= least:
        return timedelta(seconds=least + (most - least) * jitter)
    return wait + (CAP if busy and crowded else FLOOR) * jitter


def next_try(attempt: int, now: datetime, wait: timedelta | None, jitter: float) -> datetime:
    """Back-off with full jitter above the floor: 60 s at least, 15 min at most, never before `wait`.

    `jitter` is a random number from 0 to 1; `attempt` counts from 1.
    """
    ceiling = min(CAP, FLOOR * 2.0 ** min(attempt, 10))
    delay = FLOOR + (ceiling - FLOOR) * jitter
    return now + max(delay, wait or timedelta(0))


def room(counted_until: Sequence[float], now: float, per_minute: int) -> int:
    """Requests that may leave now so that no 60 s hold more than `per_minute`, wherever a platform's windows begin.

    A platform counts a request at some moment between its leaving and the end of its exchange, so a new one can share
    a window with it until a minute after that end: `counted_until`, infinite while it is under way. All in seconds of
    a clock that is never set.
    """
    return max(0, per_minute - sum(until > now for until in counted_until))


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a row by the wish of a person."""

    state: State
    rule: str
    how: str
    """In words, for whoever is asked whether that is meant."""
    remote_id: str = ""
    """The name it goes under from here on; '' where that stays."""


# Refusals of a platform that come before anything is stored (D-REC sheet §6.5, §6.8): the day cannot be there.
NEVER_STORED = frozenset({"E1", "E2", "H3", "H5", "H6", "E-5007", "E-5008"})
# A platform that has no read-back was asked (REDEX): only a person can look a day up.
NO_READ_BACK = frozenset({"B404", "B405"})
# Refusals of the name itself: nothing was stored under it, so the day may go under another one.
NAME_REFUSED = frozenset({"D5", "D6", "E-5005", "E-5016", "R422"})


@dataclass(frozen=True, slots=True)
class Standing:
    """What has to be known about a row before a person may move it."""

    elsewhere: bool
    """It may have been sent by a store that was lost."""
    overtaken: date | None
    """A later day that was sent, where order is the rule."""
    refused: str
    """The rule of the platform's newest answer."""
    history: bool
    """It went as History when it went last."""
    name: str = ""
    """What the configuration calls the device there now; '' where that is not known."""
    sent: str = ""
    """The rule of the answer to the request it went with last. A question that is refused proves nothing."""


def retried(row: DayRow, standing: Standing, *, history: bool, not_there: bool) -> Decision | str:
    """What a wish to try a day again does to its row, or why it does nothing.

    `history`: as a read of the time before the device was registered. `not_there`: a person looked it up.
    """
    renamed = standing.name not in ("", row.remote_id)
    match row.state:
        case "unclear" | "accepted":
            return f"it is {row.state}: it may be there, so it is read back by itself and never sent again on a wish"
        case "confirmed":
            return "the platform has confirmed it"
        case "due" if not history and not renamed:
            return f"it waits for its turn already, as {row.remote_id}"
    as_it_was = standing.history and not history
    if standing.overtaken is not None and not history and not as_it_was:
        return f"{standing.overtaken} was sent after it, and this platform takes no day behind a later one"
    known = row.state == "due" or (row.claim is None and not standing.elsewhere)
    rule = HISTORY if history or as_it_was else RETRY
    if not_there:
        if standing.refused not in NO_READ_BACK:
            return "the platform can be asked whether it has it, so it is asked; leave --not-there out"
        how = "sent again without reading it back, for you say that it is not there"
        return _named(Decision("due", rule, how), row, standing)
    if renamed and not ((known and row.claim is None) or _not_there(row, standing)):
        return (
            f"it was sent as {row.remote_id}, and it is not proven that nothing of it is there, so it does not go as "
            f"{standing.name}; with report_as = {row.remote_id} and a restart a retry reads it back"
        )
    never_stored = bare_rule(standing.refused.removeprefix(ASIDE)) in NEVER_STORED
    if history and never_stored and standing.elsewhere and not known:
        # What was lost may have held a wish for History. The platform takes the day in no other way.
        how = "looked for among the History reads first, and sent as one only if the platform holds nothing"
        return Decision("unclear", HISTORY, how)
    if history and (known or never_stored):
        how = "sent as a History read, of the time before the device was registered"
        return _named(Decision("due", rule, how), row, standing)
    if history and not standing.history:
        # As History it would be looked for among the History reads only, and it may be among the others.
        return "it may be there already; first retry it without --as-history, so that it is read back"
    if renamed or known:
        never = "; it was never sent before" if row.claim is None else ""
        return _named(Decision("due", rule, f"sent with the next round{never}"), row, standing)
    return Decision("unclear", rule, "read back first, and sent again only if the platform holds nothing")


def _not_there(row: DayRow, standing: Standing) -> bool:
    """Whether what was sent under the old name is known not to be there: refused for the name, or before anything is
    stored. Only evidence makes a row due again; a refusal nobody knows (U409) is none."""
    refused = bare_rule(standing.refused.removeprefix(ASIDE))
    if row.state == "due":
        return not refused.startswith("U409")
    sent = bare_rule(standing.sent.removeprefix(ASIDE))
    return row.claim is not None and refused != "differs" and sent in NEVER_STORED | NAME_REFUSED


def _named(decision: Decision, row: DayRow, standing: Standing) -> Decision:
    if standing.name in ("", row.remote_id):
        return decision
    how = f"{decision.how}; it goes as {standing.name}, no longer as {row.remote_id}"
    return replace(decision, how=how, remote_id=standing.name)


def set_aside(row: DayRow, *, ordered: bool) -> Decision | str:
    """What a wish to let a day go does to its row, or why it does nothing."""
    match row.state:
        case "unclear" | "accepted":
            return f"it is {row.state}: it may be there, so it is read back first"
        case "confirmed":
            return "the platform has confirmed it"
        case "rejected" if row.last_rule == BY_PERSON:
            return "it is set aside already"
    how = "not delivered, and it stops no later day"
    if ordered:
        how += "; its energy is part of no later Delta either (with Aggregate the running total goes on over it)"
    return Decision("rejected", BY_PERSON, how)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A device that waits: one day of it has to be decided before later ones may leave, for order is the rule there."""

    uplink: str
    meter: str
    day: date
    why: str
    later: int
    """Days that wait behind it."""
    todo: str

    def __str__(self) -> str:
        days = f"{self.later} later day{'s' if self.later != 1 else ''}"
        return f"{self.uplink}: {self.meter} {self.day} has to be decided first, {days} wait behind it: {self.why}"


# Refused for what no retry changes (D-REC sheet §6.8): such a day can only be let go.
HOPELESS = frozenset({"aside/H4", "aside/H5", "aside/H6", "H5", "H6"})
# Where a remedy names a command, it does so for no certain day.
A_DAY = re.compile(r"\bMETER DAYS?\b")


def filled(remedy: str, meter: str, days: str, uplink: str) -> str:
    """A remedy whose command can be typed as it stands."""
    return A_DAY.sub(f"{meter} {days} --uplink {uplink}", remedy)


def advice(rule: str, remedy: str, meter: str, days: str, uplink: str) -> str:
    """What a person can do about a rejected or held row: the remedy's own command, or one that can work there."""
    which = f"{meter} {days} --uplink {uplink}"
    let_go = f"let it go: heliograph backlog set-aside {which}"
    if A_DAY.search(remedy):
        return f"{filled(remedy, meter, days, uplink).rstrip('.')}, or to {let_go}"
    if rule in HOPELESS or rule in ("aside/E1", "E1"):  # in the middle of the day the device was registered
        return f"{remedy} To {let_go}".strip()
    return f"{remedy} Then: heliograph backlog retry {which}, or to {let_go}".strip()


def judge(row: DayRow, found: ReadBack, now: datetime, absent_after: timedelta) -> Verdict | None:
    """What a read-back means for an unclear or accepted row; None: look again later.

    Nothing at the platform is believed only `absent_after` the request, for a platform may store what it took later.
    """
    if isinstance(found, Unknown):
        return found.verdict
    if isinstance(found, Missing):
        if row.claimed_at is not None and now - row.claimed_at < absent_after:
            return None
        return Verdict("due", "absent", "the platform holds nothing for this day; it is sent again")
    both = ((row.period_wh, found.period_wh), (row.total_wh, found.total_wh))
    told = [(ours, theirs) for ours, theirs in both if theirs is not None]
    if not told:
        return None
    if all(ours == theirs for ours, theirs in told):
        return Verdict("confirmed", "read-back")
    differences = ", ".join(f"{theirs} Wh there, {ours} Wh here" for ours, theirs in told if ours != theirs)
    return Verdict(
        "held",
        "differs",
        f"the platform holds another value: {differences}",
        remedy="Compare with: heliograph explain. A stored day is never overwritten; ask the platform to correct it.",
    )


def until_absent(row: DayRow, now: datetime, absent_after: timedelta) -> timedelta | None:
    """When to look again at an unclear row that was not there: earlier looks tell nothing new."""
    if row.state != "unclear" or row.claimed_at is None:
        return None
    return min(row.claimed_at + absent_after - now, CAP)


def next_look(claimed_at: datetime | None, now: datetime) -> datetime:
    """When to ask again about a row: after 60 s, then doubling up to 15 min, reckoned from its age."""
    age = now - claimed_at if claimed_at is not None else FLOOR
    return now + min(CAP, max(FLOOR, age))

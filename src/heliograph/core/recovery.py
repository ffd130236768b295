"""What platforms still know of days whose readings were lost: running totals at their borders, or a doubt.

Each thing a platform says is an equation between running totals at two borders (a day's energy, or the energy of
several days that went as one), or gives the total at a border. They are solved as far as they go, and every one that is
left over must fit: one day, one value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import pairwise

from heliograph.core.delivery import DayRow, Missing, ReadBack, Stored, Unknown, Verdict, as_history
from heliograph.core.figures import kwh


@dataclass(frozen=True, slots=True)
class Told:
    """What one platform said about days of one meter, in order; an id below 0: the day has no figure here."""

    uplink: str
    ordered: bool
    """What it holds of a day covers everything since the day before it that it holds."""
    rows: tuple[DayRow, ...]
    found: Mapping[date, ReadBack]


@dataclass(frozen=True, slots=True)
class Contradiction:
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Running totals (Wh) at the borders that are known, and what each rests on."""

    at: Mapping[datetime, int]
    said: Mapping[date, str] = field(default_factory=dict)
    """By day, in words, what the platforms hold; days of which they say nothing are not in it."""


@dataclass(frozen=True, slots=True)
class _Equation:
    start: datetime
    end: datetime
    wh: int
    text: str


def solve(start: datetime, total_wh: int, told: Sequence[Told]) -> Totals | Contradiction:
    """Totals at the borders of lost days, from the last border that is known here and what the platforms hold."""
    known: dict[datetime, int] = {start: total_wh}
    given: list[tuple[datetime, int, str]] = []
    equations: list[_Equation] = []
    said: dict[date, list[str]] = {}
    for one in told:
        begun = one.rows[0].start if one.rows else start
        for row in one.rows:
            if row.id > 0:
                known[row.start], known[row.end] = row.total_wh - row.period_wh, row.total_wh
            if as_history(row):
                continue  # a History read is no part of the order, and its day is known here
            match one.found.get(row.day):
                case Stored(period_wh=period, total_wh=total):
                    text = f"{one.uplink} holds {_shown(period)} for {row.day}"
                    if total is not None:
                        text += f", running total {kwh(total)} kWh"
                        given.append((row.end, total, text))
                    if period is not None:
                        equations.append(_Equation(begun if one.ordered else row.start, row.end, period, text))
                    said.setdefault(row.day, []).append(text)
                    begun = row.end
                case Unknown(verdict=verdict) if verdict.state == "held" and (one.ordered or row.id < 0):
                    return Contradiction(f"{one.uplink}, {row.day}: {verdict.text}")
                case _:
                    pass
    for at, total, text in given:
        if known.setdefault(at, total) != total:
            return Contradiction(f"{text}, which does not fit {kwh(known[at])} kWh known otherwise")
    left = equations
    while left:
        again = []
        for equation in left:
            a, b = known.get(equation.start), known.get(equation.end)
            if a is not None and b is not None:
                if b - a != equation.wh:
                    return Contradiction(f"{equation.text}, which does not fit {kwh(b - a)} kWh known otherwise")
            elif a is not None:
                known[equation.end] = a + equation.wh
            elif b is not None:
                known[equation.start] = b - equation.wh
            else:
                again.append(equation)
        if len(again) == len(left):
            return Contradiction(f"{left[0].text}, and nobody knows the days before it")
        left = again
    order = sorted(known)
    for earlier, later in pairwise(order):
        if known[later] < known[earlier]:
            return Contradiction(f"the running total would fall from {kwh(known[earlier])} to {kwh(known[later])} kWh")
    return Totals(known, {day: "; ".join(texts) for day, texts in said.items()})


def _shown(period: int | None) -> str:
    return "an unknown figure" if period is None else f"{kwh(period)} kWh"


def settle(told: Told) -> dict[int, Verdict]:
    """What becomes of the rows that may have been sent by a store that was lost. `told.rows` are all closed days here.

    Every row has an answer, and the time for which a platform's "nothing" is not believed is over.
    """
    rows = {row.day: row for row in told.rows}
    verdicts: dict[int, Verdict] = {}
    group: list[DayRow] = []
    history: list[DayRow] = []
    for day in sorted(set(rows) | set(told.found)):
        row, found = rows.get(day), told.found.get(day)
        if row is None:
            if told.ordered and not isinstance(found, Missing):
                group = []  # what the days before it came to is in a day that has no figure here yet
            continue
        if not told.ordered:
            verdicts[row.id] = _verdict([row], found)
            continue
        # History reads are no part of the order in which the others go.
        together = history if as_history(row) else group
        together.append(row)
        if not isinstance(found, Missing):
            verdict = _verdict(together, found)
            verdicts |= {one.id: verdict for one in together}
            together.clear()
    verdicts |= {row.id: ABSENT for row in (*group, *history)}
    return {row.id: verdicts[row.id] for row in told.rows if row.doubted and row.id in verdicts}


ABSENT = Verdict("due", "absent", "the platform holds nothing for this day; it is sent again")


def _verdict(rows: Sequence[DayRow], found: ReadBack | None) -> Verdict:
    """What the answer about the last of these days means for all of them, for they are held as one."""
    last, ours = rows[-1], sum(row.period_wh for row in rows)
    match found:
        case Missing():
            return ABSENT
        case Stored(period_wh=None, total_wh=None) | None:
            return Verdict("unclear", "restored", "the platform does not say what it holds")
        case Stored(period_wh=period, total_wh=total):
            if period in (None, ours) and total in (None, last.total_wh):
                return Verdict("confirmed", "read-back", "the platform holds it already")
            theirs = ", ".join(f"{wh} Wh" for wh in (period, total) if wh is not None)
            return Verdict(
                "held",
                "differs",
                f"the platform holds {theirs} up to {last.day}; here it is {ours} Wh, total {last.total_wh} Wh",
                remedy="Compare with: heliograph explain. A stored day is never overwritten; ask the platform.",
            )
        case Unknown(verdict=verdict):
            return verdict

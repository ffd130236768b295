"""The search for the record that REDEX refused a whole request for (§9 rule 14): by inverter, then by day.

A refusal of this kind stored nothing, so every part may be sent again. Where a search stands is told by the rules of
its rows, as R422/17/3: number of the search, and how often the part was halved. A restart forgets the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from heliograph.core.delivery import CAP, DayRow, Verdict
from heliograph.uplink.redex_answers import LATER, same

# What a search may cost: requests from the first refusal on, the first included. Where that does not suffice to tell
# the last few records apart, these wait for a search of their own; everything else goes on.
LIMIT = 12
STATUSES = (400, 422)
# An inverter of which this many single days were refused, and nothing was taken in between: it is mostly unknown or not
# in force, so the rest is held in one piece. Fewer days than the second figure are looked at one by one. With two days
# instead of three it happened to an inverter with five bad days in a year, of which one lay at the end of the search.
HOPELESS, FEW = 3, 8
_MARK = re.compile(r"R\d{3}/(\d+)/(\d+)")


@dataclass(slots=True)
class Incident:
    """One search."""

    requests: int
    level: int = 0
    """How often the part was halved that is known to hold the fault."""
    taken: bool = False
    """Whether any part of it was."""
    closed: bool = False
    """The record was found: what is left is sent as if nothing had been."""
    rests_until: datetime | None = None
    """The requests were used up. From then on only the narrowest part belongs to it."""


class Search:
    def __init__(self) -> None:
        self._incidents: dict[int, Incident] = {}
        self._refused: Counter[str] = Counter()
        """Single days refused, by inverter, since anything of it was taken."""
        self._barren: set[str] = set()
        """Inverters that were refused since anything at all was taken."""

    def alone(self, row: DayRow) -> bool:
        """What may spoil a request for others."""
        return self._refused[row.remote_id] > 0

    def choose(self, rows: Sequence[DayRow], now: datetime) -> tuple[Sequence[DayRow], Sequence[DayRow]]:
        """What to try next of an open search, and the rows that are part of none; a search that rests is in neither."""
        marked, free = [], []
        for row in rows:
            incident = self._incident(row)
            if incident is None:
                free.append(row)
            elif incident.rests_until is None or now >= incident.rests_until:
                marked.append(row)
        return (self._suspects(marked) if marked else ()), free

    def _suspects(self, marked: Sequence[DayRow]) -> Sequence[DayRow]:
        """Half of the narrowest part that is known to hold the fault.

        A half that is taken leaves the other half as the narrowest part, so that is never tried as a whole.
        """
        number = _mark(marked[0])[0]
        same_search = [row for row in marked if _mark(row)[0] == number]
        deepest = max(_mark(row)[1] for row in same_search)
        return self._half([row for row in same_search if _mark(row)[1] == deepest])

    def _half(self, rows: Sequence[DayRow]) -> Sequence[DayRow]:
        """Half of the inverters; of one inverter, half of its days. From the other end, where the last search met
        nothing but refusals: what lies before a registration, or behind its end, is in one piece.
        """
        inverters = list(dict.fromkeys(row.remote_id for row in rows))
        if len(inverters) == 1:
            size = max(1, len(rows) // 2)
            return rows[-size:] if self._refused[inverters[0]] % 2 else rows[:size]
        size = len(inverters) // 2
        chosen = set(inverters[-size:] if self._barren else inverters[:size])
        return [row for row in rows if row.remote_id in chosen]

    def asked(self, rows: Sequence[DayRow]) -> None:
        """A request with these rows has left."""
        if (incident := self._incident(rows[0])) is not None:
            incident.requests += 1

    def taken(self, rows: Sequence[DayRow], now: datetime) -> None:
        for row in rows:
            self._refused.pop(row.remote_id, None)
        self._barren.clear()
        if (incident := self._incident(rows[0])) is not None:
            incident.taken = True
            self._rest(incident, now)

    def refused(self, rule: str, words: str, rows: Sequence[DayRow], now: datetime) -> Mapping[int, Verdict]:
        """What a refused request means for its rows."""
        incident, (number, level) = self._incident(rows[0]), _mark(rows[0])
        if incident is None:
            number, level, incident = rows[0].id, 0, Incident(1)
            while number in self._incidents:  # rows may still bear the number of an earlier one
                number += 1
            if len(rows) > 1:
                self._remember(number, incident)
        if len(rows) == 1:
            return same(rows, self._found(rule, words, rows[0], incident))
        inverters = {row.remote_id for row in rows}
        if len(inverters) == 1 and len(rows) > FEW and self._refused[rows[0].remote_id] >= HOPELESS:
            incident.closed = True
            remedy = (
                f"{rows[0].remote_id} is refused day by day, these {len(rows)} days in one: check its registration."
            )
            return same(rows, Verdict("held", rule, words, remedy))
        incident.level = level + 1
        self._rest(incident, now)
        remedy = "Sent again in parts, to find the record that is refused."
        return same(rows, Verdict("due", f"{rule}/{number}/{level + 1}", words, remedy, at_once=True))

    def _found(self, rule: str, words: str, row: DayRow, incident: Incident) -> Verdict:
        incident.closed = True
        self._refused[row.remote_id] += 1
        self._barren.add(row.remote_id)
        remedy = f"Check that {row.remote_id} is registered and in force on {row.day}."
        if incident.level == 0 or incident.taken or len(self._barren) == 1:
            return Verdict("rejected", rule, words, remedy)
        remedy += " Nothing else was accepted either; check dialect and account."
        return Verdict("rejected", rule, words, remedy, LATER, pause_all=True)

    @staticmethod
    def _rest(incident: Incident, now: datetime) -> None:
        if incident.requests >= LIMIT:
            incident.requests, incident.rests_until = 0, now + CAP

    def _incident(self, row: DayRow) -> Incident | None:
        """The open search a row belongs to. After a restart one is opened anew from the mark on the row."""
        number, level = _mark(row)
        if level == 0:
            return None
        incident = self._incidents.get(number)
        if incident is None:
            incident = self._remember(number, Incident(level, level))
        narrowed = incident.rests_until is not None and level < incident.level
        return None if incident.closed or narrowed else incident

    def _remember(self, number: int, incident: Incident) -> Incident:
        while len(self._incidents) >= 100:
            del self._incidents[next(iter(self._incidents))]
        self._incidents[number] = incident
        return incident


def _mark(row: DayRow) -> tuple[int, int]:
    """Number and depth of the search a row belongs to, from a rule such as R422/17/3; a depth of 0 is none."""
    match = _MARK.fullmatch(row.last_rule)
    return (int(match[1]), int(match[2])) if match else (0, 0)

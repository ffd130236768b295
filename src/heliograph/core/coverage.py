"""How well a meter was read on a day: what each poll came to, and why there was nothing where there was nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Literal, get_args

from heliograph.core.registers import Night

Outcome = Literal[
    "good", "doubtful", "absent", "timeout", "garbled", "refused", "unreachable", "stranger", "unstored"
]  # fmt: skip
"""What one poll of a meter came to. Those that were not asked at all are what is missing from the expected number."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Cause = Literal["power", "stopped", "bus", "asleep", "doubt", "clock", "storage"]
CAUSES: dict[Cause, str] = {
    "power": "no power, or another restart of the box",
    "stopped": "the gateway was not running",
    "bus": "no usable answer on the bus",
    "asleep": "the meter was asleep",
    "doubt": "the counter, or which meter it is, was in doubt",
    "clock": "the clock was not trusted, and never became so before the power went",
    "storage": "the store could not be written",
}
_OF: dict[Outcome, Cause] = {
    "doubtful": "doubt",
    "absent": "asleep",  # it answers, and has no counter to show: the bus works
    "timeout": "bus",
    "garbled": "bus",
    "refused": "bus",
    "unreachable": "bus",
    "stranger": "doubt",
    "unstored": "storage",
}
MOST_GAPS = 5
"""Kept for a day, the longest ones."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A stretch without a good reading, longer than two readings may lie apart."""

    start: datetime
    end: datetime
    cause: Cause

    @property
    def length(self) -> timedelta:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Coverage:
    """One local day of one meter. `first` and `last` are its good readings; `gaps` stand longest first."""

    meter: str
    day: date
    every: timedelta
    counts: Mapping[Outcome, int] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None
    failed: datetime | None = None
    failure: Outcome | None = None
    """The latest poll without a good reading, and what it came to."""
    gaps: tuple[Silence, ...] = ()

    @property
    def good(self) -> int:
        return self.counts.get("good", 0)

    def expected(self, start: datetime, end: datetime) -> int:
        """Polls between two moments, one every period."""
        return max(timedelta(0), end - start) // self.every


def counted(coverage: Coverage, outcome: Outcome, first: datetime, last: datetime, number: int = 1) -> Coverage:
    """So many more polls of one kind, between two moments."""
    counts = {**coverage.counts, outcome: coverage.counts.get(outcome, 0) + number}
    if outcome == "good":
        earliest = first if coverage.first is None else min(coverage.first, first)
        latest = last if coverage.last is None else max(coverage.last, last)
        return replace(coverage, counts=counts, first=earliest, last=latest)
    if outcome == "unstored":  # it was read, and counted as what it was
        return replace(coverage, counts=counts)
    return replace(coverage, counts=counts, failed=last, failure=outcome)


def with_gap(coverage: Coverage, gap: Silence) -> Coverage:
    longest = sorted((*coverage.gaps, gap), key=lambda one: (-one.length, one.start))
    return replace(coverage, gaps=tuple(longest[:MOST_GAPS]))


def cause_of(failures: Mapping[Outcome, int], night: Night, dark: bool) -> Cause:
    """Why the polls of a stretch brought nothing, by what most of them came to; without any, nobody was asking.

    A device that its map knows to sleep does so in the dark. A meter that answers day and night has no such excuse.
    """
    if not failures:
        return "stopped"
    cause = _OF.get(max(failures, key=lambda one: failures[one]), "bus")
    return "asleep" if cause == "bus" and dark and night != "answers" else cause

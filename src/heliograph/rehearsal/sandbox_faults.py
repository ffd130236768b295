"""Faults on demand: what can go wrong between a gateway and a platform, when, and how often. Seeded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Literal

from heliograph.core.durations import duration
from heliograph.core.errors import UsageError

Phase = Literal["before", "after", "process"]


@dataclass(frozen=True, slots=True)
class FaultKind:
    """`phase` before: the platform never sees the request. after: it has been handled, the answer suffers.

    process: the request is accepted in good order and its processing fails. `only` limits it to kinds of request.
    """

    phase: Phase
    says: str
    only: tuple[str, ...] = ()


_SENDS = ("redex.send", "redex.batch", "redex.legacy")

KINDS: dict[str, FaultKind] = {
    "drop-before": FaultKind("before", "the connection is closed before the body is read"),
    "drop-after": FaultKind("after", "the request is carried out, then the connection is closed without an answer"),
    "500-before": FaultKind("before", "500, nothing carried out"),
    "500-after": FaultKind("after", "carried out, then 500"),
    "503": FaultKind("before", "503 from the load balancer, HTML"),
    "truncate": FaultKind("after", "carried out; the connection breaks in the middle of the answer's body"),
    "cut-json": FaultKind("after", "carried out; a complete answer whose JSON ends in the middle"),
    "slow": FaultKind("after", "carried out; the answer comes after `slow` seconds"),
    "429": FaultKind("before", "429 with a Retry-After in seconds"),
    "429-bare": FaultKind("before", "429 without Retry-After"),
    "429-wrong": FaultKind("before", "429 with a Retry-After that is no number"),
    "html": FaultKind("before", "captive portal: 200 with HTML"),
    "html-after": FaultKind("after", "carried out; a proxy answers 200 with HTML"),
    "empty": FaultKind("before", "200 with an empty body, nothing carried out"),
    "empty-after": FaultKind("after", "carried out; 200 with an empty body"),
    "redirect": FaultKind("before", "302 to a login page"),
    "401": FaultKind("before", "the token is not accepted this time"),
    "403": FaultKind("before", "forbidden in the platform's own form"),
    "leak": FaultKind("before", "D-REC: the text of its database leaks through with status 400", ("drec.send",)),
    "failed": FaultKind("process", "REDEX: the process ends as Failed, nothing stored", _SENDS),
    "half": FaultKind("process", "REDEX: the process ends as Failed, the first half is stored", _SENDS),
}


def length_of(text: str) -> timedelta:
    try:
        return duration(text)
    except ValueError as exc:
        raise UsageError(str(exc), hint="For instance 90s, 15m or 36h") from exc


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the plan: by chance, for the next `count` requests, or from `start` to `end` (sandbox time).

    `on` is a kind of request or the beginning of one: "redex", "redex.batch", "drec.send"; "" means all.
    """

    kind: str
    on: str = ""
    chance: float = 0.0
    count: int = 0
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = get_close_matches(self.kind, KINDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Known: " + ", ".join(KINDS)
            raise UsageError(f"unknown fault {self.kind!r}", hint=hint)
        if not 0.0 <= self.chance <= 1.0:
            raise UsageError(f"fault {self.kind}: chance {self.chance} is not between 0 and 1")

    def touches(self, request_kind: str) -> bool:
        only = KINDS[self.kind].only
        if only and request_kind not in only:
            return False
        return self.on == "" or request_kind == self.on or request_kind.startswith(self.on + ".")

    def __str__(self) -> str:
        where = f"@{self.on}" if self.on else ""
        if self.count:
            when = f"next:{self.count}"
        elif self.start is not None and self.end is not None:
            when = f"{self.start:%Y-%m-%dT%H:%M:%SZ}/{(self.end - self.start).total_seconds():g}s"
        else:
            when = f"{self.chance:g}"
        return f"{self.kind}{where}={when}"


def parse_fault(text: str, now: datetime) -> Fault:
    """`html=0.05`, `500-after@redex.batch=next:2`, `503=+10m/36h`, `503=2026-03-01T00:00:00Z/36h`."""
    name, equals, when = text.partition("=")
    kind, _, on = name.strip().partition("@")
    if not equals:
        raise UsageError(f"fault {text!r} does not say when", hint="For instance html=0.05, 429=next:3 or 503=+10m/1h")
    if when.startswith("next:") and when[5:].isdigit():
        return Fault(kind, on, count=int(when[5:]))
    if "/" in when:
        first, _, length = when.partition("/")
        start = now + length_of(first[1:]) if first.startswith("+") else _moment(first)
        return Fault(kind, on, start=start, end=start + length_of(length))
    try:
        chance = float(when)
    except ValueError as exc:
        raise UsageError(
            f"fault {text!r}: {when!r} is neither a chance, next:N nor START/LENGTH",
            hint="For instance html=0.05, 429=next:3 or 503=+10m/1h",
        ) from exc
    return Fault(kind, on, chance=chance)


def _moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(f"{text!r} is no moment", hint="For instance 2026-03-01T00:00:00Z or +10m") from exc
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)


@dataclass(slots=True)
class FaultPlan:
    """At most one fault a request. One random number is drawn for each request, so a seed fixes the whole run."""

    rng: random.Random
    _faults: tuple[Fault, ...] = ()
    _left: dict[int, int] = field(default_factory=dict)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._faults

    def set(self, faults: Iterable[Fault] | Mapping[str, float]) -> None:
        """Replaces the plan; a mapping gives chances by kind."""
        if isinstance(faults, Mapping):
            faults = [Fault(kind, chance=chance) for kind, chance in faults.items()]
        self._faults = tuple(faults)
        self._left = {index: fault.count for index, fault in enumerate(self._faults) if fault.count}

    def add(self, fault: Fault) -> None:
        if fault.count:
            self._left[len(self._faults)] = fault.count
        self._faults = (*self._faults, fault)

    def choose(self, request_kind: str, now: datetime) -> str | None:
        """Counted faults first, then intervals, then chance."""
        drawn = self.rng.random()
        for index, left in self._left.items():
            if left and self._faults[index].touches(request_kind):
                self._left[index] = left - 1
                return self._faults[index].kind
        mass = 0.0
        for fault in self._faults:
            if not fault.touches(request_kind):
                continue
            if fault.start is not None and fault.end is not None and fault.start <= now < fault.end:
                return fault.kind
        for fault in self._faults:
            if fault.chance and fault.touches(request_kind):
                mass += fault.chance
                if drawn < mass:
                    return fault.kind
        return None

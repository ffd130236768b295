"""One continuous counter over the lives of several: a running sum that only measured energy and seams can move.

A *seam* is where one counter hands over to the next: the meter was swapped, its counter was reset, or it rolled over.
Between seams the continuous counter moves as the device's does; at a seam it stands still.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from heliograph.core.figures import kwh

SeamKind = Literal["swap", "reset", "rollover"]


@dataclass(frozen=True, slots=True)
class Seam:
    """From `at` on the counter is another one: it showed `old_wh` before and `new_wh` after, at the same moment."""

    meter: str
    at: datetime
    kind: SeamKind
    old_wh: int
    new_wh: int
    old_serial: str | None = None
    new_serial: str | None = None
    note: str = ""
    id: int | None = None

    def __str__(self) -> str:
        serials = f", serial {self.old_serial or '?'} -> {self.new_serial}" if self.new_serial else ""
        return f"{self.kind} at {self.at:%Y-%m-%d %H:%M} UTC: {kwh(self.old_wh)} -> {kwh(self.new_wh)} kWh{serials}"


def offset(seams: Iterable[Seam], at: datetime) -> int:
    """What is added to the device's counter at that moment to have the continuous one, in Wh."""
    return sum(seam.old_wh - seam.new_wh for seam in seams if seam.at <= at)


@dataclass(frozen=True, slots=True)
class Step:
    """A reading as the ledger sees it: the device's counter in Wh, and whether it was believed when it was read."""

    at: datetime
    wh: int
    believed: bool
    reading: int


def settled(steps: Sequence[Step], seam: Seam, rated_kw: float, step_wh: int) -> tuple[int, ...] | str:
    """Readings that were doubted and are explained by the seam, or why the seam cannot be.

    `steps` are the readings of the meter around the seam in order of time. The old counter must not be above `old_wh`
    before it, the new one not below `new_wh` after it, and nothing may be believed that contradicts it.
    """
    before = [step for step in steps if step.at < seam.at and step.believed]
    after = [step for step in steps if step.at >= seam.at]

    def most(since: datetime, at: datetime) -> float:
        return rated_kw * 1200 * (at - since).total_seconds() / 3600 + 2 * step_wh + 1

    if before and seam.old_wh < before[-1].wh:
        last = before[-1]
        return f"the old counter showed {kwh(last.wh)} kWh at {last.at:%Y-%m-%d %H:%M} UTC already"
    if before and seam.old_wh > before[-1].wh + most(before[-1].at, seam.at):
        return f"the old counter cannot have come from {kwh(before[-1].wh)} to {kwh(seam.old_wh)} kWh in that time"
    if wrong := next((step for step in after if step.believed), None):
        return f"the old counter was still read at {wrong.at:%Y-%m-%d %H:%M} UTC ({kwh(wrong.wh)} kWh)"
    found: list[int] = []
    at, wh = seam.at, seam.new_wh
    for step in after:
        if wh <= step.wh <= wh + most(at, step.at):
            found.append(step.reading)
            at, wh = step.at, step.wh
    if after and after[0].reading not in found:
        return f"the first reading after it is {kwh(after[0].wh)} kWh, which does not begin at {kwh(seam.new_wh)} kWh"
    return tuple(found)

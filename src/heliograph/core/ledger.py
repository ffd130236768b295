"""One continuous counter over the lives of several: a running sum that only measured energy and seams can move.

A *seam* is where one counter hands over to the next: the meter was swapped, its counter was reset, or it rolled over.
At a *change* the counter is the same, and what is read as it is another: its map or the site's settings were edited.
Between seams the continuous counter moves as the device's does; at a seam it stands still. A *correction* is a record
of its own that says what a seam should have said: it moves the continuous counter from the first open day on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from heliograph.core.figures import kwh
from heliograph.core.meaning import Meaning, differences

SeamKind = Literal["swap", "reset", "rollover", "change", "correction"]

# A counter that wrapped is known by how near it was on both sides; after a day without a reading a reset looks alike.
LONGEST_ROLLOVER = timedelta(days=1)
NEAR = 10
"""Within a tenth of the counter's range."""


@dataclass(frozen=True, slots=True)
class Seam:
    """From `at` on the counter is another one: it showed `old_wh` before and `new_wh` after, at the same moment.

    A correction holds what the seam `corrects` should have said; its `at` is where it takes effect.
    """

    meter: str
    at: datetime
    kind: SeamKind
    old_wh: int
    new_wh: int
    old_serial: str | None = None
    new_serial: str | None = None
    note: str = ""
    id: int | None = None
    corrects: int | None = None
    """Id of the seam that is corrected."""
    moves_wh: int = 0
    """Corrections: by how much the continuous counter is moved."""
    floor_wh: int = 0
    """Corrections: the continuous counter at the last closed border. It never falls below that, so that what was
    booked too much is made up for by the days that follow and no period becomes negative."""
    old_meaning: Meaning | None = None
    """Where map or settings changed: what the counter meant before, and what it means from here on."""
    new_meaning: Meaning | None = None

    @property
    def offset_wh(self) -> int:
        """What it adds to the device's counter, for ever after."""
        return self.moves_wh if self.kind == "correction" else self.old_wh - self.new_wh

    def __str__(self) -> str:
        text = f"{self.kind} at {self.at:%Y-%m-%d %H:%M} UTC: {kwh(self.old_wh)} -> {kwh(self.new_wh)} kWh"
        if self.kind == "correction":
            sign = "+" if self.moves_wh > 0 else ""
            return f"{text} instead of what seam {self.corrects} says, {sign}{kwh(self.moves_wh)} kWh"
        text += f", serial {self.old_serial or '?'} -> {self.new_serial}" if self.new_serial else ""
        return text + (f", {self.changed}" if self.changed else "")

    @property
    def changed(self) -> str:
        """What another meaning changed, in words; '' where the counter is read as before."""
        if self.old_meaning is None or self.new_meaning is None:
            return ""
        return "; ".join(differences(self.old_meaning, self.new_meaning))


def offset(seams: Iterable[Seam], at: datetime) -> int:
    """What is added to the device's counter at that moment to have the continuous one, in Wh."""
    return sum(seam.offset_wh for seam in seams if seam.at <= at)


def continuous(seams: Iterable[Seam], at: datetime, wh: int) -> int:
    """The continuous counter where the device's shows `wh` at that moment: it never falls, whatever was corrected."""
    past = [seam for seam in seams if seam.at <= at]
    return max([wh + offset(past, at), *(seam.floor_wh for seam in past if seam.kind == "correction")])


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
    if before and (why := _old_cannot_be(before[-1], seam, rated_kw, step_wh)):
        return why
    if wrong := next((step for step in after if step.believed), None):
        return f"the old counter was still read at {wrong.at:%Y-%m-%d %H:%M} UTC ({kwh(wrong.wh)} kWh)"
    found: list[int] = []
    at, wh = seam.at, seam.new_wh
    for step in after:
        if wh <= step.wh <= wh + most_wh(at, step.at, rated_kw, step_wh):
            found.append(step.reading)
            at, wh = step.at, step.wh
    if after and after[0].reading not in found:
        return f"the first reading after it is {kwh(after[0].wh)} kWh, which does not begin at {kwh(seam.new_wh)} kWh"
    return tuple(found)


def most_wh(since: datetime, at: datetime, rated_kw: float, step_wh: int) -> float:
    """The most a counter can rise in that time, in Wh."""
    return rated_kw * 1200 * (at - since).total_seconds() / 3600 + 2 * step_wh + 1


def _old_cannot_be(last: Step, seam: Seam, rated_kw: float, step_wh: int) -> str:
    """Why the old counter cannot have shown `old_wh` at the seam, given its last believed reading; "" when it can."""
    if seam.old_wh < last.wh:
        return f"the old counter showed {kwh(last.wh)} kWh at {last.at:%Y-%m-%d %H:%M} UTC already"
    if seam.old_wh > last.wh + most_wh(last.at, seam.at, rated_kw, step_wh):
        return f"the old counter cannot have come from {kwh(last.wh)} to {kwh(seam.old_wh)} kWh in that time"
    return ""


def corrected(
    seams: Sequence[Seam],
    wrong: int,
    old_wh: int,
    new_wh: int,
    *,
    before: Step | None,
    after: Step | None,
    border: tuple[datetime, int] | None,
    rated_kw: float,
    step_wh: int,
    note: str,
) -> Seam | str:
    """The correction of seam `wrong` to what the two counters truly showed, or why it cannot be.

    `before` and `after` are the believed readings beside the seam: what they rule out would be energy that nobody
    metered. `border` is the last closed one with its continuous index: the correction takes effect behind it.
    """
    seam = next((one for one in seams if one.id == wrong), None)
    if seam is None or seam.kind == "correction":
        known = ", ".join(f"{one.id} ({one})" for one in seams if one.kind != "correction") or "none"
        return f"there is no seam {wrong} to correct; seams: {known}"
    said = sum(one.offset_wh for one in seams if wrong in (one.id, one.corrects))
    if old_wh - new_wh == said:
        return "the running total rests on these counters already"
    right = Seam(seam.meter, seam.at, seam.kind, old_wh, new_wh)
    if before is not None and (why := _old_cannot_be(before, right, rated_kw, step_wh)):
        return why
    if after is not None and not new_wh <= after.wh <= new_wh + most_wh(seam.at, after.at, rated_kw, step_wh):
        return (
            f"the new counter cannot have come from {kwh(new_wh)} kWh to the {kwh(after.wh)} kWh "
            f"that it showed at {after.at:%Y-%m-%d %H:%M} UTC"
        )
    at, floor = seam.at, 0
    if border is not None:
        at, floor = max(seam.at, border[0] + timedelta(microseconds=1)), border[1]
    moves = old_wh - new_wh - said
    return Seam(seam.meter, at, "correction", old_wh, new_wh, note=note, corrects=wrong, moves_wh=moves, floor_wh=floor)


def rolled_over(meter: str, last: Step, new: Step, range_wh: int, rated_kw: float, step_wh: int) -> Seam | None:
    """The seam where a counter with room for `range_wh` began again at zero, or None where it fell otherwise.

    Only what the plant can have produced in that time brings a counter from near its end over it. The moment between
    the readings at which it wrapped is where the energy before and after it says.
    """
    # What a coarse counter shows near its end may lie a little beyond it; that much is booked already.
    end = max(range_wh, last.wh)
    rise, elapsed = end - last.wh + new.wh, new.at - last.at
    near = end - range_wh <= 2 * step_wh and end - last.wh <= range_wh // NEAR and 0 <= new.wh <= range_wh // NEAR
    if not near or not timedelta(0) < elapsed <= LONGEST_ROLLOVER:
        return None
    if rise > most_wh(last.at, new.at, rated_kw, step_wh):
        return None
    at = last.at + elapsed * (end - last.wh) / rise if rise else new.at
    note = f"rollover at {kwh(range_wh)} kWh, known to the map"
    return Seam(meter, min(max(at, last.at + timedelta(microseconds=1)), new.at), "rollover", end, 0, note=note)

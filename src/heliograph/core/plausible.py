"""Whether a freshly read block can be what the meter holds, given what it held before.

A checksum proves that a frame arrived as it was sent; it does not prove that the frame answers our question.
A frame with another register's content breaks out of ranges, makes counters fall or leap, or instants jump.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from heliograph.core.quantity import ENERGY_UNITS, UNITS, find
from heliograph.core.registers import Register

Value = float | int | str

# How many reads in a row must agree before a doubt is settled. One answer in ten may carry wrong content, and among
# the registers around the right ones some fit all ranges: the numbers keep such accidents below one in 10^8 reads.
FIRST = 3
JUMP = 4
ABSENT = 5
ZERO = 6
"""Registers that do not exist read as zeros on many devices, so wrong zeros agree with each other."""
LEAP = 6
"""A counter that may fall has no other witness than its repeated word."""
ALIKE = 2
RECOGNISED = 2
"""For a block that other numbers in it prove to be the right one."""
CONTRADICTED = 3
"""For what is then handed on as evidence."""
NEVER = 0

STEADY = ("voltage_", "frequency")
"""Instants that hardly move from one poll to the next."""

HEADROOM = 1.2
OTHER_COUNTERS = 4.0
"""What is drawn from the grid, or counted as a sum, may move faster than the plant's nameplate says."""
SAMPLING = 1.0
"""Seconds by which two readings may lie further apart than their answers: a meter refreshes its registers in steps."""


@dataclass(frozen=True, slots=True)
class Known:
    """A value that was believed, and when it was read (seconds since boot)."""

    value: Value
    at: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """`settled_by` is how many reads in a row must agree before the value is believed; NEVER: it contradicts."""

    quantity: str
    text: str
    settled_by: int

    def __str__(self) -> str:
        return self.text


def step_wh(register: Register, wh: float) -> int:
    """The largest single step, in Wh and rounded up, in which this counter can move at that value.

    A float32 has 24 bits: a counter in kWh moves by 1 Wh up to 16,384 kWh and by 62.5 Wh near 1,000,000 kWh. What is
    shown of it, the shortest decimal, may lie half a step off on either side, so that it moves by up to two steps.
    """
    unit, factor = UNITS[register.unit]
    if unit not in ENERGY_UNITS:
        return 0
    in_register = abs(Decimal(wh) / factor)
    if register.type == "float32":
        raw = float(in_register / abs(register.scale)) if register.scale else 0.0
        step = Decimal(math.ldexp(1.0, math.frexp(raw)[1] - 23)) * abs(register.scale)
    elif register.type == "float64":
        step = Decimal(0)
    else:
        step = abs(register.scale)
    return max(1, int((max(step, register.step or Decimal(0)) * factor).to_integral_value(ROUND_CEILING)))


def rollover_wh(register: Register) -> int | None:
    """How many Wh a counter holds before it begins again at zero; None where the map does not say, or cannot.

    The last value and one step more. A float without a step is taken to jump from its last value to zero: that claims
    too little by a step, never too much. A counter that ratios multiply has no end of its own, nor has one with a scale
    register, unless the map says under which exponent (`scale_exponent`) its end is the one it names.
    """
    unit, factor = UNITS[register.unit]
    if register.rollover is None or unit not in ENERGY_UNITS or register.times:
        return None
    if register.scale_register is not None and register.scale_exponent is None:
        return None
    whole = not register.type.startswith("float")
    step = register.step or (abs(register.scale) if whole else Decimal(0))
    return int((register.rollover + step) * factor)


def most_wh(name: str, elapsed: float, rated_kw: float, step: int, production: str | None = None) -> float:
    """The most a counter can rise in that time: the nameplate with headroom, and one step of the counter.

    Where `production` tells which counter the nameplate is about, the others get more room.
    """
    rate = rated_kw * (1.0 if production in (None, name) else OTHER_COUNTERS)
    return rate * 1000 / 3600 * (max(elapsed, 0.0) + SAMPLING) * HEADROOM + step


def doubts(
    previous: Mapping[str, Value] | None,
    new: Mapping[str, Value],
    elapsed: float | Mapping[str, float],
    rated_kw: float,
    steps: Mapping[str, int],
    *,
    production: str | None = None,
    falling: Collection[str] = (),
) -> tuple[Doubt, ...]:
    """Everything about `new` that does not follow from `previous`; both hold the quantities of one block.

    `falling` names counters that may fall or begin anew by design. Without `production` every counter is held to
    `rated_kw`.
    """
    if not previous:
        return (Doubt("", "first reading, mostly zeros", ZERO) if _hollow(new) else Doubt("", "first reading", FIRST),)
    found = [Doubt(name, f"{name} has no value any more", ABSENT) for name in previous if name not in new]
    if _hollow(new) and not _hollow(previous):
        found.append(Doubt("", "most of it became zero at once", ZERO))
    for name, value in new.items():
        before = previous.get(name)
        if before is None:
            found.append(Doubt(name, f"{name} has a value for the first time", FIRST))
            continue
        quantity = find(name)
        if isinstance(value, str) or isinstance(before, str):
            if value != before:
                found.append(Doubt(name, f"{name} changed from {before} to {value}", FIRST))
        elif quantity is None:
            continue
        elif quantity.kind == "counter":
            since = elapsed if isinstance(elapsed, float | int) else elapsed.get(name, 0.0)
            energy = quantity.unit in ENERGY_UNITS
            most = most_wh(name, since, rated_kw, steps.get(name, 1), production) if energy else math.inf
            found += _counter(name, quantity.unit, before, value, most, name in falling)
        elif quantity.kind in ("identity", "setting"):
            if value != before:
                found.append(Doubt(name, f"{name} changed from {before:g} to {value:g}", FIRST))
        elif quantity.jump is not None:
            move = abs(value - before)
            if move > quantity.jump and move > 0.25 * max(abs(value), abs(before)):
                text = f"{name} jumped from {before:g} to {value:g} {quantity.unit}"
                found.append(Doubt(name, text, JUMP if value else ZERO))
    return tuple(found)


def _hollow(values: Mapping[str, Value]) -> bool:
    return 2 * sum(value in (0, "") for value in values.values()) > len(values)


def _counter(name: str, unit: str, before: float, value: float, most: float, may_fall: bool) -> list[Doubt]:
    rise = value - before
    if rise < 0 and not may_fall:
        return [Doubt(name, f"{name} fell from {before:.15g} to {value:.15g} {unit}", NEVER)]
    if abs(rise) > most:
        text = f"{name} moved by {rise:.15g} {unit} where {most:.0f} are possible"
        return [Doubt(name, text, LEAP if may_fall else NEVER)]
    if abs(rise) > 100 and abs(rise) > abs(before) / 8:
        # A young counter is so small that other quantities fit into the next steps of it.
        return [Doubt(name, f"{name} grew from {before:.15g} to {value:.15g} {unit}", JUMP)]
    return []


def agree(
    earlier: Mapping[str, Value],
    later: Mapping[str, Value],
    *,
    elapsed: float,
    rated_kw: float,
    steps: Mapping[str, int],
    production: str | None = None,
    falling: Collection[str] = (),
) -> bool:
    """Whether two reads of the same registers, `elapsed` seconds apart, tell the same story."""
    if not earlier or not later:
        return not earlier and not later
    return not doubts(earlier, later, elapsed, rated_kw, steps, production=production, falling=falling)


def recognised(
    previous: Mapping[str, Value],
    new: Mapping[str, Value],
    found: Collection[Doubt],
    most: Mapping[str, float],
) -> bool:
    """Whether some of its numbers prove that this is the right block, whatever the others do.

    That is a counter that fits into a window (`most`, in Wh) narrower than a hundredth of its value, or two and more
    voltages and frequencies that all stayed within a twentieth; with no counter in doubt and no number missing. The
    words of other registers hardly ever do that, but clouds and switches make power and current jump every day.
    """
    if any(doubt.settled_by in (ABSENT, NEVER) or doubt.quantity in most for doubt in found):
        return False
    for name, window in most.items():
        value = new.get(name)
        if isinstance(value, int) and name in previous and value >= 10_000 and window < value / 100:
            return True
    moves = [_move(previous.get(name), value) for name, value in new.items() if name.startswith(STEADY)]
    return len(moves) >= 2 and max(moves) < 0.05


def _move(before: Value | None, value: Value) -> float:
    """The change as a share of what was before."""
    if isinstance(before, float | int) and isinstance(value, float | int) and before:
        return abs(value - before) / abs(before)
    return math.inf

"""An edited map beside the one in use: what the same words would read, and what of it can be.

Both maps decode one set of words, read once, so that a meter that moves does not look like a difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from heliograph.core.decode import Absent, addresses, reading, value, width
from heliograph.core.decodings import Space, exponent_of, words_of
from heliograph.core.meaning import differences, meaning_of
from heliograph.core.physics import Relation, relations
from heliograph.core.quantity import find
from heliograph.core.registers import Function, MeterMap, Register

Told = float | int | str | Absent | None
"""None: the map has no such register."""

WIDEST_GAP = 10
"""Registers between two numbers that are read along: a request more costs as much (core/plan.py)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity by the map in use, and by the one that is tried; in the units we keep."""

    quantity: str
    now: Told
    then: Told

    @property
    def same(self) -> bool:
        return self.now == self.then or (isinstance(self.now, Absent) and isinstance(self.then, Absent))

    @property
    def unit(self) -> str:
        quantity = find(self.quantity)
        return quantity.unit if quantity and quantity.unit != "1" else ""

    @property
    def measured(self) -> bool:
        quantity = find(self.quantity)
        return quantity is not None and quantity.kind in ("instant", "counter")

    @property
    def energy(self) -> bool:
        return self.unit in ("Wh", "varh", "VAh")


@dataclass(frozen=True, slots=True)
class Trial:
    lines: tuple[Line, ...]
    now: tuple[Relation, ...]
    then: tuple[Relation, ...]
    production: tuple[str, str | None]
    """The counter that is production, by the map in use and by the one that is tried."""
    changes: tuple[str, ...]
    """What of the production counter's meaning would change; empty where what is booked stays what it is."""
    strange: tuple[str, ...] = ()
    """Why the device would be refused by the map that is tried."""

    @property
    def counter(self) -> Line:
        """The production counter: what it reads, and what it would read."""
        before = next(line for line in self.lines if line.quantity == self.production[0])
        if self.production[1] in (None, self.production[0]):
            return before
        after = next(line for line in self.lines if line.quantity == self.production[1])
        return Line(after.quantity, before.now, after.then)

    @property
    def broken(self) -> tuple[Relation, ...]:
        """What would not hold, and holds now or cannot be checked now."""
        already = {one.name for one in self.now if not one.holds}
        return tuple(one for one in self.then if not one.holds and one.name not in already)

    @property
    def mended(self) -> tuple[Relation, ...]:
        now = {one.name for one in self.now if not one.holds}
        return tuple(one for one in self.then if one.holds and one.name in now)

    @property
    def lost(self) -> tuple[Line, ...]:
        """What is measured now, and would not be."""
        return tuple(
            line
            for line in self.lines
            if line.measured and not isinstance(line.now, Absent | None) and isinstance(line.then, Absent | None)
        )

    @property
    def harmless(self) -> bool:
        """Whether nothing that matters would be worse, or another figure."""
        return not (self.changes or self.broken or self.lost or self.strange or self.production[1] is None)


def told_by(map: MeterMap, space: Space, factors: Mapping[str, Decimal]) -> dict[str, float | int | str | Absent]:
    """What the map reads in these words, as polling would: held to plausible ranges, with the reason of an absence.

    Registers whose words were not read are left out.
    """
    known = dict(factors)
    found: dict[str, float | int | str | Absent] = {}
    for register in sorted(map.registers, key=lambda one: bool(one.times)):
        words = words_of(map, register, space)
        if words is None:
            continue
        order, exponent = map.order_of(register), exponent_of(map, register, space)
        told = reading(register, order, words, exponent=exponent, factors=known)
        found[register.quantity] = told
        number = value(register, order, words, exponent=exponent, factors=known)
        if not register.times and isinstance(number, Decimal):
            known.setdefault(register.quantity, number)
    return found


def wanted(map: MeterMap, production: str | None, everything: bool) -> tuple[Register, ...]:
    """The registers of a trial: what is polled, the counter, what they need, and by which the device is recognised."""
    counters = {r.quantity for r in map.registers if (q := find(r.quantity)) is not None and q.unit == "Wh"}
    names = {r.quantity for r in map.registers if everything or r.poll} | counters | {production}
    some = [r for r in map.registers if r.quantity in names and r.model is None]
    factors = {name for r in some for name in r.times}
    scales = {(map.function_of(r), r.scale_register) for r in some if r.scale_register is not None}
    some += [r for r in map.registers if r.quantity in factors and r not in some]
    some += [r for r in map.registers if (map.function_of(r), r.address) in scales and r not in some]
    marks = [
        Register(quantity="model", type=m.type, address=m.address, words=m.words, function=m.function or map.function)
        for m in map.identity.match
    ]
    return tuple(replace(r, function=map.function_of(r)) for r in (*some, *marks))


def requests(
    registers: Iterable[Register], most: int, may_read: Sequence[MeterMap]
) -> tuple[tuple[Function, int, int], ...]:
    """Stretches that hold these numbers, none of which is cut; gaps are read along where every map allows it."""
    alone: list[tuple[Function, int, int]] = []
    pieces: dict[Function, list[tuple[int, int]]] = {}
    for register in registers:
        places, function = addresses(register), register.function or "input"
        if places and register.alone:
            alone.append((function, min(places), max(places)))
        elif places and max(places) - min(places) < most:
            pieces.setdefault(function, []).append((min(places), max(places)))
        elif places:
            pieces.setdefault(function, []).extend((place, place) for place in places)
    found = list(dict.fromkeys(alone))
    for function, spans in pieces.items():
        for first, last in _joined(sorted(spans)):
            before = found[-1] if found and found[-1][0] == function and found[-1] not in alone else None
            gap = range(before[2] + 1, first) if before else range(0)
            if before and last - before[1] < most and (not gap or _open(gap, may_read)):
                found[-1] = function, before[1], last
            else:
                found.append((function, first, last))
    return tuple(found)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Numbers that share words belong into one request."""
    joined: list[tuple[int, int]] = []
    for first, last in spans:
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def _open(gap: range, maps: Collection[MeterMap]) -> bool:
    return len(gap) <= WIDEST_GAP and all(
        map.read_gaps and not any(first <= place <= last for first, last in map.no_gap for place in gap) for map in maps
    )


def trial(
    old: MeterMap,
    new: MeterMap,
    space: Space,
    factors: Mapping[str, Decimal],
    production: tuple[str, str | None],
    refused: Mapping[tuple[Function, int], str] | None = None,
) -> Trial:
    """What using `new` instead of `old` would do to what is read from these words.

    `refused`: function and address of what was asked for and not given, and why.
    """
    why = refused or {}
    now = _refusals(old, why) | told_by(old, space, factors)
    then = _refusals(new, why) | told_by(new, space, factors)
    names = list(dict.fromkeys([*now, *then, *(name for name in production if name)]))
    lines = tuple(Line(name, now.get(name), then.get(name)) for name in names)
    before = meaning_of(old, production[0], factors)
    after = meaning_of(new, production[1], factors) if production[1] is not None else None
    changes = differences(before, after) if before is not None and after is not None else ()
    return Trial(lines, _held(now), _held(then), production, changes, _strange(new, space))


def _refusals(map: MeterMap, why: Mapping[tuple[Function, int], str]) -> dict[str, float | int | str | Absent]:
    found: dict[str, float | int | str | Absent] = {}
    for register in map.registers:
        for place in addresses(register):
            if register.model is None and (map.function_of(register), place) in why:
                found[register.quantity] = Absent(why[map.function_of(register), place])
    return found


def _held(told: Mapping[str, Told]) -> tuple[Relation, ...]:
    return relations({name: one for name, one in told.items() if isinstance(one, int | float)})


def _strange(map: MeterMap, space: Space) -> tuple[str, ...]:
    """Identity registers that hold what the map does not accept; one that was not read proves nothing."""
    found = []
    for match in map.identity.match:
        register = Register(quantity="model", type=match.type, address=match.address, words=match.words)
        words = space.get(match.function or map.function, {})
        places = range(match.address, match.address + width(register))
        if not all(place in words for place in places):
            if map.identity.required:
                found.append(f"the device has no register 0x{match.address:04X}, which must tell its kind")
            continue
        told = value(register, match.order or map.order, [words[place] for place in places])
        shown = int(told) if isinstance(told, Decimal) else told
        if not isinstance(told, Absent) and shown not in match.values:
            accepted = " or ".join(str(one) for one in match.values)
            found.append(f"register 0x{match.address:04X} holds {shown}, not {accepted}: the device would be refused")
    return tuple(found)

"""Register words under every plausible decoding, and which of those agree with physics and with each other.

Two ways lead to marks. Where a map is known, its registers are read as it says, and with every other word order or
one address beside: what then fits is told. Without a map, sets of registers are looked for that behave like the
phases of one grid: three voltages side by side, three currents, three powers near the product of both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from itertools import product
from typing import get_args

from heliograph.core.decode import TYPES, addresses, kept, ordered, value, width
from heliograph.core.physics import PHASE_VOLTAGE, Relation, relations
from heliograph.core.quantity import UNITS, find
from heliograph.core.registers import Function, MeterMap, Order, Register, Type

Words = Mapping[int, int]
"""Address to word, of one function. An address that was refused is not in it."""
Space = Mapping[Function, Words]

ORDERS: tuple[Order, ...] = get_args(Order)
NUMBERS: tuple[Type, ...] = ("u16", "s16", "u32", "s32", "float32", "u64", "s64", "float64")
ACCUMULATORS: dict[Type, Type] = {"acc32": "u32", "acc64": "u64"}
SCALES = tuple(Decimal(text) for text in ("1", "0.1", "0.01", "0.001", "10", "100", "1000"))
FLOAT_SCALES = tuple(Decimal(text) for text in ("1", "1000", "0.001", "0.1", "0.01"))
"""Floats are mostly in a unit or a thousand of it; some hold whole tenths (Chint DTSU666)."""
GRIDS = ((95, 132), (200, 256), (262, 295))
"""Volts to neutral in the world's grids."""
ODD_SCALE = {Decimal(1): 0, Decimal("0.1"): 0, Decimal("0.01"): 0, Decimal("0.001"): 1}
ODD_ORDER = {"ABCD": 0, "CDAB": 1, "BADC": 3, "DCBA": 3}
SHIFTS = (0, -1, 1, -2, 2)
"""Addresses beside the map's: manuals count from one, and neighbours are mixed up by two words."""
MOST_SETS = 12
"""Voltages side by side that are followed up."""
ENOUGH = 5.5
"""The score of a set with which nothing rarer is looked for."""
TELLING = 3.5
"""The same for floats: hardly any words make a voltage by chance, so whole numbers need not be looked at."""
WINDOW = 128
CREDIBLE = 3.0
"""The score of a set that is worth telling."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Words read in one way. `value` is the number times `scale`, in whatever unit that is."""

    address: int
    type: Type
    order: Order
    scale: Decimal
    words: tuple[int, ...]
    value: Decimal

    @property
    def number(self) -> float:
        return float(self.value)

    @property
    def last(self) -> int:
        return self.address + len(self.words) - 1

    @property
    def odd(self) -> int:
        """How unusual this way of writing numbers is: decides between readings that fit equally well."""
        wide = 1 if self.type in ("u64", "s64", "float64") else 0
        negative = 1 if self.type.startswith("s") else 0
        scale = 2 * (self.scale != 1) if _floating(self) else ODD_SCALE.get(self.scale, 2)
        return scale + ODD_ORDER[self.order] + wide + negative

    @property
    def plausible(self) -> bool:
        """Whether anybody would write that number: a signed one only below zero, a float neither tiny nor huge."""
        if self.type.startswith("s"):
            return -1e9 < self.number < 0
        if self.type.startswith("float"):
            return self.value == 0 or 1e-3 <= abs(self.number) < 1e10
        return self.number < 1e12

    def __str__(self) -> str:
        order = f" {self.order}" if len(self.words) > 1 or self.order != "ABCD" else ""
        return f"{self.type}{order}" + (f" x {self.scale}" if self.scale != 1 else "")


@dataclass(frozen=True, slots=True)
class Mark:
    """What a reading could be. `agrees` counts the relations to other registers that hold; 0: only its range fits."""

    quantity: str
    agrees: int
    why: str


@dataclass(frozen=True, slots=True)
class Marked:
    decoding: Decoding
    marks: tuple[Mark, ...] = ()
    by_map: str = ""
    """The quantity that the map in use reads here, in this very way."""
    against: tuple[str, ...] = ()
    """Why it cannot be what the map says."""
    usual: bool = False
    """Written as the device writes the numbers that are known."""
    name: str = ""
    """What it is in the set that was found without a map."""

    @property
    def agrees(self) -> int:
        return max((mark.agrees for mark in self.marks), default=0)

    @property
    def rank(self) -> tuple[bool, bool, int, bool, bool, int]:
        """The best reading first."""
        own = bool(self.by_map) and not self.against
        one = self.decoding
        return not own, not (self.agrees and self.usual), -self.agrees, not self.marks, not self.usual, one.odd


# One address -----------------------------------------------------------------------------------------------------


@cache
def _ways() -> tuple[tuple[Type, Order, Decimal], ...]:
    found = []
    for type, order in product(NUMBERS, ORDERS):
        if TYPES[type].words == 1 and order in ("CDAB", "DCBA"):
            continue  # one word has no order of words
        scales = FLOAT_SCALES if type.startswith("float") else SCALES
        found += [(type, order, scale) for scale in scales]
    return tuple(found)


def decodings(words: Words, address: int) -> tuple[Decoding, ...]:
    """Every way in which a number may begin at this address; not a number is no reading."""
    tried = (decoding(words, address, *way) for way in _ways())
    return tuple(one for one in tried if one is not None)


def decoding(words: Words, address: int, type: Type, order: Order, scale: Decimal) -> Decoding | None:
    places = range(address, address + (TYPES[type].words or 1))
    if not all(place in words for place in places):
        return None
    taken = tuple(words[place] for place in places)
    number = value(Register(quantity="model", type=type, scale=scale), order, taken)
    return Decoding(address, type, order, scale, taken, number) if isinstance(number, Decimal) else None


def text_at(words: Words, address: int, least: int = 3) -> str:
    """The text that begins here, where at least so many words are printable; a name or a serial number."""
    raw = b""
    while address in words:
        pair = words[address].to_bytes(2, "big")
        if any(byte and not 0x20 <= byte < 0x7F for byte in pair):
            break
        raw += pair
        address += 1
        if pair[1] == 0:
            break
    text = raw.rstrip(b"\0 ").decode("ascii", "replace")
    return text if len(text) >= 2 * least - 1 and _TEXT.fullmatch(text) else ""


_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/#:+()-]*")


# With a map ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The map as it stands, or with another word order, or some addresses beside: what it reads, and what fits."""

    order: Order | None
    shift: int
    values: Mapping[str, float | int]
    found: tuple[Relation, ...]

    @property
    def holds(self) -> int:
        """Relations that hold; those between several registers count twice."""
        return sum(2 if len(one.quantities) > 1 else 1 for one in self.found if one.holds)

    @property
    def broken(self) -> int:
        return sum(not one.holds for one in self.found)

    @property
    def score(self) -> int:
        return self.holds - 3 * self.broken

    @property
    def as_it_stands(self) -> bool:
        return self.order is None and self.shift == 0

    def __str__(self) -> str:
        parts = [f"in word order {self.order}"] if self.order else []
        if self.shift:
            many = "one address" if abs(self.shift) == 1 else f"{abs(self.shift)} addresses"
            parts.append(f"{many} {'higher' if self.shift > 0 else 'lower'}")
        return " and ".join(parts) or "as it stands"


def read_by(
    map: MeterMap,
    space: Space,
    *,
    factors: Mapping[str, Decimal] | None = None,
    order: Order | None = None,
    shift: int = 0,
) -> dict[str, float | int]:
    """What the map makes of these words, in the units we keep, without holding it to plausible ranges.

    Registers whose words are not all there, texts, and numbers that depend on them are left out.
    """
    known = dict(factors or {})
    values: dict[str, float | int] = {}
    for register in sorted(map.registers, key=lambda r: bool(r.times)):
        words = words_of(map, register, space, shift)
        if words is None or register.type == "text":
            continue
        exponent = exponent_of(map, register, space, shift)
        way = map.order_of(register) if order is None or width(register) == 1 else order
        result = value(register, way, words, exponent=exponent, factors=known)
        if isinstance(result, Decimal):
            values[register.quantity] = kept(register, result)
            known.setdefault(register.quantity, result)
    return values


def words_of(map: MeterMap, register: Register, space: Space, shift: int = 0) -> tuple[int, ...] | None:
    """The words of a register, where all of them were read; SunSpec offsets have no place of their own."""
    words = space.get(map.function_of(register), {})
    places = [place + shift for place in addresses(register)]
    if register.model is not None or not places or not all(place in words for place in places):
        return None
    return tuple(words[place] for place in places)


def exponent_of(map: MeterMap, register: Register, space: Space, shift: int = 0) -> int | None:
    """What the register's scale register holds, where it has one that was read."""
    if register.scale_register is None:
        return None
    words = space.get(map.function_of(register), {})
    raw = words.get(register.scale_register + shift)
    return None if raw is None else int.from_bytes(ordered((raw,), "ABCD"), "big", signed=True)


def hypotheses(
    map: MeterMap, space: Space, factors: Mapping[str, Decimal] | None = None
) -> tuple[Hypothesis, Hypothesis | None]:
    """The map as it stands, and the change to all of it that fits clearly better, if there is one."""
    orders: list[Order | None] = [None, *ORDERS]
    tried = []
    for order, shift in product(orders, SHIFTS):
        values = read_by(map, space, factors=factors, order=order, shift=shift)
        tried.append(Hypothesis(order, shift, values, relations(values)))
    own = tried[0]
    best = max(tried, key=lambda one: (one.score, one.as_it_stands, one.order is None, -abs(one.shift)))
    clearly = best.holds >= 4 and best.score >= own.score + 4 and best.broken <= own.broken
    # The neighbours' neighbours of a right map fit by chance at times, never half as much again as it does itself.
    doubtful = own.broken or 2 * best.holds >= 3 * own.holds
    return own, best if clearly and best.holds > own.holds and doubtful else None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a map, as far as these words tell: one register, or all of it, or nothing."""

    own: Hypothesis
    better: Hypothesis | None = None
    fixes: tuple[Correction, ...] = ()


def diagnose(map: MeterMap, space: Space, factors: Mapping[str, Decimal] | None = None) -> Diagnosis:
    own, better = hypotheses(map, space, factors)
    fixes = corrections(map, space, own)
    # A mistake in one register is likelier than one in all that leaves only this register's relations broken.
    return Diagnosis(own, None if fixes else better, fixes)


def corrected(map: MeterMap, better: Hypothesis) -> MeterMap:
    """The map as the hypothesis has it."""

    def moved(register: Register) -> Register:
        order = better.order if better.order and width(register) > 1 and register.type != "text" else register.order
        return replace(
            register,
            order=order,
            address=None if register.address is None else register.address + better.shift,
            addresses=tuple(place + better.shift for place in register.addresses),
            scale_register=None if register.scale_register is None else register.scale_register + better.shift,
        )

    return replace(map, registers=tuple(moved(register) for register in map.registers))


@dataclass(frozen=True, slots=True)
class Correction:
    """One register of the map read in another way, with which everything that can be checked holds."""

    register: Register
    decoding: Decoding

    def __str__(self) -> str:
        return f"{self.register.quantity} as {self.decoding} at 0x{self.decoding.address:04X}"


def corrections(map: MeterMap, space: Space, own: Hypothesis) -> tuple[Correction, ...]:
    """For each register that alone could explain what does not fit, the smallest change to it that sets all right.

    Numbers that a factor multiplies, or whose words lie apart, are left to the person.
    """
    broken = {name for one in own.found if not one.holds for name in one.quantities}
    found: list[tuple[float, Correction]] = []
    for register in map.registers:
        words = space.get(map.function_of(register), {})
        name, address = register.quantity, register.address
        if name not in broken or address is None or register.model is not None or register.times:
            continue
        kept_factor = UNITS[register.unit][1]
        counter = name.startswith("energy")
        tried: list[tuple[tuple[float, ...], Correction]] = []
        for shift in SHIFTS:
            for one in decodings(words, address + shift):
                number = one.value * kept_factor
                if not one.plausible or one.number == 0:
                    continue
                values = {**own.values, name: int(number) if counter else float(number)}
                after = relations(values)
                if len(after) >= len(own.found) and all(relation.holds for relation in after):
                    off = sum(abs(r.shown - r.expected) / abs(r.expected) for r in after if name in r.quantities)
                    changes = (shift != 0) + (one.type != register.type) + (one.order != map.order_of(register))
                    changes += one.scale != register.scale
                    tried.append(((changes, one.odd, abs(shift), off), Correction(register, one)))
        if tried:
            rank, best = min(tried, key=lambda pair: pair[0])
            found.append((rank[0], best))
    return tuple(best for _, best in sorted(found, key=lambda pair: pair[0]))


# Marks -----------------------------------------------------------------------------------------------------------

PHASES = ("l1", "l2", "l3")
_ROLES = (
    "frequency",
    *(f"voltage_{phase}n" for phase in PHASES),
    *("voltage_l1l2", "voltage_l2l3", "voltage_l3l1"),
    *(f"current_{phase}" for phase in PHASES),
    *(f"active_power_{phase}" for phase in PHASES),
    "active_power",
    *(f"apparent_power_{phase}" for phase in PHASES),
    "apparent_power",
    *(f"power_factor_{phase}" for phase in PHASES),
    "power_factor",
    *("energy_import", "energy_export", "energy_total"),
)
# What a number has to be to be tried in a role at all; physics decides.
_BOUNDS = {
    "frequency": (45.0, 65.0),
    "voltage_l": PHASE_VOLTAGE,
    "voltage_ll": (140.0, 520.0),
    "current": (0.02, 20_000.0),
    "active_power": (50.0, 1e8),
    "apparent_power": (50.0, 1e8),
    "power_factor": (0.05, 1.0),
    "energy": (1000.0, 1e13),
}
_BY_RANGE = {"frequency": "lies where a grid's frequency does", "voltage_l": "lies where a voltage to neutral does"}


def _kind(role: str) -> str:
    if role.startswith("voltage"):
        return "voltage_l" if role.endswith("n") else "voltage_ll"
    return next(kind for kind in _BOUNDS if role.startswith(kind))


@dataclass(frozen=True, slots=True)
class Style:
    """How a device writes its numbers, by those that are known."""

    floating: bool
    orders: frozenset[Order]
    scales: frozenset[tuple[str, Decimal]] = frozenset()
    """Unit and scale of what is known."""


def style_of(some: Mapping[str, Decoding]) -> Style | None:
    """Of decodings by the quantity they hold; None where nothing is known."""
    if not some:
        return None
    floats = [_floating(one) for one in some.values()]
    wide = {one.order for one in some.values() if len(one.words) > 1}
    order: frozenset[Order] = frozenset(wide or {one.order for one in some.values()})
    scales = {(_unit(name), one.scale) for name, one in some.items()}
    return Style(2 * sum(floats) > len(floats), order, frozenset(scales))


def style_by(map: MeterMap, order: Order | None = None) -> Style:
    """Of a map's polled instants, with another word order where that has proved right."""
    instants = [r for r in map.registers if r.poll and (q := find(r.quantity)) is not None and q.kind == "instant"]
    floats = [r.type.startswith("float") for r in instants]
    orders: frozenset[Order] = frozenset({order} if order else {map.order_of(r) for r in instants if width(r) > 1})
    scales = frozenset((UNITS[r.unit][0], r.scale * UNITS[r.unit][1]) for r in instants)
    return Style(2 * sum(floats) > len(floats), orders or frozenset({map.order}), scales)


def _unit(name: str) -> str:
    quantity = find(name)
    return quantity.unit if quantity else ""


NEAR = 0.03
"""Share within which a reading agrees with others when it is written as the device's other numbers are."""
EXACT = 0.005
"""The same for any other way of writing: of hundreds of readings some come near by chance."""


class Marker:
    """Marks readings by what else is known of the device; made once for many readings."""

    def __init__(self, known: Mapping[str, float | int], style: Style | None = None) -> None:
        self._style = style
        self._company: dict[str, dict[str, float | int]] = {}
        for role in _ROLES:
            phase = role[-2:] if role.endswith(PHASES) else role[-3:-1] if role.endswith("n") else ""
            self._company[role] = {
                name: number
                for name, number in known.items()
                if name != role and find(name) is not None and (not phase or _meets(role, name, phase))
            }

    def usual(self, one: Decoding) -> bool:
        """Whether the device writes its numbers so, as far as is known."""
        if self._style is None or _floating(one) != self._style.floating:
            return False
        if len(one.words) == 1:
            return one.order == ("BADC" if self._style.orders & {"BADC", "DCBA"} else "ABCD")
        return one.order in self._style.orders

    def marks(self, one: Decoding, first: str = "") -> tuple[Mark, ...]:
        """The roles that this number could have: `first`, then those that other registers agree with."""
        found = [mark for role in _ROLES if (mark := self._mark(role, one)) is not None]
        agreeing = [mark for mark in found if mark.agrees]
        return tuple(sorted(agreeing or found, key=lambda mark: (mark.quantity != first, -mark.agrees)))

    def against(self, role: str, number: float) -> tuple[str, ...]:
        """The relations that break where this quantity has that number."""
        company = self._company.get(role)
        if company is None:
            return ()
        found = relations({**company, role: round(number) if role.startswith("energy") else number})
        return tuple(r.text for r in found if role in r.quantities and not r.holds)

    def _mark(self, role: str, one: Decoding) -> Mark | None:
        kind, number = _kind(role), one.number
        low, high = _BOUNDS[kind]
        if not low <= abs(number) <= high or (number < 0 and kind in ("frequency", "voltage_l", "voltage_ll")):
            return None
        if kind == "energy":
            number = round(number)
        found = [r for r in relations({**self._company[role], role: number}) if role in r.quantities]
        others = [r for r in found if len(r.quantities) > 1]
        if any(not r.holds for r in others):
            return None
        if kind == "energy" and (number < 0 or any(number < 0.02 * abs(r.expected) for r in others)):
            return None  # next to nothing added to a large counter always fits
        share = NEAR if self._habitual(role, one) else EXACT if one.odd == 0 else 0.0
        telling = [r for r in others if abs(r.shown - r.expected) <= share * abs(r.expected)]
        if telling:
            return Mark(role, len(telling), "; ".join(r.text for r in telling))
        if kind in _BY_RANGE and (kind == "frequency" or role == "voltage_l1n"):
            return Mark(role, 0, f"{number:.6g} {_BY_RANGE[kind]}")
        return None

    def _habitual(self, role: str, one: Decoding) -> bool:
        """Written as the device writes other numbers, at a scale that is known of it or usual for the unit."""
        if not self.usual(one) or self._style is None:
            return False
        unit = _unit(role)
        if (unit, one.scale) in self._style.scales:
            return True
        like = {"VA": "W", "1": "Hz", "Wh": "W"}.get(unit, unit)
        return not any(known == unit for known, _ in self._style.scales) and _unusual(like, one) <= 0.3


def _meets(role: str, name: str, phase: str) -> bool:
    """Whether another quantity can share a relation with a role of one phase."""
    return (
        phase in name
        or name in (role.rsplit("_", 1)[0], "energy_import", "energy_export", "energy_total")
        or (name.rsplit("_", 1)[0] == role.rsplit("_", 1)[0])
    )


def readings_at(
    words: Words,
    address: int,
    marker: Marker,
    *,
    map: MeterMap | None = None,
    function: Function = "input",
    found: PhaseSet | None = None,
) -> tuple[Marked, ...]:
    """All readings of one address with their marks, the best first; what the map says here is among them.

    `found`: the set that the marker knows of, where no map told.
    """
    own, name = _by_map(words, address, map, function)
    names = {one: role for role, one in found.members.items()} if found is not None else {}
    read = []
    # The same words may give the same number in several ways, as signed and unsigned ones do: that is one reading.
    twins = [one for one in decodings(words, address) if own is not None and _twin(one, own)]
    if own is not None:
        against = marker.against(name, own.number)
        marks = [mark for one in (own, *twins) for mark in marker.marks(one, name) if mark.quantity == name]
        best = tuple(sorted(marks, key=lambda mark: -mark.agrees)[:1])
        read.append(Marked(own, () if against else best, name, against, True))
    for one in decodings(words, address):
        if one not in twins:
            role = names.get(one, "")
            marks_of = marker.marks(one, role) if one.plausible or role else ()
            read.append(Marked(one, marks_of, usual=marker.usual(one), name=role))
    return tuple(sorted(read, key=lambda one: (not one.name, *one.rank)))


def _twin(one: Decoding, other: Decoding) -> bool:
    return one.words == other.words and one.number == other.number


def _by_map(words: Words, address: int, map: MeterMap | None, function: Function) -> tuple[Decoding | None, str]:
    """How the map reads what begins here, in the unit we keep; where it is a number of its own."""
    for register in map.registers if map is not None else ():
        single = register.model is None and not register.addresses and not register.times
        if map is not None and register.address == address and map.function_of(register) == function and single:
            type = ACCUMULATORS.get(register.type, register.type)
            exponent = exponent_of(map, register, {function: words}) if register.scale_register is not None else 0
            if type not in NUMBERS or exponent is None or not -10 <= exponent <= 10:
                return None, register.quantity
            scale = (register.scale.scaleb(exponent) * UNITS[register.unit][1]).normalize()
            scale = Decimal(f"{scale:f}")
            return decoding(words, address, type, map.order_of(register), scale), register.quantity
    return None, ""


# Without a map ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PhaseSet:
    """Registers that behave like one grid."""

    members: Mapping[str, Decoding] = field(default_factory=dict)
    score: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        return {name: one.number for name, one in self.members.items()}


Triple = tuple[Decoding, Decoding, Decoding]

# How unusual a scale is for whole numbers of one and of two words: volts in tenths, amperes in hundredths, watts as
# they are. Current and power could both be ten times as large and still fit each other, so habit has to decide.
_HABITS: dict[str, dict[int, dict[str, float]]] = {
    "V": {1: {"0.1": 0, "0.01": 0.3, "1": 0.5, "0.001": 0.8}, 2: {"0.1": 0, "0.01": 0.1, "0.001": 0.3, "1": 0.5}},
    "A": {1: {"0.1": 0, "0.01": 0.1, "0.001": 0.5, "1": 1}, 2: {"0.001": 0, "0.01": 0.2, "0.1": 0.3, "1": 1}},
    "W": {1: {"1": 0, "0.1": 0.2, "10": 0.4, "100": 1}, 2: {"1": 0, "0.1": 0, "0.01": 0.2, "0.001": 0.6, "10": 0.6}},
    "Hz": {1: {"0.01": 0, "0.1": 0.2, "0.001": 0.3}, 2: {"0.01": 0, "0.1": 0.1, "0.001": 0.2}},
}


def _unusual(unit: str, one: Decoding) -> float:
    order = ODD_ORDER[one.order] / 10
    if one.type.startswith("float"):
        return order + (0 if one.scale == 1 else 0.3 if one.scale in FLOAT_SCALES[:3] else 0.4)
    return order + _HABITS[unit][min(len(one.words), 2)].get(str(one.scale), 2) + 0.1 * (len(one.words) > 2)


def _floating(one: Decoding) -> bool:
    return one.type.startswith("float")


class _Finder:
    """Decodings of many addresses, each made once."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self._made: dict[tuple[int, Type, Order, Decimal], Decoding | None] = {}
        self._triples: dict[tuple[int | None, Order, bool], list[Triple]] = {}

    def at(self, address: int, type: Type, order: Order, scale: Decimal) -> Decoding | None:
        key = address, type, order, scale
        if key not in self._made:
            self._made[key] = decoding(self.words, address, type, order, scale)
        return self._made[key]

    def all(self, orders: Collection[Order], floating: bool) -> Iterator[Decoding]:
        for type, order, scale in _ways():
            if order in orders and type.startswith("float") == floating and "64" not in type:
                for address in self.words:
                    one = self.at(address, type, order, scale)
                    if one is not None:
                        yield one

    def triples(self, strides: Collection[int | None], orders: Collection[Order], floating: bool) -> Iterator[Triple]:
        """Three numbers written alike, at equal distances; None: side by side."""
        for stride, order in product(strides, orders):
            key = stride, order, floating
            if key not in self._triples:
                self._triples[key] = list(self._found(stride, order, floating))
            yield from self._triples[key]

    def _found(self, stride: int | None, order: Order, floating: bool) -> Iterator[Triple]:
        for first in self.all((order,), floating):
            step = len(first.words) if stride is None else stride
            if step < len(first.words) or (stride is not None and step == len(first.words)):
                continue  # these are side by side
            second, third = (self.at(first.address + n * step, first.type, first.order, first.scale) for n in (1, 2))
            if second is not None and third is not None:
                yield first, second, third


def phase_set(words: Words) -> PhaseSet:
    """The set of registers that most resembles the phases of one grid; empty where nothing does.

    What belongs together stands within WINDOW addresses on every device we know of.
    """
    finders = [_Finder(window) for window in _windows(words)]
    pairs: tuple[tuple[Order, ...], ...] = (("ABCD", "CDAB"), ("BADC", "DCBA"))
    best = PhaseSet()
    # The rarer the numbers that fit by chance, the earlier; swapped bytes are rare, and looked for last.
    for orders, floating in product(pairs, (True, False)):
        if best.score >= (ENOUGH if floating else TELLING):
            break
        if orders != pairs[0] and not floating and len(finders) > 1:
            break  # among so many whole numbers some would fit for certain
        for finder in finders:
            best = max(best, _found_by(finder, orders, floating), key=lambda one: one.score)
    return best if best.score >= CREDIBLE else PhaseSet()


def _windows(words: Words) -> Iterator[Words]:
    places, start = sorted(words), 0
    while start < len(places):
        window = [place for place in places[start:] if place < places[start] + WINDOW]
        yield {place: words[place] for place in window}
        if window[-1] == places[-1]:
            return
        start = next(n for n, place in enumerate(places) if place >= places[start] + WINDOW // 2)


def _found_by(finder: _Finder, orders: tuple[Order, ...], floating: bool) -> PhaseSet:
    voltages = [
        three
        for three in finder.triples((None, *range(2, 13)), orders, floating)
        if all(PHASE_VOLTAGE[0] <= one.number <= PHASE_VOLTAGE[1] for one in three)
        and max(one.number for one in three) <= 1.08 * min(one.number for one in three)
    ]
    best = PhaseSet()
    for three in _unlike(sorted(voltages, key=_voltage_rank))[:MOST_SETS]:
        best = max(best, _around(finder, three), key=lambda one: one.score)
    return best if best.score >= ENOUGH else max(best, _single(finder, orders, floating), key=lambda one: one.score)


def _voltage_rank(three: Triple) -> tuple[float, int, int]:
    first, second, _ = three
    unusual = _unusual("V", first) - 0.5 * _floating(first) - all(_grid(one) for one in three)
    return unusual, second.address - first.last, first.address


def _grid(one: Decoding) -> bool:
    return any(low <= one.number <= high for low, high in GRIDS)


def _unlike(triples: Iterable[Triple]) -> list[Triple]:
    """Without those that show the same numbers from other words: a u32 whose high word is zero is a u16 too."""
    seen: set[tuple[int, Decimal]] = set()
    kept_ones = []
    for three in triples:
        key = three[0].last, three[0].value
        if key not in seen:
            seen.add(key)
            kept_ones.append(three)
    return kept_ones


def _company(one: Decoding) -> tuple[Order, ...]:
    """Orders of other numbers of the same device: one order for all, and one word tells only of swapped bytes."""
    if one.order in ("BADC", "DCBA"):
        return ("BADC", "DCBA") if len(one.words) == 1 else tuple(dict.fromkeys((one.order, "BADC")))
    return ("ABCD", "CDAB") if len(one.words) == 1 else tuple(dict.fromkeys((one.order, "ABCD")))


def _around(finder: _Finder, volts: Triple) -> PhaseSet:
    """Currents and powers that go with three voltages."""
    first, second, _ = volts
    floating = _floating(first)
    orders = (first.order,) if floating else _company(first)
    strides: tuple[int | None, ...] = (None, second.address - first.address)
    taken = _places(volts)
    score = 1 - _unusual("V", first) + 0.5 * floating + 0.7 * all(_grid(one) for one in volts)
    members = dict(zip(("voltage_l1n", "voltage_l2n", "voltage_l3n"), volts, strict=True))
    frequency = _frequency(finder, orders, floating, first)
    if frequency is not None:
        members["frequency"] = frequency
        score += 1 - _unusual("Hz", frequency)
    best = base = PhaseSet(members, score)
    powers: dict[int, list[Triple]] = {}
    for three in finder.triples(strides, orders, floating):
        if 100 <= sum(abs(one.number) for one in three) <= 1e8 and not _places(three) & taken:
            powers.setdefault(_bucket(sum(abs(one.number) for one in three)), []).append(three)
    currents = []
    for amperes in finder.triples(strides, orders, floating):
        sizes = [abs(u.number * i.number) for u, i in zip(volts, amperes, strict=True)]
        if 300 <= sum(sizes) <= 3e6 and sorted(sizes)[1] >= 50 and not _places(amperes) & taken:
            currents.append((amperes, sizes))
    for amperes, sizes in currents:
        used = taken | _places(amperes)
        for bucket in range(_bucket(sum(sizes) * 0.5), _bucket(sum(sizes) * 1.08) + 1):
            for watts in powers.get(bucket, ()):
                off = _mismatch(sizes, watts)
                if off is None or _places(watts) & used:
                    continue
                more = 3 - _unusual("A", amperes[0]) - _unusual("W", watts[0]) - _apart(volts, amperes, watts) / 100
                if base.score + more - off + 2 <= best.score:
                    continue
                total = _total(finder, watts, orders, used | _places(watts))
                exact = 0.0 if total is None else 2.0
                if base.score + more - off + exact > best.score:
                    found = dict(members)
                    found |= {f"current_{phase}": one for phase, one in zip(PHASES, amperes, strict=True)}
                    found |= {f"active_power_{phase}": one for phase, one in zip(PHASES, watts, strict=True)}
                    if total is not None:
                        found["active_power"] = total
                    best = PhaseSet(found, base.score + more - off + exact)
    return best if "active_power_l1" in best.members else _with_total(finder, base, currents, orders, floating)


def _with_total(
    finder: _Finder,
    base: PhaseSet,
    currents: Collection[tuple[Triple, list[float]]],
    orders: Collection[Order],
    floating: bool,
) -> PhaseSet:
    """Currents and the power of all phases, where no power of each is found."""
    best = base
    powers: dict[int, list[Decoding]] = {}
    for one in finder.all(orders, floating):
        if 100 <= abs(one.number) <= 1e8:
            powers.setdefault(_bucket(abs(one.number)), []).append(one)
    volts = [base.members[f"voltage_{phase}n"] for phase in PHASES]
    for amperes, sizes in currents:
        if max(one.number for one in amperes) > 3 * min(abs(one.number) for one in amperes):
            continue  # what makes power for three phases feeds them evenly
        size = sum(sizes)
        for bucket in range(_bucket(size * 0.85), _bucket(size * 1.03) + 1):
            for power in powers.get(bucket, ()):
                off = abs(abs(power.number) / size - 1)
                apart = _apart(volts, amperes) + min(abs(power.address - volts[0].address), 50)
                score = base.score + 2 - _unusual("A", amperes[0]) - _unusual("W", power) - 3 * off - apart / 100
                if off <= 0.15 and score > best.score and not _places((power,)) & _places((*volts, *amperes)):
                    found = dict(base.members)
                    found |= {f"current_{phase}": one for phase, one in zip(PHASES, amperes, strict=True)}
                    best = PhaseSet({**found, "active_power": power}, score)
    return best


def _mismatch(sizes: Collection[float], watts: Triple) -> float | None:
    """How far three powers are from U x I of their phases; None where they do not belong together."""
    ratios = []
    for size, power in zip(sizes, watts, strict=True):
        if size >= 50:
            ratios.append(abs(power.number) / size)
        elif abs(power.number) > size + 50:
            return None
    if min(ratios) < 0.5 or max(ratios) > 1.05 or max(ratios) > 1.2 * min(ratios):
        return None
    return sum(abs(1 - ratio) for ratio in ratios) / len(ratios)


def _places(some: Iterable[Decoding]) -> frozenset[int]:
    return frozenset(place for one in some for place in range(one.address, one.last + 1))


def _bucket(size: float) -> int:
    return math.floor(math.log(max(size, 1e-9), 1.3))


def _apart(*groups: Iterable[Decoding]) -> int:
    starts = [min(one.address for one in group) for group in groups]
    return min(max(starts) - min(starts), 100)


def _total(finder: _Finder, watts: Triple, orders: Collection[Order], used: Collection[int]) -> Decoding | None:
    """A register that holds the sum of three powers, written as they are or wider."""
    total = sum(one.number for one in watts)
    if abs(total) < 200:
        return None
    first = watts[0]
    wider: tuple[Type, ...] = () if _floating(first) else ("s32", "u32")
    found = []
    for type, order in product(dict.fromkeys((first.type, *wider)), orders):
        for address in finder.words:
            one = finder.at(address, type, order, first.scale)
            if one is not None and _exact(one, watts) and not _places((one,)) & set(used):
                found.append(one)
    return min(found, key=lambda one: (one.odd, abs(one.address - first.address)), default=None)


def _exact(total: Decoding, watts: Triple) -> bool:
    """Whether the sum fits to the digit: high words with the low words of neighbours come near, not so near."""
    sum_of = sum(one.number for one in watts)
    return abs(total.number - sum_of) <= 0.0005 * abs(sum_of) + 3 * float(total.scale) * (not _floating(total))


def _frequency(finder: _Finder, orders: Collection[Order], floating: bool, near: Decoding) -> Decoding | None:
    """A number within one percent of 50 or 60, written the most usual way, beside the voltage at best."""
    found = [
        one
        for one in finder.all(orders, floating)
        if any(abs(one.number - grid) <= grid / 100 for grid in (50, 60)) and not _overlap(one, near)
    ]
    # 50 as a whole number may be anything: a setting, a rating
    return min(
        found,
        key=lambda one: (
            not floating and one.scale == 1,
            round(_unusual("Hz", one), 1),
            -len(one.words),
            abs(one.address - near.address),
        ),
        default=None,
    )


def _single(finder: _Finder, orders: Collection[Order], floating: bool) -> PhaseSet:
    """One phase: a voltage, a current and a power near their product, written alike and not far apart."""
    best = PhaseSet()
    for order in orders:
        every = [one for one in finder.all((order,), floating) if one.plausible and one.value]
        volts = [
            one for one in every if PHASE_VOLTAGE[0] <= one.number <= PHASE_VOLTAGE[1] and _unusual("V", one) <= 0.5
        ]
        amperes = [one for one in every if 0.3 <= abs(one.number) <= 500 and _unusual("A", one) <= 0.5]
        powers: dict[int, list[Decoding]] = {}
        for one in every:
            if abs(one.number) >= 50 and _unusual("W", one) <= 0.6:
                powers.setdefault(_bucket(abs(one.number)), []).append(one)
        for u in volts:
            frequency = _frequency(finder, (order,), floating, u)
            if frequency is None:
                continue
            for i in amperes:
                size = abs(u.number * i.number)
                if size < 100 or abs(i.address - u.address) > 12 or _overlap(u, i) or _overlap(i, frequency):
                    continue
                for bucket in range(_bucket(size * 0.85), _bucket(size * 1.03) + 1):
                    for p in powers.get(bucket, ()):
                        off = abs(abs(p.number) / size - 1)
                        if off > 0.15 or abs(p.address - u.address) > 16:
                            continue
                        if _overlap(p, u) or _overlap(p, i) or _overlap(p, frequency):
                            continue
                        score = 3.0 + 0.5 * floating + 0.7 * _grid(u) - off - _apart((u,), (i,), (p,)) / 30
                        score -= _unusual("V", u) + _unusual("A", i) + _unusual("W", p) + _unusual("Hz", frequency)
                        score -= 0.1 * (p.address < u.address) + 0.1 * (i.address < u.address)
                        if score > best.score:
                            found = {"voltage_l1n": u, "current_l1": i, "active_power": p, "frequency": frequency}
                            best = PhaseSet(found, score)
    return best


def _overlap(one: Decoding, other: Decoding) -> bool:
    return one.address <= other.last and other.address <= one.last

"""From raw register words to values. Energy leaves as whole Wh, floored, from what the display shows."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal

from heliograph.core.quantity import ENERGY_UNITS, UNITS, find
from heliograph.core.registers import Order, Register, Type

Words = Sequence[int]


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no value here; never to be taken for zero."""

    reason: str


@dataclass(frozen=True, slots=True)
class Kind:
    """How one register type is read. `words` is None where the map says how many."""

    words: int | None
    number: Callable[[bytes], Decimal | int | Absent]
    absent: frozenset[int] = field(default_factory=frozenset)


_FLOAT32 = struct.Struct(">f")


def shortest_float32(value: float) -> Decimal:
    """The shortest decimal that is the same float32: what the device's display shows.

    Any number of up to six digits survives float32, so it is found at the first try; nine digits always identify
    a float32 (IEEE 754). Below 1e-37 a digit too many may be shown: that is far below every device's step.
    """
    packed = _FLOAT32.pack(value)
    for spec in (".6g", ".7g", ".8g"):
        text = format(value, spec)
        if _FLOAT32.pack(float(text)) == packed:
            return Decimal(text)
    return Decimal(format(value, ".9g"))


def _float32(raw: bytes) -> Decimal | Absent:
    value: float = _FLOAT32.unpack(raw)[0]
    return shortest_float32(value) if math.isfinite(value) else Absent("not a number")


def _float64(raw: bytes) -> Decimal | Absent:
    value: float = struct.unpack(">d", raw)[0]
    return Decimal(repr(value)) if math.isfinite(value) else Absent("not a number")


def _unsigned(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)


def _bcd(raw: bytes) -> int | Absent:
    digits = raw.hex()
    return int(digits) if digits.isdecimal() else Absent(f"not BCD: 0x{digits}")


def _text(_: bytes) -> Absent:
    return Absent("a text is not a number")


# The not-implemented values are those of the SunSpec information model, for the types only SunSpec has.
TYPES: dict[Type, Kind] = {
    "u16": Kind(1, _unsigned),
    "s16": Kind(1, _signed),
    "u32": Kind(2, _unsigned),
    "s32": Kind(2, _signed),
    "u64": Kind(4, _unsigned),
    "s64": Kind(4, _signed),
    "float32": Kind(2, _float32),
    "float64": Kind(4, _float64),
    "acc32": Kind(2, _unsigned, frozenset({0})),
    "acc64": Kind(4, _unsigned, frozenset({0})),
    "enum16": Kind(1, _unsigned, frozenset({0xFFFF})),
    "enum32": Kind(2, _unsigned, frozenset({0xFFFF_FFFF})),
    "bitfield16": Kind(1, _unsigned, frozenset({0xFFFF})),
    "bitfield32": Kind(2, _unsigned, frozenset({0xFFFF_FFFF})),
    "sunssf": Kind(1, _signed, frozenset({0x8000})),
    "bcd": Kind(None, _bcd),
    "text": Kind(None, _text),
}


def width(register: Register) -> int:
    """Registers the value occupies."""
    fixed = TYPES[register.type].words
    return fixed if fixed is not None else (register.words or 1)


def addresses(register: Register) -> tuple[int, ...]:
    """Every address the value occupies, in the order its words are joined."""
    if register.addresses:
        return register.addresses
    if register.address is None:
        return ()
    return tuple(range(register.address, register.address + width(register)))


def ordered(words: Words, order: Order) -> bytes:
    """The words as one big-endian byte string."""
    if order in ("CDAB", "DCBA"):
        words = tuple(reversed(words))
    pairs = (word.to_bytes(2, "big") for word in words)
    if order in ("BADC", "DCBA"):
        pairs = (pair[::-1] for pair in pairs)
    return b"".join(pairs)


def value(
    register: Register,
    order: Order,
    words: Words,
    *,
    exponent: int | None = None,
    factors: Mapping[str, Decimal] | None = None,
) -> Decimal | str | Absent:
    """The value in the register's own unit.

    `exponent` is what the scale register holds, `factors` the values of the quantities in `register.times`.
    """
    kind = TYPES[register.type]
    if register.type == "text":  # read in the order of the page, whatever the order of the map's numbers
        raw = ordered(words, register.order or "ABCD")
        text = raw.strip(b"\0\xff ").decode("ascii", "replace").strip()
        return text or Absent("empty text")
    raw = ordered(words, order)
    bits = _unsigned(raw)
    if bits in kind.absent or bits in register.absent:
        return Absent(f"0x{bits:0{len(raw) * 2}X} means no value")
    if bits == 0 and register.zero_is_absent:
        return Absent("a zero here is not a reading")
    number = kind.number(raw)
    if isinstance(number, Absent):
        return number
    result = Decimal(number) * register.scale
    if register.scale_register is not None:
        if exponent is None or not -10 <= exponent <= 10:
            return Absent("the scale register holds no value between -10 and 10")
        result = result.scaleb(exponent)
    for name in register.times:
        factor = (factors or {}).get(name)
        if factor is None or factor <= 0:
            return Absent(f"{name} is not known")
        result *= factor
    if register.range is not None and not register.range[0] <= result <= register.range[1]:
        return Absent(f"{result} {register.unit} is outside {register.range[0]} to {register.range[1]}")
    return result


def kept(register: Register, result: Decimal) -> int | float:
    """The value in the unit we keep: whole Wh (varh, VAh), floored; a float for everything else."""
    unit, factor = UNITS[register.unit]
    if unit in ENERGY_UNITS:
        return int((result * factor).to_integral_value(ROUND_FLOOR))
    return float(result * factor)


def reading(
    register: Register,
    order: Order,
    words: Words,
    *,
    exponent: int | None = None,
    factors: Mapping[str, Decimal] | None = None,
) -> int | float | str | Absent:
    """`value` and `kept` together, with the quantity's own plausible range applied."""
    result = value(register, order, words, exponent=exponent, factors=factors)
    if isinstance(result, Decimal):
        number = kept(register, result)
        quantity = find(register.quantity)
        if quantity is not None and (
            (quantity.low is not None and number < quantity.low)
            or (quantity.high is not None and number > quantity.high)
        ):
            return Absent(f"{number:g} {quantity.unit} is not a plausible {register.quantity}")
        return number
    return result

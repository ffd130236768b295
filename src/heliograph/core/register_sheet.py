"""A table of registers as people have it, from a manual or another program, as registers of a map.

Names of columns, types, units and quantities are taken in the ways in which they are usually written; what is taken
for what is told. What could mean two things is not guessed: an address of 30073 may be meant as it is, or as a manual
counts, and only a person knows.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Literal

from heliograph.core.decode import TYPES, width
from heliograph.core.quantity import UNITS, find, names
from heliograph.core.registers import Function, Order, Register, Type

Counting = Literal["auto", "wire", "manual"]
"""How addresses are written: as on the wire, or as manuals number them (30001, 40001); auto asks where both may be."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "address": (
        *("address", "addr", "addressdec", "addresshex", "register", "reg", "registeraddress", "modbusaddress"),
        *("startaddress", "start", "offset", "hexaddress", "hex", "dec", "registernumber", "parameternumber"),
    ),
    "quantity": ("quantity", "measurement", "name", "parameter", "description", "variable", "signal", "signalname"),
    "type": ("type", "datatype", "format", "dataformat"),
    "unit": ("unit", "units"),
    "scale": ("scale", "scalefactor", "factor", "multiplier", "resolution"),
    "divisor": ("divisor", "gain", "div", "divideby"),
    "function": ("function", "functioncode", "fc", "registertype", "table", "area", "space"),
    "order": ("order", "wordorder", "byteorder", "endian", "endianness"),
    "words": ("words", "length", "count", "size", "registers", "numberofregisters", "noofregisters", "regs"),
    "monotonic": ("monotonic",),
    "absent": ("absent", "sentinel", "invalid"),
    "poll": ("poll",),
    "note": ("note", "notes", "remark", "remarks", "comment", "comments"),
}

_TYPES: dict[str, Type] = {
    **dict.fromkeys(("u16", "uint16", "unsigned16", "word", "uint", "ushort", "unsignedint16", "unsigned"), "u16"),
    **dict.fromkeys(("s16", "int16", "i16", "signed16", "int", "short", "integer", "signedint16", "signed"), "s16"),
    **dict.fromkeys(("u32", "uint32", "unsigned32", "dword", "ulong", "unsignedint32", "unsignedlong"), "u32"),
    **dict.fromkeys(("s32", "int32", "i32", "signed32", "long", "signedint32", "dint"), "s32"),
    **dict.fromkeys(("u64", "uint64", "unsigned64", "qword", "unsignedint64"), "u64"),
    **dict.fromkeys(("s64", "int64", "i64", "signed64", "signedint64"), "s64"),
    **dict.fromkeys(("float32", "float", "f32", "real", "single", "ieee754", "float4", "floatingpoint"), "float32"),
    **dict.fromkeys(("float64", "double", "f64", "lreal"), "float64"),
    **dict.fromkeys(("text", "string", "str", "ascii", "char"), "text"),
    **{name: name for name in ("acc32", "acc64", "enum16", "enum32", "bitfield16", "bitfield32", "sunssf", "bcd")},
}
_ORDERS: dict[str, Order | None] = {
    **dict.fromkeys(("", "na", "-", "none"), None),
    **dict.fromkeys(("abcd", "big", "bigendian", "be", "msw", "highfirst", "highwordfirst", "1234"), "ABCD"),
    **dict.fromkeys(("cdab", "little", "littleendian", "le", "lsw", "lowfirst", "lowwordfirst", "swapped"), "CDAB"),
    **dict.fromkeys(("badc", "byteswap", "byteswapped"), "BADC"),
    **dict.fromkeys(("dcba", "reversed"), "DCBA"),
}
_FUNCTIONS: dict[str, Function] = {
    **dict.fromkeys(
        ("3", "03", "0x03", "fc3", "fc03", "holding", "holdingregister", "holdingregisters", "4x"), "holding"
    ),
    **dict.fromkeys(("4", "04", "0x04", "fc4", "fc04", "input", "inputregister", "inputregisters", "3x"), "input"),
}
_UNITS = {"°c": "degC", "c": "degC", "°": "deg", "volt": "V", "volts": "V", "ampere": "A", "amps": "A", "amp": "A"}
_UNITS |= {
    "watt": "W",
    "watts": "W",
    "hertz": "Hz",
    "-": "",
    "na": "",
    "none": "",
    "n/a": "",
    "hours": "h",
    "mohm": "MOhm",
}
_BY_CASE = {unit.casefold(): unit for unit in UNITS}

POLLED = re.compile(
    r"voltage_(l[123]n|l1l2|l2l3|l3l1)|current(_l[123])?|active_power(_l[123])?|apparent_power|reactive_power"
    r"|power_factor(_l[123])?|frequency|energy_(import|export|total|production)|dc_power"
)
"""What a new map reads in every round; everything else on demand."""
_MAY_FALL = re.compile(r".*_(today|hour|day|month|year|resettable|partial)|energy_(net|total).*")


@dataclass(frozen=True, slots=True)
class Fault:
    line: int
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    registers: tuple[Register, ...]
    """With their own function and order, as the rows say."""
    written: Mapping[str, str]
    """How a manual numbers the register, by quantity, where that is not the address on the wire."""
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]
    """What was taken for what, and what was not used."""

    @property
    def function(self) -> Function:
        """Most registers'."""
        some: Counter[Function] = Counter(register.function or "input" for register in self.registers)
        return some.most_common(1)[0][0] if some else "input"

    @property
    def order(self) -> Order:
        wide: Counter[Order] = Counter(r.order for r in self.registers if r.order and width(r) > 1)
        return wide.most_common(1)[0][0] if wide else "ABCD"

    @property
    def tidy(self) -> tuple[Register, ...]:
        """Without what most have in common, which the map says once."""
        return tuple(
            replace(
                register,
                function=None if register.function == self.function else register.function,
                order=None if register.order in (None, self.order) or width(register) == 1 else register.order,
            )
            for register in self.registers
        )


def sheet(
    rows: Sequence[tuple[int, Sequence[str]]], *, counting: Counting = "auto", function: Function = "input"
) -> Sheet:
    """Rows with the number of their line, the first of them with the names of the columns.

    A row without a quantity is left out; `function` is that of rows which do not say.
    """
    if not rows:
        return Sheet((), {}, (Fault(1, "the table is empty"),), ())
    (top, header), *rest = rows
    places, remarks = _columns(header)
    missing = [name for name in ("address", "quantity", "type") if name not in places]
    if missing:
        known = {name: ", ".join(COLUMNS[name][:4]) for name in missing}
        hint = "; ".join(f"{name} may be called {others}" for name, others in known.items())
        return Sheet((), {}, (Fault(top, f"there is no column for: {', '.join(missing)}", hint),), tuple(remarks))
    found: list[Register] = []
    faults: list[Fault] = []
    written: dict[str, str] = {}
    asked = False
    for line, cells in rest:
        cell = {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()}
        if not cell["quantity"] or cell["quantity"].startswith("#"):
            continue
        try:
            register, number = _register(cell, counting, function, remarks, line)
        except _Unclear as unclear:
            if not (unclear.once and asked):
                faults.append(Fault(line, unclear.message, unclear.hint))
            asked = asked or unclear.once
            continue
        if number:
            written[register.quantity] = number
        found.append(register)
    if not found and not faults:
        faults.append(Fault(top, "no row below has a quantity", "Each row needs an address, a quantity and a type."))
    return Sheet(tuple(found), written, tuple(faults), tuple(dict.fromkeys(remarks)))


class _Unclear(Exception):
    """A cell that cannot be taken; `once`: the same is true of many rows and needs saying once."""

    def __init__(self, message: str, hint: str = "", *, once: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint, self.once = message, hint, once


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


def _columns(header: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Which column holds what; of several that could be, the one that is named first in COLUMNS."""
    keys = [_key(text) for text in header]
    places: dict[str, int] = {}
    for name, aliases in COLUMNS.items():
        place = next((keys.index(alias) for alias in aliases if alias in keys), None)
        if place is not None and place not in places.values():
            places[name] = place
    unused = [text.strip() for place, text in enumerate(header) if place not in places.values() and text.strip()]
    return places, [f"columns not used: {', '.join(unused)}"] if unused else []


def _register(
    cell: Mapping[str, str], counting: Counting, function: Function, remarks: list[str], line: int
) -> tuple[Register, str]:
    quantity = _quantity(cell["quantity"])
    if quantity != cell["quantity"]:
        remarks.append(f"line {line}: {cell['quantity']} is taken as {quantity}")
    type, words = _type(cell["type"], cell.get("words", ""))
    said = _function(cell.get("function", ""))
    places, implied, number = _addresses(cell["address"], counting, said)
    scale, scale_register, unit = _scale(cell, quantity)
    known = find(quantity)
    counter = known is not None and known.kind == "counter"
    order = _order(cell.get("order", ""))
    zero, absent = _absent(cell.get("absent", ""), remarks, line)
    one = TYPES[type].words == 1
    return Register(
        quantity=quantity,
        type=type,
        address=places[0] if len(places) == 1 else None,
        addresses=places if len(places) > 1 else (),
        unit=unit,
        function=said or implied or function,
        order=None if type == "text" or (one and order in ("ABCD", "CDAB")) else order,
        words=words,
        scale=scale,
        scale_register=scale_register,
        absent=absent,
        zero_is_absent=zero,
        monotonic=_monotonic(cell.get("monotonic", ""), quantity) if counter else None,
        poll=_poll(cell.get("poll", ""), quantity),
        note=cell.get("note", ""),
    ), number


def _quantity(text: str) -> str:
    name = text.casefold().strip().replace(" ", "_").replace("-", "_")
    for candidate in (text, name, _translated(name)):
        if candidate and find(candidate) is not None:
            return candidate
    near = difflib.get_close_matches(name, names(), 1, cutoff=0.6)
    hint = f'Did you mean "{near[0]}"?' if near else "The words we know are in core/quantity.py."
    raise _Unclear(f'there is no quantity "{text}"', hint + " Leave the cell empty to leave the row out.")


_PHASE = re.compile(r"(?:^|_)(?:l|phase_?|ph_?)([123abc])(?:_|n?$|n_)")


_SPECIAL = {"max", "maximum", "demand", "thd", "harmonic", "angle", "average", "avg", "dc", "mppt", "pv", "neutral"}


def _translated(name: str) -> str:
    """Usual words for the quantities that every meter has; empty where they say too little."""
    words = set(name.replace("__", "_").split("_"))
    match = _PHASE.search(name)
    phase = "" if match is None else f"_l{'123abc'.index(match[1]) % 3 + 1}"
    if words & {
        "max",
        "maximum",
        "demand",
        "thd",
        "harmonic",
        "angle",
        "average",
        "avg",
        "dc",
        "mppt",
        "pv",
        "neutral",
    }:
        return ""
    if words & {"energy", "kwh", "wh"} and not words & {"reactive", "apparent", "kvarh", "kvah"}:
        ways = {
            "import": {"import", "imported", "forward", "positive", "consumed"},
            "export": {"export", "exported", "reverse", "negative"},
            "production": {"yield", "production", "produced", "generated", "generation"},
        }
        found = [way for way, signs in ways.items() if words & signs]
        today = "_today" if words & {"daily", "today", "day"} else ""
        return f"energy_{found[0]}{today}{phase}" if len(found) == 1 and not (today and phase) else ""
    if words & {"frequency", "freq", "hz"}:
        return "frequency"
    if {"power", "factor"} <= words or words & {"pf", "cosphi"}:
        return f"power_factor{phase}"
    for kind in ("apparent", "reactive", "active"):
        if kind in words and "power" in words:
            return f"{kind}_power{phase}"
    if words & {"voltage", "volts", "volt"} and phase:
        return f"voltage{phase}n"
    if words & {"current", "amps", "ampere"}:
        return f"current{phase}" if phase else "current"
    if words & {"power", "watts", "watt"}:
        return f"active_power{phase}"
    return ""


def _type(text: str, length: str) -> tuple[Type, int | None]:
    key = _key(text)
    sized = re.fullmatch(r"(str|string|text|ascii|char|bcd)(\d+)", key)
    name = sized[1] if sized else key
    if name not in _TYPES:
        near = difflib.get_close_matches(name, _TYPES, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Types: {', '.join(TYPES)}"
        raise _Unclear(f'there is no type "{text}"' if text else "which type is it?", hint)
    type = _TYPES[name]
    if length and not length.isdecimal():
        raise _Unclear(f'"{length}" is no number of registers')
    words = int(sized[2]) if sized and type == "text" else -(-int(sized[2]) // 2) if sized else int(length or 0)
    fixed = TYPES[type].words
    if fixed is None:
        if not words:
            raise _Unclear(f"{text} of how many registers?", "Give them in a column words, or as text10.")
        return type, words
    if words and words != fixed:
        raise _Unclear(f"{text} has {fixed} registers, and the row says {words}")
    return type, None


def _function(text: str) -> Function | None:
    key = text.casefold().replace(" ", "").replace("_", "")
    if not key:
        return None
    if key not in _FUNCTIONS:
        raise _Unclear(f'"{text}" is no function', "Write input (function 4) or holding (function 3).")
    return _FUNCTIONS[key]


def _addresses(text: str, counting: Counting, said: Function | None) -> tuple[tuple[int, ...], Function | None, str]:
    """Wire addresses, the function that the manual's number implies, and that number."""
    parts = [part.strip() for part in re.split(r"[;,]| and ", text) if part.strip()]
    parts = [re.split(r"\s*(?:-|\.\.|–)\s*", part)[0] for part in parts]
    if not parts:
        raise _Unclear("this row has no address")
    found = [_address(part, counting, said) for part in parts]
    numbers = ", ".join(part for part, (_, implied) in zip(parts, found, strict=True) if implied)
    return tuple(place for place, _ in found), found[0][1], numbers


def _address(text: str, counting: Counting, said: Function | None) -> tuple[int, Function | None]:
    if re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9a-fA-F]+[hH]", text):
        place = int(text.rstrip("hH"), 16)
        if place > 0xFFFF:
            raise _Unclear(f"address {text} does not lie within 0x0000 to 0xFFFF")
        return place, None
    if not text.isdecimal():
        raise _Unclear(f'"{text}" is no address', "Write 0x0048 or 72.")
    number = int(text)
    base, implied = _numbered(number)
    if base and implied and (counting == "manual" or number > 0xFFFF):
        if said not in (None, implied):
            raise _Unclear(f"{number} is an {implied} register as manuals count, and the row says {said}")
        return number - base, implied
    if base and implied and counting == "auto":
        raise _Unclear(
            f"{number} may be that address on the wire, or {implied} register {number - base} as manuals count",
            "Say which: --addresses wire or --addresses manual. heliograph probe METER shows what lies there.",
            once=True,
        )
    if number > 0xFFFF:
        raise _Unclear(f"address {text} does not lie within 0 to 65535")
    return number, None


def _numbered(number: int) -> tuple[int, Function | None]:
    """The base of a manual's number and what it implies; 0 where it is none."""
    for base, implied in ((30001, "input"), (40001, "holding"), (300001, "input"), (400001, "holding")):
        most = base + (9998 if base < 100_000 else 65535)
        if base <= number <= most:
            return base, "input" if implied == "input" else "holding"
    return 0, None


def _scale(cell: Mapping[str, str], quantity: str) -> tuple[Decimal, int | None, str]:
    """Scale, scale register and unit; a unit of "0.1 kWh" holds both."""
    text, unit = cell.get("scale", ""), cell.get("unit", "")
    together = re.fullmatch(r"([0-9.,]+)\s*([^0-9.,\s].*)", unit)
    factor = Decimal(1)
    if together:
        factor, unit = _number(together[1]), together[2]
    power = re.fullmatch(r"SF@(0[xX][0-9a-fA-F]+|\d+)", text)
    if power:
        return factor, int(power[1], 0), _unit(unit, quantity)
    scale = _number(text) if text else Decimal(1)
    if cell.get("divisor"):
        scale /= _number(cell["divisor"])
    if not scale:
        raise _Unclear("a scale of 0 leaves nothing")
    return _plain(scale * factor), None, _unit(unit, quantity)


def _plain(number: Decimal) -> Decimal:
    return Decimal(f"{number.normalize():f}")


def _number(text: str) -> Decimal:
    bare = text.strip().lstrip("xX*×").strip()
    fraction = re.fullmatch(r"(\d+)\s*/\s*(\d+)", bare)
    power = re.fullmatch(r"10\s*\^\s*(-?\d+)", bare)
    try:
        if fraction:
            return Decimal(fraction[1]) / Decimal(fraction[2])
        if power:
            return Decimal(10) ** int(power[1])
        number = Decimal(bare.replace(",", "."))
    except (InvalidOperation, ZeroDivisionError) as error:
        raise _Unclear(f'"{text}" is no number', "Write it like 0.1.") from error
    if not number.is_finite():
        raise _Unclear(f'"{text}" is no number', "Write it like 0.1.")
    return number


def _unit(text: str, quantity: str) -> str:
    known = find(quantity)
    if known is not None and known.unit == "1" and text in ("", "-", "na"):
        return "1"
    unit = text if text in UNITS else _UNITS.get(text.casefold(), _BY_CASE.get(text.casefold()))
    if unit is None:
        near = difflib.get_close_matches(text, UNITS, 1)
        raise _Unclear(
            f'there is no unit "{text}"', f"Did you mean {near[0]}?" if near else f"Units: {' '.join(UNITS)}"
        )
    if not unit and known is not None and known.unit:
        fitting = ", ".join(one for one, (kept, _) in UNITS.items() if kept == known.unit)
        raise _Unclear(f"{quantity} in which unit?", f"It may be in: {fitting}")
    return unit


def _order(text: str) -> Order | None:
    key = _key(text)
    if key not in _ORDERS:
        raise _Unclear(f'"{text}" is no order of words', "Write ABCD (high word first) or CDAB (low word first).")
    return _ORDERS[key]


def _absent(text: str, remarks: list[str], line: int) -> tuple[bool, tuple[int, ...]]:
    """Whether zero is no reading, and raw values that are none. What else is said about absence is told, not taken."""
    zero, found = False, []
    for part in (part.strip() for part in re.split(r"[;\s]+", text)):
        if re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", part):
            found.append(int(part, 0) if part.lower().startswith("0x") else int(part))
        elif part.startswith("0="):
            zero = True
        elif part and part.casefold() not in ("-", "nan", "na", "none"):
            remarks.append(f"line {line}: not taken over: no value when {part}")
    return zero or found == [0], tuple(raw for raw in found if raw)


def _monotonic(text: str, quantity: str) -> bool:
    if text:
        return text.casefold() in ("yes", "true", "1", "y")
    return _MAY_FALL.fullmatch(quantity) is None


def _poll(text: str, quantity: str) -> bool:
    return text.casefold() in ("yes", "true", "1", "y") if text else POLLED.fullmatch(quantity) is not None

"""A recording: the words a device once answered with, as one TOML file that replays and tests read again.

It holds what was asked and what came, and nothing that follows from it. Serial numbers are masked before it is
written: digits become 1234567890..., letters X, so that the words still decode as what they were.
"""

from __future__ import annotations

import re
import struct
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from itertools import cycle, islice
from typing import Any, get_args

from heliograph.core import sunspec
from heliograph.core.decode import Absent, Words, addresses, ordered, value
from heliograph.core.errors import ConfigError
from heliograph.core.quantity import UNITS
from heliograph.core.registers import FUNCTION_CODES, Function, MeterMap, Order, Register

ORIGINS = ("captured", "transcribed from a manual", "synthetic")
_ROW = 8
_SHORTEST = 4
"""Characters of a serial number that are looked for elsewhere: shorter ones stand everywhere by chance."""
_PERSONAL = re.compile(r"serial_number(_high|_low)?|mac")
_MODEL = ("model", "meter_model", "device_model")
_FIRMWARE = ("firmware_version", "software_version")


@dataclass(frozen=True, slots=True)
class Piece:
    """One request that was answered."""

    function: Function
    address: int
    words: tuple[int, ...]
    round: int = 1
    ms: int | None = None
    """From the request to the whole answer, where that was measured."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One request that was not."""

    function: Function
    address: int
    count: int
    code: int | None
    """The Modbus exception; None: silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    map: str
    digest: str
    """Of the map at that time: it says which registers were known then."""
    origin: str
    """One of ORIGINS."""
    unit: int
    pieces: tuple[Piece, ...]
    refused: tuple[Refused, ...] = ()
    model: str = "unknown"
    firmware: str = "unknown"
    at: datetime | None = None
    rounds: tuple[float, ...] = (0.0,)
    """When each round began, in seconds after `at`."""
    software: str = ""
    """Which program wrote this."""
    line: str = ""
    """What the device was asked over; no address."""
    masked: tuple[str, ...] = ()
    """What was replaced before it was written."""
    display: Mapping[str, str] = field(default_factory=dict)
    """What the device's display showed, with the digits and the unit it showed: "41230.70 kWh"."""
    factors: Mapping[str, str] = field(default_factory=dict)
    """What no register holds and the site says, such as ct_ratio."""
    note: str = ""

    @property
    def file(self) -> str:
        """Where it belongs below a folder of recordings."""
        return f"{self.map}/{_slug(self.model)}_{_slug(self.firmware)}.toml"


def image(recording: Recording, round: int = 1) -> dict[tuple[Function, int], int]:
    """Every word of a round by function and address."""
    words: dict[tuple[Function, int], int] = {}
    for piece in recording.pieces:
        if piece.round == round:
            words.update({(piece.function, piece.address + n): word for n, word in enumerate(piece.words)})
    return words


def refusal(
    refused: Iterable[Refused], answered: Container[tuple[Function, int]], function: Function, address: int, count: int
) -> Refused | None:
    """What is known to be refused of this request: itself, else the first register of it that was never answered."""
    own = [no for no in refused if no.function == function]
    for no in own:
        if (no.address, no.count) == (address, count):
            return no
    for place in range(address, address + count):
        if (function, place) not in answered:
            covering = [no for no in own if no.address <= place < no.address + no.count]
            if covering:
                return min(covering, key=lambda no: no.count)
    return None


def placed(map: MeterMap, recording: Recording) -> MeterMap:
    """The map at the addresses of this device: a SunSpec template stands where the recorded models say."""
    if map.sunspec is None:
        return map
    words = image(recording)

    def pair(address: int) -> tuple[int | None, int | None]:
        return words.get(("holding", address)), words.get(("holding", address + 1))

    for base in map.sunspec.bases:
        if pair(base) != (sunspec.MARKER >> 16, sunspec.MARKER & 0xFFFF):
            continue
        models: list[sunspec.Model] = []
        address = base + sunspec.HEADER
        while True:
            number, length = pair(address)
            if number is None or length is None or sunspec.broken(base, models, number, length):
                break
            models.append(sunspec.Model(number, length, address))
            address = models[-1].end
        for device, main in sunspec.fitting(sunspec.Chain(base, tuple(models)), map):
            return sunspec.placed(map, base, device, main)
    return replace(map, sunspec=None, registers=())


# --- what it says -------------------------------------------------------------------------------------------------


def values(map: MeterMap, recording: Recording, round: int = 1) -> dict[str, Decimal | str | Absent]:
    """What the words of a round mean by this map, in the registers' own units; what was not recorded is left out."""
    words = image(recording, round)
    by = {name: Decimal(text) for name, text in recording.factors.items()}
    map = placed(map, recording)
    found: dict[str, Decimal | str | Absent] = {}
    for register in sorted((r for r in map.registers if r.model is None), key=lambda r: bool(r.times)):
        where = map.function_of(register)
        own = [words.get((where, address)) for address in addresses(register)]
        scale = None if register.scale_register is None else words.get((where, register.scale_register))
        if any(word is None for word in own) or (register.scale_register is not None and scale is None):
            continue
        exponent = None if scale is None else scale - 0x10000 if scale & 0x8000 else scale
        seen = value(
            register,
            map.order_of(register),
            [word for word in own if word is not None],
            exponent=exponent,
            factors=by,
        )
        found[register.quantity] = seen
        if isinstance(seen, Decimal):
            by.setdefault(register.quantity, seen)
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """What the display showed beside what the words mean."""

    quantity: str
    shown: str
    decoded: str
    """The nearest of all rounds; '' where the words have no value."""
    agrees: bool


def compared(map: MeterMap, recording: Recording) -> tuple[Compared, ...]:
    """A display shows fewer digits, rounded or cut: less than one of its last digit apart is the same.

    A device that goes on counting while somebody reads its display may be off by a thousandth as well.
    """
    moved = Decimal("0.001") if recording.origin == "captured" else Decimal(0)
    map = placed(map, recording)
    rounds = [values(map, recording, number) for number in range(1, len(recording.rounds) + 1)]
    found = []
    for quantity, shown in recording.display.items():
        decoded = [one for seen in rounds if not isinstance(one := seen.get(quantity, Absent("")), Absent)]
        numbers = [one for one in decoded if isinstance(one, Decimal)]
        register = map.register(quantity)
        if not numbers or register is None:
            text = str(decoded[0]) if decoded else ""
            found.append(Compared(quantity, shown, text, bool(text) and text == shown))
            continue
        number, _, unit = shown.partition(" ")
        told = Decimal(number)
        kept, factor = UNITS.get(unit or register.unit, ("", Decimal(1)))
        own, worth = UNITS[register.unit]
        nearest = min((one * worth / factor for one in numbers), key=lambda one: abs(one - told))
        step = Decimal(1).scaleb(int(told.as_tuple().exponent))
        apart = abs(nearest - told)
        near = kept == own and (apart < step or apart <= moved * abs(told))
        found.append(Compared(quantity, shown, f"{nearest.normalize():f} {unit}".strip(), near))
    return tuple(found)


def named(map: MeterMap, recording: Recording) -> tuple[str, str]:
    """Model and firmware as the device gives them; the map's name and 'unknown' where it gives none."""
    seen = values(map, recording)

    def first(names: Sequence[str]) -> str:
        return next((str(seen[name]) for name in names if not isinstance(seen.get(name, Absent("")), Absent)), "")

    return first(_MODEL) or map.name, first(_FIRMWARE) or "unknown"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unknown"


# --- masking ------------------------------------------------------------------------------------------------------


def masked(map: MeterMap, recording: Recording) -> Recording:
    """The same without serial numbers: in their registers, and wherever else they stand as text or as a number.

    Also in what a person wrote down: the note, the display, model and firmware.
    """
    pieces = recording.pieces
    spoken: dict[str, str] = {}
    map = placed(map, recording)
    names = {map.identity.serial or "serial_number"} | {
        r.quantity for r in map.registers if _PERSONAL.fullmatch(r.quantity)
    }
    hidden: list[str] = []
    for register in map.registers:
        if register.quantity not in names or register.model is not None:
            continue
        where, own = map.function_of(register), addresses(register)
        found: list[tuple[Words, Words]] = []
        for number in range(1, len(recording.rounds) + 1):
            words = image(replace(recording, pieces=pieces), number)
            before = [words.get((where, address)) for address in own]
            known = [word for word in before if word is not None]
            if len(known) < len(own) or not any(known):
                continue
            after = _masked_words(register, map.order_of(register), known)
            pieces = _put(pieces, number, {(where, address): word for address, word in zip(own, after, strict=True)})
            found.append((known, after))
        for theirs, ours in found:
            pieces = _elsewhere(register, map.order_of(register), theirs, ours, pieces)
            spoken |= _spoken(register, map.order_of(register), theirs)
        if found:
            hidden.append(register.quantity)

    def hushed(told: str) -> str:
        for wanted, instead in spoken.items():
            told = told.replace(wanted, instead)
        return told

    return replace(
        recording,
        pieces=pieces,
        masked=tuple(dict.fromkeys((*recording.masked, *hidden))),
        note=hushed(recording.note),
        model=hushed(recording.model),
        firmware=hushed(recording.firmware),
        display={quantity: hushed(shown) for quantity, shown in recording.display.items()},
    )


def _spoken(register: Register, order: Order, words: Words) -> dict[str, str]:
    """A serial number as a person writes it, and what stands there instead."""
    seen = value(register, order, words)
    told = seen.strip() if isinstance(seen, str) else f"{seen:f}".split(".")[0] if isinstance(seen, Decimal) else ""
    if len(told) < _SHORTEST:
        return {}
    return {told: _digits(len(told)) if isinstance(seen, Decimal) else pattern(told.encode()).decode()}


def _put(pieces: Iterable[Piece], round: int, words: Mapping[tuple[Function, int], int]) -> tuple[Piece, ...]:
    def one(piece: Piece) -> Piece:
        if piece.round != round:
            return piece
        own = (words.get((piece.function, piece.address + n), word) for n, word in enumerate(piece.words))
        return replace(piece, words=tuple(own))

    return tuple(one(piece) for piece in pieces)


def _masked_words(register: Register, order: Order, words: Words) -> tuple[int, ...]:
    """Other words of the same type: as many digits and letters, none of them the device's."""
    if register.type == "text":
        order = register.order or "ABCD"
        return _arranged(pattern(ordered(words, order)), order)
    raw = ordered(words, order)
    if register.type == "bcd":
        return _arranged(bytes.fromhex(_digits(len(raw.hex()))), order)
    if register.type in ("float32", "float64"):
        form = ">f" if register.type == "float32" else ">d"
        number = struct.unpack(form, raw)[0]
        digits = len(str(abs(int(number)))) if abs(number) < 1e9 else 9
        return _arranged(struct.pack(form, float(_digits(digits))), order)
    number = int.from_bytes(raw, "big")
    return _arranged((int(_digits(len(str(number)))) % (1 << 8 * len(raw))).to_bytes(len(raw), "big"), order)


def _digits(digits: int) -> str:
    return "".join(islice(cycle("1234567890"), digits))


def pattern(raw: bytes) -> bytes:
    """As many characters that say nothing: 1234567890... for digits, X for letters."""
    digit = cycle(b"1234567890")
    return bytes(next(digit) if chr(byte).isdecimal() else 0x58 if chr(byte).isalpha() else byte for byte in raw)


def _arranged(raw: bytes, order: Order) -> tuple[int, ...]:
    words = [int.from_bytes(raw[n : n + 2], "big") for n in range(0, len(raw), 2)]
    return tuple(struct.unpack(f">{len(words)}H", ordered(words, order)))  # each order undoes itself


def _elsewhere(
    register: Register, order: Order, words: Words, hidden: Words, pieces: tuple[Piece, ...]
) -> tuple[Piece, ...]:
    """The same number as other words, or as text: a range that nobody knows may repeat it."""
    if register.type == "text":
        order = register.order or "ABCD"
    raw, other = ordered(words, order), ordered(hidden, order)
    pairs: list[tuple[bytes, bytes]] = []
    if register.type == "text":
        text = raw.strip(b"\0\xff ")
        pairs.append((text, pattern(text)))
    else:
        if len(raw) >= 4:  # one word alone would be found everywhere
            for way in get_args(Order):
                pairs.append((_bytes(_arranged(raw, way)), _bytes(_arranged(other, way))))
        seen = value(register, order, words)
        if isinstance(seen, Decimal):
            text = f"{seen:f}".split(".")[0].encode()
            pairs.append((text, _digits(len(text)).encode()))
    for wanted, instead in pairs:
        if len(wanted) >= _SHORTEST and any(wanted):
            pieces = tuple(replace(piece, words=_replaced(piece.words, wanted, instead)) for piece in pieces)
    return pieces


def _bytes(words: Words) -> bytes:
    return b"".join(word.to_bytes(2, "big") for word in words)


def _replaced(words: Words, wanted: bytes, instead: bytes) -> tuple[int, ...]:
    """Also where the bytes of each word are swapped."""
    for order in ("ABCD", "BADC"):
        raw = ordered(words, "ABCD" if order == "ABCD" else "BADC")
        if wanted in raw:
            words = _arranged(raw.replace(wanted, instead), "ABCD" if order == "ABCD" else "BADC")
    return tuple(words)


# --- the file -----------------------------------------------------------------------------------------------------


def text(recording: Recording) -> str:
    """As it is written: blocks in the order they were asked, eight words a line with the address of the first."""
    return "\n".join(_lines(recording)) + "\n"


def _lines(r: Recording) -> Iterator[str]:
    made = "What a device answered" if r.origin == "captured" else f"Words of a device, {r.origin}"
    yield f"# {made}. Replay it: heliograph simulate --recording FILE"
    if r.masked:
        yield f"# Masked before this was written: {', '.join(r.masked)}."
    for name in ("map", "digest", "model", "firmware", "origin", "software", "line", "note"):
        if told := getattr(r, name):
            yield f"{name:<8} = {_quoted(told)}"
    if r.at is not None:
        yield f"at       = {r.at.isoformat(timespec='seconds').replace('+00:00', 'Z')}"
    yield f"unit     = {r.unit}"
    if r.rounds != (0.0,):
        yield f"rounds   = [{', '.join(f'{begun:.1f}' for begun in r.rounds)}]   # seconds after `at`"
    if r.masked:
        yield f"masked   = [{', '.join(_quoted(name) for name in r.masked)}]"
    if r.refused:
        yield "refused  = [   # with the exception; without a code there was no answer"
    for no in r.refused:
        code = "" if no.code is None else f", code = {no.code}"
        yield f'  {{ function = "{no.function}", address = 0x{no.address:04X}, count = {no.count}{code} }},'
    if r.refused:
        yield "]"
    for table, comment in (("display", "what the display showed"), ("factors", "what the site says")):
        if rows := getattr(r, table):
            yield f"\n[{table}]   # {comment}"
            yield from (f"{name} = {_quoted(shown)}" for name, shown in rows.items())
    if times := sorted(piece.ms for piece in r.pieces if piece.ms is not None):
        yield "\n[timing]   # of an answer, from the request to its last byte"
        yield f"ms = {{ least = {times[0]}, median = {times[len(times) // 2]}, most = {times[-1]} }}"
    for piece in r.pieces:
        yield "\n[[block]]"
        if piece.round != 1:
            yield f"round    = {piece.round}"
        yield f'function = "{piece.function}"\naddress  = 0x{piece.address:04X}'
        if piece.ms is not None:
            yield f"ms       = {piece.ms}"
        yield "words    = ["
        for n in range(0, len(piece.words), _ROW):
            row = ", ".join(f"0x{word:04X}" for word in piece.words[n : n + _ROW])
            yield f"  {row},   # 0x{piece.address + n:04X}"
        yield "]"


def _quoted(told: str) -> str:
    plain = "".join(one if one >= " " and one != "\x7f" else " " for one in told)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse(content: str) -> Recording:
    """A recording from the text of its file. Raises ConfigError."""
    try:
        told = tomllib.loads(content)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"is not TOML: {exc}", hint="A recording is made by: heliograph record") from exc
    try:
        return _parsed(told)
    except (KeyError, TypeError, ValueError) as exc:
        what = f"has no {exc}" if isinstance(exc, KeyError) else str(exc)
        raise ConfigError(f"is no recording: {what}", hint="A recording is made by: heliograph record") from exc


def _parsed(told: Mapping[str, Any]) -> Recording:
    rounds = tuple(float(begun) for begun in told.get("rounds", [0.0]))
    pieces = tuple(_piece(row, len(rounds)) for row in told["block"])
    refused = tuple(
        Refused(_function(row), _address(row, row["count"]), row["count"], row.get("code"))
        for row in told.get("refused", [])
    )
    if told["origin"] not in ORIGINS:
        raise ValueError(f"origin is {told['origin']!r}, not one of: {', '.join(ORIGINS)}")
    if not 0 <= told["unit"] <= 255:
        raise ValueError(f"unit {told['unit']} is none")
    at = told.get("at")
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise ValueError("at is no moment with its zone")
    texts = {name: str(told.get(name, "")) for name in ("software", "line", "note")}
    return Recording(
        map=str(told["map"]),
        digest=str(told["digest"]),
        origin=told["origin"],
        unit=told["unit"],
        pieces=pieces,
        refused=refused,
        model=str(told.get("model", "unknown")),
        firmware=str(told.get("firmware", "unknown")),
        at=at,
        rounds=rounds,
        masked=tuple(str(name) for name in told.get("masked", [])),
        display={name: str(shown) for name, shown in told.get("display", {}).items()},
        factors={name: str(Decimal(str(number))) for name, number in told.get("factors", {}).items()},
        **texts,
    )


def _piece(row: Mapping[str, Any], rounds: int) -> Piece:
    words = tuple(row["words"])
    if not words or not all(isinstance(word, int) and 0 <= word <= 0xFFFF for word in words):
        raise ValueError(f"the words of {row['function']} 0x{row['address']:04X} are no registers")
    number = row.get("round", 1)
    if not 1 <= number <= rounds:
        raise ValueError(f"there is no round {number}")
    return Piece(_function(row), _address(row, len(words)), words, number, row.get("ms"))


def _function(row: Mapping[str, Any]) -> Function:
    for name in get_args(Function):
        if row["function"] == name and name in FUNCTION_CODES:
            return "holding" if name == "holding" else "input"
    raise ValueError(f"function is {row['function']!r}, not holding or input")


def _address(row: Mapping[str, Any], count: int) -> int:
    address = row["address"]
    if not isinstance(address, int) or not 0 <= address <= 0x10000 - count or count < 1:
        raise ValueError(f"address {address} with {count} registers does not exist")
    return address

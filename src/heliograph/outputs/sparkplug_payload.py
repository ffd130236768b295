"""Sparkplug B payloads as bytes, and the bytes of a command as values. Pure.

The one message of sparkplug_b.proto (Sparkplug 3.0, chapter 6) is written here by hand. No maintained package would
do: pysparkplug stands still and wants paho-mqtt 1. Google's runtime with a generated module costs 5.7 MB resident and
70 ms of import (10 MB and twice the time on armv7, where only its pure Python runs), and a gateway with ten meters has
3 MB left of its 60. The tests hold these bytes against Google's, one by one, and let foreign decoders read them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

Value = int | float | str | bool | None

MOST_BYTES = 1 << 16
"""Of a command. Ours has one metric; a longer one is none that we know."""


class Type(IntEnum):
    """The data types that we use, as they are numbered in the specification."""

    INT32 = 3
    INT64 = 4
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12


class Quality(IntEnum):
    BAD = 0
    GOOD = 192
    STALE = 500


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of one moment. A birth names and types it; later messages say its alias only."""

    type: Type
    value: Value
    """None goes out as `is_null`."""
    at: int
    """Milliseconds since 1970, UTC."""
    name: str = ""
    alias: int | None = None
    typed: bool = False
    """Whether the type is written: births must, data should not."""
    historical: bool = False
    properties: Mapping[str, tuple[Type, Value]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wish:
    """One metric of a command, as far as we look at it."""

    name: str
    boolean: bool | None
    """Its value, where that is a Boolean."""


def payload(metrics: Iterable[Metric], at: int, seq: int | None = None) -> bytes:
    """`at` in milliseconds since 1970; `seq` None for a death of the node, which has none."""
    found = _number(1, at) + b"".join(_bytes(2, _metric(one)) for one in metrics)
    return found if seq is None else found + _number(3, seq)


def wishes(data: bytes) -> tuple[Wish, ...]:
    """The metrics of a command. Raises ValueError where it is no payload."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"a command of {len(data)} bytes")
    return tuple(_wish(inner) for number, inner in _fields(data) if number == 2 and isinstance(inner, bytes))


def _wish(data: bytes) -> Wish:
    name, boolean = "", None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            name = value.decode()
        elif number == 14 and isinstance(value, int):
            boolean = bool(value)
    return Wish(name, boolean)


# Writing: fields in the order of their numbers, as Google's encoders do


def _metric(one: Metric) -> bytes:
    value = _written(one.type, one.value, 10)
    found = [
        _bytes(1, one.name.encode()) if one.name else b"",
        b"" if one.alias is None else _number(2, one.alias),
        _number(3, one.at),
        _number(4, one.type) if one.typed else b"",
        _number(5, 1) if one.historical else b"",
        b"" if value else _number(7, 1),
        _bytes(9, _properties(one.properties)) if one.properties else b"",
        value,
    ]
    return b"".join(found)


def _properties(properties: Mapping[str, tuple[Type, Value]]) -> bytes:
    names = b"".join(_bytes(1, name.encode()) for name in properties)
    return names + b"".join(_bytes(2, _property(type, value)) for type, value in properties.values())


def _property(type: Type, value: Value) -> bytes:
    written = _written(type, value, 3)
    return _number(1, type) + (b"" if written else _number(2, 1)) + written


def _written(type: Type, value: Value, first: int) -> bytes:
    """The field of a `oneof value` that begins at number `first`; nothing where there is no value.

    Signed numbers stand there as the unsigned ones of the same bits.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return b""
    match type:
        case Type.INT32:
            return _number(first, int(value) & 0xFFFFFFFF)
        case Type.INT64:
            return _number(first + 1, int(value) & 0xFFFFFFFFFFFFFFFF)
        case Type.DOUBLE:
            return _varint((first + 3) << 3 | 1) + struct.pack("<d", float(value))
        case Type.BOOLEAN:
            return _number(first + 4, int(bool(value)))
        case Type.STRING:
            return _bytes(first + 5, str(value).encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


# Reading: what a stranger sends


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field's number with its value; eight and four bytes of a float stay bytes. Raises ValueError."""
    at = 0
    while at < len(data):
        tag, at = _read(data, at)
        match tag & 7:
            case 0:
                number, at = _read(data, at)
                yield tag >> 3, number
                continue
            case 1:
                length = 8
            case 2:
                length, at = _read(data, at)
            case 5:
                length = 4
            case other:
                raise ValueError(f"wire type {other} is none of proto2's that are in use")
        if at + length > len(data):
            raise ValueError("it ends within a field")
        yield tag >> 3, data[at : at + length]
        at += length


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            raise ValueError("it ends within a number")
        value |= (data[at + place] & 0x7F) << 7 * place
        if data[at + place] < 0x80:
            return value, at + place + 1
    raise ValueError("a number of more than ten bytes")

"""Sparkplug B payloads as bytes, and the bytes of a command as values. Pure.

Google's runtime writes and reads them, with a module made from the specification's schema (sparkplug_b.proto): of the
packages that bring such a module none is kept up (pysparkplug wants paho-mqtt 1). It costs a gateway with [sparkplug]
some 6 MB and 70 ms at the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from google.protobuf.message import DecodeError

from heliograph.outputs import sparkplug_b_pb2

_Payload: Any = sparkplug_b_pb2.Payload

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
    found = _Payload(timestamp=at, seq=seq)
    for one in metrics:
        metric = found.metrics.add(
            name=one.name or None,
            alias=one.alias,
            timestamp=one.at,
            datatype=one.type if one.typed else None,
            is_historical=one.historical or None,
        )
        for name, (type, value) in one.properties.items():
            metric.properties.keys.append(name)
            _put(metric.properties.values.add(type=type), type, value)
        _put(metric, one.type, one.value)
    written: bytes = found.SerializeToString()
    return written


def wishes(data: bytes) -> tuple[Wish, ...]:
    """The metrics of a command. Raises ValueError where it is no payload."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"a command of {len(data)} bytes")
    try:
        found = _Payload.FromString(data)
    except DecodeError as error:
        raise ValueError(f"no payload of Sparkplug B: {error}") from error
    return tuple(Wish(one.name, one.boolean_value if one.HasField("boolean_value") else None) for one in found.metrics)


def _put(target: Any, type: Type, value: Value) -> None:
    """Signed numbers stand there as the unsigned ones of the same bits."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        target.is_null = True
        return
    match type:
        case Type.INT32:
            target.int_value = int(value) & 0xFFFFFFFF
        case Type.INT64:
            target.long_value = int(value) & 0xFFFFFFFFFFFFFFFF
        case Type.DOUBLE:
            target.double_value = float(value)
        case Type.BOOLEAN:
            target.boolean_value = bool(value)
        case Type.STRING:
            target.string_value = str(value)

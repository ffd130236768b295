"""Follows Sparkplug messages as a strict host would, and says what in them contradicts the specification.

It decodes with Google's runtime and the module that Eclipse Tahu generated from the specification's schema (as the
package sparkplug-b-packets ships it); nothing of our own encoder or session is used.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from sparkplub_b_packets.core import sparkplug_b_pb2 as tahu

# Data type -> the field of the `oneof value` that holds it.
FIELDS = {3: "int_value", 4: "long_value", 8: "long_value", 10: "double_value", 11: "boolean_value", 12: "string_value"}
WRAPS = {3: 32, 4: 64}
"""Signed numbers of so many bits stand in unsigned fields."""
QUALITIES = (0, 192, 500)


def decoded(data: bytes) -> Any:
    """The message as Tahu's schema sees it."""
    found = tahu.Payload()
    found.ParseFromString(data)
    return found


class Told(NamedTuple):
    """A value that a host would now know."""

    at: int
    value: Any
    historical: bool
    quality: int | None


@dataclass
class _Tag:
    device: str
    name: str
    type: int
    at: int


@dataclass
class Checker:
    """`problems` are sentences; `told` is every value by device ("" for the node) and name, in the order it came."""

    problems: list[str] = field(default_factory=list)
    told: dict[tuple[str, str], list[Told]] = field(default_factory=lambda: defaultdict(list))
    kinds: list[str] = field(default_factory=list)
    """Of each message, in order: "NBIRTH", "DDATA roof"."""
    births: list[int] = field(default_factory=list)
    """Moments of the node's births, in milliseconds."""
    bd_seqs: list[int] = field(default_factory=list)
    """Of births, one after the other."""
    online: bool = False
    devices: set[str] = field(default_factory=set)
    """Those that are there now."""

    def __post_init__(self) -> None:
        self._seq: int | None = None
        self._bd_seq: int | None = None
        self._died = False
        self._tags: dict[int, _Tag] = {}

    def hear(self, topic: str, data: bytes, qos: int = 0, retained: bool = False) -> None:
        try:
            space, group, kind, node, *device = topic.split("/")
            message = decoded(data)
        except (ValueError, DecodeError) as error:
            self._wrong(topic, f"cannot be read: {error!r}")
            return
        where = " ".join([kind, *device])
        self.kinds.append(where)
        if space != "spBv1.0" or not group or not node or len(device) != (kind[0] == "D"):
            self._wrong(topic, "is no such topic")
        if kind not in ("NBIRTH", "NDEATH", "NDATA", "DBIRTH", "DDEATH", "DDATA"):
            self._wrong(topic, "no edge node says that")
            return
        if retained or qos != (1 if kind == "NDEATH" else 0):
            self._wrong(where, f"quality of service {qos}, retained {retained}")
        if message.ByteSize() != len(data) or message.SerializeToString() != data:
            self._wrong(where, "is not as its decoder would have written it")
        if not message.HasField("timestamp"):
            self._wrong(where, "has no moment")
        if kind == "NDEATH":
            self._death(message)
            return
        self._count(kind, message)
        if kind == "NBIRTH":
            self._birth(message)
        elif not self.online:
            self._wrong(where, "before any birth, or after the death, of the node")
        name = device[0] if device else ""
        if kind == "DBIRTH":
            if name in self.devices:
                self._wrong(where, "is born twice")
            self.devices.add(name)
            self._tags = {alias: tag for alias, tag in self._tags.items() if tag.device != name}
        if kind in ("DDATA", "DDEATH") and name not in self.devices:
            self._wrong(where, "of a device that was not born")
        if kind == "DDEATH":
            self.devices.discard(name)
            if message.metrics:
                self._wrong(where, "has metrics")
            return
        if not message.metrics:
            self._wrong(where, "says nothing")
        for metric in message.metrics:
            if kind in ("NBIRTH", "DBIRTH"):
                self._announced(where, name, metric, message.timestamp)
            else:
                self._data(where, name, metric)
        live = [metric.timestamp for metric in message.metrics if not metric.is_historical]
        if live != sorted(live):
            self._wrong(where, "its metrics are not in the order of time")

    def _count(self, kind: str, message: Any) -> None:
        if not message.HasField("seq") or message.seq > 255:
            self._wrong(kind, "has no sequence number")
            return
        if kind == "NBIRTH":
            if message.seq != 0:
                self._wrong(kind, f"begins with sequence number {message.seq}")
        elif self._seq is not None and message.seq != (self._seq + 1) % 256:
            self._wrong(kind, f"sequence number {message.seq} after {self._seq}")
        self._seq = message.seq

    def _death(self, message: Any) -> None:
        if message.HasField("seq") or [metric.name for metric in message.metrics] != ["bdSeq"]:
            self._wrong("NDEATH", "must hold bdSeq and nothing else")
            return
        number = self._bd_seq_of(message)
        if self._bd_seq is None or (self._died and number != self._bd_seq):
            return  # of a life that we did not see, or that ended before its birth
        if number != self._bd_seq:
            self._wrong("NDEATH", f"bdSeq {number}, but its birth had {self._bd_seq}")
        else:
            self.online, self._died = False, True
            self.devices.clear()

    def _birth(self, message: Any) -> None:
        number = self._bd_seq_of(message)
        if self._bd_seq is not None:
            if self._died and number == self._bd_seq:
                self._wrong("NBIRTH", f"bdSeq {number} is that of a life that has ended")
            elif not self._died and number not in (self._bd_seq, (self._bd_seq + 1) % 256):
                self._wrong("NBIRTH", f"bdSeq {number} after {self._bd_seq}")
        self._bd_seq, self._died, self.online = number, False, True
        self.bd_seqs.append(number)
        self.births.append(message.timestamp)
        self.devices.clear()
        self._tags.clear()
        rebirth = [metric for metric in message.metrics if metric.name == "Node Control/Rebirth"]
        if len(rebirth) != 1 or rebirth[0].datatype != 11 or rebirth[0].boolean_value or rebirth[0].HasField("alias"):
            self._wrong("NBIRTH", "needs Node Control/Rebirth: Boolean, false, without an alias")

    def _bd_seq_of(self, message: Any) -> int:
        found = [metric for metric in message.metrics if metric.name == "bdSeq"]
        if len(found) != 1 or found[0].datatype not in (4, 8) or not found[0].HasField("long_value"):
            self._wrong("bdSeq", "is not there once, as a number of 64 bits")
            return -1
        number: int = found[0].long_value
        if not 0 <= number <= 255:
            self._wrong("bdSeq", f"is {number}")
        return number

    def _announced(self, where: str, device: str, metric: Any, moment: int) -> None:
        name = metric.name
        if not name or not metric.HasField("datatype") or not metric.HasField("timestamp"):
            self._wrong(where, f"{name or 'a metric'} lacks name, type or moment")
        if metric.timestamp > moment:
            self._wrong(where, f"{name} is of a later moment than its birth")
        if metric.is_historical:
            self._wrong(where, f"{name} is historical")
        if metric.HasField("alias"):
            if metric.alias in self._tags:
                self._wrong(where, f"{name} has the alias of {self._tags[metric.alias].name}")
            self._tags[metric.alias] = _Tag(device, name, metric.datatype, metric.timestamp)
        elif name not in ("bdSeq", "Node Control/Rebirth"):
            self._wrong(where, f"{name} has no alias, although others have")
        self._value(where, device, name, metric.datatype, metric)

    def _data(self, where: str, device: str, metric: Any) -> None:
        tag = self._tags.get(metric.alias) if metric.HasField("alias") else None
        if tag is None or tag.device != device:
            self._wrong(where, f"alias {metric.alias} was not announced there")
            return
        if metric.HasField("name") or metric.HasField("datatype") or not metric.HasField("timestamp"):
            self._wrong(where, f"{tag.name}: data has an alias and a moment, neither name nor type")
        if metric.is_historical:
            if metric.timestamp > self.births[-1]:
                self._wrong(where, f"{tag.name} is said to be historical, but is newer than the birth")
        elif metric.timestamp < tag.at:
            self._wrong(where, f"{tag.name} goes back in time by {tag.at - metric.timestamp} ms")
        else:
            tag.at = metric.timestamp
        self._value(where, device, tag.name, tag.type, metric)

    def _value(self, where: str, device: str, name: str, type: int, metric: Any) -> None:
        written = metric.WhichOneof("value")
        if metric.is_null:
            if written is not None:
                self._wrong(where, f"{name} is null and has a value")
            value = None
        elif type not in FIELDS or written != FIELDS[type]:
            self._wrong(where, f"{name} is of type {type}, but written as {written}")
            return
        else:
            value = getattr(metric, written)
            if type in WRAPS and value >= 1 << WRAPS[type] - 1:
                value -= 1 << WRAPS[type]
        self.told[device, name].append(
            Told(metric.timestamp, value, metric.is_historical, self._quality(where, metric))
        )

    def _quality(self, where: str, metric: Any) -> int | None:
        if not metric.HasField("properties"):
            return None
        keys, values = list(metric.properties.keys), list(metric.properties.values)
        if len(keys) != len(values) or not keys:
            self._wrong(where, "its properties are not as many as their names")
            return None
        found = dict(zip(keys, values, strict=True))
        if (quality := found.get("Quality")) is None:
            return None
        if quality.type != 3 or quality.WhichOneof("value") != "int_value" or quality.int_value not in QUALITIES:
            self._wrong(where, "its quality is none that the specification knows")
        number: int = quality.int_value
        return number

    def _wrong(self, where: str, what: str) -> None:
        self.problems.append(f"message {len(self.kinds)}, {where}: {what}")

"""What it costs in bytes that a gateway speaks MQTT.

Framing is our own, so that what is counted here and what paho really writes check each other
(tests/rehearsal/test_fleet.py).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from heliograph.outputs.broker import Message
from heliograph.rehearsal.fleet import Spoken

KEEPALIVE = 30.0
# Estimates, in bytes: TLS 1.3 with AES-GCM puts 5 before a record and 17 behind it; a TCP segment has 20 of IPv4, 20 of
# TCP and 12 of its time stamps, and goes each way once.
TLS_RECORD = 22
TCP_SEGMENT = 52


def packet(message: Message, mid: int, topic: bytes | None = None) -> bytes:
    """A PUBLISH of MQTT 3.1.1, section 3.3."""
    name = message.topic.encode() if topic is None else topic
    body = struct.pack(f">H{len(name)}s", len(name), name)
    if message.qos:
        body += struct.pack(">H", mid)
    return (
        bytes((0x30 | message.qos << 1 | message.retain,))
        + length(len(body) + len(message.payload))
        + body
        + message.payload
    )


def length(count: int) -> bytes:
    digits = bytearray()
    while True:
        count, rest = divmod(count, 128)
        digits.append(rest | (0x80 if count else 0))
        if not count:
            return bytes(digits)


PUBACK = 4


@dataclass(slots=True)
class Figures:
    """Of one gateway and some span of time. Bytes of MQTT are exact, those with TCP and TLS are an estimate."""

    messages: int = 0
    payload: int = 0
    up: int = 0
    """Bytes of MQTT to the broker."""
    down: int = 0
    segments: int = 0
    """Each way, if each packet goes alone and is answered."""

    def count(self, message: Message) -> None:
        self.messages += 1
        self.payload += len(message.payload)
        self.up += len(packet(message, 1))
        self.down += PUBACK if message.qos else 0
        self.segments += 1

    def ping(self) -> None:
        self.up += 2
        self.down += 2
        self.segments += 1

    @property
    def estimate(self) -> int:
        """Bytes both ways with TCP and TLS, if each packet is a record and a segment of its own, and so its answer."""
        return self.up + self.down + 2 * self.segments * (TLS_RECORD + TCP_SEGMENT)


@dataclass(slots=True)
class Account:
    """What one gateway says, hour by hour."""

    hours: list[Figures]
    total: Figures
    start: Figures
    """What is said at once after the connect, which is not part of the hours."""
    retained: int
    """Topics with something retained at the end."""
    quantities: Mapping[str, int] = field(default_factory=dict)
    """Messages by the last word of their topic."""


def account(spoken: Sequence[Spoken], span: timedelta) -> Account:
    hours = [Figures() for _ in range(math.ceil(span / timedelta(hours=1)))]
    total, start = Figures(), Figures()
    retained: dict[str, bool] = {}
    kinds: dict[str, int] = {}
    quiet_since = 0.0
    for one in spoken:
        message = one.message
        if message.retain:
            retained[message.topic] = bool(message.payload)
        if one.after == 0:
            start.count(message)
            continue
        hour = hours[min(int(one.after // 3600), len(hours) - 1)]
        while one.after - quiet_since > KEEPALIVE:
            quiet_since += KEEPALIVE
            total.ping()
            hours[min(int(quiet_since // 3600), len(hours) - 1)].ping()
        quiet_since = one.after
        hour.count(message)
        total.count(message)
        kind = message.topic.split("/")[-1] if "/day/" not in message.topic else "day"
        kinds[kind] = kinds.get(kind, 0) + 1
    return Account(hours, total, start, sum(retained.values()), kinds)

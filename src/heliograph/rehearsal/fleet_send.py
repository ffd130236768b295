"""Says what a fleet says to a real broker, over few connections of its own: many gateways share one of them.

The others of a fleet repeat one of those that were worked out (rehearsal/fleet.py) under names of their own, each a
part of a poll period later.
"""

from __future__ import annotations

import heapq
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from heliograph.core.errors import HeliographError
from heliograph.outputs.broker import Address, Message, authorities
from heliograph.rehearsal.fleet import Plan, Spoken
from heliograph.rehearsal.fleet_bytes import length, packet

# Packets on their way to the broker, per connection.
WINDOW = 1000
PIECE = 1 << 16
GIVE_UP = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    context: ssl.SSLContext | None = None
    username: str = ""
    password: str = ""


def secured(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """As the product's own connection checks a broker. Raises ConfigError."""
    return authorities(Address("", 0, "", tls=True, ca=ca, certificate=certificate, key=key))


@dataclass(slots=True)
class Sent:
    """What really went over the sockets."""

    connections: int = 0
    messages: int = 0
    acknowledged: int = 0
    up: int = 0
    """Bytes of MQTT written, with CONNECT and DISCONNECT."""
    down: int = 0
    seconds: float = 0.0
    late: float = 0.0
    """Seconds that the slowest connection was behind its time at the worst."""
    trouble: str = ""


def send(
    target: Target,
    plan: Plan,
    patterns: Sequence[Sequence[Spoken]],
    gateways: int,
    *,
    connections: int,
    speed: float,
    stop: threading.Event,
) -> Sent:
    """Says what `gateways` say, `speed` seconds of theirs in one of ours; 0 is as fast as the broker takes it."""
    sent = Sent(connections=min(connections, gateways))
    lock = threading.Lock()
    groups: list[list[int]] = [[] for _ in range(sent.connections)]
    for number in range(gateways):
        groups[number % sent.connections].append(number)
    began = time.monotonic()
    threads = [
        threading.Thread(
            target=partial(_one, target, plan, patterns, group, speed, began, stop, sent, lock), daemon=True
        )
        for group in groups
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent.seconds = time.monotonic() - began
    return sent


def timeline(
    plan: Plan, patterns: Sequence[Sequence[Spoken]], gateways: Sequence[int]
) -> Iterator[tuple[float, int, bytes, Message]]:
    """All messages of some gateways in the order of their moments: after, gateway, topic, message."""

    def of_one(number: int) -> Iterator[tuple[float, int, bytes, Message]]:
        pattern = number % len(patterns)
        shift = plan.poll.total_seconds() * (number * 0.618 % 1)
        old, new = plan.site(pattern).encode(), plan.site(number).encode()
        for one in patterns[pattern]:
            yield one.after + shift, number, one.message.topic.encode().replace(old, new, 1), one.message

    return heapq.merge(*(of_one(number) for number in gateways), key=lambda one: one[:2])


def _one(
    target: Target,
    plan: Plan,
    patterns: Sequence[Sequence[Spoken]],
    gateways: Sequence[int],
    speed: float,
    began: float,
    stop: threading.Event,
    sent: Sent,
    lock: threading.Lock,
) -> None:
    mine = Sent()
    try:
        wire = _Wire(target, plan.site(gateways[0]), mine)
        try:
            for after, _, topic, message in timeline(plan, patterns, gateways):
                if stop.is_set():
                    break
                if speed:
                    ahead = after / speed - (time.monotonic() - began)
                    if ahead > 0:
                        wire.flush()
                        wire.listen(ahead, stop)
                    else:
                        mine.late = max(mine.late, -ahead)
                wire.publish(message, topic)
            wire.end()
        finally:
            wire.close()
    except (OSError, HeliographError) as error:
        mine.trouble = str(error)
    with lock:
        sent.messages += mine.messages
        sent.acknowledged += mine.acknowledged
        sent.up += mine.up
        sent.down += mine.down
        sent.late = max(sent.late, mine.late)
        sent.trouble = sent.trouble or mine.trouble


class _Wire:
    """One connection: MQTT 3.1.1 as far as publishing with QoS 0 and 1 needs it."""

    def __init__(self, target: Target, client_id: str, sent: Sent) -> None:
        self._sent = sent
        sock: socket.socket = socket.create_connection((target.host, target.port), timeout=GIVE_UP)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.context is not None:
            sock = target.context.wrap_socket(sock, server_hostname=target.host)
        self._sock = sock
        self._out = bytearray()
        self._in = bytearray()
        self._mid = 0
        self._open = 0
        names = [client_id, *((target.username, target.password) if target.username else ())]
        flags = 0x02 | (0xC0 if target.username else 0)
        body = b"\x00\x04MQTT\x04" + bytes((flags,)) + struct.pack(">H", 600)
        body += b"".join(struct.pack(">H", len(text.encode())) + text.encode() for text in names)
        self._write(b"\x10" + length(len(body)) + body)
        answer = self._exactly(4)
        if answer[:2] != b"\x20\x02" or answer[3]:
            raise OSError(f"the broker refuses the connection, code {answer[3]}: look at its log")

    def publish(self, message: Message, topic: bytes) -> None:
        if message.qos:
            while self._open >= WINDOW:
                self.flush()
                self._hear(GIVE_UP)
            self._mid = self._mid % 65_535 + 1
            self._open += 1
        self._out += packet(message, self._mid, topic)
        self._sent.messages += 1
        if len(self._out) >= PIECE:
            self.flush()
            while self._hear(0):
                pass

    def flush(self) -> None:
        if self._out:
            self._write(bytes(self._out))
            self._out.clear()

    def listen(self, seconds: float, stop: threading.Event) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.is_set():
            self._hear(min(left, 0.5), give_up=False)

    def end(self) -> None:
        self.flush()
        while self._open:
            self._hear(GIVE_UP)
        self._write(b"\xe0\x00")

    def close(self) -> None:
        self._sock.close()

    def _write(self, data: bytes) -> None:
        self._sock.sendall(data)
        self._sent.up += len(data)

    def _exactly(self, count: int) -> bytes:
        while len(self._in) < count:
            self._read()
        found = bytes(self._in[:count])
        del self._in[:count]
        return found

    def _read(self) -> None:
        data = self._sock.recv(PIECE)
        if not data:
            raise OSError("the broker ended the connection: look at its log")
        self._sent.down += len(data)
        self._in += data

    def _hear(self, seconds: float, *, give_up: bool = True) -> bool:
        """Takes acknowledgements; whether anything came."""
        pending = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()
        if not pending and not select.select([self._sock], [], [], seconds)[0]:
            if seconds and give_up:
                raise OSError(f"the broker has acknowledged nothing for {seconds:g} s")
            return False
        self._read()
        while len(self._in) >= 2 and len(self._in) >= 2 + self._in[1]:
            if self._in[0] == 0x40:
                self._open -= 1
                self._sent.acknowledged += 1
            del self._in[: 2 + self._in[1]]
        return True

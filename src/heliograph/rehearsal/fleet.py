"""What many gateways say to a broker: the product's own output on simulated meters, its messages counted or sent.

A few gateways are worked out in full, under different clouds; the others of a fleet repeat one of them under a name of
their own, shifted by a part of a poll period. Framing and sending are our own, so that what is counted here and what
paho really writes check each other (tests/rehearsal/test_fleet.py).
"""

from __future__ import annotations

import heapq
import math
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from heliograph.core import daily, quantity
from heliograph.core.decode import shortest_float32
from heliograph.core.errors import HeliographError
from heliograph.core.health import Health, MeterHealth, OutputHealth, ProofHealth, UplinkHealth
from heliograph.core.plan import LineCost
from heliograph.core.plan import plan as requests
from heliograph.core.registers import MeterMap, Timing
from heliograph.core.shown import DayFigure, Sample
from heliograph.core.site import Meter
from heliograph.outputs.broker import Address, Broker, Message, authorities
from heliograph.outputs.home_assistant import HomeAssistant, Site
from heliograph.outputs.mqtt import Mqtt, Policy, Topics
from heliograph.outputs.sparkplug import Role, Sparkplug
from heliograph.rehearsal.meter import SimulatedMeter, usual_kw
from heliograph.rehearsal.sun import Sky

PICTURE = timedelta(seconds=30)
CLOSED_AFTER = timedelta(minutes=15)
DAYS = 14
# Meters of one gateway that have clouds of their own; further ones show what the first ones do.
DISTINCT = 2
KEEPALIVE = 30.0
# Estimates, in bytes: TLS 1.3 with AES-GCM puts 5 before a record and 17 behind it; a TCP segment has 20 of IPv4, 20 of
# TCP and 12 of its time stamps, and goes each way once.
TLS_RECORD = 22
TCP_SEGMENT = 52
# Packets on their way to the broker, per connection.
WINDOW = 1000
PIECE = 1 << 16
GIVE_UP = 60.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """A message, and when it was said, in seconds after the beginning."""

    after: float
    message: Message


@dataclass(frozen=True, slots=True)
class Plan:
    """The gateways of a fleet."""

    map: MeterMap
    meters: int
    start: datetime
    zone: ZoneInfo
    poll: timedelta = timedelta(seconds=10)
    # As [mqtt] of the configuration.
    every: timedelta = timedelta(seconds=10)
    dead_band: float = 0.5
    heartbeat: timedelta = timedelta(minutes=5)
    qos: int = 1
    root: str = "heliograph"
    home_assistant: str | None = None
    sparkplug: str | None = None
    """A group: the gateways are edge nodes of it, and say nothing else."""
    latitude: float = 1.35
    seed: int = 1

    def site(self, number: int) -> str:
        """All names have one length, and so have all topics."""
        return f"load-{number:06d}"


class Tape(Broker):
    """In the place of a connection: everything leaves at once, and is noted."""

    def __init__(
        self,
        name: str,
        _address: Address,
        clock: Stopwatch,
        *,
        will: Callable[[], Message | None] = lambda: None,
        on_connected: Callable[[], Iterable[Message]] = lambda: (),
        in_order: Callable[[], Message | None] = lambda: None,
        on_confirmed: Callable[[Message], None] = lambda _message: None,
        **_others: object,
    ) -> None:
        self.name = name
        self._stopwatch = clock
        self._greeting, self._last = on_connected, will
        self._following, self._arrived = in_order, on_confirmed
        self.spoken: list[Spoken] = []
        clock.tape = self

    def start(self) -> None:
        self.put(*self._greeting())
        self.wake()

    def put(self, *messages: Message) -> None:
        after = self._stopwatch.since_boot()
        self.spoken += [Spoken(after, message) for message in messages]

    def wake(self) -> None:
        while (message := self._following()) is not None:
            self.put(message)
            self._arrived(message)

    def state(self) -> OutputHealth:
        return OutputHealth(self.name, "", True, None)

    def close(self) -> None:
        if (will := self._last()) is not None:
            self.put(will)


class Stopwatch:
    """A clock that stands until it is moved (ports.Clock)."""

    rate = 1.0
    boot_id = "rehearsal"

    def __init__(self, start: datetime) -> None:
        self._start = start
        self.at = start
        self.tape: Tape | None = None

    def now(self) -> datetime:
        return self.at

    def since_boot(self) -> float:
        return (self.at - self._start).total_seconds()

    def trusted(self) -> bool:
        return True

    def wants_witness(self) -> bool:
        return False

    def vouch(self) -> None:
        """It is right by definition."""

    def ahead(self) -> float | None:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


# -- what one gateway says ---------------------------------------------------------------------------------------------


def speak(plan: Plan, number: int, span: timedelta, connection: type[Broker] = Tape) -> list[Spoken]:
    """Everything a gateway says from its start on, connected all the while; it has been running for two weeks."""
    clock = Stopwatch(plan.start)
    names = tuple(f"meter-{one:02d}" for one in range(1, plan.meters + 1))
    output = _output(plan, number, names, clock, connection)
    site = _Site(plan, number, names)
    output.start()
    end, picture = plan.start + span, plan.start
    while clock.at < end:
        for name, values in zip(names, site.read(clock.at), strict=True):
            output.sample(Sample(name, clock.at, values))
        if clock.at >= picture:
            output.picture(*site.picture(clock.at))
            picture += PICTURE
        clock.at += plan.poll
    spoken = list(clock.tape.spoken) if clock.tape is not None else []
    output.close()
    return spoken


def _output(
    plan: Plan, number: int, names: Sequence[str], clock: Stopwatch, connection: type[Broker]
) -> Mqtt | Sparkplug:
    """As app.py makes it of the configuration."""
    address = Address("127.0.0.1", 1883, plan.site(number))
    meters = tuple(
        Meter(
            name,
            "rs485",
            unit,
            plan.map,
            "",
            plan.map.production or "energy_export",
            usual_kw(plan.map),
            Timing(),
            plan.poll,
            timedelta(minutes=1),
        )
        for unit, name in enumerate(names, 1)
    )
    if plan.sparkplug is not None:
        role = Role(plan.sparkplug, plan.site(number), None, plan.every, plan.dead_band)
        return Sparkplug(address, clock, role, meters, lambda *_: (), connection=connection)
    topics = Topics(plan.root, plan.site(number))
    rider = None
    if (prefix := plan.home_assistant) is not None:
        site = Site(prefix, topics, meters, ("redex",), frozenset(), ("rs485",), plan.heartbeat, plan.qos)
        rider = HomeAssistant(site)
    policy = Policy(plan.every, plan.dead_band, plan.heartbeat)
    return Mqtt(address, topics, names, policy, clock, qos=plan.qos, rider=rider, connection=connection)


class _Site:
    """Meters that were commissioned two weeks before the start."""

    def __init__(self, plan: Plan, number: int, names: Sequence[str]) -> None:
        self._plan, self._names = plan, names
        self._closings: dict[tuple[int, date], int] = {}
        self._began = daily.day_of(plan.start, plan.zone) - timedelta(days=DAYS)
        began = daily.start_of(self._began, plan.zone)
        self._meters = [
            SimulatedMeter(
                plan.map,
                clock=lambda: plan.start,
                started=began,
                sky=Sky(plan.zone, seed=seed, latitude=plan.latitude),
                seed=seed,
                start_export_wh=12_345_678,
            )
            for seed in (plan.seed + DISTINCT * number + one for one in range(min(DISTINCT, len(names))))
        ]
        blocks = requests(
            plan.map, None, LineCost(0.0, 0.0, 0.0, 0.0), production=plan.map.production or "energy_export"
        )
        self._read = [
            (register.quantity, register.type.startswith("float"), known.kind == "counter")
            for block in blocks
            for register in block.registers
            if (known := quantity.find(register.quantity)) is not None and known.kind in ("instant", "counter")
        ]

    def read(self, at: datetime) -> list[Mapping[str, float | int | str]]:
        """What a round comes to, by meter: numbers as their registers show them."""
        distinct = [self._values(meter, at) for meter in self._meters]
        return [distinct[number % len(distinct)] for number in range(len(self._names))]

    def _values(self, meter: SimulatedMeter, at: datetime) -> Mapping[str, float | int | str]:
        values: dict[str, float | int | str] = {}
        for name, is_float, counts in self._read:
            value = meter.value(name, at)
            if counts:
                values[name] = int(value)
            else:
                values[name] = float(shortest_float32(float(value))) if is_float else round(float(value), 1)
        return values

    def _closing(self, meter: SimulatedMeter, day: date) -> int:
        """The counter at a day's end; kept, for a curve of long ago is slow to find."""
        found = self._closings.get((id(meter), day))
        if found is None:
            found = self._closings[id(meter), day] = meter.energy_wh(daily.end_of(day, self._plan.zone))
        return found

    def picture(self, at: datetime) -> tuple[Health, list[DayFigure]]:
        plan = self._plan
        today = daily.day_of(at, plan.zone)
        midnight = today - timedelta(days=1)
        days = []
        health = []
        for number, name in enumerate(self._names):
            meter = self._meters[number % len(self._meters)]
            total = meter.energy_wh(at)
            health.append(_meter_health(name, plan.map.name, at, total, total - self._closing(meter, midnight)))
            day = self._began
            while day < today:
                end = daily.end_of(day, plan.zone)
                if at >= end + CLOSED_AFTER and today - day <= timedelta(days=DAYS):
                    closing = self._closing(meter, day)
                    state = "confirmed" if at >= end + 2 * CLOSED_AFTER else "due"
                    period = closing - self._closing(meter, day - timedelta(days=1))
                    days.append(DayFigure(name, day, "closed", period, closing, deliveries={"redex": state}))
                day += timedelta(days=1)
        return (
            Health(
                site="",
                timezone=plan.zone.key,
                software="rehearsal",
                at=at,
                running=True,
                clock_trusted=True,
                meters=tuple(health),
                uplinks=(UplinkHealth("redex", {"confirmed": DAYS * len(self._names)}, None, "", "", None),),
                held=0,
                missing=0,
                proof=ProofHealth(0, "", "", 0, None, "", ""),
                buses={"rs485": {"requests": 0, "answers": 0}},
            ),
            days,
        )


def _meter_health(name: str, map: str, at: datetime, total: int, today: int) -> MeterHealth:
    return MeterHealth(
        id=name,
        bus="rs485",
        unit=1,
        map=map,
        state="ok",
        last_at=at,
        index_wh=total,
        today_wh=today,
        total_wh=total,
        last_day=None,
        last_day_wh=None,
        doubt="",
        error="",
        seam="",
        proposal="",
        total_at=at,
        rising_wh=total,
    )


# -- what it costs -----------------------------------------------------------------------------------------------------


def packet(message: Message, mid: int, topic: bytes | None = None) -> bytes:
    """A PUBLISH of MQTT 3.1.1, section 3.3."""
    name = message.topic.encode() if topic is None else topic
    body = struct.pack(f">H{len(name)}s", len(name), name)
    if message.qos:
        body += struct.pack(">H", mid)
    return (
        bytes((0x30 | message.qos << 1 | message.retain,))
        + _length(len(body) + len(message.payload))
        + body
        + message.payload
    )


def _length(count: int) -> bytes:
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


# -- sending it --------------------------------------------------------------------------------------------------------


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
        self._write(b"\x10" + _length(len(body)) + body)
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

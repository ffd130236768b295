"""What many gateways say to a broker: the product's own output on simulated meters, noted message by message.

A few gateways are worked out in full, under different clouds; the others of a fleet repeat one of them
(rehearsal/fleet_send.py). What it costs is reckoned in rehearsal/fleet_bytes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from heliograph.core import daily, quantity
from heliograph.core.decode import shortest_float32
from heliograph.core.health import Health, MeterHealth, OutputHealth, ProofHealth, UplinkHealth
from heliograph.core.plan import LineCost
from heliograph.core.plan import plan as requests
from heliograph.core.registers import MeterMap, Timing
from heliograph.core.shown import DayFigure, Sample
from heliograph.core.site import Meter
from heliograph.outputs.broker import Address, Broker, Message
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

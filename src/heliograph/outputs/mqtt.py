"""Shows a site to an MQTT broker: values, days and the state of the site. deploy/MQTT.md describes the topics.

Retained is only what cannot mislead when it is old: availability, a running total with its moment, days, the site's
state. A value that is left out because it hardly changed is told again after the heartbeat.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from heliograph.core import daily, quantity
from heliograph.core.health import Health, MeterHealth, OutputHealth
from heliograph.core.quantity import PRODUCTION_TODAY, PRODUCTION_TOTAL
from heliograph.core.shown import DayFigure, Quality, Sample
from heliograph.core.worth import EARLY, ENERGY_EVERY, moved
from heliograph.outputs.broker import Address, Broker, Message
from heliograph.ports import Clock

KEPT = timedelta(days=14)
"""Older days are taken back from the broker."""
AT_FIRST = timedelta(minutes=2)
"""How long after a start the state waits for the first round: that no meter was read yet is no alarm."""
MOST_DAYS = 2000
"""At the broker; a stranger may say any number of them."""
UP_AFTER = (1.0, 5.0)
"""Seconds, of real time, until somebody who came up is told everything: by chance, for all gateways hear it at once."""
VALUES_AFTER = 3.0
"""Seconds that it has for subscribing to what it learned."""
ATTENTION = 10
"""Alarms that are spelled out."""
LEDGER = (PRODUCTION_TOTAL.name, PRODUCTION_TODAY.name)
"""What does not get lost with a meter's answer."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Where a site says what. None of the words below a meter is the name of a quantity that a device may have."""

    root: str
    site: str

    @property
    def status(self) -> str:
        """`online` or, as the last will, `offline`."""
        return f"{self.root}/{self.site}/status"

    @property
    def state(self) -> str:
        return f"{self.root}/{self.site}/state"

    def quantity(self, meter: str, name: str) -> str:
        return f"{self.root}/{self.site}/{meter}/{name}"

    def availability(self, meter: str) -> str:
        """`online` while the meter answers, else `offline`; true only while the site's status is `online`."""
        return self.quantity(meter, "availability")

    def day(self, meter: str, day: date) -> str:
        return f"{self.root}/{self.site}/{meter}/day/{day.isoformat()}"

    def said_by(self, topic: str) -> tuple[str, list[str]] | None:
        """The meter, and what stands below it."""
        before = f"{self.root}/{self.site}/"
        if not topic.startswith(before):
            return None
        meter, *below = topic.removeprefix(before).split("/")
        return meter, below


@dataclass(frozen=True, slots=True)
class Policy:
    """What is worth a message."""

    every: timedelta
    """Least time between two of one quantity; for energy at least ENERGY_EVERY."""
    dead_band: float
    """Percent."""
    heartbeat: timedelta
    """Longest time between two of one quantity."""


@dataclass(frozen=True, slots=True)
class Value:
    at: datetime
    value: float | int | str | None
    """None where it is not known at that moment: quality is "bad"."""
    unit: str
    quality: Quality
    since: datetime | None = None
    """When it began to count, of what begins anew."""

    def payload(self) -> bytes:
        told = {"ts": stamp(self.at), "value": self.value, "unit": self.unit, "quality": self.quality}
        return packed(told if self.since is None else {**told, "since": stamp(self.since)})


def worth(told: Value | None, new: Value, policy: Policy) -> bool:
    """Whether a value is told, given the one that was told last."""
    if told is None or told.quality != new.quality or told.unit != new.unit:
        return True
    age = new.at - told.at
    if age < timedelta(0):  # the clock was set
        return True
    if age >= policy.heartbeat * EARLY:
        return True
    every = max(policy.every, ENERGY_EVERY) if new.unit in quantity.ENERGY_UNITS else policy.every
    return age >= every * EARLY and moved(told.value, new.value, new.unit, policy.dead_band)


class Rider(Protocol):
    """What speaks on the same connection, such as the discovery of Home Assistant. Called by one thread at a time."""

    subscriptions: Sequence[str]

    def connected(self) -> Iterable[Message]:
        """What is said after each connect, before the values, and to whoever came up. The values are said once more
        after it: who has just learned of them may have missed them.
        """
        ...

    def heard(self, topic: str, payload: bytes, /) -> Iterable[Message]:
        """What is said at once to a message."""
        ...

    def greeted(self, topic: str, payload: bytes, /) -> bool:
        """Whether it means that somebody came up to whom everything is said again."""
        ...

    def picture(self) -> Iterable[Message]:
        """What is said with each picture of the site."""
        ...


class Mqtt:
    """An output (ports.Output)."""

    name = "mqtt"

    def __init__(
        self,
        address: Address,
        topics: Topics,
        meters: Sequence[str],
        policy: Policy,
        clock: Clock,
        *,
        qos: int = 1,
        rider: Rider | None = None,
        connection: type[Broker] = Broker,
    ) -> None:
        """`connection`: what speaks to the broker; a rehearsal of many gateways has one of its own."""
        self._topics, self._meters, self._policy, self._qos, self._rider = topics, meters, policy, qos, rider
        self._lock = threading.Lock()
        """Held until what was decided has been put, or older words would overtake newer ones. The connection calls us
        in no lock of its own."""
        self._told: dict[tuple[str, str], Value] = {}
        """By meter and quantity: the values as they were told last."""
        self._seen: dict[tuple[str, str], Value] = {}
        """The same as they were seen last."""
        self._ledger_at: dict[tuple[str, str], datetime] = {}
        """When what has the moment of a stored reading was told last."""
        self._kept: dict[str, bytes] = {}
        """By topic: retained messages as they were said last, but for values."""
        self._state_at: datetime | None = None
        self._first_picture: datetime | None = None
        self._rider_at = self._values_at = math.inf
        """Of time.monotonic(): when the rider and the values are said again; the connection's thread's alone."""
        self._old: set[tuple[str, date]] = set()
        """Days that the broker has; some of them we may not know."""
        self._broker = connection(
            self.name,
            address,
            clock,
            will=lambda: Message(topics.status, b"offline", qos, retain=True),
            on_connected=self._connected,
            in_order=self._again,
            subscriptions=(
                topics.quantity("+", "day/+"),
                topics.availability("+"),
                *(rider.subscriptions if rider else ()),
            ),
            on_message=self._heard,
        )

    def start(self) -> None:
        self._broker.start()

    def sample(self, sample: Sample) -> None:
        if sample.meter not in self._meters:
            return
        with self._lock:
            self._broker.put(*self._available(sample.meter, up=sample.quality != "bad"), *self._values(sample))

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        with self._lock:
            self._broker.put(
                *self._state(health),
                *(one for meter in health.meters for one in self._totals(meter, health.at)),
                *(one for meter in health.meters if meter.state == "stale" for one in self._silent(meter, health.at)),
                *self._days(days),
                *(self._taken_back(health) if health.clock_trusted else ()),
                *(self._rider.picture() if self._rider else ()),
            )

    def state(self) -> OutputHealth:
        return self._broker.state()

    def close(self) -> None:
        self._broker.close()

    # What is said; under the lock

    def _available(self, meter: str, *, up: bool) -> Iterator[Message]:
        yield from self._keep(self._topics.availability(meter), b"online" if up else b"offline")

    def _silent(self, meter: MeterHealth, at: datetime) -> Iterator[Message]:
        """A line that hangs has no rounds that fail."""
        topic = self._topics.availability(meter.id)
        if self._kept.get(topic) == b"online":
            yield from self._available(meter.id, up=False)
            yield from self._values(Sample(meter.id, at, error=meter.error or "silent"))

    def _keep(self, topic: str, payload: bytes) -> Iterator[Message]:
        """A retained message, if it says something else than before."""
        if self._kept.get(topic) != payload:
            self._kept[topic] = payload
            yield Message(topic, payload, self._qos, retain=True)

    def _values(self, sample: Sample) -> Iterator[Message]:
        for name, number in sample.values.items():
            known = quantity.find(name)
            if known is None or known.kind not in ("instant", "counter"):
                continue  # serial numbers and settings are nobody's business at a broker
            value = Value(sample.at, number, known.unit, sample.quality)
            if isinstance(number, float) and not math.isfinite(number):
                value = replace(value, value=None, quality="bad")
            yield from self._tell(sample.meter, name, value)
        for (meter, name), seen in tuple(self._seen.items()):
            # Nobody may take for current what was not read this time.
            if meter == sample.meter and name not in sample.values and name not in LEDGER:
                yield from self._tell(meter, name, replace(seen, at=sample.at, value=None, quality="bad"))

    def _totals(self, meter: MeterHealth, at: datetime) -> Iterator[Message]:
        """From the ledger, so that a meter's swap or reset does not show in them."""
        total = Value(meter.total_at or at, meter.rising_wh, PRODUCTION_TOTAL.unit, meter.total_quality)
        today = Value(
            meter.today_at or at, meter.today_wh, PRODUCTION_TODAY.unit, meter.today_quality, meter.today_since
        )
        for name, value in ((PRODUCTION_TOTAL.name, total), (PRODUCTION_TODAY.name, today)):
            if value.value is not None:
                yield from self._tell(meter.id, name, value, at)
            elif (meter.id, name) in self._told:
                yield from self._tell(meter.id, name, replace(value, at=at))

    def _tell(self, meter: str, name: str, value: Value, picture: datetime | None = None) -> Iterator[Message]:
        """`picture`: when a value was shown that is of an earlier moment; its heartbeat goes by that."""
        self._seen[meter, name] = value
        before = self._ledger_at.get((meter, name))
        late = picture is not None and before is not None and picture - before >= self._policy.heartbeat * EARLY
        if late or worth(self._told.get((meter, name)), value, self._policy):
            self._told[meter, name] = value
            if picture is not None:
                self._ledger_at[meter, name] = picture
            yield self._message(meter, name, value)

    def _message(self, meter: str, name: str, value: Value) -> Message:
        topic = self._topics.quantity(meter, name)
        return Message(topic, value.payload(), self._qos, retain=name == PRODUCTION_TOTAL.name)

    def _days(self, days: Sequence[DayFigure]) -> Iterator[Message]:
        for one in days:
            if one.meter in self._meters:
                self._old.add((one.meter, one.day))
                yield from self._keep(self._topics.day(one.meter, one.day), packed(day_document(one)))

    def _state(self, health: Health) -> Iterator[Message]:
        self._first_picture = self._first_picture or health.at
        tried = all(self._topics.availability(meter) in self._kept for meter in self._meters)
        if not tried and timedelta(0) <= health.at - self._first_picture < AT_FIRST:
            return
        document = state_document(health)
        before = self._kept.get(self._topics.state)
        age = health.at - self._state_at if self._state_at is not None else None
        if before is not None and age is not None and timedelta(0) <= age < self._policy.heartbeat * EARLY:
            old = json.loads(before)
            if {**old, "ts": ""} == {**document, "ts": ""} or age < self._policy.every * EARLY:
                return
        self._state_at = health.at
        yield from self._keep(self._topics.state, packed(document))

    def _taken_back(self, health: Health) -> Iterator[Message]:
        """Days that nobody needs at the broker any more, also those that an earlier life of ours said."""
        first = daily.day_of(health.at, ZoneInfo(health.timezone)) - KEPT
        for meter, day in sorted(self._old):
            if day < first or meter not in self._meters:
                self._old.discard((meter, day))
                topic = self._topics.day(meter, day)
                self._kept.pop(topic, None)
                yield Message(topic, b"", self._qos, retain=True)

    def _current(self) -> list[Message]:
        kept = [Message(topic, payload, self._qos, retain=True) for topic, payload in self._kept.items()]
        values = [self._message(meter, name, value) for (meter, name), value in self._seen.items()]
        self._told.update(self._seen)
        return [*kept, *values]

    # What the connection calls

    def _connected(self) -> list[Message]:
        first = [Message(self._topics.status, b"online", self._qos, retain=True)]
        self._rider_at = self._values_at = math.inf
        with self._lock:
            if self._rider and (told := list(self._rider.connected())):
                first += told
                self._values_at = time.monotonic() + VALUES_AFTER
            return [*first, *self._current()]

    def _again(self) -> None:
        """Says again what is due to be; asked every few seconds (in_order) while the connection has nothing to do."""
        now = time.monotonic()
        if now >= self._rider_at and self._rider:
            self._rider_at, self._values_at = math.inf, now + VALUES_AFTER
            with self._lock:
                self._broker.put(*self._rider.connected())
        elif now >= self._values_at:
            self._values_at = math.inf
            with self._lock:  # what is retained need not be said twice
                self._broker.put(*(one for one in self._current() if not one.retain))

    def _heard(self, topic: str, payload: bytes) -> None:
        with self._lock:
            said = [*self._left(topic, payload), *(self._rider.heard(topic, payload) if self._rider else ())]
            if said:
                self._broker.put(*said)
        if self._rider is not None and self._rider.greeted(topic, payload):
            self._rider_at = time.monotonic() + random.uniform(*UP_AFTER)

    def _left(self, topic: str, payload: bytes) -> Iterator[Message]:
        """What an earlier life of ours said of a meter that is not ours any more; its days go with the others."""
        place = self._topics.said_by(topic)
        if place is None or not payload:
            return
        meter, below = place
        if below == ["availability"] and meter not in self._meters:
            for one in (self._topics.availability(meter), self._topics.quantity(meter, PRODUCTION_TOTAL.name)):
                yield Message(one, b"", self._qos, retain=True)
        day = _date(below[1]) if len(below) == 2 and below[0] == "day" else None
        if day is not None and len(self._old) < MOST_DAYS:
            self._old.add((meter, day))


def day_document(one: DayFigure) -> dict[str, Any]:
    return {
        "day": one.day.isoformat(),
        "state": one.state,
        "period_wh": one.period_wh,
        "total_wh": one.total_wh,
        "estimated": one.estimated,
        "reason": one.reason,
        "deliveries": dict(one.deliveries),
    }


def state_document(health: Health) -> dict[str, Any]:
    """How the site is. `backlog`: days that a platform has not confirmed; `stopped`: those of them it has not taken."""
    return {
        "ts": stamp(health.at),
        "software": health.software,
        "clock_trusted": health.clock_trusted,
        "storage": health.storage,
        "alarms": len(health.alarms),
        "attention": list(health.alarms[:ATTENTION]),
        "held_days": health.held,
        "missing_days": health.missing,
        "uplinks": {
            one.name: {
                "backlog": one.backlog,
                "stopped": one.stopped,
                "oldest": one.oldest.isoformat() if one.oldest else None,
                "trouble": one.trouble,
                "token_until": stamp(one.token_until) if one.token_until else None,
            }
            for one in health.uplinks
        },
        "meters": {
            one.id: {
                "state": one.state,
                "error": one.error,
                "doubt": one.doubt,
                "last_day": one.last_day.isoformat() if one.last_day else None,
                "last_day_wh": one.last_day_wh,
            }
            for one in health.meters
        },
        "buses": {
            name: {kind: counts.get(kind, 0) for kind in ("timeouts", "garbled", "foreign", "refused")}
            for name, counts in health.buses.items()
        },
    }


def packed(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def stamp(at: datetime) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None

"""Shows the site as a Sparkplug B edge node: the gateway is the node, each meter a device of it.

What is measured while nobody listens is not kept in memory: it stands in the store, and is read back from there and
sent as history once the host has its births again, slowly and behind everything that is new.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog

from heliograph.core.errors import StoreError
from heliograph.core.health import Health, MeterHealth, OutputHealth
from heliograph.core.plan import LineCost, plan
from heliograph.core.quantity import ENERGY_UNITS, PRODUCTION_TODAY, PRODUCTION_TOTAL, find
from heliograph.core.registers import Register
from heliograph.core.shown import DayFigure, PastSample, Sample
from heliograph.core.site import Meter
from heliograph.core.worth import EARLY, ENERGY_EVERY, moved
from heliograph.outputs import broker
from heliograph.outputs.broker import Address, Broker, Message
from heliograph.outputs.sparkplug_history import STEP, UNKNOWN, Missing
from heliograph.outputs.sparkplug_payload import Quality, Type, Value, wishes
from heliograph.outputs.sparkplug_session import NUMBERS, REBIRTH, Named, Session
from heliograph.ports import Clock

log = structlog.get_logger()

Past = Callable[[str, datetime, datetime, int], Sequence[PastSample]]
"""Meter, since, until, at most so many: what was stored of that time, oldest first. Raises StoreError."""

# A meter that was silent in so many rounds in a row is a dead device; one lost round is bad luck.
SILENT_ROUNDS = 2
# Readings in one message of history, and the pause behind it, in seconds of the clock: a week of ten meters with a
# sample a minute takes 34 minutes and 25 kB/s.
PIECE = 10
PAUSE = 0.2
# Readings that are taken from the store at once: some 300 kB.
PAGE = 200
# Where nothing is found, or the store cannot be read.
REST = timedelta(seconds=10)
LEAST_PAUSE = 0.01
CLOSE_WITHIN = 0.2
MOST_TEXT = 1000
MOST_TOLD = 20
"""Names of foreign commands that are told once each."""

SELDOM = int(ENERGY_EVERY / timedelta(milliseconds=1) * EARLY)
OF_A_METER = (
    Named(PRODUCTION_TOTAL.name, Type.INT64, PRODUCTION_TOTAL.unit, every=SELDOM),
    Named(PRODUCTION_TODAY.name, Type.INT64, PRODUCTION_TODAY.unit, every=SELDOM),
    Named("state", Type.STRING),
    Named("last_day", Type.STRING),
    Named("last_day_energy", Type.INT64, "Wh"),
)
OF_THE_NODE = (
    Named("software", Type.STRING),
    Named("clock_trusted", Type.BOOLEAN),
    Named("backlog", Type.INT32, "days"),
    Named("held_days", Type.INT32, "days"),
    Named("missing_days", Type.INT32, "days"),
    Named("alarms", Type.INT32),
    Named("alarm_text", Type.STRING),
)


@dataclass(frozen=True, slots=True)
class Role:
    """What we are in the Sparkplug world."""

    group: str
    node: str
    host: str | None = None
    """Id of the primary host application: without it nothing is said."""
    every: timedelta = timedelta(0)
    """No value goes out more often."""
    dead_band: float = 0.0
    """Percent: smaller changes are left out (core/worth.py)."""
    history: timedelta = timedelta(days=7)
    """How far back a host is told of what it missed."""


class _Page(NamedTuple):
    meter: str
    since: datetime
    rows: Sequence[PastSample]


class Sparkplug:
    name = "sparkplug"

    def __init__(
        self,
        address: Address,
        clock: Clock,
        role: Role,
        meters: Sequence[Meter],
        past: Past,
        memory: Path | None = None,
        connection: type[Broker] = Broker,
    ) -> None:
        """`memory`: a small file for what has to outlive the process: the last bdSeq, and since when a host misses
        something. `connection`: what speaks to the broker; a rehearsal of many gateways has one of its own."""
        self._clock, self._role, self._past, self._memory = clock, role, past, memory
        self._meters = {meter.id: meter for meter in meters}
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        measured = {meter.id: announced(meter, role) for meter in meters}
        self._names = {id: tuple(one.name for one in named) for id, named in measured.items()}
        devices = {id: (*named, *OF_A_METER) for id, named in measured.items()}
        self._session = Session(role.group, role.node, OF_THE_NODE, devices)
        self._bd_seq, since = self._remembered()
        self._missing = Missing(self._meters, role.history, since)
        self._whole = False
        """Whether it is remembered that nothing is missing."""
        self._up = False
        self._host = _Host()
        self._silent = dict.fromkeys(self._meters, 0)
        self._told: set[str] = set()
        self._page: _Page | None = None
        self._rests: dict[str, float] = {}
        """By meter: until when, in seconds since boot."""
        self._piece: tuple[str, Sequence[PastSample]] | None = None
        """Goes out when nothing new waits."""
        self._crashed = False
        self._closing = threading.Event()
        self._stirred = threading.Event()
        self._replay = threading.Thread(target=self._replays, name="sparkplug history", daemon=True)
        to_us = [f"spBv1.0/{role.group}/NCMD/{role.node}", f"spBv1.0/{role.group}/DCMD/{role.node}/+"]
        self._state_topic = None if role.host is None else f"spBv1.0/STATE/{role.host}"
        self._broker = connection(
            self.name,
            address,
            clock,
            will=self._will,
            on_connected=self._connected,
            on_lost=self._lost,
            in_order=self._next,
            subscriptions=[*to_us, *([self._state_topic] if self._state_topic else [])],
            on_message=self._heard,
        )

    # The port

    def start(self) -> None:
        with self._lock:
            self._missing.lost(self._clock.since_boot())  # what is measured before somebody listens
        self._replay.start()
        self._broker.start()

    def sample(self, sample: Sample) -> None:
        at = _millis(sample.at)
        with self._lock:
            if sample.meter not in self._meters:
                return
            if sample.error:
                self._silent[sample.meter] += 1
                if self._silent[sample.meter] >= SILENT_ROUNDS:
                    self._session.fails(sample.meter, at)
            else:
                self._silent[sample.meter] = 0
                self._session.note(
                    sample.meter, shown(self._meters[sample.meter], self._names[sample.meter], sample), at
                )
                self._session.answers(sample.meter, at)
        self._broker.wake()
        self._stirred.set()

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        del days  # the newest one of each meter stands in `health`
        at = _millis(health.at)
        with self._lock:
            self._session.note_own(of_the_node(health), at)
            for meter in health.meters:
                if meter.id not in self._meters:
                    continue
                if meter.state == "stale":
                    self._session.fails(meter.id, at)
                read = at if meter.last_at is None else _millis(meter.last_at)
                self._session.note(meter.id, of_a_meter(meter), read)
                for name, (value, quality, moment) in of_the_ledger(meter).items():
                    of = at if value is None or moment is None else _millis(moment)
                    self._session.note(meter.id, {name: (value, quality)}, of)
        self._broker.wake()

    def state(self) -> OutputHealth:
        state = self._broker.state()
        with self._lock:
            waits = self._up and self._role.host is not None and not self._host.online
            state = replace(state, left_out=state.left_out + self._session.left_out)
        if waits:
            return replace(state, trouble=f"waits for the host {self._role.host}, which is not online. Start it.")
        return state

    def close(self) -> None:
        self._closing.set()
        self._stirred.set()
        self._broker.close()
        if self._replay.is_alive():
            self._replay.join(CLOSE_WITHIN)

    # What the connection calls

    def _will(self) -> Message:
        """A number of its own for each connection, so that a late death is not taken for that of the next life."""
        with self._lock:
            self._bd_seq = (self._bd_seq + 1) % NUMBERS
            death = self._session.death(self._bd_seq, self._now())
        self._remember()
        return death

    def _connected(self) -> Sequence[Message]:
        with self._lock:
            self._up = True
            self._host = _Host()
            if self._role.host is None:
                self._begin()
        return ()

    def _lost(self, _unconfirmed: Sequence[Message]) -> None:
        with self._lock:
            self._up = False
            self._end()
        self._remember()

    def _next(self) -> Message | None:
        with self._lock:
            if self._session.owes_birth and self._clock.trusted():
                # Until here, and not since the connection is there: births show the newest values only.
                self._missing.heard_again(self._clock.now(), self._clock.since_boot())
            if (message := self._session.next(self._now())) is not None:
                self._stirred.set()  # a device that was born may be told of its past
                return message
            if self._piece is None:
                return None
            (meter, rows), self._piece = self._piece, None
            told = [(_millis(row.at), {**row.values, **_total(row)}) for row in rows]
            message = self._session.history(meter, told, self._now())
            if message is not None:
                self._missing.sent(meter, rows[-1].at, self._clock.since_boot())
                self._stirred.set()
            return message

    def _heard(self, topic: str, data: bytes) -> None:
        if topic == self._state_topic:
            self._heard_host(data)
            return
        try:
            wished = wishes(data)
        except ValueError as error:
            self._ignored(topic, f"no Sparkplug payload: {error}")
            return
        for wish in wished:
            if "/NCMD/" in topic and wish.name == REBIRTH:
                if wish.boolean:
                    with self._lock:
                        self._session.rebirth()
                    log.info("sparkplug_rebirth", asked_on=topic)
            else:
                self._ignored(topic, wish.name)

    def _ignored(self, topic: str, what: str) -> None:
        """Once each: somebody may command in a loop."""
        if what not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(what)
            hint = f"The gateway only reads. The one command it knows is {REBIRTH} to the node."
            log.warning("sparkplug_command_ignored", topic=topic, command=what[:MOST_TEXT], hint=hint)

    def _heard_host(self, data: bytes) -> None:
        with self._lock:
            before, self._host = self._host.online, self._host.says(data)
            if self._host.online and not self._session.open and self._up:
                self._begin()
            elif before and not self._host.online:
                self._end()
                self._broker.renew(f"the host {self._role.host} is offline")

    # Within the lock

    def _begin(self) -> None:
        self._session.begin(self._bd_seq)
        self._page = self._piece = None
        self._rests.clear()
        self._stirred.set()

    def _end(self) -> None:
        """Nobody listens, perhaps for longer than we know: a frozen peer is found out after two keepalives,
        or later where this computer is busy."""
        self._session.end()
        unsure = 2 * max(broker.KEEPALIVE, broker.LEAST_KEEPALIVE * self._clock.rate)
        self._missing.lost(min(self._clock.since_boot() - unsure, self._broker.arrived()))

    def _date(self) -> bool:
        """Whether what is missing has its dates: on a clock that is not trusted it has to wait for them."""
        if not self._clock.trusted():
            return False
        self._missing.set_right(self._clock.now())
        if self._session.announced and self._missing.undated:
            self._session.rebirth()  # history is older than the births, and those of a wrong clock are not right
            self._broker.wake()
        return True

    def _now(self) -> int:
        return _millis(self._clock.now())

    def _remembered(self) -> tuple[int, datetime | None]:
        try:
            text = self._memory.read_text(encoding="ascii") if self._memory else "{}"
            told = json.loads(text)
            bd_seq, since = int(told.get("bdSeq", -1)), told.get("missing_since")
            if since is None:
                return bd_seq, None
            if (at := datetime.fromisoformat(since)).tzinfo is None:
                raise ValueError(f"{since} has no zone")
            return bd_seq, at.astimezone(UTC)
        except FileNotFoundError:
            return -1, None
        except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            # Half written in a power cut, or edited: it begins anew.
            hint = "Nothing to do: bdSeq begins at 0 again, and all that `history` reaches back to is told once more."
            log.warning("sparkplug_memory_unreadable", file=str(self._memory), error=str(error), hint=hint)
            return -1, UNKNOWN

    def _remember(self, *, once: bool = False) -> None:
        """Not flushed: the page outlives the process, and a broker knows of a power cut before we are back.

        `once`: only that nothing is missing any more. Never within the lock, for a card may take its time.
        """
        if self._memory is None:
            return
        with self._writing, suppress(OSError):  # a card that fails is told elsewhere; in this life all is known
            with self._lock:
                now = self._clock.now() if self._clock.trusted() else None
                oldest, bd_seq = self._missing.oldest(now, self._clock.since_boot()), self._bd_seq
                if once and (oldest is not None or self._whole):
                    return
                self._whole = oldest is None
            told = json.dumps({"bdSeq": bd_seq, "missing_since": oldest and oldest.isoformat()})
            handle = os.open(self._memory, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(handle, told.ljust(100).encode("ascii"), 0)
            finally:
                os.close(handle)

    # History's own thread

    def _replays(self) -> None:
        while True:
            self._stirred.wait()
            if self._closing.is_set():
                return
            self._stirred.clear()
            try:
                pause = self._step()
                self._remember(once=True)
            except Exception:  # a fault of ours must not end history for good; its traceback is kept once
                pause = REST.total_seconds()
                if not self._crashed:
                    self._crashed = True
                    log.exception("output_crashed", output=self.name, doing="history")
            if pause is not None:
                self._closing.wait(max(pause / self._clock.rate, LEAST_PAUSE))
                self._stirred.set()

    def _step(self) -> float | None:
        """Puts the next piece at hand. Seconds of the clock to the next step; None where something must come first."""
        with self._lock:
            if self._piece is not None:
                return PAUSE
            now, up = self._clock.now(), self._clock.since_boot()
            if not self._date():
                return REST.total_seconds()
            awake = [meter for meter in self._session.announced if self._rests.get(meter, up) <= up]
            found = self._missing.next(awake)
            if found is None:
                return REST.total_seconds() if self._missing.next(self._session.announced) else None
            meter, span = found
            page = self._page
        stored = True
        if page is None or (page.meter, page.since) != (meter, span.since) or not page.rows:
            try:
                page = _Page(meter, span.since, self._past(meter, span.since, span.until, PAGE))
                if not page.rows and (stored := bool(self._past(meter, span.until, now, 1))):
                    # A meter's readings are stored in their order, so now everything is there, if anything is.
                    page = _Page(meter, span.since, self._past(meter, span.since, span.until, PAGE))
            except StoreError as error:
                log.debug("sparkplug_history_waits", error=error.message)
                return REST.total_seconds()
        rows = page.rows[:PIECE]
        with self._lock:
            if self._missing.next([meter]) != (meter, span):
                return 0.0  # the connection was lost meanwhile
            if rows:
                self._piece = meter, rows
                self._page = _Page(meter, rows[-1].at + STEP, page.rows[PIECE:])
            elif stored:
                self._missing.sent(meter, span.until, up)
            else:
                # Nothing newer is stored either: it may wait for the card, or the clock, with all that was missed.
                self._rests[meter] = up + REST.total_seconds()
        self._broker.wake()
        return PAUSE


@dataclass(frozen=True, slots=True)
class _Host:
    """A primary host application, by what it says of itself. Only words that are not older than the last one count."""

    online: bool = False
    at: float = 0

    def says(self, data: bytes) -> _Host:
        try:
            told = json.loads(data)
            online, at = told["online"], told["timestamp"]
        except (ValueError, TypeError, KeyError):
            return self
        if not isinstance(online, bool) or not isinstance(at, int | float) or at < self.at:
            return self
        return _Host(online, at)


# What is shown


def announced(meter: Meter, role: Role) -> tuple[Named, ...]:
    """A metric for each quantity that is read in every round, under its own name."""
    blocks = plan(meter.map, None, LineCost(0.0, 0.0, 0.0, 0.0), production=meter.production)
    registers = {register.quantity: register for block in blocks for register in block.registers}
    found = []
    for name, register in registers.items():
        quantity = find(name)
        if quantity is not None and quantity.kind in ("instant", "counter"):  # settings are nobody's business there
            worth = partial(moved, unit=quantity.unit, percent=role.dead_band)
            every = max(role.every, ENERGY_EVERY) if quantity.unit in ENERGY_UNITS else role.every
            early = int(every / timedelta(milliseconds=1) * EARLY)
            found.append(Named(name, _type(register, quantity.unit), _unit(quantity.unit), worth, early))
    return tuple(found)


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit


def _type(register: Register, unit: str) -> Type:
    """Energy is whole Wh; so are states and codes whole numbers. Signed, for a net counter may be negative."""
    if register.type == "text":
        return Type.STRING
    if unit in ENERGY_UNITS:
        return Type.INT64
    whole = not register.type.startswith("float") and register.scale == 1 and register.scale_register is None
    return Type.INT64 if unit == "" and whole and not register.times else Type.DOUBLE


def shown(meter: Meter, names: Iterable[str], sample: Sample) -> Mapping[str, tuple[Value, Quality]]:
    """What of a sample goes out, each with its quality.

    A value that is doubted is bad, one whose moment may be wrong is stale; one that is not there is null and bad.
    """
    good = Quality.GOOD if sample.trusted else Quality.STALE
    return {
        name: (sample.values.get(name), Quality.BAD if sample.doubt and name == meter.production else good)
        for name in names
    }


QUALITY: Mapping[str, Quality] = {
    "good": Quality.GOOD,
    "uncertain": Quality.STALE,  # it is true, but of an earlier moment
    "bad": Quality.BAD,
}


def of_the_ledger(meter: MeterHealth) -> Mapping[str, tuple[Value, Quality, datetime | None]]:
    """Energy, with the moment that it is of."""
    return {
        PRODUCTION_TOTAL.name: (meter.rising_wh, QUALITY[meter.total_quality], meter.total_at),
        PRODUCTION_TODAY.name: (meter.today_wh, QUALITY[meter.today_quality], meter.today_at),
    }


def of_a_meter(meter: MeterHealth) -> Mapping[str, tuple[Value, Quality]]:
    return {
        "state": (meter.state, Quality.GOOD),
        "last_day": (meter.last_day.isoformat() if meter.last_day else None, Quality.GOOD),
        "last_day_energy": (meter.last_day_wh, Quality.GOOD),
    }


def of_the_node(health: Health) -> Mapping[str, Value]:
    return {
        "software": f"heliograph {health.software}",
        "clock_trusted": health.clock_trusted,
        "backlog": sum(uplink.backlog for uplink in health.uplinks),
        "held_days": health.held,
        "missing_days": health.missing,
        "alarms": len(health.alarms),
        "alarm_text": "\n".join(health.alarms)[:MOST_TEXT],
    }


def _total(row: PastSample) -> Mapping[str, Value]:
    return {PRODUCTION_TOTAL.name: row.total_wh} if row.total_wh is not None else {}


def _millis(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)

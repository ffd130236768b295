"""Reads the meters of one bus, judges what came, and stores what has to be kept, in one commit per round.

A round that cannot be stored waits in memory and is offered again: the meters are read on, whatever the card does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from threading import RLock
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from heliograph.core import daily
from heliograph.core import line as lines
from heliograph.core.coverage import Outcome
from heliograph.core.daylight import Position
from heliograph.core.decode import Absent, addresses, value, width
from heliograph.core.errors import (
    BusError,
    BusRefused,
    BusUnreachable,
    StoreError,
    StoreFault,
    UsageError,
    WrongDevice,
)
from heliograph.core.plan import Block, Learned, LineCost, after_refusal, line_cost, plan
from heliograph.core.plausible import NEVER, Known, Value, doubts, step_wh
from heliograph.core.readings import RATIO, STRANGER, Moment, Reading, Source
from heliograph.core.registers import Match, Register, Timing
from heliograph.core.shown import Sample
from heliograph.core.site import Meter
from heliograph.ports import Bus, Clock
from heliograph.store import Store
from heliograph.work.amend import record_rollover
from heliograph.work.change import base_ratios, other_ratio, pending, told_ratios
from heliograph.work.count_polls import Tally, failed_as, read_as
from heliograph.work.health import Live
from heliograph.work.read_block import BlockRead, read_block, remembered

log = structlog.get_logger()

# Dead meters may take one part in twenty of the bus (5 %): after a try, nineteen times as long is theirs no more.
DEAD_REST = 19
# Requests that one round may spend on finding out what a device refuses; the rest is found out in the next.
REFUSALS = 24
# Where the time since a stored reading is not known, the counter may have risen by anything a plant can produce.
LONG_AGO = timedelta(days=3650).total_seconds()
# Codes of a kind that a message spells out; some families have forty.
FEW = 6


# Readings that may wait for the store, on a bus and for each of its meters: some 2 kB each.
MOST_WAITING = 1000
MOST_OF_A_METER = 20
# Readings that are stored in one commit when the store is back; a usual round has fewer.
AT_ONCE = 250
# While space is short, and where too many wait: one sample in this time, beside those at midnights and of doubts.
SPARSE = timedelta(hours=1)
_APART = (timedelta(minutes=5), timedelta(minutes=20), SPARSE, timedelta(hours=6), timedelta(days=1))


@dataclass
class Watched:
    """What is remembered about a meter between rounds; nothing here is evidence."""

    meter: Meter
    learned: Learned
    blocks: tuple[Block, ...]
    known: dict[str, Known] = field(default_factory=dict)
    identified: bool = False
    stranger: str = ""
    """Why the device is not the one its readings began with; '' when it is."""
    changed: str = ""
    """Why the counter does not mean what is booked of it, until somebody has confirmed; '' when it does."""
    ratios: dict[str, float] = field(default_factory=dict)
    """What the device said last of the ratios that multiply its counter."""
    failures: int = 0
    """Rounds in a row without an answer."""
    unstored: Reading | None = None
    stored: Reading | None = None
    """The newest reading that was given to the store, or waits for it."""
    serial: str | None = None
    """Of the device that the readings are from."""
    shown: str | None = None
    """Of the device that answers."""
    untold: bool = False
    """Something was learned here that the store does not know yet."""
    blind: bool = False
    """The store could not be asked what was known of the meter: its readings have to be judged once more."""

    @property
    def dead(self) -> bool:
        """One lost round is bad luck; from the second on the others come first."""
        return self.failures >= 2


class PolledBus:
    """One bus and its meters. `lock` is held for a round, and by whoever looks at a meter beside the rounds."""

    def __init__(
        self,
        bus_id: str,
        url: str,
        meters: Sequence[Meter],
        connect: Callable[[], Bus],
        position: Position | None = None,
    ) -> None:
        self.bus_id = bus_id
        self.tally = Tally(meters, position)
        self.order = list(meters)
        self.lock = RLock()
        self.dead_until = 0.0
        self.waiting: list[Reading] = []
        """What the store has not taken yet, in order of time."""
        self.dropped = 0
        """Samples that had to make room for others while they waited."""
        self._line = lines.parse(url)
        self._connect = connect
        self._bus: Bus | None = None
        self._watched: dict[str, Watched] = {}

    def bus(self) -> Bus:
        if self._bus is None:
            self._bus = self._connect()
        return self._bus

    def close(self) -> None:
        if self._bus is not None:
            self._bus.close()
            self._bus = None

    def leave(self) -> None:
        """Lets go of the TCP connection where a device on it wants that between two rounds; the next read comes back.

        What the line remembers, such as answers that are still owed, stays.
        """
        wanted = self._line.way != "serial" and any(meter.map.close_after_poll for meter in self.order)
        if wanted and self._bus is not None:
            self._bus.close()

    def cost(self, meter: Meter) -> LineCost:
        return line_cost(self._line, meter.timing)

    def plan(self, meter: Meter, learned: Learned, quantities: Sequence[str] | None = None) -> tuple[Block, ...]:
        """The requests for a meter, the one with the production counter as early as may be."""
        blocks = plan(
            meter.map,
            quantities,
            self.cost(meter),
            max_words=learned.max_words,
            refused=learned.refused,
            production=meter.production,
        )
        factors = {name for register in meter.map.registers for name in register.times}

        def turn(block: Block) -> int:
            names = {register.quantity for register in block.registers}
            return 0 if names & factors else 1 if meter.production in names else 2

        return tuple(sorted(blocks, key=turn))

    def forget(self, meter: Meter) -> None:
        """What is known of the meter is taken from the store again: a seam has changed it."""
        self._watched.pop(meter.id, None)

    def watch(self, meter: Meter, store: Store | None, clock: Clock) -> Watched:
        """What we know of the meter: what it taught us, and what it showed last, in this run or an earlier one."""
        if meter.id not in self._watched:
            found = Watched(meter, Learned(), ())
            if store is not None:
                try:
                    found.serial = store.readings.serial(meter.id)
                    if learned := store.journal.learned(_subject(meter)):
                        found.learned = Learned.from_json(learned)
                    found.changed = _changed(meter, store)
                    found.stored, found.known = _believed(meter, store, clock)
                    found.ratios = base_ratios(meter, store)
                except StoreFault:
                    found = Watched(meter, Learned(), (), blind=True)
            found.blocks = self.plan(meter, found.learned)
            self._watched[meter.id] = found
        return self._watched[meter.id]

    def watched(self) -> list[Watched]:
        return list(self._watched.values())


def poll(line: PolledBus, store: Store, clock: Clock, zone: ZoneInfo, live: Live, stopping: Callable[[], bool]) -> None:
    """One round over the bus. A meter that fails is reported and tried again; it holds up no other."""
    with line.lock:
        try:
            line.waiting += _round(line, store, clock, zone, live, stopping)
        finally:
            line.leave()
        most = max(MOST_WAITING, MOST_OF_A_METER * len(line.order))
        left = thinned(line.waiting, zone, most, SPARSE if store.reserve.short else None)
        if len(left) < len(line.waiting):
            line.dropped += len(line.waiting) - len(left)
            kept = {id(one) for one in left}
            line.tally.lost([one for one in line.waiting if id(one) not in kept], store, zone)
            line.waiting = left
        if store.fault is not None:
            return
        stored = hand_over(line, store, clock, zone)
    for meter in [meter for meter in line.order if any(one.meter == meter.id and one.doubt for one in stored)]:
        _roll_over(line, meter, store, clock)


def hand_over(line: PolledBus, store: Store, clock: Clock, zone: ZoneInfo) -> list[Reading]:
    """Gives the store what it has not got yet, oldest first; what it does not take waits for the next round."""
    for one in line.watched():
        if one.blind:
            _catch_up(line, one, store, clock)
        if one.untold:
            if one.serial is not None and store.readings.serial(one.meter.id) is None:
                store.readings.remember_serial(one.meter.id, one.serial)
            store.journal.learn(_subject(one.meter), one.learned.as_json())
            one.untold = False
    stored: list[Reading] = []
    covered = line.tally.due(clock.since_boot(), committing=bool(line.waiting))
    while line.waiting or covered:
        batch = line.waiting[: max(AT_ONCE, len(line.order))]
        try:
            store.readings.add(batch, covered)
        except StoreError:
            raise
        except Exception:  # raised again; but what breaks the program once breaks it again and must not block the rest
            del line.waiting[: len(batch)]
            raise
        del line.waiting[: len(batch)]
        line.tally.stored(batch, store, zone)
        line.tally.written(covered, clock.since_boot())
        covered = []
        stored += batch
    line.tally.caught_up()
    if line.dropped:
        store.journal.event(clock.now(), "thinned", line.bus_id, f"{line.dropped} samples, before they could be stored")
        line.dropped = 0
    return stored


def _roll_over(line: PolledBus, meter: Meter, store: Store, clock: Clock) -> None:
    """A counter that fell may have gone over its end, where the map knows that end; any other fall stays in doubt."""
    with line.lock:
        one = line.watch(meter, store, clock)
        if not clock.trusted() or one.stranger or one.changed:
            return
        try:
            seam = record_rollover(meter, store, clock.now())
        except UsageError as refused:
            log.debug("no_rollover", meter=meter.id, why=refused.message)
            return
        if seam is not None:
            line.forget(meter)
            log.warning("rolled_over", meter=meter.id, seam=str(seam))


def thinned(waiting: list[Reading], zone: ZoneInfo, most: int, apart: timedelta | None = None) -> list[Reading]:
    """At most `most` of them: the newest, both sides of midnights and changes stay, plain samples thin out.

    With `apart`, plain samples lie that far apart however few they are.
    """
    if apart is not None:
        waiting = _spaced(waiting, zone, apart, doubts=True)
    if len(waiting) <= most:
        return waiting
    for distance in _APART:
        if len(waiting) > most // 2:
            waiting = _spaced(waiting, zone, distance, doubts=distance < SPARSE)
    return waiting[-most:]


def _spaced(waiting: Sequence[Reading], zone: ZoneInfo, apart: timedelta, *, doubts: bool) -> list[Reading]:
    lines: dict[str, list[int]] = {}
    for number, reading in enumerate(waiting):
        lines.setdefault(reading.meter, []).append(number)
    kept: list[int] = []
    for numbers in lines.values():
        last: datetime | None = None
        for place, number in enumerate(numbers):
            reading = waiting[number]
            beside = [waiting[one] for one in (*numbers[max(place - 1, 0) : place], *numbers[place + 1 : place + 2])]
            matters = len(beside) < 2 or any(
                daily.day_of(one.moment.at, zone) != daily.day_of(reading.moment.at, zone)
                or one.moment.trusted != reading.moment.trusted
                or (doubts and one.doubt != reading.doubt)
                for one in beside
            )
            if matters or last is None or reading.moment.at - last >= apart:
                kept.append(number)
                last = reading.moment.at
    return [waiting[number] for number in sorted(kept)]


def _catch_up(line: PolledBus, one: Watched, store: Store, clock: Clock) -> None:
    """Judges what was read before the store could be asked: by serial number, ratios and the counter it knows."""
    meter, serial = one.meter, store.readings.serial(one.meter.id)
    one.changed = _changed(meter, store)
    stored, known = _believed(meter, store, clock)
    if learned := store.journal.learned(_subject(meter)):
        one.learned = Learned.from_json(learned)
        one.blocks = line.plan(meter, one.learned)
        one.untold = False
    stranger = ""
    if one.serial is not None and serial is not None and one.serial != serial:
        stranger = _stranger(serial, one.serial)
    one.ratios |= base_ratios(meter, store)
    one.serial, one.untold = serial or one.serial, one.untold or serial is None
    base, register = known.get(meter.production), meter.map.register(meter.production)
    for number, reading in enumerate(line.waiting):
        if reading.meter != meter.id or not reading.good or reading.index_wh is None:
            continue
        at, doubt = reading.moment.since_boot, stranger or other_ratio(one.ratios, told_ratios(meter, reading.values))
        doubt = _joined(doubt, one.changed)
        if base is not None and register is not None and isinstance(base.value, int):
            steps = {meter.production: step_wh(register, base.value)}
            pair = {meter.production: base.value}, {meter.production: reading.index_wh}
            found = doubts(*pair, at - base.at, meter.rated_kw, steps, production=meter.production)
            doubt = doubt or next((one.text for one in found if one.settled_by == NEVER), "")
        if doubt:
            line.waiting[number] = replace(reading, doubt=doubt)
        else:
            base = Known(reading.index_wh, at)
    if any(reading.meter == meter.id and reading.doubt for reading in line.waiting):
        one.known, one.identified = known, False
    one.stored = one.stored or stored
    one.blind = False


def _round(
    line: PolledBus, store: Store, clock: Clock, zone: ZoneInfo, live: Live, stopping: Callable[[], bool]
) -> list[Reading]:
    keep: list[Reading] = []

    def note(id: str, outcome: Outcome, moment: Moment) -> None:
        line.tally.note(id, outcome, moment, store, zone)

    watched = [line.watch(meter, store, clock) for meter in line.order]
    # Dead meters come last, one a round at most and not all the time, so that the living keep their cadence.
    dead = [one for one in watched if one.dead and clock.since_boot() >= line.dead_until]
    asked = [one for one in watched if not one.dead] + dead[:1]
    for one in asked:
        if stopping():
            break
        began, id = clock.since_boot(), one.meter.id
        try:
            reading = read_meter(line, one, clock, live)
        except BusUnreachable as error:
            # The line itself is down: no meter on it can be asked, and none of them is to blame.
            error = one_client(error, one.meter)
            if live.errors.get(id) != error.message:
                log.warning("bus_unreachable", bus=line.bus_id, error=error.message, hint=error.hint)
            live.errors.update({meter.id: error.message for meter in line.order})
            for meter in line.order:
                _failed(live, clock, meter.id, error.message)
            for other in watched:
                other.identified = False
            for other in asked[asked.index(one) :]:
                note(other.meter.id, "unreachable", moment_at(clock, clock.since_boot()))
            break
        except BusError as error:
            one.failures += 1
            one.identified = False
            note(id, failed_as(error), moment_at(clock, clock.since_boot()))
            if one.dead:
                now = clock.since_boot()
                line.dead_until = now + (now - began) * DEAD_REST
                line.order.remove(one.meter)
                line.order.append(one.meter)
            if live.errors.get(id) != error.message:
                log.warning("meter_failed", meter=id, error=error.message, hint=error.hint)
            live.errors[id] = error.message
            _failed(live, clock, id, error.message, clock.since_boot() - began)
            continue
        one.failures = 0
        if live.errors.pop(id, None) is not None:
            log.info("meter_answers", meter=id)
        live.at[id] = reading.moment.at
        note(id, read_as(reading), reading.moment)
        moment, took = reading.moment, clock.since_boot() - began
        live.sampled(Sample(id, moment.at, live.values[id], reading.doubt, trusted=moment.trusted, took=took))
        keep += worth_keeping(one, reading, zone, sparse=store.reserve.short)
    live.buses[line.bus_id] = line.bus().counters
    return keep


def _failed(live: Live, clock: Clock, meter: str, error: str, took: float = 0.0) -> None:
    live.sampled(Sample(meter, clock.now(), error=error, trusted=clock.trusted(), took=took))


def worth_keeping(one: Watched, reading: Reading, zone: ZoneInfo, *, sparse: bool = False) -> list[Reading]:
    """The readings to store now: every `store_every`, both sides of a midnight, and whatever changes its standing."""
    every = max(one.meter.store_every, SPARSE) if sparse else one.meter.store_every
    last, before = one.stored, one.unstored
    keep: list[Reading] = []
    if last is not None:
        newest = before or last
        crossed = daily.day_of(newest.moment.at, zone) != daily.day_of(reading.moment.at, zone)
        # Half a period early is in time: the next round would be half a period late.
        due = reading.moment.at - last.moment.at >= every - one.meter.every / 2
        # Words that are put together in a wrong way make another doubt each time.
        same = bool(one.changed) and one.changed in last.doubt and one.changed in reading.doubt
        same = same and all((text in last.doubt) == (text in reading.doubt) for text in (STRANGER, RATIO))
        changed = (reading.doubt != last.doubt and not same) or reading.moment.trusted != last.moment.trusted
        if not (crossed or due or changed):
            one.unstored = reading
            return []
        if before is not None and (crossed or changed):
            keep.append(before)
    keep.append(reading)
    one.stored, one.unstored = reading, None
    return keep


def read_meter(line: PolledBus, one: Watched, clock: Clock, live: Live) -> Reading:
    """One reading of all that is polled. Raises BusError when the production counter could not be read."""
    meter = one.meter
    if not one.identified:
        identify(line, one, clock)
    reads = read_blocks(line, one, clock)
    reading = _reading(one, reads, clock)
    if reading.good or reading.doubt == one.changed:
        one.ratios = told_ratios(meter, reading.values) | one.ratios
    if reading.doubt != one.changed:
        one.identified = False  # a counter that leaps may be another meter's
    shown: dict[str, Value] = {}
    for read in reads:
        shown.update(read.values)
    live.values[meter.id] = shown
    return reading


def read_blocks(line: PolledBus, one: Watched, clock: Clock, blocks: Sequence[Block] | None = None) -> list[BlockRead]:
    """Reads the blocks of a meter; what the device refuses is learned, remembered and planned around.

    A failing block is left out, unless it carries the production counter or nothing at all was read.
    """
    meter, refusals = one.meter, 0
    timing = replace(meter.timing, retries=0) if one.dead else meter.timing
    factors = {name: Decimal(str(number)) for name, number in meter.factors}
    reads: list[BlockRead] = []
    waiting = list(blocks if blocks is not None else one.blocks)
    names = [register.quantity for block in waiting for register in block.registers]
    while waiting:
        block = waiting.pop(0)
        try:
            read = read_block(
                line.bus(),
                meter.unit,
                block,
                meter.map,
                timing,
                one.known,
                now=clock.since_boot,
                rated_kw=meter.rated_kw,
                production=meter.production,
                factors=factors,
            )
        except BusRefused as refused:
            refusals += 1
            learned = after_refusal(meter.map, block, refused.code, one.learned)
            if learned == one.learned or refusals > REFUSALS:
                raise
            log.info("device_refused", meter=meter.id, request=str(block), code=refused.code)
            one.learned = learned
            one.blocks = line.plan(meter, learned)
            one.untold = True
            done = {register.quantity for read in reads for register in read.block.registers}
            left = [name for name in names if name not in done]
            waiting = [
                smaller
                for smaller in line.plan(meter, learned, left)
                if not {register.quantity for register in smaller.registers} <= done
            ]
            continue
        except BusError:
            if not reads or any(register.quantity == meter.production for register in block.registers):
                raise
            continue
        reads.append(read)
        one.known = remembered(one.known, read)
        for name, number in read.values.items():
            if not isinstance(number, str):
                factors.setdefault(name, Decimal(str(number)))
    return reads


def _reading(one: Watched, reads: Sequence[BlockRead], clock: Clock) -> Reading:
    """What the blocks of one round make together; the moment is that of the production counter's answer."""
    meter = one.meter
    holder = next((r for r in reads if any(x.quantity == meter.production for x in r.block.registers)), None)
    if holder is None:
        raise BusRefused(
            f"{meter.id}: the device has no {meter.production}", code=2, hint="heliograph plan shows what is asked for"
        )
    values: dict[str, float | int] = {}
    for read in reads:
        values.update({name: number for name, number in read.values.items() if not isinstance(number, str)})
    believed = values.pop(meter.production, None)
    suspect = holder.suspect.get(meter.production)
    index, doubt = (int(believed), "") if believed is not None else (None, "")
    if believed is None and isinstance(suspect, int | float):
        # A zero that follows a counter is absence, not a counter: dormant inverters and rebooting meters show it.
        index = int(suspect) or None
        doubt = "; ".join(holder.doubts) if suspect else f"{meter.production} reads 0, which is no reading"
    elif believed is None:
        doubt = holder.absent.get(meter.production) or "; ".join(holder.doubts) or "no value"
    doubt = _joined(doubt, other_ratio(one.ratios, told_ratios(meter, values)))
    words, source = _evidence(meter, holder)
    return Reading(
        meter.id, moment_at(clock, holder.at), index, values, words, source, _joined(one.stranger or doubt, one.changed)
    )


def _evidence(meter: Meter, holder: BlockRead) -> tuple[tuple[int, ...], Source]:
    """The words of the production counter as they came, with where they came from."""
    block = holder.block
    register = next(one for one in block.registers if one.quantity == meter.production)
    touched = [*addresses(register), *([register.scale_register] if register.scale_register is not None else [])]
    first, last = min(touched), max(touched)
    words = holder.words[first - block.address : last - block.address + 1]
    return words, Source(meter.unit, block.function, first, len(words), meter.map_digest)


def moment_at(clock: Clock, since_boot: float) -> Moment:
    """The moment of an answer that came a little while ago."""
    ago = timedelta(seconds=clock.since_boot() - since_boot)
    return Moment(clock.now() - ago, clock.boot_id, since_boot, clock.trusted())


def identify(line: PolledBus, one: Watched, clock: Clock) -> None:
    """Makes sure that this is the map's kind of device, and the meter it was before. Raises WrongDevice."""
    meter, identity = one.meter, one.meter.map.identity
    timing = replace(meter.timing, retries=0) if one.dead else meter.timing
    for match in identity.match:
        seen = _seen(line.bus(), meter, match, timing)
        if (seen is None and identity.required) or (seen is not None and seen not in match.values):
            told = "has no such register" if seen is None else f"holds {seen}"
            few = len(match.values) <= FEW
            wanted = " or ".join(map(str, match.values)) if few else f"one of the {len(match.values)} codes in the map"
            raise WrongDevice(
                f"{meter.id} is not a {meter.map.name}: 0x{match.address:04X} {told}, not {wanted}",
                hint=identity.hint or "Is the unit id right? heliograph map list shows the other maps.",
            )
    serial = _serial(line, one, clock) if identity.serial else None
    if meter.serial is not None and serial is not None and serial.lstrip("0") != meter.serial.lstrip("0"):
        raise WrongDevice(
            f"{meter.id} has serial number {serial}, but the configuration says {meter.serial}",
            hint="If the meter was replaced, record it before anything is booked from the new one.",
        )
    one.shown = serial
    if serial is not None and one.serial is None:
        one.serial, one.untold = serial, True
    one.stranger = _stranger(one.serial, serial) if serial is not None and serial != one.serial else ""
    one.identified = True


def _stranger(before: str | None, serial: str) -> str:
    return f"{STRANGER} from {before} to {serial}; was the meter replaced?"


def read_once(line: PolledBus, meter: Meter, clock: Clock, everything: bool) -> dict[str, Any]:
    """One look at a meter beside the polling: what a technician compares with the display. Nothing is stored."""
    try:
        return _look(line, meter, clock, everything)
    except BusUnreachable as error:
        raise one_client(error, meter) from error
    finally:
        line.leave()


def one_client(error: BusUnreachable, meter: Meter) -> BusUnreachable:
    """The same error; where the device serves one client, with the likeliest cause as its next step."""
    if not meter.map.single_client:
        return error
    return BusUnreachable(
        error.message,
        hint=f"A {meter.map.name} serves one TCP client: end what else is connected (another gateway, a wallbox, a"
        " home automation, the maker's cloud dongle), or check the address and that Modbus TCP is switched on",
    )


def _look(line: PolledBus, meter: Meter, clock: Clock, everything: bool) -> dict[str, Any]:
    one, stranger = Watched(meter, Learned(), ()), ""
    if everything:
        try:
            identify(line, one, clock)
        except WrongDevice as error:
            stranger = error.message
    serial = one.shown if one.identified or not meter.map.identity.serial else _serial(line, one, clock)
    names = [register.quantity for register in meter.map.registers] if everything else None
    try:
        reads = read_blocks(line, one, clock, line.plan(meter, one.learned, names))
    except BusRefused:
        if not stranger:
            raise
        reads = []  # another kind of device: that is told, and says more than what it refuses
    values: dict[str, Value] = {}
    absent: dict[str, str] = {}
    for read in reads:
        values.update(read.values)
        absent.update(read.absent)
    # Reading every register takes seconds on a slow line: what counts is when the counter answered.
    counted = [read.at for read in reads if meter.production in read.values] or [clock.since_boot()]
    return {
        "meter": meter.id,
        "at": moment_at(clock, counted[0]).at.isoformat().replace("+00:00", "Z"),
        "serial": serial,
        "values": values,
        "absent": absent,
        "doubts": [doubt for read in reads for doubt in read.doubts if doubt != "first reading"],
        "words": {
            register.quantity: [read.words[one - read.block.address] for one in addresses(register)]
            for read in reads
            for register in read.block.registers
        },
        "stranger": stranger,
        "refused": [r.quantity for r in meter.map.registers if not stranger and _refused(r, meter, one.learned)],
    }


def _refused(register: Register, meter: Meter, learned: Learned) -> bool:
    function = meter.map.function_of(register)
    return any((function, address) in learned.refused for address in addresses(register))


def _seen(bus: Bus, meter: Meter, match: Match, timing: Timing) -> int | str | None:
    """What the device holds where its kind can be told; None when it has no such register."""
    register = Register(quantity="model", type=match.type, address=match.address, words=match.words)
    function, order = match.function or meter.map.function, match.order or meter.map.order
    try:
        words = bus.read(meter.unit, function, match.address, width(register), timing)
    except BusRefused:
        return None
    found = value(register, order, words)
    if isinstance(found, Absent):
        return None
    return found if isinstance(found, str) else int(found)


def _serial(line: PolledBus, one: Watched, clock: Clock) -> str | None:
    name = one.meter.map.identity.serial or ""
    try:
        reads = read_blocks(line, one, clock, line.plan(one.meter, Learned(), [name]))
    except BusRefused:
        return None  # older devices have no such register
    found = reads[0].values.get(name) if reads else None
    one.known.pop(name, None)  # each time anew: a changed serial number is not a doubtful read
    return None if found is None or found == 0 else str(int(found) if isinstance(found, float) else found)


def _believed(meter: Meter, store: Store, clock: Clock) -> tuple[Reading | None, dict[str, Known]]:
    """The last good reading, and what the next one is held against: it, or the new counter of a later seam.

    Nothing, where the counter means something else now.
    """

    def when(at: datetime, trusted: bool) -> float:
        ago = (clock.now() - at).total_seconds() if trusted and clock.trusted() else LONG_AGO
        return clock.since_boot() - ago

    known: dict[str, Known] = {}
    last = store.readings.last_good(meter.id)
    if last is not None:
        at = when(last.moment.at, last.moment.trusted)
        known = {name: Known(one, at) for name, one in last.values.items()}
        if last.index_wh is not None:
            known[meter.production] = Known(last.index_wh, at)
    seams = [seam for seam in store.seams.all(meter.id) if seam.kind != "correction"]
    if seams and (last is None or seams[-1].at > last.moment.at):
        known = {meter.production: Known(seams[-1].new_wh, when(seams[-1].at, True))}
    return last, known if pending(meter, store) is None else {}


def _changed(meter: Meter, store: Store) -> str:
    change = pending(meter, store)
    return change.doubt if change is not None else ""


def _joined(*doubts: str) -> str:
    return "; ".join(filter(None, doubts))


def _subject(meter: Meter) -> str:
    return f"device/{meter.id}/{meter.map.name}"

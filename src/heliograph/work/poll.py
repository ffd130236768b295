"""Reads the meters of one bus, judges what came, and stores what has to be kept, in one commit per round."""

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
from heliograph.core.errors import BusError, BusRefused, BusUnreachable, StoreError, UsageError, WrongDevice
from heliograph.core.plan import Block, Learned, LineCost, after_refusal, line_cost, plan
from heliograph.core.plausible import Known, Value
from heliograph.core.readings import Moment, Reading, Source
from heliograph.core.registers import Match, Register, Timing
from heliograph.core.site import Meter
from heliograph.ports import Bus, Clock
from heliograph.store import Store
from heliograph.work.amend import record_rollover
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
    failures: int = 0
    """Rounds in a row without an answer."""
    unstored: Reading | None = None
    stored: Reading | None = None

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
            learned = store.journal.learned(_subject(meter)) if store else None
            facts = Learned.from_json(learned) if learned else Learned()
            found = Watched(meter, facts, self.plan(meter, facts))
            if store is not None:
                found.stored, found.known = _believed(meter, store, clock)
            self._watched[meter.id] = found
        return self._watched[meter.id]


def poll(line: PolledBus, store: Store, clock: Clock, zone: ZoneInfo, live: Live, stopping: Callable[[], bool]) -> None:
    """One round over the bus. A meter that fails is reported and tried again; it holds up no other."""
    with line.lock:
        keep = _round(line, store, clock, zone, live, stopping)
    _store(line, keep, store, clock, zone)
    for meter in [meter for meter in line.order if any(one.meter == meter.id and one.doubt for one in keep)]:
        _roll_over(line, meter, store, clock)


def _store(line: PolledBus, keep: list[Reading], store: Store, clock: Clock, zone: ZoneInfo) -> None:
    """What a round read, in one commit, and now and then in the same one what the polls came to."""
    covered = line.tally.due(clock.since_boot(), committing=bool(keep))
    try:
        store.readings.add(keep, covered)
    except StoreError:
        line.tally.lost(keep, store, zone)
        raise
    line.tally.stored(keep, store, zone)
    line.tally.written(covered, clock.since_boot())


def _roll_over(line: PolledBus, meter: Meter, store: Store, clock: Clock) -> None:
    """A counter that fell may have gone over its end, where the map knows that end; any other fall stays in doubt."""
    with line.lock:
        if not clock.trusted() or line.watch(meter, store, clock).stranger:
            return
        try:
            seam = record_rollover(meter, store, clock.now())
        except UsageError as refused:
            log.debug("no_rollover", meter=meter.id, why=refused.message)
            return
        if seam is not None:
            line.forget(meter)
            log.warning("rolled_over", meter=meter.id, seam=str(seam))


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
            reading = read_meter(line, one, store, clock, live)
        except BusUnreachable as error:
            # The line itself is down: no meter on it can be asked, and none of them is to blame.
            if live.errors.get(id) != error.message:
                log.warning("bus_unreachable", bus=line.bus_id, error=error.message, hint=error.hint)
            live.errors.update({meter.id: error.message for meter in line.order})
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
            continue
        if one.dead:
            log.info("meter_answers", meter=id)
        one.failures = 0
        live.errors.pop(id, None)
        live.at[id] = reading.moment.at
        note(id, read_as(reading), reading.moment)
        keep += worth_keeping(one, reading, zone)
    live.buses[line.bus_id] = line.bus().counters
    return keep


def worth_keeping(one: Watched, reading: Reading, zone: ZoneInfo) -> list[Reading]:
    """The readings to store now: every `store_every`, both sides of a midnight, and whatever changes its standing."""
    last, before = one.stored, one.unstored
    keep: list[Reading] = []
    if last is not None:
        newest = before or last
        crossed = daily.day_of(newest.moment.at, zone) != daily.day_of(reading.moment.at, zone)
        # Half a period early is in time: the next round would be half a period late.
        due = reading.moment.at - last.moment.at >= one.meter.store_every - one.meter.every / 2
        changed = reading.doubt != last.doubt or reading.moment.trusted != last.moment.trusted
        if not (crossed or due or changed):
            one.unstored = reading
            return []
        if before is not None and (crossed or changed):
            keep.append(before)
    keep.append(reading)
    one.stored, one.unstored = reading, None
    return keep


def read_meter(line: PolledBus, one: Watched, store: Store, clock: Clock, live: Live) -> Reading:
    """One reading of all that is polled. Raises BusError when the production counter could not be read."""
    meter = one.meter
    if not one.identified:
        identify(line, one, store, clock)
    reads = read_blocks(line, one, clock, store)
    reading = _reading(one, reads, clock)
    if reading.doubt:
        one.identified = False  # a counter that leaps may be another meter's
    shown: dict[str, Value] = {}
    for read in reads:
        shown.update(read.values)
    live.values[meter.id] = shown
    return reading


def read_blocks(
    line: PolledBus, one: Watched, clock: Clock, store: Store | None, blocks: Sequence[Block] | None = None
) -> list[BlockRead]:
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
            if store is not None:
                store.journal.learn(_subject(meter), learned.as_json())
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
    words, source = _evidence(meter, holder)
    return Reading(meter.id, moment_at(clock, holder.at), index, values, words, source, one.stranger or doubt)


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


def identify(line: PolledBus, one: Watched, store: Store | None, clock: Clock) -> None:
    """Makes sure that this is the map's kind of device, and the meter it was before. Raises WrongDevice."""
    meter, identity = one.meter, one.meter.map.identity
    timing = replace(meter.timing, retries=0) if one.dead else meter.timing
    for match in identity.match:
        seen = _seen(line.bus(), meter, match, timing)
        if (seen is None and identity.required) or (seen is not None and seen not in match.values):
            told = "has no such register" if seen is None else f"holds {seen}"
            wanted = " or ".join(str(one) for one in match.values)
            raise WrongDevice(
                f"{meter.id} is not a {meter.map.name}: 0x{match.address:04X} {told}, not {wanted}",
                hint="Is the unit id right? heliograph map list shows the other maps.",
            )
    serial = _serial(line, one, clock) if identity.serial else None
    if meter.serial is not None and serial is not None and serial.lstrip("0") != meter.serial.lstrip("0"):
        raise WrongDevice(
            f"{meter.id} has serial number {serial}, but the configuration says {meter.serial}",
            hint="If the meter was replaced, record it before anything is booked from the new one.",
        )
    before = store.readings.serial(meter.id) if store is not None else None
    if serial is not None and before is None and store is not None:
        store.readings.remember_serial(meter.id, serial)
    changed = serial is not None and before is not None and serial != before
    one.stranger = f"the serial number changed from {before} to {serial}; was the meter replaced?" if changed else ""
    one.identified = True


def read_once(line: PolledBus, meter: Meter, clock: Clock, everything: bool) -> dict[str, Any]:
    """One look at a meter beside the polling: what a technician compares with the display. Nothing is stored."""
    one = Watched(meter, Learned(), ())
    serial = _serial(line, one, clock) if meter.map.identity.serial else None
    names = [register.quantity for register in meter.map.registers] if everything else None
    reads = read_blocks(line, one, clock, None, line.plan(meter, one.learned, names))
    values: dict[str, Value] = {}
    absent: dict[str, str] = {}
    for read in reads:
        values.update(read.values)
        absent.update(read.absent)
    return {
        "meter": meter.id,
        "at": clock.now().isoformat().replace("+00:00", "Z"),
        "serial": serial,
        "values": values,
        "absent": absent,
        "doubts": [doubt for read in reads for doubt in read.doubts if doubt != "first reading"],
    }


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
        reads = read_blocks(line, one, clock, None, line.plan(one.meter, Learned(), [name]))
    except BusRefused:
        return None  # older devices have no such register
    found = reads[0].values.get(name) if reads else None
    one.known.pop(name, None)  # each time anew: a changed serial number is not a doubtful read
    return None if found is None or found == 0 else str(int(found) if isinstance(found, float) else found)


def _believed(meter: Meter, store: Store, clock: Clock) -> tuple[Reading | None, dict[str, Known]]:
    """The last good reading, and what the next one is held against: it, or the new counter of a later seam."""

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
    return last, known


def _subject(meter: Meter) -> str:
    return f"device/{meter.id}/{meter.map.name}"

"""Finds what a SunSpec device is made of and makes the map of this one device out of it: its site file.

Polling then needs no walk, and every figure can be explained from the stored text. Nothing is guessed: a device whose
models do not follow each other as SunSpec says is refused, with what was found there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal

from heliograph.core import sunspec
from heliograph.core.decode import addresses, value
from heliograph.core.errors import BusRefused, BusTimeout, UsageError, WrongDevice
from heliograph.core.plan import MAY_BE_SIZE_OR_ADDRESS, Block, LineCost, plan
from heliograph.core.plausible import Value
from heliograph.core.quantity import find
from heliograph.core.registers import MeterMap, Register, Timing, Vector
from heliograph.core.sunspec import END, HEADER, INVERTERS, MARKER, Chain, Device, Model
from heliograph.ports import Bus
from heliograph.work.read_block import BlockRead, read_block

RETRIES = 3
"""A device is looked at once, with some sixty requests: on a noisy line one of them is lost twice now and then."""
LARGEST_KW = 5000.0
"""What a counter may move between the reads of a discovery: the site's own figure is not known yet."""


@dataclass(frozen=True, slots=True)
class Found:
    """One device of a chain with its map, and what it showed while it was looked at."""

    chain: Chain
    device: Device
    main: Model
    template: MeterMap
    map: MeterMap
    values: Mapping[str, Value]
    absent: Mapping[str, str]
    notes: tuple[str, ...]
    """What a technician should know: what else stands behind this address, what its maker's devices do."""


def walk(bus: Bus, unit: int, bases: Sequence[int], timing: Timing) -> Chain:
    """The models a device announces. Raises WrongDevice where there is no marker, or no sound chain behind it."""
    seen: list[str] = []
    silence: BusTimeout | None = None
    for base in bases:
        try:
            words, refusal = _asked(bus, unit, base, 2, replace(timing, retries=0) if silence else timing)
        except BusTimeout as nothing:  # some devices say so that they have no such register
            silence = silence or nothing
            seen.append(f"{base} was not answered")
            continue
        if words == (MARKER >> 16, MARKER & 0xFFFF):
            return _followed(bus, unit, base, replace(timing, retries=max(timing.retries, RETRIES)))
        seen.append(f"{base} {refusal}" if words is None else f"{base} holds " + " ".join(f"0x{w:04X}" for w in words))
    if silence is not None and len(seen) == sum(one.endswith("was not answered") for one in seen):
        raise silence
    raise WrongDevice(
        f"unit {unit} is no SunSpec device: no marker 0x5375 0x6E53 at its usual addresses ({'; '.join(seen)})",
        hint="Is SunSpec switched on in the device, and is this its unit id? (SMA: 126, Fronius: 1, SolarEdge: 1)",
    )


def _followed(bus: Bus, unit: int, base: int, timing: Timing) -> Chain:
    models: list[Model] = []
    address = base + HEADER
    while True:
        words, refusal = _asked(bus, unit, address, HEADER, timing)
        if words is None:  # some have nothing behind the number that ends them
            words, refusal = _asked(bus, unit, address, 1, timing)
        if words is None:
            why = f"what follows at {address} {refusal}, so the models have no end"
            raise _unsound(unit, base, models, why)
        if words[0] == END:
            if not models:
                raise _unsound(unit, base, models, "there are no models behind it")
            return Chain(base, tuple(models))
        if len(words) < HEADER:
            raise _unsound(unit, base, models, f"model {words[0]} at {address} does not tell its length")
        if why := sunspec.broken(base, models, *words):
            raise _unsound(unit, base, models, why)
        models.append(Model(words[0], words[1], address))
        address = models[-1].end


def _unsound(unit: int, base: int, models: Sequence[Model], why: str) -> WrongDevice:
    before = f" (before it: {', '.join(map(str, models[-3:]))})" if models else ""
    return WrongDevice(
        f"unit {unit} has the SunSpec marker at {base}, but {why}{before}",
        hint="Nothing can be read from such a chain without guessing. Is the device's firmware current?",
    )


def _asked(bus: Bus, unit: int, address: int, count: int, timing: Timing) -> tuple[tuple[int, ...] | None, str]:
    """The words there; None, and why, where the device refuses them."""
    if address + count > 0x10000:
        return None, "is beyond the last address"
    try:
        return bus.read(unit, "holding", address, count, timing), ""
    except BusRefused as refused:
        if refused.code not in MAY_BE_SIZE_OR_ADDRESS:
            raise
        return None, f"was refused (exception {refused.code})"


def discover(
    bus: Bus,
    unit: int,
    templates: Sequence[MeterMap],
    *,
    name: str,
    today: date,
    cost: LineCost,
    now: Callable[[], float],
    at: int | None = None,
    port: int | None = None,
) -> Found:
    """Walks the device, chooses what the first fitting template is for, and makes its map. Raises what the bus raises.

    `at` names a model by its address where there are several that would do. `now` tells seconds since boot.
    """
    if not templates:
        raise UsageError("no map here is a SunSpec template", hint="heliograph map list shows which there are.")
    specs = [template.sunspec for template in templates if template.sunspec is not None]
    bases = tuple(dict.fromkeys(base for spec in specs for base in spec.bases))
    chain = walk(bus, unit, bases, templates[0].timing)
    template, device, main = _chosen(unit, chain, templates, at)
    notes = _others(chain, templates, main)
    placed = draft = sunspec.placed(template, chain.base, device, main)
    draft, reads = _read(bus, unit, draft, cost, now)
    if missing := [one.quantity for one in placed.registers if draft.register(one.quantity) is None]:
        notes.append(f"too far from their scale factors to be read with them, and left out: {', '.join(missing)}")
    values = {name: one for read in reads for name, one in read.values.items()}
    absent = {name: why for read in reads for name, why in read.absent.items()}
    if doubts := [doubt for read in reads for doubt in read.doubts]:
        raise WrongDevice(
            f"unit {unit} did not answer the same twice while it was looked at: {doubts[0]}",
            hint="Is somebody else asking it at the same time? Try again, and if it stays so: heliograph doctor",
        )
    _awake(unit, template, main, draft, absent)
    if main.number in INVERTERS and sunspec.MODULES in (one.number for one in device.models):
        count, told = sunspec.modules(_of(device, sunspec.MODULES)), values.get("module_count")
        if told is not None and told != count:
            raise WrongDevice(
                f"unit {unit}: model 160 has room for {count} inputs, but says that it has {told:g}",
                hint="What belongs to which input cannot be told. Is the device's firmware current?",
            )
    registers, vectors = _as_found(draft, template, reads)
    maker = sunspec.maker(template, str(values.get("manufacturer", "")))
    if maker is not None and maker.note:
        notes.append(f"{maker.manufacturer}: {maker.note}")
    said = " ".join(str(values[one]) for one in ("manufacturer", "model") if one in values)
    map = replace(
        draft,
        name=name,
        maker=str(values.get("manufacturer", "")),
        products=(said or "SunSpec device",),
        source=f"the device's own SunSpec models, unit {unit}, {today}, by {template.name} {template.version}",
        version=str(today),
        registers=registers,
        vectors=vectors,
        unit=unit,
        port=port or template.port,
        night=(maker and maker.night) or template.night,
        single_client=template.single_client if maker is None or maker.single_client is None else maker.single_client,
        close_after_poll=(
            template.close_after_poll if maker is None or maker.close_after_poll is None else maker.close_after_poll
        ),
    )
    return Found(chain, device, main, template, map, values, absent, tuple(notes))


def _chosen(unit: int, chain: Chain, templates: Sequence[MeterMap], at: int | None) -> tuple[MeterMap, Device, Model]:
    fitting = [(template, *pair) for template in templates for pair in sunspec.fitting(chain, template)]
    if at is not None:
        for found in fitting:
            if found[2].address == at:
                return found
        raise UsageError(
            f"no model that a map is for begins at {at}",
            hint=f"There are: {', '.join(str(one) for one in _models(fitting)) or 'none'}",
        )
    if not fitting:
        raise WrongDevice(
            f"unit {unit} speaks SunSpec, but has no model that a map is for ({chain})",
            hint="Inverters have 101 to 103 or 111 to 113, meters 201 to 204 or 211 to 214. Is this its unit id?",
        )
    inverters = [one for one in sunspec.devices(chain) if any(m.number in INVERTERS for m in one.models)]
    same = [found for found in fitting if found[0] is fitting[0][0]]
    if len(same) > 1 or len(inverters) > 1:
        several = _models(fitting if len(inverters) > 1 else same)
        what = "inverters" if len(inverters) > 1 else "devices"
        raise WrongDevice(
            f"unit {unit} has several {what} behind one address: {', '.join(map(str, several))}",
            hint="Make a site file for each of them, with --at and its address, and book each as a meter of its own.",
        )
    return fitting[0]


def _models(fitting: Sequence[tuple[MeterMap, Device, Model]]) -> list[Model]:
    return list(dict.fromkeys(model for _, _, model in fitting))


def _others(chain: Chain, templates: Sequence[MeterMap], main: Model) -> list[str]:
    """What else could be read at this address."""
    beside = {number for one in templates if one.sunspec is not None for number in one.sunspec.beside}
    found = _models([(template, *pair) for template in templates for pair in sunspec.fitting(chain, template)])
    others = [one for one in found if one != main and one.number not in beside]
    return [f"behind the same address: {one}; for a map of it add --at {one.address}" for one in others]


def _of(device: Device, number: int) -> Model:
    return next(one for one in device.models if one.number == number)


def _read(
    bus: Bus, unit: int, map: MeterMap, cost: LineCost, now: Callable[[], float]
) -> tuple[MeterMap, list[BlockRead]]:
    """The map in the largest requests that the device takes, and all that it names, each until it can be believed."""
    sizes = (map.max_words, *map.fallback_words)
    for place, size in enumerate(sizes):
        registers = tuple(register for register in map.registers if _reach(register) <= size)
        smaller = replace(map, registers=registers, max_words=size, fallback_words=sizes[place + 1 :])
        blocks = plan(smaller, [register.quantity for register in registers], cost)
        try:
            return smaller, [_once(bus, unit, block, smaller, now) for block in blocks]
        except BusRefused as refused:
            if refused.code not in MAY_BE_SIZE_OR_ADDRESS or size == sizes[-1]:
                raise
    raise AssertionError("a map has a largest request")


def _reach(register: Register) -> int:
    """Registers in the request that brings it together with its scale factor."""
    touched = [*addresses(register), *([] if register.scale_register is None else [register.scale_register])]
    return max(touched) - min(touched) + 1


def _once(bus: Bus, unit: int, block: Block, map: MeterMap, now: Callable[[], float]) -> BlockRead:
    patient = replace(map.timing, retries=max(map.timing.retries, RETRIES))
    return read_block(bus, unit, block, map, patient, {}, now=now, rated_kw=LARGEST_KW)


def _awake(unit: int, template: MeterMap, main: Model, map: MeterMap, absent: Mapping[str, str]) -> None:
    """A scale factor is only pinned once a counter has been seen under it."""
    if template.production is None:
        return
    counters = [one for one in map.registers if _energy(one) and main.address < (one.address or 0) < main.end]
    if counters and all(one.quantity in absent for one in counters):
        why = absent.get(template.production) or absent[counters[0].quantity]
        raise WrongDevice(
            f"unit {unit}: no energy counter of {main} has a value now ({template.production}: {why})",
            hint="Is the device asleep? Run this again by daylight, so that its scale factors can be seen.",
        )


def _energy(register: Register) -> bool:
    quantity = find(register.quantity)
    return quantity is not None and quantity.kind == "counter" and quantity.unit == "Wh"


def _as_found(
    draft: MeterMap, template: MeterMap, reads: Sequence[BlockRead]
) -> tuple[tuple[Register, ...], tuple[Vector, ...]]:
    """The registers as this device has them, and the words it showed as the map's vectors."""
    registers: list[Register] = []
    vectors: list[Vector] = []
    told = {register.quantity: read for read in reads for register in read.block.registers}
    for register in draft.registers:
        read = told.get(register.quantity)
        if read is None:
            registers.append(register)
            continue
        exponent = _exponent(register, read)
        known = sunspec.pinned(register, exponent if exponent is not None and -10 <= exponent <= 10 else None)
        quantity = find(register.quantity)
        counter = quantity is not None and quantity.kind == "counter"
        if register.quantity in read.absent and register.poll and not counter:
            known = replace(known, poll=False, note="had no value when the device was looked at")
        registers.append(known)
        words = tuple(read.words[address - read.block.address] for address in addresses(register))
        shown = value(register, draft.order_of(register), words, exponent=exponent)
        if isinstance(shown, Decimal) and (register.poll or counter):
            vectors.append(
                Vector(
                    quantity=register.quantity,
                    words=words,
                    scale_exponent=exponent,
                    value=sunspec.plain(shown),
                    origin="captured",
                )
            )
        elif counter:
            vectors += [
                replace(one, quantity=register.quantity)
                for one in template.vectors
                if one.quantity == sunspec.in_template(template, register.quantity)
            ]
    return tuple(registers), tuple(vectors)


def _exponent(register: Register, read: BlockRead) -> int | None:
    if register.scale_register is None:
        return None
    raw = read.words[register.scale_register - read.block.address]
    return raw - 0x10000 if raw & 0x8000 else raw

"""Polls a hostile meter through the real adapter and the real judgement, and compares with what the registers held."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.bus.wire import Wire
from heliograph.core.errors import BusError
from heliograph.core.line import parse
from heliograph.core.plan import line_cost, plan
from heliograph.core.plausible import Known
from heliograph.core.registers import Timing
from heliograph.ports import Bus
from heliograph.work.read_block import BlockRead, read_block, remembered
from tests.bus.virtual import FAULTS, TIMEOUT, UNIT, Converted, HostileMeter, Registers, VirtualLine

URL = "serial:///dev/ttyUSB0?baudrate=9600"
Read = Callable[..., BlockRead]


@dataclass
class Outcome:
    exchanges: int = 0
    accepted: int = 0
    """Blocks whose values were believed."""
    wrong: list[str] = field(default_factory=list)
    given_up: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    suspect: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.exchanges} exchanges, {self.accepted} blocks believed, {len(self.wrong)} wrong, "
            f"{self.given_up} given up, {self.suspect} suspect, {dict(self.failed)}, {dict(self.faults)}, "
            f"{self.seconds:.1f} s"
        )


def run(
    exchanges: int,
    seed: int,
    faults: Mapping[str, float] = FAULTS,
    read: Read = read_block,
    quantities: Sequence[str] | None = None,
    every: float = 0.0,
    pause: float = 0.0,
    url: str = URL,
) -> Outcome:
    """On a line in virtual time at 9600 baud. `every` is the least time from round to round."""
    dice = random.Random(seed)
    meter = HostileMeter(Registers(seed), dice, faults)
    line = VirtualLine(meter.hear)
    wire: Wire = line if url.startswith("serial:") else Converted(line, 0.012)
    bus = open_bus(url, wire=lambda _: wire)
    timing = Timing(timeout=TIMEOUT, pause=pause, retries=1)

    def idle(begun: float) -> None:
        line.sleep(max(dice.choice([0.0, 0.05, 1.0, dice.uniform(0, 10)]), begun + every - line.now))

    return rounds(exchanges, bus, meter, dice, url, timing, line.monotonic, idle, read, quantities)


def rounds(
    exchanges: int,
    bus: Bus,
    meter: HostileMeter,
    dice: random.Random,
    url: str,
    timing: Timing,
    now: Callable[[], float],
    idle: Callable[[float], None],
    read: Read = read_block,
    quantities: Sequence[str] | None = None,
) -> Outcome:
    """Rounds over all blocks, with pauses between them and now and then a restart that remembers nothing.

    A value is wrong unless the registers held it between the request it is the answer to and that answer.
    """
    map = library.load("eastron-sdm630").map
    blocks = plan(map, quantities, line_cost(parse(url), timing))
    out = Outcome()
    known: dict[str, Known] = {}
    began = time.process_time()
    while bus.counters.requests < exchanges:
        if dice.random() < 0.002:
            known = {}
        begun = now()
        for block in blocks:
            meter.asked.clear()
            try:
                got = read(bus, UNIT, block, map, timing, known, now=now, rated_kw=50, production="energy_export")
            except BusError as error:
                out.failed[type(error).__name__] += 1
                continue
            known = remembered(known, got)
            out.suspect += bool(got.suspect)
            if not got.values:
                out.given_up += 1
                continue
            out.accepted += 1
            asked = (block.address, block.count)
            start = max(at for at, *what in meter.asked if at <= got.at and tuple(what) == asked)
            if not meter.registers.held(start, got.at, block.address, got.words):
                why = f"after {got.attempts} reads, {got.settled}"
                out.wrong.append(f"{block} between {start:.3f} and {got.at:.3f}: {dict(got.values)} {why}")
        idle(begun)
    out.exchanges = bus.counters.requests
    out.faults = meter.counts
    out.seconds = time.process_time() - began
    return out

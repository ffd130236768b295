"""Reads one block of a meter until its values can be believed, or says why they cannot.

The bus sees to it that an answer has the shape of the question; here its content is held against what the meter
showed before. What does not follow from that is read again, in other shapes, until enough reads in a row agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from heliograph.core.decode import Absent, addresses, reading
from heliograph.core.plan import Block, parts
from heliograph.core.plausible import (
    ABSENT,
    ALIKE,
    CONTRADICTED,
    NEVER,
    RECOGNISED,
    Doubt,
    Known,
    Value,
    agree,
    doubts,
    most_wh,
    recognised,
    step_wh,
)
from heliograph.core.quantity import ENERGY_UNITS, find
from heliograph.core.registers import MeterMap, Register, Timing
from heliograph.ports import Bus

MOST_READS = 9
"""Six in a row must agree at worst; three may go astray before that."""
_BEGINS_ANEW = re.compile(r".*_(today|hour|month|year|resettable|partial)|energy_net.*")


@dataclass(frozen=True, slots=True)
class BlockRead:
    """What one block told. `values` are believed; everything else is evidence."""

    block: Block
    at: float
    """Seconds since boot at the answer that `values` and `words` are from."""
    words: tuple[int, ...]
    """Of the whole block, as they came."""
    values: Mapping[str, Value] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """Quantities without a value, and why."""
    suspect: Mapping[str, Value] = field(default_factory=dict)
    """Counters that several reads agree on, though they contradict what is known: a swap, a reset, a rollover."""
    doubts: tuple[str, ...] = ()
    """What could not be settled: about `suspect`, or about what is left out of `values`."""
    settled: tuple[str, ...] = ()
    """What looked strange until more reads agreed on it, or showed that it was not so."""
    attempts: int = 1


def remembered(previous: Mapping[str, Known], read: BlockRead) -> dict[str, Known]:
    """What to hold the next read against: new values beside those that are in doubt; absence is remembered too."""
    kept = {name: known for name, known in previous.items() if name not in read.absent or not read.values}
    return kept | {name: Known(value, read.at) for name, value in read.values.items()}


def decoded(
    block: Block, words: tuple[int, ...], map: MeterMap, factors: Mapping[str, Decimal]
) -> tuple[dict[str, Value], dict[str, str]]:
    """Values and reasons for absence. A factor that is given wins over one of its name that is read in the block."""
    values: dict[str, Value] = {}
    absent: dict[str, str] = {}
    by = dict(factors)
    for register in sorted(block.registers, key=lambda r: bool(r.times)):
        exponent = None
        if register.scale_register is not None:
            raw = words[register.scale_register - block.address]
            exponent = raw - 0x10000 if raw & 0x8000 else raw
        own = tuple(words[address - block.address] for address in addresses(register))
        value = reading(register, map.order_of(register), own, exponent=exponent, factors=by)
        if isinstance(value, Absent):
            absent[register.quantity] = value.reason
        else:
            values[register.quantity] = value
            if not isinstance(value, str):
                by.setdefault(register.quantity, Decimal(str(value)))
    return values, absent


@dataclass(frozen=True, slots=True)
class _Read:
    block: Block
    at: float
    words: tuple[int, ...]
    values: dict[str, Value]
    absent: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Judge:
    """What this block's values are held against."""

    block: Block
    known: Mapping[str, Known]
    rated_kw: float
    production: str | None

    def counters(self) -> dict[str, Register]:
        found: dict[str, Register] = {}
        for register in self.block.registers:
            quantity = find(register.quantity)
            if quantity is not None and quantity.kind == "counter" and quantity.unit in ENERGY_UNITS:
                found[register.quantity] = register
        return found

    def steps(self, values: Mapping[str, Value]) -> dict[str, int]:
        return {
            name: step_wh(register, float(values[name])) for name, register in self.counters().items() if name in values
        }

    def falling(self) -> frozenset[str]:
        return frozenset(
            name for name, r in self.counters().items() if r.monotonic is False or _BEGINS_ANEW.fullmatch(name)
        )

    def doubts(self, read: _Read) -> tuple[Doubt, ...]:
        """About a read of the whole block."""
        before = {name: known.value for name, known in self.known.items()}
        found = doubts(
            before,
            read.values,
            {name: read.at - known.at for name, known in self.known.items()},
            self.rated_kw,
            self.steps(before),
            production=self.production,
            falling=self.falling(),
        )
        if not self.known and read.absent:
            found = (*found, Doubt("", f"first reading, and no value for {', '.join(read.absent)}", ABSENT))
        if self.block.alike:
            found = (*found, Doubt("", "another block has the same length", ALIKE))
        return found

    def agree(self, earlier: _Read, later: _Read) -> bool:
        """About what two reads of the block, or of parts of it, have in common."""
        common = {r.quantity for r in earlier.block.registers} & {r.quantity for r in later.block.registers}
        return agree(
            {name: value for name, value in earlier.values.items() if name in common},
            {name: value for name, value in later.values.items() if name in common},
            elapsed=later.at - earlier.at,
            rated_kw=self.rated_kw,
            steps=self.steps(earlier.values),
            production=self.production,
            falling=self.falling(),
        )

    def recognised(self, read: _Read, found: tuple[Doubt, ...]) -> bool:
        before = {name: known.value for name, known in self.known.items()}
        most = {
            name: most_wh(name, read.at - self.known[name].at, self.rated_kw, step, self.production)
            for name, step in self.steps(before).items()
        }
        return recognised(before, read.values, found, most)

    def needed(self, read: _Read, found: tuple[Doubt, ...]) -> int:
        """Reads in a row that must agree, with this read of the whole block among them."""
        if not found:
            return 1
        return RECOGNISED if self.recognised(read, found) else max(d.settled_by or CONTRADICTED for d in found)


def read_block(
    bus: Bus,
    unit: int,
    block: Block,
    map: MeterMap,
    timing: Timing,
    previous: Mapping[str, Known],
    *,
    now: Callable[[], float],
    rated_kw: float,
    production: str | None = None,
    factors: Mapping[str, Decimal] | None = None,
) -> BlockRead:
    """One believed read of `block`, after as many requests as that takes; usually one.

    `previous` may hold more than this block's quantities; `now` tells seconds since boot. Raises what the bus raises.
    """
    ours = {register.quantity for register in block.registers}
    judge = _Judge(block, {name: known for name, known in previous.items() if name in ours}, rated_kw, production)

    def once(part: Block, careful: Timing) -> _Read:
        # Where answers are numbered no copy of an earlier one can confirm it, and there is nothing to wait for.
        asking = timing if bus.numbered else careful
        words = bus.read(unit, part.function, part.address, part.count, asking)
        return _Read(part, now(), words, *decoded(part, words, map, factors or {}))

    first = once(block, timing)
    found = judge.doubts(first)
    if not found:
        return BlockRead(block, first.at, first.words, first.values, first.absent)
    return _settled(once, judge, first, found, timing)


def _settled(
    once: Callable[[Block, Timing], _Read], judge: _Judge, first: _Read, found: tuple[Doubt, ...], timing: Timing
) -> BlockRead:
    """Reads on until as many reads in a row agree as the worst doubt about the whole block asks for.

    A copy of an earlier answer must not confirm it. So the block is asked for in different lengths, and where
    there is none left, the line has to be silent for a whole time-out before.
    """
    shapes = parts(first.block)
    full, row, needed = first, [first], judge.needed(first, found)
    asked = [first.block.count]
    seen = dict.fromkeys(found)
    while len(asked) < MOST_READS:
        whole = any(read is full for read in row)
        part = shapes[len(row) % len(shapes)] if whole else first.block
        careful = replace(timing, pause=max(timing.pause, timing.timeout)) if part.count in asked else timing
        again = once(part, careful)
        asked.append(part.count)
        if not all(judge.agree(earlier, again) for earlier in row):
            row.clear()
        row.append(again)
        if part is first.block:
            full, found = again, judge.doubts(again)
            needed = judge.needed(full, found)
            seen |= dict.fromkeys(found)
        if len(row) >= needed and any(read is full for read in row):
            return _told(full, tuple(d for d in found if d.settled_by == NEVER), seen, len(asked))
    if judge.recognised(full, found):
        return _told(full, found, seen, len(asked))
    texts = tuple(dict.fromkeys(doubt.text for doubt in seen))
    return BlockRead(first.block, full.at, full.words, {}, full.absent, {}, texts, (), len(asked))


def _told(full: _Read, unsettled: tuple[Doubt, ...], seen: Mapping[Doubt, None], attempts: int) -> BlockRead:
    """The last read of the whole block without what remains in doubt."""
    out = {doubt.quantity for doubt in unsettled}
    return BlockRead(
        full.block,
        full.at,
        full.words,
        {name: value for name, value in full.values.items() if name not in out},
        full.absent,
        {doubt.quantity: full.values[doubt.quantity] for doubt in unsettled if doubt.settled_by == NEVER},
        tuple(doubt.text for doubt in unsettled),
        tuple(doubt.text for doubt in seen if doubt not in unsettled),
        attempts,
    )

"""Which requests read a set of registers in the least time on the wire.

Cost of one RTU read of N registers: 13 + 2N characters (8 for the request, 5 + 2N for the answer), two
silences of 3.5 characters, the device's turnaround and the pause it asks for (Modbus over serial line 1.02).
A request more costs as much as ten registers, so it pays to read over gaps, where the device allows it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from heliograph.core.decode import addresses
from heliograph.core.errors import ConfigError, UsageError
from heliograph.core.line import Line
from heliograph.core.quantity import find
from heliograph.core.registers import Function, MeterMap, Register, Timing

REQUEST_CHARACTERS = 8
ANSWER_CHARACTERS = 5
SILENT_CHARACTERS = 3.5
MAY_BE_SIZE_OR_ADDRESS = frozenset({2, 3})
"""Exceptions by which devices refuse a request that is too long, or touches an address they do not have."""


@dataclass(frozen=True, slots=True)
class Block:
    """One read request and the registers decoded from its answer, in address order."""

    function: Function
    address: int
    count: int
    registers: tuple[Register, ...]
    alike: bool = False
    """Another block of this device has the same length, so its answer would look like this one's: read it twice."""

    def __str__(self) -> str:
        return f"{self.function} 0x{self.address:04X}+{self.count}"


@dataclass(frozen=True, slots=True)
class LineCost:
    """Seconds: one character, the silence that ends a frame, the device's thinking, the pause it asks for."""

    character: float
    silence: float
    turnaround: float
    pause: float

    def of(self, count: int) -> float:
        """One request for `count` registers, up to the moment the next one may start."""
        characters = REQUEST_CHARACTERS + ANSWER_CHARACTERS + 2 * count
        return characters * self.character + self.silence + self.turnaround + max(self.silence, self.pause)


def line_cost(line: Line, timing: Timing) -> LineCost:
    """Behind a serial-to-TCP converter a line of 9600 baud is assumed: the usual one, and its speed is not told."""
    if line.way == "tcp":
        return LineCost(0.0, 0.0, timing.turnaround, timing.pause)
    character = line.character or 10 / 9600
    return LineCost(character, SILENT_CHARACTERS * character, timing.turnaround, timing.pause)


def wire_time(block: Block, cost: LineCost) -> float:
    """Seconds of the line that this request takes."""
    return cost.of(block.count)


LENGTHENED = 0x10000
"""In place of an address among the refused: this function's blocks are not to be lengthened."""


# What a device has taught us ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Learned:
    """What a device refuses. It is kept with the meter, so that a refusal is met once and not at every start."""

    max_words: int | None = None
    refused: tuple[tuple[Function, int], ...] = ()
    hunt: tuple[Function, int, int, int] | None = None
    """Function, first and last address of the refusal being narrowed down, and the limit before it (0: none)."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Learned:
        hunt = stored.get("hunt")
        return cls(
            stored.get("max_words"),
            tuple((function, address) for function, address in stored.get("refused", ())),
            (hunt[0], hunt[1], hunt[2], hunt[3]) if hunt else None,
        )


def after_refusal(map: MeterMap, block: Block, code: int, learned: Learned) -> Learned:
    """What to believe after exception `code`; unchanged where the code says nothing about size or address.

    A long block is tried in smaller ones first (the map's sizes, otherwise halves). When the hunt ends at one
    register alone, that register is at fault and the size was not: the limit goes back to what it was.
    """
    if code not in MAY_BE_SIZE_OR_ADDRESS:
        return learned
    first, last = block.address, block.address + block.count - 1
    core_first, core_last = _span(block.registers)
    if len(block.registers) > 1 and block.count > 1:
        before = learned.hunt[3] if learned.hunt else learned.max_words or 0
        hunt = learned.hunt if _within(learned.hunt, block) else (block.function, first, last, before)
        smaller = [words for words in map.fallback_words if words < block.count]
        return replace(learned, max_words=max(smaller, default=block.count // 2), hunt=hunt)
    if (first, last) != (core_first, core_last):  # lengthened only to tell it from another block
        culprits = {LENGTHENED}
    else:
        culprits = {address for register in block.registers for address in addresses(register)}
    refused = {*learned.refused, *((block.function, address) for address in culprits)}
    if learned.hunt is None or not _within(learned.hunt, block):
        return replace(learned, refused=tuple(sorted(refused)))
    return Learned(learned.hunt[3] or None, tuple(sorted(refused)), None)


def _within(hunt: tuple[Function, int, int, int] | None, block: Block) -> bool:
    if hunt is None:
        return False
    function, first, last, _ = hunt
    return function == block.function and first <= block.address and block.address + block.count - 1 <= last


# The plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Atom:
    """Registers that one request must carry together: a number with its scale, counters side by side."""

    first: int
    last: int
    registers: tuple[Register, ...]

    @property
    def alone(self) -> bool:
        return self.registers[0].alone


@dataclass(frozen=True, slots=True)
class _Space:
    """The addresses of one function: which may be read, and where numbers lie that must not be cut."""

    limit: int
    readable: Callable[[int], bool]
    inside: frozenset[int]
    """Addresses that continue a number: no block may begin there, or end right before."""
    first: int
    last: int
    paired: bool
    """Every number is an even count of registers: such devices dislike odd requests (SDM630 manual, 1.2)."""

    def legal(self, first: int, last: int) -> bool:
        return all(self.readable(address) for address in range(first, last + 1))


def plan(
    map: MeterMap,
    quantities: Collection[str] | None,
    cost: LineCost,
    *,
    max_words: int | None = None,
    refused: Collection[tuple[Function, int]] = (),
    production: str | None = None,
) -> tuple[Block, ...]:
    """The cheapest legal requests for these quantities; None: what is polled in every round.

    Registers that `times` asks for come along. The block of the production counter also carries a witness, a
    number with a narrow plausible range such as the frequency, where that costs less than a request of its own.
    """
    production = production or map.production
    wanted = _wanted(map, quantities, frozenset(refused), production)
    factors = {name for register in wanted for name in register.times}
    limit = min(map.max_words, max_words or map.max_words)
    blocks: list[Block] = []
    for function in ("holding", "input"):
        own = [register for register in wanted if map.function_of(register) == function]
        if not own:
            continue
        space = _space(map, function, limit, frozenset(refused))
        requests: list[list[_Atom]] = []
        for _, some in groupby(sorted(own, key=_company), key=_company):
            atoms = _atoms(map, list(some), space)
            if atoms[0].alone:
                requests += [[atom] for atom in atoms]
            else:
                requests += _with_witness(map, function, atoms, space, cost, production)
        blocks += _told_apart(
            [_block(function, request) for request in requests], space, (function, LENGTHENED) in refused
        )
    return tuple(sorted(blocks, key=lambda b: (not any(r.quantity in factors for r in b.registers), b.address)))


def _wanted(
    map: MeterMap,
    quantities: Collection[str] | None,
    refused: frozenset[tuple[Function, int]],
    production: str | None,
) -> list[Register]:
    """The first register of each quantity, and of those that multiply them; SunSpec offsets have no address yet.

    Production is asked for in every round, also where the map leaves that counter to be read on demand.
    """
    at_hand: dict[str, Register] = {}
    for register in map.registers:
        if not register.models:
            at_hand.setdefault(register.quantity, register)
    if quantities is None:
        names = [name for name, r in at_hand.items() if name == production or (r.poll and not _still(r))]
    else:
        names = list(dict.fromkeys(quantities))
        for name in names:
            if name not in at_hand:
                near = difflib.get_close_matches(name, at_hand, 1)
                raise UsageError(
                    f"{map.name} has no {name}",
                    hint=f"Did you mean {near[0]}?" if near else f"heliograph map show {map.name} lists what it has",
                )
    names += [name for n in names for name in at_hand[n].times if name in at_hand]
    chosen = [at_hand[name] for name in dict.fromkeys(names)]
    return [r for r in chosen if not any((map.function_of(r), address) in refused for address in _touched(r))]


def _still(register: Register) -> bool:
    """Says what the device is or how it is set, which does not change from round to round."""
    quantity = find(register.quantity)
    return quantity is not None and quantity.kind in ("identity", "setting")


def _company(register: Register) -> tuple[bool, bool]:
    """Registers that may share a request have the same: identity keeps to itself, as does what must be alone."""
    quantity = find(register.quantity)
    return register.alone, quantity is not None and quantity.kind == "identity"


def _touched(register: Register) -> tuple[int, ...]:
    """Addresses that must come in one request: the number's own and its scale register."""
    own = addresses(register)
    return own if register.scale_register is None else (*own, register.scale_register)


def _span(registers: Iterable[Register]) -> tuple[int, int]:
    touched = [address for register in registers for address in _touched(register)]
    return min(touched), max(touched)


def _space(map: MeterMap, function: Function, limit: int, refused: frozenset[tuple[Function, int]]) -> _Space:
    defined: set[int] = set()
    shut: set[int] = {address for where, address in refused if where == function}
    inside: set[int] = set()
    own = [r for r in map.registers if not r.models and map.function_of(r) == function]
    for register in own:
        defined.update(_touched(register))
        if register.alone:
            shut.update(addresses(register))
        if not register.addresses:
            inside.update(addresses(register)[1:])

    def readable(address: int) -> bool:
        if address in shut or any(low <= address <= high for low, high in map.no_gap):
            return False
        return map.read_gaps or address in defined

    return _Space(
        limit,
        readable,
        frozenset(inside),
        min(defined),
        max(defined),
        paired=all(len(addresses(register)) % 2 == 0 for register in own),
    )


def _atoms(map: MeterMap, registers: list[Register], space: _Space) -> list[_Atom]:
    """Sorted by address. Energy counters side by side are one, so that they are of one moment."""
    atoms: list[_Atom] = []
    for register in sorted(registers, key=lambda r: _span((r,))):
        first, last = _span((register,))
        if not register.alone and not space.legal(first, last):
            raise ConfigError(
                f"{map.name}: the words of {register.quantity} (0x{first:04X} to 0x{last:04X}) cannot be read together",
                hint="Allow the registers between them: read_gaps = true, or a smaller no_gap",
            )
        before = atoms[-1] if atoms else None
        if (
            before is not None
            and not register.alone
            and _energy(register)
            and _energy(before.registers[-1])
            and first == before.last + 1
            and last - before.first < space.limit
        ):
            atoms[-1] = _Atom(before.first, last, (*before.registers, register))
        else:
            atoms.append(_Atom(first, last, (register,)))
    return atoms


def _energy(register: Register) -> bool:
    quantity = find(register.quantity)
    return quantity is not None and quantity.kind == "counter" and quantity.unit == "Wh"


def _cheapest(atoms: Sequence[_Atom], space: _Space, cost: LineCost) -> tuple[float, list[list[_Atom]]]:
    """Dynamic programming over the sorted atoms: each request takes a run of them.

    One atom may exceed the limit by itself: there is no smaller way to ask for it.
    """
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # time, requests, registers of the first n atoms
    begins: list[int] = [0]
    for n in range(1, len(atoms) + 1):
        options: list[tuple[tuple[float, int, int], int]] = []
        last = 0
        for start in range(n - 1, -1, -1):
            first = atoms[start].first
            last = max(last, atoms[start].last)
            count = last - first + 1
            if start < n - 1 and (count > space.limit or not space.legal(first, last)):
                break  # a longer run would be neither shorter nor more legal
            time, requests, words = best[start]
            options.append(((round(time + cost.of(count), 9), requests + 1, words + count), start))
        chosen, start = min(options)
        best.append(chosen)
        begins.append(start)
    runs: list[list[_Atom]] = []
    n = len(atoms)
    while n:
        runs.insert(0, list(atoms[begins[n] : n]))
        n = begins[n]
    return best[-1][0], runs


def _with_witness(
    map: MeterMap, function: Function, atoms: list[_Atom], space: _Space, cost: LineCost, production: str | None
) -> list[list[_Atom]]:
    """The cheapest runs; the one with the production counter takes a witness along if that is worth its price."""
    time, runs = _cheapest(atoms, space, cost)
    at_stake = next((run for run in runs for atom in run if any(r.quantity == production for r in atom.registers)), [])
    if not at_stake or any(is_witness(register) for atom in at_stake for register in atom.registers):
        return runs
    counter = next(atom for atom in at_stake if any(r.quantity == production for r in atom.registers))
    options: list[tuple[float, int, list[list[_Atom]]]] = []
    for register in map.registers:
        if register.models or register.alone or map.function_of(register) != function:
            continue
        first, last = _span((register,))
        together = _Atom(min(first, counter.first), max(last, counter.last), (register, *counter.registers))
        if not is_witness(register) or together.last - together.first >= space.limit:
            continue
        if not space.legal(together.first, together.last):
            continue
        others = [atom for atom in atoms if atom is not counter and register not in atom.registers]
        dearer, with_it = _cheapest(sorted([*others, together], key=lambda a: (a.first, a.last)), space, cost)
        if dearer - time < cost.of(last - first + 1):
            options.append((dearer, first, with_it))
    return min(options, key=lambda option: option[:2])[2] if options else runs


def is_witness(register: Register) -> bool:
    """Whether its plausible range is so narrow that the words of another register hardly ever fit: 45 to 65 Hz."""
    quantity = find(register.quantity)
    if register.range is not None:
        low, high = float(register.range[0]), float(register.range[1])
    elif quantity is not None and quantity.low is not None and quantity.high is not None:
        low, high = quantity.low, quantity.high
    else:
        return False
    return 0 < low <= high < 2 * low


def _block(function: Function, atoms: Sequence[_Atom]) -> Block:
    first = min(atom.first for atom in atoms)
    last = max(atom.last for atom in atoms)
    registers = sorted((r for atom in atoms for r in atom.registers), key=lambda r: addresses(r)[0])
    return Block(function, first, last - first + 1, tuple(registers))


def _told_apart(blocks: list[Block], space: _Space, as_they_are: bool) -> list[Block]:
    """The same blocks with different lengths, so that a late answer to one cannot pass for another's.

    One of two equal blocks is lengthened by registers that may be read; where none may, both are marked.
    """
    blocks = list(blocks)
    while True:
        counts = [block.count for block in blocks]
        options = [
            (longer.count - block.count, n, longer)
            for n, block in enumerate(blocks)
            if counts.count(block.count) > 1 and not as_they_are
            for longer in _longer(block, space, frozenset(counts))
        ]
        if not options:
            return [replace(block, alike=counts.count(block.count) > 1) for block in blocks]
        _, n, longer = min(options, key=lambda option: option[:2])
        blocks[n] = longer


def _longer(block: Block, space: _Space, taken: frozenset[int]) -> Iterable[Block]:
    """The least lengthening at the end and at the beginning that gives a new length."""
    if any(register.alone for register in block.registers):
        return
    step = 2 if space.paired and block.count % 2 == 0 else 1
    for before in (False, True):
        for extra in range(step, space.limit - block.count + 1, step):
            first = block.address - extra if before else block.address
            last = first + block.count + extra - 1
            if first < space.first or last > space.last or not space.legal(first, last):
                break
            if first in space.inside or last + 1 in space.inside or block.count + extra in taken:
                continue
            yield replace(block, address=first, count=block.count + extra)
            break


def parts(block: Block) -> tuple[Block, ...]:
    """The block, then without its end or its beginning in turn: up to six shapes, of different lengths if possible.

    They ask for the same numbers in another way: a stray answer to one of them cannot confirm another.
    """
    whole = block.registers
    heads = [_part(block, whole[:n]) for n in range(len(whole) - 1, 0, -1)]
    tails = [_part(block, whole[n:]) for n in range(1, len(whole))]
    heads, tails = ([part for part in some if part.count < block.count] for some in (heads, tails))
    found = [block]
    for choice in (heads, tails, heads, tails, heads):
        counts = {part.count for part in found}
        fresh = [part for part in choice if part.count not in counts]
        if fresh:
            found.append(fresh[0])
        elif len(found) < 3 and choice:
            found.append(choice[0])
    return tuple(found)


def _part(block: Block, registers: tuple[Register, ...]) -> Block:
    """With all that multiplies these: cut off from its factors a number has no value, and could never agree.

    What lies between is decoded too, so that one read more speaks for it.
    """
    while True:
        factors = {name for register in registers for name in register.times}
        first, last = _span((*registers, *(r for r in block.registers if r.quantity in factors)))
        held = tuple(r for r in block.registers if first <= _span((r,))[0] and _span((r,))[1] <= last)
        if held == registers:
            return Block(block.function, first, last - first + 1, registers)
        registers = held

"""Takes down what a device answers: every register of its map, its identity, and ranges that somebody is curious about.

Reads and nothing else. What is refused is taken down too, for a replay has to refuse it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from heliograph.core.decode import TYPES
from heliograph.core.errors import BusGarbled, BusRefused, BusTimeout
from heliograph.core.plan import Learned, LineCost, after_refusal, plan
from heliograph.core.recording import Piece, Recording, Refused, image, refusal
from heliograph.core.registers import Function, MeterMap, SunSpec, Timing
from heliograph.ports import BusCounters, Frame
from heliograph.work.discover import walk
from heliograph.work.identify import Sighting, identify

BUSY = 6
TRIES = 3
"""Times that a question is put whose answer comes garbled or that meets a busy device."""
SILENCES = 12
"""Questions without an answer in a row, after others were answered, before it is seen whether the device is gone."""
MOST_ALSO = 8192
"""Registers beside the map's: some minutes at 9600 baud."""

Read = Callable[[Function, int, int], tuple[int, ...]]
"""Raises BusError; a refusal as BusRefused."""
Range = tuple[Function, int, int]
"""Function, first and last address."""


@dataclass
class Capture:
    """What was answered and refused so far."""

    read: Read
    monotonic: Callable[[], float]
    progress: Callable[[int, int], None]
    """Registers asked for in this round, and how many there will be at most."""
    pieces: list[Piece] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    round: int = 1
    asked: int = 0
    total: int = 0
    silences: int = 0

    def ask(self, function: Function, address: int, count: int) -> Refused | None:
        """None where it was answered. Raises BusError where the line or the device is not there at all."""
        for left in reversed(range(TRIES)):
            began = self.monotonic()
            try:
                words = self.read(function, address, count)
            except BusRefused as no:
                if no.code == BUSY and left:
                    continue
                return self._no(function, address, count, no.code)
            except BusGarbled:
                if left:
                    continue
                raise
            except BusTimeout:
                self.silences += 1
                if not self.pieces:
                    raise
                if self.silences >= SILENCES:
                    self._still_there()
                return self._no(function, address, count, None)
            self.silences = 0
            took = round((self.monotonic() - began) * 1000)
            self.pieces.append(Piece(function, address, words, self.round, took))
            self._told(count)
            return None
        raise AssertionError("the last try ends in one way or the other")

    def _still_there(self) -> None:
        """Asks again what was answered before. Raises BusTimeout where the device is gone."""
        first = self.pieces[0]
        self.read(first.function, first.address, len(first.words))
        self.silences = 0

    def _no(self, function: Function, address: int, count: int, code: int | None) -> Refused:
        no = Refused(function, address, count, code)
        self.refused.append(no)
        if count == 1:
            self._told(1)
        return no

    def _told(self, count: int) -> None:
        self.asked += count
        self.progress(min(self.asked, self.total), self.total)

    def seen(self) -> set[tuple[Function, int]]:
        return {(piece.function, piece.address + n) for piece in self.pieces for n in range(len(piece.words))}

    def answered(self) -> set[tuple[Function, int]]:
        return {(p.function, p.address + n) for p in self.pieces if p.round == self.round for n in range(len(p.words))}


def record(
    read: Read,
    map: MeterMap,
    cost: LineCost,
    *,
    monotonic: Callable[[], float],
    rounds: int = 1,
    also: Sequence[Range] = (),
    between: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> tuple[tuple[Piece, ...], tuple[Refused, ...], tuple[float, ...]]:
    """What was answered, what was refused, and when each round began (seconds after the first).

    The first round finds out what the device answers; the others repeat exactly that. `between` waits for a round.
    """
    capture = Capture(read, monotonic, progress)
    begins = [monotonic()]
    if map.sunspec is not None:
        also = [*_models(capture, map.sunspec, map.timing), *also]
    names = [register.quantity for register in map.registers if not register.models]
    blocks = plan(map, names, cost)
    capture.total = sum(block.count for block in blocks) + sum(last - first + 1 for _, first, last in also)
    learned = _registers(capture, map, cost, names)
    for match in map.identity.match:
        function, count = match.function or map.function, TYPES[match.type].words or match.words or 1
        if not {(function, match.address + n) for n in range(count)} <= capture.answered():
            capture.ask(function, match.address, count)
    _as_polled(capture, map, cost, learned)
    limit = min(map.max_words, learned.max_words or map.max_words)
    for function, first, last in also:
        _range(capture, function, first, last, limit)
    shapes = tuple((piece.function, piece.address, len(piece.words)) for piece in capture.pieces)
    for number in range(2, rounds + 1):
        between()
        begins.append(monotonic())
        capture.round, capture.asked, capture.total = number, 0, sum(count for _, _, count in shapes)
        for shape in shapes:
            capture.ask(*shape)
    return (
        tuple(capture.pieces),
        _joined(capture.refused, capture.seen()),
        tuple(round(one - begins[0], 1) for one in begins),
    )


def _registers(capture: Capture, map: MeterMap, cost: LineCost, names: Sequence[str]) -> Learned:
    """Everything the map names, in requests that become smaller where the device refuses them."""
    learned, left = Learned(), list(names)
    waiting = list(plan(map, left, cost))
    while waiting:
        block = waiting.pop(0)
        no = capture.ask(block.function, block.address, block.count)
        if no is None:
            done = {register.quantity for register in block.registers}
            left = [name for name in left if name not in done]
            continue
        # Some devices are silent where others refuse.
        after = after_refusal(map, block, 2 if no.code is None else no.code, learned)
        if after == learned:
            gone = {register.quantity for register in block.registers}
            left = [name for name in left if name not in gone]
            continue
        learned = after
        waiting = [
            smaller
            for smaller in plan(map, left, cost, max_words=learned.max_words, refused=learned.refused)
            if any(register.quantity in left for register in smaller.registers)
        ]
    return learned


def claimed(recording: Recording, maps: Sequence[MeterMap]) -> tuple[MeterMap, ...]:
    """The maps by whose identity the device names itself, as far as what was taken down shows it."""
    seen = identify(_Replayed(image(recording)), recording.unit, maps, first=Sighting(recording.unit, "words"))
    return tuple(fit.map for fit in seen.fits if fit.evidence == "named")


@dataclass
class _Replayed:
    """The port `Bus` over a recording: what was not taken down is refused."""

    words: Mapping[tuple[Function, int], int]
    numbered: bool = True
    counters: BusCounters = field(default_factory=BusCounters)

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        del unit, timing
        found = [self.words.get((function, address + n)) for n in range(count)]
        words = tuple(word for word in found if word is not None)
        if len(words) < count:
            raise BusRefused(f"{function} 0x{address:04X}+{count} was not taken down", code=2)
        return words

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        del seconds
        return ()

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class _Walked:
    """The port `Bus` for the walk over the models: what it reads is taken down like everything else."""

    capture: Capture
    numbered: bool = False
    counters: BusCounters = field(default_factory=BusCounters)

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        del unit, timing  # the capture knows its device
        no = self.capture.ask(function, address, count)
        if no is None:
            return self.capture.pieces[-1].words
        what = f"{function} 0x{address:04X}+{count}"
        raise BusTimeout(f"no answer to {what}") if no.code is None else BusRefused(f"{what} was refused", code=no.code)

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        del seconds
        return ()

    def close(self) -> None:
        """It was opened by somebody else."""


def _models(capture: Capture, spec: SunSpec, timing: Timing) -> list[Range]:
    """All that a SunSpec device announces, whole model by whole model. Raises WrongDevice where it is none."""
    chain = walk(_Walked(capture), 0, spec.bases, timing)
    return [("holding", model.address, model.end - 1) for model in chain.models]


def _as_polled(capture: Capture, map: MeterMap, cost: LineCost, learned: Learned) -> None:
    """What a gateway asks for in every round, on this line and on a network: over other gaps than the above."""
    for line in (cost, LineCost(0.0, 0.0, cost.turnaround, cost.pause)):
        for block in plan(map, None, line, max_words=learned.max_words, refused=learned.refused):
            if not {(block.function, block.address + n) for n in range(block.count)} <= capture.answered():
                capture.ask(block.function, block.address, block.count)


def _range(capture: Capture, function: Function, first: int, last: int, limit: int) -> None:
    """What of a range has not been asked for yet; a refused piece is halved until the registers at fault are alone."""
    answered = capture.answered()
    runs: list[tuple[int, int]] = []
    for address in range(first, last + 1):
        if (function, address) in answered:
            continue
        if runs and runs[-1][0] + runs[-1][1] == address and runs[-1][1] < limit:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((address, 1))
    while runs:
        address, count = runs.pop(0)
        no = capture.ask(function, address, count)
        if no is not None and count > 1:
            half = count // 2 + (count // 2) % 2 if count > 2 else 1  # even: many devices dislike odd requests
            runs[:0] = [(address, half), (address + half, count - half)] if half < count else [(address, 1)]


def _joined(refused: Sequence[Refused], answered: set[tuple[Function, int]]) -> tuple[Refused, ...]:
    """Single registers side by side that were refused alike are one range, and what follows from them is left out."""
    alone = {no for no in refused if no.count == 1}
    kept: list[Refused] = []
    for no in sorted(alone, key=lambda no: (no.function, -1 if no.code is None else no.code, no.address)):
        before = kept[-1] if kept else None
        if (
            before is not None
            and (before.function, before.code) == (no.function, no.code)
            and before.address + before.count == no.address
        ):
            kept[-1] = replace(before, count=before.count + 1)
        else:
            kept.append(no)
    for no in sorted(dict.fromkeys(no for no in refused if no.count > 1), key=lambda no: no.count):
        follows = refusal(kept, answered, no.function, no.address, no.count)
        if follows is None or follows.code != no.code:
            kept.append(no)
    return tuple(kept)

"""A device that answers what a recording holds, and nothing that it does not hold."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal

from heliograph.core.decode import kept
from heliograph.core.recording import Recording, Refused, image, values
from heliograph.core.recording import refusal as refused
from heliograph.core.registers import FUNCTION_CODES, Function, MeterMap
from heliograph.rehearsal.frames import (
    HOLDING,
    ILLEGAL_ADDRESS,
    ILLEGAL_FUNCTION,
    ILLEGAL_VALUE,
    INPUT,
    MOST_WORDS,
    refusal,
    words_answer,
)
from heliograph.rehearsal.meter import Setting


class RecordedMeter:
    """Several rounds follow each other as they did then; the last one stays."""

    def __init__(self, recording: Recording, map: MeterMap, *, clock: Callable[[], datetime]) -> None:
        self.map = map
        self.recording = recording
        self.clock = clock
        self.started = clock()
        self.rated_kw = 50.0
        self.production = map.production or "energy_export"
        self.serial = str(values(map, recording).get(map.identity.serial or "", "unknown"))
        self.settings: Mapping[str, Setting] = {name: float(told) for name, told in recording.factors.items()}
        self._images = [image(recording, number + 1) for number in range(len(recording.rounds))]
        self._asked = {(p.round, p.function, p.address, len(p.words)): p.words for p in recording.pieces}

    @property
    def round(self) -> int:
        """Counted from 1."""
        passed = (self.clock() - self.started).total_seconds()
        return max(1, sum(begun <= passed for begun in self.recording.rounds))

    def counted_wh(self, _: datetime) -> int:
        """Of the production counter, as it was recorded first."""
        register, seen = self.map.register(self.production), values(self.map, self.recording).get(self.production)
        return int(kept(register, seen)) if register is not None and isinstance(seen, Decimal) else 0

    def answer(self, request: bytes) -> bytes | None:
        if request[:1] not in (bytes((HOLDING,)), bytes((INPUT,))):
            return refusal(request, ILLEGAL_FUNCTION) if request else None
        if len(request) != 5:
            return refusal(request, ILLEGAL_VALUE)
        address, count = struct.unpack(">HH", request[1:])
        if not 1 <= count <= MOST_WORDS:
            return refusal(request, ILLEGAL_VALUE)
        found = self.words("holding" if request[0] == FUNCTION_CODES["holding"] else "input", address, count)
        if isinstance(found, Refused):
            return None if found.code is None else refusal(request, found.code)
        return words_answer(request[0], found)

    def words(self, function: Function, address: int, count: int) -> tuple[int, ...] | Refused:
        """What the device answered to this request; where it was put in other pieces then, their words."""
        number = self.round
        if (same := self._asked.get((number, function, address, count))) is not None:
            return same
        whole = self._images[number - 1]
        if (no := refused(self.recording.refused, whole, function, address, count)) is not None:
            return no
        own = [whole.get((function, place)) for place in range(address, address + count)]
        if None in own:
            return Refused(function, address, count, ILLEGAL_ADDRESS)
        return tuple(word for word in own if word is not None)

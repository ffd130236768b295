"""Reads a stretch of registers whatever the device refuses: in large requests first, in smaller ones where it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from heliograph.core.errors import BusError, BusGarbled, BusRefused, BusTimeout
from heliograph.core.registers import Function, Timing
from heliograph.ports import Bus

ILLEGAL_FUNCTION = 1
SILENCES = 8
"""Requests without an answer after which the rest is not asked for: each costs a time-out."""
FIRST_SILENCES = 3
"""The same where nothing was ever heard: then nobody is there."""


@dataclass(slots=True)
class Heard:
    """Address to word, and why there is none."""

    words: dict[int, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def add(self, other: Heard) -> None:
        self.words |= other.words
        self.refused |= {address: why for address, why in other.refused.items() if address not in self.words}


def read_words(
    bus: Bus,
    unit: int,
    function: Function,
    first: int,
    last: int,
    timing: Timing,
    *,
    most: int = 60,
    least: int = 1,
    done: Callable[[int], None] = lambda _: None,
) -> Heard:
    """The words from `first` to `last`; what is refused alone is told, not raised.

    A refusal is followed up in halves down to `least` addresses. `done` hears how many addresses are settled. Raises
    what the bus raises where nothing answers at all, and where the device does not know the function.
    """
    heard = Heard()
    pieces = [(start, min(most, last + 1 - start)) for start in range(first, last + 1, most)]
    pieces.reverse()
    silences = 0
    while pieces:
        address, count = pieces.pop()
        if silences >= SILENCES:
            heard.refused |= dict.fromkeys(range(address, address + count), "not asked, for too much was silent")
            done(count)
            continue
        try:
            words = bus.read(unit, function, address, count, timing)
        except BusRefused as refused:
            if refused.code == ILLEGAL_FUNCTION and not heard.words:
                raise
            why = f"refused, exception {refused.code}"
        except (BusTimeout, BusGarbled) as error:
            silences += 1
            if not heard.words and not heard.refused and silences >= FIRST_SILENCES:
                raise
            why = _why(error)
        else:
            heard.words |= dict(zip(range(address, address + count), words, strict=True))
            done(count)
            continue
        if count <= least:
            heard.refused |= dict.fromkeys(range(address, address + count), why)
            done(count)
        else:
            half = count // 2 + (count // 2) % 2 if count > 2 else 1  # even pieces, for numbers of two words
            pieces += [(address + half, count - half), (address, half)]
    return heard


def _why(error: BusError) -> str:
    return "no answer" if isinstance(error, BusTimeout) else "no clean answer"

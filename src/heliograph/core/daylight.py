"""Where the sun stood, as whole numbers: the curve along which the energy of a gap is split.

The curve is the light that falls on level ground under a clear sky (Haurwitz 1945): for a sun at zenith angle z
1098 W/m² x cos z x exp(-0.057 / cos z). Neither clouds nor the slope of the modules are known, so it shapes a split
and is never energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

CELL = timedelta(minutes=5)
"""The curve is a staircase with one step per cell, so that its integral is exact and parts add up to the whole."""
_CELLS = timedelta(days=1) // CELL
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


LONGEST = timedelta(days=400)
"""Over a longer gap the seasons are alike anyway, and its light would take long to reckon."""


@dataclass(frozen=True, slots=True)
class Position:
    """Degrees north and east."""

    latitude: float
    longitude: float


@lru_cache(maxsize=512)
def _day(position: Position, number: int) -> tuple[int, ...]:
    """Clear-sky light of a UTC day (days since 1970) in whole mW/m², one value per cell: that of its middle."""
    # Here, for most runs of the gateway never need the sun: 0.7 MB and 20 ms.
    from astral import Observer
    from astral.sun import elevation

    observer = Observer(position.latitude, position.longitude)
    start = _EPOCH + timedelta(days=number) + CELL / 2
    found = []
    for cell in range(_CELLS):
        sine = math.sin(math.radians(elevation(observer, start + cell * CELL, with_refraction=False)))
        found.append(round(1_098_000 * sine * math.exp(-0.057 / sine)) if sine > 0 else 0)
    return tuple(found)


@lru_cache(maxsize=512)
def _whole(position: Position, number: int) -> int:
    return sum(_day(position, number)) * (CELL // _MICROSECOND)


def light(position: Position, start: datetime, end: datetime) -> int:
    """Clear-sky light between two moments in mW/m² x µs: `light(a, b) + light(b, c) == light(a, c)` exactly."""
    total, at = 0, start
    while at < end:
        number = (at - _EPOCH) // timedelta(days=1)
        begins = _EPOCH + timedelta(days=number)
        if at == begins and begins + timedelta(days=1) <= end:
            total += _whole(position, number)
            at = begins + timedelta(days=1)
            continue
        cell = (at - begins) // CELL
        upto = min(end, begins + (cell + 1) * CELL)
        total += _day(position, number)[cell] * ((upto - at) // _MICROSECOND)
        at = upto
    return total


def dark(position: Position, start: datetime, end: datetime) -> timedelta:
    """How long the sun was down between two moments, to a cell."""
    total, at = timedelta(0), start
    while at < end:
        number = (at - _EPOCH) // timedelta(days=1)
        begins = _EPOCH + timedelta(days=number)
        cell = (at - begins) // CELL
        upto = min(end, begins + (cell + 1) * CELL)
        if not _day(position, number)[cell]:
            total += upto - at
        at = upto
    return total

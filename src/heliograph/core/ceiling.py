"""The energy that D-REC takes for a plant and a span of time: its server refuses a read that is not below it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

HOURS_A_YEAR = 8760
DEFAULT_YIELD = 2000.0
"""kWh per kW and year that the server assumes for a device without a figure."""
RESERVE = 0.02
"""The plant's age goes on while a read is under way, and the server counts it in its own way."""
# Of so many days that were looked at last, this many above the ceiling are no exception any more.
LOOKED_AT, TOO_MANY = 30, 3


@dataclass(frozen=True, slots=True)
class Plant:
    """What the ceiling of a device is reckoned from (drec.md section 7.1)."""

    capacity_kw: float
    yield_kwh: float = DEFAULT_YIELD
    """Per kW and year."""
    commissioned: datetime | None = None


def ceiling_wh(plant: Plant, start: datetime, end: datetime, now: datetime, reserve: float = RESERVE) -> float:
    """What the energy between two moments must stay below. The age counts to `now`; before one year it is one."""
    age = 1.0 if plant.commissioned is None else (now - plant.commissioned) / timedelta(days=365.25)
    aged = 0.995 ** ((age if age > 0 else 1.0) - 1)
    hours = (end - start) / timedelta(hours=1)
    return float(plant.capacity_kw * 1000 * hours * plant.yield_kwh / HOURS_A_YEAR * aged * 1.2 * (1 - reserve))

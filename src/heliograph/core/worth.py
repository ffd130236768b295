"""Whether a change of a value is worth a message: outputs leave out what nobody needs to hear."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

EARLY = 0.9
"""A round that comes a little early is no round too many."""
ENERGY_EVERY = timedelta(minutes=1)
"""Energy changes at every round, and nobody needs it finer than this."""
# What a change is measured against: a value's own size, but at least this, so that noise around zero is no news.
LEAST: Mapping[str, float] = {"W": 1000, "VA": 1000, "var": 1000, "V": 100, "A": 1}
# Quantities that move within a narrow range are measured against that range.
RANGE: Mapping[str, float] = {"Hz": 2, "1": 1, "degC": 40, "%": 100, "deg": 360}


def moved(old: float | int | str | None, new: float | int | str | None, unit: str, percent: float) -> bool:
    """Whether a change is as large as the dead band; energy and whatever is no measured number count at any change."""
    if not isinstance(old, int | float) or not isinstance(new, int | float):
        return old != new
    size = RANGE[unit] if unit in RANGE else max(abs(old), LEAST[unit]) if unit in LEAST else 0.0
    return old != new and abs(new - old) >= size * percent / 100

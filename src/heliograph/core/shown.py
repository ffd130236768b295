"""What outputs are shown: what each round came to for a meter, and what became of its last days."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

Quality = Literal["good", "uncertain", "bad"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One meter, one round."""

    meter: str
    at: datetime
    """When it was read, or when the try ended that failed; aware, UTC."""
    values: Mapping[str, float | int | str] = field(default_factory=dict)
    """By quantity, in the units of core/quantity.py; empty where it was not read."""
    doubt: str = ""
    """Why the production counter is not believed."""
    error: str = ""
    """Why it was not read."""
    trusted: bool = True
    """Whether `at` is known to be right."""
    took: float = 0.0
    """Seconds of the clock that the line was busy with it."""

    @property
    def quality(self) -> Quality:
        if self.error:
            return "bad"
        return "uncertain" if self.doubt or not self.trusted else "good"


@dataclass(frozen=True, slots=True)
class DayFigure:
    """One local day of a meter: closed with a figure, or held or missing with the reason."""

    meter: str
    day: date
    state: Literal["closed", "held", "missing"]
    period_wh: int | None = None
    total_wh: int | None = None
    """Running total at its end, baseline included."""
    estimated: bool = False
    """Its split from a neighbouring day is estimated; the energy is not."""
    reason: str = ""
    deliveries: Mapping[str, str] = field(default_factory=dict)
    """State of its outbox row by uplink."""


@dataclass(frozen=True, slots=True)
class PastSample:
    """What was stored of one meter at a moment that an output has missed."""

    at: datetime
    values: Mapping[str, float | int]
    """By quantity, the production counter among them where it was believed."""
    total_wh: int | None = None
    """Running total at that moment, baseline included."""

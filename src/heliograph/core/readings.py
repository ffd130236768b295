"""What was read from a meter, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

TENTATIVE = "the counter is read in another way than before"
"""In the doubt of what was read in a way that nobody has confirmed: last, behind what else is doubtful about it."""
STRANGER = "the serial number changed"
"""How the doubt of another meter's reading begins."""
RATIO = "the device multiplies by"
"""In the doubt of a reading with another ratio than those before, told by the device itself."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Wall time (aware, UTC) with what is needed to judge it later: its boot and whether it was trusted."""

    at: datetime
    boot_id: str
    since_boot: float
    """Seconds since that boot, counting sleep."""
    trusted: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Where the production counter's words came from."""

    unit: int
    function: str
    address: int
    count: int
    map_digest: str

    def __str__(self) -> str:
        return f"unit {self.unit}, {self.function} 0x{self.address:04X}+{self.count}"


@dataclass(frozen=True, slots=True)
class Reading:
    """One meter, one moment.

    `index_wh` is the production counter in whole Wh, None when absent; with a `doubt` it is evidence, never a base.
    """

    meter: str
    moment: Moment
    index_wh: int | None
    values: Mapping[str, float | int] = field(default_factory=dict)
    words: tuple[int, ...] = ()
    """Raw words of the production counter (and what lies between them), from `source.address` on."""
    source: Source | None = None
    doubt: str = ""
    id: int | None = None
    settled: bool = False
    """A seam explains what was doubted."""

    @property
    def tentative(self) -> bool:
        """Read in a way that nobody has confirmed: it says nothing about the counter as it is booked."""
        return TENTATIVE in self.doubt and not self.settled

    @property
    def good(self) -> bool:
        return self.index_wh is not None and (not self.doubt or self.settled)

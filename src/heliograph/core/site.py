"""The site as values: which meters there are and to whom they report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from heliograph.core.registers import MeterMap, Timing


@dataclass(frozen=True, slots=True)
class Report:
    """One uplink a meter reports to. `offset` spreads the nightly push of a fleet; it is stable per site."""

    uplink: str
    remote_id: str
    offset: timedelta = timedelta(0)
    ordered: bool = False
    """The platform takes no day of a device behind a later one (ports.Uplink.ordered)."""
    history: bool = False
    """It takes days before the device was registered, in a form of their own."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter with its map, as the site has set it up. Durations in `timing` include the bus' overrides."""

    id: str
    bus: str
    unit: int
    map: MeterMap
    map_digest: str
    production: str
    rated_kw: float
    timing: Timing
    every: timedelta
    store_every: timedelta
    baseline_wh: int = 0
    serial: str | None = None
    factors: tuple[tuple[str, float], ...] = ()
    reports: tuple[Report, ...] = ()

    @property
    def cadence(self) -> timedelta:
        """Longest distance between two stored readings that still counts as continuous."""
        return 3 * max(self.every, self.store_every)


def cautions(meter: Meter) -> tuple[str, ...]:
    """What the map knows and the site should: no error, but nobody must be surprised by it later."""
    found: list[str] = []
    register = meter.map.register(meter.production)
    if register is not None and register.resettable:
        found.append(
            f"{meter.production} can be set back to zero: {register.resettable}. See to it that nobody does; where it"
            f" happened, record it: heliograph swap {meter.id}"
        )
    if register is not None and register.contains == "ac+battery":
        found.append(
            f"{meter.production} includes what a battery gives, where there is one, and that may have come from the"
            " grid; a meter of its own on the panels counts them alone"
        )
    if register is not None and register.contains == "dc":
        found.append(
            f"{meter.production} counts what the panels gave as direct current, before the losses of inverter and"
            " battery: ask the platform whether it takes that, or put a meter of its own on the inverter's AC side"
        )
    return tuple(found)


def spread_offset(site: str, uplink: str, spread: timedelta) -> timedelta:
    """The same for one site and uplink for ever, even over a fleet: its name's hash, not chance."""
    digest = hashlib.sha256(f"{site}/{uplink}".encode()).digest()
    return spread * int.from_bytes(digest[:4], "big") / 2**32

"""A line for a verb that asks beside the polling: through the running gateway, else by opening the port."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from heliograph import control
from heliograph.core import errors
from heliograph.core.registers import Function, Timing
from heliograph.ports import Bus, BusCounters, Frame

if TYPE_CHECKING:
    from pathlib import Path

    from heliograph.app import App

LONGEST_WAIT = 120.0
"""Seconds: a round of the gateway may be under way, and dead meters make it long."""


@dataclass
class AskedBus:
    """A line that the running gateway holds: each read waits for its turn between the rounds (port `Bus`)."""

    socket: Path
    bus: str
    numbered: bool = False
    counters: BusCounters = field(default_factory=BusCounters)

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        wish = {"unit": unit, "function": function, "address": address, "count": count, "timing": asdict(timing)}
        self.counters.requests += 1
        answer = control.ask(self.socket, f"/api/v1/buses/{self.bus}/words", wish, timeout=LONGEST_WAIT)
        if answer is None:
            raise errors.BusUnreachable(
                f"the gateway that holds the line {self.bus} does not answer any more",
                hint="Was it stopped just now? Try again: without it the line is opened directly.",
            )
        if "words" in answer:
            self.counters.answers += 1
            return tuple(answer["words"])
        if answer["failed"] == "BusRefused":
            self.counters.refused += 1
            raise errors.BusRefused(answer["message"], code=answer["code"], hint=answer["hint"])
        kind = {"BusTimeout": errors.BusTimeout, "BusGarbled": errors.BusGarbled}
        raise kind.get(answer["failed"], errors.BusUnreachable)(answer["message"], hint=answer["hint"])

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        raise errors.BusUnreachable(
            f"the gateway holds the line {self.bus}, so nobody else can listen on it for {seconds:g} s",
            hint="Stop it for as long: systemctl stop heliograph",
        )

    def close(self) -> None:
        """The line stays with the gateway."""


def line_of(app: App, bus: str) -> tuple[Bus, str]:
    """The line of a configured bus, and from where it is read, for people."""
    url = app.bus_settings(bus).url
    if control.ask(app.socket, "/api/v1/status", timeout=LONGEST_WAIT) is not None:
        return AskedBus(app.socket, bus), f"{bus}, through the running gateway"
    return app.open_bus(bus), f"{bus} ({url})"

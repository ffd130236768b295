"""The simulated line of `rehearsal` under the real bus adapter, in virtual time.

`open_bus(url, wire=Rehearsed(line))`: the line sees the speed and the parity that the url names, so a bus can be
opened again and again with other settings, as a person does who looks for the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliograph.core.line import Line
from heliograph.rehearsal.line import Wire


@dataclass
class Time:
    """Of the line and of whoever listens to it; it passes only while somebody waits."""

    now: float = 1000.0


@dataclass
class Port:
    """The wire of a bus (`bus.wire.Wire`) on a simulated line."""

    wire: Wire
    time: Time
    line: Line
    character: float = 0.0
    paced: bool = True
    stopping: bool = False
    is_open: bool = False

    def __post_init__(self) -> None:
        self.character = self.line.character

    def open(self) -> bool:
        fresh, self.is_open = not self.is_open, True
        if fresh:
            bits = 1 + 8 + (self.line.parity != "N") + self.line.stopbits
            self.wire.set_master(self.line.baudrate, bits, self.line.parity)
            self.wire.read(self.time.now)  # what came while nobody had the port open is not kept
        return fresh

    def close(self) -> None:
        self.is_open = False

    def monotonic(self) -> float:
        return self.time.now

    def sleep(self, seconds: float) -> None:
        self.time.now += max(0.0, seconds)

    def write(self, data: bytes) -> None:
        self.wire.write(data, self.time.now)

    def read(self, most: int, deadline: float) -> bytes:
        del most  # no frame is longer than what is asked for
        while not (data := self.wire.read(self.time.now)):
            coming = self.wire.next_at()
            if coming is None or coming > deadline:
                self.time.now = max(self.time.now, deadline)
                return self.wire.read(self.time.now)
            self.time.now = max(self.time.now, coming)
        return data


@dataclass
class Rehearsed:
    """Makes the ports of a simulated line: the factory that `open_bus` takes."""

    wire: Wire
    time: Time = field(default_factory=Time)

    def __call__(self, line: Line) -> Port:
        return Port(self.wire, self.time, line)

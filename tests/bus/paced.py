"""The product's bus on the simulated serial line, in virtual time: minutes of a line pass in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from heliograph.bus.modbus import open_bus
from heliograph.core.line import Line
from heliograph.ports import Bus
from heliograph.rehearsal import line as rehearsal


@dataclass
class Copper:
    """A simulated line and its time, which passes only while somebody waits. All ports opened on it share both."""

    line: rehearsal.Wire
    now: float = 1000.0
    written: list[bytes] = field(default_factory=list)
    """Every request as it went over the wire."""
    opened: list[Line] = field(default_factory=list)
    """How the port was set, each time it was opened."""

    def open(self, url: str = "serial:///dev/paced?baudrate=9600&parity=N&stopbits=1") -> Bus:
        return open_bus(url, wire=self.wire)

    def wire(self, line: Line) -> PacedWire:
        return PacedWire(self, line)


class PacedWire:
    """Implements the wire that the bus wants (`bus/wire.py`)."""

    paced = True
    stopping = False

    def __init__(self, copper: Copper, line: Line) -> None:
        self._copper, self._line = copper, line
        self.character = line.character
        self._is_open = False

    def open(self) -> bool:
        fresh, self._is_open = not self._is_open, True
        if fresh:
            self._copper.opened.append(self._line)
            line = self._line
            self._copper.line.set_master(line.baudrate, round(line.character * line.baudrate), line.parity)
            self._copper.line.read(self._copper.now)  # what came while nobody had the port open is not kept
        return fresh

    def close(self) -> None:
        self._is_open = False

    def monotonic(self) -> float:
        return self._copper.now

    def sleep(self, seconds: float) -> None:
        self._copper.now += max(0.0, seconds)

    def write(self, data: bytes) -> None:
        self._copper.written.append(data)
        self._copper.line.write(data, self._copper.now)

    def read(self, most: int, deadline: float) -> bytes:  # noqa: ARG002 - the line never has more than one frame
        copper = self._copper
        while not (data := copper.line.read(copper.now)):
            due = copper.line.next_at()
            if due is None or due > deadline:
                copper.now = max(copper.now, deadline)
                return b""
            copper.now = max(copper.now, due)
        return data

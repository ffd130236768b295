"""A wire that remembers what was last said on it: for `doctor`, and for the bundle that goes to support."""

from __future__ import annotations

from collections import deque

from heliograph.bus.wire import Wire
from heliograph.ports import Frame


class TracedWire:
    """Everything goes through unchanged; what was sent and what came is put into `frames`, the newest last.

    A frame that comes in pieces is as many entries as there were pieces.
    """

    def __init__(self, wire: Wire, frames: deque[Frame]) -> None:
        self._wire = wire
        self._frames = frames
        self.character = wire.character
        self.paced = wire.paced
        self.monotonic, self.sleep, self.close, self.open = wire.monotonic, wire.sleep, wire.close, wire.open

    @property
    def stopping(self) -> bool:
        return self._wire.stopping

    @stopping.setter
    def stopping(self, on: bool) -> None:
        self._wire.stopping = on

    def write(self, data: bytes) -> None:
        self._frames.append(Frame(self._wire.monotonic(), True, data))
        self._wire.write(data)

    def read(self, most: int, deadline: float) -> bytes:
        data = self._wire.read(most, deadline)
        if data:
            self._frames.append(Frame(self._wire.monotonic(), False, data))
        return data

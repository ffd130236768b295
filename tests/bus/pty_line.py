"""Pseudo-terminals with the pace of copper: one with a simulated talker at its end, one that joins two ports.

A kernel's pseudo-terminal hands bytes over at once; the pace and the silences are kept in here, in real time.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import termios
import threading
import time
import tty
from collections.abc import Callable
from contextlib import suppress

REQUEST_BYTES = 8


def raw_pty() -> tuple[int, int, str]:
    """Master, slave and path of a pseudo-terminal that changes no byte. The slave stays open, or reads would fail."""
    master, slave = os.openpty()
    tty.setraw(slave)
    settings = termios.tcgetattr(master)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(master, termios.TCSANOW, settings)
    return master, slave, os.ttyname(slave)


class PtyLine:
    """The far end of a serial line in real time; offers a talker what `VirtualLine` does."""

    def __init__(self, hear: Callable[[PtyLine, bytes], None], baudrate: int) -> None:
        self.character = 10 / baudrate
        self.now = 0.0
        """When the request being heard began."""
        self.last_end = 0.0
        self.path = ""
        self._hear = hear
        self._due: list[tuple[float, int, int]] = []
        self._said = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PtyLine:
        self._master, self._slave, self.path = raw_pty()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)

    def speak(self, at: float, data: bytes) -> None:
        for n, byte in enumerate(data):
            heapq.heappush(self._due, (at + (n + 1) * self.character, self._said + n, byte))
        self._said += len(data)
        if data:
            self.last_end = max(self.last_end, at + len(data) * self.character)

    def anybody_speaks(self, begin: float, end: float) -> bool:
        return any(begin < at and at - self.character < end for at, _, _ in self._due)

    def _run(self) -> None:
        heard = b""
        while not self._stop.is_set():
            now = time.monotonic()
            out = bytearray()
            while self._due and self._due[0][0] <= now:
                out.append(heapq.heappop(self._due)[2])
            if out:
                os.write(self._master, out)
            wait = min(0.05, self._due[0][0] - now) if self._due else 0.05
            if select.select([self._master], (), (), max(0.0, wait))[0]:
                if not heard:
                    self.now = time.monotonic()
                heard += os.read(self._master, 512)
                while len(heard) >= REQUEST_BYTES:
                    request, heard = heard[:REQUEST_BYTES], heard[REQUEST_BYTES:]
                    self._hear(self, request)
                    self.last_end = max(self.last_end, self.now + REQUEST_BYTES * self.character)


class NullModem:
    """Two serial ports joined by a cable with a baud rate: what one writes the other reads, character by character."""

    def __init__(self, baudrate: int) -> None:
        self._character = 10 / baudrate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ports: tuple[str, str] = ("", "")

    def __enter__(self) -> NullModem:
        ends = [raw_pty(), raw_pty()]
        self._masters = [end[0] for end in ends]
        self._slaves = [end[1] for end in ends]
        self.ports = (ends[0][2], ends[1][2])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for descriptor in (*self._masters, *self._slaves):
            os.close(descriptor)

    def _run(self) -> None:
        queues: list[list[tuple[float, int]]] = [[], []]
        free = [0.0, 0.0]
        while not self._stop.is_set():
            now = time.monotonic()
            for side in (0, 1):
                due = [byte for at, byte in queues[side] if at <= now]
                if due:
                    os.write(self._masters[1 - side], bytes(due))
                    queues[side] = [one for one in queues[side] if one[0] > now]
            soonest = min((queue[0][0] for queue in queues if queue), default=now + 0.05)
            ready = select.select(self._masters, (), (), max(0.0, min(0.05, soonest - now)))[0]
            for side in (0, 1):
                if self._masters[side] in ready:
                    for byte in os.read(self._masters[side], 512):
                        free[side] = max(free[side], time.monotonic()) + self._character
                        queues[side].append((free[side], byte))


class Converter:
    """A serial-to-TCP converter: hands bytes on as they come, one client at a time."""

    def __init__(self, port: str) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address = ("", 0)

    def __enter__(self) -> Converter:
        self._serial = os.open(self._port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._serial)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()
        os.close(self._serial)

    def _run(self) -> None:
        client: socket.socket | None = None
        while not self._stop.is_set():
            watched: list[int] = [self._listener.fileno(), self._serial, *([client.fileno()] if client else [])]
            ready = select.select(watched, (), (), 0.05)[0]
            if self._listener.fileno() in ready:
                if client:
                    client.close()
                client = self._listener.accept()[0]
            if client and client.fileno() in ready:
                data = client.recv(512)
                if data:
                    os.write(self._serial, data)
                else:
                    client.close()
                    client = None
            if self._serial in ready:
                data = os.read(self._serial, 512)
                if client:
                    with suppress(OSError):
                        client.sendall(data)
        if client:
            client.close()

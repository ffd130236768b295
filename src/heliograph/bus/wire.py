"""The two kinds of wire under a Modbus line: a serial port and a TCP connection, as bytes with deadlines.

The only module that knows pyserial. Time belongs to the wire, so that a test can put a virtual line and a
virtual clock in its place.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import termios
import time
from typing import TYPE_CHECKING, Protocol

from heliograph.core.errors import BusUnreachable
from heliograph.core.line import Line

if TYPE_CHECKING:
    from serial import Serial

SLICE = 0.5
"""Longest single wait in seconds; a stop is noticed after it."""
CONNECT = 3.0
"""Seconds for a TCP connection to come about."""


class Wire(Protocol):
    """Bytes to and from a line. `open` and everything after it may raise BusUnreachable."""

    character: float
    """Seconds a character takes on the line; 0 where that cannot be known."""
    paced: bool
    """Whether bytes cannot arrive faster than that: true of copper, not of a pseudo-terminal."""
    stopping: bool
    """Set by another thread: the wait in progress ends with BusUnreachable."""

    def open(self) -> bool:
        """Makes sure that it is open; True if it had to be opened just now."""
        ...

    def write(self, data: bytes) -> None: ...

    def read(self, most: int, deadline: float) -> bytes:
        """What is there, or comes first until `deadline`; empty when nothing did. A past deadline does not wait."""
        ...

    def close(self) -> None: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class _RealTime:
    stopping = False

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, SLICE))

    def check(self) -> None:
        if self.stopping:
            raise BusUnreachable("the line was closed while it was in use", hint="It is opened again when needed")

    def readable(self, descriptor: int, deadline: float) -> bool:
        """Waits for input in slices, so that a stop does not have to wait for a device that needs 15 s."""
        while True:
            self.check()
            left = deadline - time.monotonic()
            if select.select([descriptor], (), (), max(0.0, min(left, SLICE)))[0]:
                return True
            if left <= SLICE:
                return False


class SerialWire(_RealTime):
    """A serial port with pyserial; reading is done on its descriptor, which costs a third of Serial.read()."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._port: Serial | None = None
        self.character = line.character
        # A pseudo-terminal and a USB device with its own firmware (CDC ACM) hand over bytes as fast as they come.
        device = os.path.realpath(line.at)
        self.paced = not device.startswith(("/dev/pts/", "/dev/ttyACM"))

    def open(self) -> bool:
        if self._port is not None:
            return False
        import serial  # 1 MB and 3 ms that a site without a serial line need not spend

        try:
            self._port = serial.Serial(
                self._line.at,
                baudrate=self._line.baudrate,
                parity=self._line.parity,
                stopbits=self._line.stopbits,
                timeout=0,
                write_timeout=1.0,
                exclusive=True,
            )
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError, termios.error is neither
            raise self._unreachable(error) from error
        return True

    def write(self, data: bytes) -> None:
        try:
            self._opened().write(data)
        except (OSError, termios.error) as error:
            self.close()
            raise self._unreachable(error) from error

    def read(self, most: int, deadline: float) -> bytes:
        try:
            descriptor = self._opened().fileno()
            if not self.readable(descriptor, deadline):
                return b""
            data = os.read(descriptor, most)
        except BlockingIOError:
            return b""
        except (OSError, ValueError) as error:
            self.close()
            raise self._unreachable(error) from error
        if not data:
            self.close()
            raise self._unreachable(OSError(errno.EIO, "the port is gone"))
        return data

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            try:
                port.close()
            except (OSError, termios.error):
                return  # it is gone already, which is what was wanted

    def _opened(self) -> Serial:
        if self._port is None:
            raise OSError(errno.EBADF, "the port is not open")
        return self._port

    def _unreachable(self, error: Exception) -> BusUnreachable:
        number = getattr(error, "errno", None)
        hint = {
            errno.ENOENT: "Is the adapter plugged in? ls /dev/serial/by-id shows what is there",
            errno.EACCES: "The user of the service must be in the group dialout",
            errno.EBUSY: "Another program has the port open; stop it",
            errno.EAGAIN: "Another program has the port open; stop it",
        }.get(number or 0, "Unplug the adapter and plug it in again; look at its cable and at: dmesg")
        return BusUnreachable(f"serial port {self._line.at}: {_reason(error)}", hint=hint)


class TcpWire(_RealTime):
    """A TCP connection; for Modbus TCP, or for RTU frames through a converter."""

    character = 0.0
    paced = False

    def __init__(self, line: Line, connect: float = CONNECT) -> None:
        self._line = line
        self._connect = connect
        self._socket: socket.socket | None = None

    def open(self) -> bool:
        if self._socket is not None:
            return False
        try:
            self._socket = socket.create_connection((self._line.at, self._line.port), timeout=self._connect)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.settimeout(CONNECT)
        except (OSError, UnicodeError) as error:  # the latter of a name that can be none, with two dots in a row
            self.close()
            raise self._unreachable(error) from error
        return True

    def write(self, data: bytes) -> None:
        try:
            self._opened().sendall(data)
        except OSError as error:
            self.close()
            raise self._unreachable(error) from error

    def read(self, most: int, deadline: float) -> bytes:
        try:
            connection = self._opened()
            if not self.readable(connection.fileno(), deadline):
                return b""
            data = connection.recv(most)
        except (OSError, ValueError) as error:
            self.close()
            raise self._unreachable(error) from error
        if not data:
            self.close()
            raise self._unreachable(OSError(errno.ECONNRESET, "the other side closed the connection"))
        return data

    def close(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _opened(self) -> socket.socket:
        if self._socket is None:
            raise OSError(errno.ENOTCONN, "not connected")
        return self._socket

    def _unreachable(self, error: Exception) -> BusUnreachable:
        if isinstance(error, socket.gaierror | UnicodeError):
            return BusUnreachable(
                f"the name {self._line.at} is unknown here: {_reason(error)}",
                hint="Is it spelled right? Else write the address, as the router or the display tells it",
            )
        refused = getattr(error, "errno", None) == errno.ECONNREFUSED
        hint = (
            "Is Modbus TCP switched on in the device, and the port right? Many allow a single client"
            if refused
            else "Check the address, the cable and that nobody else is connected: many devices allow a single client"
        )
        return BusUnreachable(f"{self._line}: {_reason(error)}", hint=hint)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def real_wire(line: Line, connect: float = CONNECT) -> Wire:
    """`connect`: seconds for a TCP connection to come about."""
    return SerialWire(line) if line.way == "serial" else TcpWire(line, connect)

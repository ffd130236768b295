"""A serial line that is not there: a wire in virtual time, and a pseudo-terminal that plays it in real time.

`Wire` is told the moment and does nothing by itself, so tests run it as fast as they like. `Line` holds the
master side of a pseudo-terminal and gives a path that any Modbus master can open as a serial port.
The kernel clears parity on pseudo-terminals, so use parity N; `bits=11` paces as if there were one.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import threading
import time
import tty
from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from heliograph.core.errors import UsageError
from heliograph.rehearsal.faults import Faults, Mischief
from heliograph.rehearsal.frames import Device, rtu, rtu_parts

BAUDS: dict[int, int] = {
    getattr(termios, f"B{baud}"): baud
    for baud in (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400)
    if hasattr(termios, f"B{baud}")
}

FRAME_GAP = 3.5  # characters of silence that end a frame (Modbus over serial line 1.02, 2.5.1.1)
FRAME_GAP_FAST = 0.00175  # and seconds above 19200 baud

_LONGEST = 512  # bytes of one request that are kept; the longest legal one has 256

Parity = Literal["N", "E", "O"]


@dataclass(frozen=True, slots=True)
class OtherMaster:
    """Somebody else who asks on the same line, without listening first."""

    request: bytes
    """A whole frame, as `frames.rtu` makes it."""
    every: float
    """Seconds."""
    first: float = 0.0
    """When it asks first."""


def received(data: bytes, sent: Parity, expected: Parity) -> tuple[bytes, int]:
    """What a receiver with another parity takes these characters for, and how many it marks as damaged.

    Bit by bit, at the same speed, back to back: start 0, eight bits with the lowest first, parity or none, stop 1
    (Modbus over serial line 1.02, 2.5.1). A character whose parity or stop bit is not what it should be is marked;
    a receiver that finds 0 in place of the stop bit takes that for the next start bit, as UARTs do. What a device
    makes of a marked character is its own affair: 2.5.1.3 asks that it is not used, so the frame is no frame.
    """
    if sent == expected:
        return data, 0
    bits: list[int] = []
    for byte in data:
        bits += [0, *(byte >> place & 1 for place in range(8))]
        if sent != "N":
            bits.append(byte.bit_count() % 2 ^ (sent == "O"))
        bits.append(1)
    taken, marked, at = bytearray(), 0, 0
    bits += [1] * 12  # the line is idle
    while at + 12 <= len(bits):
        if bits[at]:
            at += 1
            continue
        byte = sum(bit << place for place, bit in enumerate(bits[at + 1 : at + 9]))
        at += 9
        wrong = False
        if expected != "N":
            wrong = bits[at] != byte.bit_count() % 2 ^ (expected == "O")
            at += 1
        if bits[at]:
            at += 1
        else:
            wrong = True
        taken.append(byte)
        marked += wrong
    return bytes(taken), marked


class Wire:
    """Two wires with a master and several devices. Moments are seconds of any clock that never steps.

    Half duplex: who speaks while another speaks makes garbage of both. A device answers one request after the
    other, so behind a late answer the next one waits, as in a meter that has stalled.
    """

    def __init__(
        self,
        devices: Mapping[int, Device],
        *,
        baud: int = 9600,
        bits: int | None = None,
        turnaround: float = 0.010,
        strict_silence: bool = False,
        echo: bool = False,
        parity: Parity = "N",
        forgiving: bool = False,
        other: OtherMaster | None = None,
        faults: Faults | None = None,
        seed: int = 0,
    ) -> None:
        """`bits` of one character, start and stop included; None takes the master's (10, or 11 with two stop bits).

        `parity` of the devices. A master with another one is met with silence, for its characters are marked as
        damaged; with `forgiving` devices that do not look at the marks, the bytes as they were taken decide.
        `other`: somebody else who asks here too.

        `turnaround`: seconds from the silence that ends a request to the first character of the answer.
        `strict_silence`: a request that follows the last character by less than 3.5 characters is not heard.
        `echo`: the master hears itself, as with two-wire adapters whose receiver stays on.
        """
        self.devices = devices
        self.baud = baud
        self.bits = bits
        self.turnaround = turnaround
        self.strict_silence = strict_silence
        self.echo = echo
        self.parity: Parity = parity
        self.forgiving = forgiving
        self.other = other
        self._other_at = other.first if other is not None else float("inf")
        self.mischief = Mischief(faults, seed)
        self.character = (bits or 10) / baud
        self.gap = 0.0
        self._master_baud = baud
        self._master_parity: Parity = parity
        self.set_master(baud, 10)
        self._out: list[tuple[float, int, int, bool]] = []  # end of the character, order, byte, whether an echo
        self._order = 0
        self._request = bytearray()
        self._request_end = float("-inf")
        self._spoilt = ""  # why the request under way will not be understood
        self._quiet_since = float("-inf")
        self._busy: dict[int, float] = {}

    @property
    def counts(self) -> Counter[str]:
        return self.mischief.counts

    def set_master(self, baud: int, bits: int, parity: Parity | None = None) -> None:
        """How the master's port is set; 0 baud stands for a speed we do not know. No parity: that of the devices."""
        self._master_baud = baud
        self._master_parity = self.parity if parity is None else parity
        self.character = (self.bits or bits) / (baud or self.baud)
        self.gap = FRAME_GAP * self.character if (baud or self.baud) <= 19200 else FRAME_GAP_FAST

    def write(self, data: bytes, now: float) -> None:
        """The master's characters leave one after the other from this moment."""
        self._advance(now)
        start = max(now, self._request_end)
        end = start + len(data) * self.character
        if not self._request:
            heard = max([self._quiet_since, self._request_end, *(due for due, *_ in self._out if due <= start)])
            if self.strict_silence and start < heard + self.gap:
                self._spoilt = "too early"
        if self._collides(start, end):
            self._spoilt = "collision"
        if self._master_baud != self.baud:
            self._spoilt = "wrong baud"
        if self.echo:
            self._say(data, start, echo=True)
        self._request += data[: _LONGEST - len(self._request)]
        self._request_end = end

    def read(self, now: float) -> bytes:
        """What has arrived at the master since it was last asked."""
        self._advance(now)
        ready = 0
        while ready < len(self._out) and self._out[ready][0] <= now:
            ready += 1
        if not ready:
            return b""
        taken, self._out = self._out[:ready], self._out[ready:]
        self._quiet_since = max(self._quiet_since, taken[-1][0])
        return bytes(byte for _, _, byte, _ in taken)

    def next_at(self, chunk: float = 0.0) -> float | None:
        """When something will have happened next; characters within `chunk` seconds are taken together."""
        moments = [self._request_end + self.gap] if self._request else []
        if self.other is not None:
            moments.append(self._other_at)
        if self._out:
            first = last = self._out[0][0]
            for due, *_ in self._out:
                if due > first + chunk:
                    break
                last = due
            moments.append(last)
        return min(moments, default=None)

    def _advance(self, now: float) -> None:
        """The request is over once the line has been silent for long enough."""
        if self.other is not None and self._other_at < now - self.other.every:
            self._other_at += (now - self._other_at) // self.other.every * self.other.every  # nobody was listening
        while self.other is not None and self._other_at <= now:
            self._other_asks(self.other)
        if self._request and self._request_end + self.gap <= now:
            frame, end, spoilt = bytes(self._request), self._request_end, self._spoilt
            self._request.clear()
            self._spoilt = ""
            frame, marked = received(frame, self._master_parity, self.parity)
            if marked and not self.forgiving:
                spoilt = spoilt or "wrong parity"
            self._quiet_since = max(self._quiet_since, end)
            self._hear(frame, end + self.gap, spoilt)

    def _other_asks(self, other: OtherMaster) -> None:
        """Their question is heard by us as well, and so is its answer; what falls into ours spoils both."""
        start = self._other_at
        self._other_at += other.every
        end = start + len(other.request) * self.character
        if self._request and start < self._request_end:
            self._spoilt = "collision"
            self.mischief.count("collision")
        elif self._collides(start, end):
            self.mischief.count("collision")
            self._say(self.mischief.random.randbytes(len(other.request)), start)
        else:
            self._say(other.request, start)
            self.mischief.count("other master")
            self._hear(other.request, end + self.gap, "")

    def _hear(self, frame: bytes, at: float, spoilt: str) -> None:
        parts = rtu_parts(frame)
        if spoilt or parts is None:
            self.mischief.count(spoilt or "bad checksum")
            if spoilt == "wrong baud":  # what a scan at another speed sees of a line that is not silent
                self._say(self.mischief.random.randbytes(max(1, len(frame) // 2)), at + self.turnaround)
            return
        unit, request = parts
        answer = self.mischief.respond(self.devices, unit, request, rtu, "rtu")
        if answer is None:
            return
        start = max(at, self._busy.get(unit, at)) + self.turnaround + answer.late
        for said in answer.frames:
            if self._master_parity != self.parity:
                said, _ = received(said, self.parity, self._master_parity)  # noqa: PLW2901 - what the master takes it for
            end = start + len(said) * self.character
            if self._collides(start, end):
                self.mischief.count("collision")
                self._say(self.mischief.random.randbytes(len(said)), start)
            else:
                self._say(said, start)
            self._busy[unit] = end
            start = end + self.gap

    def _say(self, data: bytes, start: float, *, echo: bool = False) -> None:
        for place, byte in enumerate(data, 1):
            self._order += 1
            insort(self._out, (start + place * self.character, self._order, byte, echo))

    def _collides(self, start: float, end: float) -> bool:
        """Whether anybody else is heard in this time; what they say is garbage then."""
        hit = False
        for place, (due, order, byte, echo) in enumerate(self._out):
            if not echo and start < due and due - self.character < end:
                self._out[place] = (due, order, byte ^ self.mischief.random.randint(1, 255), echo)
                hit = True
        return hit


class Line:
    """A pseudo-terminal with a `Wire` behind it. `path` opens like any serial port, by one master at a time."""

    def __init__(self, wire: Wire, *, link: Path | None = None, rate: float = 1.0, chunk: float = 0.002) -> None:
        """`link`: a symbolic link to the port, for a name that stays. `rate`: wire seconds in a real second.

        `chunk`: real seconds of characters handed over at once, as the latency timer of a USB adapter does (16 ms
        on an FTDI chip as it comes); the last character of a frame is never kept back.
        """
        self.wire = wire
        self.chunk = chunk
        self.rate = rate
        self.link = link
        self.overruns = 0
        """Characters lost because nobody read them."""
        self._master, self._slave = os.openpty()
        # Our own hand on the slave keeps the line up while no master is there, and its settings between masters.
        tty.setraw(self._slave)
        settings = termios.tcgetattr(self._slave)
        speed = next((flag for flag, baud in BAUDS.items() if baud == wire.baud), termios.B9600)
        settings[4] = settings[5] = speed
        termios.tcsetattr(self._slave, termios.TCSANOW, settings)
        os.set_blocking(self._master, False)
        self.path = Path(os.ttyname(self._slave))
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"rehearsal-{self.path}", daemon=True)
        if link is not None:
            self._point(link)

    @property
    def url(self) -> str:
        """As it stands in a configuration."""
        return f"serial://{self.link or self.path}?baudrate={self.wire.baud}&parity=N&stopbits=1"

    @property
    def faults(self) -> Faults:
        return self.wire.mischief.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self.wire.mischief.faults = faults

    @property
    def counts(self) -> Counter[str]:
        return self.wire.counts

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        if self.link is not None and self.link.is_symlink() and self.link.readlink() == self.path:
            self.link.unlink()
        os.write(self._waker, b"x")
        if self._thread.ident is not None:
            self._thread.join(2)
        for descriptor in (self._wake, self._waker, self._master, self._slave):
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _point(self, link: Path) -> None:
        try:
            if link.is_symlink():
                link.unlink()  # of an earlier rehearsal
            link.symlink_to(self.path)
        except OSError as exc:
            raise UsageError(
                f"cannot make {link} point to {self.path}: {exc.strerror}",
                hint="Choose a path in a directory you may write to, with nothing there yet",
            ) from exc

    def _run(self) -> None:
        while True:
            now = self._now()
            if arrived := self.wire.read(now):
                self._give(arrived)
            due = self.wire.next_at(self.chunk * self.rate)
            wait = None if due is None else max(0.0, (due - self._now()) / self.rate)
            ready, _, _ = select.select([self._master, self._wake], [], [], wait)
            if self._wake in ready:
                return
            if self._master in ready:
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self._master, 4096)
                    self.wire.set_master(*self._settings())
                    self.wire.write(data, self._now())

    def _now(self) -> float:
        return time.monotonic() * self.rate

    def _settings(self) -> tuple[int, int]:
        """Speed and bits of a character as the master has set them; Linux shows the slave's on the master's side."""
        settings = termios.tcgetattr(self._master)
        return BAUDS.get(settings[5], 0), 11 if settings[2] & termios.CSTOPB else 10

    def _give(self, data: bytes) -> None:
        try:
            written = os.write(self._master, data)
        except BlockingIOError:
            written = 0
        self.overruns += len(data) - written

"""A line in virtual time with a hostile meter on it: as quick as the processor, as slow as 9600 baud.

Nothing in here knows the product's bus: frames are put together by hand, with a checksum of our own.
"""

from __future__ import annotations

import math
import random
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

UNIT = 7
TIMEOUT = 0.5
EPOCH = 0.05
"""Seconds for which the simulated registers stand still."""
REGISTERS = 0x190


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


CRC_TABLE = _crc_table()


def rtu(unit: int, pdu: bytes) -> bytes:
    """An RTU frame: low byte of the CRC-16 first (Modbus over serial line 1.02, 6.2.2)."""
    body = bytes((unit,)) + pdu
    crc = 0xFFFF
    for byte in body:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return body + crc.to_bytes(2, "little")


class Line(Protocol):
    """What a talker needs of the line it is on; there is one in virtual and one in real time."""

    character: float
    now: float
    """When the request being heard began."""
    last_end: float
    """When the last character so far, ours or theirs, is over."""

    def speak(self, at: float, data: bytes) -> None: ...

    def anybody_speaks(self, begin: float, end: float) -> bool: ...


class VirtualLine:
    """Implements the bus' wire. Time passes only while somebody waits; characters take theirs.

    Talkers may overlap: their bytes then arrive mixed, as rubbish.
    """

    paced = True
    stopping = False

    def __init__(self, hear: Callable[[VirtualLine, bytes], None], baudrate: int = 9600, character: float = 0) -> None:
        self.character = character or 10 / baudrate
        self.now = 1000.0
        self.opened = 0
        self.is_open = False
        self.wakes = 0
        self.heard: list[tuple[float, bytes]] = []
        self.last_end = 0.0
        self._hear = hear
        self._talks: list[list[tuple[float, int, int]]] = []
        """For each talker the bytes not yet taken: when each arrives, its number on this line, the byte."""
        self._said = 0

    # Wire

    def open(self) -> bool:
        fresh, self.is_open = not self.is_open, True
        self.opened += fresh
        return fresh

    def close(self) -> None:
        self.is_open = False

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)

    def write(self, data: bytes) -> None:
        self._hear(self, data)
        self.last_end = max(self.last_end, self.now + len(data) * self.character)

    def read(self, most: int, deadline: float) -> bytes:
        self.wakes += 1
        if data := self._take(most):
            return data
        coming = min((talk[0][0] for talk in self._talks), default=math.inf)
        self.now = max(self.now, min(coming, deadline))
        return self._take(most)

    # The other end

    def speak(self, at: float, data: bytes) -> None:
        """A talker sends `data`, beginning at `at`."""
        if data:
            c = self.character
            self._talks.append([(at + (n + 1) * c, self._said + n, byte) for n, byte in enumerate(data)])
            self._said += len(data)
            self.last_end = max(self.last_end, at + len(data) * c)

    def anybody_speaks(self, begin: float, end: float) -> bool:
        return any(talk[0][0] - self.character < end and talk[-1][0] > begin for talk in self._talks)

    def _take(self, most: int) -> bytes:
        now = self.now + 1e-9
        if not self._talks or all(talk[0][0] > now for talk in self._talks):
            return b""
        here = sorted(one for talk in self._talks for one in talk if one[0] <= now)[:most]
        taken = frozenset(here)
        self._talks = [left for talk in self._talks if (left := [one for one in talk if one not in taken])]
        return bytes(byte for _, _, byte in here)


class Converted:
    """The same line behind a converter to TCP: the bus does not know how fast it is, and packets take their time."""

    character = 0.0
    paced = False
    stopping = False

    def __init__(self, line: VirtualLine, delay: float) -> None:
        self._line = line
        self._delay = delay
        self.open, self.close, self.write = line.open, line.close, line.write
        self.monotonic, self.sleep = line.monotonic, line.sleep

    def read(self, most: int, deadline: float) -> bytes:
        data = self._line.read(most, deadline)
        if data and self._line.now + self._delay < deadline:
            self._line.sleep(self._delay)  # what gathers meanwhile comes in the same packet
            data += self._line.read(most - len(data), self._line.now)
        return data


class Registers:
    """An SDM630 by a cloudy noon: every register is a function of time, its address and a seed.

    The counters rise at 30 kW; V, I, P move every epoch; clouds halve the power every few seconds.
    """

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        self._noise = [dice.uniform(-1.0, 1.0) for _ in range(4096)]
        self._export = dice.choice([41_237.0, 803.5, 1_234_567.0])
        self._images: dict[int, bytes] = {}

    def words(self, at: float, address: int, count: int) -> bytes:
        return self.image(int(at / EPOCH))[2 * address : 2 * (address + count)]

    def held(self, begin: float, end: float, address: int, words: tuple[int, ...]) -> bool:
        """Whether the registers held exactly these words at some instant between the two."""
        raw = struct.pack(f">{len(words)}H", *words)
        epochs = range(int(begin / EPOCH), int(end / EPOCH) + 1)
        return any(self.image(epoch)[2 * address :][: len(raw)] == raw for epoch in reversed(epochs))

    def image(self, epoch: int) -> bytes:
        if epoch not in self._images:
            if len(self._images) > 400:
                self._images.clear()
            self._images[epoch] = self._make(epoch)
        return self._images[epoch]

    def _make(self, epoch: int) -> bytes:
        noise, start = self._noise, epoch * 97
        seconds = epoch * EPOCH
        cloud = 0.45 if noise[epoch // 83 & 4095] > 0.3 else 1.0
        light = max(0.0, math.sin(seconds / 900.0))  # a day of an hour and a half, half of it night
        regs = [0.0] * (REGISTERS // 2)
        total = 0.0
        for phase in range(3):
            jitter = noise[start + phase & 4095]
            volts = 230.0 + phase + 2.0 * jitter
            watts = 15_000.0 * light * cloud * (1.0 + 0.01 * jitter)
            total += watts
            regs[phase] = volts
            regs[3 + phase] = watts / volts
            regs[6 + phase] = -watts
            regs[9 + phase] = watts * 1.01
            regs[12 + phase] = watts * 0.1
            regs[15 + phase] = 0.99 if watts else 1.0
            regs[100 + phase] = volts * 1.732
        regs[21] = 231.0
        regs[26], regs[28], regs[30], regs[31] = -total, total * 1.01, total * 0.1, 0.99
        regs[35] = 50.0 + 0.02 * noise[start + 9 & 4095]
        export = self._export + 30.0 * seconds / 3600.0
        drawn = 312.5 + 0.2 * seconds / 3600.0
        regs[36], regs[37] = drawn, export
        regs[38], regs[39], regs[40] = drawn / 3, export / 3, export * 1.02
        regs[171], regs[172] = drawn + export, export / 7
        for phase in range(3):
            regs[173 + phase], regs[176 + phase] = drawn / 3, export / 3
        return struct.pack(f">{len(regs)}f", *regs)


FAULTS: Mapping[str, float] = {
    "late": 0.08,
    "doubled": 0.06,
    "foreign": 0.05,
    "wrong": 0.07,
    "truncated": 0.05,
    "bit": 0.05,
    "noise": 0.05,
    "refused": 0.04,
    "echo": 0.03,
    "silence": 0.05,
}


@dataclass
class HostileMeter:
    """Answers on a virtual line as `FAULTS` have it. It hears a request only after 3.5 characters of silence."""

    registers: Registers
    dice: random.Random
    faults: Mapping[str, float]
    turnaround: float = 0.01
    jitter: float = 0.5
    """The part of the turnaround by which it varies."""
    timeout: float = TIMEOUT
    latest: float = 4.0
    """Time-outs after which a late answer has come: three more than ours."""
    copied: float = 1.0
    """Time-outs within which the copy of an answer begins."""

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.asked: list[tuple[float, int, int]] = []
        """When each request began, its address and its count; whoever reads this clears it."""
        self._kinds = [*self.faults, "right"]
        self._weights = [*self.faults.values(), max(0.0, 1.0 - sum(self.faults.values()))]

    def hear(self, line: Line, request: bytes) -> None:
        c = line.character
        end = line.now + len(request) * c
        self.counts["requests"] += 1
        self.asked.append((line.now, int.from_bytes(request[2:4], "big"), int.from_bytes(request[4:6], "big")))
        if line.now - line.last_end < 3.5 * c - 1e-9 or line.anybody_speaks(line.now, end):
            self.counts["unheard"] += 1
            return
        unit, function, address, count = struct.unpack(">BBHH", request[:6])
        if unit != UNIT or request != rtu(unit, request[1:-2]):
            self.counts["unheard"] += 1
            return
        (kind,) = self.dice.choices(self._kinds, self._weights)
        self.counts[kind] += 1
        at = end + 3.5 * c + self.turnaround * self.dice.uniform(1 - self.jitter, 1 + self.jitter)
        content = self.registers.words(end, address, count)
        frame = rtu(unit, bytes((function, 2 * count)) + content)
        for delay, data in self._answers(kind, request, frame, end, len(frame) * c):
            line.speak(at + delay, data)

    def _answers(self, kind: str, request: bytes, frame: bytes, now: float, lasts: float) -> list[tuple[float, bytes]]:
        dice = self.dice
        unit, function, count = frame[0], frame[1], frame[2] // 2
        match kind:
            case "late":
                return [(dice.uniform(0.0, self.latest * self.timeout), frame)]
            case "doubled":  # at once, a few characters later, or up to a time-out after the first began
                most = self.copied * self.timeout
                gap = dice.choice([0.0, 0.004, dice.uniform(0.0, 0.1), dice.uniform(0.0, most)])
                return [(0.0, frame), (max(lasts, min(lasts + gap, most)), frame)]
            case "foreign":
                return [(0.0, rtu(dice.choice([u for u in range(1, 20) if u != unit]), frame[1:-2]))]
            case "wrong":
                address = int.from_bytes(request[2:4], "big")
                near = address + 2 * dice.choice([-4, -3, -2, -1, 1, 2, 3, 4])
                far = 2 * dice.randrange(0, (REGISTERS - count) // 2)
                other = near if dice.random() < 0.5 and 0 <= near <= REGISTERS - count else far
                content = self.registers.words(now, other, count)
                return [(0.0, rtu(unit, bytes((function, 2 * count)) + content))]
            case "truncated":
                return [(0.0, frame[: dice.randrange(1, len(frame))])]
            case "bit":
                at = dice.randrange(len(frame))
                return [(0.0, frame[:at] + bytes((frame[at] ^ 1 << dice.randrange(8),)) + frame[at + 1 :])]
            case "noise":
                noise = dice.randbytes(dice.randrange(1, 90))
                return [(dice.choice([0.0, -0.005, 0.05]), noise), (dice.choice([0.0, 0.2]), frame)]
            case "refused":
                return [(0.0, rtu(unit, bytes((function | 0x80, dice.choice([1, 2, 3, 4, 6])))))]
            case "echo":
                return [(-self.turnaround / 2, request), *([(0.1, frame)] if dice.random() < 0.5 else [])]
            case "silence":
                return []
        return [(0.0, frame)]

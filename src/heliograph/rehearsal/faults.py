"""What can go wrong between a question and its answer, on demand, seeded and counted."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from heliograph.core.errors import UsageError
from heliograph.rehearsal.frames import BUSY, HOLDING, INPUT, Device, Framing, refusal

KINDS: dict[str, str] = {
    "silence": "no answer",
    "late": "the right answer, but later by a time within `late_by`",
    "doubled": "the right answer twice",
    "foreign": "an answer in the name of another unit",
    "truncated": "the answer stops early",
    "crc": "one bit of the frame turned over (TCP has no checksum: its header is damaged)",
    "noise": "a few random bytes right before the answer",
    "busy": "exception 6",
    "reset": "the connection is reset (on a serial line: no answer)",
    "wrong": "right unit, function, length and checksum, but the content of other registers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probability of each fault, 0 to 1; at most one happens to an answer, so they add up to 1 at most."""

    silence: float = 0.0
    late: float = 0.0
    doubled: float = 0.0
    foreign: float = 0.0
    truncated: float = 0.0
    crc: float = 0.0
    noise: float = 0.0
    busy: float = 0.0
    reset: float = 0.0
    wrong: float = 0.0
    late_by: tuple[float, float] = (0.5, 0.7)
    """Seconds, least and most, beside the device's own turnaround; the default just misses a time-out of 0.5 s."""

    def __post_init__(self) -> None:
        for kind, chance in self.chances().items():
            if not 0 <= chance <= 1:
                raise UsageError(
                    f"fault {kind}: {chance:g} is not a probability",
                    hint=f"Give a number from 0 to 1, such as {kind}=0.02",
                )
        if (total := sum(self.chances().values())) > 1 + 1e-9:
            raise UsageError(
                f"the probabilities of all faults add up to {total:g}",
                hint="An answer has one fault at most, so their sum must not exceed 1",
            )
        if not 0 <= self.late_by[0] <= self.late_by[1]:
            raise UsageError(
                f"late answers cannot come between {self.late_by[0]:g} and {self.late_by[1]:g} s late",
                hint="Give the shorter time first",
            )

    def chances(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in KINDS}


@dataclass(frozen=True, slots=True)
class Answer:
    """What leaves the device: frames one after the other, `late` seconds after the usual moment."""

    frames: tuple[bytes, ...] = ()
    late: float = 0.0
    reset: bool = False


class Mischief:
    """Decides what becomes of each answer. The same seed and the same requests give the same faults."""

    def __init__(self, faults: Faults | None = None, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()
        """Requests, right answers, each fault by name, and why a request was not answered."""
        self.random = random.Random(seed)
        self._lock = threading.Lock()  # connections of one server share the dice

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def pick(self) -> str | None:
        """The fault of the next answer."""
        with self._lock:
            draw = self.random.random()
            for kind, chance in self.faults.chances().items():
                if draw < chance:
                    self.counts[kind] += 1
                    return kind
                draw -= chance
        return None

    def respond(
        self,
        devices: Mapping[int, Device],
        unit: int,
        request: bytes,
        wrap: Callable[[int, bytes], bytes],
        framing: Framing,
    ) -> Answer | None:
        """What comes back, or None where no such unit is; `wrap` makes a frame of a unit and a data unit."""
        device = devices.get(unit)
        if device is None:
            self.count("unknown unit")
            return None
        self.count("requests")
        right = device.answer(request)
        if right is None:
            self.count("asleep")
            return Answer()
        kind = self.pick()
        match kind:
            case "silence":
                return Answer()
            case "reset":
                return Answer(reset=True)
            case "busy":
                return Answer((wrap(unit, refusal(request, BUSY)),))
            case "foreign":
                others = [other for other in devices if other != unit] or [unit % 247 + 1]
                other = self.random.choice(others)
                return Answer((wrap(other, right),))
            case "wrong":
                return Answer((wrap(unit, self._other_content(device, request, right)),))
        frame = wrap(unit, right)
        match kind:
            case "truncated":
                return Answer((frame[: self.random.randrange(1, len(frame))],))
            case "crc":
                # In TCP the second word of the header must be zero.
                at = self.random.randrange(len(frame)) if framing == "rtu" else self.random.choice((2, 3))
                bit = 1 << self.random.randrange(8)
                return Answer((frame[:at] + bytes((frame[at] ^ bit,)) + frame[at + 1 :],))
        self.count("answers")
        match kind:
            case "late":
                return Answer((frame,), late=self.random.uniform(*self.faults.late_by))
            case "doubled":
                return Answer((frame, frame))
            case "noise":
                return Answer((self.random.randbytes(self.random.randint(1, 6)) + frame,))
        return Answer((frame,))

    def _other_content(self, device: Device, request: bytes, right: bytes) -> bytes:
        """The same number of words from elsewhere in the device, as after a mix-up of requests."""
        if request[0] in (HOLDING, INPUT) and not right[0] & 0x80:
            address = int.from_bytes(request[1:3], "big")
            count = int.from_bytes(request[3:5], "big")
            moves = [step * sign for step in range(2, 2 * count + 64, 2) for sign in (1, -1)]
            self.random.shuffle(moves)
            for move in moves:
                if 0 <= address + move <= 0x10000 - count:
                    other = device.answer(request[:1] + (address + move).to_bytes(2, "big") + request[3:5])
                    if other is not None and len(other) == len(right) and other != right:
                        return other
            words = right[2:]
            turned = words[2:] + words[:2]
            return right[:2] + (turned if turned != words else bytes(byte ^ 0xFF for byte in words))
        return right

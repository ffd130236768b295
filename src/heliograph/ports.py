"""What the outside must be able to do. A port exists where there are two implementations or more."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Protocol

from heliograph.core.delivery import DayRow, Note, Parcel, ReadBack, Roll, Verdict
from heliograph.core.health import Health, OutputHealth
from heliograph.core.registers import Function, Timing
from heliograph.core.shown import DayFigure, Sample


class Clock(Protocol):
    """The only source of time. `rate` is how many of its seconds pass per real second: 1 outside rehearsals."""

    rate: float
    boot_id: str

    def now(self) -> datetime:
        """Wall time, aware, UTC."""
        ...

    def since_boot(self) -> float:
        """Seconds since boot, counting sleep, never stepping."""
        ...

    def trusted(self) -> bool:
        """Whether the wall time is known to be right."""
        ...

    def wants_witness(self) -> bool:
        """Whether nobody vouches for the wall time, or only a witness whose word grows old."""
        ...

    def vouch(self) -> None:
        """A second witness has just agreed with the wall time."""
        ...

    def ahead(self) -> float | None:
        """By how many seconds the wall time is ahead, by who keeps it; None where that cannot be told."""
        ...

    def sleep(self, seconds: float) -> None: ...


FRAMES = 64
"""Bytes sent and heard that a bus remembers: some twenty exchanges, 10 kB."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes that were sent, or that came, in one piece."""

    at: float
    """Seconds of the wire's clock, which never steps: when the first byte was about to leave, or the last was there."""
    sent: bool
    data: bytes


@dataclass(slots=True)
class BusCounters:
    """What happened on a line since start, by class; shown by `status` and never reset while running."""

    requests: int = 0
    answers: int = 0
    timeouts: int = 0
    garbled: int = 0
    foreign: int = 0
    """Well-formed frames that answered somebody else's or an earlier question."""
    refused: int = 0
    drained_bytes: int = 0
    echoed: int = 0
    """Requests that came back unchanged: an adapter hears itself, or A and B of two lines touch."""
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=FRAMES))
    """What was last said, the newest last."""

    def counts(self) -> dict[str, int]:
        """By name, without the frames."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "frames"}


class Bus(Protocol):
    """A line with meters. Reads only."""

    counters: BusCounters
    numbered: bool
    """Answers carry the number of their question (Modbus TCP), so none can be taken for another's."""

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        """`count` register words.

        Raises BusTimeout, BusGarbled, BusRefused or BusUnreachable; never returns another question's answer.
        """
        ...

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        """What is said on the line while we are silent for so long. Raises BusUnreachable."""
        ...

    def close(self) -> None: ...


class Uplink(Protocol):
    """Takes closed days to a platform. It speaks a dialect; when and how often is decided in `work/deliver.py`."""

    name: str
    ordered: bool
    """True where a day that was refused must not be overtaken by later days of the same device."""
    absent_after: timedelta
    """How long after a claim a platform's "I have nothing" is believed."""

    def prepare(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """Due rows that must not leave now, before anything is sent; they are settled so. Mostly empty.

        It may ask the platform what it knows of the devices; without rows it is a calm moment for that. What is due
        again needs a `wait`.
        """
        ...

    def room(self) -> float:
        """How much of a minute's requests may leave now, from 1 to 0. What is begun without room waits for its turn."""
        ...

    def pack(self, rows: Sequence[DayRow]) -> Parcel | None:
        """The next request for these rows (sorted by meter, then day), or None when none may leave. No request."""
        ...

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        """One exchange; a verdict for each row id of the parcel. Raises nothing that the network can cause."""
        ...

    def follow(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        """What became of accepted rows that share one process id.

        An empty mapping while the platform works on it; `accepted`, with the reason, where it did not tell.
        """
        ...

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        """What the platform holds for these days (rows of one meter, in order of days)."""
        ...

    def notes(self) -> Sequence[Note]:
        """What a person should know about the platform and the devices there, as it stands now."""
        ...

    def look_up(self, remote_ids: Sequence[str]) -> Roll:
        """What the platform knows of these devices, asked now; nothing that belongs to a day leaves."""
        ...

    def date(self) -> datetime | None:
        """What time it is there, in whole seconds, by an answer to a question without a token; None without one."""
        ...

    def token_until(self) -> datetime | None:
        """When the token ends that a person has to replace; None where none is known, or it renews itself."""
        ...

    def token_changed(self) -> bool:
        """Whether another token, or another secret to log in with, stands there than was used last."""
        ...

    def close(self) -> None:
        """No further request leaves; who waits for its turn is told so at once."""
        ...


class Output(Protocol):
    """Shows readings and states to somebody. Best effort: no method raises or waits, whatever its peer does; who talks
    to a peer has a thread of its own, and its memory has a bound.
    """

    name: str

    def start(self) -> None: ...

    def sample(self, sample: Sample) -> None:
        """What a round came to for one meter. A meter that rests because it is silent has no sample in that round."""
        ...

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        """How the site is, every half minute; its newest days by meter and day."""
        ...

    def state(self) -> OutputHealth: ...

    def close(self) -> None:
        """Says good-bye if that takes less than a second."""
        ...

"""A Sparkplug B session as an edge node keeps it: what has to be said next, and with which number. Pure.

Everything that is measured is put in here and waits as the newest value of its metric; whoever can send fetches one
message after the other. So births come before data whatever happens in between, a sequence number belongs to a message
that leaves now, and a slow peer costs values between, not memory.

    NBIRTH (seq 0)  ->  DBIRTH of each device that answers  ->  NDATA, DDATA, history
                        DDEATH when it does not any more, DBIRTH when it does again
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from heliograph.outputs.broker import Message
from heliograph.outputs.sparkplug_payload import Metric, Quality, Type, Value, payload

REBIRTH = "Node Control/Rebirth"
BD_SEQ = "bdSeq"
NUMBERS = 256
"""`seq` and `bdSeq` go from 0 to 255 and begin again."""


@dataclass(frozen=True, slots=True)
class Named:
    """A metric as its birth announces it."""

    name: str
    type: Type
    unit: str = ""
    worth: Callable[[Value, Value], bool] = lambda old, new: old != new
    """Whether a new value is worth a message after an old one; both are there."""
    every: int = 0
    """Least time between two values, in milliseconds."""


@dataclass(slots=True)
class _Tag:
    named: Named
    alias: int
    value: Value = None
    quality: Quality = Quality.BAD
    at: int | None = None
    told: tuple[Value, Quality, int] | None = None
    """Value, quality and moment that the host knows."""

    def birth(self, now: int) -> Metric:
        properties: dict[str, tuple[Type, Value]] = {"Quality": (Type.INT32, int(self.quality))}
        if self.named.unit:
            properties["engUnit"] = (Type.STRING, self.named.unit)
        at = now if self.at is None else self.at
        self.told = (self.value, self.quality, at)
        return Metric(self.named.type, self.value, at, self.named.name, self.alias, typed=True, properties=properties)

    def news(self) -> bool:
        """Whether the host should hear of it: at once where its quality changes or a value comes or goes."""
        if self.at is None or self.told is None:
            return False
        value, quality, at = self.told
        if quality != self.quality or (value is None) != (self.value is None):
            return True
        if value is None or value == self.value:
            return False
        early = 0 <= self.at - at < self.named.every  # else its time has come, or the clock was set back
        return not early and self.named.worth(value, self.value)

    def data(self, now: int) -> Metric:
        assert self.told is not None
        _, quality, _ = self.told
        at = now if self.at is None else self.at
        self.told = (self.value, self.quality, at)
        properties = {"Quality": (Type.INT32, int(self.quality))} if quality != self.quality else {}
        return Metric(self.named.type, self.value, at, alias=self.alias, properties=properties)


@dataclass(slots=True)
class _Device:
    tags: dict[str, _Tag]
    answers: bool = False
    """What is so."""
    announced: bool = False
    """What the host knows."""
    since: int = 0
    """Since when it answers, or does not."""
    news: dict[str, None] = field(default_factory=dict)
    """Names of metrics to tell of."""


class Session:
    """One node with its devices. Moments are milliseconds since 1970. Not for two threads at once."""

    def __init__(self, group: str, node: str, own: Sequence[Named], devices: Mapping[str, Sequence[Named]]) -> None:
        self._group, self._node = group, node
        alias = iter(range(1, 1 << 62))
        # An alias is one of the node's whole set; the same for as long as the configuration stays the same.
        self._own = _Device({one.name: _Tag(one, next(alias)) for one in own}, answers=True)
        self._devices = {
            id: _Device({one.name: _Tag(one, next(alias)) for one in named}) for id, named in devices.items()
        }
        self._bd_seq: int | None = None
        self._seq = 0
        self._owes_birth = False
        self.left_out = 0
        """Times that values of a device were replaced by newer ones before a peer who listens took them."""
        self._turn: dict[str, None] = {}
        """Devices with something to tell, the next one first."""

    # What happens

    def begin(self, bd_seq: int) -> None:
        """The link is up, and its will said this number: births are owed."""
        self._bd_seq, self._owes_birth = bd_seq, True

    def end(self) -> None:
        """The link is down, or the host is: until `begin` nothing is said."""
        self._bd_seq = None

    def rebirth(self) -> None:
        """The host has lost the thread."""
        self._owes_birth = True

    def note_own(self, values: Mapping[str, Value], at: int) -> None:
        self._note(self._own, {name: (value, Quality.GOOD) for name, value in values.items()}, at)

    def note(self, device: str, values: Mapping[str, tuple[Value, Quality]], at: int) -> None:
        """New values of a device; names that were not announced are left out."""
        found = self._devices[device]
        self._note(found, values, at)
        if found.news:
            self._turn.setdefault(device)

    def answers(self, device: str, at: int) -> None:
        self._turns(device, at, answers=True)

    def fails(self, device: str, at: int) -> None:
        """It does not answer any more."""
        self._turns(device, at, answers=False)

    def _turns(self, device: str, at: int, *, answers: bool) -> None:
        found = self._devices[device]
        if found.answers != answers:
            found.answers, found.since = answers, at

    def _note(self, device: _Device, values: Mapping[str, tuple[Value, Quality]], at: int) -> None:
        if self.open and device.announced and device.news.keys() & values.keys():
            self.left_out += 1
        for name, (value, quality) in values.items():
            if (tag := device.tags.get(name)) is None:
                continue
            tag.value, tag.quality, tag.at = value, quality if value is not None else Quality.BAD, at
            if tag.news():
                device.news[name] = None
            else:
                device.news.pop(name, None)  # it came back to what the host knows

    # What is said

    @property
    def open(self) -> bool:
        return self._bd_seq is not None

    @property
    def owes_birth(self) -> bool:
        """Births are what comes next."""
        return self.open and self._owes_birth

    @property
    def announced(self) -> frozenset[str]:
        """Devices that the host may hear of."""
        if not self.open or self._owes_birth:
            return frozenset()
        return frozenset(id for id, device in self._devices.items() if device.announced)

    def death(self, bd_seq: int, now: int) -> Message:
        """The will of a connection: no sequence number, and nothing but `bdSeq`."""
        metric = Metric(Type.INT64, bd_seq, now, BD_SEQ, typed=True)
        return Message(self._topic("NDEATH"), payload([metric], now), qos=1)

    def next(self, now: int) -> Message | None:
        """What has to be said now, if anything; once it was fetched it counts as said."""
        if self._bd_seq is None:
            return None
        if self._owes_birth:
            return self._birth(self._bd_seq, now)
        for id, device in self._devices.items():
            if device.answers and not device.announced:
                device.announced = True
                device.news.clear()
                return self._say("DBIRTH", [tag.birth(now) for tag in device.tags.values()], now, id)
            if device.announced and not device.answers:
                device.announced = False
                return self._say("DDEATH", [], device.since, id)
        if self._own.news:
            return self._say("NDATA", self._news(self._own, now), now)
        while self._turn:
            id = next(iter(self._turn))
            del self._turn[id]
            device = self._devices[id]
            if device.announced and device.news:
                return self._say("DDATA", self._news(device, now), now, id)
        return None

    def history(self, device: str, rows: Iterable[tuple[int, Mapping[str, Value]]], now: int) -> Message | None:
        """Values of earlier moments, oldest first; None while the host may not hear of the device."""
        if device not in self.announced:
            return None
        tags = self._devices[device].tags
        metrics = [
            Metric(tags[name].named.type, value, at, alias=tags[name].alias, historical=True)
            for at, values in rows
            for name, value in values.items()
            if name in tags and value is not None
        ]
        return self._say("DDATA", metrics, now, device)

    def _birth(self, bd_seq: int, now: int) -> Message:
        self._owes_birth = False
        self._seq = 0
        self._own.news.clear()
        for device in self._devices.values():
            device.announced = False
        controls = [
            Metric(Type.INT64, bd_seq, now, BD_SEQ, typed=True),
            # Without an alias, so that a host that knows nothing of us yet can ask for it.
            Metric(Type.BOOLEAN, False, now, REBIRTH, typed=True),
        ]
        return self._say("NBIRTH", [*controls, *(tag.birth(now) for tag in self._own.tags.values())], now)

    @staticmethod
    def _news(device: _Device, now: int) -> list[Metric]:
        names, device.news = device.news, {}
        return [device.tags[name].data(now) for name in names]

    def _say(self, kind: str, metrics: Sequence[Metric], now: int, device: str = "") -> Message:
        # Within a message, births as well, values stand in the order of their moments.
        message = Message(self._topic(kind, device), payload(sorted(metrics, key=_moment), now, self._seq))
        self._seq = (self._seq + 1) % NUMBERS
        return message

    def _topic(self, kind: str, device: str = "") -> str:
        return f"spBv1.0/{self._group}/{kind}/{self._node}" + (f"/{device}" if device else "")


def _moment(metric: Metric) -> int:
    return metric.at

"""Looks at a line that does not work: a fixed plan of experiments, the cheapest first, each of a bounded time.

What follows from the observations is decided in `core/diagnosis.py`. Nothing is ever written to a device.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from heliograph.core.decode import Absent, value, width
from heliograph.core.diagnosis import (
    ALIVE,
    NOBODY_BEHIND,
    Content,
    Device,
    Elsewhere,
    Gateway,
    Holder,
    Mark,
    Observations,
    Outcome,
    Port,
    Try,
    Why,
    alive,
    bad,
    doubtful,
    noisy,
    requests_in,
    usual_settings,
    with_,
)
from heliograph.core.errors import BusError, BusGarbled, BusRefused, BusTimeout, BusUnreachable
from heliograph.core.line import Line, parse
from heliograph.core.plan import Block, Learned, after_refusal, line_cost, parts, plan
from heliograph.core.registers import MeterMap, Order, Register, Timing
from heliograph.ports import FRAMES, Bus, Frame
from heliograph.work.identify import identify
from heliograph.work.read_block import decoded

REQUEST_BYTES = 8
LISTEN = 3.0
LISTEN_AGAIN = 12.0
"""Seconds; most masters ask every ten."""
PATIENCE = 4.0
"""In time-outs: what comes within it is slow, what does not is silent."""
LEAST_PATIENCE = 2.0
MOST_PATIENCE = 15.0
QUICK = 0.3
"""Seconds to wait where many are asked: three times the slowest answer that was ever reported of an SDM630."""
LEAST_WAIT = 0.15
"""Seconds to wait where a device is known to be quick: after each refusal the bus keeps quiet for as long."""
HASTE = 0.5
"""The part of that for unit ids that hardly anybody uses."""
SLOW = 0.4
"""Seconds: a device that takes longer is asked fewer questions, so that a visit to it comes to an end."""
READS = 40
MOST_READS = 240
MOST_KNOCKS = 8
SURELY = 3
"""Questions that are not ours: fewer could be the end of what a stopped gateway had begun."""
SPOILT = 0.3
"""The share of lost answers from which another parity may be the cause: some answers get through by chance."""
IN_A_ROW = 6
"""Answers in a row by which another parity proves to be the right one."""
REFUSALS = 12
GAP = 0.02
"""Seconds of silence between two things that are said."""
MOST_DEVICES = 4
"""Other units that are asked what they are; a line may have many."""
MOST_UNITS = 247  # Modbus over serial line 1.02, section 2.2

WHY: dict[int, Why] = {
    errno.EAGAIN: "busy",
    errno.EBUSY: "busy",
    errno.EACCES: "forbidden",
    errno.EPERM: "forbidden",
    errno.ECONNREFUSED: "refused",
}

Experiment = Literal["listen", "knock", "echo", "settings", "units", "identity", "content", "series", "listen again"]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)

Connect = Callable[[str], Bus]
"""Makes the bus of a url; nothing is opened by it."""
Told = Callable[[str, float], None]
"""What is being done, and which part of it is over (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What does not work: a unit on a line, and what it should be."""

    url: str
    unit: int
    timing: Timing = field(default_factory=Timing)
    map: MeterMap | None = None
    rated_kw: float | None = None
    production: str | None = None
    factors: tuple[tuple[str, float], ...] = ()
    dark: bool = False
    """The sun is down at the site."""
    neighbours: tuple[int, ...] = ()
    """Units of other meters that the site has on this line."""


@dataclass(frozen=True)
class Machine:
    """Where the system tells about its ports; other folders in tests."""

    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    there: Callable[[Path], bool] = Path.exists
    may: Callable[[Path], bool] = field(default=lambda path: os.access(path, os.R_OK | os.W_OK))


def budget(subject: Subject) -> tuple[float, float]:
    """Seconds this takes where the device answers at once, and at most where nothing does."""
    line = parse(subject.url)
    listen = 0.0 if line.way == "tcp" else LISTEN
    known = subject.map is not None and bool(subject.map.identity.match)
    exchange = 0.05 + subject.timing.pause + 100 * line.character
    answers = listen + READS * exchange + (2 if known else 7)
    settings = len(usual_settings(line)) * len(_units_elsewhere(subject)) * 2.5 * QUICK
    units = 40 * QUICK if line.way == "tcp" else MOST_UNITS * 2.2 * QUICK * 0.6
    return answers, listen + 4 * _patience(subject.timing) + settings + units + LISTEN_AGAIN + 30


def observe(
    subject: Subject,
    connect: Connect,
    *,
    machine: Machine | None = None,
    gateway: Gateway | None = None,
    maps: Callable[[], Sequence[MeterMap]] = tuple,
    told: Told = lambda _, __: None,
    skip: Iterable[Experiment] = (),
) -> Observations:
    """Makes every experiment that is needed, until the cause must be among what was seen.

    `maps`: all there are, asked for only when it is in question what device this is.
    """
    line = parse(subject.url)
    o = Observations(
        url=subject.url,
        line=line,
        unit=subject.unit,
        timing=subject.timing,
        map=subject.map,
        rated_kw=subject.rated_kw,
        port=look(line, machine or Machine()) if line.way == "serial" else None,
        gateway=gateway,
        dark=subject.dark,
        neighbours=subject.neighbours,
    )
    if gateway is not None or (o.port and (not o.port.exists or not o.port.allowed or o.port.holders)):
        return o
    return _Visit(subject, connect, maps, told, frozenset(skip)).whole(o)


# The port -------------------------------------------------------------------------------------------------------


def look(line: Line, machine: Machine) -> Port:
    """What the system says of a serial port; nothing is opened."""
    path = Path(line.at)
    links = _links(machine.dev / "serial" / "by-id")
    real = _real(path)
    by_id = next((str(link) for link, target in links.items() if target == real and link != path), None)
    others = tuple(str(link) for link in links) or tuple(
        str(one) for pattern in ("ttyUSB*", "ttyACM*") for one in sorted(machine.dev.glob(pattern))
    )
    if not machine.there(path):
        return Port(line.at, exists=False, others=others)
    latency = machine.sys / "bus" / "usb-serial" / "devices" / real.name / "latency_timer"
    return Port(
        line.at,
        exists=True,
        by_id=by_id if path.name.startswith(("ttyUSB", "ttyACM")) else None,
        others=others,
        allowed=machine.may(path),
        group=_group(path),
        user=_user(),
        holders=tuple(_holders(real, machine.proc)),
        latency_ms=_number(latency),
        latency_file=str(latency),
    )


def _links(folder: Path) -> dict[Path, Path]:
    try:
        return {link: _real(link) for link in sorted(folder.iterdir())}
    except OSError:
        return {}


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _group(path: Path) -> str:
    import grp

    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "dialout"


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _holders(device: Path, proc: Path) -> Iterator[Holder]:
    """Processes that have the port open, as far as they may be seen: all of them for root, else one's own.

    Who plays the other end of a pseudo-terminal (simulators do) is not in the way.
    """
    for folder in sorted(proc.glob("[0-9]*"), key=lambda one: int(one.name)):
        if int(folder.name) == os.getpid():
            continue
        try:
            descriptors = list((folder / "fd").iterdir())
        except OSError:
            continue
        pointed = [_target(one) for one in descriptors]
        if str(device) in pointed and not any("ptmx" in one for one in pointed):
            try:
                words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                words = []
            yield Holder(int(folder.name), " ".join(word.rpartition("/")[2] for word in words[:6] if word) or "?")


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


# The line -------------------------------------------------------------------------------------------------------


@dataclass
class _Visit:
    subject: Subject
    connect: Connect
    maps: Callable[[], Sequence[MeterMap]]
    told: Told
    skip: frozenset[Experiment]
    foreign: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    """Our own questions, as far as they were kept."""
    echoing: bool = False
    """An echo was found, or is expected: then whatever we have ever sent may come back."""
    answered_after: list[float] = field(default_factory=list)
    """Seconds of each answer so far."""
    usable: list[Block] | None = None
    """Requests for what the map names that the device does not refuse; None before they were made."""

    def does(self, experiment: Experiment, part: float = 0.0) -> bool:
        if experiment in self.skip:
            return False
        self.told(experiment, part)
        return True

    def whole(self, o: Observations) -> Observations:
        with closing(self.connect(o.url)) as bus:
            if o.line.way != "tcp" and self.does("listen"):
                o = self.listened(o, bus, LISTEN)
            if self.does("knock"):
                o = replace(o, knocks=tuple(self.knocks(bus, o.line)))
            if any(one.outcome in ALIVE for one in o.knocks):
                return replace(self.inside(o, bus, o.line), foreign=tuple(self.foreign))
        line = o.line
        if o.line.way != "tcp" and self._echo_suspected(o) and self.does("echo"):
            line = replace(o.line, echo=not o.line.echo)
            with closing(self.connect(with_(line))) as bus:
                o = replace(o, echo_off=tuple(self.knocks(bus, line)))
                if alive(o):
                    return replace(self.inside(o, bus, line), foreign=tuple(self.foreign))
            if o.line.echo:
                line = o.line if any(one.outcome == "silent" for one in o.knocks) else line
        if all(one.outcome in ("unreachable", "closed") for one in o.knocks) and o.knocks:
            return o
        with closing(self.connect(with_(line))) as bus:
            if self.does("units"):
                o = self.others(o, bus, line, likely=True)
        if not self.found(o) and o.line.way == "serial" and self.does("settings"):
            o = replace(o, elsewhere=tuple(self.elsewhere(line)))
        with closing(self.connect(with_(line))) as bus:
            if not self.found(o) and self.does("units"):
                o = self.others(o, bus, line, likely=False)
            strange = any(one.outcome == "garbled" for one in o.knocks)
            if not self.found(o) and strange and o.line.way != "tcp" and self.does("listen again"):
                o = self.listened(o, bus, LISTEN_AGAIN)
        return replace(o, foreign=tuple(self.foreign))

    @staticmethod
    def _echo_suspected(o: Observations) -> bool:
        return any(one.outcome == "echoed" for one in o.knocks) or (
            o.line.echo and any(one.outcome == "garbled" for one in o.knocks)
        )

    @property
    def busy(self) -> bool:
        """Whether it is beyond doubt that somebody else asks on this line."""
        return len(self.foreign) >= SURELY

    def is_news(self, tried: Try) -> bool:
        """Whether somebody answers whom the site does not know yet."""
        return tried.outcome in ALIVE and tried.unit not in self.subject.neighbours

    def found(self, o: Observations) -> bool:
        """Whether anybody new answers, under whatever unit or setting."""
        return any(self.is_news(one) for one in (*o.units, *(one.tried for one in o.elsewhere)))

    # -- the experiments ------------------------------------------------------------------------------------------

    def listened(self, o: Observations, bus: Bus, seconds: float) -> Observations:
        try:
            heard = _said(bus.hear(seconds))
        except BusUnreachable:
            return o  # the first question will say so
        self.foreign += [one for said in heard for one in requests_in(said) if not self.is_own(one)]
        return replace(o, heard=(*o.heard, *heard), listened=o.listened + seconds)

    def knocks(self, bus: Bus, line: Line) -> Iterator[Try]:
        """Three first questions, of different lengths, until one is answered; more where noise comes back."""
        shapes, usual, patient = self.shapes(line), self.subject.timing.timeout, _patience(self.subject.timing)
        for number in range(MOST_KNOCKS):
            self.told("knock", number / MOST_KNOCKS)
            wait = patient if number in (1, 2) else usual
            tried = self.ask(bus, line, self.subject.unit, shapes[number % len(shapes)], wait)
            yield tried
            if tried.outcome in ALIVE or (number >= 2 and tried.outcome != "garbled"):
                return

    def elsewhere(self, line: Line) -> Iterator[Elsewhere]:
        """One question at each of the usual settings; a second one where something was heard."""
        settings = usual_settings(line)
        shapes = self.shapes(line)
        for number, other in enumerate(settings):
            self.told("settings", number / len(settings))
            with closing(self.connect(with_(other))) as bus:
                for unit in _units_elsewhere(self.subject):
                    tried = self.ask(bus, other, unit, shapes[0], self.quick)
                    if tried.outcome == "garbled":
                        tried = self.ask(bus, other, unit, shapes[-1], self.quick)
                    yield Elsewhere(other, tried)
                    if self.is_news(tried):
                        return

    def parities(self, line: Line) -> Iterator[Elsewhere]:
        """The same speed with another parity, as long as nothing is lost."""
        shapes = self.shapes(line)
        for other in usual_settings(line):
            if other.baudrate == line.baudrate:
                with closing(self.connect(with_(other))) as bus:
                    for number in range(IN_A_ROW):
                        shape = shapes[number % len(shapes)]
                        tried = self.ask(bus, other, self.subject.unit, shape, self.quick)
                        yield Elsewhere(other, tried)
                        if tried.outcome not in ALIVE:
                            break

    def others(self, o: Observations, bus: Bus, line: Line, *, likely: bool) -> Observations:
        """Other units: the likely ones, or all the others; no further than the group in which one answers."""
        factory = self.subject.map.unit if self.subject.map else 1
        groups: list[tuple[int, ...]] = [(*self.subject.neighbours, factory, *range(1, 11))]
        if not likely:
            groups = [(*range(11, 33), 247, 126, 240, 200, 100, 71)]
            groups.append((255, 0) if line.way == "tcp" else tuple(range(33, MOST_UNITS + 1)))
        asked = {self.subject.unit, *(one.unit for one in o.units)}
        tries: list[Try] = []
        for number, group in enumerate(groups):
            units = [unit for unit in dict.fromkeys(group) if unit not in asked]
            asked.update(units)
            for done, unit in enumerate(units):
                self.told("units", done / len(units))
                wait = self.quick * (HASTE if number else 1)
                tried = self.ask(bus, line, unit, self.shapes(line)[0], wait)
                if tried.outcome == "garbled":
                    tried = self.ask(bus, line, unit, self.shapes(line)[0], wait)
                tries.append(tried)
                if tried.outcome in ("closed", "unreachable"):
                    return replace(o, units=(*o.units, *tries))
            if there := [one.unit for one in tries if self.is_news(one)]:
                devices = tuple(self.devices(bus, there[:MOST_DEVICES]))
                return replace(o, units=(*o.units, *tries), devices=devices)
        return replace(o, units=(*o.units, *tries))

    def inside(self, o: Observations, bus: Bus, line: Line) -> Observations:
        """The device answers: is it the right one, does it say what it should, and does it always?

        Where somebody else asks as well, that has to end first: on a line that is never silent each answer takes long.
        """
        if self.busy:
            return o
        if self.subject.map is not None:
            if self.does("identity"):
                o = replace(o, marks=tuple(self.marks(bus)))
            if self.does("content"):
                o = self.content(o, bus, line)
        slow = max(self.answered_after, default=0.0) > SLOW
        if doubtful(o, by_name=not slow) and not self.busy and self.does("identity", 0.5):
            o = replace(o, devices=tuple(self.devices(bus, [self.subject.unit])))
            if self.subject.map is None:
                o = self.taken_for(o)
                if self.subject.map is not None and self.does("content"):
                    o = self.content(o, bus, line)
        if self.usable != [] and not self.busy and self.does("series"):
            o = replace(o, series=tuple(self.series(bus, line)))
        self.overheard(line, bus.counters.frames)
        bus.counters.frames.clear()
        if (
            line.way == "serial"
            and not self.busy
            and bad(o.series) >= SPOILT * max(1, len(o.series))
            and self.does("settings")
        ):
            bus.close()
            o = replace(o, elsewhere=tuple(self.parities(line)))
        strange = any(one.outcome == "garbled" for one in (*o.series, *o.knocks)) or any(o.heard)
        if strange and not self.foreign and line.way != "tcp" and self.does("listen again"):
            o = self.listened(o, bus, LISTEN_AGAIN)
        return o

    def devices(self, bus: Bus, units: Sequence[int]) -> Iterator[Device]:
        """What these units say of themselves, as far as any map knows to ask."""
        slowest = max(self.answered_after, default=self.quick)
        timing = replace(self.subject.timing, timeout=min(max(LEAST_WAIT, 3 * slowest), 2.0), retries=1)
        maps = self.maps() if units else ()
        for unit in units:
            try:
                seen = identify(bus, unit, maps, timing)
            except BusUnreachable:
                return
            best = seen.best.map.name if seen.best is not None else None
            yield Device(unit, best, tuple(fit.map.name for fit in seen.candidates), str(seen))

    def taken_for(self, o: Observations) -> Observations:
        """Without a map, the one that the device names is used from here on."""
        named = [map for map in self.maps() for device in o.devices if map.name == device.map]
        if not named:
            return o
        self.subject = replace(self.subject, map=named[0])
        return replace(o, map=named[0])

    def marks(self, bus: Bus) -> Iterator[Mark]:
        """The registers by which the map recognises its device."""
        map = self.subject.map
        for match in map.identity.match if map else ():
            register = Register(quantity="model", type=match.type, address=match.address, words=match.words)
            function, order = match.function or self._map.function, match.order or self._map.order
            try:
                words = bus.read(self.subject.unit, function, match.address, width(register), self.patient)
            except BusRefused:
                yield Mark(match.address, None, match.values)
                continue
            except BusError:
                continue  # a noisy line proves nothing about the kind of device
            seen = value(register, order, words)
            told = None if isinstance(seen, Absent) else seen if isinstance(seen, str) else int(seen)
            yield Mark(match.address, told, match.values)

    def content(self, o: Observations, bus: Bus, line: Line) -> Observations:
        """All that is polled, under every byte order; what is refused is narrowed down for a while."""
        learned, refused, read = Learned(), list[str](), list[tuple[Block, tuple[int, ...]]]()
        waiting = list(self.blocks(line))
        planned, tries, lost = len(waiting), 0, list[Block]()
        while waiting and not self.busy:
            self.overheard(line, bus.counters.frames)
            bus.counters.frames.clear()
            block = waiting.pop(0)
            try:
                words = bus.read(self.subject.unit, block.function, block.address, block.count, self.patient)
                read.append((block, words))
            except BusRefused as error:
                tries += 1
                smaller = after_refusal(self._map, block, error.code, learned)
                if smaller == learned or smaller.max_words == learned.max_words or tries > REFUSALS:
                    refused.append(f"{block}: exception {error.code}")
                    continue
                learned = smaller
                waiting += [one for one in self.blocks(line, learned) if _within(one, block)]
            except BusError:
                lost.append(block)
        self.usable = [*(block for block, _ in read), *lost]
        orders: tuple[Order, ...] = get_args(Order)
        return replace(
            o,
            blocks=max(planned, len(refused) + len(read)),
            refused=tuple(refused),
            contents={order: self.values(order, read) for order in orders} if read else {},
        )

    def values(self, order: Order, read: Sequence[tuple[Block, tuple[int, ...]]]) -> Content:
        map = replace(self._map, order=order)
        factors = {name: Decimal(str(number)) for name, number in self.subject.factors}
        values: dict[str, int | float | str] = {}
        absent: dict[str, str] = {}
        for block, words in read:
            told, why = decoded(block, words, map, factors)
            values.update(told)
            absent.update(why)
            factors = {name: Decimal(str(one)) for name, one in told.items() if not isinstance(one, str)} | factors
        return Content(values, absent)

    def series(self, bus: Bus, line: Line) -> Iterator[Try]:
        """Many questions, until it is clear whether the line loses more of them than a healthy one."""
        shapes = self.shapes(line)
        tries: list[Try] = []
        wait = _patience(self.subject.timing)
        for number in range(MOST_READS):
            self.told("series", min(1.0, number / READS))
            tries.append(self.ask(bus, line, self.subject.unit, shapes[number % len(shapes)], wait))
            yield tries[-1]
            least = READS // 2 if max(self.answered_after, default=0.0) > SLOW else READS
            if len(tries) >= least and (all(one.outcome in ALIVE for one in tries) or noisy(tries) is not None):
                return
            if self.busy:
                return  # whoever else asks here explains what is lost
            if len(tries) == 4:
                slowest = max((one.after for one in tries if one.after is not None), default=wait)
                wait = min(wait, max(1.25 * self.subject.timing.timeout, 3 * slowest))

    # -- one question ---------------------------------------------------------------------------------------------

    def ask(self, bus: Bus, line: Line, unit: int, block: Block, wait: float) -> Try:
        """One question without repeats; what was heard beside its answer is looked through for other masters."""
        timing = replace(self.subject.timing, timeout=wait, retries=0)
        asked, echoed = bus.counters.requests, bus.counters.echoed
        frames = bus.counters.frames
        self.overheard(line, frames)
        frames.clear()
        outcome: Outcome
        why: Why = ""
        code, said = 0, ""
        try:
            bus.read(unit, block.function, block.address, block.count, timing)
            outcome = "answered"
        except BusRefused as error:
            outcome, code = ("nobody" if error.code in NOBODY_BEHIND else "refused"), error.code
            said = error.message
        except BusTimeout as error:
            outcome, said = "silent", error.message
        except BusGarbled as error:
            outcome, said = ("echoed" if bus.counters.echoed > echoed else "garbled"), error.message
            self.echoing |= outcome == "echoed"
        except BusUnreachable as error:
            number = getattr(error.__cause__, "errno", None) or 0
            reset = bus.counters.requests > asked or number in (errno.ECONNRESET, errno.EPIPE)
            outcome, said, why = ("closed" if reset else "unreachable"), error.message, WHY.get(number, "")
        sent = next((frame for frame in frames if frame.sent), None)
        after = None
        if sent is not None and outcome in ALIVE:
            after = _answer_time(frames, sent, line)
            self.answered_after += [after] if after is not None else []
        self.overheard(line, frames)
        frames.clear()
        return Try(unit, block.count, outcome, after, code, said, why)

    def overheard(self, line: Line, frames: Iterable[Frame]) -> None:
        """Questions that are not ours, among what was said since they were last looked through."""
        if line.way == "tcp":
            return
        frames = list(frames)
        if len(frames) >= FRAMES:  # the older ones are lost, and what comes first may be the echo of one of them
            frames = frames[next((n for n, frame in enumerate(frames) if frame.sent), len(frames)) :]
        ours = [frame.data for frame in frames if frame.sent]
        self.echoing |= line.echo
        self.foreign += [
            one for said in _said(frames) for one in requests_in(said) if one not in ours and not self.is_own(one)
        ]
        self.sent += ours

    def is_own(self, heard: bytes) -> bool:
        """Whether this is a question of ours that came back. A copy of the last one proves nobody else on any line."""
        return heard in (self.sent if self.echoing else self.sent[-1:])

    # -- what is asked --------------------------------------------------------------------------------------------

    @property
    def _map(self) -> MeterMap:
        assert self.subject.map is not None  # whoever comes here has one
        return self.subject.map

    @property
    def patient(self) -> Timing:
        return replace(self.subject.timing, timeout=_patience(self.subject.timing), retries=3)

    @property
    def quick(self) -> float:
        return min(max(QUICK, self.subject.map.timing.turnaround * 3 if self.subject.map else 0), 2.0)

    def blocks(self, line: Line, learned: Learned | None = None) -> tuple[Block, ...]:
        learned = learned or Learned()
        return plan(
            self._map,
            None,
            line_cost(line, self.subject.timing),
            max_words=learned.max_words,
            refused=learned.refused,
            production=self.subject.production,
        )

    def shapes(self, line: Line) -> tuple[Block, ...]:
        """Questions of different lengths; without a map one that any device answers or refuses."""
        if self.subject.map is None:
            return (
                *(Block("input", 0, count, ()) for count in (2, 4)),
                *(Block("holding", 0, count, ()) for count in (2, 6)),
            )
        found: dict[int, Block] = {}
        for block in self.usable or self.blocks(line):
            for part in parts(block):
                found.setdefault(part.count, part)
        return tuple(found[count] for count in sorted(found))


def _within(inner: Block, outer: Block) -> bool:
    return (
        inner.function == outer.function
        and outer.address <= inner.address
        and inner.address + inner.count <= outer.address + outer.count
    )


def _patience(timing: Timing) -> float:
    return min(MOST_PATIENCE, max(PATIENCE * timing.timeout, LEAST_PATIENCE))


def _units_elsewhere(subject: Subject) -> tuple[int, ...]:
    """With other settings only the likely units are asked: there are many settings."""
    likely = dict.fromkeys((subject.unit, subject.map.unit if subject.map else 1, 1))
    return tuple(unit for unit in likely if unit not in subject.neighbours)


def _said(frames: Iterable[Frame]) -> list[bytes]:
    """What was heard, put together again where it came in pieces."""
    found: list[bytes] = []
    last: Frame | None = None
    for frame in frames:
        if frame.sent:
            last = None
            continue
        if last is not None and frame.at - last.at < GAP + 0.002 * len(frame.data):
            found[-1] += frame.data
        else:
            found.append(frame.data)
        last = frame
    return found


def _answer_time(frames: Iterable[Frame], sent: Frame, line: Line) -> float | None:
    """From the end of the request to the first byte of its answer; an announced echo is passed over."""
    passed = REQUEST_BYTES if line.echo else 0
    seen = False
    for frame in frames:
        if frame is sent:
            seen = True
        elif seen and not frame.sent:
            if passed >= len(frame.data):
                passed -= len(frame.data)
                continue
            own = (len(frame.data) - passed) * line.character
            return max(0.0, frame.at - sent.at - REQUEST_BYTES * line.character - own)
    return None

"""Looks for meters: every unit id and the usual serial settings of a line, or an address range of hosts. Reads only.

The order is that of likelihood, so that a common site is found in seconds: the usual unit ids at each setting first,
then, at the first setting that has answered, all the others. A silent unit costs two short time-outs, for the bus
listens on for another one before it asks again (bus/modbus.py); what comes in that time shows that a unit is there,
but slow, and it gets a second, patient look. So do the usual units where nobody has answered at all.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from heliograph.core.errors import BusGarbled, BusUnreachable, UsageError
from heliograph.core.line import Line, Parity
from heliograph.core.registers import MeterMap, Timing
from heliograph.ports import Bus
from heliograph.work.identify import ALIVE, ALIVE_TOO, MORE_TRIES, QUICK, Question, Sighting, alive, identify

USUAL_UNITS = (1, 2, 3, 4, 5, 10, 71, 100, 126, 200, 240, 247)
"""Where devices leave the factory and where installers put them: meters count from 1, GoodWe and FoxESS are 247, Kostal
71, SMA 3 and 126, meters behind a Fronius 200 and 240."""
ALL_UNITS = tuple(range(1, 248))
PATIENT_UNITS = 4
"""The first so many usual units get a patient look where nobody answered."""
PATIENT_HOST_UNITS = 2
"""So many of a host get a patient look where none has answered."""
USUAL_PORTS = (502, 1502, 6607, 5020)
"""Modbus; SolarEdge and Kostal; Huawei; what runs without root, as our own simulator."""
MOST_HOSTS = 1024
AT_ONCE = 16
"""Hosts that are looked at at the same time, with one connection each."""
KNOCK = 0.7
"""Seconds for a host of a range to take a connection."""

QUICK_NETWORK = Timing(pause=0.02, timeout=0.6, retries=0)
PATIENT = Timing(pause=0.3, timeout=1.0, retries=0)
PATIENT_NETWORK = Timing(pause=0.3, after_connect=1.5, timeout=3.0, retries=0)
"""A Huawei wants a second of peace after the connection, and takes its time."""
OVERHEAD = 0.03
"""Seconds of a request beside its time-outs."""

SAME, SAME_WITHOUT_SERIAL = 3, 8
"""Unit ids at which a device answers alike before it is taken for one."""
LOST = 3
"""Settings in a row at which the port cannot be used: then the adapter is gone."""
NOISE = 3
"""Units in a row that are answered by garbage: then another speed is spoken here."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a serial port is set; 8 data bits always."""

    baudrate: int
    parity: Parity = "N"
    stopbits: int = 1

    def __str__(self) -> str:
        return f"{self.baudrate} 8{self.parity}{self.stopbits}"


USUAL_SETTINGS = (
    Setting(9600), Setting(19200), Setting(19200, "E"), Setting(9600, "E"), Setting(2400), Setting(4800),
    Setting(38400), Setting(57600), Setting(115200), Setting(38400, "E"), Setting(2400, "E"), Setting(9600, "O"),
    Setting(19200, "O"),
)  # fmt: skip
"""The most usual first. A second stop bit is no setting of its own: who sends one is understood with one."""


@dataclass(frozen=True, slots=True)
class Found:
    """A unit of which something was heard, and the bus' url to hear it again."""

    url: str
    sighting: Sighting
    also: str = ""
    """Where the same device answers as well."""


class Watcher(Protocol):
    """Whoever looks on: a progress bar, a test. Calls may come from several threads, one at a time."""

    def begin(self, what: str, steps: int) -> None: ...

    def step(self) -> None: ...

    def saw(self, found: Found) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Scan:
    """What has been found so far; whole at every moment, so that a scan may be interrupted."""

    maps: Sequence[MeterMap]
    connect: Callable[[str], Bus]
    watcher: Watcher
    units: tuple[int, ...] = ALL_UNITS
    timeout: float | None = None
    """Of the first look; longer finds slower devices and takes longer."""
    found: list[Found] = field(default_factory=list)
    garbled: list[Found] = field(default_factory=list)
    """Units that answer with what is no answer: two devices of one id, noise, another speed."""
    notes: list[str] = field(default_factory=list)
    requests: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, text: str) -> None:
        with self._lock:
            if text not in self.notes:
                self.notes.append(text)
                self.watcher.note(text)

    def saw(self, found: Found) -> None:
        with self._lock:
            (self.found if found.sighting.here else self.garbled).append(found)
            self.watcher.saw(found)

    def drop(self, sightings: Sequence[Sighting]) -> None:
        """What turned out to be another view of something else."""
        with self._lock:
            self.found = [one for one in self.found if one.sighting not in sightings]

    def step(self) -> None:
        with self._lock:
            self.watcher.step()

    def counted(self, bus: Bus) -> None:
        with self._lock:
            self.requests += bus.counters.requests


def quick_look(line: Line, timeout: float | None) -> Timing:
    """How a unit is asked at first."""
    usual = QUICK if line.way == "serial" else QUICK_NETWORK
    return usual if timeout is None else replace(usual, timeout=timeout)


def patient_look(usual: Timing, quick: Timing) -> Timing:
    """How it is asked again: up to five times as patiently."""
    timeout = min(5 * quick.timeout, max(usual.timeout, 2 * quick.timeout))
    return replace(usual, timeout=timeout, after_connect=min(usual.after_connect, timeout / 2))


def seconds_of_line(settings: int, units: Sequence[int], quick: Timing) -> tuple[float, float, float]:
    """Longest time until the usual units, until all units at one setting, and until everything is looked at."""
    usual = len([unit for unit in USUAL_UNITS if unit in units])
    silent = 2 * quick.timeout + OVERHEAD
    patient = min(usual, PATIENT_UNITS) * (2 * patient_look(PATIENT, quick).timeout + OVERHEAD)
    first = settings * usual * silent
    return first, first + (len(units) - usual) * silent + patient, settings * (len(units) * silent + patient)


# -- a line -------------------------------------------------------------------------------------------------------


def scan_line(scan: Scan, line: Line, settings: Sequence[Setting], *, all_settings: bool = False) -> None:
    """All of `scan.units` of a line. `settings` are tried in this order, a network line has the one it has.

    Raises BusUnreachable when the line cannot be opened.
    """
    _LineScan(scan, line, tuple(settings) if line.way == "serial" else (), all_settings).run()


@dataclass
class _Look:
    """What one setting has shown so far."""

    setting: Setting | None
    asked: set[int] = field(default_factory=set)
    here: list[Sighting] = field(default_factory=list)
    doubtful: dict[int, Sighting] = field(default_factory=dict)
    """Garbage came, or something came late."""
    over: str = ""
    """Why nothing more is asked at this setting."""


class _LineScan:
    def __init__(self, scan: Scan, line: Line, settings: tuple[Setting, ...], all_settings: bool) -> None:
        self.scan, self.line, self.all_settings = scan, line, all_settings
        self.looks = [_Look(setting) for setting in settings or (None,)]
        self.quick = quick_look(line, scan.timeout)
        self.patient = patient_look(PATIENT, self.quick)
        self.usual = [unit for unit in USUAL_UNITS if unit in scan.units]
        self.rest = [unit for unit in scan.units if unit not in self.usual]
        self.opened, self.lost = False, 0

    def run(self) -> None:
        rounds = (
            ("the usual units", ALIVE, self.quick, self.usual, False),
            ("the usual units, patiently", ALIVE_TOO, self.patient, self.usual[:PATIENT_UNITS], True),
            ("all other units", ALIVE, self.quick, self.rest, False),
        )
        for what, question, timing, units, again in rounds:
            open_looks = [look for look in self.looks if not look.here and not look.over]
            if not units or not open_looks or (self._done() and not self.all_settings):
                continue
            self.scan.watcher.begin(what, len(units) * len(open_looks))
            for look in open_looks:
                self._look(look, question, timing, [unit for unit in units if unit not in look.doubtful], again)
                if look.doubtful and not look.here and not look.over:
                    self._look(look, ALIVE_TOO, self.patient, list(look.doubtful), True)
                if look.here:
                    self._complete(look)
                    if not self.all_settings:
                        return
        self._tell_doubtful()

    def _done(self) -> bool:
        return any(look.here for look in self.looks)

    def _look(self, look: _Look, question: Question, timing: Timing, units: Sequence[int], again: bool) -> None:
        """One look at some units at one setting."""
        bus = self.scan.connect(self._url(look.setting))
        row = 0
        silent: Sighting | None = None  # of the unit before, whose answer may still come
        try:
            for unit in units:
                if self.scan.stopping.is_set() or look.over:
                    return
                if again or unit not in look.asked:
                    drained = bus.counters.drained_bytes
                    seen = alive(bus, unit, timing, question)
                    if bus.counters.echoed and not self.line.echo:
                        bus = self._expecting_an_echo(bus, look)
                        seen = alive(bus, unit, timing, question)
                    for _ in range(MORE_TRIES if again else 0):
                        if seen.answer == "garbled":  # it does answer, so no patience is needed
                            seen = alive(bus, unit, self.quick, question)
                    if silent is not None and (seen.answer == "garbled" or bus.counters.drained_bytes > drained):
                        look.doubtful.setdefault(silent.unit, silent)
                    silent = seen if seen.answer == "silence" else None
                    row = row + 1 if seen.answer == "garbled" else 0
                    self._judge(bus, look, seen, timing, again)
                    self.opened, self.lost = True, 0
                self.scan.step()
                if row >= NOISE and not look.here:
                    look.over = "everything is answered by noise here; another speed or parity is spoken"
            if silent is not None and not again and not bus.numbered and bus.hear(2 * timing.timeout):
                look.doubtful.setdefault(silent.unit, silent)  # of the last unit nobody would hear otherwise
        except BusUnreachable as error:
            self.lost += 1
            if not self.opened or self.lost >= LOST:
                raise
            look.over = error.message  # the adapter may not know this speed
        finally:
            bus.close()
            self.scan.counted(bus)

    def _judge(self, bus: Bus, look: _Look, seen: Sighting, timing: Timing, again: bool) -> None:
        look.asked.add(seen.unit)
        if seen.answer == "garbled":
            look.doubtful[seen.unit] = seen
        elif again or seen.here:
            look.doubtful.pop(seen.unit, None)  # it is here, or what disturbed it was another's answer
        if seen.here:
            found = identify(bus, seen.unit, self.scan.maps, timing, first=seen)
            look.here.append(found)
            self.scan.saw(Found(self._url(look.setting), found))

    def _expecting_an_echo(self, bus: Bus, look: _Look) -> Bus:
        bus.close()
        self.scan.counted(bus)
        self.line = replace(self.line, echo=True)
        self.scan.note(
            f"{self.line}: the adapter hears itself. The url says so with echo=1; or switch its local echo off"
        )
        return self.scan.connect(self._url(look.setting))

    def _complete(self, look: _Look) -> None:
        """Everything else at a setting that has answered, and a patient second look where it is in doubt."""
        left = [unit for unit in self.scan.units if unit not in look.asked]
        if left and not self._same_everywhere(look):
            where = f" at {look.setting}" if look.setting else ""
            self.scan.watcher.begin(f"all other units{where}", len(left))
            self._look(look, ALIVE, self.quick, left, False)
        here = {seen.unit for seen in look.here}
        again = [unit for unit in self.usual[:PATIENT_UNITS] if unit not in here]
        again = list(dict.fromkeys([*look.doubtful, *again]))
        if again:
            self.scan.watcher.begin("a second look at silent and doubtful units", len(again))
            self._look(look, ALIVE_TOO, self.patient, again, True)
        self._tell_doubtful()

    def _same_everywhere(self, look: _Look) -> bool:
        if self.line.way != "tcp" or not one_device(look.here, len(look.asked)):
            return False
        first, *others = look.here
        self.scan.note(f"{self.line}: one device answers to every unit id that was tried; unit {first.unit} will do")
        self.scan.drop(others)
        return True

    def _tell_doubtful(self) -> None:
        here = self._done()
        for look in self.looks:
            if look.over:
                self.scan.note(f"{look.setting or self.line}: {look.over}")
            if bool(look.here) == here and not look.over:
                for seen in look.doubtful.values():
                    if seen.answer == "garbled":
                        self.scan.saw(Found(self._url(look.setting), seen))
            look.doubtful.clear()

    def _url(self, setting: Setting | None) -> str:
        return url_of(self.line, setting)


def one_device(seen: Sequence[Sighting], asked: int) -> bool:
    """Whether one device answers to all unit ids that were asked, as many do over TCP.

    Without a serial number it takes more ids to tell it from several meters of a kind behind a gateway.
    """
    if len(seen) < asked or len({_identity(one) for one in seen}) != 1:
        return False
    return len(seen) >= (SAME if seen[0].serial else SAME_WITHOUT_SERIAL)


def _identity(seen: Sighting) -> tuple[str, frozenset[str], str]:
    """What two views of one device share. Makers count from the same number, so a serial alone tells no device."""
    return seen.serial, frozenset(fit.map.name for fit in seen.candidates), str(seen.sunspec or "")


def url_of(line: Line, setting: Setting | None) -> str:
    """As it stands in a configuration."""
    if line.way != "serial" or setting is None:
        host = f"[{line.at}]" if ":" in line.at else line.at
        return f"{line.way}://{host}:{line.port}" + ("?echo=1" if line.echo else "")
    echo = "&echo=1" if line.echo else ""
    return f"serial://{line.at}?baudrate={setting.baudrate}&parity={setting.parity}&stopbits={setting.stopbits}{echo}"


# -- hosts --------------------------------------------------------------------------------------------------------


def hosts(text: str) -> list[str]:
    """192.168.1.10-60, 192.168.1.0/26, 192.168.1.50 or a name, as single hosts. Raises UsageError."""
    hint = "Write 192.168.1.10-60, 192.168.1.0/26, 192.168.1.50 or a host's name"
    if "/" in text:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise UsageError(f"{text} is no range of addresses: {error}", hint=hint) from error
        if network.num_addresses > MOST_HOSTS + 2:
            raise UsageError(
                f"{text} has {network.num_addresses} addresses", hint=f"At most {MOST_HOSTS} at a time: /22 and longer"
            )
        return [str(address) for address in network.hosts()]
    first, dash, last = text.partition("-")
    try:
        begin = ipaddress.ip_address(first)
    except ValueError:
        if not text or text[0].isdigit() or any(char in text for char in " ,_*:"):
            raise UsageError(f"{text} is no host and no range of addresses", hint=hint) from None
        return [text]  # a name, whose dashes are its own
    if not dash:
        return [text]
    try:
        end = ipaddress.ip_address(f"{first.rpartition('.')[0]}.{last}" if last.isdecimal() else last)
    except ValueError as error:
        raise UsageError(f"{text}: {last or 'nothing'} is no end of a range", hint=hint) from error
    if begin.version != end.version or int(end) < int(begin):
        raise UsageError(f"{text} runs backwards, from {begin} to {end}", hint=hint)
    if int(end) - int(begin) >= MOST_HOSTS:
        raise UsageError(f"{text} has {int(end) - int(begin) + 1} addresses", hint=f"At most {MOST_HOSTS} at a time")
    return [str(begin + step) for step in range(int(end) - int(begin) + 1)]


def seconds_of_hosts(count: int, ports: int) -> float:
    """Longest time when no host is there at all."""
    return -(-count // AT_ONCE) * ports * KNOCK


def scan_hosts(scan: Scan, names: Sequence[str], ports: Sequence[int], *, tell_absent: bool = False) -> None:
    """`scan.units` of all these hosts: several hosts at once, each over one connection at a time, closed at once.

    `tell_absent`: also what kept a host from being reached is noted. Raises BusUnreachable where a name is unknown.
    """
    scan.watcher.begin("hosts", len(names) * len(ports))
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="scan") as pool:
        try:
            for done in [pool.submit(_host, scan, name, ports, tell_absent) for name in names]:
                done.result()
        except BaseException:  # Ctrl-C too: no host is asked anything more, what was found stays found
            scan.stopping.set()
            pool.shutdown(cancel_futures=True)
            raise


def _host(scan: Scan, name: str, ports: Sequence[int], tell_absent: bool) -> None:
    known: dict[object, str] = {}
    for port in ports:
        if not scan.stopping.is_set():
            for found in _answering(scan, Line("tcp", name, port=port), tell_absent):
                first = known.setdefault(_identity(found.sighting), found.url) if found.sighting.serial else found.url
                scan.saw(found if first == found.url else replace(found, also=first))
        scan.step()


def _answering(scan: Scan, line: Line, tell_absent: bool) -> list[Found]:
    """The units that answer at one port; nothing where nobody takes the connection."""
    bus = scan.connect(url_of(line, None))
    quick = quick_look(line, scan.timeout)
    found: list[Found] = []
    try:
        for timing, question, units in (
            (quick, ALIVE, scan.units),
            (patient_look(PATIENT_NETWORK, quick), ALIVE_TOO, scan.units[:PATIENT_HOST_UNITS]),
        ):
            _units(scan, bus, line, units, timing, question, found)
            if one_device([one.sighting for one in found], len(units)):
                scan.note(f"{line}: one device answers to every unit id; unit {found[0].sighting.unit} will do")
                return found[:1]
            if found or scan.stopping.is_set():
                return found
        tried = ", ".join(str(unit) for unit in scan.units)
        scan.note(
            f"{line} takes connections, but no unit of {tried} answers Modbus there."
            f" If it is a serial converter: heliograph scan rtu+tcp://{line}"
        )
    except BusUnreachable as error:
        if isinstance(error.__cause__, socket.gaierror | UnicodeError):
            raise  # at the other ports it is as unknown
        if bus.counters.requests:
            scan.note(f"{line} took the connection and ended it: {error.message}. {error.hint}")
        elif tell_absent:
            scan.note(f"{error.message}. {error.hint}")
    except BusGarbled as error:
        scan.note(f"{error.message}. {error.hint}")
    finally:
        bus.close()
        scan.counted(bus)
    return found


def _units(
    scan: Scan, bus: Bus, line: Line, units: Sequence[int], timing: Timing, question: Question, found: list[Found]
) -> None:
    """Raises BusGarbled where something else than Modbus TCP is spoken."""
    for unit in units:
        if scan.stopping.is_set():
            return
        seen = alive(bus, unit, timing, question)
        if seen.answer == "garbled" and not found:
            raise BusGarbled(f"{line}: {seen.told}", hint=seen.hint)
        if seen.here:
            sighting = identify(bus, unit, scan.maps, replace(timing, after_connect=0.0), first=seen)
            if _again(found, sighting):
                first = found[0].sighting.unit
                scan.note(f"{line}: one device answers to several unit ids; unit {first} will do")
                return
            found.append(Found(url_of(line, None), sighting))


def _again(found: Sequence[Found], sighting: Sighting) -> bool:
    """Whether this is the device of another unit id once more: many over TCP do not look at the id."""
    return bool(sighting.serial) and any(_identity(one.sighting) == _identity(sighting) for one in found)

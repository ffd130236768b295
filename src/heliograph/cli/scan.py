"""heliograph scan: which meters are on a line or behind some hosts, as configuration to paste."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph import library
from heliograph.cli.options import app_of, config_option, json_option, print_json
from heliograph.cli.snippet import bus_text, meter_text
from heliograph.core import line as lines
from heliograph.core.durations import duration
from heliograph.core.errors import BusUnreachable, ConfigError, UsageError
from heliograph.work import scan as work
from heliograph.work.diagnose import Machine, look
from heliograph.work.identify import Fit, Sighting, SunSpec

if TYPE_CHECKING:
    from heliograph.core.registers import MeterMap

HELP = """Look for meters: on a line (/dev/ttyUSB0, the url or the id of a bus), or among hosts (192.168.1.10-60,
192.168.1.0/26, 192.168.1.50, 192.168.1.50:1502). Only asks, never writes.

On a serial line the usual unit ids are tried at the usual settings first, 9600 8N1 before all others; at the first
setting that answers, all other unit ids follow. A device is named by its identity registers alone: where those do
not tell its kind, you are told which maps may fit, and choose by its label.

While the gateway runs, its serial lines are taken, and devices that serve one client serve only the gateway: stop it
first (systemctl stop heliograph).

What goes to stdout is configuration: paste it below [site], and fill in where an arrow points. Ctrl-C ends the scan
and prints what was found so far.

\b
  heliograph scan /dev/ttyUSB0
  heliograph scan /dev/ttyUSB0 --units 1-20 --baud 9600,19200
  heliograph scan 192.168.1.0/26 >> config.toml

A silent unit costs two time-outs: at the usual 200ms, all 247 at one setting take 1 min 46 s. A device that needs
longer is found by what comes late, and asked again patiently. --timeout 1s gives every unit a second: 8 min 20 s.
"""

UNITS_OF_HOSTS = (1, 2, 3, 71, 100, 126, 200, 240, 247, 255)
"""Most devices on a network answer at their factory id, or at any."""
FEW = 4
"""Hosts; of so few each is told why it did not answer."""


@click.command("scan", help=HELP)
@click.argument("where", nargs=-1, metavar="WHERE...")
@click.option("--units", metavar="LIST", help="Unit ids, as 1-20,100.  [default: 1-247; hosts: the usual ones]")
@click.option("--baud", metavar="LIST", help="Speeds, as 9600,19200.  [default: the usual ones]")
@click.option("--parity", metavar="LIST", help="As N,E,O.  [default: the usual ones]")
@click.option("--ports", metavar="LIST", help="TCP ports of hosts.  [default: 502,1502,6607,5020]")
@click.option("--timeout", metavar="DURATION", help="For the first look.  [default: 200ms; network: 600ms]")
@click.option("--all-settings", is_flag=True, help="Go on with other settings when one has answered.")
@config_option
@json_option
def command(
    where: tuple[str, ...],
    units: str | None,
    baud: str | None,
    parity: str | None,
    ports: str | None,
    timeout: str | None,
    all_settings: bool,
    config: Path | None,
    as_json: bool,
) -> int:
    from heliograph.app import line_at

    places = [_place(text, config) for text in where] or _nowhere()
    for place in places:
        _must_be_a_port(place.line)
    settings = _settings(baud, parity)
    patience = None if timeout is None else _seconds(timeout)
    asked = None if units is None else _numbers("--units", units, 0, 255)
    doors = work.USUAL_PORTS if ports is None else _numbers("--ports", ports, 1, 65535)
    maps = _maps()
    found: list[_Result] = []
    failed: list[_Place] = []
    interrupted = False
    with _watched() as watcher:
        try:
            for place in places:
                connect = partial(line_at, connect=work.KNOCK) if place.hosts else line_at
                scan = work.Scan(maps, connect, watcher, timeout=patience)
                found.append(_Result(place, scan))
                try:
                    if place.line is not None:
                        scan.units = asked or work.ALL_UNITS
                        _line(scan, place, settings, explicit=bool(baud or parity), all_settings=all_settings)
                    else:
                        scan.units = asked or UNITS_OF_HOSTS
                        _hosts(scan, place, doors)
                except BusUnreachable as error:
                    if len(places) == 1:
                        raise
                    scan.note(f"{error.message}. {error.hint}")
                    failed.append(place)
        except KeyboardInterrupt:
            interrupted = True
    return _told(found, failed, as_json, interrupted)


@dataclass(frozen=True)
class _Place:
    text: str
    line: lines.Line | None = None
    """Whose speed is only meant where `fixed` says so."""
    fixed: bool = False
    bus: str = ""
    """Its id in the configuration."""
    known: Mapping[int, str] = field(default_factory=dict)
    """The meters that the configuration has there, by unit id."""
    hosts: tuple[str, ...] = ()
    port: int | None = None


@dataclass(frozen=True)
class _Result:
    place: _Place
    scan: work.Scan


# -- what is given --------------------------------------------------------------------------------------------------


def _place(text: str, config: Path | None) -> _Place:
    if "://" in text:
        try:
            return _Place(text, lines.parse(text), fixed="baudrate=" in text or "parity=" in text)
        except ConfigError as error:
            raise UsageError(error.message, hint=error.hint) from error
    device = Path("/dev") / text
    if text.startswith("/") or (re.fullmatch(r"tty\w+", text) and device.exists()):
        return _Place(text, lines.Line("serial", text if text.startswith("/") else str(device)))
    if not re.search(r"[.:]", text):
        return _bus(text, config)
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and ":" not in host:
        if not 0 < int(port) <= 65535:
            raise UsageError(f"{text}: there is no port {port}", hint="Ports run from 1 to 65535")
        return _Place(text, hosts=tuple(work.hosts(host)), port=int(port))
    return _Place(text, hosts=tuple(work.hosts(text)))


def _bus(id: str, config: Path | None) -> _Place:
    otherwise = "Or name a port (/dev/ttyUSB0), a url (tcp://192.168.1.50:502) or hosts (192.168.1.10-60)"
    try:
        app = app_of(config)
    except ConfigError as error:
        raise ConfigError(f"{id} can only be a bus of the configuration: {error.message}", hint=otherwise) from error
    buses = {bus.id: bus.url for bus in app.config.settings.bus}
    if id not in buses:
        raise UsageError(f"there is no bus {id}", hint=library.nearest_name(id, buses, otherwise))
    known = {meter.unit: meter.id for meter in app.meters if meter.bus == id}
    return _Place(id, lines.parse(buses[id]), fixed=True, bus=id, known=known)


MEMORY = 1
"""The major number of /dev/null, /dev/zero and their like (the kernel's devices.txt)."""


def _must_be_a_port(line: lines.Line | None) -> None:
    """Nothing is opened. What is not there may be plugged in yet, so that is the wire's to tell."""
    if line is None or line.way != "serial":
        return
    try:
        found = Path(line.at).stat()
    except OSError:
        return
    if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) != MEMORY:
        return
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a file" if stat.S_ISREG(found.st_mode) else "something else"
    raise UsageError(f"{line.at} is no serial port, but {kind}", hint=_ports_here())


def _ports_here() -> str:
    ports = sorted(str(path) for path in Path("/dev/serial/by-id").glob("*"))
    ports = ports or sorted(str(path) for pattern in ("ttyUSB*", "ttyACM*") for path in Path("/dev").glob(pattern))
    return (
        f"Serial ports here: {', '.join(ports)}" if ports else "No USB serial port is there; is the adapter plugged in?"
    )


def _nowhere() -> list[_Place]:
    """Names what could be meant: nobody remembers the name of a port on a roof."""
    where = "where shall be looked? heliograph scan /dev/ttyUSB0, or 192.168.1.10-60"
    raise UsageError(where, hint=_ports_here())


def _numbers(option: str, text: str, low: int, high: int) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{option} {text}: {part!r} is no number and no range", hint="Write it like 1-20,100")
        begin, end = int(first), int(last or first)
        if not low <= begin <= end <= high:
            raise UsageError(f"{option} {text}: {part} is not within {low} to {high}", hint="Write it like 1-20,100")
        found += range(begin, end + 1)
    return tuple(dict.fromkeys(found))


def _settings(baud: str | None, parity: str | None) -> tuple[work.Setting, ...]:
    """The usual ones, as far as they are wanted; what is wanted beside them comes last."""
    speeds = None if baud is None else _numbers("--baud", baud, 300, 1_000_000)
    kinds: list[lines.Parity] = []
    for letter in (parity or "N,E").upper().replace(",", ""):
        match letter:
            case "N" | "E" | "O":
                kinds.append(letter)
            case _:
                raise UsageError(f"--parity {parity}: {letter} is no parity", hint="Write N, E or O, or N,E")
    usual = work.USUAL_SETTINGS
    wanted = [
        one for one in usual if (speeds is None or one.baudrate in speeds) and (parity is None or one.parity in kinds)
    ]
    every = speeds or tuple(dict.fromkeys(one.baudrate for one in usual))
    if speeds is not None or parity is not None:
        wanted += [work.Setting(speed, kind) for kind in kinds for speed in every]
    return tuple(dict.fromkeys(wanted))


def _seconds(text: str) -> float:
    try:
        seconds = duration(text).total_seconds()
    except ValueError as error:
        raise UsageError(f"--timeout {text}: {error}", hint='Write a number with its unit, such as "500ms"') from error
    if not 0.02 <= seconds <= 30:
        raise UsageError(f"--timeout {text} is not within 20ms to 30s", hint="Devices answer after 10ms to 5s")
    return seconds


def _maps() -> list[MeterMap]:
    """All maps that can be used; one that is broken stops no scan."""
    found: list[MeterMap] = []
    for name in library.names():
        try:
            found.append(library.load(name).map)
        except ConfigError as error:
            click.echo(f"The map {name} is left out: {error}", err=True)
    return found


# -- looking --------------------------------------------------------------------------------------------------------


def _line(
    scan: work.Scan, place: _Place, settings: tuple[work.Setting, ...], *, explicit: bool, all_settings: bool
) -> None:
    assert place.line is not None
    line = _steady(place.line)
    if place.fixed and not explicit:
        first = work.Setting(line.baudrate, line.parity, line.stopbits)
        settings = (first, *(one for one in settings if (one.baudrate, one.parity) != (first.baudrate, first.parity)))
    quick = work.quick_look(line, scan.timeout)
    ways = len(settings) if line.way == "serial" else 1
    first_s, one_s, all_s = work.seconds_of_line(ways, scan.units, quick)
    if ways > 1:
        click.echo(
            f"{line}: first the usual unit ids at {ways} settings ({in_words(first_s)} at most), then all"
            f" {len(scan.units)} at the one that answers ({in_words(one_s - first_s)}). If nobody does, all of them at"
            f" all settings: {in_words(all_s)}. Ctrl-C prints what was found so far.",
            err=True,
        )
    else:
        click.echo(f"{line}: {len(scan.units)} unit ids take at most {in_words(all_s)}.", err=True)
    try:
        work.scan_line(scan, line, settings, all_settings=all_settings)
    except BusUnreachable as error:
        if scan.found:
            scan.note(f"{error.message}. {error.hint}")
            return
        busy = "program has the port" in error.hint
        hint = f"{_holders(line)}; the gateway ends with: systemctl stop heliograph" if busy else error.hint
        raise BusUnreachable(error.message, hint=hint) from error


def _steady(line: lines.Line, machine: Machine | None = None) -> lines.Line:
    """The line under a name that stays when adapters are plugged in another order."""
    port = look(line, machine or Machine()) if line.way == "serial" else None
    if port is None or port.by_id is None:
        return line
    click.echo(f"{line} is {port.by_id}, a name that stays when adapters are plugged in another order.", err=True)
    return replace(line, at=port.by_id)


def _holders(line: lines.Line) -> str:
    found = ", ".join(f"{one.name} (process {one.pid})" for one in look(line, Machine()).holders)
    return f"Stop what has the port open: {found}" if found else "Another program has the port open; stop it"


def _hosts(scan: work.Scan, place: _Place, ports: Sequence[int]) -> None:
    doors = ports if place.port is None else (place.port,)
    count = f"{len(place.hosts)} hosts" if len(place.hosts) > 1 else place.hosts[0]
    seconds = work.seconds_of_hosts(len(place.hosts), len(doors))
    which = f"port{'s' if len(doors) > 1 else ''} {', '.join(str(port) for port in doors)}"
    click.echo(
        f"{count}, {which}: at most {in_words(seconds)} where nobody is, some seconds for each device.", err=True
    )
    work.scan_hosts(scan, place.hosts, doors, tell_absent=len(place.hosts) <= FEW)


def in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


class _Quiet:
    """Where nobody looks on, only what was found is said."""

    def begin(self, what: str, steps: int) -> None: ...

    def step(self) -> None: ...

    def saw(self, found: work.Found) -> None:
        click.echo(_seen(found), err=True)

    def note(self, text: str) -> None:
        click.echo(f"! {text}", err=True)


class _Bar(_Quiet):
    """The same with a bar and the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, what: str, steps: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=steps)

    def step(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)

    def saw(self, found: work.Found) -> None:
        self._console.print(_seen(found))

    def note(self, text: str) -> None:
        self._console.print(f"! {text}")


@contextlib.contextmanager
def _watched() -> Iterator[_Quiet]:
    if not sys.stderr.isatty():
        yield _Quiet()
        return
    with _Bar() as bar:
        yield bar


# -- what is printed ------------------------------------------------------------------------------------------------


def _seen(found: work.Found) -> str:
    also = f"; the same device as at {found.also}" if found.also else ""
    return f"{_short(found.url)}, {found.sighting}{also}"


def _short(url: str) -> str:
    line = lines.parse(url)
    return f"{line} {line.baudrate} 8{line.parity}{line.stopbits}" if line.way == "serial" else str(line)


def _told(results: Sequence[_Result], failed: Sequence[_Place], as_json: bool, interrupted: bool) -> int:
    """`failed`: places of which has been told already why they cannot be looked at."""
    found = [one for result in results for one in result.scan.found]
    garbled = [one for result in results for one in result.scan.garbled]
    text = _configuration(results)
    if as_json:
        print_json(
            {
                "found": [_facts(one) for one in found],
                "garbled": [_facts(one) for one in garbled],
                "notes": [note for result in results for note in result.scan.notes],
                "requests": sum(result.scan.requests for result in results),
                "complete": not interrupted,
                "config": text,
            }
        )
    elif text:
        click.echo(text)
    if interrupted:
        click.echo("Stopped before everything was looked at.", err=True)
    for one in garbled:
        click.echo(
            f"{_short(one.url)}, unit {one.sighting.unit}: bytes came that are no answer. Two devices with this"
            " unit id? Disconnect one of them and scan again. If there is only one: noise, or another speed or parity.",
            err=True,
        )
    empty = [result for result in results if not result.scan.found]
    for result in empty:
        asked = result.scan.requests or result.place.hosts
        if asked and result.place not in failed and not result.scan.garbled and not interrupted:
            click.echo(_nobody(result.place), err=True)
    if found and not as_json:
        devices = [one for one in found if not one.also]
        units = f"{len(devices)} device{'s' if len(devices) > 1 else ''} found"
        unsure = sum(one.sighting.ambiguous for one in devices)
        choose = f", {unsure} to be chosen a map for by the label" if unsure else ""
        if again := len(found) - len(devices):
            places = "1 place is" if again == 1 else f"{again} places are"
            choose += f"; {places} left out, where one of them answers once more"
        click.echo(f"{units}{choose}. Fill in what an arrow points at, then: heliograph check", err=True)
    return 1 if interrupted or garbled or empty else 0


def _nobody(place: _Place) -> str:
    if place.line is None:
        return (
            f"No meter answered at {place.text}. Is this computer in the same network (ip addr)? Is Modbus TCP switched"
            " on in the device, and nobody else connected to it? Some listen at a port of their own: --ports 8899"
        )
    if place.line.way == "serial":
        return (
            f"Nobody answered on {place.line}. In this order: swap A and B at the adapter; is the meter powered, its"
            " display on, and set to Modbus RTU; does the cable end where it should, with 120 ohms at both ends and"
            " nowhere else; is it night, when inverters sleep? Then once more, patiently: --timeout 1s. What the line"
            f" does is told by: heliograph doctor serial://{place.line.at} --unit 1"
        )
    return (
        f"Nobody answered behind {place.line}. Are the serial settings of the converter those of the meter, A and B"
        " the right way round, the meter powered? If the converter hands over plain RTU, write rtu+tcp://, else tcp://"
    )


def _facts(found: work.Found) -> dict[str, Any]:
    seen = found.sighting
    best = seen.best
    return {
        "url": found.url,
        "unit": seen.unit,
        "answer": seen.answer,
        "told": seen.told,
        "map": best.map.name if best else None,
        "status": best.map.status if best else None,
        "serial": seen.serial or None,
        "rated_kw": best.rated_kw if best else None,
        "ambiguous": seen.ambiguous,
        "sunspec": _sunspec(seen.sunspec) if seen.sunspec else None,
        "candidates": [
            {
                "map": fit.map.name,
                "evidence": fit.evidence,
                "because": list(fit.because),
                "serial": fit.serial or None,
                "order": fit.order,
                "check": fit.check or None,
                "sound": fit.sound,
            }
            for fit in seen.fits
        ],
        "same_as": found.also or None,
    }


def _sunspec(found: SunSpec) -> dict[str, Any]:
    return {
        "told": str(found),
        "base": found.chain.base if found.chain else None,
        "models": [model.number for model in found.chain.models] if found.chain else [],
        "maker": found.maker or None,
        "model": found.model or None,
        "templates": list(found.templates),
    }


def _configuration(results: Sequence[_Result]) -> str:
    tables: list[str] = []
    for result in results:
        urls: dict[str, list[work.Found]] = {}
        for one in result.scan.found:
            if not one.also:
                urls.setdefault(one.url, []).append(one)
        for url, here in urls.items():
            number = sum("[[bus]]" in text for text in tables) + 1
            first = next(iter(urls)) == url
            bus = result.place.bus if first and result.place.bus else f"bus-{number}"
            here.sort(key=lambda one: one.sighting.unit)
            units = ", ".join(str(one.sighting.unit) for one in here)
            about = f"{_short(url)} answers, unit{'s' if len(here) > 1 else ''} {units}"
            if bus == result.place.bus:
                about += f"; this takes the place of the [[bus]] {bus} that is there"
            tables.append(bus_text(bus, url, about))
            known = result.place.known
            tables += [
                _meter(known.get(one.sighting.unit, f"{bus}-unit-{one.sighting.unit}"), bus, url, one.sighting)
                for one in here
            ]
    return "\n".join(tables).rstrip()


def _meter(id: str, bus: str, url: str, seen: Sighting) -> str:
    best = seen.best
    if best is None and seen.sunspec is not None:
        choose = f'NAME, once this has made its map: heliograph map sunspec NAME --bus "{url}" --unit {seen.unit}'
        remarks = [f"unit {seen.unit}: {seen.sunspec}"]
        return meter_text(id, bus, seen.unit, None, serial=seen.serial, choose=choose, remarks=remarks)
    if best is None:
        names = ", ".join(f'"{fit.map.name}"' for fit in seen.candidates)
        choose = names or f'no map fits; this starts one: heliograph map new NAME --bus "{url}" --unit {seen.unit}'
        return meter_text(
            id, bus, seen.unit, None, serial=seen.serial, choose=choose, remarks=_remarks(seen, seen.candidates)
        )
    missing: dict[str, float | None] = dict.fromkeys(best.map.from_site)
    return meter_text(
        id,
        bus,
        seen.unit,
        best.map,
        rated_kw=best.rated_kw,
        its_own_kw=True,
        serial=best.serial,
        factors=missing,
        order=best.order,
        remarks=[*_remarks(seen, (best,)), f"  {_STATUS[best.map.status]}"],
    )


_STATUS = {
    "confirmed": "this map was compared with a device's display",
    "documented": "this map rests on the maker's sheet or on sources that agree: compare with the display once",
    "unverified": "this map is unverified: it polls, but delivers nothing unless accept_unverified_map is set",
}


def _remarks(seen: Sighting, fits: Sequence[Fit]) -> list[str]:
    if seen.best is None:
        why = {
            "named": "what it says of itself fits several maps",
            "serial": "a serial number can be read, but nothing tells its kind",
            "possible": "it says nothing of itself",
        }
        told = why[fits[0].evidence] if fits else "it answers, but as no map expects"
        return [
            f"unit {seen.unit}: {told}; look at its label",
            *(f"  {fit.map.name}: {', '.join(fit.map.products)}{_check(fit)}{_zero(fit)}" for fit in fits),
        ]
    return [
        line
        for fit in fits
        for line in (
            f"unit {seen.unit}: {', '.join(fit.map.products)}",
            f"  {'; '.join(fit.because)}{_check(fit)}",
        )
    ]


def _zero(fit: Fit) -> str:
    return "; " + "; ".join(why for why in fit.because if "proves nothing" in why) if fit.refused else ""


def _check(fit: Fit) -> str:
    if not fit.check:
        return ""
    return f" (check: {fit.check})" if fit.sound is not False else f" (check fails: {fit.check})"

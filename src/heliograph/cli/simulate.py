"""heliograph simulate: meters that are not there, so that a site can be rehearsed before it goes live."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from heliograph.cli.options import json_option, print_json, stop_on_signals
from heliograph.cli.snippet import bus_text, meter_text
from heliograph.core.durations import duration
from heliograph.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from heliograph.core.recording import Recording
    from heliograph.core.registers import MeterMap
    from heliograph.rehearsal.faults import Faults
    from heliograph.rehearsal.line import Line
    from heliograph.rehearsal.meter import Setting, SimulatedMeter
    from heliograph.rehearsal.replay import RecordedMeter
    from heliograph.rehearsal.server import Server

HIGHEST_UNIT = 247  # Modbus over serial line 1.02, section 2.2
DEFAULT_MAP = "eastron-sdm630"
DEFAULT_TCP = "127.0.0.1:5020"

HELP = """Run simulated meters over TCP, RTU over TCP or a serial line.

Each has a solar day whose export counter integrates its power. What is printed is configuration: paste it below
[site]. Runs until Ctrl-C, or for the time given by --for.

\b
  heliograph simulate
  heliograph simulate --serial --baud 9600 --meters 3 --fault late=0.02 --fault noise=0.01
  heliograph simulate --map chint-dtsu666 --set ct_ratio=40 --rtu-tcp 127.0.0.1:5021
  heliograph simulate --recording recordings/eastron-sdm630/sdm630_1.8.toml --serial
"""


@click.command("simulate", help=HELP)
@click.option("--map", "name", help=f"Which meter; see: heliograph map list.  [default: {DEFAULT_MAP}]")
@click.option("--recording", type=click.Path(path_type=Path, dir_okay=False),
              help="Replay what a device once answered, and nothing else (made by: heliograph record).")  # fmt: skip
@click.option("--unit", type=click.IntRange(1, HIGHEST_UNIT), help="Unit id of the first meter.  [default: the map's]")
@click.option("--meters", type=click.IntRange(1, HIGHEST_UNIT), default=1, show_default=True, help="How many.")
@click.option("--tcp", multiple=True, metavar="HOST:PORT", help=f"Modbus TCP.  [default: {DEFAULT_TCP} if no other]")
@click.option("--rtu-tcp", multiple=True, metavar="HOST:PORT", help="RTU over TCP, as a serial converter passes it on.")
@click.option(
    "--serial", is_flag=False, flag_value="", metavar="[LINK]", help="A pseudo-serial port, linked from LINK."
)
@click.option("--baud", type=click.Choice(["1200", "2400", "4800", "9600", "19200", "38400", "57600", "115200"]),
              default="9600", show_default=True, help="Speed of the serial line.")  # fmt: skip
@click.option("--bits", type=click.Choice(["10", "11"]), help="Bits of a character.  [default: by its stop bits]")
@click.option("--turnaround", metavar="DURATION", help="How long a meter thinks.  [default: 10ms serial, 0ms TCP]")
@click.option("--strict-silence", is_flag=True, help="Serial: ignore requests that follow within 3.5 characters.")
@click.option("--echo", is_flag=True, help="Serial: the master hears its own requests.")
@click.option("--rated-kw", type=click.FloatRange(0, min_open=True), show_default="50; 10 where the map tells less")
@click.option("--serial-number", metavar="NUMBER", help="Of the first meter; the others count on.")
@click.option("--start-kwh", type=click.FloatRange(0), default=0.0, show_default=True, help="Export counter at start.")
@click.option("--set", "settings", multiple=True, metavar="QUANTITY=VALUE", help="What a meter says, as ct_ratio=40.")
@click.option("--cts", metavar="CONDUCTORS", help="Where current transformers sit; 1,-2,3: that of L2 is turned round.")
@click.option("--max-words", type=click.IntRange(1, 125), help="Refuse longer requests.  [default: the map's limit]")
@click.option("--unknown", type=click.Choice(["silent", "refuse"]), default="silent", show_default=True,
              help="TCP: what is said about a unit that is not there; refuse is exception 11.")  # fmt: skip
@click.option("--fault", "faults", multiple=True, metavar="KIND=SHARE", help="As late=0.02: one answer in fifty.")
@click.option("--late-by", nargs=2, metavar="LEAST MOST", help="How late late answers are.  [default: 500ms 700ms]")
@click.option("--zone", metavar="IANA", help="Time zone of the sun.  [default: this computer's]")
@click.option("--latitude", type=click.FloatRange(-90, 90), default=1.35, show_default=True)
@click.option("--at", metavar="MOMENT", help="Start at this moment instead of now, as 2026-03-14T11:30.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Seconds of sun in a real second.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of clouds and faults.")
@click.option("--for", "period", metavar="DURATION", help="Stop after this time.  [default: run until Ctrl-C]")
@json_option
def command(
    name: str | None,
    recording: Path | None,
    unit: int | None,
    meters: int,
    tcp: tuple[str, ...],
    rtu_tcp: tuple[str, ...],
    serial: str | None,
    baud: str,
    bits: str | None,
    turnaround: str | None,
    strict_silence: bool,
    echo: bool,
    rated_kw: float | None,
    serial_number: str | None,
    start_kwh: float,
    settings: tuple[str, ...],
    cts: str | None,
    max_words: int | None,
    unknown: Literal["silent", "refuse"],
    faults: tuple[str, ...],
    late_by: tuple[str, str] | None,
    zone: str | None,
    latitude: float,
    at: str | None,
    speed: float,
    seed: int,
    period: str | None,
    as_json: bool,
) -> int:
    from heliograph.rehearsal.line import Line, Wire
    from heliograph.rehearsal.meter import SimulatedMeter
    from heliograph.rehearsal.replay import RecordedMeter
    from heliograph.rehearsal.server import Server
    from heliograph.rehearsal.sun import Sky

    recorded = _recording(recording) if recording is not None else None
    if recorded is not None and name not in (None, recorded.map):
        raise UsageError(
            f"{recording} is of {recorded.map}, not of {name}",
            hint="A recording answers what its own device answered: leave out --map, or leave out --recording",
        )
    map = _map(recorded.map if recorded is not None else name or DEFAULT_MAP)
    first = (recorded.unit if recorded is not None else map.unit) if unit is None else unit
    if recorded is not None and meters != 1:
        raise UsageError("a recording is of one device", hint="Leave out --meters")
    if first + meters - 1 > HIGHEST_UNIT:
        raise UsageError(
            f"{meters} meters from unit {first} on would end at unit {first + meters - 1}",
            hint=f"Unit ids go up to {HIGHEST_UNIT}: choose a lower --unit or fewer --meters",
        )
    if serial_number is not None and not serial_number.isdecimal():
        raise UsageError(f"--serial-number {serial_number} is not a number", hint="Give digits only, as 23451234")
    wrong = _faults(faults, late_by)
    thinks = None if turnaround is None else _seconds("--turnaround", turnaround)
    told = dict(_setting(text, map) for text in settings)
    stop_after = None if period is None else _seconds("--for", period)
    where = _zone(zone)
    begin = _moment(at, where)
    started = time.monotonic()

    def clock() -> datetime:
        return begin + timedelta(seconds=(time.monotonic() - started) * speed)

    bank: dict[int, SimulatedMeter | RecordedMeter]
    bank = (
        {first: RecordedMeter(recorded, map, clock=clock)}
        if recorded is not None
        else {
            number: SimulatedMeter(
                map,
                clock=clock,
                unit=number,
                rated_kw=rated_kw,
                serial=None if serial_number is None else int(serial_number) + number - first,
                start_export_wh=round(start_kwh * 1000),
                started=begin,
                sky=Sky(where, seed=seed + number, latitude=latitude),
                seed=seed + number,
                settings=told,
                max_words=max_words,
                cts=_cts(cts),
            )
            for number in range(first, first + meters)
        }
    )
    places: list[tuple[Literal["tcp", "rtu"], str]] = [("tcp", text) for text in tcp]
    places += [("rtu", text) for text in rtu_tcp]
    if not places and serial is None:
        places.append(("tcp", DEFAULT_TCP))
    endpoints: list[Server | Line] = []
    with contextlib.ExitStack() as stack:
        for framing, text in places:
            host, port = _address(text)
            server = Server(
                bank,
                host=host,
                port=port,
                framing=framing,
                unknown=unknown,
                turnaround=thinks or 0.0,
                faults=wrong,
                seed=seed,
            )
            endpoints.append(stack.enter_context(server))
        if serial is not None:
            wire = Wire(
                bank,
                baud=int(baud),
                bits=None if bits is None else int(bits),
                turnaround=0.01 if thinks is None else thinks,
                strict_silence=strict_silence,
                echo=echo,
                faults=wrong,
                seed=seed,
            )
            line = Line(wire, link=Path(serial).absolute() if serial else None)
            endpoints.append(stack.enter_context(line))
        with stop_on_signals() as stop:
            if as_json:
                print_json(_facts(map, bank, endpoints, speed, wrong))
            else:
                click.echo(_snippet(map, bank, endpoints))
            if speed != 1:
                click.echo(
                    f"Time runs {speed:g} times as fast here: a gateway that keeps real time will doubt such counters.",
                    err=True,
                )
            stop.wait(stop_after)
    for endpoint in endpoints:
        seen = ", ".join(f"{count} {what}" for what, count in sorted(endpoint.counts.items())) or "nobody asked"
        click.echo(f"{endpoint.url}: {seen}", err=True)
    return 0


# -- what is printed --------------------------------------------------------------------------------------------


def _snippet(map: MeterMap, bank: dict[int, SimulatedMeter | RecordedMeter], endpoints: Sequence[Server | Line]) -> str:
    units = ", ".join(str(unit) for unit in bank) if len(bank) < 4 else f"{min(bank)} to {max(bank)}"
    tables = []
    for number, endpoint in enumerate(endpoints, 1):
        url = endpoint.url
        bus = f"rehearsal-{number}"
        about = f"{url} answers as {map.name}, unit{'s' if len(bank) > 1 else ''} {units}"
        tables.append(bus_text(bus, url, about))
        tables += [
            meter_text(
                f"{bus}-unit-{unit}",
                bus,
                unit,
                map if map.sunspec is None else None,
                choose=f'NAME, once this has made its map: heliograph map sunspec NAME --bus "{url}" --unit {unit}',
                rated_kw=meter.rated_kw,
                production=meter.production,
                serial=meter.serial if map.identity.serial else "",
                any_serial=True,
                factors={name: float(meter.settings.get(name, 1)) for name in map.from_site},
            )
            for unit, meter in bank.items()
        ]
    return "\n".join(tables).rstrip()


def _facts(
    map: MeterMap,
    bank: dict[int, SimulatedMeter | RecordedMeter],
    endpoints: Sequence[Server | Line],
    speed: float,
    faults: Faults,
) -> dict[str, Any]:
    from heliograph.rehearsal.line import Line

    return {
        "map": map.name,
        "meters": [
            {
                "unit": unit,
                "serial": meter.serial if map.identity.serial else None,
                "rated_kw": meter.rated_kw,
                "production": meter.production,
                "counted_wh": meter.counted_wh(meter.started),
                "started": meter.started,
            }
            for unit, meter in bank.items()
        ],
        "endpoints": [
            {"url": endpoint.url, "path": str(endpoint.path) if isinstance(endpoint, Line) else None}
            for endpoint in endpoints
        ],
        "speed": speed,
        "faults": {kind: chance for kind, chance in faults.chances().items() if chance},
        "config": _snippet(map, bank, endpoints),
    }


# -- what is given ----------------------------------------------------------------------------------------------


def _map(name: str) -> MeterMap:
    from heliograph import library

    try:
        library.find(name)
    except ConfigError as exc:
        raise UsageError(exc.message, hint=exc.hint) from exc
    return library.load(name).map


def _recording(path: Path) -> Recording:
    from heliograph.core.recording import parse

    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} cannot be read: {exc}", hint="A recording is made by: heliograph record") from exc
    except ConfigError as exc:
        raise UsageError(f"{path} {exc.message}", hint=exc.hint) from exc


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text} is not HOST:PORT", hint=f"Write it like {DEFAULT_TCP}, or :0 for any free port")
    return host or "127.0.0.1", int(port)


def _seconds(option: str, text: str) -> float:
    try:
        return duration(text).total_seconds()
    except ValueError as exc:
        raise UsageError(
            f"{option} {text}: {exc}", hint='Write a number with its unit, such as "10ms" or "2h"'
        ) from exc


def _faults(texts: Sequence[str], late_by: tuple[str, str] | None) -> Faults:
    from heliograph.rehearsal.faults import KINDS, Faults

    given: dict[str, Any] = {}
    for text in texts:
        kind, _, share = text.partition("=")
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(KINDS)}"
            raise UsageError(f"--fault {text}: there is no fault {kind or text!r}", hint=hint)
        try:
            given[kind] = float(share)
        except ValueError as exc:
            raise UsageError(
                f"--fault {text}: {share!r} is not a number", hint=f"Write a share from 0 to 1: {kind}=0.02"
            ) from exc
    if late_by is not None:
        given["late_by"] = tuple(_seconds("--late-by", text) for text in late_by)
    return Faults(**given)


def _setting(text: str, map: MeterMap) -> tuple[str, Setting]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UsageError(f"--set {text}: no value in it", hint="Write QUANTITY=VALUE, such as ct_ratio=40")
    known = {register.quantity: register.type for register in map.registers} | dict.fromkeys(map.from_site, "float32")
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"See: heliograph map show {map.name}"
        raise UsageError(f"--set {text}: {map.name} has no {name}", hint=hint)
    if known[name] == "text":
        return name, value
    try:
        return name, Fraction(value)
    except (ValueError, ZeroDivisionError) as exc:
        raise UsageError(f"--set {text}: {value!r} is not a number", hint=f"{name} is a {known[name]}") from exc


def _cts(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise UsageError(
            f"--cts {text} names no conductors", hint="Write 1,2,3 with a minus where one is turned"
        ) from exc


def _zone(name: str | None) -> tzinfo:
    from zoneinfo import ZoneInfo, available_timezones

    if name is None:
        return datetime.now(UTC).astimezone().tzinfo or UTC
    if name not in available_timezones():
        near = difflib.get_close_matches(name, available_timezones(), 1)
        hint = f"Did you mean {near[0]}?" if near else 'Write an IANA name such as "Asia/Singapore"'
        raise UsageError(f"there is no time zone {name}", hint=hint)
    return ZoneInfo(name)


def _moment(text: str | None, zone: tzinfo) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(f"--at {text} is not a moment", hint="Write it like 2026-03-14T11:30") from exc
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)

"""heliograph record: what a device answers, as a file that can be replayed, tested against and shared."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heliograph.cli.options import a_meter, app_of, config_option, json_option, print_json, print_table
from heliograph.core.durations import duration
from heliograph.core.errors import ConfigError, UsageError
from heliograph.core.quantity import UNITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from heliograph.core.line import Line
    from heliograph.core.plan import LineCost
    from heliograph.core.registers import Function, MeterMap, Register
    from heliograph.library import LoadedMap
    from heliograph.work.record import Range, Read

HELP = """Take down what a device answers: every register of its map, its identity, and what else you name.

Only reads. The file goes to FOLDER/<map>/<model>_<firmware>.toml; serial numbers are masked in it where the map has
them, or where the device names itself by another map. What --also reads may hold one that no map knows of. Through the
running gateway, else straight from the line.

\b
  heliograph record roof --display energy_export=41230.70kWh
  heliograph record --bus tcp://192.168.1.50:502 --unit 1 --map huawei-sun2000 --also 0x7530-0x75FF
"""


@click.command("record", help=HELP)
@click.argument("meter", required=False)
@click.option("--bus", "url", metavar="URL", help="A line that stands in no configuration, as in [[bus]].")
@click.option("--unit", type=click.IntRange(0, 255), help="With --bus.  [default: the map's]")
@click.option("--map", "name", metavar="NAME", help="With --bus: a map, or the file of one.")
@click.option("--rounds", type=click.IntRange(1, 100), default=1, show_default=True, help="How often it is all read.")
@click.option("--every", default="10s", show_default=True, metavar="DURATION", help="From one round to the next.")
@click.option("--also", multiple=True, metavar="RANGE", help="More registers, as 0x0000-0x00FF or holding:0-99.")
@click.option("--display", "shown", multiple=True, metavar="QUANTITY=VALUE", help="What its display shows now.")
@click.option("--model", help="What is printed on it.  [default: what it says itself]")
@click.option("--firmware", help="[default: what it says itself]")
@click.option("--note", default="", help="What somebody who reads this later should know.")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("recordings"),
              show_default=True, metavar="FOLDER")  # fmt: skip
@config_option
@json_option
def command(
    meter: str | None,
    url: str | None,
    unit: int | None,
    name: str | None,
    rounds: int,
    every: str,
    also: tuple[str, ...],
    shown: tuple[str, ...],
    model: str | None,
    firmware: str | None,
    note: str,
    folder: Path,
    config: Path | None,
    as_json: bool,
) -> int:
    from heliograph import __version__
    from heliograph.clock import SystemClock
    from heliograph.core.recording import Recording, compared, masked, named, text, values
    from heliograph.work.record import claimed, record

    if (meter is None) == (url is None):
        raise UsageError("say what to record: a meter of the site, or a line", hint="heliograph record --help")
    if url is None and (unit is not None or name is not None):
        raise UsageError("--unit and --map go with --bus", hint="A meter has its own in the configuration.")
    wait = _every(every)
    _can_be_written(folder)
    source = _of_site(meter, config) if meter is not None else _of_line(url or "", unit, name)
    with source as device:
        map = device.loaded.map
        ranges = [_range(told, map) for told in also]
        display = dict(_shown(told, map) for told in shown) or _asked(map)
        with _progress() as progress:
            at = SystemClock().now().replace(microsecond=0)
            began = time.monotonic()

            def between() -> None:
                time.sleep(wait - (time.monotonic() - began) % wait if wait else 0)

            pieces, refused, begins = record(
                device.read,
                map,
                device.cost,
                monotonic=time.monotonic,
                rounds=rounds,
                also=ranges,
                between=between,
                progress=progress,
            )
    made = Recording(
        map=map.name,
        digest=device.loaded.digest,
        origin="captured",
        unit=device.unit,
        pieces=pieces,
        refused=refused,
        at=at,
        rounds=begins,
        software=f"heliograph {__version__}",
        line=device.line,
        display=display,
        factors=device.factors,
        note=note,
        model=model or "",
        firmware=firmware or "",
    )
    says = [other for other in claimed(made, _maps()) if other.name != map.name]
    for other in (map, *says):
        made = masked(other, made)
    told = named(map, made)
    made = replace(made, model=made.model or told[0], firmware=made.firmware or told[1])
    path = _written(folder / made.file, text(made))
    seen = compared(map, made)
    decoded = values(map, made)
    if as_json:
        print_json(
            {
                "path": path,
                "map": map.name,
                "unit": device.unit,
                "blocks": len(made.pieces),
                "registers": len(decoded),
                "refused": len(made.refused),
                "masked": list(made.masked),
                "display": [
                    {"quantity": one.quantity, "shown": one.shown, "decoded": one.decoded, "agrees": one.agrees}
                    for one in seen
                ],
            }
        )
    else:
        click.echo(f"{path}  {len(made.pieces)} requests answered, {len(made.refused)} refused, over {device.line}")
        click.echo(f"  masked: {', '.join(made.masked) or 'nothing; this map names no serial number'}")
        if says:
            names = " or ".join(other.name for other in says)
            click.echo(f"  By what it says of itself this is {names}, so its serial number was looked for there too.")
        if also:
            click.echo("  What --also has read may hold a serial number that no map knows of.")
        if seen:
            print_table(
                ("quantity", "display", "decoded", ""),
                [(one.quantity, one.shown, one.decoded or "-", "" if one.agrees else "DIFFERS") for one in seen],
                right=("display", "decoded"),
            )
        else:
            click.echo("  Nothing was compared with the display: add --display QUANTITY=VALUE.")
        click.echo(f"  Look through it before you share it. Replay: heliograph simulate --recording {path}")
    if wrong := [one.quantity for one in seen if not one.agrees]:
        click.echo(f"! By this map, {', '.join(wrong)} is not what the display shows. Next: heliograph probe", err=True)
    return 1 if wrong else 0


# -- where it comes from ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """What is to be recorded, and the way to it."""

    read: Read
    loaded: LoadedMap
    unit: int
    cost: LineCost
    line: str
    """In words, without an address."""
    factors: dict[str, str] = field(default_factory=dict)


@contextmanager
def _of_site(name: str, config: Path | None) -> Iterator[Device]:
    from heliograph.cli.line import AskedBus, line_of
    from heliograph.core.line import parse
    from heliograph.core.plan import line_cost

    app = app_of(config)
    id = a_meter(app, name)
    number = next(n for n, one in enumerate(app.meters) if one.id == id)
    meter, loaded = app.meters[number], replace(app.maps[number], map=app.meters[number].map)
    settings = app.bus_settings(meter.bus)
    line = parse(settings.url)
    factors = {quantity: str(value) for quantity, value in meter.factors}
    bus, _ = line_of(app, meter.bus)
    way = f"{_way(line)}, by the gateway" if isinstance(bus, AskedBus) else _way(line)
    try:

        def read(function: Function, address: int, count: int) -> tuple[int, ...]:
            return bus.read(meter.unit, function, address, count, meter.timing)

        yield Device(read, loaded, meter.unit, line_cost(line, meter.timing), way, factors)
    finally:
        bus.close()


@contextmanager
def _of_line(url: str, unit: int | None, name: str | None) -> Iterator[Device]:
    from heliograph import app, library
    from heliograph.core.line import parse
    from heliograph.core.plan import line_cost

    if name is None:
        raise UsageError("--bus needs a --map", hint="heliograph map list shows them; which one, says: heliograph scan")
    loaded = library.read(Path(name)) if name.endswith(".toml") or "/" in name else library.load(name)
    line = parse(url)
    number = loaded.map.unit if unit is None else unit
    bus = app.open_bus(url)
    try:

        def read(function: Function, address: int, count: int) -> tuple[int, ...]:
            return bus.read(number, function, address, count, loaded.map.timing)

        yield Device(read, loaded, number, line_cost(line, loaded.map.timing), _way(line))
    finally:
        bus.close()


def _way(line: Line) -> str:
    return f"serial, {line.baudrate} baud, {line.parity}{line.stopbits}" if line.way == "serial" else str(line.way)


# -- taking down ------------------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    if not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("registers")
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _maps() -> list[MeterMap]:
    """All that can be used; a broken one of the site's own is `check`'s affair."""
    from heliograph import library

    found = []
    for name in library.names():
        with suppress(ConfigError):
            found.append(library.load(name).map)
    return found


def _can_be_written(folder: Path) -> None:
    """Before minutes are spent on the line. Raises UsageError; leaves nothing behind."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        Path(tempfile.mkdtemp(dir=there)).rmdir()
    except OSError as exc:
        raise _unwritable(folder, exc) from exc


def _unwritable(path: Path, exc: OSError) -> UsageError:
    return UsageError(f"{path} cannot be written: {exc.strerror}", hint="Name another folder: --to")


def _written(path: Path, content: str) -> Path:
    """Never over another recording: a second one of the same device gets a number."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _unwritable(path.parent, exc) from exc
    free = path
    number = 2
    while True:
        try:
            with free.open("x", encoding="utf-8") as file:
                file.write(content)
            return free
        except FileExistsError:
            free = path.with_name(f"{path.stem}-{number}.toml")
            number += 1
        except OSError as exc:
            raise _unwritable(free, exc) from exc


# -- what is given ----------------------------------------------------------------------------------------------


def _shown(told: str, map: MeterMap) -> tuple[str, str]:
    from heliograph.library import nearest_name

    name, _, shown = told.partition("=")
    register = map.register(name)
    if register is None:
        hint = nearest_name(name, (r.quantity for r in map.registers), f"See: heliograph map show {map.name}")
        raise UsageError(f"--display {told}: {map.name} has no {name}", hint=hint)
    return name, shown if register.type == "text" else _with_unit(shown, register)


def _with_unit(told: str, register: Register) -> str:
    """ "41230.70kWh" as it is kept: "41230.70 kWh"; without a unit it is meant in the map's. Raises UsageError."""
    match = re.fullmatch(r"(?P<number>-?\d+([.,]\d+)?) *(?P<unit>\D*)", told.strip())
    unit = (match["unit"] or register.unit) if match else ""
    kept = UNITS[register.unit][0]
    if match is None or UNITS.get(unit, ("?", 0))[0] != kept:
        fitting = ", ".join(one for one, (its, _) in UNITS.items() if its == kept and one)
        raise UsageError(
            f"{told!r} is nothing that a display shows for {register.quantity}",
            hint=f"Write all its digits and the unit ({fitting}): {register.quantity}=41230.70{register.unit}",
        )
    return f"{match['number'].replace(',', '.')} {unit}".strip()


def _asked(map: MeterMap) -> dict[str, str]:
    """On a terminal: the one number that matters most."""
    register = map.register(map.production or "")
    if register is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return {}
    question = f"What does the display show for {register.quantity}, all digits, in {register.unit}? (Enter: nothing)"
    while told := click.prompt(question, default="", show_default=False, err=True).strip():
        try:
            return {register.quantity: _with_unit(told, register)}
        except UsageError as wrong:
            click.echo(f"{wrong.message}. {wrong.hint}", err=True)
    return {}


def _range(told: str, map: MeterMap) -> Range:
    from heliograph.work.record import MOST_ALSO

    kind, colon, rest = told.rpartition(":")
    first, dash, last = rest.partition("-")
    try:
        low = int(first, 0)
        high = int(last, 0) if dash else low
    except ValueError as exc:
        raise UsageError(f"--also {told} is no range", hint="Write it like 0x0000-0x00FF or holding:0-99") from exc
    if (colon and kind not in ("holding", "input")) or not 0 <= low <= high <= 0xFFFF or high - low >= MOST_ALSO:
        hint = f"Write it like 0x0000-0x00FF or holding:0-99, with at most {MOST_ALSO} registers"
        raise UsageError(f"--also {told} is no range", hint=hint)
    return ("holding" if kind == "holding" else "input" if kind == "input" else map.function), low, high


def _every(told: str) -> float:
    try:
        return duration(told).total_seconds()
    except ValueError as exc:
        raise UsageError(f"--every {told}: {exc}", hint='Write a number with its unit, such as "10s"') from exc

"""heliograph map sunspec NAME: looks at a SunSpec device and writes the map of this one device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph import library
from heliograph.cli.map_file import make_folder, place_of_new, write
from heliograph.cli.options import json_option, print_json, print_table
from heliograph.cli.snippet import bus_text, meter_text
from heliograph.core.errors import ConfigError, UsageError
from heliograph.core.figures import kwh
from heliograph.core.quantity import find

if TYPE_CHECKING:
    from heliograph.work.discover import Found

HELP = """Look at a SunSpec device and write the map of this one device, NAME.toml.

It walks the models that the device announces, and nothing is guessed: what does not follow SunSpec is refused. The
map names every register by its address there, how the device is recognised, where its counters start again, and the
words that it showed. Polling then needs no walk. Reads only.

\b
  heliograph map sunspec roof-inverter --bus tcp://192.168.7.20:502 --unit 1
  heliograph map --local . sunspec grid-meter --bus "/dev/ttyUSB0?baudrate=9600" --unit 240
"""


@click.command("sunspec", help=HELP)
@click.argument("name")
@click.option("--bus", "url", required=True, metavar="URL", help="Where the device is, as url of a [[bus]].")
@click.option("--unit", type=click.IntRange(0, 255), required=True, help="Its unit id.")
@click.option("--at", type=click.IntRange(0, 65535), help="Address of the model to take, where there are several.")
@click.option("--template", metavar="MAP", help="Only what this template is for, as sunspec-meter.")
@click.option("--replace", is_flag=True, help="Write over a map of that name.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    name: str,
    url: str,
    unit: int,
    at: int | None,
    template: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    local: Path = context.obj
    path = place_of_new(name, local, over=replace)
    make_folder(path)  # before the device is asked
    found = _look(name, url, unit, at, template, local)
    text = _text(found)
    write(path, text)
    loaded, problems = library.check(path, local)
    if problems:
        raise ConfigError(f"what was written does not pass: {problems[0].message}", path=path)
    if as_json:
        print_json(_facts(found, path, loaded.digest if loaded else None))
    else:
        _tell(found, path, url, unit)


def _look(name: str, url: str, unit: int, at: int | None, template: str | None, local: Path) -> Found:
    from datetime import UTC

    from heliograph.app import open_bus
    from heliograph.clock import SystemClock
    from heliograph.core import line as lines
    from heliograph.core.plan import line_cost
    from heliograph.work.discover import discover

    templates = _templates(template, local)
    clock = SystemClock()
    parsed = lines.parse(url)
    bus = open_bus(url)
    try:
        return discover(
            bus,
            unit,
            templates,
            name=name,
            today=clock.now().astimezone(UTC).date(),
            cost=line_cost(parsed, templates[0].timing),
            now=clock.since_boot,
            at=at,
            port=parsed.port if parsed.way == "tcp" else None,
        )
    finally:
        bus.close()


def _templates(only: str | None, local: Path) -> list[Any]:
    if only is not None:
        chosen = library.load(only, local).map
        if chosen.sunspec is None:
            raise UsageError(f"{only} is no SunSpec template", hint="Templates: sunspec-inverter, sunspec-meter, ...")
        return [chosen]
    found = [loaded.map for path in library.found(local).values() if (loaded := library.check(path, local)[0])]
    return [map for map in found if map.sunspec is not None]


def _text(found: Found) -> str:
    from heliograph.core.map_text import text_of

    comment = [
        f"A SunSpec device as it was found on {found.map.version}: {found.chain}.",
        f"Made by heliograph map sunspec; the registers are those of {found.template.name}, at their addresses here.",
        *found.notes,
    ]
    return text_of(found.map, comment)


def _facts(found: Found, path: Path, digest: str | None) -> dict[str, Any]:
    return {
        "map": found.map.name,
        "path": str(path),
        "digest": digest,
        "template": found.template.name,
        "base": found.chain.base,
        "models": [{"model": one.number, "length": one.length, "address": one.address} for one in found.chain.models],
        "chosen": found.main.address,
        "values": dict(found.values),
        "absent": dict(found.absent),
        "notes": list(found.notes),
    }


def _tell(found: Found, path: Path, url: str, unit: int) -> None:
    values = found.values
    said = " ".join(str(values[one]) for one in ("manufacturer", "model", "firmware_version") if one in values)
    click.echo(f"{said}, serial {values.get('serial_number', 'not told')}, at unit {unit} of {url}")
    print_table(
        ("model", "address", "registers", ""),
        [
            (str(one.number), str(one.address), str(one.length), _use(found, one.number, one.address))
            for one in found.chain.models
        ],
        right=("model", "address", "registers"),
    )
    click.echo()
    rows = []
    for register in found.map.registers:
        value = values.get(register.quantity)
        quantity = find(register.quantity)
        if value is None or quantity is None or not (register.poll or quantity.kind == "counter"):
            continue
        if quantity.unit == "Wh" and isinstance(value, int):
            again = f"starts again behind {register.rollover / 1000:f} kWh" if register.rollover is not None else ""
            rows.append((register.quantity, kwh(value), "kWh", again))
        else:
            rows.append(
                (register.quantity, f"{value:g}" if isinstance(value, float) else str(value), quantity.unit, "")
            )
    print_table(("quantity", "value", "unit", ""), rows, right=("value",))
    counters = [one.quantity for one in found.map.registers if one.monotonic is not None]
    for name in (name for name in counters if name in found.absent):
        click.echo(f"  no {name}: {found.absent[name]}")
    for note in found.notes:
        click.echo(f"! {note}")
    click.echo(f"\nWritten: {path}. Compare the values with the display, then paste this below [site]:\n")
    click.echo(bus_text("BUS", url, "unless the line is there already: then its id stands below"))
    click.echo(
        meter_text(found.map.name, "BUS", unit, found.map, serial=str(values.get("serial_number", ""))), nl=False
    )


def _use(found: Found, number: int, address: int) -> str:
    if address == found.main.address:
        return f"taken, by {found.template.name}"
    if address == found.device.common.address:
        return "taken: who the device is"
    taken = found.template.sunspec.beside if found.template.sunspec is not None else ()
    if number in taken and any(one.address == address for one in found.device.models):
        return "taken: its inputs"
    return ""

"""heliograph read METER: its live values, from the running gateway, else straight from the line."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import a_meter, app_of, config_option, json_option, print_json, print_table
from heliograph.core.figures import kwh
from heliograph.core.quantity import find

if TYPE_CHECKING:
    from heliograph.app import App
    from heliograph.core.site import Meter


@click.command("read", help="Show the live values of a meter.")
@click.argument("meter")
@click.option("--all", "everything", is_flag=True, help="Every register of the map, not only what is polled.")
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@config_option
@json_option
def command(meter: str, everything: bool, watch: bool, config: Path | None, as_json: bool) -> int:
    app = app_of(config)
    name = a_meter(app, meter)
    one = next(one for one in app.meters if one.id == name)
    try:
        while True:
            _show(_read(app, one, everything), one, as_json)
            if not watch:
                return 0
            time.sleep(one.every.total_seconds())
    except KeyboardInterrupt:
        return 0


def _read(app: App, meter: Meter, everything: bool) -> dict[str, Any]:
    from heliograph import control

    answer = control.ask(app.socket, f"/api/v1/meters/{meter.id}{'/all' if everything else ''}", timeout=60)
    if answer is not None:
        return {**answer, "from": "the running gateway"}
    from heliograph.work.poll import PolledBus, read_once

    bus = app.bus_settings(meter.bus)
    line = PolledBus(bus.id, bus.url, [meter], partial(app.open_bus, bus.id))
    try:
        return {**read_once(line, meter, app.clock, everything), "from": f"the line ({bus.url})"}
    finally:
        line.close()


def _notes(read: dict[str, Any], meter: Meter) -> list[str]:
    """Where the device says another ratio than the site: nothing is wrong with the reading, but one of them is."""
    return [
        f"{name}: the device says {read['values'][name]:g}, factors in the configuration says {said:g}, which counts"
        for name, said in meter.factors
        if isinstance(read["values"].get(name), int | float) and read["values"][name] != said
    ]


def _show(read: dict[str, Any], meter: Meter, as_json: bool) -> None:
    if as_json:
        print_json({**read, "notes": _notes(read, meter)})
        return
    serial = f", serial {read['serial']}" if read.get("serial") else ""
    click.echo(
        f"{meter.id} ({meter.map.name}, unit {meter.unit}{serial}) at {read['at'][:19]} UTC, from {read['from']}"
    )
    rows = []
    for name, value in read["values"].items():
        quantity = find(name)
        unit = quantity.unit if quantity else ""
        if isinstance(value, str):
            rows.append((name, value, unit, ""))
        elif unit == "Wh" and isinstance(value, int):
            rows.append((name, kwh(value), "kWh", "production" if name == meter.production else ""))
        else:
            whole = quantity is not None and quantity.kind != "instant"
            rows.append((name, f"{value:.0f}" if whole and isinstance(value, float) else f"{value:g}", unit, ""))
    if rows:
        print_table(("quantity", "value", "unit", ""), rows, right=("value",))
    for name, why in read.get("absent", {}).items():
        click.echo(f"  no {name}: {why}")
    for note in _notes(read, meter):
        click.echo(f"  {note}")
    for doubt in read.get("doubts", ()):
        click.echo(f"! {doubt}")

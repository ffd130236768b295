"""heliograph release: held days get their figure by a split that a person decides."""

from __future__ import annotations

from pathlib import Path

import click

from heliograph.cli.options import (
    a_day,
    a_meter,
    app_of,
    carried_out,
    config_option,
    confirmed,
    json_option,
    print_json,
)
from heliograph.core.daily import day_of
from heliograph.core.figures import kwh


@click.command("release", help="Give held days a figure: DAYS is 2026-03-14 or 2026-03-14..2026-03-16.")
@click.argument("meter")
@click.argument("days")
@click.option(
    "--split",
    type=click.Choice(["daylight", "time", "carry"]),
    required=True,
    help="The measured energy of the gap: along daylight (needs the site's position), in proportion to time, or all to "
    "the later day.",
)
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@config_option
@json_option
def command(meter: str, days: str, split: str, yes: bool, config: Path | None, as_json: bool) -> int:
    app = app_of(config)
    name = a_meter(app, meter)
    today = day_of(app.clock.now(), app.rules.zone)
    first, _, last = days.partition("..")
    wish = {"first": str(a_day(first, today)), "last": str(a_day(last or first, today)), "split": split}
    planned = carried_out(app, name, "release", {**wish, "dry": True})
    if not yes:
        for day in planned["days"]:
            share = f"{kwh(day['estimated_wh'])} kWh of it an estimated split ({day['how']})"
            click.echo(f"{name} {day['day']}: {kwh(day['period_wh'])} kWh, {share}", err=True)
    confirmed("A closed day never changes. Release?", yes=yes)
    done = carried_out(app, name, "release", {**wish, "dry": False})
    if as_json:
        print_json(done)
    else:
        click.echo(f"{name}: {len(done['days'])} days released. See: heliograph days {name}")
    return 0

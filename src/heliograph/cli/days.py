"""heliograph days: what each local day came to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from heliograph.cli.options import a_day, a_meter, app_of, config_option, json_option, print_json, print_table
from heliograph.core.daily import METHODS, day_of
from heliograph.core.figures import kwh


@click.command("days", help="List closed, held and missing days.")
@click.argument("meter", required=False)
@click.option(
    "--from", "first", default=None, help="First day: 2026-03-14, today or yesterday. [default: 14 days back]"
)
@click.option("--to", "last", default="today", show_default=True, help="Last day.")
@config_option
@json_option
def command(meter: str | None, first: str | None, last: str, config: Path | None, as_json: bool) -> int:
    app = app_of(config)
    today = day_of(app.clock.now(), app.rules.zone)
    end = a_day(last, today)
    start = a_day(first, today) if first else end - timedelta(days=14)
    name = a_meter(app, meter) if meter else None
    store = app.reader()
    rows: list[dict[str, Any]] = [
        {
            "meter": day.meter,
            "day": day.day,
            "state": "closed",
            "period_wh": day.period_wh,
            "total_wh": day.total_wh,
            "estimated_split": day.estimated,
            "opening": day.opening.method,
            "closing": day.closing.method,
            "reason": METHODS[day.closing.method] if day.estimated else "",
        }
        for day in store.days.all(name, first=start, last=end)
    ]
    rows += [
        {
            "meter": held.meter,
            "day": held.day,
            "state": held.kind,
            "period_wh": None,
            "total_wh": None,
            "estimated_split": False,
            "opening": "",
            "closing": "",
            "reason": held.reason,
        }
        for held in store.days.held(name)
        if start <= held.day <= end
    ]
    rows.sort(key=lambda row: (str(row["meter"]), str(row["day"])))
    if as_json:
        print_json(rows)
        return 0
    if not rows:
        click.echo(f"No day from {start} to {end} is closed yet. A day is closed after its midnight: heliograph status")
        return 0
    print_table(
        ("meter", "day", "state", "period kWh", "total kWh", "remark"),
        [
            (
                str(row["meter"]),
                str(row["day"]),
                str(row["state"]),
                "-" if row["period_wh"] is None else kwh(row["period_wh"]),
                "-" if row["total_wh"] is None else kwh(row["total_wh"]),
                str(row["reason"]),
            )
            for row in rows
        ],
        right=("period kWh", "total kWh"),
    )
    click.echo("Where a figure comes from: heliograph explain METER DAY")
    return 1 if any(row["state"] == "held" for row in rows) else 0

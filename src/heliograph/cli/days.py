"""heliograph days: what each local day came to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from heliograph.cli.options import a_day, a_meter, app_of, config_option, json_option, print_json, print_table
from heliograph.core.daily import day_of
from heliograph.core.durations import shown
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
    from heliograph.work.change import waiting
    from heliograph.work.list_days import list_days

    app = app_of(config)
    today = day_of(app.clock.now(), app.rules.zone)
    end = a_day(last, today)
    start = a_day(first, today) if first else end - timedelta(days=14)
    name = a_meter(app, meter) if meter else None
    store = app.reader()
    meters = [name] if name else store.readings.meters()
    rows = list(list_days(meters, store, app.rules.zone, app.clock.now(), start, end))
    if as_json:
        print_json(rows)
        return 0
    unconfirmed = waiting(app.meters, store, name)
    for line in unconfirmed:
        click.echo(f"! {line}", err=True)
    if not rows:
        click.echo(f"No day from {start} to {end} is closed yet. A day is closed after its midnight: heliograph status")
        return 1 if unconfirmed else 0
    print_table(
        ("meter", "day", "state", "period kWh", "estimated", "total kWh", "read", "remark"),
        [
            (
                str(row["meter"]),
                str(row["day"]),
                str(row["state"]),
                "-" if row["period_wh"] is None else kwh(row["period_wh"]),
                kwh(row["estimated_wh"]) if row["estimated_split"] else "-",
                "-" if row["total_wh"] is None else kwh(row["total_wh"]),
                _share(row["coverage"]),
                _remark(row),
            )
            for row in rows
        ],
        right=("period kWh", "estimated", "total kWh", "read"),
    )
    click.echo("Where a figure comes from: heliograph explain METER DAY")
    return 1 if unconfirmed or any(row["state"] == "held" for row in rows) else 0


def _share(coverage: dict[str, Any] | None) -> str:
    """Good readings of those that could be expected; 100 % only where none is missing."""
    if coverage is None or not coverage["expected"]:
        return "-"
    thousandths = min(1000, 1000 * coverage["good"] // coverage["expected"])
    return f"{thousandths // 10}.{thousandths % 10} %"


def _remark(row: dict[str, Any]) -> str:
    found = [row["reason"], *(f"seam {seam['id']}: {seam['text']}" for seam in row["seams"])]
    if row["coverage"] and row["coverage"]["gaps"]:
        gap = row["coverage"]["gaps"][0]
        found.append(f"nothing read for {shown(timedelta(seconds=row['coverage']['longest_gap_s']))}: {gap['why']}")
    return "; ".join(text for text in found if text)

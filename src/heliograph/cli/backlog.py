"""heliograph backlog: what no platform has confirmed yet, why, since when, and what to do."""

from __future__ import annotations

from pathlib import Path

import click

from heliograph.cli.options import app_of, config_option, json_option, print_json, print_table
from heliograph.core import durations
from heliograph.core.figures import kwh


@click.command("backlog", help="List what no platform has confirmed yet, why, and what to do.")
@click.option("--uplink", default=None, help="Only this platform.")
@click.option("--limit", default=40, show_default=True, help="Rows shown on a terminal.")
@config_option
@json_option
def command(uplink: str | None, limit: int, config: Path | None, as_json: bool) -> int:
    app = app_of(config)
    rows = app.reader().outbox.backlog(uplink)
    now = app.clock.now()
    if as_json:
        print_json(rows)
        return 1 if any(row["state"] in ("rejected", "held") for row in rows) else 0
    if not rows:
        click.echo("Nothing waits: every closed day is confirmed.")
        return 0
    print_table(
        ("uplink", "meter", "day", "kWh", "state", "tries", "since", "why", "next"),
        [
            (
                row["uplink"],
                row["meter"],
                str(row["day"]),
                kwh(row["period_wh"]),
                row["state"],
                str(row["attempt"]),
                durations.shown(now - row["changed"]) + " ago",
                f"{row['rule']} {row['answer']}".strip() or "waits for its turn",
                row["remedy"] or (f"at {row['due']:%Y-%m-%d %H:%M} UTC" if row["due"] > now else "with the next round"),
            )
            for row in rows[:limit]
        ],
        right=("kWh", "tries"),
    )
    if len(rows) > limit:
        click.echo(f"... and {len(rows) - limit} more: heliograph backlog --limit {len(rows)}")
    return 1 if any(row["state"] in ("rejected", "held") for row in rows) else 0

"""heliograph reconcile: does the platform hold what we delivered, to the Wh?"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import a_day, a_meter, app_of, config_option, json_option, print_json, print_table
from heliograph.core.daily import day_of
from heliograph.core.errors import HeliographError
from heliograph.core.figures import kwh

if TYPE_CHECKING:
    from heliograph.app import App


@click.command("reconcile", help="Compare what was delivered with what the platforms hold. Changes nothing.")
@click.argument("meter", required=False)
@click.option("--from", "first", default=None, help="First day. [default: 60 days back]")
@config_option
@json_option
def command(meter: str | None, first: str | None, config: Path | None, as_json: bool) -> int:
    from heliograph.work.reconcile import LOOK_BACK

    app = app_of(config)
    today = day_of(app.clock.now(), app.rules.zone)
    since = a_day(first, today) if first else today - LOOK_BACK
    chosen = [a_meter(app, meter)] if meter else [one.id for one in app.meters]
    pairs = [(report.uplink, one.id) for one in app.meters if one.id in chosen for report in one.reports]
    if not pairs:
        click.echo("Nothing is reported to a platform: give the meters a report_as.", err=True)
        return 0
    rows = _compared(app, pairs, since)
    if as_json:
        print_json(rows)
    else:
        _show(rows)
    return 1 if any(row["differing"] or row["unanswered"] for row in rows) else 0


def _compared(app: App, pairs: list[tuple[str, str]], since: date) -> list[dict[str, Any]]:
    """Asks the running gateway, which has the token and keeps the platform's pace; else asks the platforms itself."""
    from heliograph import control
    from heliograph.work.deliver import Pace
    from heliograph.work.reconcile import compare

    rows: list[dict[str, Any]] = []
    wish = {"first": since.isoformat()}
    bar = click.progressbar(pairs, label="asking", file=sys.stderr) if sys.stderr.isatty() else nullcontext(pairs)
    if control.ask(app.socket, "/api/v1/status") is not None:
        with bar as each:
            for uplink, meter in each:
                path = f"/api/v1/reconcile/{uplink}/{meter}"
                while (answer := control.ask(app.socket, path, wish, timeout=900)) is None or "wait" in answer:
                    if answer is None:
                        raise HeliographError("the gateway stopped in the middle", hint="heliograph status")
                    time.sleep(answer["wait"])  # the platform's limit of requests a minute
                rows += answer["months"]
        return rows
    with app.writer() as store, bar as each:
        uplinks = {uplink.name: uplink for uplink in app.uplinks()}
        paces = {name: Pace(app.clock) for name in uplinks}
        for name, meter in each:
            while not paces[name].open():
                app.clock.sleep(5)
            found = compare(uplinks[name], store, app.clock, paces[name], meter, since)
            rows += [{**asdict(month), "difference_wh": month.difference_wh} for month in found]
        for one in uplinks.values():
            one.close()
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    if not rows:
        click.echo("Nothing was confirmed in that time: heliograph backlog shows what is on its way.")
        return
    print_table(
        ("platform", "meter", "month", "days", "here kWh", "there kWh", "difference Wh"),
        [
            (
                row["uplink"],
                row["meter"],
                row["month"],
                str(row["days"]),
                kwh(row["local_wh"]),
                kwh(row["platform_wh"]),
                str(row["difference_wh"]),
            )
            for row in rows
        ],
        right=("days", "here kWh", "there kWh", "difference Wh"),
    )
    for row in rows:
        if row["differing"]:
            click.echo(f"! {row['uplink']} {row['meter']}: {', '.join(row['differing'])}. heliograph explain METER DAY")
        if row["unanswered"]:
            click.echo(f"! {row['uplink']} {row['meter']} {row['month']}: no answer about {row['unanswered']} days")
    if not any(row["differing"] or row["unanswered"] for row in rows):
        click.echo("The platforms hold what was delivered, to the Wh.")

"""heliograph demo: several days of a site in under a minute; no hardware, no network, no configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import json_option, print_json, print_table
from heliograph.core.figures import kwh

if TYPE_CHECKING:
    from heliograph.rehearsal.demo import View


@click.command("demo", help="Rehearse several days in under a minute, without hardware or network.")
@click.option("--days", default=4, show_default=True, type=click.IntRange(3, 14), help="Local days to rehearse.")
@json_option
def command(days: int, as_json: bool) -> int:
    from heliograph.logs import set_up
    from heliograph.rehearsal import demo

    set_up("error")
    result = _drawn(days, demo) if sys.stderr.isatty() else demo.rehearse(days, lambda _: None)
    if as_json:
        print_json(result.as_json())
        return 0 if result.exact else 1
    click.echo(f"{days} days of two simulated SDM630 (one on a serial line, one over TCP) in {result.seconds:g} s.")
    click.echo(
        f"The platform was away from {result.outage['from']} to {result.outage['to']};"
        f" {result.late_answers} answers on the serial line came late."
    )
    print_table(
        ("meter", "metered kWh", "closed kWh", "delivered kWh", "confirmed kWh", "difference Wh"),
        [
            (
                meter.id,
                kwh(meter.metered_wh),
                kwh(meter.closed_wh),
                kwh(meter.delivered_wh),
                kwh(meter.confirmed_wh),
                str(meter.difference_wh),
            )
            for meter in result.meters
        ],
        right=("metered kWh", "closed kWh", "delivered kWh", "confirmed kWh", "difference Wh"),
    )
    for violation in result.violations:
        click.echo(f"! the platform refused: {violation}")
    if result.exact:
        click.echo("Every watt-hour the meters counted is at the platform, once. Next: heliograph check")
        return 0
    click.echo("This must not happen: the figures above differ.", err=True)
    return 1


def _drawn(days: int, demo: Any) -> Any:
    """The same, with the site drawn on the terminal while it runs."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def picture(view: View) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("meter", "state", "counter kWh", "today kWh", "total kWh"):
            table.add_column(column, justify="left" if column in ("meter", "state") else "right")
        for meter in view.health.meters:
            shown = ["-" if wh is None else kwh(wh) for wh in (meter.index_wh, meter.today_wh, meter.total_wh)]
            table.add_row(meter.id, meter.state, *shown)
        rows = next((uplink.rows for uplink in view.health.uplinks), {})
        queue = ", ".join(f"{count} {state}" for state, count in sorted(rows.items())) or "nothing yet"
        away = Text("AWAY", style="bold red") if view.platform_away else Text("there", style="green")
        return Group(
            Text(f"{demo.local(view.health.at)} in {demo.ZONE.key}", style="bold"),
            ProgressBar(total=1.0, completed=view.share, width=60),
            table,
            Text.assemble("platform is ", away, f", holds {kwh(view.platform_wh)} kWh; days: {queue}"),
            Text(f"late answers on the serial line: {view.late_answers}"),
        )

    with Live(console=Console(stderr=True), refresh_per_second=8, transient=True) as live:
        return demo.rehearse(days, lambda view: live.update(picture(view)))

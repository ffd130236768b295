"""heliograph status: the site at a glance."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from heliograph.cli.options import app_of, config_option, json_option, print_json, print_table
from heliograph.core.figures import kwh


@click.command("status", help="Show the site at a glance; exit 1 when something needs attention.")
@config_option
@json_option
def command(config: Path | None, as_json: bool) -> int:
    from heliograph import control
    from heliograph.core.health import as_json as plain
    from heliograph.work.health import age, health

    app = app_of(config)
    seen: dict[str, Any] | None = control.ask(app.socket, "/api/v1/status")
    if seen is None:
        store = app.reader()
        seen = plain(health(app.config.settings.site.id, app.meters, store, app.clock, app.rules))
        seen["alarms"].insert(0, "The gateway is not running; this is what it stored last. Start it: heliograph run")
    if as_json:
        print_json(seen)
        return 1 if seen["alarms"] else 0
    running = "running" if seen["running"] else "NOT running"
    clock = "clock synchronised" if seen["clock_trusted"] else "CLOCK NOT SYNCHRONISED"
    click.echo(f"{seen['site']}  {running}, {clock}, heliograph {seen['software']}, zone {seen['timezone']}")
    now = datetime.fromisoformat(seen["at"])
    print_table(
        ("meter", "state", "read", "counter kWh", "today kWh", "total kWh", "last day", "kWh"),
        [
            (
                meter["id"],
                meter["state"],
                age(datetime.fromisoformat(meter["last_at"]) if meter["last_at"] else None, now),
                _kwh(meter["index_wh"]),
                _kwh(meter["today_wh"]),
                _kwh(meter["total_wh"]),
                meter["last_day"] or "-",
                _kwh(meter["last_day_wh"]),
            )
            for meter in seen["meters"]
        ],
        right=("counter kWh", "today kWh", "total kWh", "kWh"),
    )
    for meter in seen["meters"]:
        if meter["seam"]:
            click.echo(f"{meter['id']}: {meter['seam']}")
        if meter["error"] and meter["state"] == "ok":  # not yet an alarm: it may be one lost round
            click.echo(f"{meter['id']}: did not answer when it was asked last: {meter['error']}")
    for uplink in seen["uplinks"]:
        rows = ", ".join(f"{count} {state}" for state, count in sorted(uplink["rows"].items())) or "nothing to send yet"
        click.echo(
            f"{uplink['name']}: {rows}"
            + (f" ({uplink['aside']} of them set aside)" if uplink["aside"] else "")
            + (f"; {uplink['trouble']}" if uplink["trouble"] else "")
            + (f"; token until {uplink['token_until'][:16]} UTC" if uplink["token_until"] else "")
        )
        for note in uplink["notes"]:
            click.echo(f"  {note}")
    shown = seen.get("outputs", ())  # a daemon of before an update, which still runs, names none
    for output in shown:
        since = datetime.fromisoformat(output["since"]) if output["since"] else None
        how = f"{'up' if output['up'] else 'down'} since {since:%Y-%m-%d %H:%M} UTC" if since else "not up yet"
        click.echo(
            f"{output['name']}: {output['where']} is {how}"
            + (f"; {output['trouble']}" if output["trouble"] else "")
            + (
                f"; since the start {output['left_out']} live values gave way to newer ones (all are stored)"
                if output["left_out"]
                else ""
            )
        )
    if seen["held"] or seen["missing"]:
        click.echo(f"days: {seen['held']} held, {seen['missing']} missing (heliograph days)")
    proof = seen["proof"]
    if proof["checkpoint_at"]:
        click.echo(
            f"proof: {proof['entries']} entries, signed up to {proof['checkpoint']}"
            f" at {proof['checkpoint_at'][:16]} UTC by key {proof['fingerprint']}"
        )
    for alarm in seen["alarms"]:
        click.echo(f"! {alarm}")
    if not seen["alarms"]:
        silent = any(meter["error"] for meter in seen["meters"])
        lame = any(not output["up"] for output in shown)
        but = [*(["a meter that did not answer last"] if silent else []), *(["an output"] if lame else [])]
        click.echo(f"All right, but for {' and '.join(but)}." if but else "All right.")
    return 1 if seen["alarms"] else 0


def _kwh(wh: int | None) -> str:
    return "-" if wh is None else kwh(wh)


def _given_way(count: int) -> str:
    return f"; since the start {count} live values gave way to newer ones (all are stored)" if count else ""

"""heliograph swap: another counter took over from here."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import a_meter, app_of, carried_out, config_option, confirmed, json_option, print_json
from heliograph.core.errors import UsageError

if TYPE_CHECKING:
    from heliograph.app import App


@click.command(
    "swap",
    help="Record that another counter took over: a new meter, a reset, a rollover. With --map-changed: confirm that "
    "the counter is rightly read in the way that its map and the configuration say now; the running total goes on from "
    "there. With --corrects N: record what seam N should have said, or with --reread that its old way was wrong from "
    "the beginning; the first open day takes the difference.",
)
@click.argument("meter")
@click.option("--old-index", default=None, help="What the old counter showed last, in kWh.")
@click.option("--new-index", default=None, help="What the new counter showed at that moment, in kWh.")
@click.option("--new-serial", default=None, help="Serial number of the new meter.")
@click.option("--map-changed", is_flag=True, help="The same counter, read in another way; status says which.")
@click.option("--corrects", type=int, default=None, help="Number of the seam that was recorded with a wrong index.")
@click.option(
    "--reread", is_flag=True, help="With --corrects: what was booked before, read from its words in the new way."
)
@click.option("--kind", type=click.Choice(["swap", "reset", "rollover"]), default="swap", show_default=True)
@click.option(
    "--at", "at", default=None, help="When: 2026-03-14T15:30 in the site's zone, or with an offset. [default: now]"
)
@click.option("--note", default="", help="Why and by whom; kept with the seam.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@config_option
@json_option
def command(
    meter: str,
    old_index: str | None,
    new_index: str | None,
    new_serial: str | None,
    map_changed: bool,
    corrects: int | None,
    reread: bool,
    kind: str,
    at: str | None,
    note: str,
    yes: bool,
    config: Path | None,
    as_json: bool,
) -> int:
    app = app_of(config)
    name = a_meter(app, meter)
    if map_changed:
        if {at, old_index, new_index, new_serial, corrects} != {None} or kind != "swap":
            raise UsageError(
                "with --map-changed moment and counters are taken from what was read",
                hint="Give --note only. For another meter leave --map-changed away: that confirms its map as well.",
            )
        return _confirm(app, name, note, yes=yes, as_json=as_json)
    if reread:
        if corrects is None or {at, old_index, new_index, new_serial} != {None} or kind != "swap":
            raise UsageError(
                "--reread takes the counters from what is stored",
                hint="Give --corrects N and --note with it, N as in heliograph status.",
            )
        return _correct(app, name, {"corrects": corrects, "reread": True, "note": note}, yes=yes, as_json=as_json)
    if old_index is None or new_index is None:
        raise UsageError(
            "what did both counters show?",
            hint="Give --old-index and --new-index in kWh; --map-changed where only map or settings changed.",
        )
    if corrects is not None:
        if at is not None or new_serial is not None or kind != "swap":
            raise UsageError(
                "a correction keeps the moment, the kind and the serial numbers of its seam",
                hint="With --corrects give --old-index, --new-index and --note only.",
            )
        wish: dict[str, Any] = {"corrects": corrects, "old_wh": _wh(old_index), "new_wh": _wh(new_index), "note": note}
        return _correct(app, name, wish, yes=yes, as_json=as_json)
    wish = {
        "kind": kind,
        "at": _moment(at, app.rules.zone).isoformat() if at else app.clock.now().isoformat(),
        "old_wh": _wh(old_index),
        "new_wh": _wh(new_index),
        "new_serial": new_serial,
        "note": note,
    }
    planned = carried_out(app, name, "seam", {**wish, "dry": True})
    if not yes:
        click.echo(f"{name}: {planned['seam']}; it settles {planned['readings']} doubtful readings.", err=True)
    confirmed("A seam stays for ever. Record it?", yes=yes)
    done = carried_out(app, name, "seam", {**wish, "dry": False})
    if as_json:
        print_json(done)
    else:
        click.echo(
            f"{name}: {done['seam']}. Recorded as seam {done['id']}; the running total goes on. See: heliograph status"
        )
    return 0


def _confirm(app: App, name: str, note: str, *, yes: bool, as_json: bool) -> int:
    planned = carried_out(app, name, "map-changed", {"note": note, "dry": True})
    if not yes:
        click.echo(f"{name}: {planned['seam']}", err=True)
        click.echo(f"  was: {planned['was']}\n  is:  {planned['is']}", err=True)
        click.echo(f"  {planned['between']}; it settles {planned['readings']} doubtful readings.", err=True)
        click.echo("  Days that are closed stay as they are, whatever they were read with.", err=True)
    confirmed("Compare with the display (heliograph read). A seam stays for ever. Record it?", yes=yes)
    done = carried_out(app, name, "map-changed", {"note": note, "dry": False})
    if as_json:
        print_json(done)
    else:
        click.echo(
            f"{name}: {done['seam']}; {done['between']}. Recorded as seam {done['id']}; the running total goes on."
            " See: heliograph status"
        )
        click.echo(
            f"Were the days before read wrongly? Then: heliograph swap {name} --corrects {done['id']} --reread --note"
            ' "why"'
        )
    return 0


def _correct(app: App, name: str, wish: dict[str, Any], *, yes: bool, as_json: bool) -> int:
    planned = carried_out(app, name, "correction", {**wish, "dry": True})
    if not yes:
        if planned["because"]:
            click.echo(f"{name}: {planned['because']}.", err=True)
        click.echo(
            f"{name}: {planned['seam']}; closed days stay, and what is counted from {planned['from']} on takes it.",
            err=True,
        )
    confirmed("A correction stays for ever. Record it?", yes=yes)
    done = carried_out(app, name, "correction", {**wish, "dry": False})
    if as_json:
        print_json(done)
    else:
        click.echo(f"{name}: {done['seam']}. Recorded as seam {done['id']}. See: heliograph days {name}")
    return 0


def _wh(text: str) -> int:
    try:
        number = Decimal(text.replace(",", ".")) * 1000
    except InvalidOperation as error:
        raise UsageError(f"{text} is not a number of kWh", hint="Write 41230.7") from error
    if number < 0 or number != int(number):
        raise UsageError(f"{text} kWh is not a counter in whole Wh", hint="Write at most three decimals.")
    return int(number)


def _moment(text: str, zone: object) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text} is not a moment", hint="Write 2026-03-14T15:30") from error
    return (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)  # type: ignore[arg-type]  # the site's ZoneInfo

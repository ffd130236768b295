"""heliograph backlog: what no platform has confirmed yet, why, since when, and what a person can do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.explain_words import tried
from heliograph.cli.options import (
    a_day,
    a_meter,
    app_of,
    carried_out,
    config_option,
    confirmed,
    json_option,
    one_of,
    print_json,
    print_table,
)
from heliograph.core import durations
from heliograph.core.daily import day_of
from heliograph.core.delivery import BY_PERSON, SETTLED, advice, filled
from heliograph.core.figures import kwh
from heliograph.work.change import waiting as changed
from heliograph.work.decide import waiting

if TYPE_CHECKING:
    from datetime import datetime

HELP = """What no platform has confirmed yet, why, since when, and what to do.

\b
  heliograph backlog                            # all of it; exit 1 when something waits for a person
  heliograph backlog roof 2026-03-14            # all that was tried with a day
  heliograph backlog retry roof 2026-03-14 --uplink redex
  heliograph backlog set-aside roof 2026-03-14..2026-03-16 --because "the platform holds an older reading"
"""


class _Backlog(click.Group):
    """Shows the backlog where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group("backlog", cls=_Backlog, help=HELP)
def command() -> None:
    """The group does nothing by itself."""


@command.command("show", help="List what waits; with a meter, only its days; with a day, all that was tried with it.")
@click.argument("meter", required=False)
@click.argument("day", required=False)
@click.option("--uplink", default=None, help="Only this platform.")
@click.option("--limit", default=40, show_default=True, help="Rows shown on a terminal.")
@config_option
@json_option
def show(meter: str | None, day: str | None, uplink: str | None, limit: int, config: Path | None, as_json: bool) -> int:
    app = app_of(config)
    store, now = app.reader(), app.clock.now()
    if meter is not None:
        meter = one_of(store.readings.meters(), meter)
    which = a_day(day, day_of(now, app.rules.zone)) if day is not None else None
    rows, blocked = waiting(app.meters, store, uplink, meter, which, now)
    waits = any(row["state"] in ("rejected", "held") and row["rule"] not in SETTLED for row in rows)
    if as_json:
        print_json(rows)
        return 1 if waits else 0
    unconfirmed = changed(app.meters, store, meter)
    for line in unconfirmed:
        click.echo(f"! {line}", err=True)
    if not rows:
        click.echo("Nothing waits: every closed day is confirmed.")
        return 1 if unconfirmed else 0
    print_table(
        ("uplink", "meter", "day", "kWh", "state", "tries", "since", "why", "next"),
        [
            (
                row["uplink"],
                row["meter"],
                str(row["day"]),
                kwh(row["period_wh"]),
                "set aside" if row["aside"] else row["state"],
                str(row["attempt"]),
                durations.shown(now - row["since"]) + " ago",
                _why(row),
                _next(row, now),
            )
            for row in rows[:limit]
        ],
        right=("kWh", "tries"),
    )
    if len(rows) > limit:
        click.echo(f"... and {len(rows) - limit} more: heliograph backlog --limit {len(rows)}")
    if day is not None:
        for row in rows:
            click.echo(f"{row['uplink']} as {row['remote_id']}, what was tried:")
            for one in row["attempts"]:
                click.echo(f"  {tried(one)}")
    for device in blocked:
        click.echo(f"! {device}. {device.todo}")
    return 1 if waits or unconfirmed else 0


def _why(row: Mapping[str, Any]) -> str:
    words = [f"{row['rule']} {row['answer']}".strip()]
    if row["behind"] is not None:
        words.append(f"waits behind {row['behind']}")
    elif row["after"] is not None:
        words.append(f"waits behind {row['after']}")
    return "; ".join(word for word in words if word) or "waits for its turn"


def _next(row: Mapping[str, Any], now: datetime) -> str:
    which = (row["meter"], str(row["day"]), row["uplink"])
    if row["rule"] == BY_PERSON:
        return f"nothing, or to undo it: {filled('heliograph backlog retry METER DAY', *which)}"
    if row["rule"] in SETTLED:
        return "nothing"
    if row["state"] in ("rejected", "held"):
        return advice(row["rule"], row["remedy"], *which)
    if row["state"] == "confirmed":
        return "nothing"
    if row["behind"] is not None:
        return f"when {row['behind']} is decided"
    if row["remedy"]:
        return filled(row["remedy"], *which)
    if row["after"] is not None:
        return f"after {row['after']}, which is not through yet"
    if row["due"] > now:
        return f"at {row['due']:%Y-%m-%d %H:%M} UTC"
    if row["joins"]:
        return "after the days before it, or together with the next day that has energy or fits"
    return "with the next round"


@command.command("retry")
@click.argument("meter")
@click.argument("days")
@click.option("--uplink", default=None, help="Only this platform.")
@click.option("--as-history", is_flag=True, help="D-REC: send them as History, of the time before the registration.")
@click.option("--not-there", is_flag=True, help="Where a platform cannot be asked: you looked, and it holds nothing.")
@click.option("--because", default="", help="Why, and who says so; kept with the decision.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@config_option
@json_option
def retry(
    meter: str,
    days: str,
    uplink: str | None,
    as_history: bool,
    not_there: bool,
    because: str,
    yes: bool,
    config: Path | None,
    as_json: bool,
) -> int:
    """Try rejected or held days again: DAYS is 2026-03-14 or 2026-03-14..2026-03-16.

    What was sent before is read back first. What may be there already is never sent again on a wish.
    """
    wish = {"uplink": uplink, "as_history": as_history, "not_there": not_there, "because": because}
    return _decide("retry", meter, days, wish, "Try again?", config, yes=yes, as_json=as_json)


@command.command("set-aside")
@click.argument("meter")
@click.argument("days")
@click.option("--uplink", default=None, help="Only this platform.")
@click.option("--because", default="", help="Why, and who says so; kept with the decision.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@config_option
@json_option
def set_aside(
    meter: str, days: str, uplink: str | None, because: str, yes: bool, config: Path | None, as_json: bool
) -> int:
    """Let days go that a platform does not take: DAYS is 2026-03-14 or 2026-03-14..2026-03-16.

    They are not delivered, and stop no later day. Without --uplink these are only days that a platform has refused or
    holds. `retry` undoes it, as long as no later day of the device was sent
    where order is the rule.
    """
    wish = {"uplink": uplink, "because": because}
    return _decide("set-aside", meter, days, wish, "Set aside?", config, yes=yes, as_json=as_json)


def _decide(
    what: str,
    meter: str,
    days: str,
    wish: Mapping[str, Any],
    question: str,
    config: Path | None,
    *,
    yes: bool,
    as_json: bool,
) -> int:
    app = app_of(config)
    name, today = a_meter(app, meter), day_of(app.clock.now(), app.rules.zone)
    first, _, last = days.partition("..")
    named = {**wish, "first": str(a_day(first, today)), "last": str(a_day(last or first, today))}
    planned = carried_out(app, name, what, {**named, "dry": True})
    if not yes:
        click.echo("\n".join(_planned(name, planned["days"])), err=True)
    confirmed(question, yes=yes)
    done = carried_out(app, name, what, {**named, "dry": False})
    if as_json:
        print_json(done)
    else:
        count = len(done["days"])
        click.echo(f"{name}: {what}, {count} day{'s' if count != 1 else ''}. See: heliograph backlog {name}")
    return 0


def _planned(meter: str, days: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in days:
        now = f"{one['state']} {one['rule']}".strip()
        yield f"{meter} {one['day']} at {one['uplink']}: {one['period_wh']:,} Wh, {now}: {one['how']}"
    yield f"In all {sum(one['period_wh'] for one in days):,} Wh."

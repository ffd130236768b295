"""heliograph explain METER DAY: where a day's figure comes from, back to the register words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from heliograph.cli.options import a_day, a_meter, app_of, config_option, json_option, print_json
from heliograph.core.daily import day_of
from heliograph.core.figures import kwh


@click.command("explain", help="Show where a day's figure comes from. DAY is 2026-03-14, today or yesterday.")
@click.argument("meter")
@click.argument("day")
@config_option
@json_option
def command(meter: str, day: str, config: Path | None, as_json: bool) -> int:
    from heliograph.work.count_polls import covered
    from heliograph.work.explain import explain

    app = app_of(config)
    name = a_meter(app, meter)
    which = a_day(day, day_of(app.clock.now(), app.rules.zone))
    one, store = next(one for one in app.meters if one.id == name), app.reader()
    found = {**explain(one, which, store), "coverage": covered(one, which, store, app.rules, app.clock.now())}
    if as_json:
        print_json(found)
        return 0 if found["state"] == "closed" else 1
    if found["state"] != "closed":
        reason = found["reason"] or "it is closed after its midnight, once the meter was read again"
        click.echo(f"{name} {which}: {found['state']}. {reason}")
        _coverage(found["coverage"])
        return 1
    share = f"  ({kwh(found['estimated_wh'])} kWh of it an estimated split)" if found["estimated_split"] else ""
    click.echo(f"{name}  {which}  {kwh(found['period_wh'])} kWh{share}")
    click.echo(f"  {found['formula']}")
    click.echo(f"  {found['total_formula']}")
    click.echo(f"  closed {found['closed_at']:%Y-%m-%d %H:%M:%S} UTC by heliograph {found['software']}")
    if found["serial"]:
        click.echo(f"  meter serial {found['serial']}")
    for title, key in (("start", "opening"), ("end", "closing")):
        _border(title, found[key])
    for text in found["recovered"]:
        click.echo(f"  recovered after a restore: {text}")
    for seam in found["seams"]:
        click.echo(f"  seam: {seam}")
    samples = found["samples"]
    gap = f", longest gap {samples['longest_gap_s']:.0f} s" if samples["longest_gap_s"] is not None else ""
    click.echo(f"  samples: {samples['stored']} stored, {samples['good']} good{gap}")
    _coverage(found["coverage"])
    for out in samples["excluded"]:
        index = "-" if out["index_wh"] is None else kwh(out["index_wh"])
        click.echo(f"    excluded {out['at']:%H:%M:%S} UTC, counter {index} kWh: {out['why']}")
    if not found["submissions"]:
        click.echo("  reports to nobody")
    for row in found["submissions"]:
        sent = f", sent {row['claimed_at']:%Y-%m-%d %H:%M:%S} UTC to {row['path']}" if row["claimed_at"] else ""
        process = f", process {row['process_id']}" if row["process_id"] else ""
        click.echo(
            f"  {row['uplink']} as {row['remote_id']}: {row['state']}{sent}{process} {row['rule']} "
            f"{row['answer']}".rstrip()
        )
    return 0


def _coverage(coverage: dict[str, Any] | None) -> None:
    if coverage is None:
        return
    bad = "".join(f", {number} {name}" for name, number in coverage["bad"].items())
    away = f", {coverage['not_asked']} not asked" if coverage["not_asked"] else ""
    lost = f", {coverage['unstored']} not stored" if coverage["unstored"] else ""
    click.echo(f"  polls: {coverage['expected']} expected, {coverage['good']} good{bad}{away}{lost}")
    for gap in coverage["gaps"]:
        click.echo(f"    nothing from {gap['from']:%H:%M:%S} to {gap['to']:%H:%M:%S} UTC: {gap['why']}")


def _border(title: str, border: dict[str, Any]) -> None:
    click.echo(
        f"  {title}: {border['at']:%Y-%m-%d %H:%M:%S} UTC, counter {kwh(border['index_wh'])} kWh: {border['how']}"
    )
    for label, reading in (("read", border["before"]), ("then", border["after"])):
        if reading is None:
            continue
        trust = "clock synchronised" if reading["clock_trusted"] else "clock not trusted"
        click.echo(
            f"    {label} {reading['at']:%Y-%m-%d %H:%M:%S} UTC ({trust}, boot {reading['boot'][:8]}"
            f" + {reading['since_boot_s']:.0f} s), {reading['source']}, map {reading['map_digest'][:12]}"
        )
        click.echo(f"      words {' '.join(reading['words'])}")
        if reading["decoding"]:
            click.echo(f"      {reading['decoding']}")

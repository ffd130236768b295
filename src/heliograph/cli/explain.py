"""heliograph explain METER DAY: where a day's figure comes from, back to the register words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from heliograph.cli.explain_words import READ, answer, bounds, coverage, proof, runs, serial, tried, utc
from heliograph.cli.options import a_day, config_option, json_option, one_of, print_json
from heliograph.core.daily import day_of
from heliograph.core.errors import UsageError
from heliograph.core.figures import kwh

if TYPE_CHECKING:
    from heliograph.work.explain import Setting

HELP = """Show where a day's figure comes from. DAY is 2026-03-14, today or yesterday.

Everything is taken from the store: the meter need not be in the configuration any more, nor its map the same.
Exit 1 when the day has no figure, or when a number does not follow from the stored ones.

\b
  heliograph explain roof 2026-03-14
  heliograph explain roof yesterday --html roof.html      # one page to print or to hand over
  heliograph explain roof 2026-03-14 --data-dir ./copy    # an auditor's copy, without any configuration
"""


@click.command("explain", help=HELP)
@click.argument("meter")
@click.argument("day")
@click.option("--html", "html", is_flag=False, flag_value=Path("-"), type=click.Path(path_type=Path, dir_okay=False),
              metavar="[FILE]", help="A printable page with the day's curve; to stdout without FILE.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False),
              help="The store itself, where there is no configuration.")  # fmt: skip
@config_option
@json_option
def command(meter: str, day: str, html: Path | None, data_dir: Path | None, config: Path | None, as_json: bool) -> int:
    from heliograph import app, library
    from heliograph.clock import SystemClock
    from heliograph.work.explain import explain

    if html is not None and as_json:
        raise UsageError("--html and --json are two answers", hint="Ask for one of them.")
    folder, setting = (data_dir, None) if data_dir is not None else _configured(config, meter)
    store, now = app.reader(folder), SystemClock().now()
    name = one_of(store.readings.meters(), meter)
    zone = ZoneInfo((store.evidence.site() or {"timezone": "UTC"})["timezone"])
    which = a_day(day, day_of(now, zone))
    found = explain(name, which, store, now, library.from_texts, setting)
    if as_json:
        print_json(found)
    elif html is not None:
        from heliograph.cli.explain_page import page
        from heliograph.work.explain import curve

        _deliver(page(found, curve(name, which, store), now), html)
    else:
        click.echo("\n".join(lines(found)))
    store.close()
    return 0 if found["state"] == "closed" and all(check["ok"] for check in found["checks"]) else 1


def _configured(config: Path | None, meter: str) -> tuple[Path, Setting | None]:
    """Where the store is, and what is said about the meter today; its map is not looked for."""
    from heliograph import settings
    from heliograph.work.explain import Setting

    path: Path = config or click.get_current_context().find_root().obj
    site = settings.load(path).settings
    one = next((one for one in site.meter if one.id == meter), None)
    setting = Setting(one.order, {name: Decimal(str(f)) for name, f in one.factors.items()}) if one else None
    return site.site.data_dir, setting


def _deliver(text: str, file: Path) -> None:
    if str(file) == "-":
        click.echo(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint="Name another file.") from error
    click.echo(f"{file}: one page, to be opened in any browser and printed.")


# -- as text ----------------------------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """From top to bottom: the figure, its borders down to the words, what was left out, where it went."""
    zone = ZoneInfo(found["timezone"])
    figure = f"{kwh(found['period_wh'])} kWh" if found["state"] == "closed" else found["state"]
    split = f"  ({kwh(found['estimated_wh'])} kWh of it an estimated split)" if found["estimated_split"] else ""
    yield f"{found['meter']}  {found['day']:%a %Y-%m-%d}  {figure}{split}"
    yield f"  site {found['site']}, {found['timezone']}: {found['hours']:g} h, {_at(found['starts'], zone)} to"
    yield f"    {_at(found['ends'], zone)}"
    yield f"  production is {found['production']}; meter serial {serial(found)}"
    if found["state"] == "closed":
        yield f"  closed {utc(found['closed_at'])} by heliograph {found['software']}"
        if held := found["held"]:
            yield f"  it was held since {utc(held['since'])}: {held['reason']}"
        yield from ("", "The figure", f"  {found['formula']}", f"  {found['total_formula']}")
        yield f"  {found['since_formula']}"
        for title, key in (("Start of the day", "opening"), ("End of the day", "closing")):
            yield ""
            yield from _border(title, found[key], zone)
    else:
        yield from _without_figure(found, zone)
    if found["state"] != "none":
        yield from _on_the_way(found, zone)
    if found["state"] == "closed":
        yield from _submitted(found)
    yield from _evidence(found)


def _at(at: datetime, zone: ZoneInfo) -> str:
    """A moment as the auditor and as the people of the site know it."""
    local = at.astimezone(zone)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({local:%d %b %H:%M:%S} local)"


def _border(title: str, border: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    yield f"{title}: counter {kwh(border['index_wh'])} kWh, running total {kwh(border['total_wh'])} kWh"
    yield f"  {_at(border['at'], zone)}: {border['how']}"
    yield f"  {border['arithmetic']}"
    yield from _reading("read", border["before"], zone)
    if border["after"] is not None:
        yield from _reading("then", border["after"], zone)


def _reading(label: str, reading: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    yield f"  {label} {_at(reading['at'], zone)}; {reading['clock']}"
    yield f"    boot {reading['boot']} + {reading['since_boot_s']:.3f} s, heliograph {reading['software']}"
    yield f"    map {reading['map'] or 'not known'}, digest {reading['map_digest'] or '-'}"
    if reading["doubt"]:
        yield f"    it was doubted, and a seam explains it: {reading['doubt']}"
    for step in reading["steps"]:
        yield f"    {step['step']:11} {step['value']:>18}   {step['how']}"


def _without_figure(found: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    yield from ("", "Why there is no figure", f"  {found['reason']}")
    if found["todo"]:
        yield f"  Next: {found['todo']}"
    if found["state"] == "none":
        return
    yield from ("", "What is known")
    for title, key in (("the last border before it", "border_before"), ("the first border after it", "border_after")):
        if (border := found[key]) is not None:
            yield (
                f"  {title}: {utc(border['at'])}, counter {kwh(border['index_wh'])} kWh,"
                f" running total {kwh(border['total_wh'])} kWh"
            )
    before, after = found["border_before"], found["border_after"]
    if before is not None and after is not None:
        moved = after["total_wh"] - before["total_wh"]
        yield f"  between them {kwh(moved)} kWh were measured; they are in the running total, whatever day they go to"
    yield f"  {bounds(found)}"
    for label, key in READ:
        if (reading := found[key]) is not None:
            yield from _reading(label, reading, zone)


def _on_the_way(found: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    samples = found["samples"]
    yield from ("", "Samples of the day")
    gap = f", longest gap {samples['longest_gap_s']:.0f} s" if samples["longest_gap_s"] is not None else ""
    yield f"  {samples['stored']} stored, {samples['good']} good{gap}"
    yield from (f"  {line}" for line in coverage(found["coverage"]))
    if found["state"] == "open" and found["coverage"]:
        yield "  (a running gateway writes these counts down every five minutes)"
    if samples["thinned"]:
        yield f"  older samples were thinned {samples['thinned']} since; borders rest on none of those"
    for run in runs(samples["excluded"]):
        yield f"  {run.word} {run.when} UTC, counter {run.counter} kWh, words {run.words}: {run.why}"
        if run.settled_by:
            yield f"    explained by the {run.settled_by}"
    if found["seams"]:
        yield from ("", "Seams up to here")
    for seam in found["seams"]:
        day = "on this day" if seam["on_this_day"] else "before it"
        yield f"  {seam['text']} ({day}): from there on {seam['offset_wh']:+,} Wh are added to the device's counter"
        if seam["was"] and seam["is"]:
            yield f"    was {seam['was']['text']} [{seam['was']['digest'][:8]}]"
            yield f"    is  {seam['is']['text']} [{seam['is']['digest'][:8]}]"
        if seam["recorded"]:
            yield f"    recorded {utc(seam['recorded'])}{': ' * bool(seam['note'])}{seam['note']}"
    if found["events"]:
        yield from ("", "Noted about this day")
    for event in found["events"]:
        yield f"  {_at(event['at'], zone)}, {event['kind']}: {event['text']}"


def _submitted(found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "Submission")
    if not found["submissions"]:
        yield "  reports to nobody"
    for one in found["submissions"]:
        yield f"  {one['uplink']} as {one['remote_id']}: {one['state']}"
        if one["claim"] is not None:
            attempt = f", attempt {one['attempt']}" if one["attempt"] > 1 else ""
            yield f"    sent {utc(one['claimed_at'])} to {one['path']}{attempt}"
            yield f"    body of {one['body_bytes']:,} bytes, sha256 {one['body_sha256']}"
            yield f"    {one['excerpt'] or 'this day is not found in it'}"
        if one["together"]:
            yield f"    it spoke for {', '.join(map(str, one['together']))} as well"
        for figure in one["figures"]:
            shown = "-" if figure["wh"] is None else f"{figure['wh']:,} Wh"
            yield f"    {figure['key']} {figure['sent']} = {shown}: {figure['is'] or 'NONE OF OUR FIGURES'}"
        if one["rule"] or one["answer"] or one["process_id"]:
            yield f"    answer {utc(one['changed'])}: {answer(one)}"
        if one["remedy"] and one["state"] not in ("accepted", "confirmed"):
            yield f"    next: {one['remedy']}"
        if one["attempts"]:
            yield "    what was tried"
        yield from (f"      {tried(each)}" for each in one["attempts"])


def _evidence(found: Mapping[str, Any]) -> Iterator[str]:
    if found["maps"]:
        yield from ("", "Maps, as they were stored when they were in use")
    for map in found["maps"]:
        version = f"{map['version']}, {map['status']}" if map["version"] else "cannot be made again"
        yield f"  {map['name'] or 'unknown'} ({version}), digest {map['digest']}"
        yield f"    {map['source']}"
    if found["state"] == "closed":
        yield from ("", proof(found["proof"]))
    if found["checks"]:
        wrong = [check for check in found["checks"] if not check["ok"]]
        yield ""
        if wrong:
            yield f"{len(wrong)} of {len(found['checks'])} checks FAIL, so this explanation cannot be relied on:"
            yield from (f"  {check['what']}" for check in wrong)
        else:
            yield f"All {len(found['checks'])} numbers that were reckoned anew agree with the stored ones."

"""heliograph explain METER DAY: where a day's figure comes from, back to the register words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

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
        yield f"  closed {_utc(found['closed_at'])} by heliograph {found['software']}"
        if held := found["held"]:
            yield f"  it was held since {_utc(held['since'])}: {held['reason']}"
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


def serial(found: Mapping[str, Any]) -> str:
    start, end = found["serial_at_start"], found["serial"]
    if start == end:
        return str(end or "not known")
    return f"{start or 'not known'}, and {end} at the end of the day"


def _at(at: datetime, zone: ZoneInfo) -> str:
    """A moment as the auditor and as the people of the site know it."""
    local = at.astimezone(zone)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({local:%d %b %H:%M:%S} local)"


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


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
                f"  {title}: {_utc(border['at'])}, counter {kwh(border['index_wh'])} kWh,"
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


READ = (
    ("last read before it", "read_before"),
    ("first read on it", "first_within"),
    ("last read on it", "last_within"),
    ("first read after it", "read_after"),
)
"""Of a day without a figure: which readings are shown."""


def bounds(found: Mapping[str, Any]) -> str:
    """What a day without a figure may have been."""
    least, most = found["bounds"]["at_least_wh"], found["bounds"]["at_most_wh"]
    if most is None:
        return f"so far {kwh(least)} kWh were counted between readings of this day"
    return f"by these readings the day was at least {kwh(least)} kWh and at most {kwh(most)} kWh"


def _on_the_way(found: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    samples = found["samples"]
    yield from ("", "Samples of the day")
    gap = f", longest gap {samples['longest_gap_s']:.0f} s" if samples["longest_gap_s"] is not None else ""
    yield f"  {samples['stored']} stored, {samples['good']} good{gap}"
    yield from (f"  {line}" for line in coverage(found["coverage"]))
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
        if seam["recorded"]:
            yield f"    recorded {_utc(seam['recorded'])}{': ' * bool(seam['note'])}{seam['note']}"
    if found["events"]:
        yield from ("", "Noted about this day")
    for event in found["events"]:
        yield f"  {_at(event['at'], zone)}, {event['kind']}: {event['text']}"


def coverage(told: Mapping[str, Any] | None) -> Iterator[str]:
    """How well the meter was read on the day."""
    if told is None:
        yield "polls were not counted on this day"
        return
    bad = "".join(f", {number} {name}" for name, number in told["bad"].items())
    away = f", {told['not_asked']} not asked" if told["not_asked"] else ""
    lost = f", {told['unstored']} not stored" if told["unstored"] else ""
    yield f"polls: {told['expected']} expected, {told['good']} good{bad}{away}{lost}"
    for gap in told["gaps"]:
        yield f"nothing from {gap['from']:%H:%M:%S} to {gap['to']:%H:%M:%S} UTC: {gap['why']}"


def proof(told: Mapping[str, Any] | None) -> str:
    """Where the day stands in the hash chain."""
    if told is None:
        return "This day has no entry in the hash chain."
    entry = f"Entry {told['entry']} of the hash chain, {told['hash']}"
    if told["carried"]:
        entry += ", made later for what an older version had closed"
    if told["signed_at"] is None:
        return f"{entry}; not signed yet."
    return f"{entry}; signed with entry {told['checkpoint']} at {_utc(told['signed_at'])} by {told['fingerprint']}."


@dataclass(frozen=True, slots=True)
class Run:
    """Samples in a row that were doubted for the same reason."""

    when: str
    counter: str
    words: str
    why: str
    settled_by: str

    @property
    def word(self) -> str:
        return "settled" if self.settled_by else "excluded"


def runs(excluded: Sequence[Mapping[str, Any]]) -> Iterator[Run]:
    """A doubt that lasts is told once, with its first and last reading."""
    for (why, settled_by), group in groupby(excluded, key=lambda one: (one["why"], one["settled_by"])):
        first, *rest = list(group)
        ends = [first, *rest[-1:]]
        counters = ["-" if one["index_wh"] is None else kwh(one["index_wh"]) for one in ends]
        when = " to ".join(f"{one['at']:%H:%M:%S}" for one in ends)
        times = f" ({len(rest) + 1} readings)" if rest else ""
        words = " to ".join(" ".join(one["words"]) or "none" for one in ends)
        yield Run(when + times, " to ".join(counters), words, why, settled_by)


def _submitted(found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "Submission")
    if not found["submissions"]:
        yield "  reports to nobody"
    for one in found["submissions"]:
        yield f"  {one['uplink']} as {one['remote_id']}: {one['state']}"
        if one["claim"] is not None:
            attempt = f", attempt {one['attempt']}" if one["attempt"] > 1 else ""
            yield f"    sent {_utc(one['claimed_at'])} to {one['path']}{attempt}"
            yield f"    body of {one['body_bytes']:,} bytes, sha256 {one['body_sha256']}"
            yield f"    {one['excerpt'] or 'this day is not found in it'}"
        if one["together"]:
            yield f"    it spoke for {', '.join(map(str, one['together']))} as well"
        for figure in one["figures"]:
            shown = "-" if figure["wh"] is None else f"{figure['wh']:,} Wh"
            yield f"    {figure['key']} {figure['sent']} = {shown}: {figure['is'] or 'NONE OF OUR FIGURES'}"
        if one["rule"] or one["answer"] or one["process_id"]:
            yield f"    answer {_utc(one['changed'])}: {answer(one)}"
        if one["remedy"] and one["state"] not in ("accepted", "confirmed"):
            yield f"    next: {one['remedy']}"


def answer(one: Mapping[str, Any]) -> str:
    """What the platform said and what that means, in one line."""
    process = f"process {one['process_id']}" if one["process_id"] else ""
    rule = f"{one['rule']}: {one['answer']}" if one["answer"] else one["rule"]
    return "; ".join(part for part in (rule, process, STATES[one["state"]]) if part)


STATES = {
    "due": "it waits for its turn",
    "unclear": "it may or may not have arrived, and is asked about before anything is sent again",
    "accepted": "the platform took it, and has not shown it yet",
    "confirmed": "confirmed, for it was read back the same or its process ended well",
    "rejected": "the platform refused it in words that no repetition cures",
    "held": "the platform holds another value, or the account needs a person",
}


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

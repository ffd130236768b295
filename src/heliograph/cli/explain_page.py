"""What `explain` tells as one page to print: no script, nothing fetched, every word from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from heliograph import __version__
from heliograph.cli.explain_words import READ, answer, bounds, coverage, proof, runs, serial, tried, utc
from heliograph.core.figures import kwh
from heliograph.core.readings import Reading
from heliograph.work.explain import longest

Sample = tuple[Reading, int | None, bool]

STYLE = """
@page { size: A4; margin: 14mm 15mm 16mm; }
* { box-sizing: border-box; }
html { background: #eef1f4; }
body { margin: 0 auto; max-width: 210mm; padding: 14mm 15mm; background: #fff; color: #1f2933;
  font: 9.5pt/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
@media print { html { background: #fff; } body { max-width: none; padding: 0; } }
header { display: flex; justify-content: space-between; align-items: flex-end; gap: 8mm;
  border-bottom: 1.5pt solid #1f2933; padding-bottom: 3mm; }
h1 { font-size: 17pt; line-height: 1.2; margin: 0; font-weight: 600; }
h2 { font-size: 11pt; margin: 6.5mm 0 1.5mm; font-weight: 600; break-after: avoid; }
h3 { font-size: 9.5pt; margin: 3mm 0 .5mm; font-weight: 600; break-after: avoid; }
p { margin: .6mm 0; }
.quiet { color: #616e7c; }
.figure { font-size: 21pt; font-weight: 600; white-space: nowrap; line-height: 1.1; text-align: right; }
.figure small { font-size: 11pt; font-weight: 400; }
.mark { display: block; font-size: 9pt; font-weight: 500; color: #8a5a00; }
.bad { color: #b3261e; }
section { break-inside: avoid; }
table { border-collapse: collapse; width: 100%; margin: 1mm 0; }
th { text-align: left; font-weight: 500; color: #616e7c; }
th, td { padding: .7mm 2.5mm .7mm 0; vertical-align: top; border-bottom: .4pt solid #e4e8ec; }
td:last-child, th:last-child { padding-right: 0; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.sum td { border-top: .8pt solid #1f2933; border-bottom: none; font-weight: 600; }
.sums { width: auto; min-width: 62%; }
.sums td:first-child { padding-right: 10mm; }
.chain td:first-child { width: 22mm; color: #616e7c; }
.chain td.n { width: 36mm; padding-right: 4mm; }
.seen td:nth-child(1) { min-width: 34mm; }
.seen td:nth-child(3) { min-width: 27mm; }
code { font: 8.3pt/1.4 ui-monospace, "DejaVu Sans Mono", "Liberation Mono", Consolas, monospace;
  overflow-wrap: anywhere; }
pre { margin: 1mm 0; padding: 1.5mm 2mm; background: #f5f7f9; white-space: pre-wrap; }
svg { display: block; width: 100%; height: auto; margin: 1mm 0; }
svg text { font: 10px system-ui, "Segoe UI", Arial, "Liberation Sans", sans-serif; fill: #52606d; }
footer { margin-top: 7mm; padding-top: 2mm; border-top: .4pt solid #c5cdd5; color: #616e7c; font-size: 8.3pt; }
"""


def page(found: Mapping[str, Any], samples: Sequence[Sample], now: datetime) -> str:
    """The explanation of one day, with its curve."""
    zone = ZoneInfo(found["timezone"])
    title = f"{found['meter']}, {found['day']:%A} {found['day'].day} {found['day']:%B %Y}"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        _head(title, found, zone),
        *(_figure(found) if found["state"] == "closed" else _without_figure(found)),
        *_curve_section(found, samples, zone),
        *(_borders(found, zone) if found["state"] == "closed" else _readings(found, zone)),
        *_on_the_way(found, zone),
        *_submissions(found),
        *_evidence(found),
        f"<footer>Made {utc(now)} by heliograph {escape(__version__)} from the stored rows alone.</footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _head(title: str, found: Mapping[str, Any], zone: ZoneInfo) -> str:
    closed = found["state"] == "closed"
    figure = f"{kwh(found['period_wh'])} <small>kWh</small>" if closed else escape(found["state"])
    if found["estimated_split"]:
        figure += f'<span class="mark">{kwh(found["estimated_wh"])} kWh of it an estimated split</span>'
    about = (
        f"Site {escape(found['site'])}, {escape(found['timezone'])}"
        f"<br>{found['hours']:g} h from {_at(found['starts'], zone)}"
        f"<br>Production is <code>{escape(found['production'])}</code>, meter serial {escape(serial(found))}"
    )
    if closed:
        about += f"<br>Closed {utc(found['closed_at'])} by heliograph {escape(found['software'])}"
    return (
        f'<header><div><h1>{escape(title)}</h1><p class="quiet">{about}</p></div><div class="figure">{figure}</div>'
        "</header>"
    )


def _at(at: datetime, zone: ZoneInfo) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({at.astimezone(zone):%d %b %H:%M:%S} local)"


# -- the figure and its borders ---------------------------------------------------------------------------------------


def _figure(found: Mapping[str, Any]) -> Iterator[str]:
    opening, closing, period = found["opening"], found["closing"], found["period_wh"]
    sums = (
        ("Counter at the end of the day", kwh(closing["index_wh"]), False),
        ("minus counter at its start", kwh(opening["index_wh"]), False),
        ("Production of the day, kWh", kwh(period), True),
        ("Running total at the end of the day before", kwh(opening["total_wh"]), False),
        ("plus this day", kwh(period), False),
        ("Running total, kWh", kwh(found["total_wh"]), True),
    )
    rows = "".join(
        f'<tr{" class=sum" * total}><td>{label}</td><td class="n">{number}</td></tr>' for label, number, total in sums
    )
    held = found["held"]
    yield f'<section><h2>The figure</h2><table class="sums">{rows}</table>'
    yield f'<p class="quiet">{escape(found["since_formula"])}</p>'
    if held is not None:
        yield f'<p class="quiet">It was held since {utc(held["since"])}: {escape(held["reason"])}</p>'
    yield "</section>"


def _borders(found: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    for title, key in (("Start of the day", "opening"), ("End of the day", "closing")):
        border = found[key]
        yield f"<section><h2>{title}: {kwh(border['index_wh'])} kWh</h2>"
        yield f"<p>{_at(border['at'], zone)}: {escape(border['how'])}.</p><p>{escape(border['arithmetic'])}.</p>"
        yield from _reading("Read", border["before"], zone)
        yield "</section>"
        if border["after"] is not None:
            yield "<section>"
            yield from _reading("Then read", border["after"], zone)
            yield "</section>"


def _reading(label: str, reading: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    yield f"<h3>{label} {_at(reading['at'], zone)}</h3>"
    map = f"map {reading['map'] or 'not known'} {reading['map_digest'][:12]}"
    yield (
        f'<p class="quiet">{escape(reading["clock"])}; boot {escape(reading["boot"])} + '
        f"{reading['since_boot_s']:.3f} s; heliograph {escape(reading['software'])}; {escape(map)}</p>"
    )
    if reading["doubt"]:
        yield f"<p>It was doubted, and a seam explains it: {escape(reading['doubt'])}</p>"
    yield _table(
        "chain",
        (),
        (
            (escape(one["step"]), f"<code>{escape(one['value'])}</code>" if one["step"] == "raw words" else
             escape(one["value"]), escape(one["how"]))
            for one in reading["steps"]
        ),
        numbers={1},
    )  # fmt: skip


def _table(
    kind: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: frozenset[int] | set[int]
) -> str:
    """Cells are HTML already; columns in `numbers` are aligned to the right."""

    def cell(tag: str, number: int, text: str) -> str:
        return f"<{tag}{' class=n' * (number in numbers)}>{text}</{tag}>"

    head = "".join(cell("th", number, text) for number, text in enumerate(columns))
    lines = ("".join(cell("td", number, text) for number, text in enumerate(row)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="{kind}">{f"<thead><tr>{head}</tr></thead>" if columns else ""}<tbody>{body}</tbody></table>'


# -- a day without a figure -------------------------------------------------------------------------------------------


def _without_figure(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"<section><h2>Why there is no figure</h2><p>{escape(_sentence(found['reason']))}</p>"
    if found["todo"]:
        yield f"<p><b>Next:</b> {escape(found['todo'])}</p>"
    yield "</section>"
    if found["state"] == "none":
        return
    yield "<section><h2>What is known</h2>"
    before, after = found["border_before"], found["border_after"]
    rows = [
        (label, utc(one["at"]), kwh(one["index_wh"]), kwh(one["total_wh"]))
        for label, one in (("Last border before it", before), ("First border after it", after))
        if one is not None
    ]
    if before is not None and after is not None:
        moved = kwh(after["total_wh"] - before["total_wh"])
        rows.append(("Measured between them, whatever day it goes to", "", moved, moved))
    if rows:
        yield _table("", ("", "", "counter kWh", "total kWh"), rows, numbers={2, 3})
    yield f"<p>{escape(_sentence(bounds(found)))}</p></section>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def _readings(found: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    if found["state"] == "none":
        return
    yield "<h2>Readings around it</h2>"
    for label, key in READ:
        if (reading := found[key]) is not None:
            yield "<section>"
            yield from _reading(f"{label[:1].upper()}{label[1:]},", reading, zone)
            yield "</section>"


# -- on the way -------------------------------------------------------------------------------------------------------


def _on_the_way(found: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    if found["state"] == "none":
        return
    samples = found["samples"]
    gap = f", the longest gap between good ones {samples['longest_gap_s']:,.0f} s" if samples["longest_gap_s"] else ""
    yield f"<section><h2>Samples</h2><p>{samples['stored']} stored, {samples['good']} of them good{gap}.</p>"
    yield f"<p>{'<br>'.join(escape(line) for line in coverage(found['coverage']))}</p>"
    if samples["thinned"]:
        yield f"<p>Older samples were thinned {escape(samples['thinned'])} since; borders rest on none of those.</p>"
    if samples["excluded"]:
        rows = (
            (
                run.when,
                run.counter,
                f"<code>{escape(run.words)}</code>",
                escape(run.why) + (f"<br>Explained by the {escape(run.settled_by)}" if run.settled_by else ""),
            )
            for run in runs(samples["excluded"])
        )
        columns = ("doubted, UTC", "counter kWh", "words", "why it was no base")
        yield _table("seen", columns, rows, numbers={1})
    yield "</section>"
    if found["seams"]:
        seams = (
            (
                f"{seam['at']:%Y-%m-%d %H:%M:%S}",
                escape(seam["kind"]) + (" (on this day)" if seam["on_this_day"] else ""),
                kwh(seam["old_wh"]),
                kwh(seam["new_wh"]),
                f"{seam['offset_wh']:+,}",
                escape(
                    f"serial {seam['old_serial'] or '?'} to {seam['new_serial']}. " * bool(seam["new_serial"])
                    + (f"Was {seam['was']['text']}, is {seam['is']['text']}. " if seam["was"] and seam["is"] else "")
                    + seam["note"]
                ),
            )
            for seam in found["seams"]
        )
        heads = ("at, UTC", "kind", "old kWh", "new kWh", "added Wh", "")
        yield f"<section><h2>Seams up to here</h2>{_table('', heads, seams, numbers={2, 3, 4})}</section>"
    if found["events"]:
        noted = ((_at(one["at"], zone), escape(one["kind"]), escape(one["text"])) for one in found["events"])
        yield f"<section><h2>Noted about this day</h2>{_table('', (), noted, numbers=set())}</section>"


def _submissions(found: Mapping[str, Any]) -> Iterator[str]:
    if found["state"] != "closed":
        return
    yield "<h2>Submission</h2>"
    if not found["submissions"]:
        yield "<p>This meter reports to nobody.</p>"
    for one in found["submissions"]:
        yield f"<section><h3>{escape(one['uplink'])} as {escape(one['remote_id'])}: {escape(one['state'])}</h3>"
        if one["claim"] is not None:
            yield (
                f"<p>Sent {utc(one['claimed_at'])} to <code>{escape(one['path'])}</code>, attempt {one['attempt']};"
                f" a body of {one['body_bytes']:,} bytes, sha256 <code>{one['body_sha256']}</code></p>"
                f"<pre><code>{escape(one['excerpt']) or 'this day is not found in it'}</code></pre>"
            )
        if one["together"]:
            yield f"<p>It spoke for {escape(', '.join(map(str, one['together'])))} as well.</p>"
        if one["figures"]:
            yield _table(
                "",
                ("sent as", "value", "Wh", "which is"),
                (
                    (
                        f"<code>{escape(figure['key'])}</code>",
                        escape(figure["sent"]),
                        "-" if figure["wh"] is None else f"{figure['wh']:,}",
                        escape(figure["is"]) or '<span class="bad">none of our figures</span>',
                    )
                    for figure in one["figures"]
                ),
                numbers={1, 2},
            )
        if one["rule"] or one["answer"] or one["process_id"]:
            yield f"<p>Answer {utc(one['changed'])}: {escape(answer(one))}</p>"
        if one["remedy"] and one["state"] not in ("accepted", "confirmed"):
            yield f"<p><b>Next:</b> {escape(one['remedy'])}</p>"
        if one["attempts"]:
            items = "".join(f"<li>{escape(tried(each))}</li>" for each in one["attempts"])
            yield f'<p class="quiet">What was tried</p><ul class="quiet">{items}</ul>'
        yield "</section>"


def _evidence(found: Mapping[str, Any]) -> Iterator[str]:
    if found["maps"]:
        yield "<section><h2>Maps, as they were stored when they were in use</h2>"
    for map in found["maps"]:
        version = f"{map['version']}, {map['status']}" if map["version"] else "cannot be made again"
        yield (
            f"<p><b>{escape(map['name'] or 'unknown')}</b> ({escape(version)}), digest"
            f" <code>{escape(map['digest'])}</code>"
            f'<br><span class="quiet">{escape(map["source"])}</span></p>'
        )
    if found["maps"]:
        yield "</section>"
    if found["state"] == "closed":
        yield f"<p>{escape(proof(found['proof']))}</p>"
    wrong = [check for check in found["checks"] if not check["ok"]]
    if wrong:
        lines = "".join(f"<li>{escape(check['what'])}</li>" for check in wrong)
        yield (
            f'<section class="bad"><h2>{len(wrong)} of {len(found["checks"])} checks fail</h2>'
            f"<p>This explanation cannot be relied on:</p><ul>{lines}</ul></section>"
        )
    elif found["checks"]:
        yield f"<p>All {len(found['checks'])} numbers that were reckoned anew agree with the stored ones.</p>"


# -- the curve --------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP, _LOW = 42, 46, 26, 226
_BAR = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where a moment, a power and an energy lie; x from the start to the end of the day."""

    start: datetime
    end: datetime
    most_kw: float
    base_wh: int
    most_kwh: float

    def x(self, at: datetime) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * ((at - self.start) / (self.end - self.start)), 1)

    def _y(self, share: float) -> float:
        return round(_LOW - (_LOW - _TOP) * share, 1)

    def kw(self, kw: float) -> float:
        return self._y(kw / self.most_kw)

    def wh(self, wh: int) -> float:
        return self._y((wh - self.base_wh) / 1000 / self.most_kwh)

    def inside(self, wh: int) -> float:
        """The same, but never off the picture: excluded readings may show anything."""
        return min(_LOW - 5.0, max(_TOP + 5.0, self.wh(wh)))


def _curve_section(found: Mapping[str, Any], samples: Sequence[Sample], zone: ZoneInfo) -> Iterator[str]:
    good = [(reading.moment.at, wh) for reading, wh, counts in samples if counts and wh is not None]
    if found["state"] == "none" or len(good) < 2:
        return
    drawn = "".join(_curve(found, samples, good, zone))
    yield f"<section><h2>The day as it was read</h2>{drawn}</section>"


def _curve(
    found: Mapping[str, Any], samples: Sequence[Sample], good: Sequence[tuple[datetime, int]], zone: ZoneInfo
) -> Iterator[str]:
    start, end = found["starts"], found["ends"]
    limit = longest([at for at, _ in good if start <= at <= end])
    gaps = [(a, b) for a, b in pairwise(good) if b[0] - a[0] > limit]
    bars = _bars(good, limit)
    inside = [wh for at, wh in good if start <= at <= end] or [wh for _, wh in good]
    opening, closing = found.get("opening"), found.get("closing")
    base = opening["index_wh"] if opening else inside[0]
    top = closing["index_wh"] if closing else max(_counter_at(end, good), base)
    plot = _Plot(
        start,
        end,
        _nice(max((kw for a, b, kw in bars if b > start and a < end), default=1.0)),
        base,
        _nice((top - base) / 1000),
    )
    legend = [
        ("power, kW", '<rect y="-8" width="16" height="8" fill="#f6d28b"/>'),
        ("counter since the start, kWh", '<path d="M0 -4h16" stroke="#2f6f8f" stroke-width="1.6"/>'),
    ]
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 18}" role="img" aria-label="Power and counter over the day">'
    yield (
        '<defs><pattern id="gap" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0V6" stroke="#9aa5b1" stroke-width="1.4"/></pattern>'
        f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}"'
        f' height="{_LOW - _TOP}"/></clipPath></defs>'
    )
    yield from _axes(plot, zone)
    yield '<g clip-path="url(#plot)">'
    for (a, _), (b, _) in gaps:
        yield _box(plot, a, b, _TOP, 'fill="url(#gap)" opacity=".35"')
    steps = "".join(f"M{plot.x(a)} {_LOW}V{plot.kw(kw)}H{plot.x(b)}V{_LOW}" for a, b, kw in bars if b - a <= limit)
    yield f'<path d="{steps}" fill="#f6d28b" stroke="#f6d28b" stroke-width=".6"/>'
    for a, b, kw in bars:
        if b - a > limit:
            yield _box(plot, a, b, plot.kw(kw), 'fill="none" stroke="#c98a1b" stroke-dasharray="3 2"')
    for over, style in ((False, ""), (True, ' stroke-dasharray="2 3"')):
        line = "".join(
            f"M{plot.x(a[0])} {plot.wh(a[1])}L{plot.x(b[0])} {plot.wh(b[1])}"
            for a, b in pairwise(good)
            if (b[0] - a[0] > limit) == over
        )
        yield f'<path d="{line}" fill="none" stroke="#2f6f8f" stroke-width="1.6" stroke-linecap="round"{style}/>'
    yield "</g>"
    if gaps:
        hatched = '<rect y="-8" width="16" height="8" fill="url(#gap)" stroke="#c98a1b" stroke-dasharray="3 2"/>'
        legend.append(("no reading", hatched))
    for seam in found["seams"]:
        if seam["on_this_day"]:
            x, kind = plot.x(seam["at"]), escape(seam["kind"])
            yield f'<path d="M{x} {_TOP}V{_LOW}" stroke="#6b4fa0" stroke-dasharray="5 3"/>'
            yield f'<text x="{x}" y="{_TOP - 3}" text-anchor="middle" style="fill:#6b4fa0">{kind}</text>'
    yield from _edges(found, plot, zone)
    doubted = [one for one in samples if one[0].doubt or not one[2]]
    for reading, wh, counts in doubted:
        if start <= reading.moment.at <= end:
            x, y = plot.x(reading.moment.at), plot.inside(wh if wh is not None else base)
            yield _settled(x, y) if counts else _cross(x, y)
    if any(counts for *_, counts in doubted):
        legend.append(("doubted, then explained", _settled(8, -4)))
    if any(not counts for *_, counts in doubted):
        legend.append(("excluded", _cross(8, -4)))
    at = _LEFT
    for text, shape in legend:
        yield f'<g transform="translate({at} {_HEIGHT + 13})">{shape}<text x="21">{escape(text)}</text></g>'
        at += 32 + round(len(text) * 5.6)
    yield "</svg>"


def _counter_at(at: datetime, good: Sequence[tuple[datetime, int]]) -> int:
    """Where the drawn line is at that moment."""
    for (a, before), (b, after) in pairwise(good):
        if a <= at <= b:
            return before + (after - before) * (at - a) // (b - a)
    return good[-1][1]


def _bars(good: Sequence[tuple[datetime, int]], limit: timedelta) -> list[tuple[datetime, datetime, float]]:
    """Mean power in kW over at least five minutes, so that the counter's own steps do not show as peaks."""
    found: list[tuple[datetime, datetime, float]] = []
    since, base = good[0]
    for number, (at, wh) in enumerate(good[1:], 1):
        ahead = good[number + 1][0] - at if number + 1 < len(good) else limit + _BAR
        if at - since >= _BAR or ahead > limit:
            if at > since:
                found.append((since, at, (wh - base) / ((at - since).total_seconds() / 3600) / 1000))
            since, base = at, wh
    return found


def _box(plot: _Plot, a: datetime, b: datetime, y: float, style: str) -> str:
    x = plot.x(a)
    return f'<rect x="{x}" y="{y}" width="{round(plot.x(b) - x, 1)}" height="{round(_LOW - y, 1)}" {style}/>'


def _cross(x: float, y: float) -> str:
    return f'<path d="M{x - 4} {y - 4}l8 8m0 -8l-8 8" stroke="#b3261e" stroke-width="1.8" fill="none"/>'


def _settled(x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="2.6" stroke="#6b4fa0" fill="#fff"/>'


def _axes(plot: _Plot, zone: ZoneInfo) -> Iterator[str]:
    right = _WIDTH - _RIGHT
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = plot.kw(plot.most_kw * share)
        yield f'<path d="M{_LEFT} {y}H{right}" stroke="#e4e8ec"/>'
        yield f'<text x="{_LEFT - 5}" y="{y + 3.5}" text-anchor="end">{plot.most_kw * share:g}</text>'
        yield f'<text x="{right + 5}" y="{y + 3.5}">{plot.most_kwh * share:g}</text>'
    yield f'<text x="{_LEFT - 5}" y="{_TOP - 12}" text-anchor="end">kW</text>'
    yield f'<text x="{right + 5}" y="{_TOP - 12}">kWh</text>'
    at, seen = plot.start, -1
    while at <= plot.end:
        local = at.astimezone(zone)
        if local.hour % 3 == 0 and local.hour != seen:
            label = "24" if at == plot.end else f"{local:%H}"
            yield f'<path d="M{plot.x(at)} {_LOW}v4" stroke="#9aa5b1"/>'
            yield f'<text x="{plot.x(at)}" y="{_LOW + 15}" text-anchor="middle">{label}</text>'
        seen = local.hour
        at += timedelta(hours=1)


def _edges(found: Mapping[str, Any], plot: _Plot, zone: ZoneInfo) -> Iterator[str]:
    """The borders of the day: where it begins and ends, and what the counter was there."""
    for key, bare, anchor, shift in (("opening", plot.start, "start", 3), ("closing", plot.end, "end", -3)):
        border = found.get(key)
        at = border["at"] if border else bare
        x = plot.x(at)
        yield f'<path d="M{x} {_TOP - 8}V{_LOW}" stroke="#1f2933" stroke-width="1.2"/>'
        if border:
            text = escape(f"{at.astimezone(zone):%H:%M:%S}  {kwh(border['index_wh'])} kWh, {border['method']}")
            yield f'<text x="{x + shift}" y="{_TOP - 12}" text-anchor="{anchor}" style="fill:#1f2933">{text}</text>'
            yield f'<circle cx="{x}" cy="{plot.wh(border["index_wh"])}" r="3.2" fill="#1f2933"/>'


def _nice(value: float) -> float:
    """The next round number above, so that four equal parts are readable."""
    value = max(value, 0.1)
    size = 1.0
    while size < value:
        size *= 10
    while size / 10 >= value:
        size /= 10
    return next(size * part for part in (0.12, 0.2, 0.24, 0.32, 0.4, 0.5, 0.6, 0.8, 1.0) if size * part >= value)

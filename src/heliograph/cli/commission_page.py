"""What `commission` found as one page to print and sign: no script, nothing fetched, every word escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from heliograph.cli.explain_page import STYLE
from heliograph.core.figures import kwh
from heliograph.core.quantity import find

MARKS = {"green": "✓", "attention": "!", "wrong": "✗", "unknown": "?"}
VERDICTS = {"green": "in order", "attention": "needs attention", "wrong": "wrong", "unknown": "not checked"}

_OWN = """
.verdict { font-size: 15pt; font-weight: 600; text-align: right; line-height: 1.2; white-space: nowrap; }
.verdict small { display: block; font-size: 9pt; font-weight: 400; color: #616e7c; }
.mark { display: inline-block; width: 4.2mm; height: 4.2mm; border-radius: 50%; text-align: center; line-height: 4.2mm;
  font-size: 8.5pt; font-weight: 700; color: #fff; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.green .mark, .mark.green { background: #1b7f4b; } .attention .mark, .mark.attention { background: #b26a00; }
.wrong .mark, .mark.wrong { background: #b3261e; } .unknown .mark, .mark.unknown { background: #52606d; }
.verdict.green { color: #1b7f4b; } .verdict.red { color: #b3261e; }
.checks td:nth-child(1) { width: 7mm; } .checks td:nth-child(2) { width: 25mm; font-weight: 500; }
.checks tr { break-inside: avoid; }
.next { display: block; }
.next::before { content: "→ "; }
.all { margin-top: 3mm; }
.list td:nth-child(1) { width: 7mm; } .list td:nth-child(2) { width: 40mm; font-weight: 500; }
.facts { width: auto; } .facts td:first-child { color: #616e7c; padding-right: 8mm; white-space: nowrap; }
.figures { columns: 2; column-gap: 8mm; font-size: 8pt; margin-top: 1mm; }
.figures div { display: flex; gap: 2mm; border-bottom: .4pt solid #e4e8ec; padding: .35mm 0; break-inside: avoid; }
.figures span { flex: 1; } .figures b { font-weight: 500; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures code { width: 22mm; text-align: right; font-size: 7.5pt; color: #616e7c; }
.production { background: #f5f7f9; }
.sign { display: flex; gap: 8mm; margin: 14mm 0 4mm; break-inside: avoid; }
.sign div { flex: 1; border-top: .6pt solid #1f2933; padding-top: 1mm; color: #616e7c; font-size: 8.3pt; }
"""


def page(facts: Mapping[str, Any]) -> str:
    """A4, dark on white; it says on its first page whether anything is left to be done."""
    zone = ZoneInfo(facts["timezone"])
    title = f"Commissioning of {facts['site']}"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}{_OWN}</style></head><body>",
        _head(title, facts, zone),
        *_left(facts["checks"]),
        *_checks(facts["checks"]),
        *_sign(facts),  # before the figures: who signs should not have to turn pages
        *(part for meter in facts["meters"] for part in _meter(meter, zone)),
        f"<footer>Made {_at(facts['at'], zone)} by heliograph {escape(facts['software'])}. Figures were read once and"
        " decoded by the map named beside them; raw words are hexadecimal, as they came.</footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _at(at: datetime, zone: ZoneInfo) -> str:
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M} ({at:%H:%M} UTC)"


def _head(title: str, facts: Mapping[str, Any], zone: ZoneInfo) -> str:
    left = sum(check["result"] != "green" for check in facts["checks"])
    word = "In order" if facts["green"] else f"{left} point{'s' * (left > 1)} open"
    meters = ", ".join(
        f"{meter['id']} (serial {meter['serial'] or 'not told'}, {meter['rated_kw']:g} kW)" for meter in facts["meters"]
    )
    by = f"<br>By {escape(facts['by'])}" if facts["by"] else ""
    return (
        f'<header><div><h1>{escape(title)}</h1><p class="quiet">{_at(facts["at"], zone)}, {escape(zone.key)}{by}'
        f"<br>{escape(meters)}</p></div>"
        f'<div class="verdict {"green" if facts["green"] else "red"}">{word}'
        f"<small>{len(facts['checks']) - left} of {len(facts['checks'])} checks in order</small></div></header>"
    )


def _left(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    left = [check for check in checks if check["result"] != "green"]
    if not left:
        yield '<p class="all">Every check is in order. Nothing is left to be done before this site delivers.</p>'
        return
    yield "<section><h2>What is left to be done</h2><table class=list><tbody>"
    for check in left:
        yield (
            f"<tr><td>{_mark(check['result'])}</td><td>{escape(check['about'])}, {escape(check['step'])}</td>"
            f"<td>{escape(check['todo'] or check['says'])}</td></tr>"
        )
    yield "</tbody></table></section>"


def _mark(result: str) -> str:
    return f'<span class="mark {result}" title="{VERDICTS[result]}">{MARKS[result]}</span>'


def _checks(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    key = " &nbsp; ".join(f"{_mark(result)} {word}" for result, word in VERDICTS.items())
    yield f'<h2>What was checked</h2><p class="quiet">{key}</p>'
    for about, group in groupby(checks, key=lambda check: str(check["about"])):
        yield f"<h3>{escape(about)}</h3><table class=checks><tbody>"
        for check in group:
            next_step = f'<span class="next">{escape(check["todo"])}</span>' if check["todo"] else ""
            yield (
                f"<tr><td>{_mark(check['result'])}</td><td>{escape(check['step'])}</td>"
                f"<td>{escape(check['says'])}{next_step}</td></tr>"
            )
        yield "</tbody></table>"


def _meter(meter: Mapping[str, Any], zone: ZoneInfo) -> Iterator[str]:
    factors = ", ".join(f"{name} {number:g}" for name, number in meter["factors"].items())
    reports = ", ".join(f"{uplink} as {name}" for uplink, name in meter["reports"].items())
    rows = [
        ("Serial number", meter["serial"] or "not told by the device"),
        ("Line", f"{meter['bus']}, unit {meter['unit']}"),
        ("Map", f"{meter['map']}, version {meter['map_version']}, {meter['map_status']}"),
        ("Digest of the map", meter["map_digest"]),
        ("Rated power", f"{meter['rated_kw']:g} kW{f'; factors given by the site: {factors}' if factors else ''}"),
        ("Production is", meter["production"]),
        ("Reports to", reports or "nobody"),
    ]
    yield f"<section><h2>Meter {escape(meter['id'])}</h2><table class=facts><tbody>"
    for label, text in rows:
        told = f"<code>{escape(text)}</code>" if label.startswith(("Digest", "Line")) else escape(text)
        yield f"<tr><td>{label}</td><td>{told}</td></tr>"
    yield "</tbody></table></section>"
    if not meter["figures"]:
        yield "<p>No figures could be read.</p>"
        return
    yield f'<h3>Read {_at(meter["read_at"], zone)}</h3><div class="figures">'
    ours = meter["production"]
    for figure in sorted(meter["figures"], key=lambda one: one["quantity"] != ours):
        words = " ".join(f"{word:04X}" for word in figure["words"])
        kind = " class=production" if figure["quantity"] == ours else ""
        yield (
            f"<div{kind}><span>{escape(figure['quantity'])}</span><b>{escape(shown(figure))}</b>"
            f"<code>{words}</code></div>"
        )
    yield "</div>"


def shown(figure: Mapping[str, Any]) -> str:
    """A value with its unit, energy in kWh."""
    value, quantity = figure["value"], find(figure["quantity"])
    unit = quantity.unit if quantity is not None else ""
    if isinstance(value, str):
        return value
    if unit in ("Wh", "varh", "VAh"):
        return f"{kwh(int(value))} k{unit}"
    whole = quantity is not None and quantity.kind in ("identity", "setting")
    return f"{value:.0f}" if whole and value == int(value) else f"{value:g} {unit if unit != '1' else ''}".strip()


def _sign(facts: Mapping[str, Any]) -> Iterator[str]:
    yield '<section><div class="sign">'
    for label in ("Place and date", f"Commissioned by{' ' + facts['by'] if facts['by'] else ''}", "For the owner"):
        yield f"<div>{escape(label)}</div>"
    yield "</div></section>"

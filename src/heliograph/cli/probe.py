"""heliograph probe: registers under every plausible decoding, and which of these fit physics and each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from heliograph.cli.options import a_meter, app_of, config_option, is_narrow, json_option, print_json, print_table
from heliograph.core import decodings
from heliograph.core.decodings import Diagnosis, Marked, PhaseSet
from heliograph.core.errors import BusRefused, UsageError
from heliograph.core.quantity import find
from heliograph.core.registers import Function, Timing

if TYPE_CHECKING:
    from heliograph.core.registers import MeterMap
    from heliograph.core.site import Meter
    from heliograph.ports import Bus
    from heliograph.work.read_words import Heard

MOST = 2000
"""Registers that one call asks for: at 9600 baud half a minute where nothing is refused."""
UNKNOWN_DEVICE = Timing(pause=0.06, timeout=0.6, retries=1)
"""A pause that slow meters ask for, where no map tells."""
LONG_REQUEST = 60
WIDEST = 4
"""Words of the widest number: what is read for a single address."""
WIDE = 110
"""Columns of a terminal from which on a whole row has room."""
AGREES = "agrees"
SHOWN = 12
"""Readings of a single address that are shown without --all."""

HELP = """One register or a range under every plausible decoding: type, word order, scale.

Marked are readings that agree with other registers (power with volts times amperes, a total with the sum of the
phases) and those that lie in a physical range. Addresses are as on the wire, zero-based. Only reads.

\b
  heliograph probe roof                     the map's own registers: does it fit as it stands?
  heliograph probe roof 0x0048              one address
  heliograph probe roof 0x0000-0x0050       a range
  heliograph probe --bus tcp://192.168.1.50:502 --unit 3 0x0000-0x0050 --function input
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and what is known of it."""

    bus: Bus
    place: str
    unit: int
    timing: Timing
    most: int
    meter: Meter | None = None

    @property
    def map(self) -> MeterMap | None:
        return self.meter.map if self.meter else None

    @property
    def factors(self) -> dict[str, Decimal]:
        return {name: Decimal(str(number)) for name, number in self.meter.factors} if self.meter else {}


@click.command("probe", help=HELP)
@click.argument("what", metavar="[METER] [ADDRESS|FIRST-LAST]", nargs=-1)
@click.option("--bus", "bus", metavar="URL", help="A line that is in no configuration, as tcp://192.168.1.50:502.")
@click.option("--unit", type=click.IntRange(0, 255), help="Unit id.  [default: the meter's, else 1]")
@click.option(
    "--function", type=click.Choice(get_args(Function)), help="Which registers.  [default: the map's, or input]"
)
@click.option("--max-words", type=click.IntRange(1, 125), help="Most registers in a request; fewer where refused.")
@click.option("--timeout", type=click.FloatRange(0.05, 30), help="Seconds to wait for an answer.")
@click.option("--all", "everything", is_flag=True, help="Every decoding of every address, also those that fit nothing.")
@config_option
@json_option
def command(
    what: tuple[str, ...],
    bus: str | None,
    unit: int | None,
    function: Function | None,
    max_words: int | None,
    timeout: float | None,
    everything: bool,
    config: Path | None,
    as_json: bool,
) -> int:
    name, span = _what(what, with_bus=bus is not None)
    target = _target(name, bus, unit, max_words, timeout, config)
    try:
        return _probe(target, span, function, everything, as_json)
    finally:
        target.bus.close()


def _what(what: Sequence[str], *, with_bus: bool) -> tuple[str | None, tuple[int, int] | None]:
    most = 1 if with_bus else 2
    if len(what) > most or (with_bus and not what) or (not with_bus and not what):
        raise UsageError(
            "with --bus one address or range is wanted" if with_bus else "which meter, or which line?",
            hint="heliograph probe METER 0x0048, or heliograph probe --bus tcp://HOST:502 --unit 1 0x0000-0x0050",
        )
    if with_bus:
        return None, span_of(what[0])
    if re.match(r"(0x)?\d", what[0]) and len(what) == 1:
        raise UsageError(
            f"{what[0]} of which meter?", hint=f"heliograph probe METER {what[0]}, or name a line with --bus and --unit"
        )
    return what[0], span_of(what[1]) if len(what) > 1 else None


def span_of(text: str) -> tuple[int, int]:
    """First and last address of 72, 0x48, 0x00-0x50 or 0x48+4."""
    match = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)(?:([-+])(0x[0-9a-fA-F]+|\d+))?", text.replace("..", "-"))
    if match is None:
        raise UsageError(f"{text} is no register", hint="Write 0x0048 or 72, a range 0x0000-0x0050, a count 0x0048+4")
    first = int(match[1], 0) if match[1].startswith("0x") else int(match[1])
    other = first if match[3] is None else int(match[3], 0) if match[3].startswith("0x") else int(match[3])
    last = first + other - 1 if match[2] == "+" else other
    if not first <= last <= 0xFFFF:
        raise UsageError(f"{text} does not run from a lower to a higher address within 0x0000 to 0xFFFF")
    if last - first >= MOST:
        raise UsageError(f"{text} is {last - first + 1} registers", hint=f"Ask for {MOST} at most in one call")
    return first, last


def _target(
    name: str | None, url: str | None, unit: int | None, most: int | None, timeout: float | None, config: Path | None
) -> Target:
    if name is None:
        from heliograph.app import open_bus

        assert url is not None  # _what: either a meter or a line
        timing = replace(UNKNOWN_DEVICE, timeout=timeout or UNKNOWN_DEVICE.timeout)
        return Target(open_bus(url), url, 1 if unit is None else unit, timing, most or LONG_REQUEST)
    from heliograph.cli.line import line_of

    app = app_of(config)
    meter = next(one for one in app.meters if one.id == a_meter(app, name))
    bus, place = line_of(app, meter.bus)
    timing = replace(meter.timing, timeout=timeout or meter.timing.timeout)
    return Target(bus, place, meter.unit if unit is None else unit, timing, most or meter.map.max_words, meter)


# -- asking -------------------------------------------------------------------------------------------------------


def _probe(
    target: Target, span: tuple[int, int] | None, function: Function | None, everything: bool, as_json: bool
) -> int:
    from heliograph.work.read_words import Heard

    where: Function = function or (target.map.function if target.map else "input")
    space: dict[Function, Heard] = {}
    found_out = None
    if target.map is not None:
        spans = _own_spans(target.map)
        _read(target, spans, space)
        found_out = decodings.diagnose(target.map, _words(space), target.factors)
        if found_out.own.broken or not found_out.own.holds:  # then what lies beside is worth a look
            _read(target, [(f, max(0, a - 2), min(0xFFFF, b + 2)) for f, a, b in spans], space)
            found_out = decodings.diagnose(target.map, _words(space), target.factors)
    if span is not None:
        first, last = span
        # The last number of a range may go on behind it.
        _read(target, [(where, first, min(0xFFFF, max(last + 1, first + WIDEST - 1)))], space)
    heard = space.setdefault(where, Heard())
    known: Mapping[str, float | int] = {}
    found = PhaseSet()
    better = found_out.better if found_out else None
    if found_out is not None and (better is not None or found_out.own.holds):
        known = (better or found_out.own).values
    elif span is not None:
        found = decodings.phase_set(heard.words)
        known = found.values
    style = decodings.style_of(found.members)
    right = target.map if target.map is None or better is None else decodings.corrected(target.map, better)
    if right is not None and not found.members:
        style = decodings.style_by(right)
    marker = decodings.Marker(known, style)
    asked = _asked(right, where, span, heard)
    rows = {
        address: decodings.readings_at(heard.words, address, marker, map=right, function=where, found=found)
        for address in asked
        if address in heard.words
    }
    refused = {address: heard.refused[address] for address in asked if address in heard.refused}
    if as_json:
        print_json(_facts(target, where, found_out, found, rows, refused, heard, everything))
        return 0
    single = span is not None and span[0] == span[1]
    click.echo(f"{target.place}, unit {target.unit}, {where} registers")
    for line in (*_verdict(target, found_out), *_found(found)):
        click.echo(line)
    _print(rows, refused, heard, single=single, everything=everything)
    return 0


def _own_spans(map: MeterMap) -> list[tuple[Function, int, int]]:
    """What the map polls, in stretches that its device can be asked for."""
    from heliograph.core.plan import LineCost, plan

    return [
        (block.function, block.address, block.address + block.count - 1)
        for block in plan(map, None, LineCost(0.001, 0.004, 0.01, 0.06))
    ]


def _read(target: Target, spans: Sequence[tuple[Function, int, int]], space: dict[Function, Heard]) -> None:
    """Reads what was not heard yet; the line is asked for nothing twice, so that all belongs to one moment."""
    from heliograph.work.read_words import Heard, read_words

    wanted: list[tuple[Function, int, int]] = []
    for function, first, last in spans:
        heard = space.setdefault(function, Heard())
        missing = [a for a in range(first, last + 1) if a not in heard.words and a not in heard.refused]
        if missing and len(missing) == missing[-1] - missing[0] + 1:
            wanted.append((function, missing[0], missing[-1]))
        elif missing:
            wanted += [(function, a, b) for a, b in _runs(missing)]
    with progress(sum(last - first + 1 for _, first, last in wanted)) as done:
        for function, first, last in wanted:
            try:
                more = read_words(
                    target.bus, target.unit, function, first, last, target.timing, most=target.most, done=done
                )
            except BusRefused as refused:
                other = "holding" if function == "input" else "input"
                refused.hint = f"This device has no {function} registers; try: --function {other}"
                raise
            space[function].add(more)


def _runs(some: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for address in some:
        if runs and runs[-1][1] == address - 1:
            runs[-1] = runs[-1][0], address
        else:
            runs.append((address, address))
    return runs


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal and the work is worth one."""
    import sys

    if not sys.stderr.isatty() or total < 2 * LONG_REQUEST:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("registers", total=total)
        yield lambda count: bar.advance(task, count)


def _words(space: Mapping[Function, Heard]) -> dict[Function, Mapping[int, int]]:
    return {function: heard.words for function, heard in space.items()}


def _asked(map: MeterMap | None, where: Function, span: tuple[int, int] | None, heard: Heard) -> list[int]:
    """The addresses that are shown: those of the range, else where the map's registers begin."""
    if span is not None:
        return list(range(span[0], span[1] + 1))
    starts = {r.address for r in map.registers if map.function_of(r) == where and r.poll} if map else set()
    return sorted(a for a in starts if a is not None and (a in heard.words or a in heard.refused))


# -- telling ------------------------------------------------------------------------------------------------------


def _verdict(target: Target, found_out: Diagnosis | None) -> Iterator[str]:
    if found_out is None or target.map is None:
        return
    own, better, fixes = found_out.own, found_out.better, found_out.fixes
    name = target.map.name
    broken = [one.text for one in own.found if not one.holds]
    if better is not None:
        yield f"! {name} does not fit as it stands, but it does when every register is read {better}."
        if better.order:
            yield f'  Set order = "{better.order}" for this meter in the configuration, then: heliograph read'
        elif better.shift:
            yield (
                "  Are the map's addresses those of the manual, which counts from one? On the wire they count from 0. "
                "Correct them in a local map, then: heliograph map try"
            )
    elif broken:
        yield f"! With {name} {len(broken)} of {len(own.found)} relations do not hold:"
        yield from (f"  - {text}" for text in broken)
        if fixes:
            yield f"  All would hold with {', or with '.join(str(one) for one in fixes[:3])}."
            yield "  Correct it in a local map, then: heliograph map try"
    elif own.found:
        yield f"{name} fits: all {len(own.found)} relations that can be checked hold."
    else:
        yield f"Nothing can be checked against {name} just now: no current flows, or it reads nothing that is related."


def _found(found: PhaseSet) -> Iterator[str]:
    if not found.members:
        return
    yield "These registers behave like one grid:"
    for name, one in found.members.items():
        yield f"  0x{one.address:04X}  {name:<16} {_number(one.value):>12} {_unit(name):<3} as {one}"
    if "current_l1" in found.members and not found.members["current_l1"].type.startswith("float"):
        yield (
            "  Whole numbers: current and power could both be ten times larger or smaller and would still fit, and "
            "among many registers some fit by chance. Compare one of them with the display."
        )


def _print(
    rows: Mapping[int, Sequence[Marked]],
    refused: Mapping[int, str],
    heard: Heard,
    *,
    single: bool,
    everything: bool,
) -> None:
    shown: list[tuple[str, ...]] = []
    over = -1
    zeros: list[int] = []

    def close_zeros() -> None:
        if zeros:
            last = f" to 0x{zeros[-1]:04X}" if len(zeros) > 1 else ""
            shown.append((f"0x{zeros[0]:04X}{last}", "0000", "zero", "0", "", ""))
            zeros.clear()

    for address in sorted({*rows, *refused}):
        if address in refused:
            close_zeros()
            shown.append((f"0x{address:04X}", "", "", "", "", refused[address]))
            continue
        if address <= over and not everything:
            continue
        readings = rows[address]
        best = _best(readings, everything=everything, single=single)
        empty = heard.words[address] == 0 and not any(one.agrees or one.by_map for one in best)
        if empty and not single and not everything:
            zeros.append(address)
            continue
        close_zeros()
        mapped = bool(best) and bool(best[0].by_map) and not best[0].against
        text = "" if mapped else decodings.text_at(heard.words, address)
        if text:
            words = " ".join(f"{heard.words[a]:04X}" for a in range(address, address + 2))
            shown.append((f"0x{address:04X}", f"{words} …", "text", text[:32], "", ""))
            over = address + (len(text) - 1) // 2
            if not everything and not single:
                continue
        for number, one in enumerate(best):
            shown.append(_row(address if number == 0 and not text else None, one))
        if best and (best[0].agrees or best[0].by_map or best[0].usual):
            over = best[0].decoding.last
    close_zeros()
    if shown and is_narrow(WIDE):
        # The raw words, and which relation holds, are for a wider screen; what does not fit is told in full.
        short = [(place, *rest, AGREES if why.startswith(AGREES) else why) for place, _, *rest, why in shown]
        print_table(("address", "read as", "value", "could be", "why"), short, right=("value",))
    elif shown:
        print_table(("address", "words", "read as", "value", "could be", "why"), shown, right=("value",))
    if not everything and rows:
        click.echo("--all shows every decoding. Compare with the display before a map is changed.")


def _best(readings: Sequence[Marked], *, everything: bool, single: bool) -> list[Marked]:
    if everything:
        return list(readings)
    if single and not any(one.decoding.value for one in readings):
        return [one for one in readings if one.by_map] or list(readings[:1])  # zero, however it is read
    if single:
        useful = [one for one in readings if one.marks or one.by_map or one.decoding.plausible]
        return useful[:SHOWN]
    by_map = [one for one in readings if one.by_map]
    doubted = bool(by_map) and bool(by_map[0].against)
    agreeing = [one for one in readings if one.agrees and not one.by_map and (one.usual or doubted)][:2]
    if by_map and not by_map[0].against and (by_map[0].agrees or not agreeing):
        return by_map
    if by_map or agreeing:
        return [*agreeing, *by_map]
    # Where it is known how the device writes numbers, only that is worth a line without --all.
    usual = [one for one in readings if one.usual and one.decoding.plausible] or list(readings)
    ranged = [one for one in usual if one.marks and one.decoding.odd <= 1][:2]
    plain = sorted((one for one in usual if one.decoding.plausible), key=lambda one: one.decoding.odd)
    return ranged or plain[:1] or list(readings[:1])


def _row(address: int | None, one: Marked) -> tuple[str, ...]:
    decoding = one.decoding
    words = " ".join(f"{word:04X}" for word in decoding.words)
    name = one.by_map or one.name or (one.marks[0].quantity if one.marks else "")
    value, unit = _number(decoding.value), _unit(name)
    if unit == "Wh":
        small = decoding.value and abs(decoding.value) < 1
        value, unit = _number(decoding.value / 1000) if small else f"{decoding.value / 1000:,.3f}", "kWh"
    could = f"{name} (the map)" if one.by_map else _names(one)
    if one.against:
        why = f"does not fit: {'; '.join(one.against)}"
    elif one.agrees:
        first, *more = one.marks[0].why.split("; ")
        why = f"{AGREES}: {first}" + (f", and {len(more)} more" if more else "")
    else:
        why = one.marks[0].why if one.marks else ""
    where = f"0x{address:04X}" if address is not None else ""
    return where, words, str(decoding), f"{value} {unit}".rstrip(), could, why


def _names(one: Marked) -> str:
    """All roles that fit as well as the best."""
    names = [mark.quantity for mark in one.marks if mark.agrees == one.agrees]
    if one.name:
        return one.name
    if not one.agrees:
        return "a voltage to neutral" if names and names[0].startswith("voltage") else ", ".join(names)
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _unit(name: str) -> str:
    quantity = find(name)
    return quantity.unit if quantity and quantity.unit != "1" else ""


def _number(value: Decimal) -> str:
    """Without zeros at the end; nine digits that matter at most, and an exponent where nobody would count zeros."""
    if value and not Decimal("1e-4") <= abs(value) < Decimal("1e13"):
        return f"{float(value):.3e}"
    text = f"{value:.9g}"
    return f"{Decimal(text):,f}" if "E" in text.upper() else f"{Decimal(text).normalize():,f}"


def _facts(
    target: Target,
    where: Function,
    found_out: Diagnosis | None,
    found: PhaseSet,
    rows: Mapping[int, Sequence[Marked]],
    refused: Mapping[int, str],
    heard: Heard,
    everything: bool,
) -> dict[str, Any]:
    return {
        "line": target.place,
        "unit": target.unit,
        "function": where,
        "map": _map_as_json(target.map, found_out) if target.map is not None and found_out is not None else None,
        "set": {name: _as_json(one) for name, one in found.members.items()},
        "registers": [
            {
                "address": address,
                "word": f"{heard.words[address]:04X}",
                "text": decodings.text_at(heard.words, address) or None,
                "readings": [
                    _as_json(one.decoding)
                    | {
                        "map": one.by_map or None,
                        "against": list(one.against),
                        "marks": [{"quantity": m.quantity, "agrees": m.agrees, "why": m.why} for m in one.marks],
                    }
                    for one in (readings if everything else _best(readings, everything=False, single=True))
                ],
            }
            for address, readings in rows.items()
        ],
        "refused": [{"address": address, "why": why} for address, why in refused.items()],
    }


def _map_as_json(map: MeterMap, found_out: Diagnosis) -> dict[str, Any]:
    own, better = found_out.own, found_out.better
    return {
        "name": map.name,
        "holds": [one.name for one in own.found if one.holds],
        "broken": [{"name": one.name, "why": one.text} for one in own.found if not one.holds],
        "fits_better": None if better is None else {"order": better.order, "shift": better.shift},
        "would_hold_with": [{"quantity": one.register.quantity} | _as_json(one.decoding) for one in found_out.fixes],
    }


def _as_json(one: decodings.Decoding) -> dict[str, Any]:
    return {
        "address": one.address,
        "type": one.type,
        "order": one.order,
        "scale": float(one.scale),
        "words": [f"{word:04X}" for word in one.words],
        "value": float(one.value),
    }

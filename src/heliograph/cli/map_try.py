"""heliograph map try NAME|PATH METER: an edited map against the live meter, beside the map in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph import library
from heliograph.cli.options import a_meter, app_of, config_option, json_option, print_json, print_table
from heliograph.core.decode import Absent
from heliograph.core.registers import Function, MeterMap
from heliograph.core.trial import Line, Told, Trial, requests, trial, wanted

if TYPE_CHECKING:
    from heliograph.app import App
    from heliograph.core.site import Meter
    from heliograph.work.read_words import Heard

HELP = """Read METER once and show what an edited map makes of it, beside the map in use. Nothing is stored or changed.

Says what the energy counters would read, which values would be others, which of them physics contradicts, and what
using the map would do. Exit code 1 where a person has to look.

\b
  heliograph map try ./eastron-sdm630.toml roof
  heliograph map try my-inverter roof --all
"""


@click.command("try", help=HELP)
@click.argument("name", metavar="NAME|PATH")
@click.argument("meter")
@click.option("--all", "everything", is_flag=True, help="Every register of both maps, also what stays the same.")
@config_option
@json_option
@click.pass_context
def command(
    context: click.Context, name: str, meter: str, everything: bool, config: Path | None, as_json: bool
) -> None:
    local: Path = context.obj
    app = app_of(config)
    one = next(one for one in app.meters if one.id == a_meter(app, meter))
    number = app.meters.index(one)
    chosen = app.config.settings.meter[number]
    path = Path(name) if name.endswith(".toml") or "/" in name else library.find(name, local)
    tried, problems = library.check(path, local)
    if tried is None or (broken := _unreadable(tried, problems)):
        raise library.MapFaults(problems if tried is None else broken)
    old, which = _in_use(app, one, tried)
    new = replace(tried.map, order=chosen.order) if chosen.order else tried.map
    production = chosen.production or new.production
    if production is not None and not _usable(new, production):
        production = None
    heard, place = _read(app, one, old, new, (one.production, production), everything)
    factors = {key: Decimal(str(told)) for key, told in one.factors}
    words = {function: some.words for function, some in heard.items()}
    refused = {(f, a): why for f, some in heard.items() for a, why in some.refused.items()}
    found = trial(old, new, words, factors, (one.production, production), refused)
    lacking = [str(problem) for problem in problems]
    fit = not any(problem.blocks for problem in problems)
    if as_json:
        print_json(_facts(one, tried, which, place, found, refused, lacking, fit))
    else:
        click.echo(f"{one.id}, unit {one.unit}, read once from {place}: {which}, and {tried.map.name} from {path}")
        for line in _told(one, found, problems, same=tried.digest == one.map_digest and old is one.map):
            click.echo(line)
        _table(found, everything)
        if tried.digest != one.map_digest or old is not one.map:
            for line in _consequences(one, tried, found, fit):
                click.echo(line)
    context.exit(0 if found.harmless and fit else 1)


def _unreadable(tried: library.LoadedMap, problems: Sequence[library.Problem]) -> list[library.Problem]:
    """What makes it no map. A vector that contradicts it is what a trial is for, and is told beside the figures."""
    vectors = {place for key, place in tried.places.items() if key[0] == "vectors"}
    return [problem for problem in problems if problem.blocks and problem.place not in vectors]


def _usable(map: MeterMap, name: str) -> bool:
    register = map.register(name)
    return register is not None and library.may_be_production(register)


def _in_use(app: App, meter: Meter, tried: library.LoadedMap) -> tuple[MeterMap, str]:
    """The map to compare with, and what to call it.

    Where the edited file is already what the configuration names, that is what the newest booked reading was decoded
    by, or the shipped map that the file hides.
    """
    if tried.digest != meter.map_digest:
        return meter.map, f"the map in use ({meter.map.name})"
    from heliograph.core.errors import ConfigError, StoreError

    with suppress(StoreError, ConfigError):  # nothing is booked yet, or its text is not to be had
        store = app.reader()
        try:
            last = store.readings.last_good(meter.id)
            texts = store.evidence.maps()
        finally:
            store.close()
        if last is not None and last.source is not None and last.source.map_digest != tried.digest:
            booked = library.from_texts(last.source.map_digest, texts)
            return _in_order(booked, meter, tried), f"the map of the newest booked reading ({booked.name})"
    shipped = library.shipped_dir() / f"{meter.map.name}.toml"
    if shipped.is_file() and shipped != tried.path:
        hidden = library.read(shipped, None)
        if hidden.digest != tried.digest:
            return _in_order(hidden.map, meter, tried), f"the shipped map ({hidden.map.name})"
    return meter.map, f"the map in use ({meter.map.name})"


def _in_order(map: MeterMap, meter: Meter, tried: library.LoadedMap) -> MeterMap:
    """With the byte order that the site says, where it says one."""
    return replace(map, order=meter.map.order) if meter.map.order != tried.map.order else map


def _read(
    app: App, meter: Meter, old: MeterMap, new: MeterMap, production: tuple[str, str | None], everything: bool
) -> tuple[dict[Function, Heard], str]:
    """Every word that either map needs, once."""
    from heliograph.cli.line import line_of
    from heliograph.work.read_words import Heard, read_words

    most = min(old.max_words, new.max_words)
    registers = [*wanted(old, production[0], everything), *wanted(new, production[1], everything)]
    heard: dict[Function, Heard] = {}
    bus, place = line_of(app, meter.bus)
    try:
        for function, first, last in requests(registers, most, (old, new)):
            more = read_words(bus, meter.unit, function, first, last, meter.timing, most=most)
            heard.setdefault(function, Heard()).add(more)
    finally:
        bus.close()
    return heard, place


# -- telling ------------------------------------------------------------------------------------------------------


def _told(meter: Meter, found: Trial, problems: Sequence[library.Problem], *, same: bool) -> Iterator[str]:
    if same:
        yield f"This is the map that {meter.id} is read with already: there is no other to compare it with."
    if found.production[1] is None:
        yield (
            f"! It has no counter {found.production[0]} that may be production, so it cannot be used for {meter.id} "
            "as it stands."
        )
    else:
        yield ("! " if found.changes else "") + sentence(found.counter, found.production)
    for line in found.lines:
        if line.energy and not line.same and line.quantity not in found.production:
            yield f"! {sentence(line)}"
    for text in found.strange:
        yield f"! {text}"
    yield _physics(found)
    yield from (f"! {one.text}" for one in found.broken)
    yield from (f"  Now right: {one.text}" for one in found.mended)
    for problem in problems:
        yield f"! map check refuses it: {problem}" if problem.blocks else f"  Still lacking: {problem}"


def sentence(line: Line, production: tuple[str, str | None] | None = None) -> str:
    """What an energy counter would read, in words."""
    name = line.quantity
    if production and production[1] not in (None, production[0]):
        name = f"{production[1]} (in place of {production[0]})"
    role = ", the production counter," if production else ""
    now, then = pair(line)
    if line.now is None:
        return f"{name}{role} would be read for the first time: {then}."
    if line.then is None:
        return f"{name}{role} would not be read any more; now it reads {now}."
    if line.same:
        return f"{name}{role} reads {now} either way."
    if isinstance(line.then, Absent):
        return f"{name}{role} would have no value ({line.then.reason}) instead of {now}."
    if isinstance(line.now, Absent):
        return f"{name}{role} would read {then}; now it has no value ({line.now.reason})."
    return f"{name}{role} would read {then} instead of {now}."


def pair(line: Line) -> tuple[str, str]:
    """Both figures, with as many decimals as tell them apart."""
    short = _figure(line.now, line.unit, 1), _figure(line.then, line.unit, 1)
    if short[0] != short[1] or line.same:
        return short
    return _figure(line.now, line.unit, 3), _figure(line.then, line.unit, 3)


def _figure(told: Told, unit: str, decimals: int) -> str:
    if told is None:
        return "not in the map"
    if isinstance(told, Absent):
        return "no value"
    if isinstance(told, str):
        return told
    if unit in ("Wh", "varh", "VAh"):
        if 0 < abs(told) < 1000 and decimals < 3:
            decimals = 3
        return f"{Decimal(told) / 1000:,.{decimals}f} k{unit}"
    return f"{told:,.6g} {unit}".rstrip()


def _physics(found: Trial) -> str:
    def count(some: tuple[Any, ...]) -> str:
        return f"{sum(one.holds for one in some)} of {len(some)}"

    if not found.then:
        return "Physics can check nothing just now: no current flows, or nothing that is related is read."
    return f"Physics: {count(found.now)} relations hold now, {count(found.then)} would."


def _table(found: Trial, everything: bool) -> None:
    wrong: dict[str, str] = {}
    for one in found.then:
        if not one.holds:
            for name in one.quantities:
                wrong.setdefault(name, f"does not fit: {one.text}")
    rows = []
    for line in found.lines:
        if line.same and not everything:
            continue
        now, then = pair(line)
        why = wrong.get(line.quantity, "") if not line.same or everything else ""
        if isinstance(line.then, Absent):
            why = line.then.reason
        rows.append((line.quantity, now, then, _change(line), why))
    same = sum(line.same for line in found.lines)
    if rows:
        click.echo()
        print_table(("quantity", "now", "then", "change", ""), rows, right=("now", "then", "change"))
    if same and not everything:
        click.echo(f"{same} {'value stays' if same == 1 else 'values stay'} the same; --all shows them.")


def _change(line: Line) -> str:
    if line.same or not isinstance(line.now, int | float) or not isinstance(line.then, int | float):
        return ""
    if line.now and line.then:
        ratio = line.then / line.now
        if ratio < 0 or not 0.5 < ratio < 2:
            return f"x {ratio:.4g}"
    return f"{_signed(line.then - line.now, line.unit)}"


def _signed(step: float, unit: str) -> str:
    return f"{'+' if step > 0 else ''}{_figure(step, unit, 3)}"


def _consequences(meter: Meter, tried: library.LoadedMap, found: Trial, fit: bool) -> Iterator[str]:
    yield ""
    if found.production[1] is None:
        return
    if found.changes:
        yield (
            f"Using it would change what is booked of {meter.id}: {'; '.join(found.changes)}. Its readings would be "
            "kept, but nothing booked or delivered, until a person confirms with: "
            f"heliograph swap {meter.id} --map-changed (a seam; the running total goes on)."
        )
    else:
        yield "What is booked and delivered would go on without a break: the production counter is read as before."
    if not fit:
        yield "It cannot be used before map check passes: correct the register, or the vectors where those are wrong."
        return
    name = tried.map.name
    steps = []
    if tried.path.parent.resolve() not in (library.LOCAL, library.shipped_dir().resolve()):
        steps.append(f"copy it to {library.LOCAL}/{name}.toml")
    if meter.map.name != name:
        steps.append(f'set map = "{name}" for {meter.id} in the configuration')
    yield f"To use it: {', '.join([*steps, 'heliograph check, and restart the gateway'])}."


def _facts(
    meter: Meter,
    tried: library.LoadedMap,
    which: str,
    place: str,
    found: Trial,
    refused: Mapping[tuple[Function, int], str],
    lacking: list[str],
    fit: bool,
) -> dict[str, Any]:
    return {
        "meter": meter.id,
        "line": place,
        "compared_with": which,
        "map": {"name": tried.map.name, "path": str(tried.path), "digest": tried.digest},
        "production": {"now": found.production[0], "then": found.production[1]},
        "counter": {"now_wh": _plain(found.counter.now), "then_wh": _plain(found.counter.then)},
        "says": sentence(found.counter, found.production),
        "holds_delivery": bool(found.changes),
        "changes": list(found.changes),
        "refused_by_identity": list(found.strange),
        "values": [
            {
                "quantity": line.quantity,
                "unit": line.unit,
                "now": _plain(line.now),
                "then": _plain(line.then),
                "same": line.same,
                "no_value": line.then.reason if isinstance(line.then, Absent) else None,
            }
            for line in found.lines
        ],
        "physics": [
            {"name": one.name, "holds": one.holds, "text": one.text, "new": one in found.broken or one in found.mended}
            for one in found.then
        ],
        "refused_registers": [{"function": f, "address": a, "why": why} for (f, a), why in refused.items()],
        "lacking": lacking,
        "passes_check": fit,
        "harmless": found.harmless,
    }


def _plain(told: Told) -> float | int | str | None:
    return None if isinstance(told, Absent) else told

"""heliograph map: which meters are known, what a map says, and whether it can be right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from heliograph import library
from heliograph.cli import map_new, map_sunspec, map_try
from heliograph.cli.options import is_narrow, json_option, print_json, print_table
from heliograph.core.decode import addresses
from heliograph.core.errors import ConfigError
from heliograph.core.registers import MeterMap, Register


@click.group("map", help="List, show and check meter maps.")
@click.option(
    "--local",
    type=click.Path(path_type=Path, file_okay=False),
    default=library.LOCAL,
    show_default=True,
    help="Folder of local maps; they win over shipped ones of the same name.",
)
@click.pass_context
def command(context: click.Context, local: Path) -> None:
    context.obj = local


command.add_command(map_new.command)
command.add_command(map_sunspec.command)
command.add_command(map_try.command)

COLUMNS = ("map", "maker", "model", "phases", "production", "step", "status")
"""Of `map list`, and of the table in meters/README.md, which is made from the shipped maps."""


@command.command("list", help="All maps there are, shipped and local; with WORDs those in which every word occurs.")
@click.argument("words", metavar="[WORD]...", nargs=-1)
@json_option
@click.pass_context
def list_(context: click.Context, words: Sequence[str], as_json: bool) -> None:
    local: Path = context.obj
    rows = [row for row in (summary(path, local) for path in library.found(local).values()) if _has(row, words)]
    if as_json:
        print_json(rows)
    elif rows:
        kept = [n for n, column in enumerate(COLUMNS) if column not in _left_out()]
        print_table(
            [COLUMNS[n] for n in kept],
            [[cells(row)[n] for n in kept] for row in rows],
            right=("phases",),
            whole=("map", "production", "status"),  # names are copied from here
        )
    else:
        click.echo(f"No map has all of these words: {' '.join(words)}. All of them: heliograph map list", err=True)
        context.exit(1)


def summary(path: Path, local: Path | None) -> dict[str, Any]:
    """One map as `map list --json` tells it; one that is broken says why in `error`."""
    loaded, problems = library.check(path, local)
    m = loaded.map if loaded else None
    step_wh, step = library.step(m) if m else (None, "")
    return {
        "name": path.stem,
        "maker": m.maker if m else "",
        "models": list(library.models(m)) if m else [],
        "phases": m.phases if m else None,
        "production": m.production if m else None,
        "step_wh": step_wh,
        "step": step,
        "status": m.status if m else "broken",
        "version": m.version if m else None,
        "products": list(m.products) if m else [],
        "registers": len(m.registers) if m else 0,
        "polled": sum(r.poll for r in m.registers) if m else 0,
        "origin": "shipped" if path.parent == library.shipped_dir() else "local",
        "path": str(path),
        "digest": loaded.digest if loaded else None,
        "error": str(problems[0]) if problems else None,
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A summary under `COLUMNS`."""
    mine = ", local" if row["origin"] == "local" else ""
    return (
        row["name"],
        row["maker"],
        _some(row["models"]) or row["error"] or "",
        str(row["phases"] or ""),
        row["production"] or "",
        row["step"],
        row["status"] + mine,
    )


WIDE = 100
"""Columns of a terminal from which on all columns of the table have room."""


def _left_out() -> set[str]:
    """On a narrow terminal: what the name of a map says already, and the phases."""
    return {"maker", "phases"} if is_narrow(WIDE) else set()


MANY = 6
"""Models that a row names; of a family with more it names as many and says how many follow. WORDs find them all."""


def _some(models: Sequence[str]) -> str:
    more = len(models) - MANY
    return ", ".join(models) if more <= 1 else f"{', '.join(models[:MANY])} and {more} more"


def _has(row: dict[str, Any], words: Iterable[str]) -> bool:
    shown = " ".join((*cells(row), *row["products"])).casefold()
    return all(word.casefold() in shown for word in words)


@command.command("show", help="What a map says. NAME is the name of a map, or a file.")
@click.argument("name")
@json_option
@click.pass_obj
def show(local: Path, name: str, as_json: bool) -> None:
    loaded = library.read(_file(name, local), local)
    m = loaded.map
    if as_json:
        print_json({"path": str(loaded.path), "digest": loaded.digest} | _plain(dataclasses.asdict(m)))
        return
    for key, text in _heading(m):
        click.echo(f"{key:<11} {text}")
    click.echo(f"{'file':<11} {loaded.path}")
    click.echo(f"{'digest':<11} {loaded.digest}")
    click.echo()
    print_table(
        ("address", "quantity", "type", "unit", "polled", "remarks"),
        [
            (_where(r), r.quantity, r.type, r.unit, "yes" if r.poll else "no", "; ".join(_remarks(m, r)))
            for r in m.registers
        ],
    )


def _heading(m: MeterMap) -> Iterable[tuple[str, str]]:
    yield "map", f"{m.name}, {m.version}, {m.status}" + (f", extends {m.extends}" if m.extends else "")
    yield "fits", ", ".join(m.products)
    yield "source", m.source
    yield "read as", f"{m.function} registers, order {m.order}, {'gaps too' if m.read_gaps else 'no gaps'}"
    smaller = f", then {', '.join(str(size) for size in m.fallback_words)}" if m.fallback_words else ""
    yield "at most", f"{m.max_words} registers in a request{smaller}"
    yield "timing", f"pause {m.timing.pause:g} s, time-out {m.timing.timeout:g} s, retries {m.timing.retries}"
    codes = "; ".join(f"0x{match.address:04X} is {_values(match.values)}" for match in m.identity.match)
    yield "identity", f"serial in {m.identity.serial or 'no register'}" + (f"; {codes}" if codes else "")
    yield "production", f"{m.production} is suggested; the site decides" if m.production else "the site decides"
    if m.single_client:
        yield "clients", "one TCP client at a time" + ("; it is left between two rounds" if m.close_after_poll else "")
    elif m.close_after_poll:
        yield "clients", "the TCP connection is left between two rounds"


CONTAINS = {"ac": "AC", "dc": "DC", "ac+battery": "AC with what the battery gave"}


def _values(values: Sequence[int | str]) -> str:
    return " or ".join(map(str, values)) if len(values) <= MANY else f"one of {len(values)} codes"


def _where(r: Register) -> str:
    model = f"{r.models[0]}{'+' if len(r.models) > 1 else ''}:" if r.models else ""
    if r.addresses:
        return model + " ".join(f"0x{address:04X}" for address in r.addresses)
    first, *rest = addresses(r)
    return f"{model}0x{first:04X}" + (f"+{len(rest) + 1}" if rest else "")


def _remarks(m: MeterMap, r: Register) -> Iterable[str]:
    if r.function not in (None, m.function):
        yield f"{r.function}"
    if r.order not in (None, m.order):
        yield f"{r.order}"
    power = [f"10^[0x{r.scale_register:04X}]"] if r.scale_register is not None else []
    if factors := [*([str(r.scale)] if r.scale != 1 else []), *power, *r.times]:
        yield f"times {' × '.join(factors)}"
    if r.monotonic is not None:
        yield "never falls" if r.monotonic else "may fall"
    if r.contains is not None:
        yield CONTAINS[r.contains]
    if r.resettable:
        yield f"can be set back: {r.resettable}"
    if r.note:
        yield r.note
    if r.source:
        yield r.source


@command.command("check", help="Run the vectors and checks of maps, without hardware. Default: of every map there is.")
@click.argument("names", metavar="[NAME|PATH]...", nargs=-1)
@json_option
@click.pass_context
def check(context: click.Context, names: Sequence[str], as_json: bool) -> None:
    local: Path = context.obj
    files = [_file(name, local) for name in names] or list(library.found(local).values())
    results = [(path, *library.check(path, local)) for path in files]
    if as_json:
        print_json([_result(*result) for result in results])
    else:
        for path, loaded, problems in results:
            for problem in problems:
                click.echo(problem, err=True)
            click.echo(f"{path.stem}: {_verdict(loaded, problems)}")
    if any(problems for _, _, problems in results):
        context.exit(ConfigError.exit_code)


def _verdict(loaded: library.LoadedMap | None, problems: Sequence[library.Problem]) -> str:
    if loaded and not problems:
        return f"{len(loaded.map.registers)} registers, {len(loaded.map.vectors)} vectors, all right"
    return "1 thing is wrong" if len(problems) == 1 else f"{len(problems)} things are wrong"


def _result(path: Path, loaded: library.LoadedMap | None, problems: Sequence[library.Problem]) -> dict[str, Any]:
    return {
        "name": path.stem,
        "path": str(path),
        "ok": not problems,
        "registers": len(loaded.map.registers) if loaded else 0,
        "vectors": len(loaded.map.vectors) if loaded else 0,
        "problems": [
            {"path": str(p.place.path), "line": p.line, "message": p.message, "hint": p.hint} for p in problems
        ],
    }


@command.command("schema", help="Print the JSON Schema of maps, for editors that check while one types.")
def schema() -> None:
    click.echo(library.schema_text(), nl=False)


def _file(name: str, local: Path) -> Path:
    """A file as it was given, else the map of that name."""
    return Path(name) if name.endswith(".toml") or "/" in name else library.find(name, local)


def _plain(value: Any) -> Any:
    """Keys as they stand in the file, exact numbers as JSON has them."""
    if isinstance(value, dict):
        return {str(key).rstrip("_"): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value

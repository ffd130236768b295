"""heliograph map new NAME: starts a map from a table of registers, or from what a device answers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from heliograph import library
from heliograph.cli.map_file import make_folder, place_of_new, write
from heliograph.cli.options import json_option, print_json
from heliograph.core import decodings
from heliograph.core import line as lines
from heliograph.core.errors import BusRefused, ConfigError, UsageError
from heliograph.core.map_text import text_of
from heliograph.core.plan import line_cost
from heliograph.core.quantity import find
from heliograph.core.register_sheet import Counting, sheet
from heliograph.core.registers import Function, MeterMap, Register, Timing

if TYPE_CHECKING:
    from heliograph.work.identify import Sighting
    from heliograph.work.read_words import Heard

USUAL = ((0, 0xC7),)
"""What is looked at where nobody says: meters keep their instants in the first registers."""
MOST_COMMENTS = 80
FILL_IN_PRODUCTS = "fill in: what is printed on the device"
FEW = 4

HELP = """Start the map NAME, from a table of registers or from what a device answers.

The table is CSV with a row of names: address, quantity, type, unit, scale, and if you have them function, order,
words, absent, note. Usual other names and ways of writing are understood. Rows without a quantity are left out.

From a device: registers that behave like the phases of one grid are named, everything else that answers stands
there as a comment, to be named by you. What only a person can know is listed at the end. Reads only.

\b
  heliograph map new my-inverter --csv registers.csv
  heliograph map --local . new my-meter --bus tcp://192.168.1.50:502 --unit 3
  heliograph map --local . new my-meter --bus "serial:///dev/ttyUSB0?baudrate=9600" --unit 1 --range 0x0000-0x0100
"""


@dataclass(slots=True)
class Draft:
    """A map to be, and what stands beside it."""

    map: MeterMap
    comment: list[str] = field(default_factory=list)
    """On top of the file."""
    behind: dict[str, str] = field(default_factory=dict)
    """Behind the line of a quantity."""
    unnamed: list[str] = field(default_factory=list)
    """Lines below the registers, for whoever names them."""
    vectors: list[str] = field(default_factory=list)
    """Lines to be completed from the display, those that are needed."""
    more_vectors: list[str] = field(default_factory=list)
    """The same for what is read in the same way as one of these."""
    remarks: list[str] = field(default_factory=list)


@click.command("new", help=HELP)
@click.argument("name")
@click.option("--csv", "table", type=click.Path(path_type=Path, dir_okay=False), help="A table of registers.")
@click.option("--addresses", type=click.Choice(get_args(Counting)), default="auto", show_default=True,
              help="CSV: as on the wire, or as manuals number (30001, 40001).")  # fmt: skip
@click.option("--bus", "url", metavar="URL", help="The line of a device, as url of a [[bus]].")
@click.option("--unit", type=click.IntRange(0, 255), help="Unit id of the device.")
@click.option(
    "--range", "spans", multiple=True, metavar="FIRST-LAST", help="What to look at.  [default: 0x0000-0x00C7]"
)
@click.option("--function", type=click.Choice(get_args(Function)), help="[default: both; CSV: input where no row says]")
@click.option("--replace", "over", is_flag=True, help="Write over a map of that name.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    name: str,
    table: Path | None,
    addresses: Counting,
    url: str | None,
    unit: int | None,
    spans: tuple[str, ...],
    function: Function | None,
    over: bool,
    as_json: bool,
) -> None:
    local: Path = context.obj
    path = place_of_new(name, local, over=over)
    if (table is None) == (url is None) or (url is not None and unit is None):
        raise UsageError(
            "from what? A table of registers, or a line and a unit",
            hint=f"heliograph map new {name} --csv FILE, or --bus URL --unit N",
        )
    today = _today()
    if table is not None:
        faults, draft = _from_table(name, table, addresses, function or "input", today)
        for fault in faults:
            click.echo(fault, err=True)
        if faults:
            rows = "1 row" if len(faults) == 1 else f"{len(faults)} rows"
            are = "is" if len(faults) == 1 else "are"
            click.echo(f"{name} was not written: {rows} of {table} {are} not clear.", err=True)
            context.exit(ConfigError.exit_code)
    else:
        assert url is not None and unit is not None  # checked above
        make_folder(path)  # before minutes are spent on the line
        draft = _from_device(name, url, unit, spans, function, today, local)
    write(path, _text(draft))
    loaded, problems = library.check(path, local)
    if as_json:
        print_json(_facts(draft, path, loaded, problems))
    else:
        _tell(draft, path, problems)
    if any(problem.blocks for problem in problems) or loaded is None:
        context.exit(ConfigError.exit_code)


def _today() -> str:
    from heliograph.clock import SystemClock

    return f"{SystemClock().now():%Y-%m-%d}"


# -- from a table ---------------------------------------------------------------------------------------------------


def _from_table(
    name: str, table: Path, counting: Counting, function: Function, today: str
) -> tuple[list[library.Problem], Draft]:
    """The draft, and what has to be said more clearly before it can be one."""
    found = sheet(_rows(table), counting=counting, function=function)
    faults = [library.Problem(library.Place(table, one.line), one.message, one.hint) for one in found.faults]
    map = MeterMap(
        name=name,
        products=(FILL_IN_PRODUCTS,),
        source=f"{table.name}, taken over on {today}; fill in: title, version and page of the document",
        version=today,
        status="unverified",
        registers=found.tidy,
        function=found.function,
        order=found.order,
        production=_production(found.tidy),
        phases=_phases(found.tidy),
    )
    draft = Draft(map, remarks=list(found.remarks))
    draft.comment = [f"Started from {table.name} by heliograph map new. No device has confirmed it yet."]
    draft.behind = dict(found.written)
    draft.vectors = [_vector_line(register, "") for register in _to_show(map)]
    draft.more_vectors = [_vector_line(register, "") for register in _others(map)]
    return faults, draft


def _rows(table: Path) -> list[tuple[int, list[str]]]:
    """Rows with their line; separated by whatever the first line is separated by most."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", hint="Is the path right?", path=table) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", hint="Save it as CSV UTF-8.", path=table) from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    rows: list[tuple[int, list[str]]] = []
    before = 0
    for row in reader:
        if any(cell.strip() for cell in row) and not row[0].lstrip().startswith("#"):
            rows.append((before + 1, row))
        before = reader.line_num
    return rows


def _production(registers: Sequence[Register]) -> str | None:
    usable = {register.quantity for register in registers if library.may_be_production(register)}
    return next((name for name in ("energy_production", "energy_export", "energy_import") if name in usable), None)


def _phases(registers: Sequence[Register]) -> Any:
    names = {register.quantity for register in registers}
    return 3 if names & {"voltage_l2n", "current_l2"} else 1 if "voltage_l1n" in names else None


# -- from a device --------------------------------------------------------------------------------------------------


def _from_device(
    name: str, url: str, unit: int, spans: Sequence[str], function: Function | None, today: str, local: Path
) -> Draft:
    from heliograph.app import open_bus
    from heliograph.cli.probe import UNKNOWN_DEVICE, progress, span_of
    from heliograph.cli.scan import in_words
    from heliograph.work.identify import identify
    from heliograph.work.read_words import read_words

    wanted = [span_of(text) for text in spans] or list(USUAL)
    functions: tuple[Function, ...] = (function,) if function else get_args(Function)
    maps = [loaded.map for path in library.found(local).values() if (loaded := library.check(path, local)[0])]
    timing = replace(UNKNOWN_DEVICE, pause=0.02) if url.startswith("tcp:") else UNKNOWN_DEVICE
    many = len(functions) * sum(last - first + 1 for first, last in wanted)
    likely, most = _seconds(lines.parse(url), timing, many)
    spans_told = ", ".join(f"0x{first:04X}-0x{last:04X}" for first, last in wanted)
    click.echo(
        f"Reading {' and '.join(functions)} registers {spans_told} of unit {unit} at {url}: about {in_words(likely)},"
        f" up to {in_words(most)} where the device refuses most of them.",
        err=True,
    )
    bus = open_bus(url)
    heard: dict[Function, Heard] = {}
    try:
        with progress(many) as done:
            sighting = identify(bus, unit, maps)
            for one in functions:
                for first, last in wanted:
                    try:
                        more = read_words(bus, unit, one, first, last, timing, least=2, done=done)
                    except BusRefused:
                        break  # it does not know this function, and says so
                    heard.setdefault(one, more).add(more)
    finally:
        bus.close()
    if not any(some.words for some in heard.values()):
        raise ConfigError(
            f"unit {unit} at {url} answers, but refuses every register that was asked for",
            hint="Give the ranges of its manual: --range 0x1000-0x1080",
        )
    empty = MeterMap(
        name=name,
        products=(FILL_IN_PRODUCTS,),
        source=f"read from a device on {today}; fill in: title, version and page of the maker's document",
        version=today,
        status="unverified",
        registers=(),
        unit=unit,
        timing=timing,
    )
    return _drafted(url, sighting, heard, empty)


def _seconds(line: lines.Line, timing: Timing, registers: int) -> tuple[float, float]:
    """Until everything is read: where it all answers, and where each pair of registers is refused by itself."""
    cost = line_cost(line, timing)
    refusal = cost.of(2) + (0.0 if line.way == "tcp" else timing.timeout)  # on a line it is waited for what follows
    identity = 2.0 if line.way == "tcp" else 7.0
    return identity + registers / 60 * cost.of(60), identity + registers * refusal


def _drafted(url: str, sighting: Sighting, heard: Mapping[Function, Heard], empty: MeterMap) -> Draft:
    """The map of what was heard; `empty` holds what is known of it beside its registers."""
    sets = {function: decodings.phase_set(some.words) for function, some in heard.items()}
    best: Function = max(sets, key=lambda function: sets[function].score)
    found = sets[best]
    if not found.members:
        raise ConfigError(
            "nothing that answers behaves like the phases of a grid, so no register can be named",
            hint="Try it by day, or other ranges (--range 0x1000-0x1080), or start from a table: --csv FILE",
        )
    registers = sorted((_register(role, one) for role, one in found.members.items()), key=lambda r: r.address or 0)
    orders = [one.order for one in found.members.values() if len(one.words) > 1]
    order = max(set(orders), key=orders.count) if orders else "ABCD"
    widest = max(len(one.words) for one in found.members.values())
    map = replace(
        empty,
        registers=tuple(replace(r, order=None if r.order == order or _one_word(r) else r.order) for r in registers),
        function=best,
        order=order,
        max_words=60,
        fallback_words=tuple(size for size in (40, 10, 4, 2) if size >= widest),
        phases=3 if "voltage_l2n" in found.members else 1,
    )
    draft = Draft(map)
    draft.comment = [
        f"Started by heliograph map new from what unit {empty.unit} at {url} answered.",
        "No document has confirmed it yet.",
        "The registers below behave like one grid: voltages, currents and powers fit each other.",
    ]
    if not registers[0].type.startswith("float") and "current_l1" in found.members:
        draft.comment.append("Current and power could both be ten times larger or smaller: compare with the display.")
    if sighting.fits:
        draft.comment.append(f"Who it may be, by its identity registers: {sighting}")
        known = ", ".join(dict.fromkeys(fit.map.name for fit in sighting.candidates))
        draft.remarks.append(f"There are maps that may fit this device already: {known}. heliograph scan tells more.")
    for function, some in heard.items():
        draft.comment.append(f"{function} registers that answered: {_spans(sorted(some.words))}")
    draft.behind = {role: f"read {_shown(one.value)}" for role, one in found.members.items()}
    draft.unnamed = _unnamed(heard, best, found)
    draft.vectors = [_vector_line(r, _words(found.members[r.quantity].words)) for r in _to_show(map)]
    draft.more_vectors = [_vector_line(r, _words(found.members[r.quantity].words)) for r in _others(map)]
    return draft


def _register(role: str, one: decodings.Decoding) -> Register:
    quantity = find(role)
    unit = quantity.unit if quantity else ""
    return Register(
        quantity=role, type=one.type, address=one.address, unit=unit, order=one.order, scale=Decimal(f"{one.scale:f}")
    )


def _one_word(register: Register) -> bool:
    from heliograph.core.decode import width

    return width(register) == 1 and register.order in ("ABCD", "CDAB")


def _unnamed(heard: Mapping[Function, Heard], best: Function, found: decodings.PhaseSet) -> list[str]:
    """What else answers, as comments in the form of a register, read as the device writes its numbers."""
    marker = decodings.Marker(found.values, decodings.style_of(found.members))
    taken = {place for one in found.members.values() for place in range(one.address, one.last + 1)}
    lines: list[str] = []
    for function, some in heard.items():
        over = -1
        for address in sorted(some.words):
            if address <= over or (function == best and address in taken):
                continue
            text = decodings.text_at(some.words, address)
            where = "" if function == best else f', function = "{function}"'
            if text:
                count = -(-len(text) // 2)
                over = address + count - 1
                row = f'address = 0x{address:04X}, quantity = "", type = "text", words = {count}{where}'
                lines.append(f"# {{ {row} }},  # {text}")
                continue
            readings = [
                one
                for one in decodings.readings_at(some.words, address, marker)
                if one.usual and one.decoding.plausible and one.decoding.value
            ]
            readings.sort(key=lambda one: (not one.agrees, one.decoding.odd))
            if not readings:
                continue
            one = readings[0]
            over = one.decoding.last
            scale = f", scale = {one.decoding.scale:f}" if one.decoding.scale != 1 else ""
            could = f"; could be {one.marks[0].quantity}: {one.marks[0].why}" if one.agrees else ""
            row = f'address = 0x{address:04X}, quantity = "", type = "{one.decoding.type}", unit = ""{scale}{where}'
            lines.append(f"# {{ {row} }},  # read {_shown(one.decoding.value)}{could}")
    if len(lines) > MOST_COMMENTS:
        lines = [*lines[:MOST_COMMENTS], f"# and {len(lines) - MOST_COMMENTS} more: heliograph probe shows them"]
    return lines


def _shown(value: Decimal) -> str:
    return f"{value:.9g}"


def _spans(places: Sequence[int]) -> str:
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and spans[-1][1] == place - 1:
            spans[-1] = spans[-1][0], place
        else:
            spans.append((place, place))
    shown = [f"0x{a:04X}" if a == b else f"0x{a:04X}-0x{b:04X}" for a, b in spans]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "") or "none"


# -- what is written ------------------------------------------------------------------------------------------------


def _to_show(map: MeterMap) -> list[Register]:
    """The registers that want a vector: each counter that may be production, and one for each way of reading."""
    shown: list[Register] = []
    ways = set()
    for register in map.registers:
        way = register.type, map.order_of(register)
        if library.may_be_production(register) or (register.poll and way not in ways):
            shown.append(register)
            ways.add(way)
    return shown


def _others(map: MeterMap) -> list[Register]:
    """The other polled ones, of which `map check` speaks too until their way of reading is shown."""
    first = {register.quantity for register in _to_show(map)}
    return [register for register in map.registers if register.poll and register.quantity not in first]


def _words(words: Sequence[int]) -> str:
    return "[" + ", ".join(f"0x{word:04X}" for word in words) + "]"


def _vector_line(register: Register, words: str) -> str:
    unit = f"  # {register.unit}" if register.unit else ""
    row = f'quantity = "{register.quantity}", words = {words or "[ ]"}, value = ?, origin = "captured"'
    return f"# {{ {row} }},{unit}"


def _text(draft: Draft) -> str:
    """The map's text, with comments where a person has to go on."""
    lines: list[str] = []
    for line in text_of(draft.map, draft.comment).splitlines():
        if line == "]" and draft.unnamed:
            lines += ["  # What else answers. Name what you know (heliograph map schema), and remove the rest:"]
            lines += [f"  {one}" for one in draft.unnamed]
        # Manuals and dumps speak of registers in hex.
        row = re.sub(r"^  \{ address = (\d+), +", lambda match: f"  {{ address = 0x{int(match[1]):04X}, ", line)
        behind = [text for quantity, text in draft.behind.items() if f'quantity = "{quantity}",' in line]
        lines.append(f"{row}  # {behind[0]}" if behind else row)
    if draft.vectors:
        lines += [
            "",
            "# A vector is raw words and what the display showed at that moment. Only a person can give it: read the",
            "# words with heliograph probe, look at the display, and complete these lines.",
            "vectors = [",
            *(f"  {one}" for one in draft.vectors),
            *(["  # Read in the same way as one of the above; these may stay away:"] if draft.more_vectors else []),
            *(f"  {one}" for one in draft.more_vectors),
            "]",
        ]
    return "\n".join(lines) + "\n"


def _tell(draft: Draft, path: Path, problems: Sequence[library.Problem]) -> None:
    map = draft.map
    many = len(map.registers)
    click.echo(f"Written: {path}, {many} registers, {sum(r.poll for r in map.registers)} of them polled.")
    for remark in draft.remarks:
        click.echo(f"  {remark}")
    for problem in problems:
        if problem.blocks:
            click.echo(f"! {problem}")
    lacking = [problem for problem in problems if not problem.blocks]
    for problem in lacking[:FEW]:
        click.echo(f"  Still to be given by a person: {problem}")
    if len(lacking) > FEW:
        click.echo(f"  and {len(lacking) - FEW} more of this kind: heliograph map check {path}")
    if draft.unnamed:
        click.echo(f"  {len(draft.unnamed)} more numbers answer; they stand in the file as comments, to be named.")
    if not any(library.may_be_production(register) for register in map.registers):
        click.echo("  No energy counter is named yet: find it by its value on the display, among the comments.")
    click.echo(
        "Fill in products and source, give the vectors from the display, then: "
        f"heliograph map check {path}, and heliograph map try {path} METER"
    )


def _facts(
    draft: Draft, path: Path, loaded: library.LoadedMap | None, problems: Sequence[library.Problem]
) -> dict[str, Any]:
    map = draft.map
    return {
        "map": map.name,
        "path": str(path),
        "digest": loaded.digest if loaded else None,
        "registers": [{"quantity": r.quantity, "address": r.address, "type": r.type} for r in map.registers],
        "function": map.function,
        "order": map.order,
        "production": map.production,
        "unnamed": len(draft.unnamed),
        "remarks": draft.remarks,
        "problems": [
            {"path": str(p.place.path), "line": p.line, "message": p.message, "hint": p.hint, "blocks": p.blocks}
            for p in problems
        ],
    }

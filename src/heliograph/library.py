"""Meter maps: finding them, reading them from TOML, and everything that can be wrong with one.

A local map wins over a shipped one of the same name, and may extend it. What `problems` finds is found
without hardware, by `heliograph map check` and again whenever a map is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from heliograph.core import durations, quantity
from heliograph.core.decode import TYPES, Absent, addresses, ordered, value, width
from heliograph.core.errors import ConfigError
from heliograph.core.plausible import step_wh
from heliograph.core.registers import Identity, Maker, Match, MeterMap, Order, Register, SunSpec, Timing, Vector
from heliograph.core.sunspec import COMMON
from heliograph.toml_lines import lines, nearest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LOCAL = Path(os.environ.get("HELIOGRAPH_MAPS", "/etc/heliograph/meters"))
"""The site's own maps. Like HELIOGRAPH_CONFIG, the variable is for whoever works on a laptop without /etc."""
MOST_WORDS = 125
"""Registers in one answer, Modbus application protocol 1.1b3, section 6.3."""
NAME = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")

Key = str | int
TomlPath = tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written; with `extends` that may be another file."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else str(self.path)


@dataclass(frozen=True, slots=True)
class Problem:
    place: Place
    message: str
    hint: str = ""
    blocks: bool = True
    """False where the map still reads rightly but lacks a test; `check` insists, `load` does not."""

    @property
    def line(self) -> int | None:
        return self.place.line

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f". {self.hint}" if self.hint else "")

    def error(self) -> ConfigError:
        return ConfigError(self.message, hint=self.hint, path=self.place.path, line=self.place.line)


@dataclass(frozen=True, slots=True)
class Source:
    """A map's file as it is stored beside the indices it produced."""

    name: str
    """Of the file, without .toml: what a map that extends it calls it."""
    digest: str
    text: str


@dataclass(frozen=True, slots=True)
class LoadedMap:
    map: MeterMap
    text: str
    digest: str
    """SHA-256, in hex, over the file and the files it extends: it stands beside every index this map produced."""
    path: Path
    sources: tuple[Source, ...] = ()
    """The file and those it extends, in this order: `from_texts` needs no other to make this map again."""
    places: Mapping[TomlPath, Place] = field(repr=False, default_factory=dict)

    def place(self, *path: Key) -> Place:
        return nearest(self.places, path) or Place(self.path, 1)


class MapFaults(ConfigError):
    """A map that cannot be read; `problems` holds all that was found, the message the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(first.message + more, hint=first.hint, path=first.place.path, line=first.place.line)
        self.problems = tuple(problems)


# --- finding -----------------------------------------------------------------------------------------------------


def shipped_dir() -> Path:
    """The maps that came with the program: beside the code once installed, at the top of a source tree."""
    here = Path(__file__).parent
    installed = here / "meters"
    return installed if installed.is_dir() else here.parents[1] / "meters"


def found(local: Path | None = LOCAL) -> dict[str, Path]:
    """Every map there is, by name; a local one hides a shipped one."""
    files = {path.stem: path for path in shipped_dir().glob("*.toml")}
    if local is not None:
        try:
            files |= {path.stem: path for path in local.glob("*.toml")}
        except OSError as exc:
            raise ConfigError(f"the local maps cannot be read: {exc.strerror}", path=local) from exc
    return dict(sorted(files.items()))


def names(local: Path | None = LOCAL) -> tuple[str, ...]:
    return tuple(found(local))


def find(name: str, local: Path | None = LOCAL) -> Path:
    """The file of a map, or a ConfigError that names the nearest one there is."""
    files = found(local)
    if name not in files:
        raise ConfigError(
            f'there is no map "{name}"', hint=nearest_name(name, files, "All of them: heliograph map list")
        )
    return files[name]


def nearest_name(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names what was probably meant."""
    words = list(known)
    close = [other for other in words if other.casefold() == word.casefold()]  # kwh means kWh, not kW
    close = close or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"?' if close else otherwise


def models(m: MeterMap) -> tuple[str, ...]:
    """What is printed on the devices, without the maker's name."""
    return tuple(product.removeprefix(f"{m.maker} ") if m.maker else product for product in m.products)


STEP_AT = 100_000_000
"""Wh at which the step of a float is told, for it grows with the counter: a 50 kW roof gets there within two years."""


def step(m: MeterMap) -> tuple[int | None, str]:
    """The step of the production counter in Wh, and in words; None where the device or the site decides it."""
    register = m.register(m.production) if m.production else None
    if register is None:
        return None, ""
    if register.scale_register is not None and register.scale_exponent is None:
        return None, "the device says"
    if register.type == "float32":
        # `step_wh` allows for two steps of a float, here it is one: between 2^-24 and 2^-23 of the value.
        at = f"at {STEP_AT // 1_000_000} MWh"
        wh = step_wh(register, STEP_AT) // 2
        return (None, f"6 to 12 Wh {at}") if register.times else (wh, f"{wh} Wh {at}")
    wh = step_wh(register, STEP_AT)
    words = f"{wh} Wh" if wh < 10 else f"{Decimal(wh) / 1000:f} kWh"
    return (None, f"{words} × {' × '.join(register.times)}") if register.times else (wh, words)


# --- reading -----------------------------------------------------------------------------------------------------


def load(name: str, local: Path | None = LOCAL) -> LoadedMap:
    """A map fit for use: it reads, and nothing that `problems` finds would make a value wrong."""
    loaded = read(find(name, local), local)
    if blocking := [problem for problem in problems(loaded) if problem.blocks]:
        raise MapFaults(blocking)
    return loaded


def check(path: Path, local: Path | None = LOCAL) -> tuple[LoadedMap | None, tuple[Problem, ...]]:
    """All that is wrong with a file; the map is None when it could not even be read."""
    try:
        loaded = read(path, local)
    except MapFaults as exc:
        return None, exc.problems
    return loaded, tuple(problems(loaded))


def read(path: Path, local: Path | None = LOCAL) -> LoadedMap:
    """The map in a file, whatever `problems` may think of it. Raises MapFaults."""
    source = _source(path, local, ())
    return LoadedMap(_checked(source), source.text, source.digest, path, source.sources, source.places)


def from_texts(digest: str, texts: Mapping[str, tuple[str, str]]) -> MeterMap:
    """The map of that digest from stored texts alone (digest -> name, text), whatever the files say today.

    Raises ConfigError where a text is missing or is not the one the digest was made of.
    """
    return _checked(_stored(digest, texts))


def _stored(digest: str, texts: Mapping[str, tuple[str, str]]) -> _Source:
    if digest not in texts:
        raise ConfigError(
            f"the text of the map {digest[:12]} is not stored",
            hint="Its file may still exist: heliograph map list shows the digests of those there are.",
        )
    name, text = texts[digest]
    own = _own(Path(f"{name}.toml"), text)
    parent = own.values.get("extends")
    if not isinstance(parent, str):
        if own.digest != digest:
            raise ConfigError(
                f"the stored text of {name} is not the one that the digest {digest[:12]} was made of",
                hint="It was changed after it was stored; compare with a backup.",
            )
        return own
    # The digest names the parent: only the right one leads to it.
    for other, (called, _) in texts.items():
        if called == parent and _joined(text, other) == digest:
            return _extended(own, _stored(other, texts))
    raise ConfigError(
        f"the map {name} ({digest[:12]}) extends {parent}, and no stored text of {parent} leads to this digest",
        hint=f"Start the gateway once while the files of {name} and {parent} are as they were; it stores both.",
    )


def _checked(source: _Source) -> MeterMap:
    from pydantic import ValidationError

    faults = [*_unknown_durations(source)]
    checked: MeterMap | None = None
    try:
        # Through JSON, for only there strict means strict and arrays may be tuples. A float is written as its
        # shortest decimal, so 0.1 arrives as Decimal("0.1"); dates, which JSON lacks, as text.
        checked = _adapter().validate_json(json.dumps(source.values, default=str), strict=True)
    except ValidationError as exc:
        faults += [_fault(source, dict(error)) for error in exc.errors()]
    if faults or checked is None:
        raise MapFaults(sorted(faults, key=lambda problem: problem.place.line or 0))
    return checked


@cache
def _adapter() -> TypeAdapter[MeterMap]:
    from pydantic import TypeAdapter

    return TypeAdapter(MeterMap)


@dataclass(frozen=True, slots=True)
class _Source:
    """A file, with what it extends already taken over."""

    path: Path
    text: str
    digest: str
    values: dict[str, Any]
    places: dict[TomlPath, Place]
    sources: tuple[Source, ...]

    def place(self, path: Sequence[Key]) -> Place:
        return nearest(self.places, path) or Place(self.path, 1)


OWN_KEYS = ("name", "products", "source", "version", "status")
"""What a map says of itself, and never takes over from another."""
_TABLES = ("timing", "identity", "sunspec")


def _source(path: Path, local: Path | None, above: tuple[Path, ...]) -> _Source:
    own = _own(path, _text(path))
    parent = own.values.get("extends")
    if not isinstance(parent, str):
        return own
    above = (*above, path)
    files = found(None if parent == path.stem else local)  # a local map may extend the shipped one it hides
    if parent not in files:
        hint = nearest_name(parent, files, "All of them: heliograph map list")
        raise MapFaults([Problem(own.place(("extends",)), f'it extends "{parent}", which does not exist', hint)])
    if files[parent] in above:
        raise MapFaults([Problem(own.place(("extends",)), f'it extends "{parent}", which extends it in turn')])
    return _extended(own, _source(files[parent], local, above))


def _own(path: Path, text: str) -> _Source:
    """A file by itself, nothing taken over yet."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise MapFaults([_not_toml(path, text, exc)]) from exc
    places = {key: Place(path, line) for key, line in lines(text).items()}
    _in_our_units(values)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _Source(path, text, digest, values, places, (Source(path.stem, digest, text),))


def _joined(text: str, parent_digest: str) -> str:
    """The digest of a map that extends another."""
    return hashlib.sha256(f"{text}\0{parent_digest}".encode()).hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as exc:
        raise MapFaults([Problem(Place(path), f"cannot be read: {exc.strerror}")]) from exc
    except UnicodeDecodeError as exc:
        line = exc.object[: exc.start].count(b"\n") + 1
        raise MapFaults([Problem(Place(path, line), "is not UTF-8 text", "Save it as UTF-8.")]) from exc


def _not_toml(path: Path, text: str, exc: tomllib.TOMLDecodeError) -> Problem:
    words = re.fullmatch(r"(?P<what>.*?) ?\(at (?:line (?P<line>\d+), .*|end of document)\)", str(exc), re.DOTALL)
    if words is None:
        return Problem(Place(path), f"is not TOML: {exc}")
    line = int(words["line"]) if words["line"] else text.count("\n") + 1
    return Problem(Place(path, line), f"is not TOML: {words['what']}")


def _extended(own: _Source, parent: _Source) -> _Source:
    """Own keys win; own registers take the place of those of the same quantity, and with them go the old vectors.

    So do those of inherited numbers whose words arrive in another order now: they show the parent's.
    """
    values = {key: content for key, content in parent.values.items() if key not in OWN_KEYS and key != "extends"}
    places = {key: place for key, place in parent.places.items() if key[0] in values}
    for key, content in own.values.items():
        if key in _TABLES and isinstance(content, dict) and isinstance(values.get(key), dict):
            values[key] = values[key] | content
            for inner in content:
                _forget(places, (key, inner))
        elif key not in ("registers", "vectors") or not isinstance(content, list):
            values[key] = content
            _forget(places, (key,))
    places |= {key: place for key, place in own.places.items() if key[0] not in ("registers", "vectors")}
    replaced = {_quantity(row) for row in _rows(own.values, "registers")}
    shown_otherwise = _other_words(parent.values, own.values)
    for key in ("registers", "vectors"):
        if not isinstance(values.get(key, []), list):
            continue  # not a list at all: the checker says so
        inherited = [
            (i, row)
            for i, row in enumerate(_rows(parent.values, key))
            if _quantity(row) not in replaced and not (key == "vectors" and shown_otherwise(row))
        ]
        added = list(enumerate(_rows(own.values, key)))
        values[key] = [row for _, row in (*inherited, *added)]
        heading = own.places.get((key,)) or places.get((key,)) or Place(own.path, 1)
        _forget(places, (key,))
        places[(key,)] = heading
        places |= _moved(parent.places, key, {old: new for new, (old, _) in enumerate(inherited)})
        places |= _moved(own.places, key, {old: new + len(inherited) for new, (old, _) in enumerate(added)})
    digest = _joined(own.text, parent.digest)
    sources = (Source(own.path.stem, digest, own.text), *parent.sources)
    return _Source(own.path, own.text, digest, values, places, sources)


def _other_words(parent: Mapping[str, Any], own: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Whether a vector of the parent has other words in a map with the own order."""
    usual = next(f.default for f in dataclasses.fields(MeterMap) if f.name == "order")
    before, after = (values.get("order", usual) for values in (parent, {**parent, **own}))
    if before == after or not {before, after} <= set(get_args(Order)):
        return lambda _: False
    fixed = {_quantity(row) for row in _rows(parent, "registers") if isinstance(row, dict) and _keeps_its_order(row)}

    def other(vector: Any) -> bool:
        words = vector.get("words") if isinstance(vector, dict) else None
        if _quantity(vector) in fixed or not isinstance(words, list):
            return False
        if not all(isinstance(word, int) and 0 <= word <= 0xFFFF for word in words):
            return False  # the checker says so
        return ordered(words, before) != ordered(words, after)

    return other


def _keeps_its_order(row: Mapping[str, Any]) -> bool:
    return "order" in row or row.get("type") == "text"


def _rows(values: Mapping[str, Any], key: str) -> list[Any]:
    rows = values.get(key, [])
    return rows if isinstance(rows, list) else []


def _quantity(row: Any) -> Any:
    return row.get("quantity") if isinstance(row, dict) else None


def _forget(places: dict[TomlPath, Place], path: TomlPath) -> None:
    for key in [key for key in places if key[: len(path)] == path]:
        del places[key]


def _moved(places: Mapping[TomlPath, Place], key: str, numbers: Mapping[int, int]) -> dict[TomlPath, Place]:
    return {
        (key, numbers[path[1]], *path[2:]): place
        for path, place in places.items()
        if path[0] == key and len(path) > 1 and isinstance(path[1], int) and path[1] in numbers
    }


# --- what TOML says differently from core ----------------------------------------------------------------------------

DURATIONS = tuple(f.name for f in dataclasses.fields(Timing) if f.type == "float")
"""The keys of [timing] that are written as "60ms" or "1.5s"."""
NO_VALUE = "absent"
"""What a vector's `value` says when its words mean that there is none."""


def _in_our_units(values: dict[str, Any]) -> None:
    """Durations as seconds and "absent" as None, in place; what does not fit is left for the checker to name."""
    timing = values.get("timing")
    if isinstance(timing, dict):
        for key in DURATIONS:
            if isinstance(text := timing.get(key), str) and re.match(durations.PATTERN, text):
                timing[key] = _Seconds(durations.duration(text).total_seconds())
    for row in _rows(values, "vectors"):
        if isinstance(row, dict) and row.get("value") == NO_VALUE:
            row["value"] = None


class _Seconds(float):
    """A duration that came with its unit; a bare number in the file does not become one."""


def _unknown_durations(source: _Source) -> Iterator[Problem]:
    timing = source.values.get("timing")
    if not isinstance(timing, dict):
        return
    for key in DURATIONS:
        if key in timing and not isinstance(timing[key], _Seconds):
            yield Problem(
                source.place(("timing", key)),
                f"{key} is no duration: {timing[key]}",
                'Write it with a unit, as "60ms".',
            )
            timing[key] = 0  # said once, here


# --- faults of form ------------------------------------------------------------------------------------------------

_CLASSES: tuple[tuple[tuple[type[Key] | str, ...], type, str], ...] = (
    (("registers", int), Register, "this register"),
    (("vectors", int), Vector, "this vector"),
    (("identity", "match", int), Match, "this match"),
    (("timing",), Timing, "[timing]"),
    (("identity",), Identity, "[identity]"),
    (("sunspec",), SunSpec, "[sunspec]"),
    (("sunspec", "makers", int), Maker, "this maker"),
    ((), MeterMap, "this map"),
)


def _owner(path: Sequence[Key]) -> tuple[type, str]:
    """The class that a key belongs to, and what people call it."""
    for shape, cls, words in _CLASSES:
        if len(path) == len(shape) and all(
            isinstance(key, part) if isinstance(part, type) else key == part
            for key, part in zip(path, shape, strict=True)
        ):
            return cls, words
    return MeterMap, "this map"


def _fault(source: _Source, error: dict[str, Any]) -> Problem:
    """A checker's finding in our words, with its line and the nearest valid name."""
    path: tuple[Key, ...] = error["loc"]
    place = source.place(path)
    *outer, key = path or ("",)
    cls, owner = _owner(outer)
    if error["type"] == "unexpected_keyword_argument":
        known = [f.name.rstrip("_") for f in dataclasses.fields(cls)]
        hint = nearest_name(str(key), known, f"It may have: {', '.join(known)}")
        return Problem(place, f'{owner} has an unknown key "{key}"', hint)
    if error["type"] == "missing" and isinstance(key, str):
        return Problem(place, f'{owner} has no "{key}"')
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"]) or [error["ctx"]["expected"]]
        hint = nearest_name(str(error["input"]), choices, f"It may be: {', '.join(choices)}")
        return Problem(place, f'"{error["input"]}" is no {key}', hint)
    dotted = ".".join(str(part) for part in path if isinstance(part, str))
    return Problem(place, f"{dotted}: {error['msg'].removeprefix('Input ')}, not {json.dumps(error['input'])}")


# --- faults of sense -----------------------------------------------------------------------------------------------


def problems(loaded: LoadedMap) -> list[Problem]:
    """All that a map says and cannot mean, in the order of its lines."""
    out: list[Problem] = []
    for rule in _RULES:
        out.extend(rule(loaded))
    return sorted(out, key=lambda problem: (str(problem.place.path), problem.place.line or 0))


def _header(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    if not NAME.fullmatch(m.name) or m.name != loaded.path.stem:
        yield Problem(loaded.place("name"), f'it calls itself "{m.name}", its file "{loaded.path.stem}"')
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", m.version):
        yield Problem(loaded.place("version"), f'version "{m.version}" is no date', 'Write it as "2026-08-31".')
    for key in ("source", "products"):
        if not getattr(m, key):
            yield Problem(loaded.place(key), f"{key} is empty", "An auditor will ask where the numbers come from.")
    if not m.registers:
        yield Problem(loaded.place("registers"), "it has no registers")
    for key, low, high in (("max_words", 1, MOST_WORDS), ("unit", 0, 255), ("port", 1, 65535)):
        if not low <= getattr(m, key) <= high:
            yield Problem(loaded.place(key), f"{key} is {getattr(m, key)}, not {low} to {high}")


def _limits(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    widest = max(m.registers, key=width, default=None)
    for before, after in pairwise((m.max_words, *m.fallback_words)):
        if after >= before:
            yield Problem(loaded.place("fallback_words"), f"fallback_words: {after} does not come below {before}")
    if widest and m.fallback_words and m.fallback_words[-1] < width(widest):
        smallest, name = m.fallback_words[-1], widest.quantity
        yield Problem(loaded.place("fallback_words"), f"{name} has {width(widest)} registers, the last size {smallest}")
    for i, (first, last) in enumerate(m.no_gap):
        if first > last:
            yield Problem(loaded.place("no_gap", i), f"this range runs from 0x{first:04X} down to 0x{last:04X}")
    if m.no_gap and not m.read_gaps:
        yield Problem(loaded.place("no_gap"), "no_gap without read_gaps has no effect", "No gap is read anyway.")


def _addresses(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    for i, r in enumerate(m.registers):
        place = loaded.place("registers", i)
        if (r.address is None) == (not r.addresses):
            yield Problem(place, f"{r.quantity} needs an address, or a list of addresses, and not both")
            continue
        fixed = TYPES[r.type].words
        if fixed is None and r.words is None:
            yield Problem(place, f"{r.quantity} is {r.type} and does not say of how many words")
        if fixed is not None and r.words not in (None, fixed):
            yield Problem(place, f"{r.quantity} says {r.words} words, but {r.type} has {fixed}")
        if r.addresses and len(r.addresses) != width(r):
            yield Problem(place, f"{r.quantity} has {len(r.addresses)} addresses, but {r.type} has {width(r)} words")
        if not 1 <= width(r) <= min(m.max_words, MOST_WORDS):
            yield Problem(place, f"{r.quantity} has {width(r)} words; max_words is {m.max_words}")
        elif not all(0 <= address <= 0xFFFF for address in addresses(r)):
            yield Problem(place, f"{r.quantity} does not lie within 0x0000 to 0xFFFF")
        if not r.models:
            for first, last in m.no_gap:
                if any(first <= address <= last for address in addresses(r)):
                    yield Problem(place, f"{r.quantity} lies in 0x{first:04X} to 0x{last:04X}, which no_gap forbids")


DEVICE = -1
"""In place of a SunSpec model: the address is the device's own."""


def _overlaps(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    taken: dict[tuple[str, int, int], int] = {}
    named: dict[str, int] = {}
    for i, r in enumerate(m.registers):
        if (other := named.setdefault(r.quantity, i)) != i:
            first = loaded.place("registers", other)
            yield Problem(loaded.place("registers", i), f"{r.quantity} is already on {first}")
        for model, address in product(r.models or (DEVICE,), addresses(r)):
            other = taken.setdefault((m.function_of(r), model, address), i)
            if other != i:
                whose = m.registers[other].quantity
                yield Problem(
                    loaded.place("registers", i),
                    f"{r.quantity} overlaps {whose} ({loaded.place('registers', other)}) at 0x{address:04X}",
                )
                break


def _meanings(loaded: LoadedMap) -> Iterator[Problem]:
    for i, r in enumerate(loaded.map.registers):
        place = loaded.place("registers", i)
        known = quantity.find(r.quantity)
        if known is None:
            hint = nearest_name(r.quantity, quantity.names(), "The words we know are in core/quantity.py.")
            yield Problem(place, f'there is no quantity "{r.quantity}"', hint)
            continue
        if r.unit not in quantity.UNITS:
            hint = nearest_name(
                r.unit,
                quantity.UNITS,
                f"{known.name} is kept in {known.unit}." if known.unit else f"{known.name} has no unit.",
            )
            yield Problem(place, f'there is no unit "{r.unit}"', hint)
        elif known.kind != "setting" and quantity.UNITS[r.unit][0] != known.unit:
            fitting = ", ".join(unit or '""' for unit, (kept, _) in quantity.UNITS.items() if kept == known.unit)
            yield Problem(place, f'{r.quantity} cannot be in "{r.unit}"', f"It may be in: {fitting}")
        if known.kind == "counter" and r.monotonic is None:
            yield Problem(place, f"{r.quantity} is a counter and does not say whether it is monotonic")
        if known.kind != "counter":
            for key in ("monotonic", "step", "rollover", "scale_exponent", "contains", "resettable"):
                if getattr(r, key) not in (None, ""):
                    yield Problem(place, f"{r.quantity} is no counter, {key} has no meaning")


def _numbers(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    factors = {r.quantity for r in m.registers if not r.times} | set(m.from_site)
    powers = [r for r in m.registers if r.type == "sunssf"]
    exponents = {(m.function_of(r), model, r.address) for r in powers for model in r.models or (DEVICE,)}
    for i, name in enumerate(m.from_site):
        if quantity.find(name) is None:
            hint = nearest_name(name, quantity.names())
            yield Problem(loaded.place("from_site", i), f'there is no quantity "{name}"', hint)
    for i, r in enumerate(m.registers):
        place = loaded.place("registers", i)
        if r.order in ("CDAB", "DCBA") and (r.type == "text" or width(r) == 1):
            what = "text" if r.type == "text" else "one word"
            yield Problem(place, f"{r.quantity} is {what}, {r.order} has no meaning there", "Swapped bytes are BADC.")
        if r.scale == 0:
            yield Problem(place, f"{r.quantity} is scaled by 0")
        if r.type == "text" and (r.scale != 1 or r.unit or r.times or r.range or r.scale_register is not None):
            yield Problem(place, f"{r.quantity} is text; unit, scale, times and range are for numbers")
        for raw in r.absent:
            if not 0 <= raw < 1 << (16 * width(r)):
                yield Problem(place, f"{r.quantity}: absent 0x{raw:X} does not fit into {width(r)} words (unsigned)")
        if r.range is not None and r.range[0] >= r.range[1]:
            yield Problem(place, f"{r.quantity}: the range {r.range[0]} to {r.range[1]} is empty")
        for name in r.times:
            if name not in factors:
                hint = nearest_name(name, factors, "Add its register, or name it in from_site.")
                yield Problem(place, f'{r.quantity} is multiplied by "{name}", which is not in this map', hint)
        if r.scale_register is not None and any(
            (m.function_of(r), model, r.scale_register) not in exponents for model in r.models or (DEVICE,)
        ):
            yield Problem(
                place,
                f"{r.quantity} is scaled by 0x{r.scale_register:04X}, which is no sunssf register of this map",
                "It needs a register of type sunssf, of the same function and model.",
            )
        if r.scale_register is None and r.scale_exponent is not None:
            yield Problem(place, f"{r.quantity} has a scale_exponent, but no scale_register that could hold it")


def _sunspec(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    known = {COMMON, *m.sunspec.models, *m.sunspec.beside} if m.sunspec is not None else set()
    for i, r in enumerate(m.registers):
        place = loaded.place("registers", i)
        for model in r.models:
            if model not in known:
                yield Problem(place, f"{r.quantity} is in SunSpec model {model}, which [sunspec] models does not list")
        if r.repeat is not None and (not r.models or r.repeat < 1):
            yield Problem(place, f"{r.quantity}: repeat is the length of a repeated group of a SunSpec model")
        elif r.repeat is not None and "1" not in r.quantity:
            yield Problem(
                place, f"{r.quantity} is repeated and has no 1 in its name that could become the group's number"
            )
    if m.sunspec is not None and not m.sunspec.models:
        yield Problem(loaded.place("sunspec"), "[sunspec] names no models, so no device can be found by it")


def _production(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    if m.production is None:
        return
    place = loaded.place("production")
    r = m.register(m.production)
    if r is None:
        hint = nearest_name(m.production, (r.quantity for r in m.registers))
        yield Problem(place, f'production is "{m.production}", which is no register of this map', hint)
    elif not may_be_production(r):
        hint = f"It may be: {', '.join(r.quantity for r in m.registers if may_be_production(r))}"
        yield Problem(place, f"production is {m.production}, which is no monotonic energy counter", hint)


def may_be_production(register: Register) -> bool:
    """Whether a site may choose it: a Wh counter that should never fall in normal life."""
    known = quantity.find(register.quantity)
    return known is not None and known.kind == "counter" and known.unit == "Wh" and register.monotonic is True


def _identity(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    serial = m.identity.serial
    if serial is not None and m.register(serial) is None:
        hint = nearest_name(serial, (r.quantity for r in m.registers))
        yield Problem(loaded.place("identity", "serial"), f'the serial is in "{serial}", which is no register', hint)
    for i, match in enumerate(m.identity.match):
        place = loaded.place("identity", "match", i)
        fixed = TYPES[match.type].words
        count = fixed or match.words or 0
        if not 1 <= count <= min(m.max_words, MOST_WORDS) or (fixed and match.words not in (None, fixed)):
            yield Problem(place, f"this match is {match.type} of {match.words or 'no'} words")
        if not 0 <= match.address <= 0x10000 - max(count, 1):
            yield Problem(place, f"address 0x{match.address:X} does not lie within 0x0000 to 0xFFFF")
        if not match.values:
            yield Problem(place, "this match accepts no value at all")
        for wanted in match.values:
            if isinstance(wanted, str) != (match.type == "text"):
                yield Problem(place, f"a {match.type} can never be {wanted!r}")
    if m.identity.required and not m.identity.match:
        yield Problem(loaded.place("identity", "required"), "identity is required, but nothing is matched")


def _vectors(loaded: LoadedMap) -> Iterator[Problem]:
    m = loaded.map
    for i, v in enumerate(m.vectors):
        place = loaded.place("vectors", i)
        r = m.register(v.quantity)
        if r is None:
            hint = nearest_name(v.quantity, (r.quantity for r in m.registers))
            yield Problem(place, f'this vector is for "{v.quantity}", which is no register of this map', hint)
        elif len(v.words) != width(r) or not all(0 <= word <= 0xFFFF for word in v.words):
            yield Problem(place, f"{v.quantity} is {width(r)} words of 0x0000 to 0xFFFF")
        else:
            got = value(r, m.order_of(r), v.words, exponent=v.scale_exponent, factors=v.with_)
            if (None if isinstance(got, Absent) else got) != v.value:
                wanted = "no value" if v.value is None else f"{v.value} {r.unit}".rstrip()
                shown = got.reason if isinstance(got, Absent) else f"{got} {r.unit}".rstrip()
                yield Problem(place, f"{v.quantity} decodes to {shown}, not to {wanted}")
        if not v.origin:
            yield Problem(place, f"the vector of {v.quantity} does not say where it comes from", blocks=False)


def _evidence(loaded: LoadedMap) -> Iterator[Problem]:
    """Every way of decoding that is polled, and every counter that money may hang on, is shown once by a vector."""
    m = loaded.map
    shown = {v.quantity for v in m.vectors if v.value is not None}
    ways = {(r.type, m.order_of(r)) for r in m.registers if r.quantity in shown}
    for i, r in enumerate(m.registers):
        if r.quantity in shown:
            continue
        if may_be_production(r):
            words = f"{r.quantity} may be production and has no vector"
        elif r.poll and (r.type, m.order_of(r)) not in ways:
            words = f"{r.quantity} is polled, but no vector shows how {r.type} {m.order_of(r)} is read"
        else:
            continue
        yield Problem(loaded.place("registers", i), words, "Add raw words and the value they show.", blocks=False)


_RULES: tuple[Callable[[LoadedMap], Iterator[Problem]], ...] = (
    _header, _limits, _addresses, _overlaps, _meanings, _numbers, _sunspec, _production, _identity, _vectors, _evidence,
)  # fmt: skip


# --- for editors ---------------------------------------------------------------------------------------------------


def map_schema() -> dict[str, Any]:
    """JSON Schema of a map's file, made from the classes in core/registers.py and their docstrings."""
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

    class Generator(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ARG002 - the signature is pydantic's
            return {"type": "number"}

        def encode_default(self, dft: Any) -> Any:
            return int(dft) if isinstance(dft, Decimal) else super().encode_default(dft)

    schema = _tidied(_adapter().json_schema(schema_generator=Generator))
    definitions = schema["$defs"]
    for name in DURATIONS:
        timing = definitions["Timing"]["properties"][name]
        timing |= {"type": "string", "pattern": durations.PATTERN, "default": _duration(timing["default"])}
    definitions["Vector"]["properties"]["value"]["anyOf"] = [{"type": "number"}, {"type": "string"}]
    definitions["Register"]["properties"]["unit"]["enum"] = list(quantity.UNITS)
    # The first alternative is what an editor offers, the second lets open families such as A_SF pass.
    definitions["Quantity"] = {"anyOf": [{"enum": list(quantity.names())}, {"type": "string"}]}
    for name in ("Register", "Vector"):
        definitions[name]["properties"]["quantity"] |= {"$ref": "#/$defs/Quantity"}
    for name in ("timing", "identity"):
        schema["properties"][name].pop("default")  # its own keys have theirs
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Heliograph meter map"}
    return {
        **head,
        **schema,
        "required": list(OWN_KEYS),
        "anyOf": [{"required": ["registers"]}, {"required": ["extends"]}],
    }


def _duration(seconds: float) -> str:
    return f"{seconds:g}s" if seconds == 0 or seconds >= 1 else f"{seconds * 1000:g}ms"


def _tidied(node: Any) -> Any:
    """Without titles that repeat the key, line breaks in descriptions, and null, which TOML does not have."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _tidied(item) for key, item in node.items() if not (key == "title" and isinstance(item, str))}
    if isinstance(words := out.get("description"), str):
        out["description"] = " ".join(words.split())
    if {"type": "null"} in (choices := out.get("anyOf", [])):
        out.pop("anyOf")
        out.pop("default", None)
        rest = [choice for choice in choices if choice != {"type": "null"}]
        out |= rest[0] if len(rest) == 1 else {"anyOf": rest}
    return out


def schema_text() -> str:
    """As it is shipped beside the maps."""
    return json.dumps(map_schema(), indent=2) + "\n"

"""A map as the text of its file: one register, one line, and nothing that is as it would be anyway."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from heliograph.core.registers import MeterMap

_SECONDS = ("pause", "after_connect", "timeout", "min_poll", "turnaround")
_LINES = ("registers", "vectors")
_SETTLED = ("name", "products", "source", "version", "status")
_FIRST = ("model", "address", "addresses", "quantity", "type", "words")


def text_of(map: MeterMap, comment: Sequence[str] = ()) -> str:
    """TOML that reads back as this map; `comment` stands on top of it."""
    lines = ["#:schema ./map.schema.json", *_comment(comment)]
    width = max(len(name) for name in _SETTLED)
    lines += [f"{name:<{width}} = {_value(getattr(map, name))}" for name in _SETTLED]
    told = {f.name: getattr(map, f.name) for f in dataclasses.fields(map) if not _usual(f, getattr(map, f.name))}
    lines.append("")
    for name, value in told.items():
        if name in (*_SETTLED, *_LINES, "timing", "identity", "sunspec"):
            continue
        lines.append(f"{name} = {_value(value)}")
    for table in ("timing", "identity", "sunspec"):
        if table in told:
            lines += ["", *_dotted(table, told[table])]
    lines += ["", "registers = [", *_rows(_register(one) for one in map.registers), "]"]
    if map.vectors:
        lines += ["", "vectors = [", *_rows(_vector(one) for one in map.vectors), "]"]
    return "\n".join(lines) + "\n"


def _comment(paragraphs: Sequence[str]) -> list[str]:
    lines = [line for one in paragraphs for line in one.splitlines() or [""]]
    return [
        "# ".rstrip() if not line else f"# {''.join(c if c.isprintable() else ' ' for c in line)}" for line in lines
    ]


def _usual(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(field.default == value)
    return field.default_factory is not dataclasses.MISSING and bool(field.default_factory() == value)


def _told(value: Any) -> dict[str, Any]:
    """The keys of a table that are not as they would be anyway."""
    return {
        f.name.rstrip("_"): getattr(value, f.name)
        for f in dataclasses.fields(value)
        if not _usual(f, getattr(value, f.name))
    }


def _dotted(table: str, value: Any) -> list[str]:
    lines = []
    for key, one in _told(value).items():
        if table == "timing" and key in _SECONDS:
            lines.append(f'timing.{key} = "{_duration(one)}"')
        elif isinstance(one, tuple) and one and dataclasses.is_dataclass(one[0]):
            lines += [f"{table}.{key} = [", *(f"  {_inline(_told(each))}," for each in one), "]"]
        else:
            lines.append(f"{table}.{key} = {_value(one)}")
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds:g}s" if seconds == 0 or seconds >= 1 else f"{seconds * 1000:g}ms"


def _register(register: Any) -> dict[str, str]:
    told = _told(register)
    order = [key for key in _FIRST if key in told] + [key for key in told if key not in _FIRST]
    return {key: _hex(told[key]) if key == "absent" else _value(told[key]) for key in order}


def _vector(vector: Any) -> dict[str, str]:
    told = {"value": vector.value} | _told(vector)
    keys = ["quantity", "words", "with", "scale_exponent", "value", "origin"]
    row = {key: _value(told[key]) for key in keys if key in told}
    row["words"] = _hex(vector.words)
    row["value"] = '"absent"' if vector.value is None else _value(vector.value)
    return row


def _rows(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Lined up as far as the rows begin with the same keys."""
    found = list(rows)
    widths: dict[str, int] = {}
    for row in found:
        for key, text in row.items():
            widths[key] = max(widths.get(key, 0), len(text))
    lines = []
    for row in found:
        keys = list(row)
        parts = []
        for number, key in enumerate(keys):
            last = number == len(keys) - 1
            aligned = key in ("address", "quantity", "type") and not last
            text = f"{key} = {row[key]}" + ("" if last else ",")
            parts.append(text + " " * (widths[key] - len(row[key]) if aligned else 0))
        lines.append("  { " + " ".join(parts) + " },")
    return lines


def _hex(words: Iterable[int]) -> str:
    return "[" + ", ".join(f"0x{word:04X}" for word in words) + "]"


def _inline(table: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in table.items()) + " }"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, dict):
        return _inline(value)
    if isinstance(value, int) and value > 0xFFFF:  # several words: a marker or a code
        return f"0x{value:X}"
    return str(value)


def _quoted(text: str) -> str:
    """A basic string of TOML: what JSON writes is one, but for the character that JSON need not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")

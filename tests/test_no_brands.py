"""No code knows a maker, a model or a map: what is special about a device is a key of its map.

The words are those of the shipped maps, so a new one is covered by itself. Comments and docstrings may name devices;
other text may where the table below says why, and nowhere may anything be decided by such a word.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph import library

CODE = Path(__file__).parents[1] / "src" / "heliograph"
MAPS = tuple(library.load(name, None).map for name in library.names(None))

EXAMPLES = "an example in a help text"
ALLOWED = {
    "cli/demo.py": "its help text says which meter is simulated",
    "cli/doctor.py": EXAMPLES,
    "cli/map_try.py": EXAMPLES,
    "cli/record.py": EXAMPLES,
    "cli/simulate.py": "examples in its help text, and the meter that is simulated unless another is named",
    "rehearsal/demo.py": "the demonstration's two meters",
    "work/discover.py": "a hint says at which unit id some makers speak SunSpec",
}

SPEAKS = {"SunSpec"}
"""A standard, and no maker, though its maps stand under that name."""
PLAIN = {"electric", "carlo", "rs485"}
"""Parts of names that are words of their own."""


def words() -> set[str]:
    """Makers, each word of their names, maps, and the parts of a map's name that can only be a model: em340."""
    makers = {map.maker for map in MAPS} - SPEAKS
    names = {map.name for map in MAPS if map.maker not in SPEAKS}
    parts = {part for maker in makers for part in maker.split()}
    models = {part for name in names for part in name.split("-") if re.fullmatch(r"[a-z]{2,}\d{2,}[a-z]*", part)}
    return {word.casefold() for word in makers | names | parts | models} - PLAIN


WORDS = words()
_WORD = re.compile(
    rf"(?<![a-z0-9])({'|'.join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True))})(?![a-z0-9])"
)


def found(text: str) -> list[str]:
    return _WORD.findall(text.casefold().replace("_", "-"))


def told(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text that the program may show or use, with its line; docstrings, also those of fields, are left out."""
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


def named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        name = next((getattr(node, key, None) for key in ("id", "attr", "name", "arg") if hasattr(node, key)), None)
        if isinstance(name, str):
            yield getattr(node, "lineno", 0), name


TESTS = ("startswith", "endswith", "find", "index", "count", "get", "match", "fullmatch", "search", "removeprefix")


def deciding(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts on which the way of the program may depend: compared, looked up, matched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.Subscript | ast.match_case | ast.Set):
            yield from told(node.pattern if isinstance(node, ast.match_case) else node)
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if key is not None:
                    yield from told(key)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TESTS:
            for argument in node.args:
                yield from told(argument)


FILES = sorted(CODE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CODE)))
def test_code_knows_no_maker_no_model_and_no_map(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    places = [(line, word) for line, text in (*named(tree), *deciding(tree)) for word in found(text)]
    if str(path.relative_to(CODE)) not in ALLOWED:
        places += [(line, word) for line, text in told(tree) for word in found(text)]
    assert places == [], "what is special about a device is a key of its map (meters/README.md)"


@pytest.mark.parametrize("name", ALLOWED)
def test_the_table_of_exceptions_holds_no_more_than_it_must(name: str) -> None:
    tree = ast.parse((CODE / name).read_text(encoding="utf-8"))
    assert any(found(text) for _, text in told(tree)), "this file may be taken out of ALLOWED"


@pytest.mark.parametrize(
    "code",
    [
        'if meter.map.name == "eastron-sdm630":\n    pass',
        'slow = "Growatt" in meter.map.products',
        'match maker:\n    case "SMA" | "Solis":\n        pass',
        'PAUSES = {"huawei-sun2000": 1.0}',
        'pause = PAUSES["Carlo Gavazzi"]',
        'if name.startswith("Sungrow "):\n    pass',
        'pause = 0.3 if maker in {"Kostal"} else 0.0',
        'kind = re.fullmatch("sdm630.*", name)',
        "def read_goodwe(bus):\n    pass",
        "class Em340:\n    pass",
        "fronius = True",
        'pause = meter.shelly_pause + len(f"{x} dtsu666")',
    ],
)
def test_a_special_case_for_a_device_would_be_found(code: str) -> None:
    """The control of the tests above."""
    tree = ast.parse(code)
    assert [word for _, text in (*named(tree), *deciding(tree)) for word in found(text)]


@pytest.mark.parametrize(
    "code",
    [
        '"""Eastron and SMA do this."""\nx = 1  # as a Growatt does',
        'x: int = 1\n"""Huawei needs it."""',
        'if small == "smart":\n    solicited = abbreviated = True',
    ],
)
def test_words_about_devices_are_not_code(code: str) -> None:
    tree = ast.parse(code)
    assert not [word for _, text in (*named(tree), *deciding(tree), *told(tree)) for word in found(text)]


def test_the_words_are_those_of_the_maps() -> None:
    assert {"eastron", "carlo gavazzi", "gavazzi", "schneider", "sdm630", "em340", "sungrow-sg-hires"} <= WORDS
    assert not {"sunspec", "electric", "meter", "input", "holding", "legacy", "hybrid"} & WORDS

"""A map as text reads back as the same map: every shipped one, and what a device may say in its texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from heliograph import library
from heliograph.core.map_text import text_of
from heliograph.core.registers import MeterMap


def back(map: MeterMap, folder: Path) -> MeterMap:
    (folder / f"{map.name}.toml").write_text(text_of(map, ["a comment", ""]), encoding="utf-8")
    return library.read(folder / f"{map.name}.toml", folder).map


@pytest.mark.parametrize("name", library.names(None))
def test_every_shipped_map_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    map = replace(library.load(name, None).map, extends=None)
    assert back(map, tmp_path) == map
    assert len(text_of(map).splitlines()) < len(map.registers) + len(map.vectors) + 60


@pytest.mark.parametrize(
    "said",
    ['He said "11"', "back\\slash", "Zürich", "tab\there", "\x7fdel", "\x01\x1f", "line\nbreak", "#]}", "'''", '"""'],
)
def test_what_a_device_says_of_itself_cannot_break_the_file(said: str, tmp_path: Path) -> None:
    map = replace(library.load("eastron-sdm120", None).map, products=(said,), source=said, maker=said)
    assert back(map, tmp_path) == map


def test_a_comment_of_several_lines_stays_a_comment(tmp_path: Path) -> None:
    map = replace(library.load("eastron-sdm120", None).map, extends=None)
    (tmp_path / "eastron-sdm120.toml").write_text(text_of(map, ['evil\nname = "another"']), encoding="utf-8")
    assert library.read(tmp_path / "eastron-sdm120.toml", tmp_path).map == map

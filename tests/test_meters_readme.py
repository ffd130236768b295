"""The table of maps in meters/README.md is the one that the shipped maps make.

`python -m tests.test_meters_readme` writes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heliograph import library
from heliograph.cli.map import COLUMNS, cells, summary

README = Path(__file__).parents[1] / "meters" / "README.md"
BEGIN, END = "<!-- maps -->\n", "<!-- /maps -->"


def made(rows: list[dict[str, Any]]) -> str:
    heading = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"
    lines = "".join(f"| `{name}` | {' | '.join(rest)} |\n" for name, *rest in map(cells, rows))
    return f"{BEGIN}\n{heading}{lines}\n{END}"


def shipped() -> list[dict[str, Any]]:
    return [summary(path, None) for path in library.found(None).values()]


def written(text: str) -> str:
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def test_the_table_in_the_readme_is_made_from_the_maps() -> None:
    shown = written(README.read_text(encoding="utf-8"))
    assert shown == made(shipped()), "write it anew: python -m tests.test_meters_readme"


@pytest.mark.parametrize("change", ["another", "one less", "another status"])
def test_other_maps_would_be_another_table(change: str) -> None:
    """The control of the test above."""
    rows = shipped()
    if change == "another":
        rows.append(rows[0] | {"name": "another"})
    elif change == "one less":
        del rows[0]
    else:
        rows[0]["status"] = "confirmed"
    assert written(README.read_text(encoding="utf-8")) != made(rows)


def test_every_shipped_map_has_what_the_table_shows() -> None:
    for row in shipped():
        assert row["maker"] and row["models"], row["name"]
        assert (row["production"] and row["step"]) or row["name"] == "sunspec-mppt", row["name"]
        if not row["name"].startswith("eastron-sdm660"):
            assert row["products"] == [f"{row['maker']} {model}" for model in row["models"]], row["name"]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(written(text), made(shipped())), encoding="utf-8")

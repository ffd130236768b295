"""The diagram of states in src/heliograph/README.md is the one that the table in core/delivery.py makes.

`python -m tests.core.test_states` writes it anew.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from heliograph.core import delivery
from heliograph.core.delivery import BEGINS, FOLLOWS, MEANS, WHY, State

README = Path(__file__).parents[2] / "src" / "heliograph" / "README.md"
BEGIN, END = "<!-- states -->\n", "<!-- /states -->"


def made() -> str:
    rows = "".join(f"| {state} | {MEANS[state]} |\n" for state in FOLLOWS)
    return f"{BEGIN}\n| state | meaning |\n| --- | --- |\n{rows}\n```mermaid\n{delivery.diagram()}```\n\n{END}"


def written(text: str) -> str:
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def test_the_diagram_in_the_readme_is_the_table() -> None:
    shown = written(README.read_text(encoding="utf-8"))
    assert shown == made(), "write it anew: python -m tests.core.test_states"


@pytest.mark.parametrize("change", ["added", "removed", "reworded"])
def test_another_table_would_be_another_diagram(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The control of the test above."""
    shown = written(README.read_text(encoding="utf-8"))
    if change == "added":
        monkeypatch.setitem(FOLLOWS, "confirmed", frozenset({"due"}))
        monkeypatch.setitem(WHY, ("confirmed", "due"), delivery.Edge(("person",), "by mistake"))
    elif change == "removed":
        monkeypatch.setitem(FOLLOWS, "accepted", FOLLOWS["accepted"] - {"held"})
    else:
        monkeypatch.setitem(WHY, ("due", "unclear"), delivery.Edge(("claim",), "another reason"))
    assert shown != made()


def test_every_way_and_every_state_has_its_words() -> None:
    states = set(get_args(State))
    assert set(FOLLOWS) == set(MEANS) == states and set(BEGINS) < states
    assert set(WHY) == {(state, to) for state, to in product(states, states) if to in FOLLOWS[state]}
    for text in (*(edge.why for edge in WHY.values()), *BEGINS.values()):
        # Mermaid reads a label up to the end of the line; these signs it reads as its own.
        assert text and not re.search(r"[:;#\n]", text), text


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(written(text), made()), encoding="utf-8")

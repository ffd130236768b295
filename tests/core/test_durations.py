from __future__ import annotations

from datetime import timedelta

import pytest

from heliograph.core import durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("10s", 10), ("15m", 900), ("15 min", 900), ("2h", 7200), ("90d", 7_776_000)]
)
def test_durations_are_written_as_people_write_them(text: str, seconds: float) -> None:
    assert durations.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "-5s", "10 weeks", "1h30m"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="10s"):
        durations.duration(text)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(seconds=45), "45 s"),
        (timedelta(minutes=12), "12 min"),
        (timedelta(hours=3.5), "3.5 h"),
        (timedelta(days=9), "9 d"),
    ],
)
def test_durations_are_shown_in_a_readable_unit(span: timedelta, text: str) -> None:
    assert durations.shown(span) == text

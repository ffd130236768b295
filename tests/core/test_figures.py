"""Energies as text and back."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.core import figures


@pytest.mark.parametrize(
    ("wh", "decimals", "text"),
    [
        (0, 3, "0.000"),
        (1, 3, "0.001"),
        (123, 3, "0.123"),
        (1000, 3, "1.000"),
        (5123, 3, "5.123"),
        (5123, 4, "5.1230"),
        (123_456_780, 3, "123456.780"),
        (10**17, 3, "100000000000000.000"),
        (-5, 3, "-0.005"),
    ],
)
def test_whole_wh_are_written_as_plain_kwh(wh: int, decimals: int, text: str) -> None:
    assert figures.kwh(wh, decimals) == text


def test_fewer_than_three_decimals_would_lose_a_wh() -> None:
    with pytest.raises(ValueError, match="whole Wh"):
        figures.kwh(5123, 2)


@pytest.mark.parametrize(
    ("kwh", "wh"),
    [
        ("5.123", 5123),
        (" 5.123 ", 5123),
        ("5.1230", 5123),
        ("0", 0),
        (5, 5000),
        (Decimal("0.123"), 123),
        (Decimal("5.1E+1"), 51_000),
        ("0.1234", None),  # four tenths of a Wh are not ours
        (0.123, None),  # a float has already lost what was sent
        (True, None),
        (None, None),
        ("", None),
        ("5,123", None),
        ("NaN", None),
        (Decimal("Infinity"), None),
        ("1e999999999", None),
        ("5." + "1" * 40, None),
        ("0e99999", None),
        ([], None),
    ],
)
def test_kwh_are_read_exactly_or_not_at_all(kwh: object, wh: int | None) -> None:
    assert figures.wh(kwh) == wh


@pytest.mark.parametrize(
    ("value", "wh"), [(41250, 41250), (Decimal("41250.0"), 41250), ("7", 7), (Decimal("0.5"), None)]
)
def test_wh_are_read_exactly_or_not_at_all(value: object, wh: int | None) -> None:
    assert figures.whole(value) == wh


@given(st.integers(min_value=-(10**15), max_value=10**15), st.sampled_from([3, 4]))
def test_what_is_written_is_read_back(wh: int, decimals: int) -> None:
    assert figures.wh(figures.kwh(wh, decimals)) == wh

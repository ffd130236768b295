"""Finding a day again in the bytes of a request."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest

from heliograph.core.body import in_wh, said

DAY = date(2026, 3, 14)
END = datetime(2026, 3, 14, 16, tzinfo=UTC)


def batch(*devices: tuple[str, list[tuple[str, str]]]) -> bytes:
    return json.dumps(
        {
            "Devices": [
                {"RemoteInvId": id, "Data": [{"Timestamp": day, "PeriodProductionInKWh": kwh} for day, kwh in days]}
                for id, days in devices
            ]
        },
        separators=(",", ":"),
    ).encode()


def test_a_day_is_found_under_its_own_device() -> None:
    body = batch(
        ("INV-1", [("2026-03-13", "1.000"), ("2026-03-14", "2.000")]),
        ("INV-2", [("2026-03-14", "3.000")]),
        ("INV-{3}\"'<&", [("2026-03-14", "4.000")]),
    )
    for id, kwh in (("INV-1", "2.000"), ("INV-2", "3.000"), ("INV-{3}\"'<&", "4.000")):
        found = said(body, id, DAY, [])
        assert found is not None
        assert found.numbers == (("PeriodProductionInKWh", kwh),)
        assert f'{{"Timestamp":"2026-03-14","PeriodProductionInKWh":"{kwh}"}}' in found.excerpt
        assert found.excerpt.strip("…") in body.decode() and not found.by_end
    assert said(body, "INV-2", date(2026, 3, 13), []) is None
    assert said(body, "INV-4", DAY, []) is None


def test_of_a_large_request_only_what_is_around_the_day_is_shown() -> None:
    days = [(str(DAY - timedelta(days=n)), f"{n}.000") for n in range(1000)][::-1]
    found = said(batch(("INV-1", days), ("INV-2", days)), "INV-2", DAY - timedelta(days=500), [])
    assert found is not None and len(found.excerpt) < 200
    assert found.excerpt.startswith("…") and found.excerpt.endswith("…")
    assert found.numbers == (("PeriodProductionInKWh", "500.000"),)


def test_the_older_form_names_the_device_behind_its_days() -> None:
    body = b'{"Data":[{"Timestamp":"2026-03-14","PeriodProductionInKWh":1.2500}],"RemoteInvId":"INV-1"}'
    found = said(body, "INV-1", DAY, [])
    assert found is not None and found.numbers == (("PeriodProductionInKWh", "1.2500"),)
    assert in_wh(*found.numbers[0]) == 1250


def test_a_read_that_names_the_end_is_found_by_it() -> None:
    body = b'{"type":"Delta","unit":"Wh","reads":[{"endtimestamp":"2026-03-14T16:00:00Z","value":41237}]}'
    found = said(body, "roof", DAY, [END, END - timedelta(days=1)], addressed=True)
    assert found is not None and found.by_end and found.numbers == (("value", "41237"),)
    assert said(body, "roof", DAY, [END]) is None, "the request went to another device"
    assert said(body, "roof", DAY, [END + timedelta(seconds=0.9)], addressed=True) == found  # a fraction is not sent
    for other in (-1, 1.1, 2):
        assert said(body, "roof", DAY, [END + timedelta(seconds=other)], addressed=True) is None


def test_history_may_end_a_second_before_the_day() -> None:
    read = '{"starttimestamp":"2026-03-13T16:00:01Z","endtimestamp":"2026-03-14T15:59:59Z","value":41237}'
    found = said(f'{{"type":"History","unit":"Wh","reads":[{read}]}}'.encode(), "roof", DAY, [END], addressed=True)
    assert found is not None and found.by_end and found.numbers == (("value", "41237"),)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"not json", b"\xff", b'{"a":', b"<html>{}</html>", b"3"])
def test_what_is_no_request_of_ours_says_nothing(body: bytes) -> None:
    assert said(body, "INV-1", DAY, [END], addressed=True) is None


@pytest.mark.parametrize(
    ("key", "text", "wh"),
    [
        ("PeriodProductionInKWh", "5.123", 5123),
        ("AccumulatedPowerInKWh", "5.1230", 5123),
        ("value", "5123", 5123),
        ("PeriodProductionInKWh", "5.1234", None),
        ("value", "5.5", None),
        ("value", "NaN", None),
        ("value", "much", None),
    ],
)
def test_a_figure_of_a_body_in_wh(key: str, text: str, wh: int | None) -> None:
    assert in_wh(key, text) == wh

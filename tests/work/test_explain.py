"""Walking figures back, over everything that can happen to a day."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from heliograph import library
from heliograph.core import daily
from heliograph.core.delivery import DayRow, Parcel, Verdict
from heliograph.core.readings import Moment, Reading, Source
from heliograph.core.site import Report
from heliograph.store import Store
from heliograph.store.connection import FILE
from heliograph.uplink.drec import Drec
from heliograph.work.amend import release
from heliograph.work.close_days import close_days
from heliograph.work.explain import Setting, explain, longest
from heliograph.work.prune import prune
from tests.fakes import RULES, SINGAPORE, START, FakeClock, a_meter
from tests.work.explained import AFTER, FIRST, HELD, HELD_TOO, LAST, MISSING, NORMAL, OPEN, SEAM, SPLIT, week

NOW = daily.start_of(OPEN, SINGAPORE) + timedelta(hours=15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("week")
    week(folder)
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    opened = Store.reader(folder)
    yield opened
    opened.close()


def told(store: Store, day: date, **more: Any) -> dict[str, Any]:
    return explain("roof", day, store, NOW, library.from_texts, **more)


def fails(found: dict[str, Any]) -> list[str]:
    return [check["what"] for check in found["checks"] if not check["ok"]]


@pytest.mark.parametrize("day", [NORMAL, SPLIT, SEAM, AFTER, LAST])
def test_every_number_on_the_way_agrees(store: Store, day: date) -> None:
    found = told(store, day)
    assert found["state"] == "closed" and fails(found) == [] and len(found["checks"]) >= 6
    opening, closing = found["opening"], found["closing"]
    assert found["period_wh"] == closing["index_wh"] - opening["index_wh"] == closing["total_wh"] - opening["total_wh"]
    (sent,) = found["submissions"]
    assert [(one["wh"], one["is"]) for one in sent["figures"]] == [
        (found["period_wh"], "the day's figure"),
        (found["total_wh"], "the running total"),
    ]
    assert sent["rule"] == "read-back" and sent["process_id"] == "20745"


def test_a_split_is_shown_with_its_numbers(store: Store) -> None:
    border = told(store, SPLIT)["closing"]
    before, after = border["before"], border["after"]
    moved = after["index_wh"] - before["index_wh"]
    elapsed, gap = border["at"] - before["at"], after["at"] - before["at"]
    assert border["estimated"] and (elapsed, gap) == (timedelta(seconds=3012), timedelta(seconds=6300))
    assert border["index_wh"] == before["index_wh"] + moved * 3012 // 6300
    assert border["arithmetic"].startswith(
        f"{before['index_wh']:,} + {moved:,} Wh x 3,012 s / 6,300 s = {border['index_wh']:,} Wh (floored"
    )
    assert told(store, SEAM)["opening"] == border


def test_a_seam_and_what_was_left_out_stand_on_the_way(store: Store) -> None:
    found = told(store, SEAM)
    (seam,) = found["seams"]
    assert (seam["kind"], seam["on_this_day"], seam["note"]) == ("swap", True, "lightning, by P. Tan")
    closing = found["closing"]["before"]
    assert closing["offset_wh"] == seam["offset_wh"] == seam["old_wh"] - seam["new_wh"] > 41_000_000
    assert closing["continuous_wh"] == closing["index_wh"] + closing["offset_wh"] == found["closing"]["index_wh"]
    assert (found["serial_at_start"], found["serial"]) == ("23451234", "23459999")
    assert [one["step"] for one in closing["steps"]] == ["raw words", "decoded", "floored", "seams", "continuous"]
    excluded = [one for one in found["samples"]["excluded"] if not one["settled_by"]]
    assert [one["index_wh"] for one in excluded] == [7340] and "fell from" in excluded[0]["why"]
    assert sum(1 for one in found["samples"]["excluded"] if one["settled_by"].startswith("swap at")) == 25
    assert told(store, NORMAL)["seams"] == [] and told(store, NORMAL)["serial"] == "23451234"


def test_a_held_day_says_what_is_known_and_what_to_do(store: Store) -> None:
    for day in (HELD, HELD_TOO):
        found = told(store, day)
        assert found["state"] == "held" and "30.1 h over midnight" in found["reason"]
        assert f"heliograph release roof {HELD}..{HELD_TOO}" in found["todo"] and fails(found) == []
        assert found["border_after"]["total_wh"] - found["border_before"]["total_wh"] == 459_211
        bounds = found["bounds"]
        assert 0 < bounds["at_least_wh"] < bounds["at_most_wh"] < 459_211
    # Its start is known: the day is at least what was counted from there to its last reading.
    found = told(store, HELD)
    assert found["bounds"]["at_least_wh"] == found["last_within"]["continuous_wh"] - found["border_before"]["index_wh"]
    assert found["read_after"]["at"].date() == HELD_TOO


def test_a_missing_day_is_not_zero_and_an_open_one_not_over(store: Store) -> None:
    missing = told(store, MISSING)
    assert (missing["state"], missing["period_wh"]) == ("missing", None)
    assert missing["read_before"]["index_wh"] == missing["read_after"]["index_wh"] and "not zero" in missing["todo"]
    opened = told(store, OPEN)
    assert opened["state"] == "open" and opened["reason"].startswith("this day is not over")
    assert opened["bounds"]["at_least_wh"] > 100_000 and opened["bounds"]["at_most_wh"] is None
    late = explain("roof", OPEN, store, NOW + timedelta(days=3), library.from_texts)
    assert late["reason"].startswith("the meter has not been read since 2026-03-22 07:04:48")
    for day, why in ((FIRST - timedelta(days=1), "for the first time"), (OPEN + timedelta(days=1), "still to come")):
        none = told(store, day)
        assert none["state"] == "none" and why in none["reason"]


def test_a_released_day_tells_that_it_was_held(tmp_path: Path) -> None:
    meter = week(tmp_path)
    store = Store.writer(tmp_path)
    release(meter, HELD, HELD_TOO, "carry", store, NOW, RULES)
    found = told(store, HELD)
    assert found["state"] == "closed" and fails(found) == []
    assert found["held"]["released"] == NOW and "30.1 h" in found["held"]["reason"]
    assert "lie in the later day" in found["closing"]["arithmetic"]
    assert [event["kind"] for event in found["events"]] == ["held", "released"]
    store.close()


def test_what_was_thinned_is_said_and_borders_still_have_their_words(tmp_path: Path) -> None:
    meter = week(tmp_path)
    store = Store.writer(tmp_path)
    before = told(store, NORMAL)
    assert before["samples"]["thinned"] == ""
    later = FakeClock(NOW + timedelta(days=800))
    for _ in range(4):
        prune(store, later, timedelta(days=56), timedelta(days=400))
    found = told(store, NORMAL)
    assert found["samples"]["stored"] < 10 and "borders rest on" in found["samples"]["thinned"]
    assert fails(found) == []
    assert (found["opening"], found["closing"]) == (before["opening"], before["closing"])
    assert meter.id == "roof"
    store.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE reading SET words = x'47210F43' WHERE id = (SELECT before FROM border LIMIT 1)", "decode to"),
        ("UPDATE reading SET index_wh = index_wh + 1 WHERE id = (SELECT before FROM border LIMIT 1)", "decode to"),
        ("DROP TRIGGER day_is_final; UPDATE day SET period_wh = period_wh + 1", "as it was written down"),
        ("DROP TRIGGER border_is_final; UPDATE border SET total_wh = total_wh + 1 WHERE id = 2", "since commissioning"),
        ("DROP TRIGGER border_is_final; UPDATE border SET index_wh = index_wh - 1 WHERE id = 2", "end of the day"),
        ("UPDATE map SET text = text || '# changed'", "is not the one"),
        ("UPDATE claim SET body = (SELECT body FROM claim WHERE id = 2) WHERE id = 1", "the body sent to redex"),
    ],
)
def test_a_changed_row_is_noticed(tmp_path: Path, change: str, says: str) -> None:
    week(tmp_path)
    raw = sqlite3.connect(tmp_path / FILE)
    raw.executescript(change)
    raw.commit()
    raw.close()
    store = Store.reader(tmp_path)
    assert any(says in what for what in fails(told(store, NORMAL)))
    store.close()


def test_a_site_s_byte_order_and_ratios_take_part(tmp_path: Path) -> None:
    """A DTSU666 whose words arrive in another order, behind transformers."""
    loaded = library.load("chint-dtsu666", local=None)
    register = loaded.map.register("energy_export")
    assert register is not None and register.times == ("ct_ratio", "vt_ratio") and register.address is not None
    meter = replace(a_meter(), map=loaded.map, map_digest=loaded.digest, reports=())
    store, clock = Store.writer(tmp_path), FakeClock()
    store.readings.begin("site", "Asia/Singapore", "boot", START)
    store.readings.know_map(loaded.digest, loaded.map.name, loaded.text)
    store.readings.know_meter("roof", "energy_export")
    for hours, kwh, wh in ((1, 12.5, 500_000), (23.99, 13.25, 530_000)):
        high, low = struct.unpack(">2H", struct.pack(">f", kwh))
        source = Source(1, register.function or loaded.map.function, register.address, 2, loaded.digest)
        moment = Moment(START + timedelta(hours=hours), "boot", hours * 3600, True)
        store.readings.add([Reading("roof", moment, wh, {"vt_ratio": 2.0}, (low, high), source)])
    clock.at = START + timedelta(hours=25)
    close_days([meter], store, clock, RULES)

    def explained(setting: Setting | None) -> dict[str, Any]:
        return explain("roof", FIRST, store, clock.now(), library.from_texts, setting)

    right = explained(Setting("CDAB", {"ct_ratio": Decimal(20)}))
    assert fails(right) == [] and right["period_wh"] == 30_000
    decoded = right["closing"]["before"]["decoded"]
    assert (decoded["factors"], decoded["order"]) == ({"ct_ratio": "20", "vt_ratio": "2.0"}, "CDAB")
    assert "x ct_ratio 20 x vt_ratio 2.0" in right["closing"]["before"]["steps"][1]["how"]
    unset = explained(None)
    assert any("ct_ratio is not known" in what for what in fails(unset))
    both = explained(Setting("CDAB", {"ct_ratio": Decimal(20), "vt_ratio": Decimal(3)}))
    assert both["closing"]["before"]["decoded"]["factors"]["vt_ratio"] == "3", "the site's, not what the device told"
    assert unset["period_wh"] == 30_000, "the stored figure stands, only its decoding cannot be shown"
    wrong = explained(Setting("ABCD", {"ct_ratio": Decimal(20)}))
    assert "with byte order CDAB it fits" in wrong["closing"]["before"]["decoding"]
    # Years later, when nobody knows the site's configuration any more: the hash chain does.
    said = {"map": loaded.digest, "production": "energy_export", "order": "CDAB", "factors": {"ct_ratio": "20"}}
    store.chain.configure({"meters": {"roof": said}}, START)
    store.chain.configure({"meters": {}}, clock.now())
    for setting in (None, Setting("ABCD", {"ct_ratio": Decimal(1)})):
        assert fails(explained(setting)) == []
    store.close()


@pytest.mark.parametrize("read_type", ["Delta", "Aggregate"])
def test_days_that_went_together_are_explained_by_their_sum(tmp_path: Path, read_type: Any) -> None:
    """D-REC refuses a day of 0 Wh: it rides along with the next one."""
    meter = replace(a_meter(baseline_wh=700), reports=(Report("drec", "SG 1"),))
    store, clock = Store.writer(tmp_path), FakeClock()
    store.readings.begin("site", "Asia/Singapore", "boot", START)
    loaded = library.load("eastron-sdm630", local=None)
    store.readings.know_map(loaded.digest, loaded.map.name, loaded.text)
    store.readings.know_meter("roof", "energy_export")
    for hours, wh in ((1, 1000), (23.99, 1000), (47.99, 3000), (71.99, 3500)):
        words = struct.unpack(">2H", struct.pack(">f", wh / 1000))
        moment = Moment(START + timedelta(hours=hours), "boot", hours * 3600, True)
        source = Source(1, "input", 0x4A, 2, loaded.digest)
        store.readings.add([Reading("roof", moment, wh, {}, words, source)])
    clock.at = START + timedelta(hours=73)
    close_days([meter], store, clock, RULES)
    drec = Drec("drec", None, read_type, None, clock.now, zero_wh={"roof": 700})  # type: ignore[arg-type]  # only packs
    while rows := store.outbox.candidates("drec", clock.now(), ordered=True, limit=10):
        parcel: Parcel | None = drec.pack(rows)
        assert parcel is not None
        store.outbox.claim("drec", parcel, clock.now(), clock.now())
        store.outbox.settle([(row.id, Verdict("accepted", "S201"), clock.now()) for row in _of(parcel)], clock.now())
    for day, together, figures in (
        (14, [15], (2000, "the sum of the days that went together")),
        (15, [14], (2000, "the day's figure" if read_type == "Delta" else "the sum of the days that went together")),
        (16, [], (500, "the day's figure")),
    ):
        found = told(store, date(2026, 3, day))
        (sent,) = found["submissions"]
        assert fails(found) == [] and [one.day for one in sent["together"]] == together
        if read_type == "Delta":
            assert [(one["wh"], one["is"]) for one in sent["figures"]] == [figures]
    last = told(store, date(2026, 3, 16))["submissions"][0]["figures"]
    if read_type == "Aggregate":
        assert [(one["wh"], one["is"]) for one in last] == [(2500, "the running total since commissioning")]
    store.close()


def _of(parcel: Parcel) -> tuple[DayRow, ...]:
    return parcel.rows


@pytest.mark.parametrize(
    ("minutes", "limit"),
    [((), 120), ((0, 1, 2, 3), 5), ((0, 10, 20, 80), 30), ((0, 60, 120, 240), 120), ((0, 700), 120)],
)
def test_from_which_distance_on_there_is_a_gap(minutes: tuple[int, ...], limit: int) -> None:
    samples = [datetime(2026, 3, 14, tzinfo=UTC) + timedelta(minutes=one) for one in minutes]
    assert longest(samples) == timedelta(minutes=limit)

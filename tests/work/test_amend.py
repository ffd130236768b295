"""A meter is replaced, a gap is released: what a person decides, on the readings that are there."""

from __future__ import annotations

import shlex
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from heliograph import library
from heliograph.core.errors import UsageError
from heliograph.core.ledger import Seam, SeamKind
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.store import Store
from heliograph.work.amend import carry_out, record_correction, record_seam, release
from heliograph.work.close_days import close_days, estimated_wh
from heliograph.work.explain import explain
from heliograph.work.health import health
from tests.fakes import RULES, FakeClock, a_meter
from tests.work.one_meter import METER, at, read, store
from tests.work.test_poll import Site

__all__ = ["store"]


def swapped(store: Store) -> None:
    """The old meter counts to 5.0 kWh, the new one begins at 0.1 kWh at ten o'clock and is doubted."""
    read(store, 1, 1_000)
    read(store, 9, 5_000)
    for hours, wh in ((11, 700), (15, 2_100), (23.99, 3_100), (24.5, 3_100)):
        read(store, hours, wh, "energy_export fell")


def seam(old_wh: int, new_wh: int, hours: float = 10, kind: SeamKind = "swap") -> Seam:
    return Seam("roof", at(hours), kind, old_wh, new_wh, new_serial="222" if kind == "swap" else None)


def close(store: Store, hours: float) -> FakeClock:
    clock = FakeClock(at(hours))
    close_days([METER], store, clock, RULES)
    return clock


def test_nothing_is_closed_while_the_counter_is_in_doubt(store: Store) -> None:
    swapped(store)
    close(store, 26)
    assert store.days.all() == []


def test_a_swap_that_is_recorded_again_because_the_answer_was_lost_counts_once(store: Store) -> None:
    read(store, 1, 1_000)
    record_seam(METER, seam(1_400, 100), store, at(11))
    with pytest.raises(UsageError, match="recorded already"):
        record_seam(METER, seam(1_400, 100, hours=10.5), store, at(11))
    read(store, 12, 150)
    assert len(store.seams.all("roof")) == 1


def test_a_recorded_swap_settles_the_doubt_and_the_total_goes_on(store: Store) -> None:
    swapped(store)
    recorded = record_seam(METER, seam(5_400, 100), store, at(25))
    assert recorded.readings == 4
    clock = close(store, 26)
    day = store.days.all()[0]
    # 1.0 -> 5.4 kWh on the old meter, 0.1 -> 3.1 kWh on the new one.
    assert day.period_wh == day.total_wh == 4_400 + 3_000
    told = explain("roof", day.day, store, clock.now(), library.from_texts)
    assert [one["text"] for one in told["seams"]] == [
        "swap at 2026-03-14 02:00 UTC: 5.400 -> 0.100 kWh, serial ? -> 222"
    ]
    assert store.readings.serial("roof") == "222"
    seen = health("site", [METER], store, clock, RULES).meters[0]
    assert (seen.total_wh, seen.index_wh) == (7_400, 3_100)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (seam(4_999, 100), "showed 5.000 kWh"),
        (seam(900_000, 100), "cannot have come"),
        (seam(5_400, 800), "does not begin at 0.800"),
        (seam(5_400, 100, 40), "still to come"),
        (seam(5_400, 100, 0.5), "still read at"),
    ],
)
def test_a_seam_that_the_readings_contradict_is_refused_and_nothing_is_written(
    store: Store, one: Seam, says: str
) -> None:
    swapped(store)
    with pytest.raises(UsageError, match=says):
        record_seam(METER, one, store, at(25))
    assert store.seams.all("roof") == []


def test_a_seam_before_a_closed_border_is_refused(store: Store) -> None:
    read(store, 1, 1_000)
    read(store, 23.99, 5_000)
    close(store, 26)
    with pytest.raises(UsageError, match="never changes"):
        record_seam(METER, seam(5_400, 100), store, at(27))


def test_a_dry_run_writes_nothing(store: Store) -> None:
    swapped(store)
    record_seam(METER, seam(5_400, 100), store, at(25), dry=True)
    assert store.seams.all("roof") == []


def test_a_swap_recorded_before_the_new_meter_is_read_is_believed_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path, [a_meter()])
    site.run(minutes=5)
    truth = site.devices.pop(1)
    site.run(minutes=2)
    last = site.store.readings.last_good("roof")
    assert last is not None and last.index_wh is not None
    now = site.clock.now()
    one = Seam("roof", now, "swap", last.index_wh + 50, 0, new_serial="999")
    record_seam(site.meters[0], one, site.store, now)
    site.line.forget(site.meters[0])
    site.devices[1] = SimulatedMeter(truth.map, clock=site.clock.now, unit=1, serial=999, sky=truth.sky, seed=5)
    site.run(minutes=5)
    newest = site.store.readings.last("roof")
    assert newest is not None and newest.good and newest.index_wh == site.devices[1].counted_wh(newest.moment.at)
    site.store.close()


def gap(store: Store) -> None:
    """From 20:00 on the first day to 08:00 on the third nobody read; 36 kWh were counted in these 36 hours."""
    read(store, 1, 1_000)
    read(store, 20, 2_000)
    read(store, 56, 38_000)
    read(store, 71.99, 40_000)
    read(store, 95.99, 50_000)
    close(store, 97)


@pytest.mark.parametrize(("split", "periods"), [("time", [5_000, 24_000, 10_000]), ("carry", [1_000, 0, 38_000])])
def test_released_days_add_up_to_what_was_counted(store: Store, split: str, periods: list[int]) -> None:
    gap(store)
    assert [held.day.day for held in store.days.held("roof")] == [14, 15, 16]
    days = release(METER, date(2026, 3, 14), date(2026, 3, 16), split, store, at(98), RULES)  # type: ignore[arg-type]  # a table's text
    assert [day.period_wh for day in days] == periods
    assert store.days.held("roof") == []
    closed = store.days.all("roof")
    assert [day.day.day for day in closed] == [14, 15, 16, 17]
    assert sum(day.period_wh for day in closed) == 49_000 == closed[-1].total_wh
    assert all(b.opening.id == a.closing.id for a, b in pairwise(closed))
    assert [day.estimated for day in closed] == [True, True, True, False]
    rows = store.outbox.candidates("platform", at(99), ordered=True, limit=9)
    assert [row.day.day for row in rows] == [14, 15, 16, 17]


def test_only_held_days_are_released_and_from_the_first_on(store: Store) -> None:
    gap(store)
    with pytest.raises(UsageError, match="2026-03-17 is not held"):
        release(METER, date(2026, 3, 14), date(2026, 3, 17), "time", store, at(98), RULES)
    with pytest.raises(UsageError, match="where 2026-03-15 begins"):
        release(METER, date(2026, 3, 15), date(2026, 3, 16), "time", store, at(98), RULES)
    assert len(store.days.held("roof")) == 3


@pytest.mark.parametrize(
    ("doubt", "kind"),
    [
        ("the serial number changed from 111 to 222; was the meter replaced?", "swap"),
        ("energy_export fell from 5000 to 700 Wh", "reset"),
    ],
)
def test_a_counter_in_doubt_comes_with_the_command_that_settles_it(store: Store, doubt: str, kind: SeamKind) -> None:
    read(store, 9, 5_000)
    for hours, wh in ((11, 700), (15, 2_100), (23.99, 3_100)):
        read(store, hours, wh, doubt)
    seen = health("site", [METER], store, FakeClock(at(24)), RULES)
    words = shlex.split(seen.meters[0].proposal)
    assert words[:3] == ["heliograph", "swap", "roof"] and seen.meters[0].proposal in seen.alarms[0]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given.get("--kind", "swap") == kind and ("--new-serial" in given) == (kind == "swap")
    old, new = (int(Decimal(given[name]) * 1000) for name in ("--old-index", "--new-index"))
    assert (old, new) == (5_000, 700)
    proposed = Seam("roof", datetime.fromisoformat(given["--at"]), kind, old, new, new_serial="222")
    assert record_seam(METER, proposed, store, at(24)).readings == 3
    assert health("site", [METER], store, FakeClock(at(24)), RULES).meters[0].proposal == ""


def test_a_wrong_seam_is_corrected_and_never_recorded_beside_itself(store: Store) -> None:
    """Two seams without a reading between them would count the old counter twice."""
    read(store, 1, 30_000)
    record_seam(METER, seam(30_000, 0, hours=2), store, at(3))
    for old, hours in ((30_400, 2.5), (30_400, 1.5), (30_400, 2)):
        with pytest.raises(UsageError, match=r"old counter cannot|is not before that") as refused:
            record_seam(METER, seam(old, 0, hours=hours), store, at(3))
        assert "--corrects" in refused.value.hint
    read(store, 4, 1_000)
    read(store, 23.99, 1_000)
    close_days([METER], store, FakeClock(at(25)), RULES)
    assert [day.period_wh for day in store.days.all()] == [1_000]


def test_what_a_counter_showed_before_it_was_ever_read_is_not_production(store: Store) -> None:
    with pytest.raises(UsageError, match="never read") as refused:
        record_seam(METER, seam(5_000_000, 0, hours=1), store, at(3))
    assert "baseline_kwh" in refused.value.hint
    # And where such a seam is in a store all the same, the first border takes it along.
    store.seams.record(seam(5_000_000, 0, hours=1), (), at(3))
    read(store, 4, 100)
    read(store, 23.99, 2_000)
    close_days([METER], store, FakeClock(at(25)), RULES)
    assert [day.period_wh for day in store.days.all()] == [1_900]


def test_nothing_is_recorded_while_nobody_knows_the_time(store: Store) -> None:
    clock = FakeClock(at(3))
    clock.synchronised = False
    with pytest.raises(UsageError, match="clock is not synchronised"):
        carry_out(METER, "seam", {}, store, clock, RULES)


def test_a_seam_that_would_make_a_day_negative_is_named(store: Store) -> None:
    read(store, 1, 30_000)
    close_days([METER], store, FakeClock(at(2)), RULES)
    store.seams.record(seam(0, 30_000, hours=3), (), at(3))
    read(store, 4, 30_500)
    read(store, 23.99, 30_500)
    structlog.reset_defaults()
    with capture_logs() as said:
        close_days([METER], store, FakeClock(at(25)), RULES)
    assert store.days.all() == [] and any("A seam must be wrong" in str(one.get("hint")) for one in said)


def test_a_later_correction_leaves_what_is_explained_of_earlier_days(store: Store) -> None:
    for source in library.load("eastron-sdm630", local=None).sources:
        store.readings.know_map(source.digest, source.name, source.text)
    read(store, 1, 30_000)
    number = record_seam(METER, seam(30_000, 0, hours=2), store, at(3)).seam.id or 0
    read(store, 4, 1_000)
    read(store, 23.5, 2_000)
    read(store, 25, 2_600)
    close_days([METER], store, FakeClock(at(26)), RULES)
    (day,) = store.days.all()
    assert day.closing.method == "split"

    def follows() -> list[bool]:
        told = explain("roof", day.day, store, at(30), library.from_texts)
        return [check["ok"] for check in told["checks"] if "follows from" in check["what"]]

    before = (follows(), estimated_wh(day, store))
    record_correction(METER, number, 31_500, 0, "the photo of the display", store, at(27))
    assert (follows(), estimated_wh(day, store)) == before and all(before[0])

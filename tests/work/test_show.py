from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from heliograph.core.daily import Border, Held
from heliograph.core.health import Health, OutputHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.work.show import DAYS, Audience, figures
from tests.fakes import SINGAPORE, START, FakeClock, FakeUplink
from tests.work.test_deliver import make_store, run

SAMPLE = Sample("roof", START)


class Shown:
    """An output that remembers, and fails on request."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name, self.fails = name, fails
        self.seen: list[object] = []
        self.closed = threading.Event()

    def _note(self, what: object) -> None:
        if self.fails:
            raise OSError("broken pipe")
        self.seen.append(what)

    def start(self) -> None:
        self._note("start")

    def sample(self, sample: Sample) -> None:
        self._note(sample)

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        self._note((health, days))

    def state(self) -> OutputHealth:
        self._note("state")
        return OutputHealth(self.name, "nowhere", True, START)

    def close(self) -> None:
        self._note("close")
        self.closed.set()


def test_an_output_that_breaks_the_port_stops_no_other_and_is_told_once() -> None:
    broken, well = Shown("broken", fails=True), Shown("well")
    audience = Audience([broken, well])
    structlog.reset_defaults()
    with capture_logs() as logs:
        audience.start()
        for _ in range(3):
            audience.sample(SAMPLE)
        assert [one.name for one in audience.states()] == ["well"]
        audience.close()
    assert well.seen == ["start", SAMPLE, SAMPLE, SAMPLE, "state", "close"]
    told = [(one["output"], one["doing"]) for one in logs if one["event"] == "output_crashed"]
    assert sorted(told) == [("broken", what) for what in ("close", "sample", "start", "state")]


def test_an_output_that_does_not_come_to_an_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliograph.work.show.CLOSE_WITHIN", 0.05)
    stuck, well, let_go = Shown("stuck"), Shown("well"), threading.Event()
    monkeypatch.setattr(stuck, "close", let_go.wait)
    Audience([stuck, well]).close()  # returns, though nobody lets go
    assert well.closed.wait(30)
    let_go.set()


def test_days_are_shown_with_what_became_of_them_at_each_uplink(tmp_path: Path) -> None:
    clock = FakeClock()
    store = make_store(tmp_path, clock, 2, 20)
    run(FakeUplink(), store, clock, 600)
    found = figures(store, clock, SINGAPORE)
    assert {one.meter for one in found} == set(store.readings.meters())
    for meter in store.readings.meters():
        days = [one for one in found if one.meter == meter]
        assert [one.day for one in days] == sorted(one.day for one in days)
        assert len(days) in (DAYS, DAYS + 1) and days[-1].day == store.days.all(meter)[-1].day
        for one in days:
            stored = store.days.one(meter, one.day)
            assert stored is not None
            assert (one.state, one.period_wh, one.total_wh) == ("closed", stored.period_wh, stored.total_wh)
            assert one.deliveries == {"platform": "confirmed"}


def test_a_held_day_is_shown_with_its_reason(tmp_path: Path) -> None:
    clock = FakeClock()
    store = make_store(tmp_path, clock, 1, 3)
    (meter,) = store.readings.meters()
    last = store.days.all(meter)[-1]
    held = Held(meter, last.day + timedelta(days=1), "held", "the counter fell")
    closing = Border(last.closing.at + timedelta(days=1), last.closing.index_wh, last.closing.total_wh, "read", 1, None)
    store.days.hold([held], closing, clock.now())
    clock.leap(days=1)
    one = figures(store, clock, SINGAPORE)[-1]
    assert (one.day, one.state, one.reason, one.period_wh) == (held.day, "held", "the counter fell", None)
    clock.leap(days=DAYS + 9)
    assert figures(store, clock, SINGAPORE) == ()

"""A box without a clock chip: it boots in 1970 or at its last shutdown, drifts, steps, and is trusted late or never.

HELIOGRAPH_CLOCKS=1000 pytest tests/work/test_clocks.py runs as many scenarios by hand; HELIOGRAPH_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from heliograph.core.daily import ESTIMATED
from heliograph.core.readings import Moment, Reading
from heliograph.store import Store
from heliograph.work.close_days import Rules, close_days
from tests.fakes import RULES, START, FakeClock, a_meter

SCENARIOS = int(os.environ.get("HELIOGRAPH_CLOCKS", "150"))
METER = a_meter()
DRIFT = 100e-6
SPLIT = Rules(RULES.zone, RULES.after, RULES.max_estimated, "split")


class Box:
    """True time, and what this box believes it to be."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.chance = chance
        self.true = START + timedelta(hours=chance.uniform(0, 24))
        self.wh = chance.randrange(10**8)
        self.index_at: dict[int, datetime] = {}
        self.boots = 0
        self.clock = FakeClock()
        self.store = Store.writer(folder)
        self.store.readings.begin("site", "Asia/Singapore", "none", START)
        self.store.readings.know_meter("roof", METER.production)
        self.boot()

    def boot(self) -> None:
        """A power cut of unknown length, and a clock that begins anywhere in the past."""
        shutdown = self.clock.at
        self.pass_true(self.chance.choice((1, 30, 300, 2000)))
        self.boots += 1
        self.clock = FakeClock(self.chance.choice((datetime(1970, 1, 1, tzinfo=UTC), shutdown, self.true)))
        self.clock.boot_id = f"boot-{self.boots}"
        self.clock.up = self.chance.uniform(5, 60)
        self.clock.synchronised = False
        self.store.readings.begin("site", "Asia/Singapore", self.clock.boot_id, self.clock.now())

    def pass_true(self, minutes: float) -> None:
        self.true += timedelta(minutes=minutes)
        self.wh += self.chance.randrange(0, int(minutes * 800) + 1)

    def live(self, minutes: float) -> None:
        self.pass_true(minutes)
        seconds = minutes * 60
        self.clock.up += seconds
        self.clock.at += timedelta(seconds=seconds * (1 if self.clock.synchronised else 1 + DRIFT))
        if self.clock.synchronised:
            self.clock.at = self.true

    def read(self) -> None:
        moment = Moment(self.clock.now(), self.clock.boot_id, self.clock.since_boot(), self.clock.trusted())
        self.store.readings.add([Reading("roof", moment, self.wh)])
        self.index_at[self.wh] = self.true

    def step(self) -> None:
        """Somebody sets the untrusted clock by hours."""
        self.clock.at += timedelta(hours=self.chance.uniform(-9, 9))

    def trust(self) -> None:
        self.clock.synchronised = True
        self.clock.at = self.true


def scenario(folder: Path, chance: random.Random) -> tuple[int, int]:
    """Lives through some days; returns how many were closed and how many readings were dated backwards."""
    box = Box(folder, chance)
    for _ in range(chance.randrange(15, 40)):
        event = chance.random()
        if event < 0.10:
            box.boot()
        elif event < 0.20 and not box.clock.synchronised:
            box.step()
        elif event < 0.45:
            box.trust()
        for _ in range(chance.randrange(1, 6)):
            box.live(chance.choice((2, 30, 120)))
            box.read()
        closed = len(box.store.days.all())
        close_days([METER], box.store, box.clock, SPLIT)
        assert box.clock.synchronised or len(box.store.days.all()) == closed
    days = box.store.days.all()
    if days:
        assert sum(day.period_wh for day in days) == days[-1].closing.index_wh - days[0].opening.index_wh
        assert all(day.period_wh >= 0 for day in days)
        assert len({day.day for day in days}) == len(days)
        for border in (day.closing for day in days if day.closing.method not in ESTIMATED):
            # The index is one that was read, at the true time that the border says, give or take the drift of a boot.
            read = box.index_at[border.index_wh]
            assert read <= border.at + timedelta(seconds=60), (read, border)
            if border.method == "read":
                assert border.at - read <= METER.cadence + timedelta(seconds=60), (read, border)
    dated = sum(1 for event in box.store.journal.events(1000) if event["kind"] == "dated")
    box.store.close()
    return len(days), dated


def test_no_clock_books_a_watt_hour_on_the_wrong_day(tmp_path: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {SCENARIOS} scenarios")
    chance = random.Random(seed)
    days = dated = 0
    for number in range(SCENARIOS):
        folder = tmp_path / str(number)
        folder.mkdir()
        closed, back = scenario(folder, chance)
        days, dated = days + closed, dated + back
    print(f"{days} days closed, {dated} times readings were dated backwards")
    assert days > SCENARIOS and dated > SCENARIOS / 2


def test_two_days_before_trust_are_closed_when_it_comes(tmp_path: Path) -> None:
    chance = random.Random(1)
    box = Box(tmp_path, chance)
    box.clock.at = datetime(1970, 1, 1, tzinfo=UTC)
    for _ in range(49 * 30):
        box.live(2)
        box.read()
    close_days([METER], box.store, box.clock, RULES)
    assert box.store.days.all() == []
    box.trust()
    close_days([METER], box.store, box.clock, RULES)
    days = box.store.days.all()
    assert len(days) == 2 and not any(day.estimated for day in days)
    for day in days:
        read = box.index_at[day.closing.index_wh]
        assert timedelta(0) <= day.closing.at - read <= timedelta(minutes=3)
    box.store.close()

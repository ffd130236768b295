"""A box without a clock chip: it boots in 1970 or at its last shutdown, drifts, steps, and is trusted late or never.

HELIOGRAPH_CLOCKS=10000 pytest -n 0 -s tests/work/test_clocks.py runs ten times as many scenarios by hand;
HELIOGRAPH_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from heliograph.core.daily import ESTIMATED, OnGap
from heliograph.core.readings import Moment, Reading
from heliograph.store import Store
from heliograph.work.close_days import Rules, close_days
from heliograph.work.deliver import Pace, deliver
from tests.fakes import RULES, START, FakeClock, FakeUplink, a_meter, in_memory

SCENARIOS = int(os.environ.get("HELIOGRAPH_CLOCKS", "1000"))
METER = a_meter()
DRIFT = 100e-6
SPLIT = Rules(RULES.zone, RULES.after, RULES.max_estimated, "split")


@pytest.fixture
def quick() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


class Box:
    """True time, and what this box believes it to be."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.chance = chance
        self.true = START + timedelta(hours=chance.uniform(0, 24))
        self.wh = chance.randrange(10**8)
        self.index_at: dict[int, list[datetime]] = {}
        """When each index was truly read: more than once where the counter stood still."""
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
        self.index_at.setdefault(self.wh, []).append(self.true)

    def step(self) -> None:
        """Somebody sets the untrusted clock by hours."""
        self.clock.at += timedelta(hours=self.chance.uniform(-9, 9))

    def trust(self) -> None:
        self.clock.synchronised = True
        self.clock.at = self.true


def scenario(folder: Path, chance: random.Random) -> tuple[int, int, int]:
    """Lives through some days; returns how many were closed, how often readings were dated backwards, and how often
    a day waited for the platform on a clock that was not trusted."""
    box, uplink = Box(folder, chance), FakeUplink()
    pace = Pace(box.clock)
    waited = closed = 0
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
        close_days([METER], box.store, box.clock, SPLIT)
        now = box.store.outbox.counts().get("platform", {})
        if not box.clock.synchronised:
            assert sum(now.values()) == closed
            waited += bool(now.get("due"))
        closed, asked = sum(now.values()), uplink.requests
        if not box.clock.synchronised or chance.random() < 0.5:  # the link is not always there
            deliver(uplink, box.store, box.clock, pace, lambda: 0.5)
        assert box.clock.synchronised or uplink.requests == asked, "delivered on a clock that nobody trusts"
    box.trust()
    deliver(uplink, box.store, box.clock, Pace(box.clock), lambda: 0.5)
    days = box.store.days.all()
    if days:
        assert sum(day.period_wh for day in days) == days[-1].closing.index_wh - days[0].opening.index_wh
        assert all(day.period_wh >= 0 for day in days)
        # No day is closed twice, and none reaches the platform twice or with another value.
        assert len({day.day for day in days}) == len(days) == closed
        assert all(b.opening.id == a.closing.id for a, b in pairwise(days))
        assert not uplink.twice
        assert uplink.stored == {("STR-roof", day.day.isoformat()): (day.period_wh, day.total_wh) for day in days}
        for border in (day.closing for day in days if day.closing.method not in ESTIMATED):
            # The index is one that was read, at the true time that the border says, give or take the drift of a boot.
            latest = border.at + timedelta(seconds=60)
            read = max(
                (at for at in box.index_at[border.index_wh] if at <= latest), default=datetime.max.replace(tzinfo=UTC)
            )
            assert read <= border.at + timedelta(seconds=60), (read, border)
            if border.method == "read":
                assert border.at - read <= METER.cadence + timedelta(seconds=60), (read, border)
    dated = sum(1 for event in box.store.journal.events(1000) if event["kind"] == "dated")
    box.store.close()
    return len(days), dated, waited


def test_no_clock_books_a_watt_hour_on_the_wrong_day(quick: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {SCENARIOS} scenarios")
    chance = random.Random(seed)
    days = dated = waited = 0
    for number in range(SCENARIOS):
        folder = quick / str(number)
        folder.mkdir()
        try:
            closed, back, waits = scenario(folder, chance)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, scenario {number}: {error}") from error
        shutil.rmtree(folder)
        days, dated, waited = days + closed, dated + back, waited + waits
    print(f"{days} days closed, {dated} times readings were dated backwards, {waited} times days had to wait for trust")
    assert days > SCENARIOS and dated > SCENARIOS / 2 and waited > SCENARIOS / 20


def test_two_days_before_trust_are_closed_when_it_comes(quick: Path) -> None:
    chance = random.Random(1)
    box = Box(quick, chance)
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
        (read,) = box.index_at[day.closing.index_wh]
        assert timedelta(0) <= day.closing.at - read <= timedelta(minutes=3)
    box.store.close()


@pytest.mark.parametrize(("on_gap", "hours"), [("hold", 10), ("split", 10), ("hold", 1.5)])
def test_a_boot_that_was_never_trusted_is_an_interval_of_unknown_length_between_its_neighbours(
    quick: Path, on_gap: OnGap, hours: float
) -> None:
    """Its readings are evidence, but on no side of midnight; its energy is that of a gap between two trusted ones."""
    store = Store.writer(quick)
    store.readings.know_meter("roof", METER.production)
    midnight = START + timedelta(days=1)
    first, last = midnight - timedelta(hours=hours / 2), midnight + timedelta(hours=hours / 2)

    def read(boot: str, at: datetime, since_boot: float, trusted: bool, wh: int) -> int:
        store.readings.begin("site", "Asia/Singapore", boot, at)
        store.readings.add([Reading("roof", Moment(at, boot, since_boot, trusted), wh)])
        newest = store.readings.last("roof")
        assert newest is not None and newest.id is not None
        return newest.id

    read("boot-1", START + timedelta(hours=1), 100, True, 1_000)
    before = read("boot-1", first, 90_000, True, 40_000)
    # A box without a clock chip goes on from its last shutdown: these look as if they lay before midnight.
    for minutes, wh in ((1, 41_000), (2, 41_500), (3, 42_000)):
        read("boot-2", first + timedelta(minutes=minutes), 60 * minutes, False, wh)
    after = read("boot-3", last, 60, True, 50_001)
    read("boot-3", midnight + timedelta(hours=23.99), 80_000, True, 60_000)
    clock = FakeClock(midnight + timedelta(hours=24.5))
    clock.boot_id = "boot-3"
    close_days([METER], store, clock, Rules(RULES.zone, RULES.after, RULES.max_estimated, on_gap))
    unsure = [reading for reading in store.readings.back("roof") if not reading.moment.trusted]
    assert [reading.index_wh for reading in unsure] == [42_000, 41_500, 41_000]
    if on_gap == "hold" and hours > 2:
        assert store.days.all() == []
        (reason,) = {held.reason for held in store.days.held("roof")}
        assert "10.0 h over midnight" in reason and "moved 10.001 kWh" in reason
        assert f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC" in reason
    else:
        one, two = store.days.all()
        assert (one.closing.method, one.closing.before, one.closing.after) == ("split", before, after)
        assert (one.period_wh, two.period_wh) == (39_000 + 5_000, 5_001 + 9_999)  # half of the gap's time, floored
        assert one.estimated and two.estimated
    border = store.days.last_border("roof")
    assert border is not None and border.total_wh == 59_000
    store.close()

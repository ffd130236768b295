"""The card fails under the rounds: the meters are read on, and what they showed is stored when it is back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from heliograph.core import daily
from heliograph.core.errors import StoreFault
from heliograph.core.health import as_json
from heliograph.core.readings import Moment, Reading
from heliograph.store import Store, reserve
from heliograph.work.close_days import close_days
from heliograph.work.health import health
from heliograph.work.poll import MOST_WAITING, PolledBus, hand_over, poll, thinned
from heliograph.work.prune import make_room
from tests.cards import as_root, failing, filled, small_card
from tests.fakes import RULES, SINGAPORE, START, a_meter
from tests.work.test_poll import NOON, URL, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, [a_meter()])


def run(site: Site, **span: float) -> int:
    """As the daemon does it: every ten seconds a round, and a look at the card. Returns how often a fault was met."""
    end, met = site.clock.now() + timedelta(**span), 0

    def job(work: Callable[[], object]) -> None:
        nonlocal met
        try:
            work()
        except StoreFault:
            met += 1

    while site.clock.now() < end:
        began = site.clock.now()
        job(site.store.mend)
        job(site.round)
        if site.store.fault is None:
            job(lambda: make_room(site.store, site.clock, site.meters))
        if site.store.fault is None:
            job(lambda: close_days(site.meters, site.store, site.clock, RULES))
        site.clock.leap(seconds=max(0.0, 10 - (site.clock.now() - began).total_seconds()))
    return met


def longest_gap(site: Site) -> timedelta:
    times = [reading.moment.at for reading in site.store.readings.back("roof")][::-1]
    return max(b - a for a, b in pairwise(times))


def test_rounds_that_could_not_be_stored_are_stored_when_the_card_is_back(site: Site) -> None:
    run(site, minutes=5)
    with failing():
        assert run(site, minutes=10) > 0
        assert site.store.fault is not None
        shown = site.live.values["roof"]["energy_export"]
        assert shown == site.devices[1].counted_wh(site.live.at["roof"])  # the live view goes on
    run(site, minutes=5)
    assert site.store.fault is None and site.line.waiting == []
    assert longest_gap(site) <= timedelta(seconds=71)
    assert len(site.stored()) == pytest.approx(20, abs=2)
    assert site.stored() == sorted(site.stored(), key=lambda wh: wh or 0)
    site.store.close()


def test_a_midnight_during_a_fault_has_the_border_it_would_have_had(tmp_path: Path) -> None:
    borders = []
    for name, broken in (("whole", False), ("broken", True)):
        (tmp_path / name).mkdir()
        site = Site(tmp_path / name, [a_meter()])
        site.clock.at = START + timedelta(hours=23, minutes=50)
        run(site, minutes=5)
        if broken:
            with failing():
                run(site, minutes=40)
        else:
            run(site, minutes=40)
        run(site, minutes=5)
        last = site.store.days.last_border("roof")
        assert last is not None and last.at == START + timedelta(days=1) and last.method == "read"
        borders.append((last.index_wh, site.store.readings.reading(last.before).moment.at))
        assert len(site.store.days.all()) == 1
        site.store.close()
    assert borders[0] == borders[1]


def test_the_alarm_says_what_is_and_the_meters_are_shown_without_a_store(site: Site) -> None:
    run(site, minutes=2)
    with failing():
        run(site, minutes=1)
        site.live.not_stored_since = NOON
        found = health("s", site.meters, site.store, site.clock, RULES, site.live)
    (meter,) = found.meters
    assert found.alarms[0].startswith("Nothing is stored since 2026-03-14 04:00 UTC: ") and found.storage
    assert "File too large" in found.alarms[0] and "dmesg" in found.alarms[0]
    assert meter.state == "ok" and meter.index_wh == site.live.values["roof"]["energy_export"]
    assert as_json(found)["storage"] == found.storage
    run(site, minutes=1)
    site.live.not_stored_since = None
    after = health("s", site.meters, site.store, site.clock, RULES, site.live)
    assert after.storage == "" and after.alarms == () and after.meters[0].total_wh is not None
    site.store.close()


class BlindSite(Site):
    def restart_blind(self) -> None:
        """Another start, on a card that gives nothing."""
        self.store.close()
        with failing():
            self.store = Store.writer(self.folder)
        assert self.store.fault is not None
        self.store._connection.close()  # not even to be read
        self.store.introduce(self._introduction)
        self.line = PolledBus("rs485", URL, self.meters, lambda: self.bus)

    def _introduction(self) -> None:
        self.store.readings.begin("site", "Asia/Singapore", self.clock.boot_id, self.clock.now())
        for meter in self.meters:
            self.store.readings.know_map(meter.map_digest, meter.map.name, "")
            self.store.readings.know_meter(meter.id, meter.production)


@pytest.fixture
def other(tmp_path: Path) -> BlindSite:
    return BlindSite(tmp_path, [a_meter()])


def test_a_start_without_the_store_polls_and_is_stored_later(other: BlindSite) -> None:
    run(other, minutes=5)
    other.restart_blind()
    with failing():
        run(other, minutes=5)
        assert other.live.values["roof"]
    run(other, minutes=5)
    assert longest_gap(other) <= timedelta(seconds=71)
    assert all(reading.good for reading in other.store.readings.back("roof"))
    other.store.close()


def test_what_was_read_without_the_store_is_held_against_it_afterwards(other: BlindSite) -> None:
    """Another meter hangs on the line since the start, and nothing was there to tell."""
    run(other, minutes=5)
    other.restart_blind()
    other.devices[1] = type(other.devices[1])(
        a_meter().map, clock=other.clock.now, unit=1, start_export_wh=7_000, seed=3
    )
    with failing():
        run(other, minutes=5)
    run(other, minutes=5)
    readings = list(other.store.readings.back("roof"))
    good = [reading for reading in readings if reading.good]
    assert all((reading.index_wh or 0) > 41_000_000 for reading in good)
    assert any("fell" in reading.doubt or "serial" in reading.doubt for reading in readings)
    other.store.close()


def test_what_breaks_the_program_does_not_block_what_comes_after_it(site: Site) -> None:
    run(site, minutes=2)
    stored = len(site.stored())
    poison = replace(site.line.watched()[0].stored or pytest.fail("nothing read"), values={"x": object()})  # type: ignore[dict-item]  # on purpose
    site.line.waiting.append(poison)
    with pytest.raises(TypeError):
        hand_over(site.line, site.store, site.clock, RULES.zone)
    run(site, minutes=2)
    assert len(site.stored()) > stored
    site.store.close()


def test_what_waits_is_bounded_and_keeps_midnights_changes_and_the_newest() -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = [f"m{number}" for number in range(10)]
    waiting: list[Reading] = []
    for minute in range(0, 5 * 24 * 60, 5):
        at = START + timedelta(minutes=minute, seconds=30)
        for name in names:
            doubt = "fell" if chance.random() < 0.001 else ""
            waiting.append(Reading(name, Moment(at, "b", minute * 60.0, True), minute, doubt=doubt))
        waiting = thinned(waiting, SINGAPORE, MOST_WAITING)
        assert len(waiting) <= MOST_WAITING
    assert waiting == sorted(waiting, key=lambda one: one.moment.at)
    for name in names:
        mine = [one for one in waiting if one.meter == name]
        assert mine[-1].moment.at == at
        for day in range(1, 5):
            midnight = START + timedelta(days=day)
            before = [one for one in mine if timedelta(0) < midnight - one.moment.at <= timedelta(minutes=5)]
            after = [one for one in mine if timedelta(0) <= one.moment.at - midnight <= timedelta(minutes=5)]
            assert before and after, (name, day)
    assert thinned(waiting, SINGAPORE, 100)[-1] == waiting[-1] and len(thinned(waiting, SINGAPORE, 100)) <= 100


@as_root
def test_a_full_card_thins_its_samples_and_goes_on_closing_days(tmp_path: Path) -> None:
    """A few hours of samples, then somebody else takes the rest of the card."""
    with small_card(tmp_path / "card", "12m") as card:
        site = Site(card, [replace(a_meter(), store_every=timedelta(seconds=30), every=timedelta(seconds=30))])
        site.clock.at = START + timedelta(hours=20)
        met = days = 0

        def slow(**span: float) -> int:
            end, met = site.clock.now() + timedelta(**span), 0
            while site.clock.now() < end:
                met += run(site, seconds=1)
                site.clock.leap(seconds=20)
            return met

        assert slow(hours=6) == 0
        held = (card / reserve.FILE).stat().st_size
        assert held > 0
        filled(card)
        met = slow(hours=28)
        days = len(site.store.days.all())
        print(f"{met} faults met, {days} days, {len(site.stored())} readings left")
        assert met >= 1 and site.store.fault is None and site.store.reserve.short
        assert days == 2
        found = health("s", site.meters, site.store, site.clock, RULES, site.live)
        assert "nearly full" in found.alarms[0]
        closed = site.store.days.all()
        assert all(day.closing.method == "read" for day in closed)
        first, last = site.store.days.first_border("roof"), site.store.days.last_border("roof")
        assert first and last and sum(day.period_wh for day in closed) == last.index_wh - first.index_wh
        for day in closed:
            at = site.store.readings.reading(day.closing.before).moment.at
            assert day.closing.at - at <= timedelta(seconds=45) and daily.day_of(at, SINGAPORE) == day.day
        # The reserve is a file of its own: somebody else may need the room it left.
        (card / "somebody-else").unlink()
        slow(minutes=5)
        assert not site.store.reserve.short
        site.store.close()


def test_polling_twice_without_a_fault_stores_nothing_twice(site: Site) -> None:
    site.clock.at = NOON
    for _ in range(3):
        poll(site.line, site.store, site.clock, SINGAPORE, site.live, lambda: False)
    assert len(site.stored()) == 1
    site.store.close()

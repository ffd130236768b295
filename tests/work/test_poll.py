from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from heliograph.core.errors import BusRefused, BusTimeout, BusUnreachable
from heliograph.core.registers import Function, Timing
from heliograph.core.shown import Sample
from heliograph.core.site import Meter
from heliograph.ports import BusCounters, Frame
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store
from heliograph.work.health import Live
from heliograph.work.poll import PolledBus, poll, read_once
from tests.fakes import SINGAPORE, START, FakeClock, a_meter

URL = "serial:///dev/ttyUSB0?baudrate=9600"
NOON = START + timedelta(hours=12)


class VirtualBus:
    """A line in virtual time: every exchange takes as long as it would on the wire; absent units are silent."""

    numbered = False

    def __init__(self, clock: FakeClock, devices: dict[int, SimulatedMeter]) -> None:
        self.clock = clock
        self.devices = devices
        self.counters = BusCounters()
        self.spent: dict[int, float] = {}
        self.asked: list[tuple[int, int, int]] = []
        self.words: dict[int, tuple[int, ...]] = {}
        """What a unit answers to a request that carries address 0x4A, once, instead of the truth."""
        self.down = False

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        if self.down:
            raise BusUnreachable("/dev/ttyUSB0: no such file", hint="plug it in")
        began = self.clock.since_boot()
        self.asked.append((unit, address, count))
        try:
            if unit not in self.devices:
                self.clock.leap(seconds=2 * timing.timeout * (timing.retries + 1))
                raise BusTimeout(f"no answer from unit {unit}", hint="check A/B")
            self.clock.leap(seconds=(20 + 2 * count) / 960 + timing.turnaround)
            found = self.devices[unit].words(function, address, count, self.clock.now())
            if isinstance(found, Refusal):
                raise BusRefused(f"unit {unit} refused", code=found.code or 4)
            return found
        finally:
            self.spent[unit] = self.spent.get(unit, 0.0) + self.clock.since_boot() - began

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        self.clock.leap(seconds=seconds)
        return ()

    def close(self) -> None:
        """Nothing to let go of."""


class Site:
    def __init__(self, folder: Path, meters: list[Meter]) -> None:
        self.clock = FakeClock(NOON)
        self.folder = folder
        self.meters = meters
        self.devices = {
            meter.unit: SimulatedMeter(
                meter.map,
                clock=self.clock.now,
                unit=meter.unit,
                start_export_wh=41_230_700,
                sky=Sky(zone=SINGAPORE, seed=meter.unit),
                seed=meter.unit,
            )
            for meter in meters
        }
        self.bus = VirtualBus(self.clock, self.devices)
        self.restart()

    def restart(self) -> None:
        self.store = Store.writer(self.folder)
        self.store.readings.begin("site", "Asia/Singapore", self.clock.boot_id, self.clock.now())
        for meter in self.meters:
            self.store.readings.know_map(meter.map_digest, meter.map.name, "")
            self.store.readings.know_meter(meter.id, meter.production)
        self.line = PolledBus("rs485", URL, self.meters, lambda: self.bus)
        self.live = Live()

    def round(self) -> None:
        poll(self.line, self.store, self.clock, SINGAPORE, self.live, lambda: False)

    def run(self, **span: float) -> int:
        """Rounds every ten seconds, as the daemon would: a round that takes longer delays the next."""
        end, rounds = self.clock.now() + timedelta(**span), 0
        while self.clock.now() < end:
            began = self.clock.now()
            self.round()
            rounds += 1
            self.clock.leap(seconds=max(0.0, 10 - (self.clock.now() - began).total_seconds()))
        return rounds

    def stored(self, meter: str = "roof") -> list[int | None]:
        return [reading.index_wh for reading in self.store.readings.back(meter)][::-1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, [a_meter()])
    yield made
    made.store.close()


def test_a_sample_is_stored_once_a_minute_and_every_round_is_shown(site: Site) -> None:
    rounds = site.run(minutes=10)
    assert rounds == pytest.approx(60, abs=2)
    assert len(site.stored()) == pytest.approx(10, abs=1)
    assert site.live.values["roof"]["energy_export"] == site.devices[1].counted_wh(site.live.at["roof"])


def test_both_sides_of_midnight_are_stored(tmp_path: Path) -> None:
    site = Site(tmp_path, [a_meter()])
    site.clock.at = START + timedelta(hours=23, minutes=58, seconds=3)
    site.run(minutes=4)
    midnight = START + timedelta(hours=24)
    times = [reading.moment.at for reading in site.store.readings.back("roof")]
    assert any(timedelta(0) < midnight - at <= timedelta(seconds=11) for at in times)
    assert any(timedelta(0) <= at - midnight <= timedelta(seconds=11) for at in times)
    site.store.close()


def test_dead_meters_take_no_more_than_their_share_and_the_living_keep_their_cadence(tmp_path: Path) -> None:
    meters = [replace(a_meter(f"m{unit}", unit=unit), timing=Timing(timeout=0.5)) for unit in range(1, 11)]
    site = Site(tmp_path, meters)
    site.run(minutes=5)
    for unit in (2, 5, 9):
        del site.devices[unit]
    site.run(minutes=5)
    site.bus.spent.clear()
    site.bus.asked.clear()
    began = site.clock.now()
    rounds = site.run(hours=1)
    seconds = (site.clock.now() - began).total_seconds()
    wasted = sum(site.bus.spent.get(unit, 0.0) for unit in (2, 5, 9))
    assert wasted / seconds <= 0.05
    assert rounds >= 0.99 * seconds / 10
    assert all(sum(1 for asked in site.bus.asked if asked[0] == unit) >= 2 for unit in (2, 5, 9))
    site.store.close()


def test_a_meter_that_comes_back_is_read_again(site: Site) -> None:
    site.run(minutes=1)
    gone = site.devices.pop(1)
    site.run(minutes=5)
    assert "no answer" in site.live.errors["roof"]
    site.devices[1] = gone
    site.run(minutes=5)
    assert "roof" not in site.live.errors
    assert site.live.at["roof"] > site.clock.now() - timedelta(seconds=21)


def test_a_line_that_is_down_blames_no_meter_and_is_tried_again(site: Site) -> None:
    site.bus.down = True
    site.run(minutes=1)
    assert site.live.errors["roof"].startswith("/dev/ttyUSB0") and site.stored() == []
    site.bus.down = False
    site.run(minutes=1)
    assert site.stored()


def test_what_a_device_refuses_is_remembered_over_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path, [a_meter()])
    site.devices[1].max_words = 24
    site.run(seconds=30)
    assert site.stored()
    assert max(count for _, _, count in site.bus.asked[-6:]) <= 10
    site.store.close()
    site.restart()
    site.bus.asked.clear()
    site.run(seconds=30)
    assert all(count <= 10 for _, address, count in site.bus.asked if address < 0xFC00)
    site.store.close()


def test_a_fall_is_kept_as_evidence_and_never_becomes_the_base(site: Site) -> None:
    site.run(minutes=2)
    truth = site.devices[1]
    site.devices[1] = SimulatedMeter(
        truth.map, clock=site.clock.now, unit=1, start_export_wh=5_000, serial=truth.serial, sky=truth.sky, seed=1
    )
    site.run(minutes=3)
    last, good = site.store.readings.last("roof"), site.store.readings.last_good("roof")
    assert last is not None and good is not None and good.index_wh is not None
    assert "fell" in last.doubt and last.index_wh is not None and last.index_wh < 10_000
    assert good.index_wh >= 41_230_700
    site.devices[1] = truth
    site.run(minutes=2)
    again = site.store.readings.last("roof")
    assert again is not None and again.good and again.index_wh == truth.counted_wh(again.moment.at)


def test_a_zero_is_absence_and_not_a_counter(site: Site) -> None:
    site.run(minutes=2)
    truth = site.devices[1]
    site.devices[1] = SimulatedMeter(
        truth.map, clock=site.clock.now, unit=1, rated_kw=1e-9, serial=truth.serial, sky=truth.sky, seed=1
    )
    site.run(minutes=2)
    last = site.store.readings.last("roof")
    assert last is not None and last.index_wh is None and "0" in last.doubt


def test_another_serial_number_stops_the_booking(site: Site) -> None:
    site.run(minutes=2)
    truth = site.devices.pop(1)
    site.run(minutes=1)
    site.devices[1] = SimulatedMeter(
        truth.map, clock=site.clock.now, unit=1, start_export_wh=41_231_000, serial=999, sky=truth.sky, seed=1
    )
    site.run(minutes=6)
    last = site.store.readings.last("roof")
    assert last is not None and not last.good and "serial number changed" in last.doubt
    (watched,) = site.line.watched()
    assert watched.shown is not None and watched.shown != watched.serial


@pytest.mark.parametrize(("serial", "meter_code"), [("111", 112), (None, 32)])
def test_another_device_is_refused(tmp_path: Path, serial: str | None, meter_code: int) -> None:
    site = Site(tmp_path, [replace(a_meter(), serial=serial)])
    site.devices[1] = SimulatedMeter(
        site.meters[0].map, clock=site.clock.now, unit=1, settings={"meter_code": meter_code}, sky=Sky(zone=SINGAPORE)
    )
    site.run(minutes=1)
    assert site.stored() == []
    assert re_any(site.live.errors["roof"], "serial number", "is not a eastron-sdm630")
    site.store.close()


def re_any(text: str, *words: str) -> bool:
    return any(word in text for word in words)


def test_the_first_reading_after_a_restart_continues_the_counter(site: Site) -> None:
    site.run(minutes=2)
    before = site.stored()[-1]
    site.store.close()
    site.clock.leap(hours=3)
    site.restart()
    site.run(minutes=1)
    after = site.stored()
    last = site.store.readings.last("roof")
    assert last is not None and last.good and before is not None and (after[-1] or 0) > before


def test_a_look_is_of_the_moment_at_which_the_counter_answered_however_long_all_registers_take(site: Site) -> None:
    began = site.clock.now()
    look = read_once(site.line, site.meters[0], site.clock, everything=True)
    at = datetime.fromisoformat(look["at"])
    assert site.clock.now() - began > timedelta(seconds=0.5), "reading all of them takes its time"
    words = site.devices[1].words("input", 0x4A, 2, at)
    assert words == tuple(look["words"]["energy_export"])


def test_outputs_are_shown_what_each_round_came_to(site: Site) -> None:
    heard: list[Sample] = []
    site.live.sampled = heard.append
    site.round()
    (good,) = heard
    assert (good.meter, good.quality, good.values) == ("roof", "good", site.live.values["roof"])
    assert good.at == site.live.at["roof"] and 0 < good.took < 1
    device = site.devices.pop(1)
    site.run(minutes=1)
    failed = heard[-1]
    assert failed.quality == "bad" and failed.values == {} and "no answer" in failed.error
    site.devices[1] = device
    site.clock.synchronised = False
    site.run(minutes=1)
    undated = heard[-1]
    assert undated.quality == "uncertain" and undated.values

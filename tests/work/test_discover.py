"""A SunSpec device is walked, its site file written, read again and polled; what does not follow SunSpec is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import pytest

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core.errors import BusRefused, BusTimeout, WrongDevice
from heliograph.core.map_text import text_of
from heliograph.core.plan import LineCost
from heliograph.core.registers import Function, MeterMap, Timing
from heliograph.core.sunspec import Chain, Model
from heliograph.ports import Bus, BusCounters, Frame
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.line import Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.rehearsal.sunspec import Layout
from heliograph.work.discover import Found, discover, walk
from tests.bus.paced import Copper
from tests.fakes import SINGAPORE, a_meter
from tests.work.test_poll import NOON, Site

BASES = (40000, 50000, 0)
QUICK = Timing(timeout=2, retries=0)
COST = LineCost(0.0, 0.0, 0.01, 0.0)
TODAY = date(2026, 3, 14)
TEMPLATES = [
    library.load(name, None).map for name in library.names(None) if library.load(name, None).map.sunspec is not None
]


def template(name: str) -> MeterMap:
    return next((one for one in TEMPLATES if one.name == name), None) or library.load(name, None).map


def device(
    name: str = "sunspec-inverter",
    layout: Layout | None = None,
    *,
    at: Callable[[], datetime] = lambda: NOON,
    **more: object,
) -> SimulatedMeter:
    usual: dict[str, object] = {"start_export_wh": 41_230_700, "sky": Sky(zone=SINGAPORE, seed=1), "seed": 1}
    return SimulatedMeter(template(name), clock=at, layout=layout, **(usual | more))  # type: ignore[arg-type]  # any of its keywords


class Words:
    """A bus to a list of words: what stands at an address, and nothing elsewhere."""

    numbered = True

    def __init__(self, held: dict[int, int], *, silent: bool = False) -> None:
        self.held = held
        self.silent = silent
        """Where it has no register."""
        self.counters = BusCounters()

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        del unit, timing
        span = range(address, address + count)
        if function != "holding" or not all(place in self.held for place in span):
            if self.silent:
                raise BusTimeout("no answer")
            raise BusRefused("there is no such register", code=2)
        return tuple(self.held[place] for place in span)

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        del seconds
        return ()

    def close(self) -> None:
        """Nothing to let go of."""


def held(*models: tuple[int, int], base: int = 40000, end: tuple[int, ...] = (0xFFFF, 0)) -> dict[int, int]:
    """A chain of empty models."""
    words = [0x5375, 0x6E53]
    for number, length in models:
        words += [number, length, *([0] * length)]
    words += end
    return {base + place: word for place, word in enumerate(words)}


@contextmanager
def over_tcp(*devices: SimulatedMeter) -> Iterator[Server]:
    with Server({one.unit: one for one in devices}) as server:
        yield server


def look(url: str, *, name: str = "roof-inverter", at: int | None = None, unit: int = 1) -> Found:
    bus = open_bus(url)
    try:
        return look_at(bus, name=name, at=at, unit=unit)
    finally:
        bus.close()


def look_at(
    bus: Bus,
    *,
    name: str = "roof-inverter",
    at: int | None = None,
    unit: int = 1,
    now: Callable[[], float] = lambda: 0.0,
) -> Found:
    return discover(bus, unit, TEMPLATES, name=name, today=TODAY, cost=COST, now=now, at=at)


def written(found: Found, folder: Path) -> library.LoadedMap:
    """The site file, read again: nothing is wrong with it, and it says the same."""
    path = folder / f"{found.map.name}.toml"
    path.write_text(text_of(found.map, [str(found.chain)]))
    loaded, problems = library.check(path, folder)
    assert [str(problem) for problem in problems] == []
    assert loaded is not None and loaded.map == found.map
    return loaded


# -- the whole way ------------------------------------------------------------------------------------------------


def test_an_inverter_is_found_written_down_and_polled(tmp_path: Path) -> None:
    with over_tcp(device()) as server:
        found = look(server.url)
    assert (
        str(found.chain)
        == "marker at 40000; models 1 (66) at 40002, 103 (50) at 40070, 160 (48) at 40122; end at 40172"
    )
    loaded = written(found, tmp_path)
    site = polled(tmp_path, loaded, device())
    site.run(minutes=2)
    newest = site.store.readings.last("roof")
    assert newest is not None and newest.good and newest.index_wh == site.devices[1].counted_wh(newest.moment.at)
    assert newest.source is not None and (newest.source.address, newest.source.count) == (40094, 3)
    assert newest.values["frequency"] == pytest.approx(50, abs=0.05)
    assert site.store.readings.serial("roof") == site.devices[1].serial
    site.store.close()


def test_on_a_noisy_serial_line_the_same_is_found_and_nothing_is_written_to_it() -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED") or random.SystemRandom().randrange(10**6))
    print(f"HELIOGRAPH_SEED={seed}")
    copper = Copper(Wire({1: device()}, faults=Faults(crc=0.03), seed=seed))
    begun = copper.now
    found = look_at(copper.open(), now=lambda: copper.now)
    with over_tcp(device()) as server:
        assert found.map == look(server.url).map
    assert {request[1] for request in copper.written} == {3}
    assert (
        copper.now - begun < 120
    )  # 5 s without noise; each bad frame costs a time-out of 2 s and the silence after it


def polled(folder: Path, loaded: library.LoadedMap, truth: SimulatedMeter) -> Site:
    meter = replace(
        a_meter(), map=loaded.map, map_digest=loaded.digest, production=loaded.map.production or "", timing=QUICK
    )
    (folder / "store").mkdir()
    site = Site(folder / "store", [meter])
    truth.clock = site.clock.now
    site.devices[1] = truth
    return site


# -- the walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("common", [65, 66])
def test_the_marker_is_found_at_each_base(base: int, common: int) -> None:
    chain = walk(Words(held((1, common), (103, 50), base=base)), 1, BASES, QUICK)
    assert chain == Chain(base, (Model(1, common, base + 2), Model(103, 50, base + 4 + common)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({40000: 0, 40001: 0}, "no marker 0x5375 0x6E53 at its usual addresses (40000 holds 0x0000 0x0000; 50000 was"),
        ({}, "40000 was refused (exception 2); 50000 was refused (exception 2); 0 was refused (exception 2)"),
        (held((103, 50)), "the first model, at 40002, is 103, not 1 (common)"),
        (held((1, 64)), "says that it has 64 registers; such a model has 65 or 66"),
        (held((1, 66), (103, 49)), "model 103 at 40070 says that it has 49 registers; such a model has 50"),
        (held((1, 66), (113, 50)), "such a model has 60"),
        (held((1, 66), (160, 47)), "such a model has 8, and 20 for each of its inputs"),
        (held((1, 66), (64001, 0)), "model 64001 at 40070 has 0 registers, which leads nowhere"),
        (held((1, 66), (0, 5)), "model 0 at 40070 has 5 registers, which leads nowhere"),
        (
            held((1, 66), (103, 50), end=()),
            "at 40122 was refused (exception 2), so the models have no end",
        ),
        (held((1, 66), end=(103,)), "model 103 at 40070 does not tell its length"),
        (held((1, 66), end=(700, 30000)), "would run beyond address 65535"),
        (held((1, 66), *[(900, 1)] * 100), "there is no end after 100 models"),
        (held(), "there are no models behind it"),
    ],
)
def test_a_chain_that_does_not_follow_sunspec_is_refused(words: dict[int, int], told: str) -> None:
    with pytest.raises(WrongDevice) as error:
        walk(Words(words), 1, BASES, QUICK)
    assert told in error.value.message
    assert error.value.hint


def test_a_device_may_have_nothing_behind_the_number_that_ends_it() -> None:
    assert walk(Words(held((1, 66), end=(0xFFFF,))), 1, BASES, QUICK).models == (Model(1, 66, 40002),)


def test_a_device_may_keep_silent_where_it_has_no_register() -> None:
    assert walk(Words(held((1, 66), base=50000), silent=True), 1, BASES, QUICK).base == 50000
    with pytest.raises(WrongDevice, match="40000 was not answered; 50000 holds 0x0000 0x0000; 0 was not answered"):
        walk(Words({50000: 0, 50001: 0}, silent=True), 1, BASES, QUICK)
    with pytest.raises(BusTimeout):
        walk(Words({}, silent=True), 1, BASES, QUICK)

"""Families that are told apart by identity: a device is read by its own map, and refused by every other of its kin."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest

from heliograph import library
from heliograph.core.errors import WrongDevice
from heliograph.core.plan import Learned
from heliograph.core.registers import MeterMap
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.work.poll import PolledBus, Watched, identify
from tests.fakes import SINGAPORE, START, FakeClock, a_meter
from tests.work.test_poll import URL, VirtualBus

FAMILIES = (
    ("sungrow-sg", "sungrow-sg-hires", "sungrow-sh"),
    ("deye-string-micro", "deye-hybrid-1p", "deye-hybrid-3p"),
)
PAIRS = [pair for family in FAMILIES for pair in permutations(family, 2)]


def named(name: str) -> MeterMap:
    return library.load(name, local=None).map


def identified(by: str, device: str) -> None:
    """A device of the one map, polled by the other. Raises WrongDevice."""
    clock = FakeClock(START + timedelta(hours=12))
    held = SimulatedMeter(named(device), clock=clock.now, unit=1, rated_kw=8.0, sky=Sky(zone=SINGAPORE, seed=1))
    meter = replace(a_meter(), map=named(by), production="energy_production")
    line = PolledBus("roof", URL, [meter], lambda: VirtualBus(clock, {1: held}))
    identify(line, Watched(meter, Learned(), ()), clock)


@pytest.mark.parametrize("name", [name for family in FAMILIES for name in family])
def test_a_device_is_taken_by_its_own_map(name: str) -> None:
    identified(name, name)


@pytest.mark.parametrize(("by", "device"), PAIRS)
def test_a_device_is_refused_by_every_other_map_of_its_family(by: str, device: str) -> None:
    with pytest.raises(WrongDevice, match=f"roof is not a {by}: "):
        identified(by, device)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_code_belongs_to_two_maps_of_a_family(one: str, other: str) -> None:
    codes = [{(match.address, value) for match in named(name).identity.match for value in match.values}
             for name in (one, other)]  # fmt: skip
    assert all(codes) and not codes[0] & codes[1]


def test_a_family_with_many_codes_does_not_spell_them_all_out() -> None:
    with pytest.raises(WrongDevice) as caught:
        identified("sungrow-sh", "sungrow-sg")
    codes = named("sungrow-sh").identity.match[0].values
    assert caught.value.message.endswith(f", not one of the {len(codes)} codes in the map")
    with pytest.raises(WrongDevice, match=r"holds 3, not 2 or 512 or 4 or 1024$"):
        identified("deye-string-micro", "deye-hybrid-1p")


def test_no_map_suggests_a_counter_with_what_a_battery_gave_for_a_device_that_has_one() -> None:
    for name in library.names(None):
        m = named(name)
        counter = m.register(m.production) if m.production else None
        if counter is not None and counter.contains == "ac+battery":
            assert all("without a battery" in product for product in m.products), name

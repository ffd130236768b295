"""The site file of a SunSpec device while it is polled: scale factors, the end of a counter, a device that changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from heliograph import library
from heliograph.core.errors import UsageError, WrongDevice
from heliograph.core.plan import LineCost, plan
from heliograph.core.registers import Function, MeterMap
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.rehearsal.sunspec import Layout
from heliograph.work.close_days import close_days
from heliograph.work.read_block import decoded
from tests.fakes import RULES, START
from tests.sunspec_peer import image
from tests.work.test_discover import Words, device, look, look_at, over_tcp, polled, written
from tests.work.test_poll import NOON, Site

END_WH = 42_949_672  # 2^32 hundredths of a Wh, in whole Wh


def found_map(folder: Path, one: SimulatedMeter, name: str = "roof-inverter") -> library.LoadedMap:
    with over_tcp(one) as server:
        return written(look(server.url, name=name, unit=one.unit), folder)


# -- scale factors ------------------------------------------------------------------------------------------------


class Shifting:
    """A device that changes the scale factor of its counter between any two requests."""

    def __init__(self, *phases: SimulatedMeter, torn: bool = False) -> None:
        self.phases = phases
        self.torn = torn
        """The control: what a scale factor from another request would look like."""
        self.asked = 0
        self.serial = phases[0].serial

    def words(self, function: Function, address: int, count: int, at: datetime) -> tuple[int, ...] | Refusal:
        self.asked += 1
        now, other = (self.phases[(self.asked + shift) % len(self.phases)] for shift in (0, 1))
        words = now.words(function, address, count, at)
        place = next(one.address or 0 for one in now.map.registers if one.quantity == "energy_production_sf") - address
        if self.torn and not isinstance(words, Refusal) and 0 <= place < count:
            there = other.words(function, address, count, at)
            assert not isinstance(there, Refusal)
            return (*words[:place], there[place], *words[place + 1 :])
        return words


SHIFTS = (0, 1, 0, -1)


def shifting(*, torn: bool) -> Shifting:
    return Shifting(*(device(settings={"energy_production_sf": power}) for power in SHIFTS), torn=torn)


def strays(map: MeterMap, one: Shifting) -> int:
    """How many of a hundred answers show another counter than the device's, to within its coarsest step."""
    found = 0
    (block,) = (
        block
        for block in plan(map, None, LineCost(0.001, 0.004, 0.01, 0.0))
        if any(register.quantity == "energy_production" for register in block.registers)
    )
    for _ in range(100):
        words = one.words(block.function, block.address, block.count, NOON)
        assert not isinstance(words, Refusal)
        shown = decoded(block, words, map, {})[0]["energy_production"]
        assert isinstance(shown, int)
        found += abs(shown - one.phases[0].energy_wh(NOON)) > 10
    return found


def test_a_scale_factor_that_changes_between_requests_never_meets_another_value(tmp_path: Path) -> None:
    map = found_map(tmp_path, device()).map
    assert strays(map, shifting(torn=False)) == 0
    assert strays(map, shifting(torn=True)) == 100  # the control: with the scale factor of another request


def test_nothing_wrong_is_stored_of_a_device_whose_scale_factor_changes(tmp_path: Path) -> None:
    truth = device()
    site = polled(tmp_path, found_map(tmp_path, truth), truth)
    one = shifting(torn=False)
    for phase in one.phases:
        phase.clock = site.clock.now
    site.devices[1] = one  # type: ignore[assignment]  # all that the bus asks of a device
    site.run(minutes=30)
    seen = [reading for reading in site.store.readings.back("roof") if reading.index_wh is not None]
    assert len(seen) > 5
    assert all(abs((each.index_wh or 0) - truth.energy_wh(each.moment.at)) <= 10 for each in seen)
    site.store.close()


@pytest.mark.parametrize("power", [0x8000, 11, -11])
def test_a_scale_factor_that_is_none_makes_no_reading(tmp_path: Path, power: int) -> None:
    truth = device()
    site = polled(tmp_path, found_map(tmp_path, truth), truth)
    site.run(minutes=3)
    before = site.store.readings.last("roof")
    truth.settings["energy_production_sf"] = power - 0x10000 if power & 0x8000 else power
    site.run(minutes=5)
    last = site.store.readings.last("roof")
    assert before is not None and before.good
    assert last is not None and not last.good and last.index_wh is None
    assert "scale register" in last.doubt or "means no value" in last.doubt
    site.store.close()


@pytest.mark.parametrize("size", [125, 60, 40, 20])
@pytest.mark.parametrize(
    ("name", "layout"),
    [("sunspec-inverter", Layout(inputs=6)), ("sunspec-meter", Layout()), ("sunspec-inverter", Layout(model=101))],
    ids=["inverter", "meter", "one phase"],
)
def test_every_request_holds_the_scale_factors_of_its_numbers(
    tmp_path: Path, name: str, layout: Layout, size: int
) -> None:
    map = found_map(tmp_path, device(name, layout, start_import_wh=5_000)).map
    blocks = plan(map, [one.quantity for one in map.registers], LineCost(0.001, 0.004, 0.01, 0.0), max_words=size)
    assert len(blocks) >= 2
    headers = {match.address for match in map.identity.match if match.type == "u16"}
    assert len(headers) >= 4
    for block in blocks:
        assert not headers & set(range(block.address, block.address + block.count)), "it goes beyond its model"
        for register in block.registers:
            place = register.scale_register
            assert place is None or block.address <= place < block.address + block.count, register.quantity


# -- the end of a counter -----------------------------------------------------------------------------------------


def near_its_end(folder: Path) -> Site:
    """A counter of hundredths of a Wh that starts again 4.3 kWh from here."""
    truth = device(settings={"energy_production_sf": -2}, start_export_wh=END_WH - 4_300)
    truth.map = replace(truth.map, night="answers")  # so that there are readings on both sides of midnight
    loaded = found_map(folder, truth)
    counter = loaded.map.register("energy_production")
    assert counter is not None
    assert (str(counter.rollover), str(counter.step), counter.scale_exponent) == ("42949672.95", "0.01", -2)
    return polled(folder, loaded, truth)


def test_a_counter_of_32_bits_goes_over_its_end(tmp_path: Path) -> None:
    site = near_its_end(tmp_path)
    site.run(minutes=1)
    first = site.store.readings.first_good("roof")
    site.run(minutes=40)
    close_days(site.meters, site.store, site.clock, RULES)
    (seam,) = site.store.seams.all("roof")
    assert (seam.kind, seam.old_wh, seam.new_wh) == ("rollover", END_WH, 0)
    newest = site.store.readings.last("roof")
    assert newest is not None and newest.good and newest.index_wh is not None and newest.index_wh < 100_000
    left = START + timedelta(hours=23, minutes=59) - site.clock.now()
    site.clock.leap(seconds=left.total_seconds())
    site.run(minutes=3)
    site.clock.leap(minutes=15)
    close_days(site.meters, site.store, site.clock, RULES)
    (day,) = site.store.days.all()
    closing = site.store.readings.reading(day.closing.before)
    assert first is not None and first.index_wh is not None and closing.index_wh is not None
    assert day.period_wh == END_WH - first.index_wh + closing.index_wh > 4_000
    site.store.close()


@pytest.mark.parametrize(("power", "seams"), [(-2, ["rollover"]), (-1, []), (-3, [])])
def test_the_end_of_the_map_is_one_only_under_the_scale_factor_it_was_reckoned_with(
    tmp_path: Path, power: int, seams: list[str]
) -> None:
    site = near_its_end(tmp_path)
    site.run(minutes=1)
    site.clock.leap(minutes=15)
    began_anew = device(
        settings={"energy_production_sf": power}, start_export_wh=500, started=site.clock.now(), at=site.clock.now
    )
    site.devices[1] = began_anew
    site.run(minutes=10)
    assert [seam.kind for seam in site.store.seams.all("roof")] == seams
    newest = site.store.readings.last("roof")
    assert newest is not None and newest.good == bool(seams)
    site.store.close()


# -- a device that is built otherwise ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "told"),
    [
        ("sunspec-inverter-float", Layout(), "0x9C86 holds 113, not 103"),
        ("sunspec-inverter", Layout(common_length=65), "0x9C43 holds 65, not 66"),
        ("sunspec-inverter", Layout(before=((122, 44),)), "0x9C86 holds 122, not 103"),
        ("sunspec-inverter", Layout(base=50000), "0x9C40 has no such register"),
    ],
    ids=["floats", "common of 65", "a model in between", "another base"],
)
def test_a_device_that_moves_its_models_is_refused_and_nothing_is_booked(
    tmp_path: Path, name: str, layout: Layout, told: str
) -> None:
    truth = device()
    site = polled(tmp_path, found_map(tmp_path, truth), truth)
    site.run(minutes=3)
    switched = site.clock.now()
    site.devices[1] = device(name, layout, at=site.clock.now, start_export_wh=41_235_000)
    site.run(minutes=10)
    last = site.store.readings.last_good("roof")
    assert last is not None and last.moment.at < switched
    assert told in site.live.errors["roof"]
    meter = site.meters[0]
    assert "heliograph map sunspec" in meter.map.identity.hint
    site.store.close()


def chain(*models: list[int], base: int = 40000) -> Words:
    flat = [0x5375, 0x6E53, *(word for model in models for word in model), 0xFFFF, 0]
    return Words({base + place: word for place, word in enumerate(flat)})


COMMON = image(1, {"Mn": "SolarEdge", "Md": "SE10K", "SN": "7E1A2B3C", "DA": 1})
METER_COMMON = image(1, {"Mn": "SolarEdge", "Md": "WND-3Y-400", "SN": "4F5A6B7C", "DA": 2})
INVERTER = image(103, {"W": 1234, "W_SF": 0, "WH": 41_230_700, "WH_SF": 0, "Hz": 5001, "Hz_SF": -2, "St": 4})
METER = image(203, {"W": -1200, "W_SF": 0, "TotWhExp": 300, "TotWhImp": 70_000, "TotWh_SF": 1, "Hz": 500, "Hz_SF": -1})


def test_a_meter_behind_its_inverter_is_told_and_can_be_taken(tmp_path: Path) -> None:
    bus = chain(COMMON, INVERTER, METER_COMMON, METER)
    inverter = look_at(bus)
    assert (inverter.main.number, inverter.values["serial_number"]) == (103, "7E1A2B3C")
    assert inverter.values["energy_production"] == 41_230_700
    assert any("model 203 at 40190" in note and "--at 40190" in note for note in inverter.notes)
    written(inverter, tmp_path)
    meter = look_at(bus, name="grid", at=40190)
    assert (meter.main.number, meter.values["serial_number"]) == (203, "4F5A6B7C")
    assert (meter.values["energy_export"], meter.values["energy_import"]) == (3_000, 700_000)
    written(meter, tmp_path)


def test_what_is_known_of_a_maker_stands_in_the_site_file() -> None:
    found = look_at(chain(COMMON, INVERTER))
    assert (found.map.maker, found.map.night, found.map.single_client) == ("SolarEdge", "zeros", True)
    assert any(note.startswith("SolarEdge: ") for note in found.notes)
    other = look_at(chain(image(1, {"Mn": "Solaredgy"[:6], "SN": "1"}), INVERTER))
    assert not other.map.single_client


def test_several_inverters_behind_one_address_are_refused_and_can_be_taken_one_by_one() -> None:
    floats = image(113, {"WH": 5_000.0, "W": 3.0, "Hz": 50.0})
    for second in (INVERTER, floats):
        bus = chain(COMMON, INVERTER, METER_COMMON, second)
        with pytest.raises(WrongDevice, match="several inverters behind one address: model 103 at 40070"):
            look_at(bus)
        assert look_at(bus, at=40190).main.address == 40190
    with pytest.raises(WrongDevice, match="several devices behind one address"):
        look_at(chain(COMMON, INVERTER, INVERTER))
    with pytest.raises(UsageError, match="no model that a map is for begins at 40071") as error:
        look_at(chain(COMMON, INVERTER), at=40071)
    assert "model 103 at 40070" in error.value.hint


def test_of_integers_and_floats_in_one_device_the_finer_counter_is_taken() -> None:
    floats = image(113, {"WH": 41_230_700.0, "W": 1234.0, "Hz": 50.0})
    for models in ([INVERTER, floats], [floats, INVERTER]):
        found = look_at(chain(COMMON, *models))
        assert (found.main.number, found.template.name) == (103, "sunspec-inverter")
        assert any("model 113" in note for note in found.notes)


def test_a_device_without_a_model_that_we_read_is_refused() -> None:
    with pytest.raises(WrongDevice, match=r"has no model that a map is for .*120"):
        look_at(chain(COMMON, [120, 3, 0, 0, 0]))


def test_a_device_that_is_asleep_is_not_written_down() -> None:
    asleep = image(103, {"W": 0, "W_SF": 0, "St": 2})
    with pytest.raises(WrongDevice, match="no energy counter of model 103") as error:
        look_at(chain(COMMON, asleep))
    assert "daylight" in error.value.hint


def test_a_model_160_that_counts_otherwise_than_it_is_long_is_refused() -> None:
    inputs = image(160, {"N": 3}, [{"DCW": 5}, {"DCW": 5}])
    inputs[8] = 3
    with pytest.raises(WrongDevice, match="has room for 2 inputs, but says that it has 3"):
        look_at(chain(COMMON, INVERTER, inputs))


def test_inputs_that_are_too_far_from_their_scale_factors_are_left_out(tmp_path: Path) -> None:
    inputs = image(160, {"N": 9, "DCW_SF": 0}, [{"DCW": 100 + number} for number in range(9)])
    found = look_at(chain(COMMON, INVERTER, inputs))
    assert found.values["module6_dc_power"] == 105
    assert "module7_dc_power" not in found.values and found.map.register("module7_dc_power") is None
    (note,) = [note for note in found.notes if "left out" in note]
    assert "module7_dc_power" in note and "module9_dc_energy" in note
    written(found, tmp_path)


@pytest.mark.parametrize("most", [60, 40, 20])
def test_a_device_that_takes_fewer_registers_is_asked_for_fewer(tmp_path: Path, most: int) -> None:
    one = device(max_words=most)
    loaded = found_map(tmp_path, one)
    assert loaded.map.max_words == most
    assert all(size < most for size in loaded.map.fallback_words)
    site = polled(tmp_path, loaded, one)
    site.run(minutes=2)
    newest = site.store.readings.last("roof")
    assert newest is not None and newest.good
    site.store.close()


def test_a_dormant_inverter_is_no_reading_and_wakes_up_where_it_was(tmp_path: Path) -> None:
    truth = device(settings={"manufacturer": "SolarEdge"})
    loaded = found_map(tmp_path, truth)
    assert loaded.map.night == "zeros"
    site = polled(tmp_path, loaded, truth)
    site.run(minutes=2)
    before = site.store.readings.last_good("roof")
    site.clock.leap(hours=9)
    site.run(minutes=5)
    night = site.store.readings.last("roof")
    assert night is not None and night.index_wh is None and not night.good
    site.clock.leap(hours=12)
    site.run(minutes=5)
    morning = site.store.readings.last("roof")
    assert before is not None and before.index_wh is not None
    assert morning is not None and morning.good and morning.index_wh is not None
    assert morning.index_wh > before.index_wh
    assert site.store.seams.all("roof") == []
    site.store.close()


def test_a_site_file_says_what_its_map_said(tmp_path: Path) -> None:
    one = found_map(tmp_path, device())
    text = (tmp_path / "roof-inverter.toml").read_text()
    assert library.from_texts(one.digest, {one.digest: ("roof-inverter", text)}) == one.map

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from heliograph import library
from heliograph.core.decode import Absent, addresses, reading
from heliograph.core.physics import Relation, relations
from heliograph.rehearsal.meter import Refusal, SimulatedMeter

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)

# A three-phase plant that exports, as an SDM630 shows it.
PLANT: dict[str, float | int] = {
    "frequency": 50.02,
    "voltage_l1n": 231.2,
    "voltage_l2n": 229.8,
    "voltage_l3n": 230.5,
    "voltage_l1l2": 399.2,
    "voltage_l2l3": 398.6,
    "voltage_l3l1": 399.8,
    "current_l1": 14.2,
    "current_l2": 14.4,
    "current_l3": 14.1,
    "active_power_l1": -3250.1,
    "active_power_l2": -3276.0,
    "active_power_l3": -3217.5,
    "active_power": -9743.6,
    "power_factor_l1": 0.99,
    "power_factor_l2": 0.99,
    "power_factor_l3": 0.99,
    "power_factor": 0.99,
    "apparent_power_l1": 3283.0,
    "apparent_power_l2": 3309.1,
    "apparent_power_l3": 3250.0,
    "apparent_power": 9842.1,
    "energy_import": 12_345_678,
    "energy_export": 41_230_700,
    "energy_total": 53_576_378,
}


def broken(values: dict[str, float | int]) -> list[str]:
    return [relation.name for relation in relations(values) if not relation.holds]


def the(name: str, values: dict[str, float | int]) -> Relation:
    (found,) = [relation for relation in relations(values) if relation.name == name]
    return found


def test_a_sound_plant_is_held_to_everything_and_breaks_nothing() -> None:
    found = relations(PLANT)
    assert [relation.text for relation in found if not relation.holds] == []
    assert [relation.name for relation in found] == [
        "frequency",
        *("voltage_l1n", "voltage_l2n", "voltage_l3n"),
        *("voltage_l1l2", "voltage_l2l3", "voltage_l3l1"),
        *("power_factor", "power_factor_l1", "power_factor_l2", "power_factor_l3"),
        *("active_power_l1", "active_power_l2", "active_power_l3", "active_power"),
        *("apparent_power_l1", "apparent_power_l2", "apparent_power_l3", "apparent_power"),
        *("active_power_sum", "apparent_power_sum"),
        "energy_total",
    ]


@pytest.mark.parametrize("factor", [0.001, 0.01, 0.1, 10, 100, 1000])
@pytest.mark.parametrize("name", [name for name in PLANT if not name.startswith(("energy", "power_factor"))])
def test_each_power_of_ten_on_any_figure_breaks_something(name: str, factor: float) -> None:
    wrong = PLANT | {name: PLANT[name] * factor}
    assert any(name in relation.quantities and not relation.holds for relation in relations(wrong))


def test_the_total_of_an_inverter_is_no_sum_of_what_passed_the_grid() -> None:
    values: dict[str, float | int] = {
        "energy_total": 13_170_000,
        "energy_import": 1_000_000,
        "energy_export": 13_170_000,
    }
    assert broken(values) == ["energy_total"]
    assert broken(values | {"energy_production": 13_500_000}) == []


@pytest.mark.parametrize("factor", [0.1, 10])
@pytest.mark.parametrize("name", ["energy_import", "energy_export", "energy_total"])
def test_a_counter_of_another_scale_does_not_add_up(name: str, factor: float) -> None:
    assert broken(PLANT | {name: round(PLANT[name] * factor)}) == ["energy_total"]


@pytest.mark.parametrize(
    ("changed", "broken_ones", "words"),
    [
        ({"frequency": 500.2}, ["frequency"], "frequency is 500.2 Hz, and the grid's frequency is 45 to 65 Hz"),
        ({"frequency": 44.99}, ["frequency"], "wrong register, type, word order or scale?"),
        (
            {"voltage_l2n": 398.0},
            ["voltage_l2n", "voltage_l1l2", "voltage_l2l3", "active_power_l2", "apparent_power_l2"],
            "voltage_l2n is 398 V, and a voltage",
        ),
        ({"voltage_l2n": 0.0}, ["voltage_l2n", "apparent_power"], "voltage_l2n is 0 V while voltage_l1n is 231.2 V"),
        ({"voltage_l1l2": 231.0}, ["voltage_l1l2"], "voltage_l1l2 is 231 V, but √3 times voltage_l1n"),
        ({"power_factor": 9.9}, ["power_factor"], "power_factor is 9.9, and a power factor is -1 to 1"),
        ({"active_power_l1": -3.25}, ["active_power_l1", "active_power_sum"], "1,000 times too little: a wrong scale"),
        ({"active_power": 9743.6}, ["active_power_sum"], "the other direction"),
        (
            {"active_power_l2": 3276.0},
            ["active_power_sum"],
            "active_power_l2 runs against the others; is a current transformer turned round?",
        ),
        ({"energy_total": 12_345_678}, ["energy_total"], "It fits energy_import alone: a measurement mode"),
        ({"energy_total": -28_885_022}, ["energy_total"], "It fits energy_import - energy_export"),
        ({"apparent_power": 98_421}, ["apparent_power", "apparent_power_sum"], "10 times as much"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, float], broken_ones: list[str], words: str) -> None:
    assert [name for name in broken(PLANT | changed) if name != "active_power"] == broken_ones
    assert any(words in relation.text for relation in relations(PLANT | changed) if not relation.holds)


def test_the_figures_compared_are_told() -> None:
    relation = the("active_power_l1", {"active_power_l1": 2.1, "voltage_l1n": 230.0, "current_l1": 10.0})
    assert not relation.holds
    assert relation.quantities == ("active_power_l1", "voltage_l1n", "current_l1")
    assert (relation.shown, relation.expected, relation.unit) == (2.1, 2300.0, "W")
    frequency = the("frequency", {"frequency": 500.0})
    assert (frequency.shown, frequency.expected, frequency.unit) == (500.0, 65.0, "Hz")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"frequency": 0.0, "voltage_l1n": 0.0, "voltage_l2n": 0.0, "voltage_l3n": 0.0},
        {"voltage_l1n": 0.0, "current_l1": 0.0, "active_power_l1": 0.0},
        {"active_power": 0.0, "active_power_l1": 0.0, "active_power_l2": 0.0, "active_power_l3": 0.0},
        {"energy_import": 900, "energy_export": 0, "energy_total": 0},
        {"active_power": 4000.0, "current_l1": 17.0},
        {"active_power": math.nan, "frequency": math.inf},
    ],
    ids=["nothing", "asleep", "no current", "no power", "new counters", "no voltage", "not a number"],
)
def test_where_there_is_nothing_to_compare_nothing_is_claimed(values: dict[str, float]) -> None:
    assert relations(values) == ()


@pytest.mark.parametrize(
    ("watts", "amperes"),
    [(3.0, 0.05), (0.0, 0.2), (31.0, 0.0), (-12.0, 0.3)],
    ids=["hum", "reactive", "coarse", "back"],
)
def test_tiny_loads_prove_nothing_either_way(watts: float, amperes: float) -> None:
    values = {"voltage_l1n": 230.0, "current_l1": amperes, "active_power_l1": watts, "power_factor_l1": 0.9}
    assert [relation.name for relation in relations(values)] == ["voltage_l1n", "power_factor_l1"]


def test_a_load_may_change_between_two_requests() -> None:
    assert broken(PLANT | {"current_l1": 17.0, "current_l2": 12.0, "active_power": -9000.0}) == []


def test_a_sum_over_some_of_the_phases_is_no_sum() -> None:
    names = ("voltage_l1n", "voltage_l2n", "current_l1", "current_l2", "current_l3", "active_power")
    two = {name: PLANT[name] for name in names}
    assert [relation.name for relation in relations(two)] == ["voltage_l1n", "voltage_l2n"]


def test_reactive_current_at_night_is_no_fault_where_it_is_told() -> None:
    night = {"voltage_l1n": 230.0, "current_l1": 8.7, "active_power_l1": 20.0}
    assert broken(night) == ["active_power_l1"]
    assert "a filter that draws current at night shows this too" in the("active_power_l1", night).text
    assert broken(night | {"reactive_power_l1": -2000.9}) == []
    assert broken(night | {"power_factor_l1": 0.01}) == []


def test_without_a_power_factor_any_share_of_u_times_i_will_do() -> None:
    one = {"voltage_l1n": 230.0, "current_l1": 10.0}
    assert broken(one | {"active_power_l1": 700.0}) == []
    assert broken(one | {"active_power_l1": 3500.0}) == ["active_power_l1"]


def test_one_phase_under_the_names_of_a_small_meter() -> None:
    meter = {"voltage_l1n": 230.0, "current_l1": 10.0, "active_power": 2280.0, "power_factor": 0.99}
    assert the("active_power", meter).expected == pytest.approx(2277)
    assert the("active_power", {"voltage_l1n": 230.0, "current": 10.0, "active_power": 2280.0}).holds


@pytest.mark.parametrize("name", [name for name in library.names(None) if not library.load(name, None).map.sunspec])
def test_every_shipped_map_at_noon_breaks_nothing(name: str) -> None:
    map = library.load(name, None).map
    settings = {"ct_ratio": 1, "vt_ratio": 1}
    meter = SimulatedMeter(map, clock=lambda: NOON, settings=settings, start_export_wh=41_000_000, rated_kw=8.0)
    values: dict[str, float | int] = {}
    for register in map.registers:
        if register.times or register.scale_register is not None or register.addresses or register.model is not None:
            continue
        places = addresses(register)
        words = meter.words(map.function_of(register), places[0], len(places), NOON)
        assert not isinstance(words, Refusal)
        value = reading(register, map.order_of(register), words)
        if not isinstance(value, Absent | str):
            values[register.quantity] = value
    assert [relation.text for relation in relations(values) if not relation.holds] == []

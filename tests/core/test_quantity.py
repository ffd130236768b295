from __future__ import annotations

from decimal import Decimal

import pytest

from heliograph.core.quantity import ENERGY_UNITS, UNITS, find, names


@pytest.mark.parametrize(
    ("name", "unit", "kind"),
    [
        ("energy_export", "Wh", "counter"),
        ("energy_import_l3", "Wh", "counter"),
        ("energy_total_t1", "Wh", "counter"),
        ("energy_production_today", "Wh", "counter"),
        ("module2_dc_energy", "Wh", "counter"),
        ("reactive_energy_import_l1", "varh", "counter"),
        ("apparent_energy", "VAh", "counter"),
        ("charge", "Ah", "counter"),
        ("active_power", "W", "instant"),
        ("active_power_l2", "W", "instant"),
        ("apparent_power_demand_max", "VA", "instant"),
        ("reactive_power_l3", "var", "instant"),
        ("voltage_l1n", "V", "instant"),
        ("voltage_l1l2", "V", "instant"),
        ("voltage_thd_ln_avg", "%", "instant"),
        ("current_thd_avg", "%", "instant"),
        ("current_neutral_demand_max", "A", "instant"),
        ("power_factor_inverted", "1", "instant"),
        ("phase_angle_l1", "deg", "instant"),
        ("frequency", "Hz", "instant"),
        ("temperature_heatsink", "degC", "instant"),
        ("serial_number", "", "identity"),
        ("a_sf", "", "identity"),
        ("ct_ratio", "", "setting"),
        ("system_type", "", "setting"),
    ],
)
def test_a_name_has_one_unit_and_kind(name: str, unit: str, kind: str) -> None:
    quantity = find(name)
    assert quantity is not None
    assert (quantity.name, quantity.unit, quantity.kind) == (name, unit, kind)


@pytest.mark.parametrize(
    "name", ["", "energy", "energy_exports", "voltage", "voltage_l4n", "Energy_export", "xfrequency"]
)
def test_a_word_we_do_not_have_is_none(name: str) -> None:
    assert find(name) is None


def test_every_name_that_is_offered_is_known_and_no_name_is_offered_twice() -> None:
    offered = names()
    assert len(set(offered)) == len(offered)
    assert [name for name in offered if find(name) is None] == []
    assert {"energy_export", "energy_import_l3", "voltage_l3l1", "current_demand_max_l2", "serial_number", "ct_ratio",
            "module3_dc_energy", "active_power_x3_l2"} <= set(offered)  # fmt: skip


def test_every_quantity_is_kept_in_a_unit_that_maps_may_write() -> None:
    kept = {unit for unit, _ in UNITS.values()}
    for name in names():
        quantity = find(name)
        assert quantity is not None
        assert quantity.unit in kept, name
        assert UNITS[quantity.unit] == (quantity.unit, Decimal(1)), name


def test_a_unit_leads_to_itself_in_one_step() -> None:
    for unit, (base, factor) in UNITS.items():
        assert UNITS[base] == (base, Decimal(1)), unit
        assert factor > 0
    assert {"Wh", "varh", "VAh"} == ENERGY_UNITS


@pytest.mark.parametrize(
    ("unit", "base", "factor"),
    [("kWh", "Wh", 1000), ("MWh", "Wh", 1_000_000), ("kvarh", "varh", 1000), ("kW", "W", 1000), ("mA", "A", "0.001")],
)
def test_units_convert_as_their_names_say(unit: str, base: str, factor: int | str) -> None:
    assert UNITS[unit] == (base, Decimal(factor))


def test_plausible_ranges_hold_what_a_working_site_shows() -> None:
    inside = {
        "voltage_l1n": 230.0,
        "frequency": 60.0,
        "power_factor": -1.0,
        "active_power": -1e6,
        "current_l1": -5000.0,
    }
    for name, shown in inside.items():
        quantity = find(name)
        assert quantity is not None
        assert quantity.low is not None
        assert quantity.high is not None
        assert quantity.low <= shown <= quantity.high

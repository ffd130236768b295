from __future__ import annotations

import math
import struct
from decimal import Decimal

import pytest

from heliograph.core.decode import reading
from heliograph.core.plausible import (
    ABSENT,
    FIRST,
    JUMP,
    LEAP,
    NEVER,
    ZERO,
    Doubt,
    Value,
    agree,
    doubts,
    most_wh,
    recognised,
    step_wh,
)
from heliograph.core.registers import Register

KWH = Register(quantity="energy_export", type="float32", unit="kWh", address=0)


@pytest.mark.parametrize(
    ("register", "wh", "step"),
    [
        (KWH, 10_000_000, 2),  # 10,000 kWh: 0.001 kWh a step, shown as up to two of them
        (KWH, 100_000_000, 16),
        (KWH, 200_000_000, 32),
        (KWH, 900_000_000, 125),
        (KWH, 0, 1),
        (Register(quantity="energy_export", type="float32", unit="Wh", address=0), 100_000_000, 16),
        (Register(quantity="energy_export", type="u32", unit="kWh", address=0), 5000, 1000),
        (Register(quantity="energy_export", type="u64", unit="kWh", address=0, scale=Decimal("0.01")), 5000, 10),
        (Register(quantity="energy_export", type="u32", unit="Wh", address=0), 10**12, 1),
        (Register(quantity="energy_export", type="float32", unit="kWh", address=0, step=Decimal("0.1")), 5000, 100),
        (Register(quantity="energy_export", type="float32", unit="kWh", address=0, scale=Decimal(-1)), 10_000_000, 2),
        (Register(quantity="energy_export", type="float64", unit="kWh", address=0), 10_000_000, 1),
        (Register(quantity="frequency", type="float32", unit="Hz", address=0), 50, 0),
    ],
)
def test_the_step_of_a_counter_follows_from_its_type(register: Register, wh: float, step: int) -> None:
    assert step_wh(register, wh) == step


def test_neighbouring_float32_never_differ_by_more_than_a_step_as_they_are_shown() -> None:
    bits = struct.unpack(">I", struct.pack(">f", 1.0))[0]
    for start in range(bits, bits + (21 << 23), 1_000_003):
        shown = []
        for raw in (start, start + 1):
            words = struct.unpack(">HH", struct.pack(">I", raw))
            value = reading(KWH, "ABCD", words)
            assert isinstance(value, int)
            shown.append(value)
        assert 0 <= shown[1] - shown[0] <= step_wh(KWH, shown[0])


# 50 kW for 35 s with a second for sampling and a fifth of headroom: 600 Wh.
BEFORE: dict[str, Value] = {
    "energy_export": 41_237_000,
    "energy_import": 312_500,
    "active_power": 20_000.0,
    "voltage_l1n": 230.0,
    "frequency": 50.0,
    "power_factor": 0.99,
    "temperature_internal": 40.0,
}


def found(changed: dict[str, Value], **keys: object) -> list[tuple[str, int]]:
    new = {**BEFORE, **changed}
    told = doubts(BEFORE, new, 35.0, 50.0, {"energy_export": 4, "energy_import": 1}, **keys)  # type: ignore[arg-type]  # keys of a table row
    return [(doubt.quantity, doubt.settled_by) for doubt in told]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"energy_export": 41_237_604}, []),
        ({"energy_export": 41_237_605}, [("energy_export", NEVER)]),
        ({"energy_export": 41_236_999}, [("energy_export", NEVER)]),
        ({"energy_export": 0}, [("energy_export", NEVER)]),
        ({"energy_import": 313_101}, []),
        ({"energy_import": 313_102}, [("energy_import", NEVER)]),
        ({"active_power": 15_100.0}, []),  # more than 1 kW, less than a quarter
        ({"active_power": 14_900.0}, [("active_power", JUMP)]),
        ({"active_power": -20_000.0}, [("active_power", JUMP)]),
        ({"active_power": 0.0}, [("active_power", ZERO)]),  # what does not exist reads as zero
        ({"voltage_l1n": 256.0}, []),
        ({"voltage_l1n": 0.0}, [("voltage_l1n", ZERO)]),
        ({"voltage_l1n": 400.0}, [("voltage_l1n", JUMP)]),
        ({"power_factor": -0.99}, [("power_factor", JUMP)]),
        ({"temperature_internal": 90.0}, []),  # nobody knows how fast it may go
    ],
)
def test_what_does_not_follow_from_the_reading_before_is_doubted(
    changed: dict[str, Value], expected: list[tuple[str, int]]
) -> None:
    assert found(changed) == expected


def test_small_moves_of_small_instants_are_not_worth_a_second_look() -> None:
    assert doubts({"active_power": 10.0}, {"active_power": 900.0}, 10, 50, {}) == ()
    assert doubts({"current_l1": 0.1}, {"current_l1": 4.0}, 10, 50, {}) == ()


def test_counters_that_are_not_production_may_move_faster_than_the_plant() -> None:
    four_times: dict[str, Value] = {"energy_import": 312_500 + 2400}
    assert found(four_times) == [("energy_import", NEVER)]
    assert found(four_times, production="energy_export") == []
    assert found({"energy_import": 312_500 + 2403}, production="energy_export") == [("energy_import", NEVER)]


def test_each_counter_may_have_its_own_distance_in_time() -> None:
    """One that was in doubt for an hour has risen for an hour when it is believed again."""
    new = {"energy_export": 41_237_000 + 50_000, "energy_import": 312_500}
    old = {name: BEFORE[name] for name in new}
    assert [d.quantity for d in doubts(old, new, 10, 50, {})] == ["energy_export"]
    assert doubts(old, new, {"energy_export": 3600, "energy_import": 10}, 50, {}) == ()


def test_a_counter_that_may_fall_is_believed_after_many_agreeing_reads() -> None:
    assert found({"energy_export": 0}, falling={"energy_export"}) == [("energy_export", LEAP)]
    assert found({"energy_export": 41_236_500}, falling={"energy_export"}) == []


def test_a_young_counter_is_looked_at_twice_while_it_could_be_anything() -> None:
    """0.98 kWh may be a power factor."""
    told = doubts({"energy_total": 500}, {"energy_total": 980}, 35, 50, {})
    assert [doubt.settled_by for doubt in told] == [JUMP]
    assert doubts({"energy_total": 500}, {"energy_total": 560}, 35, 50, {}) == ()


@pytest.mark.parametrize(
    ("previous", "new", "settled_by"),
    [
        (None, {"energy_export": 1, "frequency": 50.0}, FIRST),
        ({}, {"energy_export": 1}, FIRST),
        (None, {"energy_export": 0, "frequency": 0.0}, ZERO),
        (None, {"energy_export": 0, "energy_import": 0, "frequency": 50.0}, ZERO),
        ({"voltage_l1n": 230.0, "active_power": 0.0}, {"voltage_l1n": 0.0, "active_power": 0.0}, ZERO),
        ({"status": 1.0, "current_l1": 1.0}, {"status": 0.0, "current_l1": 0.0}, ZERO),
        ({"frequency": 50.0, "energy_export": 1}, {"energy_export": 1}, ABSENT),
        ({"energy_export": 1}, {"frequency": 50.0, "energy_export": 1}, FIRST),
        ({"serial_number": 1234}, {"serial_number": 4321}, FIRST),
        ({"model": "A"}, {"model": "B"}, FIRST),
        ({"ct_ratio": 1}, {"ct_ratio": 40}, FIRST),
    ],
)
def test_news_needs_agreeing_reads(previous: dict[str, Value] | None, new: dict[str, Value], settled_by: int) -> None:
    assert max(doubt.settled_by for doubt in doubts(previous, new, 10, 50, {})) == settled_by


def test_what_has_always_been_zero_or_the_same_is_not_news() -> None:
    for values in ({"energy_import": 0}, {"model": "A"}, {"serial_number": 1}, {"status": 7.0}):
        assert doubts(values, values, 10, 50, {}) == ()


def test_two_reads_agree_when_counters_go_on_and_instants_stay() -> None:
    def tell(later: dict[str, Value], elapsed: float = 0.2) -> bool:
        return agree(BEFORE, {**BEFORE, **later}, elapsed=elapsed, rated_kw=50, steps={"energy_export": 4})

    assert tell({})
    assert tell({"energy_export": 41_237_003, "active_power": 21_000.0})
    assert not tell({"energy_export": 41_236_999})
    assert not tell({"energy_export": 41_237_600})
    assert tell({"energy_export": 41_237_600}, elapsed=60)
    assert not tell({"active_power": 0.0})
    assert not agree(BEFORE, {"frequency": 50.0}, elapsed=0.2, rated_kw=50, steps={})
    assert not agree({"frequency": 50.0}, BEFORE, elapsed=0.2, rated_kw=50, steps={})
    assert agree({}, {}, elapsed=0.2, rated_kw=50, steps={})
    assert not agree({}, BEFORE, elapsed=0.2, rated_kw=50, steps={})


JUMPED = (Doubt("active_power", "", JUMP),)


@pytest.mark.parametrize(
    ("new", "told", "most", "expected"),
    [
        ({"energy_export": 41_237_100}, JUMPED, {"energy_export": 600.0}, True),
        ({"energy_export": 41_237_100}, JUMPED, {"energy_export": 600_000.0}, False),  # a wide window proves nothing
        ({"energy_export": 41_237_100}, (Doubt("energy_export", "", NEVER),), {"energy_export": 600.0}, False),
        ({"energy_export": 41_237_100}, (Doubt("frequency", "", ABSENT),), {"energy_export": 600.0}, False),
        ({"energy_export": 0}, JUMPED, {"energy_export": 600.0}, False),  # nor does a counter at zero
        ({"voltage_l1n": 233.0, "frequency": 50.1}, JUMPED, {}, True),
        ({"voltage_l1n": 233.0}, JUMPED, {}, False),  # one number may fit by chance
        ({"voltage_l1n": 233.0, "frequency": 60.0}, JUMPED, {}, False),
        ({"voltage_l1n": 233.0, "voltage_l2n": 231.0}, JUMPED, {}, False),  # there was no L2 before
        ({"active_power": 20_000.0, "power_factor": 0.99}, JUMPED, {}, False),
        ({}, JUMPED, {}, False),
    ],
)
def test_some_numbers_prove_that_it_is_the_right_block(
    new: dict[str, Value], told: tuple[Doubt, ...], most: dict[str, float], expected: bool
) -> None:
    assert recognised(BEFORE, new, told, most) is expected


def test_the_most_a_counter_can_rise() -> None:
    assert most_wh("energy_export", 3599, 50, 4) == pytest.approx(60_004)
    assert most_wh("energy_export", -5, 50, 4) == pytest.approx(50_000 / 3600 * 1.2 + 4)  # a clock that was set back
    assert math.isclose(most_wh("energy_import", 3599, 50, 0, "energy_export"), 240_000)

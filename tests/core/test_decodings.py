from __future__ import annotations

import os
import random
import struct
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from heliograph import library
from heliograph.core.decode import addresses
from heliograph.core.decodings import (
    NUMBERS,
    ORDERS,
    SCALES,
    Marker,
    Words,
    corrections,
    decodings,
    diagnose,
    hypotheses,
    phase_set,
    read_by,
    readings_at,
    style_by,
    style_of,
    text_at,
)
from heliograph.core.registers import Function, MeterMap, Order, Register, Type
from heliograph.rehearsal.meter import Refusal, SimulatedMeter

NOON = datetime(2026, 3, 14, 12, 7, tzinfo=UTC)
SDM630 = library.load("eastron-sdm630", None).map
EXPORT_WH = 41_230_700

# The formats of struct, and a raw number that tells its bytes apart.
BY_HAND: dict[Type, tuple[str, int | float]] = {
    "u16": (">H", 0x1234),
    "s16": (">h", -0x1234),
    "u32": (">I", 0x12345678),
    "s32": (">i", -0x12345678),
    "float32": (">f", 1234.5),
    "u64": (">Q", 0x0000123456789ABC),
    "s64": (">q", -0x0000123456789ABC),
    "float64": (">d", -98765.4321),
}


def by_hand(type: Type, order: Order, raw: int | float) -> dict[int, int]:
    """The words of a number at address 7, by moving its bytes where the order's letters say."""
    data = struct.pack(BY_HAND[type][0], raw)
    low_first, swapped = {"ABCD": (False, False), "CDAB": (True, False), "BADC": (False, True), "DCBA": (True, True)}[
        order
    ]
    pairs = [data[at : at + 2] for at in range(0, len(data), 2)]
    if swapped:
        pairs = [bytes((pair[1], pair[0])) for pair in pairs]
    if low_first:
        pairs = pairs[::-1]
    return {7 + place: pair[0] << 8 | pair[1] for place, pair in enumerate(pairs)}


def bank(map: MeterMap, function: Function = "input", **changed: object) -> dict[int, int]:
    """What a plant of 12 kW shows at noon in one address space."""
    meter = SimulatedMeter(
        map,
        clock=lambda: NOON,
        start_export_wh=EXPORT_WH,
        rated_kw=12,
        settings={"ct_ratio": 1, "vt_ratio": 1, **changed},  # type: ignore[dict-item]  # settings are numbers and texts
    )
    found: dict[int, int] = {}
    for register in map.registers:
        if map.function_of(register) == function:
            for place in addresses(register):
                if place not in found:
                    words = meter.words(function, addresses(register)[0], len(addresses(register)), NOON)
                    if not isinstance(words, Refusal):
                        found |= dict(zip(addresses(register), words, strict=True))
    return found


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("type", NUMBERS)
def test_every_decoding_finds_what_another_encoder_wrote(type: Type, order: Order, scale: Decimal) -> None:
    raw = BY_HAND[type][1]
    if len(by_hand(type, order, raw)) == 1 and order in ("CDAB", "DCBA"):
        order = "ABCD" if order == "CDAB" else "BADC"  # one word has no order of words
    words = by_hand(type, order, raw)
    found = [one for one in decodings(words, 7) if (one.type, one.order, one.scale) == (type, order, scale)]
    if type.startswith("float") and scale in (Decimal(10), Decimal(100)):
        assert found == []  # nobody writes floats in tens
        return
    (one,) = found
    assert one.value == Decimal(str(raw)) * scale
    assert one.words == tuple(words[place] for place in sorted(words))
    # Negative control: any other order of the same type reads another number.
    others = [o for o in decodings(words, 7) if (o.type, o.scale) == (type, scale) and o.order != order]
    assert others or len(words) == 1
    assert all(other.value != one.value for other in others)


def test_what_is_not_a_number_is_no_reading() -> None:
    words = {0: 0x7FC0, 1: 0x0000}
    assert [one for one in decodings(words, 0) if one.type == "float32" and one.order == "ABCD"] == []
    assert {one.type for one in decodings({0: 5}, 0)} == {"u16", "s16"}


@pytest.mark.parametrize(
    ("name", "swapped"),
    [
        ("eastron-sdm630", "CDAB"),
        ("eastron-sdm630", "BADC"),
        ("eastron-sdm630", None),
        ("eastron-sdm54", None),
        ("eastron-sdm72dm-v2", None),
        ("schneider-iem3155", None),
        ("kostal-plenticore", None),
        ("carlo-gavazzi-em340", None),
        ("fronius-inverter-float", None),
        ("growatt-mic-mid-max-tlx", None),
        ("eastron-sdm120", None),
    ],
)
def test_the_phases_of_a_grid_are_found_without_a_map(name: str, swapped: Order | None) -> None:
    map = library.load(name, None).map
    if swapped:
        map = replace(map, order=swapped)
    words = bank(map, map.function)
    instants = ("voltage", "current", "active", "frequency", "power", "apparent")
    near = [
        place
        for register in map.registers
        if register.quantity.startswith(instants) and map.function_of(register) == map.function
        for place in addresses(register)
    ]
    first = min(near)
    found = phase_set({place: word for place, word in words.items() if first <= place <= first + 115})
    meter = SimulatedMeter(map, clock=lambda: NOON, start_export_wh=EXPORT_WH, rated_kw=12)
    assert {"voltage_l1n", "current_l1", "frequency"} <= set(found.members)
    known = {register.quantity for register in map.registers}
    for quantity, one in found.members.items():
        if quantity in known:
            assert one.number == pytest.approx(float(meter.value(quantity, NOON)), rel=0.02), f"{quantity}: {one}"
    style = style_of(found.members)
    if swapped:
        assert style is not None and style.orders == {swapped}


def test_noise_is_no_grid() -> None:
    """The negative control: floats of chance that are far from any grid, and nothing at all."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"HELIOGRAPH_SEED={seed}")
    chance = random.Random(seed)
    small = {place: chance.choice((0, 0, chance.randrange(1, 40))) for place in range(40)}
    assert phase_set(small).members == {}
    # Three numbers that could be volts are not yet a grid.
    assert phase_set({**dict.fromkeys(range(40), 0), 10: 230, 11: 231, 12: 229}).members == {}
    for words in ({}, dict.fromkeys(range(50), 0), dict.fromkeys(range(50), 0xFFFF)):
        assert phase_set(words).members == {}


@pytest.mark.parametrize("order", [*(order for order in ORDERS if order != "ABCD")])
def test_a_meter_in_another_word_order_is_told(order: Order) -> None:
    words = bank(replace(SDM630, order=order))
    own, better = hypotheses(SDM630, {"input": words})
    assert own.broken and better is not None
    assert (better.order, better.shift) == (order, 0)
    assert better.broken == 0 and better.values["frequency"] == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
@pytest.mark.parametrize("name", ["eastron-sdm630", "carlo-gavazzi-em340", "sofar-g3", "kostal-plenticore"])
def test_a_map_whose_addresses_are_all_beside_is_told(name: str, shift: int) -> None:
    map = library.load(name, None).map
    words = bank(map, map.function)
    moved = replace(
        map,
        registers=tuple(
            replace(register, address=None if register.address is None else register.address - shift)
            for register in map.registers
        ),
    )
    own, better = hypotheses(moved, {map.function: words})
    assert better is not None and better.shift == shift
    assert better.broken == 0 and better.holds > own.holds


@pytest.mark.parametrize("name", [name for name in library.names(None) if not library.load(name, None).map.sunspec])
def test_a_right_map_is_left_alone(name: str) -> None:
    map = library.load(name, None).map
    space = {function: bank(map, function) for function in ("input", "holding")}
    own, better = hypotheses(map, space, {"ct_ratio": Decimal(1), "vt_ratio": Decimal(1)})  # type: ignore[arg-type]  # keys are functions
    assert better is None
    assert [one.text for one in own.found if not one.holds] == []


def edited(**changes: object) -> MeterMap:
    """The SDM630 with a mistake in one register."""
    quantity = changes.pop("quantity")
    return replace(
        SDM630,
        registers=tuple(
            replace(register, **changes) if register.quantity == quantity else register  # type: ignore[arg-type]  # any field
            for register in SDM630.registers
        ),
    )


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"quantity": "voltage_l1n", "scale": Decimal(10)}, "voltage_l1n as float32 ABCD at 0x0000"),
        ({"quantity": "active_power", "unit": "kW"}, "active_power as float32 ABCD x 0.001 at 0x0034"),
        ({"quantity": "active_power", "address": 0x36}, "active_power as float32 ABCD at 0x0034"),
        ({"quantity": "active_power_l1", "address": 0x0D}, "active_power_l1 as float32 ABCD at 0x000C"),
        ({"quantity": "current_l2", "order": "CDAB"}, "current_l2 as float32 ABCD at 0x0008"),
        ({"quantity": "frequency", "type": "u32"}, "frequency as float32 ABCD at 0x0046"),
    ],
    ids=["scale", "unit", "address", "off by one", "word order", "type"],
)
def test_one_wrong_register_is_found_with_the_smallest_change_that_sets_it_right(
    mistake: dict[str, object], said: str
) -> None:
    # Undefined registers read zero.
    space: dict[Function, Words] = {"input": dict.fromkeys(range(0x4C), 0) | bank(SDM630)}
    wrong = edited(**mistake)
    found_out = diagnose(wrong, space)
    assert found_out.own.broken and found_out.better is None
    assert str(found_out.fixes[0]) == said


def test_a_map_that_fits_needs_no_correction() -> None:
    space: dict[Function, Words] = {"input": bank(SDM630)}
    own, _ = hypotheses(SDM630, space)
    assert corrections(SDM630, space, own) == ()


def marked(address: int, map: MeterMap, words: dict[int, int]) -> list[str]:
    own, _ = hypotheses(map, {"input": words})
    marker = Marker(own.values, style_by(map))
    return [
        f"{one.by_map or (one.marks[0].quantity if one.marks else '')} {one.decoding}"
        for one in readings_at(words, address, marker, map=map)
        if one.agrees
    ]


def test_the_power_of_all_phases_is_marked_by_its_phases() -> None:
    words = bank(SDM630)
    assert marked(0x34, SDM630, words)[0] == "active_power float32 ABCD"
    # Without knowing that register, physics tells the same.
    blind = replace(SDM630, registers=tuple(r for r in SDM630.registers if r.quantity != "active_power"))
    assert marked(0x34, blind, words)[0] == "active_power float32 ABCD"


def test_what_contradicts_the_map_is_said_beside_what_fits() -> None:
    words, wrong = bank(SDM630), edited(quantity="active_power_l3", scale=Decimal("0.1"))
    own, _ = hypotheses(wrong, {"input": words})
    readings = readings_at(words, 0x10, Marker(own.values, style_by(wrong)), map=wrong)
    (by_map,) = [one for one in readings if one.by_map]
    assert by_map.against and not by_map.agrees
    assert readings[0].decoding.scale == 1 and "active_power_l3" in [mark.quantity for mark in readings[0].marks]


def test_numbers_that_come_near_nothing_are_not_said_to_agree() -> None:
    words = bank(SDM630)
    own, _ = hypotheses(SDM630, {"input": words})
    marker = Marker(own.values, style_by(SDM630))

    def agreeing(volts: float) -> bool:
        high, low = struct.unpack(">HH", struct.pack(">f", volts))
        (one,) = [o for o in decodings({500: high, 501: low}, 500) if str(o) == "float32 ABCD"]
        return any(mark.agrees for mark in marker.marks(one))

    assert agreeing(229.5)
    assert not agreeing(229.5 * 1.1) and not agreeing(229.5 * 0.85) and not agreeing(-547.6)


def test_a_frequency_is_marked_by_its_range_alone() -> None:
    words = bank(SDM630)
    (one,) = [o for o in decodings(words, 0x46) if str(o) == "float32 ABCD"]
    (mark,) = Marker({}).marks(one)
    assert (mark.quantity, mark.agrees) == ("frequency", 0)


def test_numbers_that_a_factor_or_a_scale_register_makes_are_read_as_the_map_says() -> None:
    map = library.load("chint-dtsu666", None).map
    words = bank(map, "holding", ct_ratio=40)
    words |= {}
    space: dict[Function, Words] = {"holding": words, "input": bank(map, "input", ct_ratio=40)}
    values = read_by(map, space, factors={"ct_ratio": Decimal(40), "vt_ratio": Decimal(1)})
    meter = SimulatedMeter(map, clock=lambda: NOON, rated_kw=12, settings={"ct_ratio": 40, "vt_ratio": 1})
    assert values["active_power"] == pytest.approx(float(meter.value("active_power", NOON)), rel=0.02)
    assert "active_power" not in read_by(map, space, factors={}) or "ct_ratio" in {r.quantity for r in map.registers}
    scaled = replace(
        SDM630,
        registers=(
            Register(quantity="voltage_l1n", type="u16", address=0, unit="V", scale_register=1),
            Register(quantity="v_sf", type="sunssf", address=1),
        ),
    )
    assert read_by(scaled, {"input": {0: 2304, 1: 0xFFFF}})["voltage_l1n"] == pytest.approx(230.4)
    assert "voltage_l1n" not in read_by(scaled, {"input": {0: 2304}})


def test_text_is_seen_where_it_is_printable_and_long_enough() -> None:
    words = dict(enumerate((0x5344, 0x4D36, 0x3330, 0x0000, 0x4142)))
    assert text_at(words, 0) == "SDM630"
    assert text_at(words, 1) == ""
    assert text_at({0: 0x4142, 1: 0x0102}, 0) == ""


def test_a_range_that_ends_before_the_total_does_not_take_neighbours_for_phases() -> None:
    words = {place: word for place, word in bank(SDM630).items() if place <= 0x19}
    found = phase_set(words)
    assert {name: one.address for name, one in found.members.items() if name.startswith("active_power")} == {
        "active_power_l1": 0x0C,
        "active_power_l2": 0x0E,
        "active_power_l3": 0x10,
    }


def test_a_grid_is_found_among_a_thousand_other_registers() -> None:
    words = dict.fromkeys(range(1000), 0) | {place + 700: word for place, word in bank(SDM630).items() if place < 0x60}
    assert phase_set(words).members["active_power"].address == 700 + 0x34


def test_a_map_whose_numbers_have_scale_registers_is_shown_as_it_reads_them() -> None:
    registers = (
        Register(quantity="active_power", type="s16", address=0x10, unit="W", scale_register=0x11),
        Register(quantity="power_SF", type="sunssf", address=0x11),
        Register(quantity="energy_export", type="acc32", address=0x12, unit="Wh", scale_register=0x14, monotonic=True),
        Register(quantity="energy_SF", type="sunssf", address=0x14),
    )
    map = replace(SDM630, registers=registers, vectors=(), function="holding")
    words = {0x10: 6133, 0x11: 1, 0x12: 0x0009, 0x13: 0x69B8, 0x14: 0xFFFE}
    own, _ = hypotheses(map, {"holding": words})
    marker = Marker(own.values, style_by(map))
    power, energy = (readings_at(words, at, marker, map=map, function="holding")[0] for at in (0x10, 0x12))
    assert (power.by_map, power.decoding.number) == ("active_power", 61330)
    assert energy.by_map == "energy_export" and energy.decoding.number == pytest.approx(6168.88)

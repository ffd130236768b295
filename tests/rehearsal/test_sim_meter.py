"""The simulated register bank against our own decoder: two pieces of code that share only the map."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph import library
from heliograph.core import decode
from heliograph.core.errors import UsageError
from heliograph.core.physics import relations
from heliograph.core.quantity import find
from heliograph.core.registers import Function, Identity, Match, MeterMap, Order, Register, SunSpec, Type
from heliograph.rehearsal.frames import ILLEGAL_ADDRESS, ILLEGAL_FUNCTION, ILLEGAL_VALUE
from heliograph.rehearsal.meter import FLOATS, WIDTHS, Refusal, SimulatedMeter, arranged, encoded
from heliograph.rehearsal.sun import Sky

SINGAPORE = ZoneInfo("Asia/Singapore")
STARTED = datetime(2026, 3, 1, 0, 0, 7, 123_456, tzinfo=UTC)
NOON = datetime(2026, 3, 3, 5, 12, 3, 500_000, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 3, 16, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(hours=1), timedelta(days=7)).map(lambda after: STARTED + after)
SHIPPED = library.names(local=None)


def meter(map: MeterMap | str = "eastron-sdm630", at: datetime = NOON, **more: Any) -> SimulatedMeter:
    if isinstance(map, str):
        map = library.load(map, local=None).map
    usual: dict[str, Any] = {"start_export_wh": 12_345_678, "started": STARTED, "sky": Sky(SINGAPORE, seed=7)}
    return SimulatedMeter(map, clock=lambda: at, **(usual | fitting(map) | more))


def fitting(map: MeterMap) -> dict[str, Any]:
    """No counter at a zero that its map does not believe."""
    doubted = any(register.zero_is_absent for register in map.registers)
    return {"start_import_wh": 1_000_000} if doubted else {}


def broken(map: MeterMap, **more: Any) -> list[str]:
    """What physics has against a healthy device of this map at noon."""
    noon = datetime(2026, 3, 14, 5, tzinfo=UTC)
    factors = ratios(map)
    device = meter(map, noon, settings=factors, sky=Sky(SINGAPORE, seed=1), **more)
    values = {}
    for register in map.registers:
        told = read(device, register, noon, **factors) if register.type != "text" else ""
        if isinstance(told, Decimal):
            values[register.quantity] = decode.kept(register, told)
    return [relation.text for relation in relations(values) if not relation.holds]


@pytest.mark.parametrize("name", [name for name in SHIPPED if library.load(name, None).map.sunspec is None])
def test_a_healthy_device_of_a_shipped_map_contradicts_no_physics_at_noon(name: str) -> None:
    assert broken(library.load(name, None).map) == []


def test_a_device_that_is_larger_than_its_register_contradicts_it() -> None:
    (text,) = broken(library.load("solax-x3-hybrid-gen3-5", None).map, rated_kw=50.0)
    assert "active_power is 32.8 kW, but the sum of its phases" in text


def small(*registers: Register, **more: Any) -> MeterMap:
    return MeterMap(name="small", products=(), source="", version="", status="unverified", registers=registers, **more)


def read(device: SimulatedMeter, register: Register, at: datetime, **factors: Decimal) -> object:
    """Through the product's decoder, in the unit the register has."""
    map = device.map
    places = decode.addresses(register)
    words = [device.words(map.function_of(register), place, 1, at) for place in places]
    if register.alone or map.max_words >= len(places) == max(places) - min(places) + 1:
        words = [device.words(map.function_of(register), places[0], len(places), at)]
    flat = [word for part in words if not isinstance(part, Refusal) for word in part]
    assert len(flat) == len(places), f"{register.quantity} was refused"
    return decode.value(register, map.order_of(register), flat, factors=factors, exponent=power(device, register, at))


def power(device: SimulatedMeter, register: Register, at: datetime) -> int | None:
    if register.scale_register is None:
        return None
    words = device.words(device.map.function_of(register), register.scale_register, 1, at)
    assert not isinstance(words, Refusal)
    return words[0] - 0x10000 if words[0] & 0x8000 else words[0]


# -- every shipped map ----------------------------------------------------------------------------------------


def ratios(map: MeterMap) -> dict[str, Decimal]:
    wanted = {name for register in map.registers for name in register.times}
    return {name: Decimal(value) for name, value in (("ct_ratio", "40"), ("vt_ratio", "1.5")) if name in wanted}


def awake(map: MeterMap, at: datetime) -> datetime:
    """An inverter may be silent or zero in the dark, and cannot show what it draws: it is read at noon."""
    return at if map.production == "energy_export" else at.replace(hour=5, minute=12)


@pytest.mark.parametrize("name", SHIPPED)
@settings(deadline=None, max_examples=5)
@given(at=MOMENTS)
def test_every_register_of_a_shipped_map_reads_as_the_value_behind_it(name: str, at: datetime) -> None:
    map = library.load(name, local=None).map
    at = awake(map, at)
    factors = ratios(map)
    device = meter(map, at, settings=factors, start_import_wh=1_000_000)  # SunSpec: a counter at 0 is none
    for register in device.map.registers:  # those of a SunSpec template have addresses only there
        told = read(device, register, at, **factors)
        true = device.value(register.quantity, at)
        if register.type == "text":
            assert told == str(true)[: 2 * (register.words or 1)]
            continue
        assert isinstance(told, Decimal), f"{register.quantity}: {told}"
        quantity = find(register.quantity)
        if quantity is not None and quantity.kind == "counter" and isinstance(true, int):
            step = max(1, *(abs(float(step)) for step in steps(register, told, factors)))
            assert decode.kept(register, told) == pytest.approx(true, abs=step), register.quantity
        else:
            fine = 0.5 * float(register.scale) * math.prod(float(factors[name]) for name in register.times)
            fine *= 10.0 ** (power(device, register, at) or 0)
            exact = pytest.approx(float(true), rel=1e-6, abs=0.0 if register.type in FLOATS else abs(fine) * 1.0001)
            assert decode.kept(register, told) == exact, register.quantity


def steps(register: Register, told: Decimal, factors: Mapping[str, Decimal]) -> list[Decimal]:
    """What one step of the register is worth in Wh: of its scale, or of a float32 at this height."""
    kept_per_unit = Decimal(decode.kept(dataclasses.replace(register, scale=Decimal(1)), Decimal(10**6))) / 10**6
    scale = register.scale * math.prod(factors[name] for name in register.times)
    if register.type not in FLOATS:
        return [scale * kept_per_unit]
    raw = float(told / scale)
    return [Decimal(math.ldexp(1.0, math.frexp(raw)[1] - 24) if raw else 0.0) * scale * kept_per_unit]


@pytest.mark.parametrize("name", [name for name in SHIPPED if library.load(name, local=None).map.production])
@settings(deadline=None, max_examples=10)
@given(at=MOMENTS, start=st.integers(0, 900_000_000))
def test_the_display_shows_what_the_decoder_keeps(name: str, at: datetime, start: int) -> None:
    map = library.load(name, local=None).map
    at = awake(map, at)
    factors = ratios(map)
    device = meter(map, at, start_export_wh=start, settings=factors)
    register = device.map.register(device.production)
    assert register is not None
    told = read(device, register, at, **factors)
    assert isinstance(told, Decimal)
    assert decode.kept(register, told) == device.counted_wh(at)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_simulated_meter_has_the_identity_its_map_asks_for(name: str) -> None:
    map = library.load(name, local=None).map
    device = meter(map, serial=23451234)
    for match in map.identity.match:
        mark = Register(quantity="mark", type=match.type, address=match.address, words=match.words)
        function = match.function or map.function
        words = device.words(function, match.address, decode.width(mark))
        assert not isinstance(words, Refusal)
        value = decode.value(mark, match.order or map.order, words)
        assert value in [known if isinstance(known, str) else Decimal(known) for known in match.values]
    if map.identity.serial:
        register = device.map.register(map.identity.serial)
        assert register is not None
        assert str(read(device, register, NOON)) == "23451234"


# -- types and orders --------------------------------------------------------------------------------------------

NUMBERS: list[Type] = [kind for kind in WIDTHS if kind not in FLOATS]


@pytest.mark.parametrize("order", ["ABCD", "CDAB", "BADC", "DCBA"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_whole_numbers_of_every_type_and_order_come_back(kind: Type, order: Order) -> None:
    register = Register(quantity="active_power", type=kind, address=0)
    low, high = (-(1 << 16 * WIDTHS[kind] - 1), (1 << 16 * WIDTHS[kind] - 1) - 1)
    if kind in ("u16", "u32", "u64", "acc32", "acc64", "enum16", "enum32", "bitfield16", "bitfield32"):
        low, high = 1, (1 << 16 * WIDTHS[kind]) - 2
    for number in (low + 1, 0x1234 if high > 0x1234 else 1, high):
        assert decode.value(register, order, arranged(encoded(register, number), order)) == number


@pytest.mark.parametrize("order", ["ABCD", "CDAB", "BADC", "DCBA"])
@pytest.mark.parametrize(("kind", "number"), [("float32", 123456.78), ("float32", -0.1), ("float64", 1 / 3)])
def test_floats_of_every_order_come_back(kind: Type, number: float, order: Order) -> None:
    register = Register(quantity="active_power", type=kind, address=0)
    assert float(str(decode.value(register, order, arranged(encoded(register, number), order)))) == number


def test_texts_and_bcd_come_back() -> None:
    text = Register(quantity="model", type="text", address=0, words=4)
    assert decode.value(text, "ABCD", arranged(encoded(text, "B23 112"), "ABCD")) == "B23 112"
    bcd = Register(quantity="serial_number", type="bcd", address=0, words=3)
    assert decode.value(bcd, "ABCD", arranged(encoded(bcd, 987654321), "ABCD")) == 987654321


def test_a_value_beyond_its_type_stops_at_the_border_and_a_counter_starts_again() -> None:
    register = Register(quantity="energy_export", type="u16", address=0)
    assert encoded(register, 70_000) == b"\xff\xff"
    assert encoded(register, -1) == b"\0\0"
    assert encoded(register, 0x1_0002, wraps=True) == b"\0\2"
    signed = Register(quantity="active_power", type="s16", address=0)
    assert encoded(signed, -40_000) == b"\x80\0"


def test_words_that_are_not_adjacent_are_found_where_the_map_says() -> None:
    split = Register(quantity="energy_export", type="u32", addresses=(0x60, 0x50), unit="Wh", order="CDAB")
    device = meter(small(split, read_gaps=True))
    assert read(device, split, NOON) == device.energy_wh(NOON)


def test_a_scale_register_and_its_value_fit_together() -> None:
    energy = Register(quantity="energy_export", type="acc32", address=0, unit="Wh", scale_register=2)
    scale = Register(quantity="energy_export_sf", type="sunssf", address=2)
    device = meter(small(energy, scale), settings={"energy_export_sf": 1})
    words = device.words("input", 0, 3)
    assert not isinstance(words, Refusal)
    assert words[2] == 1
    assert decode.value(energy, "ABCD", words[:2], exponent=1) == device.energy_wh(NOON) // 10 * 10


def test_a_step_coarser_than_the_type_is_kept_and_a_rollover_starts_again_at_zero() -> None:
    coarse = Register(quantity="energy_export", type="u32", address=0, unit="kWh", step=Decimal(1))
    device = meter(small(coarse))
    assert device.counted_wh(NOON) == device.energy_wh(NOON) // 1000 * 1000
    short = Register(
        quantity="energy_export", type="u32", address=0, unit="kWh", scale=Decimal("0.1"), rollover=Decimal("999.9")
    )
    device = meter(small(short))
    assert device.energy_wh(NOON) > 1_000_000
    assert device.counted_wh(NOON) == device.energy_wh(NOON) % 1_000_000 // 100 * 100


# -- the day -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(MOMENTS, min_size=2, max_size=12), st.integers(0, 400_000_000))
def test_counters_never_fall_and_do_not_depend_on_the_polling(moments: list[datetime], start: int) -> None:
    device = meter(start_export_wh=start)
    asked = [(at, device.energy_wh(at), device.counted_wh(at), device.energy_wh(at, "import")) for at in moments]
    in_time = sorted(asked)
    for column in (1, 2, 3):
        values = [row[column] for row in in_time]
        assert values == sorted(values)
    fresh = meter(start_export_wh=start)
    for at, true, shown, _ in reversed(asked):
        assert (fresh.energy_wh(at), fresh.counted_wh(at)) == (true, shown)


@settings(deadline=None, max_examples=25)
@given(MOMENTS, st.timedeltas(timedelta(0), timedelta(hours=30)))
def test_the_counter_moves_by_the_integral_of_the_power(begin: datetime, length: timedelta) -> None:
    device = meter()
    area, at, end = 0.0, begin, begin + length
    while at < end:
        border = min(end, at.replace(second=0, microsecond=0) + timedelta(minutes=1))
        hours = (border - at) / timedelta(hours=1)
        area += (device.power_w(at) + device.power_w(border)) / 2 * hours
        at = border
    assert abs(device.energy_wh(end) - device.energy_wh(begin) - area) <= 1


def test_the_counter_stands_at_its_start_value_until_the_meter_starts() -> None:
    device = meter()
    assert device.energy_wh(STARTED - timedelta(days=9)) == device.energy_wh(STARTED) == 12_345_678
    assert device.energy_wh(STARTED + timedelta(days=1)) > 12_400_000


@settings(deadline=None, max_examples=50)
@given(MOMENTS)
def test_power_is_voltage_times_current_times_power_factor_and_totals_are_sums(at: datetime) -> None:
    device = meter()
    now = {name: float(device.value(name, at)) for name in (
        *(f"{what}_l{phase}" for what in ("current", "active_power", "power_factor", "apparent_power",
                                          "reactive_power") for phase in (1, 2, 3)),
        *(f"voltage_l{phase}n" for phase in (1, 2, 3)),
        "active_power", "current_sum", "apparent_power", "frequency",
    )}  # fmt: skip
    for phase in (1, 2, 3):
        product = now[f"voltage_l{phase}n"] * now[f"current_l{phase}"] * now[f"power_factor_l{phase}"]
        assert now[f"active_power_l{phase}"] == pytest.approx(product)
        triangle = math.hypot(now[f"active_power_l{phase}"], now[f"reactive_power_l{phase}"])
        assert triangle == pytest.approx(now[f"apparent_power_l{phase}"])
        assert abs(now[f"voltage_l{phase}n"] - 230) <= 2.5
    assert now["active_power"] == pytest.approx(sum(now[f"active_power_l{phase}"] for phase in (1, 2, 3)))
    assert now["current_sum"] == pytest.approx(sum(now[f"current_l{phase}"] for phase in (1, 2, 3)))
    assert abs(now["frequency"] - 50) <= 0.02
    assert now["active_power"] == pytest.approx(
        float(device.value("active_power_import", at)) - float(device.value("active_power_export", at))
    )


def test_by_day_a_meter_counts_export_at_negative_power_and_by_night_a_little_import() -> None:
    device = meter()
    assert float(device.value("active_power", NOON)) < -5000
    assert device.power_w(MIDNIGHT) == 0
    assert 0 < float(device.value("active_power", MIDNIGHT)) < 200
    assert device.energy_wh(MIDNIGHT + timedelta(hours=1)) == device.energy_wh(MIDNIGHT)
    assert device.energy_wh(MIDNIGHT + timedelta(hours=1), "import") == device.energy_wh(MIDNIGHT, "import") + 50


def test_an_inverter_is_positive_while_it_produces() -> None:
    power = Register(quantity="active_power", type="s32", address=0, unit="W")
    energy = Register(quantity="energy_production", type="u32", address=2, unit="Wh")
    device = meter(small(power, energy, production="energy_production"))
    assert float(device.value("active_power", NOON)) > 5000
    assert device.counted_wh(NOON) == device.energy_wh(NOON)


def test_phases_add_up_to_the_total_within_the_rounding_of_each() -> None:
    device = meter()
    for quantity in ("energy_export", "energy_import", "energy_total"):
        phases = sum(int(device.value(f"{quantity}_l{phase}", NOON)) for phase in (1, 2, 3))
        assert 0 <= int(device.value(quantity, NOON)) - phases <= 4


@pytest.mark.parametrize(
    ("quantity", "since"),
    [
        ("energy_export_today", datetime(2026, 3, 3, tzinfo=SINGAPORE)),
        ("energy_export_hour", datetime(2026, 3, 3, 13, tzinfo=SINGAPORE)),
        ("energy_export_month", STARTED),
        ("energy_export_resettable", STARTED),
    ],
)
def test_counters_that_start_again_count_from_their_beginning(quantity: str, since: datetime) -> None:
    device = meter()
    assert device.value(quantity, NOON) == device.energy_wh(NOON) - device.energy_wh(since.astimezone(UTC))


# -- what it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "request_", "told"),
    [
        ({}, ("input", 0x0000, 80), 80),
        ({}, ("input", 0x0000, 81), Refusal(ILLEGAL_VALUE)),
        ({}, ("input", 0x0000, 0), Refusal(ILLEGAL_VALUE)),
        ({}, ("input", 0x0000, 126), Refusal(ILLEGAL_VALUE)),
        ({"max_words": 10}, ("input", 0x0000, 10), 10),
        ({"max_words": 10}, ("input", 0x0000, 11), Refusal(ILLEGAL_VALUE)),
        ({"max_words": 10, "too_long": 2}, ("input", 0x0000, 11), Refusal(ILLEGAL_ADDRESS)),
        ({"max_words": 10, "too_long": None}, ("input", 0x0000, 11), Refusal(None)),
        ({}, ("input", 0x002C, 2), 2),
        ({"gaps": "refuse"}, ("input", 0x002C, 2), Refusal(ILLEGAL_ADDRESS)),
        ({}, ("input", 0x0100, 2), 2),
        ({}, ("input", 0x006A, 4), Refusal(ILLEGAL_ADDRESS)),
        ({}, ("input", 0x017E, 2), Refusal(ILLEGAL_ADDRESS)),
        ({}, ("input", 0xFFFE, 4), Refusal(ILLEGAL_ADDRESS)),
        ({}, ("holding", 0x0000, 2), Refusal(ILLEGAL_ADDRESS)),
        ({}, ("holding", 0xFC00, 3), 3),
    ],
)
def test_an_sdm630_answers_what_it_has_and_refuses_the_rest(
    more: dict[str, Any], request_: tuple[Any, int, int], told: int | Refusal
) -> None:
    answer = meter(**more).words(*request_)
    assert (answer if isinstance(answer, Refusal) else len(answer)) == told


def test_a_gap_reads_zero_between_registers_that_do_not() -> None:
    words = meter().words("input", 0x002A, 6)
    assert not isinstance(words, Refusal)
    assert words[2:4] == (0, 0)
    assert 0 not in (words[0], words[4])


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"\x06\x00\x00\x00\x01", bytes((0x86, ILLEGAL_FUNCTION))),
        (b"\x10\x00\x00\x00\x01\x02\x00\x00", bytes((0x90, ILLEGAL_FUNCTION))),
        (b"\x04\x00\x00\x00", bytes((0x84, ILLEGAL_VALUE))),
        (b"\x04\xf0\x00\x00\x02", bytes((0x84, ILLEGAL_ADDRESS))),
        (b"", None),
    ],
)
def test_other_requests_get_their_exception(request_: bytes, answer: bytes | None) -> None:
    assert meter().answer(request_) == answer


def test_an_answer_carries_the_words_high_byte_first() -> None:
    device = meter()
    words = device.words("input", 0x0046, 2)
    assert not isinstance(words, Refusal)
    assert device.answer(b"\x04\x00\x46\x00\x02") == b"\x04\x04" + words[0].to_bytes(2, "big") + words[1].to_bytes(2)


def test_a_register_to_be_read_alone_refuses_company() -> None:
    lonely = Register(quantity="meter_code", type="u16", address=0, alone=True)
    device = meter(small(lonely, Register(quantity="frequency", type="u16", address=1, unit="Hz")))
    assert device.words("input", 0, 1) == (0,)
    assert device.words("input", 0, 2) == Refusal(ILLEGAL_ADDRESS)


@pytest.mark.parametrize(("night", "dark"), [("silent", None), ("zeros", 0), ("answers", 1)])
def test_at_night_a_device_does_what_its_map_says(night: Any, dark: int | None) -> None:
    energy = Register(quantity="energy_export", type="u32", address=0, unit="Wh")
    serial = Register(quantity="serial_number", type="u32", address=2)
    device = meter(small(energy, serial, night=night), serial=77)
    asleep = device.words("input", 0, 4, MIDNIGHT)
    if dark is None:
        assert asleep == Refusal(None)
    else:
        assert not isinstance(asleep, Refusal)
        assert (asleep[:2] != (0, 0)) == bool(dark)
        assert asleep[2:] == (0, 77)
    awake = device.words("input", 0, 4, NOON)
    assert not isinstance(awake, Refusal) and awake[:2] != (0, 0)


def test_a_silent_night_leaves_the_request_without_an_answer() -> None:
    energy = Register(quantity="energy_export", type="u32", address=0, unit="Wh")
    assert meter(small(energy, night="silent"), MIDNIGHT).answer(b"\x04\x00\x00\x00\x02") is None


def test_a_sunspec_map_is_declined_with_a_reason() -> None:
    with pytest.raises(UsageError, match="SunSpec") as told:
        meter(small(sunspec=SunSpec()))
    assert told.value.hint


def test_a_serial_number_that_does_not_fit_the_map_is_declined() -> None:
    map = small(Register(quantity="serial_number", type="u32", address=0), identity=Identity(serial="serial_number"))
    with pytest.raises(UsageError, match="serial_number is a number"):
        meter(map, serial="AB-12")


def test_an_identity_that_is_no_register_of_the_map_is_there_all_the_same() -> None:
    map = small(
        Register(quantity="frequency", type="u16", address=0, unit="Hz"),
        identity=Identity(match=(Match(address=0x100, type="text", values=("PAC2200",), words=4, function="holding"),)),
    )
    words = meter(map).words("holding", 0x100, 4)
    assert not isinstance(words, Refusal)
    assert b"".join(word.to_bytes(2, "big") for word in words) == b"PAC2200\0"


def test_a_thousand_random_requests_never_fail_and_agree_with_single_reads() -> None:
    dice = random.Random(20260314)
    device = meter()
    places: list[tuple[Function, int]] = [("input", address) for address in range(0x190)]
    places += [("holding", address) for address in range(0xFC00, 0xFC08)]
    single = {place: device.words(*place, 1) for place in places}
    for _ in range(1000):
        function, address = dice.choice(places)
        count = dice.randint(1, 20)
        words = device.words(function, address, count)
        each = [single.get((function, address + i), Refusal(ILLEGAL_ADDRESS)) for i in range(count)]
        if isinstance(words, Refusal):
            assert any(isinstance(one, Refusal) for one in each), (function, address, count)
        else:
            assert [word for one in each if not isinstance(one, Refusal) for word in one] == list(words)


# -- current transformers that sit elsewhere --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cts", "signs", "rises"),
    [
        ((1, 2, 3), (-1, -1, -1), "energy_export"),
        ((1, -2, 3), (-1, 1, -1), "energy_export"),
        ((-1, -2, 3), (1, 1, -1), "energy_import"),
        ((-1, -2, -3), (1, 1, 1), "energy_import"),
        ((2, 1, 3), (1, 1, -1), "energy_import"),
        ((2, 3, 1), (1, 1, 1), "energy_import"),
    ],
)
def test_a_transformer_elsewhere_shows_in_its_phase_and_in_the_sum(
    cts: tuple[int, ...], signs: tuple[int, ...], rises: str
) -> None:
    device, sooner = meter(cts=cts), NOON - timedelta(minutes=30)
    shown = [float(device.value(f"active_power_l{phase}")) for phase in (1, 2, 3)]
    assert [math.copysign(1, watts) for watts in shown] == list(signs)
    assert float(device.value("active_power")) == pytest.approx(sum(shown))
    for phase, watts in enumerate(shown, 1):
        volts, amperes = float(device.value(f"voltage_l{phase}n")), float(device.value(f"current_l{phase}"))
        assert abs(watts) == pytest.approx(
            volts * amperes * abs(float(device.value(f"power_factor_l{phase}"))), rel=0.02
        )
    moved = {
        name: int(device.value(name, NOON)) - int(device.value(name, sooner))
        for name in ("energy_export", "energy_import")
    }
    assert moved[rises] > 0 and sum(moved.values()) == moved[rises]
    # The totals count the sum of the phases at each moment; each phase counts its own way.
    net = moved["energy_import"] - moved["energy_export"]
    phases = sum(
        (1 if way == "import" else -1)
        * (int(device.value(f"energy_{way}_l{phase}", NOON)) - int(device.value(f"energy_{way}_l{phase}", sooner)))
        for way in ("import", "export")
        for phase in (1, 2, 3)
    )
    assert abs(net - phases) <= 6


def test_where_every_transformer_sits_right_nothing_differs() -> None:
    one, other = meter(), meter(cts=(1, 2, 3))
    names = [register.quantity for register in one.map.registers]
    assert [one.value(name) for name in names] == [other.value(name) for name in names]


@pytest.mark.parametrize("cts", [(1, 2), (1, 1, 3), (0, 2, 3), (1, 2, 4)])
def test_a_transformer_sits_on_one_conductor(cts: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="current transformers"):
        meter(cts=cts)

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from heliograph.core.decode import TYPES, Absent, addresses, kept, ordered, reading, shortest_float32, value, width
from heliograph.core.registers import Order, Register, Type

ORDERS: tuple[Order, ...] = get_args(Order)


def words(raw: bytes, order: Order = "ABCD") -> tuple[int, ...]:
    """The words a device of that order sends for a number that is `raw` in big-endian."""
    pairs = [raw[i : i + 2] for i in range(0, len(raw), 2)]
    if order in ("BADC", "DCBA"):
        pairs = [pair[::-1] for pair in pairs]
    if order in ("CDAB", "DCBA"):
        pairs.reverse()
    return tuple(int.from_bytes(pair, "big") for pair in pairs)


def register(of: Type, **more: object) -> Register:
    return Register(quantity="energy_export", type=of, address=0, **more)  # type: ignore[arg-type]  # a table's cells


def f32(number: float) -> bytes:
    return struct.pack(">f", number)


def f64(number: float) -> bytes:
    return struct.pack(">d", number)


FLOAT32_MAX = 340282350000000000000000000000000000000
NUMBERS: list[tuple[Type, bytes, str | None]] = [
    # type, bytes of the number, what it shows (None: there is no value)
    ("u16", b"\x00\x00", "0"),
    ("u16", b"\x12\x34", "4660"),
    ("u16", b"\xff\xff", "65535"),
    ("s16", b"\x80\x00", "-32768"),
    ("s16", b"\xff\xfe", "-2"),
    ("s16", b"\x7f\xff", "32767"),
    ("u32", b"\x00\x00\x00\x00", "0"),
    ("u32", b"\x12\x34\x56\x78", "305419896"),
    ("u32", b"\xff\xff\xff\xff", "4294967295"),
    ("s32", b"\x80\x00\x00\x00", "-2147483648"),
    ("s32", b"\xff\xff\xff\xfe", "-2"),
    ("s32", b"\x7f\xff\xff\xff", "2147483647"),
    ("u64", b"\x00" * 8, "0"),
    ("u64", b"\x01\x02\x03\x04\x05\x06\x07\x08", "72623859790382856"),
    ("u64", b"\xff" * 8, "18446744073709551615"),
    ("s64", b"\x80" + b"\x00" * 7, "-9223372036854775808"),
    ("s64", b"\xff" * 7 + b"\xfe", "-2"),
    ("s64", b"\x7f" + b"\xff" * 7, "9223372036854775807"),
    ("float32", f32(-FLOAT32_MAX), f"-{FLOAT32_MAX}"),
    ("float32", f32(230.1), "230.1"),
    ("float32", f32(FLOAT32_MAX), str(FLOAT32_MAX)),
    ("float32", b"\x7f\xc0\x00\x00", None),
    ("float32", b"\xff\xff\xff\xff", None),
    ("float32", f32(math.inf), None),
    ("float32", f32(-math.inf), None),
    ("float64", f64(-1.7976931348623157e308), "-1.7976931348623157E+308"),
    ("float64", f64(123456.789), "123456.789"),
    ("float64", f64(1.7976931348623157e308), "1.7976931348623157E+308"),
    ("float64", f64(math.nan), None),
    ("float64", f64(math.inf), None),
    ("acc32", b"\x00" * 4, None),
    ("acc32", b"\x00\x00\x00\x01", "1"),
    ("acc32", b"\xff" * 4, "4294967295"),
    ("acc64", b"\x00" * 8, None),
    ("acc64", b"\x00" * 7 + b"\x01", "1"),
    ("acc64", b"\x7f" + b"\xff" * 7, "9223372036854775807"),
    ("enum16", b"\x00\x00", "0"),
    ("enum16", b"\xff\xfe", "65534"),
    ("enum16", b"\xff\xff", None),
    ("enum32", b"\x00\x00\x00\x00", "0"),
    ("enum32", b"\xff\xff\xff\xfe", "4294967294"),
    ("enum32", b"\xff" * 4, None),
    ("bitfield16", b"\x00\x00", "0"),
    ("bitfield16", b"\x80\x01", "32769"),
    ("bitfield16", b"\xff\xff", None),
    ("bitfield32", b"\x00\x00\x00\x00", "0"),
    ("bitfield32", b"\x80\x00\x00\x01", "2147483649"),
    ("bitfield32", b"\xff" * 4, None),
    ("sunssf", b"\x7f\xff", "32767"),
    ("sunssf", b"\xff\xfe", "-2"),
    ("sunssf", b"\x80\x01", "-32767"),
    ("sunssf", b"\x80\x00", None),
    ("bcd", b"\x00\x00", "0"),
    ("bcd", b"\x99\x99", "9999"),
    ("bcd", b"\x12\x34\x56\x78", "12345678"),
    ("bcd", b"\x12\x3a", None),
    ("bcd", b"\xff\xff\xff\xff", None),
]


def test_every_type_but_text_is_in_the_table() -> None:
    assert {of for of, _, _ in NUMBERS} | {"text"} == set(get_args(Type)) == set(TYPES)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("of", "raw", "shown"), NUMBERS)
def test_a_number_is_read_in_each_order(of: Type, raw: bytes, shown: str | None, order: Order) -> None:
    r = register(of, words=len(raw) // 2 if of == "bcd" else None)
    assert width(r) == len(raw) // 2
    got = value(r, order, words(raw, order))
    if shown is None:
        assert isinstance(got, Absent)
        assert got.reason
    else:
        assert got == Decimal(shown)


def test_the_orders_are_what_their_letters_say() -> None:
    sent = {"ABCD": (0x0102, 0x0304), "CDAB": (0x0304, 0x0102), "BADC": (0x0201, 0x0403), "DCBA": (0x0403, 0x0201)}
    assert set(sent) == set(ORDERS)
    for order in ORDERS:
        assert ordered(sent[order], order) == b"\x01\x02\x03\x04"


def test_a_wrong_order_gives_another_number() -> None:
    raw = f32(50.02)
    assert value(register("float32"), "CDAB", words(raw)) != value(register("float32"), "ABCD", words(raw))


@pytest.mark.parametrize(
    ("content", "order", "shown"),
    [
        (b"SDM630\0\0", None, "SDM630"),
        (b"  SDM 630", None, "SDM 630"),
        (b"SDM630  ", None, "SDM630"),
        (b"DS6M03", "BADC", "SDM630"),
        (b"\0\0\0\0", None, None),
        (b"    ", None, None),
        (b"\xff\xff\xff\xff", None, None),
        (b"\0 \0 ", None, None),
        ("Wärme".encode("latin-1"), None, "W\ufffdrme"),
    ],
)
def test_a_text_ends_where_its_padding_begins(content: bytes, order: Order | None, shown: str | None) -> None:
    content = content.ljust(-(-len(content) // 2) * 2, b"\0")
    r = register("text", words=len(content) // 2, order=order)
    for of_map in ORDERS:  # the map's order is about numbers
        got = value(r, of_map, words(content))
        assert (None if isinstance(got, Absent) else got) == shown


# --- what the display shows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown_kwh", "wh"),
    [
        ("0", 0),
        ("0.01", 10),
        ("0.1", 100),
        ("16777.22", 16_777_220),
        ("41152.26", 41_152_260),
        ("41152.27", 41_152_270),
        ("99999.99", 99_999_990),
        ("123456.78", 123_456_780),
        ("524288.06", 524_288_060),
        ("999999.9", 999_999_900),
        ("9999999", 9_999_999_000),
    ],
)
def test_a_float32_counter_keeps_what_the_display_shows(shown_kwh: str, wh: int) -> None:
    r = register("float32", unit="kWh")
    got = value(r, "ABCD", words(f32(float(shown_kwh))))
    assert got == Decimal(shown_kwh)
    assert reading(r, "ABCD", words(f32(float(shown_kwh)))) == wh


def test_a_plain_conversion_would_not_keep_it() -> None:
    """The negative control: what the float itself floors to is another figure, above or below."""
    floored = [math.floor(struct.unpack(">f", f32(shown))[0] * 1000) for shown in (41152.26, 41152.27)]
    assert floored == [41_152_261, 41_152_269]


@st.composite
def counters(draw: st.DrawFn) -> float:
    """float32 numbers from 10^4 to 10^7 kWh, wherever a counter of years may stand."""
    low, high = (struct.unpack(">I", f32(edge))[0] for edge in (1e4, 1e7))
    bits = draw(st.integers(low, high))
    number: float = struct.unpack(">f", struct.pack(">I", bits))[0]
    return number


@given(counters())
@example(16777216.0)
@example(131072.0)
@example(8388607.5)
def test_the_shortest_decimal_is_the_same_float32_and_none_is_shorter(number: float) -> None:
    shown = shortest_float32(number)
    assert f32(float(shown)) == f32(number)
    digits = len(shown.normalize().as_tuple().digits)
    for fewer in range(1, digits):
        assert f32(float(f"{number:.{fewer - 1}e}")) != f32(number), (shown, fewer)


@given(st.integers(min_value=10**6, max_value=10**9 - 1))
def test_two_decimals_survive_wherever_a_float32_can_hold_them(hundredths: int) -> None:
    shown = Decimal(hundredths).scaleb(-2)
    # One step of the float must be clearly below 0.01 kWh: up to 65,536 kWh it is 0.0039 at most.
    assume(shown < 65_536)
    assert shortest_float32(struct.unpack(">f", f32(float(shown)))[0]) == shown


@given(st.integers(1, 999_999), st.integers(-25, 25))
@example(999_999, 4)
@example(953_674, 4)
def test_six_digits_survive_at_any_magnitude(digits: int, exponent: int) -> None:
    shown = Decimal(digits).scaleb(exponent)
    assert shortest_float32(struct.unpack(">f", f32(float(shown)))[0]) == shown


@given(counters())
def test_energy_is_floored_and_never_above_what_is_shown(number: float) -> None:
    r = register("float32", unit="kWh")
    wh = reading(r, "ABCD", words(f32(number)))
    assert isinstance(wh, int)
    assert 0 <= shortest_float32(number) * 1000 - wh < 1


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_every_float32_survives(number: float) -> None:
    assert f32(float(shortest_float32(number))) == f32(number)


@pytest.mark.parametrize("bits", [0x7F7FFFFF, 0x7F7FFFFE, 0xFF7FFFFF, 0x00800000, 0x00000001, 0x80000000])
def test_the_ends_of_float32_survive(bits: int) -> None:
    number: float = struct.unpack(">f", struct.pack(">I", bits))[0]
    assert f32(float(shortest_float32(number))) == struct.pack(">I", bits)


# --- scale, sentinels, range, units ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "raw", "wh"),
    [("Wh", 1234, 1234), ("kWh", 1234, 1_234_000), ("MWh", 1234, 1_234_000_000)],
)
def test_energy_is_kept_in_whole_wh(unit: str, raw: int, wh: int) -> None:
    assert reading(register("u16", unit=unit), "ABCD", (raw,)) == wh


@pytest.mark.parametrize(("raw", "wh"), [(0, 0), (9, 0), (10, 1), (19, 1), (65535, 6553)])
def test_parts_of_a_wh_are_floored(raw: int, wh: int) -> None:
    got = reading(register("u16", unit="Wh", scale=Decimal("0.1")), "ABCD", (raw,))
    assert got == wh
    assert isinstance(got, int)


def test_a_negative_energy_is_floored_too() -> None:
    assert reading(register("s16", unit="Wh", scale=Decimal("0.1")), "ABCD", (0xFFFF,)) == -1


def test_scale_unit_and_sign_are_applied() -> None:
    r = Register(quantity="active_power", type="s16", address=0, unit="kW", scale=Decimal("-0.01"))
    assert value(r, "ABCD", (0xFFFF,)) == Decimal("0.01")
    assert reading(r, "ABCD", (0xFFFF,)) == 10.0
    assert kept(r, Decimal("2.5")) == 2500.0


@pytest.mark.parametrize(
    ("exponent", "shown"), [(-2, "41.23"), (0, "4123"), (3, "4123000"), (-10, "4.123E-7"), (10, "4.123E+13")]
)
def test_a_scale_register_multiplies_by_a_power_of_ten(exponent: int, shown: str) -> None:
    r = register("u16", unit="Wh", scale_register=9)
    assert value(r, "ABCD", (4123,), exponent=exponent) == Decimal(shown)


@pytest.mark.parametrize("exponent", [None, -11, 11, -32768])
def test_without_a_sane_exponent_there_is_no_value(exponent: int | None) -> None:
    got = value(register("u16", unit="Wh", scale_register=9), "ABCD", (4123,), exponent=exponent)
    assert isinstance(got, Absent)


def test_ratios_multiply_and_a_missing_one_is_absence() -> None:
    r = register("u16", unit="kWh", times=("ct_ratio", "vt_ratio"))
    ratios = {"ct_ratio": Decimal(40), "vt_ratio": Decimal("1.5")}
    assert value(r, "ABCD", (2,), factors=ratios) == 120
    for broken in ({}, {"ct_ratio": Decimal(40)}, ratios | {"vt_ratio": Decimal(0)}):
        got = value(r, "ABCD", (2,), factors=broken)
        assert isinstance(got, Absent)
        assert "not known" in got.reason


@pytest.mark.parametrize(
    ("of", "absent", "sent"),
    [
        ("u64", 0xFFFF_FFFF_FFFF_FFFF, (0xFFFF,) * 4),
        ("s32", 0x7FFF_FFFF, (0x7FFF, 0xFFFF)),
        ("s32", 0x8000_0000, (0x8000, 0x0000)),
        ("s16", 0x8000, (0x8000,)),
        ("u32", 0x00FF_FFFD, (0x00FF, 0xFFFD)),
        ("float32", 0x7F7F_FFFF, (0x7F7F, 0xFFFF)),
    ],
)
def test_a_sentinel_is_compared_with_the_raw_words(of: Type, absent: int, sent: tuple[int, ...]) -> None:
    """A signed number tested against an unsigned sentinel slips through: -2147483648 is not 2147483648."""
    assert isinstance(value(register(of, absent=(absent,)), "ABCD", sent), Absent)
    assert not isinstance(value(register(of), "ABCD", sent), Absent)
    assert isinstance(value(register(of, absent=(absent,)), "CDAB", tuple(reversed(sent))), Absent)


def test_zero_is_a_value_unless_the_map_says_otherwise() -> None:
    assert value(register("u32"), "ABCD", (0, 0)) == 0
    assert isinstance(value(register("u32", zero_is_absent=True), "ABCD", (0, 0)), Absent)
    assert value(register("u32", zero_is_absent=True), "ABCD", (0, 1)) == 1


def test_a_value_outside_its_range_is_absence() -> None:
    r = register("u16", unit="kWh", range=(Decimal(1), Decimal(100)))
    assert [isinstance(value(r, "ABCD", (raw,)), Absent) for raw in (0, 1, 100, 101)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("hertz", "plausible"), [(44.9, False), (45.0, True), (50.02, True), (65.0, True), (500.0, False)]
)
def test_an_implausible_quantity_is_absence_not_a_value(hertz: float, plausible: bool) -> None:
    """Some meters report 500 Hz; a meter with swapped words shows nonsense."""
    r = Register(quantity="frequency", type="float32", address=0, unit="Hz")
    got = reading(r, "ABCD", words(f32(hertz)))
    assert got == pytest.approx(hertz) if plausible else isinstance(got, Absent)


def test_a_text_is_a_reading_too() -> None:
    r = Register(quantity="meter_model", type="text", address=0, words=2)
    assert reading(r, "ABCD", (0x4232, 0x3300)) == "B23"


@pytest.mark.parametrize(
    ("r", "expected"),
    [
        (register("u16"), (0,)),
        (register("float32"), (0, 1)),
        (register("u64"), (0, 1, 2, 3)),
        (register("text", words=3), (0, 1, 2)),
        (Register(quantity="energy_export", type="u32", addresses=(78, 80)), (78, 80)),
        (Register(quantity="energy_export", type="u32"), ()),
    ],
)
def test_a_register_knows_its_addresses(r: Register, expected: tuple[int, ...]) -> None:
    assert addresses(r) == expected

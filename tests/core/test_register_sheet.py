from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest

from heliograph.core.register_sheet import Counting, Sheet, sheet
from heliograph.core.registers import Register


def read(text: str, counting: Counting = "auto") -> Sheet:
    return sheet([(line, row) for line, row in enumerate(csv.reader(io.StringIO(text)), 1) if row], counting=counting)


def one(text: str, header: str = "address,quantity,type,unit,scale", counting: Counting = "auto") -> Register:
    found = read(f"{header}\n{text}\n", counting)
    assert found.faults == ()
    (register,) = found.registers
    return register


@pytest.mark.parametrize(
    "header",
    [
        "address,quantity,type,unit,scale,function",
        "Address,Name,Data Type,Units,Factor,FC",
        "Register address,measurement,data_type,unit,Multiplier,function code",
        "addr,Parameter,Format,Unit,resolution,Register type",
        "address_dec,signal name,type,UNIT,scale factor,Table",
    ],
)
def test_columns_are_known_by_their_usual_names(header: str) -> None:
    register = one("72,energy_export,u32,kWh,0.01,4", header)
    assert (register.address, register.quantity, register.type, register.unit) == (72, "energy_export", "u32", "kWh")
    assert (register.scale, register.function, register.monotonic) == (Decimal("0.01"), "input", True)


@pytest.mark.parametrize(
    ("written", "counting", "address", "function"),
    [
        ("0x0048", "auto", 0x48, "input"),
        ("48h", "auto", 0x48, "input"),
        ("72", "auto", 72, "input"),
        ("72-73", "auto", 72, "input"),
        ("30073", "manual", 72, "input"),
        ("40073", "manual", 72, "holding"),
        ("30073", "wire", 30073, "input"),
        ("40073", "wire", 40073, "input"),
        ("300073", "auto", 72, "input"),
        ("400073", "auto", 72, "holding"),
        ("30001", "manual", 0, "input"),
        ("50000", "manual", 50000, "input"),
        ("40000", "auto", 40000, "input"),
    ],
)
def test_addresses_as_people_write_them(written: str, counting: Counting, address: int, function: str) -> None:
    register = one(f"{written},energy_export,u32,kWh,1", counting=counting)
    assert (register.address, register.function) == (address, function)


def test_an_address_that_may_mean_two_things_is_asked_about_once() -> None:
    found = read("address,quantity,type,unit\n30073,energy_export,u32,kWh\n30001,voltage_l1n,float32,V\n")
    (fault,) = found.faults
    assert fault.line == 2
    assert fault.message == "30073 may be that address on the wire, or input register 72 as manuals count"
    assert "--addresses wire or --addresses manual" in fault.hint


def test_the_manual_s_number_is_kept_for_a_comment() -> None:
    found = read("address,quantity,type,unit\n40073,energy_export,u32,kWh\n", "manual")
    assert found.written == {"energy_export": "40073"}


@pytest.mark.parametrize(
    ("written", "type", "words"),
    [
        ("UINT16", "u16", None),
        ("int32", "s32", None),
        ("Signed 16", "s16", None),
        ("FLOAT", "float32", None),
        ("float64", "float64", None),
        ("uint64", "u64", None),
        ("str10", "text", 10),
        ("bcd4", "bcd", 2),
        ("acc32", "acc32", None),
    ],
)
def test_types_as_people_write_them(written: str, type: str, words: int | None) -> None:
    quantity, unit = ("serial_number", "") if type in ("text", "bcd") else ("active_power", "W")
    register = one(f"1,{quantity},{written},{unit},1")
    assert (register.type, register.words) == (type, words)


@pytest.mark.parametrize(
    ("unit", "scale", "kept"),
    [
        ("kWh", "0.01", ("kWh", "0.01")),
        ("KWH", "x0.01", ("kWh", "0.01")),
        ("kWh", "1/100", ("kWh", "0.01")),
        ("kWh", "10^-2", ("kWh", "0.01")),
        ("kWh", '"0,01"', ("kWh", "0.01")),
        ("0.1 kWh", "", ("kWh", "0.1")),
        ("0.1kWh", "10", ("kWh", "1")),
        ("Wh", "", ("Wh", "1")),
    ],
)
def test_units_and_scales_as_people_write_them(unit: str, scale: str, kept: tuple[str, str]) -> None:
    register = one(f"1,energy_export,u32,{unit},{scale}")
    assert (register.unit, str(register.scale)) == kept


def test_a_gain_divides() -> None:
    register = one("1,energy_export,u32,kWh,100", "address,quantity,type,unit,gain")
    assert register.scale == Decimal("0.01")


def test_a_scale_register_is_named_by_its_address() -> None:
    assert one("1,active_power,s16,W,SF@40084").scale_register == 40084


def test_words_that_are_not_adjacent() -> None:
    register = one("78;80,active_power,u32,W,1,little", "address,quantity,type,unit,scale,word_order")
    assert (register.address, register.addresses, register.order) == (None, (78, 80), "CDAB")


@pytest.mark.parametrize(
    ("written", "quantity"),
    [
        ("Phase 1 voltage", "voltage_l1n"),
        ("Voltage L3", "voltage_l3n"),
        ("Current phase B", "current_l2"),
        ("Active power L2", "active_power_l2"),
        ("Total active power", "active_power"),
        ("Power factor", "power_factor"),
        ("Grid frequency", "frequency"),
        ("Total imported energy", "energy_import"),
        ("Energy export kWh", "energy_export"),
        ("Daily energy yield", "energy_production_today"),
        ("Apparent power L1", "apparent_power_l1"),
    ],
)
def test_usual_names_are_taken_for_our_words_and_told(written: str, quantity: str) -> None:
    unit = {"energy": "kWh", "power_f": "1", "voltage": "V", "current": "A", "frequen": "Hz", "apparen": "VA"}
    one_unit = next((u for start, u in unit.items() if quantity.startswith(start)), "W")
    found = read(f"address,name,type,unit\n5,{written},u32,{one_unit}\n")
    assert [register.quantity for register in found.registers] == [quantity]
    assert f"line 2: {written} is taken as {quantity}" in found.remarks


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("5,Foo bar,u16,,", 'there is no quantity "Foo bar"'),
        ("5,Maximum demand voltage L1,u16,V,", 'there is no quantity "Maximum demand voltage L1"'),
        ("5,energy_exprt,u32,kWh,", 'there is no quantity "energy_exprt"'),
        ("5,active_power,u17,W,", 'there is no type "u17"'),
        ("5,active_power,,W,", "which type is it?"),
        ("5,active_power,u16,Watts/m,", 'there is no unit "Watts/m"'),
        ("5,energy_export,u32,,", "energy_export in which unit?"),
        ("5,active_power,u16,W,many", '"many" is no number'),
        ("5,active_power,u16,W,0", "a scale of 0 leaves nothing"),
        ("x5,active_power,u16,W,", '"x5" is no address'),
        ("0x1FFFF,active_power,u16,W,", "address 0x1FFFF does not lie within"),
        (",active_power,u16,W,", "this row has no address"),
        ("5,serial_number,text,,", "text of how many registers?"),
    ],
)
def test_what_is_not_clear_is_named_with_its_line(row: str, message: str) -> None:
    found = read(f"address,quantity,type,unit,scale\n\n{row}\n6,frequency,u16,Hz,0.01\n")
    (fault,) = found.faults
    assert fault.line == 3 and fault.message.startswith(message)
    assert [register.quantity for register in found.registers] == ["frequency"]


def test_a_table_without_the_columns_is_told_what_they_may_be_called() -> None:
    (fault,) = read("a,b\n1,2\n").faults
    assert fault.message == "there is no column for: address, quantity, type"
    assert "address may be called address, addr" in fault.hint


def test_rows_without_a_quantity_are_left_out_and_columns_not_used_are_told() -> None:
    found = read("address,quantity,type,unit,weight\n5,,u16,,3\n6,frequency,u16,Hz,4\n")
    assert len(found.registers) == 1 and found.faults == ()
    assert "columns not used: weight" in found.remarks


def test_what_most_registers_share_is_said_once() -> None:
    found = read(
        "address,quantity,type,unit,function,order\n"
        "1,voltage_l1n,float32,V,3,CDAB\n3,current_l1,float32,A,3,CDAB\n5,frequency,u16,Hz,3,CDAB\n"
        "7,energy_export,u32,kWh,4,ABCD\n"
    )
    assert (found.function, found.order) == ("holding", "CDAB")
    assert [(register.function, register.order) for register in found.tidy] == [
        (None, None),
        (None, None),
        (None, None),
        ("input", "ABCD"),
    ]


def test_sentinels_are_taken_where_they_are_numbers() -> None:
    header = "address,quantity,type,unit,sentinel"
    assert one("1,active_power,s32,W,0x80000000", header).absent == (0x80000000,)
    assert one("1,energy_export,u32,kWh,0=not-ready", header).zero_is_absent
    found = read(f"{header}\n1,active_power,s32,W,zero-when:3p3w\n")
    assert "line 2: not taken over: no value when zero-when:3p3w" in found.remarks


def test_counters_that_begin_anew_are_not_monotonic() -> None:
    assert one("1,energy_production_today,u32,kWh,1").monotonic is False
    assert one("1,energy_total,u32,kWh,1").monotonic is False
    assert one("1,active_power,u32,W,1").monotonic is None

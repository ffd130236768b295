"""SunSpec against the SunSpec Alliance's own library: our templates, our simulated device, and their images of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from heliograph.core.decode import width
from heliograph.core.quantity import UNITS, find
from heliograph.core.registers import MeterMap, Register
from heliograph.rehearsal.sunspec import Layout
from tests.sunspec_peer import INPUT_NAMES, NAMES, TYPES, Point, client, points
from tests.work.test_discover import TEMPLATES, device, over_tcp, template
from tests.work.test_poll import NOON

MODELS = [(one.name, model) for one in TEMPLATES for model in (1, *(one.sunspec.models if one.sunspec else ()))]


def ours(map: MeterMap, model: int) -> list[Register]:
    return [register for register in map.registers if model in register.models]


def quantity(point: Point) -> str | None:
    if point.input:
        known = INPUT_NAMES.get(point.name)
        return f"module1_{known}" if known else None
    return NAMES.get(point.name)


def faults(map: MeterMap, model: int) -> list[str]:
    """Where a template and the Alliance's definition of a model do not say the same."""
    known = {point.offset: point for point in points(model)}
    exponents = {point.name: point.offset for point in known.values() if point.type == "sunssf"}
    found = []
    for register in ours(map, model):
        point = known.get(register.address or 0)
        if point is None:
            found.append(f"{register.quantity} begins inside a point, or nowhere")
            continue
        scale = exponents[point.exponent] if point.exponent else None
        theirs = (TYPES.get(point.type), point.size, scale)
        mine = (register.type, width(register), register.scale_register)
        named = point.type == register.type == "sunssf" or quantity(point) == register.quantity
        if mine != theirs or not named:
            found.append(f"{point.name} at {point.offset} is {theirs}, here {register.quantity} {mine}")
    return found


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_a_template_says_what_the_alliance_says(name: str, model: int) -> None:
    assert faults(template(name), model) == []
    assert ours(template(name), model)


def test_a_template_that_is_off_by_one_is_told() -> None:
    """The control of the test above."""
    right = template("sunspec-inverter")
    wrong = replace(
        right,
        registers=tuple(
            replace(one, address=one.address + 1) if one.quantity == "active_power" and one.address else one
            for one in right.registers
        ),
    )
    assert faults(wrong, 103) != []


def shown(point: Any) -> Decimal | str | None:
    """What their client makes of it, scaled."""
    value = point.cvalue
    if value is None or isinstance(value, str):
        return value
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def compared(theirs: Any, model: int, map: MeterMap, truth: Mapping[str, float | int | str], number: int = 0) -> int:
    """How many points were held against the truth, to within one step of their register."""
    count = 0
    names = INPUT_NAMES if number else NAMES
    for name, point in theirs.points.items():
        known = names.get(name)
        if known is None or (number and known in ("name", "timestamp", "event")):
            continue
        word = f"module{number}_{known}" if number else known
        register = next((one for one in map.registers if one.quantity == word), None)
        if register is None or word not in truth:
            continue
        value, true = shown(point), truth[word]
        if isinstance(true, str):
            assert value == true, word
        else:
            unit, scale = UNITS[register.unit][1], register.scale
            assert isinstance(value, Decimal), (word, value)
            step = 10.0**point.sf_value if point.sf_value is not None else 1.0
            assert float(value * unit * scale) == pytest.approx(float(true), rel=2e-7, abs=step * float(scale)), word
        count += 1
    del model
    return count


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sunspec-inverter", Layout(model=101, inputs=1)),
        ("sunspec-inverter", Layout(model=102, base=50000, inputs=0)),
        ("sunspec-inverter", Layout(model=103, common_length=65, inputs=3)),
        ("sunspec-inverter-float", Layout(model=111, base=0)),
        ("sunspec-inverter-float", Layout(model=113)),
        ("sunspec-meter", Layout(model=201)),
        ("sunspec-meter", Layout(model=203, base=50000)),
        ("sunspec-meter", Layout(model=204, before=((64001, 30),))),
        ("sunspec-meter-float", Layout(model=213)),
        ("sunspec-mppt", Layout(inputs=4)),
    ],
    ids=str,
)
def test_their_client_reads_our_device(name: str, layout: Layout) -> None:
    simulated = device(name, layout, start_import_wh=7_000_000)
    with over_tcp(simulated) as server:
        theirs = client(server.host, server.port, simulated.unit)
    spec = template(name).sunspec
    assert spec is not None
    number = layout.model or 160
    assert theirs.base_addr == (40000 if layout.base is None else layout.base)
    with_inputs = layout.inputs if 160 in (*spec.beside, number) else 0
    wanted = {1, number, *(known for known, _ in layout.before), *([160] if with_inputs else [])}
    assert {key for key in theirs.models if isinstance(key, int)} == wanted
    map = simulated.map
    truth = {
        register.quantity: simulated.value(register.quantity, NOON)
        for register in map.registers
        if (known := find(register.quantity)) is not None and known.kind != "setting"
    }
    common = theirs.models[1][0]
    assert (common.SN.value, common.Mn.value) == (simulated.serial, "Heliograph")
    count = 0
    if number != 160:
        main = theirs.models[number][0]
        assert main.error_info == ""
        count = compared(main, number, map, truth)  # type: ignore[arg-type]  # no fractions among them
        assert count > 10
        here = {register.address for register in ours(template(name), number)}
        for point in points(number):  # what only the sisters of this model have
            if quantity(point) is not None and point.offset not in here:
                assert main.points[point.name].value in (None, 0), point.name
    if with_inputs:
        groups = theirs.models[160][0].groups["module"]
        assert len(groups) == with_inputs
        for place, group in enumerate(groups, 1):
            assert compared(group, 160, map, truth, place) >= 5  # type: ignore[arg-type]  # as above

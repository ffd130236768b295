"""What a counter means: every edit of a map either can change its value, or opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest

from heliograph import library
from heliograph.core.decode import addresses, width
from heliograph.core.entries import index_wh as audited_wh
from heliograph.core.meaning import Meaning, differences, from_json, index_wh, meaning_of
from heliograph.core.registers import MeterMap, Register, Timing

FLOAT = Register(quantity="energy_export", type="float32", address=0x4A, unit="kWh", monotonic=True)
WHOLE = Register(quantity="energy_export", type="u32", address=0x10, unit="kWh", scale=Decimal("0.01"), monotonic=True)
RATIO = Register(quantity="ct_ratio", type="u16", address=0x06)
SCALED = replace(WHOLE, scale=Decimal(1), scale_register=0x12)
TIMES = replace(WHOLE, times=("ct_ratio",))
ONE_WORD = replace(WHOLE, type="u16")


def a_map(*registers: Register, **more: Any) -> MeterMap:
    voltage = Register(quantity="voltage_l1n", type="float32", address=0x00, unit="V")
    return MeterMap(
        name="test",
        products=("test",),
        source="test",
        version="1",
        status="documented",
        registers=(*registers, voltage),
        production="energy_export",
        **more,
    )


NONE: Mapping[str, float] = MappingProxyType({})


def read(map: MeterMap, quantity: str = "energy_export", factors: Mapping[str, float] = NONE) -> Meaning:
    found = meaning_of(map, quantity, factors)
    assert found is not None
    return found


Edit = Callable[[Register], Register]


def to(**more: Any) -> Edit:
    return lambda register: replace(register, **more)


@pytest.mark.parametrize(
    ("register", "edit", "says"),
    [
        (FLOAT, to(unit="Wh"), "unit Wh instead of kWh"),
        (FLOAT, to(scale=Decimal("0.001")), "scale 0.001 instead of 1"),
        (FLOAT, to(scale=Decimal(-1)), "scale -1 instead of 1"),
        (FLOAT, to(address=0x48), "address 0x0048 instead of 0x004A"),
        (FLOAT, to(order="CDAB"), "order CDAB instead of ABCD"),
        (FLOAT, to(order="BADC"), "order BADC instead of ABCD"),
        (FLOAT, to(type="u32"), "type u32 instead of float32"),
        (FLOAT, to(function="holding"), "function holding instead of input"),
        (FLOAT, to(times=("ct_ratio",)), "multiplied by ct_ratio (not given), which it was not"),
        (WHOLE, to(scale=Decimal("0.1")), "scale 0.1 instead of 0.01"),
        (WHOLE, to(type="u64"), "type u64 instead of u32"),
        (WHOLE, to(type="s32"), "type s32 instead of u32"),
        (WHOLE, to(type="bcd", words=2), "type bcd instead of u32"),
        (WHOLE, to(address=None, addresses=(0x10, 0x12)), "address 0x0010, 0x0012 instead of 0x0010"),
        (WHOLE, to(scale=Decimal(1), unit="Wh"), "unit Wh instead of kWh; scale 1 instead of 0.01"),
        (SCALED, to(scale_register=0x13), "scale register 0x0013 instead of 0x0012"),
        (SCALED, to(scale_register=None), "scale register none instead of 0x0012"),
        (ONE_WORD, to(order="BADC"), "order BADC instead of ABCD"),
        (TIMES, to(times=()), "no longer multiplied by ct_ratio (not given)"),
        # --- what cannot change the value ---
        (FLOAT, to(note="as printed on page 12", source="another sheet"), ""),
        (FLOAT, to(range=(Decimal(0), Decimal(1))), ""),
        (FLOAT, to(step=Decimal("0.01"), rollover=Decimal(99999)), ""),
        (FLOAT, to(absent=(0xFFFFFFFF,), zero_is_absent=True), ""),
        (FLOAT, to(contains="ac", poll=False, alone=True), ""),
        (FLOAT, to(order="ABCD", function="input"), ""),  # said twice
        (FLOAT, to(scale=Decimal("1.000")), ""),
        (FLOAT, to(scale=Decimal(1000), unit="Wh"), ""),  # a thousand Wh are a kWh
        (FLOAT, to(address=None, addresses=(0x4A, 0x4B)), ""),
        (FLOAT, to(address=None, addresses=(0x4B, 0x4A), order="CDAB"), ""),
        (FLOAT, to(quantity="energy_import"), ""),  # the same words under another name
        (WHOLE, to(type="acc32"), ""),  # whose zero means that there is none
        (WHOLE, to(scale=Decimal(10), unit="Wh"), ""),
        (ONE_WORD, to(order="CDAB"), ""),  # one word has no order of words
    ],
)
def test_an_edit_of_the_counter_is_a_change_only_where_the_value_can_be_another(
    register: Register, edit: Edit, says: str
) -> None:
    edited = edit(register)
    old, new = read(a_map(register)), read(a_map(edited), edited.quantity)
    found = differences(old, new)
    assert "; ".join(found) == says
    assert bool(found) == (old.digest != new.digest)
    assert bool(differences(new, old)) == bool(found)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda map: replace(map, order="CDAB"), "order CDAB instead of ABCD"),
        (lambda map: replace(map, function="holding"), "function holding instead of input"),
        (lambda map: replace(map, timing=Timing(pause=0.2), max_words=10, read_gaps=True), ""),
        (lambda map: replace(map, name="other", version="2", status="confirmed", products=("a", "b")), ""),
        (lambda map: replace(map, night="silent", phases=3, unit=4, port=1502), ""),
        (lambda map: replace(map, production="energy_import"), ""),  # what the map suggests; the site has decided
        (lambda map: replace(map, registers=(*map.registers, RATIO)), ""),
        (
            lambda map: replace(
                map,
                registers=tuple(r if r.quantity == "energy_export" else replace(r, address=2) for r in map.registers),
            ),
            "",
        ),
    ],
)
def test_an_edit_of_the_rest_of_the_map_is_a_change_only_where_the_counter_takes_it_over(
    edit: Callable[[MeterMap], MeterMap], says: str
) -> None:
    map = a_map(FLOAT)
    assert "; ".join(differences(read(map), read(edit(map)))) == says


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (40, 50, "ct_ratio 50 instead of 40"),
        (40, 40.0, ""),
        (40, 40.4, "ct_ratio 40.4 instead of 40"),
        (None, 40, "ct_ratio 40 instead of not given"),
    ],
)
def test_a_ratio_of_the_site_is_part_of_the_meaning(before: float | None, after: float, says: str) -> None:
    map = a_map(TIMES, from_site=("ct_ratio",))
    old = read(map, factors={} if before is None else {"ct_ratio": before})
    assert "; ".join(differences(old, read(map, factors={"ct_ratio": after, "other": 7}))) == says


def test_a_ratio_that_the_device_tells_is_part_of_the_meaning_with_its_own_words() -> None:
    old = read(a_map(TIMES, RATIO))
    assert differences(old, read(a_map(TIMES, replace(RATIO, note="n", range=(Decimal(1), Decimal(2)))))) == ()
    moved = read(a_map(TIMES, replace(RATIO, address=0x07)))
    assert differences(old, moved) == ("ct_ratio as read at 0x0007 instead of as read at 0x0006",)
    scaled = read(a_map(TIMES, replace(RATIO, scale=Decimal("0.1"))))
    assert differences(old, scaled) == ("ct_ratio read differently (scale 0.1 instead of 1)",)
    said = read(a_map(TIMES, RATIO), factors={"ct_ratio": 40})
    assert differences(old, said) == ("ct_ratio 40 instead of as read at 0x0006",)


def counters() -> list[tuple[str, str]]:
    found = []
    for name in library.names(None):
        map = library.load(name, None).map
        found += [(name, r.quantity) for r in map.registers if library.may_be_production(r)]
    return found


@pytest.mark.parametrize(("name", "quantity"), counters(), ids=str)
def test_every_counter_of_a_shipped_map_keeps_its_meaning_when_the_rest_of_its_file_is_edited(
    name: str, quantity: str
) -> None:
    """As our own releases do: another digest, the same counter; and it decodes as the map does."""
    loaded = library.load(name, None)
    map, register = loaded.map, loaded.map.register(quantity)
    assert register is not None
    texts = {source.digest: (source.name, source.text) for source in loaded.sources}
    edited = replace(
        library.from_texts(loaded.digest, texts), version="2099-01-01", source="another", timing=Timing(), vectors=()
    )
    old, new = (meaning_of(one, quantity, {"ct_ratio": 40, "vt_ratio": 1}) for one in (map, edited))
    assert old is not None and new is not None and old.digest == new.digest and differences(old, new) == ()
    assert from_json(old.as_json()) == old
    if register.model is not None:
        return
    place = addresses(register)
    first = min(*place, register.scale_register if register.scale_register is not None else place[0])
    last = max(*place, register.scale_register if register.scale_register is not None else place[0])
    words = [0] * (last - first + 1)
    for number, at in enumerate(place):
        words[at - first] = 0x4210 + number if width(register) > 1 else 0x0210
    factors = {"ct_ratio": Decimal(40), "vt_ratio": Decimal(1)}
    function = map.function_of(register)
    unbounded = replace(map, registers=tuple(replace(one, range=None) for one in map.registers))
    expected = audited_wh(unbounded, quantity, None, first, words, factors)
    assert index_wh(old, function, first, words, {}) == expected
    assert expected is not None or register.type == "bcd"
    assert index_wh(old, function, first + 1, words, {}) is None or len(place) == 1

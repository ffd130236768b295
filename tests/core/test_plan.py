from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from heliograph import library
from heliograph.core.decode import addresses
from heliograph.core.errors import ConfigError, UsageError
from heliograph.core.line import parse
from heliograph.core.plan import (
    Block,
    Learned,
    LineCost,
    after_refusal,
    is_witness,
    line_cost,
    parts,
    plan,
    wire_time,
)
from heliograph.core.registers import Function, MeterMap, Register, Timing, Type
from heliograph.work.read_block import decoded

SLOW = LineCost(character=10 / 9600, silence=35 / 9600, turnaround=0.01, pause=0.0)
PAUSED = replace(SLOW, pause=0.06)
NETWORK = LineCost(character=0.0, silence=0.0, turnaround=0.01, pause=0.0)


def a_map(*registers: Register, **keys: object) -> MeterMap:
    base = MeterMap(name="test", products=(), source="made up", version="1", status="unverified", registers=registers)
    return replace(base, **keys)  # type: ignore[arg-type]  # keys of the map, as a table row names them


def a_register(address: int | None, quantity: str = "", type: Type = "float32", **keys: object) -> Register:
    unit = "kWh" if quantity.startswith("energy") else ""
    plain = Register(quantity=quantity or f"module{address}_dc_voltage", type=type, address=address, unit=unit)
    return replace(plain, **keys)  # type: ignore[arg-type]  # keys of the register, as a table row names them


def requests(blocks: Sequence[Block]) -> list[str]:
    return [f"0x{block.address:X}x{block.count}" + ("!" if block.alike else "") for block in blocks]


SDM630 = library.load("eastron-sdm630").map
USUAL = [
    *(f"voltage_l{n}n" for n in (1, 2, 3)),
    *(f"{what}_l{n}" for what in ("current", "active_power", "power_factor") for n in (1, 2, 3)),
    *("active_power", "apparent_power", "reactive_power", "power_factor", "frequency"),
    *("energy_import", "energy_export", "energy_total"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cost", "expected", "milliseconds"),
    [
        (SLOW, ["0x0x36", "0x34x24", "0x156x2"], 221.7),
        (PAUSED, ["0x0x76", "0x156x2"], 336.9),  # with the maker's pause a request costs as much as 37 registers
        (NETWORK, ["0x0x76", "0x156x2"], 20.0),
    ],
)
def test_the_twenty_usual_quantities_of_an_sdm630(cost: LineCost, expected: list[str], milliseconds: float) -> None:
    blocks = plan(SDM630, USUAL, cost)
    assert requests(blocks) == expected
    assert sum(wire_time(block, cost) for block in blocks) * 1000 == pytest.approx(milliseconds, abs=0.05)
    assert [r.quantity for block in blocks for r in block.registers] == sorted(
        USUAL, key=lambda name: addresses(SDM630.register(name) or a_register(0))[0]
    )


def test_what_is_polled_is_what_the_map_marks() -> None:
    assert len(USUAL) == 20
    assert plan(SDM630, None, SLOW) == plan(SDM630, USUAL, SLOW)


@pytest.mark.parametrize(
    ("url", "timing", "cost"),
    [
        ("serial:///dev/x?baudrate=9600", Timing(), LineCost(10 / 9600, 35 / 9600, 0.01, 0.0)),
        (
            "serial:///dev/x?baudrate=19200&parity=E",
            Timing(pause=0.1),
            LineCost(11 / 19200, 38.5 / 19200, 0.01, 0.1),
        ),
        ("tcp://host", Timing(turnaround=0.02), LineCost(0.0, 0.0, 0.02, 0.0)),
        ("rtu+tcp://host", Timing(), LineCost(10 / 9600, 35 / 9600, 0.01, 0.0)),
    ],
)
def test_the_cost_of_a_line_follows_from_its_address(url: str, timing: Timing, cost: LineCost) -> None:
    assert line_cost(parse(url), timing) == cost


def test_a_request_costs_its_characters_two_silences_and_the_thinking() -> None:
    """9600 baud, 8N1, without thinking: worked out by hand from characters and silences."""
    bare = replace(SLOW, turnaround=0.0)
    for count, milliseconds in ((2, 25.0), (4, 29.2), (24, 70.8), (48, 120.8), (80, 187.5)):
        assert bare.of(count) * 1000 == pytest.approx(milliseconds, abs=0.05)
        assert replace(bare, pause=0.06).of(count) * 1000 == pytest.approx(milliseconds + 60 - 3.65, abs=0.06)


# Rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "map", "expected"),
    [
        ("side by side", a_map(a_register(0), a_register(2)), ["0x0x4"]),
        ("undefined registers are not read", a_map(a_register(0), a_register(4)), ["0x0x2!", "0x4x2!"]),
        ("unless the map allows it", a_map(a_register(0), a_register(4), read_gaps=True), ["0x0x6"]),
        (
            "over registers of the map that are not wanted",
            a_map(a_register(0), a_register(2, poll=False), a_register(4)),
            ["0x0x6"],
        ),
        (
            "but not over one that must be read alone",
            a_map(a_register(0), a_register(2, poll=False, alone=True), a_register(4, type="u16")),
            ["0x0x2", "0x4x1"],
        ),
        (
            "nor over what no request may touch",
            a_map(a_register(0), a_register(6, type="u16"), read_gaps=True, no_gap=((3, 3),)),
            ["0x0x2", "0x6x1"],
        ),
        (
            "far apart costs more than a request",
            a_map(a_register(0), a_register(40, type="u16"), read_gaps=True),
            ["0x0x2", "0x28x1"],
        ),
        (
            "no longer than the device allows",
            a_map(*(a_register(2 * n) for n in range(10)), max_words=12),
            ["0x0x8", "0x8x12"],
        ),
        (
            "alone",
            a_map(a_register(0, alone=True, type="u16"), a_register(1)),
            ["0x0x1", "0x1x2"],
        ),
        (
            "functions are two spaces",
            a_map(a_register(0), a_register(0, "module1_dc_current", function="holding")),
            ["0x0x2", "0x0x2"],
        ),
        (
            "with its scale register",
            a_map(a_register(10, type="s16", scale_register=14), read_gaps=True),
            ["0xAx5"],
        ),
        (
            "a scale register that lies before",
            a_map(a_register(10, type="s16", scale_register=8), a_register(11), read_gaps=True),
            ["0x8x5"],
        ),
        (
            "words that are not adjacent",
            a_map(a_register(None, type="u32", addresses=(78, 80)), read_gaps=True),
            ["0x4Ex3"],
        ),
        (
            "a number between such words",
            a_map(
                a_register(None, "energy_total", type="u32", addresses=(78, 80)),
                a_register(79, type="u16"),
            ),
            ["0x4Ex3"],
        ),
        (
            "counters side by side are of one moment, though two full requests would do",
            a_map(
                *(a_register(2 * n) for n in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)),
                a_register(10, "energy_import"),
                a_register(12, "energy_export"),
                max_words=12,
            ),
            ["0x0x8", "0x6x12", "0x12x6"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requests_keep_the_rules_of_the_map(case: str, map: MeterMap, expected: list[str]) -> None:
    assert requests(plan(map, None, SLOW)) == expected, case


def test_words_that_cannot_be_read_together_are_an_error_of_the_map() -> None:
    map = a_map(a_register(None, "energy_total", type="u32", addresses=(78, 80)))
    with pytest.raises(ConfigError, match=r"energy_total \(0x004E to 0x0050\) cannot be read together"):
        plan(map, None, SLOW)


def test_factors_come_along_and_first() -> None:
    map = a_map(
        a_register(0, "energy_export", times=("ct_ratio",)),
        a_register(100, "ct_ratio", type="u16", poll=False),
    )
    assert requests(plan(map, None, SLOW)) == ["0x64x1", "0x0x2"]


def test_identity_has_requests_of_its_own_and_is_not_polled() -> None:
    map = a_map(a_register(0), a_register(2, "serial_number", type="u32"), a_register(4))
    assert requests(plan(map, None, SLOW)) == ["0x0x6"]
    assert requests(plan(map, [r.quantity for r in map.registers], SLOW)) == ["0x0x6", "0x2x2"]
    assert requests(plan(SDM630, ["serial_number"], SLOW)) == ["0xFC00x2"]


def test_sunspec_registers_have_no_address_before_discovery() -> None:
    assert plan(a_map(a_register(2, model=103)), None, SLOW) == ()


def test_an_unknown_quantity_is_told_with_its_neighbour() -> None:
    with pytest.raises(UsageError, match="eastron-sdm630 has no energy_exprt") as caught:
        plan(SDM630, ["energy_exprt"], SLOW)
    assert caught.value.hint == "Did you mean energy_export?"


# Witness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eastron-sdm630", "eastron-sdm120", "eastron-sdm230", "eastron-sdm72dm-v2"])
@pytest.mark.parametrize("cost", [SLOW, PAUSED, NETWORK])
def test_the_production_counter_has_the_frequency_as_witness(name: str, cost: LineCost) -> None:
    map = library.load(name).map
    for quantities in (None, ["energy_export"], ["energy_import", "energy_export"]):
        holders = [b for b in plan(map, quantities, cost) if any(r.quantity == "energy_export" for r in b.registers)]
        assert len(holders) == 1
        assert "frequency" in [r.quantity for r in holders[0].registers]


def test_a_witness_that_costs_more_than_its_own_request_stays_away() -> None:
    near = a_map(
        a_register(0, "frequency"), a_register(10, "energy_export"), read_gaps=True, production="energy_export"
    )
    far = a_map(a_register(0, "frequency"), a_register(60, "energy_export"), read_gaps=True, production="energy_export")
    assert requests(plan(near, ["energy_export"], SLOW)) == ["0x0x12"]
    assert requests(plan(far, ["energy_export"], SLOW)) == ["0x3Cx2"]
    assert requests(plan(near, ["energy_export"], SLOW, refused=[("input", 0)])) == ["0xAx2"]


def test_the_site_decides_which_counter_is_watched() -> None:
    map = a_map(
        a_register(0, "energy_import"),
        a_register(10, "frequency", poll=False),
        a_register(60, "energy_export"),
        read_gaps=True,
        production="energy_export",
    )
    assert requests(plan(map, ["energy_import"], SLOW, production="energy_import")) == ["0x0x12"]


@pytest.mark.parametrize(("chosen", "expected"), [(None, ["0x0x2"]), ("energy_import", ["0xAx4", "0x0x2"])])
def test_production_is_read_in_every_round_also_where_the_map_does_not_poll_it(
    chosen: str | None, expected: list[str]
) -> None:
    map = a_map(
        a_register(0, "energy_export"),
        a_register(10, "energy_import", poll=False, times=("ct_ratio",)),
        a_register(12, "ct_ratio", poll=False),
        a_register(20, "energy_total", poll=False),
        production="energy_export",
    )
    assert requests(plan(map, None, SLOW, production=chosen)) == expected
    by_the_map = replace(map, production="energy_total")
    assert requests(plan(by_the_map, None, SLOW)) == ["0x0x2!", "0x14x2!"]


@pytest.mark.parametrize(
    ("register", "is_one"),
    [
        (a_register(0, "frequency"), True),
        (a_register(0, "voltage_l1n"), False),
        (a_register(0, "voltage_l1n", range=(Decimal(180), Decimal(280))), True),
        (a_register(0, "active_power"), False),
        (a_register(0, "power_factor"), False),
        (a_register(0, "serial_number"), False),
    ],
)
def test_a_witness_has_a_narrow_range(register: Register, is_one: bool) -> None:
    assert is_witness(register) is is_one


# Lengths ----------------------------------------------------------------------------------------------------------


def test_blocks_of_one_device_get_different_lengths() -> None:
    spare = [a_register(address, poll=False) for address in (4, 42)]
    map = a_map(a_register(0), a_register(2), a_register(40), a_register(44), *spare)
    assert requests(plan(map, None, SLOW)) == ["0x0x4", "0x28x6"]
    map = a_map(a_register(0), a_register(2), a_register(40), a_register(42), a_register(4, poll=False))
    assert requests(plan(map, None, SLOW)) == ["0x0x6", "0x28x4"]


def test_a_block_is_lengthened_by_whole_numbers_and_not_beyond_the_map() -> None:
    map = a_map(
        a_register(0),
        a_register(2, type="u64", poll=False, quantity="charge"),
        a_register(100),
    )
    assert requests(plan(map, None, SLOW)) == ["0x0x6", "0x64x2"]


def test_equal_lengths_that_cannot_be_helped_are_marked() -> None:
    map = a_map(a_register(0), a_register(100), a_register(200, type="u16"))
    assert requests(plan(map, None, SLOW)) == ["0x0x2!", "0x64x2!", "0xC8x1"]


def random_map(dice: random.Random) -> MeterMap:
    registers = []
    address = 0
    types: list[Type] = ["u16", "float32", "u64"]
    for _ in range(dice.randint(1, 7)):
        address += dice.choice([0, 0, 0, 1, 2, 5, 12])
        type = dice.choice(types)
        words = {"u16": 1, "float32": 2, "u64": 4}[type]
        poll = dice.random() < 0.8
        registers.append(a_register(address, f"module{address}_dc_power", type, poll=poll, alone=dice.random() < 0.1))
        address += words
    holes = [(at, at) for at in range(address) if not any(at in addresses(r) for r in registers)]
    return a_map(
        *registers,
        read_gaps=dice.random() < 0.6,
        max_words=dice.choice([4, 8, 12, 125]),
        no_gap=tuple(hole for hole in holes if dice.random() < 0.1),
    )


def readable(map: MeterMap, address: int) -> bool:
    owner = next((r for r in map.registers if address in addresses(r)), None)
    if any(low <= address <= high for low, high in map.no_gap) or (owner is not None and owner.alone):
        return False
    return owner is not None or map.read_gaps


def partitions(items: list[Register]) -> Iterator[list[list[Register]]]:
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for n, group in enumerate(rest):
            yield [*rest[:n], [items[0], *group], *rest[n + 1 :]]


def cheapest(map: MeterMap, cost: LineCost) -> float:
    """Every way to share the wanted registers out over requests, the cheapest legal one."""
    wanted = [register for register in map.registers if register.poll]
    best = float("inf")
    for groups in partitions(wanted):
        total = 0.0
        for group in groups:
            touched = sorted(address for register in group for address in addresses(register))
            span = range(touched[0], touched[-1] + 1)
            if len(group) > 1 and (len(span) > map.max_words or not all(readable(map, at) for at in span)):
                break
            total += cost.of(len(span))
        else:
            best = min(best, total)
    return best


def test_no_way_of_sharing_registers_out_is_cheaper() -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.SystemRandom().randrange(2**32)
    print(f"HELIOGRAPH_SEED={seed}")
    dice = random.Random(seed)
    for _ in range(300):
        map = random_map(dice)
        for cost in (SLOW, PAUSED, NETWORK):
            if not any(register.poll for register in map.registers):
                continue
            blocks = plan(map, None, cost)
            shortest = 0.0
            for block in blocks:
                touched = sorted(address for register in block.registers for address in addresses(register))
                shortest += cost.of(touched[-1] - touched[0] + 1)
                assert block.address <= touched[0] <= touched[-1] < block.address + block.count
                if not block.registers[0].alone:
                    assert all(readable(map, at) for at in range(block.address, block.address + block.count))
                assert block.count <= map.max_words or len(block.registers) == 1
            assert shortest == pytest.approx(cheapest(map, cost)), map
            counts = [block.count for block in blocks]
            assert all((counts.count(block.count) > 1) is block.alike for block in blocks)
            assert sorted(r.quantity for b in blocks for r in b.registers) == sorted(
                r.quantity for r in map.registers if r.poll
            )


RATIO_AT_4 = Register(quantity="ct_ratio", type="u16", address=4)

# Parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("map", "expected"),
    [
        (a_map(*(a_register(2 * n) for n in range(6))), ["0x0x12", "0x0x10", "0x4x8", "0x0x6", "0x8x4", "0x0x2"]),
        (a_map(*(a_register(2 * n) for n in range(3))), ["0x0x6", "0x0x4", "0x4x2"]),
        (a_map(a_register(0), a_register(2)), ["0x0x4", "0x0x2", "0x2x2"]),
        (a_map(a_register(0), a_register(2, type="u16")), ["0x0x3", "0x0x2", "0x2x1"]),
        (a_map(a_register(0)), ["0x0x2"]),
        (
            a_map(a_register(0, type="s16", scale_register=3), a_register(4), read_gaps=True),
            ["0x0x6", "0x0x4", "0x4x2"],
        ),
        # a ratio at the end or the beginning stays with what it multiplies
        (a_map(a_register(0), a_register(2, times=("ct_ratio",)), RATIO_AT_4), ["0x0x5", "0x0x2", "0x2x3", "0x4x1"]),
        (
            a_map(replace(RATIO_AT_4, address=1), a_register(2), a_register(4, times=("ct_ratio",))),
            ["0x1x5", "0x1x3", "0x1x1"],
        ),
    ],
)
def test_a_block_can_be_asked_for_in_other_shapes(map: MeterMap, expected: list[str]) -> None:
    (block,) = plan(map, None, SLOW)
    assert requests(parts(block)) == expected


def with_ratio(block: Block, production: str, address: int) -> Block:
    """The same block with a ratio at this end, which multiplies its counter."""
    timed = [replace(r, times=(*r.times, "vt_ratio")) if r.quantity == production else r for r in block.registers]
    registers = sorted([*timed, Register(quantity="vt_ratio", type="u16", address=address)], key=by_address)
    return replace(block, address=min(block.address, address), count=block.count + 1, registers=tuple(registers))


def by_address(register: Register) -> int:
    return addresses(register)[0]


@pytest.mark.parametrize("name", library.names(None))
def test_each_part_that_holds_the_counter_decodes_it(name: str) -> None:
    """A part that lost a factor would never agree with the whole, and the counter would never be believed."""
    map = library.load(name, None).map
    counters = [r.quantity for r in map.registers if library.may_be_production(r) and not r.models]
    given = {factor: Decimal(2) for factor in (*map.from_site, *(f for r in map.registers for f in r.times))}
    given.pop("vt_ratio", None)
    for production, limit in [(counter, limit) for counter in counters for limit in (None, 40, 12)]:
        register = map.register(production)
        assert register is not None
        blocks = plan(map, None, SLOW, max_words=limit, production=production)
        (holder,) = (b for b in blocks if any(r.quantity == production for r in b.registers))
        behind = with_ratio(holder, production, holder.address + holder.count)
        before = [with_ratio(holder, production, holder.address - 1)] if holder.address else []
        beyond = {"vt_ratio": Decimal(3)}
        for block, more in ((holder, beyond), (behind, {}), *((one, {}) for one in before)):
            whole, _ = decoded(block, (1,) * block.count, map, given | more)
            needed = {*addresses(register)} | (
                {register.scale_register} if register.scale_register is not None else set()
            )
            for part in parts(block):
                told, absent = decoded(part, (1,) * part.count, map, given | more)
                holds = needed <= {*range(part.address, part.address + part.count)}
                assert holds == any(r.quantity == production for r in part.registers), part
                assert told.get(production) == (whole.get(production) if holds else None), part
                assert not any("not known" in reason for reason in absent.values()), (part, absent)


# Refusals ---------------------------------------------------------------------------------------------------------


def device(map: MeterMap, most: int, missing: set[tuple[Function, int]]) -> tuple[Learned, int, tuple[Block, ...]]:
    """Polls a device that refuses long requests and missing addresses, until it refuses nothing more."""
    learned = Learned()
    for refusals in range(200):
        blocks = plan(map, None, SLOW, max_words=learned.max_words, refused=learned.refused)
        for block in blocks:
            span = range(block.address, block.address + block.count)
            gone = any((block.function, at) in missing for at in span)
            if gone or (block.count > most and len(block.registers) > 1):
                before = learned
                learned = after_refusal(map, block, 2 if gone else 3, learned)
                assert learned != before, "a refusal that teaches nothing would be met for ever"
                assert Learned.from_json(json.loads(json.dumps(learned.as_json()))) == learned
                break
        else:
            return learned, refusals, blocks
    raise AssertionError("refused for ever")


def test_a_device_that_takes_shorter_requests_only_gets_them() -> None:
    learned, refusals, blocks = device(SDM630, 30, set())
    assert learned.max_words == 10  # the next size of its map
    assert refusals == 1
    assert max(block.count for block in blocks) <= 10
    assert sorted(r.quantity for b in blocks for r in b.registers) == sorted(USUAL)


def test_a_missing_address_is_found_and_the_size_of_requests_restored() -> None:
    learned, refusals, blocks = device(SDM630, 80, {("input", 0x20), ("input", 0x21)})
    assert learned == Learned(None, (("input", 0x20), ("input", 0x21)), None)
    assert refusals <= 5
    assert sorted(r.quantity for b in blocks for r in b.registers) == sorted(set(USUAL) - {"power_factor_l2"})
    assert max(block.count for block in blocks) > 10


def test_counters_side_by_side_are_asked_for_singly_when_one_is_missing() -> None:
    _, _, blocks = device(SDM630, 80, {("input", 0x48)})
    assert "energy_export" in [r.quantity for b in blocks for r in b.registers]
    assert "energy_import" not in [r.quantity for b in blocks for r in b.registers]


def test_lengthening_that_is_refused_is_taken_back_without_losing_the_number() -> None:
    map = a_map(a_register(0), a_register(2, type="u64", poll=False, quantity="charge"), a_register(100))
    _, _, blocks = device(map, 125, {("input", 3)})
    assert requests(blocks) == ["0x0x2!", "0x64x2!"]


@pytest.mark.parametrize("code", [1, 4, 5, 6, 8, 10, 11])
def test_other_refusals_say_nothing_about_sizes_or_addresses(code: int) -> None:
    block = plan(SDM630, None, SLOW)[0]
    assert after_refusal(SDM630, block, code, Learned()) == Learned()


def test_any_device_ends_with_all_it_has_being_read() -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.SystemRandom().randrange(2**32)
    print(f"HELIOGRAPH_SEED={seed}")
    dice = random.Random(seed)
    for _ in range(200):
        map = replace(random_map(dice), fallback_words=dice.choice([(), (6, 2), (60, 10, 1)]))
        wanted = [r for r in map.registers if r.poll]
        missing: set[tuple[Function, int]] = {
            ("input", addresses(register)[0]) for register in map.registers if dice.random() < 0.2
        }
        learned, _, blocks = device(map, dice.choice([1, 4, 125]), missing)
        there = {r.quantity for r in wanted if not any(("input", at) in missing for at in addresses(r))}
        assert {r.quantity for b in blocks for r in b.registers} == there
        assert learned.hunt is None or learned.max_words is not None

"""What is believed of a block, and after how many reads. The bus is a list of answers here."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal

import pytest

from heliograph.core.errors import BusTimeout
from heliograph.core.plan import Block
from heliograph.core.plausible import Known
from heliograph.core.registers import Function, MeterMap, Register, Timing
from heliograph.ports import BusCounters, Frame
from heliograph.work.read_block import BlockRead, read_block, remembered

QUANTITIES = {"active_power": "W", "frequency": "Hz", "energy_import": "kWh", "energy_export": "kWh"}
REGISTERS = tuple(
    Register(quantity=name, type="float32", unit=unit, address=2 * n)
    for n, (name, unit) in enumerate(QUANTITIES.items())
)
MAP = MeterMap(name="test", products=(), source="", version="", status="unverified", registers=REGISTERS)
BLOCK = Block("input", 0, 8, REGISTERS)
TIMING = Timing(timeout=0.5, pause=0.06, retries=0)

Content = tuple[float, ...]
USUAL: Content = (20_000.0, 50.0, 312.5, 41_237.0)
KNOWN = {
    "active_power": Known(20_000.0, 90.0),
    "frequency": Known(50.0, 90.0),
    "energy_import": Known(312_500, 90.0),
    "energy_export": Known(41_237_000, 90.0),
}
WRONG: Content = (50.0, 312.5, 41_237.0, 0.0)  # everything one register further
STALLED: Content = (500.0, 50.0, 312.5, 41_237.0)


@dataclass
class ListedBus:
    """Each read gets the next content; the last one stays. `raw` is what every read gets instead."""

    contents: list[Content | Exception]
    raw: tuple[int, ...] = ()
    time: float = 100.0
    asked: list[tuple[int, int, float]] = field(default_factory=list)
    """Address, count and pause of each request."""
    counters: BusCounters = field(default_factory=BusCounters)
    numbered: bool = False

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        assert (unit, function) == (1, "input")
        self.time += 0.1
        self.asked.append((address, count, timing.pause))
        if self.raw:
            return self.raw[address : address + count]
        content = self.contents.pop(0) if len(self.contents) > 1 else self.contents[0]
        if isinstance(content, Exception):
            raise content
        words = struct.unpack(f">{2 * len(content)}H", struct.pack(f">{len(content)}f", *content))
        return words[address : address + count]

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        self.time += seconds
        return ()

    def close(self) -> None: ...


def read(
    *contents: Content | Exception, known: dict[str, Known] = KNOWN, block: Block = BLOCK, map: MeterMap = MAP
) -> tuple[BlockRead, ListedBus]:
    bus = ListedBus(list(contents))
    now: Callable[[], float] = lambda: bus.time  # noqa: E731 - reads better beside its bus
    got = read_block(
        bus, 1, block, map, TIMING, known, now=now, rated_kw=50, production="energy_export", factors={}
    )  # fmt: skip
    return got, bus


def test_what_follows_from_before_costs_one_request() -> None:
    got, bus = read((21_000.0, 50.01, 312.5, 41_237.1))
    assert got.values == pytest.approx(
        {"active_power": 21_000.0, "frequency": 50.01, "energy_import": 312_500, "energy_export": 41_237_100}
    )
    assert (got.attempts, got.at, len(got.words)) == (1, 100.1, 8)
    assert bus.asked == [(0, 8, 0.06)]
    assert not got.doubts
    assert not got.settled


def test_a_jump_in_a_block_whose_counters_fit_is_looked_at_once_more() -> None:
    got, bus = read(STALLED)
    assert got.values["active_power"] == 500.0
    assert [asked[:2] for asked in bus.asked] == [(0, 8), (0, 6)]
    assert got.settled == ("active_power jumped from 20000 to 500 W",)
    assert got.doubts == ()
    assert got.at == pytest.approx(100.1)  # the words of the whole block are those of the first read


def test_a_jump_that_nothing_vouches_for_takes_four_agreeing_reads() -> None:
    got, bus = read(STALLED, block=Block("input", 0, 4, REGISTERS[:2]))
    assert got.values == {"active_power": 500.0, "frequency": 50.0}
    assert [asked[:2] for asked in bus.asked] == [(0, 4), (0, 2), (2, 2), (0, 4)]
    # A shape that was asked for before is asked for again after a silent time-out only, so that no copy answers.
    assert [asked[2] for asked in bus.asked] == [0.06, 0.06, 0.5, 0.5]


def test_a_single_wrong_answer_leaves_no_trace_in_the_values() -> None:
    got, bus = read(WRONG, USUAL)
    assert got.values["energy_export"] == 41_237_000
    assert got.values["active_power"] == 20_000.0
    assert got.attempts == 3
    assert got.words[:2] == struct.unpack(">HH", struct.pack(">f", 20_000.0))
    assert "energy_export fell from 41237000 to 0 Wh" in got.settled
    assert bus.asked == [(0, 8, 0.06), (0, 6, 0.06), (0, 8, 0.5)]


def test_wrong_answers_between_right_ones_start_the_count_anew() -> None:
    got, _ = read(STALLED, USUAL, STALLED, USUAL)
    assert got.values["active_power"] == 20_000.0
    got, _ = read(STALLED, WRONG, STALLED, STALLED, STALLED)
    assert got.values["active_power"] == 500.0
    assert got.attempts > 3


def test_a_counter_that_fell_is_never_believed_but_handed_on_as_suspect() -> None:
    got, _ = read((20_000.0, 50.0, 312.5, 3.0))
    assert "energy_export" not in got.values
    assert got.suspect == {"energy_export": 3000}
    assert got.doubts == ("energy_export fell from 41237000 to 3000 Wh",)
    assert got.values["energy_import"] == 312_500
    assert got.attempts == 3


def test_a_counter_that_rose_too_fast_is_believed_once_enough_time_has_passed() -> None:
    ahead = (20_000.0, 50.0, 312.5, 41_238.0)
    got, _ = read(ahead)
    assert got.suspect == {"energy_export": 41_238_000}
    later = {name: replace(known, at=10.0) for name, known in KNOWN.items()}
    got, _ = read(ahead, known=later)
    assert got.values["energy_export"] == 41_238_000


def test_a_frequency_that_went_astray_puts_the_whole_block_in_doubt() -> None:
    got, _ = read((20_000.0, 312.0, 312.5, 41_237.0), USUAL)
    assert got.values["frequency"] == 50.0
    assert got.settled == ("frequency has no value any more",)
    got, bus = read((20_000.0, 0.0, 312.5, 41_237.0))
    assert "frequency" not in got.values
    assert got.values["energy_export"] == 41_237_000
    assert "not a plausible frequency" in got.absent["frequency"]
    assert len(bus.asked) == 5


def test_absence_once_settled_is_remembered_and_costs_no_second_look() -> None:
    off = (20_000.0, 0.0, 312.5, 41_237.0)
    got, _ = read(off)
    known = remembered(KNOWN, got)
    assert set(known) == set(KNOWN) - {"frequency"}
    assert read(off, known=known)[0].attempts == 1
    assert read(USUAL, known=known)[0].attempts == 2  # its return is news again


def test_the_first_reading_takes_three_agreeing_reads() -> None:
    got, _ = read(USUAL, known={})
    assert got.attempts == 3
    assert got.values["energy_export"] == 41_237_000
    assert got.suspect == {}
    got, _ = read(WRONG, USUAL, known={})
    assert got.values["energy_export"] == 41_237_000


def test_zeros_take_more() -> None:
    assert read((0.0, 0.0, 0.0, 0.0), known={})[0].attempts >= 5
    got, _ = read((0.0, 0.0, 0.0, 0.0))
    assert got.suspect == {"energy_import": 0, "energy_export": 0}
    assert got.attempts >= 5


def test_an_unsteady_number_does_not_hold_up_counters_that_fit() -> None:
    flicker: list[Content | Exception] = [(9000.0 * (n % 3 + 1), 50.0, 312.5, 41_237.0) for n in range(1, 12)]
    got, _ = read(*flicker, known=KNOWN | {"active_power": Known(90_000.0, 90.0)})
    assert got.values == {"frequency": 50.0, "energy_import": 312_500, "energy_export": 41_237_000}
    assert got.doubts
    assert all("active_power jumped" in text for text in got.doubts)


def test_without_counters_to_hold_on_to_nothing_unsteady_is_believed() -> None:
    block = Block("input", 0, 4, REGISTERS[:2])
    flicker: list[Content | Exception] = [(9000.0 * (n % 3 + 1), 50.0) for n in range(1, 12)]
    got, _ = read(*flicker, known={"active_power": Known(90_000.0, 90.0), "frequency": Known(50.0, 90.0)}, block=block)
    assert got.values == {}
    assert got.doubts


def test_a_block_that_another_one_resembles_is_read_twice() -> None:
    got, bus = read(USUAL, block=replace(BLOCK, alike=True))
    assert got.attempts == 2
    assert [asked[:2] for asked in bus.asked] == [(0, 8), (0, 6)]


def test_silence_is_for_the_caller() -> None:
    with pytest.raises(BusTimeout):
        read(BusTimeout("no answer"))
    with pytest.raises(BusTimeout):
        read(STALLED, BusTimeout("no answer"))


def test_only_what_is_believed_is_remembered() -> None:
    got, _ = read((20_000.0, 50.0, 312.5, 3.0))
    known = remembered(KNOWN, got)
    assert known["energy_export"] == KNOWN["energy_export"]
    assert known["energy_import"] == Known(312_500, got.at)


def test_scale_registers_and_factors_are_applied_within_the_block() -> None:
    registers = (
        Register(quantity="energy_export", type="u32", unit="Wh", address=0, scale_register=2, times=("ct_ratio",)),
        Register(quantity="ct_ratio", type="u16", address=3),
    )
    block = Block("input", 0, 4, registers)

    bus = ListedBus([], raw=(0, 500, 0xFFFF, 40))
    map = replace(MAP, registers=registers)
    known = {"energy_export": Known(1999, 90.0), "ct_ratio": Known(40, 90.0)}
    got = read_block(bus, 1, block, map, TIMING, known, now=lambda: bus.time, rated_kw=50)
    assert got.values == {"energy_export": 2000, "ct_ratio": 40}
    alone = Block("input", 0, 3, registers[:1])
    got = read_block(
        bus, 1, alone, map, TIMING, known, now=lambda: bus.time, rated_kw=50, factors={"ct_ratio": Decimal(41)}
    )
    assert got.values == {"energy_export": 2050}
    got = read_block(bus, 1, alone, map, TIMING, {}, now=lambda: bus.time, rated_kw=50)
    assert got.values == {}
    assert got.absent == {"energy_export": "ct_ratio is not known"}


@pytest.mark.parametrize("where", [0, 4])
def test_a_ratio_beside_the_counter_does_not_keep_it_from_being_believed(where: int) -> None:
    """At the end or the beginning of the block, whose first reading is asked for in other shapes too."""
    counter = Register(quantity="energy_export", type="u32", unit="Wh", address=2, times=("ct_ratio",))
    ratio = Register(quantity="ct_ratio", type="u16", address=where)
    other = Register(quantity="frequency", type="u16", address=4 - where)
    registers = (ratio, counter, other) if where == 0 else (other, counter, ratio)
    raw = (40, 0, 0, 500, 50) if where == 0 else (50, 0, 0, 500, 40)
    map = replace(MAP, registers=registers)
    bus = ListedBus([], raw=raw)
    got = read_block(
        bus, 1, Block("input", 0, 5, registers), map, TIMING, {}, now=lambda: bus.time, rated_kw=50,
        production="energy_export",
    )  # fmt: skip
    assert (got.values, got.doubts) == ({"energy_export": 20_000, "ct_ratio": 40, "frequency": 50}, ())


@pytest.mark.parametrize("where", [0, 4])
def test_a_ratio_of_the_site_counts_and_not_the_device_s(where: int) -> None:
    """Also inside one block, else the cut of the requests would decide by what the counter is multiplied."""
    counter = Register(quantity="energy_export", type="u32", unit="Wh", address=2, times=("ct_ratio",))
    ratio = Register(quantity="ct_ratio", type="u16", address=where)
    raw = (39, 0, 0, 500, 39)
    bus = ListedBus([], raw=raw)
    map = replace(MAP, registers=(counter, ratio))
    said = {"ct_ratio": Decimal(40)}
    for block in (Block("input", 0, 5, (ratio, counter)), Block("input", 2, 2, (counter,))):
        got = read_block(
            bus, 1, block, map, TIMING, {}, now=lambda: bus.time, rated_kw=50, production="energy_export", factors=said
        )
        assert got.values["energy_export"] == 20_000
        assert got.values.get("ct_ratio", 39) == 39, "what the device says is kept beside it"

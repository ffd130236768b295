"""What a device answers is taken down word for word, without its serial number, and replays to the same words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from heliograph import library
from heliograph.app import open_bus
from heliograph.core.decode import ordered
from heliograph.core.errors import BusTimeout
from heliograph.core.line import parse
from heliograph.core.plan import line_cost
from heliograph.core.recording import (
    Compared,
    Piece,
    Recording,
    Refused,
    compared,
    image,
    masked,
    named,
    text,
    values,
)
from heliograph.core.recording import parse as read_text
from heliograph.core.registers import Function, MeterMap
from heliograph.rehearsal.frames import Device
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.replay import RecordedMeter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.work.record import Range, Read, record

NOON = datetime(2026, 3, 3, 5, 12, 3, tzinfo=UTC)
SERIAL = 23_459_871


def sdm630(clock: Callable[[], datetime] = lambda: NOON, **more: object) -> SimulatedMeter:
    map = library.load("eastron-sdm630", None).map
    began = datetime(2026, 3, 1, tzinfo=UTC)
    return SimulatedMeter(
        map, clock=clock, serial=SERIAL, start_export_wh=41_230_700, started=began, sky=Sky(seed=1), **more  # type: ignore[arg-type]  # passed on as they are
    )  # fmt: skip


def taken(read: Read, map: MeterMap, **more: object) -> Recording:
    cost = line_cost(parse("tcp://127.0.0.1:502"), map.timing)
    pieces, refused, begins = record(read, map, cost, monotonic=time.monotonic, **more)  # type: ignore[arg-type]  # passed on as they are
    return Recording(
        map=map.name, digest="d", origin="captured", unit=1, pieces=pieces, refused=refused, rounds=begins, at=NOON
    )


def reader(url: str, map: MeterMap, unit: int = 1) -> tuple[Read, Callable[[], None]]:
    """By our bus, over a real socket or a pseudo-terminal."""
    bus = open_bus(url)
    timing = replace(map.timing, pause=0.0, retries=0)

    def read(function: Function, address: int, count: int) -> tuple[int, ...]:
        return bus.read(unit, function, address, count, timing)

    return read, bus.close


def over(way: str, devices: Mapping[int, Device]) -> Server | Line:
    if way == "serial":
        return Line(Wire(devices, baud=115200, turnaround=0.0))
    return Server(devices, framing="rtu" if way == "rtu" else "tcp")


def words(recording: Recording) -> list[tuple[object, ...]]:
    return [(piece.round, piece.function, piece.address, piece.words) for piece in recording.pieces]


@pytest.mark.parametrize("way", ["tcp", "rtu", "serial"])
def test_a_recording_replays_to_the_identical_words_and_refusals(way: str) -> None:
    meter = sdm630(max_words=30)
    also: list[Range] = [("input", 0x0040, 0x0065), ("holding", 0xFBFE, 0xFC05)]
    with over(way, {1: meter}) as line:
        read, close = reader(line.url, meter.map)
        first = taken(read, meter.map, also=also)
        close()
    assert {(no.function, no.address, no.count, no.code) for no in first.refused} >= {
        ("input", 0x0058, 12, 2),
        ("holding", 0xFC04, 2, 2),
    }
    assert any(no.code == 3 and no.count > 30 for no in first.refused)
    kept = read_text(text(first))
    assert kept == first
    with over(way, {1: RecordedMeter(kept, meter.map, clock=lambda: NOON)}) as line:
        read, close = reader(line.url, meter.map)
        second = taken(read, meter.map, also=also)
        close()
    assert words(second) == words(first)
    assert second.refused == first.refused


def test_every_register_of_the_map_is_in_it_and_decodes_to_what_the_meter_shows() -> None:
    meter = sdm630()
    with over("tcp", {1: meter}) as line:
        read, close = reader(line.url, meter.map)
        found = values(meter.map, taken(read, meter.map))
        close()
    assert set(found) == {register.quantity for register in meter.map.registers}
    export = found["energy_export"]
    assert isinstance(export, Decimal) and int(export * 1000) == meter.counted_wh(NOON)


def test_rounds_repeat_the_same_requests_and_are_replayed_in_their_own_time() -> None:
    now = [NOON]
    meter = sdm630(lambda: now[0])

    def tick() -> None:
        now[0] += timedelta(seconds=10)

    def seconds() -> float:
        return (now[0] - NOON).total_seconds()

    with over("tcp", {1: meter}) as line:
        read, close = reader(line.url, meter.map)
        cost = line_cost(parse(line.url), meter.map.timing)
        pieces, refused, begins = record(read, meter.map, cost, monotonic=seconds, rounds=3, between=tick)
        close()
    assert begins == (0.0, 10.0, 20.0)
    made = Recording(
        map=meter.map.name, digest="d", origin="captured", unit=1, pieces=pieces, refused=refused, rounds=begins
    )
    assert read_text(text(made)) == made
    images = [image(made, number) for number in (1, 2, 3)]
    assert images[0].keys() == images[1].keys() == images[2].keys() and images[0] != images[1] != images[2]
    now[0] = NOON
    replay = RecordedMeter(made, meter.map, clock=lambda: now[0])
    for passed, number in ((0, 1), (9.9, 1), (10, 2), (20, 3), (3600, 3)):
        now[0] = NOON + timedelta(seconds=passed)
        for (function, address), word in images[number - 1].items():
            assert replay.words(function, address, 1) == (word,)


def test_nothing_is_invented_by_a_replay() -> None:
    made = Recording(
        map="eastron-sdm630", digest="d", origin="captured", unit=1,
        pieces=(Piece("input", 0x10, (1, 2, 3, 4)), Piece("input", 0x14, (5, 6))),
        refused=(Refused("input", 0x10, 6, 3), Refused("input", 0x20, 4, 4), Refused("holding", 0, 2, None)),
    )  # fmt: skip
    device = RecordedMeter(made, library.load("eastron-sdm630", None).map, clock=lambda: NOON)
    for asked, answer in {
        b"\x04\x00\x10\x00\x04": b"\x04\x08\0\1\0\2\0\3\0\4",
        b"\x04\x00\x12\x00\x03": b"\x04\x06\0\3\0\4\0\5",  # over the seam of two answers: every word was recorded
        b"\x04\x00\x10\x00\x06": b"\x84\x03",  # the device refused just this
        b"\x04\x00\x15\x00\x02": b"\x84\x02",  # 0x16 was never asked for
        b"\x04\x00\x22\x00\x01": b"\x84\x04",
        b"\x03\x00\x10\x00\x04": b"\x83\x02",  # the other address space
        b"\x03\x00\x00\x00\x02": None,  # it was silent
        b"\x04\x00\x10\x00\x00": b"\x84\x03",
        b"\x06\x00\x10\x00\x01": b"\x86\x01",  # nobody writes
        b"\x10\x00\x10\x00\x01\x02\x00\x00": b"\x90\x01",
    }.items():
        assert device.answer(asked) == answer, asked


def test_a_device_that_is_silent_where_others_refuse_is_recorded_as_silent() -> None:
    def read(function: Function, address: int, count: int) -> tuple[int, ...]:
        if address + count > 0x50 or function == "holding":
            raise BusTimeout("nothing")
        return tuple(range(address, address + count))

    made = taken(read, library.load("eastron-sdm630", None).map)
    assert all(no.code is None for no in made.refused)
    assert max(address for (_, address) in image(made)) == 0x4F
    assert (
        "code"
        not in text(replace(made, map="m", pieces=made.pieces[:1]))
        .split("refused  = [")[1]
        .split("\n", 1)[1]
        .split("]")[0]
    )


def test_a_device_that_goes_away_while_it_is_recorded_is_told() -> None:
    left = [3]

    def read(*asked: object) -> tuple[int, ...]:
        left[0] -= 1
        if left[0] < 0:
            raise BusTimeout("gone")
        return (0,) * int(str(asked[-1]))

    with pytest.raises(BusTimeout):
        taken(read, library.load("chint-dtsu666", None).map)
    assert left[0] >= -100


def test_a_device_that_answers_nothing_is_no_recording() -> None:
    def read(*_: object) -> tuple[int, ...]:
        raise BusTimeout("no answer")

    with pytest.raises(BusTimeout):
        taken(read, library.load("eastron-sdm630", None).map)


# --- masking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ABCD", "CDAB", "BADC", "DCBA"])
@pytest.mark.parametrize(
    ("type", "size", "raw", "shown"),
    [
        ("u32", 2, SERIAL.to_bytes(4, "big"), "12345678"),
        ("u64", 4, (18_000_111_222_333_444_555).to_bytes(8, "big"), "12345678901234567890"),
        ("s32", 2, (987_654).to_bytes(4, "big"), "123456"),
        ("bcd", 3, bytes.fromhex("000098765432"), "123456789012"),
        ("float32", 2, bytes.fromhex("4B371B00"), "12345678"),
        ("text", 6, b"SN7E98-654\0\0", "XX1X23-456"),
    ],
)
def test_a_masked_serial_number_still_decodes_and_is_nowhere_else(
    type: str, size: int, raw: bytes, shown: str, order: str
) -> None:
    loaded = library.load("eastron-sdm630", None).map
    old = loaded.register("serial_number")
    assert old is not None
    serial = replace(old, type=type, words=size if type in ("bcd", "text") else None, order=order)  # type: ignore[arg-type]  # two literals
    map = replace(loaded, registers=tuple(serial if r is old else r for r in loaded.registers))
    pairs = [int.from_bytes(raw[n : n + 2], "big") for n in range(0, len(raw), 2)]
    ours = tuple(int.from_bytes(pair, "big") for pair in _pairs(ordered(pairs, order)))  # type: ignore[arg-type]  # a literal
    as_text = (b"S/N " + (raw.strip(b"\0") if type == "text" else str(SERIAL).encode()) + b" ok").ljust(24)
    made = Recording(
        map=map.name, digest="d", origin="captured", unit=1, rounds=(0.0, 5.0),
        pieces=(
            Piece("holding", 0xFC00, ours + (0x0070,) * (size == 2)),
            Piece("input", 0x0200, (7, *pairs, 9)),  # the same number in another place, high word first
            Piece("input", 0x0300, tuple(int.from_bytes(pair, "big") for pair in _pairs(as_text))),
            Piece("holding", 0xFC00, ours, round=2),
        ),
    )  # fmt: skip
    hidden = masked(map, made)
    assert hidden.masked == ("serial_number",)
    for number in (1, 2):
        seen = values(map, hidden, number)["serial_number"]
        assert (f"{seen:f}" if isinstance(seen, Decimal) else seen) == shown
    flat = [b"".join(word.to_bytes(2, "big") for word in piece.words) for piece in hidden.pieces]
    needle = raw.strip(b"\0")
    assert not any(needle in some for some in flat)
    assert hidden.pieces[1].words[0] == 7 and hidden.pieces[1].words[-1] == 9
    if type == "text" or raw == SERIAL.to_bytes(4, "big"):
        assert (b"S/N " + shown.encode() + b" ok") in flat[2]
    assert any(needle in b"".join(word.to_bytes(2, "big") for word in piece.words) for piece in made.pieces)
    assert "Masked before this was written: serial_number." in text(hidden)
    assert masked(map, hidden).pieces == hidden.pieces


def _pairs(raw: bytes) -> list[bytes]:
    return [raw[n : n + 2] for n in range(0, len(raw), 2)]


def test_a_serial_number_in_a_text_whose_bytes_are_swapped_is_masked_as_well() -> None:
    map = library.load("eastron-sdm630", None).map
    swapped = tuple(int.from_bytes(pair[::-1], "big") for pair in _pairs(b"no 23459871 "))
    own = Piece("holding", 0xFC00, (SERIAL >> 16, SERIAL & 0xFFFF))
    made = Recording(
        map=map.name, digest="d", origin="captured", unit=1, pieces=(own, Piece("input", 0x0300, swapped))
    )  # fmt: skip
    hidden = masked(map, made).pieces[1]
    assert b"".join(word.to_bytes(2, "little") for word in hidden.words) == b"no 12345678 "


def test_a_serial_number_that_is_not_there_is_not_made_up() -> None:
    map = library.load("eastron-sdm630", None).map
    made = Recording(map=map.name, digest="d", origin="captured", unit=1, pieces=(Piece("holding", 0xFC00, (0, 0)),))
    assert masked(map, made) == made


# --- the display --------------------------------------------------------------------------------------------------


def test_what_the_display_shows_is_compared_to_its_last_digit() -> None:
    map = library.load("eastron-sdm630", None).map
    piece = Piece("input", 0x004A, (0x4721, 0x0EB8))  # 41230.71875 as float32
    made = Recording(
        map=map.name, digest="d", origin="synthetic", unit=1, pieces=(piece,),
        display={"energy_export": "41230.7", "energy_import": "5"},
    )  # fmt: skip
    assert compared(map, made) == (
        Compared("energy_export", "41230.7", "41230.72", True),
        Compared("energy_import", "5", "", False),
    )
    for shown, same in (
        ("41230.72", True),
        ("41230.8", True),
        ("41230.9", False),
        ("4123.07", False),
        ("41230", True),
        ("41230.7 kWh", True),
        ("41.2307 MWh", True),
        ("41230718 Wh", False),  # the register shows 41230720
        ("41230.7 Wh", False),
        ("41230.7 MWh", False),
        ("41230.7 kvarh", False),
        ("41230.7 miles", False),
    ):
        assert compared(map, replace(made, display={"energy_export": shown}))[0].agrees is same, shown
    assert compared(map, replace(made, display={"energy_export": "41.2 MWh"}))[0].decoded == "41.23072 MWh"
    # a counter that went on while somebody read its display
    assert compared(map, replace(made, origin="captured", display={"energy_export": "41229.9"}))[0].agrees
    assert not compared(map, replace(made, origin="captured", display={"energy_export": "4123.07"}))[0].agrees


def test_model_and_firmware_are_what_the_device_says() -> None:
    map = library.load("huawei-sun2000", None).map
    text_ = b"SUN2000-10KTL-M1".ljust(30, b"\0")
    pieces = (Piece("holding", 30000, tuple(int.from_bytes(pair, "big") for pair in _pairs(text_))),)
    made = Recording(map=map.name, digest="d", origin="captured", unit=1, pieces=pieces)
    assert named(map, made) == ("SUN2000-10KTL-M1", "unknown")
    assert replace(made, model="SUN2000-10KTL-M1").file == "huawei-sun2000/sun2000-10ktl-m1_unknown.toml"

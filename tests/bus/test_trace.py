"""What a bus remembers of its line, from a real port over a real pseudo-terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core.registers import Timing
from heliograph.ports import FRAMES
from heliograph.rehearsal.frames import rtu
from heliograph.rehearsal.line import Line, OtherMaster, Wire
from heliograph.rehearsal.meter import SimulatedMeter


def test_the_last_frames_of_a_line_are_remembered_as_they_were_sent_and_heard() -> None:
    map = library.load("eastron-sdm630").map
    meter = SimulatedMeter(map, clock=lambda: datetime(2026, 3, 14, 11, tzinfo=UTC), unit=1)
    with Line(Wire({1: meter}, baud=115200)) as line:
        bus = open_bus(line.url)
        try:
            words = bus.read(1, "input", 0x46, 2, Timing(timeout=2))
            frames = list(bus.counters.frames)
            for _ in range(FRAMES):
                bus.read(1, "input", 0x46, 2, Timing(timeout=2))
        finally:
            bus.close()
    asked, *heard = frames
    assert asked.sent
    assert asked.data == bytes.fromhex("01 04 0046 0002 90 1e")
    assert not any(frame.sent for frame in heard)
    answer = b"".join(frame.data for frame in heard)
    assert answer[:3] == bytes.fromhex("01 04 04")
    assert answer[3:7] == b"".join(word.to_bytes(2, "big") for word in words)
    assert asked.at <= heard[-1].at
    assert len(bus.counters.frames) == FRAMES


def test_a_bus_hears_what_others_say_and_says_nothing_itself() -> None:
    map = library.load("eastron-sdm630").map
    meter = SimulatedMeter(map, clock=lambda: datetime(2026, 3, 14, 11, tzinfo=UTC), unit=1)
    other = OtherMaster(rtu(1, bytes.fromhex("04 0046 0002")), every=0.5)
    with Line(Wire({1: meter}, baud=115200, other=other)) as line:
        bus = open_bus(line.url)
        try:
            heard = b"".join(frame.data for frame in bus.hear(1.2))
            assert bus.counters.requests == 0
        finally:
            bus.close()
    assert other.request in heard
    assert rtu(1, meter.answer(other.request[1:-2]) or b"") in heard
    assert line.counts["requests"] == line.counts["other master"]

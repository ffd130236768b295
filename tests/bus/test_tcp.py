"""Modbus TCP, one exchange at a time in virtual time: numbers of requests, lost connections, other people's frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from heliograph.bus.modbus import open_bus
from heliograph.core.errors import BusGarbled, BusRefused, BusTimeout, BusUnreachable
from heliograph.core.registers import Timing
from heliograph.ports import Bus
from tests.bus.virtual import VirtualLine

TIMING = Timing(timeout=1.0, retries=0)


def frame(number: int, pdu: bytes, unit: int = 3) -> bytes:
    """The header of Modbus TCP (Modbus messaging on TCP/IP 1.0b, 3.1.3) before the data unit."""
    return number.to_bytes(2, "big") + bytes(2) + (len(pdu) + 1).to_bytes(2, "big") + bytes((unit,)) + pdu


def words(*values: int) -> bytes:
    return bytes((4, 2 * len(values))) + b"".join(value.to_bytes(2, "big") for value in values)


RIGHT = words(0x4248, 0x1234)


class Connection(VirtualLine):
    """A connection that the other side may cut; nothing on it takes time by itself."""

    paced = False

    def __init__(self, hear: Callable[[VirtualLine, bytes], None]) -> None:
        super().__init__(hear, character=1e-12)
        self.character = 0.0
        self.cut_at = math.inf
        self.unreachable = False

    def open(self) -> bool:
        if self.unreachable:
            raise BusUnreachable("192.168.1.50:502: no route to host", hint="Check the cable")
        fresh = super().open()
        if fresh:
            self.cut_at = math.inf
            self._talks.clear()
        return fresh

    def read(self, most: int, deadline: float) -> bytes:
        data = super().read(most, min(deadline, self.cut_at))
        if not data and self.now >= self.cut_at:
            self.close()
            raise BusUnreachable("192.168.1.50:502: connection reset by peer", hint="Check the cable")
        return data


@dataclass
class Script:
    """For each request: what is said how many seconds later; the frame is made from the request's number."""

    answers: list[Sequence[tuple[float, Callable[[int], bytes]]]]

    def __post_init__(self) -> None:
        self.asked: list[tuple[float, bytes]] = []

    def hear(self, line: VirtualLine, request: bytes) -> None:
        self.asked.append((line.now, request))
        for after, make in self.answers.pop(0) if self.answers else ():
            line.speak(line.now + after, make(int.from_bytes(request[:2], "big")))


def right(pdu: bytes = RIGHT, unit: int = 3) -> Callable[[int], bytes]:
    return lambda number: frame(number, pdu, unit)


def a_bus(*answers: Sequence[tuple[float, Callable[[int], bytes]]]) -> tuple[Bus, Connection, Script]:
    script = Script(list(answers))
    line = Connection(script.hear)
    return open_bus("tcp://192.168.1.50:502", wire=lambda _: line), line, script


def ask(bus: Bus, timing: Timing = TIMING, count: int = 2) -> tuple[int, ...]:
    return bus.read(3, "input", 0x48, count, timing)


def test_each_request_has_a_number_of_its_own() -> None:
    bus, _, script = a_bus(*[[(0.01, right())]] * 3)
    for _ in range(3):
        assert ask(bus) == (0x4248, 0x1234)
    assert [request for _, request in script.asked] == [
        frame(number, bytes.fromhex("04 0048 0002")) for number in (1, 2, 3)
    ]


def test_the_number_starts_again_after_its_last() -> None:
    bus, _, script = a_bus(*[[(0.0, right())]] * 65_537)
    for _ in range(65_537):
        ask(bus)
    assert [int.from_bytes(request[:2], "big") for _, request in script.asked[-3:]] == [65_535, 1, 2]


def test_a_late_answer_is_skipped_and_counted() -> None:
    """One early piece keeps the connection, so that the late answer comes over the same one."""
    late = frame(1, words(0xDEAD, 0xBEEF))
    bus, line, _ = a_bus([(0.9, lambda _: late[:1]), (1.3, lambda _: late[1:])], [(0.6, right())])
    with pytest.raises(BusTimeout, match=r"^no answer from unit 3, input 0x0048\+2 within 1 s$"):
        ask(bus)
    assert ask(bus) == (0x4248, 0x1234)
    assert line.opened == 1
    assert bus.counters.foreign == 1


def test_answers_with_other_numbers_are_skipped_and_counted() -> None:
    other = frame(0x7777, words(9, 9))
    bus, _, _ = a_bus(
        [(0.1, lambda _: other), (0.2, lambda _: other[:5]), (0.3, lambda n: other[5:] + frame(n, RIGHT))]
    )
    assert ask(bus) == (0x4248, 0x1234)
    assert bus.counters.foreign == 2


def test_an_answer_may_come_in_pieces() -> None:
    def piece(n: int) -> Callable[[int], bytes]:
        return lambda number: frame(number, RIGHT)[n : n + 1]

    bus, _, _ = a_bus([(0.1 * n, piece(n)) for n in range(13)])
    assert ask(bus, replace(TIMING, timeout=2.0)) == (0x4248, 0x1234)


GARBAGE: dict[str, tuple[Callable[[int], bytes], str]] = {
    "another unit": (right(unit=4), "unit 4 answered instead"),
    "another function": (right(b"\3" + RIGHT[1:]), "unit 3 answered instead, function 3"),
    "too few registers": (right(words(1)), "an answer of 3 bytes came"),
    "too many registers": (right(words(1, 2, 3)), "an answer of 7 bytes came"),
    "a wrong byte count": (right(b"\4\2" + RIGHT[2:]), "an answer of 5 bytes came"),
    "a refusal with a tail": (right(b"\x84\2\0"), "an answer of 2 bytes came"),
    "plain RTU": (lambda _: bytes.fromhex("03 04 04 42 48 12 34 a0 c6"), r"no Modbus TCP frame came.*03 04 04"),
    "an endless frame": (lambda n: n.to_bytes(2, "big") + b"\0\0\xff\xff\3" + RIGHT, "no Modbus TCP frame came"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_answer_is_not_believed_and_has_a_name(case: str) -> None:
    make, told = GARBAGE[case]
    bus, _, _ = a_bus([(0.1, make)], [(0.1, right())])
    with pytest.raises(BusGarbled, match=told) as caught:
        ask(bus)
    assert caught.value.message.startswith("unit 3, input 0x0048+2: ")
    assert caught.value.hint
    assert (bus.counters.answers, bus.counters.garbled) == (0, 1)
    assert ask(bus) == (0x4248, 0x1234)


def test_a_stream_that_lost_its_frames_is_not_read_on() -> None:
    bus, line, _ = a_bus([(0.1, lambda _: bytes(30))], [(0.1, right())])
    with pytest.raises(BusGarbled):
        ask(bus)
    assert not line.is_open
    ask(bus)
    assert line.opened == 2


@pytest.mark.parametrize("code", [1, 2, 3, 4, 10, 11])
def test_a_refusal_is_told_and_not_repeated(code: int) -> None:
    bus, _, script = a_bus([(0.1, right(bytes((0x84, code))))])
    with pytest.raises(BusRefused) as caught:
        ask(bus, replace(TIMING, retries=3))
    assert caught.value.code == code
    assert len(script.asked) == 1


def test_a_busy_device_is_asked_once_more() -> None:
    bus, _, script = a_bus([(0.1, right(b"\x84\6"))], [(0.1, right())])
    assert ask(bus, replace(TIMING, pause=0.5)) == (0x4248, 0x1234)
    assert script.asked[1][0] - script.asked[0][0] >= 0.6


def test_a_connection_that_fell_asleep_is_made_anew_without_a_lost_question() -> None:
    """SolarEdge closes after two idle minutes."""
    bus, line, _ = a_bus([(0.1, right())], [(0.1, right())])
    ask(bus)
    line.cut_at = line.now + 120
    line.sleep(200)
    assert ask(bus, replace(TIMING, after_connect=1.0)) == (0x4248, 0x1234)
    assert line.opened == 2
    assert bus.counters.requests == 2


def test_a_reset_in_the_middle_is_a_try_that_failed() -> None:
    bus, line, script = a_bus([], [(0.1, right())])
    script_hear = script.hear

    def cutting(line_: VirtualLine, request: bytes) -> None:
        script_hear(line_, request)
        if len(script.asked) == 1:
            line.cut_at = line.now + 0.1

    line._hear = cutting
    began = line.now
    assert ask(bus, replace(TIMING, retries=1, after_connect=0.7)) == (0x4248, 0x1234)
    assert line.opened == 2
    assert line.now - began >= 0.1 + 2 * 0.7


def test_a_reset_without_tries_left_is_told() -> None:
    bus, line, _ = a_bus([])
    line._hear = lambda *_: setattr(line, "cut_at", line.now + 0.1)
    with pytest.raises(BusUnreachable, match="reset by peer"):
        ask(bus)


def test_a_host_that_cannot_be_reached_is_asked_once_for_each_question() -> None:
    bus, line, _ = a_bus()
    line.unreachable = True
    with pytest.raises(BusUnreachable, match="no route"):
        ask(bus, replace(TIMING, retries=5))
    line.unreachable = False
    with pytest.raises(BusTimeout):
        ask(bus)


def test_a_silent_connection_is_given_up_for_it_may_be_half_open() -> None:
    bus, line, _ = a_bus([], [(0.1, right())])
    assert ask(bus, replace(TIMING, retries=1)) == (0x4248, 0x1234)
    assert line.opened == 2


def test_the_pause_between_requests_is_kept() -> None:
    bus, _, script = a_bus(*[[(0.1, right())]] * 3)
    for _ in range(3):
        ask(bus, replace(TIMING, pause=0.3))
    moments = [at for at, _ in script.asked]
    assert [round(later - sooner, 6) for sooner, later in pairwise(moments)] == [0.4, 0.4]


def test_closing_after_a_poll_opens_again_for_the_next() -> None:
    bus, line, _ = a_bus([(0.1, right())], [(0.1, right())])
    ask(bus)
    bus.close()
    assert not line.is_open
    ask(bus)
    assert line.opened == 2

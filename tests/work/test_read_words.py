"""Stretches of registers over real sockets, from devices that refuse long requests, gaps, functions, or to answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core.errors import BusRefused, BusTimeout
from heliograph.core.registers import Function, Timing
from heliograph.ports import Bus
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.work.read_words import FIRST_SILENCES, SILENCES, Heard, read_words

NOON = datetime(2026, 3, 14, 12, 7, tzinfo=UTC)
SDM630 = library.load("eastron-sdm630", None).map
FAST = Timing(timeout=0.05, retries=0)


@contextmanager
def line(**how: object) -> Iterator[tuple[Bus, SimulatedMeter]]:
    map = replace(SDM630, no_gap=())
    meter = SimulatedMeter(map, clock=lambda: NOON, rated_kw=12, **how)  # type: ignore[arg-type]  # a test's wish
    with Server({1: meter}) as server:
        bus = open_bus(server.url)
        yield bus, meter
        bus.close()


def test_a_stretch_comes_in_the_largest_requests() -> None:
    with line() as (bus, meter):
        heard = read_words(bus, 1, "input", 0, 0x4F, Timing(), most=80)
        assert bus.counters.requests == 1 and heard.refused == {}
        assert heard.words == dict(enumerate(meter.words("input", 0, 80, NOON)))  # type: ignore[arg-type]  # no refusal


def test_a_device_that_refuses_long_requests_is_asked_for_less() -> None:
    with line(max_words=10) as (bus, _):
        heard = read_words(bus, 1, "input", 0, 0x4F, Timing(), most=80)
        assert len(heard.words) == 80 and heard.refused == {}
        assert bus.counters.refused < bus.counters.answers + 8


def test_what_is_refused_alone_is_shown_as_such() -> None:
    told: list[int] = []
    with line(gaps="refuse") as (bus, _):
        heard = read_words(bus, 1, "input", 0x28, 0x37, Timing(), most=60, done=told.append)
        undefined = {*range(0x2C, 0x2E), *range(0x32, 0x34), *range(0x36, 0x38)}
        assert set(heard.refused) == undefined
        assert set(heard.words) == set(range(0x28, 0x38)) - undefined
        assert set(heard.refused.values()) == {"refused, exception 2"}
        assert sum(told) == 16


def test_a_unit_that_is_not_there_is_not_asked_for_long() -> None:
    with line() as (bus, _):
        with pytest.raises(BusTimeout):
            read_words(bus, 9, "input", 0, 0x4F, FAST, most=40)
        assert bus.counters.requests == FIRST_SILENCES


class Half:
    """A line whose device says nothing about some addresses, and knows one function."""

    numbered = True

    def __init__(self, silent: range, unknown: Function = "holding") -> None:
        self.silent, self.unknown = silent, unknown
        self.asked: list[tuple[int, int]] = []

    def read(self, _: int, function: Function, address: int, count: int, __: Timing) -> tuple[int, ...]:
        self.asked.append((address, count))
        if function == self.unknown:
            raise BusRefused("illegal function", code=1)
        if any(place in self.silent for place in range(address, address + count)):
            raise BusTimeout("no answer")
        return tuple(range(address, address + count))


def test_silence_about_some_addresses_ends_the_search_in_time() -> None:
    bus = Half(silent=range(40, 80))
    heard: Heard = read_words(bus, 1, "input", 0, 79, FAST, most=20)  # type: ignore[arg-type]  # as much of a bus as is needed
    assert set(heard.words) == set(range(40))
    assert set(heard.refused) == set(range(40, 80))
    assert set(heard.refused.values()) <= {"no answer", "not asked, for too much was silent"}
    assert len(bus.asked) == 2 + SILENCES


def test_an_unknown_function_is_said_at_once() -> None:
    bus = Half(silent=range(0))
    with pytest.raises(BusRefused):
        read_words(bus, 1, "holding", 0, 79, FAST, most=20)  # type: ignore[arg-type]  # as much of a bus as is needed
    assert len(bus.asked) == 1

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from heliograph import clock as clocks
from heliograph.clock import SystemClock
from heliograph.work.witness import witness
from tests.fakes import FakeClock, FakeUplink


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        (timedelta(0), ""),
        (timedelta(seconds=-2), ""),
        (timedelta(seconds=2), ""),
        (timedelta(seconds=4), "4 s behind platform's"),
        (timedelta(hours=-3), "ahead of platform's"),
        (timedelta(days=20_000), "behind platform's"),
    ],
)
def test_a_platform_vouches_for_a_clock_that_agrees_with_it(apart: timedelta, said: str) -> None:
    clock, uplink = FakeClock(), FakeUplink()
    clock.synchronised = False
    uplink.says = (clock.now() + apart).replace(microsecond=0)
    told = witness([uplink], clock)
    assert (told == "") == (said == "") and said in told
    assert clock.trusted() == (said == "")


def test_the_next_platform_is_asked_where_one_does_not_answer() -> None:
    clock, silent, slow, good = FakeClock(), FakeUplink(), FakeUplink(), FakeUplink()
    clock.synchronised = False

    def late() -> datetime:
        clock.leap(seconds=30)
        return clock.now()

    slow.date = late  # type: ignore[method-assign]  # its word is half a minute old
    assert witness([silent, slow], clock) == "" and not clock.trusted()
    good.says = clock.now()
    assert witness([silent, good, slow], clock) == "" and clock.trusted()
    assert (silent.requests, good.requests) == (2, 1)


def test_nobody_is_asked_where_the_kernel_vouches() -> None:
    uplink = FakeUplink()
    assert witness([uplink], FakeClock()) == "" and uplink.requests == 0


class Machine:
    """Stands for the kernel: a wall clock and a boot-time clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.up = 1e9, 100.0
        monkeypatch.setattr(clocks, "kernel_synchronised", lambda: False)
        monkeypatch.setattr(clocks, "_TIMESYNCD", Path("/nowhere"))
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "clock_gettime", lambda _: self.up)

    def go(self, seconds: float) -> None:
        self.wall, self.up = self.wall + seconds, self.up + seconds


def test_a_witness_word_grows_old_and_ends_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, clock = Machine(monkeypatch), SystemClock()
    assert not clock.trusted() and clock.wants_witness()
    clock.vouch()
    assert clock.trusted() and not clock.wants_witness()
    machine.go(2 * 3600)
    assert clock.trusted() and clock.wants_witness()
    machine.go(5 * 3600)
    assert not clock.trusted()
    clock.vouch()
    machine.wall += 3600  # somebody sets the clock
    assert not clock.trusted() and clock.wants_witness()

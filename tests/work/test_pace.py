"""Who waits when something fails: one device for itself, all of them for the platform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from heliograph.core import delivery
from heliograph.core.delivery import DayRow, Parcel, ReadBack, Unknown, Verdict
from heliograph.store import Store
from heliograph.work.deliver import Pace, deliver
from tests.fakes import FakeClock, FakeUplink
from tests.work.test_deliver import make_store, states

SILENT = Verdict("unclear", "timeout", "no answer")


class Broken(FakeUplink):
    """Gives no answer about some devices, or about none; one row a request, so that each device is asked by itself."""

    def __init__(self, clock: FakeClock, broken: set[str] | None, ordered: bool = True) -> None:
        super().__init__(most=1)
        self.ordered = ordered
        self.clock, self.broken = clock, broken
        self.knocks: list[tuple[datetime, str]] = []

    def _fails(self, meter: str) -> bool:
        self.knocks.append((self.clock.now(), meter))
        return self.broken is None or meter in self.broken

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        if self._fails(parcel.rows[0].meter):
            self.requests += 1
            self.clock.leap(seconds=30)
            return {row.id: SILENT for row in parcel.rows}
        return super().send(parcel)

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        if self._fails(rows[0].meter):
            self.requests += 1
            self.clock.leap(seconds=30)
            verdict = Verdict("accepted" if rows[0].state == "accepted" else "unclear", "timeout", "no answer")
            return {row.id: Unknown(verdict) for row in rows}
        return super().ask(rows)


class Dumb(FakeUplink):
    """Takes whatever it is sent, five requests a minute, and fails at every question."""

    ordered = True

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(most=1)
        self.clock = clock
        self.before: tuple[float, int] = (-60.0, 0)

    def room(self) -> float:
        if self.clock.since_boot() - self.before[0] >= 60:
            self.before = (self.clock.since_boot(), self.requests)
        return 1 - (self.requests - self.before[1]) / 5

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        self.requests += 1
        return {row.id: Unknown(Verdict("accepted", "500", "broken")) for row in rows}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = make_store(tmp_path, clock, meters=50, days=2)
    yield opened
    opened.close()


def rounds(uplink: FakeUplink, store: Store, clock: FakeClock, pace: Pace, span: timedelta) -> None:
    end = clock.now() + span
    while clock.now() < end:
        deliver(uplink, store, clock, pace, lambda: 0.5)
        clock.leap(seconds=15)


def test_fifty_meters_knock_like_one_at_a_platform_that_does_not_answer(store: Store, clock: FakeClock) -> None:
    uplink, pace = Broken(clock, None), Pace(clock)
    rounds(uplink, store, clock, pace, timedelta(hours=4))
    assert len(uplink.knocks) < 4 * 60 / 15 + 10, f"{len(uplink.knocks)} requests in four hours"
    uplink.broken = set()
    rounds(uplink, store, clock, pace, timedelta(minutes=16))  # the cap, and one round
    assert states(store)["confirmed"] > 0
    rounds(uplink, store, clock, pace, timedelta(minutes=45))
    assert states(store) == {"confirmed": 100} and uplink.twice == []


def test_a_silent_device_goes_last_and_holds_up_no_other(store: Store, clock: FakeClock) -> None:
    uplink, pace = Broken(clock, {"m0", "m7"}), Pace(clock)
    rounds(uplink, store, clock, pace, timedelta(minutes=30))
    assert states(store) == {"confirmed": 96, "unclear": 2, "due": 2}
    waits = [later - at for (at, _), (later, _) in zip(uplink.knocks, uplink.knocks[1:], strict=False)]
    healthy = [number for number, (_, meter) in enumerate(uplink.knocks) if meter not in ("m0", "m7")]
    assert max(waits[number] for number in healthy[:-1]) <= timedelta(minutes=3)
    knocked = [meter for _, meter in uplink.knocks if meter in ("m0", "m7")]
    assert len(knocked) < 20


def test_one_refusal_of_the_platform_is_one_pause_for_all(store: Store, clock: FakeClock) -> None:
    uplink, pace = FakeUplink(most=1), Pace(clock)
    uplink.script = ["busy"] * 3
    deliver(uplink, store, clock, pace, lambda: 0.5)
    assert uplink.requests == 1
    clock.leap(seconds=89)
    deliver(uplink, store, clock, pace, lambda: 0.5)
    assert uplink.requests == 1


@pytest.mark.parametrize("failures", range(1, 12))
@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_a_platform_is_left_alone_between_floor_and_cap(failures: int, crowded: bool, jitter: float) -> None:
    for busy in (0, failures):
        wait = delivery.leave_alone(failures, busy, None, jitter, crowded=crowded)
        assert delivery.FLOOR <= wait <= delivery.CAP


def test_what_a_platform_asks_for_is_respected_and_chance_comes_on_top() -> None:
    hour = timedelta(hours=1)
    told = [delivery.leave_alone(0, 1, hour, chance, crowded=True) for chance in (0.0, 0.5, 1.0)]
    assert told == [hour, hour + delivery.CAP / 2, hour + delivery.CAP]
    assert delivery.leave_alone(0, 1, timedelta(seconds=20), 0.0, crowded=False) == delivery.FLOOR


def test_a_platform_that_is_back_soon_is_found_soon() -> None:
    """Nobody waits longer than two floors after one failed request, or than the cap after many."""
    assert delivery.leave_alone(1, 0, None, 1.0, crowded=True) == 2 * delivery.FLOOR
    assert delivery.leave_alone(1, 1, None, 1.0, crowded=False) == 2 * delivery.FLOOR


def test_a_platform_that_fails_at_questions_alone_gets_its_days_all_the_same(store: Store, clock: FakeClock) -> None:
    uplink, pace = Dumb(clock), Pace(clock)
    rounds(uplink, store, clock, pace, timedelta(hours=1))
    assert states(store) == {"accepted": 100} and uplink.sends == 100
    assert uplink.requests - uplink.sends < 20

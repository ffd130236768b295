"""Ten thousand gateways come back at once: what they ask of a platform, and how long that takes, in virtual time.

The platform was out of reach for hours, or power came back to a whole region in one second. Then it answers, but no
more than `rate` requests a second on the average of each fixed window of a minute (redex.md section 8); what is beyond
that is refused. Each gateway runs rounds every 15 s in a phase of its own and is driven by the real `Pace`, which gets
the verdicts that the real uplinks read out of the platform's answers. `test_..._as_the_real_thing` compares every
request of a small herd with what the real `deliver()`, uplink and store do.

sends     requests that carry days, per day. At most 2.0.
requests  all of them, per request that is needed without a limit: a send, and a look what became of it. At most 2.0.
peak      the most requests in any fixed minute, refused ones included, against 60 times the rate. At most 3.5.
drained   from the platform's return until the last day is confirmed, against the ideal: at most 1.25. The ideal is the
          time in which the platform can answer the requests needed, and not less than a platform without a limit would
          take: nobody knocks more often than the cap allows at one that is away, or looks sooner than after a minute.

HELIOGRAPH_HERD=10000 HELIOGRAPH_SEED=1 python -m pytest tests/work/test_herd.py -s
"""

from __future__ import annotations

import heapq
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache, partial

import httpx
import pytest

from heliograph.core import delivery
from heliograph.core.delivery import BEGIN_WITHIN, CAP, FLOOR, DayRow, Verdict
from heliograph.core.site import spread_offset
from heliograph.uplink.gate import Gate
from heliograph.uplink.http import Http
from heliograph.uplink.redex import DIALECTS, Redex
from heliograph.uplink.tokens import Secret, StaticToken
from heliograph.work.deliver import Pace, deliver
from tests.fakes import FakeClock, in_memory
from tests.work.test_deliver import make_store

HERD = int(os.environ.get("HELIOGRAPH_HERD", "10000"))
SEED = int(os.environ.get("HELIOGRAPH_SEED", "20260314"))
BEGIN = datetime(2026, 3, 14, 16, tzinfo=UTC)
MINUTE = 60
ROUND = 15.0
OUTAGE = 4 * 3600.0
SPREAD = 7200.0


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


@dataclass
class Gateway:
    pace: Pace
    phase: float
    """Of its rounds, from 0 to 15 s."""
    due: float
    """When its days may leave: the nightly offset, or the wait after a start."""
    sends: int
    """Requests its days take."""
    together: bool = False
    """One look tells about all requests (D-REC), else each has its own (REDEX)."""
    looks: list[float] = field(default_factory=list)
    """When it may look what became of an accepted request."""

    def wake(self, ready: float) -> float:
        """The first round at which something can be done; infinite when all is done."""
        wanted = self.looks + [self.due] * (self.sends > 0)
        if not wanted:
            return math.inf
        rounds = math.ceil((max(min(wanted), self.pace.ends, ready) - self.phase) / ROUND - 1e-9)
        return self.phase + ROUND * max(0, rounds)

    def copy(self) -> Gateway:
        return replace(self, pace=replace(self.pace), looks=list(self.looks))


@dataclass
class Platform:
    """Answers `rate` requests a second on the average of each fixed minute after it came back, and refuses the rest."""

    rate: float
    back: float
    kind: str = "none"
    """What stands in the Retry-After of a refusal: none, right, zero, past or text."""
    arrived: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    total: int = 0

    def answer(self, now: float) -> str | None:
        """None: it did. Else the Retry-After of its refusal."""
        minute = int((now - self.back) // MINUTE)
        self.total += 1
        self.arrived[minute] += 1
        if self.answered[minute] < self.rate * MINUTE:
            self.answered[minute] += 1
            return None
        left = math.ceil(self.back + (minute + 1) * MINUTE - now)
        texts = {"none": "", "right": str(left), "zero": "0", "text": "soon"}
        return texts.get(self.kind) or "Sat, 14 Mar 2026 00:00:00 GMT" * (self.kind == "past")


def redex(
    answer: Callable[[httpx.Request], httpx.Response], now: Callable[[], datetime], gate: Gate | None = None
) -> Redex:
    http = Http("https://platform.example", transport=httpx.MockTransport(answer), gate=gate)
    return Redex("platform", http, DIALECTS["grouped-2024"], StaticToken(Secret(env="T", environ={"T": "t"})), now)


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)


def refusal(after: str) -> httpx.Response:
    return httpx.Response(429, headers={"Retry-After": after} if after else {}, content=b"Too Many Requests")


ROW = DayRow(1, "roof", "INV-1", date(2026, 3, 14), at(-86400), at(0), 1000, 1000)


def read(answer: Callable[[httpx.Request], httpx.Response]) -> Verdict:
    """What the real uplink makes of an answer."""
    uplink = redex(answer, lambda: BEGIN)
    parcel = uplink.pack([ROW])
    assert parcel is not None
    return uplink.send(parcel)[1]


@cache
def refused(after: str) -> Verdict:
    return read(lambda _: refusal(after))


@dataclass
class Herd:
    """The gateways and what they do until everything is delivered."""

    gateways: list[Gateway]
    chance: random.Random
    clock: FakeClock
    log: list[tuple[float, int, str]] = field(default_factory=list)
    """Each request, where it is asked for."""
    wakes: list[tuple[float, int]] = field(default_factory=list)
    done: float = 0.0

    def run(self, platform: Platform, until: float = math.inf, logged: bool = False) -> None:
        down = read(unreachable)
        wakes = self.wakes or [(one.wake(0.0), number) for number, one in enumerate(self.gateways)]
        heapq.heapify(wakes)
        while wakes and wakes[0][0] < until:
            now, number = heapq.heappop(wakes)
            one = self.gateways[number]
            self.clock.at, self.clock.up = at(now), now
            for kind in self._round(one, platform, now, down):
                if logged:
                    self.log.append((now, number, kind))
            if (later := one.wake(now + 0.001)) < math.inf:
                heapq.heappush(wakes, (later, number))
            else:
                self.done = max(self.done, now)
        self.wakes = wakes

    def _round(self, one: Gateway, platform: Platform, now: float, down: Verdict) -> Iterator[str]:
        """As `deliver` does it: what became of earlier requests first, then new ones, until something is in the way."""
        while due := [look for look in one.looks if look <= now + 0.001]:
            yield "look"
            if not self._asked(one, platform, now, down):
                return
            for look in due if one.together else due[:1]:
                one.looks.remove(look)
        while one.sends and one.due <= now:
            yield "send"
            if not self._asked(one, platform, now, down):
                return
            one.sends -= 1
            one.looks.append(now + FLOOR.total_seconds())

    def _asked(self, one: Gateway, platform: Platform, now: float, down: Verdict) -> bool:
        chance = self.chance.random()
        if now < platform.back:
            verdict = down
        else:
            after = platform.answer(now)
            if after is None:
                one.pace.heard(set())
                return True
            verdict = refused(after)
        one.pace.refused(at(now), verdict, chance)
        return False

    def copy(self) -> Herd:
        gateways = [one.copy() for one in self.gateways]
        return Herd(gateways, random.Random(self.chance.random()), self.clock, [], list(self.wakes))


def herd(size: int, scene: str, seed: int, sends: int = 1, *, together: bool = False) -> Herd:
    """`night`: the outage begins before the nightly push; `power`: everybody starts in the same second."""
    chance, clock = random.Random(seed), FakeClock(BEGIN)
    gateways = []
    for number in range(size):
        spread = timedelta(seconds=SPREAD)
        wait = spread_offset(f"sg-{number:05}", "redex", spread) if scene == "night" else BEGIN_WITHIN * chance.random()
        phase = round(ROUND * chance.random(), 3)
        gateways.append(Gateway(Pace(clock), phase, round(wait.total_seconds(), 3), sends, together))
    return Herd(gateways, chance, clock)


@dataclass(frozen=True)
class Figures:
    sends: float
    requests: float
    peak: float
    drained: float
    took: float

    @property
    def good(self) -> bool:
        return self.sends <= 2.0 and self.requests <= 2.0 and self.peak <= 3.5 and self.drained <= 1.25

    def __str__(self) -> str:
        return f"{self.sends:8.2f} {self.requests:8.2f} {self.peak:8.2f} {self.drained:8.2f} {self.took / 60:7.1f} min"


def drain(waiting: Herd, rate: float, back: float, kind: str = "none") -> Figures:
    """`rate` is for ten thousand, in requests a second; a smaller herd has a platform that is smaller by as much."""
    here = waiting.copy()
    platform = Platform(rate * len(here.gateways) / 10_000, back, kind)
    sends = sum(one.sends for one in here.gateways)
    needed = sends + sum(1 if one.together else one.sends for one in here.gateways)
    here.run(platform, logged=True)
    tried = sum(kind == "send" for _, _, kind in here.log)
    ideal = max(needed / platform.rate, (CAP + FLOOR).total_seconds() + ROUND)
    peak = max(platform.arrived.values()) / (platform.rate * MINUTE)
    return Figures(tried / sends, platform.total / needed, peak, (here.done - back) / ideal, here.done - back)


def told(title: str, rows: Mapping[int, Figures]) -> list[bool]:
    """Prints the table; which of it is good."""
    print(f"\n{title}, {HERD} gateways, seed {SEED}\n  rate/s    sends requests     peak  drained")
    for name, found in rows.items():
        print(f"{name:>8} {found}{'' if found.good else '   beyond the limits'}")
    return [found.good for found in rows.values()]


RATES = (14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 30, 50, 100)
"""A platform that needs half an hour for ten thousand days, up to one that hardly has to refuse anybody."""


@cache
def after_outage(sends: int = 1, *, together: bool = False) -> Herd:
    here = herd(HERD, "night", SEED, sends, together=together)
    here.run(Platform(1, OUTAGE), until=OUTAGE)
    return here


def test_a_fleet_comes_back_after_a_night_without_the_platform() -> None:
    waiting = after_outage()
    assert all(told("after an outage of four hours", {rate: drain(waiting, rate, OUTAGE) for rate in RATES}))


def test_power_comes_back_to_a_whole_region_in_one_second() -> None:
    waiting = herd(HERD, "power", SEED)
    assert all(told("after a power cut", {rate: drain(waiting, rate, 0.0) for rate in RATES}))


@pytest.mark.parametrize("kind", ["right", "zero", "past", "text"])
def test_whatever_stands_in_retry_after_nobody_hurries(kind: str) -> None:
    waiting = after_outage()
    rows = {rate: drain(waiting, rate, OUTAGE, kind) for rate in (14, 18, 22, 50)}
    assert all(told(f"Retry-After: {kind}", rows))


def test_several_days_take_fewer_requests_each() -> None:
    """D-REC: a request for each of three days, and one look for all. Its platform has twice as much to do."""
    waiting = after_outage(sends=3, together=True)
    assert all(
        told("three days each, one by one", {rate: drain(waiting, rate, OUTAGE) for rate in (28, 32, 40, 50, 100)})
    )


def test_a_slower_platform_is_not_reached_by_these_figures_but_everything_arrives() -> None:
    """The honest boundary: the cap of 15 min sets how often ten thousand knock, and that is more than it can answer."""
    waiting = after_outage()
    rows = {rate: drain(waiting, rate, OUTAGE) for rate in (2, 5, 8, 11)}
    assert not any(told("beyond", rows))
    assert all(found.drained <= 1.6 for found in rows.values())


# Negative controls: what the shape of the waits is for.


@pytest.mark.parametrize(
    ("name", "away", "busy"),
    [
        ("no chance at all", [(60, 60), (120, 120), (240, 240), (480, 480), (900, 900)], [(240, 240)]),
        ("always a minute", [(60, 60)], [(60, 60)]),
        ("full jitter from floor to cap", [(60, 120), (60, 240), (60, 480), (60, 900)], [(60, 900)]),
        ("as long for a busy platform as for one that is away", delivery.AWAY, [(810, 900)]),
    ],
)
def test_other_waits_do_not_meet_the_figures(
    name: str, away: Sequence[tuple[int, int]], busy: Sequence[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "AWAY", tuple(away))
    monkeypatch.setattr(delivery, "BUSY", tuple(busy))
    waiting = herd(HERD, "power", SEED)
    if name == "no chance at all":
        for one in waiting.gateways:
            one.due = 0.0
    waiting.run(Platform(1, 3600.0), until=3600.0)
    assert not any(told(name, {rate: drain(waiting, rate, 3600.0) for rate in (14, 18, 22)}))


def test_a_single_gateway_is_not_sluggish_after_a_short_outage() -> None:
    """Five minutes without the platform, at any moment of a night: a day is at most cap and floor late."""
    waiting = herd(2000, "night", SEED)
    latest = 0.0
    for number, one in enumerate(waiting.gateways):
        alone = Herd([one], random.Random(SEED + number), waiting.clock)
        away = max(0.0, one.due - 300 * alone.chance.random())
        alone.run(Platform(1e6, away + 300))
        latest = max(latest, alone.done - FLOOR.total_seconds() - max(one.due, away + 300))
    print(f"seed {SEED}: sent {latest / 60:.1f} min after the platform's return at the latest")
    assert latest <= (CAP + FLOOR).total_seconds()


# The real thing


def really(real: Herd, answer: Callable[[int, httpx.Request], httpx.Response]) -> list[float]:
    """`deliver`, the uplink, its gate, the store and all; when each gateway's day was confirmed."""
    clock, done = real.clock, [math.inf] * len(real.gateways)
    with in_memory() as folder, ExitStack() as stack:
        stores, uplinks, wakes = [], [], []
        for number, one in enumerate(real.gateways):
            store = make_store(folder / str(number), FakeClock(), meters=1, days=1)
            stack.callback(store.close)
            stores.append(store)
            uplinks.append(redex(partial(answer, number), clock.now, Gate(10, clock)))
            wakes.append((one.wake(0.0), number))
        heapq.heapify(wakes)
        while wakes:
            now, number = heapq.heappop(wakes)
            clock.at, clock.up, one = at(now), now, real.gateways[number]
            deliver(uplinks[number], stores[number], clock, one.pace, real.chance.random)
            (row,) = stores[number].outbox.shown("platform")
            if row["state"] == "confirmed":
                done[number] = now
                continue
            one.due = (row["due"] - BEGIN).total_seconds()
            heapq.heappush(wakes, (one.wake(now + 0.001), number))
    return done


def told_so(data: object) -> httpx.Response:
    meta = {"TotalPage": 1, "TotalItems": len(data) if isinstance(data, list) else 1}
    envelope = {"Data": data, "StatusCode": 200, "Errors": [], "Message": "Success", "Meta": meta}
    return httpx.Response(200, json=envelope)


def test_a_small_herd_of_the_real_thing_makes_the_same_requests_at_the_same_moments() -> None:
    """Against the model, request by request."""
    size, back, rate = 200, 1800.0, 16.0
    model = herd(size, "power", SEED)
    model.run(Platform(rate * size / 10_000, back), logged=True)
    real = herd(size, "power", SEED)
    platform, log, clock = Platform(rate * size / 10_000, back), list[tuple[float, int, str]](), real.clock

    def answer(number: int, request: httpx.Request) -> httpx.Response:
        log.append((clock.up, number, "send" if request.method == "POST" else "look"))
        if clock.up < back:
            return unreachable(request)
        if (after := platform.answer(clock.up)) is not None:
            return refusal(after)
        return told_so({"ProcessId": 1, "Status": "Success"})

    assert max(really(real, answer)) == model.done
    assert len(log) > 4 * size
    assert log == model.log


def test_a_platform_that_refuses_with_503_is_spared_but_takes_longer() -> None:
    """The honest boundary: what got a 503 may be stored, so it is read back; an absence is believed in an hour."""
    size, back, rate = 100, 3600.0, 20.0
    real = herd(size, "power", SEED)
    platform, clock, asked, stored = Platform(rate * size / 10_000, back), real.clock, Counter[str](), Counter[int]()

    def answer(number: int, request: httpx.Request) -> httpx.Response:
        kind = "send" if request.method == "POST" else "follow" if "status" in request.url.path else "read"
        asked[kind] += clock.up >= back
        if clock.up < back or platform.answer(clock.up) is not None:
            return httpx.Response(503, content=b"<html>Service Unavailable", headers={"Content-Type": "text/html"})
        if kind == "read":
            ours = {"RemoteInvId": "STR-m0", "Timestamp": "2026-03-14", "PeriodProductionInKWh": "1.000"}
            return told_so([ours] if stored[number] else [])
        stored[number] += kind == "send"
        return told_so({"ProcessId": 1, "Status": "Success"})

    done = max(really(real, answer)) - back
    needed = 3 * size  # to read back what the outage left unclear, to send, and to look
    peak = max(platform.arrived.values()) / (platform.rate * MINUTE)
    print(f"503, seed {SEED}: {dict(asked)}, peak {peak:.2f}, drained after {done / 60:.0f} min")
    assert set(stored.values()) == {1} and len(stored) == size
    assert asked["send"] <= 2.0 * size and sum(asked.values()) <= 2.2 * needed and peak <= 3.5
    assert done <= 1.25 * needed / platform.rate + 2 * 3600 + CAP.total_seconds()

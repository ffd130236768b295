"""No minute holds more requests than allowed: at any alignment of the platform's windows, on clocks that run apart.

The real uplink delivers through the real gate to the strict stand-in, in virtual time.
HELIOGRAPH_RATE_RUNS=2000 HELIOGRAPH_SEED=1 .venv/bin/python -m pytest tests/uplink/test_gate.py -n 0
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from heliograph import app
from heliograph.clock import SystemClock
from heliograph.core import delivery
from heliograph.rehearsal import sandbox_redex
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.store import Store
from heliograph.uplink.gate import EXCHANGE, Gate
from heliograph.uplink.http import Answer, Http, NotSent
from heliograph.uplink.redex import Redex, dialect
from heliograph.uplink.tokens import Login, Secret, redex_login
from heliograph.work.deliver import Pace, deliver
from heliograph.work.reconcile import reconcile
from tests.fakes import SINGAPORE, FakeClock, in_memory
from tests.work.test_deliver import make_store

RUNS = int(os.environ.get("HELIOGRAPH_RATE_RUNS", "8"))
SEED = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.randrange(1, 2**31)
LIMIT = 60
DRIFT = 0.01


class Killed(BaseException):
    """The process, in the middle of an exchange."""


class World:
    """One true time; a gateway and a platform whose clocks began anywhere and run apart by a percent either way."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.t = 0.0
        self.clock = DriftingClock(self, 1 + chance.uniform(-DRIFT, DRIFT))
        self._ahead, self._rate = chance.uniform(0, 3600), 1 + chance.uniform(-DRIFT, DRIFT)
        self.late: list[tuple[float, Callable[[], object]]] = []
        """Requests that the gateway gave up on, and that arrive nevertheless."""

    def there(self) -> datetime:
        """The platform's clock; the stored days were over long before."""
        return datetime(2026, 8, 1, tzinfo=UTC) + timedelta(seconds=self._ahead + self.t * self._rate)

    def go(self, seconds: float) -> None:
        end = self.t + seconds
        self.late.sort(key=lambda one: one[0])
        while self.late and self.late[0][0] <= end:
            self.t, arrive = self.late.pop(0)
            arrive()
        self.t = end


class DriftingClock(FakeClock):
    def __init__(self, world: World, rate: float) -> None:
        super().__init__(datetime(2026, 8, 1, tzinfo=UTC))
        self.world, self.speed = world, rate
        self.booted, self.up = 0.0, world.chance.uniform(5, 1e6)

    def now(self) -> datetime:
        return self.at + timedelta(seconds=self.world.t * self.speed)

    def since_boot(self) -> float:
        return self.up + (self.world.t - self.booted) * self.speed

    def sleep(self, seconds: float) -> None:
        self.world.go(seconds / self.speed + 1e-6)

    def boot(self) -> None:
        self.boot_id += "'"
        self.booted, self.up = self.world.t, self.world.chance.uniform(3, 90)


class Line(httpx.BaseTransport):
    """Carries requests to the platform slowly, loses answers, brings requests after their time, and kills."""

    def __init__(self, world: World, sandbox: Sandbox, kill: float) -> None:
        self.world, self.sandbox, self.kill = world, sandbox, kill
        self.arrived: list[float] = []
        """By the platform's clock."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        chance, body = self.world.chance, request.read()

        def arrive() -> httpx.Response:
            self.arrived.append(self.world.there().timestamp())
            answer = self.sandbox.handle(
                request.method, request.url.path, request.url.query.decode(), dict(request.headers), body
            )
            return httpx.Response(answer.status, headers=list(answer.headers), content=answer.body)

        if chance.random() < self.kill / 2:
            self.world.late.append((self.world.t + chance.uniform(0, 5), arrive))
            raise Killed
        if chance.random() < 0.04:
            self.world.late.append((self.world.t + chance.uniform(20, 85), arrive))
            self.world.go(30)
            raise httpx.ReadTimeout("no answer")
        took = chance.choice((0.02, 0.02, 0.02, 0.1, 2.0)) * chance.uniform(0.5, 1.5)
        before = took * chance.random()
        self.world.go(before)
        response = arrive()
        self.world.go(took - before)
        if chance.random() < self.kill / 2:
            raise Killed
        return response


def most_in_a_minute(moments: Sequence[float], length: float = 60.0) -> int:
    """In any minute, wherever it begins: a fixed window of any alignment holds no more."""
    moments = sorted(moments)
    first = most = 0
    for last, moment in enumerate(moments):
        while moment - moments[first] >= length:
            first += 1
        most = max(most, last - first + 1)
    return most


def login(http: Http, sandbox: Sandbox) -> Login:
    secrets = [Secret(env="S", environ={"S": text}) for text in sandbox.redex.credentials.values()]
    return redex_login(http, *secrets)


def live(folder: Path, chance: random.Random, *, busy: bool, gated: bool = True) -> Line:
    """A backlog is delivered, read back in small pages and compared, with logins, lost answers, kills and reboots.

    `busy`: in few requests and without process ids, so that reading back comes all at once.
    """
    world = World(chance)
    sandbox = Sandbox(world.there, timezone=SINGAPORE.key, wait=lambda _: False)
    sandbox.redex.process_ids = not busy
    line = Line(world, sandbox, kill=0.01)
    store = make_store(folder, FakeClock(), meters=chance.randrange(4, 7), days=40)
    pieces = dialect("grouped-2024", max_records=250 if busy else chance.choice((5, 50)))
    lives = 0
    while True:
        gate = Gate(LIMIT, world.clock, folder / "requests") if gated else None
        http = Http("https://platform.example", gate=gate, transport=line)
        tokens = login(http, sandbox)
        uplink = Redex("platform", http, pieces, tokens, world.clock.now, absent_after=timedelta(minutes=3))
        pace = Pace(world.clock)
        try:
            for _ in range(4000):
                if set(store.outbox.counts()["platform"]) == {"confirmed"}:
                    if lives:
                        reconcile(uplink, store, world.clock, pace)
                    store.close()
                    return line
                deliver(uplink, store, world.clock, pace, chance.random)
                if chance.random() < 0.02:
                    sandbox.revoke()
                world.go(chance.choice((1.0, 15.0)))
            raise AssertionError(f"seed {SEED}: not delivered: {store.outbox.counts()}")
        except Killed:
            lives += 1
            store.close()
            if chance.random() < 0.3:
                world.clock.boot()
            world.go(chance.uniform(0.1, 10))
            store = Store.writer(folder)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a meter back takes twenty requests."""
    monkeypatch.setattr(sandbox_redex, "PAGE_MAX", 2)


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as path:
        yield path


@pytest.mark.usefixtures("small_pages")
def test_the_accounts_sixty_are_kept_in_any_minute_whatever_happens(folder: Path) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    most = []
    for run in range(RUNS):
        line = live(folder / str(run), random.Random(SEED + run), busy=run % 2 == 0)
        most.append(most_in_a_minute(line.arrived))
        assert most[-1] <= LIMIT, f"seed {SEED + run}"
        assert [str(one) for one in line.sandbox.violations] == [], f"seed {SEED + run}"
    print(f"most in any minute of {RUNS} lives: {sorted(most)}")


@pytest.mark.usefixtures("small_pages")
def test_without_the_gate_the_platform_would_have_refused(folder: Path) -> None:
    rules: set[str] = set()
    for run in range(8 * RUNS):  # until the first; not each life is busy enough
        if not rules:
            line = live(folder / str(run), random.Random(SEED + run), busy=True, gated=False)
            rules |= {one.rule for one in line.sandbox.violations}
    assert rules == {"rate-account"}, f"seed {SEED}"


def sending(most: int, seconds: float, chance: random.Random, ahead: float) -> list[float]:
    """A gateway that sends as fast as it may, seen from the platform."""
    world, arrived = World(chance), []
    world.t = ahead

    def answer(_: httpx.Request) -> httpx.Response:
        before, took = chance.uniform(0, 2), chance.uniform(0, 2)
        world.go(before)
        arrived.append(world.t)
        world.go(took)
        return httpx.Response(200)

    http = Http("https://p.example", gate=Gate(most, world.clock), transport=httpx.MockTransport(answer))
    while world.t < seconds:
        http.exchange("GET", "/")
    return arrived


def test_six_gateways_at_ten_a_minute_share_one_account() -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    for run in range(RUNS):
        chance = random.Random(SEED + run)
        arrived = [at for _ in range(6) for at in sending(10, 900, chance, chance.uniform(0, 90))]
        assert len(arrived) >= 6 * 10 * 12
        assert most_in_a_minute(arrived) <= LIMIT


def test_a_longer_exchange_counts_for_as_long_as_it_may_have_arrived() -> None:
    clock = FakeClock()
    gate = Gate(2, clock)
    assert gate.enter()
    clock.leap(seconds=100)  # a slow answer: it may have been counted just now
    gate.leave(sent=True, answered=True)
    assert gate.room() == 0.5
    clock.leap(seconds=delivery.MINUTE)
    assert gate.room() == 1.0
    assert gate.enter()
    gate.leave(sent=True, answered=False)
    clock.leap(seconds=delivery.MINUTE)
    assert gate.room() == 0.5, "what got no answer may still arrive"
    clock.leap(seconds=60)
    assert gate.room() == 1.0


def test_a_question_of_many_pages_goes_on_over_minutes() -> None:
    clock = FakeClock()
    asked: list[float] = []

    def answer(_: httpx.Request) -> httpx.Response:
        asked.append(clock.since_boot())
        return httpx.Response(200)

    http = Http("https://p.example", gate=Gate(3, clock), transport=httpx.MockTransport(answer))
    for _ in range(20):
        assert isinstance(http.exchange("GET", "/page"), Answer)
    assert asked[-1] - asked[0] == pytest.approx(6 * delivery.MINUTE)


def test_who_waits_is_let_go_when_the_gateway_stops() -> None:
    """In real time: a thread waits for a minute that never ends."""
    clock = SystemClock("always")
    http = Http("https://p.example", gate=Gate(1, clock), transport=httpx.MockTransport(lambda _: httpx.Response(200)))
    assert isinstance(http.exchange("GET", "/"), Answer)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(http.exchange("POST", "/", body=b"{}")))
    waiting.start()
    http.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert isinstance(found[0], NotSent) and found[0].rule == "stopping"
    assert http.room() == 0.0


@pytest.mark.parametrize("unfinished", [False, True])
def test_the_next_life_knows_what_the_last_one_sent(tmp_path: Path, unfinished: bool) -> None:
    clock, memory = FakeClock(), tmp_path / "requests"
    gate = Gate(4, clock, memory)
    assert gate.room() == 1.0, "a first start does not wait"
    for _ in range(3):
        assert gate.enter()
        if not unfinished:
            gate.leave(sent=True, answered=True)
    clock.leap(seconds=30)
    assert Gate(4, clock, memory).room() == 0.25
    clock.leap(seconds=delivery.MINUTE - 30)
    assert Gate(4, clock, memory).room() == (0.25 if unfinished else 1.0)
    after = Gate(4, clock, memory)
    clock.leap(seconds=delivery.ASTRAY + EXCHANGE)
    assert after.room() == 1.0, "what was under way when the process died counts for no longer than that"


def test_after_a_reboot_requests_count_from_its_first_moment(tmp_path: Path) -> None:
    clock, memory = FakeClock(), tmp_path / "requests"
    assert Gate(4, clock, memory).enter()
    clock.boot_id, clock.up = "boot-2", 20.0
    assert Gate(4, clock, memory).room() == 0.75
    clock.up = delivery.ASTRAY + EXCHANGE
    assert Gate(4, clock, memory).room() == 1.0


@pytest.mark.parametrize("content", [b"", b"boot-1 12x", b"\xff\xfe"])
def test_where_nobody_knows_what_was_sent_a_full_minute_is_taken_for_sent(tmp_path: Path, content: bytes) -> None:
    clock, memory = FakeClock(), tmp_path / "requests"
    memory.write_bytes(content)
    gate = Gate(4, clock, memory)
    assert gate.room() == 0.0
    clock.leap(seconds=delivery.ASTRAY + EXCHANGE)
    assert gate.room() == 1.0


def test_a_card_that_takes_no_note_stops_no_question(tmp_path: Path) -> None:
    gate = Gate(1, FakeClock(), tmp_path / "nowhere" / "requests")
    assert gate.enter()


def test_every_uplink_of_a_site_has_its_gate(tmp_path: Path) -> None:
    text = Path("config.example.toml").read_text(encoding="utf-8")
    config = tmp_path / "config.toml"
    config.write_text(text.replace('data_dir = "/var/lib/heliograph"', f'data_dir = "{tmp_path}"'), encoding="utf-8")
    uplinks = app.load(config, FakeClock()).uplinks()
    assert len(uplinks) == 2
    for uplink in uplinks:
        gate = uplink._http.gate  # type: ignore[attr-defined]  # both have one
        for _ in range(10):  # the default of both
            assert gate.room() > 0
            assert gate.enter()
        assert gate.room() == 0.0 and math.isinf(min(gate._until))

"""The way from a closed day to a confirmed one, with a network and platforms that fail, and a daemon that is killed.

Fifty meters with 200 closed days each for both platforms, 20,000 days on their way: three requests of ten suffer
something, platforms go away altogether or in part, and the daemon is killed again and again, mostly while it delivers.
In the end the platforms hold every watt-hour once. What a platform holds is reckoned from what it wrote down itself,
never from the store.

HELIOGRAPH_DAYS=400 pytest -n 0 -s tests/e2e/test_storm.py runs it by hand with 20,000 days for each of them.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

from heliograph.clock import RehearsalClock
from heliograph.core import daily
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.store import Store
from heliograph.store.connection import FILE
from tests.e2e.backlog import Backlog
from tests.e2e.lives import JOB, STORING, TIMEOUT, End, Order, Wrong
from tests.fakes import SINGAPORE
from tests.store.acknowledged import flaws

METERS = 50
DAYS = int(os.environ.get("HELIOGRAPH_DAYS", "200"))
KILLS = int(os.environ.get("HELIOGRAPH_KILLS", "200"))
FIRST = date(2024, 3, 1)
RATE = 20_000.0
PATIENCE = 1500
ROOT = Path(__file__).parents[2]
# Of each hundred requests thirty suffer one of these.
FAULTS = {
    "drop-before": 0.03,
    "drop-after": 0.04,
    "500-before": 0.02,
    "500-after": 0.03,
    "503": 0.02,
    "truncate": 0.02,
    "cut-json": 0.02,
    "slow": 0.001,  # each costs the time-out
    "429": 0.01,
    "429-bare": 0.01,
    "429-wrong": 0.01,
    "html": 0.01,
    "html-after": 0.02,
    "empty": 0.01,
    "empty-after": 0.01,
    "redirect": 0.01,
    "401": 0.01,
    "leak": 0.01,
    "failed": 0.005,
    "half": 0.005,
}
PARTS = ("redex", "drec", "redex.batch", "redex.status", "redex.read", "drec.send", "drec.read", "drec.login")
LOGINS = {
    "redex": {"api_key": "sandbox-api-key", "client_id": "sandbox-client", "client_secret": "sandbox-secret"},
    "drec": {"username": "gateway@example.org", "password": "sandbox1"},
}
# (what is killed in, how deep, within how many seconds at most, how often of a hundred)
AIMS = (
    (None, JOB, 3.0, 60),
    ("deliver redex", JOB, 0.02, 10),
    ("deliver drec", JOB, 0.02, 10),
    ("deliver redex", STORING, 0.003, 10),
    ("deliver drec", STORING, 0.003, 10),
)


def period_wh(number: int, day: int) -> int:
    """Every twentieth day gives nothing, but the last one does."""
    return 0 if (number + day) % 20 == 7 and day < DAYS - 1 else (number * 7919 + day * 104_729) % 60_000 + 1


@dataclass
class Storm:
    """A backlog, the platforms it goes to, and the process that its lives are forked from."""

    backlog: Backlog
    folder: Path
    clock: RehearsalClock
    platform: Sandbox
    parent: subprocess.Popen[str]
    chance: random.Random

    def life(self, order: Order) -> End:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write(json.dumps(asdict(order)) + "\n")
        self.parent.stdin.flush()
        return End(**json.loads(self.parent.stdout.readline()))

    def weather(self) -> None:
        """Now and then a part of the platforms is gone for a while, or all of them are."""
        if self.chance.random() < 0.1:
            part, kind = self.chance.choice(PARTS), self.chance.choice(("503", "drop-before", "429-bare"))
            length = timedelta(minutes=self.chance.uniform(5, 90))
            self.platform.outage(self.clock.now(), length, kind, part)
        self.platform.away = self.chance.random() < 0.05

    def kill(self, wrong: Wrong = "") -> End:
        self.weather()
        aim, depth, within, _ = self.chance.choices(AIMS, [share for *_, share in AIMS])[0]
        delay = self.chance.uniform(0, within)
        end = self.life(Order(str(self.folder / "config.toml"), delay, aim, depth, only="deliver", wrong=wrong))
        assert end.killed
        return end

    def states(self) -> Counter[str]:
        if not (self.folder / "data" / FILE).exists():
            return Counter()
        with closing(sqlite3.connect(f"file:{self.folder}/data/{FILE}?mode=ro", uri=True)) as raw:
            return Counter(dict(raw.execute("SELECT state, count(*) FROM outbox GROUP BY state")))


@contextmanager
def raging(folder: Path, backlog: Backlog, seed: int) -> Iterator[Storm]:
    now = backlog.end + timedelta(hours=6)
    backlog.fill(folder / "data", now)
    more = {}
    for name, places in LOGINS.items():
        for place, secret in places.items():
            (folder / place).write_text(secret)
        secrets = ", ".join(f'{place} = {{ file = "{folder / place}" }}' for place in places)
        more[name] = f"per_minute = 60\nlogin = {{ {secrets} }}\n"
    # Fifty days a request, so that there are enough requests to fail.
    more["redex"] += "max_records = 50\n"
    clock = RehearsalClock(now, RATE)
    sandbox = Sandbox(
        now=clock.now,
        seed=seed,
        rate=RATE,
        timezone=SINGAPORE.key,
        processing_delay=timedelta(seconds=40),
        slow=timedelta(seconds=2 * TIMEOUT * RATE),
        faults=FAULTS,
        keep=folder / "kept",
    )
    with sandbox as platform, (folder / "errors").open("wb") as errors:
        platforms = {"redex": (platform.url, more["redex"]), "drec": (f"{platform.url}/api", more["drec"])}
        config = backlog.configure(folder, platforms, every="24h")
        command = [sys.executable, "-m", "tests.e2e.lives", now.isoformat(), str(RATE), str(clock._began), str(config)]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as parent:
            try:
                yield Storm(backlog, folder, clock, platform, parent, random.Random(seed))
            finally:
                parent.kill()


def a_seed() -> int:
    return int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))


def test_every_watt_hour_arrives_once_whatever_fails(tmp_path: Path) -> None:
    seed = a_seed()
    print(f"seed {seed}, {METERS} meters, {DAYS} days, {KILLS} kills")
    backlog = Backlog(METERS, DAYS, FIRST, period_wh, ("redex", "drec"))
    with raging(tmp_path, backlog, seed) as storm:
        began, falls = time.monotonic(), Counter[str]()
        kills = 0
        while set(states := storm.states()) != {"confirmed"} or kills < KILLS:
            assert time.monotonic() - began < PATIENCE, f"not delivered by {storm.clock.now()}: {states}"
            end = storm.kill()
            kills += 1
            falls.update(end.busy.keys() or {"nothing" if end.begun else "starting"})
            if kills % 50 == 0:
                print(f"{kills} kills, {time.monotonic() - began:.0f} s: {dict(states)}")
        print(f"{kills} kills in {time.monotonic() - began:.0f} s, {storm.clock.now() - storm.clock._start} rehearsed")
        print(f"killed in {dict(falls)}")
        print(dict(storm.platform.requests), dict(storm.platform.faulted))
        adds_up(storm)
        frugal(storm, kills)


def adds_up(storm: Storm) -> None:
    """Metered, stored and held at the platforms: every day, every watt-hour, once, in order."""
    backlog = storm.backlog
    assert [str(one) for one in storm.platform.violations] == []
    with closing(sqlite3.connect(f"file:{storm.folder}/data/{FILE}?mode=ro", uri=True)) as raw:
        assert flaws(raw) == []
    redex, drec = _kept(storm.folder / "kept")
    for number in range(backlog.meters):
        days = {
            (backlog.first + timedelta(days=day)).isoformat(): backlog.period_wh(number, day)
            for day in range(backlog.days)
        }
        assert redex[backlog.name("redex", number)] == list(days.items())
        assert drec[backlog.name("drec", number)] == list(_merged(days).items())
    store = Store.reader(storm.folder / "data")
    for number in range(backlog.meters):
        first, last = store.days.first_border(f"i{number}"), store.days.last_border(f"i{number}")
        assert first is not None and last is not None
        metered = last.index_wh - first.index_wh
        assert sum(wh for _, wh in redex[backlog.name("redex", number)]) == metered
        assert sum(wh for _, wh in drec[backlog.name("drec", number)]) == metered
    store.close()


def _kept(path: Path) -> tuple[dict[str, list[tuple[str, int]]], dict[str, list[tuple[str, int]]]]:
    """(day, Wh) in the order in which the platforms took them for good, by device."""
    redex: dict[str, list[tuple[str, int]]] = {}
    drec: dict[str, list[tuple[str, int]]] = {}
    for line in path.read_text().splitlines():
        [(kind, event)] = json.loads(line).items()
        if kind == "redex":
            records = event["records"]
            taken = {"Success": len(records), "half": len(records) // 2, "Failed": 0}[event["outcome"]]
            for remote, day, period, _ in records[:taken]:
                redex.setdefault(remote, []).append((day, period // 10))
        elif kind == "drec_read":
            drec.setdefault(event["device"], []).append((event["end"], event["wh"]))
    return redex, drec


def _merged(days: dict[str, int]) -> dict[str, int]:
    """Reads by their end: a day without energy cannot be sent alone, so it is part of the next one."""
    found = {}
    for day, wh in days.items():
        if wh:
            found[daily.start_of(date.fromisoformat(day) + timedelta(days=1), SINGAPORE).isoformat()] = wh
    return found


def frugal(storm: Storm, lives: int) -> None:
    """Requests against those that would have been needed had nothing failed."""
    backlog, requests = storm.backlog, storm.platform.requests
    reads = sum(backlog.period_wh(n, day) > 0 for n in range(backlog.meters) for day in range(backlog.days))
    batches = -(-backlog.meters * backlog.days // 50)
    # Each life logs in; REDEX tells only afterwards what became of a batch, D-REC is asked about its devices.
    needed = {"redex": 2 * batches + lives, "drec": reads + 2 * lives}
    for platform, count in needed.items():
        made = {kind: n for kind, n in requests.items() if kind.startswith(platform + ".")}
        made.pop("redex.applications", None)  # once a day, whatever there is to deliver
        print(f"{platform}: {sum(made.values())} requests for {count} needed: {sum(made.values()) / count:.2f} {made}")
        assert sum(made.values()) <= 2.0 * count


@pytest.mark.parametrize("wrong", ["claims late", "resends blindly"])
def test_a_gateway_that_is_careless_is_found_out(tmp_path: Path, wrong: Wrong) -> None:
    seed = a_seed()
    print(f"seed {seed}")
    backlog = Backlog(10, 100, FIRST, period_wh, ("redex", "drec"))
    with raging(tmp_path, backlog, seed) as storm:
        for number in range(1, 101):
            storm.kill(wrong)
            if storm.platform.violations:
                print(f"found out by kill {number}: {storm.platform.violations[0]}")
                return
    raise AssertionError("a hundred kills did not find it out")

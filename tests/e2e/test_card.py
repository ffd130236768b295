"""A real daemon on a card that fails for a while, is full, or is read-only at the start.

HELIOGRAPH_CARD_FAULTS=10 pytest tests/e2e/test_card.py lets it fail that many times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from heliograph import control, library
from heliograph.clock import RehearsalClock
from heliograph.core import daily
from heliograph.rehearsal.demo import ZONE
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store
from tests.cards import as_root, failing, filled, remounted, small_card

FAULTS = int(os.environ.get("HELIOGRAPH_CARD_FAULTS", "2"))
RATE = 3000.0
FAST = 6000.0
CHILD = Path(__file__).with_name("site.py")
CONFIG = """
[site]
id = "card"
timezone = "{zone}"
data_dir = "{data}"
[[bus]]
id = "lan"
url = "{bus}"
every = "5m"
store_every = "5m"
timeout = "200ms"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1" }}
[uplink.redex]
base_url = "{platform}"
spread = "0s"
per_minute = 60
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""


@dataclass
class Running:
    data: Path
    child: subprocess.Popen[bytes]
    clock: RehearsalClock
    meter: SimulatedMeter
    platform: Sandbox
    log: Path

    def status(self) -> Any:
        return control.ask(self.data / "heliograph.sock", "/api/v1/status")

    def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"{self.clock.now()}: {self.status()}\n{self.log.read_text()}"
            time.sleep(0.02)

    def rehearse(self, **span: float) -> None:
        end = self.clock.now() + timedelta(**span)
        self.until(lambda: self.clock.now() >= end)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]

    def newest(self) -> int:
        """Wh that the meter showed last, by the live view."""
        seen = control.ask(self.data / "heliograph.sock", "/api/v1/meters/roof")
        return int(seen["values"].get("energy_export", 0))

    def stop(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        assert self.child.wait(timeout=10) == 0


@contextmanager
def daemon(folder: Path, data: Path, seed: int, rate: float = FAST) -> Iterator[Running]:
    start = daily.start_of(date(2026, 3, 13), ZONE) + timedelta(hours=15)
    clock = RehearsalClock(start, rate)
    map = library.load("eastron-sdm630", local=None).map
    meter = SimulatedMeter(
        map, clock=clock.now, rated_kw=50, start_export_wh=41_230_700, sky=Sky(zone=ZONE, seed=seed), seed=seed
    )
    (folder / "token").write_text("token")
    sandbox = Sandbox(now=clock.now, rate=rate, token="token", timezone=ZONE.key, processing_delay=timedelta(minutes=8))
    with Server({1: meter}) as server, sandbox as platform, (folder / "log").open("w") as log:
        config = folder / "config.toml"
        config.write_text(CONFIG.format(zone=ZONE.key, folder=folder, data=data, bus=server.url, platform=platform.url))
        command = [sys.executable, str(CHILD), str(config), start.isoformat(), str(rate), str(clock._began), "listen"]
        # The log goes through a pipe, for a file cannot be written while the card fails.
        with (
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log) as writer,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer.stdin) as child,
        ):
            try:
                assert child.stdout is not None and child.stdout.readline() == b"ready\n", (folder / "log").read_text()
                yield Running(data, child, clock, meter, platform, folder / "log")
            finally:
                child.kill()


def checked(running: Running, longest: timedelta) -> None:
    """Every day is what the meter counted, there is no hole, and the platform holds the same."""
    store = Store.reader(running.data)
    days = store.days.all("roof")
    first, last = store.days.first_border("roof"), store.days.last_border("roof")
    assert first is not None and last is not None and days
    assert sum(day.period_wh for day in days) == last.index_wh - first.index_wh == last.total_wh > 0
    assert store.days.held("roof") == []
    for day in days:
        assert day.closing.index_wh == running.meter.counted_wh(day.closing.at)  # at night nothing moves
    readings = list(store.readings.back("roof"))[::-1]
    assert all(reading.good for reading in readings)
    gap = max(b.moment.at - a.moment.at for a, b in pairwise(readings))
    print(f"{len(days)} days, {len(readings)} readings, longest gap {gap}")
    assert gap <= longest
    sent = {row["day"]: row["period_wh"] for row in store.outbox.shown("redex") if row["state"] == "confirmed"}
    assert sent and {day: wh for day, wh in running.platform.stored_wh("redex", "STR1").items() if day in sent} == sent
    assert [str(one) for one in running.platform.violations] == []
    store.close()


def confirmed(data: Path, days: int) -> bool:
    store = Store.reader(data)
    try:
        return store.outbox.counts().get("redex", {}).get("confirmed", 0) >= days
    finally:
        store.close()


def test_a_card_that_fails_for_hours_costs_no_reading_and_no_day(tmp_path: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {FAULTS} faults")
    chance = random.Random(seed)
    with daemon(tmp_path, tmp_path / "data", seed, RATE) as running:
        running.rehearse(hours=1)
        for number in range(FAULTS):
            # The first one lasts over midnight, and over the time when the day would be closed.
            hours = 9.5 if number == 0 else chance.uniform(2, 5)
            with failing(running.child.pid):
                running.until(lambda: bool(running.status()["storage"]))
                shown = running.newest()
                running.rehearse(hours=hours)
                status = running.status()
                assert status["alarms"][0].startswith("Nothing is stored since ") and status["running"]
                running.until(lambda: bool(running.status()["meters"][0]["state"] == "ok"))
                assert running.status()["meters"][0]["index_wh"] >= shown
                assert running.newest() > shown or number > 0  # later ones may lie in the night
            over = time.monotonic()
            running.until(lambda: not running.status()["storage"])
            print(f"{hours:.1f} h; back after {time.monotonic() - over:.2f} s")
            assert time.monotonic() - over < 10
            running.rehearse(hours=1)
        running.until(lambda: confirmed(running.data, 1))
        assert running.events().count("storage_fault") == running.events().count("storage_back") == FAULTS
        assert "job_failed" not in running.events() and "job_crashed" not in running.events()
        running.stop()
        checked(running, timedelta(hours=1))  # a fifth of a second of a busy machine is ten rehearsed minutes


@as_root
def test_a_start_on_a_read_only_card_is_a_start(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", "16m") as card:
        with daemon(tmp_path, card / "data", 1) as running:
            running.rehearse(hours=1)
            running.stop()
        remounted(card, "ro")
        with daemon(tmp_path, card / "data", 1) as running:
            running.rehearse(hours=1)
            assert running.status() is None  # the socket lies on the card as well
            remounted(card, "rw")
            running.until(lambda: bool(running.status()))
            running.until(lambda: not running.status()["storage"])
            running.until(lambda: confirmed(running.data, 1), 60)
            assert running.events().count("storage_fault") == 1
            running.stop()
        store = Store.reader(card / "data")
        assert store.days.all("roof")
        store.close()


@as_root
def test_a_full_card_still_closes_and_delivers_days(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", "12m") as card, daemon(tmp_path, card / "data", 2) as running:
        running.rehearse(hours=6)
        filled(card)
        running.until(lambda: confirmed(running.data, 2), 120)
        running.stop()
        checked(running, timedelta(hours=1.5))

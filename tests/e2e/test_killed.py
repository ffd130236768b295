"""The daemon killed again and again between a meter that counts on and a platform that remembers.

HELIOGRAPH_KILLS=1000 pytest tests/e2e/test_killed.py runs it by hand with as many kills as one likes.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

from heliograph import library
from heliograph.clock import RehearsalClock
from heliograph.core import daily
from heliograph.core.daily import Day
from heliograph.rehearsal.demo import ZONE
from heliograph.rehearsal.meter import SimulatedMeter, _shown
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store

KILLS = int(os.environ.get("HELIOGRAPH_KILLS", "25"))
RATE = 20_000.0
CHILD = Path(__file__).with_name("site.py")
CONFIG = """
[site]
id = "killed"
timezone = "{zone}"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{bus}"
every = "10m"
store_every = "10m"
timeout = "200ms"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1", drec = "roof" }}
[uplink.redex]
base_url = "{platform}"
spread = "0s"
per_minute = 60
token = {{ file = "{folder}/token" }}
[uplink.drec]
base_url = "{platform}/api"
spread = "0s"
per_minute = 60
token = {{ file = "{folder}/token" }}
[close]
# A kill may leave the gateway down over midnight for longer than an hour of rehearsed time.
on_gap = "split"
[clock]
trust = "always"
"""


def test_a_daemon_killed_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {KILLS} kills")
    chance = random.Random(seed)
    start = daily.start_of(date(2026, 3, 13), ZONE) + timedelta(hours=3)
    clock = RehearsalClock(start, RATE)
    meter = SimulatedMeter(
        library.load("eastron-sdm630", local=None).map,
        clock=clock.now,
        rated_kw=50,
        start_export_wh=41_230_700,
        sky=Sky(zone=ZONE, seed=seed),
        seed=seed,
    )
    (tmp_path / "token").write_text("token")
    sandbox = Sandbox(now=clock.now, rate=RATE, token="token", timezone=ZONE.key, processing_delay=timedelta(minutes=8))
    with Server({1: meter}) as server, sandbox as platform:
        config = tmp_path / "config.toml"
        config.write_text(CONFIG.format(zone=ZONE.key, folder=tmp_path, bus=server.url, platform=platform.url))
        command = [sys.executable, str(CHILD), str(config), start.isoformat(), str(RATE), str(clock._began)]
        for _ in range(KILLS):
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                if chance.random() < 0.8:  # the others are killed while they still start
                    _ready(child)
                time.sleep(chance.uniform(0.0, 1.2))  # any moment will do: this is the random point, not a wait
                child.kill()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            try:
                _ready(child)
                days = _settle(tmp_path / "data", clock)
                child.send_signal(signal.SIGTERM)
                assert child.wait(timeout=10) == 0
            finally:
                child.kill()
        store = Store.reader(tmp_path / "data")
        first, last = store.days.first_border("roof"), store.days.last_border("roof")
        assert first is not None and last is not None
        closed = store.days.all("roof")
        metered = last.index_wh - first.index_wh
        # At night nothing moves, so a border that was not split must be what the meter showed at midnight.
        for border in [day.closing for day in closed if not day.estimated]:
            assert border.index_wh == meter.counted_wh(border.at)
        print(f"{len(closed)} days, {metered} Wh, {dict(platform.requests)}")
        assert len({day.day for day in closed}) == len(closed) >= days
        assert sum(day.period_wh for day in closed) == metered > 0
        _recomputed(closed, store)
        # The platforms hold what was closed; the last day may be closed after the look at them.
        sent = {row["day"]: row["period_wh"] for row in store.outbox.shown("redex") if row["state"] == "confirmed"}
        assert {day: wh for day, wh in platform.stored_wh("redex", "STR1").items() if day in sent} == sent
        assert platform.total_wh("redex", "STR1") == sum(platform.stored_wh("redex", "STR1").values())
        held = [row for row in store.outbox.shown("drec") if row["state"] == "confirmed"]
        assert platform.total_wh("drec", "roof") == sum(row["period_wh"] for row in held)
        assert [str(one) for one in platform.violations] == []
        store.close()
    _acknowledged_rows_are_whole(tmp_path / "data")


def _recomputed(closed: list[Day], store: Store) -> None:
    """Every day that rests on two readings is what their raw words say, by the simulator's own decoding."""

    def shown_wh(reading: int) -> int:
        words = store.readings.reading(reading).words
        return int(_shown("float32", b"".join(word.to_bytes(2, "big") for word in words)) * 1000)

    for day in closed:
        if not day.estimated:
            assert day.period_wh == shown_wh(day.closing.before) - shown_wh(day.opening.before), day.day


def _ready(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"


def _settle(data: Path, clock: RehearsalClock) -> int:
    """Waits, as long as the rehearsal needs, until every closed day is confirmed by both platforms."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        store = Store.reader(data)
        counts, days = store.outbox.counts(), len(store.days.all("roof"))
        store.close()
        if days and all(set(states) == {"confirmed"} for states in counts.values()) and len(counts) == 2:
            return days
        time.sleep(0.05)
    raise AssertionError(f"not delivered by {clock.now()}: {counts}")


def _acknowledged_rows_are_whole(data: Path) -> None:
    raw = sqlite3.connect(data / "heliograph.db")
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    linked = raw.execute(
        "SELECT count(*) FROM reading a LEFT JOIN reading b ON b.id = a.prev WHERE a.prev NOT NULL AND b.id IS NULL"
    )
    assert linked.fetchone() == (0,)
    falls = raw.execute(
        "SELECT count(*) FROM reading a JOIN reading b ON b.id = a.prev WHERE a.doubt = '' AND a.index_wh < b.index_wh"
    )
    assert falls.fetchone() == (0,)
    raw.close()

"""500 inverters with a year of closed days, delivered by a daemon that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

from heliograph.clock import RehearsalClock
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.store import Store
from tests.e2e.backlog import Backlog
from tests.fakes import SINGAPORE

INVERTERS = int(os.environ.get("HELIOGRAPH_INVERTERS", "500"))
DAYS = 365
FIRST = date(2025, 3, 1)
# 61 requests at ten a minute are rehearsed in a few seconds.
RATE = 120.0
CHILD = Path(__file__).with_name("site.py")


def test_a_year_of_500_inverters_takes_62_requests_at_most_and_none_twice(tmp_path: Path) -> None:
    backlog = Backlog(INVERTERS, DAYS, FIRST, lambda number, day: (number * 7919 + day * 104_729) % 60_000)
    now = backlog.end + timedelta(hours=6)
    backlog.fill(tmp_path / "data", now)
    (tmp_path / "token").write_text("token")
    clock = RehearsalClock(now, RATE)
    with Sandbox(now=clock.now, rate=RATE, token="token", timezone=SINGAPORE.key) as platform:
        token = f'token = {{ file = "{tmp_path}/token" }}'
        config = backlog.configure(tmp_path, {"redex": (platform.url, token)})
        command = [sys.executable, str(CHILD), str(config), now.isoformat(), str(RATE), str(clock._began)]
        needed = -(-INVERTERS * DAYS // 3000)
        with subprocess.Popen(command) as child:
            try:
                _until(lambda: platform.requests["redex.batch"] > needed // 2, clock)
            finally:
                child.send_signal(signal.SIGKILL)
        with subprocess.Popen(command) as child:
            try:
                _until(lambda: _open(tmp_path / "data") == 0, clock)
            finally:
                child.kill()
        # Follow-ups go on while the rest is sent; reads are those of the request that the kill left unclear.
        print(
            f"{INVERTERS} inverters, {DAYS} days: {dict(platform.requests)}, {sum(platform.requests.values())} in all"
        )
        assert platform.requests["redex.batch"] <= needed + 1  # 61 for a year of 500, and one that was cut off
        assert [str(one) for one in platform.violations] == []
        store = Store.reader(tmp_path / "data")
        for number in range(0, INVERTERS, 7):
            closed = {day.day: day.period_wh for day in store.days.all(f"i{number}")}
            assert platform.stored_wh("redex", f"INV-{number}") == closed
            assert len(closed) == DAYS
        store.close()


def _until(reached, clock) -> None:  # type: ignore[no-untyped-def]  # a condition and who to name when it is not met
    deadline = time.monotonic() + 600
    while not reached():
        assert time.monotonic() < deadline, f"not reached by {clock.now()}"
        time.sleep(0.05)


def _open(data: Path) -> int:
    """Rows that are neither accepted nor confirmed."""
    store = Store.reader(data)
    counts = store.outbox.counts()["redex"]
    store.close()
    return sum(count for state, count in counts.items() if state not in ("accepted", "confirmed"))

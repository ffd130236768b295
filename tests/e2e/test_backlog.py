"""500 inverters with a year of closed days, delivered by a daemon that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from heliograph.clock import RehearsalClock
from heliograph.core import daily
from heliograph.core.readings import Moment, Reading
from heliograph.core.site import Report
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.store import Store
from tests.fakes import SINGAPORE

INVERTERS = int(os.environ.get("HELIOGRAPH_INVERTERS", "500"))
DAYS = 365
FIRST = date(2025, 3, 1)
# 61 requests at ten a minute are rehearsed in a few seconds.
RATE = 120.0
CHILD = Path(__file__).with_name("site.py")
METER = """
[[meter]]
id = "i{number}"
bus = "b{bus}"
unit = {unit}
map = "eastron-sdm630"
rated_kw = 10
report_as = {{ redex = "INV-{number}" }}
"""


def test_a_year_of_500_inverters_takes_62_requests_at_most_and_none_twice(tmp_path: Path) -> None:
    now = daily.start_of(FIRST + timedelta(days=DAYS), SINGAPORE) + timedelta(hours=6)
    _fill(tmp_path / "data", now)
    (tmp_path / "token").write_text("token")
    clock = RehearsalClock(now, RATE)
    with Sandbox(now=clock.now, rate=RATE, token="token", timezone=SINGAPORE.key) as platform:
        config = _configuration(tmp_path, platform.url)
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
        print(dict(platform.requests))
        assert platform.requests["redex.batch"] <= needed + 1  # 61 for a year of 500, and one that was cut off
        assert [str(one) for one in platform.violations] == []
        store = Store.reader(tmp_path / "data")
        for number in range(0, INVERTERS, 7):
            closed = {day.day: day.period_wh for day in store.days.all(f"i{number}")}
            assert platform.stored_wh("redex", f"INV-{number}") == closed
            assert len(closed) == DAYS
        store.close()


def _until(reached, clock) -> None:  # type: ignore[no-untyped-def]  # a condition and who to name when it is not met
    deadline = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < deadline, f"not reached by {clock.now()}"
        time.sleep(0.05)


def _open(data: Path) -> int:
    """Rows that are neither accepted nor confirmed."""
    store = Store.reader(data)
    counts = store.outbox.counts()["redex"]
    store.close()
    return sum(count for state, count in counts.items() if state not in ("accepted", "confirmed"))


def _fill(data: Path, now: datetime) -> None:
    """A store as a year of closing days would have left it, written in one go."""
    data.mkdir()
    store = Store.writer(data)
    store.readings.begin("killed", SINGAPORE.key, "boot-1", now)
    connection = store._connection
    borders, days = [], []
    for number in range(INVERTERS):
        store.readings.know_meter(f"i{number}", "energy_export")
        start = daily.start_of(FIRST, SINGAPORE)
        store.readings.add([Reading(f"i{number}", Moment(start, "boot-1", 0, True), 1_000_000)])
        meter = store.readings.meter_id(f"i{number}")
        total = 0
        base = number * (DAYS + 1) + 1
        for day in range(DAYS + 1):
            at = daily.start_of(FIRST + timedelta(days=day), SINGAPORE)
            micros = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
            borders.append((base + day, meter, micros, 1_000_000 + total, total, "read", number + 1, None))
            if day < DAYS:
                period = (number * 7919 + day * 104_729) % 60_000
                total += period
                name = (FIRST + timedelta(days=day)).isoformat()
                days.append((meter, name, base + day, base + day + 1, period, total, 0, micros, "0.1.0"))
    with connection.writing():
        connection.execute_many("INSERT INTO border VALUES (?, ?, ?, ?, ?, ?, ?, ?)", borders)
        connection.execute_many(
            "INSERT INTO day (meter, day, opening, closing, period_wh, total_wh, estimated, closed_at, software)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            days,
        )
    with connection.writing():
        for number in range(INVERTERS):
            store.outbox.queue(f"i{number}", Report("redex", f"INV-{number}"), now)
    store.close()


def _configuration(folder: Path, url: str) -> Path:
    """The inverters stand behind addresses where nobody answers: only their backlog matters here."""
    text = (
        f'[site]\nid = "backlog"\ntimezone = "{SINGAPORE.key}"\ndata_dir = "{folder}/data"\n[clock]\ntrust = "always"\n'
    )
    for bus in range(-(-INVERTERS // 200)):
        text += f'[[bus]]\nid = "b{bus}"\nurl = "tcp://127.0.0.1:{1 + bus}"\nevery = "1h"\nstore_every = "1h"\n'
    for number in range(INVERTERS):
        text += METER.format(number=number, bus=number // 200, unit=number % 200 + 1)
    text += f'[uplink.redex]\nbase_url = "{url}"\nspread = "0s"\ntoken = {{ file = "{folder}/token" }}\n'
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path

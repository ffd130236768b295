"""A gateway that stands still: the real daemon, not started, over a store with days of every kind and a full outbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from heliograph import app
from heliograph.core.ledger import Seam
from heliograph.daemon import Daemon
from heliograph.store import Store
from heliograph.work.amend import record_seam
from heliograph.work.attest import attest
from heliograph.work.close_days import close_days
from heliograph.work.deliver import Pace, deliver
from tests.fakes import FakeClock, FakeUplink
from tests.work.test_export import read

SECRET = "canary-4f1c0de5-never-to-be-seen"
DAYS = 8
CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
every = "1h"
store_every = "1h"
[[meter]]
id = "roof"
bus = "lan"
unit = 1
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1", drec = "roof" }}
[[meter]]
id = "barn"
bus = "lan"
unit = 2
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR2" }}
[[meter]]
id = "new"
bus = "lan"
unit = 3
map = "eastron-sdm630"
rated_kw = 5
[uplink.redex]
base_url = "http://127.0.0.1:1"
spread = "0s"
token = {{ file = "{folder}/token" }}
[uplink.drec]
base_url = "http://127.0.0.1:1"
spread = "0s"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
{more}
"""


@dataclass
class Gateway:
    folder: Path
    clock: FakeClock
    store: Store
    daemon: Daemon

    def get(self, target: str, status: int = 200, method: str = "GET") -> Any:
        answer = self.daemon.rest(method, target)
        value = json.loads(answer.body)
        assert answer.status == status, value
        return value


def still(value: Any) -> Any:
    """Without what the computer says about itself: how full its disk is changes from one answer to the next."""
    return {key: one for key, one in value.items() if key != "machine"} if isinstance(value, dict) else value


@contextmanager
def gateway(folder: Path, more: str = "", *, filled: bool = True) -> Iterator[Gateway]:
    (folder / "token").write_text(SECRET)
    (folder / "config.toml").write_text(CONFIG.format(folder=folder, more=more))
    clock = FakeClock()
    site = app.load(folder / "config.toml", clock)
    with site.writer() as store:
        daemon = Daemon(site, store)
        try:
            if filled:
                _fill(daemon, clock)
            yield Gateway(folder, clock, store, daemon)
        finally:
            for uplink in daemon.uplinks:
                uplink.close()
            daemon.audience.close()


def _fill(daemon: Daemon, clock: FakeClock) -> None:
    """Eight days: a swap, a short gap that is split, a long one that holds days, a day that is missing, refusals."""
    site, store = daemon.app, daemon.store
    barn = site.meters[1]
    kwh = {"roof": 41_230.7, "barn": 712.25}
    for hour in range(DAYS * 24 + 1):
        for unit, name in enumerate(("roof", "barn"), 1):
            away = (name == "roof" and 90 < hour < 125) or (name == "barn" and (hour == 96 or 140 < hour < 175))
            if name == "barn" and hour == 60:
                wh = round(kwh["barn"] * 1000)
                kwh["barn"] = 3.5
                record_seam(barn, Seam("barn", clock.now(), "swap", wh, 3500, new_serial="2"), store, clock.now())
            if not away:
                read(store, clock, name, unit, kwh[name])
            if name == "roof" or hour < 140:
                kwh[name] += 2.37 if 6 < hour % 24 < 19 else 0.004
        if hour == 30:
            read(store, clock, "roof", 1, 12.0, doubt="the counter fell from 41,260.2 to 12 kWh")
        clock.leap(hours=1)
        if hour % 6 == 0:
            close_days(site.meters, store, clock, site.rules)
    attest("sg-0042", store, clock, site.sign)
    for name, script in (("redex", ["lost", "busy"]), ("drec", ["refused"])):
        uplink = FakeUplink(most=3)
        uplink.name, uplink.ordered, uplink.script = name, name == "drec", script
        for _ in range(4):
            deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
            clock.leap(minutes=10)
    daemon.live.at |= {"roof": clock.now(), "barn": clock.now() - timedelta(seconds=20)}
    daemon.live.values |= {"roof": {"energy_export": 41_999_000, "active_power": 1200.5, "serial": "23451234"}}
    daemon.live.errors |= {"new": "no answer from unit 3"}

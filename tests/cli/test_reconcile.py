from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import app, control
from heliograph.cli import heliograph
from heliograph.core import daily
from heliograph.daemon import Daemon
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.work.close_days import close_days
from heliograph.work.deliver import Pace, deliver
from tests.fakes import SINGAPORE, FakeClock
from tests.work.test_export import read

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
map = "eastron-sdm630"
rated_kw = 50
production = "energy_export"
report_as = {{ drec = "roof" }}
[uplink.drec]
base_url = "{platform}/api"
spread = "0s"
per_minute = 60
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""
FIRST = date(2026, 3, 30)


def ask(config: Path, *words: str) -> Result:
    return CliRunner().invoke(heliograph, ["--config", str(config), *words], standalone_mode=False)


@pytest.mark.parametrize("running", [True, False])
def test_platform_and_ledger_are_compared_by_month(tmp_path: Path, running: bool) -> None:
    clock = FakeClock(daily.start_of(FIRST, SINGAPORE))
    platform = Sandbox(now=clock.now, token="token", timezone=SINGAPORE.key)
    (tmp_path / "token").write_text("token")
    config = tmp_path / "config.toml"
    with platform:
        config.write_text(CONFIG.format(folder=tmp_path, platform=platform.url))
        site = app.load(config, clock)
        with site.writer() as store:
            kwh = 41_230.7
            for _ in range(4 * 24 + 1):
                read(store, clock, "roof", 1, kwh)
                kwh += 1.25
                clock.leap(hours=1)
            close_days(site.meters, store, clock, site.rules)
            (uplink,) = site.uplinks()
            for _ in range(8):
                deliver(uplink, store, clock, Pace(clock), lambda: 0.0)
                clock.leap(minutes=20)
            uplink.close()
            assert store.outbox.counts() == {"drec": {"confirmed": 4}}
            daemon = Daemon(site, store)
            answering = control.Control(site.socket, daemon.answer, daemon.rest) if running else None
            if answering is not None:
                found = ask(config, "reconcile", "--from", FIRST.isoformat(), "--json")
                text = ask(config, "reconcile", "roof", "--from", FIRST.isoformat())
                answering.close()
        if not running:
            found = ask(config, "reconcile", "--from", FIRST.isoformat(), "--json")
            text = ask(config, "reconcile", "roof", "--from", FIRST.isoformat())
    months = [(row["month"], row["days"], row["local_wh"], row["difference_wh"]) for row in json.loads(found.stdout)]
    assert months == [("2026-03", 2, 60_000, 0), ("2026-04", 2, 60_000, 0)]
    assert (found.return_value, text.return_value) == (0, 0)
    assert "to the Wh" in text.output


def test_a_site_that_reports_to_nobody_is_told_so(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(folder=tmp_path, platform="http://127.0.0.1:1").replace("report_as", "# report_as"))
    assert "report_as" in ask(config, "reconcile").stderr

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from heliograph import app, daemon
from heliograph.daemon import Daemon

CONFIG = """
[site]
id = "s"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
every = "1h"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
[clock]
trust = "always"
"""


def test_a_clock_set_back_does_not_stop_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the scheduler a clock set back by five hours looks like rounds five hours ahead: they are called back."""
    monkeypatch.setattr(daemon, "CLOCK_LOOK", 0.02)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    site = app.load(tmp_path / "config.toml")
    with site.writer() as store:
        running = Daemon(site, store)
        running.start()
        try:
            jobs = running._scheduler
            for job in jobs.get_jobs():
                job.modify(next_run_time=datetime.now(UTC) + timedelta(hours=5))
            real = time.time
            monkeypatch.setattr("heliograph.daemon.time.time", lambda: real() - 5 * 3600)
            deadline = time.monotonic() + 10
            ahead = datetime.now(UTC) + timedelta(hours=2)
            while any(job.next_run_time > ahead for job in jobs.get_jobs() if job.id in ("lan", "close")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            running.stop()


def test_the_health_of_a_bus_that_hangs_is_seen(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    site = app.load(tmp_path / "config.toml")
    with site.writer() as store:
        running = Daemon(site, store)
        assert running.healthy()
        running._beats["lan"] = time.monotonic() - 10 * 3600 - 1
        assert not running.healthy()

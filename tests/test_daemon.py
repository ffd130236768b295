from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from heliograph import app, daemon
from heliograph.core.delivery import Note
from heliograph.core.errors import UsageError
from heliograph.core.health import Health, OutputHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.core.site import Report
from heliograph.daemon import Daemon
from heliograph.settings import DrecSettings, RedexSettings
from heliograph.uplink.gate import Gate
from heliograph.work import show
from heliograph.work.deliver import Pace
from heliograph.work.health import health
from tests.fakes import RULES, FakeClock, FakeUplink

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


def test_a_token_that_somebody_has_to_replace_is_told_30_14_and_3_days_ahead(tmp_path: Path) -> None:
    structlog.reset_defaults()
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    site = app.load(tmp_path / "config.toml")
    uplink, end = FakeUplink(), datetime(2026, 6, 1, tzinfo=UTC)
    with site.writer() as store:
        running = Daemon(site, store)
        for days in range(40, -2, -1):
            running._watch_token(uplink, end - timedelta(days=days))  # none that ends
        uplink.ends = end
        with capture_logs() as said:
            for days in range(40, -2, -1):
                for _ in range(3):
                    running._watch_token(uplink, end - timedelta(days=days))
        assert [one["days"] for one in said] == [30, 14, 3]
        uplink.ends = end + timedelta(days=365)  # replaced, and the next one is told as well
        with capture_logs() as said:
            running._watch_token(uplink, end)
            running._watch_token(uplink, end + timedelta(days=363))
        assert [one["days"] for one in said] == [2]
        report = replace(site.meters[0], reports=(Report("platform", "STR1"),))
        for days, alarms in ((15, 0), (13, 1), (-1, 1)):
            clock = FakeClock(uplink.ends - timedelta(days=days))
            seen = health("s", [report], store, clock, RULES, running.live)
            assert sum("token for platform" in alarm for alarm in seen.alarms) == alarms
            assert seen.uplinks[0].token_until == uplink.ends


def test_what_an_uplink_has_to_say_is_logged_once_and_shown_by_status(tmp_path: Path) -> None:
    structlog.reset_defaults()
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    site = app.load(tmp_path / "config.toml")
    uplink = FakeUplink()
    with site.writer() as store:
        running = Daemon(site, store)
        uplink.says_now = [Note("the first read is the baseline", alarm=False), Note("no such device", alarm=True)]
        with capture_logs() as said:
            running._hear(uplink)
            running._hear(uplink)
        assert [(one["log_level"], one["text"]) for one in said] == [
            ("info", "the first read is the baseline"),
            ("warning", "no such device"),
        ]
        report = replace(site.meters[0], reports=(Report("platform", "STR1"),))
        seen = health("s", [report], store, FakeClock(), RULES, running.live)
        assert seen.uplinks[0].notes == ("the first read is the baseline",)
        assert "platform: no such device" in seen.alarms
        uplink.says_now = []
        running._hear(uplink)
        seen = health("s", [report], store, FakeClock(), RULES, running.live)
        assert not any("no such device" in alarm for alarm in seen.alarms)


def test_a_token_from_a_file_has_the_end_that_stands_in_it(tmp_path: Path) -> None:
    claims = base64.urlsafe_b64encode(b'{"exp": 1780272000}').decode().rstrip("=")
    (tmp_path / "token").write_text(f"e30.{claims}.c2ln")
    chosen = {"base_url": "http://127.0.0.1:1", "token": {"file": tmp_path / "token"}}
    redex = app._redex(RedexSettings.model_validate(chosen), FakeClock(), Gate(10, FakeClock()))
    drec = app._drec(DrecSettings.model_validate(chosen), FakeClock(), Gate(10, FakeClock()), ())
    assert redex.token_until() == drec.token_until() == datetime(2026, 6, 1, tzinfo=UTC)


def test_a_swap_to_another_meter_than_the_one_that_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    site = app.load(tmp_path / "config.toml")
    wish = {"at": "2026-03-14T00:00+00:00", "kind": "swap", "old_wh": 1, "new_wh": 0, "note": "", "dry": True}
    with site.writer() as store:
        running = Daemon(site, store)
        running.lines[0].watch(site.meters[0], store, site.clock).shown = "0030000001"
        for named, why in (("9", "answers with serial number 0030000001, not 9"), ("30000001", "never read")):
            with pytest.raises(UsageError, match=why):
                running.answer("/api/v1/meters/roof/seam", {**wish, "new_serial": named})


UPLINKS = """
[uplink.redex]
base_url = "http://127.0.0.1:1"
token = {{ file = "{folder}/token" }}
{spread}
[uplink.drec]
base_url = "http://127.0.0.1:1"
token = {{ file = "{folder}/token" }}
{spread}
"""


def a_site(folder: Path, spread: str = "") -> app.App:
    (folder / "token").write_text("token")
    text = CONFIG.format(folder=folder) + UPLINKS.format(folder=folder, spread=spread)
    (folder / "config.toml").write_text(text)
    return app.load(folder / "config.toml", FakeClock())


def test_gateways_that_start_in_the_same_second_do_not_talk_to_a_platform_in_the_same_second(tmp_path: Path) -> None:
    """A thousand from one card image: whatever they say first, no minute of it holds more than twice its share."""
    site = a_site(tmp_path)
    seen: dict[str, list[float]] = {"redex": [], "drec": [], "witness": [], "reconcile": []}
    with site.writer() as store:
        for _ in range(1000):
            running = Daemon(site, store)
            for name in ("redex", "drec"):
                seen[name].append(running._delivers_from[name] - site.clock.since_boot())
            seen["witness"].append(running._asks_from - site.clock.since_boot())
            seen["reconcile"].append(running._reconciles_from["redex"] - site.clock.since_boot())
    for name, span in (("redex", 840), ("drec", 840), ("witness", 300), ("reconcile", 7 * 86400)):
        parts = Counter(int(12 * one / span) for one in seen[name])
        assert sorted(parts) == list(range(12)), name
        assert max(parts.values()) < 2 * 1000 / 12, name


def test_nothing_is_said_to_a_platform_before_its_moment_whatever_the_clock_is_set_to(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    clock = site.clock
    assert isinstance(clock, FakeClock)
    with site.writer() as store:
        running, uplink = Daemon(site, store), FakeUplink()
        running.uplinks = [uplink]
        running._delivers_from["platform"] = running._reconciles_from["platform"] = clock.up + 600
        running._asks_from = clock.up + 300
        running.paces["platform"] = Pace(clock)
        clock.synchronised = False
        clock.at += timedelta(days=20_000)  # the network is back, and with it the time
        running._deliver(uplink)
        running._reconcile(uplink)
        running._witness()
        assert uplink.requests == 0
        pause = running.live.pauses["platform"]
        assert pause is not None and not pause.alarm and pause.text.startswith("begins at ")
        clock.leap(seconds=300)
        running._witness()
        assert uplink.requests == 1
        clock.leap(seconds=300)
        running._deliver(uplink)
        assert not running.live.pauses["platform"]


def test_rounds_with_a_platform_keep_a_phase_of_their_own_also_when_the_clock_is_set(tmp_path: Path) -> None:
    site = a_site(tmp_path)
    with site.writer() as store:
        running = Daemon(site, store)
        for name, every in (("deliver redex", daemon.DELIVER_EVERY), ("storage", daemon.MEND_EVERY)):
            running._add(name, every, lambda: None, own_phase=name.startswith("deliver"))
        running._scheduler.start(paused=True)
        try:
            moments: dict[str, list[float]] = {"deliver redex": [], "storage": []}
            for _ in range(200):
                running.reschedule()
                now = datetime.now(UTC)
                for job in running._scheduler.get_jobs():
                    moments[job.id].append((job.next_run_time - now).total_seconds())
        finally:
            running._scheduler.shutdown()
    assert max(moments["storage"]) < 0.1
    parts = Counter(int(one // 3) for one in moments["deliver redex"])
    assert set(range(5)) <= set(parts) and max(parts.values()) < 80


def test_without_a_spread_a_gateway_begins_at_once(tmp_path: Path) -> None:
    site = a_site(tmp_path, 'spread = "0s"')
    with site.writer() as store:
        running = Daemon(site, store)
        now = site.clock.since_boot()
        assert set(running._delivers_from.values()) == {now} and running._asks_from == now
    assert site.spread("drec") == timedelta(0)


def test_the_nightly_offset_counts_from_the_moment_days_are_closed_and_outlives_a_restart(tmp_path: Path) -> None:
    def offsets() -> dict[str, timedelta]:
        site = a_site(tmp_path)
        text = (tmp_path / "config.toml").read_text()
        (tmp_path / "config.toml").write_text(
            text.replace("rated_kw", 'report_as = { redex = "R", drec = "D" }\nrated_kw')
        )
        site = app.load(tmp_path / "config.toml", FakeClock())
        return {report.uplink: report.offset for meter in site.meters for report in meter.reports}

    first = offsets()
    assert first == offsets()
    assert timedelta(minutes=15) <= first["drec"] <= timedelta(hours=2, minutes=15)
    assert timedelta(hours=1) <= first["redex"] <= timedelta(hours=3)  # days that are surely over


def test_a_question_that_waits_for_its_turn_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    """In real time: a thread is in the gate, whose minute has just begun."""
    (tmp_path / "token").write_text("token")
    (tmp_path / "config.toml").write_text(
        CONFIG.format(folder=tmp_path)
        + f'[uplink.redex]\nbase_url = "http://127.0.0.1:1"\nper_minute = 1\ntoken = {{ file = "{tmp_path}/token" }}\n'
    )
    site = app.load(tmp_path / "config.toml")
    with site.writer() as store:
        running = Daemon(site, store)
        running.start()
        (uplink,) = running.uplinks
        assert uplink._http.gate.enter()  # type: ignore[attr-defined]  # as if a request were under way
        waiting = threading.Thread(target=uplink.date)
        waiting.start()
        asked = time.monotonic()
        running.stop()
        waiting.join(5)
        assert not waiting.is_alive()
        assert time.monotonic() - asked < 5


class Hanging:
    """An output that hangs at its good-bye."""

    name = "hanging"

    def __init__(self) -> None:
        self.asked, self.let_go = threading.Event(), threading.Event()

    def start(self) -> None: ...

    def sample(self, sample: Sample) -> None: ...

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None: ...

    def state(self) -> OutputHealth:
        return OutputHealth(self.name, "nowhere", True, None)

    def close(self) -> None:
        self.asked.set()
        self.let_go.wait(60)


@pytest.mark.parametrize("job_hangs", [False, True], ids=["until the output is asked", "for ever"])
def test_a_stop_waits_for_a_job_and_an_output_that_hang_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_hangs: bool
) -> None:
    """Each its time after the other would be longer than a person waits, or systemd."""
    assert show.CLOSE_WITHIN <= daemon.STOP_WITHIN <= 4.0
    monkeypatch.setattr(daemon, "STOP_WITHIN", 0.2 if job_hangs else 30.0)
    monkeypatch.setattr(show, "CLOSE_WITHIN", 0.2)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    site = app.load(tmp_path / "config.toml")
    output, began, seen = Hanging(), threading.Event(), list[bool]()

    def job() -> None:
        began.set()
        seen.append((output.let_go if job_hangs else output.asked).wait(5))

    with site.writer() as store:
        running = Daemon(site, store)
        running.audience = show.Audience([output])
        running.start()
        running._add("hangs", timedelta(hours=1), job)
        assert began.wait(60)
        asked = time.monotonic()
        running.stop()
        took = time.monotonic() - asked
        assert output.asked.is_set()
        assert seen == ([] if job_hangs else [True]), "the output was asked only when the job had been given up"
        output.let_go.set()
    assert took < 4

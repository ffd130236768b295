"""The store dies between a meter that counts on and platforms that remember; a copy takes its place.

The daemon's own jobs on a clock that is moved by hand, a simulated meter's counter and both stand-in platforms.
HELIOGRAPH_RESTORES=200 pytest tests/e2e/test_restored.py runs that many random lives instead of a few.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest

from heliograph import app, library, seal
from heliograph.core import daily
from heliograph.core.chain import canonical
from heliograph.core.health import as_json
from heliograph.core.readings import Moment, Reading
from heliograph.daemon import Daemon
from heliograph.rehearsal.demo import ZONE
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_exchange import Platform
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store, opening
from heliograph.store.connection import FILE
from heliograph.work.explain import explain
from heliograph.work.export import pack
from tests.fakes import FakeClock
from tests.work.test_export import audited, manifest

LIVES = int(os.environ.get("HELIOGRAPH_RESTORES", "6"))
FIRST = date(2026, 3, 13)
CONFIG = """
[site]
id = "restored"
timezone = "{zone}"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{bus}"
every = "1h"
store_every = "1h"
timeout = "500ms"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ {reports} }}
{uplinks}
"""
UPLINKS: dict[Platform, str] = {
    "redex": '[uplink.redex]\nbase_url = "{platform}"\nspread = "0s"\nper_minute = 60\n'
    'token = {{ file = "{folder}/token" }}\n',
    "drec": '[uplink.drec]\nbase_url = "{platform}/api"\nspread = "0s"\nper_minute = 60\n'
    'token = {{ file = "{folder}/token" }}\n',
}
REMOTE: dict[Platform, str] = {"redex": "STR1", "drec": "roof"}


class Site:
    """A site whose hours pass when they are told to."""

    def __init__(
        self, folder: Path, uplinks: tuple[Platform, ...], seed: int, stack: ExitStack, kw: float = 30
    ) -> None:
        self.folder, self.uplinks = folder, uplinks
        self.clock = FakeClock(daily.start_of(FIRST, ZONE) + timedelta(hours=3))
        self.meter = SimulatedMeter(
            library.load("eastron-sdm630", local=None).map,
            clock=self.clock.now,
            rated_kw=kw,
            start_export_wh=41_230_700,
            sky=Sky(zone=ZONE, seed=seed),
            seed=seed,
        )
        (folder / "token").write_text("token")
        delay = timedelta(minutes=8)
        self.platform = stack.enter_context(
            Sandbox(now=self.clock.now, token="token", timezone=ZONE.key, processing_delay=delay)
        )
        if "drec" in uplinks:
            # It has a read already, so that none of ours is the first, which has no ceiling.
            self.platform.drec.onboard("roof")
            state = self.platform.drec.states["roof"]
            state.read_type, state.last = "Delta", self.clock.now()
        self.config = folder / "config.toml"
        reports = ", ".join(f'{name} = "{REMOTE[name]}"' for name in uplinks)
        blocks = "".join(UPLINKS[name].format(platform=self.platform.url, folder=folder) for name in uplinks)
        self.config.write_text(
            CONFIG.format(zone=ZONE.key, folder=folder, bus="tcp://127.0.0.1:9", reports=reports, uplinks=blocks)
        )
        self.started = self.clock.now()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @contextmanager
    def running(self) -> Iterator[Daemon]:
        loaded = app.load(self.config, self.clock)
        with loaded.writer() as store:
            daemon = Daemon(loaded, store)
            try:
                yield daemon
            finally:
                for uplink in daemon.uplinks:
                    uplink.close()
                for line in daemon.lines:
                    line.close()

    def run(self, daemon: Daemon, hours: float, *, deliver: bool = True) -> None:
        until = self.clock.now() + timedelta(hours=hours)
        while self.clock.now() < until:
            at = Moment(self.clock.now(), "boot-1", self.clock.up, True)
            daemon.store.readings.add([Reading("roof", at, self.meter.counted_wh(at.at))])
            daemon._close()
            for uplink in daemon.uplinks if deliver else ():
                daemon._deliver(uplink)
            self.clock.leap(hours=1)

    def to_midnight(self, daemon: Daemon, hours: float) -> None:
        """Runs past the next local midnight, up to so many hours after it."""
        midnight = daily.end_of(daily.day_of(self.clock.now(), ZONE), ZONE)
        self.run(daemon, (midnight - self.clock.now()).total_seconds() / 3600 + hours)

    def crash(self) -> None:
        """What a power cut leaves: the mark of a store in use, and a garbled file."""
        opening.mark(self.data, "open")
        with (self.data / FILE).open("r+b") as file:
            file.write(b"\xff" * 4096)

    def check(self, store: Store, *, ceiling: bool = False) -> None:
        """Platforms hold what was metered, every day once; the ledger holds what the counter moved."""
        first, last = store.days.first_border("roof"), store.days.last_border("roof")
        assert first is not None and last is not None
        closed = store.days.all("roof")
        held = [entry.day for entry in store.days.held("roof")]
        assert len({day.day for day in closed} | set(held)) == (last.at - first.at + timedelta(hours=12)).days
        metered = self.meter.counted_wh(last.at) - self.meter.counted_wh(first.at)
        assert last.total_wh - first.total_wh == last.index_wh - first.index_wh == metered
        ours = {day.day: day.period_wh for day in closed}
        if "redex" in self.uplinks:
            assert self.platform.stored_wh("redex", "STR1") == ours
        if "drec" in self.uplinks:
            # Days above the ceiling of the platform wait for the next one.
            backlog = [row for row in store.outbox.backlog("drec") if ceiling]
            waiting = [row["period_wh"] for row in backlog if row["state"] == "due"]
            assert self.platform.total_wh("drec", "roof") == sum(ours.values()) - sum(waiting)
        assert not held and sum(ours.values()) == metered > 0
        assert [str(one) for one in self.platform.violations] == []
        assert ceiling or all(set(states) == {"confirmed"} for states in store.outbox.counts().values())
        # The chain goes on over the restore, and every border follows from what it rests on.
        whole = pack(store, "site", min(ours), max(ours), ["roof"], last.at)
        lines = [(canonical(line) if isinstance(line, dict) else line) + b"\n" for line in whole]
        assert [str(one) for one in audited([*lines, manifest(lines, self.data / seal.FILE)]).findings] == []


BOTH: tuple[Platform, ...] = ("redex", "drec")


@pytest.mark.parametrize("uplinks", [BOTH, ("redex",), ("drec",)])
def test_days_that_were_delivered_get_the_figure_that_was_delivered(
    tmp_path: Path, uplinks: tuple[Platform, ...]
) -> None:
    with ExitStack() as stack:
        site = Site(tmp_path, uplinks, 1, stack)
        with site.running() as daemon:
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 0)
            site.run(daemon, 2, deliver=False)
            daemon._copy()
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 12)
            delivered = {day.day: day.period_wh for day in daemon.store.days.all("roof")}
        site.crash()
        site.clock.leap(hours=2)
        with site.running() as daemon:
            assert len(daemon.store.days.all("roof")) == 2 and len(delivered) == 5
            daemon._close()
            status = as_json(daemon.health())
            assert any("no day is closed after the restore" in alarm for alarm in status["alarms"])
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 12)
            site.check(daemon.store)
            closed = {day.day: day for day in daemon.store.days.all("roof")}
            assert {day: closed[day].period_wh for day in delivered} == delivered
            assert [day.closing.method for day in closed.values()] == ["read"] * 2 + ["platform"] * 3 + ["read"] * 2
            assert not any(day.estimated for day in closed.values())
            told = explain("roof", sorted(closed)[3], daemon.store, daemon.app.clock.now(), library.from_texts)
            assert all(f"{name} holds" in told["recovered"][0] for name in uplinks)
            assert "a platform holds" in told["closing"]["how"]
            status = as_json(daemon.health())
            (alarm,) = status["alarms"]
            assert "took its place" in alarm and "recorded again" in alarm and "quarantine/" in alarm
        assert [path.name for path in (site.data / "quarantine").glob("*/*")] == [FILE]


def test_rows_sent_blindly_after_a_restore_would_be_seen_by_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the note that a store was lost, the same life goes wrong."""
    monkeypatch.setattr(opening, "note_loss", lambda *_: None)
    with ExitStack() as stack:
        site = Site(tmp_path, BOTH, 1, stack)
        with site.running() as daemon:
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 0)
            site.run(daemon, 2, deliver=False)
            daemon._copy()
            for _ in range(3):
                site.to_midnight(daemon, 12)
        site.crash()
        site.clock.leap(hours=2)
        with site.running() as daemon:
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 12)
            assert site.platform.violations
            with pytest.raises(AssertionError):
                site.check(daemon.store)


def test_days_that_travelled_as_one_are_never_split_by_guess(tmp_path: Path) -> None:
    """50 kW make days above the ceiling of D-REC; these went with their neighbours, and it holds their sums only."""
    with ExitStack() as stack:
        site = Site(tmp_path, ("drec",), 1, stack, kw=50)
        with site.running() as daemon:
            site.to_midnight(daemon, 12)
            site.to_midnight(daemon, 0)
            site.run(daemon, 2, deliver=False)
            daemon._copy()
            for _ in range(4):
                site.to_midnight(daemon, 12)
            known = {day.day for day in daemon.store.days.all("roof")}
            held_there = dict(site.platform.stored_wh("drec", "roof"))
            assert len(held_there) < len(known)
        site.crash()
        with site.running() as daemon:
            for _ in range(3):
                site.to_midnight(daemon, 12)
            held = [entry.day for entry in daemon.store.days.held("roof")]
            assert held and held_there.items() <= site.platform.stored_wh("drec", "roof").items()
            wish = {"first": str(held[0]), "last": str(held[-1]), "split": "time", "dry": False}
            daemon.answer("/api/v1/meters/roof/release", wish)
            for _ in range(3):
                site.to_midnight(daemon, 12)
            site.check(daemon.store, ceiling=True)


@pytest.mark.parametrize("life", range(LIVES))
def test_random_lives_with_a_restore_end_with_every_watt_hour_delivered_once(tmp_path: Path, life: int) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000))) + life
    print(f"seed {seed}")
    chance = random.Random(seed)
    choices: list[tuple[Platform, ...]] = [BOTH, ("redex",), ("drec",)]
    uplinks = chance.choice(choices)
    with ExitStack() as stack:
        site = Site(tmp_path, uplinks, seed, stack, kw=chance.choice([20, 30, 47, 47]))
        for _ in range(chance.choice([1, 1, 2])):
            with site.running() as daemon:
                site.run(daemon, chance.uniform(2, 60), deliver=chance.random() < 0.8)
                daemon._copy()
                site.run(daemon, chance.uniform(2, 100), deliver=chance.random() < 0.8)
                site.platform.away = chance.random() < 0.3
                site.run(daemon, chance.uniform(0, 50))
                site.platform.away = False
                site.run(daemon, chance.uniform(0, 3))
            site.crash()
            site.clock.leap(hours=chance.choice([0.1, 1, 5, 20, 50]))
            site.platform.away = chance.random() < 0.3
            with site.running() as daemon:
                site.run(daemon, chance.uniform(1, 30))
                site.platform.away = False
                for _ in range(3):
                    site.to_midnight(daemon, 12)
                while held := [entry.day for entry in daemon.store.days.held("roof") if entry.kind == "held"]:
                    last = held[0]
                    while last + timedelta(days=1) in held:
                        last += timedelta(days=1)
                    wish = {"first": str(held[0]), "last": str(last), "split": "time", "dry": False}
                    daemon.answer("/api/v1/meters/roof/release", wish)
                for _ in range(4):
                    site.to_midnight(daemon, 12)
                site.check(daemon.store, ceiling=True)


@pytest.mark.parametrize("uplinks", [BOTH, ("redex",), ("drec",)])
def test_without_a_copy_the_total_goes_on_from_the_platforms_and_nothing_is_invented(
    tmp_path: Path, uplinks: tuple[Platform, ...]
) -> None:
    with ExitStack() as stack:
        site = Site(tmp_path, uplinks, 1, stack)
        with site.running() as daemon:
            for _ in range(3):
                site.to_midnight(daemon, 12)
            delivered = site.platform.stored_wh(uplinks[0], REMOTE[uplinks[0]])
        site.crash()
        site.clock.leap(hours=5)
        with site.running() as daemon:
            for _ in range(3):
                site.to_midnight(daemon, 12)
            border = daemon.store.days.first_border("roof")
            assert border is not None
            assert border.total_wh == (sum(delivered.values()) if "redex" in uplinks else 0)
            now = site.platform.stored_wh(uplinks[0], REMOTE[uplinks[0]])
            assert delivered.items() <= now.items() and len(now) == len(delivered) + 3
            assert sum(now.values()) < site.meter.counted_wh(site.clock.now()) - 41_230_700
            assert [str(one) for one in site.platform.violations] == []
            status = as_json(daemon.health())
            assert any("begun anew" in alarm for alarm in status["alarms"])


def test_a_day_inside_a_sum_waits_until_the_held_days_of_that_sum_are_released(tmp_path: Path) -> None:
    """It is closed here and the platform shows nothing at its end: asked about alone, it would be sent once more."""
    with ExitStack() as stack:
        site = Site(tmp_path, ("drec",), 2022, stack, kw=50)
        site.platform.drec.onboard("roof", capacity_kw=51.0)  # three clear days are too much, with the fourth they pass
        with site.running() as daemon:
            site.to_midnight(daemon, 12)
            daemon._copy()
            for _ in range(3):
                site.to_midnight(daemon, 12)
        (sum_wh,) = site.platform.stored_wh("drec", "roof").values()
        site.crash()
        with site.running() as daemon:
            for _ in range(2):
                site.to_midnight(daemon, 12)
            held = [entry.day for entry in daemon.store.days.held("roof")]
            (first, *_) = daemon.store.outbox.shown("drec")
            assert (first["day"], first["state"], len(held)) == (FIRST, "unclear", 3)
            assert list(site.platform.stored_wh("drec", "roof").values()) == [sum_wh]
            wish = {"first": str(held[0]), "last": str(held[-1]), "split": "time", "dry": False}
            daemon.answer("/api/v1/meters/roof/release", wish)
            site.to_midnight(daemon, 12)
            rows = daemon.store.outbox.shown("drec")[:4]
            assert [row["state"] for row in rows] == ["confirmed"] * 4
            assert sum(row["period_wh"] for row in rows) == sum_wh
            assert site.platform.violations == []

"""The daemon killed again and again: polling, closing, delivering, pruning, copying its store, migrating an old one.

Two stores are killed in turn. One belongs to a site with two meters that count on and two platforms that remember. The
other was written by an earlier release and holds years of samples: it is migrated and then pruned, and begun anew once
that is done. A life ends at any moment, or a little after a job has begun, or within what it stores. After each kill
the file must hold what the store had acknowledged, and every closed day as it was; nobody repairs anything.

HELIOGRAPH_KILLS=10000 pytest -n 0 -s tests/e2e/test_killed.py runs it by hand with as many kills as one likes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

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
from heliograph.store.connection import FILE
from heliograph.store.copies import COPIES, verified
from heliograph.store.schema import migrations
from tests.e2e.lives import JOB, JOBS, STORING, End, Order
from tests.store.acknowledged import flaws, lost
from tests.store.test_saved import SAVED

KILLS = int(os.environ.get("HELIOGRAPH_KILLS", "1000"))
ROOT = Path(__file__).parents[2]
METERS = ("roof", "barn")
# A day in three or four seconds: a life of a tenth of one sees half an hour.
RATE = 25_000.0
FIRST = date(2026, 3, 13)
CLOSE_AFTER = timedelta(minutes=15)
OLD_SAMPLES = 8_000
SITE = """
[site]
id = "killed"
timezone = "{zone}"
data_dir = "{folder}/data"
[[bus]]
id = "poll"
url = "{bus}"
every = "10m"
store_every = "10m"
timeout = "200ms"
pause = "0ms"
[[meter]]
id = "roof"
bus = "poll"
unit = 1
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1", drec = "roof" }}
[[meter]]
id = "barn"
bus = "poll"
unit = 2
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR2", drec = "barn" }}
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
[retention]
fine = "36500d"
hourly = "36500d"
"""
OLD = """
[site]
id = "saved"
timezone = "{zone}"
data_dir = "{folder}/old"
[[bus]]
id = "poll"
url = "{bus}"
every = "10m"
store_every = "10m"
timeout = "200ms"
pause = "0ms"
[[meter]]
id = "barn"
bus = "poll"
unit = 2
map = "eastron-sdm630"
rated_kw = 50
[clock]
trust = "always"
[retention]
hourly = "36500d"
"""


@dataclass(frozen=True, slots=True)
class Aim:
    """What to kill in, how deep, and how long after that began at most (seconds)."""

    what: str | None
    depth: int
    within: float
    share: int


# Of a hundred lives of the site; closing has its own hour (see `_aim`).
AIMS = (
    Aim(None, JOB, 0.15, 45),
    Aim("poll", STORING, 0.003, 15),
    Aim("deliver redex", JOB, 0.01, 8),
    Aim("deliver drec", JOB, 0.01, 8),
    Aim("deliver redex", STORING, 0.003, 7),
    Aim("deliver drec", STORING, 0.003, 7),
    Aim("backup", STORING, 0.08, 10),
)
CLOSING = (Aim("close", STORING, 0.003, 1), Aim("close", JOB, 0.005, 1))
MIGRATING = Aim("migrate", STORING, 0.004, 1)
PRUNING = Aim("prune", STORING, 0.04, 1)


@dataclass
class Stage:
    """A site, its meters and its platforms, and the process that its lives are forked from."""

    folder: Path
    clock: RehearsalClock
    meters: dict[str, SimulatedMeter]
    platform: Sandbox
    parent: subprocess.Popen[str]
    falls: Counter[str] = field(default_factory=Counter)
    """What lives were doing when they were killed."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def old(self) -> Path:
        return self.folder / "old"

    def life(self, order: Order) -> End:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write(json.dumps(asdict(order)) + "\n")
        self.parent.stdin.flush()
        end = End(**json.loads(self.parent.stdout.readline()))
        errors = (self.folder / "errors").read_text()
        assert end.killed and not errors, f"a life ended by itself, or a job of it failed: {errors}"
        self.falls["still starting" if not end.begun else "running"] += 1
        for what, depth in end.busy.items():
            self.falls[what] += 1
            if depth == STORING:
                self.falls[f"{what}, storing"] += 1
        return end


@contextmanager
def staged(folder: Path, seed: int) -> Iterator[Stage]:
    start = daily.start_of(FIRST, ZONE) + timedelta(hours=3)
    clock = RehearsalClock(start, RATE)
    meters = {
        name: SimulatedMeter(
            library.load("eastron-sdm630", local=None).map,
            clock=clock.now,
            unit=unit,
            rated_kw=35,  # of 50: four clear days in a row must stay below D-REC's ceiling
            start_export_wh=41_230_700 * unit,
            sky=Sky(zone=ZONE, seed=seed + unit),
            seed=seed + unit,
        )
        for unit, name in enumerate(METERS, start=1)
    }
    (folder / "token").write_text("token")
    sandbox = Sandbox(now=clock.now, rate=RATE, token="token", timezone=ZONE.key, processing_delay=timedelta(minutes=8))
    with (
        Server({meter.unit: meter for meter in meters.values()}) as server,
        sandbox as platform,
        (folder / "errors").open("wb") as errors,
    ):
        for name, text in (("site", SITE), ("old", OLD)):
            filled = text.format(zone=ZONE.key, folder=folder, bus=server.url, platform=platform.url)
            (folder / f"{name}.toml").write_text(filled)
        command = [sys.executable, "-m", "tests.e2e.lives", start.isoformat(), str(RATE), str(clock._began)]
        command += [str(folder / "site.toml"), str(folder / "old.toml")]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as parent:
            try:
                yield Stage(folder, clock, meters, platform, parent)
            finally:
                parent.kill()


def test_a_daemon_killed_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}, {KILLS} kills")
    chance = random.Random(seed)
    with staged(tmp_path, seed) as stage:
        site, old = KilledSite(stage), KilledOld(stage, chance)
        for _ in range(KILLS):
            if chance.random() < 0.2:
                old.kill(chance)
            else:
                site.kill(chance)
        print(dict(sorted(stage.falls.items())), f"{old.migrated} stores migrated, {old.pruned} pruned")
        print(f"{site.copies} copies")
        for what in (*(f"{job}, storing" for job in JOBS), "backup", "migrate"):
            assert stage.falls[what] >= KILLS // 200, f"too few kills in: {what}"
        old.done()
        site.done()


class KilledSite:
    """Two meters and two platforms, and a store that is killed and never repaired."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.told: list[str] = []
        self.days: dict[tuple[str, str], tuple[int, int]] = {}
        self.newest = 0
        self.copies = 0

    def kill(self, chance: random.Random) -> None:
        aim = self._aim(chance)
        config = str(self.stage.folder / "site.toml")
        end = self.stage.life(Order(config, chance.uniform(0, aim.within), aim.what, aim.depth))
        self.told += end.told
        if not (self.stage.data / FILE).exists():
            return  # killed before it made one
        with closing(_look(self.stage.data)) as raw:
            told = [line for line in end.told if not line.startswith("copy ")]
            if told or self.newest:
                # Now, and not at the end: a later start may have mended what a kill left half done.
                assert lost(raw, told, after=self.newest) + flaws(raw) == []
                self.newest = raw.execute("SELECT coalesce(max(id), 0) FROM reading").fetchone()[0]
                self._days_are_as_they_were(raw)
        self._copies_are_whole(end)

    def _aim(self, chance: random.Random) -> Aim:
        """Closing is over in a moment, once a day: when it is due, most lives wait for it."""
        now = self.stage.clock.now()
        soon = daily.day_of(now - CLOSE_AFTER + timedelta(seconds=0.1 * RATE), ZONE)
        if self.days and max(self.days)[1] < str(soon - timedelta(days=1)) and chance.random() < 0.7:
            return chance.choice(CLOSING)
        return chance.choices(AIMS, [aim.share for aim in AIMS])[0]

    def _days_are_as_they_were(self, raw: sqlite3.Connection) -> None:
        now = {
            (name, day): (period, total)
            for name, day, period, total in raw.execute(
                "SELECT name, day, period_wh, total_wh FROM day JOIN meter ON meter.id = day.meter"
            )
        }
        assert self.days.items() <= now.items(), "a closed day is gone or has another value"
        self.days = now

    def _copies_are_whole(self, end: End) -> None:
        """What has the name of a copy is one, whenever the kill came."""
        made = {Path(line.split(" ")[1]): line.split(" ")[2] for line in end.told if line.startswith("copy ")}
        for path in (self.stage.data / COPIES).glob("*.db"):
            copy = verified(path)
            assert made.get(path, copy.sha256) == copy.sha256
            made.pop(path, None)
            path.unlink()
            self.copies += 1
        assert made == {}, "a copy that was reported is not there"
        left = list((self.stage.data / COPIES).glob("*.partial"))
        # One life may have been at two: the whole store, because it was asked, and the ledger, which it does by itself.
        assert len(left) <= 2, "what a kill leaves of a copy is removed by the next start"

    def done(self) -> None:
        """Lives once more, until all is delivered, and adds up what the meters, the store and the platforms say."""
        stage, clock = self.stage, self.stage.clock
        start = str(clock._start.isoformat())
        command = [sys.executable, str(Path(__file__).with_name("site.py")), str(stage.folder / "site.toml"), start]
        with subprocess.Popen([*command, str(RATE), str(clock._began)], stdout=subprocess.PIPE) as child:
            try:
                assert child.stdout is not None and child.stdout.readline() == b"ready\n"
                days = _settle(stage.data, clock)
                child.send_signal(signal.SIGTERM)
                assert child.wait(timeout=10) == 0
            finally:
                child.kill()
        with closing(_look(stage.data)) as raw:
            # A row of the outbox is told again and again: its last word counts.
            assert lost(raw, [line for line in self.told if not line.startswith("copy ")]) == []
            assert flaws(raw) == []
        store = Store.reader(stage.data)
        for unit, name in enumerate(METERS, start=1):
            self._adds_up(store, name, f"STR{unit}", days)
        store.close()
        assert [str(one) for one in stage.platform.violations] == []

    def _adds_up(self, store: Store, name: str, remote: str, days: int) -> None:
        platform, meter = self.stage.platform, self.stage.meters[name]
        first, last = store.days.first_border(name), store.days.last_border(name)
        assert first is not None and last is not None
        closed = store.days.all(name)
        metered = last.index_wh - first.index_wh
        # At night nothing moves, so a border that was not split must be what the meter showed at midnight.
        for border in [day.closing for day in closed if not day.estimated]:
            assert border.index_wh == meter.counted_wh(border.at)
        estimated = sum(day.estimated for day in closed)
        print(f"{name}: {len(closed)} days ({estimated} with a split), {metered} Wh, {dict(platform.requests)}")
        assert len({day.day for day in closed}) == len(closed) >= days // len(METERS)
        assert sum(day.period_wh for day in closed) == metered > 0
        _recomputed(closed, store)
        # The platforms hold what was closed; the last day may be closed after the look at them.
        sent = {
            row["day"]: row["period_wh"] for row in store.outbox.shown("redex", name) if row["state"] == "confirmed"
        }
        assert {day: wh for day, wh in platform.stored_wh("redex", remote).items() if day in sent} == sent
        held = [row for row in store.outbox.shown("drec", name) if row["state"] == "confirmed"]
        assert platform.total_wh("drec", name) == sum(row["period_wh"] for row in held)


class KilledOld:
    """A store of an earlier release with samples of years; when it is migrated and pruned, the next one."""

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self.stage = stage
        self.migrated = self.pruned = 0
        self.begin(chance)

    def begin(self, chance: random.Random) -> None:
        versions = sorted((path.stem for path in SAVED.glob("*.db")), key=lambda name: int(name[1:]))
        self.prunes = 0
        self.stage.old.mkdir()
        shutil.copy(SAVED / f"{chance.choice(versions[:-1])}.db", self.stage.old / FILE)
        with closing(sqlite3.connect(self.stage.old / FILE)) as raw:
            self.last = _add_samples(raw, chance)
            self.before = {name: _rows(raw, name) for (name,) in raw.execute(_TABLES)}
        self.readings = self.before.pop("reading")

    def kill(self, chance: random.Random) -> None:
        pending = self._pending()
        aim = MIGRATING if pending else PRUNING
        config = str(self.stage.folder / "old.toml")
        end = self.stage.life(Order(config, chance.uniform(0, aim.within), aim.what, aim.depth, only_open=pending))
        with closing(_look(self.stage.old)) as raw:
            assert lost(raw, end.told, after=self.last) == []
            self._kept_what_must_stay(raw)
            thinned = raw.execute("SELECT value FROM learned WHERE subject = 'thin/hourly'").fetchone()
        migrated, pruned = pending and not self._pending(), thinned is not None and int(thinned[0]) >= self.last
        self.migrated += migrated
        self.pruned += pruned
        self.prunes += not pending
        # A migration is over sooner than pruning: some stores are migrated only, and none is pruned for ever.
        if pruned or self.prunes > 8 or (migrated and chance.random() < 0.5):
            shutil.rmtree(self.stage.old)
            self.begin(chance)

    def _pending(self) -> bool:
        with closing(_look(self.stage.old)) as raw:
            applied = {name for (name,) in raw.execute("SELECT name FROM _sqlite_migrations")}
        return any(migration.name not in applied for migration in migrations._migrations)

    def _kept_what_must_stay(self, raw: sqlite3.Connection) -> None:
        """Every row there was, as it was; of samples one an hour, the doubtful ones, and what borders rest on."""
        assert flaws(raw) == []
        for table, (columns, rows) in self.before.items():
            if table not in ("meter", "learned"):
                assert rows <= _rows(raw, table, columns)[1], table
        columns, rows = self.readings
        left = {row for row in _rows(raw, "reading", columns)[1] if row[0] <= self.last}
        assert left <= rows
        at, doubt = columns.index("at"), columns.index("doubt")
        assert {(row[at] // 3_600_000_000) for row in left} == {(row[at] // 3_600_000_000) for row in rows}
        assert {row for row in rows if row[doubt]} <= left

    def done(self) -> None:
        """What is half done now is finished by the next start."""
        with closing(Store.writer(self.stage.old)):
            assert not self._pending()
        with closing(_look(self.stage.old)) as raw:
            self._kept_what_must_stay(raw)


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
Rows = tuple[tuple[str, ...], set[tuple[Any, ...]]]


def _rows(raw: sqlite3.Connection, table: str, columns: tuple[str, ...] = ()) -> Rows:
    """The rows of a table, by the columns it had once; a reading's link goes where its forerunner is thinned."""
    columns = columns or tuple(
        row[1] for row in raw.execute(f"PRAGMA table_info({table})") if (table, row[1]) != ("reading", "prev")
    )
    return columns, set(raw.execute(f"SELECT {', '.join(columns)} FROM {table}"))


def _add_samples(raw: sqlite3.Connection, chance: random.Random) -> int:
    """Two months of an earlier meter, one sample in ten minutes, a few of them doubtful; the id of the last one."""
    meter = raw.execute("INSERT INTO meter (name, production) VALUES ('earlier', 'energy_export')").lastrowid
    (previous,) = raw.execute("SELECT max(id) FROM reading").fetchone()
    first, at = previous + 1, 1_700_000_000_000_000
    for id in range(first, first + OLD_SAMPLES):
        raw.execute(
            "INSERT INTO reading (id, prev, meter, at, boot, since_boot, trusted, index_wh, doubt, words, layout, vals)"
            " VALUES (?, ?, ?, ?, 1, 1, 1, ?, ?, x'0001', 1, '[50.02]')",
            [id, id - 1 if id > first else None, meter, at, id, "fell" if chance.random() < 0.01 else ""],
        )
        at += 600_000_000
    raw.execute("UPDATE meter SET last = ? WHERE id = ?", [id, meter])
    raw.commit()
    return id


def _look(data: Path) -> sqlite3.Connection:
    """Without a writer's rights: what is to be recovered is left to the next life."""
    return sqlite3.connect(f"file:{data / FILE}?mode=ro", uri=True)


def _recomputed(closed: list[Day], store: Store) -> None:
    """Every day that rests on two readings is what their raw words say, by the simulator's own decoding."""

    def shown_wh(reading: int) -> int:
        words = store.readings.reading(reading).words
        return int(_shown("float32", b"".join(word.to_bytes(2, "big") for word in words)) * 1000)

    for day in closed:
        if not day.estimated:
            assert day.period_wh == shown_wh(day.closing.before) - shown_wh(day.opening.before), day.day


def _settle(data: Path, clock: RehearsalClock) -> int:
    """Waits, as long as the rehearsal needs, until every closed day is confirmed by both platforms."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        store = Store.reader(data)
        counts, days = store.outbox.counts(), len(store.days.all())
        store.close()
        if days and all(set(states) == {"confirmed"} for states in counts.values()) and len(counts) == 2:
            return days
        time.sleep(0.05)
    raise AssertionError(f"not delivered by {clock.now()}: {counts}")


def test_a_store_that_acknowledges_before_it_commits_is_found_out(tmp_path: Path) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    with staged(tmp_path, seed) as stage:
        for number in range(1, 101):
            order = Order(
                str(tmp_path / "site.toml"), chance.uniform(0, 0.002), "poll", STORING, wrong="acknowledges early"
            )
            told = stage.life(order).told
            with closing(_look(stage.data)) as raw:
                if told and any(line.startswith("reading") for line in lost(raw, told)):
                    print(f"found out by kill {number}")
                    return
    raise AssertionError("a hundred kills did not find a store that acknowledges too early")

"""A site in accelerated time: simulated meters, a stand-in platform, and the real daemon between them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from heliograph import app, library
from heliograph.clock import RehearsalClock
from heliograph.core import daily
from heliograph.core.daily import Border
from heliograph.core.errors import HeliographError
from heliograph.core.health import Health
from heliograph.daemon import Daemon
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store
from heliograph.work.health import health

ZONE = ZoneInfo("Asia/Singapore")
FIRST_DAY = date(2026, 3, 13)
# Three hours and more of rehearsed time in a real second: slow enough for every round over a real line.
RATE = 10_000.0
BAUD = 115_200
TOKEN = "rehearsal-token"  # opens nothing but the stand-in platform
LATE = 1 / 50
TIMEOUT = 0.1
# How old the first answer may be on a busy machine, in rehearsed time: three tenths of a real second.
FIRST_ANSWER = timedelta(seconds=0.3 * RATE)
# A rehearsal that has not delivered everything this long (real seconds) after its last day has failed.
PATIENCE = 20.0
METERS = {
    "roof": ("STR1000000033862740", "serial", 50.0, 41_230_700),
    "barn": ("STR1000000033862741", "tcp", 30.0, 7_512_340),
}

CONFIG = """
[site]
id = "demo"
timezone = "{zone}"
data_dir = "{data}"

[[bus]]
id = "serial"
url = "{serial}"
every = "10m"
store_every = "10m"
timeout = "{timeout}ms"
retries = 2
pause = "0ms"

[[bus]]
id = "tcp"
url = "{tcp}"
every = "10m"
store_every = "10m"
{meters}
[uplink.redex]
base_url = "{platform}"
spread = "0s"
per_minute = 60
absent_after = "1h"
token = {{ file = "{token}" }}

[clock]
trust = "always"
"""
METER = """
[[meter]]
id = "{id}"
bus = "{bus}"
unit = 1
map = "eastron-sdm630"
rated_kw = {kw}
production = "energy_export"
report_as = {{ redex = "{remote}" }}
"""


@dataclass(frozen=True, slots=True)
class MeterResult:
    """Energies in Wh over the closed days: what the meter counted, and what became of it."""

    id: str
    metered_wh: int
    closed_wh: int
    delivered_wh: int
    confirmed_wh: int
    difference_wh: int
    """Counted by the simulated meter, minus what the stand-in platform holds."""


@dataclass(frozen=True, slots=True)
class Result:
    meters: tuple[MeterResult, ...]
    days: int
    outage: dict[str, str]
    late_answers: int
    violations: tuple[str, ...]
    seconds: float

    @property
    def exact(self) -> bool:
        return not self.violations and all(
            meter.difference_wh == 0 and meter.metered_wh == meter.closed_wh == meter.confirmed_wh
            for meter in self.meters
        )

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "meters": [asdict(meter) for meter in self.meters]}


@dataclass(frozen=True, slots=True)
class View:
    """What can be seen while it runs."""

    health: Health
    platform_away: bool
    platform_wh: int
    late_answers: int
    share: float
    """Of the rehearsed time that is over, 0 to 1."""


def rehearse(days: int, show: Callable[[View], None]) -> Result:
    """Runs `days` local days, the platform away for more than one of them; `show` is called several times a second."""
    began = time.monotonic()
    start = daily.start_of(FIRST_DAY, ZONE) + timedelta(hours=3)
    last = FIRST_DAY + timedelta(days=days - 1)
    end = daily.end_of(last, ZONE)
    away = (daily.end_of(FIRST_DAY, ZONE) - timedelta(hours=2), timedelta(hours=28))
    clock = RehearsalClock(start, RATE)
    with (
        tempfile.TemporaryDirectory(prefix="heliograph-demo-") as folder,
        _stage(clock) as (meters, line, server, platform),
    ):
        site = app.load(_configuration(Path(folder), line, server, platform), clock)
        with site.writer() as store:
            daemon = Daemon(site, store)
            daemon.start()
            try:
                while not _finished(store, last, clock.now()):
                    platform.away = away[0] <= clock.now() < away[0] + away[1]
                    seen = health("demo", site.meters, store, clock, site.rules, daemon.live)
                    share = min(1.0, (clock.now() - start) / (end - start))
                    show(View(seen, platform.away, _held(platform), line.counts["late"], share))
                    if (clock.now() - end).total_seconds() > PATIENCE * RATE:
                        break
                    time.sleep(0.1)
            finally:
                daemon.stop()
            results = tuple(_result(id, meters[id], last, store, platform) for id in METERS)
    span = {"from": f"{away[0]:%Y-%m-%dT%H:%MZ}", "to": f"{away[0] + away[1]:%Y-%m-%dT%H:%MZ}"}
    violations = tuple(str(one) for one in platform.violations)
    return Result(results, days, span, line.counts["late"], violations, round(time.monotonic() - began, 1))


@contextmanager
def _stage(clock: RehearsalClock) -> Iterator[tuple[dict[str, SimulatedMeter], Line, Server, Sandbox]]:
    """Two SDM630, one on a serial line that answers late now and then, one over TCP, and a platform on loopback."""
    loaded = library.load("eastron-sdm630", local=None)
    meters = {
        id: SimulatedMeter(
            loaded.map,
            clock=clock.now,
            unit=1,
            rated_kw=kw,
            serial=23_451_230 + number,
            start_export_wh=wh,
            sky=Sky(zone=ZONE, seed=number),
            seed=number,
        )
        for number, (id, (_, _, kw, wh)) in enumerate(METERS.items())
    }
    late = Faults(late=LATE, late_by=(TIMEOUT, TIMEOUT + 0.04))
    wire = Wire({1: meters["roof"]}, baud=BAUD, turnaround=0.002, faults=late, seed=1)
    sandbox = Sandbox(now=clock.now, rate=RATE, token=TOKEN, timezone=ZONE.key, processing_delay=timedelta(minutes=8))
    with Line(wire) as line, Server({1: meters["barn"]}, framing="tcp") as server, sandbox as platform:
        yield meters, line, server, platform


def _configuration(folder: Path, line: Line, server: Server, platform: Sandbox) -> Path:
    token = folder / "redex.token"
    token.write_text(TOKEN, encoding="ascii")
    path = folder / "config.toml"
    parts = [METER.format(id=id, bus=bus, kw=kw, remote=remote) for id, (remote, bus, kw, _) in METERS.items()]
    text = CONFIG.format(
        zone=ZONE.key,
        data=folder / "data",
        serial=line.url,
        tcp=server.url,
        timeout=round(TIMEOUT * 1000),
        platform=platform.url,
        token=token,
        meters="".join(parts),
    )
    path.write_text(text, encoding="utf-8")
    return path


def _finished(store: Store, last: date, now: datetime) -> bool:
    """Every rehearsed day of every meter is confirmed."""
    if now < daily.end_of(last, ZONE):
        return False
    rows = store.outbox.shown("redex")
    confirmed = sum(1 for row in rows if row["state"] == "confirmed" and row["day"] <= last)
    return confirmed == len(METERS) * ((last - FIRST_DAY).days + 1)


def _held(platform: Sandbox) -> int:
    return sum(platform.total_wh("redex", remote) for remote, *_ in METERS.values())


def _result(id: str, meter: SimulatedMeter, last: date, store: Store, platform: Sandbox) -> MeterResult:
    first = store.days.first_border(id)
    if first is None:
        raise HeliographError(
            f"{id} was never read", hint="Run the demo again; if it stays so, this is a fault of ours."
        )
    rows = [row for row in store.outbox.shown("redex", id) if row["day"] <= last]
    confirmed = sum(row["period_wh"] for row in rows if row["state"] == "confirmed")
    metered = meter.counted_wh(daily.end_of(last, ZONE)) - _begun(meter, first)
    stored = platform.stored_wh("redex", METERS[id][0])
    return MeterResult(
        id,
        metered,
        sum(day.period_wh for day in store.days.all(id, last=last)),
        confirmed + sum(row["period_wh"] for row in rows if row["state"] == "accepted"),
        confirmed,
        metered - sum(wh for day, wh in stored.items() if not isinstance(day, datetime) and day <= last),
    )


def _begun(meter: SimulatedMeter, first: Border) -> int:
    """What the meter showed when it was first read: its answer took a moment, in which the fast clock went on."""
    asked = meter.counted_wh(first.at - FIRST_ANSWER)
    return min(max(first.index_wh, asked), meter.counted_wh(first.at))


def local(at: datetime) -> str:
    return f"{at.astimezone(ZONE):%d %b %H:%M}"

"""A technician edits a map or the configuration between two lives of the gateway, and what a person is told and can do.

The daemon's own jobs on a clock that is moved by hand, real Modbus frames over loopback, the stand-in platform, the
verbs as they are typed. The oracle decodes the device's words by itself.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from heliograph import app, library
from heliograph.cli import heliograph
from heliograph.core import daily
from heliograph.core.decode import shortest_float32
from heliograph.core.registers import Function
from heliograph.daemon import Daemon
from heliograph.rehearsal.demo import ZONE
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.store import opening
from heliograph.store.connection import FILE
from heliograph.work import change as changes
from heliograph.work import poll
from tests.fakes import START, FakeClock
from tests.store.test_saved import SAVED

FIRST = date(2026, 3, 13)
CONFIG = """
[site]
id = "changed"
timezone = "{zone}"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{bus}"
every = "1h"
store_every = "1h"
[[meter]]
id = "roof"
bus = "lan"
map = "roof-meter"
rated_kw = 50
production = "energy_export"
factors = {{ ct_ratio = 40 }}
report_as = {{ redex = "STR1" }}
[uplink.redex]
base_url = "{platform}"
spread = "0s"
per_minute = 60
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""
EXPORT = '{ address = 0x004A, quantity = "energy_export", type = "float32", unit = "kWh", times = ["ct_ratio"] },'
IMPORT = '{ address = 0x0048, quantity = "energy_import", type = "float32", unit = "kWh", times = ["ct_ratio"] },'
MAP = f"""
name = "roof-meter"
products = ["the meter on this roof"]
source = "its sheet, version 3"
version = "2026-01-01"
status = "documented"
production = "energy_export"
from_site = ["ct_ratio"]
registers = [
  {{ address = 0x0046, quantity = "frequency", type = "float32", unit = "Hz" }},
  {IMPORT}
  {EXPORT}
]
""".replace('["ct_ratio"] }', '["ct_ratio"], monotonic = true }')

# What is edited (in the map, or in the configuration), what it is called, where the counter lies then, and Wh per unit
# of the display.
EDITS: dict[str, tuple[str, str, str, int, Decimal]] = {
    "unit": (
        'energy_export", type = "float32", unit = "kWh"',
        'energy_export", type = "float32", unit = "Wh"',
        "unit Wh instead of kWh",
        0x4A,
        Decimal(40),
    ),
    "scale": (
        'energy_export", type = "float32",',
        'energy_export", type = "float32", scale = 0.001,',
        "scale 0.001 instead of 1",
        0x4A,
        Decimal(40),
    ),
    "address": (
        '0x0048, quantity = "energy_import"',
        '0x004A, quantity = "energy_import"',
        "address 0x0048 instead of 0x004A",
        0x48,
        Decimal(40_000),
    ),
    "ratio": ("ct_ratio = 40", "ct_ratio = 50", "ct_ratio 50 instead of 40", 0x4A, Decimal(50_000)),
    "counter": (
        'production = "energy_export"\nfactors',
        'production = "energy_import"\nfactors',
        "energy_import instead of energy_export; address 0x0048 instead of 0x004A",
        0x48,
        Decimal(40_000),
    ),
}


ALL = ("--from", "2026-03-13", "--to", "2026-03-20")


class Site:
    def __init__(self, folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.maps = folder, folder / "meters"
        self.maps.mkdir()
        (folder / "token").write_text("token")
        monkeypatch.setattr(library, "shipped_dir", lambda: self.maps)
        self.map = self.maps / "roof-meter.toml"
        self.map.write_text(MAP)
        self.clock = FakeClock(daily.start_of(FIRST, ZONE) + timedelta(hours=5))
        monkeypatch.setattr(app, "SystemClock", lambda _trust: self.clock)
        self.device = SimulatedMeter(
            library.load("roof-meter", None).map,
            clock=self.clock.now,
            start_export_wh=20_000,
            start_import_wh=340_000,
            sky=Sky(zone=ZONE, seed=3),
            seed=3,
            settings={"ct_ratio": 40},
        )
        server = Server({1: self.device}, framing="tcp").start()
        stack.callback(server.close)
        self.platform = stack.enter_context(
            Sandbox(now=self.clock.now, token="token", timezone=ZONE.key, processing_delay=timedelta(minutes=8))
        )
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(zone=ZONE.key, folder=folder, bus=server.url, platform=self.platform.url))

    def edit(self, name: str, *, back: bool = False) -> None:
        old, new = EDITS[name][:2]
        if back:
            old, new = new, old
        changed = 0
        for path in (self.map, self.config):
            text = path.read_text()
            changed += text.count(old)
            if name == "address" and old in text:
                # No two registers may lie on one address: the lines exchange theirs.
                text = text.replace("0x0048", "0x0000").replace("0x004A", "0x0048").replace("0x0000", "0x004A")
            path.write_text(text.replace(old, new) if name != "address" else text)
        assert changed == 1

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

    def live(self, hours: float) -> None:
        """A life of the gateway."""
        with self.running() as daemon:
            until = self.clock.now() + timedelta(hours=hours)
            while self.clock.now() < until:
                daemon._poll(daemon.lines[0])
                daemon._close()
                for uplink in daemon.uplinks:
                    daemon._deliver(uplink)
                self.clock.leap(hours=1)
            daemon._attest()

    def ask(self, *words: str, fails: bool = False) -> Result:
        done = CliRunner().invoke(heliograph, [*words, "--config", str(self.config)], standalone_mode=False)
        assert (done.exception is not None) == fails, (done.output, done.exception)
        return done

    def told(self, *words: str) -> Any:
        return json.loads(self.ask(*words, "--json").stdout)

    def shown(self, at: datetime, address: int = 0x4A, wh: Decimal = Decimal(40_000)) -> int:
        """A counter in whole Wh, by nobody but this test."""
        words = self.device.words("input", address, 2, at)
        assert isinstance(words, tuple)
        display = shortest_float32(struct.unpack(">f", struct.pack(">2H", *words))[0])
        return int((display * wh).to_integral_value(ROUND_FLOOR))

    def delivered(self) -> int:
        return sum(self.platform.stored_wh("redex", "STR1").values())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack, monkeypatch)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_counter_is_told_confirmed_explained_and_proven(site: Site, name: str) -> None:
    _, _, words, address, wh = EDITS[name]
    site.live(29)  # until ten in the morning of the second day
    assert len(site.platform.stored_wh("redex", "STR1")) == 1
    before = site.delivered()
    site.edit(name)
    (warning,) = site.told("check")["warnings"]  # before the gateway is restarted
    assert words in warning and ("would read" in warning) == (address == 0x4A)
    site.live(20)
    site.live(22)  # a restart in between; then it is four in the morning of the fourth day
    assert site.delivered() == before > 0
    status = site.told("status")
    (alarm,) = [alarm for alarm in status["alarms"] if "roof:" in alarm]
    assert words in alarm and "instead of" in alarm and "heliograph swap roof --map-changed" in alarm
    assert status["meters"][0]["state"] == "doubtful" and status["meters"][0]["changed"] + "." == alarm
    days, backlog = site.ask("days", *ALL), site.ask("backlog")
    assert days.return_value == backlog.return_value == 1 and words in days.stderr and words in backlog.stderr
    assert words in site.ask("explain", "roof", "2026-03-14").stdout
    refused = site.ask("swap", "roof", "--map-changed", "--old-index", "1", "--yes", fails=True)
    assert "taken from what was read" in str(refused.exception)

    if name == "ratio":  # asked of the running gateway
        with site.running() as daemon:
            wish = {"note": "compared by P. Tan", "dry": False}
            done = daemon.answer("/api/v1/meters/roof/map-changed", wish)
            daemon._poll(daemon.lines[0])
            newest = daemon.store.readings.last("roof")
            assert newest is not None and not newest.doubt
    else:
        done = site.told("swap", "roof", "--map-changed", "--note", "compared by P. Tan", "--yes")
    assert words in done["seam"] and done["readings"] == 42
    site.live(26)
    (seam,) = site.told("explain", "roof", "2026-03-14")["seams"]
    assert seam["on_this_day"] and words in seam["text"] and "compared by P. Tan" in seam["note"]
    assert seam["was"]["digest"] != seam["is"]["digest"] and seam["is"]["text"] != seam["was"]["text"]
    shown = site.ask("explain", "roof", "2026-03-15").stdout
    assert f"is  {seam['is']['text']} [{seam['is']['digest'][:8]}]" in shown

    closed = [day for day in site.told("days", *ALL) if day["state"] == "closed"]
    assert [day["day"] for day in closed] == ["2026-03-13", "2026-03-14", "2026-03-15", "2026-03-16"]
    total = 0
    for day in closed:
        told = site.told("explain", "roof", day["day"])
        assert told["checks"] and all(check["ok"] for check in told["checks"]), told["checks"]
        total += told["period_wh"]
    first, last = (site.told("explain", "roof", closed[end]["day"]) for end in (0, -1))
    began, ended = at(first["opening"]["before"]["at"]), at(last["closing"]["before"]["at"])
    over = at(seam["at"])
    truly = site.shown(over) - site.shown(began) + site.shown(ended, address, wh) - site.shown(over, address, wh)
    assert total == truly == site.delivered() == last["total_wh"]
    assert [str(one) for one in site.platform.violations] == []
    _proven(site, total)


def _proven(site: Site, total: int) -> None:
    told = _verified(site)
    assert told["sound"] and told["findings"] == [] and told["meters"]["roof"]["wh"] == total


def _verified(site: Site) -> Any:
    path = site.folder / "site.pack"
    site.ask("export", str(path), "--from", "2026-03-13", "--to", str(daily.day_of(site.clock.now(), ZONE)))
    return json.loads(CliRunner().invoke(heliograph, ["verify", str(path), "--json"], standalone_mode=False).stdout)


def test_a_gateway_that_did_not_look_would_be_found_out_by_verify(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the wrong energy is booked, and the pack shows two meanings without a seam between them."""
    monkeypatch.setattr(poll, "pending", lambda _meter, _store: None)
    site.live(29)
    site.edit("ratio")
    site.live(45)
    closed = [day for day in site.told("days", *ALL) if day["state"] == "closed"]
    assert len(closed) == 3
    last = at(site.told("explain", "roof", closed[-1]["day"])["closing"]["before"]["at"])
    first = at(site.told("explain", "roof", closed[0]["day"])["opening"]["before"]["at"])
    assert sum(day["period_wh"] for day in closed) > site.shown(last) - site.shown(first) + 50_000
    findings = [str(one) for one in _verified(site)["findings"]]
    assert findings and all("is read in another way than before, without a seam" in one for one in findings)


@pytest.mark.parametrize("looks", [True, False])
def test_a_ratio_that_the_meter_tells_and_that_nobody_looked_at_would_be_found_out_by_verify(
    site: Site, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """Set to 41 at the meter: one who looks books nothing, one who does not is found out."""
    if not looks:
        monkeypatch.setattr(poll, "told_ratios", lambda _meter, _values: {})
    told = site.map.read_text().replace('from_site = ["ct_ratio"]', "")
    site.map.write_text(
        told.replace("registers = [", 'registers = [\n  { address = 0x0100, quantity = "ct_ratio", type = "u16" },')
    )
    site.config.write_text(site.config.read_text().replace("factors = { ct_ratio = 40 }", ""))
    words, ratio = site.device.words, [40]

    def answer(function: Function, address: int, count: int, at: datetime | None = None) -> tuple[int, ...] | Refusal:
        return (ratio[0],) if (address, count) == (0x0100, 1) else words(function, address, count, at)

    monkeypatch.setattr(site.device, "words", answer)
    site.live(29)
    ratio[0] = 41
    site.live(40)
    closed = [day for day in site.told("days", *ALL) if day["state"] == "closed"]
    findings = [str(one) for one in _verified(site)["findings"]]
    assert len(closed) == (1 if looks else 3)
    assert not findings if looks else findings and all("ct_ratio is 41 instead of 40" in one for one in findings)


@pytest.mark.parametrize("name", EDITS)
def test_put_back_it_goes_on_and_every_watt_hour_is_delivered(site: Site, name: str) -> None:
    site.live(29)
    site.edit(name)
    site.live(2)
    site.edit(name, back=True)
    site.live(45)
    closed = [day for day in site.told("days", *ALL) if day["state"] == "closed"]
    assert len(closed) == 3 and not any(day["estimated_split"] for day in closed)
    first, last = (site.told("explain", "roof", closed[end]["day"]) for end in (0, -1))
    began, ended = at(first["opening"]["before"]["at"]), at(last["closing"]["before"]["at"])
    assert site.delivered() == site.shown(ended) - site.shown(began) == last["total_wh"]
    assert not [alarm for alarm in site.told("status")["alarms"] if "roof:" in alarm]
    site.ask("swap", "roof", "--map-changed", "--yes", fails=True)


def test_a_copy_that_takes_the_place_of_a_lost_store_still_knows_what_is_booked(site: Site) -> None:
    """The copy is older than the edit; and one that is younger than it."""
    site.live(29)
    site.edit("ratio")
    for _ in range(2):
        with site.running() as daemon:
            daemon.app.copy_ledger(forced=True)
        opening.mark(site.folder / "data", "open")
        with (site.folder / "data" / FILE).open("r+b") as file:
            file.write(b"\xff" * 4096)
        site.live(20)
        assert any("ct_ratio 50 instead of 40" in alarm for alarm in site.told("status")["alarms"])
        assert len(site.platform.stored_wh("redex", "STR1")) == 1
    site.ask("swap", "roof", "--map-changed", "--yes")
    site.live(25)
    # A copy holds few samples: how the energy of the days between is split is for a person to say.
    assert [day["state"] for day in site.told("days", *ALL)] == ["closed", "held", "held", "closed"]
    site.ask("release", "roof", "2026-03-14..2026-03-15", "--split", "time", "--yes")
    site.live(2)
    closed = [day for day in site.told("days", *ALL) if day["state"] == "closed"]
    (seam,) = site.told("explain", "roof", "2026-03-16")["seams"]
    first, last = (site.told("explain", "roof", closed[end]["day"]) for end in (0, -1))
    began, over = at(first["opening"]["before"]["at"]), at(seam["at"])
    ended, new = at(last["closing"]["before"]["at"]), EDITS["ratio"][3:]
    truly = site.shown(over) - site.shown(began) + site.shown(ended, *new) - site.shown(over, *new)
    assert len(closed) == 4 and site.delivered() == truly == sum(day["period_wh"] for day in closed)


def test_another_text_of_the_map_that_means_the_same_opens_nothing(site: Site) -> None:
    """As a release of ours brings it: another digest, comments, timing, one register more."""
    site.live(10)
    site.map.write_text(
        MAP.replace("version 3", "version 4").replace("2026-01-01", "2026-02-01").replace("0x004A", "74")
        + '[timing]\npause = "5ms"\n'
    )
    site.live(19)
    assert len(site.platform.stored_wh("redex", "STR1")) == 1
    assert not [alarm for alarm in site.told("status")["alarms"] if "roof:" in alarm]


def _forgotten(site: Site) -> None:
    """As a version left it that did not store meanings."""
    with sqlite3.connect(site.folder / "data" / FILE) as store:
        assert store.execute("UPDATE meter SET meaning = NULL").rowcount == 1
    store.close()


@pytest.mark.parametrize("name", [None, *EDITS])
def test_a_store_without_meanings_tells_them_by_its_maps_and_configurations(site: Site, name: str | None) -> None:
    """An update of the software alone opens nothing; an edit that comes with it does."""
    site.live(29)
    _forgotten(site)
    if name is not None:
        site.edit(name)
    site.live(20)
    alarms = [alarm for alarm in site.told("status")["alarms"] if "roof:" in alarm]
    assert len(site.platform.stored_wh("redex", "STR1")) == (2 if name is None else 1)
    assert not alarms if name is None else EDITS[name][2] in alarms[0]


@pytest.mark.parametrize("version", sorted(path.stem for path in SAVED.glob("*.db")))
def test_a_site_of_every_version_is_updated_without_a_question(tmp_path: Path, version: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "token").write_text("token")
    shutil.copy(SAVED / f"{version}.db", tmp_path / "data" / FILE)
    config = tmp_path / "config.toml"
    text = CONFIG.format(zone="Asia/Singapore", folder=tmp_path, bus="tcp://127.0.0.1:9", platform="http://127.0.0.1:9")
    config.write_text(text.replace("roof-meter", "eastron-sdm630").replace("factors", "# factors"))
    for _ in range(2):
        site = app.load(config, FakeClock(START + timedelta(days=3)))
        with site.writer() as store:
            assert changes.waiting(site.meters, store) == []
            assert (store.readings.meaning("roof") or ("", None))[1] is not None


@pytest.mark.parametrize("ratio", [50, 30])
def test_days_that_were_read_wrongly_from_the_beginning_are_made_up_for(site: Site, ratio: int) -> None:
    """The transformers were 50:5 (or 30:5) all the time. Closed days stay; what follows takes the difference."""
    site.live(50)
    text = site.config.read_text()
    site.config.write_text(text.replace("ct_ratio = 40", f"ct_ratio = {ratio}"))
    site.live(3)
    refused = site.ask("swap", "roof", "--corrects", "1", "--reread", "--note", "label read", "--yes", fails=True)
    assert "is none at which the same counter was read in another way" in str(refused.exception)
    assert "--corrects 1 --reread" in site.ask("swap", "roof", "--map-changed", "--yes").stdout
    refused = site.ask("swap", "roof", "--corrects", "1", "--reread", "--yes", fails=True)
    assert "needs its reason" in str(refused.exception)
    done = site.told("swap", "roof", "--corrects", "1", "--reread", "--note", "label read", "--yes")
    assert (done["moves_wh"] > 0) == (ratio > 40) and "the same words say" in done["because"]
    refused = site.ask("swap", "roof", "--corrects", "1", "--reread", "--note", "again", "--yes", fails=True)
    assert "rests on these counters already" in str(refused.exception)
    site.live(100)
    days = site.told("days", *ALL)
    closed = [day for day in days if day["state"] == "closed"]
    assert len(days) == len(closed) == 6 and all(day["period_wh"] >= 0 for day in closed)
    first, last = (site.told("explain", "roof", closed[end]["day"]) for end in (0, -1))
    began, ended = at(first["opening"]["before"]["at"]), at(last["closing"]["before"]["at"])
    right = 0x4A, Decimal(1000 * ratio)
    assert site.delivered() == last["total_wh"] == site.shown(ended, *right) - site.shown(began, *right)
    told = _verified(site)
    assert told["sound"] and told["findings"] == []


def test_a_start_on_a_stale_clock_does_not_mix_up_what_was_said_when(site: Site) -> None:
    """A box without a clock of its own wakes up days before it went to sleep, and reads an edited configuration."""
    site.live(53)
    site.edit("ratio")
    asleep = timedelta(days=2, hours=3)
    site.clock.at -= asleep
    site.clock.synchronised = False
    with site.running() as daemon:  # the configuration is written down now
        site.clock.at += asleep + timedelta(minutes=10)
        site.clock.up += 600
        site.clock.synchronised = True
        daemon._close()
    site.live(15)
    site.ask("swap", "roof", "--map-changed", "--yes")
    site.live(25)
    closed = [day for day in site.told("days", *ALL) if day["state"] == "closed"]
    assert len(closed) == 4
    for day in closed:
        told = site.told("explain", "roof", day["day"])
        assert all(check["ok"] for check in told["checks"]), told["checks"]
    told = _verified(site)
    assert told["sound"], told["findings"]

"""An hour in which a broker does what brokers do, and the gateway behind it works on as if there were none.

Two gateways of the same meters run beside each other on one rehearsed clock: one that nobody listens to, and one with
every output. The broker of the second is frozen, killed, and started again with another password, while a day ends and
is delivered. Then both must have measured as often, delivered the same, and hold as much memory as before; and what the
broker retains must be what the store says.

HELIOGRAPH_HOURS=6 pytest -n 0 -s tests/e2e/test_broker_storm.py goes through that six times.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from heliograph import control, library
from heliograph.clock import RehearsalClock
from heliograph.core.quantity import PRODUCTION_TOTAL
from heliograph.core.readings import Moment, Reading
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store
from heliograph.store.connection import FILE
from heliograph.work.show import figures
from tests.e2e.backlog import Backlog
from tests.fakes import SINGAPORE, free_port, in_memory
from tests.outputs.mosquitto import Mosquitto, certificates, needs_mosquitto, running, until
from tests.outputs.sparkplug_checker import Checker, decoded

pytestmark = needs_mosquitto

CHILD = Path(__file__).with_name("site.py")
ROOT = Path(__file__).parents[2]
RATE = float(os.environ.get("HELIOGRAPH_RATE", "150"))
HOURS = int(os.environ.get("HELIOGRAPH_HOURS", "1"))
EVERY = timedelta(seconds=20)
METERS, DAYS = 4, 5
USER = "gateway"
FIRST = date(2026, 3, 9)
MAP = library.load("eastron-sdm630", local=None).map
SITE = """
[site]
id = "storm"
timezone = "{zone}"
data_dir = "{folder}/data"
[clock]
trust = "always"
[close]
after = "15m"
[[bus]]
id = "lan"
url = "{bus}"
every = "20s"
store_every = "20s"
pause = "0ms"
[uplink.redex]
base_url = "{platform}"
spread = "0s"
token = {{ file = "{folder}/token" }}
"""
METER = """
[[meter]]
id = "i{number}"
bus = "lan"
unit = {unit}
map = "eastron-sdm630"
rated_kw = 50
{report}
"""
OUTPUTS = """
[mqtt]
url = "{url}"
username = "{user}"
password = {{ file = "{folder}/mqtt.password" }}
{tls}
every = "1s"
dead_band = 0
home_assistant = "homeassistant"
[sparkplug]
url = "{url}"
username = "{user}"
password = {{ file = "{folder}/mqtt.password" }}
{tls}
group = "fleet"
every = "1s"
dead_band = 0
[metrics]
listen = "127.0.0.1:{metrics}"
[web]
listen = "127.0.0.1:{web}"
token = {{ file = "{folder}/web.token" }}
"""
TLS = """ca_file = "{tls}/ca.pem"
certificate_file = "{tls}/client.pem"
key_file = "{tls}/client.key"
"""
WEB_TOKEN = "0123456789abcdef" * 4


MOST_BLOCKS = 1000
"""Pieces of memory after an hour with 180 rounds of four meters: a message of each would be twice as many."""
MOST_KB = 4000
AT_ONCE = {("send", "accepted", 1), ("follow", "confirmed", 1)}
"""The trail of days of which none was sent twice, asked for in vain or read back."""


def period_wh(number: int, day: int) -> int:
    return 10_000 + 1000 * number + day


@dataclass
class Gateway:
    """A site with its meters and its platform: a process of its own."""

    folder: Path
    clock: RehearsalClock
    server: Server
    platform: Sandbox
    process: subprocess.Popen[str]
    weights: list[dict[str, int]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "data" / "heliograph.sock"

    def status(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] | None = control.ask(self.socket, "/api/v1/status")
        assert found is not None, "the gateway does not answer"
        return found

    def output(self, name: str) -> Mapping[str, Any]:
        return next(one for one in self.status()["outputs"] if one["name"] == name)

    def weigh(self) -> None:
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGUSR1)
        self.weights.append(json.loads(self.process.stdout.readline()))

    def requests(self) -> Mapping[str, int]:
        """At the platform, but for the reconciliation, which comes once a week at a moment by chance."""
        return {kind: number for kind, number in self.platform.requests.items() if kind != "redex.read"}

    def trail(self) -> set[tuple[str, str, int]]:
        """What was asked of the platform about days, what they became by it, and how often that came again."""
        with closing(sqlite3.connect(f"file:{self.folder}/data/{FILE}?mode=ro", uri=True)) as raw:
            return set(raw.execute("SELECT asked, state, times FROM attempt"))

    def rounds(self, meter: int) -> list[datetime]:
        """When a meter was read; every reading is stored."""
        statement = "SELECT at FROM reading WHERE meter = (SELECT id FROM meter WHERE name = ?) ORDER BY at"
        with closing(sqlite3.connect(f"file:{self.folder}/data/{FILE}?mode=ro", uri=True)) as raw:
            rows = raw.execute(statement, (f"i{meter}",)).fetchall()
        return [datetime.fromtimestamp(at / 1e6, UTC) for (at,) in rows]


@contextmanager
def living(folder: Path, clock: RehearsalClock, sections: str, *wrong: str) -> Iterator[Gateway]:
    """A gateway with some delivered days behind it, twenty minutes before midnight. Its counters rest in the night, so
    that the figures of the day do not depend on when exactly it is read; everything else it reads moves."""
    folder.mkdir(exist_ok=True)
    backlog = Backlog(METERS, DAYS, FIRST, period_wh)
    backlog.fill(folder / "data", clock.now())
    last = Moment(backlog.end, "boot-1", 0.0, True)
    store = Store.writer(folder / "data")
    store.readings.begin("storm", SINGAPORE.key, last.boot_id, clock.now())
    stands = [1_000_000 + sum(period_wh(number, day) for day in range(DAYS)) for number in range(METERS)]
    store.readings.add([Reading(f"i{number}", last, stand) for number, stand in enumerate(stands)])
    store.close()
    meters = {
        number + 1: SimulatedMeter(
            MAP,
            clock=clock.now,
            unit=number + 1,
            sky=Sky(SINGAPORE),
            start_export_wh=stand + period_wh(number, DAYS),
            seed=number,
        )
        for number, stand in enumerate(stands)
    }
    (folder / "token").write_text("token")
    sandbox = Sandbox(clock.now, token="token", rate=clock.rate, timezone=SINGAPORE.key)
    with Server(meters, rate=clock.rate) as server, sandbox as platform:
        text = SITE.format(zone=SINGAPORE.key, folder=folder, bus=server.url, platform=platform.url)
        for number in range(METERS):
            report = f'report_as = {{ redex = "{backlog.name("redex", number)}" }}'
            text += METER.format(number=number, unit=number + 1, report=report)
        (folder / "config.toml").write_text(text + sections)
        command = [sys.executable, str(CHILD), str(folder / "config.toml"), clock._start.isoformat(), str(clock.rate)]
        command += [str(clock._began), "listen", *wrong]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                gateway = Gateway(folder, clock, server, platform, process)
                until(lambda: control.ask(gateway.socket, "/api/v1/status") is not None, "the gateway answers")
                yield gateway
            finally:
                process.terminate()


@dataclass
class Storm:
    """Both gateways, the broker of one of them, and what was wrong so far."""

    calm: Gateway
    stormy: Gateway
    broker: Mosquitto
    clock: RehearsalClock
    faults: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ("mqtt", "sparkplug")
    """Outputs that have the broker."""
    began: datetime = field(init=False)
    announced: dict[str, bytes] = field(default_factory=dict)
    """To Home Assistant, before anything happened."""

    def __post_init__(self) -> None:
        self.began = self.clock.now()

    def minute(self) -> float:
        return (self.clock.now() - self.began) / timedelta(minutes=1)

    def becomes(self, up: bool, word: str = "") -> None:
        """Waits until all outputs say so, with this word in what is wrong."""

        def says(one: Mapping[str, Any]) -> bool:
            return one["up"] is up and (word in one["trouble"] if word else not one["trouble"])

        until(
            lambda: all(says(self.stormy.output(name)) for name in self.names),
            f"outputs are {'up' if up else 'down'}, {word!r}: {self.stormy.status()['outputs']}",
        )

    def stays(self, up: bool, minute: float) -> None:
        """Until that minute of the hour, and status says all the time how the broker is."""
        while self.minute() < minute:
            for name in self.names:
                told = self.stormy.output(name)
                if told["up"] is not up or bool(told["trouble"]) is up:
                    self.faults.append(f"minute {self.minute():.0f}: {told}")
            time.sleep(0.3)

    def weigh(self) -> None:
        for one in (self.calm, self.stormy):
            one.weigh()


def hour(storm: Storm, number: int) -> None:
    """One after another, what happens to a broker."""
    broker, begin = storm.broker, storm.minute()
    storm.becomes(up=True)
    storm.stays(up=True, minute=begin + 6)
    storm.announced = retained(broker, "homeassistant/#")
    storm.weigh()
    broker.freeze()
    storm.becomes(up=False, word="answer")
    storm.stays(up=False, minute=begin + 22)
    storm.weigh()
    broker.thaw()
    storm.becomes(up=True)
    storm.stays(up=True, minute=begin + 25)
    broker.kill()
    storm.becomes(up=False, word="listens")
    storm.stays(up=False, minute=begin + 38)  # the day is closed in minute 35
    storm.weigh()
    word = f"another-{number}"
    broker.passwords = {USER: word, "observer": "observer"}
    broker.start()
    storm.becomes(up=False, word="refuses")
    storm.stays(up=False, minute=begin + 48)
    (storm.stormy.folder / "mqtt.password").write_text(word + "\n")
    storm.becomes(up=True)
    storm.stays(up=True, minute=begin + 60)
    storm.weigh()


@contextmanager
def storming(folder: Path, *wrong: str) -> Iterator[Storm]:
    passwords, tls = {USER: "first", "observer": "observer"}, certificates(folder / "tls")
    with running(folder, passwords=passwords, tls=tls) as broker:
        start = datetime(2026, 3, 14, 15, 40, tzinfo=UTC)  # 23:40 in Singapore
        home = folder / "stormy"
        home.mkdir()
        (home / "mqtt.password").write_text("first\n")
        (home / "web.token").write_text(WEB_TOKEN)
        ports = {name: free_port() for name in ("metrics", "web")}
        sections = OUTPUTS.format(url=broker.url, user=USER, folder=home, tls=TLS.format(tls=tls), **ports)
        clock = RehearsalClock(start, RATE)
        with living(folder / "calm", clock, "") as calm, living(home, clock, sections, *wrong) as stormy:
            yield Storm(calm, stormy, broker, clock)


def cadence(storm: Storm, since: datetime, to: datetime) -> list[str]:
    """Rounds of both in that time, which had the same machine: as many, and none waited for longer."""
    faults = []
    for number in range(METERS):
        counts, longest = [], []
        for one in (storm.calm, storm.stormy):
            moments = [at for at in one.rounds(number) if since <= at <= to]
            gaps = [b - a for a, b in pairwise(moments)]
            counts.append(len(moments))
            longest.append(max(gaps, default=to - since))
        print(f"i{number}: rounds {counts}, longest {[str(one) for one in longest]}")
        if counts[1] < 0.95 * counts[0] - 1:
            faults.append(f"i{number} was read {counts[1]} times, beside the other {counts[0]} times")
        if longest[1] > longest[0] + 5 * EVERY:
            faults.append(f"i{number} was not read for {longest[1]}, beside the other for {longest[0]}")
    return faults


def memory(storm: Storm) -> list[str]:
    """Against the one without a broker, which the same moments made as old."""
    faults = []
    calm, stormy = storm.calm.weights, storm.stormy.weights
    for name, weights in (("calm", calm), ("stormy", stormy)):
        print(f"{name}: {weights}")
    for what, most in (("blocks", MOST_BLOCKS), ("kb", MOST_KB), ("threads", 2)):
        grew = (stormy[-1][what] - stormy[0][what]) - max(0, calm[-1][what] - calm[0][what])
        if grew > most:
            faults.append(f"holds {grew} {what} more than before: {[one[what] for one in stormy]}")
    return faults


def delivery(storm: Storm) -> list[str]:
    """Both platforms hold the same days with the same figures, and were asked no more than that takes."""
    faults = []
    for number in range(METERS):
        expected = {FIRST + timedelta(days=day): period_wh(number, day) for day in range(DAYS + 1)}
        for name, one in (("calm", storm.calm), ("stormy", storm.stormy)):
            held = one.platform.stored_wh("redex", f"INV-{number}")
            if held != expected:
                faults.append(f"{name}: INV-{number} has {held}, not {expected}")
    calm, stormy = storm.calm.requests(), storm.stormy.requests()
    print(f"requests {dict(calm)} {dict(stormy)}")
    # What was waiting leaves together. A night's days do too, or one by one where a round of delivering meets the round
    # that closes them: a matter of milliseconds, with a broker or without.
    if any(number > 1 + METERS for number in stormy.values()):
        faults.append(f"requests {dict(calm)} without a broker, {dict(stormy)} with it")
    if (trail := storm.stormy.trail()) != AT_ONCE:
        faults.append(f"days did not leave once and arrive: {trail}")
    return faults + [f"violation {one}" for one in storm.stormy.platform.violations]


def retained(broker: Mosquitto, topics: str) -> dict[str, bytes]:
    """What somebody sees who comes to the broker only now."""
    with broker.listening(topics, "marker", user="observer", password="observer") as listener:
        listener.say("marker", b"end")
        listener.wait_for("marker", b"end")  # behind everything that is retained
        return {one.topic: one.payload for one in listener.messages if one.retained}


def stated(storm: Storm) -> list[str]:
    """Whether all that others see is what the store says."""
    faults = []
    seen = retained(storm.broker, "heliograph/#")
    announced = retained(storm.broker, "homeassistant/#")
    if announced != storm.announced or len(announced) != METERS + 1:
        faults.append(f"Home Assistant was told of {sorted(storm.announced)}, and now of {sorted(announced)}")
    if seen.get("heliograph/storm/status") != b"online":
        faults.append(f"status is {seen.get('heliograph/storm/status')!r}")
    store = Store.reader(storm.stormy.folder / "data")
    expected = {
        f"heliograph/storm/{one.meter}/day/{one.day}": (one.state, one.period_wh, one.total_wh, dict(one.deliveries))
        for one in figures(store, storm.clock, SINGAPORE)
    }
    store.close()
    told = {topic: json.loads(payload) for topic, payload in seen.items() if "/day/" in topic}
    days = {topic: (one["state"], one["period_wh"], one["total_wh"], one["deliveries"]) for topic, one in told.items()}
    if days != expected or len(days) != METERS * (DAYS + 1):
        faults.append(f"the broker has {days}, the store {expected}")
    listed = {(one["meter"], one["day"]): one["period_wh"] for one in asked(storm, "/api/v1/days")["days"]}
    closed = {(topic.split("/")[2], topic.split("/")[4]): one[1] for topic, one in expected.items()}
    if {place: wh for place, wh in listed.items() if place in closed} != closed:
        faults.append(f"the REST has {listed}, the store {expected}")
    for meter in storm.stormy.status()["meters"]:
        total = json.loads(seen[f"heliograph/storm/{meter['id']}/{PRODUCTION_TOTAL.name}"])
        if (total["value"], total["quality"]) != (meter["total_wh"], "good"):
            faults.append(f"the broker has {total}, the store {meter['total_wh']}")
        if seen.get(f"heliograph/storm/{meter['id']}/availability") != b"online":
            faults.append(f"{meter['id']} is not available at the broker")
        shown = f'heliograph_energy_watthours_total{{meter="{meter["id"]}"}} {float(meter["total_wh"])}'
        if shown not in scraped(storm):
            faults.append(f"no {shown!r} in {scraped(storm)}")
    return faults


def hosted(storm: Storm) -> list[str]:
    """What a Sparkplug host comes to know that asks for all births now, and whether it had reason to complain."""
    wish = decoded(b"")
    metric = wish.metrics.add()
    metric.name, metric.datatype, metric.boolean_value = "Node Control/Rebirth", 11, True
    with storm.broker.listening("spBv1.0/fleet/#", user="observer", password="observer") as listener:
        listener.say("spBv1.0/fleet/NCMD/storm", wish.SerializeToString())

        def host() -> Checker:
            checker, heard = Checker(), tuple(listener.messages)
            asked = next((number for number, one in enumerate(heard) if "/NCMD/" in one.topic), len(heard))
            born = [number for number, one in enumerate(heard) if number > asked and "/NBIRTH/" in one.topic]
            for one in heard[born[0] :] if born else ():
                checker.hear(one.topic, one.payload, one.qos, one.retained)
            return checker

        until(lambda: len(host().devices) == METERS, "the node and its devices are born again")
        checker = host()
    totals = {meter["id"]: meter["total_wh"] for meter in storm.stormy.status()["meters"]}
    told = {id: checker.told[id, PRODUCTION_TOTAL.name][-1].value for id in totals}
    return checker.problems + ([] if told == totals else [f"the host knows {told}, the store {totals}"])


def scraped(storm: Storm) -> list[str]:
    with urllib.request.urlopen(storm.stormy.output("metrics")["where"], timeout=60) as answer:
        text: str = answer.read().decode()
    return text.splitlines()


def asked(storm: Storm, path: str) -> Mapping[str, Any]:
    """What the REST answers over HTTP."""
    where = storm.stormy.output("web")["where"] + path
    request = urllib.request.Request(where, headers={"Authorization": f"Bearer {WEB_TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: Mapping[str, Any] = json.load(answer)
    return found


def test_an_hour_of_storm_disturbs_neither_metering_nor_delivery_nor_memory() -> None:
    with in_memory() as folder, storming(folder) as storm:
        for number in range(HOURS):
            hour(storm, number)
        since, to = storm.began + timedelta(minutes=2), storm.clock.now()
        faults = storm.faults + cadence(storm, since, to) + memory(storm) + delivery(storm)
        faults += stated(storm) + hosted(storm)
        assert faults == []


def test_an_output_that_waits_or_keeps_is_found_out() -> None:
    """Minutes suffice: the broker is frozen, and whoever waits for it measures nothing."""
    with in_memory() as folder, storming(folder, "waits", "keeps") as storm:
        storm.becomes(up=True)
        storm.weigh()
        began = storm.clock.now()
        storm.broker.freeze()
        storm.stays(up=True, minute=storm.minute() + 4)
        storm.broker.thaw()
        to = storm.clock.now()
        until(lambda: len([at for at in storm.stormy.rounds(0) if at > to]) > 30, "it measures again")
        storm.weigh()
        assert any("was read" in fault for fault in cadence(storm, began, to))
        assert any("blocks more" in fault for fault in memory(storm))

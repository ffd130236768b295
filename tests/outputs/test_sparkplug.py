"""A Sparkplug edge node at a real mosquitto, followed by a strict host that shares no code with it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from heliograph import __version__, app, library
from heliograph.clock import RehearsalClock
from heliograph.core.health import Health, MeterHealth, ProofHealth
from heliograph.core.quantity import PRODUCTION_TOTAL
from heliograph.core.readings import Moment, Reading
from heliograph.core.shown import PastSample, Sample
from heliograph.daemon import Daemon
from heliograph.outputs import broker
from heliograph.outputs.broker import Address
from heliograph.outputs.sparkplug import Role, Sparkplug
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store
from heliograph.work.look_back import look_back
from tests.fakes import SINGAPORE, FakeClock, a_meter, in_memory
from tests.outputs.mosquitto import GENEROUS, Mosquitto, mosquitto, needs_mosquitto, until
from tests.outputs.sparkplug_checker import Checker, Told, decoded

__all__ = ["mosquitto"]

pytestmark = needs_mosquitto

RATE = 60.0
"""Of the clock: a frozen broker is found out in 2 s, and the node comes back within the second."""
START = datetime(2026, 3, 14, 4, tzinfo=UTC)
METERS = tuple(
    replace(a_meter(id, unit=unit), every=timedelta(seconds=10)) for unit, id in enumerate(("roof", "shed"), 1)
)
STATE = "spBv1.0/STATE/scada"


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen broker is found out in two seconds."""
    monkeypatch.setattr(broker, "LEAST_KEEPALIVE", 1)


class Host:
    """Hears everything through a client of its own, and comes back by itself. `primary`: it says that it is there."""

    def __init__(self, broker: Mosquitto, *, primary: bool = False) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.checker = Checker()
        self.lock = threading.RLock()
        self.subscribed = threading.Event()
        self._primary, self._stamp = primary, 0
        self._client = client = Client(CallbackAPIVersion.VERSION2)
        client.reconnect_delay_set(1, 1)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._heard
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert self.subscribed.wait(GENEROUS)

    def _connected(self, client: Any, *_: object) -> None:
        client.subscribe("spBv1.0/#", 2)

    def _subscribed(self, *_: object) -> None:
        if self._primary:
            self.online(True)
        self.subscribed.set()

    def online(self, so: bool) -> None:
        self._stamp += 1
        told = json.dumps({"online": so, "timestamp": self._stamp}).encode()
        self._client.publish(STATE, told, 1, retain=True)

    def _heard(self, _client: object, _data: object, message: Any) -> None:
        kind = message.topic.split("/")[2]
        if kind not in ("STATE", "NCMD", "DCMD") and message.topic != STATE:
            with self.lock:
                self.checker.hear(message.topic, bytes(message.payload), message.qos, message.retain)

    def command(self, topic: str, name: str, value: bool) -> None:
        wish = decoded(b"")
        wish.timestamp = millis(START)
        metric = wish.metrics.add()
        metric.name, metric.datatype, metric.boolean_value = name, 11, value
        self._client.publish(topic, wish.SerializeToString(), 0)

    def wait(self, condition: Callable[[Checker], bool], what: str) -> None:
        def so() -> bool:
            with self.lock:
                return condition(self.checker)

        until(so, f"{what}; it heard {self.checker.kinds[-20:]}, {self.checker.problems}")

    def said(self, *kinds: str) -> None:
        """Waits until these came, in this order, whatever came between."""

        def so(checker: Checker) -> bool:
            heard = iter(checker.kinds)
            return all(kind in heard for kind in kinds)

        self.wait(so, f"{kinds} never came")

    def told(self, device: str, name: str) -> list[Told]:
        with self.lock:
            return list(self.checker.told[device, name])

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def address(broker: Mosquitto) -> Address:
    return Address("127.0.0.1", broker.port, "heliograph-sg-0042-sparkplug")


def role(**more: Any) -> Role:
    return Role("solar", "sg-0042", **more)


class Site:
    """Two meters that are measured every 3 s of a fast clock and stored each time, and an output that is told."""

    def __init__(self, broker: Mosquitto, folder: Path, **more: Any) -> None:
        self.clock = RehearsalClock(START, RATE)
        self.folder = folder
        self.store = Store.writer(folder)
        self.store.readings.begin("sg-0042", "Asia/Singapore", self.clock.boot_id, self.clock.now())
        for meter in METERS:
            self.store.readings.know_meter(meter.id, meter.production)
        self.silent: set[str] = set()
        self.measured: dict[str, list[tuple[int, int]]] = {meter.id: [] for meter in METERS}
        """Milliseconds and counter."""
        self._stop = threading.Event()
        self._line = threading.Thread(target=self._measure, daemon=True)
        self.output = Sparkplug(address(broker), self.clock, role(**more), METERS, self._past, folder / "sparkplug")

    def _past(self, meter: str, since: datetime, until: datetime, most: int) -> list[PastSample]:
        reader = Store.reader(self.folder)
        try:
            return look_back(next(one for one in METERS if one.id == meter), reader, since, until, most)
        finally:
            reader.close()

    def _measure(self) -> None:
        counter = 41_230_700
        while not self._stop.wait(3 / RATE):
            counter += 7
            for meter in METERS:
                at = self.clock.now()
                if meter.id in self.silent:
                    self.output.sample(Sample(meter.id, at, error="no answer"))
                    continue
                power = float(counter % 1000)
                values: dict[str, float | int | str] = {"active_power": power, "energy_export": counter}
                self.store.readings.add(
                    [
                        Reading(
                            meter.id,
                            Moment(at, "rehearsal", self.clock.since_boot(), True),
                            counter,
                            {"active_power": power},
                        )
                    ]
                )
                self.measured[meter.id].append((millis(at), counter))
                self.output.sample(Sample(meter.id, at, values))

    def picture(self, **more: Any) -> None:
        self.output.picture(health(self.clock.now(), **more), ())

    def start(self) -> None:
        self.picture()
        self.output.start()
        self._line.start()

    def stop_measuring(self) -> None:
        self._stop.set()
        self._line.join()

    def close(self) -> None:
        self.stop_measuring()
        self.output.close()
        self.store.close()


@contextmanager
def a_site(broker: Mosquitto, **more: Any) -> Iterator[Site]:
    with in_memory() as folder:
        site = Site(broker, folder, **more)
        site.start()
        try:
            yield site
        finally:
            site.close()


@contextmanager
def a_host(broker: Mosquitto, **more: Any) -> Iterator[Host]:
    host = Host(broker, **more)
    try:
        yield host
    finally:
        host.close()


def millis(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def health(at: datetime, alarms: tuple[str, ...] = (), total: int = 41_000_000) -> Health:
    meters = tuple(
        MeterHealth(
            one.id, "lan", one.unit, "eastron-sdm630", "ok", at, 41_230_700, 1500, total,
            at.date() - timedelta(days=1), 7000, "", "", "", "", total_at=at, rising_wh=total,
        )
        for one in METERS
    )  # fmt: skip
    proof = ProofHealth(1, "", "", 0, None, "", "")
    return Health("sg-0042", "Asia/Singapore", "0.1", at, True, True, meters, (), 1, 2, proof, alarms=alarms)


def all_of(site: Site, host: Host, since: int, until: int) -> None:
    """Waits until the host knows each value that was measured in that time, with its moment."""
    for meter in site.measured:
        wanted = {one for one in tuple(site.measured[meter]) if since <= one[0] <= until}
        assert len(wanted) > 10, "nothing was measured in that time"

        def known(checker: Checker, meter: str = meter, wanted: set[tuple[int, int]] = wanted) -> bool:
            return wanted <= {(one.at, one.value) for one in checker.told[meter, "energy_export"] if one.historical}

        host.wait(known, f"not all of {meter} came")


def test_birth_data_a_meter_that_dies_and_returns_a_rebirth_and_the_end(mosquitto: Mosquitto) -> None:
    with a_host(mosquitto) as host:
        with a_site(mosquitto) as site:
            host.said("NBIRTH", "DBIRTH roof", "DDATA roof", "DDATA shed")
            site.picture(alarms=("a", "b"), total=41_000_007)
            host.said("NBIRTH", "DBIRTH roof", "NDATA")
            host.wait(lambda known: known.told["", "alarms"][-1].value == 2, "the alarms")

            def total(known: Checker) -> bool:
                site.picture(alarms=("a", "b"), total=41_000_007)  # energy is told once a minute
                return bool(known.told["roof", PRODUCTION_TOTAL.name][-1].value == 41_000_007)

            host.wait(total, "the running total")
            site.silent.add("roof")
            host.said("DBIRTH roof", "DDEATH roof", "DDATA shed")
            site.silent.discard("roof")
            host.said("DBIRTH roof", "DDEATH roof", "DBIRTH roof", "DDATA roof")
            host.command("spBv1.0/solar/DCMD/sg-0042/roof", "Node Control/Rebirth", True)
            host.command("spBv1.0/solar/NCMD/sg-0042", "Node Control/Reboot", True)
            host.command("spBv1.0/solar/NCMD/sg-0042", "Node Control/Rebirth", False)
            before = len(host.checker.kinds)
            host.wait(lambda known: len(known.kinds) > before + 10, "data goes on")
            assert host.checker.kinds.count("NBIRTH") == 1, "none of these is the command that we know"
            host.command("spBv1.0/solar/NCMD/sg-0042", "Node Control/Rebirth", True)
            host.said("NBIRTH", "NBIRTH", "DBIRTH roof", "DBIRTH shed", "DDATA roof")
        host.said("NBIRTH", "NBIRTH", "NDEATH")
        assert host.checker.problems == []
        assert host.checker.bd_seqs == [0, 0], "a rebirth is in the same connection"
        assert host.checker.kinds.count("NDEATH") == 1 and host.checker.kinds[-1] == "NDEATH"
        first = {name: told[0] for (device, name), told in host.checker.told.items() if device == "roof"}
        assert first["active_power"].quality == 192 and first["energy_import"].value is None
        assert first["energy_export"].value == site.measured["roof"][0][1]
        assert not any(one.historical for told in host.checker.told.values() for one in told)


class Held:
    """A connection whose thread is the test."""

    def __init__(self, *_: object, will: Callable[[], object], **calls: Any) -> None:
        self.will, self.connected = will, cast(Callable[[], object], calls["on_connected"])
        self.next = cast(Callable[[], broker.Message | None], calls["in_order"])

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def test_what_is_measured_between_the_connection_and_the_births_is_not_lost() -> None:
    """On a busy computer several rounds may come between the two, and a birth shows the newest one only."""
    clock, connection = FakeClock(), cast(type[broker.Broker], Held)
    site = Sparkplug(Address("127.0.0.1", 1, "x"), clock, role(), METERS, lambda *_: [], connection=connection)
    held = cast(Held, site._broker)
    site.start()
    held.will()
    held.connected()
    for counter in (41_000, 41_007):
        clock.leap(seconds=10)
        site.sample(Sample("roof", clock.now(), {"energy_export": counter}))
    topics = [message.topic.split("/")[2] for message in iter(held.next, None)]
    assert topics == ["NBIRTH", "DBIRTH"]
    _, span = site._missing.next(["roof"]) or pytest.fail("nothing is missing")
    assert span.until == clock.now()
    site.close()


def test_what_was_measured_while_the_broker_was_frozen_comes_afterwards_with_its_own_moments(
    mosquitto: Mosquitto,
) -> None:
    with a_host(mosquitto) as host, a_site(mosquitto) as site:
        host.said("NBIRTH", "DBIRTH roof", "DDATA roof")
        mosquitto.freeze()
        frozen = millis(site.clock.now())
        until(lambda: not site.output.state().up, "it does not find out that the broker is frozen")
        arrived = millis(START + timedelta(seconds=site.output._broker.arrived()))
        assert arrived <= frozen
        mosquitto.thaw()
        host.said("NBIRTH", "NDEATH", "NBIRTH", "DBIRTH roof", "DDATA roof")
        born = host.checker.births[-1]
        all_of(site, host, frozen, born)
        past = [
            one.at for one in host.told("roof", "energy_export") if one.historical and one.at > millis(START) + 2000
        ]
        assert past == sorted(past), "oldest first"
        # Since twice the keepalive before it was found out, and since the last ping that was answered, nobody knows,
        # and that is sent again; nothing older.
        found_out = millis(site.output.state().since or START)
        assert min(past) >= min(arrived, found_out - 2 * int(RATE) * 1000 - 1000) and max(past) <= born
        assert host.checker.problems == [] and host.checker.bd_seqs == [0, 1]


def test_a_primary_host_decides_when_the_node_is_there_and_misses_nothing(mosquitto: Mosquitto) -> None:
    """Also when the broker is killed, with everything that it knew."""
    with a_site(mosquitto, host="scada") as site:
        until(lambda: "scada, which is not online" in site.output.state().trouble, "it does not wait for its host")
        until(lambda: len(site.measured["roof"]) > 30, "the meters are read")
        with a_host(mosquitto, primary=True) as host:
            host.said("NBIRTH", "DBIRTH roof", "DDATA roof")
            assert site.output.state().trouble == ""
            all_of(site, host, millis(START), host.checker.births[-1])
            killed = millis(site.clock.now())
            mosquitto.kill()
            until(lambda: not site.output.state().up, "it does not find out that the broker is gone")
            measured = len(site.measured["roof"])
            until(lambda: len(site.measured["roof"]) > measured + 20, "the meters are read on")
            mosquitto.start()
            host.said("NBIRTH", "NBIRTH", "DBIRTH shed")
            all_of(site, host, killed, host.checker.births[-1])
            gone = millis(site.clock.now())
            host.online(False)
            host.said("NBIRTH", "NBIRTH", "NDEATH")
            measured = len(site.measured["roof"])
            until(lambda: len(site.measured["roof"]) > measured + 20, "the meters are read on")
            assert host.checker.kinds[-1] == "NDEATH", "nothing is said to a host that is not there"
            host.online(True)
            host.said("NBIRTH", "NBIRTH", "NDEATH", "NBIRTH", "DBIRTH roof")
            all_of(site, host, gone, host.checker.births[-1])
            assert host.checker.problems == []
            assert host.checker.bd_seqs == [0, 1, 2], "also the connection in which it waited has its number"


NODE = """
import sys, time
from pathlib import Path
from heliograph import __version__, app, library
from heliograph.clock import RehearsalClock
from heliograph.core.shown import Sample
from heliograph.outputs.broker import Address
from heliograph.outputs.sparkplug import Role, Sparkplug
from tests.fakes import START, a_meter
port, memory, began = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
clock = RehearsalClock(START, 60, began)
role = Role("solar", "sg-0042")
node = Sparkplug(Address("127.0.0.1", port, "us"), clock, role, [a_meter("roof")], lambda *_: [], memory)
node.start()
for number in range(100_000):
    node.sample(Sample("roof", clock.now(), {"energy_export": number}))
    time.sleep(0.02)
"""


def test_a_process_that_is_killed_leaves_its_death_and_comes_back_with_another_number(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    with a_host(mosquitto) as host:
        for life in range(2):
            words = [sys.executable, "-c", NODE, str(mosquitto.port), str(tmp_path / "memory"), "0"]
            with subprocess.Popen(words, cwd=Path(__file__).parents[2]) as node:
                try:
                    host.said(*["NBIRTH", "DDATA roof"] * (life + 1))
                    if life:
                        host.command("spBv1.0/solar/NCMD/sg-0042", "Node Control/Rebirth", True)
                        host.said("NBIRTH", "NBIRTH", "NBIRTH", "DDATA roof")
                finally:
                    node.send_signal(signal.SIGKILL)
            host.said(*["NBIRTH", "NDEATH"] * (life + 1))
        assert host.checker.problems == [] and host.checker.bd_seqs == [0, 1, 1]


CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{meter}"
every = "10s"
store_every = "10s"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
[clock]
trust = "always"
[sparkplug]
url = "{broker}"
group = "solar"
primary_host = "scada"
"""


def test_a_whole_gateway_tells_a_host_later_what_it_stored_meanwhile(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """From registers over the store to the host, with the running total that the ledger has at each moment."""
    clock = RehearsalClock(START, RATE)
    map = library.load("eastron-sdm630", local=None).map
    device = SimulatedMeter(map, clock=clock.now, start_export_wh=41_230_700, rated_kw=50, sky=Sky(SINGAPORE))
    with a_host(mosquitto, primary=True) as host, Server({1: device}, rate=RATE) as server, in_memory() as folder:
        path = tmp_path / "config.toml"
        path.write_text(CONFIG.format(folder=folder, meter=server.url, broker=mosquitto.url))
        site = app.load(path, clock)
        with site.writer() as store:
            gateway = Daemon(site, store)
            gateway.start()
            try:
                host.said("NBIRTH", "DBIRTH roof", "DDATA roof")
                mosquitto.kill()
                killed = clock.now()
                until(lambda: clock.now() > killed + timedelta(minutes=2), "two minutes pass")
                mosquitto.start()
                host.said("NBIRTH", "NBIRTH", "DBIRTH roof")
                born = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=host.checker.births[-1])

                def kept() -> dict[int, tuple[Any, Any]]:
                    rows = site.past("roof", killed, born, 1000)
                    return {millis(row.at): (row.values.get("energy_export"), row.total_wh) for row in rows}

                def told() -> dict[int, tuple[Any, Any]]:
                    counters, totals = (
                        {one.at: one.value for one in host.told("roof", name) if one.historical}
                        for name in ("energy_export", PRODUCTION_TOTAL.name)
                    )
                    return {at: (counters[at], totals.get(at)) for at in counters}

                until(lambda: len(kept()) >= 10, "little was stored")
                until(lambda: kept().items() <= told().items(), "not all of it came")
                counters, totals = zip(*kept().values(), strict=True)
                assert len({counter - total for counter, total in kept().values()}) == 1, "both count the same energy"
                assert len(set(counters)) > 5 and 0 < totals[-1] < 50_000
            finally:
                gateway.stop()
        host.said("NBIRTH", "NBIRTH", "DBIRTH roof", "NDEATH")
        assert host.checker.problems == []
        assert host.told("", "software")[-1].value == f"heliograph {__version__}"

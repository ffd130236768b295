"""deploy/fleet is true: its brokers start with their files and do what the page says, its collectors fit our topics.

Two real mosquittos on loopback: the site's, and one in the place of the cluster, with the same certificates and rights.
Only paths, ports and the waits of the bridge are replaced. EMQX, haproxy, Telegraf and TimescaleDB do not run here.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from heliograph.core.shown import DayFigure, Sample
from heliograph.outputs.broker import Address
from heliograph.outputs.mqtt import Mqtt, Policy, Topics, Value, day_document, packed
from tests.fakes import FakeClock
from tests.outputs.mosquitto import GENEROUS, PROGRAM, needs_mosquitto, until
from tests.outputs.test_mqtt import health

FLEET = Path(__file__).parents[2] / "deploy" / "fleet"
SITE, FOREIGN = "sg-0042", "sg-0043"
TOPICS = Topics("heliograph", SITE)
AT = datetime(2026, 3, 14, 4, 30, tzinfo=UTC)
ROOF = TOPICS.quantity("roof", "active_power")
DAY = TOPICS.day("roof", date(2026, 3, 13))
FIGURE = packed(
    day_document(DayFigure("roof", date(2026, 3, 13), "closed", 41_237, 1_041_237, deliveries={"redex": "due"}))
)


def value(watts: int) -> bytes:
    return Value(AT, watts, "W", "good").payload()


# -- brokers and clients ----------------------------------------------------------------------------------------------


class Broker:
    """A mosquitto with one of the shipped configurations."""

    def __init__(self, home: Path, shipped: Path, port: int, replaced: dict[str, str]) -> None:
        self._port = port
        text = shipped.read_text()
        for old, new in replaced.items():
            assert old in text, f"{shipped} does not say {old!r} any more"
            text = text.replace(old, new)
        self._log, self._config = home / "log", home / "mosquitto.conf"
        self._config.write_text(f"{text}\nuser root\nlog_dest file {self._log}\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = process = subprocess.Popen([PROGRAM, "-c", str(self._config)], stdout=quiet, stderr=quiet)

        def listens() -> bool:
            assert process.poll() is None, f"mosquitto ended: {self.log()}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._port)) == 0

        until(listens, "mosquitto does not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


class Client:
    """Somebody at a broker; `heard` is what came, in order: topic, payload, retained before we listened."""

    def __init__(
        self, port: int, *, certs: Path | None = None, name: str = "", user: str = "", password: str = ""
    ) -> None:
        from paho.mqtt.client import Client as Paho
        from paho.mqtt.client import MQTTMessage
        from paho.mqtt.enums import CallbackAPIVersion

        self.heard: list[tuple[str, bytes, bool]] = []
        self.let_in: bool | None = None
        self._subscribed = threading.Event()
        self._client = client = Paho(CallbackAPIVersion.VERSION2, client_id=f"{name or user}-{id(self)}")
        if certs is not None:
            client.tls_set(
                str(certs / "fleet-ca.crt"), *((str(certs / f"{name}.crt"), str(certs / f"{name}.key")) if name else ())
            )
        if user:
            client.username_pw_set(user, password)

        def connected(_client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:
            self.let_in = not reason.is_failure

        def heard(_client: object, _data: object, message: MQTTMessage) -> None:
            self.heard.append((message.topic, bytes(message.payload), message.retain))

        client.on_connect, client.on_message = connected, heard
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.connect("127.0.0.1", port)
        client.loop_start()
        until(lambda: self.let_in is not None, "the broker does not answer")

    def listen(self, topic: str) -> Client:
        self._subscribed.clear()
        self._client.subscribe(topic, 1)
        assert self._subscribed.wait(GENEROUS)
        return self

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(GENEROUS)

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for heard, payload, _ in tuple(self.heard) if heard == topic]

    def wait_for(self, topic: str, payload: bytes) -> None:
        until(lambda: payload in self.payloads(topic), f"nobody said {payload!r} on {topic}")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Fleet:
    """A site's broker that bridges into the one in the cluster's place; neither runs yet."""

    def __init__(self, folder: Path, certs: Path, ports: list[int]) -> None:
        self.certs = certs
        self.site_port, self.site_tls_port, self.center_port = ports
        for name in ("site", "center"):
            (folder / name).mkdir()
        site, center = folder / "site", folder / "center"
        (site / "passwords").write_text("")
        for user in ("heliograph", "homeassistant", "viewer"):
            subprocess.run(["mosquitto_passwd", "-b", str(site / "passwords"), user, "secret"], check=True)
        (site / "acl").write_text((FLEET / "site" / "acl").read_text())
        self.site = Broker(
            site,
            FLEET / "site" / "mosquitto.conf",
            self.site_port,
            {
                "/mosquitto/config/certs/site.": f"{certs}/{SITE}.",
                "/mosquitto/config/certs": str(certs),
                "/mosquitto/config": str(site),
                "/mosquitto/data/": f"{site}/",
                "listener 1883": f"listener {self.site_port} 127.0.0.1",
                "listener 8883": f"listener {self.site_tls_port} 127.0.0.1",
                "address mqtt.example.com:8883": f"address 127.0.0.1:{self.center_port}",
                "restart_timeout 5 120": "restart_timeout 1",
            },
        )
        (center / "mosquitto.acl").write_text((FLEET / "center" / "mosquitto.acl").read_text())
        self.center = Broker(
            center,
            FLEET / "center" / "mosquitto.conf",
            self.center_port,
            {
                "/mosquitto/config/certs": str(certs),
                "/mosquitto/config": str(center),
                "/mosquitto/data/": f"{center}/",
                "listener 8883": f"listener {self.center_port} 127.0.0.1",
            },
        )
        self._clients = ExitStack()

    def on_site(self, user: str, password: str = "secret") -> Client:
        return self._kept(Client(self.site_port, user=user, password=password))

    def at_center(self, name: str) -> Client:
        return self._kept(Client(self.center_port, certs=self.certs, name=name))

    def _kept(self, client: Client) -> Client:
        self._clients.callback(client.close)
        return client

    def close(self) -> None:
        self._clients.close()
        self.site.stop()
        self.center.stop()


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")

    def make(*words: str) -> None:
        subprocess.run(["sh", str(FLEET / "certificates.sh"), str(folder), *words], check=True, capture_output=True)

    make("authority")
    make("server", "localhost", "127.0.0.1")
    for name in (SITE, FOREIGN, "collector-days", "collector-live-1", "collector-live-2"):
        make("client", name)
    return folder


@pytest.fixture
def fleet(tmp_path: Path, certs: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    found = Fleet(tmp_path, certs, ports)
    try:
        yield found
    finally:
        found.close()


# -- the bridge -------------------------------------------------------------------------------------------------------


@needs_mosquitto
def test_what_a_site_says_reaches_the_center_also_what_it_said_while_the_center_was_away(fleet: Fleet) -> None:
    fleet.center.start()
    fleet.site.start()
    collector = fleet.at_center("collector-days").listen("#")
    # What is said in the very moment of a connect may come with the next one only (mosquitto 2.0.11).
    collector.wait_for(f"heliograph/{SITE}/bridge", b"1")
    gateway = fleet.on_site("heliograph")
    gateway.say("homeassistant/device/heliograph-sg-0042/config", b"{}", retain=True)
    gateway.say(DAY, FIGURE, retain=True)
    gateway.say(ROOF, value(0))
    collector.wait_for(ROOF, value(0))
    collector.wait_for(DAY, FIGURE)

    # The center is away, and the site's own broker starts anew meanwhile: what waits is on its disk.
    fleet.center.stop()
    for watts in range(1, 201):
        gateway.say(ROOF, value(watts))
    fleet.site.stop()
    fleet.site.start()
    gateway = fleet.on_site("heliograph")
    for watts in range(201, 401):
        gateway.say(ROOF, value(watts))
    fleet.center.start()
    back = fleet.at_center("collector-days").listen("#")
    # It would come back by itself within seconds; a bridge connects at once only when its broker starts.
    fleet.site.stop()
    fleet.site.start()
    back.wait_for(ROOF, value(400))
    assert list(dict.fromkeys(back.payloads(ROOF))) == [value(watts) for watts in range(1, 401)], "all, and in order"

    late = fleet.at_center("collector-days").listen("heliograph/#")
    late.wait_for(DAY, FIGURE)
    assert [retained for topic, _, retained in late.heard if topic == DAY] == [True]
    assert not late.payloads(ROOF), "a value of long ago must not look like one of now"
    everything = {topic for topic, *_ in [*collector.heard, *back.heard]}
    assert all(topic.startswith(f"heliograph/{SITE}/") for topic in everything), "nothing else leaves the site"


@needs_mosquitto
def test_a_gateway_straight_at_the_center_may_do_all_that_it_does(fleet: Fleet) -> None:
    """The product's own output with its site's certificate: it writes, and hears its own days to take old ones back."""
    fleet.center.start()
    collector = fleet.at_center("collector-days").listen("heliograph/#")
    old = TOPICS.day("roof", date(2026, 1, 1))
    fleet.at_center(SITE).say(old, FIGURE, retain=True)
    address = Address(
        "127.0.0.1",
        fleet.center_port,
        "gateway",
        tls=True,
        ca=fleet.certs / "fleet-ca.crt",
        certificate=fleet.certs / f"{SITE}.crt",
        key=fleet.certs / f"{SITE}.key",
    )
    policy = Policy(timedelta(seconds=10), 1.0, timedelta(minutes=5))
    gateway = Mqtt(address, TOPICS, ["roof"], policy, FakeClock())
    gateway.start()
    try:
        until(lambda: gateway.state().up, "the gateway is not let in")
        gateway.sample(Sample("roof", AT, {"active_power": 41.5}))
        collector.wait_for(ROOF, Value(AT, 41.5, "W", "good").payload())
        assert gateway.state().trouble == ""

        def taken_back() -> bool:
            gateway.picture(health(), [])
            return b"" in collector.payloads(old)

        until(taken_back, "an old day stays at the broker")
    finally:
        gateway.close()


def test_a_bridge_takes_nothing_in_and_only_its_own_site_out() -> None:
    """The center's rights would stop the rest; here it is not even sent."""
    lines = (FLEET / "site" / "mosquitto.conf").read_text().splitlines()
    bridged = [line for line in lines if re.match(r"#? ?topic ", line)]
    assert len(bridged) > 1
    assert all(re.fullmatch(rf"(# )?topic heliograph/{SITE}/\S+ out 1", line) for line in bridged), bridged


@needs_mosquitto
def test_two_live_collectors_share_the_values(fleet: Fleet) -> None:
    fleet.center.start()
    gateway = fleet.at_center(SITE)
    total = TOPICS.quantity("roof", "production_total")
    gateway.say(total, value(0), retain=True)
    (consumer,) = collector("live")["inputs"]["mqtt_consumer"]
    both = [fleet.at_center(f"collector-live-{number}") for number in (1, 2)]
    for one in both:
        for topic in consumer["topics"]:
            one.listen(topic)
    for watts in range(1, 41):
        gateway.say(total, value(watts))

    def live() -> list[bytes]:
        """mosquitto gives a shared subscription what is retained as well, MQTT 5 and EMQX do not."""
        return [payload for one in both for _, payload, retained in tuple(one.heard) if not retained]

    until(lambda: len(live()) >= 40, "some values reach no collector")
    gateway.say(total, value(41))
    until(lambda: value(41) in live(), "some values reach no collector")
    assert sorted(live()) == sorted(value(watts) for watts in range(1, 42)), "each value reaches one of them, once"
    assert all(one.heard for one in both)


# -- who may do what --------------------------------------------------------------------------------------------------


@needs_mosquitto
def test_at_the_center_a_site_writes_below_its_own_id_only(fleet: Fleet) -> None:
    fleet.center.start()
    collector = fleet.at_center("collector-days").listen("#")
    foreign = fleet.at_center(FOREIGN).listen("#")
    own = f"heliograph/{FOREIGN}/roof/active_power"
    for topic in (ROOF, "heliograph", "heliograph/collector-days/x/y", f"x/{FOREIGN}/a", own):
        foreign.say(topic, value(1))
    site = fleet.at_center(SITE)
    site.say(ROOF, value(2))
    collector.wait_for(own, value(1))
    collector.wait_for(ROOF, value(2))
    assert collector.heard == [(own, value(1), False), (ROOF, value(2), False)]
    foreign.wait_for(own, value(1))
    assert {topic for topic, *_ in foreign.heard} == {own}, "a site reads nothing of another's"
    collector.say(ROOF, value(3))
    site.say(ROOF, value(4))
    collector.wait_for(ROOF, value(4))
    assert value(3) not in collector.payloads(ROOF), "a collector writes nothing"


@needs_mosquitto
def test_at_the_center_nobody_is_let_in_without_a_certificate_of_the_fleet(fleet: Fleet, tmp_path: Path) -> None:
    fleet.center.start()
    stranger = tmp_path / "stranger"
    script = ["sh", str(FLEET / "certificates.sh"), str(stranger)]
    for words in (("authority",), ("client", SITE)):
        subprocess.run([*script, *words], check=True, capture_output=True)
    for where, name in ((fleet.certs, SITE), (stranger, SITE), (None, "")):
        context = ssl.create_default_context(cafile=str(fleet.certs / "fleet-ca.crt"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 tells a client only later that it is refused
        if where is not None:
            context.load_cert_chain(where / f"{name}.crt", where / f"{name}.key")
        with socket.create_connection(("127.0.0.1", fleet.center_port), timeout=GENEROUS) as sock:
            if where == fleet.certs:
                context.wrap_socket(sock, server_hostname="127.0.0.1").close()
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(sock, server_hostname="127.0.0.1")


@needs_mosquitto
def test_on_the_site_a_password_is_needed_and_who_only_reads_writes_nothing(fleet: Fleet) -> None:
    fleet.site.start()
    assert not fleet.on_site("heliograph", "wrong").let_in
    assert not fleet.on_site("").let_in
    viewer, assistant = fleet.on_site("viewer").listen("#"), fleet.on_site("homeassistant").listen("#")
    gateway = fleet.on_site("heliograph").listen("homeassistant/status")
    viewer.say(ROOF, value(1))
    assistant.say(ROOF, value(2))
    gateway.say(TOPICS.quantity("roof", "voltage_l1n").replace(SITE, FOREIGN), value(3))
    assistant.say("homeassistant/status", b"online")
    gateway.wait_for("homeassistant/status", b"online")
    gateway.say(ROOF, value(4))
    for reader in (viewer, assistant):
        reader.wait_for(ROOF, value(4))
        assert reader.payloads(ROOF) == [value(4)]
        assert not [topic for topic, *_ in reader.heard if FOREIGN in topic]


RULE = re.compile(r"^\{(allow|deny), (all|\{username, \{re, \"(.+?)\"\}\})(?:, (\w+), \[(.*)\])?\}\.$")


def permitted(name: str, action: str, topic: str) -> bool:
    """What EMQX would say by center/acl.conf, as far as our rules use it: the first that fits decides."""
    for line in (FLEET / "center" / "acl.conf").read_text().splitlines():
        if not line or line.startswith("%%"):
            continue
        rule = RULE.match(line)
        assert rule is not None, f"a rule that this test does not know: {line}"
        permission, _, who, actions, filters = rule.groups()
        if who is not None and not re.search(who, name):
            continue
        if actions is not None and actions not in (action, "all"):
            continue
        known = [one.strip(' "').replace("${username}", name) for one in (filters or '"#"').split(",")]
        if any(matches(one, topic) for one in known):
            return permission == "allow"
    raise AssertionError("no rule for everything else")


@pytest.mark.parametrize(
    ("name", "action", "topic", "may"),
    [
        (SITE, "publish", ROOF, True),
        (SITE, "publish", DAY, True),
        (SITE, "publish", f"heliograph/{SITE}/bridge", True),
        (FOREIGN, "publish", ROOF, False),
        (FOREIGN, "publish", "heliograph", False),
        (FOREIGN, "publish", f"homeassistant/{FOREIGN}/x", False),
        (SITE, "subscribe", f"heliograph/{SITE}/+/day/+", True),
        (SITE, "subscribe", "heliograph/+/+/day/+", False),
        (SITE, "subscribe", "#", False),
        ("collector-live-1", "subscribe", "heliograph/+/+/active_power", True),
        ("collector-live-1", "subscribe", "#", False),
        ("collector-days", "publish", ROOF, False),
        ("collector-days", "publish", "heliograph/collector-days/x/y", False),
    ],
)
def test_the_rights_at_the_cluster_are_the_same(name: str, action: str, topic: str, may: bool) -> None:
    assert permitted(name, action, topic) is may


# -- the collectors ---------------------------------------------------------------------------------------------------


def matches(pattern: str, topic: str) -> bool:
    """MQTT 3.1.1, section 4.7; also of a filter that another one covers."""
    wanted, parts = pattern.split("/"), topic.split("/")
    for number, one in enumerate(wanted):
        if one == "#":
            return True
        if number >= len(parts) or parts[number] == "#" or (one != "+" and one != parts[number]):
            return False
    return len(wanted) == len(parts)


def collector(name: str) -> dict[str, Any]:
    return tomllib.loads((FLEET / "center" / f"telegraf-{name}.conf").read_text())


def tags(consumer: dict[str, Any], topic: str) -> dict[str, str]:
    """What Telegraf's topic parsing makes of a topic: every entry whose words and length fit adds its tags."""
    found: dict[str, str] = {}
    for entry in consumer["topic_parsing"]:
        names = entry["tags"].split("/")
        assert len(names) == len(entry["topic"].split("/")), "Telegraf refuses tags of another length than the topic"
        if matches(entry["topic"], topic):
            found |= {name: part for name, part in zip(names, topic.split("/"), strict=True) if name != "_"}
    return found


def columns(table: str) -> set[str]:
    text = (FLEET / "center" / "tables.sql").read_text()
    body = re.search(rf"CREATE TABLE {table} \((.*?)\n\);", text, re.DOTALL)
    assert body is not None
    return set(re.findall(r"^    ([a-z_]+) ", body[1], re.MULTILINE))


LIVE = ("active_power", "production_today", "production_total", "energy_import")


@pytest.mark.parametrize("quantity", LIVE)
def test_live_values_find_their_way_into_the_table(quantity: str) -> None:
    """A tag without a column would cost the whole point, so the sets are compared exactly."""
    document = collector("live")
    (consumer,) = document["inputs"]["mqtt_consumer"]
    topic = TOPICS.quantity("roof", quantity)
    group = "$share/live/"
    assert all(one.startswith(group) for one in consumer["topics"])
    assert [one for one in consumer["topics"] if matches(one.removeprefix(group), topic)] == [
        f"{group}{topic}".replace(SITE, "+").replace("roof", "+")
    ]
    found = tags(consumer, topic)
    assert found == {"site": SITE, "meter": "roof", "quantity": quantity}
    (parser,) = consumer["json_v2"]
    told = {"ts": "2026-03-14T04:30:00.000Z", "value": 5, "unit": "W", "quality": "good"}
    assert packed(told) == value(5), "the payload has changed: so must the parser"
    assert {parser["timestamp_path"], *(one["path"] for one in parser["field"])} == set(told)
    # Go's way to write a format: the moment of 2006 that stands for all.
    assert parser["timestamp_format"] == "2006-01-02T15:04:05.000Z07:00"
    assert {"time", *found, *(one["path"] for one in parser["field"])} == columns(consumer["name_override"])


def test_availability_is_no_live_value() -> None:
    """Its payload is no JSON, so each message would be an error in the collector's log."""
    (consumer,) = collector("live")["inputs"]["mqtt_consumer"]
    assert not [
        one for one in consumer["topics"] if matches(one.removeprefix("$share/live/"), TOPICS.availability("roof"))
    ]


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        (DAY, {"site": SITE, "meter": "roof", "what": "day", "day": "2026-03-13"}),
        (TOPICS.availability("roof"), {"site": SITE, "meter": "roof", "what": "availability"}),
        (TOPICS.status, {"site": SITE, "what": "status"}),
        (TOPICS.state, {"site": SITE, "what": "state"}),
        (f"heliograph/{SITE}/bridge", {"site": SITE, "what": "bridge"}),
    ],
    ids=["day", "availability", "status", "state", "bridge"],
)
def test_what_is_retained_finds_its_way_into_the_table(topic: str, expected: dict[str, str]) -> None:
    (consumer,) = collector("days")["inputs"]["mqtt_consumer"]
    assert not [one for one in consumer["topics"] if one.startswith("$share")], "a shared one is given nothing retained"
    assert [one for one in consumer["topics"] if matches(one, topic)]
    assert tags(consumer, topic) == expected
    assert {"time", "value", *expected} <= columns(consumer["name_override"])


def test_the_database_reads_what_a_day_says() -> None:
    text = (FLEET / "center" / "tables.sql").read_text()
    document = day_document(DayFigure("roof", date(2026, 3, 13), "closed"))
    assert set(re.findall(r"told->>?'([a-z_]+)'", text)) - {"alarms", "held_days", "missing_days", "software"} == {
        *document
    } - {"day"}


@pytest.mark.parametrize("name", ["live", "days"])
def test_a_collector_is_sure_before_it_says_yes(name: str) -> None:
    """Options that only help together; what each means is in Telegraf's and EMQX' documentation."""
    document = collector(name)
    agent, (consumer,) = document["agent"], document["inputs"]["mqtt_consumer"]
    assert agent["omit_hostname"] and consumer["topic_tag"] == "", "a tag that no column takes loses the point"
    assert consumer["persistent_session"] and consumer["qos"] == 1 and consumer["client_id"]
    under_way = consumer["max_undelivered_messages"]
    assert agent["metric_batch_size"] <= under_way < agent["metric_buffer_limit"]
    for shipped, option in (("emqx.conf", r"max_inflight = (\d+)"), ("mosquitto.conf", r"max_inflight_messages (\d+)")):
        (most,) = re.findall(option, (FLEET / "center" / shipped).read_text())
        assert under_way <= int(most) <= 65_535, "MQTT has no more packet ids"


# -- the compose files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["site", "center"])
def test_compose_names_versions_and_files_that_are_there(side: str) -> None:
    text = (FLEET / side / "compose.yaml").read_text()
    images = re.findall(r"^\s+image: (\S+)", text, re.MULTILINE)
    assert images and all(re.search(r":\d+\.\d+\.\d+", image) for image in images), images
    made_by_the_owner = {"./certs", "./passwords"}
    mounted = set(re.findall(r"^\s+- (\./[^:]+):", text, re.MULTILINE)) - made_by_the_owner
    assert mounted and all((FLEET / side / one).is_file() for one in mounted), mounted
    for secret in re.findall(r"\$\{(\w+):\?", text):
        assert secret in (FLEET / "README.md").read_text(), f"nobody is told of {secret}"

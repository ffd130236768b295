"""What a fleet says: the figures are those of the bytes on a socket, and all of it reaches a real broker."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import click
import pytest
from click.testing import CliRunner, Result

from heliograph import library
from heliograph.cli.fleet import command
from heliograph.core.durations import duration
from heliograph.core.errors import UsageError
from heliograph.outputs.broker import Address, Broker, Message
from heliograph.rehearsal.fleet import Plan, Spoken, speak
from heliograph.rehearsal.fleet_bytes import account, packet
from heliograph.rehearsal.fleet_send import Target, send, timeline
from heliograph.settings import BusSettings, MqttSettings
from tests.fakes import FakeClock, free_port
from tests.outputs.mosquitto import Mosquitto, mosquitto, needs_mosquitto, until

__all__ = ["mosquitto"]  # a fixture

NOON = datetime(2026, 3, 21, 4, 0, tzinfo=UTC)
TENTH = timedelta(minutes=6)
PUBLISH, PUBACK = 3, 4


def plan(*, meters: int = 2, every: float = 10, dead_band: float = 0.5, heartbeat: float = 60) -> Plan:
    return Plan(
        library.load("sungrow-sg", local=None).map,
        meters,
        NOON,
        ZoneInfo("Asia/Singapore"),
        every=timedelta(seconds=every),
        dead_band=dead_band,
        heartbeat=timedelta(seconds=heartbeat),
    )


class Counter:
    """Passes bytes between a client and a broker on, and keeps them: to the broker, and back."""

    def __init__(self, port: int) -> None:
        self._there = port
        self.up, self.down = bytearray(), bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self._there))
            for source, target, kept in ((client, broker, self.up), (broker, client, self.down)):
                threading.Thread(target=self._pass_on, args=(source, target, kept), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(65536):
                kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def counted(mosquitto: Mosquitto) -> Iterator[Counter]:
    counter = Counter(mosquitto.port)
    try:
        yield counter
    finally:
        counter.close()


def packets(stream: bytes) -> list[tuple[int, bytes]]:
    """MQTT packets by their type."""
    found, at = [], 0
    while at < len(stream):
        length, shift, end = 0, 0, at + 1
        while True:
            digit = stream[end]
            length |= (digit & 0x7F) << shift
            shift, end = shift + 7, end + 1
            if not digit & 0x80:
                break
        found.append((stream[at] >> 4, stream[at : end + length]))
        at = end + length
    return found


def size(stream: bytes, kind: int) -> int:
    return sum(len(raw) for one, raw in packets(stream) if one == kind)


@needs_mosquitto
def test_what_is_counted_is_what_the_product_writes_to_a_socket(counted: Counter) -> None:
    """The product's own connection says the same messages, through a proxy that counts."""
    spoken = speak(plan(), 0, TENTH)
    waiting = iter([one.message for one in spoken])
    arrived: list[Message] = []
    address = Address("127.0.0.1", counted.port, "load")
    broker = Broker("mqtt", address, FakeClock(), in_order=lambda: next(waiting, None), on_confirmed=arrived.append)
    broker.start()
    until(lambda: len(arrived) == len(spoken), "the broker did not take everything")
    broker.close()
    figures = account(spoken, TENTH)
    assert figures.total.messages + figures.start.messages == len(spoken) > 200
    assert size(bytes(counted.up), PUBLISH) == figures.total.up + figures.start.up
    assert size(bytes(counted.down), PUBACK) == figures.total.down + figures.start.down


@needs_mosquitto
@pytest.mark.parametrize("connections", [1, 5])
def test_all_gateways_reach_a_broker_each_under_its_name(
    mosquitto: Mosquitto, counted: Counter, connections: int
) -> None:
    one = plan(meters=1)
    patterns = [speak(one, number, TENTH) for number in range(2)]
    target = Target("127.0.0.1", counted.port)
    with mosquitto.listening("heliograph/#") as listener:
        sent = send(target, one, patterns, 5, connections=connections, speed=0, stop=threading.Event())
        wanted = sum(len(patterns[number % 2]) for number in range(5))
        until(lambda: len(listener.messages) >= wanted, "not everything arrived")
        heard = list(listener.messages)
    assert (sent.messages, sent.acknowledged, sent.trouble) == (wanted, wanted, "")
    until(lambda: len(counted.up) == sent.up and len(counted.down) == sent.down, "other bytes went over the socket")
    for number in range(5):
        mine = [(one.topic, one.payload) for one in heard if number_of(one.topic) == number]
        said = [(spoken.message.topic, spoken.message.payload) for spoken in patterns[number % 2]]
        assert [(topic.split("/", 2)[2], payload) for topic, payload in mine] == [
            (topic.split("/", 2)[2], payload) for topic, payload in said
        ]


def number_of(topic: str) -> int:
    return int(topic.split("/")[1].removeprefix("load-"))


def test_a_simulated_day_is_the_same_each_time_and_another_one_for_another_gateway() -> None:
    first, again, other = speak(plan(), 0, TENTH), speak(plan(), 0, TENTH), speak(plan(), 1, TENTH)
    assert first == again
    assert {one.message.payload for one in first} != {one.message.payload for one in other}


def test_fewer_and_larger_changes_are_fewer_messages() -> None:
    counts = [
        account(speak(one, 0, TENTH), TENTH).total.messages
        for one in (plan(), plan(dead_band=5), plan(dead_band=5, every=60), plan(dead_band=5, every=60, heartbeat=300))
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0] / 2


def test_the_two_weeks_before_the_start_are_retained() -> None:
    spoken = speak(plan(meters=3), 0, TENTH)
    days = {one.message.topic for one in spoken if "/day/" in one.message.topic}
    assert len(days) == 3 * 14 and all(one.message.retain for one in spoken if one.message.topic in days)
    # status and state of the site; availability and running total of each meter
    assert account(spoken, TENTH).retained == len(days) + 2 + 3 * 2


def test_home_assistant_costs_its_discovery_at_each_connect_and_nothing_more() -> None:
    plain, announced = (account(speak(one, 0, TENTH), TENTH) for one in (plan(), replace(plan(), home_assistant="ha")))
    assert announced.total == plain.total
    assert announced.start.payload > plain.start.payload + 1000
    assert announced.retained > plain.retained


def test_a_sparkplug_node_is_born_and_says_its_data_in_fewer_messages() -> None:
    """Read back by their topics; what is in them is checked in tests/outputs."""
    spoken = speak(replace(plan(), sparkplug="solar"), 3, TENTH)
    kinds = [one.message.topic.split("/")[2] for one in spoken]
    assert kinds[:3] == ["NBIRTH", "DBIRTH", "DBIRTH"] and set(kinds[3:]) <= {"NDATA", "DDATA"}
    assert all(one.message.topic.split("/")[3] == plan().site(3) for one in spoken)
    assert 0 < account(spoken, TENTH).total.messages < account(speak(plan(), 3, TENTH), TENTH).total.messages


def test_gateways_speak_one_after_another_within_a_poll_period() -> None:
    one = plan()
    patterns = [[Spoken(0.0, Message(f"heliograph/{one.site(0)}/status", b"online"))]]
    said = [(after, topic) for after, _, topic, _ in timeline(one, patterns, range(10))]
    assert said == sorted(said) and len({after for after, _ in said}) == 10 and said[-1][0] < 10
    assert {topic for _, topic in said} == {f"heliograph/load-{number:06d}/status".encode() for number in range(10)}


def test_an_hour_of_silence_costs_pings() -> None:
    quiet = [Spoken(0.0, Message("a", b"1", 1)), Spoken(3600.0, Message("a", b"2", 1))]
    figures = account(quiet, timedelta(hours=2)).total
    assert figures.messages == 1
    assert figures.up == len(packet(quiet[1].message, 1)) + 2 * 119 and figures.down == 4 + 2 * 119


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 16_383, 16_384])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_packet_is_read_back(length: int, qos: int) -> None:
    ((kind, raw),) = packets(packet(Message("a/ü", bytes(length), qos, retain=True), 7))
    assert kind == PUBLISH and raw[0] & 0x0F == qos << 1 | 1
    assert raw.endswith(struct.pack(">H", 4) + "a/ü".encode() + (b"\x00\x07" if qos else b"") + bytes(length))


# -- the verb ----------------------------------------------------------------------------------------------------------


def fleet(*arguments: str) -> Result:
    short = ("--map", "sungrow-sg", "--hours", "0.1", "--from", "12:00")
    return CliRunner().invoke(command, [*short, *arguments], catch_exceptions=False, standalone_mode=False)


def test_the_verb_prints_figures_and_sends_nothing() -> None:
    result = fleet()
    assert result.return_value == 0
    assert "One gateway with 1 meter (sungrow-sg) from 2026-03-21 12:00 on, for 0.1 h" in result.stdout
    assert "estimate" in result.stdout and "Retained topics: 18" in result.stdout


def test_what_a_bridge_leaves_out_is_not_counted() -> None:
    whole, part = (
        json.loads(fleet("--json", *more).stdout) for more in ([], ["--only", "active_power,production_total"])
    )
    assert set(part["messages_by_topic"]) == {"active_power", "production_total"}
    assert part["messages_by_topic"]["active_power"] == whole["messages_by_topic"]["active_power"]
    assert 0 < part["total"]["mqtt_up_bytes"] < whole["total"]["mqtt_up_bytes"]


def test_the_verb_counts_what_a_gateway_with_default_settings_sends() -> None:
    defaults = {option.name: option.get_default(click.Context(command)) for option in command.params}
    shipped = {name: field.default for name, field in MqttSettings.model_fields.items()}
    assert {name: duration(str(defaults[name])) for name in ("every", "heartbeat")} == {
        name: shipped[name] for name in ("every", "heartbeat")
    }
    assert [defaults[name] for name in ("dead_band", "qos", "root")] == [
        shipped[name] for name in ("dead_band", "qos", "root")
    ]
    assert duration(str(defaults["poll"])) == BusSettings.model_fields["every"].default


@needs_mosquitto
def test_the_verb_sends_to_a_broker(mosquitto: Mosquitto) -> None:
    more = ["--gateways", "7", "--broker", mosquitto.url, "--speed", "0", "--connections", "7", "--json"]
    result = fleet(*more)
    assert result.return_value == 0
    sent = json.loads(result.stdout)["sent"]
    assert sent["connections"] == 7 and sent["messages"] == sent["acknowledged"] > 7 * 50


def test_a_broker_that_is_not_there_is_said_so() -> None:
    result = fleet("--broker", f"mqtt://127.0.0.1:{free_port()}", "--speed", "0")
    assert result.return_value == 69 and "refused" in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1", "http://x", "mqtt://", "mqtt://u:p@x", "mqtt://x:99999"])
def test_what_is_no_broker_is_refused_with_the_way_to_write_it(url: str) -> None:
    with pytest.raises(UsageError, match="is no broker's address"):
        fleet("--broker", url)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--day", "21.3.2026"), "--day 21.3.2026"),
        (("--zone", "Asia/Nowhere"), "no such zone"),
        (("--every", "10"), "not a duration"),
        (("--map", "nothing"), "nothing"),
    ],
    ids=lambda one: "" if isinstance(one, tuple) else one.split()[0].strip("-"),
)
def test_what_cannot_be_understood_is_said(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        fleet(*words)

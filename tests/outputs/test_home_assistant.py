"""What Home Assistant is told of a site: payloads, their ids and topics; when it is said, and that it is taken back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from heliograph import __version__, library
from heliograph.clock import RehearsalClock
from heliograph.core.health import Health, MeterHealth, ProofHealth, UplinkHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.core.site import Meter
from heliograph.outputs import mqtt
from heliograph.outputs.broker import Address, Message
from heliograph.outputs.home_assistant import (
    Farewell,
    HomeAssistant,
    Site,
    announced,
    listed,
    listing,
    measured,
    messages,
    node,
    title,
)
from heliograph.outputs.mqtt import Mqtt, Policy, Topics
from tests.fakes import a_meter
from tests.outputs.mosquitto import Mosquitto, mosquitto, needs_mosquitto, until

__all__ = ["mosquitto"]

SAVED = Path(__file__).parent / "home_assistant"
NOON = datetime(2026, 3, 14, 4, tzinfo=UTC)  # in Singapore
TOPICS = Topics("heliograph", "sg-0042")
POLICY = Policy(timedelta(seconds=10), 1.0, timedelta(minutes=5))
MAPS = sorted(path.stem for path in (Path(__file__).parents[2] / "meters").glob("*.toml"))


def with_map(name: str, **more: Any) -> Meter:
    loaded = library.load(name, local=None)
    production = loaded.map.production or "energy_export"
    return replace(a_meter(), map=loaded.map, map_digest=loaded.digest, production=production, **more)


def a_site(*meters: Meter, prefix: str = "homeassistant", topics: Topics = TOPICS) -> Site:
    buses = tuple(dict.fromkeys(meter.bus for meter in meters))
    uplinks = ("redex", "drec")
    return Site(prefix, topics, meters, uplinks, frozenset({"redex"}), buses, POLICY.heartbeat, 1)


def documents(site: Site) -> dict[str, Any]:
    return {message.topic: json.loads(message.payload) for message in messages(site)}


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("sdm630", a_site(replace(a_meter(), serial="23451234"))),
        ("inverter", a_site(with_map("sma-sunny", id="garage.2"), topics=Topics("solar/heliograph", "sg_0042.b"))),
    ],
    ids=["sdm630", "inverter"],
)
def test_the_messages_are_the_saved_ones(name: str, site: Site) -> None:
    """What people have built on: a change of an id makes their dashboards empty. To save them anew: delete the file."""
    made = json.dumps(documents(site), indent=1, ensure_ascii=False).replace(f'"{__version__}"', '"VERSION"') + "\n"
    path = SAVED / f"{name}.json"
    if not path.exists():
        path.write_text(made, encoding="utf-8")
        pytest.fail(f"{path.name} was saved anew: look at it")
    assert made == path.read_text(encoding="utf-8")


def every_part(site: Site) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents(site).values():
        yield from document["cmps"].items()


@pytest.mark.parametrize("name", MAPS)
def test_of_every_map_only_what_is_published_is_announced_and_every_id_is_one_of_a_kind(name: str) -> None:
    meter = with_map(name)
    site = a_site(meter, replace(a_meter("shed"), bus="tcp"))
    parts = list(every_part(site))
    ids = [part["uniq_id"] for _, part in parts]
    assert len(set(ids)) == len(ids)
    names = [part["name"] for key, part in parts if f"/{meter.id}/" in part["uniq_id"]]
    assert len(set(names)) == len(names), "two entities of one device look the same"
    said = published(site)
    for _, part in parts:
        for topic in topics_of(part):
            assert topic in said, f"{part['name']} waits for {topic}, where nothing is said"
        assert part["exp_aft"] > POLICY.heartbeat.total_seconds(), "it would expire between two heartbeats"
    for name in measured(meter):
        register = meter.map.register(name)
        assert register is not None and (register.poll or name == meter.production)


def topics_of(part: dict[str, Any]) -> list[str]:
    found = [
        part["stat_t"],
        *(one["t"] for one in part["avty"]),
        *([part["json_attr_t"]] if "json_attr_t" in part else ()),
    ]
    return [topic.replace("~", part["~"]) for topic in found]


def published(site: Site) -> dict[str, Any]:
    """What outputs/mqtt.py says of such a site by topic, with everything that its meters may show."""
    output = Mqtt(
        Address("127.0.0.1", 1, "x"), site.topics, [one.id for one in site.meters], POLICY, RehearsalClock(NOON, 1)
    )
    for meter in site.meters:
        values = {one.quantity: 1.0 for one in meter.map.registers if one.poll}
        output.sample(Sample(meter.id, NOON, values))
    output.picture(health(site), [])
    said = {message.topic: message.payload for message in output._connected()}
    return {topic: json.loads(payload) if payload.startswith(b"{") else payload for topic, payload in said.items()}


def health(site: Site, **more: Any) -> Health:
    meters = tuple(
        MeterHealth(
            one.id,
            one.bus,
            1,
            one.map.name,
            "ok",
            NOON,
            1,
            12_345,
            51_230_700,
            date(2026, 3, 13),
            50_000,
            "",
            "",
            "",
            "",
            total_at=NOON,
            today_since=NOON - timedelta(hours=12),
            rising_wh=51_230_700,
        )
        for one in site.meters
    )
    uplinks = tuple(UplinkHealth(name, {"due": 2}, date(2026, 3, 12), "", "", None) for name in site.uplinks)
    counts = {bus: {"requests": 9, "timeouts": 1} for bus in site.buses}
    proof = ProofHealth(0, "", "", 0, None, "", "")
    shown = Health("sg-0042", "Asia/Singapore", "0.1.0", NOON, True, True, meters, uplinks, 0, 0, proof, counts)
    return replace(shown, **more)


def test_no_template_names_a_field_that_is_not_published() -> None:
    site = a_site(replace(a_meter(), serial="1"), with_map("sma-sunny", id="garage.2"))
    said = published(site)
    asked = 0
    for _, part in every_part(site):
        texts = [(part["stat_t"], part["val_tpl"]), *((one["t"], one.get("val_tpl", "")) for one in part["avty"])]
        texts.append((part.get("json_attr_t", ""), part.get("json_attr_tpl", "")))
        for topic, template in texts:
            for path in re.findall(r"value_json((?:\.\w+(?!\w*\()|\['[^']+'\])+)", template):
                asked += 1
                found = said[topic.replace("~", part["~"])]
                for step in re.findall(r"\.(\w+)|\['([^']+)'\]", path):
                    key = step[0] or step[1]
                    if key == "values":  # of a dictionary, which is summed up
                        continue
                    assert key in found, f"{part['name']}: {template} asks for {key}"
                    found = found[key]
    assert asked > 50, "the negative control: paths are found"


def test_energy_is_our_running_total_and_never_the_raw_counter() -> None:
    for name in MAPS:
        for _, part in every_part(a_site(with_map(name))):
            if part.get("stat_cla") == "total_increasing" and part.get("dev_cla") == "energy":
                assert part["stat_t"].endswith(("/production_total", "/production_today"))
            assert "energy_" not in part["stat_t"]


@pytest.mark.parametrize("name", ["roof", "a.b", "a_b", "a__b", "a_-b", "a-b", "a._b", "a_.b", "a.-b"])
def test_names_become_letters_that_a_discovery_topic_may_have_and_stay_apart(name: str) -> None:
    names = ["roof", "a.b", "a_b", "a__b", "a_-b", "a-b", "a._b", "a_.b", "a.-b"]
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", node(name))
    assert [other for other in names if node(other) == node(name)] == [name]


@pytest.mark.parametrize(
    ("id", "name"), [("roof", "Roof"), ("east-wing_2", "East wing 2"), ("PV1", "PV1"), ("a.b", "A b"), ("-x", "X")]
)
def test_an_id_is_a_name_for_people(id: str, name: str) -> None:
    assert title(id) == name


def test_power_of_a_meter_that_counts_production_as_export_is_turned_round() -> None:
    """Such meters show it negative while the sun shines; SunSpec leaves the sign to the maker."""

    def power(meter: Meter) -> str:
        parts = documents(a_site(meter))[f"homeassistant/device/sg-0042/meter_{meter.id}/config"]["cmps"]
        template: str = parts["active_power"]["val_tpl"]
        return template

    assert "0 - value_json.value" in power(a_meter())
    assert power(replace(a_meter(), production="energy_import")) == "{{ value_json.value }}"
    assert power(with_map("sma-sunny")) == "{{ value_json.value }}"


def test_a_list_takes_back_nothing_of_others_whoever_said_it() -> None:
    ours = "homeassistant/device/sg-0042/meter_roof/config"
    others = [
        "homeassistant/device/sg-0043/meter_roof/config",
        "homeassistant/sensor/x/config",
        "#",
        "+/device/sg-0042/a/config",
    ]
    assert listed(json.dumps([ours, *others, 5, None]).encode(), TOPICS) == [ours]
    assert [listed(bad, TOPICS) for bad in (b"", b"{}", b"\xff", b'"x"')] == [[]] * 4
    assert announced("site/ha/device/sg-0042/gateway/config", TOPICS)


@pytest.mark.parametrize(
    ("topic", "payload", "greeted"),
    [
        ("homeassistant/status", b"online", True),
        ("homeassistant/status", b"offline", False),
        ("ha/status", b"online", False),
    ],
)
def test_what_is_a_greeting(topic: str, payload: bytes, greeted: bool) -> None:
    assert HomeAssistant(a_site(a_meter())).greeted(topic, payload) is greeted


@contextmanager
def running(broker: Mosquitto, rider: HomeAssistant | Farewell, meters: tuple[str, ...] = ("roof",)) -> Iterator[Mqtt]:
    address = Address("127.0.0.1", broker.port, "heliograph-sg-0042")
    output = Mqtt(address, TOPICS, meters, POLICY, RehearsalClock(NOON, 60.0), rider=rider)
    output.start()
    try:
        until(lambda: output.state().up, "it does not connect")
        yield output
    finally:
        output.close()


def kept(broker: Mosquitto) -> dict[str, bytes]:
    """What the broker retains."""
    with broker.listening() as late:
        late.say("end", b"")
        late.wait_for("end")
        return {one.topic: one.payload for one in late.messages if one.retained}


CONFIG = "homeassistant/device/sg-0042/{}/config"


@needs_mosquitto
def test_it_is_retained_and_said_again_with_the_values_when_home_assistant_comes_up(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "UP_AFTER", (0.0, 0.1))
    monkeypatch.setattr(mqtt, "VALUES_AFTER", 0.2)
    site = a_site(a_meter())
    with running(mosquitto, HomeAssistant(site)) as output, mosquitto.listening() as live:
        output.sample(Sample("roof", NOON, {"active_power": -5000.0}))
        live.wait_for("heliograph/sg-0042/roof/active_power")
        live.wait_for(CONFIG.format("meter_roof"))
        live.messages.clear()
        with mosquitto.listening() as other:
            other.say("homeassistant/status", b"online")
            again = [CONFIG.format("gateway"), CONFIG.format("meter_roof"), "heliograph/sg-0042/roof/active_power"]
            for topic in again:
                live.wait_for(topic)
            heard = [one.topic for one in live.messages if one.topic in again]
            assert heard.index(again[2]) > heard.index(again[1]), "values before it knows them are lost"
    assert json.loads(kept(mosquitto)[CONFIG.format("meter_roof")]) == documents(site)[CONFIG.format("meter_roof")]


@needs_mosquitto
def test_a_meter_that_leaves_the_configuration_is_taken_back_and_nothing_of_it_stays(mosquitto: Mosquitto) -> None:
    both = a_site(a_meter(), a_meter("shed"))
    stranger = "homeassistant/device/sg-0043/meter_roof/config"
    with mosquitto.listening() as other:
        other.say(stranger, b"{}", retain=True)
    with running(mosquitto, HomeAssistant(both), ("roof", "shed")) as output:
        for meter in ("roof", "shed"):
            output.sample(Sample(meter, NOON, {"active_power": -5000.0}))
        output.picture(health(both), [DayFigure("shed", date(2026, 3, 13), "closed", 1, 1)])
        until(lambda: "shed" in str(kept(mosquitto).get(listing(TOPICS))), "the list is not said")
    assert CONFIG.format("meter_shed") in kept(mosquitto)
    one = a_site(a_meter())
    with running(mosquitto, HomeAssistant(one)) as output:
        until(lambda: CONFIG.format("meter_shed") not in kept(mosquitto), "it is not taken back")
        until(lambda: output._old != set(), "it did not hear what the broker has")
        output.picture(health(one), [])
        until(lambda: not any("shed" in topic for topic in kept(mosquitto)), f"left: {list(kept(mosquitto))}")
        until(lambda: "shed" not in str(kept(mosquitto)[listing(TOPICS)]), "the list still names it")
    left = kept(mosquitto)
    assert {CONFIG.format("gateway"), CONFIG.format("meter_roof"), stranger} <= set(left)


@needs_mosquitto
def test_switched_off_or_under_another_prefix_nothing_is_left_of_what_was_announced(mosquitto: Mosquitto) -> None:
    site = a_site(a_meter())
    with running(mosquitto, HomeAssistant(site)) as output:
        output.picture(health(site), [])
        until(lambda: listing(TOPICS) in kept(mosquitto), "the list is not said")
    other = a_site(a_meter(), prefix="ha")
    with running(mosquitto, HomeAssistant(other)) as output:
        until(lambda: not any(topic.startswith("homeassistant/") for topic in kept(mosquitto)), "the old prefix has it")
        output.picture(health(other), [])
        until(lambda: b'"ha/' in kept(mosquitto)[listing(TOPICS)], "the list is not said anew")
    assert "ha/device/sg-0042/gateway/config" in kept(mosquitto)
    with running(mosquitto, Farewell(TOPICS, 1)):
        until(lambda: listing(TOPICS) not in kept(mosquitto), "the list stays")
    assert not any("device" in topic for topic in kept(mosquitto))


def test_an_entity_that_a_device_has_no_more_is_named_once_for_its_removal() -> None:
    """Home Assistant keeps what is merely left out."""
    gateway = CONFIG.format("gateway")
    before = next(one.payload for one in messages(a_site(a_meter(), a_meter("shed", unit=2))) if one.topic == gateway)
    now = HomeAssistant(a_site(replace(a_meter(), bus="tcp")))
    (said,) = now.heard(gateway, before)
    parts = json.loads(said.payload)["cmps"]
    assert parts["bus_rs485"] == {"p": "sensor"} and len(parts["bus_tcp"]) > 1
    assert list(now.heard(gateway, said.payload)) == [], "what it says itself comes back to it"
    for odd in (b"{", b"[]", b'{"cmps":[]}', b'{"cmps":{"a":5}}', b'{"cmps":{"a":{"p":[],"x":1}}}'):
        assert list(now.heard(gateway, odd)) == []


def test_a_farewell_without_a_list_says_nothing() -> None:
    farewell = Farewell(TOPICS, 1)
    assert list(farewell.heard(listing(TOPICS), b"")) == []
    assert list(farewell.heard("heliograph/sg-0042/state", b"[]")) == []
    assert list(farewell.heard(listing(TOPICS), b"no list")) == [Message(listing(TOPICS), b"", 1, retain=True)]

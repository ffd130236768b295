"""What Home Assistant is told so that a site appears there by itself: a device for the gateway and one for each meter.

Pure functions make the messages (its device-based discovery); `HomeAssistant` says them on the connection of
outputs/mqtt.py, `Farewell` takes them back where it was switched off. deploy/HOME_ASSISTANT.md is the owner's page.

No message here has a value: entities name the topics that outputs/mqtt.py publishes. Energy is the site's own running
total, which goes on over a meter's swap. A meter's raw counter is not offered, so that nobody takes it for that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from heliograph import __version__
from heliograph.core import quantity
from heliograph.core.quantity import PRODUCTION_TODAY, PRODUCTION_TOTAL
from heliograph.core.site import Meter
from heliograph.outputs.broker import Message
from heliograph.outputs.mqtt import Topics, packed

Part = dict[str, Any]
"""Of a discovery message; its keys are Home Assistant's abbreviations, which it knows in every version with devices."""

# Our unit -> what Home Assistant calls it, its device class, digits behind the point.
UNITS: Mapping[str, tuple[str | None, str | None, int]] = {
    "W": ("W", "power", 0),
    "VA": ("VA", "apparent_power", 0),
    "var": ("var", "reactive_power", 0),
    "V": ("V", "voltage", 1),
    "A": ("A", "current", 2),
    "Hz": ("Hz", "frequency", 2),
    "1": (None, "power_factor", 2),
    "degC": ("°C", "temperature", 1),
    "%": ("%", None, 1),
    "MOhm": ("MΩ", None, 2),
}

# Quantity -> its name for people, and whether it is shown without being asked for. What is not here is left out.
NAMES: tuple[tuple[str, str, bool], ...] = (
    (r"active_power", "Power", True),
    (r"active_power_(l[123])", "Power {0}", False),
    (r"active_power_(import|export)", "Power {0}", False),
    (r"active_power_grid", "Grid power", False),
    (r"meter_active_power", "Meter power", False),
    (r"output_ac_power|inverter_power", "AC power", False),
    (r"dc_power|dc_power_total|input_power", "DC power", False),
    (r"dc_(power|voltage|current)_mppt(\d)", "Input {1} {0}", False),
    (r"module(\d+)_dc_(power|voltage|current)", "Input {0} {1}", False),
    (r"dc_(voltage|current)", "DC {0}", False),
    (r"voltage_(l[123])n", "Voltage {0}", True),
    (r"voltage_(l[123])(l[123])", "Voltage {0}-{1}", False),
    (r"current|current_sum", "Current", False),
    (r"current_(l[123])", "Current {0}", False),
    (r"current_neutral", "Current neutral", False),
    (r"frequency", "Frequency", False),
    (r"power_factor", "Power factor", False),
    (r"power_factor_(l[123])", "Power factor {0}", False),
    (r"apparent_power", "Apparent power", False),
    (r"apparent_power_(l[123])", "Apparent power {0}", False),
    (r"reactive_power", "Reactive power", False),
    (r"reactive_power_(l[123])", "Reactive power {0}", False),
    (r"temperature_(cabinet|heatsink|internal|transformer)", "Temperature {0}", True),
    (r"efficiency", "Efficiency", False),
    (r"insulation_resistance", "Insulation resistance", False),
)
INSTEAD = ("output_ac_power", "inverter_power", "dc_power_total", "dc_power", "input_power", "active_power_grid")
"""Shown where a meter tells no active power."""

USABLE = "{{ 'offline' if value_json.quality == 'bad' else 'online' }}"
KWH = "{{ value_json.value / 1000 if value_json.value is number else none }}"
MOST_LISTED = 300
"""Devices that a list is believed; a site has at most some 250 meters."""
STATES = ["ok", "no answer", "stale", "doubtful", "never read"]


@dataclass(frozen=True, slots=True)
class Site:
    """What of the configuration shows in Home Assistant."""

    prefix: str
    """Of its discovery topics."""
    topics: Topics
    meters: tuple[Meter, ...]
    uplinks: tuple[str, ...]
    tokens: frozenset[str]
    """Uplinks with a token that a person has to replace."""
    buses: tuple[str, ...]
    heartbeat: timedelta
    """Longest time between two messages of one value."""
    qos: int

    def config(self, device: str) -> str:
        """Topic of the discovery message of a device."""
        return f"{self.prefix}/device/{node(self.topics.site)}/{device}/config"

    def expire_after(self, every: timedelta) -> int:
        """Seconds without a message after which a value is not current: two of them may get lost."""
        return round((2 * self.heartbeat + 3 * every).total_seconds())


def node(name: str) -> str:
    """A name of ours in the few letters that a discovery topic may have; no two names become one."""
    return name.replace("_", "__").replace(".", "_-")


def listing(topics: Topics) -> str:
    """Topic of the retained list of what was announced: what is not ours any more can be taken back by it, wherever
    it was announced, and also where Home Assistant was switched off.
    """
    return f"{topics.root}/{topics.site}/home_assistant"


def messages(site: Site) -> list[Message]:
    """All discovery messages, the gateway first, for the meters name it."""
    found = [(site.config("gateway"), gateway(site))]
    found += [(site.config(f"meter_{node(meter.id)}"), meter_device(site, meter)) for meter in site.meters]
    return [Message(topic, packed(document), site.qos, retain=True) for topic, document in found]


def meter_device(site: Site, meter: Meter) -> Part:
    """A meter with what it measures, its production and how it is."""
    topics, every = site.topics, site.expire_after(meter.every)
    parts: dict[str, Part] = {}
    for name in measured(meter):
        parts[name] = {
            **_sensor(topics, meter.id, name),
            **_reading(meter, name),
            "avty": _available(meter.id, name),
            "exp_aft": every,
        }
    for known, words in ((PRODUCTION_TODAY, "Production today"), (PRODUCTION_TOTAL, "Production total")):
        parts[known.name] = {
            **_sensor(topics, meter.id, known.name),
            "name": words,
            "dev_cla": "energy",
            "stat_cla": "total_increasing",
            "unit_of_meas": "kWh",
            "sug_dsp_prc": 1,
            "val_tpl": KWH,
            # The ledger has them, whether the meter answers or sleeps.
            "avty": [{"t": "~/status"}, {"t": f"~/{meter.id}/{known.name}", "val_tpl": USABLE}],
            "exp_aft": every,
        }
    # It may fall, by a correction and at midnight; only the latter begins anew.
    parts[PRODUCTION_TODAY.name] |= {"stat_cla": "total", "lrst_val_tpl": "{{ value_json.since }}"}
    of_meter = f"value_json.meters['{meter.id}']"
    day = f"{of_meter}.last_day"
    parts["last_day"] = {
        **_state(site, meter.id, "last_day", "Production last closed day"),
        "dev_cla": "energy",
        "unit_of_meas": "kWh",
        "sug_dsp_prc": 1,
        "val_tpl": f"{{{{ {day}_wh / 1000 if {day}_wh is number else none }}}}",
        "json_attr_t": "~/state",
        "json_attr_tpl": f"{{{{ {{'day': {day}}} | tojson }}}}",
    }
    parts["condition"] = {
        **_state(site, meter.id, "condition", "Condition"),
        "dev_cla": "enum",
        "ops": STATES,
        "ent_cat": "diagnostic",
        "val_tpl": f"{{{{ 'no answer' if {of_meter}.error else {of_meter}.state }}}}",
        "ic": "mdi:meter-electric-outline",
        "json_attr_t": "~/state",
        "json_attr_tpl": f"{{{{ {{'error': {of_meter}.error, 'doubt': {of_meter}.doubt}} | tojson }}}}",
    }
    device: Part = {
        "ids": [f"heliograph/{topics.site}/{meter.id}"],
        "name": title(meter.id),
        "mdl": model(meter),
        "via_device": f"heliograph/{topics.site}",
    }
    if meter.map.maker:
        device["mf"] = meter.map.maker
    if meter.serial:
        device["sn"] = meter.serial
    return {"dev": device, "o": ORIGIN, "avty_mode": "all", "cmps": parts}


def gateway(site: Site) -> Part:
    """The gateway with what tells whether it does its work."""
    parts: dict[str, Part] = {
        "attention": {
            **_state(site, "", "attention", "Condition", "binary_sensor"),
            "dev_cla": "problem",
            "val_tpl": "{{ 'ON' if value_json.alarms > 0 else 'OFF' }}",
            "json_attr_t": "~/state",
            "json_attr_tpl": "{{ {'attention': value_json.attention} | tojson }}",
        },
        "alarms": _count(site, "alarms", "Alarms", "value_json.alarms", icon="bell-outline"),
        "clock": {
            **_state(site, "", "clock", "Clock", "binary_sensor"),
            "dev_cla": "problem",
            "ent_cat": "diagnostic",
            "val_tpl": "{{ 'OFF' if value_json.clock_trusted else 'ON' }}",
        },
        "storage": {
            **_state(site, "", "storage", "Storage", "binary_sensor"),
            "dev_cla": "problem",
            "ent_cat": "diagnostic",
            "val_tpl": "{{ 'ON' if value_json.storage else 'OFF' }}",
            "json_attr_t": "~/state",
            "json_attr_tpl": "{{ {'trouble': value_json.storage} | tojson }}",
        },
        "held_days": _count(site, "held_days", "Held days", "value_json.held_days", "days", "calendar-lock"),
        "missing_days": _count(
            site, "missing_days", "Missing days", "value_json.missing_days", "days", "calendar-remove"
        ),
    }
    for name in site.uplinks:
        here, words = f"value_json.uplinks['{name}']", name.upper()
        parts[f"{name}_backlog"] = {
            **_count(site, f"{name}_backlog", f"{words} backlog", f"{here}.backlog", "days", "tray-arrow-up"),
            "json_attr_t": "~/state",
            "json_attr_tpl": f"{{{{ {{'trouble': {here}.trouble}} | tojson }}}}",
        }
        parts[f"{name}_stopped"] = _count(
            site, f"{name}_stopped", f"{words} not taken", f"{here}.stopped", "days", "tray-remove"
        )
        parts[f"{name}_oldest"] = {
            **_state(site, "", f"{name}_oldest", f"{words} oldest open day"),
            "dev_cla": "date",
            "ent_cat": "diagnostic",
            "val_tpl": f"{{{{ {here}.oldest }}}}",
        }
        if name in site.tokens:
            left = f"(({here}.token_until | as_datetime) - (value_json.ts | as_datetime)).days"
            parts[f"{name}_token"] = {
                **_state(site, "", f"{name}_token", f"{words} token ends in"),
                "unit_of_meas": "days",
                "ent_cat": "diagnostic",
                "ic": "mdi:key-outline",
                "val_tpl": f"{{{{ {left} if {here}.token_until else none }}}}",
            }
    for bus in site.buses:
        known, here = f"'{bus}' in value_json.buses", f"value_json.buses['{bus}']"
        parts[f"bus_{node(bus)}"] = {
            # Before the first round no errors are known, which is not the same as none.
            **_count(site, f"bus_{node(bus)}", f"Errors on bus {bus}", f"{here}.values() | sum if {known} else none"),
            "ic": "mdi:lan-disconnect",
            "stat_cla": "total_increasing",
            "json_attr_t": "~/state",
            "json_attr_tpl": f"{{{{ ({here} if {known} else {{}}) | tojson }}}}",
        }
    device: Part = {
        "ids": [f"heliograph/{site.topics.site}"],
        "name": f"Heliograph {site.topics.site}",
        "mf": "Heliograph",
        "mdl": "Solar metering gateway",
        "sw": __version__,
    }
    return {"dev": device, "o": ORIGIN, "avty_mode": "all", "cmps": parts}


ORIGIN: Part = {"name": "Heliograph", "sw": __version__}


def measured(meter: Meter) -> tuple[str, ...]:
    """Quantities that are read from the meter in each round and that a person may want to see, in the map's order."""
    polled = [one.quantity for one in meter.map.registers if one.poll and not one.models]
    found = []
    for name in dict.fromkeys(polled):
        known = quantity.find(name)
        if known is not None and known.kind == "instant" and known.unit in UNITS and _named(name) is not None:
            found.append(name)
    return tuple(sorted(found, key=lambda name: name != "active_power"))


def outward(meter: Meter) -> bool:
    """Whether the meter's power is negative while the sun shines: such a meter counts production as export, and its
    power is positive for import. SunSpec leaves the sign of a meter to its maker, so it is shown as it is.
    """
    return meter.production.startswith("energy_export") and meter.map.sunspec is None


def title(name: str) -> str:
    """An id of the configuration as a name for people."""
    words = re.sub(r"[-_.]+", " ", name).strip()
    return words[:1].upper() + words[1:]


def model(meter: Meter) -> str:
    """What is printed on the device, without its maker; a map for more than two products has only its own name."""
    maker = meter.map.maker
    products = [one.removeprefix(maker).strip() if maker else one for one in meter.map.products]
    if not products or len(products) > 2:
        return meter.map.name
    return " / ".join(products)


def _named(name: str) -> tuple[str, bool] | None:
    for pattern, words, shown in NAMES:
        if match := re.fullmatch(pattern, name):
            parts = [part.upper() if re.fullmatch(r"l\d", part) else part for part in match.groups() if part]
            return words.format(*parts), shown
    return None


def _reading(meter: Meter, name: str) -> Part:
    """How a measured quantity is shown."""
    known, named = quantity.find(name), _named(name)
    assert known is not None and named is not None  # `measured` asks both
    words, shown = named
    unit, device_class, digits = UNITS[known.unit]
    names = measured(meter)
    instead = next((one for one in INSTEAD if one in names), None) if "active_power" not in names else None
    part: Part = {"name": words.removesuffix(" L1") if meter.map.phases == 1 else words, "stat_cla": "measurement"}
    if unit is not None:
        part["unit_of_meas"] = unit
    if device_class is not None:
        part["dev_cla"] = device_class
    part["sug_dsp_prc"] = digits
    part["val_tpl"] = "{{ value_json.value }}"
    if re.fullmatch(r"active_power(_l[123])?", name) and outward(meter):
        part["val_tpl"] = "{{ 0 - value_json.value if value_json.value is number else none }}"
    if not shown and name != instead:
        part["en"] = False
    return part


def _sensor(topics: Topics, meter: str, name: str) -> Part:
    """An entity of a meter with a topic of its own."""
    return {
        "p": "sensor",
        "uniq_id": f"heliograph/{topics.site}/{meter}/{name}",
        "~": f"{topics.root}/{topics.site}",
        "stat_t": f"~/{meter}/{name}",
    }


def _available(meter: str, name: str) -> list[Part]:
    """The gateway is there, the meter answers, and this value is known; all of it (avty_mode)."""
    return [{"t": "~/status"}, {"t": f"~/{meter}/availability"}, {"t": f"~/{meter}/{name}", "val_tpl": USABLE}]


def _state(site: Site, meter: str, name: str, words: str, platform: str = "sensor") -> Part:
    """An entity that is told by the site's state, whether a meter answers or not."""
    below = f"{meter}/{name}" if meter else name
    return {
        "p": platform,
        "uniq_id": f"heliograph/{site.topics.site}/{below}",
        "name": words,
        "~": f"{site.topics.root}/{site.topics.site}",
        "stat_t": "~/state",
        "avty": [{"t": "~/status"}],
        "exp_aft": site.expire_after(timedelta(minutes=1)),
    }


def _count(site: Site, name: str, words: str, value: str, unit: str = "", icon: str = "") -> Part:
    part = {
        **_state(site, "", name, words),
        "stat_cla": "measurement",
        "ent_cat": "diagnostic",
        "val_tpl": f"{{{{ {value} }}}}",
    }
    if unit:
        part["unit_of_meas"] = unit
    if icon:
        part["ic"] = f"mdi:{icon}"
    return part


class HomeAssistant:
    """Announces a site (a Rider of outputs/mqtt.py)."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._messages = messages(site)
        self._ours = {one.topic for one in self._messages}
        self._list = Message(listing(site.topics), json.dumps(sorted(self._ours)).encode(), site.qos, retain=True)
        self._listed = False
        self._greeting = f"{site.prefix}/status"
        self.subscriptions: Sequence[str] = (self._greeting, site.config("+"), self._list.topic)

    def connected(self) -> Iterable[Message]:
        # The list is said later (`picture`): the broker must have told us the old one before it is replaced.
        self._listed = False
        return self._messages

    def heard(self, topic: str, payload: bytes) -> Iterable[Message]:
        """Takes back what an earlier life of ours announced and is not ours any more."""
        if topic == self._list.topic:
            old = listed(payload, self._site.topics)
        elif topic in self._ours and payload:
            return self._without(topic, payload)
        elif announced(topic, self._site.topics) and payload:
            old = [topic]
        else:
            return ()
        return [Message(one, b"", self._site.qos, retain=True) for one in old if one not in self._ours]

    def _without(self, topic: str, before: bytes) -> list[Message]:
        """An entity that a device has no more, as that of a bus or an uplink that left, is named once more with its
        platform alone: Home Assistant removes it then, but not where it is merely left out.
        """
        document = json.loads(next(one.payload for one in self._messages if one.topic == topic))
        gone = {key: {"p": part["p"]} for key, part in _parts(before).items() if key not in document["cmps"]}
        if not gone:
            return []
        document["cmps"] |= gone
        return [Message(topic, packed(document), self._site.qos, retain=True)]

    def greeted(self, topic: str, payload: bytes) -> bool:
        return topic == self._greeting and payload == b"online"

    def picture(self) -> Iterable[Message]:
        if not self._listed:
            self._listed = True
            yield self._list


class Farewell:
    """Takes back what was announced, where Home Assistant was switched off (a Rider of outputs/mqtt.py)."""

    def __init__(self, topics: Topics, qos: int) -> None:
        self._topics, self._qos = topics, qos
        self.subscriptions: Sequence[str] = (listing(topics),)

    def connected(self) -> Iterable[Message]:
        return ()

    def heard(self, topic: str, payload: bytes) -> Iterable[Message]:
        if topic != listing(self._topics) or not payload:
            return ()
        # The list goes last: until then it is there for the next life.
        gone = [*listed(payload, self._topics), topic]
        return [Message(one, b"", self._qos, retain=True) for one in gone]

    def greeted(self, _topic: str, _payload: bytes) -> bool:
        return False

    def picture(self) -> Iterable[Message]:
        return ()


def _parts(payload: bytes) -> dict[str, Part]:
    """The entities of a discovery message; those that it removes are not among them."""
    try:
        parts = json.loads(payload)["cmps"]
        return {key: part for key, part in parts.items() if isinstance(part["p"], str) and len(part) > 1}
    except (ValueError, LookupError, TypeError, AttributeError):  # whoever said it
        return {}


def announced(topic: str, topics: Topics) -> bool:
    """Whether it is the topic of a discovery message of this site, under whatever prefix."""
    return re.fullmatch(rf"[^+#\0]+/device/{re.escape(node(topics.site))}/[A-Za-z0-9_-]+/config", topic) is not None


def listed(payload: bytes, topics: Topics) -> list[str]:
    """What a list names, but nothing of others, whoever said it."""
    try:
        found = json.loads(payload)
    except ValueError:
        return []
    if not isinstance(found, list):
        return []
    return [one for one in found[:MOST_LISTED] if isinstance(one, str) and announced(one, topics)]

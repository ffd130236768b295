"""What a site says to an MQTT broker: which topics, when, retained or not; the last part against a real mosquitto."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from heliograph.clock import RehearsalClock
from heliograph.core import quantity
from heliograph.core.health import Health, MeterHealth, ProofHealth, UplinkHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.core.worth import moved
from heliograph.outputs.broker import Address, Message
from heliograph.outputs.mqtt import Mqtt, Policy, Topics, Value, state_document, worth
from tests.fakes import FakeClock
from tests.outputs.mosquitto import Mosquitto, mosquitto, needs_mosquitto, until

__all__ = ["mosquitto"]

NOON = datetime(2026, 3, 14, 4, tzinfo=UTC)  # in Singapore
TOPICS = Topics("heliograph", "sg-0042")
POLICY = Policy(timedelta(seconds=10), 0.5, timedelta(minutes=5))


@pytest.mark.parametrize(
    ("seconds", "value", "quality", "told"),
    [
        (10, 5000.0, "good", False),  # nothing new
        (10, 5024.0, "good", False),  # within 0.5 % of 5000
        (10, 5025.0, "good", True),
        (10, 4975.0, "good", True),
        (5, 9000.0, "good", False),  # faster than `every`
        (9.5, 9000.0, "good", True),  # a round that came a little early
        (1, 5000.0, "uncertain", True),  # a doubt does not wait
        (1, None, "bad", True),
        (299, 5000.0, "good", True),  # the heartbeat
        (200, 5000.0, "good", False),
        (-60, 5000.0, "good", True),  # the clock was set back
    ],
)
def test_what_is_worth_a_message(seconds: float, value: float | None, quality: Any, told: bool) -> None:
    before = Value(NOON, 5000.0, "W", "good")
    assert worth(before, Value(NOON + timedelta(seconds=seconds), value, "W", quality), POLICY) is told


@pytest.mark.parametrize(
    ("old", "new", "unit", "told"),
    [
        (0.0, 4.9, "W", False),  # noise around zero is measured against 1 kW
        (0.0, 5.0, "W", True),
        (-5000.0, -5020.0, "W", False),
        (230.0, 231.0, "V", False),
        (230.0, 231.2, "V", True),
        (50.0, 50.005, "Hz", False),  # a frequency moves in a narrow range
        (50.0, 49.985, "Hz", True),
        (0.99, 0.994, "1", False),
        (0.99, 0.98, "1", True),
        (123_456_789, 123_456_790, "Wh", True),  # energy at every Wh
        (4, 5, "", True),  # a state is no number
        ("a", "b", "", True),
        ("a", "a", "", False),
        (None, None, "W", False),
        (None, 0.0, "W", True),
    ],
)
def test_what_a_dead_band_of_half_a_percent_leaves_out(old: Any, new: Any, unit: str, told: bool) -> None:
    assert moved(old, new, unit, 0.5) is told


def test_energy_is_told_once_a_minute() -> None:
    before = Value(NOON, 100, "Wh", "good")
    after = [seconds for seconds in range(10, 130, 10) if worth(before, _later(seconds), POLICY)]
    assert after == [60, 70, 80, 90, 100, 110, 120]


def _later(seconds: int) -> Value:
    return Value(NOON + timedelta(seconds=seconds), 101, "Wh", "good")


def test_no_quantity_that_a_device_may_have_stands_where_our_own_words_do() -> None:
    for word in ("availability", "day", "production_total", "production_today"):
        assert quantity.find(word) is None
    assert quantity.find("status") is not None, "the negative control: this one is taken"
    assert [name for name in quantity.names() if not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")] == []


def health(**more: Any) -> Health:
    meter = MeterHealth(
        id="roof",
        bus="rs485",
        unit=1,
        map="eastron-sdm630",
        state="ok",
        last_at=NOON,
        index_wh=41_230_700,
        today_wh=12_345,
        total_wh=51_230_700,
        last_day=date(2026, 3, 13),
        last_day_wh=50_000,
        doubt="",
        error="",
        seam="",
        proposal="",
        total_at=NOON,
        today_since=datetime(2026, 3, 13, 16, tzinfo=UTC),
        rising_wh=51_230_700,
    )
    uplink = UplinkHealth("redex", {"due": 2, "confirmed": 9, "rejected": 1}, date(2026, 3, 12), "", "", None)
    proof = ProofHealth(0, "", "", 0, None, "", "")
    shown = Health(
        site="sg-0042",
        timezone="Asia/Singapore",
        software="0.1.0",
        at=NOON,
        running=True,
        clock_trusted=True,
        meters=(meter,),
        uplinks=(uplink,),
        held=1,
        missing=0,
        proof=proof,
        buses={"rs485": {"requests": 9, "timeouts": 1}},
        alarms=("1 day is held. Why: heliograph days",),
    )
    return replace(shown, **more)


def sample(seconds: float = 0, **more: Any) -> Sample:
    values = {"active_power": 5000.0, "energy_export": 41_230_700, "serial_number": "23451234"}
    return Sample(**{"meter": "roof", "at": NOON + timedelta(seconds=seconds), "values": values, **more})


def day(number: int, **more: Any) -> DayFigure:
    figures: dict[str, Any] = {"state": "closed", "period_wh": 50_000, "total_wh": 51_000_000}
    return DayFigure("roof", date(2026, 3, number), **{**figures, "deliveries": {"redex": "confirmed"}, **more})


@contextmanager
def site(broker: Mosquitto, *, meters: tuple[str, ...] = ("roof",), **more: Any) -> Iterator[Mqtt]:
    address = Address("127.0.0.1", broker.port, "heliograph-sg-0042")
    made = Mqtt(address, TOPICS, meters, POLICY, RehearsalClock(NOON, 60.0), **more)
    made.start()
    try:
        until(lambda: made.state().up, "it does not connect")
        yield made
    finally:
        made.close()


@needs_mosquitto
def test_values_and_what_of_them_stays(mosquitto: Mosquitto) -> None:
    with mosquitto.listening() as live:
        with site(mosquitto) as output:
            output.sample(sample())
            output.picture(health(), [day(13)])
            live.wait_for("heliograph/sg-0042/roof/day/2026-03-13")
            value = json.loads(live.wait_for("heliograph/sg-0042/roof/active_power").payload)
            assert value == {"ts": "2026-03-14T04:00:00.000Z", "value": 5000.0, "unit": "W", "quality": "good"}
            output.sample(sample(1, values={}, error="no answer from unit 1"))
            live.wait_for(
                "heliograph/sg-0042/roof/active_power",
                b'{"ts":"2026-03-14T04:00:01.000Z","value":null,"unit":"W","quality":"bad"}',
            )
            live.wait_for("heliograph/sg-0042/roof/availability", b"offline")
            output.sample(sample(2, doubt="counter fell"))
            live.wait_for(
                "heliograph/sg-0042/roof/energy_export",
                b'{"ts":"2026-03-14T04:00:02.000Z","value":41230700,"unit":"Wh","quality":"uncertain"}',
            )
            live.wait_for("heliograph/sg-0042/roof/availability", b"online")
            output.sample(sample(3, values={"active_power": 5000.0}))
            live.wait_for(  # a block of registers failed, or the device says that it has no value
                "heliograph/sg-0042/roof/energy_export",
                b'{"ts":"2026-03-14T04:00:03.000Z","value":null,"unit":"Wh","quality":"bad"}',
            )
            stale = replace(health().meters[0], state="stale")  # its line hangs, so no round fails
            output.picture(health(at=NOON + timedelta(minutes=5), meters=(stale,)), [day(13)])
            live.wait_for(
                "heliograph/sg-0042/roof/active_power",
                b'{"ts":"2026-03-14T04:05:00.000Z","value":null,"unit":"W","quality":"bad"}',
            )
            output.sample(sample(301))
            live.wait_for(
                "heliograph/sg-0042/roof/active_power",
                b'{"ts":"2026-03-14T04:05:01.000Z","value":5000.0,"unit":"W","quality":"good"}',
            )
            live.settle()
            assert live.last("heliograph/sg-0042/roof/availability") == b"online"
        live.wait_for("heliograph/sg-0042/status", b"offline")
        assert not any(b"23451234" in one.payload for one in live.messages), "a serial number is nobody's business"
    with mosquitto.listening() as late:
        late.settle()
        kept = {one.topic.removeprefix("heliograph/sg-0042/"): one.payload for one in late.messages}
    total = json.loads(kept.pop("roof/production_total"))
    assert total == {"ts": "2026-03-14T04:00:00.000Z", "value": 51_230_700, "unit": "Wh", "quality": "uncertain"}
    figures = json.loads(kept.pop("roof/day/2026-03-13"))
    assert figures["period_wh"] == 50_000 and figures["deliveries"] == {"redex": "confirmed"}
    state = json.loads(kept.pop("state"))
    assert (state["alarms"], state["held_days"], state["uplinks"]["redex"]["backlog"]) == (1, 1, 3)
    assert state["uplinks"]["redex"]["stopped"] == 1 and state["buses"]["rs485"]["timeouts"] == 1
    assert kept == {"status": b"offline", "roof/availability": b"online"}


@needs_mosquitto
def test_after_a_reconnect_the_current_values_are_said_again_and_days_too(mosquitto: Mosquitto) -> None:
    with site(mosquitto) as output:
        output.sample(sample())
        output.picture(health(), [day(13)])
        mosquitto.kill()
        until(lambda: not output.state().up, "the loss is not noticed")
        output.sample(sample(60, values={"active_power": 5001.0}))  # within the dead band, and current all the same
        mosquitto.start()
        with mosquitto.listening() as live:
            until(lambda: output.state().up, "it does not come back")
            live.wait_for("heliograph/sg-0042/status", b"online")
            live.wait_for("heliograph/sg-0042/roof/day/2026-03-13")
            assert json.loads(live.wait_for("heliograph/sg-0042/roof/active_power").payload)["value"] == 5001.0


@needs_mosquitto
def test_old_days_and_meters_that_left_are_taken_back_also_by_a_later_life(mosquitto: Mosquitto) -> None:
    with site(mosquitto, meters=("roof", "shed")) as output:
        output.sample(sample(meter="shed"))
        output.sample(sample())
        shed = replace(health().meters[0], id="shed")
        output.picture(health(meters=(*health().meters, shed)), [day(1), day(13), replace(day(13), meter="shed")])
        with mosquitto.listening() as live:
            live.wait_for("heliograph/sg-0042/shed/day/2026-03-13")
    with mosquitto.listening() as live, site(mosquitto) as output:
        live.wait_for("heliograph/sg-0042/shed/availability", b"")
        live.wait_for("heliograph/sg-0042/shed/production_total", b"")
        until(lambda: len(output._old) == 3, "it did not hear what the broker has")
        later = NOON + timedelta(days=2)
        output.picture(health(at=later, clock_trusted=False), [])
        live.settle()
        assert live.last("heliograph/sg-0042/roof/day/2026-03-01"), "what is old is not known without a clock"
        output.picture(health(at=later), [day(13)])
        live.wait_for("heliograph/sg-0042/roof/day/2026-03-01", b"")
        live.wait_for("heliograph/sg-0042/shed/day/2026-03-13", b"")
    with mosquitto.listening() as late:
        late.settle()
        left = {one.topic.removeprefix("heliograph/sg-0042/") for one in late.messages}
        assert left == {"status", "state", "roof/availability", "roof/production_total", "roof/day/2026-03-13"}


@needs_mosquitto
def test_the_state_waits_for_the_first_round_but_not_for_ever(mosquitto: Mosquitto) -> None:
    """That nothing was read in the first second after a start is an alarm that nobody wants to be woken by."""
    with mosquitto.listening("heliograph/sg-0042/state") as live, site(mosquitto, meters=("roof", "shed")) as output:
        output.picture(health(), [])
        output.sample(sample())
        output.picture(health(at=NOON + timedelta(seconds=30)), [])
        output.picture(health(at=NOON + timedelta(minutes=2)), [])
        assert json.loads(live.wait_for("heliograph/sg-0042/state").payload)["ts"] == "2026-03-14T04:02:00.000Z"


class Overtaken:
    """A connection to which somebody else wants to say something at the moment at which something is said to it."""

    def __init__(self, *_: Any, **called: Any) -> None:
        self.connected, self.again, self.heard = called["on_connected"], called["in_order"], called["on_message"]
        self.retained: dict[str, bytes] = {}
        self.meanwhile: threading.Thread | None = None

    def put(self, *messages: Message) -> None:
        if (other := self.meanwhile) is not None and not other.ident:
            other.start()
            other.join(0.1)  # where it need not wait for us, it is through by then
        for one in messages:
            self.retained[one.topic] = one.payload


class Riding:
    subscriptions = ()

    def connected(self) -> list[Message]:
        return [Message("list", b"connected")]

    def heard(self, _topic: str, _payload: bytes) -> list[Message]:
        return [Message("list", b"heard")]

    def greeted(self, _topic: str, payload: bytes) -> bool:
        return payload == b"online"

    def picture(self) -> list[Message]:
        return [Message("list", b"picture")]


@pytest.mark.parametrize("older", ["sample", "picture", "values again", "rider again", "heard"])
def test_nothing_older_overtakes_what_is_newer(older: str) -> None:
    """A retained "offline" of a meter that answers would stay until it fails once more."""
    connection: Any = None

    def connect(*words: Any, **called: Any) -> Overtaken:
        nonlocal connection
        connection = made = Overtaken(*words, **called)
        return made

    output = Mqtt(Address("x", 1, "x"), TOPICS, ["roof"], POLICY, FakeClock(), rider=Riding(), connection=connect)  # type: ignore[arg-type]  # a stand-in
    output.sample(sample())
    silent = health(at=NOON + timedelta(minutes=5), meters=(replace(health().meters[0], state="stale"),))
    says: dict[str, tuple[Callable[[], None], Callable[[], None], str]] = {
        "sample": (
            lambda: output.sample(sample(10, values={}, error="silent")),
            lambda: output.sample(sample(20)),
            "online",
        ),
        "picture": (lambda: output.picture(silent, ()), lambda: output.sample(sample(301)), "online"),
        "values again": (connection.again, lambda: output.sample(sample(10, values={}, error="silent")), "offline"),
        "rider again": (connection.again, lambda: output.picture(health(), ()), "picture"),
        "heard": (lambda: connection.heard("x", b"x"), lambda: output.picture(health(), ()), "picture"),
    }
    if older == "values again":
        output._values_at = 0.0
    if older == "rider again":
        output._rider_at = 0.0
    first, second, newest = says[older]
    connection.meanwhile = threading.Thread(target=second)
    first()
    connection.meanwhile.join()
    topic = "list" if newest == "picture" else TOPICS.availability("roof")
    assert connection.retained[topic].decode() == newest
    if older == "values again":
        power = json.loads(connection.retained[TOPICS.quantity("roof", "active_power")])
        assert power["value"] is None and power["quality"] == "bad"


def test_the_state_names_what_needs_attention() -> None:
    many = health(alarms=tuple(f"alarm {number}" for number in range(30)))
    document = state_document(many)
    assert document["alarms"] == 30 and len(document["attention"]) == 10

"""The output with a connection that a test moves by hand: what is told of an outage, of whom, and over restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from heliograph.core.errors import StoreError
from heliograph.core.health import OutputHealth
from heliograph.core.shown import PastSample, Sample
from heliograph.outputs.broker import KEEPALIVE, Address, Broker, Message
from heliograph.outputs.sparkplug import PIECE, Role, Sparkplug
from tests.fakes import START, FakeClock, a_meter
from tests.outputs.mosquitto import until
from tests.outputs.sparkplug_checker import Checker, decoded
from tests.outputs.test_sparkplug import millis

NCMD = "spBv1.0/solar/NCMD/sg-0042"
STATE = "spBv1.0/STATE/scada"


class Line:
    """In place of a connection: up, down and heard when the test says so."""

    def __init__(self, *_who: object, **told: Callable[..., Any]) -> None:
        self.told = told
        self.renewed: list[str] = []

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def arrived(self) -> float:
        return math.inf

    def close(self) -> None:
        self.told["on_lost"]([])

    def renew(self, because: str) -> None:
        self.renewed.append(because)

    def state(self) -> OutputHealth:
        return OutputHealth("sparkplug", "nowhere", True, START)


class Life:
    """One life of a gateway with the meters roof and shed, of which a sample a minute is stored."""

    def __init__(self, folder: Path, clock: FakeClock, checker: Checker, **more: Any) -> None:
        self.clock, self.checker = clock, checker
        self.stored: dict[str, list[datetime]] = {"roof": [], "shed": []}
        self.waiting: dict[str, list[datetime]] | None = None
        """What is not stored while the card is away."""
        self.fault: StoreError | None = None
        self.asked = 0
        meters = [a_meter("roof"), a_meter("shed", unit=2)]
        connection: Any = Line
        role = Role("solar", "sg-0042", **more)
        self.node = Sparkplug(Address("x", 1, "x"), clock, role, meters, self.past, folder / "memory", connection)
        self.line: Any = self.node._broker
        self.node.start()

    def past(self, meter: str, since: datetime, until: datetime, most: int) -> Sequence[PastSample]:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        found = [at for at in self.stored[meter] if since <= at <= until][:most]
        return [PastSample(at, {"energy_export": millis(at)}, 7) for at in found]

    def minute(self, *silent: str) -> None:
        self.clock.leap(minutes=1)
        for meter in self.stored:
            if meter in silent:
                for _ in range(2):
                    self.node.sample(Sample(meter, self.clock.now(), error="no answer"))
            else:
                (self.stored if self.waiting is None else self.waiting)[meter].append(self.clock.now())
                values = {"energy_export": millis(self.clock.now())}
                self.node.sample(Sample(meter, self.clock.now(), values, trusted=self.clock.trusted()))

    def card(self, *, there: bool) -> None:
        for meter, waiting in (self.waiting or {}).items():
            self.stored[meter] += waiting
        self.waiting = None if there else {meter: [] for meter in self.stored}

    def up(self) -> None:
        self.will: Message = self.line.told["will"]()
        self.line.told["on_connected"]()
        self.say()

    def down(self) -> None:
        self.checker.hear(self.will.topic, self.will.payload, 1)
        self.line.told["on_lost"]([])

    def say(self, most: int = 1000) -> int:
        """Everything that is to be said now."""
        for said in range(most):
            message = self.line.told["in_order"]()
            if message is None:
                return said
            self.checker.hear(message.topic, message.payload, message.qos, message.retain)
        return most

    def past_told(self, meter: str) -> list[int]:
        return [one.at for one in self.checker.told[meter, "energy_export"] if one.historical]

    def tells(self, meter: str, *minutes: datetime) -> None:
        """Waits until the past of these minutes was told."""

        def so() -> bool:
            self.say()
            return {millis(one) for one in minutes} <= set(self.past_told(meter))

        until(so, f"not all of {meter} came: {self.past_told(meter)}")


@pytest.fixture
def clock() -> FakeClock:
    found = FakeClock()
    found.rate = 100.0  # for pauses; it stands still by itself
    return found


@pytest.fixture
def live(tmp_path: Path, clock: FakeClock) -> Iterator[Callable[..., Life]]:
    lives: list[Life] = []
    checker = Checker()

    def begin(**more: Any) -> Life:
        lives.append(Life(tmp_path, clock, checker, **more))
        return lives[-1]

    yield begin
    for one in lives:
        one.node.close()
    assert checker.problems == []


def outage(life: Life, minutes: int, *silent: str) -> list[datetime]:
    before = len(life.stored["roof"])
    for _ in range(minutes):
        life.minute(*silent)
    return life.stored["roof"][before:]


def test_a_meter_that_is_dead_when_the_host_returns_is_told_of_with_its_next_birth(live: Callable[..., Life]) -> None:
    life = live()
    life.minute()
    life.up()
    life.down()
    missed = outage(life, 10)
    life.minute("roof")
    life.up()
    life.tells("shed", *missed)
    assert life.past_told("roof") == [] and "roof" not in life.checker.devices
    life.minute()
    life.tells("roof", *missed)
    assert life.past_told("roof") == sorted(life.past_told("roof"))


def test_what_was_missed_before_a_restart_is_told_by_the_next_life(live: Callable[..., Life]) -> None:
    first = live()
    first.minute()
    first.up()
    first.down()
    missed = outage(first, 10)
    first.node.close()
    second = live()
    second.stored = first.stored
    second.minute()
    second.up()
    second.tells("roof", *missed)
    second.tells("shed", *missed)
    assert second.checker.bd_seqs == [0, 1], "the number goes on"


def test_when_all_was_told_the_next_life_has_nothing_to_tell_again(live: Callable[..., Life], tmp_path: Path) -> None:
    first = live()
    first.minute()
    first.up()
    first.minute()  # stored, so that nothing earlier is to come any more

    def whole() -> bool:
        first.say()
        return '"missing_since": null' in (tmp_path / "memory").read_text()

    until(whole, "it never remembers that nothing is missing")


def test_a_store_that_cannot_be_read_delays_history_and_loses_none(live: Callable[..., Life]) -> None:
    life = live()
    missed = outage(life, 10)
    life.fault = StoreError("the card is away", hint="Look at it.")
    life.up()

    def tried() -> bool:
        life.clock.leap(seconds=10)
        return life.asked > 2

    until(tried, "it gives up")
    life.say()
    assert life.past_told("roof") == []
    life.fault = None
    life.tells("roof", *missed)


def test_what_waits_for_the_card_is_waited_for_however_long(live: Callable[..., Life]) -> None:
    life = live()
    life.minute()
    life.up()
    life.down()
    missed = outage(life, 10)
    life.card(there=False)
    outage(life, 20)
    missed += life.waiting["roof"] if life.waiting else []
    life.up()
    life.tells("roof", *missed[:10])
    asked = life.asked

    def waited() -> bool:
        life.minute()
        life.say()
        return life.asked > asked + 20

    until(waited, "it gives up")
    assert not {millis(one) for one in missed[10:]} & set(life.past_told("roof"))
    life.card(there=True)
    for _ in range(2):
        life.minute()
    life.tells("roof", *missed)


def test_an_outage_over_a_boot_whose_clock_is_behind_is_told_once_the_clock_is_right(live: Callable[..., Life]) -> None:
    first = live()
    first.clock.leap(hours=12)
    first.minute()
    first.up()
    first.down()
    missed = outage(first, 120)
    first.node.close()
    clock = first.clock
    for behind in (timedelta(minutes=90), timedelta(minutes=200)):  # in the outage, and before it
        clock.synchronised = False
        clock.at -= behind
        second = live()
        second.stored = {meter: list(stored) for meter, stored in first.stored.items()}
        second.waiting = {meter: [] for meter in second.stored}  # no date is known
        second.up()
        for _ in range(5):
            second.minute()
            second.say()
        assert second.past_told("roof") == []
        clock.at += behind
        clock.synchronised = True
        waiting = second.waiting
        second.waiting = None
        for meter, stored in second.stored.items():
            stored += [one + behind for one in waiting[meter]]
        second.minute()
        second.tells("roof", *missed, *(one + behind for one in waiting["roof"]))
        second.checker.told.clear()
        second.down()
        second.node.close()


def test_an_outage_that_began_on_a_clock_years_ahead_is_told(live: Callable[..., Life]) -> None:
    life = live()
    ahead = timedelta(days=4000)
    life.clock.at += ahead
    life.minute()
    life.up()
    life.minute()
    life.say()
    life.down()
    life.clock.at -= ahead
    missed = outage(life, 60)
    life.up()
    life.minute()
    life.tells("roof", *missed)


@pytest.mark.parametrize(
    "since", ["2099-01-01T00:00:00+00:00", "2026-03-14T04:00:00", "0001-01-01T00:00:00+14:00", "now", "7"]
)
def test_a_memory_that_cannot_be_right_begins_with_all_that_history_reaches_back_to(
    live: Callable[..., Life], tmp_path: Path, since: str
) -> None:
    (tmp_path / "memory").write_text(f'{{"bdSeq": 12, "missing_since": "{since}"}}'.ljust(100))
    earlier = [START - timedelta(days=6), START - timedelta(days=1)]
    structlog.reset_defaults()
    with capture_logs() as logs:
        life = live()
    assert sum(one["event"] == "sparkplug_memory_unreadable" for one in logs) == (not since.startswith("2099"))
    life.stored["roof"] = [START - timedelta(days=8), *earlier]
    life.minute()
    life.up()
    life.tells("roof", *earlier)
    assert min(life.past_told("roof")) == millis(earlier[0])


def test_a_fault_of_ours_does_not_end_history(live: Callable[..., Life]) -> None:
    life = live()
    missed = outage(life, 3)
    life.fault = ValueError("planted")  # type: ignore[assignment]  # nothing that the port may raise
    life.up()
    until(lambda: life.asked > 1, "its thread has ended")
    life.fault = None
    life.tells("roof", *missed)


def test_a_link_that_breaks_during_a_replay_goes_on_from_where_it_was(live: Callable[..., Life]) -> None:
    life = live()
    missed = outage(life, 30 * PIECE)
    life.up()
    life.tells("roof", *missed[: 20 * PIECE])
    unsure = 2 * max(KEEPALIVE, 3 * life.clock.rate)
    life.clock.leap(seconds=unsure + 1)  # what was told until now has arrived
    told = set(life.past_told("roof"))
    life.down()
    life.minute()
    life.checker.told.clear()
    life.up()
    life.tells("roof", *missed[len(told) :])
    again = set(life.past_told("roof")) & told
    assert again == set(), "what was told long before the loss is not told again"


def test_what_was_told_since_the_broker_was_surely_there_is_told_again(live: Callable[..., Life]) -> None:
    """A busy computer finds out late that a broker is frozen."""
    life = live()
    life.minute()
    life.up()
    before = life.clock.since_boot()
    told = outage(life, 30)  # it is none yet: all of it is said
    life.say()
    life.line.arrived = lambda: before
    life.down()
    life.minute()
    life.up()
    life.tells("roof", *told)


def test_what_was_told_in_the_last_seconds_before_a_loss_is_told_again(live: Callable[..., Life]) -> None:
    """The control of the test before: without time between, nobody knows what arrived."""
    life = live()
    missed = outage(life, 3 * PIECE)
    life.up()
    life.tells("roof", *missed)
    life.down()
    life.checker.told.clear()
    life.minute()
    life.up()
    life.tells("roof", *missed)


def test_history_is_sent_in_small_pieces(live: Callable[..., Life]) -> None:
    life = live()
    missed = outage(life, 5 * PIECE)
    life.up()
    life.tells("roof", *missed)
    messages = [one for one in life.checker.kinds if one == "DDATA roof"]
    assert len(messages) >= 5


def test_without_history_none_is_sent(live: Callable[..., Life]) -> None:
    life = live(history=timedelta(0))
    outage(life, 10)
    life.up()
    life.minute()
    life.say()
    assert life.asked == 0


def test_the_one_command_is_done_and_every_other_is_told_once(live: Callable[..., Life]) -> None:
    life = live()
    life.minute()
    life.up()
    heard: Callable[[str, bytes], None] = life.line.told["on_message"]

    def wish(name: str, value: bool) -> bytes:
        found = decoded(b"")
        metric = found.metrics.add()
        metric.name, metric.datatype, metric.boolean_value = name, 11, value
        data: bytes = found.SerializeToString()
        return data

    structlog.reset_defaults()
    with capture_logs() as logs:
        for _ in range(3):
            heard(NCMD, wish("Node Control/Reboot", True))
            heard(NCMD, b"\xff\xff nonsense")
            heard("spBv1.0/solar/DCMD/sg-0042/roof", wish("Node Control/Rebirth", True))
            heard(NCMD, wish("Node Control/Rebirth", False))
    assert life.say() == 0
    told = [one["command"] for one in logs if one["event"] == "sparkplug_command_ignored"]
    assert len(told) == 3 and told[0] == "Node Control/Reboot"
    for _ in range(3):
        heard(NCMD, wish("Node Control/Rebirth", True))
    assert life.say() == 3, "asked three times before it could be done, it is done once: a node and two devices"
    assert life.checker.bd_seqs == [0, 0]


def test_a_host_that_is_not_there_is_waited_for_and_only_its_newest_word_counts(live: Callable[..., Life]) -> None:
    life = live(host="scada")
    life.minute()
    life.up()
    heard: Callable[[str, bytes], None] = life.line.told["on_message"]
    assert life.checker.kinds == [] and "waits for the host scada" in life.node.state().trouble
    for nonsense in (b"ONLINE", b"{}", b'{"online": "true", "timestamp": 5}', b"[1]", b'{"online": true}', b"\xff"):
        heard(STATE, nonsense)
    assert life.say() == 0
    heard(STATE, b'{"online": true, "timestamp": 5}')
    assert life.say() > 0 and life.node.state().trouble == ""
    heard(STATE, b'{"online": false, "timestamp": 4}')
    assert life.line.renewed == [], "the death of an earlier connection of that host"
    heard(STATE, b'{"online": false, "timestamp": 5}')
    assert len(life.line.renewed) == 1 and life.say() == 0
    heard(STATE, b'{"online": false, "timestamp": 6}')
    assert len(life.line.renewed) == 1, "it is away already"


def test_a_memory_that_was_half_written_begins_anew(live: Callable[..., Life], tmp_path: Path) -> None:
    (tmp_path / "memory").write_text('{"bdSeq": 12, "missing_')
    life = live()
    life.minute()
    life.up()
    assert life.checker.bd_seqs == [0]


def test_the_line_is_told_what_a_connection_would_ask() -> None:
    """The stand-in has the words of the class that it stands for."""
    for word in ("start", "wake", "close", "renew", "state", "arrived"):
        assert callable(getattr(Broker, word)) and callable(getattr(Line, word))

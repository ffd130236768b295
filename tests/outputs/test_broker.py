"""The connection to a broker, against a real mosquitto: what is said, what waits, what is told when it fails."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from heliograph.clock import RehearsalClock
from heliograph.outputs.broker import CEILINGS, MOST_WAITING, SHORTEST, STEADY, WINDOW, Address, Broker, Message, wait
from tests.outputs.mosquitto import Mosquitto, certificates, mosquitto, needs_mosquitto, running, until

__all__ = ["mosquitto"]

pytestmark = needs_mosquitto

STATUS = "heliograph/sg-0042/status"
FAST = 600.0
"""Rate of the clock: waits of up to 2 min take up to 0.2 s."""


def clock(rate: float = FAST) -> RehearsalClock:
    return RehearsalClock(datetime(2026, 3, 14, 4, tzinfo=UTC), rate)


def address(broker: Mosquitto, **more: Any) -> Address:
    return Address("127.0.0.1", broker.port, "heliograph-sg-0042", **more)


@contextmanager
def connected(broker: Mosquitto, *, where: Address | None = None, rate: float = FAST, **more: Any) -> Iterator[Broker]:
    """A running connection with a will; it may still be on its way."""
    more.setdefault("will", lambda: Message(STATUS, b"offline", 1, retain=True))
    more.setdefault("on_connected", lambda: [Message(STATUS, b"online", 1, retain=True)])
    made = Broker("mqtt", where or address(broker), clock(rate), **more)
    made.start()
    try:
        yield made
    finally:
        made.close()


def up(broker: Broker) -> Callable[[], bool]:
    return lambda: broker.state().up


def down(broker: Broker, text: str) -> Callable[[], bool]:
    return lambda: not broker.state().up and text in broker.state().trouble


def test_it_says_online_first_and_offline_at_the_end_and_the_newest_of_each_topic(mosquitto: Mosquitto) -> None:
    with mosquitto.listening() as listener:
        with connected(mosquitto) as broker:
            listener.wait_for(STATUS, b"online")
            until(up(broker), "it never says that it is up")
            broker.put(Message("a", b"1", 1))
            listener.wait_for("a", b"1")
            assert broker.state().trouble == "" and broker.state().where == mosquitto.url
        listener.wait_for(STATUS, b"offline")
        assert [one.payload for one in listener.messages] == [b"online", b"1", b"offline"]
    with mosquitto.listening() as late:
        assert late.wait_for(STATUS).retained
        assert [one.payload for one in late.messages] == [b"offline"], "only the status is retained"


def test_what_on_connected_says_comes_before_what_waits_and_newer_messages_win(mosquitto: Mosquitto) -> None:
    made: list[Broker] = []

    def first() -> list[Message]:
        made[0].put(Message("b", b"newer", 1))  # somebody measured while we were saying hello
        return [Message("a", b"now", 1), Message("b", b"now", 1)]

    with mosquitto.listening() as listener:
        broker = Broker("mqtt", address(mosquitto), clock(), on_connected=first)
        made.append(broker)
        broker.put(Message("a", b"old", 1), Message("b", b"old", 1), Message("c", b"waited", 1))
        broker.start()
        listener.wait_for("c")
        broker.close()
        said = [(one.topic, one.payload) for one in listener.messages]
        assert said[0] == ("a", b"now") and set(said) == {("a", b"now"), ("b", b"newer"), ("c", b"waited")}


def test_messages_in_order_leave_one_after_another_and_come_back_when_they_were_not_confirmed(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heliograph.outputs.broker.LEAST_KEEPALIVE", 1)
    numbers = iter(range(10**6))
    given: list[Message] = []
    confirmed: list[Message] = []
    lost: list[Message] = []

    def following() -> Message:
        given.append(Message("n", str(next(numbers)).encode(), 1))
        return given[-1]

    with mosquitto.listening("n") as listener:
        more: dict[str, Any] = {"in_order": following, "on_confirmed": confirmed.append, "on_lost": lost.extend}
        with connected(mosquitto, **more) as broker:
            listener.wait_for("n", b"200")
            mosquitto.freeze()
            until(lambda: bool(lost), "a frozen broker is never found out")
            heard = [int(one.payload) for one in listener.messages]
            assert heard == sorted(heard), "they were overtaken by each other"
            assert [*confirmed, *lost] == given, "each is confirmed or given back, in order"
            assert len(lost) == WINDOW
            assert "has not answered" in broker.state().trouble
            mosquitto.thaw()
            until(up(broker), "it does not come back")


@pytest.mark.parametrize("qos", [0, 1])
def test_a_frozen_broker_neither_blocks_nor_fills_memory(mosquitto: Mosquitto, qos: int) -> None:
    payload = b"x" * 1000
    with connected(mosquitto) as broker:
        until(up(broker), "it does not connect")
        mosquitto.freeze()
        tracemalloc.start()
        try:
            for number in range(0, 100_000, 100):
                broker.put(*(Message(f"t/{one}", payload + str(number + one).encode(), qos) for one in range(100)))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # 100 topics and the window hold 120 kB; what QoS 0 has written is the kernel's, as much as it takes.
        assert held < 1_000_000, held
        assert broker.state().left_out > 50_000


def test_a_wrong_password_is_told_once_and_a_new_one_is_read_before_the_next_try(tmp_path: Path) -> None:
    structlog.reset_defaults()
    tries: list[str] = []

    def password() -> str:
        tries.append((tmp_path / "password").read_text())
        return tries[-1]

    (tmp_path / "password").write_text("first")
    with (
        running(tmp_path, passwords={"gate": "first"}) as mosquitto,
        capture_logs() as logs,
        connected(mosquitto, where=address(mosquitto, username="gate", password=password)) as broker,
    ):
        until(up(broker), "it is not let in")
        mosquitto.change_password("gate", "second")
        mosquitto.restart()
        until(down(broker, "refuses user gate"), "the refusal is not told")
        seen = len(tries)
        until(lambda: len(tries) > seen + 2, "it does not try again")
        (tmp_path / "password").write_text("second")
        until(up(broker), "the new password is not used")
    told = str(logs)
    assert told.count("refuses user gate") == 1, told
    assert "first" not in told and "second" not in told


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls"))


def test_tls_with_an_authority_of_ones_own_and_a_client_certificate(tmp_path: Path, tls: Path) -> None:
    with running(tmp_path, tls=tls) as mosquitto:
        good: dict[str, Any] = {"tls": True, "ca": tls / "ca.pem", "certificate": tls / "client.pem"}
        good["key"] = tls / "client.key"
        cases: tuple[tuple[dict[str, Any], str], ...] = (
            ({}, ""),
            ({"ca": tls / "other.pem"}, "the certificate of"),
            ({"ca": None}, "the certificate of"),
            ({"certificate": None, "key": None}, "ended the connection|no TLS"),
            ({"key": tls / "server.key"}, "client.pem: cannot be used"),
            ({"ca": tls / "nowhere.pem"}, "nowhere.pem: cannot be used: No such file"),
            ({"tls": False}, "ended the connection|hangs up"),
        )
        for more, text in cases:
            with connected(mosquitto, where=address(mosquitto, **{**good, **more})) as broker:
                if not text:
                    until(up(broker), "it is not let in")
                    continue
                until(lambda state=broker.state: state().since is not None, "nothing is said")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                assert not broker.state().up
                assert any(one in broker.state().trouble for one in text.split("|")), (more, broker.state())


def test_the_broker_says_offline_when_the_process_is_killed(mosquitto: Mosquitto) -> None:
    program = f"""
import time
from heliograph.clock import SystemClock
from heliograph.outputs.broker import Address, Broker, Message
broker = Broker("mqtt", Address("127.0.0.1", {mosquitto.port}, "x"), SystemClock(),
    will=lambda: Message("{STATUS}", b"offline", 1, True),
    on_connected=lambda: [Message("{STATUS}", b"online", 1, True)])
broker.start()
time.sleep(3600)
"""
    with mosquitto.listening() as listener:
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            listener.wait_for(STATUS, b"online")
        finally:
            process.kill()
            process.wait()
        listener.wait_for(STATUS, b"offline")


def test_a_broker_that_was_killed_is_found_again_and_everything_current_is_said_anew(mosquitto: Mosquitto) -> None:
    current = {"a": b"1"}
    said = lambda: [Message(topic, payload, 1, retain=True) for topic, payload in current.items()]  # noqa: E731 - read by the connection, changed below
    with connected(mosquitto, on_connected=said) as broker:
        until(up(broker), "it does not connect")
        mosquitto.kill()
        until(down(broker, "nothing listens"), "the loss is not told")
        current["a"] = b"2"
        broker.put(Message("b", b"meanwhile", 1, retain=True))
        mosquitto.start()
        with mosquitto.listening() as listener:
            assert listener.wait_for("b").payload == b"meanwhile"
            assert listener.last("a") == b"2"


def test_a_subscriber_that_raises_and_a_message_that_cannot_be_sent_end_nothing(mosquitto: Mosquitto) -> None:
    heard: list[bytes] = []

    def hear(topic: str, payload: bytes) -> None:
        heard.append(payload)
        raise RuntimeError(topic)

    with connected(mosquitto, subscriptions=["in/#"], on_message=hear) as broker, mosquitto.listening() as listener:
        until(up(broker), "it does not connect")
        broker.put(Message("no/wildcards/#", b""), Message("", b""))
        listener.say("in/1", b"one")
        listener.say("in/2", b"two")
        broker.put(Message("out", b"still here", 1))
        listener.wait_for("out")
        until(lambda: heard == [b"one", b"two"], "it did not hear both")
        assert broker.state().up


def test_a_stranger_cannot_fill_memory_with_what_it_leaves_on_a_topic_we_hear(mosquitto: Mosquitto) -> None:
    heard: list[str] = []
    with mosquitto.listening("out") as listener:
        listener.say("in/1", b"x" * 30_000_000, retain=True)
        with connected(mosquitto, subscriptions=["in/#"], on_message=lambda topic, _: heard.append(topic)) as broker:
            until(lambda: "30,000,008 bytes on in/1" in broker.state().trouble, "it takes in whatever comes")
            until(up(broker), "it does not come back")
            broker.put(Message("out", b"still here", 1))
            listener.wait_for("out")
            assert "bytes on in/1. Take that message away" in broker.state().trouble
            # A later connection, after one that lasted, listens again.
            listener.say("in/1", b"", retain=True)
            until(lambda: time.monotonic() - broker._began > STEADY / FAST, "it does not last")
            broker.renew("for a test")
            until(lambda: broker.state().up and not broker.state().trouble, "it stays deaf")
            listener.say("in/1", b"short")
            until(lambda: heard == ["in/1"], "it hears nothing")


def test_two_clients_of_one_name_are_told_apart_from_a_bad_line_and_do_not_fill_the_log(mosquitto: Mosquitto) -> None:
    structlog.reset_defaults()
    lives: list[int] = []

    def begin() -> list[Message]:
        lives.append(1)
        return []

    more: dict[str, Any] = {"rate": 40.0, "on_connected": begin}
    with capture_logs() as logs, connected(mosquitto, **more) as one, connected(mosquitto, **more) as other:
        until(lambda: "another client" in one.state().trouble + other.state().trouble, "nobody suspects a namesake")
        seen = len(lives)
        until(lambda: len(lives) > seen + 2, "it is not tried again")
    assert len(logs) <= 8, "each first up, first down, the suspicion, perhaps a last up"


def test_memory_has_a_bound_in_topics_too(mosquitto: Mosquitto) -> None:
    broker = Broker("mqtt", address(mosquitto), clock())
    for number in range(MOST_WAITING + 10):
        broker.put(Message(f"t/{number}", b""))
    assert broker.state().left_out == 10


@pytest.mark.parametrize(
    ("tries", "chance", "seconds"),
    [(0, 0.0, SHORTEST), (0, 1.0, 8.0), (1, 0.5, 8.5), (4, 1.0, CEILINGS[-1]), (10**6, 1.0, 120.0), (99, 0.0, 1.0)],
)
def test_waits_grow_to_two_minutes_with_full_jitter(tries: int, chance: float, seconds: float) -> None:
    assert wait(tries, chance) == seconds


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("no-such-host.invalid", "cannot be resolved"),
        ("127.0.0.1", "nothing listens at mqtt://127.0.0.1:1"),
        ("a" * 70 + ".example", "no connection to"),
    ],
)
def test_why_there_is_no_connection_is_told_with_the_next_step(host: str, text: str) -> None:
    broker = Broker("mqtt", Address(host, 1, "x"), clock())
    broker.start()
    until(lambda: text in broker.state().trouble, "it is not told")
    assert broker.state().trouble.endswith(".") and not broker.state().up
    broker.close()

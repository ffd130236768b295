"""What every output promises, whatever its peer does: no method raises, none waits, memory has a bound, `state` says
what is wrong and where, and after `close` nothing is left.

That nothing waits is not read from a clock. The calls are made while the kernel shows that the output's own thread is
held by its peer, and are done while it still is; and the profiler sees that the calling thread entered no call that can
wait: no socket that blocks, no name service, no sleep, no condition, no thread to be joined.
"""

from __future__ import annotations

import gc
import random
import re
import socket
import sys
import threading
import traceback
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from heliograph.app import load
from heliograph.clock import RehearsalClock
from heliograph.core.answer import Answer, found
from heliograph.core.health import Health, MeterHealth, OutputHealth, ProofHealth, UplinkHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.outputs import broker
from heliograph.ports import Output
from heliograph.settings import Settings
from heliograph.web import server
from tests.contracts import peers
from tests.contracts.peers import LIMIT, Broker, Peer, until
from tests.fakes import START, free_port

T = TypeVar("T")
USER, PASSWORD = "gateway", "pa55-word-of-the-broker"
METERS = ("roof", "carport", "east", "west")
ROUNDS = 2500  # of four meters each
PICTURES = 300

DEAD = (
    peers.Refuses,
    peers.NoSuchName,
    peers.NameHangs,
    peers.NeverAccepts,
    peers.Peer,
    peers.NeverAnswers,
    peers.NeverReads,
    peers.HangsUp,
    peers.Garbage,
    peers.HalfHandshake,
    peers.WrongPassword,
)
# What these three share with mqtt is its connection, which meets every peer there is.
SOME = (peers.Refuses, peers.NeverAnswers, peers.NeverReads, peers.WrongPassword, peers.Broker)
PEERS = {"mqtt": (*DEAD, peers.Broker), "home assistant": SOME, "sparkplug": SOME, "plain": SOME}
LONG = {
    "mqtt": (peers.NeverAnswers, peers.NeverReads),
    "home assistant": (peers.Broker,),
    "sparkplug": (peers.NeverReads, peers.Broker),
    "plain": (peers.NeverReads,),
}
"""With these ten thousand samples are shown: nothing is connected, nothing is taken, everything is."""


# What outputs are shown


def sample(number: int, meter: str) -> Sample:
    """Each number is another one, so that no dead band leaves it out; now and then something is wrong."""
    at = START + timedelta(seconds=10 * number)
    if number % 50 == 17:
        return Sample(meter, at, error="no answer from unit 1, input 0x0048+4")
    chance = random.Random(number)
    values: dict[str, float | int | str] = {
        "active_power": chance.uniform(1000, 50_000),
        "energy_export": 41_230_700 + 37 * number,
    }
    return Sample(meter, at, values, doubt="counter fell" if number % 50 == 18 else "", took=0.1)


def health(number: int) -> Health:
    at = START + timedelta(days=number // 1000, seconds=30 * number)
    meters = tuple(
        MeterHealth(
            *(id, "lan", unit, "eastron-sdm630", "ok", at, 41_230_700 + number, number, 41_000_000 + number),
            *(at.date(), 5000, "", "", "", ""),
            total_at=at,
            rising_wh=41_000_000 + number,
        )
        for unit, id in enumerate(METERS, 1)
    )
    uplink = UplinkHealth("redex", {"due": number % 7, "confirmed": number}, at.date(), "", "", at)
    proof = ProofHealth(number, "", "", 0, None, "", "")
    counts = {"lan": {"requests": number, "answers": number, "timeouts": 0, "garbled": 0, "foreign": 0, "refused": 0}}
    return Health("site", "Asia/Singapore", "0.1.0", at, True, True, meters, (uplink,), 0, 0, proof, counts)


def figures(number: int) -> tuple[DayFigure, ...]:
    """The newest fourteen days; now and then there is a new one."""
    last = START.date() + timedelta(days=number // 1000)
    return tuple(
        DayFigure(id, last - timedelta(days=ago), "closed", 5000 + ago, 900_000, deliveries={"redex": "confirmed"})
        for id in METERS
        for ago in range(14)
    )


# Who shows them


@dataclass
class Place:
    """What an output is set up with."""

    peer: Peer
    folder: Path
    clock: RehearsalClock = field(default_factory=lambda: RehearsalClock(START, RATE))

    answer: Callable[[str, str], Answer] = lambda _method, _target: found("well")

    @property
    def password_file(self) -> Path:
        path = self.folder / "password"
        path.write_text(PASSWORD)
        return path


class Plain:
    """An output as simple as the port allows: its values over MQTT 3.1.1, QoS 0. What is `wrong` with it is for the
    suite to find."""

    name = "plain"

    def __init__(self, place: Place, wrong: str = "") -> None:
        self._peer, self._clock, self._wrong = place.peer, place.clock, wrong
        self._queue: deque[bytes] = deque(maxlen=None if wrong == "grows" else 100)
        self._left_out = 0
        self._there = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._up, self._trouble, self._since = False, "", place.clock.now()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="plain", daemon=True)

    def start(self) -> None:
        if self._wrong == "dials in start":
            self._dial().close()
        self._thread.start()

    def sample(self, sample: Sample) -> None:
        if self._wrong == "raises" and not self._up:
            raise ConnectionError("not connected")
        if self._wrong == "sends itself" and self._socket is not None:
            with suppress(OSError):
                self._socket.sendall(b"\xc0\0")
        if self._wrong == "waits for its lock":
            with self._lock:
                pass
        for name, value in sample.values.items():
            topic = f"{sample.meter}/{name}".encode()
            body = len(topic).to_bytes(2) + topic + str(value).encode()
            self._left_out += len(self._queue) == self._queue.maxlen
            self._queue.append(bytes((0x30, len(body))) + body)
        self._there.set()

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        del health, days
        if self._wrong == "waits in picture" and not self._up:
            self._stop.wait(0.01)

    def state(self) -> OutputHealth:
        where = f"mqtt://{USER}:{PASSWORD}@" if self._wrong == "tells its password" else "mqtt://"
        trouble = "" if self._wrong == "says nothing" else self._trouble
        where += f"{self._peer.host}:{self._peer.port}"
        return OutputHealth(self.name, where, self._up, self._since, trouble, self._left_out)

    def close(self) -> None:
        self._stop.set()
        self._there.set()
        if self._wrong == "goes on":
            return
        if (connection := self._socket) is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(None if self._wrong == "waits for its end" else 0.5)

    def _dial(self) -> socket.socket:
        return socket.create_connection((self._peer.host, self._peer.port), PATIENCE)

    def _run(self) -> None:
        while not self._stop.is_set() or self._wrong == "goes on":
            try:
                self._connection()
            except OSError as exc:
                self._trouble = (
                    f"no connection: {exc.strerror or exc}. Check the broker, and the network on the way to it."
                )
            self._up = False
            self._stop.wait(0.05)
            if self._wrong == "goes on" and self._stop.is_set():
                self._stop.clear()

    def _connection(self) -> None:
        with self._lock, self._dial() as connection:
            self._socket = connection
            name = b"plain"
            hello = b"\0\4MQTT\4\2\0\x3c" + len(name).to_bytes(2) + name
            connection.sendall(bytes((0x10, len(hello))) + hello)
            answer = connection.recv(4)
            if answer != b"\x20\2\0\0":
                raise OSError(f"refused: {answer.hex()}")
            self._up, self._trouble = True, ""
            connection.settimeout(PATIENCE)
            while not self._stop.is_set():
                self._there.wait()
                self._there.clear()
                while self._queue:
                    connection.sendall(self._queue.popleft())


RATE = 100.0
"""Of the clock, so that a next try comes soon."""
PATIENCE = 0.6
"""Real seconds an output here waits for a peer that holds it: a few calls are made in less, or the next time."""


Make = Callable[[Place], Output]
SITE = """
[site]
id = "site"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[clock]
trust = "always"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
"""
METER = """
[[meter]]
id = "{id}"
bus = "lan"
unit = {unit}
map = "eastron-sdm630"
rated_kw = 50
"""
BROKER = """
url = "{url}"
username = "{user}"
password = {{ file = "{password}" }}
"""
ALL_OF_IT = 'every = "1s"\ndead_band = 0\n'
SECTIONS = {
    "mqtt": f"[mqtt]{BROKER}{ALL_OF_IT}",
    "home assistant": f'[mqtt]{BROKER}{ALL_OF_IT}home_assistant = "homeassistant"\n',
    "sparkplug": f'[sparkplug]{BROKER}{ALL_OF_IT}group = "fleet"\n',
    "metrics": '[metrics]\nlisten = "127.0.0.1:{port}"\n',
    "web": '[web]\nlisten = "127.0.0.1:{port}"\ntoken = {{ file = "{password}" }}\n',
}
"""The outputs that a configuration can have, each by itself."""
NO_OUTPUTS = {"site", "bus", "meter", "uplink", "close", "clock", "retention"}
"""The other tables of a configuration."""


def configured(section: str, place: Place, port: int) -> Output:
    """The one output of a site with this section."""
    peer, folder = place.peer, place.folder
    text = SITE.format(folder=folder) + "".join(METER.format(id=id, unit=n) for n, id in enumerate(METERS, 1))
    ca = f'ca_file = "{peers.certificate(folder)}"\n' if peer.tls else ""
    url = f"mqtt{'s' if peer.tls else ''}://{peer.host}:{peer.port}"
    text += SECTIONS[section].format(url=url, user=USER, password=place.password_file, port=port) + ca
    (folder / "config.toml").write_text(text)
    app = load(folder / "config.toml", place.clock, secrets="must be there")
    (output,) = app.outputs(place.answer)
    return output


def dialling(section: str) -> Make:
    return lambda place: configured(section, place, place.peer.port)


DIALLING: dict[str, Make] = {
    "plain": Plain,
    **{section: dialling(section) for section in ("mqtt", "home assistant", "sparkplug")},
}
"""Outputs that dial a peer."""


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers are given up soon: what is shown here does not depend on how long that takes."""
    monkeypatch.setattr(broker, "CONNECT_WITHIN", PATIENCE)
    monkeypatch.setattr(broker, "LEAST_KEEPALIVE", 1)
    monkeypatch.setattr(server, "HEADER_WITHIN", PATIENCE)


# Who watches


class Caller:
    """Calls an output as the daemon's threads do, and keeps what must not have happened on the way."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.calls = 0

    def __call__(self, call: Callable[..., T], *given: Any, may_wait: bool = False, profile: bool = True) -> T:
        self.calls += 1
        found: list[T] = []
        if not may_wait and profile:
            sys.setprofile(self._seen)
        try:
            found.append(call(*given))
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is the fault that is looked for
            sys.setprofile(None)
            self._fault(f"{call.__name__} raised {exc!r}")
        finally:
            sys.setprofile(None)
        return found[0] if found else None  # type: ignore[return-value]  # then the test is over

    def _fault(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)

    def _seen(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code in WAITING and not _within(frame, threading.Thread.start):
                self._fault(f"waits in {code.co_qualname}: {_way(frame)}")
        elif event == "c_call" and _may_wait(arg):
            self._fault(f"may wait in {arg.__qualname__}: {_way(frame)}")


# `queue.get`, futures and everything else that waits in Python ends in one of these.
WAITING = frozenset(
    one.__code__
    for one in (threading.Condition.wait, threading.Event.wait, threading.Thread.join, threading.Barrier.wait)
)


def _may_wait(called: Any) -> bool:
    owner, name = getattr(called, "__self__", None), str(called.__name__)
    if isinstance(owner, socket.socket):
        busy = name in ("connect", "connect_ex", "accept", "send", "sendall", "sendmsg") or name.startswith("recv")
        return busy and owner.gettimeout() != 0
    if type(owner).__name__ == "_SSLSocket":
        return name in ("read", "write", "do_handshake", "shutdown")
    if type(owner).__name__ in ("poll", "epoll"):
        return name == "poll"
    module = getattr(called, "__module__", None) or getattr(owner, "__name__", "")
    return (module, name) in {
        ("time", "sleep"),
        ("select", "select"),
        ("_socket", "getaddrinfo"),
        ("_socket", "gethostbyname"),
    }


def _within(frame: FrameType | None, function: Any) -> bool:
    while frame is not None:
        if frame.f_code is function.__code__:
            return True
        frame = frame.f_back
    return False


def _way(frame: FrameType) -> str:
    return " <- ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(traceback.extract_stack(frame, 4)))


def watched(work: Callable[[Caller], None]) -> list[str]:
    """The faults of a piece of work; one that hangs is a fault as well, and is left behind."""
    caller, crashed = Caller(), []

    def run() -> None:
        try:
            work(caller)
        except BaseException as exc:  # noqa: BLE001  # raised below, where the test sees it
            crashed.append(exc)

    thread = threading.Thread(target=run, name="caller", daemon=True)
    thread.start()
    thread.join(HANGS)
    if thread.is_alive() and thread.ident is not None:
        return [*caller.faults, f"hangs: {_way(sys._current_frames()[thread.ident])}"]
    if crashed:
        raise crashed[0]
    return caller.faults


HANGS = 4 * LIMIT


def show(caller: Caller, output: Output, first: int, rounds: int, *, profile: bool = True) -> None:
    for number in range(first, first + rounds):
        for meter in METERS:
            caller(output.sample, sample(number, meter), profile=profile)
        if number % 8 == 0:
            caller(output.picture, health(number), figures(number), profile=profile)
            caller(output.state, profile=profile)


ATTEMPTS = 3


def show_while_held(caller: Caller, output: Output, peer: Peer) -> None:
    """Calls begin and end within one time in which the output is held; if it was let go meanwhile, again. Whoever waits
    for the peer is done only after he gave up, every time."""
    for attempt in range(ATTEMPTS):
        until(peer.held, "the output dials")
        before = peer.held()
        show(caller, output, 10 * attempt, 10)
        if before & peer.held():
            return
    caller.faults.append("waits until the peer is given up")


@contextmanager
def nothing_left() -> Iterator[Callable[[], list[threading.Thread]]]:
    before = set(threading.enumerate())

    def new() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one not in before and one.name not in ("peer", "caller")]

    yield new


def life(make: Make, peer: Peer, folder: Path, rounds: int = 0, patience: float = LIMIT) -> list[str]:
    """An output from its start to its end, beside one peer. What was wrong."""
    gc.collect()
    with nothing_left() as new:

        def work(caller: Caller) -> None:
            output = make(Place(peer, folder))
            if new():
                caller.faults.append(f"runs before it was started: {new()}")
            caller(output.start)
            if peer.holds:
                show_while_held(caller, output, peer)
            else:
                show(caller, output, 0, 10)
            caller.faults.extend(told(output, peer, patience))
            if rounds:
                caller.faults.extend(grown(caller, output, rounds))
                if isinstance(peer, peers.NeverReads):
                    until(lambda: output.state().left_out or not output.state().up, "it says that nothing is taken")
            caller(output.close, may_wait=True)
            if not all(one.daemon for one in new()):
                caller.faults.append("holds up the end of the process")
            caller(output.close, may_wait=True)  # a second time does no harm
            show(caller, output, 100_000, 2)

        faults = watched(work)
        if isinstance(peer, peers.NameHangs):
            peer.let_go.set()
        if not faults:
            with suppress(AssertionError):
                until(lambda: not new(), "its threads end", patience)
            faults += [f"{one.name} goes on after close" for one in new()]
    return faults


def told(output: Output, peer: Peer, patience: float) -> list[str]:
    """What is wrong with what `state` says."""
    faults = []
    if isinstance(peer, Broker):
        until(lambda: output.state().up and peer.topics, "the output is well with a broker")
        if trouble := output.state().trouble:
            faults.append(f"is well and says {trouble!r}")
    elif not isinstance(peer, peers.NeverReads | peers.NameHangs):  # where it is not yet known, nothing need be said
        with suppress(AssertionError):
            until(lambda: output.state().trouble, "the output says what is wrong", patience)
        faults += said(output.state())
    state = output.state()
    if f"{peer.host}:{peer.port}" not in state.where:
        faults.append(f"does not say where: {state.where!r}")
    if PASSWORD in repr(state):
        faults.append("tells its password")
    if state.since is not None and state.since.utcoffset() is None:
        faults.append("since is a moment of no zone")
    return faults


def said(state: OutputHealth) -> list[str]:
    """What is wrong with the words about a peer that is not there."""
    faults = ["says it is up"] if state.up else []
    if not re.search(r"\w{3}.*[.;:] .*\w{3}", state.trouble):
        faults.append(f"tells no trouble with a next step: {state.trouble!r}")
    if re.search(r"Errno|Error|\(\)", state.trouble):
        faults.append(f"speaks like a program: {state.trouble!r}")
    return faults


def grown(caller: Caller, output: Output, rounds: int) -> list[str]:
    """What is held in memory after a tenth of the samples, and after all of them."""
    small = rounds // 10
    tracemalloc.start()
    try:
        show(caller, output, 1000, small, profile=False)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        show(caller, output, 1000 + small, rounds - small, profile=False)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{output.name}: {before} bytes after {4 * small} samples, {after} after {4 * rounds}")
    return [f"grew from {before} to {after} bytes"] if after - before > MOST_GROWTH else []


MOST_GROWTH = 150_000
"""Of 9,000 samples more: 17 bytes each would be too much."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[type[Peer]], Peer]]:
    made: list[Peer] = []

    def peer(kind: type[Peer]) -> Peer:
        made.append(kind(tmp_path))
        return made[-1]

    yield peer
    for one in made:
        one.close()


def each(table: Mapping[str, Sequence[type[Peer]]]) -> pytest.MarkDecorator:
    cases = [(name, kind) for name in DIALLING for kind in table[name]]
    return pytest.mark.parametrize(("name", "kind"), cases, ids=[f"{name}-{kind.__name__}" for name, kind in cases])


@each(PEERS)
def test_whatever_the_peer_does_nothing_raises_waits_or_stays(
    name: str, kind: type[Peer], place: Callable[[type[Peer]], Peer], tmp_path: Path
) -> None:
    assert life(DIALLING[name], place(kind), tmp_path) == []


@each(LONG)
def test_after_ten_thousand_samples_no_more_is_held_than_after_a_thousand(
    name: str, kind: type[Peer], place: Callable[[type[Peer]], Peer], tmp_path: Path
) -> None:
    assert life(DIALLING[name], place(kind), tmp_path, ROUNDS) == []


# Who is asked


class Plainly:
    """An output that is asked: its newest sample as a page, by the standard library's server. What is `wrong` with it
    is for the suite to find."""

    name = "plainly"

    def __init__(self, place: Place, port: int, wrong: str = "") -> None:
        self._clock, self._port, self._wrong = place.clock, port, wrong
        self._server: HTTPServer | None = None
        self._last: Sample | None = None
        self._since, self._trouble = place.clock.now(), ""

    def start(self) -> None:
        output = self

        class Handler(BaseHTTPRequestHandler):
            timeout = None if output._wrong in ("one at a time", "a thread each") else 0.02

            def do_GET(self) -> None:
                body = repr(output._last).encode() + (b"x" * 5_000_000 if output._wrong == "one at a time" else b"")
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *given: Any) -> None:
                del format, given

        class Server(ThreadingHTTPServer if self._wrong == "a thread each" else HTTPServer):  # type: ignore[misc]  # one of two
            request_queue_size = 2 * CONNECTIONS

            def handle_error(self, *given: object) -> None:
                del given

        try:
            self._server = Server(("127.0.0.1", self._port), Handler)
        except OSError:
            if self._wrong == "raises":
                raise
            self._trouble = f"port {self._port} is taken. Choose another one, or end the program that listens there."
            return
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="plainly", daemon=True).start()

    def sample(self, sample: Sample) -> None:
        self._last = sample

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        """Nobody asks for it."""

    def state(self) -> OutputHealth:
        where = f"http://127.0.0.1:{self._port}/"
        return OutputHealth(self.name, where, self._server is not None, self._since, self._trouble)

    def close(self) -> None:
        if self._server is not None:
            self._server.server_close()
            if self._wrong != "goes on":
                threading.Thread(target=self._server.shutdown, name="plainly", daemon=True).start()


MakeAsked = Callable[[Place, int], Output]


def asked(section: str) -> MakeAsked:
    return lambda place, port: configured(section, place, port or free_port())


ASKED: dict[str, MakeAsked] = {"plainly": Plainly, "metrics": asked("metrics"), "web": asked("web")}
"""Outputs that listen."""
RUDE = {
    "half a request": b"GET /metrics HTTP/1.1\r\nHost: gate",
    "nothing at all": b"",
    "never reads": b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n" * 5,
    "garbage": bytes(range(256)) * 40,
    "a hello of TLS": b"\x16\3\1\0\xa5\1\0\0\xa1\3\3" + bytes(100),
    "a body that never comes": b"POST / HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000000\r\n\r\n",
}
CONNECTIONS = 40
MOST_THREADS = 6


@contextmanager
def rude(port: int, said: bytes) -> Iterator[None]:
    """As many clients as nobody has; each says so much, and then nothing, and reads nothing."""
    clients = [socket.socket() for _ in range(CONNECTIONS)]
    try:
        for one in clients:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.setblocking(False)
            with suppress(OSError):
                one.connect(("127.0.0.1", port))
        for one in clients:
            with suppress(OSError):
                one.send(said)
        yield
    finally:
        for one in clients:
            one.close()


def answered(where: str, patience: float) -> bool:
    """Whether somebody who asks as one should is answered, whatever the answer is."""
    url = urlsplit(where)
    try:
        with socket.create_connection((url.hostname, url.port), patience) as connection:
            connection.sendall(f"GET {url.path or '/healthz'} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
            return connection.recv(100).startswith(b"HTTP/1.")
    except OSError:
        return False


def asked_life(make: MakeAsked, folder: Path, said: bytes, rounds: int = 0, patience: float = LIMIT) -> list[str]:
    """An output from its start to its end, beside clients of one kind. What was wrong."""
    place = Place(Peer(folder), folder)
    place.peer.close()
    gc.collect()
    with nothing_left() as new:

        def work(caller: Caller) -> None:
            output = make(place, 0)
            caller(output.start)
            until(lambda: output.state().up, "it listens")
            where = output.state().where
            port = urlsplit(where).port
            assert port
            with rude(port, said):
                show(caller, output, 0, 10)
                try:
                    until(lambda: answered(where, min(patience, 5)), "a friend is answered", patience)
                except AssertionError:
                    caller.faults.append("does not answer a friend")
                if len(new()) > MOST_THREADS:
                    caller.faults.append(f"has {len(new())} threads for {CONNECTIONS} clients")
                if rounds:
                    caller.faults.extend(grown(caller, output, rounds))
                caller.faults.extend(f"holds up the end: {one}" for one in new() if not one.daemon)
                caller(output.close, may_wait=True)
            caller(output.close, may_wait=True)
            show(caller, output, 100_000, 2)

        faults = watched(work)
        if not faults:
            with suppress(AssertionError):
                until(lambda: not new(), "its threads end", patience)
            faults += [f"{one.name} goes on after close" for one in new()]
    return faults


@pytest.mark.parametrize("kind", RUDE)
@pytest.mark.parametrize("name", ASKED)
def test_whatever_clients_do_nothing_raises_waits_or_stays(name: str, kind: str, tmp_path: Path) -> None:
    rounds = ROUNDS if kind == "never reads" else 0
    assert asked_life(ASKED[name], tmp_path, RUDE[kind], rounds) == []


@pytest.mark.parametrize("make", ASKED.values(), ids=ASKED.keys())
def test_a_port_that_is_taken_is_told(make: MakeAsked, tmp_path: Path) -> None:
    assert taken(make, tmp_path) == []


def taken(make: MakeAsked, folder: Path, patience: float = LIMIT) -> list[str]:
    peer = Peer(folder)
    with nothing_left() as new:

        def work(caller: Caller) -> None:
            output = make(Place(peer, folder), peer.port)
            caller(output.start)
            with suppress(AssertionError):
                until(lambda: output.state().trouble, "it says what is wrong", patience)
            caller.faults.extend(said(output.state()))
            if f":{peer.port}" not in output.state().where:
                caller.faults.append(f"does not say where: {output.state().where!r}")
            show(caller, output, 0, 10)
            caller(output.close, may_wait=True)
            until(lambda: not new(), "its threads end")

        faults = watched(work)
    peer.close()
    return faults


def test_an_answer_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    """As when a card does not answer: not the next one who asks, not the end of the output, not that of the process."""
    asked_for, let_go = threading.Event(), threading.Event()

    def hangs(_method: str, target: str) -> Answer:
        if target != "/healthz":
            asked_for.set()
            let_go.wait()
        return found("well")

    with nothing_left() as new:
        output = configured("web", Place(Peer(tmp_path), tmp_path, answer=hangs), free_port())
        output.start()
        until(lambda: output.state().up, "it listens")
        where = output.state().where
        url = urlsplit(where)
        with socket.create_connection((url.hostname, url.port)) as one:
            one.sendall(f"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {PASSWORD}\r\n\r\n".encode())
            assert asked_for.wait(LIMIT)
            until(lambda: answered(where, 5), "a friend is answered")
            output.close()
        assert all(one.daemon for one in new()), new()
        let_go.set()
        until(lambda: not new(), "its threads end")


def test_every_output_that_can_be_configured_is_here() -> None:
    tables = set(re.findall(r"(?m)^\[(\w+)\]$", "\n".join(SECTIONS.values())))
    assert tables == set(Settings.model_fields) - NO_OUTPUTS
    assert set(SECTIONS) == (set(DIALLING) | set(ASKED)) - {"plain", "plainly"}


# The suite finds what it is for


WRONG: dict[str, tuple[type[Peer], str]] = {
    "raises": (peers.Refuses, "raised ConnectionError"),
    "dials in start": (peers.NeverAnswers, "may wait in"),
    "sends itself": (peers.NeverAnswers, "may wait in"),
    "waits for its lock": (peers.NeverAnswers, "waits until the peer is given up"),
    "waits in picture": (peers.Refuses, "waits in Event.wait"),
    "tells its password": (peers.Refuses, "tells its password"),
    "says nothing": (peers.Refuses, "tells no trouble"),
    "goes on": (peers.Refuses, "goes on after close"),
    "grows": (peers.NeverAnswers, "grew from"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_output_that_breaks_its_promise_is_found_out(
    wrong: str, place: Callable[[type[Peer]], Peer], tmp_path: Path
) -> None:
    kind, found = WRONG[wrong]
    rounds = ROUNDS if wrong == "grows" else 0
    faults = life(lambda given: Plain(given, wrong), place(kind), tmp_path, rounds, patience=0.5)
    assert any(found in fault for fault in faults), faults


RUDELY_WRONG = {
    "one at a time": ("never reads", "does not answer a friend"),
    "a thread each": ("half a request", "threads for"),
    "goes on": ("nothing at all", "goes on after close"),
}


@pytest.mark.parametrize("wrong", RUDELY_WRONG)
def test_an_output_that_clients_can_hold_is_found_out(wrong: str, tmp_path: Path) -> None:
    kind, found = RUDELY_WRONG[wrong]
    faults = asked_life(lambda place, port: Plainly(place, port, wrong), tmp_path, RUDE[kind], patience=1.0)
    assert any(found in fault for fault in faults), faults


def test_an_output_that_raises_where_its_port_is_taken_is_found_out(tmp_path: Path) -> None:
    assert any(
        "start raised" in fault for fault in taken(lambda place, port: Plainly(place, port, "raises"), tmp_path, 1.0)
    )

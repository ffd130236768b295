"""One connection to an MQTT broker. The only module that knows paho; MQTT 3.1.1, which every broker speaks.

A thread of its own runs everything of paho, so nobody who hands over a message waits for the network. Of each topic
only the newest message waits (`put`), or messages are fetched one by one at the moment at which they can leave
(`in_order`), for those who number them. At most WINDOW of them are on their way: written but not acknowledged, or not
even written. So a broker that takes nothing fills neither paho's queues nor memory, and is found out by the keepalive.

Every connection is a new client with a clean session: paho would replay the old password, the old will, and messages
that are old by then. What a listener needs after a connect is said again by `on_connected`.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from heliograph.core.errors import ConfigError, HeliographError
from heliograph.core.health import OutputHealth
from heliograph.ports import Clock

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo

log = structlog.get_logger()

# Messages on their way; at 150 bytes each a slow line of 9.6 kbit/s takes them in 3 s.
WINDOW = 20
# Topics with a waiting message. A site of ten meters has some 500; whoever has more loses the oldest ones.
MOST_WAITING = 5000
# Seconds, of the clock. A broker says that we are gone after 1.5 times this; a frozen one is found out within 2 times.
KEEPALIVE = 30.0
# So long a broker may take to acknowledge anything of a full window, though it answers pings.
ACKNOWLEDGE = 90.0
# Ceilings of the wait before the next try: full jitter from SHORTEST to the one that has its turn.
CEILINGS = (8.0, 16.0, 32.0, 64.0, 120.0)
SHORTEST = 1.0
# A connection that lasted so long was a good one: the next wait is short again.
STEADY = 60.0
# Seconds of real time, also in a rehearsal: whole seconds are all that MQTT knows, and a busy machine takes its time.
LEAST_KEEPALIVE = 3
LEAST_WAIT = 0.1
CONNECT_WITHIN = 10.0
GOODBYE_WITHIN = 0.6
CLOSE_WITHIN = 0.8

# Bytes: nothing that anybody has to tell us is longer. What is, came to the topic from a stranger, and is not taken in.
LARGEST = 64 * 1024

SILENT = "Check the broker (frozen, or its disk full?), and the network on the way to it."


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker is, and who we are there. Files and the password are read anew before each connect."""

    host: str
    port: int
    client_id: str
    """Two clients with one id throw each other out."""
    tls: bool = False
    username: str | None = None
    password: Callable[[], str] | None = field(default=None, repr=False)
    """May raise a HeliographError, which is then told as the reason why there is no connection."""
    ca: Path | None = None
    """The only authority that counts; without it those of certifi do."""
    certificate: Path | None = None
    key: Path | None = None
    """Private key of the certificate; None where both are in one file."""
    table: str = "mqtt"
    """Of config.toml, in which all this stands."""

    @property
    def where(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class Trouble(NamedTuple):
    """Why there is no connection, and the next step."""

    text: str
    hint: str


class _Flying(NamedTuple):
    message: Message
    in_order: bool


class Broker:
    """`start`, `put`, `state` and `close` may be called by any thread and neither block nor raise. All that is handed
    in is called by the connection's thread, in no lock, and should be quick:

    will          at each connect, once there is somebody to hear it: what the broker says when we are lost; also said
                  by us in `close` and `renew`
    on_connected  after each connect and subscribe: what is said first. What it says of a topic replaces what waits
    on_lost       a connection that was up is down: what came from `in_order` and was not confirmed, oldest first.
                  "Confirmed" is a QoS 0 message once it was written, so the last ones before a loss may be lost too
    in_order      the next message, or None: asked while there is room in the window and nothing else waits, after
                  `on_connected`, and only while connected; whoever has one later calls `wake`
    on_confirmed  an `in_order` message was acknowledged (QoS 1 and 2) or written (QoS 0)
    on_message    something came for one of the `subscriptions`
    """

    def __init__(
        self,
        name: str,
        address: Address,
        clock: Clock,
        *,
        will: Callable[[], Message | None] = lambda: None,
        on_connected: Callable[[], Iterable[Message]] = lambda: (),
        on_lost: Callable[[Sequence[Message]], None] = lambda _unconfirmed: None,
        in_order: Callable[[], Message | None] = lambda: None,
        on_confirmed: Callable[[Message], None] = lambda _message: None,
        subscriptions: Sequence[str] = (),
        on_message: Callable[[str, bytes], None] = lambda _topic, _payload: None,
    ) -> None:
        self.name = name
        self._address, self._clock = address, clock
        self._will, self._on_connected, self._on_lost = will, on_connected, on_lost
        self._in_order, self._on_confirmed = in_order, on_confirmed
        self._subscriptions, self._on_message = tuple(subscriptions), on_message
        self._lock = threading.Lock()
        self._waiting: dict[str, Message] = {}
        self._left_out = 0
        self._up = False
        self._since: Any = None
        self._trouble: Trouble | None = None
        self._refused: Trouble | None = None
        """While connected: what the broker does not let us do."""
        self._closing = threading.Event()
        self._renewal: str | None = None
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._rung = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._crashed: set[str] = set()
        # What follows is the thread's alone.
        self._flying: dict[int, _Flying] = {}
        self._began = self._moved = 0.0
        self._surely_read = 0.0
        self._short_lives = 0
        self._logged: Trouble | None = None
        """Why it is down, as the log knows it; None where the log knows that it is up, or nothing yet."""
        self._said_will: Message | None = None
        self._ended: Trouble | None = None
        self._deaf: Trouble | None = None
        """Why nothing is subscribed to, until a connection has lasted so."""

    # Any thread

    def start(self) -> None:
        self._thread.start()

    def put(self, *messages: Message) -> None:
        """Takes the place of what waits for the same topic."""
        with self._lock:
            for message in messages:
                self._left_out += message.topic in self._waiting
                self._waiting[message.topic] = message  # in the old one's place, so that no topic starves
            self._make_room()
        self.wake()

    def wake(self) -> None:
        """There may be something new `in_order`."""
        with self._lock:
            if self._rung:
                return
            self._rung = True
        with suppress(OSError):  # it is closed, or rings already
            self._button.send(b"\0")

    def state(self) -> OutputHealth:
        with self._lock:
            trouble = self._refused if self._up else self._trouble
            said = f"{trouble.text}. {trouble.hint}".strip() if trouble else ""
            return OutputHealth(self.name, self._address.where, self._up, self._since, said, self._left_out)

    def arrived(self) -> float:
        """What was written before this moment, in seconds since boot, has been read by the broker: an answer to a ping
        shows it, however late we come to look."""
        return self._surely_read

    def renew(self, because: str) -> None:
        """Says the last will itself, and connects anew a little later."""
        self._renewal = because
        self.wake()

    def close(self) -> None:
        """Says the last will itself where it can be said within a second; after that nothing leaves any more."""
        self._closing.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(CLOSE_WITHIN)

    # The connection's thread

    def _run(self) -> None:
        tries = 0
        while not self._closing.is_set():
            self._began, was_deaf = time.monotonic(), self._deaf is not None
            trouble: Trouble | None = Trouble("an error of ours", "Its traceback is in the log: please report it.")
            with self._guarded("connection"):
                trouble = self._connection()
            was_up = self._up
            steady = was_up and time.monotonic() - self._began >= STEADY / self._clock.rate
            if was_deaf and steady:
                self._deaf = None
            self._short_lives = self._short_lives + 1 if was_up and not steady else 0
            if self._short_lives > 1:
                trouble = self._thrown_out(trouble) if trouble else None
            self._lost(trouble)
            if trouble is None:
                break
            tries = 0 if steady else tries
            self._closing.wait(max(wait(tries, random.random()) / self._clock.rate, LEAST_WAIT))
            tries += 1
        self._bell.close()
        self._button.close()

    def _connection(self) -> Trouble | None:
        """One connection from the first try to its end; None where we are closing."""
        from paho.mqtt.client import Client, MQTTv311
        from paho.mqtt.enums import CallbackAPIVersion

        self._ended = None
        self._refused = None
        self._renewal = None
        address = self._address
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=address.client_id,
            clean_session=True,
            protocol=MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_WITHIN
        client.max_inflight_messages_set(2 * WINDOW)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_message = self._heard
        client.on_socket_open = self._reached
        try:
            if address.username is not None:
                client.username_pw_set(address.username, address.password() if address.password else None)
            if address.tls:
                client.tls_set_context(authorities(address))
        except HeliographError as error:
            return Trouble(error.message, error.hint)
        try:
            client.connect(address.host, address.port, self._keepalive())
        except (OSError, ValueError) as exc:
            return why(exc, address)
        self._moved = time.monotonic()
        if isinstance(sock := client.socket(), socket.socket):
            # Little is to be heard, and paho reads a hundred times before we see what is coming in.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGEST)
        while (sock := client.socket()) is not None:
            if self._closing.is_set():
                self._say_goodbye(client)
                return None
            if (because := self._renewal) is not None:
                self._say_goodbye(client)
                return Trouble(because, "The connection is made anew by itself.")
            if self._up:
                self._feed(client)
                if self._logged is not None and time.monotonic() - self._began >= STEADY / self._clock.rate:
                    self._log_up()
            self._turn(client, min(5.0, self._keepalive() / 4))
            if self._too_long(client):
                sock.close()
                return self._deaf
            if len(self._flying) >= WINDOW and time.monotonic() - self._moved > self._patience():
                sock.close()  # no good-bye, so that the broker says the will when it comes round
                return Trouble(f"{address.where} acknowledges nothing", SILENT)
        return self._ended or Trouble(f"{address.where} ended the connection", "Look at the broker's log.")

    def _keepalive(self) -> int:
        return max(LEAST_KEEPALIVE, round(KEEPALIVE / self._clock.rate))

    def _patience(self) -> float:
        return max(3.0 * LEAST_KEEPALIVE, ACKNOWLEDGE / self._clock.rate)

    def _turn(self, client: Client, seconds: float) -> None:
        """Waits for the network or the bell, and does what there is to do."""
        sock = client.socket()
        if sock is None:
            return
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        poll.register(self._bell, select.POLLIN)
        asked = client._ping_t
        for number, event in poll.poll(seconds * 1000):
            if number == self._bell.fileno():
                self._answer_the_bell()
                continue
            if event & select.POLLOUT:
                client.loop_write()
            if event & ~select.POLLOUT:
                client.loop_read()
                # What TLS has deciphered already does not show in poll().
                while client.socket() is sock and isinstance(sock, ssl.SSLSocket) and sock.pending():
                    client.loop_read()
                # Where much comes in paho has no need to ask, and a frozen peer is silent for twice the keepalive.
                up, rate = self._clock.since_boot(), self._clock.rate
                answered = asked and not client._ping_t
                ago = time.monotonic() - asked if answered else 2 * self._keepalive()
                self._surely_read = max(self._surely_read, up - ago * rate)
        client.loop_misc()

    def _too_long(self, client: Client) -> bool:
        """Whether a message is coming in that would fill memory: paho takes whatever comes, up to 256 MB."""
        coming = client._in_packet
        if coming["remaining_length"] <= LARGEST:
            return False
        topic = bytes(coming["packet"][2:202]).decode("utf-8", "replace")
        if len(coming["packet"]) > 2:
            topic = topic[: int.from_bytes(coming["packet"][:2])]
        hint = "Take that message away there. The gateway listens to nobody now; a later connection tries it again."
        self._deaf = Trouble(f"somebody said {coming['remaining_length']:,} bytes on {topic}", hint)
        return True

    def _answer_the_bell(self) -> None:
        with suppress(OSError):
            self._bell.recv(64)
        with self._lock:  # after that, or a ring in between would be taken away and none would ever follow
            self._rung = False

    def _feed(self, client: Client) -> None:
        while len(self._flying) < WINDOW and (found := self._next()) is not None:
            if not self._flying:
                self._moved = time.monotonic()
            info = None
            with self._guarded(
                "publish"
            ):  # a topic with a wildcard, a payload beyond all measure: never the peer's fault
                info = self._publish(client, found.message)
            if info is None:
                continue
            if info.rc:
                self._flying[-1] = found  # it is given back with the others, for the connection has just ended
                return
            if info.is_published():
                self._confirm(found)
            else:
                self._flying[info.mid] = found

    def _next(self) -> _Flying | None:
        with self._lock:
            for topic in self._waiting:
                return _Flying(self._waiting.pop(topic), in_order=False)
        message = self._in_order()
        return None if message is None else _Flying(message, in_order=True)

    @staticmethod
    def _publish(client: Client, message: Message) -> MQTTMessageInfo:
        return client.publish(message.topic, message.payload, message.qos, message.retain)

    def _confirm(self, found: _Flying) -> None:
        self._moved = time.monotonic()
        if found.in_order:
            self._on_confirmed(found.message)

    def _lost(self, trouble: Trouble | None) -> None:
        """Gives back what was on its way, unless something newer waits for the topic. Told when the reason changes."""
        flying, was_up = list(self._flying.values()), self._up
        self._flying.clear()
        with self._lock:
            given_back = {one.message.topic: one.message for one in flying if not one.in_order}
            self._waiting = {**given_back, **self._waiting}
            self._make_room()
            self._trouble = trouble
            if was_up or self._since is None:
                self._up, self._since = False, self._clock.now()
        if trouble is not None and trouble != self._logged:
            self._logged = trouble
            log.warning("output_down", output=self.name, error=trouble.text, hint=trouble.hint)
        if was_up:
            with self._guarded("on_lost"):
                self._on_lost([one.message for one in flying if one.in_order])

    def _make_room(self) -> None:
        while len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self._left_out += 1

    def _say_goodbye(self, client: Client) -> None:
        until = time.monotonic() + GOODBYE_WITHIN
        if self._up and (will := self._said_will) is not None:
            info = self._publish(client, will)
            while not info.rc and not info.is_published() and client.socket() and time.monotonic() < until:
                self._turn(client, 0.05)
        client.disconnect()
        while client.socket() and client.want_write() and time.monotonic() < until:
            self._turn(client, 0.05)

    # What paho calls, within connect

    def _reached(self, client: Client, _data: object, _sock: object) -> None:
        """There is somebody: only now it is said who we are, so that a will is made for those who hear it."""
        with self._guarded("will"):
            self._said_will = self._will()
            if (will := self._said_will) is not None:
                client.will_set(will.topic, will.payload, will.qos, will.retain)

    # What paho calls, within _turn

    def _connected(self, client: Client, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            self._ended = refusal(str(reason), self._address)
            return
        self._refused = self._deaf
        self._surely_read = self._clock.since_boot()
        if self._subscriptions and self._deaf is None:
            client.subscribe([(topic, 1) for topic in self._subscriptions])
        with self._lock:
            before = dict(self._waiting)
        first = {message.topic: message for message in self._on_connected()}
        with self._lock:
            # What was put meanwhile is newer than what on_connected says of its topic.
            kept = {
                topic: one for topic, one in self._waiting.items() if topic not in first or one is not before.get(topic)
            }
            self._waiting = {**first, **kept}
            self._make_room()
            self._trouble = None
            self._up, self._since = True, self._clock.now()
        if self._short_lives == 0:
            self._log_up()

    def _disconnected(self, _client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if self._ended is not None:
            return
        where = self._address.where
        if str(reason) == "Keep alive timeout":
            self._ended = Trouble(f"{where} has not answered for {self._keepalive()} s", SILENT)
        elif not self._up:
            hint = "Is it a broker, and is the port right? 1883 is usual for mqtt://, 8883 for mqtts://. See its log."
            self._ended = Trouble(f"{where} ended the connection before it was made", hint)
        else:
            hint = "It is tried again by itself. If it comes again and again, look at the broker's log."
            self._ended = Trouble(f"the connection to {where} ended", hint)

    def _published(self, _client: object, _data: object, mid: int, _reason: object, _properties: object) -> None:
        if (found := self._flying.pop(mid, None)) is not None:
            self._confirm(found)

    def _subscribed(
        self, _client: object, _data: object, _mid: int, reasons: Sequence[Any], _properties: object
    ) -> None:
        denied = [topic for topic, one in zip(self._subscriptions, reasons, strict=False) if one.is_failure]
        if denied:
            hint = "Allow it to this user in the broker's access list, or turn off in config.toml what needs it."
            self._refused = Trouble(f"the broker does not let us hear {', '.join(denied)}", hint)
            log.warning("output_refused", output=self.name, error=self._refused.text, hint=hint)

    def _heard(self, _client: object, _data: object, message: MQTTMessage) -> None:
        if len(message.payload) > LARGEST:
            return
        with self._guarded("on_message"):  # what a stranger sends must not end the connection
            self._on_message(message.topic, bytes(message.payload))

    # Words

    def _log_up(self) -> None:
        """After a connection that did not last, not before this one does: two lines a minute would help nobody."""
        log.info("output_up", output=self.name, broker=self._address.where)
        self._logged = None

    def _thrown_out(self, trouble: Trouble) -> Trouble:
        return Trouble(
            trouble.text,
            f"It takes us and ends it soon after, again and again: does another client call itself "
            f'"{self._address.client_id}" (two gateways with one site.id)? The broker\'s log says why.',
        )

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # a fault of ours ends nothing for ever; its traceback is kept once
            if doing not in self._crashed:
                self._crashed.add(doing)
                log.exception("output_crashed", output=self.name, doing=doing)


def wait(tries: int, chance: float) -> float:
    """Seconds before the next try, after so many in vain. Full jitter, for thousands may have lost one broker."""
    ceiling = CEILINGS[min(tries, len(CEILINGS) - 1)]
    return SHORTEST + chance * (ceiling - SHORTEST)


def authorities(address: Address) -> ssl.SSLContext:
    """The one authority that is named, else the known ones, and nothing from the environment. Raises ConfigError."""
    import certifi

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name, TLS 1.2 and later
    path = address.ca or Path(certifi.where())
    try:
        context.load_verify_locations(path)
        if address.certificate is not None:
            path = address.certificate
            # A key under a pass phrase would be asked for on the terminal.
            context.load_cert_chain(path, address.key, password=lambda: "")
    except OSError as exc:  # also ssl.SSLError, where it is not PEM or the key is another one's
        said = exc.strerror or str(exc)
        hint = "PEM files are needed, readable for the service; a key without a pass phrase, and of this certificate."
        raise ConfigError(f"cannot be used: {said}", hint=hint, path=path) from exc
    return context


def refusal(reason: str, address: Address) -> Trouble:
    """What a broker says instead of welcome, in MQTT's words."""
    who = f"user {address.username}" if address.username is not None else "a client without a user name"
    match reason:
        case "Bad user name or password" | "Not authorized":
            return Trouble(
                f"{address.where} refuses {who}: {reason.lower()}",
                "Compare username and password with the broker's; a changed password file is read before the next try."
                if address.username is not None
                else f"Add username and password to [{address.table}] in config.toml, as the broker knows them.",
            )
        case "Client identifier not valid":
            return Trouble(
                f'{address.where} refuses the client id "{address.client_id}"', "Allow it in the broker's settings."
            )
        case "Server unavailable":
            return Trouble(f"{address.where} says that it is not available now", "It is tried again by itself.")
        case _:
            return Trouble(f"{address.where} refuses the connection: {reason}", "Look at the broker's log.")


def why(exc: BaseException, address: Address) -> Trouble:
    """Why no connection came about."""
    where = address.where
    match exc:
        case ssl.SSLCertVerificationError():
            authority = f"signed by {address.ca}" if address.ca is not None else "known"
            return Trouble(
                f"the certificate of {where} does not hold: {exc.verify_message.rstrip('.')}",
                f"It must be {authority} and for the name {address.host}. Put the broker's authority into ca_file; "
                "if it is said to be not yet valid or expired, look at the clock (timedatectl).",
            )
        case ssl.SSLError() | ConnectionResetError():
            said = (getattr(exc, "reason", None) or exc.strerror or str(exc)).lower().replace("_", " ")
            hint = "mqtts:// speaks TLS, usually on port 8883, mqtt:// not, on 1883; "
            hint += "a broker that wants a client certificate ends it so too (certificate and key)."
            return Trouble(f"no TLS with {where}: {said}" if address.tls else f"{where} hangs up: {said}", hint)
        case socket.gaierror():
            return Trouble(
                f"the name {address.host} cannot be resolved",
                f"Check the name in {address.table}.url and the name service (DNS).",
            )
        case ConnectionRefusedError():
            return Trouble(
                f"nothing listens at {where}",
                f"Start the broker, or correct {address.table}.url. A mosquitto 2 without `listener 1883` is heard by "
                "its own computer only.",
            )
        case TimeoutError():
            return Trouble(f"{where} does not answer", "Check address, port, cable and firewall.")
        case OSError(errno=errno.ENETUNREACH | errno.EHOSTUNREACH | errno.ENETDOWN):
            return Trouble(f"there is no way to {where}", "Check cable, network and gateway of this computer.")
        case OSError():
            return Trouble(
                f"no connection to {where}: {exc.strerror or exc}", f"Check {address.table}.url and the network."
            )
        case _:
            return Trouble(f"no connection to {where}: {exc}", f"Check {address.table}.url.")

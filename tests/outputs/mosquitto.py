"""A real mosquitto on a free port of loopback: started, stopped, frozen, with passwords, with TLS."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes import free_port

PROGRAM = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
GENEROUS = 60.0
"""Seconds that nothing here takes, however busy the machine is."""

needs_mosquitto = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="no mosquitto on this machine")


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for a condition, and fails with `what` when it does not come."""
    end = time.monotonic() + GENEROUS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


class Heard(NamedTuple):
    topic: str
    payload: bytes
    retained: bool
    """It was there before we listened."""
    qos: int


class Mosquitto:
    """A broker of one's own. `folder` keeps its files; the port stays the same over restarts.

    passwords   user -> password; None lets everybody in
    tls         folder as `certificates` makes it: TLS, and a client certificate is asked for
    lines       more lines of its configuration
    """

    def __init__(
        self,
        folder: Path,
        *,
        passwords: dict[str, str] | None = None,
        tls: Path | None = None,
        lines: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.tls, self._lines = folder, tls, lines
        self.port = free_port()
        self.passwords = passwords
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    @property
    def url(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert self._process is None
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", "log_dest file " + str(self.folder / "log")]
        lines.append("user root")  # started by root it would become a user who may not read its folder
        lines += [f"allow_anonymous {'true' if self.passwords is None else 'false'}", *self._lines]
        if self.passwords is not None:
            self._write_passwords()
            lines.append(f"password_file {self.folder / 'passwords'}")
        if self.tls is not None:
            lines += [f"cafile {self.tls / 'ca.pem'}", f"certfile {self.tls / 'server.pem'}"]
            lines += [f"keyfile {self.tls / 'server.key'}", "require_certificate true"]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([PROGRAM, "-c", str(config)], stdout=quiet, stderr=quiet)
        until(self._listens, f"mosquitto does not start: {config.read_text()}")

    def change_password(self, user: str, password: str) -> None:
        """From now on; who is connected stays so until the next `restart`."""
        assert self.passwords is not None
        self.passwords[user] = password
        self._write_passwords()
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def freeze(self) -> None:
        """It takes connections (the kernel does) and says nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    def kill(self) -> None:
        """Without a good-bye, and what it retained is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            if self._frozen:
                self.thaw()
            self._process.terminate()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    @contextmanager
    def listening(self, *topics: str, user: str = "", password: str = "") -> Iterator[Listener]:
        """Somebody else who hears everything, or what `topics` say; it is subscribed when the block begins."""
        listener = Listener(self, topics or ("#",), user, password)
        try:
            yield listener
        finally:
            listener.close()

    def _write_passwords(self) -> None:
        path = self.folder / "passwords"
        path.write_text("")
        for user, password in (self.passwords or {}).items():
            subprocess.run(["mosquitto_passwd", "-b", str(path), user, password], check=True, capture_output=True)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"mosquitto ended: {self.log()}"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class Listener:
    """A subscriber with a client of its own; `messages` are all that came, in order."""

    def __init__(self, broker: Mosquitto, topics: tuple[str, ...], user: str = "", password: str = "") -> None:
        from paho.mqtt.client import Client, MQTTMessage
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[Heard] = []
        subscribed = threading.Event()
        self._client = client = Client(CallbackAPIVersion.VERSION2)
        client.reconnect_delay_set(1, 1)
        if user:
            client.username_pw_set(user, password)
        if broker.tls is not None:
            client.tls_set(str(broker.tls / "ca.pem"), str(broker.tls / "client.pem"), str(broker.tls / "client.key"))

        def connected(*_: object) -> None:
            client.subscribe([(topic, 2) for topic in topics])

        def heard(_client: object, _data: object, message: MQTTMessage) -> None:
            self.messages.append(Heard(message.topic, bytes(message.payload), message.retain, message.qos))

        client.on_connect = connected
        client.on_message = heard
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert subscribed.wait(GENEROUS), "the listener is not let in"

    def last(self, topic: str) -> bytes | None:
        """The newest payload of a topic."""
        return next((one.payload for one in reversed(tuple(self.messages)) if one.topic == topic), None)

    def wait_for(self, topic: str, payload: bytes | None = None) -> Heard:
        """The first message of that topic (and with that payload), which may have come already."""

        def found() -> list[Heard]:
            return [
                one
                for one in tuple(self.messages)
                if one.topic == topic and (payload is None or one.payload == payload)
            ]

        until(lambda: bool(found()), f"nobody said {payload!r} on {topic}")
        return found()[0]

    def settle(self) -> None:
        """All that was retained, or said before this, has come."""
        self.say("settled", b"")
        self.wait_for("settled")
        self.messages = [one for one in self.messages if one.topic != "settled"]

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(GENEROUS)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that lets everybody in; it is running."""
    with running(tmp_path) as broker:
        yield broker


@contextmanager
def running(folder: Path, **more: object) -> Iterator[Mosquitto]:
    """A running broker with its files in a folder below `folder`; `more` as `Mosquitto` takes it."""
    home = folder / "mosquitto"
    home.mkdir()
    broker = Mosquitto(home, **more)  # type: ignore[arg-type]  # handed through as they come
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def certificates(folder: Path) -> Path:
    """An authority (ca.pem), a server's and a client's certificate by it, and `other.pem`, a stranger's authority."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    folder.mkdir(exist_ok=True)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}"
        )
    for name, names in (("server", "IP:127.0.0.1"), ("client", "DNS:gateway")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text(f"subjectAltName={names}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder

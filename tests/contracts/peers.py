"""Peers of an output as one meets them: dead, frozen, deaf, rude. Each on a port of its own on loopback."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ESTABLISHED, SYN_SENT = "01", "02"
CONNECT, PUBLISH, PUBREL, SUBSCRIBE, UNSUBSCRIBE, PINGREQ = 1, 3, 6, 8, 10, 12
LIMIT = 60.0
"""Real seconds that anything may take here; only what hangs takes so long."""


def until(true: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, f"{limit:g} s and not yet: {what}"
        time.sleep(0.01)


class Peer:
    """Accepts, and leaves every connection alone: a host that is there and says nothing."""

    tls = False
    host = "127.0.0.1"
    holds = True
    """Whoever connects is kept waiting for as long as he wants to wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accepted = 0
        self.connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = self._listen()
        self.port: int = self._listener.getsockname()[1]
        self._serve(self._accept)

    def _listen(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    def _serve(self, work: Callable[..., None], *given: object) -> None:
        thread = threading.Thread(target=work, args=given, name="peer", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            self.connections.append(connection)
            self._serve(self._guarded, connection)

    def _guarded(self, connection: socket.socket) -> None:
        with suppress(OSError, EOFError):  # the client went away
            self.meet(connection)

    def meet(self, connection: socket.socket) -> None:
        """What becomes of a connection; it stays open afterwards."""

    def held(self) -> frozenset[int]:
        """Local ports of the clients that are connected to it, or try to be, as the kernel tells it."""
        return connected(self.port)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT)
        for connection in self.connections:
            connection.close()


def connected(port: int) -> frozenset[int]:
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, mine, other, state, *_ = line.split()
        if state in (ESTABLISHED, SYN_SENT) and int(other.partition(":")[2], 16) == port:
            found.add(int(mine.partition(":")[2], 16))
    return frozenset(found)


class Refuses(Peer):
    """Nobody listens there."""

    holds = False

    def _listen(self) -> socket.socket:
        self._bound = socket.socket()
        self._bound.bind(("127.0.0.1", 0))  # kept, so that nobody else listens there meanwhile
        return self._bound

    def _accept(self) -> None:
        """It does not listen."""


class NoSuchName(Refuses):
    host = "broker.invalid"  # RFC 6761: never resolves


class NameHangs(NoSuchName):
    """The name server is not there: for a long time a name neither resolves nor fails to."""

    holds = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = 0
        self.let_go = threading.Event()
        self._real = socket.getaddrinfo
        socket.getaddrinfo = self._getaddrinfo  # there is no other way in

    def _getaddrinfo(self, host: Any, *given: Any, **named: Any) -> Any:
        if host != self.host:
            return self._real(host, *given, **named)
        self.asked += 1
        self.let_go.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def held(self) -> frozenset[int]:
        return frozenset(range(min(1, self.asked)))

    def close(self) -> None:
        self.let_go.set()
        socket.getaddrinfo = self._real
        super().close()


class NeverAccepts(Peer):
    """Its queue of connections is full: whoever dials hears nothing at all, as from a host that is switched off."""

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self._fillers = [socket.socket() for _ in range(3)]
        for one in self._fillers:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(listener.getsockname())
        return listener

    def _accept(self) -> None:
        """Never."""

    def held(self) -> frozenset[int]:
        return super().held() - {one.getsockname()[1] for one in self._fillers}

    def close(self) -> None:
        super().close()
        for one in self._fillers:
            one.close()


class NeverAnswers(Peer):
    """Takes the CONNECT and says nothing."""

    def meet(self, connection: socket.socket) -> None:
        packet(connection)


class Hello(Peer):
    """Takes the CONNECT and answers it."""

    code = 0
    """3.1.1 by the number in a CONNACK, 5 by its own."""

    def meet(self, connection: socket.socket) -> None:
        kind, _, body = packet(connection)
        assert kind == CONNECT, kind
        version = body[6]
        code = {5: 0x86}.get(self.code, self.code) if version == 5 else self.code
        connection.sendall(bytes((0x20, 3, 0, code, 0)) if version == 5 else bytes((0x20, 2, 0, code)))
        self.after(connection, version)

    def after(self, connection: socket.socket, version: int) -> None:
        """Nothing more is ever read: the client's buffers fill."""


class NeverReads(Hello):
    """Says hello and never reads again."""

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return listener


class WrongPassword(Hello):
    """CONNACK: bad user name or password, not authorised."""

    holds = False
    code = 5

    def after(self, connection: socket.socket, version: int) -> None:
        del version
        connection.close()


class HangsUp(Peer):
    holds = False

    def meet(self, connection: socket.socket) -> None:
        connection.close()


class Garbage(Peer):
    """Not a broker: answers as a web server does, and goes on so."""

    holds = False

    def meet(self, connection: socket.socket) -> None:
        packet(connection)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 50)


class HalfHandshake(Peer):
    """TLS that never comes to an end: half of the first flight, then silence."""

    tls = True

    def meet(self, connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(self.folder))
        heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(heard, said, server_side=True)
        while not said.pending:
            heard.write(connection.recv(4096) or _gone())
            with suppress(ssl.SSLWantReadError):
                server.do_handshake()
        flight = said.read()
        connection.sendall(flight[: len(flight) // 2])


class Broker(Hello):
    """What a broker does, as far as a publisher sees it. The control: with it the outputs are well."""

    def __init__(self, folder: Path) -> None:
        self.messages = 0
        self.bytes = 0
        self.topics: set[str] = set()
        super().__init__(folder)

    def after(self, connection: socket.socket, version: int) -> None:
        while True:
            kind, flags, body = packet(connection)
            if kind == PUBLISH:
                self._published(connection, flags, body)
            elif kind == PUBREL:
                connection.sendall(bytes((0x70, 2)) + body[:2])
            elif kind in (SUBSCRIBE, UNSUBSCRIBE):
                more = b"\0" if version == 5 else b""  # no properties
                codes = b"\0" if kind == SUBSCRIBE or version == 5 else b""
                answer = body[:2] + more + codes
                connection.sendall(bytes(((kind + 1) << 4, len(answer))) + answer)
            elif kind == PINGREQ:
                connection.sendall(b"\xd0\0")
            else:
                return  # DISCONNECT

    def _published(self, connection: socket.socket, flags: int, body: bytes) -> None:
        length = int.from_bytes(body[:2])
        qos = flags >> 1 & 3
        self.messages += 1
        self.bytes += len(body)
        self.topics.add(body[2 : 2 + length].decode())
        if qos:
            connection.sendall(bytes((0x40 if qos == 1 else 0x50, 2)) + body[2 + length : 4 + length])


def packet(connection: socket.socket) -> tuple[int, int, bytes]:
    """Kind, flags and the rest of an MQTT packet."""
    first = _exactly(connection, 1)[0]
    length = shift = 0
    while True:
        byte = _exactly(connection, 1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return first >> 4, first & 15, _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += connection.recv(size - len(found)) or _gone()
    return found


def _gone() -> bytes:
    raise EOFError


def certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 with its key in one file, made once for each folder; it is its own authority."""
    path = folder / "peer.pem"
    if not path.exists():
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path

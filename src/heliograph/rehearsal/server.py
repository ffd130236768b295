"""Meters behind a TCP port: Modbus TCP, or RTU frames as a transparent serial converter passes them on."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, Self

from heliograph.core.errors import UsageError
from heliograph.rehearsal.faults import Answer, Faults, Mischief
from heliograph.rehearsal.frames import (
    MBAP,
    TARGET_SILENT,
    Device,
    Framing,
    refusal,
    rtu,
    rtu_parts,
    rtu_request_length,
    tcp,
)

Unknown = Literal["silent", "refuse"]
Beyond = Literal["reset", "starve"]

_STALE = 0.2  # seconds after which half an RTU request is thrown away, as a device does after 3.5 characters
_LONGEST = 254  # unit and data unit in a TCP frame


class Server:
    """Threads of its own; each connection is served in order, so a late answer delays those behind it.

    `devices` may be changed while it runs: an absent unit is a dead meter, another device a swapped one.
    """

    def __init__(
        self,
        devices: Mapping[int, Device],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        framing: Framing = "tcp",
        unknown: Unknown = "silent",
        turnaround: float = 0.0,
        faults: Faults | None = None,
        seed: int = 0,
        rate: float = 1.0,
        clients: int | None = None,
        beyond: Beyond = "reset",
    ) -> None:
        """Listens at once, on a free port where `port` is 0; serves from `start` on.

        `unknown`: what is said about a unit that is not there (`refuse`: exception 11, as TCP gateways do; RTU is
        always silent). `rate`: how many of the rehearsal's seconds pass in a real one; turnaround and lateness are
        in the rehearsal's seconds. `clients`: how many are served at a time; what becomes of others is `beyond`: their
        connection is reset, or accepted and never served.
        """
        self.devices = devices
        self.framing = framing
        self.unknown = unknown
        self.turnaround = turnaround
        self.rate = rate
        self.clients = clients
        self.beyond = beyond
        self._mischief = Mischief(faults, seed)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server((host, port), backlog=16)
        except (OSError, OverflowError) as exc:
            raise UsageError(
                f"cannot listen on {host}:{port}: {exc}",
                hint="Choose an address of this computer and a free port above 1023, or port 0 for any",
            ) from exc
        self.host = host
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """As it stands in a configuration."""
        return f"{'tcp' if self.framing == 'tcp' else 'rtu+tcp'}://{self.host}:{self.port}"

    @property
    def faults(self) -> Faults:
        return self._mischief.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._mischief.faults = faults

    @property
    def counts(self) -> Counter[str]:
        return self._mischief.counts

    def start(self) -> Self:
        self._spawn(self._accept)
        return self

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def drop_connections(self) -> None:
        """Every client is cut off, as when a converter restarts."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _reset(connection)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=f"rehearsal-{self.url}", daemon=True)
        self._threads = [running for running in self._threads if running.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                served = self.clients is None or len(self._open) < self.clients
                self._open.add(connection)
            self._spawn(self._serve if served else self._turn_away, connection)

    def _turn_away(self, connection: socket.socket) -> None:
        self._mischief.count("turned away")
        try:
            with connection:
                if self.beyond == "starve":
                    connection.settimeout(None)
                    while connection.recv(512):
                        pass
                else:
                    _reset(connection)
        except OSError:  # the client went away, or we are closing
            self._mischief.count("disconnected")
        finally:
            with self._lock:
                self._open.discard(connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                if self.framing == "tcp":
                    self._serve_tcp(connection)
                else:
                    self._serve_rtu(connection)
        except OSError:  # the client went away, or we are closing
            self._mischief.count("disconnected")
        finally:
            with self._lock:
                self._open.discard(connection)

    def _serve_tcp(self, connection: socket.socket) -> None:
        while (header := _exactly(connection, MBAP.size)) is not None:
            transaction, protocol, length, unit = MBAP.unpack(header)
            if protocol != 0 or not 2 <= length <= _LONGEST:
                self._mischief.count("not modbus")
                return
            request = _exactly(connection, length - 1)
            if request is None:
                return

            def wrap(unit: int, pdu: bytes, transaction: int = transaction) -> bytes:
                return tcp(transaction, unit, pdu)

            answer = self._mischief.respond(self.devices, unit, request, wrap, "tcp")
            if answer is None:
                nobody = wrap(unit, refusal(request, TARGET_SILENT))
                answer = Answer((nobody,) if self.unknown == "refuse" else ())
            if not self._send(connection, answer):
                return

    def _serve_rtu(self, connection: socket.socket) -> None:
        received = b""
        while not self._stop.is_set():
            length = rtu_request_length(received)
            if length is not None and len(received) >= length:
                frame, received = received[:length], received[length:]
                parts = rtu_parts(frame)
                if parts is None:
                    self._mischief.count("bad checksum")  # out of step? the next silence ends it
                    continue
                answer = self._mischief.respond(self.devices, *parts, wrap=rtu, framing="rtu")
                if not self._send(connection, answer or Answer()):
                    return
                continue
            connection.settimeout(_STALE if received else None)
            try:
                more = connection.recv(512)
            except TimeoutError:
                self._mischief.count("half a request")
                received = b""
                continue
            if not more:
                return
            received += more

    def _send(self, connection: socket.socket, answer: Answer) -> bool:
        """False when the connection is over."""
        if answer.reset:
            _reset(connection)
            return False
        if self._stop.wait((self.turnaround + answer.late) / self.rate):
            return False
        if answer.frames:
            connection.settimeout(5)  # a client that does not read must not hold the thread
            connection.sendall(b"".join(answer.frames))
            connection.settimeout(None)
        return True


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    received = b""
    while len(received) < size:
        more = connection.recv(size - len(received))
        if not more:
            return None
        received += more
    return received


def _reset(connection: socket.socket) -> None:
    """Its thread wakes up and closes it, with RST instead of FIN because nothing may linger (socket(7))."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)

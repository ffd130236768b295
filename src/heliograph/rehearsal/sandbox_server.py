"""The sockets of the stand-in platforms: HTTP/1.1 on loopback, one thread a connection, connections that can break."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from datetime import datetime
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Protocol

from heliograph.core.errors import UsageError
from heliograph.rehearsal.sandbox_exchange import Answer, Exchange

LARGEST_BODY = 16 * 1024 * 1024
HANG_SECONDS = 600.0


class Site(Protocol):
    """What the sockets serve."""

    now: Callable[[], datetime]

    def begin(self, method: str, target: str, alive: Callable[[], bool]) -> Exchange: ...

    def answer(self, exchange: Exchange, headers: dict[str, str], body: bytes, client: str) -> Answer: ...

    def end(self, exchange: Exchange) -> None: ...

    def wait(self, seconds: float) -> bool:
        """Waits in the sandbox's clock; True where the sandbox is stopping and nothing should be sent any more."""
        ...


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client went away: its right
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Silent; the sandbox keeps its own counters."""

    def _serve(self) -> None:
        site = self.server.site
        exchange = site.begin(self.command, self.path, self._alive)
        try:
            if exchange.unread or (body := self._body()) is None:
                self.close_connection = True
                return
            answer = site.answer(exchange, dict(self.headers.items()), body, str(self.client_address[0]))
            self._send(site, answer)
        finally:
            site.end(exchange)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes | None:
        """None where its length is not told or beyond reason; both platforms' clients send Content-Length."""
        text = self.headers.get("Content-Length", "0")
        if not text.isdigit() or int(text) > LARGEST_BODY or "Transfer-Encoding" in self.headers:
            return None
        body = self.rfile.read(int(text))
        return body if len(body) == int(text) else None

    def _send(self, site: Site, answer: Answer) -> None:
        seconds = HANG_SECONDS if answer.delivery == "hang" else answer.delay
        if seconds and site.wait(seconds):
            self.close_connection = True
            return
        if answer.delivery in ("drop", "hang"):
            self.close_connection = True
            return
        try:
            phrase = HTTPStatus(answer.status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/1.1 {answer.status} {phrase}", f"Date: {format_datetime(site.now(), usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        lines.append(f"Content-Length: {len(answer.body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        body = b"" if self.command == "HEAD" else answer.body
        if answer.delivery == "truncate":
            self.wfile.write(head + body[: len(body) // 2] if body else head[: len(head) // 2])
            self.close_connection = True
            return
        self.wfile.write(head + body)

    def _alive(self) -> bool:
        """Whether the client still waits: one that gave up has closed its end."""
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        self.site = site
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer would look the host's name up
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]  # typeshed allows bytes


class Listener:
    """Holds one port for its whole life; `refuse` makes connecting to it fail at once, `accept` undoes it."""

    def __init__(self, host: str, port: int, site: Site) -> None:
        self.host = host
        self._site = site
        self._thread: threading.Thread | None = None
        # Bound and never listening: while nobody else listens either, the kernel answers with a reset, and the port
        # stays ours. Beside it a server may listen and go.
        self._holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._holder.bind((host, port))
            self.port: int = self._holder.getsockname()[1]
            self._server = _Server((host, self.port), site)
        except OSError as exc:
            self._holder.close()
            raise UsageError(
                f"cannot listen on {host}:{port}: {exc.strerror or exc}", hint="Choose another address or port 0"
            ) from exc

    def start(self) -> None:
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="sandbox", daemon=True
        )
        self._thread.start()

    def refuse(self) -> None:
        self._close()

    def accept(self) -> None:
        self._server = _Server((self.host, self.port), self._site)
        self.start()

    def stop(self) -> None:
        self._close()
        self._holder.close()

    def _close(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

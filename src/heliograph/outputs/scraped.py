"""One page over HTTP for whoever asks, in one thread that nobody can keep busy, and with bounded memory.

Whoever is connected has a few seconds to ask and to take the answer; among too many the one who waits longest has to
go; only so many are let in within a second. So a client that never reads, half a request, or a thousand connections
cost a little of one thread, and somebody who asks as one should is answered beside them.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()

MOST_GUESTS = 16
WITHIN = 10.0
"""Seconds for the whole exchange: a slow modem takes some ten kilobytes in that."""
LINGER = 1.0
"""Seconds for the client to hang up; we going first with unread bytes left would break what it still has to read."""
LONGEST_HEAD = 8192
A_SECOND = 50
"""Connections that are let in within a second; the kernel keeps a few more waiting, and refuses the rest."""
AGAIN = 30.0
"""Seconds until an address that is taken, or not there yet, is tried again."""
BACKLOG = 16

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 431: "Request Header Fields Too Large", 500: "Server Error"}

Made = tuple[dict[str, str], bytes]
"""Headers and body."""
Make = Callable[[Mapping[str, str]], Made]
"""From the headers of a request (names in small letters)."""


@dataclass
class _Guest:
    socket: socket.socket
    until: float
    heard: bytearray = field(default_factory=bytearray)
    left: memoryview | None = None
    """What is still to be sent; None: still asking, empty: all is said."""


class Page:
    """`start` and `close` neither raise nor wait for a client. `changed`: whether it listens now, and why not."""

    def __init__(
        self, host: str, port: int, path: str, make: Make, changed: Callable[[bool, str], None] = lambda _up, _why: None
    ) -> None:
        self._host, self.port = host, port
        """Port 0 becomes the one that was found."""
        self._path, self._make, self._changed = path, make, changed
        self._closing = threading.Event()
        self._bell, self._button = socket.socketpair()
        self._thread: threading.Thread | None = None
        self._failed = False

    def start(self) -> None:
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="scraped", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with suppress(OSError):
            self._button.send(b".")
        if self._thread is not None:
            self._thread.join(LINGER / 2)
        else:
            self._bell.close()
            self._button.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    with self._listen() as listener:
                        self.port = listener.getsockname()[1]
                        self._changed(True, "")
                        self._serve(listener)
                except OSError as exc:
                    self._changed(False, self._words(exc))
                except Exception:  # a fault of ours must not end the page for good; its traceback is kept once
                    if not self._failed:
                        log.exception("page_crashed", path=self._path)
                    self._failed = True
                    self._changed(False, "the page crashed. It comes back by itself; report the traceback in the log.")
                self._closing.wait(AGAIN)
        finally:
            self._bell.close()
            self._button.close()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        return socket.create_server((self._host, self.port), family=family, backlog=BACKLOG)

    def _words(self, exc: OSError) -> str:
        match exc.errno:
            case errno.EADDRINUSE:
                why = f"port {self.port} is taken by another program. Choose another port in metrics.listen, or end it"
                return f"{why} (ss -ltnp shows which it is); it is tried again every {AGAIN:.0f} s."
            case errno.EADDRNOTAVAIL:
                why = f"this computer has no address {self._host} now. Correct metrics.listen, or wait for the network"
                return f"{why}; it is tried again every {AGAIN:.0f} s."
            case errno.EACCES | errno.EPERM:
                return f"port {self.port} may not be used by the service. Choose one above 1023 in metrics.listen."
        return f"nothing can be listened on: {exc.strerror or type(exc).__name__}. Correct metrics.listen."

    def _serve(self, listener: socket.socket) -> None:
        guests: dict[socket.socket, _Guest] = {}
        listener.setblocking(False)
        with selectors.DefaultSelector() as watch:
            watch.register(self._bell, selectors.EVENT_READ)
            watch.register(listener, selectors.EVENT_READ)
            second, let_in, resting = 0.0, 0, False
            try:
                while not self._closing.is_set():
                    now = time.monotonic()
                    for guest in [one for one in guests.values() if one.until <= now]:
                        _part(guest, guests, watch)
                    if now - second >= 1.0:
                        second, let_in = now, 0
                        if resting:
                            watch.register(listener, selectors.EVENT_READ)
                            resting = False
                    until = [one.until for one in guests.values()] + ([second + 1.0] if resting else [])
                    for key, _ in watch.select(max(0.0, min(until) - now) if until else None):
                        if key.fileobj is listener:
                            let_in += 1
                            if not _let_in(listener, guests, watch) or let_in >= A_SECOND:
                                watch.unregister(listener)
                                resting = True
                        elif (found := guests.get(key.fileobj)) is not None:  # type: ignore[call-overload]  # the bell is a socket, too
                            self._attend(found, guests, watch)
            finally:
                for guest in list(guests.values()):
                    _part(guest, guests, watch)

    def _attend(self, guest: _Guest, guests: dict[socket.socket, _Guest], watch: selectors.BaseSelector) -> None:
        try:
            if guest.left is None:
                piece = guest.socket.recv(LONGEST_HEAD)
                guest.heard += piece
                answer = self._answer(bytes(guest.heard), over=not piece)
                if answer is None:
                    return
                guest.heard.clear()
                guest.left = memoryview(answer)
                watch.modify(guest.socket, selectors.EVENT_WRITE)
            if guest.left:
                guest.left = guest.left[guest.socket.send(guest.left) :]
                if not guest.left:
                    guest.socket.shutdown(socket.SHUT_WR)
                    guest.until = min(guest.until, time.monotonic() + LINGER)
                    watch.modify(guest.socket, selectors.EVENT_READ)
            elif not guest.socket.recv(LONGEST_HEAD):  # what comes behind the request is nobody's
                _part(guest, guests, watch)
        except BlockingIOError:
            return
        except OSError:  # gone
            _part(guest, guests, watch)

    def _answer(self, heard: bytes, *, over: bool) -> bytes | None:
        """The whole answer to what was asked so far; None while that is no whole request."""
        head, end, _ = heard.replace(b"\r\n", b"\n").partition(b"\n\n")
        if len(heard) > LONGEST_HEAD:
            return _said(431)
        if not end:
            return _said(400) if over else None
        first, *lines = head.decode("latin-1").split("\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _said(400)
        if parts[0] not in ("GET", "HEAD") or parts[1].partition("?")[0] != self._path:
            return _said(404, {}, f"There is only GET {self._path} here.\n".encode())
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            made, body = self._make(headers)
        except Exception:  # as above: told once, and the next one who asks may fare better
            if not self._failed:
                log.exception("page_crashed", path=self._path)
            self._failed = True
            return _said(500)
        return _said(200, made, body, whole=parts[0] == "GET")


def _let_in(listener: socket.socket, guests: dict[socket.socket, _Guest], watch: selectors.BaseSelector) -> bool:
    """False where no more can be let in now: too many open files, for instance."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, ConnectionError):
        return True  # gone before we came
    except OSError:
        return False
    connection.setblocking(False)
    while len(guests) >= MOST_GUESTS:
        _part(next(iter(guests.values())), guests, watch)
    guests[connection] = _Guest(connection, time.monotonic() + WITHIN)
    watch.register(connection, selectors.EVENT_READ)
    return True


def _part(guest: _Guest, guests: dict[socket.socket, _Guest], watch: selectors.BaseSelector) -> None:
    if guests.pop(guest.socket, None) is not None:
        watch.unregister(guest.socket)
        guest.socket.close()


def _said(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", *, whole: bool = True) -> bytes:
    given = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
    given |= {"Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (body if whole else b"")

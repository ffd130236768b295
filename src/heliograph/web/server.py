"""The read-only REST over HTTP, with a token: uvicorn on a loop of its own in a thread of its own.

Whoever connects is a stranger until the token has been compared. So a connection serves one request and lives a short
while, there are few of them at a time, and one thread answers them one after the other: what strangers do costs some
memory that has a bound, and metering nothing.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from heliograph.core.answer import OPEN, Answer, problem
from heliograph.core.errors import ConfigError
from heliograph.core.health import Health, OutputHealth
from heliograph.core.shown import DayFigure, Sample
from heliograph.ports import Clock

if TYPE_CHECKING:
    import uvicorn

log = structlog.get_logger()

MOST_CONNECTIONS = 32
BACKLOG = 64
"""Those that the kernel lets wait to be taken or cut off."""
MOST_WAITING = 16
"""Requests that wait for their answer; who comes then is asked to come again."""
MOST_HEADER = 8192
"""Bytes of a request."""
HEADER_WITHIN = 5.0
"""Seconds for a request to be there."""
DONE_WITHIN = 30.0
"""Seconds for a connection altogether."""
ANSWER_WITHIN = 20.0
AGAIN = 10.0
"""Seconds until a port is tried again that could not be had."""
GONE_WITHIN = 0.8

HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# What a person can do about a port that cannot be had.
WHY = {
    errno.EADDRINUSE: "another program listens there (ss -ltnp shows which): end it, or change web.listen",
    errno.EADDRNOTAVAIL: "this computer has no such address now: change web.listen, or wait for the network",
    errno.EACCES: "ports below 1024 are not for the service: change web.listen",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Web:
    """An output (ports.Output) that shows what it is asked for."""

    name = "web"

    def __init__(
        self,
        host: str,
        port: int,
        token: Callable[[], str],
        answer: Callable[[str, str], Answer],
        clock: Clock,
    ) -> None:
        """`token`: the present one, read anew where it may have changed; it raises ConfigError where there is none."""
        self._host, self._port, self._token, self._answer, self._clock = host, port, token, answer, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="web-answer")
        self._waiting = 0
        self._server: uvicorn.Server | None = None
        self._up = False
        self._since: datetime | None = None
        self._trouble = ""

    # -- an output -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def sample(self, sample: Sample) -> None:
        """Nothing is kept: who wants to know asks."""

    def picture(self, health: Health, days: Sequence[DayFigure]) -> None:
        """Nothing is kept."""

    def state(self) -> OutputHealth:
        return OutputHealth(self.name, self.where, self._up, self._since, self._trouble)

    def close(self) -> None:
        self._stop.set()
        server = self._server
        if server is not None:
            server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(GONE_WITHIN)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def where(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            import uvicorn  # takes 3 MB: only for whom it serves
        except ModuleNotFoundError as error:
            self._down(f"{error.name} is not installed: pip install 'heliograph[web]', then restart the gateway")
            return
        while not self._stop.is_set():
            try:
                family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
                with socket.create_server((self._host, self._port), family=family, backlog=BACKLOG) as listener:
                    self._port = listener.getsockname()[1]
                    self._serve(uvicorn.Server(_config(self.app)), listener)
                if not self._stop.is_set():
                    self._down("the server ended by itself; it is started again every 10 s")
            except OSError as error:
                why = WHY.get(error.errno or 0, "change web.listen")
                self._down(f"{os.strerror(error.errno or errno.EIO)}; {why}. It is tried again every {AGAIN:.0f} s.")
            except Exception:  # a fault of ours or of the library ends no metering; its traceback is kept
                log.exception("web_crashed", where=self.where)
                self._down("a fault in the gateway; its log has more, heliograph support gathers it")
            self._stop.wait(AGAIN)

    def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._up, self._since, self._trouble = True, self._clock.now(), ""
        self._server = server
        log.info("web_listens", where=self.where)
        try:
            if not self._stop.is_set():
                server.run(sockets=[listener])
        finally:
            self._server = None
            self._up, self._since = False, self._clock.now()

    def _down(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("web_down", where=self.where, error=trouble)
            self._since = self._clock.now()
        self._up, self._trouble = False, trouble

    # -- a request -----------------------------------------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application. The body of a request is not read: none has a use for one."""
        del receive
        if scope["type"] != "http":
            return
        answer = await self._answered(scope)
        headers = {
            **HEADERS,
            **answer.headers,
            "Content-Type": answer.media,
            "Content-Length": str(len(answer.body)),
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answered(self, scope: Scope) -> Answer:
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if path not in OPEN and (refused := self._refused(headers, path)) is not None:
            return refused
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if has_body and method in ("GET", "HEAD"):
            return problem(
                413, "the request has a body", "Ask without one: everything stands in the target.", instance=path
            )
        query = scope["query_string"].decode("latin-1")
        target = f"{path}?{query}" if query else path
        if path in OPEN:
            return self._answer(method, target)  # from memory, also while all others wait for a card that hangs
        return await self._in_turn(method, target, path)

    def _refused(self, headers: Mapping[bytes, bytes], path: str) -> Answer | None:
        try:
            token = self._token().encode()
        except ConfigError as error:
            return problem(503, "the gateway's own token cannot be read", error.hint, instance=path)
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if hmac.compare_digest(given.strip(), token) and scheme.lower() == b"bearer":
            return None
        what = "the token is not the gateway's" if given else "a token is needed"
        hint = "Send the header Authorization: Bearer TOKEN, with the token that web.token in config.toml names."
        return problem(401, what, hint, instance=path, headers={"WWW-Authenticate": 'Bearer realm="heliograph"'})

    async def _in_turn(self, method: str, target: str, path: str) -> Answer:
        if self._waiting >= MOST_WAITING:
            what = f"{self._waiting} requests wait for their answer already"
            return problem(429, what, "Ask again in a second.", instance=path, headers={"Retry-After": "1"})
        self._waiting += 1
        task = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, method, target)
        task.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(task), ANSWER_WITHIN)
        except TimeoutError:
            what = f"there was no answer within {ANSWER_WITHIN:.0f} s"
            return problem(503, what, "Is the card slow? dmesg and heliograph status may say more.", instance=path)

    def _done(self, task: asyncio.Future[Answer]) -> None:
        self._waiting -= 1
        with suppress(asyncio.CancelledError):
            task.exception()  # nobody may be waiting for it any more


def _config(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> uvicorn.Config:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        """One request, there in seconds, answered in half a minute; few at a time."""

        _timers: tuple[asyncio.TimerHandle, ...] = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            if len(self.connections) > MOST_CONNECTIONS:
                transport.abort()
                return
            self._timers = (
                self.loop.call_later(HEADER_WITHIN, self._look),
                self.loop.call_later(DONE_WITHIN, transport.abort),
            )

        def _look(self) -> None:
            if self.cycle is None:
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in self._timers:
                timer.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            del msg
            answer = problem(400, "this is no HTTP request, or one that is too long", "GET /api/v1/status")
            lines = ["HTTP/1.1 400 Bad Request", f"Content-Type: {answer.media}", f"Content-Length: {len(answer.body)}"]
            lines += [f"{name}: {value}" for name, value in HEADERS.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
            self.transport.close()

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=Bounded,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # what strangers send must not fill the log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=1,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MOST_HEADER,
    )

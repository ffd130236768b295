"""The Unix socket in data_dir over which a running daemon is asked. HTTP, so that any tool can ask too."""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from heliograph.core.errors import HeliographError

Answer = Callable[[str, Any], Any]
"""From a path and what is asked for (None: only to see) to a JSON value; KeyError for a path it does not know."""


MOST_BYTES = 64 * 1024


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, question: str, wish: Any = None, *, timeout: float = 10) -> Any:
    """The daemon's answer, or None when none is running. A named failure there is raised here.

    With a `wish` (JSON) something is changed, and the request is a POST.
    """
    connection = _Connection(path, timeout)
    try:
        connection.request("GET" if wish is None else "POST", question, None if wish is None else json.dumps(wish))
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if response.status != 200:
        raise HeliographError(body.get("detail", "the daemon did not answer"), hint=body.get("hint", ""))
    return body


class Control:
    """Answers GET requests on the socket, in a thread of its own."""

    def __init__(self, path: Path, answer: Answer) -> None:
        path.unlink(missing_ok=True)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                try:
                    self._answer(json.loads(self.rfile.read(min(length, MOST_BYTES))))
                except ValueError:
                    self._say(400, {"title": "Bad request", "detail": "the body is not JSON"})

            def _answer(self, wish: Any) -> None:
                try:
                    status, value = 200, answer(self.path, wish)
                except KeyError:
                    status, value = 404, {"title": "Not found", "detail": f"there is no {self.path}"}
                except HeliographError as error:
                    value = {"title": type(error).__name__, "detail": error.message, "hint": error.hint}
                    status = 503
                self._say(status, value)

            def _say(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "local"

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: asking is normal."""

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self._path = path
        self._server = Server(str(path), Handler)
        path.chmod(0o660)
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        with suppress(OSError):  # on a card that is read-only by now it stays, and nobody answers on it
            self._path.unlink(missing_ok=True)


def listen(path: Path, answer: Answer) -> Control | None:
    """None where the socket cannot be made now: metering must not wait for it."""
    try:
        return Control(path, answer)
    except OSError:
        return None

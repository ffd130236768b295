"""The Unix socket in data_dir over which a running daemon is asked. HTTP, so that any tool can ask too.

It answers two kinds of questions: the gateway's own (`daemon.Daemon.answer`: what changes something, or reads a line),
which exist nowhere else, and behind them the read-only REST (`web/api.py`). Who may open the socket may ask both.
"""

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

from heliograph.core.answer import Answer, found, problem
from heliograph.core.errors import HeliographError

Own = Callable[[str, Any], Any]
"""What only our own verbs ask: from a path and what is asked for (None: only to see) to a JSON value; KeyError for a
path it does not know."""
Rest = Callable[[str, str], Answer]
"""What anybody may ask here: from a method and a target to an answer. It raises nothing."""

MOST_BYTES = 64 * 1024
# Seconds without a byte from whoever has connected; an answer may take longer.
SILENT = 30.0


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
        raise HeliographError(body.get("detail", "the gateway did not answer"), hint=body.get("hint", ""))
    return body


class Control:
    """Answers on the socket, in threads of its own."""

    def __init__(self, path: Path, own: Own, rest: Rest) -> None:
        path.unlink(missing_ok=True)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = default_request_version = "HTTP/1.1"
            timeout = SILENT

            def _ask(self) -> None:
                length = self.headers.get("Content-Length") or "0"
                if "Transfer-Encoding" in self.headers or not length.isdecimal() or int(length) > MOST_BYTES:
                    self.close_connection = True  # what follows would be taken for the next request
                    what = f"the body is longer than {MOST_BYTES:,} bytes, or does not say how long it is"
                    self._say(problem(413, what, "Send less, with a Content-Length.", instance=self.path))
                    return
                body = self.rfile.read(int(length))
                try:
                    wish = json.loads(body) if self.command == "POST" else None
                except ValueError:
                    answer = rest(self.command, self.path)
                    if answer.status != 405:
                        answer = problem(400, "the body is not JSON", "Send JSON, or GET.", instance=self.path)
                    self._say(answer)
                    return
                self._say(self._answer(wish))

            def _answer(self, wish: Any) -> Answer:
                if self.command == "GET" or wish is not None:
                    try:
                        return found(own(self.path, wish))
                    except KeyError:
                        pass
                    except HeliographError as error:
                        return problem(503, error.message, error.hint, instance=self.path)
                return rest(self.command, self.path)

            def __getattr__(self, name: str) -> Any:
                """http.server looks for a do_METHOD; what a method may do is decided behind it."""
                if name.startswith("do_"):
                    return self._ask
                raise AttributeError(name)

            def _say(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", answer.media)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
                """What is no HTTP as we know it."""
                del explain
                self.close_connection = True
                what = problem(400, message or f"this is no request (HTTP {code})", "GET /api/v1/status")
                with suppress(OSError):
                    self._say(what)

            def version_string(self) -> str:
                return "heliograph"

            def address_string(self) -> str:
                return "local"

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: asking is normal."""

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Whoever asked has gone before it was answered."""

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


def listen(path: Path, own: Own, rest: Rest) -> Control | None:
    """None where the socket cannot be made now: metering must not wait for it."""
    try:
        return Control(path, own, rest)
    except OSError:
        return None

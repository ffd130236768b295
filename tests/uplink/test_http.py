"""One exchange: what may have left, what came back, and what of it may be shown."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

import heliograph
from heliograph.core.errors import ConfigError
from heliograph.uplink.gate import Gate
from heliograph.uplink.http import (
    BODY_LIMIT,
    LONGEST_WAIT,
    Answer,
    Exchange,
    Http,
    NotSent,
    Unclear,
    checked,
    clean,
    fault,
    portal,
)
from tests.fakes import FakeClock

BASE = "https://platform.example/api"
NOW = datetime(2026, 5, 2, tzinfo=UTC)


def via(handler: Callable[[httpx.Request], httpx.Response]) -> Http:
    return Http(BASE, transport=httpx.MockTransport(handler))


def answer(response: httpx.Response) -> Answer:
    found = via(lambda _: response).exchange("GET", "/x")
    assert isinstance(found, Answer)
    return found


# Where we connect to


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.example/", "https://api.example"),
        ("https://api.example/api", "https://api.example/api"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/api", "http://[::1]:8080/api"),
        ("http://localhost:1", "http://localhost:1"),
    ],
)
def test_https_and_this_computer_are_taken(given: str, kept: str) -> None:
    assert checked(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        "http://api.example",
        "http://127.evil.example",
        "http://localhost.evil.example",
        "http://192.168.1.2",
        "https://user:S3CR3T@api.example",
        "https://api.example?key=S3CR3T",
        "ftp://api.example",
        "api.example",
        "https://",
        "https://[::1",
        "https://host:notaport",
    ],
)
def test_other_addresses_are_a_fault_of_the_configuration(given: str) -> None:
    with pytest.raises(ConfigError) as told:
        Http(given)
    assert told.value.hint
    assert "S3CR3T" not in str(told.value)


def test_a_missing_authority_file_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certificates cannot be read"):
        Http(BASE, ca=tmp_path / "none.pem").exchange("GET", "/x")


# What leaves


def test_the_request_carries_our_name_the_token_and_exact_bytes() -> None:
    seen: list[httpx.Request] = []

    def platform(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    via(platform).exchange("POST", "/reads/a%2Fb%20c", query={"from": "2026-05-01"}, body=b'{"a":1}', token="tok-1")
    (request,) = seen
    assert request.headers["user-agent"] == f"heliograph/{heliograph.__version__}"
    assert request.headers["authorization"] == "Bearer tok-1"
    assert request.headers["content-type"] == "application/json"
    assert request.url.raw_path == b"/api/reads/a%2Fb%20c?from=2026-05-01"
    assert request.content == b'{"a":1}'


def test_a_redirect_is_not_followed_and_a_cookie_not_carried() -> None:
    seen: list[httpx.Request] = []

    def sign_in(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(302, headers={"Location": "https://sign-in.example/", "Set-Cookie": "id=1; Path=/"})

    http = via(sign_in)
    found = http.exchange("POST", "/x", body=b"{}", token="t"), http.exchange("GET", "/x")
    assert [entry.status for entry in found if isinstance(entry, Answer)] == [302, 302]
    assert {request.url.host for request in seen} == {"platform.example"}
    assert not any("cookie" in request.headers for request in seen)


# What came of it


@pytest.mark.parametrize(
    ("raised", "kind", "rule"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), NotSent, "connect"),
        (httpx.ConnectError("[Errno -2] Name or service not known"), NotSent, "connect"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), NotSent, "connect"),
        (httpx.ConnectTimeout("timed out"), NotSent, "connect"),
        (httpx.PoolTimeout("busy"), NotSent, "connect"),
        (httpx.ProxyError("403 Forbidden"), NotSent, "proxy"),
        (httpx.LocalProtocolError("Illegal header value"), NotSent, "request"),
        (httpx.ReadTimeout("timed out"), Unclear, "timeout"),
        (httpx.WriteTimeout("timed out"), Unclear, "timeout"),
        (httpx.ReadError("[Errno 104] Connection reset by peer"), Unclear, "reset"),
        (httpx.WriteError("[Errno 32] Broken pipe"), Unclear, "reset"),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), Unclear, "reset"),
    ],
)
def test_what_never_left_is_told_apart_from_what_may_have_arrived(
    raised: Exception, kind: type[Exchange], rule: str
) -> None:
    def failing(_: httpx.Request) -> httpx.Response:
        raise raised

    http = via(failing)
    found = http.exchange("POST", "/x", body=b"{}")
    assert isinstance(found, NotSent | Unclear)
    assert (type(found), found.rule) == (kind, rule)
    verdict = fault(found)
    assert verdict.state == ("due" if kind is NotSent else "unclear")
    assert verdict.remedy
    assert verdict.pause_all == (kind is NotSent)
    gate = Gate(2, FakeClock())
    Http(BASE, gate=gate, transport=httpx.MockTransport(failing)).exchange("GET", "/x")
    assert gate.room() == (1.0 if kind is NotSent else 0.5)  # what never left does not use up a quota


@pytest.mark.parametrize(
    ("response", "json", "complete"),
    [
        (httpx.Response(200, content=b'{"a": 0.1}'), {"a": Decimal("0.1")}, True),
        (httpx.Response(200, content=b""), None, True),
        (httpx.Response(200, content=b'{"a": 1'), None, True),
        (httpx.Response(200, content=b"<html>"), None, True),
        (httpx.Response(200, content=b'{"a": NaN}'), None, True),
        (httpx.Response(200, content=b"\xff\xfe"), None, True),
        (httpx.Response(200, content=b"[" * 100_000), None, True),
        (httpx.Response(200, content=b'"' + b"a" * BODY_LIMIT + b'"'), None, False),
        (httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"bomb")), None, False),
    ],
)
def test_a_body_is_exact_json_or_nothing(response: httpx.Response, json: object, complete: bool) -> None:
    found = answer(response)
    assert (found.json, found.complete) == (json, complete)
    assert len(found.body) <= BODY_LIMIT


@pytest.mark.parametrize(
    ("response", "is_portal"),
    [
        (httpx.Response(200, html="<html>Welcome, please sign in</html>"), True),
        (httpx.Response(200, content=b"  <!doctype html>"), True),
        (httpx.Response(302, headers={"Location": "http://portal/"}), True),
        (httpx.Response(511, html="<html>"), True),
        (httpx.Response(200, json={"StatusCode": 200}), False),
        (httpx.Response(200, content=b""), False),
        (httpx.Response(502, html="<html>Bad Gateway</html>"), False),
    ],
)
def test_somebody_in_between_is_recognised(response: httpx.Response, is_portal: bool) -> None:
    verdict = portal(answer(response))
    assert (verdict is not None) == is_portal
    if verdict is not None:
        assert (verdict.state, verdict.pause_all) == ("unclear", True)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("30", timedelta(seconds=30)),
        (" 0 ", timedelta(0)),
        ("Sat, 02 May 2026 00:02:00 GMT", timedelta(minutes=2)),
        ("Fri, 01 May 2026 00:00:00 GMT", timedelta(0)),
        ("99999999", LONGEST_WAIT),
        ("9" * 400, None),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, wait: timedelta | None) -> None:
    assert answer(httpx.Response(429, headers={"Retry-After": header})).retry_after(NOW) == wait


# What may be shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"Data":null,"StatusCode":422,"Message":"Unprocessable","Errors":[]}', "422 Unprocessable"),
        (
            b'{"Message":"No","Errors":[{"Key":"RemoteInvId","Message":"unknown","Messages":["unknown","bad"]}, 3]}',
            "422 No; RemoteInvId; unknown; bad",
        ),
        (b'{"Errors":null,"Message":null}', '422 {"Errors":null,"Message":null}'),
        (b'{"success":false,"message":"Invalid device id"}', "422 Invalid device id"),
        (b'{"message":["a","b"],"error":"Bad Request"}', "422 Bad Request; a; b"),
        (b"<html>\n <h1>Sorry</h1>\x1b[31m", "422 Sorry [31m"),
        (b"", "422"),
        (b"x" * 1000, "422 " + "x" * 299 + "…"),
    ],
)
def test_words_are_one_short_printable_line(body: bytes, words: str) -> None:
    assert answer(httpx.Response(422, content=body)).words() == words


@pytest.mark.parametrize(
    "text",
    [
        "your token tok-CANARY-9 is bad",
        "Authorization: Bearer opaque-CANARY",
        'header "bearer opaque-CANARY", please',
        "eyJhbGciOiJIUzI1NiJ9.eyJDQU5BUlkiOjF9.CANARY is expired",
        '{"AccessToken":"CANARY","x":1}',
        '{"refreshToken" : "CANARY',
        "{'client_secret': 'CANARY one'}",
        "password=CANARY&x=1",
        "ApiKey: CANARY",
        "api-key=CANARY",
        r"you sent p\"w CANARY-5",
        "you sent p%22w%20CANARY-5",
        "x" * 290 + "tok-CANARY-9",
    ],
)
def test_a_secret_is_gone_before_a_text_is_shortened(text: str) -> None:
    shown = clean(text, {"tok-CANARY-9", 'p"w CANARY-5'})
    assert "CANARY" not in shown
    assert "tok-" not in shown


def test_ordinary_words_stay() -> None:
    assert clean("Token revoked. Please log in again.", {"abc"}) == "Token revoked. Please log in again."


def test_an_answer_shows_no_body_in_its_repr() -> None:
    found = via(lambda _: httpx.Response(200, json={"AccessToken": "CANARY"})).exchange("POST", "/x", token="CANARY2")
    assert "CANARY" not in repr(found)


def test_the_command_line_of_the_library_is_not_loaded() -> None:
    """It draws in rich and pygments, a twelfth of the memory the whole daemon may take."""
    program = (
        "import sys; from heliograph.uplink.http import Http, NotSent;"
        "found = Http('http://127.0.0.1:1').exchange('GET', '/');"
        "assert isinstance(found, NotSent), found;"
        "assert 'httpx' in sys.modules;"
        "print([name for name in ('rich', 'pygments', 'click') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Against a real socket


@contextmanager
def peer(serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback that hands each connection to `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed at the end of the test
                    return
                with connection, suppress(OSError):  # a client may leave at any moment
                    serve(context.wrap_socket(connection, server_side=True) if context else connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def whole_request(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b'{"a":1}'):
        chunk = connection.recv(65536)
        if not chunk:
            break
        received += chunk
    return received


def alarm(ready: threading.Event) -> type[threading.Timer]:
    """A deadline that passes when the other side says so, however slow this machine is."""

    class Alarm(threading.Timer):
        def run(self) -> None:
            while not self.finished.is_set():
                if ready.wait(0.005):
                    self.function(*self.args, **self.kwargs)
                    return

    return Alarm


def resetting(connection: socket.socket) -> None:
    whole_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def hanging_up(connection: socket.socket) -> None:
    whole_request(connection)


@pytest.mark.parametrize("serve", [resetting, hanging_up])
def test_a_connection_that_ends_without_an_answer_is_unclear(serve: Callable[[socket.socket], None]) -> None:
    with peer(serve) as port:
        http = Http(f"http://127.0.0.1:{port}")
        found = http.exchange("POST", "/x", body=b'{"a":1}')
        http.close()
    assert isinstance(found, Unclear)
    assert found.rule == "reset"


def test_a_server_that_stays_silent_is_unclear() -> None:
    def silent(connection: socket.socket) -> None:
        whole_request(connection)
        connection.recv(1)  # until the client gives up

    with peer(silent) as port:
        http = Http(f"http://127.0.0.1:{port}", timeout=0.15, timer=alarm(threading.Event()))
        found = http.exchange("POST", "/x", body=b'{"a":1}')
        http.close()
    assert isinstance(found, Unclear)
    assert found.rule == "timeout"


def test_headers_that_drip_for_ever_end_with_the_deadline() -> None:
    ready = threading.Event()

    def dripping(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        connection.settimeout(0.005)
        while True:
            connection.sendall(b"X-More: 1\r\n")
            ready.set()
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return

    with peer(dripping) as port:
        http = Http(f"http://127.0.0.1:{port}", timer=alarm(ready))
        found = http.exchange("POST", "/x", body=b'{"a":1}')
        http.close()
    assert isinstance(found, Unclear)
    assert found.rule == "timeout"


def test_an_answer_that_breaks_off_is_a_status_without_a_body() -> None:
    def cut_off(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"StatusCode"')

    with peer(cut_off) as port:
        http = Http(f"http://127.0.0.1:{port}")
        found = http.exchange("POST", "/x", body=b'{"a":1}')
        http.close()
    assert isinstance(found, Answer)
    assert (found.status, found.complete, found.json) == (200, False, None)


def test_a_body_without_a_length_is_not_whole_because_we_hung_up() -> None:
    """To a client that cut the connection itself, this looks like a regular end."""
    ready = threading.Event()

    def unending(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}")
        ready.set()
        connection.recv(1)

    with peer(unending) as port:
        http = Http(f"http://127.0.0.1:{port}", timer=alarm(ready))
        found = http.exchange("POST", "/x", body=b'{"a":1}')
        http.close()
    assert isinstance(found, Answer | Unclear)  # the deadline may come before or after the headers were read
    assert not isinstance(found, Answer) or (found.complete, found.json) == (False, None)


def test_a_connection_that_comes_too_late_is_not_used() -> None:
    """As with a name service that takes longer than the whole exchange may."""

    class Before(threading.Timer):
        def start(self) -> None:
            self.function(*self.args, **self.kwargs)

    received: list[bytes] = []
    with peer(lambda connection: received.append(connection.recv(1))) as port:
        http = Http(f"http://127.0.0.1:{port}", timer=Before)
        found = http.exchange("POST", "/x", body=b"{}")
        http.close()
    assert isinstance(found, NotSent)
    assert received in ([], [b""])


def answering(connection: socket.socket) -> None:
    while whole_request(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_a_connection_is_kept_for_the_next_request() -> None:
    connections = []

    def counting(connection: socket.socket) -> None:
        connections.append(connection)
        answering(connection)

    with peer(counting) as port:
        http = Http(f"http://127.0.0.1:{port}", timeout=60)
        found = [http.exchange("POST", "/x", body=b'{"a":1}') for _ in range(3)]
        http.close()
    assert [entry.json for entry in found if isinstance(entry, Answer)] == [{}, {}, {}]
    assert len(connections) == 1


def test_nobody_listening_means_that_nothing_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = Http(f"http://127.0.0.1:{port}", timeout=60).exchange("POST", "/x", body=b"{}")
    assert isinstance(found, NotSent)

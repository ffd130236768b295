"""What every uplink promises, whatever its platform: nothing counts as delivered on a stranger's word."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.core.delivery import FOLLOWS, DayRow, Missing, Parcel, ReadBack, Stored, Unknown, Verdict
from heliograph.ports import Uplink
from heliograph.uplink.drec import Drec
from heliograph.uplink.http import Http
from heliograph.uplink.redex import DIALECTS, Redex
from heliograph.uplink.tokens import Secret, StaticToken, TokenSource, drec_login, redex_login

NOW = datetime(2026, 5, 20, tzinfo=UTC)
FIRST = date(2026, 5, 1)


def redex(http: Http, tokens: TokenSource) -> Uplink:
    return Redex("redex", http, DIALECTS["grouped-2024"], tokens, lambda: NOW)


def legacy(http: Http, tokens: TokenSource) -> Uplink:
    return Redex("redex", http, DIALECTS["legacy"], tokens, lambda: NOW)


def delta(http: Http, tokens: TokenSource) -> Uplink:
    return Drec("drec", http, "Delta", tokens, lambda: NOW, sleep=lambda _: None)


def aggregate(http: Http, tokens: TokenSource) -> Uplink:
    return Drec("drec", http, "Aggregate", tokens, lambda: NOW, sleep=lambda _: None)


Make = Callable[[Http, TokenSource], Uplink]
EVERY = pytest.mark.parametrize("make", [redex, legacy, delta, aggregate])


def secret(text: str) -> Secret:
    return Secret(env="X", environ={"X": text})


def rows(days: int = 3, meter: str = "roof", first: int = 1, **more: Any) -> list[DayRow]:
    """Days of one meter; the first produced nothing, so that an uplink that merges has something to merge."""
    at = [datetime(2026, 4, 30, 16, tzinfo=UTC) + timedelta(days=n) for n in range(days + 1)]
    wh = [100 * n for n in range(days)]
    return [
        DayRow(
            first + n,
            meter,
            f"SG-{meter}",
            FIRST + timedelta(days=n),
            at[n],
            at[n + 1],
            wh[n],
            sum(wh[: n + 1]),
            **more,
        )
        for n in range(days)
    ]


def via(make: Make, handler: Callable[[httpx.Request], httpx.Response]) -> Uplink:
    return make(
        Http("https://platform.example", transport=httpx.MockTransport(handler)), StaticToken(secret("token-1"))
    )


def sent(uplink: Uplink) -> tuple[Parcel, Mapping[int, Verdict]]:
    parcel = uplink.pack(rows())
    assert parcel is not None
    return parcel, uplink.send(parcel)


# Strangers


@dataclass(frozen=True)
class Stranger:
    """An answer that did not come from the platform, or not as the platform would give it."""

    name: str
    answer: Callable[[httpx.Request], httpx.Response]

    def __str__(self) -> str:
        return self.name


def raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


def always(status: int, content: bytes, kind: str = "") -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, content=content, headers={"Content-Type": kind} if kind else {})


UNCLEAR = [
    Stranger("captive portal", always(200, b"<html><body>Welcome! Please sign in.</body></html>", "text/html")),
    Stranger("captive portal that says JSON", always(200, b"<!doctype html>", "application/json")),
    Stranger("empty 200", always(200, b"")),
    Stranger("empty 204", always(204, b"")),
    Stranger("truncated JSON", always(200, b'{"Data":{"ProcessId":12},"StatusCode":200,"Mess', "application/json")),
    Stranger("truncated 201", always(201, b'{"Data":{"ProcessId":12},"StatusCode":201', "application/json")),
    Stranger("somebody else's JSON", always(200, b'{"status":"ok"}', "application/json")),
    Stranger("a list", always(200, b"[1]", "application/json")),
    Stranger("a text", always(200, b'"OK"', "application/json")),
    Stranger("a refusal in a success", always(200, b'{"success":false,"message":"no","StatusCode":409}')),
    Stranger("too long", always(200, b"x" * 300_000)),
    Stranger("redirect", lambda _: httpx.Response(302, headers={"Location": "https://portal.example/"})),
    Stranger("redirect that keeps the method", lambda _: httpx.Response(308, headers={"Location": "/elsewhere"})),
    Stranger("500", always(500, b'{"statusCode":500,"message":"Internal server error"}')),
    Stranger("502 of a proxy", always(502, b"<html>Bad Gateway</html>", "text/html")),
    Stranger("503", always(503, b"")),
    Stranger("504", always(504, b"")),
    Stranger("511", always(511, b"<html>", "text/html")),
    Stranger("time-out after the body", raising(httpx.ReadTimeout("timed out"))),
    Stranger("reset", raising(httpx.ReadError("[Errno 104] Connection reset by peer"))),
    Stranger("hung up", raising(httpx.RemoteProtocolError("Server disconnected without sending a response."))),
]
NEVER_LEFT = [
    Stranger("refused", raising(httpx.ConnectError("[Errno 111] Connection refused"))),
    Stranger("unknown name", raising(httpx.ConnectError("[Errno -2] Name or service not known"))),
    Stranger("no route", raising(httpx.ConnectTimeout("timed out"))),
]


@EVERY
@pytest.mark.parametrize("stranger", UNCLEAR, ids=str)
def test_a_strangers_answer_is_read_back_and_never_counts(make: Make, stranger: Stranger) -> None:
    parcel, verdicts = sent(via(make, stranger.answer))
    assert set(verdicts) == {row.id for row in parcel.rows}
    assert {verdict.state for verdict in verdicts.values()} == {"unclear"}


@EVERY
@pytest.mark.parametrize("stranger", NEVER_LEFT, ids=str)
def test_what_never_left_is_due_and_everything_waits(make: Make, stranger: Stranger) -> None:
    _, verdicts = sent(via(make, stranger.answer))
    assert {(verdict.state, verdict.pause_all) for verdict in verdicts.values()} == {("due", True)}


@EVERY
@pytest.mark.parametrize("stranger", UNCLEAR + NEVER_LEFT, ids=str)
def test_a_strangers_read_back_concludes_nothing(make: Make, stranger: Stranger) -> None:
    for state in ("unclear", "accepted"):
        found = via(make, stranger.answer).ask(rows(state=state))
        assert found
        assert {entry.verdict.state for entry in found.values() if isinstance(entry, Unknown)} == {state}
        assert not any(isinstance(entry, Stored | Missing) for entry in found.values())


@EVERY
@pytest.mark.parametrize("stranger", UNCLEAR + NEVER_LEFT, ids=str)
def test_a_strangers_follow_up_concludes_nothing(make: Make, stranger: Stranger) -> None:
    told = via(make, stranger.answer).follow(rows(state="accepted", process_id="12"))
    assert {verdict.state for verdict in told.values()} <= {"accepted"}


def test_the_same_days_are_accepted_when_the_platform_itself_answers() -> None:
    """The control: with these answers the tests above would fail."""
    envelope = always(200, b'{"Data":{"ProcessId":12},"StatusCode":200,"Errors":[],"Meta":null,"Message":"Success"}')
    for make, answer, state in (
        (redex, envelope, "accepted"),
        (legacy, envelope, "accepted"),
        (delta, always(201, b""), "accepted"),
        (aggregate, always(201, b""), "unclear"),  # a counter's first value is looked up, and is not there
    ):
        _, verdicts = sent(via(make, answer))
        assert {verdict.state for verdict in verdicts.values()} == {state}
        assert make != aggregate or {verdict.rule for verdict in verdicts.values()} == {"S201"}


# Every status there is


@EVERY
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"success":false,"message":"x"}', b"<html>", b'{"a'])
def test_each_row_gets_one_verdict_that_may_follow_whatever_the_status(make: Make, body: bytes) -> None:
    for status in (*range(200, 209), *range(300, 309), *range(400, 432), 451, *range(500, 512), 599):
        parcel, verdicts = sent(via(make, always(status, body)))
        assert set(verdicts) == {row.id for row in parcel.rows}, status
        for verdict in verdicts.values():
            assert verdict.state in FOLLOWS["unclear"] | {"unclear"}, status
            assert verdict.state != "confirmed", status
            assert verdict.rule, status
            assert verdict.state == "accepted" or verdict.remedy, status


NAMES = [
    *("Data", "StatusCode", "Errors", "Meta", "Message", "Key", "Messages", "ProcessId", "Id", "Status", "Timestamp"),
    *("RemoteInvId", "PeriodProductionInKWh", "AccumulatedEnergyInKWh", "TotalPage", "TotalItems", "CurrentPage"),
    *("message", "statusCode", "error", "success", "ongoing", "historyread", "enddate", "value", "numberOfPages"),
]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 600),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["", "2026-05-01", "2026-05-01T16:00:00Z", "9999-99-99", "Success", "12", "0.123", "Failed, MaxEnergy: 0"]
    ),
)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=12,
)


@EVERY
@settings(max_examples=150, deadline=None)
@given(status=st.sampled_from([200, 200, 200, 201, 400, 401, 404, 409, 422, 500]), body=JSON)
def test_no_json_whatsoever_raises(make: Make, status: int, body: Any) -> None:
    content = json.dumps(body).encode()
    uplink = via(make, always(status, content))
    parcel, verdicts = sent(uplink)
    assert set(verdicts) == {row.id for row in parcel.rows}
    found = uplink.ask(rows(state="unclear"))
    assert all(isinstance(entry, Stored | Missing | Unknown) for entry in found.values())
    assert all(isinstance(entry, Verdict) for entry in uplink.follow(rows(process_id="12")).values())


# Packing


@EVERY
def test_packing_is_pure_and_what_is_packed_was_given(make: Make) -> None:
    uplink = via(make, always(500, b""))
    days = rows() + rows(2, "barn", 11)
    first, second = uplink.pack(days), uplink.pack(list(days))
    assert first is not None
    assert first == second
    ids = [row.id for row in first.rows]
    assert set(first.rows) <= set(days)
    assert len(ids) == len(set(ids))
    order = [row.day for row in first.rows if row.meter == "roof"]
    assert order == sorted(order)
    assert first.path.startswith("/")
    json.loads(first.body)


@EVERY
def test_nothing_is_no_parcel_and_no_question(make: Make) -> None:
    uplink = via(make, raising(AssertionError("nothing should have been sent")))
    assert uplink.pack([]) is None
    assert uplink.ask([]) == {}


# Secrets


def login_redex(http: Http) -> TokenSource:
    return redex_login(http, secret("CANARY-key"), secret("CANARY-client"), secret("CANARY-secret"))


def login_drec(http: Http) -> TokenSource:
    return drec_login(http, secret("CANARY-user"), secret('CANARY-p"ss w'))


def static(http: Http) -> TokenSource:
    del http
    return StaticToken(secret("CANARY-token"))


class Echo:
    """A platform that gives tokens for a while, and otherwise says back everything that was ever said."""

    def __init__(self, status: int, form: str, logins: int) -> None:
        self.status, self.form, self.logins = status, form, logins
        self.heard: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.heard += [*(f"{name}: {text}" for name, text in request.headers.items()), request.content.decode()]
        redex = "/connect/token" in request.url.path
        if not redex and "/auth/login" not in request.url.path:
            return self.say(self.status)
        self.logins -= 1
        if self.logins < 0:
            return self.say(401)
        given = {"AccessToken": "CANARY-token", "RefreshToken": "CANARY-refresh", "ExpiresIn": 60}
        answer = {"Data": given, "StatusCode": 200} if redex else {"accessToken": "CANARY-token"}
        self.heard += [json.dumps(answer), "CANARY-token", *(["CANARY-refresh"] if redex else [])]
        return httpx.Response(200, json=answer)

    def say(self, status: int) -> httpx.Response:
        everything = "\n".join(self.heard)
        if self.form == "text":
            return httpx.Response(status, text=everything)
        if self.form == "values":
            return httpx.Response(status, json={"StatusCode": status, "Errors": [{"Key": text} for text in self.heard]})
        return httpx.Response(status, json={"statusCode": status, "message": everything, "Message": everything})


def texts(found: Mapping[int, Verdict | ReadBack]) -> Iterator[str]:
    for entry in found.values():
        yield repr(entry)


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (redex, static),
        (redex, login_redex),
        (legacy, login_redex),
        (delta, static),
        (delta, login_drec),
        (aggregate, login_drec),
    ],
)
@pytest.mark.parametrize("form", ["text", "json", "values"])
@pytest.mark.parametrize("logins", [0, 1, 99])
def test_no_secret_shows_in_any_verdict_error_or_repr(
    make: Make, source: Callable[[Http], TokenSource], form: str, logins: int
) -> None:
    for status in (200, 201, 302, 400, 401, 403, 404, 409, 413, 422, 429, 500, 503):
        echo = Echo(status, form, logins)
        http = Http("https://platform.example", transport=httpx.MockTransport(echo))
        tokens = source(http)
        uplink = make(http, tokens)
        shown = [repr(uplink), repr(tokens), repr(http)]
        for _ in range(2):
            parcel, verdicts = sent(uplink)
            shown += [*texts(verdicts), *texts(uplink.ask(rows())), repr(parcel), parcel.body.decode()]
            shown += texts(uplink.follow(rows(process_id="12")))
        assert not [text for text in shown if "CANARY" in text], status
        assert any("CANARY" in text for text in echo.heard)  # the control: there was something to hide


# Against a real socket


@contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed at the end of the test
                    return
                with connection, suppress(OSError):  # a client may leave at any moment
                    serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def whole_request(connection: socket.socket) -> None:
    received = b""
    while not (b"\r\n\r\n" in received and complete(received)):
        chunk = connection.recv(65536)
        if not chunk:
            return
        received += chunk


def complete(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(body) >= sum(int(line[15:]) for line in lengths)


class Patient(threading.Timer):
    """A deadline that never passes by itself: the time-out between two bytes is what ends the wait here."""

    def start(self) -> None:
        """Nothing: the connection may take as long as this machine needs."""


def never_answering(connection: socket.socket) -> None:
    whole_request(connection)
    connection.recv(1)  # until the client gives up


def resetting(connection: socket.socket) -> None:
    whole_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@EVERY
@pytest.mark.parametrize("serve", [never_answering, resetting])
def test_a_body_that_was_taken_and_not_answered_is_unclear(make: Make, serve: Callable[[socket.socket], None]) -> None:
    with peer(serve) as port:
        http = Http(f"http://127.0.0.1:{port}", timeout=0.1, timer=Patient)
        uplink = make(http, StaticToken(secret("token-1")))
        _, verdicts = sent(uplink)
        found = uplink.ask(rows())
        uplink.close()
    assert {verdict.state for verdict in verdicts.values()} == {"unclear"}
    assert {entry.verdict.state for entry in found.values() if isinstance(entry, Unknown)} == {"unclear"}
    assert all(isinstance(entry, Unknown) for entry in found.values())


@EVERY
def test_a_missing_token_file_leaves_the_days_due_and_says_where_to_put_it(make: Make, tmp_path: Path) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201)

    http = Http("https://platform.example", transport=httpx.MockTransport(answer))
    file = tmp_path / "token"
    uplink = make(http, StaticToken(Secret(file=file)))
    _, verdicts = sent(uplink)
    (verdict,) = set(verdicts.values())
    assert (verdict.state, verdict.rule, verdict.pause_all) == ("due", "config", True)
    assert str(file) in verdict.text
    assert verdict.remedy
    assert seen == []
    file.write_text("token-2")  # without a restart
    assert {verdict.rule for verdict in sent(uplink)[1].values()} != {"config"}


@EVERY
def test_the_platforms_clock_is_asked_for_without_a_token(make: Make) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(404, headers={"Date": "Wed, 20 May 2026 00:00:07 GMT"})

    uplink = via(make, answer)
    assert uplink.date() == NOW + timedelta(seconds=7)
    assert len(seen) == 1 and "authorization" not in seen[0].headers
    assert via(make, raising(httpx.ConnectError("no route"))).date() is None

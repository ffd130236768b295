"""The stand-in platforms over real sockets: connections that break, a platform that is away, its own page, its file."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from heliograph.core.errors import ConfigError, UsageError
from heliograph.rehearsal.sandbox import Sandbox

START = datetime(2026, 3, 15, 4, 0, tzinfo=UTC)
SEND = "/public/v2/generation-datas"
DREC = "/api/meter-reads/new/roof"
HEADERS = {"Authorization": "Bearer t0", "Content-Type": "application/json"}
LIMIT = 20.0  # seconds; only ever used up where something is broken


class Clock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at


def redex_day(day: str, period: str = "1.000", total: str = "1.000") -> bytes:
    record = {"Timestamp": day, "PeriodProductionInKWh": period, "AccumulatedEnergyInKWh": total}
    return json.dumps({"RemoteInvId": "roof", "Data": [record]}).encode()


def drec_read(end: str, value: int = 1000) -> bytes:
    return json.dumps({"type": "Delta", "unit": "Wh", "reads": [{"endtimestamp": end, "value": value}]}).encode()


def connect(sandbox: Sandbox) -> http.client.HTTPConnection:
    place = urlsplit(sandbox.url)
    assert place.hostname and place.port
    return http.client.HTTPConnection(place.hostname, place.port, timeout=LIMIT)


def ask(
    sandbox: Sandbox, method: str, target: str, body: bytes | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = connect(sandbox)
    try:
        connection.request(method, target, body, HEADERS)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock.now, token="t0", processing_delay=timedelta(0)) as sandbox:
        yield sandbox


def test_both_platforms_live_on_one_port_and_keep_the_connection(sandbox: Sandbox) -> None:
    connection = connect(sandbox)
    connection.request("POST", SEND, redex_day("2026-03-10"), HEADERS)
    first = connection.getresponse()
    assert (first.status, json.loads(first.read())["StatusCode"]) == (201, 201)
    own_port = connection.sock.getsockname()[1]
    connection.request("POST", DREC, drec_read("2026-03-10T00:00:00Z"), HEADERS)
    second = connection.getresponse()
    assert (second.status, second.read(), second.headers["Content-Length"]) == (201, b"", "0")
    assert connection.sock.getsockname()[1] == own_port
    connection.close()
    assert sandbox.total_wh("redex", "roof") == sandbox.total_wh("drec", "roof") == 1000
    assert sandbox.violations == []


def test_the_date_header_tells_the_time_of_the_sandbox(sandbox: Sandbox) -> None:
    assert ask(sandbox, "GET", "/_sandbox/state")[2]["Date"] == "Sun, 15 Mar 2026 04:00:00 GMT"


@pytest.mark.parametrize(("kind", "stored"), [("drop-before", 0), ("drop-after", 1000)])
def test_a_dropped_connection_gives_no_answer(sandbox: Sandbox, kind: str, stored: int) -> None:
    sandbox.fault(kind)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(sandbox, "POST", SEND, redex_day("2026-03-10"))
    assert sandbox.total_wh("redex", "roof") == stored


def test_drop_before_closes_although_the_body_never_comes(sandbox: Sandbox) -> None:
    sandbox.fault("drop-before")
    with socket.create_connection(("127.0.0.1", urlsplit(sandbox.url).port or 0), timeout=LIMIT) as raw:
        raw.sendall(f"POST {SEND} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        assert raw.recv(1) == b""


def test_a_truncated_answer_ends_in_its_middle(sandbox: Sandbox) -> None:
    sandbox.fault("truncate")
    with pytest.raises(http.client.IncompleteRead):
        ask(sandbox, "POST", SEND, redex_day("2026-03-10"))
    sandbox.fault("truncate")
    body = drec_read("2026-03-10T00:00:00Z")
    head = f"POST {DREC} HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with socket.create_connection(("127.0.0.1", urlsplit(sandbox.url).port or 0), timeout=LIMIT) as raw:
        raw.sendall(head.encode() + b"\r\n" + body)
        got = b""
        while piece := raw.recv(4096):
            got += piece
    assert got.startswith(b"HTTP/1.1 201") and b"\r\n\r\n" not in got, "an answer without a body loses half its head"
    assert sandbox.total_wh("redex", "roof") == sandbox.total_wh("drec", "roof") == 1000


def test_a_slow_answer_waits_in_the_time_of_the_sandbox(clock: Clock) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    with Sandbox(clock.now, token="t0", wait=wait) as sandbox:
        sandbox.fault("slow")
        assert ask(sandbox, "POST", SEND, redex_day("2026-03-10"))[0] == 201
    assert waited == [90]


def test_a_request_without_reads_hangs_until_the_client_gives_up(clock: Clock) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    gone = pytest.raises((http.client.RemoteDisconnected, ConnectionError))
    with Sandbox(clock.now, token="t0", wait=wait) as sandbox, gone:
        ask(sandbox, "POST", DREC, b'{"type":"Delta","unit":"Wh","reads":[]}')
    assert waited == [600]


@pytest.mark.parametrize("length", ["Content-Length: x", "Transfer-Encoding: chunked", "Content-Length: 99999999999"])
def test_a_body_of_unknown_or_absurd_length_is_not_read(sandbox: Sandbox, length: str) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(sandbox.url).port or 0), timeout=LIMIT) as raw:
        raw.sendall(f"POST {SEND} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        assert raw.recv(1) == b""


# -- in flight -----------------------------------------------------------------------------------------------------


class Gate:
    """A wait that lasts until the test says so."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def wait(self, _: float) -> bool:
        self.entered.set()
        return not self.open.wait(LIMIT)


def test_a_second_request_in_flight_for_a_device_is_noted(clock: Clock) -> None:
    gate = Gate()
    with Sandbox(clock.now, token="t0", wait=gate.wait) as sandbox:
        sandbox.fault("slow")
        first = connect(sandbox)
        first.request("POST", DREC, drec_read("2026-03-10T00:00:00Z"), HEADERS)
        assert gate.entered.wait(LIMIT)
        assert ask(sandbox, "POST", DREC.upper().replace("/API/METER-READS/NEW", "/api/meter-reads/new"), b"{}")[0]
        assert ask(sandbox, "POST", DREC.replace("roof", "shed"), drec_read("2026-03-10T00:00:00Z"))[0] == 201
        gate.open.set()
        assert first.getresponse().status == 201
        first.close()
        assert [violation.rule for violation in sandbox.violations] == ["in-flight", "T9"]


def test_a_request_whose_client_gave_up_is_not_in_flight(clock: Clock) -> None:
    gate = Gate()
    with Sandbox(clock.now, token="t0", wait=gate.wait) as sandbox:
        sandbox.fault("slow")
        first = connect(sandbox)
        first.request("POST", DREC, drec_read("2026-03-10T00:00:00Z"), HEADERS)
        assert gate.entered.wait(LIMIT)
        first.close()
        assert ask(sandbox, "POST", DREC, drec_read("2026-03-11T00:00:00Z"))[0] == 201
        gate.open.set()
        assert sandbox.violations == []


# -- away ----------------------------------------------------------------------------------------------------------


def test_while_away_connecting_is_refused_and_open_connections_are_cut(sandbox: Sandbox) -> None:
    kept = connect(sandbox)
    kept.request("GET", "/_sandbox/state")
    kept.getresponse().read()
    url = sandbox.url
    for _ in range(2):
        sandbox.away = True
        assert sandbox.away
        with pytest.raises(ConnectionRefusedError):
            ask(sandbox, "POST", SEND, redex_day("2026-03-10"))
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            kept.request("GET", "/_sandbox/state")
            kept.getresponse()
        kept.close()
        sandbox.away = False
        assert sandbox.url == url
        kept = connect(sandbox)
        kept.request("GET", "/_sandbox/state")
        kept.getresponse().read()
    kept.close()
    assert ask(sandbox, "POST", SEND, redex_day("2026-03-10"))[0] == 201
    assert sandbox.requests == {"redex.send": 1}


def test_a_sandbox_may_start_away(clock: Clock) -> None:
    sandbox = Sandbox(clock.now, token="t0")
    sandbox.away = True
    with sandbox:
        with pytest.raises(ConnectionRefusedError):
            ask(sandbox, "GET", "/_sandbox/state")
        sandbox.away = False
        assert ask(sandbox, "GET", "/_sandbox/state")[0] == 200


def test_a_sandbox_that_was_never_started_drops_while_away(clock: Clock) -> None:
    sandbox = Sandbox(clock.now, token="t0")
    sandbox.away = True
    assert sandbox.handle("POST", SEND, "", HEADERS, redex_day("2026-03-10")).delivery == "drop"


def test_a_port_in_use_is_explained(sandbox: Sandbox) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1"):
        Sandbox(lambda: START, port=urlsplit(sandbox.url).port or 0).start()


# -- its own page --------------------------------------------------------------------------------------------------


def command(sandbox: Sandbox, wish: object) -> tuple[int, Any]:
    status, body, _ = ask(sandbox, "POST", "/_sandbox/faults", json.dumps(wish).encode())
    return status, json.loads(body)


def test_the_state_tells_what_is_stored_asked_and_broken(sandbox: Sandbox) -> None:
    ask(sandbox, "POST", SEND, redex_day("2026-03-10", "1.000", "3.000"))
    ask(sandbox, "POST", DREC, drec_read("2026-03-10T00:00:00Z"))
    ask(sandbox, "POST", DREC, drec_read("2026-03-10T00:00:00Z"))
    state = json.loads(ask(sandbox, "GET", "/_sandbox/state")[1])
    assert state["redex"]["devices"] == {"roof": {"2026-03-10": {"period_wh": 1000, "total_wh": 3000}}}
    assert state["drec"]["devices"]["roof"]["reads"] == {
        "2026-03-10T00:00:00.000Z": {"period_wh": 1000, "total_wh": 1000}
    }
    assert state["requests"] == {"drec.send": 2, "redex.send": 1}
    assert [(violation["platform"], violation["rule"]) for violation in state["violations"]] == [("drec", "L3")]
    assert "t0" not in json.dumps(state)


def test_faults_are_switched_while_it_runs(sandbox: Sandbox) -> None:
    assert command(sandbox, {"faults": ["html=1"]}) == (200, {"faults": ["html=1"], "away": False})
    assert ask(sandbox, "POST", SEND, redex_day("2026-03-10"))[0] == 200
    assert command(sandbox, {"add": ["500-before@redex.send=next:1"]})[0] == 200
    assert ask(sandbox, "POST", SEND, redex_day("2026-03-10"))[0] == 500
    assert command(sandbox, {"faults": []})[1]["faults"] == []
    assert ask(sandbox, "POST", SEND, redex_day("2026-03-10"))[0] == 201


@pytest.mark.parametrize(
    "wish",
    [
        {"fault": ["html=1"]},
        {"faults": "html=1"},
        {"faults": [1]},
        {"faults": ["htlm=1"]},
        {"away": True},
        {"away": "long"},
        [],
    ],
)
def test_a_wrong_wish_changes_nothing_and_is_explained(sandbox: Sandbox, wish: object) -> None:
    sandbox.faults = {"401": 0.5}
    status, answer = command(sandbox, wish)
    assert status == 400
    assert answer["error"] and "hint" in answer
    assert [str(fault) for fault in sandbox.faults] == ["401=0.5"]
    assert not sandbox.away


def test_it_goes_away_for_a_while_and_comes_back_by_itself(clock: Clock) -> None:
    """One sandbox hour is a hundredth of a real second here."""
    with Sandbox(clock.now, token="t0", rate=360_000) as sandbox:
        back = threading.Event()
        really_return = sandbox._return

        def noticed() -> None:
            really_return()
            back.set()

        sandbox._return = noticed  # type: ignore[method-assign]  # the only way to know without polling
        assert command(sandbox, {"away": "1h"})[0] == 200
        assert back.wait(LIMIT)
        assert ask(sandbox, "GET", "/_sandbox/state")[0] == 200


def test_tokens_are_revoked_by_wish(sandbox: Sandbox) -> None:
    token = sandbox.drec.issue()
    assert command(sandbox, {"revoke": True})[0] == 200
    headers = {"Authorization": f"Bearer {token}"}
    assert sandbox.handle("GET", "/api/device/my", "", headers).status == 401


def test_a_redirect_leads_to_the_page_of_a_captive_portal(sandbox: Sandbox) -> None:
    sandbox.fault("redirect")
    status, _, headers = ask(sandbox, "POST", SEND, redex_day("2026-03-10"))
    assert status == 302
    assert ask(sandbox, "GET", headers["Location"])[0] == 200


def test_other_paths_do_not_exist(sandbox: Sandbox) -> None:
    assert ask(sandbox, "GET", "/")[0] == 404
    assert ask(sandbox, "GET", "/_sandbox/nothing")[0] == 404


def test_a_line_is_logged_for_each_request_without_its_token(clock: Clock) -> None:
    lines: list[str] = []
    sandbox = Sandbox(clock.now, token="t0-secret", log=lines.append)
    sandbox.fault("html")
    sandbox.handle("POST", SEND, "", {"Authorization": "Bearer t0-secret"}, b"{}")
    assert lines == ["2026-03-15T04:00:00.000Z redex.send POST /public/v2/generation-datas 200 (html)"]


# -- the file that survives a restart ------------------------------------------------------------------------------


def test_what_was_accepted_survives_a_kill(clock: Clock, tmp_path: Path) -> None:
    keep = tmp_path / "sandbox.jsonl"
    first = Sandbox(clock.now, token="t0", keep=keep, processing_delay=timedelta(seconds=5))
    assert first.handle("POST", SEND, "", HEADERS, redex_day("2026-03-10")).status == 201
    for end in ("2026-03-10T00:00:00Z", "2026-03-11T00:00:00Z"):
        assert first.handle("POST", DREC, "", HEADERS, drec_read(end)).status == 201
    with keep.open("a") as file:
        file.write('{"redex": {"id": 2074')  # killed while writing: never stopped, never answered
    again = Sandbox(clock.now, token="t0", keep=keep, processing_delay=timedelta(seconds=5))
    assert again.total_wh("redex", "roof") == 0, "still in processing"
    clock.at += timedelta(seconds=5)
    assert again.total_wh("redex", "roof") == 1000
    assert again.stored_wh("drec", "roof") == first.stored_wh("drec", "roof")
    assert again.handle("POST", SEND, "", HEADERS, redex_day("2026-03-10")).status == 422
    assert again.handle("POST", DREC, "", HEADERS, drec_read("2026-03-11T00:00:00Z")).status == 409
    assert again.handle("POST", SEND, "", HEADERS, redex_day("2026-03-11", "1.000", "2.000")).status == 201
    clock.at += timedelta(seconds=5)
    assert Sandbox(clock.now, keep=keep).state()["redex"] == again.state()["redex"]


def test_a_file_that_is_something_else_is_named_with_its_line(clock: Clock, tmp_path: Path) -> None:
    keep = tmp_path / "notes.txt"
    keep.write_text('{"redex": {"id": 1}}\n')
    with pytest.raises(ConfigError, match=r"notes\.txt:1: this is not what a sandbox keeps"):
        Sandbox(clock.now, keep=keep)
    assert keep.read_text() == '{"redex": {"id": 1}}\n'


def test_a_place_where_nothing_can_be_kept_is_told(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot keep"):
        Sandbox(clock.now, keep=tmp_path / "missing" / "file")

"""The REST over HTTP as others meet it: a real server, honest and hostile clients, and schemathesis with the document.

HELIOGRAPH_SEED repeats schemathesis' run, HELIOGRAPH_EXAMPLES makes it a longer one.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from heliograph.cli import heliograph
from heliograph.core.answer import Answer, found
from heliograph.core.errors import ConfigError
from heliograph.web import server
from heliograph.web.api import ROUTES
from heliograph.web.server import Web
from tests.fakes import FakeClock
from tests.web.gateway import SECRET, Gateway, gateway, still

TOKEN = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
LIMIT = 30.0
SEED = int(os.environ.get("HELIOGRAPH_SEED") or random.randrange(1 << 32))
EXAMPLES = int(os.environ.get("HELIOGRAPH_EXAMPLES", "5"))


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def serving(
    answer: Callable[[str, str], Answer], token: Callable[[], str] = lambda: TOKEN, port: int = 0
) -> Iterator[Web]:
    web = Web("127.0.0.1", port, token, answer, FakeClock())
    web.start()
    try:
        until(lambda: web.state().up or web.state().trouble, "it neither listens nor says why not")
        yield web
    finally:
        web.close()


@pytest.fixture(scope="module")
def roof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("http")) as made:
        made.daemon.live.at["new"] = made.clock.now()  # so that it is ready
        yield made


@pytest.fixture(scope="module")
def web(roof: Gateway) -> Iterator[Web]:
    with serving(roof.daemon.rest) as made:
        yield made


def port(web: Web) -> int:
    return int(web.where.rpartition(":")[2])


def ask(
    web: Web, target: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port(web), timeout=LIMIT)
    try:
        connection.request(method, target, body, {"Authorization": f"Bearer {TOKEN}", **headers})
        response = connection.getresponse()
        content = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(content or b"null")
    finally:
        connection.close()


def connected(web: Web, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port(web)), timeout=LIMIT)
    made.sendall(sent)
    return made


def rest_of(one: socket.socket) -> bytes:
    """Until the other side ends it, one way or the other."""
    content = b""
    try:
        while piece := one.recv(65536):
            content += piece
    except ConnectionError:
        pass
    return content


# -- the document -----------------------------------------------------------------------------------------------------


def narrowed(value: Any) -> Any:
    """The document with names and days that are there, or nearly: by chance nobody finds those."""
    if isinstance(value, list):
        return [narrowed(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("in") in ("path", "query"):
        schema = value["schema"]
        if value["name"] in ("id", "meter", "uplink"):
            names = ["redex", "drec"] if value["name"] == "uplink" else ["roof", "barn", "new"]
            schema = {"type": "string", "enum": [*names, "nobody"]}
        elif {"type": "string", "format": "date"} in schema.get("anyOf", ()):
            days = [f"2026-03-{number}" for number in range(13, 23)]
            schema = {"anyOf": [{"type": "string", "enum": days}, *schema["anyOf"]]}
        return {**value, "schema": schema}
    return {key: narrowed(one) for key, one in value.items()}


def schemathesis(web: Web, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "openapi.json").write_text(json.dumps(narrowed(ask(web, "/openapi.json")[2])))
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json")),
            *("--url", f"http://127.0.0.1:{port(web)}", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--checks", "all", "--no-color", "--seed", str(SEED), "--max-examples", str(EXAMPLES), *more),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
    )


def test_schemathesis_finds_nothing_that_the_document_does_not_say(web: Web, tmp_path: Path) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    done = schemathesis(web, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ROUTES)} selected / {len(ROUTES)} total" in done.stdout


def test_schemathesis_finds_a_wrong_type(
    roof: Gateway, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = roof.store.journal.__class__.page
    monkeypatch.setattr(
        roof.store.journal.__class__,
        "page",
        lambda *given: [{**row, "id": str(row["id"])} for row in page(*given)],
    )
    done = schemathesis(web, tmp_path, "--phases", "fuzzing", "--include-path", "/api/v1/events", "--no-shrink")
    assert done.returncode == 1 and 'is not of type "integer"' in done.stdout, done.stdout + done.stderr


# -- the token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0", f"Basic {TOKEN}", TOKEN, "Bearer ä"],
)
def test_without_the_token_nothing_is_told(web: Web, given: str) -> None:
    for target in ("/api/v1/status", "/openapi.json", "/nothing", "/api/v1/days?limit=0"):
        status, headers, value = ask(web, target, Authorization=given)
        assert (status, value["status"], headers["www-authenticate"]) == (401, 401, 'Bearer realm="heliograph"')
        assert "Authorization: Bearer" in value["hint"]


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
def test_with_the_token_it_is_the_same_as_on_the_socket(roof: Gateway, web: Web, given: str) -> None:
    for target in ("/api/v1/status", "/api/v1/days?limit=3", "/api/v1/meters/roof"):
        status, _, value = ask(web, target, Authorization=given)
        assert (status, still(value)) == (200, still(roof.get(target)))


def test_whether_it_lives_and_is_ready_anybody_may_ask_and_learns_nothing_else(roof: Gateway, web: Web) -> None:
    assert ask(web, "/healthz", Authorization="")[::2] == (200, {"alive": True})
    assert ask(web, "/readyz", Authorization="")[::2] == (200, {"ready": True})
    roof.clock.synchronised = False
    at = roof.daemon.live.at.pop("barn")
    try:
        status, _, value = ask(web, "/readyz", Authorization="")
    finally:
        roof.clock.synchronised = True
        roof.daemon.live.at["barn"] = at
    assert status == 503
    assert value["reasons"] == ["the clock is not synchronised", "1 of 3 meters not read lately"]
    assert not any(word in json.dumps(value) for word in ("barn", "sg-0042", "STR", str(roof.folder)))


def test_a_new_token_counts_at_once_and_a_lost_one_is_told(roof: Gateway, tmp_path: Path) -> None:
    from heliograph.uplink.tokens import Secret

    file = tmp_path / "web.token"
    file.write_text(TOKEN)
    with serving(roof.daemon.rest, Secret(file=file).read) as web:
        assert ask(web, "/api/v1/status")[0] == 200
        file.write_text("another-token-of-some-length\n")
        assert ask(web, "/api/v1/status")[0] == 401
        assert ask(web, "/api/v1/status", Authorization="Bearer another-token-of-some-length")[0] == 200
        file.unlink()
        status, _, value = ask(web, "/api/v1/status")
        assert status == 503 and "token cannot be read" in value["detail"] and str(file) not in json.dumps(value)
        assert ask(web, "/healthz", Authorization="")[0] == 200


# -- what is not answered here ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "target",
    [
        *("/api/v1/frames", "/api/v1/sign", "/api/v1/backup", "/api/v1/buses/lan/words"),
        *("/api/v1/meters/roof/all", "/api/v1/meters/roof/now", "/api/v1/meters/roof/seam"),
        *("/api/v1/uplinks/redex/look-up", "/api/v1/reconcile/redex/roof"),
    ],
)
def test_what_the_gateway_does_for_its_own_verbs_is_not_done_over_http(web: Web, method: str, target: str) -> None:
    assert ask(web, target, method, None if method == "GET" else b"{}")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_it_is_read_only(web: Web, method: str) -> None:
    status, headers, value = ask(web, "/api/v1/status", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD") and "read-only" in value["detail"]


def test_head_says_what_get_would_without_it(web: Web) -> None:
    status, headers, value = ask(web, "/api/v1/days", "HEAD")
    assert (status, value) == (200, None)
    assert int(headers["content-length"]) == int(ask(web, "/api/v1/days")[1]["content-length"]) > 100


def test_no_browser_of_another_page_gets_an_answer_and_no_version_is_told(web: Web) -> None:
    for method in ("GET", "OPTIONS"):
        _, headers, _ = ask(web, "/api/v1/status", method, Origin="http://evil.example")
        assert not any(name.startswith("access-control") for name in headers) and "server" not in headers
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"


def test_a_body_is_not_read(web: Web) -> None:
    status, _, value = ask(web, "/api/v1/days", body=b"x" * 1000)
    assert status == 413 and "has a body" in value["detail"]


# -- hostile clients --------------------------------------------------------------------------------------------------


def test_noise_and_endless_headers_end_in_a_problem(web: Web) -> None:
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 40,
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 50_000,
    ):
        with connected(web) as one:
            try:
                one.sendall(noise)
            except ConnectionError:
                continue  # it was cut off within
            said = rest_of(one)
            assert said == b"" or said.startswith(b"HTTP/1.1 400")  # with bytes of ours unread, Linux resets
    with connected(web, b"\r\nHELLO\r\n\r\n") as one:
        said = rest_of(one)
        assert (
            said.startswith(b"HTTP/1.1 400") and b"application/problem+json" in said and b"uvicorn" not in said.lower()
        )
    assert ask(web, "/healthz")[0] == 200


def test_who_asks_slowly_or_not_at_all_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_WITHIN", 0.1)
    with serving(lambda *_: found({})) as web, ExitStack() as stack:
        slow = [
            stack.enter_context(connected(web, sent)) for sent in (b"", b"GET /healthz HTT", b"GET / HTTP/1.1\r\nA:")
        ]
        assert [rest_of(one) for one in slow] == [b""] * 3
        assert ask(web, "/healthz")[0] == 200


def test_who_does_not_take_the_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DONE_WITHIN", 0.2)
    big, asked = found("x" * 20_000_000), threading.Event()

    def answer(*_: str) -> Answer:
        asked.set()
        return big

    with serving(answer) as web:
        request = f"GET /api/v1/days HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        with connected(web, request) as one:
            assert asked.wait(LIMIT)
            live = web._server
            assert live is not None
            until(lambda: not live.server_state.connections, "it is still there")
            assert len(rest_of(one)) < len(big.body)
        assert ask(web, "/healthz")[0] == 200


def test_however_many_connect_few_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 8)
    with serving(lambda *_: found({})) as web:
        live = web._server
        assert live is not None
        with ExitStack() as stack:
            many = [stack.enter_context(connected(web)) for _ in range(3 * 8)]
            cut = [one for one in many[8:] if rest_of(one) == b""]
            assert len(cut) == 2 * 8 and len(live.server_state.connections) == 8
        until(lambda: not live.server_state.connections, "who has gone is still held")
        assert ask(web, "/healthz")[0] == 200


def test_a_card_that_hangs_holds_up_answers_but_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request waits for the card; so many may wait with it, the others are sent away, and it goes on."""
    monkeypatch.setattr(server, "MOST_WAITING", 3)
    hangs, there = threading.Event(), threading.Event()

    def answer(_: str, target: str) -> Answer:
        if target != "/healthz":
            there.set()
            assert hangs.wait(LIMIT)
        return found({})

    with serving(answer) as web:
        got: list[int] = []
        asking = [
            threading.Thread(target=lambda: got.append(ask(web, "/api/v1/days")[0]), daemon=True) for _ in range(3)
        ]
        for one in asking:
            one.start()
        assert there.wait(LIMIT)
        until(lambda: web._waiting == 3, "they do not wait")
        status, headers, value = ask(web, "/api/v1/days")
        assert (status, headers["retry-after"]) == (429, "1") and "3 requests wait" in value["detail"]
        assert ask(web, "/healthz")[0] == 200
        hangs.set()
        for one in asking:
            one.join(LIMIT)
        assert got == [200, 200, 200]
        assert ask(web, "/api/v1/days")[0] == 200 and web._waiting == 0


def test_an_answer_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_WITHIN", 0.1)
    hangs = threading.Event()
    with serving(lambda *_: found(hangs.wait(LIMIT))) as web:
        status, _, value = ask(web, "/api/v1/days")
        assert status == 503 and "no answer within" in value["detail"] and value["hint"]
        hangs.set()
        until(lambda: web._waiting == 0, "it is waited for for ever")


# -- the port ---------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_and_had_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "AGAIN", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        with serving(lambda *_: found({}), port=number) as web:
            state = web.state()
            assert not state.up and state.where == f"http://127.0.0.1:{number}"
            assert "Address already in use; another program listens there (ss -ltnp" in state.trouble
            other.close()
            until(lambda: web.state().up, "it does not come up")
            assert web.state().trouble == "" and ask(web, "/healthz")[0] == 200
    with socket.create_server(("127.0.0.1", number)):
        """The port is free again after close."""


def test_without_the_library_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with serving(lambda *_: found({})) as web:
        assert not web.state().up and "uvicorn is not installed: pip install 'heliograph[web]'" in web.state().trouble


def test_it_is_gone_within_a_second_whoever_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GONE_WITHIN", LIMIT)  # the time is uvicorn's and no matter of a busy machine here
    with serving(lambda *_: found({})) as web, connected(web, b"GET / HT"), connected(web):
        web.close()
        assert not web._thread.is_alive() and not web.state().up


# -- the configuration ------------------------------------------------------------------------------------------------

WEB = '[web]\nlisten = "{listen}"\n{token}'
BY_FILE = 'token = {{ file = "{folder}/web.token" }}'


@pytest.mark.parametrize(
    ("listen", "token", "secret", "told"),
    [
        ("127.0.0.1:8080", "", "", "web needs a token"),
        ("127.0.0.1:8080", BY_FILE, "", "no secret"),
        ("127.0.0.1:8080", BY_FILE, "short", "web.token has 5 characters"),
        ("127.0.0.1:8080", BY_FILE, "a token with many blanks", "strange ones"),
        ("8080", BY_FILE, TOKEN, "an address of this computer and a port"),
        ("127.0.0.1", BY_FILE, TOKEN, "an address of this computer and a port"),
        ("roof.example:8080", BY_FILE, TOKEN, "an address of this computer and a port"),
        ("127.0.0.1:99999", BY_FILE, TOKEN, "an address of this computer and a port"),
        ("http://127.0.0.1:8080", BY_FILE, TOKEN, "an address of this computer and a port"),
    ],
)
def test_what_is_wrong_with_web_is_said_with_file_line_and_the_next_step(
    tmp_path: Path, listen: str, token: str, secret: str, told: str
) -> None:
    if secret:
        (tmp_path / "web.token").write_text(secret)
    more = WEB.format(listen=listen, token=token.format(folder=tmp_path))
    with pytest.raises(ConfigError, match=told) as raised, gateway(tmp_path, more, filled=False):
        from heliograph import app

        app.load(tmp_path / "config.toml", secrets="must be there")
    assert raised.value.line is not None and raised.value.hint
    assert not secret or secret not in str(raised.value)


@pytest.mark.parametrize(
    ("listen", "warned"),
    [("127.0.0.1:8080", False), ("[::1]:8080", False), ("localhost:8080", False), ("0.0.0.0:8080", True)],
)
def test_check_warns_that_a_token_can_be_read_on_the_way(tmp_path: Path, listen: str, warned: bool) -> None:
    (tmp_path / "web.token").write_text(TOKEN)
    with gateway(tmp_path, WEB.format(listen=listen, token=BY_FILE.format(folder=tmp_path)), filled=False):
        words = ["--config", str(tmp_path / "config.toml"), "check"]
        said = CliRunner().invoke(heliograph, words, standalone_mode=False)
    assert said.return_value == 0
    assert ("everybody on the way can read the token" in said.output) == warned


def test_a_gateway_shows_where_it_listens_and_its_secrets_stay_its_own(tmp_path: Path) -> None:
    (tmp_path / "web.token").write_text(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    more = WEB.format(listen=listen, token=BY_FILE.format(folder=tmp_path))
    with gateway(tmp_path, more, filled=False) as made:
        made.daemon.audience.start()
        (web,) = made.daemon.audience._outputs
        assert isinstance(web, Web)
        until(lambda: web.state().up, "it does not listen")
        value = ask(web, "/api/v1/status")[2]
        assert [(one["name"], one["where"], one["up"]) for one in value["outputs"]] == [
            ("web", f"http://{listen}", True)
        ]
        assert TOKEN not in json.dumps(value) and SECRET not in json.dumps(value)


def test_a_gateway_without_web_loads_none_of_it() -> None:
    code = (
        "import sys, heliograph.daemon\n"
        "print([name for name in ('uvicorn', 'starlette', 'h11', 'asyncio', 'heliograph.web.openapi')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['asyncio']")

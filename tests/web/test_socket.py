"""The same REST on the Unix socket, beside what our own verbs ask there, as any HTTP client meets it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heliograph import control
from tests.web.gateway import SECRET, Gateway, gateway, still


@pytest.fixture(scope="module")
def roof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("socket")) as made:
        answering = control.listen(made.daemon.app.socket, made.daemon.answer, made.daemon.rest)
        assert answering is not None
        yield made
        answering.close()


def said(roof: Gateway, request: bytes) -> tuple[int, dict[str, str], Any]:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30)
        one.connect(str(roof.daemon.app.socket))
        one.sendall(request)
        one.shutdown(socket.SHUT_WR)
        content = b""
        while piece := one.recv(65536):
            content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers.get("server") == "heliograph"
    return int(first.split()[1]), headers, json.loads(body) if body else None


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


@pytest.mark.parametrize("target", ["/api/v1/status", "/api/v1/days?limit=2", "/api/v1/outbox", "/openapi.json"])
def test_the_socket_answers_the_rest_without_a_token(roof: Gateway, target: str) -> None:
    status, headers, value = said(roof, request(f"GET {target}"))
    assert (status, headers["content-type"]) == (200, "application/json")
    assert still(value) == still(control.ask(roof.daemon.app.socket, target)) == still(roof.get(target))
    assert said(roof, request(f"HEAD {target}"))[::2] == (200, None)


def test_curl_is_enough(roof: Gateway) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    words = [curl, "-s", "--unix-socket", str(roof.daemon.app.socket), "http://localhost/api/v1/status"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    assert still(json.loads(done.stdout)) == still(roof.get("/api/v1/status"))
    assert done.stdout.endswith("}\n")  # a prompt stands on a line of its own


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (request("GET /api/v1/nothing"), 404, "there is no /api/v1/nothing"),
        (request("GET /api/v1/days?limit=0"), 400, "limit"),
        (request("PUT /api/v1/status"), 405, "read-only"),
        (request("OPTIONS /api/v1/status"), 405, "read-only"),
        (request("BREW /api/v1/status"), 405, "BREW"),
        (request("POST /api/v1/status", "Content-Length: 2", body=b"{}"), 405, "read-only"),
        (request("POST /api/v1/status"), 405, "read-only"),
        (request("POST /api/v1/nothing"), 400, "not JSON"),
        (request("POST /api/v1/nothing", "Content-Length: 2", body=b"{}"), 404, "there is no"),
        (request("POST /api/v1/sign", "Content-Length: 1", body=b"{"), 400, "not JSON"),
        (request("POST /api/v1/sign", f"Content-Length: {1 << 40}"), 413, "65,536"),
        (request("POST /api/v1/sign", "Content-Length: -1"), 413, "65,536"),
        (request("POST /api/v1/sign", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 413, "65,536"),
        (b"HELLO\r\n\r\n", 400, "HELLO"),
        (request("GET /" + "x" * 70_000), 400, ""),
    ],
    ids=range(15),
)
def test_what_cannot_be_done_is_a_problem(roof: Gateway, sent: bytes, status: int, detail: str) -> None:
    got, headers, value = said(roof, sent)
    assert (got, value["status"], headers["content-type"]) == (status, status, "application/problem+json")
    assert detail in value["detail"] and value["hint"] and SECRET not in str(value)


def test_what_our_verbs_ask_is_still_answered(roof: Gateway) -> None:
    where = roof.daemon.app.socket
    assert set(control.ask(where, "/api/v1/frames")) == {"counts", "frames", "serials"}
    live = control.ask(where, "/api/v1/meters/roof")
    assert live["meter"] == "roof" and live["values"]["energy_export"] == 41_999_000
    wish = {"uplink": "drec", "because": "", "first": "2026-03-14", "last": "2026-03-14", "dry": True}
    assert control.ask(where, "/api/v1/meters/roof/set-aside", wish)["meter"] == "roof"


def test_only_its_user_and_group_may_ask(roof: Gateway) -> None:
    assert Path(roof.daemon.app.socket).stat().st_mode & 0o777 == 0o660

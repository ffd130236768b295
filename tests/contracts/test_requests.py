"""Every request that really leaves fits the platforms' description, which stands beside this file in our own words.

Recorded over sockets from the real uplinks: both dialects, both encodings, all read types, logins, renewals, follow-up
and read-back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from heliograph.ports import Uplink
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_exchange import Answer, Exchange
from heliograph.store import Store
from heliograph.uplink.drec import Drec
from heliograph.uplink.drec_packing import ReadType
from heliograph.uplink.http import Http
from heliograph.uplink.redex import Redex, dialect
from heliograph.uplink.tokens import Secret, StaticToken, TokenSource, drec_login, redex_login
from heliograph.work.deliver import Pace, deliver
from tests.fakes import SINGAPORE, FakeClock, in_memory
from tests.work.test_deliver import make_store

HERE = Path(__file__).parent
CONTRACTS = {name: json.loads((HERE / f"{name}.requests.json").read_text()) for name in ("redex", "drec")}


@dataclass(frozen=True)
class Request:
    platform: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def operation_of(request: Request) -> str:
    """The operation that a request is; '' where there is none like it."""
    for name in CONTRACTS.get(request.platform, {"operations": {}})["operations"]:
        method, _, path = name.partition(" ")
        if method == request.method and re.fullmatch(path.replace("{name}", "[^/]+"), request.path):
            return str(name)
    return ""


def faults(request: Request) -> list[str]:
    """What of a request does not fit."""
    name = operation_of(request)
    if not name:
        return [f"{request.method} {request.path} is no operation"]
    contract = CONTRACTS[request.platform]
    found: list[str] = []
    operation = contract["operations"][name]
    token = request.headers.get("authorization", "")
    if (token == "") != operation.get("open", False) or not re.fullmatch(r"(Bearer \S+)?", token):
        found.append("token where none belongs" if token else "no token")
    if bool(request.body) != ("body" in operation):
        found.append("a body where none belongs, or none where one belongs")
    elif request.body:
        if request.headers.get("content-type") != "application/json":
            found.append("not JSON")
        found += _against(contract, operation["body"], json.loads(request.body))
    pairs = parse_qsl(request.query, keep_blank_values=True, strict_parsing=bool(request.query))
    if len(pairs) != len(dict(pairs)):
        found.append("a query parameter stands twice")
    found += _against(contract, operation.get("query", {"maxProperties": 0}), dict(pairs))
    return found


def _against(contract: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    whole = {**schema, "$defs": contract["$defs"]}
    Draft202012Validator.check_schema(whole)
    checker = Draft202012Validator(whole, format_checker=FormatChecker(["date"]))
    return [error.message for error in checker.iter_errors(value)]


class Recording(Sandbox):
    """Keeps every request; what is `missing` is answered with 404."""

    missing = ""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.kept: list[Request] = []

    def answer(self, exchange: Exchange, headers: dict[str, str], body: bytes, client: str) -> Answer:
        lower = {name.lower(): value for name, value in headers.items()}
        platform = exchange.platform or ""  # a question for the time is to no operation
        self.kept.append(Request(platform, exchange.method, exchange.path, exchange.query, lower, body))
        if self.missing and exchange.path.endswith(self.missing):
            return Answer(404)
        return super().answer(exchange, headers, body, client)


def secret(text: str) -> Secret:
    return Secret(env="X", environ={"X": text})


def logged_in(sandbox: Sandbox, http: Http, platform: str) -> TokenSource:
    if platform == "redex":
        given = sandbox.redex.credentials
        return redex_login(http, *(secret(given[key]) for key in ("ApiKey", "ClientId", "ClientSecret")))
    return drec_login(http, secret("gateway@example.org"), secret("sandbox1"))


Make = Callable[[Sandbox, FakeClock], Uplink]


def redex(name: str, *, login: bool = False, **keys: Any) -> Make:
    def make(sandbox: Sandbox, clock: FakeClock) -> Uplink:
        http = Http(sandbox.url)
        tokens = logged_in(sandbox, http, "redex") if login else StaticToken(secret("token"))
        return Redex("platform", http, dialect(name, **keys), tokens, clock.now, absent_after=timedelta(minutes=30))

    return make


def drec(kind: ReadType, *, login: bool = False, organization: int | None = None) -> Make:
    def make(sandbox: Sandbox, clock: FakeClock) -> Uplink:
        http = Http(sandbox.url + "/api")
        tokens = logged_in(sandbox, http, "drec") if login else StaticToken(secret("token"))
        return Drec("platform", http, kind, tokens, clock.now, organization=organization, sleep=clock.sleep)

    return make


VARIANTS: dict[str, Make] = {
    "grouped": redex("grouped-2024", max_records=2),
    "grouped, numbers, log-in": redex("grouped-2024", login=True, value_encoding="number", max_records=1),
    "grouped, single": redex("grouped-2024", path_batch=""),
    "legacy": redex("legacy"),
    "legacy, numbers, log-in": redex("legacy", login=True, value_encoding="number"),
    "Delta": drec("Delta"),
    "Delta, log-in": drec("Delta", login=True),
    "Aggregate": drec("Aggregate"),
    "Aggregate, log-in, organisation": drec("Aggregate", login=True, organization=1),
}


def history(uplink: Uplink, store: Store, clock: FakeClock) -> None:
    """What a person may ask for: days sent as History, and looked for there."""
    rows = store.outbox.candidates(uplink.name, clock.now(), ordered=True, limit=3)
    as_history = [replace(row, last_rule="history") for row in rows]
    parcel = uplink.pack(as_history)
    assert parcel is not None and b'"History"' in parcel.body
    uplink.send(parcel)
    uplink.ask([replace(row, state="unclear", claim=1) for row in parcel.rows])


def recorded(folder: Path, name: str) -> list[Request]:
    """Some days of a site on a bad line: what was sent until all was confirmed."""
    clock = FakeClock()
    store = make_store(folder, clock, meters=2, days=4)
    with Recording(now=clock.now, token="token", timezone=SINGAPORE.key) as sandbox:
        uplink = VARIANTS[name](sandbox, clock)
        if name == "Delta":
            history(uplink, store, clock)
        sandbox.missing = "/statuses" if name == "grouped" else ""
        sandbox.redex.declined = {"SOMEBODY-ELSES"} if name == "grouped" else set()
        for kind in ("500-after", "401"):
            sandbox.fault(kind, 1, "redex.batch" if "grouped" in name else "drec.send")
        pace = Pace(clock)
        for round in range(300):
            if round == 4:
                sandbox.revoke()
            deliver(uplink, store, clock, pace, lambda: 0.5)
            if store.outbox.counts()["platform"].keys() <= {"confirmed", "held", "rejected"}:
                break
            clock.leap(minutes=10)
        if name != "Delta":  # there the days sent as History are in the way of themselves
            assert store.outbox.counts()["platform"] == {"confirmed": 8}
        clock.leap(days=1)
        uplink.prepare([])  # a calm moment to look at the groups
        uplink.date()
        uplink.close()
        store.close()
        return sandbox.kept


@pytest.fixture(scope="module")
def everything() -> Iterator[dict[str, list[Request]]]:
    with in_memory() as folder:
        yield {name: recorded(folder / str(number), name) for number, name in enumerate(VARIANTS)}


def test_every_request_fits_the_description(everything: dict[str, list[Request]]) -> None:
    for name, requests in everything.items():
        assert len(requests) >= 5, name
        for request in requests:
            if request.method == "HEAD":  # a question for the time: to no operation, without a token
                assert (request.body, request.headers.get("authorization")) == (b"", None)
            else:
                assert faults(request) == [], (name, request)


def test_every_operation_of_the_description_was_met(everything: dict[str, list[Request]]) -> None:
    met = {(one.platform, operation_of(one)) for requests in everything.values() for one in requests} - {("", "")}
    known = {(platform, name) for platform, contract in CONTRACTS.items() for name in contract["operations"]}
    assert known - met == set()


@pytest.mark.parametrize(
    ("operation", "old", "new"),
    [
        ("POST /public/v2/generation-datas/batches", "AccumulatedEnergyInKWh", "AccumulatedPowerInKWh"),
        ("POST /public/v2/generation-datas/batches", '"Timestamp":"2026-03-14"', '"Timestamp":"2026-3-14"'),
        ("POST /public/v2/generation-datas/batches", '"Timestamp":"2026-03-14"', '"Timestamp":"2026-03-34"'),
        ("POST /public/v2/generation-datas/batches", '"1.000"', '"1.0001"'),
        ("POST /public/v2/generation-datas/batches", '"1.000"', '"-1.000"'),
        ("POST /public/v2/generation-datas/batches", '"1.000"', '"1e3"'),
        ("POST /public/v2/generation-datas/batches", '{"Devices"', '{"FrequencyType":"Daily","Devices"'),
        ("POST /public/v2/generation-data", '"FrequencyType":"Daily",', ""),
        ("POST /public/v2/connect/token", '"api_key"', '"password"'),
        ("POST /public/v2/connect/token/refresh", '"RefreshToken"', '"refresh_token"'),
        ("POST /meter-reads/new/{name}", '"unit":"Wh"', '"unit":"kWh"'),
        ("POST /meter-reads/new/{name}", '"unit":"Wh"', '"unit":"Wh","timezone":"Asia/Singapore"'),
        ("POST /meter-reads/new/{name}", '16:00:00Z"', '16:00:00.000Z"'),
        ("POST /meter-reads/new/{name}", '16:00:00Z"', '16:00:00+00:00"'),
        ("POST /meter-reads/new/{name}", '"value":', '"value":0.'),
        ("POST /meter-reads/new/{name}", '"type":"Delta"', '"type":"History"'),
        ("POST /auth/login", '"username"', '"email"'),
    ],
)
def test_a_wrong_body_would_be_seen(everything: dict[str, list[Request]], operation: str, old: str, new: str) -> None:
    """Negative controls: what was really sent, with one thing changed."""
    sent = [one for requests in everything.values() for one in requests if operation_of(one) == operation]
    whole = next(one for one in sent if old.encode() in one.body)
    assert faults(replace(whole, body=whole.body.replace(old.encode(), new.encode(), 1))) != []


@pytest.mark.parametrize(
    ("operation", "change"),
    [
        ("GET /public/v2/generation-datas", {"query": "FrequencyType=Hourly&RemoteInvId=a&FromDate=2026-03-14"}),
        ("GET /public/v2/generation-datas/status", {"query": ""}),
        ("GET /public/v2/generation-datas/status", {"query": "ProcessId=x"}),
        ("GET /meter-reads/new/{name}", {"query": "readType=meterReads"}),
        ("GET /meter-reads/new/{name}", {"headers": {}}),
        ("GET /device/my", {"path": "/device/mine"}),
        ("POST /auth/login", {"headers": {"authorization": "Bearer x", "content-type": "application/json"}}),
        ("POST /meter-reads/new/{name}", {"headers": {"authorization": "Bearer x", "content-type": "text/plain"}}),
    ],
)
def test_a_wrong_request_would_be_seen(
    everything: dict[str, list[Request]], operation: str, change: dict[str, Any]
) -> None:
    sent = [one for requests in everything.values() for one in requests if operation_of(one) == operation]
    assert faults(replace(sent[0], **change)) != []

"""The REST without a server: what is asked for, and what is answered, over a store with days of every kind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from sqlite3 import SQLITE_IOERR
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from heliograph.cli import heliograph
from heliograph.core.answer import encoded
from heliograph.store.connection import FILE, Fault
from heliograph.web import api
from heliograph.web.api import ROUTES
from tests.web.gateway import SECRET, Gateway, gateway

DAYS = [date(2026, 3, day) for day in range(13, 24)]
EXPLAINED = [f"/api/v1/days/{day}/explain?meter={meter}" for day in DAYS for meter in ("roof", "barn", "new")]
ANSWERED = [
    "/healthz",
    "/openapi.json",
    "/api/v1/status",
    "/api/v1/meters",
    "/api/v1/meters?limit=1&after=barn",
    "/api/v1/meters/roof",
    "/api/v1/meters/new",
    "/api/v1/meters/roof/readings",
    "/api/v1/meters/new/readings",
    "/api/v1/meters/roof/readings?from=2026-03-15T12:00:00Z&to=2026-03-16",
    "/api/v1/days",
    "/api/v1/days?meter=barn&from=2026-03-16&to=today",
    "/api/v1/days?from=0001-01-01&to=9999-12-31",
    "/api/v1/days?to=0001-01-01",
    "/api/v1/meters/roof/readings?from=0001-01-01&to=9999-12-31",
    "/api/v1/meters/roof/readings?to=0001-01-01",
    "/api/v1/outbox",
    "/api/v1/outbox?day=2026-03-14",
    "/api/v1/outbox?uplink=drec&meter=roof",
    "/api/v1/events",
    *EXPLAINED,
]


@pytest.fixture(scope="module")
def roof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("rest")) as made:
        yield made


def closed(schema: Any) -> Any:
    """The schema with every object shut, so that a field that nobody documented is seen."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(one) for key, one in schema.items()}
    return {**shut, "additionalProperties": False} if "properties" in schema and "required" in schema else shut


def objections(target: str, value: Any, document: dict[str, Any], shape: str | None = None) -> list[str]:
    match = api.matched(target.partition("?")[0])
    assert match is not None
    schemas = closed(document["components"]["schemas"])
    schemas["Document"].pop("additionalProperties")  # it says of itself what it must
    schema = {"$ref": f"#/components/schemas/{shape or match[0].schema}", "components": {"schemas": schemas}}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return [
        f"{error.json_path}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema, format_checker=checker).iter_errors(value)
    ]


@pytest.mark.parametrize("target", ANSWERED)
def test_every_answer_is_what_the_document_says(roof: Gateway, target: str) -> None:
    assert objections(target, roof.get(target), roof.get("/openapi.json")) == []


def test_an_answer_with_a_wrong_type_or_a_field_nobody_documented_is_found(roof: Gateway) -> None:
    document, value = roof.get("/openapi.json"), roof.get("/api/v1/days?limit=1")
    for spoilt in ({"period_wh": "28.488"}, {"more": 1}, {"day": "14 March"}, {"state": "open"}):
        row = {**value["days"][0], **spoilt}
        assert len(objections("/api/v1/days", {"days": [row], "next": None}, document)) == 1, spoilt
    row = dict(value["days"][0])
    del row["reason"]
    assert objections("/api/v1/days", {"days": [row], "next": None}, document) != []


REFUSED = [
    ("GET", "/", 404, "there is no /", "/api/v1/status"),
    ("GET", "/api/v1/day", 404, "there is no /api/v1/day", "/openapi.json"),
    ("GET", "/api/v1/meters//readings", 404, "there is no", ""),
    ("GET", "/api/v1/meters/rof", 404, "there is no meter rof", "Did you mean roof?"),
    ("GET", "/api/v1/days?meter=nobody", 404, "there is no meter nobody", "barn, new, roof"),
    ("GET", "/api/v1/outbox?uplink=redux", 404, "there is no uplink redux", "redex"),
    ("GET", "/api/v1/meters/roof/readings?before=99999", 404, "no reading 99999", "to="),
    ("GET", "/api/v1/meters/roof/readings?before=2", 404, "no reading 2", "to="),  # it is of barn
    ("GET", "/api/v1/days?form=2026-03-14", 400, "there is no parameter form", "Did you mean from?"),
    ("GET", "/healthz?x", 400, "there is no parameter x", "none"),
    ("GET", "/api/v1/days?limit=0", 400, "from 1 to 400", "limit=100"),
    ("GET", "/api/v1/days?limit=401", 400, "from 1 to 400", ""),
    ("GET", "/api/v1/days?limit=" + "9" * 900, 400, "from 1 to 400", ""),
    ("GET", "/api/v1/days?limit=٣", 400, "from 1 to 400", ""),
    ("GET", "/api/v1/days?limit=1&limit=2", 400, "twice", ""),
    ("GET", "/api/v1/days?" + "&".join("limit=1" for _ in range(20)), 400, "more than 16", ""),
    ("GET", "/api/v1/days?from=14.3.2026", 400, "which is no day", "2026-03-14"),
    ("GET", "/api/v1/days?from=2026-02-30", 400, "which is no day", ""),
    ("GET", "/api/v1/days?from=2026-03-20&to=2026-03-14", 404, "the first is later", "Turn"),
    ("GET", "/api/v1/days?after=roof", 400, "no place in a list", "next"),
    ("GET", "/api/v1/days/2026-03-14/explain", 400, "meter is missing", "meter="),
    ("GET", "/api/v1/days/tomorrow/explain?meter=roof", 400, "which is no day", "yesterday"),
    ("GET", "/api/v1/days/0001-01-01/explain?meter=roof", 404, "no meter was read", "1970-01-02"),
    ("GET", "/api/v1/days/9999-12-31/explain?meter=roof", 404, "no meter was read", "9998-12-31"),
    ("GET", "/api/v1/meters/roof/readings?from=2026-03-14T12:00", 400, "no moment", "%2B"),
    ("GET", "/api/v1/events?before=0", 400, "whole number", ""),
    ("GET", "/api/v1/meters/" + "x" * 5000, 400, "characters", ""),
    ("GET", "/api/v1/meters/%00", 400, "no name", ""),
    ("POST", "/api/v1/status", 405, "POST is not done here", "GET"),
    ("DELETE", "/api/v1/days", 405, "DELETE", ""),
    ("BREW", "/healthz", 405, "BREW", ""),
]


@pytest.mark.parametrize(
    ("method", "target", "status", "detail", "hint"), REFUSED, ids=[f"{one[0]} {one[1][:48]}" for one in REFUSED]
)
def test_what_cannot_be_answered_is_a_problem_with_the_next_step(
    roof: Gateway, method: str, target: str, status: int, detail: str, hint: str
) -> None:
    answer = roof.daemon.rest(method, target)
    value = json.loads(answer.body)
    assert answer.status == status == value["status"] and answer.media == "application/problem+json"
    assert objections("/healthz", value, roof.get("/openapi.json"), "Problem") == []
    assert detail in value["detail"] and hint in value["hint"] and value["hint"]
    assert value["instance"] == target.partition("?")[0]
    assert (answer.headers.get("Allow") == "GET, HEAD") == (status == 405)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-03-14T12:00:00Z", datetime(2026, 3, 14, 12, tzinfo=UTC)),
        ("2026-03-14t12:00:00.25z", datetime(2026, 3, 14, 12, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-03-14T20:00:00+08:00", datetime(2026, 3, 14, 12, tzinfo=UTC)),
        ("2026-03-14T20:00:00 08:00", datetime(2026, 3, 14, 12, tzinfo=UTC)),  # a + that nobody escaped
        ("2026-03-14T06:30:00-05:30", datetime(2026, 3, 14, 12, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("9999-12-31T23:59:59-23:59", datetime.max.replace(tzinfo=UTC)),
        ("0001-01-01T00:00:00+00:01", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_moment_is_what_rfc_3339_allows(text: str, at: datetime) -> None:
    assert api._moment(text) == at


@pytest.mark.parametrize(
    "text", ["", "2026-03-14", "2026-03-14T12:00:00", "2026-13-14T12:00:00Z", "2026-03-14T25:00:00Z",
             "2026-03-14T12:00:00+24:00", "2026-03-14T12:00:00Z\n"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        api._moment(text)


def followed(roof: Gateway, target: str, key: str, pages: int = 400) -> list[Any]:
    found: list[Any] = []
    while target:
        answer = roof.get(target)
        found += answer[key]
        target = answer["next"]
        pages -= 1
        assert pages, "it never ends"
    return found


LISTS = [
    ("/api/v1/meters", "meters", 200),
    ("/api/v1/days?from=2026-01-01", "days", 400),
    ("/api/v1/outbox", "rows", 200),
    ("/api/v1/outbox?day=2026-03-14", "rows", 200),
    ("/api/v1/events", "events", 500),
    ("/api/v1/meters/roof/readings", "readings", 500),
    ("/api/v1/meters/barn/readings?from=2026-03-15&to=2026-03-17", "readings", 500),
]


@pytest.mark.parametrize(("target", "key", "most"), LISTS, ids=[one[0] for one in LISTS])
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_the_links_of_a_list_lead_through_all_of_it_once(
    roof: Gateway, target: str, key: str, most: int, limit: int
) -> None:
    sign = "&" if "?" in target else "?"
    whole = roof.get(f"{target}{sign}limit={most}")
    assert whole["next"] is None and len(whole[key]) > 2
    assert followed(roof, f"{target}{sign}limit={limit}", key) == whole[key]


def test_a_list_ends_before_it_is_long(roof: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = roof.get("/api/v1/days?from=2026-01-01")["days"]
    monkeypatch.setattr(api, "MOST_BYTES", 1000)
    page = roof.get("/api/v1/days?from=2026-01-01")
    assert page["next"] is not None and len(encoded(page)) < 2000
    assert followed(roof, "/api/v1/days?from=2026-01-01", "days") == whole


def test_samples_between_two_moments_are_all_that_were_read_then(roof: Gateway) -> None:
    every = roof.get("/api/v1/meters/roof/readings?limit=500")["readings"]
    assert [one["id"] for one in every] == sorted((one["id"] for one in every), reverse=True)
    assert any(one["doubt"] for one in every) and any(not one["good"] for one in every)
    for first, last in (
        ("2026-03-14T16:00:00Z", "2026-03-15T16:00:00Z"),
        ("2026-03-17T00:00:00Z", "2026-03-21T00:00:00Z"),
    ):
        found = roof.get(f"/api/v1/meters/roof/readings?limit=500&from={first}&to={last}")["readings"]
        assert found == [one for one in every if first <= one["at"] < last] and len(found) > 20
    day = roof.get("/api/v1/meters/roof/readings?limit=500&from=2026-03-15&to=2026-03-16")["readings"]
    assert day == [one for one in every if "2026-03-14T16:00:00Z" <= one["at"] < "2026-03-15T16:00:00Z"]
    assert roof.get("/api/v1/meters/roof/readings?to=2020-01-01")["readings"] == []
    assert roof.get("/api/v1/meters/roof/readings?from=2030-01-01")["readings"] == []


def test_no_secret_is_in_any_answer(roof: Gateway) -> None:
    for target in [*ANSWERED, *(one[1] for one in REFUSED)]:
        assert SECRET.encode() not in roof.daemon.rest("GET", target).body


def test_every_route_has_been_asked() -> None:
    asked = {match[0].path for target in ANSWERED if (match := api.matched(target.partition("?")[0]))}
    assert asked | {"/readyz"} == {route.path for route in ROUTES}


def printed(roof: Gateway, *words: str) -> Any:
    done = CliRunner().invoke(heliograph, ["--config", str(roof.folder / "config.toml"), *words], standalone_mode=False)
    return json.loads(done.stdout)


def test_the_verbs_print_what_the_rest_answers(roof: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """One code makes both; the verbs are asked on the gateway's rehearsed clock, without a gateway that runs."""
    monkeypatch.setattr("heliograph.clock.SystemClock.now", lambda _: roof.clock.now())
    for target, words in (
        ("/api/v1/days?from=2026-03-14&to=2026-03-22", ("days", "--from", "2026-03-14", "--to", "2026-03-22")),
        ("/api/v1/days?meter=barn", ("days", "barn")),
    ):
        assert printed(roof, *words, "--json") == roof.get(target)["days"] != []
    rows = printed(roof, "backlog", "--json")
    assert sorted(rows, key=lambda row: row["row"]) == roof.get("/api/v1/outbox")["rows"] != []
    explained = printed(roof, "explain", "roof", "2026-03-17", "--json")
    assert explained == roof.get("/api/v1/days/2026-03-17/explain?meter=roof")
    status = printed(roof, "status", "--json")
    assert status.keys() == roof.get("/api/v1/status").keys()


FROM_THE_STORE = [
    "/api/v1/days",
    "/api/v1/days/2026-03-14/explain?meter=roof",
    "/api/v1/outbox",
    "/api/v1/events",
    "/api/v1/meters/roof/readings",
]
WITHOUT_IT = ["/healthz", "/openapi.json", "/api/v1/status", "/api/v1/meters", "/api/v1/meters/roof"]


@pytest.mark.parametrize("how", ["gone", "damaged", "faulty"])
def test_a_store_that_fails_is_a_problem_and_what_is_known_without_it_is_told(tmp_path: Path, how: str) -> None:
    with gateway(tmp_path, filled=False) as made:
        made.daemon.live.at |= {name: made.clock.now() for name in ("roof", "barn", "new")}
        assert made.get("/readyz") == {"ready": True}
        file = tmp_path / "data" / FILE
        if how == "faulty":
            connection = made.store._connection
            connection.fault = Fault("the store could not be written: disk I/O error (SQLITE_IOERR)", SQLITE_IOERR)
            connection.close()
        for sibling in (file, file.with_name(f"{FILE}-wal"), file.with_name(f"{FILE}-shm")):
            if how != "damaged":
                sibling.unlink(missing_ok=True)
        if how == "damaged":
            made.store.fold()
            file.write_bytes(b"no database" * 1000)
        for target in FROM_THE_STORE:
            value = made.get(target, 503)
            assert value["title"] == "Service Unavailable" and value["detail"] and value["hint"], target
            assert "Traceback" not in str(value)
        for target in WITHOUT_IT:
            made.get(target)
        if how == "faulty":
            assert made.get("/readyz", 503)["reasons"] == ["nothing can be stored"]
            assert "Nothing is stored" in made.get("/api/v1/status")["storage"]
            connection.fault = None


def test_a_bus_that_hangs_is_seen_by_whoever_asks_whether_it_lives(tmp_path: Path) -> None:
    with gateway(tmp_path, filled=False) as made:
        assert made.get("/healthz") == {"alive": True}
        made.daemon._beats["lan"] = time.monotonic() - 10 * 3600 - 1
        value = made.get("/healthz", 503)
        assert "hangs" in value["detail"] and "restart" in value["hint"]


def test_a_fault_of_ours_is_a_problem_and_no_more(roof: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_sample", lambda _: 1 / 0)
    value = roof.get("/api/v1/meters/roof/readings", 500)
    assert "ZeroDivision" not in str(value) and value["hint"] == "heliograph support"


def test_a_number_that_is_none_and_a_text_that_is_broken_are_still_json() -> None:
    odd = {"power": float("nan"), "list": [float("inf"), 1.5], "text": "a\udcffb"}
    assert json.loads(encoded(odd)) == {"power": None, "list": [None, 1.5], "text": "a?b"}

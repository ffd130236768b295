"""The stand-in for REDEX: what it takes, what it refuses and how, and what it shows afterwards."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import jsonschema
import pytest

from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_exchange import Answer
from heliograph.rehearsal.sandbox_redex import Redex, Window
from heliograph.rehearsal.sandbox_redex_rules import Inverter, read_value

START = datetime(2026, 3, 15, 4, 0, tzinfo=UTC)
SEND, BATCH, LEGACY = (
    "/public/v2/generation-datas",
    "/public/v2/generation-datas/batches",
    "/public/v2/generation-data",
)
STATUSES = "/public/v2/generation-datas/statuses"
TOKEN, REFRESH = "/public/v2/connect/token", "/public/v2/connect/token/refresh"
APPLICATIONS = "/public/v2/device-applications"

ENERGY = {
    "oneOf": [
        {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,14})(\.[0-9]{1,3})?$"},
        {"type": "number", "minimum": 0},
    ]
}
RECORD = {
    "type": "object",
    "required": ["Timestamp", "PeriodProductionInKWh", "AccumulatedEnergyInKWh"],
    "additionalProperties": False,
    "properties": {
        "Timestamp": {"type": "string", "format": "date"},
        "PeriodProductionInKWh": ENERGY,
        "AccumulatedEnergyInKWh": ENERGY,
    },
}
ENVELOPE = {
    "type": "object",
    "required": ["StatusCode"],
    "additionalProperties": False,
    "properties": {
        "Data": {},
        "StatusCode": {"type": "integer"},
        "Errors": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["Key", "Message", "Messages"],
                "properties": {
                    "Key": {"type": ["string", "null"]},
                    "Message": {"type": ["string", "null"]},
                    "Messages": {"type": ["array", "null"], "items": {"type": "string"}},
                },
            },
        },
        "Meta": {"type": ["object", "null"]},
        "Message": {"type": ["string", "null"]},
    },
}
PROCESS = {
    "type": "object",
    "required": ["ProcessId", "Status"],
    "properties": {
        "ProcessId": {"type": "integer"},
        "Status": {"enum": ["New", "Processing", "Failed", "Success"]},
        "ProcessingType": {"enum": ["CreateNewGenerationData", "CreateMonthlyData"]},
    },
}


class Clock:
    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def leap(self, **length: float) -> None:
        self.at += timedelta(**length)


class Client:
    """Speaks to the platform without a socket, with a good token unless told otherwise."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        options.setdefault("processing_delay", timedelta(seconds=10))
        self.clock = clock
        self.sandbox = Sandbox(clock.now, token="t0", timezone="Asia/Singapore", **options)

    def raw(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        path, _, query = target.partition("?")
        given = {"Authorization": "Bearer t0", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): text for name, text in headers.items()}
        return self.sandbox.handle(method, path, query, given, body)

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        answer = self.raw("POST", path, json.dumps(body).encode())
        document = json.loads(answer.body)
        jsonschema.validate(document, ENVELOPE)
        assert document["StatusCode"] == answer.status
        return answer.status, document

    def get(self, target: str) -> tuple[int, dict[str, Any]]:
        answer = self.raw("GET", target)
        document = json.loads(answer.body)
        jsonschema.validate(document, ENVELOPE)
        return answer.status, document

    @property
    def rules(self) -> list[str]:
        return [violation.rule for violation in self.sandbox.violations]


def record(day: str, period: object, total: object, name: str = "AccumulatedEnergyInKWh") -> dict[str, object]:
    return {"Timestamp": day, "PeriodProductionInKWh": period, name: total}


def single(*records: object, who: object = "INV-1") -> dict[str, object]:
    return {"RemoteInvId": who, "Data": list(records)}


DAY1 = record("2026-03-10", "0.123", "5.123")
DAY2 = record("2026-03-11", "0.234", "5.357")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Client:
    return Client(clock)


# -- what is taken -------------------------------------------------------------------------------------------------


def test_a_day_is_accepted_then_processed_then_stored(client: Client) -> None:
    status, answer = client.post(SEND, single(DAY1, DAY2))
    assert (status, answer["Message"]) == (201, "Success")
    process = answer["Data"]["ProcessId"]
    seen = []
    for _ in range(3):
        data = client.get(f"{STATUSES}?ProcessId={process}")[1]["Data"]
        jsonschema.validate(data, PROCESS)
        seen.append((data["Status"], client.sandbox.total_wh("redex", "INV-1")))
        client.clock.leap(seconds=5)
    assert seen == [("New", 0), ("Processing", 0), ("Success", 357)]
    assert client.sandbox.stored_wh("redex", "INV-1") == {date(2026, 3, 10): 123, date(2026, 3, 11): 234}
    assert client.rules == []


def test_our_example_requests_fit_the_schema_and_are_taken(client: Client) -> None:
    for record_ in (DAY1, DAY2):
        jsonschema.validate(record_, RECORD)
    batch = {"Devices": [single(DAY1, DAY2), single(record("2026-03-11", 0.5, 7.25), who="INV-2")]}
    assert client.post(BATCH, batch)[0] == 201
    assert client.rules == []


def test_a_late_day_may_fill_a_gap_that_it_fits_into(client: Client) -> None:
    assert client.post(SEND, single(record("2026-03-10", "1", "10")))[0] == 201
    assert client.post(SEND, single(record("2026-03-12", "2", "15")))[0] == 201
    assert client.post(SEND, single(record("2026-03-11", "3", "13")))[0] == 201
    assert client.rules == []


def test_the_legacy_dialect_has_four_decimals_and_no_process(client: Client) -> None:
    name = "AccumulatedPowerInKWh"
    body = single(record("2026-03-10", "0.1234", "5.1234", name)) | {"FrequencyType": "Daily"}
    answer = client.raw("POST", LEGACY, json.dumps(body).encode())
    assert (answer.status, json.loads(answer.body)) == (200, {"Data": {}, "StatusCode": 200, "Message": "Success"})
    client.clock.leap(seconds=10)
    assert client.sandbox.total_wh("redex", "INV-1") == 123
    rows = client.get(f"{SEND}?FrequencyType=Daily&RemoteInvId=INV-1&FromDate=2026-03-01&ToDate=2026-03-31")[1]["Data"]
    assert rows[0]["PeriodProductionInKWh"] == "0.1234"


def test_both_dialects_write_to_one_store(client: Client) -> None:
    """A gateway that changes its dialect by itself would count twice."""
    client.post(SEND, single(DAY1))
    body = single(record("2026-03-10", "0.123", "5.123", "AccumulatedPowerInKWh")) | {"FrequencyType": "Daily"}
    assert client.post(LEGACY, body)[0] == 422
    assert client.rules == ["pair-pending"]


def test_without_process_ids_the_answer_carries_an_empty_object(client: Client) -> None:
    client.sandbox.redex.process_ids = False
    assert client.post(SEND, single(DAY1))[1]["Data"] == {}


# -- what is refused -----------------------------------------------------------------------------------------------

SHAPE = [
    ([], 400, "shape"),
    ({}, 422, "shape"),
    ({"RemoteInvId": "INV-1"}, 422, "shape"),
    (single(DAY1) | {"FrequencyType": "Daily"}, 422, "unknown-member"),
    (single(), 422, "shape"),
    (single(DAY1, who=""), 422, "shape"),
    (single(DAY1, who="x" * 101), 422, "shape"),
    (single(DAY1, who=7), 422, "shape"),
    (single("2026-03-10"), 422, "shape"),
    (single(DAY1 | {"Unit": "kWh"}), 422, "unknown-member"),
    (single({"Timestamp": "2026-03-10", "PeriodProductionInKWh": "1"}), 422, "shape"),
    (single(record("2026-03-10", "1", "1", "AccumulatedPowerInKWh")), 422, "unknown-member"),
    (single(record("2026-3-10", "1", "1")), 422, "timestamp"),
    (single(record("20260310", "1", "1")), 422, "timestamp"),
    (single(record("2026-02-30", "1", "1")), 422, "timestamp"),
    (single(record("2026-03-10T00:00:00Z", "1", "1")), 422, "timestamp"),
    (single(record("2026-03-10", "1.0001", "2")), 422, "decimals"),
    (single(record("2026-03-10", 1.0001, 2)), 422, "decimals"),
    (single(record("2026-03-10", "1", "2.12345")), 422, "decimals"),
    (single(record("2026-03-10", "-1", "2")), 422, "negative"),
    (single(record("2026-03-10", -0.5, 2)), 422, "negative"),
    (single(record("2026-03-10", "1e3", "2000")), 422, "notation"),
    (single(record("2026-03-10", "1", "1e30")), 422, "notation"),
    (single(record("2026-03-10", ".5", "1")), 422, "notation"),
    (single(record("2026-03-10", "01", "1")), 422, "notation"),
    (single(record("2026-03-10", "+1", "1")), 422, "notation"),
    (single(record("2026-03-10", "1,5", "2")), 422, "shape"),
    (single(record("2026-03-10", "", "2")), 422, "shape"),
    (single(record("2026-03-10", " 1", "2")), 422, "shape"),
    (single(record("2026-03-10", None, "2")), 422, "shape"),
    (single(record("2026-03-10", True, "2")), 422, "shape"),
]


@pytest.mark.parametrize(("body", "status", "rule"), SHAPE)
def test_a_body_of_wrong_shape_is_refused_and_noted(client: Client, body: object, status: int, rule: str) -> None:
    got, answer = client.post(SEND, body)
    assert (got, answer["Data"]) == (status, None)
    assert rule in client.rules
    if status == 422:
        assert answer["Message"] == "Unprocessable Entity"
        assert answer["Errors"] and all(error["Messages"] for error in answer["Errors"])
    client.clock.leap(seconds=60)
    assert client.sandbox.total_wh("redex", "INV-1") == 0


@pytest.mark.parametrize(
    ("days", "rule"),
    [
        ([record("2026-03-15", "1", "6.357")], "incomplete"),  # it is noon of March 15 in Singapore
        ([record("2026-03-16", "1", "6.357")], "future"),
        ([DAY2], "pair-stored"),
        ([record("2026-03-11", "0.235", "5.358")], "overwrite"),
        ([record("2026-03-12", "1", "6.358")], "total"),
        ([record("2026-03-12", "1", "6.356")], "total"),
        ([record("2026-03-12", "1", "5")], "falls"),
        ([record("2026-03-14", "1", "6.356")], "total"),  # a gap, but the total has less in it than the day alone
        ([record("2026-03-09", "1", "5.001")], "total"),  # before the first: March 10 would start at 5.000
        ([record("2026-03-12", "1", "6.357"), record("2026-03-12", "1", "6.357")], "pair-twice"),
        ([record("2026-03-12", "1", "6.357"), record("2026-03-13", "1", "7.358")], "total"),
    ],
)
def test_days_that_contradict_the_calendar_or_the_store_are_refused_as_a_whole(
    client: Client, days: list[dict[str, object]], rule: str
) -> None:
    client.post(SEND, single(DAY1, DAY2))
    client.clock.leap(seconds=10)
    status, answer = client.post(SEND, single(record("2026-03-01", "0", "1"), *days))
    assert (status, answer["Data"]) == (422, None)
    assert rule in client.rules
    client.clock.leap(seconds=10)
    assert client.sandbox.total_wh("redex", "INV-1") == 357
    assert len(client.sandbox.stored_wh("redex", "INV-1")) == 2


def test_the_day_after_the_last_one_is_taken(client: Client) -> None:
    """The negative control of the table above."""
    client.post(SEND, single(DAY1, DAY2))
    assert client.post(SEND, single(record("2026-03-12", "1", "6.357")))[0] == 201
    assert client.rules == []


def test_a_pair_in_processing_is_refused_though_nothing_is_stored_yet(client: Client) -> None:
    client.post(SEND, single(DAY1))
    assert client.post(SEND, single(DAY1))[0] == 422
    assert client.post(SEND, single(record("2026-03-10", "0.124", "5.123")))[0] == 422
    assert client.rules == ["pair-pending", "overwrite"]


def test_a_day_is_over_when_it_is_over_in_the_zone_of_the_group(clock: Clock) -> None:
    clock.at = datetime(2026, 3, 14, 15, 59, 59, tzinfo=UTC)
    client = Client(clock)
    assert client.post(SEND, single(record("2026-03-14", "1", "1")))[0] == 422
    clock.leap(seconds=1)
    assert client.post(SEND, single(record("2026-03-14", "1", "1")))[0] == 201


def test_without_a_zone_a_day_is_over_as_soon_as_it_is_over_anywhere() -> None:
    clock = Clock(datetime(2026, 3, 14, 10, 0, tzinfo=UTC))
    sandbox = Sandbox(clock.now, token="t0")
    headers = {"Authorization": "Bearer t0", "Content-Type": "application/json"}
    body = json.dumps(single(record("2026-03-14", "1", "1"))).encode()
    assert sandbox.handle("POST", SEND, "", headers, body).status == 201


@pytest.mark.parametrize("count", [3000, 3001])
def test_a_batch_holds_3000_records_over_all_inverters(client: Client, count: int) -> None:
    first = date(2018, 1, 1)
    days = [
        [record((first + timedelta(days=n)).isoformat(), "1", str(n + 1)) for n in range(length)]
        for length in (1500, count - 1500)
    ]
    batch = {"Devices": [single(*some, who=f"INV-{n}") for n, some in enumerate(days)]}
    status, _ = client.post(BATCH, batch)
    assert status == (201 if count == 3000 else 422)
    assert client.rules == ([] if count == 3000 else ["too-many-records"])


def test_an_inverter_has_one_entry_in_a_batch(client: Client) -> None:
    assert client.post(BATCH, {"Devices": [single(DAY1), single(DAY2)]})[0] == 422
    assert client.rules == ["inverter-twice"]


@pytest.mark.parametrize("body", [{}, {"Devices": []}, {"Devices": {}}, {"Devices": [7]}, single(DAY1)])
def test_a_batch_of_wrong_shape_is_refused(client: Client, body: object) -> None:
    assert client.post(BATCH, body)[0] == 422
    assert set(client.rules) <= {"shape", "unknown-member"} and client.rules


@pytest.mark.parametrize(
    ("who", "days", "rule"),
    [
        ("INV-2", [DAY1], "unknown-inverter"),
        ("INV-1", [record("2026-02-28", "0.1", "0.1")], "before-connection"),
        ("INV-1", [record("2026-03-10", "250.001", "300")], "capacity"),
    ],
)
def test_a_registered_group_takes_only_its_inverters(clock: Clock, who: str, days: list[object], rule: str) -> None:
    client = Client(clock, inverters=[Inverter("INV-1", capacity_kw=10, connected=date(2026, 3, 1))])
    assert client.post(SEND, single(*days, who=who))[0] == 422
    assert client.rules == [rule]
    assert client.post(SEND, single(record("2026-03-10", "250", "300")))[0] == 201


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b'{"RemoteInvId": NaN}', b'{"RemoteInvId":"a","RemoteInvId":"b"}', b"[" * 100_000]
)
def test_what_is_not_json_is_a_bad_request(client: Client, raw: bytes) -> None:
    answer = client.raw("POST", SEND, raw)
    assert answer.status == 400
    assert json.loads(answer.body)["Errors"] == []
    assert client.rules == ["json"]


def test_a_body_that_is_not_declared_as_json_is_a_bad_request(client: Client) -> None:
    answer = client.raw("POST", SEND, json.dumps(single(DAY1)).encode(), Content_Type="text/plain")
    assert (answer.status, client.rules) == (400, ["json"])


def test_many_wrong_records_give_one_violation_for_each_rule(client: Client) -> None:
    days = [record(f"2026-03-{n:02d}", "1.0001", "-2") for n in range(1, 11)]
    assert len(client.post(SEND, single(*days))[1]["Errors"]) == 20
    assert client.rules == ["decimals", "negative"]
    assert client.sandbox.violations[0].text.endswith("(and 9 more)")


@pytest.mark.parametrize(
    ("text", "tenths"),
    [("0", 0), ("0.1", 1000), ("5.1234", 51_234), ("999999999999999.9999", 9_999_999_999_999_999_999)],
)
def test_kilowatt_hours_are_read_exactly(text: str, tenths: int) -> None:
    assert read_value(text, 4) == tenths


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "stored"), [("failed", 0), ("half", 123)])
def test_a_failed_process_sets_its_days_free_again(client: Client, kind: str, stored: int) -> None:
    client.sandbox.fault(kind)
    process = client.post(SEND, single(DAY1, DAY2))[1]["Data"]["ProcessId"]
    client.clock.leap(seconds=10)
    assert client.get(f"{STATUSES}?ProcessId={process}")[1]["Data"]["Status"] == "Failed"
    assert client.sandbox.total_wh("redex", "INV-1") == stored
    missing = [DAY2] if stored else [DAY1, DAY2]
    assert client.post(SEND, single(*missing))[0] == 201
    client.clock.leap(seconds=10)
    assert client.sandbox.total_wh("redex", "INV-1") == 357
    assert client.rules == []


def test_a_process_is_found_under_both_paths_and_may_come_as_a_list(client: Client) -> None:
    process = client.post(SEND, single(DAY1))[1]["Data"]["ProcessId"]
    old = f"/public/v2/generation-datas/status?ProcessId={process}"
    assert client.get(old)[0] == 200
    client.sandbox.redex.process_list = True
    assert client.get(old)[1]["Data"][0]["ProcessId"] == process
    client.sandbox.redex.status_paths = frozenset({"statuses"})
    assert client.get(old)[0] == 404
    assert client.get(f"{STATUSES}?ProcessId={process + 1}")[0] == 404


def test_times_of_a_process_have_no_zone(client: Client) -> None:
    client.clock.leap(microseconds=26667)
    process = client.post(SEND, single(DAY1))[1]["Data"]["ProcessId"]
    data = client.get(f"{STATUSES}?ProcessId={process}")[1]["Data"]
    assert data["CreatedTime"] == "2026-03-15T04:00:00.026667"


# -- reading back --------------------------------------------------------------------------------------------------

READ = SEND + "?FrequencyType=Daily&RemoteInvId=INV-1&FromDate=2026-01-01&ToDate=2026-04-01"


def test_read_back_pages_through_stored_days_and_tells_the_size_it_used(client: Client) -> None:
    days = [record((date(2026, 1, 1) + timedelta(days=n)).isoformat(), "1", str(n + 1)) for n in range(70)]
    client.post(SEND, single(*days))
    assert client.get(READ)[1]["Data"] == [], "still in processing"
    client.clock.leap(seconds=10)
    _, answer = client.get(READ + "&CurrentPage=2&ItemsPerPage=50")
    assert answer["Meta"] == {"CurrentPage": 2, "TotalPage": 2, "TotalItems": 70, "ItemsPerPage": 50}
    assert len(answer["Data"]) == 20
    assert answer["Data"][-1] == {
        "RemoteInvId": "INV-1",
        "Timestamp": "2026-03-11",
        "PeriodProductionInKWh": "1.000",
        "AccumulatedEnergyInKWh": "70.000",
    }
    assert client.get(READ + "&ItemsPerPage=5000")[1]["Meta"]["ItemsPerPage"] == 100
    assert client.get(READ + "&CurrentPage=9")[1]["Data"] == []
    client.sandbox.redex.numbers = True
    assert client.get(READ)[1]["Data"][0]["PeriodProductionInKWh"] == 1.0
    assert client.rules == []


@pytest.mark.parametrize(
    ("change", "status", "rule"),
    [
        (("FrequencyType=Daily&", ""), 400, "query"),
        (("FrequencyType=Daily", "FrequencyType=Weekly"), 422, "query"),
        (("FrequencyType=Daily", "FrequencyType=daily"), 422, "query"),
        (("&RemoteInvId=INV-1", ""), 400, "query"),
        (("INV-1", ""), 422, "unknown-inverter"),
        (("2026-04-01", "2026-04-02"), 422, "query"),
        (("2026-04-01", "2025-12-31"), 422, "query"),
        (("2026-04-01", "April"), 422, "query"),
        (("ToDate", "Todate"), 400, "query"),
        (("ToDate=2026-04-01", "ToDate=2026-04-01&ToDate=2026-04-01"), 400, "query"),
        (("ToDate=2026-04-01", "ToDate=2026-04-01&CurrentPage=0"), 400, "query"),
        (("ToDate=2026-04-01", "ToDate=2026-04-01&ItemsPerPage=x"), 400, "query"),
    ],
)
def test_a_wrong_question_is_refused(client: Client, change: tuple[str, str], status: int, rule: str) -> None:
    assert client.get(READ)[0] == 200
    assert client.get(READ.replace(*change))[0] == status
    assert rule in client.rules


@pytest.mark.parametrize(
    ("first", "last", "status"),
    [("2025-11-30", "2026-02-28", 200), ("2025-11-30", "2026-03-01", 422), ("2026-01-31", "2026-04-30", 200)],
)
def test_three_months_end_on_the_last_day_of_a_shorter_month(
    client: Client, first: str, last: str, status: int
) -> None:
    target = READ.replace("2026-01-01", first).replace("2026-04-01", last)
    assert client.get(target)[0] == status


def test_the_group_with_its_inverters_can_be_looked_up(clock: Clock) -> None:
    client = Client(clock, inverters=[Inverter("INV-1", capacity_kw=10.9), Inverter("INV-2")])
    [application] = client.get(APPLICATIONS + "?Status=Unverified&CurrentPage=1&ItemsPerPage=50")[1]["Data"]
    assert application["DeviceType"]["Value"] == "Grouped"
    assert client.get(APPLICATIONS + "?Status=Declined")[1]["Data"] == []
    [device] = client.get(f"{APPLICATIONS}/{application['Id']}/devices")[1]["Data"]
    assert [inverter["RemoteInvId"] for inverter in device["Inverters"]] == ["INV-1", "INV-2"]
    assert device["Inverters"][0]["InstalledCapacity"] == 10.9
    assert device["Timezone"] == "UTC+08:00"
    assert client.get(f"{APPLICATIONS}/{application['Id']}")[0] == 200
    assert client.get(f"{APPLICATIONS}/other/devices")[0] == 404


def test_unknown_paths_and_methods_are_told_apart(client: Client) -> None:
    assert client.get("/public/v2/generation")[0] == 404
    answer = client.raw("PUT", SEND)
    assert answer.status == 405


# -- tokens --------------------------------------------------------------------------------------------------------

KEYS = {"ApiKey": "sandbox-api-key", "GrantType": "api_key", "ClientId": "sandbox-client"}
KEYS |= {"ClientSecret": "sandbox-secret"}


def test_a_token_lives_for_an_hour_and_is_refreshed_once(client: Client) -> None:
    status, answer = client.post(TOKEN, KEYS)
    data = answer["Data"]
    assert (status, data["ExpiresIn"], data["TokenType"]) == (200, "3600", "Bearer")

    def status_with(token: str) -> int:
        return client.raw("GET", APPLICATIONS, Authorization=f"Bearer {token}").status

    client.clock.leap(seconds=3599)
    assert status_with(data["AccessToken"]) == 200
    client.clock.leap(seconds=1)
    assert status_with(data["AccessToken"]) == 401
    renewal = {"RefreshToken": data["RefreshToken"], "GrantType": "refresh_token"}
    renewal |= {"ClientId": "sandbox-client", "ClientSecret": "sandbox-secret"}
    status, answer = client.post(REFRESH, renewal)
    assert (status, answer["Data"]["ExpiresIn"]) == (200, 3600)
    assert status_with(answer["Data"]["AccessToken"]) == 200
    assert client.post(REFRESH, renewal)[0] == 401, "only the newest refresh token works"
    client.sandbox.revoke()
    assert status_with(answer["Data"]["AccessToken"]) == 401
    assert status_with("t0") == 200
    assert client.rules == []


def test_a_refresh_token_lives_for_thirty_days(client: Client) -> None:
    refresh = client.post(TOKEN, KEYS)[1]["Data"]["RefreshToken"]
    client.clock.leap(days=30)
    body = {"RefreshToken": refresh, "GrantType": "refresh_token"} | {
        name: KEYS[name] for name in ("ClientId", "ClientSecret")
    }
    assert client.post(REFRESH, body)[0] == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"ApiKey": "wrong"}, 401),
        ({"ClientSecret": "wrong"}, 401),
        ({"GrantType": "password"}, 422),
        ({"ApiKey": "x" * 37}, 422),
        ({"ApiKey": 7}, 422),
        ({"Scope": "all"}, 422),
        ({"ApiKey": None}, 422),
    ],
)
def test_a_wrong_grant_is_refused_and_no_secret_is_noted(
    client: Client, change: dict[str, object], status: int
) -> None:
    assert client.post(TOKEN, KEYS | change)[0] == status
    assert "sandbox-secret" not in repr(client.sandbox.violations)
    assert "sandbox-secret" not in json.dumps(client.sandbox.state())


@pytest.mark.parametrize("header", ["", "t0", "bearer t0", "Basic t0", "Bearer", "Bearer wrong"])
def test_without_a_good_bearer_token_nothing_is_told(client: Client, header: str) -> None:
    answer = client.raw("POST", SEND, json.dumps(single(DAY1)).encode(), Authorization=header)
    assert answer.status == 401
    assert json.loads(answer.body) == {"Data": None, "StatusCode": 401, "Message": "Unauthorized"}
    assert "wrong" not in repr(client.sandbox.violations)


# -- rate limits ---------------------------------------------------------------------------------------------------


def test_the_account_has_sixty_requests_in_a_fixed_minute(client: Client) -> None:
    client.clock.leap(seconds=30)
    assert [client.raw("GET", READ).status for _ in range(61)] == [200] * 60 + [429]
    answer = client.raw("GET", READ)
    assert dict(answer.headers)["Retry-After"] == "30"
    assert "StatusCode" not in json.loads(answer.body), "a 429 is not the platform's own envelope"
    client.clock.leap(seconds=29.5)
    assert dict(client.raw("GET", READ).headers)["Retry-After"] == "1"
    client.clock.leap(seconds=0.5)
    assert client.raw("GET", READ).status == 200
    assert client.rules == ["rate-account"] * 3


def test_an_address_has_3000_requests_in_300_seconds_tokens_or_not() -> None:
    window = Window(3000, 300)
    at = datetime(2026, 1, 1, 0, 4, tzinfo=UTC)
    assert {window.take("a", at) for _ in range(3000)} == {0}
    assert window.take("a", at) == 60
    assert window.take("b", at) == 0
    assert window.take("a", at + timedelta(seconds=60)) == 0


def test_unauthorized_requests_count_for_the_address(client: Client) -> None:
    client.sandbox.redex.per_ip = Window(2, 300)
    statuses = [client.raw("GET", READ, Authorization="Bearer x").status for _ in range(3)]
    assert statuses == [401, 401, 429]


# -- a year --------------------------------------------------------------------------------------------------------


def test_a_year_of_500_inverters_fits_into_61_batches() -> None:
    clock = Clock()
    client = Client(clock)
    first = date(2025, 3, 1)
    pairs = [(who, day) for day in range(365) for who in range(500)]
    sent = 0
    for at in range(0, len(pairs), 3000):
        days: dict[int, list[object]] = {}
        for who, day in pairs[at : at + 3000]:
            text = (first + timedelta(days=day)).isoformat()
            days.setdefault(who, []).append(record(text, "1.001", f"{(day + 1) * 1001 / 1000:.3f}"))
        batch = {"Devices": [single(*some, who=f"INV-{who}") for who, some in days.items()]}
        assert client.raw("POST", BATCH, json.dumps(batch).encode()).status == 201
        sent += 1
        clock.leap(seconds=6)
    clock.leap(seconds=10)
    assert sent == 61 == client.sandbox.requests["redex.batch"]
    assert {client.sandbox.total_wh("redex", f"INV-{who}") for who in range(500)} == {365 * 1001}
    assert client.rules == []


def test_every_request_has_a_kind() -> None:
    kinds = {
        ("POST", TOKEN): "redex.token",
        ("POST", REFRESH): "redex.refresh",
        ("POST", SEND): "redex.send",
        ("POST", BATCH): "redex.batch",
        ("POST", LEGACY): "redex.legacy",
        ("GET", SEND): "redex.read",
        ("GET", STATUSES): "redex.status",
        ("GET", APPLICATIONS): "redex.applications",
        ("GET", APPLICATIONS + "/1/devices"): "redex.devices",
        ("GET", "/public/v1/x"): "redex.other",
    }
    assert {key: Redex.kind(*key) for key in kinds} == kinds

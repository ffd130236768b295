"""The stand-in for D-REC (G1): tokens, the rules of a read in their order, read-back."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest

from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_drec import Device, Drec, ceiling_wh
from heliograph.rehearsal.sandbox_exchange import Answer

START = datetime(2026, 5, 10, 12, 0, tzinfo=UTC)
CREATED = datetime(2026, 5, 1, tzinfo=UTC)
COMMISSIONED = datetime(2025, 5, 10, 12, 0, tzinfo=UTC)
ROOF = Device("SG0042-roof", capacity_kw=10, created_at=CREATED, commissioned=COMMISSIONED)

RULE_ERROR = {
    "type": "object",
    "required": ["success", "message"],
    "additionalProperties": False,
    "properties": {"success": {"const": False}, "message": {"type": "string"}},
}
HTTP_ERROR = {
    "type": "object",
    "required": ["statusCode", "message"],
    "additionalProperties": False,
    "properties": {
        "statusCode": {"type": "integer"},
        "message": {"type": "string"},
        "error": {"type": "string"},
    },
}
VALIDATION_ERROR = HTTP_ERROR | {
    "required": ["statusCode", "message", "error"],
    "properties": {
        "statusCode": {"const": 400},
        "message": {"type": "array", "items": {"type": "string"}},
        "error": {"const": "Bad Request"},
    },
}
READ_PAGE = {
    "type": "object",
    "required": ["historyread", "ongoing", "numberOfReads", "numberOfPages", "currentPageNumber"],
    "properties": {
        part: {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["startdate", "enddate", "value"],
                "properties": {"value": {"type": "integer"}},
            },
        }
        for part in ("historyread", "ongoing")
    },
}
NEW_READ = {
    "type": "object",
    "required": ["type", "unit", "reads"],
    "properties": {
        "type": {"enum": ["History", "Delta", "Aggregate"]},
        "unit": {"enum": ["Wh", "kWh", "MWh", "GWh"]},
        "reads": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "required": ["endtimestamp", "value"],
                "properties": {"value": {"type": "number", "exclusiveMinimum": 0}},
            },
        },
    },
}


class Clock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def leap(self, **length: float) -> None:
        self.at += timedelta(**length)


class Client:
    def __init__(self, clock: Clock, **options: Any) -> None:
        options.setdefault("devices", [ROOF])
        self.clock = clock
        self.sandbox = Sandbox(clock.now, token="t0", **options)

    def raw(self, method: str, target: str, body: bytes = b"", token: str = "t0") -> Answer:
        path, _, query = target.partition("?")
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return self.sandbox.handle(method, "/api" + path, query, headers, body)

    def call(self, method: str, target: str, body: object = None, token: str = "t0") -> tuple[int, Any]:
        answer = self.raw(method, target, b"" if body is None else json.dumps(body).encode(), token)
        return answer.status, json.loads(answer.body) if answer.body else None

    def send(self, body: object, who: str = "SG0042-roof") -> tuple[int, Any]:
        return self.call("POST", f"/meter-reads/new/{who}", body)

    @property
    def rules(self) -> list[str]:
        return [violation.rule for violation in self.sandbox.violations]


def read(end: object, value: object, kind: str = "Delta", unit: str = "Wh", **more: object) -> dict[str, object]:
    item: dict[str, object] = {"endtimestamp": end, "value": value}
    return {"type": kind, "unit": unit, "reads": [item | {k: v for k, v in more.items() if k != "timezone"}]} | {
        k: v for k, v in more.items() if k == "timezone"
    }


def history(start: object, end: object, value: object = 100) -> dict[str, object]:
    return read(end, value, "History", starttimestamp=start)


DAY = "2026-05-02T00:00:00Z"
NEXT = "2026-05-03T00:00:00Z"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Client:
    return Client(clock)


# -- one read ------------------------------------------------------------------------------------------------------


def test_a_delta_is_stored_with_201_and_an_empty_body(client: Client) -> None:
    body = read(DAY, 41_250)
    jsonschema.validate(body, NEW_READ)
    answer = client.raw("POST", "/meter-reads/new/%20sg0042-ROOF%20", json.dumps(body).encode())
    assert (answer.status, answer.body) == (201, b"")
    assert client.sandbox.stored_wh("drec", "SG0042-roof") == {datetime(2026, 5, 2, tzinfo=UTC): 41_250}
    assert client.rules == []


@pytest.mark.parametrize(
    ("value", "unit", "wh"),
    [(1, "Wh", 1), (41.25, "kWh", 41_250), (0.0005, "kWh", 1), (2.5, "Wh", 3), (1, "MWh", 10**6)],
)
def test_values_are_scaled_and_rounded_to_whole_wh(client: Client, value: float, unit: str, wh: int) -> None:
    assert client.send(read(DAY, value, unit=unit))[0] == 201
    assert client.sandbox.total_wh("drec", "SG0042-roof") == wh


def test_members_that_nobody_asked_for_are_ignored(client: Client) -> None:
    assert client.send(read(DAY, 5) | {"organizationId": 1, "note": "x"})[0] == 201


def test_a_value_below_half_a_wh_is_lost_without_a_word(client: Client) -> None:
    assert client.send(read(DAY, 0.4))[0] == 201
    assert client.sandbox.stored_wh("drec", "SG0042-roof") == {datetime(2026, 5, 2, tzinfo=UTC): 0}
    assert client.rules == ["S7"]


def test_with_a_timezone_member_moments_are_local(client: Client) -> None:
    assert client.send(read("2026-05-02 08:00:00.5", 5, timezone="asia/singapore"))[0] == 201
    assert list(client.sandbox.stored_wh("drec", "SG0042-roof")) == [datetime(2026, 5, 2, 0, 0, 0, 500_000, tzinfo=UTC)]


ONBOARDING = "is less than or equal to device onboarding date 2026-05-01T00:00:00.000Z"
FORM = "valid format is  YYYY-MM-DDThh:mm:ss.millisecondsZ"

# body of a device without reads -> status, shape, words of the message, rule
REFUSED: list[tuple[object, int, dict[str, Any], str, str]] = [
    ({}, 400, VALIDATION_ERROR, "reads must be an array", "T9"),
    (read(DAY, 5, "delta"), 400, VALIDATION_ERROR, "type must be one of", "T9"),
    (read(DAY, 5, unit="wh"), 400, VALIDATION_ERROR, "unit must be one of", "T9"),
    (read(DAY, 5, timezone=8), 400, VALIDATION_ERROR, "timezone must be a string", "T9"),
    ({"type": "Delta", "unit": "Wh", "reads": {}}, 400, VALIDATION_ERROR, "reads must be an array", "T9"),
    (read(DAY, 5) | {"organizationId": "1"}, 409, RULE_ERROR, "Organization in measurement is not same as", "D2"),
    (read(DAY, 5) | {"organizationId": 9}, 404, HTTP_ERROR, "No organization found with id 9", "D1"),
    (read(DAY, 5, timezone="Mars/Olympus"), 409, RULE_ERROR, "Invalid time zone: Mars/Olympus", "Z1"),
    (read(DAY, 5, timezone="UTC"), 409, RULE_ERROR, "Invalid date sent", "Z2"),
    (read("2026-02-30 00:00:00", 5, timezone="UTC"), 409, RULE_ERROR, "Invalid date sent", "Z2"),
    (read("2026-05-02 00:00:00.1234", 5, timezone="UTC"), 409, RULE_ERROR, "Invalid date sent", "Z2"),
    ({"type": "Delta", "unit": "Wh", "reads": [{"value": 5}]}, 500, HTTP_ERROR, "Internal server error", "S3"),
    (read("yesterday", 5), 500, HTTP_ERROR, "Internal server error", "S3"),
    (read("2026-05-02T25:00:00Z", 5), 500, HTTP_ERROR, "Internal server error", "S3"),
    (read(None, 5), 409, RULE_ERROR, "endtimestamp null is less than or equal to device onboarding", "S4"),
    (read("2026-05-02", 5), 409, RULE_ERROR, " Invalid  End Date, " + FORM, "E4"),
    (read("2026-05-02T00:00:00", 5), 409, RULE_ERROR, " Invalid  End Date, " + FORM, "E4"),
    (read(1777680000000, 5), 409, RULE_ERROR, " Invalid  End Date, " + FORM, "E4"),
    (read("2026-05-01T00:00:00Z", 5), 409, RULE_ERROR, ONBOARDING, "E1"),
    (read("2026-04-30T00:00:00Z", 5, "Aggregate"), 409, RULE_ERROR, ONBOARDING, "E1"),
    (read("2026-05-10T12:00:01Z", 5), 409, RULE_ERROR, "is greater than current date 2026-05-10T12:00:00", "E3"),
    (read(DAY, 0), 409, RULE_ERROR, "meter read value should be greater then 0 ", "S6"),
    (read(DAY, -1), 409, RULE_ERROR, "meter read value should be greater then 0 ", "S6"),
    (read(DAY, None), 409, RULE_ERROR, "meter read value should be greater then 0 ", "S6"),
    (read(DAY, "5"), 500, HTTP_ERROR, "Internal server error", "S5"),
    (read(DAY, True), 500, HTTP_ERROR, "Internal server error", "S5"),
    ({"type": "Delta", "unit": "Wh", "reads": [{"endtimestamp": DAY}]}, 500, HTTP_ERROR, "Internal", "S5"),
    (
        {"type": "Delta", "unit": "Wh", "reads": 2 * [{"endtimestamp": DAY, "value": 5}]},
        409,
        RULE_ERROR,
        "can not allow multiple reads simultaneously ",
        "S2",
    ),
    (read(DAY, -1, "Aggregate"), 500, HTTP_ERROR, "Internal server error", "S6"),
    (history("2026-04-01", DAY), 409, RULE_ERROR, " Invalid Start Date and/or End Date, " + FORM, "H1"),
    (history("2026-04-03T00:00:00Z", "2026-04-02T00:00:00Z"), 409, RULE_ERROR, "should be prior to endtimestamp", "H2"),
    (history("2026-04-30T00:00:00Z", DAY), 409, RULE_ERROR, "For History reading start timestamp and end", "H3"),
    (history("2026-04-01T00:00:00Z", "2026-04-02T00:00:00Z", 0), 409, RULE_ERROR, "greater then 0 ", "H4"),
    (
        history("2025-05-10T12:00:00Z", "2026-04-02T00:00:00Z"),
        409,
        RULE_ERROR,
        "starttimestamp should be greater",
        "H5",
    ),
    (history(None, "2026-04-02T00:00:00Z"), 409, RULE_ERROR, "starttimestamp should be greater", "H5"),
    (read("2026-04-02T00:00:00Z", 5, "History"), 500, HTTP_ERROR, "Internal server error", "S8"),
    (history("", "2026-04-02T00:00:00Z"), 500, HTTP_ERROR, "Internal server error", "S8"),
    (history("2026-04-30T00:00:00Z", "2026-05-01T00:00:00Z"), 409, RULE_ERROR, "should be within 3 year of", "H6"),
    (
        history("2026-04-01T00:00:00Z", "2026-04-01T00:00:00Z"),
        409,
        RULE_ERROR,
        "Failed,read value is greater than from MaxEnergy",
        "H8",
    ),
]


@pytest.mark.parametrize(("body", "status", "shape", "words", "rule"), REFUSED)
def test_a_broken_rule_has_its_status_shape_and_words(
    client: Client, body: object, status: int, shape: dict[str, Any], words: str, rule: str
) -> None:
    got, answer = client.send(body)
    assert got == status, answer
    jsonschema.validate(answer, shape)
    said = answer["message"]
    assert words in ("; ".join(said) if isinstance(said, list) else said)
    assert client.rules == [rule]
    assert client.sandbox.stored_wh("drec", "SG0042-roof") == {}


def test_end_at_or_before_commissioning_is_refused(clock: Clock) -> None:
    late = Device("x", capacity_kw=10, created_at=CREATED, commissioned=datetime(2026, 5, 2, tzinfo=UTC))
    client = Client(clock, devices=[late])
    status, answer = client.send(read(DAY, 5), "x")
    assert (status, client.rules) == (409, ["E2"])
    assert "should be greater than to device commissioningDate date" in answer["message"]


def test_the_first_broken_rule_in_the_order_of_checks_is_told(client: Client) -> None:
    """Form, device, dates, sign, number of reads: each fix uncovers the next."""
    item: dict[str, object] = {"endtimestamp": "2027-01-01T00:00:00Z", "value": 0}
    body: dict[str, Any] = {"type": "delta", "unit": "Wh", "organizationId": "1", "reads": [item, item]}
    client.send(body, "nobody")
    body["type"] = "Delta"
    client.send(body, "nobody")
    del body["organizationId"]
    client.send(body, "nobody")
    client.send(body)
    item["endtimestamp"] = DAY
    client.send(body)
    item["value"] = 5
    client.send(body)
    body["reads"] = [item]
    assert client.send(body)[0] == 201
    assert client.rules == ["T9", "D2", "D5", "E3", "S6", "S2"]


def test_an_unknown_device_is_refused_where_registration_is_closed(client: Client) -> None:
    assert client.send(read(DAY, 5), "nobody") == (409, {"success": False, "message": "Invalid device id"})


def test_with_open_registration_a_device_appears_when_it_is_first_named(clock: Clock) -> None:
    client = Client(clock, devices=[], default_kw=7)
    assert client.send(read("2024-05-11T00:00:00Z", 5), "new")[0] == 201
    [device] = client.call("GET", "/device/my")[1]
    assert (device["externalId"], device["capacity"], device["meterReadtype"]) == ("new", 7, "Delta")


@pytest.mark.parametrize("raw", [b"{", b"\xff", b'{"a": NaN}', b"7"])
def test_broken_json_is_told_as_such(client: Client, raw: bytes) -> None:
    answer = client.raw("POST", "/meter-reads/new/SG0042-roof", raw)
    document = json.loads(answer.body)
    assert (answer.status, document["error"]) == (400, "Bad Request")
    assert "JSON" in document["message"]
    assert client.rules == ["T8"]


def test_a_body_above_100_kb_is_too_large(client: Client) -> None:
    status, answer = client.call("POST", "/meter-reads/new/SG0042-roof", {"x": "y" * 102_400})
    assert (status, answer) == (413, {"statusCode": 413, "message": "request entity too large"})


def test_no_reads_at_all_leave_the_request_open(client: Client) -> None:
    answer = client.raw("POST", "/meter-reads/new/SG0042-roof", b'{"type":"Delta","unit":"Wh","reads":[]}')
    assert answer.delivery == "hang"
    assert client.rules == ["S1"]


def test_the_unguarded_older_route_takes_everything_and_is_noted(client: Client) -> None:
    assert client.call("POST", "/meter-reads/some-uuid", {"unit": "Wh", "reads": []})[0] == 201
    assert client.rules == ["legacy"]


# -- sequence and energy -------------------------------------------------------------------------------------------


def test_the_ceiling_is_capacity_times_hours_times_yield_and_ageing() -> None:
    """10 kW, one day, yield 2000, one year old: 10,000 x 24 x 2000 / 8760 x 1.2."""
    assert ceiling_wh(ROOF, 24, START) == pytest.approx(65_753.4246575)
    two = ceiling_wh(ROOF, 24, START + timedelta(days=365))
    assert two == pytest.approx(65_753.4246575 * 0.995)
    assert ceiling_wh(ROOF, 24, COMMISSIONED - timedelta(days=1)) == pytest.approx(65_753.4246575)
    half = ceiling_wh(ROOF, 24, datetime(2026, 11, 9, 0, 0, tzinfo=UTC))
    assert half == pytest.approx(65_753.4246575 * 0.995**0.5)


def test_the_first_delta_skips_the_ceiling_and_the_next_does_not(client: Client) -> None:
    assert client.send(read(DAY, 10**9))[0] == 201
    status, answer = client.send(read(NEXT, 65_754))
    assert (status, client.rules) == (409, ["L4"])
    prefix, _, number = answer["message"].partition(": ")
    assert prefix == "Failed, MaxEnergy" and float(number) == pytest.approx(65_753.4246575)
    assert client.send(read(NEXT, 65_753))[0] == 201


@pytest.mark.parametrize("value", [5, 6])
def test_an_end_that_is_stored_fails_with_max_energy_zero_whatever_its_value(client: Client, value: int) -> None:
    client.send(read(DAY, 5))
    assert client.send(read(DAY, value)) == (409, {"success": False, "message": "Failed, MaxEnergy: 0"})
    assert client.rules == ["L3"]


def test_an_end_before_the_last_one_is_refused_as_overtaken(client: Client) -> None:
    client.send(read(NEXT, 5))
    status, answer = client.send(read(DAY, 5))
    assert (status, client.rules) == (409, ["L2"])
    assert f"{DAY} is less than last sent meter read date 2026-05-03T00:00:00.000Z" in answer["message"]


@pytest.mark.parametrize("kind", ["Delta", "Aggregate"])
def test_a_device_keeps_the_type_of_its_first_read(client: Client, kind: str) -> None:
    other = {"Delta": "Aggregate", "Aggregate": "Delta"}[kind]
    client.send(read(DAY, 5, kind))
    status, answer = client.send(read(NEXT, 10, other))
    assert (status, client.rules) == (404, ["L1"])
    words = f"In this device you can add read for {kind} type but you are sending  {other}"
    assert answer == {"statusCode": 404, "message": words, "error": "Not Found"}


def test_aggregate_takes_its_first_value_as_a_baseline_and_then_the_rises(client: Client) -> None:
    assert client.send(read(DAY, 1000, "Aggregate"))[0] == 201
    assert client.sandbox.total_wh("drec", "SG0042-roof") == 0
    latest = "/meter-reads/latestread/SG0042-roof"
    assert client.call("GET", latest) == (400, {"statusCode": 400, "message": "Read Not found"})
    assert client.send(read(NEXT, 3500, "Aggregate"))[0] == 201
    assert client.sandbox.stored_wh("drec", "SG0042-roof") == {datetime(2026, 5, 3, tzinfo=UTC): 2500}
    assert client.rules == []


@pytest.mark.parametrize(
    ("end", "value", "rule", "words"),
    [
        (
            NEXT,
            3500,
            "A1",
            "The sent date/value for reading 2026-05-03T00:00:00Z/3500 is less than last sent mter read",
        ),
        ("2026-05-04T00:00:00Z", 3500, "A1", "date/value 2026-05-03T00:00:00.000Z/3500 "),
        ("2026-05-04T00:00:00Z", 3499, "A1", "is less than last sent mter read date/value"),
        (DAY, 4000, "A1", "is less than last sent mter read date/value"),
        (NEXT, 3501, "A4", "Failed, MaxEnergy: 0"),
        ("2026-05-04T00:00:00Z", 3500 + 65_754, "A2", "Failed, MaxEnergy: 65753.42"),
    ],
)
def test_an_aggregate_that_does_not_rise_in_reason_is_refused(
    client: Client, end: str, value: int, rule: str, words: str
) -> None:
    client.send(read(DAY, 1000, "Aggregate"))
    client.send(read(NEXT, 3500, "Aggregate"))
    status, answer = client.send(read(end, value, "Aggregate"))
    assert (status, client.rules) == (409, [rule])
    jsonschema.validate(answer, RULE_ERROR)
    assert words in answer["message"]


def test_a_second_counter_at_the_instant_of_the_baseline_is_refused(client: Client) -> None:
    client.send(read(DAY, 1000, "Aggregate"))
    assert client.send(read(DAY, 1001, "Aggregate"))[1]["message"] == "Failed, MaxEnergy: 0"
    assert client.rules == ["A4"]


def test_the_second_counter_is_measured_from_the_baseline(client: Client) -> None:
    client.send(read(DAY, 1000, "Aggregate"))
    assert client.send(read(NEXT, 1000 + 65_754, "Aggregate"))[0] == 409
    assert client.rules == ["A2"]
    assert client.send(read(NEXT, 1000 + 65_753, "Aggregate"))[0] == 201


def test_the_counter_of_a_lifetime_is_refused_as_first_aggregate(client: Client) -> None:
    assert client.send(read(DAY, 65_754, "Aggregate"))[0] == 409
    assert client.rules == ["A3"]


def test_history_may_not_touch_another_history_and_coexists_with_delta(client: Client) -> None:
    client.send(read(DAY, 5))
    assert client.send(history("2026-04-01T00:00:00Z", "2026-04-02T00:00:00Z"))[0] == 201
    status, answer = client.send(history("2026-04-02T00:00:00Z", "2026-04-03T00:00:00Z"))
    assert (status, client.rules) == (409, ["H7"])
    assert answer["message"].startswith("There are already one or more historical entries")
    assert client.send(history("2026-04-02T00:00:01Z", "2026-04-03T00:00:00Z"))[0] == 201
    assert client.send(history("2026-04-05T00:00:00Z", "2026-04-06T00:00:00Z", 65_754))[0] == 409
    assert client.rules == ["H7", "H8"]
    assert client.sandbox.total_wh("drec", "SG0042-roof") == 205


def test_history_reaches_back_three_years(clock: Clock) -> None:
    old = Device("x", capacity_kw=10, created_at=CREATED, commissioned=datetime(2020, 1, 1, tzinfo=UTC))
    client = Client(clock, devices=[old])
    assert client.send(history("2023-05-01T00:00:00Z", "2023-05-02T00:00:00Z"), "x")[0] == 409
    assert client.send(history("2023-05-01T00:00:01Z", "2023-05-02T00:00:00Z"), "x")[0] == 201
    assert client.rules == ["H6"]


# -- reading back --------------------------------------------------------------------------------------------------

LIST = "/meter-reads/new/SG0042-roof?readType=meterReads&start={start}&end={end}&pagenumber={page}"


def page(client: Client, start: str, end: str, number: object = 1) -> tuple[int, Any]:
    return client.call("GET", LIST.format(start=start, end=end, page=number))


def test_a_read_is_found_by_its_end_plus_a_millisecond(client: Client) -> None:
    client.send(read(DAY, 5))
    status, answer = page(client, "2026-05-02T00:00:00.000Z", "2026-05-02T00:00:00.001Z")
    jsonschema.validate(answer, READ_PAGE)
    assert status == 200
    assert [(row["enddate"], row["value"]) for row in answer["ongoing"]] == [("2026-05-02T00:00:00.000Z", 5)]
    assert page(client, "2026-05-01T00:00:00Z", DAY)[1]["ongoing"] == [], "the end is not part of the range"
    assert client.rules == []


def test_reads_come_in_pages_of_five_whose_first_start_is_wrong(client: Client) -> None:
    for day in range(2, 9):
        client.send(read(f"2026-05-{day:02d}T00:00:00Z", day))
    _, first = page(client, "2026-04-01T00:00:00Z", "2026-06-01T00:00:00Z")
    assert (len(first["ongoing"]), first["numberOfReads"], first["numberOfPages"]) == (5, 7, 2)
    assert first["ongoing"][1] == {
        "startdate": "2026-05-02T00:00:00.000Z",
        "enddate": "2026-05-03T00:00:00.000Z",
        "value": 3,
    }
    _, second = page(client, "2026-04-01T00:00:00Z", "2026-06-01T00:00:00Z", 2)
    assert [row["value"] for row in second["ongoing"]] == [7, 8]
    assert second["ongoing"][0]["startdate"] == "2026-05-02T00:00:00.000Z"
    _, beyond = page(client, "2026-04-01T00:00:00Z", "2026-06-01T00:00:00Z", 3)
    assert (beyond["ongoing"], beyond["currentPageNumber"]) == ([], 1)


def test_history_is_read_back_apart(client: Client) -> None:
    client.send(history("2026-04-01T00:00:00Z", "2026-04-02T00:00:00Z"))
    _, answer = page(client, "2026-04-02T00:00:00Z", "2026-04-02T00:00:00.001Z")
    assert [row["enddate"] for row in answer["historyread"]] == ["2026-04-02T00:00:00.000Z"]
    assert answer["ongoing"] == []


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        (LIST.format(start=DAY, end=DAY, page=1), 400, "The given start and end timestamps are the same"),
        (LIST.format(start=DAY, end=NEXT, page=0), 400, "error parsing query"),
        (LIST.format(start=DAY, end=NEXT, page=-1), 400, "error parsing query"),
        (LIST.format(start=DAY, end=NEXT, page="x"), 400, "error parsing query"),
        (LIST.format(start=DAY, end="", page=1), 400, "error parsing query"),
        (LIST.format(start=DAY, end=NEXT, page=1).replace("meterReads", "reads"), 400, "Invalid readType parameter"),
        (LIST.format(start=DAY, end=NEXT, page=1) + "&Month=5", 400, "Year is required when month is given"),
        (LIST.format(start=DAY, end=NEXT, page=1).replace("SG0042-roof", "x"), 409, "Invalid device id"),
        ("/meter-reads/latestread/SG0042-roof", 400, "Read not found"),
        ("/meter-reads/latestread/x", 409, "Invalid device id"),
    ],
)
def test_a_wrong_question_is_refused(client: Client, target: str, status: int, words: str) -> None:
    got, answer = client.call("GET", target)
    assert got == status
    assert words in answer["message"]


def test_sums_by_month_and_year(client: Client) -> None:
    client.send(read("2026-05-02T06:00:00Z", 5))
    client.send(read("2026-05-02T18:00:00Z", 6))
    target = "/meter-reads/new/SG0042-roof?readType=accumulated&accumulationType="
    assert client.call("GET", target + "Monthly&Month=5&Year=2026")[1]["accumulatedReads"] == [
        {"startTime": "2026-05-02", "value": 11}
    ]
    assert client.call("GET", target + "Yearly&Year=2026")[1]["accumulatedReads"][0]["value"] == 11
    status, answer = client.call("GET", target + "Monthly&Month=6&Year=2026")
    assert (status, answer["message"]) == (409, "No reads found")
    assert client.rules == []


def test_the_latest_read_and_the_devices(client: Client) -> None:
    client.send(read(DAY, 5))
    assert client.call("GET", "/meter-reads/latestread/SG0042-roof") == (
        200,
        {"enddate": "2026-05-02T00:00:00.000Z", "value": 5},
    )
    [device] = client.call("GET", "/device/my")[1]
    assert device["createdAt"] == "2026-05-01T00:00:00.000Z"
    assert (device["capacity"], device["yieldValue"], device["meterReadtype"]) == (10, 2000, "Delta")
    paged = client.call("GET", "/device/my?pagenumber=1")[1]
    assert (paged["devices"], paged["totalCount"]) == ([device], 1)
    assert client.call("GET", f"/device/{device['id']}") == (200, device)
    assert client.call("GET", "/device/999") == (200, None)
    assert client.call("GET", "/device/externalId/SG0042-ROOF") == (200, device)
    assert client.call("GET", "/device/externalId/x")[0] == 500
    assert client.rules == []


def test_an_unknown_path_names_itself_and_there_is_no_health_page(client: Client) -> None:
    assert client.call("GET", "/health") == (
        404,
        {"statusCode": 404, "message": "Cannot GET /api/health", "error": "Not Found"},
    )


# -- tokens --------------------------------------------------------------------------------------------------------

CREDENTIALS = {"username": "Gateway@Example.org", "password": "sandbox1"}


def login(client: Client) -> str:
    status, answer = client.call("POST", "/auth/login", CREDENTIALS, token="")
    assert status == 200
    return str(answer["accessToken"])


def test_login_gives_a_jwt_for_180_days(client: Client) -> None:
    token = login(client)
    head, claims, _ = token.split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"alg": "HS256", "typ": "JWT"}
    told = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert told["exp"] - told["iat"] == 180 * 86_400
    assert told.keys() == {"email", "id", "role", "iat", "exp"}
    client.clock.leap(days=180, seconds=-1)
    assert client.call("GET", "/device/my", token=token)[0] == 200
    client.clock.leap(seconds=1)
    assert client.call("GET", "/device/my", token=token) == (401, {"statusCode": 401, "message": "Unauthorized"})


def test_two_logins_in_one_second_are_one_session(client: Client) -> None:
    first, second = login(client), login(client)
    assert first == second
    assert client.call("POST", "/auth/logout", token=first) == (200, {"message": "Logout successful"})
    status, answer = client.call("GET", "/device/my", token=second)
    assert (status, answer["message"]) == (401, "Token revoked. Please log in again.")


def test_a_revoked_session_is_told_apart_from_a_bad_token(client: Client) -> None:
    token = login(client)
    client.sandbox.revoke()
    assert "Token revoked" in client.call("GET", "/device/my", token=token)[1]["message"]
    forged = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    assert client.call("GET", "/device/my", token=forged)[1]["message"] == "Unauthorized"
    assert client.rules == [], "an expired token is no broken rule"


def test_a_fresh_session_may_be_late_once(client: Client) -> None:
    client.sandbox.drec.session_race = True
    token = login(client)
    assert [client.call("GET", "/device/my", token=token)[0] for _ in range(2)] == [401, 200]


@pytest.mark.parametrize(
    "body", [{}, {"username": "gateway@example.org"}, CREDENTIALS | {"password": "no"}, CREDENTIALS | {"username": 7}]
)
def test_wrong_credentials_are_unauthorized(client: Client, body: object) -> None:
    assert client.call("POST", "/auth/login", body, token="") == (401, {"statusCode": 401, "message": "Unauthorized"})


def test_without_a_token_nothing_is_told(client: Client) -> None:
    assert client.call("GET", "/device/my", token="")[0] == 401
    assert client.rules == ["no-bearer"]


def test_every_request_has_a_kind() -> None:
    kinds = {
        ("POST", "/auth/login"): "drec.login",
        ("POST", "/auth/logout"): "drec.logout",
        ("POST", "/meter-reads/new/x"): "drec.send",
        ("GET", "/meter-reads/new/x"): "drec.read",
        ("GET", "/meter-reads/latestread/x"): "drec.latest",
        ("POST", "/meter-reads/x"): "drec.legacy",
        ("GET", "/device/my"): "drec.mine",
        ("GET", "/device/1"): "drec.device",
        ("GET", "/device/externalId/x"): "drec.device",
        ("DELETE", "/device/1"): "drec.other",
    }
    assert {key: Drec.kind(*key) for key in kinds} == kinds

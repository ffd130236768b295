"""D-REC: pairs of days and JSON, every rule of the platform sheet, and days that travel together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest

from heliograph.core.delivery import FOLLOWS, DayRow, Missing, Parcel, Stored, Unknown, Verdict
from heliograph.uplink.drec import CODES, MERGING, RULES, Drec, Plant, ReadType, ceiling_wh, classify
from heliograph.uplink.http import Answer, Http
from heliograph.uplink.tokens import Secret, StaticToken

NOW = datetime(2026, 5, 10, tzinfo=UTC)
FIRST = date(2026, 5, 1)
HOUR = timedelta(hours=1)
Handler = Callable[[httpx.Request], httpx.Response]


def row(id: int = 1, day: int = 0, period: int = 41250, meter: str = "roof", **more: Any) -> DayRow:
    """A day in Singapore: it ends at 16:00 UTC. Every row gets a total that follows from its own period."""
    at = datetime(2026, 4, 30, 16, tzinfo=UTC) + timedelta(days=day)
    total = more.pop("total", 1000 + period)
    end = more.pop("end", at + timedelta(days=1))
    return DayRow(id, meter, f"SG-{meter}", FIRST + timedelta(days=day), at, end, period, total, **more)


class Server:
    """Answers POSTs from a list and GETs from the reads it holds, a page of five at a time."""

    def __init__(self, *answers: httpx.Response | Exception, held: dict[str, Any] | None = None, size: int = 5) -> None:
        self.answers, self.held, self.size = list(answers), dict(held or {}), size
        self.posts: list[tuple[str, Any]] = []
        self.gets: list[dict[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer tok-CANARY"
        if request.method == "POST":
            self.posts.append((request.url.raw_path.decode(), json.loads(request.content)))
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        query = dict(request.url.params)
        self.gets.append(query)
        return reply(200, self.page(query["start"], query["end"], int(query["pagenumber"])))

    def page(self, start: str, end: str, number: int) -> Any:
        inside = [(at, value) for at, value in sorted(self.held.items()) if when(start) <= when(at) <= when(end)]
        pages = -(-len(inside) // self.size)
        reads = [
            {"startdate": start, "enddate": at, "value": value}
            for at, value in inside[(number - 1) * self.size : number * self.size]
        ]
        return {
            "historyread": [],
            "ongoing": reads,
            "numberOfReads": len(inside),
            "numberOfPages": pages,
            "currentPageNumber": number if reads else 1,
            "timezone": "Asia/Singapore",
        }


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def reply(status: int, body: Any = b"", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(
        status, content=content, headers={key.replace("_", "-"): text for key, text in headers.items()}
    )


def refusal(status: int, message: Any, **more: Any) -> httpx.Response:
    return reply(status, {"success": False, "message": message, **more})


def uplink(server: Handler | None = None, kind: ReadType = "Delta", **more: Any) -> Drec:
    def nothing(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"nothing should have been sent: {request.url}")

    http = Http("https://platform.example/api", timeout=30, transport=httpx.MockTransport(server or nothing))
    tokens = StaticToken(Secret(env="T", environ={"T": "tok-CANARY"}))
    more.setdefault("now", lambda: NOW)
    return Drec("drec", http, kind, tokens, jitter=lambda: 0.5, sleep=lambda _: None, **more)


def packed(given: Sequence[DayRow], kind: ReadType = "Delta", **more: Any) -> tuple[list[int], Any] | None:
    parcel = uplink(kind=kind, **more).pack(given)
    return None if parcel is None else ([row.id for row in parcel.rows], json.loads(parcel.body)["reads"][0])


# Days and JSON


def test_a_read_is_one_whole_number_of_wh_at_the_end_of_the_day() -> None:
    parcel = uplink().pack([row()])
    assert parcel is not None
    assert parcel.path == "/meter-reads/new/SG-roof"
    assert parcel.body == (
        b'{"type":"Delta","unit":"Wh","reads":[{"endtimestamp":"2026-05-01T16:00:00Z","value":41250}]}'
    )


def test_an_organization_is_a_number_and_a_name_is_quoted() -> None:
    parcel = uplink(organization=7).pack([replace(row(), remote_id="Dach 1/Süd")])
    assert parcel is not None
    assert parcel.path == "/meter-reads/new/Dach%201%2FS%C3%BCd"
    assert json.loads(parcel.body)["organizationId"] == 7


def test_a_fraction_of_a_second_is_not_sent() -> None:
    end = datetime(2026, 5, 1, 16, 0, 0, 999_999, tzinfo=UTC)
    assert packed([row(end=end)]) == ([1], {"endtimestamp": "2026-05-01T16:00:00Z", "value": 41250})


@pytest.mark.parametrize(
    ("given", "taken", "value", "end"),
    [
        ([row(1, 0, 5), row(2, 1, 6)], [1], 5, "2026-05-01T16:00:00Z"),
        ([row(1, 0, 0), row(2, 1, 6)], [1, 2], 6, "2026-05-02T16:00:00Z"),
        ([row(1, 0, 0), row(2, 1, 0), row(3, 2, 7), row(4, 3, 8)], [1, 2, 3], 7, "2026-05-03T16:00:00Z"),
        ([row(1, 0, 5, last_rule="L4"), row(2, 1, 6)], [1, 2], 11, "2026-05-02T16:00:00Z"),
        ([row(1, 0, 5, last_rule="S6"), row(2, 1, 6)], [1, 2], 11, "2026-05-02T16:00:00Z"),
        ([row(1, 0, 5, last_rule="E-5010"), row(2, 1, 6)], [1, 2], 11, "2026-05-02T16:00:00Z"),
        (
            [row(1, 0, 5, last_rule="L4"), row(2, 1, 6, last_rule="L4"), row(3, 2, 7)],
            [1, 2, 3],
            18,
            "2026-05-03T16:00:00Z",
        ),
        ([row(1, 0, 5, last_rule="L4"), row(2, 1, 0), row(3, 2, 7)], [1, 2, 3], 12, "2026-05-03T16:00:00Z"),
        ([row(1, 0, 5, last_rule="T1"), row(2, 1, 6)], [1], 5, "2026-05-01T16:00:00Z"),
        ([row(1, 0, 0), row(2, 0, 5, "barn")], [2], 5, "2026-05-01T16:00:00Z"),
        ([row(1, 0, 5, last_rule="L4"), row(2, 0, 5, "barn")], [2], 5, "2026-05-01T16:00:00Z"),
    ],
)
def test_what_cannot_be_sent_alone_rides_along_with_the_next_day(
    given: list[DayRow], taken: list[int], value: int, end: str
) -> None:
    assert packed(given) == (taken, {"endtimestamp": end, "value": value})


@pytest.mark.parametrize("given", [[], [row(1, 0, 0)], [row(1, 0, 0), row(2, 1, 0)], [row(1, 0, 5, last_rule="L4")]])
def test_what_has_nobody_to_ride_with_waits(given: list[DayRow]) -> None:
    assert packed(given) is None


def test_aggregate_sends_the_running_total_from_its_own_zero() -> None:
    given = [row(1, 0, 0, total=900_000), row(2, 1, 500, total=900_500), row(3, 2, 700, total=901_200)]
    zero = {"roof": 900_000}
    assert packed(given, "Aggregate", zero_wh=zero) == ([1, 2], {"endtimestamp": "2026-05-02T16:00:00Z", "value": 500})
    assert packed(given[2:], "Aggregate", zero_wh=zero) == (
        [3],
        {"endtimestamp": "2026-05-03T16:00:00Z", "value": 1200},
    )
    assert packed(given[1:], "Aggregate") == ([2], {"endtimestamp": "2026-05-02T16:00:00Z", "value": 900_500})


def test_a_day_of_the_same_total_rides_along() -> None:
    given = [row(1, 0, 0, total=5), row(2, 1, 3, total=8)]
    assert packed(given, "Aggregate") == ([1, 2], {"endtimestamp": "2026-05-02T16:00:00Z", "value": 8})


# The ceiling (7.1): 6.58 kWh per kW and day for a new plant with the default yield


@pytest.mark.parametrize(
    ("plant", "hours", "wh"),
    [
        (Plant(1), 24, 6575),
        (Plant(10), 1, 2739),
        (Plant(1, 1500), 24, 4931),
        (Plant(1, commissioned=date(2025, 5, 1)), 24, 6575),
        (Plant(1, commissioned=date(2027, 5, 1)), 24, 6575),
        (Plant(1, commissioned=date(2016, 5, 1)), 24, 6285),
    ],
)
def test_the_ceiling_is_the_servers(plant: Plant, hours: int, wh: int) -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    assert int(ceiling_wh(plant, start, start + hours * HOUR, reserve=0)) == wh


@pytest.mark.parametrize(
    ("periods", "taken"),
    [
        ([6000, 6000], [1]),
        ([6500, 1], [1, 2]),  # above the ceiling less its reserve
        ([6500, 6500, 100], [1, 2, 3]),
        ([9000, 9000, 9000, 9000, 9000], [1, 2, 3, 4]),  # beyond three days the server decides
        ([9000, 9000], None),
    ],
)
def test_days_above_the_ceiling_are_merged_before_they_are_sent(periods: list[int], taken: list[int] | None) -> None:
    given = [row(n + 1, n, period) for n, period in enumerate(periods)]
    found = packed(given, plants={"roof": Plant(1)})
    assert (found and found[0]) == taken


# Answers and verdicts

LONG_AGO = "The sent date/value for reading 2026-05-01T16:00:00.000Z/41250 is less than last sent mter read date/value"
FIX_BODY = {"statusCode": 400, "error": "Bad Request"}

# rule, answer, state of the day, and whether everything pauses
TABLE: list[tuple[str, httpx.Response | Exception, str, bool]] = [
    ("T1", httpx.ConnectError("refused"), "due", True),
    ("T1", httpx.ReadTimeout("S1: an empty list of reads hangs like this"), "unclear", False),
    ("T1", httpx.ReadError("reset"), "unclear", False),
    ("T1", reply(502, b"<html>Bad Gateway</html>"), "unclear", False),
    ("T1", reply(503, {"statusCode": 503, "message": "x"}), "unclear", False),
    ("T1", reply(504), "unclear", False),
    ("T2", reply(429, {"statusCode": 429, "message": "slow down"}, Retry_After="5"), "due", True),
    ("T2", refusal(429, "x", error="E-5004"), "due", True),
    ("T2", reply(413, {"statusCode": 413, "message": "request entity too large"}), "rejected", False),
    ("T2", reply(413, b"<html>"), "rejected", False),
    ("T3", reply(401, {"statusCode": 401, "message": "Unauthorized"}), "due", True),
    ("T3", reply(401, {"statusCode": 401, "message": "jwt expired", "error": "x"}), "due", True),
    ("T4", reply(401, {"statusCode": 401, "message": "Token revoked. Please log in again."}), "due", True),
    ("T5", reply(401, {"statusCode": 401, "message": "Please verify your email address"}), "due", True),
    ("T5", reply(401, {"statusCode": 401, "message": "Please accept the terms and conditions"}), "due", True),
    ("T5", reply(403, {"statusCode": 403, "message": "Your account is pending approval by us"}), "due", True),
    ("T5", reply(403, {"statusCode": 403, "message": "Your account has been suspended"}), "due", True),
    ("T6", reply(403, {"statusCode": 403, "message": "Forbidden resource", "error": "Forbidden"}), "due", True),
    ("T6", reply(403, {"statusCode": 403, "message": "User is deleted"}), "due", True),
    ("T7", reply(412, {"message": "Only active users can perform this action"}), "due", True),
    ("T8", reply(400, {**FIX_BODY, "message": "Unexpected token } in JSON at position 9"}), "rejected", False),
    (
        "T9",
        reply(400, {**FIX_BODY, "message": ["type must be one of the following values: History"]}),
        "rejected",
        False,
    ),
    ("T10", reply(400, {"statusCode": 400, "message": "partial write: field type conflict"}), "unclear", False),
    ("T10", reply(401, {"statusCode": 401, "message": "unable to parse authentication credentials"}), "unclear", False),
    ("T10", reply(500, {"statusCode": 500, "message": "timeout"}), "unclear", False),
    ("T11", reply(500, {"statusCode": 500, "message": "Internal server error"}), "unclear", False),  # S3, S5, S8 too
    ("D1", reply(404, {"statusCode": 404, "message": "No organization found with id 3"}), "due", True),
    ("D2", refusal(409, "Organization in measurement is not same as user's organization"), "due", True),
    ("D3", refusal(409, "Organization 5 in measurement is not part of your organization"), "due", True),
    ("D4", reply(401, {"success": False, "message": "Unauthorized"}), "due", True),
    ("D5", refusal(409, "Invalid device id"), "due", False),
    ("D6", refusal(409, "Device doesnt belongs to the requested users organization"), "held", False),
    ("D6", refusal(409, "Device doesn't belongs to the requested users organization"), "held", False),
    ("S2", refusal(409, "can not allow multiple reads simultaneously"), "rejected", False),
    (
        "E1",
        refusal(409, "endtimestamp null is less than or equal to device onboarding date 2026"),
        "rejected",
        False,
    ),  # S4
    ("S6", refusal(409, "meter read value should be greater then 0"), "due", False),
    ("Z1", refusal(409, "Invalid time zone: Mars"), "rejected", False),
    ("Z1", reply(400, {**FIX_BODY, "message": ["Invalid timezone: Mars"]}), "rejected", False),
    ("Z2", refusal(409, "Invalid date sent 2026-05-01T16:00:00Z"), "rejected", False),
    ("E1", refusal(409, "... is less than or equal to device onboarding  date Fri May 01"), "rejected", False),
    ("E2", refusal(409, "x should be greater than to device commissioningDate date 2027"), "rejected", False),
    ("E3", refusal(409, "x is greater than current date 2026"), "due", False),
    ("E4", refusal(409, "Invalid  End Date, valid format is YYYY"), "rejected", False),
    ("E4", refusal(409, "One ore more End Date values are not valid"), "rejected", False),
    (
        "L1",
        reply(404, {"message": "In this device you can add read for Aggregate type but you are sending  Delta"}),
        "held",
        False,
    ),
    ("L4", refusal(409, "Failed, MaxEnergy: 40123.5"), "due", False),
    ("L4", refusal(409, "failed,  MaxEnergy: 1e-7"), "due", False),
    ("H1", refusal(409, "Invalid Start Date and/or End Date"), "rejected", False),
    ("H1", refusal(409, "One ore more Start Date and End Date values are not valid"), "rejected", False),
    ("H2", refusal(409, "starttimestamp should be prior to endtimestamp"), "rejected", False),
    (
        "H3",
        refusal(409, "For History reading start timestamp and end timestamp should be prior to Onboarding"),
        "rejected",
        False,
    ),
    (
        "H6",
        refusal(
            409,
            "For History Type Reads of devices start time and/or end time should be within 3 year of device onboarding",
        ),
        "rejected",
        False,
    ),
    ("H8", refusal(409, "Failed,read value is greater than from MaxEnergy"), "due", False),
    ("U404", reply(404, {"statusCode": 404, "message": "Cannot POST /meter-reads", "error": "Not Found"}), "due", True),
    ("U409/1", refusal(409, "something new"), "due", False),
    ("U409/1", refusal(400, "something new", error="E-9999"), "due", False),
    ("U5xx", reply(501, b"<html>"), "unclear", False),
    ("U5xx", refusal(500, "something new"), "unclear", False),
    ("shape", reply(409, b"<html>"), "unclear", False),
    ("shape", reply(400, b""), "unclear", False),
    ("E-1001", reply(401, {"statusCode": 401, "message": "x", "error": "E-1001"}), "due", True),
    ("E-1003", reply(401, {"statusCode": 401, "message": "terms", "error": "E-1003"}), "due", True),
    ("E-5001", reply(400, {"statusCode": 400, "message": "x", "error": "E-5001"}), "rejected", False),
    ("E-5005", reply(404, {"statusCode": 404, "message": "x", "error": "E-5005"}), "held", False),
    ("E-5007", reply(409, {"statusCode": 409, "message": "x", "error": "E-5007"}), "rejected", False),
    ("E-5008", reply(409, {"statusCode": 409, "message": "x", "error": "E-5008"}), "rejected", False),
    ("E-5009", reply(400, {"statusCode": 400, "message": "x", "error": "E-5009"}), "due", False),
    ("E-5010", reply(400, {"statusCode": 400, "message": "x", "error": "E-5010"}), "due", False),
    ("E-5201", reply(500, {"statusCode": 500, "message": "x", "error": "E-5201"}), "unclear", False),
]


def judged(
    answer: httpx.Response | Exception,
    given: Sequence[DayRow] = (row(),),
    kind: ReadType = "Delta",
    held: dict[str, Any] | None = None,
    **more: Any,
) -> Verdict:
    drec = uplink(Server(answer, answer, held=held), kind, **more)
    verdicts = drec.send(parcel_of(drec, given))
    assert set(verdicts) == {row.id for row in given}
    (verdict,) = set(verdicts.values())
    assert verdict.state in FOLLOWS["unclear"] | {"unclear"}
    assert "CANARY" not in verdict.text
    return verdict


def parcel_of(drec: Drec, given: Sequence[DayRow]) -> Parcel:
    parcel = drec.pack(given)
    assert parcel is not None
    assert parcel.rows == tuple(given)
    return parcel


@pytest.mark.parametrize(("rule", "answer", "state", "pause"), TABLE)
def test_every_refusal_has_its_rule_and_its_state(
    rule: str, answer: httpx.Response | Exception, state: str, pause: bool
) -> None:
    verdict = judged(answer)
    assert (verdict.rule, verdict.state, verdict.pause_all) == (rule, state, pause)
    assert verdict.remedy


def test_every_rule_has_an_answer_in_these_tests() -> None:
    tested = {rule for rule, *_ in TABLE} | {
        "L2",
        "L3",
        "A1",
        "A2",
        "A4",
        "H4",
        "H5",
        "H7",
    }  # the latter have their own
    assert {rule.id for rule in RULES} <= tested


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ("meter read value should be greater then 0", "H4"),
        ("One or more measurements starttimestamp should be greater than to device commissioning date", "H5"),
        ("One or more measurements endtimestamp should be greater than to device commissioning date", "H5"),
        ("There are already one or more historical entries for this device", "H7"),
        ("Failed,read value is greater than from MaxEnergy", "H8"),
    ],
)
def test_rules_of_history_are_told_apart_although_we_never_send_it(message: str, rule: str) -> None:
    answer = Answer(409, json={"success": False, "message": message})
    assert classify(answer, "History").id == rule


def test_every_documented_code_is_known() -> None:
    assert set(CODES) == {
        *(f"E-{n}" for n in (1001, 1002, 1003, 1004, 1005, 1006)),
        *(f"E-{n}" for n in (*range(5001, 5014), 5015, 5016, 5201, 5202, 5203, 5204)),
    }
    assert {"L4", "A2", "S6", "H8", "E-5010"} <= MERGING


def test_a_text_wins_over_a_code() -> None:
    body = {"statusCode": 409, "message": "Failed, MaxEnergy: 12", "error": "E-5001"}
    assert judged(reply(409, body)).rule == "L4"


@pytest.mark.parametrize(
    ("answer", "wait"),
    [
        (reply(429, b"", Retry_After="30"), timedelta(seconds=35.5)),
        (reply(429, b""), timedelta(seconds=60)),
        (reply(503, b"", Retry_After="30"), timedelta(seconds=30)),
        (reply(401, {"statusCode": 401, "message": "Unauthorized"}), timedelta(minutes=5)),
        (refusal(409, "Invalid device id"), HOUR),
        (refusal(409, "is greater than current date", error=""), timedelta(minutes=10)),
        (
            reply(409, {"message": "x is greater than current date"}, Date="Fri, 01 May 2026 15:59:00 GMT"),
            timedelta(seconds=65),
        ),
        (
            reply(409, {"message": "x is greater than current date"}, Date="Sat, 02 May 2026 00:00:00 GMT"),
            timedelta(minutes=10),
        ),
    ],
)
def test_an_answer_that_asks_for_time_gets_it(answer: httpx.Response, wait: timedelta) -> None:
    assert judged(answer).wait == wait


@pytest.mark.parametrize(
    ("answer", "state", "rule"),
    [
        (reply(201), "accepted", "S201"),  # L5 and S7 as well: nothing in the answer tells a first read or a zero
        (reply(201, b"\n"), "accepted", "S201"),
        (reply(201, {}), "accepted", "S201"),
        (reply(200, {}), "accepted", "S200"),
        (reply(200), "unclear", "shape"),
        (reply(204), "unclear", "shape"),
        (reply(201, {"id": 1}), "unclear", "shape"),
        (reply(201, []), "unclear", "shape"),
        (reply(201, b'{"success": tr'), "unclear", "shape"),
        (reply(200, {"success": False, "message": "no"}), "unclear", "shape"),
        (reply(200, b"<html>Sign in</html>"), "unclear", "portal"),
        (reply(201, b"<html>Sign in</html>"), "unclear", "portal"),
        (reply(302, b"", Location="https://portal/"), "unclear", "portal"),
        (reply(511, b""), "unclear", "portal"),
    ],
)
@pytest.mark.parametrize("kind", ["Delta", "Aggregate"])
def test_only_the_platforms_own_success_is_accepted(
    answer: httpx.Response, state: str, rule: str, kind: ReadType
) -> None:
    verdict = judged(answer, kind=kind)
    assert (verdict.state, verdict.rule) == (state, rule)


def test_a_merged_day_that_is_still_too_much_after_three_days_is_held() -> None:
    days = [row(n + 1, n, 5, last_rule="L4" if n < 3 else "") for n in range(4)]
    low = refusal(409, "Failed, MaxEnergy: 12")
    assert (judged(low, [*days[:2], replace(days[2], last_rule="")]).state, judged(low, days).state) == ("due", "held")
    assert "yieldValue" in judged(low, days).remedy


def test_an_unknown_refusal_is_tried_three_times_over_a_day_and_put_aside() -> None:
    strange, rule, seen = refusal(409, "something new"), "", []
    for _ in range(3):
        verdict = judged(strange, [row(last_rule=rule)])
        seen.append((verdict.state, verdict.rule, verdict.wait))
        rule = verdict.rule
    eight = timedelta(hours=8)
    assert seen == [("due", "U409/1", eight), ("due", "U409/2", eight), ("rejected", "U409", None)]


def test_a_server_that_fails_on_one_day_for_24_hours_gets_it_put_aside() -> None:
    now = [NOW]
    broken = reply(500, {"statusCode": 500, "message": "Internal server error"})
    drec = uplink(Server(broken, broken, reply(201), broken, broken, broken), now=lambda: now[0])
    parcel = parcel_of(drec, [row()])
    states = []
    for hours in (0, 23, 2, 1, 23.9, 0.2):
        now[0] += hours * HOUR
        states.append(drec.send(parcel)[1].state)
    assert states == ["unclear", "unclear", "accepted", "unclear", "unclear", "rejected"]


# A read that is there already

OVERTAKEN = refusal(409, "endtimestamp 2026 is less than last sent meter read date 2027")
EQUAL_END = refusal(409, "Failed, MaxEnergy: 0")
END, NEXT = "2026-05-01T16:00:00.000Z", "2026-05-02T16:00:00.000Z"


@pytest.mark.parametrize(
    ("answer", "kind", "held", "state", "rule"),
    [
        (EQUAL_END, "Delta", {END: 41250}, "confirmed", "L3"),
        (EQUAL_END, "Delta", {END: 41249}, "rejected", "L3"),
        (EQUAL_END, "Delta", {}, "rejected", "L3"),
        (OVERTAKEN, "Delta", {END: 41250, NEXT: 9}, "confirmed", "L2"),
        (OVERTAKEN, "Delta", {NEXT: 41250}, "rejected", "L2"),
        (OVERTAKEN, "Delta", {END: 7, NEXT: 9}, "rejected", "L2"),
        (refusal(409, LONG_AGO), "Aggregate", {END: 42250}, "confirmed", "A1"),  # the total
        (refusal(409, LONG_AGO), "Aggregate", {END: 41250}, "confirmed", "A1"),  # or the increment
        (refusal(409, LONG_AGO.replace("mter", "meter")), "Aggregate", {END: 41250}, "confirmed", "A1"),
        (refusal(409, LONG_AGO), "Aggregate", {}, "held", "A1"),
        (EQUAL_END, "Aggregate", {END: 40000}, "rejected", "A4"),
        (refusal(409, "already one or more historical entries"), "Delta", {END: 41250}, "confirmed", "H7"),
        (
            reply(409, {"statusCode": 409, "message": "x", "error": "E-5004"}),
            "Delta",
            {END: 41250},
            "confirmed",
            "E-5004",
        ),
    ],
)
def test_a_read_that_is_there_already_is_looked_up_at_once(
    answer: httpx.Response, kind: ReadType, held: dict[str, Any], state: str, rule: str
) -> None:
    verdict = judged(answer, kind=kind, held=held)
    assert (verdict.state, verdict.rule) == (state, rule)


def test_a_different_read_is_told_with_both_figures() -> None:
    text = judged(EQUAL_END, held={END: 41249}).text
    assert "41249 Wh" in text
    assert "41250 Wh here" in text


def test_an_aggregate_refused_after_an_earlier_failure_was_lost_at_the_platform() -> None:
    verdict = judged(refusal(409, LONG_AGO), [row(last_rule="T10")], "Aggregate", {})
    assert (verdict.state, verdict.rule) == ("rejected", "A5")
    assert "holds no read" in verdict.text


@pytest.mark.parametrize(("energy", "rule", "state"), [("123.4", "A2", "due"), ("0", "A4", "rejected")])
def test_the_ceiling_of_an_aggregate_waits_for_a_later_value(energy: str, rule: str, state: str) -> None:
    verdict = judged(refusal(409, f"Failed, MaxEnergy: {energy}"), kind="Aggregate")  # A2; A3 reads the same
    assert (verdict.rule, verdict.state) == (rule, state)


def test_days_that_travelled_together_are_confirmed_together() -> None:
    given = [row(1, 0, 0), row(2, 1, 6)]
    assert judged(EQUAL_END, given, held={NEXT: 6}).state == "confirmed"
    assert judged(EQUAL_END, given, held={NEXT: 7}).state == "rejected"


def test_a_look_that_fails_leaves_the_day_unclear() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        return EQUAL_END if request.method == "POST" else reply(503)

    drec = uplink(broken)
    assert (drec.send(parcel_of(drec, [row()]))[1].state) == "unclear"


# Tokens


class Sessions:
    """A platform that answers by the token it is given, and what it saw."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers, self.seen, self.slept = list(answers), list[str](), list[float]()
        self.number = 1

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.headers["authorization"])
        return self.answers.pop(0)

    def token(self, now: datetime) -> str:
        del now
        return f"t{self.number}"

    def renew(self, now: datetime, refused: str) -> bool:
        del now, refused
        self.number += 1
        return True

    by_hand = False

    def expiry(self) -> datetime | None:
        return None

    def secrets(self) -> frozenset[str]:
        return frozenset()

    def send(self) -> Verdict:
        http = Http("https://platform.example/api", transport=httpx.MockTransport(self))
        drec = Drec("drec", http, "Delta", self, lambda: NOW, sleep=self.slept.append)
        return drec.send(parcel_of(drec, [row()]))[1]


def unauthorized(message: str, **more: Any) -> httpx.Response:
    return reply(401, {"statusCode": 401, "message": message, **more})


@pytest.mark.parametrize(
    ("answers", "sent", "slept", "state", "rule"),
    [
        ([unauthorized("Unauthorized"), reply(201)], ["t1", "t2"], [], "accepted", "S201"),
        ([unauthorized("Unauthorized")] * 2, ["t1", "t2"], [], "due", "T3"),
        ([unauthorized("Token revoked"), reply(201)], ["t1", "t1"], [0.5], "accepted", "S201"),
        ([unauthorized("Token revoked")] * 2 + [reply(201)], ["t1", "t1", "t2"], [0.5], "accepted", "S201"),
        ([unauthorized("Token revoked")] * 3, ["t1", "t1", "t2"], [0.5], "due", "T4"),
        ([unauthorized("session expired")] * 2, ["t1", "t2"], [], "unclear", "T10"),
        ([unauthorized("x", error="E-1002"), reply(201)], ["t1", "t2"], [], "accepted", "S201"),
        ([reply(401, {"success": False, "message": "Unauthorized"})], ["t1"], [], "due", "D4"),
        ([unauthorized("Please verify your organization")], ["t1"], [], "due", "T5"),
        ([reply(401, b"<html>")] * 2, ["t1", "t2"], [], "due", "T3"),
    ],
)
def test_a_refused_token_is_renewed_once_unless_a_new_one_cannot_help(
    answers: list[httpx.Response], sent: list[str], slept: list[float], state: str, rule: str
) -> None:
    sessions = Sessions(*answers)
    verdict = sessions.send()
    assert [text.removeprefix("Bearer ") for text in sessions.seen] == sent
    assert (sessions.slept, verdict.state, verdict.rule, sessions.answers) == (slept, state, rule, [])


# What it holds


def ends(day: int) -> str:
    return (datetime(2026, 5, 1, 16, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def test_reads_are_found_by_their_end() -> None:
    server = Server(held={ends(0): 10, ends(1): 99, ends(5): 5})
    found = uplink(server).ask([row(1, 0, 10), row(2, 1, 20), row(3, 2, 30)])
    assert found == {1: Stored(10, None), 2: Stored(99, None), 3: Missing()}
    assert server.gets == [
        {
            "readType": "meterReads",
            "start": "2026-05-01T16:00:00Z",
            "end": "2026-05-03T16:00:00.001Z",
            "pagenumber": "1",
        }
    ]


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({ends(2): 33}, {1: Stored(0, None), 2: Stored(11, None), 3: Stored(22, None)}),
        ({}, {1: Missing(), 2: Missing(), 3: Missing()}),
        ({ends(0): 33}, {1: Missing(), 2: Missing(), 3: Missing()}),  # somebody else's read at another end
    ],
)
def test_days_of_one_request_are_one_read(held: dict[str, Any], told: dict[int, object]) -> None:
    given = [row(1, 0, 0, claim=7), row(2, 1, 11, claim=7), row(3, 2, 22, claim=7)]
    assert uplink(Server(held=held)).ask(given) == told


def test_a_merged_read_of_another_value_is_held_as_a_whole() -> None:
    found = uplink(Server(held={ends(1): 12})).ask([row(1, 0, 0, claim=7), row(2, 1, 11, claim=7)])
    verdicts = [entry.verdict for entry in found.values() if isinstance(entry, Unknown)]
    assert [(verdict.state, verdict.rule) for verdict in verdicts] == [("held", "differs")] * 2
    assert "12 Wh" in verdicts[0].text
    assert "11 Wh here for 2 days" in verdicts[0].text


@pytest.mark.parametrize(
    ("value", "told"),
    [(500, Stored(None, 900_500)), (300, Stored(300, None)), (400, None), (500.5, None), (None, None)],
)
def test_an_aggregate_is_known_by_its_total_or_its_increment(value: Any, told: object) -> None:
    given = [row(1, 0, 300, total=900_500)]
    (found,) = uplink(Server(held={ends(0): value}), "Aggregate", zero_wh={"roof": 900_000}).ask(given).values()
    if told is None:
        assert isinstance(found, Unknown)
        assert found.verdict.state == "held"
    else:
        assert found == told


def test_a_first_aggregate_that_was_not_stored_is_missing() -> None:
    assert uplink(Server(), "Aggregate").ask([row(1, state="accepted")]) == {1: Missing()}  # A6


def test_all_pages_are_read_and_counted() -> None:
    server = Server(held={ends(day): 10 for day in range(12)})
    drec = uplink(server)
    found = drec.ask([row(day + 1, day, 10) for day in range(13)])
    assert [type(found[id]) for id in range(1, 14)] == [Stored] * 12 + [Missing]
    assert [query["pagenumber"] for query in server.gets] == ["1", "2", "3"]
    assert drec.requests == 3


def test_only_sixty_requests_are_asked_about_at_once() -> None:
    found = uplink(Server(held={ends(day): 10 for day in range(100)})).ask(
        [row(day + 1, day, 10) for day in range(100)]
    )
    assert sorted(found) == list(range(1, 61))


def test_a_page_that_repeats_itself_ends_the_list() -> None:
    def stubborn(_: httpx.Request) -> httpx.Response:
        read = {"enddate": ends(0), "value": 10}
        return reply(200, {"historyread": [], "ongoing": [read], "numberOfPages": 9})

    assert uplink(stubborn).ask([row(1, 0, 10), row(2, 1, 10)]) == {1: Stored(10, None), 2: Missing()}


def test_two_reads_at_one_end_are_for_a_person() -> None:
    reads = [{"enddate": ends(0), "value": 10}, {"enddate": "2026-05-01T18:00:00+02:00", "value": 11}]
    page = {"historyread": [], "ongoing": reads, "numberOfPages": 1}
    (found,) = uplink(lambda _: reply(200, page)).ask([row(1, 0, 10)]).values()
    assert isinstance(found, Unknown)
    assert found.verdict.state == "held"


@pytest.mark.parametrize(
    "answer",
    [
        reply(400, {"statusCode": 400, "message": "Read not found"}),
        reply(400, {"statusCode": 400, "message": "Read Not found"}),
        refusal(409, "No reads found"),
        reply(404, {"statusCode": 404, "message": "nothing", "error": "E-5014"}),
    ],
)
def test_the_platforms_own_word_for_no_reads_is_missing(answer: httpx.Response) -> None:
    assert uplink(lambda _: answer).ask([row(1)]) == {1: Missing()}


@pytest.mark.parametrize(
    ("answer", "rule", "pause"),
    [
        (reply(200), "shape", False),
        (reply(200, {"ongoing": []}), "shape", False),
        (reply(200, {"ongoing": [{"enddate": "yesterday"}], "historyread": []}), "shape", False),
        (reply(200, {"ongoing": [{"enddate": "2026-05-01T16:00:00"}], "historyread": []}), "shape", False),
        (reply(200, b"<html>"), "portal", True),
        (reply(302), "portal", True),
        (reply(401, {"statusCode": 401, "message": "Unauthorized"}), "T3", True),
        (reply(403, {"statusCode": 403, "message": "Forbidden resource"}), "T6", True),
        (refusal(409, "Invalid device id"), "D5", False),
        (reply(429), "T2", True),
        (reply(500, {"statusCode": 500, "message": "Internal server error"}), "T11", False),
    ],
)
def test_a_read_back_that_fails_leaves_a_day_in_its_state(answer: httpx.Response, rule: str, pause: bool) -> None:
    found = uplink(lambda _: answer).ask([row(1, state="unclear"), row(2, 1, state="accepted")])
    verdicts = [entry.verdict for entry in found.values() if isinstance(entry, Unknown)]
    assert [(verdict.state, verdict.rule, verdict.pause_all) for verdict in verdicts] == [
        ("unclear", rule, pause),
        ("accepted", rule, pause),
    ]


def test_the_organization_is_asked_for_too() -> None:
    server = Server()
    uplink(server, organization=7).ask([row(1)])
    assert server.gets[0]["organizationId"] == "7"


def test_nothing_to_ask_and_nothing_to_follow_is_no_request() -> None:
    assert uplink().ask([]) == {}
    assert uplink().follow([row()]) == {}

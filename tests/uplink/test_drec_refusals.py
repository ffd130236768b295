"""D-REC: every rule of the platform sheet, recognised and turned into a verdict."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from heliograph.uplink.drec_packing import ReadType
from heliograph.uplink.drec_rules import CODES, MERGING, RULES, classify
from heliograph.uplink.http import Answer
from tests.uplink.drec_platform import (
    HOUR,
    NOW,
    Server,
    judged,
    parcel_of,
    refusal,
    reply,
    row,
    uplink,
)

# Answers and verdicts

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
    ("T2/again", reply(413, {"statusCode": 413, "message": "request entity too large"}), "due", False),
    ("T2/again", reply(413, b"<html>"), "due", False),
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
    ("T8/again", reply(400, {**FIX_BODY, "message": "Unexpected token } in JSON at position 9"}), "due", False),
    (
        "T9/again",
        reply(400, {**FIX_BODY, "message": ["type must be one of the following values: History"]}),
        "due",
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
    ("S2/again", refusal(409, "can not allow multiple reads simultaneously"), "due", False),
    (
        "S4/again",
        refusal(409, "endtimestamp null is less than or equal to device onboarding date 2026"),
        "due",
        False,
    ),  # S4
    ("S6", refusal(409, "meter read value should be greater then 0"), "due", False),
    ("Z1/again", refusal(409, "Invalid time zone: Mars"), "due", False),
    ("Z1/again", reply(400, {**FIX_BODY, "message": ["Invalid timezone: Mars"]}), "due", False),
    ("Z2/again", refusal(409, "Invalid date sent 2026-05-01T16:00:00Z"), "due", False),
    ("aside/E1", refusal(409, "... is less than or equal to device onboarding  date Fri May 01"), "rejected", False),
    ("aside/E2", refusal(409, "x should be greater than to device commissioningDate date 2027"), "rejected", False),
    ("E3", refusal(409, "x is greater than current date 2026"), "due", False),
    ("E4/again", refusal(409, "Invalid  End Date, valid format is YYYY"), "due", False),
    ("E4/again", refusal(409, "One ore more End Date values are not valid"), "due", False),
    (
        "L1",
        reply(404, {"message": "In this device you can add read for Aggregate type but you are sending  Delta"}),
        "held",
        False,
    ),
    ("L4", refusal(409, "Failed, MaxEnergy: 40123.5"), "due", False),
    ("L4", refusal(409, "failed,  MaxEnergy: 1e-7"), "due", False),
    ("H1/again", refusal(409, "Invalid Start Date and/or End Date"), "due", False),
    ("H1/again", refusal(409, "One ore more Start Date and End Date values are not valid"), "due", False),
    ("H2/again", refusal(409, "starttimestamp should be prior to endtimestamp"), "due", False),
    (
        "H3/again",
        refusal(409, "For History reading start timestamp and end timestamp should be prior to Onboarding"),
        "due",
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
    ("E-5001/again", reply(400, {"statusCode": 400, "message": "x", "error": "E-5001"}), "due", False),
    ("E-5005", reply(404, {"statusCode": 404, "message": "x", "error": "E-5005"}), "held", False),
    ("aside/E1", reply(409, {"statusCode": 409, "message": "x", "error": "E-5007"}), "rejected", False),
    ("aside/E2", reply(409, {"statusCode": 409, "message": "x", "error": "E-5008"}), "rejected", False),
    ("E-5009", reply(400, {"statusCode": 400, "message": "x", "error": "E-5009"}), "due", False),
    ("E-5010", reply(400, {"statusCode": 400, "message": "x", "error": "E-5010"}), "due", False),
    ("E-5201", reply(500, {"statusCode": 500, "message": "x", "error": "E-5201"}), "unclear", False),
    ("T10", reply(404, {"statusCode": 404, "message": "database not found"}), "unclear", False),
    ("U404", reply(404, b"<html>"), "due", True),
    ("U404", reply(404, {"statusCode": 404, "message": "Cannot POST /meter-reads/new/x"}), "due", True),
]


@pytest.mark.parametrize(("rule", "answer", "state", "pause"), TABLE)
def test_every_refusal_has_its_rule_and_its_state(
    rule: str, answer: httpx.Response | Exception, state: str, pause: bool
) -> None:
    verdict = judged(answer)
    assert (verdict.rule, verdict.state, verdict.pause_all) == (rule, state, pause)
    assert verdict.remedy


def test_every_rule_has_an_answer_in_these_tests() -> None:
    tested = {rule.removeprefix("aside/").removesuffix("/again") for rule, *_ in TABLE} | {
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
    half = timedelta(hours=12)
    assert seen == [("due", "U409/1", half), ("due", "U409/2", half), ("rejected", "U409", None)]


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (reply(400, {**FIX_BODY, "message": "Unexpected token } in JSON"}), "T8"),
        (reply(413, {"statusCode": 413, "message": "request entity too large"}), "T2"),
        (refusal(409, "Invalid date sent"), "Z2"),
    ],
)
def test_a_body_called_malformed_is_sent_once_more_and_then_put_aside(answer: httpx.Response, rule: str) -> None:
    first = judged(answer)
    assert (first.state, first.rule, first.wait) == ("due", f"{rule}/again", timedelta(minutes=1))
    second = judged(answer, [row(last_rule=first.rule)])
    assert (second.state, second.rule) == ("rejected", rule)
    other = judged(refusal(409, "One ore more End Date values are not valid"), [row(last_rule=first.rule)])
    assert (other.state, other.rule) == ("due", "E4/again")


def test_a_server_that_fails_for_an_unknown_reason_is_tried_on_and_told_after_a_day() -> None:
    now = [NOW]
    drec = uplink(Server(*[reply(501, b"{}")] * 3, reply(201)), now=lambda: now[0])
    drec.prepare([row()])
    parcel = parcel_of(drec, [row()])
    for hours, told in ((0, False), (23, False), (2, True)):
        now[0] += hours * HOUR
        assert drec.send(parcel)[1].state == "unclear"
        assert any("has failed at 2026-05-01 since" in note.text and note.alarm for note in drec.notes()) == told
    drec.send(parcel)
    assert not any("has failed" in note.text for note in drec.notes())


@pytest.mark.parametrize(("said", "named"), [("Aggregate", "Aggregate"), ("aggregate", "Aggregate")])
def test_a_locked_type_is_held_with_the_type_that_the_platform_names(said: str, named: str) -> None:
    text = f"In this device you can add read for {said} type but you are sending  Delta"
    verdict = judged(reply(404, {"statusCode": 404, "message": text, "error": "Not Found"}))
    assert (verdict.state, verdict.rule) == ("held", "L1")
    assert f'read_type = "{named}"' in verdict.remedy


@pytest.mark.parametrize(
    ("others", "hours", "tries", "state"),
    [
        (True, 24.5, 14, "rejected"),
        (True, 23.5, 14, "unclear"),  # not yet a day
        (True, 48.0, 3, "unclear"),  # chance
        (False, 48.0, 99, "unclear"),  # the platform is broken, not the day
    ],
)
def test_a_server_that_fails_on_one_day_alone_for_24_hours_gets_it_put_aside(
    others: bool, hours: float, tries: int, state: str
) -> None:
    now = [NOW]
    broken = reply(500, {"statusCode": 500, "message": "Internal server error"})
    drec = uplink(Server(broken, *([reply(201)] if others else []), *[broken] * tries), now=lambda: now[0])
    bad, good = parcel_of(drec, [row()]), parcel_of(drec, [row(2, meter="barn")])
    assert drec.send(bad)[1].state == "unclear"
    if others:
        now[0] += HOUR / 2
        assert drec.send(good)[2].state == "accepted"
        now[0] -= HOUR / 2
    for _ in range(tries):
        now[0] += HOUR * hours / tries
        verdict = drec.send(bad)[1]
    assert verdict.state == state

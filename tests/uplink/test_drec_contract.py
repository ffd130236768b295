"""The platform sheet as data: answers of all three generations, and what section 6 and 13 say is to be done.

Written from the sheet and its list of message rules, not from our table. Texts have the real ones' odd blanks, spelling
and dates in two forms.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from heliograph.uplink.drec_rules import RULES, Action, classify
from heliograph.uplink.http import Answer
from tests.rehearsal.test_sandbox_drec import REFUSED, Client, Clock

ISO, JS = "2026-05-01T16:00:00.000Z", "Fri May 01 2026 16:00:00 GMT+0000 (Coordinated Universal Time)"


def g1(message: Any) -> dict[str, Any]:
    """A rule of controller or service."""
    return {"success": False, "message": message}


def nest(status: int, message: Any, error: str = "") -> dict[str, Any]:
    """The framework's own; without `error` also what leaks out of the database."""
    return {"statusCode": status, "message": message} | ({"error": error} if error else {})


def g3(status: int, code: str, message: str = "x") -> dict[str, Any]:
    return {
        "statusCode": status,
        "message": message,
        "error": code,
        "timestamp": ISO,
        "path": "/api/meter-reads/new/roof",
    }


DELTA, AGGREGATE, HISTORY, ANY = ("Delta",), ("Aggregate",), ("History",), ("Delta", "Aggregate", "History")
ONGOING = ("Delta", "Aggregate")

# status, body (bytes: no JSON), read types, rule, action
Row = tuple[int, object, tuple[str, ...], str, Action | Literal["as E1"]]
ANSWERS: list[Row] = [
    # 6.1
    (502, b"<html>Bad Gateway</html>", ANY, "T1", "RETRY-RB"),
    (503, nest(503, "Service Unavailable"), ANY, "T1", "RETRY-RB"),
    (504, b"", ANY, "T1", "RETRY-RB"),
    (429, nest(429, "ThrottlerException: Too Many Requests"), ANY, "T2", "RETRY"),
    (429, g3(429, "E-5004"), ANY, "T2", "RETRY"),  # one of its two meanings
    (413, nest(413, "request entity too large"), ANY, "T2", "FIX"),
    (413, b"<html>413</html>", ANY, "T2", "FIX"),
    (401, nest(401, "Unauthorized"), ANY, "T3", "AUTH"),
    (401, nest(401, "Token revoked. Please log in again.", "Unauthorized"), ANY, "T4", "AUTH"),
    (401, nest(401, "Please verify your email address"), ANY, "T5", "HOLD"),
    (401, nest(401, "Please accept the terms and conditions", "Unauthorized"), ANY, "T5", "HOLD"),
    (401, nest(401, "Please verify your phone number"), ANY, "T5", "HOLD"),
    (401, nest(401, "Please verify your organization"), ANY, "T5", "HOLD"),
    (403, nest(403, "Your account is pending approval. Wait."), ANY, "T5", "HOLD"),
    (403, nest(403, "Your account has been suspended."), ANY, "T5", "HOLD"),
    (403, nest(403, "Forbidden resource", "Forbidden"), ANY, "T6", "HOLD"),
    (412, nest(412, "Only active users can perform this action. Your status is Pending"), ANY, "T7", "HOLD"),
    (400, nest(400, "Unexpected token } in JSON at position 90", "Bad Request"), ANY, "T8", "FIX"),
    (400, nest(400, ["type must be one of the following values: History, Delta"], "Bad Request"), ANY, "T9", "FIX"),
    (400, nest(400, ["unit must be one of the following values: Wh"], "Bad Request"), ANY, "T9", "FIX"),
    (400, nest(400, ["reads must be an array", "timezone must be a string"], "Bad Request"), ANY, "T9", "FIX"),
    (400, nest(400, ["reads.0.value must be a positive number"], "Bad Request"), ANY, "T9", "FIX"),  # G2
    (400, nest(400, "partial write: field type conflict dropped=1"), ANY, "T10", "RETRY-RB"),
    (401, nest(401, "unable to parse authentication credentials"), ANY, "T10", "RETRY-RB"),
    (404, nest(404, 'database not found: "energy"'), ANY, "T10", "RETRY-RB"),
    (500, nest(500, "timeout"), ANY, "T10", "RETRY-RB"),
    (500, nest(500, "Internal server error"), ANY, "T11", "RETRY-RB"),  # S3, S5, S8 end here
    # 6.2
    (404, nest(404, "No organization found with id 12", "Not Found"), ANY, "D1", "HOLD"),
    (409, g1("Organization in measurement is not same as user's organization"), ANY, "D2", "HOLD"),
    (409, g1("Organization 12 in measurement is not part of your organization"), ANY, "D3", "HOLD"),
    (401, g1("Unauthorized"), ANY, "D4", "HOLD"),
    (409, g1("Invalid device id"), ANY, "D5", "HOLD"),
    (409, g1("Device doesnt belongs to the requested users organization"), ANY, "D6", "HOLD"),
    (409, nest(409, "Device doesn't belongs to the requested users organization", "Conflict"), ANY, "D6", "HOLD"),
    (409, nest(409, "Device doesn\u2019t belongs to the organization", "Conflict"), ANY, "D6", "HOLD"),
    # 6.3
    (409, g1("can not allow multiple reads simultaneously "), ANY, "S2", "FIX"),
    (409, g1(f"... endtimestamp null is less than or equal to device onboarding date {ISO}"), ONGOING, "S4", "FIX"),
    (409, g1("meter read value should be greater then 0 "), ONGOING, "S6", "MERGE"),
    (409, g1("meter read value should be greater then 0 "), HISTORY, "H4", "MERGE"),
    # 6.4
    (409, g1("Invalid time zone: Mars/Base"), ANY, "Z1", "FIX"),
    (400, nest(400, "Invalid timezone: Mars/Base", "Bad Request"), ANY, "Z1", "FIX"),
    (400, nest(400, ["Invalid timezone: Mars/Base"], "Bad Request"), ANY, "Z1", "FIX"),
    (409, g1(f"Invalid date sent  {ISO} please sent valid date"), ANY, "Z2", "FIX"),
    # 6.5
    (409, g1(f"... {ISO} is less than or equal to device onboarding date {JS}"), ONGOING, "E1", "FIX"),
    (409, g1(f"... {JS}  is less than or equal to  device onboarding date {ISO}"), ONGOING, "E1", "FIX"),
    (409, g1(f"{ISO} should be greater than to device commissioningDate date{JS}"), ONGOING, "E2", "QUAR"),
    (409, g1(f"One or more measurements endtimestamp {ISO} is greater than current date {JS}"), ONGOING, "E3", "RETRY"),
    (409, g1(" Invalid  End Date, valid format is  YYYY-MM-DDThh:mm:ss.millisecondsZ"), ONGOING, "E4", "FIX"),
    (409, g1("One ore more End Date values are not valid"), ONGOING, "E4", "FIX"),
    # 6.6
    (404, nest(404, "In this device you can add read for Delta type but you are sending  Aggregate", "Not Found"),
     AGGREGATE, "L1", "HOLD"),
    (404, g1("In this device you can add read for Aggregate type but you are sending  Delta"), DELTA, "L1", "HOLD"),
    (409, g1(f"The sent date for reading {ISO} is less than last sent meter read date {JS}"), DELTA, "L2", "DONE?"),
    (409, g1("Failed, MaxEnergy: 0"), DELTA, "L3", "DONE?"),
    (409, g1("Failed, MaxEnergy: 64438.35616438356"), DELTA, "L4", "MERGE"),
    (409, g1("Failed,  MaxEnergy: 7.61e-7"), DELTA, "L4", "MERGE"),
    (409, nest(409, "Failed, MaxEnergy: 64438", "Conflict"), DELTA, "L4", "MERGE"),
    # 6.7
    (409, g1(f"The sent date/value for reading {ISO}/5 is less than last sent mter read date/value {ISO}/9 "),
     AGGREGATE, "A1", "DONE?"),
    (409, nest(409, f"The sent date/value for reading {ISO}/5 is less than last sent meter read date/value {ISO}/9",
               "Conflict"), AGGREGATE, "A1", "DONE?"),
    (409, g1("Failed, MaxEnergy: 12.5"), AGGREGATE, "A2", "MERGE"),  # A3 reads the same
    (409, g1("Failed, MaxEnergy: 0"), AGGREGATE, "A4", "DONE?"),  # looked up; another value there is put aside
    # 6.8
    (409, g1(" Invalid Start Date and/or End Date, valid format is  YYYY"), HISTORY, "H1", "FIX"),
    (409, g1("One ore more Start Date and End Date values are not valid"), HISTORY, "H1", "FIX"),
    (409, g1("starttimestamp should be prior to endtimestamp. One or more measurements ..."), HISTORY, "H2", "FIX"),
    (409, g1("For History reading start timestamp and end timestamp should be prior to device onboarding date. "),
     HISTORY, "H3", "FIX"),
    (409, g1(f"One or more measurements starttimestamp should be greater than to device Commissioning Date {ISO}"),
     HISTORY, "H5", "QUAR"),
    (409, g1(f"One or more measurements endtimestamp should be greater than to device commissioningDate date {ISO}"),
     HISTORY, "H5", "QUAR"),
    (409, g1("For History Type Reads of devices start time should be within 3 year of device onboarding, ex: x"),
     HISTORY, "H6", "QUAR"),
    (409, g1("There are already one or more historical entries for this device which are conflicting "),
     HISTORY, "H7", "DONE?"),
    (409, g1("Failed,read value is greater than from MaxEnergy"), HISTORY, "H8", "MERGE"),
    # 12: the codes, where no text fits
    (401, g3(401, "E-1001"), ANY, "E-1001", "AUTH"),
    (401, g3(401, "E-1002", "Session expired"), ANY, "E-1002", "AUTH"),
    *((403, g3(403, f"E-{n}"), ANY, f"E-{n}", "HOLD") for n in range(1003, 1007)),
    *((400, g3(400, f"E-{n}"), ANY, f"E-{n}", "FIX") for n in (5001, 5002, 5003, 5006, 5012, 5013, 5015)),
    (409, g3(409, "E-5004", "Duplicate read"), ANY, "E-5004", "DONE?"),
    *((404, g3(404, f"E-{n}"), ANY, f"E-{n}", "HOLD") for n in (5005, 5016)),
    (409, g3(409, "E-5007"), ANY, "E-5007", "FIX"),
    (409, g3(409, "E-5008"), ANY, "E-5008", "QUAR"),
    *((409, g3(409, f"E-{n}"), ANY, f"E-{n}", "RETRY") for n in (5009, 5011)),
    (400, g3(400, "E-5010"), ANY, "E-5010", "MERGE"),
    *((500, g3(500, f"E-{n}"), ANY, f"E-{n}", "RETRY-RB") for n in range(5201, 5205)),
    # a text wins over its code, for two public documents give one code two meanings
    (409, g3(409, "E-5001", "Failed, MaxEnergy: 12"), DELTA, "L4", "MERGE"),
    (401, g3(401, "E-5201", "Token revoked. Please log in again."), ANY, "T4", "AUTH"),
    (500, g3(500, "E-9999", "Internal server error"), ANY, "T11", "RETRY-RB"),
    # 13, steps 3 to 8: what no text and no code fits
    (401, b"<html>", ANY, "T3", "AUTH"),
    (401, nest(401, "jwt expired", "Unauthorized"), ANY, "T3", "AUTH"),
    (403, nest(403, "User is deleted"), ANY, "T6", "HOLD"),
    (412, b"", ANY, "T7", "HOLD"),
    (400, nest(400, "Bad Request", "Bad Request"), ANY, "T8", "FIX"),
    (404, nest(404, "Cannot POST /api/meter-reads/new/roof", "Not Found"), ANY, "U404", "HOLD"),
    (404, nest(404, "Cannot POST /api/meter-reads/new/roof"), ANY, "U404", "HOLD"),
    (404, b"<html>nginx</html>", ANY, "U404", "HOLD"),
    (418, nest(418, "write failed"), ANY, "T10", "RETRY-RB"),
    (409, g1("a rule of next year"), ANY, "U409", "THRICE"),
    (409, nest(409, "a rule of next year", "Conflict"), ANY, "U409", "THRICE"),
    (409, g3(409, "E-5999"), ANY, "U409", "THRICE"),
    (400, g1("a rule of next year"), ANY, "U409", "THRICE"),
    (507, g1("no space"), ANY, "U5xx", "RETRY-RB"),
    (500, g3(500, "E-5999"), ANY, "U5xx", "RETRY-RB"),
    (501, b"<html>", ANY, "U5xx", "RETRY-RB"),
    (409, b"<html>", ANY, "shape", "RETRY-RB"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "types", "rule", "action"), ANSWERS)
def test_an_answer_of_the_sheet_has_the_sheets_rule_and_action(
    status: int, body: object, types: tuple[str, ...], rule: str, action: str
) -> None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(status, body=text, json=None if isinstance(body, bytes) else body)
    assert {(found.id, found.action) for found in (classify(answer, kind) for kind in types)} == {(rule, action)}


def test_every_rule_of_the_table_is_in_these_answers() -> None:
    assert {rule.id for rule in RULES} <= {rule for *_, rule, _ in ANSWERS}


@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: row[3])
def test_letter_case_blanks_and_apostrophes_make_no_difference(row: Row) -> None:
    """The texts drift between generations, so whole messages are never compared."""
    status, body, types, rule, _ = row
    if not isinstance(body, dict):
        return
    said = body["message"]
    texts = [said] if isinstance(said, str) else said
    drifted = ["  " + text.upper().replace("DOESNT", "DOESN'T").replace(" ", "  ") + " " for text in texts]
    answer = Answer(status, json=body | {"message": drifted[0] if isinstance(said, str) else drifted})
    assert {classify(answer, kind).id for kind in types} == {rule}


def test_a_message_of_another_status_is_not_taken_for_a_rule() -> None:
    assert classify(Answer(500, json=g1("Failed, MaxEnergy: 0")), "Delta").id == "U5xx"
    assert classify(Answer(400, json=g1("Invalid device id")), "Delta").id == "U409"


@pytest.mark.parametrize(("body", "status", "rule"), [(body, status, rule) for body, status, *_, rule in REFUSED])
def test_the_stand_in_refuses_in_words_that_are_recognised(body: dict[str, Any], status: int, rule: str) -> None:
    """It was written from the sheet on its own; where both are read, they must mean the same."""
    status, answer = Client(Clock()).send(body)
    found = classify(Answer(status, json=answer), str(body.get("type", "Delta")))
    assert found.id == ("T11" if status == 500 else rule)

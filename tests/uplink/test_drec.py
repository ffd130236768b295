"""D-REC: a read that is there already, and tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx
import pytest

from heliograph.core.delivery import Verdict
from heliograph.uplink.drec import Drec
from heliograph.uplink.drec_packing import ReadType
from heliograph.uplink.http import Http
from tests.uplink.drec_platform import (
    EQUAL_END,
    NOW,
    Server,
    judged,
    parcel_of,
    refusal,
    reply,
    row,
    uplink,
)

# A read that is there already

LONG_AGO = "The sent date/value for reading 2026-05-01T16:00:00.000Z/41250 is less than last sent mter read date/value"
OVERTAKEN = refusal(409, "endtimestamp 2026 is less than last sent meter read date 2027")


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


@pytest.mark.parametrize(
    ("before", "state"),
    [
        ({END: 41250}, "confirmed"),
        ({"2026-05-01T15:59:59.000Z": 41250}, "confirmed"),  # it ended a second before the registration
        ({END: 41249}, "rejected"),
        ({}, "rejected"),
    ],
)
def test_a_history_read_that_is_there_already_is_looked_for_among_history(before: dict[str, Any], state: str) -> None:
    overlap = refusal(409, "There are already one or more historical entries for this device which are conflicting ")
    server = Server(overlap, before=before, held={END: 41250 if state == "rejected" else 1})
    drec = uplink(server)
    verdict = drec.send(parcel_of(drec, [row(last_rule="history")]))[1]
    assert (verdict.state, verdict.rule) == (state, "H7")
    assert server.posts[0][1]["type"] == "History"


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

    def changed(self) -> bool:
        return False

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
        (
            [unauthorized("Token revoked")] * 3 + [reply(201)],
            ["t1", "t1", "t2", "t2"],
            [0.5, 0.5],
            "accepted",
            "S201",
        ),
        ([unauthorized("Token revoked")] * 4, ["t1", "t1", "t2", "t2"], [0.5, 0.5], "due", "T4"),
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

"""D-REC: what it holds, page by page, and what that says about days."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from heliograph.core.delivery import DayRow, Missing, Stored, Unknown
from tests.uplink.drec_platform import (
    NOW,
    Server,
    ends,
    refusal,
    reply,
    row,
    uplink,
)


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


@pytest.mark.parametrize(
    ("message", "rule"), [("Invalid device id", "D5"), ("Device doesn't belongs to your organization", "D6")]
)
def test_a_device_that_is_not_known_holds_the_day_for_a_person(message: str, rule: str) -> None:
    """It may be stored under a name that is not known any more, so it is never due."""
    found = uplink(lambda _: refusal(409, message)).ask([row(1, state="unclear"), row(2, 1, state="accepted")])
    verdicts = [entry.verdict for entry in found.values() if isinstance(entry, Unknown)]
    assert [(verdict.state, verdict.rule, verdict.pause_all) for verdict in verdicts] == [
        ("held", f"B-{rule}", False)
    ] * 2
    assert "Register the device" in verdicts[0].remedy


@pytest.mark.parametrize("code", ["E-5005", "E-5016"])
def test_a_device_that_is_not_known_by_its_code_holds_the_day(code: str) -> None:
    (found,) = uplink(lambda _: refusal(404, "words", error=code)).ask([row(1, state="unclear")]).values()
    assert isinstance(found, Unknown)
    assert (found.verdict.state, found.verdict.rule) == ("held", f"B-{code}")


def test_days_from_before_a_corrected_name_are_asked_about_under_the_name_they_went_with() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if "SG-old" in request.url.path:
            return Server(held={ends(0): 10})(request)
        return Server(held={ends(1): 20})(request)

    given = [replace(row(1, 0, 10), remote_id="SG-old"), row(2, 1, 20)]
    assert uplink(answer).ask(given) == {1: Stored(10, None), 2: Stored(20, None)}
    assert len(asked) == 2


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


def latest(message: str) -> Callable[[httpx.Request], httpx.Response]:
    """A platform without reads, and what it says about the newest one."""

    def answer(request: httpx.Request) -> httpx.Response:
        if "/latestread/" in request.url.path:
            return reply(400, {"statusCode": 400, "message": message})
        return reply(200, {"historyread": [], "ongoing": [], "numberOfPages": 0})

    return answer


@pytest.mark.parametrize(
    ("message", "given", "told"),
    [
        ("Read Not found", row(1, total=41_250, state="accepted"), Stored(None, 41_250)),  # a type is set: the baseline
        ("Read not found", row(1, total=41_250, state="accepted"), Missing()),  # one letter: nothing at all
        ("Read Not found", row(1, total=50_000, state="accepted"), Missing()),  # not its first value
        ("Read Not found", row(-1, period=-1, total=-1, state="unclear"), Missing()),  # a day that was lost here
    ],
)
def test_a_counters_first_value_is_held_without_being_shown(message: str, given: DayRow, told: object) -> None:
    assert uplink(latest(message), "Aggregate").ask([given]) == {given.id: told}


@pytest.mark.parametrize(("minutes", "rule"), [(4, "absent"), (6, "A6")])
def test_a_value_that_was_taken_and_is_not_there_is_told_not_sent_again(minutes: int, rule: str) -> None:
    given = row(1, total=50_000, state="accepted", claimed_at=NOW - timedelta(minutes=minutes), last_rule="S201")
    (found,) = uplink(latest("Read not found"), "Aggregate").ask([given]).values()
    if rule == "absent":
        assert found == Missing()
    else:
        assert isinstance(found, Unknown) and (found.verdict.state, found.verdict.rule) == ("held", "A6")
        assert "Delta cannot" in found.verdict.remedy


def test_a_first_aggregate_that_was_not_stored_is_missing() -> None:
    assert uplink(Server(), "Aggregate").ask([row(1, state="accepted")]) == {1: Missing()}  # A6


def test_all_pages_are_read() -> None:
    server = Server(held={ends(day): 10 for day in range(12)})
    drec = uplink(server)
    found = drec.ask([row(day + 1, day, 10) for day in range(13)])
    assert [type(found[id]) for id in range(1, 14)] == [Stored] * 12 + [Missing]
    assert [query["pagenumber"] for query in server.gets] == ["1", "2", "3"]


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

"""D-REC: what it knows of the devices, in every shape its list comes in, and when it is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from heliograph.core.ceiling import Plant
from heliograph.uplink.drec_devices import Device, Devices, parse
from heliograph.uplink.http import Answer, Exchange, NotSent, Unclear
from tests.uplink.drec_platform import NOW, refusal, reply, row, uplink

ENTRY: dict[str, Any] = {
    "id": 101,
    "externalId": "SG-roof",
    "organizationId": 7,
    "createdAt": "2026-04-01T08:00:00.123Z",
    "commissioningDate": "2025-05-10T12:00:00.000Z",
    "capacity": 12.5,
    "yieldValue": 1500,
    "meterReadtype": "Delta",
    "timezone": "Asia/Singapore",
}
CREATED = datetime(2026, 4, 1, 8, 0, 0, 123_000, tzinfo=UTC)
COMMISSIONED = datetime(2025, 5, 10, 12, tzinfo=UTC)
WHOLE = Device("SG-roof", 101, Plant(12.5, 1500, COMMISSIONED), CREATED, COMMISSIONED, "Delta", False)


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({}, WHOLE),
        ({"capacity": "12.5", "yieldValue": "1500"}, WHOLE),  # decimals of its database may be text
    ],
)
def test_an_entry_is_read(changes: dict[str, Any], device: Device) -> None:
    assert parse({**ENTRY, **changes}) == device


def test_generation_3_has_another_name_for_the_name() -> None:
    entry = {"serialNumber": "SG-roof", **{key: value for key, value in ENTRY.items() if key != "externalId"}}
    assert parse(entry) == WHOLE


@pytest.mark.parametrize("given", [None, 0, "", "none", -3])
def test_without_a_yield_the_servers_default_counts(given: Any) -> None:
    found = parse({**ENTRY, "yieldValue": given})
    assert found is not None and found.plant == Plant(12.5, 2000, COMMISSIONED)


@pytest.mark.parametrize("given", [None, 0, "", "twelve", True, [], -1, "1e99"])
def test_without_a_capacity_there_is_no_ceiling(given: Any) -> None:
    found = parse({**ENTRY, "capacity": given})
    assert found is not None and found.plant is None


@pytest.mark.parametrize("given", [None, "", "soon", 1_700_000_000_000])
def test_a_moment_that_cannot_be_read_is_not_known(given: Any) -> None:
    found = parse({**ENTRY, "createdAt": given, "commissioningDate": given})
    assert found is not None and found.created is None and found.commissioned is None


@pytest.mark.parametrize(
    ("given", "read_type", "first"),
    [("Delta", "Delta", False), ("Aggregate", "Aggregate", False), (None, None, True), ("", None, True)],
)
def test_a_device_without_a_read_type_has_no_read_yet(given: Any, read_type: str | None, first: bool) -> None:
    found = parse({**ENTRY, "meterReadtype": given})
    assert found is not None and (found.read_type, found.first) == (read_type, first)


def test_a_list_that_does_not_tell_the_read_type_says_nothing_about_a_first_read() -> None:
    found = parse({key: value for key, value in ENTRY.items() if key != "meterReadtype"})
    assert found is not None and (found.read_type, found.first) == (None, False)


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"externalId": 5}, {"externalId": "  "}])
def test_an_entry_without_a_name_is_none(entry: Any) -> None:
    assert parse(entry) is None


class Platform:
    """Answers from a list; the last one is repeated."""

    def __init__(self, *answers: Exchange) -> None:
        self.answers, self.asked = list(answers), list[dict[str, str]]()

    def __call__(self, method: str, path: str, *, query: dict[str, str]) -> Exchange:
        assert (method, path) == ("GET", "/device/my")
        self.asked.append(query)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def listed(*names: str) -> list[dict[str, Any]]:
    return [{**ENTRY, "externalId": name} for name in names]


def page(number: int, pages: int, *names: str) -> Answer:
    body = {"devices": listed(*names), "currentPage": number, "totalPages": pages, "totalCount": 3}
    return Answer(200, json=body)


def test_a_developer_gets_a_plain_array_without_asking_for_pages() -> None:
    platform = Platform(Answer(200, json=listed("a", " B ")))
    devices = Devices(platform, None)
    assert devices.refresh(NOW) is None
    assert platform.asked == [{}]
    assert [devices.get(name) is not None for name in ("a", "A ", "b", "c")] == [True, True, True, False]
    assert devices.unknown(["a", "b", "c"]) == ["c"]


def test_an_api_user_pages_through_one_organization() -> None:
    platform = Platform(page(1, 2, "a", "b"), page(2, 2, "c"))
    devices = Devices(platform, 7)
    assert devices.refresh(NOW) is None
    assert platform.asked == [{"organizationId": "7", "pagenumber": str(number)} for number in (1, 2)]
    assert devices.unknown(["a", "b", "c"]) == []


def test_pages_are_followed_also_where_none_were_asked_for() -> None:
    platform = Platform(page(1, 2, "a"), page(2, 2, "b"))
    devices = Devices(platform, None)
    devices.refresh(NOW)
    assert platform.asked == [{}, {"pagenumber": "2"}]
    assert devices.unknown(["a", "b"]) == []


def test_an_array_that_is_too_long_for_us_is_asked_for_in_pages() -> None:
    platform = Platform(Answer(200, body=b"[{", complete=False), page(1, 1, "a"))
    devices = Devices(platform, None)
    devices.refresh(NOW)
    assert platform.asked == [{}, {"fuelCode": "ES100", "pagenumber": "1"}]
    assert devices.unknown(["a", "b"]) == ["b"]


def test_a_list_without_an_end_is_left_and_nothing_is_called_unknown() -> None:
    devices = Devices(platform := Platform(page(1, 10**6, "a")), None)
    devices.refresh(NOW)
    assert len(platform.asked) == 100
    assert devices.get("a") is not None and devices.unknown(["b"]) == []


def test_it_is_read_at_the_start_once_a_day_and_sparingly_when_in_doubt() -> None:
    devices = Devices(platform := Platform(Answer(200, json=listed("a"))), None)

    def asked(at: datetime) -> int:
        devices.refresh(at)
        return len(platform.asked)

    assert [asked(NOW), asked(NOW), asked(NOW + timedelta(hours=23))] == [1, 1, 1]
    later = NOW + timedelta(days=1)
    assert asked(later) == 2
    devices.doubt(later + timedelta(minutes=1))
    assert [asked(later + timedelta(minutes=n)) for n in (1, 9, 10, 11)] == [2, 2, 3, 3]
    devices.doubt(later + timedelta(hours=3))
    assert asked(later + timedelta(hours=3)) == 4


@pytest.mark.parametrize(
    ("answer", "pause", "again"),
    [
        (Answer(403, json={"statusCode": 403, "message": "Forbidden resource"}), False, timedelta(hours=1)),
        (Answer(404, json={"statusCode": 404, "message": "Cannot GET /x", "error": "x"}), False, timedelta(hours=1)),
        (Answer(500, json={"statusCode": 500, "message": "Internal server error"}), False, timedelta(minutes=10)),
        (Answer(200, json={"surprise": []}), False, timedelta(minutes=10)),
        (Unclear("timeout", "no answer"), False, timedelta(minutes=10)),
        (NotSent("connect", "no way"), True, timedelta(minutes=10)),
        (Answer(429), True, timedelta(hours=1)),
        (Answer(401, json={"statusCode": 401, "message": "Unauthorized"}), True, timedelta(hours=1)),
        (Answer(200, body=b"<html>Sign in</html>", headers={"content-type": "text/html"}), True, timedelta(minutes=10)),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_stops_the_sending_only_where_sending_would_fail_too(
    answer: Exchange, pause: bool, again: timedelta
) -> None:
    devices = Devices(platform := Platform(answer), None)
    verdict = devices.refresh(NOW)
    assert (verdict is not None and verdict.pause_all) == pause
    assert verdict is None or verdict.state == "due"
    assert "could not be read" in devices.trouble and devices.unknown(["a"]) == []
    devices.refresh(NOW + again - timedelta(seconds=1))
    assert len(platform.asked) == 1
    platform.answers = [Answer(200, json=listed("a"))]
    assert devices.refresh(NOW + again) is None
    assert devices.trouble == "" and devices.unknown(["b"]) == ["b"]


def test_a_picture_that_cannot_be_read_anew_is_kept() -> None:
    devices = Devices(platform := Platform(Answer(200, json=listed("a"))), None)
    devices.refresh(NOW)
    platform.answers = [Unclear("timeout", "no answer")]
    devices.refresh(NOW + timedelta(days=1))
    assert devices.get("a") is not None


def test_a_first_read_makes_it_a_device_with_reads() -> None:
    devices = Devices(Platform(Answer(200, json=[{**ENTRY, "meterReadtype": None}])), None)
    devices.refresh(NOW)
    devices.began("sg-roof", "Delta", NOW)
    found = devices.get("SG-roof")
    assert found is not None and (found.first, found.read_type) == (False, "Delta")


def test_a_read_of_a_device_that_was_not_listed_has_the_list_read_again() -> None:
    devices = Devices(platform := Platform(Answer(200, json=listed("a")), Answer(200, json=listed("a", "b"))), None)
    devices.refresh(NOW)
    devices.began("a", "Delta", NOW)
    devices.refresh(NOW + timedelta(hours=1))
    assert len(platform.asked) == 1
    devices.began("b", "Delta", NOW + timedelta(hours=1))
    devices.refresh(NOW + timedelta(hours=1))
    assert len(platform.asked) == 2 and devices.unknown(["b"]) == []


# Through the uplink


class Listed:
    """A platform with a list of devices that answers every read alike."""

    def __init__(self, answer: httpx.Response, **changes: Any) -> None:
        self.answer, self.entry, self.lists = answer, {**ENTRY, **changes}, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/device/my"):
            self.lists += 1
            return reply(200, [self.entry])
        return self.answer


DOUBTFUL = [
    "endtimestamp is less than or equal to device onboarding date",
    "endtimestamp should be greater than to device commissioningDate date",
    "Failed, MaxEnergy: 12",
    "Invalid device id",
]


@pytest.mark.parametrize(("message", "lists"), [*((text, 2) for text in DOUBTFUL), ("is greater than current date", 1)])
def test_an_answer_that_does_not_fit_the_picture_has_it_read_again(message: str, lists: int) -> None:
    now = [NOW]
    platform = Listed(refusal(409, message))
    drec = uplink(platform, now=lambda: now[0])
    assert drec.prepare([row()]) == {}
    parcel = drec.pack([row()])
    assert parcel is not None
    drec.send(parcel)
    now[0] += timedelta(minutes=10)
    drec.prepare([row()])
    assert platform.lists == lists


def test_a_list_that_stops_everything_leaves_the_mark_by_which_a_day_is_to_be_sent() -> None:
    given = [row(1, last_rule="L4"), row(2, 1)]
    (verdict,) = uplink(lambda _: reply(429, {})).prepare(given).values()
    assert (verdict.state, verdict.rule, verdict.pause_all) == ("due", "L4", True)


@pytest.mark.parametrize(("length", "told"), [(45, False), (46, True)])
def test_a_long_address_is_told(length: int, told: bool) -> None:
    address = "a" * (length - len("@example.org")) + "@example.org"
    notes = uplink(address=address).notes()
    assert bool(notes) == told
    assert all("46 characters" in note.text and note.alarm and address not in note.text for note in notes)

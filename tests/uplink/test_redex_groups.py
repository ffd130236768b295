"""Groups that REDEX has declined: their inverters are read and not sent, everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from heliograph.rehearsal.sandbox import Sandbox
from heliograph.store import Store
from heliograph.uplink.http import Http
from heliograph.uplink.redex import DIALECTS, Redex
from heliograph.uplink.redex_groups import EVERY, PATH
from heliograph.uplink.tokens import Secret, StaticToken
from heliograph.work.deliver import Pace, deliver
from tests.fakes import SINGAPORE, FakeClock
from tests.uplink.test_redex import reply, row
from tests.work.test_deliver import make_store, states


def redex(transport: httpx.BaseTransport, clock: FakeClock) -> Redex:
    tokens = StaticToken(Secret(env="T", environ={"T": "token"}))
    http = Http("https://platform.example", transport=transport)
    return Redex("platform", http, DIALECTS["grouped-2024"], tokens, clock.now, chance=lambda: 0.0)


def to(sandbox: Sandbox) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.query.decode()
        told = sandbox.handle(request.method, request.url.path, query, dict(request.headers), request.content)
        return httpx.Response(told.status, headers=list(told.headers), content=told.body)

    return httpx.MockTransport(answer)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = make_store(tmp_path, clock, meters=3, days=4)
    yield opened
    opened.close()


@pytest.fixture
def sandbox(store: Store, clock: FakeClock) -> Sandbox:
    del store  # it sets the clock
    return Sandbox(clock.now, token="token", timezone=SINGAPORE.key)


def run(uplink: Redex, store: Store, clock: FakeClock, pace: Pace, span: timedelta) -> None:
    end = clock.now() + span
    while clock.now() < end:
        deliver(uplink, store, clock, pace, lambda: 0.5)
        clock.leap(minutes=5)


def test_inverters_of_a_declined_group_wait_and_leave_by_themselves_when_it_is_in_force_again(
    store: Store, clock: FakeClock, sandbox: Sandbox
) -> None:
    sandbox.redex.declined = {"STR-m1"}
    uplink, pace = redex(to(sandbox), clock), Pace(clock)
    run(uplink, store, clock, pace, timedelta(days=3))
    assert states(store) == {"confirmed": 8, "due": 4}
    shown = store.outbox.backlog()[0]
    assert (shown["meter"], shown["rule"]) == ("m1", "declined")
    assert "Sandbox group, declined" in shown["answer"] and shown["remedy"]
    (note,) = uplink.notes()
    assert note.alarm and "(1000000000000002)" in note.text and "(1)" in note.text
    looks = sandbox.requests["redex.applications"]
    assert looks <= 2 * 4, "once a day; twice while a group is declined"
    assert [one.rule for one in sandbox.violations] == ["declined"], "by which it was found out"
    again = redex(to(sandbox), clock)  # another life
    clock.leap(days=1)
    run(again, store, clock, pace, timedelta(hours=1))
    uplink = again
    sandbox.redex.declined = set()
    run(uplink, store, clock, pace, EVERY + timedelta(hours=1))
    assert states(store) == {"confirmed": 12}
    assert uplink.notes() == ()
    assert len(sandbox.violations) == 1, "nothing more was sent for a declined group"


def test_a_group_declined_in_between_is_known_before_the_next_day_is_sent(
    store: Store, clock: FakeClock, sandbox: Sandbox
) -> None:
    uplink, pace = redex(to(sandbox), clock), Pace(clock)
    run(uplink, store, clock, pace, timedelta(hours=5))
    assert states(store) == {"confirmed": 12} and sandbox.requests["redex.applications"] == 0
    sandbox.redex.declined = {"STR-m1"}
    run(uplink, store, clock, pace, timedelta(hours=8))
    assert sandbox.requests["redex.applications"] == 2
    assert list(uplink.prepare([row(1, "STR-m0"), row(2, "STR-m1")])) == [2]


def test_a_platform_without_lists_is_asked_once_and_everything_is_sent(
    store: Store, clock: FakeClock, sandbox: Sandbox
) -> None:
    sandbox.redex.lists = False
    sandbox.redex.process_ids = False
    run(redex(to(sandbox), clock), store, clock, Pace(clock), timedelta(days=5))
    assert states(store) == {"confirmed": 12}
    assert sandbox.requests["redex.applications"] == 1


def application(id: str, status: str, created: str) -> dict[str, Any]:
    return {"Id": id, "DeviceName": id, "CreatedTime": created, "Status": {"Value": status, "Description": status}}


def looked(transport: httpx.BaseTransport, clock: FakeClock) -> Redex:
    """An uplink at the moment of its first look."""
    uplink = redex(transport, clock)
    assert uplink.prepare([]) == {}
    clock.leap(hours=6)
    assert uplink.prepare([]) == {}
    return uplink


class Account:
    """Answers from lists, in pages of two; counts what it is asked."""

    def __init__(self, groups: Mapping[str, tuple[str, str, list[str]]], **answers: httpx.Response) -> None:
        self.groups, self.answers = groups, answers
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        kind = "devices" if request.url.path.endswith("/devices") else "applications"
        self.asked.append(kind)
        if kind in self.answers:
            return self.answers[kind]
        if kind == "devices":
            inverters = self.groups[request.url.path.split("/")[-2]][2]
            found = [{"Inverters": [{"RemoteInvId": name}]} for name in inverters]
        else:
            only = request.url.params.get("Status")
            found = [
                application(id, status, created)
                for id, (status, created, _) in self.groups.items()
                if only in (None, status)
            ]
        page = int(request.url.params["CurrentPage"])
        meta = {"CurrentPage": page, "TotalPage": -(-len(found) // 2), "TotalItems": len(found), "ItemsPerPage": 2}
        data = {"Data": found[2 * page - 2 : 2 * page], "StatusCode": 200, "Errors": [], "Meta": meta, "Message": ""}
        return reply(200, data)


def test_the_newest_group_of_an_inverter_counts(clock: FakeClock) -> None:
    account = Account(
        {
            "old": ("Declined", "2025-01-01T00:00:00Z", ["A", "B", "C"]),
            "older": ("Approved", "2024-01-01T00:00:00Z", ["C", "D"]),
            "new": ("Unverified", "2025-02-01T00:00:00Z", ["A"]),
            "newest": ("Declined", "2025-03-01T00:00:00Z", ["E"]),
        }
    )
    uplink = looked(httpx.MockTransport(account), clock)
    found = uplink.prepare([row(number, name) for number, name in enumerate("ABCDE")])
    assert {number: verdict.rule for number, verdict in found.items()} == {1: "declined", 2: "declined", 4: "declined"}
    assert account.asked == ["applications"] * 3 + ["devices"] * 4  # pages of both lists; "older" does not matter
    assert len(uplink.notes()) == 2


def test_only_the_oldest_day_of_an_inverter_is_put_off_for_it_keeps_the_others_back(clock: FakeClock) -> None:
    account = Account({"one": ("Declined", "2025-01-01T00:00:00Z", ["A"])})
    found = looked(httpx.MockTransport(account), clock).prepare([row(1, "A", 0), row(2, "A", 1)])
    assert list(found) == [1] and found[1].state == "due" and found[1].wait == EVERY


@pytest.mark.parametrize(
    ("answer", "paused"),
    [
        (reply(403), False),
        (reply(500), False),
        (reply(400), False),
        (reply(200, [1]), False),
        (reply(401), True),
        (reply(429, None, **{"Retry-After": "30"}), True),
        (reply(302), True),
    ],
)
def test_a_look_that_fails_stops_nothing_unless_nothing_may_leave_at_all(
    answer: httpx.Response, paused: bool, clock: FakeClock
) -> None:
    account = Account({}, applications=answer)
    uplink = redex(httpx.MockTransport(account), clock)
    found = uplink.prepare([row(1, last_rule="declined"), row(2, day=1)])  # an earlier life knew of one
    assert [(id, verdict.state, verdict.pause_all) for id, verdict in found.items()] == [(1, "due", True)] * paused
    seen = len(account.asked)
    clock.leap(minutes=59)
    uplink.prepare([])
    assert len(account.asked) == seen
    clock.leap(minutes=1)
    uplink.prepare([row(1)])
    assert len(account.asked) == seen, "what is to be sent goes first"
    uplink.prepare([])
    assert len(account.asked) > seen


def test_a_declined_group_whose_inverters_cannot_be_listed_is_told_and_holds_nothing(clock: FakeClock) -> None:
    account = Account({"one": ("Declined", "2025-01-01T00:00:00Z", ["A"])}, devices=reply(404))
    uplink = looked(httpx.MockTransport(account), clock)
    assert uplink.prepare([row(1, "A")]) == {}
    (note,) = uplink.notes()
    assert note.alarm and '"one"' in note.text
    clock.leap(days=3)
    uplink.prepare([])
    assert account.asked == ["applications", "applications", "devices"]


@pytest.mark.parametrize(("status", "looks"), [(403, 2), (422, 2), (500, 0)])
def test_a_refusal_is_a_reason_to_look_again_but_not_more_than_hourly(
    status: int, looks: int, clock: FakeClock
) -> None:
    account = Account({})

    def answer(request: httpx.Request) -> httpx.Response:
        return account(request) if request.url.path.startswith(PATH) else reply(status)

    uplink = redex(httpx.MockTransport(answer), clock)
    uplink.prepare([row(1)])
    parcel = uplink.pack([row(1)])
    assert parcel is not None
    for minutes in (1, 30, 30):  # the third time an hour after the first
        uplink.send(parcel)
        clock.leap(minutes=minutes)
        uplink.prepare([row(1)])
    assert len(account.asked) == looks

"""A name that was wrong in the configuration: a person's retry takes the days that wait to the corrected one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from heliograph.core.delivery import Parcel, Verdict
from heliograph.core.errors import StoreError, UsageError
from heliograph.core.site import Meter
from heliograph.store import Store
from heliograph.work.decide import decide
from heliograph.work.health import health
from tests.fakes import RULES, FakeClock, FakeUplink, a_meter
from tests.work.test_decide import ALL, REFUSED, refuse, row, wish
from tests.work.test_deliver import make_store, run, states


def named(name: str, *, ordered: bool = False) -> Meter:
    one = a_meter("m0")
    reports = tuple(replace(report, remote_id=name, ordered=ordered, history=ordered) for report in one.reports)
    return replace(one, reports=reports)


RIGHT = named("STR-RIGHT")
IN_ORDER = named("STR-RIGHT", ordered=True)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = make_store(tmp_path, clock, meters=1, days=3)
    yield opened
    opened.close()


def test_days_that_wait_go_under_the_corrected_name_once_a_person_says_so(store: Store, clock: FakeClock) -> None:
    store.outbox.queue("m0", RIGHT.reports[0], clock.now())
    (alarm,) = [one for one in health("s", [RIGHT], store, clock, RULES).alarms if "old name" in one]
    assert "platform: 3 days of m0 wait under the old name STR-m0 (report_as says STR-RIGHT)" in alarm
    assert "heliograph backlog retry m0 2026-03-14..2026-03-16 --uplink platform" in alarm
    planned = decide(RIGHT, "retry", wish(ALL, because="swapped"), store, clock.now())["days"]
    assert [(one["becomes"], one["remote_id"]) for one in planned] == [("due", "STR-RIGHT")] * 3
    assert "it goes as STR-RIGHT, no longer as STR-m0" in planned[0]["how"]
    assert not any("old name" in one for one in health("s", [RIGHT], store, clock, RULES).alarms)
    told = store.outbox.attempts.of([row(store).id])[row(store).id]
    assert [(one["asked"], one["answer"]) for one in told] == [
        ("person", "as STR-RIGHT, before as STR-m0. swapped"),
    ]
    (said,) = [one.content for one in store.chain.entries() if one.content["kind"] == "decision"]
    assert said["renamed"] == "STR-RIGHT" and said["meters"]["m0"]["remote_id"] == "STR-m0"
    assert said["because"] == "swapped"
    uplink = FakeUplink()
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 3} and {name for name, _ in uplink.stored} == {"STR-RIGHT"}


def test_without_a_decision_they_go_on_under_the_name_they_were_queued_with(store: Store, clock: FakeClock) -> None:
    """The meter may have moved to another device, and then these days are the old one's."""
    store.outbox.queue("m0", RIGHT.reports[0], clock.now())
    uplink = FakeUplink()
    run(uplink, store, clock)
    assert {name for name, _ in uplink.stored} == {"STR-m0"}


@pytest.mark.parametrize(
    ("verdict", "becomes"),
    [
        (REFUSED, "due"),
        (Verdict("held", "D6", "another organisation's"), "due"),
        (Verdict("due", "D5", "Invalid device id"), "due"),
        (Verdict("held", "E-5016", "x"), "due"),
        (Verdict("due", "absent", "the platform holds nothing"), "due"),
        (Verdict("rejected", "U409", "something new"), "not proven"),
        (Verdict("due", "U409/1", "something new"), "not proven"),
        (Verdict("held", "differs", "another value"), "not proven"),
        (Verdict("held", "B404", "no read-back"), "not proven"),
    ],
)
@pytest.mark.parametrize("meter", [RIGHT, IN_ORDER], ids=["any", "ordered"])
def test_what_may_be_there_under_the_old_name_does_not_go_under_another(
    store: Store, clock: FakeClock, meter: Meter, verdict: Verdict, becomes: str
) -> None:
    refuse(store, clock, 1, verdict)
    before = row(store)
    if becomes == "due":
        decide(meter, "retry", wish(), store, clock.now())
        assert (row(store).state, row(store).remote_id) == ("due", "STR-RIGHT")
        return
    with pytest.raises(UsageError, match=r"not proven that nothing of it is there.*report_as = STR-m0"):
        decide(meter, "retry", wish(), store, clock.now())
    assert row(store) == before


def test_a_question_about_an_unknown_device_does_not_prove_that_its_days_are_not_there(
    store: Store, clock: FakeClock
) -> None:
    """The platform took the day, and then the device got another name there."""
    refuse(store, clock, 1, Verdict("accepted", "S201"))
    unknown = Verdict("held", "D5", "Invalid device id")
    store.outbox.settle([(row(store).id, unknown, clock.now())], clock.now(), asked="read-back")
    with pytest.raises(UsageError, match="not proven that nothing of it is there"):
        decide(RIGHT, "retry", wish(), store, clock.now())
    # Where the days themselves were refused for the name, the question adds nothing.
    part = (row(store, 15),)
    store.outbox.claim("platform", Parcel("/x", b"{}", part), clock.now(), clock.now())
    store.outbox.settle([(part[0].id, replace(unknown, rule="D6"), clock.now())], clock.now())
    store.outbox.settle([(part[0].id, unknown, clock.now())], clock.now(), asked="read-back")
    decide(RIGHT, "retry", wish("2026-03-15"), store, clock.now())
    assert row(store, 15).remote_id == "STR-RIGHT"


def test_a_person_who_looked_it_up_may_rename_it(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, Verdict("held", "B404", "no such path"))
    decide(RIGHT, "retry", wish(not_there=True), store, clock.now())
    assert (row(store).state, row(store).remote_id) == ("due", "STR-RIGHT")


def test_what_was_sent_under_the_old_name_overtakes_nothing_under_the_new_one(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, Verdict("held", "D6"))
    later = (row(store, 16),)
    store.outbox.claim("platform", Parcel("/x", b"{}", later), clock.now(), clock.now())
    store.outbox.settle([(later[0].id, Verdict("confirmed", "ok"), clock.now())], clock.now())
    decide(IN_ORDER, "retry", wish(dry=True), store, clock.now())
    with pytest.raises(UsageError, match="2026-03-16 was sent after it"):
        decide(named("STR-m0", ordered=True), "retry", wish(), store, clock.now())


def test_the_chain_tells_both_names_of_a_meter_that_share_a_request(store: Store, clock: FakeClock) -> None:
    decide(RIGHT, "retry", wish("2026-03-15..2026-03-16"), store, clock.now())
    run(FakeUplink(), store, clock)
    told = [one.content for one in store.chain.entries() if one.content["kind"] == "verdict"]
    names = {
        day: one["meters"]["m0"]["remote_id"]
        for one in told
        if one["state"] == "confirmed"
        for day in one["meters"]["m0"]["days"]
    }
    assert names == {"2026-03-14": "STR-m0", "2026-03-15": "STR-RIGHT", "2026-03-16": "STR-RIGHT"}


def test_a_day_that_was_renamed_meanwhile_does_not_leave_in_a_request_under_the_old_name(
    store: Store, clock: FakeClock
) -> None:
    stale = row(store)
    decide(RIGHT, "retry", wish(), store, clock.now())
    with pytest.raises(StoreError, match="is not claimed"):
        store.outbox.claim("platform", Parcel("/x", b"{}", (stale,)), clock.now(), clock.now())


def test_days_apart_are_named_apart(store: Store, clock: FakeClock) -> None:
    """A wish is carried out for all of its days or for none, so what is proposed has to be possible."""
    part = (row(store, 15),)
    store.outbox.claim("platform", Parcel("/x", b"{}", part), clock.now(), clock.now() + timedelta(hours=1))
    (alarm,) = [one for one in health("s", [RIGHT], store, clock, RULES).alarms if "old name" in one]
    assert "retry m0 2026-03-14 --uplink platform; heliograph backlog retry m0 2026-03-16 --uplink platform" in alarm


@pytest.mark.parametrize("rule", ["B422", "B-D5"])
def test_a_question_that_was_refused_proves_nothing_about_a_day(store: Store, clock: FakeClock, rule: str) -> None:
    """The old name was known when the day was sent, perhaps: it never goes under another one."""
    refuse(store, clock, 1, Verdict("held", rule, "no such device"))
    with pytest.raises(UsageError, match="not proven"):
        decide(RIGHT, "retry", wish(), store, clock.now())

"""A person tries days again, or lets them go: never at the price of a day with two values."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from heliograph.core import delivery
from heliograph.core.audit import Audit
from heliograph.core.delivery import Decision, Edge, Parcel, Verdict
from heliograph.core.errors import HeliographError, StoreError, UsageError
from heliograph.core.site import Meter
from heliograph.store import Store
from heliograph.store.connection import micros
from heliograph.store.outbox import RECOVERY
from heliograph.work.amend import carry_out
from heliograph.work.decide import decide
from heliograph.work.deliver import Pace, deliver
from heliograph.work.health import health
from heliograph.work.recover import Recovery
from tests.fakes import RULES, START, FakeClock, FakeUplink, a_meter, in_memory
from tests.work.test_deliver import make_store, run, states

FIRST = date(2026, 3, 14)
ALL = "2026-03-14..2026-03-16"


def reporting(meter: str, *, ordered: bool = False, history: bool = False) -> Meter:
    one = a_meter(meter)
    return replace(one, reports=tuple(replace(report, ordered=ordered, history=history) for report in one.reports))


M0 = reporting("m0")
ORDERED = reporting("m0", ordered=True, history=True)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = make_store(tmp_path, clock, meters=2, days=3)
    yield opened
    opened.close()


def wish(days: str = "2026-03-14", **more: Any) -> dict[str, Any]:
    first, _, last = days.partition("..")
    return {"first": first, "last": last or first, "uplink": None, "dry": False, **more}


def refuse(store: Store, clock: FakeClock, days: int, verdict: Verdict, *, together: bool = False) -> None:
    """The platform refuses the first days of m0, each in a request of its own or all in one."""
    rows = store.outbox.rows("platform", "m0", FIRST, FIRST + timedelta(days=days - 1))
    for part in [rows] if together else [[row] for row in rows]:
        store.outbox.claim("platform", Parcel("/x", b"{}", tuple(part)), clock.now(), clock.now())
        store.outbox.settle([(row.id, verdict, clock.now()) for row in part], clock.now())


def row(store: Store, day: int = 14, meter: str = "m0") -> delivery.DayRow:
    (found,) = store.outbox.rows("platform", meter, date(2026, 3, day), date(2026, 3, day))
    return found


REFUSED = Verdict("rejected", "R422", "no such inverter", "register it")


# -- trying again -----------------------------------------------------------------------------------------------------


def test_a_day_that_was_refused_is_read_back_and_then_sent_once(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    done = decide(M0, "retry", wish(because="registered now"), store, clock.now())
    assert [(one["becomes"], one["period_wh"]) for one in done["days"]] == [("unclear", 1000)]
    assert (row(store).state, row(store).last_rule) == ("unclear", "retry")
    uplink = FakeUplink()
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6} and uplink.twice == []
    told = store.outbox.attempts.of([row(store).id])[row(store).id]
    assert [(one["asked"], one["state"]) for one in told] == [
        ("send", "rejected"),
        ("person", "unclear"),
        ("read-back", "unclear"),  # what was sent half an hour ago may yet be stored
        ("read-back", "due"),
        ("send", "accepted"),
        ("read-back", "confirmed"),
    ]
    assert told[1]["answer"] == "registered now"


def test_a_day_that_is_there_after_all_is_never_sent_again(store: Store, clock: FakeClock) -> None:
    """A refusal whose request was stored nevertheless: the road over a read-back finds it."""
    refuse(store, clock, 1, REFUSED)
    uplink = FakeUplink()
    uplink.stored["STR-m0", "2026-03-14"] = (1000, 1000)
    decide(M0, "retry", wish(), store, clock.now())
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6} and uplink.twice == []


def test_a_retry_that_sent_blindly_would_be_seen(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: with claimed rows going straight to due, a day arrives twice."""
    refuse(store, clock, 1, REFUSED)
    uplink = FakeUplink()
    uplink.stored["STR-m0", "2026-03-14"] = (1000, 1000)
    monkeypatch.setattr(delivery, "retried", lambda *_, **__: Decision("due", "retry", ""))
    decide(M0, "retry", wish(), store, clock.now())
    run(uplink, store, clock)
    assert uplink.twice != []


def test_a_platform_that_holds_another_value_still_holds_it(store: Store, clock: FakeClock) -> None:
    uplink = FakeUplink()
    uplink.stored["STR-m0", "2026-03-14"] = (1, 1)
    uplink.script = ["dropped"]
    run(uplink, store, clock)
    assert row(store).state == "held" and row(store).last_rule == "differs"
    decide(M0, "retry", wish(), store, clock.now())
    run(uplink, store, clock)
    assert row(store).state == "held" and uplink.twice == []
    uplink.stored["STR-m0", "2026-03-14"] = (1000, 1000)  # it corrected its value
    decide(M0, "retry", wish(), store, clock.now())
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6} and uplink.twice == []


@pytest.mark.parametrize("state", ["due", "unclear", "accepted", "confirmed"])
@pytest.mark.parametrize("what", ["retry", "set-aside"])
def test_what_may_be_there_is_moved_by_no_wish(store: Store, clock: FakeClock, state: str, what: str) -> None:
    if state != "due":
        store.outbox.claim("platform", Parcel("/x", b"{}", (row(store),)), clock.now(), clock.now())
    if state in ("accepted", "confirmed"):
        settled = Verdict(state, "ok")  # type: ignore[arg-type]  # both are states
        store.outbox.settle([(row(store).id, settled, clock.now())], clock.now())
    before = row(store)
    if (state, what) == ("due", "set-aside"):
        decide(M0, what, wish(uplink="platform"), store, clock.now())
        assert row(store).state == "rejected"
        return
    words = {"due": "waits for its turn", "confirmed": "has confirmed it"}.get(state, "it may be there")
    with pytest.raises(UsageError, match=words) as told:
        decide(M0, what, wish(), store, clock.now())
    assert "Nothing was changed" in told.value.hint
    assert row(store) == before


def test_a_set_aside_that_let_an_unclear_row_be_sent_again_would_be_seen(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: were an unclear row set aside, and its claim forgotten, a retry would deliver it twice."""
    uplink = FakeUplink()
    uplink.script = ["lost"]
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    assert row(store).state == "unclear"
    with pytest.raises(StoreError, match="no person turns into rejected"):
        store.outbox.decide(
            "set-aside", "platform", [(row(store), Decision("rejected", "aside/person", ""))], "", START
        )
    monkeypatch.setitem(delivery.WHY, ("unclear", "rejected"), Edge(("person",), "a mistake"))
    monkeypatch.setattr(delivery, "set_aside", lambda *_, **__: Decision("rejected", "aside/person", ""))
    decide(M0, "set-aside", wish(ALL), store, clock.now())
    monkeypatch.setattr(delivery, "retried", lambda *_, **__: Decision("due", "retry", ""))
    decide(M0, "retry", wish(ALL), store, clock.now())
    run(uplink, store, clock)
    assert uplink.twice != []


def test_a_day_that_never_left_is_sent_without_asking(store: Store, clock: FakeClock) -> None:
    decide(M0, "set-aside", wish(uplink="platform"), store, clock.now())
    decide(M0, "retry", wish(), store, clock.now())
    assert (row(store).state, row(store).claim) == ("due", None)
    uplink = FakeUplink()
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6} and uplink.twice == []


def test_after_a_restore_a_row_without_a_claim_is_asked_about(store: Store, clock: FakeClock) -> None:
    """It may have been sent by the store that was lost, so "never claimed" proves nothing (work/recover.py)."""
    store.journal.learn(RECOVERY, {"at": micros(clock.now()), "done": ["m0", "m1"]})
    decide(M0, "set-aside", wish(uplink="platform"), store, clock.now())
    (planned,) = decide(M0, "retry", wish(), store, clock.now())["days"]
    assert planned["becomes"] == "unclear" and row(store).doubted


def test_a_row_that_came_out_of_a_restored_copy_takes_the_road_of_the_recovery(store: Store, clock: FakeClock) -> None:
    """The recovery found another value there; the platform corrects it, and a retry asks it once more."""
    store.journal.learn(RECOVERY, {"at": micros(clock.now()), "done": ["m0", "m1"]})
    store._connection.execute("UPDATE outbox SET state = 'unclear' WHERE state = 'due'")
    uplink, pace, recovery = FakeUplink(), Pace(clock), Recovery([M0, reporting("m1")], RULES)
    uplink.stored["STR-m0", "2026-03-14"] = (1, 1)
    clock.leap(hours=1)

    def settled() -> delivery.DayRow:
        recovery.ask(uplink, store, clock, pace)
        assert recovery.settle(store, clock) == {}
        return row(store)

    assert (settled().state, row(store).claim) == ("held", None)
    uplink.stored["STR-m0", "2026-03-14"] = (1000, 1000)
    decide(M0, "retry", wish(), store, clock.now())
    assert settled().state == "confirmed"
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6} and uplink.twice == []


def test_where_a_platform_cannot_be_asked_a_person_says_so(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    with pytest.raises(UsageError, match="can be asked"):
        decide(M0, "retry", wish(not_there=True), store, clock.now())
    decide(M0, "retry", wish(), store, clock.now())
    store.outbox.settle([(row(store).id, Verdict("held", "B404", "no such path"), clock.now())], clock.now())
    decide(M0, "retry", wish(not_there=True), store, clock.now())
    assert row(store).state == "due"


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict("unclear", "R418", "no word of sense"),
        Verdict("accepted", "R200", "no word of sense"),
        Verdict("due", "D5", "no word of sense", "register it"),
        Verdict("due", "absent", "it is sent again"),
        Verdict("due", "L4", "too much", f"{delivery.WITH_NEXT} And so on."),
    ],
)
def test_a_day_that_comes_to_no_end_in_a_day_is_an_alarm(store: Store, clock: FakeClock, verdict: Verdict) -> None:
    """Since when, why, and what to do; a wish begins the day anew. What only waits for its turn is none."""

    def alarms() -> list[str]:
        return [alarm for alarm in health("s", [M0], store, clock, RULES).alarms if "is " + verdict.state in alarm]

    began = clock.now()
    refuse(store, clock, 2, verdict)
    clock.leap(hours=23)
    store.outbox.settle([(row(store).id, verdict, clock.now())], clock.now(), asked="read-back")
    assert alarms() == []
    clock.leap(hours=2)
    if verdict.rule in ("absent", "L4"):
        assert alarms() == []
        return
    (alarm,) = alarms()
    assert alarm.startswith(f"platform: m0 2026-03-14 is {verdict.state} since {began:%Y-%m-%d %H:%M} UTC (and 1 more")
    assert "no word of sense" in alarm and alarm.endswith("Look at: heliograph backlog m0 2026-03-14")


def test_a_wish_begins_the_day_anew_in_which_a_row_may_come_to_its_end(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    clock.leap(hours=50)
    decide(M0, "retry", wish(), store, clock.now())
    store.outbox.settle([(row(store).id, Verdict("unclear", "R418", "odd"), clock.now())], clock.now())
    assert not [alarm for alarm in health("s", [M0], store, clock, RULES).alarms if "is unclear" in alarm]
    clock.leap(hours=25)
    assert [alarm for alarm in health("s", [M0], store, clock, RULES).alarms if "is unclear" in alarm]


def test_nothing_is_done_when_one_of_the_days_cannot_be(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 2, REFUSED)
    entries = store.chain.head()
    with pytest.raises(UsageError, match="2026-03-16, platform: it waits for its turn already"):
        decide(M0, "retry", wish(ALL), store, clock.now())
    with pytest.raises(UsageError, match="2026-03-13, no closed day"):
        decide(M0, "set-aside", wish("2026-03-13..2026-03-14"), store, clock.now())
    with pytest.raises(UsageError, match="there is no uplink redex"):
        decide(M0, "retry", wish(uplink="redex"), store, clock.now())
    with pytest.raises(UsageError, match="is after"):
        decide(M0, "retry", wish("2026-03-15..2026-03-14"), store, clock.now())
    assert store.chain.head() == entries and row(store).state == "rejected"


def test_a_wish_that_is_only_looked_at_changes_nothing(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    before, entries = row(store), store.chain.head()
    planned = carry_out(M0, "retry", wish(dry=True), store, clock, RULES)
    assert planned["days"][0]["how"].startswith("read back first")
    assert (row(store), store.chain.head()) == (before, entries)


# -- letting go -------------------------------------------------------------------------------------------------------


def test_a_day_set_aside_stops_nobody_and_is_shown(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    assert store.outbox.candidates("platform", clock.now(), ordered=True, limit=9)[0].meter == "m1"
    decide(ORDERED, "set-aside", wish(because="the\nplatform  says so"), store, clock.now())
    uplink = FakeUplink()
    uplink.ordered = True
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 5, "rejected": 1} and uplink.twice == []
    (left,) = store.outbox.backlog()
    assert (left["rule"], left["answer"]) == ("aside/person", "the platform says so")
    seen = health("s", [ORDERED], store, clock, RULES)
    assert seen.uplinks[0].aside == 1 and not any("platform" in alarm for alarm in seen.alarms)


def test_it_is_undone_as_long_as_no_later_day_was_sent_where_order_is_the_rule(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    decide(ORDERED, "set-aside", wish(), store, clock.now())
    with pytest.raises(UsageError, match="set aside already"):
        decide(ORDERED, "set-aside", wish(), store, clock.now())
    assert decide(ORDERED, "retry", wish(dry=True), store, clock.now())["days"][0]["becomes"] == "unclear"
    uplink = FakeUplink()
    uplink.ordered = True
    run(uplink, store, clock)
    with pytest.raises(UsageError, match="2026-03-16 was sent after it"):
        decide(ORDERED, "retry", wish(), store, clock.now())
    decide(M0, "retry", wish(), store, clock.now())  # elsewhere it may come at any time
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6} and uplink.twice == []


def test_days_that_went_as_one_read_stay_together_where_order_is_the_rule(store: Store, clock: FakeClock) -> None:
    """They are held there as their sum, so one of them cannot be read back alone; naming one names them all."""
    decide(ORDERED, "set-aside", wish("2026-03-15", uplink="platform"), store, clock.now())
    parts = (row(store, 14), row(store, 16))
    store.outbox.claim("platform", Parcel("/x", b"{}", parts), clock.now(), clock.now())
    store.outbox.settle([(one.id, REFUSED, clock.now()) for one in parts], clock.now())
    assert [one["day"] for one in decide(M0, "retry", wish(dry=True), store, clock.now())["days"]] == ["2026-03-14"]
    for what, state in (("retry", "unclear"), ("set-aside", "rejected")):
        planned = decide(ORDERED, what, wish(dry=True), store, clock.now())["days"]
        assert [(one["day"], one["becomes"]) for one in planned] == [("2026-03-14", state), ("2026-03-16", state)]
    decide(ORDERED, "retry", wish("2026-03-16"), store, clock.now())
    assert [row(store, day).state for day in (14, 15, 16)] == ["unclear", "rejected", "unclear"]


def test_the_days_of_one_read_are_named_together(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 2, replace(REFUSED, rule="L4"), together=True)
    (device,) = store.outbox.blocked("platform")
    assert "retry m0 2026-03-14..2026-03-15 --uplink platform" in device.todo
    decide(ORDERED, "retry", wish("2026-03-14..2026-03-15", dry=True), store, clock.now())


def test_history_is_only_for_what_cannot_be_there(store: Store, clock: FakeClock) -> None:
    with pytest.raises(UsageError, match="knows no History"):
        decide(M0, "retry", wish(as_history=True), store, clock.now())
    decide(ORDERED, "retry", wish(as_history=True), store, clock.now())  # it was never sent
    assert (row(store).state, row(store).last_rule) == ("due", "history")
    refuse(store, clock, 1, Verdict("rejected", "aside/E1", "before the registration"))
    decide(ORDERED, "set-aside", wish(), store, clock.now())  # even then the platform's own word counts
    decide(ORDERED, "retry", wish(as_history=True), store, clock.now())
    assert (row(store).state, row(store).last_rule) == ("due", "history")
    # Refused as History for a reason that proves nothing: it is looked for where it went, whatever is wished.
    refuse(store, clock, 1, Verdict("rejected", "aside/T11", "in trouble"))
    for as_history in (False, True):
        (planned,) = decide(ORDERED, "retry", wish(as_history=as_history, dry=True), store, clock.now())["days"]
        assert planned["becomes"] == "unclear"
    decide(ORDERED, "retry", wish(), store, clock.now())
    assert (row(store).state, row(store).last_rule) == ("unclear", "history")


def test_what_may_be_there_as_a_daily_read_is_not_sent_as_history(store: Store, clock: FakeClock) -> None:
    """It would be looked for among the History reads only, and both kinds may stand beside each other."""
    refuse(store, clock, 1, Verdict("rejected", "T11", "in trouble"))
    with pytest.raises(UsageError, match="first retry it without --as-history"):
        decide(ORDERED, "retry", wish(as_history=True), store, clock.now())


# -- waiting loudly ---------------------------------------------------------------------------------------------------


def test_where_order_is_the_rule_the_device_waits_loudly_and_the_others_go_on(tmp_path: Path, clock: FakeClock) -> None:
    structlog.reset_defaults()
    store = make_store(tmp_path, clock, meters=10, days=3)
    refuse(store, clock, 1, REFUSED)
    uplink, pace, began = FakeUplink(), Pace(clock), clock.now()
    uplink.ordered = True
    with capture_logs() as said:
        while sum(states(store).get(state, 0) for state in ("accepted", "confirmed")) < 27:
            deliver(uplink, store, clock, pace, lambda: 0.5)
            clock.leap(seconds=15)
        run(uplink, store, clock, 30, pace)
    assert clock.now() - began < timedelta(minutes=32)  # the other nine did not wait
    assert states(store) == {"confirmed": 27, "rejected": 1, "due": 2}
    (waits,) = [one for one in said if one["event"] == "device_waits"]
    assert (waits["meter"], waits["day"], waits["later"]) == ("m0", "2026-03-14", 2)
    assert "heliograph backlog retry m0 2026-03-14 --uplink platform" in waits["hint"]
    seen = health("s", [ORDERED], store, clock, RULES)
    (alarm,) = [alarm for alarm in seen.alarms if "wait behind it" in alarm]
    assert "m0 2026-03-14 has to be decided first, 2 later days" in alarm and "backlog set-aside" in alarm
    assert not any("wait behind it" in alarm for alarm in health("s", [M0], store, clock, RULES).alarms)
    store.close()


def test_nine_devices_of_ten_lag_less_than_a_minute(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, meters=10, days=1)
    refuse(store, clock, 1, REFUSED)
    began = clock.now()
    for ordered in (False, True):
        assert len(store.outbox.candidates("platform", clock.now(), ordered=ordered, limit=99)) == 9
    deliver(FakeUplink(), store, clock, Pace(clock), lambda: 0.5)
    assert states(store) == {"accepted": 9, "rejected": 1} and clock.now() == began
    store.close()


# -- proof ------------------------------------------------------------------------------------------------------------


def test_every_decision_is_an_entry_of_the_chain(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 2, REFUSED)
    decide(M0, "set-aside", wish("2026-03-14..2026-03-15", because="agreed"), store, clock.now())
    decide(M0, "retry", wish(), store, clock.now())
    told = [entry.content for entry in store.chain.entries() if entry.content["kind"] == "decision"]
    assert [(one["decision"], one["state"], one["rule"], one["because"]) for one in told] == [
        ("set-aside", "rejected", "aside/person", "agreed"),
        ("retry", "unclear", "retry", ""),
    ]
    assert told[0]["meters"] == {"m0": {"remote_id": "STR-m0", "days": ["2026-03-14", "2026-03-15"]}}


def test_a_decision_survives_a_kill_whole_or_not_at_all(
    store: Store, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(store, clock, 2, REFUSED)
    entries = store.chain.head()

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    for part in (store.outbox.attempts, store.chain):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(part, "record" if part is store.outbox.attempts else "append", power_cut)
            decide(M0, "retry", wish("2026-03-14..2026-03-15"), store, clock.now())
        beside = Store.reader(tmp_path)
        assert (beside.chain.head(), row(beside).state, row(beside, 15).state) == (entries, "rejected", "rejected")
        beside.close()


def test_two_decisions_at_once_are_one(store: Store, clock: FakeClock) -> None:
    refuse(store, clock, 1, REFUSED)
    stale = row(store)
    decide(M0, "retry", wish(), store, clock.now())
    with pytest.raises(HeliographError, match="has just become another one"):
        store.outbox.decide("set-aside", "platform", [(stale, Decision("rejected", "aside/person", ""))], "", START)


def verify(bodies: list[dict[str, Any]]) -> list[str]:
    """What the audit says about entries, beyond the frame of a pack."""
    audit = Audit(lambda *_: True, lambda *_: None)
    audit.report.head = {"first": 1, "meters": ["m0"], "from": "2026-03-14", "to": "2026-03-16"}
    audit._days = {("m0", "2026-03-14"), ("m0", "2026-03-15")}
    for body in bodies:
        audit._judge({"at": "2026-03-17T00:00:00Z", **body})
    return [finding.text for finding in audit.report.findings]


def entry(what: str, state: str, day: str = "2026-03-14") -> dict[str, Any]:
    meters = {"m0": {"remote_id": "STR-m0", "days": [day]}}
    return {"kind": "decision", "decision": what, "uplink": "x", "state": state, "rule": "", "meters": meters}


def answered(state: str) -> dict[str, Any]:
    return {**entry("", state), "kind": "verdict", "request": None}


@pytest.mark.parametrize(
    ("bodies", "finding"),
    [
        ([entry("set-aside", "rejected"), entry("retry", "unclear"), answered("confirmed")], ""),
        ([answered("rejected"), entry("retry", "due"), answered("accepted")], ""),
        ([entry("set-aside", "due")], "nobody can decide set-aside"),
        ([entry("retry", "confirmed")], "nobody can decide retry"),
        ([entry("forget", "due")], "nobody can decide forget"),
        ([entry("retry", "due", "2026-03-16")], "which was not closed"),
        ([answered("confirmed"), entry("set-aside", "rejected")], "was confirmed before somebody decided"),
        ([entry("set-aside", "rejected"), answered("accepted")], "which was set aside"),
    ],
)
def test_verify_finds_a_decision_that_cannot_have_been(bodies: list[dict[str, Any]], finding: str) -> None:
    found = verify(bodies)
    assert len(found) == bool(finding) and all(finding in text for text in found), found


# -- whatever happens -------------------------------------------------------------------------------------------------

WISHES = int(os.environ.get("HELIOGRAPH_WISHES", "40"))


class Stubborn(FakeUplink):
    """Also refuses what it has stored ("stored")."""

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        if self.script[:1] == ["stored"]:
            self.script[0] = "lost"
            super().send(parcel)
            return {one.id: REFUSED for one in parcel.rows}
        return super().send(parcel)


def a_life(folder: Path, chance: random.Random, *, ordered: bool) -> tuple[Stubborn, Store, list[str]]:
    """A bad network, a moody platform, and somebody who wishes this and that at any moment; then a quiet week."""
    clock, uplink = FakeClock(), Stubborn(most=chance.randint(1, 4))
    store = make_store(folder, clock, meters=2, days=4)
    uplink.ordered = ordered
    meters = {name: reporting(name, ordered=ordered, history=ordered) for name in ("m0", "m1")}
    pace, done = Pace(clock), []
    # Where it takes days in order, a platform that keeps what it refuses would have to break its own order.
    moods = ["ok", "lost", "dropped", "busy", "refused", *([] if ordered else ["stored"])]
    uplink.script = chance.choices(moods, k=12)
    for round_ in range(400):
        deliver(uplink, store, clock, pace, lambda: 0.5)
        clock.leap(minutes=chance.choice([1, 5, 30]))
        while round_ < 200 and chance.random() < 0.3:
            first = FIRST + timedelta(days=chance.randrange(4))
            last = first + timedelta(days=chance.choice([0, 0, 1]))
            what, name = chance.choice(["retry", "set-aside"]), chance.choice(["m0", "m1"])
            try:
                decide(meters[name], what, wish(f"{first}..{last}", uplink="platform"), store, clock.now())
                done.append(f"{name} {what} {first}")
            except HeliographError:
                continue
    # What still waits for a decision is tried once more, or let go where a later day turned out to be there.
    for name, meter in meters.items():
        for one in store.outbox.rows("platform", name, date.min, date.max):
            now = row(store, one.day.day, name)
            if now.state in ("rejected", "held") and now.last_rule != "aside/person":
                try:
                    decide(meter, "retry", wish(str(one.day)), store, clock.now())
                except UsageError:
                    decide(meter, "set-aside", wish(str(one.day)), store, clock.now())
    uplink.script = []
    run(uplink, store, clock, 400)
    return uplink, store, done


@pytest.mark.parametrize("ordered", [False, True])
def test_whatever_somebody_wishes_no_day_arrives_twice_or_in_the_wrong_order(ordered: bool) -> None:
    """HELIOGRAPH_WISHES=5000 pytest tests/work/test_decide.py tries as many lives; HELIOGRAPH_SEED repeats a run."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"HELIOGRAPH_SEED={seed}")
    chance = random.Random(seed)
    wished = 0
    for _ in range(WISHES // 2):
        with in_memory() as folder:
            uplink, store, done = a_life(folder / "data", chance, ordered=ordered)
            assert uplink.twice == [], done
            rows = [one for name in ("m0", "m1") for one in store.outbox.rows("platform", name, date.min, date.max)]
            for one in rows:
                there = (one.remote_id, str(one.day)) in uplink.stored
                # Where a request was stored although it was refused, a person may have let its day go unasked.
                assert (one.state == "confirmed") == there or one.last_rule == "aside/person", (one, done)
                assert one.state in ("confirmed", "rejected"), (one, done)
            if ordered:
                order = [key for key in uplink.stored if key[0] == "STR-m0"]
                assert order == sorted(order), done
            wished += len(done)
            store.close()
    assert wished > WISHES / 2

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.core.daily import Border, Day, day_of
from heliograph.core.delivery import DayRow, Missing, ReadBack, Verdict
from heliograph.core.readings import Moment, Reading
from heliograph.store import Store
from heliograph.work.deliver import Pace, deliver
from heliograph.work.prune import prune
from heliograph.work.reconcile import LOOK_BACK, reconcile
from tests.fakes import SINGAPORE, START, FakeClock, FakeUplink, a_meter


def make_store(folder: Path, clock: FakeClock, meters: int, days: int) -> Store:
    """A store with closed days of 1 kWh and more, ready to be delivered."""
    folder.mkdir(exist_ok=True)
    store = Store.writer(folder)
    store.readings.begin("site", "Asia/Singapore", clock.boot_id, clock.now())
    for number in range(meters):
        meter = a_meter(f"m{number}")
        store.readings.know_meter(meter.id, meter.production)
        store.readings.add([Reading(meter.id, Moment(START, "boot-1", 0, True), 0)])
        first = store.readings.last(meter.id)
        assert first is not None and first.id is not None
        store.days.commission(meter.id, Border(START, 0, 0, "start", first.id, None), START)
        for day in range(days):
            opening = store.days.last_border(meter.id)
            assert opening is not None
            moved = 1000 + number + day
            at = START + timedelta(days=day + 1)
            closing = Border(at, opening.index_wh + moved, opening.total_wh + moved, "read", first.id, None)
            store.days.close(Day(meter.id, day_of(opening.at, SINGAPORE), opening, closing), at, meter.reports)
    clock.at = START + timedelta(days=days, hours=1)
    return store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = make_store(tmp_path, clock, meters=2, days=3)
    yield opened
    opened.close()


def run(uplink: FakeUplink, store: Store, clock: FakeClock, minutes: int = 120, pace: Pace | None = None) -> None:
    pace = pace or Pace(clock)
    for _ in range(minutes):
        deliver(uplink, store, clock, pace, lambda: 0.5)
        clock.leap(minutes=1)


def states(store: Store) -> dict[str, int]:
    return store.outbox.counts().get("platform", {})


def test_days_are_sent_accepted_and_then_read_back(store: Store, clock: FakeClock) -> None:
    uplink = FakeUplink()
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    assert states(store) == {"accepted": 6}
    run(uplink, store, clock, 5)
    assert states(store) == {"confirmed": 6}
    assert uplink.sends == 1 and uplink.twice == []


@pytest.mark.parametrize("fate", ["lost", "dropped"])
def test_a_request_without_an_answer_is_read_back_before_anything_is_sent_again(
    store: Store, clock: FakeClock, fate: str
) -> None:
    uplink = FakeUplink()
    uplink.script = [fate]
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    assert states(store) == {"unclear": 6}
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 6}
    assert uplink.twice == []
    assert uplink.sends == (1 if fate == "lost" else 2)


def test_a_claim_is_on_disk_before_the_request_leaves(store: Store, clock: FakeClock, tmp_path: Path) -> None:
    uplink = FakeUplink()
    seen: list[dict[str, int]] = []
    uplink.before_answer = lambda: seen.append(states(Store.reader(tmp_path)))
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    assert seen == [{"unclear": 6}]


def test_power_lost_in_mid_request_neither_loses_nor_doubles_a_day(clock: FakeClock, tmp_path: Path) -> None:
    store = make_store(tmp_path, clock, meters=2, days=3)
    uplink = FakeUplink()

    def power_cut() -> None:
        raise KeyboardInterrupt

    uplink.before_answer = power_cut
    with pytest.raises(KeyboardInterrupt):
        deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    store.close()
    again = Store.writer(tmp_path)
    uplink.before_answer = lambda: None
    run(uplink, again, clock)
    assert states(again) == {"confirmed": 6} and uplink.twice == []
    again.close()


def test_a_busy_platform_is_left_alone_for_as_long_as_it_says(store: Store, clock: FakeClock) -> None:
    uplink, pace = FakeUplink(), Pace(clock)
    uplink.script = ["busy"]
    deliver(uplink, store, clock, pace, lambda: 0.5)
    clock.leap(seconds=80)
    deliver(uplink, store, clock, pace, lambda: 0.5)
    assert uplink.requests == 1
    run(uplink, store, clock, 30, pace)
    assert states(store) == {"confirmed": 6} and uplink.twice == []


def test_a_pause_for_the_token_ends_with_a_new_token_and_the_days_leave_at_once(store: Store, clock: FakeClock) -> None:
    uplink, pace = FakeUplink(), Pace(clock)
    uplink.script = ["token"]
    for _ in range(4):
        deliver(uplink, store, clock, pace, lambda: 0.5)
        clock.leap(minutes=1)
    assert uplink.sends == 1 and pace.why is not None and (pace.why.text, pace.why.remedy) == ("no", "renew it")
    uplink.new_token = True
    deliver(uplink, store, clock, pace, lambda: 0.5)
    assert uplink.sends == 2 and states(store) == {"accepted": 6}


def test_a_new_token_ends_no_other_pause(store: Store, clock: FakeClock) -> None:
    uplink, pace = FakeUplink(), Pace(clock)
    uplink.script, uplink.new_token = ["busy"], True
    for _ in range(2):
        deliver(uplink, store, clock, pace, lambda: 0.5)
        clock.leap(seconds=40)
    assert uplink.sends == 1


def test_a_refused_day_is_set_aside_with_the_platforms_words(store: Store, clock: FakeClock) -> None:
    uplink = FakeUplink(most=1)
    uplink.script = ["refused"]
    run(uplink, store, clock, 30)
    assert states(store) == {"confirmed": 5, "rejected": 1}
    row = store.outbox.backlog()[0]
    assert (row["answer"], row["remedy"]) == ("no such inverter", "register it")
    assert any(event["kind"] == "rejected" for event in store.journal.events())


def test_a_platform_that_holds_another_value_is_never_overwritten(store: Store, clock: FakeClock) -> None:
    uplink = FakeUplink()
    uplink.script = ["dropped"]
    uplink.stored["STR-m0", "2026-03-14"] = (1, 1)
    run(uplink, store, clock)
    assert states(store) == {"confirmed": 5, "held": 1}
    assert "1 Wh there" in store.outbox.backlog()[0]["answer"]
    assert uplink.stored["STR-m0", "2026-03-14"] == (1, 1)


def test_nothing_is_claimed_that_would_have_to_wait_for_its_turn(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path / "five", clock, meters=5, days=1)
    uplink, pace = FakeUplink(most=1), Pace(clock)
    uplink.limit = 4
    deliver(uplink, store, clock, pace, lambda: 0.5)
    assert uplink.requests == 4 and states(store) == {"accepted": 4, "due": 1}


def test_a_pause_is_as_long_however_the_clock_is_set(clock: FakeClock) -> None:
    pace = Pace(clock)
    pace.pause(clock.now() + timedelta(minutes=5), Verdict("due", "429", "slow down"))
    clock.at -= timedelta(days=365)
    assert not pace.open() and pace.paused_until == clock.now() + timedelta(minutes=5)
    clock.at += timedelta(days=730)
    assert not pace.open()
    clock.leap(minutes=5)
    assert pace.open() and pace.paused_until is None


def test_a_day_waits_until_the_days_before_it_were_processed(tmp_path: Path, clock: FakeClock) -> None:
    """What was only taken may yet fail, and then an earlier day would come after a later one."""
    store = make_store(tmp_path / "one", clock, meters=1, days=3)
    uplink = FakeUplink(most=1)
    for sent in (1, 2, 3):
        deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
        assert uplink.sends == sent
        clock.leap(minutes=1)


def test_what_is_held_back_leaves_together(tmp_path: Path, clock: FakeClock) -> None:
    """Three devices with four days each, five days a request: no device's rest has a request of its own."""
    store = make_store(tmp_path / "three", clock, meters=3, days=4)
    uplink = FakeUplink(most=5)
    run(uplink, store, clock, 30)
    assert states(store) == {"confirmed": 12} and uplink.sends == 3


def test_nothing_leaves_on_an_untrusted_clock(store: Store, clock: FakeClock) -> None:
    uplink = FakeUplink()
    clock.synchronised = False
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    assert uplink.requests == 0 and states(store) == {"due": 6}


@given(st.lists(st.sampled_from(["ok", "lost", "dropped", "busy"]), max_size=12), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_whatever_the_network_does_each_day_arrives_once(
    tmp_path_factory: pytest.TempPathFactory, script: list[str], most: int
) -> None:
    clock = FakeClock()
    store = make_store(tmp_path_factory.mktemp("store"), clock, meters=2, days=3)
    uplink = FakeUplink(most)
    uplink.script = list(script)
    run(uplink, store, clock, 24 * 60)
    assert states(store) == {"confirmed": 6}
    assert uplink.twice == [] and len(uplink.stored) == 6
    store.close()


class BlindUplink(FakeUplink):
    """A negative control: never looks, and calls every day missing at once."""

    absent_after = timedelta(0)

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        return {row.id: Missing() for row in rows}


def test_resending_blindly_would_be_seen(store: Store, clock: FakeClock) -> None:
    uplink = BlindUplink()
    uplink.script = ["lost"]
    run(uplink, store, clock, 30)
    assert uplink.twice != []


def test_days_that_shared_a_request_are_asked_about_together(store: Store, clock: FakeClock) -> None:
    """One of them may have been tried before; a platform that stores their sum cannot answer for one alone."""
    uplink = FakeUplink(most=1)
    uplink.script, uplink.limit = ["busy"], 1
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    clock.leap(hours=3)
    uplink.most, uplink.script, uplink.limit = 3, ["dropped"], 2
    asked: list[int] = []
    ask = uplink.ask

    def watched(rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        asked.append(len({row.id for row in rows}))
        return ask(rows)

    uplink.ask = watched  # type: ignore[method-assign]  # the fake is watched, not replaced
    deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    uplink.limit = None
    for _ in range(20):
        clock.leap(seconds=30)
        deliver(uplink, store, clock, Pace(clock), lambda: 0.5)
    assert asked[0] == 3


def test_a_weekly_comparison_reports_a_difference_and_changes_nothing(store: Store, clock: FakeClock) -> None:
    uplink = FakeUplink()
    run(uplink, store, clock, 10)
    assert all(one.local_wh == one.platform_wh for one in reconcile(uplink, store, clock, Pace(clock)))
    uplink.stored["STR-m0", "2026-03-15"] = (1, 1)
    del uplink.stored["STR-m1", "2026-03-14"]
    found = {one.meter: one for one in reconcile(uplink, store, clock, Pace(clock))}
    assert found["m0"].differing == ("2026-03-15",) and found["m0"].platform_wh < found["m0"].local_wh
    assert found["m1"].differing == ("2026-03-14",)
    assert states(store) == {"confirmed": 6}
    assert [event["kind"] for event in store.journal.events()[:2]] == ["differs", "differs"]


def test_a_weekly_comparison_never_asks_for_a_part_of_the_days_that_shared_a_request(
    store: Store, clock: FakeClock
) -> None:
    uplink = FakeUplink()
    run(uplink, store, clock, 10)  # three days of each meter in one request
    clock.at = START + timedelta(days=2) + LOOK_BACK  # the first of them lies further back
    for uplink.ordered, days in ((True, 3), (False, 2)):
        assert [one.days for one in reconcile(uplink, store, clock, Pace(clock))] == [days, days]


def test_old_samples_are_thinned_but_never_on_an_untrusted_clock(store: Store, clock: FakeClock) -> None:
    for minute in range(120):
        store.readings.add([Reading("m0", Moment(START + timedelta(minutes=minute), "boot-1", 0, True), minute)])
    clock.leap(days=100)
    clock.synchronised = False
    assert prune(store, clock, timedelta(days=56), timedelta(days=400)) == 0
    clock.synchronised = True
    assert prune(store, clock, timedelta(days=56), timedelta(days=400)) > 100

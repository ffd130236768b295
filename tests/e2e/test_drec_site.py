"""Whole backlogs at the stand-in for D-REC: what it knows of the devices decides what is sent, and nothing is provoked.

HELIOGRAPH_SEED=7 HELIOGRAPH_DREC_DAYS=2000 python -m pytest tests/e2e/test_drec_site.py -n 0 -s
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from heliograph.core.ceiling import Plant, ceiling_wh
from heliograph.core.daily import Border, Day, day_of
from heliograph.core.errors import StoreError
from heliograph.core.readings import Moment, Reading
from heliograph.core.site import Report
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_drec import Device
from heliograph.store import Store
from heliograph.store.opening import Loss, note_loss
from heliograph.store.outbox import RECOVERY
from heliograph.uplink.drec import Drec
from heliograph.uplink.drec_packing import ReadType
from heliograph.uplink.http import Http
from heliograph.uplink.tokens import Secret, StaticToken, TokenSource, drec_login
from heliograph.work.decide import decide
from heliograph.work.deliver import Pace, deliver
from heliograph.work.reconcile import reconcile
from heliograph.work.recover import Recovery
from tests.fakes import RULES, SINGAPORE, START, FakeClock, a_meter, in_memory

SEED = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.randrange(1, 10**6)
DAYS = int(os.environ.get("HELIOGRAPH_DREC_DAYS", "40"))
KW = 10.0
DAY = timedelta(days=1)
LONG_AGO = START - timedelta(days=400)


def border(day: int) -> datetime:
    return START + day * DAY


class Site:
    """A store with closed days, the platform, and the uplink between them."""

    def __init__(self, store: Store, clock: FakeClock, platform: Sandbox, uplink: Drec) -> None:
        self.store, self.clock, self.platform, self.uplink = store, clock, platform, uplink
        self.before: Callable[[], None] = lambda: None
        """Called before each request."""

    def run(self, hours: int) -> None:
        pace = Pace(self.clock)
        for _ in range(hours * 6):
            deliver(self.uplink, self.store, self.clock, pace, lambda: 0.5)
            self.clock.leap(minutes=10)

    def rows(self, meter: str) -> Mapping[date, tuple[str, str]]:
        return {row["day"]: (row["state"], row["rule"]) for row in self.store.outbox.shown("drec", meter)}

    def rules(self) -> list[str]:
        return sorted({violation.rule for violation in self.platform.violations})


@contextmanager
def site(
    energies: Mapping[str, Sequence[int]],
    devices: Sequence[Device],
    *,
    kind: ReadType = "Delta",
    login: bool = False,
    zero: int = 0,
) -> Iterator[Site]:
    clock = FakeClock()
    with in_memory() as folder:
        store = _filled(folder, clock, energies)
        platform = Sandbox(clock.now, token="fixed", devices=devices)

        def answer(request: httpx.Request) -> httpx.Response:
            one.before()
            url, headers = request.url, dict(request.headers)
            found = platform.handle(request.method, url.path, url.query.decode(), headers, request.content)
            return httpx.Response(found.status, headers=list(found.headers), content=found.body)

        http = Http("https://platform.example/api", transport=httpx.MockTransport(answer))
        tokens: TokenSource = StaticToken(Secret(env="T", environ={"T": "fixed"}))
        if login:
            name, word = (
                Secret(env="T", environ={"T": text}) for text in (platform.drec.username, platform.drec.password)
            )
            tokens = drec_login(http, name, word)
        zeros = dict.fromkeys(energies, zero)
        uplink = Drec("drec", http, kind, tokens, clock.now, zero_wh=zeros, sleep=lambda _: None)
        one = Site(store, clock, platform, uplink)
        yield one
        store.close()


def _filled(folder: Path, clock: FakeClock, energies: Mapping[str, Sequence[int]]) -> Store:
    store = Store.writer(folder)
    store.readings.begin("site", "Asia/Singapore", clock.boot_id, clock.now())
    for meter, periods in energies.items():
        store.readings.know_meter(meter, "energy_export")
        store.readings.add([Reading(meter, Moment(START, "boot-1", 0, True), 0)])
        first = store.readings.last(meter)
        assert first is not None and first.id is not None
        store.days.commission(meter, Border(START, 0, 0, "start", first.id, None), START)
        for period in periods:
            _close(store, meter, period)
    clock.at = border(max(map(len, energies.values()))) + timedelta(hours=1)
    return store


def _close(store: Store, meter: str, period: int) -> None:
    opening, first = store.days.last_border(meter), store.readings.last(meter)
    assert opening is not None and first is not None and first.id is not None
    index = opening.index_wh + period
    closing = Border(opening.at + DAY, index, opening.total_wh + period, "read", first.id, None)
    day = Day(meter, day_of(opening.at, SINGAPORE), opening, closing)
    store.days.close(day, closing.at, (Report("drec", meter),))


def plant(name: str, created: datetime = START - DAY, **more: object) -> Device:
    return Device(name, KW, created, LONG_AGO, **more)  # type: ignore[arg-type]  # passed on as they are


# Capacity


def weather(rng: random.Random) -> list[int]:
    """Days around the ceiling: clear ones above it, dull and dark ones, and a dull one at the end."""
    most = ceiling_wh(Plant(KW), START, START + DAY, START, reserve=0)
    days: list[int] = []
    clear = 0
    while len(days) < DAYS - 1:
        clear = clear + 1 if clear < 4 and rng.random() < 0.4 else 0
        share = rng.uniform(1.0, 1.15) if clear else rng.choice([0.0, rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.97)])
        days.append(int(most * share))
    return [*days, 1000]


def crowd() -> dict[str, list[int]]:
    print(f"HELIOGRAPH_SEED={SEED}")
    rng = random.Random(SEED)
    return {f"m{number}": weather(rng) for number in range(10)}


def test_ten_devices_with_too_small_a_capacity_are_delivered_without_one_refusal() -> None:
    energies = crowd()
    with site(energies, [plant(name) for name in energies]) as one:
        one.run(hours=4 + DAYS // 4)
        assert one.rules() == []
        for name, periods in energies.items():
            states = {state for state, _ in one.rows(name).values()}
            assert one.platform.total_wh("drec", name) == sum(periods), one.rows(name)
            assert states == {"confirmed"}, one.rows(name)
        assert one.platform.requests["drec.mine"] <= 2 + DAYS // 40
        assert any("above what the platform takes" in note.text and note.alarm for note in one.uplink.notes())


def test_the_same_devices_provoke_refusals_where_the_platform_does_not_tell_their_capacity() -> None:
    energies = crowd()
    with site(energies, [plant(name) for name in energies]) as one:
        one.platform.outage(START, timedelta(days=10_000), "403", "drec.mine")
        one.run(hours=6)
        assert "L4" in one.rules()
        assert any("DEVICE Read" in note.text for note in one.uplink.notes())


def test_too_much_for_many_days_waits_loudly_and_goes_when_the_platform_is_set_right() -> None:
    energies = {"m0": [1000, *[90_000] * 6], "m1": [50_000] * 7}
    with site(energies, [plant("m0"), plant("m1")]) as one:
        one.run(hours=2)
        assert [state for state, _ in one.rows("m0").values()] == ["confirmed", *["due"] * 6]
        assert {state for state, _ in one.rows("m1").values()} == {"confirmed"}
        assert any("6 days wait" in note.text and note.alarm for note in one.uplink.notes())
        one.platform.drec.onboard("m0", capacity_kw=20.0)
        one.run(hours=26)  # it is read again once a day
        assert one.platform.total_wh("drec", "m0") == sum(energies["m0"])
        assert one.rules() == []
        assert not any("wait" in note.text for note in one.uplink.notes())


# Onboarding


def ask_for_history(one: Site, meter: str, days: int) -> None:
    """As `heliograph backlog retry METER DAYS --as-history` does it."""
    report = Report("drec", meter, ordered=True, history=True)
    first, last = (str(day_of(border(day), SINGAPORE)) for day in (0, days - 1))
    wish = {"uplink": "drec", "first": first, "last": last, "as_history": True, "dry": False}
    decide(replace(a_meter(meter), reports=(report,)), "retry", wish, one.store, one.clock.now())


BEFORE = [20_000, 0, 70_000, 0, 66_000, 30_000, 0, 0, 64_400, 10]


def test_what_was_metered_before_the_registration_is_set_aside_and_goes_as_history_when_asked_for() -> None:
    energies = {"m0": [*BEFORE, 40_000, 0, 41_000, 42_000], "m1": [1000] * 14}
    with site(energies, [plant("m0", border(10)), plant("m1")]) as one:
        one.run(hours=2)
        states = list(one.rows("m0").values())
        assert states[:10] == [("rejected", "aside/E1")] * 10
        assert {state for state, _ in states[10:]} == {"confirmed"}
        assert "--as-history" in one.store.outbox.backlog("drec")[0]["remedy"]
        assert one.platform.total_wh("drec", "m0") == 123_000
        ask_for_history(one, "m0", 10)
        one.run(hours=2)
        assert one.rules() == []
        assert one.platform.total_wh("drec", "m0") == sum(energies["m0"])
        history = sorted(one.platform.drec.states["m0"].history)
        assert sum(wh for *_, wh in history) == sum(BEFORE)
        assert all(end < start for (_, end, _), (start, *_) in pairwise(history))
        assert history[-1][1] == border(10) - timedelta(seconds=1)
        assert list(one.platform.drec.states["m0"].reads) == [border(day) for day in (11, 13, 14)]
        rows = list(one.rows("m0").values())
        assert {state for state, _ in rows if state != "rejected"} == {"confirmed"}
        compared = reconcile(one.uplink, one.store, one.clock, Pace(one.clock))
        assert (
            sum(month.local_wh for month in compared)
            == sum(month.platform_wh for month in compared)
            == 1000 * 14 + sum(energies["m0"])
        )
        assert not any(month.differing or month.unanswered for month in compared)
        skipped = [day for day, row in enumerate(rows) if row[0] == "rejected"]
        assert all(rows[day] == ("rejected", "aside/H4") and BEFORE[day] == 0 for day in skipped)


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_restore_looks_for_history_among_the_history_reads(known: bool, arrived: bool) -> None:
    """Whether the copy knew of the wish or not, and whether the lost store had sent the days or not."""
    meter = replace(a_meter("m0"), reports=(Report("drec", "m0", timedelta(0), True, True),))
    wish = {"first": "2026-03-14", "last": "2026-03-16", "uplink": None, "dry": False, "as_history": True}
    with site({"m0": [30000, 31000, 41000, 22000, 20000]}, [plant("m0", border(3))]) as one:
        store, clock = one.store, one.clock

        def recovered() -> None:
            recovery, pace = Recovery([meter], RULES), Pace(clock)
            for _ in range(20):
                recovery.ask(one.uplink, store, clock, pace)
                assert recovery.settle(store, clock) == {}
                deliver(one.uplink, store, clock, pace, lambda: 0.5)
                clock.leap(minutes=10)

        one.run(hours=1)
        if arrived:
            decide(meter, "retry", wish, store, clock.now())
            one.run(hours=1)
            assert one.platform.total_wh("drec", "m0") == 144_000
        old = ("due", "history") if known else ("rejected", "aside/E1")
        before = "UPDATE outbox SET claim = NULL, state = ?, rule = ? WHERE date <= '2026-03-16'"
        store._connection.execute(before, old)
        note_loss(store._connection, Loss("test"), clock.now(), None)
        store.journal.learn(RECOVERY, {**store.journal.learned(RECOVERY), "done": ["m0"]})
        recovered()
        if not known:
            assert one.rows("m0")[date(2026, 3, 14)] == ("rejected", "aside/E1")
            decide(meter, "retry", wish, store, clock.now())
            assert one.rows("m0")[date(2026, 3, 14)] == ("unclear", "history")
            recovered()
        assert {state for state, _ in one.rows("m0").values()} == {"confirmed"}
        assert one.platform.total_wh("drec", "m0") == 144_000
        assert one.rules() == []


def test_new_days_do_not_wait_for_history_and_a_lost_answer_loses_nothing() -> None:
    energies = {"m0": [20_000] * 8}
    with site(energies, [plant("m0", border(4))]) as one:
        one.run(hours=1)
        ask_for_history(one, "m0", 4)
        for fault in ("drop-after", "drop-before"):
            one.platform.fault(fault, 1, "drec.send")
        one.run(hours=3)
        assert one.platform.total_wh("drec", "m0") == sum(energies["m0"])
        assert {state for state, _ in one.rows("m0").values()} == {"confirmed"}


def test_a_year_of_history_keeps_no_new_day_waiting_and_merges_over_any_length() -> None:
    year = [*[64_000] * 364, 66_000]  # the last one is too much and has its only neighbours before it
    energies = {"m0": [*year, 40_000]}
    with site(energies, [plant("m0", border(365))]) as one:
        one.run(hours=1)
        ask_for_history(one, "m0", 365)
        one.platform.outage(one.clock.now(), timedelta(hours=1), "503", "drec.send")
        one.run(hours=30)
        assert one.platform.total_wh("drec", "m0") == sum(energies["m0"])
        assert {state for state, _ in one.rows("m0").values()} == {"confirmed"}
        assert len(one.platform.drec.states["m0"].history) < 365
        assert one.rules() == []


def test_no_new_day_waits_for_history_that_is_unclear_or_refused() -> None:
    with site({"m0": [20_000] * 4}, [Device("m0", KW, border(2), border(1))]) as one:
        pace = Pace(one.clock)
        one.platform.outage(START, timedelta(days=10_000), "403", "drec.mine")
        one.run(hours=1)
        ask_for_history(one, "m0", 2)
        one.platform.outage(one.clock.now(), DAY, "drop-before", "drec.send")
        deliver(one.uplink, one.store, one.clock, pace, lambda: 0.5)
        assert "unclear" in {state for state, _ in one.rows("m0").values()}
        one.platform.faults = [fault for fault in one.platform.faults if fault.kind != "drop-before"]
        for waits, day in (("unclear", 4), ("rejected", 5)):
            # The days that were asked for stand before the new one, and cannot leave.
            assert waits in {state for state, _ in one.rows("m0").values()}
            _close(one.store, "m0", 30_000)
            one.clock.at = max(one.clock.at, border(day + 1))
            found = one.store.outbox.candidates("drec", one.clock.now(), ordered=True, limit=10)
            assert [row.start for row in found] == [border(day)]
            one.run(hours=3)
        # The list of devices was not to be had, so the platform had to say it: commissioned, and registered, too late.
        assert list(one.rows("m0").values())[:2] == [("rejected", "aside/H5"), ("rejected", "aside/H6")]
        assert one.platform.total_wh("drec", "m0") == 20_000 * 2 + 30_000 * 2


def test_a_day_in_the_middle_of_which_the_device_was_registered_is_claimed_in_no_way() -> None:
    energies = {"m0": [20_000] * 6}
    with site(energies, [plant("m0", border(2) + timedelta(hours=9))]) as one:
        one.run(hours=2)
        ask_for_history(one, "m0", 3)
        one.run(hours=2)
        assert [state for state, _ in one.rows("m0").values()] == [*["confirmed"] * 2, "rejected", *["confirmed"] * 3]
        assert one.rows("m0")[date(2026, 3, 16)] == ("rejected", "aside/E1")
        assert one.platform.total_wh("drec", "m0") == 100_000
        assert one.rules() == []


def test_without_the_list_the_servers_own_word_sets_days_aside() -> None:
    energies = {"m0": [20_000] * 4}
    with site(energies, [plant("m0", border(2))]) as one:
        one.platform.outage(START, timedelta(days=10_000), "403", "drec.mine")
        one.run(hours=2)
        assert list(one.rows("m0").values())[:2] == [("rejected", "aside/E1")] * 2
        assert one.platform.total_wh("drec", "m0") == 40_000


def test_energy_before_the_commissioning_is_set_aside() -> None:
    device = Device("m0", KW, START - DAY, border(2))
    with site({"m0": [20_000] * 4}, [device]) as one:
        one.run(hours=2)
        assert list(one.rows("m0").values())[:2] == [("rejected", "aside/E2")] * 2
        assert one.platform.total_wh("drec", "m0") == 40_000
        assert one.rules() == []


def test_the_first_read_is_told_to_be_the_baseline() -> None:
    with site({"m0": [70_000, 20_000]}, [plant("m0")]) as one:
        one.uplink.prepare(one.store.outbox.candidates("drec", one.clock.now(), ordered=True, limit=10))
        assert any("baseline" in note.text and not note.alarm for note in one.uplink.notes())
        one.run(hours=1)
        # It alone has no ceiling, so it is sent as it is, although it is above it.
        assert list(one.platform.stored_wh("drec", "m0").values()) == [70_000, 20_000]
        assert not any("baseline" in note.text for note in one.uplink.notes())


def test_dark_days_are_no_alarm() -> None:
    with site({"m0": [20_000, *[0] * 8]}, [plant("m0")]) as one:
        one.run(hours=1)
        assert one.uplink.notes() == ()


# Type lock, unknown device


def test_a_device_of_the_other_type_waits_alone_and_goes_on_when_the_platform_lets_it() -> None:
    with site({"m0": [20_000] * 3, "m1": [30_000] * 3}, [plant("m0"), plant("m1")]) as one:
        one.platform.drec.states["m0"].read_type = "Aggregate"
        one.run(hours=3)
        first = one.store.outbox.backlog("drec")[0]
        assert (first["state"], first["rule"], first["meter"]) == ("due", "L1", "m0")
        assert 'read_type = "Aggregate"' in first["remedy"]
        assert [note.alarm for note in one.uplink.notes() if "reads at the platform are Aggregate" in note.text] == [
            True
        ]
        assert one.platform.total_wh("drec", "m1") == 90_000
        assert one.rules() == []
        one.platform.drec.states["m0"].read_type = None
        one.run(hours=26)
        assert one.platform.total_wh("drec", "m0") == 60_000
        assert one.uplink.notes() == ()


def test_a_locked_type_that_only_the_answer_tells_is_held() -> None:
    with site({"m0": [20_000] * 3, "m1": [30_000] * 3}, [plant("m0"), plant("m1")]) as one:
        one.platform.outage(START, timedelta(days=10_000), "403", "drec.mine")
        one.platform.drec.states["m0"].read_type = "Aggregate"
        one.run(hours=3)
        assert next(iter(one.rows("m0").values())) == ("held", "L1")
        assert one.platform.total_wh("drec", "m1") == 90_000


def test_a_device_that_is_not_registered_waits_alone_and_is_looked_for_every_hour() -> None:
    with site({"m0": [20_000] * 3, "m1": [30_000] * 3}, [plant("m1")]) as one:
        one.run(hours=5)
        assert next(iter(one.rows("m0").values())) == ("due", "D5")
        assert one.platform.total_wh("drec", "m1") == 90_000
        assert one.platform.requests["drec.send"] <= 3 + 5
        assert any("lists no device m0" in note.text and note.alarm for note in one.uplink.notes())
        one.platform.drec.onboard("m0", created_at=START - DAY, commissioned=LONG_AGO)
        one.run(hours=2)
        assert one.platform.total_wh("drec", "m0") == 60_000
        assert not any("lists no device" in note.text for note in one.uplink.notes())


# Tokens


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("what", ["retry", "set-aside"])
def test_a_question_about_a_device_that_is_not_known_holds_the_day_until_somebody_decides(
    what: str, arrived: bool
) -> None:
    """Whether the day arrived under the name that is not known (any more), nobody can tell: it is never due."""
    meter = replace(a_meter("m0"), reports=(Report("drec", "m0", timedelta(0), True, True),))
    last = "2026-03-15" if arrived else "2026-03-14"
    wish = {"first": "2026-03-14", "last": last, "uplink": None, "dry": False}
    with site({"m0": [30000, 31000]}, [plant("m0")]) as one:
        known = one.platform.drec.states.pop("m0") if not arrived else None
        if not arrived:
            one.platform.outage(one.clock.now(), timedelta(minutes=1), "drop-before", "drec.send")
        deliver(one.uplink, one.store, one.clock, Pace(one.clock), lambda: 0.5)
        assert one.rows("m0")[date(2026, 3, 14)][0] == ("accepted" if arrived else "unclear")
        known = known or one.platform.drec.states.pop("m0")
        one.run(hours=1)
        assert one.rows("m0")[date(2026, 3, 14)] == ("held", "B-D5")
        (blocked,) = one.store.outbox.blocked("drec")
        assert "Register the device" in blocked.todo and "heliograph backlog retry" in blocked.todo
        one.run(hours=30)
        assert one.rows("m0")[date(2026, 3, 14)] == ("held", "B-D5")
        decide(meter, what, wish, one.store, one.clock.now())
        one.platform.drec.states["m0"] = known
        one.run(hours=30)
        decided = "confirmed" if what == "retry" else "rejected"
        found = [state for state, _ in one.rows("m0").values()]
        assert found == ([decided, decided] if arrived else [decided, "confirmed"])
        assert one.platform.total_wh("drec", "m0") == 31000 + 30000 * (what == "retry" or arrived)


def test_a_token_revoked_in_mid_backlog_is_renewed_and_nothing_is_lost() -> None:
    energies = {"m0": [20_000] * 30}
    with site(energies, [plant("m0")], login=True) as one:
        one.platform.drec.session_race = True
        ends = iter([5, 12, 20])
        left = [next(ends)]

        def revoke() -> None:
            if one.platform.requests["drec.send"] >= left[0]:
                one.clock.leap(seconds=1)  # two logins in one second give one and the same token
                one.platform.revoke()
                left[0] = next(ends, 10**6)

        one.before = revoke
        one.run(hours=3)
        assert one.platform.requests["drec.login"] == 4
        assert one.platform.total_wh("drec", "m0") == 600_000
        assert {state for state, _ in one.rows("m0").values()} == {"confirmed"}


def test_a_login_that_the_platform_forgets_at_once_pauses_the_sending_and_says_why() -> None:
    with site({"m0": [20_000] * 3}, [plant("m0")], login=True) as one:
        issue = one.platform.drec.issue

        def forgotten(session: bool = True) -> str:
            del session
            return issue(session=False)

        one.platform.drec.issue = forgotten  # type: ignore[method-assign]  # as with a token too long for its column
        one.run(hours=3)
        first = one.store.outbox.backlog("drec")[0]
        assert (first["state"], first["rule"]) == ("due", "T4")
        assert "45 characters" in first["remedy"]
        assert one.platform.requests["drec.login"] <= 8
        one.platform.drec.issue = issue  # type: ignore[method-assign]  # as it was
        one.run(hours=3)
        assert one.platform.total_wh("drec", "m0") == 60_000


# Aggregate


def test_aggregate_sends_its_running_total_and_knows_its_own_baseline() -> None:
    energies = {"m0": [20_000, 0, 30_000, 70_000, 10_000]}
    with site(energies, [plant("m0")], kind="Aggregate") as one:
        one.run(hours=3)
        assert {state for state, _ in one.rows("m0").values()} == {"confirmed"}, one.rows("m0")
        state = one.platform.drec.states["m0"]
        assert state.counter is not None and state.counter[1] == 130_000
        assert one.platform.total_wh("drec", "m0") == 110_000  # the first value is where the platform counts from
        (month,) = reconcile(one.uplink, one.store, one.clock, Pace(one.clock))
        assert (month.days, month.unanswered, month.difference_wh, month.differing) == (4, 1, 0, ())
        assert one.rules() == []


def test_a_counter_that_did_not_start_at_the_registration_is_not_sent() -> None:
    energies = {"m0": [20_000] * 4}
    with site(energies, [plant("m0", border(2))], kind="Aggregate") as one:
        one.run(hours=2)
        rows = list(one.rows("m0").values())
        assert rows[:3] == [("rejected", "aside/E1"), ("rejected", "aside/E1"), ("due", "A3")]
        assert one.platform.requests["drec.send"] == 0


@pytest.mark.parametrize("login", [False, True])
def test_a_list_that_is_away_for_a_while_delays_nothing(login: bool) -> None:
    with site({"m0": [20_000] * 3}, [plant("m0")], login=login) as one:
        one.platform.outage(START, timedelta(days=10_000), "503", "drec.mine")
        one.run(hours=1)
        assert one.platform.total_wh("drec", "m0") == 60_000


@pytest.mark.parametrize("when", ["while the devices are looked at", "before the claim"])
def test_history_asked_for_while_a_round_looks_at_the_day_is_not_lost(when: str) -> None:
    """The round may have found the day before somebody decided; what it then believes must not undo the wish."""
    early = when == "while the devices are looked at"
    with site({"m0": [30000, 31000, 41000]}, [plant("m0", border(2 if early else -1))]) as one:
        meter = replace(a_meter("m0"), reports=(Report("drec", "m0", timedelta(0), True, True),))
        wished: list[str] = []

        def wish() -> None:
            if not wished:
                days = {"first": "2026-03-14", "last": "2026-03-14", "uplink": None, "dry": False, "as_history": True}
                wished.append(decide(meter, "retry", days, one.store, one.clock.now())["days"][0]["how"])

        claimed = one.store.outbox.claim

        def claim(*found: Any) -> int:
            wish()
            return claimed(*found)

        if early:
            one.before = wish
            one.run(hours=1)
            assert one.rows("m0")[date(2026, 3, 14)] == ("confirmed", "history/read-back")
            assert one.platform.total_wh("drec", "m0") == 30000 + 41000
        else:
            with pytest.MonkeyPatch.context() as patched, pytest.raises(StoreError, match="is not claimed"):
                patched.setattr(one.store.outbox, "claim", claim)
                one.run(hours=1)
            assert one.rows("m0")[date(2026, 3, 14)] == ("due", "history")
        assert wished

"""How well a day was read: polls by what they came to, silences and their causes, over restarts and midnights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from heliograph.core.coverage import CAUSES, MOST_GAPS, Coverage, Outcome, Silence, cause_of, counted, with_gap
from heliograph.core.daylight import Position
from heliograph.core.errors import StoreError
from heliograph.core.registers import Night
from heliograph.store import Store
from heliograph.work.close_days import close_days
from heliograph.work.count_polls import _by_day, covered
from heliograph.work.poll import PolledBus
from tests.fakes import RULES, SINGAPORE, START, a_meter
from tests.work.test_poll import URL, Site

DAY = date(2026, 3, 14)
HERE = Position(1.35, 103.82)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, [a_meter()])
    yield made
    made.store.close()


def restarted(site: Site, *, boot: str = "", **away: float) -> None:
    """The process ends without a word and begins again later; with a `boot` the box was without power."""
    site.store.close()
    site.clock.leap(**away)
    if boot:
        site.clock.boot_id, site.clock.up = boot, 30.0
    site.restart()


def row(site: Site, day: date = DAY) -> Coverage:
    """What is on the card after the counts are due."""
    site.run(minutes=6)
    found = site.store.days.coverage("roof", day)
    assert found is not None
    return found


def causes(found: Coverage) -> list[tuple[str, int]]:
    return [(gap.cause, round(gap.length.total_seconds() / 60)) for gap in found.gaps]


def test_every_poll_of_a_quiet_hour_is_good_and_there_is_no_gap(site: Site) -> None:
    rounds = site.run(minutes=60)
    found = row(site)
    assert found.counts == {"good": found.good} and rounds - 1 <= found.good <= rounds + 37
    assert found.gaps == () and found.first is not None and found.last is not None
    assert found.last - found.first > timedelta(minutes=59)


def test_counts_reach_the_card_with_a_round_and_cost_no_commit_of_their_own(site: Site) -> None:
    site.run(minutes=2)
    said: list[str] = []
    site.store._connection._ready(write=True).conn.set_trace_callback(said.append)
    site.run(minutes=60)
    commits = sum(1 for one in said if one.startswith("COMMIT"))
    writes = sum(1 for one in said if "INTO coverage" in one)
    assert commits == pytest.approx(60, abs=2) and 11 <= writes <= 13


def test_a_dead_bus_still_writes_what_it_came_to_now_and_then(site: Site) -> None:
    site.run(minutes=6)
    site.bus.down = True
    said: list[str] = []
    site.store._connection._ready(write=True).conn.set_trace_callback(said.append)
    site.run(minutes=60)
    assert 5 <= sum(1 for one in said if one.startswith("COMMIT")) <= 7
    found = site.store.days.coverage("roof", DAY)
    assert found is not None and found.counts["unreachable"] > 250 and found.failure == "unreachable"


@pytest.mark.parametrize(("what", "outcome"), [("down", "unreachable"), ("silent", "timeout")])
def test_trouble_on_the_bus_is_counted_by_its_class_and_named_as_the_cause(
    site: Site, what: str, outcome: Outcome
) -> None:
    site.run(minutes=10)
    kept = dict(site.devices)
    site.bus.down = what == "down"
    if what == "silent":
        site.devices.clear()
    site.run(minutes=20)
    site.bus.down = False
    site.devices.update(kept)
    site.run(minutes=10)
    found = row(site)
    assert found.counts[outcome] >= 5
    assert causes(found) in ([("bus", 20)], [("bus", 21)])


@pytest.mark.parametrize(("boot", "cause"), [("boot-2", "power"), ("", "stopped")])
def test_a_restart_is_told_by_its_boot(site: Site, boot: str, cause: str) -> None:
    site.run(minutes=10)
    before = site.store.days.coverage("roof", DAY)
    restarted(site, boot=boot, hours=2)
    site.run(minutes=10)
    found = row(site)
    assert causes(found) in ([(cause, 120)], [(cause, 121)])
    # What the run before had not written yet is all that is missing: five minutes of polls at most.
    assert before is not None and found.good >= before.good + 60 and found.good >= 2 * 60 - 35
    told = covered("roof", DAY, site.store, RULES.zone, site.clock.now())
    assert told is not None and told["not_asked"] >= 700 and told["gaps"][0]["why"] == CAUSES[found.gaps[0].cause]
    assert told["expected"] == told["good"] + told["not_asked"] and told["longest_gap_s"] >= 7200


def test_a_bus_that_was_dead_before_the_power_went_is_not_blamed_on_the_power(site: Site) -> None:
    site.run(minutes=10)
    site.bus.down = True
    site.run(minutes=120)
    restarted(site, boot="boot-2", minutes=30)
    site.run(minutes=60)  # still dead
    site.bus.down = False
    site.run(minutes=5)
    found = row(site)
    assert [cause for cause, _ in causes(found)] == ["bus", "bus", "power"]
    assert [minutes for _, minutes in causes(found)] == pytest.approx([115, 60, 35], abs=6)


def test_a_silence_over_midnights_belongs_to_each_of_its_days(site: Site) -> None:
    site.run(minutes=10)
    restarted(site, boot="boot-2", hours=36)
    days = [row(site, DAY + timedelta(days=number)) for number in range(2)]
    assert causes(days[1]) == [("power", 24 * 60)]
    third = site.store.days.coverage("roof", DAY + timedelta(days=2))
    assert third is not None
    # From ten past noon of the first day to ten past midnight of the third.
    assert [causes(day)[0][0] for day in (days[0], third)] == ["power"] * 2
    assert [causes(day)[0][1] for day in (days[0], third)] == pytest.approx([12 * 60 - 10, 10], abs=1)
    assert days[1].good == 0 and days[1].first is None
    told = covered("roof", DAY + timedelta(days=1), site.store, RULES.zone, site.clock.now())
    assert told is not None and (told["expected"], told["good"], told["not_asked"]) == (8640, 0, 8640)


@pytest.mark.parametrize(
    ("night", "position", "hour", "cause"),
    [
        ("silent", HERE, 20, "asleep"),
        ("silent", HERE, 12, "bus"),
        ("silent", None, 20, "bus"),
        ("answers", HERE, 20, "bus"),
    ],
)
def test_a_silent_inverter_sleeps_in_the_dark_and_is_missing_by_day(
    tmp_path: Path, night: Night, position: Position | None, hour: int, cause: str
) -> None:
    meter = a_meter()
    site = Site(tmp_path, [meter])
    known = replace(meter, map=replace(meter.map, night=night))
    site.line = PolledBus("rs485", URL, [known], lambda: site.bus, position)
    site.clock.leap(hours=hour - 12)
    site.run(minutes=10)
    kept = dict(site.devices)
    site.devices.clear()
    site.run(minutes=60)
    site.devices.update(kept)
    site.run(minutes=5)
    assert [found for found, _ in causes(row(site))] == [cause]
    site.store.close()


def test_time_on_an_untrusted_clock_is_counted_where_it_belongs_when_trust_comes(site: Site) -> None:
    true = site.clock.at = START + timedelta(hours=23)
    site.clock.at = datetime(1970, 1, 1, tzinfo=START.tzinfo)
    site.clock.synchronised = False
    site.run(hours=2)
    assert site.store.days.coverage("roof", date(1970, 1, 1)) is None
    site.clock.at = true + timedelta(hours=2)
    site.clock.synchronised = True
    days = row(site), row(site, DAY + timedelta(days=1))
    # The simulated meter counts by this clock, so its counter leaps with it: what matters is which day a poll is on.
    polls = [sum(day.counts.values()) for day in days]
    assert polls == [pytest.approx(360, abs=3), pytest.approx(360 + 60, abs=12)]
    assert all(day.gaps == () for day in days)


def test_a_boot_that_was_never_trusted_leaves_an_hour_for_which_the_clock_is_to_blame(site: Site) -> None:
    site.run(minutes=10)
    restarted(site, boot="boot-2", minutes=20)
    site.clock.synchronised = False
    site.run(minutes=40)
    restarted(site, boot="boot-3", minutes=5)
    site.clock.synchronised = True
    found = row(site)
    assert causes(found) in ([("clock", 65)], [("clock", 66)], [("clock", 64)])


def refuse_for(site: Site, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    def full(*_: object) -> None:
        raise StoreError("the store could not be written: disk full", hint="Check the card.")

    with monkeypatch.context() as patched:
        patched.setattr(site.store.readings, "add", full)
        for _ in range(rounds):
            with_suppressed(site)
    site.run(minutes=5)


def test_what_the_store_takes_later_is_no_silence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run(minutes=10)
    refuse_for(site, monkeypatch, 60)
    found = row(site)
    assert "unstored" not in found.counts and found.gaps == ()


def test_what_had_to_make_room_meanwhile_is_counted_and_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliograph.work.poll.MOST_WAITING", 10)
    site.run(minutes=10)
    refuse_for(site, monkeypatch, 6 * 60)
    found = row(site)
    assert found.counts["unstored"] >= 30
    assert {cause for cause, _ in causes(found)} == {"storage"}


def with_suppressed(site: Site) -> None:
    """A round whose commit may fail; the daemon logs that at the edge of the job."""
    try:
        site.round()
    except StoreError:
        pass
    finally:
        site.clock.leap(seconds=10)


def test_days_of_a_swapped_meter_are_not_counted_twice(site: Site) -> None:
    site.run(minutes=10)
    site.line.forget(site.meters[0])
    rounds = site.run(minutes=10)
    assert row(site).good <= 2 * rounds + 40


def test_nothing_is_said_about_a_day_that_nobody_counted(site: Site) -> None:
    assert covered("roof", DAY, site.store, RULES.zone, site.clock.now()) is None


def test_closing_a_day_needs_no_counts(site: Site) -> None:
    close_days(site.meters, site.store, site.clock, RULES)
    assert site.store.days.coverage("roof", DAY) is None


@pytest.mark.parametrize(
    ("failures", "night", "dark", "cause"),
    [
        ({}, "answers", False, "stopped"),
        ({"timeout": 5}, "answers", True, "bus"),
        ({"timeout": 5}, "zeros", True, "asleep"),
        ({"absent": 9, "timeout": 2}, "answers", False, "asleep"),
        ({"doubtful": 3, "timeout": 2}, "silent", True, "doubt"),
        ({"stranger": 3}, "silent", True, "doubt"),
        ({"unstored": 3}, "answers", False, "storage"),
    ],
)
def test_most_of_the_polls_name_the_cause(failures: dict[Outcome, int], night: Night, dark: bool, cause: str) -> None:
    assert cause_of(failures, night, dark) == cause


def test_only_the_longest_gaps_are_kept() -> None:
    found = Coverage("roof", DAY, timedelta(seconds=10))
    for minutes in (5, 50, 7, 40, 9, 30, 20):
        found = with_gap(found, Silence(START, START + timedelta(minutes=minutes), "bus"))
    assert [gap.length // timedelta(minutes=1) for gap in found.gaps] == [50, 40, 30, 20, 9]
    assert len(found.gaps) == MOST_GAPS


def test_an_unstored_poll_is_counted_beside_what_it_was() -> None:
    found = counted(Coverage("roof", DAY, timedelta(seconds=10)), "good", START, START)
    found = counted(found, "unstored", START, START)
    assert (found.good, found.counts["unstored"], found.failure) == (1, 1, None)


def test_runs_of_polls_fall_into_the_days_they_were_made_in() -> None:
    chance = random.Random(3)
    for _ in range(200):
        first = START + timedelta(seconds=chance.randrange(86_400))
        step, number = timedelta(seconds=chance.choice((1, 10, 600))), chance.randrange(1, 400)
        parts: Sequence[tuple[date, datetime, datetime, int]] = list(
            _by_day(first, first + (number - 1) * step, number, SINGAPORE)
        )
        exact: dict[date, int] = {}
        for poll in range(number):
            day = (first + poll * step).astimezone(SINGAPORE).date()
            exact[day] = exact.get(day, 0) + 1
        assert {day: share for day, _, _, share in parts} == exact


def test_a_store_of_the_version_before_has_no_counts_and_still_opens(tmp_path: Path) -> None:
    import shutil

    from heliograph.store.connection import FILE

    shutil.copy(Path(__file__).parents[1] / "store" / "saved" / "v2.db", tmp_path / FILE)
    store = Store.writer(tmp_path)
    assert store.days.coverage("roof", DAY) is None and store.seams.all("roof") == []
    store.close()

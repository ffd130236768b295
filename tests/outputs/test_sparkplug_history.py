"""What a host has not got: random losses against an exact oracle, and that none is left out."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime, timedelta

from heliograph.outputs.sparkplug_history import MOST_SPANS, Missing, Span

SEED = int(os.environ.get("HELIOGRAPH_SEED", time.time_ns() % 1_000_000))
START = datetime(2026, 3, 14, 4, tzinfo=UTC)
UNSURE = timedelta(seconds=60)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def test_an_outage_is_one_span_of_each_meter_and_the_oldest_comes_first() -> None:
    missing = Missing(["roof", "shed"], timedelta(days=7))
    assert missing.oldest(at(31), 60 * 31) is None and missing.next(["roof"]) is None
    missing.lost(60 * 10)
    missing.lost(60 * 12)  # it was tried in vain meanwhile
    assert missing.oldest(at(12), 60 * 12) == at(10)
    missing.heard_again(at(30), 60 * 30)
    assert missing.next(["shed"]) == ("shed", Span(at(10), at(30)))
    missing.sent("roof", at(20), 60 * 31)
    assert missing.next(["roof", "shed"]) == ("shed", Span(at(10), at(30)))
    missing.sent("shed", at(30), 60 * 31)
    assert missing.next(["shed"]) is None
    missing.sent("roof", at(30), 60 * 31)
    assert missing.oldest(at(31), 60 * 31) is None


def test_what_was_replayed_shortly_before_a_loss_is_missing_again() -> None:
    missing = Missing(["roof"], timedelta(days=7))
    missing.lost(60 * 0)
    missing.heard_again(at(60), 60 * 60)
    missing.sent("roof", at(10), 60 * 61)
    missing.sent("roof", at(20), 60 * 63)
    missing.lost(60 * 62)  # what was said since then may not have arrived
    missing.heard_again(at(70), 60 * 70)
    found = missing.next(["roof"])
    assert found is not None and at(10) < found[1].since < at(10.1), "and not what went before"
    assert found[1].until == at(60)
    missing.sent("roof", at(60), 60 * 70)
    assert missing.next(["roof"]) == ("roof", Span(at(62), at(70))), "between the two it was told live"


def test_nothing_older_than_it_should_be_is_replayed() -> None:
    missing = Missing(["roof"], timedelta(days=7))
    missing.lost(-30 * 86400)
    missing.heard_again(START, 0)
    assert missing.next(["roof"]) == ("roof", Span(START - timedelta(days=7), START))
    none = Missing(["roof"], timedelta(0))
    none.lost(60 * 0)
    none.heard_again(at(5), 60 * 5)
    assert none.next(["roof"]) is None and none.oldest(at(5), 300) is None


def test_a_link_that_comes_and_goes_costs_no_memory_and_loses_nothing() -> None:
    missing = Missing(["roof"], timedelta(days=7))
    for number in range(500):
        missing.lost(60 * 10 * number)
        missing.heard_again(at(10 * number + 5), 60 * (10 * number + 5))
    spans = []
    while (found := missing.next(["roof"])) is not None:
        spans.append(found[1])
        missing.sent("roof", found[1].until, 60 * 6000)
    assert len(spans) <= MOST_SPANS
    for number in range(500):
        assert any(span.since <= at(10 * number) and at(10 * number + 5) <= span.until for span in spans)


def replayed(rng: random.Random) -> tuple[set[int], set[int]]:
    """Minutes that were measured, and those that arrived, of a day with a bad link; the oracle knows what arrives."""
    missing, arrived = Missing(["roof"], timedelta(days=7)), set[int]()
    up, frozen = False, None  # since which minute nothing arrives although it looks well
    missing.lost(60 * 0)
    minutes = 600

    def say(minute: int, now: int) -> None:
        if frozen is None or now < frozen:
            arrived.add(minute)

    for now in range(minutes):
        if up:
            say(now, now)
            if frozen is None and rng.random() < 0.03:
                frozen = now + 1
            elif frozen is not None and now >= frozen + rng.randrange(3):
                up, frozen = False, None
                missing.lost(60 * (now - 4))
        elif rng.random() < 0.1:
            up = True
            missing.heard_again(at(now), 60 * now)
        if up and now % 2 == 0 and (found := missing.next(["roof"])) is not None:
            _, span = found
            rows = [one for one in range(now + 1) if span.since <= at(one) <= span.until][:5]
            for one in rows:
                say(one, now)
            missing.sent("roof", at(rows[-1]) if rows else span.until, 60 * now)
    if frozen is not None:
        missing.lost(60 * (minutes - 4))
        up, frozen = False, None
    if not up:
        missing.heard_again(at(minutes), 60 * minutes)
    while (found := missing.next(["roof"])) is not None:
        for one in range(minutes):
            if found[1].since <= at(one) <= found[1].until:
                say(one, minutes)
        missing.sent("roof", found[1].until, 60 * minutes)
    return set(range(minutes)), arrived


def test_whatever_the_link_does_every_minute_arrives_in_the_end() -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    rng = random.Random(SEED)
    for _ in range(40):
        measured, arrived = replayed(rng)
        assert measured - arrived == set()

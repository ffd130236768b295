"""The session as pure code, followed by the strict host of sparkplug_checker.py; and that it sees planted faults."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from heliograph.outputs import sparkplug_session
from heliograph.outputs.sparkplug_payload import Metric, Quality, Type, payload
from heliograph.outputs.sparkplug_session import Named, Session
from tests.outputs.sparkplug_checker import Checker, decoded

SEED = int(os.environ.get("HELIOGRAPH_SEED", time.time_ns() % 1_000_000))
NOW = 1_773_000_000_000
GOOD = Quality.GOOD
OWN = (Named("alarms", Type.INT32), Named("software", Type.STRING))
METER = (
    Named("active_power", Type.DOUBLE, "W", lambda old, new: abs(float(new or 0) - float(old or 0)) >= 10),
    Named("energy_export", Type.INT64, "Wh"),
    Named("state", Type.STRING),
)


def a_session(every: int = 0) -> Session:
    meter = [replace(one, every=every) for one in METER]
    return Session("solar", "sg-0042", OWN, {"roof": meter, "shed": meter})


def heard(session: Session, now: int, checker: Checker) -> list[str]:
    """All that is to be said now, told to the checker; the kinds of it."""
    first = len(checker.kinds)
    while (message := session.next(now)) is not None:
        checker.hear(message.topic, message.payload, message.qos, message.retain)
    return checker.kinds[first:]


def begun(session: Session, checker: Checker, bd_seq: int = 7) -> None:
    session.note_own({"alarms": 0, "software": "1"}, NOW)
    session.begin(bd_seq)
    heard(session, NOW, checker)


def test_births_come_first_data_has_aliases_only_and_the_node_is_there_before_its_devices() -> None:
    session, checker = a_session(), Checker()
    session.note("roof", {"active_power": (1500.0, GOOD), "energy_export": (12_345, GOOD)}, NOW)
    session.answers("roof", NOW)
    assert heard(session, NOW, checker) == [], "nothing is said before there is a connection"
    session.begin(7)
    assert heard(session, NOW, checker) == ["NBIRTH", "DBIRTH roof"], "shed was never heard of"
    session.note("roof", {"active_power": (1600.0, GOOD), "energy_export": (12_346, GOOD)}, NOW + 10_000)
    session.note_own({"alarms": 2}, NOW + 10_000)
    assert heard(session, NOW + 10_000, checker) == ["NDATA", "DDATA roof"]
    assert checker.problems == []
    assert [one.value for one in checker.told["roof", "active_power"]] == [1500.0, 1600.0]
    assert [one.value for one in checker.told["", "alarms"]] == [None, 2]
    assert checker.told["roof", "state"][0].value is None, "what was never read is null"
    assert checker.told["roof", "state"][0].quality == 0


def test_only_what_changed_enough_is_said_and_a_quality_that_changes_at_once() -> None:
    session, checker = a_session(every=30_000), Checker()
    session.note("roof", {"active_power": (1500.0, GOOD), "state": ("ok", GOOD)}, NOW)
    session.answers("roof", NOW)
    begun(session, checker)

    def after(seconds: int, power: float | None, quality: Quality = GOOD) -> list[str]:
        session.note("roof", {"active_power": (power, quality), "state": ("ok", GOOD)}, NOW + seconds * 1000)
        return heard(session, NOW + seconds * 1000, checker)

    assert after(40, 1509.0) == [], "within the dead band"
    assert after(50, 1511.0) == ["DDATA roof"], "out of it"
    assert after(60, 1600.0) == [], "sooner than every 30 s"
    assert after(90, 1600.0) == ["DDATA roof"], "when its time has come, it is said"
    assert after(91, 1600.0, Quality.STALE) == ["DDATA roof"]
    assert after(92, None) == ["DDATA roof"], "a value that went is said at once"
    assert after(93, None) == []
    assert after(94, 1600.0) == ["DDATA roof"]
    told = checker.told["roof", "active_power"]
    assert [(one.value, one.quality) for one in told] == [
        (1500.0, 192), (1511.0, None), (1600.0, None), (1600.0, 500), (None, 0), (1600.0, 192),
    ]  # fmt: skip
    assert checker.problems == []


def test_a_device_that_fails_dies_and_is_born_again_with_what_it_shows_then() -> None:
    session, checker = a_session(), Checker()
    session.note("roof", {"energy_export": (1, GOOD)}, NOW)
    session.answers("roof", NOW)
    begun(session, checker)
    session.fails("roof", NOW + 1)
    session.note("roof", {"state": ("stale", GOOD)}, NOW + 1)
    assert heard(session, NOW + 1, checker) == ["DDEATH roof"], "and no data of the dead"
    session.rebirth()
    assert heard(session, NOW + 2, checker) == ["NBIRTH"]
    session.note("roof", {"energy_export": (9, GOOD)}, NOW + 3)
    session.answers("roof", NOW + 3)
    assert heard(session, NOW + 3, checker) == ["DBIRTH roof"]
    assert [one.value for one in checker.told["roof", "energy_export"]] == [1, 9]
    assert checker.problems == []


def test_history_waits_for_births_and_keeps_its_moments() -> None:
    session, checker = a_session(), Checker()
    rows = [(NOW - 120_000, {"energy_export": 1, "gone": 3}), (NOW - 60_000, {"energy_export": 2})]
    assert session.history("roof", rows, NOW) is None, "no connection"
    session.begin(7)
    session.answers("roof", NOW)
    assert session.history("roof", rows, NOW) is None, "births come first"
    heard(session, NOW, checker)
    message = session.history("roof", rows, NOW)
    assert message is not None and session.history("shed", rows, NOW) is None
    checker.hear(message.topic, message.payload, message.qos, message.retain)
    assert [(one.at, one.value, one.historical) for one in checker.told["roof", "energy_export"][1:]] == [
        (NOW - 120_000, 1, True),
        (NOW - 60_000, 2, True),
    ]
    assert checker.problems == []


def test_the_death_has_the_number_of_the_birth() -> None:
    session, checker = a_session(), Checker()
    for bd_seq in (254, 255, 0):
        death = session.death(bd_seq, NOW)
        session.begin(bd_seq)
        heard(session, NOW, checker)
        session.rebirth()
        heard(session, NOW, checker)
        session.end()
        session.note("roof", {"energy_export": (1, GOOD)}, NOW)
        assert heard(session, NOW, checker) == []
        assert checker.online
        checker.hear(death.topic, death.payload, death.qos, death.retain)
        assert not checker.online
    assert checker.bd_seqs == [254, 254, 255, 255, 0, 0] and checker.problems == []


def wander(rng: random.Random, checker: Checker, steps: int) -> None:
    """A life in which anything may happen at any moment, with a host that sees every message."""
    session, now, bd_seq, up = a_session(every=rng.choice([0, 5_000])), NOW, -1, False
    for _ in range(steps):
        now += rng.randrange(1, 5_000)
        match rng.randrange(12):
            case 0 if rng.random() < 0.03:
                if up:
                    death = session.death(bd_seq, now)
                    checker.hear(death.topic, death.payload, death.qos, death.retain)
                    session.end()
                up = False
            case 1 | 2:
                if not up:
                    bd_seq, up = (bd_seq + 1) % 256, True
                    session.begin(bd_seq)
            case 3 if rng.random() < 0.03:
                session.rebirth()
            case 4:
                session.fails(rng.choice(["roof", "shed"]), now)
            case 5:
                session.answers(rng.choice(["roof", "shed"]), now)
            case 6:
                session.note_own({"alarms": rng.randrange(3), "software": "1"}, now)
            case 7 if checker.births:
                message = session.history("roof", [(checker.births[-1] - 1, {"energy_export": 5})], now)
                if message is not None:
                    checker.hear(message.topic, message.payload, message.qos, message.retain)
            case _:
                device, power = rng.choice(["roof", "shed"]), rng.choice([None, rng.uniform(0, 100)])
                quality = rng.choice(list(Quality))
                session.note(device, {"active_power": (power, quality), "energy_export": (now, GOOD)}, now)
        for _ in range(rng.choice([0, 1, 9])):  # the link is slow at times
            if (said := session.next(now)) is None:
                break
            checker.hear(said.topic, said.payload, said.qos, said.retain)


def test_whatever_happens_a_strict_host_finds_nothing_to_object_to() -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    checker = Checker()
    wander(random.Random(SEED), checker, 6000)
    assert checker.problems == []
    assert {"NBIRTH", "DBIRTH roof", "DDEATH shed", "NDATA", "DDATA roof", "NDEATH"} <= set(checker.kinds)


# The host itself: planted faults


def seq_goes_on(patch: pytest.MonkeyPatch) -> None:
    birth = Session._birth

    def planted(self: Session, bd_seq: int, now: int) -> Any:
        before, message = self._seq, birth(self, bd_seq, now)
        self._seq = before + 1
        return message

    patch.setattr(Session, "_birth", planted)


def seq_does_not_wrap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sparkplug_session, "NUMBERS", 257)


def bd_seq_is_one_off(patch: pytest.MonkeyPatch) -> None:
    death = Session.death
    patch.setattr(Session, "death", lambda self, bd_seq, now: death(self, (bd_seq + 1) % 256, now))


def history_looks_live(patch: pytest.MonkeyPatch) -> None:
    def planted(metrics: list[Metric], at: int, seq: int | None = None) -> bytes:
        return payload([changed(one, historical=False) for one in metrics], at, seq)

    patch.setattr(sparkplug_session, "payload", planted)


def an_alias_is_used_twice(patch: pytest.MonkeyPatch) -> None:
    def planted(metrics: list[Metric], at: int, seq: int | None = None) -> bytes:
        return payload([changed(one, alias=1) if one.alias == 5 else one for one in metrics], at, seq)

    patch.setattr(sparkplug_session, "payload", planted)


def data_has_another_type(patch: pytest.MonkeyPatch) -> None:
    def planted(metrics: list[Metric], at: int, seq: int | None = None) -> bytes:
        wrong = [one if one.typed or one.value is None else changed(one, type=Type.STRING) for one in metrics]
        return payload(wrong, at, seq)

    patch.setattr(sparkplug_session, "payload", planted)


def the_dead_go_on_talking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "end", lambda _self: None)


def changed(metric: Metric, **what: Any) -> Metric:
    names = ("type", "value", "at", "name", "alias", "typed", "historical", "properties")
    return Metric(**{name: what.get(name, getattr(metric, name)) for name in names})


FAULTS: list[tuple[Callable[[pytest.MonkeyPatch], None], str]] = [
    (seq_goes_on, "sequence number"),
    (seq_does_not_wrap, "sequence number"),
    (bd_seq_is_one_off, "but its birth had"),
    (history_looks_live, "goes back in time"),
    (an_alias_is_used_twice, "has the alias of"),
    (data_has_another_type, "but written as string_value"),
    (the_dead_go_on_talking, "after the death"),
]


@pytest.mark.parametrize(("fault", "seen"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_the_host_sees_a_planted_fault(fault: Callable[[pytest.MonkeyPatch], None], seen: str) -> None:
    checker = Checker()
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        wander(random.Random(1), checker, 6000)
    assert any(seen in problem for problem in checker.problems), checker.problems[:3]


def test_the_decoder_is_not_ours() -> None:
    """What it makes of our bytes is what protobuf's own text says."""
    session = a_session()
    session.begin(3)
    message = session.next(NOW)
    assert message is not None
    assert 'name: "bdSeq"' in str(decoded(message.payload)) and "heliograph" not in type(decoded(b"")).__module__

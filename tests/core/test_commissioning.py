"""The judgements about a new site, as tables: from what was seen to what is said."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from heliograph import library
from heliograph.core import commissioning as judge
from heliograph.core.commissioning import Check, ClockSeen, Look, Sun
from heliograph.core.daylight import Position
from heliograph.core.delivery import Registered, Roll, Verdict
from heliograph.core.site import Meter, Report
from tests.fakes import a_meter

SINGAPORE, HERE = ZoneInfo("Asia/Singapore"), Position(1.35, 103.82)
NOON = datetime(2026, 3, 14, 4, 30, tzinfo=UTC)
DAY = Sun(True, "it is noon", 900.0, "08:00 and 18:00 local time")
NIGHT = Sun(False, "it is night", 0.0, "08:00 and 18:00 local time")


def seen(kw: tuple[float, ...] = (-10, -10, -10), factors: tuple[float, ...] = (0.99, 0.99, 0.99), **more: Any) -> Look:
    """A three-phase meter with these powers of its phases, in kW, and power factors."""
    values: dict[str, float | int | str] = {"energy_export": 41_230_700, "energy_import": 12_000, "frequency": 50.0}
    for phase, power, factor in zip(("l1", "l2", "l3"), kw, factors, strict=False):
        values |= {f"voltage_{phase}n": 230.0, f"current_{phase}": abs(power) * 1000 / 230 / factor}
        values |= {f"active_power_{phase}": power * 1000.0, f"power_factor_{phase}": math.copysign(factor, power)}
    values["active_power"] = sum(kw) * 1000.0
    return Look(NOON, values | more, serial="23451234")


def later(look: Look, seconds: float = 20, **wh: int) -> Look:
    rose = {name: int(look.values[name]) + more for name, more in wh.items()}
    return replace(look, at=look.at + timedelta(seconds=seconds), values={**look.values, **rose})


def told(check: Check | None) -> tuple[str, str]:
    assert check is not None
    assert check.says.endswith((".", "?")) and (check.result == "green" or check.todo)
    return check.result, check.cause


METER = a_meter()

# powers of the phases in kW, which counter rose, and what the transformers and the direction are then
TURNED = [
    ((-10, -10, -10), "energy_export", ("green", ""), ("green", "")),
    ((-10, 10, -10), "energy_export", ("wrong", "ct-turned"), ("unknown", "transformers")),
    ((-10, 10, 10), "energy_import", ("wrong", "ct-turned"), ("unknown", "transformers")),
    ((10, 10, 10), "energy_import", ("green", ""), ("wrong", "all-turned")),
    # A single-phase inverter on L2 beside small loads of electronics: no direction worth telling.
    ((0.1, -9, -0.1), "energy_export", ("green", ""), ("green", "")),
    # Fed the other way round, and the meter counts sunlight as import: the site has to say so.
    ((10, 10, 9), "energy_import", ("green", ""), ("wrong", "all-turned")),
]


@pytest.mark.parametrize(("kw", "rises", "transformers", "direction"), TURNED)
def test_turned_transformers_are_told_by_signs_and_by_the_counter_that_rises(
    kw: tuple[float, ...], rises: str, transformers: tuple[str, str], direction: tuple[str, str]
) -> None:
    looks = [look := seen(kw), later(look, **{rises: 120})]
    assert told(judge.transformers(METER, looks, DAY)) == transformers
    assert told(judge.direction(METER, looks, DAY)) == direction


@pytest.mark.parametrize(
    ("kw", "rises", "named"),
    [((-10, 10, -10), "energy_export", "L2 is"), ((10, -10, 10), "energy_import", "L1 and L3 are")],
)
def test_the_turned_ones_are_those_that_keep_the_production_counter_from_rising(
    kw: tuple[float, ...], rises: str, named: str
) -> None:
    looks = [look := seen(kw), later(look, **{rises: 120})]
    check = judge.transformers(METER, looks, DAY)
    assert check is not None and named in check.says


def test_where_production_is_import_the_same_wiring_is_in_order() -> None:
    meter = replace(METER, production="energy_import")
    looks = [look := seen((10, 10, 10)), later(look, energy_import=120)]
    assert told(judge.direction(meter, looks, DAY)) == ("green", "")
    looks = [look := seen((-10, -10, -10)), later(look, energy_export=120)]
    assert told(judge.direction(meter, looks, DAY)) == ("wrong", "all-turned")


@pytest.mark.parametrize("sun", [NIGHT, Sun(None, "nobody knows")])
def test_without_sun_nothing_is_said_about_the_direction(sun: Sun) -> None:
    looks = [look := seen((10, 10, 10)), later(look, energy_import=120)]
    for check in (judge.transformers(METER, looks, sun), judge.direction(METER, looks, sun)):
        assert told(check)[0] == "unknown"
    assert "between 08:00 and 18:00" in judge.direction(METER, looks, NIGHT).todo


@pytest.mark.parametrize(
    ("seconds", "step", "expected"),
    [
        (20, None, ("wrong", "stands-still")),  # 30 kW move 10 Wh in 1.2 s
        (1, None, ("unknown", "too-short")),
        (20, 1000, ("unknown", "too-short")),  # a counter of whole kWh needs two minutes
    ],
)
def test_a_counter_that_stands_still_is_wrong_only_where_it_should_have_moved(
    seconds: float, step: int | None, expected: tuple[str, str]
) -> None:
    meter = METER if step is None else a_coarse_meter()
    name = meter.production
    look = replace(seen(), values={**seen().values, name: 41_230_000})
    assert told(judge.direction(meter, [look, later(look, seconds)], DAY)) == expected


def test_a_device_that_tells_no_power_is_judged_by_its_counter() -> None:
    look = Look(NOON, {"energy_export": 5_000_000})
    assert told(judge.direction(METER, [look, later(look, energy_export=120)], DAY)) == ("green", "")
    assert told(judge.direction(METER, [look, later(look)], DAY)) == ("unknown", "too-short")
    assert told(judge.plausible(METER, [look, later(look, energy_export=120)], DAY, None))[0] == "unknown"


def a_coarse_meter() -> Meter:
    """Solis counts whole kWh."""
    loaded = library.load("solis-string", local=None)
    assert loaded.map.production is not None
    return replace(METER, map=loaded.map, production=loaded.map.production)


@pytest.mark.parametrize(
    ("factors", "kw", "expected"),
    [
        ((0.99, 0.99, 0.99), (-10, -10, -10), ("green", "")),
        ((0.92, 0.91, 0.92), (-10, -10, -10), ("green", "")),  # an inverter that feeds in reactive power
        ((0.62, 0.37, 0.99), (6, 4, -10), ("wrong", "ct-exchanged")),
        ((0.62, 0.62, 0.62), (6, 6, 6), ("wrong", "ct-shifted")),
        ((0.99, 0.5, 0.99), (-10, -5, -10), ("attention", "power-factor")),
        ((0.3, 0.3, 0.3), (-0.2, -0.2, -0.2), ("unknown", "no-power")),  # at dawn capacitors are all there is
    ],
)
def test_a_current_on_the_phase_of_another_voltage_is_told_by_its_power_factor(
    factors: tuple[float, ...], kw: tuple[float, ...], expected: tuple[str, str]
) -> None:
    looks = [look := seen(kw, factors), later(look, energy_export=120)]
    assert told(judge.transformers(METER, looks, DAY)) == expected


def test_exchanged_transformers_are_named() -> None:
    check = judge.transformers(METER, [seen((6, 4, -10), (0.62, 0.37, 0.99))], DAY)
    assert check is not None and "L1 and L2 are exchanged" in check.says


@pytest.mark.parametrize(
    ("kw", "clear", "told_kw", "expected"),
    [
        (-10.0, 900.0, None, ("green", "")),
        (-22.0, 900.0, None, ("wrong", "above-rated")),
        (-0.25, 900.0, None, ("attention", "ct-ratio")),  # 0.75 of 45 kW
        (-2.0, 900.0, None, ("unknown", "weak-light")),
        (-2.0, 100.0, None, ("unknown", "weak-light")),  # the sun is low
        (-2.0, None, None, ("unknown", "weak-light")),
        (-4.0, None, None, ("green", "")),
        (-2.0, 900.0, 6.1, ("green", "")),
        (-0.25, 900.0, 30.0, ("wrong", "ct-ratio")),
        (-2.0, 900.0, 19.0, ("wrong", "ct-ratio")),
    ],
)
def test_the_size_of_the_power_is_held_against_plant_sun_and_inverters(
    kw: float, clear: float | None, told_kw: float | None, expected: tuple[str, str]
) -> None:
    sun = replace(DAY, clear=clear)
    assert told(judge.plausible(METER, [seen((kw, kw, kw))], sun, told_kw)) == expected


@pytest.mark.parametrize(
    ("measured", "inverters", "words"),
    [
        (-0.25, 30.0, "40 times too little: as if a ratio of 200/5 had been forgotten"),
        (-10.0, 0.75, "40 times too much: as if a ratio of 200/5 had been set twice"),
        (-10.0, 100.0, None),
    ],
)
def test_a_forgotten_ratio_is_named_by_what_the_inverters_show(
    measured: float, inverters: float, words: str | None
) -> None:
    says = judge.plausible(METER, [seen((measured,) * 3)], DAY, inverters).says
    assert (words in says) if words else ("as if" not in says)


def test_a_counter_that_rises_by_another_factor_than_the_power_says_is_told() -> None:
    look = seen()  # 30 kW: 167 Wh in 20 s
    assert told(judge.plausible(METER, [look, later(look, energy_export=170)], DAY, None)) == ("green", "")
    assert told(judge.plausible(METER, [look, later(look, energy_export=6700)], DAY, None)) == (
        "wrong",
        "counter-factor",
    )


@pytest.mark.parametrize(
    ("at", "position", "share", "answer", "shines", "odd"),
    [
        (12, HERE, 0.5, None, True, False),
        (12, HERE, 0.0, "no", False, False),
        (23, HERE, 0.0, None, False, False),
        (23, HERE, 0.0, "yes", False, False),
        (23, HERE, 0.5, None, None, True),  # half the plant's power at night: the clock or the position is wrong
        (12, None, 0.5, None, True, False),
        (12, None, 0.05, None, True, False),
        (12, None, 0.001, None, None, False),
        (12, None, 0.001, "yes", True, False),
        (12, None, 0.5, "no", False, False),
        (23, None, 0.001, None, False, False),
        (23, None, 0.5, None, True, True),
        (1, None, 0.001, "yes", True, True),
    ],
)
def test_whether_the_sun_shines(
    at: int, position: Position | None, share: float, answer: str | None, shines: bool | None, odd: bool
) -> None:
    now = datetime(2026, 3, 14, at, 30, tzinfo=SINGAPORE).astimezone(UTC)
    found = judge.sun(now, SINGAPORE, position, share, answer)
    assert (found.shines, found.odd) == (shines, odd)


def test_at_night_it_is_said_when_to_come_back() -> None:
    night = datetime(2026, 3, 14, 23, tzinfo=SINGAPORE).astimezone(UTC)
    assert judge.sun(night, SINGAPORE, HERE, 0.0, None).again == "08:10 and 18:20 local time"
    polar = judge.sun(datetime(2026, 12, 21, 12, tzinfo=UTC), ZoneInfo("UTC"), Position(78.2, 15.6), 0.0, None)
    assert polar.shines is False and polar.again == ""


@pytest.mark.parametrize(
    ("trusted", "witness", "expected"),
    [
        (True, None, ("green", "")),
        (True, "", ("green", "")),
        (False, "", ("attention", "clock-alone")),
        (False, None, ("wrong", "clock-untrusted")),
        (False, "3 h behind redex's", ("wrong", "clock-wrong")),
        (True, "3 h behind redex's", ("wrong", "clock-wrong")),
    ],
)
def test_the_clock(trusted: bool, witness: str | None, expected: tuple[str, str]) -> None:
    first, zone = judge.clock(ClockSeen(NOON, trusted, witness), SINGAPORE, HERE, None)
    assert told(first) == expected and told(zone) == ("green", "")


@pytest.mark.parametrize(
    ("zone", "position", "answer", "expected"),
    [
        ("Asia/Singapore", HERE, None, ("green", "")),
        ("Asia/Singapore", None, "yes", ("green", "")),
        ("Asia/Singapore", None, "no", ("wrong", "zone")),
        ("Asia/Singapore", None, None, ("unknown", "not-confirmed")),
        ("Europe/Berlin", HERE, None, ("wrong", "zone")),
        ("Asia/Urumqi", Position(43.8, 87.6), None, ("green", "")),
        ("Asia/Shanghai", Position(39.5, 76.0), None, ("green", "")),  # Kashgar keeps Beijing's time
        ("Pacific/Kiritimati", Position(1.9, -157.4), None, ("green", "")),  # over the date line
        ("Europe/Madrid", Position(43.4, -8.4), None, ("green", "")),
    ],
)
def test_the_zone(zone: str, position: Position | None, answer: str | None, expected: tuple[str, str]) -> None:
    found = list(judge.clock(ClockSeen(NOON, True, None), ZoneInfo(zone), position, answer))[1]
    assert told(found) == expected


@pytest.mark.parametrize(
    ("pinned", "shown", "stranger", "expected"),
    [
        ("23451234", "23451234", "", ("green", "")),
        ("023451234", "23451234", "", ("green", "")),
        (None, "23451234", "", ("attention", "serial-not-pinned")),
        (None, None, "", ("green", "")),
        ("1", "23451234", "", ("wrong", "wrong-device")),
        (None, "23451234", "roof is not an eastron-sdm630", ("wrong", "wrong-device")),
    ],
)
def test_identity(pinned: str | None, shown: str | None, stranger: str, expected: tuple[str, str]) -> None:
    look = replace(seen(), serial=shown, stranger=stranger)
    assert told(judge.identity(replace(METER, serial=pinned), look)) == expected


def test_a_serial_number_to_pin_is_proposed_as_a_line_to_paste() -> None:
    assert 'serial = "23451234"' in judge.identity(METER, seen()).todo


def test_a_ratio_that_only_the_site_knows_must_be_given() -> None:
    map = replace(METER.map, from_site=("ct_ratio",))
    assert told(judge.counters(replace(METER, map=map), seen())) == ("wrong", "factor-missing")
    assert told(judge.counters(replace(METER, map=map, factors=(("ct_ratio", 40.0),)), seen())) == ("green", "")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ("green", "")),
        ({"voltage_l2n": 3.0}, ("wrong", "phase-missing")),
        ({"voltage_l1l2": 398.4, "voltage_l2l3": 398.4, "voltage_l3l1": 398.4}, ("green", "")),
        ({"voltage_l1l2": 0.4, "voltage_l2l3": 398.4, "voltage_l3l1": 398.4}, ("wrong", "voltages")),
        ({"current_l2": 5.0}, ("attention", "unbalanced")),
    ],
)
def test_phases(values: dict[str, Any], expected: tuple[str, str]) -> None:
    assert told(judge.phases(METER, seen(**values))) == expected


def test_a_device_without_phases_is_not_asked_for_them() -> None:
    look = Look(NOON, {"energy_total": 5_000_000, "active_power": 30_000.0})
    assert judge.phases(METER, look) is None
    assert judge.transformers(METER, [look], DAY) is None


REPORTING = replace(METER, reports=(Report("redex", "STR1"),))


@pytest.mark.parametrize(
    ("roll", "until", "expected"),
    [
        (Roll((Registered("STR1", True, 50.0),)), None, {}),
        (Roll((Registered("STR1", True),)), 300, {}),
        (Roll((Registered("STR1", True),)), 20, {"token": "token-ends"}),
        (Roll((Registered("STR1", True, 60.0),)), None, {"registered": "capacity"}),
        (Roll((Registered("STR1", False, text="Register it."),)), None, {"registered": "not-registered"}),
        (Roll((Registered("STR1", True, text="Ask why.", barred=True),)), None, {"registered": "barred"}),
        (Roll((Registered("STR1"),)), None, {"registered": "registered-untold"}),
        (
            Roll(trouble=Verdict("due", "refused", "no way", "Look.")),
            None,
            {"platform": "platform-away", "token": "platform-away"},
        ),
        (
            Roll(trouble=Verdict("due", "certificate", "not theirs", "Look.")),
            None,
            {"platform": "certificate", "token": "platform-away"},
        ),
        (Roll(trouble=Verdict("due", "R401", "no", token=True)), None, {"token": "token"}),
        (Roll(trouble=Verdict("due", "shape", "200")), None, {"platform": "platform-away", "token": "platform-away"}),
        (Roll(trouble=Verdict("due", "config", "hidden", "Look.", token=True)), None, {"token": "token-hidden"}),
    ],
)
def test_platforms(roll: Roll, until: int | None, expected: dict[str, str]) -> None:
    ends = None if until is None else NOON + timedelta(days=until)
    found = list(judge.platform("redex", [REPORTING], roll, ends, NOON))
    assert {one.step: one.cause for one in found if one.result != "green"} == expected
    for one in found:
        told(one)


@pytest.mark.parametrize(
    ("trouble", "free", "exists", "expected"),
    [
        ("", 5_000_000_000, True, ("green", "")),
        ("", None, True, ("green", "")),
        ("", 100_000_000, True, ("attention", "space")),
        ("it cannot be written (Read-only file system)", None, True, ("wrong", "storage")),
        ("", None, False, ("attention", "no-folder")),
    ],
)
def test_storage(trouble: str, free: int | None, exists: bool, expected: tuple[str, str]) -> None:
    assert told(judge.storage("/var/lib/heliograph", trouble, free, exists=exists)) == expected

"""What else may happen while an edit of the counter waits: none of it books energy that nobody has produced.

Poll, store, closing and delivery are the real ones; the meter is simulated, its truth is the oracle.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from heliograph.core.errors import UsageError
from heliograph.core.plan import Learned
from heliograph.core.registers import Function, MeterMap, Register
from heliograph.core.site import Meter
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.work import amend
from heliograph.work import change as changes
from heliograph.work import poll as polling
from heliograph.work.amend import carry_out
from tests.fakes import RULES, SINGAPORE
from tests.work.test_change import EDITS, Roof, confirm, edited, original
from tests.work.test_change import quick as quick  # the fixture

MARK = "read in another way than before"


def meter_at(site: Roof, wh: int, map: MeterMap | None = None, serial: str | None = None) -> SimulatedMeter:
    """The device from now on: its counter shows `wh`."""
    device = SimulatedMeter(
        map or original().map,
        clock=site.clock.now,
        unit=1,
        serial=serial,
        start_export_wh=wh,
        start_import_wh=1,
        sky=Sky(zone=SINGAPORE, seed=1),
        seed=1,
        settings={"ct_ratio": 40},
        started=site.clock.now(),
    )
    site.devices[1] = device
    return device


def as_advised(site: Roof) -> dict[str, Any]:
    """Somebody copies the command of the alarm."""
    (alarm,) = site.alarms()
    found = re.search(r"--old-index (\S+) --new-index (\S+) (?:--new-serial NUMBER )?--kind reset --at (\S+)", alarm)
    assert found is not None, alarm
    old, new = (int(Decimal(one) * 1000) for one in found.groups()[:2])
    wish = {"at": found[3], "kind": "reset", "old_wh": old, "new_wh": new, "new_serial": None, "note": ""}
    done = carry_out(site.meter, "seam", {**wish, "dry": False}, site.store, site.clock, RULES)
    site.line.forget(site.meter)
    return done


@pytest.mark.parametrize("looks", [True, False])
def test_what_was_read_in_a_mistaken_way_is_no_new_round_of_a_counter_after_it_was_put_back(
    quick: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """In Wh it read 0, 6, 12; put back, the counter is a kWh lower than before, for it lost what it had not saved."""
    if not looks:
        monkeypatch.setattr(amend, "_foreign", lambda _reading: False)
        monkeypatch.setattr("heliograph.core.readings.Reading.tentative", False)
    meter = edited(original(), rollover=Decimal(395), times=())
    site = Roof(quick, meter)
    site.until(34)
    site.edit(edited(meter, unit="Wh", rollover=Decimal(395_000)))
    site.until(34.5)
    site.edit(meter)
    good = site.store.readings.last_good("roof")
    assert good is not None and good.index_wh is not None
    meter_at(site, good.index_wh - 1000, edited(original(), times=()).map)
    site.until(36)
    assert [seam.kind for seam in site.store.seams.all("roof")] == ([] if looks else ["rollover"])
    marked = [one for one in site.store.readings.back("roof") if MARK in one.doubt]
    assert marked and any(one.good for one in marked) != looks
    site.store.close()


def test_after_an_edit_was_put_back_what_was_read_by_it_is_neither_proposed_nor_settled(quick: Path) -> None:
    """The counter of the meter is reset while a mistaken scale waits."""
    site = Roof(quick)
    site.until(34)
    site.edit(EDITS["one percent"](original()))
    site.until(36)
    before, at = site.devices[1], site.clock.now()
    fresh = meter_at(site, 0)
    site.until(37)
    site.edit(original())
    site.until(38)
    done = as_advised(site)
    assert done["readings"] > 3
    assert not any(one.good for one in site.store.readings.back("roof") if MARK in one.doubt)
    site.until(51)
    assert not site.alarms() and len(site.uplink.stored) == 2
    first, last = site.store.days.first_border("roof"), site.store.days.last_border("roof")
    assert first is not None and last is not None
    began, ended = (site.store.readings.reading(border.before).moment.at for border in (first, last))
    truly = before.counted_wh(at) - before.counted_wh(began) + fresh.counted_wh(ended)
    assert 0 < site.booked() < truly  # what was produced meanwhile is for a person to tell
    site.store.close()


def telling() -> Meter:
    """The same meter, its ratio read from the device; `a_ratio` sets it there."""
    meter = original()
    ratio = Register(quantity="ct_ratio", type="u16", address=0x0F00)
    return replace(meter, map=replace(meter.map, registers=(*meter.map.registers, ratio)), factors=())


def a_ratio(monkeypatch: pytest.MonkeyPatch, device: SimulatedMeter, ratio: int = 41) -> None:
    """Somebody sets it at the keys of the meter. The energy is that of x 40 all the same."""
    words = device.words

    def answer(function: Function, address: int, count: int, at: datetime | None = None) -> tuple[int, ...] | Refusal:
        return (ratio,) if (address, count) == (0x0F00, 1) else words(function, address, count, at)

    monkeypatch.setattr(device, "words", answer)


def in_the_new_way(site: Roof) -> list[datetime]:
    return [one.moment.at for one in site.store.readings.back("roof") if one.good and MARK in one.doubt]


def test_a_ratio_that_somebody_sets_while_an_edit_waits_is_not_confirmed_with_it(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Roof(quick, telling())
    site.until(34)
    site.edit(EDITS["one percent"](site.meter))
    site.until(40)
    at = site.clock.now()
    a_ratio(monkeypatch, site.devices[1])
    site.until(43)
    (alarm,) = site.alarms()
    assert "And that is not all: the device multiplies by ct_ratio 41 instead of 40" in alarm
    site.edit(site.meter)
    site.until(45)
    done = confirm(site)
    assert "what was read later is not confirmed by it: since 2026-03-15 08:" in done["between"]
    assert in_the_new_way(site)[0] < at and len(in_the_new_way(site)) == done["readings"] > 30
    site.until(51)
    (alarm,) = site.alarms()
    assert "multiplies by ct_ratio 41 instead of 40" in alarm and len(site.uplink.stored) == 1
    assert as_advised(site)["readings"] > 5
    site.until(75)
    assert not site.alarms() and len(site.uplink.stored) == 3
    site.store.close()


@pytest.mark.parametrize("hours", [0, 3])
def test_a_ratio_that_was_set_when_the_map_was_edited_cannot_be_confirmed_with_it(
    quick: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    meter = telling()
    site = Roof(quick, meter)
    site.until(34)
    site.clock.leap(hours=hours)
    a_ratio(monkeypatch, site.devices[1])
    site.edit(EDITS["one percent"](meter))
    site.until(39)
    with pytest.raises(UsageError, match=r"not only its map .* ct_ratio 41 instead of 40") as refused:
        confirm(site)
    assert "put the map or the setting back" in (refused.value.hint or "")
    site.edit(meter)
    site.until(40)
    as_advised(site)
    site.edit(EDITS["one percent"](meter))
    site.until(41)
    confirm(site)
    site.until(51)
    assert not site.alarms() and len(site.uplink.stored) == 2
    site.store.close()


def test_another_meter_that_is_connected_while_an_edit_waits_is_not_confirmed_with_it(quick: Path) -> None:
    site = Roof(quick)
    site.until(34)
    site.edit(EDITS["one percent"](original()))
    site.until(36)
    old, at = site.devices.pop(1), site.clock.now()
    site.until(46)
    meter_at(site, old.counted_wh(at) + 60_000, serial="222")
    site.until(48)
    (alarm,) = site.alarms()
    assert "And that is not all: the serial number changed from 30000001 to 222" in alarm
    done = confirm(site)
    assert "the serial number changed from 30000001 to 222" in done["between"]
    assert in_the_new_way(site)[0] < at and done["readings"] == len(in_the_new_way(site)) > 10
    site.until(51)
    (alarm,) = site.alarms()
    assert "--new-serial NUMBER" in alarm and len(site.uplink.stored) == 1
    site.store.close()


@pytest.mark.parametrize("looks", [True, False])
def test_a_ratio_that_was_set_while_the_store_could_not_be_asked_is_doubted_when_it_can(
    quick: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    if not looks:
        monkeypatch.setattr(polling, "base_ratios", lambda _meter, _store: {})
    meter = telling()
    site = Roof(quick, meter)
    site.until(34)
    site.clock.leap(hours=2)
    a_ratio(monkeypatch, site.devices[1])
    site.edit(meter)
    site.line._watched["roof"] = polling.Watched(meter, Learned(), site.line.plan(meter, Learned()), blind=True)
    site.until(51)
    if looks:
        assert site.booked() == site.true_wh() and len(site.uplink.stored) == 1
        (alarm,) = site.alarms()
        assert "multiplies by ct_ratio 41 instead of 40" in alarm
    else:
        assert site.booked() != site.true_wh() and len(site.uplink.stored) == 2
    site.store.close()


def test_a_new_meter_that_was_told_of_first_may_tell_another_ratio(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Roof(quick, telling())
    site.until(34)
    old, at = site.devices.pop(1), site.clock.now()
    site.clock.leap(minutes=5)
    wish = {"at": at.isoformat(), "kind": "swap", "old_wh": old.counted_wh(at), "new_wh": 0, "new_serial": "222"}
    carry_out(site.meter, "seam", {**wish, "note": "", "dry": False}, site.store, site.clock, RULES)
    site.line.forget(site.meter)
    a_ratio(monkeypatch, meter_at(site, 0, serial="222"), 80)
    site.until(51)
    assert not site.alarms() and len(site.uplink.stored) == 2
    site.store.close()


def test_a_counter_that_stands_still_below_zero_is_not_confirmed(quick: Path) -> None:
    """At night no counter moves, whatever it is read as."""
    site = Roof(quick)
    site.until(44)
    site.edit(edited(original(), scale=Decimal(-1)))
    site.until(47)
    with pytest.raises(UsageError, match="does not move like one: -"):
        confirm(site)
    assert site.store.seams.all("roof") == []
    site.store.close()


@pytest.mark.parametrize("kind", ["reset", "swap"])
def test_a_seam_that_is_told_of_while_a_mistaken_edit_waits_does_not_confirm_the_edit(quick: Path, kind: str) -> None:
    """The meter is silent after the edit; or the old one is still connected, and its new one is told of too early."""
    site = Roof(quick)
    site.until(34)
    device, at = site.devices[1], site.clock.now()
    if kind == "reset":
        del site.devices[1]
    site.edit(EDITS["ratio"](original()))
    site.until(36)
    told = at if kind == "reset" else site.clock.now()
    serial = "222" if kind == "swap" else None
    wish = {"at": told.isoformat(), "kind": kind, "old_wh": device.counted_wh(told), "new_wh": 0, "new_serial": serial}
    wish |= {"note": "", "dry": False}
    with pytest.raises(UsageError, match="nobody has confirmed that yet") as refused:
        carry_out(site.meter, "seam", wish, site.store, site.clock, RULES)
    assert "put it back" in (refused.value.hint or "") and "swap roof --map-changed" in (refused.value.hint or "")
    assert site.store.seams.all("roof") == [] and changes.pending(site.meter, site.store) is not None
    site.edit(original())
    carry_out(site.meter, "seam", wish, site.store, site.clock, RULES)
    site.line.forget(site.meter)
    meter_at(site, 0, serial=serial)
    site.until(51)
    (seam,) = site.store.seams.all("roof")
    assert seam.new_meaning is None and not site.alarms() and len(site.uplink.stored) == 2
    site.store.close()


def test_what_was_booked_is_not_read_anew_in_a_way_that_was_given_up_since(quick: Path) -> None:
    """A mistake is confirmed, and the way back as well: the first seam's new way was never right."""
    site = Roof(quick)
    site.until(10)
    for name, hours in (("ratio", 12), (None, 14)):
        site.edit(EDITS[name](original()) if name else original())
        site.until(hours)
        confirm(site)
    site.until(34)
    wish = {"corrects": 1, "reread": True, "note": "why", "dry": False}
    with pytest.raises(UsageError, match="the new way of seam 1 is not how the counter is booked today"):
        carry_out(site.meter, "correction", wish, site.store, site.clock, RULES)
    assert [seam.kind for seam in site.store.seams.all("roof")] == ["change", "change"]
    site.store.close()


def test_from_a_coarse_counter_to_a_fine_one_the_coarse_one_may_have_moved_by_a_whole_step(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole kWh before, a float after; the coarse counter ticks in the seconds of the restart, and it is booked."""
    coarse = Register(quantity="energy_production", type="u32", address=0x0F00, unit="kWh", monotonic=True)
    meter = replace(original(), production="energy_production")
    meter = replace(meter, map=replace(meter.map, registers=(*meter.map.registers, coarse)))
    site = Roof(quick, meter)
    device = site.devices[1]
    words = device.words

    def answer(function: Function, address: int, count: int, at: datetime | None = None) -> tuple[int, ...] | Refusal:
        kwh = device.counted_wh(at or site.clock.now()) // 1000
        return divmod(kwh, 0x10000) if (address, count) == (0x0F00, 2) else words(function, address, count, at)

    monkeypatch.setattr(device, "words", answer)
    site.until(10)
    at = site.clock.now()
    while device.counted_wh(at + timedelta(seconds=8)) // 1000 == device.counted_wh(at) // 1000:
        at += timedelta(seconds=1)
    site.clock.leap(seconds=(at - site.clock.now()).total_seconds())
    site.edit(site.meter)
    site.round()
    good = site.store.readings.last_good("roof")
    site.clock.leap(seconds=8)
    site.edit(replace(meter, production="energy_export"))
    site.until(10.5)
    confirm(site)
    (seam,) = site.store.seams.all("roof")
    assert good is not None and good.index_wh is not None and seam.old_wh == good.index_wh + 1000
    assert "not booked" not in seam.note
    site.store.close()

"""What else may happen while an edit of the counter waits: none of it books energy that nobody has produced.

Poll, store, closing and delivery are the real ones; the meter is simulated, its truth is the oracle.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from heliograph.core.registers import MeterMap
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.work import amend
from heliograph.work.amend import carry_out
from tests.fakes import RULES, SINGAPORE
from tests.work.test_change import EDITS, Roof, edited, original
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

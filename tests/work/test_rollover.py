"""A counter goes over its end while it is polled: what the map knows makes its own seam, anything else is a doubt."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from heliograph.core.site import Meter
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.work.close_days import close_days
from tests.fakes import RULES, SINGAPORE, START, a_meter
from tests.work.test_poll import Site

END_WH = 41_235_000


def a_rolling_meter(rollover: str | None) -> Meter:
    meter = a_meter()
    end = Decimal(rollover) if rollover else None
    registers = tuple(
        replace(one, rollover=end) if one.quantity == meter.production else one for one in meter.map.registers
    )
    return replace(meter, map=replace(meter.map, registers=registers))


def rolling(folder: Path, known: str | None) -> Site:
    """A meter whose counter begins again after 41,235 kWh, 4.3 kWh from here; the map says `known`."""
    site = Site(folder, [a_rolling_meter(known)])
    truth = a_rolling_meter("41235").map
    site.devices[1] = SimulatedMeter(
        truth, clock=site.clock.now, unit=1, start_export_wh=41_230_700, sky=Sky(zone=SINGAPORE, seed=1), seed=1
    )
    return site


def test_a_rollover_that_the_map_knows_makes_its_own_seam(tmp_path: Path) -> None:
    site = rolling(tmp_path, "41235")
    site.run(minutes=1)
    first = site.store.readings.first_good("roof")
    site.run(minutes=60)
    (seam,) = site.store.seams.all("roof")
    assert (seam.kind, seam.old_wh, seam.new_wh) == ("rollover", END_WH, 0)
    assert seam.note == "rollover at 41235.000 kWh, known to the map"
    newest = site.store.readings.last("roof")
    assert newest is not None and newest.good and newest.index_wh is not None and newest.index_wh < END_WH / 2
    close_days(site.meters, site.store, site.clock, RULES)
    left = START + timedelta(hours=23, minutes=59) - site.clock.now()
    site.clock.leap(seconds=left.total_seconds())
    site.run(minutes=3)
    site.clock.leap(minutes=15)
    close_days(site.meters, site.store, site.clock, RULES)
    (day,) = site.store.days.all()
    closing = site.store.readings.reading(day.closing.before)
    assert first is not None and first.index_wh is not None and closing.index_wh is not None
    assert day.period_wh == END_WH - first.index_wh + closing.index_wh > 4_000
    site.store.close()


def test_a_rollover_that_no_map_knows_stays_a_doubt(tmp_path: Path) -> None:
    site = rolling(tmp_path, None)
    site.run(minutes=60)
    assert site.store.seams.all("roof") == []
    newest = site.store.readings.last("roof")
    assert newest is not None and "fell" in newest.doubt
    site.store.close()


def test_a_reset_far_from_the_end_stays_a_doubt(tmp_path: Path) -> None:
    site = rolling(tmp_path, "999999.99")
    site.run(minutes=60)
    assert site.store.seams.all("roof") == []
    newest = site.store.readings.last("roof")
    assert newest is not None and "fell" in newest.doubt
    site.store.close()


def test_another_meter_behind_the_same_unit_has_not_rolled_over(tmp_path: Path) -> None:
    site = rolling(tmp_path, "41235")
    site.run(minutes=2)
    truth = site.devices.pop(1)
    site.run(minutes=1)
    site.devices[1] = SimulatedMeter(
        truth.map, clock=site.clock.now, unit=1, start_export_wh=END_WH + 500, serial=999, sky=truth.sky, seed=1
    )
    site.run(minutes=6)
    assert site.store.seams.all("roof") == []
    site.store.close()


def test_a_rollover_waits_for_a_trusted_clock(tmp_path: Path) -> None:
    site = rolling(tmp_path, "41235")
    site.run(minutes=2)
    site.clock.synchronised = False
    site.run(minutes=60)
    assert site.store.seams.all("roof") == []
    site.clock.synchronised = True
    close_days(site.meters, site.store, site.clock, RULES)  # dates what was read before
    site.run(minutes=2)
    assert [seam.kind for seam in site.store.seams.all("roof")] == ["rollover"]
    site.store.close()

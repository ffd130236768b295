"""One simulated SDM630 over TCP, RTU over TCP and a paced 9600-baud line: the same values, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from heliograph import library
from heliograph.app import App, load
from heliograph.core.decode import addresses, reading
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.work.health import Live
from heliograph.work.poll import PolledBus, poll, read_once

NOON = datetime(2026, 3, 14, 4, 30, tzinfo=UTC)
MAP = library.load("eastron-sdm630", local=None).map


@contextmanager
def served(way: str) -> Iterator[tuple[str, SimulatedMeter]]:
    """A meter whose time stands still, so that two looks at it must show the same."""
    meter = SimulatedMeter(MAP, clock=lambda: NOON, start_export_wh=123_456_780, start_import_wh=41_230_700, seed=7)
    if way == "serial":
        with Line(Wire({1: meter}, baud=9600, strict_silence=True)) as line:
            yield line.url, meter
    else:
        with Server({1: meter}, framing="tcp" if way == "tcp" else "rtu") as server:
            yield server.url, meter


def site(folder: Path, url: str) -> App:
    path = folder / "config.toml"
    path.write_text(
        f'[site]\nid = "s"\ntimezone = "Asia/Singapore"\ndata_dir = "{folder}/data"\n[[bus]]\nid = "b"\nurl = "{url}"\n'
        '[[meter]]\nid = "roof"\nbus = "b"\nmap = "eastron-sdm630"\nrated_kw = 50\n[clock]\ntrust = "always"\n'
    )
    return load(path)


@pytest.mark.parametrize("way", ["tcp", "rtu+tcp", "serial"])
def test_what_is_read_is_what_the_meter_holds(tmp_path: Path, way: str) -> None:
    with served(way) as (url, meter):
        app = site(tmp_path, url)
        line = PolledBus("b", url, app.meters, lambda: app.open_bus("b"))
        found = read_once(line, app.meters[0], app.clock, everything=True)
        with app.writer() as store:
            poll(line, store, app.clock, app.rules.zone, Live(), lambda: False)
            stored = store.readings.last("roof")
        line.close()
    assert found["absent"] == {} and found["doubts"] == [] and found["serial"] == meter.serial
    for register in MAP.registers:
        words = meter.words(MAP.function_of(register), addresses(register)[0], len(addresses(register)), NOON)
        assert not isinstance(words, Refusal)
        held = reading(register, MAP.order_of(register), words)
        assert found["values"][register.quantity] == held, register.quantity
    assert stored is not None and stored.good
    assert stored.index_wh == meter.counted_wh(NOON)
    assert stored.words == meter.words("input", 0x4A, 2, NOON)
    assert stored.source is not None and stored.source.address == 0x4A
    polled = {register.quantity for register in MAP.registers if register.poll} - {"energy_export"}
    assert dict(stored.values) == {name: found["values"][name] for name in stored.values}
    assert set(stored.values) == polled

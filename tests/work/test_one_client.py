"""Devices that serve one TCP client: the connection is left between rounds where the map says so, and the likeliest
cause of a refused one is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core.errors import BusUnreachable
from heliograph.core.site import Meter, cautions
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store
from heliograph.work.health import Live
from heliograph.work.poll import PolledBus, poll, read_once
from tests.bus.test_tcp import Connection, frame
from tests.bus.virtual import VirtualLine
from tests.fakes import SINGAPORE, START, FakeClock, a_meter

URL = "tcp://192.168.1.50:1502"


class Roof:
    """One inverter behind a TCP connection in virtual time, and the bus that polls it."""

    def __init__(self, folder: Path, *, url: str = URL, close_after_poll: bool, single_client: bool = True) -> None:
        loaded = library.load("kostal-plenticore", local=None)
        timing = replace(loaded.map.timing, after_connect=1.5, pause=0.0)
        self.meter: Meter = replace(
            a_meter(unit=loaded.map.unit),
            map=replace(loaded.map, close_after_poll=close_after_poll, single_client=single_client),
            production="energy_production",
            timing=timing,
        )
        self.clock = FakeClock(START + timedelta(hours=12))
        device = SimulatedMeter(
            loaded.map, clock=self.clock.now, start_export_wh=41_230_700, sky=Sky(zone=SINGAPORE, seed=1)
        )
        self.asked: list[float] = []

        def hear(line: VirtualLine, request: bytes) -> None:
            self.asked.append(line.now)
            answer = device.answer(request[7:])
            if answer is not None:
                line.speak(line.now + 0.01, frame(int.from_bytes(request[:2], "big"), answer, device.unit))

        self.wire = Connection(hear)
        self.store = Store.writer(folder)
        self.store.readings.begin("site", "Asia/Singapore", self.clock.boot_id, self.clock.now())
        self.store.readings.know_map(self.meter.map_digest, self.meter.map.name, "")
        self.store.readings.know_meter(self.meter.id, self.meter.production)
        bus = "tcp://192.168.1.50:1502" if url.startswith("serial") else url
        self.line = PolledBus("lan", url, [self.meter], lambda: open_bus(bus, wire=lambda _: self.wire))
        self.live = Live()

    def round(self) -> None:
        poll(self.line, self.store, self.clock, SINGAPORE, self.live, lambda: False)
        self.clock.leap(seconds=10)
        self.wire.sleep(10)


@pytest.mark.parametrize(
    ("url", "close_after_poll", "connections"), [(URL, True, 3), (URL, False, 1), ("serial:///dev/ttyUSB0", True, 1)]
)
def test_the_connection_is_left_between_rounds_where_the_map_says_so(
    tmp_path: Path, url: str, close_after_poll: bool, connections: int
) -> None:
    roof = Roof(tmp_path, url=url, close_after_poll=close_after_poll)
    for _ in range(3):
        began = roof.wire.now
        asked = len(roof.asked)
        roof.round()
        opened = roof.wire.opened
        assert roof.live.errors == {} and len(roof.asked) > asked
        # The device gets its wait after every connection, and after no question on an open one.
        waits = [when - began for when in roof.asked[asked:]]
        assert waits[0] == pytest.approx(1.5 if opened > 1 or asked == 0 else 0.0, abs=0.01)
        assert waits[-1] < 3.0
        assert roof.wire.is_open is (connections == 1)
    assert roof.wire.opened == connections
    assert roof.line.bus().counters.requests == len(roof.asked)  # the line keeps its memory and its counts
    roof.store.close()


def test_one_look_beside_the_rounds_leaves_the_connection_too(tmp_path: Path) -> None:
    roof = Roof(tmp_path, close_after_poll=True)
    look = read_once(roof.line, roof.meter, roof.clock, everything=False)
    assert look["values"]["energy_production"] == 41_230_700
    assert (roof.wire.opened, roof.wire.is_open) == (1, False)
    roof.store.close()


@pytest.mark.parametrize("single_client", [True, False])
def test_a_refused_connection_names_the_other_client(tmp_path: Path, single_client: bool) -> None:
    roof = Roof(tmp_path, close_after_poll=False, single_client=single_client)
    roof.wire.unreachable = True
    with pytest.raises(BusUnreachable) as caught:
        read_once(roof.line, roof.meter, roof.clock, everything=False)
    assert caught.value.message == "192.168.1.50:502: no route to host"
    assert ("serves one TCP client: end what else is connected" in caught.value.hint) is single_client
    assert (caught.value.hint == "Check the cable") is not single_client
    roof.store.close()


def test_what_the_map_knows_and_the_site_should_is_told(tmp_path: Path) -> None:
    roof = Roof(tmp_path, close_after_poll=False)
    plain = replace(roof.meter, map=replace(roof.meter.map, single_client=False))
    counter = plain.map.register("energy_production")
    assert counter is not None

    def told(**keys: Any) -> tuple[str, ...]:
        registers = tuple(replace(r, **keys) if r == counter else r for r in plain.map.registers)
        return cautions(replace(plain, map=replace(plain.map, registers=registers)))

    assert told() == told(contains="ac") == ()
    (direct,) = told(contains="dc")
    assert "as direct current, before the losses" in direct
    (reset,) = told(resettable="from its app")
    assert "can be set back to zero: from its app" in reset and "heliograph swap roof" in reset
    (battery,) = told(contains="ac+battery")
    assert "includes what a battery gives" in battery
    roof.store.close()

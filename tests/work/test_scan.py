"""A scan of a whole line, on a simulated line in virtual time, and of hosts on loopback."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial

import pytest

from heliograph import library
from heliograph.app import line_at
from heliograph.bus.modbus import open_bus
from heliograph.core.errors import BusUnreachable, UsageError
from heliograph.core.line import Parity, parse
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.frames import Device, rtu, rtu_parts
from heliograph.rehearsal.line import Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.work.identify import QUICK
from heliograph.work.scan import (
    ALL_UNITS,
    MOST_HOSTS,
    USUAL_SETTINGS,
    Found,
    Scan,
    Setting,
    hosts,
    scan_hosts,
    scan_line,
    seconds_of_hosts,
    seconds_of_line,
)
from tests.bus.paced import Copper, PacedWire

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)
MAPS = tuple(library.load(name, local=None).map for name in library.names(local=None))
BY_NAME = {map.name: map for map in MAPS}
PORT = "serial:///dev/paced"

TEN = {
    1: "eastron-sdm630",
    2: "eastron-sdm120",
    3: "eastron-sdm72dm-v2",
    4: "abb-b23-b24",
    7: "fronius-inverter-float",
    19: "eastron-sdm630",
    23: "eastron-sdm120",
    100: "abb-b23-b24",
    131: "eastron-sdm72dm-v2",
    247: "fronius-inverter-float",
}


def bank(units: Mapping[int, str] = TEN) -> dict[int, Device]:
    return {
        unit: SimulatedMeter(BY_NAME[name], clock=lambda: NOON, unit=unit, seed=unit) for unit, name in units.items()
    }


class Looker:
    """Notes what a scan tells while it runs."""

    def __init__(self) -> None:
        self.seen: list[Found] = []
        self.notes: list[str] = []
        self.begun: list[tuple[str, int]] = []
        self.steps = 0

    def begin(self, what: str, steps: int) -> None:
        self.begun.append((what, steps))

    def step(self) -> None:
        self.steps += 1

    def saw(self, found: Found) -> None:
        self.seen.append(found)

    def note(self, text: str) -> None:
        self.notes.append(text)


def on(copper: Copper, **how: object) -> Scan:
    return Scan(MAPS, partial(open_bus, wire=copper.wire), Looker(), **how)  # type: ignore[arg-type] # mixed on purpose


def writes(frames: Iterable[bytes]) -> list[bytes]:
    """Those of these requests that could change a device: everything but functions 3 and 4."""
    return [frame for frame in frames if (parts := rtu_parts(frame)) is None or parts[1][0] not in (3, 4)]


def named(found: Iterable[Found]) -> dict[int, str | None]:
    return {one.sighting.unit: one.sighting.best.map.name if one.sighting.best else None for one in found}


# -- a line ----------------------------------------------------------------------------------------------------------


def test_ten_meters_of_five_kinds_on_one_line_are_all_named_and_nothing_is_written() -> None:
    copper = Copper(Wire(bank()))
    scan = on(copper)
    scan_line(scan, parse(PORT), USUAL_SETTINGS)
    assert named(scan.found) == TEN
    assert {one.sighting.serial for one in scan.found} == {str(30_000_000 + unit) for unit in TEN}
    assert {one.url for one in scan.found} == {f"{PORT}?baudrate=9600&parity=N&stopbits=1"}
    assert scan.garbled == [] and scan.notes == []
    # On the wire: each request as its bytes went out, and every one that the line heard is among them.
    assert len(copper.written) == scan.requests > len(ALL_UNITS)
    assert writes(copper.written) == []
    assert copper.line.counts["requests"] + copper.line.counts["unknown unit"] == len(copper.written)


@pytest.mark.parametrize("pdu", [b"\x06\x00\x00\x00\x01", b"\x10\x00\x00\x00\x01\x02\x00\x01", b"\x05\x00\x00\xff\x00"])
def test_a_write_on_the_line_would_be_noticed(pdu: bytes) -> None:
    """The control of the test above: one write among the requests, put there by hand."""
    copper = Copper(Wire(bank()))
    scan = on(copper, units=(1,))
    scan_line(scan, parse(PORT), USUAL_SETTINGS[:1])
    before = len(copper.written)
    port = copper.wire(parse(PORT))
    port.open()
    port.write(rtu(1, pdu))
    assert len(copper.written) == before + 1
    assert writes(copper.written) == [rtu(1, pdu)]


def test_a_common_site_is_found_in_seconds_and_a_whole_line_in_minutes() -> None:
    copper = Copper(Wire(bank({1: "eastron-sdm630", 2: "eastron-sdm120"})))
    begun = copper.now
    times: list[float] = []
    scan = on(copper)

    class Timed(Looker):
        def saw(self, found: Found) -> None:
            del found
            times.append(copper.now - begun)

    scan.watcher = Timed()
    scan_line(scan, parse(PORT), USUAL_SETTINGS)
    _, one, _ = seconds_of_line(len(USUAL_SETTINGS), ALL_UNITS, QUICK)
    assert times[0] < 3 and times[1] < 6
    assert copper.now - begun < one + 15, "the estimate told beforehand"
    assert copper.now - begun < 150


@pytest.mark.parametrize(("baud", "before"), [(19200, 1), (2400, 4), (115200, 8)])
def test_another_speed_is_found_and_stands_in_the_url(baud: int, before: int) -> None:
    copper = Copper(Wire(bank({1: "eastron-sdm630"}), baud=baud))
    scan = on(copper, units=(1, 2, 3, 4, 5))
    scan_line(scan, parse(PORT), USUAL_SETTINGS)
    assert [one.url for one in scan.found] == [f"{PORT}?baudrate={baud}&parity=N&stopbits=1"]
    assert len({line.baudrate for line in copper.opened}) <= before + 1  # and then no other is tried
    assert scan.garbled == []  # what comes at a wrong speed is not taken for devices
    assert all("answered by noise here" in note for note in scan.notes) and len(scan.notes) == len(
        {(line.baudrate, line.parity) for line in copper.opened if line.baudrate != baud}
    )


@pytest.mark.parametrize(("baud", "parity"), [(9600, "E"), (19200, "E"), (9600, "O")])
def test_another_parity_is_found_and_stands_in_the_url(baud: int, parity: Parity) -> None:
    copper = Copper(Wire(bank({1: "eastron-sdm630"}), baud=baud, bits=11, parity=parity))
    scan = on(copper, units=(1, 2, 3))
    scan_line(scan, parse(PORT), [one for one in USUAL_SETTINGS if one.baudrate == baud])
    assert [one.url for one in scan.found] == [f"{PORT}?baudrate={baud}&parity={parity}&stopbits=1"]
    assert scan.garbled == []


def test_all_settings_are_tried_when_that_is_wanted() -> None:
    copper = Copper(Wire(bank({1: "eastron-sdm630"})))
    scan = on(copper, units=(1, 2))
    scan_line(scan, parse(PORT), USUAL_SETTINGS, all_settings=True)
    assert {line.baudrate for line in copper.opened} == {one.baudrate for one in USUAL_SETTINGS}
    assert 1 in named(scan.found)


def test_a_unit_that_nobody_would_think_of_is_found_in_the_end() -> None:
    copper = Copper(Wire(bank({211: "eastron-sdm120"})))
    scan = on(copper)
    scan_line(scan, parse(PORT), USUAL_SETTINGS[:2])
    assert named(scan.found) == {211: "eastron-sdm120"}


class Twins(Wire):
    """A second device at the same unit id: both answer, and their characters fall over each other."""

    def _hear(self, frame: bytes, at: float, spoilt: str) -> None:
        super()._hear(frame, at, spoilt)
        self._busy.clear()
        super()._hear(frame, at, spoilt)


def test_two_devices_with_one_unit_id_are_told() -> None:
    copper = Copper(Twins(bank({1: "eastron-sdm630"})))
    scan = on(copper, units=tuple(range(1, 21)))
    scan_line(scan, parse(PORT), (Setting(9600),))
    assert scan.found == []
    assert [(one.sighting.unit, one.sighting.answer) for one in scan.garbled] == [(1, "garbled")]


def test_two_devices_with_one_unit_id_are_told_beside_one_that_is_well() -> None:
    class OneOfThem(Twins):
        def _hear(self, frame: bytes, at: float, spoilt: str) -> None:
            if frame[0] == 5:
                super()._hear(frame, at, spoilt)
            else:
                Wire._hear(self, frame, at, spoilt)

    copper = Copper(OneOfThem(bank({1: "eastron-sdm630", 5: "eastron-sdm120"})))
    scan = on(copper, units=tuple(range(1, 21)))
    scan_line(scan, parse(PORT), USUAL_SETTINGS)
    assert named(scan.found) == {1: "eastron-sdm630"}
    assert [one.sighting.unit for one in scan.garbled] == [5]


@pytest.mark.parametrize("turnaround", [0.3, 0.45])
@pytest.mark.parametrize("units", [(1, 60), (60,), (100,)], ids=str)
def test_a_device_that_answers_late_gets_a_second_look(turnaround: float, units: tuple[int, ...]) -> None:
    """After more than the first look waits: while it listens on, or into the next unit's question."""
    copper = Copper(Wire(bank(dict.fromkeys(units, "eastron-sdm120")), turnaround=turnaround))
    scan = on(copper, units=tuple(range(1, 101)))
    scan_line(scan, parse(PORT), USUAL_SETTINGS[:1])
    assert named(scan.found) == dict.fromkeys(units, "eastron-sdm120")
    assert scan.garbled == [], "the unit that was asked meanwhile is not to blame"


def test_an_adapter_that_hears_itself_is_told_and_scanned_all_the_same() -> None:
    copper = Copper(Wire(bank({1: "eastron-sdm630", 2: "eastron-sdm120"}), echo=True))
    scan = on(copper, units=(1, 2, 3, 4))
    scan_line(scan, parse(PORT), USUAL_SETTINGS[:3])
    assert named(scan.found) == {1: "eastron-sdm630", 2: "eastron-sdm120"}
    assert all("echo=1" in one.url for one in scan.found) and "hears itself" in scan.notes[0]


def picky(refused: set[int]) -> Scan:
    """Over an adapter that does not know these speeds."""

    class Picky(PacedWire):
        def open(self) -> bool:
            if self._line.baudrate in refused:
                raise BusUnreachable("serial port /dev/paced: Invalid argument")
            return super().open()

    copper = Copper(Wire(bank({1: "eastron-sdm630"}), parity="E", bits=11))
    return Scan(MAPS, partial(open_bus, wire=lambda line: Picky(copper, line)), Looker(), units=(1, 2))


def test_a_setting_that_the_adapter_does_not_know_is_passed_over() -> None:
    scan = picky({57600, 115200})
    scan_line(scan, parse(PORT), (Setting(9600), Setting(57600), Setting(115200), Setting(9600, "E")))
    assert scan.notes == [f"{speed} 8N1: serial port /dev/paced: Invalid argument" for speed in (57600, 115200)]
    assert len(scan.found) == 1


def test_where_one_setting_after_the_other_cannot_be_set_the_adapter_is_gone() -> None:
    scan = picky({115200, 57600, 19200})
    with pytest.raises(BusUnreachable):
        scan_line(scan, parse(PORT), [Setting(speed) for speed in (9600, 115200, 57600, 19200, 38400)])


def test_nobody_is_an_answer_too() -> None:
    copper = Copper(Wire({}))
    scan = on(copper)
    begun = copper.now
    scan_line(scan, parse(PORT), (Setting(9600), Setting(9600, "E")))
    assert (scan.found, scan.garbled, scan.notes) == ([], [], [])
    _, _, longest = seconds_of_line(2, ALL_UNITS, QUICK)
    assert 0.8 * longest < copper.now - begun < 1.05 * longest, "the estimate told beforehand"


SEEDS = [int(os.environ["HELIOGRAPH_SEED"])] if "HELIOGRAPH_SEED" in os.environ else list(range(12))


@pytest.mark.parametrize("seed", SEEDS)
def test_now_and_then_a_bad_frame_loses_no_meter_and_names_none_wrongly(seed: int) -> None:
    there = {1: "eastron-sdm630", 2: "eastron-sdm120", 60: "abb-b23-b24", 61: "fronius-inverter-float"}
    copper = Copper(Wire(bank(there), faults=Faults(crc=0.1, doubled=0.02, truncated=0.02, noise=0.02), seed=seed))
    scan = on(copper, units=tuple(range(1, 64)))
    scan_line(scan, parse(PORT), USUAL_SETTINGS[:1])
    assert named(scan.found) == there
    assert copper.line.counts["crc"]  # there was something to lose


def test_what_was_found_stays_when_the_scan_is_interrupted() -> None:
    copper = Copper(Wire(bank()))

    class Tired(Looker):
        def saw(self, found: Found) -> None:
            super().saw(found)
            if len(self.seen) == 3:
                raise KeyboardInterrupt

    scan = on(copper)
    scan.watcher = Tired()
    with pytest.raises(KeyboardInterrupt):
        scan_line(scan, parse(PORT), USUAL_SETTINGS)
    assert len(scan.found) == 3


# -- hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last", "count"),
    [
        ("192.168.1.10-60", "192.168.1.10", "192.168.1.60", 51),
        ("192.168.1.10-192.168.2.9", "192.168.1.10", "192.168.2.9", 256),
        ("192.168.1.0/26", "192.168.1.1", "192.168.1.62", 62),
        ("192.168.1.77/26", "192.168.1.65", "192.168.1.126", 62),
        ("192.168.1.50", "192.168.1.50", "192.168.1.50", 1),
        ("192.168.1.50/32", "192.168.1.50", "192.168.1.50", 1),
        ("10.0.0.0/22", "10.0.0.1", "10.0.3.254", 1022),
        ("inverter-3.local", "inverter-3.local", "inverter-3.local", 1),
    ],
)
def test_a_range_of_hosts(text: str, first: str, last: str, count: int) -> None:
    found = hosts(text)
    assert (found[0], found[-1], len(found)) == (first, last, count)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("192.168.1.60-10", "runs backwards"),
        ("192.168.1.10-", "nothing is no end"),
        ("192.168.1.10-300", "300 is no end"),
        ("192.168.1.10-abc", "abc is no end"),
        ("192.168.1.0/33", "no range of addresses"),
        ("192.168.1.0/abc", "no range of addresses"),
        ("10.0.0.0/8", "has 16777216 addresses"),
        ("10.0.0.0-10.0.9.0", "has 2305 addresses"),
        ("192.168.1", "no host"),
        ("192.168.1.*", "no host"),
        ("192.168.1.1,192.168.1.2", "no host"),
        ("", "no host"),
    ],
)
def test_what_is_no_range_of_hosts_is_told(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as raised:
        hosts(text)
    assert raised.value.hint and str(MOST_HOSTS) if "addresses" in told else "192.168.1.10-60" in raised.value.hint


def a_server(units: Mapping[int, str], **how: object) -> Server:
    return Server(bank(units), **how)  # type: ignore[arg-type] # mixed on purpose


@contextmanager
def listening(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something that is no meter: takes connections, and does this with each."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                behave(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def let_go(server: Server) -> bool:
    """Whether nobody is connected; the other side hears of it a moment after we have closed."""
    return any(not server._open or threading.Event().wait(0.01) for _ in range(1000))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def over_tcp(**how: object) -> Scan:
    how = {"maps": MAPS} | how
    return Scan(connect=partial(line_at, connect=2.0), watcher=Looker(), **how)  # type: ignore[arg-type] # mixed on purpose


def test_hosts_with_several_ports_are_found_and_let_go() -> None:
    with (
        a_server({1: "eastron-sdm630", 3: "eastron-sdm120"}, unknown="refuse") as one,
        a_server({71: "kostal-plenticore"}, unknown="refuse") as two,
        a_server({2: "abb-b23-b24"}, host="127.0.0.2", unknown="refuse") as three,
    ):
        ports = (one.port, closed_port(), two.port, three.port)
        scan = over_tcp(units=(1, 2, 3, 71))
        scan_hosts(scan, ["127.0.0.1", "127.0.0.2", "127.0.0.3"], ports)
        found = {(one.url, one.sighting.unit): one.sighting.best.map.name if one.sighting.best else None
                 for one in scan.found}  # fmt: skip
        assert found == {
            (one.url, 1): "eastron-sdm630",
            (one.url, 3): "eastron-sdm120",
            (two.url, 71): None,  # its mark is a zero, which proves nothing
            (three.url, 2): "abb-b23-b24",
        }
        kostal = next(one.sighting for one in scan.found if one.sighting.unit == 71)
        assert kostal.candidates[0].map.name == "kostal-plenticore" and kostal.candidates[0].evidence == "serial"
        assert scan.notes == []
        assert all(let_go(server) for server in (one, two, three))


CHINT = (BY_NAME["chint-dtsu666"], BY_NAME["eastron-sdm630"])


class Anything(dict[int, Device]):
    """The same device at every unit id."""

    def get(self, key: int, default: object = None) -> Device:
        del key, default
        return self[1]


def test_several_meters_of_a_kind_that_tell_no_serial_are_not_taken_for_one() -> None:
    with a_server({1: "chint-dtsu666", 2: "chint-dtsu666", 3: "chint-dtsu666"}) as server:
        for whole in (True, False):
            scan = over_tcp(units=(1, 2, 3), maps=CHINT)
            if whole:
                scan_line(scan, parse(server.url), ())
            else:
                scan_hosts(scan, ["127.0.0.1"], (server.port,))
            assert [one.sighting.unit for one in scan.found] == [1, 2, 3] and scan.notes == []


def test_one_device_without_a_serial_at_every_unit_id_is_told_once() -> None:
    with Server(Anything(bank({1: "chint-dtsu666"}))) as server:
        scan = over_tcp(units=(1, 2, 3, 71, 100, 126, 200, 240), maps=CHINT)
        scan_hosts(scan, ["127.0.0.1"], (server.port,))
        assert [one.sighting.unit for one in scan.found] == [1] and "every unit id" in scan.notes[0]


def test_one_device_at_every_unit_id_is_told_once() -> None:
    with Server(Anything(bank({1: "eastron-sdm630"}))) as server:
        scan = over_tcp(units=(1, 2, 3, 100))
        scan_hosts(scan, ["127.0.0.1"], (server.port,))
        assert [one.sighting.unit for one in scan.found] == [1]
        assert "one device answers to several unit ids" in scan.notes[0]
        whole = over_tcp(units=tuple(range(1, 30)))
        scan_line(whole, parse(server.url), ())
        assert [one.sighting.unit for one in whole.found] == [1]
        assert "every unit id" in whole.notes[0]
        assert isinstance(whole.watcher, Looker) and ("all other units", 23) not in whole.watcher.begun


def test_the_same_device_at_two_ports_is_told_as_one() -> None:
    devices = bank({1: "eastron-sdm630"})
    with Server(devices) as one, Server(devices) as two:
        scan = over_tcp(units=(1,))
        scan_hosts(scan, ["127.0.0.1"], (one.port, two.port))
        assert [(found.url, found.also) for found in scan.found] == [(one.url, ""), (two.url, one.url)]


def test_devices_of_several_kinds_are_not_one_because_their_makers_count_alike() -> None:
    kinds = ("eastron-sdm630", "solaredge", "sunspec-meter", "sunspec-mppt", "sunspec-inverter-float")
    with ExitStack() as stack:
        alike = [SimulatedMeter(BY_NAME[name], clock=lambda: NOON, unit=1, seed=1, serial=30_000_001) for name in kinds]
        servers = [stack.enter_context(Server({1: one})) for one in alike]
        scan = over_tcp(units=(1,))
        scan_hosts(scan, ["127.0.0.1"], [server.port for server in servers])
        assert {one.sighting.serial for one in scan.found} == {"30000001"}
        assert [(one.url, one.also) for one in scan.found] == [(server.url, "") for server in servers]
    with Server({1: alike[0], 2: alike[1]}) as gateway:
        scan = over_tcp(units=(1, 2))
        scan_hosts(scan, ["127.0.0.1"], (gateway.port,))
        assert [one.sighting.unit for one in scan.found] == [1, 2]


def test_what_takes_connections_and_is_no_meter_is_told() -> None:
    def rubbish(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(rubbish) as web, listening(lambda _: None) as shut:
        scan = over_tcp(units=(1, 2))
        scan_hosts(scan, ["127.0.0.1"], (web, shut))
    assert scan.found == []
    assert [f"127.0.0.1:{web}" in note or f"127.0.0.1:{shut}" in note for note in scan.notes] == [True, True]
    assert any("no Modbus TCP frame" in note for note in scan.notes), scan.notes
    assert any("took the connection and ended it" in note for note in scan.notes), scan.notes


def test_hosts_that_were_found_stay_when_the_scan_is_interrupted() -> None:
    class Tired(Looker):
        def saw(self, found: Found) -> None:
            super().saw(found)
            raise KeyboardInterrupt

    with a_server({1: "eastron-sdm630"}) as server:
        scan = over_tcp(units=(1,))
        scan.watcher = Tired()
        with pytest.raises(KeyboardInterrupt):
            scan_hosts(scan, ["127.0.0.1"], (server.port, closed_port()))
        assert len(scan.found) == 1 and scan.stopping.is_set()
        assert let_go(server)


def test_of_a_single_host_it_is_told_why_it_cannot_be_reached() -> None:
    for wanted in (False, True):
        scan = over_tcp(units=(1,))
        scan_hosts(scan, ["127.0.0.1"], (closed_port(),), tell_absent=wanted)
        assert [("refused" in note) for note in scan.notes] == ([True] if wanted else [])


def test_a_converter_that_hands_frames_through_is_scanned_by_unit_id() -> None:
    with a_server({1: "eastron-sdm630", 4: "abb-b23-b24"}, framing="rtu") as server:
        scan = over_tcp(units=(1, 2, 4), timeout=0.3)
        scan_line(scan, parse(server.url), USUAL_SETTINGS)
        assert named(scan.found) == {1: "eastron-sdm630", 4: "abb-b23-b24"}
        assert {one.url for one in scan.found} == {server.url}
        hosts_scan = over_tcp(units=(1,), timeout=0.1)
        scan_hosts(hosts_scan, ["127.0.0.1"], (server.port,))
        assert hosts_scan.found == [] and f"heliograph scan rtu+tcp://127.0.0.1:{server.port}" in hosts_scan.notes[0]


def test_a_gateway_with_meters_behind_it_is_scanned_by_unit_id() -> None:
    with a_server({1: "eastron-sdm630", 44: "eastron-sdm120"}, unknown="refuse") as server:
        scan = over_tcp(units=tuple(range(1, 50)))
        scan_line(scan, parse(server.url), ())
        assert named(scan.found) == {1: "eastron-sdm630", 44: "eastron-sdm120"}


def test_a_port_that_is_not_there_is_an_error() -> None:
    scan = Scan(MAPS, line_at, Looker())
    with pytest.raises(BusUnreachable, match="ttyNowhere") as raised:
        scan_line(scan, parse("serial:///dev/ttyNowhere"), USUAL_SETTINGS)
    assert "plugged in" in raised.value.hint


def test_the_estimate_for_hosts_knows_that_several_are_asked_at_once() -> None:
    assert seconds_of_hosts(16, 1) == seconds_of_hosts(1, 1) < seconds_of_hosts(17, 1)

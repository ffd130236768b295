"""heliograph scan, as a person starts it: over a pseudo-serial line and over loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from heliograph import library, settings
from heliograph.cli.scan import _steady, command
from heliograph.core.errors import BusUnreachable, ConfigError, UsageError
from heliograph.core.line import parse
from heliograph.rehearsal.frames import Device, rtu_parts
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.work.diagnose import Machine

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)
HELIOGRAPH = [sys.executable, "-c", "from heliograph.cli import main; main()"]
SITE = '[site]\nid = "rehearsal"\ntimezone = "Asia/Singapore"\ndata_dir = "{}"\n\n'


def meter(name: str, unit: int) -> Device:
    map = library.load(name, local=None).map
    return SimulatedMeter(map, clock=lambda: NOON, unit=unit, seed=unit)


class Tapped(Wire):
    """A line that keeps every request that went over it."""

    def __init__(self, devices: dict[int, Device]) -> None:
        super().__init__(devices)
        self.heard: list[bytes] = []

    def _hear(self, frame: bytes, at: float, spoilt: str) -> None:
        self.heard.append(frame)
        super()._hear(frame, at, spoilt)


@pytest.fixture
def line() -> Iterator[Line]:
    devices = {1: meter("eastron-sdm630", 1), 2: meter("abb-b23-b24", 2), 3: meter("eastron-sdm230", 3)}
    with Line(Tapped(devices)) as made:
        yield made


def scan(*arguments: str) -> Result:
    """In this process, with errors raised."""
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False, standalone_mode=False)


def test_a_pseudo_serial_line_is_scanned_and_what_is_printed_is_configuration(line: Line, tmp_path: Path) -> None:
    # Twice the usual time-out, for this computer may have more to do than the line.
    done = scan(str(line.path), "--units", "1-3", "--baud", "9600", "--parity", "N", "--timeout", "400ms")
    assert done.return_value == 0, done.output
    assert "unit 1: eastron-sdm630, serial 30000001" in done.stderr
    assert "unit 2: abb-b23-b24" in done.stderr
    assert "unit 3: nothing it says tells its kind, serial 30000003" in done.stderr
    assert "3 devices found, 1 to be chosen a map for by the label" in done.stderr
    told = tomllib.loads(done.stdout)
    assert [bus["url"] for bus in told["bus"]] == [f"serial://{line.path}?baudrate=9600&parity=N&stopbits=1"]
    assert [(one["unit"], one["map"], one["rated_kw"]) for one in told["meter"]] == [
        (1, "eastron-sdm630", 0),
        (2, "abb-b23-b24", 0),
        (3, "", 0),
    ]
    wire = line.wire
    assert isinstance(wire, Tapped)
    parts = [rtu_parts(frame) for frame in wire.heard]
    assert len(parts) > 10 and all(part is not None and part[1][0] in (3, 4) for part in parts)

    config = tmp_path / "config.toml"
    config.write_text(SITE.format(tmp_path) + done.stdout)
    with pytest.raises(ConfigError, match=r"rated_kw|greater than 0"):
        settings.load(config)  # what was not filled in is refused
    filled = done.stdout.replace("rated_kw   = 0 ", "rated_kw   = 50 ").replace(
        'map        = "" ', 'map = "eastron-sdm230" '
    )
    config.write_text(SITE.format(tmp_path) + filled.replace("map = ", 'production = "energy_export"\nmap = '))
    loaded = settings.load(config).settings
    assert [one.serial for one in loaded.meter] == ["30000001", "30000002", "30000003"]


def test_json_tells_the_same(line: Line) -> None:
    with Server(line.wire.devices) as server:
        done = scan(server.url, "--units", "1-3", "--json")
    told = json.loads(done.stdout)
    assert {one["url"] for one in told["found"]} == {server.url}
    assert [(one["unit"], one["map"], one["serial"], one["ambiguous"]) for one in told["found"]] == [
        (1, "eastron-sdm630", "30000001", False),
        (2, "abb-b23-b24", "30000002", False),
        (3, None, "30000003", True),
    ]
    assert "eastron-sdm230" in [fit["map"] for fit in told["found"][2]["candidates"]]
    assert told["complete"] and told["garbled"] == [] and told["requests"] > 10
    assert tomllib.loads(told["config"])["bus"][0]["id"] == "bus-1"


def test_a_bus_of_the_configuration_is_scanned_as_it_is_set_first(line: Line, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        SITE.format(tmp_path) + f'[[bus]]\nid = "roof"\nurl = "{line.url}"\n'
        '[[meter]]\nid = "one"\nbus = "roof"\nunit = 1\nmap = "eastron-sdm630"\nrated_kw = 5\n'
    )
    done = scan("roof", "--units", "1-2", "--config", str(config))
    told = tomllib.loads(done.stdout)
    assert done.return_value == 0 and told["bus"][0]["id"] == "roof"
    assert [one["id"] for one in told["meter"]] == ["one", "roof-unit-2"]  # a meter keeps the name it has
    assert "takes the place of the [[bus]] roof" in done.stdout
    with pytest.raises(UsageError, match="there is no bus rof") as raised:
        scan("rof", "--config", str(config))
    assert "roof" in raised.value.hint


def test_nothing_found_is_exit_1_with_the_next_steps() -> None:
    with Line(Wire({})) as line:
        done = scan(str(line.path), "--units", "1-2", "--baud", "9600", "--parity", "N", "--timeout", "50ms")
    assert done.return_value == 1 and done.stdout == ""
    for word in ("swap A and B", "powered", "120 ohms", "--timeout 1s"):
        assert word in done.stderr


def test_two_devices_with_one_unit_id_are_told_with_the_next_step() -> None:
    class Twins(Wire):
        def _hear(self, frame: bytes, at: float, spoilt: str) -> None:
            super()._hear(frame, at, spoilt)
            self._busy.clear()
            super()._hear(frame, at, spoilt)

    with Line(Twins({1: meter("eastron-sdm630", 1)})) as line:
        done = scan(str(line.path), "--units", "1", "--baud", "9600", "--parity", "N", "--timeout", "100ms")
    assert done.return_value == 1 and done.stdout == ""
    assert "unit 1: bytes came that are no answer. Two devices with this unit id?" in done.stderr
    assert "Disconnect one of them" in done.stderr and "swap A and B" not in done.stderr


def test_hosts_are_scanned_over_several_ports() -> None:
    with (
        Server({1: meter("eastron-sdm630", 1)}, unknown="refuse") as one,
        Server({3: meter("eastron-sdm120", 3)}, unknown="refuse") as two,
    ):
        done = scan("127.0.0.1-2", "--ports", f"{one.port},{two.port}", "--units", "1,3")
        assert done.return_value == 0, done.output
        told = tomllib.loads(done.stdout)
        assert [(bus["id"], bus["url"]) for bus in told["bus"]] == [("bus-1", one.url), ("bus-2", two.url)]
        assert [(m["bus"], m["unit"], m["map"]) for m in told["meter"]] == [
            ("bus-1", 1, "eastron-sdm630"),
            ("bus-2", 3, "eastron-sdm120"),
        ]
        done = scan(f"127.0.0.1:{one.port}", "--units", "1", "--json")
        assert [found["map"] for found in json.loads(done.stdout)["found"]] == ["eastron-sdm630"]


def test_places_that_are_left_out_are_counted() -> None:
    devices = {1: meter("eastron-sdm630", 1)}
    with Server(devices) as one, Server(devices) as two:
        done = scan("127.0.0.1", "--ports", f"{one.port},{two.port}", "--units", "1")
    assert "1 device found; 1 place is left out, where one of them answers once more." in done.stderr
    assert [bus["url"] for bus in tomllib.loads(done.stdout)["bus"]] == [one.url]


def test_one_place_that_cannot_be_looked_at_keeps_back_no_other() -> None:
    with Server({1: meter("eastron-sdm630", 1)}) as server:
        done = scan("/dev/ttyNowhere", server.url, "--units", "1", "--json")
    told = json.loads(done.stdout)
    assert done.return_value == 1 and [one["map"] for one in told["found"]] == ["eastron-sdm630"]
    assert "ttyNowhere" in told["notes"][0] and "swap A and B" not in done.stderr


def test_a_host_that_is_not_there_says_why() -> None:
    with Server({}) as gone:
        port = gone.port
    done = scan(f"127.0.0.1:{port}")
    assert done.return_value == 1
    assert "refused" in done.stderr and f"No meter answered at 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("name", ["meter.invalid", "meter..invalid"])
def test_a_name_that_nobody_knows_is_told_once_and_nothing_else_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    really = socket.getaddrinfo

    def known(host: str, *more: Any, **how: Any) -> Any:
        """No question leaves this computer."""
        if host == "meter.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really(host, *more, **how)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    with pytest.raises(BusUnreachable, match=f"the name {name} is unknown here") as raised:
        scan(name)
    assert "spelled right" in raised.value.hint
    with Server({1: meter("eastron-sdm630", 1)}) as server:
        done = scan(name, f"127.0.0.1:{server.port}", "--units", "1")
    told = done.stderr
    assert told.count(f"{name} is unknown here") == 1 and "No meter answered at" not in told
    assert "1 device found" in told and done.return_value == 1


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/etc/passwd", "a file"), ("/dev/null", "something else"), ("/tmp", "a folder"), ("serial:///tmp", "a folder")],
)
def test_what_is_no_serial_port_is_told_before_anything_else(
    place: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=f"is no serial port, but {kind}") as raised:
        scan(place)
    assert "erial port" in raised.value.hint and capsys.readouterr().err == ""


HOLD = "import serial, sys; held = serial.Serial(sys.argv[1], exclusive=True); print(flush=True); sys.stdin.read()"


def test_a_port_that_another_program_has_is_told(line: Line) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(line.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "\n"
        with pytest.raises(BusUnreachable) as raised:
            scan(str(line.path), "--units", "1", "--baud", "9600")
    finally:
        other.communicate(timeout=30)
    assert f"(process {other.pid})" in raised.value.hint and "systemctl stop heliograph" in raised.value.hint
    assert raised.value.exit_code == 69


def test_a_port_is_named_so_that_it_stays(line: Line, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    links = tmp_path / "serial" / "by-id"
    links.mkdir(parents=True)
    port, name = tmp_path / "ttyUSB0", links / "usb-FTDI_A10"
    port.symlink_to(line.path)
    name.symlink_to(port)
    machine = Machine(dev=tmp_path)
    assert _steady(parse(f"serial://{port}?baudrate=19200"), machine) == parse(f"serial://{name}?baudrate=19200")
    assert f"{port} is {name}, a name that stays" in capsys.readouterr().err
    for other in (f"serial://{name}", f"serial://{line.path}", "tcp://192.168.1.5"):
        assert _steady(parse(other), machine) == parse(other)
    assert capsys.readouterr().err == ""


def test_a_port_that_is_not_there_is_told() -> None:
    with pytest.raises(BusUnreachable, match="ttyNowhere") as raised:
        scan("/dev/ttyNowhere")
    assert "plugged in" in raised.value.hint


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        ([], "where shall be looked", ""),
        (["192.168.1.60-10"], "runs backwards", "192.168.1.10-60"),
        (["10.0.0.0/8"], "16777216 addresses", "1024"),
        (["192.168.1.5:70000"], "no port 70000", "65535"),
        (["tpc://192.168.1.5"], "not the address of a bus", "tcp://"),
        (["/dev/ttyUSB0", "--units", "1-300"], "1-300 is not within 0 to 255", "1-20"),
        (["/dev/ttyUSB0", "--units", "one"], "'one' is no number", "1-20"),
        (["/dev/ttyUSB0", "--baud", "12"], "12 is not within 300", "1-20"),
        (["/dev/ttyUSB0", "--parity", "X"], "X is no parity", "N, E or O"),
        (["/dev/ttyUSB0", "--timeout", "5"], "--timeout 5", "with its unit"),
        (["/dev/ttyUSB0", "--timeout", "5m"], "not within 20ms", "10ms"),
        (["127.0.0.1", "--ports", "0"], "0 is not within 1", "1-20"),
    ],
)
def test_what_was_written_wrongly_is_told(arguments: list[str], told: str, hint: str) -> None:
    with pytest.raises(UsageError, match=told) as raised:
        scan(*arguments)
    assert hint in raised.value.hint


def test_a_word_without_a_configuration_says_what_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        scan("rs485", "--config", str(tmp_path / "none.toml"))
    assert "/dev/ttyUSB0" in raised.value.hint


def test_ctrl_c_prints_what_was_found_so_far() -> None:
    with Line(Wire({1: meter("eastron-sdm630", 1)})) as line:
        process = subprocess.Popen(
            [*HELIOGRAPH, "scan", str(line.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stderr is not None
            for told in process.stderr:
                if "unit 1: eastron-sdm630" in told:
                    break
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 1, err
    assert tomllib.loads(out)["meter"][0]["map"] == "eastron-sdm630"
    assert "Stopped before everything" in err

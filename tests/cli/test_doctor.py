"""heliograph doctor over real pseudo-terminals and real sockets, as a person at the line calls it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from heliograph import control, library
from heliograph.bus.modbus import open_bus
from heliograph.cli import heliograph
from heliograph.core.answer import Answer
from heliograph.core.errors import HeliographError
from heliograph.core.registers import Order, Timing
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.frames import Device, Framing, rtu
from heliograph.rehearsal.line import Line, OtherMaster, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.work import diagnose

NOON = datetime(2026, 3, 14, 11, tzinfo=UTC)
CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "line"
url = "{url}"
pause = "1ms"
{more}
[[meter]]
id = "roof"
bus = "line"
map = "{map}"
rated_kw = 50
unit = {unit}
"""


def device(unit: int = 1, name: str = "eastron-sdm630", order: Order | None = None) -> dict[int, Device]:
    map = library.load(name, local=None).map
    turned = map if order is None else replace(map, order=order)
    return {unit: SimulatedMeter(turned, clock=lambda: NOON, unit=unit, start_export_wh=41_230_700)}


@dataclass
class Site:
    folder: Path

    def ask(
        self,
        url: str,
        *words: str,
        unit: int = 1,
        map: str = "eastron-sdm630",
        more: str = "",
        meter: str = "roof",
    ) -> Result:
        config = self.folder / "config.toml"
        config.write_text(CONFIG.format(folder=self.folder, url=url, unit=unit, map=map, more=more))
        (self.folder / "data").mkdir(exist_ok=True)
        return CliRunner().invoke(heliograph, ["--config", str(config), "doctor", meter, *words], standalone_mode=False)

    def found(self, url: str, **site: Any) -> dict[str, Any]:
        result = self.ask(url, "--json", **site)
        assert code(result) is not None
        (one,) = json.loads(result.stdout)
        found: dict[str, Any] = one
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A laptop at the line, which has fewer questions than a real visit: each of them takes real time here."""
    monkeypatch.setattr(diagnose, "LISTEN", 0.2)
    monkeypatch.setattr(diagnose, "LISTEN_AGAIN", 0.2)
    monkeypatch.setattr(diagnose, "READS", 8)
    monkeypatch.setattr(diagnose, "LEAST_PATIENCE", 1.0)
    return Site(tmp_path)


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing ever answers, waiting longer changes nothing."""
    monkeypatch.setattr(diagnose, "QUICK", 0.002)
    monkeypatch.setattr(diagnose, "LEAST_PATIENCE", 0.02)
    monkeypatch.setattr(diagnose, "PATIENCE", 0.1)
    monkeypatch.setattr(diagnose, "MOST_UNITS", 40)


def code(result: Result) -> int | None:
    if isinstance(result.exception, HeliographError):
        return result.exception.exit_code
    if result.exception is not None:
        raise result.exception
    value: int | None = result.return_value
    return value


def first(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["findings"][0]["code"], found["findings"][0]["next"]


# -- a serial line ------------------------------------------------------------------------------------------------


def test_a_line_that_works_is_called_all_right(site: Site) -> None:
    with Line(Wire(device(), baud=115200)) as line:
        told = site.ask(line.url)
        details = site.ask(line.url, "--details")
    assert code(told) == 0
    assert told.stdout.startswith("All right: unit 1 answers within ")
    assert "8 of 8 times, and its values fit eastron-sdm630." in told.stdout
    assert "about " in told.stderr and "s where it answers" in told.stderr
    assert "half within" in details.stdout and "voltage_l1n 2" in details.stdout


def test_another_speed_is_named_with_the_url_to_put(site: Site) -> None:
    with Line(Wire(device(), baud=19200)) as line:
        found = site.found(line.url.replace("baudrate=19200", "baudrate=9600"))
        assert first(found) == ("baud", f'Put url = "{line.url}" into the [[bus]].')


def test_an_adapter_that_hears_itself_is_named(site: Site) -> None:
    with Line(Wire(device(), baud=115200, echo=True)) as line:
        kind, todo = first(site.found(line.url))
        assert kind == "echo"
        assert f'"{line.url}&echo=1"' in todo
        assert first(site.found(line.url + "&echo=1"))[0] == "ok"


def test_another_unit_is_named_with_what_it_is(site: Site) -> None:
    with Line(Wire(device(5), baud=115200)) as line:
        told = site.ask(line.url, unit=3)
    assert code(told) == 1
    assert told.stdout.startswith("Unit 3 does not answer, but unit 5 (eastron-sdm630) does.\n  Put unit = 5 ")


def test_another_kind_of_device_is_named(site: Site) -> None:
    with Line(Wire(device(1, "eastron-sdm120"), baud=115200)) as line:
        kind, todo = first(site.found(line.url))
    assert (kind, todo.split(":")[0]) == ("wrong-map", 'Put map = "eastron-sdm120" into the [[meter]]')


def test_another_order_of_words_is_named_and_what_to_put_where_cures_it(site: Site) -> None:
    with Line(Wire(device(order="CDAB"), baud=115200)) as line:
        assert first(site.found(line.url)) == ("wrong-order", 'Put order = "CDAB" into the [[meter]].')
        assert first(site.found(line.url, map='eastron-sdm630"\norder = "CDAB'))[0] == "ok"


def test_a_slow_device_is_shown_with_its_times_and_a_time_out_that_cures_it(site: Site) -> None:
    with Line(Wire(device(), baud=115200, turnaround=0.3)) as line:
        told = site.ask(line.url, more='timeout = "100ms"')
        assert code(told) == 1
        assert "the time-out of 100 ms is too short for 8 of 8 answers" in told.stdout
        assert "too late" in told.stdout and "#####" in told.stdout
        proposed = told.stdout.split('Put timeout = "')[1].split('"')[0]
        assert first(site.found(line.url, more=f'timeout = "{proposed}"'))[0] == "ok"


def test_another_master_on_the_line_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "LISTEN", 1.5)
    other = OtherMaster(rtu(9, b"\x04\x00\x34\x00\x02"), every=0.5)
    with Line(Wire(device(), baud=115200, other=other)) as line:
        told = site.ask(line.url)
    assert code(told) == 1
    assert "Somebody else asks on this line" in told.stdout
    assert "to unit 9 " in told.stdout


@pytest.mark.usefixtures("nobody_answers")
def test_a_dead_line_is_named_after_everything_was_tried(site: Site) -> None:
    with Line(Wire({}, baud=9600)) as line:
        told = site.ask(line.url, "--json", more='timeout = "20ms"')
    assert code(told) == 69
    (finding,) = json.loads(told.stdout)[0]["findings"]
    assert finding["code"] == "silence"
    assert finding["sentence"].startswith("The line is dead silent at every setting and unit id that was tried: A and")
    assert (finding["evidence"]["units"], len(finding["evidence"]["settings"])) == (45, 23)


def test_a_noisy_line_is_named_with_its_share(site: Site) -> None:
    with Line(Wire(device(), baud=115200, faults=Faults(crc=0.5), seed=3)) as line:
        told = site.ask(line.url, more='timeout = "150ms"')
    assert code(told) == 1
    assert "% of the questions come back damaged" in told.stdout


@pytest.mark.usefixtures("site")
def test_a_line_without_configuration_and_map_is_identified() -> None:
    with Line(Wire(device(), baud=115200)) as line:
        result = CliRunner().invoke(heliograph, ["doctor", line.url, "--json"], standalone_mode=False)
    (found,) = json.loads(result.stdout)
    assert first(found)[0] == "ok"
    assert found["devices"][0]["map"] == found["map"] == "eastron-sdm630"
    assert "its values fit eastron-sdm630" in found["findings"][0]["sentence"]


def test_a_port_that_is_not_there_is_named_with_those_that_are(site: Site) -> None:
    told = site.ask("serial:///dev/ttyUSB77?baudrate=9600")
    assert code(told) == 69
    assert told.stdout.startswith("There is no port /dev/ttyUSB77; ")


def test_a_port_that_a_hidden_program_holds_is_told(site: Site) -> None:
    with Line(Wire(device(), baud=115200)) as line:
        other = open_bus(line.url)
        other.read(1, "input", 0x46, 2, Timing(timeout=2))
        told = site.ask(line.url)
        other.close()
    assert code(told) == 69
    assert " is in use by another program" in told.stdout and "sudo" in told.stdout


# -- TCP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "believed", "kind"),
    [
        ({}, {}, "ok"),
        ({"unit": 5}, {}, "wrong-unit"),
        ({"name": "eastron-sdm120"}, {}, "wrong-map"),
        ({"order": "CDAB"}, {}, "wrong-order"),
        ({}, {"more": 'timeout = "50ms"'}, "slow"),
    ],
    ids=["ok", "unit", "map", "order", "slow"],
)
@pytest.mark.parametrize("framing", ["tcp", "rtu"])
def test_each_fault_is_named_over_tcp(
    site: Site, framing: Framing, real: dict[str, Any], believed: dict[str, Any], kind: str
) -> None:
    with Server(device(**real), framing=framing, turnaround=0.15 if kind == "slow" else 0.0) as server:
        assert first(site.found(server.url, **believed))[0] == kind


@pytest.mark.usefixtures("nobody_answers")
@pytest.mark.parametrize("beyond", ["reset", "starve"])
def test_a_device_that_serves_somebody_else_is_named(site: Site, beyond: Any) -> None:
    with Server(device(), clients=1, beyond=beyond) as server:
        with socket.create_connection((server.host, server.port)) as other:
            ask(other)  # is being served by now
            told = site.ask(server.url, more='timeout = "20ms"')
            assert code(told) == 69
            assert "it serves one client, and somebody else is connected" in told.stdout.replace("\n", " ")
        assert server.counts["turned away"]


def ask(connection: socket.socket) -> None:
    connection.sendall(bytes.fromhex("0001 0000 0006 01 04 0046 0002"))
    assert connection.recv(64)


def test_a_port_that_takes_no_connection_is_named(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = site.ask(f"tcp://127.0.0.1:{port}")
    assert code(told) == 69
    assert "takes no connection" in told.stdout


# -- the port as the system shows it --------------------------------------------------------------------------------


@dataclass
class Computer:
    """Folders that stand for /dev, /proc and /sys."""

    root: Path

    def __post_init__(self) -> None:
        self.port = self.root / "dev" / "ttyUSB0"
        self.port.parent.mkdir(parents=True)
        self.port.touch()
        (self.root / "dev" / "serial" / "by-id").mkdir(parents=True)
        self.link = self.root / "dev" / "serial" / "by-id" / "usb-FTDI_A10-if00-port0"
        self.link.symlink_to(self.port)

    def machine(self, may: Callable[[Path], bool] = lambda _: True) -> diagnose.Machine:
        return diagnose.Machine(self.root / "dev", self.root / "proc", self.root / "sys", may=may)

    def held_by(self, pid: int, *words: str, also: str = "") -> None:
        folder = self.root / "proc" / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to(self.port)
        if also:
            (folder / "4").symlink_to(also)
        (folder.parent / "cmdline").write_bytes("\0".join(words).encode())

    def latency(self, text: str) -> None:
        file = self.root / "sys" / "bus" / "usb-serial" / "devices" / "ttyUSB0" / "latency_timer"
        file.parent.mkdir(parents=True)
        file.write_text(text)


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return Computer(tmp_path)


def diagnosed(computer: Computer, path: Path, may: Callable[[Path], bool] = lambda _: True) -> list[tuple[str, str]]:
    from heliograph.core.diagnosis import Observations, Try
    from heliograph.core.diagnosis import diagnose as decide
    from heliograph.core.line import parse
    from heliograph.core.registers import Timing

    line = parse(f"serial://{path}?baudrate=9600")
    port = diagnose.look(line, computer.machine(may))
    tries = (Try(1, 2, "answered", 0.01),)
    found = decide(Observations(url="", line=line, unit=1, timing=Timing(), port=port, knocks=tries))
    return [(one.code, f"{one.sentence} {one.next}") for one in found]


def test_a_wrong_name_of_the_port_is_told_with_the_one_that_is_there(computer: Computer) -> None:
    ((kind, told),) = diagnosed(computer, computer.root / "dev" / "ttyUSB1")
    assert kind == "no-port"
    assert f'url = "serial://{computer.link}?baudrate=9600&parity=N&stopbits=1"' in told


def test_a_port_that_may_not_be_used_is_told_with_its_group_and_the_user(computer: Computer) -> None:
    (kind, told), *_ = diagnosed(computer, computer.port, may=lambda _: False)
    assert kind == "no-permission"
    assert computer.port.group() in told and "usermod -a -G" in told


def test_a_port_in_use_is_told_with_the_process(computer: Computer) -> None:
    computer.held_by(4711, "/usr/bin/minicom", "-D", "/dev/ttyUSB0")
    computer.held_by(os.getpid(), "we ourselves")
    (kind, told), *_ = diagnosed(computer, computer.link)
    assert kind == "in-use"
    assert "minicom" in told and "4711" in told and "ourselves" not in told


def test_who_plays_the_other_end_of_a_pseudo_terminal_is_not_in_the_way(computer: Computer) -> None:
    computer.held_by(4711, "simulator", also="/dev/ptmx")
    assert diagnosed(computer, computer.link)[0][0] == "ok"


def test_a_name_that_may_change_and_a_slow_adapter_are_advice(computer: Computer) -> None:
    computer.latency("16\n")
    (ok, _), (timer, how), (name, todo) = diagnosed(computer, computer.port)
    assert (ok, timer, name) == ("ok", "latency-timer", "name-changes")
    assert "echo 1 | sudo tee" in how and "latency_timer" in how
    assert str(computer.link) in todo


def test_an_adapter_that_is_set_well_needs_no_advice(computer: Computer) -> None:
    computer.latency("1\n")
    assert [kind for kind, _ in diagnosed(computer, computer.link)] == ["ok"]


# -- while the gateway runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "error", "kind", "exit"),
    [
        ({"requests": 100, "answers": 100, "timeouts": 0, "garbled": 0, "refused": 0}, "", "ok", 0),
        ({"requests": 100, "answers": 80, "timeouts": 20, "garbled": 0, "refused": 0}, "no answer", "gateway", 1),
    ],
    ids=["well", "ill"],
)
def test_while_the_gateway_has_the_line_its_own_counters_are_told(
    site: Site, figures: dict[str, int], error: str, kind: str, exit: int
) -> None:
    def answer(path: str, _: Any) -> Any:
        assert path == "/api/v1/status"
        return {"buses": {"line": figures}, "meters": [{"id": "roof", "bus": "line", "error": error}]}

    def no_rest(method: str, target: str) -> Answer:
        raise AssertionError((method, target))

    (site.folder / "data").mkdir()
    with Line(Wire(device(), baud=115200)) as line:
        running = control.listen(site.folder / "data" / "heliograph.sock", answer, no_rest)
        assert running is not None
        try:
            told = site.ask(line.url)
            found = site.found(line.url)
        finally:
            running.close()
        assert not line.counts, "the line was asked although the gateway has it"
    assert code(told) == exit
    assert first(found)[0] == kind
    assert "100 questions" in told.stdout
    if kind == "gateway":
        assert "systemctl stop heliograph" in told.stdout and "20 without an answer" in told.stdout


def test_a_name_that_is_neither_meter_nor_bus_is_told_with_the_nearest(site: Site) -> None:
    result = site.ask("tcp://127.0.0.1:1", meter="rof")
    assert code(result) == 78
    assert isinstance(result.exception, HeliographError) and result.exception.hint == "Did you mean roof?"

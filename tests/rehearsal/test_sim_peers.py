"""The simulator against masters that other people wrote: libmodbus (mbpoll), minimalmodbus and modbus-tk."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from types import ModuleType

import pytest

from heliograph import library
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import Refusal, SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky

NOON = datetime(2026, 3, 3, 5, 12, 3, tzinfo=UTC)
BLOCKS = [(0x0000, 80), (0x002E, 42), (0x0034, 24), (0x0048, 4), (0x00E0, 2), (0x014E, 48)]


def missing(what: str, install: str) -> None:
    reason = f"{what} is not installed; {install}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def mbpoll() -> str:
    path = shutil.which("mbpoll")
    if path is None:
        missing("mbpoll", "on Debian: apt install mbpoll")
    return str(path)


@pytest.fixture(scope="module")
def minimalmodbus() -> ModuleType:
    return library_named("minimalmodbus", "minimalmodbus")


@pytest.fixture(scope="module")
def modbus_tk() -> ModuleType:
    for part in ("modbus_tcp", "modbus_rtu_over_tcp"):
        library_named(f"modbus_tk.{part}", "modbus-tk")
    return library_named("modbus_tk", "modbus-tk")


def library_named(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(package, f"pip install {package}")
        raise


@pytest.fixture(scope="module")
def bank() -> dict[int, SimulatedMeter]:
    map = library.load("eastron-sdm630", local=None).map
    return {
        unit: SimulatedMeter(
            map, clock=lambda: NOON, unit=unit, serial=23_450_000 + unit, seed=unit, sky=Sky(seed=unit),
            start_export_wh=41_237_000 * unit, started=datetime(2026, 3, 1, tzinfo=UTC),
        )
        for unit in (1, 2)
    }  # fmt: skip


@pytest.fixture
def server(bank: dict[int, SimulatedMeter]) -> Iterator[Server]:
    with Server(bank) as running:
        yield running


@pytest.fixture
def line(bank: dict[int, SimulatedMeter]) -> Iterator[Line]:
    with Line(Wire(bank, baud=115200, turnaround=0.001, strict_silence=True)) as running:
        yield running


def words(meter: SimulatedMeter, address: int, count: int) -> list[int]:
    found = meter.words("input", address, count)
    assert not isinstance(found, Refusal)
    return list(found)


def poll(mbpoll: str, where: list[str], unit: int, table: str, address: int, count: int) -> tuple[list[int], str]:
    """Words read by libmodbus, and all that it said."""
    what = ["-a", str(unit), "-t", table, "-r", str(address), "-c", str(count), "-0", "-1", "-o", "0.3"]
    command = [mbpoll, *where[:-1], *what, where[-1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    said = done.stdout + done.stderr
    return [int(word, 16) for word in re.findall(r"^\[\d+\]:\s+0x([0-9A-F]+)", said, re.M)], said


def over_tcp(server: Server) -> list[str]:
    return ["-m", "tcp", "-p", str(server.port), server.host]


def over_line(line: Line) -> list[str]:
    return ["-m", "rtu", "-b", "115200", "-P", "none", str(line.path)]


@pytest.mark.parametrize("way", ["tcp", "rtu"])
def test_libmodbus_reads_what_the_bank_holds_to_the_last_bit(
    way: str, mbpoll: str, server: Server, line: Line, bank: dict[int, SimulatedMeter]
) -> None:
    where = over_tcp(server) if way == "tcp" else over_line(line)
    for unit, meter in bank.items():
        for address, count in BLOCKS:
            read, said = poll(mbpoll, where, unit, "3:hex", address, count)
            assert read == words(meter, address, count), said
        identity, said = poll(mbpoll, where, unit, "4:hex", 0xFC00, 3)
        assert (identity[0] << 16 | identity[1], identity[2]) == (23_450_000 + unit, 112), said


@pytest.mark.parametrize("way", ["tcp", "rtu"])
@pytest.mark.parametrize(
    ("unit", "table", "address", "count", "told"),
    [
        (1, "3:hex", 0x1000, 2, "Illegal data address"),
        (1, "4:hex", 0x0000, 2, "Illegal data address"),
        (1, "3:hex", 0x0000, 81, "Illegal data value"),
        (9, "3:hex", 0x0048, 2, "Connection timed out"),
    ],
)
def test_libmodbus_understands_what_is_refused_and_times_out_on_an_absent_unit(
    way: str, unit: int, table: str, address: int, count: int, told: str, mbpoll: str, server: Server, line: Line
) -> None:
    read, said = poll(mbpoll, over_tcp(server) if way == "tcp" else over_line(line), unit, table, address, count)
    assert read == []
    assert told.lower() in said.lower()


def test_libmodbus_rejects_a_damaged_frame(mbpoll: str, line: Line) -> None:
    line.faults = Faults(crc=1.0)
    read, said = poll(mbpoll, over_line(line), 1, "3:hex", 0x0048, 4)
    assert read == [], said


def test_minimalmodbus_reads_what_the_bank_holds_to_the_last_bit(
    minimalmodbus: ModuleType, line: Line, bank: dict[int, SimulatedMeter]
) -> None:
    for unit, meter in bank.items():
        master = minimalmodbus.Instrument(str(line.path), unit)
        try:
            master.serial.baudrate = 115200
            master.serial.timeout = 0.3
            for address, count in BLOCKS:
                assert master.read_registers(address, count, functioncode=4) == words(meter, address, count)
            (volts,) = struct.unpack(">f", struct.pack(">HH", *words(meter, 0, 2)))
            assert master.read_float(0, functioncode=4) == volts
            with pytest.raises(minimalmodbus.IllegalRequestError):
                master.read_registers(0x1000, 2, functioncode=4)
            master.address = 9
            with pytest.raises(minimalmodbus.NoResponseError):
                master.read_registers(0x48, 2, functioncode=4)
        finally:
            master.serial.close()


def test_modbus_tk_reads_what_the_bank_holds_over_rtu_over_tcp(
    modbus_tk: ModuleType, bank: dict[int, SimulatedMeter]
) -> None:
    with Server(bank, framing="rtu") as server:
        master = modbus_tk.modbus_rtu_over_tcp.RtuOverTcpMaster(server.host, server.port, timeout_in_sec=0.3)
        try:
            for unit, meter in bank.items():
                for address, count in BLOCKS:
                    read = master.execute(unit, modbus_tk.defines.READ_INPUT_REGISTERS, address, count)
                    assert list(read) == words(meter, address, count)
            # An exception it takes for half an answer and waits for the rest; libmodbus sees to those, above.
            with pytest.raises(TimeoutError):
                master.execute(9, modbus_tk.defines.READ_INPUT_REGISTERS, 0x48, 2)
        finally:
            master.close()


def test_modbus_tk_is_told_the_exceptions_over_tcp(modbus_tk: ModuleType, bank: dict[int, SimulatedMeter]) -> None:
    with Server(bank, unknown="refuse") as server:
        master = modbus_tk.modbus_tcp.TcpMaster(server.host, server.port, timeout_in_sec=2)
        try:
            for unit, address, count, code in ((1, 0x1000, 2, 2), (1, 0, 81, 3), (9, 0x48, 2, 11)):
                with pytest.raises(modbus_tk.modbus.ModbusError) as refused:
                    master.execute(unit, modbus_tk.defines.READ_INPUT_REGISTERS, address, count)
                assert refused.value.get_exception_code() == code
            server.faults = Faults(busy=1.0)
            with pytest.raises(modbus_tk.modbus.ModbusError) as refused:
                master.execute(1, modbus_tk.defines.READ_INPUT_REGISTERS, 0x48, 2)
            assert refused.value.get_exception_code() == 6
        finally:
            master.close()

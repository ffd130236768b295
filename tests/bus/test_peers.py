"""The bus against servers that other people wrote, modbus-tk and libmodbus: TCP, a paced serial line, and both."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from heliograph import library
from heliograph.bus.modbus import open_bus
from heliograph.core.errors import BusRefused, BusTimeout, BusUnreachable
from heliograph.core.plan import LineCost, plan
from heliograph.core.registers import Function, Timing
from heliograph.ports import Bus
from tests.bus.pty_line import Converter, NullModem
from tests.fakes import free_port

UNIT = 3
REGISTERS = 0x200
CONTENT = [(n * 40503 + 12345) & 0xFFFF for n in range(REGISTERS)]
# On a busy computer a server may see a hole in a request and stay silent; so there are more tries than a site has.
TIMING = Timing(timeout=0.5, retries=5)
BAUDRATE = 9600
COST = LineCost(character=10 / BAUDRATE, silence=35 / BAUDRATE, turnaround=0.01, pause=0.0)


class ModbusTk:
    """modbus-tk's servers; its registers are filled with CONTENT."""

    @staticmethod
    def fill(server: object, stack: ExitStack) -> None:
        slave = server.add_slave(UNIT)  # type: ignore[attr-defined]  # modbus-tk ships no types
        for name, kind in (("holding", 3), ("input", 4)):
            slave.add_block(name, kind, 0, REGISTERS)
            slave.set_values(name, 0, CONTENT)
        server.start()  # type: ignore[attr-defined]  # modbus-tk ships no types
        stack.callback(server.stop)  # type: ignore[attr-defined]  # modbus-tk ships no types

    def tcp(self, port: int, stack: ExitStack) -> None:
        from modbus_tk.modbus_tcp import TcpServer

        self.fill(TcpServer(port=port, address="127.0.0.1", timeout_in_sec=0.05), stack)
        deadline = time.monotonic() + 10  # it listens in a thread of its own, some time after start()
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def rtu(self, device: str, stack: ExitStack) -> None:
        import serial
        from modbus_tk.modbus_rtu import RtuServer

        self.fill(RtuServer(serial.Serial(device, BAUDRATE), error_on_missing_slave=False), stack)


class Libmodbus:
    """The C library behind many masters and servers; compiled here, as nobody else would look for it."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def _start(self, stack: ExitStack, *arguments: str) -> None:
        process = stack.enter_context(
            subprocess.Popen([self._program, *arguments], stdout=subprocess.PIPE, text=True)
        )  # fmt: skip
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"

    def tcp(self, port: int, stack: ExitStack) -> None:
        self._start(stack, "tcp", str(port), str(UNIT))

    def rtu(self, device: str, stack: ExitStack) -> None:
        self._start(stack, "rtu", device, str(UNIT))


@pytest.fixture(scope="session")
def libmodbus(tmp_path_factory: pytest.TempPathFactory) -> Libmodbus:
    program = tmp_path_factory.mktemp("libmodbus") / "server"
    source = Path(__file__).with_name("libmodbus_server.c")
    compiler = shutil.which("gcc")
    header = Path("/usr/include/modbus/modbus.h")
    if compiler is None or not header.exists():
        reason = "gcc and libmodbus-dev are not installed; on Debian: apt install gcc libc6-dev libmodbus-dev"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    subprocess.run([compiler, "-O1", f"-I{header.parent}", source, "-lmodbus", "-o", program], check=True)
    return Libmodbus(program)


@pytest.fixture(params=["modbus-tk", "libmodbus"])
def peer(request: pytest.FixtureRequest) -> ModbusTk | Libmodbus:
    if request.param == "modbus-tk":
        return ModbusTk()
    found: Libmodbus = request.getfixturevalue("libmodbus")
    return found


@pytest.fixture(params=["tcp", "rtu", "rtu+tcp"])
def bus(request: pytest.FixtureRequest, peer: ModbusTk | Libmodbus) -> Iterator[Bus]:
    with ExitStack() as stack:
        if request.param == "tcp":
            port = free_port()
            peer.tcp(port, stack)
            url = f"tcp://127.0.0.1:{port}"
        else:
            cable = stack.enter_context(NullModem(BAUDRATE))
            peer.rtu(cable.ports[1], stack)
            url = f"serial://{cable.ports[0]}?baudrate={BAUDRATE}"
            if request.param == "rtu+tcp":
                host, port = stack.enter_context(Converter(cable.ports[0])).address
                url = f"rtu+tcp://{host}:{port}"
        opened = open_bus(url)
        stack.callback(opened.close)
        yield opened


FUNCTIONS: tuple[Function, ...] = ("holding", "input")


def test_every_word_is_the_one_the_server_holds(bus: Bus) -> None:
    """All blocks of an SDM630's plans, single registers and the longest request there is."""
    map = library.load("eastron-sdm630").map
    ranges = {(block.address, block.count) for block in plan(map, None, COST)}
    ranges |= {(block.address, block.count) for block in plan(map, None, replace(COST, pause=0.06))}
    ranges |= {(0, 1), (REGISTERS - 1, 1), (7, 2), (REGISTERS - 125, 125)}
    for function in FUNCTIONS:
        for address, count in sorted(ranges):
            words = bus.read(UNIT, function, address, count, TIMING)
            assert words == tuple(CONTENT[address : address + count])
    assert bus.counters.answers == 2 * len(ranges)
    assert bus.counters.garbled == bus.counters.foreign == bus.counters.drained_bytes == 0


def test_a_refusal_is_a_refusal_and_the_next_answer_is_right(bus: Bus) -> None:
    with pytest.raises(BusRefused) as caught:
        bus.read(UNIT, "input", REGISTERS, 2, TIMING)
    assert caught.value.code == 2
    assert bus.read(UNIT, "input", 0, 2, TIMING) == tuple(CONTENT[:2])


def test_another_unit_is_silent_and_the_next_answer_is_right(bus: Bus, request: pytest.FixtureRequest) -> None:
    if "tcp" in request.node.callspec.params.values():
        return  # on TCP both servers answer, or hang up, for whom they like: the unit id means nothing there
    with pytest.raises(BusTimeout):
        bus.read(UNIT + 1, "input", 0, 2, replace(TIMING, timeout=0.1, retries=0))
    # libmodbus takes whatever follows for the other unit's answer, and leaves that aside too; so it is asked twice.
    assert bus.read(UNIT, "input", 0, 2, replace(TIMING, timeout=0.2)) == tuple(CONTENT[:2])


def test_a_port_that_is_not_there_is_told_with_the_next_step(tmp_path: Path) -> None:
    for url, told in (
        (f"serial://{tmp_path}/ttyUSB0", "No such file"),
        (f"tcp://127.0.0.1:{free_port()}", "Connection refused"),
    ):
        with pytest.raises(BusUnreachable, match=told) as caught:
            open_bus(url).read(1, "input", 0, 2, TIMING)
        assert caught.value.hint


def test_a_port_that_is_pulled_out_is_told_and_opened_again_when_it_is_back() -> None:
    with NullModem(BAUDRATE) as cable:
        bus = open_bus(f"serial://{cable.ports[0]}")
        with pytest.raises(BusTimeout):
            bus.read(1, "input", 0, 2, replace(TIMING, timeout=0.05, retries=0))
    with pytest.raises(BusUnreachable, match="serial port"):
        bus.read(1, "input", 0, 2, TIMING)
    bus.close()


def test_two_programs_cannot_use_one_port() -> None:
    with NullModem(BAUDRATE) as cable:
        first, second = (open_bus(f"serial://{cable.ports[0]}") for _ in range(2))
        with pytest.raises(BusTimeout):
            first.read(1, "input", 0, 2, replace(TIMING, timeout=0.05, retries=0))
        with pytest.raises(BusUnreachable) as caught:
            second.read(1, "input", 0, 2, TIMING)
        assert "Another program" in caught.value.hint
        first.close()


def test_closing_from_another_thread_ends_a_wait() -> None:
    import threading

    with NullModem(BAUDRATE) as cable:
        bus = open_bus(f"serial://{cable.ports[0]}")
        errors: list[Exception] = []

        def wait() -> None:
            try:
                bus.read(1, "input", 0, 2, replace(TIMING, timeout=60.0, retries=9))
            except BusUnreachable as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not bus.counters.requests:
            pass
        bus.close()
        waiting.join(timeout=10)
        assert [str(error) for error in errors] == ["the line was closed while it was in use"]

"""The simulated TCP ports, spoken to with bare sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from heliograph import library
from heliograph.core.errors import UsageError
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.frames import Device, rtu, tcp
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server

NOON = datetime(2026, 3, 3, 5, tzinfo=UTC)
ASK = b"\x04\x00\x48\x00\x04"


def bank(*units: int) -> dict[int, Device]:
    map = library.load("eastron-sdm630", local=None).map
    return {unit: SimulatedMeter(map, clock=lambda: NOON, unit=unit, start_export_wh=unit * 1000) for unit in units}


def right(server: Server, unit: int, transaction: int = 1) -> bytes:
    pdu = server.devices[unit].answer(ASK) or b""
    return tcp(transaction, unit, pdu) if server.framing == "tcp" else rtu(unit, pdu)


def ask(server: Server, unit: int, transaction: int = 1) -> bytes:
    return tcp(transaction, unit, ASK) if server.framing == "tcp" else rtu(unit, ASK)


@contextmanager
def client(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        yield connection


def receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (more := connection.recv(size - len(received))):
        received += more
    return received


def silent(connection: socket.socket, server: Server, present: int) -> bool:
    """Whether nothing came before the answer to a later question, which is the end of any earlier answer."""
    connection.sendall(ask(server, present, 77))
    wanted = right(server, present, 77)
    return receive(connection, len(wanted)) == wanted


FRAMINGS = pytest.mark.parametrize("framing", ["tcp", "rtu"])


@FRAMINGS
def test_several_meters_answer_behind_one_port_on_several_connections(framing: Any) -> None:
    with Server(bank(1, 2, 247), framing=framing) as server, client(server) as one, client(server) as other:
        for unit in (1, 2, 247):
            for number, connection in enumerate((one, other)):
                connection.sendall(ask(server, unit, number))
                assert receive(connection, len(right(server, unit))) == right(server, unit, number)
        assert server.counts == {"requests": 6, "answers": 6}
        assert server.url == f"{'tcp' if framing == 'tcp' else 'rtu+tcp'}://127.0.0.1:{server.port}"


@FRAMINGS
def test_a_request_may_come_in_pieces_and_several_at_once(framing: Any) -> None:
    with Server(bank(1, 2), framing=framing) as server, client(server) as connection:
        request = ask(server, 1, 5)
        for at in range(len(request)):
            connection.sendall(request[at : at + 1])
        assert receive(connection, len(right(server, 1))) == right(server, 1, 5)
        connection.sendall(ask(server, 1, 6) + ask(server, 2, 7))
        both = right(server, 1, 6) + right(server, 2, 7)
        assert receive(connection, len(both)) == both


@FRAMINGS
def test_an_unknown_unit_is_silent(framing: Any) -> None:
    with Server(bank(1), framing=framing) as server, client(server) as connection:
        connection.sendall(ask(server, 9))
        assert silent(connection, server, 1)
        assert server.counts["unknown unit"] == 1


def test_over_tcp_an_unknown_unit_may_be_refused_as_a_gateway_does() -> None:
    with Server(bank(1), unknown="refuse") as server, client(server) as connection:
        connection.sendall(ask(server, 9, 3))
        assert receive(connection, 9) == tcp(3, 9, b"\x84\x0b")


def test_over_rtu_an_unknown_unit_is_silent_whatever_was_asked_for() -> None:
    with Server(bank(1), framing="rtu", unknown="refuse") as server, client(server) as connection:
        connection.sendall(ask(server, 9))
        assert silent(connection, server, 1)


def test_a_wrong_checksum_or_half_a_request_is_met_with_silence() -> None:
    with Server(bank(1), framing="rtu") as server, client(server) as connection:
        connection.sendall(ask(server, 1)[:-1] + b"\0")
        assert silent(connection, server, 1)
        connection.sendall(ask(server, 1)[:5])
        while server.counts["half a request"] == 0:  # the device gives up on the rest of it
            threading.Event().wait(0.01)
        assert silent(connection, server, 1)
        assert server.counts["bad checksum"] == 1


def test_a_write_of_several_registers_is_understood_and_refused() -> None:
    with Server(bank(1), framing="rtu") as server, client(server) as connection:
        connection.sendall(rtu(1, b"\x10\x00\x00\x00\x02\x04\x00\x00\x00\x00"))
        assert receive(connection, 5) == rtu(1, b"\x90\x01")


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\0\1\0\0\0\1\1", b"\0\1\0\0\xff\xff\1"])
def test_what_is_not_modbus_ends_the_connection(junk: bytes) -> None:
    with Server(bank(1)) as server, client(server) as connection:
        connection.sendall(junk)
        with contextlib.suppress(ConnectionResetError):  # where part of the junk was never read
            assert connection.recv(1) == b""
        assert server.counts["not modbus"] == 1


@FRAMINGS
def test_a_reset_cuts_the_connection_and_the_next_one_works(framing: Any) -> None:
    with Server(bank(1), framing=framing, faults=Faults(reset=1.0)) as server:
        with client(server) as connection:
            connection.sendall(ask(server, 1))
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        server.faults = Faults()
        with client(server) as connection:
            assert silent(connection, server, 1)
        assert server.counts["reset"] == 1


@FRAMINGS
def test_all_clients_can_be_cut_off_at_once(framing: Any) -> None:
    with Server(bank(1), framing=framing) as server, client(server) as one, client(server) as other:
        assert silent(one, server, 1) and silent(other, server, 1)
        server.drop_connections()
        for connection in (one, other):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


@FRAMINGS
def test_a_late_answer_comes_whole_and_before_the_next_one(framing: Any) -> None:
    """A day late, in a rehearsal in which a day takes no time."""
    late = Faults(late=1.0, late_by=(86_400, 86_400))
    with Server(bank(1, 2), framing=framing, faults=late, rate=8.64e6) as server, client(server) as connection:
        connection.sendall(ask(server, 1, 1) + ask(server, 2, 2))
        both = right(server, 1, 1) + right(server, 2, 2)
        assert receive(connection, len(both)) == both
        assert server.counts["late"] == 2


def test_closing_does_not_wait_for_a_late_answer_or_for_clients() -> None:
    server = Server(bank(1), faults=Faults(late=1.0, late_by=(3600, 3600))).start()
    with client(server) as waiting, client(server) as idle:
        waiting.sendall(ask(server, 1))
        while server.counts["late"] == 0:
            threading.Event().wait(0.01)
        server.close()
        assert idle.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if thread.name == f"rehearsal-{server.url}"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=5)


def test_a_meter_may_be_swapped_or_taken_away_while_the_port_is_open() -> None:
    devices = bank(1, 2)
    with Server(devices) as server, client(server) as connection:
        before = right(server, 1)
        devices[1] = devices[2]
        connection.sendall(ask(server, 1))
        after = receive(connection, len(before))
        assert after == right(server, 1) != before
        del devices[1]
        connection.sendall(ask(server, 1))
        assert silent(connection, server, 2)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_listened_on_is_told(host: str, port: int) -> None:
    with pytest.raises(UsageError, match="cannot listen on") as error:
        Server(bank(1), host=host, port=port)
    assert error.value.hint


def test_a_port_that_is_taken_is_told() -> None:
    with Server(bank(1)) as server, pytest.raises(UsageError, match="in use"):
        Server(bank(1), port=server.port)


@FRAMINGS
def test_a_device_with_one_client_turns_others_away_until_that_one_leaves(framing: Any) -> None:
    with Server(bank(1), framing=framing, clients=1) as server, client(server) as one:
        one.sendall(ask(server, 1))
        assert receive(one, len(right(server, 1))) == right(server, 1)
        with client(server) as other, contextlib.suppress(ConnectionError):
            assert other.recv(1) == b"", "its connection is ended"
        assert server.counts["turned away"] == 1
        one.sendall(ask(server, 1, 2))
        assert receive(one, len(right(server, 1))) == right(server, 1, 2)


def test_a_second_client_may_also_be_left_without_an_answer() -> None:
    with Server(bank(1), clients=1, beyond="starve") as server, client(server) as one, client(server) as other:
        one.sendall(ask(server, 1))
        assert receive(one, len(right(server, 1))) == right(server, 1)
        other.settimeout(0.05)
        other.sendall(ask(server, 1))
        with pytest.raises(TimeoutError):
            other.recv(1)

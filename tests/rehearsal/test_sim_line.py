"""The simulated serial line: in virtual time to the character, and for real on a pseudo-terminal."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from heliograph import library
from heliograph.core.errors import UsageError
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.frames import Device, rtu, rtu_parts
from heliograph.rehearsal.line import Line, OtherMaster, Parity, Wire, received
from heliograph.rehearsal.meter import SimulatedMeter

NOON = datetime(2026, 3, 3, 5, tzinfo=UTC)
CHARACTER = 10 / 9600
GAP = 3.5 * CHARACTER
TURNAROUND = 0.010
ASK_80 = b"\x04\x00\x00\x00\x50"
ASK_2 = b"\x04\x00\x48\x00\x02"


def bank(*units: int) -> dict[int, Device]:
    map = library.load("eastron-sdm630", local=None).map
    return {unit: SimulatedMeter(map, clock=lambda: NOON, unit=unit, seed=unit) for unit in units or (1,)}


def right(devices: Mapping[int, Device], unit: int, request: bytes) -> bytes:
    return rtu(unit, devices[unit].answer(request) or b"")


def listen(wire: Wire) -> list[tuple[float, int]]:
    """All characters to come, each with the moment it is complete."""
    heard: list[tuple[float, int]] = []
    while (at := wire.next_at()) is not None:
        heard += [(at, byte) for byte in wire.read(at)]
    return heard


def text(heard: list[tuple[float, int]]) -> bytes:
    return bytes(byte for _, byte in heard)


# -- parity, and somebody else -------------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", range(256))
def test_one_character_is_taken_as_a_receiver_with_another_parity_takes_it(byte: int) -> None:
    odd = byte.bit_count() % 2
    data = bytes((byte,))
    assert received(data, "E", "E") == (data, 0)
    assert received(data, "E", "O") == (data, 1), "the bits are right, the parity is not"
    # The stop bit stands where even parity is expected: right by chance for half of the bytes.
    assert received(data, "N", "E") == (data, 1 - odd)
    # The parity bit stands where the stop bit is expected: 1 for an odd byte; a 0 begins another character.
    taken, marked = received(data, "E", "N")
    assert taken[:1] == data
    assert (len(taken), marked) == ((1, 0) if odd else (2, 1))


def test_a_frame_with_another_parity_is_no_frame() -> None:
    request = rtu(1, ASK_80)
    pairs: list[tuple[Parity, Parity]] = [("N", "E"), ("N", "O"), ("E", "N"), ("O", "N"), ("E", "O"), ("O", "E")]
    for sent, expected in pairs:
        _, marked = received(request, sent, expected)
        assert marked, f"{sent} taken as {expected}"


@pytest.mark.parametrize(
    ("master", "devices", "forgiving", "answered"),
    [
        ("N", "N", False, True),
        ("E", "E", False, True),
        ("N", "E", False, False),
        ("E", "N", False, False),
        ("O", "E", False, False),
        ("O", "E", True, True),  # the bits are the same, and nobody looks at the parity
        ("N", "E", True, False),
    ],
)
def test_a_device_answers_a_master_with_its_own_parity(
    master: Parity, devices: Parity, forgiving: bool, answered: bool
) -> None:
    wire = Wire(bank(1), parity=devices, forgiving=forgiving)
    wire.set_master(9600, 10 if master == "N" else 11, master)
    wire.write(rtu(1, ASK_2), 0.0)
    assert (text(listen(wire)) == right(wire.devices, 1, ASK_2)) == answered


def test_another_master_is_heard_with_what_it_gets_for_an_answer() -> None:
    other = OtherMaster(rtu(1, ASK_2), every=1.0, first=0.5)
    wire = Wire(bank(1), other=other)
    wire.read(0.0)
    heard = bytearray()
    for moment in range(30):
        heard += wire.read(moment / 10)
    answer = right(wire.devices, 1, ASK_2)
    assert bytes(heard) == (other.request + answer) * 3
    assert wire.counts["other master"] == 3


def test_questions_of_two_masters_at_once_spoil_each_other() -> None:
    wire = Wire(bank(1), other=OtherMaster(rtu(1, ASK_2), every=10.0, first=0.002))
    wire.write(rtu(1, ASK_80), 0.0)
    heard = bytearray()
    for moment in range(100):
        heard += wire.read(moment / 100)
    assert right(wire.devices, 1, ASK_80) not in bytes(heard)
    assert wire.counts["collision"]


# -- virtual time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baud", "bits", "character", "gap"),
    [
        (9600, 10, 10 / 9600, 35 / 9600),
        (9600, 11, 11 / 9600, 38.5 / 9600),
        (19200, 10, 10 / 19200, 35 / 19200),
        (38400, 10, 10 / 38400, 0.00175),  # fixed above 19200 baud (Modbus over serial line 1.02, 2.5.1.1)
    ],
)
def test_an_answer_takes_the_time_of_its_characters_and_silences(
    baud: int, bits: int, character: float, gap: float
) -> None:
    wire = Wire(bank(), baud=baud, bits=bits, turnaround=TURNAROUND)
    wire.write(rtu(1, ASK_80), 100.0)
    heard = listen(wire)
    first = 100.0 + 8 * character + gap + TURNAROUND + character
    assert heard[0][0] == pytest.approx(first)
    assert heard[-1][0] == pytest.approx(first + 164 * character)
    assert text(heard) == right(wire.devices, 1, ASK_80)


def test_characters_arrive_one_by_one_and_not_before_their_time() -> None:
    wire = Wire(bank())
    wire.write(rtu(1, ASK_2), 0.0)
    start = 8 * CHARACTER + GAP + TURNAROUND
    assert wire.read(start + 0.99 * CHARACTER) == b""
    assert len(wire.read(start + 1.01 * CHARACTER)) == 1
    assert len(wire.read(start + 4.01 * CHARACTER)) == 3
    assert len(wire.read(1.0)) == 5


def test_a_request_is_over_only_after_its_silence() -> None:
    wire = Wire(bank())
    wire.write(rtu(1, ASK_2), 0.0)
    wire.read(8 * CHARACTER + 0.9 * GAP)
    assert wire.counts["requests"] == 0
    wire.read(8 * CHARACTER + 1.01 * GAP)
    assert wire.counts["requests"] == 1


def test_a_request_in_pieces_is_one_request_and_two_in_a_row_are_none() -> None:
    wire = Wire(bank())
    request = rtu(1, ASK_2)
    wire.write(request[:3], 0.0)
    wire.write(request[3:], 3 * CHARACTER + 0.5 * GAP)
    assert text(listen(wire)) == right(wire.devices, 1, ASK_2)
    wire.write(request, 1.0)
    wire.write(request, 1.0)
    assert listen(wire) == []
    assert wire.counts["bad checksum"] == 1


@pytest.mark.parametrize(
    ("strict", "pause", "answered"), [(True, 3.4, False), (True, 3.6, True), (False, 0.1, True), (False, 3.6, True)]
)
def test_a_strict_device_ignores_a_request_that_follows_within_three_and_a_half_characters(
    strict: bool, pause: float, answered: bool
) -> None:
    wire = Wire(bank(), strict_silence=strict)
    wire.write(rtu(1, ASK_2), 0.0)
    end = listen(wire)[-1][0]
    wire.write(rtu(1, ASK_2), end + pause * CHARACTER)
    assert bool(listen(wire)) == answered
    assert wire.counts["too early"] == (not answered)
    wire.write(rtu(1, ASK_2), end + 1.0)
    assert listen(wire), "it hears again after a silence"


def test_a_strict_device_also_wants_silence_after_a_request_to_somebody_else() -> None:
    wire = Wire(bank(1), strict_silence=True)
    wire.write(rtu(9, ASK_2), 0.0)
    assert listen(wire) == []
    wire.write(rtu(1, ASK_2), 8 * CHARACTER + GAP + 0.0001)
    assert listen(wire)


def test_units_that_are_not_there_wrong_checksums_and_broadcasts_are_met_with_silence() -> None:
    wire = Wire(bank(1))
    for number, frame in enumerate((rtu(9, ASK_2), rtu(1, ASK_2)[:-1] + b"\0", rtu(0, ASK_2), b"\x01", b"x" * 600)):
        wire.write(frame, float(number))
        assert listen(wire) == []
    assert wire.counts == {"unknown unit": 2, "bad checksum": 3}


def test_several_meters_share_the_line() -> None:
    devices = bank(1, 2, 3)
    wire = Wire(devices)
    for unit in devices:
        wire.write(rtu(unit, ASK_2), float(unit))
        assert text(listen(wire)) == right(devices, unit, ASK_2)


def test_at_another_speed_the_master_hears_garbage() -> None:
    wire = Wire(bank(1), seed=4)
    wire.set_master(19200, 10)
    wire.write(rtu(1, ASK_2), 0.0)
    heard = text(listen(wire))
    assert heard and rtu_parts(heard) is None
    assert wire.counts == {"wrong baud": 1}
    wire.set_master(9600, 10)
    wire.write(rtu(1, ASK_2), 9.0)
    assert text(listen(wire)) == right(wire.devices, 1, ASK_2)


def test_an_unknown_speed_counts_as_wrong() -> None:
    wire = Wire(bank(1))
    wire.set_master(0, 10)
    wire.write(rtu(1, ASK_2), 0.0)
    listen(wire)
    assert wire.counts == {"wrong baud": 1}


def test_with_an_echo_the_master_hears_itself_at_wire_speed_before_the_answer() -> None:
    wire = Wire(bank(1), echo=True)
    wire.write(rtu(1, ASK_2), 0.0)
    heard = listen(wire)
    assert text(heard) == rtu(1, ASK_2) + right(wire.devices, 1, ASK_2)
    assert heard[7][0] == pytest.approx(8 * CHARACTER)


def test_a_late_answer_comes_within_its_range_and_holds_up_the_next_one() -> None:
    wire = Wire(bank(1), faults=Faults(late=1.0, late_by=(0.6, 0.6)))
    wire.write(rtu(1, ASK_2), 0.0)
    usual = 8 * CHARACTER + GAP + TURNAROUND
    assert wire.read(0.55) == b""
    wire.mischief.faults = Faults()
    wire.write(rtu(1, ASK_80), 0.55)  # the master has given up and asks something else
    heard = listen(wire)
    late, next_one = right(wire.devices, 1, ASK_2), right(wire.devices, 1, ASK_80)
    assert text(heard) == late + next_one
    assert heard[0][0] == pytest.approx(usual + 0.6 + CHARACTER)
    assert heard[len(late)][0] == pytest.approx(heard[len(late) - 1][0] + TURNAROUND + CHARACTER)


def test_who_speaks_into_an_answer_makes_garbage_of_both() -> None:
    wire = Wire(bank(1), seed=3)
    wire.write(rtu(1, ASK_80), 0.0)
    during = 8 * CHARACTER + GAP + TURNAROUND + 50 * CHARACTER
    before = wire.read(during)
    wire.write(rtu(1, ASK_2), during)
    heard = before + text(listen(wire))
    answer = right(wire.devices, 1, ASK_80)
    assert len(heard) == len(answer) and rtu_parts(heard) is None
    assert heard[:50] == answer[:50] and heard[60:] == answer[60:]
    assert wire.counts == {"requests": 1, "answers": 1, "collision": 1}


def test_two_devices_that_answer_at_once_garble_each_other() -> None:
    wire = Wire(bank(1, 2), faults=Faults(late=1.0, late_by=(0.5, 0.5)), seed=3)
    wire.write(rtu(1, ASK_80), 0.0)
    wire.read(0.4)
    wire.mischief.faults = Faults()
    wire.write(rtu(2, ASK_80), 0.49)
    heard = text(listen(wire))
    assert wire.counts["collision"] == 1
    assert right(wire.devices, 1, ASK_80) not in heard
    assert right(wire.devices, 2, ASK_80) not in heard


def test_a_doubled_answer_is_repeated_after_a_silence() -> None:
    wire = Wire(bank(1), faults=Faults(doubled=1.0))
    wire.write(rtu(1, ASK_2), 0.0)
    heard = listen(wire)
    assert text(heard) == 2 * right(wire.devices, 1, ASK_2)
    assert heard[9][0] - heard[8][0] == pytest.approx(GAP + CHARACTER)


def test_characters_close_together_are_handed_over_together_but_the_last_is_not_kept_back() -> None:
    wire = Wire(bank(1))
    wire.write(rtu(1, ASK_80), 0.0)
    wire.read(wire.next_at() or 0.0)
    moments = []
    while (at := wire.next_at(0.002)) is not None:
        moments.append(at)
        assert 1 <= len(wire.read(at)) <= 2
    assert len(moments) == 83
    assert moments[-1] == pytest.approx(8 * CHARACTER + GAP + TURNAROUND + 165 * CHARACTER)


# -- a pseudo-terminal ---------------------------------------------------------------------------------------------


@contextmanager
def port(path: Path, baud: int = termios.B9600, stopbits: int = 1) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(descriptor)
        settings = termios.tcgetattr(descriptor)
        settings[4] = settings[5] = baud
        settings[2] = settings[2] | termios.CSTOPB if stopbits == 2 else settings[2] & ~termios.CSTOPB
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, settings)
        yield descriptor
    finally:
        os.close(descriptor)


def exchange(descriptor: int, request: bytes, size: int) -> tuple[bytes, float]:
    """Up to `size` bytes of the answer, and how long they took; 3 s at most."""
    started = time.monotonic()
    os.write(descriptor, request)
    received = b""
    while len(received) < size and select.select([descriptor], [], [], 3)[0]:
        received += os.read(descriptor, size - len(received))
    return received, time.monotonic() - started


@pytest.mark.parametrize(
    ("baud", "flag", "stopbits", "bits"),
    [(9600, termios.B9600, 1, 10), (19200, termios.B19200, 2, 11), (115200, termios.B115200, 1, 10)],
)
def test_on_a_pseudo_terminal_an_answer_takes_its_wire_time(baud: int, flag: int, stopbits: int, bits: int) -> None:
    wire = Wire(bank(), baud=baud, turnaround=0.002)
    gap = 3.5 * bits / baud if baud <= 19200 else 0.00175
    expected = 173 * bits / baud + gap + 0.002
    with Line(wire) as line, port(line.path, flag, stopbits) as master:
        late: list[float] = []
        while len(late) < 200 and (len(late) < 3 or sorted(late)[2] > 0.001):  # a busy computer may need many more
            answer, took = exchange(master, rtu(1, ASK_80), 165)
            assert answer == right(wire.devices, 1, ASK_80)
            late.append(took - expected)
    assert min(late) > -0.0005, "never early"
    assert sorted(late)[2] < 0.001, f"{baud} baud: {[round(1000 * extra, 2) for extra in late]} ms late"


def test_a_master_at_another_speed_is_noticed_by_its_settings() -> None:
    with Line(Wire(bank())) as line:
        with port(line.path, termios.B38400) as master:
            answer, _ = exchange(master, rtu(1, ASK_2), 4)
            assert answer and answer not in right(line.wire.devices, 1, ASK_2)
        with port(line.path, termios.B9600) as master:
            assert exchange(master, rtu(1, ASK_2), 9)[0] == right(line.wire.devices, 1, ASK_2)
        assert line.counts == {"wrong baud": 1, "requests": 1, "answers": 1}


def test_a_rehearsal_may_run_faster_than_the_wire() -> None:
    with Line(Wire(bank(), baud=1200), rate=1000) as line, port(line.path, termios.B1200) as master:
        answer, took = exchange(master, rtu(1, ASK_80), 165)
    assert answer == right(line.wire.devices, 1, ASK_80)
    assert took < 1.4, "173 characters take 1.44 s at 1200 baud"


def test_faults_of_a_line_are_switched_while_it_runs() -> None:
    with Line(Wire(bank()), rate=50) as line, port(line.path) as master:
        line.faults = Faults(busy=1.0)
        assert exchange(master, rtu(1, ASK_2), 5)[0] == rtu(1, b"\x84\x06")
        line.faults = Faults()
        assert exchange(master, rtu(1, ASK_2), 9)[0] == right(line.wire.devices, 1, ASK_2)
        assert line.faults == Faults()


def test_a_link_gives_the_port_a_name_that_stays_and_goes_with_the_line(tmp_path: Path) -> None:
    link = tmp_path / "ttyMeter"
    link.symlink_to("/dev/null")  # of an earlier rehearsal
    with Line(Wire(bank()), link=link, rate=50) as line:
        assert link.readlink() == line.path
        assert line.url == f"serial://{link}?baudrate=9600&parity=N&stopbits=1"
        with port(link) as master:
            assert exchange(master, rtu(1, ASK_2), 9)[0]
    assert not link.is_symlink()


@pytest.mark.parametrize("where", ["taken", "absent/ttyMeter"])
def test_a_link_that_cannot_be_made_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "taken").write_text("something else")
    with pytest.raises(UsageError, match="cannot make") as error:
        Line(Wire(bank()), link=tmp_path / where)
    assert error.value.hint
    assert (tmp_path / "taken").read_text() == "something else"


def test_a_line_whose_answers_nobody_reads_goes_on() -> None:
    """The kernel keeps a few thousand characters, then they are lost, as on a real port."""
    with Line(Wire(bank(), echo=True), rate=1_000_000) as line, port(line.path) as master:
        deadline = time.monotonic() + 10
        while not line.overruns and time.monotonic() < deadline:
            os.write(master, bytes(500))
        assert line.overruns
        termios.tcflush(master, termios.TCIOFLUSH)
        line.wire.echo = False
        answer = b""
        while rtu_parts(answer) is None and time.monotonic() < deadline:  # what is left of the echo comes first
            answer = exchange(master, rtu(1, ASK_2), 9)[0]
        assert answer == right(line.wire.devices, 1, ASK_2)

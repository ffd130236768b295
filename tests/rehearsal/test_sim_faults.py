"""Each fault is what its name says, as often as was asked for, and the same again for the same seed."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from heliograph import library
from heliograph.core.errors import UsageError
from heliograph.rehearsal.faults import KINDS, Answer, Faults, Mischief
from heliograph.rehearsal.frames import Device, Framing, crc, rtu, rtu_parts, rtu_request_length, tcp
from heliograph.rehearsal.meter import SimulatedMeter

NOON = datetime(2026, 3, 3, 5, tzinfo=UTC)
REQUEST = b"\x04\x00\x34\x00\x18"


def devices() -> dict[int, Device]:
    map = library.load("eastron-sdm630", local=None).map
    return {unit: SimulatedMeter(map, clock=lambda: NOON, unit=unit, seed=unit) for unit in (1, 2)}


def tcp7(unit: int, pdu: bytes) -> bytes:
    return tcp(7, unit, pdu)


def ask(mischief: Mischief, bank: Mapping[int, Device], framing: Framing = "rtu", request: bytes = REQUEST) -> Answer:
    answer = mischief.respond(bank, 1, request, rtu if framing == "rtu" else tcp7, framing)
    assert answer is not None
    return answer


def one(kind: str, framing: Framing = "rtu", **more: Any) -> tuple[Answer, bytes, Mischief]:
    """An answer that certainly has the fault, the right frame, and who did it."""
    bank = devices()
    more[kind] = 1.0
    mischief = Mischief(Faults(**more), seed=11)
    right = ask(Mischief(), bank, framing).frames[0]
    return ask(mischief, bank, framing), right, mischief


def test_the_checksum_is_that_of_the_standard() -> None:
    # Modbus over serial line 1.02, appendix B: the CRC of 02 07 is 41 12 on the wire.
    assert crc(b"\x02\x07") == b"\x41\x12"
    assert rtu_parts(rtu(2, b"\x07")) == (2, b"\x07")
    assert rtu_parts(b"\x02\x07\x41\x13") is None
    assert rtu_parts(b"\x02\x07") is None


@pytest.mark.parametrize(
    ("start", "length"),
    [(b"", None), (b"\x01", None), (b"\x01\x04", 8), (b"\x01\x10\0\0\0\x02", None), (b"\x01\x10\0\0\0\x02\x04", 13)],
)
def test_the_length_of_a_request_is_known_from_its_start(start: bytes, length: int | None) -> None:
    assert rtu_request_length(start) == length


def test_without_faults_every_answer_is_right() -> None:
    bank, mischief = devices(), Mischief()
    right = rtu(1, bank[1].answer(REQUEST) or b"")
    assert {ask(mischief, bank) for _ in range(50)} == {Answer((right,))}
    assert mischief.counts == {"requests": 50, "answers": 50}


def test_a_unit_that_is_not_there_has_no_answer_and_no_fault() -> None:
    mischief = Mischief(Faults(crc=1.0))
    assert mischief.respond(devices(), 9, REQUEST, rtu, "rtu") is None
    assert mischief.counts == {"unknown unit": 1}


@pytest.mark.parametrize(("kind", "answer"), [("silence", Answer()), ("reset", Answer(reset=True))])
def test_silence_and_reset_send_nothing(kind: str, answer: Answer) -> None:
    assert one(kind)[0] == answer


def test_a_late_answer_is_the_right_one_within_the_range() -> None:
    answer, right, _ = one("late", late_by=(0.6, 0.9))
    assert answer.frames == (right,)
    assert 0.6 <= answer.late <= 0.9


def test_a_doubled_answer_is_the_right_one_twice() -> None:
    answer, right, _ = one("doubled")
    assert answer.frames == (right, right)


def test_a_foreign_answer_names_a_unit_that_was_not_asked() -> None:
    answer, right, _ = one("foreign")
    parts, own = rtu_parts(answer.frames[0]), rtu_parts(right)
    assert parts is not None and own is not None
    assert parts[0] == 2
    assert parts[1] == own[1]


def test_a_truncated_answer_is_the_beginning_of_the_right_one() -> None:
    answer, right, _ = one("truncated")
    assert right.startswith(answer.frames[0])
    assert 0 < len(answer.frames[0]) < len(right)


def test_a_crc_error_is_one_bit() -> None:
    answer, right, _ = one("crc")
    assert rtu_parts(answer.frames[0]) is None
    turned = int.from_bytes(answer.frames[0], "big") ^ int.from_bytes(right, "big")
    assert turned.bit_count() == 1


def test_over_tcp_a_damaged_frame_is_no_modbus_header() -> None:
    answer, right, _ = one("crc", "tcp")
    assert struct.unpack(">HHHB", answer.frames[0][:7])[1] != 0
    assert answer.frames[0][7:] == right[7:]


def test_noise_comes_before_the_right_answer() -> None:
    answer, right, _ = one("noise")
    assert answer.frames[0].endswith(right)
    assert 1 <= len(answer.frames[0]) - len(right) <= 6


def test_busy_is_exception_6() -> None:
    assert one("busy")[0].frames == (rtu(1, b"\x84\x06"),)


def test_wrong_content_has_everything_right_but_the_words() -> None:
    answer, right, _ = one("wrong")
    parts, own = rtu_parts(answer.frames[0]), rtu_parts(right)
    assert parts is not None and own is not None
    assert parts[0] == own[0]
    assert parts[1][:2] == own[1][:2]
    assert len(parts[1]) == len(own[1])
    assert parts[1] != own[1]


def test_wrong_content_is_found_even_where_there_is_nothing_else_to_read() -> None:
    class OneRegister:
        def answer(self, request: bytes) -> bytes | None:
            return b"\x04\x02\x12\x34" if request[1:3] == b"\0\0" else bytes((request[0] | 0x80, 2))

    mischief = Mischief(Faults(wrong=1.0))
    answer = mischief.respond({1: OneRegister()}, 1, b"\x04\0\0\0\x01", rtu, "rtu")
    assert answer is not None
    assert answer.frames == (rtu(1, b"\x04\x02\xed\xcb"),)


def test_a_device_asleep_gives_no_occasion_for_faults() -> None:
    class Asleep:
        def answer(self, request: bytes) -> bytes | None:  # noqa: ARG002  the protocol's name
            return None

    mischief = Mischief(Faults(crc=1.0))
    assert mischief.respond({1: Asleep()}, 1, REQUEST, rtu, "rtu") == Answer()
    assert mischief.counts == {"requests": 1, "asleep": 1}


def test_faults_are_as_frequent_as_asked_for_counted_and_repeatable() -> None:
    share = Faults(silence=0.1, late=0.1, doubled=0.05, foreign=0.05, truncated=0.1, crc=0.1, noise=0.1, wrong=0.1)
    bank = devices()
    runs = []
    for _ in range(2):
        mischief = Mischief(share, seed=20260314)
        runs.append([ask(mischief, bank) for _ in range(3000)])
    assert runs[0] == runs[1]
    for kind, chance in share.chances().items():
        # Four standard deviations of a binomial count; the seed is fixed, so this cannot flicker.
        assert abs(mischief.counts[kind] - 3000 * chance) <= 4 * (3000 * chance * (1 - chance)) ** 0.5, kind
    assert mischief.counts["requests"] == 3000
    intact = 3000 - sum(mischief.counts[kind] for kind in ("silence", "foreign", "truncated", "crc", "wrong"))
    assert mischief.counts["answers"] == intact


def test_faults_can_be_switched_while_running() -> None:
    bank, mischief = devices(), Mischief()
    assert ask(mischief, bank).frames
    mischief.faults = Faults(silence=1.0)
    assert not ask(mischief, bank).frames
    mischief.faults = Faults()
    assert ask(mischief, bank).frames


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"late": 1.5}, "late: 1.5 is not a probability"),
        ({"crc": -0.1}, "crc: -0.1 is not a probability"),
        ({"late": 0.6, "crc": 0.6}, "add up to 1.2"),
        ({"late": 0.1, "late_by": (0.9, 0.5)}, "between 0.9 and 0.5 s"),
    ],
)
def test_impossible_faults_are_declined_with_the_reason(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        Faults(**given)
    assert error.value.hint


def test_every_fault_is_described() -> None:
    assert set(Faults().chances()) == set(KINDS)

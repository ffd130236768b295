"""What follows from what was observed, case by case."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from heliograph import library
from heliograph.core.diagnosis import (
    Device,
    Elsewhere,
    Gateway,
    Holder,
    Mark,
    Observations,
    Port,
    Try,
    crc,
    diagnose,
    good_timeout,
    histogram,
    noisy,
    percentile,
    requests_in,
    usual_settings,
    with_,
)
from heliograph.core.line import parse
from heliograph.core.registers import Timing

SEED = int(os.environ.get("HELIOGRAPH_SEED", "20261126"))
URL = "serial:///dev/ttyUSB0?baudrate=9600&parity=N&stopbits=1"
LINE = parse(URL)
MAP = library.load("eastron-sdm630", local=None).map
SILENT, ANSWERED = Try(1, 2, "silent"), Try(1, 2, "answered", 0.02)


def seen(**what: object) -> Observations:
    base = {"url": URL, "line": LINE, "unit": 1, "timing": Timing(), "map": MAP}
    return Observations(**(base | what))  # type: ignore[arg-type]  # each case names its own fields


def series(outcomes: str, after: float = 0.02) -> tuple[Try, ...]:
    """One letter a question: a answered, g garbled, s silent."""
    kinds = {"a": Try(1, 2, "answered", after), "g": Try(1, 2, "garbled"), "s": Try(1, 2, "silent")}
    return tuple(kinds[letter] for letter in outcomes)


TCP = parse("tcp://192.168.1.50:502")
FASTER = Elsewhere(parse(URL.replace("9600", "19200")), ANSWERED)
EVEN = Elsewhere(parse(URL.replace("parity=N", "parity=E")), ANSWERED)
THERE = Port("/dev/ttyUSB0", exists=True)


@pytest.mark.parametrize(
    ("observed", "codes"),
    [
        (seen(knocks=(ANSWERED,), series=series("a" * 40)), "ok"),
        (seen(port=Port("/dev/ttyUSB0", exists=False)), "no-port"),
        (seen(port=Port("/dev/ttyUSB0", exists=True, allowed=False, group="dialout", user="pi")), "no-permission"),
        (seen(port=Port("/dev/ttyUSB0", exists=True, holders=(Holder(7, "minicom"),))), "in-use"),
        (seen(gateway=Gateway({"requests": 9, "answers": 9}, ())), "ok"),
        (seen(gateway=Gateway({"requests": 9, "answers": 3, "timeouts": 6}, ())), "gateway"),
        (seen(gateway=Gateway({"requests": 9, "answers": 9}, ("roof: is not a meter of that map",))), "gateway"),
        (seen(knocks=(SILENT,) * 3), "silence"),
        (seen(knocks=(Try(1, 2, "garbled"),) * 3), "garbage"),
        (seen(knocks=(SILENT,) * 3, elsewhere=(FASTER,)), "baud"),
        (seen(knocks=(SILENT,) * 3, elsewhere=(EVEN,)), "parity"),
        (seen(knocks=(SILENT,) * 3, units=(Try(2, 2, "answered"),)), "wrong-unit"),
        (seen(knocks=(SILENT,) * 3, units=(Try(2, 2, "answered"),), neighbours=(2,)), "silent-unit"),
        (seen(knocks=(SILENT,), units=(Try(2, 2, "answered"), Try(3, 2, "refused")), neighbours=(2,)), "wrong-unit"),
        (seen(knocks=(Try(1, 2, "echoed"),) * 3, echo_off=(ANSWERED,)), "echo"),
        (seen(knocks=(Try(1, 2, "unreachable", why="busy"),)), "in-use"),
        (seen(knocks=(Try(1, 2, "unreachable", why="forbidden"),)), "no-permission"),
        (seen(knocks=(Try(1, 2, "unreachable", said="serial port /dev/ttyUSB0: I/O error"),)), "unreachable"),
        (seen(line=TCP, knocks=(Try(1, 2, "unreachable", why="refused"),)), "refused"),
        (seen(line=TCP, knocks=(Try(1, 2, "unreachable", said="no route"),)), "unreachable"),
        (seen(line=TCP, knocks=(Try(1, 2, "closed"),)), "another-client"),
        (seen(line=TCP, knocks=(SILENT,) * 3), "another-client"),
        (seen(line=TCP, knocks=(Try(1, 2, "nobody"),) * 3), "silence"),
        (seen(knocks=(ANSWERED,), foreign=(b"\x09\x04\x00\x00\x00\x02xx",)), "another-master"),
        (seen(knocks=(ANSWERED,), series=series("ag" * 20)), "noise"),
        (seen(knocks=(ANSWERED,), series=series("a" * 40, after=0.7)), "slow"),
        (seen(knocks=(ANSWERED,), marks=(Mark(0xFC02, 32, (112, 121)),)), "wrong-map"),
        (seen(knocks=(ANSWERED,), blocks=4, refused=("input 0x0000+40: exception 2",) * 4), "wrong-map"),
        # several at once: what has to be put right first comes first
        (seen(knocks=(SILENT,) * 3, elsewhere=(Elsewhere(FASTER.line, Try(5, 2, "answered")),)), "baud wrong-unit"),
        (seen(knocks=(Try(1, 2, "echoed"),) * 3, echo_off=(SILENT,) * 3), "echo silence"),
        (
            seen(knocks=(ANSWERED,), series=series("a" * 40, after=0.7), marks=(Mark(0xFC02, 32, (112, 121)),)),
            "slow wrong-map",
        ),
        (
            seen(
                knocks=(ANSWERED,),
                port=Port("/dev/ttyUSB0", exists=True, by_id="/dev/serial/by-id/A", latency_ms=16, latency_file="x"),
            ),
            "ok latency-timer name-changes",
        ),
        # what must not be named: an identity register that is not there proves nothing unless the map requires it
        (seen(knocks=(ANSWERED,), marks=(Mark(0xFC02, None, (112, 121)),)), "ok"),
        (seen(knocks=(ANSWERED,), series=series("a" * 39 + "g")), "ok"),
        (seen(knocks=(ANSWERED,), port=Port("/dev/ttyS0", exists=True, latency_ms=1)), "ok"),
        (seen(port=THERE, knocks=(SILENT, ANSWERED)), "ok"),
    ],
)  # fmt: skip
def test_what_follows(observed: Observations, codes: str) -> None:
    found = diagnose(observed)
    assert [one.code for one in found] == codes.split()
    for one in found:
        assert one.sentence.endswith("."), one.sentence
        assert one.next or one.code == "ok", "a fault without a next step"


@pytest.mark.parametrize(
    ("line", "todo"),
    [
        ("python3 heliograph run --config config.toml", "systemctl stop heliograph"),
        ("python -m heliograph --config=config.toml run", "systemctl stop heliograph"),
        ("heliograph --config config.toml run", "systemctl stop heliograph"),
        ("python3 heliograph doctor serial:ttyUSB0", "kill 7"),
        ("heliograph scan ttyUSB0 --config run", "kill 7"),
        ("vi heliograph.py", "kill 7"),
    ],
)
def test_only_the_gateway_is_stopped_as_the_gateway(line: str, todo: str) -> None:
    (found,) = diagnose(seen(port=Port("/dev/ttyUSB0", exists=True, holders=(Holder(7, line),))))
    assert ("systemctl stop heliograph" in found.next) == ("systemctl" in todo) and todo in found.next


def test_one_question_is_one_and_several_are_several() -> None:
    (found,) = diagnose(seen(knocks=(ANSWERED,), foreign=(b"\x09\x04\x00\x00\x00\x02xx",)))
    assert found.sentence == "Somebody else asks on this line: 1 question to unit 9 was heard that is not ours."
    two = (b"\x09\x04\x00\x00\x00\x02xx", b"\x07\x04\x00\x00\x00\x02xx")
    (found,) = diagnose(seen(knocks=(ANSWERED,), foreign=two))
    assert found.sentence.endswith("2 questions to units 7, 9 were heard that are not ours.")


def test_a_device_that_sleeps_is_not_called_dead() -> None:
    sleeper = library.load("solis-string", local=None).map
    assert diagnose(seen(map=sleeper, dark=True, knocks=(SILENT,) * 3))[0].code == "night"
    assert diagnose(seen(map=sleeper, knocks=(SILENT,) * 3))[0].code == "silence"


def test_what_a_device_says_it_is_is_what_to_put() -> None:
    marks = (Mark(0xFC02, 32, (112, 121)),)
    (found,) = diagnose(seen(knocks=(ANSWERED,), marks=marks, devices=(Device(1, "eastron-sdm120"),)))
    assert found.next.startswith('Put map = "eastron-sdm120" into the [[meter]]')
    (found,) = diagnose(seen(knocks=(ANSWERED,), marks=marks, devices=(Device(1, None, ("abb-b23-b24",)),)))
    assert "abb-b23-b24" in found.next and "Compare the label" in found.next


# -- noise --------------------------------------------------------------------------------------------------------


def read_until_clear(dice: random.Random, share: float) -> bool | None:
    tries: list[Try] = []
    while len(tries) < 240:
        tries.append(Try(1, 2, "garbled" if dice.random() < share else "answered"))
        clean = all(one.outcome == "answered" for one in tries)
        if len(tries) >= 40 and (clean or noisy(tries) is not None):
            break
    return noisy(tries)


@pytest.mark.parametrize(("share", "told", "least"), [(0.0095, False, 0.999), (0.2, True, 0.995)])
def test_the_share_of_errors_decides_not_luck(share: float, told: bool, least: float) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    dice = random.Random(SEED)
    found = [read_until_clear(dice, share) for _ in range(2000)]
    assert sum((one is True) == told for one in found) / len(found) >= least


# -- frames -------------------------------------------------------------------------------------------------------


def frame(*content: int) -> bytes:
    return bytes(content) + crc(bytes(content))


def test_the_checksum_is_that_of_modbus() -> None:
    assert frame(1, 4, 0, 0x46, 0, 2) == bytes.fromhex("01 04 0046 0002 90 1e")


@pytest.mark.parametrize(
    ("heard", "found"),
    [
        ((frame(9, 4, 0, 0, 0, 2),), 1),
        ((frame(9, 3, 0, 0, 0, 2), frame(9, 3, 4, 1, 2, 3, 4), frame(7, 4, 0, 0, 0, 2)), 2),
        ((b"\x00\x17", frame(9, 6, 0, 1, 0, 2)), 1),
        ((frame(9, 4, 4, 1, 2, 3, 4),), 0),
        ((frame(9, 3, 8, *frame(7, 4, 0, 0, 0, 2)),), 0),  # what looks like a question is register words
        ((frame(9, 0x84, 2),), 0),
        ((frame(9, 4, 0, 0, 0, 2)[:-1] + b"\x00",), 0),
        ((frame(0, 4, 0, 0, 0, 2),), 0),
        ((frame(9, 4, 0, 0, 0x12, 2),), 0),
        ((b"",), 0),
    ],
)
def test_only_sound_questions_are_taken_for_questions(heard: Sequence[bytes], found: int) -> None:
    assert len(requests_in(b"".join(heard))) == found


def test_no_question_is_found_in_answers_or_noise() -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    dice = random.Random(SEED)
    found = 0
    for _ in range(2000):
        count = dice.randrange(2, 160, 2)
        answer = frame(dice.randrange(1, 248), 4, count, *dice.randbytes(count))
        found += len(requests_in(answer)) + len(requests_in(dice.randbytes(60)))
    assert found == 0


# -- figures ------------------------------------------------------------------------------------------------------


def test_a_histogram_holds_every_answer_once() -> None:
    times = sorted(random.Random(SEED).uniform(0.004, 1.9) for _ in range(300))
    classes = histogram(times)
    assert sum(count for _, _, count in classes) == 300
    assert classes[0][2] > 0 and classes[-1][1] > times[-1]
    assert all(math.isclose(high, other) for (_, high, _), (other, _, _) in pairwise(classes))


def test_percentiles_are_times_that_were_measured() -> None:
    times = [number / 100 for number in range(1, 101)]
    assert (percentile(times, 0.5), percentile(times, 0.95), percentile(times, 1.0)) == (0.5, 0.95, 1.0)
    assert percentile([0.3], 0.5) == 0.3


@pytest.mark.parametrize(("slowest", "proposed"), [(0.02, 0.1), (0.3, 0.5), (0.9, 1.4), (6.0, 9.0)])
def test_a_proposed_time_out_leaves_room(slowest: float, proposed: float) -> None:
    assert good_timeout([0.01, slowest]) == pytest.approx(proposed)
    assert diagnose(seen(timing=Timing(timeout=proposed), knocks=(Try(1, 2, "answered", slowest),)))[0].code == "ok"


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "serial:///dev/serial/by-id/usb-FTDI_A10?baudrate=19200&parity=E&stopbits=2&echo=1",
        "tcp://192.168.1.50:502",
        "rtu+tcp://[fd00::5]:23?echo=1",
    ],
)
def test_a_line_is_written_as_it_was_read(url: str) -> None:
    assert with_(parse(url)) == url
    assert parse(with_(parse(url))) == parse(url)


def test_all_usual_settings_are_tried_but_our_own_once_each_the_likely_ones_first() -> None:
    found = usual_settings(LINE)
    assert len(found) == len(set(found)) == 8 * 3 - 1
    assert LINE not in found
    assert [(one.baudrate, one.parity) for one in found[:3]] == [(19200, "N"), (9600, "E"), (19200, "E")]
    assert usual_settings(TCP) == ()

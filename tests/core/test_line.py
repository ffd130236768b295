from __future__ import annotations

import pytest

from heliograph.core.errors import ConfigError
from heliograph.core.line import Line, parse


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("serial:///dev/ttyUSB0", Line("serial", "/dev/ttyUSB0")),
        (
            "serial:///dev/serial/by-id/usb-FTDI_A10?baudrate=19200&parity=E&stopbits=1",
            Line("serial", "/dev/serial/by-id/usb-FTDI_A10", baudrate=19200, parity="E"),
        ),
        (
            "serial:///dev/ttyS0?parity=O&stopbits=2&echo=1",
            Line("serial", "/dev/ttyS0", parity="O", stopbits=2, echo=True),
        ),
        ("tcp://192.168.1.50", Line("tcp", "192.168.1.50")),
        ("tcp://meter.example:1502/", Line("tcp", "meter.example", port=1502)),
        ("tcp://[fe80::1]:503", Line("tcp", "fe80::1", port=503)),
        ("rtu+tcp://192.168.1.51:23", Line("rtu+tcp", "192.168.1.51", port=23)),
    ],
)
def test_an_address_says_where_and_how(url: str, line: Line) -> None:
    assert parse(url) == line


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/dev/ttyUSB0", "is not the address of a bus"),
        ("modbus://192.168.1.50", "is not the address of a bus"),
        ("serial://ttyUSB0", "names no port"),
        ("serial:///dev/ttyUSB0?baud=9600", "unknown line setting baud"),
        ("serial:///dev/ttyUSB0?baudrate=fast", "baudrate is not fast"),
        ("serial:///dev/ttyUSB0?parity=even", "parity is not even"),
        ("serial:///dev/ttyUSB0?bytesize=7", "bytesize is not 7"),
        ("serial:///dev/ttyUSB0?stopbits=", "stopbits is not empty"),
        ("tcp://:502", "names no host"),
        ("tcp://host:0", "names no host and port"),
        ("tcp://host:70000", "names no host and port"),
        ("tcp://user@host", "names no host"),
        ("tcp://host?baudrate=9600", "a network line has no baudrate"),
    ],
)
def test_a_wrong_address_is_told_with_the_next_step(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        parse(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "tcp://admin:hunter2pw@127.0.0.1:5999",
        "rtu+tcp://admin:hunter2pw@[::1]:5999?speed=1",
        "http://admin:hunter2pw@127.0.0.1",
        "admin:hunter2pw@127.0.0.1",
        "tcp://admin:a/b@hunter2pw@127.0.0.1",
    ],
)
def test_no_message_about_an_address_tells_a_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"\*\*\*@") as caught:
        parse(url)
    assert "hunter2pw" not in str(caught.value) + caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("options", "milliseconds"),
    [
        ("baudrate=9600", 1.0417),
        ("baudrate=9600&parity=E", 1.1458),
        ("baudrate=2400&stopbits=2", 4.5833),
        ("baudrate=115200", 0.0868),
    ],
)
def test_a_character_lasts_as_long_as_its_bits(options: str, milliseconds: float) -> None:
    assert parse(f"serial:///dev/x?{options}").character * 1000 == pytest.approx(milliseconds, abs=1e-4)


def test_nobody_knows_how_long_a_character_lasts_on_a_network() -> None:
    assert parse("rtu+tcp://host").character == 0

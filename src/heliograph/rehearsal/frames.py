"""Modbus as a device speaks it: our own framing, so that the product and its rehearsal do not share a mistake.

Sources: Modbus application protocol 1.1b3, Modbus over serial line 1.02, Modbus messaging on TCP/IP 1.0b.
"""

from __future__ import annotations

import struct
from typing import Literal, Protocol

Framing = Literal["tcp", "rtu"]

ILLEGAL_FUNCTION = 1
ILLEGAL_ADDRESS = 2
ILLEGAL_VALUE = 3
BUSY = 6
TARGET_SILENT = 11  # what a gateway says about a device behind it

HOLDING, INPUT = 3, 4
MOST_WORDS = 125

MBAP = struct.Struct(">HHHB")  # transaction, protocol (0), bytes that follow, unit


class Device(Protocol):
    """Anything that answers requests: a protocol data unit in, one out, or None for silence."""

    def answer(self, request: bytes) -> bytes | None: ...


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        rest = value
        for _ in range(8):
            rest = (rest >> 1) ^ (0xA001 if rest & 1 else 0)
        table.append(rest)
    return tuple(table)


_CRC = _crc_table()


def crc(data: bytes) -> bytes:
    """Low byte first, as it travels."""
    value = 0xFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC[(value ^ byte) & 0xFF]
    return value.to_bytes(2, "little")


def rtu(unit: int, pdu: bytes) -> bytes:
    head = bytes((unit,)) + pdu
    return head + crc(head)


def tcp(transaction: int, unit: int, pdu: bytes) -> bytes:
    return MBAP.pack(transaction, 0, len(pdu) + 1, unit) + pdu


def rtu_parts(frame: bytes) -> tuple[int, bytes] | None:
    """Unit and data unit, or None when the checksum is wrong; a device stays silent then."""
    if len(frame) < 4 or crc(frame[:-2]) != frame[-2:]:
        return None
    return frame[0], frame[1:-2]


def rtu_request_length(start: bytes) -> int | None:
    """How long the request that begins like this is, or None while that cannot be told."""
    if len(start) < 2:
        return None
    if start[1] in (15, 16):
        return 9 + start[6] if len(start) > 6 else None
    return 8


def refusal(request: bytes, code: int) -> bytes:
    return bytes((request[0] | 0x80, code))


def words_answer(function: int, words: tuple[int, ...]) -> bytes:
    return struct.pack(f">BB{len(words)}H", function, 2 * len(words), *words)

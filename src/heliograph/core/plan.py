"""Which requests read a set of registers in the least time on the wire.

Cost of one RTU read of N registers: 13 + 2N characters (8 for the request, 5 + 2N for the answer), two
silences of 3.5 characters, the device's turnaround and the pause it asks for (Modbus over serial line 1.02).
"""

from __future__ import annotations

from dataclasses import dataclass

from heliograph.core.registers import Function, Register


@dataclass(frozen=True, slots=True)
class Block:
    """One read request and the registers decoded from its answer, in address order."""

    function: Function
    address: int
    count: int
    registers: tuple[Register, ...]

    def __str__(self) -> str:
        return f"{self.function} 0x{self.address:04X}+{self.count}"

"""A SunSpec device that is not there: a template's registers laid out as a chain of models behind a marker.

It shares the templates with the gateway and nothing else: where a model begins is counted here by itself, so that a
mistake in looking for it shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from heliograph.core.errors import UsageError
from heliograph.core.registers import MeterMap, Register, Type

CONTENT: dict[int, int] = {
    **dict.fromkeys((101, 102, 103), 50),
    **dict.fromkeys((111, 112, 113), 60),
    **dict.fromkeys((201, 202, 203, 204), 105),
    **dict.fromkeys((211, 212, 213, 214), 124),
}
"""Registers of a model behind its number and length."""
INPUTS = 160
NOT_IMPLEMENTED: dict[Type, int] = {
    "u16": 0xFFFF, "enum16": 0xFFFF, "bitfield16": 0xFFFF, "s16": 0x8000, "sunssf": 0x8000,
    "u32": 0xFFFF_FFFF, "enum32": 0xFFFF_FFFF, "bitfield32": 0xFFFF_FFFF, "s32": 0x8000_0000,
    "float32": 0x7FC0_0000, "acc32": 0, "acc64": 0, "text": 0,
}  # fmt: skip
PLAIN: dict[int, Type] = {1: "u16", 2: "u32", 4: "u64"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How one device is built where SunSpec leaves it to its maker."""

    model: int | None = None
    """None: the one with the most registers of those that the template is for."""
    base: int | None = None
    """None: the first of the template's."""
    common_length: int = 66
    inputs: int = 2
    """Of a model 160 beside it; 0: it has none."""
    before: tuple[tuple[int, int], ...] = ()
    """Number and length of models between the common one and its own, which nobody knows."""


def laid_out(template: MeterMap, layout: Layout) -> tuple[MeterMap, dict[str, int]]:
    """The device's own map, and what its marker, its headers and its empty registers hold."""
    spec = template.sunspec
    if spec is None or not spec.models:
        raise UsageError(f"{template.name} names no SunSpec models", hint="See: heliograph map list sunspec")
    most = max(spec.models, key=lambda model: sum(model in one.models for one in template.registers))
    number = most if layout.model is None else layout.model
    if number not in spec.models:
        known = ", ".join(f"{one}" for one in spec.models)
        raise UsageError(f"{template.name} is not for model {number}", hint=f"It is for: {known}")
    base = spec.bases[0] if layout.base is None else layout.base
    registers: list[Register] = []
    held: dict[str, int] = {}

    def put(address: int, type: Type, value: int) -> None:
        name = f"sunspec {address}"
        registers.append(Register(quantity=name, type=type, address=address))
        held[name] = value

    put(base, "u32", int.from_bytes(b"SunS", "big"))
    at = base + 2
    inputs = layout.inputs if INPUTS in (*spec.beside, number) else 0
    chain = [(1, layout.common_length), *layout.before]
    chain += [(number, CONTENT[number])] if number != INPUTS else []
    chain += [(INPUTS, 8 + 20 * inputs)] if inputs else []
    for model, length in chain:
        put(at, "u16", model)
        put(at + 1, "u16", length)
        taken: set[int] = set()
        for register in template.registers:
            if model in register.models:
                for one in _groups(register, at, inputs):
                    if (one.address or 0) < at + 2 + length:
                        registers.append(one)
                        taken |= _span(one)
        for register in template.registers:
            # What this model has no number for, though its sisters do, stands there all the same, and says so.
            if model in spec.models and set(register.models) & set(spec.models) and model not in register.models:
                one = replace(register, model=None, address=at + (register.address or 0))
                taken |= _span(one)
                put(one.address or 0, PLAIN[len(_span(one))], NOT_IMPLEMENTED[register.type])
        for address in range(at + 2, at + 2 + length):
            if address not in taken:
                put(address, "u16", 0x8000 if address - 1 in taken and address + 1 in taken else 0xFFFF)
        at += 2 + length
    put(at, "u16", 0xFFFF)
    put(at + 1, "u16", 0)
    if inputs:
        held["module_count"] = inputs
    own = replace(template, sunspec=None, registers=tuple(registers), vectors=(), max_words=125, fallback_words=())
    return own, held


def _groups(register: Register, at: int, inputs: int) -> list[Register]:
    scale = None if register.scale_register is None else at + register.scale_register
    one = replace(register, model=None, repeat=None, address=at + (register.address or 0), scale_register=scale)
    if register.repeat is None:
        return [one]
    return [
        replace(
            one,
            quantity=register.quantity.replace("1", str(number + 1), 1),
            address=(one.address or 0) + number * register.repeat,
        )
        for number in range(inputs)
    ]


def _span(register: Register) -> set[int]:
    words = {"u32": 2, "s32": 2, "acc32": 2, "float32": 2, "enum32": 2, "bitfield32": 2, "acc64": 4, "float64": 4}
    first = register.address or 0
    return set(range(first, first + (register.words or words.get(register.type, 1))))


FINEST = {"voltage": -1, "current": -2, "frequency": -2, "power_factor": -2, "temperature": -1}
FINEST |= {"active_power": 0, "apparent_power": 0, "reactive_power": 0, "power": 0}


def exponent(quantity: str, rated_kw: float) -> int:
    """Of a scale factor: the finest under which one and a half times the device's rating fits into 15 bits."""
    name = quantity.removeprefix("mppt_").removesuffix("_sf").removeprefix("dc_")
    watts = rated_kw * 1000
    largest = {"voltage": 1500, "current": watts / 230, "frequency": 65, "power_factor": 100, "temperature": 200}
    chosen = FINEST.get(name, 0)
    while name in FINEST and Fraction(largest.get(name, watts)) * 3 / 2 / Fraction(10) ** chosen > 0x7FFF:
        chosen += 1
    return chosen


def input_value(quantity: str, number: int, inputs: int, power_w: float, counted_wh: int) -> float | int | None:
    """What an input shows: its share of the whole, at a voltage that hardly moves while there is light."""
    volts = 600.0 + 10 * number if power_w > 0 else 0.0
    watts = power_w / inputs
    return {
        "dc_power": watts,
        "dc_voltage": volts,
        "dc_current": watts / volts if volts else 0.0,
        "dc_energy": counted_wh // inputs,
        "temperature": 35.0,
        "status": 4 if power_w > 0 else 2,
        "event": 0,
    }.get(quantity)

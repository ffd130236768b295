"""SunSpec: which models a device says it has, and a template's registers at the addresses where they were found.

A device begins with the marker "SunS" at a known address. Behind it stand its models one after the other, each with
its number and its length, up to the number 0xFFFF (SunSpec Device Information Model Specification 1.1). Everything
here is decided from words that somebody else has read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from heliograph.core.quantity import ENERGY_UNITS, UNITS, find
from heliograph.core.registers import Identity, Maker, Match, MeterMap, Register

MARKER = 0x53756E53
END = 0xFFFF
HEADER = 2
"""Registers in front of a model's content: its number and its length."""
COMMON = 1
MODULES = 160
MODULE_WORDS = 20
MODULES_FIXED = 8
LENGTHS: dict[int, tuple[int, ...]] = {
    COMMON: (66, 65),  # 65 without the last pad: all that follows then stands one address lower
    **dict.fromkeys((101, 102, 103), (50,)),
    **dict.fromkeys((111, 112, 113), (60,)),
    **dict.fromkeys((201, 202, 203, 204), (105,)),
    **dict.fromkeys((211, 212, 213, 214), (124,)),
}
"""Of the models whose registers we know; a model of another length is not the one we know."""
INVERTERS = frozenset({101, 102, 103, 111, 112, 113})
METERS = frozenset({201, 202, 203, 204, 211, 212, 213, 214})
MOST_MODELS = 100
"""A device that has more of them than this never comes to an end."""
PHASES: dict[int, Literal[1, 3]] = {101: 1, 111: 1, 201: 1, 211: 1}
PHASES |= dict.fromkeys((102, 103, 112, 113, 202, 203, 204, 212, 213, 214), 3)
MOVED = (
    "Was the device switched between integers and floats, or replaced? Then its models stand elsewhere, and it needs a"
    " new site file: heliograph map sunspec NAME --bus URL --unit N"
)


@dataclass(frozen=True, slots=True)
class Model:
    """One model as the device announces it; `address` is that of its number."""

    number: int
    length: int
    address: int

    @property
    def end(self) -> int:
        """The address behind it, where the next one begins."""
        return self.address + HEADER + self.length

    def __str__(self) -> str:
        return f"model {self.number} at {self.address} ({self.length} registers)"


@dataclass(frozen=True, slots=True)
class Chain:
    """All that a device announces behind its marker at `base`."""

    base: int
    models: tuple[Model, ...]

    @property
    def end(self) -> int:
        """The address of the number 0xFFFF."""
        return self.models[-1].end if self.models else self.base + HEADER

    def __str__(self) -> str:
        found = ", ".join(f"{one.number} ({one.length}) at {one.address}" for one in self.models)
        return f"marker at {self.base}; models {found}; end at {self.end}"


@dataclass(frozen=True, slots=True)
class Device:
    """A common model and what follows it up to the next one: an inverter, or a meter behind it."""

    common: Model
    models: tuple[Model, ...]

    def one_of(self, numbers: Sequence[int]) -> Model | None:
        return next((one for one in self.models if one.number in numbers), None)


def broken(base: int, models: Sequence[Model], number: int, length: int) -> str:
    """Why a model of that number and length cannot come next in the chain; '' where it can."""
    address = models[-1].end if models else base + HEADER
    what = f"model {number} at {address}"
    if not models and number != COMMON:
        return f"the first model, at {address}, is {number}, not 1 (common)"
    if number == 0 or length == 0:
        return f"{what} has {length} registers, which leads nowhere"
    known = LENGTHS.get(number)
    if known is not None and length not in known:
        return f"{what} says that it has {length} registers; such a model has {' or '.join(map(str, sorted(known)))}"
    if number == MODULES and (length < MODULES_FIXED or (length - MODULES_FIXED) % MODULE_WORDS):
        return f"{what} says that it has {length} registers; such a model has 8, and 20 for each of its inputs"
    if address + HEADER + length > 0xFFFF:
        return f"{what} says that it has {length} registers, and would run beyond address 65535"
    if len(models) >= MOST_MODELS:
        return f"there is no end after {len(models)} models, at {address}"
    return ""


def modules(model: Model) -> int:
    """How many inputs a model 160 of that length describes."""
    return (model.length - MODULES_FIXED) // MODULE_WORDS


def devices(chain: Chain) -> tuple[Device, ...]:
    """The chain cut at each common model: what stands behind one belongs to it."""
    found: list[Device] = []
    for model in chain.models:
        if model.number == COMMON:
            found.append(Device(model, ()))
        else:
            found[-1] = replace(found[-1], models=(*found[-1].models, model))
    return tuple(found)


def fitting(chain: Chain, template: MeterMap) -> tuple[tuple[Device, Model], ...]:
    """Every model that the template is for, with the device it belongs to."""
    wanted = template.sunspec.models if template.sunspec is not None else ()
    return tuple((device, model) for device in devices(chain) for model in device.models if model.number in wanted)


# --- registers where they were found --------------------------------------------------------------------------------


def placed(template: MeterMap, base: int, device: Device, main: Model) -> MeterMap:
    """The template's registers at the device's addresses, under the identity that these addresses stand for.

    A device that moves its models, because somebody switched it from integers to floats, has other numbers and lengths
    at these addresses, and is refused.
    """
    beside = template.sunspec.beside if template.sunspec is not None else ()
    used = [device.common, main]
    used += [one for number in beside if (one := device.one_of((number,))) is not None]
    at: dict[int, Model] = {one.number: one for one in used}
    registers = sorted(
        (found for register in template.registers for found in _at(register, at)), key=lambda found: found.address or 0
    )
    match = [Match(address=base, type="u32", values=(MARKER,))]
    for one in used:
        match += [Match(address=one.address, type="u16", values=(one.number,))]
        match += [Match(address=one.address + 1, type="u16", values=(one.length,))]
    return replace(
        template,
        extends=None,
        sunspec=None,
        registers=tuple(registers),
        vectors=(),
        # No request goes beyond its model: what belongs together is in one, and not every device reads on behind it.
        no_gap=tuple((one.address, one.address + 1) for one in used),
        phases=template.phases or PHASES.get(main.number),
        identity=Identity(serial=template.identity.serial, match=tuple(match), required=True, hint=MOVED),
    )


def _at(register: Register, at: Mapping[int, Model]) -> list[Register]:
    model = next((at[number] for number in register.models if number in at), None)
    if model is None or register.address is None:
        return []
    scale = None if register.scale_register is None else model.address + register.scale_register
    first = replace(register, model=None, repeat=None, address=model.address + register.address, scale_register=scale)
    if register.repeat is None:
        return [first] if register.address < HEADER + model.length else []
    return [
        replace(first, quantity=_numbered(register.quantity, 1 + n), address=(first.address or 0) + n * register.repeat)
        for n in range(modules(model))
    ]


def _numbered(quantity: str, number: int) -> str:
    return re.sub("1", str(number), quantity, count=1)


def in_template(template: MeterMap, quantity: str) -> str:
    """What the template calls it: the inputs there all have the number 1."""
    return quantity if template.register(quantity) is not None else re.sub(r"\d+", "1", quantity, count=1)


def pinned(register: Register, exponent: int | None) -> Register:
    """The counter with the step and the end that it has under that exponent; others as they are.

    An accumulator of 32 bits starts again behind its largest number. In Wh that depends on the scale factor, which a
    device might change one day: the end then holds no more, and a fall is a question for a person.
    """
    quantity = find(register.quantity)
    if quantity is None or quantity.kind != "counter" or register.type not in ("acc32", "acc64"):
        return register
    if UNITS[register.unit][0] not in ENERGY_UNITS or register.scale_register is None or exponent is None:
        return register
    step = register.scale.scaleb(exponent)
    end = (Decimal(2**32) - 1) * step if register.type == "acc32" else None
    return replace(register, step=plain(step), rollover=None if end is None else plain(end), scale_exponent=exponent)


def plain(number: Decimal) -> Decimal:
    """Without an exponent, as people write it: 1000 and 0.01."""
    return Decimal(format(number.normalize(), "f"))


def maker(template: MeterMap, manufacturer: str) -> Maker | None:
    """What the template knows of that maker's devices."""
    known = template.sunspec.makers if template.sunspec is not None else ()
    return next((one for one in known if manufacturer.casefold().startswith(one.manufacturer.casefold())), None)

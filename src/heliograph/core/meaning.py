"""What a production counter means: which words it is read from and what they are multiplied by, as one small value.

Two maps may differ in a thousand ways; only what can change the number in whole Wh is a difference here. What says
whether there is a value at all (`absent`, `range`), how fast it is asked for, or what a counter does at its end
changes no value that is read, and takes no part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from heliograph.core.decode import Absent, addresses, kept, value
from heliograph.core.quantity import UNITS
from heliograph.core.registers import Function, MeterMap, Order, Register, Type

# Types that differ only in which of their values mean that there is none.
_SAME: dict[str, str] = {"acc32": "u32", "acc64": "u64", "enum16": "u16", "enum32": "u32"}
_SAME |= {"bitfield16": "u16", "bitfield32": "u32", "sunssf": "s16"}


@dataclass(frozen=True, slots=True)
class Words:
    """Where a number lies and how its words become one."""

    function: Function
    addresses: tuple[int, ...]
    type: Type
    order: Order
    scale: str = "1"
    unit: str = ""
    scale_register: int | None = None
    model: int | None = None
    """SunSpec: addresses are offsets from this model."""
    absent: tuple[int, ...] = ()
    zero_is_absent: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """What decides about the value, in one form: 0.01 kWh is 10 Wh, and the words stand highest first."""
        words = self.addresses[::-1] if self.order in ("CDAB", "DCBA") else self.addresses
        return {
            "function": self.function,
            "words": list(words),
            "swapped": self.order in ("BADC", "DCBA"),
            "type": _SAME.get(self.type, self.type),
            "step": _plain(Decimal(self.scale) * UNITS[self.unit][1]),
            "exponent": self.scale_register,
            "model": self.model,
        }

    @property
    def place(self) -> str:
        """As in the map: the first address, or all of them where they do not follow each other."""
        run = tuple(range(self.addresses[0], self.addresses[0] + len(self.addresses))) if self.addresses else ()
        shown = ", ".join(f"0x{one:04X}" for one in (run[:1] if run == self.addresses else self.addresses))
        return shown + (f" of model {self.model}" if self.model is not None else "")


@dataclass(frozen=True, slots=True)
class Factor:
    """A ratio that multiplies the counter: said by the site, read from the device, or both."""

    name: str
    site: str | None = None
    read: Words | None = None

    @property
    def key(self) -> dict[str, Any]:
        return {"site": self.site, "read": self.read.key if self.read is not None else None}

    def __str__(self) -> str:
        if self.site is not None:
            return self.site
        return f"as read at {self.read.place}" if self.read is not None else "not given"


@dataclass(frozen=True, slots=True)
class Meaning:
    """A counter's name is for people: the same words under another name are the same counter."""

    quantity: str
    words: Words
    factors: tuple[Factor, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over what decides about the value."""
        key = self.words.key | {"factors": {one.name: one.key for one in self.factors}}
        return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def short(self) -> str:
        """Enough of the digest to tell the few meanings of one meter apart."""
        return self.digest[:8]

    def as_json(self) -> dict[str, Any]:
        """As it is stored, and as it stands in the chain."""
        return {**asdict(self), "digest": self.digest}

    def __str__(self) -> str:
        one = self.words
        text = f"{self.quantity} at {one.function} {one.place}, {one.type}"
        text += f" {one.order}" if len(one.addresses) > 1 else ""
        text += f" x {one.scale}" if Decimal(one.scale) != 1 else ""
        text += f" x 10^(0x{one.scale_register:04X})" if one.scale_register is not None else ""
        return text + "".join(f" x {factor.name} {factor}" for factor in self.factors) + f" in {one.unit}"


def meaning_of(map: MeterMap, quantity: str, factors: Mapping[str, Any]) -> Meaning | None:
    """What the counter of that name means by this map and the site's `factors`; None where the map has none."""
    register = map.register(quantity)
    if register is None:
        return None
    found = []
    for name in sorted(register.times):
        said, read = factors.get(name), map.register(name)
        site = _plain(Decimal(str(said))) if said is not None else None
        found.append(Factor(name, site, _words(map, read) if read is not None else None))
    return Meaning(quantity, _words(map, register), tuple(found))


def from_json(said: Mapping[str, Any]) -> Meaning:
    """A stored meaning. Raises LookupError, TypeError or ValueError for what none is."""
    factors = tuple(
        Factor(one["name"], one["site"], _from_json(one["read"]) if one["read"] is not None else None)
        for one in said["factors"]
    )
    return Meaning(said["quantity"], _from_json(said["words"]), factors)


def differences(old: Meaning, new: Meaning) -> tuple[str, ...]:
    """What is another one now, in words; empty where no value can differ."""
    if old.digest == new.digest:
        return ()
    found = [f"{new.quantity} instead of {old.quantity}"] if new.quantity != old.quantity else []
    found += _differences(old.words, new.words)
    before, after = ({one.name: one for one in side.factors} for side in (old, new))
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was is None:
            found.append(f"multiplied by {name} ({now}), which it was not")
        elif now is None:
            found.append(f"no longer multiplied by {name} ({was})")
        elif was.key != now.key:
            where = f" ({', '.join(_differences(was.read, now.read))})" if was.read and now.read else ""
            found.append(
                f"{name} {now} instead of {was}" if str(now) != str(was) else f"{name} read differently{where}"
            )
    return tuple(found)


def register_of(meaning: Meaning) -> Register:
    """As a line of a map; what changes no value of the counter is not in it."""
    one = meaning.words
    return Register(
        quantity=meaning.quantity,
        type=one.type,
        addresses=one.addresses,
        unit=one.unit,
        words=len(one.addresses),
        scale=Decimal(one.scale),
        scale_register=one.scale_register,
        times=tuple(factor.name for factor in meaning.factors),
        absent=one.absent,
        zero_is_absent=one.zero_is_absent,
    )


def index_wh(
    meaning: Meaning, function: str, address: int, words: Sequence[int], factors: Mapping[str, Decimal]
) -> int | None:
    """The counter in whole Wh by that meaning, from words that were read from `address` on.

    None where they do not hold its registers, or no value. `factors` are ratios that the device told.
    """
    at, one = {address + number: word for number, word in enumerate(words)}, meaning.words
    needed = {*one.addresses} | ({one.scale_register} if one.scale_register is not None else set())
    if function != one.function or one.model is not None or not needed <= set(at):
        return None
    exponent = None
    if one.scale_register is not None:
        exponent = at[one.scale_register] - (at[one.scale_register] >> 15 << 16)
    register = register_of(meaning)
    by = {**factors, **{each.name: Decimal(each.site) for each in meaning.factors if each.site is not None}}
    found = value(register, one.order, [at[each] for each in one.addresses], exponent=exponent, factors=by)
    return int(kept(register, found)) if not isinstance(found, Absent | str) else None


def _words(map: MeterMap, register: Register) -> Words:
    return Words(
        map.function_of(register),
        addresses(register),
        register.type,
        map.order_of(register),
        _plain(register.scale),
        register.unit,
        register.scale_register,
        register.models[0] if register.models else None,
        register.absent,
        register.zero_is_absent,
    )


def _from_json(said: Mapping[str, Any]) -> Words:
    return Words(**{**said, "addresses": tuple(said["addresses"]), "absent": tuple(said["absent"])})


def _differences(old: Words, new: Words) -> list[str]:
    was, now = old.key, new.key
    found = [f"function {new.function} instead of {old.function}"] if was["function"] != now["function"] else []
    if was["words"] != now["words"] or was["swapped"] != now["swapped"] or was["model"] != now["model"]:
        if old.place != new.place:
            found.append(f"address {new.place} instead of {old.place}")
        if old.order != new.order:
            found.append(f"order {new.order} instead of {old.order}")
    if was["type"] != now["type"]:
        found.append(f"type {new.type} instead of {old.type}")
    if was["step"] != now["step"]:
        found += [f"unit {new.unit} instead of {old.unit}"] if old.unit != new.unit else []
        found += [f"scale {new.scale} instead of {old.scale}"] if old.scale != new.scale else []
    if was["exponent"] != now["exponent"]:
        shown = [f"0x{one.scale_register:04X}" if one.scale_register is not None else "none" for one in (new, old)]
        found.append(f"scale register {shown[0]} instead of {shown[1]}")
    return found


def _plain(number: Decimal) -> str:
    """One text for one number: 40, 40.0 and 4E+1 are the same."""
    return f"{number.normalize():f}"

"""Devices by chance, built by the SunSpec Alliance's own library, against what their raw values must mean.

The seed is printed; HELIOGRAPH_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from heliograph.core.errors import WrongDevice
from heliograph.core.quantity import UNITS, find
from heliograph.core.registers import MeterMap
from tests.sunspec_peer import INPUT_NAMES, NAMES, TYPES, Point, image, points
from tests.work.test_discover import TEMPLATES, Words, look_at, written

SEED = int(os.environ.get("HELIOGRAPH_SEED") or random.SystemRandom().randrange(10**6))
CHAINS = 60
RANGES = {"int16": (-32767, 32767), "uint16": (0, 0xFFFE), "uint32": (0, 0xFFFF_FFFE), "enum16": (0, 0xFFFE)}
RANGES |= {"bitfield32": (0, 0xFFFF_FFFE), "acc32": (1, 0xFFFF_FFFF), "count": (1, 9)}
UNKNOWN = (120, 121, 122, 123, 64110, 65000)


@dataclass
class Truth:
    """A device, and what our words for its points must show."""

    words: dict[int, int]
    base: int
    main: int
    """The number of the model that it is for."""
    values: dict[str, float | int | str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    ends: dict[str, int] = field(default_factory=dict)
    """Counters of 32 bits -> Wh, times 10^10, that they hold before they start again."""


def raw_value(point: Point, chance: random.Random) -> object:
    """A raw value, or None: not implemented."""
    if chance.random() < 0.2:
        return None
    if point.type == "string":
        return "".join(chance.choices("ABCXYZ0189", k=chance.randrange(1, 2 * point.size + 1)))
    if point.type == "float32":
        return struct.unpack(
            ">f", struct.pack(">f", chance.choice((chance.uniform(-5e4, 5e4), chance.uniform(0, 300))))
        )[0]
    if point.type not in RANGES:
        return None
    low, high = RANGES[point.type]
    return chance.choice((low, high, chance.randint(low, high), chance.randint(max(low, 0), min(high, 5000))))


def meant(name: str, point: Point, raw: object, exponent: int | None, map: MeterMap) -> float | int | str | None:
    """What it must show in the unit we keep; None: no value."""
    register = next(one for one in map.registers if one.quantity == name)
    if raw is None or (point.exponent and (exponent is None or not -10 <= exponent <= 10)):
        return None
    if isinstance(raw, str):
        return raw
    if isinstance(raw, float):
        if raw == 0 and register.zero_is_absent:
            return None
        number = next(
            Decimal(text)
            for digits in range(1, 10)
            if struct.pack(">f", float(text := f"{raw:.{digits}g}")) == struct.pack(">f", raw)
        )
    else:
        assert isinstance(raw, int)
        number = Decimal(raw) * Decimal(10) ** (exponent or 0)
    number *= Decimal("0.01") if name.startswith("power_factor") else 1
    known = find(name)
    assert known is not None
    kept: float | int = float(number * UNITS[register.unit][1])
    if known.unit == "Wh":
        kept = int(number // 1) if number >= 0 else -int(-number // 1) - (number % 1 != 0)
    if (known.low is not None and kept < known.low) or (known.high is not None and kept > known.high):
        return None
    return kept


def add(truth: Truth, chance: random.Random, model: int, map: MeterMap, inputs: int = 0) -> list[int]:
    """The words of a model by chance; what they must mean goes into the truth."""
    known = points(model)
    exponents: dict[str, int | None] = {}
    for point in known:
        if point.type == "sunssf":
            exponents[point.name] = chance.choice((-2, -1, 0, 1, 3, chance.randint(-10, 10), None, -11, 11, 40))
    if chance.random() < 0.8:  # otherwise hardly any chain has a counter that can be read
        for name in ("WH_SF", "TotWh_SF"):
            if name in exponents:
                exponents[name] = chance.choice((-2, -1, 0, 1, 3))
    values: dict[str, object] = {name: value for name, value in exponents.items() if value is not None}
    filled: list[dict[str, object]] = [{} for _ in range(inputs)]
    here = {(register.address, register.quantity) for register in map.registers if model in register.models}
    for point in known:
        if (point.name in ("ID", "L") and not point.input) or point.type in ("sunssf", "pad"):
            continue
        for number in range(inputs) if point.input else (0,):
            ours = INPUT_NAMES.get(point.name) if point.input else NAMES.get(point.name)
            raw = inputs if point.name == "N" else raw_value(point, chance)
            if point.name == "DA" and raw is None:
                raw = 7
            if raw is not None:
                (filled[number] if point.input else values)[point.name] = raw
            first = f"module1_{ours}" if point.input else ours
            if ours is None or first is None or (point.offset, first) not in here:
                continue
            word = f"module{number + 1}_{ours}" if point.input else ours
            exponent = exponents.get(point.exponent) if point.exponent else None
            shows = meant(first, point, raw, exponent, map)
            if shows is None:
                truth.absent.add(word)
            else:
                truth.values[word] = shows
            if point.type == "acc32" and exponent is not None and -10 <= exponent <= 10:
                truth.ends[word] = 2**32 * 10 ** (exponent + 10)
    return image(model, values, list(filled) if model == 160 else None)


def a_device(chance: random.Random) -> Truth:
    map = chance.choice([one for one in TEMPLATES if one.name != "sunspec-mppt"])
    assert map.sunspec is not None
    main, base = chance.choice(map.sunspec.models), chance.choice((40000, 50000, 0))
    truth = Truth({}, base, main)
    common = add(truth, chance, 1, map)
    common = [1, 65, *common[2:67]] if chance.random() < 0.5 else common
    parts = [common]
    unknown = [[number, length, *([0xABCD] * length)] for number in UNKNOWN for length in [chance.randint(1, 40)]]
    own = [add(truth, chance, main, map)]
    if map.sunspec.beside and chance.random() < 0.7:
        own.append(add(truth, chance, 160, map, chance.randint(0, 5)))
    chance.shuffle(own)
    rest = own + chance.sample(unknown, chance.randint(0, 4))
    order = list(range(len(rest)))
    chance.shuffle(order)
    parts += [rest[number] for number in order]
    flat = [0x5375, 0x6E53, *(word for part in parts for word in part), 0xFFFF, chance.choice((0, 0xFFFF))]
    truth.words = {base + place: word for place, word in enumerate(flat)}
    return truth


@pytest.fixture(scope="module")
def chance() -> random.Random:
    print(f"HELIOGRAPH_SEED={SEED}")
    return random.Random(SEED)


def test_every_number_of_a_device_by_chance_is_what_its_words_mean(chance: random.Random, tmp_path: Path) -> None:
    asleep = found_ones = ended = 0
    for number in range(CHAINS):
        truth = a_device(chance)
        told = f"HELIOGRAPH_SEED={SEED}, chain {number}, model {truth.main}"
        counters = [name for name in (*truth.values, *truth.absent) if name.startswith("energy_")]
        if not any(name in truth.values for name in counters):
            with pytest.raises(WrongDevice, match="has a value now"):
                look_at(Words(truth.words))
            asleep += 1
            continue
        found = look_at(Words(truth.words), name=f"by-chance-{number}")
        assert found.chain.base == truth.base and found.main.number == truth.main, told
        assert set(found.values) & truth.absent == set(), told
        for name, value in truth.values.items():
            assert found.values.get(name) == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), (
                f"{told}: {name}"
            )
        loaded = written(found, tmp_path)
        for register in loaded.map.registers:
            if register.quantity in truth.ends:
                assert register.rollover is not None and register.step is not None, told
                end = (register.rollover + register.step) * 10**10
                assert end == truth.ends[register.quantity], f"{told}: {register.quantity}"
                ended += 1
            else:
                assert register.rollover is None, f"{told}: {register.quantity}"
        found_ones += 1
    assert found_ones > CHAINS // 3 and asleep > 0 and ended > 0, f"HELIOGRAPH_SEED={SEED}: it tried too little"
    assert set(TYPES.values()) >= {"acc32", "float32"}

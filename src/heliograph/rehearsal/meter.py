"""A meter that is not there: the register bank of any map, filled from a simulated day.

Every word is a function of the moment the meter's clock tells, so it does not matter how often it is read.
The encoder is our own and shares nothing with core/decode.py but the map: each checks the other.
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from heliograph.core.errors import UsageError
from heliograph.core.quantity import UNITS, find
from heliograph.core.registers import FUNCTION_CODES, Function, MeterMap, Order, Register, Type
from heliograph.rehearsal.frames import (
    ILLEGAL_ADDRESS,
    ILLEGAL_FUNCTION,
    ILLEGAL_VALUE,
    MOST_WORDS,
    refusal,
    words_answer,
)
from heliograph.rehearsal.sun import WORK_PER_WH, Curve, Sky, wobble
from heliograph.rehearsal.sunspec import Layout, exponent, input_value, laid_out

Setting = int | float | str | Fraction | Decimal

# Registers each number takes; texts and BCD are as long as the map says.
WIDTHS: dict[Type, int] = {
    "u16": 1, "s16": 1, "enum16": 1, "bitfield16": 1, "sunssf": 1,
    "u32": 2, "s32": 2, "float32": 2, "acc32": 2, "enum32": 2, "bitfield32": 2,
    "u64": 4, "s64": 4, "float64": 4, "acc64": 4,
}  # fmt: skip
SIGNED: frozenset[Type] = frozenset({"s16", "s32", "s64", "sunssf"})
FLOATS: dict[Type, str] = {"float32": ">f", "float64": ">d"}

VOLTS = 230.0
SHARES = (334, 337, 329)  # thousandths of the power on L1, L2, L3
STANDBY = 0.001  # of the rated power, drawn from the grid while there is no light
POWER_FACTOR_EXPORT = 0.99
POWER_FACTOR_IMPORT = 0.6
REACTIVE_EXPORT = Fraction(round(math.tan(math.acos(POWER_FACTOR_EXPORT)) * 10_000), 10_000)
REACTIVE_IMPORT = Fraction(round(math.tan(math.acos(POWER_FACTOR_IMPORT)) * 10_000), 10_000)
DEMAND = timedelta(minutes=15)

_COUNTER = re.compile(
    r"(?P<kind>reactive_|apparent_)?(?:meter1?_)?energy"
    r"(?:_(?P<way>import|export|total|net|production|yield|pv_export|pv_plus_battery|dc_input_total))?"
    r"(?:_l(?P<phase>[123]))?"
    r"(?:_(?P<part>t[12]|resettable|partial|sum_channels|today|hour|month|year|u32|hires))?"
)

_INPUT = re.compile(r"module(?P<number>\d+)_(?P<what>.+)")

# What a device says about itself when nobody told otherwise.
ABOUT: dict[str, Setting] = {
    "ct_ratio": 1,
    "vt_ratio": 1,
    "system_type": 3,  # 3 phases, 4 wires (Eastron holding register 0x000A)
    "demand_period": 15,
    "manufacturer": "Heliograph",
    "meter_model": "rehearsal",
    "model": "rehearsal",
    "firmware_version": "1.0",
    "software_version": 0x0100,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An exception code, or None for silence."""

    code: int | None


@dataclass(frozen=True, slots=True)
class _Cell:
    """One number of the bank: where it stands and what one raw unit of it is worth."""

    register: Register
    order: Order
    unit: Fraction
    """Of the register's unit, in the unit we keep."""
    raw: Fraction
    """Of one raw step, in the register's unit."""
    whole: bool
    """A counter of whole steps: rounded down and starting again at its end."""
    sleeps: bool
    """Not an identity or a setting: reads zero at night where the map says so."""


def usual_kw(map: MeterMap) -> float:
    """50 kW, or 10 where the register of the active power ends below that: such devices are built for less.

    A register that is full contradicts the phases beside it, as a real device's would with another's power behind it.
    """
    total = map.register("active_power")
    if total is None or total.times or total.scale_register is not None or total.type not in ("u16", "s16"):
        return 50.0
    full = abs(total.scale) * UNITS[total.unit][1] * (0x7FFF if total.type == "s16" else 0xFFFF)
    return 50.0 if full >= 50_000 else 10.0


class SimulatedMeter:
    """A register bank behind one unit id. `answer` takes and gives protocol data units."""

    def __init__(
        self,
        map: MeterMap,
        *,
        clock: Callable[[], datetime],
        unit: int | None = None,
        rated_kw: float | None = None,
        serial: int | str | None = None,
        start_export_wh: int = 0,
        start_import_wh: int = 0,
        started: datetime | None = None,
        sky: Sky | None = None,
        seed: int = 0,
        settings: Mapping[str, Setting] | None = None,
        production: str | None = None,
        max_words: int | None = None,
        too_long: int | None = ILLEGAL_VALUE,
        gaps: Literal["zeros", "refuse"] | None = None,
        layout: Layout | None = None,
        cts: tuple[int, ...] | None = None,
    ) -> None:
        """`started`: when the counters stood at their start values; now unless given. `rated_kw`: as `usual_kw` unless
        given; what is more than a register can hold is shown as the most it can.

        `cts`: the conductor that the current transformer of each phase sits on, negative where it is turned round:
        (1, -2, 3) is a turned one on L2, (2, 1, 3) has those of L1 and L2 exchanged. The totals are then what a meter
        makes of it that adds the signed powers of its phases at each moment, as Eastron's do, and counts the sum.

        `too_long` is the exception for more than `max_words` (None: silence). `gaps` tells what undefined
        registers between defined ones do; by default what the map says. `settings` overrides any quantity.
        `layout`: of a SunSpec template, how this device is built.
        """
        held: Mapping[str, int] = {}
        self._inputs = 0
        if map.sunspec is not None:
            map, held = laid_out(map, layout or Layout())
            self._inputs = held.get("module_count", 0)
        self.map = map
        self.unit = map.unit if unit is None else unit
        self.clock = clock
        self.rated_kw = usual_kw(map) if rated_kw is None else rated_kw
        self.serial = str(30_000_000 + self.unit if serial is None else serial)
        self.started = clock() if started is None else started
        self.sky = sky or Sky(seed=seed)
        self.seed = seed
        self.production = production or map.production or "energy_export"
        self.max_words = map.max_words if max_words is None else max_words
        self.too_long = too_long
        self.gaps = gaps or ("zeros" if map.read_gaps else "refuse")
        marks = self._marks()
        self.settings: dict[str, Setting] = ABOUT | {"modbus_address": self.unit}
        self.settings.update({name: value for name, (_, value) in marks.items()})
        self.settings.update(held)
        powers = (register.quantity for register in map.registers if register.type == "sunssf")
        self.settings.update({name: exponent(name, self.rated_kw) for name in powers})
        self.settings[map.identity.serial or "serial_number"] = self.serial
        self.settings.update(settings or {})
        self._shares = (1000,) if map.phases == 1 or not _has_phases(map) else SHARES
        self._cts = _wired(map, cts, len(self._shares))
        # An inverter's power is positive while it produces; its map counts production, or neither import nor export.
        counts = [map.register(name) is not None for name in ("energy_production", "energy_export", "energy_import")]
        self._producer = counts[0] or not any(counts[1:])
        self._start = {"export": start_export_wh, "import": start_import_wh}
        self._curves = {"export": Curve(self._exported, self.started), "import": Curve(self._imported, self.started)}
        self._origin = {way: curve.work(self.started) for way, curve in self._curves.items()}
        self._latest: tuple[datetime, dict[str, float]] | None = None
        self._spaces: dict[str, dict[int, tuple[_Cell, int]]] = {"holding": {}, "input": {}}
        for register in (*map.registers, *(mark for mark, _ in marks.values())):
            cell = self._cell(register)
            if register.quantity in self.settings:
                self._bytes(cell, self.started)  # what does not fit is told now, not to whoever reads
            self._put(cell)

    # -- the simulated day ------------------------------------------------------------------------------------

    def _exported(self, day: int) -> array[int]:
        rated = self.rated_kw * 1e6
        return array("q", [round(light * rated) for light in self.sky.light(day)])

    def _imported(self, day: int) -> array[int]:
        standby = round(self.rated_kw * 1e6 * STANDBY)
        return array("q", [0 if light else standby for light in self.sky.light(day)])

    def power_w(self, at: datetime) -> float:
        """Production at a moment, in W; never negative."""
        return self._curves["export"].milliwatts(at) / 1000

    def energy_wh(self, at: datetime, way: Literal["export", "import"] = "export", share: int = 1000) -> int:
        """The true counter in whole Wh, before any register rounds it; the sum of phases may lack up to 2 Wh."""
        moved = max(0, self._curves[way].work(at) - self._origin[way])
        return (self._start[way] * WORK_PER_WH + moved) * share // (1000 * WORK_PER_WH)

    def counted_wh(self, at: datetime) -> int:
        """What the display of the production counter shows, in whole Wh."""
        register = self.map.register(self.production)
        if register is None:
            raise UsageError(
                f"{self.map.name} has no {self.production}",
                hint="Name a counter of the map; see: heliograph map show " + self.map.name,
            )
        cell = self._cell(register)
        return math.floor(_shown(register.type, self._bytes(cell, at)) * cell.raw * cell.unit)

    def value(self, quantity: str, at: datetime | None = None) -> Setting:
        """The true value in the unit we keep, before a register rounds it; 0 for what is not simulated."""
        at = self.clock() if at is None else at
        if quantity in self.settings:
            return self.settings[quantity]
        if match := _COUNTER.fullmatch(quantity):
            return self._counter(match, at)
        if self._inputs and (match := _INPUT.fullmatch(quantity)):
            told = input_value(match["what"], int(match["number"]), self._inputs, self.power_w(at), self.energy_wh(at))
            if told is not None:
                return told
        instants = self._instants(at)
        if quantity == "charge":
            return (self.energy_wh(at, "import") + self.energy_wh(at)) / VOLTS
        if quantity == "running_time":
            return (at - self.started) / timedelta(hours=1)
        return instants.get(quantity, 0)

    def _counter(self, match: re.Match[str], at: datetime) -> int:
        part = match["part"]
        if part == "t2":  # everything is counted under the first tariff
            return 0
        phase = int(match["phase"]) if match["phase"] and len(self._shares) > 1 else None
        moved = self._energy(match["kind"], match["way"], phase, at)
        since = self._since(part, at)
        return moved if since is None else moved - self._energy(match["kind"], match["way"], phase, since)

    def _energy(self, kind: str | None, way: str | None, phase: int | None, at: datetime) -> int:
        share = self._shares[phase - 1] if phase is not None else 1000
        exported, imported = self.energy_wh(at, "export", share), self.energy_wh(at, "import", share)
        if self._cts is not None:
            exported, imported = self._miscounted(phase, share, at)
        if kind == "reactive_":
            exported, imported = math.floor(exported * REACTIVE_EXPORT), math.floor(imported * REACTIVE_IMPORT)
        elif kind == "apparent_":
            return round(exported / POWER_FACTOR_EXPORT + imported / POWER_FACTOR_IMPORT)
        match way:
            case "import":
                return imported
            case "net":
                return imported - exported
            case "total" if not self._producer:
                return imported + exported
        return exported

    def _seen(self, way: str, phase: int | None) -> Fraction:
        """The part of a true power that the element of a phase, or all of them together, make of it.

        Below zero it shows as power in the other direction. Voltage and current of one phase are as far apart as the
        power factor says; of two phases 120 degrees more or less.
        """
        assert self._cts is not None
        angle = math.acos(POWER_FACTOR_EXPORT if way == "export" else POWER_FACTOR_IMPORT)
        found = Fraction(0)
        for number, conductor in enumerate(self._cts, 1):
            if phase is None or phase == number:
                turned = math.copysign(1, conductor) / math.cos(angle)
                away = math.radians(120) * (abs(conductor) - number)
                part = turned * math.cos(angle + away) if away else math.copysign(1, conductor)
                found += Fraction(round(part * 1_000_000), 1_000_000) * self._shares[abs(conductor) - 1] / 1000
        return found

    def _miscounted(self, phase: int | None, share: int, at: datetime) -> tuple[int, int]:
        """Export and import in Wh as the meter counts them through its current transformers, wherever they sit."""
        counted = {way: Fraction(self._start[way] * share, 1000) for way in ("export", "import")}
        other = {"export": "import", "import": "export"}
        for way, curve in self._curves.items():
            moved = Fraction(max(0, curve.work(at) - self._origin[way]), WORK_PER_WH) * self._seen(way, phase)
            counted[way if moved > 0 else other[way]] += abs(moved)
        return math.floor(counted["export"]), math.floor(counted["import"])

    def _since(self, part: str | None, at: datetime) -> datetime | None:
        """Where a counter that starts again began, in the device's own zone."""
        if part in ("resettable", "partial"):
            return self.started
        local = at.astimezone(self.sky.zone)
        match part:
            case "hour":
                begin = local.replace(minute=0, second=0, microsecond=0)
            case "today":
                begin = local.replace(hour=0, minute=0, second=0, microsecond=0)
            case "month":
                begin = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            case "year":
                begin = local.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
            case _:
                return None
        return max(self.started, begin)

    def _instants(self, at: datetime) -> dict[str, float]:
        """Everything electrical at one moment, consistent: P = U x I x PF on each phase, totals are sums.

        Power is signed as the wiring shows it: a meter counts export while its power is negative (SDM630 V1.8).
        """
        latest = self._latest
        if latest is not None and latest[0] == at:
            return latest[1]
        seconds = at.timestamp()
        exported, imported = (self._curves[way].milliwatts(at) / 1000 for way in ("export", "import"))
        net = exported - imported if self._producer else imported - exported
        size = POWER_FACTOR_EXPORT if exported >= imported else POWER_FACTOR_IMPORT
        factor = math.copysign(size, net)
        angle = math.degrees(math.acos(factor))
        now: dict[str, float] = {}
        volts, amperes, watts, demands = [], [], [], []
        demand = sum(
            sign * (self._curves[way].work(at) - self._curves[way].work(at - DEMAND))
            for way, sign in (("import", 1), ("export", -1))
        ) / (WORK_PER_WH * (DEMAND / timedelta(hours=1)))
        for phase, share in enumerate(self._shares, 1):
            voltage = VOLTS + 2.5 * wobble(self.seed, 10 + phase, seconds / 40)
            power = net * share / 1000
            apparent = abs(power) / size
            volts.append(voltage)
            amperes.append(apparent / voltage)
            watts.append(power)
            demands.append(abs(demand) * share / 1000 / size / voltage)
            now |= {
                f"voltage_l{phase}n": voltage,
                f"current_l{phase}": apparent / voltage,
                f"active_power_l{phase}": power,
                f"apparent_power_l{phase}": apparent,
                f"reactive_power_l{phase}": math.copysign(math.sqrt(apparent**2 - power**2), power),
                f"power_factor_l{phase}": factor,
                f"phase_angle_l{phase}": angle,
                f"voltage_thd_l{phase}n": 1.6 + 0.3 * wobble(self.seed, 20 + phase, seconds / 300),
                f"current_thd_l{phase}": 3.0 + 0.8 * wobble(self.seed, 23 + phase, seconds / 300),
                f"current_demand_l{phase}": demands[-1],
                f"current_demand_max_l{phase}": self.rated_kw * share / VOLTS,
            }
        if self._cts is not None:
            watts, amperes = self._through_cts(now, net, "export" if exported >= imported else "import")
        lines = []
        if len(volts) == 3:
            for left, right in ((0, 1), (1, 2), (2, 0)):
                a, b = volts[left], volts[right]
                lines.append(math.sqrt(a * a + b * b + a * b))  # 120 degrees apart
                now[f"voltage_l{left + 1}l{right + 1}"] = lines[-1]
                now[f"voltage_thd_l{left + 1}l{right + 1}"] = 1.4
        squares = sum(i * i for i in amperes) - sum(
            a * b for a, b in zip(amperes, amperes[1:] + amperes[:1], strict=True)
        )
        apparent = sum(now[f"apparent_power_l{phase}"] for phase in range(1, len(volts) + 1))
        reactive = sum(now[f"reactive_power_l{phase}"] for phase in range(1, len(volts) + 1))
        now |= {
            "voltage_ln_avg": sum(volts) / len(volts),
            "voltage_ll_avg": sum(lines) / 3 if lines else 0.0,
            "voltage_thd_ln_avg": 1.6,
            "voltage_thd_ll_avg": 1.4,
            "current": sum(amperes),
            "current_sum": sum(amperes),
            "current_avg": sum(amperes) / len(amperes),
            "current_neutral": math.sqrt(max(0.0, squares)) if len(volts) == 3 else amperes[0],
            "current_thd_avg": 3.0,
            "active_power": sum(watts),
            "active_power_import": imported if self._cts is None else max(0.0, sum(watts)),
            "active_power_export": exported if self._cts is None else max(0.0, -sum(watts)),
            "active_power_demand": demand,
            "active_power_demand_max": self.rated_kw * 1000,
            "active_power_import_demand": max(0.0, demand),
            "active_power_export_demand": max(0.0, -demand),
            "apparent_power": apparent,
            "apparent_power_demand": abs(demand) / size,
            "apparent_power_demand_max": self.rated_kw * 1000,
            "reactive_power": reactive,
            "power_factor": factor if self._cts is None else sum(watts) / apparent,
            "power_factor_inverted": -factor if self._cts is None else -sum(watts) / apparent,
            "phase_angle": angle,
            "frequency": 50 + 0.02 * wobble(self.seed, 30, seconds / 15),
            "frequency_hires": 50 + 0.02 * wobble(self.seed, 30, seconds / 15),
            "current_demand": sum(demands),
            "dc_voltage": 620.0,
            "dc_power": exported / 0.975,
            "dc_current": exported / 0.975 / 620,
            "status": 4 if exported > 0 else 2,  # SunSpec: tracking, asleep
            "efficiency": 97.5,
            "temperature_internal": 25 + 20 * exported / (self.rated_kw * 1000),
            "rated_power": self.rated_kw * 1000,
        }
        self._latest = (at, now)
        return now

    def _through_cts(self, now: dict[str, float], net: float, way: str) -> tuple[list[float], list[float]]:
        """Puts right what the phases show where their current transformers sit elsewhere; powers and currents."""
        assert self._cts is not None
        there = [now[f"current_l{number}"] for number in range(1, len(self._shares) + 1)]
        watts, amperes = [], []
        for phase, conductor in enumerate(self._cts, 1):
            watts.append(net * float(self._seen(way, phase)))
            amperes.append(there[abs(conductor) - 1])
            apparent = now[f"voltage_l{phase}n"] * amperes[-1]
            factor = max(-1.0, min(1.0, watts[-1] / apparent)) if apparent else math.copysign(1.0, watts[-1])
            now |= {
                f"current_l{phase}": amperes[-1],
                f"active_power_l{phase}": watts[-1],
                f"apparent_power_l{phase}": apparent,
                f"reactive_power_l{phase}": math.copysign(apparent * math.sqrt(1 - factor**2), watts[-1]),
                f"power_factor_l{phase}": factor,
                f"phase_angle_l{phase}": math.degrees(math.acos(factor)),
            }
        return watts, amperes

    # -- the bank ---------------------------------------------------------------------------------------------

    def answer(self, request: bytes) -> bytes | None:
        function = next((name for name, code in FUNCTION_CODES.items() if request[:1] == bytes((code,))), None)
        if function is None:
            return refusal(request, ILLEGAL_FUNCTION) if request else None
        if len(request) != 5:
            return refusal(request, ILLEGAL_VALUE)
        address, count = struct.unpack(">HH", request[1:])
        words = self.words("holding" if function == "holding" else "input", address, count)
        if isinstance(words, Refusal):
            return None if words.code is None else refusal(request, words.code)
        return words_answer(request[0], words)

    def words(
        self, function: Function, address: int, count: int, at: datetime | None = None
    ) -> tuple[int, ...] | Refusal:
        """What a request finds at a moment; all words of one request belong to the same moment."""
        at = self.clock() if at is None else at
        dark = self._curves["export"].milliwatts(at) == 0
        if dark and self.map.night == "silent":
            return Refusal(None)
        if not 1 <= count <= MOST_WORDS:
            return Refusal(ILLEGAL_VALUE)
        if count > self.max_words:
            return Refusal(self.too_long)
        space = self._spaces[function]
        last = address + count - 1
        if not space or address < min(space) or last > max(space):
            return Refusal(ILLEGAL_ADDRESS)
        if any(address <= end and last >= begin for begin, end in self.map.no_gap):
            return Refusal(ILLEGAL_ADDRESS)
        read: dict[int, tuple[int, ...]] = {}
        answer = []
        for place in range(address, address + count):
            if place not in space:
                if self.gaps == "refuse":
                    return Refusal(ILLEGAL_ADDRESS)
                answer.append(0)
                continue
            cell, index = space[place]
            if id(cell) not in read:
                if cell.register.alone and count != len(_addresses(cell.register)):
                    return Refusal(ILLEGAL_ADDRESS)
                asleep = dark and cell.sleeps and self.map.night == "zeros"
                raw = self._bytes(cell, at)
                read[id(cell)] = arranged(bytes(len(raw)) if asleep else raw, cell.order)
            answer.append(read[id(cell)][index])
        return tuple(answer)

    def _marks(self) -> dict[str, tuple[Register, int | str]]:
        """The registers by which a device of this map is recognised, under the names they have in the map."""
        marks: dict[str, tuple[Register, int | str]] = {}
        for match in self.map.identity.match:
            function = match.function or self.map.function
            known = [
                register
                for register in self.map.registers
                if register.address == match.address and self.map.function_of(register) == function
            ]
            name = known[0].quantity if known else f"identity 0x{match.address:04X}"
            mark = Register(
                quantity=name,
                type=match.type,
                address=match.address,
                words=match.words,
                function=match.function,
                order=match.order,
            )
            marks[name] = (mark, match.values[0])
            if known and known[0].type == "text" and match.type != "text":  # the number is how the text begins
                begins = encoded(mark, match.values[0]).decode("ascii", "replace")
                marks[name] = (known[0], f"{begins}rehearsal")
        return marks

    def _put(self, cell: _Cell) -> None:
        space = self._spaces[self.map.function_of(cell.register)]
        for index, address in enumerate(_addresses(cell.register)):
            space[address] = (cell, index)

    def _cell(self, register: Register) -> _Cell:
        raw = Fraction(register.scale)
        if register.scale_register is not None:
            raw *= Fraction(10) ** self._exponent(register)
        for name in register.times:
            raw *= self._factor(name)
        quantity = find(register.quantity)
        kind = quantity.kind if quantity is not None else "identity"
        return _Cell(
            register,
            self.map.order_of(register) if register.type != "text" else "ABCD",
            Fraction(UNITS[register.unit][1]),
            raw,
            whole=kind == "counter" and register.type not in FLOATS,
            sleeps=kind in ("instant", "counter"),
        )

    def _exponent(self, register: Register) -> int:
        function = self.map.function_of(register)
        scale = next(
            (
                other
                for other in self.map.registers
                if other.address == register.scale_register and self.map.function_of(other) == function
            ),
            None,
        )
        return int(self.settings.get(scale.quantity, 0)) if scale is not None else 0

    def _factor(self, name: str) -> Fraction:
        """A ratio as its own register can tell it: one of 12.34 in tenths is 12.3 to whoever reads the meter."""
        told = Fraction(self.settings.get(name, 1))
        register = self.map.register(name)
        if register is not None:
            scale = Fraction(register.scale)
            told = _shown(register.type, encoded(register, told / scale)) * scale
        if told <= 0:
            raise UsageError(f"{self.map.name}: {name} must be above zero, not {told}", hint=f"Give --set {name}=1")
        return told

    def _bytes(self, cell: _Cell, at: datetime) -> bytes:
        register = cell.register
        kept = self.value(register.quantity, at)
        if register.type == "text":
            return encoded(register, kept)
        if isinstance(kept, str):
            kept = _number(register, kept)
        if isinstance(kept, float):
            return encoded(register, kept / float(cell.unit * cell.raw))
        exact = Fraction(kept) / cell.unit
        if register.rollover is not None:
            step = Fraction(register.step) if register.step else (cell.raw if cell.whole else 0)
            exact %= Fraction(register.rollover) + step
        if register.step:
            exact = exact // Fraction(register.step) * Fraction(register.step)
        raw = exact / cell.raw
        return encoded(register, math.floor(raw) if cell.whole else raw, wraps=cell.whole)


def encoded(register: Register, raw: Setting, *, wraps: bool = False) -> bytes:
    """A raw value as big-endian bytes. Whole numbers wrap like a counter or stop at the type's border."""
    kind = register.type
    if kind == "text":
        length = 2 * (register.words or 1)
        return str(raw).encode("ascii", "replace")[:length].ljust(length, b"\0")
    if isinstance(raw, str):
        raw = _number(register, raw)
    if kind in FLOATS:
        try:
            return struct.pack(FLOATS[kind], float(raw))
        except OverflowError:
            return struct.pack(FLOATS[kind], math.copysign(math.inf, raw))
    whole = round(raw)
    if kind == "bcd":
        length = 2 * (register.words or 1)
        return bytes.fromhex(str(whole % 10 ** (2 * length)).zfill(2 * length))
    bits = 16 * WIDTHS[kind]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind in SIGNED else (0, (1 << bits) - 1)
    whole = whole % (high + 1) if wraps and whole > high else min(max(whole, low), high)
    return whole.to_bytes(bits // 8, "big", signed=kind in SIGNED)


def _number(register: Register, text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as exc:
        raise UsageError(
            f"{register.quantity} is a number ({register.type}) in this map; {text!r} does not fit",
            hint="Give a number, such as 23451234",
        ) from exc


def arranged(raw: bytes, order: Order) -> tuple[int, ...]:
    """Big-endian bytes as the words that travel."""
    words = [raw[at : at + 2] for at in range(0, len(raw), 2)]
    if order in ("BADC", "DCBA"):
        words = [word[::-1] for word in words]
    if order in ("CDAB", "DCBA"):
        words.reverse()
    return tuple(int.from_bytes(word, "big") for word in words)


def _shown(kind: Type, raw: bytes) -> Fraction:
    """The raw number as a display would print it: of a float the fewest digits that lead back to it."""
    if kind not in FLOATS:
        return Fraction(int(raw.hex()) if kind == "bcd" else int.from_bytes(raw, "big", signed=kind in SIGNED))
    (number,) = struct.unpack(FLOATS[kind], raw)
    for digits in range(17):
        text = f"{number:.{digits}e}"
        if struct.pack(FLOATS[kind], float(text)) == raw:
            return Fraction(text)
    return Fraction(number)


def _addresses(register: Register) -> tuple[int, ...]:
    if register.addresses:
        return register.addresses
    if register.address is None:
        return ()
    return tuple(range(register.address, register.address + (WIDTHS.get(register.type) or register.words or 1)))


def _wired(map: MeterMap, cts: tuple[int, ...] | None, phases: int) -> tuple[int, ...] | None:
    """None where every current transformer is where it belongs."""
    right = tuple(range(1, phases + 1))
    if cts is None or cts == right:
        return None
    if tuple(sorted(abs(one) for one in cts)) != right:
        raise UsageError(
            f"{map.name}: the current transformers sit on {list(cts)}",
            hint=f"Name each conductor once, negative where it is turned: {list(right)} is as it should be",
        )
    return cts


def _has_phases(map: MeterMap) -> bool:
    return any("_l2" in register.quantity for register in map.registers)

"""The names of what is measured. A name, once shipped, is for ever: it stands in maps, topics, SQL and evidence.

Energy is kept in whole Wh (varh, VAh); every other quantity in the unit below as a float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from typing import Literal

Kind = Literal["instant", "counter", "identity", "setting"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """`low` and `high` bound what a working AC site can show; outside is absence, not a value.

    `jump` is the smallest change between two polls that is worth a second look, in the unit itself.
    """

    name: str
    unit: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    jump: float | None = None


# unit in a map -> (unit we keep, factor)
UNITS: dict[str, tuple[str, Decimal]] = {
    "Wh": ("Wh", Decimal(1)),
    "kWh": ("Wh", Decimal(1000)),
    "MWh": ("Wh", Decimal(1_000_000)),
    "varh": ("varh", Decimal(1)),
    "kvarh": ("varh", Decimal(1000)),
    "VAh": ("VAh", Decimal(1)),
    "kVAh": ("VAh", Decimal(1000)),
    "Ah": ("Ah", Decimal(1)),
    "W": ("W", Decimal(1)),
    "kW": ("W", Decimal(1000)),
    "VA": ("VA", Decimal(1)),
    "kVA": ("VA", Decimal(1000)),
    "var": ("var", Decimal(1)),
    "kvar": ("var", Decimal(1000)),
    "V": ("V", Decimal(1)),
    "A": ("A", Decimal(1)),
    "mA": ("A", Decimal("0.001")),
    "Hz": ("Hz", Decimal(1)),
    "%": ("%", Decimal(1)),
    "1": ("1", Decimal(1)),
    "deg": ("deg", Decimal(1)),
    "degC": ("degC", Decimal(1)),
    "h": ("h", Decimal(1)),
    "s": ("s", Decimal(1)),
    "min": ("min", Decimal(1)),
    "ms": ("ms", Decimal(1)),
    "MOhm": ("MOhm", Decimal(1)),
    "": ("", Decimal(1)),
}

# Figures of the site's own ledger, which outputs show beside what was read. No register has such a name.
PRODUCTION_TOTAL = Quantity("production_total", "Wh", "counter")
"""Running total of a meter, baseline included: it goes on over a swap. As outputs show it, it only ever rises: where a
correction has lowered it, it waits until it is overtaken, for whoever takes a fall for a reset counts it all again."""
PRODUCTION_TODAY = Quantity("production_today", "Wh", "counter")
"""Production since local midnight so far. No counter to add up: a correction may lower it."""

ENERGY_UNITS = frozenset({"Wh", "varh", "VAh"})

_PHASE = r"(_l[123])?"
_TARIFF = r"(_l[123]|_t[12]|_resettable|_partial|_sum_channels|_today|_hour|_month|_year|_u32|_hires)?"

# One row per family: pattern, unit kept, kind, low, high, jump. The first match decides.
_FAMILIES: tuple[tuple[str, str, Kind, float | None, float | None, float | None], ...] = (
    (r"voltage_(l[123]n|l1l2|l2l3|l3l1|ln_avg|ll_avg|x3_l[123]n)", "V", "instant", 0, 1500, 25),
    (r"voltage_thd_(l[123]n|l1l2|l2l3|l3l1|ln_avg|ll_avg)", "%", "instant", 0, 1000, None),
    (r"current_thd_(avg|l[123])", "%", "instant", 0, 10000, None),
    (rf"current{_PHASE}|current_(avg|sum|neutral)", "A", "instant", -100_000, 100_000, 5),
    (r"current_(external|inverter|x3)_l[123]", "A", "instant", -100_000, 100_000, 5),
    (rf"current(_neutral)?_demand(_max)?{_PHASE}", "A", "instant", -100_000, 100_000, None),
    (rf"active_power{_PHASE}", "W", "instant", -1e9, 1e9, 1000),
    (
        r"active_power_(import|export|grid|inverter_l[123]|x3_l[123]|day_peak)|input_power|output_ac_power"
        r"|inverter_power|meter_active_power",
        "W",
        "instant",
        -1e9,
        1e9,
        1000,
    ),
    (r"active_power(_import|_export)?_demand(_max)?", "W", "instant", -1e9, 1e9, None),
    (rf"apparent_power{_PHASE}", "VA", "instant", -1e9, 1e9, 1000),
    (r"apparent_power_demand(_max)?", "VA", "instant", -1e9, 1e9, None),
    (rf"reactive_power{_PHASE}", "var", "instant", -1e9, 1e9, 1000),
    (r"reactive_power_demand(_max)?", "var", "instant", -1e9, 1e9, None),
    (rf"power_factor(_inverted)?{_PHASE}", "1", "instant", -1.1, 1.1, 0.5),
    (rf"phase_angle{_PHASE}", "deg", "instant", -360, 360, None),
    (r"frequency(_hires)?", "Hz", "instant", 45, 65, 1),
    # No counter holds as much as the world uses in a month: a float whose words are joined the wrong way round does.
    (rf"energy_(import|export|total|net|production){_TARIFF}", "Wh", "counter", -1e15, 1e15, None),
    (
        r"energy_(yield|pv_export|pv_plus_battery|dc_input_total)(_today)?"
        r"|meter1?_energy_(import|export)|module\d+_dc_energy",
        "Wh",
        "counter",
        -1e15,
        1e15,
        None,
    ),
    (rf"reactive_energy_(import|export|total){_TARIFF}", "varh", "counter", None, None, None),
    (r"apparent_energy(_sum_channels)?", "VAh", "counter", None, None, None),
    (r"charge", "Ah", "counter", None, None, None),
    (r"running_time", "h", "counter", None, None, None),
    (r"dc_voltage(_mppt[123456789])?|module\d+_dc_voltage", "V", "instant", -10, 2000, None),
    (r"dc_current(_mppt[123456789])?|module\d+_dc_current", "A", "instant", -10_000, 10_000, None),
    (r"dc_power(_mppt[123456789]|_total)?|module\d+_dc_power", "W", "instant", -1e9, 1e9, None),
    (
        r"temperature_(cabinet|heatsink|internal|other|transformer)|module\d+_temperature",
        "degC",
        "instant",
        -60,
        200,
        None,
    ),
    (r"efficiency", "%", "instant", 0, 110, None),
    (r"insulation_resistance", "MOhm", "instant", 0, None, None),
    (r"module\d+_timestamp", "s", "instant", None, None, None),
    (
        r"status(_vendor)?|state_\d|event(_\d)?|error_code|fault_code|running_state|module\d+_(status|event)",
        "",
        "instant",
        None,
        None,
        None,
    ),
    (r"rated_power", "W", "identity", 0, None, None),
    (
        r"serial_number(_high|_low)?|meter_code|meter_model|software_version|firmware_version|manufacturer|model"
        r"|device_model(_code)?|device_type_code|options|output_type|mac|modbus_address|pv_string_count"
        r"|sunspec_marker|(common_|inverter_)?model_(id|length)|module_count|module\d+_(id|name)|timestamp_period"
        r"|pad|[a-z0-9_]+_sf",
        "",
        "identity",
        None,
        None,
        None,
    ),
    (
        r"demand_(period|time)|scroll_time|pulse\d_(width|divisor|energy_type|constant)|system_(voltage|current|power|type)"
        r"|parity_stop|baud_rate|register_order|password(_lock)?|energy_unit_prefix|reset_[a-z_]+|clear_history"
        r"|measurement_mode|display_timing_bcd|ct_ratio|vt_ratio|application_mode|modbus_byte_order|sunspec_model_type",
        "",
        "setting",
        None,
        None,
        None,
    ),
)
_COMPILED = tuple((re.compile(row[0]), row) for row in _FAMILIES)


@lru_cache(maxsize=1024)  # asked for every value of every poll
def find(name: str) -> Quantity | None:
    """The quantity of that name, or None when we have no such word."""
    for pattern, (_, unit, kind, low, high, jump) in _COMPILED:
        if pattern.fullmatch(name):
            return Quantity(name, unit, kind, low, high, jump)
    return None


@cache
def names() -> tuple[str, ...]:
    """The words we know, spelled out for hints and completion; open families such as model_sf stay out."""
    spelled = {name for pattern, *_ in _FAMILIES for name in _spelled(pattern, 0)[0]}
    return tuple(sorted(name for name in spelled if not name.startswith("_") and not name.endswith("_")))


def _spelled(pattern: str, at: int) -> tuple[list[str], int]:
    """All that the small part of regular expressions above can mean: groups, `|`, `?`, [123] and \\d (as 1 to 3)."""
    whole: list[str] = []
    so_far = [""]
    while at < len(pattern) and pattern[at] != ")":
        parts = [pattern[at]]
        if pattern[at] == "|":
            whole, so_far, parts = [*whole, *so_far], [""], [""]
        elif pattern[at] == "(":
            parts, at = _spelled(pattern, at + 1)
        elif pattern[at] == "[":
            end = pattern.index("]", at)
            parts = [""] if "-" in pattern[at:end] else list(pattern[at + 1 : end])
            at = end
        elif pattern[at] == "\\":
            parts = ["1", "2", "3"]
            at += 1
        at += 1
        if pattern[at : at + 1] == "?":
            parts = ["", *parts]
        if pattern[at : at + 1] in ("?", "+"):
            at += 1
        so_far = [start + part for start in so_far for part in parts]
    return [*whole, *so_far], at

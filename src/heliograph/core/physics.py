"""What numbers of one device must have to do with each other, whatever the map says: volts, amperes and watts.

A wrong address, type, word order, scale or unit breaks one of these relations nearly always; so does a swapped
or forgotten current transformer. The values may come from several requests: loads change in between, and small
loads are measured coarsely, so what is tolerated is wide. Errors of scale are powers of ten and do not hide in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Values = Mapping[str, float | int]

FREQUENCY = (45.0, 65.0)
PHASE_VOLTAGE = (80.0, 300.0)
MOVED = 0.2
"""Share by which a power may have changed, or be wrong, between two requests: a cloud, a switch, a coarse current."""
ADDED = 0.1
"""The same for sums, whose parts mostly come in one request."""
LINES = 0.1
"""Share by which voltages between phases may differ from those of a symmetric three-phase grid."""
COUNTED = 0.001
"""Share by which counters may differ from their sum."""
SMALL = 50.0
"""W, VA: what lies below, per phase, is measured too coarsely to compare."""
SMALL_WH = 1500
"""Counters in steps of 1 kWh are floored."""
IDLE = 0.02
"""Without a power factor: the least part of U x I that active power is, above IDLE_VA: filters draw some at night."""
IDLE_VA = 1000.0


@dataclass(frozen=True, slots=True)
class Relation:
    """One thing that must be so. `shown` is what was read, `expected` the figure it is held against.

    Of a range, `expected` is the nearest figure within.
    """

    name: str
    """What is compared, for scripts: `frequency`, `active_power_l1`, `active_power_sum`."""
    holds: bool
    quantities: tuple[str, ...]
    """What was needed for it; the first one is what is judged."""
    shown: float
    expected: float
    unit: str
    text: str
    """A sentence for people, with what to look at where it does not hold."""


def relations(values: Values) -> tuple[Relation, ...]:
    """Every relation that these quantities (in the units of core/quantity.py) can be held to.

    What is zero, or too small to compare, gives no relation: a device that sleeps proves nothing.
    """
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return tuple(relation for rule in _RULES for relation in rule(finite) if relation is not None)


def _frequencies(values: Values) -> Iterator[Relation]:
    for name in ("frequency", "frequency_hires"):
        if values.get(name):
            yield _within(name, values[name], FREQUENCY, "Hz", "the grid's frequency")


def _voltages(values: Values) -> Iterator[Relation]:
    for name in ("voltage_l1n", "voltage_l2n", "voltage_l3n", "voltage_ln_avg"):
        if values.get(name):
            yield _within(name, values[name], PHASE_VOLTAGE, "V", "a voltage to neutral")
    dead = [name for name in _phases(values, "voltage_{}n") if values[name] == 0]
    alive = [name for name in _phases(values, "voltage_{}n") if values[name]]
    for name in dead if alive else ():
        text = (
            f"{name} is 0 V while {alive[0]} is {values[alive[0]]:g} V: is that phase connected, and its fuse in? "
            "A meter set to one phase shows this too"
        )
        yield Relation(name, False, (name, alive[0]), 0.0, PHASE_VOLTAGE[0], "V", text)


def _line_voltages(values: Values) -> Iterator[Relation | None]:
    pairs = {"voltage_l1l2": ("l1", "l2"), "voltage_l2l3": ("l2", "l3"), "voltage_l3l1": ("l3", "l1")}
    for name, (one, other) in pairs.items():
        needed = (f"voltage_{one}n", f"voltage_{other}n")
        if name in values and all(values.get(part) for part in needed):
            a, b = (values[part] for part in needed)
            what = f"√3 times {needed[0]} and {needed[1]}"
            yield _equal(name, (name, *needed), values[name], math.sqrt(a * a + b * b + a * b), "V", LINES, 5.0, what)
    if values.get("voltage_ln_avg") and "voltage_ll_avg" in values:
        needed = ("voltage_ll_avg", "voltage_ln_avg")
        expected = math.sqrt(3) * values["voltage_ln_avg"]
        what = "√3 times voltage_ln_avg"
        yield _equal("voltage_ll_avg", needed, values["voltage_ll_avg"], expected, "V", LINES, 5.0, what)


def _factors(values: Values) -> Iterator[Relation]:
    for name in ("power_factor", "power_factor_l1", "power_factor_l2", "power_factor_l3"):
        if values.get(name):
            # 1.0005 is rounding, not a fault
            yield _within(name, values[name], (-1.001, 1.001), "", "a power factor")


def _powers(values: Values) -> Iterator[Relation | None]:
    for phase in ("_l1", "_l2", "_l3", ""):
        name = f"active_power{phase}"
        volt_amperes = _volt_amperes(values, phase)
        if name not in values or volt_amperes is None:
            continue
        size, parts, product = volt_amperes
        shown, small = abs(values[name]), SMALL * (1 if phase else len(parts) / 2)
        factor, reactive = values.get(f"power_factor{phase}"), values.get(f"reactive_power{phase}")
        if factor and abs(factor) <= 1.001:
            needed = (name, *parts, f"power_factor{phase}")
            what = f"{product} x power factor"
            yield _equal(name, needed, shown, size * abs(factor), "W", MOVED, small, what)
        elif reactive and abs(reactive) < size:
            needed = (name, *parts, f"reactive_power{phase}")
            what = f"{product} less reactive power"
            expected = math.sqrt(size * size - reactive * reactive)
            # Where most is reactive the difference of two large numbers is all that is left.
            yield _equal(name, needed, shown, expected, "W", MOVED, max(small, MOVED * abs(reactive)), what)
        else:
            yield _at_most(name, (name, *parts), shown, size, small, product)


def _at_most(
    name: str, needed: tuple[str, ...], shown: float, size: float, small: float, product: str
) -> Relation | None:
    """Without a power factor active power is anything up to U x I, though hardly next to nothing by daylight."""
    if max(shown, size) < 2 * small:
        return None
    if shown > size * (1 + MOVED) + small:
        text = f"{name} is {_figure(shown, 'W')}, more than {product} = {_figure(size, 'VA')}{_times(shown, size)}"
        return Relation(name, False, needed, shown, size, "W", text)
    if size > IDLE_VA * small / SMALL and shown < IDLE * size:
        text = (
            f"{name} is {_figure(shown, 'W')}, next to nothing of {product} = {_figure(size, 'VA')}"
            f"{_times(shown, size)}; a filter that draws current at night shows this too"
        )
        return Relation(name, False, needed, shown, size, "W", text)
    text = f"{name} {_figure(shown, 'W')} fits {product} = {_figure(size, 'VA')}"
    return Relation(name, True, needed, shown, size, "W", text)


def _apparent(values: Values) -> Iterator[Relation | None]:
    for phase in ("_l1", "_l2", "_l3", ""):
        name = f"apparent_power{phase}"
        volt_amperes = _volt_amperes(values, phase)
        if name in values and volt_amperes is not None:
            size, parts, product = volt_amperes
            small = SMALL * (1 if phase else len(parts) / 2)
            yield _equal(name, (name, *parts), abs(values[name]), size, "VA", MOVED, small, product)


def _volt_amperes(values: Values, phase: str) -> tuple[float, tuple[str, ...], str] | None:
    """U x I of a phase ("_l1") or of all there are (""), with what it was made of; None without current."""
    phases = [phase[1:]] if phase else ["l1", "l2", "l3"]
    pairs = [(f"voltage_{one}n", f"current_{one}") for one in phases]
    there = [pair for pair in pairs if all(part in values for part in pair)]
    if phase == "" and not there and "current" in values and "voltage_l1n" in values:
        there = [("voltage_l1n", "current")]
    named = {name for name in values if name in {part for pair in pairs for part in pair}}
    if not there or (phase == "" and len({part for pair in there for part in pair} & named) < len(named)):
        return None  # a sum over some of the phases is no sum
    size = sum(abs(values[volts] * values[amperes]) for volts, amperes in there)
    product = "U x I" if len(there) == 1 else f"the sum of U x I of {len(there)} phases"
    return (size, tuple(part for pair in there for part in pair), product) if size else None


def _sums(values: Values) -> Iterator[Relation]:
    for name, unit in (("active_power", "W"), ("reactive_power", "var"), ("apparent_power", "VA")):
        parts = _phases(values, f"{name}_{{}}")
        if name not in values or len(parts) < 2:
            continue
        total, shares = values[name], [values[part] for part in parts]
        # What flows against each other cancels out, but errs by the size of what flows.
        flowing = sum(abs(share) for share in shares)
        small = max(SMALL * len(parts) / 2, ADDED * (flowing - abs(sum(shares))))
        if name == "apparent_power":
            small = max(small, MOVED * flowing)  # some add lengths, some add vectors
        relation = _equal(
            f"{name}_sum", (name, *parts), total, sum(shares), unit, ADDED, small, "the sum of its phases"
        )
        if relation is None:
            continue
        if not relation.holds and abs(abs(total) - flowing) <= ADDED * flowing + small:
            turned = [part for part, share in zip(parts, shares, strict=True) if share * sum(shares) < 0]
            if turned:
                text = (
                    f"{relation.text}. Without signs it would fit: {' and '.join(turned)} runs against the others; "
                    "is a current transformer turned round?"
                )
                relation = Relation(f"{name}_sum", False, relation.quantities, total, sum(shares), unit, text)
        yield relation


def _counters(values: Values) -> Iterator[Relation]:
    needed = ("energy_total", "energy_import", "energy_export")
    if not all(name in values for name in needed) or "energy_production" in values:
        return  # an inverter's total is what it gave itself, beside the grid's import and export
    total, imported, exported = (float(values[name]) for name in needed)
    both = imported + exported
    relation = _equal("energy_total", needed, total, both, "Wh", COUNTED, SMALL_WH, "energy_import + energy_export")
    if relation is None:
        return
    if not relation.holds:
        modes = {"energy_import alone": imported, "energy_import - energy_export": imported - exported}
        for what, expected in modes.items():
            if abs(total - expected) <= COUNTED * abs(expected) + SMALL_WH:
                text = (
                    f"{relation.text}. It fits {what}: a measurement mode of the meter; choose no total as production"
                )
                relation = Relation("energy_total", False, needed, total, both, "Wh", text)
                break
    yield relation


_RULES: tuple[Callable[[Values], Iterator[Relation | None]], ...] = (
    _frequencies, _voltages, _line_voltages, _factors, _powers, _apparent, _sums, _counters,
)  # fmt: skip


def _phases(values: Values, pattern: str) -> Sequence[str]:
    return [name for name in (pattern.format(phase) for phase in ("l1", "l2", "l3")) if name in values]


def _within(name: str, value: float, span: tuple[float, float], unit: str, what: str) -> Relation:
    low, high = span
    nearest = min(max(value, low), high)
    between = f"{round(low):d} to {_figure(round(high), unit)}"
    if value == nearest:
        return Relation(name, True, (name,), value, nearest, unit, f"{name} {_figure(value, unit)} is {what}")
    text = f"{name} is {_figure(value, unit)}, and {what} is {between}: wrong register, type, word order or scale?"
    return Relation(name, False, (name,), value, nearest, unit, text)


def _equal(
    name: str,
    needed: tuple[str, ...],
    shown: float,
    expected: float,
    unit: str,
    share: float,
    small: float,
    what: str,
) -> Relation | None:
    """None where both figures are too small to tell anything."""
    if max(abs(shown), abs(expected)) < 2 * small:
        return None
    if abs(shown - expected) <= share * max(abs(shown), abs(expected)) + small:
        text = f"{needed[0]} {_figure(shown, unit)} fits {what} = {_figure(expected, unit)}"
        return Relation(name, True, needed, shown, expected, unit, text)
    text = f"{needed[0]} is {_figure(shown, unit)}, but {what} is {_figure(expected, unit)}{_times(shown, expected)}"
    return Relation(name, False, needed, shown, expected, unit, text)


def _times(shown: float, expected: float) -> str:
    """What the quotient suggests: a power of ten is a scale or a unit, minus one is a direction."""
    if not shown or not expected:
        return ""
    ratio = shown / expected
    if -1.25 < ratio < -0.8:
        return " (the other direction)"
    power = round(math.log10(abs(ratio)))
    if power and 0.7 < abs(ratio) / 10**power < 1.4:
        times = f"{10**power:,} times as much" if power > 0 else f"{10**-power:,} times too little"
        return f" ({times}: a wrong scale or unit?)"
    return ""


def _figure(value: float, unit: str) -> str:
    """Four digits that matter; large figures in kilo."""
    if unit in ("W", "VA", "var", "Wh") and abs(value) >= 10_000:
        return f"{value / 1000:,.1f} k{unit}"
    text = f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()

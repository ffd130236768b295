"""Judges what was found at a new site: a table of small questions, each answered from what was gathered.

Where something cannot be seen now (no sun, nobody to look at the display), the answer is "unknown", never "green".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal
from zoneinfo import ZoneInfo

from heliograph.core import durations
from heliograph.core.daylight import CELL, Position, light
from heliograph.core.delivery import Registered, Roll
from heliograph.core.figures import kwh
from heliograph.core.physics import relations
from heliograph.core.plausible import step_wh
from heliograph.core.site import Meter

Result = Literal["green", "attention", "wrong", "unknown"]

# W/m2 of a clear sky on level ground: from here on panels work; from there on they show what they can.
DAWN, BRIGHT = 30.0, 200.0
# Shares of rated power. Below, what flows is the inverters' own need.
FLOWS = 0.004
ENOUGH = 0.1
# A phase whose power is below this share of the largest has no direction worth telling.
COUNTS = 0.05
ABOVE = 1.2
# Inverters feed in with a power factor of 0.9 and more. A current that is measured against the voltage of another phase
# is 120 degrees off, which leaves cos(120 +- 25) of it.
OFF_PHASE = 0.85
UNBALANCED = 0.25
# Heavy clouds leave a tenth of the light; a forgotten ratio of 100/5 and more leaves a twentieth and less.
CLOUDED, FORGOTTEN = 0.3, 0.05
# Where the position is not known, a fifth of the rated power is enough to be believed.
UNPLACED = 0.2 / CLOUDED
# What people use, primary over 5 A or 1 A.
RATIOS = (
    5,
    6,
    8,
    10,
    12,
    15,
    16,
    20,
    25,
    30,
    32,
    40,
    50,
    60,
    80,
    100,
    120,
    125,
    150,
    160,
    200,
    250,
    300,
    320,
    400,
    500,
)
ROOM_BYTES = 200_000_000
SOON = timedelta(days=30)
NOT_THERE = "the device refuses it, or several reads of it did not agree"
RENEW = "Put a good token in its place; a file is read again by itself."
PHASES = ("l1", "l2", "l3")


@dataclass(frozen=True, slots=True)
class Check:
    """One question with its answer. `cause` names a fault for scripts; '' where there is none."""

    step: str
    about: str
    """A meter, a platform, or "site"."""
    result: Result
    says: str
    todo: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a meter showed at one moment, in the units of core/quantity.py."""

    at: datetime
    values: Mapping[str, float | int | str]
    absent: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """As they came, for the file."""
    serial: str | None = None
    stranger: str = ""
    """Why the device is not the one the configuration names."""
    doubts: Sequence[str] = ()
    refused: Sequence[str] = ()
    """Quantities of the map that the device does not have."""

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        return value if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class Told:
    """What a device says of itself, held against every map."""

    named: Sequence[str] = ()
    """Maps whose marks of a kind fit."""
    because: str = ""
    """What was read there."""
    fits: bool = False
    """The configured map, or one that extends it, is among them."""
    marked: bool = False
    """Marks of the configured map fit too, if less closely than those of another one."""
    perhaps: Sequence[str] = ()
    """Maps for which a serial number speaks."""
    serial: str = ""
    order: str = ""
    """Why the words come in another order than the map's; '' where they do not."""


@dataclass(frozen=True, slots=True)
class Sun:
    """`shines` is None where nobody can tell."""

    shines: bool | None
    why: str
    clear: float | None = None
    """W/m2 that a clear sky gives now."""
    again: str = ""
    """When it is worth coming back."""
    odd: bool = False
    """What flows or what a person says does not go with the clock."""


# -- the meter ------------------------------------------------------------------------------------------------


NOTHING = Told()


def identity(meter: Meter, look: Look, told: Told = NOTHING) -> Check:
    """Whether it is that meter, and of the kind the map is for. A serial number counts where the rest makes sense."""
    other = list(told.named) if told.named and not told.fits else []
    if look.stranger and not told.order:
        names = " or ".join([*told.named, *told.perhaps][:3])
        serial = f", serial number {told.serial}" if told.serial else ""
        itself = f" By what it says of itself it is {names}{serial}." if names else ""
        todo = f"Compare the label with unit id and map; heliograph read {meter.id} --all shows what answers."
        return Check(
            "identity", meter.id, "wrong", f"{look.stranger}.{itself}", _put(meter, other) or todo, "wrong-device"
        )
    if (another := another_kind(meter, told)) is not None:
        return another
    if told.order:
        says = f"Its words come in another order than the map {meter.map.name} says: {told.order}."
        return Check("identity", meter.id, "wrong", says, _doctor(meter), "wrong-order")
    held, broken = _sense(look)
    if senseless(look):
        says = f"By the map {meter.map.name} its figures make no sense: {'; '.join(broken[:2])}."
        return Check("identity", meter.id, "wrong", says, _doctor(meter), "no-sense")
    if meter.serial is not None and look.serial is not None and not same_serial(meter.serial, look.serial):
        says = f"It has serial number {look.serial}, but the configuration says {meter.serial}."
        return Check("identity", meter.id, "wrong", says, "Correct serial, or find the right meter.", "wrong-device")
    if look.serial is None:
        says = f"Nothing speaks against the map {meter.map.name}; this device tells no serial number."
        return Check("identity", meter.id, "green", says, "Note the number on its label in the installer's file.")
    if meter.serial is None and not told.fits and not held:
        says = f"A serial number may be {look.serial}, but nothing that can be read confirms the map {meter.map.name}."
        todo = "Compare maker, model and number with the label."
        return Check("identity", meter.id, "attention", says, todo, "serial-not-pinned")
    if meter.serial is None:
        says = f"The map {meter.map.name} fits, the serial number is {look.serial}; another meter would not be noticed."
        todo = f'Compare with the label, then write below [[meter]] {meter.id}: serial = "{look.serial}"'
        return Check("identity", meter.id, "attention", says, todo, "serial-not-pinned")
    return Check(
        "identity",
        meter.id,
        "green",
        f"The map {meter.map.name} fits, and the serial number is {look.serial}, as configured.",
    )


def another_kind(meter: Meter, told: Told) -> Check | None:
    """Where the device names maps, and the configured one is not among them."""
    if not told.named or told.fits:
        return None
    says = f"By what it says of itself it is {' or '.join(told.named[:3])} ({told.because}), not {meter.map.name}."
    result: Result = "wrong" if len(told.named) == 1 and not told.marked else "attention"
    todo = _put(meter, told.named) or f"Compare its label with the maps: heliograph map show {told.named[0]}"
    return Check("identity", meter.id, result, says, todo, "wrong-map")


def _put(meter: Meter, other: Sequence[str]) -> str:
    if len(other) != 1:
        return ""
    return f'Compare with the label, then write below [[meter]] {meter.id}: map = "{other[0]}"'


def _doctor(meter: Meter) -> str:
    return f"heliograph doctor {meter.id} finds out why; deliver nothing before."


def _sense(look: Look) -> tuple[list[str], list[str]]:
    """What must be so of the figures of one device: what is, and what is not."""
    told = relations(_numbers(look))
    return [one.text for one in told if one.holds], [one.text for one in told if not one.holds]


def senseless(look: Look) -> bool:
    """Whether most of what must be so is not: then it is not the plant that is wrong, but how it is read."""
    held, broken = _sense(look)
    return len(broken) > len(held)


def registers(meter: Meter, look: Look) -> Check:
    """Whether the device has what the map says it has."""
    count = len(meter.map.registers)
    if look.refused:
        shown = ", ".join(look.refused[:6]) + (f" and {len(look.refused) - 6} more" if len(look.refused) > 6 else "")
        says = f"The device refuses {len(look.refused)} of the {count} registers of {meter.map.name}: {shown}."
        todo = "Compare its label with the products of: heliograph map show " + meter.map.name
        return Check("registers", meter.id, "attention", says, todo, "refused")
    missing = [one.quantity for one in meter.map.registers if one.quantity not in {*look.values, *look.absent}]
    if missing:
        says = f"{len(missing)} of {count} registers did not come through: {', '.join(missing[:6])}."
        return Check("registers", meter.id, "attention", says, _doctor(meter), "not-read")
    return Check("registers", meter.id, "green", f"It answers all {count} registers of the map.")


def same_serial(one: str, other: str) -> bool:
    return one.lstrip("0") == other.lstrip("0")


def counters(meter: Meter, look: Look) -> Check:
    missing = [name for name in meter.map.from_site if name not in dict(meter.factors)]
    if missing:
        says = f"The map needs {' and '.join(missing)} from the site: without it there are no figures."
        todo = f"Read it off the transformers (200/5 is 40), then write: factors = {{ {missing[0]} = 40 }}"
        return Check("counters", meter.id, "wrong", says, todo, "factor-missing")
    shown = look.number(meter.production)
    if shown is None:
        why = look.absent.get(meter.production) or "; ".join(look.doubts) or NOT_THERE
        todo = _doctor(meter)
        return Check("counters", meter.id, "wrong", f"{meter.production} has no value: {why}.", todo, "no-counter")
    others = [name for name in ("energy_import", "energy_export") if name != meter.production]
    beside = "".join(
        f", {name} {kwh(int(value))}" for name in others if (value := look.number(name)) is not None
    )  # fmt: skip
    says = f"{meter.production}, which is production here, shows {kwh(int(shown))} kWh{beside}."
    if look.doubts:
        todo = _doctor(meter)
        return Check("counters", meter.id, "attention", f"{says} {'; '.join(look.doubts)}.", todo, "doubt")
    return Check("counters", meter.id, "green", says)


def display(meter: Meter, look: Look, answer: str | None) -> Check | None:
    shown = look.number(meter.production)
    if shown is None:
        return None
    figure = kwh(int(shown))
    if answer == "yes":
        return Check("display", meter.id, "green", f"You confirm that the display shows {figure} kWh.")
    if answer == "no":
        says = f"You say that the display shows something else than the {figure} kWh that were read."
        todo = "Another map, word order or scale? Another meter? Nothing may be delivered before this is found."
        return Check("display", meter.id, "wrong", says, todo, "display")
    says = f"Nobody has compared {figure} kWh with the display."
    todo = f"Look at the display, then run it again on a terminal, or with --answer {meter.id}.display=yes"
    return Check("display", meter.id, "unknown", says, todo, "not-confirmed")


def phases(meter: Meter, look: Look) -> Check | None:
    """Voltages of each phase, between the phases, and what currents each carries."""
    volts = {phase: value for phase in PHASES if (value := look.number(f"voltage_{phase}n")) is not None}
    if not volts:
        return None
    shown = ", ".join(f"{phase.upper()} {value:.1f} V" for phase, value in volts.items())
    dead = [phase.upper() for phase, value in volts.items() if value < 0.5 * max(volts.values())]
    if dead:
        says = f"There is no voltage on {' and '.join(dead)} ({shown})."
        todo = "Check its fuse and its voltage lead. A meter set to one phase shows this too."
        return Check("phases", meter.id, "wrong", says, todo, "phase-missing")
    broken = [one for one in relations(_numbers(look)) if one.name.startswith("voltage_") and not one.holds]
    if broken:
        todo = "Two voltage leads on one phase? Measure between the phases."
        return Check("phases", meter.id, "wrong", f"{broken[0].text}.", todo, "voltages")
    amps = {phase: abs(value) for phase in volts if (value := look.number(f"current_{phase}")) is not None}
    mean = sum(amps.values()) / len(amps) if amps else 0.0
    if len(amps) == 3 and flowing(meter, look) >= ENOUGH:
        off = [phase for phase, value in amps.items() if abs(value - mean) > UNBALANCED * mean]
        if off:
            said = ", ".join(f"{phase.upper()} {value:.1f} A" for phase, value in amps.items())
            says = f"The currents are not balanced: {said}."
            todo = (
                "Right where inverters of one phase feed in. Else: a transformer of another ratio, or one that is not"
                " closed, or an inverter or fuse that is out?"
            )
            return Check("phases", meter.id, "attention", says, todo, "unbalanced")
    between = " Between the phases it is what it must be." if look.number("voltage_l1l2") else ""
    return Check("phases", meter.id, "green", f"{shown}.{between}")


def electrics(meter: Meter, look: Look) -> Check | None:
    """What numbers of one device must have to do with each other; the voltages are told by `phases`."""
    told = [one for one in relations(_numbers(look)) if not one.name.startswith("voltage_")]
    broken = [one for one in told if not one.holds]
    if broken:
        says = f"{'; '.join(one.text for one in broken[:3])}."
        todo = f"A wrong register, word order or scale in the map? heliograph doctor {meter.id}"
        return Check("electrics", meter.id, "attention", says, todo, "relations")
    if not told:
        return None
    return Check("electrics", meter.id, "green", f"{len(told)} relations between its figures hold, as U x I = P.")


def _numbers(look: Look) -> dict[str, float | int]:
    return {name: value for name, value in look.values.items() if isinstance(value, int | float)}


# -- the sun and the direction ----------------------------------------------------------------------------------


def sizes(look: Look) -> dict[str, float]:
    """What flows on each phase, whatever its direction: V x A, else W."""
    found = {}
    for phase in PHASES:
        volts, amps = look.number(f"voltage_{phase}n"), look.number(f"current_{phase}")
        watts = look.number(f"active_power_{phase}")
        if volts is not None and amps is not None:
            found[phase] = abs(volts * amps)
        elif watts is not None:
            found[phase] = abs(watts)
    return found


def power_w(look: Look) -> float | None:
    """What flows altogether, without signs, so that a turned transformer does not make it small."""
    watts = [value for phase in PHASES if (value := look.number(f"active_power_{phase}")) is not None]
    total = look.number("active_power")
    return sum(map(abs, watts)) if watts else None if total is None else abs(total)


def flowing(meter: Meter, look: Look) -> float:
    """Share of the rated power."""
    return (sum(sizes(look).values()) or power_w(look) or 0.0) / (meter.rated_kw * 1000)


def sun(now: datetime, zone: ZoneInfo, position: Position | None, share: float | None, answer: str | None) -> Sun:
    """Whether it shines, by its position, else by the clock and by what flows (`share` of the rated power).

    The word of a person counts where it does not contradict the sun's position.
    """
    local = now.astimezone(zone)
    if position is not None:
        clear, again = clear_sky(position, now), _again(now, zone, position)
        if clear < DAWN:
            down = f"at {local:%H:%M} the sun is down at {position.latitude:g}, {position.longitude:g}"
            if share is not None and share >= ENOUGH:
                return Sun(None, f"{down}, but {share:.0%} of the rated power flows", clear, again, odd=True)
            return Sun(False, down, clear, again)
        if answer == "no":
            return Sun(False, "you say that the sun is not on the panels", clear, again)
        return Sun(True, f"a clear sky gives {clear:.0f} W/m² now", clear, again)
    again = "09:00 and 15:00 local time"
    day, night = 7 <= local.hour < 18, not 4 <= local.hour < 23
    if answer is not None:
        said = answer == "yes"
        why = f"you say that the sun is {'' if said else 'not '}on the panels"
        return Sun(said, why, None, again, odd=said and night)
    if share is not None and share >= ENOUGH:
        return Sun(True, f"{share:.0%} of the rated power flows", None, again, odd=night)
    if not day:
        return Sun(False, f"it is {local:%H:%M}", None, again)
    if share is not None and share >= FLOWS:
        return Sun(True, f"it is {local:%H:%M}, and {share:.0%} of the rated power flows", None, again)
    return Sun(None, f"it is {local:%H:%M}, but next to nothing flows", None, again)


def clear_sky(position: Position, at: datetime) -> float:
    """W/m2 on level ground."""
    return light(position, at, at + CELL) / (CELL / timedelta(microseconds=1)) / 1000


def _again(now: datetime, zone: ZoneInfo, position: Position) -> str:
    """The next span of usable daylight, from now on."""
    at, start = now, None
    while at < now + timedelta(hours=36):
        bright = clear_sky(position, at) >= BRIGHT
        if bright and start is None:
            start = at
        if not bright and start is not None:
            break
        at += timedelta(minutes=10)
    if start is None:
        return ""
    return f"{start.astimezone(zone):%H:%M} and {at.astimezone(zone):%H:%M} local time"


def _by_day(sun: Sun) -> str:
    if sun.shines is False and sun.clear is not None and sun.clear >= BRIGHT:
        return "Run it again when the sun is on the panels."
    if sun.odd:
        return "Compare the clock with a watch first, and latitude, longitude and timezone: see zone."
    if sun.shines or (sun.shines is None and sun.clear is None):
        return (
            "Look at the inverters: are they on, and do they show power? If so, look at the current transformers:"
            " closed, connected, on the right conductors? If they show none: come back in full sun."
        )
    return f"Run it again by day, between {sun.again}." if sun.again else "Run it again when the sun is back."


def _dark(step: str, meter: Meter, sun: Sun, what: str) -> Check | None:
    if sun.shines:
        return None
    cause = "night" if sun.shines is False else "no-power"
    return Check(step, meter.id, "unknown", f"{what} cannot be judged: {sun.why}.", _by_day(sun), cause)


def off_phase(look: Look, meter: Meter) -> list[str] | None:
    """Phases whose current is not that of their voltage; None where too little flows to tell."""
    found = {}
    for phase, size in sizes(look).items():
        watts = look.number(f"active_power_{phase}")
        if watts is not None and size > COUNTS * max(sizes(look).values()):
            found[phase] = abs(watts) / size
    off = [phase for phase, factor in found.items() if factor < OFF_PHASE]
    if off and flowing(meter, look) < ENOUGH:
        return None  # at little power an inverter's own capacitors show
    return off if len(found) == 3 else []


def turned(look: Look, *, production_rises: bool) -> list[str]:
    """Phases whose power has the other sign than it must have while the production counter rises with the others."""
    watts = {phase: value for phase in PHASES if (value := look.number(f"active_power_{phase}")) is not None}
    most = max((abs(value) for value in watts.values()), default=0.0)
    counted = {phase: value for phase, value in watts.items() if abs(value) > COUNTS * most}
    plus = [phase for phase, value in counted.items() if value > 0]
    minus = [phase for phase, value in counted.items() if value < 0]
    if not plus or not minus:
        return []
    with_sum, against = (plus, minus) if sum(counted.values()) > 0 else (minus, plus)
    return against if production_rises else with_sum


def moved(meter: Meter, looks: Sequence[Look]) -> dict[str, int]:
    """Wh by which counters rose between the first look and the last, where that is more than nothing."""
    first, last = looks[0], looks[-1]
    found = {}
    for name in {meter.production, "energy_import", "energy_export"}:
        a, b = first.number(name), last.number(name)
        if a is not None and b is not None and b > a:
            found[name] = int(b - a)
    return found


def settled(meter: Meter, looks: Sequence[Look]) -> bool:
    """Whether looking longer tells nothing more about the direction."""
    register = meter.map.register(meter.production)
    now = looks[-1].number(meter.production)
    step = step_wh(register, now) if register is not None and now is not None else 1
    return max(moved(meter, looks).values(), default=0) >= 3 * step


def transformers(meter: Meter, looks: Sequence[Look], sun: Sun) -> Check | None:
    """Whether each current transformer sits on its phase, and the right way round."""
    look = looks[-1]
    if sum(look.number(f"active_power_{phase}") is not None for phase in PHASES) < 2:
        return None
    if (dark := _dark("transformers", meter, sun, "The current transformers")) is not None:
        return dark
    if flowing(meter, look) < FLOWS:
        return Check("transformers", meter.id, "unknown", _idle(meter, look), _by_day(sun), "no-power")
    shown = ", ".join(
        f"{phase.upper()} {value / 1000:.2f} kW"
        for phase in PHASES
        if (value := look.number(f"active_power_{phase}")) is not None
    )
    off = off_phase(look, meter)
    if off:
        return _misplaced(meter, off, shown)
    rose = moved(meter, looks)
    wrong = turned(look, production_rises=meter.production in rose or not rose)
    if wrong:
        names = " and ".join(phase.upper() for phase in wrong)
        says = f"The current transformer{'s' * (len(wrong) > 1)} of {names} {'are' if len(wrong) > 1 else 'is'} turned"
        says += f" round: power runs against the other phase{'s' * (len(wrong) < 2)} while the sun shines ({shown})."
        todo = f"Turn {names} round (or exchange its two wires at the meter), then run this again. Until then"
        todo += " the counter misses most of the production."
        return Check("transformers", meter.id, "wrong", says, todo, "ct-turned")
    if off is None:
        says = f"All phases run the same way ({shown}); too little flows to tell whether each sits on its phase."
        return Check("transformers", meter.id, "unknown", says, _by_day(sun), "no-power")
    return Check("transformers", meter.id, "green", f"Each sits on its phase and the same way round ({shown}).")


def _misplaced(meter: Meter, off: Sequence[str], shown: str) -> Check:
    names = " and ".join(phase.upper() for phase in off)
    todo = "Put each transformer on the conductor of its own phase, then run this again: the counter misses energy."
    if len(off) == 2:
        says = f"The current transformers of {names} are exchanged: their power factors do not fit ({shown})."
        return Check("transformers", meter.id, "wrong", says, todo, "ct-exchanged")
    if len(off) == 3:
        says = f"No current fits the voltage of its phase ({shown}): all transformers sit one phase further."
        todo += " An inverter that feeds in much reactive power shows this too: look at its settings."
        return Check("transformers", meter.id, "wrong", says, todo, "ct-shifted")
    says = f"The power factor of {names} is low, that of the other phases is not ({shown})."
    return Check("transformers", meter.id, "attention", says, "Look at what feeds in there.", "power-factor")


def _idle(meter: Meter, look: Look) -> str:
    watts = power_w(look)
    shown = "nothing can be seen" if watts is None else f"only {watts:,.0f} W of {meter.rated_kw:g} kW flow"
    return f"The sun shines, but {shown}: are the inverters switched on?"


def direction(meter: Meter, looks: Sequence[Look], sun: Sun) -> Check:
    """Whether the counter that is production here is the one that rises while the sun shines."""
    if (dark := _dark("direction", meter, sun, "The direction")) is not None:
        return dark
    look, rose, over = looks[-1], moved(meter, looks), looks[-1].at - looks[0].at
    unmetered = power_w(look) is None and not sizes(look)  # it tells no power; its counter does
    if flowing(meter, look) < FLOWS and not unmetered:
        return Check("direction", meter.id, "unknown", _idle(meter, look), _by_day(sun), "no-power")
    if off_phase(look, meter) or turned(look, production_rises=meter.production in rose):
        says = "The direction cannot be judged before the current transformers sit right."
        return Check("direction", meter.id, "unknown", says, "See transformers; then run this again.", "transformers")
    names = {name: wh for name, wh in rose.items() if name != meter.production}
    if meter.production in rose and rose[meter.production] >= max(names.values(), default=0):
        says = f"{meter.production} rises while the sun shines: {kwh(rose[meter.production])} kWh in {_span(over)}."
        return Check("direction", meter.id, "green", says)
    if names:
        other = max(names, key=lambda name: names[name])
        says = f"{other} rises while the sun shines ({kwh(names[other])} kWh in {_span(over)}), and"
        says += f" {meter.production}, which is production here, stands still: the current transformers of all phases"
        says += " are turned round, or the supply is connected at the other side."
        todo = f'Turn them all, or write below [[meter]] {meter.id}: production = "{other}". Then run this again.'
        return Check("direction", meter.id, "wrong", says, todo, "all-turned")
    says = f"{meter.production} has not moved in {_span(over)}."
    watts, register, now = power_w(look), meter.map.register(meter.production), look.number(meter.production)
    if watts and register is not None and now is not None:
        step = step_wh(register, now)
        needed = timedelta(seconds=2 * step * 3600 / watts)
        if over > 2 * needed:
            says = f"{watts / 1000:.1f} kW flow, but {meter.production} has not moved in {_span(over)}."
            todo = "Is it the counter that counts here? heliograph read --all shows the others."
            return Check("direction", meter.id, "wrong", says, todo, "stands-still")
        says += f" It counts in steps of {step} Wh, and {watts / 1000:.1f} kW flow."
        return Check("direction", meter.id, "unknown", says, f"Look longer: --watch {_watch(needed)}", "too-short")
    return Check("direction", meter.id, "unknown", says, "Look longer: --watch 5m", "too-short")


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"


def _watch(span: timedelta) -> str:
    seconds = span.total_seconds() * 2
    return f"{seconds + 9:.0f}s" if seconds < 90 else f"{seconds // 60 + 1:.0f}m"


def plausible(meter: Meter, looks: Sequence[Look], sun: Sun, inverter_kw: float | None) -> Check:
    """Whether what is measured can be what the plant gives: a forgotten ratio of the transformers is a factor."""
    look, rated = looks[-1], meter.rated_kw * 1000
    watts = power_w(look)
    given = "".join(f", {name} {number:g} given by the site" for name, number in meter.factors)
    if watts is not None and watts > ABOVE * rated:
        says = f"{watts / 1000:.1f} kW are measured, {watts / rated:.1f} times the rated {meter.rated_kw:g} kW{given}."
        todo = "Is the ratio of the current transformers set right, in the meter and in factors, or is rated_kw wrong?"
        return Check("plausible", meter.id, "wrong", says, todo, "above-rated")
    if (wrong := _counts_otherwise(meter, looks)) is not None:
        return wrong
    if (dark := _dark("plausible", meter, sun, "The size of the power")) is not None:
        return dark
    if watts is None:
        says = "The device shows no power, so nothing can be held against rated_kw."
        return Check("plausible", meter.id, "unknown", says, "Compare a day's figure with the inverter's.", "no-power")
    shown = f"{watts / 1000:.2f} kW of {meter.rated_kw:g} kW{given}"
    if inverter_kw is not None:
        return _compared(meter, watts / 1000, inverter_kw)
    clear = sun.clear if sun.clear is not None and sun.clear >= BRIGHT else None
    expected = rated * (min(1.0, clear / 1000) if clear is not None else UNPLACED)
    if clear is not None and watts < FORGOTTEN * expected:
        says = f"{shown} are measured where a clear sky would give about {expected / 1000:.0f} kW; clouds leave more."
        todo = "Is the ratio of the current transformers set (200/5 is 40), are all inverters on, is rated_kw right?"
        return Check("plausible", meter.id, "attention", says, todo, "ct-ratio")
    if watts < CLOUDED * expected:
        says = f"{shown} are too little to tell clouds from a wrong ratio of the current transformers."
        todo = f"Say what the inverters show now: --answer {meter.id}.inverter-kw=4.2, or come back in full sun."
        return Check("plausible", meter.id, "unknown", says, todo, "weak-light")
    return Check("plausible", meter.id, "green", f"{shown} fit the plant and the hour.")


def _compared(meter: Meter, measured: float, told: float) -> Check:
    if measured > 0 and 0.8 <= told / measured <= 1.25:
        says = f"The inverters show {told:g} kW, the meter {measured:.2f} kW."
        return Check("plausible", meter.id, "green", says)
    factor = told / measured if measured > 0 else 0.0
    near = min(RATIOS, key=lambda one: abs(max(factor, 1 / factor if factor else 1) / one - 1))
    fits = factor > 0 and abs(max(factor, 1 / factor) / near - 1) < 0.15
    says = f"The inverters show {told:g} kW, but {measured:.2f} kW are measured"
    if not fits:
        todo = "Do these inverters, and no others, feed in behind this meter? Else look at the transformers' ratio."
        return Check("plausible", meter.id, "wrong", f"{says}.", todo, "ct-ratio")
    less = f"{near} times too little" if factor > 1 else f"{near} times too much"
    says += f", {less}: as if a ratio of {near * 5}/5 had been {'forgotten' if factor > 1 else 'set twice'}."
    todo = "Set the ratio of the current transformers in the meter, or in factors where the map takes it from the site."
    return Check("plausible", meter.id, "wrong", says, todo, "ct-ratio")


def _counts_otherwise(meter: Meter, looks: Sequence[Look]) -> Check | None:
    """Whether the counter rises by something else than the power says."""
    register, now = meter.map.register(meter.production), looks[-1].number(meter.production)
    rose = moved(meter, looks)
    if register is None or now is None or not rose:
        return None
    expected = 0.0
    for a, b in pairwise(looks):
        watts = [abs(value) for one in (a, b) if (value := one.number("active_power")) is not None]
        if len(watts) < 2:
            return None
        expected += sum(watts) / 2 * (b.at - a.at).total_seconds() / 3600
    step, found = step_wh(register, now), max(rose.values())
    if looks[-1].at - looks[0].at < timedelta(seconds=1) or min(expected, found) < 5 * step:
        return None
    if 0.5 < found / expected < 2:
        return None
    factor = max(found / expected, expected / found)
    says = f"The counter rose by {kwh(found)} kWh where the power says {expected / 1000:.3f} kWh: {factor:.0f} times"
    says += f" too {'much' if found > expected else 'little'}."
    todo = f"A wrong scale or ratio of the counter or of the power: heliograph read {meter.id} --all"
    return Check("plausible", meter.id, "wrong", says, todo, "counter-factor")


# -- the box --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClockSeen:
    now: datetime
    trusted: bool
    witness: str | None
    """What a platform says against the clock; '' where it agrees, None where none was asked or answered."""


def clock(
    seen: ClockSeen, zone: ZoneInfo, position: Position | None, answer: str | None, suns: Sequence[Sun] = ()
) -> Iterator[Check]:
    local = seen.now.astimezone(zone)
    shown = f"{local:%Y-%m-%d %H:%M} in {zone.key}"
    todo = "Check the network and NTP: timedatectl. Until then no day is closed and nothing is delivered."
    if seen.witness:
        says = f"The clock says {shown}, which is {seen.witness} clock."
        yield Check("clock", "site", "wrong", says, todo, "clock-wrong")
    elif seen.trusted:
        yield Check("clock", "site", "green", f"The clock is synchronised: {shown}.")
    elif seen.witness == "":
        says = f"Nobody keeps this clock right, though a platform agrees with it now ({shown})."
        yield Check("clock", "site", "attention", says, "Switch NTP on: timedatectl set-ntp true", "clock-alone")
    else:
        says = f"The clock is not synchronised: it says {shown}."
        yield Check("clock", "site", "wrong", says, todo, "clock-untrusted")
    odd = [one for one in suns if one.odd]
    if odd:
        says = f"By this clock it is night ({shown}), but {odd[0].why.rpartition(', but ')[2]}."
        todo = "Compare the clock with a watch; else site.timezone, or latitude and longitude, are wrong."
        yield Check("zone", "site", "wrong", says, todo, "zone")
        return
    yield _zone(seen.now, zone, position, answer)


def _zone(now: datetime, zone: ZoneInfo, position: Position | None, answer: str | None) -> Check:
    local = now.astimezone(zone)
    offset = (local.utcoffset() or timedelta(0)) - (local.dst() or timedelta(0))
    if position is not None:
        away = (offset.total_seconds() / 240 - position.longitude + 180) % 360 - 180
        if abs(away) > 45:  # three hours: more than any zone that is in use
            hours = offset.total_seconds() / 3600
            says = f"{zone.key} is UTC{hours:+g} h, but the site lies at {position.longitude:g} degrees east."
            todo = "Correct site.timezone, or latitude and longitude: days are closed at the zone's midnight."
            return Check("zone", "site", "wrong", says, todo, "zone")
        if answer is None:
            return Check("zone", "site", "green", f"{zone.key} fits the position of the site.")
    if answer == "yes":
        return Check("zone", "site", "green", f"You confirm that it is {local:%H:%M} here, in {zone.key}.")
    if answer == "no":
        says = f"You say that it is not {local:%H:%M} here, as {zone.key} has it."
        return Check("zone", "site", "wrong", says, "Correct site.timezone, or the clock.", "zone")
    says = f"Nobody has confirmed that it is {local:%H:%M} here ({zone.key}), and the position is not known."
    todo = "Add latitude and longitude below [site], or: --answer time=yes"
    return Check("zone", "site", "unknown", says, todo, "not-confirmed")


def storage(place: str, trouble: str, free_bytes: int | None, *, exists: bool = True) -> Check:
    if trouble:
        todo = "Give the folder to the service's user, or look at the card; heliograph status says more."
        return Check("storage", "site", "wrong", f"{place}: {trouble}.", todo, "storage")
    if not exists:
        says = f"There is no {place} yet; the service makes it at its first start."
        todo = "sudo systemctl start heliograph, then run this again."
        return Check("storage", "site", "attention", says, todo, "no-folder")
    if free_bytes is not None and free_bytes < ROOM_BYTES:
        says = f"Only {free_bytes / 1e6:.0f} MB are free at {place}."
        return Check("storage", "site", "attention", says, "Make room: df -h shows how full it is.", "space")
    room = f", {free_bytes / 1e9:.1f} GB are free" if free_bytes is not None else ""
    return Check("storage", "site", "green", f"{place} can be written{room}.")


# -- the platforms --------------------------------------------------------------------------------------------


def platform(
    uplink: str, meters: Sequence[Meter], roll: Roll, token_until: datetime | None, now: datetime
) -> Iterator[Check]:
    """What asking the platform told, in the order in which one thing needs the other."""
    trouble = roll.trouble
    if trouble is not None and not trouble.token:
        cause = trouble.rule if trouble.rule in ("clock", "certificate") else "platform-away"
        todo = trouble.remedy or "Run this again in a few minutes; if it stays so, ask the platform."
        yield Check("platform", uplink, "wrong", f"It cannot be used now: {trouble.text}.", todo, cause)
        says = "Whether the token is good cannot be told before the platform answers."
        yield Check("token", uplink, "unknown", says, "Run this again when it does.", "platform-away")
        return
    if trouble is not None and trouble.rule == "config":
        says = f"The platform was not asked, for there is no token to be seen: {trouble.text}."
        yield Check("token", uplink, "unknown", says, trouble.remedy, "token-hidden")
        return
    if trouble is not None:
        yield Check("platform", uplink, "green", "It answers, with a certificate that holds where TLS is used.")
        yield Check(
            "token", uplink, "wrong", f"The token is no good: {trouble.text}.", trouble.remedy or RENEW, "token"
        )
        return
    yield Check("platform", uplink, "green", "It answers, with a certificate that holds where TLS is used.")
    yield _token(uplink, token_until, now)
    told = {one.remote_id: one for one in roll.devices}
    for meter in meters:
        for report in meter.reports:
            if report.uplink == uplink:
                yield _registered(meter, uplink, told.get(report.remote_id) or Registered(report.remote_id))


def _token(uplink: str, until: datetime | None, now: datetime) -> Check:
    if until is None:
        return Check("token", uplink, "green", "The token is taken; it renews itself, or tells no end.")
    shown = f"it ends {until:%Y-%m-%d}, in {durations.shown(until - now)}"
    if until - now < SOON:
        todo = "Put a new one in its place; a file is read again by itself."
        return Check("token", uplink, "attention", f"The token is taken, but {shown}.", todo, "token-ends")
    return Check("token", uplink, "green", f"The token is taken; {shown}.")


def _registered(meter: Meter, uplink: str, told: Registered) -> Check:
    about = f"{meter.id} is registered at {uplink} as {told.remote_id}"
    if told.known is False:
        says = f"{meter.id} is not registered at {uplink} as {told.remote_id}."
        return Check("registered", uplink, "wrong", says, told.text, "not-registered")
    if told.known is None:
        says = f"Whether {about} could not be told{f': {told.text}' if told.text else ''}."
        return Check("registered", uplink, "unknown", says, "Look it up there by hand.", "registered-untold")
    if told.barred:
        says = f"{about}, but nothing is taken for it."
        return Check("registered", uplink, "wrong", says, told.text, "barred")
    if told.capacity_kw is not None and abs(told.capacity_kw / meter.rated_kw - 1) > 0.05:
        says = f"{about} with {told.capacity_kw:g} kW; rated_kw is {meter.rated_kw:g} here."
        todo = "Correct the one that is wrong: the platform refuses days above its capacity."
        return Check("registered", uplink, "attention", says, todo, "capacity")
    with_kw = f" with {told.capacity_kw:g} kW, as here" if told.capacity_kw is not None else ""
    return Check("registered", uplink, "green", f"{about}{with_kw}. {told.text}".strip())


def green(checks: Sequence[Check]) -> bool:
    return all(check.result == "green" for check in checks)

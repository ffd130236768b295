"""Goes over a new site with the person who built it: looks, asks, and hands what was found to core/commissioning.

Nothing is stored, and nothing that belongs to a day leaves: what is delivered goes to a stand-in platform.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from heliograph.core import commissioning as judge
from heliograph.core import daily
from heliograph.core.commissioning import Check, ClockSeen, Look, Sun, Told
from heliograph.core.delivery import DayRow, Roll, Stored, Unknown
from heliograph.core.errors import BusError, BusUnreachable, HeliographError
from heliograph.core.figures import kwh
from heliograph.core.registers import MeterMap
from heliograph.core.site import Meter, Report
from heliograph.ports import Bus, Clock, Uplink
from heliograph.work.close_days import Rules
from heliograph.work.identify import QUICK, SLOW, identify
from heliograph.work.witness import beside

BETWEEN = 3.0
"""Seconds between two looks at a meter."""
PERIODS = (3.127, 2.891)
"""kWh per kW of two made-up days: below D-REC's ceiling, and with every digit down to the Wh."""


class Guide(Protocol):
    """Whoever sits before the screen, or nobody."""

    def tell(self, check: Check) -> None: ...

    def ask(self, key: str, question: str) -> str | None:
        """The answer, in small letters; None where there is nobody, or they do not know."""
        ...

    def busy(self, what: str) -> AbstractContextManager[object]: ...


@dataclass(frozen=True, slots=True)
class Box:
    """What was found of the gateway's own computer."""

    running: bool
    """The gateway runs, and was asked instead."""
    trusted: bool
    storage: str = ""
    """Why nothing can be stored."""


@dataclass(frozen=True, slots=True)
class Means:
    """How the site is reached; the verb knows whether that goes through the running gateway."""

    look: Callable[[Meter, bool], Mapping[str, Any]]
    """Everything a meter shows, or what is polled. Raises BusError."""
    sight: Callable[[Meter], Told]
    """What the device at a meter's unit says of itself."""
    look_up: Callable[[str, Sequence[str]], tuple[Roll, datetime | None]]
    """What a platform knows of devices, and when its token ends."""
    rehearse: Callable[[Meter, Report], str]
    """Delivers made-up days to a stand-in platform; what went wrong, or ''."""
    uplinks: Sequence[Uplink]
    """To compare the clock with; none where the gateway does that itself."""
    box: Box
    data_dir: Path


@dataclass
class Found:
    checks: list[Check] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    """The first look at each meter that answered."""
    suns: list[Sun] = field(default_factory=list)
    """Whether the sun shone when each meter was watched."""
    said: str | None = None
    """What the person says of the sun."""


def commission(
    meters: Sequence[Meter],
    configuration: Sequence[Check],
    means: Means,
    clock: Clock,
    rules: Rules,
    guide: Guide,
    watch: timedelta,
) -> Found:
    """All steps in order; each is told as soon as it is known."""
    found = Found()

    def note(check: Check | None) -> None:
        if check is not None:
            found.checks.append(check)
            guide.tell(check)

    for check in configuration:
        note(check)
    for meter in meters:
        _meter(meter, means, clock, rules, guide, watch, found, note)
    for check in _box(means, clock, rules, guide, found.suns):
        note(check)
    for uplink in sorted({report.uplink for meter in meters for report in meter.reports}):
        _platform(uplink, meters, means, clock, guide, note)
    return found


def _meter(
    meter: Meter,
    means: Means,
    clock: Clock,
    rules: Rules,
    guide: Guide,
    watch: timedelta,
    found: Found,
    note: Callable[[Check | None], None],
) -> None:
    try:
        with guide.busy(f"{meter.id}: reading every register"):
            look = found.looks[meter.id] = as_look(means.look(meter, True))
    except HeliographError as error:
        # What the line guesses of itself, such as noise, the doctor knows better.
        todo = f"heliograph doctor {meter.id} finds out why."
        if isinstance(error, BusUnreachable) and error.hint:
            todo = f"{error.hint.rstrip('.')}. If it is not that: heliograph doctor {meter.id}"
        cause = "line" if isinstance(error, BusError) else "gateway"
        note(Check("line", meter.id, "wrong", f"It could not be read: {error.message}.", todo, cause))
        with guide.busy(f"{meter.id}: asking what it is"):
            told = _told(means, meter)
        note(judge.another_kind(meter, told))
        return
    how = "The running gateway reads it." if means.box.running else f"It answers on {meter.bus} as unit {meter.unit}."
    note(Check("line", meter.id, "green", how))
    with guide.busy(f"{meter.id}: asking what it is"):
        told = _told(means, meter)
    note(who := judge.identity(meter, look, told))
    if not look.stranger:
        note(judge.registers(meter, look))
    if who.result == "wrong":
        return  # what follows would be said of another device, or of numbers that mean nothing
    note(counters := judge.counters(meter, look))
    if counters.result == "wrong":
        return
    shown = look.number(meter.production)
    figure = kwh(int(shown)) if shown is not None else ""
    answer = guide.ask(f"{meter.id}.display", f"Does the display of {meter.id} show {figure} kWh, or a little more?")
    note(judge.display(meter, look, answer))
    note(judge.phases(meter, look))
    note(judge.electrics(meter, look))
    looks, share = [look], judge.flowing(meter, look)
    if rules.position is None and not found.suns:
        found.said = guide.ask("sun", "Is the sun on the panels now?")
    sun = judge.sun(clock.now(), rules.zone, rules.position, share, found.said)
    found.suns.append(sun)
    if sun.shines:
        looks = _watch(meter, look, means, clock, guide, watch)
    note(judge.transformers(meter, looks, sun))
    note(judge.direction(meter, looks, sun))
    power = None
    if sun.shines and judge.power_w(look) is not None:
        power = guide.ask(f"{meter.id}.inverter-kw", f"What power do the inverters behind {meter.id} show now, in kW?")
    note(judge.plausible(meter, looks, sun, _number(power)))


def _watch(meter: Meter, first: Look, means: Means, clock: Clock, guide: Guide, watch: timedelta) -> list[Look]:
    """Looks until the counters have risen enough to tell which does, for `watch` at most."""
    looks, until = [first], clock.now() + watch
    with guide.busy(f"{meter.id}: watching which counter rises, for {watch.total_seconds():.0f} s at most"):
        while True:
            try:
                look = as_look(means.look(meter, False))
            except HeliographError:
                look = looks[-1]  # the first look has shown that it can be read
            if look.at > looks[-1].at:
                looks.append(look)
            if clock.now() >= until or judge.settled(meter, looks):
                return looks
            clock.sleep(BETWEEN)


def _told(means: Means, meter: Meter) -> Told:
    try:
        return means.sight(meter)
    except HeliographError:
        return judge.NOTHING  # a line that fails is told by what is read


def sight(bus: Bus, meter: Meter, maps: Sequence[MeterMap]) -> Told:
    """What the device at a meter's unit says of itself. Raises BusUnreachable."""
    maps = [*(map for map in maps if map.name != meter.map.name), meter.map]
    quick = replace(QUICK, pause=max(QUICK.pause, meter.timing.pause), after_connect=meter.timing.after_connect)
    seen = identify(bus, meter.unit, maps, quick)
    if not seen.here:
        seen = identify(bus, meter.unit, maps, replace(meter.timing, pause=max(SLOW.pause, meter.timing.pause)))
    named = [fit for fit in seen.fits if fit.evidence == "named"]
    own = next((fit for fit in seen.fits if fit.map.name == meter.map.name), None)
    parents = {map.name: map.extends for map in maps}
    fits = any(meter.map.name in _lineage(fit.map.name, parents) for fit in named)
    marked = fits
    if named and not fits and meter.map.identity.match:  # a closer one hides it
        marked = identify(bus, meter.unit, [meter.map], quick).best is not None
    order = ""
    if own is not None and own.order is not None:
        order = own.check if own.sound is False else "; ".join(own.because)
    return Told(
        tuple(fit.map.name for fit in named),
        "; ".join(named[0].because) if named else "",
        fits,
        marked,
        tuple(fit.map.name for fit in seen.fits if fit.evidence == "serial"),
        seen.serial,
        order,
    )


def _lineage(name: str | None, parents: Mapping[str, str | None]) -> set[str]:
    """A map, and those it extends."""
    found = set[str]()
    while name is not None and name not in found:
        found.add(name)
        name = parents.get(name)
    return found


def as_look(read: Mapping[str, Any]) -> Look:
    """From what `read` shows, of the line or of the running gateway."""
    return Look(
        datetime.fromisoformat(read["at"]),
        read["values"],
        read.get("absent", {}),
        read.get("words", {}),
        read.get("serial"),
        read.get("stranger", ""),
        read.get("doubts", ()),
        read.get("refused", ()),
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text.replace(",", ".")) if text is not None else None
    except ValueError:
        return None


def _box(means: Means, clock: Clock, rules: Rules, guide: Guide, suns: Sequence[Sun]) -> list[Check]:
    told = [against for uplink in means.uplinks if (against := beside(uplink, clock)) is not None]
    seen = ClockSeen(clock.now(), means.box.trusted, told[0] if told else None)
    local = clock.now().astimezone(rules.zone)
    answer = guide.ask("time", f"Is it {local:%H:%M} on your watch?") if rules.position is None else None
    checks = list(judge.clock(seen, rules.zone, rules.position, answer, suns))
    exists = means.box.running or means.data_dir.is_dir()
    trouble, free = _writable(means.data_dir) if exists and not means.box.running else ("", None)
    return [*checks, judge.storage(str(means.data_dir), means.box.storage or trouble, free, exists=exists)]


def _writable(folder: Path) -> tuple[str, int | None]:
    """Why nothing can be written there, and how many bytes are free."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"heliograph")
            file.flush()
        return "", shutil.disk_usage(folder).free
    except OSError as error:
        return f"it cannot be written ({error.strerror})", None


def _platform(
    uplink: str,
    meters: Sequence[Meter],
    means: Means,
    clock: Clock,
    guide: Guide,
    note: Callable[[Check | None], None],
) -> None:
    ours = [(meter, report) for meter in meters for report in meter.reports if report.uplink == uplink]
    with guide.busy(f"{uplink}: asking what it knows of {len(ours)} device{'s' * (len(ours) > 1)}"):
        roll, until = means.look_up(uplink, [report.remote_id for _, report in ours])
    for check in judge.platform(uplink, meters, roll, until, clock.now()):
        note(check)
    for meter, report in ours:
        with guide.busy(f"{uplink}: rehearsing the first delivery of {meter.id}"):
            trouble = means.rehearse(meter, report)
        about = f"made-up days of {meter.id} to a stand-in {uplink} in this program"
        if trouble:
            says, todo = f"Delivering {about} failed: {trouble}", f"Look at [uplink.{uplink}]: dialect and its keys."
            note(Check("rehearsal", uplink, "wrong", says, todo, "rehearsal"))
        else:
            says = f"Delivered {about}, and read back the same to the Wh. Nothing left for the real one."
            note(Check("rehearsal", uplink, "green", says))


def rehearse(uplink: Uplink, meter: Meter, report: Report, clock: Clock, zone: ZoneInfo) -> str:
    """Two made-up days of this meter through the uplink, and what it says it holds then; what went wrong, or ''."""
    total, today, rows = meter.baseline_wh, daily.day_of(clock.now(), zone), []
    for number, share in enumerate(PERIODS, 1):
        day, period = today - timedelta(days=1 + len(PERIODS) - number), int(meter.rated_kw * 1000 * share) + number
        total += period
        times = daily.start_of(day, zone), daily.end_of(day, zone)
        rows.append(DayRow(number, meter.id, report.remote_id, day, *times, period, total))
    waiting, sent = list(rows), list[DayRow]()
    for claim in range(1, 2 * len(rows) + 1):
        if early := uplink.prepare(waiting):
            return next(iter(early.values())).text
        parcel = uplink.pack(waiting)
        if parcel is None:
            return "nothing may be sent for this device"
        verdicts = uplink.send(parcel)
        for one in parcel.rows:
            verdict = verdicts[one.id]
            if verdict.state not in ("accepted", "confirmed", "unclear"):
                return f"{verdict.text} {verdict.remedy}".strip()
            row = replace(one, claim=claim, claimed_at=clock.now(), state=verdict.state, last_rule=verdict.rule)
            sent.append(replace(row, process_id=verdict.process_id))
        waiting = [row for row in waiting if row.id not in {one.id for one in sent}]
        if not waiting:
            break
    if followed := [row for row in sent if row.process_id]:
        for verdict in uplink.follow(followed).values():
            if verdict.state != "confirmed":
                return f"{verdict.text} {verdict.remedy}".strip()
    held = uplink.ask(sent)
    for row in sent:
        match held.get(row.id):
            case Stored() as stored:
                if stored.period_wh not in (None, row.period_wh):
                    return f"{kwh(row.period_wh)} kWh were delivered for {row.day}, {stored.period_wh} Wh are held"
                if stored.total_wh not in (None, row.total_wh):
                    return f"{kwh(row.total_wh)} kWh were delivered as running total, {stored.total_wh} Wh are held"
            case Unknown(verdict=verdict) if verdict.state != "confirmed":
                return f"{row.day} could not be read back: {verdict.text}"
            case Unknown():
                continue
            case _:
                return f"{row.day} is not there afterwards"
    return ""

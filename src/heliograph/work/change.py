"""Holds what is read of a counter that means something else than what is booked of it, until a person has confirmed.

A map, a byte order, a ratio or the choice of the counter may be edited at any time. What the readings that were
believed so far meant stands beside the meter in the store; where today's meaning differs, every reading carries a
doubt that names the difference, so that no border, no day and no platform ever sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from heliograph.core.errors import ConfigError
from heliograph.core.figures import kwh
from heliograph.core.meaning import Meaning, differences, from_json, index_wh, meaning_of
from heliograph.core.readings import RATIO, STRANGER, TENTATIVE, Reading
from heliograph.core.registers import MeterMap
from heliograph.core.site import Meter
from heliograph.store import Store


@dataclass(frozen=True, slots=True)
class Change:
    """What is booked of a counter, and what its words mean by today's map and configuration."""

    old: Meaning
    new: Meaning

    @property
    def words(self) -> str:
        return "; ".join(differences(self.old, self.new))

    @property
    def mark(self) -> str:
        """Tells readings of this change from those of another one that was tried before it."""
        return f"[{self.new.short}]"

    @property
    def doubt(self) -> str:
        return f"{TENTATIVE}, {self.words} {self.mark}"


def pending(meter: Meter, store: Store) -> Change | None:
    """The change that nobody has confirmed yet; None where the counter is read as what is booked of it."""
    known = store.readings.meaning(meter.id)
    new = meaning(meter)
    if known is None or known[1] is None or new is None:
        return None
    old = _stored(known[1])
    return Change(old, new) if old is not None and old.digest != new.digest else None


def introduce(
    meter: Meter, store: Store, make_map: Callable[[str, Mapping[str, tuple[str, str]]], MeterMap]
) -> Change | None:
    """At a start: remembers what the counter means where nothing is booked yet, and finds what was changed since.

    A store that was written before meanings were stored tells it by the map and the configuration of its newest
    believed reading; where those are not to be had, today's meaning is taken.
    """
    known, new = store.readings.meaning(meter.id), meaning(meter)
    if known is None or new is None:
        return None
    production, said = known
    last = store.readings.last_good(meter.id)
    seams = [seam for seam in store.seams.all(meter.id) if seam.kind != "correction"]
    old: Meaning | None = None
    if last is None or (seams and seams[-1].kind == "swap" and last.moment.at < seams[-1].at):
        old = new  # nothing is booked of this counter yet, or a new device was told of, and is read for the first time
    elif said is not None:
        old = _stored(said)
    else:
        old = _read_with(meter, production, last, store, make_map)
    if old is None or old.digest == new.digest:
        old = new  # the same in other words
    if said != old.as_json() or production != old.quantity:
        store.readings.remember_meaning(meter.id, old.quantity, old.as_json())
    return Change(old, new) if old.digest != new.digest else None


def marked(change: Change, meter: str, store: Store) -> Iterator[Reading]:
    """Readings of that meaning since the last one that was believed, newest first."""
    for reading in store.readings.back(meter):
        if reading.good:
            return
        if change.mark in reading.doubt and reading.index_wh is not None:
            yield reading


def told_ratios(meter: Meter, values: Mapping[str, float | int]) -> dict[str, float]:
    """Those that multiply the production counter, as the device tells them; none of which the site says it itself."""
    register, said = meter.map.register(meter.production), dict(meter.factors)
    names = register.times if register is not None else ()
    return {name: values[name] for name in names if name in values and name not in said}


def base_ratios(meter: Meter, store: Store) -> dict[str, float]:
    """The ratios that the device told when it was believed last; another one is a doubt.

    None of a meter that was replaced since, and none that an edit has read from other words now.
    """
    good, change = store.readings.last_good(meter.id), pending(meter, store)
    swaps = [seam.at for seam in store.seams.all(meter.id) if seam.kind == "swap"]
    if good is None or (swaps and swaps[-1] > good.moment.at):
        return {}
    found = told_ratios(meter, good.values)
    if change is not None:
        was = {one.name: one.key["read"] for one in change.old.factors}
        same = {one.name for one in change.new.factors if one.read is not None and one.key["read"] == was.get(one.name)}
        found = {name: ratio for name, ratio in found.items() if name in same}
    return found


def other_ratio(base: Mapping[str, float], ratios: Mapping[str, float]) -> str:
    """The doubt of a reading whose ratios are not those of before: what the counter gains by it nobody has produced."""
    found = [(name, ratio, base[name]) for name, ratio in ratios.items() if base.get(name, ratio) != ratio]
    return "; ".join(f"{RATIO} {name} {ratio:g} instead of {before:g}" for name, ratio, before in found)


def evidence(change: Change, meter: Meter, store: Store) -> tuple[list[Reading], str]:
    """Readings of that meaning about which nothing else is doubtful, oldest first, and what puts an end to them.

    From another meter, or from another ratio on, what was read waits for a person in its own right.
    """
    found: list[Reading] = []
    base, serial = base_ratios(meter, store), store.readings.serial(meter.id)
    for reading in reversed(list(marked(change, meter.id, store))):
        other, _, _ = reading.doubt.partition(TENTATIVE)
        since = f"since {reading.moment.at:%Y-%m-%d %H:%M} UTC"
        if STRANGER in other and f" to {serial};" not in other:
            return found, f"{since} {other.rstrip('; ')}"
        ratios = told_ratios(meter, reading.values)
        if doubt := other_ratio(base, ratios):
            return found, f"{since} {doubt}"
        base = ratios | base
        if not other and reading.index_wh is not None and reading.index_wh >= 0:
            found.append(reading)
    return found, ""


def old_index_wh(change: Change, reading: Reading, meter: Meter, good: Reading | None) -> int | None:
    """What the counter would read at that moment if nothing had been changed; `good` is the last one that is believed.

    Decoded from the same words, or found under another name of today's map; None where it was not read any more,
    or another ratio came with it.
    """
    source = reading.source
    if source is None:
        return None
    new, before = {one.name: one for one in change.new.factors}, good.values if good is not None else {}
    told = {
        one.name: Decimal(str(before[one.name]))
        for one in change.old.factors
        if one.name in before and reading.values.get(one.name) == before[one.name]
        if one.name in new and new[one.name].key["read"] == one.key["read"]
    }
    found = index_wh(change.old, source.function, source.address, reading.words, told)
    if found is not None:
        return found
    for register in meter.map.registers:
        same = meaning_of(meter.map, register.quantity, dict(meter.factors))
        value = reading.values.get(register.quantity)
        if same is not None and same.digest == change.old.digest and isinstance(value, int):
            return value
    return None


def told(change: Change, meter: Meter, store: Store) -> str:
    """For a person: what was changed, what it does to the counter, and what can be done."""
    good, newest = store.readings.last_good(meter.id), next(marked(change, meter.id, store), None)
    if newest is None:
        return (
            f"{meter.id}: its counter is to be read in another way than what is booked of it: {change.words}."
            f"{_would(change, good)} Nothing was read so yet; what will be is kept, but neither booked nor delivered."
            f" {confirm(meter.id)}"
        )
    text = f"{meter.id}: its counter is read in another way than what is booked of it: {change.words}"
    if newest.index_wh is not None:
        old = old_index_wh(change, newest, meter, good)
        if old is not None:
            text += f". It reads {kwh(newest.index_wh)} instead of {kwh(old)} kWh, {_signed(newest.index_wh - old)} kWh"
        elif good is not None and good.index_wh is not None:
            text += f". It reads {kwh(newest.index_wh)} kWh; before the change it read {kwh(good.index_wh)} kWh"
    other, _, _ = newest.doubt.partition(TENTATIVE)
    if STRANGER in other or RATIO in other:
        text += f". And that is not all: {other.rstrip('; ')}"
    since = f" after {good.moment.at:%Y-%m-%d %H:%M} UTC" if good is not None else ""
    return f"{text}. Readings are kept, but nothing{since} is booked or delivered. {confirm(meter.id)}"


def _would(change: Change, good: Reading | None) -> str:
    """What the newest reading that is believed would be in the new way."""
    if good is None or good.source is None or good.index_wh is None:
        return ""
    factors = {name: Decimal(str(number)) for name, number in good.values.items()}
    found = index_wh(change.new, good.source.function, good.source.address, good.words, factors)
    return f" The last {kwh(good.index_wh)} kWh would read {kwh(found)} kWh." if found is not None else ""


def waiting(meters: Sequence[Meter], store: Store, name: str | None = None) -> list[str]:
    """A line for each meter of which no further day is closed until somebody has confirmed."""
    known = store.readings.meters()
    found = [(one, pending(one, store)) for one in meters if one.id in known and name in (None, one.id)]
    return [f"{told(change, one, store)}." for one, change in found if change is not None]


def confirm(meter: str) -> str:
    """The next step."""
    return (
        f"If it is right now: heliograph swap {meter} --map-changed. If it was a mistake: put it back and restart,"
        " then all goes on by itself"
    )


def _signed(wh: int) -> str:
    return f"{'+' if wh > 0 else ''}{kwh(wh)}"


def meaning(meter: Meter) -> Meaning | None:
    """What the production counter means by today's map and configuration."""
    return meaning_of(meter.map, meter.production, dict(meter.factors))


def _stored(said: Mapping[str, Any]) -> Meaning | None:
    try:
        return from_json(said)
    except (LookupError, TypeError, ValueError):
        return None


def _read_with(
    meter: Meter,
    production: str,
    last: Reading,
    store: Store,
    make_map: Callable[[str, Mapping[str, tuple[str, str]]], MeterMap],
) -> Meaning | None:
    """By which meaning a stored reading was decoded: its map's stored text, and what the site said then."""
    if last.source is None:
        return None
    try:
        map = make_map(last.source.map_digest, store.evidence.maps())
    except ConfigError:
        return None
    said = _said_at(meter.id, last.moment.at, store)
    factors = said["factors"] if said is not None else dict(meter.factors)
    order = said["order"] if said is not None else None
    if said is None and map.order != meter.map.order:
        order = meter.map.order  # nobody wrote down what the site said
    return meaning_of(replace(map, order=order) if order else map, production, factors)


def _said_at(meter: str, at: datetime, store: Store) -> Mapping[str, Any] | None:
    said = [
        (since, content["meters"][meter]) for since, content in store.chain.in_force() if meter in content["meters"]
    ]
    before = [one for since, one in said if since <= at] or [one for _, one in said[:1]]
    return before[-1] if before else None

"""Walks a figure back to the register words it came from, from stored rows alone.

Neither today's configuration nor today's maps are asked: maps are made again from their stored texts. Every number
on the way is reckoned anew and held against the stored one; `checks` says what came of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from statistics import median
from typing import Any, get_args
from urllib.parse import quote
from zoneinfo import ZoneInfo

from heliograph.core import body as bodies
from heliograph.core import daily
from heliograph.core.chain import fingerprint
from heliograph.core.daily import ESTIMATED, METHODS, Border, Day
from heliograph.core.decode import Absent, addresses, kept, ordered, value
from heliograph.core.errors import ConfigError, StoreError
from heliograph.core.figures import kwh
from heliograph.core.ledger import Seam, continuous
from heliograph.core.meaning import Meaning
from heliograph.core.quantity import UNITS
from heliograph.core.readings import TENTATIVE, Reading
from heliograph.core.registers import FUNCTION_CODES, MeterMap, Order, Register
from heliograph.store import Store
from heliograph.work.change import confirm
from heliograph.work.close_days import estimated_wh
from heliograph.work.count_polls import covered

MakeMap = Callable[[str, Mapping[str, tuple[str, str]]], MeterMap]
"""library.from_texts: the map of a digest from stored texts."""

CLOCKS = {
    0: "clock not synchronised, so nobody knows when this was",
    1: "clock synchronised",
    2: "dated afterwards by the boot-time clock, when the clock was synchronised",
}
# Longest distance between two good samples that is not drawn and counted as a gap, whatever their usual one is.
GAP = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a site says about a meter beside its map: it takes part in decoding and stands in no map's text."""

    order: Order | None = None
    factors: Mapping[str, Decimal] = field(default_factory=dict)
    production: str = ""
    """The counter that was production then; '' where nobody wrote it down."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A meter's day with what has to be known to explain it."""

    meter: str
    day: date
    zone: ZoneInfo
    start: datetime
    end: datetime
    production: str
    store: Store
    seams: Sequence[Seam]
    window: Sequence[Reading]
    """Readings from the last one that is good before the day to the first one that is good after it, doubts and all."""
    make_map: MakeMap
    maps: Mapping[str, tuple[str, str]]
    setting: Setting | None
    """What the configuration says today."""
    settings: Sequence[tuple[datetime, Setting]]
    """What it said from when on, as the hash chain holds it."""
    checks: list[dict[str, Any]] = field(default_factory=list)

    def setting_at(self, at: datetime) -> Setting | None:
        """What was said about the meter when it was read; today's word where nothing older is stored."""
        then = [setting for since, setting in self.settings if since <= at] or [one for _, one in self.settings[:1]]
        return then[-1] if then else self.setting

    def check(self, what: str, *, ok: bool) -> None:
        self.checks.append({"what": what, "ok": ok})


def explain(
    meter: str,
    day: date,
    store: Store,
    now: datetime,
    make_map: MakeMap,
    setting: Setting | None = None,
) -> dict[str, Any]:
    """Everything known about one day of one meter; `state` is closed, held, missing, open, or none: not a day of it.

    `setting` is what the configuration says today, None where the meter is not in it.
    """
    case = _gather(meter, day, store, make_map, setting)
    found: dict[str, Any] = {
        "meter": meter,
        "day": day,
        "site": (store.evidence.site() or {}).get("name", ""),
        "timezone": case.zone.key,
        "starts": case.start,
        "ends": case.end,
        "hours": (case.end - case.start).total_seconds() / 3600,
        "production": case.production,
        "serial": _serial(case, case.end),
        "serial_at_start": _serial(case, case.start),
    }
    closed = store.days.one(meter, day)
    found |= _closed(closed, case) if closed is not None else _not_closed(case, now)
    found["coverage"] = covered(meter, day, store, case.zone, now)
    found["proof"] = _proof(case)
    found["samples"] = _samples(case)
    found["seams"] = [_seam(seam, case) for seam in case.seams if seam.at <= case.end]
    found["events"] = store.evidence.events(f"{meter} {day}")
    found["maps"] = _maps(found, case)
    found["checks"] = case.checks
    return found


def curve(meter: str, day: date, store: Store) -> list[tuple[Reading, int | None, bool]]:
    """The stored samples of a day with their neighbours: reading, continuous counter in Wh, whether it counts."""
    zone, seams = _zone(meter, store), store.seams.all(meter)
    window = _window(meter, daily.start_of(day, zone), daily.end_of(day, zone), store)
    return [(reading, _continuous(reading, seams), _counts(reading)) for reading in window]


def longest(samples: Sequence[datetime]) -> timedelta:
    """The distance from which on two samples of a day have a gap between them: three times the usual one."""
    usual = [(b - a).total_seconds() for a, b in pairwise(samples)]
    if not usual:
        return GAP
    return min(GAP, max(timedelta(minutes=5), timedelta(seconds=3 * median(usual))))


# -- gathering --------------------------------------------------------------------------------------------------------


def _gather(meter: str, day: date, store: Store, make_map: MakeMap, setting: Setting | None) -> _Case:
    zone = _zone(meter, store)
    start, end = daily.start_of(day, zone), daily.end_of(day, zone)
    return _Case(
        meter,
        day,
        zone,
        start,
        end,
        (store.evidence.meter(meter) or {})["production"],
        store,
        store.seams.all(meter),
        _window(meter, start, end, store),
        make_map,
        store.evidence.maps(),
        setting,
        _settings(meter, store),
    )


def _settings(meter: str, store: Store) -> list[tuple[datetime, Setting]]:
    found = []
    for since, content in store.chain.in_force():
        if (said := content["meters"].get(meter)) is not None:
            factors = {name: Decimal(number) for name, number in said["factors"].items()}
            found.append((since, Setting(said["order"], factors, said["production"])))
    return found


def _proof(case: _Case) -> dict[str, Any] | None:
    """The day's entry in the hash chain, and the first signature that covers it."""
    entry = case.store.chain.of_day(case.meter, case.day)
    if entry is None:
        return None
    signed = case.store.chain.next_checkpoint(entry.seq)
    return {
        "entry": entry.seq,
        "hash": entry.hash.hex(),
        "carried": entry.content.get("carried", False),
        "signed_at": signed.at if signed else None,
        "checkpoint": signed.seq if signed else None,
        "fingerprint": fingerprint(signed.key) if signed else "",
    }


def _zone(meter: str, store: Store) -> ZoneInfo:
    site = store.evidence.site()
    if site is None or store.evidence.meter(meter) is None:
        raise StoreError(f"the store holds nothing of {meter}", hint="Is this the site's data_dir? heliograph status")
    return ZoneInfo(site["timezone"])


def _serial(case: _Case, at: datetime) -> str | None:
    """Of the meter that hung there at that moment: the store knows the newest, seams know the ones before."""
    later = next((seam for seam in case.seams if seam.at > at and seam.new_serial), None)
    newest = (case.store.evidence.meter(case.meter) or {}).get("serial")
    return later.old_serial if later is not None else newest


def _window(meter: str, start: datetime, end: datetime, store: Store) -> list[Reading]:
    """Found by the borders around the day, for readings are linked and numbered, not indexed by time."""
    before, _ = store.evidence.borders(meter, start, end)
    # Doubtful readings of the day may be younger than the one its closing border rests on: one border further.
    _, after = store.evidence.borders(meter, start, end + timedelta(microseconds=1))
    first = before.before if before is not None else 0
    newest = 1 << 62
    last = (after.after if after.after is not None else after.before) if after is not None else newest
    if last <= first:
        last = newest
    rows = sorted(store.readings.between(meter, first, last), key=lambda reading: (reading.moment.at, reading.id or 0))
    good = [reading for reading in rows if _counts(reading)]
    since = max((r.moment.at for r in good if r.moment.at <= start), default=start)
    until = min((r.moment.at for r in good if r.moment.at >= end), default=end)
    return [reading for reading in rows if since <= reading.moment.at <= until]


def _counts(reading: Reading) -> bool:
    return reading.good and reading.moment.trusted


def _continuous(reading: Reading, seams: Sequence[Seam]) -> int | None:
    return None if reading.index_wh is None else continuous(seams, reading.moment.at, reading.index_wh)


# -- a closed day -----------------------------------------------------------------------------------------------------


def _closed(day: Day, case: _Case) -> dict[str, Any]:
    facts = case.store.evidence.day(case.meter, case.day) or {}
    held = case.store.evidence.held(case.meter, case.day)
    opening, closing = day.opening, day.closing
    case.check(
        f"the day as it was written down is {kwh(facts.get('period_wh', 0))} kWh, the difference of its borders "
        f"{kwh(day.period_wh)} kWh",
        ok=facts.get("period_wh") == day.period_wh and facts.get("total_wh") == day.total_wh,
    )
    first = case.store.days.first_border(case.meter) or opening
    since = closing.index_wh - first.index_wh + first.total_wh
    case.check(
        f"since commissioning the counter moved {kwh(closing.index_wh - first.index_wh)} kWh; with what the running "
        f"total started at, {kwh(first.total_wh)} kWh, it is {kwh(since)} kWh",
        ok=since == closing.total_wh,
    )
    over = " of the continuous counter, which goes on over seams" if any(s.at <= closing.at for s in case.seams) else ""
    return {
        "state": "closed",
        "reason": "",
        "period_wh": day.period_wh,
        "total_wh": day.total_wh,
        "formula": (
            f"{kwh(day.period_wh)} kWh = {kwh(closing.index_wh)} - {kwh(opening.index_wh)} "
            f"(counter at the end minus counter at the start{over})"
        ),
        "total_formula": (
            f"{kwh(day.total_wh)} kWh = {kwh(opening.total_wh)} + {kwh(day.period_wh)} "
            f"(running total of the day before plus this day)"
        ),
        "since_formula": (
            f"{kwh(day.total_wh)} kWh = {kwh(closing.index_wh)} - {kwh(first.index_wh)} + {kwh(first.total_wh)} "
            f"(counter now minus counter at commissioning, {_utc(first.at)}, plus the total it started with)"
        ),
        "estimated_split": day.estimated,
        "estimated_wh": estimated_wh(day, case.store),
        "recovered": [event["text"] for event in case.store.journal.about("recovered", f"{case.meter} {case.day}")],
        "closed_at": facts.get("closed_at"),
        "software": facts.get("software"),
        "held": held,
        "opening": _border(opening, "start", case),
        "closing": _border(closing, "end", case),
        "submissions": _submissions(day, case),
    }


def _border(border: Border, which: str, case: _Case) -> dict[str, Any]:
    # A seam or correction that came later takes no part in it.
    case = replace(case, seams=case.store.seams.all(case.meter, by=case.store.days.made(border)))
    before = _reading(case.store.readings.reading(border.before), case)
    after = _reading(case.store.readings.reading(border.after), case) if border.after is not None else None
    steps = _border_steps(border, before, after)
    case.check(
        f"{which} of the day: the counter follows from {'its readings' if after else 'its reading'}",
        ok=steps is not None,
    )
    return {
        "at": border.at,
        "index_wh": border.index_wh,
        "total_wh": border.total_wh,
        "method": border.method,
        "how": METHODS.get(border.method, border.method),
        "estimated": border.method in ESTIMATED,
        "before": before,
        "after": after,
        "arithmetic": steps or f"{border.index_wh:,} Wh was stored, and does not follow from the readings it rests on",
    }


def _border_steps(border: Border, before: dict[str, Any], after: dict[str, Any] | None) -> str | None:
    """How the border's counter follows from its readings, with numbers; None where it does not."""
    earlier, later = before["continuous_wh"], after["continuous_wh"] if after else None
    if border.method in ("start", "read"):
        ago = border.at - before["at"]
        when = (
            "at that moment"
            if not ago
            else f"{_seconds(ago)} before it; what was counted after it belongs to the later day"
        )
        return f"{earlier:,} Wh, as read {when}" if earlier == border.index_wh else None
    if earlier is None or later is None or after is None:
        return None
    moved, gap, elapsed = later - earlier, after["at"] - before["at"], border.at - before["at"]
    if border.method == "still":
        fits = moved == 0 and earlier == border.index_wh
        return f"{earlier:,} Wh before and after, so also at every moment between" if fits else None
    if border.method == "platform":
        words = f"{border.index_wh:,} Wh, from what a platform holds; the meter was read again at {later:,} Wh"
        return words if earlier <= border.index_wh <= later else None
    if border.method == "carry":
        words = f"{earlier:,} Wh, as read before the gap; the {moved:,} Wh of the gap lie in the later day"
        return words if earlier == border.index_wh else None
    if border.method == "split" and border.index_wh == earlier + daily.in_proportion(moved, elapsed, gap):
        return (
            f"{earlier:,} + {moved:,} Wh x {_seconds(elapsed)} / {_seconds(gap)} = {border.index_wh:,} Wh"
            " (floored: the earlier day never claims a watt-hour it may not have had)"
        )
    if border.method == "daylight" and earlier <= border.index_wh <= later:
        return (
            f"{earlier:,} + {border.index_wh - earlier:,} of the {moved:,} Wh that were counted in the gap:"
            " the share of a clear sky's light before midnight (floored)"
        )
    return None


def _seconds(span: timedelta) -> str:
    seconds = Decimal(span // timedelta(microseconds=1)).scaleb(-6)
    return f"{seconds.normalize():,f} s"


# -- a reading --------------------------------------------------------------------------------------------------------


def _reading(reading: Reading, case: _Case) -> dict[str, Any]:
    source, at = reading.source, reading.moment.at
    clock = case.store.evidence.clock(reading.id or 0)
    counter = _continuous(reading, case.seams)
    shift = 0 if counter is None or reading.index_wh is None else counter - reading.index_wh
    found: dict[str, Any] = {
        "id": reading.id,
        "at": at,
        "boot": reading.moment.boot_id,
        "since_boot_s": reading.moment.since_boot,
        "clock_trusted": reading.moment.trusted,
        "clock": CLOCKS[clock["trusted"]],
        "software": clock["software"],
        "index_wh": reading.index_wh,
        "offset_wh": shift,
        "continuous_wh": counter,
        "doubt": reading.doubt,
        "settled_by_seam": reading.settled,
        "words": [f"{word:04X}" for word in reading.words],
        "unit": source.unit if source else None,
        "function": source.function if source else "",
        "function_code": FUNCTION_CODES.get(source.function) if source else None,
        "address": source.address if source else None,
        "count": source.count if source else None,
        "source": str(source) if source else "",
        "map_digest": source.map_digest if source else "",
        "map": case.maps.get(source.map_digest, ("", ""))[0] if source else "",
        "decoding": "",
        "decoded": None,
    }
    try:
        decoded: dict[str, Any] | str = _decoded(reading, case)
    except ConfigError as error:
        decoded = f"{error.message}. {error.hint}".strip()
    found["steps"] = _steps(found, decoded)
    if isinstance(decoded, str):
        found["decoding"] = f"cannot be decoded: {decoded}"
        case.check(f"the words of reading {reading.id} decode: {decoded}", ok=False)
        return found
    found |= {"decoded": decoded, "decoding": decoded["text"]}
    case.check(
        f"the words {' '.join(decoded['words'])} decode to {decoded['shown']} {decoded['unit']}, floored "
        f"{decoded['floored_wh']:,} Wh; stored is {reading.index_wh or 0:,} Wh",
        ok=decoded["floored_wh"] == reading.index_wh,
    )
    return found


def _order(map: MeterMap, register: Register, setting: Setting | None) -> Order:
    """As when it was read: a register's own order, then the site's, then the map's."""
    return register.order or (setting.order if setting is not None else None) or map.order


def _decoded(reading: Reading, case: _Case) -> dict[str, Any] | str:
    """From words to whole Wh by the map of that time, each step with its number; a sentence where that cannot be."""
    source = reading.source
    if source is None:
        return "where it was read is not stored"
    map = case.make_map(source.map_digest, case.maps)
    setting = case.setting_at(reading.moment.at)
    production = (setting.production if setting is not None else "") or case.production
    register = map.register(production)
    if register is None:
        return f"the map {map.name} has no {production}"
    at = {source.address + number: word for number, word in enumerate(reading.words)}
    if not set(addresses(register)) <= set(at):
        return f"{production} is not among the words that are stored"
    words = [at[address] for address in addresses(register)]
    order = _order(map, register, setting)
    factors = {name: Decimal(str(reading.values[name])) for name in register.times if name in reading.values}
    factors |= setting.factors if setting is not None else {}
    exponent = None
    if register.scale_register is not None and register.scale_register in at:
        exponent = at[register.scale_register] - (at[register.scale_register] >> 15 << 16)

    def shown_in(one: Order) -> Decimal | str | Absent:
        return value(register, one, words, exponent=exponent, factors=factors)

    shown = shown_in(order)
    if isinstance(shown, Absent | str):
        return shown.reason if isinstance(shown, Absent) else "a text is no counter"
    floored = int(kept(register, shown))
    exact = shown * UNITS[register.unit][1]
    place = ", ".join(f"0x{address:04X}" for address in register.addresses or addresses(register)[:1])
    used = {name: factors[name] for name in register.times if name in factors}
    raw = " ".join(f"{word:04X}" for word in words)
    scaled = "".join(
        [
            f" x {register.scale}" if register.scale != 1 else "",
            f" x 10^{exponent}" if exponent is not None else "",
            *(f" x {name} {number}" for name, number in used.items()),
        ]
    )
    text = f"{production} at {place}: {raw} as {register.type} {order}{scaled} = {shown} {register.unit}"
    if floored != reading.index_wh:
        others = [one for one in get_args(Order) if _floored(register, shown_in(one)) == reading.index_wh]
        text += ", which is not the stored counter: what the site said about this meter then must have differed"
        text += f" (with byte order {others[0]} it fits)" if others else " (factors, byte order)"
    return {
        "quantity": production,
        "type": register.type,
        "order": order,
        "addresses": list(addresses(register)),
        "words": [f"{word:04X}" for word in words],
        "scale": str(register.scale),
        "exponent": exponent,
        "factors": {name: str(number) for name, number in used.items()},
        "shown": f"{shown:f}",
        "unit": register.unit,
        "means": _means(register, order, words, scaled),
        "floored_wh": floored,
        "dropped": f"{(exact - floored).normalize():f}",
        "text": text,
    }


def _floored(register: Register, shown: Decimal | str | Absent) -> int | None:
    return int(kept(register, shown)) if isinstance(shown, Decimal) else None


def _means(register: Register, order: Order, words: Sequence[int], scaled: str) -> str:
    """What the words are before anything is multiplied."""
    raw = ordered(words, order)
    if register.type == "float32":
        exact = Decimal(struct.unpack(">f", raw)[0])
        words_for = f"exactly {exact:f}, shown as its shortest decimal"
    elif register.type == "float64":
        words_for = f"exactly {Decimal(struct.unpack('>d', raw)[0]):f}, shown as its shortest decimal"
    elif register.type == "bcd":
        words_for = f"the digits {raw.hex()}"
    else:
        words_for = f"the whole number {int.from_bytes(raw, 'big', signed=register.type.startswith('s')):,}"
    return f"{register.type} {order}: {words_for}{scaled}"


def _steps(found: Mapping[str, Any], decoded: Mapping[str, Any] | str) -> list[dict[str, str]]:
    """From the words to the continuous counter: what, its value, how it came about."""
    code = f" (Modbus function {found['function_code']})" if found["function_code"] else ""
    steps = [_step("raw words", " ".join(found["words"]) or "none", f"{found['source'] or 'source not stored'}{code}")]
    if isinstance(decoded, str):
        steps.append(_step("decoded", "-", f"cannot be decoded: {decoded}"))
        steps.append(_step("stored", _wh(found["index_wh"]), "as it was decoded when it was read"))
    else:
        steps.append(_step("decoded", f"{decoded['shown']} {decoded['unit']}", decoded["means"]))
        dropped = "floored to whole Wh: nothing was dropped"
        if decoded["dropped"] != "0":
            dropped = (
                f"floored to whole Wh: {decoded['dropped']} Wh stay in the counter and are booked when they fill one"
            )
        steps.append(_step("floored", _wh(decoded["floored_wh"]), dropped))
    if found["offset_wh"]:
        steps.append(_step("seams", f"{found['offset_wh']:+,} Wh", "old minus new counter, over the seams before it"))
        steps.append(_step("continuous", _wh(found["continuous_wh"]), "what borders and days are reckoned with"))
    return steps


def _step(name: str, shown: str, how: str) -> dict[str, str]:
    return {"step": name, "value": shown, "how": how}


def _wh(wh: int | None) -> str:
    return "-" if wh is None else f"{wh:,} Wh"


# -- what is on the way -----------------------------------------------------------------------------------------------


def _samples(case: _Case) -> dict[str, Any]:
    rows = [reading for reading in case.window if case.start <= reading.moment.at < case.end]
    good = [reading.moment.at for reading in rows if _counts(reading)]
    gaps = [(b - a).total_seconds() for a, b in pairwise(good)]
    thinned = {"hourly": "to one an hour", "all": "away, but for those that borders rest on"}
    newest = max((reading.id or 0 for reading in rows), default=0)
    return {
        "stored": len(rows),
        "good": len(good),
        "excluded": [_excluded(reading, case) for reading in rows if reading.doubt or not _counts(reading)],
        "first": good[0] if good else None,
        "last": good[-1] if good else None,
        "longest_gap_s": max(gaps, default=None),
        "thinned": next(
            (words for kind, words in reversed(thinned.items()) if (_looked_at(case, kind) or 0) >= newest > 0), ""
        ),
    }


def _looked_at(case: _Case, kind: str) -> int | None:
    found: int | None = case.store.journal.learned(f"thin/{kind}")
    return found


def _excluded(reading: Reading, case: _Case) -> dict[str, Any]:
    """Why a sample is no base, or was none until a seam explained it."""
    why = reading.doubt
    if not reading.moment.trusted:
        why = "; ".join(filter(None, (why, CLOCKS[0])))
    elif not why:
        why = "the counter had no value"
    seam = next((seam for seam in reversed(case.seams) if seam.at <= reading.moment.at), None)
    return {
        "id": reading.id,
        "at": reading.moment.at,
        "index_wh": reading.index_wh,
        "words": [f"{word:04X}" for word in reading.words],
        "why": why,
        "settled_by": str(seam) if reading.settled and seam is not None else "",
    }


def _seam(seam: Seam, case: _Case) -> dict[str, Any]:
    return {
        "at": seam.at,
        "kind": seam.kind,
        "old_wh": seam.old_wh,
        "new_wh": seam.new_wh,
        "offset_wh": seam.offset_wh,
        "old_serial": seam.old_serial,
        "new_serial": seam.new_serial,
        "note": seam.note,
        "recorded": case.store.evidence.seam_recorded(seam.id) if seam.id is not None else None,
        "on_this_day": case.start < seam.at <= case.end,
        "was": _meaning(seam.old_meaning),
        "is": _meaning(seam.new_meaning),
        "text": str(seam),
    }


def _meaning(one: Meaning | None) -> dict[str, Any] | None:
    return {"text": str(one), **one.as_json()} if one is not None else None


def _maps(found: Mapping[str, Any], case: _Case) -> list[dict[str, str]]:
    """The maps that decoded this day's borders, with the documents they rest on."""
    ends = [found.get("opening"), found.get("closing")]
    readings = [end[side] for end in ends if end for side in ("before", "after") if end[side]]
    readings += [found[side] for side in ("read_before", "read_after") if found.get(side)]
    result: list[dict[str, str]] = []
    for digest in dict.fromkeys(reading["map_digest"] for reading in readings if reading["map_digest"]):
        entry = {
            "digest": digest,
            "name": case.maps.get(digest, ("", ""))[0],
            "version": "",
            "status": "",
            "source": "",
        }
        try:
            map = case.make_map(digest, case.maps)
            entry |= {"name": map.name, "version": map.version, "status": map.status, "source": map.source}
        except ConfigError as error:
            entry["source"] = error.message
        result.append(entry)
    return result


# -- a day without a figure -------------------------------------------------------------------------------------------


def _not_closed(case: _Case, now: datetime) -> dict[str, Any]:
    held = case.store.evidence.held(case.meter, case.day)
    first, last = case.store.days.first_border(case.meter), case.store.days.last_border(case.meter)
    opening, closing = case.store.evidence.borders(case.meter, case.start, case.end)
    good = [reading for reading in case.window if _counts(reading)]
    if case.start == case.end:
        state, reason, todo = "none", f"{case.zone.key} left this day out: it has no length", ""
    elif first is not None and case.end <= first.at:
        state, reason, todo = "none", f"{case.meter} was read for the first time at {_utc(first.at)}", ""
    elif case.start > now:
        state, reason, todo = "none", "this day is still to come", ""
    elif held is not None:
        state, reason = held["kind"], held["reason"]
        todo = _held_todo(case) if state == "held" else _MISSING
    else:
        state, reason, todo = "open", *_open(case, now, good, last)
    before = max((r for r in good if r.moment.at <= case.start), key=lambda r: r.moment.at, default=None)
    within = [r for r in good if case.start <= r.moment.at <= case.end]
    after = min((r for r in good if r.moment.at >= case.end), key=lambda r: r.moment.at, default=None)
    if state == "none":
        before = after = None
        within, opening, closing = [], None, None
    return {
        "state": state,
        "reason": reason,
        "todo": todo,
        "period_wh": None,
        "total_wh": None,
        "formula": "",
        "total_formula": "",
        "since_formula": "",
        "estimated_split": False,
        "estimated_wh": 0,
        "recovered": [],
        "held": held,
        "read_before": _reading(before, case) if before else None,
        "first_within": _reading(within[0], case) if within else None,
        "last_within": _reading(within[-1], case) if within else None,
        "read_after": _reading(after, case) if after else None,
        "bounds": _bounds(before, within, after, opening, case),
        "border_before": _plain(opening),
        "border_after": _plain(closing),
        "submissions": [],
    }


_MISSING = (
    "Nothing has to be booked: the counter had not moved when it was read again, so no energy is lost. Missing is"
    " not zero: nobody read the meter on this day, and no platform is told a figure. Why it was not: heliograph status"
)


def _utc(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _held_todo(case: _Case) -> str:
    held = {entry.day for entry in case.store.days.held(case.meter) if entry.kind == "held"}
    first = last = case.day
    while first - timedelta(days=1) in held:
        first -= timedelta(days=1)
    while last + timedelta(days=1) in held:
        last += timedelta(days=1)
    days = f"{first}..{last}" if first != last else f"{first}"
    return (
        f"The energy is measured, only its split over midnight is not known. Decide how it is split: "
        f"heliograph release {case.meter} {days} --split time (daylight, carry). It shows the figures before it asks."
    )


def _open(case: _Case, now: datetime, good: Sequence[Reading], last: Border | None) -> tuple[str, str]:
    """Why a day has no figure yet, and what it waits for."""
    newest = case.window[-1] if case.window else None
    if last is None and good:
        reason = f"its first day begins with its first reading, at {_utc(good[0].moment.at)}"
        return reason, "The running gateway opens it within half a minute: heliograph status"
    if last is None:
        return "this meter has no good reading on a trusted clock yet", "heliograph status says what it answers."
    if now < case.end:
        reason = f"this day is not over: it ends at {_utc(case.end)}"
        return reason, "It is closed after its midnight, once the meter was read again."
    if newest is not None and not _counts(newest):
        why = newest.doubt or CLOCKS[0]
        if TENTATIVE in why:
            return f"the newest reading waits for a person: {why}", confirm(case.meter)
        return (
            f"the newest reading is not believed: {why}",
            f"If another counter took over: heliograph swap {case.meter}. Else see: heliograph status",
        )
    if good and good[-1].moment.at < case.end:
        return (
            f"the meter has not been read since {_utc(good[-1].moment.at)}",
            "The day is closed when it is read again, and nothing is lost until then. heliograph status",
        )
    return "it is over and waits to be closed, after the days before it", "heliograph status"


def _bounds(
    before: Reading | None, within: Sequence[Reading], after: Reading | None, opening: Border | None, case: _Case
) -> dict[str, int | None]:
    """What the day may have been, in Wh, by the readings alone: at least what moved between readings of the day,
    at most what moved between the nearest ones outside. A start that is known is taken as it is."""

    def counter(reading: Reading | None) -> int | None:
        return _continuous(reading, case.seams) if reading is not None else None

    inner = [wh for reading in within if (wh := counter(reading)) is not None]
    start = opening.index_wh if opening is not None and opening.at == case.start else None
    low, high = (start, start) if start is not None else (inner[0] if inner else None, counter(before))
    last, end = inner[-1] if inner else None, counter(after)
    return {
        "at_least_wh": max(0, last - low) if low is not None and last is not None else 0,
        "at_most_wh": end - high if end is not None and high is not None else None,
    }


def _plain(border: Border | None) -> dict[str, Any] | None:
    if border is None:
        return None
    return {
        "at": border.at,
        "index_wh": border.index_wh,
        "total_wh": border.total_wh,
        "method": border.method,
        "how": METHODS.get(border.method, border.method),
    }


# -- on its way to the platform ---------------------------------------------------------------------------------------

_SUBMISSION = (
    "uplink",
    "remote_id",
    "state",
    "attempt",
    "claimed_at",
    "changed",
    "process_id",
    "rule",
    "answer",
    "remedy",
    "claim",
)


def _submissions(day: Day, case: _Case) -> list[dict[str, Any]]:
    found = []
    rows = case.store.outbox.shown(meter=case.meter, day=case.day)
    tried = case.store.outbox.attempts.of([row["row"] for row in rows])
    for row in rows:
        entry: dict[str, Any] = {key: row[key] for key in _SUBMISSION}
        entry["attempts"] = tried.get(row["row"], [])
        found.append(
            entry | {"path": "", "body_bytes": None, "body_sha256": "", "excerpt": "", "figures": [], "together": []}
        )
        if row["claim"] is not None:
            found[-1] |= _body(day, row, case)
    return found


def _body(day: Day, row: Mapping[str, Any], case: _Case) -> dict[str, Any]:
    """The request as it was sent, and what it said about this day."""
    path, body = case.store.outbox.claim_body(row["claim"])
    together = case.store.evidence.claim_days(row["claim"], case.meter)
    addressed = quote(row["remote_id"], safe="") in path.split("/")
    said = bodies.said(body, row["remote_id"], case.day, [one["end"] for one in together], addressed=addressed)
    found: dict[str, Any] = {
        "path": path,
        "body_bytes": len(body),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "together": [],
    }
    expected = {"the day's figure": day.period_wh}
    if said is not None and said.by_end:
        found["together"] = [one["day"] for one in together if one["day"] != case.day]
        expected["the sum of the days that went together"] = sum(one["period_wh"] for one in together)
    expected["the running total"] = day.total_wh
    if said is not None and said.by_end:
        first = case.store.days.first_border(case.meter)
        zero = first.total_wh if first is not None else 0
        end = max((one["end"] for one in together), default=day.closing.at)
        border, _ = case.store.evidence.borders(case.meter, end, end)
        expected["the running total since commissioning"] = (border.total_wh if border else day.total_wh) - zero
    figures: list[dict[str, Any]] = []
    for key, text in said.numbers if said is not None else ():
        wh = bodies.in_wh(key, text)
        fits = [name for name, ours in expected.items() if ours == wh]
        taken = {figure["is"] for figure in figures}
        fit = next((name for name in fits if name not in taken), fits[0] if fits else "")
        figures.append({"key": key, "sent": text, "wh": wh, "is": fit})
    case.check(
        f"the body sent to {row['uplink']} (sha256 {found['body_sha256'][:12]}) says this day's figures",
        ok=bool(figures) and all(figure["is"] for figure in figures),
    )
    return {**found, "excerpt": said.excerpt if said is not None else "", "figures": figures}

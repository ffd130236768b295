"""What a person decides about a counter: that another one took over, or how the energy of a gap is split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import takewhile
from typing import Any, Literal

from heliograph.core import daily
from heliograph.core.daily import ESTIMATED, Border, Day
from heliograph.core.errors import UsageError
from heliograph.core.figures import kwh
from heliograph.core.ledger import Seam, Step, corrected, most_wh, offset, rolled_over, settled
from heliograph.core.meaning import index_wh, register_of
from heliograph.core.plausible import rollover_wh, step_wh
from heliograph.core.readings import RATIO, STRANGER, TENTATIVE, Reading
from heliograph.core.registers import Register
from heliograph.core.site import Meter
from heliograph.ports import Clock
from heliograph.store import Store
from heliograph.work.change import Change, evidence, marked, old_index_wh, pending
from heliograph.work.close_days import Rules, around, estimated_wh
from heliograph.work.decide import decide

Split = Literal["daylight", "time", "carry"]
_HOW: dict[Split, str] = {
    "daylight": "split along daylight",
    "time": "split by time",
    "carry": "carried to the later day",
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A seam and what it settled."""

    seam: Seam
    settled: tuple[int, ...] = ()
    """Doubtful readings it explains."""
    note: str = ""
    """What is not booked, and why."""

    @property
    def readings(self) -> int:
        return len(self.settled)


def record_seam(
    meter: Meter,
    seam: Seam,
    store: Store,
    now: datetime,
    *,
    dry: bool = False,
    taken: Set[int | None] = frozenset(),
) -> Recorded:
    """Records where one counter handed over to the next; refuses what the readings contradict.

    It may lie in the past as long as no day it touches is closed. With `dry` nothing is written. `taken`: ids of the
    readings in a new way that a person confirms with it.
    """
    border = store.days.last_border(meter.id)
    if border is not None and seam.at <= border.at:
        raise UsageError(
            f"{meter.id} is closed up to {border.at:%Y-%m-%d %H:%M} UTC, and a closed day never changes",
            hint="Name a moment after that.",
        )
    if seam.at > now:
        raise UsageError(f"{seam.at:%Y-%m-%d %H:%M} UTC is still to come", hint="Record it when it has happened.")
    if store.readings.first_good(meter.id) is None:
        raise UsageError(
            f"{meter.id} was never read, so no counter hands over to another one",
            hint="What its running total begins with is baseline_kwh in the configuration.",
        )
    good = store.readings.last_good(meter.id)
    newest = next((one for one in reversed(store.seams.all(meter.id)) if one.kind != "correction"), None)
    if newest is not None:
        again = f'heliograph swap {meter.id} --corrects {newest.id} --old-index ... --new-index ... --note "why"'
        same = (newest.kind, newest.old_wh, newest.new_wh) == (seam.kind, seam.old_wh, seam.new_wh)
        if same and (good is None or good.moment.at < newest.at):
            # Said again because nobody knew whether it had been stored, it would count its energy twice.
            raise UsageError(
                f"{meter.id}: this is recorded already ({newest}), and nothing has been read since",
                hint="Nothing is left to be done: heliograph status",
            )
        if seam.at <= newest.at:
            raise UsageError(
                f"{meter.id}: seam {newest.id} is not before that ({newest})",
                hint=f"A seam that is wrong is corrected, not recorded again: {again}",
            )
    if seam.kind == "swap" and seam.new_serial is None and store.readings.serial(meter.id) is not None:
        raise UsageError(
            f"the old meter's serial number is known ({store.readings.serial(meter.id)}), the new one's is not named",
            hint="Add --new-serial; it stands on the meter.",
        )
    change, readings = pending(meter, store), store.readings.since(meter.id, seam.at)
    if change is not None and not taken:
        earlier = [one for one in readings if one.moment.at >= seam.at and not one.tentative]
        if not earlier:
            taken = _of_the_new_meter(meter, seam, change, readings)
    if change is not None and taken:
        seam = replace(seam, old_meaning=change.old, new_meaning=change.new)
    # What was read in a way that nobody confirmed says nothing about a seam of the counter as it is booked.
    readings = [one for one in readings if not one.tentative or one.id in taken]
    if seam.kind == "rollover":
        readings = [one for one in readings if not _foreign(one)]
    steps = [
        Step(reading.moment.at, reading.index_wh, reading.good, reading.id)
        for reading in readings
        if reading.index_wh is not None and reading.id is not None
    ]
    hint = "Correct the moment or the counters."
    if newest is not None:
        # What the counter showed at the seam before is known as well as if it had been read.
        steps = sorted([*steps, Step(newest.at, newest.new_wh, True, 0)], key=lambda step: step.at)
        if good is None or good.moment.at < newest.at:
            hint += f" If seam {newest.id} was wrong: {again}"
    step = _step(meter, seam.old_wh, seam.new_wh)
    if seam.old_meaning is not None:
        step = max(step, step_wh(register_of(seam.old_meaning), seam.old_wh))
    found = settled(steps, seam, meter.rated_kw, step)
    if isinstance(found, str):
        raise UsageError(f"this seam does not fit the readings: {found}", hint=hint)
    complete = replace(seam, old_serial=seam.old_serial or store.readings.serial(meter.id))
    if not dry:
        complete = replace(complete, id=store.seams.record(complete, found, now))
    return Recorded(complete, found)


def _of_the_new_meter(meter: Meter, seam: Seam, change: Change, readings: Sequence[Reading]) -> set[int | None]:
    """Readings in a new way that a seam may confirm with it: those of a new meter, which has a map of its own."""
    found: set[int | None] = set()
    for one in readings if seam.kind == "swap" else ():
        if one.moment.at >= seam.at and change.mark in one.doubt and one.index_wh is not None:
            # Where the meter tells its serial number, it must be the new one's: the old one may still be connected.
            of_it = f" to {seam.new_serial};" in one.doubt if meter.map.identity.serial else not _other(one)
            found |= {one.id} if of_it else set()
    if not found:
        new = " A new meter confirms its map once it has been read by it." if seam.kind == "swap" else ""
        raise UsageError(
            f"{meter.id}: how its counter is read was changed ({change.words}), and nobody has confirmed that yet",
            hint="First put it back and restart, or, if it is right, confirm it: "
            f"heliograph swap {meter.id} --map-changed. Then record this.{new}",
        )
    return found


def _other(reading: Reading) -> bool:
    """Whether more than the way in which it was read is doubtful."""
    return not reading.doubt.startswith(TENTATIVE)


def confirm_change(meter: Meter, note: str, store: Store, now: datetime, *, dry: bool = False) -> Recorded:
    """A person confirms that the counter is rightly read in its new way: the running total goes on from there.

    What was produced between the last reading in the old way and the first one in the new way is known where that one
    still tells what the old way would have read; else it is not booked.
    """
    change, good = pending(meter, store), store.readings.last_good(meter.id)
    if change is None or good is None or good.index_wh is None:
        raise UsageError(
            f"{meter.id} is read as what is booked of it: there is nothing to confirm", hint="heliograph status"
        )
    border = store.days.last_border(meter.id)
    found, ended = evidence(change, meter, store)
    usable = [one for one in found if one.moment.trusted and (border is None or one.moment.at > border.at)]
    first = usable[0] if usable else None
    if first is None and ended:
        put_back = "put the map or the setting back and restart, record that first, then edit it again"
        raise UsageError(
            f"{meter.id}: not only its map was changed: {ended}",
            hint=f"A new meter is recorded with heliograph swap {meter.id} --new-serial ..., which confirms both."
            if STRANGER in ended
            else f"Set the ratio back, or {put_back}: heliograph status then has the command.",
        )
    if first is None and (newest := next(marked(change, meter.id, store), None)) is not None:
        raise _no_counter(meter, change, newest, newest)
    if first is None or first.index_wh is None:
        raise UsageError(
            f"{meter.id}: no counter has been read in the new way yet ({change.words})",
            hint="Wait until it is: heliograph status. If it reads no value: heliograph read " + meter.id,
        )
    # A platform may know more of the old counter than was read of it: after a restore.
    least = good.index_wh
    if border is not None and border.at > good.moment.at:
        least = max(least, border.index_wh - offset(store.seams.all(meter.id), border.at))
    old, told_at = old_index_wh(change, first, meter, good), first.moment.at
    if old is None:
        # What was tried in between may still have read the old counter's words.
        for reading in takewhile(lambda one: not one.good, store.readings.back(meter.id)):
            source = reading.source
            if (
                not _other(reading)
                and reading.moment.trusted
                and source is not None
                and reading.moment.at < first.moment.at
            ):
                old = index_wh(change.old, source.function, source.address, reading.words, {})
                told_at = reading.moment.at
            if old is not None:
                break
    step = max(_step(meter, good.index_wh), step_wh(register_of(change.old), good.index_wh))
    most = most_wh(good.moment.at, told_at, meter.rated_kw, step)
    since, until = f"{good.moment.at:%Y-%m-%d %H:%M:%S}", f"{first.moment.at:%Y-%m-%d %H:%M:%S} UTC"
    if old is None:
        said = f"what was produced from {since} to {until} is not booked: the old way cannot be read any more"
    elif not least <= old <= good.index_wh + most:
        said = f"what was produced from {since} to {until} is not booked: read the old way it would be {kwh(old)} kWh"
        old = None
    elif told_at < first.moment.at:
        said = (
            f"{kwh(old - good.index_wh)} kWh from {since} to {told_at:%Y-%m-%d %H:%M:%S} UTC as the words tell in the "
            f"old way; what was produced from then to {until} is not booked: the old way cannot be read any more"
        )
    else:
        said = f"{kwh(old - good.index_wh)} kWh from {since} to {until} as the same words tell in the old way"
    seam = Seam(
        meter.id,
        first.moment.at,
        "change",
        least if old is None else old,
        first.index_wh,
        note="; ".join(filter(None, (note, said))),
    )
    taken = {one.id for one in found}
    planned = record_seam(meter, seam, store, now, dry=True, taken=taken)
    newest = usable[-1] if ended else store.readings.last(meter.id)
    if newest is None or newest.id not in planned.settled:
        raise _no_counter(meter, change, first, newest)
    if ended:
        said += f"; what was read later is not confirmed by it: {ended}"
    return replace(planned if dry else record_seam(meter, seam, store, now, taken=taken), note=said)


def _no_counter(meter: Meter, change: Change, first: Reading, newest: Reading | None) -> UsageError:
    def shown(one: Reading | None) -> str:
        return "no number" if one is None or one.index_wh is None else f"{kwh(one.index_wh)} kWh"

    return UsageError(
        f"{meter.id}: read in the new way the counter does not move like one: {shown(first)} at "
        f"{first.moment.at:%Y-%m-%d %H:%M} UTC, and now {shown(newest)}",
        hint=f"Is the new way right ({change.words})? Compare with the display: heliograph read {meter.id}. If the "
        "counter began anew meanwhile: put the map or the setting back and restart, then heliograph status",
    )


def record_correction(
    meter: Meter, wrong: int, old_wh: int, new_wh: int, note: str, store: Store, now: datetime, *, dry: bool = False
) -> Recorded:
    """Records what a seam should have said. Closed days stay as they are; the first open one takes the difference."""
    if not note.strip():
        raise UsageError("a correction needs its reason", hint='Add --note "who found what, and how".')
    seams = store.seams.all(meter.id)
    at = next((seam.at for seam in seams if seam.id == wrong), None)
    before, after = _beside(meter.id, wrong, at, seams, store) if at is not None else (None, None)
    border = store.days.last_border(meter.id)
    found = corrected(
        seams,
        wrong,
        old_wh,
        new_wh,
        before=before,
        after=after,
        border=(border.at, border.index_wh) if border is not None else None,
        rated_kw=meter.rated_kw,
        step_wh=_step(meter, old_wh, new_wh),
        note=note,
    )
    if isinstance(found, str):
        known = "; ".join(f"{seam.id}: {seam}" for seam in seams) or "none"
        raise UsageError(f"{meter.id}: {found}", hint=f"Nothing was recorded. Seams of {meter.id}: {known}")
    if not dry:
        found = replace(found, id=store.seams.record(found, (), now))
    return Recorded(found)


def reread(meter: Meter, wrong: int, note: str, store: Store, now: datetime, *, dry: bool = False) -> Recorded:
    """Corrects what was booked in a way that was wrong from the beginning: the same words, read in the new way.

    Closed days stay as they are; the first open one takes the difference.
    """
    if not note.strip():
        raise UsageError("a correction needs its reason", hint='Add --note "who found what, and how".')
    seams = store.seams.all(meter.id)
    own = [seam for seam in seams if seam.kind != "correction"]
    seam = next((one for one in own if one.id == wrong), None)
    if seam is None or seam.new_meaning is None or seam.kind != "change":
        known = "; ".join(f"{one.id}: {one}" for one in own if one.kind == "change") or "none"
        raise UsageError(
            f"{meter.id}: seam {wrong} is none at which the same counter was read in another way",
            hint=f"Such seams: {known}",
        )
    _, booked_as = store.readings.meaning(meter.id) or ("", None)
    if booked_as is None or booked_as["digest"] != seam.new_meaning.digest:
        raise UsageError(
            f"{meter.id}: the new way of seam {wrong} is not how the counter is booked today",
            hint="The seam after it says how: name that one. Counters that a person knows: "
            f"heliograph swap {meter.id} --corrects {wrong} --old-index ... --new-index ...",
        )
    before = [one for one in own if (one.at, one.id or 0) < (seam.at, seam.id or 0)]
    began = store.days.first_border(meter.id)
    start = None
    if before:
        _, start = store.readings.beside(meter.id, before[-1].at)
    elif began is not None:
        start = store.readings.reading(began.before)
    source = start.source if start is not None else None
    new = None
    if start is not None and source is not None:
        told = {name: Decimal(str(number)) for name, number in start.values.items()}
        new = index_wh(seam.new_meaning, source.function, source.address, start.words, told)
    if start is None or start.index_wh is None or new is None:
        raise UsageError(
            f"{meter.id}: what was stored of the days before does not hold what the new way reads",
            hint="Closed days stay as they are: nobody can say from here by how much they are wrong.",
        )
    booked, truly = seam.old_wh - start.index_wh, seam.new_wh - new
    since = f"from {start.moment.at:%Y-%m-%d %H:%M} to {seam.at:%Y-%m-%d %H:%M} UTC"
    said = f"{since} {kwh(booked)} kWh were booked, and the same words say {kwh(truly)} kWh"
    if not 0 <= truly <= most_wh(start.moment.at, seam.at, meter.rated_kw, _step(meter, seam.new_wh)):
        raise UsageError(
            f"{meter.id}: {since} the new way says {kwh(truly)} kWh, which {meter.rated_kw:g} kW cannot have made",
            hint=f"{kwh(booked)} kWh were booked, and stay.",
        )
    border = store.days.last_border(meter.id)
    found = corrected(
        seams,
        wrong,
        seam.old_wh + truly - booked,
        seam.new_wh,
        before=None,  # what was read before is what is wrong
        after=None,
        border=(border.at, border.index_wh) if border is not None else None,
        rated_kw=meter.rated_kw,
        step_wh=_step(meter, seam.new_wh),
        note=f"{note}; {said}",
    )
    if isinstance(found, str):
        raise UsageError(f"{meter.id}: {found}", hint="Nothing was recorded: heliograph days " + meter.id)
    if not dry:
        found = replace(found, id=store.seams.record(found, (), now))
    return Recorded(found, note=said)


def _beside(
    meter: str, wrong: int, at: datetime, seams: Sequence[Seam], store: Store
) -> tuple[Step | None, Step | None]:
    """What the counters beside a seam were known to show: believed readings, or the seams before and after it."""

    def seen(reading: Reading | None) -> Step | None:
        if reading is None or reading.index_wh is None or reading.id is None:
            return None
        return Step(reading.moment.at, reading.index_wh, True, reading.id)

    before, after = (seen(reading) for reading in store.readings.beside(meter, at))
    for seam in seams:
        if seam.kind == "correction" or seam.id == wrong:
            continue
        if seam.at <= at and (before is None or seam.at > before.at):
            before = Step(seam.at, seam.new_wh, True, 0)
        if seam.at > at and (after is None or seam.at < after.at):
            after = Step(seam.at, seam.old_wh, True, 0)
    return before, after


def _step(meter: Meter, *wh: int) -> int:
    register = meter.map.register(meter.production)
    return step_wh(register, max(wh)) if register is not None else 1


def record_rollover(meter: Meter, store: Store, now: datetime) -> Seam | None:
    """Records by itself what the map knows: a counter that went over its end. Any other fall stays in doubt."""
    register = meter.map.register(meter.production)
    range_wh = rollover_wh(register) if register is not None else None
    last, good = store.readings.last(meter.id), store.readings.last_good(meter.id)
    if range_wh is None or last is None or good is None or good.index_wh is None or last.index_wh is None:
        return None
    if (
        not last.doubt
        or _foreign(last)
        or not last.moment.trusted
        or not good.moment.trusted
        or good.moment.at >= last.moment.at
    ):
        return None
    # The first readings of the new round tell the moment best; whoever counts on may be hours further.
    first = last
    for reading in store.readings.back(meter.id):
        if reading.id == good.id:
            break
        if reading.index_wh is not None and reading.moment.trusted and not _foreign(reading):
            first = reading
    assert first.index_wh is not None  # chosen for it
    if not all(_under_its_exponent(register, reading) for reading in (good, first)):
        return None
    seam = rolled_over(
        meter.id,
        Step(good.moment.at, good.index_wh, True, good.id or 0),
        Step(first.moment.at, first.index_wh, False, first.id or 0),
        range_wh,
        meter.rated_kw,
        _step(meter, good.index_wh),
    )
    return record_seam(meter, seam, store, now).seam if seam is not None else None


def _foreign(reading: Reading) -> bool:
    """Read in a way that nobody confirmed, of another meter, or with another ratio: no round of the same counter."""
    return any(text in reading.doubt for text in (TENTATIVE, STRANGER, RATIO)) and not reading.settled


def _under_its_exponent(register: Register | None, reading: Reading) -> bool:
    """Whether the scale register held what the map's rollover was reckoned with, by the words of the reading."""
    if register is None or register.scale_register is None:
        return True
    if reading.source is None:
        return False
    place = register.scale_register - reading.source.address
    if not 0 <= place < len(reading.words) or register.scale_exponent is None:
        return False
    return reading.words[place] == register.scale_exponent % 0x10000


def release(
    meter: Meter, first: date, last: date, split: Split, store: Store, now: datetime, rules: Rules, *, dry: bool = False
) -> list[Day]:
    """Gives held days a figure by splitting the measured energy of their gap; the split is marked as estimated."""
    held = {entry.day for entry in store.days.held(meter.id) if entry.kind == "held"}
    span = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    if missing := [day for day in span if day not in held]:
        known = ", ".join(map(str, sorted(held))) or "none"
        raise UsageError(f"{meter.id} {missing[0]} is not held", hint=f"Held: {known}")
    opening = store.days.border_at(meter.id, daily.start_of(first, rules.zone))
    start = store.days.first_border(meter.id)
    if opening is None and start is not None and daily.day_of(start.at, rules.zone) == first:
        opening = start
    if opening is None:
        raise UsageError(
            f"{meter.id}: where {first} begins is not known before the held days in front of it are released",
            hint=f"Begin with {min(held)}.",
        )
    if split == "daylight" and rules.position is None:
        raise UsageError(
            "a split along daylight needs the site's position, and the configuration names none",
            hint="Set site.latitude and site.longitude, or use --split time.",
        )
    days = _split(meter, span, opening, split, store, rules)
    if not dry:
        store.days.release(days, now, meter.reports, _HOW[split])
    return days


def _split(meter: Meter, span: Sequence[date], opening: Border, split: Split, store: Store, rules: Rules) -> list[Day]:
    seams = store.seams.all(meter.id)
    days: list[Day] = []
    for day in span:
        end = daily.end_of(day, rules.zone)
        closing = store.days.border_at(meter.id, end)
        if closing is None:
            before, after = around(meter.id, end, store, seams)
            if before is None:
                raise UsageError(f"{meter.id}: no reading before {end:%Y-%m-%d %H:%M} UTC", hint="heliograph days")
            found = daily.border(
                end,
                daily.base(before, opening),
                after,
                opening,
                cadence=meter.cadence,
                max_estimated=timedelta(0),  # a person has said how, however short the gap
                on_gap="carry" if split == "carry" else "split",
                position=rules.position if split == "daylight" else None,
            )
            if not isinstance(found, Border):
                raise UsageError(f"{meter.id}: no reading after {day} yet", hint="heliograph status")
            closing = found
        days.append(Day(meter.id, day, opening, closing))
        opening = closing
    return days


def carry_out(
    meter: Meter, what: str, wish: Mapping[str, Any], store: Store, clock: Clock, rules: Rules
) -> dict[str, Any]:
    """What a verb asks for, as it comes over the daemon's socket; raises KeyError for what is not known."""
    if not clock.trusted():
        raise UsageError(
            "the clock is not synchronised: nobody knows when this happens, and what is recorded stays for ever",
            hint="Wait for the network and NTP (timedatectl), then say it again. Nothing is lost meanwhile.",
        )
    now = clock.now()
    if what in ("retry", "set-aside"):
        return decide(meter, what, wish, store, now)
    if what == "seam":
        seam = Seam(
            meter.id,
            datetime.fromisoformat(wish["at"]),
            wish["kind"],
            int(wish["old_wh"]),
            int(wish["new_wh"]),
            new_serial=wish["new_serial"],
            note=wish["note"],
        )
        recorded = record_seam(meter, seam, store, now, dry=wish["dry"])
        return {
            "meter": meter.id,
            "seam": str(recorded.seam),
            "id": recorded.seam.id,
            "readings": recorded.readings,
        }
    if what == "map-changed":
        recorded = confirm_change(meter, wish["note"], store, now, dry=wish["dry"])
        return {
            "meter": meter.id,
            "seam": str(recorded.seam),
            "id": recorded.seam.id,
            "readings": recorded.readings,
            "was": str(recorded.seam.old_meaning),
            "is": str(recorded.seam.new_meaning),
            "between": recorded.note,
        }
    if what == "correction":
        which, note, dry = int(wish["corrects"]), wish["note"], wish["dry"]
        if wish.get("reread"):
            recorded = reread(meter, which, note, store, now, dry=dry)
        else:
            counters = int(wish["old_wh"]), int(wish["new_wh"])
            recorded = record_correction(meter, which, *counters, note, store, now, dry=dry)
        return {
            "meter": meter.id,
            "seam": str(recorded.seam),
            "id": recorded.seam.id,
            "moves_wh": recorded.seam.moves_wh,
            "from": recorded.seam.at.isoformat().replace("+00:00", "Z"),
            "because": recorded.note,
        }
    if what == "release":
        first, last = date.fromisoformat(wish["first"]), date.fromisoformat(wish["last"])
        days = release(meter, first, last, wish["split"], store, now, rules, dry=wish["dry"])
        return {
            "meter": meter.id,
            "days": [
                {
                    "day": str(day.day),
                    "period_wh": day.period_wh,
                    "estimated_wh": estimated_wh(day, store),
                    "how": day.closing.method if day.closing.method in ESTIMATED else day.opening.method,
                }
                for day in days
            ],
        }
    raise KeyError(what)

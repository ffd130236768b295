"""Makes `Health` of what the store holds and what only the running daemon knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from heliograph import __version__
from heliograph.core import daily, durations
from heliograph.core.chain import fingerprint
from heliograph.core.delivery import Note
from heliograph.core.errors import StoreError
from heliograph.core.figures import kwh
from heliograph.core.health import (
    Health,
    MachineHealth,
    MeterHealth,
    MeterState,
    OutputHealth,
    ProofHealth,
    UplinkHealth,
)
from heliograph.core.ledger import continuous
from heliograph.core.readings import Reading
from heliograph.core.shown import Sample
from heliograph.core.site import Meter
from heliograph.ports import BusCounters, Clock
from heliograph.store import Store
from heliograph.store.opening import loss, quarantined
from heliograph.store.outbox import RECOVERY
from heliograph.work.change import pending, told
from heliograph.work.close_days import Rules
from heliograph.work.decide import old_names

# A token that ends within this needs a person now; before that it is only shown.
TOKEN_ALARM = timedelta(days=14)
# A day on its way that comes to no end in this time needs a look.
STUCK = timedelta(hours=24)
# What a platform said about the clock is shown for so long, in seconds: 100 ppm of drift are 2 s in that time.
TOLD_LASTS = 6 * 3600.0
_IO = Path("/proc/self/io")


@dataclass(frozen=True, slots=True)
class Pause:
    """Why nothing is sent to a platform for a while, and what to do about it."""

    text: str
    remedy: str
    alarm: bool
    """False where it passes by itself in normal life."""


@dataclass
class Live:
    """What only the running daemon knows; nothing here is evidence."""

    values: dict[str, Mapping[str, float | int | str]] = field(default_factory=dict)
    at: dict[str, datetime] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    buses: dict[str, BusCounters] = field(default_factory=dict)
    pauses: dict[str, Pause | None] = field(default_factory=dict)
    tokens: dict[str, datetime | None] = field(default_factory=dict)
    """When the tokens end that somebody has to replace."""
    notes: dict[str, Sequence[Note]] = field(default_factory=dict)
    """What the uplinks have to say."""
    clock: str = ""
    """What a second witness says against the clock."""
    ahead: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By how many seconds the clock was ahead of a platform's, and when that was told, in seconds since boot."""
    verdicts: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """What answers made of days (work/deliver.py)."""
    highest: dict[str, int] = field(default_factory=dict)
    """By meter, the highest running total in Wh that was shown."""
    recovery: dict[str, str] = field(default_factory=dict)
    """Meters of which no day is closed after a restore, and why."""
    not_stored_since: datetime | None = None
    sampled: Callable[[Sample], None] = lambda _: None
    """Who is shown what each round came to; it neither raises nor waits."""
    outputs: Callable[[], tuple[OutputHealth, ...]] = tuple
    """How the outputs are."""


def health(
    site: str, meters: Sequence[Meter], store: Store, clock: Clock, rules: Rules, live: Live | None = None
) -> Health:
    """The state of the site now, from the store alone; with `live`, what the daemon knows beside it.

    Where the store cannot be read, the daemon says what it knows without, and that.
    """
    now, trusted = clock.now(), clock.trusted()
    names = {report.uplink for meter in meters for report in meter.reports}
    unread = ""
    try:
        shown = tuple(_meter(meter, store, now, rules, live) for meter in meters)
        held = store.days.held()
        counts = store.outbox.counts()
        ordered = {report.uplink for meter in meters for report in meter.reports if report.ordered}
        uplinks = tuple(
            _uplink(name, meters, store, counts.get(name, {}), live, now if trusted else None, ordered=name in ordered)
            for name in sorted(names | set(counts))
        )
        proof, losses = _proof(store), _losses(store, live)
    except StoreError as error:
        if live is None:
            raise
        unread = f"{error.message} {error.hint}".strip()
        shown = tuple(_seen(meter, now, live) for meter in meters)
        proof, losses = _UNREAD, []
        held, uplinks = [], tuple(UplinkHealth(name, {}, None, "", "", None) for name in sorted(names))
    waiting = [entry for entry in held if entry.kind == "held"]
    storage = _storage(store, live, unread) if live is not None else ""
    return Health(
        site,
        rules.zone.key,
        __version__,
        now,
        live is not None,
        trusted,
        shown,
        uplinks,
        len(waiting),
        len(held) - len(waiting),
        proof,
        {name: counters.counts() for name, counters in (live.buses if live else {}).items()},
        live.outputs() if live else (),
        storage,
        (
            *([storage] if storage else []),
            *losses,
            *_alarms(shown, uplinks, len(waiting), now if trusted else None, live.clock if live else ""),
            *_pauses(live),
        ),
        _machine(store.folder, clock, live),
    )


def _machine(folder: Path, clock: Clock, live: Live | None) -> MachineHealth:
    size = free = written = None
    with suppress(OSError):
        disk = os.statvfs(folder)
        size, free = disk.f_frsize * disk.f_blocks, disk.f_frsize * disk.f_bavail
    if live is not None:
        with suppress(OSError, ValueError):
            lines = _IO.read_text(encoding="ascii").splitlines()
            written = next((int(line.split()[1]) for line in lines if line.startswith("write_bytes:")), None)
    now, kernel = clock.since_boot(), clock.ahead()
    told = {name: ahead for name, (ahead, at) in (live.ahead if live else {}).items() if now - at < TOLD_LASTS}
    return MachineHealth(size, free, written, told | ({"kernel": kernel} if kernel is not None else {}))


def _storage(store: Store, live: Live, unread: str) -> str:
    fault, since = store.fault, live.not_stored_since
    if fault is not None:
        when = f"since {since:%Y-%m-%d %H:%M} UTC" if since is not None else "now"
        return (
            f"Nothing is stored {when}: {fault.text}. The meters are read on, what they show waits in memory, and the "
            f"card is tried again every few seconds. {fault.hint}"
        )
    if unread:
        return unread
    if since is not None:
        return f"Nothing could be stored since {since:%Y-%m-%d %H:%M} UTC. The card works again; it is being watched."
    if store.reserve.short:
        return (
            "The card is nearly full: one sample an hour is stored, and older ones are thinned to that. Days are "
            "closed and delivered as ever. Make room: df -h shows how full it is."
        )
    return ""


def _seen(meter: Meter, now: datetime, live: Live) -> MeterHealth:
    """A meter from what was read last, without the store."""
    at, index = live.at.get(meter.id), live.values.get(meter.id, {}).get(meter.production)
    state: MeterState = "never read" if at is None else "stale" if now - at > meter.cadence else "ok"
    return MeterHealth(
        meter.id,
        meter.bus,
        meter.unit,
        meter.map.name,
        state,
        at,
        index if isinstance(index, int) else None,
        None,
        None,
        None,
        None,
        "",
        live.errors.get(meter.id, ""),
        "",
        "",
        night=meter.map.night,
    )


def _meter(meter: Meter, store: Store, now: datetime, rules: Rules, live: Live | None) -> MeterHealth:
    known = meter.id in store.readings.meters()
    last = store.readings.last(meter.id) if known else None
    good = store.readings.last_good(meter.id) if known else None
    border = store.days.last_border(meter.id) if known else None
    days = store.days.latest(meter.id) if known else None
    error = live.errors.get(meter.id, "") if live else ""
    last_at = good.moment.at if good else None
    if live and meter.id in live.at and (last_at is None or live.at[meter.id] > last_at):
        last_at = live.at[meter.id]
    state: MeterState = "ok"
    if last_at is None:
        state = "never read"
    elif last is not None and last.doubt and not last.settled:
        state = "doubtful"
    elif now - last_at > meter.cadence:
        state = "stale"
    index = good.index_wh if good else None
    total = today = None
    midnight = daily.start_of(daily.day_of(now, rules.zone), rules.zone)
    seams = store.seams.all(meter.id) if known else []
    change = pending(meter, store) if known else None
    if change is not None and state == "ok":
        state = "doubtful"
    if border and good and index is not None:
        moved = continuous(seams, good.moment.at, index) - border.index_wh
        total = border.total_wh + moved
        if border.at >= midnight and moved >= 0:  # below a border that a platform knew, today's part is not known
            today = moved
    return MeterHealth(
        meter.id,
        meter.bus,
        meter.unit,
        meter.map.name,
        state,
        last_at,
        index,
        today,
        total,
        days.day if days else None,
        days.period_wh if days else None,
        last.doubt if last and not last.settled else "",
        error,
        f"seam {seams[-1].id}: {seams[-1]}" if seams else "",
        f"heliograph swap {meter.id} --map-changed"
        if change is not None
        else _proposal(meter.id, good, store)
        if state == "doubtful"
        else "",
        told(change, meter, store) if change is not None else "",
        meter.map.night,
        good.moment.at if good else None,
        good is not None and now - good.moment.at > meter.cadence,
        midnight,
        _rising(meter.id, total, border, live),
    )


def _rising(meter: str, total: int | None, border: daily.Border | None, live: Live | None) -> int | None:
    if total is None or border is None:
        return None
    least = max(total, border.total_wh)  # what is closed never changes
    if live is not None:
        least = live.highest[meter] = max(least, live.highest.get(meter, least))
    return least


def _proposal(meter: str, good: Reading | None, store: Store) -> str:
    """A seam from what is known; a person compares it with the displays before it is recorded."""
    doubted = store.readings.behind(good) if good is not None else None
    if good is None or good.index_wh is None or doubted is None or doubted.index_wh is None:
        return f"heliograph swap {meter} --help"
    serial = " --new-serial NUMBER" if "serial number changed" in doubted.doubt else ""
    kind = "" if serial else " --kind reset"
    counters = f"--old-index {kwh(good.index_wh)} --new-index {kwh(doubted.index_wh)}"
    return f"heliograph swap {meter} {counters}{serial}{kind} --at {doubted.moment.at:%Y-%m-%dT%H:%M:%SZ}"


_UNREAD = ProofHealth(0, "", "", 0, None, "", "")


def _proof(store: Store) -> ProofHealth:
    entries, last = store.chain.head().seq, store.chain.last_checkpoint()
    if last is None:
        return replace(_UNREAD, entries=entries)
    key, shown = last.key.hex(), fingerprint(last.key)
    return ProofHealth(entries, key, shown, last.seq, last.at, last.hash.hex(), last.signature.hex())


def _uplink(
    name: str,
    meters: Sequence[Meter],
    store: Store,
    rows: Mapping[str, int],
    live: Live | None,
    now: datetime | None,
    *,
    ordered: bool,
) -> UplinkHealth:
    trouble = store.outbox.trouble(name)
    pause = live.pauses.get(name) if live else None
    notes = live.notes.get(name, ()) if live else ()
    return UplinkHealth(
        name,
        rows,
        store.outbox.oldest_open(name),
        pause.text
        if pause
        else (f"{trouble['state']} {trouble['rule']} {trouble['answer']}".strip() if trouble else ""),
        pause.remedy if pause else trouble["remedy"] if trouble else "",
        live.tokens.get(name) if live else None,
        store.outbox.decided_aside(name),
        tuple(store.outbox.blocked(name)) if ordered else (),
        tuple(note.text for note in notes if not note.alarm),
        (*(note.text for note in notes if note.alarm), *old_names(meters, store, name)),
        tuple(_stuck(name, store, now)) if now is not None else (),
        dict(live.verdicts.get(name, {})) if live else {},
    )


def _stuck(uplink: str, store: Store, now: datetime) -> Iterator[str]:
    """Nothing waits for ever in silence: a line a meter, about its oldest such day."""
    for meter, group in groupby(store.outbox.stuck(uplink, now - STUCK), key=lambda one: str(one[0]["meter"])):
        (row, since), *others = group
        more = f" (and {len(others)} more of its days)" if others else ""
        why = f"{row['rule']} {row['answer']}".strip() or "no answer was had"
        todo = f"{row['remedy']} Look at: heliograph backlog {meter} {row['day']}".strip()
        yield f"{uplink}: {meter} {row['day']} is {row['state']} since {since:%Y-%m-%d %H:%M} UTC{more}: {why}. {todo}"


def _losses(store: Store, live: Live | None) -> list[str]:
    """A store that was damaged: for as long as days wait for it, and until somebody has taken the damaged file away."""
    found = []
    if kept := quarantined(store.folder):
        lost = store.journal.learned(RECOVERY)
        what = str(loss(lost)) if lost is not None else "damaged stores were moved away"
        found.append(
            f"{what}. Look at the card (system log), then move {kept[-1]} to another computer; {len(kept)} kept there."
        )
    for meter, reason in (live.recovery if live else {}).items():
        found.append(f"{meter}: no day is closed after the restore: {reason}")
    return found


def _alarms(
    meters: Sequence[MeterHealth], uplinks: Sequence[UplinkHealth], held: int, now: datetime | None, clock: str
) -> list[str]:
    found = []
    if now is None:
        found.append(
            f"The clock is not synchronised{clock and f' ({clock})'}: no day is closed or delivered."
            " Check the network and NTP (timedatectl)."
        )
    for meter in meters:
        if meter.state == "never read":
            found.append(f"{meter.id} was never read. {meter.error or f'Try: heliograph read {meter.id}'}")
        elif meter.state == "stale":
            found.append(
                f"{meter.id} has not answered since {meter.last_at:%Y-%m-%d %H:%M} UTC. {meter.error}".rstrip()
            )
        elif meter.state == "doubtful" and not meter.changed:
            doubt = meter.doubt if meter.doubt.endswith("?") else f"{meter.doubt}."
            found.append(
                f"{meter.id}: {doubt} Nothing is booked until it is back, or until you record what happened, with what "
                f"both counters showed at that moment: {meter.proposal}"
            )
    found += [f"{meter.changed}." for meter in meters if meter.changed]
    if held:
        found.append(f"{held} day{'s are' if held > 1 else ' is'} held. Why: heliograph days")
    for uplink in uplinks:
        if now is not None and uplink.token_until is not None and uplink.token_until - now <= TOKEN_ALARM:
            ends = "ended" if uplink.token_until <= now else f"ends in {durations.shown(uplink.token_until - now)},"
            found.append(
                f"The token for {uplink.name} {ends} at {uplink.token_until:%Y-%m-%d %H:%M} UTC. Put a new one in its"
                " place (a file is read again by itself); days wait until then, none is lost."
            )
        found += [f"{uplink.name}: {need}" for need in uplink.needs]
        found += uplink.stuck
        if count := uplink.stopped:
            days = f"{count} day{'s' if count != 1 else ''}"
            found.append(f"{uplink.name} has not taken {days}: {uplink.trouble}. Look at: heliograph backlog")
        found += [f"{device}. {device.todo}" for device in uplink.waits]
    return found


def _pauses(live: Live | None) -> list[str]:
    """What keeps whole platforms from getting anything: a person has to do something about it."""
    pauses = live.pauses if live else {}
    return [f"{name}: {one.text}. {one.remedy}".strip() for name, one in pauses.items() if one and one.alarm]


def age(at: datetime | None, now: datetime) -> str:
    return "never" if at is None else f"{durations.shown(now - at)} ago"

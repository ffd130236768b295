"""When things happen: one job per bus, and closing, delivering, reconciling and pruning beside them."""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor as Executor
from apscheduler.schedulers.background import BackgroundScheduler

from heliograph.app import App
from heliograph.core.answer import Answer
from heliograph.core.chain import GENESIS, pack_message
from heliograph.core.delivery import BEGIN_WITHIN
from heliograph.core.errors import BusError, BusRefused, HeliographError, StoreError, StoreFault, UsageError
from heliograph.core.health import Health
from heliograph.core.registers import Timing
from heliograph.core.shown import DayFigure
from heliograph.ports import Uplink
from heliograph.web import api
from heliograph.web.route import Site
from heliograph.work.amend import carry_out
from heliograph.work.attest import attest
from heliograph.work.change import waiting
from heliograph.work.close_days import close_days
from heliograph.work.deliver import Pace, deliver, free
from heliograph.work.health import Live, Pause, health
from heliograph.work.poll import PolledBus, poll, read_once
from heliograph.work.prune import make_room, prune
from heliograph.work.reconcile import compare, reconcile
from heliograph.work.recover import Recovery
from heliograph.work.show import Audience, figures
from heliograph.work.witness import witness

if TYPE_CHECKING:
    from heliograph.store import Store

log = structlog.get_logger()

CLOSE_EVERY = timedelta(seconds=20)
DELIVER_EVERY = timedelta(seconds=15)
WITNESS_EVERY = timedelta(minutes=5)
ATTEST_EVERY = timedelta(minutes=10)
RECONCILE_EVERY = timedelta(days=7)
RECONCILE_LOOK = timedelta(minutes=15)
SHOW_EVERY = timedelta(seconds=30)
PRUNE_EVERY = timedelta(hours=1)
# A card that works again is used again within twice this.
MEND_EVERY = timedelta(seconds=10)
COPY_LOOK = timedelta(hours=1)
# Least real time between two runs of a job, for rehearsals whose clock runs fast.
SHORTEST = 0.05
TOKEN_DAYS = (30, 14, 3)
STOP_WITHIN = 4.0
CLOCK_LOOK = 2.0
CLOCK_STEP = 1.0


class Daemon:
    """A running site. The store is open and locked for as long as it lives."""

    def __init__(self, app: App, store: Store) -> None:
        self.app = app
        self.store = store
        self.audience = Audience(app.outputs(self.rest))
        self._days: tuple[DayFigure, ...] = ()
        self.live = Live(sampled=self.audience.sample, outputs=self.audience.states)
        self._site = Site(app, self.live, self.health, self.healthy, self._stores)
        self.stopping = threading.Event()
        self.lines = [self._line(bus.id) for bus in app.config.settings.bus]
        self.uplinks = app.uplinks()
        self.paces = {uplink.name: Pace(app.clock) for uplink in self.uplinks}
        self.live.verdicts.update({name: pace.verdicts for name, pace in self.paces.items()})
        # Power may have come back to a whole region in this second, or to a row of fresh cards from one image: each
        # gateway begins to talk at a moment of its own. Reckoned from the boot, for setting the clock hastens nothing.
        spreads = {uplink.name: app.spread(uplink.name) for uplink in self.uplinks}
        self._delivers_from = {name: self._within(min(BEGIN_WITHIN, spread)) for name, spread in spreads.items()}
        self._reconciles_from = {name: self._within(RECONCILE_EVERY) for name in spreads}
        self._asks_from = self._within(min(WITNESS_EVERY, max(spreads.values(), default=timedelta(0))))
        self.recovery = Recovery(app.meters, app.rules)
        self._own_phase: set[str] = set()
        self._token_days: dict[str, float] = {}
        self.damaged = False
        self.on_damage: Callable[[], None] = lambda: None
        """What ends the process when the file turns out to be damaged."""
        self._beats: dict[str, float] = {}
        self._scheduler = BackgroundScheduler(
            executors={
                # A bus that hangs holds up no other and none of the work beside it.
                "default": Executor(4 + len(self.uplinks)),
                **{line.bus_id: Executor(1) for line in self.lines},
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )

    def _line(self, bus: str) -> PolledBus:
        meters = [meter for meter in self.app.meters if meter.bus == bus]
        settings = self.app.bus_settings(bus)
        return PolledBus(bus, settings.url, meters, partial(self.app.open_bus, bus), self.app.rules.position)

    def start(self) -> None:
        for line in self.lines:
            every = self.app.bus_settings(line.bus_id).every
            self._add(line.bus_id, every, partial(self._poll, line), executor=line.bus_id)
        self._add("storage", MEND_EVERY, self._mend)
        self._add("close", CLOSE_EVERY, self._stored(self._close))
        self._add("witness", WITNESS_EVERY, self._witness, own_phase=True)
        for uplink in self.uplinks:
            deliver = self._stored(partial(self._deliver, uplink))
            self._add(f"deliver {uplink.name}", DELIVER_EVERY, deliver, own_phase=True)
            reconcile = self._stored(partial(self._reconcile, uplink))
            self._add(f"reconcile {uplink.name}", RECONCILE_LOOK, reconcile, own_phase=True)
        if self.audience:
            self.audience.start()
            self._add("show", SHOW_EVERY, self._show)
        # The first one at once: an installer wants the key's fingerprint before leaving the roof.
        self._add("attest", ATTEST_EVERY, self._stored(self._attest), later=self._attested())
        self._add("prune", PRUNE_EVERY, self._stored(self._prune), later=True)
        self._add("copy", COPY_LOOK, self._stored(self._copy), later=True)
        self._scheduler.start()
        threading.Thread(target=self._mind_the_clock, name="clock", daemon=True).start()
        with suppress(StoreError):  # what cannot be read now is told by `status` when it can
            for changed in waiting(self.app.meters, self.store):
                log.error("counter_changed", what=changed)
        log.info(
            "started", site=self.app.config.settings.site.id, meters=len(self.app.meters), data=str(self.app.data_dir)
        )

    def _within(self, span: timedelta) -> float:
        """A moment by chance, in seconds since boot; a stable one could lie behind every restart of a failing box."""
        return self.app.clock.since_boot() + random.random() * span.total_seconds()

    def _add(
        self,
        name: str,
        every: timedelta,
        job: Callable[[], None],
        *,
        executor: str = "default",
        later: bool = False,
        own_phase: bool = False,
    ) -> None:
        """Runs at once and then in its period; `later`: first after one; `own_phase`: it talks to a platform, so that
        no two gateways run it in step."""
        seconds = max(every.total_seconds() / self.app.clock.rate, SHORTEST)
        first = {} if later else {"next_run_time": _soon(seconds if own_phase else 0.0)}
        if own_phase:
            self._own_phase.add(name)
        guarded = partial(self._guarded, name, job)
        self._scheduler.add_job(guarded, "interval", seconds=seconds, id=name, name=name, executor=executor, **first)

    def _guarded(self, name: str, job: Callable[[], None]) -> None:
        """The outer edge of a job: whatever happens in it stops nothing else."""
        if self.stopping.is_set():
            return
        try:
            job()
        except StoreFault as error:
            self._stopped_storing(error)
        except HeliographError as error:
            log.error("job_failed", job=name, error=str(error), hint=error.hint)
        except Exception:  # a fault of ours in one job must not end the metering; its traceback is kept
            log.exception("job_crashed", job=name)
        self._beats[name] = time.monotonic()

    def _stored(self, job: Callable[[], None]) -> Callable[[], None]:
        """A job that is left out while the store has a fault; polling alone goes on without."""
        return lambda: job() if self.store.fault is None else None

    def _stopped_storing(self, error: StoreFault) -> None:
        """Said once, however often it is met."""
        fault = self.store.fault
        if fault is not None and fault.damaged and not self.damaged:
            self.damaged = True  # only a start can put a copy in its place
            log.error("store_damaged", error=error.message, hint="The gateway ends; at its next start a copy is used.")
            self.on_damage()
        if self.live.not_stored_since is None:
            self.live.not_stored_since = self.app.clock.now()
            log.error("storage_fault", error=error.message, hint=error.hint)

    def _mend(self) -> None:
        """Ends a fault when the card allows it. It is over when a whole period went well after that."""
        fault, since = self.store.fault, self.live.not_stored_since
        if fault is not None:
            self._stopped_storing(fault.error())
            self.store.mend()
        elif since is not None:
            now = self.app.clock.now()
            self.store.journal.event(
                now, "storage", "store", f"nothing could be stored from {since:%Y-%m-%d %H:%M} UTC"
            )
            self.live.not_stored_since = None
            log.warning("storage_back", seconds=round((now - since).total_seconds()))
        if self.store.fault is None:
            make_room(self.store, self.app.clock, self.app.meters)

    def _mind_the_clock(self) -> None:
        """The scheduler reckons in wall time: when the clock is set back, its next rounds would lie hours ahead."""
        apart = time.time() - time.monotonic()
        while not self.stopping.wait(CLOCK_LOOK):
            now = time.time() - time.monotonic()
            if abs(now - apart) > CLOCK_STEP:
                self.live.ahead.clear()
                log.warning("clock_stepped", seconds=round(now - apart, 1))
                self.reschedule()
            apart = now

    def reschedule(self) -> None:
        """Every job runs now, and from now on in its period; one that talks to a platform within its period, for a
        clock is set in many gateways at once when power and network come back."""
        for job in self._scheduler.get_jobs():
            period = job.trigger.interval.total_seconds() if job.id in self._own_phase else 0.0
            job.modify(next_run_time=_soon(period))

    def _poll(self, line: PolledBus) -> None:
        poll(line, self.store, self.app.clock, self.app.rules.zone, self.live, self.stopping.is_set)

    def _close(self) -> None:
        self.live.recovery = self.recovery.settle(self.store, self.app.clock)
        meters = [meter for meter in self.app.meters if meter.id not in self.live.recovery]
        close_days(meters, self.store, self.app.clock, self.app.rules)

    def _deliver(self, uplink: Uplink) -> None:
        pace, clock = self.paces[uplink.name], self.app.clock
        if (wait := self._delivers_from[uplink.name] - clock.since_boot()) > 0:
            begins = clock.now() + timedelta(seconds=wait)
            text = f"begins at {begins:%H:%M} UTC: gateways that start together do not send together"
            self.live.pauses[uplink.name] = Pause(text, "", alarm=False)
            self._watch_token(uplink, clock.now())
            return
        self.recovery.ask(uplink, self.store, clock, pace)
        deliver(uplink, self.store, clock, pace, random.random)
        now = clock.now()
        self._watch_token(uplink, now)
        self._hear(uplink)
        until, why = pace.paused_until, pace.why
        paused = None
        if until is not None and why is not None:
            text = f"paused until {until:%H:%M} UTC: {why.text or why.rule}"
            paused = Pause(text, why.remedy, alarm=not why.busy)
        self.live.pauses[uplink.name] = paused

    def _hear(self, uplink: Uplink) -> None:
        """What an uplink has to say, in the log once."""
        notes, before = uplink.notes(), {note.text for note in self.live.notes.get(uplink.name, ())}
        self.live.notes[uplink.name] = notes
        for note in notes:
            if note.text not in before:
                tell = log.warning if note.alarm else log.info
                tell("uplink_note", uplink=uplink.name, text=note.text)

    def _watch_token(self, uplink: Uplink, now: datetime) -> None:
        """Says once each when 30, 14 and 3 days are left of a token that somebody has to replace."""
        until, before = uplink.token_until(), self._token_days.get(uplink.name, math.inf)
        self.live.tokens[uplink.name] = until
        left = math.inf if until is None else (until - now) / timedelta(days=1)
        self._token_days[uplink.name] = left
        if any(left <= days < before for days in TOKEN_DAYS):
            hint = "Put a new token in its place; a file is read again by itself."
            log.warning("token_ends", uplink=uplink.name, at=str(until), days=round(left, 1), hint=hint)

    def _reconcile(self, uplink: Uplink) -> None:
        now = self.app.clock.since_boot()
        if now < self._reconciles_from[uplink.name]:
            return
        self._reconciles_from[uplink.name] = now + RECONCILE_EVERY.total_seconds()
        reconcile(uplink, self.store, self.app.clock, self.paces[uplink.name], self.stopping.is_set)

    def _witness(self) -> None:
        if self.app.clock.since_boot() < self._asks_from:
            return
        asked = [uplink for uplink in self.uplinks if free(uplink, self.paces[uplink.name])]
        if asked or not self.app.clock.wants_witness():
            self.live.clock = witness(asked, self.app.clock, self._told)

    def _told(self, uplink: str, ahead: float) -> None:
        self.live.ahead[uplink] = (ahead, self.app.clock.since_boot())

    def _attest(self) -> None:
        attest(self.app.config.settings.site.id, self.store, self.app.clock, self.app.sign)

    def _sign(self, manifest: dict[str, Any]) -> dict[str, str]:
        """Signs a pack, if it is a piece of the chain: whoever may ask must not have anything else signed."""
        ends = {manifest.get("last"): manifest.get("head"), manifest.get("first", 0) - 1: manifest.get("previous")}
        for number, hash in ends.items():
            entry = next(self.store.chain.entries(number, number), None)
            if (entry.hash if entry else GENESIS if number == 0 else b"").hex() != hash:
                hint = "Packs are made by: heliograph export"
                raise UsageError("this is no piece of this gateway's chain", hint=hint)
        key, signature = self.app.sign(pack_message(manifest))
        return {"key": key.hex(), "signature": signature.hex()}

    def _attested(self) -> bool:
        try:
            return self.store.chain.last_checkpoint() is not None
        except StoreError:
            return False

    def _compare(self, name: str, meter: str, first: date) -> Any:
        """Months of one meter, or how long to wait before the platform may be asked again (seconds)."""
        uplink = next((one for one in self.uplinks if one.name == name), None)
        if uplink is None:
            raise KeyError(name)
        clock, pace = self.app.clock, self.paces[name]
        if not free(uplink, pace):
            return {"wait": 10}
        found = compare(uplink, self.store, clock, pace, meter, first)
        return {"months": [{**asdict(one), "difference_wh": one.difference_wh} for one in found]}

    def _look_up(self, name: str, remote_ids: list[str]) -> Any:
        """What a platform knows of devices: the daemon may be the only one that sees the token."""
        uplink = next((one for one in self.uplinks if one.name == name), None)
        if uplink is None:
            raise KeyError(name)
        roll, until = uplink.look_up(remote_ids), uplink.token_until()
        trouble = roll.trouble
        return {
            "devices": [asdict(one) for one in roll.devices],
            "trouble": trouble
            and {"rule": trouble.rule, "text": trouble.text, "remedy": trouble.remedy, "token": trouble.token},
            "token_until": until and until.isoformat(),
        }

    def _prune(self) -> None:
        retention = self.app.config.settings.retention
        prune(self.store, self.app.clock, retention.fine, retention.hourly)

    def _copy(self, *, forced: bool = False) -> None:
        # On an untrusted clock nobody knows which copy is the newest.
        if self.store.reserve.short or not self.app.clock.trusted():
            return
        if (made := self.app.copy_ledger(forced=forced)) is not None:
            log.info("copied", path=made["path"], bytes=made["bytes"], last_day=made["last_day"])

    def _show(self) -> None:
        with suppress(StoreError):  # then the days are as they were, and the picture says what is wrong
            self._days = figures(self.store, self.app.clock, self.app.rules.zone)
        self.audience.picture(self.health(), self._days)

    def health(self) -> Health:
        site, rules = self.app.config.settings.site.id, self.app.rules
        return health(site, self.app.meters, self.store, self.app.clock, rules, self.live)

    def rest(self, method: str, target: str) -> Answer:
        """What the read-only REST says."""
        return api.answer(self._site, method, target)

    def answer(self, path: str, wish: Any = None) -> Any:
        """What our own verbs ask on the control socket beside the REST; with a `wish`, what it does. KeyError for what
        is none of it."""
        parts = [part for part in path.partition("?")[0].split("/") if part]
        if parts == ["api", "v1", "frames"]:
            return self._frames()
        if parts == ["api", "v1", "sign"] and isinstance(wish, dict):
            return self._sign(wish)
        if parts == ["api", "v1", "backup"] and wish is not None:
            return self.app.copy_store(Path(wish["path"]) if wish["path"] else None)
        if parts[:3] == ["api", "v1", "reconcile"] and len(parts) == 5 and wish is not None:
            return self._compare(parts[3], parts[4], date.fromisoformat(wish["first"]))
        if parts[:3] == ["api", "v1", "buses"] and len(parts) == 5 and parts[4] == "words" and isinstance(wish, dict):
            return self._words(parts[3], wish)
        if parts[:3] == ["api", "v1", "uplinks"] and parts[4:] == ["look-up"] and wish is not None:
            return self._look_up(parts[3], wish["devices"])
        if parts[:3] == ["api", "v1", "meters"] and len(parts) > 3:
            return self._meter(parts[3], parts[4:], wish)
        raise KeyError(path)

    def _meter(self, id: str, more: list[str], wish: Any) -> Any:
        meter = next((one for one in self.app.meters if one.id == id), None)
        if meter is None or len(more) != 1 or (wish is None) != (more in (["all"], ["now"])):
            raise KeyError(id)
        if wish is not None:
            line = next(one for one in self.lines if one.bus_id == meter.bus)
            with line.lock:  # a round that is under way judges by what was before
                shown, named = line.watch(meter, self.store, self.app.clock).shown, wish.get("new_serial")
                if shown is not None and named is not None and shown.lstrip("0") != named.lstrip("0"):
                    raise UsageError(
                        f"{id} answers with serial number {shown}, not {named}",
                        hint="Compare with its label, and record the swap when the new meter is connected.",
                    )
                done = carry_out(meter, more[0], wish, self.store, self.app.clock, self.app.rules)
                line.forget(meter)
            if not wish.get("dry"):
                # Nobody else knows what a person decided: it must not be lost with this card's next bad page.
                self._scheduler.add_job(self._guarded, args=("copy now", partial(self._copy, forced=True)))
            return done
        line = next(one for one in self.lines if one.bus_id == meter.bus)
        with line.lock:
            return read_once(line, meter, self.app.clock, everything=more == ["all"])

    def _words(self, bus: str, wish: dict[str, Any]) -> Any:
        """One read for somebody who looks at a line beside the polling; between two rounds, for the port is ours."""
        line = next((one for one in self.lines if one.bus_id == bus), None)
        if line is None:
            raise KeyError(bus)
        with line.lock:
            try:
                timing = Timing(**wish["timing"])
                words = line.bus().read(wish["unit"], wish["function"], wish["address"], wish["count"], timing)
            except BusError as error:
                failed = {"failed": type(error).__name__, "message": error.message, "hint": error.hint}
                return failed | ({"code": error.code} if isinstance(error, BusRefused) else {})
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"this is no read of registers: {error}") from error
        return {"words": list(words)}

    def _frames(self) -> dict[str, Any]:
        """What was last said on each line, and the serial numbers that may stand in it."""
        now, buses = time.monotonic(), dict(self.live.buses)
        shown = [one.shown for line in self.lines for one in line.watched()]
        serials = {one for one in (*shown, *(self._serial(meter.id) for meter in self.app.meters)) if one}
        return {
            "counts": {name: counters.counts() for name, counters in buses.items()},
            "frames": {
                name: [{"ago": now - one.at, "sent": one.sent, "hex": one.data.hex()} for one in tuple(counters.frames)]
                for name, counters in buses.items()
            },
            "serials": sorted(serials),
        }

    def _serial(self, id: str) -> str | None:
        try:
            return self.store.readings.serial(id)
        except StoreError:
            return None

    def _stores(self) -> bool:
        return self.store.fault is None and self.live.not_stored_since is None

    def healthy(self) -> bool:
        """Every bus job came round lately; what the watchdog is fed with."""
        now = time.monotonic()
        for line in self.lines:
            every = self.app.bus_settings(line.bus_id).every.total_seconds() / self.app.clock.rate
            if now - self._beats.get(line.bus_id, now) > max(60.0, 10 * every):
                return False
        return True

    def stop(self) -> None:
        """Lets running rounds finish and commit, for a few seconds at most; what was claimed stays claimed."""
        self.stopping.set()
        for uplink in self.uplinks:
            uplink.close()  # whoever waits for its turn to ask need not be waited for
        self._scheduler.remove_all_jobs()
        # A request may take a minute to time out: its row is unclear on disk already, so nothing has to wait for it.
        ending = threading.Thread(target=self._scheduler.shutdown, name="stop", daemon=True)
        # Outputs take their leave meanwhile: what a last round comes to is stored, and need not be shown.
        leaving = threading.Thread(target=self.audience.close, name="leave", daemon=True)
        until = time.monotonic() + STOP_WITHIN
        for one in (ending, leaving):
            one.start()
        for one in (ending, leaving):
            one.join(max(0.0, until - time.monotonic()))
        for uplink in self.uplinks:
            uplink.close()
        for line in self.lines:
            line.close()
        if ending.is_alive():
            log.warning("stop_forced", hint="A request was under way; it is read back at the next start.")
        log.info("stopped")


def _soon(within: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=random.random() * within)


def notify(state: str) -> None:
    """sd_notify(3): tells systemd READY=1, WATCHDOG=1, STOPPING=1; without systemd it does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)

"""Short lives of the daemon: everything is imported once, each life is a fork of that, and ends by SIGKILL.

python -m tests.e2e.lives START RATE BEGAN CONFIG ... (START in ISO, BEGAN on the monotonic clock) reads orders
from stdin, one JSON object a line, and answers each with what the life was told by its store and what it was doing when
it was killed. Nobody runs a thread here but the lives, so that a fork is a whole process.
"""

from __future__ import annotations

import gc
import importlib
import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import heliograph.daemon
from heliograph import app
from heliograph.clock import RehearsalClock
from heliograph.core import delivery
from heliograph.core.delivery import DayRow, Parcel, Verdict
from heliograph.daemon import Daemon
from heliograph.logs import set_up
from heliograph.ports import Uplink
from heliograph.store import Store, schema
from tests.store.acknowledged import tell_all

# What a life may be killed in: the jobs of the daemon by their names (the bus is called "poll"), and what is no job.
JOBS = ("poll", "close", "deliver redex", "deliver drec", "prune")
WHATS = (*JOBS, "backup", "migrate")
# How deep in it the life was: not at all, in the job, in the part of it that stores.
JOB, STORING = 1, 2
# A moment that was waited for and does not come is not worth more than this (seconds).
PATIENCE = 0.5
# Real seconds within which a platform must have answered a life that does nothing but deliver.
TIMEOUT = 0.5
# Real seconds for which a life that claims late has sent what it has not written down.
UNCLAIMED = 0.05

Wrong = Literal["", "acknowledges early", "claims late", "resends blindly"]


@dataclass(frozen=True, slots=True)
class Order:
    """How a life is to be lived and ended."""

    config: str
    delay: float
    """Seconds until the kill, from the start or from the moment that is waited for."""
    aim: str | None = None
    depth: int = JOB
    only_open: bool = False
    """The store is opened, and that is all."""
    only: str = ""
    """Nothing but jobs whose names begin so, and nothing is told of what is acknowledged."""
    wrong: Wrong = ""
    """What this life does wrong, so that the test can fail."""


@dataclass(frozen=True, slots=True)
class End:
    """What is known of a life afterwards."""

    told: list[str]
    busy: dict[str, int]
    """What it was doing when it was killed, and how deep in it."""
    begun: bool
    """The daemon had started its jobs."""
    killed: bool
    """It was still alive when it was killed: nothing ever ends by itself."""


class Marks:
    """What a life is doing, in memory that it shares with whoever kills it: a byte for each thing, and for `begun`."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, len(WHATS) + 1)
        self._here = threading.local()

    def depth(self, what: str) -> int:
        return self._bytes[WHATS.index(what)]

    def _set(self, what: str, depth: int) -> None:
        self._bytes[WHATS.index(what)] = depth

    @property
    def begun(self) -> bool:
        return bool(self._bytes[-1])

    @begun.setter
    def begun(self, begun: bool) -> None:
        self._bytes[-1] = begun

    def clear(self) -> None:
        self._bytes[:] = bytes(len(self._bytes))

    @contextmanager
    def within(self, what: str, depth: int) -> Iterator[None]:
        """One thread at a time is within one of them."""
        self._set(what, depth)
        self._here.what = what
        try:
            yield
        finally:
            self._here.what = ""
            self._set(what, 0)

    def storing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Marks that the job which calls this is storing, whichever job it is."""

        def marked(*given: Any, **named: Any) -> Any:
            if not (what := getattr(self._here, "what", "")):
                return call(*given, **named)
            self._set(what, STORING)
            try:
                return call(*given, **named)
            finally:
                self._set(what, JOB)

        return marked


class WatchedDaemon(Daemon):
    def __init__(self, site: app.App, store: Store, marks: Marks, only: str) -> None:
        self._marks = marks
        self._only = only
        super().__init__(site, store)

    def _add(self, name: str, *given: Any, **named: Any) -> None:
        if name.startswith(self._only):
            super()._add(name, *given, **named)

    def _guarded(self, name: str, job: Callable[[], None]) -> None:
        if name not in JOBS:
            return super()._guarded(name, job)
        with self._marks.within(name, JOB):
            return super()._guarded(name, job)


def live(site: app.App, order: Order, marks: Marks, pipe: int) -> NoReturn:
    """The real daemon on the real store; it returns to nobody."""
    apply = schema.migrations.apply

    def migrate(*given: Any, **named: Any) -> None:
        with marks.within("migrate", STORING):
            apply(*given, **named)

    schema.migrations.apply = migrate  # type: ignore[method-assign]  # in this process only
    with site.writer() as store:
        for holder, name in (
            (store.readings, "add"),
            (store.days, "close"),
            (store.outbox, "claim"),
            (store.outbox, "settle"),
            (store.readings, "thin"),
        ):
            setattr(holder, name, marks.storing(getattr(holder, name)))
        if not order.only:
            early = order.wrong == "acknowledges early"
            tell_all(store, lambda lines: os.write(pipe, "".join(f"{line}\n" for line in lines).encode()), early=early)
        if not order.only_open:
            daemon = WatchedDaemon(site, store, marks, order.only)
            if order.only:
                heliograph.daemon.SHORTEST = 0.005
                for uplink in daemon.uplinks:
                    uplink._http.timeout = TIMEOUT  # type: ignore[attr-defined]  # both have one
            if order.wrong == "claims late":
                claim_late(store, daemon.uplinks)
            elif order.wrong == "resends blindly":
                delivery.judge = resend
            daemon.start()
            marks.begun = True
            if order.aim == "backup":
                with marks.within("backup", STORING):
                    copy = daemon.answer("/api/v1/backup", {"path": None})
                os.write(pipe, f"copy {copy['path']} {copy['sha256']}\n".encode())
        signal.pause()
    os._exit(0)


def claim_late(store: Store, uplinks: Sequence[Uplink]) -> None:
    """What a gateway does that writes down what it sent after it has sent it, and takes its time.

    Without that a life is rarely killed between the two; on a fast computer half of the backlogs ended before it was.
    """
    claim = store.outbox.claim
    waiting: dict[str, tuple[Any, ...]] = {}

    def put_off(uplink: str, parcel: Parcel, now: datetime, look: datetime) -> int:
        waiting[uplink] = (uplink, parcel, now, look)
        return 0

    def sending(uplink: Uplink) -> Callable[[Parcel], Mapping[int, Verdict]]:
        send = uplink.send

        def sent(parcel: Parcel) -> Mapping[int, Verdict]:
            verdicts = send(parcel)
            time.sleep(UNCLAIMED)
            claim(*waiting.pop(uplink.name))
            return verdicts

        return sent

    store.outbox.claim = put_off  # type: ignore[method-assign]  # in this process only
    for uplink in uplinks:
        uplink.send = sending(uplink)  # type: ignore[method-assign, assignment]  # in this process only


def resend(row: DayRow, found: object, now: datetime, absent_after: object) -> Verdict:
    """What a gateway does that never asks whether the platform has it already."""
    del row, found, now, absent_after
    return Verdict("due", "blind")


def end(site: app.App, order: Order, marks: Marks) -> End:
    """One life, from the fork to what is known of it afterwards."""
    marks.clear()
    reading, writing = os.pipe()
    if (life := os.fork()) == 0:
        try:
            os.close(reading)
            live(site, order, marks, writing)
        except BaseException:  # noqa: BLE001  # whatever it was, it must not return into the parent's loop
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    if order.aim is not None:
        patient = time.monotonic() + PATIENCE
        while marks.depth(order.aim) < order.depth and time.monotonic() < patient:
            time.sleep(0.0001)
    time.sleep(order.delay)
    os.kill(life, signal.SIGKILL)
    _, status = os.waitpid(life, 0)
    busy = {what: depth for what in WHATS if (depth := marks.depth(what))}
    with open(reading, "rb") as told:  # noqa: PTH123  # a descriptor, not a path
        # A line that was cut off was not told.
        lines = told.read().decode().rpartition("\n")[0].splitlines()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return End(lines, busy, marks.begun, killed)


def main() -> None:
    start, rate, began, *configs = sys.argv[1:]
    set_up("error")
    clock = RehearsalClock(datetime.fromisoformat(start), float(rate), float(began))
    sites = {config: app.load(Path(config), clock) for config in configs}
    for name in ("bus.modbus", "uplink.redex", "uplink.drec", "uplink.http", "uplink.tokens", "store.copies"):
        importlib.import_module(f"heliograph.{name}")
    importlib.import_module("httpx")
    marks = Marks()
    assert threading.active_count() == 1
    gc.freeze()
    for line in sys.stdin:
        order = Order(**json.loads(line))
        print(json.dumps(asdict(end(sites[order.config], order, marks))), flush=True)


if __name__ == "__main__":
    main()

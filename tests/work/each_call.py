"""A meter is read over midnight, its day closed and delivered, again and again: each time another system call fails.

Started by test_each_call.py, which attaches strace: that lets the LAST-th call of a kind fail in any process. For each
line "CALL N" on stdin a process is forked; it makes LAST - N calls of that kind for nothing, and then begins its work.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from heliograph.core.errors import StoreError
from heliograph.core.site import Meter
from heliograph.logs import set_up
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.store import Store, reserve
from heliograph.work.close_days import close_days
from heliograph.work.deliver import Pace, deliver
from heliograph.work.health import Live
from heliograph.work.poll import PolledBus, poll
from tests.fakes import RULES, SINGAPORE, START, FakeClock, FakeUplink, a_meter
from tests.work.test_poll import URL, VirtualBus

LAST = 200
# What a store asks of the card. A lock (fcntl) is the kernel's alone; SQLite waits for one for ten seconds.
CALLS = ("openat", "newfstatat", "pread64", "pwrite64", "fdatasync", "ftruncate", "fallocate", "unlink")
HANGS = 60
STEPS = 150
NOON_AT_MIDNIGHT = ZoneInfo("America/New_York")  # so that the counter moves while the day ends
MIDNIGHT = START + timedelta(hours=24)
METER: Meter = replace(a_meter(), store_every=timedelta(seconds=10))


class Gateway:
    """What the daemon does, step by step, on a clock of its own."""

    def __init__(self, folder: Path, began: timedelta) -> None:
        self.folder = folder
        self.clock = FakeClock(MIDNIGHT + began)
        self.clock.up += began.total_seconds() + 86400
        self.meter = METER
        device = SimulatedMeter(
            self.meter.map,
            clock=self.clock.now,
            start_export_wh=41_230_700,
            sky=Sky(zone=NOON_AT_MIDNIGHT, seed=1),
            seed=1,
        )
        self.device = device
        self.line = PolledBus("rs485", URL, [self.meter], lambda: VirtualBus(self.clock, {1: device}))
        self.live = Live()
        self.uplink = FakeUplink()
        self.pace = Pace(self.clock)
        self.store: Store | None = None
        self.stored: list[tuple[int, int | None]] = []
        self.faults = 0

    def open(self) -> None:
        self.store = Store.writer(self.folder)
        self.store.introduce(self._introduce)
        self.faults += self.store.fault is not None

    def _introduce(self) -> None:
        assert self.store is not None
        self.store.readings.begin("site", "Asia/Singapore", self.clock.boot_id, self.clock.now())
        self.store.readings.know_map(self.meter.map_digest, self.meter.map.name, "")
        self.store.readings.know_meter("roof", self.meter.production)

    def guarded(self, job: Callable[[], object]) -> None:
        """As the daemon does it: an error of the store ends a job, and anything else is a defect."""
        try:
            job()
        except StoreError:
            self.faults += 1

    def round(self) -> None:
        assert self.store is not None
        waiting = [(round(r.moment.since_boot * 1000), r.index_wh) for r in self.line.waiting]
        poll(self.line, self.store, self.clock, SINGAPORE, self.live, lambda: False)
        newest = self.line.watched()[0].stored
        if newest is not None and not self.line.waiting:
            # The round came back, and nothing waits: this is what "acknowledged" means.
            new = (round(newest.moment.since_boot * 1000), newest.index_wh)
            self.stored += [one for one in (*waiting, new) if one not in self.stored]

    def step(self) -> None:
        """Ten seconds of the daemon's life."""
        assert self.store is not None
        store = self.store
        if store.fault is not None:
            self.guarded(store.mend)
        self.guarded(self.round)
        if store.fault is None:
            self.guarded(lambda: close_days([self.meter], store, self.clock, RULES))
        if store.fault is None:
            self.guarded(lambda: deliver(self.uplink, store, self.clock, self.pace, lambda: 0.5))
        self.clock.leap(seconds=10)

    def night(self) -> None:
        """Two rounds before midnight and two after it, then the day is closed and delivered."""
        for _ in range(4):
            self.step()
        self.clock.leap(minutes=15)
        self.step()

    def done(self) -> bool:
        assert self.store is not None
        if self.store.fault is not None or self.line.waiting:
            return False
        try:
            return self.store.outbox.counts() == {"platform": {"confirmed": 1}}
        except StoreError:
            return False


def prepared(folder: Path) -> None:
    """A store with a commissioned meter, an hour before midnight."""
    folder.mkdir()
    gateway = Gateway(folder, timedelta(hours=-1))
    gateway.open()
    assert gateway.store is not None
    gateway.round()
    gateway.step()
    gateway.store.close()


def case(folder: Path, dies: bool) -> dict[str, Any]:
    gateway = Gateway(folder, timedelta(seconds=-21))
    for _ in range(3):  # a start that fails with a name is tried again by the service manager
        try:
            gateway.open()
            break
        except StoreError:
            gateway.faults += 1
    gateway.night()
    if dies and gateway.faults:
        return {"stored": gateway.stored, "faults": gateway.faults, "sent": len(gateway.uplink.stored)}
    steps = 0
    while not gateway.done() and steps < STEPS:
        # An unclear day is only asked about after some minutes, and believed to be absent after half an hour.
        gateway.clock.leap(minutes=5)
        gateway.step()
        steps += 1
    assert gateway.store is not None
    done = gateway.done()
    gateway.store.close()
    return {
        "stored": gateway.stored,
        "faults": gateway.faults,
        "done": done,
        "sent": len(gateway.uplink.stored),
        "twice": len(gateway.uplink.twice),
    }


def padded(call: str, times: int, scratch: Path) -> None:
    """As many calls of a kind, for nothing, as the one that is to fail has to come after."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(scratch, os.O_RDWR | os.O_CREAT)
    if call == "openat":
        times -= 1
    for _ in range(times):
        match call:
            case "openat":
                os.close(os.open(scratch, os.O_RDONLY))
            case "newfstatat":
                os.fstat(handle)
            case "pread64":
                os.pread(handle, 1, 0)
            case "pwrite64":
                os.pwrite(handle, b"x", 0)
            case "fdatasync":
                os.fdatasync(handle)
            case "ftruncate":
                os.ftruncate(handle, 1)
            case "fallocate":
                libc.posix_fallocate(handle, 0, 1)
            case "unlink":
                libc.unlink(b"/nowhere/at/all")


def forked(template: Path, folder: Path, call: str, number: int, dies: bool) -> None:
    signal.alarm(HANGS)
    shutil.copytree(template, folder)  # makes calls of its own, so it comes in front of those that are counted
    report: dict[str, Any]
    told = os.open(folder / "report", os.O_WRONLY | os.O_CREAT)  # opened here, for the child's calls are counted
    child = os.fork()
    if child == 0:
        signal.alarm(HANGS)
        try:
            if number == 0:
                (folder / "begin").touch()
            else:
                padded(call, LAST - number, folder / "scratch")
            report = case(folder, dies)
        except BaseException:  # noqa: BLE001  # whatever it is, it is told, and the test fails
            report = {"crashed": traceback.format_exc()}
        if number == 0:
            (folder / "end").touch()
        os.write(told, json.dumps(report).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"call": call, "number": number, "status": status, "folder": str(folder)}), flush=True)
    os._exit(0)


def main() -> None:
    set_up("error")
    reserve.MOST = 64 * 1024  # hundreds of them are made
    template, work, dies = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "dies"
    prepared(template)
    shutil.copytree(template, work / "warm")
    warm = case(work / "warm", dies=False)  # imports what is imported late, so that a process makes few calls for that
    assert warm["done"] and not warm["faults"], warm
    ctypes.CDLL(None).prctl(
        0x59616D61, ctypes.c_ulong(-1), 0, 0, 0
    )  # PR_SET_PTRACER: strace may attach without being root
    print("ready", flush=True)
    for line in sys.stdin:
        call, number = line.split()
        if os.fork() == 0:
            forked(template, work / f"{call}-{number}", call, int(number), dies)
        os.wait()


if __name__ == "__main__":
    main()

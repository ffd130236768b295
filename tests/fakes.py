"""Small stand-ins with state, shared by tests."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from heliograph import library
from heliograph.core.delivery import DayRow, Missing, Note, Parcel, ReadBack, Registered, Roll, Stored, Verdict
from heliograph.core.registers import Timing
from heliograph.core.site import Meter, Report
from heliograph.work.close_days import Rules

SINGAPORE = ZoneInfo("Asia/Singapore")
START = datetime(2026, 3, 13, 16, tzinfo=UTC)  # midnight of 14 March in Singapore
RULES = Rules(SINGAPORE, timedelta(minutes=15), timedelta(hours=2), "hold")


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: what survives a power cut is tested elsewhere, and flushing takes time."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="heliograph-", dir=memory if usable else None) as folder:
        yield Path(folder)


def free_port() -> int:
    """Of loopback, where nobody listens now; the next one that asks for any may get it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class FakeClock:
    rate = 1.0
    boot_id = "boot-1"

    def __init__(self, now: datetime = START) -> None:
        self.at = now
        self.up = 1000.0
        self.synchronised = True

    def leap(self, **span: float) -> None:
        self.at += timedelta(**span)
        self.up += timedelta(**span).total_seconds()

    def now(self) -> datetime:
        return self.at

    def since_boot(self) -> float:
        return self.up

    def trusted(self) -> bool:
        return self.synchronised

    def wants_witness(self) -> bool:
        return not self.synchronised

    def vouch(self) -> None:
        self.synchronised = True

    def ahead(self) -> float | None:
        return None

    def sleep(self, seconds: float) -> None:
        self.leap(seconds=seconds)


def a_meter(id: str = "roof", *, unit: int = 1, report: bool = True, baseline_wh: int = 0) -> Meter:
    loaded = library.load("eastron-sdm630", local=None)
    return Meter(
        id,
        "rs485",
        unit,
        loaded.map,
        loaded.digest,
        "energy_export",
        50.0,
        Timing(timeout=0.2, retries=0),
        timedelta(seconds=10),
        timedelta(seconds=60),
        baseline_wh,
        reports=(Report("platform", f"STR-{id}"),) if report else (),
    )


class FakeUplink:
    """A platform in memory. `script` holds what happens to the next requests: "ok", "lost" (stored, no answer),
    "dropped" (neither stored nor answered), "busy" (429), "token" (401),
    "refused" (422)."""

    name = "platform"
    ordered = False
    absent_after = timedelta(minutes=30)

    def __init__(self, most: int = 3000) -> None:
        self.most = most
        self.stored: dict[tuple[str, str], tuple[int, int]] = {}
        self.script: list[str] = []
        self.requests = 0
        self.limit: int | None = None
        """Requests that may leave altogether."""
        self.sends = 0
        self.twice: list[DayRow] = []
        self.says: datetime | None = None
        """What time it is there."""
        self.ends: datetime | None = None
        """Its token."""
        self.new_token = False
        self.says_now: list[Note] = []
        self.before_answer: Callable[[], object] = lambda: None

    def prepare(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        del rows
        return {}

    def notes(self) -> Sequence[Note]:
        return tuple(self.says_now)

    def room(self) -> float:
        return 1.0 if self.limit is None else max(0.0, 1 - self.requests / self.limit)

    def pack(self, rows: Sequence[DayRow]) -> Parcel | None:
        chosen = tuple(rows[: self.most])
        return Parcel("/send", b"{}", chosen) if chosen else None

    def send(self, parcel: Parcel) -> Mapping[int, Verdict]:
        self.requests += 1
        self.sends += 1
        what = self.script.pop(0) if self.script else "ok"
        if what in ("ok", "lost"):
            for row in parcel.rows:
                key = (row.remote_id, row.day.isoformat())
                if key in self.stored:
                    self.twice.append(row)
                self.stored[key] = (row.period_wh, row.total_wh)
        self.before_answer()
        verdict = {
            "ok": Verdict("accepted", "201"),
            "lost": Verdict("unclear", "timeout", "no answer"),
            "dropped": Verdict("unclear", "timeout", "no answer"),
            "busy": Verdict("due", "429", "slow down", wait=timedelta(seconds=90), pause_all=True),
            "token": Verdict("due", "401", "no", "renew it", timedelta(minutes=5), pause_all=True, token=True),
            "refused": Verdict("rejected", "422", "no such inverter", remedy="register it"),
        }[what]
        return {row.id: verdict for row in parcel.rows}

    def follow(self, rows: Sequence[DayRow]) -> Mapping[int, Verdict]:
        self.requests += 1
        return {row.id: Verdict("confirmed", "process") for row in rows}

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        self.requests += 1
        found: dict[int, ReadBack] = {}
        for row in rows:
            held = self.stored.get((row.remote_id, row.day.isoformat()))
            found[row.id] = Stored(*held) if held else Missing()
        return found

    def look_up(self, remote_ids: Sequence[str]) -> Roll:
        self.requests += 1
        return Roll(tuple(Registered(one, True) for one in remote_ids))

    def token_until(self) -> datetime | None:
        return self.ends

    def token_changed(self) -> bool:
        return self.new_token

    def date(self) -> datetime | None:
        self.requests += 1
        return self.says

    def close(self) -> None:
        """Nothing to let go of."""


def slower(meter: Meter, every: timedelta) -> Meter:
    return replace(meter, every=every, store_every=every)

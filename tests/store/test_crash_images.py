"""What a card may hold after the power was cut: files built from a trace of what the store wrote and flushed.

A child runs rounds, closes, deliveries, pruning and a restart on a real store under strace, which writes down every
write with its bytes, every flush, every name made and removed. The power is cut after a random event of it. A write
stands for certain once its file was flushed; one since then is on the card or not with probability one half, and three
in ten of those that are arrive torn: of their 512-byte sectors, each is there or not. Changes of length are like
writes. A name made, changed or removed stands for certain once its directory was flushed, and likewise before. A
write leaves the bytes beside it alone, even in its own sector (SQLite's "powersafe overwrite"), and a flush is
believed: what a card does that lies about flushes is not modelled. The shared memory file is left out, as it is gone
with the power. The store is then opened as the daemon opens it, and must hold whatever the child was told before.

HELIOGRAPH_IMAGES=10000 pytest -n 0 -s tests/store/test_crash_images.py runs it by hand with as many as one likes.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from heliograph.core.errors import StoreError
from heliograph.core.readings import Moment, Reading, Source
from heliograph.logs import set_up
from heliograph.store import Store
from heliograph.store.connection import FILE
from heliograph.work.close_days import close_days
from heliograph.work.deliver import Pace, deliver
from tests.fakes import RULES, START, FakeClock, FakeUplink, a_meter
from tests.store.acknowledged import flaws, lost, tell_all

IMAGES = int(os.environ.get("HELIOGRAPH_IMAGES", "1000"))
METERS, DAYS, EVERY = 10, 8, timedelta(minutes=30)
RESTARTS = (3, 6)
OLD = 1500
SECTOR = 512
TRACED = "openat,close,pwrite64,write,fsync,fdatasync,ftruncate,unlink,unlinkat,rename"

if shutil.which("strace") is None and not os.environ.get("CI"):
    pytest.skip("strace is missing; Debian has it in the package strace", allow_module_level=True)


# -- the child that is traced ---------------------------------------------------------------------------------------


def child(folder: Path, synchronous: str) -> None:
    """Days of ten meters, every acknowledgement a write to stdout: in the trace it stands where it happened."""
    clock, uplink = FakeClock(), FakeUplink()
    pace = Pace(clock)
    meters = [a_meter(f"m{number}") for number in range(METERS)]
    store = _opened(folder, synchronous, clock)
    # Samples of an earlier meter, for pruning: nobody is told of them, so that they may go.
    long_ago = [START - timedelta(days=100) + timedelta(minutes=10 * number) for number in range(OLD)]
    for first in range(0, OLD, 100):
        store.readings.add([_reading("old", at, number) for number, at in enumerate(long_ago[first:][:100], first)])
    wh = dict.fromkeys([meter.id for meter in meters], 41_230_700)
    for day in range(DAYS):
        if day in RESTARTS:
            store.close()
            store = _opened(folder, synchronous, clock)
        tell_all(store, lambda lines: os.write(1, "\n".join(lines).encode()))
        for _ in range(timedelta(days=1) // EVERY):
            store.readings.add([_reading(meter, clock.now(), at) for meter, at in wh.items()])
            close_days(meters, store, clock, RULES)
            deliver(uplink, store, clock, pace, lambda: 0.5)
            wh = {meter: at + 700 + 13 * number for number, (meter, at) in enumerate(wh.items())}
            clock.leap(seconds=EVERY.total_seconds())
        store.readings.thin(clock.now() - timedelta(days=50), hourly=True, batch=OLD // DAYS)
    store.close()


def _opened(folder: Path, synchronous: str, clock: FakeClock) -> Store:
    store = Store.writer(folder)
    store._connection.execute(f"PRAGMA synchronous={synchronous}")
    store.readings.begin("cut", "Asia/Singapore", clock.boot_id, clock.now())
    store.readings.know_map("digest", "eastron-sdm630", "the map's text")
    for number in range(METERS):
        store.readings.know_meter(f"m{number}", "energy_export")
    store.readings.know_meter("old", "energy_export")
    return store


def _reading(meter: str, at: datetime, wh: int) -> Reading:
    source = Source(1, "input", 0x4A, 2, "digest")
    return Reading(
        meter, Moment(at, "boot-1", 0, True), wh, {"frequency": 50.02, "active_power": wh % 997}, (1, 2), source
    )


# -- the trace ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Length:
    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Flush:
    file: int | None
    """None: the directory, with the names in it."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names that stand for another file from here on, or for none."""

    changed: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Told:
    lines: tuple[str, ...]


Event = Write | Length | Flush | Names | Told
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def recorded(folder: Path, synchronous: str) -> list[Event]:
    """What the child did to its store's files, in order."""
    data, trace = folder / "data", folder / "trace"
    data.mkdir()
    command = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "1000000", "-e", f"trace={TRACED}", "-o", str(trace)]
    command += [sys.executable, "-m", "tests.store.test_crash_images", str(data), synchronous]
    seen = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert seen.returncode == 0, f"strace or the child failed (may processes be traced here?): {seen.stderr}"
    with trace.open(encoding="ascii") as lines:
        events = list(_events(lines, str(data)))
    trace.unlink()
    return events


def _events(lines: Iterator[str], folder: str) -> Iterator[Event]:
    files: dict[str, int] = {}  # by name, as the child sees them
    opened: dict[int, int | None] = {}  # by descriptor; None is the directory
    made = 0
    for line in lines:
        assert "unfinished" not in line, "the child has more than one thread, and its order is lost"
        if (call := _CALL.match(line)) is None or int(call[3]) < 0:
            continue
        name, result = call[1], int(call[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text, cut in _TEXT.findall(call[2])]
        plain = [part.strip() for part in _TEXT.sub("", call[2]).split(",")]
        paths = [text.decode() for text in texts if name in ("openat", "unlink", "unlinkat", "rename")]
        inside = [path.removeprefix(folder + "/") for path in paths if path.startswith(folder + "/")]
        if any(path.endswith("-shm") for path in inside):
            opened.pop(result, None)
            continue
        if name == "openat":
            opened.pop(result, None)
            if paths == [folder]:
                opened[result] = None
            elif inside:
                assert "O_TRUNC" not in call[2]
                if inside[0] not in files:
                    files[inside[0]], made = made, made + 1
                    yield Names({inside[0]: files[inside[0]]})
                opened[result] = files[inside[0]]
        elif name in ("unlink", "unlinkat") and inside:
            del files[inside[0]]
            yield Names({inside[0]: None})
        elif name == "rename" and inside:
            files[inside[1]] = files.pop(inside[0])
            yield Names({inside[1]: files[inside[1]], inside[0]: None})
        elif name == "write" and plain[0] == "1":
            yield Told(tuple(texts[0].decode().splitlines()))
        elif not plain[0].isdigit() or int(plain[0]) not in opened:
            continue
        elif name == "close":
            del opened[int(plain[0])]
        elif name in ("fsync", "fdatasync"):
            yield Flush(opened[int(plain[0])])
        else:
            file = opened[int(plain[0])]
            assert file is not None and name in ("pwrite64", "ftruncate"), line[:200]
            if name == "ftruncate":
                yield Length(file, int(plain[1]))
            else:
                assert result == len(texts[0]), "a write that was written in part"
                yield Write(file, int(plain[-1]), texts[0])


# -- the card -------------------------------------------------------------------------------------------------------


class Card:
    """What was flushed, and what came since and may or may not be there after a cut."""

    def __init__(self) -> None:
        self._flushed: dict[int, bytearray] = {}
        self._since: dict[int, list[Write | Length]] = {}
        self._names: dict[str, int] = {}
        self._names_since: list[Names] = []

    def take(self, event: Event) -> None:
        match event:
            case Write(file) | Length(file):
                self._since.setdefault(file, []).append(event)
            case Flush(None):
                for names in self._names_since:
                    _rename(self._names, names)
                self._names_since.clear()
            case Flush(int(file)):
                for change in self._since.pop(file, []):
                    _change(self._flushed.setdefault(file, bytearray()), change)
            case Names():
                self._names_since.append(event)

    def after_a_cut(self, chance: random.Random) -> dict[str, bytearray]:
        names = dict(self._names)
        for change in self._names_since:
            if chance.random() < 0.5:
                _rename(names, change)
        found = {}
        for name, file in names.items():
            content = bytearray(self._flushed.get(file, b""))
            for one in self._since.get(file, []):
                if chance.random() < 0.5:
                    for part in _torn(one, chance) if isinstance(one, Write) and chance.random() < 0.3 else [one]:
                        _change(content, part)
            found[name] = content
        return found


def _rename(names: dict[str, int], change: Names) -> None:
    for name, file in change.changed.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _change(content: bytearray, change: Write | Length) -> None:
    end = change.size if isinstance(change, Length) else change.offset + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    if isinstance(change, Length):
        del content[end:]
    else:
        content[change.offset : end] = change.data


def _torn(write: Write, chance: random.Random) -> Iterator[Write]:
    """Its 512-byte sectors, each there or not."""
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        border = min(end, (at // SECTOR + 1) * SECTOR)
        if chance.random() < 0.5:
            yield Write(write.file, at, write.data[at - write.offset : border - write.offset])
        at = border


def after_cuts(events: list[Event], chance: random.Random) -> list[list[str]]:
    """What each image had lost of what was told before its cut, or what is wrong with it."""
    stops = sorted(chance.choices(range(1, len(events) + 1), k=IMAGES))
    card, told, outcomes, at = Card(), list[str](), list[list[str]](), 0
    memory = Path("/dev/shm")  # where there is one: every opening flushes, and these files are not worth a card's life
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        for stop in stops:
            for event in events[at:stop]:
                card.take(event)
                if isinstance(event, Told):
                    told += event.lines
            at = stop
            folder = Path(name)
            for file, content in card.after_a_cut(chance).items():
                (folder / file).write_bytes(content)
            outcomes.append(_missed(folder, told))
            for path in folder.iterdir():
                path.unlink()
    return outcomes


def _missed(folder: Path, told: list[str]) -> list[str]:
    try:
        Store.writer(folder).close()
        raw = sqlite3.connect(folder / FILE)
        try:
            return lost(raw, told) + flaws(raw)
        finally:
            raw.close()
    except (StoreError, sqlite3.Error) as error:
        return [f"not to be used: {error}"]


# -- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_what_was_acknowledged_is_on_the_card_after_a_power_cut(tmp_path: Path, synchronous: str) -> None:
    seed = int(os.environ.get("HELIOGRAPH_SEED", random.randrange(1_000_000)))
    events = recorded(tmp_path, synchronous)
    outcomes = after_cuts(events, random.Random(seed))
    damaged = [outcome[:3] for outcome in outcomes if outcome]
    kinds = {kind.__name__: sum(isinstance(event, kind) for event in events) for kind in (Write, Flush, Names, Told)}
    print(f"seed {seed}, {synchronous}: {len(damaged)} of {IMAGES} images lost something; the trace: {kinds}")
    if synchronous == "FULL":
        assert damaged == []
    else:  # without a flush per commit the same images must show the loss: a harness that cannot see it is void
        assert len(damaged) >= IMAGES / 2


if __name__ == "__main__":
    set_up("warning")  # to stderr
    child(Path(sys.argv[1]), sys.argv[2])

"""Each system call of reading over midnight, closing, delivering and storing fails in turn, with EIO and with ENOSPC.

HELIOGRAPH_EACH_CALL=3 pytest tests/work/test_each_call.py lets it fail three and thirty times in a row as well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from heliograph.store import Store
from tests.work.each_call import CALLS, LAST

ROOT = Path(__file__).parents[2]
WRITES = ("pwrite64", "fdatasync", "ftruncate", "unlink")
DEEP = int(os.environ.get("HELIOGRAPH_EACH_CALL", "1"))

# Where it must run, a missing strace is a failure and not a pass.
pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"), reason="strace is missing; Debian has it"
)


@contextmanager
def harness(folder: Path, options: list[str], *, dies: bool = False) -> Iterator[tuple[IO[str], IO[str]]]:
    """The forking process with strace on it."""
    command = [sys.executable, "-m", "tests.work.each_call", str(folder / "template"), str(folder / "work")]
    (folder / "work").mkdir()
    with subprocess.Popen(
        [*command, "dies" if dies else "lives"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        while (line := child.stdout.readline()) != "ready\n":
            assert line, (folder / "log").read_text()
        tracing = ["strace", "-f", "-qq", "-p", str(child.pid), "-o", str(folder / "trace"), *options]
        with subprocess.Popen(tracing, stderr=subprocess.PIPE, text=True) as strace:
            _traced(child.pid)
            try:
                yield child.stdin, child.stdout
            finally:
                child.stdin.close()
                child.wait(timeout=60)
                strace.send_signal(signal.SIGINT)
                strace.wait(timeout=60)


def _traced(pid: int) -> None:
    """Waits until strace has attached itself."""
    for _ in range(100_000):
        if "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text():
            return
        os.sched_yield()
    raise AssertionError("strace did not attach itself")


def counted(folder: Path) -> Counter[str]:
    """How many calls of each kind there are without any fault."""
    folder.mkdir()
    with harness(folder, ["-e", f"trace={','.join(CALLS)}"]) as (ask, told):
        print("none 0", file=ask, flush=True)
        told.readline()
    lines = (folder / "trace").read_text().splitlines()
    begins = next(number for number, line in enumerate(lines) if '/begin"' in line)
    ends = next(number for number, line in enumerate(lines) if '/end"' in line)
    pid = lines[begins].split()[0]
    found: Counter[str] = Counter()
    for line in lines[begins + 1 : ends]:
        if match := re.match(rf"{pid} +(\w+)\(", line):
            found[match[1]] += 1
    return found


def run(folder: Path, calls: Counter[str], error: str, times: int, *, dies: bool) -> Counter[tuple[str, str]]:
    folder.mkdir()
    wanted = [(call, number) for call in CALLS for number in range(1, calls[call] + 1)]
    assert max(calls.values()) < LAST
    outcomes: Counter[tuple[str, str]] = Counter()
    until = f"..{LAST + times - 1}" if times > 1 else ""
    options = ["-e", f"trace={','.join(CALLS)}", "-e", f"inject={','.join(CALLS)}:error={error}:when={LAST}{until}"]
    with harness(folder, options, dies=dies) as (ask, told):
        for call, number in wanted:
            print(call, number, file=ask, flush=True)
            answer = json.loads(told.readline())
            where = f"{error} x {times} at {call} {number}"
            assert answer["status"] == 0, f"{where}: hung or killed, {answer['status']}"
            report = json.loads((Path(answer["folder"]) / "report").read_text())
            outcomes[call, judged(Path(answer["folder"]), report, where)] += 1
            shutil.rmtree(answer["folder"])
    return outcomes


def judged(folder: Path, report: dict[str, Any], where: str) -> str:
    assert "crashed" not in report, f"{where}: {report.get('crashed')}"
    if "done" in report:
        assert report["done"] and report["sent"] == 1 and not report["twice"], (where, report)
    raw = sqlite3.connect(folder / "heliograph.db")
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",), where
    rows = raw.execute("SELECT since_boot, index_wh FROM reading ORDER BY id").fetchall()
    assert len(set(rows)) == len(rows), f"{where}: a reading is there twice"
    assert [wh for _, wh in rows] == sorted(wh for _, wh in rows), where
    lost = [one for one in map(tuple, report["stored"]) if one not in set(rows)]
    assert not lost, f"{where}: acknowledged and lost: {lost}"
    raw.close()
    # Whatever happened, the next start goes on from there: one day, one value, and all energy in it.
    store = Store.writer(folder)
    assert store.fault is None, where
    days = store.days.all("roof")
    first, last = store.days.first_border("roof"), store.days.last_border("roof")
    assert first is not None and last is not None, where
    assert len(days) == len({day.day for day in days}) <= 1, where
    assert sum(day.period_wh for day in days) == last.index_wh - first.index_wh == last.total_wh, where
    if "done" in report:
        (day,) = days
        assert day.closing.method == "read", f"{where}: {day.closing}"
        assert store.outbox.counts() == {"platform": {"confirmed": 1}}, where
    store.close()
    if "done" not in report:
        return "died"
    return "went on" if report["faults"] else "did not notice"


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_each_call_fails_in_turn_and_nothing_is_wrong_lost_or_hung(tmp_path: Path, error: str) -> None:
    calls = counted(tmp_path / "count")
    print(dict(calls))
    assert calls["pwrite64"] > 30 and calls["fdatasync"] > 5 and calls["openat"] > 3
    for times in (1, DEEP, 10 * DEEP) if DEEP > 1 else (1,):
        outcomes = run(tmp_path / f"lives{times}", calls, error, times, dies=False)
        print(f"{error} x {times}: {dict(outcomes)}")
        # What SQLite can do without it passes over: the size of a hint, a checkpoint that is made again later.
        assert sum(count for (call, how), count in outcomes.items() if call in WRITES and how == "went on") > 40
    writes = Counter({call: calls[call] for call in WRITES})
    outcomes = run(tmp_path / "dies", writes, error, 1, dies=True)
    print(f"{error}, and the end of the process: {dict(outcomes)}")
    assert sum(count for (_, how), count in outcomes.items() if how == "died") > 40

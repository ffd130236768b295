"""A gateway that is killed while somebody decides: a decision is in the store, its record and the chain, or in none."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

from heliograph.core.delivery import Parcel, Verdict
from heliograph.store import Store
from heliograph.store.connection import FILE
from heliograph.work.decide import decide
from tests.fakes import START, FakeClock, a_meter
from tests.work.test_deliver import make_store

KILLS = int(os.environ.get("HELIOGRAPH_KILLS", "10"))
DAYS = 3


def child(folder: Path) -> None:
    """Sets the same days aside and takes that back, as fast as it can."""
    store, meter = Store.writer(folder), a_meter("m0")
    named = {"first": "2026-03-14", "last": "2026-03-16", "uplink": None, "dry": False}
    print("ready", flush=True)
    while True:
        for what in ("set-aside", "retry"):
            row = store.outbox.rows("platform", "m0", date.min, date.max)[0]
            # The life before may have ended between the two.
            if (what == "retry") == (row.last_rule == "aside/person") and row.state == "rejected":
                decide(meter, what, named, store, START + timedelta(days=9))
            refuse(store)


def refuse(store: Store) -> None:
    """What was retried is refused again."""
    now = START + timedelta(days=9)
    rows = [row for row in store.outbox.rows("platform", "m0", date.min, date.max) if row.state == "unclear"]
    store.outbox.settle([(row.id, Verdict("rejected", "R422"), now) for row in rows], now)


def test_a_decision_is_made_wholly_or_not_at_all(tmp_path: Path) -> None:
    """HELIOGRAPH_KILLS=500 pytest tests/e2e/test_decided.py kills as often; HELIOGRAPH_SEED repeats the moments."""
    seed = int(os.environ.get("HELIOGRAPH_SEED", "0")) or random.randrange(1, 1_000_000)
    print(f"HELIOGRAPH_SEED={seed}")
    chance, seen = random.Random(seed), 0
    store = make_store(tmp_path / "data", FakeClock(), meters=1, days=DAYS)
    rows = store.outbox.rows("platform", "m0", date.min, date.max)
    store.outbox.claim("platform", Parcel("/x", b"{}", tuple(rows)), START, START)
    store.outbox.settle([(row.id, Verdict("rejected", "R422"), START) for row in rows], START)
    store.close()
    for _ in range(KILLS):
        command = [sys.executable, "-m", "tests.e2e.test_decided", str(tmp_path / "data")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as life:
            assert life.stdout is not None and life.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.15))  # a moment of a life, not a wait for something
            life.send_signal(signal.SIGKILL)
        store = Store.writer(tmp_path / "data")
        rows = store.outbox.rows("platform", "m0", date.min, date.max)
        assert len({(row.state, row.last_rule) for row in rows}) == 1
        told = [entry.content for entry in store.chain.entries() if entry.content["kind"] == "decision"]
        tried = [one for one in store.outbox.attempts.of([rows[0].id])[rows[0].id] if one["asked"] == "person"]
        assert len(told) == len(tried)
        assert [one["rule"] for one in told] == [one["rule"] for one in tried]
        if rows[0].state == "unclear" or rows[0].last_rule == "aside/person":
            assert (told[-1]["state"], told[-1]["rule"]) == (rows[0].state, rows[0].last_rule)
        seen = len(told)
        refuse(store)
        store.close()
    assert (tmp_path / "data" / FILE).exists() and seen >= KILLS


if __name__ == "__main__":
    child(Path(sys.argv[1]))

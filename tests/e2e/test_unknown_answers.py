"""An answer nobody can vouch for never counts as delivered; the day is read back, and arrives once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from heliograph.ports import Uplink
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.store import Store
from heliograph.uplink.drec import Drec
from heliograph.uplink.http import Http
from heliograph.uplink.redex import Redex, dialect
from heliograph.uplink.tokens import Secret, StaticToken
from heliograph.work.deliver import Pace, deliver
from tests.fakes import SINGAPORE, FakeClock
from tests.work.test_deliver import make_store

# Faults of the stand-in platform: what the request met, by the words of `heliograph sandbox --list-faults`.
FAULTS = [
    "html",
    "html-after",
    "empty",
    "empty-after",
    "truncate",
    "cut-json",
    "drop-before",
    "drop-after",
    "500-before",
    "500-after",
    "503",
    "redirect",
    "slow",
]


def uplink_to(platform: str, url: str, token: Path, clock: FakeClock) -> Uplink:
    tokens = StaticToken(Secret(file=token))
    if platform == "redex":
        http = Http(url, timeout=1.0)
        return Redex("platform", http, dialect("grouped-2024"), tokens, clock.now)
    return Drec("platform", Http(url + "/api", timeout=1.0), "Delta", tokens, clock.now, sleep=clock.sleep)


@pytest.mark.parametrize("platform", ["redex", "drec"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_strange_answer_never_counts_as_delivered(tmp_path: Path, platform: str, fault: str) -> None:
    clock = FakeClock()
    store = make_store(tmp_path, clock, meters=1, days=3)
    token = tmp_path / "token"
    token.write_text("token")
    with Sandbox(now=clock.now, token="token", timezone=SINGAPORE.key, slow=timedelta(seconds=3)) as sandbox:
        uplink = uplink_to(platform, sandbox.url, token, clock)
        sandbox.fault(fault, 1, "redex.batch" if platform == "redex" else "drec.send")
        pace = Pace(clock)
        deliver(uplink, store, clock, pace, lambda: 0.5)
        states = store.outbox.counts()["platform"]
        assert states.get("confirmed", 0) == 0
        if platform == "redex":
            assert states.get("accepted", 0) == 0, states
        for _ in range(400):
            clock.leap(minutes=3)
            deliver(uplink, store, clock, pace, lambda: 0.5)
        assert store.outbox.counts()["platform"] == {"confirmed": 3}
        held = sandbox.total_wh("redex" if platform == "redex" else "drec", "STR-m0")
        assert held == sum(day.period_wh for day in store.days.all("m0"))
        assert [str(one) for one in sandbox.violations] == []
        uplink.close()
    store.close()


def test_the_store_of_this_test_is_real(tmp_path: Path) -> None:
    make_store(tmp_path, FakeClock(), meters=1, days=1).close()
    assert Store.reader(tmp_path).outbox.counts() == {"platform": {"due": 1}}

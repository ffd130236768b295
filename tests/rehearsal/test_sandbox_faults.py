"""Faults of the stand-in platforms: when they strike, what they do, and that a seed fixes them."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from heliograph.core.errors import UsageError
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_exchange import Answer
from heliograph.rehearsal.sandbox_faults import KINDS, Fault, FaultPlan, parse_fault

START = datetime(2026, 3, 15, 4, 0, tzinfo=UTC)
SEND = "/public/v2/generation-datas"
DREC = "/api/meter-reads/new/roof"
HEADERS = {"Authorization": "Bearer t0", "Content-Type": "application/json"}


class Clock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Sandbox:
    return Sandbox(clock.now, token="t0", processing_delay=timedelta(0))


def redex(sandbox: Sandbox) -> Answer:
    day = {"Timestamp": "2026-03-10", "PeriodProductionInKWh": "1.000", "AccumulatedEnergyInKWh": "1.000"}
    return sandbox.handle("POST", SEND, "", HEADERS, json.dumps({"RemoteInvId": "roof", "Data": [day]}).encode())


def drec(sandbox: Sandbox) -> Answer:
    body = {"type": "Delta", "unit": "Wh", "reads": [{"endtimestamp": "2026-03-10T00:00:00Z", "value": 1000}]}
    return sandbox.handle("POST", DREC, "", HEADERS, json.dumps(body).encode())


def test_every_kind_has_its_effect() -> None:
    assert {fault.phase for fault in KINDS.values()} == {"before", "after", "process"}
    assert all(fault.says for fault in KINDS.values())


@pytest.mark.parametrize("platform", ["redex", "drec"])
@pytest.mark.parametrize(
    ("kind", "status", "delivery", "stored"),
    [
        ("drop-before", 0, "drop", 0),
        ("drop-after", 201, "drop", 1000),
        ("500-before", 500, "send", 0),
        ("500-after", 500, "send", 1000),
        ("503", 503, "send", 0),
        ("truncate", 201, "truncate", 1000),
        ("cut-json", 201, "send", 1000),
        ("slow", 201, "send", 1000),
        ("429", 429, "send", 0),
        ("429-bare", 429, "send", 0),
        ("429-wrong", 429, "send", 0),
        ("html", 200, "send", 0),
        ("html-after", 200, "send", 1000),
        ("empty", 200, "send", 0),
        ("empty-after", 200, "send", 1000),
        ("redirect", 302, "send", 0),
        ("401", 401, "send", 0),
        ("403", 403, "send", 0),
    ],
)
def test_a_fault_does_what_it_says_once(
    sandbox: Sandbox, platform: str, kind: str, status: int, delivery: str, stored: int
) -> None:
    send = redex if platform == "redex" else drec
    sandbox.fault(kind)
    answer = send(sandbox)
    assert (answer.status, answer.delivery) == (status, delivery)
    assert sandbox.total_wh(platform, "roof") == stored  # type: ignore[arg-type]  # a table cannot say Literal
    assert sandbox.faulted == {kind: 1}
    assert sandbox.violations == [], "a fault is not the client's doing"
    assert sandbox.requests == {f"{platform}.send": 1}
    if not stored:
        assert send(sandbox).status == 201
    assert sandbox.total_wh(platform, "roof") == 1000  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    ("kind", "header"), [("429", "30"), ("429-bare", None), ("429-wrong", "soon"), ("redirect", None)]
)
def test_retry_after_is_right_wrong_or_absent(sandbox: Sandbox, kind: str, header: str | None) -> None:
    sandbox.fault(kind)
    assert dict(redex(sandbox).headers).get("Retry-After") == header


def test_answers_that_are_no_answers(sandbox: Sandbox) -> None:
    sandbox.faults = [Fault(kind, count=1) for kind in ("html", "empty", "cut-json")]
    portal, nothing, half = (redex(sandbox) for _ in range(3))
    assert dict(portal.headers)["Content-Type"].startswith("text/html")
    assert nothing.body == b""
    with pytest.raises(json.JSONDecodeError):
        json.loads(half.body)


def test_slow_is_a_delay_in_the_time_of_the_sandbox(clock: Clock) -> None:
    sandbox = Sandbox(clock.now, token="t0", slow=timedelta(seconds=45))
    sandbox.fault("slow")
    assert redex(sandbox).delay == 45


def test_the_leak_of_a_database_only_happens_to_drec(sandbox: Sandbox) -> None:
    sandbox.faults = {"leak": 1.0}
    assert redex(sandbox).status == 201
    answer = drec(sandbox)
    assert (answer.status, json.loads(answer.body).keys()) == (400, {"statusCode", "message"})


def test_a_failing_process_only_happens_to_what_is_accepted(sandbox: Sandbox) -> None:
    """A refused request uses the fault up and does not spoil the next."""
    sandbox.fault("failed")
    assert sandbox.handle("POST", SEND, "", HEADERS, b"{").status == 400
    assert redex(sandbox).status == 201
    assert sandbox.total_wh("redex", "roof") == 1000


def test_an_outage_lasts_from_its_start_to_its_end(sandbox: Sandbox, clock: Clock) -> None:
    sandbox.outage(START + timedelta(hours=1), timedelta(hours=36))
    seen = []
    for hours in (0, 1, 36.99, 37):
        clock.at = START + timedelta(hours=hours)
        seen.append(sandbox.handle("GET", SEND, "", HEADERS).status)
    assert seen == [400, 503, 503, 400]


def test_a_fault_may_be_limited_to_a_kind_of_request(sandbox: Sandbox) -> None:
    sandbox.faults = [Fault("html", on="drec", chance=1.0), Fault("503", on="redex.batch", chance=1.0)]
    assert [redex(sandbox).status, drec(sandbox).status] == [201, 200]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_fixes_which_requests_suffer(clock: Clock, seed: int) -> None:
    def run() -> list[str | None]:
        sandbox = Sandbox(clock.now, seed=seed, faults={"html": 0.2, "drop-after": 0.2})
        return [sandbox.begin("GET", SEND).fault for _ in range(200)]

    first = run()
    assert first == run()
    counts = Counter(first)
    assert 20 < counts["html"] < 60 and 20 < counts["drop-after"] < 60, f"seed {seed}: {counts}"


def test_switching_faults_does_not_shift_the_luck_of_later_requests() -> None:
    def run(switch: bool) -> list[str | None]:
        plan = FaultPlan(random.Random(5))
        plan.set({"html": 0.3})
        seen = [plan.choose("redex.send", START) for _ in range(50)]
        if switch:
            plan.set([])
            seen += [plan.choose("redex.send", START) for _ in range(10)]
            plan.set({"html": 0.3})
        else:
            seen += [plan.choose("redex.send", START) for _ in range(10)]
        return [plan.choose("redex.send", START) for _ in range(50)]

    assert run(True) == run(False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("html=0.05", Fault("html", chance=0.05)),
        ("500-after@redex.batch=next:2", Fault("500-after", "redex.batch", count=2)),
        (
            "503=+10m/36h",
            Fault("503", start=START + timedelta(minutes=10), end=START + timedelta(hours=36, minutes=10)),
        ),
        ("503@drec=2026-03-15T04:00:00Z/90s", Fault("503", "drec", start=START, end=START + timedelta(seconds=90))),
    ],
)
def test_faults_are_written_in_one_way(text: str, fault: Fault) -> None:
    assert parse_fault(text, START) == fault
    assert parse_fault(str(fault), START) == fault


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("htlm=0.1", "Did you mean html?"),
        ("html", "For instance"),
        ("html=often", "For instance"),
        ("html=next:x", "For instance"),
        ("html=2", ""),
        ("503=+10/1h", "For instance"),
        ("503=noon/1h", "For instance"),
    ],
)
def test_a_misspelt_fault_is_explained(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_fault(text, START)
    assert hint in caught.value.hint

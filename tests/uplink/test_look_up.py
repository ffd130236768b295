"""What a platform knows of devices, asked without sending anything that belongs to a day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest

from heliograph.core.delivery import Registered, Roll
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_drec import Device
from heliograph.rehearsal.sandbox_redex_rules import Inverter
from heliograph.uplink.drec import Drec
from heliograph.uplink.http import Http
from heliograph.uplink.redex import DIALECTS, Redex
from heliograph.uplink.tokens import Secret, StaticToken
from tests.fakes import SINGAPORE, FakeClock

NAMES = [f"STR{number}" for number in range(60)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sandbox(clock: FakeClock) -> Sandbox:
    long_ago = clock.now() - timedelta(days=700)
    return Sandbox(
        clock.now,
        token="t0ken",
        timezone=SINGAPORE.key,
        inverters=[Inverter(name, capacity_kw=12.5) for name in NAMES],
        devices=[Device(f"SG-{number}", 40.0 + number, long_ago, long_ago) for number in range(30)],
    )


def transport(sandbox: Sandbox) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.query.decode()
        told = sandbox.handle(request.method, request.url.path, query, dict(request.headers), request.content)
        return httpx.Response(told.status, headers=list(told.headers), content=told.body)

    return httpx.MockTransport(answer)


def uplink(name: str, sandbox: Sandbox, clock: FakeClock, token: str = "t0ken") -> Redex | Drec:
    tokens = StaticToken(Secret(env="T", environ={"T": token}))
    if name == "redex":
        http = Http("https://platform.example", transport=transport(sandbox))
        return Redex("redex", http, DIALECTS["grouped-2024"], tokens, clock.now, chance=lambda: 0.0)
    http = Http("https://platform.example/api", transport=transport(sandbox))
    return Drec("drec", http, "Delta", tokens, clock.now)


def by_name(roll: Roll) -> dict[str, Registered]:
    assert roll.trouble is None
    return {one.remote_id: one for one in roll.devices}


def test_redex_tells_by_its_groups_what_is_registered_and_with_which_power(sandbox: Sandbox, clock: FakeClock) -> None:
    found = by_name(uplink("redex", sandbox, clock).look_up(["STR0", "STR59", "nobody"]))
    assert found["STR0"] == Registered("STR0", True, 12.5)
    assert found["STR59"].capacity_kw == 12.5
    assert found["nobody"].known is False and "Register the inverter" in found["nobody"].text


def test_an_inverter_of_a_declined_group_is_barred(sandbox: Sandbox, clock: FakeClock) -> None:
    sandbox.redex.declined.add("STR3")
    found = by_name(uplink("redex", sandbox, clock).look_up(["STR3", "STR4"]))
    assert found["STR3"].barred and not found["STR4"].barred


def test_without_lists_of_groups_an_inverter_is_asked_for_by_its_days(sandbox: Sandbox, clock: FakeClock) -> None:
    sandbox.redex.lists = False
    found = by_name(uplink("redex", sandbox, clock).look_up(["STR0", "nobody"]))
    assert found["STR0"].known and found["STR0"].capacity_kw is None
    assert found["nobody"].known is False


def test_drec_tells_by_its_list(sandbox: Sandbox, clock: FakeClock) -> None:
    found = by_name(uplink("drec", sandbox, clock).look_up(["sg-3", "SG-29", "nobody"]))
    assert found["sg-3"].known and found["sg-3"].capacity_kw == 43.0
    assert found["SG-29"].capacity_kw == 69.0
    assert found["nobody"].known is False and "nobody" in found["nobody"].text


def test_a_device_whose_reads_are_fixed_to_another_type_is_barred(sandbox: Sandbox, clock: FakeClock) -> None:
    sandbox.drec.states["sg-3"].read_type = "Aggregate"
    found = by_name(uplink("drec", sandbox, clock).look_up(["SG-3"]))
    assert found["SG-3"].barred and "Aggregate" in found["SG-3"].text


@pytest.mark.parametrize("name", ["redex", "drec"])
def test_nothing_of_a_day_is_sent(name: str, sandbox: Sandbox, clock: FakeClock) -> None:
    uplink(name, sandbox, clock).look_up(["STR0", "STR59"] if name == "redex" else ["SG-0", "SG-29"])
    assert sandbox.requests and not sandbox.violations
    sends = {"redex.send", "redex.batch", "redex.legacy", "drec.send"}
    assert not sends & sandbox.requests.keys()


@pytest.mark.parametrize("name", ["redex", "drec"])
@pytest.mark.parametrize(
    ("arrange", "token", "bad"),
    [
        (lambda _: None, "an0ther", True),
        (lambda sandbox: setattr(sandbox, "faults", {"503": 1.0}), "t0ken", False),
        (lambda sandbox: setattr(sandbox, "faults", {"html": 1.0}), "t0ken", False),
        (lambda sandbox: setattr(sandbox, "faults", {"cut-json": 1.0}), "t0ken", False),
    ],
    ids=["token", "503", "portal", "half an answer"],
)
def test_what_keeps_it_from_being_asked_is_told(
    name: str, arrange: Callable[[Sandbox], object], token: str, bad: bool, sandbox: Sandbox, clock: FakeClock
) -> None:
    arrange(sandbox)
    roll = uplink(name, sandbox, clock, token).look_up(["STR0"])
    assert roll.trouble is not None and roll.trouble.token is bad
    assert roll.trouble.text
    assert not any(one.known for one in roll.devices)
    assert token not in str(roll)


@pytest.mark.parametrize(("name", "kind"), [("redex", "redex.applications"), ("drec", "drec.mine")])
def test_an_account_that_may_not_list_devices_is_no_trouble(
    name: str, kind: str, sandbox: Sandbox, clock: FakeClock
) -> None:
    sandbox.fault("403", count=2, on=kind)
    found = by_name(uplink(name, sandbox, clock).look_up(["STR0"]))
    assert sandbox.faulted["403"] == 1
    assert found["STR0"].capacity_kw is None
    assert found["STR0"].known is (True if name == "redex" else None)

"""A new site, commissioned: simulated meters over real sockets, stand-in platforms on loopback, one fault at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from heliograph import app, control, library
from heliograph.cli.commission import _configuration, _means
from heliograph.core.commissioning import Check, another_kind, identity, registers
from heliograph.core.delivery import DayRow, Missing, ReadBack, Stored, Unknown, Verdict
from heliograph.core.errors import BusRefused
from heliograph.daemon import Daemon
from heliograph.rehearsal.line import Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.sandbox_drec import Device
from heliograph.rehearsal.sandbox_redex_rules import Inverter
from heliograph.rehearsal.server import Server
from heliograph.rehearsal.sun import Sky
from heliograph.work.commission import Found, as_look, commission, rehearse, sight
from heliograph.work.poll import PolledBus, read_once
from tests.bus.paced import Copper
from tests.fakes import FakeClock, FakeUplink, a_meter, in_memory

SINGAPORE = ZoneInfo("Asia/Singapore")
NOON = datetime(2026, 3, 14, 4, 30, tzinfo=UTC)
NIGHT = datetime(2026, 3, 14, 15, 0, tzinfo=UTC)
SERIAL = 23_451_234
REDEX, DREC = "STR1000000033862740", "SG0042-roof"

CONFIG = """
[site]
id = "sg-0042"
timezone = "{zone}"
data_dir = "{folder}/data"
{position}
[[bus]]
id = "rs485"
url = "{bus}"
timeout = "{timeout}"
pause = "1ms"
[[meter]]
id = "roof"
bus = "rs485"
map = "{map}"
rated_kw = {kw}
production = "{production}"
serial = "{serial}"
report_as = {{ redex = "{redex}", drec = "{drec}" }}
[uplink.redex]
base_url = "{platform}"
token = {{ file = "{folder}/token" }}
{dialect}
[uplink.drec]
base_url = "{platform}/api"
token = {{ file = "{folder}/token" }}
{read_type}
"""
POSITION = "latitude = 1.35\nlongitude = 103.82"


@dataclass
class Person:
    """Who sits before the screen: `says` by the end of a question's key; None is nobody."""

    says: dict[str, str] = field(default_factory=lambda: {"display": "yes", "sun": "yes", "time": "yes"})
    asked: list[str] = field(default_factory=list)
    told: list[Check] = field(default_factory=list)

    def tell(self, check: Check) -> None:
        self.told.append(check)

    def ask(self, key: str, question: str) -> str | None:
        self.asked.append(question)
        return self.says.get(key.rpartition(".")[2])

    def busy(self, what: str) -> AbstractContextManager[object]:
        assert what
        return nullcontext()


@dataclass
class Stage:
    """A site whose parts are real, but for the sun, the meter and the platforms."""

    folder: Path
    clock: FakeClock
    stack: ExitStack
    person: Person = field(default_factory=Person)
    sandbox: Sandbox = field(init=False)
    device: SimulatedMeter = field(init=False)
    meter: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    token: str = ""
    kind: str = ""
    """Of the device, where it is another one than the configuration says."""

    def __post_init__(self) -> None:
        long_ago = self.clock.now() - timedelta(days=700)
        self.sandbox = self.stack.enter_context(
            Sandbox(
                self.clock.now,
                inverters=[Inverter(REDEX, capacity_kw=50.0)],
                devices=[Device(DREC, 50.0, long_ago, long_ago)],
            )
        )

    def site(self) -> app.App:
        given: dict[str, Any] = {
            "map": "eastron-sdm630",
            "kw": 50,
            "timeout": "2s",
            "zone": "Asia/Singapore",
            "position": POSITION,
            "serial": SERIAL,
        }
        given |= {
            "redex": REDEX,
            "drec": DREC,
            "dialect": "",
            "production": "energy_export",
            "read_type": "",
            "folder": self.folder,
            "platform": self.sandbox.url,
        } | self.config
        sim: dict[str, Any] = {"rated_kw": 50.0, "serial": SERIAL, "start_export_wh": 41_230_700, "unit": 1}
        sim |= {"sky": Sky(SINGAPORE, seed=5), "started": self.clock.now() - timedelta(hours=1)} | self.meter
        kind = library.load(self.kind or given["map"], local=None).map
        self.device = device = SimulatedMeter(kind, clock=self.clock.now, **sim)
        server = self.stack.enter_context(Server({device.unit: device}))
        (self.folder / "token").write_text(self.token or self.sandbox.token)
        (self.folder / "data").mkdir(exist_ok=True)
        path = self.folder / "config.toml"
        path.write_text(CONFIG.format(**{"bus": server.url} | given))
        return app.load(path, self.clock)

    def commission(self, watch: timedelta = timedelta(seconds=30)) -> Found:
        site = self.site()
        with _means(site, site.meters) as means:
            configuration = _configuration(site, site.meters)
            return commission(site.meters, configuration, means, site.clock, site.rules, self.person, watch)

    def named(self) -> dict[str, str]:
        """What was not in order: step -> cause; a second one of a step must have the same."""
        found: dict[str, str] = {}
        for one in self.commission().checks:
            if one.result != "green":
                assert found.setdefault(one.step, one.cause) == one.cause
                assert one.todo.strip(), one
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    with in_memory() as folder, ExitStack() as stack:
        yield Stage(folder, FakeClock(NOON), stack)


def test_a_site_that_is_in_order_ends_green(stage: Stage) -> None:
    found = stage.commission()
    assert [check for check in found.checks if check.result != "green"] == []
    steps = [check.step for check in found.checks]
    for step in ("identity", "counters", "display", "phases", "transformers", "direction", "plausible", "clock"):
        assert steps.count(step) == 1
    assert steps.count("platform") == steps.count("token") == steps.count("rehearsal") == 2
    assert stage.person.told == found.checks


def test_nothing_that_belongs_to_a_day_reaches_the_real_platform(stage: Stage) -> None:
    stage.commission()
    assert stage.sandbox.requests
    assert not [kind for kind in stage.sandbox.requests if kind.endswith((".send", ".batch", ".legacy"))]
    assert stage.sandbox.stored_wh("redex", REDEX) == stage.sandbox.stored_wh("drec", DREC) == {}
    assert not stage.sandbox.violations


def untrusted_and_alone(stage: Stage) -> None:
    stage.clock.synchronised = False
    stage.sandbox.away = True


Arrange = Callable[[Stage], object]


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        pytest.param(
            lambda stage: stage.meter.update(cts=(1, -2, 3)),
            {"transformers": "ct-turned", "direction": "transformers"},
            id="one transformer turned",
        ),
        pytest.param(
            lambda stage: stage.meter.update(cts=(-1, 2, -3)),
            {"transformers": "ct-turned", "direction": "transformers"},
            id="two transformers turned",
        ),
        pytest.param(
            lambda stage: stage.meter.update(cts=(-1, -2, -3)), {"direction": "all-turned"}, id="all three turned"
        ),
        pytest.param(
            lambda stage: stage.meter.update(cts=(2, 1, 3)),
            {"transformers": "ct-exchanged", "direction": "transformers"},
            id="two exchanged",
        ),
        pytest.param(
            lambda stage: stage.meter.update(cts=(2, 3, 1)),
            {"transformers": "ct-shifted", "direction": "transformers"},
            id="all one further",
        ),
        pytest.param(
            lambda stage: stage.meter.update(rated_kw=50 / 40),
            {"plausible": "ct-ratio"},
            id="ratio forgotten",
        ),
        pytest.param(lambda stage: stage.meter.update(rated_kw=250), {"plausible": "above-rated"}, id="ratio too high"),
        pytest.param(lambda stage: stage.meter.update(serial=777), {"identity": "wrong-device"}, id="another meter"),
        pytest.param(
            lambda stage: setattr(stage.clock, "at", NIGHT),
            {"transformers": "night", "direction": "night", "plausible": "night"},
            id="night",
        ),
        pytest.param(lambda stage: setattr(stage, "token", "expired"), {"token": "token"}, id="token"),
        pytest.param(
            lambda stage: stage.config.update(redex="STR-unheard-of"), {"registered": "not-registered"}, id="redex name"
        ),
        pytest.param(
            lambda stage: stage.config.update(drec="SG-unheard-of"), {"registered": "not-registered"}, id="drec name"
        ),
        pytest.param(lambda stage: stage.config.update(kw=60), {"registered": "capacity"}, id="capacity"),
        pytest.param(
            lambda stage: setattr(stage.sandbox, "away", True),
            {"platform": "platform-away", "token": "platform-away"},
            id="platform away",
        ),
        pytest.param(
            lambda stage: setattr(stage.person, "says", {"display": "no"}), {"display": "display"}, id="display"
        ),
        pytest.param(
            lambda stage: setattr(stage.person, "says", {}), {"display": "not-confirmed"}, id="nobody at the display"
        ),
        pytest.param(lambda stage: stage.config.update(zone="Europe/Berlin"), {"zone": "zone"}, id="zone"),
        pytest.param(lambda stage: stage.sandbox.redex.declined.add(REDEX), {"registered": "barred"}, id="declined"),
        pytest.param(
            lambda stage: setattr(stage.clock, "synchronised", False),
            {"clock": "clock-alone"},
            id="nobody keeps the clock",
        ),
        pytest.param(
            untrusted_and_alone,
            {"clock": "clock-untrusted", "platform": "platform-away", "token": "platform-away"},
            id="clock untrusted, and no platform to ask",
        ),
        pytest.param(
            lambda stage: setattr(stage.sandbox, "now", lambda: stage.clock.at + timedelta(minutes=5)),
            {"clock": "clock-wrong"},
            id="clock behind the platform's",
        ),
        pytest.param(
            lambda stage: stage.config.update(dialect='accumulated_field = "Total"'),
            {"rehearsal": "rehearsal"},
            id="name of a field",
        ),
        pytest.param(
            lambda stage: stage.config.update(dialect="decimals = 4"),
            {"rehearsal": "rehearsal"},
            id="decimals",
        ),
    ],
)
def test_a_planted_fault_is_named_and_no_other(stage: Stage, arrange: Arrange, expected: dict[str, str]) -> None:
    arrange(stage)
    assert stage.named() == expected


def test_another_kind_of_meter_is_told_by_what_it_says_of_itself(stage: Stage) -> None:
    stage.kind = "eastron-sdm120"
    (identity,) = [check for check in stage.commission().checks if check.step == "identity"]
    assert (identity.result, identity.cause) == ("wrong", "wrong-device")
    assert "is not a eastron-sdm630" in identity.says and "it is eastron-sdm120" in identity.says
    assert str(SERIAL) in identity.says


@pytest.mark.parametrize(
    ("device", "map"),
    [
        ("eastron-sdm120", "eastron-sdm230"),
        ("eastron-sdm120", "eastron-sdm220"),
        ("eastron-sdm630", "eastron-sdm54"),
        ("eastron-sdm630", "eastron-x96-1a"),
        ("eastron-sdm630", "chint-dtsu666"),
    ],
)
def test_a_map_without_marks_is_wrong_for_a_device_that_names_another(device: str, map: str) -> None:
    identity, _ = looked_at(device, map)
    assert (identity.result, identity.cause) == ("wrong", "wrong-map")
    assert identity.todo == f'Compare with the label, then write below [[meter]] roof: map = "{device}"'
    assert f"not {map}" in identity.says and "0xFC02" in identity.says


SIMULATED = [name for name in library.names(local=None) if library.load(name, local=None).map.sunspec is None]


@pytest.mark.parametrize("name", SIMULATED)
def test_a_healthy_device_of_every_map_is_what_its_map_says(name: str) -> None:
    identity, registers = looked_at(name, name)
    assert identity.result == "green" or identity.cause == "serial-not-pinned", identity
    assert registers is not None and registers.result == "green", registers


def test_registers_that_the_device_refuses_are_named() -> None:
    _, registers = looked_at("eastron-sdm120", "eastron-sdm230")
    assert registers is not None and registers.cause == "refused"
    assert "refuses 8 of the 35 registers of eastron-sdm230: energy_total_resettable" in registers.says


def looked_at(device: str, map: str, **how: Any) -> tuple[Check, Check | None]:
    """What is said of a simulated device that is read with a map, over a simulated line in virtual time."""
    kind = replace(library.load(device, local=None).map, **how)
    wanted = library.load(map, local=None).map
    production = wanted.production or "energy_export"
    meter = replace(a_meter(unit=kind.unit), map=wanted, production=production, timing=wanted.timing)
    simulated = SimulatedMeter(
        kind, clock=lambda: NOON, rated_kw=50, serial=SERIAL, unit=kind.unit, sky=Sky(SINGAPORE, seed=5)
    )
    copper = Copper(Wire({kind.unit: simulated}))
    line = PolledBus("rs485", "serial:///dev/paced?baudrate=9600", [meter], copper.open)
    maps = [library.load(name, local=None).map for name in library.names(local=None)]
    told = sight(line.bus(), meter, maps)
    try:
        look = as_look(read_once(line, meter, FakeClock(NOON), everything=True))
    except BusRefused:
        another = another_kind(meter, told)
        assert another is not None
        return another, None
    return identity(meter, look, told), None if look.stranger else registers(meter, look)


def test_what_is_true_of_every_device_of_a_kind_is_told_and_keeps_nothing_from_being_green(stage: Stage) -> None:
    stage.config.update(map="goodwe-et", production="energy_production")
    stage.meter.update(unit=247)
    found = stage.commission(timedelta(minutes=15)).checks
    assert [check.says for check in found if check.step == "to know"] != []
    assert {check.cause for check in found if check.result != "green"} <= {"map-unverified"}


@pytest.mark.parametrize(
    ("redex", "drec"),
    [
        ('dialect = "legacy"', ""),
        ('value_encoding = "number"', ""),
        ("", 'read_type = "Aggregate"'),
    ],
)
def test_every_way_to_set_up_an_uplink_is_rehearsed_to_the_wh(stage: Stage, redex: str, drec: str) -> None:
    stage.config.update(dialect=redex, read_type=drec)
    found = [check for check in stage.commission().checks if check.step == "rehearsal"]
    assert [check.result for check in found] == ["green", "green"], found


class Polling(FakeClock):
    """While somebody waits, the gateway goes on with its rounds."""

    round: Callable[[], object] = staticmethod(lambda: None)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.round()


@contextmanager
def gateway(stage: Stage) -> Iterator[tuple[app.App, Daemon]]:
    """The site with its gateway running, which polls when it is told to."""
    site = stage.site()
    with site.writer() as store:
        running = Daemon(site, store)
        answering = control.listen(site.socket, running.answer, running.rest)
        assert answering is not None
        try:
            yield site, running
        finally:
            answering.close()
            for line in running.lines:
                line.close()


@pytest.mark.parametrize("everything", [True, False], ids=["first look", "later look"])
def test_a_look_through_the_gateway_is_of_the_moment_it_names_whenever_was_polled_last(
    stage: Stage, everything: bool
) -> None:
    with gateway(stage) as (site, running), _means(site, site.meters) as means:
        for line in running.lines:
            running._poll(line)
        stage.clock.sleep(7)
        look = means.look(site.meters[0], everything)
        assert datetime.fromisoformat(look["at"]) == stage.clock.now()
        assert tuple(look["words"]["energy_export"]) == stage.device.words("input", 0x4A, 2, stage.clock.now())
        assert set(look) >= {"values", "absent", "words", "serial", "doubts"}


def test_what_fails_on_the_line_is_a_case_for_the_doctor(stage: Stage) -> None:
    stage.config.update(timeout="0.1s")
    stage.meter.update(unit=9)
    (line,) = [check for check in stage.commission().checks if check.step == "line"]
    assert (line.result, line.todo) == ("wrong", "heliograph doctor roof finds out why.")


def test_words_in_another_order_are_told_and_no_serial_number_of_them_is_proposed() -> None:
    for device in ("eastron-sdm630", "eastron-sdm230"):
        identity, _ = looked_at(device, device, order="CDAB")
        assert (identity.result, identity.cause) == ("wrong", "wrong-order"), identity
        assert "heliograph doctor roof" in identity.todo and "serial =" not in identity.todo


def test_while_the_sun_is_up_nobody_is_sent_away_until_it_is_day(stage: Stage) -> None:
    stage.meter.update(rated_kw=0.01)
    idle = [one for one in stage.commission().checks if one.cause == "no-power"]
    assert idle
    for one in idle:
        assert "by day" not in one.todo and "Look at the inverters" in one.todo


def test_through_the_gateway_too_a_device_is_asked_what_it_is(stage: Stage) -> None:
    stage.kind = "eastron-sdm120"
    stage.config.update(map="eastron-sdm230")
    with gateway(stage) as (site, _), _means(site, site.meters) as means:
        assert means.box.running
        found = commission(site.meters, (), means, stage.clock, site.rules, stage.person, timedelta(seconds=30))
    assert [one.todo for one in found.checks if one.cause == "wrong-map"] == [
        'Compare with the label, then write below [[meter]] roof: map = "eastron-sdm120"'
    ]


@pytest.mark.parametrize(
    ("cts", "expected"),
    [
        (None, {}),
        ((-1, -2, -3), {"direction": "all-turned"}),
        ((1, 2, -3), {"transformers": "ct-turned", "direction": "transformers"}),
    ],
    ids=["in order", "all three turned", "one turned"],
)
def test_the_running_gateway_is_asked_where_line_and_token_are_its_own(
    stage: Stage, cts: tuple[int, ...] | None, expected: dict[str, str]
) -> None:
    stage.clock = clock = Polling(NOON)
    stage.meter.update(cts=cts)
    with gateway(stage) as (site, running):

        def round() -> None:
            for line in running.lines:
                running._poll(line)

        clock.round = round
        clock.round()
        before = sum(stage.sandbox.requests.values())
        with _means(site, site.meters) as means:
            assert means.box.running
            found = commission(site.meters, (), means, clock, site.rules, stage.person, timedelta(seconds=30))
    assert {one.step: one.cause for one in found.checks if one.result != "green"} == expected
    assert sum(stage.sandbox.requests.values()) > before
    assert found.looks["roof"].serial == str(SERIAL) and found.looks["roof"].words["energy_export"]


class Careless(FakeUplink):
    """Loses the last digits of what it is given, or a whole day, or the running total."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def ask(self, rows: Sequence[DayRow]) -> Mapping[int, ReadBack]:
        found = dict(super().ask(rows))
        for row in rows:
            match self.fault:
                case "rounds":
                    found[row.id] = Stored(row.period_wh // 10 * 10, None)
                case "total":
                    found[row.id] = Stored(None, row.total_wh + 1)
                case "loses":
                    found[row.id] = Missing()
                case "silent":
                    found[row.id] = Unknown(Verdict("unclear", "timeout", "no answer"))
        return found


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("", ""),
        ("rounds", "kWh were delivered for"),
        ("total", "as running total"),
        ("loses", "is not there afterwards"),
        ("silent", "could not be read back: no answer"),
    ],
)
def test_a_rehearsal_compares_what_comes_back_to_the_wh(fault: str, told: str) -> None:
    meter = a_meter()
    found = rehearse(Careless(fault), meter, meter.reports[0], FakeClock(NOON), SINGAPORE)
    assert (told in found) if told else found == ""


@pytest.mark.parametrize("what", ["refused", "token", "busy", "dropped"])
def test_a_rehearsal_that_is_not_taken_is_told(what: str) -> None:
    meter, uplink = a_meter(), FakeUplink()
    uplink.script = [what]
    assert rehearse(uplink, meter, meter.reports[0], FakeClock(NOON), SINGAPORE)

"""Each planted fault is named, and none is named that is not there: the real bus on a simulated line."""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache

import pytest

from heliograph import library
from heliograph.core.diagnosis import Finding, Observations, diagnose
from heliograph.core.line import parse
from heliograph.core.registers import MeterMap, Order
from heliograph.ports import FRAMES, Frame
from heliograph.rehearsal.faults import Faults
from heliograph.rehearsal.frames import Device, rtu
from heliograph.rehearsal.line import OtherMaster, Parity, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.work.diagnose import Experiment, Machine, Subject, _Visit, budget, observe
from tests.bus.paced import Copper

NOON = datetime(2026, 3, 14, 11, tzinfo=UTC)
SEED = int(os.environ.get("HELIOGRAPH_SEED", "20261126"))
RUNS = int(os.environ.get("HELIOGRAPH_DIAGNOSES", "12"))
"""Seeds of each fault; 200 or more by hand."""
HEALTHY = int(os.environ.get("HELIOGRAPH_HEALTHY", "200"))

MAPS = (
    "eastron-sdm630", "eastron-sdm120", "eastron-sdm230", "eastron-sdm72dm-v2", "chint-dtsu666", "schneider-iem3155",
    "abb-b23-b24", "carlo-gavazzi-em340", "growatt-mic-mid-max-tlx", "sofar-g3", "solis-string",
)  # fmt: skip
OTHERS: dict[str, tuple[str, ...]] = {
    "eastron-sdm630": ("chint-dtsu666", "eastron-sdm120", "schneider-iem3155", "abb-b23-b24"),
    "eastron-sdm120": ("eastron-sdm630", "chint-dtsu666", "abb-b23-b24"),
    "chint-dtsu666": ("eastron-sdm630", "schneider-iem3155", "eastron-sdm120"),
    "schneider-iem3155": ("eastron-sdm630", "chint-dtsu666"),
    "abb-b23-b24": ("eastron-sdm630", "chint-dtsu666"),
}
"""Device, and maps that somebody takes for its."""


PLUGGED = Machine(there=lambda _: True, may=lambda _: True)
"""A port that is only simulated is not in /dev."""


def map_of(name: str) -> MeterMap:
    return library.load(name, local=None).map


@cache
def all_maps() -> tuple[MeterMap, ...]:
    return tuple(map_of(name) for name in library.names(None))


def faults(kind: str, share: float) -> Faults:
    return replace(Faults(), **{kind: share})  # type: ignore[arg-type]  # the names are those of probabilities


@dataclass
class Case:
    """A line with one device, and what the site believes about it; healthy until a fault is planted."""

    dice: random.Random
    believed: MeterMap
    real: MeterMap
    unit: int
    baud: int
    parity: Parity
    turnaround: float
    faults: Faults = field(default_factory=Faults)
    believed_unit: int = 0
    believed_baud: int = 0
    believed_parity: Parity = "N"
    order: Order | None = None
    echo: bool = False
    dead: bool = False
    off: bool = False
    """This device alone."""
    forgiving: bool = False
    other: OtherMaster | None = None
    neighbours: tuple[int, ...] = ()
    """Other meters of the site on this line."""

    @classmethod
    def healthy(cls, dice: random.Random) -> Case:
        map = map_of(dice.choice(MAPS))
        noise = dice.choice([0.0, 0.0, dice.uniform(0, 0.0095)])
        kind = dice.choice(["crc", "noise", "truncated", "silence"])
        unit, baud = dice.choice([1, 1, 2, 7, 33, 101, 247]), dice.choice([2400, 9600, 9600, 19200, 38400, 115200])
        parity: Parity = dice.choice(["N", "N", "E"])
        thinks = dice.uniform(0.002, 0.1)
        others = tuple(other for other in dice.sample(range(1, 120), dice.choice([0, 0, 1, 4])) if other != unit)
        case = cls(dice, map, map, unit, baud, parity, thinks, faults(kind, noise), unit, baud, parity)
        return replace(case, neighbours=others)

    @property
    def url(self) -> str:
        return f"serial:///dev/ttyS9?baudrate={self.believed_baud}&parity={self.believed_parity}&stopbits=1"

    def wire(self) -> Wire:
        real = self.real if self.order is None else replace(self.real, order=self.order)
        devices: dict[int, Device] = {
            unit: SimulatedMeter(
                real,
                clock=lambda: NOON,
                unit=unit,
                start_export_wh=self.dice.randrange(1000, 90_000_000),
                start_import_wh=self.dice.randrange(1000, 9_000_000),
                seed=self.dice.randrange(1 << 30),
            )
            for unit in (() if self.dead else (*self.neighbours, *(() if self.off else (self.unit,))))
        }
        return Wire(
            devices,
            baud=self.baud,
            parity=self.parity,
            turnaround=self.turnaround,
            echo=self.echo,
            forgiving=self.forgiving,
            other=self.other,
            faults=self.faults,
            seed=self.dice.randrange(1 << 30),
        )

    def subject(self) -> Subject:
        return Subject(
            self.url,
            self.believed_unit,
            self.believed.timing,
            self.believed,
            50.0,
            self.believed.production or "energy_export",
            neighbours=self.neighbours,
        )

    def observe(self, skip: Iterable[Experiment] = ()) -> Observations:
        return observe(self.subject(), Copper(self.wire()).open, machine=PLUGGED, maps=all_maps, skip=skip)

    def took(self) -> float:
        """Seconds of the line, on which time passes as on a real one."""
        copper = Copper(self.wire())
        begun = copper.now
        observe(self.subject(), copper.open, machine=PLUGGED, maps=all_maps)
        return copper.now - begun

    def findings(self, skip: Iterable[Experiment] = ()) -> tuple[Finding, ...]:
        return diagnose(self.observe(skip))


# Each plants one fault in a healthy case --------------------------------------------------------------------------


def wrong_baud(case: Case) -> None:
    case.believed_baud = case.dice.choice([baud for baud in (2400, 9600, 19200, 38400) if baud != case.baud])


def wrong_parity(case: Case) -> None:
    pairs: list[tuple[Parity, Parity]] = [("N", "E"), ("E", "N"), ("O", "E"), ("O", "N"), ("E", "O")]
    case.parity, case.believed_parity = case.dice.choice(pairs)
    case.forgiving = {case.parity, case.believed_parity} != {"E", "O"} and case.dice.random() < 0.5


def silence(case: Case) -> None:
    case.dead = True


def silent_unit(case: Case) -> None:
    case.off = True
    case.neighbours = case.neighbours or (case.unit % 247 + 1,)


def echo(case: Case) -> None:
    case.echo = True


def wrong_unit(case: Case) -> None:
    case.believed_unit = case.dice.choice(
        [unit for unit in (1, 2, 3, 16, 200) if unit not in (case.unit, *case.neighbours)]
    )


def wrong_map(case: Case) -> None:
    name = case.dice.choice(list(OTHERS))
    case.real, case.believed = map_of(name), map_of(case.dice.choice(OTHERS[name]))


def wrong_order(case: Case) -> None:
    case.real = case.believed = map_of(case.dice.choice(MAPS))
    case.order = case.dice.choice([order for order in ("CDAB", "BADC", "DCBA") if order != case.real.order])


def slow(case: Case) -> None:
    timeout = case.believed.timing.timeout
    case.turnaround = timeout * case.dice.uniform(1.1, 2.5)


def another_master(case: Case) -> None:
    ask = bytes((4, 0, case.dice.randrange(200), 0, case.dice.randrange(2, 40)))
    every = case.dice.uniform(0.7, 2.5)
    case.other = OtherMaster(rtu(case.dice.choice([case.unit, 5, 77]), ask), every, 1000 + case.dice.uniform(0, every))


def noise(case: Case) -> None:
    case.faults = faults(case.dice.choice(["crc", "noise", "truncated"]), case.dice.uniform(0.15, 0.4))


PLANTED: dict[str, Callable[[Case], None]] = {
    "ok": lambda _: None,
    "baud": wrong_baud,
    "parity": wrong_parity,
    "silence": silence,
    "silent-unit": silent_unit,
    "echo": echo,
    "wrong-unit": wrong_unit,
    "wrong-map": wrong_map,
    "wrong-order": wrong_order,
    "slow": slow,
    "another-master": another_master,
    "noise": noise,
}


def case_of(fault: str, number: int) -> Case:
    case = Case.healthy(random.Random(f"{SEED}/{fault}/{number}"))
    PLANTED[fault](case)
    return case


def named(fault: str, runs: int, skip: Iterable[Experiment] = ()) -> Counter[str]:
    return Counter(case_of(fault, number).findings(skip)[0].code for number in range(runs))


@pytest.mark.parametrize("fault", [fault for fault in PLANTED if fault != "ok"])
def test_a_planted_fault_is_named_and_no_other(fault: str) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    assert named(fault, RUNS) == {fault: RUNS}


PAIRS = (
    ("echo", "wrong-unit"),
    ("echo", "slow"),
    ("echo", "wrong-order"),
    ("baud", "wrong-unit"),
    ("noise", "wrong-order"),
    ("slow", "wrong-order"),
)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{one}+{other}" for one, other in PAIRS])
def test_of_two_faults_the_one_to_put_right_first_is_the_sentence(first: str, second: str) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    for number in range(max(3, RUNS // 4)):
        case = Case.healthy(random.Random(f"{SEED}/{first}+{second}/{number}"))
        case.neighbours = ()
        if (first, second) == ("baud", "wrong-unit"):
            case.unit = 1  # with other settings only the likely units are asked
        PLANTED[second](case)
        PLANTED[first](case)
        codes = [one.code for one in case.findings()]
        assert codes[0] == first, codes
        assert second in codes, codes


@pytest.mark.parametrize("fault", list(PLANTED))
def test_the_time_that_is_told_beforehand_is_kept(fault: str) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    for number in range(max(4, RUNS // 3)):
        case = case_of(fault, number)
        likely, most = budget(case.subject())
        took = case.took()
        assert took <= most
        if fault == "ok" and not any(case.faults.chances().values()):
            assert likely / 2.5 <= took <= likely * 1.5


def visit(url: str) -> _Visit:
    return _Visit(Subject(url, 1), Copper(Wire({})).open, tuple, lambda _, __: None, frozenset())


@pytest.mark.parametrize("how", ["", "&echo=1"], ids=["unannounced", "announced"])
def test_a_question_of_ours_that_comes_back_is_no_other_master(how: str) -> None:
    """Also late, and when so much has been said since that it is not remembered as ours."""
    url = f"serial:///dev/ttyS9?baudrate=9600{how}"
    line = parse(url)
    ours = [rtu(1, bytes((3, 0, number, 0, 2))) for number in range(40)]
    theirs = rtu(9, b"\x04\x00\x34\x00\x02")
    said: deque[Frame] = deque(maxlen=FRAMES)
    for number, one in enumerate(ours):
        said += [Frame(number, True, one), Frame(number + 0.1, False, one), Frame(number + 0.2, False, b"\x01")]
    said += [Frame(40.0, True, ours[-1]), Frame(40.1, False, ours[-1])]
    assert not said[0].sent and said[0].data in ours  # its question is gone
    looking = visit(url)
    looking.overheard(line, said)
    looking.overheard(line, [Frame(50.0, False, ours[-1])])  # later, when nothing has been sent again
    if how:
        looking.overheard(line, [Frame(51.0, False, ours[-3])])
    assert looking.foreign == []
    looking.overheard(line, [Frame(52.0, False, theirs)])
    assert looking.foreign == [theirs]


def matrix(runs: int) -> str:
    """Planted against named, one row a fault. `python -m tests.work.test_diagnose` with HELIOGRAPH_DIAGNOSES=200."""
    names = list(PLANTED)
    rows = [f"{'':15}" + "".join(f"{name[:9]:>10}" for name in names)]
    for fault in names:
        found = named(fault, runs)
        others = {name: count for name, count in found.items() if name not in names}
        rows.append(f"{fault:15}" + "".join(f"{found[name] or '.':>10}" for name in names) + f"  {others or ''}")
    return "\n".join(rows)


@pytest.mark.parametrize("quarter", range(4))
def test_a_healthy_line_is_called_healthy(quarter: int) -> None:
    print(f"HELIOGRAPH_SEED={SEED}")
    for number in range(quarter, HEALTHY, 4):
        found = case_of("ok", number).findings()
        assert found[0].code == "ok", (number, found)


@pytest.mark.parametrize(
    ("fault", "experiment"),
    [
        ("baud", "settings"),
        ("parity", "settings"),
        ("echo", "knock"),
        ("wrong-unit", "units"),
        ("wrong-map", "identity"),
        ("wrong-order", "content"),
        ("noise", "series"),
        ("another-master", "listen"),
    ],
)
def test_the_matrix_notices_when_an_experiment_is_left_out(fault: str, experiment: Experiment) -> None:
    skip: set[Experiment] = {experiment}
    if experiment == "identity":
        skip.add("content")  # refusals tell a wrong map as well
    if experiment == "listen":
        skip |= {"listen again", "series", "content"}
    assert named(fault, 6, skip) != {fault: 6}


if __name__ == "__main__":
    print(f"HELIOGRAPH_SEED={SEED}, {RUNS} of each")
    print(matrix(RUNS))

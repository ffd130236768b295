"""Every recording decodes, by the map as it is today, to what the display showed, and can be polled.

`python -m tests.test_recordings` writes the synthetic ones again: what the simulated meter of a shipped map answers,
taken down as a real one is. Its encoder shares nothing with the decoder, and what its display shows is reckoned here
from its true values. Recordings of real devices are never written by it: heliograph record makes those.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from heliograph import library
from heliograph.core import quantity
from heliograph.core.decode import Absent
from heliograph.core.errors import BusRefused, BusTimeout
from heliograph.core.line import parse as line_of
from heliograph.core.plan import Learned, line_cost, plan
from heliograph.core.recording import (
    ORIGINS,
    Recording,
    Refused,
    compared,
    image,
    masked,
    parse,
    text,
    values,
)
from heliograph.core.registers import Function, MeterMap, Register, Timing
from heliograph.core.site import Meter
from heliograph.ports import BusCounters, Frame
from heliograph.rehearsal.meter import FLOATS, Refusal, Setting, SimulatedMeter
from heliograph.rehearsal.replay import RecordedMeter
from heliograph.rehearsal.sun import Sky
from heliograph.work.discover import discover
from heliograph.work.health import Live
from heliograph.work.poll import PolledBus, Watched, read_meter
from heliograph.work.record import record
from tests.fakes import SINGAPORE, FakeClock

FOLDER = Path(__file__).parent / "recordings"
FILES = sorted(FOLDER.rglob("*.toml"))
NOON = datetime(2026, 3, 3, 5, 12, 3, tzinfo=UTC)
MOST_BYTES = 24_000
SETTINGS: dict[str, Setting] = {"ct_ratio": 40}
"""What the simulated meters are told, so that it shows where it is forgotten."""


def captured(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Which maps were compared with real devices: models and firmware by map, for the table of supported meters."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.toml")):
        one = parse(path.read_text())
        if one.origin == "captured":
            found.setdefault(one.map, []).append(f"{one.model} {one.firmware}")
    return found


def unrecorded(maps: Collection[str], folder: Path = FOLDER) -> list[str]:
    """Shipped maps without any recording."""
    return sorted(set(maps) - {path.parent.name for path in folder.rglob("*.toml")})


# --- the synthetic ones ---------------------------------------------------------------------------------------------


def simulated(map: MeterMap) -> SimulatedMeter:
    return SimulatedMeter(
        map,
        clock=lambda: NOON,
        serial=23_459_871,
        start_export_wh=41_230_718,
        start_import_wh=312_934,
        started=NOON - timedelta(days=2),
        sky=Sky(SINGAPORE, seed=1),
        seed=1,
        rated_kw=8.0,
        settings={name: told for name, told in SETTINGS.items() if map.register(name) or name in map.from_site},
    )


def synthetic(name: str) -> Recording:
    """What the simulated meter of a shipped map answers to everything that its map names."""
    loaded = library.load(name, None)
    meter = simulated(loaded.map)

    def read(function: Function, address: int, count: int) -> tuple[int, ...]:
        words = meter.words(function, address, count)
        if isinstance(words, Refusal):
            raise BusTimeout("silent") if words.code is None else BusRefused("no", code=words.code)
        return words

    cost = line_cost(line_of("serial:///dev/ttyUSB0"), loaded.map.timing)
    pieces, refused, begins = record(read, loaded.map, cost, monotonic=lambda: 0.0)
    made = Recording(
        map=name,
        digest=loaded.digest,
        origin="synthetic",
        unit=loaded.map.unit,
        pieces=tuple(replace(piece, ms=None) for piece in pieces),
        refused=refused,
        rounds=begins,
        line="a simulated meter",
        display=shown(meter),
        factors={name: str(SETTINGS[name]) for name in loaded.map.from_site},
        note="No device was there: made by python -m tests.test_recordings from the map and a simulated day.",
    )
    return masked(loaded.map, replace(made, model="simulated", firmware="none"))


def shown(meter: SimulatedMeter) -> dict[str, str]:
    """The true values as a display with the register's resolution shows them; counters of whole steps are cut."""
    found: dict[str, str] = {}
    for register in meter.map.registers:
        if register.type == "sunssf" or register.quantity.startswith("sunspec "):
            continue
        true = meter.value(register.quantity)
        known = quantity.find(register.quantity)
        hidden = register.quantity in (meter.map.identity.serial, "serial_number", "mac")
        if hidden or not true or known is None:
            continue
        if register.type == "text":
            found[register.quantity] = str(true)[: 2 * (register.words or 1)]
            continue
        number = Fraction(true) / Fraction(quantity.UNITS[register.unit][1])
        digits = math.floor(-math.log10(_step(meter, register, number)) + 1e-9)
        one = Decimal(1).scaleb(-min(digits, 3))
        exact = Decimal(number.numerator) / Decimal(number.denominator)
        cut = known.kind == "counter" and register.type not in FLOATS
        told = exact.quantize(one, ROUND_FLOOR if cut else ROUND_HALF_EVEN)
        found[register.quantity] = f"{told} {register.unit}".strip()
    return found


def _step(meter: SimulatedMeter, register: Register, number: Fraction) -> float:
    """What the last bit of the register is worth, in its own unit."""
    worth = abs(float(register.scale))
    if register.scale_register is not None:
        scale = next(r for r in meter.map.registers if r.address == register.scale_register)
        worth *= 10.0 ** int(str(meter.value(scale.quantity)))
    for name in register.times:
        worth *= float(Fraction(meter.value(name)))
    if register.type in FLOATS:
        bits = 24 if register.type == "float32" else 53
        worth *= 2.0 ** (math.floor(math.log2(abs(float(number)) / worth)) + 2 - bits) if number else 1.0
    return max(worth, float(register.step or 0))


def write(names: Collection[str]) -> None:
    for name in names:
        path = FOLDER / name / "synthetic.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(synthetic(name)))
        sys.stdout.write(f"{path.relative_to(FOLDER)} {path.stat().st_size}\n")


# --- every recording ------------------------------------------------------------------------------------------------


class Replayed:
    """The port `Bus` over a recording, without a line between."""

    numbered = True

    def __init__(self, device: RecordedMeter) -> None:
        self.device = device
        self.counters = BusCounters()

    def read(self, unit: int, function: Function, address: int, count: int, timing: Timing) -> tuple[int, ...]:
        del unit, timing
        words = self.device.words(function, address, count)
        if isinstance(words, Refused):
            if words.code is None:
                raise BusTimeout("it was silent then")
            raise BusRefused(f"{function} 0x{address:04X}+{count} was refused then", code=words.code)
        return words

    def hear(self, seconds: float) -> tuple[Frame, ...]:
        del seconds
        return ()

    def close(self) -> None:
        pass


def polled(recording: Recording, map: MeterMap, production: str) -> tuple[Watched, Live, int | None]:
    """One round of the gateway over it: what it learned, every value, and the counter in Wh."""
    device = RecordedMeter(recording, map, clock=lambda: NOON)
    meter = Meter(
        "m", "b", recording.unit, map, recording.digest, production, 50.0, Timing(), timedelta(seconds=10),
        timedelta(seconds=60), factors=tuple((name, float(told)) for name, told in recording.factors.items()),
    )  # fmt: skip
    line = PolledBus("b", "tcp://127.0.0.1:1", [meter], lambda: Replayed(device))
    one = Watched(meter, Learned(), ())
    one.blocks = line.plan(meter, one.learned)
    live = Live()
    reading = read_meter(line, one, FakeClock(NOON), live)
    assert reading.doubt == ""
    return one, live, reading.index_wh


def as_found(recording: Recording, map: MeterMap) -> MeterMap:
    """The map that a gateway polls with: a SunSpec template becomes a site file, by a look at the recorded device."""
    if map.sunspec is None:
        return map
    bus = Replayed(RecordedMeter(recording, map, clock=lambda: NOON))
    cost = line_cost(line_of("tcp://127.0.0.1:502"), map.timing)
    found = discover(bus, recording.unit, [map], name="site", today=NOON.date(), cost=cost, now=lambda: 0.0)
    return found.map


def faults(recording: Recording, map: MeterMap) -> list[str]:
    """What is wrong with a recording: each is a sentence."""
    found = [
        f"{one.quantity} shows {one.shown}, decodes to {one.decoded!r}"
        for one in compared(map, recording)
        if not one.agrees
    ]
    production = map.production or ""
    if production and production not in recording.display:
        found.append(f"what the display showed for {production} is not in it")
    for name in (map.identity.serial, "serial_number"):
        seen = values(map, recording).get(name or "", Absent(""))
        if not isinstance(seen, Absent) and seen != 0 and not _is_masked(str(seen)):
            found.append(f"{name} is not masked")
    if not production:
        return found  # a map that only others build on
    try:
        _, live, index = polled(recording, as_found(recording, map), production)
    except (BusRefused, BusTimeout) as exc:
        return [*found, f"what is polled is not in it: {exc}"]
    register = map.register(production)
    if register is not None and production in recording.display:
        number, _, unit = recording.display[production].partition(" ")
        told = int(Decimal(number) * quantity.UNITS[unit][1])
        if index is None or abs(index - told) > max(1, abs(told) // 1000):
            found.append(f"the gateway reads {index} Wh, the display shows {told} Wh")
    for one in map.registers:
        if one.poll and one.quantity in recording.display and one.quantity not in live.values["m"]:
            found.append(f"the gateway reads no {one.quantity}")
    return found


def _is_masked(seen: str) -> bool:
    digits = "".join(one for one in seen if one.isdecimal())
    return ("1234567890" * 3).startswith(digits) and set("".join(one for one in seen if one.isalpha())) <= {"X"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recording_is_what_the_map_says_and_the_display_showed(path: Path) -> None:
    recording = parse(path.read_text())
    assert recording.map == path.parent.name
    assert recording.origin in ORIGINS
    assert (recording.origin == "synthetic") == (path.stem == "synthetic"), "a file's name says what it is"
    if recording.origin != "synthetic":
        assert path.name.startswith(Path(recording.file).stem)
    assert path.stat().st_size <= MOST_BYTES
    assert faults(recording, library.load(recording.map, None).map) == [], (
        f"if the map is right: python -m tests.test_recordings {recording.map}"
    )


@pytest.mark.parametrize("path", [p for p in FILES if p.stem == "synthetic"], ids=lambda path: path.parent.name)
def test_the_requests_of_every_round_are_answered_by_the_recording(path: Path) -> None:
    recording = parse(path.read_text())
    map = as_found(recording, library.load(recording.map, None).map)
    held = image(recording)
    for url in ("serial:///dev/ttyUSB0?baudrate=9600", "tcp://127.0.0.1:502"):
        for block in plan(map, None, line_cost(line_of(url), map.timing)):
            missing = [a for a in range(block.address, block.address + block.count) if (block.function, a) not in held]
            assert not missing, (str(block), missing)


def test_a_device_is_asked_for_the_gaps_that_other_lines_are_read_over() -> None:
    """On a serial line gaps are left out; a gateway on the network reads over them and has to find them."""
    made, map = planted("eastron-sdm630")
    held = image(made)
    for url in ("serial:///dev/ttyUSB0?baudrate=9600", "tcp://127.0.0.1:502"):
        for block in plan(map, None, line_cost(line_of(url), map.timing)):
            assert {(block.function, block.address + n) for n in range(block.count)} <= held.keys(), str(block)


def unproven(statuses: Mapping[str, str], recorded: Collection[str]) -> list[str]:
    return sorted(name for name, status in statuses.items() if status == "confirmed" and name not in recorded)


def test_a_map_is_called_confirmed_only_where_a_real_device_was_recorded() -> None:
    statuses = {name: library.load(name, None).map.status for name in library.names(None)}
    assert unproven(statuses, captured()) == []
    assert unproven({"a": "confirmed", "b": "confirmed", "c": "documented"}, {"b": ["B 1"]}) == ["a"]


# --- that it can fail ------------------------------------------------------------------------------------------------


def planted(name: str = "chint-dtsu666") -> tuple[Recording, MeterMap]:
    return synthetic(name), library.load(name, None).map


def changed(map: MeterMap, name: str, **keys: object) -> MeterMap:
    registers = tuple(replace(r, **keys) if r.quantity == name else r for r in map.registers)  # type: ignore[arg-type]  # keys of a register
    return replace(map, registers=registers)


def test_a_right_map_has_no_fault() -> None:
    assert faults(*planted()) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"scale": Decimal("0.1")},
        {"unit": "Wh"},
        {"order": "CDAB"},
        {"address": 0x101E},
        {"type": "u32"},
        {"times": ()},
        {"times": ("vt_ratio",)},
        {"address": 0x102A},  # its own first phase
    ],
    ids=str,
)
def test_a_map_that_reads_the_production_counter_wrongly_is_found(keys: dict[str, object]) -> None:
    recording, map = planted()
    assert any(found.startswith("energy_export ") for found in faults(recording, changed(map, "energy_export", **keys)))


def test_a_register_that_is_polled_and_was_never_recorded_is_found() -> None:
    recording, map = planted()
    less = replace(recording, pieces=tuple(p for p in recording.pieces if p.address != 0x1028))
    assert any("what is polled is not in it" in found for found in faults(less, map))


def test_a_serial_number_that_is_not_masked_is_found() -> None:
    recording, map = planted("eastron-sdm630")
    assert faults(recording, map) == []
    (piece,) = (p for p in recording.pieces if p.function == "holding" and p.address == 0xFC00)
    open_ = replace(piece, words=(23_459_871 >> 16, 23_459_871 & 0xFFFF, *piece.words[2:]))
    told = replace(recording, pieces=tuple(open_ if p is piece else p for p in recording.pieces))
    assert faults(told, map) == ["serial_number is not masked", "serial_number is not masked"]


def test_which_maps_were_compared_with_real_devices_can_be_told(tmp_path: Path) -> None:
    recording, _ = planted()
    (tmp_path / "chint-dtsu666").mkdir()
    (tmp_path / "chint-dtsu666" / "a.toml").write_text(text(recording))
    assert captured(tmp_path) == {} and unrecorded(["chint-dtsu666", "other"], tmp_path) == ["other"]
    real = replace(recording, origin="captured", model="DTSU666", firmware="1.2")
    (tmp_path / "chint-dtsu666" / "b.toml").write_text(text(real))
    assert captured(tmp_path) == {"chint-dtsu666": ["DTSU666 1.2"]}


if __name__ == "__main__":
    write(sys.argv[1:] or library.names(local=None))

"""Who answers at a unit: every shipped map against its own simulated meter, and devices that lie or say nothing."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from heliograph import library
from heliograph.core.registers import MeterMap
from heliograph.rehearsal.frames import ILLEGAL_ADDRESS, TARGET_SILENT, Device, refusal, words_answer
from heliograph.rehearsal.line import Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.work.identify import QUICK, Sighting, alive, identify
from tests.bus.paced import Copper

NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)
MAPS = tuple(library.load(name, local=None).map for name in library.names(local=None))
BY_NAME = {map.name: map for map in MAPS}
SIMULATED = [map.name for map in MAPS if map.sunspec is None]


def a_meter(name: str, unit: int = 1, **how: object) -> SimulatedMeter:
    return SimulatedMeter(BY_NAME[name], clock=lambda: NOON, unit=unit, seed=unit, **how)  # type: ignore[arg-type] # mixed on purpose


class Bank:
    """A device that holds these words, and answers something else everywhere else."""

    def __init__(
        self, words: Mapping[tuple[int, int], int], other: Callable[[bytes], bytes | None] = lambda _: None
    ) -> None:
        self.words, self.other = words, other

    def answer(self, request: bytes) -> bytes | None:
        function, address, count = struct.unpack(">BHH", request)
        held = [self.words.get((function, place)) for place in range(address, address + count)]
        if all(word is None for word in held):
            return self.other(request)
        return words_answer(function, tuple(word or 0 for word in held))


def zeros(request: bytes) -> bytes:
    return words_answer(request[0], (0,) * int.from_bytes(request[3:5], "big"))


def refused(request: bytes) -> bytes:
    return refusal(request, ILLEGAL_ADDRESS)


def seen(device: Device | None, *, maps: tuple[MeterMap, ...] = MAPS, unit: int = 1, **how: object) -> Sighting:
    devices = {} if device is None else {unit: device}
    copper = Copper(Wire(devices, **how))  # type: ignore[arg-type] # mixed on purpose
    return identify(copper.open(), unit, maps)


@pytest.mark.parametrize("name", SIMULATED)
def test_the_map_of_a_meter_is_always_among_those_told_and_never_another_alone(name: str) -> None:
    found = seen(a_meter(name))
    assert found.here
    assert name in [fit.map.name for fit in found.fits]
    assert found.best is None or found.best.map.name == name
    names_itself = any(value for match in BY_NAME[name].identity.match for value in match.values)
    assert (found.best is not None) == names_itself, str(found)


def test_a_meter_that_names_its_kind_is_recognised_with_its_serial() -> None:
    found = seen(a_meter("eastron-sdm630", serial=23451234))
    assert found.best is not None and found.best.evidence == "named"
    assert (found.best.map.name, found.serial, found.ambiguous) == ("eastron-sdm630", "23451234", False)
    assert found.best.because == ("holding 0xFC02 is 112", "holding 0xFC00+2 holds a serial number")
    assert found.best.sound and found.best.check.startswith("frequency reads 50")
    assert str(found) == (
        "unit 1: eastron-sdm630, serial 23451234 (holding 0xFC02 is 112; holding 0xFC00+2 holds a serial number)"
    )


@pytest.mark.parametrize(("name", "kw"), [("sungrow-sg", 12.5), ("deye-hybrid-3p", 12.5), ("eastron-sdm630", None)])
def test_a_device_that_tells_its_power_is_asked_for_it(name: str, kw: float | None) -> None:
    found = seen(a_meter(name, rated_kw=12.5))
    assert found.best is not None and found.best.rated_kw == kw


def test_where_only_the_serial_is_known_all_of_the_family_are_told() -> None:
    found = seen(a_meter("eastron-sdm230", serial=23451234))
    names = {fit.map.name for fit in found.candidates}
    assert {"eastron-sdm230", "eastron-sdm72d-m"} <= names and found.best is None and found.ambiguous
    assert found.serial == "23451234"
    assert "nothing it says tells its kind" in str(found)


def test_a_zero_proves_nothing() -> None:
    """An Eastron answers 0 to what it does not have: so it would pass for any device whose mark is a 0."""
    found = seen(Bank({}, zeros))
    assert found.here and found.best is None
    assert {fit.evidence for fit in found.fits} == {"possible"}
    kostal = next(fit for fit in found.fits if fit.map.name == "kostal-plenticore")
    assert kostal.because == ("holding 0x0005 is 0 as it should be, which proves nothing",)
    sdm630 = next(fit for fit in found.fits if fit.map.name == "eastron-sdm630")
    assert "this map will refuse it" in sdm630.because[0]
    assert not any(fit.sound for fit in found.fits) and not found.serial


def test_a_kind_in_turned_bytes_is_a_finding() -> None:
    found = seen(Bank({(3, 0x8960): 0x3320, (3, 0x8961): 0x4232}, refused), maps=(_marked("abb-b23-b24"),))
    assert found.best is not None and found.best.order == "CDAB"
    assert "only if read as CDAB, not ABCD" in found.best.because[0]


def test_a_frequency_in_turned_words_is_told_as_a_finding_about_the_words() -> None:
    """Holding 0x0028 of an SDM630 turns the words of the whole meter; its code is one word and fits all the same."""
    meter = a_meter("eastron-sdm630", 1)
    turned = SimulatedMeter(replace(meter.map, order="CDAB"), clock=lambda: NOON)
    found = seen(turned)
    assert found.best is not None and found.best.map.name == "eastron-sdm630"
    assert (found.best.sound, found.best.order) == (False, "CDAB")
    assert "only as CDAB" in found.best.check


def _marked(name: str) -> MeterMap:
    from heliograph.core.registers import Identity, Match

    return replace(
        BY_NAME[name],
        identity=Identity(serial=None, match=(Match(address=0x8960, type="u32", values=(0x42323320, 0x42323420)),)),
    )


def test_a_device_that_says_it_is_another_fits_no_map_of_its_family() -> None:
    found = seen(Bank({(3, 0xFC02): 0x1234, (3, 0xFC00): 1, (3, 0xFC01): 2}, refused))
    assert not {"eastron-sdm630", "eastron-sdm120", "eastron-sdm72dm-v2"} & {fit.map.name for fit in found.fits}


def test_an_exception_is_an_answer_and_no_map_is_guessed_from_it() -> None:
    found = seen(Bank({}, refused))
    assert (found.here, found.answer, found.fits) == (True, "refusal", ())
    assert str(found) == "unit 1: answers, but fits no map"


@pytest.mark.parametrize("name", [map.name for map in MAPS if map.sunspec is not None and map.production])
def test_a_sunspec_device_is_told_as_one_and_given_no_template_as_its_map(name: str) -> None:
    found = seen(a_meter(name, serial="0123456789"))
    assert found.here and found.best is None
    assert not {fit.map.name for fit in found.fits} & {map.name for map in MAPS if map.sunspec is not None}
    assert found.sunspec is not None and name in found.sunspec.templates and found.sunspec.chain is not None
    assert set(BY_NAME[name].sunspec.models) & {model.number for model in found.sunspec.chain.models}  # type: ignore[union-attr] # a template
    assert found.serial == "0123456789" and "heliograph map sunspec" in str(found)


def test_a_marker_with_nothing_sound_behind_it_is_told_as_that() -> None:
    words = {(3, 40000): 0x5375, (3, 40001): 0x6E53, (3, 40002): 7, (3, 40003): 0}
    found = seen(Bank(words, refused))
    assert found.sunspec is not None and found.sunspec.chain is None
    assert "SunSpec marker, but" in str(found) and found.best is None


def test_a_gateway_that_reached_nobody_is_no_device() -> None:
    found = seen(Bank({}, lambda request: refusal(request, TARGET_SILENT)))
    assert (found.here, found.answer) == (False, "gateway")


@pytest.mark.parametrize(
    ("serial", "named"), [((0x5445, 0x5354, 0x3031, 0x3233, 0x3435), True), ((0, 0, 0, 6123, 812), False)]
)
def test_a_small_number_names_a_kind_only_beside_a_serial_number(serial: tuple[int, ...], named: bool) -> None:
    """Holding 0 of an older Sofar is its state: 2 in normal life, which is a Deye string inverter's kind."""
    found = seen(Bank({(3, 0): 2, (3, 1): 1} | {(3, 3 + n): word for n, word in enumerate(serial)}))
    names = [fit.map.name for fit in found.fits if fit.evidence == "named"]
    assert names == (["deye-string-micro"] if named else [])


def test_a_silent_unit_costs_one_request() -> None:
    copper = Copper(Wire({}))
    found = identify(copper.open(), 7, MAPS)
    assert (found.here, found.answer, len(copper.written)) == (False, "silence", 1)


def test_maps_that_ask_the_same_ask_it_once() -> None:
    copper = Copper(Wire({1: a_meter("eastron-sdm630")}))
    identify(copper.open(), 1, MAPS)
    asked = Counter(copper.written)
    assert max(asked.values()) == 1
    matches = [match for map in MAPS for match in map.identity.match]
    assert len(matches) > len({(match.address, match.function) for match in matches})  # there is something to share


def test_a_device_that_is_silent_about_what_it_does_not_have_is_recognised_all_the_same() -> None:
    meter = a_meter("eastron-sdm120")
    found = seen(Bank({}, lambda r: None if (a := meter.answer(r)) is None or a[0] & 0x80 else a))
    assert not found.here  # it does not have what is asked first, and says nothing
    shy = Bank({(3, 0): 1, (3, 1): 1}, lambda r: None if (a := meter.answer(r)) is None or a[0] & 0x80 else a)
    copper = Copper(Wire({1: shy}))
    found = identify(copper.open(), 1, MAPS)
    assert found.best is not None and found.best.map.name == "eastron-sdm120"


def test_two_devices_with_one_unit_id_are_garbled_and_nothing_is_guessed() -> None:
    class Both:
        """Two devices that speak at once: their characters fall over each other."""

        def answer(self, request: bytes) -> bytes | None:
            return bytes(byte ^ 0x5A for byte in words_answer(request[0], (1, 2)))

    found = seen(Both())
    assert (found.here, found.answer, found.fits) == (False, "garbled", ())


def test_who_is_there_takes_one_request() -> None:
    copper = Copper(Wire({5: a_meter("eastron-sdm630", 5)}))
    bus = copper.open()
    assert [unit for unit in (4, 5, 6) if alive(bus, unit, QUICK).here] == [5]
    assert len(copper.written) == 3

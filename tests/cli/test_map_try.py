"""heliograph map try: an edited map against a live meter, beside the map in use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from heliograph import app, library
from heliograph.cli import heliograph
from heliograph.core.decode import addresses
from heliograph.core.errors import ConfigError
from heliograph.core.registers import Register
from heliograph.core.trial import requests, told_by, trial, wanted
from heliograph.rehearsal.frames import Device
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.store import Store
from tests.cli.test_probe import CONFIG, a_plant
from tests.core.test_decodings import SDM630, bank
from tests.fakes import FakeClock

SHIPPED = library.shipped_dir() / "eastron-sdm630.toml"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({1: a_plant()}) as running:
        yield running


def site(folder: Path, url: str, more: str = "") -> Path:
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder, url=url, more=more, map="eastron-sdm630"))
    return config


def edited(folder: Path, *edits: tuple[str, str, str], vectors: bool = False, name: str = "edited") -> Path:
    """The shipped SDM630 with texts changed on the line of a quantity; without vectors that contradict unless told."""
    lines = SHIPPED.read_text().splitlines()
    for quantity, old, new in edits:
        (at,) = [n for n, line in enumerate(lines) if f'quantity = "{quantity}",' in line and "address" in line]
        assert old in lines[at]
        lines[at] = lines[at].replace(old, new)
    changed = {quantity for quantity, *_ in edits}
    kept = [
        line
        for line in lines
        if vectors or not ("words" in line and any(f'quantity = "{quantity}",' in line for quantity in changed))
    ]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(kept).replace('"eastron-sdm630"', f'"{name}"', 1))
    return path


def tried(config: Path, path: Path | str, *more: str) -> tuple[int, str]:
    words = ["--config", str(config), "map", "try", str(path), "roof", *more]
    found = CliRunner().invoke(heliograph, words, standalone_mode=False)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code or int(found.return_value or 0), found.stdout


def test_a_scale_of_one_ten_thousandth_is_told_in_energy(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path, ("energy_export", 'unit = "kWh",', 'unit = "kWh", scale = 0.0001,'))
    code, said = tried(site(tmp_path, server.url), path)
    assert code == 1
    assert "energy_export, the production counter, would read 4.1 kWh instead of 41,230.7 kWh." in said
    assert "energy_total is 41,230.7 kWh, but energy_import + energy_export is 4123 Wh" in said
    assert "Using it would change what is booked of roof: scale 0.0001 instead of 1." in said
    assert "nothing booked or delivered, until a person confirms with: heliograph swap roof --map-changed" in said
    assert "31 values stay the same" in said


@pytest.mark.parametrize(
    ("edits", "sentence", "change"),
    [
        (
            [("energy_export", '"kWh"', '"Wh"')],
            "would read 41.2 kWh instead of 41,230.7 kWh",
            "unit Wh instead of kWh",
        ),
        (
            [("energy_export", "0x004A", "0x0048"), ("energy_import", "0x0048", "0x004A")],
            "would read 0.0 kWh instead of 41,230.7 kWh",
            "address 0x0048 instead of 0x004A",
        ),
        (
            [("energy_export", '"float32"', '"u32"')],
            "would read 1,193,348,787.0 kWh instead of 41,230.7 kWh",
            "type u32 instead of float32",
        ),
        (
            [("energy_export", '"kWh",', '"kWh", order = "CDAB",')],
            "would read 0.0 kWh instead of 41,230.7 kWh",
            "order CDAB instead of ABCD",
        ),
        (
            [("energy_export", '"kWh",', '"kWh", function = "holding",')],
            "would read 0.0 kWh instead of 41,230.7 kWh",
            "function holding instead of input",
        ),
    ],
    ids=["unit", "address", "type", "order", "function"],
)
def test_each_changed_meaning_of_the_counter_is_named(
    server: Server, tmp_path: Path, edits: list[tuple[str, str, str]], sentence: str, change: str
) -> None:
    code, said = tried(site(tmp_path, server.url), edited(tmp_path, *edits))
    assert code == 1
    assert f"energy_export, the production counter, {sentence}" in said
    assert change in said and "swap roof --map-changed" in said


def test_a_register_that_bears_no_money_changes_no_booking(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path, ("active_power", 'unit = "W"', 'unit = "kW"'))
    code, said = tried(site(tmp_path, server.url), path)
    assert code == 1  # physics objects
    assert "energy_export, the production counter, reads 41,230.7 kWh either way." in said
    assert "active_power is -11507.0 kW, but" in said or "1,000 times as much" in said
    row = next(line for line in said.splitlines() if line.startswith("active_power "))
    assert "x 1000" in row and "does not fit" in row
    assert "What is booked and delivered would go on without a break" in said
    assert "To use it: copy it to /etc/heliograph/meters/edited.toml, set map = " in said


def test_a_map_that_reads_the_same_is_harmless(server: Server, tmp_path: Path) -> None:
    code, said = tried(site(tmp_path, server.url), edited(tmp_path))
    assert code == 0
    assert "Physics: 15 of 15 relations hold now, 15 of 15 would." in said
    assert "!" not in said and "What is booked and delivered would go on without a break" in said


def test_what_is_mended_is_told(server: Server, tmp_path: Path) -> None:
    """The site reads with the wrong word order; the map that is tried has it right by itself."""
    config = site(tmp_path, server.url, more='order = "CDAB"')
    text = re.sub(r'(type = "float32",)', r'\1 order = "ABCD",', edited(tmp_path).read_text())
    path = tmp_path / "right.toml"
    path.write_text(text.replace('"edited"', '"right"', 1))
    code, said = tried(config, path)
    assert code == 1 and "would read 41,230.7 kWh instead of 0.0 kWh" in said
    assert "15 of 15 would." in said


def test_vectors_that_contradict_do_not_keep_it_from_being_tried(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path, ("energy_export", '"kWh",', '"kWh", scale = 0.0001,'), vectors=True)
    code, said = tried(site(tmp_path, server.url), path)
    assert code == 1 and "would read 4.1 kWh instead of 41,230.7 kWh" in said
    assert f"! map check refuses it: {path}:" in said and "It cannot be used before map check passes" in said


def test_what_is_no_map_is_refused_with_its_line(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path, ("energy_export", '"kWh"', '"kWhh"'))
    with pytest.raises(ConfigError) as error:
        tried(site(tmp_path, server.url), path)
    assert re.search(r'edited\.toml:\d+: there is no unit "kWhh"', error.value.message)


def test_a_map_of_another_device_says_so(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path)
    path.write_text(path.read_text().replace("values = [112, 121]", "values = [45]"))
    code, said = tried(site(tmp_path, server.url), path)
    assert code == 1 and "! register 0xFC02 holds 112, not 45: the device would be refused" in said


def test_a_counter_at_an_address_that_the_device_refuses_would_have_no_value(server: Server, tmp_path: Path) -> None:
    code, said = tried(site(tmp_path, server.url), edited(tmp_path, ("energy_export", "0x004A", "0x9000")))
    assert code == 1
    assert "would have no value (refused, exception 2) instead of 41,230.7 kWh" in said


def test_a_map_without_the_counter_cannot_be_used(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path)
    lines = [line for line in path.read_text().splitlines() if '"energy_export",' not in line]
    path.write_text("\n".join(lines).replace('production = "energy_export"', 'production = "energy_import"'))
    code, said = tried(site(tmp_path, server.url, 'production = "energy_export"'), path)
    assert code == 1
    assert "! It has no counter energy_export that may be production" in said


def test_json_tells_the_same(server: Server, tmp_path: Path) -> None:
    path = edited(tmp_path, ("energy_export", 'unit = "kWh",', 'unit = "kWh", scale = 0.0001,'))
    code, said = tried(site(tmp_path, server.url), path, "--json")
    told = json.loads(said)
    assert code == 1 and told["counter"] == {"now_wh": 41_230_700, "then_wh": 4_123}
    assert told["holds_delivery"] is True and told["changes"] == ["scale 0.0001 instead of 1"]
    assert told["harmless"] is False and told["passes_check"] is True
    first = "meter line compared_with map production counter says holds_delivery changes refused_by_identity"
    rest = "values physics refused_registers lacking passes_check harmless"
    assert list(told) == [*first.split(), *rest.split()]


class Counting:
    """A meter that counts what it is asked for, and moves on with every request."""

    def __init__(self, meter: SimulatedMeter, moved: list[datetime]) -> None:
        self.meter, self.moved, self.asked = meter, moved, list[tuple[int, int]]()

    def answer(self, request: bytes) -> bytes | None:
        self.moved[0] += timedelta(hours=1)
        self.asked.append((int.from_bytes(request[1:3], "big"), int.from_bytes(request[3:5], "big")))
        return self.meter.answer(request)


def test_a_meter_that_moves_is_no_difference(tmp_path: Path) -> None:
    now = [datetime(2026, 3, 14, 6, tzinfo=UTC)]
    meter = SimulatedMeter(SDM630, clock=lambda: now[0], rated_kw=50, start_export_wh=41_230_700)
    counting = Counting(meter, now)
    device: Device = counting
    with Server({1: device}) as server:
        code, said = tried(site(tmp_path, server.url), edited(tmp_path), "--json")
    told = json.loads(said)
    assert [one["quantity"] for one in told["values"] if not one["same"]] == []
    places = [place for first, count in counting.asked for place in range(first, first + count)]
    assert code == 0 and max(map(places.count, places)) <= 2  # twice only as 0x.. of both functions


def test_when_the_edited_file_is_in_use_already_the_booked_map_is_compared(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = site(tmp_path, server.url)
    loaded = app.load(config, FakeClock())
    with loaded.writer() as store:  # as the gateway does at a start, and a first round
        _booked(store, loaded)
    path = edited(tmp_path, ("energy_export", 'unit = "kWh",', 'unit = "kWh", scale = 0.0001,'))
    path.write_text(path.read_text().replace('"edited"', '"eastron-sdm630"', 1))
    here = path.rename(tmp_path / "eastron-sdm630.toml")
    again = library.read(here, None)
    monkeypatch.setattr(library, "load", lambda _: again)
    code, said = tried(config, here)
    assert code == 1 and "the map of the newest booked reading (eastron-sdm630)" in said
    assert "would read 4.1 kWh instead of 41,230.7 kWh" in said


def _booked(store: Store, loaded: app.App) -> None:
    from heliograph.core.readings import Moment, Reading, Source

    meter = loaded.meters[0]
    source = Source(1, "input", 0x4A, 2, meter.map_digest)
    moment = Moment(FakeClock().at, "boot-1", 1000.0, True)
    store.readings.add([Reading("roof", moment, 41_230_700, {}, (0x4721, 0x0EB3), source, "")])


# -- pure -----------------------------------------------------------------------------------------------------------


def test_no_number_is_cut_by_a_request() -> None:
    """Both maps' numbers that share words come in one request, also beside a limit."""
    registers = [
        Register(quantity="a", type="float32", address=place, function="input") for place in range(0, 100, 2)
    ] + [Register(quantity="b", type="float32", address=9, function="input")]
    found = requests(registers, 10, (SDM630, SDM630))
    for register in registers:
        places = addresses(register)
        assert any(first <= places[0] and places[-1] <= last for _, first, last in found)
    assert all(last - first < 10 for _, first, last in found)
    read = [place for _, first, last in found for place in range(first, last + 1)]
    assert len(read) == len(set(read))  # and no word twice, for the second would be of another moment


def test_gaps_are_read_only_where_both_maps_allow_it() -> None:
    some = [Register(quantity="a", type="u16", address=place, function="input") for place in (0, 4)]
    closed = replace(SDM630, read_gaps=False, no_gap=())
    assert requests(some, 80, (SDM630, SDM630)) == (("input", 0, 4),)
    assert requests(some, 80, (SDM630, closed)) == (("input", 0, 0), ("input", 4, 4))


def test_a_trial_holds_both_maps_to_the_same_words() -> None:
    words: dict[Any, Any] = {"input": bank(SDM630), "holding": bank(SDM630, "holding")}
    found = trial(SDM630, SDM630, words, {}, ("energy_export", "energy_export"))
    assert found.harmless and all(line.same for line in found.lines)
    assert {line.quantity for line in found.lines} == {register.quantity for register in SDM630.registers}
    assert {r.quantity for r in wanted(SDM630, "energy_export", False)} >= {"energy_export", "frequency", "model"}
    assert told_by(SDM630, {"input": {}}, {}) == {}

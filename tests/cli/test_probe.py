"""heliograph probe, over TCP, over a pseudo-serial line, and through a running gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from heliograph import app, control, library
from heliograph.cli import heliograph
from heliograph.cli.probe import span_of
from heliograph.core.errors import BusTimeout, UsageError
from heliograph.core.registers import MeterMap
from heliograph.daemon import Daemon
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from tests.fakes import FakeClock

NOON = datetime(2026, 3, 14, 12, 7, tzinfo=UTC)
SDM630 = library.load("eastron-sdm630", None).map
CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "line"
url = "{url}"
pause = "1ms"
[[meter]]
id = "roof"
bus = "line"
unit = 1
map = "{map}"
rated_kw = 12
{more}
[clock]
trust = "always"
"""


def a_plant(map: MeterMap = SDM630, **how: Any) -> SimulatedMeter:
    return SimulatedMeter(map, clock=lambda: NOON, rated_kw=12, start_export_wh=41_230_700, **how)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({1: a_plant()}) as running:
        yield running


def site(folder: Path, url: str, more: str = "", map: str = "eastron-sdm630") -> Path:
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder, url=url, more=more, map=map))
    return config


def probe(*words: str, config: Path | None = None) -> str:
    before = ["--config", str(config)] if config else []
    found = CliRunner().invoke(heliograph, [*before, "probe", *words], standalone_mode=False)
    if found.exception is not None:
        raise found.exception
    assert found.return_value == 0
    return found.stdout


def row(text: str, address: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(address) and "  as " not in line)


def test_a_range_of_an_unknown_device_shows_what_behaves_like_a_grid(server: Server) -> None:
    text = probe("--bus", server.url, "--unit", "1", "0x0000-0x0050", "--function", "input")
    assert "These registers behave like one grid:" in text
    assert "voltage_l1n" in row(text, "0x0000") and "float32 ABCD" in row(text, "0x0000")
    assert "agrees: active_power_l1" in row(text, "0x000C")
    assert "frequency" in row(text, "0x0046")
    assert "zero" in row(text, "0x002C")


def test_a_device_with_swapped_words_is_read_so(tmp_path: Path) -> None:
    with Server({1: a_plant(replace(SDM630, order="CDAB"))}) as server:
        text = probe("--bus", server.url, "0x0000-0x0050")
        assert "float32 CDAB" in row(text, "0x0000") and "voltage_l1n" in row(text, "0x0000")
        known = probe("roof", config=site(tmp_path, server.url))
    assert "! eastron-sdm630 does not fit as it stands" in known
    assert 'Set order = "CDAB" for this meter in the configuration' in known
    assert "energy_export (the map)" in row(known, "0x004A") and "41,230.700 kWh" in row(known, "0x004A")


def test_a_map_that_fits_is_told_so(server: Server, tmp_path: Path) -> None:
    text = probe("roof", config=site(tmp_path, server.url))
    assert "eastron-sdm630 fits: all 21 relations that can be checked hold." in text
    assert "!" not in text


def test_a_wrong_scale_in_the_configuration_s_map_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "meters"
    broken.mkdir()
    text = (library.shipped_dir() / "eastron-sdm630.toml").read_text()
    line = next(line for line in text.splitlines() if 'quantity = "active_power",' in line)
    wrong = line.replace('unit = "W"', 'unit = "W", scale = 0.1')
    assert wrong != line
    (broken / "eastron-sdm630.toml").write_text(text.replace(line, wrong))
    loaded = library.read(broken / "eastron-sdm630.toml", None)
    monkeypatch.setattr(library, "load", lambda _: loaded)
    said = probe("roof", "0x0034", config=site(tmp_path, server.url))
    assert "10 times too little: a wrong scale or unit?" in said
    assert "All would hold with active_power as float32 ABCD at 0x0034." in said
    assert "does not fit" in next(line for line in said.splitlines() if "active_power (the map)" in line)


def test_json_carries_readings_marks_and_refusals(tmp_path: Path) -> None:
    with Server({1: a_plant(replace(SDM630, no_gap=()), gaps="refuse")}) as server:
        told = json.loads(probe("roof", "0x0028-0x002F", "--json", config=site(tmp_path, server.url)))
    assert set(told) == {"line", "unit", "function", "map", "set", "registers", "refused"}
    assert told["map"]["broken"] == [] and "frequency" in told["map"]["holds"]
    assert told["refused"] == [{"address": a, "why": "refused, exception 2"} for a in (0x2C, 0x2D)]
    first = next(one for one in told["registers"] if one["address"] == 0x2E)
    assert set(first) == {"address", "word", "text", "readings"}
    assert set(first["readings"][0]) == {
        *("address", "type", "order", "scale", "words", "value", "map", "against", "marks")
    }


def test_all_shows_every_decoding(server: Server, tmp_path: Path) -> None:
    config = site(tmp_path, server.url)
    few, many = probe("roof", "0x0034", config=config), probe("roof", "0x0034", "--all", config=config)
    assert len(few.splitlines()) < 20 < 60 < len(many.splitlines())
    assert "float64 DCBA" in many and "u16 BADC x 1000" in many


def test_over_a_serial_line(tmp_path: Path) -> None:
    with Line(Wire({1: a_plant()}, turnaround=0.0), rate=8.0) as line:
        text = probe("roof", "0x0000-0x0005", config=site(tmp_path, line.url))
        assert "eastron-sdm630 fits" in text and "voltage_l3n (the map)" in row(text, "0x0004")


def test_while_the_gateway_holds_the_line_it_is_asked(tmp_path: Path) -> None:
    """A pseudo-terminal is opened exclusively, as a serial port is: probing it directly would fail."""
    with Line(Wire({1: a_plant()}, turnaround=0.0), rate=8.0) as line:
        config = site(tmp_path, line.url)
        loaded = app.load(config, FakeClock())
        with loaded.writer() as store:
            daemon = Daemon(loaded, store)
            answering = control.Control(loaded.socket, daemon.answer, daemon.rest)
            daemon.lines[0].bus().read(1, "input", 0, 2, SDM630.timing)  # the gateway has the port open
            try:
                text = probe("roof", "0x0046", config=config)
                refused = probe("roof", "0x9000", config=config)
                with pytest.raises(BusTimeout):
                    probe("roof", "0x0046", "--unit", "9", "--timeout", "0.05", config=config)
            finally:
                answering.close()
                daemon.lines[0].close()
    assert "line, through the running gateway, unit 1" in text and "49.98" in row(text, "0x0046")
    assert "refused, exception 2" in row(refused, "0x9000")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "which meter, or which line?"),
        (("0x0048",), "0x0048 of which meter?"),
        (("--bus", "tcp://127.0.0.1:1"), "with --bus one address or range is wanted"),
        (("--bus", "tcp://127.0.0.1:1", "roof", "0x48"), "with --bus one address or range is wanted"),
        (("--bus", "tcp://127.0.0.1:1", "here"), "here is no register"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_how_to_say_it(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        probe(*words)
    assert message in error.value.message and error.value.hint


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("0x0048", (72, 72)),
        ("72", (72, 72)),
        ("0x00-0x50", (0, 80)),
        ("0x10..0x1f", (16, 31)),
        ("0x48+4", (72, 75)),
        ("10-0x0C", (10, 12)),
    ],
)
def test_addresses_and_ranges(text: str, span: tuple[int, int]) -> None:
    assert span_of(text) == span


@pytest.mark.parametrize("text", ["0x50-0x40", "70000", "0-5000", "x48", "0x48-", "-5"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        span_of(text)

"""heliograph map sunspec, as a technician starts it beside a device."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import library
from heliograph.cli import heliograph
from heliograph.cli.map import command
from heliograph.core.errors import BusUnreachable, ConfigError, UsageError, WrongDevice
from heliograph.rehearsal.sunspec import Layout
from tests.cli.test_simulate import ANY, simulate
from tests.work.test_discover import device, over_tcp

CONFIG = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "rs485"
url = "serial:///dev/ttyUSB0?baudrate=9600"
[[meter]]
id = "roof"
bus = "rs485"
unit = 1
map = "sunspec-inverter"
rated_kw = 10
"""


def run(folder: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(command, ["--local", str(folder), "sunspec", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_it_writes_a_map_that_passes_and_says_what_to_paste(tmp_path: Path) -> None:
    with over_tcp(device()) as server:
        told = run(tmp_path, "roof-inverter", "--bus", server.url, "--unit", "1").stdout
    assert "Heliograph rehearsal 1.0, serial 30000001, at unit 1 of tcp://127.0.0.1:" in told
    assert "  103    40070         50  taken, by sunspec-inverter\n" in told
    assert "energy_production    41230.700  kWh   starts again behind 4294967.295 kWh\n" in told
    text = (tmp_path / "roof-inverter.toml").read_text()
    assert text.startswith("#:schema ./map.schema.json\n# A SunSpec device as it was found on 20")
    loaded, problems = library.check(tmp_path / "roof-inverter.toml", tmp_path)
    assert loaded is not None and problems == ()
    snippet = tomllib.loads(told[told.index("# unless the line") :])
    assert snippet["meter"][0]["map"] == snippet["meter"][0]["id"] == "roof-inverter"
    assert snippet["meter"][0]["serial"] == "30000001"


def test_its_json_tells_the_chain_and_the_values(tmp_path: Path) -> None:
    layout = Layout(base=50000, common_length=65)
    with over_tcp(device("sunspec-meter", layout)) as server:
        facts = json.loads(run(tmp_path, "grid", "--bus", server.url, "--unit", "1", "--json").stdout)
    assert facts["models"] == [
        {"model": 1, "length": 65, "address": 50002},
        {"model": 203, "length": 105, "address": 50069},
    ]
    assert (facts["base"], facts["chosen"], facts["template"]) == (50000, 50069, "sunspec-meter")
    assert facts["values"]["energy_export"] == 41_230_700
    assert facts["digest"] == library.load("grid", tmp_path).digest


def test_a_map_that_is_there_is_not_written_over_without_being_told_so(tmp_path: Path) -> None:
    (tmp_path / "roof.toml").write_text("mine")
    with over_tcp(device()) as server:
        with pytest.raises(UsageError, match="exists already"):
            run(tmp_path, "roof", "--bus", server.url, "--unit", "1")
        assert (tmp_path / "roof.toml").read_text() == "mine"
        run(tmp_path, "roof", "--bus", server.url, "--unit", "1", "--replace")
    assert library.load("roof", tmp_path).map.name == "roof"


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (("Roof", "--bus", "tcp://127.0.0.1:1", "--unit", "1"), UsageError, "cannot be the name of a map"),
        (("eastron-sdm630", "--bus", "tcp://127.0.0.1:1", "--unit", "1"), UsageError, "came with the program"),
        (("roof", "--bus", "127.0.0.1", "--unit", "1"), ConfigError, "is not the address of a bus"),
        (("roof", "--bus", "tcp://127.0.0.1:1", "--unit", "1"), BusUnreachable, "127.0.0.1"),
        (
            ("roof", "--bus", "tcp://127.0.0.1:1", "--unit", "1", "--template", "eastron-sdm630"),
            UsageError,
            "eastron-sdm630 is no SunSpec template",
        ),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        run(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_sunspec_is_told_with_what_was_there(tmp_path: Path) -> None:
    with (
        over_tcp(device("eastron-sdm630")) as server,
        pytest.raises(WrongDevice, match="40000 holds 0x0000 0x0000; 50000 holds"),
    ):
        run(tmp_path, "roof", "--bus", server.url, "--unit", "1")


def test_a_meter_cannot_name_a_template(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    found = CliRunner().invoke(heliograph, ["--config", str(config), "check"], standalone_mode=False)
    assert isinstance(found.exception, ConfigError)
    assert "meter roof: sunspec-inverter is a SunSpec template, and no device by itself" in found.exception.message
    assert "heliograph map sunspec roof --bus URL --unit N" in found.exception.hint


def test_a_simulated_sunspec_device_says_how_its_map_is_made() -> None:
    told = simulate(*ANY, "--map", "sunspec-inverter").stdout
    assert 'heliograph map sunspec NAME --bus "tcp://127.0.0.1:' in told

"""heliograph map new: maps started from a table and from a device, checked as any other map."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from heliograph import library
from heliograph.cli import heliograph
from heliograph.cli.map_new import _seconds
from heliograph.cli.probe import UNKNOWN_DEVICE
from heliograph.core.errors import ConfigError, UsageError
from heliograph.core.line import parse
from heliograph.rehearsal.line import Line, Wire
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from tests.cli.test_probe import a_plant
from tests.core.test_decodings import SDM630

TABLE = """\
Register Address;Description;Data type;Units;Scale;FC
40073;Phase 1 voltage;U32;V;0.1;3
40075;Current L1;INT32;A;0,01;03
40077;Total active energy export;UINT32;KWH;0.01;3
40079;Frequency;uint16;0.01 Hz;;3
40083;;uint16;;;3
"""


def new(local: Path, name: str, *words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(heliograph, ["map", "--local", str(local), "new", name, *words], standalone_mode=False)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code or int(found.return_value or 0), found.stdout, found.stderr


def loaded(local: Path, name: str) -> library.LoadedMap:
    """As `map check` sees it: nothing wrong, but vectors that only a person can give."""
    found, problems = library.check(local / f"{name}.toml", local)
    assert found is not None
    assert [str(problem) for problem in problems if problem.blocks] == []
    assert all("vector" in problem.message for problem in problems) and problems
    return found


def test_a_table_as_manuals_have_it_becomes_a_map(tmp_path: Path) -> None:
    table = tmp_path / "registers.csv"
    table.write_text(TABLE)
    code, said, _ = new(tmp_path, "my-meter", "--csv", str(table), "--addresses", "manual")
    map = loaded(tmp_path, "my-meter").map
    assert code == 0
    assert [(r.quantity, r.address, r.type) for r in map.registers] == [
        ("voltage_l1n", 72, "u32"),
        ("current_l1", 74, "s32"),
        ("energy_export", 76, "u32"),
        ("frequency", 78, "u16"),
    ]
    assert (map.function, map.order, map.production, map.status) == ("holding", "ABCD", "energy_export", "unverified")
    assert "line 2: Phase 1 voltage is taken as voltage_l1n" in said
    assert "Still to be given by a person:" in said and "energy_export may be production and has no vector" in said
    text = (tmp_path / "my-meter.toml").read_text()
    assert "address = 0x0048, quantity" in text and "# 40073" in text
    assert '# { quantity = "energy_export", words = [ ], value = ?, origin = "captured" }' in text


def test_a_table_that_is_not_clear_names_file_and_line_and_writes_nothing(tmp_path: Path) -> None:
    table = tmp_path / "registers.csv"
    table.write_text(TABLE + "40090;Foo bar;uint16;;;3\n40092;Voltage L2;u17;V;;3\n")
    code, _, said = new(tmp_path, "my-meter", "--csv", str(table), "--addresses", "manual")
    assert code == ConfigError.exit_code and not (tmp_path / "my-meter.toml").exists()
    assert f'{table}:7: there is no quantity "Foo bar"' in said
    assert f'{table}:8: there is no type "u17"' in said
    code, _, said = new(tmp_path, "my-meter", "--csv", str(table))
    assert f"{table}:2: 40073 may be that address on the wire, or holding register 72 as manuals count" in said


def test_one_row_that_is_not_clear_is_one(tmp_path: Path) -> None:
    table = tmp_path / "registers.csv"
    table.write_text(TABLE + "40090;Foo bar;uint16;;;3\n")
    _, _, said = new(tmp_path, "my-meter", "--csv", str(table), "--addresses", "manual")
    assert f"1 row of {table} is not clear." in said


def test_the_folder_of_local_maps_is_made_where_it_is_missing(tmp_path: Path) -> None:
    table = tmp_path / "registers.csv"
    table.write_text(TABLE)
    local = tmp_path / "etc" / "meters"
    assert new(local, "my-meter", "--csv", str(table), "--addresses", "manual")[0] == 0
    assert loaded(local, "my-meter").map.name == "my-meter"
    with pytest.raises(ConfigError, match="the folder for it is missing and cannot be made") as raised:
        new(table / "meters", "my-meter", "--csv", str(table), "--addresses", "manual")
    assert "--local ." in raised.value.hint
    with Server({1: a_plant()}) as server:
        with pytest.raises(ConfigError, match="cannot be made"):
            new(table / "meters", "my-meter", "--bus", server.url, "--unit", "1")
        assert server.counts["requests"] == 0


def test_every_register_of_which_the_check_speaks_has_a_line_to_complete(tmp_path: Path) -> None:
    table = tmp_path / "registers.csv"
    table.write_text(TABLE + "40085;Phase 3 voltage;U32;V;0.1;3\n")
    assert new(tmp_path, "my-meter", "--csv", str(table), "--addresses", "manual")[0] == 0
    _, problems = library.check(tmp_path / "my-meter.toml", tmp_path)
    wanting = {problem.message.split()[0] for problem in problems if "vector" in problem.message}
    text = (tmp_path / "my-meter.toml").read_text()
    assert {"voltage_l1n", "voltage_l3n", "energy_export"} <= wanting
    assert {quantity for quantity in wanting if f'# {{ quantity = "{quantity}"' not in text} == set()


def test_what_is_read_and_how_long_it_takes_is_said_first(tmp_path: Path) -> None:
    with Server({1: a_plant()}) as server:
        _, _, said = new(tmp_path, "my-meter", "--bus", server.url, "--unit", "1", "--range", "0-0x57")
    assert f"Reading input and holding registers 0x0000-0x0057 of unit 1 at {server.url}: about 2 s" in said.replace(
        "holding and input", "input and holding"
    )
    line = parse("serial:///dev/ttyUSB0?baudrate=9600")
    likely, most = _seconds(line, UNKNOWN_DEVICE, 400)
    assert 7 < likely < 15 and 240 < most < 400


def test_a_device_becomes_a_map_whose_registers_read_what_it_shows(tmp_path: Path) -> None:
    with Server({3: a_plant(replace(SDM630, order="CDAB"))}) as server:
        code, said, _ = new(tmp_path, "my-meter", "--bus", server.url, "--unit", "3", "--range", "0-0x57")
    map = loaded(tmp_path, "my-meter").map
    assert code == 0 and map.unit == 3 and map.order == "CDAB" and map.function == "input" and map.phases == 3
    for register in map.registers:
        right = SDM630.register(register.quantity)
        assert right is not None and (register.address, register.type) == (right.address, right.type)
    assert {"voltage_l3n", "current_l1", "active_power_l2", "active_power", "frequency"} <= {
        register.quantity for register in map.registers
    }
    assert "No energy counter is named yet" in said
    text = (tmp_path / "my-meter.toml").read_text()
    assert '# { address = 0x004A, quantity = "", type = "float32", unit = "" },  # read 41230.7' in text
    assert "input registers that answered: 0x0000-0x0057" in text


def test_a_comment_becomes_a_register_when_it_is_named(tmp_path: Path) -> None:
    """What a technician does next: names the counter, gives the vectors, and the map passes its check."""
    with Server({1: a_plant()}) as server:
        new(tmp_path, "my-meter", "--bus", server.url, "--unit", "1", "--range", "0-0x57", "--function", "input")
    path = tmp_path / "my-meter.toml"
    text = path.read_text().replace(
        '# { address = 0x004A, quantity = "", type = "float32", unit = "" },',
        '{ address = 0x004A, quantity = "energy_export", type = "float32", unit = "kWh", monotonic = true },',
    )
    vector = '{ quantity = "energy_export", words = [0x4721, 0x0EB3], value = 41230.7, origin = "captured" },'
    path.write_text(text.replace("vectors = [", f"vectors = [\n  {vector}"))
    found, problems = library.check(path, tmp_path)
    assert found is not None and problems == ()


def test_a_device_on_a_serial_line_that_a_map_fits_is_said_so(tmp_path: Path) -> None:
    with Line(Wire({1: a_plant()}, turnaround=0.0), rate=8.0) as line:
        code, said, _ = new(
            tmp_path, "my-meter", "--bus", line.url, "--unit", "1", "--range", "0x0000-0x004F", "--json"
        )
    told = json.loads(said)
    assert code == 0 and told["order"] == "ABCD" and told["production"] is None and told["unnamed"] > 5
    assert any("eastron-sdm630" in remark for remark in told["remarks"])
    assert all(not problem["blocks"] for problem in told["problems"])


def test_at_night_nothing_is_made_up(tmp_path: Path) -> None:
    asleep = SimulatedMeter(
        replace(SDM630, night="zeros"), clock=lambda: datetime(2026, 3, 14, 0, tzinfo=UTC), rated_kw=12
    )
    with Server({1: asleep}) as server, pytest.raises(ConfigError) as error:
        new(tmp_path, "my-meter", "--bus", server.url, "--unit", "1", "--range", "0-0x57", "--function", "input")
    assert "Try it by day" in error.value.hint
    assert not (tmp_path / "my-meter.toml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("my-meter",), "from what?"),
        (("my-meter", "--bus", "tcp://127.0.0.1:1"), "from what?"),
        (("My Meter", "--csv", "x.csv"), "My Meter cannot be the name of a map"),
        (("eastron-sdm630", "--csv", "x.csv"), "eastron-sdm630 is the name of a map that came with the program"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        new(tmp_path, *words)
    assert message in error.value.message and error.value.hint


def test_a_map_of_that_name_is_not_written_over_by_mistake(tmp_path: Path) -> None:
    table = tmp_path / "registers.csv"
    table.write_text(TABLE)
    (tmp_path / "mine.toml").write_text("mine")
    with pytest.raises(UsageError):
        new(tmp_path, "mine", "--csv", str(table), "--addresses", "wire")
    assert (tmp_path / "mine.toml").read_text() == "mine"
    assert new(tmp_path, "mine", "--csv", str(table), "--addresses", "wire", "--replace")[0] == 0
    assert loaded(tmp_path, "mine").map.registers[0].address == 40073

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from heliograph import library
from heliograph.cli.map import command
from heliograph.core.errors import ConfigError

MINE = """\
name = "mine"
extends = "eastron-sdm120"
products = ["Mine"]
source = "me"
version = "2026-09-01"
status = "documented"
"""


def run(*arguments: str, local: Path) -> Result:
    result = CliRunner().invoke(command, ["--local", str(local), *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_list_shows_shipped_and_local_maps(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "broken.toml").write_text('name = "broken"\nstatus =\n')
    rows = {row["name"]: row for row in json.loads(run("list", "--json", local=tmp_path).stdout)}
    assert set(rows) == {*library.names(None), "mine", "broken"}
    promised = "name status version products registers polled production origin path digest error"
    assert list(rows["mine"]) == promised.split()
    assert (rows["mine"]["origin"], rows["eastron-sdm630"]["origin"]) == ("local", "shipped")
    assert (rows["eastron-sdm630"]["registers"], rows["eastron-sdm630"]["polled"]) == (90, 20)
    assert rows["eastron-sdm660"]["status"] == "unverified"
    assert rows["broken"]["status"] == "broken"
    assert f"{tmp_path}/broken.toml:2: is not TOML" in rows["broken"]["error"]
    text = run("list", local=tmp_path).stdout
    for name in rows:
        assert name in text


def test_show_tells_what_a_map_says(tmp_path: Path) -> None:
    result = run("show", "eastron-sdm630", local=tmp_path)
    assert result.exit_code == 0
    assert "80 registers in a request, then 60, 40, 10, 2" in result.stdout
    assert "pause 0.06 s" in result.stdout
    assert "0xFC02 is 112 or 121" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("0x004A"))
    assert row.split()[:5] == ["0x004A+2", "energy_export", "float32", "kWh", "yes"]
    assert library.load("eastron-sdm630", None).digest in result.stdout


def test_show_as_json_is_the_whole_map(tmp_path: Path) -> None:
    shown = json.loads(run("show", "chint-dtsu666", "--json", local=tmp_path).stdout)
    assert shown["digest"] == library.load("chint-dtsu666", None).digest
    voltage = next(r for r in shown["registers"] if r["quantity"] == "voltage_l1n")
    assert (voltage["address"], voltage["scale"], voltage["times"]) == (0x2006, 0.1, ["vt_ratio"])
    assert shown["vectors"][0]["with"] == {"ct_ratio": 40, "vt_ratio": 1}
    assert shown["timing"]["timeout"] == 0.5


def test_show_takes_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    assert "fits        Mine" in run("show", str(tmp_path / "mine.toml"), local=tmp_path).stdout


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_misspelt_map_is_answered_with_the_nearest(verb: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run(verb, "eastron-sdm63", local=tmp_path)
    assert error.value.exit_code == 78
    assert error.value.hint == 'Did you mean "eastron-sdm630"?'


def test_check_says_a_line_for_each_good_map(tmp_path: Path) -> None:
    result = run("check", local=tmp_path)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == len(library.names(None))
    assert "eastron-sdm630: 90 registers, 23 vectors, all right" in result.stdout


def test_check_exits_78_and_names_file_and_line_of_all_that_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "mine.toml"
    wrong.write_text(MINE + 'max_wrods = 60\nproduction = "energy_total"\nport = "x"\n')
    result = run("check", "eastron-sdm630", str(wrong), local=tmp_path)
    assert result.exit_code == 78
    assert result.stderr.splitlines() == [
        f'{wrong}:7: this map has an unknown key "max_wrods". Did you mean "max_words"?',
        f'{wrong}:9: port: should be a valid integer, not "x"',
    ]
    assert result.stdout.splitlines() == [
        "eastron-sdm630: 90 registers, 23 vectors, all right",
        "mine: 2 things are wrong",
    ]
    wrong.write_text(MINE + 'production = "energy_total"\n')
    result = run("check", local=tmp_path)
    assert result.exit_code == 78
    assert result.stderr.startswith(f"{wrong}:7: production is energy_total, which is no monotonic energy counter.")
    assert "mine: 1 thing is wrong" in result.stdout


def test_check_as_json_says_the_same(tmp_path: Path) -> None:
    wrong = tmp_path / "mine.toml"
    wrong.write_text(MINE + 'production = "energy_total"\n')
    result = run("check", "mine", "eastron-sdm120", "--json", local=tmp_path)
    assert result.exit_code == 78
    mine, shipped = json.loads(result.stdout)
    assert (shipped["ok"], shipped["problems"], shipped["registers"]) == (True, [], 25)
    assert (mine["ok"], mine["problems"][0]["path"], mine["problems"][0]["line"]) == (False, str(wrong), 7)
    assert set(mine["problems"][0]) == {"path", "line", "message", "hint"}


def test_schema_prints_what_is_shipped_beside_the_maps(tmp_path: Path) -> None:
    shipped = (library.shipped_dir() / "map.schema.json").read_text()
    assert run("schema", local=tmp_path).stdout == shipped

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
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
    promised = "name maker models phases production step_wh step status version products registers polled origin path"
    assert list(rows["mine"]) == [*promised.split(), "digest", "error"]
    assert (rows["mine"]["origin"], rows["eastron-sdm630"]["origin"]) == ("local", "shipped")
    assert (rows["eastron-sdm630"]["registers"], rows["eastron-sdm630"]["polled"]) == (90, 20)
    assert rows["eastron-sdm660"]["status"] == "unverified"
    assert rows["broken"]["status"] == "broken"
    assert f"{tmp_path}/broken.toml:2: is not TOML" in rows["broken"]["error"]
    text = run("list", local=tmp_path).stdout
    for name in rows:
        assert name in text
    by_name = {line.split()[0]: line for line in text.splitlines()}
    assert by_name["map"].split() == ["map", "maker", "model", "phases", "production", "step", "status"]
    assert re.split(r"  +", by_name["schneider-iem3155"].strip()) == [
        *("schneider-iem3155", "Schneider Electric", "iEM3155", "3", "energy_export", "1 Wh", "documented")
    ]
    assert by_name["mine"].endswith("documented, local")


@pytest.mark.parametrize("columns", [80, 110, 160])
def test_names_can_be_copied_from_a_terminal_of_any_width(columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    code = "from heliograph.cli import heliograph; heliograph(['map', '--local', '/nowhere', 'list'])"
    environment = {name: said for name, said in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment | {"NO_COLOR": "1"}) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # how Linux tells that the other end of a terminal was closed
            while part := os.read(ours, 65536):
                text += part
    os.close(ours)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == {"map", *library.names(None)}
    assert max(len(line) for line in lines) <= columns
    assert ("maker" in lines[0].split()) is (columns >= 100)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["EASTRON", "630"], {"eastron-sdm630", "eastron-sdm630mct"}),
        (["electric", "schneider"], {"schneider-iem3155"}),
        (["carlo", "ethernet"], {"carlo-gavazzi-em24-e1"}),
        (["sdm", "unverified", "54"], {"eastron-sdm54"}),
        (["mine"], {"mine"}),
        (["sg110cx"], {"sungrow-sg-hires"}),  # not among the models that the row names
        (["eastron", "iem3155"], set()),
    ],
)
def test_list_finds_the_maps_in_which_every_word_occurs(tmp_path: Path, words: list[str], found: set[str]) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    result = run("list", *words, "--json", local=tmp_path)
    assert ({row["name"] for row in json.loads(result.stdout)}, result.exit_code) == (found, 0)
    result = run("list", *words, local=tmp_path)
    assert {line.split()[0] for line in result.stdout.splitlines()} - {"map"} == found
    assert (result.exit_code, "heliograph map list" in result.stderr) == (0 if found else 1, not found)


@pytest.mark.parametrize(
    ("name", "wh", "words"),
    [
        ("solis-string", 1000, "1 kWh"),
        ("huawei-sun2000", 10, "0.01 kWh"),
        ("abb-b23-b24", 10, "0.01 kWh"),
        ("sma-sunny", 1, "1 Wh"),
        ("eastron-sdm630", 8, "8 Wh at 100 MWh"),  # 2^(26 - 23): a float32 of 10^8 Wh has 26 whole bits
        ("kostal-plenticore", 8, "8 Wh at 100 MWh"),
        ("chint-dtsu666", None, "6 to 12 Wh at 100 MWh"),  # the ratio moves the number within its power of two
    ],
)
def test_the_step_is_that_of_the_production_counter(tmp_path: Path, name: str, wh: int | None, words: str) -> None:
    row = next(row for row in json.loads(run("list", "--json", local=tmp_path).stdout) if row["name"] == name)
    assert (row["step_wh"], row["step"]) == (wh, words)


def test_show_tells_what_a_map_says(tmp_path: Path) -> None:
    result = run("show", "eastron-sdm630", local=tmp_path)
    assert result.exit_code == 0
    assert "80 registers in a request, then 60, 40, 10, 2" in result.stdout
    assert "pause 0.06 s" in result.stdout
    assert "0xFC02 is 112 or 121" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("0x004A"))
    assert row.split()[:5] == ["0x004A+2", "energy_export", "float32", "kWh", "yes"]
    assert library.load("eastron-sdm630", None).digest in result.stdout


def test_show_tells_what_a_site_must_know_of_a_counter_and_of_a_connection(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        MINE + "single_client = true\nclose_after_poll = true\nregisters = [\n"
        '{ address = 0x004A, quantity = "energy_export", type = "float32", unit = "kWh", monotonic = true,'
        ' contains = "ac+battery", resettable = "by its app" },\n]\n'
    )
    shown = run("show", "mine", local=tmp_path).stdout
    assert "clients     one TCP client at a time; it is left between two rounds" in shown
    row = next(line for line in shown.splitlines() if line.startswith("0x004A"))
    assert "never falls; AC with what the battery gave; can be set back: by its app" in row
    assert "clients" not in run("show", "eastron-sdm120", local=tmp_path).stdout


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

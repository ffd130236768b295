"""What `heliograph check` says about a broker: every mistake with file, line and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from heliograph import app
from heliograph.cli import heliograph
from heliograph.clock import RehearsalClock
from heliograph.core.answer import Answer
from heliograph.core.errors import ConfigError
from tests.fakes import START
from tests.outputs.mosquitto import until

CONFIG = """[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[clock]
trust = "always"
[[bus]]
id = "rs485"
url = "serial:///dev/ttyUSB0?baudrate=9600"
[[meter]]
id = "roof"
bus = "rs485"
map = "eastron-sdm630"
rated_kw = 10
[mqtt]
"""
FIRST = CONFIG.count("\n") + 1
"""The line behind [mqtt]."""


def check(folder: Path, lines: str) -> dict[str, list[str]]:
    """What --json says; raises what would be told and end with exit 78."""
    (folder / "password").write_text("pa55-word")
    config = folder / "config.toml"
    config.write_text((CONFIG + lines).replace("{folder}", str(folder)))
    found = CliRunner().invoke(heliograph, ["--config", str(config), "check", "--json"], standalone_mode=False)
    if found.exception is not None:
        raise found.exception
    told: dict[str, list[str]] = json.loads(found.stdout)
    return told


@pytest.mark.parametrize(
    ("lines", "line", "says", "hint"),
    [
        ('url = "mqtt://user:secret@broker"', FIRST, "no user or password in a url", "heliograph check"),
        ('url = "http://broker"', FIRST, "write mqtt://host or mqtts://host", ""),
        ('url = "mqtt://broker:70000"', FIRST, "write mqtt://host", ""),
        ('url = "mqtt://broker/topic"', FIRST, "write mqtt://host", ""),
        ('urll = "mqtt://broker"', FIRST, "unknown key mqtt.urll", "Did you mean url"),
        ('url = "mqtt://b"\nroot = "a/#"', FIRST + 1, "a topic without", ""),
        ('url = "mqtt://b"\nroot = "/a"', FIRST + 1, "a topic without", ""),
        ('url = "mqtt://b"\nqos = 3', FIRST + 1, "mqtt.qos", ""),
        ('url = "mqtt://b"\nevery = "10"', FIRST + 1, "not a duration", ""),
        ('url = "mqtt://b"\npassword = "secret"', FIRST + 1, "mqtt.password", ""),
        ('url = "mqtt://b"\npassword = { file = "{folder}/password" }', FIRST - 1, "a password needs a username", ""),
        ('url = "mqtt://b"\nca_file = "/x.pem"', FIRST - 1, "certificates are for mqtts://", ""),
        ('url = "mqtts://b"\nkey_file = "/x.pem"', FIRST - 1, "key_file needs certificate_file", ""),
        (
            'url = "mqtt://b"\nusername = "u"\npassword = { file = "{folder}/none" }',
            FIRST + 2,
            "no secret: No such file",
            "Write the secret into this file",
        ),
        (
            'url = "mqtts://b"\nca_file = "{folder}/none.pem"',
            FIRST + 1,
            "none.pem: No such file",
            "Write a PEM file there",
        ),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, lines: str, line: int, says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as found:
        check(tmp_path, lines)
    assert (found.value.line, says in found.value.message, hint in found.value.hint) == (line, True, True), found.value
    assert "secret@" not in found.value.message


@pytest.mark.parametrize(
    ("url", "warned"),
    [("mqtt://broker.example", True), ("mqtt://127.0.0.1", False), ("mqtts://broker.example", False)],
)
def test_a_password_that_travels_readable_is_told(tmp_path: Path, url: str, warned: bool) -> None:
    told = check(tmp_path, f'url = "{url}"\nusername = "u"\npassword = {{ file = "{tmp_path}/password" }}')
    assert [one for one in told["warnings"] if "read the password" in one] != [] or not warned
    assert warned or told["warnings"] == []


def test_a_broker_without_a_password_is_fine(tmp_path: Path) -> None:
    assert check(tmp_path, 'url = "mqtt://broker.example:1884"\nroot = "solar/heliograph"')["warnings"] == []


@pytest.mark.parametrize("table", ["mqtt", "sparkplug"])
def test_an_output_without_its_broker_names_the_table_in_which_it_stands(tmp_path: Path, table: str) -> None:
    more = 'url = "mqtt://127.0.0.1:1"' + ('\ngroup = "solar"' if table == "sparkplug" else "")
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.replace("{folder}", str(tmp_path)).replace("[mqtt]", f"[{table}]") + more)
    [output] = app.load(path, RehearsalClock(START, 60.0)).outputs(lambda _method, _target: Answer(404, b""))
    output.start()
    until(lambda: output.state().trouble != "", "it says nothing")
    output.close()
    assert f"correct {table}.url" in output.state().trouble

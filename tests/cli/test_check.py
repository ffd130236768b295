"""What `heliograph check` warns of before D-REC refuses anything."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from heliograph.cli import heliograph
from heliograph.core.daily import Border, Day, day_of
from heliograph.core.readings import Moment, Reading
from heliograph.store import Store
from tests.fakes import SINGAPORE, START

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
map = "eastron-sdm630"
rated_kw = 10
report_as = {{ drec = "SG0042-roof" }}
[uplink.drec]
base_url = "https://api.drecs.org/api"
{secret}
[clock]
trust = "always"
"""
TOKEN = 'token = {{ file = "{folder}/token" }}'
LOGIN = 'login = {{ username = {{ file = "{folder}/user" }}, password = {{ file = "{folder}/token" }} }}'
ADDRESS = "a" * 34 + "@example.org"
"""46 characters."""


def token(address: str) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"email": address, "exp": 4e9}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def check(folder: Path, *, secret: str = TOKEN, address: str = "a@example.org", days: tuple[int, ...] = ()) -> Any:
    (folder / "user").write_text(address + "\n")
    (folder / "token").write_text(token(address))
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder, secret=secret.format(folder=folder)))
    if days:
        fill(folder / "data", days)
    found = CliRunner().invoke(heliograph, ["--config", str(config), "check"], standalone_mode=False)
    assert found.exception is None and found.return_value == 0
    told = CliRunner().invoke(heliograph, ["--config", str(config), "check", "--json"], standalone_mode=False)
    warnings = json.loads(told.stdout)["warnings"]
    assert all(warning in found.stdout for warning in warnings) and address not in told.stdout + found.stdout
    return warnings


def fill(data: Path, days: tuple[int, ...]) -> None:
    data.mkdir()
    store = Store.writer(data)
    store.readings.begin("sg-0042", "Asia/Singapore", "boot-1", START)
    store.readings.know_meter("roof", "energy_export")
    store.readings.add([Reading("roof", Moment(START, "boot-1", 0, True), 0)])
    first = store.readings.last("roof")
    assert first is not None and first.id is not None
    store.days.commission("roof", Border(START, 0, 0, "start", first.id, None), START)
    for period in days:
        opening = store.days.last_border("roof")
        assert opening is not None
        at, total = opening.at + timedelta(days=1), opening.total_wh + period
        closing = Border(at, total, total, "read", first.id, None)
        store.days.close(Day("roof", day_of(opening.at, SINGAPORE), opening, closing), at, ())
    store.close()


LAN = """
[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "one"
url = "{url}"
[[meter]]
id = "roof"
bus = "one"
map = "{map}"
rated_kw = 10
[[meter]]
id = "barn"
bus = "one"
unit = 7
map = "{map}"
rated_kw = 10
"""


@pytest.mark.parametrize(
    ("url", "map", "notes", "warned"),
    [
        ("tcp://192.168.1.50:1502", "kostal-plenticore", 2, ()),
        ("tcp://192.168.1.50:1502", "sma-sunny", 0, ()),
        ("serial:///dev/ttyUSB0?baudrate=9600", "kostal-plenticore", 0, ()),
        (
            "tcp://192.168.1.50:502",
            "shelly-pro-3em",
            0,
            ("roof: energy_export can be set", "barn: energy_export"),
        ),
        (
            "tcp://192.168.1.50:502",
            "goodwe-et",
            0,
            ("roof: energy_production counts", "barn: energy_production"),
        ),
    ],
)
def test_what_the_maps_know_is_told(tmp_path: Path, url: str, map: str, notes: int, warned: tuple[str, ...]) -> None:
    config = tmp_path / "config.toml"
    config.write_text(LAN.format(folder=tmp_path, url=url, map=map))
    found = CliRunner().invoke(heliograph, ["--config", str(config), "check"], standalone_mode=False)
    told = CliRunner().invoke(heliograph, ["--config", str(config), "check", "--json"], standalone_mode=False)
    facts = json.loads(told.stdout)
    assert (len(facts["notes"]), len(facts["warnings"])) == (notes, len(warned))
    assert all(warning.startswith(begin) for warning, begin in zip(facts["warnings"], warned, strict=True))
    assert all(f"  {note}" in found.stdout.splitlines() for note in facts["notes"])
    assert all(f"  ! {warning}" in found.stdout.splitlines() for warning in facts["warnings"])


@pytest.mark.parametrize("secret", [TOKEN, LOGIN])
def test_an_address_that_the_platform_forgets_is_told(tmp_path: Path, secret: str) -> None:
    (warning,) = check(tmp_path, secret=secret, address=ADDRESS)
    assert "46 characters" in warning and "Token revoked" in warning
    assert check(tmp_path, secret=secret, address=ADDRESS[1:]) == []


@pytest.mark.parametrize(("days", "above"), [((70_000,) * 3, 3), ((70_000, 10_000, 70_000), 0), ((63_000,) * 9, 0)])
def test_days_above_what_the_platform_takes_are_told(tmp_path: Path, days: tuple[int, ...], above: int) -> None:
    warnings = check(tmp_path, days=days)
    assert len(warnings) == (above > 0)
    for warning in warnings:
        assert f"{above} of the last {len(days)} days are above" in warning and "yieldValue" in warning

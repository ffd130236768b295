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


def test_what_the_map_says_of_the_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CONFIG", CONFIG.replace("eastron-sdm630", "kostal-plenticore"))
    (warning,) = check(tmp_path)
    assert warning.startswith("roof: the device serves one TCP client, and that is this gateway")


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

"""A wrong configuration ends with 78 and one message; the store is left byte for byte as it was."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from heliograph.store import Store
from tests.fakes import START

GOOD = """[site]
id = "sg-0042"
timezone = "Asia/Singapore"
data_dir = "{data}"
[[bus]]
id = "lan"
url = "tcp://127.0.0.1:1"
[[meter]]
id = "roof"
bus = "lan"
unit = 1
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1" }}
[[meter]]
id = "barn"
bus = "lan"
unit = 2
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR2" }}
[uplink.redex]
base_url = "https://uat-api.redex.eco"
token = {{ file = "{data}/token" }}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("unit = 1", "unitt = 1", 11, "Did you mean unit?"),
        ('map = "eastron-sdm630"', 'map = "eastron-sdm63"', 12, "eastron-sdm630"),
        ('map = "eastron-sdm630"', 'map = "eastron-sdm660"', 12, "accept_unverified_map"),
        ("unit = 2", "unit = 1", 18, "both unit 1"),
        ('"STR2"', '"STR1"', 21, "both report to redex as STR1"),
        ("Asia/Singapore", "Asia/Singapoor", 3, "Did you mean Asia/Singapore?"),
        ("tcp://127.0.0.1:1", "tcq://127.0.0.1:1", 7, "tcp://host:port"),
        ("/token", "/tokn", 24, "tokn"),
        ("rated_kw = 50", 'rated_kw = 50\nproduction = "energy_total"', 14, "energy_total"),
        ("Asia/Singapore", "Europe/Berlin", None, "Asia/Singapore"),  # the store was begun in another zone
    ],
)
def test_a_wrong_configuration_is_refused_with_one_message(
    tmp_path: Path, old: str, new: str, line: int | None, says: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    store = Store.writer(data)
    store.readings.begin("sg-0042", "Asia/Singapore", "boot-1", START)
    store.close()
    (data / "token").write_text("secret-token")
    path = tmp_path / "config.toml"
    text = GOOD.format(data=data)
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    before = _digests(data)
    done = subprocess.run(
        [sys.executable, "-m", "heliograph", "run", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert says in done.stderr
    assert done.stderr.count("heliograph:") == 1 and "Traceback" not in done.stderr
    if line is not None:
        assert f"{path}:{line}: " in done.stderr
    assert "secret-token" not in done.stderr
    assert _digests(data) == before


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.suffix == ".db"
    }

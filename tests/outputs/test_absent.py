from __future__ import annotations

import sys
from pathlib import Path

import pytest

from heliograph import app
from heliograph.daemon import Daemon
from tests.test_daemon import CONFIG

TABLES = {"metrics": 'listen = "127.0.0.1:9464"', "sparkplug": 'url = "mqtt://127.0.0.1:1"\ngroup = "g"'}


@pytest.mark.parametrize(("table", "package"), [("metrics", "prometheus_client"), ("sparkplug", "google.protobuf")])
def test_a_package_that_is_missing_is_told_and_stops_no_metering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, package: str
) -> None:
    for loaded in [name for name in sys.modules if name.startswith((f"{package}.", "heliograph.outputs.", package))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "config.toml").write_text(f"{CONFIG.format(folder=tmp_path)}\n[{table}]\n{TABLES[table]}\n")
    site = app.load(tmp_path / "config.toml")
    with site.writer() as store:
        running = Daemon(site, store)
        running.start()
        try:
            (state,) = running.audience.states()
        finally:
            running.stop()
    assert state.name == table and not state.up
    assert app.EXTRAS[table] in state.trouble and f"'heliograph[{table}]'" in state.trouble

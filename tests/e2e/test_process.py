"""The gateway as a service manager sees it: started, asked, told to stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from heliograph import control, library
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.server import Server
from heliograph.store import Store
from tests.fakes import FakeClock
from tests.work.test_deliver import make_store

CONFIG = """
[site]
id = "s"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{url}"
every = "200ms"
store_every = "200ms"
timeout = "200ms"
[[bus]]
id = "dead"
url = "tcp://127.0.0.1:1"
[[meter]]
id = "roof"
bus = "lan"
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "STR1" }}
[[meter]]
id = "gone"
bus = "dead"
map = "eastron-sdm630"
rated_kw = 50
[uplink.redex]
base_url = "http://127.0.0.1:2"
spread = "0s"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""


def test_a_gateway_starts_answers_and_stops_within_five_seconds(tmp_path: Path) -> None:
    meter = SimulatedMeter(
        library.load("eastron-sdm630", local=None).map, clock=lambda: datetime.now(UTC), start_export_wh=41_230_700
    )
    (tmp_path / "token").write_text("secret-token")
    with Server({1: meter}) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(20)
        config = tmp_path / "config.toml"
        config.write_text(CONFIG.format(folder=tmp_path, url=server.url))
        base = [sys.executable, "-m", "heliograph", "--config", str(config)]
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PATH": "/usr/bin:/bin"}
        with subprocess.Popen([*base, "run"], stderr=subprocess.PIPE, env=environment, text=True) as child:
            try:
                assert notified.recv(100) == b"READY=1"
                where = tmp_path / "data" / "heliograph.sock"
                deadline = time.monotonic() + 20
                while not (answer := control.ask(where, "/api/v1/meters/roof") or {}).get("values"):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                assert answer["values"]["energy_export"] >= 41_230_700
                second = subprocess.run([*base, "run"], capture_output=True, text=True, check=False, timeout=30)
                assert second.returncode == 75 and "another heliograph" in second.stderr
                shown = subprocess.run([*base, "status", "--json"], capture_output=True, text=True, check=False)
                status = json.loads(shown.stdout)
                assert shown.returncode == 1 and status["running"] is True
                assert [one["state"] for one in status["meters"]] == ["ok", "never read"]
                assert any("Connection refused" in alarm for alarm in status["alarms"])
                words = [*base, "read", "roof", "--all", "--json"]
                read = subprocess.run(words, capture_output=True, text=True, check=False)
                assert json.loads(read.stdout)["from"] == "the running gateway"
                assert len(json.loads(read.stdout)["values"]) == 90
            finally:
                asked = time.monotonic()
                child.send_signal(signal.SIGTERM)
                _, log = child.communicate(timeout=20)
            assert child.returncode == 0
            assert time.monotonic() - asked < 5
        assert notified.recv(100) == b"STOPPING=1"
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[0] == "started" and events[-1] == "stopped" and "bus_unreachable" in events
    assert "secret-token" not in log
    # The device's key is made in the first minute, beside everything else.
    left = {path.name for path in (tmp_path / "data").iterdir() if "device.key" not in path.name}
    assert left == {"claimed", "heliograph.db", "lock", "reserve"}
    store = Store.reader(tmp_path / "data")
    last = store.readings.last("roof")
    assert last is not None and last.good
    store.close()


def test_a_request_that_hangs_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    """A platform that takes the request and never answers: the row is unclear on disk, nothing has to wait."""
    make_store(tmp_path / "data", FakeClock(), meters=1, days=1).close()
    (tmp_path / "token").write_text("token")
    with socket.create_server(("127.0.0.1", 0)) as hole:
        hole.settimeout(20)
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        text = CONFIG.replace('"roof"', '"m0"').replace("http://127.0.0.1:2", url)
        config = tmp_path / "config.toml"
        config.write_text(text.format(folder=tmp_path, url="tcp://127.0.0.1:3"))
        command = [sys.executable, "-m", "heliograph", "run", "--config", str(config)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            try:
                connection, _ = hole.accept()
                assert connection.recv(10_000).startswith(b"POST /public/v2/generation-datas/batches")
            finally:
                asked = time.monotonic()
                child.send_signal(signal.SIGTERM)
                child.communicate(timeout=20)
            assert child.returncode == 0 and time.monotonic() - asked < 5
            connection.close()
    store = Store.reader(tmp_path / "data")
    assert store.outbox.counts()["redex"] == {"unclear": 1}
    store.close()

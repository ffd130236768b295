"""Memory, CPU, writes and flushes of the daemon with ten meters, everything stored durably; needs strace.

python -m tests.bench.bench_daemon [SECONDS] [mqtt] [sparkplug] [metrics] [web]

With the names of outputs these are on, at a real mosquitto; everything they have to say is said, and /metrics and the
REST are asked as often as Prometheus would in ten times the time.
The meters are polled every second so that a thousand polls take less than two minutes; a poll costs what it costs, and
every poll is stored here, which a site does six times less often. The limits are those of ten meters every ten seconds.
Outputs are shown the site every 3 s, as often for each poll as at a site.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from heliograph import library
from heliograph.rehearsal.meter import SimulatedMeter
from heliograph.rehearsal.sandbox import Sandbox
from heliograph.rehearsal.server import Server
from heliograph.store import Store
from tests.outputs.mosquitto import running

METERS = 10
FLUSHES_SECONDS = 30
CONFIG = """
[site]
id = "bench"
timezone = "Asia/Singapore"
data_dir = "{folder}/data"
[[bus]]
id = "lan"
url = "{bus}"
every = "{every}"
store_every = "{every}"
pause = "0ms"
[uplink.redex]
base_url = "{platform}"
token = {{ file = "{folder}/token" }}
[clock]
trust = "always"
"""
OUTPUTS = {
    "mqtt": '[mqtt]\nurl = "{broker}"\nevery = "1s"\nhome_assistant = "homeassistant"\n',
    "sparkplug": '[sparkplug]\nurl = "{broker}"\ngroup = "bench"\nevery = "1s"\n',
    "metrics": '[metrics]\nlisten = "127.0.0.1:19464"\n',
    "web": '[web]\nlisten = "127.0.0.1:18080"\ntoken = {{ file = "{folder}/web" }}\n',
}
ASKED = {"metrics": "http://127.0.0.1:19464/metrics", "web": "http://127.0.0.1:18080/api/v1/status"}
ASK_EVERY = 1.5
"""Prometheus' usual fifteen seconds, ten times as fast."""
RUN = (
    "import heliograph.logs; from datetime import timedelta;"  # first, for what it keeps out of memory
    "import heliograph.daemon; heliograph.daemon.SHOW_EVERY = timedelta(seconds=3);"
    "from heliograph.cli import main; main()"
)
TOKEN = "a-token-of-the-bench-0123456789"
METER = """
[[meter]]
id = "m{unit}"
bus = "lan"
unit = {unit}
map = "eastron-sdm630"
rated_kw = 50
report_as = {{ redex = "M{unit}" }}
"""


def main() -> None:
    words = sys.argv[1:]
    names = [word for word in words if word in OUTPUTS]
    seconds = next((float(word) for word in words if word not in OUTPUTS), 100.0)
    loaded = library.load("eastron-sdm630", local=None).map
    meters = {
        unit: SimulatedMeter(loaded, clock=lambda: datetime.now(UTC), unit=unit, start_export_wh=41_230_700, seed=unit)
        for unit in range(1, METERS + 1)
    }
    with (
        ExitStack() as more,
        tempfile.TemporaryDirectory() as name,
        Server(meters) as server,
        Sandbox(now=lambda: datetime.now(UTC), token="token") as platform,
    ):
        folder = Path(name)
        (folder / "token").write_text("token")
        text = CONFIG.format(folder=folder, bus=server.url, platform=platform.url, every="1s")
        text += "".join(METER.format(unit=unit) for unit in meters)
        (folder / "web").write_text(TOKEN)
        broker = more.enter_context(running(folder)).url if {"mqtt", "sparkplug"} & {*names} else ""
        text += "".join(OUTPUTS[one].format(broker=broker, folder=folder) for one in names)
        (folder / "config.toml").write_text(text)
        command = [sys.executable, "-c", RUN, "run", "--log", "error", "--config", str(folder / "config.toml")]
        threading.Thread(target=_ask, args=([ASKED[one] for one in names if one in ASKED],), daemon=True).start()
        # As the unit starts it.
        with subprocess.Popen(command, env={**os.environ, "MALLOC_ARENA_MAX": "1"}) as child:
            try:
                while not _settled(folder):  # start, identification and commissioning are not what is measured
                    time.sleep(0.5)
                before, first = _cpu(child.pid), _polls(folder)
                written = _written(child.pid)
                time.sleep(seconds)
                cpu, polls = _cpu(child.pid) - before, _polls(folder) - first
                written = _written(child.pid) - written
                memory = _resident(child.pid)
                flushes, rounds = _flushes(child.pid, folder)
            finally:
                child.terminate()
    print(f"outputs {', '.join(names) or 'none'}")
    print(f"{polls} meter polls in {seconds:g} s, each stored and flushed in a round of {METERS}")
    print(f"CPU     {1000 * cpu / polls:6.2f} s per 1,000 meter polls   limit 3 s")
    print(f"memory  {memory:6.1f} MB resident                  limit 60 MB")
    daily = written / polls * METERS * 1440 / 1e6
    print(
        f"writes  {written / polls:6.0f} bytes per stored reading       {daily:.1f} MB a day at one a minute (limit 40)"
    )
    daily = flushes / rounds * 1440
    print(f"flushes {flushes / rounds:6.2f} per round of {METERS} meters          {daily:.0f} a day (limit 2000)")


def _ask(places: list[str]) -> None:
    while places:
        for place in places:
            with suppress(OSError):
                headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "*/*"}
                urllib.request.urlopen(urllib.request.Request(place, headers=headers), timeout=10).read()
        time.sleep(ASK_EVERY)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


def _written(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def _flushes(pid: int, folder: Path) -> tuple[int, float]:
    """Flushes and rounds while strace looks on; apart from the rest, for being watched costs time."""
    trace = folder / "flushes"
    command = ["strace", "-f", "-p", str(pid), "-e", "trace=fsync,fdatasync", "-o", str(trace)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as watcher:
        time.sleep(1)
        first, before = _polls(folder), trace.read_text().count("sync(")
        time.sleep(FLUSHES_SECONDS)
        polls, flushes = _polls(folder) - first, trace.read_text().count("sync(") - before
        watcher.terminate()
    return flushes, polls / METERS


def _settled(folder: Path) -> bool:
    if not (folder / "data" / "heliograph.db").exists():
        return False
    store = Store.reader(folder / "data")
    begun = [store.days.first_border(meter) for meter in store.readings.meters()]
    store.close()
    return len(begun) == METERS and None not in begun


def _polls(folder: Path) -> int:
    store = Store.reader(folder / "data")
    row = store._connection.one("SELECT count(*) AS n FROM reading")
    store.close()
    return int(row["n"]) if row else 0


if __name__ == "__main__":
    main()

"""A daemon as a process of its own, on a rehearsed clock it shares with its parent, to be killed at any moment.

python site.py CONFIG START RATE BEGAN [listen] [WRONG ...] (START in ISO, BEGAN on the machine's monotonic clock)

At a SIGUSR1 it says on stdout, as a line of JSON, what it holds in memory. WRONG is what a test plants: "waits" for a
broker's answer in the polling thread, or "keeps" all that is shown.
"""

from __future__ import annotations

import gc
import json
import signal
import socket
import sys
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from heliograph import app, control
from heliograph.cli.options import stop_on_signals
from heliograph.clock import RehearsalClock
from heliograph.core.shown import Sample
from heliograph.daemon import Daemon
from heliograph.logs import set_up


def weigh(*_: object) -> None:
    """Objects and their bytes are counted by Python itself, what is resident by the kernel."""
    gc.collect()
    rss = next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Rss"))
    weight = {"blocks": sys.getallocatedblocks(), "kb": int(rss.split()[1]), "threads": threading.active_count()}
    print(json.dumps(weight), flush=True)


def plant(daemon: Daemon) -> None:
    """What must not be done with samples, so that tests can see it found out."""
    shown, kept, broker = daemon.live.sampled, list[tuple[Sample, dict[str, object]]](), daemon.app.config.settings.mqtt

    def sampled(sample: Sample) -> None:
        shown(sample)
        if "keeps" in sys.argv:
            kept.append((sample, dict(sample.values)))
        if "waits" in sys.argv and broker is not None:
            with suppress(OSError), socket.create_connection((broker.host, broker.port), 1) as connection:
                connection.sendall(bytes((0x10, 13)) + b"\0\4MQTT\4\2\0\x3c\0\1w")
                connection.recv(1)

    daemon.live.sampled = sampled


def main() -> None:
    config, start, rate, began = sys.argv[1:5]
    set_up("warning")
    clock = RehearsalClock(datetime.fromisoformat(start), float(rate), float(began))
    site = app.load(Path(config), clock)
    with stop_on_signals() as stop, site.writer() as store:
        daemon = Daemon(site, store)
        signal.signal(signal.SIGUSR1, weigh)
        if {"keeps", "waits"} & set(sys.argv):
            plant(daemon)
        daemon.start()
        print("ready", flush=True)
        if "listen" in sys.argv:
            answering = None
            while not stop.wait(0.05):
                answering = answering or control.listen(site.socket, daemon.answer, daemon.rest)
            if answering:
                answering.close()
        stop.wait()
        daemon.stop()


if __name__ == "__main__":
    main()

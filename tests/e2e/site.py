"""A daemon as a process of its own, on a rehearsed clock it shares with its parent, to be killed at any moment.

python site.py CONFIG START RATE BEGAN [listen] (START in ISO, BEGAN on the machine's monotonic clock)
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from heliograph import app, control
from heliograph.cli.options import stop_on_signals
from heliograph.clock import RehearsalClock
from heliograph.daemon import Daemon
from heliograph.logs import set_up


def main() -> None:
    config, start, rate, began = sys.argv[1:5]
    set_up("warning")
    clock = RehearsalClock(datetime.fromisoformat(start), float(rate), float(began))
    site = app.load(Path(config), clock)
    with stop_on_signals() as stop, site.writer() as store:
        daemon = Daemon(site, store)
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

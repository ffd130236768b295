"""heliograph run: the gateway itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from heliograph.cli.options import app_of, config_option, stop_on_signals

# Seconds until the socket is tried again that could not be made, on a card that is read-only or full.
LISTEN_AGAIN = 10.0


@click.command("run", help="Poll, close days, deliver, until stopped.")
@config_option
@click.option("--log", "level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def command(config: Path | None, level: str) -> int:
    from heliograph.logs import set_up  # isort: skip  # first, for what it keeps out of memory
    from heliograph import control
    from heliograph.daemon import Daemon, notify

    set_up(level)
    app = app_of(config, "must be there")
    os.umask(0o077)  # the store is nobody else's; from here on this process is the service
    with stop_on_signals() as stop, app.writer() as store:
        daemon = Daemon(app, store)
        daemon.on_damage = stop.set
        daemon.start()
        answering = control.listen(app.socket, daemon.answer, daemon.rest)
        notify("READY=1")
        watchdog = float(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        while not stop.wait(watchdog or (None if answering else LISTEN_AGAIN)):
            answering = answering or control.listen(app.socket, daemon.answer, daemon.rest)
            if daemon.healthy():
                notify("WATCHDOG=1")
        notify("STOPPING=1")
        if answering:
            answering.close()
        daemon.stop()
    sys.stdout.flush()
    # A thread that still waits for a platform must not hold up the end: everything is committed and closed.
    # A damaged store is looked at and replaced at a start: whoever started us does it again (systemd: Restart=always).
    os._exit(75 if daemon.damaged else 0)

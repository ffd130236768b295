"""heliograph backup: a verified copy of the store, while the gateway runs or when it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from heliograph.cli.options import app_of, config_option, json_option, print_json

PATIENCE = 600
"""Seconds: a large store on a slow card is copied and checked in a few minutes."""


@click.command("backup", help="Make a verified copy of the store, at PATH or in data_dir/copies.")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@config_option
@json_option
def command(path: Path | None, config: Path | None, as_json: bool) -> int:
    from heliograph import control

    app = app_of(config)
    target = path.absolute() if path is not None else None  # the daemon has another working directory
    wish = {"path": str(target) if target else None}
    done: dict[str, Any] | None = control.ask(app.socket, "/api/v1/backup", wish, timeout=PATIENCE)
    if done is None:
        with app.writer():
            done = app.copy_store(target)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done['path']}  {done['bytes'] / 1e6:.1f} MB, last closed day {done['last_day'] or 'none yet'}")
        click.echo(f"  sha256 {done['sha256']}")
        click.echo("  Opened and checked. Keep a copy off this computer: a card dies as a whole.")
    return 0

"""heliograph version"""

from __future__ import annotations

import click

from heliograph import __version__
from heliograph.cli.options import json_option, print_json


@click.command("version", help="Print the version.")
@json_option
def command(as_json: bool) -> None:
    import platform
    import sqlite3

    if as_json:
        print_json({"heliograph": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version})
    else:
        click.echo(f"heliograph {__version__} (Python {platform.python_version()}, SQLite {sqlite3.sqlite_version})")

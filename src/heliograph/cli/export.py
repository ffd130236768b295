"""heliograph export: an evidence pack that anybody can check."""

from __future__ import annotations

import hashlib
import sys
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import a_day, a_meter, app_of, config_option
from heliograph.core.chain import canonical, fingerprint, pack_message
from heliograph.core.daily import day_of
from heliograph.core.errors import UsageError

if TYPE_CHECKING:
    from heliograph.app import App


@click.command("export", help="Write the evidence of some days as a pack that `heliograph verify` checks anywhere.")
@click.argument("target", required=False, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--from", "first", default=None, help="First day: 2026-03-14, today or yesterday. [default: the oldest]")
@click.option("--to", "last", default="today", show_default=True, help="Last day.")
@click.option("--meter", "meters", multiple=True, help="Only this meter; may be given again. [default: all]")
@config_option
def command(target: Path | None, first: str | None, last: str, meters: tuple[str, ...], config: Path | None) -> int:
    app = app_of(config)
    today = day_of(app.clock.now(), app.rules.zone)
    end = a_day(last, today)
    store = app.reader()
    known = store.readings.meters()
    chosen = [name if name in known else a_meter(app, name) for name in meters] or known
    begin = a_day(first, today) if first else min((day.day for day in store.days.all()), default=end)
    site = app.config.settings.site.id
    path = target or Path(f"{site}_{begin}_{end}.pack")
    lines, key = _write(app, path, site, begin, end, chosen)
    name = "stdout" if str(path) == "-" else path
    click.echo(
        f"{name}: {lines} lines, signed by {fingerprint(key)}. Anybody can check it: heliograph verify", err=True
    )
    return 0


def _write(app: App, path: Path, site: str, first: date, last: date, meters: list[str]) -> tuple[int, bytes]:
    from heliograph.work.export import pack

    sha, head, lines = hashlib.sha256(), {}, 0
    made = pack(app.reader(), site, first, last, meters, app.clock.now())
    line: Any = next(made)  # what can be refused is refused before a file is made
    try:
        with nullcontext(sys.stdout.buffer) if str(path) == "-" else path.open("wb") as out:
            while line is not None:
                if isinstance(line, dict):
                    head, line = line, canonical(line)
                out.write(line + b"\n")
                sha.update(line + b"\n")
                lines, line = lines + 1, next(made, None)
            facts = {name: value for name, value in head.items() if name != "kind"}
            key, manifest = _signed(app, {**facts, "sha256": sha.hexdigest(), "lines": lines})
            out.write(canonical({**manifest, "kind": "manifest"}) + b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="Name another file.") from error
    return lines + 1, key


def _signed(app: App, manifest: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """By the running daemon, which has the device's key; else by whoever may read the key."""
    from heliograph import control

    answer = control.ask(app.socket, "/api/v1/sign", manifest, timeout=90)
    if answer is not None:
        return bytes.fromhex(answer["key"]), {**manifest, **answer}
    key, signature = app.sign(pack_message(manifest))
    return key, {**manifest, "key": key.hex(), "signature": signature.hex()}

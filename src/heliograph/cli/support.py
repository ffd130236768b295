"""heliograph support: one file with what somebody far away needs to see, and without what nobody may see."""

from __future__ import annotations

from pathlib import Path

import click

from heliograph.cli.options import config_option, json_option, print_json
from heliograph.core.errors import UsageError

HELP = """Gather what support needs to see into one file: a zip of readable texts.

Works also while the gateway does not run, with a configuration that is broken, or a store that is damaged. Secrets are
left out, and serial numbers are masked. Nothing is sent: look through it, then send it yourself.
"""


@click.command("support", help=HELP)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--with-serials", is_flag=True, help="Leave serial numbers of meters as they are.")
@config_option
@json_option
def command(file: Path | None, with_serials: bool, config: Path | None, as_json: bool) -> int:
    from heliograph import support
    from heliograph.clock import SystemClock

    chosen: Path = config or click.get_current_context().find_root().obj
    bundle = support.gather(chosen, with_serials=with_serials)
    path = file or Path(f"heliograph-support-{bundle.site}-{SystemClock().now():%Y%m%d-%H%M%S}.zip")
    content = bundle.packed()
    try:
        path.touch(0o600)
        path.write_bytes(content)
    except OSError as error:
        hint = "Name a file where you may write: heliograph support ~/support.zip"
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint=hint) from error
    if as_json:
        print_json(
            {"path": path.absolute(), "bytes": len(content), "parts": list(bundle.parts), "missing": bundle.missing}
        )
        return 0
    click.echo(f"{path.absolute()}  {len(content) / 1000:.0f} kB, {len(bundle.parts)} texts")
    for name, why in bundle.missing.items():
        click.echo(f"  not to be had: {name}: {why}")
    click.echo("  Secrets are left out" + ("" if with_serials else ", serial numbers masked") + ".")
    click.echo("  Nothing was sent. Look through it (README.txt says what is in it), then send it yourself.")
    return 0

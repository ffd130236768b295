"""heliograph verify PACK: is this evidence whole and unchanged, and does every figure add up?"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import json_option, print_json, print_table
from heliograph.core.chain import fingerprint
from heliograph.core.errors import ConfigError, UsageError
from heliograph.core.figures import kwh

if TYPE_CHECKING:
    from heliograph.core.audit import Report


@click.command(
    "verify", help="Check an evidence pack; needs no configuration and no gateway. Exit 1 if it is not sound."
)
@click.argument("pack", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--key", default=None, help="The device's public key as status shows it: only its signatures count.")
@json_option
def command(pack: Path, key: str | None, as_json: bool) -> int:
    report = audited(pack, _key(key))
    if as_json:
        print_json(_as_json(report))
        return 0 if report.sound else 1
    head = report.head
    if head:
        click.echo(
            f"{head.get('site')}  {head.get('from')} to {head.get('to')}, entries {head.get('first')} to"
            f" {head.get('last')} ({report.withheld} shown by their digest alone), {report.checkpoints} checkpoints"
        )
    if report.meters:
        print_table(
            ("meter", "days", "from", "to", "kWh", "estimated split", "without a figure", "confirmed"),
            [
                (
                    name,
                    str(one.days),
                    one.first or "-",
                    one.last or "-",
                    kwh(one.wh),
                    str(one.estimated),
                    str(one.held),
                    ", ".join(f"{days} by {uplink}" for uplink, days in sorted(one.confirmed.items())) or "-",
                )
                for name, one in sorted(report.meters.items())
            ],
            right=("days", "kWh", "estimated split", "without a figure"),
        )
    for finding in report.findings:
        click.echo(f"! {finding}")
    if not report.sound:
        click.echo("This pack proves nothing: ask for a fresh export.")
        return 1
    click.echo(
        f"Sound: every link and signature holds, {report.decoded} readings decode to the counters they stand for."
    )
    if not report.checkpoints:
        click.echo("No checkpoint covers these days yet: only the signature under the whole pack vouches for them.")
    if key is None:
        click.echo(f"Signed by {fingerprint(report.key)}: is that the site's key? Its status shows it; --key pins it.")
    return 0


def audited(pack: Path, key: bytes | None = None) -> Report:
    """The whole of a pack file, line by line."""
    from heliograph import library, seal
    from heliograph.core.audit import Audit
    from heliograph.core.registers import MeterMap

    def map_of(digest: str, texts: Any) -> MeterMap | None:
        try:
            return library.from_texts(digest, texts)
        except ConfigError:
            return None

    audit = Audit(seal.verify, map_of, key=key)
    try:
        with nullcontext(sys.stdin.buffer) if str(pack) == "-" else pack.open("rb") as lines:
            for line in lines:
                audit.feed(line)
    except OSError as error:
        raise UsageError(f"{pack} cannot be read: {error.strerror}", hint="Name the file that export wrote.") from error
    return audit.finish()


def _key(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UsageError(
            f"{text} is not a public key", hint="It has 64 hex digits: heliograph status --json, proof.key"
        )
    return key


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "sound": report.sound,
        "findings": [asdict(finding) for finding in report.findings],
        "site": report.head.get("site"),
        "from": report.head.get("from"),
        "to": report.head.get("to"),
        "key": report.key.hex(),
        "fingerprint": fingerprint(report.key) if report.key else "",
        "entries": report.entries,
        "withheld": report.withheld,
        "checkpoints": report.checkpoints,
        "decoded": report.decoded,
        "meters": {name: asdict(one) for name, one in report.meters.items()},
    }

"""heliograph sandbox: stand-in certificate platforms, so that a site can be rehearsed before it goes live."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import json_option, print_json, stop_on_signals
from heliograph.core.durations import duration
from heliograph.core.errors import UsageError

if TYPE_CHECKING:
    from heliograph.rehearsal.sandbox import Sandbox
    from heliograph.rehearsal.sandbox_drec import Device
    from heliograph.rehearsal.sandbox_redex_rules import Inverter

TOKEN_ENV = "HELIOGRAPH_SANDBOX_TOKEN"
SHOWN_VIOLATIONS = 10

HELP = """Run stand-in certificate platforms: REDEX and D-REC, stricter than the real ones, faults on demand.

What is printed is configuration: paste it into config.toml. Runs until Ctrl-C, or for the time given by --for;
exit 1 when a client broke a rule. GET /_sandbox/state shows what is stored, POST /_sandbox/faults changes the faults.

\b
  heliograph sandbox --token-file redex.token
  heliograph sandbox --fault html=0.05 --fault 500-after@redex.batch=next:2 --fault 503=+10m/1h
  heliograph sandbox --device redex:STR1,kw=50 --device drec:roof,kw=50,created=2026-01-01 --timezone Asia/Singapore
"""


@click.command("sandbox", help=HELP)
@click.option(
    "--listen", default="127.0.0.1:8600", show_default=True, metavar="HOST:PORT", help="Port 0: any free one."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The token that both platforms accept; written there when the file is missing.",
)
@click.option("--token", envvar=TOKEN_ENV, help="The same as text.  [default: one is made and shown]")
@click.option("--fault", "faults", multiple=True, metavar="KIND[@REQUEST]=WHEN",
              help="WHEN is a chance, next:N, or START/LENGTH; KIND as in --list-faults.")  # fmt: skip
@click.option("--list-faults", is_flag=True, help="Show the kinds of fault and stop.")
@click.option("--slow", default="90s", show_default=True, metavar="DURATION", help="How late a slow answer is.")
@click.option("--processing-delay", default="2s", show_default=True, metavar="DURATION",
              help="REDEX: from accepted to stored.")  # fmt: skip
@click.option("--timezone", metavar="IANA", default="",
              help="REDEX: where a day must be over.  [default: anywhere on earth]")  # fmt: skip
@click.option("--device", "devices", multiple=True, metavar="PLATFORM:ID[,KEY=VALUE...]",
              help="Takes only these. redex: kw, connected; drec: kw, created, commissioned, yield.")  # fmt: skip
@click.option("--default-kw", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True,
              help="D-REC: capacity of devices that tell none.")  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path, dir_okay=False), help="File for what is stored, read at start.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the faults.")
@click.option("--for", "period", metavar="DURATION", help="Stop after this time.  [default: run until Ctrl-C]")
@click.option("--log", is_flag=True, help="A line on stderr for each request.")
@json_option
def command(
    listen: str,
    token_file: Path | None,
    token: str | None,
    faults: tuple[str, ...],
    list_faults: bool,
    slow: str,
    processing_delay: str,
    timezone: str,
    devices: tuple[str, ...],
    default_kw: float,
    keep: Path | None,
    seed: int,
    period: str | None,
    log: bool,
    as_json: bool,
) -> int:
    from heliograph.clock import SystemClock
    from heliograph.rehearsal.sandbox import Sandbox
    from heliograph.rehearsal.sandbox_faults import KINDS, parse_fault

    if list_faults:
        if as_json:
            print_json({kind: fault.says for kind, fault in KINDS.items()})
        else:
            click.echo("\n".join(f"{kind:12} {fault.says}" for kind, fault in KINDS.items()))
        return 0
    if token_file is not None and token is not None:
        raise UsageError("--token and --token-file name two tokens", hint="Give one of them")
    now = SystemClock().now
    host, port = _address(listen)
    inverters, plants = _devices(devices, now(), default_kw)
    stop_after = None if period is None else _length("--for", period).total_seconds()
    sandbox = Sandbox(
        now,
        seed=seed,
        token=token or (_read(token_file) if token_file is not None else ""),
        host=host,
        port=port,
        timezone=_zone(timezone),
        processing_delay=_length("--processing-delay", processing_delay),
        slow=_length("--slow", slow),
        inverters=inverters,
        devices=plants,
        default_kw=default_kw,
        faults=[parse_fault(text, now()) for text in faults],
        keep=keep,
        log=(lambda line: click.echo(line, err=True)) if log else None,
    )
    with sandbox, stop_on_signals() as stop:
        if token_file is not None and not token_file.exists():
            _write(token_file, sandbox.token)
        if not host.startswith("127.") and host != "localhost":
            click.echo(f"{host} is not loopback: everybody who reaches it can read and write here.", err=True)
        made = token is None and token_file is None
        if as_json:
            print_json(_facts(sandbox, token_file, made))
        else:
            click.echo(_snippet(sandbox, token_file, made))
        stop.wait(stop_after)
    _summary(sandbox)
    return 1 if sandbox.violations else 0


# -- what is printed --------------------------------------------------------------------------------------------


def _snippet(sandbox: Sandbox, token_file: Path | None, made: bool) -> str:
    source = f'{{ file = "{token_file.resolve()}" }}' if token_file is not None else f'{{ env = "{TOKEN_ENV}" }}'
    lines = []
    if made:
        lines += ["# export " + TOKEN_ENV + "=" + sandbox.token, ""]
    lines += [
        "[uplink.redex]",
        f'base_url = "{sandbox.url}"',
        'spread   = "0s"',
        f"token    = {source}",
        "",
        "[uplink.drec]",
        f'base_url = "{sandbox.url}/api"',
        'spread   = "0s"',
        f"token    = {source}",
        "",
        f"# what is stored: {sandbox.url}/_sandbox/state",
    ]
    return "\n".join(lines)


def _facts(sandbox: Sandbox, token_file: Path | None, made: bool) -> dict[str, Any]:
    return {
        "url": sandbox.url,
        "redex": sandbox.url,
        "drec": f"{sandbox.url}/api",
        "state": f"{sandbox.url}/_sandbox/state",
        "faults": [str(fault) for fault in sandbox.faults],
        "token_file": token_file.resolve() if token_file is not None else None,
        "token": sandbox.token if made else None,
        "config": _snippet(sandbox, token_file, made),
    }


def _summary(sandbox: Sandbox) -> None:
    seen = ", ".join(f"{count} {kind}" for kind, count in sorted(sandbox.requests.items())) or "nobody asked"
    click.echo(f"{sandbox.url}: {seen}", err=True)
    if sandbox.faulted:
        click.echo("faults: " + ", ".join(f"{n} {kind}" for kind, n in sorted(sandbox.faulted.items())), err=True)
    broken = sandbox.violations
    for violation in broken[:SHOWN_VIOLATIONS]:
        click.echo(f"rule {violation.platform} {violation.rule}: {violation.text}  [{violation.request}]", err=True)
    if len(broken) > SHOWN_VIOLATIONS:
        click.echo(f"... and {len(broken) - SHOWN_VIOLATIONS} more broken rules", err=True)


# -- what is given ----------------------------------------------------------------------------------------------


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--listen {text} is not HOST:PORT", hint="Write it like 127.0.0.1:8600")
    return host or "127.0.0.1", int(port)


def _length(option: str, text: str) -> timedelta:
    try:
        return duration(text)
    except ValueError as exc:
        raise UsageError(f"{option} {text}: {exc}", hint='Write a number with its unit, such as "2s" or "36h"') from exc


def _zone(name: str) -> str:
    from zoneinfo import available_timezones

    if name and name not in available_timezones():
        near = difflib.get_close_matches(name, available_timezones(), 1)
        hint = f"Did you mean {near[0]}?" if near else 'Write an IANA name such as "Asia/Singapore"'
        raise UsageError(f"there is no time zone {name}", hint=hint)
    return name


def _read(path: Path) -> str:
    """ "" where the file is missing: the sandbox then makes a token and it is written."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--token-file {path}: {exc}", hint="Name a file that this user can read") from exc


def _write(path: Path, token: str) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(token + "\n")
    except OSError as exc:
        raise UsageError(f"--token-file {path}: {exc}", hint="Name a place that this user can write to") from exc


_Key = tuple[str, Callable[[str], Any]]


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)


# platform -> key on the command line -> (field of the device, its reader, which may raise ValueError)
_KEYS: dict[str, dict[str, _Key]] = {
    "redex": {"kw": ("capacity_kw", float), "connected": ("connected", date.fromisoformat)},
    "drec": {
        "kw": ("capacity_kw", float),
        "created": ("created_at", _moment),
        "commissioned": ("commissioned", _moment),
        "yield": ("yield_value", int),
    },
}


def _devices(texts: Sequence[str], now: datetime, default_kw: float) -> tuple[list[Inverter], list[Device]]:
    from heliograph.rehearsal.sandbox_drec import Device
    from heliograph.rehearsal.sandbox_redex_rules import Inverter

    inverters, plants = [], []
    for text in texts:
        platform, _, rest = text.partition(":")
        remote_id, *members = rest.split(",")
        if platform not in _KEYS or not remote_id:
            hint = "Write redex:STR1000000033862740 or drec:SG0042-roof,kw=50"
            raise UsageError(f"--device {text} names no platform and id", hint=hint)
        given: dict[str, Any] = {}
        for member in members:
            key, _, value = member.partition("=")
            if key not in _KEYS[platform]:
                raise UsageError(f"--device {text}: unknown key {key}", hint="Known: " + ", ".join(_KEYS[platform]))
            field, reader = _KEYS[platform][key]
            try:
                given[field] = reader(value)
            except ValueError as exc:
                raise UsageError(f"--device {text}: {value!r} does not fit {key}", hint=str(exc)) from exc
        if platform == "redex":
            inverters.append(Inverter(remote_id, **given))
        else:
            created = given.setdefault("created_at", now - timedelta(days=731))
            plants.append(Device(remote_id, **{"capacity_kw": default_kw, "commissioned": created} | given))
    return inverters, plants

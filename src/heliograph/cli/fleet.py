"""heliograph fleet: what many gateways would send to a broker, as figures or for real."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from heliograph.cli.options import json_option, print_json, print_table, stop_on_signals
from heliograph.cli.simulate import DEFAULT_MAP
from heliograph.core.durations import duration
from heliograph.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import ssl

    from heliograph.core.registers import MeterMap
    from heliograph.rehearsal.fleet import Plan
    from heliograph.rehearsal.fleet_bytes import Account, Figures
    from heliograph.rehearsal.fleet_send import Sent, Target

HELP = """Work out, or send, what many gateways would say over MQTT.

The product's own MQTT output runs on simulated meters, in simulated time, as in [mqtt] of the configuration. Without
--broker it prints what one gateway sends in a day; with it, so many gateways publish to that broker.

\b
  heliograph fleet --meters 4
  heliograph fleet --meters 4 --every 60s --dead-band 1 --heartbeat 15m
  heliograph fleet --gateways 1000 --broker mqtt://127.0.0.1 --hours 1 --speed 60
"""
# Gateways that are worked out in full; the others repeat them.
PATTERNS = 3


def _duration(_context: click.Context, option: click.Parameter, text: str) -> timedelta:
    try:
        return duration(text)
    except ValueError as exc:
        raise UsageError(f"--{option.name} {text}: {exc}", hint='Write a number with its unit, such as "10s"') from exc


@click.command("fleet", help=HELP)
@click.option("--gateways", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many.")
@click.option("--meters", type=click.IntRange(1, 50), default=1, show_default=True, help="Of each gateway.")
@click.option("--map", "name", default=DEFAULT_MAP, show_default=True, help="Their map.")
@click.option("--hours", type=click.FloatRange(0, 24 * 14, min_open=True), default=24.0, show_default=True,
              help="Of the gateways' time, from midnight on (or --from).")  # fmt: skip
@click.option("--from", "begin", metavar="HH:MM", default="00:00", show_default=True, help="Time of day of the start.")
@click.option("--day", metavar="DATE", default="2026-03-21", show_default=True, help="Date of the start.")
@click.option("--zone", metavar="IANA", default="Asia/Singapore", show_default=True, help="Where the sites are.")
@click.option("--poll", default="10s", show_default=True, callback=_duration, help="As [[bus]] every.")
@click.option("--every", default="10s", show_default=True, callback=_duration, help="As [mqtt] every.")
@click.option("--dead-band", type=click.FloatRange(0, 50), default=1.0, show_default=True, help="As [mqtt] dead_band.")
@click.option("--heartbeat", default="5m", show_default=True, callback=_duration, help="As [mqtt] heartbeat.")
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="As [mqtt] qos.")
@click.option("--root", default="heliograph", show_default=True, help="As [mqtt] root.")
@click.option("--home-assistant", is_flag=True, help="As [mqtt] home_assistant: announced there at each connect.")
@click.option("--sparkplug", metavar="GROUP", help="As [sparkplug] of that group, in place of [mqtt].")
@click.option("--only", metavar="NAME,NAME", help="Only topics that end so; as a bridge that names what goes out.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the clouds.")
@click.option("--broker", metavar="URL", help="mqtt://HOST[:PORT] or mqtts://; send it there.")
@click.option("--connections", type=click.IntRange(1, 2000), default=10, show_default=True,
              help="Shared by the gateways; as many as gateways: one each, as in a real fleet.")  # fmt: skip
@click.option("--speed", type=click.FloatRange(0), default=60.0, show_default=True,
              help="Seconds of the gateways in a real one; 0: as fast as the broker takes it.")  # fmt: skip
@click.option("--ca-file", type=click.Path(path_type=Path, exists=True), help="Authority of the broker's certificate.")
@click.option("--certificate-file", type=click.Path(path_type=Path, exists=True), help="Our own certificate.")
@click.option("--key-file", type=click.Path(path_type=Path, exists=True), help="Its key.")
@click.option("--username", help="At the broker.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True), help="Where its password stands.")
@json_option
def command(
    gateways: int,
    meters: int,
    name: str,
    hours: float,
    begin: str,
    day: str,
    zone: str,
    poll: timedelta,
    every: timedelta,
    dead_band: float,
    heartbeat: timedelta,
    qos: int,
    root: str,
    home_assistant: bool,
    sparkplug: str | None,
    only: str | None,
    seed: int,
    broker: str | None,
    connections: int,
    speed: float,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    username: str | None,
    password_file: Path | None,
    as_json: bool,
) -> int:
    from heliograph.rehearsal import fleet, fleet_bytes, fleet_send

    target = None
    if broker is not None:
        password = password_file.read_text(encoding="utf-8").strip() if password_file is not None else ""
        context = fleet_send.secured(ca_file, certificate_file, key_file) if broker.startswith("mqtts://") else None
        target = _target(broker, context, username or "", password)
    plan = fleet.Plan(
        _map(name),
        meters,
        _start(day, begin, zone),
        ZoneInfo(zone),
        poll=poll,
        every=every,
        dead_band=dead_band,
        heartbeat=heartbeat,
        qos=qos,
        root=root,
        home_assistant="homeassistant" if home_assistant else None,
        sparkplug=sparkplug,
        seed=seed,
    )
    span = timedelta(hours=hours)
    endings = tuple(f"/{ending}" for ending in only.split(",")) if only else ("",)
    patterns = [
        [one for one in fleet.speak(plan, number, span) if one.message.topic.endswith(endings)]
        for number in range(min(PATTERNS, gateways))
    ]
    account = fleet_bytes.account(patterns[0], span)
    if target is None:
        if as_json:
            print_json(_facts(plan, account, span))
        else:
            _show(plan, account, span)
        return 0
    with stop_on_signals() as stop:
        sent = fleet_send.send(target, plan, patterns, gateways, connections=connections, speed=speed, stop=stop)
    if as_json:
        print_json(_facts(plan, account, span) | {"sent": _sent(sent)})
    else:
        _told(gateways, span, sent, speed)
    if sent.trouble:
        click.echo(f"It did not go well: {sent.trouble}", err=True)
    return 69 if sent.trouble else 0


# -- what is printed ---------------------------------------------------------------------------------------------------


def _show(plan: Plan, account: Account, span: timedelta) -> None:
    click.echo(
        f"One gateway with {plan.meters} meter{'s' if plan.meters > 1 else ''} ({plan.map.name}) from"
        f" {plan.start.astimezone(plan.zone):%Y-%m-%d %H:%M} on, for {span / timedelta(hours=1):g} h;"
        f" every {plan.every.total_seconds():g} s, dead band {plan.dead_band:g} %,"
        f" heartbeat {plan.heartbeat.total_seconds():g} s, QoS {plan.qos}:"
    )
    busiest = max(account.hours, key=lambda hour: hour.up)
    calmest = min(account.hours, key=lambda hour: hour.up)
    columns = (
        ("calmest hour", calmest),
        ("busiest hour", busiest),
        ("all", account.total),
        ("at a connect", account.start),
    )
    rows: tuple[tuple[str, Callable[[Figures], int]], ...] = (
        ("messages", lambda one: one.messages),
        ("payload, bytes", lambda one: one.payload),
        ("MQTT to the broker, bytes", lambda one: one.up),
        ("MQTT back, bytes", lambda one: one.down),
        ("with TCP and TLS both ways, at most (estimate)", lambda one: one.estimate),
    )
    names = [title for title, _ in columns]
    print_table(("", *names), [(title, *(f"{of(one):,}" for _, one in columns)) for title, of in rows], right=names)
    click.echo(
        f"Retained topics: {account.retained}. Next: deploy/fleet/README.md says what to leave out, and what it costs."
    )


def _told(gateways: int, span: timedelta, sent: Sent, speed: float) -> None:
    rate = sent.messages / sent.seconds if sent.seconds else 0.0
    click.echo(
        f"{gateways} gateways over {sent.connections} connection{'s' if sent.connections > 1 else ''} said"
        f" {sent.messages:,} messages, {span / timedelta(hours=1):g} h, in {sent.seconds:.1f} s ({rate:,.0f}/s);"
        f" {sent.acknowledged:,} were acknowledged; {sent.up:,} bytes went, {sent.down:,} came."
    )
    if speed and sent.late > 1:
        click.echo(
            f"At the worst it was {sent.late:.1f} s behind its time: this computer or the broker was too slow for"
            f" --speed {speed:g}.",
            err=True,
        )


def _facts(plan: Plan, account: Account, span: timedelta) -> dict[str, Any]:
    def figures(one: Figures) -> dict[str, int]:
        return {
            "messages": one.messages,
            "payload_bytes": one.payload,
            "mqtt_up_bytes": one.up,
            "mqtt_down_bytes": one.down,
            "estimate_tcp_tls_bytes": one.estimate,
        }

    return {
        "map": plan.map.name,
        "meters": plan.meters,
        "hours": span / timedelta(hours=1),
        "per_hour": [figures(one) for one in account.hours],
        "total": figures(account.total),
        "at_connect": figures(account.start),
        "retained_topics": account.retained,
        "messages_by_topic": dict(sorted(account.quantities.items(), key=lambda one: (-one[1], one[0]))),
    }


def _sent(sent: Sent) -> dict[str, Any]:
    return {
        "connections": sent.connections,
        "messages": sent.messages,
        "acknowledged": sent.acknowledged,
        "up_bytes": sent.up,
        "down_bytes": sent.down,
        "seconds": round(sent.seconds, 3),
        "late_seconds": round(sent.late, 3),
        "trouble": sent.trouble,
    }


# -- what is given -----------------------------------------------------------------------------------------------------


def _map(name: str) -> MeterMap:
    from heliograph import library

    try:
        library.find(name)
    except ConfigError as exc:
        raise UsageError(exc.message, hint=exc.hint) from exc
    return library.load(name).map


def _start(day: str, begin: str, zone: str) -> datetime:
    try:
        local = datetime.combine(date.fromisoformat(day), datetime.strptime(begin, "%H:%M").time(), ZoneInfo(zone))  # noqa: DTZ007 (only its time)
    except ZoneInfoNotFoundError as exc:
        raise UsageError(
            f"--zone {zone}: there is no such zone", hint='Write an IANA name such as "Asia/Singapore"'
        ) from exc
    except ValueError as exc:
        raise UsageError(f"--day {day} --from {begin}: {exc}", hint="Write them as 2026-03-21 and 05:30") from exc
    return local.astimezone(UTC)


def _target(broker: str, context: ssl.SSLContext | None, username: str, password: str) -> Target:
    from heliograph.rehearsal.fleet_send import Target

    url = urlsplit(broker)
    usual = {"mqtt": 1883, "mqtts": 8883}
    try:
        port = url.port
    except ValueError:
        port = 0
    if url.scheme not in usual or not url.hostname or port == 0 or url.username is not None:
        raise UsageError(
            f"{broker} is no broker's address",
            hint="Write mqtt://HOST[:PORT] or mqtts://HOST[:PORT]; a user by --username and --password-file",
        )
    return Target(url.hostname, port or usual[url.scheme], context, username, password)

"""heliograph check: is the configuration fit to run? Starts nothing, writes nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from heliograph.app import BROKERS, App, drec_warning
from heliograph.cli.options import app_of, config_option, json_option, print_json
from heliograph.core.ceiling import LOOKED_AT, TOO_MANY, Plant, ceiling_wh
from heliograph.core.errors import StoreError
from heliograph.core.line import parse
from heliograph.core.site import Meter, cautions
from heliograph.work.change import waiting


@click.command("check", help="Check the configuration, the maps and the secrets; start nothing.")
@config_option
@json_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration, for editors.")
def command(config: Path | None, as_json: bool, schema: bool) -> int:
    if schema:
        from heliograph.settings import Settings

        print_json(Settings.model_json_schema())
        return 0
    app = app_of(config, "if they can be seen")
    settings = app.config.settings
    facts = {
        "path": app.config.path,
        "site": settings.site.id,
        "timezone": settings.site.timezone,
        "buses": [bus.id for bus in settings.bus],
        "meters": [
            {
                "id": meter.id,
                "map": meter.map.name,
                "status": meter.map.status,
                "production": meter.production,
                "reports": {report.uplink: report.remote_id for report in meter.reports},
            }
            for meter in app.meters
        ],
        "clock_trusted": app.clock.trusted(),
    }
    warnings, notes = warnings_of(app), _alone(app)
    if as_json:
        print_json({**facts, "warnings": warnings, "notes": notes})
        return 0
    click.echo(
        f"{app.config.path} is fit to run: site {settings.site.id}, days end at midnight in {settings.site.timezone}"
    )
    for meter in app.meters:
        reports = ", ".join(f"{report.uplink} as {report.remote_id}" for report in meter.reports) or "nobody"
        click.echo(
            f"  {meter.id}: unit {meter.unit} on {meter.bus}, map {meter.map.name} ({meter.map.status}),"
            f" {meter.production} is production, reports to {reports}"
        )
    for line in _outputs(app):
        click.echo(f"  {line}")
    for note in notes:
        click.echo(f"  {note}")
    for warning in warnings:
        click.echo(f"  ! {warning}")
    if not app.clock.trusted():
        click.echo(
            "  The clock is not synchronised yet: readings are kept, but no day is closed or delivered before it is."
        )
    click.echo("Next: heliograph read METER compares with the display; heliograph run starts the gateway.")
    return 0


def warnings_of(app: App) -> list[str]:
    """What is no error, but may surprise: what the maps know of the devices, and what will be in the way of D-REC."""
    of_maps = [f"{meter.id}: {words}" for meter in app.meters for words in cautions(meter)]
    return of_maps + _changed(app) + _of_drec(app) + _of_outputs(app) + _of_brokers(app)


def _outputs(app: App) -> list[str]:
    """Where it will be shown; nothing is tried, for the gateway starts without them too."""
    settings = app.config.settings
    brokers = {"mqtt": settings.mqtt, "sparkplug": settings.sparkplug}
    found = [
        f"{name}: {one.url} as {one.username or 'a client without a user name'}"
        for name, one in brokers.items()
        if one is not None
    ]
    found += [f"metrics: http://{settings.metrics.listen}/metrics"] if settings.metrics is not None else []
    found += [f"web: http://{settings.web.listen}"] if settings.web is not None else []
    return [f"{line}; status tells after the start whether it is up" for line in found]


def _of_outputs(app: App) -> list[str]:
    metrics, web = app.config.settings.metrics, app.config.settings.web
    found = []
    if metrics is not None and metrics.readable:
        found.append(
            f"metrics.listen = {metrics.listen}: everybody who reaches this port can read the metrics, without a"
            " password. Let a firewall or a VPN choose who does, or listen on 127.0.0.1."
        )
    if web is not None and web.readable:
        found.append(
            f"web.listen = {web.listen}: other computers reach it by plain HTTP, so everybody on the way can read the"
            " token and what is asked. Listen on 127.0.0.1 and put a reverse proxy with TLS before it, or go over"
            " ssh -L (deploy/REST.md)."
        )
    return found


def _alone(app: App) -> list[str]:
    """No warning, for that is how the device is; but whoever wonders why nothing else can read it finds it here."""
    return [
        f"{meter.id}: the device serves one TCP client, and that is this gateway while it runs"
        + (", but for the time between two rounds" if meter.map.close_after_poll else ": nothing else can read it")
        for meter in app.meters
        if meter.map.single_client and parse(app.bus_settings(meter.bus).url).way != "serial"
    ]


def _changed(app: App) -> list[str]:
    """Counters that would be read in another way than what is booked of them: told before the gateway is restarted."""
    try:
        with closing(app.reader()) as store:
            return waiting(app.meters, store)
    except StoreError:
        return []  # nothing was metered yet, or status has more to say about it


def _of_drec(app: App) -> list[str]:
    """The platform's own figures are known only while the gateway runs."""
    if (drec := app.config.settings.uplink.drec) is None:
        return []
    found = [f"uplink.drec: {words}" if (words := drec_warning(drec)) else ""]
    found += [_above(app, meter) for meter in app.meters if any(report.uplink == "drec" for report in meter.reports)]
    return [words for words in found if words]


def _of_brokers(app: App) -> list[str]:
    """Many sites have a broker without TLS; whoever chose that should have been told."""
    found = []
    for table in BROKERS:
        broker = getattr(app.config.settings, table)
        if broker is not None and broker.readable:
            found.append(
                f"{table}: mqtt:// lets everybody on the way to {broker.host} read the password. Use mqtts://, or keep"
                " that network to yourself and give this user no more rights than it needs."
            )
    return found


def _above(app: App, meter: Meter) -> str:
    """Whether the meter's days exceed what D-REC takes, if the device is registered with rated_kw."""
    try:
        with closing(app.reader()) as store:
            days = store.days.all(meter.id)[-LOOKED_AT:] if meter.id in store.readings.meters() else []
    except StoreError:
        return ""  # nothing was metered yet, or status has more to say about it
    plant, now = Plant(meter.rated_kw), app.clock.now()
    above = sum(day.period_wh >= ceiling_wh(plant, day.opening.at, day.closing.at, now) for day in days)
    if above < TOO_MANY:
        return ""
    return (
        f"{meter.id}: {above} of the last {len(days)} days are above what D-REC takes for {meter.rated_kw:g} kW a day; "
        "they are sent together with others. Check rated_kw, and capacity and yieldValue of the device there."
    )

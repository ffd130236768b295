"""heliograph check: is the configuration fit to run? Starts nothing, writes nothing."""

from __future__ import annotations

from pathlib import Path

import click

from heliograph.cli.options import app_of, config_option, json_option, print_json


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
    if as_json:
        print_json(facts)
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
    if not app.clock.trusted():
        click.echo(
            "  The clock is not synchronised yet: readings are kept, but no day is closed or delivered before it is."
        )
    click.echo("Next: heliograph read METER compares with the display; heliograph run starts the gateway.")
    return 0

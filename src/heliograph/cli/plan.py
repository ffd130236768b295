"""heliograph plan: the requests each meter is read with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from heliograph.cli.options import a_meter, app_of, config_option, json_option, print_json, print_table


@click.command("plan", help="Print the requests each meter is read with, and their time on the wire.")
@click.argument("meter", required=False)
@config_option
@json_option
def command(meter: str | None, config: Path | None, as_json: bool) -> int:
    from heliograph.core.plan import ANSWER_CHARACTERS, REQUEST_CHARACTERS, Learned, wire_time
    from heliograph.work.poll import PolledBus

    app = app_of(config)
    only = a_meter(app, meter) if meter else None
    shown: list[dict[str, Any]] = []
    for one in app.meters:
        if only in (None, one.id):
            line = PolledBus(one.bus, app.bus_settings(one.bus).url, [one], partial(app.open_bus, one.bus))
            cost = line.cost(one)
            requests = [
                {
                    "function": block.function,
                    "address": block.address,
                    "count": block.count,
                    "bytes": REQUEST_CHARACTERS + ANSWER_CHARACTERS + 2 * block.count,
                    "milliseconds": round(wire_time(block, cost) * 1000, 1),
                    "quantities": [register.quantity for register in block.registers],
                }
                for block in line.plan(one, Learned())
            ]
            every = one.every.total_seconds()
            shown.append({"meter": one.id, "bus": one.bus, "unit": one.unit, "every_s": every, "requests": requests})
    if as_json:
        print_json(shown)
        return 0
    for entry in shown:
        total = sum(request["milliseconds"] for request in entry["requests"])
        where = f"{entry['meter']}: unit {entry['unit']} on {entry['bus']}"
        click.echo(f"{where}, every {entry['every_s']:g} s, {total:.0f} ms a round")
        print_table(
            ("request", "bytes", "ms", "quantities"),
            [
                (
                    f"{request['function']} 0x{request['address']:04X}+{request['count']}",
                    str(request["bytes"]),
                    f"{request['milliseconds']:.1f}",
                    ", ".join(request["quantities"]),
                )
                for request in entry["requests"]
            ],
            right=("bytes", "ms"),
        )
    click.echo("bytes: request and answer together; ms: with silences, pauses and 10 ms to think.")
    return 0

"""heliograph doctor: why does a line not work, and what is to be done first?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.cli.options import app_of, config_option, json_option, print_json, print_table
from heliograph.core.errors import BusError, ConfigError, UsageError

if TYPE_CHECKING:
    from heliograph.app import App
    from heliograph.core.diagnosis import Finding, Gateway, Observations
    from heliograph.core.registers import MeterMap
    from heliograph.core.site import Meter
    from heliograph.work.diagnose import Subject, Told

HELP = """Find out why a line does not work, and say what to do first.

WHAT is a meter or a bus of the configuration, or the url of a line; with a single meter it may be left out. Only
reads are sent. Where nothing answers, other speeds, parities and unit ids are tried: that takes some minutes.

\b
  heliograph doctor roof
  heliograph doctor "serial:///dev/ttyUSB0?baudrate=9600" --unit 1 --map eastron-sdm630
"""

DOING = {
    "listen": "listening whether anybody else asks",
    "knock": "asking the unit",
    "echo": "asking again with the echo expected, or not",
    "settings": "trying other speeds and parities",
    "units": "asking other unit ids",
    "identity": "asking what device it is",
    "content": "reading all that the map names",
    "series": "asking many times, for times and losses",
    "listen again": "listening longer: something strange was heard",
}


@click.command("doctor", help=HELP)
@click.argument("what", required=False, metavar="[METER|BUS|URL]")
@click.option("--unit", type=click.IntRange(0, 255), help="For a url: the unit id.  [default: the map's, or 1]")
@click.option("--map", "map_name", metavar="NAME", help="For a url: the map that should fit.")
@click.option("--details", is_flag=True, help="Show the evidence: questions, answer times, what was heard.")
@config_option
@json_option
def command(
    what: str | None, unit: int | None, map_name: str | None, details: bool, config: Path | None, as_json: bool
) -> int:
    from heliograph.app import open_bus
    from heliograph.core.diagnosis import diagnose
    from heliograph.work.diagnose import budget, observe

    if what is not None and "://" in what:
        subjects, gateway = [_of_url(what, unit, map_name)], None
    else:
        if unit is not None or map_name is not None:
            raise UsageError("--unit and --map are for a url", hint="A meter's unit and map stand in its [[meter]].")
        app = app_of(config)
        meters = _meters(app, what)
        subjects, gateway = [_of_meter(app, meter) for meter in meters], _gateway(app, meters[0].bus)
    shown, worst = [], 0
    for subject in subjects:
        likely, most = budget(subject)
        if gateway is None:
            click.echo(
                f"{subject.url}, unit {subject.unit}: about {likely:.0f} s where it answers,"
                f" up to {max(1, round(most / 60))} min where nothing does.",
                err=True,
            )
        with _progress() as told:
            observations = observe(subject, open_bus, gateway=gateway, maps=_maps, told=told)
        findings = diagnose(observations)
        if any(not one.advice for one in findings):
            worst = _exit_code(findings)
        shown.append(_facts(observations, findings))
        if not as_json:
            _show(observations, findings, details=details)
    if as_json:
        print_json(shown)
    return worst


def _exit_code(findings: Sequence[Finding]) -> int:
    """69 where nothing is reached, 1 where something answers that needs attention."""
    unreached = {
        "no-port", "no-permission", "in-use", "refused", "unreachable", "silence", "silent-unit", "night", "garbage",
        "another-client",
    }  # fmt: skip
    return BusError.exit_code if findings[0].code in unreached else 1


# -- what is looked at --------------------------------------------------------------------------------------------


def _meters(app: App, what: str | None) -> list[Meter]:
    """The meter of that name, or the meters of that bus."""
    import difflib

    if what is None:
        if len(app.meters) == 1:
            return list(app.meters)
        raise UsageError("which meter?", hint=f"Meters: {', '.join(meter.id for meter in app.meters)}")
    if found := [meter for meter in app.meters if meter.id == what] or [m for m in app.meters if m.bus == what]:
        return found
    names = [*(meter.id for meter in app.meters), *(bus.id for bus in app.config.settings.bus)]
    near = difflib.get_close_matches(what, names, 1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names)}; a url has :// in it."
    raise ConfigError(f"there is no meter and no bus {what}", hint=hint)


def _of_meter(app: App, meter: Meter) -> Subject:
    from heliograph.work.diagnose import Subject

    return Subject(
        app.bus_settings(meter.bus).url,
        meter.unit,
        meter.timing,
        meter.map,
        meter.rated_kw,
        meter.production,
        meter.factors,
        _dark(app),
        tuple(other.unit for other in app.meters if other.bus == meter.bus and other.id != meter.id),
    )


def _dark(app: App) -> bool:
    """Whether the sun is surely down; False where the site's place is not known."""
    from datetime import timedelta

    from heliograph.core.daylight import dark

    position, now, span = app.rules.position, app.clock.now(), timedelta(minutes=10)
    return position is not None and dark(position, now - span, now) >= span


def _of_url(url: str, unit: int | None, name: str | None) -> Subject:
    from heliograph import library
    from heliograph.core.line import parse
    from heliograph.core.registers import Timing
    from heliograph.work.diagnose import Subject

    parse(url)
    if name is None:
        return Subject(url, 1 if unit is None else unit, Timing(timeout=0.5))
    library.find(name)
    map = library.load(name).map
    return Subject(url, map.unit if unit is None else unit, map.timing, map)


def _maps() -> list[MeterMap]:
    """All maps that can be used; a broken one of the site's own is `check`'s affair."""
    from heliograph import library

    found = []
    for name in library.names():
        with contextlib.suppress(ConfigError):
            found.append(library.load(name).map)
    return found


def _gateway(app: App, bus: str) -> Gateway | None:
    """What the running gateway tells about its line, or None where none runs."""
    from heliograph import control
    from heliograph.core.diagnosis import Gateway

    seen: dict[str, Any] | None = control.ask(app.socket, "/api/v1/status")
    if seen is None:
        return None
    errors = tuple(
        f"{meter['id']}: {meter['error']}" for meter in seen["meters"] if meter["bus"] == bus and meter.get("error")
    )
    return Gateway(seen.get("buses", {}).get(bus, {}), errors)


# -- what is shown ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress() -> Iterator[Told]:
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, part: bar.update(task, description=DOING[what], completed=part)


def _show(o: Observations, findings: Sequence[Finding], *, details: bool) -> None:
    first, *rest = findings
    click.echo(first.sentence)
    if first.next:
        click.echo(f"  {first.next}")
    if rest:
        click.echo("\nAfter that:" if not first.advice else "\nNothing is broken by it, but:")
        for one in rest:
            click.echo(f"- {one.sentence}")
            click.echo(f"  {one.next}")
    if any(one.code == "slow" for one in findings) or details:
        _times(o)
    if details:
        _details(o)


def _times(o: Observations) -> None:
    """Answer times as a small histogram, the time-out among them."""
    from heliograph.core.diagnosis import answer_times, histogram, ms, percentile

    times = answer_times(o)
    if not times:
        return
    click.echo(
        f"\n{len(times)} answers: half within {ms(percentile(times, 0.5))}, 95 % within {ms(percentile(times, 0.95))},"
        f" the slowest {ms(times[-1])}; time-out {ms(o.timing.timeout)}"
    )
    most = max(count for _, _, count in histogram(times))
    for low, high, count in histogram(times):
        late = "  too late" if low >= o.timing.timeout and count else ""
        click.echo(f"  {ms(low):>7} to {ms(high):>7}  {'#' * round(30 * count / most):<30} {count}{late}")


def _details(o: Observations) -> None:
    click.echo("")
    asked = [("the unit", one) for one in o.knocks]
    asked += [("with the other echo", one) for one in o.echo_off]
    asked += [(f"{one.line.baudrate} {one.line.parity}", one.tried) for one in o.elsewhere]
    asked += [("another unit", one) for one in o.units if one.outcome != "silent"]
    print_table(
        ("question", "unit", "registers", "outcome", "remark"),
        [(what, str(one.unit), str(one.count), one.outcome, one.said) for what, one in asked],
        right=("unit", "registers"),
    )
    if quiet := sum(one.outcome == "silent" for one in o.units):
        click.echo(f"{quiet} other units were silent.")
    if o.series:
        rows = []
        for count in sorted({one.count for one in o.series}):
            same = [one.outcome for one in o.series if one.count == count]
            rows.append((str(count), str(len(same)), *(str(same.count(w)) for w in ("answered", "garbled", "silent"))))
        print_table(("registers", "asked", "answered", "damaged", "silent"), rows, right=("registers", "asked"))
    for device in o.devices:
        click.echo(device.told)
    for heard in o.heard[:8]:
        click.echo(f"heard while nobody asked: {heard[:16].hex(' ')}{' ...' if len(heard) > 16 else ''}")
    content = o.contents.get(o.map.order) if o.map is not None else None
    if content is not None:
        click.echo(", ".join(f"{name} {value}" for name, value in content.values.items()))
        for name, why in content.absent.items():
            click.echo(f"no {name}: {why}")


def _facts(o: Observations, findings: Sequence[Finding]) -> dict[str, Any]:
    from heliograph.core.diagnosis import answer_times, bad, percentile

    times = answer_times(o)
    return {
        "url": o.url,
        "unit": o.unit,
        "map": o.map.name if o.map is not None else None,
        "findings": [asdict(one) for one in findings],
        "asked": len(o.series),
        "lost": bad(o.series),
        "answer_times_s": {
            name: round(percentile(times, share), 4) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
        }
        if times
        else None,
        "devices": [asdict(one) for one in o.devices],
        "listened_s": o.listened,
        "heard": [heard.hex() for heard in o.heard],
        "knocks": [asdict(one) for one in o.knocks],
        "elsewhere": [
            {"baudrate": one.line.baudrate, "parity": one.line.parity, **asdict(one.tried)} for one in o.elsewhere
        ],
        "units": [asdict(one) for one in o.units if one.outcome != "silent"],
    }

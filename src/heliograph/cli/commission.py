"""heliograph commission: goes over a new site with the installer, and ends green or with a list."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph import __version__
from heliograph.cli.line import LONGEST_WAIT, line_of
from heliograph.cli.options import a_meter, app_of, config_option, json_option, print_json
from heliograph.core.commissioning import Check, Result, green
from heliograph.core.delivery import Registered, Roll, Verdict
from heliograph.core.errors import ConfigError, HeliographError, UsageError

if TYPE_CHECKING:
    from heliograph.app import App
    from heliograph.core.commissioning import Told
    from heliograph.core.registers import MeterMap
    from heliograph.core.site import Meter, Report
    from heliograph.ports import Uplink
    from heliograph.work.commission import Found, Means

HELP = """Go over a new site with the installer: meters, direction, clock, platforms, a rehearsed delivery.

Ends green (exit 0) or with a list of what is to be done (exit 1). By day only: at night nobody can tell which way the
current transformers sit. Works while the gateway runs and when it does not; nothing is stored, and nothing is sent to
a platform but questions.

On a terminal it asks what only a person can see. Without one, say it beforehand:

\b
  --answer roof.display=yes      the display shows the figure that is read
  --answer roof.inverter-kw=41   what the inverters' own displays show now
  --answer sun=yes               the sun is on the panels (where the position is not configured)
  --answer time=yes              the clock shows the right local time (likewise)
"""

MARKS: dict[Result, tuple[str, str]] = {
    "green": ("✓", "green"),
    "attention": ("!", "yellow"),
    "wrong": ("✗", "red"),
    "unknown": ("?", "cyan"),
}
WORDS: dict[Result, str] = {
    "green": "in order",
    "attention": "needs attention",
    "wrong": "wrong",
    "unknown": "could not be checked",
}
QUESTIONS = ("display", "inverter-kw", "sun", "time")


@click.command("commission", help=HELP)
@click.argument("meters", nargs=-1, metavar="[METER]...")
@click.option("--answer", "answers", multiple=True, metavar="QUESTION=ANSWER", help="What only a person can see.")
@click.option("--watch", default="30s", show_default=True, metavar="DURATION",
              help="How long a meter is watched for the counter that rises.")  # fmt: skip
@click.option("--by", "installer", default="", metavar="NAME", help="Who commissions; stands in the report.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a page to print and sign.")
@config_option
@json_option
def command(
    meters: tuple[str, ...],
    answers: tuple[str, ...],
    watch: str,
    installer: str,
    report: Path | None,
    config: Path | None,
    as_json: bool,
) -> int:
    from heliograph.core.durations import duration
    from heliograph.logs import set_up
    from heliograph.work.commission import commission

    app = app_of(config)
    ids = [a_meter(app, name) for name in meters] or [meter.id for meter in app.meters]
    chosen = [meter for meter in app.meters if meter.id in ids]
    try:
        span = duration(watch)
    except ValueError as error:
        raise UsageError(f"--watch {watch}: {error}", hint="Write a number with its unit, such as 30s or 5m") from error
    guide = Guide(_answers(answers, ids), quiet=as_json)
    set_up("warning")  # what a device refuses is told by the checks
    try:
        with _means(app, chosen) as means:
            found = commission(chosen, _configuration(app, chosen), means, app.clock, app.rules, guide, span)
    except (KeyboardInterrupt, click.Abort):
        _stopped(guide.told, quiet=as_json)
        return 130
    facts = as_facts(app, chosen, found, installer)
    if report is not None:
        from heliograph.cli.commission_page import page

        try:
            report.write_text(page(facts), encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--report {report}: {error.strerror}", hint="Name a place that can be written."
            ) from error
    if as_json:
        print_json(facts)
    else:
        _end(found.checks, report)
    return 0 if green(found.checks) else 1


def _answers(texts: Sequence[str], meters: Sequence[str]) -> dict[str, str]:
    known = [name for name in QUESTIONS if name in ("sun", "time")]
    known += [f"{meter}.{name}" for meter in meters for name in ("display", "inverter-kw")]
    found = {}
    for text in texts:
        name, _, answer = text.partition("=")
        if name not in known or not answer:
            raise UsageError(f"--answer {text} answers no question", hint=f"There are: {', '.join(known)}")
        if name.endswith("inverter-kw"):
            try:
                float(answer)
            except ValueError as error:
                raise UsageError(f"--answer {text}: {answer} is not a number", hint="Write kW, such as 41.5") from error
        elif answer not in ("yes", "no"):
            raise UsageError(f"--answer {text}: {answer} is no answer", hint=f"Write {name}=yes or {name}=no")
        found[name] = answer
    return found


# -- the terminal -----------------------------------------------------------------------------------------------


@dataclass
class Guide:
    """Shows each step as it is known, and asks where somebody is there to be asked."""

    given: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False
    told: list[Check] = field(default_factory=list)
    _about: str = ""

    def tell(self, check: Check) -> None:
        self.told.append(check)
        if self.quiet:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        # In a pipe nothing is folded: whoever reads it there wants one line a check.
        console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 400)
        heading, self._about = check.about != self._about, check.about
        mark, colour = MARKS[check.result]
        line = Table.grid(padding=(0, 1))
        line.add_column(width=2, justify="right")
        line.add_column(width=13)
        line.add_column(overflow="fold")
        line.add_row(Text(mark, f"bold {colour}"), check.step, check.says)
        if check.todo:
            line.add_row("", "", Text(f"→ {check.todo}", "" if check.result == "green" else colour))
        with console.capture() as drawn:
            if heading:
                console.print(Text(f"\n{check.about}" if self.told[1:] else check.about, "bold"))
            console.print(line)
        for drawn_line in drawn.get().splitlines():  # rich fills the last column up with blanks
            click.echo(drawn_line.rstrip())

    def ask(self, key: str, question: str) -> str | None:
        if key in self.given or not sys.stdin.isatty() or not sys.stderr.isatty() or self.quiet:
            return self.given.get(key)
        if key.endswith("inverter-kw"):
            told = click.prompt(f"  > {question} (Enter: skip)", default="", show_default=False, err=True)
            return str(told).strip() or None
        choice = click.Choice(["y", "n", ""], case_sensitive=False)
        told = click.prompt(
            f"  > {question} y/n (Enter: skip)",
            type=choice,
            default="",
            show_choices=False,
            show_default=False,
            err=True,
        )
        return {"y": "yes", "n": "no"}.get(str(told).lower())

    def busy(self, what: str) -> AbstractContextManager[object]:
        if self.quiet or not sys.stderr.isatty():
            return contextlib.nullcontext()
        from rich.console import Console

        return Console(stderr=True).status(what)


def _end(checks: Sequence[Check], report: Path | None) -> None:
    click.echo()
    if green(checks):
        click.echo(click.style(f"Green: all {len(checks)} checks are in order.", fg="green", bold=True))
    else:
        _list(checks)
    if report is not None:
        click.echo(f"The report stands in {report}; print it, sign it, and put it into the site's file.")


def _stopped(checks: Sequence[Check], *, quiet: bool) -> None:
    """Half a commissioning is none: no report, and no data for scripts."""
    click.echo(err=True)
    click.echo("Stopped before the end: the site is not commissioned, and no report was written.", err=True)
    if not quiet and checks:
        click.echo("So far:")
        _list(checks)


def _list(checks: Sequence[Check]) -> None:
    left = [check for check in checks if check.result != "green"]
    counts = [
        f"{count} {_words(r, count)}" for r in WORDS if r != "green" and (count := sum(c.result == r for c in left))
    ]
    told = f"; {', '.join(counts)}:" if counts else "."
    click.echo(f"{len(checks) - len(left)} of {len(checks)} checks are in order{told}")
    for number, check in enumerate(left, 1):
        click.echo(f"  {number}. {check.about}, {check.step}: {check.todo or check.says}")


def _words(result: Result, count: int) -> str:
    return "need attention" if result == "attention" and count > 1 else WORDS[result]


# -- the site -----------------------------------------------------------------------------------------------------


def _configuration(app: App, meters: Sequence[Meter]) -> list[Check]:
    from heliograph.cli.check import warnings_of
    from heliograph.core.site import cautions

    # What is true of every device of its kind is to be known, and cannot be put right.
    known = {f"{meter.id}: {words}" for meter in app.meters for words in cautions(meter)}
    found = [
        Check("configuration", "site", "attention", warning, "See: heliograph check", "configuration")
        for warning in warnings_of(app)
        if warning not in known
    ]
    ours = [warning for warning in sorted(known) if warning.partition(": ")[0] in {meter.id for meter in meters}]
    for meter in meters:
        url = app.bus_settings(meter.bus).url
        if "/dev/ttyUSB" in url or "/dev/ttyACM" in url:
            says = f"The port of {meter.bus} has a name that changes when a plug moves or a second adapter comes."
            todo = "Take its name from: ls /dev/serial/by-id"
            found.append(Check("configuration", meter.id, "attention", says, todo, "port-name"))
        if not meter.reports:
            says = "It reports to nobody: its days are kept, and never delivered."
            todo = "Add report_as, or leave it so if that is meant."
            found.append(Check("configuration", meter.id, "attention", says, todo, "reports-nowhere"))
        if meter.map.status == "unverified":
            says = f"No device ever confirmed the map {meter.map.name}."
            todo = "Compare every figure below with the display, and tell us."
            found.append(Check("configuration", meter.id, "attention", says, todo, "map-unverified"))
    if not found:
        says = f"{app.config.path} is fit to run; {len(app.meters)} meter{'s' * (len(app.meters) > 1)}."
        found.append(Check("configuration", "site", "green", says))
    return found + [Check("to know", "site", "green", warning) for warning in ours]


@contextmanager
def _means(app: App, meters: Sequence[Meter]) -> Iterator[Means]:
    """Through the running gateway where there is one, for then line and tokens are its own; else directly."""
    from heliograph import control
    from heliograph.work.commission import Box, Means, sight
    from heliograph.work.poll import PolledBus, read_once

    status = control.ask(app.socket, "/api/v1/status")
    rehearse = partial(_rehearse, app)
    if status is not None:
        box = Box(True, status["clock_trusted"], status["storage"])

        def told(meter: Meter) -> Told:
            return sight(line_of(app, meter.bus)[0], meter, _maps())

        yield Means(partial(_asked, app), told, partial(_asked_up, app), rehearse, (), box, app.data_dir)
        return
    with ExitStack() as stack:
        lines = {}
        for bus in {meter.bus for meter in meters}:
            on_it = [meter for meter in meters if meter.bus == bus]
            lines[bus] = PolledBus(bus, app.bus_settings(bus).url, on_it, partial(app.open_bus, bus))
            stack.callback(lines[bus].close)
        uplinks = {one.name: one for one in app.uplinks(remembered=False)}
        for uplink in uplinks.values():
            stack.callback(uplink.close)

        def look(meter: Meter, everything: bool) -> Mapping[str, Any]:
            return read_once(lines[meter.bus], meter, app.clock, everything)

        def seen(meter: Meter) -> Told:
            return sight(lines[meter.bus].bus(), meter, _maps())

        def look_up(name: str, remote_ids: Sequence[str]) -> tuple[Roll, datetime | None]:
            return uplinks[name].look_up(remote_ids), uplinks[name].token_until()

        box = Box(False, app.clock.trusted())
        yield Means(look, seen, look_up, rehearse, tuple(uplinks.values()), box, app.data_dir)


def _maps() -> list[MeterMap]:
    """Every map that can be read; one that cannot is told by: heliograph map check"""
    from heliograph import library

    found = []
    for name in library.names():
        with contextlib.suppress(ConfigError):
            found.append(library.load(name).map)
    return found


def _asked(app: App, meter: Meter, everything: bool) -> Mapping[str, Any]:
    from heliograph import control

    # Read now: what was polled last is of another moment, and rises by steps of its own.
    question = f"/api/v1/meters/{meter.id}/{'all' if everything else 'now'}"
    answer: Mapping[str, Any] | None = control.ask(app.socket, question, timeout=LONGEST_WAIT)
    if answer is None:
        raise HeliographError(
            f"the running gateway does not answer for {meter.id}",
            hint="heliograph status says why; try again in a minute",
        )
    return answer


def _asked_up(app: App, name: str, remote_ids: Sequence[str]) -> tuple[Roll, datetime | None]:
    from heliograph import control

    answer = control.ask(app.socket, f"/api/v1/uplinks/{name}/look-up", {"devices": list(remote_ids)}, timeout=180)
    if answer is None:
        hint = "Was the gateway restarted since this version was installed? systemctl restart heliograph"
        return Roll(trouble=Verdict("due", "gateway", "the running gateway does not answer", hint)), None
    told, until = answer["trouble"], answer["token_until"]
    trouble = told and Verdict("due", told["rule"], told["text"], told["remedy"], token=told["token"])
    return (
        Roll(tuple(Registered(**one) for one in answer["devices"]), trouble),
        datetime.fromisoformat(until) if until else None,
    )


def _rehearse(app: App, meter: Meter, report: Report) -> str:
    """A stand-in platform in this process; the uplink is set up as the site has it, but for address and token."""
    from heliograph.rehearsal.sandbox import Sandbox
    from heliograph.rehearsal.sandbox_drec import Device
    from heliograph.work.commission import rehearse

    long_ago = app.clock.now() - timedelta(days=731)
    sandbox = Sandbox(
        app.clock.now,
        timezone=app.config.settings.site.timezone,
        processing_delay=timedelta(0),
        devices=[Device(report.remote_id, meter.rated_kw, long_ago, long_ago)],
    )
    base = {"redex": "", "drec": "/api"}[report.uplink]
    with sandbox, tempfile.TemporaryDirectory(prefix="heliograph-rehearsal-") as folder:
        token = Path(folder) / "token"
        token.write_text(sandbox.token, encoding="ascii")
        uplink: Uplink = app.rehearsal(report.uplink, sandbox.url + base, token)
        try:
            trouble = rehearse(uplink, meter, report, app.clock, app.rules.zone)
        finally:
            uplink.close()
        return trouble or "; ".join(one.text for one in sandbox.violations[:3])


def as_facts(app: App, meters: Sequence[Meter], found: Found, installer: str) -> dict[str, Any]:
    """Everything, for scripts and for the report; its fields are a promise."""
    site = app.config.settings.site
    return {
        "site": site.id,
        "timezone": site.timezone,
        "at": app.clock.now(),
        "by": installer,
        "software": __version__,
        "green": green(found.checks),
        "meters": [_meter_facts(app, meter, found) for meter in meters],
        "checks": [asdict(check) for check in found.checks],
    }


def _meter_facts(app: App, meter: Meter, found: Found) -> dict[str, Any]:
    look = found.looks.get(meter.id)
    order = [register.quantity for register in meter.map.registers]
    values = sorted(look.values.items(), key=lambda pair: order.index(pair[0])) if look is not None else []
    return {
        "id": meter.id,
        "bus": app.bus_settings(meter.bus).url,
        "unit": meter.unit,
        "serial": look.serial if look is not None else None,
        "map": meter.map.name,
        "map_version": meter.map.version,
        "map_status": meter.map.status,
        "map_digest": meter.map_digest,
        "production": meter.production,
        "rated_kw": meter.rated_kw,
        "factors": dict(meter.factors),
        "reports": {report.uplink: report.remote_id for report in meter.reports},
        "read_at": look.at if look is not None else None,
        "figures": [
            {"quantity": name, "value": value, "words": list(look.words.get(name, ()) if look is not None else ())}
            for name, value in values
        ],
    }

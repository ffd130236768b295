"""What several verbs share: where the configuration is, how data is printed, how the running daemon is asked."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliograph.core.errors import ConfigError, StoreError, UsageError

if TYPE_CHECKING:
    from heliograph.app import App, Secrets


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--config", "config", type=click.Path(path_type=Path, dir_okay=False), help="The site's configuration."
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print data for scripts; its fields are a promise.")(
        command
    )


def app_of(config: Path | None, secrets: Secrets = "no") -> App:
    """The checked site named by --config, before or behind the verb."""
    from heliograph import app

    path: Path = config or click.get_current_context().find_root().obj
    return app.load(path, secrets=secrets)


def print_json(value: Any) -> None:
    def plain(one: Any) -> Any:
        if isinstance(one, datetime):
            return one.isoformat().replace("+00:00", "Z")
        if isinstance(one, date | Path):
            return str(one)
        raise TypeError(f"{type(one).__name__} has no JSON form")

    click.echo(json.dumps(value, default=plain, ensure_ascii=False, indent=2))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = (), whole: Iterable[str] = ()
) -> None:
    """An aligned table on stdout; columns named in `right` hold figures, those in `whole` are never folded."""
    from rich.console import Console
    from rich.table import Table

    numbers, unfolded = set(right), set(whole)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=column in unfolded
        )
    for row in rows:
        table.add_row(*row)
    # In a pipe nothing is folded: whoever reads it there wants one line a row.
    width = None if sys.stdout.isatty() else 400
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():  # rich fills the last column up with blanks
        click.echo(line.rstrip())


def is_narrow(columns: int) -> bool:
    """Whether stdout is a terminal with fewer columns than these."""
    import shutil

    return sys.stdout.isatty() and shutil.get_terminal_size().columns < columns


def a_day(text: str, zone_today: date) -> date:
    """2026-03-14, today or yesterday."""
    from datetime import timedelta

    named = {"today": zone_today, "yesterday": zone_today - timedelta(days=1)}
    if text in named:
        return named[text]
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text} is not a day", hint="Write 2026-03-14, today or yesterday.") from error


def a_meter(app: App, name: str) -> str:
    """The id of a configured meter, or an error that names the nearest."""
    return one_of([meter.id for meter in app.meters], name)


def one_of(ids: Sequence[str], name: str) -> str:
    """The name of a meter that is among these, or an error that names the nearest."""
    import difflib

    if name not in ids:
        near = difflib.get_close_matches(name, ids, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Meters: {', '.join(ids) or 'none yet'}"
        raise ConfigError(f"there is no meter {name}", hint=hint)
    return name


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM: the usual ways to end a verb that runs on.

    By a thread of its own: a handler interrupts the main thread, which may be holding the event's lock just then.
    """
    stop = threading.Event()

    def ended(*_: object) -> None:
        threading.Thread(target=stop.set, daemon=True).start()

    kept = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def confirmed(question: str, *, yes: bool) -> None:
    """Asks on a terminal; without one nothing happens unless --yes was given."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody was asked, and nothing was recorded", hint="Add --yes where there is no terminal.")
    click.confirm(question, abort=True, err=True)


def carried_out(app: App, meter: str, what: str, wish: dict[str, Any]) -> dict[str, Any]:
    """Asks the running daemon to change something; if none runs, does it under the same lock."""
    from heliograph import control
    from heliograph.work.amend import carry_out

    answer: dict[str, Any] | None = control.ask(app.socket, f"/api/v1/meters/{meter}/{what}", wish)
    if answer is not None:
        return answer
    one = next(one for one in app.meters if one.id == meter)
    with app.writer() as store:
        done = carry_out(one, what, wish, store, app.clock, app.rules)
        if not wish.get("dry"):
            try:
                app.copy_ledger(forced=True)  # what a person decided must not be lost with this card's next bad page
            except StoreError as error:
                click.echo(f"Recorded, but no copy of it could be made: {error}", err=True)
        return done

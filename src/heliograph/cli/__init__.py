"""The command line. One module per verb, imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from heliograph.core.errors import HeliographError

# verb -> one line of help; the module is heliograph.cli.<verb>, its click command is called `command`
VERBS: dict[str, str] = {
    "run": "Poll, close days, deliver, until stopped.",
    "check": "Check the configuration, the maps and the secrets; start nothing.",
    "plan": "Print the requests each meter is read with, and their time on the wire.",
    "scan": "Look for meters on a line or among hosts; print the configuration to paste.",
    "read": "Show the live values of a meter.",
    "doctor": "Find out why a line does not work, and say what to do first.",
    "probe": "Show registers under every plausible decoding, and which of these fit.",
    "commission": "Go over a new site with the installer; ends green or with a list, and writes a report.",
    "status": "Show the site at a glance; exit 1 when something needs attention.",
    "days": "List closed, held and missing days.",
    "explain": "Show where a day's figure comes from.",
    "swap": "Record that another counter took over (a new meter, a reset), or confirm an edited map.",
    "release": "Give held days a figure by a split that you decide.",
    "export": "Write the evidence of some days as a pack that anybody can check.",
    "verify": "Check an evidence pack.",
    "backup": "Make a verified copy of the store.",
    "reconcile": "Compare what was delivered with what the platforms hold.",
    "backlog": "List what no platform has confirmed yet, why, and what to do.",
    "support": "Gather what support needs to see into one file, without secrets.",
    "map": "List, show and check meter maps.",
    "record": "Take down what a device answers, as a file that can be replayed.",
    "simulate": "Run simulated meters over TCP, RTU over TCP or a serial line.",
    "fleet": "Work out, or send, what many gateways would say over MQTT.",
    "sandbox": "Run stand-in certificate platforms.",
    "demo": "Rehearse several days in under a minute, without hardware or network.",
    "version": "Print the version.",
}


class Verbs(click.Group):
    """Knows its verbs by name, and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's signature)
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"heliograph.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        near = difflib.get_close_matches(args[0], VERBS, 1) if args and args[0] not in VERBS else []
        if near:
            raise click.UsageError(f"No such verb {args[0]!r}. Did you mean {near[0]}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's signature)
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/heliograph/config.toml"),
    show_default=True,
    envvar="HELIOGRAPH_CONFIG",
    help="The site's configuration.",
)
@click.pass_context
def heliograph(ctx: click.Context, config: Path) -> None:
    """Heliograph: every watt-hour of a solar meter, from the register to the certificate platform."""
    ctx.obj = config


def main() -> None:
    """Runs a verb; failures with a name become one message and their exit code.

    Whatever is logged on the way goes to stderr, masked: stdout is for data. A verb tells what it did by itself, so
    only warnings are shown, unless it sets up logs of its own.
    """
    from heliograph.logs import set_up

    set_up("warning")
    try:
        code = heliograph.main(standalone_mode=False)
    except HeliographError as error:
        click.echo(f"heliograph: {error.message}" if not str(error) else f"heliograph: {error}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:  # Ctrl-C; a verb that has something to show for it catches it itself
        click.echo("Stopped before it was done.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)

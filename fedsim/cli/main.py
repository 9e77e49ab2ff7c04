"""The command line.

Commands are run, sweep, tune, schedule, compare, report, watch, ls, show, clean, list, describe, new, schema, flower.

Exit code 0: done. 1: something went wrong inside, or the run diverged; what was logged is kept. 2: an input that
cannot be used, said in one line. 130: interrupted, with a usable run folder.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from fedsim.cli import flower
from fedsim.cli.clean import clean
from fedsim.cli.compare import compare
from fedsim.cli.console import guard
from fedsim.cli.describe import describe
from fedsim.cli.installed import list_plugins
from fedsim.cli.ls import ls
from fedsim.cli.new import new
from fedsim.cli.report import report
from fedsim.cli.run import run
from fedsim.cli.schedule import schedule
from fedsim.cli.show import show
from fedsim.cli.sweep import sweep
from fedsim.cli.tune import tune
from fedsim.cli.watch import watch
from fedsim.cli.words import STATUS
from fedsim.core.blame import is_theirs, mistake
from fedsim.core.errors import FedsimError, InputError, one_line
from fedsim.core.terminal import tell
from fedsim.core.version import __version__
from fedsim.trackers.courier import is_stuck


class Commands(TyperGroup):
    """The commands, of which an interruption is told as such; typer would only end with its code."""

    def invoke(self, context: click.Context) -> object:  # noqa: D102
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise click.Abort from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click does
)
app.add_typer(flower.app, name="flower")


def _print_version(wanted: bool) -> None:
    if wanted:
        tell(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning with thousands of virtual clients on one machine."""


app.command()(run)
app.command()(sweep)
app.command()(tune)
app.command()(schedule)
app.command()(compare)
app.command()(report)
app.command()(watch)
app.command()(ls)
app.command()(show)
app.command()(clean)
app.command("list")(list_plugins)
app.command()(describe)
app.command()(new)


@app.command()
def schema() -> None:
    """Print a JSON Schema of experiment files, by which an editor completes and checks them.

    It knows what is installed: fedsim schema > fedsim.schema.json. A file that begins with #:schema
    ./fedsim.schema.json is checked by it.
    """
    from fedsim.cli.schema import document

    tell(json.dumps(document(), indent=1))


def _is_of_terminal(error: SystemExit) -> bool:
    """Whether what reads the command line or writes the answer ends the process: completions, or a closed pipe."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals["__name__"].partition(".")[0] in ("click", "typer", "rich")


def _noted(line: str, error: BaseException) -> str:
    """What an error says, and what is noted beside it, such as where its traceback is."""
    return one_line("; ".join([line, *getattr(error, "__notes__", ())]))


def main() -> None:
    """Entry point of the `fedsim` command."""
    guard()
    try:
        code = app(standalone_mode=False)
    except (InputError, click.ClickException) as error:
        line = error.format_message() if isinstance(error, click.ClickException) else str(error)
        tell(f"fedsim: {one_line(line)}", "stderr")
        code = 2
    except FedsimError as error:
        tell(f"fedsim: {_noted(str(error), error)}", "stderr")
        code = 1
    except (KeyboardInterrupt, click.Abort):
        tell("fedsim: interrupted", "stderr")
        code = STATUS["interrupted"]
    except SystemExit as error:
        if _is_of_terminal(error):
            raise
        called = one_line(f"sys.exit({error.code!r})")
        line = f"code that was loaded or run has called {called}; have it raise an error"
        tell(f"fedsim: {_noted(line, error)}", "stderr")
        code = 1
    except Exception as error:
        if is_theirs(error):
            tell(f"fedsim: {_noted(mistake(error), error)}", "stderr")
        else:
            tell(traceback.format_exc(), "stderr")
        code = 1
    if is_stuck():  # and would have the process wait where it ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)

"""The command line: run, sweep, compare, list, describe, new, schema, flower.

Exit code 0: done. 1: something went wrong inside, or the run diverged; what was logged is kept. 2: an input that
cannot be used, said in one line. 130: interrupted, with a usable run folder.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Annotated

import click
import typer

from fedsim.cli import flower
from fedsim.cli.compare import compare
from fedsim.cli.describe import describe
from fedsim.cli.installed import list_plugins
from fedsim.cli.new import new
from fedsim.cli.run import run
from fedsim.cli.sweep import sweep
from fedsim.cli.words import STATUS
from fedsim.core.errors import FedsimError, InputError, one_line
from fedsim.core.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click does
)
app.add_typer(flower.app, name="flower")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fedsim {__version__}")
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
app.command()(compare)
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

    print(json.dumps(document(), indent=1))


def main() -> None:
    """Entry point of the `fedsim` command."""
    try:
        code = app(standalone_mode=False)
    except (InputError, click.UsageError) as error:
        line = error.format_message() if isinstance(error, click.UsageError) else str(error)
        print(f"fedsim: {one_line(line)}", file=sys.stderr)
        code = 2
    except FedsimError as error:
        print(f"fedsim: {error}", file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, click.Abort):
        print("fedsim: interrupted", file=sys.stderr)
        code = STATUS["interrupted"]
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code)

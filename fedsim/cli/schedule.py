"""`fedsim schedule`: from a run's own history the schedule of the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from fedsim.cli.arguments import run_folders
from fedsim.core.errors import InputError
from fedsim.core.near import name_one
from fedsim.core.terminal import tell


def schedule(
    run: Annotated[
        Path,
        typer.Argument(help="A run folder, of a run with strategy.report_norms = true.", autocompletion=run_folders),
    ],
    out: Annotated[Path | None, typer.Option(help="Where the factors go, as .toml; by default they are told.")] = None,
    norm: Annotated[
        str, typer.Option(help="l2, for clients whose steps are as long as their gradients (sgd); l1 (adam, lion).")
    ] = "l2",
    smooth: Annotated[
        float, typer.Option(help="Take medians of as many rounds around each, as a share of all; 0: none.")
    ] = 0.1,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier file.")] = False,
) -> None:
    """Make of a run a schedule of learning rates for the next one like it, from how long its rounds' changes were.

    client.schedule = { kind = "table", factors = "FILE" } takes it.
    """
    from fedsim.core.files import StorageError, look, write_whole
    from fedsim.reports.refined import Norm, schedule_of

    norms = {name: name for name in get_args(Norm)}
    if norm not in norms:
        raise InputError("norm", norm, name_one(norm, norms))
    if out is not None and look(out, "out") is not None and not force:
        raise InputError("out", str(out), "this file exists; choose another or pass --force")
    factors = schedule_of(run, norms[norm], smooth)
    lines = "".join(f"    {factor!r},\n" for factor in factors)
    text = f"# {len(factors)} rounds, refined from {run}: --norm {norm} --smooth {smooth:g}\nfactors = [\n{lines}]\n"
    if out is None:
        tell(text.rstrip())
        return
    try:
        write_whole(out, text.encode())
    except StorageError as error:
        raise InputError("out", str(out), str(error)) from error
    tell(f"schedule: {out}")

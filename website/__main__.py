"""`python -m website`: build the site in build/website/site; exit code 1 where a link leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from website.pages import compose


def main(
    folder: Annotated[Path, typer.Option(help="Where to build; what was there is deleted.")] = Path("build/website"),
    notebooks: Annotated[
        Path | None, typer.Option(help="Where notebooks are that have been executed; else nothing of theirs is shown.")
    ] = None,
) -> None:
    """Write the sources of the site's pages, and build it in `site` in that folder."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(compose(folder, notebooks))]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    typer.run(main)

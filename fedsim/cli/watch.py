"""`fedsim watch`: runs in a browser of this machine while they go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.core.terminal import tell


def watch(
    folder: Annotated[Path, typer.Argument(help="A folder that runs are in, or will be.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=2**16 - 1, help="Where it is asked; 0: any that is free.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Which of this machine's addresses; of others than this one, others can read the runs.")
    ] = "127.0.0.1",
) -> None:
    """Show the runs in a folder to a browser, with what they have so far; it reads only. Ctrl-C ends it."""
    from fedsim.reports.watching.serve import serve

    served = serve(folder, host, port)
    tell(f"{served.address} shows the runs in {folder}; Ctrl-C ends it")
    served.run()

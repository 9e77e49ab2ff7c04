"""`fedsim list`: which plug-ins are installed."""

from __future__ import annotations

from rich.text import Text

from fedsim.cli.console import Console
from fedsim.core.plugins import GROUPS, names


def list_plugins() -> None:
    """List what is installed: strategies, clients, datasets, partitions, models and the rest."""
    console = Console()
    for group in GROUPS:
        console.print(Text(group, style="bold") + f": {', '.join(names(group)) or 'none'}")

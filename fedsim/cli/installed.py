"""`fedsim list`: which plug-ins are installed."""

from __future__ import annotations

from rich.console import Console

from fedsim.core.plugins import GROUPS, names


def list_plugins() -> None:
    """List what is installed: strategies, clients, datasets, partitions, models and the rest."""
    console = Console()
    for group in GROUPS:
        console.print(f"[bold]{group}[/bold]: {', '.join(names(group)) or 'none'}", highlight=False)

"""`fedsim list`: which plug-ins are installed."""

from __future__ import annotations

from rich.text import Text

from fedsim.cli.answers import Json, answering
from fedsim.core.plugins import GROUPS, own


def list_plugins(as_json: Json = False) -> None:
    """List what is installed: strategies, clients, datasets, partitions, models and the rest."""
    with answering(as_json=as_json) as answer:
        answer.give({group: own(group) for group in GROUPS})
        for group in GROUPS:
            answer.lay_out(Text(group, style="bold") + f": {', '.join(own(group)) or 'none'}")

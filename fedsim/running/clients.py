"""What the final models come to on each client: a table, clients.csv, and of who never takes part newcomers.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedsim.running.folder import RunFolder
from fedsim.running.stored import CLIENTS


def columns_of(measured: Mapping[str, Tensor], names: Sequence[str] | None, first: int = 0) -> dict[str, list[Any]]:
    """Of each client its number, its name where the data say one, and what was measured of it, [N] each.

    A number that is not finite, as of a client without examples or of an undefined measure, is None. first: the number
    of the first client.
    """
    numbers = {name: [*map(_finite, values.tolist())] for name, values in measured.items()}
    clients = [first + place for place in range(len(next(iter(numbers.values()))))]
    return {"client": clients, **({} if names is None else {"name": [*names]}), **numbers}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_clients(columns: Mapping[str, Sequence[Any]], folder: RunFolder, file: str = CLIENTS) -> None:
    """Write a line a client, nothing for None."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([[*columns], *zip(*columns.values(), strict=True)])
    folder.write_text(file, text.getvalue())

"""What the final model comes to on each client: a table, clients.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedsim.running.folder import RunFolder
from fedsim.running.stored import CLIENTS


def write_clients(measured: Mapping[str, Tensor], names: Sequence[str] | None, folder: RunFolder) -> None:
    """Write a line a client: its number, its name where the data say one, and what was measured of it, [N] each.

    A number that is not finite, as of a client without examples or of an undefined measure, is left out.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["client", *([] if names is None else ["name"]), *measured])
    columns = [values.tolist() for values in measured.values()]
    for client, values in enumerate(zip(*columns, strict=True)):
        numbers = ["" if isinstance(value, float) and not math.isfinite(value) else value for value in values]
        table.writerow([client, *([] if names is None else [names[client]]), *numbers])
    folder.write_text(CLIENTS, text.getvalue())

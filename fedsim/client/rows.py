"""What clients have where there is no server, which is sent to them in rows of all."""

from __future__ import annotations

from torch import Tensor

from fedsim.engine.cohort import Cohort


def own_rows(cohort: Cohort, name: str) -> Tensor:
    """Each client's own row of what is sent, [N, n]: [C, n]. Newcomers, numbered from N, have the mean of all."""
    rows = cohort.received(name)
    new = cohort.clients >= len(rows)
    own = rows[cohort.clients.where(~new, 0)]
    if bool(new.any()):
        own[new] = rows.mean(dim=0)
    return own

"""Turns of selectors and windows of replies, made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedsim.core.streams import Streams
from fedsim.exchange.messages import Free, Replies
from fedsim.server.selection.base import Turn


def turn(free: Iterable[bool], wanted: int, *, round: int = 0, seed: int = 0) -> Turn:  # noqa: A002
    """Whoever is free by this mask [N]; nobody can write to it."""
    mask = np.array(list(free), dtype=np.bool_)
    mask.flags.writeable = False
    return Turn(Streams(seed), round, Free(mask, int(mask.sum())), wanted)


def replies(
    clients: Sequence[int],
    *,
    loss: Sequence[float] | None = None,
    utility: Sequence[float] | None = None,
    durations: Sequence[int] | None = None,
    examples: Sequence[int] | None = None,
    round: int = 0,  # noqa: A002
) -> Replies:
    """Replies to orders of this round; who is not said to differ has a loss and a utility of 1, 10 examples, 1 tick."""
    ones = [1] * len(clients)
    return Replies(
        clients=torch.tensor(clients, dtype=torch.int64),
        payload={"utility": torch.tensor(utility or ones, dtype=torch.float32).reshape(-1, 1)},
        metrics={"loss": torch.tensor(loss or ones, dtype=torch.float32)},
        examples=torch.tensor(examples or [10] * len(clients), dtype=torch.int64),
        failed=torch.empty(0, dtype=torch.int64),
        round=round,
        versions=torch.full((len(clients),), round),
        durations=torch.tensor(durations or ones, dtype=torch.int64),
        orders=(),
        origin=(),
    )


def select(selector: Any, state: Mapping[str, torch.Tensor], now: Turn, loss: Sequence[float] | None = None) -> Any:
    """The chosen ids as a list and the state after; `loss` [N] answers a question for losses."""
    asked = selector.candidates(state, now)
    scores = None if asked is None else torch.tensor(loss, dtype=torch.float64)[asked]
    chosen, after = selector.select(state, now, scores)
    assert chosen.dtype == torch.int64
    ids = chosen.tolist()
    assert ids == sorted(set(ids))
    assert now.free.mask[ids].all()
    assert len(ids) == min(now.wanted, now.free.count)
    return ids, after

"""The codes by which workers share data: options of them, and schemes of `fedsim.coding` for so many workers."""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.coding import GradientCoding, Multiplexed, Needs, Scheme, SelectiveRepeat, Work, repetition
from fedsim.coding.codes import Normal, Numbers
from fedsim.core.errors import InputError, naming
from fedsim.core.memory import room
from fedsim.core.options import NonNegativeInt, PositiveInt, one_of, options
from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.messages import Replies
from fedsim.exchange.windows import Enough


@options
class OfARound:
    """GC(n, s): each worker goes over s + 1 of n chunks, and any n - s of them give the sum in their own round.

    Tandon et al. 2017.
    """

    stragglers: NonNegativeInt = 1
    """s, how many workers may be late in a round; 0: none, so that all are waited for."""
    code: Literal["cyclic", "repetition"] = "cyclic"
    """Chunks i to i + s for worker i, with drawn factors; or the same s + 1 for each group of s + 1 workers, whose sums
    are added as they are, where n is a multiple of it.
    """

    def scheme(self, workers: int, normal: Normal) -> Scheme:
        """The scheme of so many workers. InputError: there is none."""
        if self.code == "repetition":
            return GradientCoding(repetition(workers, self.stragglers), self.stragglers)
        return GradientCoding.of(workers, self.stragglers, normal)


@options
class InBursts:
    """Workers are late in bursts: at most so many in a window, each within a burst of rounds in a row."""

    burst: PositiveInt = 1
    """B, rounds in a row within which a worker is late."""
    window: PositiveInt = 2
    """W, rounds of which this holds; more than burst."""
    most: NonNegativeInt = 1
    """lambda, workers that are late within a window at most."""


@options
class Repeating(InBursts):
    """SR-SGC: a code for fewer stragglers, whose missing results are worked on again B rounds later.

    s = ceil(B lambda / (W - 1 + B)); B divides W - 1. Trains B + 1 models in turn. Krishnan et al. 2023.
    """

    def scheme(self, workers: int, normal: Normal) -> Scheme:
        """See `OfARound`."""
        return SelectiveRepeat.designed(workers, self.burst, self.window, self.most, normal)


@options
class Multiplexing(InBursts):
    """M-SGC: each job in W - 1 + B small tasks of a worker, one a round. Trains as many models in turn.

    Krishnan et al. 2023.
    """

    def scheme(self, workers: int, normal: Normal) -> Scheme:
        """See `OfARound`."""
        return Multiplexed.designed(workers, self.burst, self.window, self.most, normal)


Code = Annotated[OfARound | Repeating | Multiplexing, one_of(gc=OfARound, sr_sgc=Repeating, m_sgc=Multiplexing)]
"""A code, or its name, or a table with `kind` and its options."""


@lru_cache(maxsize=64)
def scheme_of(code: OfARound | Repeating | Multiplexing, workers: int, seed: int) -> Scheme:
    """The scheme of so many workers, with factors drawn from a seed. InputError, naming `code`: there is none."""
    owner, steps = torch.tensor([SERVER]), count()

    def normal(shape: tuple[int, int]) -> Numbers:
        drawn = Streams(seed).normal("code", owner, shape, step=next(steps), dtype=torch.float64)
        found: Numbers = drawn[0].numpy()
        return found

    with naming("code"):
        return code.scheme(workers, normal)


def hold_room(scheme: Scheme, model: Tensor) -> None:
    """InputError: what comes of the jobs on their way, each result like a model [d], does not fit in memory."""
    jobs = (scheme.delay + 1) * (1 + scheme.workers * scheme.places)
    needed = jobs * model.numel() * model.element_size()
    if needed > room():
        remedy = f"results of {scheme.delay + 1} jobs on their way take {needed / 2**30:.3g} GiB; take a shorter window"
        raise InputError("code", "given", f"{remedy} or burst")


def tasks(scheme: Scheme, work: Work, examples: int, device: torch.device) -> dict[str, Tensor]:
    """A round's work as it is sent: `ages` [n, k], `chunks` and `factors` [n, k, w], and where chunks `ends`, [K].

    Of all examples in a row, so many, chunk j has those from where chunk j - 1 ends. Idle slots have the chunk -1, as
    what is beyond the last has.
    """
    chunks, factors = scheme.lists
    index = np.arange(scheme.workers)[:, None], np.maximum(work.places, 0)
    idle = (work.places < 0)[:, :, None]
    told = {
        "ages": np.ascontiguousarray(work.ages),
        "chunks": np.where(idle, -1, chunks[index]),
        "factors": np.where(idle, 0.0, factors[index]),
        "ends": np.rint(np.cumsum(scheme.sizes) * examples).astype(np.int64),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in told.items()}


def enough(needs: Needs, chosen: Tensor, patience: float) -> Enough:
    """A window for the chosen, int64 [C]; those who are away are late already."""
    away = np.ones(len(needs.needed), dtype=bool)
    away[chosen.numpy()] = False
    # Where it cannot do without who is away, nothing is won by leaving others out.
    most = -1 if (away & needs.needed).any() else needs.most - int((away & ~needs.excused).sum())
    needed, excused = (frozenset(np.flatnonzero(mask).tolist()) for mask in (needs.needed, needs.excused))
    return Enough(patience, most, needed, excused)


def filled(held: Tensor, number: int, work: Work, replies: Replies) -> Tensor:
    """Results of the jobs on their way, [T + 1, n, P, d + 1], with those of a round's replies: `results`, `losses`."""
    if not len(replies):
        return held
    after = held.clone()
    sent = torch.cat((replies.payload["results"], replies.payload["losses"].unsqueeze(2)), dim=2)
    who = replies.clients.numpy()
    row, slot = np.nonzero(work.places[who] >= 0)
    worker = who[row]
    after[(number - work.ages[worker, slot]) % len(held), worker, work.places[worker, slot]] = sent[row, slot]
    return after

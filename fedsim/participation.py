"""How often clients take part, and the weights that make up for it.

A client whose work is in a share f_i of the server's rounds, each time with weight w_i, counts w_i f_i in the long run.
The global model approaches the minimum of sum_i p_i f_i(theta) if that is p_i; Fraboni et al. 2023, section 3. The
weights are called unbiased then, and identical if they are the same for all clients, with a mean total of 1 a round.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedsim.errors import InputError
from fedsim.exchange import Replies, Weighting
from fedsim.strategy import ProblemView, ServerState

Weights = Literal["unbiased", "identical"]
Frequency = Literal["declared", "observed"]


def shares(problem: ProblemView, weighting: Weighting) -> Tensor:
    """p_i, by examples or the same for all clients that have any, float64 [N]; they sum to one."""
    sizes = problem.sizes
    like = sizes if weighting == "examples" else (sizes > 0).to(sizes.dtype)
    return like.double() / like.sum()


def refuse_waiting(at_once: int, population: int, steady: bool) -> None:
    """Refuse to go by durations alone where clients do not work all the time: InputError."""
    if at_once < population:
        remedy = f"only {at_once} of {population} clients work at once; use observed, or all clients"
        raise InputError("frequency", "declared", remedy)
    if not steady:
        raise InputError("frequency", "declared", "these clients sleep or fail at times; use observed")


def participations(state: ServerState, replies: Replies) -> Tensor:
    """How many replies of each client have been taken, these included: int64 [N]."""
    before = state.memory["participations"]
    return before.index_add(0, replies.clients, torch.ones_like(replies.clients))


def observed_weights(
    weights: Weights, shares: Tensor, participations: Tensor, rounds: int, clients: Tensor, floor: float
) -> Tensor:
    """The weights [k] of clients [k] by how often they took part in so many rounds.

    unbiased: p_i / max(f_i, floor). identical: 1 / (replies a round).
    """
    if weights == "identical":
        return torch.full((len(clients),), rounds / max(int(participations.sum()), 1), dtype=torch.float64)
    frequency = participations[clients].double() / rounds
    return shares[clients] / frequency.clamp(min=floor)

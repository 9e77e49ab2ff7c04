"""How often clients take part, and the weights that make up for it.

A client whose work is in a share f_i of the server's rounds, each time with weight w_i, counts w_i f_i in the long run.
The global model approaches the minimum of sum_i p_i f_i(theta) if that is p_i; Fraboni et al. 2023, section 3. The
weights are called unbiased then, and identical if they are the same for all clients, with a mean total of 1 a round.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.exchange.messages import Replies, Weighting
from fedsim.server.strategy import ProblemView, ServerState

Weights = Literal["unbiased", "identical"]
Frequency = Literal["declared", "observed"]


def shares(problem: ProblemView, weighting: Weighting) -> Tensor:
    """p_i, by examples or the same for all clients: float64 [N], which sum to one."""
    like = problem.sizes if weighting == "examples" else torch.ones_like(problem.sizes)
    return like.double() / like.sum()


def refuse_waiting(at_once: int, population: int, steady: bool) -> None:
    """Refuse to go by durations alone where clients do not work all the time: InputError."""
    if at_once < population:
        remedy = f"only {at_once} of {population} clients work at once; use observed, or all clients"
        raise InputError("frequency", "declared", remedy)
    if not steady:
        raise InputError("frequency", "declared", "these clients sleep or fail at times; use observed")


def hold_needed(strategy: Any, why: str, *unused: str) -> None:
    """Refuse options that a strategy does not look at, where they are not as by default. why: what it does instead."""
    defaults = {field.name: field.default for field in dataclasses.fields(strategy)}
    for option in unused:
        value = getattr(strategy, option)
        if value != defaults[option]:
            raise InputError(option, value, f"{why}; leave it out")


def counting(problem: ProblemView, weighting: Weighting) -> dict[str, Tensor]:
    """What a server remembers that counts: p_i, `shares` float64 [N], and replies taken so far, `counts` int64 [N]."""
    return {"shares": shares(problem, weighting), "counts": torch.zeros(problem.num_clients, dtype=torch.int64)}


def extended(column: Tensor, population: int, value: float) -> Tensor:
    """A column of clients [n, ...] with rows for those that came later, which hold `value`: [N, ...]."""
    later = column.new_full((population - len(column), *column.shape[1:]), value)
    return torch.cat((column, later)) if len(later) else column


def recounted(state: ServerState, problem: ProblemView, weighting: Weighting) -> ServerState:
    """The state of a server that counts, `counting`, or knows p_i alone, where more clients or examples are known.

    p_i are those of the problem. Nobody has heard of the new clients: `counts` 0; and where rounds went by without
    them, `since`, int64 [N], has for each client the round in which it came.
    """
    memory = {**state.memory, "shares": shares(problem, weighting)}
    if "counts" in memory:
        before, population = len(memory["counts"]), problem.num_clients
        memory["counts"] = extended(memory["counts"], population, 0)
        if state.round and population > before:
            since = memory.get("since", torch.zeros(before, dtype=torch.int64))
            memory["since"] = extended(since, population, state.round)
    return replace(state, memory=memory)


def observed_weights(
    weights: Weights, state: ServerState, replies: Replies, floor: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weights [k] of replies by how often their clients took part so far, this round included; the new counts.

    unbiased: p_i / max(f_i, floor), with f_i the share of the rounds since the client came. identical: 1 / (replies a
    round). state: with the memory that `counting` begins.
    """
    clients, rounds = replies.clients, state.round + 1
    counts = state.memory["counts"].index_add(0, clients, torch.ones_like(clients))
    if weights == "identical":
        found = torch.full((len(clients),), rounds / max(int(counts.sum()), 1), dtype=torch.float64)
    else:
        there = rounds - state.memory["since"][clients] if "since" in state.memory else rounds
        found = state.memory["shares"][clients] / (counts[clients].double() / there).clamp(min=floor)
    return found, {"counts": counts}

"""CMA-ES by a server that knows F as its clients tell it: a centralised reference for search with values alone.

x_j ~ m + sigma N(0, C), j = 1..n;  F(x_j) = sum_i w_i f_i(x_j), by default w_i = 1/k;  m, sigma and C move with the
better half of the x_j. The global model is m.
Downlink n d floats a client, uplink n floats and n evaluations. Hansen and Ostermeier 2001; Hansen 2016, by its
package `cma` (pip install 'fedsim[cma]'), with cumulative step-size adaptation in any dimension.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import InputError
from fedsim.exchange import All, Orders, Replies, Weighting, Window
from fedsim.options import Positive, options
from fedsim.strategy import Metrics, ProblemView, ServerState, observed
from fedsim.streams import Streams


class Normal:
    """The generator that `cma` asks: one that is lent for a round, and not kept."""

    generator: np.random.Generator | None = None

    def __call__(self, *shape: int) -> np.ndarray:
        """Draw standard normal numbers."""
        assert self.generator is not None
        return self.generator.standard_normal(shape)


@options
class CmaEs:
    """Needs the client `values`.

    sigma: the initial step size, in widths of the problem's box, or as it is where there is none. population: n, by
    default 4 + floor(3 ln d). diagonal: adapt variances only; else a d x d matrix is part of the state, and taken
    apart in d^3 operations. Solutions stay within the box, by the package's smooth transformation.
    """

    sends: ClassVar[frozenset[str]] = frozenset({"candidates"})
    expects: ClassVar[frozenset[str]] = frozenset({"values"})

    weighting: Weighting = "uniform"
    sigma: Positive = 0.25
    population: Annotated[int, Field(ge=3)] | None = None
    diagonal: bool = False

    def __post_init__(self) -> None:
        if importlib.util.find_spec("cma") is None:
            raise InputError("kind", "cma_es", "it needs the package cma: pip install 'fedsim[cma]'")

    def init(self, problem: ProblemView) -> ServerState:
        """The search as the package begins it."""
        cma, adaptation = importlib.import_module("cma"), importlib.import_module("cma.sigma_adaptation")
        params, bounds = problem.initial(), problem.bounds
        settings = {
            "randn": Normal(),
            "AdaptSigma": adaptation.CMAAdaptSigmaCSA,  # the other rule checks itself with global draws
            "CMA_diagonal": self.diagonal,
            "verbose": -9,
            "verb_log": 0,
        }
        if self.population is not None:
            settings["popsize"] = self.population
        width = 1.0
        if bounds is not None:
            settings["bounds"], width = list(bounds), bounds[1] - bounds[0]
        search = cma.CMAEvolutionStrategy(params.double().cpu().numpy(), self.sigma * width, settings)
        return ServerState(params, memory={"search": _kept(search)})

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the populations."""
        seed = torch.tensor(streams.derive("cma-es") >> 1)  # of 64 bits those that int64 has room for
        return replace(state, memory={**state.memory, "seed": seed})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Orders, Window]:
        """Send the population [n, d]; wait for everybody."""
        with _resumed(state) as search:
            population = np.stack(search.ask())
        candidates = torch.from_numpy(population).to(state.params.device, state.params.dtype)
        return Orders("evaluate", chosen, {"candidates": candidates}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Tell the search the mean values; a round without replies changes nothing."""
        if not len(replies):
            return replace(state, round=state.round + 1), {}, True
        values = replies.combine(replies.weights(self.weighting), name="values").double().cpu().numpy()
        with _resumed(state) as search:
            # The state is from before the population was drawn, which is drawn again, the same.
            search.tell(search.ask(), values.tolist())
            search.sm.update_now()  # takes C apart where that is due, which both drawings of the next round would do
            mean, step = search.result.xfavorite, float(search.sigma)
        params = torch.from_numpy(np.array(mean)).to(state.params.device, state.params.dtype)
        moved = replace(state, params=params, round=state.round + 1, memory={**state.memory, "search": _kept(search)})
        return moved, {**observed(replies), "lowest_value": float(values.min()), "sigma": step}, True


def _kept(search: Any) -> Tensor:
    """A search as bytes, uint8."""
    return torch.from_numpy(np.frombuffer(pickle.dumps(search), dtype=np.uint8).copy())


@contextmanager
def _resumed(state: ServerState) -> Iterator[Any]:
    """The search of a state, with the generator of its round."""
    search = pickle.loads(state.memory["search"].numpy().tobytes())
    normal = search.opts["randn"]
    normal.generator = Streams(int(state.memory["seed"])).generator("population", round=state.round)
    yield search
    normal.generator = None

"""CMA-ES by a server that knows F as its clients tell it: a centralised reference for search with values alone.

x_j ~ m + sigma N(0, C), j = 1..n;  F(x_j) = sum_i w_i f_i(x_j), by default w_i = 1/k
With the better half of the x_j move m, sigma and C. The global model is m.
Downlink n d floats a client, uplink n floats and n evaluations. Hansen and Ostermeier 2001; Hansen 2016, by its
package `cma` (pip install 'fedsim-lab[cma]'), with cumulative step-size adaptation in any dimension.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    All,
    InputError,
    Metrics,
    Order,
    PositiveFloat,
    ProblemView,
    Replies,
    ServerState,
    Strategy,
    Streams,
    Weighting,
    Window,
    observed,
    options,
)


class Normal:
    """The generator that `cma` asks: one that is lent for a round, and not kept."""

    generator: np.random.Generator | None = None

    def __call__(self, *shape: int) -> np.ndarray:
        """Draw standard normal numbers."""
        assert self.generator is not None
        return self.generator.standard_normal(shape)


@options
class CmaEs(Strategy):
    """Needs the client `values`.

    The state is what the search was told, from which a resumed run makes it again. Solutions stay within the box, by
    the package's smooth transformation.
    """

    down: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"values"})

    weighting: Weighting = "uniform"
    """Weights w_i of F = sum_i w_i f_i: by the clients' examples, or uniform, 1/k each."""
    sigma: PositiveFloat = 0.25
    """The initial step size, in widths of the problem's box, or as it is where there is none."""
    population: Annotated[int, Field(ge=3)] | None = None
    """n, solutions a round. Not given: 4 + floor(3 ln d)."""
    diagonal: bool = False
    """Adapt variances only; otherwise the search has a d x d matrix, and takes it apart in d^3 operations."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("cma") is None:
            raise InputError("kind", "cma_es", "it needs the package cma: pip install 'fedsim-lab[cma]'")

    def init(self, problem: ProblemView) -> ServerState:
        """Where the search begins, and nothing that it was told."""
        params, bounds = problem.initial(), problem.bounds
        if bounds is not None and len(params) == 1:
            remedy = "the package cma searches a box of two coordinates or more; leave the bounds out, or take cbo"
            raise InputError("strategy.kind", "cma_es", remedy)
        memory = {
            "start": params.double().cpu(),
            "bounds": torch.tensor([] if bounds is None else list(bounds), dtype=torch.float64),
            "values": torch.zeros((0, 0), dtype=torch.float64),
            "rounds": torch.zeros(0, dtype=torch.int64),
        }
        return ServerState(params, memory=memory)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the populations."""
        seed = torch.tensor(streams.derive("cma-es") >> 1)  # of 64 bits those that int64 has room for
        return replace(state, memory={**state.memory, "seed": seed})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the population [n, d]; wait for everybody."""
        with _lent(self._search(state), state, state.round) as search:
            population = np.stack(search.ask())
        candidates = torch.from_numpy(population).to(state.params.device, state.params.dtype)
        return Order("evaluate", chosen, {"candidates": candidates}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Tell the search the mean values; a round without replies changes nothing."""
        if not len(replies):
            return replace(state, round=state.round + 1), {}, True
        values = replies.combine(replies.weights(self.weighting), name="values").double().cpu()
        search = self._search(state)
        # The search is from before the population was drawn, which is drawn again, the same.
        _told(search, state, state.round, values)
        memory = dict(state.memory)
        memory["values"] = torch.cat((memory["values"].reshape(-1, len(values)), values.unsqueeze(0)))
        memory["rounds"] = torch.cat((memory["rounds"], torch.tensor([state.round])))
        params = torch.from_numpy(np.array(search.result.xfavorite)).to(state.params.device, state.params.dtype)
        moved = replace(state, params=params, round=state.round + 1, memory=memory)
        _keep(self._key(moved), search)
        metrics = {**observed(replies), "lowest_value": float(values.min()), "sigma": float(search.sigma)}
        return moved, metrics, True

    def _search(self, state: ServerState) -> Any:
        """The search that has been told what the state says: of its last rounds at hand, else all told once more."""
        key = self._key(state)
        if key in _SEARCHES:
            return pickle.loads(_SEARCHES[key])
        search = self._begun(state)
        for round_, values in zip(state.memory["rounds"].tolist(), state.memory["values"], strict=True):
            _told(search, state, round_, values)
        _keep(key, search)
        return search

    def _begun(self, state: ServerState) -> Any:
        """The search as the package begins it."""
        cma, adaptation = importlib.import_module("cma"), importlib.import_module("cma.sigma_adaptation")
        bounds: list[float] = state.memory["bounds"].tolist()
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
        if bounds:
            settings["bounds"], width = bounds, bounds[1] - bounds[0]
        return cma.CMAEvolutionStrategy(state.memory["start"].numpy(), self.sigma * width, settings)

    def _key(self, state: ServerState) -> bytes:
        """What a search is made of."""
        made = hashlib.blake2b(repr(self).encode())
        for name in ("seed", "start", "bounds", "values", "rounds"):
            made.update(state.memory[name].numpy().tobytes())
        return made.digest()


_SEARCHES: OrderedDict[bytes, bytes] = OrderedDict()
"""The searches of the last rounds, as bytes, by what they are made of: so that a run need not tell all of them anew."""
AT_HAND = 4


def _keep(key: bytes, search: Any) -> None:
    _SEARCHES[key] = pickle.dumps(search)
    _SEARCHES.move_to_end(key)
    while len(_SEARCHES) > AT_HAND:
        _SEARCHES.popitem(last=False)


def _told(search: Any, state: ServerState, round_: int, values: Tensor) -> None:
    """Tell a search the values [n] of the population of a round."""
    with _lent(search, state, round_):
        search.tell(search.ask(), values.tolist())
        search.sm.update_now()  # takes C apart where that is due, which both drawings of the next round would do


@contextmanager
def _lent(search: Any, state: ServerState, round_: int) -> Iterator[Any]:
    """The search with the generator of a round."""
    normal = search.opts["randn"]
    normal.generator = Streams(int(state.memory["seed"])).generator("population", turn=round_)
    yield search
    normal.generator = None

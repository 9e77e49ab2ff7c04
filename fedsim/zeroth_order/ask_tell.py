"""The server's half of a package's search, which is asked for candidates and told F at them.

The state is what the search was told, from which a resumed run makes it again; so that a run need not, the searches of
its last rounds are kept at hand, as bytes. A round's candidates are drawn twice, the same: to be sent, and to be told.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from abc import abstractmethod
from collections import OrderedDict
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Order, Replies, Weighting
from fedsim.exchange.windows import All, Window
from fedsim.server.strategy import Metrics, ProblemView, ServerState, Strategy, observed

Points = NDArray[np.float64]
AT_HAND = 4
_SEARCHES: OrderedDict[bytes, bytes] = OrderedDict()


@options
class AskTell(Strategy):
    """A search by somebody else's package; a subclass says how it begins, what it asks, and how it is told."""

    kind: ClassVar[str] = ""
    package: ClassVar[str] = ""
    down: ClassVar[frozenset[str]] = frozenset({"candidates"})
    up: ClassVar[frozenset[str]] = frozenset({"values"})

    weighting: Weighting = "uniform"
    """Weights w_i of F = sum_i w_i f_i: by the clients' examples, or uniform, 1/k each."""

    @abstractmethod
    def begun(self, state: ServerState) -> Any:
        """The search as it begins; it can be pickled."""

    @abstractmethod
    def population_of(self, search: Any, state: ServerState, round_: int) -> Points:
        """The candidates of a round, [n, d], of the search as it was told until then."""

    @abstractmethod
    def told(self, search: Any, state: ServerState, round_: int, values: list[float]) -> Any:
        """The search after the values [n] of a round's candidates."""

    @abstractmethod
    def favourite(self, search: Any) -> Points:
        """The model, [d]."""

    def seen_of(self, search: Any) -> Metrics:  # noqa: ARG002
        """What else is reported of the search."""
        return {}

    def init(self, problem: ProblemView) -> ServerState:
        """Where the search begins, and nothing that it was told. InputError: its package is missing."""
        if importlib.util.find_spec(self.package) is None:
            remedy = f"it needs the package {self.package}: pip install 'fedsim-lab[{self.package}]'"
            raise InputError("strategy.kind", self.kind, remedy)
        params, bounds, cells = problem.initial(), problem.bounds, problem.cells
        memory = {
            "start": params.double().cpu(),
            "bounds": torch.tensor([] if bounds is None else list(bounds), dtype=torch.float64),
            "cells": torch.zeros(len(params), dtype=torch.int64) if cells is None else cells.cpu(),
            "values": torch.zeros((0, 0), dtype=torch.float64),
            "rounds": torch.zeros(0, dtype=torch.int64),
        }
        return ServerState(params, memory=memory)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the populations."""
        seed = torch.tensor(streams.seed_of(self.kind.replace("_", "-")))  # of 64 bits those that int64 has room for
        return replace(state, memory={**state.memory, "seed": seed})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the population [n, d]; wait for everybody."""
        population = self.population_of(self._search(state), state, state.round)
        candidates = torch.from_numpy(population).to(state.params.device, state.params.dtype)
        return Order("evaluate", chosen, {"candidates": candidates}, round=state.round), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Tell the search the mean values; a round without replies changes nothing."""
        if not len(replies):
            return replace(state, round=state.round + 1), {}, True
        values = replies.combine(replies.weights(self.weighting), name="values").double().cpu()
        # The search is from before the population was drawn, which is drawn again, the same.
        search = self.told(self._search(state), state, state.round, values.tolist())
        memory = dict(state.memory)
        memory["values"] = torch.cat((memory["values"].reshape(-1, len(values)), values.unsqueeze(0)))
        memory["rounds"] = torch.cat((memory["rounds"], torch.tensor([state.round])))
        params = torch.from_numpy(self.favourite(search)).to(state.params.device, state.params.dtype)
        moved = replace(state, params=params, round=state.round + 1, memory=memory)
        _keep(self._key(moved), search)
        return moved, {**observed(replies), "lowest_value": float(values.min()), **self.seen_of(search)}, True

    def _search(self, state: ServerState) -> Any:
        """The search that has been told what the state says: of its last rounds at hand, else all told once more."""
        key = self._key(state)
        if key in _SEARCHES:
            return pickle.loads(_SEARCHES[key])
        search = self.begun(state)
        for round_, values in zip(state.memory["rounds"].tolist(), state.memory["values"].tolist(), strict=True):
            search = self.told(search, state, round_, values)
        _keep(key, search)
        return search

    def _key(self, state: ServerState) -> bytes:
        """What a search is made of."""
        made = hashlib.blake2b(repr(self).encode())
        for name in ("seed", "start", "bounds", "cells", "values", "rounds"):
            made.update(state.memory[name].numpy().tobytes())
        return made.digest()


def _keep(key: bytes, search: Any) -> None:
    _SEARCHES[key] = pickle.dumps(search)
    _SEARCHES.move_to_end(key)
    while len(_SEARCHES) > AT_HAND:
        _SEARCHES.popitem(last=False)

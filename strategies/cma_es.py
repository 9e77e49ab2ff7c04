"""CMA-ES by a server that knows F as its clients tell it: a centralised reference for search with values alone.

x_j ~ m + sigma N(0, C), j = 1..n;  F(x_j) = sum_i w_i f_i(x_j), by default w_i = 1/k
With the better half of the x_j move m, sigma and C. The global model is m.
Downlink n d floats a client, uplink n floats and n evaluations. Hansen and Ostermeier 2001; Hansen 2016, by its
package `cma` (pip install 'fedsim-lab[cma]'), with cumulative step-size adaptation in any dimension, and with its own
handling of whole numbers (Marty et al. 2024), of which a cell of a space is one unit wide.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fedsim.server import InputError, Metrics, PositiveFloat, ProblemView, ServerState, Streams, options
from fedsim.zeroth_order import AskTell, Points


class Normal:
    """The generator that `cma` asks: one that is lent for a round, and not kept."""

    generator: np.random.Generator | None = None

    def __call__(self, *shape: int) -> np.ndarray:
        """Draw standard normal numbers."""
        assert self.generator is not None
        return self.generator.standard_normal(shape)


@options
class CmaEs(AskTell):
    """Needs the client `values`.

    The state is what the search was told, from which a resumed run makes it again. Solutions stay within the box, by
    the package's smooth transformation.
    """

    kind: ClassVar[str] = "cma_es"
    package: ClassVar[str] = "cma"

    sigma: PositiveFloat = 0.25
    """The initial step size, in widths of the problem's box, or as it is where there is none."""
    population: Annotated[int, Field(ge=3)] | None = None
    """n, solutions a round. Not given: 4 + floor(3 ln d)."""
    diagonal: bool = False
    """Adapt variances only; otherwise the search has a d x d matrix, and takes it apart in d^3 operations."""

    def init(self, problem: ProblemView) -> ServerState:
        """Where the search begins, and nothing that it was told."""
        state = super().init(problem)
        if problem.bounds is not None and len(state.params) == 1:
            remedy = "the package cma searches a box of two coordinates or more; leave the bounds out, or take cbo"
            raise InputError("strategy.kind", "cma_es", remedy)
        return state

    def begun(self, state: ServerState) -> Any:
        """The search as the package begins it."""
        cma, adaptation = importlib.import_module("cma"), importlib.import_module("cma.sigma_adaptation")
        bounds: list[Any] = state.memory["bounds"].tolist()
        cells = state.memory["cells"].numpy()
        settings = {
            "randn": Normal(),
            "AdaptSigma": adaptation.CMAAdaptSigmaCSA,  # the other rule checks itself with global draws
            "CMA_diagonal": self.diagonal,
            "verbose": -9,
            "verb_log": 0,
        }
        if self.population is not None:
            settings["popsize"] = self.population
        width = bounds[1] - bounds[0] if bounds else 1.0
        begin = _in_cells(state.memory["start"].numpy(), cells)
        if cells.any():
            bounds = [list(_in_cells(np.full(len(cells), bound), cells)) for bound in bounds]
            settings |= {"integer_variables": list(cells.nonzero()[0]), "CMA_stds": np.where(cells, cells, 1.0)}
        if bounds:
            settings["bounds"] = bounds
        return cma.CMAEvolutionStrategy(begin, self.sigma * width, settings)

    def population_of(self, search: Any, state: ServerState, round_: int) -> Points:
        """The candidates of a round."""
        with _lent(search, state, round_):
            return _out_of_cells(np.stack(search.ask()), state.memory["cells"].numpy())

    def told(self, search: Any, state: ServerState, round_: int, values: list[float]) -> Any:
        """The search after the values of a round's candidates."""
        with _lent(search, state, round_):
            search.tell(search.ask(), values)
            search.sm.update_now()  # takes C apart where that is due, which both drawings of the next round would do
        search.cells = state.memory["cells"].numpy()
        return search

    def favourite(self, search: Any) -> Points:
        """The mean."""
        return _out_of_cells(np.array(search.result.xfavorite), search.cells)

    def seen_of(self, search: Any) -> Metrics:
        """The step size."""
        return {"sigma": float(search.sigma)}


def _in_cells(x: Points, cells: np.ndarray) -> Points:
    """Points of the box with whole numbers 0, 1, ... in the middle of cells."""
    return np.where(cells, x * cells - 0.5, x)


def _out_of_cells(u: Points, cells: np.ndarray) -> Points:
    return np.where(cells, (u + 0.5) / np.maximum(cells, 1), u)


@contextmanager
def _lent(search: Any, state: ServerState, round_: int) -> Iterator[Any]:
    """The search with the generator of a round."""
    normal = search.opts["randn"]
    normal.generator = Streams(int(state.memory["seed"])).generator("population", turn=round_)
    yield search
    normal.generator = None

"""CMA-ES with margin: a search of numbers, some of them whole, whose steps between whole numbers never die out.

x_j ~ m + sigma A N(0, C), j = 1..n, whole numbers of it rounded;  F(x_j) = sum_i w_i f_i(x_j), by default w_i = 1/k
After each round m and A are moved as far as it takes that a whole number other than that of m is drawn with a
probability of 1 / (d n) at least. The global model is m.
Downlink n d floats a client, uplink n floats and n evaluations. Hamano, Saito, Nomura and Shirakawa 2022, by the
package `cmaes` (pip install 'fedsim-lab[cmaes]'). Solutions are drawn again until numbers are within the box.
"""

from __future__ import annotations

import importlib
import math
import pickle
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fedsim.server import InputError, PositiveFloat, ProblemView, ServerState, Streams, options
from fedsim.zeroth_order import AskTell, Points


@options
class CmaEsMargin(AskTell):
    """Needs the client `values`; whole numbers are those of a space.

    The state is what the search was told, from which a resumed run makes it again.
    """

    kind: ClassVar[str] = "cma_es_margin"
    package: ClassVar[str] = "cmaes"

    sigma: PositiveFloat = 0.25
    """The initial step size, in widths of the problem's box, or as it is where there is none."""
    population: Annotated[int, Field(ge=5)] | None = None
    """n, solutions a round. Not given: 4 + floor(3 ln d)."""

    def init(self, problem: ProblemView) -> ServerState:
        """Where the search begins, and nothing that it was told."""
        state = super().init(problem)
        if len(state.params) == 1:
            remedy = "the package cmaes searches two coordinates or more; take cbo"
            raise InputError("strategy.kind", self.kind, remedy)
        return state

    def begun(self, state: ServerState) -> Any:
        """The search as the package begins it."""
        low, high = state.memory["bounds"].tolist() or (-math.inf, math.inf)
        width = high - low if math.isfinite(high) else 1.0
        cells, start = state.memory["cells"].numpy(), state.memory["start"].numpy()
        steps = np.where(cells, width / np.maximum(cells, 1), 0.0)
        bounds = np.stack((low + steps / 2, high - steps / 2), axis=1)
        return importlib.import_module("cmaes").CMAwM(
            mean=start.clip(bounds[:, 0], bounds[:, 1]),
            sigma=self.sigma * width,
            bounds=bounds,
            steps=steps,
            population_size=self.population,
            seed=0,
        )

    def population_of(self, search: Any, state: ServerState, round_: int) -> Points:
        """The candidates of a round, as they are evaluated."""
        return np.stack([rounded for rounded, _ in _asked(search, state, round_)])

    def told(self, search: Any, state: ServerState, round_: int, values: list[float]) -> Any:
        """The search after the values of a round's candidates, which it is told as they were drawn."""
        asked = _asked(search, state, round_)
        search.tell([(raw, value) for (_, raw), value in zip(asked, values, strict=True)])
        # What is kept at hand has lost the lower half of C, which the package leaves out of a pickle, and so has this.
        return pickle.loads(pickle.dumps(search))

    def favourite(self, search: Any) -> Points:
        """The mean, within the box."""
        return np.array(search.mean).clip(search._cma._bounds[:, 0], search._cma._bounds[:, 1])


def _asked(search: Any, state: ServerState, round_: int) -> list[tuple[Points, Points]]:
    """What a round draws: each point as it is evaluated, and as it was drawn."""
    search.reseed_rng(Streams(int(state.memory["seed"])).derive("population", turn=round_) >> 32)
    return [search.ask() for _ in range(search.population_size)]

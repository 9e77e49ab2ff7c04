"""The searches of the package evosax, by a server that knows F as its clients tell it.

x_j, j = 1..n, from the search's distribution;  F(x_j) = sum_i w_i f_i(x_j), by default w_i = 1/k
The global model is the distribution's mean. Downlink n d floats a client, uplink n floats and n evaluations. Lange
2023 (pip install 'fedsim-lab[evosax]'), which computes in single precision. Where there is a box points are clipped.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.server import Metrics, PositiveFloat, ServerState, Streams, options
from fedsim.zeroth_order import AskTell, Points


@options
class Evosax(AskTell):
    """Needs the client `values`.

    The state is what the search was told, from which a resumed run makes it again.
    """

    kind: ClassVar[str] = "evosax"
    package: ClassVar[str] = "evosax"

    algorithm: Literal[
        "CMA_ES", "Sep_CMA_ES", "MA_ES", "LM_MA_ES", "Rm_ES", "CR_FM_NES", "SNES", "xNES", "PGPE", "SimpleES", "ARS"
    ] = "CMA_ES"
    """Which of its searches that have a mean and a first deviation."""
    sigma: PositiveFloat = 0.25
    """The first deviation, in widths of the problem's box, or as it is where there is none."""
    population: Annotated[int, Field(ge=4, multiple_of=2)] = 16
    """n, solutions a round."""

    def begun(self, state: ServerState) -> Any:
        """The package's state before the first round, and the box."""
        jax, bounds = importlib.import_module("jax"), state.memory["bounds"].tolist()
        made, params = _made(self.algorithm, self.population, len(state.params))
        width = bounds[1] - bounds[0] if bounds else 1.0
        params = params.replace(std_init=self.sigma * width)
        start = jax.numpy.asarray(state.memory["start"].numpy(), dtype="float32")
        return {"state": made.init(_key(state, -1), start, params), "params": params, "box": bounds}

    def population_of(self, search: Any, state: ServerState, round_: int) -> Points:
        """The candidates of a round."""
        asked, _ = self._asked(search, state, round_)
        return np.clip(asked, *search["box"]) if search["box"] else asked

    def told(self, search: Any, state: ServerState, round_: int, values: list[float]) -> Any:
        """The search after the values of a round's candidates, which it is told as they were drawn."""
        jax, (made, _) = importlib.import_module("jax"), _made(self.algorithm, self.population, len(state.params))
        asked, after = self._asked(search, state, round_)
        points, fitness = (jax.numpy.asarray(rows, dtype="float32") for rows in (asked, values))
        told, _ = made.tell(_key(state, round_), points, fitness, after, search["params"])
        return {**search, "state": told}

    def favourite(self, search: Any) -> Points:
        """The mean, within the box."""
        mean = np.array(search["state"].mean, dtype=np.float64)
        return np.clip(mean, *search["box"]) if search["box"] else mean

    def seen_of(self, search: Any) -> Metrics:
        """The mean deviation, where the search has one."""
        found = getattr(search["state"], "std", None)
        return {} if found is None else {"sigma": float(np.mean(np.asarray(found)))}

    def _asked(self, search: Any, state: ServerState, round_: int) -> tuple[Points, Any]:
        made, _ = _made(self.algorithm, self.population, len(state.params))
        asked, after = made.ask(_key(state, round_), search["state"], search["params"])
        return np.array(asked, dtype=np.float64), after


@lru_cache(maxsize=8)
def _made(algorithm: str, population: int, dimension: int) -> tuple[Any, Any]:
    """The package's search, which compiles itself once, and its parameters."""
    jax, known = importlib.import_module("jax"), importlib.import_module("evosax.algorithms").algorithms
    made = known[algorithm](population_size=population, solution=jax.numpy.zeros(dimension))
    return made, made.default_params


def _key(state: ServerState, round_: int) -> Any:
    """Jax's key of a round."""
    seed = Streams(int(state.memory["seed"])).derive("population", turn=round_ + 1)
    return importlib.import_module("jax").random.key(seed >> 33)

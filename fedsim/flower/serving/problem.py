"""What strategies may know of an app's clients: how many there are, how many examples each has, and the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.nets.stack import Layout
from fedsim.problems.base import Trial
from fedsim.problems.measures import Measure


class AppProblem:
    """Somebody else's clients, as a `fedsim.problems.base.Looped` problem, of which they tell as they come.

    How many examples a client has is known when it has answered; until then it counts with the mean of the others.
    Nothing is measured here: the app judges its model itself.

    params: the model to start from, [d]. layout: where its arrays lie in that. bounds: of the box that searches keep
    to; None: R^d. census: counts the changes of who there is and of what they have. renewed: numbers of clients that
    have forgotten what they were sent, until somebody empties it.
    """

    oracle = None
    may_fail = True
    trained = None
    cells = None

    def __init__(self, params: Tensor, layout: Layout, bounds: tuple[float, float] | None = None) -> None:
        self._params, self.layout, self.bounds = params, layout, bounds
        self.device, self.dtype = params.device, params.dtype
        self.census, self.renewed = -1, set[int]()
        self.know(np.zeros(0))

    def classes(self) -> int:
        """InputError: the app does not say."""
        raise InputError("strategy", "in an app", "it wants to know of classes, of which an app says nothing")

    def features(self) -> int:
        """InputError: the app does not say."""
        raise InputError("strategy", "in an app", "it wants to know of features, of which an app says nothing")

    @property
    def num_clients(self) -> int:
        """N, how many have come so far."""
        return len(self.known)

    @property
    def dimension(self) -> int:
        """d, how many parameters are in the vector."""
        return self._params.numel()

    def initial(self) -> Tensor:
        """The parameters to start from, [d]."""
        return self._params

    def grow(self, population: int) -> None:
        """Say that there are so many clients now, of whom nobody has left for good."""
        self.know(np.concatenate((self.known, np.zeros(population - len(self.known)))))

    def learn(self, examples: Mapping[int, float]) -> None:
        """Take in how many examples clients have, by their numbers."""
        known = self.known.copy()
        known[list(examples)] = list(examples.values())
        if not np.array_equal(known, self.known):
            self.know(known)

    def renew(self, clients: Iterable[int]) -> None:
        """Say that clients have forgotten what they were sent: other nodes are in their places, or they began anew."""
        self.renewed |= set(clients)
        self.census += 1

    def know(self, examples: Sequence[float] | np.ndarray) -> None:
        """Say how many examples each client has, [N]; 0: that is not known."""
        known = np.asarray(examples, np.float64)
        told = known[known > 0]
        mean = told.mean() if len(told) else 1.0
        self.known, self.census = known, self.census + 1
        self.sizes = torch.from_numpy(np.maximum(np.rint(np.where(known > 0, known, mean)), 1).astype(np.int64))

    def evaluate(
        self,
        params: Tensor,  # noqa: ARG002
        *,
        clients: bool,  # noqa: ARG002
        on: Collection[str],  # noqa: ARG002
        metrics: Sequence[Measure] = (),  # noqa: ARG002
    ) -> dict[str, float]:
        """Nothing: the app judges the model itself."""
        return {}

    def evaluates_clients(self, wanted: bool | str) -> bool:  # noqa: ARG002
        """No."""
        return False

    def attacked(self, params: Tensor, trial: Trial) -> dict[str, float]:  # noqa: ARG002
        """Nothing."""
        return {}

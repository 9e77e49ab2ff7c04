"""DeComFL: FedAvg over K zeroth-order steps, in which only seeds and scalars cross.

x <- x - lr * (1/P) sum_p gbar_kp z_kp, for k = 0 .. K-1 and p = 0 .. P-1;  gbar the mean of the clients' arrays [K, P]
Uplink K P floats a client. Downlink K seeds of 8 bytes, and for each round since it last took part, that one included,
K seeds and K P floats; a client begins with the model (d floats), or with the whole log where the first model is
public. As all clients draw the same directions, this is the mean of their local models. Li et al. 2025. Another
aggregator takes the place of the mean of the arrays. Rounds in which nobody answers leave nothing in the log.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import (
    Metrics,
    Order,
    Passes,
    PositiveInt,
    ProblemView,
    Replies,
    ServerState,
    Streams,
    Window,
    options,
)
from fedsim.zeroth_order import SEED, ReplicaServer, mean_loss, of_scalars


@options
class DeComFL(ReplicaServer):
    """Needs the client `decomfl`."""

    purpose: ClassVar[str] = "decomfl"
    columns: ClassVar[tuple[str, ...]] = ("seeds", "scalars")
    down: ClassVar[frozenset[str]] = frozenset(
        {"params", "rounds", "seeds", "scalars", "now", "from", "at", "lr", "directions", "perturbations"}
    )
    up: ClassVar[frozenset[str]] = frozenset({"scalars"})

    steps: Passes = 1
    """K, local steps of a round."""
    perturbations: PositiveInt = 1
    """P, directions of a step."""

    def init(self, problem: ProblemView) -> ServerState:
        """An empty log, and nobody has joined."""
        params = problem.initial()
        seeds = torch.zeros(0, self.steps, dtype=torch.int64, device=params.device)
        return self.begin(problem, {"seeds": seeds, "scalars": params.new_zeros(0, self.steps * self.perturbations)})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the round's seeds and what the clients lack of the log; wait for everybody."""
        row = SEED * self.steps + self.steps * self.perturbations * state.params.element_size()
        sizes = torch.full((len(state.memory["rounds"]),), row)
        config = {"perturbations": self.perturbations}
        return self.order(state, chosen, {"now": self._seeds(state)}, config, sizes, joining=0, every=SEED * self.steps)

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take the steps along the mean of the arrays."""
        mean = replies.combine(replies.weights("uniform"), name="scalars").unsqueeze(0)
        row = {"rounds": self.in_round(state, 1), "seeds": self._seeds(state).unsqueeze(0), "scalars": mean}
        if not len(replies):
            row = {name: column[:0] for name, column in row.items()}
        params = of_scalars(row).apply_(state.params.clone(), self.lr, self.directions)
        return self.proceed(state, replies, params, row), mean_loss(replies), True

    def _seeds(self, state: ServerState) -> Tensor:
        """The seeds of the round's steps, int64 [K]; the server's own seed stays with it."""
        own = Streams(int(state.memory["seed"]))
        seeds = [own.seed_of("step", turn=state.round, step=step) for step in range(self.steps)]
        return torch.tensor(seeds, device=state.params.device)

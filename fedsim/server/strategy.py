"""What every strategy offers, and the server step that most of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedsim.core.graph import storable
from fedsim.core.options import PositiveFloat, options
from fedsim.exchange.messages import Order, Replies, Weighting
from fedsim.exchange.windows import Window
from fedsim.server.optimizers import ServerOptimizer, Sgd

Metrics = Mapping[str, float]


class ProblemView(Protocol):
    """What a strategy may know of the problem."""

    sizes: Tensor
    """Examples of each client, int64 [N]."""

    @property
    def num_clients(self) -> int:
        """N, how many clients there are."""
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The box [lower, upper]^d to which parameters belong; None: R^d."""
        ...

    def initial(self) -> Tensor:
        """The parameters to start from, [d]."""
        ...


@storable("server-state")
@dataclass(frozen=True)
class ServerState:
    """A strategy's state: the global model, the round (completed so far), and vectors of the strategy's own.

    phase: of a round of several windows, how many of them are done.
    """

    params: Tensor
    round: int = 0
    phase: int = 0
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)


class Strategy(Protocol):
    """A server algorithm. Pure: state goes in and a new state comes out; inputs are never modified.

    sends: names in the payload and the configuration of its orders. expects: names that it reads from replies. It may
    also have `aggregates`, False where it combines no replies, so that no aggregator could matter; `check(at_once,
    population, steady)`, which refuses (InputError) options that do not go with so many clients at work at once, of so
    many, or with clients that sleep or fail (not steady); and two methods that are called once after `init` and return
    the state to begin with: `seeded(state, streams)` for one that draws, which keeps a seed that it derives from the
    run's named streams; and `plan(state, durations)`, with the seconds that its first order takes each client, float64
    [N], or None where they are random or unknown.
    """

    @property
    def sends(self) -> frozenset[str]:
        """Names in the payload and the configuration of its orders."""
        ...

    @property
    def expects(self) -> frozenset[str]:
        """Names that it reads from replies."""
        ...

    def init(self, problem: ProblemView) -> ServerState:
        """The state before the first round."""
        ...

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """What to send to the chosen clients, int64 [C], and when to look again."""
        ...

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """The state after a window's replies, what was observed, and whether that completed a round.

        If not, the next window is for the clients that answered this one.
        """
        ...


@options
class ServerStep:
    """The server's step theta <- theta + optimizer(Delta), Delta = sum_i w_i Delta_i."""

    server_lr: PositiveFloat = 1.0
    """eta, the server's learning rate."""
    server_optimizer: ServerOptimizer = Sgd()
    """What makes a step of the change: sgd (FedAvgM with a momentum), or adagrad, adam, yogi (FedOpt)."""

    def init(self, problem: ProblemView) -> ServerState:
        """The state before the first round."""
        params = problem.initial()
        return ServerState(params, optimizer=self.server_optimizer.init(params))

    def advance(self, state: ServerState, replies: Replies, delta: Tensor, **memory: Tensor) -> ServerState:
        """The state one round later, the model moved along delta [d]; without replies it stays, and so do momenta."""
        if not len(replies):
            return ServerState(state.params, state.round + 1, 0, state.optimizer, {**state.memory, **memory})
        step, optimizer = self.server_optimizer.step(state.optimizer, delta, self.server_lr)
        return ServerState(state.params + step, state.round + 1, 0, optimizer, {**state.memory, **memory})


@options
class WeightedStep(ServerStep):
    """The server's step, where clients count as they do in the objective sum_i p_i f_i."""

    weighting: Weighting = "examples"
    """p_i in proportion to the clients' examples, or the same for all (uniform)."""


def observed(replies: Replies) -> Metrics:
    """The metrics that every strategy reports: the clients' mean training loss, and what else they tell.

    cosine, of an estimated direction to the gradient; difficulty, the mean score of a curriculum.
    """
    found = {"train_loss": replies.mean("loss")} | {name: replies.mean(name) for name in ("cosine", "difficulty")}
    return {name: value for name, value in found.items() if value is not None}

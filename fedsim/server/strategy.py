"""What every strategy offers, and the plain round that most of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.graph import storable
from fedsim.core.options import Decay, Rate, options
from fedsim.core.plugins import HasPlugins, refuse_misspelt
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Late, Order, Replies, Scalar, Weighting
from fedsim.exchange.windows import All, Window
from fedsim.nets.optimizers import Optimizer
from fedsim.nets.stack import Layout
from fedsim.server.distillation import Bench
from fedsim.server.optimizers import OptimizerState, ServerOptimizer
from fedsim.server.rules import ServerRule

Config = Mapping[str, Scalar]
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
    def layout(self) -> Layout:
        """Where the parameters lie in the vector; of what is no model it is one leaf, [d]."""
        ...

    @property
    def trained(self) -> int | None:
        """How many numbers of the parameters, from the first, are trained; None: all.

        What follows are running statistics, which are averaged as they are: no step of a server's own moves them.
        """
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The box [lower, upper]^d to which parameters belong; None: R^d."""
        ...

    @property
    def cells(self) -> Tensor | None:
        """Of each coordinate of the box how many whole numbers it stands for, int64 [d], 0 of others; None: of none."""
        ...

    def classes(self) -> int:
        """K, of how many classes an example has one. InputError: it has none, or several."""
        ...

    def features(self) -> int:
        """h, how many numbers the model's head reads of an example. InputError: that is not known."""
        ...

    def initial(self) -> Tensor:
        """The parameters to start from, [d]."""
        ...


@storable("server-state")
@dataclass(frozen=True)
class ServerState:
    """A strategy's state: the global model, the round (completed so far), and vectors of the strategy's own.

    phase: of a round of several windows, how many of them are done. trained: as of `ProblemView`.
    """

    params: Tensor
    round: int = 0
    phase: int = 0
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    trained: int | None = None

    def joined(self, step: Tensor, statistics: Tensor) -> Tensor:
        """A vector [d] of what is trained from `step` [d], and of running statistics from the other [d]."""
        if self.trained is None:
            return step
        return torch.cat((step[: self.trained], statistics[self.trained :]))


class Strategy(ABC):
    """A server algorithm. Pure: state goes in and a new state comes out; inputs are never modified.

    What it does not say itself is as it stands here; `down`, `up`, `init`, `ask` and `tell` it must say.
    """

    adds_up: ClassVar[frozenset[str]] = frozenset()
    """Names of what it reads from replies as changes of what it remembers, which it adds up."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Strategy)

    @property
    @abstractmethod
    def down(self) -> frozenset[str]:
        """Names in the payload and the configuration of its orders."""

    @property
    @abstractmethod
    def up(self) -> frozenset[str]:
        """Names that it reads from replies."""

    @property
    def aggregates(self) -> bool:
        """Whether it combines replies; where it does not, no aggregator could matter."""
        return True

    @property
    def in_parts(self) -> bool:
        """Whether it combines parts of a window's replies, down to a single one, by themselves."""
        return False

    @property
    def summed(self) -> Weighting | None:
        """How it weighs changes, if their weighted mean is all that it reads of replies; None: it reads more."""
        return None

    @property
    def for_all(self) -> bool:
        """Whether its parameters are a model for all clients; where they are not, only clients' own are judged."""
        return True

    @property
    def largest_batch(self) -> int:
        """The most examples that it asks clients to make a step about; 0: it leaves that to them."""
        return 0

    @property
    def distils(self) -> bool:
        """Whether its server trains the model itself, on public inputs: at the end of a round `refine` is called."""
        return False

    @property
    def unresumable(self) -> str | None:
        """Why a run could not go on from a checkpoint; None: it can."""
        return None

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: B027
        """Refuse (InputError) options that do not go with the clients of a run.

        at_once: how many are at work at once. population: of how many. steady: whether none of them sleeps or fails.
        """

    @abstractmethod
    def init(self, problem: ProblemView) -> ServerState:
        """The state before the first round."""

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:  # noqa: ARG002
        """The state to begin with, after `init`: of a strategy that draws, with a seed from the run's named streams."""
        return state

    def plan(self, state: ServerState, durations: Tensor | None) -> ServerState:  # noqa: ARG002
        """The state to begin with, after `seeded`.

        durations: the seconds that the first order takes each client, float64 [N]; None: they are random or unknown.
        """
        return state

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:  # noqa: ARG002
        """The state where there are more clients than before, or their numbers of examples are better known.

        problem: as it is now. Clients of before keep their numbers; new ones follow, and begin with nothing. It may
        come between any two calls: before `tell`, where replies were the first to say how many examples there are. The
        model, the round and the phase stay. Before the first round it comes to what `init` makes of the problem. A
        strategy that remembers something of each client, or of how many there are, says here what becomes of it; by
        default the state stays as it is. InputError: options do not go with clients that come later.
        """
        return state

    def forget(self, state: ServerState, clients: Tensor) -> ServerState:  # noqa: ARG002
        """The state where clients, int64 [k], no longer remember anything: they began anew, or others came.

        The model, the round and the phase stay. A strategy that sends clients no more than they lack says here that
        these lack everything; by default the state stays as it is.
        """
        return state

    @abstractmethod
    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """What to send to the chosen clients, int64 [C], and when to look again."""

    @abstractmethod
    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """The state after a window's replies, what was observed, and whether that completed a round.

        If not, the next window is for the clients that answered this one.
        """

    def refine(self, state: ServerState, replies: Replies, bench: Bench) -> tuple[ServerState, Metrics]:  # noqa: ARG002
        """The state at the end of a round, and what was observed, where the server has trained the model itself.

        state: as `tell` has left it, of the same replies; the round stays. It is called where the strategy `distils`.
        """
        return state, {}


@options
class ClientRate:
    """What a strategy takes clients' steps for that reckons with their length, of which no reply tells."""

    client_lr: Rate = 0.1
    """lr, which is to be the clients' own learning rate: 1 / lr is what the curvature of a loss is taken for."""


@options
class ServerStep(HasPlugins):
    """The server's step theta <- theta + optimizer(Delta), for strategies that take one."""

    parts: ClassVar[Mapping[str, str]] = {"server_optimizer": "server_optimizers"}

    server_lr: Rate = 1.0
    """eta, the server's learning rate."""
    server_optimizer: Any = "sgd"
    """What makes a step of the change: sgd (FedAvgM with a momentum), or adagrad, adam, yogi (FedOpt), or any other
    rule of `client.optimizer` that needs the gradient alone, which is -Delta. Adaptive ones want a rate below 1.
    """
    server_weight_decay: Decay = 0.0
    """Factor of the parameters, taken from the change, or, where the optimizer decouples it, as lion does, by which
    times server_lr they shrink.
    """
    report_norms: bool = False
    """Report how long the mean change is, of what is trained: change_norm (l2) and change_norm_l1, of which
    `fedsim schedule` makes a schedule.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stepping  # noqa: B018  # what a server cannot do is refused when the experiment is read

    @cached_property
    def stepping(self) -> ServerOptimizer:
        """The optimizer. InputError: it is none, or needs what a server has not."""
        made = self.made["server_optimizer"]
        if isinstance(made, Optimizer):
            return ServerRule(made, self.server_weight_decay if made.decoupled else 0.0)
        if not isinstance(made, ServerOptimizer):
            remedy = "make it a subclass of fedsim.server.ServerOptimizer, or of fedsim.client.Optimizer"
            raise InputError("server_optimizer", type(made).__name__, remedy)
        return made

    def init(self, problem: ProblemView) -> ServerState:
        """The state before the first round."""
        params = problem.initial()
        return ServerState(params, optimizer=self.stepping.init(params, problem.layout), trained=problem.trained)

    def moved(self, state: ServerState, delta: Tensor) -> tuple[Tensor, OptimizerState]:
        """Where the model comes to along delta [d], by which running statistics move, and the optimizer's state."""
        optimizer, change = self.stepping, delta
        if self.server_weight_decay and not (isinstance(optimizer, ServerRule) and optimizer.rule.decoupled):
            change = delta - self.server_weight_decay * state.params
        step, remembered = optimizer.step(state.optimizer, change, self.server_lr, state.params)
        return state.params + state.joined(step, delta), remembered

    def advance(self, state: ServerState, replies: Replies, delta: Tensor, **memory: Tensor) -> ServerState:
        """The state one round later, the model moved along delta [d]; without replies it stays, and so do momenta.

        Running statistics move by delta itself.
        """
        later = replace(state, round=state.round + 1, phase=0, memory={**state.memory, **memory})
        if not len(replies):
            return later
        params, optimizer = self.moved(state, delta)
        return replace(later, params=params, optimizer=optimizer)

    def seen(self, state: ServerState, replies: Replies, delta: Tensor) -> Metrics:
        """What is `observed` of replies, and if that is asked for how long delta [d] is, which was made of them."""
        metrics = observed(replies)
        if not self.report_norms or not len(replies):
            return metrics
        trained = delta[: state.trained].double()
        return {**metrics, "change_norm": float(trained.norm()), "change_norm_l1": float(trained.norm(p=1))}


@options
class Averaging(ServerStep, Strategy):
    """The plain round: theta <- theta + optimizer(Delta), Delta = sum_i w_i Delta_i, once everybody has answered.

    w_i = p_i over those who answer. A subclass says what is different: what clients are sent beside the model
    (`config`, `message`), what becomes of their changes (`change`), when the server looks again (`ask`).
    """

    weighting: Weighting = "examples"
    """p_i in proportion to the clients' examples, or the same for all (uniform)."""

    @property
    def down(self) -> frozenset[str]:
        """The model, and the names of `config`."""
        return frozenset({"params", *self.config()})

    @property
    def up(self) -> frozenset[str]:
        """The change."""
        return frozenset({"delta"})

    @property
    def summed(self) -> Weighting | None:
        """See `Strategy`; of a subclass with a rule of its own nothing is known."""
        return self.sums(Averaging.tell)

    def sums(self, tell: object) -> Weighting | None:
        """What `summed` is of a class whose changes alone are averaged, and which goes on by this `tell`."""
        own = type(self)
        plain = own.change is Averaging.change and own.tell is tell and self.up == {"delta"} and not self.distils
        return self.weighting if plain else None

    def config(self) -> Config:
        """The settings that clients are sent."""
        return {}

    def message(self, state: ServerState) -> Mapping[str, Tensor]:
        """The vectors that clients are sent."""
        return {"params": state.params}

    def order(self, state: ServerState, chosen: Tensor, late: Late = "cancel") -> Order:
        """The order to train, for clients int64 [C]. late: what becomes of those who miss the window's close."""
        return Order("train", chosen, self.message(state), self.config(), state.round, late)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Have the chosen clients train; wait for everybody."""
        return self.order(state, chosen), All()

    def change(self, state: ServerState, replies: Replies) -> Tensor:  # noqa: ARG002
        """Delta [d], the mean of the clients' changes."""
        return replies.combine(replies.weights(self.weighting))

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move along the mean change; where nobody answers, stay."""
        delta = self.change(state, replies)
        return self.advance(state, replies, delta), self.seen(state, replies, delta), True


def observed(replies: Replies) -> Metrics:
    """The metrics that every strategy reports: the clients' mean training loss, and what else they tell.

    cosine, of an estimated direction to the gradient; difficulty, the mean score of a curriculum; batch_size, the
    examples of a step where the server chooses them.
    """
    found = {"train_loss": replies.mean("loss")}
    found |= {name: replies.mean(name) for name in ("cosine", "difficulty", "batch_size")}
    return {name: value for name, value in found.items() if value is not None}

"""What an engine asks of a client algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from fedsim.core.options import BatchSize
from fedsim.core.plugins import refuse_misspelt
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Cost, Order
from fedsim.exchange.transforms import Shapes
from fedsim.nets.footprint import Beside
from fedsim.nets.stack import Stack


class Client(ABC):
    """A client algorithm. Its methods are named after the actions it can do: (Cohort) -> Update, `train` for one.

    What it does not say itself is as it stands here; `requires`, `up` and `cost` it must say.
    """

    batch_size: BatchSize = "full"
    """Examples that a step is about; full: all that the client has."""

    models: ClassVar[tuple[str, ...]] = ()
    """Names of what each client remembers, by `state`, that is a model, [d]: which begins as the problem does."""
    own_models: ClassVar[bool] = False
    """Whether each client has a model of its own, `personal`, by which it is judged."""
    commits: ClassVar[frozenset[str]] = frozenset()
    """Names of what it sends and remembers as it has arrived: `commit` is told where that is something else."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Client)

    @property
    @abstractmethod
    def requires(self) -> frozenset[str]:
        """Names in an order's payload and configuration that it must have."""

    @property
    def accepts(self) -> frozenset[str]:
        """Names that it reads beside those, where they are sent."""
        return frozenset()

    @property
    @abstractmethod
    def up(self) -> frozenset[str]:
        """Names it may put into a reply's payload."""

    @property
    def values_only(self) -> bool:
        """Whether all it asks of f_c is values."""
        return False

    @property
    def takes_slopes(self) -> bool:
        """Whether it takes values at points next to each other for slopes, which whole numbers have none of."""
        return False

    @property
    def keeps_statistics(self) -> bool:
        """Whether running statistics of batch normalisation, the last numbers of the parameters, are safe with it.

        They are if it moves parameters by gradients alone; what takes steps of its own in all of R^d leaves none.
        """
        return False

    @property
    def same_every_round(self) -> bool:
        """Whether it never asks its cohort for the round, so that clients of different rounds may work together."""
        return False

    @property
    def in_any_order(self) -> bool:
        """Whether its cohorts need not be sorted by steps where one loop takes all of a client's steps."""
        return False

    @property
    def views(self) -> int:
        """How many times it has each example in a batch."""
        return 1

    @property
    def for_tuning(self) -> bool:
        """Whether what it trains is where a client's own steps are to begin, as evaluation.finetune takes them."""
        return False

    def check(self, sent: frozenset[str]) -> None:  # noqa: B027
        """Refuse (InputError) options that do not go with what the server sends."""

    def commit(self, cohort: Cohort, lost: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Remember vectors as they have arrived. lost: what was sent less what arrived, [C, ...] by name."""

    def state(self, dimension: int) -> Shapes:  # noqa: ARG002
        """What each client remembers between rounds: shapes by name; zeros at first."""
        return {}

    def personal(self, cohort: Cohort) -> Tensor:
        """The models of some clients' own, [C, d], or [d] of all, from what they remember and an order that they lack.

        They need not have taken part. What they draw has names apart, and what they keep is not kept; nothing is
        written to what they remember. Metrics of the cohort, [C] by name, are columns of clients.csv.
        """
        return cohort.received("params")

    def outputs(self, cohort: Cohort, models: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] for inputs [k, B, ...] by which clients are judged, who have these models.

        They are the rows of `personal`, with what else stays with the clients, and it is the same cohort.
        """
        return cohort.network.outputs(models, x)

    def beforehand(self, cohort: Cohort) -> Mapping[str, Tensor]:  # noqa: ARG002
        """What replies have beside what the ordered action gives, [C, ...] by name; asked for before that is done."""
        return {}

    @abstractmethod
    def cost(self, order: Order, examples: Tensor) -> Cost:
        """What clients with so many examples [C] will do; held against what they did."""

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """How many numbers its work on one client takes at most beside the model's own.

        largest: examples that a client has at most. A client that trains has about six vectors of d.
        """
        return 6 * dimension

    def solving(self, shapes: Sequence[tuple[int, ...]], outputs: int) -> Beside:  # noqa: ARG002
        """What a step takes it to solve for, of so many outputs of its mini-batch; shapes: as of `operations`."""
        return Beside()

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:  # noqa: ARG002
        """Multiply-adds that a step takes it beside the model's; shapes: of the parameters, a black box has one."""
        return 0

"""What the loop, the engines and the runner ask of a problem, whatever it is about, and what it is built in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.attacks.attack import Attack
from fedsim.attacks.certificate import Certificate
from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.streams import Index, Streams
from fedsim.nets.footprint import Footprint
from fedsim.nets.losses import Loss, Targets
from fedsim.nets.private import Private
from fedsim.nets.stack import Layout
from fedsim.problems.measures import Measure
from fedsim.problems.partitions.base import Partitioner
from fedsim.server.strategy import ProblemView

ONE_AT_A_TIME = threading.Lock()
"""Held while scores are computed, which may be the training of a model."""


@dataclass(frozen=True)
class Setting:
    """What a problem is built in: all that it may know of the experiment beside its own options.

    seed: the run's. partition: which client has which examples. device, dtype: of parameters and inputs. folder: where
    data sets are.
    """

    seed: int
    partition: Partitioner
    device: torch.device
    dtype: torch.dtype
    folder: DataFolder


class Scores:
    """Numbers of each training example, [n], by what they come from: computed when first asked for, and then kept."""

    def __init__(self) -> None:
        self._makers: dict[Hashable, Callable[[], Tensor]] = {}
        self._made: dict[Hashable, Tensor] = {}

    def offer(self, name: Hashable, make: Callable[[], Tensor]) -> None:
        """Say what computes the numbers of that name; picklable, where the problem is to be sent to processes."""
        self._makers[name] = make

    def __getitem__(self, name: Hashable) -> Tensor:
        """The numbers of that name, which must have been offered."""
        with ONE_AT_A_TIME:  # cohorts ask from several threads
            if name not in self._made:
                self._made[name] = self._makers[name]()
            return self._made[name]

    def clear(self) -> None:
        """Forget what was computed: the model is another."""
        self._made.clear()


@dataclass(frozen=True, eq=False)
class Examples:
    """The training examples of all clients, on the device, once.

    x: inputs [n, ...]; y: targets [n, *places], what `task` says. order, begin, count: client c owns
    order[begin[c] : begin[c] + count[c]], int64; after those who take part come newcomers. num_classes: K, outputs of
    the model, of which labels need not have all; 0 where targets are no classes. scores: what else can be asked about
    the examples, [n].
    """

    x: Tensor
    y: Tensor
    order: Tensor
    begin: Tensor
    count: Tensor
    num_classes: int
    task: Targets
    scores: Scores = field(default_factory=Scores)

    @property
    def labelled(self) -> bool:
        """Whether an example has one class."""
        return self.task == "classes" and self.y.dim() == 1

    def of(self, first: int, last: int) -> Examples:
        """Those of the clients from `first` until before `last` alone, who are numbered from 0."""
        begin, count = self.begin[first:last], self.count[first:last]
        start = int(begin[0])
        return replace(self, order=self.order[start : int(begin[-1] + count[-1])], begin=begin - start, count=count)


@dataclass(frozen=True, eq=False)
class Model:
    """What is trained.

    module: the model, with dropout that draws by name. layout: where its parameters lie in the flat vector. loss: of an
    example. footprint: what one example costs. private: what of the vector stays with each client; None: nothing does,
    otherwise the problem's d is that of what is shared.
    """

    module: nn.Module
    layout: Layout
    loss: Loss
    footprint: Footprint
    private: Private | None = None


class Oracle(Protocol):
    """What answers a client where values are all there is."""

    def query(self, clients: Tensor, x: Tensor, streams: Streams, turn: Index, step: Index) -> Tensor:
        """Answers of clients int64 [C] at x [C, Q, d]: [C, Q]. Draws are named by (turn, step)."""
        ...

    def complaints(self) -> dict[int, str]:
        """Of each client whose evaluations have failed since the last call, what the first of them said."""
        ...

    def truth(self, clients: Tensor, x: Tensor) -> Tensor | None:
        """The gradient of F at points x [k, d], of which each is of a client, int64 [k]: [k, d]; None: not known."""
        ...


@dataclass(frozen=True)
class Trial:
    """How the global model is judged under attacks, and by what none can do.

    attacks: which, of different labels. on: of `test`, `train` and `validation` the sets that are attacked. examples:
    a sample of at most so many of each set; None: all. clients: attack each client's own examples too, all of them.
    streams: of what attacks draw. metrics: what is measured beside loss and accuracy. certify: what is bounded; None:
    nothing. There is an attack or that.
    """

    attacks: tuple[Attack, ...]
    on: tuple[str, ...]
    examples: int | None
    clients: bool
    streams: Streams
    metrics: Sequence[Measure] = ()
    certify: Certificate | None = None

    @property
    def named(self) -> tuple[str, object]:
        """An option that asks for it, and its value."""
        if self.attacks:
            return "attacks", ", ".join(attack.label for attack in self.attacks)
        return "certify", "given"


class Looped(ProblemView, Protocol):
    """What the loop asks of a problem, wherever its clients are: what a strategy may know, and how a model is judged.

    device, dtype: of the parameters.
    """

    device: torch.device
    dtype: torch.dtype

    @property
    def oracle(self) -> Oracle | None:
        """What clients ask for values; None: these are the model's losses."""
        ...

    @property
    def may_fail(self) -> bool:
        """Whether the run outlives evaluations that give no finite value."""
        ...

    @property
    def dimension(self) -> int:
        """d, how many parameters there are."""
        ...

    def evaluate(
        self, params: Tensor, *, clients: bool, on: Collection[str], metrics: Sequence[Measure] = ()
    ) -> dict[str, float]:
        """Measure the global model, by these measures, too; nothing of this counts as a query."""
        ...

    def evaluates_clients(self, wanted: bool | str) -> bool:
        """Whether `evaluate` is to measure clients too."""
        ...

    def attacked(self, params: Tensor, trial: Trial) -> dict[str, float]:
        """Measure the global model under attacks."""
        ...


@runtime_checkable
class Problem(Looped, Protocol):
    """N clients, each with data or with a black-box function, and how the global model is judged.

    sizes: examples of each client, int64 [N] on the CPU, of black boxes one each; sizes_on_device: the same there,
    followed by those of clients who never take part, N, N + 1 and so on. largest: the largest of them all. device,
    dtype: of the parameters. There are `data` and a `model`, or an `oracle`.
    """

    sizes_on_device: Tensor
    largest: int

    @property
    def data(self) -> Examples | None:
        """The clients' examples; None: there are none."""
        ...

    @property
    def model(self) -> Model | None:
        """What is trained on them; None: nothing is."""
        ...

    def losses(
        self, params: Tensor, clients: Tensor, sampled: Callable[[int], Tensor] | None, streams: Streams, turn: int
    ) -> Tensor:
        """Mean and root of the mean square of what parameters [d] cost each client, int64 [C]: float64 [C, 2].

        params: [d], or of models that have entries of their own a row a client.
        sampled: which of a client's examples count, by their places; None: all. Noise is named by (turn, 0) in
        `streams`. Every client by itself, so that its numbers do not depend on who else is asked.
        """
        ...

    def client_measures(
        self, params: Tensor, metrics: Sequence[Measure] = (), on: Collection[str] = ("test",)
    ) -> Mapping[str, Tensor]:
        """What parameters [d] come to on each client, by these measures, too, by name: [N] each.

        on: the sets that are measured; with `validation` and without `test`, on what each has set aside. Empty: no
        client is judged, but those who are set aside.
        """
        ...

    def measures(self, clients: bool | str, on: Collection[str], metrics: Sequence[Measure] = ()) -> list[str]:
        """The names that `evaluate` gives. InputError: a measure is none of what there is here."""
        ...

    def attacked_measures(self, trial: Trial) -> list[str]:
        """The names that `attacked` gives. InputError: this cannot be attacked so."""
        ...

    @property
    def names(self) -> Sequence[str] | None:
        """What the clients are called, where the data say so; None: by their numbers."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """Where the data are from and what was done to them, with their checksum, `sha256`; empty: there are none."""
        ...

    def labels(self) -> np.ndarray | None:
        """The mean label of each client's examples, [N]; None where there are no labels."""
        ...

    def tensors(self, params: Tensor) -> Mapping[str, Tensor]:
        """Parameters [d] by name, as they are saved."""
        ...

    def illustrate(self, place: Callable[[str], Path], params: Tensor) -> None:
        """Draw the problem's own pictures into the run folder, when all rounds are done. params: the last ones, [d]."""
        ...


EVALUATED_AT_ONCE = 2**24
"""Numbers that an evaluation's forward pass may make at once: with more they leave the cache, at twice the time."""
CLIENTS_EVALUATED = 1_000


def choose_device(wanted: str | torch.device, option: str = "engine.device") -> torch.device:
    """The device that is asked for by an option; auto is cuda where there is one."""
    wanted = str(wanted)
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(option, wanted, "name one of: auto, cpu, cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(option, wanted, "there is no CUDA device here; use cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

"""What every rule of a step keeps to, beside what clients keep to that train with it."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fedsim.nets.optimizers import Beginning, Optimizer
from fedsim.nets.stack import Stack
from fedsim.problems.own_data import supervised
from fedsim.testing.problems import TRAINING
from fedsim.testing.specimen import Specimen
from fedsim.testing.subject import Subject, simulate

SHAPES = ((7, 11), (7,), (5, 7), (5,))
"""Of the parameters of which is counted what a rule remembers: 124 numbers."""
FEW = 16
"""Numbers a client beside its vectors that nobody asks it to declare."""

SAME = 1e-10
"""By how much parameters in double precision may differ, of the largest, where sums are taken in another order."""


class Stepping(Specimen):
    """A rule, by which the clients of `small_problem` train. lr: their learning rate; None: the rule's usual one."""

    group: ClassVar[str] = "optimizers"

    def __init__(self, plugin: Optimizer, lr: float | None = None) -> None:
        super().__init__(plugin)
        self.lr = lr

    @property
    def client(self) -> dict[str, Any]:
        """The table of a client that trains by it."""
        table = {name: value for name, value in TRAINING.items() if name != "lr"}
        rate = {} if self.lr is None else {"lr": self.lr}
        return {"kind": "sgd", **table, **rate, "weight_decay": 0.01, "optimizer": self.table}

    @property
    def subject(self) -> Subject:
        """Clients that train by it, to be held to what all clients keep to."""
        return Subject({"client": self.client})

    def comes_to(self, **options: Any) -> Tensor:
        """The parameters after two rounds. options: of the client, beside those of its table."""
        return simulate(client=self.client | options, rounds=2, engine={"executor": "stacked"}).params


def where_there_is_nothing_to_learn_it_stays(specimen: Stepping) -> None:
    """Gradients of zeros, from parameters of zeros, leave these, and make nothing that is no number."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    problem = supervised(torch.zeros(6, 3), torch.zeros(6), model=model, clients=[[0, 1, 2, 3], [4, 5]])
    both = {"selection": {"kind": "uniform", "count": 2}, "engine": {"executor": "stacked"}}
    result = simulate(client=specimen.client, problem=problem, rounds=2, **both)
    assert result.status == "finished", f"gradients of zeros end in what is no number: {result.reason}"
    assert not bool(result.params.any()), f"gradients of zeros move parameters from 0 to {result.params.tolist()}"


def what_it_remembers_is_what_it_declares(specimen: Stepping) -> None:
    """So many vectors of the parameters' size, all with clients in front, and few numbers beside."""
    rule = cast(Optimizer, specimen.plugin)
    y = Stack([torch.ones(3, *shape) for shape in SHAPES])
    dimension = sum(leaf[0].numel() for leaf in y.leaves)
    kept = {name: torch.zeros(3, *shape) for name, shape in rule.kept(dimension).items()}
    memory, numbers = rule.begin(y, Beginning(torch.tensor([9, 5, 1]), kept)), 0
    for name, part in memory.items():
        for leaf in part.leaves:
            assert tuple(leaf.shape[:1]) == (3,), f"{name} has the shape {tuple(leaf.shape)}; its first axis is clients"
            numbers += leaf[0].numel()
    declared = rule.vectors * dimension
    assert numbers <= declared + FEW * len(SHAPES), (
        f"it remembers {numbers} numbers of a client, for {dimension} parameters; vectors = {rule.vectors} says fewer"
    )


def what_it_keeps_is_what_it_declares(specimen: Stepping) -> None:
    """What a client keeps from round to round needs to be said among `needs`, and has the shapes of `kept`."""
    rule = cast(Optimizer, specimen.plugin)
    y = Stack([torch.ones(3, *shape) for shape in SHAPES])
    shapes = rule.kept(sum(leaf[0].numel() for leaf in y.leaves))
    memory = rule.begin(y, Beginning(torch.tensor([9, 5, 1]), {n: torch.zeros(3, *own) for n, own in shapes.items()}))
    kept = {name: tuple(value.shape[1:]) for name, value in rule.keep(memory, y).items()}
    assert kept == dict(shapes), f"it keeps {kept}, and says that it keeps {dict(shapes)}"
    assert bool(kept) == ("state" in rule.needs), "what clients keep, and `needs` with or without 'state', go together"


def a_rate_for_each_client_is_as_good_as_one_for_all(specimen: Stepping) -> None:
    """Where all clients have the same rate, told as one number a client, they come to the same, but for rounding."""
    together, each = specimen.comes_to(), specimen.comes_to(local_schedule={"kind": "table", "factors": [1.0]})
    away = float((each - together).abs().max() / together.abs().max())
    assert away < SAME, f"the rate told as a tensor [k], parameters differ by {away:.1e} of the largest"


def it_can_be_of_nobody(specimen: Stepping) -> None:
    """Of no clients, as a node may have, it remembers, keeps and sends nothing, and fails at nothing."""
    rule = cast(Optimizer, specimen.plugin)
    y = Stack([torch.ones(0, *shape) for shape in SHAPES])
    shapes = rule.kept(sum(leaf.shape[1:].numel() for leaf in y.leaves))
    kept = {name: torch.zeros(0, *shape) for name, shape in shapes.items()}
    memory = rule.begin(y, Beginning(torch.zeros(0, dtype=torch.int64), kept))
    ended = [*rule.end(memory, y).leaves, *rule.keep(memory, y).values()]
    assert not any(leaf.numel() for leaf in ended), "of no clients it sends or keeps something"


CHECKS = (
    it_can_be_of_nobody,
    a_rate_for_each_client_is_as_good_as_one_for_all,
    where_there_is_nothing_to_learn_it_stays,
    what_it_remembers_is_what_it_declares,
    what_it_keeps_is_what_it_declares,
)

"""What every measure keeps to: outputs and targets of named draws, of each kind that it is for, and a run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.core.streams import Streams
from fedsim.nets.losses import Targets
from fedsim.problems.datasets.base import Task
from fedsim.problems.measures.base import LABEL
from fedsim.problems.own_data import supervised
from fedsim.running.build import build_simulation
from fedsim.testing.problems import mlp, small_experiment
from fedsim.testing.specimen import Specimen

CLIENTS = torch.tensor([9, 0, 1, 12, 18])
"""Examples of each client: one has none, one a single one, and the last's targets are all the same."""
WIDTH = 6
"""Classes, numbers or tags an example."""
SURE = 100.0
"""A logit beside which others do not count."""
TOLERANCE = 1e-9
TASKS: Mapping[Targets, Task] = {"classes": "classification", "numbers": "regression", "tags": "tags"}
"""What `supervised` calls each kind of targets."""


@dataclass(frozen=True)
class Case:
    """Outputs and targets of a kind, the clients' one after the other, and outputs that are right."""

    task: Targets
    outputs: Tensor
    targets: Tensor
    right: Tensor

    def of_clients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each client's outputs and targets."""
        sizes = CLIENTS.tolist()
        return zip(torch.split(self.outputs, sizes), torch.split(self.targets, sizes), strict=True)


class Measuring(Specimen):
    """A measure that is handed outputs and targets."""

    group: ClassVar[str] = "measures"

    def comes_to(self) -> Any:
        """What its columns are called, and its values on each set and for each client."""
        found: list[Any] = [self.plugin.label]
        for case in self.cases():
            of_clients = self.plugin.of_clients(case.outputs, case.targets, CLIENTS)
            found.append(np.array([self.plugin(case.outputs, case.targets), *of_clients.tolist()]))
        return found

    def cases(self) -> Iterator[Case]:
        """A case of each kind of targets that it says it is for."""
        for task in sorted(self.plugin.tasks):
            self.plugin.check(task, WIDTH)
            yield drawn(task)


def drawn(task: Targets) -> Case:
    """40 examples of each kind of targets."""
    owner, shape = torch.zeros(1, dtype=torch.int64), (int(CLIENTS.sum()), WIDTH)
    outputs, numbers = (Streams(0).normal(name, owner, shape, dtype=torch.float64)[0] for name in ("outputs", "y"))
    same = slice(int(CLIENTS[:-1].sum()), None)
    if task == "classes":
        targets = Streams(0).integers("classes", owner, shape[:1], WIDTH)[0]
        targets[same] = 2
        return Case(task, outputs, targets, SURE * torch.nn.functional.one_hot(targets, WIDTH).double())
    targets = numbers if task == "numbers" else (numbers > 0).double()
    targets[same] = targets[-1].clone()
    return Case(task, outputs, targets, targets.clone() if task == "numbers" else SURE * (targets - 0.5))


def it_says_what_it_is(specimen: Measuring) -> None:
    """Which targets it is for, which way it improves, and what columns are called."""
    measure = specimen.plugin
    assert isinstance(measure.higher_is_better, bool), "higher_is_better is neither True nor False"
    assert measure.tasks, "tasks is empty: it is for no targets"
    assert measure.tasks <= set(TASKS), f"tasks are some of {', '.join(TASKS)}, and not {sorted(measure.tasks)}"
    assert LABEL.fullmatch(measure.label), f"its columns would be called {measure.label!r}; small letters, digits and _"


def values_are_numbers(specimen: Measuring) -> None:
    """Finite, unless it says why the targets allow none."""
    for case in specimen.cases():
        value = specimen.plugin.of(case.outputs, case.targets)
        why = specimen.plugin.undefined(case.targets)
        assert why is not None or math.isfinite(value), f"of {case.task} it is {value}, and undefined() says nothing"
        assert why is None or (isinstance(why, str) and why), "undefined() gives a reason in words, or None"


def inputs_stay_as_they_were(specimen: Measuring) -> None:
    """The outputs and the targets that it is handed."""
    for case in specimen.cases():
        specimen.plugin(case.outputs, case.targets)
        before = drawn(case.task)
        assert torch.equal(case.outputs, before.outputs), "it has changed the outputs that it was handed"
        assert torch.equal(case.targets, before.targets), "it has changed the targets that it was handed"


def the_order_of_examples_does_not_matter(specimen: Measuring) -> None:
    """Examples in another order come to the same, up to rounding."""
    for case in specimen.cases():
        value = specimen.plugin(case.outputs, case.targets)
        order = Streams(1).permutation("order", torch.tensor([0]), len(case.targets))[0]
        other = specimen.plugin(case.outputs[order], case.targets[order])
        assert _alike(value, other), f"{case.task} in another order come to {other}, not {value}"


def each_client_is_measured_alone(specimen: Measuring) -> None:
    """A client's value is that of its examples; NaN where it has none, or the measure is undefined for them."""
    measure = specimen.plugin
    for case in specimen.cases():
        found = measure.of_clients(case.outputs, case.targets, CLIENTS)
        assert found.shape == CLIENTS.shape, f"of {len(CLIENTS)} clients of_clients gives {list(found.shape)}"
        for client, (outputs, targets) in enumerate(case.of_clients()):
            value = float(found[client])
            if not len(targets) or measure.undefined(targets) is not None:
                assert math.isnan(value), f"client {client} has nothing to be measured on, and {value}"
            else:
                alone = measure.of(outputs, targets)
                assert _alike(value, alone), f"client {client} has {value}, and its examples come to {alone}"


def what_is_right_is_no_worse(specimen: Measuring) -> None:
    """Outputs that are right are no worse than drawn ones, as higher_is_better says it, and none is beyond `best`."""
    measure = specimen.plugin
    sign = 1.0 if measure.higher_is_better else -1.0
    for case in specimen.cases():
        value, right = measure.of(case.outputs, case.targets), measure.of(case.right, case.targets)
        assert not sign * right < sign * value - TOLERANCE, f"right outputs come to {right}, and drawn ones to {value}"
        if measure.best is not None:
            beyond = max(sign * value, sign * right) - sign * measure.best
            assert not beyond > TOLERANCE, f"it says that its best is {measure.best}, and comes to {value} and {right}"


def it_measures_in_runs(specimen: Measuring) -> None:
    """A model and its clients are judged by it, in a run that is written down and read again."""
    for case in specimen.cases():
        problem = supervised(
            Streams(2).normal("x", torch.tensor([0]), (len(case.targets), 6), dtype=torch.float64)[0].numpy(),
            case.targets.numpy(),
            task=TASKS[case.task],
            model=mlp(classes=WIDTH),
            clients=[range(20), range(20, len(case.targets))],
            dtype=torch.float64,
            device="cpu",
        )
        evaluation = {"metrics": [specimen.table], "every": 1, "clients": True, "on": "train"}
        every = {"kind": "uniform", "fraction": 1.0}
        row = build_simulation(small_experiment(1, evaluation=evaluation, selection=every), problem).step()
        label = specimen.plugin.label
        names = [name for name in row if re.fullmatch(rf"(global_train|client)_{label}(_\w+)?", name)]
        assert f"global_train_{label}" in names, f"a run has no column global_train_{label}"
        assert all(math.isfinite(row[name]) for name in names)


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(one) and math.isnan(other))


CHECKS = (
    it_says_what_it_is,
    values_are_numbers,
    inputs_stay_as_they_were,
    the_order_of_examples_does_not_matter,
    each_client_is_measured_alone,
    what_is_right_is_no_worse,
    it_measures_in_runs,
)

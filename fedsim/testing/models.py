"""What every model keeps to: made for inputs of several kinds, and trained on those that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.problems.datasets import Dataset
from fedsim.problems.modules import build_model
from fedsim.problems.partitions.base import Partition
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment
from fedsim.testing.specimen import Specimen

EXAMPLES, CLASSES, TOKENS = 12, 3, 11
CLIENTS = (range(5), range(5, EXAMPLES))


@dataclass(frozen=True)
class Inputs:
    """A kind of inputs: the shape of one, and how many tokens there are, where these are tokens."""

    name: str
    shape: tuple[int, ...]
    vocabulary: int = 0

    def dataset(self, classes: int) -> Dataset:
        """Examples of named draws, with a class each."""
        owner, shape = torch.tensor([0]), (EXAMPLES, *self.shape)
        if self.vocabulary:
            x = Streams(0).integers("x", owner, shape, self.vocabulary)[0].numpy()
        else:
            x = Streams(0).normal("x", owner, shape)[0].numpy()
        y = np.arange(EXAMPLES) % classes
        return Dataset(self.name, x, y, x[:classes], y[:classes], num_classes=classes, vocabulary=self.vocabulary)


KINDS = (
    Inputs("vectors", (6,)),
    Inputs("grey images", (1, 16, 16)),
    Inputs("images", (3, 16, 16)),
    Inputs("sequences of numbers", (8, 4)),
    Inputs("tokens", (8,), TOKENS),
)


class Making(Specimen):
    """A model that is made for inputs of each kind."""

    group: ClassVar[str] = "models"

    def comes_to(self) -> Any:
        """Where training starts on each kind of inputs that it takes, and the outputs there."""
        return [
            (problem.initial().numpy(), problem.evaluate(problem.initial(), clients=False))
            for _, problem in self.problems()
        ]

    def problems(self, classes: int = CLASSES) -> Iterator[tuple[str, Supervised]]:
        """The problems on the kinds of inputs that it takes, by their names."""
        for inputs in KINDS:
            try:
                yield inputs.name, self.on(inputs, classes)
            except InputError:
                continue

    def on(self, inputs: Inputs, classes: int = CLASSES) -> Supervised:
        """The problem on a kind of inputs. InputError: it does not take them."""
        data = inputs.dataset(classes)
        lists = Partition.from_lists([np.arange(one.start, one.stop) for one in CLIENTS])
        return Supervised(data, lists, build_model(self.plugin, data, Streams(0)), dtype=torch.float64)


def it_takes_some_inputs(specimen: Making) -> None:
    """Of vectors, images, sequences of numbers and tokens some."""
    if not list(specimen.problems()):
        specimen.on(KINDS[0])  # which says why


def what_it_does_not_take_is_one_line(specimen: Making) -> None:
    """Inputs that it is not for are an InputError that says so, whose option is `model`."""
    for inputs in KINDS:
        try:
            specimen.on(inputs)
        except InputError:
            continue
        except Exception as error:
            raise AssertionError(f"of {inputs.name} it raises {type(error).__name__}: {error}") from error


def outputs_are_as_many_as_asked(specimen: Making) -> None:
    """The same kinds of inputs are taken with two classes and with five, and have an output for each."""
    wanted = [name for name, _ in specimen.problems()]
    for classes in (2, 5):
        found = [name for name, _ in specimen.problems(classes)]
        assert found == wanted, f"with {classes} classes it takes {found}, and with {CLASSES} {wanted}"


def it_trains_in_runs(specimen: Making) -> None:
    """Two rounds move its parameters, to what is finite."""
    for name, problem in specimen.problems():
        simulation = build_simulation(small_experiment(2, selection={"kind": "uniform", "fraction": 1.0}), problem)
        losses = [row["train_loss"] for row in simulation]
        assert np.isfinite(losses).all(), f"on {name} its losses are {losses}"
        assert not torch.equal(simulation.state.params, problem.initial()), f"on {name} nothing is learnt"


CHECKS = (
    it_takes_some_inputs,
    what_it_does_not_take_is_one_line,
    outputs_are_as_many_as_asked,
    it_trains_in_runs,
)

"""The examples that a model is judged on, and what is said of its outputs for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError, naming
from fedsim.core.measures import UNDEFINED
from fedsim.nets.losses import IGNORED, Loss
from fedsim.problems.base import Examples
from fedsim.problems.measures import Measure
from fedsim.problems.partitions.base import Partition

STATISTICS = {True: ("mean", "p10", "worst"), False: ("mean", "p90", "worst")}
"""What is said of the clients' values where higher is better, and where lower is, in the names of measures."""
HELD = {
    "test": "test",
    "global_train": "training",
    "validation": "validation",
    "client": "clients' own",
    "personal": "clients' own",
    "newcomer": "newcomers' own",
    "validation_client": "clients' validation",
    "validation_personal": "clients' validation",
    "validation_newcomer": "newcomers' validation",
}
"""What the examples of a set are, by the beginning of its measures' names."""


@dataclass(frozen=True)
class Rows:
    """Examples that a model is judged on: of x and y those with the numbers `index`, int64 [n]; None: all.

    source: which set the numbers are of, `test` or `train`.
    """

    source: str
    x: Tensor
    y: Tensor
    index: Tensor | None

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def covers(self, other: Rows) -> bool:
        """Whether `of` finds the outputs for other examples among those for these."""
        return self.source == other.source and (self.index is None or self.index is other.index)

    def of(self, outputs: Tensor, other: Rows) -> Tensor:
        """The outputs for other examples, of the outputs [n, *places, K] for these."""
        return outputs if self.index is other.index else outputs[other.numbers]

    @property
    def targets(self) -> Tensor:
        """Targets [n, *places]."""
        return self.y if self.index is None else self.y[self.index]

    @property
    def numbers(self) -> Tensor:
        """The examples' numbers, int64 [n]."""
        return torch.arange(len(self.x), device=self.x.device) if self.index is None else self.index


@dataclass(frozen=True, eq=False)
class Counted:
    """What measures are about: outputs [m, K] and targets [m] or [m, K], in double precision on the CPU.

    each: how many of them every example has, int64 [n].
    """

    outputs: Tensor
    targets: Tensor
    each: Tensor

    @cached_property
    def finite(self) -> bool:
        """Whether all outputs are finite; of others nothing is said, and the loss ends the run."""
        return bool(torch.isfinite(self.outputs).all())

    def of_clients(self, count: Tensor) -> Tensor:
        """How many each client has, int64 [N], where it has so many examples, one client after the other."""
        owner = torch.repeat_interleave(torch.arange(len(count)), count.cpu())
        return torch.zeros(len(count), dtype=torch.int64).index_add_(0, owner, self.each)


@dataclass(frozen=True, eq=False)
class Judged:
    """The sets of examples of a problem, and the scores of outputs [n, *places, K] for them.

    data: the training examples. x_test, y_test: the test set. partition: who has which. loss: of an example.
    """

    data: Examples
    x_test: Tensor
    y_test: Tensor
    partition: Partition
    loss: Loss

    def sets(self, on: Collection[str]) -> dict[str, Rows]:
        """The examples of each set that is measured, by the beginning of the measures' names."""
        found = {}
        if "test" in on and len(self.x_test):
            found["test"] = Rows("test", self.x_test, self.y_test, None)
        if "train" in on:
            found["global_train"] = Rows("train", self.data.x, self.data.y, self.data.order)
        if "validation" in on:
            found["validation"] = self.set_aside[0]
        return found

    def by_clients(self, on: Collection[str], whose: str = "client") -> dict[str, tuple[Rows, Tensor]]:
        """What clients are judged on, as `own` gives it, by the beginning of the measures' names.

        on: the sets that are measured. With `validation` examples set aside, of each client or of those set aside; and
        without `test` beside it these alone. whose: `client`, for the global model, or `personal`, for their own, or
        `newcomer`, for that of clients who never take part.
        """
        found = {f"validation_{whose}": self.set_aside} if "validation" in on else {}
        return found if found and "test" not in on else found | {whose: self.own()}

    @cached_property
    def set_aside(self) -> tuple[Rows, Tensor]:
        """The examples set aside for validation, one client after the other, and how many each has.

        InputError: there are none.
        """
        split = self.partition
        if split.validation_order is None or split.validation_offset is None:
            remedy = "no example is set aside for that; set partition.validation = 0.2 (of own data: validation=0.2)"
            raise InputError("on", "validation", remedy)
        order, _, count = ranges(split.validation_order, split.validation_offset, self.data.x.device)
        return Rows("train", self.data.x, self.data.y, order), count

    def own(self) -> tuple[Rows, Tensor]:
        """The examples that clients are judged on, one client after the other, and how many each has, int64 [N].

        Those of the test set, else those held out, else, where nobody has any, those that are trained on.
        """
        split = self.partition
        if split.order_test is not None and split.offset_test is not None and len(split.order_test):
            order, _, count = ranges(split.order_test, split.offset_test, self.data.x.device)
            return Rows("test", self.x_test, self.y_test, order), count
        if split.holdout_order is not None and split.holdout_offset is not None and len(split.holdout_order):
            order, _, count = ranges(split.holdout_order, split.holdout_offset, self.data.x.device)
            return Rows("train", self.data.x, self.data.y, order), count
        return Rows("train", self.data.x, self.data.y, self.data.order), self.data.count

    def kinds(self) -> tuple[str, ...]:
        """What is said of a set: its loss, and where predictions are right or wrong its accuracy."""
        return ("loss", "accuracy")[: 1 + self.has_accuracy]

    @cached_property
    def has_accuracy(self) -> bool:
        """Whether predictions are right or wrong."""
        return self.loss.task != "numbers"

    def beside(self, metrics: Sequence[Measure]) -> list[Measure]:
        """Those measures that are not taken in any case, as the accuracy of classes is."""
        return [measure for measure in metrics if measure.label not in self.kinds()]

    def scores(self, name: str, outputs: Tensor, rows: Rows, metrics: Sequence[Measure] = ()) -> dict[str, float]:
        """The loss of outputs [n, *places, K] for a set, and their accuracy, under names that begin with the set's.

        And measures, without those that are undefined.
        """
        correct = self.loss.correct(outputs, rows.targets)
        accuracy = {} if correct is None else {f"{name}_accuracy": float(correct.double().mean())}
        found = {f"{name}_loss": float(self.loss.examples(outputs, rows.targets).double().mean()), **accuracy}
        if (wanted := self.beside(metrics)) and (counted := self._counted(outputs, rows)).finite:
            values = {measure.label: measure.of(counted.outputs, counted.targets) for measure in wanted}
            found |= {f"{name}_{label}": value for label, value in values.items() if math.isfinite(value)}
        return found

    def client_measures(self, name: str, rows: Rows, count: Tensor, metrics: Sequence[Measure] = ()) -> list[str]:
        """The names of `client_scores`, but for counts; without measures that are undefined for every client."""
        kind, wanted = self.kinds()[-1], self.beside(metrics)
        kinds = {kind: kind != "loss"}
        if wanted:
            counted = self._counted(self._nothing(rows), rows)
            own = [part for part in torch.split(counted.targets, counted.of_clients(count).tolist()) if len(part)]
            said = [measure for measure in wanted if any(measure.undefined(part) is None for part in own)]
            kinds |= {measure.label: measure.higher_is_better for measure in said}
        return [column for label, higher in kinds.items() for column in _columns(f"{name}_{label}", higher=higher)]

    def client_scores(
        self,
        name: str,
        outputs: Tensor,
        rows: Rows,
        count: Tensor,
        metrics: Sequence[Measure] = (),
        *,
        spread: bool = False,
    ) -> dict[str, float]:
        """Statistics of the clients' accuracies, or losses, and of measures. rows: theirs, one after the other.

        count: how many each has, [N]. A measure that is undefined for some that have any says for how many, and is
        about the others. spread: say the standard deviation, too.
        """
        kind = self.kinds()[-1]
        means = self.by_client((kind,), outputs, rows, count)[kind][count > 0]
        found = _statistics(f"{name}_{kind}", means, higher=kind != "loss", spread=spread)
        for measure, values in self._measured_by_client(outputs, rows, count, metrics).items():
            column, known = f"{name}_{measure.label}", values[values.isfinite()]
            if len(known):
                found |= _statistics(column, known, higher=measure.higher_is_better, spread=spread)
            if (undefined := int((count > 0).sum()) - len(known)) > 0:
                found[f"{column}{UNDEFINED}"] = undefined
        return found

    def has_own(self, on: Collection[str]) -> bool:
        """Whether clients have examples to be judged on that they are not trained on."""
        return all(rows.index is not self.data.order for rows, _ in self.by_clients(on).values())

    def personal_measures(self, name: str, metrics: Sequence[Measure] = ()) -> list[str]:
        """The names of `personal_scores`, but for counts."""
        kinds, beside = self.kinds(), {measure.label: measure.higher_is_better for measure in self.beside(metrics)}
        central = [f"{name}_{label}" for label in (*kinds, *beside)]
        spread = {kinds[-1]: kinds[-1] != "loss", **beside}.items()
        return central + [
            column for label, higher in spread for column in _columns(f"{name}_{label}", higher=higher, spread=True)
        ]

    def personal_scores(
        self, name: str, outputs: Tensor, rows: Rows, count: Tensor, metrics: Sequence[Measure] = ()
    ) -> dict[str, float]:
        """What models of the clients' own come to, each on its client's examples, whose outputs [n, K] these are.

        The loss, the accuracy where there is one, and measures are of all the examples together; mean, p10 (p90 where
        lower is better), worst and standard deviation are over the clients that have any, by accuracy or else by loss,
        and by measures, of those for which they are defined; the others are counted.
        """
        together = self.scores(name, outputs, rows, metrics)
        return together | self.client_scores(name, outputs, rows, count, metrics, spread=True)

    def by_client(self, kinds: Sequence[str], outputs: Tensor, rows: Rows, count: Tensor) -> dict[str, Tensor]:
        """The means of each client, float64 [N], NaN without examples, of some of `kinds`; see `client_scores`."""
        owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        score = {"loss": self.loss.examples, "accuracy": self.loss.correct}
        found = {}
        for kind in kinds:
            of_examples = score[kind](outputs, rows.targets)
            assert of_examples is not None
            sums = torch.zeros(len(count), dtype=torch.float64, device=count.device)
            found[kind] = sums.index_add_(0, owner, of_examples.double()) / count
        return found

    def each_client(self, outputs: Tensor, rows: Rows, count: Tensor, metrics: Sequence[Measure]) -> dict[str, Tensor]:
        """How many examples each client is judged on, int64 [N], their mean loss, accuracy and measures, float64 [N].

        NaN where a client has no examples, or a measure is undefined for it. outputs: [n, *places, K].
        """
        means = self.by_client(self.kinds(), outputs, rows, count)
        found = self._measured_by_client(outputs, rows, count, metrics)
        return {"examples": count, **means, **{measure.label: values for measure, values in found.items()}}

    def of_owners(self, whose: str, on: Collection[str], metrics: Sequence[Measure]) -> list[str]:
        """The names of `personal_scores` for these sets; whose: as of `by_clients`.

        InputError: a measure does not suit the targets, or is undefined on a set.
        """
        own = self.by_clients(on, whose)
        self.hold_suiting(metrics, {name: rows for name, (rows, _) in own.items()})
        return [column for name in own for column in self.personal_measures(name, metrics)]

    def measures(self, on: Collection[str], clients: bool, metrics: Sequence[Measure]) -> list[str]:
        """The names of `scores` for these sets, and of `client_scores`.

        InputError: a measure does not suit the targets, or is undefined on a set.
        """
        sets = self.sets(on)
        self.hold_suiting(metrics, sets)
        kinds = [*self.kinds(), *(measure.label for measure in self.beside(metrics))]
        central = [f"{name}_{kind}" for name in sets for kind in kinds]
        apart = self.by_clients(on) if clients else {}
        return central + [
            column for name, judged in apart.items() for column in self.client_measures(name, *judged, metrics)
        ]

    def hold_suiting(self, metrics: Sequence[Measure], sets: Mapping[str, Rows]) -> None:
        """InputError: a measure does not suit the targets, or is undefined on a set, whatever the outputs are."""
        targets = {name: self._counted(self._nothing(rows), rows).targets for name, rows in sets.items() if metrics}
        for number, measure in enumerate(metrics):
            with naming(f"metrics.{number}"):
                measure.check(self.data.task, self._width)
                for name, held in targets.items():
                    if (why := measure.undefined(held)) is not None:
                        remedy = f"is undefined on the {HELD[name]} examples: {why}; leave it out"
                        raise InputError("kind", measure.label, remedy)

    @property
    def _width(self) -> int:
        """How many outputs a measure sees."""
        return self.data.num_classes or self.data.y[:1].numel()

    @staticmethod
    def _nothing(rows: Rows) -> Tensor:
        """Outputs for examples of which only the targets are looked at, [n, *places, 0]."""
        return torch.zeros(*rows.targets.shape, 0)

    def _measured_by_client(
        self, outputs: Tensor, rows: Rows, count: Tensor, metrics: Sequence[Measure]
    ) -> dict[Measure, Tensor]:
        """The same by measure; none of outputs that are not finite."""
        wanted = self.beside(metrics)
        if not wanted or not (counted := self._counted(outputs, rows)).finite:
            return {}
        own = counted.of_clients(count)
        return {measure: measure.of_clients(counted.outputs, counted.targets, own) for measure in wanted}

    def _counted(self, outputs: Tensor, rows: Rows) -> Counted:
        """What of outputs [n, *places, K] for examples, and of these, measures are about; see `Measure`."""
        made, targets = outputs.double().cpu(), rows.targets.cpu()
        each = torch.ones(len(targets), dtype=torch.int64)
        if self.data.task != "classes":
            targets = targets.double().view(len(targets), -1)
        elif targets.dim() > 1:
            counts = targets != IGNORED
            made, targets, each = made[counts], targets[counts], counts.flatten(1).sum(dim=1)
        return Counted(made, targets, each)


def _columns(name: str, *, higher: bool, spread: bool = False) -> list[str]:
    """The names of `_statistics`."""
    return [f"{name}_{which}" for which in STATISTICS[higher] + ("std",) * spread]


def _statistics(name: str, values: Tensor, *, higher: bool, spread: bool) -> dict[str, float]:
    """The mean, the 10 % quantile (90 % where lower is better) and the worst of some clients' values, at least one.

    spread: their standard deviation, too.
    """
    bad, worst = (0.1, values.min()) if higher else (0.9, values.max())
    told = [values.mean(), torch.quantile(values, bad), worst] + [values.std(correction=0)] * spread
    names = _columns(name, higher=higher, spread=spread)
    return {column: float(value) for column, value in zip(names, told, strict=True)}


def ranges(order: np.ndarray, offset: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse rows on a device: the order, where each client's part begins, and how long it is."""
    begins = torch.from_numpy(np.asarray(offset, dtype=np.int64)).to(device)
    return (
        torch.from_numpy(np.asarray(order, dtype=np.int64)).to(device),
        begins[:-1],
        begins[1:] - begins[:-1],
    )

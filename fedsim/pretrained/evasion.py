"""Evasion, a black-box attack: one perturbation of one image that fools the classifiers of all clients.

Client i holds a classifier that only it can ask. f_i(x) is the classifier's margin on the perturbed image, and
F = mean_i f_i below 0 is a successful attack. The protocol is that of Shu et al. 2023 (FZooS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedsim.core.data_files import Array
from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Rate, Share, options
from fedsim.core.plugins import HasPlugins
from fedsim.core.streams import Streams
from fedsim.nets.footprint import footprint
from fedsim.nets.functional import Functional
from fedsim.nets.stack import Layout
from fedsim.parallel.cores import spread
from fedsim.pretrained.classifiers import Fit, by_class, classifiers
from fedsim.problems.base import EVALUATED_AT_ONCE, Setting
from fedsim.problems.black_box import BlackBox
from fedsim.problems.datasets.base import Dataset
from fedsim.problems.evaluators import Stacked
from fedsim.problems.measures import Measure

LOOKED_AT = 64
"""Test images that are judged at once while those worth attacking are counted."""


@options
class Evasion(HasPlugins):
    """An attack on classifiers that were trained on few classes each.

    Classifiers do not depend on the run's seed, so that runs of several seeds attack the same ones.
    """

    dataset: Any = "digits"
    """What the classifiers learn from, with inputs in [0, 1]."""
    model: Any = "mlp"
    """What the classifiers are."""
    clients: PositiveInt = 10
    """N, how many classifiers there are."""
    portion: Share = 0.7
    """Portion of the classes that each one sees (`by_class`); all of them can be predicted."""
    epochs: PositiveInt = 20
    """Passes over a classifier's examples while it is trained, by Adam."""
    batch_size: PositiveInt = 32
    """Examples of a step of that training."""
    lr: Rate = 0.003
    """Learning rate of that training."""
    training_seed: NonNegativeInt = 0
    """Seed of the classifiers' examples, starts and batches; it does not follow the run's seed."""
    image: NonNegativeInt = 0
    """Which of the test images that start with F >= 0, counted from 0 in their order."""
    target: NonNegativeInt | None = None
    """The class that the image is to be taken for. Not given: any but its own."""
    epsilon: PositiveFloat = 0.3
    """The largest change of a pixel, where black is 0 and white 1 (0.3 on MNIST, 0.1 on CIFAR-10)."""
    start: Share = 0.5
    """Every coordinate of x at first: 0.5 changes nothing, 0 lowers every pixel by epsilon, as published code does."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise that is added to every answer."""

    values_only: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, str]] = {"dataset": "datasets", "model": "models"}

    def build(self, setting: Setting) -> BlackBox:
        """Train the classifiers, or read those trained before, and choose the image."""
        data: Dataset = self.made["dataset"].load(setting.folder)
        self._check(data)
        generator = Streams(self.training_seed).generator("attack/deal")
        partition = by_class(data.y, data.num_classes, self.clients, self.portion, generator)
        adam = {"kind": "adam", "beta2": 0.999}
        training = Fit(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, optimizer=adam)
        module, params = classifiers(data, partition, self.made["model"], training, self.training_seed, setting.device)
        ensemble = Ensemble(module, params.to(setting.dtype), data.x.shape[1:])
        x_test = torch.from_numpy(data.x_test).to(setting.device, setting.dtype)
        chosen = self._choose(ensemble, x_test, data.y_test)
        goal = Goal(int(data.y_test[chosen]), self.target)
        return EvasionProblem(ensemble, x_test[chosen], goal, self.epsilon, start=self.start, noise=self.noise)

    def _check(self, data: Dataset) -> None:
        """Refuse data that are no classes of inputs in [0, 1]."""
        if data.vocabulary or not data.labelled or data.num_classes < 2:
            raise InputError("problem.dataset", data.name, "is not of numbers in classes; an attack needs both")
        least, most = float(data.x_test.min(initial=0.0)), float(data.x_test.max(initial=1.0))
        if least < 0.0 or most > 1.0:
            remedy = f"its inputs lie in {least:.3g} .. {most:.3g}, not in 0 .. 1; do not standardize them"
            raise InputError("problem.dataset", data.name, remedy)
        if self.target is not None and self.target >= data.num_classes:
            raise InputError("problem.target", self.target, f"name a class of 0 .. {data.num_classes - 1}")

    def _choose(self, ensemble: Ensemble, x_test: Tensor, y_test: Array) -> int:
        """Find the number of the test image to attack."""
        everybody, kept = range(len(ensemble.params)), 0
        x = x_test.new_full((math.prod(plane(x_test.shape[1:])),), self.start)
        for first in range(0, len(x_test), LOOKED_AT):
            images = perturbed(x_test[first : first + LOOKED_AT], x, self.epsilon)
            logits = ensemble.logits(everybody, images.expand(len(everybody), *images.shape))
            for place, label in enumerate(y_test[first : first + LOOKED_AT].tolist()):
                if label == self.target or Goal(label, self.target).margins(logits[:, place]).double().mean() < 0:
                    continue
                if kept == self.image:
                    return first + place
                kept += 1
        remedy = f"only {kept} test images start with F >= 0; take a lower number, or train for more epochs"
        raise InputError("problem.image", self.image, remedy)


@dataclass(frozen=True)
class Goal:
    """What an attack is for: the image's class `label` to be taken for any other, or for `target`."""

    label: int
    target: int | None = None

    def margins(self, logits: Tensor) -> Tensor:
        """How far a classifier is from being fooled: [...] of logits [..., K]; below 0 it is fooled.

        logit_label - max of the others; with a target, max of the others - logit_target.
        """
        own = self.label if self.target is None else self.target
        chosen = logits[..., own]
        others = torch.cat((logits[..., :own], logits[..., own + 1 :]), dim=-1).amax(dim=-1)
        return chosen - others if self.target is None else others - chosen


def plane(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a perturbation: an image's, [channels, height, width], with one channel; any other as it is."""
    return (1, *shape[1:]) if len(shape) == 3 else tuple(shape)


def perturbed(images: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """Change images [M, *shape] by one x [d] each, or by the same: clamp(image + epsilon (2 clamp(x) - 1)) to [0, 1].

    images: [M, *shape], or one of them for all, [1, *shape]; x: [d] or [M, d], where d is the numbers of `plane`.
    """
    change = epsilon * (2.0 * x.clamp(0.0, 1.0) - 1.0)
    return (images + change.reshape(*x.shape[:-1], *plane(images.shape[1:]))).clamp(0.0, 1.0)


class Ensemble:
    """The classifiers of N clients: one module, and the parameters [N, ...] that it takes in turn, flat."""

    def __init__(self, module: nn.Module, params: Tensor, shape: Sequence[int]) -> None:
        self.params = params
        model = module.to(params.device, params.dtype).eval()
        self._functional = Functional(model)
        self._layout = Layout.of({name: own for name, own in model.named_parameters() if own.requires_grad})
        example = torch.zeros(1, *shape, device=params.device, dtype=params.dtype)
        self._at_once = max(1, EVALUATED_AT_ONCE // footprint(model, example).activations)

    def logits(self, clients: Sequence[int], images: Tensor) -> Tensor:
        """Ask classifiers of images: [C, Q, K] of [C, Q, *shape]. Each by itself, so that none depends on another."""

        def ask(part: tuple[int, int]) -> Tensor:
            row, first = part
            model, _ = self._functional.bind(self._layout.named(self.params[clients[row]]).values())
            with torch.no_grad():
                answered: Tensor = model(images[row, first : first + self._at_once])
            return answered

        queries = range(0, images.shape[1], self._at_once)
        answers = spread(ask, [(row, first) for row in range(len(clients)) for first in queries])
        each = len(queries)
        return torch.stack([torch.cat(answers[row * each : (row + 1) * each]) for row in range(len(clients))])


class EvasionProblem(BlackBox):
    """The N functions of an attack on one image.

    image: [*shape] in [0, 1]. start: every coordinate of x at first. noise: standard deviation of an answer's.
    """

    def __init__(
        self, ensemble: Ensemble, image: Tensor, goal: Goal, epsilon: float, *, start: float = 0.5, noise: float = 0.0
    ) -> None:
        self.ensemble, self.image, self.goal, self.epsilon = ensemble, image, goal, epsilon
        super().__init__(
            Stacked(self.margins, len(ensemble.params), False),
            dimension=math.prod(plane(image.shape)),
            start=start,
            noise=noise,
            device=image.device,
            dtype=image.dtype,
        )

    def margins(self, clients: Tensor, x: Tensor) -> Tensor:
        """f_c at x [C, Q, d]: [C, Q]."""
        images = perturbed(self.image.unsqueeze(0), x.flatten(0, 1), self.epsilon).view(*x.shape[:2], *self.image.shape)
        return self.goal.margins(self.ensemble.logits(clients.tolist(), images))

    def evaluate(
        self, params: Tensor, *, clients: bool, on: Collection[str] = ("test",), metrics: Sequence[Measure] = ()
    ) -> dict[str, float]:
        """Measure F, whether it is below 0, and the share of the classifiers that are fooled; the rest as ever."""
        margins = self._everywhere(params, torch.arange(self.num_clients, device=self.device))
        found = super().evaluate(params, clients=clients, on=on, metrics=metrics)
        fooled = {"attack_success": float(found["value"] < 0), "success_share": float((margins < 0).double().mean())}
        return found | fooled

    def measures(
        self, clients: bool | str, on: Collection[str] = ("test",), metrics: Sequence[Measure] = ()
    ) -> list[str]:
        """The names that `evaluate` gives."""
        return [*super().measures(clients, on, metrics), "attack_success", "success_share"]

    def illustrate(self, place: Callable[[str], Path], params: Tensor) -> None:
        """Draw the image before and after, where inputs are images or square."""
        from fedsim.plots.evasion import ADVERSARIAL, Outcome, Verdict, adversarial

        side = math.isqrt(self.image.numel())
        shape = self.image.shape if self.image.dim() == 3 else (1, side, side)
        if math.prod(shape) != self.image.numel():
            return
        after = perturbed(self.image.unsqueeze(0), params.to(self.image), self.epsilon)
        both, count = torch.cat((self.image.unsqueeze(0), after)), len(self.ensemble.params)
        logits = self.ensemble.logits(range(count), both.expand(count, *both.shape))
        margins, predictions = self.goal.margins(logits).double().cpu().numpy(), logits.argmax(dim=-1).cpu().numpy()
        images = both.reshape(2, *shape).double().cpu().numpy()
        adversarial(
            Outcome(
                before=images[0],
                after=images[1],
                epsilon=self.epsilon,
                label=self.goal.label,
                target=self.goal.target,
                said_before=Verdict(margins[:, 0], predictions[:, 0]),
                said_after=Verdict(margins[:, 1], predictions[:, 1]),
            ),
            place(ADVERSARIAL),
        )

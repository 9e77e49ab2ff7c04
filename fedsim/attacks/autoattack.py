"""AutoAttack, through the Adversarial Robustness Toolbox: a judge of models, not something to train against.

it succeeds where  argmax_k z_k(x') != y,  |x' - x| <= epsilon
Untargeted, one part after the other on the examples that are still predicted right:
`apgd_ce`, `apgd_dlr`: Auto-PGD on the cross-entropy and on the difference of logits ratio, first step 2 epsilon;
`deepfool`: the nearest boundary, counted where it lies in the ball; `square`: random squares of images, no gradients.
Croce and Hein 2020, with DeepFool in the place of FAB, as the toolbox has it. An example on which nothing succeeds
stays as it is, so only accuracies under this attack say much, and losses little. The ball and the domain are kept as
exactly as by `fedsim.attacks.gradient`; numbers are in single precision.

Cost of an example that resists: 100 steps from each of 5 starts for either of the first two, 100 of DeepFool with a
gradient for each class, and 15,000 forward passes for 5,000 squares; one core, whatever the number of cores. What is
drawn for an example depends on the others that are attacked in the same call.
"""

from __future__ import annotations

import importlib
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.attacks.attack import Victim
from fedsim.attacks.gradient import FGSM, Cube, Domain, Label, Sphere
from fedsim.core.errors import InputError
from fedsim.core.generators import seeded_globals
from fedsim.core.options import NonNegativeFloat, PositiveInt, options
from fedsim.nets.losses import Loss
from fedsim.nets.stack import Stack

STEPS, STARTS = 100, 5
SQUARES = 5_000
FILLED = 0.8
"""The share of an image that the first squares of `square` cover."""
TILES = 5
"""`square` in l2 begins with so many tiles a side, of two pixels a side at least."""
_alone = threading.Lock()
"""The toolbox draws from generators of the whole process."""

Part = Literal["apgd_ce", "apgd_dlr", "deepfool", "square"]
ALL: tuple[Part, ...] = ("apgd_ce", "apgd_dlr", "deepfool", "square")


@options
class AutoAttack:
    """AutoAttack, for evaluation only; needs `pip install "fedsim-lab[attacks]"`."""

    only_judges: ClassVar[bool] = True

    epsilon: NonNegativeFloat
    """The ball's radius."""
    norm: Literal["linf", "l2"] = "linf"
    """The ball's norm: linf, the largest change of an input, or l2."""
    domain: Domain = (0.0, 1.0)
    """Lower and upper bound of every input; it must be stated."""
    batch_size: PositiveInt = 128
    """Examples that are attacked at once."""
    name: Label | None = None
    """What measures under it are called. Not given: autoattack, or the names of its parts."""
    parts: Annotated[tuple[Part, ...], Field(strict=False, min_length=1)] = ALL
    """Some of the attacks that it is made of, each once."""

    def __post_init__(self) -> None:
        _toolbox()
        if self.bounds is None:
            raise InputError("domain", "none", "its parts clip to a domain; state the bounds of inputs")
        if len(set(self.parts)) < len(self.parts):
            raise InputError("parts", list(self.parts), "name each once")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The domain."""
        return None if self.domain == "none" else self.domain

    @property
    def label(self) -> str:
        """What measures under this attack are called; of some parts by their names."""
        described = "autoattack" if set(self.parts) == set(ALL) else "_".join(self.parts)
        return self.name or described + ("_l2" if self.norm == "l2" else "")

    @property
    def gradients(self) -> int:
        """How many forward and backward passes an example that resists takes, three forward passes counted as one."""
        each = {"apgd_ce": STEPS * STARTS, "apgd_dlr": STEPS * STARTS, "deepfool": STEPS, "square": SQUARES}
        return sum(each[part] for part in self.parts)

    @property
    def least_classes(self) -> int:
        """How many classes there must be: the ratio compares three logits."""
        return 3 if "apgd_dlr" in self.parts else 2

    def check(self, x: Tensor) -> None:
        """Raise InputError where inputs [n, ...] lie outside the domain, the ball is larger, or they are no images."""
        FGSM(epsilon=self.epsilon, norm=self.norm, domain=self.domain).check(x)
        if "square" in self.parts and not (x.dim() == 4 and self._covers(*x.shape[2:])):
            shape = "x".join(map(str, x.shape[1:]))
            remedy = f"square wants images, about as wide as high; inputs are {shape}; name the other parts"
            raise InputError("parts", list(self.parts), remedy)

    def _covers(self, height: int, width: int) -> bool:
        """Whether the toolbox's squares, of odd sides in l2, fit into images of this size."""
        side, least = round(math.sqrt(FILLED * height * width)), min(height, width)
        if self.norm == "linf":
            return side < least
        return 2 * TILES <= least > side + (side % 2 == 0)

    def perturb(
        self,
        victim: Victim,
        x: Tensor,
        targets: Tensor,
        loss: Loss | None = None,  # noqa: ARG002
        factor: float = 1.0,
    ) -> Tensor:
        """Attacked inputs x' for x [k, B, ...] and targets [k, B], model after model; `loss` is not looked at."""
        epsilon = self.epsilon * factor
        if epsilon == 0.0 or not targets.numel():
            return x
        drawn = victim.draws.uniform("autoattack", torch.empty_like(targets, dtype=torch.float64).unsqueeze(2))
        seeds = (drawn[:, 0, 0] * 2**32).long().tolist()
        found = torch.stack(
            [self._attacked(victim, row, x[row], targets[row], epsilon, seed) for row, seed in enumerate(seeds)]
        )
        ball = (Cube if self.norm == "linf" else Sphere)(x, epsilon, self.bounds)
        return ball.projected(found)

    def _attacked(self, victim: Victim, row: int, x: Tensor, targets: Tensor, epsilon: float, seed: int) -> Tensor:
        """Inputs [B, ...] for one model."""
        evasion, classification = _toolbox()
        logits = _Logits(victim, victim.rows[row : row + 1], x)
        with torch.no_grad():
            classes = logits(x[:1]).shape[1]
        norm = np.inf if self.norm == "linf" else 2
        with _alone, _seeded(seed), torch.enable_grad():
            estimator = classification.PyTorchClassifier(
                logits,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=classes,
                clip_values=self.bounds,
                device_type="gpu" if x.is_cuda else "cpu",
            )
            parts = [self._part(name, evasion, estimator, norm, epsilon) for name in self.parts]
            attack = evasion.AutoAttack(estimator, norm=norm, eps=epsilon, attacks=parts, batch_size=self.batch_size)
            found = attack.generate(x.detach().cpu().numpy().astype(np.float32), targets.cpu().numpy())
        return torch.from_numpy(found).to(x.device, x.dtype)

    def _part(self, name: Part, evasion: Any, estimator: Any, norm: float, epsilon: float) -> Any:
        quiet = {"batch_size": self.batch_size, "verbose": False}
        if name == "deepfool":
            return evasion.DeepFool(estimator, max_iter=STEPS, epsilon=1e-3, nb_grads=10, **quiet)
        if name == "square":
            return evasion.SquareAttack(
                estimator, norm=norm, eps=epsilon, max_iter=SQUARES, p_init=FILLED, nb_restarts=1, **quiet
            )
        return evasion.AutoProjectedGradientDescent(
            estimator,
            norm=norm,
            eps=epsilon,
            eps_step=2.0 * epsilon,
            max_iter=STEPS,
            nb_random_init=STARTS,
            loss_type="cross_entropy" if name == "apgd_ce" else "difference_logits_ratio",
            **quiet,
        )


class _Logits(nn.Module):
    """One model of a victim as a module of single precision, which autograd can differentiate by its inputs."""

    def __init__(self, victim: Victim, rows: Stack, like: Tensor) -> None:
        super().__init__()
        self.model = victim, rows, like.dtype

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = _Differentiable.apply(x, *self.model)  # type: ignore[no-untyped-call]
        return outputs


class _Differentiable(torch.autograd.Function):
    """Outputs by `Network.outputs`, and J^T v by the input gradient of the loss <v, outputs>."""

    @staticmethod
    def forward(context: Any, x: Tensor, victim: Victim, rows: Stack, dtype: torch.dtype) -> Tensor:
        context.save_for_backward(x)
        context.model = victim, rows, dtype
        return victim.network.outputs(rows, x.to(dtype).unsqueeze(0))[0].to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,), (victim, rows, dtype) = context.saved_tensors, context.model
        along = _Along(gradients[0].to(dtype).unsqueeze(0))
        nothing = torch.zeros((1, len(x)), dtype=torch.int64, device=x.device)
        with torch.enable_grad():
            _, found = victim.network.input_gradients(rows, x.to(dtype).unsqueeze(0), nothing, along)
        return found[0].to(x.dtype), None, None, None


class _Along(Loss):
    """<v, outputs>. v: [1, B, K]."""

    def __init__(self, v: Tensor) -> None:
        self.v = v

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        return (self.v * outputs).sum(dim=-1)


def _toolbox() -> tuple[Any, Any]:
    """Its attacks and its classifiers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = ("art.attacks.evasion", "art.estimators.classification")
            evasion, classification = map(importlib.import_module, names)
    except ImportError as error:
        remedy = 'it needs the Adversarial Robustness Toolbox; pip install "fedsim-lab[attacks]"'
        raise InputError("kind", "autoattack", remedy) from error
    return evasion, classification


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within this block the generators of the process begin where `seed` says, and the toolbox says nothing."""
    logger = logging.getLogger("art")
    level = logger.level
    with seeded_globals(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)

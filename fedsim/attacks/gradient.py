"""Attacks that follow the gradient of a loss with respect to the inputs: FGSM, PGD, MIM and CW.

x_0 <- x, or a random point of the ball around x; then S steps  x_{s+1} <- P(x_s + a u(g_s)),  g_s = grad_x loss(x_s)

linf: u(g) = sign(g), and P clips to |x' - x| <= epsilon and to the domain. l2: u(g) = g / (|g| + 1e-12), and P clips to
the domain, then shrinks x' - x to length epsilon, by which none leaves the domain. The ball is kept to 1e-6 whatever
the scale of inputs (in single precision for epsilon up to 8): what rounding would put outside is rounded towards x.

Where a gradient is zero, an input does not move. A number of a gradient that is not finite counts as zero, so an
example of which all are stays where it is; the others do not notice. A loss that is not a number is never the worst.

Cost: S forward and backward passes an example and restart. One more forward pass, counted as a pass, where values are
compared: of restarts, or of the iterates of one.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.attacks.attack import Draws, Victim
from fedsim.attacks.losses import Margin
from fedsim.core.errors import InputError
from fedsim.core.options import NonNegativeFloat, NonNegativeInt, PositiveInt, options
from fedsim.nets.losses import Loss

SLACK = 5e-7
"""How far outside the cube a face may be rounded; half of what an input may be, since lengths are rounded, too."""


Domain = Annotated[tuple[float, float], Field(strict=False)] | Literal["none"]
"""Lower and upper bound of every input; "none": there are none."""
Label = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A part of the name of a measure."""


@options
class Ascent(ABC):
    """What the attacks share."""

    stem: ClassVar[str]
    only_judges: ClassVar[bool] = False

    epsilon: NonNegativeFloat
    """The ball's radius."""
    norm: Literal["linf", "l2"] = "linf"
    """The ball's norm: linf, the largest change of an input, or l2."""
    random_start: bool = True
    """Begin at a uniformly drawn point of the ball instead of x."""
    domain: Domain = (0.0, 1.0)
    """Lower and upper bound of every input; none: there are no bounds."""
    name: Label | None = None
    """What measures under it are called. Not given: its kind and, of several steps, their number, as in `pgd20`."""

    def __post_init__(self) -> None:
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            raise InputError("domain", list(self.bounds), "the lower bound must be below the upper one")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The domain; None: there is none."""
        return None if self.domain == "none" else self.domain

    @property
    def least_classes(self) -> int:
        """How many classes there must be."""
        return 0

    @property
    def steps(self) -> int:
        """How many steps are taken."""
        return 1

    @property
    def size(self) -> float:
        """The length of a step."""
        return self.epsilon

    @property
    def restarts(self) -> int:
        """From how many starts."""
        return 1

    @property
    def best(self) -> bool:
        """Whether the worst input on the way counts, and not the last."""
        return False

    @property
    def label(self) -> str:
        """What measures under this attack are called, such as `pgd20_l2`: 20 steps, in l2."""
        return self.name or self._described + ("_l2" if self.norm == "l2" else "") + self._maximised

    @property
    def _described(self) -> str:
        return self.stem

    @property
    def _maximised(self) -> str:
        return ""

    @property
    def gradients(self) -> int:
        """How many forward and backward passes an example takes."""
        return self.restarts * (self.steps + self._compares) if self._moves(1.0) else 0

    def check(self, x: Tensor) -> None:
        """Raise InputError where inputs [n, ...] lie outside the domain, or the ball is larger than it."""
        if self.epsilon > torch.finfo(x.dtype).max:
            raise InputError("epsilon", self.epsilon, "inputs of this precision do not reach so far; lower it")
        hold_domain(self.bounds, x)
        if self.bounds is None:
            return
        width = self.bounds[1] - self.bounds[0]
        across = width if self.norm == "linf" else width * math.sqrt(x[0].numel())
        if self.epsilon > across:
            part = "width" if self.norm == "linf" else "diagonal"
            raise InputError("epsilon", self.epsilon, f"take at most the domain's {part}, {across:g}")

    def perturb(
        self, victim: Victim, x: Tensor, targets: Tensor, loss: Loss | None = None, factor: float = 1.0
    ) -> Tensor:
        """Attacked inputs x' for x [k, B, ...] and targets [k, B]; see `fedsim.attacks.attack.Attack`."""
        if not self._moves(factor):
            return x
        goal = self._goal(victim, loss)
        worst, highest = x.detach(), x.new_full(targets.shape, -torch.inf)
        for start in range(self.restarts):
            for reached, values in self._ascend(victim, x, targets, goal, factor, start):
                if values is None:
                    if not self._compares:
                        return reached
                    values = victim.values(reached, targets, goal)
                elif not self.best:
                    continue
                higher = values > highest
                highest = torch.where(higher, values, highest)
                worst = torch.where(_across(higher, x), reached, worst)
        return worst

    def iterates(
        self, victim: Victim, x: Tensor, targets: Tensor, loss: Loss | None = None, factor: float = 1.0
    ) -> Iterator[Tensor]:
        """x_0 .. x_S of the first start; x alone where nothing moves."""
        if not self._moves(factor):
            yield x
            return
        for reached, _ in self._ascend(victim, x, targets, self._goal(victim, loss), factor, 0):
            yield reached

    @property
    def _compares(self) -> bool:
        return self.best or self.restarts > 1

    def _moves(self, factor: float) -> bool:
        return self.epsilon * factor > 0.0 and self.steps > 0

    def _goal(self, victim: Victim, loss: Loss | None) -> Loss:
        """What is maximised."""
        return victim.loss if loss is None else loss

    def _direction(self, gradient: Tensor, before: Tensor | None) -> Tensor:  # noqa: ARG002
        """Where a step goes, from the gradient and from where the step before it went."""
        return gradient

    def _ascend(
        self, victim: Victim, x: Tensor, targets: Tensor, goal: Loss, factor: float, start: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """x_0 .. x_S, and their values [k, B], which are not known of the last."""
        make = Cube if self.norm == "linf" else Sphere
        ball = make(x.detach(), self.epsilon * factor, self.bounds)
        at = ball.drawn(victim.draws, start) if self.random_start else ball.x
        direction = None
        for _ in range(self.steps):
            values, gradient = victim.gradients(at, targets, goal)
            yield at, values
            gradient = gradient.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            direction = self._direction(gradient, direction)
            at = ball.projected(at.add(ball.unit(direction), alpha=self.size * factor))
        yield at, None


@options
class Iterated(Ascent):
    """What attacks of several steps share."""

    steps: NonNegativeInt = 10
    """S, steps from each start."""
    step_size: NonNegativeFloat | None = None
    """a, the length of a step. Not given: such that all steps together reach 2.5 epsilon (mim: epsilon)."""
    restarts: PositiveInt = 1
    """Starts; of an example the result of the highest loss counts. More than one needs `random_start`."""
    best: bool = False
    """Of the inputs on the way, too, the one of the highest loss counts, and not the last."""

    REACH: ClassVar[float] = 2.5
    """The way that all steps of the default size have together, in radii."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            raise InputError("restarts", self.restarts, "they all begin at the same point; set random_start = true")
        if self.step_size == 0.0 and self.steps > 0:
            raise InputError("step_size", self.step_size, "steps of no size move nothing; give it a size above 0")

    @property
    def size(self) -> float:
        """The length of a step."""
        return self.REACH * self.epsilon / self.steps if self.step_size is None else self.step_size

    @property
    def _described(self) -> str:
        """With the steps and, of several, the starts: `pgd20x5`."""
        return f"{self.stem}{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")


@options
class PGD(Iterated):
    """Projected gradient ascent.

    x_(s+1) = P(x_s + a u(g_s)),  g_s = grad_x loss(x_s)
    P projects onto the ball of radius epsilon around x and onto the domain; linf: u(g) = sign(g), l2: u(g) = g / |g|.
    It begins at a random point of the ball, or at x. Madry et al. 2018.
    """

    stem: ClassVar[str] = "pgd"

    loss: Literal["own", "margin"] = "own"
    """What it ascends: own, what the model, or a defence, says; or the margin max_{k != y} z_k - z_y."""

    @property
    def least_classes(self) -> int:
        """How many classes there must be: a margin is between two."""
        return 2 if self.loss == "margin" else 0

    @property
    def _maximised(self) -> str:
        return "_margin" if self.loss == "margin" else ""

    def _goal(self, victim: Victim, loss: Loss | None) -> Loss:
        return Margin() if self.loss == "margin" else super()._goal(victim, loss)


@options
class FGSM(Ascent):
    """One step of size epsilon.

    x' = P(x + epsilon u(g)),  g = grad_x loss(x)
    P and u are those of `pgd`: with linf it is x + epsilon sign(g). Goodfellow et al. 2015.
    """

    stem: ClassVar[str] = "fgsm"

    random_start: bool = False


@options
class MIM(Iterated):
    """Steps along a momentum of normalised gradients.

    m <- decay m + g_s / mean(|g_s|),  x_(s+1) = P(x_s + a u(m)),  a = epsilon / S
    P, u and g_s are those of `pgd`; it begins at x itself. Dong et al. 2018, algorithm 1.
    """

    stem: ClassVar[str] = "mim"
    REACH: ClassVar[float] = 1.0

    random_start: bool = False
    decay: NonNegativeFloat = 1.0
    """How slowly the momentum m fades."""

    def _direction(self, gradient: Tensor, before: Tensor | None) -> Tensor:
        mean = gradient.flatten(2).abs().mean(dim=2).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / _across(mean, gradient)
        return scaled if before is None else scaled.add_(before, alpha=self.decay)


@options
class CW(Iterated):
    """PGD on the margin of the outputs: what adversarial training calls CW.

    x_(s+1) = P(x_s + a u(g_s)),  g_s = grad_x (max_{k != y} z_k - z_y)
    P and u are those of `pgd`, z the outputs at x_s and y the target. Carlini and Wagner 2017, f_6.
    """

    stem: ClassVar[str] = "cw"

    steps: NonNegativeInt = 30

    @property
    def least_classes(self) -> int:
        """How many classes there must be: a margin is between two."""
        return 2

    @property
    def loss(self) -> Literal["margin"]:
        """What is maximised, whatever else is asked for."""
        return "margin"

    def _goal(self, victim: Victim, loss: Loss | None) -> Loss:  # noqa: ARG002
        return Margin()


@dataclass(frozen=True)
class Cube:
    """The inputs of the domain that are within epsilon of x [k, B, ...] in the largest of their differences."""

    x: Tensor
    epsilon: float
    domain: tuple[float, float] | None

    @cached_property
    def faces(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest inputs."""
        reach = self.x.new_full((), self.epsilon + SLACK)
        least = _towards(self.x, self.x - self.epsilon, reach)
        greatest = _towards(self.x, self.x + self.epsilon, reach)
        return _clipped(least, self.domain), _clipped(greatest, self.domain)

    def drawn(self, draws: Draws, number: int) -> Tensor:
        """A uniform point: of the cube, and clipped to the domain."""
        share = draws.uniform(f"start/{number}", self.x).mul_(2.0).sub_(1.0)
        return self.projected(self.x.add(share, alpha=self.epsilon))

    def unit(self, direction: Tensor) -> Tensor:
        """A step of size 1."""
        return direction.sign()

    def projected(self, moved: Tensor) -> Tensor:
        """The nearest inputs of the set."""
        return torch.clamp(moved, *self.faces)


@dataclass(frozen=True)
class Sphere:
    """The inputs of the domain that are within epsilon of x [k, B, ...] in Euclidean distance."""

    x: Tensor
    epsilon: float
    domain: tuple[float, float] | None

    def drawn(self, draws: Draws, number: int) -> Tensor:
        """A uniform point: of the ball, and clipped to the domain."""
        direction = draws.normal(f"start/{number}", self.x)
        flat = direction.flatten(2)
        uniform = draws.uniform(f"radius/{number}", flat[..., :1]).squeeze(2)
        # Not a power, whose last bits depend on where in the tensor an example stands.
        share = (uniform.double().log() / flat.shape[2]).exp().to(flat.dtype)
        return self.projected(self.x + direction * _across(self.epsilon * share / _length(direction), self.x))

    def unit(self, direction: Tensor) -> Tensor:
        """A step of length 1, or none for a direction of none."""
        return direction / _across(_length(direction) + 1e-12, direction)

    def projected(self, moved: Tensor) -> Tensor:
        """Clipped to the domain, and then along the line to x as near as it must be."""
        moved = _clipped(moved, self.domain)
        away = moved - self.x
        length = _length(away)
        # What the length itself is rounded by stays within the ball.
        radius = self.epsilon * (1.0 - 4.0 * torch.finfo(away.dtype).eps)
        away *= _across(radius / length, away)
        nearer = _towards(self.x, self.x + away, away.abs())
        return torch.where(_across(length > radius, away), nearer, moved)


def hold_domain(bounds: tuple[float, float] | None, x: Tensor) -> None:
    """InputError: inputs [n, ...] lie outside a domain."""
    if bounds is None:
        return
    least, most = float(x.min()), float(x.max())
    if not (bounds[0] <= least and most <= bounds[1]):
        remedy = f'inputs range from {least:g} to {most:g}; state their bounds, domain = [lower, upper], or "none"'
        raise InputError("domain", list(bounds), remedy)


def _length(x: Tensor) -> Tensor:
    """Euclidean lengths [k, B] of inputs [k, B, ...]."""
    return x.flatten(2).square().sum(dim=2).sqrt()


def _across(each: Tensor, x: Tensor) -> Tensor:
    """Numbers [k, B] of examples, to be broadcast over inputs [k, B, ...]."""
    return each.view(*each.shape, *(1,) * (x.dim() - 2))


def _clipped(x: Tensor, domain: tuple[float, float] | None) -> Tensor:
    return x if domain is None else x.clamp(*domain)


def _towards(x: Tensor, y: Tensor, reach: Tensor) -> Tensor:
    """y, but the next number towards x where rounding took it further from x than `reach`."""
    return torch.where((y - x).abs() > reach, torch.nextafter(y, x), y)

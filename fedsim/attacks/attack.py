"""What an attack is, and what it may ask.

An attack is a plug-in of the group `attacks`: of inputs x it makes inputs x', within a ball of radius epsilon around
x and within the domain of inputs, for which models lose more. It works on k models with B examples each at once, never
loops over them, and changes neither models nor inputs. Models are evaluated: dropout is inactive, and nothing is
differentiated through an attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.core.streams import Streams
from fedsim.exchange.messages import broken, shown
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import Loss
from fedsim.nets.network import Network
from fedsim.nets.stack import Stack


class Draws(Protocol):
    """Named random numbers for inputs [k, B, ...]."""

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Uniform in [0, 1), of the shape and type of `like`."""
        ...

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal, of the shape and type of `like`."""
        ...


@dataclass(frozen=True)
class ClientDraws:
    """Draws that are named by client and local step; those of a narrower batch are those of the wider one.

    Hence of 24 bits in double precision, too, and normal ones by the inverse of their distribution: one word a number,
    where `Streams` takes two from places that depend on the width.
    """

    draw: Draw

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """See `Draws`."""
        draw = self.draw
        drawn = draw.streams.uniform(
            f"attack/{name}", draw.clients, like.shape[1:], turn=draw.turn, step=draw.step, dtype=torch.float32
        )
        return drawn.to(like.dtype)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """See `Draws`."""
        # Half a unit of the last place more is never 0, so the number is finite.
        drawn: Tensor = torch.special.ndtri(self.uniform(name, like).double() + 2.0**-25)
        return drawn.to(like.dtype)


@dataclass(frozen=True)
class ExampleDraws:
    """Draws for one model, [1, B, ...], that are named by example: `ids`, int64 [B]."""

    streams: Streams
    ids: Tensor

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """See `Draws`."""
        return self.streams.uniform(f"attack/{name}", self.ids, like.shape[2:], dtype=like.dtype).unsqueeze(0)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """See `Draws`."""
        return self.streams.normal(f"attack/{name}", self.ids, like.shape[2:], dtype=like.dtype).unsqueeze(0)


@dataclass(frozen=True)
class Victim:
    """k models that are attacked. network, rows: what they are. loss: theirs, per example. draws: the attack's."""

    network: Network
    rows: Stack
    loss: Loss
    draws: Draws

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [k, B, K] for inputs [k, B, ...]."""
        return self.network.outputs(self.rows, x)

    def gradients(self, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Values [k, B] of a loss and their gradients [k, B, ...] with respect to the inputs."""
        with torch.enable_grad():
            return self.network.input_gradients(self.rows, x, targets, loss)

    def values(self, x: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """Values [k, B] of a loss."""
        with torch.no_grad():
            return loss.examples(self.outputs(x), targets)


class Attack(Protocol):
    """What every attack has; usually the first two are options."""

    @property
    def epsilon(self) -> float:
        """The ball's radius."""
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The domain: lower and upper bound of every input; None: there are none."""
        ...

    @property
    def label(self) -> str:
        """What measures under this attack are called, such as `pgd20`."""
        ...

    @property
    def gradients(self) -> int:
        """How many forward and backward passes an example takes."""
        ...

    @property
    def least_classes(self) -> int:
        """How many classes there must be."""
        ...

    @property
    def only_judges(self) -> bool:
        """Whether it is for judging models alone: it takes batches of its own, and no client trains against it."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise InputError where inputs [n, ...] lie outside the domain, or the ball is larger than it."""
        ...

    def perturb(
        self, victim: Victim, x: Tensor, targets: Tensor, loss: Loss | None = None, factor: float = 1.0
    ) -> Tensor:
        """Attacked inputs x' for x [k, B, ...] and targets [k, B].

        loss: what is maximised unless the attack says what; not given, the victim's own. factor: of epsilon and of step
        sizes; at 0, x itself.
        """
        ...

    def iterates(
        self, victim: Victim, x: Tensor, targets: Tensor, loss: Loss | None = None, factor: float = 1.0
    ) -> Iterator[Tensor]:
        """Inputs on the way, of one start: where the attack begins, and after each of its steps."""
        ...


def perturbed(attack: Attack, given: Any, x: Tensor) -> Tensor:
    """What an attack has made of inputs x [k, B, ...]. BrokenPromiseError: something that cannot stand for them."""
    if not isinstance(given, Tensor) or given.shape != x.shape or given.dtype != x.dtype:
        raise broken("attack", "attacks", attack, f"perturb makes {shown(given)} of {shown(x)}")
    return given

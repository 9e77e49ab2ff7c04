"""What every loss keeps to: outputs and targets of named draws, of each kind that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.core.streams import Streams
from fedsim.nets.losses import IGNORED, Loss, Pointwise
from fedsim.nets.losses.base import by_autograd
from fedsim.testing.specimen import Specimen

CLIENTS, EXAMPLES, OUTPUTS = 3, 5, 4
PLACES = {"classes": ((), (6,), (2, 3)), "numbers": ((), (OUTPUTS,)), "tags": ((OUTPUTS,),)}
"""Shapes of an example's targets, of each kind of targets."""
TOLERANCE = 1e-9
"""Of gradients in double precision, beside those of autograd."""
ANYTHING = (1e30, torch.nan)
"""What may stand where nothing counts."""


class Costing(Specimen):
    """A loss, of three clients with five examples each."""

    group: ClassVar[str] = "losses"

    def comes_to(self) -> Any:
        """Losses and their gradients."""
        return [loss.with_gradient(outputs, targets) for loss, outputs, targets in self.cases()]

    def cases(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Loss, Tensor, Tensor]]:
        """It, fitted, with outputs [C, B, *places, K] and targets [C, B, *places], of each kind that it is for."""
        for task in self.plugin.tasks:
            for places in PLACES[task]:
                targets, shape = drawn(task, places), (*places, OUTPUTS) if task == "classes" else places or (1,)
                loss = self.plugin.fitted(targets.flatten(0, 1), task, shape[-1])
                outputs = Streams(1).normal("outputs", torch.arange(CLIENTS), (EXAMPLES, *shape), dtype=dtype)
                yield loss, outputs, targets if task == "classes" else targets.to(dtype)


def drawn(task: str, places: tuple[int, ...]) -> Tensor:
    """Targets [C, B, *places]: of several places the first counts and every third of the others does not."""
    shape = (EXAMPLES, *places)
    if task != "classes":
        numbers = Streams(0).normal("targets", torch.arange(CLIENTS), shape, dtype=torch.float64)
        return (numbers > 0).double() if task == "tags" else numbers.abs()
    found = Streams(0).integers("targets", torch.arange(CLIENTS), shape, OUTPUTS)
    if places:
        found.view(CLIENTS, EXAMPLES, -1)[:, :, 2::3] = IGNORED
    return found


def losses_are_numbers_like_the_outputs(specimen: Costing) -> None:
    """One for each example, in either precision, and gradients of the outputs' shape."""
    for dtype in (torch.float32, torch.float64):
        for loss, outputs, targets in specimen.cases(dtype):
            losses, gradient = loss.with_gradient(outputs.clone(), targets)
            about = f"of {loss.task} {list(targets.shape[2:])}"
            assert losses.shape == (CLIENTS, EXAMPLES), f"losses {about} have the shape {tuple(losses.shape)}"
            assert gradient.shape == outputs.shape, f"gradients {about} have the shape {tuple(gradient.shape)}"
            assert losses.dtype == gradient.dtype == dtype, f"losses {about} are {losses.dtype} of {dtype}"
            assert bool(torch.isfinite(losses).all()), f"losses {about} are not finite"
            assert torch.allclose(losses, loss.examples(outputs, targets)), f"with_gradient {about} has other losses"


def gradients_are_those_of_autograd(specimen: Costing) -> None:
    """The gradient of the losses' sum is that which autograd finds."""
    for loss, outputs, targets in specimen.cases():
        _, gradient = loss.with_gradient(outputs.clone(), targets)
        expected = by_autograd(loss.examples, outputs, targets)[1]
        apart = float((gradient - expected).abs().max())
        assert apart <= TOLERANCE, f"gradients of {loss.task} {list(targets.shape[2:])} are {apart:.2g} off"


def an_example_is_alone(specimen: Costing) -> None:
    """Its loss and gradient are the same to the bit by itself, among a client's, and among all clients'."""
    for dtype in (torch.float32, torch.float64):
        for loss, outputs, targets in specimen.cases(dtype):
            expected = loss.with_gradient(outputs.clone(), targets)
            for client in range(CLIENTS):
                for rows in (slice(0, EXAMPLES), slice(1, 2)):
                    own = (slice(client, client + 1), rows)
                    found = loss.with_gradient(outputs[own].clone(), targets[own])
                    same = all(torch.equal(part, whole[own]) for part, whole in zip(found, expected, strict=True))
                    assert same, f"losses of {loss.task} {list(targets.shape[2:])} depend on other examples ({dtype})"


def what_does_not_count_has_no_part(specimen: Costing) -> None:
    """Whatever outputs stand at places that do not count, losses are the same; their gradients there are 0."""
    for loss, outputs, targets in specimen.cases():
        if loss.task != "classes" or not loss.places:
            continue
        expected, ignored = loss.with_gradient(outputs.clone(), targets), targets == IGNORED
        assert not expected[1][ignored].any(), "there is a gradient where nothing counts"
        for anything in ANYTHING:
            other = outputs.masked_fill(ignored.unsqueeze(-1), anything)
            for found in (loss.with_gradient(other.clone(), targets), by_autograd(loss.examples, other, targets)):
                same = all(
                    torch.allclose(one, two, rtol=0, atol=TOLERANCE) for one, two in zip(found, expected, strict=True)
                )
                assert same, f"{anything} at places that do not count changes the loss"


def an_example_is_the_mean_of_what_counts(specimen: Costing) -> None:
    """Where a loss is one of single targets."""
    for loss, outputs, targets in specimen.cases():
        if not isinstance(loss, Pointwise) or not loss.places:
            continue
        counts = targets != IGNORED
        each = torch.zeros(targets.shape, dtype=outputs.dtype)
        if loss.task == "classes":
            each[counts] = loss.each(outputs[counts], targets[counts])
        else:
            each = loss.each(outputs, targets)
        expected = each.flatten(2).sum(dim=2) / counts.flatten(2).sum(dim=2)
        assert torch.allclose(loss.examples(outputs, targets), expected, rtol=TOLERANCE, atol=TOLERANCE)


CHECKS = (
    losses_are_numbers_like_the_outputs,
    gradients_are_those_of_autograd,
    an_example_is_alone,
    what_does_not_count_has_no_part,
    an_example_is_the_mean_of_what_counts,
)

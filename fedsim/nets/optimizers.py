"""A local step of a stack of clients by a `Rule`, for networks that give gradients and for what takes many steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedsim.nets.descent import EPSILON, Rule
from fedsim.nets.stack import Stack

Step = Callable[[int, Stack, Stack, float], None]


def descend_plainly(y: Stack, gradient: Stack, lr: float, decay: float, shift: Stack | None) -> None:
    """Take y <- y - lr (gradient + decay y - shift) in place."""
    if decay:
        y.mul_(1.0 - lr * decay)
    y.add_(gradient, alpha=-lr)
    if shift is not None:
        y.add_(shift, alpha=lr)


def corrected(rule: Rule, rows: Stack, gradient: Stack, shift: Stack | None) -> Stack:
    """The gradient at `rows`, in its own memory, clipped, and with decay and shift."""
    if rule.clip_norm is not None:
        squares = [leaf.reshape(len(leaf), -1).square().sum(dim=1) for leaf in gradient.leaves]
        norm = torch.stack(squares, dim=1).sum(dim=1).sqrt()
        factor = torch.clamp(rule.clip_norm / (norm + EPSILON), max=1.0)
        for leaf in gradient.leaves:
            leaf.mul_(factor.view(-1, *(1,) * (leaf.dim() - 1)))
    if rule.decay:
        gradient.add_(rows, alpha=rule.decay)
    if shift is not None:
        gradient.add_(shift, alpha=-1.0)
    return gradient


def stepper(rule: Rule, y: Stack) -> Step:
    """The step (its number, the first rows of y, their gradients, lr) of the rule's optimizer, with fresh memory."""
    first = Stack([torch.zeros_like(leaf) for leaf in y.leaves])
    second = Stack([torch.zeros_like(leaf) for leaf in y.leaves]) if rule.optimizer == "adam" else first

    def sgd(step: int, rows: Stack, gradient: Stack, lr: float) -> None:  # noqa: ARG001
        velocity = first[: len(rows)]
        if rule.momentum:
            velocity.mul_(rule.momentum).add_(gradient)
            gradient = gradient.add_(velocity, rule.momentum) if rule.nesterov else velocity
        rows.add_(gradient, -lr)

    def adam(step: int, rows: Stack, gradient: Stack, lr: float) -> None:
        mean, square = first[: len(rows)].leaves, second[: len(rows)].leaves
        torch._foreach_lerp_(mean, gradient.leaves, 1.0 - rule.beta1)
        torch._foreach_mul_(square, rule.beta2)
        torch._foreach_addcmul_(square, gradient.leaves, gradient.leaves, 1.0 - rule.beta2)
        scale = torch._foreach_div(square, 1.0 - rule.beta2 ** (step + 1))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, rule.epsilon)
        torch._foreach_addcdiv_(rows.leaves, mean, scale, -lr / (1.0 - rule.beta1 ** (step + 1)))

    def lion(step: int, rows: Stack, gradient: Stack, lr: float) -> None:  # noqa: ARG001
        mean = first[: len(rows)].leaves
        if rule.decoupled:
            rows.mul_(1.0 - lr * rule.decoupled)
        direction = torch._foreach_lerp(mean, gradient.leaves, 1.0 - rule.beta1)
        torch._foreach_add_(rows.leaves, [part.sign_() for part in direction], alpha=-lr)
        torch._foreach_lerp_(mean, gradient.leaves, 1.0 - rule.beta2)

    return {"sgd": sgd, "adam": adam, "lion": lion}[rule.optimizer]

"""Rules by which clients step, as the server's: of one client, which is the model, with the gradient -Delta.

Of what is remembered each leaf is a tensor of the state, called by its name and its place, beside how many steps were
taken and the shapes of the parameters' leaves, which rules about layers go by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.nets.descent import Rule
from fedsim.nets.optimizers import Beginning, Optimizer, Remembered, Step
from fedsim.nets.stack import Layout, Stack, shaped
from fedsim.server.optimizers import OptimizerState, ServerOptimizer

STEPS, SHAPE = "steps", "shape"
"""What a state calls the number of steps taken, and, before a leaf's place, its shape."""


@dataclass(frozen=True)
class ServerRule(ServerOptimizer):
    """A rule that needs the gradient alone. decay: times lr the share by which parameters shrink before a step.

    Its own numbers begin once, before the first round. Running statistics are no part of its step: it is about the
    first numbers, which are trained.
    """

    rule: Optimizer
    decay: float = 0.0

    def __post_init__(self) -> None:
        self.rule.hold_needs("server_optimizer", frozenset(), "a server")

    def init(self, params: Tensor, layout: Layout) -> OptimizerState:
        """What the rule remembers where the model is one client of one example, at these parameters."""
        shapes = layout.shapes[: layout.trained]
        memory = self.rule.begin(_row(params, shapes), Beginning(torch.ones(1, dtype=torch.int64)))
        noted = {f"{SHAPE} {place}": torch.tensor(shape, dtype=torch.int64) for place, shape in enumerate(shapes)}
        return {STEPS: torch.zeros((), dtype=torch.int64), **noted, **_named(memory)}

    def step(self, state: OptimizerState, delta: Tensor, lr: float, params: Tensor) -> tuple[Tensor, OptimizerState]:
        """What the rule adds to what is trained of the parameters, its first numbers, and the new state."""
        shapes = [tuple(shape.tolist()) for name, shape in state.items() if name.startswith(f"{SHAPE} ")]
        rows, memory = _row(params, shapes), _remembered(state)
        before = rows.flat()
        step = Step(int(state[STEPS]), lr, _row(-delta, shapes))
        Rule(self.rule, clip_norm=None, decay=0.0, decoupled=self.decay).take(memory, rows, step)
        return (rows.flat() - before)[0], {**state, STEPS: state[STEPS] + 1, **_named(memory)}


def _row(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> Stack:
    """A copy of the first numbers of a vector, as the stack of one client with leaves of these shapes."""
    numbers = sum(math.prod(shape) for shape in shapes)
    return shaped(flat[:numbers].unsqueeze(0), shapes).copy()


def _named(memory: Remembered) -> dict[str, Tensor]:
    """The leaves of what is remembered, by name and place."""
    return {f"{name}.{place}": leaf for name, part in memory.items() for place, leaf in enumerate(part.leaves)}


def _remembered(state: OptimizerState) -> Remembered:
    """What is remembered, in memory of its own, of the leaves of a state, which follow each other by place."""
    leaves: dict[str, list[Tensor]] = {}
    for named, leaf in state.items():
        name, dot, _ = named.rpartition(".")
        if dot:
            leaves.setdefault(name, []).append(leaf.clone())
    return {name: Stack(parts) for name, parts in leaves.items()}

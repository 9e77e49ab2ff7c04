"""FedDF: the mean of the models is the student of an ensemble, the models themselves, on inputs without labels.

FedAvg makes the student, which then takes `steps` steps, by Adam at a rate that falls along half a cosine:
theta <- theta - lr * grad T^2 KL(q || softmax(z(theta) / T)),  q = softmax(mean_i z(theta_i) / T)
Bytes as FedAvg, uplink and downlink d floats a client. The server takes C n forward passes for n public inputs, and
`steps` steps. Lin et al. 2020, algorithm 1; with one round of many local steps it is one-shot distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fedsim.server import (
    Averaging,
    Bench,
    Ensemble,
    Metrics,
    NonNegativeInt,
    Optimizer,
    PositiveFloat,
    PositiveInt,
    Rate,
    Replies,
    ServerState,
    Streams,
    Weighting,
    options,
)


@options
class FedDF(Averaging):
    """Needs public inputs, `problem.public`.

    A server optimizer makes the student's start, and so does an aggregator; what the teachers say is always their mean.
    A student whose loss over all public inputs has not fallen stays where it began, as where teachers agree and Adam
    makes steps of rounding; there is no early stopping on labelled examples, as in the paper.
    """

    parts: ClassVar[Mapping[str, str]] = {**Averaging.parts, "optimizer": "optimizers"}

    steps: NonNegativeInt = 1000
    """Steps of the student in a round; 0: it stays where FedAvg is. The paper takes up to 10,000."""
    batch_size: PositiveInt = 128
    """Public inputs of a step."""
    lr: Rate = 1e-3
    """The student's learning rate in the first step of a round."""
    optimizer: Any = "adam"
    """How the student steps: a rule of `client.optimizer` that needs the gradient alone, begun anew in each round."""
    temperature: PositiveFloat = 1.0
    """T, by which logits are divided."""
    teacher: Ensemble = "logits"
    """Of what the mean over the clients is taken: their logits, or their probabilities."""
    teacher_weighting: Weighting = "uniform"
    """What a client counts in that: all the same, as in the paper, or in proportion to their examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rule.hold_needs("optimizer", frozenset(), "a server")

    @property
    def rule(self) -> Optimizer:
        """How the student steps."""
        made: Optimizer = self.made["optimizer"]
        return made

    @property
    def distils(self) -> bool:
        """If the student takes any step."""
        return self.steps > 0

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the choice of public inputs."""
        seed = torch.tensor(streams.seed_of("feddf"))
        return replace(state, memory={**state.memory, "seed": seed})

    def refine(self, state: ServerState, replies: Replies, bench: Bench) -> tuple[ServerState, Metrics]:
        """Train what FedAvg has made of the clients' models to say what these say together."""
        if not len(replies):
            return state, {}
        weights, sent = replies.weights(self.teacher_weighting), replies.orders[0].payload["params"]
        taught = bench.taught(sent, replies.payload["delta"], weights, self.teacher, self.temperature)
        batches = bench.batches(Streams(int(state.memory["seed"])), state.round, self.steps, self.batch_size)
        params = bench.trained(state.params, taught, batches, self.rule, self.lr, self.temperature)
        before, after = (bench.loss(student, taught, self.temperature) for student in (state.params, params))
        learnt = after < before
        metrics = {"distillation_loss_before": before, "distillation_loss": after if learnt else before}
        return replace(state, params=params) if learnt else state, metrics

"""What a defence makes of the first batch of every client of the small problem, each with a local model of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.client.defence import Defence, victim
from fedsim.core.streams import Streams
from fedsim.engine.cohort import Cohort
from fedsim.engine.job import Job
from fedsim.exchange.messages import Cost, Order
from fedsim.nets.losses import Loss
from fedsim.nets.network import Batch
from fedsim.nets.stack import Stack
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor, build_simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

CLIMB = {"kind": "pgd", "epsilon": 0.3, "steps": 1, "step_size": 0.7, "domain": "none"}
"""One step that is longer than the ball is wide: it ends at x + epsilon sign(gradient), wherever it began."""


@dataclass(frozen=True)
class Armed:
    """before, after: the batches. rows: the local models, [C, d] in `params`."""

    problem: Supervised
    cohort: Cohort
    defence: Defence
    rows: Stack
    params: Tensor
    before: Batch
    after: Batch

    def counts(self) -> list[int]:
        """How many real examples each client has in the batch."""
        return torch.count_nonzero(self.before.weight, dim=1).tolist()

    def local(self, row: int) -> nn.Module:
        return self.problem.module(self.params[row])

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Losses [C] and gradients [C, d] of what the clients train on."""
        losses, gradients = self.cohort.network.gradients(self.rows, self.after)
        return losses, gradients.flat()

    def start(self, loss: Loss | None = None) -> Tensor:
        """Where the attack began."""
        attacked = victim(self.cohort, self.rows, self.before)
        return next(iter(self.defence.attacked_by.iterates(attacked, self.before.x, self.before.y, loss)))


def armed(adversarial: dict[str, Any], count: int = 6, executor: str = "stacked", **plan: Any) -> Armed:
    """The first `count` clients; plan: of their batches, by default an epoch of batches of 4."""
    problem = small_problem()
    client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "adversarial": adversarial}
    made = build_executor(small(client=client, engine={"executor": executor}), problem)
    # Longest first, as cohorts are sorted.
    clients = problem.sizes_on_device.argsort(descending=True)[:count]
    order = Order("train", clients, {"params": problem.initial()})
    cohort = Cohort(problem, made.network, Streams(0), Job((order,), None, clients, Cost(clients, {}), 0), {})
    noise = Streams(1).normal("local models", clients, (problem.dimension,), dtype=problem.dtype)
    params = problem.initial() + 0.3 * noise
    rows, defence = cohort.stack(params), made.client.defence
    before = next(iter(cohort.batches(**({"epochs": 1, "batch_size": 4} | plan))))
    return Armed(problem, cohort, defence, rows, params, before, defence.armed(cohort, 1.0)(rows, before))


def gradient_of(loss: Tensor, module: nn.Module) -> Tensor:
    """[d], by autograd through the plain module."""
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(module.parameters()))])


def assert_climbs(found: Armed, attacked: Tensor, start: Tensor, value: Any) -> None:
    """Each x' is x + epsilon sign(gradient of the value at the start); the start itself where no unit is active.

    value(module, row, inputs, x, y): a sum over examples.
    """
    still = 0
    for row, count in enumerate(found.counts()):
        leaf = start[row, :count].clone().requires_grad_()
        x, y = found.before.x[row, :count], found.before.y[row, :count]
        (gradient,) = torch.autograd.grad(value(found.local(row), row, leaf, x, y), leaf)
        expected = torch.where(gradient == 0.0, start[row, :count], x + 0.3 * gradient.sign())
        still += int((gradient == 0.0).sum())
        assert torch.allclose(attacked[row, :count], expected, rtol=0, atol=1e-12)
    assert still <= found.before.x[0, 0].numel()


def run(adversarial: dict[str, Any] | None, dtype: torch.dtype = torch.float32, **tables: Any) -> Tensor:
    """The final parameters of three rounds."""
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1} | tables.pop("client", {})
    if adversarial is not None:
        client["adversarial"] = adversarial
    simulated = build_simulation(small(client=client, **tables), small_problem(dtype))
    for _ in simulated:
        pass
    return simulated.state.params

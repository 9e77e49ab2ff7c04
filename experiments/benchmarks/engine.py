"""fedsim as one engine of the table, beside its peers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fedsim
from experiments.benchmarks.peers.work import Work
from fedsim.parallel.cores import one_core_an_operation
from fedsim.running.build import build_simulation


class Fedsim:
    """Federated averaging of a `Work` in this process, under one executor.

    strategy: what averages. tf32: round what a GPU multiplies.
    """

    def __init__(
        self, work: Work, executor: str, device: str = "cpu", strategy: str = "fedavg", *, tf32: bool = False
    ) -> None:
        self.work, self.executor, self.device, self.strategy, self.tf32 = work, executor, device, strategy, tf32

    def missing(self) -> str | None:
        """Never."""
        return None

    def start(self) -> None:
        """Deal the data, and build the simulation."""
        work = self.work
        training: dict[str, Any] = {"epochs": work.epochs, "batch_size": work.batch_size, "lr": work.lr}
        if work.attack is not None:
            attack = {"kind": "pgd", "epsilon": work.attack.epsilon, "steps": work.attack.steps}
            training["adversarial"] = {"kind": "standard", "attack": attack}
        if work.curriculum is not None:
            training["curriculum"] = {"pacing": {"kind": "linear", "a": work.curriculum.a, "b": work.curriculum.b}}
        experiment = fedsim.experiment(
            rounds=10**6,
            strategy=self.strategy,
            client={"kind": "sgd", **training},
            selection={"kind": "uniform", "count": work.cohort_size},
            evaluation={"every": 0},
            engine={"executor": self.executor, "device": self.device, "tf32": self.tf32},
        )
        self.problem = fedsim.supervised(
            work.x,
            work.y,
            model=work.model(),
            clients=work.clients,
            test=(work.x_test, work.y_test),
            device=self.device,
        )
        self.simulation = build_simulation(experiment, self.problem)

    def round(self) -> None:
        """Run one round; on a GPU until its last kernel has ended."""
        with one_core_an_operation():
            self.simulation.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def parameters(self) -> dict[str, Tensor]:
        """Copy the present global model, as a state dict."""
        return {
            name: value.cpu() for name, value in self.problem.model.layout.named(self.simulation.state.params).items()
        }

    def accuracy(self) -> float:
        """Measure the test accuracy of the present global model."""
        return self.work.accuracy(self.parameters())

    def stop(self) -> None:
        """Nothing to give back."""

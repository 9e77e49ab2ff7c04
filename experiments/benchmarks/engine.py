"""fedsim as one engine of the table, beside its peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import fedsim
from experiments.benchmarks.peers.values import Values
from experiments.benchmarks.peers.work import Work
from fedsim.core.errors import InputError
from fedsim.parallel.cores import one_core_an_operation
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation


class Fedsim:
    """Federated averaging of a `Work` in this process, under one executor.

    strategy: what averages. optimizer: by what clients step. tf32: round what a GPU multiplies. privacy: the table, if
    there is one.
    """

    def __init__(
        self,
        work: Work,
        executor: str,
        device: str = "cpu",
        strategy: str = "fedavg",
        *,
        optimizer: Any = "sgd",
        tf32: bool = False,
        privacy: Mapping[str, Any] | None = None,
    ) -> None:
        self.work, self.executor, self.device, self.tf32 = work, executor, device, tf32
        self.strategy, self.optimizer, self.privacy = strategy, optimizer, privacy
        self.simulation: Simulation | None = None

    def missing(self) -> str | None:
        """Say what this executor asks for that the work or this machine does not have."""
        try:
            self.start()
        except InputError as error:
            return error.remedy
        return None

    def start(self) -> None:
        """Deal the data, and build the simulation, once."""
        if self.simulation is not None:
            return
        work = self.work
        training: dict[str, Any] = {"epochs": work.epochs, "batch_size": work.batch_size, "lr": work.lr}
        if work.attack is not None:
            attack = {"kind": "pgd", "epsilon": work.attack.epsilon, "steps": work.attack.steps}
            training["adversarial"] = {"kind": "standard", "attack": attack}
        if work.curriculum is not None:
            training["curriculum"] = {"pacing": {"kind": "linear", "a": work.curriculum.a, "b": work.curriculum.b}}
        private: dict[str, Any] = {} if self.privacy is None else {"privacy": self.privacy}
        experiment = fedsim.experiment(
            rounds=10**6,
            strategy=self.strategy,
            client={"kind": "sgd", "optimizer": self.optimizer, **training},
            selection={"kind": "uniform", "count": work.cohort_size},
            evaluation={"every": 0},
            engine={"executor": self.executor, "device": self.device, "tf32": self.tf32},
            **private,
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
        assert self.simulation is not None
        with one_core_an_operation():
            self.simulation.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def parameters(self) -> dict[str, Tensor]:
        """Copy the present global model, as a state dict."""
        assert self.simulation is not None
        return {
            name: value.cpu() for name, value in self.problem.model.layout.named(self.simulation.state.params).items()
        }

    def accuracy(self) -> float:
        """Measure the test accuracy of the present global model."""
        return self.work.accuracy(self.parameters())

    def stop(self) -> None:
        """Nothing to give back."""


class FedsimValues:
    """The zeroth-order work of `Values` in this process."""

    def __init__(self, work: Values) -> None:
        self.work = work

    def missing(self) -> str | None:
        """Never."""
        return None

    def start(self) -> None:
        """Build the problem and the simulation."""
        work = self.work
        scale, centre = torch.from_numpy(work.scale).unsqueeze(1), torch.from_numpy(work.centre).unsqueeze(1)

        def values(clients: Tensor, x: Tensor) -> Tensor:
            return ((x - centre[clients]).square() * scale[clients]).mean(-1)

        problem = fedsim.black_box(
            values,
            clients=len(work.scale),
            dimension=work.scale.shape[1],
            bounds=None,
            start=0.0,
            device="cpu",
            dtype=torch.float32,
        )
        search = {"steps": work.steps, "lr": work.lr, "optimizer": "sgd"}
        estimator = {"kind": "differences", "count": work.directions, "mu": work.mu}
        experiment = fedsim.experiment(
            rounds=10**6,
            client={"kind": "fedzo", "estimator": estimator, **search},
            strategy="fedzo",
            selection={"kind": "uniform", "count": len(work.scale)},
            evaluation={"every": 0},
        )
        self.simulation = build_simulation(experiment, problem)

    def round(self) -> None:
        """Run one round."""
        with one_core_an_operation():
            self.simulation.step()

    def parameters(self) -> dict[str, Tensor]:
        """Copy x."""
        return {"x": self.simulation.state.params.clone()}

    def accuracy(self) -> float:
        """Compute F, of which less is better."""
        return self.work.global_value(self.parameters()["x"].numpy())

    def stop(self) -> None:
        """Nothing to give back."""

"""pfl-research 0.6 in one process: `FederatedAveraging` on a `SimulatedBackend`.

Its data sets keep one order of the examples for all epochs; `Examples` shuffles them anew for each epoch, as
the other engines do. The first round also evaluates each client, which pfl-research always does in round 0.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from experiments.benchmarks.peers.work import Work, threads


class PflResearch:
    """The peer. threads: how many threads PyTorch may use."""

    def __init__(self, work: Work, threads: int) -> None:
        self.work, self.threads = work, threads
        self.rounds = 0

    def missing(self) -> str | None:
        """Say whether the package `pfl` is absent."""
        return None if importlib.util.find_spec("pfl") else "not installed"

    def start(self) -> None:
        """Import pfl, copy out each client's examples, and build model, data set, backend and algorithm."""
        # The other engines run on the CPU; without this, pfl takes a GPU when it sees one.
        os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.aggregate.weighting import WeightByDatapoints
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.hyperparam import NNTrainHyperParams
        from pfl.model.pytorch import PyTorchModel

        work = self.work
        self.data = [work.examples(client) for client in range(len(work.clients))]
        module = Trainable(work.model())
        self.module = module.network
        self.model = PyTorchModel(
            module,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        )
        cohorts = self._clients()
        data = FederatedDataset(self._examples, lambda: next(cohorts))
        self.backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()])
        self.algorithm = FederatedAveraging()
        self.local = NNTrainHyperParams(
            local_num_epochs=work.epochs, local_learning_rate=work.lr, local_batch_size=work.batch_size
        )

    def round(self) -> None:
        """Continue the algorithm by one central iteration."""
        from pfl.algorithm.base import NNAlgorithmParams

        schedule = NNAlgorithmParams(
            central_num_iterations=self.rounds + 1,
            evaluation_frequency=2**31,
            train_cohort_size=self.work.cohort_size,
            val_cohort_size=None,
        )
        with threads(self.threads):
            self.algorithm.run(schedule, self.backend, self.model, self.local, send_metrics_to_platform=False)
        self.rounds += 1

    def parameters(self) -> dict[str, Tensor]:
        """Copy the global model's state dict."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def accuracy(self) -> float:
        """Measure the test accuracy of the global model."""
        return self.work.accuracy(self.parameters())

    def stop(self) -> None:
        """Forget the clients' examples."""
        self.data = []

    def _clients(self) -> Iterator[int]:
        """Yield the clients in the order in which rounds ask for them."""
        while True:
            yield from self.work.chosen(self.rounds)

    def _examples(self, client: int) -> Examples:
        x, y = self.data[client]
        return Examples(client, x, y, self.work.orders(self.rounds, client))


class Examples:
    """A client's data with the members of pfl's `AbstractDataset` that training uses.

    x: [n, ...], y: [n], orders: an order [n] for each epoch.
    """

    def __init__(self, client: int, x: Tensor, y: Tensor, orders: Iterator[Tensor]) -> None:
        self.user_id = str(client)
        self.raw_data = (x, y)
        self.train_kwargs: dict[str, Any] = {}
        self.eval_kwargs: dict[str, Any] = {}
        self.orders = orders

    def __len__(self) -> int:
        return len(self.raw_data[1])

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches; all examples at once in their own order, which evaluation asks for."""
        x, y = self.raw_data
        if batch_size is None or batch_size >= len(y):
            yield x, y
            return
        for batch in torch.split(next(self.orders), batch_size):
            yield x[batch], y[batch]


class Trainable(nn.Module):
    """A network with the two methods that pfl's `PyTorchModel` asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        self.train()
        return F.cross_entropy(self.network(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Sum the cross-entropy, with its number of examples."""
        from pfl.metrics import Weighted

        self.eval()
        return {"loss": Weighted(float(F.cross_entropy(self.network(x), y, reduction="sum")), len(y))}

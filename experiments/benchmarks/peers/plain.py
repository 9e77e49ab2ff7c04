"""Loops over the clients in plain PyTorch: as a person writes it, and with what can be left out left out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from experiments.benchmarks.peers.work import Pgd, Work, threads


class PlainLoop:
    """`nn.Module`, `loss.backward()`, `torch.optim.SGD`; batches are parts of a shuffled order.

    threads: how many threads PyTorch may use. device: where the model and all examples lie.
    """

    def __init__(self, work: Work, threads: int, device: str = "cpu") -> None:
        self.work, self.threads, self.device = work, threads, torch.device(device)
        self.rounds = 0

    def missing(self) -> str | None:
        """Say None: nothing but PyTorch is needed."""
        return None

    def start(self) -> None:
        """Make the module and copy out each client's examples."""
        self.model = self.work.model().to(self.device)
        self.state = _copy(self.model.state_dict())
        examples = (self.work.examples(client) for client in range(len(self.work.clients)))
        self.data = [(x.to(self.device), y.to(self.device)) for x, y in examples]

    def round(self) -> None:
        """Train the chosen clients one after the other and average their state dicts by examples."""
        chosen = self.work.chosen(self.rounds)
        total = sum(len(self.work.clients[client]) for client in chosen)
        # The others count the batches that normalisation has seen.
        average = {name: torch.zeros_like(value) for name, value in self.state.items() if value.is_floating_point()}
        with threads(self.threads):
            for client in chosen:
                x, y = self.data[client]
                self.model.load_state_dict(self.state)
                orders = (order.to(self.device) for order in self.work.orders(self.rounds, client))
                train(self.model, x, y, orders, self.work)
                found = self.model.state_dict()
                for name, value in average.items():
                    value.add_(found[name], alpha=len(y) / total)
        self.state = {**self.state, **average}
        self.rounds += 1

    def parameters(self) -> dict[str, Tensor]:
        """Copy the global model's state dict."""
        return _copy(self.state)

    def accuracy(self) -> float:
        """Measure the test accuracy of the global model."""
        return self.work.accuracy(self.state)

    def stop(self) -> None:
        """Forget the clients' examples."""
        self.data = []


def train(model: nn.Module, x: Tensor, y: Tensor, orders: Iterator[Tensor], work: Work) -> None:
    """Run local SGD in place. x: [n, ...], y: [n], orders: an order [n] for each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    model.train()
    if work.curriculum is not None:
        orders = paced(model, x, y, orders, work)
    for order in orders:
        for batch in torch.split(order, work.batch_size):
            inputs = x[batch] if work.attack is None else attacked(model, x[batch], y[batch], work.attack)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def attacked(model: nn.Module, x: Tensor, y: Tensor, attack: Pgd) -> Tensor:
    """PGD: the inputs [B, ...] within epsilon of x and within [0, 1], moved along the signs of gradients."""
    model.eval()
    found = (x + attack.epsilon * (2.0 * torch.rand(x.shape) - 1.0)).clamp(0.0, 1.0)
    for _ in range(attack.steps):
        found.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), y, reduction="sum"), found)
        found = found.detach() + attack.step_size * gradient.sign()
        found = torch.minimum(torch.maximum(found, x - attack.epsilon), x + attack.epsilon).clamp(0.0, 1.0)
    model.train()
    return found


def paced(model: nn.Module, x: Tensor, y: Tensor, orders: Iterator[Tensor], work: Work) -> Iterator[Tensor]:
    """The passes of a curriculum, in as many steps as the epochs have."""
    assert work.curriculum is not None
    model.eval()
    with torch.no_grad():
        scores = F.cross_entropy(model(x), y, reduction="none")
    model.train()
    easiest, width = scores.argsort(stable=True), work.batch_size
    total, step = work.epochs * -(-len(y) // width), 0
    while step < total:
        order = next(orders)
        way = step / (work.curriculum.a * total)
        count = min(len(y), int(len(y) * (work.curriculum.b + (1.0 - work.curriculum.b) * way)))
        chosen = torch.zeros(len(y), dtype=torch.bool)
        chosen[easiest[:count]] = True
        taken = order[chosen[order]][: (total - step) * width]
        yield taken
        step += -(-len(taken) // width)


class LeanLoop:
    """Parameters as tensors, the network as a function, `torch.autograd.grad` and an update in place.

    threads: how many threads PyTorch may use.
    """

    def __init__(self, work: Work, threads: int) -> None:
        self.work, self.threads = work, threads
        self.rounds = 0

    def missing(self) -> str | None:
        """Say None: nothing but PyTorch is needed."""
        return None

    def start(self) -> None:
        """Take the initial parameters and copy out each client's examples."""
        initial = dict(self.work.model().named_parameters())
        self.names = list(initial)
        self.theta = [value.detach() for value in initial.values()]
        self.local = [value.clone().requires_grad_() for value in self.theta]
        self.data = [self.work.examples(client) for client in range(len(self.work.clients))]

    def round(self) -> None:
        """Train the chosen clients one after the other in the same tensors and average these by examples."""
        work, local = self.work, self.local
        chosen = work.chosen(self.rounds)
        total = sum(len(work.clients[client]) for client in chosen)
        average = [torch.zeros_like(value) for value in self.theta]
        with threads(self.threads):
            for client in chosen:
                x, y = self.data[client]
                with torch.no_grad():
                    torch._foreach_copy_(local, self.theta)
                for order in work.orders(self.rounds, client):
                    for batch in torch.split(order, work.batch_size):
                        loss = F.cross_entropy(work.forward(local, x[batch]), y[batch])
                        gradients = torch.autograd.grad(loss, local)
                        with torch.no_grad():
                            torch._foreach_add_(local, gradients, alpha=-work.lr)
                with torch.no_grad():
                    torch._foreach_add_(average, local, alpha=len(y) / total)
        self.theta = average
        self.rounds += 1

    def parameters(self) -> dict[str, Tensor]:
        """Copy the global model, named as in the module."""
        return _copy(dict(zip(self.names, self.theta, strict=True)))

    def accuracy(self) -> float:
        """Measure the test accuracy of the global model."""
        return self.work.accuracy(self.parameters())

    def stop(self) -> None:
        """Forget the clients' examples."""
        self.data = []


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}

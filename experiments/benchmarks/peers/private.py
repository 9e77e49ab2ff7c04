"""DP-SGD in plain PyTorch, one client after the other, as a person writes it: single gradients by `vmap` or Opacus."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812

from experiments.benchmarks.peers.work import Work, threads

Singles = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Gradients [B, *shape] of the losses of single examples, of a batch's inputs and targets."""


class PrivateLoop:
    """Federated averaging of all clients, whose steps clip to `clip` and add noise of `multiplier` times that.

    how: what makes gradients of single examples. Batches are drawn by coins, on one thread.
    """

    def __init__(self, work: Work, how: Literal["vmap", "opacus"], clip: float, multiplier: float) -> None:
        self.work, self.how, self.clip, self.multiplier = work, how, clip, multiplier
        self.draws = torch.Generator().manual_seed(0)

    def missing(self) -> str | None:
        """Say what is not installed."""
        return "pip install opacus" if self.how == "opacus" and find_spec("opacus") is None else None

    def start(self) -> None:
        """Make the module and copy out each client's examples."""
        self.model = self.work.model()
        self.data = [self.work.examples(client) for client in range(len(self.work.clients))]
        self.state = [own.detach().clone() for own in self.model.parameters()]
        self.singles = self._by_opacus() if self.how == "opacus" else self._by_vmap()

    def round(self) -> None:
        """Train all clients and average what they have come to by their examples."""
        average, total = [torch.zeros_like(own) for own in self.state], sum(len(y) for _, y in self.data)
        with threads(1):
            for x, y in self.data:
                for own, start in zip(self.model.parameters(), self.state, strict=True):
                    own.data.copy_(start)
                for _ in range(self.work.epochs * -(-len(y) // self.work.batch_size)):
                    self._step(x, y)
                for found, own in zip(average, self.model.parameters(), strict=True):
                    found.add_(own.detach(), alpha=len(y) / total)
        self.state = average

    def _step(self, x: Tensor, y: Tensor) -> None:
        expected = min(self.work.batch_size, len(y))
        drawn = torch.rand(len(y), generator=self.draws) < expected / len(y)
        each = self.singles(x[drawn], y[drawn]) if bool(drawn.any()) else None
        factors = None if each is None else self._factors(each)
        for place, own in enumerate(self.model.parameters()):
            noise = torch.randn(own.shape, generator=self.draws)
            gradient = noise * (self.multiplier * self.clip)
            if each is not None and factors is not None:
                gradient += torch.tensordot(factors, each[place], dims=1)
            own.data.sub_(gradient, alpha=self.work.lr / expected)

    def _factors(self, each: Sequence[Tensor]) -> Tensor:
        norms = torch.stack([part.flatten(1).norm(dim=1) for part in each]).norm(dim=0)
        factors: Tensor = (self.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
        return factors

    def _by_vmap(self) -> Singles:
        names = [name for name, _ in self.model.named_parameters()]

        def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.model, own, (x.unsqueeze(0),))
            return F.cross_entropy(outputs, y.unsqueeze(0))

        single = vmap(grad(loss), in_dims=(None, 0, 0))

        def singles(x: Tensor, y: Tensor) -> Sequence[Tensor]:
            found = single({name: own.detach() for name, own in self.model.named_parameters()}, x, y)
            return [found[name] for name in names]

        return singles

    def _by_opacus(self) -> Singles:
        wrapped: Any = import_module("opacus").GradSampleModule(copy.deepcopy(self.model), loss_reduction="sum")
        self.model = wrapped._module

        def singles(x: Tensor, y: Tensor) -> Sequence[Tensor]:
            wrapped.zero_grad()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                F.cross_entropy(wrapped(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
            return [own.grad_sample for own in wrapped._module.parameters()]

        return singles

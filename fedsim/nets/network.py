"""How a cohort's model is evaluated and differentiated: three networks with one meaning.

All compute, for each client c of a stack, its own weighted loss  sum_b weight[c, b] * loss(output[c, b], y[c, b])
and the gradient of it. `descend` takes the local step

    y <- y - lr * (grad f(y) + decay * y - shift)

in place: plain SGD; weight decay and a proximal term are `decay` and `shift` = mu x; SCAFFOLD's and FedDyn's
corrections are `shift`. A network may fuse the step with the gradient.

`ChainNetwork`   stacked, hand-written, for chains of linear layers: no autograd, the update fused into the
                 product that makes the weight gradient (one pass over the parameters a step).
`StackedNetwork` stacked, any module: a batched forward pass and one backward pass of the summed losses.
`PlainNetwork`   one client at a time through the module itself: the plain twin, and the fast way for large
                 convolutions on a CPU.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsim.nets import products
from fedsim.nets.descent import Compiled, Loop
from fedsim.nets.dropout import Draw, drawing
from fedsim.nets.functional import Functional
from fedsim.nets.layers import has_hooks
from fedsim.nets.losses import Loss, weighted, weighted_gradient
from fedsim.nets.lowering import Lowered, lower
from fedsim.nets.optimizers import descend_plainly
from fedsim.nets.plain import PlainLoop
from fedsim.nets.stack import Layout, Stack


@dataclass(frozen=True)
class Batch:
    """One local step of the clients that still work, the first k rows of a cohort.

    x: [k, B, ...], y: [k, B, *places], weight: [k, B]: 1/count for examples and 0 for padding. draw: whose draws they
    make. loss: instead of the network's own; where it is about V views of each example, B is V times as wide. padded:
    whether there is padding; None: who has to know looks, for which a GPU is waited for.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    draw: Draw
    loss: Loss | None = None
    padded: bool | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def real(self) -> Tensor | None:
        """Which places are examples, bool [k, B]; None: all are."""
        real = self.weight > 0
        padded = not bool(real.all()) if self.padded is None else self.padded
        return real if padded else None

    def cut(self, count: int) -> Batch:
        """The first `count` examples of each client, which are no padding."""
        if count == self.weight.shape[1]:
            return self
        x, y, weight = self.x[:, :count], self.y[:, :count], self.weight[:, :count]
        return replace(self, x=x, y=y, weight=weight, padded=False)


class Network(Protocol):
    """What an executor computes with; see the module's text.

    loop: what takes all local steps at once instead of `descend`, where nothing has to be done between them. compiled:
    the same where it is compiled, and does more.
    """

    layout: Layout
    loss: Loss
    stacked: bool
    loop: Loop | None
    compiled: Compiled | None

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] of the k clients of a batch, and gradients of what is trained.

        Running statistics of y move along, in place: it is a training pass.
        """
        ...

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...], without dropout, with nothing kept."""
        ...

    def input_gradients(self, y: Stack, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients [k, B, ...] with respect to the inputs x, without dropout."""
        ...

    def values(self, y: Stack, batch: Batch) -> Tensor:
        """Losses [k] of the k clients of a batch, without dropout and with nothing kept to differentiate them."""
        ...

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] as of `values`, and their derivatives [k] along the directions v, in forward mode."""
        ...

    def descend(self, y: Stack, batch: Batch, lr: float, decay: float = 0.0, shift: Stack | None = None) -> Tensor:
        """Take the step above in place for the k clients of a batch; losses [k] before the step."""
        ...


class _Autograd(ABC):
    """What networks share that know only how to make gradients."""

    @abstractmethod
    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of the k clients of a batch."""

    @abstractmethod
    def _outputs(self, leaves: Sequence[Tensor], x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] under parameters in the stack's shapes, in terms that can be differentiated."""

    layout: Layout
    loss: Loss
    loop: Loop | None = None
    compiled: Compiled | None = None

    def _values(self, leaves: Sequence[Tensor], batch: Batch) -> Tensor:
        loss = self.loss if batch.loss is None else batch.loss
        return weighted(loss.examples(self._outputs(leaves, batch.x), batch.y), batch.weight)

    def values(self, y: Stack, batch: Batch) -> Tensor:
        """Losses [k] of the k clients of a batch, without dropout and with nothing kept to differentiate them."""
        with torch.no_grad():
            return self._values(y.leaves, batch)

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...], without dropout, with nothing kept."""
        with torch.no_grad():
            return self._outputs(y.leaves, x)

    def input_gradients(self, y: Stack, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients [k, B, ...] with respect to the inputs x, without dropout."""
        leaf = x.detach().requires_grad_()
        outputs = self._outputs([own.detach() for own in y.leaves], leaf)
        losses, delta = loss.with_gradient(outputs.detach(), targets)
        (gradient,) = torch.autograd.grad(outputs, leaf, delta)
        return losses, gradient

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] as of `values`, and their derivatives [k] along the directions v, in forward mode."""
        with torch.no_grad(), forward_mode():
            found = torch.func.jvp(lambda *leaves: self._values(leaves, batch), tuple(y.leaves), tuple(v.leaves))
        return found[0], found[1]

    def descend(self, y: Stack, batch: Batch, lr: float, decay: float = 0.0, shift: Stack | None = None) -> Tensor:
        """Gradient first, then the elementwise step."""
        losses, gradient = self.gradients(y, batch)
        shift = None if shift is None else self.layout.moved(shift)
        descend_plainly(self.layout.moved(y), gradient, lr, decay, shift)
        return losses


class StackedNetwork(_Autograd):
    """Any module: forward with a leading client axis, then one `autograd.grad` of the sum of the losses.

    The sum's gradient with respect to row c is client c's own, because no row reads another.
    """

    stacked = True

    def __init__(self, model: nn.Module, layout: Layout, loss: Loss) -> None:
        self.layout, self.loss = layout, loss
        self.lowered: Lowered = lower(model)
        first: dict[int, str] = {}
        parameters = list(model.named_parameters(remove_duplicate=False))
        every = [*parameters, *model.named_buffers(remove_duplicate=False)]
        for name, own in every:
            first.setdefault(id(own), name)
        shared = {name: first[id(own)] for name, own in every}
        self._aliases = {name: own for name, own in shared.items() if name != own and own in layout.names}
        # Frozen parameters are no part of the vector; every client has the same.
        self._frozen = {name: own.detach() for name, own in parameters if shared[name] not in layout.names}

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of the k clients of a batch."""
        trained = [leaf.detach().requires_grad_() for leaf in y.leaves[: self.layout.trained]]
        with drawing(batch.draw, stacked=self.stacked, real=batch.real if self.layout.normalises else None):
            losses = self._values([*trained, *y.leaves[self.layout.trained :]], batch)
        gradient = torch.autograd.grad(losses.sum(), trained, allow_unused=True, materialize_grads=True)
        return losses.detach(), Stack(gradient)

    def _outputs(self, leaves: Sequence[Tensor], x: Tensor) -> Tensor:
        named = dict(zip(self.layout.names, leaves, strict=True))
        named |= {name: named[own] for name, own in self._aliases.items()}
        named |= {name: own.expand(len(x), *own.shape) for name, own in self._frozen.items()}
        return self.lowered(named, x)


class PlainNetwork(_Autograd):
    """The module itself, for stacks of one client; values alone for any stack, one row after the other."""

    stacked = False

    def __init__(self, model: nn.Module, layout: Layout, loss: Loss, operations: float | None = None) -> None:
        """Operations: multiply-adds of a step, where all steps of a client are to be taken in one loop."""
        self.model, self.layout, self.loss = Functional(model), layout, loss
        if operations is not None:
            self.loop = PlainLoop(self.model, layout, loss, operations)

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [1] and gradients of one client."""
        model, parameters = self.model.bind(leaf[0] for leaf in y.leaves)
        with drawing(batch.draw, stacked=self.stacked, real=batch.real if self.layout.normalises else None):
            outputs = model(batch.x[0])
        own = self.loss if batch.loss is None else batch.loss
        losses = own.examples(outputs.unsqueeze(0), batch.y)
        gradient = weighted_gradient(losses, batch.weight, parameters)
        return weighted(losses.detach(), batch.weight), Stack([part.unsqueeze(0) for part in gradient])

    def input_gradients(self, y: Stack, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients [k, B, ...] with respect to the inputs x, without dropout."""
        losses, gradient = x.new_empty(x.shape[:2]), torch.empty_like(x)
        for row in range(len(x)):
            model, _ = self.model.bind(leaf[row] for leaf in y.leaves)
            leaf = x[row].detach().requires_grad_()
            outputs = model(leaf)
            losses[row], delta = loss.with_gradient(outputs.detach().unsqueeze(0), targets[row].unsqueeze(0))
            (gradient[row],) = torch.autograd.grad(outputs, leaf, delta[0])
        return losses, gradient

    def values(self, y: Stack, batch: Batch) -> Tensor:
        """Losses [k] of the k clients of a batch, without dropout and with nothing kept to differentiate them."""
        loss = self.loss if batch.loss is None else batch.loss
        return weighted(loss.examples(self.outputs(y, batch.x), batch.y), batch.weight)

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...], without dropout, with nothing kept."""
        with torch.no_grad():
            return torch.stack([self.model.bind(leaf[row] for leaf in y.leaves)[0](own) for row, own in enumerate(x)])

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] as of `values`, and their derivatives [k] along the directions v, in forward mode."""
        self.model.bind(leaf[0] for leaf in y.leaves)  # a copy of the module that is made within stays forward mode's
        return super().derivatives(y, v, batch)

    def _outputs(self, leaves: Sequence[Tensor], x: Tensor) -> Tensor:
        rows = [dict(zip(self.layout.names, (leaf[row] for leaf in leaves), strict=True)) for row in range(len(x))]
        return torch.stack([self.model(named, own) for named, own in zip(rows, x, strict=True)])


class ChainNetwork:
    """Linear layers with elementwise activations between them, by hand.

    Forward: h_l = act(h_{l-1} W_l^T + b_l). Backward: delta_L = weight * d loss / d outputs,
    delta_{l-1} = (delta_l W_l) * act'. The step W_l <- (1 - lr decay) W_l - lr delta_l^T h_{l-1} is one batched
    product with its own beta and alpha; it follows the use of W_l in the backward pass.
    """

    stacked = True
    loop: Loop | None = None
    compiled: Compiled | None = None

    def __init__(self, layout: Layout, layers: list[tuple[str, str | None]], act: str, loss: Loss) -> None:
        self.layout, self.loss, self.act = layout, loss, act
        place = {name: number for number, name in enumerate(layout.names)}
        self.places = [(place[weight], None if bias is None else place[bias]) for weight, bias in layers]

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, loss: Loss) -> ChainNetwork | None:
        """The chain that `model` is, or None; of classes at several places it would be another at each."""
        if type(model) is not nn.Sequential or (loss.task == "classes" and loss.places):
            return None
        # Not `named_children`, which leaves out a layer that comes again.
        parts = [(name, part) for name, part in model._modules.items() if part is not None]
        if any(has_hooks(part) for _, part in [("", model), *parts]):
            return None
        if parts and type(parts[0][1]) is nn.Flatten:
            parts = parts[1:]
        if any(part.start_dim != 1 or part.end_dim != -1 for part in model if type(part) is nn.Flatten):
            return None
        linear, between = parts[::2], parts[1::2]
        if len(parts) % 2 == 0 or not all(type(part) is nn.Linear for _, part in linear):
            return None
        kinds = {type(part) for _, part in between}
        if len(kinds) > 1 or not kinds <= {nn.ReLU, nn.Tanh}:
            return None
        layers: list[tuple[str, str | None]] = [
            (f"{name}.weight", f"{name}.bias" if part.bias is not None else None) for name, part in linear
        ]
        if sorted(name for pair in layers for name in pair if name) != sorted(layout.names):
            return None
        return cls(layout, layers, "tanh" if kinds == {nn.Tanh} else "relu", loss)

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of the k clients of a batch."""
        gradient: list[Tensor] = [torch.empty(0)] * len(y.leaves)
        losses, parts = self._backward(y, batch)
        for (weight, bias), delta, h in parts:
            gradient[weight] = products.bmm(delta.mT, h)
            if bias is not None:
                gradient[bias] = delta.sum(dim=1)
        return losses, Stack(gradient)

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...]."""
        return self._forward(y, x)[-1]

    def input_gradients(self, y: Stack, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients [k, B, ...] with respect to the inputs x."""
        *hidden, outputs = self._forward(y, x)
        losses, delta = loss.with_gradient(outputs, targets)
        *_, (_, delta, _) = self._deltas(y, hidden, delta)
        return losses, products.bmm(delta, y.leaves[self.places[0][0]]).view_as(x)

    def values(self, y: Stack, batch: Batch) -> Tensor:
        """Losses [k] of the k clients of a batch."""
        loss = self.loss if batch.loss is None else batch.loss
        return weighted(loss.examples(self._forward(y, batch.x)[-1], batch.y), batch.weight)

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] and their derivatives [k] along the directions v, in forward mode."""
        with forward_mode():
            found = torch.func.jvp(lambda *leaves: self.values(Stack(leaves), batch), tuple(y.leaves), tuple(v.leaves))
        return found[0], found[1]

    def descend(self, y: Stack, batch: Batch, lr: float, decay: float = 0.0, shift: Stack | None = None) -> Tensor:
        """Take the step of the module's text in place; losses [k] before the step."""
        beta = 1.0 - lr * decay
        losses, parts = self._backward(y, batch)
        for (weight, bias), delta, h in parts:
            products.baddbmm_(y.leaves[weight], delta.mT, h, beta=beta, alpha=-lr)
            if bias is not None:
                leaf = y.leaves[bias]
                if decay:
                    leaf.mul_(beta)
                # Not a product with a row of ones: of a single client that would be another kernel's.
                leaf.add_(delta.sum(dim=1), alpha=-lr)
        if shift is not None:
            y.add_(shift, alpha=lr)
        return losses

    def _forward(self, y: Stack, x: Tensor) -> list[Tensor]:
        hidden = [x.flatten(2)]
        for number, (weight, bias) in enumerate(self.places):
            if bias is None:
                out = products.bmm(hidden[-1], y.transposed[weight])
            else:
                out = products.baddbmm(y.transposed[bias], hidden[-1], y.transposed[weight])
            if number < len(self.places) - 1:
                out = out.relu_() if self.act == "relu" else out.tanh_()
            hidden.append(out)
        return hidden

    def _backward(self, y: Stack, batch: Batch) -> tuple[Tensor, list[tuple[tuple[int, int | None], Tensor, Tensor]]]:
        """Losses, and for each layer its places, its delta [k, B, out] and its input [k, B, in]."""
        *hidden, outputs = self._forward(y, batch.x)
        loss = self.loss if batch.loss is None else batch.loss
        losses, delta = loss.with_gradient(outputs, batch.y)
        parts = list(self._deltas(y, hidden, delta.mul_(batch.weight.unsqueeze(2))))
        return weighted(losses, batch.weight), parts

    def _deltas(
        self, y: Stack, hidden: Sequence[Tensor], delta: Tensor
    ) -> Iterator[tuple[tuple[int, int | None], Tensor, Tensor]]:
        """From the last layer to the first: its places, its delta [k, B, out] and its input [k, B, in]."""
        for number in range(len(self.places) - 1, -1, -1):
            h = hidden[number]
            yield self.places[number], delta, h
            if number > 0:
                delta = products.bmm(delta, y.leaves[self.places[number][0]])
                if self.act == "relu":
                    delta = torch.ops.aten.threshold_backward(delta, h, 0)
                else:
                    delta = torch.ops.aten.tanh_backward(delta, h)


@contextmanager
def forward_mode() -> Iterator[None]:
    """Within this block layers are computed in ways that forward-mode differentiation knows.

    PyTorch's fast paths for LSTMs and attention on a CPU are not among them.
    """
    layers: Any = torch.backends.mkldnn  # typed as if its flags could not be set
    recurrent, attention = layers.enabled, torch.backends.mha.get_fastpath_enabled()
    layers.enabled = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # Of PyTorch's own rules, when the first of them is read.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
            yield
    finally:
        layers.enabled = recurrent
        torch.backends.mha.set_fastpath_enabled(attention)

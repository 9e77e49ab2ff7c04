"""Chains of linear layers with elementwise activations between them, by hand; see `fedsim.nets.network`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fedsim.nets import products
from fedsim.nets.curvature import Linearised, slopes
from fedsim.nets.descent import Compiled, Loop
from fedsim.nets.ghost import factors, lengths
from fedsim.nets.layers import has_hooks
from fedsim.nets.losses import Loss, ModelLoss, weighted
from fedsim.nets.modes import forward_mode
from fedsim.nets.network import Batch, gradients_of_models, products_of_models
from fedsim.nets.optimizers import descend_plainly
from fedsim.nets.rows import columns, scale, scaled, squares
from fedsim.nets.stack import Layout, Stack, extended, take

Part: TypeAlias = tuple[tuple[int, int | None], Tensor, Tensor]
"""A layer of a chain: the places of its weight and bias, its delta [k, B, out] and its input [k, B, in]."""


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
        shapes = [layout.shapes[weight] for weight, _ in self.places]
        # Below so many numbers PyTorch multiplies in another way, and padding decides which it is.
        self.trims = all(math.prod(shape) * products.BLOCK >= products.FEW for shape in shapes)

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
        if isinstance(batch.loss, ModelLoss):
            return gradients_of_models(self.layout, y, batch, batch.loss)
        losses, parts = self._backward(y, batch)
        return losses, self._gathered(y, parts)

    def products(self, y: Stack, batch: Batch, v: Stack) -> tuple[Tensor, Stack, Stack]:
        """Losses [k], gradients and H v of the k clients of a batch, by the derivatives R of each line along v.

        R h_l = act' (R h_{l-1} W^T + h_{l-1} V^T + v_b), and from the last layer to the first, with e = delta_l W_l,
        R delta_{l-1} = act' (R delta_l W_l + delta_l V_l) + act'' R h_{l-1} e / act', of which ReLU has no last term.
        """
        if isinstance(batch.loss, ModelLoss):
            return products_of_models(self.layout, y, batch, batch.loss, v)
        *hidden, outputs = self._forward(y, batch.x)
        loss, weight = self.loss if batch.loss is None else batch.loss, batch.weight.unsqueeze(2)
        losses, pull, delta = loss.gradients_with(hidden[-1], outputs, batch.y)
        pull = None if pull is None else pull * weight
        parts = list(self._deltas(y, hidden, delta.mul_(weight), pull))
        along = self._along(y, hidden, v)
        pulled, turned = slopes(loss, hidden[-1], outputs, batch.y, (along[-2], along[-1]))
        turned = turned * weight
        curved: list[Tensor] = [torch.empty(0)] * len(y.leaves)
        for number, ((weight_at, bias_at), delta, h) in zip(reversed(range(len(parts))), parts, strict=True):
            curved[weight_at] = products.bmm(turned.mT, h)
            if bias_at is not None:
                curved[bias_at] = turned.sum(dim=1)
            if number > 0:
                curved[weight_at] += products.bmm(delta.mT, along[number])
                turned = products.bmm(turned, y.leaves[weight_at]) + products.bmm(delta, v.leaves[weight_at])
                back = products.bmm(delta, y.leaves[weight_at]) if self.act == "tanh" else None
                if pull is not None and pulled is not None:  # what the last layer reads, the loss does, too
                    turned, back = turned.addcmul_(pulled, weight), None if back is None else back.add_(pull)
                    pull = None
                turned = self._back(turned, h)
                if back is not None:
                    turned -= 2.0 * h * along[number] * back
        return weighted(losses, batch.weight), self._gathered(y, parts), Stack(curved)

    def linearised(self, y: Stack, batch: Batch) -> Linearised:
        """Outputs of the k clients of a batch as a linear function of the parameters, whose matrix is never made."""
        *hidden, outputs = self._forward(y, batch.x)
        return _Chained(self, y, hidden, outputs)

    def spread(self, y: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """V [k] and N [k] of the examples' gradients: |g_b|^2 = sum_l |delta_lb|^2 (|h_lb|^2 + 1), and no g_b is made.

        V = (sum_b |g_b|^2 - B N) / (B - 1), N = |mean_b g_b|^2.
        """
        _, parts = self._backward(y, batch)
        count = (batch.weight > 0).sum(dim=1).to(batch.weight.dtype)
        each = torch.zeros_like(batch.weight)  # of deltas that are divided by B already
        for (_, bias), delta, h in parts:
            each += delta.square().sum(dim=2) * (h.square().sum(dim=2) + float(bias is not None))
        square = squares(self._gathered(y, parts))
        variance = (each.sum(dim=1) * count - square) * count / (count - 1.0).clamp(min=1.0)
        return torch.where(count > 1, variance.clamp(min=0.0), 0.0), square

    def clipped(self, y: Stack, batch: Batch, bounds: Sequence[float]) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of clipped examples: |g_b|^2 = sum_l |delta_lb|^2 (|h_lb|^2 + 1)."""
        losses, parts = self._backward(y, batch)
        squares: list[Tensor] = [torch.empty(0)] * len(y.leaves)
        for (weight, bias), delta, h in parts:
            own = lengths(delta)
            squares[weight] = own * lengths(h)
            if bias is not None:
                squares[bias] = own
        shares = [share.unsqueeze(2) for share in factors(squares, bounds, batch.weight)]
        gradient: list[Tensor] = [torch.empty(0)] * len(y.leaves)
        for (weight, bias), delta, h in parts:
            own = delta * shares[weight]
            gradient[weight] = products.bmm(own.mT, h)
            if bias is not None:
                gradient[bias] = (own if len(bounds) == 1 else delta * shares[bias]).sum(dim=1)
        return losses, Stack(gradient)

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...]."""
        return self._forward(y, x)[-1]

    def features(self, y: Stack, x: Tensor) -> Tensor:
        """What the last layer reads, [k, B, h], for inputs [k, B, ...]."""
        return self._read(y, x)[-1]

    def input_gradients(self, y: Stack, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients [k, B, ...] with respect to the inputs x."""
        *hidden, outputs = self._forward(y, x)
        losses, delta = loss.with_gradient(outputs, targets)
        *_, (_, delta, _) = self._deltas(y, hidden, delta)
        return losses, products.bmm(delta, y.leaves[self.places[0][0]]).view_as(x)

    def values(self, y: Stack, batch: Batch) -> Tensor:
        """Losses [k] of the k clients of a batch."""
        loss = self.loss if batch.loss is None else batch.loss
        if isinstance(loss, ModelLoss):
            return loss.of(y.leaves, batch.x, batch.y, batch.weight)
        *_, features, outputs = self._forward(y, batch.x)
        return weighted(loss.examples_with(features, outputs, batch.y), batch.weight)

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] and their derivatives [k] along the directions v, in forward mode."""
        with forward_mode():
            found = torch.func.jvp(lambda *leaves: self.values(Stack(leaves), batch), tuple(y.leaves), tuple(v.leaves))
        return found[0], found[1]

    def descend(
        self, y: Stack, batch: Batch, lr: float | Tensor, decay: float = 0.0, shift: Stack | None = None
    ) -> Tensor:
        """Take the step of the module's text in place; losses [k] before the step."""
        if isinstance(batch.loss, ModelLoss):
            losses, gradient = self.gradients(y, batch)
            descend_plainly(y, gradient, lr, decay, shift)
            return losses
        if isinstance(lr, Tensor):
            return self._descend_each(y, batch, lr, decay, shift)
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

    def _descend_each(self, y: Stack, batch: Batch, lr: Tensor, decay: float, shift: Stack | None) -> Tensor:
        """The same at rates of the clients' own, [k], by which their deltas are multiplied."""
        losses, parts = self._backward(y, batch)
        if decay:
            scale(y, 1.0 - lr * decay)
        for (weight, bias), delta, h in parts:
            own = delta * columns(lr, delta)
            products.baddbmm_(y.leaves[weight], own.mT, h, beta=1.0, alpha=-1.0)
            if bias is not None:
                y.leaves[bias].sub_(own.sum(dim=1))
        if shift is not None:
            y.add_(scaled(shift, lr))
        return losses

    def _forward(self, y: Stack, x: Tensor) -> list[Tensor]:
        """What the layers read, and the outputs."""
        hidden = self._read(y, x)
        return [*hidden, self._linear(y, hidden[-1], len(self.places) - 1)]

    def _read(self, y: Stack, x: Tensor) -> list[Tensor]:
        """What each layer reads."""
        hidden = [x.flatten(2)]
        for number in range(len(self.places) - 1):
            out = self._linear(y, hidden[-1], number)
            hidden.append(out.relu_() if self.act == "relu" else out.tanh_())
        return hidden

    def _linear(self, y: Stack, h: Tensor, number: int) -> Tensor:
        weight, bias = self.places[number]
        if bias is None:
            return products.bmm(h, y.transposed[weight])
        return products.baddbmm(y.transposed[bias], h, y.transposed[weight])

    def _along(self, y: Stack, hidden: Sequence[Tensor], v: Stack) -> list[Tensor]:
        """Derivatives along v of all that `_forward` gives, from the inputs, which have none, to the outputs."""
        found = [torch.zeros_like(hidden[0])]
        for number, (weight, bias) in enumerate(self.places):
            out = products.bmm(hidden[number], v.transposed[weight])
            if bias is not None:
                out = out + v.transposed[bias]
            if number:
                out = out + products.bmm(found[-1], y.transposed[weight])
            found.append(self._back(out, hidden[number + 1]) if number < len(self.places) - 1 else out)
        return found

    def _gathered(self, y: Stack, parts: Iterable[Part]) -> Stack:
        """The gradient that deltas and inputs of layers make."""
        gradient: list[Tensor] = [torch.empty(0)] * len(y.leaves)
        for (weight, bias), delta, h in parts:
            gradient[weight] = products.bmm(delta.mT, h)
            if bias is not None:
                gradient[bias] = delta.sum(dim=1)
        return Stack(gradient)

    def _backward(self, y: Stack, batch: Batch) -> tuple[Tensor, list[Part]]:
        """Losses, and for each layer its places, its delta [k, B, out] and its input [k, B, in]."""
        *hidden, outputs = self._forward(y, batch.x)
        loss, weight = self.loss if batch.loss is None else batch.loss, batch.weight.unsqueeze(2)
        losses, pull, delta = loss.gradients_with(hidden[-1], outputs, batch.y)
        pull = None if pull is None else pull * weight
        parts = list(self._deltas(y, hidden, delta.mul_(weight), pull))
        return weighted(losses, batch.weight), parts

    def _deltas(self, y: Stack, hidden: Sequence[Tensor], delta: Tensor, pull: Tensor | None = None) -> Iterator[Part]:
        """From the last layer to the first: its places, its delta [k, B, out] and its input [k, B, in].

        pull: the loss's own delta on what the last layer reads, [k, B, h].
        """
        for number in range(len(self.places) - 1, -1, -1):
            h = hidden[number]
            yield self.places[number], delta, h
            if number > 0:
                delta = products.bmm(delta, y.leaves[self.places[number][0]])
                if pull is not None:
                    delta, pull = delta.add_(pull), None
                delta = self._back(delta, h)

    def _back(self, delta: Tensor, h: Tensor) -> Tensor:
        """Through an activation, from what is after it to what is before; h is what came out."""
        if self.act == "relu":
            found: Tensor = torch.ops.aten.threshold_backward(delta, h, 0)
        else:
            found = torch.ops.aten.tanh_backward(delta, h)
        return found


class _Chained(Linearised):
    """Outputs of a chain, by its deltas and its layers' inputs."""

    def __init__(
        self,
        chain: ChainNetwork,
        y: Stack,
        hidden: Sequence[Tensor],
        outputs: Tensor,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Numbers: of the leaves that it is a function of; None: of all."""
        super().__init__(outputs)
        self._chain, self._y, self._hidden = chain, y, hidden
        self._numbers = range(len(y.leaves)) if numbers is None else numbers

    def pull(self, u: Tensor) -> Stack:
        """J' u, by a backward pass from u."""
        found = self._chain._gathered(self._y, self._chain._deltas(self._y, self._hidden, u))
        return take(found, self._numbers)

    def push(self, v: Stack) -> Tensor:
        """J v, by a forward pass along v."""
        return self._chain._along(self._y, [*self._hidden, self.outputs], extended(v, self._numbers, self._y))[-1]

    def gram(self) -> Tensor:
        """J J' = sum_l (delta_l delta_l') o (h_l h_l' + 1), with the deltas of all N outputs, [k, N, out].

        h_l h_l' is of the layer's weight and 1 of its bias.
        """
        clients, batch, classes = self.outputs.shape
        each = [h.repeat_interleave(classes, dim=1) for h in self._hidden]
        one = torch.eye(classes, dtype=self.outputs.dtype, device=self.outputs.device).repeat(batch, 1)
        found = self.outputs.new_zeros(clients, batch * classes, batch * classes)
        for (weight, bias), delta, h in self._chain._deltas(self._y, each, one.expand(clients, -1, -1)):
            inputs = products.bmm(h, h.mT) if weight in self._numbers else torch.zeros_like(found)
            found.addcmul_(products.bmm(delta, delta.mT), inputs + 1.0 if bias in self._numbers else inputs)
        return found

    def among(self, numbers: Sequence[int]) -> Linearised:
        """The same layers, some of whose leaves are constants."""
        return _Chained(self._chain, self._y, self._hidden, self.outputs, [self._numbers[place] for place in numbers])

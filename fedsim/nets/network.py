"""How a cohort's model is evaluated and differentiated: three networks with one meaning.

All compute, for each client c of a stack, its own weighted loss  sum_b weight[c, b] * loss(output[c, b], y[c, b])
and the gradient of it. `descend` takes the local step

    y <- y - lr * (grad f(y) + decay * y - shift)

in place: plain SGD; weight decay and a proximal term are `decay` and `shift` = mu x; SCAFFOLD's and FedDyn's
corrections are `shift`. A network may fuse the step with the gradient.

`ChainNetwork`   (`fedsim.nets.chain`) stacked, hand-written, for chains of linear layers: no autograd, the update fused
                 into the product that makes the weight gradient (one pass over the parameters a step).
`StackedNetwork` stacked, any module: a batched forward pass and one backward pass of the summed losses.
`PlainNetwork`   one client at a time through the module itself: the plain twin, and the fast way for large
                 convolutions on a CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from fedsim.nets.curvature import Linearised, Traced, derivative, differentiated_twice, refuse_once
from fedsim.nets.descent import Compiled, Loop
from fedsim.nets.dropout import Draw, drawing
from fedsim.nets.functional import Functional
from fedsim.nets.ghost import factors, watching
from fedsim.nets.halves import halves
from fedsim.nets.losses import Loss, ModelLoss, each_its_own, weighted, weighted_gradient
from fedsim.nets.lowering import Lowered, Names, lower
from fedsim.nets.modes import forward_mode
from fedsim.nets.optimizers import descend_plainly
from fedsim.nets.plain import PlainLoop
from fedsim.nets.rows import scale, scaled, squares, squares_by_leaf
from fedsim.nets.stack import Layout, Stack


@dataclass(frozen=True)
class Batch:
    """One local step of the clients that still work, the first k rows of a cohort.

    x: [k, B, ...], y: [k, B, *places], weight: [k, B]: 1/count for examples and 0 for padding. draw: whose draws they
    make. loss: instead of the network's own; where it is about V views of each example, B is V times as wide, where it
    is of features they are those of the same pass, and where it is of models it is given their leaves. padded: whether
    there is padding; None: who has to know looks, for which a GPU is waited for. expected: [k], where examples are
    drawn by coins how many were to be expected, which stands in weights in the place of the count. evaluated: gradients
    are those of models as they are judged, without dropout, and normalised by running statistics, which stay.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    draw: Draw
    loss: Loss | None = None
    padded: bool | None = None
    expected: Tensor | None = None
    evaluated: bool = False

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

    def alone(self, place: int, *, wide: bool) -> Batch:
        """The example of each client that stands at a place; wide: with itself beside it, as padding."""
        index = [place, place] if wide else [place]
        weight = self.weight[:, index]
        if wide:
            weight[:, 1] = 0.0  # two wide, so that no product has a kernel of its own for a single client's row
        return replace(self, x=self.x[:, index], y=self.y[:, index], weight=weight, padded=wide)


class Network(Protocol):
    """What an executor computes with; see the module's text.

    loop: what takes all local steps at once instead of `descend`, where nothing has to be done between them. compiled:
    the same where it is compiled, and does more. trims: whether a client's bits are the same with any multiple of
    `products.BLOCK` places that its examples, from the first on, fit into.
    """

    layout: Layout
    loss: Loss
    stacked: bool
    loop: Loop | None
    compiled: Compiled | None
    trims: bool

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] of the k clients of a batch, and gradients of what is trained.

        Running statistics of y move along, in place: it is a training pass, unless the batch is `evaluated`.
        """
        ...

    def clipped(self, y: Stack, batch: Batch, bounds: Sequence[float]) -> tuple[Tensor, Stack]:
        """Losses [k], and gradients to which each example's own adds no more than a bound allows, times its weight.

        sum_b weight_b g_b min(1, C / |g_b|). bounds: C of the whole gradient, or one of each leaf's.
        """
        ...

    def products(self, y: Stack, batch: Batch, v: Stack) -> tuple[Tensor, Stack, Stack]:
        """The losses and gradients of `gradients`, and products H v with the Hessians, in the same training pass.

        v: directions, one a client, of what is trained. InputError: a layer has no second derivative.
        """
        ...

    def linearised(self, y: Stack, batch: Batch) -> Linearised:
        """Outputs of the k clients of a batch near y, in a training pass as of `gradients`."""
        ...

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...], without dropout, with nothing kept."""
        ...

    def features(self, y: Stack, x: Tensor) -> Tensor:
        """What the head reads, [k, B, h], for inputs [k, B, ...], without dropout, with nothing kept.

        InputError: the model cannot be cut (see `fedsim.nets.halves`).
        """
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

    def spread(self, y: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """V [k] and N [k] of the gradients g_b of the examples of k clients: sum_j var_b(g_b[j]), and |mean_b g_b|^2.

        The variance is unbiased, and 0 of a single example. Exact of chains of linear layers; of other models from the
        means g', g'' of two halves of a' and a'' examples: V ~ |g' - g''|^2 / (1 / a' + 1 / a'').
        """
        ...

    def descend(
        self, y: Stack, batch: Batch, lr: float | Tensor, decay: float = 0.0, shift: Stack | None = None
    ) -> Tensor:
        """Take the step above in place for the k clients of a batch; losses [k] before the step. lr: one, or [k]."""
        ...


Passed = tuple[Tensor | None, Tensor]
"""What a forward pass gives: features [k, B, h], where they are asked for, and outputs [k, B, *places, K]."""


class _Autograd(ABC):
    """What networks share that know only how to make gradients."""

    @abstractmethod
    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of the k clients of a batch."""

    @abstractmethod
    def _passed(self, leaves: Sequence[Tensor], x: Tensor, *, features: bool) -> Passed:
        """What parameters in the stack's shapes make of inputs, in terms that can be differentiated."""

    @abstractmethod
    def _traced(self, y: Stack, batch: Batch, *, features: bool) -> tuple[Passed, list[Tensor]]:
        """The same of a training pass, and what is trained, in its terms and in the stack's order.

        Each of these is [k, *shape], or of a single client that is in no stack [*shape].
        """

    layout: Layout
    loss: Loss
    stacked: bool
    loop: Loop | None = None
    compiled: Compiled | None = None
    trims: bool = False
    _twice = False

    def _passing(self, batch: Batch) -> AbstractContextManager[None]:
        """Within this block the models of a batch are trained, or, if it is `evaluated`, as they are judged."""
        if batch.evaluated:
            return nullcontext()
        return drawing(batch.draw, stacked=self.stacked, real=batch.real if self.layout.normalises else None)

    def clipped(self, y: Stack, batch: Batch, bounds: Sequence[float]) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of clipped examples, of all clients one example at a time.

        So that of single ones no more gradients are there than clients.
        """
        found, total = torch.zeros_like(batch.weight[:, 0]), y.zeros()
        for place in range(batch.weight.shape[1]):
            own, draw = batch.alone(place, wide=self.stacked), batch.draw
            if not bool(own.weight.any()):
                continue
            own = replace(own, draw=replace(draw, within=f"{draw.within}example {place}/"))
            losses, gradient = self.gradients(y, own)
            found += losses
            each = [one.unsqueeze(1) for one in squares_by_leaf(gradient)]
            shares = [share[:, 0] for share in factors(each, bounds, batch.weight[:, place : place + 1])]
            total.add_(scale(gradient, shares))
        return found, total

    def products(self, y: Stack, batch: Batch, v: Stack) -> tuple[Tensor, Stack, Stack]:
        """Losses [k], gradients and H v of the k clients of a batch, by two backward passes."""
        loss = self.loss if batch.loss is None else batch.loss
        if isinstance(loss, ModelLoss):
            return products_of_models(self.layout, y, batch, loss, v)
        with differentiated_twice():
            passed, trained = self._traced(y, batch, features=loss.of_features)
            losses = weighted(loss.examples_with(*passed, batch.y), batch.weight)
            gradient = torch.autograd.grad(
                losses.sum(), trained, create_graph=True, allow_unused=True, materialize_grads=True
            )
            if not self._twice:  # all of its graphs are alike
                refuse_once(gradient)
                self._twice = True
            along = [own.view_as(leaf) for own, leaf in zip(v.leaves, trained, strict=True)]
            curved = derivative(gradient, trained, along)
        return losses.detach(), _like(v, gradient), _like(v, curved)

    def linearised(self, y: Stack, batch: Batch) -> Linearised:
        """Outputs of the k clients of a batch as a linear function of what is trained, by backward passes."""
        (_, outputs), trained = self._traced(y, batch, features=False)
        return Traced(outputs, trained, self.layout.moved(y))

    def spread(self, y: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """V [k] and N [k] of the examples' gradients, by halves of the batch."""
        count = (batch.weight > 0).sum(dim=1, keepdim=True)
        place, half = torch.arange(batch.weight.shape[1], device=count.device), count // 2
        first, second = place < half, (place >= half) & (place < count)
        own = [
            self.gradients(
                Stack([leaf.clone() for leaf in y.leaves]),  # a training pass moves its statistics
                replace(batch, weight=part.to(batch.weight.dtype) / part.sum(dim=1, keepdim=True).clamp(min=1)),
            )[1]
            for part in (first, second)
        ]
        share = half[:, 0].to(batch.weight.dtype) / count[:, 0]
        rest = 1.0 - share
        mean = scaled(own[0], share).add_(scaled(own[1], rest))
        apart = squares(own[0].add_(own[1], alpha=-1.0)) * share * rest * count[:, 0]
        return torch.where(count[:, 0] > 1, apart, 0.0), squares(mean)

    def _values(self, leaves: Sequence[Tensor], batch: Batch) -> Tensor:
        loss = self.loss if batch.loss is None else batch.loss
        if isinstance(loss, ModelLoss):
            return loss.of(leaves, batch.x, batch.y, batch.weight)
        passed = self._passed(leaves, batch.x, features=loss.of_features)
        return weighted(loss.examples_with(*passed, batch.y), batch.weight)

    def values(self, y: Stack, batch: Batch) -> Tensor:
        """Losses [k] of the k clients of a batch, without dropout and with nothing kept to differentiate them."""
        with torch.no_grad():
            return self._values(y.leaves, batch)

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...], without dropout, with nothing kept."""
        with torch.no_grad():
            return self._passed(y.leaves, x, features=False)[1]

    def input_gradients(self, y: Stack, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Losses [k, B] and their gradients [k, B, ...] with respect to the inputs x, without dropout."""
        leaf = x.detach().requires_grad_()
        _, outputs = self._passed([own.detach() for own in y.leaves], leaf, features=False)
        losses, delta = loss.with_gradient(outputs.detach(), targets)
        (gradient,) = torch.autograd.grad(outputs, leaf, delta)
        return losses, gradient

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] as of `values`, and their derivatives [k] along the directions v, in forward mode."""
        with torch.no_grad(), forward_mode():
            found = torch.func.jvp(lambda *leaves: self._values(leaves, batch), tuple(y.leaves), tuple(v.leaves))
        return found[0], found[1]

    def descend(
        self, y: Stack, batch: Batch, lr: float | Tensor, decay: float = 0.0, shift: Stack | None = None
    ) -> Tensor:
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
        self._model = model
        self._names = Names(model, layout)
        self._watched = True

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of the k clients of a batch."""
        trained = [leaf.detach().requires_grad_() for leaf in y.leaves[: self.layout.trained]]
        with self._passing(batch):
            losses = self._values([*trained, *y.leaves[self.layout.trained :]], batch)
        gradient = torch.autograd.grad(losses.sum(), trained, allow_unused=True, materialize_grads=True)
        return losses.detach(), Stack(each_its_own(gradient))

    def clipped(self, y: Stack, batch: Batch, bounds: Sequence[float]) -> tuple[Tensor, Stack]:
        """Losses [k] and gradients of clipped examples, none of which is made where layers know how."""
        found = self._watch(y, batch, bounds) if self._watched else None
        self._watched = found is not None  # which the layers alone decide
        return super().clipped(y, batch, bounds) if found is None else found

    def _watch(self, y: Stack, batch: Batch, bounds: Sequence[float]) -> tuple[Tensor, Stack] | None:
        """The same in one pass (see `fedsim.nets.ghost`); None: not every leaf is used by one layer that knows how."""
        loss = self.loss if batch.loss is None else batch.loss
        with watching() as uses, self._passing(batch):
            losses = loss.examples(self._passed(y.leaves, batch.x, features=False)[1], batch.y)
        names = [(self._names.aliases.get(use.name, use.name), use) for use in uses]
        known = dict(names)
        places = [known.get(name) for name in self.layout.names]
        own = [use for use in places if use is not None]
        if len(own) < len(places) or len([name for name, _ in names if name in self.layout.names]) > len(own):
            return None
        outputs = list({id(use.output): use.output for use in own}.values())
        back = torch.autograd.grad(losses, outputs, batch.weight, allow_unused=True, materialize_grads=True)
        came = dict(zip(map(id, outputs), back, strict=True))
        deltas = [came[id(use.output)] for use in own]
        each = [use.part.squares(delta) for use, delta in zip(own, deltas, strict=True)]
        shares = factors(each, bounds, batch.weight)
        gradient = [
            use.part.gradient(delta * share.view(*share.shape, *(1,) * (delta.dim() - 2))).view_as(leaf)
            for use, delta, share, leaf in zip(own, deltas, shares, y.leaves, strict=True)
        ]
        return weighted(losses.detach(), batch.weight), Stack(gradient)

    def features(self, y: Stack, x: Tensor) -> Tensor:
        """What the head reads, [k, B, h], for inputs [k, B, ...], without dropout, with nothing kept."""
        with torch.no_grad():
            return self._halves[0](self._names.of(y.leaves, len(x)), x).flatten(2)

    def _traced(self, y: Stack, batch: Batch, *, features: bool) -> tuple[Passed, list[Tensor]]:
        trained = [leaf.detach().requires_grad_() for leaf in y.leaves[: self.layout.trained]]
        with self._passing(batch):
            leaves = [*trained, *y.leaves[self.layout.trained :]]
            return self._passed(leaves, batch.x, features=features), trained

    def _passed(self, leaves: Sequence[Tensor], x: Tensor, *, features: bool) -> Passed:
        named = self._names.of(leaves, len(x))
        if not features:
            return None, self.lowered(named, x)
        body, head = self._halves
        read = body(named, x)
        return read.flatten(2), head(named, read)

    @cached_property
    def _halves(self) -> tuple[Lowered, Lowered]:
        """What makes features, and the head."""
        body, head = halves(self._model)
        return lower(body), lower(head)


class PlainNetwork(_Autograd):
    """The module itself, for stacks of one client; values alone for any stack, one row after the other."""

    stacked = False

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        loss: Loss,
        operations: float | None = None,
        chain: Network | None = None,
    ) -> None:
        """Operations: multiply-adds of a step, where all steps of a client are to be taken in one loop.

        chain: the network of the same model as a chain, for what chains alone know exactly; None: it is none.
        """
        self._chain = chain
        self.model, self.layout, self.loss = Functional(model), layout, loss
        if operations is not None:
            self.loop = PlainLoop(self.model, layout, loss, operations)

    def gradients(self, y: Stack, batch: Batch) -> tuple[Tensor, Stack]:
        """Losses [1] and gradients of one client."""
        own = self.loss if batch.loss is None else batch.loss
        if isinstance(own, ModelLoss):
            return gradients_of_models(self.layout, y, batch, own)
        passed, parameters = self._traced(y, batch, features=own.of_features)
        losses = own.examples_with(*passed, batch.y)
        gradient = weighted_gradient(losses, batch.weight, parameters)
        return weighted(losses.detach(), batch.weight), Stack([part.unsqueeze(0) for part in gradient])

    def _traced(self, y: Stack, batch: Batch, *, features: bool) -> tuple[Passed, list[Tensor]]:
        model, parameters = self.model.bind(leaf[0] for leaf in y.leaves)
        with self._passing(batch):
            if not features:
                return (None, model(batch.x[0]).unsqueeze(0)), list(parameters)
            read, outputs = self.model.both()(batch.x[0])
        return (read.flatten(1).unsqueeze(0), outputs.unsqueeze(0)), list(parameters)

    def spread(self, y: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """V [1] and N [1] of the examples' gradients of one client."""
        return super().spread(y, batch) if self._chain is None else self._chain.spread(y, batch)

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
        if loss.of_features or isinstance(loss, ModelLoss):
            return super().values(y, batch)
        return weighted(loss.examples(self.outputs(y, batch.x), batch.y), batch.weight)

    def outputs(self, y: Stack, x: Tensor) -> Tensor:
        """Outputs [k, B, *places, K] of the k clients for inputs [k, B, ...], without dropout, with nothing kept."""
        with torch.no_grad():
            return torch.stack([self.model.bind(leaf[row] for leaf in y.leaves)[0](own) for row, own in enumerate(x)])

    def features(self, y: Stack, x: Tensor) -> Tensor:
        """What the head reads, [k, B, h], for inputs [k, B, ...], without dropout, with nothing kept."""
        body, found = self.model.both().halves.features, list[Tensor]()
        with torch.no_grad():
            for row, own in enumerate(x):
                self.model.bind(leaf[row] for leaf in y.leaves)
                found.append(body(own).flatten(1))
            return torch.stack(found)

    def derivatives(self, y: Stack, v: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses [k] as of `values`, and their derivatives [k] along the directions v, in forward mode."""
        self.model.bind(leaf[0] for leaf in y.leaves)  # a copy of the module that is made within stays forward mode's
        return super().derivatives(y, v, batch)

    def _passed(self, leaves: Sequence[Tensor], x: Tensor, *, features: bool) -> Passed:
        rows = [dict(zip(self.layout.names, (leaf[row] for leaf in leaves), strict=True)) for row in range(len(x))]
        if not features:
            return None, torch.stack([self.model(named, own) for named, own in zip(rows, x, strict=True)])
        passed = [self.model.with_features(named, own) for named, own in zip(rows, x, strict=True)]
        read, outputs = zip(*passed, strict=True)
        return torch.stack(read).flatten(2), torch.stack(outputs)


def gradients_of_models(layout: Layout, y: Stack, batch: Batch, loss: ModelLoss) -> tuple[Tensor, Stack]:
    """Losses [k] of the models themselves, and gradients of what is trained."""
    losses, trained = _of_models(layout, y, batch, loss)
    gradient = torch.autograd.grad(losses.sum(), trained, allow_unused=True, materialize_grads=True)
    return losses.detach(), Stack(gradient)


def products_of_models(
    layout: Layout, y: Stack, batch: Batch, loss: ModelLoss, v: Stack
) -> tuple[Tensor, Stack, Stack]:
    """The same, and products H v with the Hessians."""
    with differentiated_twice():
        losses, trained = _of_models(layout, y, batch, loss)
        gradient = torch.autograd.grad(
            losses.sum(), trained, create_graph=True, allow_unused=True, materialize_grads=True
        )
        curved = derivative(gradient, trained, v.leaves)
    return losses.detach(), _like(v, gradient), _like(v, curved)


def _of_models(layout: Layout, y: Stack, batch: Batch, loss: ModelLoss) -> tuple[Tensor, list[Tensor]]:
    """Losses [k], and what is trained, in their terms."""
    trained = [leaf.detach().requires_grad_() for leaf in y.leaves[: layout.trained]]
    leaves = [*trained, *y.leaves[layout.trained :]]
    with torch.enable_grad():
        return loss.of(leaves, batch.x, batch.y, batch.weight), trained


def _like(stack: Stack, parts: Iterable[Tensor]) -> Stack:
    """Parts as a stack of the same shapes as another, without their graph."""
    return Stack(part.detach().view_as(leaf) for part, leaf in zip(parts, stack.leaves, strict=True))

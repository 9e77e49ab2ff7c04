"""Batch normalisation of a stack's clients, held to PyTorch's own layers on the examples of each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.core.streams import Streams
from fedsim.nets.dropout import Draw, drawing
from fedsim.nets.losses import CrossEntropy
from fedsim.nets.network import Batch, PlainNetwork, StackedNetwork
from fedsim.nets.normalisation import BatchNorm, Statistics, statistics_of, vector_parts
from fedsim.nets.prepared import prepare
from fedsim.nets.stack import Layout, Stack
from fedsim.testing.problems import DEVICE

COUNTS, B = (8, 5, 2, 3, 1), 8
"""Examples of each client's batch, beside which all is padding."""
SAME = {"rtol": 0.0, "atol": 1e-12}


class Own(nn.Module):
    """A network with a forward pass of its own, which writes to what the layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(100, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu_(self.norm(self.first(x))).flatten(1))


def twice() -> nn.Module:
    """One layer in two places, which has one pair of statistics."""
    norm = nn.BatchNorm1d(6)
    return nn.Sequential(norm, nn.Linear(6, 6), norm, nn.Tanh(), nn.Linear(6, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vectors": (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=0.4), nn.Linear(5, 3)),
        (6,),
    ),
    "bare": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)), (6,)),
    "sequences": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 3)), (4, 5)),
    "images": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        ),
        (2, 5, 5),
    ),
    "single places": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)), (4, 1, 1)),
    "own forward": (Own, (2, 5, 5)),
    "twice": (twice, (6,)),
}


class Case:
    """A model with statistics and parameters of its own, a batch of each client, and how they are computed with."""

    def __init__(self, name: str, statistics: Statistics = "averaged", padding: float = 0.0) -> None:
        make, shape = MODELS[name]
        generator = torch.Generator().manual_seed(3)

        def normal(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        self.module = make().double()
        with torch.no_grad():
            for own in self.module.parameters():
                own.copy_(normal(*own.shape))
            for part in self.module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.running_mean.copy_(normal(part.num_features))
                    part.running_var.copy_(1 + normal(part.num_features).square())
        model = prepare(self.module, statistics).to(DEVICE)
        parts = vector_parts(model)
        carried = statistics_of(model)
        self.layout = Layout.of({name: own for name, own in parts.items() if name not in carried}, carried)
        self.start = self.layout.flatten(parts)
        loss = CrossEntropy()
        self.stacked, self.plain = StackedNetwork(model, self.layout, loss), PlainNetwork(model, self.layout, loss)
        self.x, self.y = normal(len(COUNTS), B, *shape), torch.arange(len(COUNTS) * B).view(-1, B) % 3
        self.weight = torch.zeros(len(COUNTS), B, dtype=torch.float64)
        for client, count in enumerate(COUNTS):
            self.weight[client, :count] = 1.0 / count
            self.x[client, count:] = padding
        self.x, self.y, self.weight = (own.to(DEVICE) for own in (self.x, self.y, self.weight))

    def batch(self, rows: slice = slice(None), count: int = B) -> Batch:
        draw = Draw(Streams(0), torch.arange(len(COUNTS), device=DEVICE)[rows], 0, 0)
        return Batch(self.x[rows], self.y[rows], self.weight[rows], draw).cut(count)

    def taken(self, rows: slice = slice(None)) -> tuple[torch.Tensor, Stack, torch.Tensor]:
        """Losses, gradients, and the vectors afterwards, in a stack."""
        stack = self.layout.stack(self.start, len(COUNTS))[rows]
        losses, gradient = self.stacked.gradients(stack, self.batch(rows))
        return losses, gradient, stack.flat()


@pytest.mark.parametrize("name", MODELS)
def test_a_stack_and_a_loop_do_as_the_layers_of_pytorch_on_unpadded_batches(name):
    case = Case(name)
    losses, gradient, after = case.taken()
    for client, count in enumerate(COUNTS):
        own = slice(client, client + 1)
        alone = case.layout.stack(case.start, 1)
        loss, expected = case.plain.gradients(alone, case.batch(own, count))
        torch.testing.assert_close(losses[own], loss, **SAME)
        torch.testing.assert_close(after[own], alone.flat(), **SAME)
        for found, right in zip(gradient.leaves, expected.leaves, strict=True):
            torch.testing.assert_close(found[own], right, **SAME)
        if count == 1 and name not in ("images", "own forward", "sequences"):
            torch.testing.assert_close(after[client], case.start, **SAME)  # PyTorch refuses a single number
            continue
        module = copy.deepcopy(case.module).train()
        theirs = functional.cross_entropy(module(case.x[client, :count].cpu()), case.y[client, :count].cpu())
        torch.testing.assert_close(loss[0].cpu(), theirs.detach(), **SAME)
        theirs.backward()
        for found, right in zip(expected.leaves, module.parameters(), strict=True):
            torch.testing.assert_close(found[0].cpu(), right.grad, **SAME)
        named = case.layout.named(after[client])
        for key in statistics_of(prepare(case.module)):
            torch.testing.assert_close(named[key].cpu(), module.get_buffer(key), **SAME)


def test_a_single_number_is_normalised_by_the_running_statistics_as_in_evaluation():
    case = Case("vectors")
    losses, gradient, _ = case.taken()
    rows = slice(4, 5)
    leaves = [leaf.requires_grad_() for leaf in case.layout.stack(case.start, 1).leaves]
    evaluated = case.stacked._values(leaves, case.batch(rows))
    torch.testing.assert_close(losses[rows], evaluated, **SAME)
    slopes = torch.autograd.grad(evaluated, leaves[: case.layout.trained])
    for found, right in zip(gradient.leaves, slopes, strict=True):
        torch.testing.assert_close(found[rows], right, **SAME)


@pytest.mark.parametrize("padding", [1e30, float("inf"), float("nan")])
def test_padding_changes_nothing_whatever_it_is(padding):
    """Nor in single precision, where its square is infinite; gradients of inputs are 0 there."""
    layer = prepare(nn.BatchNorm1d(6))
    assert isinstance(layer, BatchNorm)
    real = torch.arange(B) < torch.tensor(COUNTS).unsqueeze(1)
    found = []
    for filled in (0.0, padding):
        x = torch.randn(len(COUNTS), B, 6, generator=torch.Generator().manual_seed(0))
        x = torch.where(real.unsqueeze(2), x, filled).requires_grad_()
        named = {name: own.detach().repeat(len(COUNTS), 1) for name, own in layer.state_dict().items()}
        named["weight"].requires_grad_()
        with drawing(Draw(Streams(0), torch.arange(len(COUNTS)), 0, 0), stacked=True, real=real):
            out = layer.stacked(named, "", x)
        slopes = torch.autograd.grad((out.sin() * real.unsqueeze(2)).sum(), (x, named["weight"]))
        found.append([out[real], *slopes, named["running_mean"], named["running_var"]])
        assert bool((slopes[0][~real] == 0).all())
    assert all(bool(one.isfinite().all()) and torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["vectors", "sequences", "own forward"])
def test_a_clients_bits_are_the_same_in_any_company_and_in_any_row(name):
    case = Case(name)
    losses, gradient, after = case.taken()
    for rows in (slice(0, 1), slice(1, 3), slice(4, 5)):
        loss, slopes, vectors = case.taken(rows)
        assert torch.equal(loss, losses[rows])
        assert torch.equal(vectors, after[rows])
        assert all(torch.equal(one, all_[rows]) for one, all_ in zip(slopes.leaves, gradient.leaves, strict=True))
    back = torch.arange(len(COUNTS) - 1, -1, -1, device=DEVICE)
    case.x, case.y, case.weight = case.x[back], case.y[back], case.weight[back]
    assert torch.equal(case.taken()[2], after[back])


@pytest.mark.parametrize("name", ["vectors", "images", "own forward"])
def test_pooled_statistics_are_the_same_model_in_another_form(name):
    """Training, and evaluation, come to what averaged ones do; the vector has second moments."""
    averaged, pooled = Case(name), Case(name, "pooled")
    (losses, gradient, after), (others, slopes, vectors) = averaged.taken(), pooled.taken()
    torch.testing.assert_close(others, losses, **SAME)
    for one, other in zip(gradient.leaves, slopes.leaves, strict=True):
        torch.testing.assert_close(other, one, **SAME)
    for client in range(len(COUNTS)):
        plain, moments = averaged.layout.named(after[client]), pooled.layout.named(vectors[client])
        for key in plain:
            square = plain[key.replace("running_var", "running_mean")].square() if "running_var" in key else 0.0
            torch.testing.assert_close(moments[key], plain[key] + square, **SAME)
    for network in ("stacked", "plain"):
        outputs = [
            getattr(case, network).outputs(case.layout.stack(rows), case.x)
            for case, rows in ((averaged, after), (pooled, vectors))
        ]
        torch.testing.assert_close(outputs[1], outputs[0], **SAME)


def test_pooled_statistics_of_a_batch_that_is_dealt_to_clients_are_the_batchs():
    """Their weighted mean, whatever the parts: the law of total variance. Averaged variances are below it."""
    x = torch.randn(19, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 5
    pooled = [torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
    for part in x.split([2, 9, 1, 7]):
        layer = prepare(nn.BatchNorm1d(4).double())
        assert isinstance(layer, BatchNorm)
        layer.running_mean, layer.running_var = part.mean(dim=0), part.var(dim=0, correction=0)
        layer.become("pooled")
        pooled = [sum_ + len(part) / 19 * own for sum_, own in zip(pooled, layer.buffers(), strict=True)]
    layer.running_mean, layer.running_var = pooled
    layer.become("averaged")
    torch.testing.assert_close(layer.running_mean, x.mean(dim=0), **SAME)
    torch.testing.assert_close(layer.running_var, x.var(dim=0, correction=0), **SAME)


@pytest.mark.parametrize("network", ["stacked", "plain"])
def test_frozen_statistics_are_no_part_of_the_vector_and_normalise_in_training_too(network):
    case = Case("vectors", "frozen")
    assert case.layout.names == tuple(name for name, _ in case.module.named_parameters())
    stack = case.layout.stack(case.start, 1)
    losses, gradient = getattr(case, network).gradients(stack, case.batch(slice(1, 2), 5))
    module = copy.deepcopy(case.module).eval()
    theirs = functional.cross_entropy(module(case.x[1, :5].cpu()), case.y[1, :5].cpu())
    torch.testing.assert_close(losses[0].cpu(), theirs.detach(), **SAME)
    for found, right in zip(gradient.leaves, torch.autograd.grad(theirs, list(module.parameters())), strict=True):
        torch.testing.assert_close(found[0].cpu(), right, **SAME)
    assert torch.equal(stack.flat()[0], case.start)


@pytest.mark.parametrize("statistics", ["averaged", "pooled"])
def test_a_variance_below_0_which_a_servers_step_may_make_counts_as_0(statistics):
    case = Case("vectors", statistics)
    named = case.layout.named(case.start)
    named["0.running_var"].fill_(-3.0)
    zero = case.layout.named(case.start.clone())
    zero["0.running_var"].copy_(named["0.running_mean"].square() if statistics == "pooled" else torch.zeros(6))
    for network in (case.stacked, case.plain):
        found = [network.outputs(case.layout.stack(rows, 1), case.x[:1, :3]) for rows in (case.start, _flat(zero))]
        torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-9)
        assert bool(found[0].isfinite().all())


def _flat(named: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([own.reshape(-1) for own in named.values()])

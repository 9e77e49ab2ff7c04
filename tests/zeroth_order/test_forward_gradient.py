"""Forward gradients: derivatives of every kind of layer, moments, and what a guess adds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from probing import D, cohort_of, estimated, moments
from torch import Tensor, nn

import fedsim
from clients.zeroth_order.forward_gradient import ForwardGradient
from fedsim.core.errors import InputError
from fedsim.engine.cohort import Cohort
from fedsim.engine.executor import choose_network
from fedsim.problems.models.convolutional import CNN, ResNet
from fedsim.problems.models.recurrent import LSTM
from fedsim.problems.supervised import Supervised
from fedsim.testing.problems import DEVICE, blobs, mlp

# PyTorch compiles rules of its own for forward mode with it, when they are first needed.


class Mixed(nn.Module):
    """Characters through an embedding, attention and three norms."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding, self.attention = nn.Embedding(3, 8), attention()
        self.layer_norm, self.group_norm, self.out = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = self.attention(h) if isinstance(self.attention, nn.TransformerEncoderLayer) else self.attention(h, h, h)[0]
        return self.out(self.group_norm(self.layer_norm(h).mean(dim=1)))


def attention() -> nn.Module:
    return Mixed(lambda: nn.MultiheadAttention(8, 2, batch_first=True))


def transformer() -> nn.Module:
    return Mixed(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))


class Dotted(nn.Module):
    """The product of attention by hand, through PyTorch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        return self.out(nn.functional.scaled_dot_product_attention(h, h, h).mean(dim=1))


def gru() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru, self.out = nn.Embedding(3, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(self.embedding(x))[0][:, -1])

    return Recurrent()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "mlp": (mlp, (6,), False),
    "tanh": (lambda: mlp(activation=nn.Tanh), (6,), False),
    "cnn": (lambda: CNN().build((1, 8, 8), 3, 0), (1, 8, 8), False),
    "resnet": (lambda: ResNet(width=4).build((3, 8, 8), 3, 0), (3, 8, 8), False),
    "lstm": (lambda: LSTM(hidden=6, layers=2).build((4,), 3, 3), (4,), True),
    "gru": (gru, (4,), True),
    "attention": (attention, (4,), True),
    "transformer": (transformer, (4,), True),
    "fused attention": (Dotted, (4,), True),
}


def problem_of(name: str) -> Supervised:
    build, shape, characters = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    data = blobs(sizes=(5, 3, 1), shape=shape)
    if characters:
        generator = torch.Generator().manual_seed(0)
        for part in ("x", "test"):
            given = data[part] if part == "x" else data[part][0]
            drawn = torch.randint(0, 3, given.shape, generator=generator).numpy()
            data[part] = drawn if part == "x" else (drawn, data[part][1])
    return fedsim.supervised(**data, model=model, dtype=torch.float64, device=DEVICE)


def cohorts(name: str) -> list[tuple[str, Cohort]]:
    """One for each executor that takes the model."""
    problem, found = problem_of(name), []
    for executor in ("loop", "stacked"):
        try:
            found.append((executor, cohort_of(problem, choose_network(problem.model, problem.data, executor)[1])))
        except InputError:
            assert executor == "stacked"
    return found


def point(cohort: Cohort) -> Tensor:
    """Parameters that are nowhere special, another for each client, [C, d]."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(len(cohort), cohort.dimension, generator=generator, dtype=cohort.dtype)
    return 0.3 * rows.to(cohort.clients.device)


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    """(f(x + h v) - f(x - h v)) / 2h with h = 1e-5 and |v| = 1 in double precision, to 1e-7."""
    for _, cohort in cohorts(name):
        x = point(cohort)
        v = torch.randn(len(cohort), 2, cohort.dimension, generator=torch.Generator().manual_seed(2)).to(x)
        v = v / v.norm(dim=2, keepdim=True)
        step = 1e-5 * v
        wanted = (cohort.query(x.unsqueeze(1) + step) - cohort.query(x.unsqueeze(1) - step)) / 2e-5
        values, slopes = cohort.differentiate(x, v)
        assert torch.allclose(slopes, wanted, rtol=0, atol=1e-7)
        assert float(slopes.abs().max()) > 1e-3
        assert torch.allclose(values, cohort.query(x.unsqueeze(1))[:, 0], rtol=1e-12)
        # twice two points, two directions, and one point
        assert cohort.queries.tolist() == [4 + 2 + 1] * len(cohort)


@pytest.mark.parametrize("name", MODELS)
def test_a_client_has_the_same_derivatives_in_any_company(name: str) -> None:
    found = []
    for _, cohort in cohorts(name):
        found.append(estimated(ForwardGradient(count=2), cohort, point(cohort)).gradient)
    assert all(torch.allclose(one, found[0], rtol=0, atol=1e-10) for one in found)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_derivatives_leave_the_network_as_it_was(name: str) -> None:
    """Values, gradients of training and derivatives again, after derivatives were the first that it was asked for."""
    for _, cohort in cohorts(name):
        x = point(cohort)
        first = estimated(ForwardGradient(count=2), cohort, x).gradient
        cohort.query(x.unsqueeze(1))
        assert torch.equal(estimated(ForwardGradient(count=2), cohort, x).gradient, first)


def linear_cohort(clients: int) -> tuple[Cohort, Tensor]:
    """Clients with one example of a linear model under the squared error, and their gradient at 0.

    f = (w.x - 1)^2 has the gradient -2 x at w = 0.
    """
    x = torch.linspace(-1.0, 2.0, D, dtype=torch.float64)
    data = x.expand(clients, -1).numpy()
    problem = fedsim.supervised(
        data,
        torch.ones(clients, dtype=torch.float64).numpy(),
        model=nn.Linear(D, 1, bias=False),
        clients=[[client] for client in range(clients)],
        dtype=torch.float64,
        device=DEVICE,
    )
    return cohort_of(problem, choose_network(problem.model, problem.data, "stacked")[1]), (-2.0 * x).to(DEVICE)


@pytest.mark.parametrize(("kind", "second"), [("gaussian", D + 2), ("rademacher", D)])
@pytest.mark.parametrize("count", [1, 3])
def test_moments(kind: str, second: float, count: int) -> None:
    """Unbiased, and E|ghat|^2 / |g|^2 = 1 + (c - 1) / q; 5,000 clients, five standard errors."""
    cohort, gradient = linear_cohort(5000)
    found = estimated(ForwardGradient(directions=kind, count=count), cohort, torch.zeros_like(gradient))
    mean, error, square, square_error = moments(found.gradient, gradient)
    assert float((mean - gradient).norm()) < 5 * error
    assert abs(square - (1 + (second - 1) / count)) < 5 * square_error
    assert square_error < 0.03 * second


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_a_guess_is_projected_on_exactly_and_the_rest_is_drawn(kind: str, angle: float) -> None:
    """Unbiased; ghat.u = g.u; with gaussian v in d - 1 dimensions E|ghat - g|^2 = (d - 1 + 1) / q sin^2 |g|^2."""
    count, clients = 2, 5000
    cohort, gradient = linear_cohort(clients)
    g = gradient / gradient.norm()
    across = torch.zeros_like(g)
    across[0] = 1.0
    across = across - (across @ g) * g
    turn = math.radians(angle)
    u = math.cos(turn) * g + math.sin(turn) * across / across.norm()
    estimator = ForwardGradient(directions=kind, count=count, guess="momentum", beta=0.75)
    found = estimated(estimator, cohort, torch.zeros_like(g), {"momentum": (3.0 * u).expand(clients, D)})
    assert torch.allclose(found.gradient @ u, (gradient @ u).expand(clients), rtol=0, atol=1e-11)
    mean, error, _, _ = moments(found.gradient, gradient)
    assert float((mean - gradient).norm()) < 5 * error + 1e-11
    off = (found.gradient - gradient).square().sum(dim=1) / gradient.square().sum()
    if angle == 0.0:
        assert float(off.max()) < 1e-20
    elif kind == "gaussian":
        wanted = D / count * math.sin(turn) ** 2
        assert abs(float(off.mean()) - wanted) < 5 * float(off.std()) / math.sqrt(clients)
    assert torch.allclose(found.memory["momentum"], 0.75 * 3.0 * u + 0.25 * found.gradient, rtol=0, atol=1e-11)


def test_the_first_guess_is_none() -> None:
    cohort, gradient = linear_cohort(3)
    at = torch.zeros_like(gradient)
    plain = estimated(ForwardGradient(count=2), cohort, at)
    guided = estimated(ForwardGradient(count=2, guess="momentum"), cohort, at)
    assert torch.allclose(plain.gradient, guided.gradient, rtol=0, atol=1e-12)
    assert torch.allclose(guided.memory["momentum"], 0.1 * plain.gradient, rtol=1e-12)


def test_guesses_become_better_than_draws_alone() -> None:
    """Ten estimates of one gradient: the tenth, with its momentum to lean on, is nearer to it than one of draws."""
    cohort, gradient = linear_cohort(200)
    at, memory, guided = torch.zeros_like(gradient), None, ForwardGradient(count=2, guess="momentum")
    for step in range(10):
        found = estimated(guided, cohort, at, memory, step)
        memory = found.memory
    plain = estimated(ForwardGradient(count=2), cohort, at, step=10).gradient
    off = [float((one - gradient).norm(dim=1).mean()) for one in (found.gradient, plain)]
    assert off[0] < 0.75 * off[1]


def test_black_boxes_are_refused_and_so_is_a_beta_of_nothing() -> None:
    assert not ForwardGradient.values_only
    with pytest.raises(InputError, match=r"beta = 0.5: is an option of guess = 'momentum' only"):
        ForwardGradient(beta=0.5)


class Unknown(torch.autograd.Function):
    """An operation of somebody's own, with a backward pass and no forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 2.0

    @staticmethod
    def setup_context(context: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(context: object, grad: Tensor) -> Tensor:
        return grad * 2.0


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = Unknown.apply(self.layer(x))
        return doubled


@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_a_layer_without_forward_mode_is_refused_in_one_line(executor: str) -> None:
    problem = fedsim.supervised(**blobs(), model=Custom(), dtype=torch.float64, device=DEVICE)
    cohort = cohort_of(problem, choose_network(problem.model, problem.data, executor)[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a layer of it has no forward mode, use queries instead") as refused:
        estimated(ForwardGradient(count=2), cohort, problem.initial())
    assert "\n" not in str(refused.value)

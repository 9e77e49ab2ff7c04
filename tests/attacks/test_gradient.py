"""Attacks that follow gradients, held to closed forms, to loops by hand, and to their ball."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import accuracy, dense, digits, victim

from fedsim.attacks.attack import Attack, ClientDraws, ExampleDraws, Victim
from fedsim.attacks.gradient import CW, FGSM, MIM, PGD, Sphere
from fedsim.attacks.losses import Divergence, Margin
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.chain import ChainNetwork
from fedsim.nets.dropout import Draw
from fedsim.nets.losses import CrossEntropy, Loss
from fedsim.nets.network import Network, PlainNetwork, StackedNetwork
from fedsim.parallel.cores import one_core_an_operation

DTYPES = [torch.float32, torch.float64]


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(*shape: int, seed: int = 0, count: int = 10) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


class NoDraws:
    def uniform(self, name: str, like: Tensor) -> Tensor:
        raise AssertionError(name)

    normal = uniform


@dataclass
class Counted:
    """A network that notes what it is asked."""

    network: Network
    asked: list[str] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def input_gradients(self, *given: Any) -> tuple[Tensor, Tensor]:
        self.asked.append("gradients")
        self.seen.append(given[1].clone())
        return self.network.input_gradients(*given)

    def outputs(self, *given: Any) -> Tensor:
        self.asked.append("outputs")
        return self.network.outputs(*given)


@dataclass
class Fixed:
    """A network whose loss has this gradient everywhere, [k, B, ...], and whose values are the sum of the inputs."""

    gradient: Tensor

    def input_gradients(self, rows: Any, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        return x.flatten(2).sum(dim=2), self.gradient.clone()


def fixed(gradient: Tensor, draws: Any = None) -> Victim:
    examples = torch.arange(gradient.shape[1])
    return Victim(Fixed(gradient), None, CrossEntropy(), draws or ExampleDraws(Streams(3), examples))  # type: ignore[arg-type]


def linear(dtype: torch.dtype) -> tuple[Victim, Tensor, Tensor, Tensor]:
    """A linear model of two classes, inputs [1, 40, 6], targets, and w_other - w_y [1, 40, 6].

    The gradient of the cross-entropy is p_other (w_other - w_y), and of the margin w_other - w_y: one direction at
    every point.
    """
    model = dense(6, 2).to(dtype)
    targets = classes(1, 40, count=2)
    w = model[1].weight.detach()
    return victim(model, examples=40), uniform(1, 40, 6, dtype=dtype), targets, w[1 - targets] - w[targets]


# Closed forms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("domain", [(0.0, 1.0), "none"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **ball: FGSM(**ball),
        lambda **ball: PGD(**ball, steps=1, step_size=0.1, random_start=False),
        lambda **ball: PGD(**ball, steps=20),
        lambda **ball: PGD(**ball, steps=3, step_size=0.2, loss="margin"),
        lambda **ball: PGD(**ball, steps=3, step_size=0.2, best=True, restarts=2),
        lambda **ball: MIM(**ball, steps=4, step_size=0.1),
        lambda **ball: CW(**ball),
    ],
)
def test_linf_on_a_linear_model_is_the_closed_form(make, domain, dtype):
    attacked, x, targets, direction = linear(dtype)
    wanted = x + 0.1 * direction.sign()
    wanted = wanted if domain == "none" else wanted.clamp(*domain)
    assert torch.equal(make(epsilon=0.1, domain=domain).perturb(attacked, x, targets), wanted)


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        lambda **ball: FGSM(**ball),
        lambda **ball: PGD(**ball, steps=10, random_start=False),
        lambda **ball: MIM(**ball, steps=5),
        lambda **ball: CW(**ball, random_start=False),
    ],
)
def test_l2_on_a_linear_model_is_the_closed_form(make, factor):
    attacked, x, targets, direction = linear(torch.float64)
    wanted = x + factor * 0.3 * direction / torch.linalg.vector_norm(direction, dim=2, keepdim=True)
    made = make(epsilon=0.3, norm="l2", domain="none").perturb(attacked, x, targets, factor=factor)
    # A gradient g is divided by |g| + 1e-12, which shortens a step of 0.3 by 0.3e-12 / |g|; |g| is above 0.1 here.
    torch.testing.assert_close(made, wanted, rtol=0, atol=3e-12)


def test_l2_goes_to_the_domain_first_and_then_to_the_ball():
    # From (0.5, 0.9) a step of 1 along (0.6, 0.8) is at (1.1, 1.7); in the domain that is (1, 1), away by (0.5, 0.1) of
    # length sqrt(0.26), of which the ball leaves 0.25.
    x, g = torch.tensor([[[0.5, 0.9]]], dtype=torch.float64), torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    attack = PGD(epsilon=0.25, norm="l2", steps=1, step_size=1.0, random_start=False)
    wanted = x + 0.25 * torch.tensor([0.5, 0.1], dtype=torch.float64) / 0.26**0.5
    torch.testing.assert_close(attack.perturb(fixed(g), x, classes(1, 1)), wanted, rtol=0, atol=1e-14)


def test_momentum_is_that_of_a_loop_by_hand():
    model, x, y = digits()
    x, y = x[:50].double(), y[:50]
    model = dense(64, 64, 10).double()
    made = MIM(epsilon=0.1, steps=6, decay=0.7).perturb(victim(model), x[None], y[None])[0]
    at, m = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        leaf = at.clone().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        m = 0.7 * m + g / g.abs().mean(dim=1, keepdim=True)
        at = at + 0.1 / 6 * m.sign()  # 6 steps of a sixth of the radius cannot leave the ball
        at = at.clamp(0.0, 1.0)
    torch.testing.assert_close(made, at, rtol=0, atol=1e-12)
    plain = PGD(epsilon=0.1, steps=6, step_size=0.1 / 6, random_start=False).perturb(victim(model), x[None], y[None])[0]
    assert not torch.allclose(made, plain)


def test_cw_is_pgd_on_the_margin():
    model, x, y = digits()
    attacked, x, y = victim(model, examples=50), x[:50][None], y[:50][None]
    made = CW(epsilon=0.1).perturb(attacked, x, y)
    assert torch.equal(made, PGD(epsilon=0.1, steps=30, loss="margin").perturb(attacked, x, y))
    assert torch.equal(made, CW(epsilon=0.1).perturb(attacked, x, y, loss=CrossEntropy()))
    assert not torch.equal(made, PGD(epsilon=0.1, steps=30).perturb(attacked, x, y))
    # By hand: z = (3, 1, 2). For class 0 the margin is 2 - 3 = -1, for class 1 it is 3 - 1 = 2.
    assert Margin().examples(torch.tensor([[3.0, 1.0, 2.0]] * 2), torch.tensor([0, 1])).tolist() == [-1.0, 2.0]


def test_a_loss_that_is_given_is_maximised_unless_the_attack_has_its_own():
    model, x, y = digits()
    attacked, x, y = victim(model, examples=50), x[:50][None], y[:50][None]
    divergence = Divergence(torch.log_softmax(attacked.outputs(x), dim=-1))
    attack = PGD(epsilon=0.1)
    # Targets are no part of a divergence.
    made = attack.perturb(attacked, x, y, loss=divergence)
    assert torch.equal(made, attack.perturb(attacked, x, torch.zeros_like(y), loss=divergence))
    assert not torch.equal(made, attack.perturb(attacked, x, y))
    margin = PGD(epsilon=0.1, loss="margin")
    assert torch.equal(margin.perturb(attacked, x, y, loss=divergence), margin.perturb(attacked, x, y))


# The ball and the domain

SCALES = {"unit": (0.0, 1.0), "symmetric": (-1.0, 1.0), "bytes": (0.0, 255.0), "wide": (-300.0, 1000.0), "none": "none"}


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    scale=st.sampled_from(sorted(SCALES)),
    dtype=st.sampled_from(DTYPES),
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(1e-4, 8.0),
    steps=st.integers(1, 5),
    reach=st.floats(0.01, 3.0),
    random_start=st.booleans(),
    magnitude=st.sampled_from([1e-30, 1e-8, 1.0, 1e25]),
    seed=st.integers(0, 10**6),
)
def test_neither_ball_nor_domain_is_left(scale, dtype, norm, epsilon, steps, reach, random_start, magnitude, seed):
    domain = SCALES[scale]
    lower, upper = (-50.0, 50.0) if domain == "none" else domain
    x = lower + (upper - lower) * uniform(2, 8, 5, 6, seed=seed, dtype=dtype)
    x[0, :3], x[1, :3] = lower, upper
    x = x if domain == "none" else x.clamp(*domain)
    gradient = (uniform(2, 8, 5, 6, seed=seed + 1, dtype=dtype) - 0.5) * magnitude
    attack = PGD(
        epsilon=epsilon, norm=norm, steps=steps, step_size=reach * epsilon, random_start=random_start, domain=domain
    )
    attacked = fixed(gradient, ClientDraws(Draw(Streams(seed), torch.arange(2), 0, 0)))
    way = [*attack.iterates(attacked, x, classes(2, 8)), attack.perturb(attacked, x, classes(2, 8))]
    for reached in way:
        assert reached.dtype == dtype
        away = (reached.double() - x.double()).flatten(2)
        length = away.abs().amax() if norm == "linf" else away.square().sum(dim=2).sqrt().amax()
        assert float(length) <= epsilon + 1e-6
        assert domain == "none" or (lower <= float(reached.min()) and float(reached.max()) <= upper)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_rounding_in_single_precision_does_not_leave_the_ball(norm, scale):
    x, gradient = scale * uniform(1, 100, 30), uniform(1, 100, 30, seed=1) - 0.5
    reached = PGD(epsilon=7.9, norm=norm, steps=3, domain="none").perturb(fixed(gradient), x, classes(1, 100))
    lengths = torch.linalg.vector_norm(reached.double() - x.double(), torch.inf if norm == "linf" else 2, dim=2)
    assert float(lengths.min()) >= 7.9 - 1e-4
    assert float(lengths.max()) <= 7.9 + 1e-6


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.8)])
@pytest.mark.parametrize("steps", [10, 20])
def test_the_best_iterate_loses_more_than_the_input(norm, epsilon, steps):
    model, x, y = digits()
    attacked, x, y = victim(model, examples=len(x)), x[None], y[None]
    made = PGD(epsilon=epsilon, norm=norm, steps=steps, best=True).perturb(attacked, x, y)
    before, after = (attacked.values(inputs, y, CrossEntropy()) for inputs in (x, made))
    assert float((after >= before).double().mean()) >= 0.99


def test_stronger_attacks_leave_less_accuracy():
    model, x, y = digits()
    attacked = victim(model, examples=len(x))

    def under(attack: Attack) -> float:
        return accuracy(model, attack.perturb(attacked, x[None], y[None])[0], y)

    clean, fgsm = accuracy(model, x, y), under(FGSM(epsilon=0.1))
    pgd1, pgd20 = under(PGD(epsilon=0.1, steps=1)), under(PGD(epsilon=0.1, steps=20))
    assert clean >= 0.97
    assert pgd20 <= fgsm + 0.01
    assert fgsm <= clean + 0.01
    assert pgd20 <= pgd1
    assert pgd20 <= clean - 0.3


# Nothing moves, or not all


@pytest.mark.parametrize(
    ("attack", "factor"),
    [
        (PGD(epsilon=0.0), 1.0),
        (PGD(epsilon=0.1, steps=0), 1.0),
        (PGD(epsilon=0.1, steps=0, step_size=0.0, restarts=3), 1.0),
        (PGD(epsilon=0.1), 0.0),
        (FGSM(epsilon=0.0, random_start=True), 1.0),
        (MIM(epsilon=0.1), 0.0),
    ],
)
def test_without_radius_or_steps_inputs_are_returned_and_nothing_is_drawn(attack, factor):
    x = uniform(1, 3, 6)
    attacked = Victim(None, None, CrossEntropy(), NoDraws())  # type: ignore[arg-type]
    assert attack.perturb(attacked, x, classes(1, 3), factor=factor) is x
    (alone,) = attack.iterates(attacked, x, classes(1, 3), factor=factor)
    assert alone is x


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [PGD, MIM, CW])
def test_a_gradient_of_zero_moves_nothing(attack, norm):
    x = uniform(2, 3, 4)
    made = attack(epsilon=0.1, norm=norm, random_start=False).perturb(fixed(torch.zeros(2, 3, 4)), x, classes(2, 3))
    assert torch.equal(made, x)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [PGD, MIM, CW])
def test_a_gradient_that_is_not_finite_moves_its_example_not_and_spoils_no_other(attack, norm, bad):
    x, gradient = uniform(2, 3, 4), uniform(2, 3, 4, seed=1) - 0.5
    broken = gradient.clone()
    broken[1, 2] = bad
    broken[0, 0, 1] = bad
    made = attack(epsilon=0.1, norm=norm)
    sound, seen = (made.perturb(fixed(own), x, classes(2, 3)) for own in (gradient, broken))
    (start, *_) = made.iterates(fixed(gradient), x, classes(2, 3))
    assert torch.equal(seen[1, 2], start[1, 2])
    assert bool(seen.isfinite().all())
    # In l2 the other numbers of that example draw it along when they are shrunk.
    assert norm == "l2" or seen[0, 0, 1] == start[0, 0, 1]
    assert torch.equal(seen[0, 1:], sound[0, 1:])
    assert torch.equal(seen[1, :2], sound[1, :2])
    assert not torch.equal(seen[1, :2], start[1, :2])


def test_an_example_without_a_value_is_left_as_it_is_where_values_are_compared():
    x, gradient = uniform(1, 2, 4), torch.ones(1, 2, 4)

    @dataclass
    class Lost(Fixed):
        def input_gradients(self, *given: Any) -> tuple[Tensor, Tensor]:
            values, gradient = super().input_gradients(*given)
            values[0, 1] = torch.nan
            return values, gradient

        def outputs(self, rows: Any, x: Tensor) -> Tensor:
            values = x.flatten(2).sum(dim=2, keepdim=True)
            values[0, 1] = torch.nan
            return torch.cat((values, torch.zeros_like(values)), dim=2)

    attacked = replace(fixed(gradient), network=Lost(gradient))  # type: ignore[arg-type]
    made = PGD(epsilon=0.1, restarts=2).perturb(attacked, x, torch.ones(1, 2, dtype=torch.int64))
    assert torch.equal(made[0, 1], x[0, 1])
    assert torch.equal(made[0, 0], (x[0, 0] + 0.1).clamp(max=1.0))


# Restarts and iterates


@pytest.mark.parametrize("best", [False, True])
def test_of_restarts_the_worst_of_each_example_counts(best):
    model, x, y = digits()
    attacked, x, y = victim(model, examples=200), x[:200][None], y[:200][None]
    few = {"epsilon": 0.15, "steps": 3, "step_size": 0.02, "best": best}
    one, three = (PGD(**few, restarts=restarts).perturb(attacked, x, y) for restarts in (1, 3))
    before, after = (attacked.values(made, y, CrossEntropy()) for made in (one, three))
    assert bool((after >= before).all())
    assert float((after > before).double().mean()) > 0.4  # of three starts the first is the worst of a third


def test_the_best_iterate_is_the_worst_of_all():
    model, x, y = digits()
    attacked, x, y = victim(model, examples=200), x[:200][None], y[:200][None]
    attack = PGD(epsilon=0.1, steps=4, step_size=0.15)  # the step is so long that the loss goes up and down
    way = torch.stack([attacked.values(made, y, CrossEntropy()) for made in attack.iterates(attacked, x, y)])
    assert len(way) == 5
    made = replace(attack, best=True).perturb(attacked, x, y)
    assert torch.equal(attacked.values(made, y, CrossEntropy()), way.amax(dim=0))
    assert not torch.equal(way.amax(dim=0), way[-1])


@pytest.mark.parametrize("attack", [PGD(epsilon=0.1, steps=4), MIM(epsilon=0.1, steps=4), FGSM(epsilon=0.1)])
def test_iterates_go_from_the_start_to_the_attacked_inputs(attack):
    model, x, y = digits()
    attacked, x, y = victim(model, examples=20), x[:20][None], y[:20][None]
    way = list(attack.iterates(attacked, x, y))
    assert len(way) == attack.steps + 1
    assert torch.equal(way[0], x) is not attack.random_start
    assert torch.equal(way[-1], attack.perturb(attacked, x, y))
    assert all(not torch.equal(one, other) for one, other in pairwise(way))


@pytest.mark.parametrize(
    ("attack", "gradients", "outputs"),
    [
        (FGSM(epsilon=0.1), 1, 0),
        (PGD(epsilon=0.1, steps=7), 7, 0),
        (PGD(epsilon=0.1, steps=7, best=True), 7, 1),
        (PGD(epsilon=0.1, steps=7, restarts=3), 21, 3),
        (PGD(epsilon=0.1, steps=7, restarts=3, best=True), 21, 3),
        (CW(epsilon=0.1), 30, 0),
        (PGD(epsilon=0.0), 0, 0),
        (PGD(epsilon=0.1, steps=0, best=True), 0, 0),
    ],
)
def test_passes_are_as_many_as_declared(attack, gradients, outputs):
    plain = victim(dense(6, 3), examples=4)
    counted = Counted(plain.network)
    attack.perturb(replace(plain, network=counted), uniform(1, 4, 6), classes(1, 4, count=3))  # type: ignore[arg-type]
    assert (counted.asked.count("gradients"), counted.asked.count("outputs")) == (gradients, outputs)
    assert attack.gradients == gradients + outputs


def test_a_factor_is_of_radius_and_steps_alike():
    model, x, y = digits()
    attacked, x, y = victim(model, examples=20), x[:20][None], y[:20][None]
    half = PGD(epsilon=0.25, steps=3, step_size=0.125).perturb(attacked, x, y, factor=0.5)
    assert torch.equal(half, PGD(epsilon=0.125, steps=3, step_size=0.0625).perturb(attacked, x, y))


# Models are stacked, evaluated and left alone


def convolutional(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 10)
        )


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.1),
        PGD(epsilon=0.1, steps=3),
        PGD(epsilon=0.5, norm="l2", steps=3, restarts=2, best=True),
        MIM(epsilon=0.1, steps=3),
        CW(epsilon=0.1, steps=3),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [ChainNetwork, StackedNetwork, PlainNetwork])
def test_models_of_a_stack_are_attacked_like_single_ones_bit_for_bit(kind, dtype, attack):
    make = convolutional if kind is StackedNetwork else lambda seed: dense(64, 16, 10, seed=seed)
    models = [make(seed).to(dtype) for seed in range(5)]
    x, y, clients = uniform(5, 7, 64, dtype=dtype), classes(5, 7), torch.tensor([4, 8, 15, 16, 23])

    def attacked(rows: slice, kind: type[Network]) -> Tensor:
        draws = ClientDraws(Draw(Streams(3), clients[rows], 2, 5))
        return attack.perturb(victim(*models[rows], kind=kind, draws=draws), x[rows], y[rows])

    with one_core_an_operation():
        together = attacked(slice(0, 5), kind)
        for rows in (slice(0, 1), slice(3, 4), slice(1, 4)):
            assert torch.equal(together[rows], attacked(rows, kind))
    plain = torch.cat([attacked(slice(row, row + 1), PlainNetwork) for row in range(5)])
    # A sign may differ where a gradient is within rounding of zero; a coarse bound tells that from another attack.
    assert float(((together - plain).abs() > 1e-5).double().mean()) < 0.01


def test_draws_are_named_by_client_step_and_start_and_not_by_the_width():
    x, y = uniform(3, 6, 5, dtype=torch.float64), classes(3, 6)

    def start(norm: str, rows: slice, width: int, when: int = 2, step: int = 5) -> Tensor:
        draws = ClientDraws(Draw(Streams(3), torch.tensor([4, 8, 15])[rows], when, step))
        attack = PGD(epsilon=0.1, norm=norm, steps=1)
        (first, _) = attack.iterates(fixed(torch.zeros_like(x[rows, :width]), draws), x[rows, :width], y[rows, :width])
        return first

    for norm in ("linf", "l2"):
        whole = start(norm, slice(0, 3), 6)
        assert torch.equal(start(norm, slice(1, 2), 6), whole[1:2])
        assert torch.equal(start(norm, slice(0, 3), 4), whole[:, :4])
        assert not torch.equal(start(norm, slice(0, 3), 6, when=3), whole)
        assert not torch.equal(start(norm, slice(0, 3), 6, step=6), whole)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_examples_in_chunks_are_attacked_like_all_at_once(norm):
    model, x, y = digits()
    attack = PGD(epsilon=0.1, norm=norm, steps=1, restarts=2)

    def starts(rows: slice) -> Tensor:
        draws = ExampleDraws(Streams(3), torch.arange(100)[rows])
        return next(attack.iterates(victim(model, draws=draws), x[:100][rows][None], y[:100][rows][None]))

    assert torch.equal(torch.cat([starts(slice(0, 30)), starts(slice(30, 100))], dim=1), starts(slice(0, 100)))


def test_starts_are_uniform_in_the_ball():
    x, draws = torch.zeros(1, 4000, 3, dtype=torch.float64), ExampleDraws(Streams(3), torch.arange(4000))
    far = {
        norm: next(PGD(epsilon=2.0, norm=norm, domain="none").iterates(fixed(x, draws), x, classes(1, 4000)))
        for norm in ("linf", "l2")
    }
    # Of a ball of 3 dimensions the share (r/2)^3 is within radius r, so (|x|/2)^3 is uniform on [0, 1], of mean 1/2 and
    # variance 1/12; the mean of 4,000 is within 4 sqrt(1/12 / 4,000) = 0.018 of 1/2.
    volume = (torch.linalg.vector_norm(far["l2"], dim=2) / 2.0) ** 3
    assert abs(float(volume.mean()) - 0.5) < 0.018
    assert abs(float(volume.var()) - 1 / 12) < 0.01
    # Each of its coordinates is even around 0, of variance 4/5 (a radius of 2, and 3 dimensions: 4 * (3/5) / 3).
    assert float((far["l2"].mean(dim=1)).abs().max()) < 4 * (0.8 / 4000) ** 0.5
    assert float((far["l2"].var(dim=1) - 0.8).abs().max()) < 0.06
    # In the cube coordinates are uniform on [-2, 2], of variance 16/12.
    assert float((far["linf"].mean(dim=1)).abs().max()) < 4 * (16 / 12 / 4000) ** 0.5
    assert float((far["linf"].var(dim=1) - 16 / 12).abs().max()) < 0.08


def test_dropout_is_inactive_and_nothing_else_is_touched():
    model, x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        dropping = nn.Sequential(model[0], model[1], nn.ReLU(), nn.Dropout(0.5), model[3])
    dropping.register_buffer("noticed", torch.ones(3))
    x, y = x[:20][None], y[:20][None]
    for kind in (PlainNetwork, StackedNetwork):
        attacked, plain = (victim(own, examples=20, kind=kind) for own in (dropping, model))
        rows, given = [leaf.clone() for leaf in attacked.rows.leaves], x.clone()
        generators = torch.get_rng_state()
        made = PGD(epsilon=0.1, restarts=2).perturb(attacked, x, y)
        assert torch.equal(made, PGD(epsilon=0.1, restarts=2).perturb(plain, x, y))
        assert all(torch.equal(before, after) for before, after in zip(rows, attacked.rows.leaves, strict=True))
        assert torch.equal(x, given)
        assert torch.equal(generators, torch.get_rng_state())
    assert torch.equal(dropping.noticed, torch.ones(3))
    assert all(own.grad is None for own in dropping.parameters())


@pytest.mark.parametrize("kind", [ChainNetwork, StackedNetwork, PlainNetwork])
def test_no_gradient_flows_through_an_attack(kind):
    model, x, y = digits()
    attacked, x, y = victim(model, examples=20, kind=kind), x[:20][None], y[:20][None]
    attack = PGD(epsilon=0.1, restarts=2, best=True)
    made = attack.perturb(attacked, x, y)
    for leaf in attacked.rows.leaves:
        leaf.requires_grad_()
    flowing = attack.perturb(attacked, x.clone().requires_grad_(), y)
    assert not flowing.requires_grad
    assert torch.equal(flowing, made)
    assert all(leaf.grad is None for leaf in attacked.rows.leaves)
    with torch.no_grad():
        assert torch.equal(attack.perturb(attacked, x, y), made)


# Options


@pytest.mark.parametrize(
    ("attack", "label"),
    [
        (FGSM(epsilon=0.1), "fgsm"),
        (FGSM(epsilon=0.1, norm="l2"), "fgsm_l2"),
        (PGD(epsilon=0.1, steps=20), "pgd20"),
        (PGD(epsilon=0.1, steps=20, norm="l2"), "pgd20_l2"),
        (PGD(epsilon=0.1, steps=20, loss="margin"), "pgd20_margin"),
        (PGD(epsilon=0.1, steps=20, restarts=5), "pgd20x5"),
        (MIM(epsilon=0.1), "mim10"),
        (CW(epsilon=0.1), "cw30"),
    ],
)
def test_labels(attack, label):
    assert attack.label == label


def test_tables_make_attacks():
    table = tomllib.loads('kind = "pgd"\nepsilon = 8\nnorm = "l2"\nsteps = 20\ndomain = [-1, 1]')
    assert plugins.make("attacks", table, "attack") == PGD(epsilon=8.0, norm="l2", steps=20, domain=(-1.0, 1.0))
    assert plugins.make("attacks", {"kind": "cw", "epsilon": 0.1, "domain": "none"}, "attack").bounds is None


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"epsilon": -0.1}, "epsilon = -0.1: input should be greater than or equal to 0"),
        ({"step_size": 0}, "step_size = 0.0: steps of no size move nothing; give it a size above 0"),
        ({"domain": [1.0, 1.0]}, "domain = [1.0, 1.0]: the lower bound must be below the upper one"),
        ({"domain": [1, 0]}, "domain = [1.0, 0.0]: the lower bound must be below the upper one"),
        ({"domain": "some"}, "domain = some: input should be a valid tuple"),
        ({"restarts": 0}, "restarts = 0: input should be greater than or equal to 1"),
        ({"norm": "l1"}, "norm = l1: input should be 'linf' or 'l2'"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_made(table, line):
    with pytest.raises(InputError) as refused:
        plugins.make("attacks", {"kind": "pgd", "epsilon": 0.1, **table}, "attack")
    assert str(refused.value) == f"attack.{line}"


BYTES = torch.tensor([[0.0, 255.0]])
REMEDY = 'state their bounds, domain = [lower, upper], or "none"'


@pytest.mark.parametrize(
    ("attack", "x", "line"),
    [
        (PGD(epsilon=0.1), BYTES, f"domain = [0.0, 1.0]: inputs range from 0 to 255; {REMEDY}"),
        (PGD(epsilon=0.1), BYTES - 255.0, f"domain = [0.0, 1.0]: inputs range from -255 to 0; {REMEDY}"),
        (PGD(epsilon=0.1), BYTES * torch.nan, f"domain = [0.0, 1.0]: inputs range from nan to nan; {REMEDY}"),
        (FGSM(epsilon=1.5), BYTES / 255.0, "epsilon = 1.5: take at most the domain's width, 1"),
        # The diagonal of a square of side 1 is sqrt(2).
        (PGD(epsilon=1.5, norm="l2"), BYTES / 255.0, "epsilon = 1.5: take at most the domain's diagonal, 1.41421"),
    ],
)
def test_inputs_that_do_not_go_with_an_attack_are_refused(attack, x, line):
    with pytest.raises(InputError) as refused:
        attack.check(x)
    assert str(refused.value) == line


def test_inputs_that_go_with_an_attack_are_accepted():
    PGD(epsilon=8.0, domain=(0.0, 255.0)).check(BYTES)
    PGD(epsilon=8.0, domain="none").check(BYTES)
    PGD(epsilon=1.4, norm="l2").check(BYTES / 255.0)
    FGSM(epsilon=1.0).check(BYTES / 255.0)


@pytest.mark.parametrize("shape", [(4, 6), (16, 64), (5, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_in_the_l2_ball_does_not_depend_on_who_else_starts(shape, dtype):
    for number in range(10):
        clients, x = torch.arange(7), torch.zeros(7, *shape, dtype=dtype)

        def starts(rows: slice, number: int = number, clients: Tensor = clients, x: Tensor = x) -> Tensor:
            return Sphere(x[rows], 0.5, None).drawn(ClientDraws(Draw(Streams(number), clients[rows], 0, 0)), 0)

        together = starts(slice(None))
        assert all(torch.equal(together[row : row + 1], starts(slice(row, row + 1))) for row in range(7))


def test_restarts_from_one_point_are_refused():
    with pytest.raises(InputError, match=r"restarts = 3: they all begin at the same point"):
        MIM(epsilon=0.1, restarts=3)


def test_a_ball_that_no_number_reaches_is_refused():
    with pytest.raises(InputError, match="inputs of this precision"):
        PGD(epsilon=1e300, domain="none").check(torch.zeros(2, 3))

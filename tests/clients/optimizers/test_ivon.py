"""IVON against its official package with given draws, and what holds of the precision that it learns."""

from __future__ import annotations

import pytest
import torch
from oracles import Q, assert_finishes_early, assert_held, exact, path

import fedsim
from clients.optimizers.ivon import Ivon
from fedsim.client import Beginning, Stack, Step
from fedsim.nets.descent import Rule
from fedsim.testing.problems import small_experiment, small_problem

DRAWS = ((0.5, -1.0), (1.5, 0.25), (-0.75, 0.1))
FITTING = {"h0": 0.5, "beta2": 0.9}
TRAINING = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1}


def test_steps_are_those_of_the_official_package_together_and_alone():
    wanted = [0.911449, 0.916268, 0.920370, 0.785187, 0.897439, 0.855969, 0.909309, 0.634587]
    wanted += [0.876947, 0.799510, 0.895009, 0.495457]
    assert_held(Ivon(**FITTING), wanted, draws=DRAWS, examples=50)


def curvatures(optimizer, draws, examples=50):
    """h of both clients of Q after steps of these draws."""
    rule, y = Rule(optimizer, None, 0.0, 0.0), Stack([torch.ones(2, 2, dtype=torch.float64)])
    memory = optimizer.begin(y, Beginning(torch.full((2,), examples)))
    for number, drawn in enumerate(draws):
        at = optimizer.point(memory, y, number, Given(exact(drawn)))
        gradient = Q.gradient(at, slice(None), number)
        rule.take(memory, y, Step(number, 0.1, gradient))
    return memory["h"].leaves[0]


class Given:
    """Draws that are given, [d]."""

    def __init__(self, drawn):
        self.drawn = drawn

    def normal(self, purpose, like):
        return Stack([self.drawn.expand(len(like), -1)])


def test_h_is_that_of_the_official_package():
    found = curvatures(Ivon(**FITTING), DRAWS)
    wanted = exact([[7.034978, 3.316647], [14.032266, 0.560803]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=6e-7)


def test_what_is_found_is_the_diagonal_of_the_hessian_on_average():
    """Of the second client, whose Hessian is diagonal, (10, 1): f = e n-weighted gradients, over many draws."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    optimizer = Ivon(beta1=0.0, beta2=0.999, prior=0.0)
    rows, examples = torch.ones(4000, 2, dtype=torch.float64), torch.full((4000,), 50)
    memory = optimizer.begin(Stack([rows]), Beginning(examples))
    at = optimizer.point(memory, Stack([rows]), 0, Rows(drawn)).leaves[0]
    gradient = (at - exact([0.6, -0.8])) * exact([10.0, 1.0])
    optimizer.step(memory, Stack([rows.clone()]), Step(0, 0.1, Stack([gradient])))
    found = (memory["h"].leaves[0].mean(0) - 0.999) / 1e-3
    torch.testing.assert_close(found, exact([10.0, 1.0]), rtol=0.0, atol=1.5)


class Rows(Given):
    """Each row's own draws, [k, d]."""

    def normal(self, purpose, like):
        return Stack([self.drawn])


@pytest.mark.parametrize("found", [-1e6, -20.0, 0.0, 1e3])
def test_the_precision_stays_above_zero_and_at_most_halves(found):
    """u = h + prior becomes u + a x + a^2 x^2 / (2 u), x = f - h, a = 1 - beta2, whose least is u / 2."""
    optimizer = Ivon(h0=0.2, prior=0.1, beta2=0.9)
    y = Stack([torch.zeros(1, 1, dtype=torch.float64)])
    memory = optimizer.begin(y, Beginning(torch.ones(1)))
    memory["n"].leaves[0].fill_(1.0)
    before = optimizer.told(memory).leaves[0].clone()
    optimizer.step(memory, y, Step(0, 0.1, Stack([exact([[found / 0.3]])])))  # f = n g (h + prior) N
    after = optimizer.told(memory).leaves[0]
    u, x = 0.3, found - 0.2
    torch.testing.assert_close(after, exact([[u + 0.1 * x + 0.01 * x * x / (2 * u)]]))
    assert bool((after >= before / 2).all())


def test_samples_are_means_over_points_on_the_same_batch():
    """With the same draw in each the mean is that of one; the options move the path."""
    one = path(Ivon(**FITTING), [3, 3], draws=DRAWS, examples=50)
    three = path(Ivon(**FITTING, samples=3), [3, 3], draws=DRAWS, examples=50)
    torch.testing.assert_close(three, one, rtol=0, atol=1e-12)
    assert Ivon(samples=3).effort == 3.0
    bound = path(Ivon(**FITTING, clip_radius=0.25), [3, 3], draws=DRAWS, examples=50)
    steps = (bound - torch.cat((torch.ones(1, 2, 2, dtype=torch.float64), bound[:-1]))).abs()
    assert float(steps.max()) == pytest.approx(0.1 * 0.5001 * 0.25)
    y = Stack([torch.zeros(1, 2, dtype=torch.float64)])
    optimizer = Ivon(prior=0.0, clip_radius=0.25)
    optimizer.step(optimizer.begin(y, Beginning(torch.ones(1))), y, Step(0, 0.1, Stack([exact([[-100.0, 100.0]])])))
    assert y.leaves[0].tolist() == [[0.025, -0.025]]
    assert_finishes_early(Ivon(**FITTING), draws=[*DRAWS, *DRAWS], examples=50)


def test_clients_go_on_with_their_own_precision():
    optimizer = Ivon(precision="client", h0=0.5, prior=0.1)
    y = Stack([torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)])
    kept = exact([[3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # of four numbers the last is a running statistic
    memory = optimizer.begin(y, Beginning(torch.ones(2), {"precision": kept}))
    assert [leaf.tolist() for leaf in memory["h"].leaves] == [[[2.9, 1.9], [0.5, 0.5]], [0.9, 0.5]]
    renewed = optimizer.keep(memory, y)["precision"]
    torch.testing.assert_close(renewed, exact([[3.0, 2.0, 1.0, 0.0], [0.6, 0.6, 0.6, 0.0]]))
    problem = small_problem()

    def after(**options):
        client = {**TRAINING, "optimizer": {"kind": "ivon", **options}}
        return fedsim.run(small_experiment(rounds=2, client=client), problem=problem, save=False).params

    assert not torch.allclose(after(precision="client"), after())

"""Rules that ask for products with Hessians, held to the specification's numbers, to closed forms, and to networks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedsim
from clients.optimizers.adahessian import AdaHessian
from clients.optimizers.ai_sarah import AiSarah
from clients.optimizers.oasis import Oasis
from fedsim.client import Beginning, Optimizer, Stack, Step, StepDraws, options
from fedsim.client.divided import PartialObjective
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.cohort import Cohort
from fedsim.engine.executor import choose_network
from fedsim.engine.job import Job
from fedsim.exchange.messages import Cost, Order
from fedsim.nets.descent import Rule
from fedsim.nets.dropout import Draw, NamedDropout, drawing
from fedsim.testing.problems import DEVICE, blobs, small_experiment, small_problem
from tests.clients.optimizers.oracles import (
    Known,
    Q,
    Quadratic,
    assert_finishes_early,
    assert_held,
    assert_stays_without_gradient,
    exact,
    path,
)

SIGNS = [[1.0, -1.0]] * 6
ALTERNATING = [
    {"curvature/0": [1.0, 1.0], "curvature/1": [1.0, -1.0]},  # whose mean is the diagonal
    *({"curvature/0": [1.0, way]} for way in (1.0, -1.0, 1.0, -1.0, 1.0)),
]
DIAGONAL = Quadratic(torch.diag_embed(exact([[4, 0.5], [10, 1]])), Q.least, Q.start, vector=True)


def test_adahessian_is_its_authors():
    assert_held(
        AdaHessian(),
        [
            0.850007,
            0.600040,
            0.96,
            0.820018,
            0.722381,
            0.250070,
            0.922106,
            0.649508,
            0.615702,
            -0.052763,
            0.886309,
            0.488434,
        ],
        draws=SIGNS,
    )


def test_oasis_is_the_specifications():
    assert_held(
        Oasis(floor=1e-5),
        [0.9, 0.8, 0.96, 0.82, 0.596901, 0.164548, 0.78, 0.01, 0.480723, -0.186819, 0.69, -0.395],
        draws=ALTERNATING,
    )


def test_sizes_of_oasis_grow_no_faster_than_the_last_ones_allow():
    """Where gradients do not change the last sizes bound the next: 1, 1, then sqrt(1 + 1), sqrt(1 + sqrt 2) times."""

    class Slope:
        def again(self, at: Stack) -> tuple[Tensor, Stack]:
            return torch.zeros(1), Stack([exact([[1]])])

        def product(self, at: Stack, v: Stack) -> Stack:
            return v.zeros()

    rule, y, found = Oasis(floor=1.0), Stack([exact([[1]])]), []
    memory = rule.begin(y, Beginning(torch.ones(1)))
    for number in range(4):
        rule.step(memory, y, Step(number, 0.1, Stack([exact([[1]])]), noise=Known([1.0]), objective=Slope()))
        found.append(float(y.leaves[0]))
    assert found == pytest.approx([0.9, 0.8, 0.8 - 0.1 * 2**0.5, 0.8 - 0.1 * 2**0.5 * (1 + (1 + 2**0.5) ** 0.5)])


def test_on_a_diagonal_curvature_a_first_step_of_adahessian_is_newtons():
    """Whatever the signs; lr (y - s) a / (a + epsilon) of it, so all of it for lr = 1 and no epsilon to speak of."""
    for signs in SIGNS[0], [-1.0, -1.0]:
        assert_held(AdaHessian(epsilon=1e-12), [0.6, -0.8, 0.6, -0.8], problem=DIAGONAL, lr=1.0, draws=[signs])


def test_a_decay_of_adahessian_is_no_part_of_its_curvature():
    """(1 - lr decay) y, then the step of the gradient before, whose h = |H z| is as without: 0.05 less in each."""
    assert_held(AdaHessian(), [0.800007, 0.550040, 0.91, 0.770018], decay=0.5, draws=SIGNS[:1])


def test_adahessian_measures_where_it_has_the_gradient():
    """Of y^4 / 4 at 2, the curvature is 12: 2 (1 - 0.1 x 0.5) - 0.1 x 8 / 12."""

    class Quartic:
        def product(self, at: Stack, v: Stack) -> Stack:
            return Stack([3.0 * at.leaves[0].square() * v.leaves[0]])

    y = Stack([exact([[2]])])
    stepper = Rule(AdaHessian(epsilon=1e-12), None, 0.0, 0.5).stepper(y, Beginning(torch.ones(1)))
    stepper.take(y, Step(0, 0.1, Stack([exact([[8]])]), noise=Known([1.0]), objective=Quartic()))
    assert torch.allclose(y.leaves[0], exact([[1.9 - 0.8 / 12]]))


def test_kernels_have_one_curvature():
    """The mean over a kernel's places of h = 1, 2, 3, 6 and 2, 2, 2, 2."""

    class Given:
        def product(self, at: Stack, v: Stack) -> Stack:
            return Stack([exact([[[[[1, -2], [3, 6]]], [[[2, 2], [2, -2]]]]])])

    class Ones:
        def signs(self, purpose: str, like: Stack) -> Stack:
            return like

    rows, rule = Stack([torch.zeros(1, 2, 1, 2, 2).double()]), AdaHessian(epsilon=1e-12)
    memory = rule.begin(rows, Beginning(torch.ones(1)))
    rule.step(memory, rows, Step(0, 1.0, Stack([torch.ones(1, 2, 1, 2, 2).double()]), noise=Ones(), objective=Given()))
    assert torch.allclose(rows.leaves[0].flatten(1), exact([[-1 / 3] * 4 + [-1 / 2] * 4]))


@dataclass(frozen=True)
class Rows:
    """Halves of squares of a' w - b, of the examples of a step; each client has the same."""

    number: int
    a = exact([[1, 0], [0, 2], [1, 1], [2, -1]])
    b = exact([1, 1, 0, 1])

    def gradient(self, at: Tensor, some: slice = slice(None)) -> Tensor:
        a, b = self.a[some], self.b[some]
        return (at @ a.T - b) @ a / len(a)

    @property
    def some(self) -> slice:
        return slice(2 * (self.number % 2), 2 * (self.number % 2) + 2)

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        return torch.zeros(len(at)), Stack([self.gradient(at.leaves[0], self.some)])

    def product(self, at: Stack, v: Stack) -> Stack:
        a = self.a[self.some]
        return Stack([v.leaves[0] @ (a.T @ a) / len(a)])

    def whole(self, at: Stack, rows: Tensor) -> Stack:
        return Stack([self.gradient(at.leaves[0])[rows]])


def walked(rule: AiSarah, steps: int) -> tuple[Tensor, Tensor]:
    """Points [T, 2] of the least squares above, from 0, and |V|^2 after each step."""
    rows, points, norms = Stack([torch.zeros(1, 2).double()]), [], []
    memory = rule.begin(rows, Beginning(torch.tensor([4])))
    for number in range(steps):
        objective = Rows(number)
        rule.step(memory, rows, Step(number, 1.0, objective.again(rows)[1], objective=objective))
        points.append(rows.leaves[0][0].clone())
        norms.append(memory["v"].leaves[0].square().sum())
    return torch.stack(points), torch.stack(norms)


def test_ai_sarah_is_its_authors():
    """V begins anew after the second step, 0.01083 < (0.75^2 + 0.25^2) / 32, and would not with another gamma."""
    points, norms = walked(AiSarah(), 4)
    wanted = exact([[0.78, 0.26], [0.919650, 0.155262], [0.391066, 0.376321], [0.239153, 0.285510]])
    assert torch.allclose(points, wanted, rtol=0, atol=6e-7)
    assert torch.allclose(norms, exact([0.2025, 0.01083, 0.144579, 0.032552]), rtol=0, atol=6e-6)
    for other in (AiSarah(restarts=0), AiSarah(gamma=0.01)):
        found, _ = walked(other, 4)
        assert torch.equal(found[:2], points[:2])
        assert not torch.allclose(found[2], points[2], rtol=0, atol=0.01)


def test_a_step_of_ai_sarah_is_newtons_of_the_next_direction_on_a_quadratic():
    """v(a) = V - a H V there, so |v(a)|^2 is least at a = V' H V / |H V|^2: (102 / 290, 0.352...) from g = (3, 4)."""
    (found,) = path(AiSarah(), [1], lr=1.0, clients=slice(0, 1))
    g, curved = exact([3, 4]), exact([[3, 1], [1, 2]]) @ exact([3, 4])
    assert torch.allclose(found[0], 1.0 - (g @ curved) / (curved @ curved) * g)


def test_ai_sarah_without_curvature_above_0_takes_a_step_of_the_bound_or_of_1():
    concave = replace(Q, curvatures=-Q.curvatures)
    found = path(AiSarah(), [1, 1], lr=0.01, problem=concave)[0]
    assert torch.allclose(found, 1.0 + 0.01 * exact([[3, 4], [4, 1.8]]))


RULES: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "adahessian": (AdaHessian(), {"draws": SIGNS}),
    "oasis": (Oasis(), {"draws": ALTERNATING}),
    "ai_sarah": (AiSarah(restarts=2, gamma=0.5), {}),
}


@pytest.mark.parametrize("name", RULES)
def test_a_row_goes_its_own_way(name):
    rule, given = RULES[name]
    assert_finishes_early(rule, **given)
    assert_stays_without_gradient(rule, **given)


def test_ai_sarah_alone_is_ai_sarah_in_company():
    """In single precision, on curvatures by which rows begin anew at different steps."""
    together = path(AiSarah(restarts=3, gamma=0.3), [6, 6], lr=1.0)
    for client in range(2):
        alone = path(AiSarah(restarts=3, gamma=0.3), [6], lr=1.0, clients=slice(client, client + 1))
        assert torch.equal(alone[:, 0], together[:, client])


def test_what_rounds_take_is_declared():
    """Two steps of 5 of 7 examples in each of 3 epochs; a pass over them is 2 steps, too."""
    for rule, effort in (("adahessian", 6 * 3), ("oasis", 6 * 4), ({"kind": "ai_sarah", "restarts": 2}, 6 * 4 + 3 * 2)):
        client = fedsim.experiment(client={"kind": "sgd", "epochs": 3, "batch_size": 5, "optimizer": rule}).client
        cost = client.cost(Order("train", torch.arange(1), {"params": torch.zeros(3)}), torch.tensor([7]))
        assert cost.steps.tolist() == [6]
        assert (cost.steps + cost.effort).tolist() == [effort]


SEEN: list[tuple[str, Tensor]] = []


@options
class Asking(Optimizer):
    """A rule that stays, and notes what it is told."""

    needs = frozenset({"again", "product", "whole"})

    def step(self, memory: Any, rows: Stack, step: Step) -> None:
        """Ask."""
        assert step.objective is not None
        SEEN.append(("gradient", step.gradient.flat().clone()))
        SEEN.append(("again", step.objective.again(rows)[1].flat()))
        ones = Stack([torch.ones_like(leaf) for leaf in rows.leaves])
        SEEN.append(("product", step.objective.product(rows, ones).flat()))
        SEEN.append(("whole", step.objective.whole(rows, torch.arange(len(rows))).flat()))
        SEEN.append(("again", step.objective.again(rows)[1].flat()))


def asked(executor: str, model: nn.Module, **client: Any) -> tuple[dict[str, list[Tensor]], Tensor]:
    """What such a rule is told in a round of all 6 clients, by name, and where the server is after."""
    SEEN.clear()
    problem = fedsim.supervised(**blobs(), model=model, dtype=torch.float64, device=DEVICE)
    table = {"kind": "sgd", "steps": 2, "batch_size": 4, "optimizer": Asking(), **client}
    made = small_experiment(
        1, client=table, engine={"executor": executor}, selection={"kind": "uniform", "fraction": 1.0}
    )
    found = fedsim.run(made, problem=problem, save=False).params
    told: dict[str, list[Tensor]] = {}
    for name, value in SEEN:
        told.setdefault(name, []).append(value)
    return told, found


def network(*, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        normalise = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(6, 8), *normalise, nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 3))


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_asking_again_has_the_steps_own_dropout_and_moves_no_statistics(executor):
    """Twice the same as the gradient before, with a whole pass in between; dropout or statistics would tell."""
    still, _ = asked(executor, network(norm=True))
    for model in (network(dropout=0.5), network(norm=True), network(dropout=0.5, norm=True)):
        told, _ = asked(executor, model)
        for number, gradient in enumerate(told["gradient"]):
            assert torch.allclose(told["again"][2 * number], gradient, rtol=0, atol=1e-12)
            assert torch.equal(told["again"][2 * number], told["again"][2 * number + 1])
    assert not torch.equal(still["gradient"][0], told["gradient"][0])


def test_statistics_end_where_they_end_without_questions():
    model = network(norm=True)
    told, found = asked("stacked", model)
    assert told

    @options
    class Silent(Optimizer):
        def step(self, memory: Any, rows: Stack, step: Step) -> None:
            """Stay."""

    _, expected = asked("stacked", model, optimizer=Silent())
    assert torch.equal(found, expected)


def test_the_whole_gradient_is_that_of_all_examples_in_mini_batches_of_any_width():
    """And a stack's is the loop's, decay and all."""
    wide, _ = asked("stacked", network(), batch_size="full", weight_decay=0.3)
    everything = torch.cat(wide["gradient"][:1])
    assert torch.allclose(wide["whole"][0], everything, rtol=0, atol=1e-12)
    for width in (1, 4, 5):
        narrow, _ = asked("stacked", network(), batch_size=width, weight_decay=0.3)
        alone, _ = asked("loop", network(), batch_size=width, weight_decay=0.3)
        assert torch.allclose(narrow["whole"][0].sum(0), everything.sum(0), rtol=0, atol=1e-12)
        assert torch.allclose(torch.cat(alone["whole"][::2]).sum(0), everything.sum(0), rtol=0, atol=1e-12)


def test_signs_are_as_likely_and_a_clients_own_whatever_its_company():
    """Of 20,000 a mean within five standard errors, 5 / sqrt(20,000) = 0.035; neighbours agree in half of them."""
    like = Stack([torch.zeros(2, 100, 100), torch.zeros(2, 10_000)])
    draw = Draw(Streams(0), torch.tensor([5, 8]), 3, 1)
    found = StepDraws(draw).signs("z", like).flat()
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert found.mean(dim=1).abs().max() < 0.035
    for one, other in (
        (found[0], found[1]),
        (found[0, 1:], found[0, :-1]),
        (found[0], StepDraws(draw).signs("x", like).flat()[0]),
    ):
        assert abs(float((one * other).mean())) < 0.035
    alone = StepDraws(replace(draw, clients=torch.tensor([8]))).signs("z", like[:1]).flat()
    assert torch.equal(alone[0], found[1])


def test_dropout_draws_anew_for_each_part_of_the_whole():
    """Of 7 examples by 4 there are two, one of them of who has no more than 4; no other pass has their names."""
    problem, clients = small_problem(), torch.arange(2)
    order = Order("train", clients, {"params": problem.initial()})
    job = Job((order,), None, clients, Cost(torch.zeros_like(clients), {}), 0)
    network = choose_network(problem.model, problem.data, "stacked")[1]
    cohort = Cohort(problem, network, Streams(0), job, {})
    cohort.examples = torch.tensor([3, 7])
    parts = list(cohort.everything(torch.tensor([0, 1]), 4, "whole/3"))
    assert [rows.tolist() for rows, _ in parts] == [[0, 1], [1]]
    assert [(batch.draw.within, batch.draw.step, batch.draw.clients.tolist()) for _, batch in parts] == [
        ("whole/3/", 0, [0, 1]),
        ("whole/3/", 1, [1]),
    ]
    layer, ones = NamedDropout(0.5, "d"), torch.ones(2, 4, 100)
    masks = []
    for draw in (parts[0][1].draw, replace(parts[0][1].draw, within=""), replace(parts[0][1].draw, step=1)):
        with drawing(draw, stacked=True):
            masks.append(layer(ones))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(masks, 2))


def test_decay_curves_as_it_pulls():
    """By 0.5 v, here 0.5, beside the curvature of the losses, which is not that of a linear function."""
    plain, decayed = (asked("stacked", network(), weight_decay=decay)[0]["product"][0] for decay in (0.0, 0.5))
    assert torch.allclose(decayed - plain, torch.full_like(plain, 0.5), rtol=0, atol=1e-12)
    assert float(plain.abs().max()) > 0.01


@pytest.mark.parametrize(
    "option", [{"adversarial": {"kind": "standard", "attack": {"kind": "fgsm", "epsilon": 0.1}}}, {"curriculum": {}}]
)
def test_where_mini_batches_are_of_something_else_the_whole_is_refused_in_a_line(option):
    refusal = rf"optimizer = .*gradients over all examples, which training with {next(iter(option))} does not give"
    with pytest.raises(InputError, match=refusal) as refused:
        fedsim.experiment(client={"kind": "sgd", "epochs": 1, "optimizer": "ai_sarah", **option})
    assert "\n" not in str(refused.value)


def test_a_search_along_estimates_refuses_them_in_a_line():
    refusal = r"optimizer = .*oasis.*several gradients a step and products with the Hessian, .* does not give"
    with pytest.raises(InputError, match=refusal) as refused:
        fedsim.experiment(strategy="fedzo", client={"kind": "fedzo", "steps": 2, "optimizer": "oasis"})
    assert "\n" not in str(refused.value)


def test_a_rule_of_some_leaves_has_products_of_their_own_block():
    """Of y' H y / 2 with H = [[1, 2, 3], [2, 5, 6], [3, 6, 9]], the last leaf of which is y_2: 9 v, at any point."""
    curvature = exact([[1, 2, 3], [2, 5, 6], [3, 6, 9]])

    class Whole:
        def product(self, at: Stack, v: Stack) -> Stack:
            found = torch.cat(v.leaves, dim=1) @ curvature
            return Stack([found[:, :2], found[:, 2:]])

        def whole(self, at: Stack, rows: Tensor) -> Stack:
            return Stack([leaf[rows] for leaf in self.product(at, at).leaves])

    rows = Stack([exact([[1, 1], [2, 2]]), exact([[4], [4]])])
    part = PartialObjective(Whole(), rows, [1])
    at = Stack([exact([[1], [3]])])
    assert torch.equal(part.product(at, at).leaves[0], exact([[9], [27]]))
    assert torch.equal(part.whole(at, torch.tensor([1])).leaves[0], exact([[2 * 3 + 2 * 6 + 3 * 9]]))

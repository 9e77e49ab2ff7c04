"""Rules that leave some leaves to another rule, which is asked for all that it is when it is alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from clients.optimizers.adam import Adam
from fedsim.client import Beginning, Divided, Optimizer, Remembered, Stack, Step, StepDraws, matrices, options
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.descent import Rule
from fedsim.nets.dropout import Draw
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem


@options
class Signs(Divided):
    """Matrices move by signs."""

    def own(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[int]:
        """All of them."""
        return matrices(shapes)

    def step_own(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        step.move(rows, Stack([leaf.sign() for leaf in step.gradient.leaves]))


@options
class Curious(Optimizer):
    """Asks for all that there is: it goes by the gradient at twice where it is, and draws, and sends and keeps."""

    @property
    def needs(self):
        """Everything."""
        return frozenset({"loss", "noise", "point", "again", "state", "end"})

    @property
    def effort(self) -> float:
        """Two gradients."""
        return 2.0

    @property
    def passes(self) -> float:
        """One."""
        return 1.0

    @property
    def vectors(self) -> float:
        """Three."""
        return 3.0

    def operations(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Ten a leaf."""
        return 10 * len(shapes)

    def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:
        """Two numbers."""
        return {"numbers": (2,)}

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """What was kept, and the losses."""
        return {"numbers": Stack([beginning.kept["numbers"].clone()]), "loss": Stack([torch.zeros(len(y)).double()])}

    def point(self, memory: Remembered, rows: Stack, number: int, noise: StepDraws) -> Stack:
        """Beside where it is, by a draw."""
        drawn = noise.normal("where", rows)
        return Stack([leaf + other for leaf, other in zip(rows.leaves, drawn.leaves, strict=True)])

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Along the gradient at twice where it is."""
        twice = Stack([2.0 * leaf for leaf in rows.leaves])
        loss, gradient = step.objective.again(twice)
        memory["loss"].leaves[0].copy_(loss)
        step.move(rows, gradient)
        memory["numbers"].add_(Stack([torch.ones(len(rows), 2).double()]))

    def end(self, memory: Remembered, rows: Stack) -> Stack:
        """The opposite."""
        return Stack([-leaf for leaf in rows.leaves])

    def keep(self, memory: Remembered, rows: Stack) -> Mapping[str, Tensor]:
        """The numbers."""
        return {"numbers": memory["numbers"].leaves[0]}


class Sum:
    """f(W, b) = sum(W) + |b|^2 / 2 + sum(W) sum(b), with what it was asked at."""

    def __init__(self) -> None:
        self.asked: list[Stack] = []

    def again(self, at: Stack) -> tuple[Tensor, Stack]:
        self.asked.append(Stack([leaf.clone() for leaf in at.leaves]))
        matrix, bias = at.leaves
        total = matrix.sum((1, 2))
        ones = torch.ones_like(matrix) * (1.0 + bias.sum(1)).view(-1, 1, 1)
        return total + bias.square().sum(1) / 2 + total * bias.sum(1), Stack([ones, bias + total.unsqueeze(1)])


def stack() -> Stack:
    return Stack([torch.full((3, 2, 2), 1.0).double(), torch.tensor([[1.0, -2.0, 4.0]] * 3).double()])


def noise(count: int) -> StepDraws:
    return StepDraws(Draw(Streams(0), torch.arange(count), 0, 0))


def test_the_other_rule_is_asked_and_given_all_that_it_needs_of_its_own_leaves():
    """At b = (1, -2, 4), the sum of W being 4: the gradient at 2 b is 2 b + 4, of which a step takes 0.1 times 0.5."""
    rule, y = Signs(others=Curious(), others_rate=0.5), stack()
    beginning = Beginning(torch.ones(3), {"others numbers": torch.tensor([[5.0, 7.0]] * 3).double()})
    stepper, objective = Rule(rule, None, 0.0, 0.0).stepper(y, beginning), Sum()
    at = stepper.point(y, 0, noise(3))
    assert at.leaves[0] is y.leaves[0]
    drawn = Curious().point({}, Stack([y.leaves[1]]), 0, StepDraws(noise(3).draw, "optimizer/others"))
    assert torch.equal(at.leaves[1], drawn.leaves[0])
    _, gradient = Sum().again(y)
    rows = y[:2]
    gradient = Stack([leaf[:2] for leaf in gradient.leaves])
    stepper.take(rows, Step(0, 0.1, gradient, torch.zeros(2), noise(2), objective))
    (asked,) = objective.asked
    assert torch.equal(asked.leaves[0], torch.ones(2, 2, 2).double())  # before its own leaves have moved
    assert torch.equal(asked.leaves[1], 2.0 * stack().leaves[1][:2])
    moved = torch.tensor([[1 - 0.05 * 6, -2 - 0.05 * 0, 4 - 0.05 * 12]]).double()
    torch.testing.assert_close(y.leaves[1], torch.cat((moved, moved, stack().leaves[1][:1])))
    torch.testing.assert_close(y.leaves[0][:2], torch.full((2, 2, 2), 0.9).double())
    assert torch.equal(y.leaves[0][2], torch.ones(2, 2).double())
    sent = stepper.end(y)
    assert sent.leaves[0] is y.leaves[0]
    assert torch.equal(sent.leaves[1], -y.leaves[1])
    assert stepper.keep(y)["others numbers"].tolist() == [[6.0, 8.0], [6.0, 8.0], [5.0, 7.0]]


@options
class Wandering(Optimizer):
    """Goes where draws go."""

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        step.move(rows, step.noise.normal("where", rows))


def test_the_other_rules_draws_are_not_those_that_the_first_has_under_the_same_name():
    y = stack()
    rule = Rule(Signs(others=Wandering(), others_rate=1.0), None, 0.0, 0.0)
    rule.stepper(y, Beginning(torch.ones(3))).take(y, Step(0, 0.1, y.zeros(), noise=noise(3)))
    (bias,) = StepDraws(noise(3).draw, "optimizer/others").normal("where", Stack([y.leaves[1]])).leaves
    torch.testing.assert_close(y.leaves[1], stack().leaves[1] - 0.1 * bias)


def test_what_it_takes_joins_in():
    rule = Signs(others=Curious())
    assert rule.needs == Curious().needs
    assert (rule.effort, rule.passes) == (2.0, 1.0)
    assert rule.kept(9) == {"others numbers": (2,)}
    assert rule.operations([(2, 2), (3,), (4,)]) == 20


def test_leaves_shrink_by_their_own_rates_whatever_the_other_rule_says_of_decay():
    """By 0.1 times 0.5 and by a tenth of it, under zero gradients."""
    for others in ("lion", "sgd"):
        y = stack()
        stepper = Rule(Signs(others=others), None, 0.0, 0.5).stepper(y, Beginning(torch.ones(3)))
        stepper.take(y, Step(0, 0.1, y.zeros()))
        torch.testing.assert_close(y.leaves[0], stack().leaves[0] * 0.95)
        torch.testing.assert_close(y.leaves[1], stack().leaves[1] * 0.995)


def test_a_divided_rule_may_have_the_other_leaves_of_another():
    """No matrix is left: the inner one's own leaves are none, and its other rule moves what there is."""
    y = stack()
    stepper = Rule(Signs(others=Signs(others="sgd", others_rate=2.0)), None, 0.0, 0.5).stepper(
        y, Beginning(torch.ones(3))
    )
    gradient = y.zeros()
    gradient.leaves[1].fill_(1.0)
    stepper.take(y, Step(0, 0.1, gradient))
    torch.testing.assert_close(y.leaves[1], stack().leaves[1] * (1 - 0.1 * 0.1 * 2 * 0.5) - 0.02)


def test_a_stack_of_matrices_alone_has_no_others():
    y = Stack([torch.ones(2, 3, 3)])
    stepper = Rule(Signs(), None, 0.0, 0.0).stepper(y, Beginning(torch.ones(2)))
    stepper.take(y, Step(0, 0.5, Stack([torch.ones(2, 3, 3)])))
    assert torch.equal(stepper.end(y).leaves[0], torch.full((2, 3, 3), 0.5))
    assert stepper.keep(y) == {}


def test_options_of_the_other_rule_are_checked_where_they_stand():
    with pytest.raises(InputError, match=r"others\.beta1 = 2\.0"):
        Signs(others={"kind": "adam", "beta1": 2.0})
    with pytest.raises(InputError, match=r"others\.kind = nothing"):
        Signs(others="nothing")

    @options
    class Keeping(Adam):
        """Keeps its moments."""

        def kept(self, dimension: int) -> Mapping[str, tuple[int, ...]]:
            """All of them."""
            return {"m": (dimension,)}

    with pytest.raises(InputError, match=r"others = .*it keeps numbers of all leaves"):
        Signs(others=Keeping())


@pytest.mark.parametrize(("others_rate", "product"), [(0.1, "0.002"), (50.0, None)])
def test_a_rate_that_multiplies_what_the_other_rule_finds_is_warned_of(others_rate, product, capsys):
    """Muon's usual rate is 0.02."""
    rule = {"kind": "muon", "others": "dog", "others_rate": others_rate}
    client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "optimizer": rule}
    build_simulation(small_experiment(1, client=client), small_problem())
    said = capsys.readouterr().err
    line = f"dog, muon's others, finds its own rate, which client.lr times others_rate, {product}, multiplies"
    assert said == ("" if product is None else f"fedsim: warning: {line}\n")

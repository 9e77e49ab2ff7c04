"""FRUGAL, against the authors' numbers under given columns, and what its densities make of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from oracles import W, exact
from torch import Tensor

from clients.optimizers.adam import Adam
from clients.optimizers.frugal import Frugal
from fedsim.client import Beginning, Stack, Step, StepDraws
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.descent import Rule
from fedsim.nets.dropout import Draw


@dataclass(frozen=True)
class Chosen:
    """Client 0 has column 0 first, client 1 column 1."""

    first: int

    def permutation(self, purpose: str, count: int, size: int) -> Tensor:
        """Theirs."""
        return torch.tensor([[0, 1], [1, 0]])[self.first : self.first + count]


def walked(rule: Frugal, steps: int, clients: slice = slice(0, 2), decay: float = 0.0) -> Tensor:
    """Where clients of W are after each step of 0.1, [steps, k, 6]."""
    count = len(range(2)[clients])
    y, found = W.stack(W.start.expand(count, -1, -1)), []
    stepper = Rule(rule, None, 0.0, decay).stepper(y, Beginning(torch.ones(count)))
    for number in range(steps):
        stepper.take(y, Step(number, 0.1, W.gradient(y, clients, number), noise=Chosen(clients.start)))
        found.append(y.leaves[0].flatten(1).clone())
    return torch.stack(found)


def test_steps_are_the_official_ones_together_and_alone():
    rule = Frugal(density=0.5, gap=2, beta2=0.999)
    together = walked(rule, 3)
    first = [
        [0.1, -0.1, 0.0, 0.1, 0.1, 0.1],
        [0.199588, -0.2, 0.0, 0.2, 0.198813, 0.2],
        [0.299588, -0.3, 0.0, 0.3, 0.298813, 0.3],
    ]
    torch.testing.assert_close(together[:, 0], exact(first), rtol=0, atol=6e-7)
    second = exact([0.2, -0.199588, 0.0, 0.199834, 0.2, 0.199588])
    torch.testing.assert_close(together[1, 1], second, rtol=0, atol=6e-7)
    for client in range(2):
        assert torch.equal(walked(rule, 3, slice(client, client + 1))[:, 0], together[:, client])


def test_with_all_columns_it_is_adam_that_begins_anew():
    """Every third step, where moments and corrections are those of a first."""
    found, y = walked(Frugal(density=1.0, gap=3, beta2=0.999), 7), W.stack(W.start.expand(2, -1, -1))
    adam, expected = Rule(Adam(beta2=0.999), None, 0.0, 0.0), []
    for number in range(7):
        if number % 3 == 0:
            stepper = adam.stepper(y, Beginning(torch.ones(2)))
        stepper.take(y, Step(number % 3, 0.1, W.gradient(y, slice(0, 2), number)))
        expected.append(y.leaves[0].flatten(1).clone())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


def test_with_no_column_it_is_the_rest_alone():
    signs = walked(Frugal(density=0.0), 3)
    torch.testing.assert_close(signs[2], exact([[0.3, -0.3, 0.0, 0.3, 0.3, 0.3]] * 2), rtol=0, atol=1e-12)
    gradient = W.gradient(W.stack(W.start.expand(2, -1, -1)), slice(0, 2), 0).leaves[0].flatten(1)
    plain = walked(Frugal(density=0.0, rest="plain", rest_scale=0.5), 1)
    torch.testing.assert_close(plain[0], -0.05 * gradient, rtol=1e-12, atol=0)
    assert not bool(walked(Frugal(density=0.0, rest="none"), 2).any())


def test_matrices_and_the_others_shrink_by_their_rates():
    """(1 - 0.1 x 0.5) before each step of 0.1: 0.1, then 0.195."""
    found = walked(Frugal(density=0.0), 2, decay=0.5)
    torch.testing.assert_close(found[1], exact([[0.195, -0.195, 0.0, 0.195, 0.195, 0.195]] * 2), rtol=0, atol=1e-12)


def draws(clients: Tensor, step: int) -> StepDraws:
    return StepDraws(Draw(Streams(0), clients, 0, step))


def columns_of(rule: Frugal, clients: Tensor, steps: int) -> list[list[Tensor]]:
    """The columns that each client has for Adam, by step, of a [3, 20] and a kernel [4, 5, 2, 2]."""
    y = Stack([torch.ones(len(clients), *shape) for shape in ((3, 20), (4, 5, 2, 2), (4,))])
    memory, found = rule.begin(y, Beginning(torch.ones(len(clients)))), []
    for number in range(steps):
        gradient = Stack([torch.ones_like(leaf) for leaf in y.leaves])
        rule.step(memory, y, Step(number, 0.1, gradient, noise=draws(clients, number)))
        found.append([part.clone() for part in memory["columns"].leaves])
    return found


def test_each_client_draws_its_own_columns_of_each_matrix_anew_after_a_gap():
    clients = torch.arange(6)
    found = columns_of(Frugal(density=0.29, gap=2), clients, 4)
    for step in found:
        assert [tuple(part.shape) for part in step] == [(6, 5), (6, 5)]
        assert all(len(set(row)) == 5 and max(row) < 20 for part in step for row in part.tolist())
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(found[1], found[2], strict=True))
    assert not torch.equal(found[0][0], found[0][1])
    assert len({tuple(sorted(row)) for row in found[0][0].tolist()}) == 6
    alone = columns_of(Frugal(density=0.29, gap=2), clients[3:4], 3)
    for own, everybody in zip(alone, found[:3], strict=True):
        assert all(torch.equal(part, every[3:4]) for part, every in zip(own, everybody, strict=True))


def test_who_has_finished_keeps_what_it_had():
    """Of two clients the first goes on; what is remembered of the second stays, too."""
    rule, y = Frugal(density=0.5, gap=2), W.stack(W.start.expand(2, -1, -1))
    stepper, memory = Rule(rule, None, 0.0, 0.0).stepper(y, Beginning(torch.ones(2))), None
    for number in range(5):
        rows = y[: 2 if number < 2 else 1]
        gradient = W.gradient(rows, slice(0, len(rows)), number)
        stepper.take(rows, Step(number, 0.1, gradient, noise=Chosen(0)))
        if number == 1:
            memory = {name: part[1:].leaves[0].clone() for name, part in stepper._everything.items()}
            place = y.leaves[0][1].clone()
    assert memory is not None
    assert torch.equal(y.leaves[0][1], place)
    assert all(torch.equal(stepper._everything[name].leaves[0][1:], part) for name, part in memory.items())
    torch.testing.assert_close(y.leaves[0][0].flatten(), walked(rule, 5)[4, 0], rtol=0, atol=0)


def test_it_remembers_two_numbers_of_each_chosen_one():
    y = Stack([torch.zeros(3, 8, 20), torch.zeros(3, 8)])
    remembered = Frugal(others="sgd").begin(y, Beginning(torch.ones(3)))
    assert {name: tuple(part.leaves[0].shape) for name, part in remembered.items()} == {
        "m": (3, 8, 5),
        "v": (3, 8, 5),
        "columns": (3, 5),
    }
    assert Frugal(others="sgd").vectors == 0.5
    assert Frugal().vectors == 2.0


def test_nothing_else_moves_by_a_scale():
    with pytest.raises(InputError, match=r"rest_scale = 0\.5: with rest = 'none' nothing else moves"):
        Frugal(rest="none", rest_scale=0.5)

"""DoG and its forms: numbers of the official package and of the specification, and what holds whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from oracles import (
    Q_APART,
    P,
    Q,
    Quadratic,
    assert_finishes_early,
    assert_held,
    assert_stays_without_gradient,
    exact,
    path,
)

from clients.optimizers.a_dog import ADog
from clients.optimizers.dog import Dog
from clients.optimizers.l_dog import LDog
from clients.optimizers.u_dog import UDog
from fedsim.client import Beginning, InputError, Optimizer, Stack, Step
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem

R = 0.01 / (1.0 + 2.0**0.5)
"""The reps_rel of a first distance of 0.01."""
EVERY = [Dog(), Dog(average=True), LDog(), ADog(), UDog()]
"""One of each."""
SAID = "dog finds its own rate, which this multiplies; leave it out, or say 1"
"""What a rate beside DoG is answered with."""
UNSCALED = [Dog(epsilon=0.0), LDog(epsilon=0.0), ADog(epsilon=0.0), UDog(epsilon=0.0)]


def by_name(optimizer: Optimizer) -> str:
    """As a test is called."""
    return type(optimizer).__name__


# dog-optimizer 1.0.3 of the authors, to 1e-16.
def test_dog_steps_as_the_official_package():
    """The first step is 0.01 (1 + sqrt 2) (0.6, 0.8), by hand."""
    assert_held(Dog(), [
        [0.985515, 0.980686, 0.977984, 0.990093],
        [0.975406, 0.967102, 0.962928, 0.982962],
        [0.961483, 0.948289, 0.942604, 0.972978],
    ], lr=1.0)  # fmt: skip


def test_dog_averages_as_the_official_package():
    found = path(Dog(average=True), [3, 3], lr=1.0, sent=True)
    expected = exact([[0.985515, 0.980686], [0.976417, 0.968461], [0.964198, 0.951957]])
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=6e-7)
    assert torch.equal(path(Dog(average=True), [3, 3], lr=1.0), path(Dog(), [3, 3], lr=1.0))


def test_l_dog_steps_as_the_official_package():
    assert_held(LDog(), [
        [0.98, 0.98, 0.98, 0.98],
        [0.966050, 0.965965, 0.966225, 0.965937],
        [0.946881, 0.946555, 0.947546, 0.946449],
    ], lr=1.0, problem=Q_APART)  # fmt: skip


def test_dog_steps_along_what_a_server_averages():
    assert_held(Dog(), [[1.014485, 1.019314], [1.009773, 1.021670], [1.010715, 1.022140]], lr=1.0, problem=P)


def test_a_dog_steps_as_specified():
    assert_held(ADog(), [
        [0.985515, 0.980686, 0.977984, 0.990093],
        [0.975406, 0.967102, 0.962928, 0.982962],
        [0.960873, 0.947465, 0.941653, 0.972511],
    ], lr=1.0)  # fmt: skip


def test_u_dog_steps_as_specified_and_stays_in_its_second_halves():
    pairs = [
        [0.994, 0.992, 0.990881, 0.995896],
        [0.986104, 0.981421, 0.979137, 0.990445],
        [0.965522, 0.953709, 0.949531, 0.976252],
    ]
    assert_held(UDog(reps_rel=R), [pair for pair in pairs for _ in range(2)], lr=1.0)


@pytest.mark.parametrize(
    ("reps_rel", "needed"), [(1e-6, (105, 134)), (1e-4, (59, 78)), (1e-2, (24, 31)), (0.1, (11, 14))]
)
def test_a_small_first_distance_takes_as_many_steps_as_published(reps_rel, needed):
    """Until a hundredth of the loss is left; which is why ours is not the authors'."""
    points = path(Dog(reps_rel=reps_rel), [140, 140], lr=1.0)
    losses = torch.stack([Q.losses(Q.stack(at.unsqueeze(2)), slice(None), 0) for at in points])
    enough = losses < 0.01 * Q.losses(Q.stack(Q.start.expand(2, -1, -1)), slice(None), 0)
    assert tuple(int(column.nonzero()[0]) + 1 for column in enough.T) == needed


@pytest.mark.parametrize("optimizer", EVERY, ids=by_name)
def test_who_has_finished_stays_and_the_others_go_on_as_if_alone(optimizer):
    assert_finishes_early(optimizer, lr=1.0)


@pytest.mark.parametrize("optimizer", [*EVERY, *UNSCALED], ids=by_name)
def test_who_has_no_gradient_stays(optimizer):
    assert_stays_without_gradient(optimizer, lr=1.0)


@pytest.mark.parametrize("optimizer", UNSCALED, ids=by_name)
def test_the_scale_of_the_loss_does_not_matter(optimizer):
    larger = Quadratic(1024.0 * Q.curvatures, Q.least, Q.start, vector=True)
    assert torch.equal(path(optimizer, [8, 8], lr=1.0, problem=larger), path(optimizer, [8, 8], lr=1.0))


def test_acceleration_is_ahead_in_few_steps():
    """The losses after 20 gradients and 50, of the specification; later DoG is ahead, for there is no noise."""
    wanted = {"Dog": [[1.1e-1, 3.6e-1], [3.6e-6, 4.8e-5]], "ADog": [[9.7e-5, 6.5e-3], [1.2e-6, 1.4e-6]]}
    for optimizer in (Dog(), ADog()):
        points = path(optimizer, [50, 50], lr=1.0)[[19, 49]]
        losses = torch.stack([Q.losses(Q.stack(at.unsqueeze(2)), slice(None), 0) for at in points])
        torch.testing.assert_close(losses, exact(wanted[by_name(optimizer)]), rtol=0.05, atol=0)


def test_the_first_step_is_as_long_as_the_first_distance_and_else_only_differences_matter():
    r = Dog(reps_rel=R, epsilon=0.0)
    near = path(r, [6, 6], lr=1.0)
    torch.testing.assert_close((near[0] - 1.0).norm(dim=1), exact([0.01, 0.01]), rtol=1e-12, atol=0)
    away = exact([[3.0], [4.0]])
    far = Quadratic(Q.curvatures, Q.least + away, Q.start + away, vector=True)
    moved = path(Dog(reps_rel=0.01 / (1.0 + 41.0**0.5), epsilon=0.0), [6, 6], lr=1.0, problem=far)
    torch.testing.assert_close(moved - away.T, near, rtol=0, atol=1e-14)


def test_a_first_step_size_may_be_given():
    """0.05 g of (3, 4) and (4, 1.8); then the distance is what has been come: 0.25 for the first, by hand."""
    found = path(Dog(init_eta=0.05, epsilon=0.0), [2, 2], lr=1.0)
    torch.testing.assert_close(found[0], exact([[0.85, 0.8], [0.8, 0.91]]), rtol=0, atol=1e-12)
    gradient = exact([[3.0, 1.0], [1.0, 2.0]]) @ (exact([0.85, 0.8]) - exact([0.6, -0.8]))
    rate = 0.25 / (25.0 + gradient.square().sum()).sqrt()
    torch.testing.assert_close(found[1, 0], exact([0.85, 0.8]) - rate * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", [Dog(), LDog(), ADog(), UDog()], ids=by_name)
def test_distances_and_sums_never_fall(optimizer):
    """Under gradients that lead back and forth, of 40 steps."""
    y = Stack([torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)])
    memory, generator, seen = optimizer.begin(y, Beginning(torch.ones(3))), torch.Generator().manual_seed(0), []
    for number in range(40):
        gradient = Stack([torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in y.leaves])
        optimizer.step(memory, y, Step(number, 1.0, gradient))
        seen.append(torch.stack([*memory["distance"].leaves, *memory["total"].leaves]))
    steps = torch.stack(seen).diff(dim=0)
    assert bool((steps >= 0).all())
    assert bool((steps > 0).any(dim=0).all())


def test_a_client_goes_on_with_the_distance_that_it_came_to():
    """Its last point's, too, and never less than a first one; without the sum of squares."""
    rule = Dog(distance="client")
    y = Stack([torch.ones(3, 2, dtype=torch.float64)])
    memory = rule.begin(y, Beginning(torch.ones(3), {"rbar": exact([0.0, 5.0, 1e-9])}))
    first = 0.01 * (1.0 + 2.0**0.5)
    assert torch.allclose(memory["distance"].leaves[0], exact([first, 5.0, first]), rtol=1e-14)
    rule.step(memory, y, Step(0, 1.0, Stack([exact([[3.0, 4.0]] * 3)])))
    y.leaves[0][0].add_(7.0)
    kept = rule.keep(memory, y)["rbar"]
    assert kept[0] > 9.0
    torch.testing.assert_close(kept[1:], exact([5.0, first]))
    assert Dog().keep(memory, y) == Dog().kept(9) == {}


def test_a_weight_of_the_average_needs_one():
    with pytest.raises(InputError, match=r"^gamma = 0\.0: is about the average; give average = true$"):
        LDog(gamma=0.0)


@pytest.mark.parametrize(
    ("client", "warned"),
    [({"lr": 0.5, "optimizer": "dog"}, True), ({"lr": 1.0, "optimizer": "dog"}, False), ({"lr": 0.5}, False)],
)
def test_a_rate_for_a_rule_that_finds_its_own_is_warned_of(client, warned, capsys):
    """In a line, whatever kind of client steps by it."""
    training = {"kind": "sgd", "epochs": 1, "batch_size": 4}
    search = {"kind": "fedzo", "steps": 2, "estimator": {"kind": "differences", "count": 2}, "optimizer": "sgd"}
    for kind in (training, search):
        tables = {"strategy": "fedzo"} if kind is search else {}
        build_simulation(small_experiment(1, client=kind | client, **tables), small_problem())
        line = f"fedsim: warning: client.lr = 0.5: {SAID}\n"
        assert capsys.readouterr().err == (line if warned else "")
    default = small_experiment(1, client=training | {"optimizer": "dog"})
    assert default.client.base == 1.0


@pytest.mark.parametrize(("strategy", "warned"), [({"server_lr": 0.5}, True), ({}, False)])
def test_so_is_a_rate_of_the_servers(strategy, warned, capsys):
    experiment = small_experiment(1, strategy={"kind": "fedavg", "server_optimizer": "dog", **strategy})
    build_simulation(experiment, small_problem())
    line = f"fedsim: warning: strategy.server_lr = 0.5: {SAID}\n"
    assert capsys.readouterr().err == (line if warned else "")


KEPT_DISTANCES = {"kind": "dog", "distance": "client", "average": True, "reps_rel": 1e-6}


@pytest.mark.slow  # for processes begin; in chunks of one process they are compared by the contract
def test_distances_that_clients_keep_are_the_same_in_processes():
    """To the bit: from round to round each is with its client, in whatever process that works."""
    client = {"kind": "sgd", "epochs": 2, "batch_size": 4, "optimizer": KEPT_DISTANCES}
    ends = []
    for engine in ({"executor": "process", "workers": 2}, {"executor": "stacked"}):
        experiment = small_experiment(3, client=client, engine=engine)
        simulation = build_simulation(experiment, small_problem())
        for _ in simulation:
            pass
        ends.append((simulation.params, simulation.parts.engine.memories().look("optimizer rbar", torch.arange(6))[0]))
    (params, kept), (others, own) = ends
    assert torch.equal(params, others)
    assert torch.equal(kept, own)
    assert bool((own > 2e-6).any())

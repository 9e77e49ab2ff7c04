"""Rules by which clients step, on the server: of one client, which is the model, with the gradient -Delta."""

from __future__ import annotations

import json

import pytest
import torch

import fedsim
from clients.optimizers.lion import Lion
from fedsim.client import Beginning, Optimizer, Remembered, Stack, Step, columns, options
from fedsim.configuration.tables import described
from fedsim.core.errors import InputError
from fedsim.nets.stack import Layout
from fedsim.server.optimizers import Adam, Sgd
from fedsim.server.strategy import ServerState, ServerStep
from fedsim.testing.problems import small_experiment, small_problem
from strategies.fedavg import FedAvg

DELTAS = ((3.0, 4.0), (-1.0, 0.5), (0.2, 0.1))
"""The changes of P, from (1, 1)."""


def exact(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def path(step, deltas=DELTAS, start=(1.0, 1.0)):
    """Where the model is after each change, [T, d]."""
    params, found = exact(start), []
    state = ServerState(params, optimizer=step.stepping.init(params, Layout.flat(len(params))))
    for delta in deltas:
        params, remembered = step.moved(state, exact(delta))
        state = ServerState(params, optimizer=remembered)
        found.append(params)
    return torch.stack(found)


ORACLES = {
    # By pytorch_optimizer's Lion, exactly.
    "lion": ({"server_optimizer": "lion", "server_lr": 0.1}, [1.1, 1.1, 1.0, 1.2, 1.1, 1.3]),
    # The paper's form, from v = u = epsilon^2.
    "amsgrad": (
        {"server_optimizer": {"kind": "amsgrad", "variant": "paper", "epsilon": 1e-3}, "server_lr": 0.1},
        [1.099667, 1.099750, 1.153498, 1.201709, 1.208279, 1.295958],
    ),
    "adabelief": (
        {"server_optimizer": {"kind": "adabelief", "beta2": 0.99, "epsilon": 1e-8}, "server_lr": 0.1},
        [1.111111, 1.111111, 1.154186, 1.196068, 1.191920, 1.263467],
    ),
    "diffgrad": (
        {"server_optimizer": {"kind": "diffgrad", "beta2": 0.99, "epsilon": 1e-3}, "server_lr": 0.1},
        [1.094941, 1.097956, 1.134190, 1.171438, 1.161043, 1.207490],
    ),
    "dog": (
        {"server_optimizer": {"kind": "dog", "reps_rel": 1e-2}},
        [1.014485, 1.019314, 1.009773, 1.021670, 1.010715, 1.022140],
    ),
    # (1 - 0.05) (1, 1) + 0.1, and so on: the signs as above.
    "lion with decay": (
        {"server_optimizer": "lion", "server_lr": 0.1, "server_weight_decay": 0.5},
        [1.05, 1.05, 0.8975, 1.0975, 0.952625, 1.142625],
    ),
    # Delta - 0.5 x: (2.5, 3.5), then with x = (1.25, 1.35) v = 0.5 v + (-1.625, -0.175).
    "momentum with decay": (
        {"server_optimizer": {"kind": "sgd", "momentum": 0.5}, "server_lr": 0.1, "server_weight_decay": 0.5},
        [1.25, 1.35, 1.2125, 1.5075],
    ),
}
"""Options, and where the model is after each change."""


@pytest.mark.parametrize("name", ORACLES)
def test_the_model_goes_where_the_official_package_takes_it(name):
    given, wanted = ORACLES[name]
    expected = exact(wanted).view(-1, 2)
    torch.testing.assert_close(path(ServerStep(**given), DELTAS[: len(expected)]), expected, rtol=0, atol=6e-7)


@options
class ByLayer(Optimizer):
    """y <- y - lr (1 + t) g / |g| of each leaf, t the step's number: about layers, and about how often it stepped."""

    def begin(self, y: Stack, beginning: Beginning) -> Remembered:
        """How long each leaf's steps have been in all."""
        return {"length": Stack([y.leaves[0].new_zeros(len(beginning.examples)) for _ in y.leaves])}

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        norms = [leaf.reshape(len(leaf), -1).norm(dim=1) for leaf in step.gradient.leaves]
        for length, leaf, norm in zip(memory["length"].leaves, step.gradient.leaves, norms, strict=True):
            leaf.mul_(columns((step.number + 1.0) / norm, leaf))
            length += step.number + 1.0
        step.move(rows, step.gradient)


def test_a_rule_about_layers_has_the_models_own_and_its_memory_goes_on():
    problem = small_problem()
    plain = small_experiment(rounds=1, seed=3)
    begin, lr = problem.initial(), 0.25
    change = fedsim.run(plain, problem=problem, save=False).params - begin
    given = {"kind": "fedavg", "server_optimizer": ByLayer(), "server_lr": lr}
    found = fedsim.run(small_experiment(rounds=1, seed=3, strategy=given), problem=problem, save=False).params
    parts = [part / part.norm() for part in torch.split(change, problem.layout.sizes)]
    torch.testing.assert_close(found, begin + lr * torch.cat(parts), rtol=0, atol=1e-12)

    step = FedAvg(server_optimizer=ByLayer())
    params, state = torch.ones(83, dtype=torch.float64), step.init(problem)
    for _ in range(3):
        params, remembered = step.moved(state, params)
        state = ServerState(params, optimizer=remembered)
    assert [float(state.optimizer[f"length.{place}"]) for place in range(4)] == [6.0] * 4
    assert int(state.optimizer["steps"]) == 3


def test_muon_moves_the_models_matrices_and_all_leaves_shrink_by_their_own_rates():
    """Of no change all that moves is the decay's: 0.5 times 0.1, and of a vector a tenth of that."""
    step = ServerStep(server_optimizer={"kind": "muon", "last": True}, server_lr=0.1, server_weight_decay=0.5)
    layout, params = Layout(("matrix", "vector"), ((3, 2), (2,)), 2), torch.ones(8, dtype=torch.float64)
    state = ServerState(params, optimizer=step.stepping.init(params, layout))
    still, _ = step.moved(state, torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(still, exact([0.95] * 6 + [0.995] * 2), rtol=0, atol=1e-12)
    change = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    moved, _ = step.moved(state, change)
    values = torch.linalg.svdvals((moved - still)[:6].view(3, 2)) / (0.1 * 1.5**0.5)
    assert 0.68 <= float(values.min()) <= float(values.max()) <= 1.16
    torch.testing.assert_close((moved - still)[6:], exact([0.01, 0.01]), rtol=0, atol=1e-6)  # Adam's first step


def test_nothing_that_goes_in_is_changed_and_no_change_is_no_step():
    step = ServerStep(server_optimizer="lion")
    params = exact((1.0, 1.0))
    first = step.stepping.init(params, Layout.flat(2))
    still, _ = step.moved(ServerState(params, optimizer=first), exact((0.0, 0.0)))
    assert torch.equal(still, params)
    _, state = step.moved(ServerState(params, optimizer=first), exact((3.0, 4.0)))
    kept = {name: value.clone() for name, value in state.items()}
    one, after = step.moved(ServerState(params, optimizer=state), exact((-1.0, 0.5)))
    two, again = step.moved(ServerState(params, optimizer=state), exact((-1.0, 0.5)))
    assert torch.equal(one, two)
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert not torch.equal(after["m.0"], kept["m.0"])
    assert torch.equal(params, exact((1.0, 1.0)))


def test_where_nobody_answers_neither_the_model_nor_what_the_rule_remembers_moves():
    strategy = {"kind": "fedavg", "server_optimizer": "lion", "server_lr": 0.01, "server_weight_decay": 0.5}
    nobody = {"crash": {"rate": 1.0}}
    made = small_experiment(rounds=2, strategy=strategy, faults=nobody, selection={"kind": "uniform", "fraction": 1.0})
    problem = small_problem()
    assert torch.equal(fedsim.run(made, problem=problem, save=False).params, problem.initial())


@pytest.mark.parametrize(
    "tables",
    [
        {"strategy": {"kind": "fedbuff", "size": 2}},
        {"strategy": {"kind": "fedzo", "guard": True}, "client": {"kind": "fedzo", "steps": 2, "lr": 0.5}},
    ],
    ids=["as replies come", "guarded"],
)
def test_steps_of_lion_are_whole_wherever_a_server_takes_one(tables):
    problem, given = small_problem(), {"server_optimizer": "lion", "server_lr": 0.125}
    made = small_experiment(rounds=3, **{**tables, "strategy": {**tables["strategy"], **given}})
    steps = (fedsim.run(made, problem=problem, save=False).params - problem.initial()) / 0.125
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-12)
    assert 0.0 < float(steps.abs().max()) <= 3.5


def test_a_decay_of_lion_bounds_the_model_too():
    """|x| <= 1 / decay is never left once it is entered, and entered geometrically: to the corner (-2, 2) of a box."""
    step = ServerStep(server_optimizer="lion", server_lr=0.1, server_weight_decay=0.5)
    found = path(step, [(-3.0, 2.0)] * 200, start=(10.0, 10.0))
    torch.testing.assert_close(found[2], exact((8.2885, 8.859)), rtol=0, atol=6e-6)
    torch.testing.assert_close(found[-1], exact((-1.999579, 2.00028)), rtol=0, atol=6e-6)


@options
class Asking(Optimizer):
    """A rule that needs more than the gradient."""

    losses: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """Losses, if it is asked."""
        return frozenset({"loss", "again"} if self.losses else ())

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        step.move(rows, step.gradient)


def test_a_rule_that_needs_more_than_the_gradient_is_refused_by_what_it_needs():
    for kind in ("fedavg", "fedfix", "fedasync", "fedbuff", "fedzo"):
        with pytest.raises(
            InputError, match=r"server_optimizer = .*: asks for the clients' losses and several gradients"
        ):
            fedsim.experiment(strategy={"kind": kind, "server_optimizer": Asking()})
    assert path(ServerStep(server_optimizer=Asking(losses=False)), DELTAS[:1]).tolist() == [[4.0, 5.0]]
    with pytest.raises(InputError, match=r"server_optimizer = Stub: make it a subclass of fedsim\.server\.Server"):
        ServerStep(server_optimizer=Stub())


@options
class Stub:
    """Has the methods of a server's optimizer, and not their base."""

    def init(self, params, layout): ...

    def step(self, state, delta, lr, params): ...


def test_a_name_that_both_have_is_fedopts_and_tables_come_back():
    assert ServerStep(server_optimizer="adam").stepping == Adam()
    assert ServerStep().stepping == Sgd()
    made = fedsim.experiment(strategy={"kind": "fedavg", "server_optimizer": {"kind": "lion", "beta1": 0.5}})
    assert made.strategy.stepping.rule == Lion(beta1=0.5)
    table = described("strategies", made.strategy)
    assert table["server_optimizer"] == {"kind": "lion", "beta1": 0.5, "beta2": 0.99}
    again = fedsim.experiment(strategy=json.loads(json.dumps(table)))
    assert again.strategy.stepping == made.strategy.stepping
    with pytest.raises(InputError, match=r"strategy\.server_optimizer\.epsilon = 0\.1: no such option here"):
        fedsim.experiment(strategy={"kind": "fedavg", "server_optimizer": {"kind": "lion", "epsilon": 0.1}})
    with pytest.raises(InputError, match=r"not one of the installed server_optimizers: .*did you mean lion\?"):
        fedsim.experiment(strategy={"kind": "fedavg", "server_optimizer": "lyon"})

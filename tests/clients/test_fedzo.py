"""FedZO's client: what it asks, what it sends, and where that is an algorithm with a closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core import plugins
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Replies
from fedsim.exchange.windows import All
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, Quadratics, small_problem
from fedsim.testing.problems import small_experiment as small
from fedsim.zeroth_order.directions import draw

D = 4
SHIFTS = torch.tensor([-1.0, 0.0, 0.5, 2.5], dtype=torch.float64, device=DEVICE)
COORDINATES = {"kind": "differences", "directions": "coordinate", "count": 3, "difference": "central", "mu": 0.1}
# A few evaluations each, and how many a local step takes: q + 1, 2q, 1, q + 1 (base) + 1 + S, and q + 1.
ESTIMATORS: dict[str, tuple[dict[str, Any], int]] = {
    "forward": ({"kind": "differences", "count": 3}, 4),
    "central": ({"kind": "differences", "count": 3, "difference": "central", "directions": "sphere"}, 6),
    "spsa": ({"kind": "spsa", "count": 3}, 6),
    "spsa_gc": ({"kind": "spsa_gc", "count": 3}, 6),
    "residual": ({"kind": "residual"}, 1),
    "prior": ({"kind": "prior", "count": 3, "samples": 2}, 7),
    "prior of a fixed weight": ({"kind": "prior", "count": 3, "weight": 0.5}, 4),
    "forward gradient": ({"kind": "forward_gradient", "count": 3}, 3),
    "guided forward gradient": ({"kind": "forward_gradient", "count": 3, "guess": "momentum"}, 4),
}
OPAQUE = [name for name in ESTIMATORS if "gradient" not in name]


def bowls(clients: Tensor, x: Tensor) -> Tensor:
    """|x - s_c|^2 / 2 with a shift of each client's own; F is least at the mean, 0.5."""
    return (x - SHIFTS[clients].view(-1, 1, 1)).square().sum(dim=-1) / 2.0


def opaque(
    function: Callable[[Tensor, Tensor], Tensor] = bowls,
    clients: int = 4,
    bounds: tuple[float, float] | None = None,
    **also: Any,
) -> Any:
    return black_box(function, dimension=D, clients=clients, bounds=bounds, device=DEVICE, **also)


def simulation(problem: Any, rounds: int = 3, strategy: dict[str, Any] | None = None, **client: Any) -> Simulation:
    chosen = {"selection": {"kind": "uniform", "fraction": 1.0}} | client.pop("tables", {})
    client = {"kind": "fedzo", "steps": 3} | client
    experiment = small(rounds, strategy={"kind": "fedzo", **(strategy or {})}, client=client, **chosen)
    return build_simulation(experiment, problem)


def final(simulated: Simulation) -> Tensor:
    for _ in simulated:
        pass
    return simulated.state.params


def replies(simulated: Simulation) -> Replies:
    """What four clients answer to the first order."""
    orders, _ = simulated.parts.strategy.ask(simulated.state, torch.arange(4))
    simulated.parts.engine.submit(orders)
    found = simulated.parts.engine.collect(All(), 0)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def quadratics() -> Quadratics:
    """Four clients of five examples each in three dimensions."""
    generator = np.random.Generator(np.random.PCG64(3))
    x, y = generator.normal(size=(20, 3)), generator.normal(size=20)
    return Quadratics(x, y, [np.arange(5 * client, 5 * client + 5) for client in range(4)])


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_with_all_coordinates_it_is_gradient_descent(quadratics: Quadratics, mu: float) -> None:
    """Central differences are exact on quadratics: FedAvg's and FedProx's ten local steps, in closed form."""
    client = {"steps": 10, "lr": 0.05, "proximal_mu": mu}
    values = client | {"kind": "fedzo", "optimizer": "sgd", "estimator": COORDINATES}
    found = quadratics.run(4, {"kind": "fedzo"}, values)
    wanted = quadratics.run(4, {"kind": "fedavg"}, client | {"kind": "sgd", "batch_size": "full"})
    assert np.allclose(found, wanted, rtol=0, atol=1e-12)
    theta = np.zeros(3)
    for _ in range(4):
        maps = [quadratics.local(client, 10, 0.05, mu) for client in range(4)]
        theta = sum(moved @ theta + fixed for moved, fixed in maps) / 4
    assert np.allclose(found, theta, rtol=0, atol=1e-12)


def test_small_radii_make_forward_differences_gradients(quadratics: Quadratics) -> None:
    """They are off by mu h_jj / 2 for coordinate j, so ten times less for a tenth of the radius."""
    base = {"kind": "fedzo", "steps": 10, "lr": 0.05, "optimizer": "sgd"}
    exact = quadratics.run(2, {"kind": "fedzo"}, base | {"estimator": COORDINATES})
    off = [
        np.abs(quadratics.run(2, {"kind": "fedzo"}, base | {"estimator": estimator}) - exact).max()
        for mu in (1e-3, 1e-4)
        for estimator in [COORDINATES | {"difference": "forward", "mu": mu}]
    ]
    assert 1e-5 < off[0] < 1e-2
    assert off[0] / off[1] == pytest.approx(10.0, rel=1e-3)


def test_one_step_of_equal_clients_is_central_descent_with_all_their_directions() -> None:
    """theta <- theta - lr (1 / (4 q)) sum over clients and directions, by hand."""
    simulated = simulation(
        opaque(lambda clients, x: bowls(torch.zeros_like(clients), x)), 5, steps=1, lr=0.1, optimizer="sgd",
        estimator={"kind": "differences", "count": 3, "mu": 0.01},
    )  # fmt: skip
    theta, clients = simulated.state.params.clone(), torch.arange(4, device=DEVICE)
    for number in range(5):
        u = draw(
            "gaussian", Streams(0), "directions/estimate", clients, 3, D, turn=number, dtype=torch.float64
        ).flatten(0, 1)
        values = (theta + 0.01 * u + 1.0).square().sum(dim=1) / 2.0 - (theta + 1.0).square().sum() / 2.0
        theta = theta - 0.1 * (values / 0.01) @ u / 12.0
    assert torch.allclose(final(simulated), theta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_loop_equals_stacked(name: str) -> None:
    client = {"estimator": ESTIMATORS[name][0], "batch_size": 4, "lr": 0.05}
    found = [
        final(simulation(small_problem(), tables={"engine": {"executor": executor}}, **client))
        for executor in ("stacked", "loop")
    ]
    assert torch.allclose(*found, rtol=0, atol=1e-9)
    assert not torch.allclose(found[0], small_problem().initial(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch_size", [4, "full"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_bit_depends_on_how_cohorts_are_cut(name: str, batch_size: int | str) -> None:
    client = {"estimator": ESTIMATORS[name][0], "batch_size": batch_size}
    found = []
    for chunk in (6, 1, 2, 4):
        simulated = simulation(small_problem(torch.float32), **client)
        executor = simulated.parts.engine.executor
        executor.cores, executor.memory = 1, chunk * executor._row_bytes
        assert executor.chunk == chunk
        found.append(final(simulated))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", OPAQUE)
def test_no_bit_depends_on_how_cohorts_of_black_boxes_are_cut(name: str) -> None:
    found = []
    for chunk in (4, 1, 2):
        simulated = simulation(opaque(noise=0.1), estimator=ESTIMATORS[name][0])
        executor = simulated.parts.engine.executor
        executor.memory = chunk * executor._row_bytes
        assert executor.chunk == chunk
        found.append(final(simulated))
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert not torch.equal(found[0], final(simulation(opaque(), estimator=ESTIMATORS[name][0])))


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_ledger_holds_what_the_formula_says(name: str, partial: bool) -> None:
    """T steps of so many evaluations for each of the clients that take part, nothing beside the published count."""
    problem = small_problem()
    tables = {"selection": {"kind": "uniform", "count": 2}} if partial else {}
    simulated = simulation(problem, 2, tables=tables, estimator=ESTIMATORS[name][0], steps=5, batch_size=4)
    clients = 2 if partial else 6
    orders, _ = simulated.parts.strategy.ask(simulated.state, torch.arange(6))
    assert simulated.parts.engine.executor.assign(orders).cost.queries == 5 * ESTIMATORS[name][1]
    for _ in range(2):
        row = simulated.step()
        assert row["queries"] == clients * 5 * ESTIMATORS[name][1]
        assert row["extra_queries"] == 0
        # d = 83 numbers of 8 bytes each way
        assert (row["bytes_up"], row["bytes_down"]) == (clients * 83 * 8, clients * 83 * 8)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_is_the_same_after_a_restart_and_clients_remember(name: str) -> None:
    estimator = ESTIMATORS[name][0]
    whole, first, second = (simulation(small_problem(), 4, estimator=estimator) for _ in range(3))
    first.step()
    second.restore(first.snapshot())
    assert torch.equal(final(whole), final(second))
    held = whole.parts.engine.executor.store.snapshot()
    if name in ("spsa", "spsa_gc"):
        assert held["estimates"].tolist() == [4 * 3] * 6  # rounds times steps
    elif name in ("forward", "central", "forward gradient"):
        assert set(held) == {"clients"}


def test_clients_that_were_not_chosen_remember_what_they_did() -> None:
    simulated = simulation(
        small_problem(), 4, tables={"selection": {"kind": "uniform", "count": 2}}, estimator=ESTIMATORS["spsa"][0]
    )
    final(simulated)
    # four rounds of two clients with three estimates each
    assert float(simulated.parts.engine.executor.store.snapshot()["estimates"].sum()) == 4 * 2 * 3


def test_the_proximal_term_pulls_back() -> None:
    """One round on bowls with exact gradients: for bowls the pull of mu is that of a second bowl around theta.

    From theta = 0, T steps of lr on |z - s|^2 / 2 + mu |z|^2 / 2 end at (1 - (1 - lr (1 + mu))^T) s / (1 + mu).
    """
    gone = {}
    for mu in (0.0, 3.0):
        simulated = simulation(
            opaque(), 1, steps=6, lr=0.1, optimizer="sgd", proximal_mu=mu, estimator=COORDINATES | {"count": D}
        )
        gone[mu] = replies(simulated).payload["delta"]
        share = (1.0 - (1.0 - 0.1 * (1.0 + mu)) ** 6) / (1.0 + mu)
        assert torch.allclose(gone[mu], share * SHIFTS.unsqueeze(1).expand(4, D), rtol=0, atol=1e-12)
    assert bool((gone[3.0].norm(dim=1) <= gone[0.0].norm(dim=1)).all())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_projection_keeps_every_client_in_the_box(optimizer: str) -> None:
    """Downhill is out of the box: clients end at its corner, or leave it where they are not projected."""
    for project, end in ((True, 1.0), (False, 5.0)):
        problem = opaque(lambda _, x: -10.0 * x.sum(dim=-1), bounds=(-1.0, 1.0), start=0.0)
        client = {"lr": 0.5, "steps": 10, "optimizer": optimizer, "project": project}
        found = final(simulation(problem, 1, estimator=COORDINATES | {"count": D}, **client))
        assert torch.allclose(found.clamp(max=5.0), torch.full_like(found, end), rtol=0, atol=1e-6)


def test_a_client_whose_values_are_not_numbers_is_left_out_and_remembers_nothing_of_it() -> None:
    """Client 2 of four answers NaN."""

    def broken(clients: Tensor, x: Tensor) -> Tensor:
        return torch.where((clients == 2).unsqueeze(1), torch.nan, bowls(clients, x))

    simulated = simulation(opaque(broken), 1, estimator=ESTIMATORS["spsa_gc"][0])
    found = replies(simulated)
    assert (found.clients.tolist(), found.failed.tolist()) == ([0, 1, 3], [2])
    held = simulated.parts.engine.executor.store.snapshot()
    assert dict(zip(held["clients"].tolist(), held["estimates"].tolist(), strict=True)) == {0: 3, 1: 3, 2: 0, 3: 3}


@pytest.mark.parametrize("name", ["forward gradient", "guided forward gradient"])
def test_forward_gradients_of_black_boxes_are_refused(name: str) -> None:
    with pytest.raises(fedsim.InputError, match="client"):
        final(simulation(opaque(), 1, estimator=ESTIMATORS[name][0]))


def test_batches_of_black_boxes_are_refused() -> None:
    with pytest.raises(fedsim.InputError, match="batch_size"):
        final(simulation(opaque(), 1, batch_size=8))


# For each option of an estimator, another value that must change the run, and what it needs to matter.
OTHER: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("differences", "difference", "central", {}),
    ("differences", "directions", "rademacher", {}),
    ("differences", "count", 4, {}),
    ("differences", "mu", 0.3, {}),
    ("differences", "scaling", "plain", {"directions": "sphere"}),
    ("spsa", "directions", "rademacher", {}),
    ("spsa", "count", 4, {}),
    ("spsa", "c", 0.5, {}),
    ("spsa", "gamma", 0.9, {"c": 0.5}),
    ("spsa", "offset", 5.0, {}),
    ("spsa", "alpha", 0.9, {}),
    ("spsa_gc", "beta", 0.5, {}),
    ("spsa_gc", "form", "lookahead", {}),
    ("spsa_gc", "reset", True, {}),
    ("residual", "directions", "sphere", {}),
    ("residual", "mu", 0.3, {}),
    ("prior", "weight", 0.5, {}),
    ("prior", "count", 4, {}),
    ("prior", "mu", 0.3, {}),
    ("prior", "samples", 3, {}),
    ("forward_gradient", "directions", "rademacher", {}),
    ("forward_gradient", "count", 4, {}),
    ("forward_gradient", "guess", "momentum", {}),
    ("forward_gradient", "beta", 0.5, {"guess": "momentum"}),
]


@pytest.mark.parametrize(("kind", "option", "value", "also"), OTHER)
def test_every_option_of_an_estimator_moves_something(kind: str, option: str, value: Any, also: dict[str, Any]) -> None:
    found = [
        final(simulation(small_problem(), estimator={"kind": kind, **also, **more}, optimizer="sgd", lr=0.05))
        for more in ({}, {option: value})
    ]
    assert not torch.allclose(*found, rtol=1e-6, atol=0)


def test_every_option_of_an_estimator_is_in_the_list_above() -> None:
    for kind in {kind for kind, *_ in OTHER}:
        made = plugins.make("estimators", kind, "estimator")
        own = {option for other, option, *_ in OTHER if other == kind or (kind == "spsa_gc" and other == "spsa")}
        assert {field.name for field in dataclasses.fields(made)} == own


def test_options_of_the_estimator_are_checked_when_the_experiment_is_read() -> None:
    with pytest.raises(fedsim.InputError, match=r"client.estimator.*mu"):
        fedsim.experiment(rounds=1, client={"kind": "fedzo", "estimator": {"kind": "differences", "mu": -1.0}})
    with pytest.raises(fedsim.InputError, match=r"client.estimator.count = 30: coordinate directions are at most"):
        simulation(opaque(), 1, estimator=COORDINATES | {"count": 30})


def test_a_guard_keeps_the_model_where_the_candidate_is_infinite_for_everybody() -> None:
    """The server steps 50 times as far as the clients went, out of the ball in which values are finite."""

    def walled(clients: Tensor, x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(dim=-1) > 2.0, torch.inf, bowls(clients, x))

    settings = {"kind": "fedzo", "guard": True, "server_lr": 50.0}
    simulated = simulation(opaque(walled), 2, strategy=settings, estimator={"kind": "differences"}, lr=0.05)
    start = simulated.state.params
    assert [row["accepted"] for row in simulated] == [0.0, 0.0]
    assert torch.equal(simulated.state.params, start)


@pytest.mark.parametrize("batch_size", ["full", 4])
def test_a_round_in_which_nobody_answers_leaves_the_model(batch_size: int | str) -> None:
    """Every client's machine fails at once, and is repaired a thousand seconds later."""
    tables = {"devices": {"failure": {"mean_seconds": 1e-6, "repair_seconds": 1000.0}}}
    simulated = simulation(small_problem(), 2, batch_size=batch_size, tables=tables)
    start = simulated.state.params
    assert [row["clients"] for row in simulated] == [0, 0]
    assert torch.equal(simulated.state.params, start)


def test_scores_of_black_boxes_are_answers_like_any_other() -> None:
    """Power of choice asks all four for F at the model: noisy, counted, and a step of time each."""
    noisy = black_box(bowls, dimension=D, clients=4, bounds=None, noise=1.0)
    choice = {"selection": {"kind": "power_of_choice", "count": 2, "pool": 4}, "devices": {"per": "step"}}
    simulated = simulation(noisy, 1, tables=choice, estimator={"kind": "residual"})
    row = simulated.step()
    # Two clients take three steps of one evaluation; before that four have told one value.
    assert (row["queries"], row["time"]) == (4 + 2 * 3, 1.0 + 3.0)


def test_transforms_go_with_fedzo_and_name_what_they_go_over_with_its_guard() -> None:
    noise = {"kind": "noise", "std": 0.1}
    client = {"kind": "fedzo"}
    for where in ("transforms", "order_transforms"):
        final(simulation(opaque(), 1, tables={where: [noise]}))
    guarded = {"rounds": 1, "client": client, "strategy": {"kind": "fedzo", "guard": True}}
    with pytest.raises(fedsim.InputError, match="transforms"):
        fedsim.experiment(**guarded, transforms=[noise])
    # The values that judge a step come in a window of their own, where there is no change to go over.
    told, spent = {}, set()
    for vectors in ("delta", "values", None):
        listed = [] if vectors is None else [noise | {"vectors": [vectors]}]
        made = small(1, strategy=guarded["strategy"], client=client, transforms=listed)
        told[vectors] = replies(build_simulation(made, opaque())).payload["delta"]
        spent.add(build_simulation(made, opaque()).step()["bytes_up"])
    assert torch.equal(told["values"], told[None])
    assert not torch.equal(told["delta"], told[None])
    assert len(spent) == 1

"""FZooS, against its own rule applied to every value that its clients have asked for.

With `active = 0` the points that a client asks for while searching are its models, so that each step can be computed
again from what was recorded: g = grad mu_i(z) + gamma_t (grad mu(z; w) - grad mu(z; w_i)), z <- z - lr g.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.scratch import Scratch
from fedsim.exchange.messages import Order
from fedsim.problems.black_box import BlackBox
from fedsim.problems.own_functions import black_box
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order.surrogates.gaussian_process import fit
from fedsim.zeroth_order.surrogates.kernels import Matern52
from fedsim.zeroth_order.surrogates.random_features import draw

N, D, T, M, INITIAL, LAST, LR = 3, 4, 4, 200, 3, 5, 0.01
FEW = {"features": M, "feature_points": 60, "history": 100, "neighbours": 40, "candidates": 12, "last_candidates": 12}
CLIENT: dict[str, Any] = {**FEW, "steps": T, "lr": LR, "initial": INITIAL, "active": 2, "last_active": LAST}
PLAIN = {"optimizer": "sgd", "active": 0}
CENTRES = torch.linspace(0.2, 0.9, N * D, dtype=torch.float64, device=DEVICE).view(N, D).flip(1)


@dataclass
class Functions:
    """f_c(x) = |x - m_c|^2 + 0.3 sin(8 x_1), and every question: (clients [k], x [k, Q, d], values [k, Q])."""

    centres: Tensor = field(default_factory=lambda: CENTRES)
    asked: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, clients: Tensor, x: Tensor) -> Tensor:
        values = (x - self.centres[clients].unsqueeze(1)).square().sum(-1) + 0.3 * torch.sin(8 * x[..., 0])
        self.asked.append((clients, x.clone(), values))
        return values

    def problem(self, **options: Any) -> BlackBox:
        given = {"dimension": self.centres.shape[1], "clients": len(self.centres), "device": DEVICE}
        return black_box(self, **(given | options))


def simulated(
    client: dict[str, Any] | None = None,
    strategy: dict[str, Any] | None = None,
    problem: Any = None,
    count: int | None = None,
    **tables: Any,
) -> Simulation:
    problem = Functions().problem() if problem is None else problem
    experiment = fedsim.experiment(
        rounds=tables.pop("rounds", 10),
        client={"kind": "fzoos", **CLIENT, **(client or {})},
        strategy={"kind": "fzoos", **(strategy or {})},
        selection={"kind": "uniform", "count": count or problem.num_clients},
        evaluation={"every": 0},
        **tables,
    )
    return build_simulation(experiment, problem)


def after(rounds: int, *arguments: Any, **tables: Any) -> Tensor:
    """The model after so many rounds."""
    run = simulated(*arguments, **tables)
    for _ in range(rounds):
        run.step()
    return run.state.params


def remembered(run: Simulation) -> dict[str, Tensor]:
    """What clients remember, in the order of their ids."""
    saved = run.snapshot()["engine"]["store"]
    order = saved["clients"].argsort()
    return {name: value[order.to(value.device)] for name, value in saved.items()}


def pairs(functions: Functions, last: int | None = None) -> tuple[Tensor, Tensor]:
    """All points and values so far, [N, n, d] and [N, n], where everybody was always asked."""
    asked = functions.asked[:last]
    assert all(clients.tolist() == list(range(N)) for clients, _, _ in asked)
    return torch.cat([x for _, x, _ in asked], dim=1), torch.cat([values for _, _, values in asked], dim=1)


def features_of(seed: int) -> Any:
    return draw(Streams(seed), M, D, device=DEVICE)


@pytest.mark.parametrize("decay", ["constant", "inverse", "adaptive"])
def test_every_step_of_the_second_round_is_the_rule(decay):
    functions, gamma = Functions(), 0.7
    client = PLAIN | {"decay": decay, "gamma": gamma, "feature_seed": 5, "project": False}
    run = simulated(client, problem=functions.problem(), seed=3)
    run.step()
    own, mean, before = remembered(run)["weights"], run.state.memory["surrogate"], len(functions.asked)
    torch.testing.assert_close(mean, own.mean(dim=0))
    run.step()
    features, factors = features_of(5), []
    for step in range(T):
        points, values = pairs(functions, before + step + 1)
        z, number = points[:, -1], torch.full((N,), points.shape[1], device=DEVICE)
        gradient = fit(Matern52(), points, values, number).gradient(z.unsqueeze(1))[:, 0]
        correction = features.gradient(mean, z) - features.gradient(own, z)
        cosine = torch.cosine_similarity(features.gradient(own, z), gradient, dim=1)
        factor = {"constant": torch.ones(N), "inverse": torch.ones(N) / (step + 1), "adaptive": cosine.clamp(min=0)}
        factors.append(gamma * factor[decay].to(z).unsqueeze(1))
        expected = z - LR * (gradient + factors[-1] * correction)
        torch.testing.assert_close(functions.asked[before + step + 1][1][:, 0], expected, rtol=0, atol=1e-8)
        assert (LR * factors[-1] * correction).abs().max() > 1e-5
    assert all(factor.max() > 0.05 for factor in factors)


def test_where_the_frozen_surrogate_points_the_other_way_it_corrects_nothing():
    runs = {gamma: simulated(PLAIN | {"decay": "adaptive", "gamma": gamma, "steps": 1}) for gamma in (0.0, 1.0)}
    runs[0.0].step()
    saved = runs[0.0].snapshot()
    for sign, same in ((1, False), (-1, True)):
        saved["engine"]["store"]["weights"] *= sign
        for run in runs.values():
            run.restore(saved)
            run.step()
        assert torch.equal(runs[0.0].state.params, runs[1.0].state.params) == same


def test_the_first_round_follows_the_process_alone():
    functions = Functions()
    run = simulated(PLAIN, problem=functions.problem())
    run.step()
    start = torch.full((D,), 0.5, dtype=torch.float64, device=DEVICE)
    assert functions.asked[0][1].shape == (N, INITIAL, D)
    assert 0.005 < (functions.asked[0][1] - start).abs().max() <= 0.01
    for step in range(T):
        points, values = pairs(functions, step + 2)
        z, number = points[:, -1], torch.full((N,), points.shape[1], device=DEVICE)
        gradient = fit(Matern52(), points, values, number).gradient(z.unsqueeze(1))[:, 0]
        torch.testing.assert_close(functions.asked[step + 2][1][:, 0], z - LR * gradient, rtol=0, atol=1e-9)
    reached = functions.asked[T + 1][1][:, 0]
    torch.testing.assert_close(run.state.params, reached.mean(dim=0), rtol=0, atol=1e-14)


def test_what_is_shared():
    functions = Functions()
    run = simulated(problem=functions.problem(), seed=3)
    run.step()
    model, reached = run.state.params, remembered(run)["reached"]
    (_, at, _), (_, around, _) = functions.asked[-2:]
    assert torch.equal(at, model.expand(N, 1, D))
    radius = (model - reached).abs().mean(dim=1) / 2
    away = (around - model).abs().amax(dim=(1, 2))
    assert around.shape == (N, LAST, D)
    assert (away <= radius).all()
    assert (away > radius / 2).all()
    points, values = pairs(functions)
    number = torch.full((N,), points.shape[1], device=DEVICE)
    expected = features_of(0).fit(points, values, number)
    torch.testing.assert_close(remembered(run)["weights"], expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_candidates_are_where_least_is_known():
    """Of 12 candidates within 0.01, the 2 with the largest trace under the process of the step before."""
    functions = Functions()
    simulated({"candidates": 2}, problem=functions.problem()).step()
    wide = Functions()
    simulated(problem=wide.problem()).step()
    points, values = pairs(wide, 2)
    process = fit(Matern52(), points, values, torch.full((N,), points.shape[1], device=DEVICE))
    z, picked = wide.asked[2][1], wide.asked[3][1]
    assert picked.shape == (N, 2, D)
    assert (picked - z).abs().max() <= 0.01
    # With 2 candidates, these are the first 2 of the same 12.
    assert torch.equal(functions.asked[2][1], z)
    first = functions.asked[3][1]
    assert (process.uncertainty(picked).sum(dim=1) >= process.uncertainty(first).sum(dim=1)).all()
    assert not torch.equal(picked, first)


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("guard", [True, False])
def test_queries_and_bytes(correction, guard):
    """With T = 10 steps, 5 active queries after all but the last and 50 last ones: 1 + 10 + 45 = 56 a search, and
    1 + 50 when sharing, 107 = 6 T + 47 in all; 10 more in the first round. 8 bytes a number: up d and M; down d for the
    search, with M from the second round, and d for sharing. A guard asks for two values at first, then for one.
    """
    client = {"steps": 10, "active": 5, "last_active": 50, "last_candidates": 60, "initial": 10}
    run = simulated(client, {"correction": correction, "guard": guard})
    for number in range(3):
        row = run.step()
        measured = guard * (1 + (number == 0))
        assert row["queries"] == N * ((107 if correction else 56) + 10 * (number == 0) + measured)
        assert row["extra_queries"] == N * measured
        assert row["bytes_up"] == N * 8 * (D + correction * M + measured)
        assert row["bytes_down"] == N * 8 * (D + correction * (D + (number > 0) * M) + measured * D)


def test_what_is_asked_is_what_is_counted():
    functions = Functions()
    run = simulated(problem=functions.problem(), count=2)
    for _ in range(4):
        before = len(functions.asked)
        row = run.step()
        assert row["queries"] == sum(values.numel() for _, _, values in functions.asked[before:])


def test_a_single_client_has_no_correction():
    def ends(gamma: float, clients: int) -> Tensor:
        return after(3, {"gamma": gamma}, problem=Functions(CENTRES[:clients]).problem())

    assert torch.equal(ends(0.0, 1), ends(1.0, 1))
    assert not torch.equal(ends(0.0, 2), ends(1.0, 2))


def test_no_gamma_is_no_correction():
    """The first round has none. Later ones differ in what was asked, even with no last queries: f(x) once more, which
    takes nothing but a place in the history, and moves the rounding errors of a matrix of condition 1e7.
    """
    without = {"correction": False}
    assert torch.equal(after(1, {"gamma": 0.0}), after(1, {}, without))
    assert torch.equal(after(1, {"gamma": 1.0}), after(1, {}, without))
    plain = PLAIN | {"last_active": 0}
    expected = after(3, plain, without)
    torch.testing.assert_close(after(3, plain | {"gamma": 0.0}), expected, rtol=0, atol=1e-7)
    assert (after(3, plain | {"gamma": 1.0}) - expected).abs().max() > 1e-4


def test_the_history_is_bounded():
    functions = Functions()
    run = simulated({"history": 20}, problem=functions.problem())
    for _ in range(4):
        run.step()
    points, values = pairs(functions)
    state, number = remembered(run), points.shape[1]
    assert state["count"].tolist() == [number] * N
    assert number > 60
    places = torch.arange(number - 20, number, device=DEVICE)
    assert torch.equal(state["points"][:, places % 20], points[:, -20:])
    assert torch.equal(state["values"][:, places % 20], values[:, -20:])


@pytest.mark.parametrize("options", [{"history": 10}, {"history": 1}, {"neighbours": 1}, {"feature_points": 1}])
def test_small_surrogates(options):
    run = simulated({"neighbours": 40, **options})
    for _ in range(3):
        run.step()
    assert run.state.params.isfinite().all()


def test_values_that_are_not_numbers_are_dropped_and_counted():
    functions = Functions()

    def holed(clients: Tensor, x: Tensor) -> Tensor:
        values = functions(clients, x)
        # A quarter of the points around the models, by their digits from the seventh on.
        return torch.where(((1e6 * x[..., 0]).frac() > 0.75) & (x.shape[1] > 1), torch.nan, values)

    run = simulated(problem=black_box(holed, dimension=D, clients=N, device=DEVICE))
    asked = [run.step()["queries"] for _ in range(2)]
    # The initial 3 in the first round; a search has 1 + T + 2 (T - 1), sharing 1 + 5.
    assert asked == [N * (INITIAL + 17), N * 17]
    sound = sum(
        ((1e6 * x[..., 0]).frac() <= 0.75).sum(dim=1) if x.shape[1] > 1 else torch.ones_like(clients)
        for clients, x, _ in functions.asked
    )
    assert remembered(run)["count"].tolist() == sound.tolist()
    assert sound.sum() < N * 35
    assert run.state.params.isfinite().all()


def test_a_client_whose_work_fails_remembers_nothing_of_it():
    """From its second search on, client 1's values are +-1.5e308 by turns: their range is infinite, its model NaN."""
    functions, large = Functions(), [False]

    def broken(clients: Tensor, x: Tensor) -> Tensor:
        values = functions(clients, x)
        signs = 1.5e308 * (2 * ((1e6 * x[..., 0]).frac() > 0.5).to(x) - 1)
        return torch.where((clients == 1).unsqueeze(1) & large[0], signs, values)

    run = simulated(problem=black_box(broken, dimension=D, clients=N, device=DEVICE))
    run.step()
    before = remembered(run)
    large[0] = True
    row = run.step()
    assert row["failed"] > 0
    now = remembered(run)
    for name in ("points", "values", "count", "weights"):
        assert torch.equal(now[name][1], before[name][1]), name
        assert not torch.equal(now[name][0], before[name][0]), name
    large[0] = False
    run.step()
    assert remembered(run)["count"][1] == before["count"][1] + 17


def test_clients_that_join_later_have_no_correction_in_their_first_round():
    corrected, without = (
        simulated({"gamma": gamma}, problem=Functions(CENTRES).problem(), count=2) for gamma in (1, 0)
    )
    corrected.step()
    without.restore(corrected.snapshot())
    known = remembered(corrected)["clients"].tolist()
    assert remembered(corrected)["fitted"].tolist() == [1, 1]
    sent = []
    for run in (corrected, without):
        executor = run.parts.engine.executor
        orders, _ = run.parts.strategy.ask(run.state, torch.arange(N))
        sent.append(executor.execute(executor.assign(orders)).payload["delta"])
    for client in range(N):
        assert torch.equal(sent[0][client], sent[1][client]) == (client not in known)
    for _ in range(4):
        corrected.step()
    assert remembered(corrected)["fitted"].tolist() == [1] * N


@pytest.mark.parametrize("guard", [False, True])
def test_with_a_guard_f_never_rises(guard):
    run = simulated({"lr": 0.3}, {"guard": guard})
    problem = run.parts.problem
    values = [problem.evaluate(run.state.params, clients=False)["value"]]
    for _ in range(5):
        run.step()
        values.append(problem.evaluate(run.state.params, clients=False)["value"])
    assert (values == sorted(values, reverse=True)) == guard


@pytest.mark.parametrize("project", [False, True])
def test_projection(project):
    """From a corner, with candidates on both sides of it."""
    functions = Functions(CENTRES - 1.0)  # the centres are outside of the box
    run = simulated({"project": project}, problem=functions.problem(start=0.0))
    for _ in range(2):
        run.step()
    least = min(x.min().item() for _, x, _ in functions.asked)
    assert least == 0.0 if project else least < -0.02


@pytest.mark.parametrize(
    "problem",
    [{"dimension": 1}, {"dimension": 1, "clients": 1}, {"dimension": 6, "heterogeneity": 0.0}, {"noise": 0.1}],
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_synthetic_functions(problem, precision):
    table = {"kind": "benchmark", "dimension": 3, "heterogeneity": 1.0, **problem}
    experiment = fedsim.experiment(rounds=1, problem=table, engine={"precision": precision, "device": DEVICE})
    built = build_problem(experiment)
    run = simulated({"steps": 6}, problem=built, engine={"precision": precision})
    first = built.evaluate(built.initial(), clients=False)["gap"]
    for _ in range(4):
        run.step()
    assert built.evaluate(run.state.params, clients=False)["gap"] < first


def test_how_it_is_executed_changes_no_bit():
    """One client at a time, all at once, on several cores, or with nothing computed before at hand."""
    wide = {"features": 1500, "feature_points": 90}

    def ends(scratch: bool = True, cores: int = 1, **engine: Any) -> Tensor:
        run = simulated(wide, problem=Functions().problem(), engine=engine)
        executor = run.parts.engine.executor
        executor.cores = cores
        if cores > 1:
            executor._row_operations = 10**9
        if not scratch:
            executor.scratch = Scratch(0)
        for _ in range(4):
            run.step()
        assert (executor.scratch.nbytes > 0) == scratch
        return run.state.params

    expected = ends()
    assert torch.equal(ends(executor="loop"), expected)
    assert torch.equal(ends(memory_mib=1), expected)
    assert torch.equal(ends(cores=2), expected)
    assert torch.equal(ends(scratch=False), expected)


@pytest.mark.parametrize("count", [2, N])
def test_a_restored_run_ends_like_an_uninterrupted_one(count):
    whole, first, second = (simulated({}, {"guard": True}, count=count, rounds=5) for _ in range(3))
    for _ in range(2):
        first.step()
    saved = first.snapshot()
    second.step()
    second.restore(saved)
    first.step()  # goes on, and leaves in its own memory what is of no use
    first.restore(saved)
    for run in (whole, first, second):
        for _ in run:
            pass
    assert torch.equal(whole.state.params, second.state.params)
    assert torch.equal(whole.state.params, first.state.params)


def test_declared_work():
    from clients.fzoos import FZooS

    sent = {"params": torch.zeros(50)}
    costs = [FZooS().cost(Order(action, torch.arange(2), sent), torch.ones(2)) for action in ("train", "share")]
    assert [(cost.queries, cost.bytes_up) for cost in costs] == [(56, 4 * 50), (51, 4 * 10_000)]
    assert not any(cost.steps.any() for cost in costs)
    # 13 factorisations of 150^3 / 6 and 150^2 d, two gradients of M d, and a tenth of 50 rows of M (d + 500).
    assert FZooS().operations([(5, 9), (5,)]) == 13 * 562_500 + 1_125_000 + 1_000_000 + 27_500_000
    assert FZooS().numbers(50, 1) < 2**21


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_published_claim(seed):
    """Five quadratics of 50 coordinates, C = 5: a tenth of the gap in 5 rounds and 2700 evaluations, where FedZO takes
    1.7 times the rounds and 3 times the evaluations; a hundredth in 20 rounds, where FZooS without its correction does
    not get. FedZO does not either on the functions of seeds 0 and 1; on those of seed 2 it does, after 12 rounds.
    """
    estimator = {"kind": "differences", "directions": "orthonormal", "scaling": "plain"}
    methods: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "fzoos": ({"kind": "fzoos"}, {"kind": "fzoos"}),
        "alone": ({"kind": "fzoos"}, {"kind": "fzoos", "correction": False}),
        "fedzo": ({"kind": "fedzo", "estimator": estimator}, {"kind": "fedzo"}),
    }
    reached: dict[str, dict[float, tuple[float, float]]] = {}
    for name, (client, strategy) in methods.items():
        experiment = fedsim.experiment(
            seed=seed,
            rounds=20,
            problem={"kind": "benchmark", "dimension": 50, "heterogeneity": 5.0},
            client=client,
            strategy=strategy | {"guard": True},
            engine={"precision": "float64"},
        )
        result = fedsim.run(experiment, save=False)
        first = result.problem.evaluate(result.problem.initial(), clients=False)["gap"]
        spent, reached[name] = 0, {0.1: (math.inf, math.inf), 0.01: (math.inf, math.inf)}
        for row in result.history:
            spent += row["queries"] - row["extra_queries"]
            for share, (round_, _) in reached[name].items():
                if round_ == math.inf and row["gap"] <= share * first:
                    reached[name][share] = (row["round"], spent)
    rounds, queries = reached["fzoos"][0.1]
    assert rounds <= 5
    assert queries <= 2700
    assert reached["fedzo"][0.1][0] >= 1.7 * rounds
    assert reached["fedzo"][0.1][1] >= 3 * queries
    assert reached["fzoos"][0.01][0] <= 20
    assert reached["alone"][0.01][0] == math.inf
    assert reached["fedzo"][0.01][0] >= 1.7 * reached["fzoos"][0.01][0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"active": 9, "candidates": 8}, "client.active = 9: there are only 8 candidates"),
        ({"last_active": 9, "last_candidates": 8}, "client.last_active = 9: there are only 8 last_candidates"),
        ({"batch_size": 4}, "client.batch_size = 4: surrogates are of one function"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        fedsim.experiment(rounds=1, strategy={"kind": "fzoos"}, client={"kind": "fzoos", **options})

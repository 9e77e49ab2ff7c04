"""Runs whose local steps are private: what each client spends, where they end, and what no account covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting import rdp
from torch import nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.exchange.messages import Order
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor, build_simulation
from fedsim.running.private_steps import front, noisy_steps, steps_guard
from fedsim.testing.problems import small_problem

CLIENT = {"kind": "sgd", "epochs": 2, "batch_size": 2, "lr": 0.1}
PRIVATE = {"level": "example", "clip": 0.5, "noise_multiplier": 1.0, "delta": 1e-2}
OPEN = {"level": "example", "noise_multiplier": 0.0, "delta": 1e-2}


def small(dtype: torch.dtype = torch.float64) -> Supervised:
    """Clients of three sizes: each size is a rate, whose divergences take their time."""
    return small_problem(dtype, sizes=(6, 4, 6, 1, 4, 4))


def made(**tables: Any) -> fedsim.Experiment:
    given = {"rounds": 4, "client": CLIENT, "privacy": PRIVATE, **tables}
    return fedsim.experiment(**{name: table for name, table in given.items() if table is not None})


def run(dtype: torch.dtype = torch.float64, **tables: Any) -> fedsim.Result:
    return fedsim.run(made(**tables), problem=small(dtype), save=False)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize("client", [{}, {"optimizer": "adam"}, {"weight_decay": 0.1}])
def test_without_noise_and_bound_full_batches_are_plain_ones_bit_by_bit(executor, client):
    tables = {"client": {**CLIENT, "batch_size": "full", "epochs": 3, **client}, "engine": {"executor": executor}}
    private = run(torch.float32, privacy=OPEN, **tables)
    plain = run(torch.float32, privacy=None, **{**tables, "client": {**tables["client"], "steps": 3, "epochs": None}})
    if executor == "loop" and not client:  # whose steps are taken in one go, of sums in another order
        assert torch.allclose(private.params, plain.params, rtol=0.0, atol=1e-6)
    else:
        assert torch.equal(private.params, plain.params)
    assert "epsilon" not in private.summary


def test_a_bound_that_nothing_reaches_changes_nothing_of_the_same_batches():
    assert torch.allclose(run(privacy=OPEN).params, run(privacy=OPEN | {"clip": 1e9}).params, rtol=0.0, atol=1e-13)
    assert not torch.allclose(run(privacy=OPEN).params, run(privacy=OPEN | {"clip": 0.1}).params, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("clipping", ["flat", "layers", "sizes"])
def test_a_stack_is_the_loop(clipping):
    options = PRIVATE | {"clipping": clipping}
    tables = {"rounds": 1, "client": {**CLIENT, "epochs": 1}}
    stacked, loop = (run(privacy=options, engine={"executor": name}, **tables).params for name in ("stacked", "loop"))
    assert torch.allclose(stacked, loop, rtol=0.0, atol=1e-12)
    assert not torch.allclose(stacked, run(privacy=PRIVATE | {"clip": 0.4}, **tables).params)


@pytest.mark.parametrize("name", ["stacked", "loop", "trimmed"])
def test_a_client_sends_the_same_bits_in_any_company(name):
    """Also where batches are as wide as the company needs, of a model that allows it, and clients with up to 90."""
    if name == "trimmed":
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
        problem = small_problem(torch.float32, model, sizes=(90, 20, 60, 1, 40, 4))
    else:
        problem = small(torch.float32)
    engine = {"executor": "loop" if name == "loop" else "stacked"}
    executor = build_executor(made(engine=engine, client={**CLIENT, "batch_size": 6}), problem)
    assert executor.network is not None
    assert executor.network.trims == (name == "trimmed")

    def sent(clients: Sequence[int]) -> torch.Tensor:
        order = Order("train", torch.tensor(clients), {"params": problem.initial()}, {}, 1)
        return executor.execute(executor.assign(order)).payload["delta"]

    whole = sent(range(6))
    assert torch.equal(sent([2]), whole[2:3])
    assert torch.equal(sent([1, 4]), whole[[1, 4]])


def spent(rate: float, multiplier: float, steps: int, delta: float = 1e-2) -> float:
    """By the library itself."""
    account = rdp.RdpAccountant()
    noise = dp_accounting.GaussianDpEvent(multiplier)
    account.compose(noise if rate >= 1.0 else dp_accounting.PoissonSampledDpEvent(rate, noise), steps)
    return float(account.get_epsilon(delta))


def test_every_client_has_its_own_epsilon_and_rows_the_worst():
    """A client with n examples takes 2 ceil(n / 2) steps a round, in which each is with probability 2 / n."""
    problem = small()
    result = run(selection={"kind": "round_robin", "count": 3})
    sizes = problem.sizes.tolist()
    assert len(set(sizes)) > 1
    each = [spent(2 / size, 1.0, 2 * 2 * -(-size // 2)) for size in sizes]  # in two of four rounds
    assert result.summary["epsilons"] == pytest.approx(each)
    assert result.summary["epsilon"] == max(result.summary["epsilons"]) == result.history["epsilon"][-1]
    assert result.summary["neighbours"] == "add or remove one example"
    assert len(set(result.history["epsilon"])) > 1


def test_rows_look_at_no_more_than_they_have_to():
    assert front([(0.1, 5), (0.2, 5), (0.2, 4), (0.1, 9), (0.05, 9), (0.3, 1)]) == [(0.3, 1), (0.2, 5), (0.1, 9)]
    tables = {"rounds": 1, "client": {**CLIENT, "batch_size": 4}}
    by_pld = run(privacy=PRIVATE | {"accountant": "pld"}, **tables)
    assert by_pld.summary["epsilon"] == max(by_pld.summary["epsilons"])
    assert by_pld.summary["epsilon"] < run(**tables).summary["epsilon"]


@pytest.mark.parametrize(
    ("selection", "client"),
    [
        pytest.param({"kind": "uniform", "fraction": 1.0}, {"batch_size": 3}, marks=pytest.mark.slow),
        ({"kind": "round_robin", "count": 3}, {"epochs": None, "steps": 2}),
    ],
)
def test_a_target_is_not_exceeded_by_any_client(selection, client):
    own = {name: value for name, value in (CLIENT | client).items() if value is not None}
    options = {"level": "example", "clip": 0.5, "epsilon": 5.0, "delta": 1e-2}
    result = run(privacy=options, selection=selection, client=own, rounds=2)
    assert 4.98 < result.summary["epsilon"] <= 5.0


def test_a_budget_ends_the_run_before_a_client_exceeds_it():
    everybody = {"kind": "uniform", "fraction": 1.0}
    epsilons = run(selection=everybody).history["epsilon"]
    budget = (epsilons[1] + epsilons[2]) / 2
    result = run(selection=everybody, privacy=PRIVATE | {"budget": budget})
    assert (result.status, len(result.history)) == ("stopped", 2)
    assert result.reason == f"another round would spend more than epsilon {budget:g}"


def test_a_run_goes_on_as_if_there_had_been_no_interruption():
    experiment = made(selection={"kind": "poisson", "fraction": 0.5}, rounds=4)
    whole, first, second = (build_simulation(experiment, small()) for _ in range(3))
    rows = [first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    rows += second
    assert [{**row, "wall": 0} for row in rows] == [{**row, "wall": 0} for row in whole]
    assert second.privacy == whole.privacy


OTHERS = [
    {"strategy": "scaffold", "client": {"kind": "scaffold", "steps": 2, "batch_size": 2}},
    {"strategy": "feddyn", "client": {"kind": "feddyn", "steps": 2, "batch_size": 2}},
    {"strategy": "fednova"},
    {"strategy": {"kind": "fedbuff", "size": 2}, "selection": {"kind": "uniform", "count": 3}},
    {
        "strategy": "dpsgd",
        "client": {"kind": "dpsgd", "steps": 2, "batch_size": 2},
        "evaluation": {"clients": False},
    },
    {"aggregation": "median", "transforms": [{"kind": "integer"}]},
    {"faults": {"drop_before": 0.2}, "client": {**CLIENT, "optimizer": "adam"}},
]


@pytest.mark.parametrize("tables", OTHERS)
def test_whatever_is_made_of_private_steps_is_private(tables):
    result = run(**tables, rounds=3)
    assert result.status == "finished"
    assert result.summary["epsilon"] > 0.0
    assert not torch.allclose(result.params, run(**tables, rounds=3, privacy=OPEN).params)


def test_layers_that_mix_examples_are_refused():
    """Of other kinds than this no model is a model here."""
    problem = small_problem(model=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    with pytest.raises(InputError, match=r"^problem\.model = batch normalisation: it mixes examples"):
        fedsim.run(made(), problem=problem, save=False)


ATTACK = {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}
DITTO = {"kind": "ditto", "steps": 1, "lam": 0.1}
TARGET = {"level": "example", "clip": 1.0, "epsilon": 2.0, "delta": 1e-2}
IN_TWOS = {"strategy": {"kind": "fedbuff", "size": 2}, "selection": {"kind": "uniform", "count": 3}}
REFUSED = [
    ({"client": DITTO, "evaluation": {"clients": False}}, r"client\.kind = ditto: it does more with its examples"),
    (
        {"client": {**CLIENT, "adversarial": {"kind": "standard", "attack": ATTACK}}},
        r"client\.adversarial\.kind = standard: steps are on examples as they are",
    ),
    ({"client": {**CLIENT, "curriculum": {}}}, r"client\.curriculum = given: it chooses"),
    ({"client": {**CLIENT, "optimizer": "sam"}}, r"client\.optimizer = sam: asks for .* training with noise"),
    ({"strategy": {"kind": "qfedavg", "client_lr": 0.1}}, r"strategy\.kind = qfedavg: it asks for start-loss"),
    ({"selection": {"kind": "power_of_choice", "count": 2, "pool": 4}}, r"selection\.kind = power_of_choice: it goes"),
    ({"engine": {"executor": "fused"}}, r"engine\.executor = fused: its steps clip no single examples"),
    ({"rounds": None, "duration": 5.0, "privacy": TARGET}, r"privacy\.epsilon = 2\.0: it is of a number of rounds"),
    ({**IN_TWOS, "privacy": TARGET}, r"privacy\.epsilon = 2\.0: fedbuff does not wait for all"),
    ({**IN_TWOS, "privacy": PRIVATE | {"budget": 3.0}}, r"privacy\.budget = 3\.0: fedbuff does not wait for all"),
]


@pytest.mark.parametrize(("tables", "line"), REFUSED)
def test_what_no_account_covers_is_refused(tables, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        run(**tables)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"clip": 0.0}, r"privacy\.clip = 0\.0"),
        ({"clip": None}, r"privacy\.clip = \(nothing\): noise goes by it"),
        ({"noise_multiplier": -1.0}, r"privacy\.noise_multiplier = -1\.0"),
        ({"noise_multiplier": None, "epsilon": 0.0}, r"privacy\.epsilon = 0\.0"),
        ({"level": "record"}, r"privacy\.level = record"),
        ({"where": "clients", "least": 2}, r"privacy\.where = clients: is of the sum of clients' changes"),
        ({"adaptive": {}}, r"privacy\.adaptive = given: is of the sum"),
        ({"mechanism": "banded", "bands": 2}, r"privacy\.mechanism = banded: is of the sum"),
    ],
)
def test_options_that_contradict_the_level_are_refused(options, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        made(privacy={name: value for name, value in (PRIVATE | options).items() if value is not None})


def test_a_large_delta_is_warned_of(capsys):
    run(privacy=PRIVATE | {"delta": 0.9}, rounds=1)
    assert "privacy.delta = 0.9 lets one of a client's 6" in capsys.readouterr().err


def test_it_is_written_as_it_is_read():
    experiment = made(privacy=PRIVATE | {"clipping": "layers"})
    assert fedsim.experiment(**experiment.resolved()).privacy == experiment.privacy


def test_nobody_is_noised_who_did_not_ask():
    experiment = made(privacy=None)
    assert noisy_steps(experiment, small()) is None
    private = made()
    assert private.privacy is not None
    guard = steps_guard(private, small(), private.privacy)
    assert guard.notes["noise_multiplier"] == 1.0


@pytest.mark.parametrize(("clipping", "bounds"), [("flat", [2.0]), ("layers", [1.0] * 4)])
def test_noise_goes_by_the_bound_and_not_by_its_parts(clipping, bounds):
    """A bound of 2 on all four tensors together, or on each of a root of a quarter of its square, and z = 1.5."""
    steps = noisy_steps(made(privacy=PRIVATE | {"clip": 2.0, "clipping": clipping, "noise_multiplier": 1.5}), small())
    assert steps is not None
    assert steps.bounds == pytest.approx(bounds)
    assert steps.deviation == 3.0

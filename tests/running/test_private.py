"""Runs under privacy: what they spend, where they end, how they go on, and what no account covers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.privacy.account import Account, Everyone, Fixed, Poisson
from fedsim.running.build import build_simulation
from fedsim.running.more_rounds import hold_extensible
from fedsim.testing.problems import small_problem

CLIENT = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1}
PRIVATE = {"clip": 0.1, "noise_multiplier": 1.0, "delta": 1e-3}
HALF = {"kind": "poisson", "fraction": 0.5}
BASE = {"rounds": 4, "client": CLIENT, "strategy": {"kind": "fedavg", "weighting": "uniform"}}


def made(**tables: Any) -> fedsim.Experiment:
    given = {**BASE, "selection": HALF, "privacy": PRIVATE, **tables}
    return fedsim.experiment(**{name: table for name, table in given.items() if table is not None})


def run(**tables: Any) -> fedsim.Result:
    return fedsim.run(made(**tables), problem=small_problem(torch.float32), save=False)


@pytest.mark.parametrize("bound", [{}, {"clip": 1e30}])
@pytest.mark.parametrize("server", [{}, {"server_optimizer": {"kind": "sgd", "momentum": 0.9}}])
def test_without_noise_and_bound_it_is_fedavg_bit_by_bit(bound, server):
    tables = {"strategy": {**BASE["strategy"], **server}, "selection": {"kind": "uniform", "count": 4}}
    private = run(privacy={"noise_multiplier": 0.0, "delta": 1e-3, **bound}, **tables)
    plain = fedsim.run(fedsim.experiment(**{**BASE, **tables}), problem=small_problem(torch.float32), save=False)
    assert torch.equal(private.params, plain.params)
    assert private.history["train_loss"] == plain.history["train_loss"]
    assert "epsilon" not in private.summary


LAWS = [
    (HALF, {}, Poisson(0.5), [1, 2, 3, 4]),
    ({"kind": "poisson", "fraction": 0.5, "groups": 2}, {}, Poisson(0.5), [1, 1, 2, 2]),
    ({"kind": "uniform", "count": 2}, {}, Fixed(6, 2), [1, 2, 3, 4]),
    ({"kind": "uniform", "fraction": 1.0}, {}, Everyone(), [1, 2, 3, 4]),
    ({"kind": "round_robin", "count": 2}, {}, Everyone(), [1, 1, 1, 2]),
    ({"kind": "round_robin", "count": 2}, {"mechanism": "banded", "bands": 3}, Everyone(), [1, 1, 1, 2]),
]


@pytest.mark.parametrize(("selection", "options", "law", "sums"), LAWS)
def test_every_row_and_the_summary_say_what_was_spent(selection, options, law, sums):
    result = run(selection=selection, privacy=PRIVATE | options)
    account = Account("rdp", law, 1.0, 1e-3)
    assert result.history["epsilon"] == [account.epsilon(count) for count in sums]
    assert result.summary["epsilon"] == account.epsilon(sums[-1])
    assert (result.summary["delta"], result.summary["accountant"]) == (1e-3, "rdp")
    assert result.summary["neighbours"] == f"{law.relation} client"


def test_a_target_is_not_exceeded():
    spent = run(privacy={"clip": 0.1, "epsilon": 5.0, "delta": 1e-3}).summary["epsilon"]
    assert 4.99 < spent <= 5.0


def test_a_budget_ends_the_run_before_it_is_exceeded():
    """By the account 3 of 4 rounds fit."""
    account = Account("rdp", Poisson(0.5), 1.0, 1e-3)
    budget = (account.epsilon(3) + account.epsilon(4)) / 2
    result = run(privacy={**PRIVATE, "budget": budget})
    assert (result.status, len(result.history)) == ("stopped", 3)
    assert result.reason == f"another round would spend more than epsilon {budget:g}"


OPTIONS = [
    {},
    {"adaptive": {"count_noise": 1.0}},
    {"where": "clients", "least": 2},
    {"mechanism": "banded", "bands": 2, "factor": "optimal"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_run_goes_on_as_if_there_had_been_no_interruption(options):
    """With its noise of rounds before and its bound."""
    selection = {"kind": "poisson", "fraction": 0.9, "groups": 2} if "bands" in options else HALF
    experiment = made(privacy=PRIVATE | options, selection=selection, rounds=5)
    whole, first, second = (build_simulation(experiment, small_problem()) for _ in range(3))
    rows = [first.step(), first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    rows += second
    assert [{**row, "wall": 0} for row in rows] == [{**row, "wall": 0} for row in whole]
    assert torch.equal(second.params, whole.params)


REFUSED = [
    ({"selection": {"kind": "oort", "count": 2}}, r"selection\.kind = oort: whom it selects depends"),
    ({"selection": {"kind": "weighted", "count": 2}}, r"selection\.kind = weighted: whom it selects"),
    ({"selection": {"kind": "curriculum", "rounds": 2, "count": 2}}, r"selection\.kind = curriculum: whom it selects"),
    ({"strategy": {"kind": "fedavg"}}, r"strategy\.weighting = examples: a client of many examples"),
    (
        {
            "strategy": {"kind": "fedbuff", "size": 1, "weighting": "uniform"},
            "selection": {"kind": "uniform", "count": 2},
        },
        r"strategy\.kind = fedbuff: it does more",
    ),
    (
        {"strategy": {"kind": "fedavg", "weighting": "uniform", "first": 2}, "selection": HALF},
        r"selection\.kind = poisson: it is for rounds that wait for all",
    ),
    ({"strategy": {"kind": "qfedavg"}}, r"strategy\.kind = qfedavg: it does more"),
    (
        {"strategy": {"kind": "scaffold"}, "client": {"kind": "scaffold", "steps": 1}},
        r"strategy\.kind = scaffold: it does more",
    ),
    ({"aggregation": "krum"}, r"aggregation\.malicious"),
    (
        {"aggregation": "median", "selection": {"kind": "uniform", "count": 4}},
        r"aggregation\.kind = median: changes are clipped one by one",
    ),
    ({"aggregation": {"kind": "secure", "clip": 1.0}}, r"(aggregation|selection)\.kind"),
    ({"transforms": [{"kind": "noise", "std": 0.1}]}, r"transforms\.0\.kind = noise: changes are clipped after it"),
    (
        {"transforms": [{"kind": "clip", "max_norm": 1.0}], "privacy": PRIVATE | {"where": "clients", "least": 2}},
        r"transforms\.0\.kind = clip: clients' noise comes last",
    ),
    (
        {
            "selection": {"kind": "uniform", "count": 2},
            "devices": {"availability": {"kind": "bernoulli", "period": 1.0, "probability": 0.5}},
        },
        r"selection\.kind = uniform: clients sleep or fail",
    ),
    (
        {"selection": {"kind": "round_robin", "count": 2}, "privacy": PRIVATE | {"mechanism": "banded", "bands": 4}},
        r"privacy\.bands = 4: a client may take part twice",
    ),
    (
        {"selection": {"kind": "uniform", "count": 2}, "privacy": PRIVATE | {"mechanism": "banded", "bands": 2}},
        r"privacy\.bands = 2: a client may take part twice",
    ),
    (
        {"privacy": {"clip": 1.0, "epsilon": 2.0, "delta": 1e-3}, "rounds": None, "duration": 5.0},
        r"privacy\.epsilon = 2\.0: it is of a number of rounds",
    ),
    ({"privacy": PRIVATE | {"adaptive": {}}}, r"privacy\.adaptive\.count_noise = 0\.15: .* above half"),
]


@pytest.mark.parametrize(("tables", "line"), REFUSED)
def test_what_no_account_covers_is_refused(tables, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        run(**tables)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"epsilon": 0.0, "noise_multiplier": None}, r"privacy\.epsilon = 0\.0"),
        (
            {"noise_multiplier": 1e-300},
            r"privacy\.noise_multiplier = 1e-300: take 0 for none, or between 0\.001 and 1e\+06",
        ),
        ({"noise_multiplier": 1e300}, r"privacy\.noise_multiplier = 1e\+300: take 0"),
        ({"clip": 1e-300}, r"privacy\.clip = 1e-300: noise goes by it"),
        ({"epsilon": 1.0}, r"privacy\.noise_multiplier = 1\.0: give exactly one"),
        ({"clip": None}, r"privacy\.clip = \(nothing\): noise goes by it"),
        ({"delta": 1.0}, r"privacy\.delta = 1\.0"),
        ({"bands": 2}, r"privacy\.bands = 2: is for mechanism = banded"),
        ({"mechanism": "banded"}, r"privacy\.bands = \(nothing\): give the number"),
        ({"factor": "optimal"}, r"privacy\.factor = optimal: is for"),
        ({"where": "clients"}, r"privacy\.least = \(nothing\): say how many"),
        ({"least": 2}, r"privacy\.least = 2: is for where = clients"),
        ({"adaptive": {}, "clipping": "layers"}, r"privacy\.clipping = layers: a bound that moves"),
        ({"noise_multiplier": 0.0, "budget": 1.0}, r"privacy\.budget = 1\.0: without noise"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        made(privacy={name: value for name, value in (PRIVATE | options).items() if value is not None})


def test_a_large_delta_is_warned_of(capsys):
    run(privacy=PRIVATE | {"delta": 0.2}, rounds=1)
    assert "privacy.delta = 0.2 lets one of 6 clients go unhidden" in capsys.readouterr().err


def test_it_is_written_as_it_is_read():
    experiment = made(privacy=PRIVATE | {"adaptive": {"count_noise": 2.0}})
    assert fedsim.experiment(**experiment.resolved()).privacy == experiment.privacy


@pytest.mark.parametrize("options", [{"noise_multiplier": None, "epsilon": 5.0}, {"mechanism": "banded", "bands": 2}])
def test_noise_that_was_made_for_so_many_rounds_has_no_more(options):
    given = {name: value for name, value in (PRIVATE | options).items() if value is not None}
    with pytest.raises(InputError, match=r"^privacy\.(epsilon|bands) = .*the noise was made for 4 rounds"):
        hold_extensible(made(privacy=given), 8)


def test_faulty_replies_are_left_out_and_the_rest_is_released():
    result = run(faults={"non_finite": 0.15, "drop_after": 0.15}, rounds=6)
    assert result.status == "finished"
    assert result.history["epsilon"] == run(rounds=6).history["epsilon"]

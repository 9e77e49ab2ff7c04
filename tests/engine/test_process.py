"""Cohorts in worker processes: the bits of `stacked`, and what becomes of clients that end their process."""

from __future__ import annotations

import gc
import multiprocessing
import re

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import FedsimError, InputError
from fedsim.problems.evaluators import BlackBoxError
from fedsim.testing import blobs, mlp

pytestmark = pytest.mark.xdist_group("process")  # for its tests count the children of their process
FORKED = pytest.mark.usefixtures("forked_workers")

CLIENT = '''
import os
from pathlib import Path
from typing import Literal

import torch

from clients.sgd import Sgd
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Update
from fedsim.core.options import options


@options
class Odd(Sgd):
    """Does something odd where client 3 is in the cohort, in its second round."""

    does: Literal["nothing", "exit", "exit once", "nan", "refuse", "raise"] = "nothing"
    flag: str = ""

    def train(self, cohort):
        update = super().train(cohort)
        odd = cohort.clients == 3
        if not odd.any() or cohort.round != 1:
            return update
        if self.does == "exit once" and not Path(self.flag).exists():
            Path(self.flag).touch()
            os._exit(9)
        if self.does == "exit":
            os._exit(9)
        if self.does == "nan":
            payload = {"delta": torch.where(odd.unsqueeze(1), torch.nan, update.payload["delta"])}
            return Update(payload, update.metrics)
        if self.does == "refuse":
            raise InputError("client.does", self.does, "take another")
        if self.does == "raise":
            raise KeyError("odd")
        return update
'''

DATA = {
    "problem": {"dataset": {"kind": "synthetic", "features": 8, "clients": 7, "examples_per_client": 12}},
    "partition": {"kind": "natural"},
    "engine": {"device": "cpu"},
    "rounds": 3,
}
FUNCTIONS = {
    "problem": {"kind": "benchmark", "dimension": 4, "clients": 5, "noise": 0.1},
    "client": {"kind": "fedzo", "steps": 2, "estimator": {"kind": "differences", "count": 2}},
    "strategy": "fedzo",
    "rounds": 3,
}
RUNS = {
    "state": DATA | {"strategy": "scaffold", "client": {"kind": "scaffold", "epochs": 1, "batch_size": 4}},
    "tuned": DATA
    | {
        "partition": {"kind": "natural", "newcomers": 0.2},
        "client": {"kind": "ditto", "lam": 0.1, "epochs": 1, "batch_size": 4},
        "evaluation": {"finetune": {"epochs": 1, "batch_size": 4}},
    },
    "asynchronous": DATA
    | {
        "strategy": {"kind": "fedbuff", "size": 2},
        "devices": {"compute": {"kind": "lognormal", "median": 0.1, "sigma": 0.5}},
        "transforms": [{"kind": "clip", "max_norm": 0.5}, {"kind": "noise", "std": 0.01}],
        "rounds": 6,
    },
    "functions": FUNCTIONS,
}


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Tables with a client of a plug-in file, which nothing but its text brings into another process."""
    (tmp_path / "odd_clients.py").write_text(CLIENT)
    monkeypatch.chdir(tmp_path)

    def tables(does: str) -> dict:
        client = {"kind": "./odd_clients.py:Odd", "epochs": 1, "does": does, "flag": str(tmp_path / "flag")}
        return DATA | {"client": client, "evaluation": {"every": 1}}

    return tables


def ran(tables, executor="process", problem=None, **engine):
    """A run of an experiment, whose processes are gone when it ends."""
    gc.collect()  # processes of other tests' pools go now, not in the middle
    before = len(multiprocessing.active_children())
    made = fedsim.experiment(**tables | {"engine": tables.get("engine", {}) | {"executor": executor, **engine}})
    result = fedsim.run(made, problem=problem, save=False)
    assert len(multiprocessing.active_children()) == before
    return result


def rows(result):
    return [{name: value for name, value in row.items() if name != "wall"} for row in result.history]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_stacked_to_the_bit(name, request):
    if name != "functions":  # whose process begins as those of users do
        request.getfixturevalue("forked_workers")
    stacked, found = ran(RUNS[name], "stacked"), ran(RUNS[name], workers=1 if name == "functions" else 2)
    assert torch.equal(found.params, stacked.params)
    assert rows(found) == rows(stacked)


@FORKED
def test_many_cohorts_are_shared_by_few_processes():
    """Of one client each, in the memory that there is."""
    tables = RUNS["state"] | {"problem": DATA["problem"] | {"model": {"kind": "mlp", "hidden": [2000]}}, "rounds": 1}
    found = ran(tables, workers=2, memory_mib=1)
    assert torch.equal(found.params, ran(tables, "stacked", memory_mib=1).params)


@FORKED
def test_a_client_that_ends_its_process_is_failed_and_nobody_else(odd, capsys):
    """As if its update were not finite, and nothing else had happened."""
    failed, found = ran(odd("nan"), "stacked"), ran(odd("exit"), workers=2)
    assert torch.equal(found.params, failed.params)
    assert [row["failed"] for row in rows(found)] == [row["failed"] for row in rows(failed)] == [0, 1, 0]
    assert "client 3 ended its process with exit code 9, twice; its update is left out" in capsys.readouterr().err


@FORKED
def test_a_process_that_ends_once_changes_nothing(odd, tmp_path):
    found = ran(odd("exit once"), workers=2)
    assert (tmp_path / "flag").exists()
    assert torch.equal(found.params, ran(odd("nothing"), "stacked").params)


@FORKED
def test_an_interrupted_run_goes_on_in_processes(tmp_path):
    """From its checkpoint: after two of the three rounds, with what clients remember."""

    def interrupt(done):
        if done.row["round"] == 2:
            raise KeyboardInterrupt

    tables = RUNS["state"] | {"engine": {"device": "cpu", "executor": "process", "workers": 1}}
    made = fedsim.experiment(**tables, checkpoint={"every": 1})
    assert fedsim.run(made, out=tmp_path / "run", callbacks=[interrupt]).status == "interrupted"
    heard = []
    found = fedsim.resume(tmp_path / "run", callbacks=[heard.append])
    assert [done.row["round"] for done in heard] == [3]
    assert torch.equal(found.params, ran(RUNS["state"], "stacked").params)


@FORKED
def test_what_clients_raise_is_raised_here(odd):
    with pytest.raises(InputError, match=r"^client\.does = refuse: take another$") as refused:
        ran(odd("refuse"), workers=1)
    assert refused.value.option == "client.does"
    with pytest.raises(FedsimError) as caught:
        ran(odd("raise"), workers=1)
    assert re.fullmatch(r"a client's work raised /.*odd_clients\.py, line \d+: KeyError: 'odd'", str(caught.value))
    assert "Traceback" in str(caught.value.__cause__)


@FORKED
def test_a_problem_of_your_own_is_sent_or_refused():
    tables = {name: value for name, value in FUNCTIONS.items() if name != "problem"}

    def problem(function):
        return fedsim.black_box([function] * 3, kind="scalar", dimension=1, device="cpu")

    summed, stacked = (
        ran(tables, problem=problem(np.sum), **engine) for engine in ({"workers": 1}, {"executor": "stacked"})
    )
    assert torch.equal(summed.params, stacked.params)
    with pytest.raises(BlackBoxError, match=r"^client \d: returned float64 of shape \(1,\), not real numbers"):
        ran(tables, problem=problem(np.abs), workers=1)
    with pytest.raises(InputError, match=r"^problem = BlackBox: cannot be sent to processes; take another engine\."):
        ran(tables, problem=problem(lambda x: x[0]))


@FORKED
def test_examples_and_a_model_of_your_own_are_sent():
    tables = {"client": {"kind": "sgd", "steps": 2, "batch_size": 4}, "rounds": 2}
    problem = fedsim.supervised(**blobs(), model=mlp(), device="cpu")
    sent, stacked = (ran(tables, problem=problem, **engine) for engine in ({}, {"executor": "stacked"}))
    assert torch.equal(sent.params, stacked.params)


def test_options_that_nobody_would_use_are_refused():
    with pytest.raises(InputError, match=r"^engine\.workers = 2: executor auto has none; take process, or remove it$"):
        fedsim.experiment(engine={"workers": 2})
    with pytest.raises(InputError, match=r"^engine\.workers = 0"):
        fedsim.experiment(engine={"executor": "process", "workers": 0})

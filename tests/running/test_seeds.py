"""Seeds in one stack: every number is that of the single run, and no run hangs on another's end."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import pytest
import torch

import fedsim
from fedsim.core.errors import FedsimError, InputError
from fedsim.engine.executor import Executor
from fedsim.problems.benchmark_functions import BenchmarkFunctions
from fedsim.problems.evaluators import BlackBoxError, Stacked
from fedsim.problems.own_functions import black_box
from fedsim.running.runner import run
from fedsim.running.seeds import run_seeds
from fedsim.running.stored import CONFIG, END, METRICS, MODEL, SUMMARY, TRACEBACK

pytestmark = pytest.mark.usefixtures("unpainted")

SEEDS = [4, 0, 9]
FUNCTIONS = {"kind": "benchmark", "dimension": 6, "clients": 5, "noise": 0.01}
SEARCH: dict[str, Any] = {"steps": 3, "lr": 0.05}
ESTIMATOR = {"kind": "differences", "count": 4, "mu": 0.1}
SURROGATE = {
    "features": 30, "feature_points": 20, "history": 24, "neighbours": 10, "candidates": 6, "last_candidates": 6,
    "last_active": 4, "initial": 4, "active": 2,
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "fedzo": {"client": {"kind": "fedzo", **SEARCH, "estimator": ESTIMATOR}},
    "orthonormal": {
        "client": {"kind": "fedzo", **SEARCH, "estimator": {**ESTIMATOR, "directions": "orthonormal"}},
        "strategy": {"kind": "fedzo", "guard": True},
        "selection": {"kind": "uniform", "count": 3},
    },
    "cosine": {  # of levy, for the mean of the quadratics is the same under every seed
        "problem": FUNCTIONS | {"function": "levy"},
        "client": {"kind": "fedzo", **SEARCH, "estimator": ESTIMATOR, "cosine": True},
    },
    "schedule": {
        "client": {
            "kind": "fedzo",
            **SEARCH,
            "estimator": ESTIMATOR,
            "schedule": {"kind": "exponential", "gamma": 0.9},
        },
    },
    "noise": {
        "strategy": "fedavg",
        "client": {"kind": "fedzo", **SEARCH, "estimator": ESTIMATOR},
        "transforms": [{"kind": "noise", "std": 0.1}],
    },
    "scaffold_zo": {
        "strategy": {"kind": "scaffold_zo"},
        "client": {"kind": "scaffold_zo", **SEARCH, "estimator": ESTIMATOR},
    },
    "fzoos": {
        "strategy": {"kind": "fzoos", "guard": True},
        "client": {"kind": "fzoos", **SEARCH, **SURROGATE},
    },
    "buffered": {
        "strategy": {"kind": "fedbuff", "size": 2, "server_lr": 0.05, "server_optimizer": "lion"},
        "client": {"kind": "fedzo", **SEARCH, "estimator": ESTIMATOR},
        "devices": {"compute": {"kind": "fixed", "spread": 80.0}},
        "selection": {"kind": "uniform", "fraction": 1.0},
    },
}


def experiment(row: str = "fedzo", **tables: Any) -> fedsim.Experiment:
    base: dict[str, Any] = {"problem": FUNCTIONS, "strategy": "fedzo", "rounds": 4}
    return fedsim.experiment(**{**base, "engine": {"precision": "float64"}, **ROWS[row], **tables})


def rows(result: fedsim.Result) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "wall"} for row in result.history]


def assert_same(stacked: fedsim.Result, single: fedsim.Result) -> None:
    assert torch.equal(stacked.params, single.params)
    assert rows(stacked) == rows(single)
    assert (stacked.status, stacked.reason) == (single.status, single.reason)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients were executed at once, in each call of the method that does it."""
    seen, act = [], Executor._act
    monkeypatch.setattr(Executor, "_act", lambda self, part: seen.append(len(part)) or act(self, part))
    return seen


@pytest.mark.parametrize("row", ROWS)
def test_seeds_in_a_stack_are_the_single_runs(row, widths):
    made = experiment(row)
    stacked = run_seeds(made, SEEDS, save=False)
    # Clients that ask for the round are executed by themselves, five at a time, all others with those of other seeds.
    assert (max(widths) > 5) == (row != "schedule")
    for seed, result in zip(SEEDS, stacked, strict=True):
        assert_same(result, run(made.with_seed(seed), save=False))


@pytest.mark.parametrize("row", ["fedzo", "scaffold_zo", "fzoos"])
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_seeds_are_the_single_runs_however_cohorts_are_cut(row, chunk, monkeypatch):
    made = experiment(row)
    singles = [run(made.with_seed(seed), save=False) for seed in SEEDS]
    monkeypatch.setattr(Executor, "chunk", chunk)
    for stacked, single in zip(run_seeds(made, SEEDS, save=False), singles, strict=True):
        assert_same(stacked, single)


def test_single_precision_and_the_loop(widths, monkeypatch):
    made = experiment("fedzo", engine={"precision": "float32", "executor": "loop"})
    cohorts, act = set(), Executor.act
    monkeypatch.setattr(Executor, "act", lambda self, part, state: cohorts.add(len(part)) or act(self, part, state))
    stacked = run_seeds(made, SEEDS, save=False)
    assert (max(widths), cohorts) == (15, {1})
    assert_same(stacked[2], run(made.with_seed(SEEDS[2]), save=False))


def test_run_folders_are_those_of_single_runs(tmp_path):
    made = experiment()
    results = run_seeds(made, SEEDS, out=tmp_path / "stack")
    for seed, result in zip(SEEDS, results, strict=True):
        single, folder = tmp_path / f"single-{seed}", tmp_path / "stack" / f"seed-{seed}"
        run(made.with_seed(seed), out=single)
        assert result.folder == folder
        # A stack has no checkpoints, and no state of the end.
        assert {END, *(file.name for file in folder.iterdir())} == {file.name for file in single.iterdir()}
        for file in (CONFIG, MODEL):
            assert (folder / file).read_bytes() == (single / file).read_bytes()
        written, expected = ((path / METRICS).read_text().splitlines() for path in (folder, single))
        for line, other in zip(written, expected, strict=True):
            assert {**json.loads(line), "wall": 0} == {**json.loads(other), "wall": 0}


def test_folders_are_numbered_and_earlier_runs_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = experiment(rounds=1)
    folders = [run_seeds(made, [2])[0].folder.relative_to("runs") for _ in range(2)]
    assert [str(folder) for folder in folders] == [f"{made.name}-0/seed-2", f"{made.name}-1/seed-2"]
    with pytest.raises(InputError, match="this folder exists"):
        run_seeds(made, [5, 2], out=tmp_path / "runs" / folders[0].parent)
    assert not (tmp_path / "runs" / folders[0].parent / "seed-5").exists()
    run_seeds(made, [5, 2], out=tmp_path / "runs" / folders[0].parent, force=True)


def test_a_seed_that_stops_leaves_the_others():
    """Values fall at another pace under each seed, so the target is reached in different rounds."""
    made = experiment(rounds=30, stopping={"metric": "gap", "patience": 1})
    results = run_seeds(made, SEEDS, save=False)
    assert len({result.summary["rounds"] for result in results}) > 1
    for seed, result in zip(SEEDS, results, strict=True):
        assert_same(result, run(made.with_seed(seed), save=False))


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch):
    """Makes the functions of the second seed others: `odd(make)`, where each problem calls make() for its own."""
    build = BenchmarkFunctions.build

    def change(make) -> None:
        def built(self, made):
            problem = build(self, made)
            if made.seed == SEEDS[1]:
                problem.functions = Stacked(make(), problem.num_clients)
            return problem

        monkeypatch.setattr(BenchmarkFunctions, "build", built)

    return change


def test_a_seed_that_diverges_leaves_the_others(odd, tmp_path):
    odd(lambda: lambda clients, x: torch.full(x.shape[:2], torch.nan))
    made = experiment()
    results = run_seeds(made, SEEDS, out=tmp_path)
    assert [result.status for result in results] == ["finished", "diverged", "finished"]
    assert json.loads((tmp_path / f"seed-{SEEDS[1]}" / SUMMARY).read_text())["status"] == "diverged"
    assert_same(results[2], run(made.with_seed(SEEDS[2]), save=False))


def test_orders_of_other_shapes_are_executed_apart(odd, widths):
    """Where all of a client's evaluations have failed, the guard asks for two values in the next round, not one."""

    def make():
        asked = []

        def function(clients, x):
            asked.append(None)
            values = (x - clients[:, None, None] / 5).square().sum(2)
            return values.masked_fill((clients == 0).unsqueeze(1), torch.nan) if len(asked) <= 6 else values

        return function

    odd(make)
    made = experiment("fedzo", strategy={"kind": "fedzo", "guard": True})
    stacked = run_seeds(made, SEEDS, save=False)
    # 14: in the round of the failure four clients of five are asked; 10 and 5: in the next, two seeds apart from one.
    assert (stacked[1].summary["total_failed"], set(widths)) == (1, {15, 14, 10, 5})
    for seed, result in zip(SEEDS, stacked, strict=True):
        assert_same(result, run(made.with_seed(seed), save=False))


def after(calls: int, error: type[BaseException]):
    """Make a function that gives x_1 for so many calls, and then raises."""

    def make():
        left = [calls]

        def function(clients, x):
            left[0] -= 1
            if left[0] < 0:
                raise error("on purpose")
            return x[:, :, 0]

        return function

    return make


def test_what_a_function_raises_ends_all(odd, tmp_path):
    odd(after(12, ValueError))
    with pytest.raises(BlackBoxError, match="ValueError"):
        run_seeds(experiment(), SEEDS, out=tmp_path)
    # All have logged their first round: there were values enough for one, and each says what ended it.
    for seed in SEEDS:
        folder = tmp_path / f"seed-{seed}"
        assert (folder / METRICS).read_text().count("\n") >= 1
        written = (folder / TRACEBACK).read_text()
        assert "ended with the others of its stack" in written
        assert "on purpose" in written
        assert not (folder / SUMMARY).exists()
    assert not [thread for thread in threading.enumerate() if "_work" in thread.name]


def test_an_interruption_leaves_usable_folders(odd, tmp_path):
    odd(after(12, KeyboardInterrupt))
    results = run_seeds(experiment(), SEEDS, out=tmp_path)
    assert [result.status for result in results] == ["interrupted"] * 3
    for result in results:
        assert json.loads((result.folder / SUMMARY).read_text())["status"] == "interrupted"


def test_an_interruption_while_a_run_is_awake_ends_all():
    """The signal arrives in the main thread, which waits for the run that raised it."""
    results = run_seeds(
        experiment(),
        SEEDS,
        save=False,
        on_round=lambda seed, _: signal.raise_signal(signal.SIGINT) if seed == SEEDS[1] else None,
    )
    assert [result.status for result in results] == ["interrupted"] * 3


def test_options_that_one_seed_refuses_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="count"):
        run_seeds(experiment(selection={"kind": "uniform", "count": 99}), SEEDS, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_callback_hears_the_seed_and_its_errors_end_all():
    heard = []
    run_seeds(experiment(rounds=2), SEEDS, save=False, on_round=lambda seed, seen: heard.append((seed, seen.row)))
    assert sorted((seed, row["round"]) for seed, row in heard) == [(s, r) for s in sorted(SEEDS) for r in (1, 2)]

    def fails(seed, seen):
        raise FedsimError("of the callback")

    with pytest.raises(FedsimError, match=r"^of the callback"):
        run_seeds(experiment(), SEEDS, save=False, on_round=fails)


def test_a_problem_of_ones_own_is_the_same_for_all(widths):
    problem = black_box(lambda clients, x: (x - clients[:, None, None] / 8).square().sum(2), clients=8, dimension=3)
    made = fedsim.experiment(rounds=4, strategy="fedzo", **ROWS["fedzo"])
    stacked = run_seeds(made, [1, 2], problem=problem, save=False)
    assert widths == [16] * 4
    assert not torch.equal(stacked[0].params, stacked[1].params)
    assert_same(stacked[1], run(made.with_seed(2), problem=problem, save=False))


def test_examples_are_refused():
    with pytest.raises(InputError, match=r"problem = SupervisedOptions: only seeds of black boxes .* fedsim sweep"):
        run_seeds(fedsim.experiment(rounds=1), [0, 1], save=False)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_different_ones(seeds):
    with pytest.raises(InputError, match="seeds = "):
        run_seeds(experiment(), seeds, save=False)

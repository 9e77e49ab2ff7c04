"""Searches on a tiny work: what is tried, given up, chosen, judged, and how a search that was left goes on."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.problems.supervised import Supervised
from fedsim.running import runner
from fedsim.running.stored import open_run
from fedsim.running.study import Study, Trial, read_study
from fedsim.testing.problems import small_experiment
from fedsim.tuning import trials as running
from fedsim.tuning.plan import plan
from fedsim.tuning.search import tune
from fedsim.tuning.space import parse_space
from fedsim.tuning.storage import JOURNAL, claim, grid, opened

TABLES: dict[str, Any] = {
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 6, "features": 5, "classes": 3, "examples_per_client": 20},
        "model": {"kind": "mlp", "hidden": [6]},
    },
    "partition": {"kind": "natural", "validation": 0.3},
    "client": {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1},
    "evaluation": {"every": 1},
}
SPACE = {"client.lr": "log:0.001..1"}
FUNCTION = {
    "problem": {"kind": "benchmark", "dimension": 4, "clients": 3, "noise": 0.01},
    "partition": None,
    "strategy": "fedzo",
    "client": {"kind": "fedzo", "steps": 2, "lr": 0.05, "estimator": {"kind": "differences", "count": 3}},
    "selection": {"kind": "uniform", "count": 2},
    "evaluation": {"every": 1},
}


@pytest.fixture(autouse=True, scope="module")
def undrawn() -> Iterator[None]:
    """Pictures take most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "curves", lambda *_: None)
        patched.setattr(Supervised, "illustrate", lambda *_: None)
        yield


def made(rounds: int = 4, **tables: Any) -> fedsim.Experiment:
    found = TABLES | tables
    return small_experiment(rounds, **{name: table for name, table in found.items() if table is not None})


def timeless(study: Study) -> list[Trial]:
    """The trials without what time and place say."""
    return [replace(trial, seconds=0.0, folder=Path(trial.folder.name)) for trial in study.trials]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return open_run(folder).rows()


def test_a_search_leaves_its_trials_the_best_as_a_file_and_one_look_at_the_test_set(tmp_path):
    heard: list[int] = []
    found = tune(
        made(), SPACE, trials=4, seeds=(0, 1), out=tmp_path / "t", on_trial=lambda trial, _: heard.append(trial.number)
    )
    assert found == read_study(tmp_path / "t")
    assert heard == [0, 1, 2, 3]
    assert found.metric == "validation_accuracy"
    for trial in found.trials:
        values = []
        for seed in (0, 1)[: len(trial.values)]:
            rows = rows_of(trial.folder / f"seed-{seed}")
            assert not [name for row in rows for name in row if name.startswith(("test_", "client_", "global_"))]
            values.append(rows[-1]["validation_accuracy"])
            assert open_run(trial.folder / f"seed-{seed}").config()["client"]["lr"] == trial.options["client.lr"]
        assert list(trial.values) == values
        if trial.state == "complete":
            assert trial.value == pytest.approx(np.mean(values))
            assert trial.rounds == 8
    best = found.best_trial
    assert best is not None
    assert best.value == max(trial.value for trial in found.trials if trial.value is not None)
    # The best options have all the training data, and are judged once for each seed.
    tables = tomllib.loads((tmp_path / "t" / "best.toml").read_text())
    assert "validation" not in tables["partition"]
    assert tables["evaluation"]["on"] == ["test"]
    assert tables["client"]["lr"] == best.options["client.lr"]
    again = [
        fedsim.run(fedsim.load(tmp_path / "t" / "best.toml", seed=seed), save=False).summary["test_accuracy"]
        for seed in (0, 1)
    ]
    assert found.test is not None
    assert list(found.test["test_accuracy"]) == again
    for seed in (0, 1):
        judged = rows_of(tmp_path / "t" / "judged" / best.folder.name / f"seed-{seed}")
        assert ["test_accuracy" in row for row in judged] == [False, False, False, True]
    compared = fedsim.compare(tmp_path / "t")
    names = {group.name.partition("/seed")[0] for group in compared.groups}
    assert names == {"trial-0", "trial-1", "trial-2", "trial-3", f"judged/{best.folder.name}"}


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 9), ("random", 3)])
def test_the_same_draws_are_the_same_trials_and_others_are_others(sampler, trials, tmp_path):
    space = {"client.lr": "log:0.001..1", "client.epochs": "int:1..3"}
    found = [
        tune(made(1), space, metric="validation_loss", trials=most, sampler=sampler, draws=draws, out=tmp_path / place)
        for place, draws, most in (("one", 0, trials), ("two", 0, trials), ("other", 1, 1))
    ]
    assert timeless(found[0]) == timeless(found[1])
    assert found[0].trials[0].options != found[2].trials[0].options
    options = [trial.options for trial in found[0].trials]
    assert len({option["client.epochs"] for option in options}) > 1
    assert {type(option["client.epochs"]) for option in options} == {int}
    assert all(0.001 <= option["client.lr"] <= 1 for option in options)
    assert found[0].importance is not None
    assert sum(found[0].importance.values()) == pytest.approx(1.0)
    assert not found[0].higher_is_better
    assert found[0].best_trial.value == min(trial.value for trial in found[0].trials if trial.value is not None)


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Have a run interrupted when the rows of a search are `at` in number."""
    plain, counted = running._Watch.__call__, [0]

    def call(self: Any, told: Any) -> bool:
        counted[0] += 1
        if counted[0] == at:
            raise KeyboardInterrupt
        return plain(self, told)

    monkeypatch.setattr(running._Watch, "__call__", call)


@pytest.fixture(scope="module")
def whole(undrawn, tmp_path_factory) -> Study:
    """A search that nothing has interrupted."""
    return tune(made(), SPACE, trials=4, seeds=(0, 1), out=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", [1, 7, 10])
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(at, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patched:
        interrupted(patched, at)
        with pytest.raises(KeyboardInterrupt):
            tune(made(), SPACE, trials=4, seeds=(0, 1), out=tmp_path / "left")
    left = read_study(tmp_path / "left")
    assert left is not None
    assert left.trials[-1].state == "running"
    assert left.test is None
    with open(tmp_path / "left" / JOURNAL, "ab") as journal:  # what a killed process may leave
        journal.write(b'{"op_code": 6, "half')
    assert timeless(tune(made(), SPACE, trials=4, seeds=(0, 1), out=tmp_path / "left")) == timeless(whole)
    assert read_study(tmp_path / "left").test == whole.test


def test_more_trials_come_after_those_that_there_were_and_an_end_is_not_done_again(tmp_path, whole, monkeypatch):
    def more(trials: int) -> list[Trial]:
        return timeless(tune(made(), SPACE, trials=trials, seeds=(0, 1), out=tmp_path / "more"))

    assert more(2) == timeless(whole)[:2]
    assert more(4) == timeless(whole)
    monkeypatch.setattr(running, "resume", None)
    assert more(4) == timeless(whole)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"space": {"client.lr": "log:0.001..2"}}, "space"),
        ({"metric": "validation_loss"}, "metric"),
        ({"seeds": (0, 1)}, "seeds"),
        ({"sampler": "random"}, "sampler"),
        ({"pruner": "none"}, "pruner"),
        ({"draws": 1}, "draws"),
        ({"given": made(5)}, "rounds"),
        ({"given": made(client=TABLES["client"] | {"batch_size": 5})}, "client.batch_size"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(change, option, tmp_path):
    given: dict[str, Any] = {"given": made(), "space": SPACE, "trials": 1, "out": tmp_path / "t"}
    tune(**given)
    before = (tmp_path / "t" / "study.json").read_bytes()
    with pytest.raises(InputError) as caught:
        tune(**given | change)
    assert caught.value.option == option
    assert (tmp_path / "t" / "study.json").read_bytes() == before


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        tune(made(), SPACE, trials=1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_trial_is_given_up_where_its_best_is_below_the_median_of_those_that_are_complete(tmp_path):
    """Recounted from the rows: seed after seed, at each evaluation of the second on, after three complete trials."""
    found = tune(made(10), SPACE, trials=10, seeds=(0, 1), out=tmp_path / "t")
    assert Counter(trial.state for trial in found.trials)["pruned"] >= 2
    reported = opened(tmp_path / "t", higher=True).get_trials()
    complete: list[list[float]] = []
    for trial in found.trials:
        curves = [
            [row["validation_accuracy"] for row in rows_of(trial.folder / f"seed-{seed}")]
            for seed in (0, 1)
            if (trial.folder / f"seed-{seed}").exists()
        ]
        means = list(curves[0])
        means += [(one + two) / 2 for second in curves[1:] for one, two in zip(curves[0], second, strict=False)]
        assert reported[trial.number].intermediate_values == pytest.approx(dict(enumerate(means)))
        lost = [
            step
            for step in range(min(len(means), 19))
            if len(complete) >= 3
            and step >= 2
            and max(means[: step + 1]) < np.median([other[step] for other in complete])
        ]
        assert (trial.state == "pruned") == bool(lost), trial
        if lost:
            assert lost == [len(means) - 1]
            assert trial.reason.startswith(f"pruned after round {lost[0] % 10 + 1}")
            last = open_run(trial.folder / f"seed-{len(curves) - 1}").summary()
            assert (last["status"], last["reason"]) == ("stopped", trial.reason)
            assert len(trial.values) == len(curves) - 1
        else:
            complete.append(means)


def test_nobody_is_given_up_without_a_pruner_or_where_nothing_is_left_to_save(tmp_path):
    space = {"client.lr": "0.3,0.2,0.1,0.00001"}
    last = next(draws for draws in range(99) if grid(parse_space(space), draws)[-1]["client.lr"] == "0.00001")
    for pruner, rounds, states in (
        ("none", 5, {"complete"}),
        ("median", 5, {"complete", "pruned"}),
        ("median", 1, {"complete"}),
    ):
        place = tmp_path / f"{pruner}-{rounds}"
        found = tune(made(rounds), space, sampler="grid", draws=last, pruner=pruner, out=place)
        assert {trial.state for trial in found.trials} == states


@pytest.mark.slow
def test_hyperband_leaves_the_best_third(tmp_path):
    some = tune(made(9), SPACE, trials=6, pruner="hyperband", sampler="random", out=tmp_path / "some")
    assert 0 < sum(trial.state == "pruned" for trial in some.trials) < 6


def test_a_trial_that_diverges_or_fails_is_not_the_end(tmp_path, monkeypatch):
    plain = running.resume

    def broken(place: Path, experiment: Any, **given: Any) -> Any:
        if experiment.client.lr == 0.2:
            raise RuntimeError("broken")
        return plain(place, experiment, **given)

    monkeypatch.setattr(running, "resume", broken)
    found = tune(made(), {"client.lr": [0.1, 0.2, 1e25]}, sampler="grid", out=tmp_path / "t")
    by_rate = {trial.options["client.lr"]: trial for trial in found.trials}
    assert {rate: trial.state for rate, trial in by_rate.items()} == {0.1: "complete", 0.2: "failed", 1e25: "failed"}
    assert "RuntimeError: broken" in by_rate[0.2].reason
    assert "broken" in (by_rate[0.2].folder / "traceback.txt").read_text()
    assert by_rate[1e25].reason.startswith("diverged: ")
    assert found.best == by_rate[0.1].number
    with pytest.raises(InputError, match="is a range; name its values"):
        tune(made(), SPACE, sampler="grid", out=tmp_path / "u")


def test_a_search_of_which_nothing_comes_says_so(tmp_path):
    found = tune(made(), {"client.lr": [1e25]}, trials=2, out=tmp_path / "t")
    assert (found.best, found.best_trial, found.test, found.importance) == (None, None, None, None)
    assert not (tmp_path / "t" / "best.toml").exists()


def test_options_that_were_tried_are_not_run_again(tmp_path):
    found = tune(
        made(), {"client.optimizer.momentum": "0,0.9"}, trials=5, sampler="random", seeds=(0, 1), out=tmp_path / "t"
    )
    first: dict[Any, Trial] = {}
    for trial in found.trials:
        twin = first.setdefault(trial.options["client.optimizer.momentum"], trial)
        assert (trial.state, trial.values, trial.value) == ("complete", twin.values, twin.value)
        assert (trial.folder / "seed-0").exists() == (twin is trial)
        assert trial.reason == ("" if twin is trial else f"the same as trial {twin.number}")
    assert len(first) == 2
    assert found.best == min(trial.number for trial in found.trials if trial.value == found.ranked[0].value)


def test_a_grid_is_tried_once_each_in_an_order_that_is_drawn(tmp_path):
    space = {"client.epochs": "int:1..2", "client.optimizer.momentum": "0,0.9"}
    orders = [[tuple(tried.values()) for tried in grid(parse_space(space), draws)] for draws in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == [(1, "0"), (1, "0.9"), (2, "0"), (2, "0.9")]
    assert orders[0] != orders[1]
    found = tune(made(1), space, sampler="grid", trials=2, out=tmp_path / "some")
    assert [tuple(trial.options.values()) for trial in found.trials] == [
        (epochs, float(momentum)) for epochs, momentum in orders[0][:2]
    ]


# What is looked at.


def planned(experiment: fedsim.Experiment, **given: Any) -> Any:
    defaults: dict[str, Any] = {
        "metric": None,
        "seeds": (0,),
        "sampler": "tpe",
        "pruner": "median",
        "draws": 0,
        "on_test": False,
    }
    space = given.pop("space", SPACE)
    return plan(experiment, parse_space(space), **defaults | given)


@pytest.mark.parametrize(
    ("tables", "given", "option", "words"),
    [
        (
            {},
            {"metric": "test_accuracy"},
            "metric",
            "take validation_accuracy, of what partition.validation sets aside",
        ),
        ({}, {"metric": "client_accuracy_p10"}, "metric", "take validation_client_accuracy_p10"),
        ({}, {"metric": "personal_accuracy"}, "metric", "take validation_personal_accuracy"),
        ({}, {"metric": "validation_acuracy"}, "metric", "did you mean validation_accuracy"),
        ({"stopping": {"patience": 2}}, {}, "stopping.metric", "take validation_accuracy"),
        ({"evaluation": {"keep_best": "test_loss"}}, {}, "evaluation.keep_best", "take validation_loss"),
        ({}, {"space": {"client.epochs": "int:0..2"}}, "client.epochs", r"in --space client.epochs=int:0..2"),
        ({}, {"space": {"client.lrr": "0,1"}}, "client.lrr", "did you mean lr"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused_before_anything_runs(tables, given, option, words):
    with pytest.raises(InputError, match=words) as caught:
        planned(made(**tables), **given)
    assert caught.value.option == option


def test_where_nothing_is_set_aside_a_fifth_is_and_that_is_said():
    found = planned(made(partition={"kind": "natural"}))
    assert found.tables["partition"]["validation"] == 0.2
    assert "partition.validation = 0.2" in found.notes[0]
    assert "validation" not in found.last["partition"]
    kept = planned(made(partition={"kind": "natural", "validation_clients": 0.2}))
    assert kept.tables["partition"]["validation_clients"] == 0.2
    assert "validation" not in kept.tables["partition"]
    assert "validation_clients" not in kept.last["partition"]
    assert kept.notes == ()


@pytest.mark.parametrize(
    ("tables", "found", "evaluations"),
    [
        ({"rounds": 60, "evaluation": {}}, {"every": 3}, 20),
        ({"rounds": 61, "evaluation": {}}, {"every": 3}, 21),
        ({"rounds": 7, "evaluation": {}}, {"every": 1}, 7),
        ({"rounds": 60, "evaluation": {"every": 7}}, {"every": 7}, 9),
        ({"rounds": 60, "evaluation": {"every": 0}}, {"every": 0}, 1),
        ({"rounds": 60, "evaluation": {"keep_best": "validation_loss"}}, {"every": 1}, 60),
        ({"rounds": None, "duration": 50.0, "evaluation": {}}, {"every_seconds": 2.5}, 21),
        ({"rounds": 9, "evaluation": {"every_seconds": 0.5}}, {"every_seconds": 0.5}, None),
    ],
)
def test_all_trials_are_judged_at_the_same_times(tables, found, evaluations):
    given = dict(tables)
    rounds = given.pop("rounds")
    devices = {"devices": {"compute": {"kind": "fixed", "spread": 2.0}}} if "duration" in given else {}
    experiment = made(**given | devices) if rounds is None else made(rounds, **given)
    if rounds is None:
        experiment = replace(experiment, rounds=None)
    search = planned(experiment)
    assert {name: search.tables["evaluation"].get(name) for name in found} == found
    assert search.evaluations == evaluations


def test_the_best_model_and_an_early_end_say_how_many_rounds_the_best_options_are_to_have(tmp_path):
    tables = {
        "stopping": {"metric": "validation_loss", "patience": 2},
        "evaluation": {"every": 1, "keep_best": "validation_accuracy"},
    }
    found = tune(made(12, **tables), {"client.lr": "0.3,3.0"}, seeds=(0, 1), sampler="grid", out=tmp_path / "t")
    best = found.best_trial
    assert best is not None
    last = []
    for seed, value in zip((0, 1), best.values, strict=True):
        accuracies = [row["validation_accuracy"] for row in rows_of(best.folder / f"seed-{seed}")]
        assert value == max(accuracies)
        last.append(1 + accuracies.index(max(accuracies)))
    tables = tomllib.loads((tmp_path / "t" / "best.toml").read_text())
    assert tables["rounds"] == round(np.mean(last))
    assert "stopping" not in tables
    assert "keep_best" not in tables["evaluation"]


def test_who_insists_chooses_by_the_test_set_and_nothing_is_left_to_judge_by(tmp_path):
    found = tune(made(), SPACE, trials=2, metric="test_accuracy", on_test=True, out=tmp_path / "t")
    assert found.test is None
    assert not (tmp_path / "t" / "judged").exists()
    assert found.best_trial.value == max(trial.value for trial in found.trials)


def test_the_value_of_a_function_is_better_below_and_is_all_there_is(tmp_path):
    found = tune(made(3, **FUNCTION), {"client.lr": "log:0.01..1"}, trials=4, pruner="none", out=tmp_path / "t")
    assert (found.metric, found.higher_is_better, found.test) == ("value", False, None)
    assert found.best_trial.value == min(trial.value for trial in found.trials)
    best = fedsim.run(fedsim.load(tmp_path / "t" / "best.toml"), save=False)
    assert best.summary["value"] == found.best_trial.value
    assert not (tmp_path / "t" / "judged").exists()


# Several at once.


def test_two_who_are_at_work_have_different_trials_and_one_that_is_left_is_taken_by_the_next(tmp_path):
    space = parse_space(SPACE)
    study = opened(tmp_path, higher=True)

    def next_one(most: int = 2) -> Any:
        return claim(study, tmp_path, space, "tpe", 0, most)

    first, second = next_one(), next_one()
    assert (first.trial.number, second.trial.number, next_one()) == (0, 1, None)
    first.close()
    with closing(second), closing(next_one()) as again:
        assert (again.trial.number, again.options) == (0, first.options)
        assert next_one() is None
        with closing(next_one(3)) as third:
            assert third.trial.number == 2


def test_another_process_reads_the_journal_while_it_grows(tmp_path):
    one, two = opened(tmp_path, higher=True), opened(tmp_path, higher=True)
    one.tell(one.ask(), 0.5)
    with open(tmp_path / JOURNAL, "ab") as journal:
        journal.write(b'{"half')
    two.tell(two.ask(), 0.25)
    assert [trial.value for trial in one.get_trials()] == [0.5, 0.25]
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())


@pytest.mark.slow
def test_several_workers_try_as_many_and_each_once(tmp_path):
    found = tune(made(), SPACE, trials=5, seeds=(0, 1), workers=2, pruner="none", out=tmp_path / "t")
    assert [trial.number for trial in found.trials] == list(range(5))
    assert {trial.state for trial in found.trials} == {"complete"}
    assert len({trial.options["client.lr"] for trial in found.trials}) == 5
    assert found.test is not None
    assert all(map(math.isfinite, found.test["test_accuracy"]))


def test_a_journal_that_is_damaged_is_said_in_a_line(tmp_path):
    opened(tmp_path, higher=True)
    with open(tmp_path / JOURNAL, "ab") as journal:
        journal.write(b"damaged\n")
    with pytest.raises(InputError, match=r"^out = .*journal\.log: is not as a search has written it; choose another"):
        opened(tmp_path, higher=True)

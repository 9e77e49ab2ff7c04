"""Measures that a run is asked for: their columns, which way they improve, and all that follows of that."""

import csv
import io
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from rich.console import Console
from safetensors import safe_open

import fedsim
from fedsim import InputError, plots
from fedsim.attacks.gradient import FGSM
from fedsim.cli import live, progress, words
from fedsim.configuration.evaluation import Evaluation, Stopping
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.problems.measures import Measure
from fedsim.problems.supervised import Supervised
from fedsim.reports.comparison import compare, lines_of
from fedsim.running import runner
from fedsim.running.build import build_simulation
from fedsim.running.stored import StoredRun
from fedsim.testing.problems import blobs, mlp, small_functions, small_problem
from fedsim.testing.problems import small_experiment as small

MISSED = """
from fedsim.core.options import PositiveFloat, options
from fedsim.problems.measures import Measure


@options
class Missed(Measure):
    tasks = frozenset({"classes"})
    higher_is_better = False
    best = 0.0

    power: PositiveFloat = 1.0

    def __call__(self, outputs, targets):
        said = outputs.argmax(dim=1)
        recalls = [(said == targets)[targets == label].double().mean() for label in targets.unique()]
        return sum((1.0 - recall) ** self.power for recall in recalls) / len(recalls)
"""


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Runs draw nothing, which takes longer than all else here."""
    monkeypatch.setattr(runner, "curves", lambda *_: None)
    monkeypatch.setattr(runner, "personal", lambda *_: None)
    monkeypatch.setattr(Supervised, "illustrate", lambda *_: None)


@pytest.fixture
def missed(tmp_path):
    """The kind of a measure of one's own: the mean share of each class that is missed, of which less is better."""
    file = tmp_path / "missed.py"
    file.write_text(MISSED)
    return f"{file}:Missed"


def judged(params: torch.Tensor, metrics: list[Any], **options: Any) -> dict[str, float]:
    made = Evaluation(metrics=metrics)
    problem = small_problem()
    found = problem.evaluate(params, clients=True, metrics=made.measures, **options)
    names = problem.measures(True, options.get("on", ("test",)), made.measures)
    assert [name for name in found if not name.endswith("_undefined")] == names
    return found


def outputs_of(problem: Any, params: torch.Tensor, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return problem.module(params)(x)


def test_sets_and_clients_are_judged_by_all_measures():
    problem = small_problem()
    params = problem.initial()
    found = judged(params, ["f1_macro", "auroc", "log_loss", "accuracy"], on=("test", "train"))
    for name, x, y in (
        ("test", problem.x_test, problem.y_test),
        ("global_train", problem.data.x, problem.data.y),
    ):
        outputs = outputs_of(problem, params, x)
        said, shares = outputs.argmax(dim=1), outputs.softmax(dim=1)
        assert found[f"{name}_f1_macro"] == pytest.approx(reference.f1_score(y, said, average="macro"))
        assert found[f"{name}_auroc"] == pytest.approx(reference.roc_auc_score(y, shares, multi_class="ovr"))
        assert found[f"{name}_log_loss"] == pytest.approx(found[f"{name}_loss"], rel=1e-12)
    parts = np.split(np.arange(37), np.cumsum((7, 3, 12, 1, 5, 9))[:-1])
    f1, auroc, losses = [], [], []
    for rows in parts:
        outputs, y = outputs_of(problem, params, problem.data.x[rows]), problem.data.y[rows]
        f1.append(reference.f1_score(y, outputs.argmax(dim=1), average="macro", zero_division=0))
        losses.append(reference.log_loss(y, outputs.softmax(dim=1), labels=[0, 1, 2]))
        present = y.unique()
        if len(present) > 1:  # one of the clients has a single example
            each = [reference.roc_auc_score(y == label, outputs.softmax(dim=1)[:, label]) for label in present]
            auroc.append(np.mean(each))
    assert found["client_auroc_undefined"] == 6 - len(auroc) == 1
    assert "client_f1_macro_undefined" not in found
    for label, values, bad, worst in (
        ("f1_macro", f1, ("p10", 0.1), min),
        ("auroc", auroc, ("p10", 0.1), min),
        ("log_loss", losses, ("p90", 0.9), max),
    ):
        assert found[f"client_{label}_mean"] == pytest.approx(np.mean(values))
        assert found[f"client_{label}_{bad[0]}"] == pytest.approx(np.quantile(values, bad[1]))
        assert found[f"client_{label}_worst"] == pytest.approx(worst(values))


def test_each_clients_values_are_a_table_in_which_an_undefined_one_is_empty(tmp_path, missed):
    made = small(2, evaluation={"metrics": ["auroc", missed]})
    result = fedsim.run(made, problem=small_problem(), out=tmp_path / "run")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "run" / "clients.csv").read_text())))
    assert list(lines[0]) == ["client", "examples", "loss", "accuracy", "auroc", "missed"]
    assert [line["client"] for line in lines if not line["auroc"]] == ["3"]
    assert all(0.0 <= float(line["missed"]) <= 1.0 for line in lines)
    assert result.history.last("client_auroc_undefined") == 1
    assert result.history.last("client_missed_worst") == max(float(line["missed"]) for line in lines)


def test_a_measure_that_no_client_has_is_counted_and_cannot_end_a_run():
    alone = fedsim.supervised(
        **(blobs() | {"clients": [[row] for row in range(6)]}), model=small_problem().model.module
    )
    metrics = Evaluation(metrics=["auroc"]).measures
    found = alone.evaluate(alone.initial(), clients=True, metrics=metrics)
    assert found["client_auroc_undefined"] == 6
    assert "client_auroc_mean" not in found
    assert "client_auroc_p10" not in alone.measures(True, metrics=metrics)
    made = small(evaluation={"metrics": ["auroc"]}, stopping={"metric": "client_auroc_p10", "target": 0.9})
    with pytest.raises(InputError, match=r"stopping\.metric = client_auroc_p10: name one of"):
        build_simulation(made, alone)


def test_of_clients_that_have_none_to_be_judged_on_nothing_is_counted():
    given = blobs()
    tests = [*np.arange(12).reshape(2, 6), np.flatnonzero(given["test"][1] == 1)[:3], [], [], []]
    problem = fedsim.supervised(**given, test_clients=tests, model=mlp(), dtype=torch.float64)
    found = problem.evaluate(problem.initial(), clients=True, metrics=Evaluation(metrics=["auroc", "ece"]).measures)
    assert found["client_auroc_undefined"] == 1
    assert "client_ece_undefined" not in found


def test_numbers_are_judged_by_measures_of_numbers(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    model = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(model.weight)
    problem = fedsim.supervised(
        x[:30],
        x[:30] @ [1.0, -2.0, 0.5],
        clients=[range(15), range(15, 29), [29]],
        model=model,
        test=(x[30:], x[30:] @ [1.0, -2.0, 0.5]),
        dtype=torch.float64,
    )
    evaluation = {"metrics": ["r2", "mae"], "every": 1, "clients": True, "keep_best": "test_mae"}
    made = small(
        40,
        selection={"kind": "uniform", "count": 3},
        evaluation=evaluation,
        stopping={"metric": "test_r2", "target": 0.99},
        client={"kind": "sgd", "epochs": 1, "lr": 0.05},
    )
    result = fedsim.run(made, problem=problem, out=tmp_path / "run")
    assert result.status == "stopped"
    assert result.reason.startswith("test_r2 reached 0.99")
    last = result.history.rows[-1]
    said = problem.module(result.params)(problem.x_test).detach()
    assert last["test_r2"] == pytest.approx(reference.r2_score(problem.y_test, said))
    assert last["test_mae"] == pytest.approx(reference.mean_absolute_error(problem.y_test, said))
    assert last["client_r2_undefined"] == 1
    assert last["client_mae_worst"] >= last["client_mae_p90"] >= last["client_mae_mean"]
    assert "client_mae_undefined" not in last
    assert result.summary["best_test_mae"] == min(result.history["test_mae"]) < result.history["test_mae"][0]
    assert result.summary["best_test_r2"] == max(result.history["test_r2"])
    told = StoredRun(tmp_path / "run").asked()
    assert told == {"r2": True, "mae": False}


def test_the_least_of_what_is_better_below_is_kept_and_ends_a_run(tmp_path, missed):
    evaluation = {"metrics": [{"kind": missed, "name": "lost"}], "every": 1, "keep_best": "test_lost"}
    made = small(30, evaluation=evaluation, stopping={"metric": "test_lost", "patience": 3})
    result = fedsim.run(made, problem=small_problem(), out=tmp_path / "run")
    lost = result.history["test_lost"]
    assert result.summary["best_test_lost"] == min(lost) < lost[0]
    best = lost.index(min(lost))
    assert len(lost) == best + 4  # the best one, and three that are no better
    assert result.summary["best_test_lost_round"] == best + 1
    with safe_open(tmp_path / "run" / "best.safetensors", "pt") as kept:
        assert kept.metadata()["best"].startswith(f"round {best + 1}, test_lost ")


def test_patience_and_targets_follow_what_a_measure_says_itself():
    for way, values in ((True, [0.1, 0.3, 0.2]), (False, [0.3, 0.1, 0.2])):
        asked = {"odd": way}
        ended = Stopping(metric="test_odd", patience=1).reached(values, asked)
        assert ended == "test_odd has not improved for 1 evaluation"
        assert Stopping(metric="test_odd", patience=2).reached(values, asked) is None
        assert Stopping(metric="client_odd_mean", target=0.2).reached(values[2:], asked) is not None
        assert (Stopping(metric="test_odd", target=0.25).reached([values[2]], asked) is None) == way


def test_a_folder_says_which_way_is_better_where_the_plug_in_is_gone(tmp_path, missed):
    for seed in (0, 1):
        evaluation = {"metrics": [{"kind": missed, "name": "lost"}, "f1_macro"], "every": 1}
        made = small(4, evaluation=evaluation).with_seed(seed)
        fedsim.run(made, problem=small_problem(), out=tmp_path / "runs" / str(seed))
    (tmp_path / "missed.py").unlink()
    found = compare(tmp_path / "runs", targets={"test_lost": 0.9})
    (group,) = found.groups
    assert found.asked == {"lost": False, "f1_macro": True}
    for run in group.runs:
        assert run.numbers["test_lost, best"] == min(run.history["test_lost"])
        assert run.numbers["test_f1_macro, best"] == max(run.history["test_f1_macro"])
        assert run.spent("test_lost", 0.9)[1]
    labels = [label for label in found.labels if label.startswith("client_")]
    assert labels[:4] == [f"client_{label}_{end}" for label, end in LISTED]
    text = {line[0]: line[1] for line in lines_of(found)}
    assert text["test_f1_macro, final"].count(".") == 2
    assert plots.compare_curves(found.rows, tmp_path / "c.png", asked=found.asked)
    with pytest.raises(InputError, match=r"target = test_lots=0\.9: name one of.*did you mean test_lost"):
        compare(tmp_path / "runs", targets={"test_lots": 0.9})


LISTED = [("accuracy", "p10, final"), ("accuracy", "p10, best"), ("lost", "p90, final"), ("lost", "p90, best")]


def test_a_folder_in_which_somebody_has_written_another_way_is_refused(tmp_path):
    fedsim.run(small(1, evaluation={"metrics": ["f1_macro"]}), problem=small_problem(), out=tmp_path / "run")
    config = (tmp_path / "run" / "config.toml").read_text()
    (tmp_path / "run" / "config.toml").write_text(config.replace('f1_macro = "higher"', 'f1_macro = "sideways"'))
    with pytest.raises(InputError, match=r"resolved\.metrics = .*is not as the run has written it"):
        compare(tmp_path / "run")


def test_a_run_that_goes_on_has_the_same_columns_and_the_same_best_model(tmp_path, missed):
    evaluation = {"metrics": [{"kind": missed, "power": 2.0}, "ece"], "every": 1, "keep_best": "test_missed"}
    made = small(6, evaluation=evaluation, checkpoint={"every": 2})
    whole = fedsim.run(made, problem=small_problem(), out=tmp_path / "whole")
    halted = fedsim.run(
        made, problem=small_problem(), out=tmp_path / "half", callbacks=[lambda told: interrupt_after(told, 3)]
    )
    assert halted.status == "interrupted"
    again = fedsim.resume(tmp_path / "half", problem=small_problem())
    assert torch.equal(again.params, whole.params)
    for column in ("test_missed", "test_ece", "client_missed_p90"):
        assert again.history[column] == whole.history[column]
    assert again.summary["best_test_missed"] == whole.summary["best_test_missed"] == min(whole.history["test_missed"])
    names = [(tmp_path / place / "best.safetensors").read_bytes() for place in ("whole", "half")]
    assert names[0] == names[1]


def interrupt_after(told: Any, number: int) -> None:
    if told.row["round"] == number:
        raise KeyboardInterrupt


def test_models_are_judged_by_measures_under_attack_too(tmp_path):
    attack = {"kind": "fgsm", "epsilon": 0.5, "domain": "none"}
    evaluation = {"metrics": ["balanced_accuracy", "f1_macro"], "attacks": [attack], "attack_clients": True, "every": 1}
    made = small(2, evaluation=evaluation, stopping={"metric": "test_fgsm_f1_macro", "target": 0.999})
    result = fedsim.run(made, problem=small_problem(), out=tmp_path / "run")
    row = result.history.rows[-1]
    assert row["test_fgsm_f1_macro"] < row["test_f1_macro"]
    assert row["client_fgsm_balanced_accuracy_worst"] <= row["client_fgsm_balanced_accuracy_p10"]
    problem, asked = small_problem(), Evaluation(metrics=["f1_macro"]).measures
    trial = fedsim.problems.base.Trial((FGSM(epsilon=0.0, domain="none"),), ("test",), None, True, Streams(0), asked)
    found = problem.attacked(problem.initial(), trial)
    assert list(found) == problem.attacked_measures(trial)
    clean = problem.evaluate(problem.initial(), clients=True, metrics=asked)
    assert found["test_fgsm_f1_macro"] == clean["test_f1_macro"]
    assert found["client_fgsm_f1_macro_p10"] == pytest.approx(clean["client_f1_macro_p10"])


def test_of_outputs_that_are_not_finite_only_the_loss_is_said_which_ends_the_run():
    problem, metrics = small_problem(), Evaluation(metrics=["auroc", "ece"]).measures
    found = problem.evaluate(1e300 * problem.initial(), clients=True, metrics=metrics)
    assert list(found) == problem.measures(True)
    assert not math.isfinite(found["test_loss"])


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"metrics": ["f1_marco"]}, r"evaluation\.metrics\.0 = f1_marco: name one of: .*did you mean f1_macro\?"),
        (
            {"metrics": "auroc", "keep_best": "test_auc"},
            r"keep_best = test_auc: name one of: .*did you mean test_auroc",
        ),
        ({"metrics": ["ece", {"kind": "ece", "bins": 5}]}, r"metrics\.1 = ece: metrics\.0 has the same name"),
        ({"metrics": [{"kind": "ece", "name": "loss"}]}, r"metrics\.0 = loss: columns of other measures"),
        ({"metrics": [{"kind": "ece", "name": "a_worst"}]}, r"metrics\.0 = a_worst: columns of other measures"),
        ({"metrics": [{"kind": "ece", "name": "A b"}]}, r"metrics\.0\.name = A b: "),
        ({"metrics": [{"kind": "ece", "bins": 0}]}, r"evaluation\.metrics\.0\.bins = 0"),
        ({"metrics": [{"kind": "mean"}]}, r"evaluation\.metrics\.0\.kind = mean: not one of the installed measures"),
        ({"metrics": 3}, r"evaluation\.metrics = 3"),
        ({"metrics": ["mae"]}, r"evaluation\.metrics\.0\.kind = mae: is about numbers, and these targets are classes"),
        ({"metrics": ["top_3_accuracy"]}, r"evaluation\.metrics\.0\.k = 3: there are 3 classes"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(tables, said):
    with pytest.raises(InputError, match=said):
        build_simulation(small(evaluation=tables), small_problem())


@pytest.mark.parametrize(
    ("target", "metric", "said"),
    [
        (1.5, "test_auroc", "test_auroc is never above 1; lower it"),
        (-0.5, "client_ece_p90", "client_ece_p90 is never below 0; raise it"),
    ],
)
def test_a_target_that_no_model_reaches_is_refused(target, metric, said):
    made = small(evaluation={"metrics": ["auroc", "ece"], "every": 1}, stopping={"metric": metric, "target": target})
    with pytest.raises(InputError, match=rf"stopping\.target = {target}: {said}"):
        build_simulation(made, small_problem())


def test_a_measure_that_the_test_set_does_not_allow_is_refused():
    given = blobs()
    x, y = given["test"]
    one = fedsim.supervised(**(given | {"test": (x[y == 1], y[y == 1])}), model=small_problem().model.module)
    with pytest.raises(
        InputError, match=r"metrics\.0\.kind = auroc: is undefined on the test examples: all .* one class"
    ):
        build_simulation(small(evaluation={"metrics": ["auroc"]}), one)


def test_a_black_box_has_no_outputs_to_measure():
    made = small(client={"kind": "fedzo"}, evaluation={"metrics": ["auroc"]})
    with pytest.raises(InputError, match=r"evaluation\.metrics = auroc: the clients of a black box"):
        build_simulation(made, small_functions())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("class Missed(Measure)", "class Missed"), r"make it a subclass of fedsim\.problems\.measures\.Measure"),
        (("= False", '= "no"'), r"higher_is_better is neither True nor False"),
        (("    higher_is_better = False\n", ""), r"it has no higher_is_better, which all measures have"),
        (("__call__(self, outputs, targets)", "__call__(self, outputs)"), r"__call__"),
    ],
)
def test_a_class_that_is_no_measure_is_refused(tmp_path, change, said):
    (tmp_path / "missed.py").write_text(MISSED.replace(*change))
    with pytest.raises(InputError, match=said):
        Evaluation(metrics=[f"{tmp_path / 'missed.py'}:Missed"])


def test_what_is_asked_for_is_said_first_of_a_run(tmp_path, monkeypatch):
    result = fedsim.run(small(1, evaluation={"metrics": ["f1_macro"]}), problem=small_problem(), out=tmp_path / "run")
    said = words.measures(result.summary, result.asked)
    assert f"test f1 macro {result.summary['test_f1_macro']:.4f}" in said
    assert "test_f1_macro" in repr(result)
    assert "test_f1_macro" in result._repr_html_()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_test_f1_macro"] == summary["test_f1_macro"]
    assert StoredRun(tmp_path / "run").summary() == summary
    shown = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda **_: Console(file=shown, force_terminal=True, width=150))
    with progress.Progress(3, None, "x", result.asked) as bar:
        bar(SimpleNamespace(row={**result.history.rows[-1], "round": 1}))
        bar._live.refresh()
    assert "f1_macro 0." in shown.getvalue()


def test_columns_of_counts_are_not_drawn(tmp_path):
    rows = [{"round": 1, "client_auroc_mean": 0.5, "client_auroc_undefined": 3}]
    assert plots.measured(rows[0], {"auroc": True}) == ["client_auroc_mean"]
    assert plots.curves(rows, tmp_path / "c.png", {"auroc": True})


def test_pages_of_a_run_without_measures_are_as_before():
    row = small_problem().evaluate(small_problem().initial(), clients=True)
    assert list(row) == ["test_loss", "test_accuracy", *(f"client_accuracy_{end}" for end in ("mean", "p10", "worst"))]
    assert all(map(math.isfinite, row.values()))


def test_tokens_count_one_by_one_and_places_without_a_target_do_not():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(9, 4, 5)), generator.integers(0, 3, (9, 4))
    y[2, 1:] = y[6, :2] = y[8, 3] = -100
    problem = fedsim.supervised(
        *(x[:6], y[:6]),
        test=(x[6:], y[6:]),
        clients=[[0, 1], [2, 3], [4, 5]],
        model=torch.nn.Linear(5, 3),
        dtype=torch.float64,
    )
    metrics = Evaluation(metrics=["perplexity", "token_accuracy", "mean_iou"]).measures
    found = problem.evaluate(problem.initial(), clients=True, metrics=metrics)

    def expected(rows: slice) -> list[float]:
        outputs = outputs_of(problem, problem.initial(), torch.from_numpy(x[rows]))
        counts = y[rows] != -100
        given, wanted = outputs.numpy()[counts], y[rows][counts]
        loss = reference.log_loss(wanted, torch.from_numpy(given).softmax(dim=1), labels=[0, 1, 2])
        said = given.argmax(axis=1)
        iou = reference.jaccard_score(wanted, said, average="macro", zero_division=0)
        return [math.exp(loss), reference.accuracy_score(wanted, said), iou]

    labels = [measure.label for measure in metrics]
    assert [found[f"test_{label}"] for label in labels] == pytest.approx(expected(slice(6, 9)))
    clients = [expected(slice(2 * client, 2 * client + 2)) for client in range(3)]
    assert [found[f"client_{label}_mean"] for label in labels] == pytest.approx(np.mean(clients, axis=0))
    assert found["client_perplexity_worst"] == pytest.approx(max(perplexity for perplexity, _, _ in clients))
    assert found["client_mean_iou_worst"] == pytest.approx(min(iou for _, _, iou in clients))
    of_clients = problem.client_measures(problem.initial(), metrics)
    assert of_clients["token_accuracy"].tolist() == pytest.approx([accuracy for _, accuracy, _ in clients])


def test_tags_and_several_numbers_are_judged_by_theirs():
    generator = np.random.default_rng(0)
    x, scores = generator.normal(size=(30, 5)), generator.normal(size=(30, 3))
    given: dict[str, Any] = {"clients": [range(20)], "model": torch.nn.Linear(5, 3), "dtype": torch.float64}
    tags = (scores > 0).astype(np.float32)
    problem = fedsim.supervised(x[:20], tags[:20], test=(x[20:], tags[20:]), task="tags", **given)
    metrics = Evaluation(metrics=["f1_samples", "auroc", "hamming_loss"]).measures
    found = problem.evaluate(problem.initial(), clients=True, metrics=metrics)
    outputs = outputs_of(problem, problem.initial(), problem.x_test).numpy()
    assert found["test_f1_samples"] == pytest.approx(
        reference.f1_score(tags[20:], outputs > 0, average="samples", zero_division=0)
    )
    assert found["test_auroc"] == pytest.approx(reference.roc_auc_score(tags[20:], outputs))
    assert found["test_hamming_loss"] == pytest.approx(1.0 - found["test_accuracy"])
    problem = fedsim.supervised(x[:20], scores[:20], test=(x[20:], scores[20:]), **given)
    metrics = Evaluation(metrics=["r2", "rmse"]).measures
    found = problem.evaluate(problem.initial(), clients=True, metrics=metrics)
    outputs = outputs_of(problem, problem.initial(), problem.x_test).numpy()
    assert found["test_r2"] == pytest.approx(reference.r2_score(problem.y_test, outputs))
    assert found["test_rmse"] == pytest.approx(reference.root_mean_squared_error(problem.y_test, outputs))


def test_clients_own_models_are_judged_by_measures_too(tmp_path):
    given = blobs()
    of_one_class = np.flatnonzero(given["test"][1] == 1)[:3]
    tests = [*np.arange(12).reshape(2, 6), of_one_class, [], [], []]
    own = fedsim.supervised(**given, test_clients=tests, model=mlp(), dtype=torch.float64, device="cpu").keeping("head")
    made = small(2, evaluation={"metrics": ["auroc", "ece"], "every": 1})
    result = fedsim.run(made, problem=own, out=tmp_path / "run")
    row = result.history.rows[-1]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "run" / "clients.csv").read_text())))
    values = [float(line["personal_auroc"]) for line in lines if line["personal_auroc"]]
    assert (len(values), row["personal_auroc_undefined"]) == (2, 1)
    assert row["personal_auroc_mean"] == pytest.approx(np.mean(values))
    assert row["personal_auroc_std"] == pytest.approx(np.std(values))
    assert row["personal_auroc_worst"] == pytest.approx(min(values))
    assert row["personal_ece_worst"] == pytest.approx(max(float(line["personal_ece"]) for line in lines[:3]))
    assert 0.0 < row["personal_auroc"] < 1.0
    asked = Evaluation(metrics=["auroc", "ece"]).measures
    names = result.problem.judged.of_owners("personal", ("test",), asked)
    assert [name for name in row if name.startswith("personal_") and name.rpartition("_")[2] not in COUNTS] == names
    labels = [label for label in compare(result).labels if label.startswith("personal_")]
    assert "personal_auroc_p10, best" in labels
    assert not [label for label in labels if "_std" in label or "_mean" in label or "undefined" in label]


@options
class Never(Measure):
    """Undefined by its outputs, which no look at targets tells beforehand."""

    higher_is_better = True

    def __call__(self, outputs, targets):
        return math.nan


def test_what_a_measure_leaves_undefined_of_clients_own_models_is_left_out_and_ends_no_run():
    problem = small_problem()
    rows, count = problem.judged.own()
    outputs = outputs_of(problem, problem.initial(), rows.x if rows.index is None else rows.x[rows.index])
    found = problem.judged.personal_scores("personal", outputs, rows, count, [Never()])
    assert [name for name in found if "never" in name] == ["personal_never_undefined"]
    assert all(map(math.isfinite, found.values()))


COUNTS = ("undefined", "untrained")

"""Whole runs that are judged on examples set aside: what ends them, and what they leave."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import fedsim
from fedsim.core.errors import InputError
from fedsim.engine.cohort import PRIVATE
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running import runner
from fedsim.running.build import build_problem, build_simulation
from fedsim.testing.problems import blobs, mlp, small_experiment

ON = {"on": "validation", "every": 1}


def problem(**given: Any) -> Supervised:
    return supervised(**blobs(), model=mlp(), **given)


def best_of(folder: Path) -> str:
    with safe_open(folder / "best.safetensors", "pt") as best:
        found: str = best.metadata()["best"]
    return found


def test_a_run_on_validation_alone_never_asks_the_model_about_the_test_set(tmp_path):
    own = problem(validation=0.3, test_clients=[[one] for one in range(6)])
    own.x_test.fill_(math.nan)
    result = fedsim.run(small_experiment(2, evaluation=ON), problem=own, out=tmp_path / "run")
    assert result.status == "finished"
    assert not [name for name in result.history.columns if name.startswith(("test_", "client_"))]
    assert "validation_client_accuracy_p10" in result.summary
    lines = list(csv.DictReader((tmp_path / "run" / "clients.csv").read_text().splitlines()))
    assert [line["examples"] for line in lines] == ["2", "1", "4", "0", "2", "3"]
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_validation_measure_ends_a_run_keeps_the_best_model_and_is_a_target(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "curves", lambda *_: None)
    tables: dict[str, Any] = {
        "stopping": {"metric": "validation_loss", "patience": 1},
        "evaluation": ON | {"keep_best": "validation_accuracy"},
        "client": {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 3.0},
    }
    result = fedsim.run(small_experiment(20, **tables), problem=problem(validation=0.3), out=tmp_path / "run")
    losses, accuracies = result.history["validation_loss"], result.history["validation_accuracy"]
    worse = next(place for place in range(1, 20) if losses[place] >= min(losses[:place]))
    assert (result.status, len(losses)) == ("stopped", worse + 1)
    first = 1 + accuracies.index(max(accuracies))
    assert best_of(tmp_path / "run") == f"round {first}, validation_accuracy {max(accuracies)}"
    compared = fedsim.compare(tmp_path, targets={"validation_accuracy": max(accuracies)})
    assert compared.spent["validation_accuracy"][0]["rounds"].median == first
    assert {"validation_accuracy, best", "validation_client_accuracy_p10, final"} <= set(compared.labels)
    assert "validation_client_accuracy_mean, final" not in compared.labels


def test_models_of_the_clients_own_are_judged_on_what_each_has_set_aside():
    own = problem(validation=0.3).keeping("head")
    simulation = build_simulation(small_experiment(2, evaluation=ON), own)
    *_, row = simulation
    judged = {name for name in row if "personal" in name}
    assert {"validation_personal_loss", "validation_personal_accuracy_worst", "personal_untrained"} <= judged
    assert not [name for name in judged if name.startswith("personal_a")]
    rows = simulation.parts.engine.memories().look(PRIVATE, own.sizes.new_tensor(range(6)))[0]
    right, order, offset = 0, own.partition.validation_order, own.partition.validation_offset
    for client in range(6):
        part = order[offset[client] : offset[client + 1]]
        outputs = own.module(simulation.params, rows[client])(own.data.x[part])
        right += int((outputs.argmax(dim=1) == own.data.y[part]).sum())
    assert row["validation_personal_accuracy"] == pytest.approx(right / len(order))


@pytest.mark.parametrize(
    ("given", "tables", "words"),
    [
        ({}, {"evaluation": ON}, r"^evaluation\.on = validation: no example is set aside"),
        ({}, {"evaluation": {"on": ["test", "validation"]}}, r"^evaluation\.on = validation: no example is set aside"),
        ({"validation": 0.3}, {"stopping": {"patience": 1}, "evaluation": ON}, r"^stopping\.metric = test_accuracy"),
        (
            {"validation": 0.3},
            {"evaluation": {"keep_best": "validation_accuracy"}},
            r"^evaluation\.keep_best = validation_accuracy: name one of",
        ),
    ],
)
def test_what_is_not_measured_is_refused(given, tables, words):
    with pytest.raises(InputError, match=words):
        build_simulation(small_experiment(5, **tables), problem(**given))


def test_clients_set_aside_have_no_models_of_their_own():
    dealt = {"kind": "iid", "clients": 10, "validation_clients": 0.3}
    tables = {"problem": {"dataset": "digits"}, "partition": dealt, "evaluation": ON}
    own = build_problem(small_experiment(1, **tables)).keeping("head")
    with pytest.raises(InputError, match=r"^partition\.validation_clients = 3 clients: .* who is set aside has none"):
        build_simulation(small_experiment(1, **tables), own)

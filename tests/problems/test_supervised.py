"""The test set that follows the seed or does not, and clients that keep the names of owners."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.plots.labels import PARTITION
from fedsim.running.build import build_problem
from fedsim.running.stored import TRACE


def built(seed: int = 0, **problem: object):
    """The problem of an experiment on digits, or another data set."""
    partition = problem.pop("partition", {"kind": "iid", "clients": 3})
    made = fedsim.experiment(seed=seed, problem={"model": "logistic", **problem}, partition=partition)
    return build_problem(made)


def test_a_test_set_is_one_for_all_seeds_or_each_seed_draws_its_own():
    fixed, other = (built(seed).dataset for seed in (0, 1))
    assert np.array_equal(fixed.x_test, other.x_test)
    first, again, second = (built(seed, split="seed").dataset for seed in (0, 0, 1))
    assert np.array_equal(first.x_test, again.x_test)
    assert first.x_test.shape == second.x_test.shape == fixed.x_test.shape
    assert not np.array_equal(first.x_test, second.x_test)
    # Whatever is not tested is trained on: all 1,797 images, each once.
    rows = {image.tobytes() for image in (*second.x, *second.x_test)}
    assert rows == {image.tobytes() for image in (*fixed.x, *fixed.x_test)}


TABLE = "hospital,age,sick\n" + "".join(
    f"{hospital},{age},{age % 2}\n" for hospital in ("Zürich", "$Basel", "cleveland") for age in range(30, 40)
)


@pytest.fixture
def table(tmp_path):
    """A table of three hospitals, each with ten patients, as a data set."""
    (tmp_path / "heart.csv").write_text(TABLE, encoding="utf-8")
    return {"kind": "csv", "path": str(tmp_path / "heart.csv"), "label": "sick", "owner": "hospital"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_seed": 3}, "the test set cannot follow split_seed = 3, too; remove one of them"),
        ({"test_path": "more.csv"}, "heart has a test set of its own; remove it"),
        ({"kind": "synthetic", "clients": 3}, "synthetic draws no test set; remove it"),
    ],
)
def test_a_split_that_cannot_follow_the_seed_is_refused(tmp_path, table, change, words):
    (tmp_path / "more.csv").write_text(TABLE, encoding="utf-8")
    dataset = change if "kind" in change else table | change
    if "test_path" in change:
        dataset["test_path"] = str(tmp_path / "more.csv")
    with pytest.raises(InputError) as caught:
        built(dataset=dataset, split="seed")
    assert str(caught.value) == f"problem.split = seed: {words}"


def test_examples_of_one_class_are_refused(tmp_path, table):
    (tmp_path / "heart.csv").write_text("age,sick,hospital\n60,yes,a\n61,yes,b\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^problem\.dataset = heart: all examples are of one class"):
        built(dataset=table)


def test_a_seed_of_a_split_that_is_not_made_is_refused(tmp_path, table):
    (tmp_path / "more.csv").write_text(TABLE, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        built(dataset=table | {"test_path": str(tmp_path / "more.csv"), "split_seed": 1})
    assert str(caught.value) == "problem.dataset.split_seed = 1: heart has a test set of its own; remove it"


def test_clients_keep_the_names_of_their_owners(tmp_path, table):
    assert built(dataset=table, partition={"kind": "natural"}).names == ["$Basel", "Zürich", "cleveland"]
    kept = built(dataset=table, partition={"kind": "natural", "clients": 2})
    assert kept.names == ["$Basel", "Zürich"]
    assert built(dataset=table).names is None  # dealt evenly, a client has patients of several
    assert built(partition={"kind": "iid", "clients": 3}).names is None
    problem = {"dataset": table, "model": "logistic"}
    made = fedsim.experiment(rounds=1, problem=problem, partition={"kind": "natural"})
    result = fedsim.run(made, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / TRACE).read_text())["clients"] == ["$Basel", "Zürich", "cleveland"]
    assert (tmp_path / "run" / PARTITION).is_file()
    assert result.config["problem"]["split"] == "fixed"


def test_a_model_for_each_client_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r"^problem\.model = 2 models: clients train one architecture"):
        fedsim.experiment(problem={"model": ["mlp", "logistic"]})

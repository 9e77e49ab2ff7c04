"""A population of a million clients costs arrays, and no work in Python by client: counted here among few clients."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions.library import IID, Dirichlet, Linear, Shards
from fedsim.running.build import build_problem, build_simulation
from fedsim.running.history import read_rows
from fedsim.running.simulation import Simulation
from fedsim.running.stored import METRICS

FEATURES, EXAMPLES = 10, 20


def built(clients: int, cohort: int = 10) -> Simulation:
    experiment = fedsim.experiment(
        rounds=2,
        problem={
            "dataset": {"kind": "synthetic", "clients": clients, "examples_per_client": EXAMPLES, "test_share": 0.0}
            | {"features": FEATURES},
            "model": "logistic",
        },
        partition="natural",
        selection={"kind": "uniform", "count": cohort},
        client={"kind": "sgd", "epochs": 1, "batch_size": 10},
        evaluation={"every": 0},
    )
    return build_simulation(experiment, build_problem(experiment))


def calls(work: Callable[[], Any]) -> int:
    """How many functions, Python's and built-in ones, this calls."""
    count = 0

    def counted(_frame: object, event: str, _what: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_ten_times_the_clients_are_not_built_by_more_calls():
    built(100)  # what is made once for a process
    assert calls(lambda: built(1000)) < 1.1 * calls(lambda: built(100))


def test_a_round_among_ten_times_the_clients_makes_no_more_calls():
    few, many = built(100), built(1000)
    assert calls(many.step) < 1.1 * calls(few.step)


def test_a_client_more_in_a_cohort_costs_few_calls():
    few, many = (built(clients, cohort=clients) for clients in (500, 1500))
    few.step()
    assert calls(many.step) - calls(few.step) < 40 * 1000


@pytest.mark.parametrize(
    ("kind", "options"),
    [(IID, {}), (Dirichlet, {"alpha": 0.5, "min_size": 0}), (Shards, {}), (Linear, {})],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_ten_times_the_clients_are_not_dealt_to_by_more_calls(kind, options):
    count = 20_000
    y, x = np.arange(count) % 10, np.zeros((count, 1), np.float32)
    data = Dataset("labelled", x, y, x[:1], y[:1], 10)
    few, many = (kind(clients=clients, **options) for clients in (19, 190))
    few.split(data, 0)
    assert calls(lambda: many.split(data, 0)) < 1.1 * calls(lambda: few.split(data, 0))


def test_rows_are_read_one_after_the_other(tmp_path):
    row = {"round": 0, "train_loss": 0.125, "test_accuracy": 0.5, "bytes_up": 1 << 20}
    file = tmp_path / METRICS
    file.write_text("".join(f"{json.dumps(row | {'round': number})}\n" for number in range(5_000)))
    read_rows(file)
    tracemalloc.start()
    try:
        rows = read_rows(file)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [row["round"] for row in rows] == list(range(5_000))
    # Beside the rows there are a block of the file and a line of it at a time; and all rows share the names.
    assert peak < held + 100_000 < held + file.stat().st_size / 2
    assert all(name is first for row in rows for name, first in zip(row, rows[0], strict=True))


def test_a_population_takes_little_more_memory_than_its_examples():
    clients = 20_000
    tracemalloc.start()
    try:
        made = built(clients)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # An example is its numbers, its label, its owner, and its place among the client's, of eight bytes each.
    data = clients * EXAMPLES * (4 * FEATURES + 3 * 8)
    assert made.parts.problem.num_clients == clients
    assert held < 1.15 * data
    assert peak < 1.25 * data

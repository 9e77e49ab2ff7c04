"""Inputs that the server has: where they are from, and what clients are left with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.core.data_files import DataFolder
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.problems.datasets import Dataset
from fedsim.problems.partitions.base import Partition
from fedsim.problems.partitions.library import Dirichlet
from fedsim.problems.public import HeldOut, Noise, OtherData
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_problem
from fedsim.testing.problems import blobs, mlp, small_experiment

GENERATOR = np.random.default_rng(7)
DATA = Dataset(
    "own",
    GENERATOR.normal(3.0, 2.0, (240, 2)).astype(np.float32),
    GENERATOR.integers(0, 6, 240),
    np.zeros((60, 2), np.float32),
    np.zeros(60, np.int64),
    6,
)
PARTITION = Dirichlet(clients=20, alpha=0.3).split(DATA, 0)
HERE = DataFolder(None)


def lists(partition: Partition) -> list[list[int]]:
    return [partition.order[begin:end].tolist() for begin, end in pairwise(partition.offset)]


@pytest.mark.parametrize("count", [1, 100, 220])
def test_what_is_held_out_no_client_has_and_all_else_they_keep(count):
    left, inputs = HeldOut(examples=count).take(DATA, PARTITION, 3, HERE)
    places = [int(np.flatnonzero((DATA.x == row).all(axis=1))[0]) for row in inputs]
    assert len(set(places)) == count
    kept = lists(left)
    assert min(map(len, kept)) >= 1
    assert kept == [[own for own in row if own not in places] for row in lists(PARTITION)]
    assert not np.array_equal(inputs, HeldOut(examples=count).take(DATA, PARTITION, 4, HERE)[1])


def test_where_clients_share_an_example_it_is_taken_from_all():
    shared = Partition.from_lists([[0, 1, 2, 3], [2, 3, 4], [4, 5, 2, 2]])
    for seed in range(20):
        left, inputs = HeldOut(examples=3).take(DATA, shared, seed, HERE)
        places = {int(np.flatnonzero((DATA.x == row).all(axis=1))[0]) for row in inputs}
        assert len(places) == 3
        assert lists(left) == [[own for own in row if own not in places] for row in lists(shared)]


def test_everybody_keeps_one_and_more_is_refused():
    alone = Partition.from_lists([[0], [1, 2], [3, 4, 5]])
    left, _ = HeldOut(examples=3).take(DATA, alone, 0, HERE)
    assert np.diff(left.offset).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=r"^problem.public.examples = 4: clients can spare 3 of their 6 examples"):
        HeldOut(examples=4).take(DATA, alone, 0, HERE)


def test_noise_is_like_the_inputs_as_a_whole():
    """Of mean 3 and deviation 2; what lies beyond the least and the largest input is those."""
    left, inputs = Noise(examples=4000).take(DATA, PARTITION, 3, HERE)
    assert left is PARTITION
    assert (inputs.shape, inputs.dtype) == ((4000, 2), np.float32)
    assert inputs.mean() == pytest.approx(float(DATA.x.mean()), abs=0.1)
    assert inputs.std() == pytest.approx(float(DATA.x.std()), rel=0.05)
    assert (inputs.min(), inputs.max()) == (DATA.x.min(), DATA.x.max())
    few = Noise(examples=10).take(DATA, PARTITION, 3, HERE)[1]
    assert np.array_equal(few, inputs[:10])
    assert not np.array_equal(few, Noise(examples=10).take(DATA, PARTITION, 4, HERE)[1])
    with pytest.raises(InputError, match=r"^problem.public = noise: the inputs are tokens"):
        Noise(examples=1).take(tokens(), PARTITION, 0, HERE)


def tokens() -> Dataset:
    return Dataset("tokens", np.arange(8).reshape(4, 2), np.arange(4), np.zeros((1, 2), int), np.zeros(1, int), 4)


@options
class Ramp:
    """Inputs 0, 1, 2, ... in rows of `width`."""

    width: int = 2

    def load(self, folder: DataFolder) -> Dataset:
        x = np.arange(30 * self.width, dtype=np.float32).reshape(30, self.width)
        return Dataset("ramp", x, np.zeros(30, np.int64), x, np.zeros(30, np.int64), 2)


def test_inputs_of_another_data_set_must_lie_as_the_problems():
    kind = f"{__file__}:Ramp"
    left, inputs = OtherData(dataset={"kind": kind}, examples=7).take(DATA, PARTITION, 3, HERE)
    assert left is PARTITION
    assert inputs.shape == (7, 2)
    assert {tuple(row) for row in inputs.tolist()} < {(2.0 * row, 2.0 * row + 1.0) for row in range(30)}
    assert OtherData(dataset={"kind": kind}).take(DATA, PARTITION, 3, HERE)[1].shape == (30, 2)
    for given, data, why in (
        ({"dataset": {"kind": kind, "width": 3}}, DATA, r"dataset = ramp: are 30 floats \[3\], and training inputs"),
        ({"dataset": kind}, tokens(), r"dataset = ramp: are 30 floats \[2\], and training inputs tokens \[2\]"),
        ({"dataset": kind, "examples": 31}, DATA, "examples = 31: there are 30 training inputs in ramp"),
    ):
        with pytest.raises(InputError, match=f"^problem.public.{why}"):
            OtherData(**given).take(data, PARTITION, 0, HERE)


def built(public: Any, seed: int = 0) -> Supervised:
    tables: dict[str, Any] = {
        "problem": {"dataset": "digits", "public": public},
        "partition": {"kind": "dirichlet", "clients": 10, "alpha": 0.5, "holdout": 0.2, "validation": 0.2},
    }
    problem = build_problem(small_experiment(seed=seed, **tables))
    assert isinstance(problem, Supervised)
    return problem


def test_an_experiment_keeps_what_it_judges_clients_by():
    """What is held out of training and validation is the same with public inputs and without."""
    without, with_them = built(None), built({"kind": "held_out", "examples": 200})
    assert without.public is None
    assert with_them.public is not None
    assert with_them.public.shape == (200, *without.data.x.shape[1:])
    assert int(without.sizes.sum() - with_them.sizes.sum()) == 200
    for name in ("holdout_order", "validation_order"):
        assert np.array_equal(getattr(without.partition, name), getattr(with_them.partition, name))
    trained = with_them.data.x[with_them.data.order].flatten(1)
    assert not set(map(tuple, with_them.public.flatten(1).tolist())) & set(map(tuple, trained.tolist()))
    noise = built({"kind": "noise", "examples": 5})
    assert noise.public is not None
    assert torch.equal(noise.sizes, without.sizes)
    other = built({"kind": "dataset", "dataset": {"kind": "digits", "split_seed": 4}, "examples": 5})
    assert other.public is not None
    assert len(other.public) == 5


@pytest.mark.parametrize(
    ("public", "why"),
    [
        ({"kind": "held_out"}, r"^problem.public.examples = \(nothing\): this option has no default"),
        ({"examples": 5}, "^problem.public.kind = None: name one of: held_out, noise, dataset"),
        ({"kind": "noise", "examples": 0}, "^problem.public.examples = 0"),
        ({"kind": "dataset", "dataset": "nowhere"}, "^problem.public.dataset.kind = nowhere: not one of"),
        ({"kind": "held_out", "examples": 10_000}, "^problem.public.examples = 10000: clients can spare"),
    ],
)
def test_a_table_that_cannot_be_is_refused(public, why):
    with pytest.raises(InputError, match=why):
        built(public)


def test_inputs_of_ones_own():
    """They are copied, and have the problem's precision; whole numbers are floats where the others are."""
    data, own = blobs(), np.ones((4, 6), dtype=np.int64)
    problem = fedsim.supervised(**data, model=mlp(), public=own)
    own[:] = 5
    assert problem.public is not None
    assert (problem.public.dtype, problem.public.tolist()) == (torch.float32, [[1.0] * 6] * 4)
    for given, why in (
        (np.ones((4, 5)), r"^public = inputs: are 4 floats \[5\], and training inputs floats \[6\]"),
        (np.ones((0, 6)), "^public = inputs: are 0 floats"),
        ([[float("nan")] * 6], "^public = nan"),
    ):
        with pytest.raises(InputError, match=why):
            fedsim.supervised(**data, model=mlp(), public=given)


def test_tokens_that_the_model_does_not_know():
    x = np.array([[0, 1], [2, 3]])
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(4, 2))
    assert fedsim.supervised(x, [0, 1], model=model, clients=[[0], [1]], public=x[:1]).public is not None
    with pytest.raises(InputError, match=r"example 0 of the public inputs, with tokens 4 \.\. 4"):
        fedsim.supervised(x, [0, 1], model=model, clients=[[0], [1]], public=[[4, 4]])

"""Batches for an app's own loop: those of our clients' curriculum, and what draws follow."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch.utils.data import DataLoader, TensorDataset

from fedsim.client.curriculum import SampleCurriculum
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.engine.batches import Batching, plan_batches
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.flower.local import curriculum
from fedsim.running.build import build_executor
from fedsim.testing.problems import small_experiment, small_problem

pytestmark = pytest.mark.usefixtures("local_flower")
SIZES = (11, 8, 1)


def message(server_round=1):
    config = ConfigRecord({} if server_round is None else {"server-round": server_round})
    return Message(RecordDict({"config": config}), 1, "train")


def context(partition=0):
    node_config = {} if partition is None else {"partition-id": partition, "num-partitions": 3}
    return Context(1, 2**40 + 7, node_config, RecordDict(), {})


@pytest.mark.parametrize(
    "options",
    [
        {"floor": 1},
        {"floor": 3, "order": "anti", "pacing": {"kind": "step", "a": 0.5, "b": 0.3}},
        {"floor": 1, "order": "random", "budget": "published"},
        {"floor": 1, "budget": "published", "pacing": "exponential"},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [4, "full"])
def test_the_batches_are_those_that_our_clients_take(options, batch_size):
    problem, ours, seed, turn = small_problem(sizes=SIZES), SampleCurriculum(**options), 5, 6
    executor = build_executor(small_experiment(seed=seed, selection={"kind": "uniform", "count": 1}), problem)
    width = None if batch_size == "full" else batch_size
    for client, size in enumerate(SIZES):
        job = executor.assign(Order("train", torch.tensor([client]), {"params": problem.initial()}, turn=turn))
        cohort = Cohort(problem, executor.network, Streams(seed), job, {})
        losses = SampleCurriculum().scores(cohort)[0, :size]
        plan = plan_batches(Batching(
            Streams(seed), cohort.clients, torch.arange(size), torch.tensor([0]), cohort.examples, epochs=None,
            steps=None, batch_size=width or size, turn=turn, course=ours.course(cohort, 3, width),
        ))  # fmt: skip
        expected = [row[:count].tolist() for row, count in zip(plan.index, plan.count.tolist(), strict=True)]
        found = curriculum(
            message(turn + 1), context(client), losses, epochs=3, batch_size=batch_size, seed=seed, **options
        )
        assert found == expected


LOSSES = np.array([0.3, np.nan, 0.1, 0.2])


def test_easy_examples_come_first_and_what_is_not_finite_is_hard():
    options = {"epochs": 4, "batch_size": 1, "floor": 2, "pacing": {"kind": "step", "a": 0.75, "b": 0.5}}
    easy = curriculum(message(), context(), LOSSES, **options)
    hard = curriculum(message(), context(), LOSSES.tolist(), order="anti", **options)
    assert len(easy) == len(hard) == 16  # 12 of them about two examples, 4 about all
    assert [sorted({index for (index,) in batches[:12]}) for batches in (easy, hard)] == [[2, 3], [0, 1]]
    assert sorted(index for (index,) in easy[12:]) == [0, 1, 2, 3]


def test_draws_follow_seed_round_and_node_and_no_generator_of_the_process():
    options = {"epochs": 2, "batch_size": 4}
    losses = np.arange(40.0)

    def drawn(server_round=1, partition=0, **more):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        before = (torch.initial_seed(), torch.rand(1), np.random.get_state()[1].tolist())  # noqa: NPY002
        found = curriculum(message(server_round), context(partition), losses, **options, **more)
        torch.manual_seed(0)
        assert (torch.initial_seed(), torch.rand(1), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
        return found

    assert drawn() == drawn()
    others = [drawn(), drawn(server_round=2), drawn(partition=1), drawn(seed=1), drawn(partition=None)]
    assert len({str(batches) for batches in others}) == 5


def test_a_data_loader_takes_them():
    data = TensorDataset(torch.arange(10))
    batches = curriculum(message(), context(), np.arange(10.0), epochs=2, batch_size=4, floor=3)
    loader = DataLoader(data, batch_sampler=batches)
    assert len(loader) == 6
    assert [x.tolist() for (x,) in loader] == batches
    assert curriculum(message(), context(), [], epochs=2, batch_size="full") == []


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: curriculum(message(None), context(), LOSSES, epochs=1, batch_size=1),
            r"^server-round = \(nothing\): ",
        ),
        (lambda: curriculum(message(0), context(), LOSSES, epochs=1, batch_size=1), "^server-round = 0.0: "),
        (lambda: curriculum(message(), context(), 0.5, epochs=1, batch_size=1), r"^losses = \(\): "),
        (lambda: curriculum(message(), context(), LOSSES, epochs=0, batch_size=1), "^epochs = 0: "),
        (lambda: curriculum(message(), context(), LOSSES, epochs=1, batch_size=1, order="up"), "^order = up: "),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, said):
    with pytest.raises(InputError, match=said):
        call()

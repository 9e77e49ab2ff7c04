"""FedIvon: models are merged number by number, by how surely clients know them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.exchange.messages import Order, Replies
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import small_experiment, small_problem
from strategies.fedivon import FedIvon

CLIENT = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1, "optimizer": {"kind": "ivon", "h0": 0.5}}


def replies(delta, precision, examples) -> Replies:
    count, number = len(delta), torch.arange(len(delta))
    payload = {
        name: torch.tensor(rows, dtype=torch.float64) for name, rows in (("delta", delta), ("precision", precision))
    }
    return Replies(
        clients=number,
        payload=payload,
        metrics={"loss": torch.zeros(count)},
        examples=torch.tensor(examples),
        failed=torch.tensor([], dtype=torch.int64),
        round=0,
        versions=torch.zeros(count, dtype=torch.int64),
        durations=torch.ones(count, dtype=torch.int64),
        orders=[Order("train", number, {})],
        origin=[0] * count,
    )


def test_a_merge_by_hand():
    """Precisions 1 and 3: (1 x 2 + 3 x 6) / 4 = 5; the second number is the first client's alone, the third nobody's.

    By examples, 3 to 1: (3 x 2 + 3 x 6) / 6 = 4.
    """
    told = replies([[2.0, 8.0, 1.0, 2.0], [6.0, 4.0, 1.0, 6.0]], [[1.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]], [3, 1])
    state = ServerState(torch.ones(4, dtype=torch.float64), trained=3)
    moved, _, done = FedIvon(weighting="uniform").tell(state, told)
    assert (moved.params.tolist(), done) == ([6.0, 9.0, 1.0, 5.0], True)
    moved, _, _ = FedIvon(server_lr=0.5).tell(state, told)
    assert moved.params.tolist() == [3.0, 5.0, 1.0, 4.0]


def end(strategy: str, **tables: Any):
    given = small_experiment(rounds=2, strategy=strategy, **{"client": CLIENT, **tables})
    return fedsim.run(given, problem=small_problem(), save=False)


def test_where_all_are_as_sure_it_is_fedavg_and_else_not():
    still = {**CLIENT, "optimizer": {"kind": "ivon", "beta2": 1.0 - 1e-9}}
    torch.testing.assert_close(
        end("fedivon", client=still).params, end("fedavg", client=still).params, rtol=0, atol=1e-6
    )
    assert not torch.allclose(end("fedivon").params, end("fedavg").params, atol=1e-2)


def test_two_vectors_cross_and_who_knows_nothing_of_precision_is_refused():
    up = [sum(row["bytes_up"] for row in end(strategy).history) for strategy in ("fedivon", "fedavg")]
    assert up[0] == 2 * up[1] > 0
    with pytest.raises(InputError, match=r"client\.optimizer = adam: the strategy merges by how surely each number"):
        fedsim.experiment(strategy="fedivon", client={**CLIENT, "optimizer": "adam"})
    with pytest.raises(InputError, match=r"aggregation"):
        end("fedivon", aggregation="median")

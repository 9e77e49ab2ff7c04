"""FedAsync: mixing of models, by staleness."""

from __future__ import annotations

import pytest
import torch
from tallies import recorded, spread, tally

from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

EVERYBODY = {"kind": "uniform", "fraction": 1.0}
TRAINING = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1}


def run(rounds=12, sizes=(7, 3, 12, 1, 5, 9), **strategy):
    tables = {"selection": EVERYBODY, "devices": spread(80), "client": TRAINING}
    experiment = small(rounds, strategy={"kind": "fedasync", "proximal_mu": 0.0, **strategy}, **tables)
    return build_simulation(experiment, small_problem(sizes=sizes))


def test_with_a_rate_of_one_the_model_is_that_of_the_last_client():
    for moment in recorded(run(alpha=1.0, staleness="constant")):
        model = moment.replies.sent("params")[0] + moment.replies.payload["delta"][0]
        assert torch.allclose(moment.after.params, model, rtol=1e-10, atol=1e-12)


def test_one_client_with_a_rate_of_one_trains_alone():
    alone = run(4, (20,), alpha=1.0, staleness="constant")
    synchronous = build_simulation(small(4, selection=EVERYBODY, client=TRAINING), small_problem(sizes=(20,)))
    for simulated in (alone, synchronous):
        recorded(simulated)
    assert torch.allclose(alone.state.params, synchronous.state.params, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("discount", "factor"),
    [
        ("constant", lambda stale: 1.0),
        ("polynomial", lambda stale: (1 + stale) ** -0.5),
        ({"kind": "hinge", "slope": 10.0, "threshold": 4}, lambda stale: 1.0 if stale <= 4 else 1 / (10 * stale - 39)),
    ],
)
def test_the_new_model_lies_between_the_old_and_the_clients(discount, factor):
    """theta <- (1 - a) theta + a y with a = 0.6 s(u), y = what was sent + the change; u from 0 to more than 5."""
    seen = set()
    for moment in recorded(run(30, alpha=0.6, staleness=discount)):
        (stale,) = moment.replies.staleness.tolist()
        mixing, seen = 0.6 * factor(stale), seen | {stale}
        model = moment.replies.sent("params")[0] + moment.replies.payload["delta"][0]
        wanted = (1 - mixing) * moment.before.params + mixing * model
        assert torch.allclose(moment.after.params, wanted, rtol=1e-9, atol=1e-12)
    assert min(seen) <= 4 < 5 < max(seen)


def test_too_stale_models_are_left_out():
    """tau = 1, 0.2 s, six replies a second: client 0's is four steps old at first, then five, client 1's 0 or 1."""
    simulated = tally(
        2, rounds=24, strategy={"kind": "fedasync", "max_staleness": 1}, selection=EVERYBODY, devices=spread(80)
    )
    told = recorded(simulated)
    slow = [moment for moment in told if moment.replies.clients.tolist() == [0]]
    assert [int(moment.replies.staleness) for moment in slow] == [4, 5, 5, 5]
    for moment in told:
        assert torch.equal(moment.after.params, moment.before.params) == (moment in slow)
    bounded = tally(
        2, rounds=24, strategy={"kind": "fedasync", "max_staleness": 5}, selection=EVERYBODY, devices=spread(80)
    )
    free = tally(2, rounds=24, strategy={"kind": "fedasync"}, selection=EVERYBODY, devices=spread(80))
    assert torch.equal(recorded(bounded)[-1].after.params, recorded(free)[-1].after.params)


def test_clients_are_kept_near_the_model_that_they_were_sent():
    """A penalty that outweighs the loss: lr mu = 0.99, so that a change is at most about lr |gradient| / (1 - 0.01)."""
    free, held = (recorded(run(1, proximal_mu=mu))[0].replies.payload["delta"] for mu in (0.0, 9.9))
    assert float(held.norm()) < 0.5 * float(free.norm())

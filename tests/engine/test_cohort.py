"""Samples of the clients' examples, and all or some of them in parts."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from clients.sgd import Sgd
from fedsim.core.options import options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Update
from fedsim.running.build import build_simulation
from fedsim.testing.problems import blobs, small_experiment, small_problem

SIZES = (7, 3, 12, 1, 5, 9)


@options
class Looks(Sgd):
    """Looks at a cohort before it trains."""

    seen: ClassVar[dict[str, dict[int, Tensor]]] = {}

    def train(self, cohort: Cohort) -> Update:
        count = (cohort.examples * 0.8).long().clamp(min=1)
        sample, rows = cohort.sample(count, "some"), (cohort.examples > 1).nonzero().flatten()
        for name, places in (("places", sample), ("other", cohort.sample(count, "other"))):
            for client, own in zip(cohort.clients.tolist(), places, strict=True):
                self.seen.setdefault(name, {})[client] = own[own >= 0]
        for name, places in (("some", sample), ("all", None)):
            for some, batch in cohort.everything(rows, 4, "look", places):
                for row, x, weight in zip(rows[some], batch.x, batch.weight, strict=True):
                    own = torch.cat((x, weight.unsqueeze(1)), dim=1)[weight > 0]
                    found, client = self.seen.setdefault(name, {}), int(cohort.clients[row])
                    found[client] = torch.cat((found[client], own)) if client in found else own
        return super().train(cohort)


def looked(count: int = 6, executor: str = "stacked", seed: int = 0, rounds: int = 1) -> dict[str, dict[int, Tensor]]:
    """What was seen in the last round."""
    tables = {"selection": {"kind": "uniform", "count": count}, "engine": {"executor": executor}}
    made = small_experiment(rounds, client=Looks(epochs=2, batch_size=4), seed=seed, **tables)
    run = build_simulation(made, small_problem())
    for _ in range(rounds):
        Looks.seen.clear()
        run.step()
    return {name: dict(own) for name, own in Looks.seen.items()}


def test_a_sample_is_some_of_a_clients_own_examples():
    places = looked()["places"]
    for client, size in enumerate(SIZES):
        own = places[client].tolist()
        assert len(set(own)) == len(own) == max(1, int(size * 0.8))
        assert set(own) <= set(range(size))


def test_it_follows_the_seed_the_turn_and_the_name_and_nobody_else():
    first, again, few, alone = looked(), looked(seed=1), looked(count=2), looked(executor="loop")
    for client in range(6):
        assert torch.equal(alone["places"][client], first["places"][client])
    for client, own in few["places"].items():
        assert torch.equal(own, first["places"][client])
    for other in (again["places"], first["other"], looked(rounds=2)["places"]):
        assert any(not torch.equal(own, first["places"][client]) for client, own in other.items())


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_parts_of_a_sample_are_its_examples_in_its_order(executor):
    """Client 3 has a single example, and is not asked; weights are one over how many there are in all."""
    found, x = looked(executor=executor), torch.from_numpy(blobs()["x"])
    assert found["some"].keys() == found["all"].keys() == {0, 1, 2, 4, 5}
    for client, start in zip(range(6), (0, 7, 10, 22, 23, 28), strict=True):
        if client != 3:
            own = x[start : start + SIZES[client]].to(found["all"][client])
            assert torch.equal(found["all"][client][:, :-1], own)
            assert torch.equal(found["some"][client][:, :-1], own[found["places"][client]])
            for name in ("some", "all"):
                rows = found[name][client]
                assert torch.allclose(rows[:, -1], torch.full_like(rows[:, -1], 1 / len(rows)), rtol=1e-12)

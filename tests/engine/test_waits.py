"""Nothing within the local steps of a cohort makes the host wait for a GPU, and another device gives the CPU's bits.

On a device that is pretended (see `elsewhere`), for clients that train and that search: as many waits with two local
steps or epochs as with more, and with few clients as with many.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import ROWS
from elsewhere import DEVICE, pretended
from torch import nn

from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, mlp, small_experiment, small_problem
from fedsim.zeroth_order import fit
from fedsim.zeroth_order.surrogates.kernels import Matern52

FIT = "fit"
"""Of Gaussian processes: whether any of a fit's factorisations has failed decides whether others are made, once a fit;
done for nothing, those take longer than a wait.
"""
ONCE = {
    "clients/fedala.py": {"learn"},
    "clients/fedes.py": {"train"},
    "clients/fedkseed.py": {"train"},
    "clients/fzoos.py": {"share", "train"},
    "clients/one_byte.py": {"train"},
    "fedsim/client/curriculum.py": {"_whole", "course", "steps"},
    "fedsim/core/streams.py": {"ragged_bits"},
    "fedsim/engine/batches.py": {"<genexpr>", "_draws", "_first_steps", "_passes", "_prefixes", "plan_batches"},
    "fedsim/engine/cohort.py": {"batches", "class_counts", "everything", "judge"},
    "fedsim/engine/executor.py": {"<dictcomp>", "_remember", "assign"},
    "fedsim/engine/flights.py": {"_rows", "job_of"},
    "fedsim/engine/job.py": {"<dictcomp>", "_of_each", "asked", "crossed", "gathered", "received", "sound"},
    "fedsim/engine/returned.py": {"done"},
    "fedsim/engine/store.py": {"_rows", "admit", "look"},
    "fedsim/engine/virtual.py": {"submit", "_keep_back"},
    "fedsim/exchange/aggregation.py": {"__call__", "_shares"},
    "fedsim/exchange/messages.py": {"<dictcomp>", "finite_rows", "mean", "weights"},
    "fedsim/exchange/transforms.py": {"apply"},
    "fedsim/problems/supervised.py": {"losses"},
    "fedsim/zeroth_order/replica.py": {"caught_up"},
    "fedsim/zeroth_order/shared_seed.py": {"of_codes", "of_losses", "rebuilt"},
    "fedsim/zeroth_order/surrogates/gaussian_process.py": {"factorise", FIT},
    "fedsim/zeroth_order/surrogates/random_features.py": {"_rows", "fit", "weights"},
}
"""What waits in a cohort's work, by file: when it is planned, when its results are taken, when surrogates are fitted,
and when FedALA learns its shares; the features' fit for each client, that in every batch, the others for all at once.
"""
COHORTS = (
    *("clients/", "fedsim/attacks/", "fedsim/client/", "fedsim/core/", "fedsim/engine/", "fedsim/exchange/"),
    *("fedsim/nets/", "fedsim/problems/supervised.py", "fedsim/zeroth_order/"),
)
SERVERS = ("fedsim/zeroth_order/server.py", "fedsim/zeroth_order/replica_server.py")
QUICK = (
    *("fedavg", "scaffold", "feddyn", "momentum", "adam", "lion", "steps", "fedprox", "standard", "curriculum"),
    *("fedcbo", "fedzo", "fedzo_batches", "coordinates", "forward_gradient", "prior", "scaffold_zo", "fzoos"),
    *("fedkseed", "decomfl"),
)  # fmt: skip
"""One of each kind of client; the others once a day."""


def longer(row: str, times: int) -> dict[str, Any] | None:
    """The tables of a row whose clients take so many local steps or epochs; None: there is no such number."""
    tables = copy.deepcopy(ROWS[row])
    strategy = tables.get("strategy")
    if isinstance(strategy, dict) and strategy.get("averaging") == "gradient":
        return None
    client = tables.setdefault("client", {"kind": "sgd", **TRAINING})
    for table in (client, tables.get("strategy", {})):
        for name in ("epochs", "steps"):
            if name in table:
                table[name] = times
                return tables
    return None


def simulated(
    tables: dict[str, Any], device: torch.device, model: Callable[[], nn.Module] = mlp, **others: Any
) -> Simulation:
    """A simulation of `small_problem` on a device, in which no client is judged."""
    like = small_problem()
    problem = Supervised(like.dataset, like.partition, model(), device=device, dtype=torch.float64)
    problem = problem.sharing(tables.get("problem", {}).get("shared", "all"))
    defaults = {"rounds": 2, "engine": {"executor": "stacked"}, "evaluation": {"every": 0, "clients": False}}
    return build_simulation(small_experiment(**{**tables, **defaults, **others}), problem)


def run(simulation: Simulation) -> torch.Tensor:
    """The parameters after all rounds."""
    for _ in simulation:
        pass
    return simulation.state.params


def waited(tables: dict[str, Any], **others: Any) -> tuple[Counter[str], torch.Tensor]:
    """How often the host waits in all rounds, by where; and the last parameters, on the CPU."""
    with pretended() as waits:
        simulation = simulated(tables, DEVICE, **others)
        waits.clear()
        params = run(simulation)
        found = Counter(waits)
        return found, params.cpu()


def of_cohorts(waits: Counter[str]) -> Counter[str]:
    """The waits in the work of cohorts."""
    return Counter(
        {place: count for place, count in waits.items() if place.startswith(COHORTS) and not place.startswith(SERVERS)}
    )


def not_fitting(waits: Counter[str]) -> Counter[str]:
    """Those of cohorts without the waits of fitted processes."""
    fitted = f"fedsim/zeroth_order/surrogates/gaussian_process.py {FIT}:"
    return Counter({place: count for place, count in of_cohorts(waits).items() if not place.startswith(fitted)})


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row in QUICK else pytest.mark.slow) for row in ROWS if longer(row, 2) is not None],
)
def test_local_steps_do_not_wait(row: str) -> None:
    few, many = longer(row, 2), longer(row, 3)
    assert few is not None
    assert many is not None
    found, params = waited(many)
    assert not_fitting(found) == not_fitting(waited(few)[0])
    assert torch.equal(params, run(simulated(many, torch.device("cpu"))))
    for place in of_cohorts(found):
        path, function = place.split(": ")[0].split(" ")
        assert function in ONCE.get(path, ()), place


def normalised() -> nn.Module:
    """Layers which must know what is padding."""
    flat, first, act, last = mlp()
    return nn.Sequential(flat, first, nn.BatchNorm1d(8), act, last)


@pytest.mark.parametrize(("executor", "model"), [("stacked", mlp), ("stacked", normalised), ("loop", mlp)])
def test_no_step_of_either_executor_waits(executor: str, model: Callable[[], nn.Module]) -> None:
    few, many = ({"client": {"kind": "sgd", **TRAINING, "epochs": times}} for times in (2, 5))
    others: dict[str, Any] = {"engine": {"executor": executor}, "model": model}
    found, params = waited(many, **others)
    assert found == waited(few, **others)[0]
    assert torch.equal(params, run(simulated(many, torch.device("cpu"), **others)))


@pytest.mark.parametrize("more", ["count", "pool"])
def test_clients_do_not_wait_one_by_one(more: str) -> None:
    """Neither those that train nor those that tell their loss."""
    kind = {"count": "uniform", "pool": "power_of_choice"}[more]
    few, many = (waited({}, selection={"kind": kind, "count": 2, more: number})[0] for number in (3, 6))
    assert any("supervised.py losses" in place for place in few) is (more == "pool")
    assert few == many


@pytest.mark.parametrize("clients", [1, 3])
def test_a_process_is_fitted_with_one_wait(clients: int) -> None:
    """Where no factorisation fails; of equal points, too, and it has the CPU's bits."""
    points = torch.linspace(0.0, 1.0, clients * 40, dtype=torch.float64).view(clients, 20, 2)
    points = torch.cat([points, points[:, :2]], dim=1)
    values, counts = points.sin().sum(dim=2), torch.full((clients,), 22)
    here = fit(Matern52(), points, values, counts)
    with pretended() as waits:
        given = [part.to(DEVICE) for part in (points, values, counts)]
        waits.clear()
        there = fit(Matern52(), *given)
        assert waits.total() == 1
        assert torch.equal(there.weights.cpu(), here.weights)
    assert (~here.kept).sum() == 2 * clients

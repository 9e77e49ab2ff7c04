"""Evaluations that fail: what estimates and rankings make of those that came, and that a search goes on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.running import hopeless
from fedsim.zeroth_order import based, mean_told, ranked_last, saying_nothing, told
from fedsim.zeroth_order.failures import outranked

NAN, INF = math.nan, math.inf
CLIENTS = 4


def double(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_a_slope_that_failed_is_left_out_of_the_mean() -> None:
    """Of (1, NaN, 3) the mean over what came is (1 + 3) / 3 * 3/2 = 2; of none it is 0; of all it keeps its bits."""
    slopes, share = told(double([1.0, NAN, 3.0], [NAN, INF, NAN], [0.1, 0.2, 0.7]))
    assert (slopes.mean(dim=1) * share[:, 0]).tolist() == [2.0, 0.0, double([0.1, 0.2, 0.7]).mean(dim=1).item()]
    assert share[2].item() == 1.0


def test_means_are_over_what_came() -> None:
    assert mean_told(double([1.0, NAN, 3.0], [1.0, 2.0, 6.0])).tolist() == [2.0, 3.0]
    assert mean_told(double([NAN, INF, NAN])).isnan().all()
    assert based(double([NAN, 7.0])[0], double([1.0, NAN, 3.0], [1.0, 1.0, 1.0])).tolist() == [2.0, 7.0]


def test_a_candidate_that_failed_ranks_last_of_its_client() -> None:
    """Above 4 by 4 - 1 = 3; above a single value of -5 by its size; above 0 by one."""
    found = ranked_last(double([1.0, NAN, 4.0], [NAN, -5.0, NAN], [NAN, 0.0, -INF]))
    assert found.tolist() == [[1.0, 7.0, 4.0], [0.0, -5.0, 0.0], [1.0, 0.0, 1.0]]
    assert ranked_last(double([NAN, NAN])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_candidate_that_is_infinite_ranks_last_whatever_others_think(dtype: torch.dtype) -> None:
    values = torch.tensor([[INF, 1e3], [-1e3, 1e3]], dtype=dtype)
    for ranked in (ranked_last(values), outranked(values)):
        assert ranked.square().isfinite().all()
        assert ranked.mean(dim=0).argmax() == 0
    assert outranked(torch.tensor([[NAN, 1.0]], dtype=dtype)).argmax() == 0


def test_a_loss_that_failed_says_nothing() -> None:
    """As its mirror says, there is no slope; without a mirror it is what the client says on average."""
    assert saying_nothing(double([1.0, NAN], [3.0, 4.0]).unsqueeze(0)).tolist() == [[[1.0, 4.0], [3.0, 4.0]]]
    assert saying_nothing(double([1.0, NAN, 5.0]).unsqueeze(0)).tolist() == [[[1.0, 3.0, 5.0]]]
    assert saying_nothing(double([NAN], [NAN]).unsqueeze(0)).isnan().all()


# --- Whole runs


def crashing(share: float, client: int) -> Callable[[Any], float]:
    """(x - 0.3)^2, which fails at a share of all points, other ones for each client."""

    def function(x: np.ndarray) -> float:
        if zlib.crc32(np.asarray(x).tobytes() + bytes([client])) % 1000 < 1000 * share:
            raise RuntimeError(f"the simulation of {client} crashed")
        return float(((x - 0.3) ** 2).sum())

    return function


def problem_of(share: float, clients: int = CLIENTS) -> Any:
    functions = [crashing(share, client) for client in range(clients)]
    return fedsim.black_box(functions, dimension=3, kind="scalar", on_error="nan")


def estimated(kind: str, **options: Any) -> dict[str, Any]:
    return {"kind": "fedzo", "steps": 4, "estimator": {"kind": kind, **options}}


SEARCHES: dict[str, tuple[Any, Any]] = {
    "cma_es": ("cma_es", "values"),
    "cbo": ("cbo", "values"),
    "fedzo": ("fedzo", estimated("differences")),
    "fedzo guard": ({"kind": "fedzo", "guard": True}, estimated("differences")),
    "central": ("fedzo", estimated("differences", difference="central")),
    "spsa": ("fedzo", estimated("spsa")),
    "spsa_gc": ("fedzo", estimated("spsa_gc")),
    "residual": ("fedzo", estimated("residual")),
    "prior": ("fedzo", estimated("prior")),
    "gaussian_process": ("fedzo", estimated("gaussian_process", neighbours=10)),
    "scaffold_zo": ("scaffold_zo", "scaffold_zo"),
    "scaffold_zo average": ({"kind": "scaffold_zo", "variant": "average"}, "scaffold_zo"),
    "fzoos": ("fzoos", {"kind": "fzoos", "features": 50, "steps": 3, "neighbours": 10, "feature_points": 20}),
    "decomfl": ({"kind": "decomfl", "steps": 3}, "decomfl"),
    "fedes": ("fedes", "fedes"),
    "fedes raw": ({"kind": "fedes", "antithetic": False, "ranks": False}, "fedes"),
    "genetic": ({"kind": "genetic", "population": 20, "truncation": 5, "spread": 0.2}, "genetic"),
    "fedkseed": ("fedkseed", "fedkseed"),
    "one_byte": ({"kind": "one_byte", "samples": 4}, "one_byte"),
    "fedbuff": ({"kind": "fedbuff", "size": 2}, estimated("differences")),
}


@pytest.mark.parametrize(
    "share", [pytest.param(0.01, marks=pytest.mark.slow), 0.05, pytest.param(0.3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_goes_on_where_evaluations_fail(name: str, share: float) -> None:
    strategy, client = SEARCHES[name]
    rounds = 20
    result = fedsim.run(rounds=rounds, strategy=strategy, client=client, problem=problem_of(share), save=False)
    assert (result.status, result.reason, result.summary["rounds"]) == ("finished", "", rounds)
    failed, asked = (result.summary[f"total_{column}"] for column in ("failed_queries", "queries"))
    # Some ask again near where they have asked, so that failures are not independent: 5 deviations are too few.
    assert failed / asked == pytest.approx(share, abs=7 * math.sqrt(share / asked))
    distance = [float((params - 0.3).norm()) for params in (result.problem.initial(), result.params)]
    assert distance[1] < distance[0]
    assert 0 < len(result.summary["failures"]) <= 5
    assert all("raised RuntimeError: the simulation of" in said for said in result.summary["failures"])


def test_a_judgement_that_failed_is_recorded_and_the_run_goes_on() -> None:
    """At 1 of 20 points F has no value for a client, so of 20 models about 4 have none."""
    result = fedsim.run(
        rounds=20, strategy="fedzo", client=estimated("differences"), problem=problem_of(0.05), save=False
    )
    values = result.history["value"]
    assert 0 < sum(math.isnan(value) for value in values) < 12
    told = [value for value in values if math.isfinite(value)]
    assert result.summary["best_value"] == min(told)
    assert any("of the judged model" in said for said in problem_said(0.6))


def problem_said(share: float) -> list[str]:
    """The messages of a run that asks little, so that the judge's are among the first."""
    client = {"kind": "fedzo", "steps": 1, "estimator": {"kind": "residual"}}
    return fedsim.run(rounds=6, strategy="fedzo", client=client, problem=problem_of(share), save=False).summary[
        "failures"
    ]


@pytest.mark.parametrize(
    ("name", "orders"),
    [("one_byte", hopeless.ORDERS), *((name, 100) for name in ("cma_es", "fedzo", "fedes", "fedbuff", "genetic"))],
)
def test_where_every_evaluation_fails_the_run_ends(name: str, orders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, client = SEARCHES[name]
    monkeypatch.setattr(hopeless, "ORDERS", orders)
    result = fedsim.run(rounds=10_000, strategy=strategy, client=client, problem=problem_of(1.0), save=False)
    assert result.status == "stalled"
    assert f"{orders} replies could not be used" in result.reason
    assert result.summary["total_failed_queries"] == result.summary["total_queries"] > 0
    assert torch.equal(result.params, result.problem.initial())


def test_infinite_values_are_a_wall() -> None:
    """Client 3 has no finite value where x_0 < 0.4; everybody else would go to 0.3."""

    def walled(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        wall = (clients == 3).unsqueeze(1) & (x[..., 0] < 0.4)
        return torch.where(wall, torch.inf, (x - 0.3).square().sum(dim=-1))

    problem = fedsim.black_box(walled, dimension=3, clients=4)
    result = fedsim.run(rounds=40, strategy="cma_es", client="values", problem=problem, save=False)
    assert result.params[0] >= 0.4
    assert result.summary["value"] == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("executor", [pytest.param("process", marks=pytest.mark.slow), "loop"])
def test_failures_are_the_same_in_whatever_is_executed_how(executor: str) -> None:
    def ran(**engine: Any) -> dict[str, Any]:
        client = estimated("differences", count=3)
        result = fedsim.run(
            rounds=3, strategy="fedzo", client=client, engine=engine, problem=stacked_problem(), save=False
        )
        return {name: value for name, value in result.summary.items() if name != "wall"}

    assert ran() == ran(executor=executor, **({"workers": 2} if executor == "process" else {}))


def fails_near_a_half(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if bool(((x[..., 0] - 0.5).abs() < 0.002).any()):
        raise RuntimeError("too near")
    return (x - 0.3).square().sum(dim=-1)


def stacked_problem() -> Any:
    return fedsim.black_box(fails_near_a_half, dimension=3, clients=3, on_error="nan")

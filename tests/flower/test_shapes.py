"""Apps of the shapes of Flower's quickstarts come to what can be reckoned by hand, or by the library itself."""

import logging
from pathlib import Path

import numpy as np
import pytest

from fedsim.flower import simulate

APPS = Path(__file__).parent / "apps"


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(APPS))
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def run(name, nodes=4, client="client", **kwargs):
    return simulate(f"shapes.{name}:server", f"shapes.{name}:{client}", nodes, **kwargs)


def test_numpy():
    # The mean of x^2 is 14/3, so w goes the way 0.1 * 14/3 towards p + 1, whose mean over four partitions is 2.5.
    result = run("with_numpy")
    rate = 0.1 * 14 / 3
    assert result.result.arrays["slope"].numpy() == pytest.approx([2.5 * (1 - (1 - rate) ** 3)])
    # At w = 0 losses are 14/3 (p + 1)^2 / 2, whose mean is 14/3 * 30/4 / 2.
    assert result.history["train"][1]["loss"] == pytest.approx(14 / 3 * 30 / 8)


def test_sklearn():
    result = run("with_sklearn", 3)
    losses, accuracies = ([result.history["evaluate"][n][name] for n in (1, 2)] for name in ("loss", "accuracy"))
    assert losses[1] < losses[0] < np.log(3.0)
    assert accuracies[1] > 0.94
    assert [exchange.message_type for exchange in result.exchanges] == (["train"] * 3 + ["evaluate"] * 3) * 2


def test_xgboost():
    xgboost = pytest.importorskip("xgboost", reason="this app is written for it; the extra dev brings xgboost-cpu")
    result = run("with_xgboost", 3)
    forest = xgboost.Booster()
    forest.load_model(bytearray(result.result.arrays["0"].numpy().tobytes()))
    assert forest.num_boosted_rounds() == 6  # a tree of each node in each of two rounds
    accuracies = [measures["accuracy"] for measures in result.history["evaluate"].values()]
    assert 0.9 < accuracies[0] < accuracies[1]


def test_pandas():
    result = run("with_pandas")
    # Lengths are 0, 0.5, ..., 9.5; every third row, from the first, is an "a". Two of four nodes have half of the rows.
    state = {name: dict(record) for name, record in result.context.state.items()}
    assert state["of 4"] == {"length": [5, 5, 10], "a": 7, "b": 13}
    rows = [row for row in range(20) if row % 4 < 2]
    counts = [sum(low <= row / 2 < high for row in rows) for low, high in ((0, 2.5), (2.5, 5), (5, 10))]
    assert state["of 2"] == {"length": counts, "a": 3, "b": 7}  # rows 0, 9 and 12
    assert result.result is None


@pytest.mark.parametrize("fail", [-1, 4])
def test_secure_aggregation(fail):
    result = run("with_secagg", 5, run_config={"fail": fail})
    # Weights are p + 1: of all, (0 + 2 + 6 + 12 + 20) / 15; without partition 4, 20 / 10. Numbers are rounded.
    expected = 40 / 15 if fail < 0 else 2.0
    (model,) = result.context.state.array_records["parameters"].to_numpy_ndarrays()
    assert model == pytest.approx([expected] * 2, abs=1e-3)


@pytest.mark.parametrize("side", ["server", "client"])
def test_differential_privacy(side):
    def model(noise, seed):
        client = "plain" if side == "server" else "clipping"
        settings = {"side": side, "noise": noise}
        (found,) = run("with_dp", client=client, run_config=settings, seed=seed).result.arrays.to_numpy_ndarrays()
        return found.tolist()

    # Moves are 10, 20, 30 and 40, all but the first clipped to 15.
    assert model(0.0, 0) == pytest.approx([13.75, 0.0])
    noisy = model(1.0, 0)
    assert noisy != pytest.approx([13.75, 0.0])
    assert noisy == model(1.0, 0) != model(1.0, 1)


def test_vertical():
    result = run("vertical", 3)
    x = np.random.default_rng(0).normal(size=(12, 6))
    y, weights = x @ np.arange(6.0), np.zeros(6)
    for _ in range(10):
        residual = x @ weights - y
        weights -= 0.05 * x.T @ residual / 12
    assert result.context.state["residual"]["r"].numpy() == pytest.approx(residual)
    assert len(result.exchanges) == 2 * 3 * 10

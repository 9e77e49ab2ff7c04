import math

import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.nets.stack import Layout
from fedsim.server.optimizers import Adagrad, Adam, Sgd, Yogi
from fedsim.server.strategy import ServerStep

EVERY = [Sgd(), Sgd(momentum=0.9), Sgd(momentum=0.9, nesterov=True)]
EVERY += [kind(variant=variant) for kind in (Adagrad, Adam, Yogi) for variant in ("paper", "flwr")]


def run(optimizer, deltas, lr):
    """Positions after each step from 0."""
    params = torch.zeros(len(np.atleast_1d(deltas[0])), dtype=torch.float64)
    state, path = optimizer.init(params, Layout.flat(len(params))), []
    for delta in deltas:
        step, state = optimizer.step(state, torch.tensor(np.atleast_1d(delta), dtype=torch.float64), lr, params)
        params = params + step
        path.append(params)
    return torch.stack(path).squeeze(1)


def expect(optimizer, deltas, lr, positions):
    wanted = torch.tensor(positions, dtype=torch.float64)
    torch.testing.assert_close(run(optimizer, deltas, lr), wanted, rtol=1e-12, atol=1e-14)


def test_sgd_by_hand():
    expect(Sgd(), [1.0, -2.0], 0.5, [0.5, -0.5])
    # Velocities 1, 0.5 - 2 = -1.5, -0.75 + 0 = -0.75.
    expect(Sgd(momentum=0.5), [1.0, -2.0, 0.0], 0.1, [0.1, -0.05, -0.125])
    # Delta + 0.5 v: 1.5, -2.75, -0.375.
    expect(Sgd(momentum=0.5, nesterov=True), [1.0, -2.0, 0.0], 0.1, [0.15, -0.125, -0.1625])


def test_adagrad_by_hand():
    # tau = 2, so v starts at 4; v = 4 + 9 = 13, then 13 + 16 = 29; m = Delta as beta1 = 0.
    first = 3 / (math.sqrt(13) + 2)
    expect(Adagrad(tau=2.0), [3.0, -4.0], 1.0, [first, first - 4 / (math.sqrt(29) + 2)])
    # From v = 0: 9, then 25; roots 3 and 5. m = 1.5, then 0.75 - 2 = -1.25.
    expect(Adagrad(tau=2.0, variant="flwr"), [3.0, -4.0], 1.0, [3 / 5, 3 / 5 - 4 / 7])
    half = Adagrad(tau=2.0, beta1=0.5, variant="flwr")
    expect(half, [3.0, -4.0], 1.0, [1.5 / 5, 1.5 / 5 - 1.25 / 7])


def test_adam_by_hand():
    # tau = 2: v = 0.75 * 4 + 0.25 * 16 = 7, then 0.75 * 7 = 5.25; m = 0.5 * 4 = 2, then 1.
    first = 2 / (math.sqrt(7) + 2)
    expect(Adam(beta1=0.5, beta2=0.75, tau=2.0), [4.0, 0.0], 1.0, [first, first + 1 / (math.sqrt(5.25) + 2)])
    # From v = 0: 4, then 3. The factors of eta are sqrt(1 - 0.75^2) / (1 - 0.5^2), then the third powers.
    first = math.sqrt(1 - 0.5625) / 0.75 * 2 / (2 + 2)
    second = math.sqrt(1 - 0.421875) / 0.875 * 1 / (math.sqrt(3) + 2)
    expect(Adam(beta1=0.5, beta2=0.75, tau=2.0, variant="flwr"), [4.0, 0.0], 1.0, [first, first + second])


def test_yogi_by_hand():
    # tau = 2: v - D^2 = 4 - 16 < 0, so v = 4 + 0.25 * 16 = 8; then 8 - 1 > 0, so v = 8 - 0.25 = 7.75.
    # m = 2, then 0.5 * 2 + 0.5 * 1 = 1.5.
    first = 2 / (math.sqrt(8) + 2)
    expect(Yogi(beta1=0.5, beta2=0.75, tau=2.0), [4.0, 1.0], 1.0, [first, first + 1.5 / (math.sqrt(7.75) + 2)])
    # From v = 0: 4, then 3.75.
    first = 2 / (2 + 2)
    yogi = Yogi(beta1=0.5, beta2=0.75, tau=2.0, variant="flwr")
    expect(yogi, [4.0, 1.0], 1.0, [first, first + 1.5 / (math.sqrt(3.75) + 2)])


def test_without_memory_an_adaptive_step_is_the_sign():
    # beta1 = beta2 = 0: Delta / (|Delta| + tau), which tends to the sign as tau vanishes.
    steps = run(Adam(beta1=0.0, beta2=0.0, tau=1e-9), [np.array([5.0, -1e-3])], 0.1)
    torch.testing.assert_close(steps[0], torch.tensor([0.1, -0.1], dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("optimizer", EVERY)
def test_pure_and_still_without_a_change(optimizer):
    params = torch.ones(3)
    state = optimizer.init(params, Layout.flat(3))
    step, state = optimizer.step(state, torch.zeros(3), 1.0, params)
    assert torch.equal(step, torch.zeros(3))
    delta = torch.tensor([1.0, -2.0, 3.0])
    _, state = optimizer.step(state, delta, 0.5, params)
    kept = {name: value.clone() for name, value in state.items()}
    one, after = optimizer.step(state, delta, 0.5, params)
    two, again = optimizer.step(state, delta, 0.5, params)
    assert torch.equal(one, two)
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert torch.equal(delta, torch.tensor([1.0, -2.0, 3.0]))
    assert torch.equal(params, torch.ones(3))
    assert after.keys() == optimizer.init(params, Layout.flat(3)).keys()
    assert one.dtype == torch.float32
    assert bool((one * delta > 0).all())


@pytest.mark.parametrize(
    ("base", "option"),
    [
        (Sgd(momentum=0.5), {"momentum": 0.6}),
        (Sgd(momentum=0.5), {"momentum": 0.5, "nesterov": True}),
        (Adagrad(), {"beta1": 0.5}),
        (Adagrad(), {"tau": 0.1}),
        (Adagrad(), {"variant": "flwr"}),
        (Adam(), {"beta1": 0.5}),
        (Adam(), {"beta2": 0.5}),
        (Adam(), {"tau": 0.1}),
        (Adam(), {"variant": "flwr"}),
        (Yogi(), {"beta1": 0.5}),
        (Yogi(), {"beta2": 0.5}),
        (Yogi(), {"tau": 0.1}),
        (Yogi(), {"variant": "flwr"}),
    ],
)
def test_every_option_moves_something(base, option):
    deltas = [1e-3, 2e-3, -1e-3]
    assert not torch.allclose(run(base, deltas, 1.0), run(type(base)(**option), deltas, 1.0), rtol=1e-4)


def test_an_option_takes_an_optimizer_or_its_table():
    adam = "adam"
    for given in (adam, {"kind": adam}, Adam()):
        assert ServerStep(server_optimizer=given).stepping == Adam()
    assert ServerStep(server_optimizer={"kind": adam, "beta1": 0.5}).stepping == Adam(beta1=0.5)
    assert ServerStep().stepping == Sgd()
    for given, name in (
        ({"kind": adam, "beta1": 2.0}, r"server_optimizer\.beta1 = 2.0"),
        ({"kind": adam, "rho": 1}, r"server_optimizer\.rho = 1"),
        ({"beta1": 0.5}, r"server_optimizer\.kind = None"),
        ("nothing:Adam", r"server_optimizer\.kind = nothing:Adam"),
        (3, r"server_optimizer = 3"),
    ):
        with pytest.raises(InputError, match=f"^{name}: "):
            ServerStep(server_optimizer=given)


def test_bad_options():
    for make in (lambda: Sgd(momentum=1.0), lambda: Adam(tau=0.0), lambda: Yogi(variant="tf")):
        with pytest.raises(InputError):
            make()


def flower_path(strategy, deltas, start, monkeypatch):
    """Positions after each step of Flower's strategy, whose cohort's mean is `position + delta`."""
    from flwr.app import Array, ArrayRecord, MetricRecord
    from flwr.serverapp.strategy import FedAvg

    def mean(self, number, replies):
        return ArrayRecord({"x": Array(replies)}), MetricRecord()

    monkeypatch.setattr(FedAvg, "aggregate_train", mean)
    position, path = start, []
    strategy.current_arrays = ArrayRecord({"x": Array(start)})
    for number, delta in enumerate(deltas, start=1):
        if hasattr(strategy, "v_t"):
            strategy.current_arrays = {"x": position}  # what configure_train does in FedOpt
        arrays, _ = strategy.aggregate_train(number, position + delta)
        position = arrays["x"].numpy()
        path.append(position)
    return np.stack(path)


# Flower imports typer, which reads names of click that click deprecates.
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "keywords", "optimizer", "lr"),
    [
        ("FedAdam", {"eta": 0.1}, Adam(variant="flwr"), 0.1),
        ("FedYogi", {"eta": 0.01}, Yogi(variant="flwr"), 0.01),
        ("FedAdagrad", {"eta": 0.1}, Adagrad(variant="flwr"), 0.1),
        ("FedAvgM", {"server_learning_rate": 0.7, "server_momentum": 0.9}, Sgd(momentum=0.9), 0.7),
    ],
)
def test_the_flwr_variant_is_flowers_arithmetic(name, keywords, optimizer, lr, monkeypatch):
    import flwr.serverapp.strategy as flower

    deltas = np.array([[0.3, -2.0, 0.0], [0.1, 1.0, 0.0], [-0.2, 0.5, 1e-3], [0.4, 0.0, 0.0]])
    start = np.array([1.0, 2.0, 3.0])
    theirs = flower_path(getattr(flower, name)(**keywords), deltas, start, monkeypatch)
    # The replies say start + delta, which rounds; nothing else differs in double precision.
    np.testing.assert_allclose(start + run(optimizer, deltas, lr).numpy(), theirs, rtol=1e-12)

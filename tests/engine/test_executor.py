"""The executor held to a plain loop over clients that shares nothing with it but the named draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fedsim
from clients.sgd import Sgd
from fedsim.core.errors import BrokenPromiseError, InputError
from fedsim.core.options import options
from fedsim.core.streams import Streams
from fedsim.engine.executor import Executor
from fedsim.engine.store import ClientStore
from fedsim.exchange.messages import Cost, Order, Size
from fedsim.nets.sequences import LastStep
from fedsim.running.build import build_simulation
from fedsim.testing.problems import blobs, mlp, small_problem
from fedsim.testing.problems import small_experiment as small


def by_hand(data: dict, client: int, epochs: int, batch: int, lr: float, seed: int, number: int) -> torch.Tensor:
    """The change of one client's parameters, with torch.optim.SGD and `loss.backward()`."""
    model = mlp().double()
    start = torch.cat([parameter.detach().reshape(-1).clone() for parameter in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    own = data["clients"][client]
    keys = Streams(seed).bits("batches", torch.tensor([client]), epochs * len(own), turn=number)[0]
    for epoch in range(epochs):
        order = torch.argsort(keys[epoch * len(own) : (epoch + 1) * len(own)], stable=True)
        for part in order.split(batch):
            chosen = own[part.numpy()]
            optimizer.zero_grad()
            outputs = model(torch.tensor(data["x"][chosen]))
            functional.cross_entropy(outputs, torch.tensor(data["y"][chosen])).backward()
            optimizer.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]) - start


@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_a_round_is_that_of_a_plain_loop(executor):
    data, sizes = blobs(), torch.tensor([7, 3, 12, 1, 5, 9])
    experiment = small(1, selection={"kind": "uniform", "fraction": 1.0}, engine={"executor": executor}, seed=4)
    simulation = build_simulation(experiment, small_problem())
    start = simulation.state.params
    simulation.step()
    changes = torch.stack([by_hand(data, client, 2, 4, 0.1, seed=4, number=0) for client in range(6)])
    expected = start.cpu() + (sizes.double() / sizes.sum()) @ changes
    assert torch.allclose(simulation.state.params.cpu(), expected, rtol=0, atol=1e-12)


def test_replies_carry_the_mean_loss_over_the_steps():
    """One step on the full batch: the loss is the initial model's on the client's own examples."""
    experiment = small(1, client={"kind": "sgd", "steps": 1, "batch_size": "full", "lr": 0.1})
    problem, data = small_problem(), blobs()
    executor = build_simulation(experiment, problem).parts.engine.executor
    work = executor.execute(executor.assign(Order("train", torch.arange(6), {"params": problem.initial()})))
    model = mlp().double()
    for client, own in enumerate(data["clients"]):
        loss = functional.cross_entropy(model(torch.tensor(data["x"][own])), torch.tensor(data["y"][own]))
        assert float(work.metrics["loss"][client]) == pytest.approx(float(loss.detach()), rel=1e-12)


@options
class Liar(Sgd):
    """Declares a step more than it takes, or another reply than it sends."""

    steps_off: int = 0
    numbers_off: int = 0
    called: str = "delta"

    def cost(self, orders: Order, examples: torch.Tensor) -> Cost:
        told = super().cost(orders, examples)
        size = told.reply["delta"]
        return Cost(told.steps + self.steps_off, {self.called: Size(size.numbers + self.numbers_off, size.bits)})


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ({"steps_off": 1}, "local steps where its cost declares"),
        ({"numbers_off": 1}, "delta of 83 x 64 bits where its cost declares delta of 84 x 64 bits"),
        ({"called": "beta"}, "its cost declares beta, which its `up` does not name"),
    ],
)
def test_a_client_is_held_to_what_it_declares(off, said):
    problem = small_problem()
    executor = Executor(problem, Liar(epochs=1, **off), Streams(0))
    with pytest.raises(BrokenPromiseError, match=said):
        executor.execute(executor.assign(Order("train", torch.arange(2), {"params": problem.initial()})))


def test_auto_takes_the_loop_for_large_convolutions_on_a_cpu_and_for_what_cannot_be_stacked():
    images = blobs(shape=(1, 8, 8))
    small = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    # 36 places times 9 times 3,000, and 3 times as many outputs: 1.3 million multiply-adds an example; batches have 12.
    large = nn.Sequential(nn.Conv2d(1, 3000, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108000, 3))

    def recurrent(layer: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Flatten(2), layer, LastStep(), nn.Linear(layer.hidden_size, 3))

    # 4 x 30 x (8 + 30 + 2) + 93 parameters, of batches of 12: 58,716 multiply-adds a step.
    lstm, gru = nn.LSTM(8, 30, batch_first=True), nn.GRU(8, 30, batch_first=True)
    short, other = nn.LSTM(8, 4, batch_first=True), nn.RNN(8, 4, batch_first=True)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) if float(self.body.bias.detach().sum()) < 9 else x

    expected = [(images, small, "stacked"), (images, large, "loop"), (blobs(), Hidden(), "loop")]
    steps = blobs(shape=(8, 8))
    expected += [(blobs(), mlp(), "stacked"), (steps, recurrent(lstm), "loop"), (steps, recurrent(short), "stacked")]
    expected += [(steps, recurrent(gru), "stacked"), (steps, recurrent(other), "loop")]

    def attentive(fed: int, dropout: float) -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, fed, dropout=dropout, batch_first=True)
        return nn.Sequential(layer, LastStep(), nn.Linear(8, 3))

    # 8 places times 2 x 8 x 30,000, of batches of 12: 46 million multiply-adds.
    expected += [(steps, attentive(16, 0.0), "stacked"), (steps, attentive(30_000, 0.0), "loop")]
    expected += [(steps, attentive(30_000, 0.1), "stacked")]
    for data, model, name in expected:
        problem = fedsim.supervised(**data, model=model, device="cpu")
        assert Executor(problem, Sgd(epochs=1), Streams(0)).name == name
    with pytest.raises(InputError, match=r"engine\.executor = stacked"):
        Executor(
            fedsim.supervised(**blobs(), model=Hidden(), device="cpu"), Sgd(epochs=1), Streams(0), choice="stacked"
        )


def test_what_steps_take_beside_gradients_is_work():
    """Five times 2 x 6 x 6 x 8 + 6^3 multiply-adds beside three passes of 4 examples through a model of 83."""
    problem, orders = small_problem(), Order("train", torch.arange(6), {"params": small_problem().initial()})
    plain, muon = (
        Executor(problem, Sgd(epochs=2, batch_size=4, optimizer=rule), Streams(0)) for rule in ("sgd", "muon")
    )
    work = plain.work(plain.assign(orders))
    torch.testing.assert_close(muon.work(muon.assign(orders)), work * (1.0 + 3960 / 996))
    assert muon.client.operations(problem.model.layout.shapes) == 3960
    assert [made._spreads(5000 * made.cores) for made in (plain, muon)] == [False, muon.cores > 1]


def test_chunks_follow_the_budget():
    problem = small_problem()
    small_budget = Executor(problem, Sgd(epochs=1, batch_size=4), Streams(0), memory=1)
    large_budget = Executor(problem, Sgd(epochs=1, batch_size=4), Streams(0), memory=2**28)
    assert small_budget.chunk == 1 < large_budget.chunk


def test_a_store_starts_at_zero_keeps_rows_and_comes_back():
    store = ClientStore({"a": (2,)}, 10, torch.device("cpu"), torch.float64, 2**20)
    first = torch.tensor([5, 3])
    store.admit(first)
    assert torch.equal(store.read(first)["a"], torch.zeros(2, 2, dtype=torch.float64))
    store.write(first, {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)})
    saved = store.snapshot()
    more = torch.arange(9)
    store.admit(more)
    assert store.read(torch.tensor([3, 0, 5]))["a"].tolist() == [[3, 4], [0, 0], [1, 2]]
    store.write(first, {"a": torch.zeros(2, 2, dtype=torch.float64)})
    store.restore(saved)
    assert store.read(torch.tensor([5]))["a"].tolist() == [[1, 2]]


def test_a_store_above_its_budget_is_refused_before_anything_runs():
    # 10 clients x 100 numbers x 8 bytes = 8,000 bytes.
    with pytest.raises(InputError, match=r"engine\.state_mib"):
        ClientStore({"a": (100,)}, 10, torch.device("cpu"), torch.float64, 7_999)
    ClientStore({"a": (100,)}, 10, torch.device("cpu"), torch.float64, 8_000)


def test_integer_inputs_and_real_targets():
    generator = np.random.Generator(np.random.PCG64(0))
    x, y = generator.normal(size=(30, 2)), generator.normal(size=30)
    problem = fedsim.supervised(x, y, model=nn.Linear(2, 1), clients=[range(10), range(10, 30)], device="cpu")
    result = fedsim.run(small(2, selection={"kind": "uniform", "fraction": 1.0}), problem=problem, save=False)
    assert set(result.history.columns) >= {"train_loss", "test_loss"}
    assert "test_accuracy" not in result.history.columns

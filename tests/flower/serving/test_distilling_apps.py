"""A server that distils the models of an app's nodes, which it knows nothing of but the model and public inputs."""

import numpy as np
import pytest
import torch
from apps.own.running import start
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.flower import as_flower_strategy
from fedsim.testing.problems import mlp, small_problem
from strategies.feddf import FedDF

NODES, SEED = 3, 5
PUBLIC = np.random.default_rng(3).normal(size=(30, 6))
FEDDF = {"kind": "feddf", "steps": 20, "batch_size": 8, "lr": 0.01, "temperature": 2.0}


def moves(partition: int) -> torch.Tensor:
    """How far a node moves whatever it is sent, [83]."""
    return torch.randn(83, generator=torch.Generator().manual_seed(partition), dtype=torch.float64) * 0.3


def app() -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        sent = {name: torch.from_numpy(array.numpy()) for name, array in message.content["arrays"].items()}
        steps = moves(partition).split([array.numel() for array in sent.values()])
        arrays = {
            name: Array((own + step.view_as(own)).numpy())
            for (name, own), step in zip(sent.items(), steps, strict=True)
        }
        metrics = MetricRecord({"num-examples": partition + 1, "train_loss": 0.0})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return made


def initial(model: nn.Module | None = None) -> ArrayRecord:
    return ArrayRecord((model or mlp().double()).state_dict())


def served(strategy, rounds=2, arrays=None, **named):
    made = as_flower_strategy(strategy, seed=SEED, fraction_evaluate=0.0, **named)
    return start(made, app(), arrays or initial(), nodes=NODES, rounds=rounds)


def flat(result) -> torch.Tensor:
    return torch.cat([torch.from_numpy(array.numpy()).flatten() for array in result.arrays.values()])


def test_two_rounds_by_hand():
    """Weighed by their examples nodes make the student, and all the same they teach it."""
    bench = small_problem()
    network, params = nn.Sequential(*mlp().double()), bench.initial()
    inputs = torch.from_numpy(PUBLIC)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 6.0
    changes = torch.stack([moves(node) for node in range(NODES)])
    draws = Streams(Streams(SEED).derive("feddf") >> 1)
    for number in (1, 2):
        teachers = [bench.layout.named(params + change) for change in changes]
        said = torch.stack([torch.func.functional_call(network, one, (inputs,)) for one in teachers]).mean(0)
        wanted = torch.softmax(said / 2.0, -1).detach()
        network.load_state_dict(bench.layout.named(params + weights @ changes))
        rule = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.9, 0.99))
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(rule, T_max=20)
        owner = torch.tensor([2**32 - 1])
        order = torch.cat([draws.permutation("public", owner, 30, turn=number, step=one)[0] for one in range(6)])
        for own in order[:160].view(20, 8):
            rule.zero_grad()
            p = torch.log_softmax(network(inputs[own]) / 2.0, -1)
            (4.0 * (wanted[own] * (wanted[own].log() - p)).sum(-1).mean()).backward()
            rule.step()
            falling.step()
        params = bench.layout.flatten(network.state_dict())
    result = served(FEDDF, model=mlp(), public=PUBLIC)
    torch.testing.assert_close(flat(result), params, rtol=1e-8, atol=1e-10)
    told = result.train_metrics_clientapp[2]
    assert told["distillation_loss"] < told["distillation_loss_before"]


def test_without_steps_it_is_fedavg():
    assert torch.equal(flat(served(FedDF(steps=0))), flat(served("fedavg")))


def test_whose_weights_the_module_had_does_not_matter():
    other = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    ends = [flat(served(FEDDF, model=own, public=torch.from_numpy(PUBLIC))) for own in (mlp(), other)]
    assert torch.equal(*ends)


def test_a_server_that_was_killed_goes_on_and_not_with_other_inputs(tmp_path):
    class KilledError(Exception):
        pass

    def dies(number, _):
        if number == 2:
            raise KilledError

    def kept(public=PUBLIC, evaluate_fn=None):
        made = as_flower_strategy(
            FEDDF,
            seed=SEED,
            model=mlp(),
            public=public,
            checkpoint=tmp_path / "run",
            checkpoint_every=1,
            fraction_evaluate=0.0,
        )
        return start(made, app(), initial(), nodes=NODES, rounds=3, evaluate_fn=evaluate_fn)

    with pytest.raises(KilledError):
        kept(evaluate_fn=dies)
    with pytest.raises(InputError, match=r"^public.inputs = 20: the run in .* has 30"):
        kept(public=PUBLIC[:20])
    assert torch.equal(flat(kept()), flat(served(FEDDF, rounds=3, model=mlp(), public=PUBLIC)))


@pytest.mark.parametrize(
    ("strategy", "named", "why"),
    [
        (FEDDF, {}, r"^model = \(nothing\): feddf distils on the server; give model="),
        (FEDDF, {"model": mlp()}, r"^public = \(nothing\): feddf distils"),
        ("fedavg", {"model": mlp()}, "^model = Sequential: fedavg trains nothing on the server; leave it out"),
        (FedDF(steps=0), {"public": PUBLIC}, "^public = ndarray: feddf trains nothing"),
        (FEDDF, {"model": "mlp", "public": PUBLIC}, "^model = 'mlp': is one for experiment files"),
        (FEDDF, {"model": mlp(), "public": "noise"}, "^public = str: is no array of inputs"),
        (FEDDF, {"model": mlp(), "public": PUBLIC[:, :4]}, "^model = Sequential"),
        (
            FEDDF,
            {"model": mlp(inputs=4), "public": PUBLIC},
            "^model = Sequential: initial_arrays are not its state dict",
        ),
        (
            FEDDF,
            {"model": mlp(), "public": PUBLIC, "frozen": ("3.*",)},
            "^model = Sequential: its arrays are not its trained",
        ),
    ],
)
def test_what_it_cannot_work_with_is_refused(strategy, named, why):
    with pytest.raises(InputError, match=why):
        served(strategy, **named)


def test_running_statistics_lie_elsewhere():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"^model = Sequential: its arrays are not its trained"):
        served(FEDDF, arrays=initial(model), model=model, public=PUBLIC)

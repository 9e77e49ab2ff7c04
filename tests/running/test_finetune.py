"""Training before judging: plain local training of each client's model, of which nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.core.errors import InputError
from fedsim.core.graph import decode, encode
from fedsim.engine import personal as module
from fedsim.engine.cohort import PRIVATE
from fedsim.exchange.messages import Order
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.runner import run
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, blobs, mlp, small_experiment, small_functions, small_problem

FULL = {"steps": 3, "batch_size": "full", "lr": 0.2}
SIZES = (7, 3, 12, 1, 5, 9)
TESTS = [*np.arange(20).reshape(5, 4), []]


def problem(model: nn.Module | None = None, dtype: torch.dtype = torch.float64, **given: Any) -> Supervised:
    given = {"test_clients": TESTS} | given
    return supervised(**blobs(SIZES), model=model or mlp(), dtype=dtype, device="cpu", **given)


def simulation(rounds: int = 2, own: Supervised | None = None, finetune: Any = FULL, **tables: Any) -> Simulation:
    evaluation = {"every": 1} if finetune is None else {"every": 1, "finetune": finetune}
    return build_simulation(small_experiment(rounds, **({"evaluation": evaluation} | tables)), own or problem())


def last(made: Simulation) -> dict[str, Any]:
    return dict(list(made)[-1])


def descended(model: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float, only: str = "") -> nn.Module:
    """By hand: full batches, PyTorch's own gradients. only: how the names of what moves begin."""
    rule = torch.optim.SGD([own for name, own in model.named_parameters() if name.startswith(only)], lr)
    for _ in range(steps):
        rule.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        rule.step()
    return model


def by_hand(
    own: Supervised, model: Callable[[int], nn.Module], steps: int = 3, lr: float = 0.2, only: str = ""
) -> dict[str, float]:
    """The loss of all tests together, and statistics of the accuracies, of models that were trained so."""
    x, y = (torch.tensor(part) for part in blobs(SIZES)["test"])
    losses, right = [], []
    for client, tests in enumerate(TESTS[:5]):
        index = own.partition.indices(client)
        tuned = descended(model(client), own.data.x[index], own.data.y[index], steps, lr, only)
        outputs = tuned(x[tests]).detach()
        losses.append(float(nn.functional.cross_entropy(outputs, y[tests])))
        right.append(float((outputs.argmax(dim=1) == y[tests]).double().mean()))
    return {
        "personal_loss": float(np.mean(losses)),
        "personal_accuracy": float(np.mean(right)),
        "personal_accuracy_worst": min(right),
        "personal_accuracy_std": float(np.std(right)),
    }


def test_it_is_plain_local_training_of_the_model_for_all():
    made = simulation()
    row, own = last(made), made.parts.problem
    expected = by_hand(own, lambda _: own.module(made.params).train())
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert row["client_loss"] == pytest.approx(by_hand(own, lambda _: own.module(made.params), 0)["personal_loss"])
    assert row["personal_loss"] != pytest.approx(row["client_loss"], rel=1e-3)


def test_where_nothing_is_trained_models_are_judged_as_they_are():
    row = last(simulation(finetune=FULL | {"lr": 1e-30}))
    assert row["personal_loss"] == pytest.approx(row["client_loss"], rel=1e-12)
    assert row["personal_accuracy_std"] == row["client_accuracy_std"]


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 2, "batch_size": 4, "lr": 0.1},
        {"steps": 5, "batch_size": 4, "lr": 0.1},
        {"epochs": 3, "batch_size": "full", "lr": 0.1},
    ],
)
@pytest.mark.parametrize("executor", ["loop", "stacked"])
def test_it_is_what_a_client_does_that_trains_so(given, executor):
    """The batches, too, are those that `sgd` draws under the names of judging, whoever has how many examples."""
    tables = {"client": {"kind": "sgd", **given}, "engine": {"executor": executor}}
    made = simulation(1, finetune=given, **tables)
    row, own, executed = last(made), made.parts.problem, made.parts.engine.executor
    executed.streams = executed.streams.apart("judged").apart("finetune")
    order = Order("train", torch.arange(6), {"params": made.params}, round=1)
    deltas = executed.execute(executed.assign(order)).payload["delta"]
    expected = by_hand(own, lambda client: own.module(made.params + deltas[client]), 0)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_nothing_of_it_is_kept():
    """Rows of runs without it are the same, to the bit; so are models, what clients remember, and the next rounds."""
    training = {"kind": "ditto", "lam": 0.5, "epochs": 2, "batch_size": 4, "lr": 0.1}
    made = [simulation(3, finetune=given, client=training) for given in (None, FULL | {"lr": 1.0})]
    plain, tuned = (list(each) for each in made)
    assert torch.equal(made[0].params, made[1].params)
    rows = [each.parts.engine.memories().look("personal", torch.arange(6))[0] for each in made]
    assert torch.equal(*rows)
    assert [row["personal_loss"] for row in plain] != [row["personal_loss"] for row in tuned]
    for first, second in zip(plain, tuned, strict=True):
        left = {name for name in second if not name.startswith("personal") and name != "wall"}
        assert {name: first[name] for name in left} == {name: second[name] for name in left}


def test_what_clients_keep_is_left_and_not_what_was_made_of_it():
    training = {"kind": "ditto", "lam": 0.5, "epochs": 2, "batch_size": 4, "lr": 0.1}
    results = [
        run(
            small_experiment(2, client=training, evaluation={"every": 0} | finetune),
            problem=problem(),
            save=False,
        )
        for finetune in ({}, {"finetune": FULL})
    ]
    held = [result.own.tensors() for result in results]
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])
    assert not torch.equal(results[0].model(2)[1].weight, results[1].model(2)[1].weight)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_its_draws_have_names_and_follow_no_earlier_judging(every):
    own = problem(nn.Sequential(mlp()[1], nn.ReLU(), nn.Dropout(0.5), mlp()[3]))
    given = {"epochs": 2, "batch_size": 4, "lr": 0.3}
    rows = [last(simulation(4, own, given, evaluation={"every": number, "finetune": given})) for number in (every, 4)]
    assert rows[0]["personal_loss"] == rows[1]["personal_loss"]


def test_dropout_is_drawn_while_models_are_trained_and_not_while_they_are_judged():
    layers = [problem(nn.Sequential(mlp()[1], nn.ReLU(), nn.Dropout(p), mlp()[3])) for p in (0.5, 0.0)]
    row = last(simulation(1, layers[0], FULL | {"lr": 1e-30}))
    assert row["personal_loss"] == pytest.approx(row["client_loss"], rel=1e-12)
    standing = {"client": {"kind": "sgd", "steps": 1, "lr": 1e-30}}
    losses = [last(simulation(1, own, **standing))["personal_loss"] for own in layers]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_running_statistics_move_along():
    """By hand: a client's are those of the module after as many steps in training mode."""
    own = problem(nn.Sequential(mlp()[1], nn.BatchNorm1d(8), nn.ReLU(), mlp()[3]).double())
    made = simulation(2, own)
    row = last(made)
    x, y = (torch.tensor(part) for part in blobs(SIZES)["test"])
    losses = []
    for client, tests in enumerate(TESTS[:5]):
        index = own.partition.indices(client)
        plain = nn.Sequential(mlp()[1], nn.BatchNorm1d(8), nn.ReLU(), mlp()[3]).double()
        plain.load_state_dict(own.module(made.params).state_dict(), strict=False)
        plain.train(len(index) > 1)  # one example has no variance: it is normalised by the statistics, which stay
        tuned = descended(plain, own.data.x[index], own.data.y[index], 3, 0.2).eval()
        losses.append(float(nn.functional.cross_entropy(tuned(x[tests]).detach(), y[tests])))
    assert row["personal_loss"] == pytest.approx(np.mean(losses), rel=1e-10)


@pytest.mark.parametrize("kept", ["head", "0.*"])
def test_parts_of_the_clients_own_are_trained_along(kept):
    """A client's own part and what is shared are together what plain training makes of them."""
    made = simulation(3, problem(nn.Sequential(mlp()[1], nn.ReLU(), mlp()[3])).keeping(kept))
    row, own = last(made), made.parts.problem
    rows = made.parts.engine.memories().look(PRIVATE, torch.arange(6))[0]
    expected = by_hand(own, lambda client: own.module(made.params, rows[client]).train())
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert torch.equal(rows, made.parts.engine.memories().look(PRIVATE, torch.arange(6))[0])
    assert "client_loss" not in row


def test_it_begins_at_a_clients_own_model_where_it_has_one():
    training = {"kind": "ditto", "lam": 0.5, "epochs": 2, "batch_size": 4, "lr": 0.1}
    made = simulation(3, client=training)
    row, own = last(made), made.parts.problem
    rows = made.parts.engine.memories().look("personal", torch.arange(6))[0]
    expected = by_hand(own, lambda client: own.module(rows[client]).train())
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert row["client_loss"] == pytest.approx(by_hand(own, lambda _: own.module(made.params), 0)["personal_loss"])


@pytest.mark.parametrize(
    ("trains", "only"),
    [("head", "3."), ("body", "1."), (["3.bias"], "3.bias"), ({"not": "1"}, "3."), (["1", "3.*"], "")],
)
@pytest.mark.parametrize("kept", [(), ("head",)])
def test_what_is_not_to_be_trained_stays_as_it_is(trains, only, kept):
    """Of a model whose head stays with the clients, too; and the leaves that do not move keep their bits."""
    evaluation = {"every": 0, "finetune": FULL | {"trains": trains}}
    whole = problem()
    own = whole.keeping(*kept) if kept else whole
    result = run(small_experiment(2, evaluation=evaluation), problem=own, save=False)
    bare = run(small_experiment(2), problem=own, save=False)

    def started(client: int) -> nn.Module:
        return (bare.model(client) if kept else bare.model()).train()

    expected = by_hand(own, started, only=only)
    assert {name: result.summary[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    moved = dict(result.model(2).named_parameters())
    for name, before in started(2).named_parameters():
        assert torch.equal(moved[name], before) == (not name.startswith(only))


@pytest.mark.parametrize(
    ("trains", "said"),
    [
        ("tail", r"^evaluation\.finetune\.trains = tail: is no parameter of this model"),
        ("norm", r"^evaluation\.finetune\.trains = norm: the model has no layer that normalises"),
        ({"not": ["head", "body"]}, r"^evaluation\.finetune\.trains = \{.*\}: nothing would be trained"),
    ],
)
def test_what_selects_nothing_is_refused(trains, said):
    with pytest.raises(InputError, match=said):
        simulation(finetune=FULL | {"trains": trains})


def test_what_is_no_table_is_refused_as_such():
    with pytest.raises(InputError, match=r"^evaluation\.finetune = yes: is a table; write its options under it$"):
        simulation(finetune="yes")


@pytest.mark.parametrize(
    ("client", "finetune", "warned"),
    [
        ({"kind": "perfedavg", "inner_lr": 0.1}, None, True),
        ({"kind": "perfedavg", "inner_lr": 0.1}, FULL, False),
        ({"kind": "perfedavg", "inner_lr": 0.0}, None, False),
        ({"kind": "fedrep", "head_epochs": 0}, None, True),
        ({"kind": "fedrep", "head_epochs": 1}, None, False),
    ],
)
def test_a_start_that_is_judged_as_a_model_is_warned_of(client, finetune, warned, capsys):
    own = small_problem(tested=True)
    made = small_experiment(1, client=client | TRAINING, evaluation={"finetune": finetune})
    build_simulation(made, own.keeping("head") if client["kind"] == "fedrep" else own)
    assert ("trains where each client's own steps are to begin" in capsys.readouterr().err) == warned


def test_of_black_boxes_nothing_can_be_trained():
    client = {"kind": "fedzo", "steps": 1}
    made = small_experiment(1, strategy="fedzo", client=client, evaluation={"finetune": FULL})
    with pytest.raises(InputError, match=r"^evaluation\.finetune = given: there is no model to train"):
        build_simulation(made, small_functions())


# However it is executed.


@pytest.mark.parametrize("chunks", ["memory", "activations"])
def test_a_clients_numbers_follow_neither_the_others_nor_chunks(chunks, monkeypatch):
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    first = last(simulation(2, finetune=given))
    second = simulation(2, finetune=given)
    if chunks == "memory":
        second.parts.engine.executor.memory = 1
    else:
        monkeypatch.setattr(module, "EVALUATED_AT_ONCE", 1)
    assert last(second) == first | {"wall": pytest.approx(first["wall"], abs=60)}


def test_whose_outputs_they_are_is_not_lost_though_the_longest_go_first():
    """Epochs of batches of 4: the third client, of 12 examples, takes most steps."""
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    result = run(small_experiment(2, evaluation={"every": 0, "finetune": given}), problem=problem(), save=False)
    own = result.own
    assert own is not None
    rows, count = result.problem.judged.own()
    outputs = own.owned.outputs(rows, count)
    for client in range(5):
        index = rows.numbers[4 * client : 4 * client + 4]
        expected = result.model(client)(rows.x[index]).detach()
        torch.testing.assert_close(outputs[4 * client : 4 * client + 4], expected, rtol=0, atol=1e-12)


def test_a_hundred_clients_are_one_stack_and_one_call_judges_them(monkeypatch):
    sizes = tuple(range(1, 101))
    tests = [[client % 20] for client in range(100)]
    own = supervised(**blobs(sizes), test_clients=tests, model=mlp(), dtype=torch.float64, device="cpu")
    made = simulation(1, own, {"epochs": 1, "batch_size": "full", "lr": 0.1}, engine={"executor": "stacked"})
    network, asked = made.parts.engine.executor.network, []
    judge = network.outputs
    monkeypatch.setattr(network, "outputs", lambda y, x: asked.append(x.shape[:2]) or judge(y, x))
    list(made)
    assert asked == [(100, 2)]


@pytest.mark.parametrize("executor", ["loop", "fused"])
def test_every_executor_comes_to_the_same(executor):
    given = {"epochs": 2, "batch_size": 4, "lr": 0.1}
    stacked, other = (
        [row["personal_loss"] for row in simulation(2, finetune=given, engine=own)]
        for own in ({"executor": "stacked"}, {"executor": executor})
    )
    assert other == pytest.approx(stacked, rel=1e-12)


def test_an_asynchronous_run_judges_what_clients_remember_at_that_time():
    tables = {
        "strategy": {"kind": "fedbuff", "size": 2},
        "selection": {"kind": "uniform", "count": 6},
        "devices": {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 1.0}},
    }
    own = problem(nn.Sequential(mlp()[1], nn.ReLU(), mlp()[3])).keeping("head")
    made = simulation(4, own, **tables)
    row = last(made)
    rows = made.parts.engine.memories().look(PRIVATE, torch.arange(6))[0]
    expected = by_hand(made.parts.problem, lambda client: made.parts.problem.module(made.params, rows[client]).train())
    assert row["personal_loss"] == pytest.approx(expected["personal_loss"], rel=1e-12)


def test_a_restored_run_ends_like_an_uninterrupted_one():
    given = {"epochs": 1, "batch_size": 4, "lr": 0.1}
    whole, first, second = (simulation(4, finetune=given) for _ in range(3))
    rows = [first.step(), first.step()]
    second.restore(decode(encode(first.snapshot())))
    rows += second
    assert [row["personal_loss"] for row in rows] == [row["personal_loss"] for row in whole]

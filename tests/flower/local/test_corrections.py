"""Corrections in an app's own loop: the arithmetic of our clients, with PyTorch and with NumPy, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedsim.core.errors import InputError
from fedsim.flower import VirtualGrid, as_flower_strategy
from fedsim.flower.internals import copied_context
from fedsim.flower.local import feddyn, proximal, scaffold
from fedsim.problems.own_data import supervised
from fedsim.running.build import build_simulation
from fedsim.testing.problems import small_experiment, small_problem, small_quadratics
from fedsim.testing.rounds import everybody, exchange

pytestmark = pytest.mark.usefixtures("local_flower")
STEPS, LR, ROUNDS = 5, 0.1, 3
METHODS = {
    "scaffold": ({"kind": "scaffold"}, {"kind": "scaffold"}),
    "feddyn": ({"kind": "feddyn", "alpha": 0.3}, {"kind": "feddyn"}),
    "fedprox": ({"kind": "fedprox", "proximal_mu": 0.7}, {"kind": "sgd"}),
}


def network():
    """Six clients' network of 83 parameters, and its loss."""
    return small_problem(), nn.functional.cross_entropy


def quadratic():
    """Six clients' functions mean (x w - y)^2 in three dimensions."""
    made = small_quadratics()
    model = nn.Linear(3, 1, bias=False)
    problem = supervised(made.x, made.y, model=model, clients=made.clients, dtype=torch.float64, device="cpu")
    return problem, lambda out, y: (out.squeeze(1) - y).square().mean()


def message(arrays, config=None, **beside):
    """What the server sends: the model, settings, and further vectors like it."""
    records = {name: ArrayRecord({key: Array(value) for key, value in held.items()}) for name, held in beside.items()}
    held = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    config = ConfigRecord({"server-round": 1, **(config or {})})
    return Message(RecordDict({"arrays": held, "config": config, **records}), 1, "train")


def context():
    return Context(1, 77, {"partition-id": 2, "num-partitions": 6}, RecordDict(), {})


def descend(model, loss, x, y, correct, optimizer=None):
    """An app's own loop; correct(model, optimizer) is its line of ours."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        correct(model, optimizer)
        optimizer.step()


def with_torch(method, sent, ctx, model, loss, x, y):
    """What a client app with PyTorch makes of a message: y, and what it puts beside."""
    model.load_state_dict(sent.content["arrays"].to_torch_state_dict())
    helper = {"scaffold": scaffold, "feddyn": feddyn}[method](sent, ctx) if method != "fedprox" else proximal(sent)
    correct = helper.correct if method == "scaffold" else lambda model, _: helper.correct(model)
    descend(model, loss, x, y, correct)
    beside = {} if method == "fedprox" else helper.finish(model)
    return {name: value.detach().numpy() for name, value in model.named_parameters()}, beside


def with_numpy(method, sent, ctx, model, loss, x, y):
    """The same with NumPy, of a linear model and squares; a list of arrays, as `to_numpy_ndarrays` gives it."""
    (w,) = sent.content["arrays"].to_numpy_ndarrays()
    helper = {"scaffold": scaffold, "feddyn": feddyn}[method](sent, ctx) if method != "fedprox" else proximal(sent)
    x, y = x.numpy(), y.numpy()
    for _ in range(STEPS):
        gradient = 2 / len(y) * (x @ w[0] - y) @ x
        (added,) = (helper.correction() if method == "scaffold" else helper.correction([w])).values()
        w = w - LR * (gradient + added)
    if method == "fedprox":
        return {"weight": w}, {}
    return {"weight": w}, helper.finish([w], lr=LR, steps=STEPS) if method == "scaffold" else helper.finish([w])


def simulation_of(problem, method):
    strategy, client = METHODS[method]
    tables = {"strategy": strategy, "client": {**client, "steps": STEPS, "batch_size": "full", "lr": LR}}
    return build_simulation(small_experiment(rounds=ROUNDS, **tables), problem)


def examples(problem, client):
    own = problem.data.order[problem.data.begin[client] : problem.data.begin[client] + problem.data.count[client]]
    return problem.data.x[own], problem.data.y[own]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "train"),
    [(network, with_torch), (quadratic, with_torch), (quadratic, with_numpy)],
    ids=["network-torch", "quadratic-torch", "quadratic-numpy"],
)
def test_round_after_round_a_client_comes_to_what_our_own_comes_to(method, kind, train):
    problem, loss = kind()
    simulation, layout = simulation_of(problem, method), problem.model.layout

    def arrays(vector):
        return {name: tensor.numpy() for name, tensor in layout.named(vector).items()}

    state, contexts = simulation.state, [context() for _ in range(6)]
    for _ in range(ROUNDS):
        orders, replies = exchange(simulation, state, everybody(simulation))
        theta = arrays(orders.payload["params"])
        beside = {name: arrays(orders.payload[name]) for name in ("control",) if name in orders.payload}
        for client in range(6):
            ctx = copied_context(contexts[client])
            sent = message(theta, orders.config, **beside)
            y, told = train(
                method, sent, ctx, problem.module(orders.payload["params"]), loss, *examples(problem, client)
            )
            contexts[client] = ctx
            for name, delta in arrays(replies.payload["delta"][client]).items():
                assert np.abs(y[name] - theta[name] - delta).max() < 1e-9
            if method == "scaffold":
                for name, change in arrays(replies.payload["control-delta"][client]).items():
                    assert np.abs(told["control-delta"][name].numpy() - change).max() < 1e-9
            if method == "feddyn":
                assert told == {"feddyn-alpha": 0.3}
        state, *_ = simulation.parts.strategy.tell(state, replies)
    if method != "fedprox":  # and what is remembered is no zero
        (record,) = contexts[0].state.array_records.values()
        assert all(np.abs(array.numpy()).max() > 1e-3 for array in record.values())


@pytest.mark.parametrize("method", METHODS)
def test_twenty_rounds_over_a_grid_come_to_what_they_come_to_here(method):
    made, (strategy, client), app = small_quadratics(), METHODS[method], ClientApp()

    @app.train()
    def train(sent, ctx):
        own = made.clients[ctx.node_config["partition-id"]]
        w, told = with_numpy(method, sent, ctx, None, None, torch.tensor(made.x[own]), torch.tensor(made.y[own]))
        metrics = MetricRecord({"num-examples": len(own), "train_loss": 0.0, **(told if method == "feddyn" else {})})
        content = {"y": ArrayRecord([w["weight"]]), "metrics": metrics, **(told if method == "scaffold" else {})}
        return Message(RecordDict(content), reply_to=sent)

    with VirtualGrid(app, 6) as grid:
        ours = as_flower_strategy(strategy, fraction_evaluate=0.0)
        found = ours.start(grid, ArrayRecord([np.zeros((1, 3))]), num_rounds=20).arrays.to_numpy_ndarrays()[0][0]
    settings = {**client, "steps": STEPS, "batch_size": "full", "lr": LR}
    here, shorter = (made.run(rounds, strategy, settings) for rounds in (20, 19))
    assert np.abs(found - here).max() < 1e-9
    assert np.abs(found - shorter).max() > 1e-5


def test_each_step_is_corrected_and_not_the_model_after_its_steps():
    # f(y) = y^2, theta = 1, c = 1, lr = 0.1: ten steps of y <- y - 0.1 (2 y + 1) end at -1/2 + 1.5 0.8^10 = -0.339;
    # ten uncorrected ones, and ten corrections after them, at 0.8^10 - 1 = -0.893.
    sent, w = message({"w": np.ones(1)}, control={"w": np.ones(1)}), np.ones(1)
    helper = scaffold(sent, context())
    for _ in range(10):
        w = w - 0.1 * (2 * w + helper.correction()["w"])
    assert w[0] == pytest.approx(-0.5 + 1.5 * 0.8**10, abs=1e-12)
    # c_i+ = -1 + (1 + 0.339) / 1 is the mean of the gradients on the way: 0.339.
    assert helper.finish([w], lr=0.1, steps=10)["control-delta"]["w"].numpy()[0] == pytest.approx(-w[0], abs=1e-12)


def linear(dtype=torch.float32):
    model = nn.Linear(2, 1).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25]]))
        model.bias.fill_(0.125)
    return model


def state(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def ones(model, dtype=np.float32):
    return {name: np.ones(value.shape, dtype) for name, value in state(model).items()}


X, Y = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([[1.0], [0.0]])


def squares(out, y):
    return (out - y).square().mean()


def kept(ctx):
    (record,) = ctx.state.array_records.values()
    return {name: array.numpy() for name, array in record.items()}


def controlled(model=None, ctx=None):
    model = model or linear()
    return scaffold(message(state(model), control=ones(model)), ctx or context())


def test_what_is_frozen_or_has_no_gradient_stays_as_it_was_and_so_does_its_control():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.head = linear(), linear(), nn.Linear(1, 1)
            self.used.bias.requires_grad_(False)

        def forward(self, x):
            return self.head(self.used(x))

    model = Two()
    sent = {name: value for name, value in state(model).items() if not name.startswith("head")}  # a personal layer
    ctx, before = context(), state(model)
    helper = scaffold(message(sent, control={name: np.ones_like(value) for name, value in sent.items()}), ctx)
    descend(model, squares, X, Y, helper.correct)
    delta = helper.finish(model)["control-delta"]
    assert [name for name in delta if delta[name].numpy().any()] == ["used.weight"]
    assert [*delta] == [*sent] == [*kept(ctx)]
    helper = scaffold(message(before, control={name: np.ones_like(value) for name, value in before.items()}), context())
    assert not helper.finish(model, lr=LR, steps=STEPS)["control-delta"]["used.bias"].numpy().any()
    moved = [name for name, value in state(model).items() if (value != before[name]).any()]
    assert moved == ["used.weight", "head.weight", "head.bias"]


def test_what_the_server_freezes_has_no_control_and_is_not_corrected():
    model = linear()
    sent = message(state(model), control={"bias": np.ones(1, np.float32)})
    helper, by_hand = scaffold(sent, context()), scaffold(sent, context())
    squares(model(X), Y).backward()
    before = model.weight.grad.clone()
    helper.correct(model, torch.optim.SGD(model.parameters(), lr=LR))
    assert torch.equal(model.weight.grad, before)
    assert [*by_hand.correction()] == [*helper.finish(model)["control-delta"]] == ["bias"]
    assert [*by_hand.finish(model, lr=LR, steps=1)["control-delta"]] == ["bias"]


def test_half_precision_is_corrected_in_single_and_whole_numbers_have_no_control():
    model = linear(torch.float16)
    sent = {**state(model), "steps": np.array(3)}
    ctx = context()
    helper = scaffold(message(sent, control=ones(model, np.float16)), ctx)
    descend(model, squares, X.half(), Y.half(), helper.correct)
    delta = helper.finish(model)["control-delta"]
    assert {name: array.dtype for name, array in delta.items()} == {"weight": "float32", "bias": "float32"}
    assert {array.dtype.name for array in kept(ctx).values()} == {"float32"}
    ctx = context()
    helper = feddyn(message(sent, {"feddyn-alpha": 0.3}), ctx)
    descend(model, squares, X.half(), Y.half(), lambda model, _: helper.correct(model))
    helper.finish(model)
    y, theta = state(model)["weight"].astype(np.float32), sent["weight"].astype(np.float32)
    first = kept(ctx)["weight"]
    assert first.dtype == np.float32
    assert np.array_equal(first, np.float32(0.3) * (theta - y))
    feddyn(message(state(model), {"feddyn-alpha": 0.3}), ctx).finish(model)  # in no step nothing is forgotten
    assert np.array_equal(kept(ctx)["weight"], first)


def test_the_rates_of_the_steps_are_those_of_each_parameter_and_may_change():
    model, ctx = linear(torch.float64), context()
    theta, c = state(model), ones(model, np.float64)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.02}])
    halving = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    helper = scaffold(message(theta, control=c), ctx)
    gradients = {"weight": [], "bias": []}

    def correct(model, optimizer):
        if len(gradients["bias"]):
            halving.step()
        for name, parameter in model.named_parameters():
            gradients[name].append((optimizer.param_groups[name == "bias"]["lr"], parameter.grad.numpy().copy()))
        helper.correct(model, optimizer)

    descend(model, squares, X.double(), Y.double(), correct, optimizer)
    helper.finish(model)
    for name, own in kept(ctx).items():  # c_i+ is the mean of the client's own gradients, weighted by their rates
        rates, found = zip(*gradients[name], strict=True)
        assert np.abs(own - np.average(found, axis=0, weights=rates)).max() < 1e-12


def test_at_rate_0_nothing_is_learnt_and_of_a_model_that_is_not_finite_nothing_is_remembered():
    model, ctx = linear(), context()
    helper = controlled(model, ctx)
    descend(model, squares, X, Y, helper.correct, torch.optim.SGD(model.parameters(), lr=0.0))
    assert not any(array.numpy().any() for array in helper.finish(model)["control-delta"].values())
    assert not any(array.any() for array in kept(ctx).values())
    dynamic, control = feddyn(message(state(model), {"feddyn-alpha": 1.0}), ctx := context()), controlled(model, ctx)
    descend(model, squares, X, Y * np.nan, control.correct)
    dynamic.correct(model)
    for helper in (dynamic, control):
        helper.finish(model)
    assert not ctx.state.array_records


def test_without_a_factor_a_proximal_loop_is_the_plain_one():
    plain, corrected = linear(), linear()
    helper = proximal(message(state(plain)))
    assert helper.mu == 0.0
    descend(plain, squares, X, Y, lambda model, _: None)
    descend(corrected, squares, X, Y, lambda model, _: helper.correct(model))
    assert all(np.array_equal(value, state(corrected)[name]) for name, value in state(plain).items())
    assert not any(array.any() for array in helper.correction(corrected).values())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: scaffold(message(state(m)), context()), r"^control = \(nothing\): .*strategy scaffold$"),
        (lambda m: scaffold(message(state(m), control={"bias": np.ones(2)}), context()), "^control = bias .2,.: "),
        (lambda m: scaffold(message(state(m), control={"w": np.ones(1)}), context()), "^control = w .1,.: "),
        (lambda m: feddyn(message(state(m)), context()), r"^feddyn-alpha = \(nothing\): .*strategy feddyn$"),
        (lambda m: feddyn(message(state(m), {"feddyn-alpha": np.inf}), context()), "^feddyn-alpha = inf: "),
        (lambda m: proximal(message(state(m), {"proximal-mu": -1.0})), r"^proximal-mu = -1\.0: "),
        (lambda m: proximal(message(state(m), {"proximal-mu": "1"})), "^proximal-mu = 1: "),
        (lambda m: proximal(message(state(m), control=ones(m))), "^message = arrays, control: "),
        (lambda m: proximal(message(state(m))).correction([np.ones(1)]), "^model = 1 arrays: 2 were sent"),
        (
            lambda m: proximal(message(state(m))).correction({"w": np.ones(1)}),
            "^model = w: was sent with names like w",
        ),
        (lambda m: proximal(message(state(m))).correction({"weight": np.ones(1)}), r"^weight = \(1,\): was sent as"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, said):
    with pytest.raises(InputError, match=said) as error:
        call(linear())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), r"^momentum = 0\.9: "),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01), r"^weight_decay = 0\.01: "),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "^maximize = True: "),
        (lambda p: torch.optim.Adam(p, lr=0.1), "^optimizer = Adam: "),
    ],
)
def test_control_variates_need_plain_sgd(optimizer, said):
    model = linear()
    with pytest.raises(InputError, match=said):
        descend(model, squares, X, Y, controlled().correct, optimizer(model.parameters()))


def test_a_wrapped_model_and_gradients_that_are_not_there_are_told():
    model = linear()
    with pytest.raises(InputError, match=r"^model = 0\.weight, 0\.bias: was sent with names like weight, bias"):
        descend(nn.Sequential(model), squares, X, Y, controlled().correct)
    with pytest.raises(InputError, match=r"^model = no gradients\b"):
        controlled().correct(linear(), torch.optim.SGD(model.parameters(), lr=LR))


def test_the_parameters_of_a_wrapped_model_can_be_given_by_the_names_that_were_sent():
    found = []
    for wrapped in (False, True):
        model = linear()
        outer = nn.Sequential(model)
        given = {name[2:]: value for name, value in outer.named_parameters()} if wrapped else model
        helper = controlled(model)
        descend(model, squares, X, Y, lambda _, optimizer, given=given, helper=helper: helper.correct(given, optimizer))
        found.append([array.numpy() for array in helper.finish(given)["control-delta"].values()])
    assert all(np.array_equal(one, other) and one.any() for one, other in zip(*found, strict=True))


def test_steps_are_counted_once_and_by_somebody():
    model, helper = linear(), controlled()
    assert not any(array.numpy().any() for array in controlled().finish(model)["control-delta"].values())
    descend(model, squares, X, Y, helper.correct)
    with pytest.raises(InputError, match=r"^lr = 0\.1: correct has counted"):
        helper.finish(model, lr=LR, steps=STEPS)
    with pytest.raises(InputError, match=r"^lr = None\b"):
        controlled().finish(model)
    with pytest.raises(InputError, match=r"^lr = -0\.1: "):
        controlled().finish(model, lr=-LR, steps=STEPS)
    with pytest.raises(InputError, match=r"^model = was trained\b"):
        feddyn(message(state(linear()), {"feddyn-alpha": 1.0}), context()).finish(model)


def test_what_is_remembered_of_another_model_is_refused():
    ctx = context()
    scaffold(message(state(linear()), control=ones(linear())), ctx).finish(linear())
    with pytest.raises(InputError, match=r"^context\.state\.fedsim\.local\.scaffold = weight, bias: "):
        scaffold(message({"w": np.ones(1)}, control={"w": np.ones(1)}), ctx)


ALONE = """
import sys
from types import SimpleNamespace
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from fedsim.flower.local import curriculum, feddyn, proximal, scaffold

arrays = ArrayRecord([np.ones(2)])
config = ConfigRecord({"server-round": 1, "feddyn-alpha": 1.0})
sent = SimpleNamespace(content=RecordDict({"arrays": arrays, "config": config, "control": arrays}))
context = Context(1, 2, {}, RecordDict(), {})
scaffold(sent, context).finish([np.zeros(2)], lr=0.1, steps=1)
del sent.content["control"]
helper = feddyn(sent, context)
print(len(helper.correction([np.zeros(2)])), helper.finish([np.zeros(2)]), [*context.state])
print(len(curriculum(sent, context, [1.0, 2.0], epochs=1, batch_size=2)), proximal(sent).mu, "torch" in sys.modules)
"""


def test_clients_with_numpy_never_wait_for_pytorch():
    said = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True).stdout
    assert said == "1 {'feddyn-alpha': 1.0} ['fedsim.local.scaffold', 'fedsim.local.feddyn']\n1 0.0 False\n"

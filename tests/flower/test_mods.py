"""What mods make of a reply, by numbers that can be reckoned by hand or are those of a run in one process."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from apps.own import with_numpy
from apps.own.running import start
from codes import CHAIN
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Clip, Noise, Sender
from fedsim.flower import as_flower_strategy, simulate
from fedsim.flower.mods import identify, steps, transformed

pytestmark = pytest.mark.usefixtures("local_flower")

# The change is 3 in w's first number and 4 in b: a norm of 5.
SENT = {"w": np.array([[1.0], [2.0]], np.float32), "count": np.array(3), "b": np.array(0.5, np.float32)}
FOUND = {"w": np.array([[4.0], [2.0]], np.float32), "count": np.array(9), "b": np.array(4.5, np.float32)}


def record(arrays):
    return ArrayRecord({name: Array(values) for name, values in arrays.items()})


def context_of(partition=2, **run_config):
    config = {} if partition is None else {"partition-id": partition, "num-partitions": 4}
    return Context(1, 2**40 + 5, config, RecordDict(), run_config)


class Given:
    """An app that replies what it was given, and a node that it is on."""

    def __init__(self, *mods, partition=2, **run_config):
        self.app, self.context, self.numbers = ClientApp(mods=list(mods)), context_of(partition, **run_config), 0
        self.content = RecordDict()
        for register in (self.app.train, self.app.evaluate):
            register()(lambda message, _: Message(self.content, reply_to=message))

    def __call__(self, found=FOUND, server_round=1, kind="train", metrics=None, sent=SENT, settings=None, **beside):
        self.numbers += 1
        records = {"model": record(found), **{name: record(arrays) for name, arrays in beside.items()}}
        self.content = RecordDict({**records, "metrics": MetricRecord(metrics or {"num-examples": 10})})
        config = {} if server_round is None else {"server-round": server_round}
        content = RecordDict({"arrays": record(sent), "config": ConfigRecord({**config, **(settings or {})})})
        message = Message(content, dst_node_id=7, message_type=kind)
        message.metadata.__dict__["_message_id"] = str(self.numbers)
        self.context = pickle.loads(pickle.dumps(self.context))
        return self.app(message, self.context).content

    def change(self, **given):
        """What the change of w and b has become, [3]."""
        held = self(**given)["model"]
        return np.concatenate([(held[name].numpy() - SENT[name]).reshape(-1) for name in ("w", "b")])


def described(held):
    return [(name, array.numpy().dtype, array.numpy().shape) for name, array in held.items()]


def test_the_change_is_clipped_and_the_rest_is_kept():
    app = Given(transformed(Clip(max_norm=2.5)))
    content = app()
    assert described(content["model"]) == described(record(FOUND))
    assert app.change() == pytest.approx([1.5, 0.0, 2.0])
    assert content["model"]["count"].numpy() == 9
    assert content["metrics"]["num-examples"] == 10


def test_a_change_that_is_short_enough_keeps_its_bits():
    rng = np.random.default_rng(0)
    found = {"w": rng.normal(size=(2, 1)).astype(np.float32), "count": np.array(1), "b": np.array(1e-9, np.float32)}
    content = Given(transformed({"kind": "clip", "max_norm": 100.0}))(found=found)
    for name, values in found.items():
        assert content["model"][name].numpy().tobytes() == values.tobytes(), name


def test_noise_is_that_of_a_run_in_one_process():
    """Draws are those of client 2 in round 3, whatever else the node has been asked."""
    app, chain = Given(transformed({"kind": "noise", "std": 0.5}, seed=11)), Chain((Noise(std=0.5),))
    app(server_round=1)
    app(kind="evaluate", server_round=3)
    change = torch.tensor([[3.0, 0.0, 4.0]])
    ours = chain.apply({"delta": change}, Sender(torch.tensor([2]), Streams(11), 2)).payload["delta"][0]
    assert app.change(server_round=3) == pytest.approx(ours.numpy(), abs=1e-6)
    assert abs(ours - change[0]).max() > 0.1


def test_draws_differ_by_seed_round_node_and_repetition():
    def noise(seed=0, partition=2, server_round=1, before=()):
        app = Given(transformed(Noise(std=1.0), seed=seed), partition=partition)
        for one in before:
            app(server_round=one)
        return tuple(app.change(server_round=server_round))

    different = [noise(), noise(seed=1), noise(partition=1), noise(partition=None), noise(server_round=2)]
    different += [noise(before=[1]), noise(before=[1, 1])]
    assert len({*different}) == len(different)
    assert noise(before=[3]) == noise() == different[0]


def test_what_transforms_remember_lies_in_the_nodes_state():
    """As of a sender in one process, over three rounds, with codes that owe something to the next round."""
    app = Given(transformed(*CHAIN, seed=4))
    chain = Chain(tuple(plugins.make("transforms", one, "transforms") for one in CHAIN))
    found, change = {**FOUND, "w": np.array([[4.0], [3.0]], np.float32)}, torch.tensor([[3.0, 1.0, 4.0]])
    state = {name: torch.zeros(1, *shape) for name, shape in chain.state(Size.of(change[0])).items()}
    assert state
    for number in range(3):
        crossed = chain.apply({"delta": change}, Sender(torch.tensor([2]), Streams(4), number, state))
        state = crossed.state
        assert app.change(found=found, server_round=number + 1) == pytest.approx(
            crossed.payload["delta"][0].numpy(), abs=1e-5
        )
    held = app.context.state["fedsim.transforms/train"]
    assert held.keys() == state.keys()
    for name, kept in state.items():
        assert held[name].numpy() == pytest.approx(kept.numpy(), abs=1e-6)
    assert any(kept.abs().max() > 0 for kept in state.values())


def test_other_arrays_of_a_reply_are_covered_where_they_are_named():
    # Both together: sqrt(5^2 + 12^2) = 13, so that half of it is left.
    control = {"w": np.array([[0.0], [12.0]], np.float32), "b": np.array(0.0, np.float32)}
    app = Given(transformed(Clip(max_norm=6.5, vectors=("delta", "control-delta"))))
    content = app(**{"control-delta": control})
    assert app.change(**{"control-delta": control}) == pytest.approx([1.5, 0.0, 2.0])
    assert content["control-delta"]["w"].numpy()[:, 0] == pytest.approx([0.0, 6.0])
    only = Given(transformed(Clip(max_norm=6.0, vectors=("control-delta",))))
    content = only(**{"control-delta": control})
    assert content["model"]["w"].numpy().tobytes() == FOUND["w"].tobytes()
    assert content["control-delta"]["w"].numpy()[:, 0] == pytest.approx([0.0, 6.0])
    with pytest.raises(InputError, match=r"transforms.0.vectors = .*not delta alone is sent"):
        Given(transformed(Clip(max_norm=1.0)))(**{"control-delta": control})


def test_a_reply_may_be_a_part_of_the_model_and_of_half_precision():
    sent = {"w": SENT["w"].astype(np.float16), "b": SENT["b"]}
    content = Given(transformed(Clip(max_norm=1.5)))(found={"w": FOUND["w"].astype(np.float16)}, sent=sent)
    assert described(content["model"]) == [("w", np.float16, (2, 1))]
    assert content["model"]["w"].numpy()[:, 0].tolist() == [2.5, 2.0]


def test_what_is_no_reply_to_train_is_left_alone():
    app = Given(transformed(Clip(max_norm=1.0)), steps(1, 1))
    content = app(kind="evaluate", settings={"report-nu": True})
    assert content["model"]["b"].numpy() == 4.5
    assert "nu" not in content["metrics"]
    failing = ClientApp(mods=[transformed(Clip(max_norm=1.0)), steps(1, 1)])
    failing.train()(lambda message, _: Message(Error(3, "no data"), reply_to=message))
    message = Message(RecordDict({"config": ConfigRecord({"report-nu": True})}), dst_node_id=7, message_type="train")
    assert failing(message, context_of()).error.reason == "no data"


def test_what_transforms_cannot_be_used_for_is_refused_in_one_line():
    clip = transformed(Clip(max_norm=1.0))
    for given, why in (
        ({"found": {"other": np.zeros(2, np.float32)}}, "other = float32 [2]: a change is between arrays alike"),
        ({"found": {"b": np.zeros(2, np.float32)}}, "b = float32 [2]: a change is between arrays alike, and this was"),
        ({"found": {"b": np.zeros(())}}, "b = float64 []: a change is between arrays alike, and this was float32 []"),
        ({"more": {"b": np.zeros(())}}, "transforms = model, more: a reply has the model in one record alone"),
        ({"server_round": None}, "server-round = (nothing): draws are named by the round"),
    ):
        with pytest.raises(InputError, match=re.escape(why)):
            Given(clip)(**given)
    with pytest.raises(InputError, match="mods = transformed, twice: give all transforms to one"):
        Given(clip, transformed(Noise(std=1.0)))()
    with pytest.raises(InputError, match=r"transforms = \(nothing\): give one at least"):
        transformed()
    with pytest.raises(InputError, match=r"transforms.1.max_norm = -1"):
        transformed(Noise(std=1.0), {"kind": "clip", "max_norm": -1.0})
    with pytest.raises(InputError, match=r"transforms.0.vectors = nu: no such vector is sent"):
        Given(transformed(Clip(max_norm=1.0, vectors=("nu",))))()


ASKED = {"report-nu": True}


@pytest.mark.parametrize(
    ("mod", "nu"),
    [
        (steps(2, 4), 6.0),  # ceil(10 / 4) = 3 steps an epoch
        (steps("local-epochs", "batch"), 10.0),  # 5 epochs of the run in 2 steps, as the message says
        # rho = 1/2, tau = 2: the first gradient weighs 1 + 1/2, the second 1.
        (steps(1, 5, momentum=0.5), 2.5),
        (steps(1, 5, momentum="rho"), 2.75),  # rho = 3/4
    ],
)
def test_nu_is_reckoned_from_the_steps(mod, nu):
    app = Given(mod, **{"local-epochs": 5, "batch": 1, "rho": 0.75})
    assert app(settings={**ASKED, "batch": 5})["metrics"]["nu"] == pytest.approx(nu, abs=1e-12)


def test_nu_is_the_sum_of_the_gradients_weights():
    # By the recursion itself: v <- rho v + g, y <- y - v, with gradients of 1 each.
    velocity = total = 0.0
    for _ in range(7):
        velocity = 0.9 * velocity + 1.0
        total += velocity
    content = Given(steps(1, 10, momentum=0.9))(settings=ASKED, metrics={"num-examples": 70})
    assert content["metrics"]["nu"] == pytest.approx(total, rel=1e-12)


def test_nu_is_told_where_it_is_asked_for_and_where_the_app_says_nothing():
    app = Given(steps(1, 5))
    assert "nu" not in app()["metrics"]
    assert app(settings=ASKED, metrics={"num-examples": 10, "nu": 1.25})["metrics"]["nu"] == 1.25


def test_steps_that_cannot_be_reckoned_are_refused_in_one_line():
    for given, why in (
        ((0, 1), "epochs = 0: take a whole number"),
        ((1, 2.5), "batch_size = 2.5: take a whole number"),
        ((True, 1), "epochs = True: take a whole number"),
        ((1, 1, 1.0), "momentum = 1.0: a momentum is 0 or more, and below 1"),
    ):
        with pytest.raises(InputError, match=re.escape(why)):
            steps(*given[:2], **({"momentum": given[2]} if given[2:] else {}))
    for mod, metrics, why in (
        (steps("epoch", 1), {"num-examples": 1}, "epochs = epoch: no setting is called so; name one of: batch, "),
        (steps(1, "batch"), {"num-examples": 1}, "batch = 0: take a whole number"),
        (steps(1, 1), {"n": 1}, "num-examples = None: report among the metrics"),
        (steps(1, 1, weighted_by_key="n"), {"n": 0}, "n = 0: report among the metrics"),
    ):
        with pytest.raises(InputError, match=re.escape(why)):
            Given(mod, batch=0, epochs=1)(settings=ASKED, metrics=metrics)


def test_a_node_says_its_partition():
    app = ClientApp(mods=[transformed(Clip(max_norm=1.0))])
    identify(app)
    message = Message(RecordDict(), dst_node_id=7, message_type="query.identify")
    assert dict(app(message, context_of(3)).content["config"]) == {"partition-id": 3, "num-partitions": 4}
    with pytest.raises(InputError, match="partition-id = None: start the node with"):
        app(message, context_of(None))


def test_a_mod_does_not_see_messages_that_no_function_answers():
    """So that who a node is has to be a function of the app's."""
    seen = []
    app = ClientApp(mods=[lambda message, context, call_next: seen.append(message) or call_next(message, context)])
    with pytest.raises(ValueError, match="No query function registered"):
        app(Message(RecordDict(), dst_node_id=7, message_type="query.identify"), context_of())
    assert not seen


def numbers(arrays):
    return np.concatenate([array.numpy().reshape(-1) for array in arrays.values()])


def test_on_nodes_and_on_the_server_transforms_come_to_the_same():
    chain = [{"kind": "clip", "max_norm": 0.2}, {"kind": "noise", "std": 0.05}]
    app = with_numpy.client([transformed(*chain, seed=3)])
    identify(app)
    found = start(as_flower_strategy("fedavg"), app, with_numpy.initial(), rounds=3).arrays
    plain = with_numpy.client()
    identify(plain)
    server = as_flower_strategy("fedavg", transforms=chain, seed=3, identify=True)
    wanted = start(server, plain, with_numpy.initial(), rounds=3).arrays
    np.testing.assert_allclose(numbers(found), numbers(wanted), rtol=0.0, atol=1e-12)
    untransformed = start(as_flower_strategy("fedavg"), with_numpy.client(), with_numpy.initial(), rounds=3).arrays
    assert np.abs(numbers(found) - numbers(untransformed)).max() > 0.01


def test_fednova_takes_what_the_mod_reckons():
    """Nodes have 6, 8, 10 and 12 examples, in batches of 8: of two epochs nu is 2, 2, 4 and 4."""
    sizes, nu = np.array([6, 8, 10, 12]), np.array([2.0, 2.0, 4.0, 4.0])
    app = with_numpy.client([steps(2, "batch")])
    result = start(as_flower_strategy("fednova"), app, with_numpy.initial(), rounds=1, run_config={"batch": 8})
    changes = np.stack([np.concatenate(with_numpy.moved(node, np.zeros(3), np.zeros(1))) for node in range(4)])
    weights = sizes / sizes.sum()
    wanted = (weights @ nu) * (weights / nu) @ changes
    np.testing.assert_allclose(numbers(result.arrays), wanted, rtol=1e-12)
    assert np.abs(wanted - weights @ changes).max() > 0.01


def test_the_example_app_learns_and_says_how_much_work_it_was(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments" / "flower_apps" / "mods"))
    config = {"strategy": "fednova", "rounds": 3, "local-epochs": 2, "batch-size": 16, "lr": 0.1}
    result = simulate("uneven.server_app:app", "uneven.client_app:app", 4, run_config=config)
    assert result.errors == []
    server = result.history["server"]
    assert server[0]["accuracy"] < 0.2 < 0.7 < server[3]["accuracy"]
    # Of 1,500 examples nodes have 1/10, 2/10, 3/10 and 4/10: in batches of 16 that is 10, 19, 29 and 38 steps an epoch.
    work = (0.1 * 10 + 0.2 * 19 + 0.3 * 29 + 0.4 * 38) * 2
    assert result.history["train"][1]["effective_steps"] == pytest.approx(work)

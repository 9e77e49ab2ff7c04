"""What plug-ins return is refused where it enters the loop, in one line that names the plug-in."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from clients.scaffold import Scaffold
from clients.sgd import Sgd
from clients.zeroth_order.differences import Differences
from fedsim.attacks.gradient import FGSM
from fedsim.core.errors import BrokenPromiseError, InputError
from fedsim.core.options import options
from fedsim.devices.compute import Fixed
from fedsim.exchange.aggregation import Aggregator
from fedsim.exchange.messages import Order, Size, Update
from fedsim.exchange.transforms import Transform, Vector
from fedsim.exchange.windows import All, First
from fedsim.problems.partitions.library import IID
from fedsim.running import promises
from fedsim.server.selection.uniform import Uniform
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import TRAINING, small_experiment, small_problem
from strategies.fedavg import FedAvg

IDS = torch.arange(4)


def refused(**parts: Any) -> str:
    """What a run with such a plug-in is refused for."""
    with pytest.raises(BrokenPromiseError) as caught:
        fedsim.run(small_experiment(2, **parts), problem=small_problem(), save=False)
    line = str(caught.value)
    assert "\n" not in line
    return line


@options
class Chooses(Uniform):
    """Returns something else in place of what it is to."""

    returns: Any = None
    method: str = "select"

    def of(self, population: int) -> Any:
        return self.returns if self.method == "of" else super().of(population)

    @property
    def reports(self) -> Any:
        return self.returns if self.method == "reports" else frozenset()

    @property
    def score_examples(self) -> Any:
        return self.returns if self.method == "score_examples" else None

    def start(self, sizes: Any) -> Any:
        return self.returns if self.method == "start" else super().start(sizes)

    def candidates(self, state: Any, turn: Any) -> Any:
        return self.returns if self.method == "candidates" else None

    def choose(self, state: Any, turn: Any, scores: Any) -> Any:
        if self.method != "choose":
            return super().choose(state, turn, scores)
        return self.returns() if callable(self.returns) else self.returns

    def select(self, state: Any, turn: Any, scores: Any) -> Any:
        if self.method == "ids":
            return self.returns, state
        return self.returns if self.method == "select" else super().select(state, turn, scores)

    def observe(self, state: Any, replies: Any) -> Any:
        return self.returns if self.method == "observe" else state


@pytest.mark.parametrize(
    ("method", "returns", "words"),
    [
        ("ids", torch.zeros(4, dtype=torch.int64), "it chooses client 0 twice; ids are ascending, each once"),
        ("ids", torch.tensor([3, 1]), "it chooses client 1 after 3"),
        ("ids", torch.arange(5), "it chooses 5 clients where 4 are wanted"),
        ("ids", torch.arange(0), "it chooses nobody where 6 are free"),
        ("ids", torch.tensor([1, 6]), "it chooses client 6, and there are clients 0 to 5"),
        ("ids", torch.tensor([-1, 2]), "it chooses client -1"),
        ("ids", [0, 1], "it chooses a list, not a tensor of ids"),
        ("ids", torch.arange(4).float(), "it chooses a tensor of float32 [4], not a tensor of ids"),
        ("ids", torch.arange(4).view(2, 2), "it chooses a tensor of int64 [2, 2]"),
        ("select", IDS, "select returns a tensor of int64 [4], not the chosen clients and a state"),
        ("select", None, "select returns None"),
        ("select", (IDS, None), "select returns None, not a state"),
        ("choose", [0, 1, 2, 3], "choose returns a list, not an array of ids"),
        ("choose", lambda: np.arange(4.0), "choose returns an array of float64"),
        ("candidates", torch.tensor([2, 2]), "it asks for the loss of client 2 twice"),
        ("candidates", [1], "it asks for the loss of a list"),
        ("start", None, "start returns None, not a state: a dict of tensors"),
        ("start", {"selections": 0}, "start returns a dict, not a state"),
        ("observe", None, "observe returns None, not a state"),
        ("of", 4.0, "of(6) is 4.0, not a number of clients"),
        ("of", 0, "of(6) is 0"),
        ("of", 7, "of(6) is 7"),
        ("of", None, "of(6) is None"),
        ("choose", lambda: np.arange(4)[::-1], "it chooses client 2 after 3"),
        ("start", {3: torch.zeros(1)}, "start returns a state by the names 3; name by texts"),
        ("observe", {"others": torch.zeros(1)}, "observe remembers others where it had been selections"),
        ("select", (IDS, {}), "select remembers nothing where it had been selections"),
        ("reports", frozenset({"utilty"}), "its reports are utilty, and replies carry utility alone"),
        ("score_examples", -3, "its score_examples are -3, not None or a number of examples"),
        ("score_examples", 2.0, "its score_examples are 2.0"),
    ],
)
def test_what_a_selector_returns(method, returns, words):
    line = refused(selection=Chooses(count=4, method=method, returns=returns))
    assert line.startswith(f"selection.kind = {__name__}:Chooses: ")
    assert words in line


@options
class ChoosesTheFirst(Uniform):
    """The same three again and again, whoever is at work."""

    def choose(self, state: Any, turn: Any, scores: Any) -> Any:
        return np.arange(turn.wanted)


def test_a_client_that_is_at_work_is_not_chosen_again():
    devices = {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 1.0}}
    line = refused(selection=ChoosesTheFirst(count=3), strategy={"kind": "fedbuff", "size": 1}, devices=devices)
    assert "it chooses client 0, who is not free: at work, asleep or without examples" in line


def moved(state: ServerState, **changes: Any) -> ServerState:
    """The state of the next round, but for these."""
    return replace(state, **({"round": state.round + 1} | changes))


SERVER: dict[str, tuple[Any, str]] = {
    "init none": (None, "init returns None, not a ServerState whose params are a tensor"),
    "init list": (lambda state: replace(state, params=[1.0]), "init returns a ServerState, not a ServerState whose"),
    "init short": (
        lambda s: replace(s, params=s.params[:3]),
        "init returns as params a tensor of float64 [3], and the m",
    ),
    "init single": (
        lambda s: replace(s, params=s.params.float()),
        "a tensor of float32 [83], and the model is float64",
    ),
    "init memory": (lambda s: replace(s, memory={"best": 1.0}), "init keeps best as 1.0, not as a tensor"),
    "plan none": (None, "plan returns None"),
    "seeded none": (None, "seeded returns None"),
    "ask order": (lambda order: order, "ask returns an Order, not an Order and a window"),
    "ask pair": (lambda order: (order, 3.0), "ask returns an Order and 3.0, not an Order and a window"),
    "ask others": (lambda order: (replace(order, clients=order.clients + 1), All()), "its order is to a tensor of"),
    "ask ids": (lambda order: (replace(order, clients=[0, 1]), All()), "its order is to a list, not to chosen clients"),
    "ask names": (
        lambda order: (replace(order, payload={"param": order.payload["params"]}), All()),
        "its order has param, which its `down` does not name; did you mean params?",
    ),
    "ask list": (lambda order: (replace(order, payload={"params": [0.0]}), All()), "it sends params as a list"),
    "ask shape": (
        lambda order: (replace(order, payload={"params": order.payload["params"][:2]}), All()),
        "it sends as params a tensor of float64 [2] where the model is a tensor of float64 [83]",
    ),
    "ask twice": (
        lambda order: (replace(order, config={"params": 1.0}), All()),
        "its order has params as a vector and as a setting",
    ),
    "ask nothing": (
        lambda order: (replace(order, payload={}), All()),
        "it needs params, and the order to train sends nothing",
    ),
    "ask round": (lambda order: (replace(order, round=5), All()), "its order is of round 5, and the state of 0"),
    "ask action": (
        lambda order: (replace(order, action="trian"), All()),
        "the order is to trian, and it has no such method; did you mean train?",
    ),
    "ask window": (lambda order: (order, First(0)), "its window closes with the first 0 replies"),
    "tell none": (lambda told: None, "tell returns None, not a state, metrics and whether the round is done"),
    "tell two": (lambda told: told[:2], "tell returns (ServerState, dict), not a state, metrics and whether"),
    "tell params": (lambda told: (moved(told[0], round=1, params=None), {}, True), "tell returns a ServerState, not a"),
    "tell shape": (
        lambda told: (replace(told[0], params=told[0].params[:, None] + told[0].params), {}, True),
        "tell returns as params a tensor of float64 [83, 83], and the model is a tensor of float64 [83]; look at the",
    ),
    "tell type": (lambda told: (replace(told[0], params=told[0].params.float()), {}, True), "a tensor of float32 [83]"),
    "tell metrics": (lambda told: (told[0], [1.0], True), "tell returns a list as metrics, not numbers by name"),
    "tell tensor": (lambda told: (told[0], {"eta": torch.ones(1)}, True), "its metric eta is a tensor of float32 [1]"),
    "tell column": (
        lambda told: (told[0], {"time": 1.0}, True),
        "its metric time is called like a column of every run",
    ),
    "tell done": (lambda told: (told[0], {}, "yes"), "tell returns 'yes' for whether the round is done"),
    "tell round": (
        lambda told: (replace(told[0], round=0), {}, True),
        "tell leaves round 0 and phase 0 after 0 and 0; a round that is done counts one more",
    ),
    "refine none": (lambda given: None, "refine returns None, not a state and metrics"),
    "refine state": (lambda given: (None, {}), "refine returns None, not a ServerState"),
    "refine shape": (
        lambda given: (replace(given[0], params=given[0].params[:1]), {}),
        "refine returns as params a tensor of float64 [1], and the model is a tensor of float64 [83]",
    ),
    "refine type": (lambda given: (replace(given[0], params=given[0].params.float()), {}), "of float32 [83], and the"),
    "refine round": (
        lambda given: (replace(given[0], round=5), {}),
        "refine leaves round 5 after 1; `tell` counts them",
    ),
    "refine metrics": (lambda given: (given[0], [1.0]), "refine returns a list as metrics, not numbers by name"),
    "refine time": (lambda given: (given[0], {"time": 1.0}), "its metric time is called like a column"),
    "refine in place": (lambda given: (given[0].params.add_(1.0), {}), "refine changes the params of the state that"),
    "tell ever": (lambda told: (replace(told[0], round=0), {}, False), "a window counts a phase more"),
}


@options
class Serves(FedAvg):
    """Returns something else in place of what it is to."""

    case: str

    def _else(self, method: str, given: Any) -> Any:
        change = SERVER[self.case][0]
        return given if not self.case.startswith(f"{method} ") else None if change is None else change(given)

    def init(self, problem: Any) -> Any:
        return self._else("init", super().init(problem))

    def seeded(self, state: Any, streams: Any) -> Any:
        return self._else("seeded", state)

    def plan(self, state: Any, durations: Any) -> Any:
        return self._else("plan", state)

    def ask(self, state: Any, chosen: Any) -> Any:
        asked = super().ask(state, chosen)
        return self._else("ask", asked[0]) if self.case.startswith("ask ") else asked

    def tell(self, state: Any, replies: Any) -> Any:
        return self._else("tell", super().tell(state, replies))

    @property
    def distils(self) -> bool:
        return self.case.startswith("refine ")

    def refine(self, state: Any, replies: Any, bench: Any) -> Any:
        return self._else("refine", super().refine(state, replies, bench))


@pytest.mark.parametrize("case", SERVER)
def test_what_a_strategy_returns(case):
    line = refused(strategy=Serves(case=case))
    assert SERVER[case][1] in line
    named = "client.kind = sgd: " if case in ("ask action", "ask nothing") else "strategy.kind = "
    assert line.startswith(named)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda state: None, "resize returns None, not a ServerState whose params are a tensor"),
        (lambda state: replace(state, memory={"clients": 6}), "resize keeps clients as 6, not as a tensor"),
        (lambda state: replace(state, params=state.params + 1.0), "resize changes the model, which stays what it is"),
        (lambda state: replace(state, params=state.params.float()), "resize changes the model, which stays"),
        (lambda state: replace(state, round=0), "resize leaves round 0 and phase 1 after 3 and 1; they stay"),
        (lambda state: replace(state, phase=0), "resize leaves round 3 and phase 0 after 3 and 1; they stay"),
    ],
    ids=["none", "memory", "model", "type", "round", "phase"],
)
def test_what_a_strategy_returns_for_other_clients(given, words):
    state = ServerState(torch.arange(3.0, dtype=torch.float64), round=3, phase=1)
    with pytest.raises(BrokenPromiseError, match=re.escape(words)):
        promises.resized(FedAvg(), given(state), state)


def test_an_equal_model_is_the_model():
    state = ServerState(torch.arange(3.0, dtype=torch.float64), round=3)
    told = replace(state, params=state.params.clone())
    assert promises.resized(FedAvg(), told, state) is told
    with pytest.raises(BrokenPromiseError, match="forget leaves round 0"):
        promises.resized(FedAvg(), replace(state, round=0), state, "forget")


@options
class Writes(FedAvg):
    """Writes to the model that it is lent."""

    method: str

    def ask(self, state: Any, chosen: Any) -> Any:
        if self.method == "ask":
            state.params[0] = 1.0
        return super().ask(state, chosen)

    def tell(self, state: Any, replies: Any) -> Any:
        if self.method == "tell":
            state.params.add_(1.0)
        return super().tell(state, replies)


@pytest.mark.parametrize("method", ["ask", "tell"])
def test_a_strategy_does_not_write_to_the_model(method):
    line = refused(strategy=Writes(method=method))
    assert line.endswith(f"Writes: {method} changes the params of the state that it is handed; have it make others")


@options
class Centres(Aggregator):
    """Returns something else in place of a centre."""

    returns: Any

    def __call__(self, rows: Any, weights: Any) -> Any:
        return self.returns(rows)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda rows: None, "its centre of a tensor of float64 [4, 83] is None; give one row of that type"),
        (lambda rows: rows[0].tolist(), "is a list"),
        (lambda rows: rows, "is a tensor of float64 [4, 83]"),
        (lambda rows: rows[0].float(), "is a tensor of float32 [83]"),
        (lambda rows: rows.mean(), "is a tensor of float64 []"),
        (lambda rows: rows[0, :1], "is a tensor of float64 [1]"),
        (lambda rows: rows[0].to("meta"), "is a tensor of float64 [83]"),
        (lambda rows: rows[0] / 0.0, "its centre of finite rows is not finite"),
        (lambda rows: rows[0].clone().requires_grad_(), "its centre has a graph; detach it"),
        (lambda rows: rows.mul_(2.0)[0], "it changes the rows or the weights that it is handed; have it make others"),
    ],
)
def test_what_an_aggregator_returns(returns, words):
    line = refused(aggregation=Centres(returns=returns))
    assert line.startswith(f"aggregation.kind = {__name__}:Centres: ")
    assert words in line


CLIENT: dict[str, tuple[Any, str]] = {
    "cost none": (None, "cost returns None, not a Cost"),
    "cost steps": (lambda cost: replace(cost, steps=3), "its cost has as steps 3, not int64 [6]"),
    "cost each": (lambda cost: replace(cost, steps=cost.steps[:2]), "its cost has as steps a tensor of int64 [2]"),
    "cost reply": (lambda cost: replace(cost, reply={"change": Size(83, 64)}), "declares change, which its `up` does"),
    "cost size": (lambda cost: replace(cost, reply={"delta": 83}), "its cost has as the size of delta 83, not a Size"),
    "train none": (None, "it returns None, not an Update whose payload has tensors by name"),
    "train dict": (lambda update: update.payload, "it returns a dict, not an Update"),
    "train list": (
        lambda update: Update({"delta": [0.0]}),
        "it sends as delta a list, not a tensor of one row a client",
    ),
    "train mean": (
        lambda update: Update({"delta": update.payload["delta"].mean(0)}),
        "it sends as delta a tensor of float64 [83], not a tensor of one row a client, 4 in all",
    ),
    "train name": (
        lambda update: Update({"change": update.payload["delta"]}),
        "it sends change of 83 x 64 bits where its cost declares delta of 83 x 64 bits",
    ),
    "train graph": (
        lambda update: Update({"delta": update.payload["delta"].clone().requires_grad_()}),
        "it sends delta with the graph that has made it; detach it",
    ),
    "train type": (lambda update: Update({"delta": update.payload["delta"].float()}), "it sends delta of 83 x 32 bits"),
    "train metric": (
        lambda update: replace(update, metrics={"loss": torch.zeros(())}),
        "its metric loss is a tensor of float32 [], not a number for each of 4 clients",
    ),
}


@options
class Trains(Sgd):
    """Returns something else in place of what it is to."""

    case: str

    def _else(self, method: str, given: Any) -> Any:
        change = CLIENT[self.case][0]
        return given if not self.case.startswith(f"{method} ") else None if change is None else change(given)

    def cost(self, order: Order, examples: Any) -> Any:
        return self._else("cost", super().cost(order, examples))

    def train(self, cohort: Any) -> Any:
        return self._else("train", super().train(cohort))


@pytest.mark.parametrize("case", CLIENT)
def test_what_a_client_returns(case):
    line = refused(client=Trains(case=case, **TRAINING))
    assert line.startswith(f"client.kind = {__name__}:Trains: ")
    assert CLIENT[case][1] in line


@options
class Remembers(Scaffold):
    """Keeps what it has not declared."""

    def train(self, cohort: Any) -> Any:
        update = super().train(cohort)
        cohort.keep(control=torch.zeros(len(cohort), 2))
        return update


def test_what_a_client_keeps():
    line = refused(client=Remembers(**TRAINING), strategy="scaffold")
    assert "it keeps control as a tensor of float32 [4, 2], and its state declares [83] a client" in line


@options
class Sends(Transform):
    """Returns something else in place of what it is to."""

    case: str

    def size(self, before: Size) -> Any:
        return {"size": None, "less than none": replace(before, numbers=-3)}.get(self.case, before)

    def apply(self, vectors: Any) -> Any:
        made = super().apply(vectors)
        return {"none": None, "list": [*made.values()], "other": {"delt": made["delta"]}}.get(self.case, made)

    def encode(self, vector: Vector) -> Any:
        rows = vector.rows
        made: dict[str, Any] = {
            "rows": rows,
            "rows list": lambda: vector.coded(rows.tolist()),  # type: ignore[arg-type]
            "one": lambda: vector.coded(rows.mean(0)),
            "fewer": lambda: vector.coded(rows[:1]),
            "short": lambda: vector.coded(rows[:, :3]),
            "written": lambda: vector.coded(rows.zero_()),
            "whole": lambda: vector.coded(rows, decode=lambda arrived: arrived.long()),
            "decoded": lambda: vector.coded(rows, decode=lambda arrived: arrived[:, :1]),
            "numpy": lambda: vector.coded(rows, decode=lambda arrived: arrived.numpy()),  # type: ignore[arg-type,return-value]
        }
        found = made.get(self.case, vector)
        return found() if callable(found) else found


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("size", "size returns None, not a Size"),
        ("less than none", "size returns a Size of -3 numbers; none is the least"),
        ("written", "it changes the rows that it is handed; have it make others"),
        ("whole", "delta arrives as a tensor of int64 [4, 83] where a tensor of float64 [4, 83] was sent"),
        ("none", "apply returns None, not delta"),
        ("list", "apply returns a list, not delta"),
        ("other", "apply returns delt, not delta"),
        ("rows", "it makes a tensor of float64 [4, 83] of delta, not a Vector: see Vector.coded"),
        ("rows list", "a list crosses where 4 clients send a row each"),
        ("one", "a tensor of float64 [83] crosses where 4 clients send a row each"),
        ("fewer", "a tensor of float64 [1, 83] crosses where 4 clients"),
        ("short", "3 numbers cross where 83 are declared"),
        ("decoded", "delta arrives as a tensor of float64 [4, 1] where a tensor of float64 [4, 83] was sent"),
        ("numpy", "delta arrives as a ndarray"),
    ],
)
def test_what_a_transform_returns(case, words):
    line = refused(transforms=[Sends(case=case)])
    assert words in line
    place = "transforms" if case in ("decoded", "numpy", "whole") else "transforms.0.kind"
    assert line.startswith(f"{place} = {__name__}:Sends: ")


@options
class AnyWeighting(FedAvg):
    """Takes any text for its weighting, as an author may write it."""

    weighting: str = "uniform"  # type: ignore[assignment]


def test_a_weighting_that_nobody_knows_is_refused():
    made = small_experiment(2, strategy=AnyWeighting(weighting="exmples"))
    said = r"^strategy\.weighting = exmples: name one of: examples, uniform; did you mean examples\?$"
    with pytest.raises(InputError, match=said):
        fedsim.run(made, problem=small_problem(), save=False)


@options
class Estimates(Differences):
    """Returns something else in place of an estimate."""

    returns: Any

    def estimate(self, probe: Any, x: Any, base: Any, memory: Any) -> Any:
        return self.returns(super().estimate(probe, x, base, memory))


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda found: None, "estimate returns None, not an Estimate"),
        (lambda found: tuple(found), "estimate returns (Tensor, Tensor, dict), not an Estimate"),
        (
            lambda found: found._replace(gradient=found.gradient.mean(0)),
            "its gradient at a tensor of float64 [4, 83] is",
        ),
        (lambda found: found._replace(value=found.value.mean()), "is a tensor of float64 []; give one number a client"),
        (lambda found: found._replace(memory=None), "estimate returns (Tensor, Tensor, NoneType), not an"),
    ],
)
def test_what_an_estimator_returns(returns, words):
    line = refused(client={"kind": "fedzo", "steps": 1, "estimator": Estimates(returns=returns)})
    assert line.startswith(f"client.estimator.kind = {__name__}:Estimates: ")
    assert words in line


@options
class Attacks(FGSM):
    """Returns something else in place of attacked inputs."""

    returns: Any

    def perturb(self, victim: Any, x: Any, targets: Any, loss: Any = None, factor: float = 1.0) -> Any:
        return self.returns(x)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda x: None, "perturb makes None of a tensor of float64 ["),
        (lambda x: x.numpy(), "perturb makes a ndarray of"),
        (lambda x: x[..., :1], ", 1] of a tensor of float64 ["),
        (lambda x: x.float(), "perturb makes a tensor of float32 ["),
    ],
)
@pytest.mark.parametrize("place", ["client", "evaluation"])
def test_what_an_attack_returns(returns, words, place):
    attack = Attacks(epsilon=0.1, domain="none", returns=returns)
    if place == "client":
        line = refused(client={"kind": "sgd", **TRAINING, "adversarial": {"kind": "standard", "attack": attack}})
    else:
        line = refused(evaluation={"attacks": [attack]})
    assert line.startswith(f"attack.kind = {__name__}:Attacks: ")
    assert words in line


@options
class Loads:
    """Returns something else in place of a data set."""

    def load(self, folder: Any) -> Any:
        return None


@options
class Splits(IID):
    """Returns lists in place of a partition."""

    def split(self, data: Any, seed: int) -> Any:
        return [[0], [1]]


@options
class Starts(Fixed):
    """Returns numbers in place of a pace."""

    def start(self, census: Any, streams: Any, data_dir: Any) -> Any:
        return np.ones(len(census.sizes))


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (
            {"problem": {"dataset": Loads()}},
            f"problem.dataset.kind = {__name__}:Loads: load returns nothing, not a Data",
        ),
        (
            {"partition": Splits(clients=2)},
            f"partition.kind = {__name__}:Splits: split returns a list, not a Partition",
        ),
        (
            {"devices": {"compute": Starts()}},
            f"devices.compute.kind = {__name__}:Starts: start returns a ndarray, not a Pace",
        ),
    ],
)
def test_what_is_returned_before_a_run_is_refused_as_an_option(tables, words):
    with pytest.raises(InputError) as caught:
        fedsim.run(fedsim.experiment(rounds=1, **tables), save=False)
    assert words in str(caught.value)


def plain(self: Any) -> frozenset[str]:
    return frozenset({"delta"})


@pytest.mark.parametrize(
    ("up", "words"),
    [
        (plain, "its `up` is a method; put @property above it"),
        ("delta", "its `up` is 'delta', not a set of names"),
        (["delta"], "its `up` is a list, not a set of names"),
        (frozenset({1}), "its `up` is a frozenset, not a set of names"),
    ],
)
def test_what_a_client_declares(up, words):
    made = options(type("Declares", (Sgd,), {"up": up, "__module__": __name__}))(**TRAINING)
    with pytest.raises(InputError) as caught:
        small_experiment(1, client=made)
    assert str(caught.value) == f"client.kind = {__name__}:Declares: {words}"


@options
class Shaped(Sgd):
    """What it remembers is no shapes."""

    shapes: Any

    def state(self, dimension: int) -> Any:
        return self.shapes


@options
class ShapedTransform(Transform):
    """What it remembers is no shapes."""

    shapes: Any

    def state(self, length: int) -> Any:
        return self.shapes

    def encode(self, vector: Vector) -> Vector:
        return vector


@pytest.mark.parametrize("shapes", [None, ["owed"], {"owed": 3}, {"owed": (3.0,)}], ids=str)
def test_what_clients_and_transforms_remember(shapes):
    words = "not shapes by name: tuples of integers"
    assert words in refused(client=Shaped(shapes=shapes, **TRAINING))
    assert words in refused(transforms=[ShapedTransform(shapes=shapes)])

"""The loop: evaluation, early stopping, callbacks, starting points, and what it refuses to go on with."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import fedsim
from fedsim.cli import words
from fedsim.client import Client
from fedsim.configuration.evaluation import Stopping
from fedsim.core.errors import DivergedError, InputError
from fedsim.core.options import options
from fedsim.core.streams import SERVER
from fedsim.exchange.messages import Cost, Order, Size, Update
from fedsim.exchange.transforms import Transform
from fedsim.exchange.windows import All
from fedsim.running.build import build_simulation
from fedsim.running.simulation import TURNS, Simulation
from fedsim.server import Strategy
from fedsim.server.strategy import ServerState
from fedsim.testing.problems import blobs, mlp, small_problem
from fedsim.testing.problems import small_experiment as small


def test_evaluation_every_k_rounds_and_after_the_last():
    result = fedsim.run(small(5, evaluation={"every": 2}), problem=small_problem(), save=False)
    evaluated = [row["round"] for row in result.history if "test_loss" in row]
    assert evaluated == [2, 4, 5]
    assert [row["round"] for row in result.history] == [1, 2, 3, 4, 5]


def test_evaluation_is_that_of_the_module():
    problem, data = small_problem(), blobs()
    params = problem.initial()
    found = problem.evaluate(params, clients=True)
    module = problem.module(params).cpu()
    with torch.no_grad():
        outputs = module(torch.tensor(data["test"][0]))
        own = module(torch.tensor(data["x"])).argmax(1).numpy()
    y = torch.tensor(data["test"][1])
    assert found["test_loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, y)))
    assert found["test_accuracy"] == float((outputs.argmax(1) == y).double().mean())
    accuracies = sorted(float((own[rows] == data["y"][rows]).mean()) for rows in data["clients"])
    assert found["client_accuracy_worst"] == accuracies[0]
    assert found["client_accuracy_mean"] == pytest.approx(sum(accuracies) / 6)
    # The 10th percentile of six values lies half-way between the first two: 0.1 x 5 = 0.5.
    assert found["client_accuracy_p10"] == pytest.approx((accuracies[0] + accuracies[1]) / 2)


def test_stopping_rules():
    assert Stopping(target=0.9).reached([0.5, 0.89]) is None
    assert Stopping(target=0.9).reached([0.5, 0.9]) is not None
    assert Stopping(metric="test_loss", target=0.3).reached([0.4]) is None
    assert Stopping(metric="test_loss", target=0.3).reached([0.2]) is not None
    assert Stopping(patience=2).reached([0.5, 0.6, 0.6]) is None
    assert Stopping(patience=2).reached([0.5, 0.6, 0.6, 0.55]) is not None


def test_a_run_stops_early_and_says_why():
    experiment = small(50, evaluation={"every": 1}, stopping={"metric": "test_accuracy", "target": 0.1})
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    assert result.status == "stopped"
    assert "test_accuracy" in result.reason
    assert len(result.history) < 50


def test_callbacks_see_every_round_and_the_model():
    seen = []
    result = fedsim.run(
        small(3),
        problem=small_problem(),
        save=False,
        callbacks=[lambda now: seen.append((now.row["round"], now.params))],
    )
    assert [number for number, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], result.params)
    assert not torch.equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize(("every", "judged"), [(0, [6]), (2, [2, 4, 6]), (1, [1, 2, 3, 4, 5, 6])])
@pytest.mark.parametrize("kind", ["fedavg", "fedfix", "fedbuff", "fedasync", "fedavg_async"])
def test_callbacks_come_with_rows_which_asynchronous_strategies_have_of_evaluations(kind, every, judged):
    seen = []
    everybody = {"kind": "uniform", "fraction": 1.0}
    strategy = {"kind": kind, **({"size": 2} if kind == "fedbuff" else {})}
    experiment = small(6, strategy=strategy, selection=everybody, evaluation={"every": every})
    result = fedsim.run(
        experiment, problem=small_problem(), save=False, callbacks=[lambda now: seen.append(now.row["round"])]
    )
    assert seen == result.history["round"] == ([1, 2, 3, 4, 5, 6] if kind == "fedavg" else judged)


def test_a_model_that_is_not_finite_stops_the_run():
    problem = small_problem(torch.float32)
    simulation = build_simulation(small(3, client={"kind": "sgd", "epochs": 1, "lr": 1e30}), problem)
    with pytest.raises(DivergedError, match=r"lower client\.lr"):
        list(simulation)
    assert torch.isfinite(simulation.state.params).all()


def test_a_model_that_never_moves_is_said_and_ends_a_long_run():
    """Steps of 1e-40 are lost beside parameters of about 0.1."""
    still = {"client": {"kind": "sgd", "epochs": 1, "lr": 1e-40}, "evaluation": {"every": 0}}
    result = fedsim.run(small(3, **still), problem=small_problem(), save=False)
    said = "the model is the one that the run began with: 12 replies in 3 rounds have not moved it"
    assert (result.status, result.reason) == ("finished", said)
    assert [*words.lines_of(result)][-1] == said
    long = fedsim.run(small(100_000, **still), problem=small_problem(), save=False)
    assert (long.status, long.summary["rounds"]) == ("stalled", 500)
    assert "2000 replies in 500 rounds" in long.reason


def test_a_run_is_not_given_up_while_some_reply_is_used():
    """Of 1,600 orders about 30 are answered: 50 rounds apart from 500 orders in vain, each of them begins anew."""
    rare = {"faults": {"drop_before": 0.98}, "evaluation": {"every": 0}}
    result = fedsim.run(small(400, **rare), problem=small_problem(), save=False)
    assert (result.status, result.reason, result.summary["orders"]) == ("finished", "", 1600)
    assert 10 < result.summary["used"] < 60


def test_training_starts_from_a_given_state(tmp_path):
    other = mlp()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.25)
    torch.save(other.state_dict(), tmp_path / "start.pt")
    from fedsim.problems.modules import load_start

    problem = small_problem()
    problem.start_from(load_start(tmp_path / "start.pt"))
    assert torch.equal(problem.initial().cpu(), torch.full((problem.dimension,), 0.25, dtype=torch.float64))
    result = fedsim.run(small(1), problem=problem, save=False)
    again = tmp_path / "again.pt"
    torch.save(result.model().state_dict(), again)
    problem.start_from(load_start(again))
    assert torch.equal(problem.initial(), result.params)


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    from fedsim.problems.modules import load_start

    problem = small_problem()
    with pytest.raises(InputError, match=r"problem\.start = 1\.weight"):
        problem.start_from({"1.weight": torch.zeros(2, 2)})
    (tmp_path / "junk.pt").write_bytes(b"not a state dict")
    for name in ("junk.pt", "absent.pt"):
        with pytest.raises(InputError, match=name):
            load_start(tmp_path / name)


class Wrong(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 3), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "global draws":
            return nn.functional.dropout(self.layer(x), 0.5, training=self.training)
        return self.layer(x)[:, :2] if self.kind == "shape" else self.layer(x[:, :5])


@pytest.mark.parametrize(
    ("kind", "words"), [("shape", "3 classes"), ("inputs", "does not fit"), ("global draws", "generator")]
)
def test_models_that_do_not_fit_are_refused(kind, words):
    model = Wrong(kind)
    before = torch.get_rng_state()
    with pytest.raises(InputError, match=words):
        fedsim.supervised(**blobs(), model=model, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_clients_that_do_not_fit_are_refused():
    data = blobs()
    for clients in ([], [[]], [[0, 10**6]], [[-1]]):
        with pytest.raises(InputError):
            fedsim.supervised(data["x"], data["y"], model=mlp(), clients=clients, device="cpu")


def test_virtual_time_and_the_ledger_add_up():
    result = fedsim.run(small(4), problem=small_problem(), save=False)
    assert [row["time"] for row in result.history] == [1.0, 2.0, 3.0, 4.0]
    assert result.summary["total_bytes_up"] == sum(row["bytes_up"] for row in result.history) == 4 * 4 * 83 * 8


@options
class Halved(Transform):
    """Rounds to half precision on the way: two bytes a number; counts its uses in a state of the server's."""

    def state(self, length):
        return {"uses": (1,)}

    def size(self, before):
        return replace(before, bits=16)

    def encode(self, vector):
        assert vector.sender.clients.tolist() == [SERVER]
        rows, uses = vector.rows.half().to(vector.rows.dtype), vector.sender.state["uses"]
        return vector.coded(rows, self.size(vector.size), uses=uses + 1)


def test_orders_pass_through_transforms_and_count_as_encoded():
    plain = build_simulation(small(2), small_problem())
    halved = build_simulation(dataclasses.replace(small(2), order_transforms=(Halved(),)), small_problem())
    seen = []
    execute = halved.parts.engine.executor.execute
    halved.parts.engine.executor.execute = lambda orders: seen.append(orders) or execute(orders)
    start = halved.state.params
    assert halved.step()["bytes_down"] == 4 * 83 * 2
    assert plain.step()["bytes_down"] == 4 * 83 * 8
    assert torch.equal(seen[0].orders[0].payload["params"], start.half().double())
    halved.step()
    assert halved.snapshot()["server"].sending["transforms/0/params/uses"].tolist() == [[2.0]]


SCAFFOLD = {"strategy": {"kind": "scaffold"}, "client": {"kind": "scaffold", "epochs": 1}}


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ({}, r"order_transforms.0.vectors = .nothing.: name what it goes over.*control, params"),
        ({"vectors": ["params", "delta"]}, r"order_transforms.0.vectors = delta: no such vector.*control, params"),
    ],
)
def test_orders_with_more_than_the_model_name_what_is_transformed(vectors, said):
    experiment = small(1, **SCAFFOLD, order_transforms=[{"kind": "clip", "max_norm": 1.0, **vectors}])
    with pytest.raises(InputError, match=said):
        build_simulation(experiment, small_problem())


def test_some_vectors_of_an_order_are_transformed_and_the_others_cross_as_they_are():
    tables = [{"kind": "test_loop:Halved", "vectors": ["control"]}]
    simulation = build_simulation(small(1, **SCAFFOLD, order_transforms=tables), small_problem())
    assert simulation.step()["bytes_down"] == 4 * 83 * (8 + 2)
    assert simulation.snapshot()["server"].sending["transforms/0/control/uses"].tolist() == [[1.0]]


def test_a_strategy_that_counts_its_orders_itself_takes_no_order_transforms():
    strategy = {"kind": "fedes", "population": 2}
    noise = {"kind": "noise", "std": 0.1, "vectors": ["params"]}
    with pytest.raises(InputError, match=r"order_transforms = .*counts itself what its orders take"):
        build_simulation(small(1, strategy=strategy, client="fedes", order_transforms=[noise]), small_problem())


@options
class Twice(Strategy):
    """Rounds of two windows, `first` and `second`; the model moves by the mean of all that clients tell in them."""

    down: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})

    def init(self, problem):
        return ServerState(problem.initial())

    def ask(self, state, chosen):
        action = ("first", "second")[state.phase]
        return Order(action, chosen, {"params": state.params}, round=state.round), All()

    def tell(self, state, replies):
        told = replies.payload["delta"]
        params = state.params + told.mean() if len(replies) else state.params
        metrics = {("first_mean", "second_mean")[state.phase]: float(told.mean()) if len(replies) else 0.0}
        if state.phase == 0:
            return dataclasses.replace(state, params=params, phase=1), metrics, False
        return dataclasses.replace(state, params=params, phase=0, round=state.round + 1), metrics, True


@options
class Drawing(Client):
    """Tells a number that it draws; NaN in the first window of round `bad` if it is one of the clients `broken`."""

    requires: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})

    broken: tuple[int, ...] = ()
    bad: int = 0

    def cost(self, orders, examples):
        return Cost(torch.zeros_like(examples), {"delta": Size.of(orders.payload["params"][:1])})

    def first(self, cohort):
        told = self.second(cohort).payload["delta"]
        if cohort.round == self.bad:
            told[torch.isin(cohort.clients, torch.tensor(self.broken, device=told.device))] = float("nan")
        return Update({"delta": told})

    def second(self, cohort):
        drawn = cohort.streams.normal("told", cohort.clients, (1,), turn=cohort.turn, dtype=cohort.dtype)
        return Update({"delta": drawn})


def twice(client=None, rounds=3, problem=None, **tables) -> Simulation:
    experiment = dataclasses.replace(
        small(rounds, **tables), strategy=Twice(), client=Drawing() if client is None else client
    )
    return build_simulation(experiment, small_problem() if problem is None else problem)


def heard(simulated):
    """Orders and replies of the windows to come, filled in as they close."""
    seen, engine = [], simulated.parts.engine
    submit, collect = engine.submit, engine.collect

    def submitted(orders):
        seen.append([orders])
        submit(orders)

    def collected(*given):
        replies = collect(*given)
        if replies is not None:
            seen[-1].append(replies)
        return replies

    engine.submit, engine.collect = submitted, collected
    return seen


def test_a_second_window_is_for_those_who_answered_the_first():
    simulated = twice(Drawing(broken=(0, 1, 2), bad=1), selection={"kind": "uniform", "fraction": 1.0})
    seen = heard(simulated)
    rows = list(simulated)
    assert [orders.action for orders, _ in seen] == ["first", "second"] * 3
    asked = [orders.clients.tolist() for orders, _ in seen]
    everybody = [0, 1, 2, 3, 4, 5]
    # In the second round three clients fail in the first window; they are not asked again, until the next round.
    assert asked == [everybody, everybody, everybody, [3, 4, 5], everybody, everybody]
    assert [row["failed"] for row in rows] == [0, 3, 0]
    assert [row["clients"] for row in rows] == [6, 6, 6]  # a client takes part once a round, however often it answers
    assert [row["staleness"] for row in rows] == [0.0, 0.0, 0.0]
    # One double a reply: 6 + 6, 6 + 3 and 6 + 6 of them; down d = 83 doubles each.
    assert [row["bytes_up"] for row in rows] == [96, 72, 96]
    assert [row["bytes_down"] for row in rows] == [96 * 83, 72 * 83, 96 * 83]
    assert [row["time"] for row in rows] == [2.0, 4.0, 6.0]  # a second a window
    trace = simulated.parts.engine.trace.summary([1 / 6] * 6, simulated.parts.engine.now)
    assert trace["participation"] == [2, 2, 2, 3, 3, 3]
    assert len(trace["timeline"]) == 18


def test_metrics_of_all_windows_are_reported():
    simulated = twice()
    seen = heard(simulated)
    for row in simulated:
        (_, first), (_, second) = seen[-2:]
        assert row["first_mean"] == float(first.payload["delta"].mean())
        assert row["second_mean"] == float(second.payload["delta"].mean())


def test_no_two_windows_draw_the_same():
    simulated = twice(selection={"kind": "uniform", "fraction": 1.0})
    seen = heard(simulated)
    list(simulated)
    draws = [orders.turn for orders, _ in seen]
    assert draws[::2] == [0, 1, 2]  # rounds, as of a round of one window
    assert min(draws[1::2]) >= TURNS
    told = torch.cat([replies.payload["delta"] for _, replies in seen])
    assert len(told.unique()) == 6 * 6


def awake(folder, ends):
    """Devices of clients that are awake up to a second `ends` of each two, and work for one second."""
    path = folder / "awake.csv"
    path.write_text("client,start,end\n" + "".join(f"{client},0,{end}\n" for client, end in enumerate(ends)))
    return {"availability": {"kind": "trace", "file": str(path), "repeat": 2.0}}


def test_clients_that_fell_asleep_between_two_windows_are_not_asked(tmp_path):
    simulated = twice(devices=awake(tmp_path, [1, 1, 2, 2, 1, 1]), selection={"kind": "uniform", "fraction": 1.0})
    seen = heard(simulated)
    rows = list(simulated)
    assert [orders.clients.tolist() for orders, _ in seen] == [[0, 1, 2, 3, 4, 5], [2, 3]] * 3
    assert [row["clients"] for row in rows] == [6, 6, 6]


def test_an_empty_second_window_completes_the_round(tmp_path):
    simulated = twice(devices=awake(tmp_path, [1] * 6))
    seen = heard(simulated)
    rows = list(simulated)
    assert [len(orders.clients) for orders, _ in seen] == [4, 0] * 3
    # Each round waits for the even second in which its clients are awake.
    assert [(row["round"], row["time"], row["clients"]) for row in rows] == [(1, 1.0, 4), (2, 3.0, 4), (3, 5.0, 4)]
    assert [row["second_mean"] for row in rows] == [0.0, 0.0, 0.0]


def test_a_round_of_which_a_first_window_fails_whole_goes_on_with_the_next():
    """All but one client may fail: one answers, and alone is asked again. If all fail, the run ends."""
    simulated = twice(Drawing(broken=(0, 1, 2, 3, 4), bad=0), selection={"kind": "uniform", "fraction": 1.0})
    seen = heard(simulated)
    list(simulated)
    assert [orders.clients.tolist() for orders, _ in seen][:3] == [[0, 1, 2, 3, 4, 5], [5], [0, 1, 2, 3, 4, 5]]
    with pytest.raises(DivergedError, match="none of the 6 updates of round 1 is finite"):
        list(twice(Drawing(broken=(0, 1, 2, 3, 4, 5)), selection={"kind": "uniform", "fraction": 1.0}))


def test_rounds_of_two_windows_go_on_from_a_snapshot():
    whole, first, second = twice(rounds=4), twice(rounds=4), twice(rounds=4)
    rows = [first.step(), first.step()]
    saved = first.snapshot()
    first.step()
    second.restore(saved)
    rows += list(second)
    expected = list(whole)
    assert [{**row, "wall": 0} for row in rows] == [{**row, "wall": 0} for row in expected]
    assert torch.equal(second.state.params, whole.state.params)


def test_an_interruption_within_a_round_leaves_the_round_before(monkeypatch):
    """Between two windows nothing of the round is kept: it begins anew."""
    simulated = twice()
    simulated.step()
    before, tell = simulated.state, Twice.tell

    def interrupted(self, state, replies):
        if state.phase == 1:
            raise KeyboardInterrupt
        return tell(self, state, replies)

    monkeypatch.setattr(Twice, "tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulated.step()
    assert simulated.state is before
    assert (simulated.round, simulated.state.phase) == (1, 0)


def test_a_run_ends_with_the_round_in_which_its_queries_are_made() -> None:
    """Four clients ask for 3 steps x (2 directions + 1) = 9 values each: 36 a round, so 100 are made in the third."""
    asking = {"client": {"kind": "fedzo", "steps": 3, "estimator": {"kind": "differences", "count": 2}}}
    asking |= {"strategy": {"kind": "fedzo"}, "evaluation": {"every": 0}}
    simulated = build_simulation(small(9, stopping={"queries": 100}, **asking), small_problem())
    rows = list(simulated)
    assert [row["queries"] for row in rows] == [36, 36, 36]
    assert ["test_loss" in row for row in rows] == [False, False, True]
    assert simulated.stopped == "108 queries were made"
    exact = build_simulation(small(9, stopping={"queries": 72}, **asking), small_problem())
    assert len(list(exact)) == 2
    with pytest.raises(InputError, match=r"stopping.queries = 35: the clients of one round ask for 36 at least"):
        build_simulation(small(9, stopping={"queries": 35}, **asking), small_problem())

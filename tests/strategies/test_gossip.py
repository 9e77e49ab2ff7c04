"""Without a server: steps by hand, FedAvg at an edge, where clients end who differ, who is away, bytes of links."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.core.clock import seconds
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Transform, Vector
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.personal import Newcomers, own_models
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, TRAINING, Quadratics, blobs, mlp, small_experiment, small_problem
from fedsim.testing.rounds import exchange, fail

KINDS = ("dpsgd", "gradient_tracking", "push_sum")
ALL = {"kind": "uniform", "fraction": 1.0}
D, VECTOR = 83, 83 * 8
ONE_STEP = {"steps": 1, "batch_size": "full"}
RING = torch.from_numpy(np.array([[(i - j) % 6 in (0, 1, 5) for j in range(6)] for i in range(6)]) / 3)


def simulated(kind: str, rounds: int = 3, own: Supervised | None = None, **tables: Any) -> Simulation:
    strategy, client = tables.pop("strategy", {}), tables.pop("client", TRAINING)
    tables = {"selection": ALL, "evaluation": {"every": 0, "clients": False}} | tables
    made = small_experiment(rounds, strategy={"kind": kind, **strategy}, client={"kind": kind, **client}, **tables)
    return build_simulation(made, small_problem() if own is None else own)


def of_quadratics(quadratics: Quadratics) -> Supervised:
    model = nn.Linear(quadratics.x.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    return fedsim.supervised(
        quadratics.x, quadratics.y, model=model, clients=quadratics.clients, dtype=torch.float64, device=DEVICE
    )


def models(run: Simulation) -> Tensor:
    return run.state.memory["models"].cpu()


def ended(run: Simulation) -> list[dict[str, Any]]:
    return [dict(row) for row in run]


def gradients(quadratics: Quadratics, rows: Tensor) -> Tensor:
    """Of each client's f_i at its row."""
    found = []
    for client, row in enumerate(rows):
        h, b = map(torch.from_numpy, quadratics.terms(client))
        found.append(h @ row - b)
    return torch.stack(found)


@pytest.mark.parametrize("combine", ["after", "before"])
def test_dpsgd_by_hand(quadratics, combine):
    run, rows = simulated("dpsgd", 3, of_quadratics(quadratics), strategy={"combine": combine}, client=ONE_STEP), None
    rows = torch.zeros((6, 3), dtype=torch.float64)
    for _ in range(3):
        run.step()
        step = 0.1 * gradients(quadratics, rows)
        rows = RING @ (rows - step) if combine == "after" else RING @ rows - step
        assert torch.allclose(models(run), rows, rtol=0, atol=1e-14)
        assert torch.allclose(run.state.params.cpu(), rows.mean(dim=0), rtol=0, atol=1e-14)


def test_gradient_tracking_by_hand(quadratics):
    """As the literature has it: x <- W (x - lr y), y <- W y + g_new - g_old, y = g at first."""
    run = simulated("gradient_tracking", 4, of_quadratics(quadratics), client=ONE_STEP)
    rows = torch.zeros((6, 3), dtype=torch.float64)
    y = old = gradients(quadratics, rows)
    for _ in range(4):
        run.step()
        rows = RING @ (rows - 0.1 * y)
        y, old = RING @ y + gradients(quadratics, rows) - old, gradients(quadratics, rows)
        assert torch.allclose(models(run), rows, rtol=0, atol=1e-14)
        assert run.state.memory["corrections"].sum(dim=0).abs().max() < 1e-14


def test_push_sum_by_hand(quadratics):
    """A ring in which each sends to the next: halves. Rows of z are judged, and x / w is not x after a sleeper."""
    run = simulated("push_sum", 3, of_quadratics(quadratics), client=ONE_STEP)
    halves = torch.tensor([[0.5 if (i - j) % 6 in (0, 1) else 0.0 for j in range(6)] for i in range(6)]).double()
    rows, weights, state = torch.zeros((6, 3), dtype=torch.float64), torch.ones((6, 1), dtype=torch.float64), run.state
    for there in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 4], [0, 1, 2, 3, 4, 5]):
        _, replies = exchange(run, state, torch.tensor(there))
        state, metrics, _ = run.parts.strategy.tell(state, replies)
        sent = rows.clone()
        sent[there] -= 0.1 * gradients(quadratics, rows / weights)[there]
        matrix = halves if len(there) == 6 else torch.eye(6, dtype=torch.float64)
        if len(there) == 4:  # 0 sends to 1, 1 to 2; 2 and 4 have nobody to send to
            matrix[0, 0] = matrix[1, 0] = matrix[1, 1] = matrix[2, 1] = 0.5
        rows, weights = matrix @ sent, matrix @ weights
        assert torch.allclose(state.memory["models"].cpu(), rows, rtol=0, atol=1e-14)
        assert torch.allclose(state.memory["weights"].cpu(), weights, rtol=0, atol=1e-14)
    away = (rows / weights - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    assert metrics["consensus"] == pytest.approx(float(away), abs=1e-13)
    assert float(weights.min()) < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_complete_graph_it_is_fedavg_with_uniform_weights(kind):
    """All start together and have the mean after each round, of whatever steps."""
    gossip = simulated(kind, 4, strategy={"graph": "complete"})
    plain = build_simulation(
        small_experiment(4, strategy={"kind": "fedavg", "weighting": "uniform"}, selection=ALL), small_problem()
    )
    rows = ended(gossip)
    ended(plain)
    assert torch.allclose(gossip.state.params, plain.state.params, rtol=0, atol=1e-12)
    assert all(row["consensus"] < 1e-12 for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_nobody_to_talk_to_trains_alone(kind):
    """One client a round has no links: local training, of models that nobody mixes."""
    tables = {"selection": {"kind": "uniform", "count": 1}, "evaluation": {"every": 0, "clients": False}}
    run = simulated(kind, 5, **tables)
    made = small_experiment(5, strategy="local", client={"kind": "local", **TRAINING}, **tables)
    alone = build_simulation(made, small_problem())
    rows = ended(run)
    ended(alone)
    parts = alone.parts
    expected = own_models(parts.engine, parts.problem, parts.strategy, alone.state, None).models(torch.arange(6)).flat()
    assert torch.allclose(models(run), expected, rtol=0, atol=1e-14)
    assert [(row["bytes_up"], row["bytes_down"]) for row in rows] == [(0, 0)] * 5


def test_tracking_ends_on_the_optimum_and_dpsgd_beside_it_by_its_rate(quadratics):
    best, away = torch.from_numpy(quadratics.optimum()), dict[tuple[str, float], tuple[float, float]]()
    for kind, lr, rounds in (("dpsgd", 0.1, 60), ("dpsgd", 0.01, 300), ("gradient_tracking", 0.15, 250)):
        run = simulated(kind, rounds, of_quadratics(quadratics), client={**ONE_STEP, "lr": lr})
        last = ended(run)[-1]
        away[kind, lr] = float((run.state.params.cpu() - best).norm()), last["consensus"]
    assert max(away["gradient_tracking", 0.15]) < 1e-8
    for measure in (0, 1):
        assert away["dpsgd", 0.1][measure] > 3 * away["dpsgd", 0.01][measure] > 1e-3


@pytest.mark.parametrize(("combine", "most"), [("before", 2 / 3), ("after", 2.0)])
@pytest.mark.parametrize("over", [0.98, 1.02])
def test_dpsgd_is_stable_up_to_the_stated_rate(combine, most, over):
    """f_i = (w - y_i)^2 / 2 in a ring of six, lambda_min(W) = -1/3: (1 + lambda_min) / L and 2 / L."""
    x, y = np.full((6, 1), 0.5**0.5), 0.5**0.5 * np.array([1.0, -1, 1, -1, 1.5, -1])
    own = of_quadratics(Quadratics(x, y, [np.array([client]) for client in range(6)]))
    run = simulated("dpsgd", 80, own, strategy={"combine": combine}, client={**ONE_STEP, "lr": most * over})
    rows = [models(run)]
    for _ in range(80):
        run.step()
        rows.append(models(run))
    early, late = (float((rows[end] - rows[end - 1]).norm()) for end in (40, 80))
    assert (late > early) == (over > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_away_or_fails_keeps_its_model_to_the_bit_and_sums_stay(kind):
    run = simulated(kind, 3)
    run.step()
    before, sums = run.state, run.state.memory["models"].sum(dim=0)
    fail(run, 4)
    _, replies = exchange(run, before, torch.tensor([0, 1, 3, 4, 5]))
    after, _, _ = run.parts.strategy.tell(before, replies)
    assert replies.clients.tolist() == [0, 1, 3, 5]
    for name in run.parts.strategy.down:
        assert torch.equal(after.memory[name][[2, 4]], before.memory[name][[2, 4]])
    if kind == "push_sum":
        assert float(after.memory["weights"].sum()) == pytest.approx(6.0, abs=1e-14)
    if kind == "gradient_tracking":
        assert after.memory["corrections"].sum(dim=0).abs().max() < 1e-14
    moved = sum(replies.payload["model"]) - before.memory["models"][replies.clients].sum(dim=0)
    assert torch.allclose(after.memory["models"].sum(dim=0), sums + moved, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "message", "links"),
    [("dpsgd", VECTOR, 12), ("gradient_tracking", 2 * VECTOR, 12), ("push_sum", VECTOR + 8, 6)],
)
def test_bytes_are_those_of_the_links(kind, message, links):
    """Up in the round in which they are sent; down when who got them goes on."""
    rows = ended(simulated(kind, 3))
    assert [row["bytes_up"] for row in rows] == [links * message] * 3
    assert [row["bytes_down"] for row in rows] == [0] + [links * message] * 2
    some = ended(simulated(kind, 3, selection={"kind": "uniform", "count": 3}))
    assert all(row["bytes_up"] % message == 0 and row["bytes_up"] <= 4 * message for row in some)


def test_links_that_lead_one_way_count_where_they_begin_and_where_they_end(tmp_path):
    """A ring one way, and 0 to 2 and to 3, and 5 to 3: 0 sends three times, and 3 is sent to by three."""
    path = tmp_path / "links.txt"
    path.write_text("0 1\n1 2\n2 3\n3 4\n4 5\n5 0\n0 2\n0 3\n5 3\n")
    run = simulated("push_sum", strategy={"graph": {"kind": "file", "path": path, "directed": True}})
    first, replies = exchange(run, run.state, torch.arange(6))
    state, _, _ = run.parts.strategy.tell(run.state, replies)
    second, _ = run.parts.strategy.ask(state, torch.arange(6))
    assert torch.as_tensor(first.peers).tolist() == [3, 1, 1, 1, 1, 2]
    assert torch.as_tensor(second.encoded).tolist() == [count * (VECTOR + 8) for count in (1, 1, 2, 3, 1, 1)]


def test_who_has_more_links_takes_longer(tmp_path):
    """A star of six: its middle sends five models, and gets as many; at 1 KB/s both ways beside a second of work."""
    path = tmp_path / "star.txt"
    path.write_text("".join(f"0 {other}\n" for other in range(1, 6)))
    devices = {"bandwidth": {"up": 1000.0, "down": 1000.0}}
    run = simulated("dpsgd", 2, strategy={"graph": {"kind": "file", "path": path}}, devices=devices)
    times = [seconds(run.parts.engine.now)] + [row["time"] for row in ended(run)]
    one = 5 * VECTOR / 1000
    assert np.diff(times).tolist() == pytest.approx([1 + one, 1 + 2 * one], abs=1e-6)


@options
class Halved(Transform):
    """Numbers of two bytes."""

    def size(self, before: Size) -> Size:
        return Size(before.numbers, 16, before.beside)

    def encode(self, vector: Vector) -> Vector:
        return vector.coded(vector.rows.half().double(), Size(vector.size.numbers, 16, vector.size.beside))


def test_what_is_sent_may_be_transformed_and_costs_less():
    run = simulated("dpsgd", 2, transforms=[Halved(vectors=("model",))])
    rows = ended(run)
    assert [row["bytes_up"] for row in rows] == [12 * 2 * D] * 2
    assert [row["bytes_down"] for row in rows] == [0, 12 * 2 * D]
    plain = simulated("dpsgd", 2)
    ended(plain)
    assert 0 < (models(run) - models(plain)).abs().max() < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_each_client_is_judged_by_its_own_model_and_newcomers_by_the_mean(kind):
    data = blobs(sizes=(7, 3, 12, 1, 5, 9, 4))
    data["test_clients"] = np.array_split(np.arange(20), 7)
    own = fedsim.supervised(**data, newcomers=[3], model=mlp(), dtype=torch.float64, device=DEVICE)
    run = simulated(kind, 2, own, evaluation={"every": 1})
    rows = ended(run)
    assert {"test_accuracy", "client_accuracy", "personal_accuracy", "newcomer_accuracy"} <= rows[-1].keys()
    parts = run.parts
    judged = own_models(parts.engine, parts.problem, parts.strategy, run.state, None)
    wanted = run.parts.strategy.models(run.state.memory)
    assert torch.allclose(judged.models(torch.arange(6)).flat(), wanted, rtol=0, atol=1e-15)
    new = Newcomers.of(parts.problem, parts.strategy, run.state, judged).owned
    assert new is not None
    assert torch.allclose(new.models(torch.tensor([6])).flat()[0], run.state.params, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        (
            {"transforms": [{"kind": "clip", "max_norm": 0.1}]},
            "not delta alone is sent, but model",
        ),
        ({"order_transforms": [{"kind": "noise", "std": 0.1}]}, "order_transforms"),
        ({"aggregation": "median"}, "averages nothing"),
        ({"selection": {"kind": "oort", "count": 2}}, "a model for all"),
        ({"selection": {"kind": "power_of_choice", "count": 2, "pool": 4}}, "a model for all"),
        (
            {"strategy": {"graph": {"kind": "erdos_renyi", "p": 0.01}}},
            "graph.kind = erdos_renyi: .*not connected",
        ),
        ({"strategy": {"graph": {"kind": "ring", "directed": True}}}, "take push_sum"),
        ({"strategy": {"graph": {"kind": "star"}}}, r"strategy\.graph\.kind = star"),
        ({"client": {"kind": "sgd", **TRAINING}}, "must exchange model"),
    ],
)
def test_what_does_not_go_without_a_server_is_refused_in_a_line(tables, why):
    with pytest.raises(InputError, match=why) as refused:
        simulated("dpsgd", **tables)
    assert "\n" not in str(refused.value)


def test_links_are_of_who_is_there_when_it_begins():
    run = simulated("dpsgd")
    more = small_problem(sizes=(7, 3, 12, 1, 5, 9, 4))
    with pytest.raises(InputError, match="others have come"):
        run.parts.strategy.resize(run.state, more)
    assert run.parts.strategy.resize(run.state, run.parts.problem) is run.state

"""Clients with models of their own: they are judged by these, beside the one for all, and leave them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clients.sgd import Sgd
from fedsim.core.errors import BrokenPromiseError, FedsimError, InputError
from fedsim.core.graph import decode, encode
from fedsim.core.options import options
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Replies, Update
from fedsim.exchange.transforms import Shapes
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running import runner
from fedsim.running.build import build_simulation
from fedsim.running.runner import run
from fedsim.running.simulation import Simulation
from fedsim.server.strategy import Averaging, ServerState
from fedsim.testing.problems import blobs, mlp, small_experiment

TRAINING = {"epochs": 2, "batch_size": 4}


@options
class Apart(Sgd):
    """Keeps what it has trained, plus 1 each time, as a model of its own."""

    models: ClassVar[tuple[str, ...]] = ("own",)
    own_models: ClassVar[bool] = True

    def state(self, dimension: int) -> Shapes:
        return {"own": (dimension,), "times": (1,)}

    def train(self, cohort: Cohort) -> Update:
        update = super().train(cohort)
        cohort.keep(own=cohort.received("params") + update.payload["delta"], times=cohort.state["times"] + 1)
        return update

    def personal(self, cohort: Cohort) -> Tensor:
        cohort.keep(times=cohort.state["times"] + 100)  # of which nothing is to be kept
        return cohort.state["own"]


@options
class ForNobody(Averaging):
    """FedAvg whose parameters nobody is to use."""

    for_all: ClassVar[bool] = False


def problem(tests: Any = None, dtype: torch.dtype = torch.float64) -> Supervised:
    own = [*np.arange(20).reshape(5, 4), []] if tests is None else tests
    return supervised(**blobs(), test_clients=own, model=mlp(), dtype=dtype, device="cpu")


def simulation(rounds: int = 3, **tables: Any) -> Simulation:
    tables = {"client": Apart(**TRAINING), "evaluation": {"every": 1}} | tables
    return build_simulation(small_experiment(rounds, **tables), problem())


def steps(made: Simulation, rounds: int) -> Iterator[dict[str, Any]]:
    """The rows of so many rounds."""
    for _ in range(rounds):
        yield dict(made.step())


def accuracies(models: list[nn.Module]) -> list[float]:
    """By hand, of the first five clients."""
    x, y = blobs()["test"]
    found = []
    for model, own in zip(models, np.arange(20).reshape(5, 4), strict=True):
        right = model(torch.tensor(x[own])).argmax(dim=1) == torch.tensor(y[own])
        found.append(float(right.double().mean()))
    return found


def test_a_model_that_is_remembered_begins_as_the_problem_does():
    made = simulation()
    start = made.parts.problem.initial()
    own, _ = made.parts.engine.memories().look("own", torch.arange(6))
    times, _ = made.parts.engine.memories().look("times", torch.arange(6))
    assert torch.equal(own, start.expand(6, -1))
    assert not times.any()


def test_both_are_judged_on_the_same_examples(tmp_path):
    result = run(
        small_experiment(3, client=Apart(**TRAINING), evaluation={"every": 1}), problem=problem(), out=tmp_path / "run"
    )
    row = result.history.rows[-1]
    own, every = accuracies([result.model(client) for client in range(5)]), accuracies([result.model()] * 5)
    assert own != every
    for whose, found in (("personal", own), ("client", every)):
        assert row[f"{whose}_accuracy"] == pytest.approx(np.mean(found))
        assert row[f"{whose}_accuracy_mean"] == pytest.approx(np.mean(found))
        assert row[f"{whose}_accuracy_worst"] == min(found)
        assert row[f"{whose}_accuracy_std"] == pytest.approx(np.std(found))
    assert {"test_accuracy", "client_loss", "personal_loss"} <= row.keys()
    with (tmp_path / "run" / "clients.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["personal_accuracy"]) for line in table[:5]] == own
    assert [float(line["accuracy"]) for line in table[:5]] == every
    held = load_file(tmp_path / "run" / "own.safetensors")
    assert torch.equal(held["1.weight"][3], result.model(3)[1].weight)
    assert held["3.bias"].shape == (6, 3)


def test_who_has_not_taken_part_is_counted_and_judged_with_what_it_begins_with():
    made, taken, counts = simulation(4), set[int](), []
    for row in steps(made, 4):
        taken |= {client for client, times in enumerate(made.parts.engine.trace.participation) if times}
        counts.append((row["personal_untrained"], len({0, 1, 2, 3, 4} - taken)))
    assert all(told == found for told, found in counts)
    assert counts[0][0] > 0


def test_judging_keeps_nothing():
    made = simulation(3)
    list(steps(made, 3))
    times, _ = made.parts.engine.memories().look("times", torch.arange(6))
    assert times.flatten().tolist() == made.parts.engine.trace.participation


def test_where_nobody_is_to_use_the_servers_parameters_only_own_models_are_judged():
    made = simulation(2, strategy=ForNobody())
    row = list(steps(made, 2))[-1]
    assert not [name for name in row if name.startswith(("test_", "client_"))]
    assert 0.0 <= row["personal_accuracy"] <= 1.0
    result = run(small_experiment(2, client=Apart(**TRAINING), strategy=ForNobody()), problem=problem(), save=False)
    with pytest.raises(FedsimError, match="name one"):
        result.model()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"evaluation": {"keep_best": "personal_accuracy", "every": 1}}, r"evaluation\.keep_best"),
        (
            {"evaluation": {"attacks": [{"kind": "pgd", "epsilon": 0.1}]}, "strategy": ForNobody()},
            "no model is for all",
        ),
        ({"evaluation": {"on": ["test", "train"]}, "strategy": ForNobody()}, "no model is for all"),
        ({"stopping": {"metric": "test_accuracy", "target": 0.5}, "strategy": ForNobody()}, r"stopping\.metric"),
    ],
)
def test_what_is_about_one_model_for_all_is_refused(tables, said):
    with pytest.raises(InputError, match=said):
        simulation(**tables)


@pytest.mark.parametrize(
    ("selection", "refused"),
    [
        ({"kind": "oort", "count": 2}, True),
        ({"kind": "power_of_choice", "count": 2, "pool": 4}, True),
        ({"kind": "power_of_choice", "count": 2, "pool": 2}, False),
        ({"kind": "power_of_choice", "count": 2, "pool": 4, "loss": "last"}, False),
    ],
)
def test_nobody_is_selected_by_its_loss_under_a_model_that_there_is_not(selection, refused):
    if refused:
        with pytest.raises(InputError, match=r"selection\.kind.*under a model for all"):
            simulation(strategy=ForNobody(), selection=selection)
    else:
        assert list(steps(simulation(1, strategy=ForNobody(), selection=selection), 1))
    assert list(steps(simulation(1, selection=selection), 1))


@options
class Still(Averaging):
    """Its parameters never move."""

    for_all: bool = True

    def change(self, state: ServerState, replies: Replies) -> Tensor:
        return torch.zeros_like(super().change(state, replies))


def test_parameters_that_nobody_is_to_use_need_not_move():
    vain = {}
    for for_all in (True, False):
        made = simulation(2, strategy=Still(for_all=for_all))
        list(made)
        vain[for_all] = made.vain
    assert vain[True] is not None
    assert vain[True][1].startswith("the model is the one that the run began with")
    assert vain[False] is None


@options
class InParts(Averaging):
    """Says that it combines replies one by one."""

    in_parts: ClassVar[bool] = True


def test_an_aggregator_that_wants_several_replies_is_refused_where_one_may_be_combined():
    assert list(steps(simulation(1, strategy=InParts()), 1))
    assert list(steps(simulation(1, aggregation="median"), 1))
    with pytest.raises(InputError, match=r"aggregation\.kind = median: .*combines parts of the replies.*take mean"):
        simulation(strategy=InParts(), aggregation="median")


@options
class Tells(Apart):
    """Tells of each client twice its number, or of all clients one number alone."""

    told: str = "each"

    def personal(self, cohort: Cohort) -> Tensor:
        cohort.metrics["twice"] = 2 * (cohort.clients if self.told == "each" else cohort.clients[:1])
        return super().personal(cohort)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_what_an_algorithm_tells_of_each_client_is_a_column(tmp_path, executor):
    tables = {"engine": {"executor": executor, "memory_mib": 1}, "evaluation": {"finetune": {"steps": 1}}}
    run(small_experiment(2, client=Tells(**TRAINING), **tables), problem=problem(), out=tmp_path / "run")
    with (tmp_path / "run" / "clients.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["twice"] for line in table] == ["0", "2", "4", "6", "8", "10"]
    assert all(0.0 <= float(line["personal_accuracy"]) <= 1.0 for line in table[:5])


def columns(folder: Path) -> dict[str, list[str]]:
    """Those of clients.csv."""
    with (folder / "clients.csv").open() as file:
        (head, *lines) = csv.reader(file)
    return dict(zip(head, map(list, zip(*lines, strict=True)), strict=True))


def test_a_run_leaves_a_picture_of_own_models_and_the_numbers_in_it(tmp_path, monkeypatch):
    drawn: list[Any] = []
    monkeypatch.setattr(runner, "personal", lambda *given: drawn.append(given))
    part = {"selection": {"kind": "uniform", "fraction": 0.5}, "evaluation": {"every": 1}}
    result = run(small_experiment(2, client=Apart(**TRAINING), **part), problem=problem(), out=tmp_path / "run")
    found = columns(tmp_path / "run")
    assert [*found][:5] == ["client", "examples", "train_examples", "label_distance", "participation"]
    assert [*map(int, found["train_examples"])] == result.problem.sizes.tolist()
    assert found["participation"] == [str(times) for times in result.trace["participation"]]
    assert {"0"} < set(found["participation"])
    labels = [blobs()["y"][own] for own in blobs()["clients"]]
    shares = np.stack([np.bincount(own, minlength=3) / len(own) for own in labels])
    mean = np.bincount(np.concatenate(labels), minlength=3) / sum(map(len, labels))
    assert [*map(float, found["label_distance"])] == pytest.approx(np.abs(shares - mean).sum(axis=1) / 2)
    ((given, place),) = drawn
    assert place == tmp_path / "run" / "personal.png"
    assert {name: ["" if value is None else str(value) for value in values] for name, values in given.items()} == found


def test_where_nobody_is_judged_by_a_model_of_its_own_there_is_no_such_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "personal", lambda *_: pytest.fail("drawn"))
    plain = run(small_experiment(1), problem=problem(), out=tmp_path / "plain")
    assert [*columns(tmp_path / "plain")] == ["client", "examples", "loss", "accuracy"]
    nobody = run(small_experiment(1, client=Apart(**TRAINING), evaluation={"clients": False}), problem=problem())
    for result, why in ((plain, "no models of their own"), (nobody, r"evaluation\.clients = false")):
        with pytest.raises(FedsimError, match=why):
            result.plot_clients()


def test_a_result_that_was_not_saved_draws_its_clients_too(tmp_path):
    made = small_experiment(1, evaluation={"finetune": {"steps": 1}})
    saved = run(made, problem=problem(), out=tmp_path / "run")
    result = run(made, problem=problem(), save=False)
    assert result.plot_clients().png == (saved.folder / "personal.png").read_bytes()


def test_what_is_told_is_a_number_a_client():
    made = simulation(client=Tells(**TRAINING, told="one"))
    with pytest.raises(BrokenPromiseError, match="its metric twice is"):
        made.step()


def test_a_part_and_a_whole_model_do_not_both_stay():
    with pytest.raises(InputError, match=r"client\.kind"):
        build_simulation(small_experiment(2, client=Apart(**TRAINING)), problem().keeping("head"))


def test_nobody_is_judged_on_what_it_was_trained_on():
    held = supervised(**blobs(), model=mlp(), dtype=torch.float64, device="cpu")
    with pytest.raises(InputError, match=r"partition\.holdout"):
        build_simulation(small_experiment(2, client=Apart(**TRAINING)), held)
    made = small_experiment(2, client=Apart(**TRAINING), evaluation={"every": 0, "clients": False})
    row = list(steps(build_simulation(made, held), 2))[-1]
    assert not [name for name in row if name.startswith("personal")]


@options
class Short(Apart):
    """Its models lack a number."""

    def personal(self, cohort: Cohort) -> Tensor:
        return cohort.state["own"][:, 1:]


def test_models_of_another_shape_are_a_broken_promise():
    made = simulation(client=Short(**TRAINING))
    with pytest.raises(BrokenPromiseError, match="personal returns"):
        made.step()


def test_draws_apart_are_others_and_those_beside_them_the_same():
    drawn: dict[str, list[Tensor]] = {}

    @options
    class Looks(Sgd):
        def train(self, cohort: Cohort) -> Update:
            for name in ("first", "again"):
                drawn[name] = [batch.x for batch in cohort.batches(epochs=1, batch_size=4)]
            with cohort.apart("other"):
                drawn["apart"] = [batch.x for batch in cohort.batches(epochs=1, batch_size=4)]
            drawn["after"] = [batch.x for batch in cohort.batches(epochs=1, batch_size=4)]
            return super().train(cohort)

    made = simulation(1, client=Looks(epochs=1, batch_size=4))
    with pytest.raises(BrokenPromiseError, match="local steps"):  # which it has not declared
        made.step()
    for name in ("again", "after"):
        assert all(map(torch.equal, drawn["first"], drawn[name]))
    assert not all(map(torch.equal, drawn["first"], drawn["apart"]))


SPEEDS = {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 0.8}}


@pytest.mark.parametrize("strategy", [{"kind": "fedbuff", "size": 2}, {"kind": "fedasync"}])
def test_clients_that_are_computed_early_are_judged_as_they_are_at_the_time(strategy):
    """The loop computes one reply after the other, and the stack many ahead of time."""
    rows, ahead = {}, 0
    for executor in ("loop", "stacked"):
        made = simulation(8, strategy=strategy, devices=SPEEDS, engine={"executor": executor})
        rows[executor] = []
        for _ in range(8):
            row = dict(made.step())
            rows[executor].append([row[name] for name in ("personal_loss", "personal_accuracy", "client_loss")])
            ahead += len(made.parts.engine._ahead)
            held = made.parts.engine.memories().look("times", torch.arange(6))[0].flatten().tolist()
            assert held == made.parts.engine.trace.participation
    assert ahead > 0
    torch.testing.assert_close(torch.tensor(rows["stacked"]), torch.tensor(rows["loop"]), rtol=1e-9, atol=1e-12)


def test_a_run_that_is_restored_knows_who_is_ahead():
    tables = {"strategy": {"kind": "fedbuff", "size": 2}, "devices": SPEEDS}
    whole, first = simulation(8, **tables), simulation(8, **tables)
    for _ in range(3):
        whole.step()
        first.step()
    second = simulation(8, **tables)
    second.restore(decode(encode(first.snapshot())))
    assert second.parts.engine._ahead
    for _ in range(5):
        one, other = dict(whole.step()), dict(second.step())
        assert {**one, "wall": 0} == {**other, "wall": 0}


def test_the_model_for_all_sees_no_example_twice(monkeypatch):
    """Those that clients are judged on are among those of the test set."""
    seen, plain = list[int](), Supervised.outputs

    def outputs(self: Supervised, params: Tensor, rows: Any) -> Tensor:
        seen.append(len(rows))
        return plain(self, params, rows)

    monkeypatch.setattr(Supervised, "outputs", outputs)
    row = simulation(1).step()
    assert seen == [20]
    assert {"test_accuracy", "client_accuracy", "client_accuracy_std", "personal_accuracy"} <= row.keys()

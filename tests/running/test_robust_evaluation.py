"""Evaluation under attacks: values against closed forms, when and on what attacks are made, and what is refused."""

import json
from typing import Any

import forks
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn

import fedsim
from fedsim import InputError, plots
from fedsim.attacks.attack import ExampleDraws, Victim
from fedsim.attacks.gradient import FGSM, PGD
from fedsim.cli.words import measures
from fedsim.configuration.evaluation import Evaluation
from fedsim.configuration.tables import experiment
from fedsim.core.measures import attack_of
from fedsim.core.streams import Streams
from fedsim.nets.network import PlainNetwork
from fedsim.problems.base import Trial
from fedsim.problems.own_functions import black_box
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.testing.problems import blobs, mlp, small_problem
from fedsim.testing.problems import small_experiment as small

pytestmark = pytest.mark.usefixtures("unpainted")

ANYWHERE = "none"
FIRST = {"kind": "fgsm", "epsilon": 0.5, "domain": ANYWHERE}
SECOND = {"kind": "pgd", "epsilon": 0.5, "steps": 4, "domain": ANYWHERE}


def linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def trial(*attacks: Any, **options: Any) -> Trial:
    return Trial(
        **({"attacks": attacks, "on": ("test",), "examples": None, "clients": False, "streams": Streams(3)} | options)
    )


def two_classes(x: list[list[float]], y: list[int], clients: list[list[int]], **options: Any) -> Supervised:
    """Logits (x_1 + 2 x_2, 0) for two inputs: class 0 where x_1 + 2 x_2 is positive."""
    made = fedsim.supervised(
        np.array(x),
        np.array(y),
        clients=clients,
        model=linear([[1.0, 2.0], [0.0, 0.0]]),
        dtype=torch.float64,
        **options,
    )
    return made


def test_fgsm_on_a_linear_model_is_the_closed_form():
    # The margin of class 0 is s = x_1 + 2 x_2. An attack of radius 0.1 takes 0.1 * (1 + 2) = 0.3 from it for an example
    # of class 0, and adds as much for one of class 1. Margins 0.5, 0.2, -0.2, -1 of classes 0, 0, 1, 1 become
    # 0.2, -0.1, 0.1, -0.7: right are the first and the last.
    problem = two_classes([[0.5, 0.0], [0.0, 0.1], [0.2, -0.2], [-1.0, 0.0]], [0, 0, 1, 1], [[0, 1, 2, 3]])
    params = problem.initial()
    assert problem.evaluate(params, clients=False)["test_accuracy"] == 1.0
    found = problem.attacked(params, trial(FGSM(epsilon=0.1, domain="none"), on=("test", "train")))
    losses = np.log1p(np.exp([-0.2, 0.1, 0.1, -0.7]))  # log(1 + e^-margin of the right class)
    assert found == pytest.approx(
        {
            "test_fgsm_loss": losses.mean(),
            "test_fgsm_accuracy": 0.5,
            "global_train_fgsm_loss": losses.mean(),
            "global_train_fgsm_accuracy": 0.5,
        },
        rel=1e-6,
    )


def test_clients_are_attacked_on_their_own_examples():
    # Margins as above. Of client 0 both examples withstand the attack, of client 1 one of two, of client 2 none of one.
    # Accuracies 1, 1/2, 0: their mean is 1/2, their 10th percentile lies a fifth of the way from 0 to 1/2, at 0.1.
    x = [[0.5, 0.0], [-1.0, 0.0], [0.6, 0.0], [0.0, 0.1], [0.2, -0.2]]
    problem = two_classes(x, [0, 1, 0, 0, 1], [[0, 1], [2, 3], [4]])
    asked = trial(FGSM(epsilon=0.1, domain="none"), clients=True)
    found = problem.attacked(problem.initial(), asked)
    own = {name: value for name, value in found.items() if name.startswith("client")}
    assert own == pytest.approx(
        {"client_fgsm_accuracy_mean": 0.5, "client_fgsm_accuracy_p10": 0.1, "client_fgsm_accuracy_worst": 0.0}
    )
    assert list(found) == problem.attacked_measures(asked)


def test_held_out_examples_are_attacked_where_clients_are_judged_on_them():
    made = experiment(
        rounds=1,
        partition={"kind": "iid", "clients": 4, "holdout": 0.25},
        problem={"dataset": "digits"},
        evaluation={"attacks": [{"kind": "fgsm", "epsilon": 0.0}], "attack_clients": True, "on": ["test", "train"]},
    )
    (row,) = list(build_simulation(made, fedsim.running.build.build_problem(made)))
    # A ball of radius 0 leaves everything as it is, up to the last digits, which follow the width of batches.
    for name, value in row.items():
        if attack_of(name):
            assert value == pytest.approx(row[name.replace("_fgsm", "")], rel=1e-5), name
    assert sum(map(bool, map(attack_of, row))) == 7


def test_stronger_attacks_leave_less():
    problem = small_problem(sizes=(120, 90, 150, 80))
    params = fedsim.run(small(4), problem=problem, save=False).params
    clean = problem.evaluate(params, clients=False, on=("train",))
    attacks = FGSM(epsilon=0.6, domain="none"), PGD(epsilon=0.6, steps=20, domain="none")
    found = problem.attacked(params, trial(*attacks, on=("train",)))
    weak, strong = (found[f"global_train_{attack.label}_accuracy"] for attack in attacks)
    assert strong <= weak + 0.01
    assert weak < clean["global_train_accuracy"] - 0.1
    assert found["global_train_pgd20_loss"] > found["global_train_fgsm_loss"] > clean["global_train_loss"]


def test_regression_has_losses_alone():
    # The output is x, the target 0: an attack of radius 0.5 makes (|x| + 0.5)^2 of x^2. For -1, 2: (2.25 + 6.25) / 2.
    problem = fedsim.supervised(
        np.array([[-1.0], [2.0]]), np.zeros(2), clients=[[0], [1]], model=linear([[1.0]]), loss="squared_error",
        dtype=torch.float64,
    )  # fmt: skip
    asked = trial(FGSM(epsilon=0.5, domain="none"))
    assert problem.attacked(problem.initial(), asked) == {"test_fgsm_loss": pytest.approx(4.25)}
    assert problem.attacked_measures(asked) == ["test_fgsm_loss"]
    with pytest.raises(InputError, match="attack_clients = True: clients are judged by accuracy"):
        problem.attacked_measures(trial(FGSM(epsilon=0.5, domain="none"), clients=True))


class Recorder(FGSM):
    """Leaves inputs as they are, and keeps what it was shown."""

    def perturb(self, victim, x, targets, loss=None, factor=1.0):
        SEEN.append((victim.draws.ids, x, victim.draws.uniform("start", x)))
        return x


SEEN: list[Any] = []


def seen(problem: Supervised, **options: Any) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """For the number of each attacked example the example, and what it draws."""
    SEEN.clear()
    problem.attacked(problem.initial(), trial(Recorder(epsilon=1.0), **options))
    return {int(number): (x[0, place], drawn[0, place]) for ids, x, drawn in SEEN for place, number in enumerate(ids)}


def test_a_sample_is_drawn_without_replacement_and_the_same_in_all_runs():
    problem = small_problem()
    found = seen(problem, examples=8)
    assert len(found) == 8
    assert list(seen(problem, examples=8, streams=Streams(4))) == list(found)
    assert all(torch.equal(problem.x_test[number], x) for number, (x, _) in found.items())
    assert set(seen(problem, examples=5)) < set(found)  # the beginning of one order
    assert list(found) != list(range(8))
    assert len(seen(problem, examples=21)) == len(seen(problem)) == 20


def test_a_sample_of_the_training_set_does_not_follow_the_partition():
    data = blobs()
    sizes = [len(own) for own in data["clients"]]
    everything = np.random.Generator(np.random.PCG64(1)).permutation(sum(sizes))
    dealt = (
        small_problem(),
        fedsim.supervised(
            **{**data, "clients": np.split(everything, np.cumsum(sizes)[:-1])}, model=mlp(), dtype=torch.float64
        ),
    )
    first, second = (set(seen(problem, on=("train",), examples=9)) for problem in dealt)
    assert first == second
    assert len(first) == 9


def test_draws_are_named_by_the_example_and_its_set():
    problem = small_problem()
    everything, some = seen(problem), seen(problem, examples=6)
    assert all(torch.equal(everything[number][1], drawn) for number, (_, drawn) in some.items())
    training = seen(problem, on=("train",))
    assert not any(torch.equal(everything[number][1], training[number][1]) for number in range(20))
    assert not torch.equal(everything[0][1], everything[1][1])
    # The clients' examples are those of the training set here.
    own = seen(problem, on=(), clients=True)
    assert all(torch.equal(own[number][1], training[number][1]) for number in own)


def test_attacks_leave_the_model_and_the_generators_alone():
    problem = small_problem()
    before = problem.initial()
    kept = {name: tensor.clone() for name, tensor in problem.model.module.state_dict().items()}
    state, arrays = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    problem.attacked(before, trial(PGD(epsilon=0.3, steps=2, domain="none")))
    assert torch.equal(before, problem.initial())
    assert all(torch.equal(kept[name], tensor) for name, tensor in problem.model.module.state_dict().items())
    assert problem.model.module.training
    assert all(parameter.grad is None for parameter in problem.model.module.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(arrays, np.random.get_state()[1])  # noqa: NPY002


SCRIPT = """
import sys, json, torch
torch.set_num_threads(int(sys.argv[1]))
from fedsim.attacks.gradient import PGD
from fedsim.problems.base import Trial
from fedsim.core.streams import Streams
from fedsim.testing.problems import small_problem
problem = small_problem(sizes=(300, 200))
attacks = (PGD(epsilon=0.3, steps=3, domain="none"),)
print(json.dumps(problem.attacked(problem.initial(), Trial(attacks, ("test", "train"), None, True, Streams(3)))))
"""


def test_numbers_do_not_depend_on_the_number_of_cores():
    found = [json.loads(forks.python("-c", SCRIPT, cores).stdout) for cores in (1, 3)]
    assert found[0] == found[1]
    assert len(found[0]) == 7


def rounds_with(rows: list[dict[str, Any]], name: str) -> list[int]:
    return [row["round"] for row in rows if name in row]


@pytest.mark.parametrize(
    ("evaluation", "clean", "attacked"),
    [
        ({"every": 2}, [2, 4, 5], [2, 4, 5]),
        ({"every": 1, "attacks_every": 3}, [1, 2, 3, 4, 5], [3, 5]),
        ({"every": 2, "attacks_every": 0}, [2, 4, 5], [5]),
        ({"every": 0}, [5], [5]),
        ({"every_seconds": 1e6, "attacks_every": 0}, [5], [5]),
    ],
)
def test_attacks_are_made_after_so_many_rounds_and_at_the_end(evaluation, clean, attacked):
    made = small(5, evaluation={**evaluation, "attacks": [FIRST, SECOND]})
    result = fedsim.run(made, problem=small_problem(), save=False)
    rows = list(result.history)
    assert rounds_with(rows, "test_accuracy") == clean
    assert rounds_with(rows, "test_fgsm_accuracy") == rounds_with(rows, "test_pgd4_loss") == attacked
    assert result.summary["test_pgd4_accuracy"] == rows[-1]["test_pgd4_accuracy"]
    assert result.summary["best_test_pgd4_accuracy"] >= result.summary["test_pgd4_accuracy"]


@pytest.mark.parametrize(
    "end",
    [
        {"stopping": {"metric": "test_accuracy", "target": 0.0}},
        {"rounds": None, "duration": 2.5},
        {"rounds": None, "duration": 3.0, "strategy": {"kind": "fedasync"}},
        {"rounds": None, "duration": 2.0, "evaluation": {"every_seconds": 1.0}},
        {"rounds": 3, "evaluation": {"every_seconds": 0.5}},
    ],
)
def test_attacks_are_made_where_a_run_ends(end):
    judged = {"attacks": [FIRST], "attacks_every": 0, **end.get("evaluation", {})}
    devices = {"compute": {"kind": "fixed", "seconds": 1.0}}
    made = small(**{"rounds": 50, "devices": devices, **end, "evaluation": judged})
    rows = list(build_simulation(made, small_problem()))
    assert [place for place, row in enumerate(rows) if "test_fgsm_loss" in row] == [len(rows) - 1]
    assert "test_loss" in rows[-1]


def test_a_run_that_stalls_is_attacked_at_its_end():
    devices = {"failure": {"mean_seconds": 0.5}}  # and a round takes a second
    made = small(50, devices=devices, evaluation={"every": 0, "attacks": [FIRST]})
    result = fedsim.run(made, problem=small_problem(), save=False)
    assert result.status == "stalled"
    assert "test_fgsm_accuracy" in result.history.rows[-1]


def test_a_model_that_was_judged_before_all_fell_asleep_is_attacked_at_the_end(tmp_path):
    path = tmp_path / "awake.csv"
    path.write_text("client,start,end\n" + "".join(f"{client},0,1\n" for client in range(6)))
    made = small(
        None,
        duration=10.0,
        devices={"availability": {"kind": "trace", "file": str(path), "repeat": 20.0}},
        evaluation={"every": 1, "attacks": [FIRST], "attacks_every": 0},
    )
    rows = list(build_simulation(made, small_problem()))
    assert [(row["round"], row["time"], "test_fgsm_loss" in row) for row in rows] == [(1, 1.0, False), (1, 10.0, True)]
    assert rows[0]["test_loss"] == rows[1]["test_loss"]


def test_a_run_can_stop_on_a_measure_under_attack():
    problem = small_problem()
    made = small(
        60,
        evaluation={"attacks": [FIRST], "attacks_every": 2},
        stopping={"metric": "test_fgsm_loss", "target": 0.0, "patience": 2},
    )
    result = fedsim.run(made, problem=problem, save=False)
    measured = [value for value in result.history["test_fgsm_loss"] if value is not None]
    # Not better than the best in each of the last two evaluations that have the measure.
    assert result.reason == "test_fgsm_loss has not improved for 2 evaluations"
    assert measured.index(min(measured)) == len(measured) - 3
    assert result.summary["rounds"] == 2 * len(measured)


def test_a_model_that_is_looked_at_again_is_not_attacked_again(monkeypatch):
    # A round takes a second, so there are looks at rounds 0, 1, 1, 2, 2, 3; the snapshot is between those at round 1.
    made = small(3, evaluation={"every_seconds": 0.5, "attacks": [SECOND]})
    judged = []
    attacked = Supervised.attacked
    monkeypatch.setattr(Supervised, "attacked", lambda *given: judged.append(None) or attacked(*given))
    simulation = build_simulation(made, small_problem())
    rows = [simulation.step() for _ in range(2)]
    again = build_simulation(made, small_problem())
    again.restore(simulation.snapshot())
    rows += list(again)
    assert [row["round"] for row in rows] == [0, 1, 1, 2, 2, 3]
    assert len(judged) == 4
    assert all("test_pgd4_loss" in row for row in rows)


def test_a_restored_run_goes_on_as_if_nothing_had_happened():
    made = small(
        6, evaluation={"attacks": [SECOND], "attacks_every": 2}, stopping={"metric": "test_pgd4_loss", "patience": 2}
    )
    whole = list(build_simulation(made, small_problem()))
    first = build_simulation(made, small_problem())
    rows = [first.step() for _ in range(3)]
    second = build_simulation(made, small_problem())
    second.restore(first.snapshot())
    rows += list(second)
    assert [row | {"wall": 0} for row in rows] == [row | {"wall": 0} for row in whole]


@pytest.mark.parametrize(
    ("evaluation", "line"),
    [
        ({"attacks": [{"kind": "fgsm"}]}, r"evaluation\.attacks\.0\.epsilon = \(nothing\): this option has no default"),
        ({"attacks": [FIRST, {"kind": "pdg"}]}, r"evaluation\.attacks\.1\.kind = pdg: not one of the installed"),
        ({"attacks": [3]}, r"evaluation\.attacks\.0 = 3: write a table"),
        ({"attacks": [{"kind": "pgd", "epsilon": -1.0}]}, r"evaluation\.attacks\.0\.epsilon = -1\.0"),
        ({"attacks": [SECOND, FIRST, SECOND]}, r"evaluation\.attacks\.2 = pgd4: attacks\.0 has the same name"),
        ({"attacks_every": 2}, r"evaluation\.attacks_every = 2: there are no attacks"),
        ({"examples": 2}, r"evaluation\.examples = 2: there are no attacks"),
        ({"attack_clients": True}, r"evaluation\.attack_clients = True: there are no attacks"),
        ({"attacks": [FIRST], "examples": 0}, r"evaluation\.examples = 0"),
        ({"attacks": [FIRST], "attacks_every": -1}, r"evaluation\.attacks_every = -1"),
        ({"attacks": [FIRST], "attacks_every": 3, "every": 2}, r"evaluation\.attacks_every = 3: .*a multiple"),
        ({"attacks": [FIRST], "attacks_every": 3, "every": 0}, r"evaluation\.attacks_every = 3: .*give 0"),
        ({"attacks": [FIRST], "attacks_every": 3, "every_seconds": 1.0}, r"evaluation\.attacks_every = 3: .*give 0"),
        ({"attacks": [FIRST], "attack_clients": True, "clients": False}, r"evaluation\.attack_clients = True: clients"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_read(evaluation, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        experiment(evaluation=evaluation)


@pytest.mark.parametrize(
    ("evaluation", "line"),
    [
        # Of `blobs`, inputs are normal numbers around centres: outside [0, 1].
        ({"attacks": [FIRST, {"kind": "pgd", "epsilon": 0.1}]}, r"evaluation\.attacks\.1\.domain = \[0\.0, 1\.0\]"),
        ({"attacks": [{**FIRST, "domain": [-50.0, 50.0], "epsilon": 101.0}]}, r"evaluation\.attacks\.0\.epsilon = 101"),
    ],
)
def test_attacks_that_do_not_fit_the_data_are_refused_before_the_run(evaluation, line):
    with pytest.raises(InputError, match=rf"^{line}"):
        build_simulation(small(evaluation=evaluation), small_problem())


def test_other_problems_are_refused():
    made = small(client={"kind": "fedzo"}, evaluation={"attacks": [FIRST]})
    with pytest.raises(InputError, match=r"^evaluation\.attacks = fgsm: the clients of a black box have no examples"):
        build_simulation(made, black_box([lambda x: (x**2).sum()] * 4, dimension=2, kind="scalar"))
    data = blobs()
    untested = fedsim.supervised(**{**data, "test": (data["x"][:0], data["y"][:0])}, model=mlp())
    with pytest.raises(InputError, match=r"^evaluation\.attacks = fgsm: there is no test set"):
        build_simulation(small(evaluation={"attacks": [FIRST]}), untested)
    words = fedsim.supervised(
        np.array([[1, 2], [2, 1], [0, 1]]), np.array([0, 1, 2]), clients=[[0], [1], [2], [0]],
        model=nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(8, 3)),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"^evaluation\.attacks\.0\.kind = fgsm: the inputs are tokens"):
        build_simulation(small(evaluation={"attacks": [FIRST]}), words)


def test_what_clients_train_against_is_held_to_the_training_data():
    attack = {"kind": "pgd", "epsilon": 0.1}
    client = {"kind": "sgd", "epochs": 1, "adversarial": {"kind": "standard", "attack": attack}}
    with pytest.raises(InputError, match=r"^client\.adversarial\.attack\.domain = \[0\.0, 1\.0\]"):
        build_simulation(small(client=client), small_problem())


def test_an_experiment_with_attacks_survives_a_round_trip():
    attacks = [{**attack, "domain": [-50.0, 50.0]} for attack in (FIRST, SECOND)]
    made = small(evaluation={"attacks": attacks, "examples": 7})
    again = experiment(**made.resolved())
    assert again.resolved() == made.resolved()
    assert made.resolved()["evaluation"]["attacks"][1]["steps"] == 4
    alone = Evaluation(attacks={"kind": "fgsm", "epsilon": 0.1})
    assert [attack.label for attack in alone.made["attacks"]] == ["fgsm"]


def test_the_run_folder_and_the_terminal_say_it(tmp_path):
    made = small(
        3, evaluation={"attacks": [SECOND], "attacks_every": 0, "on": ["test", "train"], "attack_clients": True}
    )
    result = fedsim.run(made, problem=small_problem(), out=tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0
    said = measures(result.summary, result.asked)
    assert [text.rpartition(" ")[0] for text in said if "pgd4" in text] == [
        "test pgd4 accuracy",
        "global train pgd4 loss",
    ]
    other = fedsim.run(small(3), problem=small_problem(), out=tmp_path / "other")
    from fedsim.reports.comparison import compare
    from fedsim.reports.pictures import draw

    compared = compare([result.folder, other.folder], targets={"test_pgd4_accuracy": 2.0})
    assert "test_pgd4_accuracy, final" in compared.labels
    assert compared.groups[1].numbers.get("test_pgd4_accuracy, final") is None
    assert draw(compared, tmp_path / "compare.png")


def test_the_picture_has_clean_and_attacked_models_in_one_panel(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    rows = [
        {"round": 1, "test_accuracy": 0.5},
        *(
            {
                "round": number,
                "test_accuracy": 0.5 + 0.1 * number,
                "test_pgd20_l2_accuracy": 0.1 * number,
                "client_accuracy_mean": 0.6,
                "client_accuracy_p10": 0.5,
                "client_pgd20_l2_accuracy_mean": 0.4,
                "client_pgd20_l2_accuracy_p10": 0.3,
                "client_pgd20_l2_accuracy_worst": 0.0,
            }
            for number in (2, 4)
        ),
    ]
    assert plots.curves(rows, tmp_path / "curves.png")
    (axis,) = figures[0].axes
    drawn = {line.get_label(): line for line in axis.lines}
    assert [tuple(point) for point in drawn["test set under pgd20 l2"].get_xydata()] == [(2, 0.2), (4, 0.4)]
    assert len(drawn["test set"].get_xydata()) == 3
    assert set(drawn) == {"test set", "test set under pgd20 l2", "clients, mean", "clients under pgd20 l2, mean"}
    assert len({line.get_color() for line in drawn.values()}) == 4
    (band,) = axis.collections  # of the clean accuracies alone, in the colour of their line
    assert tuple(band.get_facecolor()[0][:3]) == to_rgb(drawn["clients, mean"].get_color())


def test_two_attacks_of_one_kind_have_names_of_their_own():
    attacks = ({"kind": "pgd", "epsilon": 0.1}, {"kind": "pgd", "epsilon": 0.2, "name": "far"})
    assert [attack.label for attack in Evaluation(attacks=attacks).made["attacks"]] == ["pgd10", "far"]
    with pytest.raises(InputError, match=r"attacks\.0\.name = Far Away"):
        Evaluation(attacks=({"kind": "pgd", "epsilon": 0.1, "name": "Far Away"},))


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("test_pgd20_l2_accuracy", "pgd20_l2"),
        ("global_train_fgsm_loss", "fgsm"),
        ("client_cw30_accuracy_p10", "cw30"),
        ("test_accuracy", ""),
        ("global_train_loss", ""),
        ("client_accuracy_mean", ""),
        ("best_test_pgd20_accuracy", ""),
        ("attack_success", ""),
    ],
)
def test_a_measure_says_under_which_attack_it_was_taken(name, attack):
    assert attack_of(name) == attack


def test_an_attack_sees_one_model_and_its_examples():
    problem = small_problem()
    network = PlainNetwork(problem.model.module, problem.model.layout, problem.model.loss)
    rows = problem.model.layout.stack(problem.initial())
    attack = PGD(epsilon=0.3, steps=3, domain="none")
    ids = torch.arange(20, device=problem.device)
    # As `attacked` says it: draws by the number of the example, under a name of the set's own.
    draws = ExampleDraws(Streams(Streams(3).derive("evaluation/test")), ids)
    x = attack.perturb(Victim(network, rows, problem.model.loss, draws), problem.x_test[None], problem.y_test[None])
    losses = problem.model.loss.examples(network.outputs(rows, x), problem.y_test[None])
    found = problem.attacked(problem.initial(), trial(attack))
    assert found["test_pgd3_loss"] == pytest.approx(float(losses.mean()), rel=1e-12)

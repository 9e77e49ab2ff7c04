"""The comparisons of adversarial learning: their problem, files, claims on numbers that are known, and short runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

import experiments.fal.__main__ as program
import fedsim
from experiments.fal import pictures, study
from experiments.fal.model import StridedCNN
from experiments.fal.theory import Separated
from fedsim.core.streams import Streams
from fedsim.running.build import build_problem
from fedsim.running.runner import run
from fedsim.running.sweep import Outcome


def losses(fal, fedavg):
    """Curves of one round for every distance and seed, but for the first, which is given."""
    made = {}
    for arm, first, others in (("fal", fal, 0.01), ("fedavg", fedavg, 0.1)):
        made[arm] = np.full((len(study.DELTAS), len(study.SEEDS), 2), others)
        made[arm][0, 0] = first
    return made


def measured(clean, pgd, *, autoattack=None):
    """Runs, a seed each, that are judged after rounds 1 to 3, and attacked after rounds 2 and 3; given is the last."""
    clean, pgd = np.array(clean)[:, None], np.array(pgd)[:, None]
    attacked = np.hstack([pgd / 2, pgd])
    return study.Measured(np.hstack([clean] * 3), attacked, attacked, np.array([2.0, 3.0]), (None,), autoattack)


@pytest.mark.parametrize("delta", study.DELTAS)
@pytest.mark.parametrize("seed", study.SEEDS)
def test_points_are_on_the_sphere_and_apart(delta, seed):
    data = Separated(delta=delta).dataset(Streams(seed))
    assert data.x.shape == (20, 10)
    assert np.linalg.norm(data.x, axis=1) == pytest.approx(np.ones(20), abs=1e-6)
    assert (data.x[:, -1] == 0.5).all()
    apart = np.linalg.norm(data.x[:, None] - data.x[None], axis=2)[np.triu_indices(20, 1)]
    assert apart.min() >= delta
    assert set(data.y.tolist()) == {-1.0, 1.0}
    assert data.num_classes == len(data.x_test) == 0


def test_points_that_cannot_be_so_far_apart_are_refused():
    # On a sphere of radius sqrt(3)/2 no two are further apart than sqrt(3) = 1.732, and in a plane no three.
    with pytest.raises(fedsim.InputError, match=r"delta = 1\.74: 2 points so far apart are not found"):
        Separated(delta=1.74, points=2).dataset(Streams(0))
    assert len(Separated(delta=1.7, points=2, dimension=2).dataset(Streams(0)).x) == 2
    with pytest.raises(fedsim.InputError, match=r"dimension = 1: take two at least"):
        Separated(delta=0.1, dimension=1)


def test_network_is_the_formula_with_fixed_outer_weights():
    problem = build_problem(fedsim.load(study.HERE / "theory.toml"))
    assert problem.dimension == 2048 * 10  # U alone
    assert problem.sizes.tolist() == [5, 5, 5, 5]
    held = problem.model.module.state_dict()
    weight, bias, outer = held["0.weight"], held["0.bias"], held["2.weight"][0]
    assert outer.abs().tolist() == pytest.approx([2048 ** (-1 / 3)] * 2048)
    # Of variance 1/2048 each: the root mean squares of 20,480 and of 2,048 are within 2 and 6 per cent of the root.
    assert weight.square().mean().sqrt() * math.sqrt(2048) == pytest.approx(1.0, abs=0.02)
    assert bias.square().mean().sqrt() * math.sqrt(2048) == pytest.approx(1.0, abs=0.06)
    assert outer.sum().abs() / outer[0].abs() < 200  # signs at random: a standard deviation of 45
    own = torch.relu(problem.data.x @ weight.T + bias) @ outer
    assert problem.module(problem.initial())(problem.data.x)[:, 0].tolist() == pytest.approx(own.tolist(), abs=1e-5)
    # f is near 0 at first, and log cosh 1 = 0.43378.
    assert problem.evaluate(problem.initial(), clients=False, on=("train",))["global_train_loss"] == pytest.approx(
        0.434, abs=0.03
    )


def test_seeds_have_their_own_points_and_parameters():
    first, again, other = (build_problem(fedsim.load(study.HERE / "theory.toml", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.data.x, again.data.x)
    assert torch.equal(first.initial(), again.initial())
    assert not torch.equal(first.data.x, other.data.x)
    assert not torch.equal(first.initial(), other.initial())
    assert not torch.equal(first.model.module[2].weight, other.model.module[2].weight)


def test_attacks_raise_the_loss_and_training_against_them_lowers_it():
    found = {}
    for arm, settings in study.ARMS.items():
        made = fedsim.load(study.HERE / "theory.toml", overrides=["rounds=3", "problem.width=256", *settings])
        found[arm] = run(made, save=False).history
    for history in found.values():
        attacked, clean = history["global_train_pgd10_l2_loss"], history["global_train_loss"]
        assert all(own > other for own, other in zip(attacked, clean, strict=True))
        assert attacked[2] < attacked[0] < 0.5
    assert found["fal"]["global_train_pgd10_l2_loss"] != found["fedavg"]["global_train_pgd10_l2_loss"]


def test_strided_network_has_the_stated_size():
    # 16 x (25 + 1) + 32 x (16 x 25 + 1) + 100 x (32 x 7 x 7 + 1) + 10 x 101
    model = StridedCNN().build((1, 28, 28), 10, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 171_158
    assert model(torch.zeros(2, 3 - 2, 28, 28)).shape == (2, 10)
    # Sides of 10 are 5, then 3.
    assert StridedCNN().build((3, 10, 10), 1, 0)(torch.zeros(2, 3, 10, 10)).shape == (2, 1)


@pytest.mark.parametrize("name", study.METHODS)
def test_methods_differ_from_the_file_in_what_they_say(name):
    made = fedsim.load(study.HERE / "fal.toml", overrides=study.METHODS[name].settings)
    defence = made.client.defence
    strategy = type(made.strategy).__name__
    expected = {"fedavg": ("FedAvg", None), "sfat": ("SFAT", "Standard")}
    expected |= {"calfat": ("FAL", "CalFAT"), "trades": ("FAL", "Trades")}
    assert (strategy, None if defence is None else type(defence).__name__) == expected.get(name, ("FAL", "Standard"))
    assert made.strategy.weighting == "examples"
    assert made.partition.alpha == (100.0 if name.endswith("_iid") else 0.1)
    if defence is not None:
        assert (defence.attacked_by.epsilon, defence.attacked_by.steps) == (study.EPSILON, 7)
        assert getattr(defence, "mix", 1.0) == (0.5 if name == "fat" else 1.0)
        assert [defence.factor(number) for number in (0, 1, 5)] == ([0.0, 0.2, 1.0] if "rise" in name else [1.0] * 3)
    assert [attack.label for attack in made.evaluation.made["attacks"]] == ["fgsm", "pgd20"]


@pytest.mark.parametrize(
    ("fal", "fedavg", "small", "smaller"),
    [
        ([0.029, 0.2], [0.0726, 0.1], True, True),  # 0.0726 / 0.029 = 2.503
        ([0.2, 0.029], [0.0726, 0.1], True, True),  # the minimum counts, not the last
        ([0.029, 0.2], [0.0724, 0.1], True, False),
        ([0.03, 0.2], [0.1, 0.1], False, True),
    ],
)
def test_theory_is_judged_by_the_minimum_of_each_run(fal, fedavg, small, smaller):
    judged = [claim.judge(losses(fal, fedavg)) for claim in study.THEORY_CLAIMS]
    assert [verdict for _, verdict in judged] == [small, smaller, None]
    # Of two rounds the first is half.
    assert judged[-1][0].startswith(f"{fal[0]:.4f}/0.0100/0.0100 at 0.4, ")
    assert f"; times {fedavg[0] / fal[0]:.1f}/10.0/10.0 at 0.4, " in judged[-1][0]


@pytest.mark.parametrize(
    ("clean", "pgd", "even", "verdicts"),
    [
        # FedAvg: clean 0.8, attacked 0.1. Differences are +0.4 attacked, -0.1 clean, +0.05 of even data.
        ([0.7, 0.7], [0.5, 0.5], [0.55, 0.55], [True, True, True]),
        ([0.6, 0.8], [0.3, 0.7], [0.35, 0.75], [True, True, True]),  # the mean of the seeds counts
        ([0.7, 0.7], [0.44, 0.44], [0.55, 0.55], [False, True, True]),
        ([0.64, 0.64], [0.5, 0.5], [0.55, 0.55], [True, False, True]),
        ([0.7, 0.7], [0.5, 0.5], [0.52, 0.52], [True, True, False]),
    ],
)
def test_images_are_judged_by_the_last_round(clean, pgd, even, verdicts):
    results = dict.fromkeys(study.METHODS, measured([0.7], [0.45])) | {
        "fedavg": measured([0.8, 0.8], [0.1, 0.1]),
        "fal": measured(clean, pgd),
        "fal_rise": measured(clean, pgd),
        "fal_rise_iid": measured([0.7, 0.7], even),
    }
    judged = [claim.judge(results) for claim in study.PRACTICE_CLAIMS]
    robust, cheap, better = verdicts
    assert [verdict for _, verdict in judged] == [robust, robust, cheap, cheap, better]
    # A method of one seed is compared with FAL's run of that seed.
    told, verdict = study.RELATIVES.judge(results)
    assert f"SFAT {100 * (0.45 - pgd[0]):.1f} points" in told
    assert verdict is None


@pytest.mark.parametrize("named", ["robust", "clean"])
def test_each_variant_of_fal_is_judged_by_its_own_runs(named):
    # FedAvg: clean 0.8, attacked 0.1. At full strength from the first round the model is lost.
    results = dict.fromkeys(study.METHODS, measured([0.1, 0.1], [0.1, 0.1])) | {
        "fedavg": measured([0.8, 0.8], [0.1, 0.1]),
        "fal_rise": measured([0.7, 0.7], [0.5, 0.5]),
    }
    judged = {claim.name: claim.judge(results)[1] for claim in study.PRACTICE_CLAIMS}
    assert (judged[f"fal_{named}"], judged[f"fal_{named}_rise"]) == (False, True)


def in_turn(points, *, workers, on_done):
    """A sweep in this process."""
    return [
        Outcome(point, result.status, result.reason, result.summary)
        for point in points
        for result in [run(point.experiment, out=point.folder, force=True)]
    ]


@pytest.mark.usefixtures("unpainted")
def test_theory_reads_what_it_has_run(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.studies.run_points", in_turn)
    monkeypatch.setattr(study, "DELTAS", (0.4, 0.8))
    monkeypatch.setattr(study, "SEEDS", range(2))
    small = ("rounds=2", "problem.width=16", "evaluation.every=1")
    monkeypatch.setattr(study, "ARMS", {arm: (*settings, *small) for arm, settings in study.ARMS.items()})
    found = study.theory(tmp_path)
    made = fedsim.load(study.HERE / "theory.toml", overrides=["problem.delta=0.8", *small], seed=1)
    assert found["fal"].shape == found["fedavg"].shape == (2, 2, 2)
    assert found["fal"][1, 1].tolist() == run(made, save=False).history["global_train_pgd10_l2_loss"]


@pytest.mark.usefixtures("unpainted")
def test_images_read_what_they_have_run_and_show_what_was_attacked(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.studies.run_points", in_turn)
    small = (
        "problem.dataset=digits",
        "problem.model=logistic",
        "partition.examples=60",
        "partition.alpha=100.0",
        "rounds=2",
        "evaluation.attacks_every=0",
        "evaluation.examples=20",
    )
    methods = {name: study.Method(name, (*study.METHODS[name].settings, *small), 2) for name in study.EXHAUSTIVE}
    monkeypatch.setattr(study, "METHODS", methods)
    monkeypatch.setattr(study, "resistant", lambda point: 0.25)
    results = study.practice(tmp_path, study.EXHAUSTIVE)
    for one in results.values():
        assert (one.clean.shape, one.pgd.shape, one.rounds.tolist()) == ((2, 2), (2, 1), [2.0])
        assert one.autoattack == 0.25
        assert (one.pgd <= one.fgsm + 0.1).all()
    monkeypatch.undo()
    found = pictures.attacked_images(results["fal"].points[0])
    assert found.labels.tolist() == list(range(10))
    assert np.abs(found.after - found.before).max() <= study.EPSILON + 1e-6
    assert not np.array_equal(found.after, found.before)
    problem, params = study.trained(results["fal"].points[0])
    assert problem.evaluate(params, clients=False)["test_accuracy"] == results["fal"].clean[0, -1]


def test_autoattack_is_kept_and_left_out_where_it_is_not_installed(tmp_path, monkeypatch):
    made = fedsim.load(
        study.HERE / "fal.toml",
        overrides=[
            "problem.dataset=digits",
            "problem.model=logistic",
            "partition.examples=500",
            "rounds=1",
            *study.PLAIN,
        ],
    )
    point = study.Point(made, tmp_path)
    run(made, out=tmp_path)
    trials = []

    def attacked(problem, params, trial):
        trials.append(trial)
        return {"test_autoattack_accuracy": 0.125}

    monkeypatch.setattr(study.Supervised, "attacked", attacked)
    refused = fedsim.InputError("kind", "autoattack", "it is not installed")
    with monkeypatch.context() as absent:
        absent.setattr("fedsim.attacks.autoattack._toolbox", lambda: (_ for _ in ()).throw(refused))
        assert study.resistant(point) is None
    assert [study.resistant(point), study.resistant(point)] == [0.125, 0.125]
    ((trial,),) = [trials]
    assert (trial.examples, trial.attacks[0].label, trial.attacks[0].epsilon) == (30, "autoattack", 0.1)


@pytest.mark.parametrize("holds", [True, False])
def test_tables_pictures_and_exit_code(tmp_path, monkeypatch, capsys, holds, request):
    if not holds:  # of the same pictures
        request.getfixturevalue("unpainted")
    made = losses([0.2, 0.02], [0.1, 0.1])
    results = dict.fromkeys(study.METHODS, measured([0.6, 0.8], [0.5, 0.5], autoattack=0.25))
    generator = np.random.Generator(np.random.PCG64(0))
    images = generator.random((2, 10, 8, 8))
    seen = pictures.Attacked(np.arange(10), *images, np.arange(10), np.roll(np.arange(10), 1))
    monkeypatch.setattr(program, "theory", lambda out, **given: made)
    monkeypatch.setattr(program, "attacked_images", lambda point: seen)
    monkeypatch.setattr(program, "practice", lambda out, methods, **given: {name: results[name] for name in methods})
    monkeypatch.setattr(program, "RELATIVES", study.Claim("was", "was", lambda found: ("4", None)))
    monkeypatch.setattr(program, "THEORY_CLAIMS", (study.Claim("may_be", "may be", lambda found: ("2", holds)),))
    monkeypatch.setattr(program, "PRACTICE_CLAIMS", (study.Claim("is", "is", lambda found: ("3", None)),))
    call = {"part": None, "data_dir": tmp_path, "out": tmp_path, "pictures": tmp_path}
    if holds:
        program.main(**call)
    else:
        with pytest.raises(typer.Exit) as stopped:
            program.main(**call)
        assert stopped.value.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [f"{'holds' if holds else 'FAILS'}: may be: 2", "measured: is: 3", "measured: was: 4"]
    for name in ("theory", "practice", "images", "relatives"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG" if holds else b"a picture")
    console = Console(width=150, record=True)
    console.print(program.losses_table(made))
    console.print(program.accuracies_table(results))
    said = console.export_text()
    # Of the minima 0.02, 0.01 and 0.01 the mean is 0.0133 and the deviation 0.01 / sqrt(3).
    assert "0.0133 ± 0.0058" in said
    assert "70.0 ± 14.1" in said  # half of 20 times the square root of 2
    assert "25.0" in said


def test_images_need_their_files_and_parts_a_name(tmp_path, capsys):
    call = {"data_dir": None, "out": tmp_path, "pictures": tmp_path}
    program.main(part=["practice"], **call)
    assert "practice: left out" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as stopped:
        program.main(part=["letters"], **call)
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err.startswith("fedsim: part = letters")

"""The comparison of curricula: its files, its measures on numbers that are known, its claims, and a short run."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
import typer
from rich.console import Console

import experiments.curriculum.__main__ as program
import fedsim
from experiments import check, studies
from experiments.curriculum import study
from fedsim.running.runner import run
from fedsim.running.sweep import Outcome

pytestmark = pytest.mark.usefixtures("unpainted")

CLAIMS = {claim.name: claim for claim in study.CLAIMS}
SMALL = (
    "problem.dataset=digits",
    "problem.model={kind = 'mlp', hidden = [4]}",
    "client.epochs=1",
    "selection.count=2",
)
DEALT = "partition={kind = 'iid', clients = 5, examples = 1000, noise = 0.4}"


def measured(*finals, points=()):
    """Runs whose accuracy is always the same, one a seed."""
    return study.Measured(np.tile(np.array(finals)[:, None], (1, 20)), np.full(len(finals), 2e6), points)


def results(setting, **methods):
    return {setting: {name: measured(*finals) for name, finals in methods.items()}}


def test_files_differ_in_the_curriculum_alone():
    files = {name: tomllib.loads((study.HERE / f"{name}.toml").read_text()) for name in set(study.FILES.values())}
    for tables in files.values():
        del tables["name"]
        assert tables["client"].pop("curriculum")["budget"] == "published"
    assert files["curriculum"] == files["vanilla"]
    for tables in files.values():
        del tables["selection"], tables["partition"]
    assert files["clients"] == files["vanilla"]
    assert {path.stem for path in study.HERE.glob("*.toml")} == set(files)


@pytest.mark.parametrize(
    ("setting", "method"),
    sorted({(setting, method) for part in study.PARTS.values() for setting in part for method in part[setting]}),
)
def test_every_run_can_be_made_and_is_what_it_is_called(setting, method):
    overrides = study.SETTINGS[setting].overrides(method)
    made = fedsim.load(study.HERE / f"{study.FILES[method]}.toml", overrides=overrides)
    examples, clients = made.client.curriculum, made.resolved()["selection"]
    by_example = {"curriculum": "curriculum", "random": "random", "anti": "anti", "both": "curriculum"}
    by_client = {"clients": "curriculum", "clients_random": "random", "clients_anti": "anti", "both": "curriculum"}
    assert examples.budget == "published"
    assert (None if examples.pacing.b == 1.0 else examples.order) == by_example.get(method)
    assert clients.get("order") == by_client.get(method)
    assert clients.get("rounds", made.rounds) == made.rounds == study.SETTINGS[setting].rounds


def test_clients_are_paced_by_the_rounds_that_there_are():
    setting = study.SETTINGS["noniid"]
    assert {"rounds=2", "selection.rounds=2"} <= set(setting.overrides("clients", 2))
    assert "selection.rounds=2" not in setting.overrides("vanilla", 2)


def test_accuracy_is_the_mean_of_the_last_ten_rounds_in_percent():
    # Of 12 rounds the last ten have 0.5 five times and 0.7 five times.
    one = study.Measured(np.array([[0.9, 0.9, *[0.5, 0.7] * 5]]), np.zeros(1), ())
    assert one.final == pytest.approx([60.0])


@pytest.mark.parametrize(
    ("name", "setting", "method", "limit", "beyond"),
    [
        ("curriculum_anti", "noniid", "anti", 0.615, 0.625),
        ("curriculum_noniid", "noniid", "curriculum", 0.695, 0.685),
        ("curriculum_noise", "noise", "curriculum", 0.745, 0.735),
        ("curriculum_iid", "iid", "curriculum", 0.72, 0.73),
        ("curriculum_iid", "iid", "curriculum", 0.68, 0.67),
    ],
)
def test_mean_over_seeds_decides(name, setting, method, limit, beyond):
    # Without a curriculum it is 60, 70 and 80 %, so 70 in the mean; the seeds of the other are 5 points apart.
    for level, holds in ((limit, True), (beyond, False)):
        finals = (level - 0.05, level, level + 0.05)
        found = results(setting, vanilla=(0.6, 0.7, 0.8), **{"random": finals, "anti": finals, method: finals})
        assert CLAIMS[name].judge(found)[1] is holds


def test_numbers_are_told_for_each_seed():
    finals = {"vanilla": (0.7, 0.72), "curriculum": (0.71, 0.7), "random": (0.7, 0.71), "anti": (0.6, 0.61)}
    told, holds = CLAIMS["curriculum_noniid"].judge(results("noniid", **finals))
    assert holds is True  # 71 and 70.5 in the mean
    assert told == (
        "no curriculum 71.0 (70.0, 72.0), easy examples first 70.5 (71.0, 70.0), random examples first 70.5 (70.0,"
        " 71.0), hard examples first 60.5 (60.0, 61.0); ahead of no curriculum by: easy examples first -0.5 (+1.0,"
        " -2.0)"
    )


@pytest.mark.parametrize("better", [0.5, 0.9])
def test_nothing_is_demanded_of_curricula_of_clients(better):
    names = ("clients", "clients_random", "clients_anti", "both")
    told, holds = CLAIMS["curriculum_clients"].judge(
        results("difficulty", vanilla=(0.7,), **dict.fromkeys(names, (better,)))
    )
    assert holds is None
    assert f"easy clients first {100 * better - 70:+.1f}" in told


def test_observation_is_a_row_of_its_own_kind(tmp_path, monkeypatch):
    finals = dict.fromkeys(study.PARTS["cifar"]["cifar"], (0.7, 0.7, 0.7))
    monkeypatch.setattr(check, "curriculum_results", lambda part, place: results(part, **finals))
    row = next(claim for claim in check.CLAIMS if claim.name == "curriculum_cifar")
    outcome = row.check(check.Place(tmp_path, tmp_path))
    text = check.render({row.name: outcome})
    assert "| measured |" in text
    # Another measurement replaces it; a claim that was skipped does not.
    again = check.render({row.name: check.Outcome("others", None, observed=True)}, text)
    assert "| others | measured |" in again
    assert check.render({row.name: row.check(check.Place(None, tmp_path))}, again) == again


def in_turn(points, *, workers, on_done):
    """A sweep in this process."""
    return [
        Outcome(point, result.status, result.reason, result.summary)
        for point in points
        for result in [run(point.experiment, out=point.folder, force=True)]
    ]


def test_study_reads_what_it_has_run(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SETTINGS", {"small": study.Setting("small", 2, (*SMALL, DEALT))})
    monkeypatch.setattr(study, "PARTS", {"small": {"small": ("vanilla", "curriculum", "clients")}})
    monkeypatch.setattr(study, "SEEDS", range(1))
    monkeypatch.setattr(studies, "run_points", in_turn)
    found = study.measure("small", tmp_path, data_dir=None)["small"]
    alone = run(found["vanilla"].points[0].experiment, save=False).history
    assert found["vanilla"].accuracy.tolist() == [alone["test_accuracy"]]
    # The model of 64 x 4 + 4 + 4 x 10 + 10 numbers of 4 bytes goes to two clients in two rounds. For the curriculum of
    # clients it also went to all five, of which a fifth, one, was in the first round; then to all five again.
    assert found["vanilla"].down.tolist() == [4 * 310 * 2 * 2]
    assert found["clients"].down.tolist() == [4 * 310 * (5 + 1 + 5 + 2)]
    assert study.selected(found["clients"].points[0]).sum(axis=1).tolist() == [1, 2]


def test_watched_run_is_that_of_its_folder(tmp_path):
    experiment = fedsim.load(
        study.HERE / "curriculum.toml", overrides=[*SMALL, DEALT, "rounds=6", "client.curriculum.floor=10"]
    )
    point = study.Point(experiment, tmp_path / "seed-0")
    seen = study.watch(point)
    # After rounds 1 and 5 the examples that are dealt were scored. Of all labels 40 % are wrong, of a sample of 1,000
    # about as many: one standard deviation is 1.5 %.
    assert seen.scores.shape == (2, 1000)
    assert seen.wrong.mean() == pytest.approx(0.4, abs=0.05)
    # The mean loss of all examples is the one that an evaluation on the training set finds.
    losses = run(
        fedsim.load(
            study.HERE / "curriculum.toml",
            overrides=[*SMALL, DEALT, "rounds=5", "client.curriculum.floor=10", "evaluation.on=train"],
        ),
        save=False,
    ).history["global_train_loss"]
    assert seen.scores.mean(axis=1) == pytest.approx([losses[0], losses[4]], rel=1e-5)
    # What was seen is read again, and not made again.
    kept = tmp_path / "watched-seed-0.npz"
    written = kept.stat().st_mtime_ns
    assert np.array_equal(study.watch(point).scores, seen.scores)
    assert kept.stat().st_mtime_ns == written


def test_wrong_among_the_easiest():
    # The two easiest of ten are the last two, one of which is wrong; then the first two, both right.
    wrong = np.array([False] * 5 + [True] * 4 + [False])
    seen = study.Watched(np.array([np.arange(10.0)[::-1], np.arange(10.0)]), wrong)
    assert seen.wrong_among_easiest(0.2).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("holds", [True, False, None])
def test_tables_pictures_and_exit_code(tmp_path, monkeypatch, capsys, holds):
    made = {
        setting: {
            name: measured(*((0.5, 0.52) if name == "vanilla" else (0.6, 0.64)), points=(None,)) for name in names
        }
        for part in study.PARTS.values()
        for setting, names in part.items()
    }
    console = Console(width=150, record=True)
    console.print(program.table("difficulty", made["difficulty"]))
    shown = console.export_text()
    # 62 and half of 4 times the square root of 2; ahead by 10 and 12; 2 MB; the published number.
    assert [cell.strip() for cell in shown.splitlines()[4].split("│")][1:] == [
        "62.0 ± 2.8",
        "60.0 64.0",
        "11.0 ± 1.4",
        "2",
        "59.9",
    ]
    generator = np.random.Generator(np.random.PCG64(0))
    seen = study.Watched(generator.random((2, 50)), generator.random(50) < 0.4)
    monkeypatch.setattr(program, "measure", lambda part, out, **given: {name: made[name] for name in study.PARTS[part]})
    monkeypatch.setattr(program, "watch", lambda point: seen)
    monkeypatch.setattr(program, "selected", lambda point: generator.random((6, 9)) < 0.4)
    claim = study.Claim("may_be", "iid", "iid", "may be", ("curriculum",), None if holds is None else lambda x: holds)
    monkeypatch.setattr(program, "CLAIMS", (claim,))
    call = {"data_dir": tmp_path, "out": tmp_path, "pictures": tmp_path}
    if holds is False:
        with pytest.raises(typer.Exit) as stopped:
            program.main(**call)
        assert stopped.value.exit_code == 1
    else:
        program.main(**call)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{ {True: 'holds', False: 'FAILS', None: 'measured'}[holds] }: may be: no curriculum 51.0")
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {*study.PARTS, "pacing", "selection", "scores"}


def test_unknown_part_is_one_line(tmp_path, capsys):
    with pytest.raises(typer.Exit) as stopped:
        program.main(part=["letters"], data_dir=tmp_path, out=tmp_path, pictures=tmp_path)
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err.startswith("fedsim: part = letters")

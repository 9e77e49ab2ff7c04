"""What `fedsim.run` takes, what ends a run from outside, and what a result says of itself."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fedsim
import fedsim.flower
import fedsim.testing
from clients.sgd import Sgd
from fedsim.core.errors import FedsimError, InputError
from fedsim.plots import Picture
from fedsim.problems.models.dense import MLP
from fedsim.problems.supervised import SupervisedOptions
from fedsim.running.history import SHOWN
from fedsim.testing import small_functions, small_problem
from strategies.fedbuff import FedBuff

ROOT = Path(__file__).parents[2]
TEXT = 'name = "<b>"\nrounds = 2\n[client]\nkind = "sgd"\nepochs = 2\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(TEXT)
    return path


def test_a_path_an_experiment_and_parts_are_one_run(file):
    wanted = fedsim.run(fedsim.load(file), save=False)
    parts = {"name": "<b>", "rounds": 2, "client": Sgd(epochs=2)}
    for result in (
        fedsim.run(file, save=False),
        fedsim.run(str(file), save=False),
        fedsim.run(**parts, save=False),
        fedsim.run(fedsim.experiment(**parts), save=False),
    ):
        assert torch.equal(result.params, wanted.params)
        assert result.config == wanted.config
    described = fedsim.run(problem=SupervisedOptions(model=MLP(hidden=(3,))), rounds=1, save=False)
    assert described.params.shape == (64 * 3 + 3 + 3 * 10 + 10,)


def test_a_problem_of_ones_own_among_the_parts():
    problem = small_problem()
    parts = {"strategy": FedBuff(size=3), "client": Sgd(epochs=1), "rounds": 3, "engine": {"precision": "float64"}}
    result = fedsim.run(problem=problem, **parts, save=False)
    assert result.problem is problem
    assert torch.equal(result.params, fedsim.run(fedsim.experiment(**parts), problem=problem, save=False).params)
    asked = fedsim.run(problem=small_functions(), client="fedzo", strategy="fedzo", rounds=1, save=False)
    assert asked.summary["total_queries"] > 0


@pytest.mark.parametrize(
    ("given", "parts", "line"),
    [
        (({},), {}, "experiment = dict: name a file, hand over an experiment, or its parts by name"),
        ((None,), {}, r"experiment = \(nothing\): name a file"),
        ((3,), {"rounds": 1}, "experiment = int: name a file"),
        (("experiment.toml",), {"rounds": 3}, "rounds = 3: the experiment says this; change it there"),
        (("experiment.toml",), {"problem": {"model": "mlp"}}, "problem = dict: the experiment says this"),
        (("nowhere.toml",), {}, "experiment = nowhere.toml: there is no such file"),
        ((), {"problem": 3}, "problem = 3: write a table"),
        ((), {"client": Sgd}, "client = Sgd: hand over an object"),
        ((), {"clients": 3}, "clients = 3: no such option here"),
    ],
)
def test_what_is_no_experiment_is_refused_in_one_line(file, monkeypatch, given, parts, line):
    monkeypatch.chdir(file.parent)
    with pytest.raises(InputError, match=line) as refused:
        fedsim.run(*given, **parts)
    assert "\n" not in str(refused.value)
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_a_callback_that_returns_true_ends_the_run(file, tmp_path, kind):
    seen: list[int] = []
    callbacks = [lambda told: kind(told.row["round"] == 2), lambda told: seen.append(told.row["round"])]
    parts = {"rounds": 5, "client": Sgd(epochs=2), "checkpoint": {"every": 1}}
    result = fedsim.run(**parts, callbacks=callbacks, out=tmp_path / "run")
    assert (result.status, result.reason) == ("stopped", "a callback has ended it")
    assert seen == result.history["round"] == [1, 2]
    assert torch.equal(result.params, fedsim.run(file, save=False).params)
    with pytest.raises(InputError, match="this run has stopped; nothing is left to do"):
        fedsim.resume(tmp_path / "run")
    whole = fedsim.run(**parts, callbacks=[lambda _: 1, lambda _: "True"], save=False)  # neither is True
    assert (whole.status, len(whole.history)) == ("finished", 5)


def test_a_callback_may_say_why_it_ends_the_run(file):
    class Enough:
        reason = "nobody looked"

        def __call__(self, told: fedsim.Round) -> bool:
            self.reason = f"enough after round {told.row['round']}"
            return True

    result = fedsim.run(file, callbacks=[lambda _: None, Enough(), lambda _: True], save=False)
    assert (result.status, result.reason) == ("stopped", "enough after round 1")


def test_a_result_says_itself_in_a_line_and_a_small_table(file, tmp_path):
    result = fedsim.run(file, out=tmp_path / "<i>run")
    text = repr(result)
    assert text.startswith("Result(finished, round 2, test_accuracy 0.")
    assert str(tmp_path) in text
    assert "tensor" not in text
    assert len(text) < 300
    page = result._repr_html_()
    assert page.startswith("<table>")
    assert "&lt;i&gt;run" in page
    assert "<i>" not in page
    assert len(page) < 2_000
    for wide in (result, result.history):
        assert "tensor(" not in repr(wide)


def test_a_history_shows_both_its_ends():
    rows = [{"round": number, "<b>": None if number == 1 else number / 3, "lost": 0} for number in range(20)]
    page = fedsim.History(rows)._repr_html_()
    assert "lost" not in page
    assert "<th>lost</th>" in fedsim.History([*rows, {"lost": 1}])._repr_html_()
    assert page.count("<tr>") == 1 + 2 * SHOWN + 1
    assert "<th>&lt;b&gt;</th>" in page
    assert "<tr><td>1</td><td></td></tr>" in page
    assert "<tr><td>19</td><td>6.333</td></tr>" in page
    assert "<td>7</td>" not in page
    assert fedsim.History(rows[:3])._repr_html_().count("<tr>") == 4


def test_a_data_frame_has_the_rows():
    frame = fedsim.History([{"round": 1, "loss": 0.5}, {"round": 2, "loss": None, "late": 3}]).to_pandas()
    assert list(frame.columns) == ["round", "loss", "late"]
    assert frame["loss"].isna().tolist() == [False, True]
    assert frame["late"].isna().tolist() == [True, False]


def test_without_pandas_a_data_frame_is_one_line(monkeypatch):
    load = builtins.__import__

    def absent(name, *args, **options):
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(FedsimError, match=r"pip install pandas$"):
        fedsim.History([{"round": 1}]).to_pandas()


def test_a_result_draws_itself(file, tmp_path):
    picture = fedsim.run(file, save=False).plot()
    assert isinstance(picture, Picture)
    assert picture._repr_png_().startswith(b"\x89PNG")
    picture.save(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == picture.png
    assert len(repr(picture)) < 60
    nothing = fedsim.run(rounds=2, evaluation={"every": 0}, callbacks=[lambda _: True], save=False)
    object.__setattr__(nothing, "history", fedsim.History([{"round": 1, "time": 1.0}]))
    with pytest.raises(FedsimError, match="nothing to draw"):
        nothing.plot()


@pytest.mark.parametrize("package", [fedsim, fedsim.flower, fedsim.testing])
def test_dir_shows_the_public_names(package):
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import fedsim", ("numpy", "torch", "pydantic", "rich", "typer")),
        ("import fedsim; dir(fedsim); fedsim.InputError", ("numpy", "torch", "pydantic", "rich")),
        ("import fedsim; fedsim.run", ("matplotlib", "sklearn", "pandas", "flwr", "ray", "rich")),
    ],
)
def test_a_name_costs_only_what_it_needs(code, absent):
    script = f"import sys; {code}; print([name for name in {absent} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert done.stdout.strip() == "[]"

"""Pictures of methods: figures of studies are there, and a run is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsim
from fedsim.configuration.tables import Experiment
from fedsim.core.blame import ROOT
from website import pictures


def test_figures_of_studies_are_there() -> None:
    absent = [study for study, name in pictures.FIGURES.items() if not (ROOT / "experiments" / study / name).exists()]
    assert absent == []
    found = pictures.picture(Path("experiments/fzoos/zord.toml"), Path("nowhere"))
    assert found is not None
    assert found.file == ROOT / "experiments" / "fzoos" / "figure.png"


def test_a_run_is_made_once_for_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[int]()

    def run(experiment: Experiment, out: Path) -> None:
        runs.append(experiment.rounds)
        out.mkdir()
        (out / "curves.png").touch()

    monkeypatch.setattr(fedsim, "run", run)
    experiment = Path("experiments/digits_fedavg.toml")
    first = pictures.picture(experiment, tmp_path)
    assert first is not None
    assert first.caption == "The first 30 rounds of `experiments/digits_fedavg.toml`"
    assert pictures.picture(experiment, tmp_path) == first
    assert runs == [30]
    monkeypatch.setattr(pictures, "_code", lambda: b"other")
    assert pictures.picture(experiment, tmp_path) != first
    assert runs == [30, 30]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_takes_long_has_none() -> None:
    assert pictures.picture(Path("experiments/population.toml"), Path("nowhere")) is None

"""A search as its study.json has it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim.core.errors import InputError
from fedsim.running.study import STUDY, Study, Trial, read_study, write_study


def trial(number: int, value: float | None, folder: Path, **other: object) -> Trial:
    values = () if value is None else (value - 0.5, value + 0.5)
    state = "pruned" if value is None else "complete"
    made = Trial(number, {"client.lr": 0.1 * number}, state, value, values, 20, 1.25, folder / f"trial-{number}")
    return replace(made, **other)


def study(folder: Path, **other: object) -> Study:
    trials = tuple(trial(number, value, folder) for number, value in enumerate((0.25, 0.75, None, 0.75)))
    space = {"client.lr": "log:0.001..1"}
    made = Study("validation_accuracy", True, space, (0, 1), "tpe", "median", trials, {"client.lr": 1.0}, 1)
    return replace(made, folder=folder, **other)


def test_a_search_is_read_as_it_was_written_wherever_its_folder_has_gone(tmp_path):
    made = study(tmp_path, test={"test_accuracy": (0.5, 0.25)}, draws=3)
    write_study(made, tmp_path)
    assert read_study(tmp_path) == made
    moved = tmp_path.parent / "moved"
    shutil.move(tmp_path, moved)
    found = read_study(moved)
    assert found is not None
    assert found.folder == moved
    assert [trial.folder for trial in found.trials] == [moved / f"trial-{number}" for number in range(4)]


@pytest.mark.parametrize(("higher", "numbers"), [(True, [1, 3, 0]), (False, [0, 1, 3])])
def test_the_best_comes_first_and_of_equal_ones_the_earlier(tmp_path, higher, numbers):
    assert [trial.number for trial in study(tmp_path, higher_is_better=higher).ranked] == numbers


def test_a_notebook_shows_the_complete_trials_in_their_order_and_then_the_others_with_what_became_of_them(tmp_path):
    made = study(tmp_path)
    made = replace(made, trials=(*made.trials[:2], replace(made.trials[2], reason="<below>"), made.trials[3]))
    shown = made._repr_html_()
    places = [shown.index(f"<tr><td>{number}</td>") for number in (1, 3, 0, 2)]
    assert places == sorted(places)
    assert "pruned: &lt;below&gt;" in shown
    assert repr(made) == f"Study(4 trials, best validation_accuracy 0.75 of trial 1, {tmp_path})"


def test_where_there_is_no_search_nothing_is_read(tmp_path):
    assert read_study(tmp_path) is None
    assert read_study(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seeds": "0"}, "seeds"), ({"trials": [{"number": 0}]}, "trials.0.options"), ({"metric": None}, "metric")],
)
def test_what_no_search_has_written_is_refused_and_says_where_it_is_wrong(tmp_path, change, said):
    write_study(study(tmp_path), tmp_path)
    held = json.loads((tmp_path / STUDY).read_text())
    (tmp_path / STUDY).write_text(json.dumps(held | change))
    with pytest.raises(InputError, match=f"no search has written this: {said}"):
        read_study(tmp_path)


def test_half_a_study_is_refused(tmp_path):
    (tmp_path / STUDY).write_text('{"metric": "val')
    with pytest.raises(InputError, match="no search has written this"):
        read_study(tmp_path)

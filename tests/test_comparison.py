"""Comparing runs: what is a group, and its means and deviations worked out by hand."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from fedsim.comparison import Comparison, compare, render
from fedsim.errors import InputError
from fedsim.plots import compare_curves
from fedsim.runfolder import RunFolder


def write(path: Path, accuracies: list[float | None], *, seed: int = 0, lr: float = 0.1, **options: object) -> Path:
    """A run that evaluates in every second round only, and in the last; test_loss = 1 - accuracy."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "client": {"kind": "sgd", "lr": lr}, **options})
        for number, accuracy in enumerate(accuracies, start=1):
            row = {"round": number, "time": 2.0 * number, "wall": 0.5 * number, "clients": 10}
            row |= {
                "bytes_up": 250_000,
                "bytes_down": 500_000,
                "queries": 0,
                "failed": 0,
                "train_loss": 1.0 / number,
            }
            if number % 2 == 0 or number == len(accuracies):
                row["test_accuracy"] = math.nan if accuracy is None else accuracy
                row["test_loss"] = math.nan if accuracy is None else 1 - accuracy
            folder.append(row)
    return path


def table(comparison: Comparison) -> dict[str, list[str]]:
    """The cells of the printed table by the first one of their row."""
    printed = io.StringIO()
    Console(width=120, file=printed).print(render(comparison))
    rows = [line.replace("┃", "│").split("│") for line in printed.getvalue().splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_seeds_are_a_group_with_mean_and_deviation(tmp_path):
    for seed, last in enumerate([0.8, 0.9, 0.7]):
        write(tmp_path / "a-0" / f"seed-{seed}", [0.1, 0.85, 0.2, last], seed=seed)
    comparison = compare([tmp_path / "a-0"])
    (group,) = comparison.groups
    assert group.name == "a-0"
    assert [run.seed for run in group.runs] == [0, 1, 2]
    # Final 0.8, 0.9, 0.7: mean 0.8, s = sqrt((0 + 0.01 + 0.01) / 2) = 0.1.
    final = group.numbers["test_accuracy, final"]
    assert final.mean == pytest.approx(0.8)
    assert final.deviation == pytest.approx(0.1)
    # Best of (0.85, last): 0.85, 0.9, 0.85; mean 2.6 / 3, s = 0.05 / sqrt(3) = 0.028868.
    best = group.numbers["test_accuracy, best"]
    assert best.values == (0.85, 0.9, 0.85)
    assert best.deviation == pytest.approx(0.05 / math.sqrt(3))
    assert group.numbers["test_loss, best"].values == pytest.approx((0.15, 0.1, 0.15))
    assert group.numbers["train_loss, final"].mean == 0.25
    # Four rounds of 0.25 MB up and 0.5 MB down, 2 virtual seconds and half a second each.
    for label, expected in {
        "rounds done": 4,
        "virtual time (s)": 8.0,
        "wall time (s)": 2.0,
        "up (MB)": 1.0,
        "down (MB)": 2.0,
    }.items():
        assert group.numbers[label].values == (expected,) * 3
        assert group.numbers[label].deviation == 0
    cells = table(comparison)
    assert cells["seeds"] == ["3 (0 to 2)"]
    assert cells["test_accuracy, final"] == ["0.8000 ± 0.1000"]
    assert cells["test_accuracy, best"] == ["0.8667 ± 0.0289"]
    assert cells["rounds done"] == ["4 ± 0.00"]
    assert "client_accuracy_p10, final" not in cells


def test_one_run_is_a_group_without_a_deviation(tmp_path):
    comparison = compare([write(tmp_path / "alone", [0.5, 0.75], seed=4)])
    (group,) = comparison.groups
    assert group.name == "alone"
    assert group.numbers["test_accuracy, final"].deviation is None
    assert comparison.differing == {}
    cells = table(comparison)
    assert cells["seeds"] == ["1 (4)"]
    assert cells["test_accuracy, final"] == ["0.7500"]


def test_groups_differ_in_the_options_listed_and_in_no_other(tmp_path):
    paths = [
        write(tmp_path / "a", [0.5], seed=0),
        write(tmp_path / "b", [0.6], seed=1, lr=0.2, engine={"executor": "loop"}),
        write(tmp_path / "c", [0.7], seed=1),
    ]
    comparison = compare(paths)
    assert [group.name for group in comparison.groups] == [
        "a (+1)",
        "b",
    ]  # a and c differ in their seed alone
    assert comparison.groups[0].numbers["test_accuracy, final"].values == (0.5, 0.7)
    assert comparison.differing == {"client.lr": (0.1, 0.2), "engine.executor": (None, "loop")}
    cells = table(comparison)
    assert cells["client.lr"] == ["0.1", "0.2"]
    assert cells["engine.executor"] == ["(absent)", "loop"]
    assert "client.kind" not in cells


def test_equal_runs_are_compared_and_not_averaged(tmp_path):
    comparison = compare([write(tmp_path / "old", [0.5]), write(tmp_path / "new", [0.9])])
    assert [(group.name, len(group.runs)) for group in comparison.groups] == [("old", 1), ("new", 1)]
    assert "options that differ: none" in table(comparison)


def test_a_run_named_twice_counts_once(tmp_path, monkeypatch):
    write(tmp_path / "a" / "seed-0", [0.5])
    monkeypatch.chdir(tmp_path)
    (group,) = compare([Path("a"), tmp_path / "a" / "seed-0", Path("a/../a/seed-0")]).groups
    assert len(group.runs) == 1


def test_a_folder_of_runs_and_of_groups_is_searched(tmp_path):
    write(tmp_path / "runs" / "a-0" / "seed-0", [0.5], seed=0)
    write(tmp_path / "runs" / "a-0" / "seed-1", [0.6], seed=1)
    write(tmp_path / "runs" / "b-0", [0.5], lr=0.5)
    (tmp_path / "runs" / "compare.png").write_bytes(b"")
    groups = compare([tmp_path / "runs"]).groups
    assert [(group.name, len(group.runs)) for group in groups] == [("a-0", 2), ("b-0", 1)]


def test_a_run_that_diverged_does_not_pass_for_its_last_finite_value(tmp_path):
    write(tmp_path / "a" / "seed-0", [0.1, 0.6, 0.1, 0.8], seed=0)
    write(tmp_path / "a" / "seed-1", [0.1, 0.6, 0.1, None], seed=1)
    comparison = compare([tmp_path / "a"])
    numbers = comparison.groups[0].numbers
    assert math.isnan(numbers["test_accuracy, final"].mean)
    assert numbers["test_accuracy, best"].values == (0.8, 0.6)
    assert table(comparison)["test_accuracy, final"] == ["not finite"]


def test_a_number_that_not_every_run_has_says_how_many_have_it(tmp_path):
    write(tmp_path / "a" / "seed-0", [0.1, 0.6], seed=0)
    with RunFolder.create(tmp_path / "a" / "seed-1", "x") as folder:
        folder.write_config({"name": "x", "seed": 1, "client": {"kind": "sgd", "lr": 0.1}})
        folder.append({"round": 1, "train_loss": 1.0})
    assert table(compare([tmp_path / "a"]))["test_accuracy, final"] == ["0.6000 (n = 1)"]


def test_the_picture_shows_every_group(tmp_path):
    comparison = compare([write(tmp_path / "a", [0.5, 0.6]), write(tmp_path / "b", [0.5, 0.7], lr=1.0)])
    runs = {group.name: [run.rows for run in group.runs] for group in comparison.groups}
    assert compare_curves(runs, tmp_path / "compare.png")
    points = imread(tmp_path / "compare.png")[..., :3]
    # Ink of both groups' colours, #4477AA and #EE6677.
    for colour in ((0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)):
        assert (abs(points * 255 - colour).max(axis=2) < 2).sum() > 100


def test_markup_in_a_name_is_shown_and_not_obeyed(tmp_path):
    comparison = compare([write(tmp_path / "[red]a", [0.5])])
    assert table(comparison)[""] == ["[red]a"]


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(InputError, match="there is no run in this place"):
            compare([path])
    with pytest.raises(InputError, match="name at least one run folder"):
        compare([])


def test_a_run_without_rows_or_config_is_refused(tmp_path):
    with RunFolder.create(tmp_path / "unrun", "x") as folder:
        folder.write_config({"name": "x"})
    with pytest.raises(InputError, match=r"metrics.jsonl: no round was logged"):
        compare([tmp_path / "unrun"])
    (tmp_path / "unrun" / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="no round was logged"):
        compare([tmp_path / "unrun"])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(InputError, match=r"config.toml: cannot be read"):
        compare([tmp_path / "bare"])

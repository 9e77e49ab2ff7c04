"""Comparing runs: what is a group, and its means and deviations worked out by hand."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console
from traces import every, everybody, schedule

from fedsim.comparison import Comparison, compare, draw, places, render
from fedsim.errors import InputError
from fedsim.runfolder import RunFolder, StorageError


def write(path: Path, accuracies: list[float | None], *, seed: int = 0, lr: float = 0.1, **options: object) -> Path:
    """A run that evaluates in every second round only, and in the last; test_loss = 1 - accuracy."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "client": {"kind": "sgd", "lr": lr}, **options})
        for number, accuracy in enumerate(accuracies, start=1):
            row = {"round": number, "time": 2.0 * number, "wall": 0.5 * number, "clients": 10}
            row |= {
                "bytes_up": 2**18,
                "bytes_down": 2**19,
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
    # Four rounds of 2^18 bytes (0.25 MiB) up and 0.5 MiB down, 2 virtual seconds and half a second each.
    for label, expected in {
        "rounds done": 4,
        "virtual time (s)": 8.0,
        "wall time (s)": 2.0,
        "up (MiB)": 1.0,
        "down (MiB)": 2.0,
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


def scheduled(path: Path, name: str, *, seed: int = 0) -> Path:
    """A run of four clients, which take 1.0, 0.8, 0.6 and 0.4 s, up to 4 s, in FedAvg's rounds or FedFix's windows."""
    rows, trace = schedule([1.0, 0.8, 0.6, 0.4], everybody if name == "fedavg" else every(0.5), 4.0)
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "strategy": {"kind": name}})
        for row in rows:
            folder.append(row)
    (path / "trace.json").write_text(json.dumps(trace))
    return path


def test_staleness_lateness_and_losses_are_numbers_where_there_are_any(tmp_path):
    # Three replies of mean staleness 1 and one of staleness 3: (3 + 3) / 4 = 1.5. Late are 2 + 1; lost 1.
    stale = [
        {"clients": 3, "staleness": 1.0, "late": 2, "lost": 0},
        {"clients": 0, "staleness": None, "late": 1, "lost": 1},
        {"clients": 1, "staleness": 3.0, "late": 0, "lost": 0},
    ]
    fresh = [{"clients": 3, "staleness": 0.0, "late": 0, "lost": 0}]
    for name, rows in (("fresh", fresh), ("stale", stale)):
        with RunFolder.create(tmp_path / name, "x") as folder:
            folder.write_config({"name": "x", "seed": 0})
            for number, row in enumerate(rows, start=1):
                folder.append({"round": number, "train_loss": 1.0, **row})
    cells = table(compare([tmp_path / "fresh", tmp_path / "stale"]))
    assert [cells[label] for label in ("staleness, mean", "late", "lost")] == [
        ["0.00", "1.50"],
        ["0.00", "3.00"],
        ["0.00", "1.00"],
    ]
    assert not {"staleness, mean", "late", "lost"} & set(table(compare([tmp_path / "fresh"])))


def test_what_came_of_the_options_is_no_option(tmp_path):
    paths = [
        write(tmp_path / "a", [0.5], seed=0, resolved={"device": "cpu"}),
        write(tmp_path / "b", [0.5], seed=1, resolved={"device": "cuda"}),
        write(tmp_path / "c", [0.5], lr=0.2, resolved={"device": "cuda"}),
    ]
    comparison = compare(paths)
    assert [len(group.runs) for group in comparison.groups] == [2, 1]
    assert comparison.differing == {"client.lr": (0.1, 0.2)}


def test_the_pictures_show_every_group(tmp_path):
    for seed in (0, 1):
        scheduled(tmp_path / "fix" / f"seed-{seed}", "fedfix", seed=seed)
    comparison = compare([scheduled(tmp_path / "avg", "fedavg"), tmp_path / "fix"])
    drawn = draw(comparison, tmp_path / "c.png")
    assert drawn == [tmp_path / name for name in ("c.png", "c-trace.png", "c-timeline.png")]
    assert tuple(drawn) == places(tmp_path / "c.png")
    # Ink of both groups' colours, #4477AA and #EE6677.
    for path in drawn[:2]:
        points = imread(path)[..., :3]
        for colour in ((0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)):
            assert (abs(points * 255 - colour).max(axis=2) < 2).sum() > 100
    alone = draw(compare([tmp_path / "avg"]), tmp_path / "alone.png")
    # One run's timeline is less high than two runs'.
    assert imread(alone[-1]).shape[0] < imread(drawn[-1]).shape[0]


def test_runs_without_traces_have_the_curves_alone(tmp_path):
    comparison = compare([write(tmp_path / "a", [0.5, 0.6]), write(tmp_path / "b", [0.5, 0.7], lr=1.0)])
    assert draw(comparison, tmp_path / "c.png") == [tmp_path / "c.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c.png"]
    with pytest.raises(StorageError, match="cannot write"):
        draw(comparison, tmp_path / "absent" / "c.png")


def test_a_trace_that_cannot_be_read_is_refused_before_anything_is_drawn(tmp_path):
    run = scheduled(tmp_path / "a", "fedfix")
    (run / "trace.json").write_text('{"staleness":')
    with pytest.raises(InputError, match=r"trace.json: cannot be read"):
        draw(compare([run]), tmp_path / "c.png")
    (run / "trace.json").unlink()
    (run / "trace.json").mkdir()
    with pytest.raises(InputError, match=r"trace.json: cannot be read"):
        draw(compare([run]), tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


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

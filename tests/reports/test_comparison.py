"""Comparing runs: what is a group, and its means and deviations worked out by hand."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console
from runs_on_disk import write
from traces import every, everybody, schedule

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.files import StorageError
from fedsim.reports.comparison import Comparison, compare, parse_targets
from fedsim.reports.fronts import panels_of
from fedsim.reports.listing import listed
from fedsim.reports.pictures import draw, places
from fedsim.reports.table import render
from fedsim.running.folder import RunFolder
from fedsim.testing import small_problem


def text(comparison: Comparison, width: int = 120) -> str:
    """What is printed on a terminal so many letters wide."""
    printed = io.StringIO()
    Console(width=width, file=printed).print(render(comparison))
    return printed.getvalue()


def table(comparison: Comparison) -> dict[str, list[str]]:
    """The cells of the printed table by the first one of their row."""
    rows = [line.replace("┃", "│").split("│") for line in text(comparison).splitlines()]
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
    # t(2) = 4.303: 0.8 ± 4.303 * 0.1 / sqrt(3).
    assert "0.5516 to 1.0484" in text(comparison)
    assert "95 % (t)" not in text(compare([tmp_path / "a-0"], interval=None))
    assert "90 % (bootstrap)" in text(compare([tmp_path / "a-0"], interval="bootstrap", level=0.9))
    assert cells["rounds done"] == ["4 ± 0"]
    assert "client_accuracy_p10, final" not in cells


def test_one_run_is_a_group_without_a_deviation(tmp_path):
    comparison = compare([write(tmp_path / "alone", [0.5, 0.75], seed=4)])
    (group,) = comparison.groups
    assert group.name == "alone"
    assert group.numbers["test_accuracy, final"].deviation is None
    assert comparison.differing == {}
    cells = table(comparison)
    assert cells["seeds"] == ["1 (4)"]
    assert "95 % (t)" not in cells
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


def test_what_own_models_gain_is_a_number_of_each_run(tmp_path):
    for seed, (own, everybodys) in enumerate([(0.9, 0.8), (0.8, 0.5)]):
        with RunFolder.create(tmp_path / "a" / f"seed-{seed}", "a") as folder:
            folder.write_config({"name": "a", "seed": seed})
            for number, earlier in ((1, 0.1), (2, 0.0)):
                accuracies = {"personal_accuracy": own - earlier, "personal_accuracy_p10": own - 0.5}
                folder.append({"round": number, **accuracies, "client_accuracy": everybodys, "client_loss": 1.0})
    (group,) = compare([tmp_path / "a"]).groups
    assert group.numbers["personal_gain, final"].values == pytest.approx((0.1, 0.3))
    assert "personal_gain, best" not in group.numbers  # of rounds that were picked as the global model was bad
    assert table(compare([tmp_path / "a"]))["personal_gain, final"] == ["0.2000 ± 0.1414"]
    labels = compare([tmp_path / "a"], measures=["personal_gain"]).labels
    said = [label for label in labels if label.startswith("personal_")]
    assert said == [
        *("personal_accuracy, final", "personal_accuracy, best", "personal_gain, final"),
        *("personal_accuracy_p10, final", "personal_accuracy_p10, best"),
    ]


def searched(path: Path, values: list[float | None], *, seed: int = 0, queries: int = 1000, extra: int = 0) -> Path:
    """A run on a black box whose minimum is 1, of rounds of 3 s that send 2^18 bytes up; None: not judged."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "client": {"kind": "fedzo", "queries": queries}})
        for number, value in enumerate(values, start=1):
            row = {"round": number, "time": 3.0 * number, "queries": queries, "extra_queries": extra}
            row |= {"bytes_up": 2**18} | ({} if value is None else {"value": value, "gap": value - 1, "f1": 0.5})
            folder.append(row)
    return path


def test_values_and_gaps_are_best_where_they_are_least_and_queries_are_summed(tmp_path):
    some, more = [3.0, None, 1.25, 1.5], [3.0, 2.0]
    comparison = compare(
        [
            searched(tmp_path / "a", some, extra=1),
            write(tmp_path / "b", [0.5]),
            searched(tmp_path / "c", more, queries=0),
        ]
    )
    cells = table(comparison)
    assert [cells[label][0] for label in ("value, final", "value, best", "gap, final", "gap, best", "f1, best")] == [
        *("1.5", "1.25", "0.5", "0.25", "0.5000"),
    ]
    assert cells["queries"] == ["4,000", "0", "0"]
    assert cells["extra queries"] == ["4", "-", "0"]
    assert list(cells).index("value, final") < list(cells).index("test_loss, final") < list(cells).index("f1, final")
    assert "extra queries" not in table(compare([tmp_path / "b", tmp_path / "c"]))


def test_a_target_says_what_it_took_until_it_was_reached_first(tmp_path):
    # Seed 0 is at 2 or below in round 3 first, having asked in all three: 9 s, 3000 queries, 0.75 MiB; seed 1 in round
    # 1. So by 3 s, 1000 queries and 0.25 MiB half of the runs of a are there, and of b, whose seed 1 never comes.
    searched(tmp_path / "a" / "seed-0", [3.0, None, 2.0, 2.5, 1.0])
    searched(tmp_path / "a" / "seed-1", [1.9, 4.0, 1.5], seed=1)
    searched(tmp_path / "b" / "seed-0", [2.0], queries=7)
    searched(tmp_path / "b" / "seed-1", [2.1, None], queries=7, seed=1)
    searched(tmp_path / "c" / "seed-0", [2.1], queries=8)
    searched(tmp_path / "d" / "seed-0", [2.1], queries=9)
    searched(tmp_path / "d" / "seed-1", [2.1], queries=9, seed=1)
    write(tmp_path / "e", [0.5])
    cells = table(compare([tmp_path], targets={"value": 2.0}))
    assert cells["until value 2"] == [""] * 5
    assert cells["rounds"] == ["1", "1 (1 of 2)", "not in 1", "not in 1 (0 of 2)", "-"]
    assert cells["queries"] == ["1,000", "7 (1 of 2)", "not in 8", "not in 9 (0 of 2)", "-"]
    # These labels are in the part above as well: of the two rows the later is here.
    assert cells["virtual time (s)"] == ["3", "3 (1 of 2)", "not in 3", "not in 3 (0 of 2)", "-"]
    assert cells["up (MiB)"] == ["0.25", "0.25 (1 of 2)", "not in 0.25", "not in 0.25 (0 of 2)", "-"]


def test_targets_of_accuracies_are_reached_upwards_and_without_queries_have_no_row_of_them(tmp_path):
    # Judged in rounds 2 and 4 only: 0.6, then 0.8.
    comparison = compare(
        [write(tmp_path / "a", [0.9, 0.6, 0.9, 0.8])], targets={"test_accuracy": 0.7, "test_loss": 0.1}
    )
    assert comparison.groups[0].runs[0].spent("test_accuracy", 0.6)[0]["rounds"] == 2
    assert comparison.groups[0].runs[0].spent("test_accuracy", 0.61)[0]["rounds"] == 4
    after = text(comparison).partition("until test_accuracy 0.7")[2]
    assert "rounds" in after
    assert "queries" not in after
    assert "not in 4" in after.partition("until test_loss 0.1")[2]


def test_a_target_that_was_not_measured_and_an_axis_that_no_run_has_are_refused(tmp_path):
    run = searched(tmp_path / "a", [3.0])
    with pytest.raises(InputError, match=r"target = test_accuracy=0.9: name one of: value, gap, f1"):
        compare([run], targets={"test_accuracy": 0.9})
    for axis in ("wall", "space"):
        with pytest.raises(InputError, match=f"along = {axis}: name one of: round, time, queries, bytes"):
            compare([run], along=[axis])
    assert draw(compare([run], along=["bytes", "queries"]), tmp_path / "c.png") == [tmp_path / "c.png"]
    with pytest.raises(InputError, match=r"name one of: round, time, bytes$"):
        compare([searched(tmp_path / "b", [3.0], queries=0)], along=["queries"])


def test_targets_are_written_as_a_measure_and_a_number():
    assert parse_targets(["test_accuracy=0.9", "gap=1e-3"]) == {"test_accuracy": 0.9, "gap": 0.001}
    for wrong in ("value", "value=", "value=low", "value=nan", "value=inf"):
        with pytest.raises(InputError, match=f"target = {wrong}: write measure=number"):
            parse_targets([wrong])
    with pytest.raises(InputError, match="value has a target already"):
        parse_targets(["value=1", "value=2"])


@pytest.mark.parametrize("width", [80, 200])
def test_more_groups_than_the_terminal_is_wide_for_are_tables_below_each_other(tmp_path, width):
    for number in range(12):
        write(tmp_path / f"group-{number:02}", [0.5], lr=0.1 * number)
    printed = text(compare([tmp_path]), width)
    assert max(map(len, printed.splitlines())) <= width
    assert [printed.count(f" group-{number:02} ") for number in range(12)] == [1] * 12
    # Each table has all rows.
    heads = sum("group-" in line for line in printed.splitlines())
    assert heads > 1 or width == 200
    assert sum(line.startswith(" client.lr ") for line in printed.splitlines()) == heads


def test_a_name_too_long_for_a_column_is_broken(tmp_path):
    write(tmp_path / ("n" * 50), [0.5])
    printed = text(compare([write(tmp_path / "short", [0.5], lr=0.2), tmp_path / ("n" * 50)]))
    assert [printed.count("n" * 22), printed.count("n" * 23)] == [2, 0]


def test_a_number_that_not_every_run_has_says_how_many_have_it(tmp_path):
    write(tmp_path / "a" / "seed-0", [0.1, 0.6], seed=0)
    with RunFolder.create(tmp_path / "a" / "seed-1", "x") as folder:
        folder.write_config({"name": "x", "seed": 1, "client": {"kind": "sgd", "lr": 0.1}})
        folder.append({"round": 1, "train_loss": 1.0})
    assert table(compare([tmp_path / "a"]))["test_accuracy, final"] == ["0.6000 (n = 1 of 2)"]


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
        ["0", "1.50"],
        ["0", "3"],
        ["0", "1"],
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
    assert drawn == [tmp_path / name for name in ("c.png", "c-costs.png", "c-trace.png", "c-timeline.png")]
    assert tuple(drawn) == places(tmp_path / "c.png")
    # Ink of both groups' colours, #4477AA and #EE6677.
    for path in (drawn[0], drawn[2]):
        points = imread(path)[..., :3]
        for colour in ((0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)):
            assert (abs(points * 255 - colour).max(axis=2) < 2).sum() > 100
    alone = draw(compare([tmp_path / "avg"]), tmp_path / "alone.png")
    # One run's timeline is less high than two runs'.
    assert imread(alone[-1]).shape[0] < imread(drawn[-1]).shape[0]


def paying(path: Path, value: float, up: int, *, lr: float, seed: int = 0, **spent: float) -> Path:
    """A run of two rounds that sends so many bytes up a round."""
    with RunFolder.create(path, "x") as folder:
        folder.write_config({"name": "x", "seed": seed, "client": {"kind": "sgd", "lr": lr}})
        for number in (1, 2):
            folder.append({"round": number, "bytes_up": up, "bytes_down": 2**20, "test_accuracy": value, **spent})
    return path


def test_none_leaves_behind_who_is_better_or_cheaper(tmp_path):
    half = 2**19
    paying(tmp_path / "few", 0.5, half, lr=0.1)
    paying(tmp_path / "same", 0.5, 3 * half, lr=0.2)  # as good as the first, for more
    paying(tmp_path / "most" / "a", 0.7, 4 * half, lr=0.3, seed=0)
    paying(tmp_path / "most" / "b", 0.9, 4 * half, lr=0.3, seed=1)
    paying(tmp_path / "worse", 0.75, 4 * half, lr=0.4)
    paying(tmp_path / "twin", 0.8, 4 * half, lr=0.5)
    paying(tmp_path / "lost", math.nan, 0, lr=0.6)
    comparison = compare(tmp_path)
    # Two rounds: 1, 3 and 4 MiB; all are sent the same down, so that is no cost to weigh.
    (front,) = comparison.fronts
    assert (front.label, front.cost) == ("test_accuracy, final", "up (MiB)")
    assert front.behind == {"few": None, "twin": None, "most": None, "worse": "most", "same": "few"}
    assert front.on == ["few", "most", "twin"]
    found = {group.name: front.cell(group.name) for group in comparison.groups}
    assert found == {
        "few": "on the front",
        "lost": "-",
        "most": "on the front",
        "same": "behind few",
        "twin": "on the front",
        "worse": "behind most",
    }
    assert "behind few" in text(comparison, 300)
    drawn = draw(comparison, tmp_path / "c.png")
    assert drawn[1] == tmp_path / "c-costs.png"


def test_of_losses_the_least_is_on_the_front_and_privacy_is_a_cost(tmp_path):
    paying(tmp_path / "free", 0.9, 1, lr=0.1)
    paying(tmp_path / "tight", 0.2, 1, lr=0.2, epsilon=1.0, test_loss=3.0)
    paying(tmp_path / "loose", 0.3, 1, lr=0.3, epsilon=8.0, test_loss=4.0)
    comparison = compare(tmp_path, measures=["test_accuracy", "test_loss"])
    found = {front.label: front.behind for front in comparison.fronts if front.cost == "privacy, epsilon"}
    assert found["test_accuracy, final"] == {"tight": None, "loose": None}
    assert found["test_loss, final"] == {"tight": None, "loose": "tight"}
    panel = panels_of(comparison.groups, comparison.fronts)[0]
    assert panel.groups["free"] == ((), (0.9,))
    assert panel.groups["loose"] == ((8.0,), (0.3,))


def test_runs_without_traces_have_the_curves_alone(tmp_path):
    comparison = compare([write(tmp_path / "a", [0.5, 0.6]), write(tmp_path / "b", [0.5, 0.7], lr=1.0)])
    assert draw(comparison, tmp_path / "c.png") == [tmp_path / "c.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c.png"]
    (tmp_path / "d.png").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        draw(comparison, tmp_path / "d.png")


@pytest.mark.parametrize("name", ["absent/c.png", "file/c.png"])
def test_a_picture_that_has_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out = .*c.png: .* is not a folder"):
        places(tmp_path / name)


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


def test_runs_are_found_as_deep_as_they_are_listed(tmp_path):
    write(tmp_path / "1" / "2" / "3" / "4" / "5" / "a", [0.5])
    (group,) = compare([tmp_path]).groups
    assert [run.path for run in group.runs] == [run.folder for run in listed([tmp_path])]


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


def small(seed: int, lr: float, out: Path | None = None) -> fedsim.Result:
    """A result of two rounds on a small problem; without a folder where none is named."""
    client = {"kind": "sgd", "epochs": 1, "lr": lr}
    parts = {"name": "<b>small", "seed": seed, "rounds": 2, "client": client}
    return fedsim.run(**parts, problem=small_problem(), out=out, save=out is not None)


def test_results_are_compared_as_their_folders_are(tmp_path):
    saved = [small(seed, lr, tmp_path / f"{lr}" / f"seed-{seed}") for lr in (0.1, 0.2) for seed in (0, 1)]
    kept = [small(seed, lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    read = fedsim.compare([str(tmp_path)])
    for given in (saved, kept, [*saved, saved[0]], tmp_path):
        compared = fedsim.compare(given, targets={"test_accuracy": 0.1})
        assert [[run.seed for run in group.runs] for group in compared.groups] == [[0, 1], [0, 1]]
        for group, wanted in zip(compared.groups, read.groups, strict=True):
            assert {name: found for name, found in group.numbers.items() if name != "wall time (s)"} == {
                name: found for name, found in wanted.numbers.items() if name != "wall time (s)"
            }
            assert [run.trace for run in group.runs] == [run.trace for run in wanted.runs]
        assert compared.differing == {"client.lr": (0.1, 0.2)}
    assert [group.name for group in fedsim.compare(kept).groups] == ["<b>small", "<b>small (2)"]
    both = fedsim.compare([saved[0], saved[1], kept[2]])
    assert [group.name for group in both.groups] == ["0.1", "<b>small"]


def test_a_comparison_shows_itself(tmp_path):
    compared = fedsim.compare([small(0, 0.1), small(1, 0.1), small(0, 0.2)], targets={"test_accuracy": 0.0})
    assert repr(compared) == "Comparison(2 groups of 3 runs: <b>small, <b>small (2))"
    page = compared._repr_html_()
    assert page.startswith("<table><thead><tr><th></th><th>&lt;b&gt;small</th><th>&lt;b&gt;small (2)</th></tr></thead>")
    assert "<tr><td>seeds</td><td>2 (0, 1)</td><td>1 (0)</td></tr>" in page
    assert "<tr><td>rounds until test_accuracy 0</td><td>1</td><td>1</td></tr>" in page
    assert "<tr><td>client.lr</td><td>0.1</td><td>0.2</td></tr>" in page
    assert "<b>" not in page
    assert compared.plot()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("runs", [3, [3]])
def test_what_is_neither_a_result_nor_a_path_is_refused(runs):
    with pytest.raises(InputError, match="runs = int: hand over results, or name run folders"):
        fedsim.compare(runs)


def test_rows_that_lack_what_runs_write_are_compared_by_what_they_have(tmp_path):
    """As other programs write them, or an editor has left them."""
    for name, rows in {
        "a": ['{"round": 1, "train_loss": 2.0, "staleness": 0.5, "time": null}', '{"train_loss": 1.0}']
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("seed = 0\n")
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    compared = compare(tmp_path / "a", targets={"train_loss": 1.5})
    numbers = compared.groups[0].runs[0].numbers
    assert numbers["train_loss, final"] == 1.0
    assert "staleness, mean" not in numbers
    assert compared.groups[0].runs[0].spent("train_loss", 1.5) == ({}, True)

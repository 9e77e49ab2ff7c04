"""What a comparison says of its groups: by which tests, corrected for how many, and in which words."""

from __future__ import annotations

import csv
import math
from itertools import chain

import pytest

from fedsim.core.errors import InputError
from fedsim.core.files import StorageError
from fedsim.reports.comparison import Comparison
from fedsim.reports.numbers import Group, Run
from fedsim.reports.sheet import Sheet, format_of
from fedsim.running.history import History

SEEDS = (0.0, 0.004, -0.003, 0.002, -0.001)
"""What five seeds add to a group's accuracy."""


def group(name, values, *, first=0, ended="finished", **others):
    """Runs with these final accuracies, and their rounds; `others`: more columns of the last row."""
    runs = []
    for place, value in enumerate(values):
        last = {"round": 2, "test_accuracy": value} | {key: column[place] for key, column in others.items()}
        history = History([{"round": 1, "test_accuracy": 0.1}, last])
        runs.append(Run(None, first + place, {"name": name}, history, came={"status": ended}))
    return Group(name, tuple(runs))


def compared(*groups, tested=("test_accuracy, final",), **options):
    return Comparison(groups, tested=tested, **options)


def around(mean, by=SEEDS):
    """A value a seed."""
    return [mean + away for away in by]


NOISE = (0.001, -0.001, 0.002, 0.0, -0.002)


def test_two_groups_are_told_apart_in_words_that_can_be_quoted():
    better = [value + 0.012 + noise for value, noise in zip(around(0.9), NOISE, strict=True)]
    (line,) = compared(group("fedavg", around(0.9)), group("fedprox", better)).tests.lines
    # Differences 0.012 + noise: mean 0.012, s = sqrt(10 / 4) / 1000; t(4) = 2.776: 2.776 s / sqrt(5) = 0.00196.
    # t = 0.012 / (s / sqrt(5)) = 16.97, p = 0.00007.
    assert line == (
        "test_accuracy, final: fedprox is better than fedavg by 1.20 points (1.00 to 1.40), p < 0.001, 5 paired seeds"
    )
    ninety = compared(group("fedavg", around(0.9)), group("fedprox", better), level=0.9)
    assert "by 1.20 points (90 %: 1.05 to 1.35)" in ninety.tests.lines[0]
    loss = [1 - value for value in better]
    groups = group("a", around(0.9), test_loss=loss), group("b", around(0.9), test_loss=around(0.2))
    (line,) = compared(*groups, tested=("test_loss, final",)).tests.lines
    assert line.startswith("test_loss, final: a is better than b by 0.1128 (")


def test_what_chance_explains_is_not_told_apart():
    other = [value + noise for value, noise in zip(around(0.9005), (0.01, -0.01, 0.02, -0.02, 0.001), strict=True)]
    (line,) = compared(group("a", around(0.9)), group("b", other)).tests.lines
    # Mean 0.0007, s = 0.01583: 2.776 s / sqrt(5) = 0.0197.
    assert line == (
        "test_accuracy, final: 5 paired seeds cannot tell b and a apart:"
        " b is ahead by 0.1 points (-1.9 to 2.0), p = 0.93"
    )


def test_other_seeds_ranks_and_single_runs_are_named():
    ours, others = group("a", around(0.9)), group("b", around(0.8), first=7)
    assert compared(ours, others).tests.lines[0].endswith("p < 0.001, 5 and 5 unpaired seeds")
    six = [*around(0.9), 0.91]
    apart = compared(group("a", [*six[:5], math.nan]), group("b", [value - 0.1 - value / 9 for value in six]))
    assert apart.tests.lines == [
        "test_accuracy, final: 6 paired seeds by their ranks cannot tell a and b apart: p = 0.44"
    ]
    below = compared(group("a", [*six[:5], math.nan]), group("b", [*(value + value / 9 for value in six[:5]), 0.1]))
    assert below.tests.lines == ["test_accuracy, final: b is better than a, p = 0.031, 6 paired seeds by their ranks"]
    alone = compared(group("a", [0.5]), group("b", [0.6]), group("c", [0.7]))
    assert alone.tests.lines == [
        "test_accuracy, final: no test, as one seed has no spread; run several seeds, as with --seeds 0-4"
    ]
    assert compared(ours).tests.lines == []


def test_a_run_that_diverged_has_no_final_value_but_that_which_it_had_when_it_was_judged_last():
    gone = group("gone", around(0.99), ended="diverged")
    assert all(math.isnan(value) for value in gone.numbers["test_accuracy, final"].values)
    (line,) = compared(group("kept", around(0.5)), gone).tests.lines
    assert line == (
        "test_accuracy, final: no test, as values are not finite, and ranks of fewer than 6 pairs say nothing"
    )


def test_all_pairs_and_measures_are_one_family():
    groups = [
        group(name, around(mean, by), test_loss=around(1 - mean, by))
        for name, mean, by in (("a", 0.9, SEEDS), ("b", 0.902, NOISE), ("c", 0.85, NOISE[::-1]))
    ]
    alone, both = (compared(*groups, tested=tested).tests for tested in LABELS)
    raw = [pair.difference.p for pair in both.pairs]
    assert [pair.family for pair in alone.pairs] == [3, 3, 3]
    assert [pair.family for pair in both.pairs] == [6] * 6
    assert min(pair.p for pair in both.pairs) == pytest.approx(6 * min(raw))
    assert min(pair.p for pair in alone.pairs) == pytest.approx(3 * min(raw[:3]))
    assert alone.lines[0] == "test_accuracy, final: b is ahead, but is not told from a"
    assert "after Holm" in alone.lines[1]
    frame = both.to_pandas()
    assert list(frame["p_holm"]) == [pair.p for pair in both.pairs]
    assert list(frame["better"].fillna("-")) == [pair.better or "-" for pair in both.pairs]


def test_what_only_an_uncorrected_p_tells_is_not_told():
    noisy = [0.9 + 0.0045 + noise for noise in (0.004, -0.004, 0.003, -0.002, 0.0)]
    two = group("a", [0.9, 0.9, 0.9, 0.9, 0.901]), group("b", noisy)
    (pair,) = compared(*two).tests.pairs
    assert 0.02 < pair.p == pair.difference.p <= 0.05
    assert pair.better == "b"
    three = compared(*two, group("c", around(0.902, (0.0, 0.003, -0.003, 0.002, -0.002)))).tests
    assert [pair.better for pair in three.pairs] == [None] * 3
    assert "5 paired seeds cannot tell b and a apart" in three.lines[1]
    assert compared(*two, level=0.99).tests.pairs[0].better is None


LABELS = (("test_accuracy, final",), ("test_accuracy, final", "test_loss, final"))


def test_of_many_groups_those_pairs_are_told_in_which_the_best_is():
    spread = [[number * away for away in NOISE] for number in range(6)]
    groups = [group(f"g{number}", around(0.5 + 0.05 * number, by)) for number, by in enumerate(spread)]
    head, *lines = compared(*groups).tests.lines
    assert head == "test_accuracy, final: g5 is better than each of the other 5"
    assert [line.split()[6] for line in lines] == ["g0", "g1", "g2", "g3", "g4"]
    assert len(compared(*groups[:4]).tests.lines) == 1 + 6
    rest = [group(f"h{number}", around(0.7, [value * 200 for value in spread[number]])) for number in range(1, 6)]
    many = compared(*groups, *rest, group("h6", around(0.7, [value * 500 for value in NOISE]))).tests
    assert many.lines[0] == "test_accuracy, final: g5 is ahead, but is not told from h1, h2, h3, h4, h5 and 1 more"
    # Of eleven pairs those in which p is highest: the widest ones.
    assert [line.split("g5 and ")[1].split()[0] for line in many.lines[1:]] == ["h2", "h3", "h4", "h5", "h6"]
    assert len(many.shown("test_accuracy, final")) == 11


def test_bold_is_what_is_better_than_all_others_and_nothing_where_seeds_cannot_tell(tmp_path):
    told = compared(group("a_1", around(0.9)), group("b", around(0.8, NOISE)), targets={"test_accuracy": 0.85})
    told.export(tmp_path / "t.tex")
    lines = (tmp_path / "t.tex").read_text().splitlines()
    assert lines[5:] == [
        r"\toprule",
        r" & seeds & test accuracy $\uparrow$ & rounds until test accuracy 0.85 \\",
        r"\midrule",
        r"a\_1 & 5 & \textbf{0.9004 $\pm$ 0.0027} & 2 \\",
        r"b & 5 & 0.8000 $\pm$ 0.0016 & not in 2 (0 of 5) \\",
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]
    assert lines[3].startswith(r"\caption{$\pm$: one sample standard deviation over the seeds; until: median")
    assert lines[3].endswith("bold: better than every other, by paired t, p at most 0.05.}")
    assert "not in x: fewer than half of the runs came there in x" in lines[3]
    open_ = compared(group("a", around(0.9)), group("b", around(0.9, NOISE)))
    open_.export(tmp_path / "t.md")
    assert (tmp_path / "t.md").read_text().splitlines()[:4] == [
        "|  | seeds | test accuracy ↑ |",
        "| --- | ---: | ---: |",
        "| a | 5 | 0.9004 ± 0.0027 |",
        "| b | 5 | 0.9000 ± 0.0016 |",
    ]
    assert "not in x" not in open_.sheet.caption


def test_signs_that_mean_something_are_escaped():
    sheet = Sheet(("", "100 %_{#}"), [["a|b*c\\", "~^$&<"]], frozenset({(0, 1)}), "")
    assert r"100 \%\_\{\#\}" in sheet.latex()
    assert (
        r"a\textbar{}b*c\textbackslash{} & \textbf{\textasciitilde{}\textasciicircum{}\$\&\textless{}}" in sheet.latex()
    )
    assert sheet.markdown().splitlines()[2] == r"| a\|b\*c\\ | **\~^$&\<** |"
    assert r"\caption" not in sheet.latex()


def test_a_spreadsheet_has_all_numbers(tmp_path):
    both = compared(group("a", around(0.9)), group("b", around(0.8), ended="stalled"), targets={"test_accuracy": 0.9})
    both.export(tmp_path / "t.csv")
    lines = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    rows = {(row["group"], row["number"]): row for row in lines}
    final = rows["a", "test_accuracy, final"]
    interval = both.intervals["test_accuracy, final"][0]
    assert [float(final[name]) for name in ("low", "high")] == [interval.low, interval.high]
    assert (final["runs"], final["interval"], float(final["mean"])) == ("5", "t", pytest.approx(0.9004))
    until = "rounds until test_accuracy 0.9"
    assert [rows[name, until][key] for name in "ab" for key in ("median", "reached")] == ["2.0", "3", "", "0"]
    frame = both.to_pandas()
    assert list(frame["seed"]) == [*range(5), *range(5)]
    assert list(frame["test_accuracy, final"]) == [*chain(around(0.9), around(0.8))]


def test_runs_that_ended_badly_wait_as_long_as_the_others():
    """One of three is there in round 2, one is not until round 9; one diverged in round 1, and never would be."""
    runs = [Run(None, seed, {}, History(rows), came={"status": ended}) for seed, (rows, ended) in enumerate(ENDS)]
    (spent,) = Group("g", tuple(runs)).spent("test_accuracy", 0.9).values()
    assert (spent.values, spent.reached) == ((2, 9, 9), (True, False, False))
    # As if it could still have come there, half of those left would be there by round 2.
    assert spent.median is None


ENDS = [
    ([{"round": 2, "test_accuracy": 0.9}, {"round": 9, "test_accuracy": 0.9}], "finished"),
    ([{"round": 9, "test_accuracy": 0.8}], "finished"),
    ([{"round": 1, "test_accuracy": 0.1}], "diverged"),
]


def test_other_endings_and_places_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"to = t.xls: let the name end in one of .tex, .md, .csv"):
        format_of(tmp_path.relative_to(tmp_path) / "t.xls")
    with pytest.raises(StorageError, match="cannot write"):
        compared(group("a", [0.5])).export(tmp_path / "absent" / "t.md")

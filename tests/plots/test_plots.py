"""Pictures are drawn whatever was measured, show what they should and touch no global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from traces import after, ended, every, everybody, schedule

from fedsim import plots
from fedsim.core.errors import InputError
from fedsim.core.files import StorageError


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved, to look into."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def row(number: int, **measured: object) -> dict[str, object]:
    return {
        "round": number,
        "time": 1.0 * number,
        "wall": 0.1,
        "clients": 10,
        "bytes_up": 1,
        "queries": 0,
        **measured,
    }


def assert_is_picture(path: Path) -> None:
    """At least 400 x 250 points, and ink on between 0.5 % and 95 % of them: not a blank sheet, not a blot."""
    points = imread(path)[..., :3]
    assert points.shape[0] >= 250
    assert points.shape[1] >= 400
    assert 0.005 < np.mean(points.min(axis=2) < 0.97) < 0.95


def lines(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axis.lines}


def test_curves_show_each_number_at_its_round(tmp_path, figures):
    rows = [
        row(1, train_loss=2.0, client_accuracy_worst=0.0),
        row(
            2,
            train_loss=1.5,
            test_loss=1.8,
            test_accuracy=0.5,
            client_accuracy_mean=0.4,
            client_accuracy_p10=0.1,
        ),
        row(3, train_loss=None),
        row(
            4,
            train_loss=1.0,
            test_loss=1.2,
            test_accuracy=0.7,
            client_accuracy_mean=0.6,
            client_accuracy_p10=0.3,
        ),
    ]
    assert plots.curves(rows, tmp_path / "curves.png")
    assert_is_picture(tmp_path / "curves.png")
    loss, accuracy = figures[0].axes
    assert lines(loss) == {"local training": [(1, 2.0), (2, 1.5), (4, 1.0)], "test set": [(2, 1.8), (4, 1.2)]}
    # The worst client has no line, and the 10th percentile is the lower edge of a band.
    assert lines(accuracy) == {"test set": [(2, 0.5), (4, 0.7)], "clients, mean": [(2, 0.4), (4, 0.6)]}
    (band,) = accuracy.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (2, 0.1),
        (4, 0.3),
        (2, 0.4),
        (4, 0.6),
    }
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy (share of examples)")


def test_curves_without_accuracy_have_one_panel(tmp_path, figures):
    assert plots.curves([row(1, train_loss=2.0), row(2, train_loss=1.0)], tmp_path / "curves.png")
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["loss"]


def test_other_metrics_get_panels_of_their_own_and_wide_ranges_a_logarithm(tmp_path, figures):
    rows = [row(number, test_gap=10.0**-number, test_distance=1.0 / number) for number in range(1, 9)]
    assert plots.curves(rows, tmp_path / "curves.png")
    assert_is_picture(tmp_path / "curves.png")
    assert [(axis.get_ylabel(), axis.get_yscale()) for axis in figures[0].axes] == [
        ("gap", "log"),
        ("distance", "linear"),
    ]


def test_a_single_round_is_a_visible_point(tmp_path):
    assert plots.curves([row(1, train_loss=2.0, client_accuracy_mean=0.5, client_accuracy_p10=0.2)], tmp_path / "a.png")
    assert_is_picture(tmp_path / "a.png")


@pytest.mark.parametrize("rows", [[], [row(1)], [row(1, train_loss=None)]])
def test_nothing_measured_is_no_picture(tmp_path, rows):
    assert not plots.curves(rows, tmp_path / "curves.png")
    assert not plots.compare_curves({"a": [rows]}, tmp_path / "compare.png")
    assert not list(tmp_path.iterdir())


def test_a_strategys_own_numbers_are_shown_only_when_nothing_else_is(tmp_path):
    assert plots.measured(["round", "train_loss", "drift", "value", "f1", "accepted"]) == ["train_loss", "value", "f1"]
    assert plots.measured(["round", "wall", "drift", "failed", "late", "extra_queries", "staleness"]) == ["drift"]


def test_the_global_model_on_the_training_set_is_not_the_clients_loss_while_they_train(tmp_path, figures):
    rows = [row(1, train_loss=1.0, global_train_loss=3.0), row(2, train_loss=0.5, global_train_loss=2.0)]
    assert plots.curves(rows, tmp_path / "curves.png")
    assert plots.compare_curves({"a": [rows]}, tmp_path / "compare.png")
    alone, *beside = [axis for figure in figures for axis in figure.axes]
    assert lines(alone) == {"local training": [(1, 1.0), (2, 0.5)], "training set": [(1, 3.0), (2, 2.0)]}
    assert len({line.get_color() for line in alone.lines}) == 2
    assert [axis.get_title(loc="left") for axis in beside] == ["local training", "training set"]
    assert [axis.get_ylabel() for axis in beside] == ["loss", "loss"]


def test_compared_groups_have_mean_and_deviation_at_common_rounds(tmp_path, figures):
    group = [
        [row(1, test_accuracy=0.2), row(2, test_accuracy=0.5), row(3, test_accuracy=0.9)],
        [row(1, test_accuracy=0.4), row(2, test_accuracy=0.7)],
    ]
    single = [[row(1, test_accuracy=0.1, train_loss=1.0), row(2, test_accuracy=0.2, train_loss=0.5)]]
    assert plots.compare_curves({"two": group, "one": single}, tmp_path / "compare.png")
    assert_is_picture(tmp_path / "compare.png")
    loss, accuracy = figures[0].axes
    (first, second) = accuracy.lines
    np.testing.assert_allclose(first.get_xydata(), [(1, 0.3), (2, 0.6)])
    np.testing.assert_allclose(second.get_xydata(), [(1, 0.1), (2, 0.2)])
    # Two values a distance 0.2 apart deviate by 0.2 / sqrt(2) = 0.1414 from their mean, with n - 1 = 1.
    (band,) = accuracy.collections
    corners = {tuple(np.round(point, 4)) for point in band.get_paths()[0].vertices}
    assert corners == {(1, 0.1586), (1, 0.4414), (2, 0.4586), (2, 0.7414)}
    assert len(loss.lines) == 1
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["two (2 seeds)", "one"]


def test_against_time_a_run_has_what_it_measured_last(tmp_path, figures):
    # Seed 0 has 0.2 from 1 s on, 0.6 from 3 s and 0.8 from 4 s; seed 1 has 0.4 from 2 s and 1.0 from 5 s. Both have
    # a number from 2 s to 4 s: (0.2 + 0.4) / 2 = 0.3 at 2 s, (0.6 + 0.4) / 2 = 0.5 at 3 s, (0.8 + 0.4) / 2 at 4 s.
    group = [
        [row(number, time=time, test_accuracy=value) for number, time, value in seed]
        for seed in ([(1, 1.0, 0.2), (2, 3.0, 0.6), (3, 4.0, 0.8)], [(1, 2.0, 0.4), (2, 5.0, 1.0)])
    ]
    # Two server steps at 3 s: the later one's number holds.
    single = [[row(1, time=3.0, test_accuracy=0.1), row(2, time=3.0, test_accuracy=0.2)]]
    assert plots.compare_curves({"two": group, "one": single}, tmp_path / "compare.png")
    assert_is_picture(tmp_path / "compare.png")
    by_round, by_time = figures[0].axes
    assert (by_round.get_xlabel(), by_time.get_xlabel()) == ("round", "virtual time (s)")
    first, second = by_time.lines
    np.testing.assert_allclose(first.get_xydata(), [(2, 0.3), (3, 0.5), (4, 0.6)])
    np.testing.assert_allclose(second.get_xydata(), [(3, 0.2)])
    assert {line.get_drawstyle() for line in by_time.lines} == {"steps-post"}
    np.testing.assert_allclose(by_round.lines[0].get_xydata(), [(1, 0.3), (2, 0.8)])
    # At 2 s the seeds are 0.2 apart, s = 0.2 / sqrt(2) = 0.1414, and at 4 s they are 0.4 apart, s = 0.2828.
    (band,) = by_time.collections
    corners = {tuple(np.round(point, 4)) for point in band.get_paths()[0].vertices}
    assert {(2, 0.1586), (2, 0.4414), (4, 0.3172), (4, 0.8828)} <= corners
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["two (2 seeds)", "one"]


@pytest.mark.parametrize(
    ("factors", "panels"),
    [([1.0, 1.0], 1), ([0.2, 0.2], 1), ([1.0, 0.2], 2), ([None, None], 1), ([1.0, None], 1), ([None, 0.0], 1)],
)
def test_time_has_panels_where_it_is_not_the_round_in_another_unit(tmp_path, figures, factors, panels):
    runs = {
        str(place): [[row(n, time=factor and factor * n, test_loss=1.0 / n) for n in (1, 2, 3)]]
        for place, factor in enumerate(factors)
    }
    assert plots.compare_curves(runs, tmp_path / "compare.png")
    assert len(figures[0].axes) == panels
    assert len(figures[0].axes[0].lines) == 2


def test_a_measure_of_rows_without_a_time_has_no_time_panel(tmp_path, figures):
    timed = [row(1, time=0.5, test_loss=1.0), row(2, time=4.0, test_loss=1.0)]
    assert plots.compare_curves({"a": [[*timed, row(3, time=None, test_accuracy=0.5)]]}, tmp_path / "compare.png")
    assert [(axis.get_ylabel()[:4], axis.get_xlabel()[:4]) for axis in figures[0].axes] == [
        ("loss", "roun"),
        ("", "virt"),  # the axis is that of the panel beside it
        ("accu", "roun"),
    ]


def test_a_black_box_has_panels_of_its_value_and_its_gap(tmp_path, figures):
    rows = [
        row(n, value=v, gap=v + 2, client_value_p90=v + 1, client_value_worst=9.0, train_loss=v, cosine=0.001 * 10**n)
        for n, v in ((1, 8.0), (2, -1.0), (3, -2.0 + 1e-9), (4, -2.0))
    ]
    assert plots.curves(rows, tmp_path / "curves.png")
    assert_is_picture(tmp_path / "curves.png")
    value, gap, loss, cosine = figures[0].axes
    assert [axis.get_ylabel() for axis in (value, gap, loss, cosine)] == ["value", "gap F − F*", "loss", "cosine"]
    assert list(lines(value)) == ["value of F", "clients, 90th percentile"]
    # A gap of 10 to 1e-9 spans more than 100 times, though it closes in the end; a cosine is on a linear axis.
    assert [axis.get_yscale() for axis in (value, gap, loss, cosine)] == ["linear", "log", "linear", "linear"]
    assert gap.get_ylim()[0] == pytest.approx(1e-9 / 1.5)
    assert plots.curves([row(1, value=1.0, gap=3.0), row(2, value=-1.0, gap=1.0)], tmp_path / "curves.png")
    assert [(axis.get_ylabel(), axis.get_yscale()) for axis in figures[1].axes] == [
        ("value of F", "linear"),
        ("gap F − F*", "linear"),
    ]


def counted(queries: list[int], bytes_up: list[int], values: list[float | None]) -> list[dict[str, object]]:
    """Rows of rounds with so many queries and bytes each; a round without a value was not judged."""
    return [
        row(n, queries=q, bytes_up=b, **({} if value is None else {"value": value}))
        for n, (q, b, value) in enumerate(zip(queries, bytes_up, values, strict=True), start=1)
    ]


def test_against_queries_and_bytes_stand_the_sums_over_all_rounds(tmp_path, figures):
    # Judged after rounds 2 and 3: 10 + 20 = 30 and 60 queries, 8 and 12 bytes. The other seed's first round asks
    # nothing: at 20 and 60 queries, 8 and 12 bytes. From 30 queries on both have a value: 4 and 6, then 1 and 3.
    searched = [
        counted([10, 20, 30], [4, 4, 4], [None, 4.0, 1.0]),
        counted([0, 20, 40], [4, 4, 4], [None, 6.0, 3.0]),
    ]
    trained = [counted([0, 0, 0], [400, 400, 400], [None, 3.0, 2.0])]
    runs = {"searched": searched, "trained": trained}
    assert plots.axes_of(runs) == {"round": True, "time": False, "queries": True, "bytes": True}
    assert plots.compare_curves(runs, tmp_path / "compare.png")
    assert_is_picture(tmp_path / "compare.png")
    by_round, by_queries, by_bytes = figures[0].axes
    np.testing.assert_array_equal(by_round.lines[0].get_xydata(), [(2, 5.0), (3, 2.0)])
    (line,) = by_queries.lines  # who asks nothing has no line there
    np.testing.assert_array_equal(line.get_xydata(), [(30, 5.0), (60, 2.0)])
    first, second = by_bytes.lines
    np.testing.assert_array_equal(first.get_xydata(), [(8, 5.0), (12, 2.0)])
    np.testing.assert_array_equal(second.get_xydata(), [(800, 3.0), (1200, 2.0)])
    assert {line.get_drawstyle() for line in (line, first, second)} == {"steps-post"}
    assert [axis.get_xscale() for axis in (by_round, by_queries, by_bytes)] == ["linear", "linear", "log"]
    assert by_queries.get_xlabel() == "queries of all clients, extra ones included"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["searched (2 seeds)", "trained"]


@pytest.mark.parametrize(("queries", "scale"), [(100, "linear"), (101, "log")])
def test_queries_are_on_a_logarithmic_axis_where_some_run_asks_far_more(tmp_path, figures, queries, scale):
    runs = {str(q): [counted([q, q], [1, 1], [2.0, 1.0])] for q in (1, queries)}
    assert plots.compare_curves(runs, tmp_path / "compare.png", ["queries"])
    assert [axis.get_xscale() for axis in figures[0].axes] == [scale]


@pytest.mark.parametrize(("rates", "shown"), [([4, 8], False), ([4, 9], True), ([0, 4], False)])
def test_bytes_are_an_axis_where_a_round_takes_more_than_twice_as_many(rates, shown):
    """A longer run does not take more a round."""
    runs = {str(rate): [counted([0] * rounds, [rate] * rounds, [1.0] * rounds) for rounds in (1, 5)] for rate in rates}
    assert plots.axes_of(runs)["bytes"] is shown


def test_costs_are_points_with_their_deviation_and_a_staircase_along_the_front(tmp_path, figures):
    groups = {"cheap": ((1.0,), (0.5,)), "dear": ((200.0, 400.0), (0.7, 0.9)), "bad": ((50.0,), (0.4,))}
    panel = plots.Panel("test_accuracy, final", "up (MiB)", groups | {"free": ((), (0.95,))}, ["cheap", "dear"])
    assert plots.costs([panel], tmp_path / "c.png")
    assert_is_picture(tmp_path / "c.png")
    (axis,) = figures[0].axes
    assert axis.get_xscale() == "log"
    assert axis.get_ylabel() == "test accuracy, final"
    points = [tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() == "o"]
    assert points == [(1.0, 0.5), (300.0, pytest.approx(0.8)), (50.0, 0.4)]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [0.95]
    (stairs,) = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    assert stairs.get_xydata().tolist() == [[1.0, 0.5], [300.0, pytest.approx(0.8)]]
    # 200 and 400: s = 141.42; 0.7 and 0.9: s = 0.1414.
    across, along = (bar.get_segments()[0] for bar in axis.collections)
    assert (across[1] - across[0])[0] == pytest.approx(2 * 141.42, abs=0.01)
    assert (along[1] - along[0])[1] == pytest.approx(2 * 0.14142, abs=1e-4)
    assert not plots.costs([], tmp_path / "none.png")


def test_down_and_epsilon_are_axes_where_they_are_told(tmp_path, figures):
    rows = [row(n, bytes_down=2**20, epsilon=0.5 * n, test_accuracy=0.1 * n) for n in (1, 2)]
    assert plots.axes_of({"a": [rows]})["epsilon"]
    assert plots.compare_curves({"a": [rows]}, tmp_path / "c.png", ["down", "epsilon"])
    down, epsilon = figures[0].axes
    assert down.lines[0].get_xydata().tolist() == [[2.0**20, 0.1], [2.0**21, 0.2]]
    assert epsilon.lines[0].get_xydata().tolist() == [[0.5, 0.1], [1.0, 0.2]]


def test_axes_that_no_run_has_are_no_axes():
    silent = [[{"round": 1, "train_loss": 1.0}]]
    assert plots.axes_of({"a": silent}) == {"round": True}


def test_axes_are_those_asked_for_in_that_order(tmp_path, figures):
    runs = {"a": [counted([1, 1], [5, 5], [2.0, 1.0])]}
    assert plots.compare_curves(runs, tmp_path / "compare.png", ["bytes", "round"])
    by_bytes, by_round = figures[0].axes
    assert [tuple(point) for point in by_bytes.lines[0].get_xydata()] == [(5, 2.0), (10, 1.0)]
    assert (by_bytes.get_ylabel(), by_round.get_ylabel(), by_round.get_xlabel()) == ("value of F", "", "round")


def test_of_many_measures_the_main_ones_are_compared(tmp_path, figures):
    names = ["recall", "cosine", "client_value_p90", "gap", "train_loss", "value", "client_value_worst"]
    assert plots.compare_curves({"a": [[row(n, **dict.fromkeys(names, 1.0 / n)) for n in (1, 2)]]}, tmp_path / "c.png")
    # What the axis says is not said above it.
    assert [(axis.get_title(loc="left"), axis.get_ylabel()) for axis in figures[0].axes] == [
        ("", "value of F"),
        ("", "gap F − F*"),
        ("local training", "loss"),
        ("", "recall"),
    ]


@pytest.mark.parametrize(("groups", "length"), [(2, 5), (4, 60), (30, 20), (3, 300)])
def test_the_whole_legend_is_in_the_picture(tmp_path, figures, groups, length):
    runs = {f"{number:02}-{'n' * length}": [[row(1, value=1.0), row(2, value=2.0)]] for number in range(groups)}
    assert plots.compare_curves(runs, tmp_path / "c.png")
    (figure,) = figures
    extent, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width
    assert 0 <= extent.y0 < extent.y1 <= panel.y0
    assert panel.height > 200 * figure.dpi / 150  # the legend takes nothing from the panel


def test_few_clients_are_bars_whose_lengths_are_counts(tmp_path, figures):
    labels = np.array([0, 1, 1, 2, 2, 2])
    # Client 0 has examples 5, 0, 1 (labels 2, 0, 1); client 1 nothing; client 2 examples 2, 3 (labels 1, 2).
    called = ["a hospital", "$b", "c" * 30]
    dealt = plots.Dealt(labels, np.array([0, 3, 3, 5]), np.array([5, 0, 1, 2, 3]), "012", called)
    plots.label_distribution(dealt, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    widths = [[bar.get_width() for bar in bars] for bars in figures[0].axes[0].containers]
    assert widths == [[1, 0, 0], [1, 0, 1], [1, 0, 1]]  # by class, then by client
    shown = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert shown == ["a hospital", r"\$b", f"{'c' * 21}..."]
    assert figures[0].axes[0].get_xlabel() == "examples"


@pytest.mark.parametrize(("counted", "kind"), [("examples", "class"), ("places", "class"), ("tags", "tag")])
def test_a_picture_of_labels_says_what_is_counted(counted, kind, tmp_path, figures):
    """In bars, and in a heat map of so many classes that it needs one."""
    for classes in ("012", [str(number) for number in range(62)]):
        dealt = plots.Dealt(np.arange(3), np.array([0, 2, 3]), np.arange(3), classes, counted=counted)
        plots.label_distribution(dealt, tmp_path / "p.png")
    bars, map_ = figures
    assert (bars.axes[0].get_xlabel(), bars.legends[0].get_title().get_text()) == (counted, kind)
    above, below, colours = map_.axes
    assert (above.get_ylabel(), below.get_ylabel()) == (kind, counted)
    assert colours.get_ylabel() == f"share of the client's {counted}"


def test_many_clients_are_a_heat_map_of_shares(tmp_path, figures):
    # Client c of 100 has c + 1 examples, all of class c mod 4, but client 7 has none.
    sizes = np.arange(1, 101)
    sizes[7] = 0
    labels = np.repeat(np.arange(100) % 4, sizes)
    dealt = plots.Dealt(labels, np.concatenate(([0], np.cumsum(sizes))), np.arange(len(labels)), "0123")
    plots.label_distribution(dealt, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    above, below = figures[0].axes[:2]
    expected = np.eye(4)[np.arange(100) % 4].T
    expected[:, 7] = np.nan
    np.testing.assert_array_equal(above.images[0].get_array().filled(np.nan), expected)
    assert above.get_title(loc="left") == "Labels of 100 clients"
    np.testing.assert_array_equal(below.patches[0].get_data().values, sizes)


def test_a_hundred_thousand_clients_are_sampled_and_the_title_says_so(tmp_path, figures):
    clients = 100_000
    labels = np.repeat(np.arange(clients) % 10, 3)
    dealt = plots.Dealt(labels, np.arange(clients + 1) * 3, np.arange(3 * clients), "0123456789")
    plots.label_distribution(dealt, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    above = figures[0].axes[0]
    assert above.get_title(loc="left") == "Labels of 100,000 clients: a sample of 500, evenly spaced by id"
    assert above.images[0].get_array().shape == (10, 500)
    assert above.images[0].get_extent() == [-0.5, 99_999.5, 9.5, -0.5]


def test_many_classes_are_a_heat_map_even_for_few_clients(tmp_path, figures):
    classes = [str(number) for number in range(62)]
    dealt = plots.Dealt(np.arange(62), np.array([0, 31, 62]), np.arange(62), classes, ["Cleveland", "Zurich"])
    plots.label_distribution(dealt, tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    assert figures[0].axes[0].images[0].get_array().shape == (62, 2)
    assert [label.get_text() for label in figures[0].axes[1].get_xticklabels()] == ["Cleveland", "Zurich"]


def test_real_targets_are_shown_in_quantile_bins(tmp_path, figures):
    targets = np.linspace(0.0, 100.0, 101)
    plots.label_distribution(plots.Dealt(targets, np.array([0, 50, 101]), np.arange(101)), tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")
    (legend,) = figures[0].legends
    bins = [text.get_text() for text in legend.get_texts()]
    assert bins == ["0 to 20", "20 to 40", "40 to 60", "60 to 80", "80 to 100"]
    # Targets 0 to 49 are client 0's: 20 in each of the first two bins, 10 in the third. The last bin has its
    # upper edge too.
    widths = [[bar.get_width() for bar in bars] for bars in figures[0].axes[0].containers]
    assert widths == [[20, 0], [20, 0], [10, 10], [0, 20], [0, 21]]


@pytest.mark.parametrize("targets", [np.full(6, 3.5), np.array([0.0, 0, 0, 0, 0, 9])])
def test_targets_that_repeat_make_fewer_bins(tmp_path, targets):
    plots.label_distribution(plots.Dealt(targets, np.array([0, 3, 6]), np.arange(6)), tmp_path / "p.png")
    assert_is_picture(tmp_path / "p.png")


def trace(**changes: object) -> dict[str, object]:
    """Three clients of a synchronous run of two rounds of 1 s."""
    found = {
        "staleness": {"0": 6},
        "participation": [2, 2, 2],
        "late": 0,
        "lost": [],
        "lost_weight": 0.0,
        "timeline": [work(client, n, float(n), n + 1.0, n + 1.0) for client in range(3) for n in range(2)],
        "timeline_clients": 20,
        **changes,
    }
    return {"until": ended(found["timeline"]), **found}


def work(
    client: int, version: int, start: float, end: float | None, used: float | None, outcome: str = "used"
) -> dict[str, object]:
    return {"client": client, "version": version, "start": start, "end": end, "used": used, "outcome": outcome}


def heights(axis) -> dict[float, float]:
    """The bars of a histogram by their centres."""
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in axis.patches if bar.get_height()}


def test_histograms_are_mean_shares_over_the_seeds(tmp_path, figures):
    groups = {
        "stale": [
            trace(staleness={"0": 3, "2": 1}, participation=[1, 3, 0, 0]),
            trace(staleness={"0": 1, "10": 1}, participation=[1, 0, 1, 1]),
        ],
        "untraced": [],
        "fresh": [trace()],
    }
    assert plots.histograms(groups, tmp_path / "h.png")
    assert_is_picture(tmp_path / "h.png")
    staleness, participation, fresh, equal = figures[0].axes
    # Shares of the seeds: (3/4, 1/4, 0) and (1/2, 0, 1/2) of staleness 0, 2 and 10.
    assert heights(staleness) == pytest.approx({0: 0.625, 2: 0.125, 10: 0.25})
    # Clients that were used 0, 1 and 3 times: (2, 1, 1) of 4, and (1, 3, 0) of 4.
    assert heights(participation) == pytest.approx({0: 0.375, 1: 0.5, 3: 0.125})
    assert (heights(fresh), heights(equal)) == ({0: 1.0}, {2: 1.0})
    assert [axis.get_title(loc="left") for axis in (staleness, fresh)] == ["stale (2 seeds)", "fresh"]
    # Mean staleness (2 / 4 + 10 / 2) / 2 = 2.75, and participation (4 / 4 + 3 / 4) / 2 = 0.875.
    said = [axis.texts[0].get_text() for axis in (staleness, participation, fresh, equal)]
    assert said == ["mean 2.75, from 0 to 10", "mean 0.88, from 0 to 3", "all 0", "all 2"]
    # As in the curves, the third group has the third colour.
    assert plots.style.BRIGHT[2] in {matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in fresh.patches}


def test_wide_histograms_have_bins_of_a_whole_width(tmp_path, figures):
    # 0 to 1000 are 1001 numbers: 59 bins of 20 hold 1180 and of 10 only 590. Bins start at multiples of 20.
    staleness = {"0": 1, "19": 1, "20": 1, "1000": 1}
    assert plots.histograms({"a": [trace(staleness=staleness, participation=[5, 5])]}, tmp_path / "h.png")
    (axis,) = figures[0].axes
    assert heights(axis) == pytest.approx({9.5: 0.5, 29.5: 0.25, 1009.5: 0.25})


def test_histograms_without_replies_say_so(tmp_path, figures):
    groups = {"none": [trace(staleness={}, participation=[0, 0])], "some": [trace(staleness={"0": 1, "1": 1})]}
    assert plots.histograms(groups, tmp_path / "h.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["none"]


def test_histograms_of_many_groups_say_how_many_are_drawn(tmp_path, figures):
    groups = {str(number): [trace(participation=[0, 1])] for number in range(10)}
    assert plots.histograms(groups, tmp_path / "h.png")
    assert len(figures[0].axes) == 8
    assert figures[0].get_suptitle() == "the first 8 of 10 groups"


def bars(axis) -> set[tuple[int, float, float]]:
    """Client, start and end of the bars of a timeline."""
    return {(round(b.get_y() + b.get_height() / 2), b.get_x(), b.get_x() + b.get_width()) for b in axis.patches}


def test_a_timeline_shows_work_waits_and_losses(tmp_path, figures):
    works = [
        work(0, 0, 0.0, 1.0, 1.0),
        work(0, 1, 1.0, None, None, "working"),
        work(1, 0, 0.0, 0.5, 1.0),
        work(1, 1, 1.0, 1.25, None, "lost"),
        work(2, 0, 0.0, 1.5, 2.0, "late"),
        work(3, 0, 0.0, 1.0, None, "cancelled"),
        work(3, 1, 1.0, 1.75, None, "failed"),
    ]
    assert plots.timeline(trace(timeline=works, participation=[1] * 30), tmp_path / "t.png")
    assert_is_picture(tmp_path / "t.png")
    axis = figures[0].axes[0]
    # Client 0's second work goes on to the last known moment, 2 s.
    assert bars(axis) == {
        *((0, 0.0, 1.0), (0, 1.0, 2.0), (1, 0.0, 0.5), (1, 1.0, 1.25)),
        *((2, 0.0, 1.5), (3, 0.0, 1.0), (3, 1.0, 1.75)),
    }
    waits, closings = strokes(axis)
    assert waits == {(1, 0.5, 1.0), (2, 1.5, 2.0)}
    assert closings == {1.0, 2.0}
    (crosses,) = axis.lines
    assert {tuple(point) for point in crosses.get_xydata()} == {(1.25, 1)}
    assert (axis.get_xlim(), axis.get_ylim()) == ((0, 2), (19.6, -0.6))
    assert axis.get_title(loc="left") == "the first 20 of 30 clients"
    # Versions 0 and 1 have a colour each, a late bar has an edge and one that was thrown away is hatched.
    looks = {(bar.get_x(), round(bar.get_y() + 0.36)): bar for bar in axis.patches}
    assert looks[0.0, 0].get_facecolor() == looks[0.0, 1].get_facecolor() != looks[1.0, 0].get_facecolor()
    assert [looks[0.0, client].get_hatch() is None for client in (0, 2, 3)] == [True, True, False]
    assert looks[0.0, 2].get_edgecolor() == matplotlib.colors.to_rgba(plots.style.INK)
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "at work",
        "late: a window closed without it",
        "cancelled",
        "failed",
        "idle until its window closes",
        "lost",
        "a window closes",
    ]


def strokes(axis) -> tuple[set[tuple[int, float, float]], set[float]]:
    """The waits of a timeline (client, from, to) and its closings."""
    paths = [path.vertices for collection in axis.collections for path in collection.get_paths()]
    waits = {(round(y), start, end) for (start, y), (end, last) in paths if y == last}
    return waits, {x for (x, y), (_, last) in paths if y != last}


def test_a_timeline_without_waits_between_equals_is_no_picture(tmp_path):
    assert not plots.timeline(trace(), tmp_path / "t.png")
    assert not plots.timeline(trace(timeline=[]), tmp_path / "t.png")
    assert not plots.histograms({"a": [trace()], "b": []}, tmp_path / "h.png")
    assert not plots.histograms({}, tmp_path / "h.png")
    assert not plots.timelines({}, tmp_path / "t.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "last",
    [
        work(2, 2, 2.0, 2.5, 3.0),  # waits
        work(2, 2, 2.0, 2.5, 2.5),  # is quicker
        work(2, 2, 2.0, 3.0, 3.0, "late"),
        work(2, 2, 2.0, 2.5, None, "lost"),
    ],
)
def test_a_timeline_is_a_picture_when_one_client_differs(tmp_path, last):
    timeline = trace()["timeline"]
    assert plots.timeline(trace(timeline=[*timeline, last]), tmp_path / "t.png")
    assert_is_picture(tmp_path / "t.png")


def test_the_versions_of_a_timeline_share_colours_in_equal_steps(tmp_path, figures):
    # Of versions 0 to 29, five share a colour: 30 / 9 = 3.3, and the next step that is easy to read is 5.
    timeline = [work(0, n, float(n), n + 0.5, n + 1.0) for n in range(30)]
    assert plots.timeline(trace(timeline=timeline, participation=[30]), tmp_path / "t.png")
    axis, bar = figures[0].axes
    # Work of 0.5 s fits 15 times into 7.5 s, in which versions 0 to 7 are begun; one step is enough for each.
    assert axis.get_title(loc="left") == "the first part, up to 7.5 s"
    assert len(axis.patches) == 8
    assert [label.get_text() for label in bar.get_yticklabels()] == [str(n) for n in range(8)]
    works = [work(0, n, n / 4, n / 4 + 0.1, (n + 1) / 4) for n in range(29)] + [work(0, 29, 7.25, 9.25, 9.5)]
    assert plots.timeline(trace(timeline=works, participation=[30]), tmp_path / "t.png")
    axis, bar = figures[1].axes
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0–4", "5–9", "10–14", "15–19", "20–24", "25–29"]
    colours = [patch.get_facecolor() for patch in sorted(axis.patches, key=lambda patch: patch.get_x())]
    assert [len(set(colours[first : first + 5])) for first in range(0, 30, 5)] == [1] * 6
    assert len(set(colours)) == 6


def test_a_timeline_ends_where_a_client_has_too_many_bars(tmp_path, figures):
    # Client 0 needs 0.1 s: its 76th order starts at 7.5 s, before 15 times client 1's 1 s.
    quick = [work(0, n, n / 10, (n + 1) / 10, (n + 1) / 10) for n in range(100)]
    slow = [work(1, 10 * n, float(n), n + 1.0, n + 1.0, "late") for n in range(10)]
    assert plots.timeline(trace(timeline=[*quick, *slow], participation=[100, 10]), tmp_path / "t.png")
    axis = figures[0].axes[0]
    assert axis.get_xlim() == (0, 7.5)
    assert axis.get_title(loc="left") == "the first part, up to 7.5 s"
    assert len(bars(axis)) == 75 + 8
    assert len(strokes(axis)[1]) == 75


def test_a_timeline_begins_with_the_first_work(tmp_path, figures):
    # Nobody is there before 100 s; work of 1 s fits 15 times until 115 s, before the second run begins.
    early = [work(0, n, 100.0 + 2 * n, 101.0 + 2 * n, 102.0 + 2 * n) for n in range(10)]
    late = [work(0, 0, 200.0, 201.0, 201.0)]
    traces = {"early": trace(timeline=early), "late": trace(timeline=late)}
    assert plots.timelines(traces, tmp_path / "t.png")
    assert_is_picture(tmp_path / "t.png")
    first, second = figures[0].axes[:2]
    assert first.get_xlim() == second.get_xlim() == (100, 115)
    assert [axis.get_title(loc="left") for axis in (first, second)] == [
        "early, the first part, up to 115 s",
        "late, the first part, up to 115 s",
    ]
    assert (len(first.patches), len(second.patches)) == (8, 0)


def test_timelines_share_their_time_and_say_what_is_left_out(tmp_path, figures):
    taus = [1.0 - 0.8 * client / 19 for client in range(20)]
    kinds = {"fedavg": everybody, "fedfix": every(0.5), "fedbuff": after(5), "async": after(1), "more": every(1.0)}
    runs = {name: schedule(taus, closing, 12.0) for name, closing in kinds.items()}
    assert plots.timelines({name: trace for name, (_, trace) in runs.items()}, tmp_path / "t.png")
    assert_is_picture(tmp_path / "t.png")
    panels = figures[0].axes[:4]
    assert {axis.get_xlim() for axis in panels} == {(0, 12)}
    assert [axis.get_title(loc="left").partition(",")[0] for axis in panels] == ["fedavg", "fedfix", "fedbuff", "async"]
    assert figures[0].get_suptitle() == "the first 4 of 5 groups"
    # FedAvg closes at 1, 2, .. 12 s, FedFix every half second; asynchronous windows are too many for lines.
    assert [strokes(axis)[1] for axis in panels[:2]] == [set(range(1, 13)), {n / 2 for n in range(1, 25)}]
    assert "moments at which work was taken are not drawn" in panels[3].get_title(loc="left")
    assert strokes(panels[3])[1] == set()


def test_a_picture_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        plots.curves([row(1, train_loss=1.0)], tmp_path / "absent" / "curves.png")


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, fedsim.reports.comparison; sys.exit('matplotlib' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_does_not_import_pyplot(tmp_path):
    code = "import sys, pathlib; from fedsim.plots import curves; "
    code += "curves([dict(round=1, train_loss=1.0)], pathlib.Path(sys.argv[1])); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "c.png"], check=False).returncode == 0


def test_a_round_that_was_judged_twice_is_one_point(tmp_path):
    """Looks at 1, 2 and 3 s fall into rounds 1, 1 and 2 of one run, and into 1, 2 and 2 of the other."""
    groups = {
        name: [[{"round": r, "time": float(t), "test_loss": 1.0 / t} for t, r in enumerate(rounds, start=1)]]
        for name, rounds in {"slow": (1, 1, 2), "fast": (1, 2, 2)}.items()
    }
    assert plots.compare_curves(groups, tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 0


def test_seeds_that_were_judged_in_different_rounds_keep_all_their_points(tmp_path, figures):
    """Rounds 1, 3, 5 and 2, 3, 6: from round 2 to 5 each seed has what it had last."""
    seeds = [[row(n, test_loss=float(n)) for n in rounds] for rounds in ((1, 3, 5), (2, 3, 6))]
    assert plots.compare_curves({"two": seeds}, tmp_path / "compare.png")
    # At 2: (1 + 2) / 2; at 3: 3; at 5: (5 + 3) / 2.
    np.testing.assert_allclose(figures[0].axes[0].lines[0].get_xydata(), [(2, 1.5), (3, 3.0), (5, 4.0)])


# Files.


@pytest.mark.parametrize(
    ("suffix", "begin"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".PDF", b"%PDF")]
)
def test_a_picture_has_the_format_of_its_name_and_the_same_bytes_every_time(tmp_path, monkeypatch, suffix, begin):
    rows = [row(1, train_loss=2.0), row(2, train_loss=1.0)]
    for number, now in enumerate(("0", "1000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", now)  # what matplotlib takes for the date of a PDF or an SVG
        assert plots.curves(rows, tmp_path / f"{number}{suffix}")
    first, second = ((tmp_path / f"{number}{suffix}").read_bytes() for number in range(2))
    assert first == second
    assert first.startswith(begin)
    picture = plots.Picture(lambda place: plots.curves(rows, place))
    picture.save(tmp_path / f"saved{suffix}")
    assert (tmp_path / f"saved{suffix}").read_bytes() == first


@pytest.mark.parametrize("name", ["a", "a.jpg", "a.png.gz", ".png"])
def test_a_picture_with_another_name_is_refused(tmp_path, name):
    rows = [row(1, train_loss=2.0), row(2, train_loss=1.0)]
    for draw in (lambda path: plots.curves(rows, path), plots.Picture(lambda place: plots.curves(rows, place)).save):
        with pytest.raises(InputError, match=r"ends in \.png, \.pdf, \.svg"):
            draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_names_are_no_formulas(tmp_path, figures):
    """Between two $ matplotlib reads TeX, and fails where it is none."""
    rows = [row(1, **{"x$\\no$_loss": 2.0}), row(2, **{"x$\\no$_loss": 1.0})]
    assert plots.compare_curves({"a$\\b$c": [rows], "d$": [rows]}, tmp_path / "c.png")
    assert plots.curves(rows, tmp_path / "d.png")
    late = work(0, 0, 0.0, 1.0, 3.0)
    assert plots.timelines({"a$\\b$c": trace(timeline=[late], participation=[1, 1])}, tmp_path / "t.png")
    assert figures[-1].axes[0].get_title(loc="left") == r"a\$\b\$c"
